//! Passwords of throw-away servers.

use rand::RngExt;

/// A password that nobody has to type: 24 letters and digits, so that it needs no escaping in a URL or in SQL.
pub(crate) fn password() -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let mut rng = rand::rng();
    (0..24).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect()
}
