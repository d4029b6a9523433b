-- Rows that travel with native replication: one that is written on the publisher and seen on the subscriber says
-- that everything committed before it has arrived. They are only inserted and deleted: an update of a row that
-- the subscriber lacks would be skipped without a word.
create table {OURS}.replication_marker (
    number bigint generated always as identity primary key,
    link   text not null,
    mark   text not null,
    at     timestamptz not null default clock_timestamp()
);
comment on table {OURS}.replication_marker is 'A row seen on the subscriber says that all that was committed before it has arrived there.';
