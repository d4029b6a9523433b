#!/usr/bin/env bash
# Run once by the Postgres image in an empty server: databases, roles and Handover's grants.
# psql reads the passwords from its environment, so they are on no command line.
set -euo pipefail

run() { psql -X -q -v ON_ERROR_STOP=1 -U "${POSTGRES_USER:-postgres}" "$@"; }

password() {
    run -d postgres <<SQL
\\getenv password $2
alter role "$1" password :'password';
SQL
}

run -d postgres -c 'create role app login'
password app APP_PASSWORD

for database in ${DATABASES:-}; do
    run -d postgres -c "create database $database owner app"
    if [ -n "${SCHEMA:-}" ]; then
        PGOPTIONS='-c role=app' run -d "$database" -f "$SCHEMA"
    fi
    PGOPTIONS='-c handover.grant_owner=app -c handover.grant_replicate=on' run -d "$database" -f /handover/grants.sql
done
if [ -n "${CONTROL_DATABASE:-}" ]; then
    run -d postgres -c "create database $CONTROL_DATABASE"
    PGOPTIONS='-c handover.grant_owner=none' run -d "$CONTROL_DATABASE" -f /handover/grants.sql
fi
# Where other teams look up which release serves: a participant of the example plans' cutovers.
if [ -n "${REGISTRY_DATABASE:-}" ]; then
    run -d postgres -c "create database $REGISTRY_DATABASE owner app"
    PGOPTIONS='-c role=app' run -d "$REGISTRY_DATABASE" <<'SQL'
create table service (name text primary key, database text not null, release text not null);
insert into service values ('oauth', 'blue', '1.10');
SQL
    PGOPTIONS='-c handover.grant_owner=app' run -d "$REGISTRY_DATABASE" -f /handover/grants.sql
fi
password handover HANDOVER_PASSWORD
password handover_reader READER_PASSWORD
