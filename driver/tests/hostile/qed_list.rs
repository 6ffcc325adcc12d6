//! The QED images of docs/hostile.md; what else is asked of them stands in `qed.rs`.

use crate::judge::{Row, report, words};
use crate::qed::{CLUSTER, DATA, END, FIELDS, Folder, L1, L2A, L2B, Sample};

/// A hand-made bad image.
pub struct Image {
    pub name: String,
    about: String,
    build: Box<dyn Fn() -> Sample + Sync>,
}

/// A table entry that says `value`.
fn entry(table: &'static str, at: usize, value: u64, what: &str) -> Image {
    let (name, about) = (format!("{table} {what}"), format!("the {table} entry is {value:#x}"));
    let build = move || {
        let mut sample = Sample::new();
        sample.long(at, value);
        sample
    };
    Image { name, about, build: Box::new(build) }
}

pub fn images() -> Vec<Image> {
    let fields = FIELDS.iter().map(|(field, at, width, value, _)| Image {
        name: format!("{field} {value:#x}"),
        about: format!("the header says {value:#x}"),
        build: Box::new(move || {
            let mut sample = Sample::new();
            sample.set(*at, *width, *value);
            sample
        }),
    });
    let values = [
        ("not at a cluster", (DATA + 512) as u64),
        ("into the header", CLUSTER as u64),
        ("to the L1 table", L1 as u64),
        ("to the first L2 table", L2A as u64),
        ("to the second L2 table", L2B as u64),
        ("to data", DATA as u64),
        ("at the end", END as u64),
        ("far away", 1 << 40),
        ("at the numeric edge", u64::MAX - 4095),
    ];
    let tables = [("L1", L1 + 8), ("L2", L2A + 8)];
    let entries =
        tables.into_iter().flat_map(|(table, at)| values.map(|(what, value)| entry(table, at, value, what)));
    let cuts =
        [63, 64, 512, L1, L1 + 100, L2A, L2A + 2000, L2B, DATA, DATA + 777, END - 1].map(|len| Image {
            name: format!("cut to {len}"),
            about: format!("the file ends after {len} bytes"),
            build: Box::new(move || {
                let mut sample = Sample::new();
                sample.0.truncate(len);
                sample
            }),
        });
    fields.chain(entries).chain(cuts).collect()
}

/// Does everything that can be done to it.
pub fn judge(image: &Image) -> Row {
    let folder = Folder::new();
    let (_, story) = folder.exercised("image.qed", &(image.build)(), &image.name);
    let open = story.open.as_ref().map_or_else(words, |()| "opens".to_string());
    let read = match (&story.open, &story.bad[..]) {
        (Err(_), _) => "-".to_string(),
        (_, []) => "all".to_string(),
        (_, bad) => format!("{} clusters not: {}", bad.len(), words(&bad[0].1)),
    };
    let write = match &story.write {
        Err(error) => words(error),
        Ok(all) => (if *all { "all" } else { "not all" }).to_string(),
    };
    let outcomes = [open, read, write, report(&story.check), report(&story.repair)];
    Row { name: image.name.clone(), about: image.about.clone(), outcomes }
}
