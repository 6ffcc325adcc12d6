//! Opening: what is read, what is refused, what is put in order before an image is ready.

mod edges;
mod header;
mod qcow2;
mod short_answers;
mod unclean;
