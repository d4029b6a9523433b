-- The journal: append-only records of each run, the lease that says who may act, and what people asked for.
create table {OURS}.run (
    id         uuid primary key,
    plan       text not null,
    started_at timestamptz not null default clock_timestamp()
);
create index run_plan on {OURS}.run (plan, started_at);

create table {OURS}.record (
    run    uuid not null references {OURS}.run (id),
    seq    bigint not null,
    at     timestamptz not null default clock_timestamp(),
    token  bigint not null,
    record jsonb not null,
    primary key (run, seq)
);

create table {OURS}.lease (
    plan    text primary key,
    token   bigint not null,
    holder  jsonb,
    run     uuid,
    since   timestamptz not null default clock_timestamp(),
    expires timestamptz not null default clock_timestamp()
);
comment on table {OURS}.lease is 'One row a plan; a null holder means that nobody acts. The token only grows.';

create table {OURS}.request (
    id   bigint generated always as identity primary key,
    run  uuid not null references {OURS}.run (id),
    kind text not null check (kind in ('approve', 'abort')),
    step text,
    by   text not null,
    note text,
    at   timestamptz not null default clock_timestamp()
);
comment on table {OURS}.request is 'What people asked of a run from outside it; the runner reads, it never writes here.';
