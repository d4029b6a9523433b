CREATE TABLE access_token (
    signature     text PRIMARY KEY,
    request_id    text NOT NULL,
    challenge     text NOT NULL,
    client_id     text NOT NULL,
    subject       text NOT NULL,
    granted_scope text NOT NULL DEFAULT '',
    form_data     text NOT NULL DEFAULT '',
    session_data  text NOT NULL DEFAULT '{}',
    active        boolean NOT NULL DEFAULT true,
    requested_at  timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    audience      text NOT NULL DEFAULT ''
);
CREATE TABLE refresh_token (LIKE access_token INCLUDING ALL);
INSERT INTO access_token
SELECT signature, request_id, flow_id, client_id, subject, array_to_string(scope, ' '), form_data, session::text,
       active, requested_at, expires_at, audience
FROM oauth_token WHERE kind = 'access';
INSERT INTO refresh_token
SELECT signature, request_id, flow_id, client_id, subject, array_to_string(scope, ' '), form_data, session::text,
       active, requested_at, expires_at, audience
FROM oauth_token WHERE kind = 'refresh';
CREATE INDEX access_token_request_id ON access_token (request_id);
CREATE INDEX refresh_token_request_id ON refresh_token (request_id);
DROP TABLE oauth_token;
