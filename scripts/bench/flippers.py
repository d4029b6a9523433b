"""Who flips: Handover, an operator's script, and pg_easy_replicate's order of acts. Each has `set_up`, after which blue serves or
green (`serves`), and `flip`, which turns the entry to the other side and returns when it began to touch clients and was done."""

import os
import subprocess
import time
from pathlib import Path

import ledger
from pooler import ENTRY
from servers import Failed

HERE = Path(__file__).resolve().parent
ROLE = "do $$ begin create role web login; exception when duplicate_object then null; end $$; alter role web reset all"
PLAN = """handover: 1
name: bench-flips
databases: { blue: "${BLUE_URL}", green: "${GREEN_URL}" }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green, jobs: 2 }
  - id: follow
    replicate: { from: blue, to: green }
  - id: flip
    retry: { attempts: 1 }
    cutover:
      freeze: blue
      to: green
      write_pause: 2s
      backoff: 500ms
      patience: 2m
      reverse: {}
      participants:
        - name: pooler
          pgbouncer:
            database: shop
            instances: [{ admin: "${POOLER_ADMIN}", through: "${POOLER_SHOP}", config: "%(config)s" }]
            to: green
"""


class Flipper:
    """`sides` are blue and green; `serves` is which of them the entry leads to."""

    # Whether clients wait between a PAUSE and a RESUME of the pooler's.
    pauses = True

    def __init__(self, folder, sides, pooler, options):
        self.folder, self.sides, self.pooler, self.options, self.serves = Path(folder), sides, pooler, options, 0

    def old(self):
        return self.sides[self.serves]

    def new(self):
        return self.sides[1 - self.serves]

    def fill_blue(self):
        for side in self.sides:
            side.sql("postgres", ROLE)
        self.sides[0].sql(ENTRY, ledger.SCHEMA + ledger.ROWS)
        self.sides[0].sql(ENTRY, "vacuum analyze")

    def clear(self):
        """Forgets what an earlier one left."""
        for side in self.sides:
            for name, in side.sql("postgres", "select d.datname from pg_database d where datname in ('shop', 'control')"):
                for sub, in side.sql(name, "select subname from pg_subscription where subdbid = (select oid from pg_database where datname = current_database())"):
                    side.sql(name, f"alter subscription {sub} disable")
                    side.sql(name, f"alter subscription {sub} set (slot_name = none)")
                    side.sql(name, f"drop subscription {sub}")
        for side in self.sides:
            for _ in range(100):
                left = side.sql("postgres", "select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active")
                if not left and side.one("postgres", "select count(*) from pg_replication_slots") == "0":
                    break
                time.sleep(0.1)
            side.recreate(ENTRY)

    def publish(self, side):
        side.sql(ENTRY, "drop publication if exists everything")
        side.sql(ENTRY, "create publication everything for all tables")

    def subscribe(self, old, new):
        """A subscription that copies, waited for."""
        name = f"to_{new.name}"
        new.sql(ENTRY, f"create subscription {name} connection '{old.url(ENTRY)}' publication everything with (origin = none)")
        for _ in range(600):
            if new.one(ENTRY, "select count(*) from pg_subscription_rel where srsubstate <> 'r'") == "0":
                return name
            time.sleep(0.1)
        raise Failed(f"{new.name} does not catch up")

    def again(self):
        """What is to be made anew before each flip but the first."""


