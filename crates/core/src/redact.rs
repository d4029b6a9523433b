//! Takes known secrets out of text that an outside program or server gave us.
//!
//! One redactor knows what the environment supplied to this process's plan, from the moment it was filled in: whatever
//! goes to the screen, into the journal or into a report passes it ([`clean`]). What an act of its own knows (a
//! command's variables, however short) it adds to a copy.

use crate::connection_string::{keywords, percent_decoded};
use crate::secret::Secret;
use std::borrow::Cow;
use std::sync::{PoisonError, RwLock};

/// Shorter values would turn up by chance everywhere and make the text unreadable.
const SHORTEST: usize = 3;

/// Shorter texts that are no connection string are hidden only where they were given: what a variable holds may be a
/// number or a word of everyday use.
const SHORTEST_ANYWHERE: usize = 8;

/// Passwords that are none.
const OPEN: &[&str] =
    &["handover", "postgres", "password", "secret", "resume", "rollback", "status", "guest"];

static KNOWN: RwLock<Redactor> = RwLock::new(Redactor(Vec::new()));

/// Remembers what the environment supplied.
pub fn learn(supplied: &[Secret]) {
    // Most calls bring nothing new: URLs are filled in once for every look.
    let is_known = |known: &Redactor| supplied.iter().all(|secret| known.0.contains(secret));
    if is_known(&KNOWN.read().unwrap_or_else(PoisonError::into_inner)) {
        return;
    }
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    for secret in supplied {
        // A password that is also the role's name, or a word of our own messages, hides nothing and would make
        // advice unreadable.
        let is_open =
            |password: &str| OPEN.contains(&password) || secret.expose().match_indices(password).count() > 1;
        if !passwords(secret.expose()).iter().any(|password| is_open(password)) {
            known.add_passwords(secret);
        }
        if secret.expose().len() >= SHORTEST_ANYWHERE {
            known.add(secret.clone());
        }
    }
}

/// The text without any secret that this process knows.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    if known.0.iter().any(|secret| text.contains(secret.expose())) {
        Cow::Owned(known.clean(text))
    } else {
        Cow::Borrowed(text)
    }
}

/// The values that must not be shown.
#[derive(Debug, Clone, Default)]
pub struct Redactor(Vec<Secret>);

impl Redactor {
    /// What this process knows already.
    #[must_use]
    pub fn of_process() -> Self {
        KNOWN.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One value to hide.
    pub fn add(&mut self, secret: Secret) {
        if secret.expose().len() >= SHORTEST && !self.0.contains(&secret) {
            self.0.push(secret);
            // The longest first: a password must not be taken out of a URL whose rest would then stay.
            self.0.sort_by_key(|s| std::cmp::Reverse(s.expose().len()));
        }
    }

    /// A URL or a `key=value` connection string, and what is secret in it: each password as it stands there, as
    /// it is meant, and as another form of connection string would write it. Any other text is hidden as a whole.
    pub fn add_url(&mut self, url: &Secret) {
        self.add(url.clone());
        self.add_passwords(url);
    }

    fn add_passwords(&mut self, url: &Secret) {
        for password in passwords(url.expose()) {
            let decoded = percent_decoded(&password);
            for plain in [password.as_str(), decoded.as_str()] {
                self.add(Secret::new(plain));
                self.add(Secret::new(percent_encoded(plain)));
                self.add(Secret::new(plain.replace('\\', "\\\\").replace('\'', "\\'")));
            }
        }
    }

    /// The text without them.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose(), "[secret]"))
    }
}

/// The passwords in a connection string, as they stand there: of the part before the `@`, and of parameters, which
/// are a URL's query or the whole string.
fn passwords(text: &str) -> Vec<String> {
    const KEYS: &[&str] = &["password", "sslpassword"];
    let mut out = Vec::new();
    if let Some((_, rest)) = text.split_once("://") {
        let userinfo = rest.split(['/', '?', '#']).next().and_then(|authority| authority.rsplit_once('@'));
        // A password with a slash of its own.
        let userinfo = userinfo.or_else(|| rest.rsplit_once('@')).map(|(userinfo, _)| userinfo);
        out.extend(userinfo.and_then(|userinfo| userinfo.split_once(':')).map(|(_, p)| p.to_owned()));
        let query = rest.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        out.extend(pairs.filter(|(key, _)| KEYS.contains(key)).map(|(_, value)| value.to_owned()));
    } else if let Ok(pairs) = keywords(text) {
        out.extend(pairs.into_iter().filter(|(key, _)| KEYS.contains(&key.as_str())).map(|(_, value)| value));
    }
    out.retain(|password| !password.is_empty());
    out
}

/// Everything but what no URL needs to escape.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_their_passwords_go() {
        let mut redactor = Redactor::default();
        redactor.add_url(&Secret::new("postgres://u:p%40ss+w@h/db"));
        let text = redactor.clean("cannot reach postgres://u:p%40ss+w@h/db with p@ss+w or p%40ss+w");
        assert_eq!(text, "cannot reach [secret] with [secret] or [secret]");
    }

    #[test]
    fn connection_strings_of_either_form_are_known_in_both() {
        for text in [
            "host=h password='p@s/s w'",
            "host=h password=p@s/s\\ w dbname=d",
            "postgres://u:p%40s%2Fs%20w@h/d",
            "postgres://u@h/d?password=p%40s%2Fs%20w",
        ] {
            let mut redactor = Redactor::default();
            redactor.add_url(&Secret::new(text));
            for shown in ["p@s/s w", "p%40s%2Fs%20w", text] {
                let clean = redactor.clean(&format!("no {shown} here"));
                assert!(!clean.contains("s w") && !clean.contains("s%20w"), "{text}: {clean}");
            }
        }
        let mut redactor = Redactor::default();
        redactor.add_url(&Secret::new("amqp://u:pa/ss@h/v"));
        assert_eq!(redactor.clean("login with pa/ss"), "login with [secret]");
    }

    #[test]
    fn short_values_stay() {
        let mut redactor = Redactor::default();
        redactor.add(Secret::new("1"));
        assert_eq!(redactor.clean("exit 1"), "exit 1");
    }
}
