-- What an application reads when it still writes here: the way back is named together with what it loses.
create or replace function {OURS}.refuse_write() returns trigger language plpgsql
set search_path = pg_catalog, pg_temp as $$
begin
    raise exception 'this database was handed over to its successor by plan "%"', tg_argv[0]
        using errcode = 'read_only_sql_transaction',
              hint = 'Connect to the successor. Opening this side again with `handover rollback` loses what was written on the successor since.';
end
$$;
