//! From what a machine names to what the backend does: one match.
//!
//! Knows: both vocabularies, request slots, fills. Must never know: why the machine wants it, how a
//! compressed cluster is had, or made: it leaves a want on the layer.
//! Where guest data has a file of its own, it goes there: reads and writes of data, zeros. Metadata,
//! compressed clusters, holes and the file's length are the image file's; a sync is both files'.
//! Invariant: writes are never rounded out (the machine aligned them).

use crate::layer::clusters::Want;
use crate::layer::flight::{Dest, FlightTask};
use crate::layer::out::{Out, fits, plain_outcome, round_out};
use crate::layer::packs::Pack;
use crate::layer::{Child, Layer, LayerFile, Origin};
use crate::memory::arena::Arena;
use crate::memory::buffers;
use crate::memory::fill::side;
use quod_backend::{Backend, Errno, Op, Output, Segments};
use quod_states::{AcbId, FillSource, Io, IoId, IoOp, Machine, Outcome, Part, RequestId};

/// A table read, or something without bytes: what opening and running machines have in common. None: not such
/// a thing.
pub(super) fn plain<M: Machine>(
    machine: &mut M,
    arena: &mut Arena,
    file: &LayerFile,
    allocate: bool,
    io: &Io,
) -> Option<(FlightTask, Op)> {
    let id = file.id;
    let op = match io.op {
        IoOp::ReadTable { offset, len } => {
            let (start, span, skip) = round_out(&file.stat, offset, u64::from(len));
            let loan = arena.take(span as usize);
            let segments = Segments::from_buf([arena.segment(&loan, 0, span as usize)]);
            return Some((
                FlightTask::ReadTable { loan, skip, len },
                Op::Read { file: id, offset: start, segments },
            ));
        }
        IoOp::WriteTable { offset, len } => {
            let loan = arena.take(len as usize);
            machine.encode(io.id, arena.bytes_mut(&loan, len as usize));
            let segments = Segments::from_buf([arena.segment(&loan, 0, len as usize)]);
            return Some((FlightTask::WriteTable { loan }, Op::Write { file: id, offset, segments }));
        }
        IoOp::ZeroRange { host, len, unmap } => Op::ZeroRange { file: id, offset: host, len, unmap },
        IoOp::Discard { host, len } => Op::Discard { file: id, offset: host, len },
        IoOp::PunchHole { host, len } => Op::PunchHole { file: id, offset: host, len },
        IoOp::Clear { host, len } => Op::ZeroRange { file: id, offset: host, len, unmap: false },
        IoOp::Grow { from, to } => Op::Grow { file: id, from, to, allocate },
        IoOp::SetLen { len } => Op::SetLen { file: id, len },
        IoOp::Length => Op::Stat { file: id },
        IoOp::Sync => Op::Sync { file: id },
        IoOp::ReadData { .. }
        | IoOp::ReadBacking { .. }
        | IoOp::ReadCompressed { .. }
        | IoOp::ForgetCompressed { .. }
        | IoOp::Yield
        | IoOp::ZeroBuffer { .. }
        | IoOp::ReadFill { .. }
        | IoOp::Compress { .. }
        | IoOp::WriteCompressed { .. }
        | IoOp::WriteData { .. } => return None,
    };
    Some((FlightTask::Plain, op))
}

/// The way back of [`plain`].
pub(super) fn land_plain<M: Machine>(
    machine: &mut M,
    arena: &mut Arena,
    io: IoId,
    task: FlightTask,
    result: Result<Output, Errno>,
) {
    match task {
        FlightTask::ReadTable { loan, skip, len } => {
            let (skip, end) = (skip as usize, skip as usize + len as usize);
            match result {
                Ok(Output::Bytes(bytes)) => {
                    let table = arena.bytes_mut(&loan, end);
                    table[end.min(usize::try_from(bytes).unwrap_or(end))..].fill(0);
                    machine.handle_completion(io, Outcome::Table(&table[skip..]));
                }
                Ok(_) => machine.handle_completion(io, Outcome::Failed(libc::EIO)),
                Err(errno) => machine.handle_completion(io, Outcome::Failed(errno.0)),
            }
            arena.give_back(loan);
        }
        FlightTask::WriteTable { loan } => {
            arena.give_back(loan);
            machine.handle_completion(io, plain_outcome(result));
        }
        _ => machine.handle_completion(io, plain_outcome(result)),
    }
}

