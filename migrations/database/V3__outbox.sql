-- Capture on the old side (capture, outbox, outbox_numbered, outbox_partition) and replay on the new one
-- (replay, event_quarantine). Every database gets all of them; each side uses its own.
create table {OURS}.capture (
    id         bigint primary key,
    run        uuid not null,
    step       text not null,
    stream     text not null unique,
    partitions int not null check (partitions between 1 and 256),
    created_at timestamptz not null default clock_timestamp(),
    unique (run, step)
);

-- No cache: ids taken under the lock of one row must rise in the order in which the lock was held.
create sequence {OURS}.outbox_id as bigint cache 1;

-- json, not jsonb: it keeps json columns as they were written, and has no value that it refuses, so that a
-- trigger never fails a write of the application's.
create table {OURS}.outbox (
    capture   bigint not null,
    id        bigint not null default nextval('{OURS}.outbox_id'),
    partition int not null,
    tbl       text not null,
    op        text not null,
    key       json not null,
    old       json,
    new       json,
    at        timestamptz not null default clock_timestamp(),
    txid      xid8 not null default pg_current_xact_id(),
    primary key (capture, id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
comment on table {OURS}.outbox is 'Captured changes as the triggers wrote them. The relay moves them on to outbox_numbered.';

create table {OURS}.outbox_numbered (
    capture   bigint not null,
    partition int not null,
    number    bigint not null,
    id        bigint not null,
    tbl       text not null,
    op        text not null,
    key       json not null,
    old       json,
    new       json,
    at        timestamptz not null,
    txid      xid8 not null,
    primary key (capture, partition, number)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
comment on table {OURS}.outbox_numbered is 'Captured changes with their place in the stream, kept until the new side holds their applied mark.';

create table {OURS}.outbox_partition (
    capture     bigint not null,
    partition   int not null,
    last_number bigint not null default 0,
    markers     bigint not null default 0,
    published   bigint not null default 0,
    trimmed     bigint not null default 0,
    trimmed_markers bigint not null default 0,
    primary key (capture, partition)
) with (fillfactor = 50);
comment on column {OURS}.outbox_partition.published is 'Numbers up to this one were confirmed by the queue; lowered to have the relay publish again.';
comment on column {OURS}.outbox_partition.trimmed is 'Numbers up to this one are gone: the new side holds their applied mark.';

create table {OURS}.replay (
    stream      text not null,
    partition   int not null,
    base        bigint not null,
    base_markers bigint not null,
    done        bigint not null,
    applied     bigint not null default 0,
    already     bigint not null default 0,
    ignored     bigint not null default 0,
    quarantined bigint not null default 0,
    markers     bigint not null default 0,
    marker      bigint not null default 0,
    problem     text,
    at          timestamptz not null default clock_timestamp(),
    primary key (stream, partition),
    check (done = base + applied + already + ignored + quarantined + markers)
) with (fillfactor = 50);
comment on table {OURS}.replay is 'How far a stream was applied here; every number up to done has exactly one outcome.';

create table {OURS}.event_quarantine (
    stream    text not null,
    partition int not null,
    number    bigint not null,
    tbl       text not null,
    key       text not null,
    event     json not null,
    reason    text not null,
    at        timestamptz not null default clock_timestamp(),
    primary key (stream, partition, number)
);
comment on table {OURS}.event_quarantine is 'Events that could not be applied, and all later ones of the same key.';
