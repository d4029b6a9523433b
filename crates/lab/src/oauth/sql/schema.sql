-- An OAuth engine's schema as its 1.x releases grew it: no foreign keys, sessions as text, and a consent that
-- carries the claims of its tokens. Belongs to the role of the application.
create table client (
    id              text primary key,
    name            text not null,
    secret_hash     text,
    redirect_uris   text not null default '',
    grant_types     text not null default 'authorization_code|refresh_token',
    scope           text not null default 'openid offline',
    owner           text not null default '',
    policy_uri      text not null default '',
    contacts        text not null default '',
    metadata        jsonb not null default '{}',
    created_at      timestamptz not null default now()
);

create table login_session (
    id               text primary key,
    subject          text not null,
    authenticated_at timestamptz not null,
    remember         boolean not null default false
);

-- What a person agreed to. remember_for is in seconds, and 0 means: until it is revoked.
create table consent (
    challenge        text primary key,
    client_id        text not null,
    subject          text not null,
    login_session_id text,
    granted_scope    text not null default '',
    remember         boolean not null default false,
    remember_for     integer not null default 0,
    claims_access    jsonb,
    claims_id        jsonb,
    requested_at     timestamptz not null,
    handled_at       timestamptz
);

-- Tokens are known by the SHA-256 of their text; the text itself is nowhere in the database.
create table access_token (
    signature     text primary key,
    request_id    text not null,
    challenge     text not null,
    client_id     text not null,
    subject       text not null,
    granted_scope text not null default '',
    form_data     text not null default '',
    session_data  text not null default '{}',
    active        boolean not null default true,
    requested_at  timestamptz not null,
    expires_at    timestamptz not null
);
create index access_token_request_id on access_token (request_id);

create table refresh_token (
    signature     text primary key,
    request_id    text not null,
    challenge     text not null,
    client_id     text not null,
    subject       text not null,
    granted_scope text not null default '',
    form_data     text not null default '',
    session_data  text not null default '{}',
    active        boolean not null default true,
    requested_at  timestamptz not null,
    expires_at    timestamptz not null
);
create index refresh_token_request_id on refresh_token (request_id);

-- Assertions that were used once and must not be used again.
create table jti_blacklist (
    jti_hash   text primary key,
    expires_at timestamptz not null
);

-- What operators may turn while the service runs.
create table setting (
    name  text primary key,
    value text not null
);
