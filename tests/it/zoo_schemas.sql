-- A schema for each habit that some schema somewhere has, after what public reports of dump, clone and upgrade tools tell
-- of. Postgres 13 understands all of it, and so does 18. Names repeat from schema to schema on purpose.
set role app;
create schema z01_key_gives_the_group; set search_path = z01_key_gives_the_group;
create table t (id int primary key, a text, b text); insert into t values (1, 'a', 'b');
create view v as select t.*, count(*) as n from t group by id; create view above as select sum(n) as total, max(a) as a from v;
create materialized view kept as select id, a, n from v; create unique index on kept (id);

create schema z02_circle_of_keys; set search_path = z02_circle_of_keys;
create table a (id int primary key, b int); create table b (id int primary key, a int references a, c int);
create table c (id int primary key, a int references a); alter table a add foreign key (b) references b; alter table b add foreign key (c) references c;
alter table a add up int references a on delete set null;
insert into a values (1, null, 1); insert into b values (1, 1, null); insert into c values (1, 1); update a set b = 1; update b set c = 1;

create schema z03_row_type_in_default; set search_path = z03_row_type_in_default;
create table t (id int primary key, v text);
create function size_of(t) returns int language sql immutable as 'select length(($1).v)';
create function next_id() returns int language plpgsql as $$begin return (select coalesce(max(id), 0) + 1 from z03_row_type_in_default.t); end$$;
alter table t alter id set default next_id(); insert into t (v) values ('x'); insert into t (v) values ('yy');
create index on t (size_of(t)); create view v as select t.size_of, t from t;

create schema z04_view_and_function_need_each_other; set search_path = z04_view_and_function_need_each_other;
create table t (id int); insert into t values (1), (2);
create view v as select id from t;
create function of_view() returns setof v language sql stable as 'select * from z04_view_and_function_need_each_other.v';
create view over as select * from of_view(); create function of_over(over) returns int language sql as 'select ($1).id';
create view last as select of_over(over) as n from over;

create schema z05_search_words; set search_path = z05_search_words;
create function weigh(a text, b text) returns tsvector language sql immutable as $$select setweight(to_tsvector('pg_catalog.english', coalesce(a, '')), 'A') || setweight(to_tsvector('pg_catalog.simple', coalesce(b, '')), 'B')$$;
create table t (id int primary key, a text, b text, doc tsvector generated always as (z05_search_words.weigh(a, b)) stored);
insert into t values (1, 'running dogs', 'don''t'); create index on t using gin (doc); create index on t using gist (doc tsvector_ops (siglen = 64));

create schema z06_extension_elsewhere; create schema z06_ext; set search_path = z06_extension_elsewhere, z06_ext;
create extension intarray schema z06_ext; create extension fuzzystrmatch schema z06_ext; create extension unaccent schema z06_ext;
create function plain(text) returns text language sql immutable strict as $$select lower(z06_ext.unaccent('z06_ext.unaccent', $1))$$;
create table t (id int primary key, a int[], w text check (z06_ext.levenshtein(w, 'x') < 99)); insert into t values (1, '{3,1}', 'Ünö');
create index on t using gin (a gin__int_ops); create index on t (plain(w)); create view v as select id from t where a @@ '1&3'::query_int;

create schema z07_identities; set search_path = z07_identities;
create table no_key (a int, b text); alter table no_key replica identity full; insert into no_key values (1, null), (1, null);
create table by_index (a int not null, b int not null, c text); create unique index by_index_ab on by_index (b, a);
alter table by_index replica identity using index by_index_ab; insert into by_index values (1, 2, 'x');
create table none (a int primary key); alter table none replica identity nothing; insert into none values (1);

create schema z08_inherited; set search_path = z08_inherited;
create table parent (id int not null, a int default 1, b text); create table child (b text default 'own', c int) inherits (parent);
create table grand (a int not null default 3) inherits (child); create table adopted (b text, id int not null, a int); alter table adopted inherit parent;
create table orphan () inherits (parent); alter table orphan no inherit parent;
alter table child alter a set default 2; alter table only parent alter a set default 9; alter table parent add constraint positive check (a > 0);
alter table parent drop column b; alter table parent add late date default '2020-01-01';
insert into parent values (1); insert into child (id, c) values (2, 3); insert into grand (id) values (3); insert into adopted (id) values (4); insert into orphan values (5);

create schema z09_many_parents; set search_path = z09_many_parents;
create table a (id int, x int check (x > 0)); create table b (id int, y int default 4); create table ab (z int) inherits (a, b);
insert into ab values (1, 2, 3, 4); create view v as select tableoid::regclass::text as of, id from only a union all select tableoid::regclass::text, id from a;

