//! Just enough of SQL's lexical rules to find statements and placeholders without touching what is quoted.
//! (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html>)

use std::ops::Range;

/// A stretch of SQL text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// Words, numbers, operators, whitespace: everything that is neither quoted nor a comment.
    Code(Range<usize>),
    /// A string, quoted identifier or dollar-quoted body.
    Quoted(Range<usize>),
    /// A comment.
    Comment(Range<usize>),
    /// A semicolon that ends a statement.
    Semicolon(usize),
}

/// Splits SQL into tokens that cover it without gaps.
#[must_use]
pub fn tokens(sql: &str) -> Vec<Token> {
    let bytes = sql.as_bytes();
    let mut out = Vec::new();
    let mut code = 0;
    let mut i = 0;
    while i < bytes.len() {
        let end = match bytes[i] {
            b'\'' => Some(quoted_end(bytes, i, b'\'', is_escape_string(bytes, i))),
            b'"' => Some(quoted_end(bytes, i, b'"', false)),
            b'$' => dollar_end(sql, i),
            b'-' if bytes.get(i + 1) == Some(&b'-') => {
                Some(sql[i..].find('\n').map_or(bytes.len(), |n| i + n))
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => Some(block_comment_end(bytes, i)),
            b';' => Some(i + 1),
            _ => None,
        };
        let Some(end) = end else {
            i += 1;
            continue;
        };
        if code < i {
            out.push(Token::Code(code..i));
        }
        out.push(match bytes[i] {
            b';' => Token::Semicolon(i),
            b'-' | b'/' => Token::Comment(i..end),
            _ => Token::Quoted(i..end),
        });
        i = end;
        code = end;
    }
    if code < bytes.len() {
        out.push(Token::Code(code..bytes.len()));
    }
    out
}

fn is_escape_string(bytes: &[u8], quote: usize) -> bool {
    quote > 0
        && matches!(bytes[quote - 1], b'e' | b'E')
        && (quote < 2 || !(bytes[quote - 2].is_ascii_alphanumeric() || bytes[quote - 2] == b'_'))
}

fn quoted_end(bytes: &[u8], start: usize, quote: u8, backslashes: bool) -> usize {
    let mut i = start + 1;
    while i < bytes.len() {
        if backslashes && bytes[i] == b'\\' {
            i += 2;
        } else if bytes[i] == quote {
            if bytes.get(i + 1) == Some(&quote) {
                i += 2;
            } else {
                return i + 1;
            }
        } else {
            i += 1;
        }
    }
    bytes.len()
}

fn dollar_end(sql: &str, start: usize) -> Option<usize> {
    let bytes = sql.as_bytes();
    // `a$b$` is one identifier, not the start of a body.
    if start > 0
        && (bytes[start - 1].is_ascii_alphanumeric() || bytes[start - 1] == b'_' || bytes[start - 1] >= 0x80)
    {
        return None;
    }
    let rest = &sql[start + 1..];
    let close = rest.find('$')?;
    let tag = &rest[..close];
    let mut chars = tag.chars();
    let valid = chars.next().is_none_or(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_');
    if !valid {
        return None;
    }
    let marker = &sql[start..start + close + 2];
    let body = start + marker.len();
    Some(sql[body..].find(marker).map_or(sql.len(), |n| body + n + marker.len()))
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut i = start;
    while i < bytes.len() {
        match (bytes[i], bytes.get(i + 1)) {
            (b'/', Some(b'*')) => {
                depth += 1;
                i += 2;
            }
            (b'*', Some(b'/')) => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    bytes.len()
}

/// The statements of a script, without their semicolons and without empty ones. `BEGIN ATOMIC` bodies of SQL
/// functions and the parenthesised actions of `CREATE RULE` keep their semicolons.
#[must_use]
pub fn statements(sql: &str) -> Vec<&str> {
    statement_ranges(sql).into_iter().map(|range| &sql[range]).collect()
}

/// Where [`statements`] stand in the script. A comment before a statement belongs to it.
#[must_use]
pub fn statement_ranges(sql: &str) -> Vec<Range<usize>> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut depth = 0_usize;
    let mut parentheses = 0_usize;
    let mut meaningful = false;
    let mut begin_seen = false;
    for token in tokens(sql) {
        match token {
            Token::Code(range) => {
                let code = &sql[range];
                for c in code.chars() {
                    match c {
                        '(' => parentheses += 1,
                        ')' => parentheses = parentheses.saturating_sub(1),
                        _ => {}
                    }
                    meaningful |= !c.is_whitespace();
                }
                for word in code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty())
                {
                    let word = word.to_ascii_lowercase();
                    match word.as_str() {
                        "atomic" if begin_seen => depth += 1,
                        "case" if depth > 0 => depth += 1,
                        "end" if depth > 0 => depth -= 1,
                        _ => {}
                    }
                    begin_seen = word == "begin";
                }
            }
            Token::Quoted(_) => meaningful = true,
            Token::Comment(_) => {}
            Token::Semicolon(at) if depth == 0 && parentheses == 0 => {
                if meaningful {
                    out.push(trimmed(sql, start..at));
                }
                start = at + 1;
                meaningful = false;
            }
            Token::Semicolon(_) => {}
        }
    }
    if meaningful {
        out.push(trimmed(sql, start..sql.len()));
    }
    out
}

fn trimmed(sql: &str, range: Range<usize>) -> Range<usize> {
    let text = &sql[range.clone()];
    let start = range.start + (text.len() - text.trim_start().len());
    start..start + text.trim().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_semicolons_do_not_split() {
        let sql = "select ';', \"a;b\", $$;$$, $x$ ; $$ $x$ /* ; /* ; */ ; */ -- ;\n, E'\\';' ; select a$b$c;; -- end";
        assert_eq!(statements(sql).len(), 2, "{:?}", statements(sql));
        assert_eq!(statements(" ; -- only comments\n /* ; */ "), Vec::<&str>::new());
    }

    #[test]
    fn atomic_bodies_stay_whole() {
        let sql = "create function f() returns int begin atomic select 1; select case when true then 2 end; end; select 3";
        assert_eq!(statements(sql).len(), 2);
    }

    #[test]
    fn rule_actions_stay_whole() {
        let sql =
            "create rule r as on insert to t do also (insert into a values (1); delete from b); select 1";
        assert_eq!(statements(sql).len(), 2);
    }

    #[test]
    fn tokens_cover_the_text() {
        for sql in ["a'b", "'unterminated", "$tag$ open", "/* open", "é$1 'ü'", "$1 + $2"] {
            let mut at = 0;
            for token in tokens(sql) {
                let (start, end) = match token {
                    Token::Code(r) | Token::Quoted(r) | Token::Comment(r) => (r.start, r.end),
                    Token::Semicolon(at) => (at, at + 1),
                };
                assert_eq!(start, at);
                at = end;
            }
            assert_eq!(at, sql.len());
        }
    }
}
