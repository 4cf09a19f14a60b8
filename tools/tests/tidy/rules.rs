//! The rules, as functions over a map of the tree, which a test makes in memory. Each returns the offences that it found.

use std::collections::BTreeMap;
use std::path::Path;

use crate::source::{self, Token};

/// Most lines a file may have.
const MAX_LINES: usize = 600;

/// Folder, and the name by which other crates import it.
const CRATES: [(&str, &str); 6] = [
    ("tools", "kvtool"),
    ("tools/torture", "kvtorture"),
    ("benches", "esker_benches"),
    ("engine", "esker"),
    ("wal", "wal"),
    ("aio", "aio"),
];

/// File names with their text. Names are relative to the root of the repository.
pub(crate) type Tree = BTreeMap<String, String>;

/// The lists of files in `order` and ARCHITECTURE.md.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    /// Every source file, in the order of reading and importing.
    pub(crate) files: Vec<String>,
    /// Files that define bytes on disk.
    pub(crate) formats: Vec<String>,
    /// Files that may hold `unsafe`.
    pub(crate) with_unsafe: Vec<String>,
}

impl Lists {
    /// Reads `order`, one path a line, `#` starts a comment; and the fenced blocks `formats` and `unsafe`, whose lines
    /// are `path - why`.
    pub(crate) fn read(order: &str, architecture: &str) -> Lists {
        let paths = order.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let files = paths.map(str::to_owned).collect();
        let block = |name: &str| {
            let lines = architecture.lines().skip_while(|line| *line != format!("```{name}")).skip(1);
            let inside = lines.take_while(|line| !line.starts_with("```"));
            let paths = inside.map(|line| line.split(" - ").next().unwrap_or(line).trim().to_owned());
            paths.filter(|path| !path.is_empty()).collect()
        };
        Lists { files, formats: block("formats"), with_unsafe: block("unsafe") }
    }
}

/// A file of a package's library or program, not of its tests.
fn is_source(path: &str) -> bool {
    let within = |folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with("/src/"));
    is_rust(path) && CRATES.iter().any(|(folder, _)| within(folder))
}

fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|end| end == "rs")
}

/// Whether a file is compiled for tests only. Its name or the module that declares it decides.
fn is_test_module(tree: &Tree, path: &str) -> bool {
    let Some((folder, module)) = module_of(path) else { return false };
    if module.last().is_some_and(|name| name == "tests" || name.ends_with("_tests")) {
        return true;
    }
    (0..module.len()).any(|depth| {
        let parent = file_of(tree, folder, &module[..depth]).and_then(|parent| tree.get(&parent));
        parent.is_some_and(|text| source::test_modules(text).contains(&module[depth]))
    })
}

/// `lib.rs`, `main.rs` or `mod.rs`.
fn is_head(path: &str) -> bool {
    path.ends_with("/lib.rs") || path.ends_with("/main.rs") || path.ends_with("/mod.rs")
}

/// The list and the tree name the same files, once each.
pub(crate) fn listed(tree: &Tree, lists: &Lists) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in tree.keys().filter(|path| is_source(path) && !lists.files.contains(path)) {
        wrong.push(format!("{path}: not in the list, tools/tests/tidy/order"));
    }
    for (at, path) in lists.files.iter().enumerate() {
        if !tree.contains_key(path) {
            wrong.push(format!("{path}: listed, but there is no such file"));
        }
        if lists.files[..at].contains(path) {
            wrong.push(format!("{path}: listed twice"));
        }
    }
    for path in lists.formats.iter().chain(&lists.with_unsafe).filter(|path| !tree.contains_key(*path)) {
        wrong.push(format!("{path}: in a list of ARCHITECTURE.md, but there is no such file"));
    }
    wrong
}

/// `lib.rs`, `main.rs` and `mod.rs` stand before every other file of their folder, `x.rs` before the folder `x`.
pub(crate) fn heads_first(lists: &Lists) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, head) in lists.files.iter().enumerate() {
        let folder = if is_head(head) {
            head[..=head.rfind('/').unwrap_or(0)].to_owned()
        } else {
            head.replace(".rs", "/")
        };
        // One folder may hold both a library and a program.
        for early in
            lists.files[..at].iter().filter(|path| path.starts_with(&folder) && !is_head_of(path, &folder))
        {
            wrong.push(format!("{early}: listed before {head}, which opens its folder"));
        }
    }
    wrong
}

fn is_head_of(path: &str, folder: &str) -> bool {
    is_head(path) && path.rfind('/') == Some(folder.len() - 1)
}

/// A file imports only from files that stand later in the list.
pub(crate) fn imports(tree: &Tree, lists: &Lists) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, path) in lists.files.iter().enumerate().filter(|(_, path)| !is_test_module(tree, path)) {
        let (Some(text), Some((folder, module))) = (tree.get(path), module_of(path)) else { continue };
        for named in source::paths(text, &module) {
            let Some(target) = target(tree, folder, &module, &named) else { continue };
            let Some(place) = lists.files.iter().position(|listed| *listed == target) else { continue };
            if place < at {
                let what = named.path.join("::");
                wrong.push(format!("{path}: imports `{what}` from {target}, which stands above it"));
            }
        }
    }
    wrong.dedup();
    wrong
}