create schema z10_partitions_of_partitions; set search_path = z10_partitions_of_partitions;
create table t (id int, region text, at date) partition by list (region);
create table t_eu partition of t for values in ('de', 'fr') partition by range (at);
create table t_eu_old partition of t_eu for values from (minvalue) to ('2020-01-01'); create table t_eu_new partition of t_eu for values from ('2020-01-01') to (maxvalue) partition by hash (id);
create table t_eu_new_0 partition of t_eu_new for values with (modulus 2, remainder 0); create table t_eu_new_1 partition of t_eu_new for values with (modulus 2, remainder 1);
create table t_rest partition of t default partition by range (at); create table t_rest_all partition of t_rest default;
alter table t add primary key (id, region, at); create index on t (at); create unique index on t_eu_old (id);
insert into t select i, (array['de', 'fr', 'us'])[i % 3 + 1], '2019-12-25'::date + i from generate_series(1, 30) i;

create schema z11_partitions_of_other_shapes; set search_path = z11_partitions_of_other_shapes;
create table t (id int, gone int, a text, b text default 'of the parent', primary key (id)) partition by range (id); alter table t drop column gone;
create table p1 (b text default 'own', x int, id int not null, a text); alter table p1 drop column x; alter table t attach partition p1 for values from (0) to (10);
create table p2 partition of t (b default 'two', constraint p2_check check (a <> 'z')) for values from (10) to (20); alter table p1 add unique (a);
create table p3 (like t including all); alter table p3 add check (id >= 20 and id < 30); alter table t attach partition p3 for values from (20) to (30);
insert into t (id, a) values (1, 'x'), (11, 'y'), (21, 'z'); insert into p1 (id, a) values (2, 'own'); alter table t detach partition p3;

create schema z12_keys_to_partitions; set search_path = z12_keys_to_partitions;
create table t (id int primary key) partition by range (id); create table t1 partition of t for values from (0) to (10); create table t2 partition of t for values from (10) to (20);
create table u (id int, t int references t deferrable initially deferred) partition by hash (id); create table u0 partition of u for values with (modulus 1, remainder 0);
create table w (t1 int references t1, t int references t on update cascade); alter table u0 add foreign key (id) references t2 not valid;
insert into t values (1), (11); insert into u values (11, 1); insert into w values (1, 11);

create schema z13_bounds; set search_path = z13_bounds;
create table t (a text, b int, c timestamptz) partition by range (lower(a), b, c);
create table t1 partition of t for values from ('a', minvalue, minvalue) to ('m', 5, '2020-01-01 00:00+00'); create table t2 partition of t for values from ('m', 5, '2020-01-01 00:00+00') to (maxvalue, maxvalue, maxvalue);
insert into t values ('B', 1, now()), ('z', 9, '2021-01-01'); create table l (b bool, n numeric) partition by list (b); create table l1 partition of l for values in (true, null); create table l2 partition of l for values in ('f');
insert into l values (true, 1), (null, 2), (false, 3);

create schema z14_sequences; set search_path = z14_sequences;
create table t (id serial, other bigserial, small smallserial, fixed int generated by default as identity (start 7 increment -2 minvalue -50 maxvalue 7 cycle), shared int);
create sequence shared_numbers owned by t.shared; alter table t alter shared set default nextval('shared_numbers') * 10;
create sequence by_text; create table by_name (id int default nextval(('z14_sequences.by_text'::text)::regclass), k regclass default 'by_text'::regclass);
create sequence limits as int minvalue -2147483648 maxvalue 2147483647 start -2147483648; select nextval('limits');
alter sequence t_id_seq rename to "Renamed.Seq"; insert into t default values; insert into t default values; insert into by_name default values;
alter sequence t_other_seq owned by none; select setval('by_text', 1, false);

create schema z15_sequence_of_another_schema; create schema z15_other; set search_path = z15_sequence_of_another_schema;
create sequence z15_other.numbers start 50; create table t (id int primary key default nextval('z15_other.numbers')); insert into t default values;
create table moved (id serial primary key); alter table moved set schema z15_other; insert into z15_other.moved default values;

create schema z16_orders_of_words; set search_path = z16_orders_of_words;
create type word as enum ('b', 'a'); alter type word add value 'z' before 'b'; alter type word add value 'm' after 'b'; alter type word rename value 'a' to 'last one';

set search_path = z16_orders_of_words;
create table t (w word primary key, ws word[] default '{z,"last one"}', d word default 'm', check (w <> 'b' or d > 'z')); insert into t values ('z'), ('last one'), ('m');
create index on t (d) where d < 'last one'; create function cast_word(text) returns word language sql immutable as 'select $1::z16_orders_of_words.word';

create schema z17_types_that_changed; set search_path = z17_types_that_changed;
create type c as (a int, b text, gone int); alter type c drop attribute gone; alter type c add attribute d date, alter attribute a type bigint; alter type c rename attribute b to "B b";
create type holder as (inner_one c, many c[]); create table t (x c, y holder, z c[]);
insert into t values (row (1, E'a"b\\', '2020-01-01'), row (row (2, null, null)::c, array[row (3, '', null)::c]), '{}'); create table of_type of c ("B b" with options not null default 'x'); insert into of_type (a) values (1);

create schema z18_domains; set search_path = z18_domains;
create domain base as text collate "C" default 'd' constraint not_empty check (value <> ''); create domain above as base not null check (length(value) < 10);
create domain list as int[] check (array_ndims(value) = 1 and value[1] > 0); create domain made as numeric(6, 2) check (value between -1 and 9999);
create table t (a base, b above default 'b', c list, d made[], e above[]); insert into t values (null, default, '{1,2}', '{1.5,NULL}', '{x}'); alter domain base drop default;
create function takes(above) returns base language sql as 'select $1::text::z18_domains.base';

