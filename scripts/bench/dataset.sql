-- The database that scripts/bench/copy copies: an OAuth service's tables, its audit trail, payments and documents.
--
-- psql -v mb=2000 -f dataset.sql     makes about that many megabytes of tables (heap and TOAST), and indexes on top.
--
-- Every value follows from its row's number, so the same size gives the same rows on every machine.

\set ON_ERROR_STOP on
-- Rows per megabyte were counted out for four fifths.
select (:mb * 0.805)::int as scale \gset
set synchronous_commit = off;
set maintenance_work_mem = '512MB';
set client_min_messages = warning;

create function pg_temp.hex(n bigint, salt text) returns text language sql immutable
    return encode(sha256(convert_to(salt || n, 'UTF8')), 'hex');
create function pg_temp.id(n bigint, salt text) returns uuid language sql immutable
    return md5(salt || n)::uuid;
create function pg_temp.at(n bigint) returns timestamptz language sql immutable
    return timestamptz '2024-01-01 00:00:00+00' + n * interval '0.731 seconds';
-- Claims of a session, about 350 bytes.
create function pg_temp.session(n bigint) returns jsonb language sql immutable
    return jsonb_build_object(
        'sub', 'user-' || n % 400009, 'iss', 'https://auth.example.com/', 'amr', jsonb_build_array('pwd', 'otp'),
        'auth_time', 1700000000 + n, 'acr', n % 3, 'headers', jsonb_build_object('kid', md5('key' || n % 7)),
        'ext', jsonb_build_object('tenant', 'tenant-' || n % 211, 'email', 'user-' || n % 400009 || '@example.com',
                                  'locale', (array['de-DE', 'en-US', 'fr-FR', 'nl-NL'])[n % 4 + 1], 'trusted', n % 5 = 0));

create schema oauth;
create schema audit;
create domain oauth.subject as varchar(255) check (value <> '');
create type audit.kind as enum ('login', 'consent', 'token', 'refresh', 'revoke', 'logout');

-- Small tables, as every service has them.
create table oauth.network (id uuid primary key, name text not null unique, created_at timestamptz not null);
insert into oauth.network select pg_temp.id(n, 'network'), 'network ' || n, pg_temp.at(n) from generate_series(0, 19) n;

create table oauth.jwk (
    id bigint generated always as identity primary key, set_name text not null, kid text not null,
    version int not null default 0, key_data bytea not null, created_at timestamptz not null default now(),
    unique (set_name, kid, version));
insert into oauth.jwk (set_name, kid, key_data)
select 'set-' || n % 5, pg_temp.hex(n, 'kid'), sha512(n::text::bytea) || sha512(('x' || n)::bytea) from generate_series(1, 300) n;

create table oauth.scope (name text primary key, description text, claims text[] not null, rank real);
insert into oauth.scope select 'scope.' || n, repeat('about ', n % 9), array['a' || n, 'b' || n % 3], n / 7.0
from generate_series(1, 500) n;

create table oauth.locale (code varchar(16) primary key, name text not null, direction "char" not null default 'l');
insert into oauth.locale (code, name) select 'x-' || n, 'language ' || n from generate_series(1, 400) n;

create table oauth.trusted_issuer (
    id uuid primary key, network uuid not null references oauth.network, issuer text not null, subject oauth.subject,
    scope text not null, key_id bigint references oauth.jwk, valid tstzrange, unique (issuer, subject, key_id));
insert into oauth.trusted_issuer
select pg_temp.id(n, 'issuer'), pg_temp.id(n % 20, 'network'), 'https://issuer-' || n % 40 || '.example.com', 'subject-' || n,
       'openid offline', n % 300 + 1, tstzrange(pg_temp.at(n), pg_temp.at(n + 100000)) from generate_series(1, 2000) n;

create table audit.setting (name text primary key, value jsonb not null, changed date not null default current_date);
insert into audit.setting (name, value) select 'setting.' || n, pg_temp.session(n) from generate_series(1, 1000) n;

-- Clients: some thousands, with documents.
create table oauth.client (
    id varchar(255) primary key, network uuid not null references oauth.network, name text not null, secret text not null,
    redirect_uris jsonb not null, scope text not null, metadata jsonb not null default '{}', owner text not null default '',
    token_lifetime interval, rate numeric(6, 3), created_at timestamptz not null, updated_at timestamptz not null);
