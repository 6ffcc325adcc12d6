//! The tables of a qcow2 image as text, each entry looked at where it stands: in its own bits, where it
//! leads, and whether what is there is counted as it says.
//!
//! Knows: entries, counts, places of metadata. Must never know: what a repair does.
//!
//! Invariants:
//! * an L2 table is told once, whoever leads there (as long as the set of those that are known has room);
//! * a snapshot's flag of being counted once is not judged: nobody keeps it up.

use super::counts::Counts;
use super::header::{self, Facts};
use super::places::Places;
use super::records::{self, Table};
use super::telling::{DumpError, Telling};
use super::text::{About, Damage, Runs};
use super::words;

use quod_states::qcow2::bitmap::{self, Piece};
use quod_states::qcow2::{L1, L2};

/// Bytes of an L1 table and of a refcount table that are told at most: QEMU's limits.
const L1_MAX: u64 = 32 << 20;
const REFTABLE_MAX: u64 = 8 << 20;
/// What is told of a table that leads nowhere good.
const BEYOND: &str = "leads beyond the end of the file";

/// What the entries are judged by.
struct Judge {
    facts: Facts,
    counts: Counts,
    places: Places,
}

/// Which L1 table.
#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Disk,
    Snapshot(u64),
}

fn says(what: &'static str, wrong: &'static str) -> About {
    About { what, damage: Some(Damage::Says(wrong)) }
}

fn entries_of(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word))
}

/// Tells the whole image.
pub(super) fn tell(telling: &mut Telling<'_, '_>) -> Result<(), DumpError> {
    let Some(facts) = header::tell(telling)? else { return Ok(()) };
    if facts.lazy {
        telling
            .text
            .remark("refcounts are postponed: until the image is closed or checked they may be wrong")?;
    }
    let snapshots = records::snapshots(telling, &facts)?;
    let bitmaps = records::bitmaps(telling, &facts)?;
    let mut judge = Judge { counts: Counts::new(facts.counts), places: Places::default(), facts };
    judge.note_places(&snapshots);
    reftable(telling, &mut judge)?;
    judge.places.sort();
    blocks(telling, &mut judge)?;
    let (at, entries) = judge.facts.l1;
    l1(telling, &mut judge, Owner::Disk, at, entries)?;
    for Table { index, at, entries } in snapshots {
        l1(telling, &mut judge, Owner::Snapshot(index), at, entries)?;
    }
    for table in bitmaps {
        bitmap_table(telling, &mut judge, table)?;
    }
    Ok(())
}

impl Judge {
    fn note_places(&mut self, snapshots: &[Table]) {
        let cluster = self.facts.shape.cluster_size();
        let (l1, reftable) = (self.facts.l1, self.facts.reftable);
        self.places.add(0, cluster, "overlaps the header");
        self.places.add(l1.0, (l1.1 * 8).min(L1_MAX), "overlaps the L1 table");
        self.places.add(reftable.0, reftable.1.min(REFTABLE_MAX), "overlaps the refcount table");
        for table in snapshots {
            self.places.add(table.at, (table.entries * 8).min(L1_MAX), "overlaps a snapshot's L1 table");
        }
        if let (at @ 1.., 1..) = self.facts.snapshots {
            self.places.add(at, cluster, "overlaps the snapshot table");
        }
    }

    /// Is what lies at `host` counted as an entry with this flag says? `copied` None: it says nothing.
    fn count(
        &mut self,
        telling: &mut Telling<'_, '_>,
        host: u64,
        copied: Option<bool>,
    ) -> Result<Option<Damage>, DumpError> {
        let count = self.counts.of(&mut telling.host, host >> self.facts.shape.cluster_bits)?;
        Ok(match (count, copied) {
            (Some(0), _) => Some(Damage::Count(0)),
            (Some(count), Some(copied)) if copied != (count == 1) => Some(Damage::Count(count)),
            _ => None,
        })
    }

