//! Parameters of a connection string.

use handover_core::value::{keywords, percent_decoded};

/// Takes the parameters of these names out of a connection string of either form, decoded.
///
/// # Errors
/// What is wrong with it, without any value.
pub(crate) fn split(text: &str, names: &[&str]) -> Result<(String, Vec<(String, String)>), String> {
    let mut ours = Vec::new();
    let mut is_ours = |key: &str, value: String| {
        let found = names.contains(&key);
        if found {
            ours.push((key.to_owned(), value));
        }
        found
    };
    if let Some((_, rest)) = text.split_once("://") {
        // A question mark before the `@` is one of the password's.
        let skipped = text.len() - rest.len() + rest.find('@').unwrap_or(0);
        let Some(at) = text[skipped..].find('?').map(|at| at + skipped) else {
            return Ok((text.to_owned(), ours));
        };
        let mut kept = Vec::new();
        for pair in text[at + 1..].split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or("unterminated parameter")?;
            if !is_ours(&percent_decoded(key), percent_decoded(value)) {
                kept.push(pair);
            }
        }
        let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
        return Ok((format!("{}{query}", &text[..at]), ours));
    }
    let mut kept = Vec::new();
    for (key, value) in keywords(text)? {
        if !is_ours(&key, value.clone()) {
            kept.push(format!("{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'")));
        }
    }
    Ok((kept.join(" "), ours))
}
