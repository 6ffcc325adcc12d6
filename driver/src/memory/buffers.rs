//! Memory: guest buffers as scatter lists, and the arena of aligned buffers for tables, bounces and fills.
//!
//! Knows: addresses, lengths, alignment. Must never know: files, offsets in files, machines.
//! The only room of the driver with `unsafe`. Invariants: a segment given to an operation stays valid until
//! the operation's completion was reaped, because guest buffers stay in their request's slot and arena
//! buffers are given back only then; and because the driver drops its backend (which waits for what is in
//! flight) before both.

use quod_backend::{Buffer, Segment, Segments};

/// Memory that is valid because somebody promised it: guest memory, for instance (`guest_memory` among the
/// examples takes it from vm-memory). One segment costs no allocation.
///
/// ```
/// use quod::{Buffers, RawBuffers, Request, Segment};
/// let mut memory = vec![7u8; 8192]; // mapped by somebody else, in earnest
/// let (header, body) = memory.split_at_mut(512);
/// // SAFETY: the memory outlives the driver, and nobody touches it before the completion.
/// let buffers = unsafe {
///     RawBuffers::new([
///         Segment::new(header.as_mut_ptr(), header.len()),
///         Segment::new(body.as_mut_ptr(), 4096),
///     ])
/// };
/// let request = Request::write(0, buffers, 1);
/// # assert_eq!(request.kind.into_buffers().map(|buffers| buffers.len()), Some(512 + 4096));
/// ```
#[derive(Clone, Debug, Default)]
pub struct RawBuffers {
    segments: Segments,
}

impl RawBuffers {
    /// # Safety
    /// As long as this value exists, and from the submission of the request that carries it until its
    /// completion was taken (or the driver dropped), the segments keep the promise of [`Segment::new`]: they
    /// stay valid, and nobody else writes to them (reads from them, if the request is a read). Guest memory
    /// that the guest changes meanwhile is allowed.
    pub unsafe fn new(segments: impl IntoIterator<Item = Segment>) -> RawBuffers {
        RawBuffers { segments: segments.into_iter().collect() }
    }

    /// The segments.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

/// Where the bytes of a request are; `into()` makes them of a [`Buffer`], a `Vec` of such, or [`RawBuffers`].
/// They move into the request, and come back once: with its completion, or with its refusal.
///
/// ```
/// use quod::{Buffer, Buffers, Request};
/// // a pool keeps buffers of a few lengths, and a request uses as much of one as it needs
/// let pooled = Buffer::zeroed(64 << 10);
/// let request = Request::read(0, Buffers::Front(pooled, 5000), 1);
/// # let buffers = request.kind.into_buffers().unwrap();
/// # assert_eq!(buffers.len(), 5000);
/// # assert_eq!(buffers.into_owned().map(|buffer| buffer.as_slice().len()), Some(64 << 10));
/// ```
#[derive(Debug)]
pub enum Buffers {
    /// One buffer of our own.
    Owned(Buffer),
    /// The first bytes of a buffer of our own: so many, or all of it if there are fewer.
    Front(Buffer, usize),
    /// Several.
    Vec(Vec<Buffer>),
    /// Memory of the embedder.
    Raw(RawBuffers),
}

impl Buffers {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Buffers::Owned(buffer) => buffer.as_slice().len() as u64,
            Buffers::Front(buffer, len) => buffer.as_slice().len().min(*len) as u64,
            Buffers::Vec(buffers) => buffers.iter().map(|buffer| buffer.as_slice().len() as u64).sum(),
            Buffers::Raw(raw) => raw.segments.iter().map(|segment| segment.len() as u64).sum(),
        }
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Not one buffer, not even of no bytes.
    pub(crate) fn is_nowhere(&self) -> bool {
        match self {
            Buffers::Owned(_) | Buffers::Front(..) => false,
            Buffers::Vec(buffers) => buffers.is_empty(),
            Buffers::Raw(raw) => raw.segments.is_empty(),
        }
    }

    /// Copies the bytes to the front of `to`, as many as fit; returns how many.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let slice = |bytes: &[u8], at: usize, to: &mut [u8]| {
            let take = bytes.len().min(to.len() - at);
            to[at..at + take].copy_from_slice(&bytes[..take]);
            at + take
        };
        match self {
            Buffers::Owned(buffer) => slice(buffer.as_slice(), 0, to),
            Buffers::Front(buffer, len) => slice(front(buffer, *len), 0, to),
            Buffers::Vec(buffers) => buffers.iter().fold(0, |at, buffer| slice(buffer.as_slice(), at, to)),
            Buffers::Raw(raw) => gather(&raw.segments, to),
        }
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len() as usize];
        let copied = self.copy_to(&mut bytes);
        debug_assert_eq!(copied, bytes.len(), "bytes of a scatter list were left out");
        bytes
    }

    /// The buffer of [`Buffers::Owned`], and the whole one of [`Buffers::Front`].
    pub fn into_owned(self) -> Option<Buffer> {
        match self {
            Buffers::Owned(buffer) | Buffers::Front(buffer, _) => Some(buffer),
            _ => None,
        }
    }
}