    fn about_l1(
        &mut self,
        telling: &mut Telling<'_, '_>,
        owner: Owner,
        entry: u64,
    ) -> Result<About, DumpError> {
        let shape = self.facts.shape;
        let (host, copied) = match shape.decode_l1(0, entry) {
            Ok(L1::Unallocated) => return Ok(About::default()),
            Ok(L1::Table { host, copied }) => (host, copied),
            Err(error) => return Ok(says("", words::of(&error))),
        };
        let what = if copied { "table, copied" } else { "table" };
        if host >= telling.host.len() {
            return Ok(says(what, BEYOND));
        }
        if let Some(wrong) = self.places.under_table(host, shape.cluster_size()) {
            return Ok(says(what, wrong));
        }
        if owner == Owner::Disk && self.places.add_table(host) {
            return Ok(says(what, "two L1 entries lead to this L2 table"));
        }
        let damage = self.count(telling, host, (owner == Owner::Disk).then_some(copied))?;
        Ok(About { what, damage })
    }

    fn about_l2(
        &mut self,
        telling: &mut Telling<'_, '_>,
        owner: Owner,
        guest: u64,
        entry: (u64, u64),
    ) -> Result<About, DumpError> {
        let shape = self.facts.shape;
        let (what, host, len, copied) = match shape.decode_l2(guest, entry.0, entry.1) {
            Ok(L2::Unallocated) => return Ok(About::default()),
            Ok(L2::ZeroPlain) => return Ok(About { what: "zeros", damage: None }),
            Ok(L2::ZeroAllocated { host, copied }) => {
                ("zeros with space", host, shape.cluster_size(), Some(copied))
            }
            Ok(L2::Normal { host, copied }) if copied => {
                ("data, copied", host, shape.cluster_size(), Some(true))
            }
            Ok(L2::Normal { host, .. }) => ("data", host, shape.cluster_size(), Some(false)),
            Ok(L2::Compressed { host, len }) => ("compressed", host, u64::from(len), None),
            Ok(L2::Split { host: None, .. }) => return Ok(About { what: "subclusters", damage: None }),
            Ok(L2::Split { host: Some(host), copied, .. }) => {
                ("subclusters", host, shape.cluster_size(), Some(copied))
            }
            Err(error) => return Ok(says("", words::of(&error))),
        };
        if shape.data_file {
            let moved = self.facts.raw_data && host != guest;
            let damage = moved.then_some(Damage::Says("the offset in the data file is not the guest's"));
            return Ok(About { what, damage });
        }
        if host >= telling.host.len() {
            return Ok(says(what, BEYOND));
        }
        if let Some(wrong) = self.places.under_data(host, len) {
            return Ok(says(what, wrong));
        }
        let copied = copied.filter(|_| owner == Owner::Disk);
        let mut damage = self.count(telling, host, copied)?;
        let last = host + len - 1;
        if damage.is_none() && last >> shape.cluster_bits != host >> shape.cluster_bits {
            damage = self.count(telling, last, None)?;
        }
        Ok(About { what, damage })
    }
}

/// The refcount table, whose blocks are known then.
fn reftable(telling: &mut Telling<'_, '_>, judge: &mut Judge) -> Result<(), DumpError> {
    let (at, bytes) = judge.facts.reftable;
    let shape = judge.facts.shape;
    let told = bytes.min(REFTABLE_MAX) / 8;
    section(telling, "refcount_table", at, told)?;
    if told < bytes / 8 {
        telling.text.fault(&format!("of {} entries there may be {told} at most", bytes / 8))?;
    }
    let there = telling.entries_there(at, told, 8)?;
    let mut runs = Runs::of_entries(shape.cluster_size());
    let mut index = 0;
    telling.pieces(at, there * 8, |telling, _, bytes| {
        for entry in entries_of(bytes) {
            let about = match shape.decode_reftable(index, entry) {
                Ok(None) => About::default(),
                Ok(Some(block)) if block >= telling.host.len() => says("block", BEYOND),
                Ok(Some(_)) => About { what: "block", damage: None },
                Err(error) => says("", words::of(&error)),
            };
            judge.counts.add_block(entry, shape, telling.host.len());
            if about.damage.is_none() && entry != 0 {
                judge.places.add(entry, shape.cluster_size(), "overlaps a refcount block");
            }
            runs.push(telling.text, index, entry, None, about)?;
            index += 1;
        }
        Ok(())
    })?;
    Ok(runs.end(telling.text)?)
}

