-- In every database that a run writes to: who may write, and how far each step's effect reaches.
create table {OURS}.fence (
    plan  text primary key,
    token bigint not null
);
comment on table {OURS}.fence is 'Every writing transaction locks its plan''s row and compares the token, so a superseded runner can do no harm.';

create table {OURS}.checkpoint (
    run   uuid not null,
    step  text not null,
    unit  text not null,
    state jsonb not null,
    at    timestamptz not null default clock_timestamp(),
    primary key (run, step, unit)
);
comment on table {OURS}.checkpoint is 'Written in the transaction that has the effect it speaks of.';