class Handover(Flipper):
    name = "handover"

    def set_up(self):
        self.clear()
        self.fill_blue()
        self.sides[1].recreate("control")
        self.plan = self.folder / "plan.yaml"
        self.plan.write_text(PLAN % {"config": self.pooler.entries})
        blue, green = self.sides
        self.environment = {
            **os.environ, "BLUE_URL": blue.url(ENTRY), "GREEN_URL": green.url(ENTRY), "CONTROL_URL": green.url("control"),
            "POOLER_ADMIN": self.pooler.admin(), "POOLER_SHOP": self.pooler.through(), "HANDOVER_POSTGRES_BIN_NEW": str(green.tools)}

    def begin(self):
        """The first flip comes with the run: green serves afterwards. It is not measured, but what it loses counts."""
        self.act("run")
        self.serves = 1

    def act(self, verb, *more):
        done = subprocess.run([self.options.handover, verb, self.plan, *more], env=self.environment, capture_output=True, text=True, check=False)
        with open(self.folder / "handover.log", "a", encoding="utf8") as log:
            log.write(f"--- {verb} {' '.join(more)}\n{done.stdout}{done.stderr}")
        if done.returncode != 0:
            raise Failed(f"handover {verb}: {done.stderr.strip() or done.stdout.strip()}")

    def flip(self):
        begun = time.time()
        if self.serves == 1:
            self.act("rollback", "--to", "follow")
        else:
            self.act("resume")
        self.serves = 1 - self.serves
        return begun, time.time()


class ByHand(Flipper):
    name = "by hand"

    def set_up(self):
        self.clear()
        self.fill_blue()
        self.sides[1].sql(ENTRY, ledger.SCHEMA)
        for side in self.sides:
            self.publish(side)

    def begin(self):
        self.subscribe(*self.sides)

    def flip(self):
        old, new = self.old(), self.new()
        environment = {**os.environ, "PSQL": str(new.tools / "psql"), "ADMIN_URL": self.pooler.admin(), "INI": str(self.pooler.entries),
                       "ENTRY": f"[databases]\n{self.pooler.line(new)}"}
        begun = time.time()
        done = subprocess.run([HERE / "by-hand", old.url(ENTRY), new.url(ENTRY), old.name, new.name], env=environment,
                              capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"by-hand: {done.stderr.strip()}")
        self.serves = 1 - self.serves
        return begun, time.time()


class EasyReplicate(Flipper):
    """pg_easy_replicate's order of acts, written from its README (github.com/shayonj/pg_easy_replicate, "Performing switchover"): the
    lag is below 200 kB, the application's role is read only and its sessions are ended, the flush lag is waited for, sequences
    are refreshed, the subscription is dropped, and then it is up to the user to lead the application there. It goes one way: before each flip the other side is
    made anew. Without its VACUUM ANALYZE, and with shorter waits between two looks: both would make it slower."""

    name = "pg_easy_replicate's order"
    pauses = False

    def set_up(self):
        self.clear()
        self.fill_blue()

    def begin(self):
        self.follow()

    def follow(self):
        old, new = self.old(), self.new()
        new.recreate(ENTRY)
        new.sql(ENTRY, ledger.SCHEMA)
        self.publish(old)
        self.subscription = self.subscribe(old, new)

    def diff(self, of):
        sql = f"select coalesce(max(pg_wal_lsn_diff({of})), 1e9) from pg_stat_replication where application_name = '{self.subscription}'"
        return float(self.old().one(ENTRY, sql))

    def until(self, of, bytes_behind):
        for _ in range(600):
            if self.diff(of) <= bytes_behind:
                return
            time.sleep(0.1)
        raise Failed(f"{self.new().name} does not catch up")

    def flip(self):
        old, new = self.old(), self.new()
        new.sql("postgres", "alter role web reset default_transaction_read_only")
        self.until("sent_lsn, write_lsn", 200 * 1024)
        begun = time.time()
        old.sql("postgres", "alter role web set default_transaction_read_only = true")
        old.sql("postgres", "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'web'")
        self.until("pg_current_wal_lsn(), replay_lsn", 0)
        positions = old.sql(ENTRY, "select schemaname || '.' || sequencename, last_value from pg_sequences where last_value is not null")
        new.sql(ENTRY, "; ".join(f"select setval('{name}', {value})" for name, value in positions))
        new.sql(ENTRY, f"drop subscription {self.subscription}")
        self.pooler.turn(new)
        ended = time.time()
        self.serves = 1 - self.serves
        return begun, ended

    def again(self):
        self.follow()


ALL = [Handover, ByHand, EasyReplicate]