create schema z19_ranges; set search_path = z19_ranges;
create function gap(time, time) returns float8 language sql immutable as 'select extract(epoch from ($1 - $2))::float8';
create type span as range (subtype = time, subtype_diff = gap); create type words as range (subtype = text, collation = "C");
create table t (s span, w words, n numrange default '[1,2)', exclude using gist (s with &&)); insert into t values ('[10:00,11:00)', '[a,b]'), ('empty', '(,)'); create index on t using spgist (n);

create schema z20_names; set search_path = z20_names;
create table "Select" ("from" int, "a b" int, "quo""te" int, "per%cent" int, "back\slash" int, "dollar$" int, "Ünïcode ☃" int, "1st" int, " lead" int, "tab	in" int,
    "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijk" int, "?" int, ":colon" int, "a.b" int, "ctid " int, constraint "Check; --" check ("from" > 0), constraint "/*" unique ("a b"));
insert into "Select" values (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); create index "select" on "Select" ("from", ("a b" + "a.b")); create view "View of ""Select""" as select "from" as "where", "a.b" from "Select";
create function "f;"("In" int default 1, out "Out put" text) language sql as $_$select 'x$$'::text$_$; create type "Type.1" as enum ('1'); create sequence "seq ' uence"; create table t2 (c "Type.1"[]);

create schema "z21.With Dots"; set search_path = "z21.With Dots"; create schema "Z21 'quotes' ""too""";
create table t (id int primary key); create table "Z21 'quotes' ""too""".t (id int references t); insert into t values (1); insert into "Z21 'quotes' ""too""".t values (1);
create view v as select a.id from t a join "Z21 'quotes' ""too""".t b on a.id = b.id; comment on schema "z21.With Dots" is '';

create schema z22_keywords; set search_path = z22_keywords;
create table "table" ("user" int, "order" int, "group" text, "default" text default 'default', "check" bool check ("check"), "all" int[], "end" date, "offset" int, "window" int, "analyse" int, "array" int[], "desc" int, "left" int, "system_user" int, "json_array" text, "period" tstzrange, "virtual" int, "enforced" bool);
insert into "table" ("user", "end") values (1, now()::date); create index on "table" ("order" desc, "desc"); create view "view" as select "user", "end", "left" from "table" order by "order" limit 1; create function "array"("values" int, "row" int) returns int language sql as 'select $1';

create schema z23_overloaded; set search_path = z23_overloaded;
create function f() returns int language sql as 'select 1'; create function f(int) returns int language sql as 'select $1'; create function f(bigint, text default 'x', variadic int[] default '{}') returns int language sql as 'select 2';
create function f(text) returns table (f text, g int) language plpgsql as $$begin f := $1; g := 1; return next; end$$; create function f(anyelement) returns anyarray language sql as 'select array[$1]';
create function f(inout a int, inout b int, out c int) returns setof record language sql as 'select 1, 2, 3'; create view v as select f() as a, f(1) as b, f(1::bigint, 'y', 3) as c; revoke execute on function f(int) from public; grant execute on function f(bigint, text, int[]) to zoo_keeper;

create schema z24_bodies; set search_path = z24_bodies;
create function a() returns text language sql as $a$ select $b$ $$ ; -- not a comment $b$ /* ' */ $a$; create function b() returns void language plpgsql as E'begin\r\n  null;\r\nend'; create function c() returns text language sql as 'select ''a\''''b''::text';
create function later() returns int language plpgsql as $$begin return (select count(*) from not_there_yet); end$$; create procedure p(a int, inout b text default 'q') language plpgsql security definer set datestyle to 'German, YMD' set timezone to 'UTC' set search_path to pg_catalog, "a, ""b""" as $$begin commit; end$$;

create schema z25_aggregates; set search_path = z25_aggregates;
create aggregate plus(int) (sfunc = int4pl, stype = int, initcond = '0', msfunc = int4pl, minvfunc = int4mi, mstype = int, minitcond = '0', sortop = operator(pg_catalog.<));
create function keep(anyarray, anyelement) returns anyarray language sql immutable as 'select $1 || $2'; create function head(anyarray) returns anyelement language sql immutable as 'select $1[1]'; create aggregate first_of(anyelement) (sfunc = keep, stype = anyarray, finalfunc = head, finalfunc_modify = read_only, initcond = '{}');
create function rank_of(int[], int) returns int[] language sql immutable as 'select $1 || $2'; create function half(int[], float8) returns float8 language sql immutable as 'select $2'; create aggregate fraction_of(float8 order by int) (sfunc = rank_of, stype = int[], finalfunc = half, initcond = '{}'); create table t (a int); insert into t values (1), (3); create view v as select plus(a), first_of(a), fraction_of(0.5) within group (order by a desc), plus(distinct a) filter (where a > 1) as some from t;

