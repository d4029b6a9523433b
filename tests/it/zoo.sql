-- Something of every kind that a copy must carry, as far as a role that is no superuser may have made it.
set role app;
comment on schema public is 'the zoo''s own';
create schema "Odd; Type: ""Schema\";
create schema keeper authorization zoo_keeper;
comment on schema keeper is E'two\nlines; -- and a \\ backslash';
create schema shared;
grant usage, create on schema shared to zoo_keeper with grant option;
grant usage on schema shared to "Zoo; visitor";
alter default privileges for role app in schema shared grant select on tables to "Zoo; visitor";
alter default privileges for role app revoke execute on functions from public;
alter default privileges for role app grant usage on sequences to zoo_keeper with grant option;

-- Extensions that are trusted.
create schema ext;
create extension hstore schema ext;
create extension citext schema ext;
create extension btree_gist schema ext;
create extension pg_trgm schema ext;
create extension ltree;
create extension tablefunc schema ext;
comment on extension ltree is 'trees';

-- Types.
create type mood as enum ('sad', 'it''s fine', 'Ünïcode ☃', '');
alter type mood add value 'between' before 'Ünïcode ☃';
comment on type mood is 'how it is';
create domain positive as int default 7 not null check (value > 0);
alter domain positive add constraint small check (value < 1000000) not valid;
comment on constraint small on domain positive is 'small enough';
create domain words as text[] collate "C" check (array_length(value, 1) < 1000);
create type pair as (a int, m mood, "Odd name" text collate "C");
create type nested as (p pair[], d positive);
create domain good_pair as pair check (value is null or (value).a is not null);
create function float_gap(a float8, b float8) returns float8 language sql immutable return b - a;
create type floats as range (subtype = float8, subtype_diff = float_gap, multirange_type_name = many_floats);
create type keeper.kept as (x int);
alter type keeper.kept owner to zoo_keeper;
grant usage on type mood to zoo_keeper;
revoke usage on type pair from public;
create collation posix_like from "C";
create collation keeper.german (locale = 'C');
comment on collation posix_like is 'plain';

-- Functions and what is made of them.
create function add(a int, b int default 2, out sum int, out text) language sql immutable parallel safe begin atomic select a + b, 'x' as text; end;
create function body(variadic numeric[]) returns setof text language plpgsql stable strict cost 17 rows 3 as $$begin return; end$$;
create function quoting() returns text language sql as $odd$ select '$$ -- TOC entry 9 (class 1 OID 1) \unrestrict ; $$'::text $odd$;
create function pinned() returns text language sql security definer set search_path = pg_catalog, "Odd; Type: ""Schema\" set work_mem = '8MB' as 'select current_user::text';
create procedure proc(inout x int) language plpgsql as $$begin x := x + 1; end$$;
create function greatest_state(int, int) returns int language sql immutable as 'select greatest($1, $2)';
create aggregate biggest(int) (sfunc = greatest_state, stype = int, initcond = '0', parallel = safe, combinefunc = greatest_state);
create function near(pair, pair) returns bool language sql immutable as 'select abs(($1).a - ($2).a) < 2';
create operator <~> (leftarg = pair, rightarg = pair, function = near, commutator = <~>);
comment on operator <~> (pair, pair) is 'near each other';
create function pair_of(int) returns pair language sql immutable as 'select row ($1, null, null)::pair';
create cast (int as pair) with function pair_of(int) as assignment;
create conversion odd_conversion for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8;
revoke execute on function add(int, int) from public;
grant execute on function add(int, int) to "Zoo; visitor";
grant execute on procedure proc to zoo_keeper with grant option;
comment on function add(int, int) is 'adds';
comment on aggregate biggest(int) is 'the biggest';
create aggregate lines(*) (sfunc = int8inc, stype = int8, initcond = '0');
comment on aggregate lines(*) is 'how many';

-- Text search.
create text search dictionary simple_de (template = simple, stopwords = german, accept = false);
create text search configuration zoo (copy = english);
alter text search configuration zoo alter mapping for asciiword with simple_de, english_stem;
comment on text search configuration zoo is 'words of animals';

-- Sequences.
create sequence loose as smallint start 100 increment by 7 maxvalue 3000 cycle cache 5;
select nextval('loose'), nextval('loose');
create sequence down increment by -3 minvalue -900 start -10;
select nextval('down');
create sequence untouched;
create sequence "Seq.""Odd" owned by none;
select setval('"Seq.""Odd"', 9223372036854775807, false);
grant usage on sequence loose to zoo_keeper;

