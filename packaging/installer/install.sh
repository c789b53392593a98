#!/bin/sh
# An example of an app's installer: puts the app, its bundle and refit-agent into a folder of this user, has the
# models made ready for this machine, and takes all of it off again. Safe to run again at any time: it goes on.
#
#     install.sh [--payload FOLDER] [--prefix FOLDER] [--deadline SECONDS]
#     install.sh --uninstall [--purge] [--prefix FOLDER]
#
# The payload (by default where this script is) holds app/, bundle/ and refit-agent/, the standalone folder.
# Exit codes: 0 installed, even if the models are left to the first launch; 1 could not be copied; 2 usage;
# 3 the bundle is damaged; 130 and 143 stopped, run it again.
set -eu

payload=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
prefix=${XDG_DATA_HOME:-$HOME/.local/share}/example-photo
deadline=600 uninstall='' purge='' chosen=''
parts='app bundle refit-agent'

say() { printf '%s\n' "$*"; }
usage() { sed -n '5,6s/^# *//p' "$0" >&2; exit 2; }

while [ $# -gt 0 ]; do
    case $1 in
        --payload | --prefix | --deadline)
            [ $# -ge 2 ] || usage
            case $1 in
                --payload) payload=$2 ;;
                --prefix) prefix=$2 chosen=1 ;;
                --deadline) deadline=$2 ;;
            esac
            shift
            ;;
        --uninstall) uninstall=1 ;;
        --purge) purge=1 ;;
        *) usage ;;
    esac
    shift
done
# A zero in front would make it octal, or no number at all.
case $deadline in '' | 0?* | *[!0-9]*) usage ;; esac
agent=$prefix/refit-agent/bin/refit-agent
log=$prefix/install.log
pipe=$prefix/install.pipe

# ---------------------------------------------------------------- the files

# A part is replaced as a whole: what an older version or a killed run left is never mixed with it.
copy_part() {
    rm -rf "$prefix/$1.new"
    cp -R "$payload/$1" "$prefix/$1.new" || return 1
    rm -rf "${prefix:?}/$1"
    mv "$prefix/$1.new" "$prefix/$1"
}

# The agent alone knows all that it keeps, wherever settings have moved it; without it this looks at the usual places.
say_what_stays() {
    if [ -n "${REFIT_AGENT_HOME:-}" ]; then
        set -- "$REFIT_AGENT_HOME/cache" "$REFIT_AGENT_HOME/state"
    else
        set -- "${XDG_CACHE_HOME:-$HOME/.cache}/refit-agent" "${XDG_STATE_HOME:-$HOME/.local/state}/refit-agent"
    fi
    for place in "$@"; do
        [ ! -d "$place" ] || say "Still there, since refit-agent is gone, which would remove it: $place" >&2
    done
    if [ -d "$1" ] || [ -d "$2" ]; then
        say "Delete it if no other app uses it; or install again, and then use --uninstall --purge at once." >&2
    fi
}

remove_all() {
    # The engines in this user's cache: other apps that use refit-agent make theirs again when they want them.
    if [ -n "$purge" ] && [ -x "$agent" ]; then
        "$agent" uninstall --purge --yes >/dev/null || say "The cache of engines could not be removed." >&2
    elif [ -n "$purge" ]; then
        say_what_stays
    fi
    for part in $parts; do
        rm -rf "${prefix:?}/$part" "$prefix/$part.new"
    done
    rm -f "$log" "$pipe"
    if [ -d "$prefix" ]; then rmdir "$prefix" 2>/dev/null || say "Left as it is, there are other files in it: $prefix"; fi
}

# ---------------------------------------------------------------- the progress

