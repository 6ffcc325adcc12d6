//! Requests on their way: what each step of an acb does.

mod control;
pub(in crate::image) mod decode;
pub(in crate::image) mod find;
pub(in crate::image) mod link;
mod unmap;
mod write;
mod zero;
