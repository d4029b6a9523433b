-- What Handover needs in one database, and nothing more. docs/grants.md says which step needs which grant.
--
-- Run it in each database of a plan (old side, new side, control) as a superuser, or on Postgres 16 and later
-- as a role with CREATEROLE that owns the database and holds the granted roles WITH ADMIN OPTION:
--
--     PGOPTIONS='-c handover.grant_owner=app' psql -v ON_ERROR_STOP=1 -d oauth -f scripts/grants.sql
--
-- Settings (through PGOPTIONS, or by SET before it in the same session):
--   handover.grant_role       the role that Handover works as            (handover)
--   handover.grant_reader     the role that may only read, for dry runs  (handover_reader)
--   handover.grant_owner      the role that owns the application's tables, or `none` for a control database (app)
--   handover.grant_replicate  `on` for plans with a `replicate` step or a reverse stream (off)
--
-- It can be run again at any time. Passwords are set apart from it, for example with psql's \password.

do $$
declare
    engine text := coalesce(nullif(current_setting('handover.grant_role', true), ''), 'handover');
    reader text := coalesce(nullif(current_setting('handover.grant_reader', true), ''), 'handover_reader');
    owner text := coalesce(nullif(current_setting('handover.grant_owner', true), ''), 'app');
    replicate bool := coalesce(nullif(current_setting('handover.grant_replicate', true), ''), 'off')::bool;
    version int := current_setting('server_version_num')::int / 10000;
    is_superuser bool := current_setting('is_superuser')::bool;
    database text := current_database();
    name text;
begin
    if version < 13 then
        raise exception 'Postgres % is not supported', version using hint = '13 is the oldest that works.';
    end if;
    if owner <> 'none' and not exists (select from pg_roles where rolname = owner) then
        raise exception 'the role "%" does not exist', owner
            using hint = 'Set handover.grant_owner to the role that owns the application''s tables, or to none.';
    end if;

    -- Two roles that log in and are nothing special.
    if not exists (select from pg_roles where rolname = engine) then
        execute format('create role %I login nosuperuser nocreatedb nocreaterole noreplication nobypassrls inherit', engine);
    end if;
    if not exists (select from pg_roles where rolname = reader) then
        execute format('create role %I login nosuperuser nocreatedb nocreaterole noreplication nobypassrls inherit', reader);
    end if;
    -- A belt beside the braces: a session could set it off again, but the reader holds no right to write.
    execute format('alter role %I set default_transaction_read_only = on', reader);

    -- The database itself. CREATE is for Handover's own schema, whatever the plan's `schema:` calls it (outbox, quarantine, checkpoints, journal).
    execute format('grant connect, create, temporary on database %I to %I', database, engine);
    execute format('grant connect on database %I to %I', database, reader);

    -- Reading every table, all statistics and all settings. pg_read_all_data came with Postgres 14; before it,
    -- each table and sequence is granted by itself, and those made later ask for this script again.
    if version < 14 then
        for name in
            select nspname from pg_namespace where nspname not like 'pg\_%' and nspname <> 'information_schema'
        loop
            execute format('grant usage on schema %I to %I, %I', name, engine, reader);
            execute format('grant select on all tables in schema %I to %I, %I', name, engine, reader);
            execute format('grant select on all sequences in schema %I to %I, %I', name, engine, reader);
        end loop;
        -- What the engine will keep in its own schema.
        execute format('alter default privileges for role %I grant usage on schemas to %I', engine, reader);
        execute format('alter default privileges for role %I grant select on tables to %I', engine, reader);
        execute format('alter default privileges for role %I grant select on sequences to %I', engine, reader);
        -- What changed in large objects since a copy is told by their pages.
        if is_superuser then
            execute format('grant select on pg_catalog.pg_largeobject to %I, %I', engine, reader);
        end if;
    end if;
    foreach name in array case when version < 14 then array['pg_monitor'] else array['pg_read_all_data', 'pg_monitor'] end loop
        if not pg_has_role(engine, name, 'member') then
            execute format('grant %I to %I', name, engine);
        end if;
        if not pg_has_role(reader, name, 'member') then
            execute format('grant %I to %I', name, reader);
        end if;
    end loop;

    -- ALTER TABLE, CREATE INDEX, CREATE TRIGGER, VACUUM and ANALYZE ask for the owner of the table. From
    -- Postgres 16 on, each membership says for itself whether its rights are inherited (needed for those) and
    -- whether SET ROLE may be used (needed to create tables that belong to the owner).
    if owner <> 'none' and owner <> engine then
        if version >= 16 then
            execute format('grant %I to %I with inherit true, set true', owner, engine);
        elsif not pg_has_role(engine, owner, 'member') then
            execute format('grant %I to %I', owner, engine);
        end if;
        -- CREATE INDEX also asks for CREATE on the table's schema, which since Postgres 15 nobody but the
        -- database's owner holds on `public`.
        for name in
            select nspname from pg_namespace
            where nspname = 'public'
               or oid in (select relnamespace from pg_class where relowner = (select oid from pg_roles where rolname = owner))
                  and nspname not like 'pg\_%' and nspname <> 'information_schema'
        loop
            if not has_schema_privilege(engine, name, 'create') then
                execute format('grant usage, create on schema %I to %I', name, engine);
            end if;
        end loop;
    end if;

    -- Loading rows without firing the target's triggers. Before Postgres 15 only a superuser may set this.
    if version >= 15 and is_superuser then
        execute format('grant set on parameter session_replication_role to %I', engine);
    end if;

    -- Cancelling an autovacuum that is in the way of the cutover's locks. Before Postgres 18 only a superuser
    -- may; without it, the cutover waits for deadlock_timeout, after which Postgres cancels it by itself.
    if version >= 18 and not pg_has_role(engine, 'pg_signal_autovacuum_worker', 'member') then
        execute format('grant pg_signal_autovacuum_worker to %I', engine);
    end if;

    -- Not granted: MAINTAIN (Postgres 17; ownership of the tables includes it), which nothing asks for, and
    -- pg_signal_backend. Sessions of Handover's own role and of the owner's may be ended without it; a cutover that is to
    -- end those of other roles (`blockers`) asks for it.

    if replicate then
        -- Replication slots ask for the REPLICATION attribute, which only a superuser gives before Postgres 16.
        execute format('alter role %I replication', engine);
        if version >= 16 then
            if not pg_has_role(engine, 'pg_create_subscription', 'member') then
                execute format('grant pg_create_subscription to %I', engine);
            end if;
        else
            raise warning 'on Postgres % only a superuser can create a subscription', version
                using hint = 'Let this side be the publisher, or have a superuser create the subscription.';
        end if;
    end if;
end
$$;
