//! Numbers of the wire: magic values, flags, types, limits. All integers on the wire are big-endian.
//!
//! Knows: proto.md, "Values". Must never know: what follows from a number.

use bitflags::bitflags;

pub(crate) const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// Of the greeting, and in front of each option.
pub(crate) const I_HAVE_OPT: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST: u32 = 0x2560_9513;
pub(crate) const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
pub(crate) const SIMPLE_REPLY: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY: u32 = 0x668e_33ef;
pub(crate) const EXTENDED_REPLY: u32 = 0x6e8a_278c;

/// Longest string, bytes ("Conventions").
pub const NAME_MAX: usize = 4096;
/// Longest option whose data are looked at, bytes: a name and some queries of contexts. A longer one is
/// skipped and answered.
pub const OPTION_MAX: usize = 16 << 10;
/// Longest option that is skipped, bytes: beyond what the protocol lets nobody take for an attack ("Size
/// constraints"), the connection ends.
pub(crate) const OPTION_SKIPPED_MAX: u32 = 32 << 20;
/// Options that a client may send: a client that looks at each of a thousand exports sends some thousands.
pub(crate) const OPTIONS_MAX: u32 = 16_384;
/// Bytes in front of an option's data.
pub(crate) const OPTION_HEAD: usize = 16;
/// The longest message that is looked at as a whole, bytes: the least that a window must be able to hold.
pub const WINDOW_MIN: usize = OPTION_HEAD + OPTION_MAX;
/// Room, bytes, that a sink needs for an answer: two strings of an export and what is around them.
pub const SINK_MIN: usize = 2 * NAME_MAX + 512;
/// Longest payload of a request or a reply, bytes, that is told ("Size constraints": at least 2^25).
pub const MAXIMUM_PAYLOAD: u32 = 32 << 20;
/// A write's payload beyond that is consumed up to here, bytes; a longer one ends the connection.
pub(crate) const PAYLOAD_SKIPPED_MAX: u32 = 2 * MAXIMUM_PAYLOAD;
/// Longest read that is answered in one piece if the client asks for that, bytes ("`NBD_CMD_READ`": at least
/// 65,536).
pub(crate) const UNFRAGMENTED_MAX: u32 = 1 << 20;

pub(crate) mod opt {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

pub(crate) mod rep {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR + 1;
    pub const ERR_POLICY: u32 = ERROR + 2;
    pub const ERR_INVALID: u32 = ERROR + 3;
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;
}

pub(crate) mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

pub(crate) mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

pub(crate) mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = (1 << 15) + 1;
    /// `NBD_REPLY_FLAG_DONE`.
    pub const DONE: u16 = 1;
}

bitflags! {
    /// "Handshake flags", and of the same numbers "Client flags".
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct HandshakeFlags: u32 {
        const FIXED_NEWSTYLE = 1;
        const NO_ZEROES = 1 << 1;
    }

    /// "Transmission flags".
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct TransmissionFlags: u16 {
        const HAS_FLAGS = 1;
        const READ_ONLY = 1 << 1;
        const SEND_FLUSH = 1 << 2;
        const SEND_FUA = 1 << 3;
        const SEND_TRIM = 1 << 5;
        const SEND_WRITE_ZEROES = 1 << 6;
        const SEND_DF = 1 << 7;
        const CAN_MULTI_CONN = 1 << 8;
        const SEND_CACHE = 1 << 10;
        const SEND_FAST_ZERO = 1 << 11;
        const BLOCK_STATUS_PAYLOAD = 1 << 12;
    }

    /// "Command flags".
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct CommandFlags: u16 {
        const FUA = 1;
        const NO_HOLE = 1 << 1;
        const DF = 1 << 2;
        const REQ_ONE = 1 << 3;
        const FAST_ZERO = 1 << 4;
        const PAYLOAD_LEN = 1 << 5;
    }
}

/// "Error values": the only ones that go over the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted: a change of what is read-only.
    Perm = 1,
    /// Input or output failed.
    Io = 5,
    /// No memory.
    NoMemory = 12,
    /// Not a valid request.
    Invalid = 22,
    /// No space, also behind the end of the export.
    NoSpace = 28,
    /// Too long.
    Overflow = 75,
    /// Not supported: a fast zeroing that would not be fast.
    NotSupported = 95,
    /// The server is ending.
    Shutdown = 108,
}

impl Errno {
    /// The value that stands for an error number of Linux ("Error values").
    pub const fn of_host(errno: i32) -> Errno {
        match errno {
            // EPERM, EACCES, EROFS
            1 | 13 | 30 => Errno::Perm,
            // ENOMEM
            12 => Errno::NoMemory,
            // EINVAL
            22 => Errno::Invalid,
            // ENOSPC, EFBIG, EDQUOT
            28 | 27 | 122 => Errno::NoSpace,
            // EBADF: the disk is closed; ESHUTDOWN
            9 | 108 => Errno::Shutdown,
            _ => Errno::Io,
        }
    }
}
