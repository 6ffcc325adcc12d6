//! A decoder that quod was built without: what needs it is refused before it comes here.
//!
//! Knows: the face of a decoder. Must never know: which one is missing.

/// Takes every stream for a corrupt one.
#[derive(Default)]
pub(super) struct Absent;

impl Absent {
    /// A piece of a stream.
    pub(super) fn step(
        &mut self,
        _begins: bool,
        _input: &[u8],
        _output: &mut [u8],
    ) -> Option<(usize, usize, bool)> {
        None
    }

    /// A stream that ends with its output.
    #[allow(dead_code, reason = "one of the two decoders has it")]
    pub(super) fn whole(&mut self, _input: &[u8], _output: &mut [u8]) -> bool {
        false
    }
}
