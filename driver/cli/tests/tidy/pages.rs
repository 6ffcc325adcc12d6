//! The documents name files that are there: a file that moves takes the pages that speak of it along.
//!
//! Checks, of README.md and docs/: each source file in backticks is the end of a tracked file's path.

use super::{none, read, tracked};

/// Names of the first plan, which architecture.md compares with what is there.
const PLANNED: [&str; 1] = ["invariants.rs"];

/// Source files that a page names and that are not there.
fn missing(page: &str, text: &str, names: &[String]) -> Vec<String> {
    let is_file = |word: &&str| word.ends_with(".rs") && !word.contains([' ', '*', '{', '<']);
    let is_there = |file: &str| {
        names
            .iter()
            .any(|name| name.strip_suffix(file).is_some_and(|rest| rest.is_empty() || rest.ends_with('/')))
    };
    let named = text.split('`').skip(1).step_by(2).filter(is_file).filter(|file| !PLANNED.contains(file));
    named.filter(|file| !is_there(file)).map(|file| format!("{page}: where is {file}?")).collect()
}

#[test]
fn pages_name_files_that_are_there() {
    let names = tracked();
    let pages = names.iter().filter(|name| name.starts_with("docs/") && name.ends_with(".md"));
    let pages: Vec<&String> = pages.chain(names.iter().filter(|name| *name == "README.md")).collect();
    assert!(pages.len() > 10, "{pages:?}");
    none(
        &pages
            .iter()
            .flat_map(|page| missing(page, &read(page).unwrap_or_default(), &names))
            .collect::<Vec<_>>(),
    );
}

mod samples {
    use super::*;

    #[test]
    fn files_that_moved_are_found() {
        let names = ["states/src/image/mod.rs", "driver/src/lib.rs"].map(String::from);
        assert_eq!(missing("a.md", "in `image/mod.rs` and `lib.rs`, `mod.rs`: `fn`", &names), [""; 0]);
        assert_eq!(missing("a.md", "in `age/mod.rs`, and `x/lib.rs`", &names).len(), 2);
        assert_eq!(missing("a.md", "`*.rs`, `invariants.rs`, gone.rs", &names), [""; 0]);
    }
}
