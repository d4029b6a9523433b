-- $rows access tokens, half as many refresh tokens, a quarter as many consents. Everything follows from the
-- row's number, so that the traffic knows each token without reading it: see `dataset.rs` for the same rules.
insert into setting values ('access_token_lifetime', '3600');

insert into client (id, name, secret_hash, redirect_uris, owner, policy_uri, contacts, metadata, created_at)
select 'client-' || c,
       'Application ' || c,
       '$2a$10$' || substr(encode(sha256(convert_to('secret:' || c, 'UTF8')), 'hex'), 1, 53),
       'https://app-' || c || '.example/callback|https://app-' || c || '.example/silent',
       'team-' || c % 40,
       'https://app-' || c || '.example/policy',
       'ops-' || c % 40 || '@example.org',
       jsonb_build_object('tier', (array['free', 'team', 'enterprise'])[1 + c % 3], 'region', 'eu-' || c % 4),
       timestamptz '2024-01-01 00:00Z' + c * interval '1 hour'
from generate_series(0, $clients - 1) c;

insert into login_session (id, subject, authenticated_at, remember)
select 'login-' || s, 'user-' || s % $subjects, timestamptz '2025-10-01 00:00Z' + s * interval '7 seconds', s % 3 > 0
from generate_series(0, $consents / 2 - 1) s;

-- Trouble: every 100th consent is for a client that was deleted long ago. Every 3rd is remembered for ever
-- (remember_for 0) and every 7th was given without a login session of its own.
insert into consent (challenge, client_id, subject, login_session_id, granted_scope, remember, remember_for,
                     claims_access, claims_id, requested_at, handled_at)
select 'consent-' || j,
       case when j % 100 = 8 then 'deleted-' || j else 'client-' || j % $clients end,
       'user-' || j % $subjects,
       case when j % 7 > 0 then 'login-' || j % ($consents / 2) end,
       'openid offline profile',
       true,
       case when j % 3 = 0 then 0 else 315360000 end,
       jsonb_build_object('tenant', 'tenant-' || j % 97, 'roles', jsonb_build_array('reader', 'role-' || j % 12)),
       jsonb_build_object('email', 'user-' || j % $subjects || '@example.org', 'email_verified', j % 5 > 0),
       timestamptz '2025-10-01 00:00Z' + j * interval '7 seconds',
       timestamptz '2025-10-01 00:00Z' + j * interval '7 seconds' + interval '3 seconds'
from generate_series(0, $consents - 1) j;

-- Trouble: every 1000th token belongs to a consent that is gone; those of a deleted client are still here.
-- Every 10th was revoked, and every 50th has expired and waits for the purge job.
insert into access_token (signature, request_id, challenge, client_id, subject, granted_scope, form_data,
                          session_data, active, requested_at, expires_at)
select encode(sha256(convert_to('access-' || i, 'UTF8')), 'hex'),
       'request-' || i,
       case when i % 1000 = 14 then 'lost-' || i else 'consent-' || j end,
       case when j % 100 = 8 then 'deleted-' || j else 'client-' || j % $clients end,
       'user-' || j % $subjects,
       'openid offline profile',
       'grant_type=authorization_code&client_id=client-' || j % $clients || '&code_verifier=' || md5('v' || i)
           || '&redirect_uri=https%3A%2F%2Fapp.example%2Fcallback&state=' || md5('s' || i),
       '{"id_token":{"jti":"' || md5('j' || i) || '","iss":"https://id.example","sub":"user-' || j % $subjects
           || '","nonce":"' || md5('n' || i) || '"},"headers":{"kid":"public:' || md5('k' || i % 7)
           || '"},"username":"","consent_challenge":"consent-' || j || '","exclude_not_before":false}',
       i % 10 <> 3,
       timestamptz '2025-10-01 00:00Z' + i * interval '1 second',
       case when i % 50 = 21 then timestamptz '2025-12-31 00:00Z' else timestamptz '2099-01-01 00:00Z' end
from (select i, i % $consents as j from generate_series(0, $rows - 1) i) as token;

insert into refresh_token (signature, request_id, challenge, client_id, subject, granted_scope, form_data,
                           session_data, active, requested_at, expires_at)
select encode(sha256(convert_to('refresh-' || i, 'UTF8')), 'hex'),
       'request-' || i, a.challenge, a.client_id, a.subject, a.granted_scope, a.form_data, a.session_data,
       a.active, a.requested_at, timestamptz '2099-01-01 00:00Z'
from generate_series(0, $rows - 1, 2) i
join access_token a on a.signature = encode(sha256(convert_to('access-' || i, 'UTF8')), 'hex');

insert into jti_blacklist
select encode(sha256(convert_to('jti-' || i, 'UTF8')), 'hex'), timestamptz '2099-01-01 00:00Z'
from generate_series(0, $rows / 20 - 1) i;

analyze;
