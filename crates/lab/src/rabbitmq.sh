# A local RabbitMQ node; see guard.sh. Needs `$folder`, `$server`, `$epmd` and `$ERL_EPMD_PORT`.

# A node of its own, told apart from a system-wide broker in everything: no file, port or Erlang port mapper
# is shared, and the system's rabbitmq-env.conf is not read.
export HOME="$folder"
export RABBITMQ_CONF_ENV_FILE="$folder/empty.conf"
export RABBITMQ_CONFIG_FILE="$folder/rabbitmq.conf"
export RABBITMQ_ADVANCED_CONFIG_FILE="$folder/advanced.config"
export RABBITMQ_ENABLED_PLUGINS_FILE="$folder/enabled_plugins"
export RABBITMQ_MNESIA_BASE="$folder/mnesia"
export RABBITMQ_LOG_BASE="$folder/log"
export RABBITMQ_GENERATED_CONFIG_DIR="$folder/config"
export RABBITMQ_PID_FILE="$folder/rabbitmq.pid"
# Makes the start script replace itself by the Erlang machine, so that one process id is the node's.
export RUNNING_UNDER_SYSTEMD=true
unset NOTIFY_SOCKET

prepare() { mkdir -p "$folder/mnesia" "$folder/log" "$folder/config" && : >"$folder/empty.conf"; }

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

start() {
    if ! alive "$folder/epmd.pid"; then
        "$epmd" -port "$ERL_EPMD_PORT" -address 127.0.0.1 >>"$folder/epmd.log" 2>&1 &
        echo $! >"$folder/epmd.pid"
    fi
    rm -f "$folder/exited"
    (
        "$server" -noinput >>"$folder/server.log" 2>&1 &
        echo $! >"$folder/node.pid"
        wait $!
        # Seen by the one who waits for the node; a process that nobody waited for would still seem alive.
        echo $? >"$folder/exited"
    ) &
    while [ ! -s "$folder/node.pid" ]; do sleep 0.05; done
}

signal_node() {
    [ -e "$folder/exited" ] || ! alive "$folder/node.pid" || kill -s "$1" "$(cat "$folder/node.pid")"
    tries=0
    while [ ! -e "$folder/exited" ] && alive "$folder/node.pid"; do
        [ "$tries" -lt "$2" ] || return 1
        sleep 0.1
        tries=$((tries + 1))
    done
    rm -f "$folder/node.pid"
}

stop() { signal_node TERM 300 || signal_node KILL 100; }

kill_server() { signal_node KILL 100; }

end() {
    signal_node KILL 100
    # SIGTERM is enough: epmd keeps nothing on disk.
    alive "$folder/epmd.pid" && kill "$(cat "$folder/epmd.pid")"
    return 0
}
