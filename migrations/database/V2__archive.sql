-- Rows that steps changed or took away, as they were.
--
-- A row is kept as an object of column name to the value's text, as the type's own output function writes it
-- under pinned settings (the way pg_dump carries values): `json` keeps its spelling and its duplicate keys,
-- numbers keep every digit, infinities and NaN survive, bytea, arrays, composites and domains read back to the
-- same value. jsonb of the row itself would lose several of those. A typed table per step would be exact too,
-- but would hold on to the types: a later migration could not drop an enum, and a new domain constraint would
-- be checked against the very rows that were set aside.
create table {OURS}.archive (
    run        uuid not null,
    step       text not null,
    id         bigint generated always as identity,
    action     text not null check (action in ('update', 'delete', 'quarantine', 'insert')),
    table_name text not null,
    key        jsonb not null,
    old_row    jsonb,
    new_row    jsonb,
    conflict   text,
    at         timestamptz not null default clock_timestamp(),
    primary key (run, step, id)
);
comment on table {OURS}.archive is 'Undo reads it backwards; what it could not put back stays, with the reason in `conflict`.';
comment on column {OURS}.archive.old_row is 'delete and quarantine: the whole row; update: the columns that changed; insert: null.';
comment on column {OURS}.archive.new_row is 'update: the columns that changed; insert: the columns that were brought.';
