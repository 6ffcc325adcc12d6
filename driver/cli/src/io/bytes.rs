//! Bytes of requests: buffers of given lengths, and requests that make zeros.
//!
//! Knows: buffers and requests. Must never know: commands, the tool.

use quod::{Buffer, Buffers, Request};

/// Buffers of these lengths.
pub fn buffers(lengths: &[u64]) -> Vec<Buffer> {
    lengths.iter().filter(|&&length| length > 0).map(|&length| Buffer::zeroed(length as usize)).collect()
}

/// All bytes of a scatter list.
pub fn gather(buffers: &Buffers) -> Vec<u8> {
    match buffers {
        Buffers::Owned(buffer) => buffer.as_slice().to_vec(),
        Buffers::Vec(buffers) => buffers.iter().flat_map(|buffer| buffer.as_slice()).copied().collect(),
        Buffers::Raw(_) | Buffers::None => Vec::new(),
    }
}

/// Cuts bytes into buffers of these lengths.
pub fn fill(lengths: &[u64], bytes: &[u8]) -> Vec<Buffer> {
    let mut rest = bytes;
    let mut buffers = Vec::new();
    for &length in lengths.iter().filter(|&&length| length > 0) {
        let (now, later) = rest.split_at(length as usize);
        buffers.push(Buffer::from(now));
        rest = later;
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
