-- Things whose words mean something else on a newer server, or are written differently there, or differ from what they
-- look like. Everything in it is understood by Postgres 13 and by 18.
create table kw (id int primary key, "system_user" text not null, "json_scalar" int, "merge_action" text, "user" text,
    "current_user" name, "json" text, check ("system_user" <> 'x' and "user" <> 'y'));
insert into kw values (1, 'alice', 1, 'm', 'u', 'c', 'j'), (2, 'bob', null, null, null, null, null);
create policy kw_policy on kw using ("system_user" = 'a') with check ("user" = 'b' and "current_user" <> '');
create view kw_view as select "system_user", "system_user" || "user" as both, "json" from kw where "system_user" is not null;
create index kw_index on kw (("system_user" || 'x')) where "system_user" <> 'q';
create function kw_arguments("json" text, "system_user" text default 'd', out "merge_action" int) language sql as 'select 1';
create function kw_trigger() returns trigger language plpgsql as 'begin return new; end';
create trigger kw_when before update on kw for each row when (new."system_user" <> old."system_user") execute function kw_trigger();
create rule kw_rule as on update to kw where new."system_user" = 'zz' do also delete from kw where "system_user" = new."system_user";
alter table kw add g text generated always as ("system_user" || 'g') stored;
create statistics kw_statistics on "system_user", "user" from kw;

create domain few as text default 'a' check (value in ('a', 'b'));
create table odd (id int primary key, s varchar(20) check (s in ('a', 'b')), d few check (d in ('a', 'b')), c char(5) check (c = any (array['x', 'y'])),
    n numeric(10, 2) default -1.50, at timestamptz default '2020-01-01 00:00+00', p interval default '1 day', t time default '12:34:56.7',
    b bool default 't', a int[] default '{1,2}', e text default E'back\\slash', "Ü" text collate "C" default 'it''s');
insert into odd (id, s, d) values (1, 'a', 'b');
create view odd_words as select extract(year from at) as y, substring(s from 1 for 2) as sub, overlay(s placing 'a' from 1) as o,
    position('a' in s) as pos, trim(both from s) as tr, at at time zone 'UTC' as z, (select count(*) from generate_series(1, 3) i),
    s is not distinct from 'a' as same, s similar to 'a%' as sim, coalesce(s, d) as co, greatest(id, 2) as gr, nullif(s, 'b') as nu,
    case s when 'a' then 1 else 2 end as ca, s like 'a\_%' as li, id between 1 and 3 as be, cast(id as text) as te from odd;
create view odd_join as select * from odd join kw using (id) left join (values (1, 'a'), (2, 'b')) v (id, q) using (id);
create view odd_set as select id from odd union all select id from kw order by 1 limit 3;
create view odd_window as select id, row_number() over (partition by s order by id), sum(id) over w, count(*) filter (where id > 1)
    over (order by id range between unbounded preceding and 1 following exclude ties) as f from odd window w as (order by id);
create view odd_lateral as select e.id, l.n from odd e cross join lateral (select count(*) as n from kw where kw.id = e.id) l;
create view odd_with as with recursive t (n) as (select 1 union all select n + 1 from t where n < 3), u as materialized (select * from t)
    select * from u where n = any (select id from odd);
create view odd_sample as select * from odd tablesample bernoulli (10) repeatable (3);
create view odd_group as select s, d, count(*), grouping(s) from odd group by rollup (s, d) having count(*) > 0;
create view odd_row as select odd as whole, odd.id, row (odd.*) is null as r from odd;
create view odd_star as select odd.*, k.* from odd, (select 1 as k1) k;
alter table odd add later int; alter table kw add later_too int; alter table odd rename s to renamed;
create materialized view odd_kept as select * from odd_set with data; create index on odd_kept (id);
create table odd_log (id int, what text);
create rule odd_rule as on insert to odd_log where new.id < 0 do instead (insert into kw (id, "system_user") values (new.id, new.what); delete from kw where id = -new.id);

create function twice(int) returns int language sql immutable as 'select $1 * 2';
create function pick(anyelement, anyarray) returns anyelement language sql immutable as 'select $1';
create operator === (leftarg = int, rightarg = int, function = int4eq);
create table uses (id int primary key, v int check (twice(v) < 100) default twice(4), w int generated always as (twice(v)) stored, check (id === id));
create index on uses (twice(v)) where twice(id) > 0;
create policy uses_policy on uses as restrictive for delete to public using (exists (select from kw where kw.id = uses.id));
create aggregate together(int) (sfunc = int4pl, stype = int, initcond = '0');
create view uses_view as select together(v), pick(1, array[2]) from uses;
create schema same; create table same.kw (id int primary key); create view same.kw_view as select * from same.kw;
create table points_same (id int references same.kw, other int references kw);
create domain few_few as few check (twice(length(value)) > 1);