/// A read of guest data into the request's own buffer: what most I/O is.
#[inline]
pub(super) fn read_data<B: Backend>(
    out: &mut Out<'_, B>,
    layer: &mut Layer,
    io: IoId,
    request: RequestId,
    buffer_offset: u64,
    len: u64,
    host: u64,
) {
    let segments = lease(layer, request, buffer_offset, len);
    let dest = Dest::Request { index: request.index, offset: buffer_offset };
    out.read(layer.data(), io, host, len, dest, segments);
}

/// A read of what surrounds a write's bytes: of the file, the layer below, or a compressed cluster.
fn read_fill<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer, io: &Io) {
    let IoOp::ReadFill { acb, part, part_len, at, len, source } = io.op else { return };
    let fill = &mut layer.fills[acb.index as usize][side(part)];
    let segment = fill.begin(&mut out.port.arena, acb.generation, part_len, at, len);
    let segments = Segments::from_buf([segment]);
    let dest = Dest::Fill { acb, part, at };
    match source {
        FillSource::Host(host) => out.read(layer.data(), io.id, host, u64::from(len), dest, segments),
        FillSource::Backing(offset) => {
            let origin = Origin::Fill(acb, part);
            out.child(Child { io: io.id, origin, offset, len: u64::from(len), segments });
        }
        FillSource::Compressed { host, bytes, within } => {
            let want = Want { io: io.id, dest, len: u64::from(len), host, bytes, within };
            layer.clusters.want(want);
        }
    }
}

/// Does what a layer's machine named, or sends it on its way. What nearly all I/O is, [`read_data`] and
/// [`write_data`], is tried before.
#[inline(never)]
pub(super) fn translate<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer, io: &Io) {
    match io.op {
        IoOp::ReadData { request, buffer_offset, len, host } => {
            read_data(out, layer, io.id, request, buffer_offset, len, host);
        }
        IoOp::ReadBacking { request, buffer_offset, len, guest } => {
            let segments = lease(layer, request, buffer_offset, len);
            let origin = Origin::Request(request.index);
            out.child(Child { io: io.id, origin, offset: guest, len, segments });
        }
        IoOp::ZeroBuffer { request, buffer_offset, len } => {
            let segments = buffers::cut(&layer.slots[request.index as usize].segments, buffer_offset, len);
            buffers::zero(&segments);
        }
        IoOp::ReadFill { .. } => read_fill(out, layer, io),
        IoOp::WriteData { .. } => write(out, layer, io),
        IoOp::ReadCompressed { request, buffer_offset: offset, len, host, bytes, within } => {
            layer.slots[request.index as usize].busy += 1;
            let dest = Dest::Request { index: request.index, offset };
            layer.clusters.want(Want { io: io.id, dest, len, host, bytes, within });
        }
        IoOp::Compress { request, len } => {
            layer.packs.ask(Pack { io: io.id, request: request.index, len });
        }
        IoOp::WriteCompressed { request, host, len, pad } => {
            let (file, end) = (layer.file.id, len as usize + pad as usize);
            // cannot fail: the machine writes once what it was told to be there
            let loan = layer.packs.take(request.index).expect("kept for the request");
            out.port.arena.bytes_mut(&loan, end)[len as usize..].fill(0);
            let segments = Segments::from_buf([out.port.arena.segment(&loan, 0, end)]);
            debug_assert!(fits(&layer.file.stat, host, &segments), "the machine named an unaligned write");
            out.send(io.id, FlightTask::WriteTable { loan }, Op::Write { file, offset: host, segments });
        }
        IoOp::ForgetCompressed { host, len } => layer.clusters.forget(host, len),
        IoOp::Yield => out.port.yielded.push((out.place, io.id)),
        IoOp::Sync if layer.data.is_some() => {
            for file in [layer.data().id, layer.file.id] {
                out.send(io.id, FlightTask::HalfSync, Op::Sync { file });
            }
        }
        IoOp::ZeroRange { host, len, unmap } => {
            out.send(
                io.id,
                FlightTask::Plain,
                Op::ZeroRange { file: layer.data().id, offset: host, len, unmap },
            );
        }
        _ => {
            let (image, file) = (&mut layer.image, &layer.file);
            if let Some((task, op)) = plain(image, &mut out.port.arena, file, layer.allocate_ahead, io) {
                out.send(io.id, task, op);
            }
        }
    }
}

