//! The files of one image, its guest's buffers, and the fill buffers of its control blocks.
//!
//! Knows: where each I/O finds its bytes. Must never know: when it is done. Invariant: data is written in
//! whole blocks of the device, and never beyond the end of the image's own file.

use crate::plain::plain;
use crate::store::Store;
use quod_states::{AcbId, FillSource, IoOp, Part, RequestId};
use std::collections::BTreeMap;

/// Bytes of a compressed cluster: of the file, from host offset on, `within` the cluster, into the last.
pub type Inflate = fn(&[u8], u64, u64, &mut [u8]);

/// What the guest's bytes of a cluster become; None: nothing shorter.
pub type Deflate = fn(&[u8]) -> Option<Vec<u8>>;

#[derive(Debug, Default)]
struct Fills {
    generation: u32,
    parts: [Vec<u8>; 2],
}

/// See the module's header.
#[derive(Debug)]
pub struct Memory {
    /// The image's own file.
    pub file: Vec<u8>,
    /// The external data file, of an image that has one.
    pub data: Option<Vec<u8>>,
    /// What the disk below shows.
    pub backing: Option<Vec<u8>>,
    /// Of requests in flight.
    pub buffers: BTreeMap<RequestId, Vec<u8>>,
    /// Bytes of a block of the device.
    pub align: u64,
    inflate: Inflate,
    /// How compressed writes are: not at all, as long as nobody says it.
    pub deflate: Option<Deflate>,
    /// What became of clusters, until it is written.
    packed: BTreeMap<RequestId, Vec<u8>>,
    fills: BTreeMap<u32, Fills>,
}

impl Memory {
    /// An image in one file.
    pub fn new(file: Vec<u8>, backing: Option<Vec<u8>>, align: u64, inflate: Inflate) -> Memory {
        let (buffers, fills, packed) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Memory { file, data: None, backing, buffers, align, inflate, deflate: None, packed, fills }
    }

    /// The file that holds the guest's data.
    fn data(&mut self) -> &mut Vec<u8> {
        self.data.as_mut().unwrap_or(&mut self.file)
    }

    /// What gets no completion; false: this does.
    pub fn at_once(&mut self, op: &IoOp) -> bool {
        match *op {
            IoOp::ZeroBuffer { request, buffer_offset, len } => {
                self.fill_buffer(request, buffer_offset, len, |_, to| to.fill(0));
            }
            // nothing is kept of compressed clusters
            IoOp::ForgetCompressed { .. } => {}
            _ => return false,
        }
        true
    }

    /// Does all else. `bytes`: as for [`plain`].
    pub fn perform(&mut self, op: &IoOp, bytes: &mut Vec<u8>) {
        if plain(&mut self.file, op, bytes) {
            return;
        }
        match *op {
            IoOp::ReadData { request, buffer_offset, len, host } => {
                let source = FillSource::Host(host);
                self.fill_buffer(request, buffer_offset, len, |memory, to| memory.read(source, to));
            }
            IoOp::ReadBacking { request, buffer_offset, len, guest } => {
                let source = FillSource::Backing(guest);
                self.fill_buffer(request, buffer_offset, len, |memory, to| memory.read(source, to));
            }
            IoOp::ReadCompressed { request, buffer_offset, len, host, bytes, within } => {
                let source = FillSource::Compressed { host, bytes, within };
                self.fill_buffer(request, buffer_offset, len, |memory, to| memory.read(source, to));
            }
            IoOp::ReadFill { acb, part, part_len, at, len, source } => {
                let mut fills = self.take_fills(acb);
                let buffer = &mut fills.parts[usize::from(part == Part::Tail)];
                buffer.resize(part_len as usize, 0);
                self.read(source, &mut buffer[at as usize..(at + len) as usize]);
                self.fills.insert(acb.index, fills);
            }
            IoOp::Compress { request, len } => {
                bytes.clear();
                let guest = &self.buffers[&request][..len as usize];
                if let Some(packed) = self.deflate.and_then(|deflate| deflate(guest)) {
                    bytes.extend((packed.len() as u32).to_le_bytes());
                    self.packed.insert(request, packed);
                }
            }
            IoOp::WriteCompressed { request, host, len, pad } => {
                let Some(mut packed) = self.packed.remove(&request) else {
                    panic!("nothing is kept of {request:?}")
                };
                assert_eq!(packed.len(), len as usize, "all of it is written");
                packed.resize((len + pad) as usize, 0);
                self.write_inside(host, &packed);
            }
            IoOp::WriteData { .. } => self.write_data(op),
            IoOp::ZeroRange { host, len, .. } => self.data().zero(host, len),
            ref other => panic!("it gets no completion: {other:?}"),
        }
    }

    /// Head fill, guest bytes, tail fill.
    fn write_data(&mut self, op: &IoOp) {
        let IoOp::WriteData { acb, request, buffer_offset, len, host, head, tail, zero } = *op else {
            return;
        };
        let [mut all, mut tail_bytes] = self.take_fills(acb).parts;
        all.resize(head as usize, 0);
        tail_bytes.resize(tail as usize, 0);
        if zero || len == 0 {
            all.resize(all.len() + len as usize, 0);
        } else {
            all.extend_from_slice(&self.buffers[&request][buffer_offset as usize..][..len as usize]);
        }
        all.extend_from_slice(&tail_bytes);
        self.write_inside(host - u64::from(head), &all);
    }

    fn write_inside(&mut self, start: u64, bytes: &[u8]) {
        let end = start + bytes.len() as u64;
        assert_eq!(start % self.align, 0, "data writes are aligned");
        assert_eq!(end % self.align, 0, "data writes are whole blocks");
        let inside = self.data.is_some() || end <= self.file.end();
        assert!(inside, "nothing is written beyond the file");
        self.data().write(start, bytes);
    }

    fn read(&self, source: FillSource, to: &mut [u8]) {
        match source {
            FillSource::Host(host) => self.data.as_ref().unwrap_or(&self.file).read(host, to),
            FillSource::Backing(guest) => {
                let below = self.backing.as_deref().unwrap_or_default();
                to.copy_from_slice(&below[guest as usize..][..to.len()]);
            }
            FillSource::Compressed { host, within, .. } => {
                (self.inflate)(&self.file, host, within.into(), to)
            }
        }
    }

    fn fill_buffer(
        &mut self,
        request: RequestId,
        offset: u64,
        len: u64,
        read: impl FnOnce(&Memory, &mut [u8]),
    ) {
        let Some(mut buffer) = self.buffers.remove(&request) else { panic!("no buffer of {request:?}") };
        read(self, &mut buffer[offset as usize..(offset + len) as usize]);
        self.buffers.insert(request, buffer);
    }

    /// The fill buffers of this acb; those of an earlier one of its slot are gone.
    fn take_fills(&mut self, acb: AcbId) -> Fills {
        let kept = self.fills.remove(&acb.index).filter(|fills| fills.generation == acb.generation);
        kept.unwrap_or_else(|| Fills { generation: acb.generation, ..Fills::default() })
    }
}
