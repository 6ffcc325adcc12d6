//! Cache modes by name.
//!
//! Knows: QEMU's names. Must never know: which option asks.

/// What a mode says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cache {
    /// Past the host's page cache.
    pub direct: bool,
    /// Every write is durable when it ends.
    pub writethrough: bool,
    /// Flushes do nothing.
    pub unsafe_: bool,
}

/// The mode of this name. None: there is no such mode.
pub fn parse(name: &str) -> Option<Cache> {
    let (direct, writethrough, unsafe_) = match name {
        "none" | "off" => (true, false, false),
        "directsync" => (true, true, false),
        "writeback" => (false, false, false),
        "writethrough" => (false, true, false),
        "unsafe" => (false, false, true),
        _ => return None,
    };
    Some(Cache { direct, writethrough, unsafe_ })
}
