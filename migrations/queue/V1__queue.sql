-- The embedded queue. A stream is declared once with its partitions; a message is one row until a consumer
-- acknowledges it.
create table {OURS}_queue.stream (
    name text primary key,
    partitions integer not null check (partitions > 0),
    declared_at timestamptz not null default clock_timestamp()
);

-- delivered: the highest number that was ever handed to a consumer, to tell a redelivery from a delivery.
create table {OURS}_queue.partition (
    stream text not null references {OURS}_queue.stream on delete cascade,
    partition integer not null check (partition >= 0),
    delivered bigint,
    primary key (stream, partition)
) with (fillfactor = 50);

create table {OURS}_queue.message (
    stream text not null,
    partition integer not null,
    number bigint not null,
    payload bytea not null,
    published_at timestamptz not null default clock_timestamp(),
    primary key (stream, partition, number),
    foreign key (stream, partition) references {OURS}_queue.partition on delete cascade
) with (
    -- Every row is inserted and deleted once: vacuum by count, or the head of the index fills with dead entries.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000
);

comment on schema {OURS}_queue is 'Handover''s embedded message queue; drop it when no run needs it any more';
