//! Sets of clusters of a file: which of them something refers to.
//!
//! Knows: numbers of clusters. Must never know: what they hold, who refers to them.
//!
//! Invariants:
//! * what is asked for in order is looked at in runs: 512 clusters at once where all of them are in, or none;
//! * memory follows what was put in: a page that has neither all of its clusters nor none takes 64 bytes. A
//!   room of 256 pages is found at once, and takes 4 KiB; there are at most [`ROOMS`] of them, and pages
//!   behind those are kept one by one: so few entries of an image cannot make much memory of a long file.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Clusters of a page.
pub(crate) const PAGE: u64 = 1 << PAGE_BITS;
pub(crate) const PAGE_BITS: u32 = 9;
/// Pages of a room.
const ROOM: usize = 256;
/// Rooms at most: enough for as many clusters as qcow2's check counts, and twice that again.
const ROOMS: u64 = 1 << 15;
/// What may be put in.
const MOST: u64 = 1 << 63;

/// Something for each page, kept a room at a time.
#[derive(Clone, Debug)]
pub(crate) struct Pages<T> {
    rooms: Vec<Option<Box<[T; ROOM]>>>,
    /// Behind all rooms that there may be.
    far: BTreeMap<u64, T>,
}

impl<T: Default> Pages<T> {
    pub(crate) const fn new() -> Pages<T> {
        Pages { rooms: Vec::new(), far: BTreeMap::new() }
    }

    /// Nothing was ever put in.
    pub(crate) fn is_empty(&self) -> bool {
        self.rooms.is_empty() && self.far.is_empty()
    }

    /// None: nothing was put in there, or around it.
    pub(crate) fn get(&self, page: u64) -> Option<&T> {
        let room = page / ROOM as u64;
        if room >= ROOMS {
            return self.far.get(&page);
        }
        self.rooms.get(room as usize)?.as_ref()?.get(page as usize % ROOM)
    }

    /// To be changed; made if it is not there.
    pub(crate) fn entry(&mut self, page: u64) -> &mut T {
        debug_assert!(page < MOST >> PAGE_BITS, "numbers are bounded where they are read");
        if page / ROOM as u64 >= ROOMS {
            return self.far.entry(page).or_default();
        }
        let room = (page / ROOM as u64) as usize;
        if room >= self.rooms.len() {
            self.rooms.resize_with(room + 1, || None);
        }
        let new = || Box::new(core::array::from_fn(|_| T::default()));
        &mut self.rooms[room].get_or_insert_with(new)[page as usize % ROOM]
    }

    /// Behind the last page of the last room.
    fn near_end(&self) -> u64 {
        debug_assert!(self.rooms.len() as u64 <= ROOMS, "pages behind those are kept one by one");
        (self.rooms.len() * ROOM) as u64
    }

    /// Behind the last page.
    fn end(&self) -> u64 {
        let behind_rooms = |(page, _): (&u64, &T)| *page >= ROOMS * ROOM as u64;
        debug_assert!(self.far.first_key_value().is_none_or(behind_rooms), "what is near has a room");
        self.far.last_key_value().map_or(self.near_end(), |(page, _)| page + 1)
    }

    /// The page behind this one, or a later one in front of which there is nothing.
    fn behind(&self, page: u64) -> u64 {
        let room = page / ROOM as u64;
        debug_assert!(page < self.end(), "nothing lies behind the end");
        let behind = match self.rooms.get(room as usize) {
            Some(Some(_)) => page + 1,
            Some(None) => (room + 1) * ROOM as u64,
            None => self.far.range(page + 1..).next().map_or(self.end(), |(page, _)| *page),
        };
        debug_assert!(behind > page, "a search gets on");
        behind
    }

    /// The pages in front of `end`, the last first.
    fn below(&self, end: u64) -> impl Iterator<Item = (u64, &T)> {
        let near = (0..end.min(self.near_end())).rev();
        let near = near.filter_map(|page| Some((page, self.get(page)?)));
        self.far.range(..end).rev().map(|(page, what)| (*page, what)).chain(near)
    }
}

/// Which clusters of a page are in.
#[derive(Clone, Debug, Default)]
enum Page {
    #[default]
    Without,
    All,
    Some(Box<[u64; (PAGE / 64) as usize]>),
}

/// Bits `from..to` of a word.
fn bits(from: u64, to: u64) -> u64 {
    debug_assert!(from < to && to <= 64);
    u64::MAX << from & u64::MAX >> (64 - to)
}

impl Page {
    /// 64 clusters.
    fn word(&self, n: usize) -> u64 {
        debug_assert!(n < (PAGE / 64) as usize);
        match self {
            Page::Without => 0,
            Page::All => u64::MAX,
            Page::Some(words) => words.get(n).copied().unwrap_or(0),
        }
    }