-- Tables.
create table customer (
    id bigint generated always as identity (start 5 increment 5) primary key,
    email ext.citext not null unique,
    mood mood not null default 'sad',
    moods mood[] not null default '{}',
    pair pair, deep nested, good good_pair,
    score positive,
    dropped int,
    upper_email text generated always as (upper(email::text)) stored,
    tags ext.hstore, path ltree, spread floats, spreads many_floats, "some" words,
    short char(5), bits bit(3), varbits bit varying, addr inet, net cidr, mac macaddr, mac8 macaddr8,
    doc tsvector, question tsquery, cash money, span interval, lsn pg_lsn, kin regclass, kind regtype, who regrole,
    j json, jb jsonb, raw bytea, amount numeric, exact numeric(1000, 900), r real, d double precision,
    day date, at timestamp, at_zone timestamptz, t time, tz timetz, u uuid, p point, poly polygon, b box, snap pg_snapshot,
    vec int[], "char" "char", n name, o oid, path_json jsonpath, xid8 xid8, parent bigint references customer deferrable initially deferred
);
alter table customer drop column dropped;
insert into customer (email, pair, deep, score, tags, path, spread, spreads, "some", short, bits, varbits, addr, net, mac, mac8, doc,
    question, cash, span, lsn, kin, kind, who, j, jb, raw, amount, exact, r, d, day, at, at_zone, t, tz, u, p, poly, b, snap, vec,
    "char", n, o, path_json, xid8, moods, good)
select 'User' || i || '@example.org', row (i, 'between', 'x"y\,')::pair, row (array[row (1, null, '')::pair, null], 3)::nested, i,
    ext.hstore('a"=>', case when i % 2 = 0 then null else E'\\t' end), 'a.b.c', floats(-i, 'infinity'), '{[1,2),[3,4)}', array['a', null, 'b,c'],
    'ab ', b'101', b'', '::ffff:1.2.3.4/64', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
    '''odd '''' word'':1A,2B', 'a & !(b <-> c:*)', -12.34, '-1 year 2 mons -3 days 04:05:06.789', 'FF/1',
    'customer', 'mood[]', 'app', '{"a": 1, "a":  2, "u": "\ud83d\ude00 \u0001 \\u0000"}', '{"deep": [1e-30, 12345678901234567890.0]}',
    decode('00ff5c0a0d09', 'hex'), 'NaN', 1e99 + 1e-900, '-0', '-Infinity', '4713-01-01 BC', 'infinity', '0044-03-15 12:00:00+01 BC',
    '24:00:00', '23:59:59.999999-15:59', '00000000-0000-0000-0000-00000000000f', '(NaN,-0)', '((0,0),(1,1),(2,0))', '(1,1),(0,0)',
    '10:20:10,14,15', '[-1:0]={1,null}', '\351', 'name', 4294967295, '$.a[*] ? (@ > 1)', '18446744073709551615', '{sad,""}', row (1, null, null)::pair
from generate_series(1, 50) i;
insert into customer (email, raw, amount, span, at, day, vec, moods, j, short, score)
values ('empty', '', '-Infinity', '-178000000 years', '-infinity', 'infinity', '{{1,2},{3,4}}', '{{sad},{""}}', 'null', '', 1),
       (E'new\nline\\. \t\\N', (select string_agg(decode(lpad(to_hex(i), 2, '0'), 'hex'), '' order by i) from generate_series(0, 255) i),
        1e-16383 , '0', null, null, '{}', '{}', '""', null, 2);
update customer set parent = id where id % 2 = 0;
create statistics together (dependencies, ndistinct, mcv) on mood, short from customer;
create statistics "Odd stat" on (lower(email::text)), (amount * 2) from customer;
alter statistics together set statistics 55;
comment on statistics together is 'mood and short';
comment on table customer is 'who buys';
comment on column customer.email is 'where to write';
comment on constraint customer_pkey on customer is 'the key';
grant select on customer to public;
grant update (mood, short) on customer to "Zoo; visitor" with grant option;
grant insert on customer to zoo_keeper with grant option;
set role zoo_keeper;
grant insert on customer to "Zoo; visitor";
set role app;