/// Part of a request's buffer, for an operation or a child: the request does not end before it.
#[inline]
fn lease(layer: &mut Layer, request: RequestId, offset: u64, len: u64) -> Segments {
    let slot = &mut layer.slots[request.index as usize];
    slot.busy += 1;
    buffers::cut(&slot.segments, offset, len)
}

/// A write of a request's own bytes and nothing else, to where they fit: what most writes are. False: it is
/// not, and nothing was done.
#[inline]
pub(super) fn write_data<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer, io: &Io, hit: bool) -> bool {
    let IoOp::WriteData { acb, request, buffer_offset, len, host, head: 0, tail: 0, zero: false } = io.op
    else {
        return false;
    };
    let slot = &layer.slots[request.index as usize];
    let segments = buffers::cut(&slot.segments, buffer_offset, len);
    if !fits(&layer.data().stat, host, &segments) {
        return false;
    }
    layer.slots[request.index as usize].busy += 1;
    let op = Op::Write { file: layer.data().id, offset: host, segments };
    out.send(io.id, FlightTask::Write { acb, request: request.index, bounce: None, hit }, op);
    true
}

/// One write of head fill, guest bytes and tail fill: as a vector if every piece fits, otherwise gathered.
fn write<B: Backend>(out: &mut Out<'_, B>, layer: &mut Layer, io: &Io) {
    let IoOp::WriteData { acb, request, buffer_offset, len, host, head, tail, zero } = io.op else { return };
    let arena = &mut out.port.arena;
    // one list for all writes: most of them are gathered, and those that are not need a copy of it
    let list = &mut out.port.pieces;
    list.clear();
    append_fill(layer, arena, acb, Part::Head, head, list);
    let slot = &mut layer.slots[request.index as usize];
    slot.busy += 1;
    match zero {
        true => arena.append_zeros(list, len),
        false => buffers::cut_into(&slot.segments, buffer_offset, len, list),
    }
    append_fill(layer, arena, acb, Part::Tail, tail, list);
    let offset = host - u64::from(head);
    let (segments, bounce) = if fits(&layer.data().stat, offset, list) {
        (Segments::from_slice(list), None)
    } else {
        let size = buffers::total(list) as usize;
        let loan = arena.take(size);
        buffers::gather(list, arena.bytes_mut(&loan, size));
        (Segments::from_buf([arena.segment(&loan, 0, size)]), Some(loan))
    };
    debug_assert!(fits(&layer.data().stat, offset, &segments), "the machine named an unaligned write");
    let op = Op::Write { file: layer.data().id, offset, segments };
    out.send(io.id, FlightTask::Write { acb, request: request.index, bounce, hit: false }, op);
}

fn append_fill(layer: &Layer, arena: &mut Arena, acb: AcbId, part: Part, len: u32, out: &mut Segments) {
    layer.fills[acb.index as usize][side(part)].append(arena, acb.generation, len, out);
}

#[cfg(test)]
mod tests;
