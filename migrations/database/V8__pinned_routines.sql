-- Routines of ours run in other people's sessions, where a path that does not name pg_temp begins with it for tables
-- and types. Those of older versions did not name it: some had no path at all, and some the one of the session that
-- made them, with SQL of the plan's inside. The plan's schemas stay in between.
do $$
declare
    routine record;
begin
    for routine in
        select format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) as name,
               coalesce((select string_agg(trim(word) || ', ', '' order by place)
                         from unnest(p.proconfig) c,
                              unnest(string_to_array(substr(c, length('search_path=') + 1), ',')) with ordinality w (word, place)
                         where c like 'search_path=%'
                           and trim(word) not in ('', '""', '"$user"', 'pg_catalog', 'pg_temp', '"pg_catalog"', '"pg_temp"')), '') as path
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname = '{OURS}' and p.prokind = 'f' and pg_has_role(p.proowner, 'usage')
          and not exists (select from unnest(p.proconfig) c where c ~ '^search_path=pg_catalog, (.*, )?pg_temp$')
    loop
        execute format('alter function %s set search_path = pg_catalog, %spg_temp', routine.name, routine.path);
    end loop;
end
$$;
