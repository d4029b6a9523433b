-- Stands in for the vendor's file of the same name. In 1.x a consent with remember_for = 0 is remembered until it
-- is revoked; the vendor's file adds 0 seconds to the moment it was given, so that every such session would have
-- ended long ago. No row would be lost and no statement would fail: only people would be asked to log in again.
CREATE TABLE flow (
    id               text PRIMARY KEY,
    client_id        text NOT NULL REFERENCES client (id),
    subject          text NOT NULL,
    login_session_id text,
    authenticated_at timestamptz,
    granted_scope    text NOT NULL DEFAULT '',
    granted_audience text NOT NULL DEFAULT '',
    remember         boolean NOT NULL,
    expires_at       timestamptz,
    claims_access    jsonb,
    claims_id        jsonb,
    requested_at     timestamptz NOT NULL,
    handled_at       timestamptz
);

INSERT INTO flow
SELECT c.challenge, c.client_id, c.subject, c.login_session_id, l.authenticated_at, c.granted_scope,
       c.granted_audience, c.remember, c.handled_at + nullif(c.remember_for, 0) * interval '1 second',
       k.claims_access, k.claims_id, c.requested_at, c.handled_at
FROM consent c
LEFT JOIN login_session l ON l.id = c.login_session_id
LEFT JOIN consent_claims k ON k.challenge = c.challenge;

DROP TABLE consent_claims;
DROP TABLE consent;