/// The folder of a library or program, and the module path of one of its source files.
fn module_of(path: &str) -> Option<(&str, Vec<String>)> {
    let (folder, rest) = path.split_at(path.find("/src/")? + "/src".len());
    let mut module: Vec<String> = rest.strip_suffix(".rs")?.split('/').skip(1).map(str::to_owned).collect();
    if is_head(path) {
        module.pop();
    }
    Some((folder, module))
}

/// The file that a path leads to; `None` if it leads to no file of ours or back to the file itself.
fn target(tree: &Tree, folder: &str, own: &[String], named: &source::Named) -> Option<String> {
    let (first, rest) = named.path.split_first()?;
    let (folder, mut module) = if first == "crate" {
        (folder.to_owned(), rest.to_vec())
    } else {
        let (package, _) = CRATES.iter().find(|(_, library)| library == first)?;
        let other = format!("{package}/src");
        if !named.in_use || other == folder {
            return None;
        }
        (other, Vec::new())
    };
    loop {
        if folder_is_own(&module, own, named) {
            return None;
        }
        if let Some(file) = file_of(tree, &folder, &module) {
            return Some(file);
        }
        module.pop()?;
    }
}

fn folder_is_own(module: &[String], own: &[String], named: &source::Named) -> bool {
    named.path.first().is_some_and(|word| word == "crate") && module == own
}

fn file_of(tree: &Tree, folder: &str, module: &[String]) -> Option<String> {
    let joined = module.join("/");
    let candidates = if module.is_empty() {
        [format!("{folder}/lib.rs"), format!("{folder}/main.rs")]
    } else {
        [format!("{folder}/{joined}.rs"), format!("{folder}/{joined}/mod.rs")]
    };
    candidates.into_iter().find(|path| tree.contains_key(path))
}

/// The module comment of a file.
fn module_comment(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("//!")).collect()
}

fn is_drawn(line: &&str) -> bool {
    line.contains("+--") || line.matches('|').count() > 2
}

/// A file that defines bytes shows a table of them, and a drawing, which may stand in the `mod.rs` of its folder.
pub(crate) fn formats(tree: &Tree, lists: &Lists) -> Vec<String> {
    let mut wrong = Vec::new();
    for path in &lists.formats {
        let Some(text) = tree.get(path) else { continue };
        let comment = module_comment(text);
        let is_table = |line: &&str| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.windows(3).any(|three| three == ["OFFSET", "SIZE", "FIELD"])
        };
        if !comment.iter().any(is_table) {
            wrong.push(format!("{path}: defines bytes, but has no `OFFSET  SIZE  FIELD` table in its `//!`"));
        }
        let folder = &path[..=path.rfind('/').unwrap_or(0)];
        let head = tree.get(&format!("{folder}mod.rs")).map_or(Vec::new(), |text| module_comment(text));
        if !comment.iter().chain(&head).any(is_drawn) {
            wrong.push(format!(
                "{path}: defines bytes, but has no drawing of them (`+--` or `| a | b |`) in its `//!`"
            ));
        }
    }
    wrong
}

/// `unsafe` stands only where the list allows it.
pub(crate) fn unsafe_code(tree: &Tree, lists: &Lists) -> Vec<String> {
    let free = tree.iter().filter(|(path, _)| is_rust(path) && !lists.with_unsafe.contains(path));
    free.filter(|(_, text)| source::tokens(text).contains(&Token::Word("unsafe")))
        .map(|(path, _)| format!("{path}: `unsafe` outside the list of ARCHITECTURE.md"))
        .collect()
}

/// Files are short and begin with their purpose.
pub(crate) fn shape(tree: &Tree) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| is_rust(path)) {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{path}: {lines} lines, at most {MAX_LINES}"));
        }
        if !text.starts_with("//! ") {
            wrong.push(format!("{path}: does not start with `//!` and its purpose"));
        }
    }
    wrong
}

/// No file names a path of a developer's machine.
pub(crate) fn machine_paths(tree: &Tree) -> Vec<String> {
    // In two parts, so that this file passes its own rule.
    let places = [("/ho", "me/"), ("/ro", "ot/"), ("/wo", "rk/"), ("/Us", "ers/"), ("/tmp", "/")];
    let mut wrong = Vec::new();
    for (path, text) in tree {
        for (number, line) in text.lines().enumerate() {
            for place in places.map(|(start, end)| format!("{start}{end}")) {
                if line.contains(&place) {
                    wrong.push(format!("{path}:{}: names a path of a machine, `{place}`", number + 1));
                }
            }
        }
    }
    wrong
}
