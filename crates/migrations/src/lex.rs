//! A statement as words, enough to recognise what it is and what it names.

use handover_postgres::sql::{Token, tokens};

/// The words of a statement: bare ones in lower case, quoted identifiers with their quotes, each string as one
/// `'`, punctuation one by one. Comments are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(Vec<String>);

impl Words {
    /// Reads them.
    #[must_use]
    pub fn of(sql: &str) -> Self {
        let mut out = Vec::new();
        for token in tokens(sql) {
            match token {
                Token::Comment(_) => {}
                Token::Semicolon(_) => out.push(";".to_owned()),
                Token::Quoted(range) if sql[range.clone()].starts_with('"') => {
                    out.push(sql[range].to_owned())
                }
                Token::Quoted(_) => out.push("'".to_owned()),
                Token::Code(range) => split(&sql[range], &mut out),
            }
        }
        Words(out)
    }

    /// The word at `i`, or nothing.
    #[must_use]
    pub fn get(&self, i: usize) -> &str {
        self.0.get(i).map_or("", String::as_str)
    }

    /// Whether it begins with these words.
    #[must_use]
    pub fn starts(&self, words: &[&str]) -> bool {
        self.at(0, words)
    }

    /// Whether these words stand at `i`.
    #[must_use]
    pub fn at(&self, i: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(n, word)| self.get(i + n) == *word)
    }

    /// Where these words stand one after the other.
    #[must_use]
    pub fn find(&self, words: &[&str]) -> Option<usize> {
        (0..self.0.len()).find(|i| self.at(*i, words))
    }

    /// Whether they stand anywhere.
    #[must_use]
    pub fn has(&self, words: &[&str]) -> bool {
        self.find(words).is_some()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The name at `i`, perhaps with its schema, as SQL; and where it ends.
    #[must_use]
    pub fn name(&self, i: usize) -> Option<(String, usize)> {
        let is_word = |w: &str| w.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '"');
        let mut name = Some(self.get(i)).filter(|w| is_word(w))?.to_owned();
        let mut end = i + 1;
        while self.get(end) == "." && is_word(self.get(end + 1)) {
            name.push('.');
            name.push_str(self.get(end + 1));
            end += 2;
        }
        Some((name, end))
    }

    /// Where the words after `i` that only modify go on: skips each of `skip` that stands there, in order.
    #[must_use]
    pub fn skip(&self, mut i: usize, skip: &[&[&str]]) -> usize {
        for words in skip {
            if self.at(i, words) {
                i += words.len();
            }
        }
        i
    }
}

fn split(code: &str, out: &mut Vec<String>) {
    let mut word = String::new();
    for c in code.chars() {
        if c.is_alphanumeric() || c == '_' || c == '$' {
            word.extend(c.to_lowercase());
            continue;
        }
        if !word.is_empty() {
            out.push(std::mem::take(&mut word));
        }
        if !c.is_whitespace() {
            out.push(c.to_string());
        }
    }
    if !word.is_empty() {
        out.push(word);
    }
}

/// The length of the comments and blanks that a text begins with.
#[must_use]
pub fn leading_comments(sql: &str) -> usize {
    for token in tokens(sql) {
        match token {
            Token::Comment(_) => {}
            Token::Code(range) => {
                let code = &sql[range.clone()];
                let blank = code.len() - code.trim_start().len();
                if blank < code.len() {
                    return range.start + blank;
                }
            }
            Token::Quoted(range) => return range.start,
            Token::Semicolon(at) => return at,
        }
    }
    sql.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_their_schema() {
        let words = Words::of("ALTER TABLE /* x */ IF EXISTS ONLY Public.\"Tok.en\" ADD a int DEFAULT 'x'");
        let i = words.skip(2, &[&["if", "exists"], &["only"]]);
        assert_eq!(words.name(i), Some(("public.\"Tok.en\"".to_owned(), i + 3)));
        assert!(words.has(&["add", "a"]) && !words.has(&["x"]));
    }

    #[test]
    fn leading_comments_are_measured() {
        assert_eq!(leading_comments(" -- a\n /* b */ select 1"), 15);
        assert_eq!(leading_comments("select"), 0);
    }
}
