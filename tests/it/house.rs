//! The structure of the source: files and crates import downwards only, as `docs/architecture.md` draws it.

use crate::support::sources::sources;
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Module = Vec<String>;
type Edges = BTreeMap<Module, BTreeSet<Module>>;

/// The source files of one crate, by their modules.
struct Crate {
    files: BTreeMap<Module, File>,
}

#[derive(Default)]
struct File {
    /// Names that stand for another path here.
    names: BTreeMap<String, Module>,
    /// Names that are passed on from elsewhere.
    exports: BTreeMap<String, Module>,
    /// Every path that is written here.
    paths: BTreeSet<Module>,
}

impl Crate {
    fn read(root: &Path) -> Self {
        let mut found = Vec::new();
        sources(root, &mut found);
        let mut files = BTreeMap::new();
        for path in found {
            let mut module: Module = path
                .strip_prefix(root)
                .unwrap()
                .with_extension("")
                .iter()
                .map(|part| part.to_str().unwrap().to_owned())
                .collect();
            if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
                module.pop();
            }
            if module == ["main"] {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let mut file = File::default();
            file.take(text.parse().unwrap());
            files.insert(module, file);
        }
        Crate { files }
    }

    /// The file in which what a path names is defined.
    fn file_of(&self, from: &Module, path: &[String], depth: usize) -> Option<Module> {
        let file = self.files.get(from)?;
        let first = path.first()?;
        let (mut module, mut rest) = match first.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (from.clone(), &path[1..]),
            "super" => (from[..from.len().checked_sub(1)?].to_vec(), &path[1..]),
            _ if self.files.contains_key(&joined(from, first)) => (from.clone(), path),
            _ => {
                // A name that a `use` brought in.
                let target = file.names.get(first).filter(|_| depth < 8)?;
                let whole: Module = target.iter().chain(&path[1..]).cloned().collect();
                return self.file_of(from, &whole, depth + 1);
            }
        };
        while rest.first().is_some_and(|part| part == "super") {
            module.pop()?;
            rest = &rest[1..];
        }
        while let Some(part) = rest.first()
            && self.files.contains_key(&joined(&module, part))
        {
            module.push(part.clone());
            rest = &rest[1..];
        }
        if depth < 8
            && let Some(name) = rest.first()
            && let Some(target) = self.files.get(&module).and_then(|file| file.exports.get(name))
        {
            let whole: Module = target.iter().chain(&rest[1..]).cloned().collect();
            return self.file_of(&module, &whole, depth + 1);
        }
        self.files.contains_key(&module).then_some(module)
    }

    /// Which file uses which.
    fn imports(&self) -> Edges {
        self.files
            .iter()
            .map(|(module, file)| {
                let used = file.paths.iter().filter_map(|path| self.file_of(module, path, 0));
                (module.clone(), used.filter(|other| other != module).collect())
            })
            .collect()
    }
}

