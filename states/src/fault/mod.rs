//! What goes wrong, as types: nothing decides by a text, and nobody parses one.

mod op;

pub use op::Op;
