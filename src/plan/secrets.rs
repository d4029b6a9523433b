//! Finding passwords that stand literally in a text, to refuse them and never to show them.

use std::ops::Range;

/// Byte ranges of literal passwords in URLs (`scheme://user:HERE@host`).
#[must_use]
pub fn in_urls(text: &str) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find("://") {
        let start = from + at + 3;
        from = start;
        let token =
            text[start..].split([' ', '\t', '\n', '"', '\'', '<', '>', '`']).next().unwrap_or_default();
        let authority = token.split(['/', '?', '#']).next().unwrap_or_default();
        let userinfo = match (authority.rfind('@'), token.rfind('@')) {
            (Some(end), _) => &authority[..end],
            // A password with a `/` of its own; `host:5432/…@…` is none.
            (None, Some(end))
                if authority
                    .split_once(':')
                    .is_some_and(|(_, rest)| !rest.chars().all(|c| c.is_ascii_digit())) =>
            {
                &token[..end]
            }
            _ => continue,
        };
        let Some(colon) = userinfo.find(':') else { continue };
        if is_literal(&userinfo[colon + 1..]) {
            out.push(start + colon + 1..start + userinfo.len());
        }
    }
    out
}

/// Byte ranges of literal passwords given as parameters (`password=HERE`), in a URL's query or a `key=value`
/// connection string. SQL looks like that too, so this is for connection strings only.
#[must_use]
pub fn in_parameters(text: &str) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let lower = text.to_ascii_lowercase();
    let mut from = 0;
    while let Some(at) = lower[from..].find("password").or_else(|| lower[from..].find("passwd")) {
        let key_end = from + at + if lower[from + at..].starts_with("password") { 8 } else { 6 };
        from = key_end;
        let after = text[key_end..].trim_start();
        let Some(value) = after.strip_prefix('=') else { continue };
        let value = value.trim_start();
        let start = text.len() - value.len();
        let length = match value.strip_prefix('\'') {
            Some(quoted) => quoted.find('\'').map_or(value.len(), |end| end + 2),
            None => value.find(['&', ' ', '\t', '\n', '"', '\'', ',', '}']).unwrap_or(value.len()),
        };
        // `${NAME}` ends with a brace of its own.
        let length =
            if value.starts_with("${") { value.find('}').map_or(length, |end| end + 1) } else { length };
        if is_literal(value[..length].trim_matches('\'')) {
            out.push(start..start + length);
        }
        from = start + length;
    }
    out
}

/// Whether anything remains once the references to the environment are taken out.
fn is_literal(password: &str) -> bool {
    let mut rest = password;
    while let Some(open) = rest.find("${") {
        if open > 0 {
            return true;
        }
        match rest.find('}') {
            Some(close) => rest = &rest[close + 1..],
            None => return true,
        }
    }
    !rest.is_empty()
}

/// A line with its passwords blotted out, and a function's worth of knowledge about what moved: for each
/// replaced range, its beginning and end in characters and the length of what stands there now.
#[must_use]
pub fn masked(line: &str) -> (String, Vec<(usize, usize, usize)>) {
    const BLOT: &str = "***";
    let mut ranges = in_urls(line);
    ranges.extend(in_parameters(line));
    ranges.sort_by_key(|range| range.start);
    let mut out = String::new();
    let mut moved = Vec::new();
    let mut at = 0;
    for range in ranges {
        if range.start < at {
            continue;
        }
        out.push_str(&line[at..range.start]);
        out.push_str(BLOT);
        let start = line[..range.start].chars().count();
        moved.push((start, start + line[range.clone()].chars().count(), BLOT.len()));
        at = range.end;
    }
    out.push_str(&line[at..]);
    (out, moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literal_passwords_are_found_and_references_are_not() {
        for text in [
            "postgres://u:hunter2@h/d",
            "amqps://u:p@h",
            "x postgres://u:pa/ss@h/d y",
            "postgres://u:${A}b@h/d",
            "postgres://${U}:pw@h",
        ] {
            assert_eq!(in_urls(text).len(), 1, "{text}");
        }
        for text in [
            "postgres://u:${PW}@h/d",
            "postgres://u@h:5432/d?application_name=a@b",
            "${URL}",
            "postgres://u@h/d",
            "http://h:80/a@b",
        ] {
            assert!(in_urls(text).is_empty(), "{text}");
        }
        for text in ["host=h password=x", "postgres://u@h/d?password=x&a=b", "PASSWORD = 'a b' host=h"] {
            assert_eq!(in_parameters(text).len(), 1, "{text}");
        }
        for text in ["host=h password=${PW}", "password", "host=h passfile=/x", "password='${PW}'"] {
            assert!(in_parameters(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_masked_line_shows_no_password() {
        let (line, moved) = masked("blue: postgres://u:hünter2@h/d # b");
        assert_eq!(line, "blue: postgres://u:***@h/d # b");
        assert_eq!(moved, [(19, 26, 3)]);
        assert_eq!(masked("dsn: host=h password=hunter2 user=u").0, "dsn: host=h password=*** user=u");
    }

    proptest! {
        #[test]
        fn masking_never_panics(text in "(://|:|@|/|password=|passwd|\\$\\{|\\}|'|é| |a|=|İ){0,20}") {
            let _ = masked(&text);
        }
    }
}