impl File {
    /// Takes in everything but what is for tests only.
    fn take(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        let mut public = false;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Punct(p) if p.as_char() == '#' => {
                    let attribute = tokens.get(at + 1).map(ToString::to_string).unwrap_or_default();
                    at += 2;
                    if attribute.replace(' ', "") == "[cfg(test)]" {
                        // What it stands before, to its end.
                        while !matches!(&tokens[at], TokenTree::Group(g) if g.delimiter() == Delimiter::Brace)
                            && tokens[at].to_string() != ";"
                        {
                            at += 1;
                        }
                        at += 1;
                    }
                    continue;
                }
                TokenTree::Ident(word) if word == "pub" => {
                    public = true;
                    let restricted = matches!(tokens.get(at + 1), Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Parenthesis);
                    at += if restricted { 2 } else { 1 };
                    continue;
                }
                TokenTree::Ident(word) if word == "use" => {
                    let end = (at..tokens.len()).find(|i| tokens[*i].to_string() == ";").unwrap();
                    self.take_use(&[], &tokens[at + 1..end], public);
                    at = end + 1;
                }
                TokenTree::Ident(word) => {
                    let mut path = vec![word.to_string()];
                    at += 1;
                    while is_colons(&tokens, at)
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 2)
                    {
                        path.push(next.to_string());
                        at += 3;
                    }
                    if path.len() > 1 {
                        self.paths.insert(path);
                    }
                }
                TokenTree::Group(group) => {
                    self.take(group.stream());
                    at += 1;
                }
                _ => at += 1,
            }
            public = false;
        }
    }

    fn take_use(&mut self, before: &[String], tokens: &[TokenTree], public: bool) {
        let mut path = before.to_vec();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Ident(word) if word == "as" => {
                    return self.name(&tokens[at + 1].to_string(), path, public);
                }
                TokenTree::Ident(word) => path.push(word.to_string()),
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    let parts = inner.split(|token| token.to_string() == ",");
                    for part in parts.filter(|part| !part.is_empty()) {
                        self.take_use(&path, part, public);
                    }
                    return;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            at += 1;
        }
        if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
            path.pop();
        }
        if let Some(last) = path.last().cloned()
            && path.len() > before.len()
        {
            self.name(&last, path, public);
        } else if path.len() == before.len() && !path.is_empty() {
            // `{self}` was taken off.
            let last = path.last().cloned().unwrap();
            self.name(&last, path, public);
        }
    }

    fn name(&mut self, name: &str, path: Module, public: bool) {
        if public {
            self.exports.insert(name.to_owned(), path);
        } else {
            self.paths.insert(path.clone());
            self.names.insert(name.to_owned(), path);
        }
    }
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    [at, at + 1].iter().all(|i| matches!(tokens.get(*i), Some(TokenTree::Punct(p)) if p.as_char() == ':'))
}

fn joined(module: &Module, part: &str) -> Module {
    let mut out = module.clone();
    out.push(part.to_owned());
    out
}

/// What can be reached from a node.
fn reached<K: Ord + Clone>(edges: &BTreeMap<K, BTreeSet<K>>, from: &K) -> BTreeSet<K> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<K> = edges.get(from).into_iter().flatten().cloned().collect();
    while let Some(node) = next.pop() {
        if seen.insert(node.clone()) {
            next.extend(edges.get(&node).into_iter().flatten().cloned());
        }
    }
    seen
}

/// Groups of nodes that reach each other.
fn circles<K: Ord + Clone>(edges: &BTreeMap<K, BTreeSet<K>>) -> Vec<Vec<K>> {
    let all: BTreeMap<&K, BTreeSet<K>> = edges.keys().map(|node| (node, reached(edges, node))).collect();
    let mut out = Vec::new();
    let mut told = BTreeSet::new();
    for (node, there) in &all {
        if there.contains(*node) && !told.contains(*node) {
            let group: Vec<K> = there
                .iter()
                .filter(|other| all.get(other).is_some_and(|back| back.contains(*node)))
                .cloned()
                .collect();
            told.extend(group.iter().cloned());
            out.push(group);
        }
    }
    out
}