create schema z26_operators; set search_path = z26_operators;
create type v as (x int); create function lt(v, v) returns bool language sql immutable as 'select ($1).x < ($2).x'; create function gt(v, v) returns bool language sql immutable as 'select ($1).x > ($2).x'; create function eq(v, v) returns bool language sql immutable as 'select ($1).x = ($2).x';
create operator << (leftarg = v, rightarg = v, function = lt, commutator = >>, restrict = scalarltsel, join = scalarltjoinsel); create operator >> (leftarg = v, rightarg = v, function = gt, commutator = <<);
create operator === (leftarg = v, rightarg = v, function = eq, commutator = ===, negator = !==, hashes, merges);
create function lt_one(v) returns bool language sql immutable as 'select ($1).x < 1'; create operator @#@ (rightarg = v, function = lt_one); create table t (a v, check (@#@ a), exclude using btree (a with =)); insert into t values (row (0)::v); create view w as select * from t where a operator(z26_operators.<<) row (5)::v and not (a === row (9)::v);

create schema z27_paths; create schema z27_first; create schema z27_second; set search_path = z27_first, z27_second, public;
create table z27_first.t (id int); create table z27_second.t (id int, only_here int); create function z27_second.f(int) returns int language sql immutable as 'select $1 + 1'; create function z27_first.f(bigint) returns int language sql immutable as 'select 0';
create table z27_paths.u (id int default f(1), g int generated always as (f(2)) stored, check (f(id) > 0)); insert into z27_paths.u default values; create view z27_paths.v as select t.id, s.only_here from t, z27_second.t s where f(t.id) = f(s.id::bigint);

create schema z28_casts; set search_path = z28_casts;
create type colour as enum ('red', 'green'); create function to_int(colour) returns int language sql immutable as $$select case $1::text when 'red' then 1 else 2 end$$; create cast (colour as int) with function to_int(colour) as assignment; create function of_int(int) returns colour language sql immutable as $$select case $1 when 1 then 'red' else 'green' end::z28_casts.colour$$; create cast (int as colour) with function of_int(int);
create table t (c colour, n int generated always as (c::int) stored, check (c::int < 3)); insert into t values ('green'); create view v as select c::int + 1 as n, 2::colour as c from t;

create schema z29_views; set search_path = z29_views;
create table t (id int primary key, a text, b text, gone int); insert into t values (1, 'a', 'b', 0); create view whole as select t from t; create view named (x, y) as select a, b from t; create or replace view named as select a as x, b as y, id as later from t;
create view checked as select id, a from t where a <> 'z' with local check option; create view deep as select * from checked where id > 0 with cascaded check option; create view barrier with (security_barrier, check_option = local) as select id, a from t where a <> ''; alter table t rename a to "A"; alter table t drop column gone; alter view named rename column later to "Later"; alter view named alter x set default 'new';
create view nothing as select from t; create view consts as select 1 as one, 'unknown' as u, null as n, array[]::text[] as e, '1 day'::interval as i, 'a' || 'b' collate "C" as c; grant select (a), update (id) on checked to "Zoo; visitor";

create schema z30_views_with_joins; set search_path = z30_views_with_joins;
create table a (id int, x int, y text); create table b (id int, x int, z text); create table c (id int, w text); insert into a values (1, 2, 'y'); insert into b values (1, 2, 'z');
create view v1 as select * from a join b using (id, x); create view v2 as select * from a natural left join b full join c using (id); create view v3 as select j.*, a.y from (a cross join c) j (i1, x1, y1, i2, w1) join a on true; create view v4 as select l.n, o.ord, v from a, lateral (select a.x * 2 as n) l, unnest(array[1, 2], array['p', 'q']) with ordinality o (n1, q, ord), (values (1, 'v')) v (n2, v);
alter table a rename x to x2; alter table b add y text; alter table b rename z to w; create view v5 as select a.id, b.id as b_id from a left join b on a.id = b.id and a.x2 = any (array[1, b.x]) where not exists (select from c where c.id = a.id);

create schema z31_odd_expressions; set search_path = z31_odd_expressions;
create table t (a int, b text, c timestamptz, d int[], e jsonb, f numeric, g bool);
create view v as select a between symmetric 3 and 1 as x1, b ~ '^\d+$' as x2, b like 'a!%%' escape '!' as x3, c at time zone 'Europe/Berlin' as x4, extract(dow from c) as x5, d[1:2] as x6, d[2] as x7, (e -> 'a' ->> 'b')::int as x8, e @> '{"k": "it''s"}' as x9, f::numeric(4, 1) as x10, g is not unknown as x11, row (a, b) = row (1, 'x') as x12, (a, b) < (2, 'y') as x13, a = all (d) as x14, coalesce(nullif(b, ''), 'none') as x15, -a as x16, - (-1) as x17, 2 ^ (-1) as x18, a::text::int as x19, cast('(1,2)' as point) as x20, interval '1' year as x21, current_date - 1 as x22, substring(b from 'a#"b#"c' for '#') as x23, overlay(b placing 'x' from 2 for 1) as x24, is_normalized as x25, case a when 1 then 'one' when 2 then null end as x26, case when g then 1 end as x27, a in (1, 2, null) as x28, b not in ('a', 'b') as x29, grouping(a) as x30 from (select *, b is normalized as is_normalized from t) s group by a, b, c, d, e, f, g, is_normalized;

