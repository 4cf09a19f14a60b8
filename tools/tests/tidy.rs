//! The rules of the house that no compiler checks: import order, lists, format tables, lengths.
//!
//! `tidy/order` lists every source file in reading order; a file imports only from files that stand later in it.
//! `every_rule_holds` checks the repository; the other tests put an offence into a tree in memory and look for it.
#![forbid(unsafe_code)]

#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use std::path::Path;

use rules::{Lists, Tree};

/// Endings of the files that are read.
const READ: [&str; 6] = ["rs", "md", "toml", "yml", "run", "justfile"];

#[test]
fn every_rule_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tree = Tree::new();
    gather(&root, "", &mut tree);
    let lists = Lists::read(include_str!("tidy/order"), &tree["ARCHITECTURE.md"]);
    assert!(!lists.files.is_empty(), "tidy/order names no files");
    let wrong: Vec<String> = [
        rules::listed(&tree, &lists),
        rules::heads_first(&lists),
        rules::imports(&tree, &lists),
        rules::formats(&tree, &lists),
        rules::unsafe_code(&tree, &lists),
        rules::shape(&tree),
        rules::machine_paths(&tree),
    ]
    .concat();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

fn gather(root: &Path, under: &str, tree: &mut Tree) {
    for entry in std::fs::read_dir(root.join(under)).expect("the repository can be read") {
        let entry = entry.expect("the repository can be read");
        let name = entry.file_name().into_string().expect("names are UTF-8");
        let path = if under.is_empty() { name.clone() } else { format!("{under}/{name}") };
        let hidden = name.starts_with('.') && name != ".ci";
        if hidden || name == "target" || name == "demo-store" || name == "report" {
            continue;
        }
        if entry.file_type().expect("the repository can be read").is_dir() {
            gather(root, &path, tree);
        } else if READ.contains(&name.rsplit('.').next().unwrap_or(&name)) {
            tree.insert(path, std::fs::read_to_string(entry.path()).expect("text files are UTF-8"));
        }
    }
}

fn tree(files: &[(&str, &str)]) -> Tree {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

fn lists(files: &[&str]) -> Lists {
    Lists { files: files.iter().map(|path| (*path).to_owned()).collect(), ..Lists::default() }
}

/// A small tree: `db` imports `segment`, `segment/reader` imports `segment/block`, all import `error`.
fn sound() -> (Tree, Lists) {
    let files = [
        ("engine/src/lib.rs", "//! a\nmod db; mod error; mod segment; pub use db::Db; pub use error::Error;"),
        (
            "engine/src/db.rs",
            "//! a\nuse crate::{error::Error, segment::Reader}; use wal::Ring; use aio::Buf;",
        ),
        ("engine/src/segment/mod.rs", "//! a\nmod block; mod reader; pub(crate) use reader::Reader;"),
        ("engine/src/segment/reader.rs", "//! a\nuse super::block::Block; use crate::error::Error;"),
        ("engine/src/segment/block.rs", "//! a\nfn f() -> crate::error::Error { todo!() }"),
        ("engine/src/error.rs", "//! a\n#[cfg(test)] mod tests { use super::*; use crate::db::Db; }"),
        ("wal/src/lib.rs", "//! a\nuse aio::Backend;"),
        ("aio/src/lib.rs", "//! a\n"),
    ];
    let order: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
    (tree(&files), lists(&order))
}

fn only(wrong: &[String], what: &str) {
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].contains(what), "{wrong:?}");
}

#[test]
fn a_sound_tree_passes() {
    let (tree, lists) = sound();
    assert_eq!(rules::listed(&tree, &lists), [""; 0]);
    assert_eq!(rules::heads_first(&lists), [""; 0]);
    assert_eq!(rules::imports(&tree, &lists), [""; 0]);
    assert_eq!(rules::shape(&tree), [""; 0]);
    assert_eq!(rules::unsafe_code(&tree, &lists), [""; 0]);
    assert_eq!(rules::machine_paths(&tree), [""; 0]);
}