impl From<Buffer> for Buffers {
    fn from(buffer: Buffer) -> Buffers {
        Buffers::Owned(buffer)
    }
}

impl From<Vec<Buffer>> for Buffers {
    fn from(buffers: Vec<Buffer>) -> Buffers {
        Buffers::Vec(buffers)
    }
}

impl From<RawBuffers> for Buffers {
    fn from(raw: RawBuffers) -> Buffers {
        Buffers::Raw(raw)
    }
}

impl Buffers {
    /// All bytes as one scatter list. The caller keeps `self` alive and untouched while the list is in use.
    pub(crate) fn scatter_list(&mut self) -> Segments {
        let one = |buffer: &mut Buffer, most: usize| {
            let len = buffer.as_slice().len().min(most);
            // SAFETY: the buffer moves into its request's slot next and is given back only with the
            // completion; moving a `Buffer` does not move its bytes.
            unsafe { buffer.segment(0, len) }
        };
        match self {
            Buffers::Owned(buffer) => Segments::from_buf([one(buffer, usize::MAX)]),
            Buffers::Front(buffer, len) => Segments::from_buf([one(buffer, *len)]),
            Buffers::Vec(buffers) => buffers.iter_mut().map(|buffer| one(buffer, usize::MAX)).collect(),
            Buffers::Raw(raw) => raw.segments.clone(),
        }
    }
}

/// The first bytes of a buffer, at most all of it.
fn front(buffer: &Buffer, len: usize) -> &[u8] {
    let bytes = buffer.as_slice();
    &bytes[..bytes.len().min(len)]
}

/// A whole buffer of the arena as a segment.
pub(crate) fn whole(buffer: &mut Buffer) -> Segment {
    let len = buffer.as_slice().len();
    part(buffer, 0, len)
}

/// Part of a buffer of the arena as a segment.
pub(crate) fn part(buffer: &mut Buffer, offset: usize, len: usize) -> Segment {
    // SAFETY: the arena touches the bytes of a loan only through whoever holds the loan, and the in-flight
    // table holds it until the operation was reaped; the arena lives longer than the backend.
    unsafe { buffer.segment(offset, len) }
}

/// Part of a segment.
///
/// # Panics
/// If the range is outside the segment.
#[inline]
pub(crate) fn within(segment: Segment, offset: usize, len: usize) -> Segment {
    assert!(offset <= segment.len() && len <= segment.len() - offset, "part outside its segment");
    // SAFETY: the range is inside the segment and shares its promise.
    unsafe { Segment::new(segment.address().add(offset), len) }
}

/// The first `len` bytes of a loan's memory, which `keeper` keeps alive.
pub(crate) fn view<T>(keeper: &T, memory: Segment, len: usize) -> &[u8] {
    let _ = keeper;
    let part = within(memory, 0, len);
    // SAFETY: memory of the arena (the only caller), initialised, kept while `keeper` is borrowed, and on
    // loan to the caller, who knows that no operation uses it. Only this loan's bytes are touched: operations
    // use the neighbours.
    unsafe { std::slice::from_raw_parts(part.address(), len) }
}

/// As `view`, to change.
pub(crate) fn view_mut<T>(keeper: &mut T, memory: Segment, len: usize) -> &mut [u8] {
    let _ = keeper;
    let part = within(memory, 0, len);
    // SAFETY: as in `view`; the exclusive borrow of the arena excludes other views.
    unsafe { std::slice::from_raw_parts_mut(part.address(), len) }
}

/// `len` bytes of a scatter list from `offset` on (fewer if the list ends before).
#[inline]
pub(crate) fn cut(segments: &[Segment], offset: u64, len: u64) -> Segments {
    match segments {
        &[only] if offset <= only.len() as u64 && len <= only.len() as u64 - offset && len > 0 => {
            Segments::from_buf([within(only, offset as usize, len as usize)])
        }
        _ => cut_list(segments, offset, len),
    }
}

fn cut_list(segments: &[Segment], offset: u64, len: u64) -> Segments {
    let mut out = Segments::new();
    cut_into(segments, offset, len, &mut out);
    out
}

