"""What a contestant costs: CPU of both servers and of its own processes, and what green's backends are doing."""

import os
import re
import resource
import subprocess
import threading
import time

TICKS = os.sysconf("SC_CLK_TCK")
INTERVAL = 0.1

# What a statement on green is for, by its first words. The first pattern that fits wins.
CLASSES = [
    ("data", re.compile(r"^copy\b")),
    ("constraints", re.compile(r"\bforeign key\b|\bvalidate constraint\b|\bcheck \(")),
    ("indexes", re.compile(r"^(create (unique )?index|alter table .* add (constraint|primary key|unique))\b|^reindex\b")),
    ("analyze", re.compile(r"^(vacuum|analyze)\b")),
    ("autovacuum", re.compile(r"^autovacuum")),
    ("verify", re.compile(r"^select count\(|\bhash_record|md5\(")),
]
NAMES = [name for name, _ in CLASSES] + ["other"]


def classify(query):
    text = " ".join(query.lower().split())
    return next((name for name, pattern in CLASSES if pattern.search(text)), "other")


def process_cpu(pid, children=False):
    """Seconds of CPU that a process used, with those of the children it has waited for."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf8") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(f) for f in fields[11:15 if children else 13]) / TICKS


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf8") as f:
            return [int(p) for p in f.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def server_cpu(server):
    """A postmaster reaps its children: what it has waited for, and what lives."""
    pid = server.process.pid
    return process_cpu(pid, children=True) + sum(process_cpu(p) for p in children(pid))


def machine_cpu():
    """Seconds the cores were busy, whoever it was."""
    with open("/proc/stat", encoding="utf8") as stat:
        user, nice, system, _idle, _wait, irq, soft, *_ = [int(f) for f in stat.readline().split()[1:]]
    return (user + nice + system + irq + soft) / TICKS


def client_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory_peak(pid):
    """VmHWM of a process in bytes, 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf8") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


class Watch:
    """Measures between `with` and its end.

    Ten times a second it asks green what its backends do, and lays the CPU time each has used since then at the door
    of the statement. `busy[class]` is how long at least one backend worked on that class; classes overlap.
    """

    # Without the comments that pg_dump's entries begin with.
    QUERY = (
        r"select pid, state, left(regexp_replace(regexp_replace(query, '^--.*$', '', 'gn'), '\s+', ' ', 'g'), 400) from pg_stat_activity "
        "where datname = 'green' and pid <> pg_backend_pid() and query <> '';\n\\echo .\n"
    )

    def __init__(self, blue, green):
        self.blue, self.green = blue, green
        self.cpu = dict.fromkeys(NAMES, 0.0)
        self.busy = dict.fromkeys(NAMES, 0.0)
        self.timeline = []
        self._seen = {}
        self._end = threading.Event()

    def __enter__(self):
        self._asker = subprocess.Popen(
            self.green.psql("postgres", "-At", "-F", "\x1f"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._own_pid = int(self._ask("select pg_backend_pid();\n\\echo .\n")[0])
        self._wal = self.green.one("postgres", "select pg_current_wal_insert_lsn()")
        self._begin = self._totals()
        self._own_begin = process_cpu(self._own_pid)
        self.since = time.monotonic()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.since
        end = self._totals()
        self._end.set()
        self._thread.join()
        own = process_cpu(self._own_pid) - self._own_begin
        self.blue_cpu, green, self.client, machine = (b - a for a, b in zip(self._begin, end))
        self.green_cpu = max(green - own, 0.0)
        self.others = max(machine - self.blue_cpu - green - self.client, 0.0)
        self.cpu["other"] = max(self.green_cpu - sum(v for k, v in self.cpu.items() if k != "other"), 0.0)
        self._asker.stdin.close()
        self._asker.wait()
        self.wal = int(self.green.one("postgres", f"select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{self._wal}')::bigint"))

    def _totals(self):
        return server_cpu(self.blue), server_cpu(self.green), client_cpu(), machine_cpu()

    def _ask(self, text):
        self._asker.stdin.write(text)
        self._asker.stdin.flush()
        lines = []
        while (line := self._asker.stdout.readline()) not in (".\n", ""):
            lines.append(line.rstrip("\n"))
        return lines

    def _bury(self, living, reaped):
        """What backends used between the last look and their end is in what their postmaster reaped."""
        gone = [pid for pid in self._seen if pid not in living]
        last = [self._seen.pop(pid) for pid in gone]
        left = reaped - sum(used for used, _ in last)
        for _, name in last:
            self.cpu[name] += max(left, 0.0) / len(last)

    def _reaped(self):
        pid = self.green.process.pid
        return process_cpu(pid, children=True) - process_cpu(pid)

    def _loop(self):
        last, reaped = time.monotonic(), self._reaped()
        while not self._end.wait(INTERVAL):
            try:
                rows = [line.split("\x1f") for line in self._ask(self.QUERY)]
            except (BrokenPipeError, ValueError):
                return
            now = time.monotonic()
            active = set()
            for pid, state, query in (row for row in rows if len(row) == 3):
                name = classify(query)
                before, known = self._seen.get(pid, (0.0, name))
                used = process_cpu(int(pid))
                # A COMMIT that follows a COPY is not what the time went to.
                self.cpu[known if name == "other" else name] += max(used - before, 0.0)
                self._seen[pid] = (used, known if name == "other" else name)
                if state == "active" and name != "other":
                    active.add(name)
            before, reaped = reaped, self._reaped()
            self._bury({row[0] for row in rows}, reaped - before)
            for name in active:
                self.busy[name] += now - last
            self.timeline.append((now - self.since, sorted(active)))
            last = now