create table orders (
    id serial primary key, customer bigint not null references customer on delete cascade on update restrict,
    note text compression pglz, big text, span tstzrange, quantity int check (quantity > 0) no inherit,
    constraint "Odd check" check (note <> 'x;--') not valid,
    constraint apart exclude using gist (customer with =, span with &&) where (quantity > 1) deferrable initially deferred
);
alter table orders alter big set storage external, alter note set statistics 17, alter note set (n_distinct = -0.5);
insert into orders (customer, note, big, span, quantity) select id, repeat('ü' || id, id::int), repeat('x', 5000), tstzrange(now(), now() + interval '1 h'), 2 from customer;
insert into orders (customer, big) select min(id), repeat('0123456789', 400000) from customer;
create index orders_customer on orders (customer) include (quantity) where note <> '';
create index "odd "" index" on orders ((length(note)) desc nulls last, lower(note) collate "C" text_pattern_ops);
create index orders_hash on orders using hash (note);
create index orders_brin on orders using brin (id) with (pages_per_range = 4, autosummarize = on);
create index orders_trgm on orders using gin (note ext.gin_trgm_ops) with (fastupdate = off);
create index orders_fill on orders (quantity) with (fillfactor = 50, deduplicate_items = off);
create unique index orders_nulls on orders (id, note) nulls not distinct;
alter index "odd "" index" alter column 1 set statistics 99;
comment on index orders_customer is 'open orders';
alter table orders cluster on orders_fill;
alter table orders set (fillfactor = 80, autovacuum_enabled = off, toast.autovacuum_vacuum_threshold = 77);
alter table orders add constraint not_checked foreign key (quantity) references orders (id) match full not valid;

-- Two that need each other, and one that needs itself.
create table hen (id int primary key, egg int not null);
create table egg (id int primary key, hen int references hen deferrable);
alter table hen add foreign key (egg) references egg deferrable initially deferred;
begin; insert into hen values (1, 1); insert into egg values (1, 1); commit;
create table tree (id int primary key, up int references tree on delete set null);
insert into tree values (1, 2), (2, 1), (3, null);

-- Names.
create table "Odd; Type: ""Schema\"."select
from" ("order" int primary key, "ä ""ö\" text, " " int default 1, "a.b" int, "%s %I" int, "$1" int);
insert into "Odd; Type: ""Schema\"."select
from" values (1, E'a\\b\nc'), (2, null);
create table "sixty-three bytes of a name that goes on and on, as ORMs do it." (
    "sixty-three bytes of a column that goes on and on, as ORMs do it." int unique check ("sixty-three bytes of a column that goes on and on, as ORMs do it." > 0));
insert into "sixty-three bytes of a name that goes on and on, as ORMs do it." values (1);
create table "Ünïcode 表 \ ""x"" '" ("'" int); insert into "Ünïcode 表 \ ""x"" '" values (1);
create table "table" ("user" text, "default" int default 3, "all" bool); insert into "table" values ('x');
create index "index" on "table" ("user", "default");

-- Shapes.
create table nothing (); insert into nothing default values; insert into nothing default values;
create table computed (x int generated always as (1) stored); insert into computed default values;
create table no_key (a int, b text); insert into no_key values (1, 'x'), (1, 'x'), (null, null);
alter table no_key replica identity full;
create table noted (a int not null unique, b int not null); create unique index noted_b on noted (b);
alter table noted replica identity using index noted_b; insert into noted values (1, 2);
create table unseen (a int); alter table unseen replica identity nothing;
create unlogged table scratch (id int generated by default as identity, t text); insert into scratch (t) values ('x');
do $$begin execute (select format('create table wide (%s)', string_agg(format('c%s int', i), ', ')) from generate_series(1, 1590) i); end$$;
insert into wide (c1, c800, c1590) values (1, 2, 3);
create table toasted (id int, a text, b bytea); alter table toasted alter b set storage external;
insert into toasted select i, repeat(md5(i::text), 100000), decode(repeat(md5(i::text), 60000), 'hex') from generate_series(1, 3) i;
create table of_type of keeper.kept; insert into of_type values (4);
create table keeper.theirs (id int primary key, k keeper.kept); insert into keeper.theirs values (1, row (2));
alter table keeper.theirs owner to zoo_keeper;
create table shared.theirs (id int); alter table shared.theirs owner to zoo_keeper;
create table read_only (id int); insert into read_only values (1); revoke all on read_only from app; grant select on read_only to app;

