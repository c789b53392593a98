# The process ids of the services that run from this package in this root, of whatever user. Another container's
# processes may look the same from here, so the root is compared, too.
running_services() {
    for process in /proc/[0-9]*; do
        case $(readlink "$process/exe" 2>/dev/null) in
        /usr/lib/refit-agent/*) ;;
        *) continue ;;
        esac
        [ "$(stat -Lc %d:%i "$process/root" 2>/dev/null)" = "$(stat -Lc %d:%i /)" ] || continue
        # It may have ended since; then it is the shell that complains, about the file.
        if { tr '\0' '\n' <"$process/cmdline"; } 2>/dev/null | grep -qx serve; then
            echo "${process#/proc/}"
        fi
    done
}
