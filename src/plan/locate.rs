//! Where each node of a YAML text stands, which the reader of its values forgets.

use crate::problem::{Path, Problem, Segment};
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde::Serialize;
use std::collections::HashMap;

/// A place in a text. Lines and columns count from 1, columns and lengths in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
    /// How many characters of that line are meant; at least one.
    pub length: usize,
}

/// A key that a mapping has twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicate {
    /// The node's path.
    pub path: Path,
    /// Where the key stands first.
    pub first: Place,
    /// Where it stands again.
    pub again: Place,
}

/// Finds the places of a text's nodes.
#[derive(Debug)]
pub struct Locator {
    lines: Vec<usize>,
    nodes: Vec<Node>,
    anchors: HashMap<usize, usize>,
    root: Option<usize>,
    second_document: Option<Place>,
}

#[derive(Debug)]
struct Node {
    place: Place,
    content: Content,
    /// A text after `|` or `>`: it stands below, so its key is what to point at.
    is_block: bool,
}

#[derive(Debug)]
enum Content {
    Scalar(String),
    Sequence(Vec<usize>),
    /// Keys and values in turn, as the parser reports them.
    Mapping(Vec<usize>),
    Alias(usize),
}

/// The lines of a text without their ends, broken where YAML breaks them.
pub fn lines(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['\n', '\r']) {
        out.push(&rest[..at]);
        let end = if rest[at..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[at + end..];
    }
    out.push(rest);
    out
}

