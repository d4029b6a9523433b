-- Postgres lets everybody execute a new function, and who may execute a trigger function may hang it on a table of
-- their own. That right is taken from PUBLIC for what older versions left; triggers fire for every writer without it.
-- Owners of partitioned tables with such a trigger keep it: each new partition gets a trigger in their name.
do $$
declare
    routine record;
    owner name;
begin
    for routine in
        select p.oid, format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as name
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = '{OURS}' and p.prokind = 'f' and pg_has_role(p.proowner, 'usage')
    loop
        execute format('revoke all on function %s from public', routine.name);
        for owner in
            select distinct r.rolname from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_roles r on r.oid = c.relowner
            where t.tgfoid = routine.oid and c.relkind = 'p' and (t.tgtype & 1) = 1
        loop
            execute format('grant execute on function %s to %I', routine.name, owner);
        end loop;
    end loop;
end
$$;
