CREATE TABLE consent (
    challenge        text PRIMARY KEY,
    client_id        text NOT NULL,
    subject          text NOT NULL,
    login_session_id text,
    granted_scope    text NOT NULL DEFAULT '',
    remember         boolean NOT NULL DEFAULT false,
    remember_for     integer NOT NULL DEFAULT 0,
    claims_access    jsonb,
    claims_id        jsonb,
    requested_at     timestamptz NOT NULL,
    handled_at       timestamptz,
    granted_audience text NOT NULL DEFAULT ''
);
CREATE TABLE consent_claims (
    challenge     text PRIMARY KEY,
    claims_access jsonb,
    claims_id     jsonb
);
INSERT INTO consent
SELECT id, client_id, subject, login_session_id, granted_scope, remember,
       coalesce(extract(epoch FROM expires_at - handled_at), 0)::integer, NULL, NULL, requested_at, handled_at,
       granted_audience
FROM flow;
INSERT INTO consent_claims SELECT id, claims_access, claims_id FROM flow;
DROP TABLE flow;