/// A table's first line. What there is of it may be less.
fn section(telling: &mut Telling<'_, '_>, what: &str, at: u64, entries: u64) -> Result<(), DumpError> {
    let there = (telling.host.len().saturating_sub(at) / 8).min(entries);
    telling.text.line("")?;
    Ok(telling.text.line(&format!("{what} at {at:#x} entries {there}"))?)
}

/// The refcount blocks.
fn blocks(telling: &mut Telling<'_, '_>, judge: &mut Judge) -> Result<(), DumpError> {
    let counts = judge.facts.counts;
    let cluster = judge.facts.shape.cluster_size();
    let clusters = telling.host.len().div_ceil(cluster);
    let list = judge.counts.blocks().to_vec();
    for (table_index, block) in list.into_iter().enumerate() {
        if block == 0 || !telling.is_new(block) {
            continue;
        }
        let first = (table_index as u64) << counts.block_bits();
        let there = cluster.min(telling.host.len() - block);
        let entries = (there * 8) >> counts.order;
        telling.text.line("")?;
        telling.text.line(&format!(
            "refcount_block {table_index} at {block:#x} entries {entries} bits {} first {first}",
            counts.bits()
        ))?;
        if there < cluster {
            telling.text.fault("goes beyond the end of the file")?;
        }
        if judge.counts.of(&mut telling.host, block >> counts.cluster_bits)? == Some(0) {
            telling.text.fault("its own refcount is 0")?;
        }
        let mut runs = Runs::of_counts();
        let mut cluster = first;
        telling.pieces(block, there, |telling, _, bytes| {
            for index in 0..(bytes.len() as u64 * 8) >> counts.order {
                let count = counts.get(bytes, index);
                let beyond = count != 0 && cluster >= clusters;
                let about = if beyond {
                    says("", "counts what lies beyond the end of the file")
                } else {
                    About::default()
                };
                runs.push(telling.text, cluster, count, None, about)?;
                cluster += 1;
            }
            Ok(())
        })?;
        runs.end(telling.text)?;
    }
    Ok(())
}

/// An L1 table, and the L2 tables that it leads to and that were not told yet.
fn l1(
    telling: &mut Telling<'_, '_>,
    judge: &mut Judge,
    owner: Owner,
    at: u64,
    entries: u64,
) -> Result<(), DumpError> {
    let shape = judge.facts.shape;
    let owner_name = match owner {
        Owner::Disk => "active".to_string(),
        Owner::Snapshot(index) => index.to_string(),
    };
    let told = entries.min(L1_MAX / 8);
    section(telling, &format!("l1 {owner_name}"), at, told)?;
    if told < entries {
        telling.text.fault(&format!("of {entries} entries there may be {told} at most"))?;
    }
    if !at.is_multiple_of(shape.cluster_size()) {
        telling.text.fault("does not begin at a cluster")?;
    }
    if owner == Owner::Disk && entries < shape.l1_entries(judge.facts.size) {
        telling.text.fault("is too small for the disk")?;
    }
    let there = telling.entries_there(at, told, 8)?;
    if there > 0
        && let Some(Damage::Count(_)) = judge.count(telling, at, None)?
    {
        telling.text.fault("its own refcount is 0")?;
    }
    let mut runs = Runs::of_entries(shape.cluster_size());
    let mut index = 0;
    telling.pieces(at, there * 8, |telling, _, bytes| {
        for entry in entries_of(bytes) {
            let about = judge.about_l1(telling, owner, entry)?;
            runs.push(telling.text, index, entry, None, about)?;
            index += 1;
        }
        Ok(())
    })?;
    runs.end(telling.text)?;
    let mut index = 0;
    telling.pieces(at, there * 8, |telling, _, bytes| {
        for entry in entries_of(bytes) {
            if let Ok(L1::Table { host, .. }) = shape.decode_l1(index, entry)
                && host < telling.host.len()
                && telling.is_new(host)
            {
                l2(telling, judge, owner, &owner_name, (index, host))?;
            }
            index += 1;
        }
        Ok(())
    })
}