/// The edges that no longer way already says.
fn reduced(edges: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<(String, String)> {
    let mut out = BTreeSet::new();
    for (from, to) in edges {
        for target in to {
            let longer = to
                .iter()
                .filter(|other| *other != target)
                .any(|other| reached(edges, other).contains(target));
            if !longer {
                out.insert((from.clone(), target.clone()));
            }
        }
    }
    out
}

fn roots() -> Vec<PathBuf> {
    let mut out = vec![PathBuf::from("src")];
    out.extend(std::fs::read_dir("crates").unwrap().map(|entry| entry.unwrap().path().join("src")));
    out
}

#[test]
fn no_files_import_each_other() {
    let mut found = Vec::new();
    for root in roots() {
        let all = Crate::read(&root);
        assert!(all.files.len() > 3, "{}", root.display());
        let imports = all.imports();
        for circle in circles(&imports) {
            for from in &circle {
                let to = imports[from].iter().filter(|other| circle.contains(other));
                let to: Vec<String> = to.map(|module| module.join("/")).collect();
                found.push(format!("{}: {} -> {}", root.display(), from.join("/"), to.join(", ")));
            }
        }
    }
    assert!(found.is_empty(), "files that import each other:\n{}", found.join("\n"));
}

#[test]
fn a_circle_is_found_through_names_and_facades() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("lib.rs", "mod a; mod b; mod c; pub use b::{B as Beta, helper};");
    write("a.rs", "use crate::Beta; fn f(_: Beta) {}");
    write("b.rs", "use super::c; pub struct B; pub fn helper() { c::f() }");
    write("c.rs", "pub fn f() { let x = format!(\"{}\", crate::a::f()); }");
    let part = |name: &str| vec![name.to_owned()];
    assert_eq!(circles(&Crate::read(folder.path()).imports()), [[part("a"), part("b"), part("c")]]);
    write("c.rs", "//! crate::a\npub fn f() {} #[cfg(test)] mod tests { use crate::a; }");
    assert!(circles(&Crate::read(folder.path()).imports()).is_empty());
}

#[test]
fn no_file_is_longer_than_five_hundred_lines() {
    let mut long = Vec::new();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for root in roots().into_iter().chain([tests]) {
        let mut files = Vec::new();
        sources(&root, &mut files);
        for file in files {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            if lines > 500 {
                long.push(format!("{}: {lines}", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "split these:\n{}", long.join("\n"));
}

/// The arrows of the picture under a heading of `docs/architecture.md`.
fn drawn(heading: &str) -> BTreeSet<(String, String)> {
    let text = std::fs::read_to_string("docs/architecture.md").unwrap();
    let (_, after) = text.split_once(heading).expect(heading);
    let (_, picture) = after.split_once("```mermaid").unwrap();
    let (picture, _) = picture.split_once("```").unwrap();
    picture
        .lines()
        .filter_map(|line| line.split_once("-->"))
        .map(|(from, to)| (from.trim().to_owned(), to.trim().to_owned()))
        .collect()
}

fn assert_drawn(heading: &str, edges: &BTreeMap<String, BTreeSet<String>>) {
    assert!(circles(edges).is_empty(), "{:?}", circles(edges));
    let (there, drawn) = (reduced(edges), drawn(heading));
    let show = |arrows: &mut dyn Iterator<Item = &(String, String)>| {
        arrows.map(|(from, to)| format!("    {from} --> {to}\n")).collect::<String>()
    };
    assert!(
        there == drawn,
        "the picture under `{heading}` in docs/architecture.md is not what is there; missing:\n{}too many:\n{}",
        show(&mut there.difference(&drawn)),
        show(&mut drawn.difference(&there))
    );
}

#[test]
fn the_picture_of_the_crates_is_true() {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let manifests =
        std::fs::read_dir("crates").unwrap().map(|entry| entry.unwrap().path().join("Cargo.toml"));
    for manifest in manifests.chain([PathBuf::from("Cargo.toml")]) {
        let text = std::fs::read_to_string(&manifest).unwrap();
        let name = match manifest.parent().and_then(Path::file_name) {
            Some(folder) => folder.to_str().unwrap().to_owned(),
            None => "handover".to_owned(),
        };
        let (_, needs) = text.split_once("\n[dependencies]\n").unwrap();
        let needs = needs.split("\n[").next().unwrap();
        let needs = needs.lines().filter_map(|line| line.strip_prefix("handover-"));
        edges.insert(name, needs.map(|line| line.split(['.', ' ']).next().unwrap().to_owned()).collect());
    }
    assert_drawn("### Crates", &edges);
}

#[test]
fn the_picture_of_the_root_is_true() {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, used) in Crate::read(Path::new("src")).imports() {
        let Some(room) = module.first() else { continue };
        let rooms = used.iter().filter_map(|other| other.first()).filter(|other| *other != room);
        edges.entry(room.clone()).or_default().extend(rooms.cloned());
    }
    assert_drawn("### Rooms of the root", &edges);
}
