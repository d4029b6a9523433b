# A local Postgres server; see guard.sh. Needs `$folder` and `$bin`.
data=$folder/data

prepare() {
    # Not every system has the C.UTF-8 locale; plain C sorts the same and only lacks character classes.
    for locale in C.UTF-8 C; do
        "$bin/initdb" -D "$data" -U postgres --pwfile="$folder/password" --auth=scram-sha-256 \
            --encoding=UTF8 --locale="$locale" --no-sync && break
    done
    rm -f "$folder/password"
    [ -f "$data/PG_VERSION" ] && echo "include '$folder/handover.conf'" >>"$data/postgresql.conf"
}

start() { "$bin/pg_ctl" start -w -t 60 -D "$data" -l "$folder/server.log"; }

stop() {
    "$bin/pg_ctl" stop -w -t 20 -m fast -D "$data" || "$bin/pg_ctl" stop -w -t 20 -m immediate -D "$data"
}

kill_server() { "$bin/pg_ctl" stop -w -t 20 -m immediate -D "$data"; }

running() {
    pid=$(head -n 1 "$data/postmaster.pid" 2>/dev/null)
    [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 1
    # A lock file outlives a killed server, and its process id may be somebody else's by now.
    [ ! -r "/proc/$pid/cmdline" ] || tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "$data"
}

# Fast shutdown first, so that clients are told; the rest is quick, since nothing will be kept. SIGKILL
# comes last because it leaves shared memory behind.
end() {
    for signal in INT QUIT KILL; do
        running || return 0
        kill -s "$signal" "$pid"
        tries=0
        while running && [ "$tries" -lt 30 ]; do
            sleep 0.1
            tries=$((tries + 1))
        done
    done
}
