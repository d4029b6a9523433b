//! How a query of somebody else's is shown: everywhere like this, because its literals may be passwords, tokens or
//! people's data, and what is shown goes into the journal.

use super::sql::{Token, tokens};

/// How much of a query the server is asked for; what is cut off in the middle of a literal is still masked.
pub const KEPT: usize = 300;

/// How much of it is shown.
const SHOWN: usize = 60;

/// The beginning of somebody's query in one line, its literals and comments left out.
#[must_use]
pub fn masked(query: &str) -> String {
    let mut out = String::new();
    for token in tokens(query) {
        match token {
            Token::Quoted(range) if !query[range.clone()].starts_with('"') => out.push_str("'…'"),
            Token::Quoted(range) => out.push_str(&query[range]),
            Token::Code(range) => numbers(&query[range], &mut out),
            Token::Semicolon(_) => out.push(';'),
            Token::Comment(_) => out.push(' '),
        }
    }
    let words: Vec<&str> = out.split_whitespace().collect();
    words.join(" ").chars().take(SHOWN).collect()
}

/// Appends code with its numbers masked; digits of names (`t1`) and parameters (`$1`) stay.
fn numbers(code: &str, out: &mut String) {
    let of_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let end = rest.find(|c| !of_name(c)).unwrap_or(rest.len()).max(c.len_utf8());
        if c.is_ascii_digit() {
            out.push('…')
        } else {
            out.push_str(&rest[..end])
        }
        rest = &rest[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_queries_are_not_shown() {
        let query = "select *\n from \"Token\" where signature = 's3cret' and x = $$s3cret$$ -- s3cret";
        assert_eq!(masked(query), "select * from \"Token\" where signature = '…' and x = '…'");
        assert!(!masked("insert into t values ('s3cret cut o").contains("s3cret"));
        assert_eq!(
            masked("update t1 set a=4711,b=$2 where ssn = -078051120.5e3"),
            "update t1 set a=…,b=$2 where ssn = -….…"
        );
        assert_eq!(masked("alter role app password E'a\\'b'"), "alter role app password E'…'");
    }
}