create schema z32_windows; set search_path = z32_windows; create table t (a int, b int, c text); insert into t select i, i % 3, 'c' from generate_series(1, 9) i;
create view v as select a, sum(a) over (partition by b order by a rows between 1 preceding and current row exclude current row) as s, lag(a, 2, -1) over w as l, percent_rank() over (w range between unbounded preceding and unbounded following) as p, ntile(4) over (order by a desc nulls last) as n, string_agg(c, ',') filter (where a > 1) over (partition by b) as g from t window w as (partition by b order by a);
create view sets as select b, c, count(distinct a), percentile_cont(0.5) within group (order by a) as m, rank(3) within group (order by a) as r, grouping(b, c) as g from t group by grouping sets ((b), (c), rollup (b, c), ()) having count(*) > 0 order by 1 nulls first offset 1 fetch first 5 rows with ties;

create schema z33_with; set search_path = z33_with; create table t (id int primary key, up int references t); insert into t values (1, null), (2, 1), (3, 2);
create recursive view tree (id, depth) as select id, 0 from t where up is null union all select t.id, depth + 1 from t join tree on t.up = tree.id; create view v as with a as materialized (select * from t), b as not materialized (select id from a), c (x, y) as (values (1, 'q'), (2, null)) select b.id, c.y from b left join c on c.x = b.id union (select 9, 'nine' except all select 8, 'x') intersect select id, null from t;

create schema z34_mats; set search_path = z34_mats; create table t (id int, v int); insert into t values (1, 2), (2, 3);
create materialized view zz as select id, v from t; create materialized view aa as select sum(v) as s from zz; create view mm as select s from aa; create materialized view bb as select s * 2 as d from mm; create materialized view never as select 1 as one with no data; create function of_aa() returns bigint language sql stable as 'select s from z34_mats.aa'; create materialized view ab as select of_aa() as s;
create index on zz (v) include (id); create unique index on zz (id); alter materialized view zz alter v set statistics 50, cluster on zz_v_id_idx; comment on column zz.v is 'value'; comment on materialized view aa is 'sum'; grant select (id) on zz to zoo_keeper;

create schema z35_rules; set search_path = z35_rules; create table t (id int, v text); create table log (id int, what text, at timestamptz default now()); insert into t values (1, 'x');
create view v as select * from t where v <> 'hidden'; create rule ins as on insert to v do instead insert into t values (new.id, coalesce(new.v, 'none')) returning id, v; create rule upd as on update to v do instead (update t set v = new.v where id = old.id; insert into log values (old.id, 'update')); create rule del as on delete to v where old.id > 0 do also insert into log values (old.id, 'delete'); create rule del_else as on delete to v do instead nothing;
create rule note as on insert to t do also notify heard; alter table t disable rule note; create rule copy as on update to t where new.v is distinct from old.v do also insert into log (id, what) select new.id, old.v;

create schema z36_triggers; set search_path = z36_triggers; create table t (id int primary key, a text, b text) ; create function f() returns trigger language plpgsql as $$begin raise exception 'must not fire'; end$$;
insert into t values (1, 'a', 'b'); create trigger a1 before insert or update of a, b or delete on t for each row when (pg_trigger_depth() < 1) execute function f('x', '1', 'it''s', E'back\\slash', ''); create trigger "A 2" after update on t referencing old table as "Old" new table as fresh for each statement execute function f(); create constraint trigger a3 after insert or delete on t from t deferrable initially immediate for each row execute function f();
create trigger a4 before truncate on t execute function f(); alter table t disable trigger a1, enable replica trigger "A 2", enable always trigger a4; comment on trigger "A 2" on t is 'second'; create table pt (id int) partition by list (id); create table pt1 partition of pt for values in (1); create trigger on_all after update on pt for each row execute function f(); create trigger on_one before insert on pt1 for each row execute function f(); alter table pt1 disable trigger on_all; create view v as select * from t; create trigger inst instead of delete on v for each row execute function f();

create schema z37_policies; set search_path = z37_policies; create table a (id int, owner text); create table b (id int, a int); insert into a values (1, 'x'); insert into b values (1, 1);
create policy p on a using (exists (select from b where b.a = a.id)); create policy p on b using (a in (select a.id from a)) with check (id > 0); create policy "for one" on a as restrictive for update to "Zoo; visitor", current_user using (owner = session_user) with check (owner is not null and pg_has_role('app', 'member')); create policy ins on b for insert with check (true); alter table a enable row level security; comment on policy ins on b is 'any';

create schema z38_grants; set search_path = z38_grants; create table t (a int, b int, c int); create sequence s; create function f() returns int language sql as 'select 1'; create type e as enum ('x'); create domain d as int;
grant all on t to zoo_keeper with grant option; revoke update on t from zoo_keeper; grant select (a), insert (a, b), references (c) on t to "Zoo; visitor" with grant option; grant usage on sequence s to public; grant update on sequence s to zoo_keeper; revoke all on function f() from public; grant usage on type e to zoo_keeper; revoke usage on type e from public; revoke usage on domain d from public; grant usage on schema z38_grants to zoo_keeper with grant option; set role zoo_keeper; grant usage on schema z38_grants to "Zoo; visitor"; grant delete on z38_grants.t to "Zoo; visitor"; set role app; revoke select on t from app; grant trigger on t to public;