#[test]
fn upward_imports_are_caught_in_every_form() {
    for (file, code, target) in [
        ("engine/src/error.rs", "use crate::db::Db;", "db.rs"),
        ("engine/src/error.rs", "use crate::{db::{self, Db}};", "db.rs"),
        ("engine/src/error.rs", "use super::db::*;", "db.rs"),
        ("engine/src/error.rs", "fn f() { crate::db::open() }", "db.rs"),
        ("engine/src/error.rs", "use crate::Db;", "lib.rs"),
        ("engine/src/error.rs", "use crate::segment::Reader;", "segment/mod.rs"),
        ("engine/src/error.rs", "mod inner { use super::super::db::Db; }", "db.rs"),
        ("engine/src/segment/block.rs", "use super::reader::Reader;", "segment/reader.rs"),
        ("engine/src/segment/block.rs", "type R = super::Reader;", "segment/mod.rs"),
        ("engine/src/segment/block.rs", "use super::super::db::Db;", "db.rs"),
        ("engine/src/segment/block.rs", "impl From<super::super::db::Db> for u8 {}", "db.rs"),
        ("aio/src/lib.rs", "use wal::Ring;", "wal/src/lib.rs"),
        ("wal/src/lib.rs", "pub use esker::{Db};", "engine/src/lib.rs"),
    ] {
        let (mut tree, lists) = sound();
        tree.insert(file.to_owned(), format!("//! a\n{code}"));
        let wrong = rules::imports(&tree, &lists);
        assert!(wrong.iter().all(|line| line.starts_with(file)), "{code}: {wrong:?}");
        assert!(wrong.iter().any(|line| line.contains(target)), "{code}: {wrong:?}");
    }
}

#[test]
fn a_package_below_another_is_a_tree_of_its_own() {
    let files = [
        ("tools/src/main.rs", "//! a\nmod model;"),
        ("tools/src/model.rs", "//! a\n"),
        ("tools/torture/src/main.rs", "//! a\nmod model; mod world; use crate::world::World;"),
        ("tools/torture/src/world.rs", "//! a\nmod incarnation; use crate::model::Model;"),
        ("tools/torture/src/world/incarnation.rs", "//! a\nuse crate::model::Model;"),
        ("tools/torture/src/model.rs", "//! a\n"),
    ];
    let order: Vec<&str> = files.iter().map(|(path, _)| *path).collect();
    let (mut tree, lists) = (tree(&files), lists(&order));
    assert_eq!(rules::imports(&tree, &lists), [""; 0]);
    tree.insert("tools/torture/src/model.rs".to_owned(), "//! a\nuse crate::world::World;".to_owned());
    only(&rules::imports(&tree, &lists), "tools/torture/src/world.rs, which stands above it");
    tree.insert("tools/torture/src/unlisted.rs".to_owned(), "//! a\n".to_owned());
    tree.insert("tools/torture/fuzz/src/lib.rs".to_owned(), "//! not of this workspace\n".to_owned());
    only(&rules::listed(&tree, &lists), "tools/torture/src/unlisted.rs: not in the list");
}

#[test]
fn a_file_in_the_wrong_place_of_the_list_is_caught() {
    let (tree, mut lists) = sound();
    lists.files.swap(3, 4);
    only(
        &rules::imports(&tree, &lists),
        "engine/src/segment/reader.rs: imports `crate::segment::block::Block`",
    );
}

#[test]
fn unlisted_missing_and_doubled_files_are_caught() {
    let (mut tree, mut lists) = sound();
    tree.insert("aio/src/sys.rs".to_owned(), "//! a\n".to_owned());
    only(&rules::listed(&tree, &lists), "aio/src/sys.rs: not in the list");
    lists.files.extend(["aio/src/sys.rs", "aio/src/gone.rs"].map(str::to_owned));
    only(&rules::listed(&tree, &lists), "aio/src/gone.rs: listed, but");
    lists.files.pop();
    lists.files.push("aio/src/sys.rs".to_owned());
    only(&rules::listed(&tree, &lists), "aio/src/sys.rs: listed twice");
    lists.files.pop();
    lists.with_unsafe.push("aio/src/raw.rs".to_owned());
    only(&rules::listed(&tree, &lists), "aio/src/raw.rs: in a list");
}

