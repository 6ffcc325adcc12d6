//! Requests on their way: what each step of an acb does.

mod control;
pub(crate) mod decode;
pub(crate) mod find;
pub(crate) mod link;
mod unmap;
mod write;
mod zero;
