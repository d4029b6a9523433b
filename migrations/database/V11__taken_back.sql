-- Decisions that were taken back, on the side that was opened again: the successor of that time holds what was written
-- on it while it served. Which database that was, and by which copy it was filled, stands with each decision.
alter table {OURS}.decision add column if not exists successor text not null default '';

create table if not exists {OURS}.taken_back (
    run         uuid not null,
    step        text not null,
    plan        text not null,
    successor   text not null,
    decided_at  timestamptz not null,
    opened_at   timestamptz not null default clock_timestamp(),
    primary key (run, step, decided_at)
);
