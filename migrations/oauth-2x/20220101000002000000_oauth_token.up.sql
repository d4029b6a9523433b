-- One table for both kinds of tokens, with the constraints that 1.x never had.
CREATE TABLE oauth_token (
    signature    text PRIMARY KEY,
    kind         text NOT NULL CHECK (kind IN ('access', 'refresh')),
    request_id   text NOT NULL,
    flow_id      text NOT NULL REFERENCES flow (id),
    client_id    text NOT NULL REFERENCES client (id),
    subject      text NOT NULL,
    scope        text[] NOT NULL DEFAULT '{}',
    audience     text NOT NULL DEFAULT '',
    form_data    text NOT NULL DEFAULT '',
    session      jsonb NOT NULL DEFAULT '{}',
    active       boolean NOT NULL DEFAULT true,
    requested_at timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL
);

INSERT INTO oauth_token
SELECT signature, 'access', request_id, challenge, client_id, subject, string_to_array(granted_scope, ' '), audience,
       form_data, session_data::jsonb, active, requested_at, expires_at
FROM access_token
UNION ALL
SELECT signature, 'refresh', request_id, challenge, client_id, subject, string_to_array(granted_scope, ' '), audience,
       form_data, session_data::jsonb, active, requested_at, expires_at
FROM refresh_token;

DROP TABLE refresh_token;
DROP TABLE access_token;