/// As `cut`, behind what a list has.
pub(crate) fn cut_into(segments: &[Segment], offset: u64, len: u64, out: &mut Segments) {
    let (mut skip, mut left) = (offset, len);
    for segment in segments {
        let size = segment.len() as u64;
        if skip >= size {
            skip -= size;
            continue;
        }
        let take = left.min(size - skip);
        if take == 0 {
            break;
        }
        // SAFETY: `skip + take <= size`, so the part lies inside the segment and shares its promise.
        out.push(unsafe { Segment::new(segment.address().add(skip as usize), take as usize) });
        skip = 0;
        left -= take;
    }
    debug_assert_eq!(left, 0, "the machine named bytes outside its request's buffer");
}

/// Bytes of a scatter list.
pub(crate) fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.len() as u64).sum()
}

/// Fills a scatter list with zeros.
pub(crate) fn zero(segments: &[Segment]) {
    for segment in segments {
        // SAFETY: inside this crate segments come from requests that are not completed or from arena buffers
        // on loan; both are valid, and the caller is about to be told that this read is finished, so no
        // operation fills them now.
        unsafe { segment.address().write_bytes(0, segment.len()) }
    }
}

/// Copies `from` to the front of a scatter list, and zeros to the rest of it.
pub(crate) fn scatter(mut from: &[u8], segments: &[Segment]) {
    for segment in segments {
        let take = segment.len().min(from.len());
        let (now, later) = from.split_at(take);
        // SAFETY: as in `zero`; `from` is a buffer of our own and overlaps no destination.
        unsafe {
            segment.address().copy_from_nonoverlapping(now.as_ptr(), take);
            segment.address().add(take).write_bytes(0, segment.len() - take);
        }
        from = later;
    }
}

/// Copies a scatter list to the front of `to`; returns how many bytes.
pub(crate) fn gather(segments: &[Segment], to: &mut [u8]) -> usize {
    let mut at = 0;
    for segment in segments {
        let take = segment.len().min(to.len() - at);
        // SAFETY: the segment is valid for reads (as in `zero`); the destination is checked to have `take`
        // bytes left and is an exclusive borrow. The guest may change its memory meanwhile: any mixture of
        // bytes will do then.
        unsafe { to.as_mut_ptr().add(at).copy_from_nonoverlapping(segment.address(), take) }
        at += take;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(sizes: &[usize]) -> Buffers {
        let mut next = 0u8;
        let mut make = |len: usize| {
            let mut buffer = Buffer::zeroed(len);
            for byte in buffer.as_mut_slice() {
                *byte = next;
                next = next.wrapping_add(1);
            }
            buffer
        };
        Buffers::Vec(sizes.iter().map(|&len| make(len)).collect())
    }

    #[test]
    fn a_front_is_as_long_as_it_says_and_no_longer_than_its_buffer() {
        for (asked, len) in [(0, 0), (3, 3), (8, 8), (9, 8), (usize::MAX, 8)] {
            let mut front = Buffers::Front(Buffer::from(&b"abcdefgh"[..]), asked);
            assert_eq!((front.len(), front.is_nowhere()), (len, false));
            assert_eq!(front.to_vec(), b"abcdefgh"[..len as usize]);
            assert_eq!(total(&front.scatter_list()), len);
            assert_eq!(front.into_owned().map(|buffer| buffer.as_slice().len()), Some(8));
        }
    }

    proptest! {
        #[test]
        fn cutting_is_slicing(sizes in prop::collection::vec(0usize..40, 1..9), a: u64, b: u64) {
            let mut buffers = list(&sizes);
            let all = buffers.len();
            let (a, b) = (a % (all + 1), b % (all + 1));
            let (from, to) = (a.min(b), a.max(b));
            let segments = buffers.scatter_list();
            let part = cut(&segments, from, to - from);
            prop_assert_eq!(total(&part), to - from);
            let mut flat = vec![0xffu8; (to - from) as usize];
            prop_assert_eq!(gather(&part, &mut flat) as u64, to - from);
            let want: Vec<u8> = (from..to).map(|byte| byte as u8).collect();
            prop_assert_eq!(flat, want);
        }

        #[test]
        fn scattering_zeros_the_rest(sizes in prop::collection::vec(0usize..40, 1..9), got in 0usize..400) {
            let mut buffers = list(&sizes);
            let segments = buffers.scatter_list();
            let all = total(&segments) as usize;
            let got = got.min(all);
            scatter(&vec![7u8; got], &segments);
            let mut flat = vec![0xffu8; all];
            gather(&segments, &mut flat);
            prop_assert!(flat[..got].iter().all(|&byte| byte == 7));
            prop_assert!(flat[got..].iter().all(|&byte| byte == 0));
        }
    }
}
