CREATE INDEX CONCURRENTLY oauth_token_request_id ON oauth_token (request_id);
CREATE INDEX CONCURRENTLY oauth_token_expires_at ON oauth_token (expires_at);
CREATE INDEX CONCURRENTLY oauth_token_flow_id ON oauth_token (flow_id);
CREATE INDEX CONCURRENTLY flow_subject_client ON flow (subject, client_id);
