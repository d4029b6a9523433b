//! HTTP requests to endpoints of the operator's.

use crate::actions::Actions;
use crate::words::{check_env, line};
use handover_core::error::{Class, Error, Result};
use handover_core::problem::{Problems, Segment};
use handover_core::redact::Redactor;
use handover_core::value::{Duration, EnvString};
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// How long a request may take unless the plan says otherwise.
const TIMEOUT: Duration = Duration::secs(10);
/// How much of an answer is read.
const LONGEST: usize = 1024 * 1024;
/// The header that holds [`Actions::next_number`].
const SEQUENCE: &str = "handover-sequence";

/// A request and the answer that it should have. Redirects are not followed: they would carry headers and
/// acts to places that nobody reviewed.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// `GET` unless given.
    #[serde(default)]
    pub method: Verb,
    /// Where to; shown and kept with its `${…}` unresolved.
    pub url: EnvString,
    /// Headers.
    #[serde(default)]
    pub headers: BTreeMap<String, EnvString>,
    /// A JSON body; `${…}` in its strings is filled in.
    pub json: Option<Value>,
    /// A body of text.
    pub body: Option<EnvString>,
    /// Status codes that mean success; any 2xx unless given.
    #[serde(default)]
    pub status: Vec<u16>,
    /// What the JSON answer must hold: values by JSON pointer, e.g. `/state: held`.
    #[serde(default)]
    pub expect: BTreeMap<String, Value>,
    /// How long it may take in all; ten seconds unless given.
    pub timeout: Option<Duration>,
    /// PEM file of a certificate authority to trust besides the system's.
    pub ca: Option<PathBuf>,
}

/// A request's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Verb {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    fn method(self) -> Method {
        match self {
            Verb::Get => Method::GET,
            Verb::Head => Method::HEAD,
            Verb::Post => Method::POST,
            Verb::Put => Method::PUT,
            Verb::Patch => Method::PATCH,
            Verb::Delete => Method::DELETE,
        }
    }

    /// Whether it only looks, by the protocol's promise
    /// (<https://www.rfc-editor.org/rfc/rfc9110#name-safe-methods>).
    #[must_use]
    pub fn is_safe(self) -> bool {
        matches!(self, Verb::Get | Verb::Head)
    }
}

/// An answer, whether or not it is the expected one.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body as JSON, if it is JSON.
    pub json: Option<Value>,
    /// How it differs from what was expected; none when it does not. Without the secrets we know.
    pub mismatch: Option<String>,
    /// From sending to the end of the answer.
    pub took: std::time::Duration,
}

