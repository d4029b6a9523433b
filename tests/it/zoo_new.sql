-- What Postgres 18 has and 15 has not.
set role app;
create table news (id int4range, at daterange, twice int generated always as (1 + 1) virtual, n int,
    constraint "Named not null" not null n not valid, check (n > 0) not enforced, primary key (id, at without overlaps));
create table news_about (id int4range, at daterange, foreign key (id, period at) references news (id, period at));
insert into news values ('[1,2)', '[2020-01-01,2021-01-01)', default, 1); insert into news_about values ('[1,2)', '[2020-02-01,2020-03-01)');
alter default privileges grant select on large objects to zoo_keeper;
reset role;
