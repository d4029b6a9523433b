-- The decision of a cutover, on the side that is handed over: committed together with the triggers that refuse
-- further writes, so that there is no instant in which this side is open again.
create table {OURS}.decision (
    run         uuid not null,
    step        text not null,
    plan        text not null,
    decided_at  timestamptz not null default clock_timestamp(),
    primary key (run, step)
);

create function {OURS}.refuse_write() returns trigger language plpgsql as $$
begin
    raise exception 'this database was handed over to its successor by plan "%"', tg_argv[0]
        using errcode = 'read_only_sql_transaction',
              hint = 'Connect to the successor. `handover rollback` opens this side again.';
end
$$;
comment on function {OURS}.refuse_write() is 'Behind the triggers that keep a database that was handed over from being written to.';