create schema z39_defaults authorization zoo_keeper; grant create, usage on schema z39_defaults to app; alter default privileges in schema z39_defaults grant insert, select on tables to "Zoo; visitor" with grant option; alter default privileges in schema z39_defaults grant execute on functions to zoo_keeper; alter default privileges in schema z39_defaults grant usage on types to zoo_keeper; alter default privileges in schema z39_defaults grant all on sequences to public;
create table z39_defaults.t (id serial); create function z39_defaults.f() returns int language sql as 'select 1'; create type z39_defaults.e as enum ('y'); revoke select on z39_defaults.t from "Zoo; visitor";

create schema z40_owners; grant all on schema z40_owners to zoo_keeper; set search_path = z40_owners; set role zoo_keeper; create table of_keeper (id serial primary key, v text); insert into of_keeper (v) values ('k'); create function of_keeper_f() returns int language sql as 'select 1'; create view of_keeper_v as select * from of_keeper; set role app;
create table of_app (id int references of_keeper); insert into of_app values (1); create view mixed as select v from of_keeper join of_app using (id); create type of_both as (a of_keeper);
grant references on of_keeper to app;

create schema z41_storage; set search_path = z41_storage; create table t (id int, a text, b bytea, c jsonb, d numeric) with (fillfactor = 70, autovacuum_enabled = off, toast.autovacuum_vacuum_threshold = 77, autovacuum_analyze_scale_factor = 0.02, parallel_workers = 3);
alter table t alter a set storage main, alter b set storage external, alter c set storage plain, alter d set statistics 500, alter a set (n_distinct = 5, n_distinct_inherited = -0.1); insert into t values (1, repeat('x', 9000), decode(repeat('ab', 9000), 'hex'), '{}', 1); create index on t (id) with (fillfactor = 60); create unlogged table u (id int primary key); insert into u values (1); create unlogged table ut (x text); insert into ut values (repeat('y', 3000));

create schema z42_indexes; set search_path = z42_indexes; create table t (id int, a text, b int[], c jsonb, p point, r int4range, n inet, d date, v tsvector); insert into t values (1, 'a', '{1}', '{"a": 1}', '(1,1)', '[1,2]', '10.0.0.0/8', '2020-01-01', 'a');
create index i1 on t (a collate "POSIX" varchar_pattern_ops desc nulls last, id asc nulls first) include (d) where a is not null; create index i2 on t using gin (c jsonb_path_ops, b) with (gin_pending_list_limit = 128); create index i3 on t using gist (p, r); create index i4 on t using spgist (a); create index i5 on t using spgist (n inet_ops); create index i6 on t using brin (d date_minmax_ops, id) with (pages_per_range = 2); create index i7 on t using hash ((lower(a))); create index i8 on t ((c ->> 'x'), (id % 7), upper(a)); create unique index i9 on t (id) where d > '2019-01-01'; create index i10 on only t ((b[1]));
create index i6_plain on t (d); alter index i8 alter column 2 set statistics 77; comment on index i8 is 'three'; alter table t cluster on i6_plain;

create schema z43_constraints; set search_path = z43_constraints; create table p (a int, b int, c int, primary key (b, a) include (c), unique (a, c) deferrable, constraint late unique (c) deferrable initially deferred); create table f (x int, y int, z int, foreign key (x, y) references p (b, a) match full on delete set null on update set default deferrable, constraint not_checked check (z > 0) not valid, check ((x is null) = (y is null)), exclude using hash (z with =), constraint single exclude (x with =, y with =) where (z > 5) initially deferred);
insert into p values (1, 2, 3); insert into f values (2, 1, 1), (null, null, 5); alter table p add constraint firm unique (c); alter table f add constraint loose foreign key (z) references p (c) not valid; comment on constraint loose on f is 'loose'; alter table f add constraint by_index unique (y, z); create unique index ready on f (z); alter table f add constraint from_index unique using index ready;

create schema z44_generated; set search_path = z44_generated; create function double(int) returns int language sql immutable as 'select $1 * 2'; create table t (a int, b int generated always as (double(a)) stored, c text generated always as ('n' || a) stored not null, id int generated always as identity, k int generated by default as identity primary key, check (b > a)); insert into t (a) values (1), (2); create index on t (b); insert into t (a, id) overriding system value values (3, 99); create table p (a int, g int generated always as (a + 1) stored) partition by range (a); create table p1 partition of p for values from (0) to (9); insert into p values (1);
create table only_generated (g int generated always as (7) stored); insert into only_generated default values;

create schema z45_empty; create schema z45_only_types; create type z45_only_types.e as enum (); create schema z45_no_columns; set search_path = z45_no_columns; create table t (); insert into t default values; insert into t default values; create table dropped (a int); alter table dropped drop column a; insert into dropped default values; create table p (a int) partition by list (a); create view v as select from t; create table generated_only (a int generated always as identity);

