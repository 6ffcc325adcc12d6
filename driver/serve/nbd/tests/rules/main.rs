//! The rules of the protocol, each with its section of doc/proto.md (extended headers: of the branch
//! extension-ext-header).

mod common;
mod negotiation;
mod replies;
mod requests;
mod states;
mod tls;
