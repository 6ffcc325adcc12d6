//! What the embedder decides about an image.

use crate::rule::Rule;

/// When an allocating write completes. Both keep the same power-cut guarantee.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Policy {
    /// When its data is written and its mapping is live in memory; the next flush makes both durable. The
    /// default, and what a guest's volatile write cache means.
    #[default]
    Writeback,
    /// When its batch of pointers is written to the file too, as QED did: durable with the next flush as
    /// well. For durability before the completion use FUA.
    Writethrough,
}

/// What an allocating write waits for: the steps of the 2010 discussion, to be measured. An embedder leaves
/// the default.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AllocationGate {
    /// Every other allocating write of the image (QED as shipped).
    Image,
    /// Others only while one of them allocates an L2 table (the patch).
    NewTable,
    /// Other allocating writes under the same L2 table (the per-table queue).
    Table,
    /// Only an allocating write of the same cluster.
    #[default]
    Cluster,
}

/// Settings of one image's machine. All limits are hard. They are made from those by default:
/// `Options::default().align(512)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Requests that may be open at once.
    pub requests: u32,
    /// Control blocks: extents in progress at once. At least one.
    pub acbs: u32,
    /// Table cache, bytes (slices of 4 KiB).
    pub cache_bytes: u64,
    /// Offsets and lengths of writes must be multiples of this (1: buffered file).
    pub align: u32,
    /// See [`Policy`].
    pub policy: Policy,
    /// See [`AllocationGate`].
    pub allocation_gate: AllocationGate,
    /// Refuse everything that writes; write nothing.
    pub read_only: bool,
    /// Dirty mappings are committed after this many milliseconds.
    pub commit_ms: u32,
    /// QED's need-check bit is cleared after this many milliseconds without allocation.
    pub need_check_ms: u32,
    /// The file grows ahead of the data in steps of this many bytes.
    pub grow_step: u64,
    /// The file is as long as it is, by nobody's doing here, and holds anything where nothing was written: a
    /// block device.
    pub fixed_len: bool,
    /// Give out every state transition through `poll_transition`.
    pub trace: bool,
    /// Rules that are removed: a set of [`Rule`] bits.
    #[cfg(feature = "sabotage")]
    pub sabotage: u128,
}

macro_rules! setters {
    ($($field:ident: $kind:ty,)*) => {
        impl Options {
            $(
                #[doc = concat!("Sets [`Options::", stringify!($field), "`].")]
                pub const fn $field(mut self, $field: $kind) -> Options {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

setters! {
    requests: u32,
    acbs: u32,
    cache_bytes: u64,
    align: u32,
    policy: Policy,
    allocation_gate: AllocationGate,
    read_only: bool,
    commit_ms: u32,
    need_check_ms: u32,
    grow_step: u64,
    fixed_len: bool,
    trace: bool,
}

#[cfg(feature = "sabotage")]
setters! {
    sabotage: u128,
}

impl Options {
    /// Has the proof removed this rule? In a normal build none can be.
    #[cfg(feature = "sabotage")]
    #[inline]
    pub(crate) const fn sabotaged(&self, rule: Rule) -> bool {
        self.sabotage & rule as u128 != 0
    }

    #[cfg(not(feature = "sabotage"))]
    #[inline]
    pub(crate) const fn sabotaged(&self, _rule: Rule) -> bool {
        false
    }

    /// Has it removed any?
    #[cfg(feature = "sabotage")]
    pub(crate) const fn breaks_rules(&self) -> bool {
        self.sabotage != 0
    }

    #[cfg(not(feature = "sabotage"))]
    pub(crate) const fn breaks_rules(&self) -> bool {
        false
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            requests: 128,
            acbs: 256,
            cache_bytes: 32 << 20,
            align: 1,
            policy: Policy::Writeback,
            allocation_gate: AllocationGate::Cluster,
            read_only: false,
            commit_ms: 1000,
            need_check_ms: 5000,
            grow_step: 64 << 20,
            fixed_len: false,
            trace: false,
            #[cfg(feature = "sabotage")]
            sabotage: 0,
        }
    }
}
