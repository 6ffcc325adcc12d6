//! An encoder that quod was built without: what needs it is refused before it comes here.
//!
//! Knows: the face of an encoder. Must never know: which one is missing.

/// Makes nothing shorter.
#[derive(Default)]
pub(super) struct Absent;

impl Absent {
    /// A piece.
    pub(super) fn step(
        &mut self,
        _near: bool,
        _begins: Option<usize>,
        _input: &[u8],
        _last: bool,
        _output: &mut [u8],
    ) -> Option<usize> {
        None
    }

    /// All of it.
    pub(super) fn whole(&mut self, _near: bool, _input: &[u8], _output: &mut [u8]) -> Option<usize> {
        None
    }
}
