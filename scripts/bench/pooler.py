"""The PgBouncer of a benchmark: one entry, transaction pooling, a log that tells when it held its clients."""

import datetime
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from servers import Failed, as_account, free_port, unprivileged

ENTRY = "shop"
PAUSED = re.compile(r"^(\S+ \S+) UTC \[\d+\] LOG (PAUSE|RESUME) .*command issued")


def program():
    for found in (os.environ.get("HANDOVER_PGBOUNCER"), shutil.which("pgbouncer"), "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer"):
        if found and os.access(found, os.X_OK):
            return found
    raise Failed("PgBouncer is missing: apt-get install pgbouncer")


class Pooler:
    """It trusts whoever comes from this machine. `psql` is the client that its console is asked with."""

    def __init__(self, folder, psql, pool):
        self.folder, self.client, self.port, self.process = Path(folder), psql, free_port(), None
        self.entries, self.log = self.folder / "databases.ini", self.folder / "pgbouncer.log"
        self.account, self.pool = unprivileged(), pool
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "users.txt").write_text('"web" ""\n"admin" ""\n')
        (self.folder / "pgbouncer.ini").write_text(
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {self.folder}/users.txt\nadmin_users = admin\npool_mode = transaction\nserver_login_retry = 0.2\n"
            f"max_client_conn = 500\nlog_connections = 0\nlog_disconnections = 0\nignore_startup_parameters = extra_float_digits\n"
            f"%include {self.entries}\n")

    def line(self, server):
        """What the entry says when it leads to a server's database of the same name."""
        return f"{ENTRY} = host=127.0.0.1 port={server.port} dbname={ENTRY} pool_size={self.pool}"

    def start(self, server):
        self.entries.write_text(f"[databases]\n{self.line(server)}\n")
        if self.account:
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, self.account.pw_uid, self.account.pw_gid)
        log = open(self.log, "ab")
        self.process = subprocess.Popen(
            [program(), self.folder / "pgbouncer.ini"], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={"PATH": os.environ["PATH"], "TZ": "UTC"}, start_new_session=True, **as_account(self.account))
        log.close()
        for _ in range(100):
            try:
                return self.console("show version")
            except Failed:
                time.sleep(0.1)
        raise Failed(f"PgBouncer does not start: see {self.log}")

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def admin(self):
        return f"postgres://admin@127.0.0.1:{self.port}/pgbouncer"

    def through(self):
        return f"postgres://web@127.0.0.1:{self.port}/{ENTRY}"

    def console(self, text):
        done = subprocess.run([self.client, "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d", self.admin(), "-c", text],
                              capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"PgBouncer: {done.stderr.strip()}")
        return done.stdout

    def turn(self, server):
        """Rewrites the entry's file, whole, and has it read."""
        text = f"[databases]\n{self.line(server)}\n"
        beside = self.entries.with_suffix(".new")
        beside.write_text(text)
        if self.account:
            os.chown(beside, self.account.pw_uid, self.account.pw_gid)
        beside.replace(self.entries)
        self.console("reload")

    def pauses(self):
        """When it was told to hold its clients and to let them go on, in seconds since 1970."""
        out, since = [], None
        for line in self.log.read_text(errors="replace").splitlines():
            if found := PAUSED.match(line):
                at = datetime.datetime.fromisoformat(found[1] + "+00:00").timestamp()
                if found[2] == "PAUSE":
                    since = at
                elif since is not None:
                    out.append((since, at))
                    since = None
        return out
