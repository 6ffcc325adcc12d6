//! An option's data, taken apart.
//!
//! Knows: "Option types". Must never know: what is answered, which options came before.
//! Invariant: a string that leaves here is UTF-8 without NUL, of at most [`NAME_MAX`] bytes.

use crate::bytes::Reader;
use crate::context::Contexts;
use crate::wire::{NAME_MAX, info, opt};
use core::str;

/// What a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked<'a> {
    ExportName(&'a str),
    Abort,
    List,
    StartTls,
    Info { name: &'a str, go: bool, wants: Wants },
    StructuredReply,
    ExtendedHeaders,
    ListContexts { name: &'a str, contexts: Contexts },
    SetContexts { name: &'a str, contexts: Contexts },
    Unknown,
}

/// Information that is told only if it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wants {
    pub name: bool,
    pub description: bool,
}

/// What is wrong with the data of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Invalid(&'static str),
    TooBig(&'static str),
}

const SHORT: Fault = Fault::Invalid("the data end before what they announce");

/// A string ("Conventions").
fn string(bytes: &[u8]) -> Result<&str, Fault> {
    if bytes.len() > NAME_MAX {
        return Err(Fault::TooBig("a string of more than 4096 bytes"));
    }
    let text = str::from_utf8(bytes).map_err(|_| Fault::Invalid("a string that is not UTF-8"))?;
    if text.contains('\0') { Err(Fault::Invalid("a string with a NUL")) } else { Ok(text) }
}

fn counted<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Fault> {
    let len = reader.u32().ok_or(SHORT)?;
    if len as usize > NAME_MAX {
        // too long, or longer than the option: the latter is the rule that the protocol insists on
        let fault = Fault::TooBig("a string of more than 4096 bytes");
        return Err(if len as usize > reader.len() { SHORT } else { fault });
    }
    reader.bytes(len as usize).ok_or(SHORT)
}

fn without_data(data: &[u8], asked: Asked<'static>) -> Result<Asked<'static>, Fault> {
    if data.is_empty() { Ok(asked) } else { Err(Fault::Invalid("this option has no data")) }
}

/// Takes an option apart.
pub(crate) fn parse(option: u32, data: &[u8]) -> Result<Asked<'_>, Fault> {
    match option {
        opt::EXPORT_NAME => string(data).map(Asked::ExportName),
        // what comes with it is ignored
        opt::ABORT => Ok(Asked::Abort),
        opt::LIST => without_data(data, Asked::List),
        opt::STARTTLS => without_data(data, Asked::StartTls),
        opt::STRUCTURED_REPLY => without_data(data, Asked::StructuredReply),
        opt::EXTENDED_HEADERS => without_data(data, Asked::ExtendedHeaders),
        opt::INFO | opt::GO => information(data, option == opt::GO),
        opt::LIST_META_CONTEXT => {
            let (name, contexts) = contexts(data, true)?;
            Ok(Asked::ListContexts { name, contexts })
        }
        opt::SET_META_CONTEXT => {
            let (name, contexts) = contexts(data, false)?;
            Ok(Asked::SetContexts { name, contexts })
        }
        _ => Ok(Asked::Unknown),
    }
}

/// "`NBD_OPT_INFO` and `NBD_OPT_GO`".
fn information(data: &[u8], go: bool) -> Result<Asked<'_>, Fault> {
    let mut reader = Reader::new(data);
    let name = string(counted(&mut reader)?)?;
    let count = reader.u16().ok_or(SHORT)?;
    let mut wants = Wants::default();
    for _ in 0..count {
        match reader.u16().ok_or(SHORT)? {
            info::NAME => wants.name = true,
            info::DESCRIPTION => wants.description = true,
            // the export and its block sizes are told in any case; others are ignored
            _ => {}
        }
    }
    if !reader.is_empty() {
        return Err(Fault::Invalid("bytes behind the information requests"));
    }
    Ok(Asked::Info { name, go, wants })
}

/// "`NBD_OPT_LIST_META_CONTEXT`", "`NBD_OPT_SET_META_CONTEXT`": no query lists everything, and sets nothing.
fn contexts(data: &[u8], list: bool) -> Result<(&str, Contexts), Fault> {
    let mut reader = Reader::new(data);
    let name = string(counted(&mut reader)?)?;
    let count = reader.u32().ok_or(SHORT)?;
    let mut found = if list && count == 0 { Contexts::all() } else { Contexts::empty() };
    // each query takes four bytes of the data at least, so that the data bound the loop
    for _ in 0..count {
        found |= Contexts::matching(string(counted(&mut reader)?)?.as_bytes(), list);
    }
    if !reader.is_empty() {
        return Err(Fault::Invalid("bytes behind the queries"));
    }
    Ok((name, found))
}
