//! Takes known secrets out of text that an outside program or server gave us.

use crate::value::{EnvString, Secret};

/// Shorter values would turn up by chance everywhere and make the text unreadable.
const SHORTEST: usize = 3;

/// The values that must not be shown.
#[derive(Debug, Clone, Default)]
pub struct Redactor(Vec<Secret>);

impl Redactor {
    /// One value to hide.
    pub fn add(&mut self, secret: Secret) {
        if secret.expose().len() >= SHORTEST && !self.0.contains(&secret) {
            self.0.push(secret);
            // The longest first: a password must not be taken out of a URL whose rest would then stay.
            self.0.sort_by_key(|s| std::cmp::Reverse(s.expose().len()));
        }
    }

    /// What the environment supplies to `text`, and the whole that it makes.
    pub fn add_env(&mut self, text: &EnvString) {
        let variables = text.variables().unwrap_or_default();
        if variables.is_empty() {
            return;
        }
        for value in variables.iter().filter_map(|name| std::env::var(name).ok()) {
            self.add(Secret::new(value));
        }
        if let Ok(whole) = text.resolve() {
            self.add(whole);
        }
    }

    /// A URL and the password in it.
    pub fn add_url(&mut self, url: &Secret) {
        self.add(url.clone());
        if let Ok(parsed) = url::Url::parse(url.expose())
            && let Some(password) = parsed.password()
        {
            self.add(Secret::new(password));
            if let Ok(plain) = percent_decoded(password) {
                self.add(Secret::new(plain));
            }
        }
    }

    /// The text without them.
    #[must_use]
    pub fn clean(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose(), "[secret]"))
    }
}

/// Percent-decoding by way of a query string, which is the one decoder that `url` offers.
fn percent_decoded(text: &str) -> Result<String, ()> {
    let query = format!("v={}", text.replace('+', "%2B"));
    url::form_urlencoded::parse(query.as_bytes()).next().map(|(_, value)| value.into_owned()).ok_or(())
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
    fn short_values_stay() {
        let mut redactor = Redactor::default();
        redactor.add(Secret::new("1"));
        assert_eq!(redactor.clean("exit 1"), "exit 1");
    }
}
