-- Since Postgres 11 a column with a constant default is added without touching a row; the lock is short, and
-- the plan's lock_timeout keeps others from queueing up behind it.
alter table access_token add column audience text not null default '';
alter table refresh_token add column audience text not null default '';
alter table consent add column granted_audience text not null default '';