    /// To be changed one by one.
    fn words(&mut self) -> &mut [u64; (PAGE / 64) as usize] {
        if !matches!(self, Page::Some(_)) {
            *self = Page::Some(Box::new([self.word(0); (PAGE / 64) as usize]));
        }
        match self {
            Page::Some(words) => words,
            Page::Without | Page::All => unreachable!("just made"),
        }
    }

    /// See [`ClusterSet::claim`].
    fn claim(&mut self, from: u64, to: u64) -> u64 {
        debug_assert!(from < to && to <= PAGE);
        match self {
            Page::All => return from,
            Page::Without if to - from == PAGE => {
                *self = Page::All;
                return to;
            }
            Page::Without | Page::Some(_) => {}
        }
        let words = self.words();
        let mut at = from;
        while at < to {
            let word = &mut words[(at / 64) as usize];
            let mask = bits(at % 64, (to - at / 64 * 64).min(64));
            let taken = *word & mask;
            if taken != 0 {
                let first = taken.trailing_zeros();
                *word |= mask & !(u64::MAX << first);
                return at / 64 * 64 + u64::from(first);
            }
            *word |= mask;
            at = (at / 64 + 1) * 64;
        }
        if words[((to - 1) / 64) as usize] == u64::MAX && words.iter().all(|word| *word == u64::MAX) {
            *self = Page::All;
        }
        to
    }

    fn next(&self, from: u64) -> Option<u64> {
        debug_assert!(from < PAGE);
        let first = self.word((from / 64) as usize) & u64::MAX << (from % 64);
        let mut words = (from / 64 + 1..PAGE / 64).map(|n| (n, self.word(n as usize)));
        let (n, word) = match first {
            0 => words.find(|(_, word)| *word != 0)?,
            word => (from / 64, word),
        };
        let found = n * 64 + u64::from(word.trailing_zeros());
        debug_assert!(found >= from && found < PAGE, "it lies in the rest of the page");
        Some(found)
    }

    fn last_below(&self, to: u64) -> Option<u64> {
        debug_assert!(to > 0 && to <= PAGE);
        let part = |n: u64| self.word(n as usize) & bits(0, (to - n * 64).min(64));
        let found = (0..to.div_ceil(64)).rev().map(|n| (n, part(n))).find(|(_, word)| *word != 0);
        let found = found.map(|(n, word)| n * 64 + 63 - u64::from(word.leading_zeros()));
        debug_assert!(found.is_none_or(|found| found < to), "it lies in front of that");
        found
    }
}

/// See the module's header.
#[derive(Clone, Debug)]
pub(crate) struct ClusterSet {
    pages: Pages<Page>,
}

impl ClusterSet {
    pub(crate) const fn new() -> ClusterSet {
        ClusterSet { pages: Pages::new() }
    }

    pub(crate) fn contains(&self, cluster: u64) -> bool {
        let page = self.pages.get(cluster >> PAGE_BITS);
        page.is_some_and(|page| page.word((cluster % PAGE / 64) as usize) >> (cluster % 64) & 1 != 0)
    }

    /// Puts in the clusters from `first` on, up to the first that is in already, or `end`: which that is.
    pub(crate) fn claim(&mut self, first: u64, end: u64) -> u64 {
        debug_assert!(first <= end && end <= MOST);
        let mut at = first;
        while at < end {
            let page = at & !(PAGE - 1);
            let to = (end - page).min(PAGE);
            let reached = self.pages.entry(at >> PAGE_BITS).claim(at - page, to);
            debug_assert!(page + reached >= at && reached <= to);
            at = page + reached;
            if reached < to {
                break;
            }
        }
        debug_assert!(at == first || self.contains(at - 1), "those in front of it are in");
        debug_assert!(at == end || self.contains(at), "it was in already");
        at
    }

    pub(crate) fn remove(&mut self, cluster: u64) {
        if self.contains(cluster) {
            let page = self.pages.entry(cluster >> PAGE_BITS);
            page.words()[(cluster % PAGE / 64) as usize] &= !(1 << (cluster % 64));
        }
        debug_assert!(!self.contains(cluster));
    }

    /// The first cluster at or behind `cluster` that is in.
    pub(crate) fn next(&self, cluster: u64) -> Option<u64> {
        let (mut page, mut from) = (cluster >> PAGE_BITS, cluster % PAGE);
        while page < self.pages.end() {
            if let Some(found) = self.pages.get(page).and_then(|page| page.next(from)) {
                let found = (page << PAGE_BITS) + found;
                debug_assert!(found >= cluster && self.contains(found), "it is in, and not in front");
                return Some(found);
            }
            (page, from) = (self.pages.behind(page), 0);
        }
        None
    }

