#!/bin/sh
# Starts refit-agent with the Python of this folder, wherever the folder is and however this file is named or linked.
here=$0
if [ -L "$here" ]; then
    here=$(readlink -f -- "$here")
fi
case $here in
    /*/bin/*) here=${here%/bin/*} ;;
    */*) here=$(CDPATH='' cd -- "${here%/*}/.." && pwd -P) || exit 1 ;;
    *) here=$(CDPATH='' cd -- "$(dirname -- "$(command -v -- "$here")")/.." && pwd -P) || exit 1 ;;
esac
# Those of the calling app's Python: children that are started without -I would take them for theirs.
unset PYTHONHOME PYTHONPATH
exec "$here/python/bin/python3" -I -S -B "$here/lib/refit_agent_start.py" "$@"