/// An L2 table: of this L1 entry, at this place.
fn l2(
    telling: &mut Telling<'_, '_>,
    judge: &mut Judge,
    owner: Owner,
    owner_name: &str,
    (l1_index, host): (u64, u64),
) -> Result<(), DumpError> {
    let shape = judge.facts.shape;
    let guest_bits = shape.cluster_bits + shape.l2_bits();
    let guest =
        l1_index.checked_shl(guest_bits).filter(|guest| guest >> guest_bits == l1_index).unwrap_or(u64::MAX);
    let entries = cluster_there(telling, host, shape.cluster_size()) / shape.l2_entry_bytes();
    let behind = if shape.extended { " words 2" } else { "" };
    telling.text.line("")?;
    telling.text.line(&format!("l2 {owner_name} {l1_index} at {host:#x} entries {entries}{behind}"))?;
    telling.text.remark(&format!("guest offset {guest:#x}"))?;
    if entries < shape.l2_entries() {
        telling.text.fault("goes beyond the end of the file")?;
    }
    let mut runs = Runs::of_entries(shape.cluster_size());
    let mut index = 0;
    telling.pieces(host, entries * shape.l2_entry_bytes(), |telling, _, bytes| {
        let mut words = entries_of(bytes);
        while let Some(entry) = words.next() {
            let second = if shape.extended { words.next() } else { None };
            let guest = guest.saturating_add(index << shape.cluster_bits);
            let about = judge.about_l2(telling, owner, guest, (entry, second.unwrap_or(0)))?;
            runs.push(telling.text, index, entry, second, about)?;
            index += 1;
        }
        Ok(())
    })?;
    Ok(runs.end(telling.text)?)
}

/// Bytes of a cluster that are in the file.
fn cluster_there(telling: &Telling<'_, '_>, host: u64, cluster: u64) -> u64 {
    cluster.min(telling.host.len().saturating_sub(host))
}

/// The table of a bitmap; its bits are no metadata.
fn bitmap_table(telling: &mut Telling<'_, '_>, judge: &mut Judge, table: Table) -> Result<(), DumpError> {
    let shape = judge.facts.shape;
    let told = table.entries.min(bitmap::TABLE_MAX.into());
    section(telling, &format!("bitmap_table {}", table.index), table.at, told)?;
    let there = telling.entries_there(table.at, told, 8)?;
    let mut runs = Runs::of_entries(shape.cluster_size());
    let mut index = 0;
    telling.pieces(table.at, there * 8, |telling, _, bytes| {
        for entry in entries_of(bytes) {
            let about = match bitmap::decode_piece(index, entry, shape) {
                Ok(Piece::All(false)) => About::default(),
                Ok(Piece::All(true)) => About { what: "all set", damage: None },
                Ok(Piece::Stored(host)) if host >= telling.host.len() => says("bits", BEYOND),
                Ok(Piece::Stored(host)) => match judge.places.under_data(host, shape.cluster_size()) {
                    Some(wrong) => says("bits", wrong),
                    None => About { what: "bits", damage: judge.count(telling, host, None)? },
                },
                Err(error) => says("bits", words::of(&error)),
            };
            runs.push(telling.text, index, entry, None, about)?;
            index += 1;
        }
        Ok(())
    })?;
    Ok(runs.end(telling.text)?)
}