    /// The last cluster in front of `end` that is in.
    pub(crate) fn last_below(&self, end: u64) -> Option<u64> {
        let found = self.pages.below(end.div_ceil(PAGE)).find_map(|(page, clusters)| {
            let first = page << PAGE_BITS;
            Some(first + clusters.last_below((end - first).min(PAGE))?)
        });
        debug_assert!(found.is_none_or(|found| found < end && self.contains(found)), "it is in, in front");
        found
    }

    /// Has another set the same clusters of a page?
    pub(crate) fn same_page(&self, other: &ClusterSet, page: u64) -> bool {
        let none = Page::Without;
        let (one, other) = (self.pages.get(page).unwrap_or(&none), other.pages.get(page).unwrap_or(&none));
        match (one, other) {
            (Page::Without, Page::Without) | (Page::All, Page::All) => true,
            _ => (0..(PAGE / 64) as usize).all(|n| one.word(n) == other.word(n)),
        }
    }

    /// Behind all that is in.
    pub(crate) fn end(&self) -> u64 {
        debug_assert!(self.pages.end() <= MOST >> PAGE_BITS, "numbers are bounded where they are read");
        self.pages.end() << PAGE_BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    /// What [`ClusterSet::claim`] says, on a model.
    fn claim(model: &mut BTreeSet<u64>, first: u64, end: u64) -> u64 {
        (first..end).find(|cluster| !model.insert(*cluster)).unwrap_or(end)
    }

    fn place() -> impl Strategy<Value = u64> {
        // around the ends of words, pages and rooms
        let (room, far) = (ROOM as u64 * PAGE, ROOMS * ROOM as u64 * PAGE);
        let edges = alloc::vec![0, 64, PAGE, 2 * PAGE, room, 3 << 20, far, far + PAGE, 1 << 50];
        let edges = prop::sample::select(edges);
        (edges, 0..130u64).prop_map(|(edge, by)| (edge + by).saturating_sub(65))
    }

    fn length() -> impl Strategy<Value = u64> {
        prop::sample::select(alloc::vec![1, 64, PAGE, 700, 1500])
    }

    proptest! {
        #[test]
        fn a_set_has_what_was_claimed(
            claims in prop::collection::vec((place(), length()), 1..20),
            gone in prop::collection::vec(place(), 0..5),
            asked in prop::collection::vec(place(), 1..20),
        ) {
            let (mut set, mut model) = (ClusterSet::new(), BTreeSet::new());
            for (first, len) in claims {
                prop_assert_eq!(set.claim(first, first + len), claim(&mut model, first, first + len));
            }
            for cluster in gone {
                set.remove(cluster);
                model.remove(&cluster);
            }
            for at in asked {
                prop_assert_eq!(set.contains(at), model.contains(&at));
                prop_assert_eq!(set.next(at), model.range(at..).next().copied());
                prop_assert_eq!(set.last_below(at), model.range(..at).next_back().copied());
                prop_assert!(set.same_page(&set, at >> PAGE_BITS));
                let mut other = set.clone();
                other.remove(at);
                prop_assert_eq!(set.same_page(&other, at >> PAGE_BITS), !model.contains(&at));
            }
            prop_assert_eq!(set.last_below(u64::MAX), model.last().copied());
            prop_assert!(model.last().is_none_or(|last| *last < set.end()));
        }
    }

    #[test]
    fn pages_that_fill_up_are_as_those_that_were_claimed_whole() {
        let mut set = ClusterSet::new();
        for cluster in (0..2 * PAGE).rev() {
            assert_eq!(set.claim(cluster, cluster + 1), cluster + 1);
        }
        assert!(matches!((set.pages.get(0), set.pages.get(1)), (Some(Page::All), Some(Page::All))));
        assert_eq!(set.claim(0, 3 * PAGE), 0);
        assert_eq!(set.claim(2 * PAGE, 3 * PAGE), 3 * PAGE);
        set.remove(700);
        assert_eq!((set.contains(699), set.contains(700), set.next(700)), (true, false, Some(701)));
    }

    #[test]
    fn one_cluster_far_away_takes_one_room_or_one_page() {
        let mut set = ClusterSet::new();
        assert_eq!(set.claim(1 << 50, (1 << 50) + 1), (1 << 50) + 1);
        assert_eq!((set.pages.rooms.len(), set.next(0)), (0, Some(1 << 50)));
        assert_eq!((set.last_below(1 << 50), set.last_below(u64::MAX)), (None, Some(1 << 50)));
        let mut set = ClusterSet::new();
        assert_eq!(set.claim(u64::from(u32::MAX), 1 << 32), 1 << 32);
        assert_eq!(set.pages.rooms.iter().flatten().count(), 1);
        assert_eq!(set.next(0), Some(u64::from(u32::MAX)));
        assert_eq!(set.last_below(u64::MAX), Some(u64::from(u32::MAX)));
        assert_eq!(set.last_below(u64::from(u32::MAX)), None);
    }
}