impl Http {
    /// Finds what is wrong with it; `path` is relative to the problems' base.
    pub fn check(&self, path: &[Segment], problems: &mut Problems) {
        let at = |field: &str| -> Vec<Segment> { path.iter().cloned().chain([field.into()]).collect() };
        check_env(&self.url, &at("url"), problems);
        let literal = self.url.variables().is_ok_and(|v| v.is_empty());
        match url::Url::parse(&self.url.0) {
            Ok(url) if literal && !matches!(url.scheme(), "http" | "https") => {
                problems
                    .error(at("url"), format!("`{}://` is not HTTP", url.scheme()))
                    .hint("write http://… or https://…");
            }
            Ok(url) if url.password().is_some_and(|p| !p.contains("${") && !p.contains("%7B")) => {
                problems
                    .error(at("url"), "the URL holds a password")
                    .hint("put it into the environment and write ${NAME}");
            }
            Err(e) if literal => {
                problems
                    .error(at("url"), format!("this is not a URL ({e})"))
                    .hint("write http://host:port/path, or ${NAME} for one from the environment");
            }
            _ => {}
        }
        for (name, value) in &self.headers {
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                problems.error(at("headers"), format!("`{name}` cannot be a header's name"));
            }
            check_env(value, &at("headers"), problems);
            let secret = ["authorization", "cookie", "x-api-key", "proxy-authorization"];
            if secret.contains(&name.to_ascii_lowercase().as_str())
                && value.variables().is_ok_and(|v| v.is_empty())
            {
                problems
                    .error(at("headers"), format!("the header `{name}` holds its secret literally"))
                    .hint("put it into the environment and write ${NAME}");
            }
        }
        if self.json.is_some() && self.body.is_some() {
            problems.error(at("body"), "a request has either `json` or `body`").at_key();
        }
        if let Some(body) = &self.body {
            check_env(body, &at("body"), problems);
        }
        if let Some(json) = &self.json {
            for text in strings(json) {
                check_env(&EnvString(text.to_owned()), &at("json"), problems);
            }
        }
        if self.method.is_safe() && (self.json.is_some() || self.body.is_some()) {
            problems
                .warning(at("method"), "a GET or HEAD with a body is ignored by many servers")
                .hint("write `method: POST`, or what the endpoint wants");
        }
        for status in &self.status {
            if StatusCode::from_u16(*status).is_err() || *status > 599 {
                problems.error(at("status"), format!("{status} is not an HTTP status"));
            }
        }
        for pointer in self.expect.keys() {
            if !pointer.is_empty() && !pointer.starts_with('/') {
                problems
                    .error(at("expect"), format!("`{pointer}` is not a JSON pointer"))
                    .hint(format!("write `/{}`", pointer.replace('.', "/")));
            }
        }
        if self.method == Verb::Head && !self.expect.is_empty() {
            problems.error(at("expect"), "an answer to HEAD has no body to look into");
        }
    }

    /// How long it may take, in all.
    #[must_use]
    pub fn limit(&self) -> std::time::Duration {
        self.timeout.unwrap_or(TIMEOUT).0
    }

    /// The request in a line, its environment references unresolved.
    #[must_use]
    pub fn shown(&self) -> String {
        line(&format!("{} {}", self.method.method(), self.url))
    }

    fn redactor(&self, mut redactor: Redactor) -> Redactor {
        let own = self.headers.values().chain([&self.url]).chain(&self.body);
        own.for_each(|text| redactor.add_env(text));
        if let Some(json) = &self.json {
            strings(json).into_iter().for_each(|text| redactor.add_env(&EnvString(text.to_owned())));
        }
        redactor
    }

    fn mismatch(&self, status: StatusCode, body: &[u8], json: Option<&Value>) -> Option<String> {
        let expected =
            if self.status.is_empty() { status.is_success() } else { self.status.contains(&status.as_u16()) };
        if !expected {
            let text = String::from_utf8_lossy(&body[..body.len().min(1000)]);
            let said =
                if text.trim().is_empty() { String::new() } else { format!(", saying: {}", text.trim()) };
            return Some(format!("answered {status}{said}"));
        }
        if self.expect.is_empty() {
            return None;
        }
        let Some(json) = json else { return Some("answered something that is not JSON".to_owned()) };
        self.expect.iter().find_map(|(pointer, wanted)| match json.pointer(pointer) {
            Some(found) if same(found, wanted) => None,
            Some(found) => Some(format!("answered `{pointer}` = {}, not {wanted}", line(&found.to_string()))),
            None => Some(format!("answered without `{pointer}`")),
        })
    }
}

/// Numbers are compared as numbers: 1 and 1.0 are the same.
fn same(found: &Value, wanted: &Value) -> bool {
    match (found.as_f64(), wanted.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= f64::EPSILON * a.abs().max(b.abs()),
        _ => found == wanted,
    }
}

/// All strings in a JSON value.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(strings).collect(),
        Value::Object(map) => map.values().flat_map(strings).collect(),
        _ => Vec::new(),
    }
}

fn resolved(value: &Value) -> Result<Value> {
    Ok(match value {
        Value::String(text) => Value::String(EnvString(text.clone()).resolve()?.expose().to_owned()),
        Value::Array(items) => Value::Array(items.iter().map(resolved).collect::<Result<_>>()?),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(k, v)| Ok((k.clone(), resolved(v)?))).collect::<Result<_>>()?)
        }
        other => other.clone(),
    })
}