#[test]
fn a_folder_opens_with_its_head() {
    let (_, mut lists) = sound();
    lists.files.swap(2, 3);
    only(
        &rules::heads_first(&lists),
        "engine/src/segment/reader.rs: listed before engine/src/segment/mod.rs",
    );
    let (_, mut lists) = sound();
    lists.files.swap(0, 1);
    only(&rules::heads_first(&lists), "engine/src/db.rs: listed before engine/src/lib.rs");
    let lists = self::lists(&["aio/src/lib.rs", "aio/src/sim/disk.rs", "aio/src/sim.rs"]);
    only(&rules::heads_first(&lists), "aio/src/sim/disk.rs: listed before aio/src/sim.rs");
}

#[test]
fn modules_for_tests_may_look_up() {
    let (mut tree, lists) = sound();
    tree.insert("engine/src/segment/block.rs".to_owned(), "//! a\nuse crate::db::Db;".to_owned());
    only(&rules::imports(&tree, &lists), "db.rs");
    let head = "engine/src/segment/mod.rs";
    let text = tree[head].replace("mod block;", "#[cfg(test)] mod block;");
    tree.insert(head.to_owned(), text);
    assert_eq!(rules::imports(&tree, &lists), [""; 0]);
}

#[test]
fn a_format_without_table_or_drawing_is_caught() {
    let good =
        "//! Block.\n//!\n//! +----+----+\n//! | a  | b  |\n//! OFFSET  SIZE  FIELD\n//!      0     4  a\n";
    let (mut tree, mut lists) = sound();
    let path = "engine/src/segment/block.rs";
    lists.formats.push(path.to_owned());
    tree.insert(path.to_owned(), good.to_owned());
    assert_eq!(rules::formats(&tree, &lists), [""; 0]);
    tree.insert(path.to_owned(), good.replace("SIZE", ""));
    only(&rules::formats(&tree, &lists), "table");
    tree.insert(path.to_owned(), good.replace("+--", "").replace('|', ""));
    only(&rules::formats(&tree, &lists), "drawing");
    let head = tree["engine/src/segment/mod.rs"].clone();
    tree.insert("engine/src/segment/mod.rs".to_owned(), format!("//! Segment.\n//! +--+\n{head}"));
    assert_eq!(rules::formats(&tree, &lists), [""; 0]);
    tree.insert("engine/src/segment/mod.rs".to_owned(), head);
    tree.insert(path.to_owned(), good.replace("//!", "///"));
    assert_eq!(rules::formats(&tree, &lists).len(), 2);
}

#[test]
fn unsafe_outside_its_list_is_caught() {
    let (mut tree, mut lists) = sound();
    let words = "//! unsafe\n#![expect(unsafe_code)]\nconst TEXT: &str = \"unsafe\"; // unsafe\n";
    tree.insert("aio/src/lib.rs".to_owned(), words.to_owned());
    assert_eq!(rules::unsafe_code(&tree, &lists), [""; 0]);
    tree.insert("aio/src/lib.rs".to_owned(), format!("{words}un{}", "safe fn f() {}"));
    only(&rules::unsafe_code(&tree, &lists), "aio/src/lib.rs");
    lists.with_unsafe.push("aio/src/lib.rs".to_owned());
    assert_eq!(rules::unsafe_code(&tree, &lists), [""; 0]);
}

#[test]
fn long_files_and_files_without_purpose_are_caught() {
    let long = |lines: usize| tree(&[("wal/tests/long.rs", &format!("//! a\n{}", "\n".repeat(lines - 1)))]);
    assert_eq!(rules::shape(&long(600)), [""; 0]);
    only(&rules::shape(&long(601)), "601 lines");
    only(&rules::shape(&tree(&[("aio/src/x.rs", "// a\n//! b\n")])), "does not start with `//!`");
    only(&rules::shape(&tree(&[("aio/src/x.rs", "//!\n")])), "does not start with `//!`");
}

#[test]
fn machine_paths_are_caught() {
    let text = format!("see {}{}", "/ho", "me/me/notes");
    only(&rules::machine_paths(&tree(&[("README.md", &text)])), "README.md:1");
}

#[test]
fn the_lists_are_read_from_their_blocks() {
    let order = "# how it is read\n\na/src/lib.rs\nb/src/lib.rs\n";
    let text = "x\n```unsafe\na/src/lib.rs - why\n```\n```formats\n```";
    let lists = Lists::read(order, text);
    assert_eq!(lists.files, ["a/src/lib.rs", "b/src/lib.rs"]);
    assert_eq!(lists.with_unsafe, ["a/src/lib.rs"]);
    assert!(lists.formats.is_empty());
}
