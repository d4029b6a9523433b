"""Those who copy: each fills the empty database `green` with what `blue` holds, and ends with everything analyzed."""

import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from servers import Failed
from watch import memory_peak

PLAN = """\
handover: 1
name: bench-copy
databases:
  blue: ${{BLUE_URL}}
  green: ${{GREEN_URL}}
control: ${{CONTROL_URL}}
steps:
- id: copy
  copy:
    from: blue
    to: green
    jobs: {jobs}
    chunk_mb: {split}
{more}"""


class Race:
    """What all contestants share."""

    def __init__(self, blue, green, folder, jobs, split_mb, handover, plan_lines=()):
        self.blue, self.green, self.folder = blue, green, Path(folder)
        self.jobs, self.split_mb, self.handover, self.plan_lines = jobs, split_mb, handover, plan_lines
        self.running = []
        self.over = False
        self.memory = 0
        # Programs find each other (pgcopydb needs pg_dump), and nothing of the operator's environment gets in.
        self.env = {"PATH": f"{blue.bin}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"}

    def spawn(self, command, **more):
        if self.over:
            raise Failed("stopped")
        child = subprocess.Popen(
            [str(c) for c in command], env={**self.env, **more.pop("env", {})}, start_new_session=True, **more)
        self.running.append(child)
        return child

    def finish(self, child, what):
        code = child.wait()
        self.running.remove(child)
        if code != 0:
            raise Failed(f"{what} ended with {code}: {self.tail(what)}")

    def log(self, what):
        return open(self.folder / f"{what}.log", "wb")

    def tail(self, what):
        path = self.folder / f"{what}.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return " / ".join(lines[-3:]) or "it said nothing"

    def run(self, command, what, **more):
        with self.log(what) as log:
            self.finish(self.spawn(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more), what)

    def stop(self):
        """Ends what still runs: each is the first process of its own group."""
        for child in list(self.running):
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGTERM)
                try:
                    child.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
        self.running.clear()

    def empty(self, folder):
        path = self.folder / folder
        shutil.rmtree(path, ignore_errors=True)
        return path

    def analyze(self):
        self.run([self.green.bin / "vacuumdb", "--analyze-only", f"--jobs={self.jobs}", f"--dbname={self.green.url('green')}"], "vacuumdb")

    # Each contestant: what happens before the clock starts, and what is timed.

    def prepare(self):
        self.green.recreate("green")
        self.green.recreate("control")

    def run_handover(self):
        """`handover run` of a plan with one step; its control database is a third one, on green's server."""
        plan = self.folder / "plan.yaml"
        plan.write_text(PLAN.format(jobs=self.jobs, split=self.split_mb, more="".join(f"    {line}\n" for line in self.plan_lines)))
        env = {"BLUE_URL": self.blue.url("blue"), "GREEN_URL": self.green.url("green"), "CONTROL_URL": self.green.url("control")}
        with self.log("handover") as log:
            child = self.spawn([self.handover, "run", plan, "--format", "json"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
            while child.poll() is None:
                self.memory = memory_peak(child.pid) or self.memory
                time.sleep(0.02)
            self.finish(child, "handover")

    def run_pgcopydb(self):
        """pgcopydb clone; it runs VACUUM ANALYZE by itself."""
        self.run(
            ["pgcopydb", "clone", "--source", self.blue.url("blue"), "--target", self.green.url("green"),
             "--dir", self.empty("pgcopydb"), "--table-jobs", self.jobs, "--index-jobs", self.jobs,
             "--split-tables-larger-than", f"{self.split_mb} MB"], "pgcopydb")
        self.empty("pgcopydb")

    def run_dump_directory(self):
        """pg_dump -Fd -j without compression (nothing here crosses a slow line), pg_restore -j, vacuumdb."""
        folder = self.empty("dump")
        self.run([self.blue.bin / "pg_dump", "-Fd", f"-j{self.jobs}", "-Z0", "-f", folder, self.blue.url("blue")], "pg_dump")
        self.run([self.green.bin / "pg_restore", "--exit-on-error", f"-j{self.jobs}", "-d", self.green.url("green"), folder], "pg_restore")
        self.analyze()
        self.empty("dump")

    def run_dump_pipe(self):
        """pg_dump -Fc | pg_restore, which cannot be parallel, then vacuumdb."""
        with self.log("pg_dump") as out, self.log("pg_restore") as log:
            dump = self.spawn([self.blue.bin / "pg_dump", "-Fc", "-Z0", self.blue.url("blue")], stdout=subprocess.PIPE, stderr=out)
            restore = self.spawn([self.green.bin / "pg_restore", "--exit-on-error", "-d", self.green.url("green")], stdin=dump.stdout, stdout=log, stderr=log)
            dump.stdout.close()
            self.finish(dump, "pg_dump")
            self.finish(restore, "pg_restore")
        self.analyze()

    def run_floor(self):
        """psql with nothing around it: binary COPY of the same pieces, then indexes, foreign keys, ANALYZE."""
        Floor(self).run()


CONTESTANTS = {
    "handover": Race.run_handover,
    "pgcopydb": Race.run_pgcopydb,
    "dump -Fd -j": Race.run_dump_directory,
    "dump | restore": Race.run_dump_pipe,
    "floor": Race.run_floor,
}


class Floor:
    """What the servers take for the bare work, phase after phase, with as many sessions as the others have jobs."""

    TABLES = """
        select c.oid::regclass, pg_table_size(c.oid), pg_relation_size(c.oid) / 8192,
               (select string_agg(quote_ident(a.attname), ', ' order by a.attnum) from pg_attribute a
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '')
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'r' and n.nspname !~ '^pg_|^information_schema$' order by 2 desc"""
    KEYS = """
        select 'alter table ' || conrelid::regclass || ' add constraint ' || quote_ident(conname) || ' ' || pg_get_constraintdef(oid)
        from pg_constraint where contype in ('p', 'u', 'x') and conrelid <> 0 and connamespace::regnamespace::text !~ '^pg_'
        union all
        select pg_get_indexdef(i.indexrelid) from pg_index i join pg_class c on c.oid = i.indrelid
        where c.relkind = 'r' and c.relnamespace::regnamespace::text !~ '^pg_|^information_schema$'
          and not exists (select from pg_constraint k where k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))"""
    FOREIGN_KEYS = """
        select 'alter table ' || conrelid::regclass || ' add constraint ' || quote_ident(conname) || ' ' || pg_get_constraintdef(oid)
        from pg_constraint where contype = 'f' order by pg_table_size(conrelid) desc"""
    TRIGGERS = "select pg_get_triggerdef(oid) from pg_trigger where not tgisinternal"
    SEQUENCES = """
        select format('select setval(%L, %s)', format('%I.%I', schemaname, sequencename), last_value)
        from pg_sequences where last_value is not null"""

    def __init__(self, race):
        self.race, self.blue, self.green = race, race.blue, race.green

    def run(self):
        race = self.race
        race.run(["sh", "-c", 'pg_dump --section=pre-data "$0" | psql -X -q -v ON_ERROR_STOP=1 -d "$1"',
                  self.blue.url("blue"), self.green.url("green")], "floor")
        tables = self.blue.sql("blue", self.TABLES)
        self.parallel([piece for table in tables for piece in self.pieces(*table)], self.copy)
        sizes = {name: int(size) for name, size, _, _ in tables}
        keys = [row[0] for row in self.blue.sql("blue", self.KEYS)]
        keys.sort(key=lambda sql: -max((size for name, size in sizes.items() if f" {name} " in sql), default=0))
        self.parallel(keys, self.statement)
        self.parallel([row[0] for row in self.blue.sql("blue", self.FOREIGN_KEYS)], self.statement)
        rest = self.blue.sql("blue", self.SEQUENCES) + self.blue.sql("blue", self.TRIGGERS)
        self.parallel([row[0] for row in rest], self.statement)
        race.analyze()

    def pieces(self, table, size, blocks, columns):
        """Ranges of blocks, as Handover cuts them."""
        size, blocks = int(size), int(blocks)
        count = min(-(-size // (self.race.split_mb << 20)), max(blocks, 1)) or 1
        step = -(-blocks // count) or 1
        for n in range(count):
            upper = f" and ctid < '({(n + 1) * step},0)'" if n + 1 < count else ""
            rows = f"(select {columns} from only {table} where ctid >= '({n * step},0)'{upper})" if count > 1 else f"{table} ({columns})"
            yield size // count, f"copy {rows} to stdout (format binary)", f"copy {table} ({columns}) from stdin (format binary)"

    def copy(self, piece):
        _, read, write = piece
        # Children of ours that nobody needs to tell apart: one log for all.
        with open(self.race.folder / "floor.log", "ab") as log:
            reader = self.race.spawn(self.blue.psql("blue", "-c", read), stdout=subprocess.PIPE, stderr=log)
            writer = self.race.spawn(self.green.psql("green", "-c", write), stdin=reader.stdout, stderr=log)
            reader.stdout.close()
            self.race.finish(reader, "floor")
            self.race.finish(writer, "floor")

    def statement(self, sql):
        with open(self.race.folder / "floor.log", "ab") as log:
            # Two foreign keys that meet in the same tables may deadlock; the loser tries again.
            for attempt in range(5):
                child = self.race.spawn(self.green.psql("green", "-c", sql), stdout=log, stderr=log)
                try:
                    return self.race.finish(child, "floor")
                except Failed:
                    if attempt == 4 or "deadlock" not in self.race.tail("floor"):
                        raise
                    time.sleep(0.1)

    def parallel(self, items, work):
        todo, errors = queue.SimpleQueue(), []
        for item in items:
            todo.put(item)

        def loop():
            while not errors:
                try:
                    work(todo.get_nowait())
                except queue.Empty:
                    return
                except Exception as e:  # pylint: disable=broad-except
                    errors.append(e)

        threads = [threading.Thread(target=loop) for _ in range(self.race.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