# The first field of that name; nested objects stand last in every line, and there are no spaces in between.
value_of() {
    rest=${2#*"\"$1\":"}
    rest=${rest%%[,\}]*}
    rest=${rest#\"}
    printf '%s' "${rest%\"}"
}

# The error's sentence. Other escapes stay as they are: nothing in it can move the cursor.
error_of() {
    rest=${1#*'"error":{"code":"'}
    printf '%s' "${rest#*'","message":"'}" | sed -e 's/\\\\/\\134/g' -e "s/\\\\\"/'/g" -e 's/".*//'
}

shown=-10
show_step() {
    percent=$(value_of percent "$1") eta=$(value_of eta_s "$1") text=$(value_of text "$1")
    percent=${percent%%.*}
    case $eta in null) left='' ;; *) left=", about $((${eta%%.*} + 1)) s left" ;; esac
    if [ -t 1 ]; then
        printf '\r\033[KPreparing the models: %3d %%%s (%s)' "$percent" "$left" "$text"
    elif [ "$percent" -ge $((shown + 10)) ] || { [ "$percent" -eq 100 ] && [ "$shown" -lt 100 ]; }; then
        shown=$percent
        say "Preparing the models: $percent %$left ($text)"
    fi
}

pid='' stopped=''
on_signal() {
    stopped=$1
    # In the background of a script a program does not hear Ctrl+C: it has to be told.
    [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null || :
}
trap 'on_signal 130' INT
trap 'on_signal 143' TERM HUP

# Makes the models ready within so many seconds; sets code to how it ended and error to why.
provision() {
    code=0 error='' result=''
    rm -f "$pipe"
    mkfifo "$pipe"
    "$agent" provision "$prefix/bundle" --progress=json --deadline "$1" >"$pipe" 2>>"$log" &
    pid=$!
    # A signal may end this early: then the agent was told to stop, and ends as well when nobody reads any more.
    while IFS= read -r line; do
        case $line in
            '{"event":"progress",'*) show_step "$line" ;;
            '{"event":"result",'*) result=$line ;;
        esac
    done <"$pipe"
    if [ -t 1 ]; then printf '\r\033[K'; fi
    wait "$pid" || code=$?
    pid=''
    rm -f "$pipe"
    case $result in *'"error":{'*) error=$(error_of "$result") ;; esac
}

# ---------------------------------------------------------------- what follows from it

prepare_models() {
    began=$(date +%s) tries=0 error=''
    while :; do
        tries=$((tries + 1))
        left=$((deadline - $(date +%s) + began))
        [ "$left" -gt 0 ] || break
        provision "$left"
        [ -z "$stopped" ] || { say "Stopped. Run it again, it goes on from there."; exit "$stopped"; }
        case $code in
            0) say "The models are ready."; return 0 ;;
            3)  # The bundle: this copy of it may be the fault.
                [ "$tries" -eq 1 ] && copy_part bundle && continue
                say "The app's files are damaged: $error" >&2
                exit 3
                ;;
            5) say "This computer cannot run the models: $error" >&2; return 0 ;;
            7) error="The disk or the cache: $error"; break ;;
            8 | 9 | 13[1-9])  # The service, the network, a process that was killed: what is done stays done.
                [ "$tries" -le 2 ] && continue
                break
                ;;
            130 | 143) say "Stopped. Run it again, it goes on from there."; exit "$code" ;;
            *) break ;;
        esac
    done
    [ -z "$error" ] || say "$error" >&2
    say "The app prepares its models at its first launch. Details: $log"
}

if [ -n "$uninstall" ]; then
    remove_all
    say "Removed."
    exit 0
fi
mkdir -p "$prefix"
for part in $parts; do
    copy_part "$part" || { say "Could not be copied: $part" >&2; exit 1; }
    [ -z "$stopped" ] || exit "$stopped"
done
if [ "$(id -u)" -eq 0 ] && [ -z "${REFIT_AGENT_HOME:-}" ]; then
    # The engines belong into the cache of the user who will run the app; root's would be of no use.
    if [ -n "$chosen" ]; then
        say "Installed for all; the app prepares its models when a user launches it first."
    else
        say "The app prepares its models at its first launch. To install it for all users give --prefix."
    fi
else
    prepare_models
fi
say "Installed: $prefix"
