//! Answers to options.
//!
//! Knows: "Option reply types". Must never know: which option is answered how.
//! Invariant: an answer fits a sink that has room for [`SINK_MIN`](crate::SINK_MIN) bytes.

use crate::bytes::{Sink, front};
use crate::context::Contexts;
use crate::export::Export;
use crate::option::{Fault, Wants};
use crate::wire::{MAXIMUM_PAYLOAD, NAME_MAX, OPTION_REPLY, TransmissionFlags, info, rep};

/// One reply: its parts behind its head.
pub(crate) fn reply(sink: &mut Sink, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut whole = sink.put(&OPTION_REPLY.to_be_bytes());
    whole &= sink.put(&option.to_be_bytes());
    whole &= sink.put(&kind.to_be_bytes());
    whole &= sink.put(&(len as u32).to_be_bytes());
    for part in parts {
        whole &= sink.put(part);
    }
    debug_assert!(whole, "the sink was asked for room before");
}

pub(crate) fn ack(sink: &mut Sink, option: u32) {
    reply(sink, option, rep::ACK, &[]);
}

/// With a text for people.
pub(crate) fn refuse(sink: &mut Sink, option: u32, kind: u32, text: &str) {
    reply(sink, option, kind, &[text.as_bytes()]);
}

pub(crate) fn fault(sink: &mut Sink, option: u32, fault: Fault) {
    match fault {
        Fault::Invalid(text) => refuse(sink, option, rep::ERR_INVALID, text),
        Fault::TooBig(text) => refuse(sink, option, rep::ERR_TOO_BIG, text),
    }
}

/// The front of a text that may be too long for a string of the protocol.
fn string(text: &str) -> &[u8] {
    front(text, NAME_MAX).as_bytes()
}

/// `NBD_REP_SERVER`.
pub(crate) fn server(sink: &mut Sink, option: u32, export: &Export<'_>) {
    let name = string(export.name);
    let len = (name.len() as u32).to_be_bytes();
    reply(sink, option, rep::SERVER, &[&len, name, string(export.description)]);
}

/// `NBD_REP_INFO`, as many as are needed. Block sizes come before the export: QEMU believes a size only with
/// the block size that it has heard by then.
pub(crate) fn infos(
    sink: &mut Sink,
    option: u32,
    export: &Export<'_>,
    flags: TransmissionFlags,
    wants: Wants,
) {
    let mut tell = |kind: u16, parts: [&[u8]; 3]| {
        let [first, second, third] = parts;
        reply(sink, option, rep::INFO, &[&kind.to_be_bytes(), first, second, third]);
    };
    if wants.name {
        tell(info::NAME, [string(export.name), &[], &[]]);
    }
    if wants.description && !export.description.is_empty() {
        tell(info::DESCRIPTION, [string(export.description), &[], &[]]);
    }
    let preferred = export.preferred.min(MAXIMUM_PAYLOAD);
    let sizes = [export.minimum, preferred, MAXIMUM_PAYLOAD].map(u32::to_be_bytes);
    tell(info::BLOCK_SIZE, [&sizes[0], &sizes[1], &sizes[2]]);
    tell(info::EXPORT, [&export.size.to_be_bytes(), &flags.bits().to_be_bytes(), &[]]);
}

/// `NBD_REP_META_CONTEXT`, one each. In a list the number means nothing and is zero.
pub(crate) fn contexts(sink: &mut Sink, option: u32, contexts: Contexts, listed: bool) {
    for context in contexts.iter_contexts() {
        let id = if listed { 0 } else { context.id() };
        reply(sink, option, rep::META_CONTEXT, &[&id.to_be_bytes(), context.name().as_bytes()]);
    }
}
