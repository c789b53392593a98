#!/bin/sh
# Pins the newest packages that pyproject.toml allows, with their hashes, into the locks beside this file. Needs uv.
set -eu
cd "$(dirname "$0")/../.."
here=packaging/standalone
compile() {
    uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header "$@"
}
compile "$here/tools.in" -o "$here/tools.lock"
for cuda in 12 13; do
    compile --extra service --extra signing --extra cpu --extra "cu$cuda" pyproject.toml -o "$here/cu$cuda.lock"
done