insert into oauth.client
select 'client-' || n, pg_temp.id(n % 20, 'network'), 'Client ' || n, pg_temp.hex(n, 'secret'),
       jsonb_build_array('https://app-' || n || '.example.com/callback', 'http://127.0.0.1:' || 4000 + n % 999),
       'openid offline profile', pg_temp.session(n), '', n % 24 * interval '1 hour', n % 1000 / 7.0, pg_temp.at(n), pg_temp.at(n + 999)
from generate_series(1, 2000 + 4 * :scale) n;

-- The first of two large tables: logins and consents in one row, text keys, a wide row.
create table oauth.flow (
    login_challenge varchar(40) primary key, network uuid not null, client_id varchar(255) not null, subject oauth.subject not null,
    requested_scope text[] not null, request_url text not null, session_id varchar(40), login_verifier varchar(40) not null,
    login_csrf varchar(40) not null, state smallint not null, remember boolean not null default false, remember_for int not null,
    requested_at timestamptz not null, authenticated_at timestamp, consent_challenge varchar(40), consent_verifier varchar(40),
    consent_session jsonb not null default '{}', error jsonb);
insert into oauth.flow
select left(pg_temp.hex(n, 'flow'), 32), pg_temp.id(n % 20, 'network'), 'client-' || n % (2000 + 4 * :scale) + 1, 'user-' || n % 400009,
       array['openid', 'offline', 'scope.' || n % 500], 'https://auth.example.com/oauth2/auth?client_id=client-' || n
       || '&response_type=code&scope=openid+offline&state=' || md5('state' || n) || '&nonce=' || md5('nonce' || n),
       md5('session' || n / 3), md5('verifier' || n), md5('csrf' || n), n % 6, n % 2 = 0, n % 3600, pg_temp.at(n),
       case when n % 9 > 0 then pg_temp.at(n + 5)::timestamp end, case when n % 10 > 0 then md5('challenge' || n) end,
       case when n % 10 > 0 then md5('consent' || n) end, pg_temp.session(n), null
from generate_series(1, 380 * :scale) n;

-- The second: access tokens, keyed by signature, six indexes.
create table oauth.access_token (
    signature varchar(255) primary key, request_id varchar(40) not null, requested_at timestamptz not null,
    client_id varchar(255) not null, scope text not null, granted_scope text not null, form_data text not null,
    session_data jsonb not null, subject oauth.subject not null, active boolean not null default true, network uuid not null,
    challenge_id varchar(40), expires_at timestamptz);
insert into oauth.access_token
select pg_temp.hex(n, 'access'), pg_temp.id(n / 2, 'request')::text, pg_temp.at(n), 'client-' || n % (2000 + 4 * :scale) + 1,
       'openid offline scope.' || n % 500, 'openid offline', 'grant_type=authorization_code&code=' || pg_temp.hex(n, 'code'),
       pg_temp.session(n), 'user-' || n % 400009, n % 10 < 8, pg_temp.id(n % 20, 'network'),
       case when n % 4 > 0 then left(pg_temp.hex(n % (380 * :scale) + 1, 'flow'), 32) end, pg_temp.at(n + 4924)
from generate_series(1, 440 * :scale) n;

create table oauth.refresh_token (like oauth.access_token including all);
insert into oauth.refresh_token select * from oauth.access_token order by requested_at limit 70 * :scale;

-- Narrow rows with an integer key: what every tool can cut in pieces.
create table audit.event (
    id bigint generated by default as identity primary key, at timestamptz not null, kind audit.kind not null, actor oauth.subject not null,
    client_id varchar(255), address inet not null, device uuid not null, amount numeric(18, 4), took double precision, flags int not null,
    detail jsonb not null);
insert into audit.event (at, kind, actor, client_id, address, device, amount, took, flags, detail)
select pg_temp.at(n), (enum_range(null::audit.kind))[n % 6 + 1], 'user-' || n % 400009, 'client-' || n % (2000 + 4 * :scale) + 1,
       '10.0.0.0'::inet + n % 16000000, pg_temp.id(n % 90001, 'device'), case when n % 3 = 0 then n * 1.0001 end, n / 3.0, n % 64,
       jsonb_build_object('path', '/oauth2/token', 'status', 200 + n % 5, 'trace', md5('trace' || n))
from generate_series(1, 1500 * :scale) n;