-- Partitions and inheritance.
create table part (id int not null, at date not null, word text default 'p', primary key (id, at)) partition by range (at);
create table part_1 partition of part for values from (minvalue) to ('2021-01-01') with (fillfactor = 60);
create table part_2 (word text default 'other', at date not null, gone int, id int not null); alter table part_2 drop column gone;
alter table part attach partition part_2 for values from ('2021-01-01') to ('2022-01-01');
create table part_rest partition of part default partition by hash (id);
create table part_rest_0 partition of part_rest for values with (modulus 2, remainder 0);
create table part_rest_1 partition of part_rest for values with (modulus 2, remainder 1);
insert into part select i, date '2020-01-01' + i from generate_series(1, 1500) i;
create index on part (at); create index part_only on only part (word);
create index part_1_word on part_1 (word); alter index part_only attach partition part_1_word;
create table listed (k text, v int) partition by list (lower(k));
create table listed_a partition of listed for values in ('a', null); create table keeper.listed_b partition of listed for values in ('b');
insert into listed values ('A', 1), (null, 2), ('B', 3);
create table moods_by (m mood) partition by hash (m);
create table moods_by_0 partition of moods_by for values with (modulus 3, remainder 0);
create table moods_by_1 partition of moods_by for values with (modulus 3, remainder 1);
create table moods_by_2 partition of moods_by for values with (modulus 3, remainder 2);
insert into moods_by select unnest(enum_range(null::mood));
create table about_part (id int, at date, foreign key (id, at) references part); insert into about_part values (5, '2020-01-06');
create table parent (id int default 1, c int check (c > 0), only_here int check (only_here > 0) no inherit);
create table child (extra text, id int default 2) inherits (parent);
create table both_of () inherits (parent, no_key);
insert into parent values (1, 1); insert into child values (2, 1, null, 'x'); insert into both_of values (3, 3);
alter table child no inherit parent; alter table child inherit parent;

-- Views.
create view happy with (security_barrier) as select * from customer where mood = 'sad' with cascaded check option;
create view grouped as select c.id, c.email, count(*) from customer c join orders o on o.customer = c.id group by c.id;
create view invoker with (security_invoker = on) as select 1 as one;
create recursive view counted (n) as values (1) union all select n + 1 from counted where n < 5;
alter view happy alter column short set default 'dflt';
comment on view happy is 'not really'; comment on column happy.email is 'of the view';
create materialized view z_first as select mood, count(*) from customer group by mood;
create materialized view a_second as select sum(count) as total from z_first with data;
create materialized view empty_one as select 1 as x from a_second with no data;
create materialized view m_third with (fillfactor = 70) as select total * 2 as twice from a_second;
create unique index on z_first (mood); grant select on z_first to "Zoo; visitor";
create view on_mat as select * from m_third;

-- Triggers and rules.
create function touch() returns trigger language plpgsql as $$begin raise exception 'no trigger may fire'; end$$;
create trigger touch before insert or update of note on orders for each row when (new.note is distinct from 'x') execute function touch('arg''1', 'two');
create trigger off after delete on orders for each row execute function touch();
create trigger always after truncate on orders execute function touch();
create trigger on_replica before update on orders for each row execute function touch();
alter table orders disable trigger off; alter table orders enable always trigger always; alter table orders enable replica trigger on_replica;
create constraint trigger late after insert on egg deferrable initially deferred for each row execute function touch();
create trigger with_rows after insert on hen referencing new table as fresh for each statement execute function touch();
create trigger on_part after insert on part for each row execute function touch(); alter table part_2 disable trigger on_part;
create trigger instead instead of insert on grouped for each row execute function touch();
comment on trigger touch on orders is 'never during a copy';
create rule quiet as on delete to scratch do instead nothing;
create rule told as on insert to no_key where new.a > 100 do also insert into unseen values (new.a);
alter table scratch disable rule quiet; comment on rule told on no_key is 'tells';

-- Row security.
create table tenant (id int, owner text); insert into tenant values (1, 'a'), (2, 'b');
alter table tenant enable row level security;
create policy mine on tenant using (owner = current_user) with check (id > 0);
create policy "Odd policy" on tenant as restrictive for select to zoo_keeper, "Zoo; visitor" using (true);
comment on policy mine on tenant is 'my own';
create table forced (id int, owner name default current_user); insert into forced values (1);

-- Large objects.
select lo_from_bytea(5000, 'small'), lo_from_bytea(5001, ''), lo_from_bytea(5002, decode(repeat('00ff10aa', 700000), 'hex'));
select lo_put(lo_create(5003), 300000, 'after a hole'), lo_from_bytea(5004, convert_to(repeat('x', 262144), 'UTF8')), lo_from_bytea(5005, convert_to(repeat('y', 262145), 'UTF8'));
select lo_from_bytea(0, ('object ' || i)::bytea) from generate_series(1, 700) i;
comment on large object 5000 is 'it''s \ small';
grant select on large object 5000 to public; grant select, update on large object 5002 to zoo_keeper with grant option;
revoke update on large object 5005 from app;
alter large object 5001 owner to zoo_keeper; set role zoo_keeper; grant select on large object 5002 to "Zoo; visitor"; set role app;

create publication some_rows for table customer (id, mood) where (id > 7), part with (publish = 'insert, update', publish_via_partition_root);
comment on publication some_rows is 'some';
reset role;
