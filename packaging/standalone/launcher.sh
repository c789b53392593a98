#!/bin/sh
# Starts refit-agent with the Python of this folder, wherever the folder is and however this file is named or linked.
here=$0
case $here in
    */*) ;;
    # Named without a place, as in `sh refit-agent`: shells look here first, and PATH may lead to another installation.
    *) if [ -f "./$here" ]; then here=./$here; else here=$(command -v -- "$here"); fi ;;
esac
folder=${here%/bin/*}
# The usual case needs no process. A link at either place, or a name of another form, may lead to another folder.
if [ "$here" != "$folder/bin/${here##*/}" ] || [ "${here#/}" = "$here" ] || [ -L "$here" ] || [ -L "$folder/bin" ]; then
    here=$(readlink -f -- "$here") && folder=${here%/bin/*}
fi
# Those of the calling app's Python: -I ignores most of them, but not where its parts are looked for, and children that
# are started without -I would take the rest for theirs.
unset PYTHONHOME PYTHONPATH PYTHONEXECUTABLE PYTHONPLATLIBDIR PYTHONUSERBASE PYTHONSTARTUP PYTHONINSPECT
exec "$folder/python/bin/python3" -I -S -B "$folder/lib/refit_agent_start.py" "$@"
