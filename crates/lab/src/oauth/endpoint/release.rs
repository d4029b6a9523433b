//! The service's releases: the same requests, in SQL for the schema that each release knows.

use serde::{Deserialize, Serialize};

/// A release of the service's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// Claims are columns of `consent`.
    #[serde(rename = "1.10")]
    V1_10,
    /// Claims have a table of their own.
    #[serde(rename = "1.11")]
    V1_11,
    /// One table of flows, one table of tokens.
    #[serde(rename = "2.0")]
    V2,
}

impl Release {
    /// Statements of an issue after those for the tokens: `$1` consent, `$2` client, `$3` subject, `$4` claims.
    pub(super) fn insert_consent(self) -> &'static [&'static str] {
        match self {
            Release::V1_10 => {
                &["insert into consent (challenge, client_id, subject, granted_scope, remember,
                     remember_for, claims_access, requested_at, handled_at)
                 values ($1, $2, $3, 'openid offline', true, 2592000, $4, now(), now())"]
            }
            Release::V1_11 => &[
                "insert into consent (challenge, client_id, subject, granted_scope, remember, remember_for,
                     requested_at, handled_at)
                 values ($1, $2, $3, 'openid offline', true, 2592000, now(), now())",
                "insert into consent_claims (challenge, claims_access) values ($1, $2)",
            ],
            Release::V2 => &["insert into flow (id, client_id, subject, granted_scope, remember, expires_at,
                     claims_access, requested_at, handled_at)
                 values ($1, $2, $3, 'openid offline', true, now() + interval '30 days', $4, now(), now())"],
        }
    }

    /// `$1` signature, `$2` request, `$3` consent, `$4` client, `$5` subject.
    pub(super) fn insert_access(self) -> &'static str {
        match self {
            Release::V1_10 | Release::V1_11 => {
                "insert into access_token (signature, request_id, challenge, client_id, subject, granted_scope,
                     requested_at, expires_at)
                 values ($1, $2, $3, $4, $5, 'openid offline', now(), now() + make_interval(
                     secs => (select value::int from setting where name = 'access_token_lifetime')))"
            }
            Release::V2 => {
                "insert into oauth_token (kind, signature, request_id, flow_id, client_id, subject, scope,
                     requested_at, expires_at)
                 values ('access', $1, $2, $3, $4, $5, '{openid,offline}', now(), now() + make_interval(
                     secs => (select value::int from setting where name = 'access_token_lifetime')))"
            }
        }
    }

    /// The same parameters.
    pub(super) fn insert_refresh(self) -> &'static str {
        match self {
            Release::V1_10 | Release::V1_11 => {
                "insert into refresh_token (signature, request_id, challenge, client_id, subject, granted_scope,
                     requested_at, expires_at)
                 values ($1, $2, $3, $4, $5, 'openid offline', now(), now() + interval '30 days')"
            }
            Release::V2 => {
                "insert into oauth_token (kind, signature, request_id, flow_id, client_id, subject, scope,
                     requested_at, expires_at)
                 values ('refresh', $1, $2, $3, $4, $5, '{openid,offline}', now(), now() + interval '30 days')"
            }
        }
    }

    /// `$1` signature of an access token; gives active, subject, claims.
    pub(super) fn introspect(self) -> &'static str {
        match self {
            Release::V1_10 => {
                "select t.active and t.expires_at > now(), t.subject, c.claims_access
                 from access_token t left join consent c on c.challenge = t.challenge where t.signature = $1"
            }
            Release::V1_11 => {
                "select t.active and t.expires_at > now(), t.subject, c.claims_access
                 from access_token t left join consent_claims c on c.challenge = t.challenge
                 where t.signature = $1"
            }
            Release::V2 => {
                "select t.active and t.expires_at > now(), t.subject, f.claims_access
                 from oauth_token t join flow f on f.id = t.flow_id
                 where t.signature = $1 and t.kind = 'access'"
            }
        }
    }

    /// `$1` signature of a refresh token; gives request, consent, client, subject of a live one, and locks it.
    pub(super) fn redeem(self) -> &'static str {
        match self {
            Release::V1_10 | Release::V1_11 => {
                "select request_id, challenge, client_id, subject from refresh_token
                 where signature = $1 and active and expires_at > now() for update"
            }
            Release::V2 => {
                "select request_id, flow_id, client_id, subject from oauth_token
                 where signature = $1 and kind = 'refresh' and active and expires_at > now() for update"
            }
        }
    }

    /// `$1` signature of either token; gives the request it belongs to.
    pub(super) fn request_of(self) -> &'static str {
        match self {
            Release::V1_10 | Release::V1_11 => {
                "select request_id from access_token where signature = $1
                 union all select request_id from refresh_token where signature = $1"
            }
            Release::V2 => "select request_id from oauth_token where signature = $1",
        }
    }

    /// `$1` request; makes its tokens invalid.
    pub(super) fn deactivate(self) -> &'static [&'static str] {
        match self {
            Release::V1_10 | Release::V1_11 => &[
                "update access_token set active = false where request_id = $1 and active",
                "update refresh_token set active = false where request_id = $1 and active",
            ],
            Release::V2 => &["update oauth_token set active = false where request_id = $1 and active"],
        }
    }

    /// Deletes some expired tokens, as the nightly purge would.
    pub(super) fn purge(self) -> &'static str {
        match self {
            Release::V1_10 | Release::V1_11 => {
                "delete from access_token where signature = any (array(
                     select signature from access_token where expires_at < now() limit 20))"
            }
            Release::V2 => {
                "delete from oauth_token where signature = any (array(
                     select signature from oauth_token where expires_at < now() limit 20))"
            }
        }
    }
}