impl Actions<'_> {
    /// Sends a request and requires the expected answer.
    ///
    /// # Errors
    /// No answer, or another than expected. Statuses that usually pass (429, 502, 503, 504) are
    /// [`Class::Connection`], others [`Class::External`].
    pub async fn request(&self, http: &Http) -> Result<Answer> {
        let answer = self.send(http).await?;
        let Some(mismatch) = &answer.mismatch else { return Ok(answer) };
        let class =
            if matches!(answer.status, 429 | 502..=504) { Class::Connection } else { Class::External };
        let error = Error::new(class, format!("{} {mismatch}", http.shown()))
            .hint("see what the endpoint's own log says, then `handover resume`");
        // Said by something on the way, which may have passed it on; or by an endpoint that broke off.
        Err(if matches!(answer.status, 408 | 425 | 500..) { error.unanswered() } else { error })
    }

    /// Sends a request; an unexpected answer is told in [`Answer::mismatch`].
    ///
    /// # Errors
    /// No answer within the time limit; a request that cannot be made; the run is asked to stop.
    pub async fn send(&self, http: &Http) -> Result<Answer> {
        let url = http.url.resolve()?;
        let url = reqwest::Url::parse(url.expose()).map_err(|e| {
            Error::usage(format!("`{}` is not a URL once its variables are filled in ({e})", http.url))
                .hint("correct the environment variable; write http://… or https://…")
        })?;
        let mut request = self
            .client(url.scheme() == "https", http.ca.as_deref())?
            .request(http.method.method(), url)
            .timeout(http.limit());
        for (name, value) in &http.headers {
            let mut header = HeaderValue::from_str(value.resolve()?.expose()).map_err(|_| {
                Error::usage(format!("the header `{name}` cannot hold what `{value}` stands for"))
                    .hint("header values are one line of visible characters")
            })?;
            header.set_sensitive(true);
            request = request.header(name, header);
        }
        if let Some(json) = &http.json {
            request = request.json(&resolved(json)?);
        } else if let Some(body) = &http.body {
            request = request.body(body.resolve()?.expose().to_owned());
        }
        if let Some(number) = self.next_number() {
            request = request.header(SEQUENCE, number);
        }
        // The last look at the lease and at a request to stop.
        self.port.proceed()?;
        let begun = Instant::now();
        let exchange = async {
            let mut response = request.send().await?;
            let mut body = Vec::new();
            while body.len() < LONGEST
                && let Some(chunk) = response.chunk().await?
            {
                body.extend_from_slice(&chunk);
            }
            Ok::<_, reqwest::Error>((response.status(), body))
        };
        let (status, body) = tokio::select! {
            result = exchange => result.map_err(|e| failed(http, &e))?,
            () = self.port.stop.cancelled() => return Err(Error::cancelled()),
        };
        let json = serde_json::from_slice(&body).ok();
        let mismatch = http
            .mismatch(status, &body, json.as_ref())
            .map(|text| http.redactor(self.redactor()).clean(&text));
        Ok(Answer { status: status.as_u16(), json, mismatch, took: begun.elapsed() })
    }

    /// Clients are kept for the step: connections are used again, and the trust store is read once.
    fn client(&self, tls: bool, ca: Option<&std::path::Path>) -> Result<reqwest::Client> {
        let key = (tls, ca.map(std::path::Path::to_owned));
        let mut clients = self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        // Plain HTTP must also work where no certificate authority is installed.
        let config = if tls {
            handover_postgres::tls::verifying(ca.map(|file| self.port.base.join(file)).as_deref())?
        } else {
            handover_postgres::tls::unverified()?
        };
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .https_only(tls)
            .redirect(Policy::none())
            .user_agent(concat!("handover/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::internal(format!("no HTTP client ({e})")))?;
        clients.insert(key, client.clone());
        Ok(client)
    }
}

/// The library's error without the URL in it, which may hold a secret.
fn failed(http: &Http, error: &reqwest::Error) -> Error {
    let mut causes = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    let why = if error.is_timeout() {
        format!("no answer within {}", http.timeout.unwrap_or(TIMEOUT))
    } else {
        // The innermost cause says what the system said; none of the causes holds the URL.
        causes.pop().unwrap_or_else(|| "the request failed".to_owned())
    };
    let failed = Error::new(Class::Connection, format!("{}: {why}", http.shown()))
        .hint("see that the endpoint is up and reachable from here, then `handover resume`");
    // Without a connection nothing was sent.
    if error.is_connect() { failed } else { failed.unanswered() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn http(value: Value) -> Http {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn answers_are_compared() {
        let request = http(json!({ "url": "http://x", "expect": { "/a/0": 1.0 } }));
        let say = |status: u16, body: &str| {
            let json = serde_json::from_str(body).ok();
            request.mismatch(StatusCode::from_u16(status).unwrap(), body.as_bytes(), json.as_ref())
        };
        assert_eq!(say(204, r#"{"a":[1]}"#), None);
        assert_eq!(say(200, r#"{"a":[2]}"#).unwrap(), "answered `/a/0` = 2, not 1.0");
        assert_eq!(say(200, "{}").unwrap(), "answered without `/a/0`");
        assert_eq!(say(200, "ok").unwrap(), "answered something that is not JSON");
        assert_eq!(say(302, "").unwrap(), "answered 302 Found");
    }

    #[test]
    fn checks_name_the_field() {
        let mut problems = Problems::new();
        http(json!({
            "url": "ftp://x", "json": {"a": "${oops"}, "body": "x", "status": [99], "expect": {"state": 1},
            "headers": {"Authorization": "Bearer abc", "bad name": "x"}
        }))
        .check(&["http".into()], &mut problems);
        let found: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.path, p.message)).collect();
        assert_eq!(
            found,
            [
                "http.url: `ftp://` is not HTTP",
                "http.headers: the header `Authorization` holds its secret literally",
                "http.headers: `bad name` cannot be a header's name",
                "http.body: a request has either `json` or `body`",
                "http.json: `${oops` has a `${` without its `}`",
                "http.method: a GET or HEAD with a body is ignored by many servers",
                "http.status: 99 is not an HTTP status",
                "http.expect: `state` is not a JSON pointer",
            ]
        );
    }
}
