//! Images that already hold something: a list of parts, and what the guest sees of them.
//!
//! Knows: payloads, parts. Must never know: which scenario wants them.

use super::check::sound;
use super::create::create;
use super::edit::Editor;
use super::form::{Form, Shape};
use quod_backend::sim::{FileOptions, Sim};
use quod_bench::contract::payload;
use quod_bench::contract::{Checked, fail};
use std::sync::Arc;

/// What is made of the guest clusters from `first` on, or of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // first and count in clusters everywhere
pub enum Part {
    /// They have space of their own.
    Data { first: u64, count: u64 },
    /// They read as zeros; `keep`: and have space.
    Zero { first: u64, count: u64, keep: bool },
    /// They are compressed.
    Compressed { first: u64, count: u64 },
    /// One cluster whose subclusters of `data` hold data and those of `zero` are zeros.
    Subclusters { at: u64, data: u32, zero: u32 },
    /// The disk as it is now is kept.
    Snapshot,
    /// The host clusters below `end` are in use, if by nothing.
    Leaks { end: u64 },
}

/// An image that holds something.
#[derive(Clone, Debug)]
pub struct Start {
    /// The file.
    pub bytes: Vec<u8>,
    /// What the guest sees.
    pub content: Vec<u8>,
    /// What each snapshot holds.
    pub snapshots: Vec<Arc<[u8]>>,
    /// Clusters that are in use by nothing.
    pub leaks: u64,
}

/// Makes an image of these parts, in this order, over what shows from below; part `n` is the payload
/// `id + n`.
pub fn start(shape: &Shape, parts: &[Part], below: &[u8], id: u64) -> Checked<Start> {
    let mut content = vec![0; shape.size as usize];
    let shown = below.len().min(content.len());
    content[..shown].copy_from_slice(&below[..shown]);
    let bytes = create(shape)?;
    if parts.is_empty() {
        return Ok(Start { bytes, content, snapshots: Vec::new(), leaks: 0 });
    }
    let Form::Qcow2(_) = shape.form else { return fail("only qcow2 images are made of parts") };
    let (mut editor, mut snapshots) = (Editor::new(bytes)?, Vec::new());
    let cluster = shape.form.cluster();
    for (part, id) in parts.iter().zip(id..) {
        match *part {
            Part::Data { first, count } => {
                for n in first..first + count {
                    let range = range(shape, n);
                    payload::fill(id, n * cluster, &mut content[range.clone()]);
                    editor.data(n, &content[range])?;
                }
            }
            Part::Zero { first, count, keep } => {
                for n in first..first + count {
                    content[range(shape, n)].fill(0);
                    editor.zero(n, keep)?;
                }
            }
            Part::Compressed { first, count } => {
                for n in first..first + count {
                    let range = range(shape, n);
                    // payload does not shrink, so it repeats
                    for piece in content[range.clone()].chunks_mut(64) {
                        payload::fill(id, n * cluster, piece);
                    }
                    editor.compressed(n, &content[range])?;
                }
            }
            Part::Subclusters { at, data, zero } => {
                let range = range(shape, at);
                let unit = (cluster / 32) as usize;
                for (n, piece) in content[range.clone()].chunks_mut(unit).enumerate() {
                    let from = range.start + n * unit;
                    piece.fill(0);
                    match (data >> n & 1, zero >> n & 1) {
                        (1, _) => payload::fill(id, from as u64, piece),
                        (_, 1) => {}
                        _ => piece.iter_mut().zip(below.iter().skip(from)).for_each(|(to, from)| *to = *from),
                    }
                }
                editor.subclusters(at, data, zero, &content[range])?;
            }
            Part::Snapshot => {
                editor.snapshot()?;
                snapshots.push(content.as_slice().into());
            }
            Part::Leaks { end } => editor.leak(end)?,
        }
    }
    let (bytes, mut leaks) = (editor.into_bytes(), 0);
    if parts.iter().any(|part| matches!(part, Part::Leaks { .. })) {
        let mut sim = Sim::new();
        sim.insert_file("start", &bytes, FileOptions::default());
        leaks = sound(&sim, "start", "made of parts")?.leaks;
    }
    Ok(Start { bytes, content, snapshots, leaks })
}

/// Guest bytes of a cluster, as far as the disk reaches.
fn range(shape: &Shape, cluster: u64) -> std::ops::Range<usize> {
    let size = shape.form.cluster();
    ((cluster * size).min(shape.size) as usize)..((cluster * size + size).min(shape.size) as usize)
}