create schema z46_texts; set search_path = z46_texts; create table t (id int primary key, v text, c char(3), n name, b bytea);
insert into t values (1, E'\t\n\r\b\f\v\\', 'a', 'n', '\x00'), (2, '\N', '', '', ''), (3, '\.', null, null, null), (4, E'\u2028\u200d🏳️‍🌈', 'ü', 'ü', '\x5c2e0a'), (5, repeat(E'\\', 100), '"', '''', '\xff'), (6, E'\x01\x7f', ',', ';', '\x0d'), (7, 'NULL', 'nul', 'null', '\x4e'), (8, E'trailing \n', ' ', ' ', ' ');

create schema z47_numbers; set search_path = z47_numbers; create table t (n numeric, m numeric(5, 2), f float8, r real, i bigint, mo money, s smallint);
insert into t values ('NaN', -999.99, 'NaN', '-Infinity', -9223372036854775808, '-92233720368547758.08', -32768), (1e-1000, 0.005, 5e-324, 1e-45, 0, 0, 0), (repeat('9', 2000)::numeric, null, 1.7976931348623157e308, 3.4028235e38, 9223372036854775807, null, 32767), (0.1 + 0.2, 1, 0.1::float8 + 0.2, 0.1, 1, 1, 1), (100.00, 1.10, '-0', '-0', 2, 2, 2);

create schema z48_times; set search_path = z48_times; create table t (a timestamptz, b timestamp, c date, d time, e timetz, f interval, g interval(0), h timestamptz(3), i interval year to month);
insert into t values ('infinity', '-infinity', '-infinity', '24:00', '23:59:59.999999+15:59', '-178000000 years', '1.6 s', '2020-01-01 00:00:00.9999', '1 year 3 mons'), ('4714-11-24 00:00:00+00 BC', '294276-12-31 23:59:59.999999', '5874897-12-31', '0:0', '00:00-15:59:59', '1 mon -1 day +00:00:00.000001', null, null, null), ('1883-11-18 12:03:57 America/New_York', '2021-03-28 02:30', '0001-01-01 BC', '12:00', '12:00+00:00:01', '0', '0', '2020-01-01', '-1 mon');

create schema z49_composites; set search_path = z49_composites; create type p as (a int, b text[]); create type q as (p p, ps p[], at timestamptz); create table t (x p, y p[], z q, w q[]); create table whole (id int, v t); insert into t values (row (1, array['a"b', null, '(', E'\\', '']), '{}', row (row (null, '{}')::p, null, 'infinity'), array[null::q, row (null, array[row (1, null)::p], '-infinity')::q]); insert into whole select 1, t from t; insert into whole values (2, null), (3, row (null, null, null, null)); create view parts as select (x).a, (y[1]).b[2], (z).p.a as za from t; create index on t (((x).a)); create function of_q(q, out p, out n int) language sql as 'select ($1).p, 1';

create schema z50_oid_types; set search_path = z50_oid_types; create table t (a regclass, b regtype, c regproc, d regprocedure, e regoper, f regoperator, g regnamespace, h regrole, i regconfig, j regdictionary, k oid, l regclass[]);
create function f(int) returns int language sql as 'select 1'; create operator ### (leftarg = int, rightarg = int, function = int4pl);
insert into t values ('t', 't[]', 'z50_oid_types.f', 'f(int)', 'z50_oid_types.###', '###(int,int)', 'z50_oid_types', 'app', 'english', 'simple', 5, '{t,pg_class}'); create table d (a regclass default 't'::regclass, b regprocedure default 'f(int)'::regprocedure, c regnamespace default 'z50_oid_types');

create schema z51_comments; set search_path = z51_comments; create table t (a int constraint c check (a > 0), b int); create view v as select a from t; create function f(int, out text) language sql as 'select ''x''::text'; create type y as (m int); create domain d as int constraint dc check (value > 0); create index i on t (a); create sequence s; create statistics st on a, b from t; create rule r as on insert to t do also nothing;
comment on table t is E'multi\nline ''quoted'' \\ $$ -- /* */'; comment on column t.a is 'a'; comment on column v.a is 'va'; comment on constraint c on t is 'c'; comment on function f(int) is 'f'; comment on column y.m is 'm'; comment on type y is 'y'; comment on domain d is 'd'; comment on constraint dc on domain d is 'dc'; comment on index i is 'i'; comment on sequence s is 's'; comment on statistics st is 'st'; comment on rule r on t is 'r'; comment on schema z51_comments is 'all of them'; comment on table t is 'again';

create schema z52_statistics; set search_path = z52_statistics; create table t (a int, b int, c text); insert into t select i % 5, i % 10, 'c' || i % 3 from generate_series(1, 100) i; create statistics one (ndistinct) on a, b from t; create statistics "Two" (mcv, dependencies) on a, c from t; alter statistics one set statistics 9; create schema z52_other; create statistics z52_other.three on b, c from t; grant usage, create on schema z52_statistics to zoo_keeper; alter statistics "Two" owner to zoo_keeper;

create schema z53_search; set search_path = z53_search; create text search dictionary d (template = synonym, synonyms = 'synonym_sample'); create text search dictionary s (template = snowball, language = 'russian', stopwords = 'russian'); create text search configuration c (parser = default); alter text search configuration c add mapping for asciiword, word with d, s, pg_catalog.simple; alter text search configuration c add mapping for email with simple;
create table t (w text, v tsvector generated always as (to_tsvector('z53_search.c', w)) stored); insert into t values ('postgres'); create index on t using gin (to_tsvector('z53_search.c'::regconfig, w)); create view q as select to_tsquery('z53_search.c', 'a & b') as q;

create schema z54_self; set search_path = z54_self; create table t (id int primary key, up int references t, path int[] default '{}', check (up is distinct from id)); insert into t values (3, null), (2, 3), (1, 2); create function children(t) returns setof t language sql stable as 'select * from z54_self.t c where c.up = ($1).id'; create view v as select t.id, (select count(*) from children(t)) as n from t; create type loop as (x int); create function takes(loop) returns t language sql as 'select null::z54_self.t';

create schema z55_volatile; set search_path = z55_volatile; create table t (id uuid default gen_random_uuid(), at timestamptz default clock_timestamp(), who text default current_user, r float8 default random(), day date default current_date, n text default current_setting('server_version'), a int[] default array[1, 2] || 3, j jsonb default jsonb_build_object('k', array['a']), t text default E'it''s\n', i interval default '1 day'::interval * 2, b bit(4) default b'1010', x xid default '5', nul text default null, c char(2) default 'a'); insert into t default values;

create schema z56_rewritten; set search_path = z56_rewritten; create table t (a int); insert into t select generate_series(1, 100); alter table t add b int default 7 not null, add c text default 'fast'; alter table t alter a type bigint, alter b type text using 'b' || b; insert into t values (101, 'x', null); delete from t where a % 3 = 0; update t set c = c where a % 5 = 0; alter table t drop column b; alter table t add b date; create view v as select * from t;

create schema z57_same_names; set search_path = z57_same_names; create table x (x int); create function x() returns int language sql as 'select 1'; create function x(x) returns int language sql as 'select 2'; create schema x_schema; create type x_type as enum ('x'); create table "X" (x int); create sequence x_seq; create table x_x_seq (x serial); alter table x add constraint x check (x > 0); create index x_idx on x (x); create rule x as on delete to x do also nothing; create policy x on x using (x > 0); create trigger x before insert on x for each row execute function suppress_redundant_updates_trigger();
drop trigger x on x; insert into x values (1);

create schema z58_wide; set search_path = z58_wide; do $$begin execute (select 'create table wide (' || string_agg(format('c%s %s default %L', i, (array['int', 'text', 'bool', 'numeric'])[i % 4 + 1], (array['1', 'x', 't', '1.5'])[i % 4 + 1]), ', ') || ')' from generate_series(0, 249) i); execute (select string_agg(format('create table many_%s (id int primary key, v text); ', i), '') from generate_series(1, 12) i); end$$; insert into wide default values;

create schema z59_arrays; set search_path = z59_arrays; create type e as enum ('a', 'b'); create domain d as e; create table t (a int[3][3], b text[] default array['a', null, 'NULL', '', 'with "quotes"', 'with,comma', '{braces}'], c e[], d d[], e json[], f bytea[], g date[], h int[]); insert into t values ('{{1,2},{3,4}}', default, '{a,NULL}', '{b}', array['{"a": [1]}', 'null']::json[], array['\x00', '']::bytea[], '{infinity,2020-01-01}', '[-3:-2][2:3]={{1,2},{3,4}}');

create schema z60_text_of_sql; set search_path = z60_text_of_sql; create table t (q text default 'select 1; drop table t; --', r text default $$create function f() as $f$ begin end $f$;$$); insert into t default values; comment on table t is 'BEGIN; COMMIT; \connect other \. COPY t FROM stdin;'; create function f() returns text language plpgsql as $f$begin execute 'create temporary table x as select 1'; return E'-- Name: fake; Type: TABLE; Schema: public; Owner: app\n\\.\n'; end$f$;

create schema z61_views_of_catalogs; set search_path = z61_views_of_catalogs; create view tables as select c.oid, c.relname, n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace; create view activity as select pid, datname, state from pg_stat_activity; create view sizes as select pg_total_relation_size(oid) as bytes from pg_class; create view columns as select table_name, column_name from information_schema.columns; create function row_of() returns setof pg_class language sql stable as 'select * from pg_class limit 0';

create schema z62_locked_away; set search_path = z62_locked_away; create table t (id int primary key, v text) ; insert into t values (1, 'x'); create function audit() returns trigger language plpgsql security definer set search_path = z62_locked_away, pg_temp as $$begin insert into audit_log select new.*; return new; end$$; create table audit_log (like t including defaults); create trigger audit after insert or update on t for each row execute function audit(); create publication z62_all for table t, audit_log with (publish = 'insert, delete'); revoke all on t from public; grant usage, create on schema z62_locked_away to zoo_keeper; alter table t owner to zoo_keeper;

reset role; reset search_path;