create table audit.payment (
    id bigint primary key, account uuid not null, booked date not null, net numeric(20, 4) not null, vat numeric(5, 4) not null,
    fee numeric, currency char(3) not null, reference text not null, gross numeric generated always as (net * (1 + vat)) stored);
insert into audit.payment (id, account, booked, net, vat, fee, currency, reference)
select n, pg_temp.id(n % 30011, 'account'), date '2024-01-01' + (n % 700)::int, n * 1.37, 0.19, n / 1000.0, 'EUR', 'INV-' || n
from generate_series(1, 400 * :scale) n;

-- Documents of some kilobytes that compress, and attachments that do not.
create table audit.profile (
    id uuid primary key, subject oauth.subject not null unique, document jsonb not null, changed_at timestamptz not null);
insert into audit.profile
select pg_temp.id(n, 'profile'), 'user-' || n,
       (select jsonb_object_agg('claim-' || i, pg_temp.session(n * 31 + i)) from generate_series(1, 12) i), pg_temp.at(n)
from generate_series(1, 30 * :scale) n;

create table audit.attachment (
    id uuid primary key, event_id bigint not null, name text not null, digest bytea not null, content bytea not null);
insert into audit.attachment
select pg_temp.id(n, 'attachment'), n * 7, 'attachment-' || n || '.pdf', sha256(convert_to(n::text, 'UTF8')),
       (select string_agg(sha512(convert_to(n || ':' || i, 'UTF8')), '') from generate_series(1, 110) i)
from generate_series(1, 13 * :scale) n;

-- Indexes, then foreign keys, as pg_dump would have them.
create index client_network on oauth.client (network, id);
create index client_owner on oauth.client (owner, created_at);

create unique index flow_consent_challenge on oauth.flow (consent_challenge);
create unique index flow_login_verifier on oauth.flow (login_verifier);
create index flow_subject on oauth.flow (subject, client_id, network);
create index flow_session on oauth.flow (session_id);
create index flow_requested on oauth.flow (requested_at);
create index flow_client on oauth.flow (client_id) include (state);

create index access_token_request on oauth.access_token (request_id);
create index access_token_requested on oauth.access_token (requested_at);
create index access_token_client on oauth.access_token (client_id);
create index access_token_subject on oauth.access_token (subject, expires_at) where active;
create index access_token_challenge on oauth.access_token (challenge_id);
create index refresh_token_request on oauth.refresh_token (request_id);
create index refresh_token_client on oauth.refresh_token (client_id, subject);
create index refresh_token_challenge on oauth.refresh_token (challenge_id);

create index event_at on audit.event (at);
create index event_kind on audit.event (kind, at);
create index event_actor on audit.event (lower(actor::text), at);
create index event_address on audit.event (address);
create index event_amount on audit.event (amount) where amount is not null;
create index payment_account on audit.payment (account, booked);
create unique index payment_reference on audit.payment (reference);
create index payment_gross on audit.payment (gross);
create index profile_document on audit.profile ((document -> 'claim-1' ->> 'sub'));
create index profile_changed on audit.profile (changed_at);
create index attachment_event on audit.attachment (event_id);
create unique index attachment_digest on audit.attachment (digest);
create index setting_value on audit.setting using gin (value jsonb_path_ops);

alter table oauth.client add constraint client_positive check (rate >= 0);
alter table oauth.flow
    add constraint flow_network foreign key (network) references oauth.network,
    add constraint flow_client foreign key (client_id) references oauth.client on delete cascade;
alter table oauth.access_token
    add constraint access_token_network foreign key (network) references oauth.network,
    add constraint access_token_client foreign key (client_id) references oauth.client on delete cascade,
    add constraint access_token_challenge foreign key (challenge_id) references oauth.flow on delete set null;
alter table oauth.refresh_token
    add constraint refresh_token_client foreign key (client_id) references oauth.client on delete cascade,
    add constraint refresh_token_challenge foreign key (challenge_id) references oauth.flow on delete set null;
alter table audit.event add constraint event_client foreign key (client_id) references oauth.client;
alter table audit.attachment add constraint attachment_event foreign key (event_id) references audit.event;

create view oauth.live_token as
    select t.signature, t.subject, f.requested_at from oauth.access_token t join oauth.flow f on f.login_challenge = t.challenge_id
    where t.active;
create function audit.stamp() returns trigger language plpgsql as $$ begin new.changed_at := now(); return new; end $$;
create trigger profile_stamp before update on audit.profile for each row execute function audit.stamp();
vacuum (analyze);
