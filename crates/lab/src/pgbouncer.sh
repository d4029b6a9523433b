# A local PgBouncer; see guard.sh. Needs `$folder` and `$pgbouncer`.
ini=$folder/pgbouncer.ini

prepare() { [ -x "$pgbouncer" ]; }

# Without -d, and with a file for its log: then one process id is its own from the beginning.
start() {
    "$pgbouncer" "$ini" >>"$folder/server.log" 2>&1 &
    echo $! >"$folder/pid"
}

alive() { [ -s "$folder/pid" ] && kill -0 "$(cat "$folder/pid")" 2>/dev/null; }

signal_it() {
    alive || return 0
    kill -s "$1" "$(cat "$folder/pid")"
    # The shell is its parent, so it is waited for and never a process that only seems alive.
    wait "$(cat "$folder/pid")" 2>/dev/null
    rm -f "$folder/pid"
}

stop() { signal_it TERM; }

kill_server() { signal_it KILL; }

end() { signal_it KILL; }