impl Locator {
    /// Reads a text. One that is not YAML is located as far as it can be read.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut locator = Locator {
            lines: lines(text).iter().map(|line| line.chars().count()).collect(),
            nodes: Vec::new(),
            anchors: HashMap::new(),
            root: None,
            second_document: None,
        };
        locator.read(text);
        locator
    }

    fn read(&mut self, text: &str) {
        let mut open: Vec<usize> = Vec::new();
        let mut documents = 0;
        let mut parser = Parser::new_from_str(text);
        while let Some(Ok((event, span))) = parser.next_event() {
            let mut is_block = false;
            let (anchor, content) = match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents == 2 {
                        self.second_document = Some(self.place(span));
                        return;
                    }
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => {
                    open.pop();
                    continue;
                }
                Event::Scalar(text, style, anchor, _) => {
                    is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                    (anchor, Content::Scalar(text.into_owned()))
                }
                Event::SequenceStart(anchor, _) => (anchor, Content::Sequence(Vec::new())),
                Event::MappingStart(anchor, _) => (anchor, Content::Mapping(Vec::new())),
                Event::Alias(anchor) => (0, Content::Alias(anchor)),
                _ => continue,
            };
            let id = self.nodes.len();
            let is_open = matches!(content, Content::Sequence(_) | Content::Mapping(_));
            self.nodes.push(Node { place: self.place(span), content, is_block });
            if anchor != 0 {
                self.anchors.insert(anchor, id);
            }
            match open.last().map(|&parent| &mut self.nodes[parent].content) {
                Some(Content::Sequence(children) | Content::Mapping(children)) => children.push(id),
                _ => self.root = self.root.or(Some(id)),
            }
            if is_open {
                open.push(id);
            }
        }
    }

    fn place(&self, span: Span) -> Place {
        let same_line = span.end.line() == span.start.line();
        let length = if same_line { span.end.col().saturating_sub(span.start.col()) } else { usize::MAX };
        self.clamp(Place { line: span.start.line(), column: span.start.col() + 1, length })
    }

    /// The place moved into the text.
    #[must_use]
    pub fn clamp(&self, place: Place) -> Place {
        let line = place.line.clamp(1, self.lines.len());
        let width = self.lines[line - 1];
        let column = place.column.clamp(1, width.max(1));
        Place { line, column, length: place.length.clamp(1, (width + 1).saturating_sub(column).max(1)) }
    }

    /// Where a second document begins, which a plan must not have.
    #[must_use]
    pub fn second_document(&self) -> Option<Place> {
        self.second_document
    }

    fn follow(&self, id: usize) -> usize {
        match self.nodes[id].content {
            Content::Alias(anchor) => self.anchors.get(&anchor).copied().unwrap_or(id),
            _ => id,
        }
    }

    /// The key's node and the value's node of an entry, also one that came through a merge key (`<<`).
    fn entry(&self, mapping: usize, key: &str, depth: usize) -> Option<(usize, usize)> {
        let Content::Mapping(children) = &self.nodes[self.follow(mapping)].content else { return None };
        let pairs = || children.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        let is = |id: usize, text: &str| matches!(&self.nodes[self.follow(id)].content, Content::Scalar(s) if s == text);
        if let Some(found) = pairs().find(|&(k, _)| is(k, key)) {
            return Some(found);
        }
        // An anchor may contain an alias of itself; the depth ends the search there.
        if depth > 16 {
            return None;
        }
        pairs().filter(|&(k, _)| is(k, "<<")).find_map(|(_, merged)| {
            match &self.nodes[self.follow(merged)].content {
                Content::Sequence(list) => list.iter().find_map(|&each| self.entry(each, key, depth + 1)),
                _ => self.entry(merged, key, depth + 1),
            }
        })
    }

    /// The nodes of the deepest part of the path that exists: its key (if it has one) and its value; and
    /// whether that is the whole path.
    fn find(&self, path: &Path) -> Option<(Option<usize>, usize, bool)> {
        let mut at = (None, self.root?);
        for segment in &path.0 {
            let next = match segment {
                Segment::Key(key) => self.entry(at.1, key, 0).map(|(k, v)| (Some(k), v)),
                Segment::Index(index) => match &self.nodes[self.follow(at.1)].content {
                    Content::Sequence(items) => items.get(*index).map(|&item| (None, item)),
                    _ => None,
                },
            };
            match next {
                Some(found) => at = found,
                None => return Some((at.0, at.1, false)),
            }
        }
        Some((at.0, at.1, true))
    }

    /// The place to point at for a node: a scalar itself; of a list or mapping its key, or its first line. For
    /// a path that does not exist, the nearest node around it.
    #[must_use]
    pub fn at(&self, path: &Path, at_key: bool) -> Place {
        let Some((key, value, whole)) = self.find(path) else {
            return self.clamp(Place { line: 1, column: 1, length: usize::MAX });
        };
        let is_text = !self.nodes[value].is_block
            && matches!(&self.nodes[value].content, Content::Scalar(s) if !s.is_empty());
        let is_alias = matches!(self.nodes[value].content, Content::Alias(_));
        match key {
            Some(key) if at_key || !whole || !(is_text || is_alias) => self.nodes[key].place,
            None if !is_text => self.first(value),
            _ => self.nodes[value].place,
        }
    }

    /// A collection's beginning: its first key where there is one.
    fn first(&self, id: usize) -> Place {
        match &self.nodes[id].content {
            Content::Mapping(children) if !children.is_empty() => self.nodes[children[0]].place,
            _ => self.nodes[id].place,
        }
    }

    /// The place a problem speaks of.
    #[must_use]
    pub fn of(&self, problem: &Problem) -> Place {
        self.at(&problem.path, problem.at_key)
    }

    /// Keys that stand more than once in one mapping.
    #[must_use]
    pub fn duplicates(&self) -> Vec<Duplicate> {
        let mut out = Vec::new();
        let mut todo: Vec<(usize, Path)> =
            self.root.map(|root| (root, Path::default())).into_iter().collect();
        while let Some((id, path)) = todo.pop() {
            match &self.nodes[id].content {
                Content::Sequence(items) => {
                    todo.extend(items.iter().enumerate().map(|(i, &item)| (item, path.join(i))));
                }
                Content::Mapping(children) => {
                    let mut seen: HashMap<&str, usize> = HashMap::new();
                    for pair in children.chunks_exact(2) {
                        let Content::Scalar(key) = &self.nodes[pair[0]].content else { continue };
                        let path = path.join(key.as_str());
                        match seen.get(key.as_str()) {
                            Some(&first) => out.push(Duplicate {
                                path: path.clone(),
                                first: self.nodes[first].place,
                                again: self.nodes[pair[0]].place,
                            }),
                            None => drop(seen.insert(key, pair[0])),
                        }
                        todo.push((pair[1], path));
                    }
                }
                Content::Scalar(_) | Content::Alias(_) => {}
            }
        }
        out.sort_by_key(|duplicate| duplicate.again);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(segments: &[Segment]) -> Path {
        Path(segments.to_vec())
    }

    fn at(text: &str, segments: &[Segment], at_key: bool) -> (usize, usize, usize) {
        let place = Locator::new(text).at(&path(segments), at_key);
        (place.line, place.column, place.length)
    }

    #[test]
    fn keys_and_values_are_found() {
        let text = "a: 1\nlist:\n  - x: \"äö\"\n    y: {k: v}\n  - text\nb: |\n  one\n  two\n";
        assert_eq!(at(text, &["a".into()], false), (1, 4, 1));
        assert_eq!(at(text, &["a".into()], true), (1, 1, 1));
        assert_eq!(at(text, &["list".into()], false), (2, 1, 4));
        assert_eq!(at(text, &["list".into(), 0.into()], false), (3, 5, 1));
        assert_eq!(at(text, &["list".into(), 0.into(), "x".into()], false), (3, 8, 4));
        assert_eq!(at(text, &["list".into(), 0.into(), "y".into(), "k".into()], false), (4, 12, 1));
        assert_eq!(at(text, &["list".into(), 1.into()], false), (5, 5, 4));
        assert_eq!(at(text, &["list".into(), 0.into(), "y".into(), "none".into()], false), (4, 5, 1));
        assert_eq!(at(text, &["b".into()], false).0, 6);
    }

    #[test]
    fn anchors_and_merge_keys_lead_to_what_they_name() {
        let text = "x: &a {k: 1}\ny: *a\nz:\n  <<: *a\n  l: 2\n";
        assert_eq!(at(text, &["y".into(), "k".into()], false), (1, 11, 1));
        assert_eq!(at(text, &["z".into(), "k".into()], true), (1, 8, 1));
        assert_eq!(at(text, &["z".into(), "l".into()], true), (5, 3, 1));
    }

    #[test]
    fn duplicates_are_found_at_any_depth() {
        let found = Locator::new("a: 1\nb:\n  - c: 1\n    c: 2\na: 2\n").duplicates();
        let places: Vec<_> = found.iter().map(|d| (d.path.to_string(), d.first.line, d.again.line)).collect();
        assert_eq!(places, [("b[0].c".to_owned(), 3, 4), ("a".to_owned(), 1, 5)]);
    }

    proptest! {
        #[test]
        fn places_lie_in_the_text(text in "([a-c&*!?|>%@\"'#{}\\[\\],:\\- \t\n\r]|<<: |: |- |é|\u{85}|\u{feff}){0,60}") {
            let locator = Locator::new(&text);
            let _ = locator.duplicates();
            let all = lines(&text);
            let keys = ["a", "b", "<<"];
            let mut paths = vec![Path::default()];
            for first in keys {
                for second in [Segment::from("a"), Segment::from("b"), 0.into(), 1.into()] {
                    paths.push(Path(vec![first.into()]));
                    paths.push(Path(vec![first.into(), second]));
                }
            }
            paths.push(Path(vec![0.into()]));
            for path in paths {
                for at_key in [false, true] {
                    let place = locator.at(&path, at_key);
                    prop_assert!((1..=all.len()).contains(&place.line));
                    let width = all[place.line - 1].chars().count();
                    prop_assert!(place.column >= 1 && place.column <= width.max(1));
                    prop_assert!(place.length >= 1 && place.column + place.length - 1 <= width.max(1));
                }
            }
        }
    }
}
