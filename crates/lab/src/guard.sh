# The guardian of one local server. It reads verbs from its standard input, a pipe that only the process
# that started it holds open, and answers each with an exit status on its standard output. When that process
# ends, however it ends, the pipe closes: the server is stopped and its folder removed.
#
# Put behind the definitions of `$folder`, `prepare`, `start`, `stop`, `kill_server` and `end`.
# Run as `sh server.sh remove` by hand, it stops a server that was left running and removes its folder.

umask 077
# A closing terminal must not end the guardian before its server, nor must an answer that nobody reads.
trap '' HUP PIPE
cd / || exit 1

remove() {
    end
    rm -rf "$folder"
}

case ${1:-} in
serve)
    keep=
    while read -r verb; do
        case $verb in
        keep) keep=yes; echo 0 ;;
        prepare | start | stop | kill_server)
            "$verb" >>"$folder/guardian.log" 2>&1 </dev/null
            echo $?
            ;;
        *) echo 64 ;;
        esac
    done
    [ -n "$keep" ] || remove >/dev/null 2>&1 </dev/null
    ;;
remove) remove ;;
*)
    echo "usage: sh $0 remove" >&2
    exit 64
    ;;
esac
