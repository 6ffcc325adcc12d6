//! Bytes of requests: buffers of given lengths, and requests that make zeros.
//!
//! Knows: buffers and requests. Must never know: commands, the tool.

use quod::{Buffer, Buffers, Completion, Request};

/// Buffers of these lengths.
pub fn buffers(lengths: &[u64]) -> Vec<Buffer> {
    filled(lengths, Buffer::zeroed)
}

/// All bytes that a read or a write brought back.
pub fn gather(done: &Completion) -> Vec<u8> {
    done.kind.buffers().map_or_else(Vec::new, Buffers::to_vec)
}

/// Cuts bytes into buffers of these lengths.
pub fn fill(lengths: &[u64], bytes: &[u8]) -> Vec<Buffer> {
    let mut rest = bytes;
    filled(lengths, |length| {
        let (now, later) = rest.split_at(length);
        rest = later;
        Buffer::from(now)
    })
}

/// A buffer for each length that is none; at least one, as a request has to have.
fn filled(lengths: &[u64], mut make: impl FnMut(usize) -> Buffer) -> Vec<Buffer> {
    let mut buffers: Vec<Buffer> =
        lengths.iter().filter(|&&length| length > 0).map(|&length| make(length as usize)).collect();
    if buffers.is_empty() {
        buffers.push(Buffer::zeroed(0));
    }
    buffers
}

/// With FUA if asked.
pub fn durable(request: Request, fua: bool) -> Request {
    if fua { request.fua() } else { request }
}

/// A request that makes zeros.
pub fn zeroes(offset: u64, len: u64, unmap: bool, user: u64) -> Request {
    let request = Request::write_zeroes(offset, len, user);
    if unmap { request.may_unmap() } else { request }
}
