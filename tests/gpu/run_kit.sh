#!/usr/bin/env bash
# Run the GPU tests and the benchmark in an unpacked kit: run_kit.sh KIT MODELS OUT [tests|bench|lean ...]
set -uo pipefail
kit=$1 models=$2 out=$3; shift 3
export REFIT_AGENT_GPU_ENGINES=$kit/engines REFIT_AGENT_GPU_MODELS=$models
export PYTHONPATH=$PWD/agent:$PWD/tests
unset PYTHONDONTWRITEBYTECODE
# pip compiles what it installs; the kit was only unpacked.
"$kit/py" -m compileall -q "$kit/site" "$kit/python/lib" agent >/dev/null 2>&1
mkdir -p "$out"
for what in "$@"; do
  case $what in
    tests) "$kit/py" -m pytest tests/gpu -q -s -p no:cacheprovider -p no:randomly 2>&1 | tee "$out/tests.log" | grep -v '\[TRT\]' | tail -60 ;;
    bench) REFERENCE_PYTHON=python3 "$kit/py" tests/bench/bench_gpu.py --plain "$kit/example_refit.py" 2>&1 | tee "$out/bench.log" | grep -v '\[TRT\]' | tail -20 ;;
    lean) PYTHONPATH=${LEAN:-/tmp/site12}:/tmp/site12:$PYTHONPATH python3 -m pytest tests/gpu/test_lean.py -q -s -p no:cacheprovider 2>&1 | tee "$out/lean${LEAN:+10}.log" | tail -30 ;;
  esac
done
