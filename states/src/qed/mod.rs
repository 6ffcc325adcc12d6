//! QED: what of it is not shared with other formats. Format rules are cited by their labels (Q1.., QE1..) of
//! docs/qed.md.

mod check;
mod header;

pub use check::Check;
pub use header::{CreateOptions, Header};
