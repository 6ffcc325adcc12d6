//! Requests of the kernel and answers to them, as bytes: those of the protocol that one regular file needs.
//! The layouts are those of include/uapi/linux/fuse.h.
//!
//! Knows: opcodes and layouts. Must never know: descriptors, disks, what is answered.
//! Invariants: any bytes are a request or are refused; lengths and offsets are numbers that nobody has
//! believed yet.

/// Bytes of the head of a request, and of that of a write with its arguments: what is behind is the payload.
pub const HEAD: usize = 80;
/// Bytes that every request has.
const IN_HEADER: usize = 40;
/// Bytes that every answer has.
const OUT_HEADER: usize = 16;

/// fallocate(2): the size stays.
pub const KEEP_SIZE: u32 = 1;
/// fallocate(2): zeros, and the space may go.
pub const PUNCH_HOLE: u32 = 2;
/// fallocate(2): zeros.
pub const ZERO_RANGE: u32 = 16;

/// A request of the kernel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// What its answer names; 0 if it wants none.
    pub unique: u64,
    pub op: Op,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    GetAttr,
    SetAttr {
        /// Which attributes are to be set.
        valid: u32,
        size: u64,
    },
    Open,
    Read {
        offset: u64,
        len: u32,
    },
    /// Its bytes are behind [`HEAD`].
    Write {
        offset: u64,
        len: u32,
    },
    StatFs,
    Release,
    Fsync,
    Allocate {
        offset: u64,
        len: u64,
        mode: u32,
    },
    Seek {
        offset: u64,
        whence: u32,
    },
    /// The client of this request does not want to wait any more.
    Interrupt {
        unique: u64,
    },
    /// Wants no answer.
    Forget,
    /// The last one.
    Destroy,
    /// What this file does without.
    Other(u32),
}

/// Bits of [`Op::SetAttr`]'s `valid`.
pub mod set {
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const LOCKOWNER: u32 = 1 << 9;
    pub const CTIME: u32 = 1 << 10;
    /// Those that say when, and by whom, and change nothing of the file.
    pub const HARMLESS: u32 = ATIME | MTIME | FH | ATIME_NOW | MTIME_NOW | LOCKOWNER | CTIME;
}

/// `fuse_open_out.open_flags`: pages of an earlier opening are still right. Nobody else changes the disk.
const KEEP_CACHE: u32 = 2;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

impl Message {
    /// Of the first bytes of a request, [`HEAD`] of them or all; None: they are none.
    pub fn read(bytes: &[u8]) -> Option<Message> {
        let (opcode, unique) = (u32_at(bytes, 4)?, u64_at(bytes, 8)?);
        let body = bytes.get(IN_HEADER..)?;
        let op = match opcode {
            2 | 42 => Op::Forget,
            3 => Op::GetAttr,
            4 => Op::SetAttr { valid: u32_at(body, 0)?, size: u64_at(body, 16)? },
            14 => Op::Open,
            15 => Op::Read { offset: u64_at(body, 8)?, len: u32_at(body, 16)? },
            16 => {
                let whole = body.len() >= HEAD - IN_HEADER;
                whole.then_some(Op::Write { offset: u64_at(body, 8)?, len: u32_at(body, 16)? })?
            }
            17 => Op::StatFs,
            18 => Op::Release,
            20 => Op::Fsync,
            36 => Op::Interrupt { unique: u64_at(body, 0)? },
            38 => Op::Destroy,
            43 => Op::Allocate { offset: u64_at(body, 8)?, len: u64_at(body, 16)?, mode: u32_at(body, 24)? },
            46 => Op::Seek { offset: u64_at(body, 8)?, whence: u32_at(body, 16)? },
            other => Op::Other(other),
        };
        Some(Message { unique, op })
    }
}

/// An answer without the bytes of a read: at most so many.
pub type Answer = [u8; 128];

/// Writes an answer's parts one behind the other.
struct Words {
    bytes: Answer,
    len: usize,
}

impl Words {
    fn new() -> Words {
        Words { bytes: [0; 128], len: OUT_HEADER }
    }

    fn put(mut self, bytes: &[u8]) -> Words {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    fn u32(self, word: u32) -> Words {
        self.put(&word.to_ne_bytes())
    }

    fn u64(self, word: u64) -> Words {
        self.put(&word.to_ne_bytes())
    }
}

/// What is told of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    pub size: u64,
    /// Space that it takes, in 512 bytes: fewer than its size mean that there are holes to be looked for.
    pub blocks: u64,
    /// Type and permissions.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970: when it was mounted.
    pub time: u64,
    /// What transfers should be multiples of.
    pub block: u32,
}

/// What is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    /// It did not work: a number of errno(3).
    Error(i32),
    /// It worked, and there is nothing to say.
    Done,
    Attributes(Attributes),
    Opened,
    Written(u32),
    /// So many bytes follow.
    Data(usize),
    Space(Attributes),
    Found(u64),
}

/// How long the kernel may keep the attributes, seconds: it is told when they change.
const VALID: u64 = 1 << 30;
/// The file's number.
const ROOT: u64 = 1;

/// What tells the kernel to ask for the file's attributes anew. (Its pages stay: to take them away would wait
/// for reads that this thread has to answer.)
pub fn attributes_have_changed() -> (Answer, usize) {
    const INVALIDATE: i32 = 2;
    const ATTRIBUTES_ALONE: u64 = u64::MAX;
    let Words { mut bytes, len } = Words::new().u64(ROOT).u64(ATTRIBUTES_ALONE).u64(0);
    bytes[..4].copy_from_slice(&(len as u32).to_ne_bytes());
    // where an answer has its error
    bytes[4..8].copy_from_slice(&INVALIDATE.to_ne_bytes());
    (bytes, len)
}

impl Reply {
    /// The bytes, without those of a read.
    pub fn write(self, unique: u64) -> (Answer, usize) {
        let words = Words::new();
        let (error, more, words) = match self {
            Reply::Error(number) => (-number.abs().clamp(1, 511), 0, words),
            Reply::Done => (0, 0, words),
            Reply::Data(len) => (0, len, words),
            Reply::Attributes(all) => (0, 0, attributes(words.u64(VALID).u64(0), &all)),
            Reply::Opened => (0, 0, words.u64(0).u32(KEEP_CACHE).u32(0)),
            Reply::Written(len) => (0, 0, words.u32(len).u32(0)),
            Reply::Found(offset) => (0, 0, words.u64(offset)),
            Reply::Space(all) => {
                let blocks = all.size.div_ceil(all.block.into());
                let words = words.u64(blocks).u64(0).u64(0).u64(1).u64(0);
                (0, 0, words.u32(all.block).u32(255).u32(all.block).put(&[0; 28]))
            }
        };
        let Words { mut bytes, len } = words;
        bytes[..4].copy_from_slice(&((len + more) as u32).to_ne_bytes());
        bytes[4..8].copy_from_slice(&i32::to_ne_bytes(error));
        bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
        (bytes, len)
    }
}

fn attributes(words: Words, all: &Attributes) -> Words {
    let words = words.u64(ROOT).u64(all.size).u64(all.blocks);
    let words = words.u64(all.time).u64(all.time).u64(all.time).u32(0).u32(0).u32(0);
    words.u32(all.mode).u32(1).u32(all.uid).u32(all.gid).u32(0).u32(all.block).u32(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request of the kernel's with this body.
    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [(IN_HEADER + body.len()) as u32, opcode] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(77u64.to_ne_bytes());
        bytes.extend([0; 24]);
        bytes.extend(body);
        bytes
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn requests_are_read_where_the_kernel_puts_them() {
        let fh = 9;
        for (opcode, body, op) in [
            (15, words(&[fh, 4096, 512, 0, 0]), Op::Read { offset: 4096, len: 512 }),
            (16, words(&[fh, 8192, 1024, 0, 0]), Op::Write { offset: 8192, len: 1024 }),
            (43, words(&[fh, 1, 2, 3]), Op::Allocate { offset: 1, len: 2, mode: 3 }),
            (46, words(&[fh, 5, 4]), Op::Seek { offset: 5, whence: 4 }),
            (4, words(&[8, fh, 99, 0]), Op::SetAttr { valid: 8, size: 99 }),
            (36, words(&[76]), Op::Interrupt { unique: 76 }),
            (3, words(&[0, 0]), Op::GetAttr),
            (42, words(&[0]), Op::Forget),
            (1, b"name\0".to_vec(), Op::Other(1)),
        ] {
            let bytes = request(opcode, &body);
            assert_eq!(Message::read(&bytes), Some(Message { unique: 77, op }), "{opcode}");
        }
    }

    #[test]
    fn any_bytes_are_a_request_or_refused() {
        for opcode in 0..60 {
            let bytes = request(opcode, &[0xff; 40]);
            assert!(Message::read(&bytes).is_some(), "{opcode}");
            let whole = (0..=bytes.len()).filter(|len| Message::read(&bytes[..*len]).is_some()).min();
            // never fewer than the head, and with its arguments where it has some
            assert!(whole.is_some_and(|len| len >= IN_HEADER), "{opcode}");
        }
        assert_eq!(Message::read(&request(16, &[0; 39])), None, "a write without its arguments");
        assert_eq!(Message::read(&request(43, &[0; 27])), None);
    }

    #[test]
    fn answers_have_the_kernel_s_lengths() {
        let all =
            Attributes { size: 1 << 20, blocks: 8, mode: 0o100600, uid: 1, gid: 2, time: 3, block: 4096 };
        for (reply, len, total, error) in [
            (Reply::Error(5), 16, 16, -5),
            (Reply::Error(-5), 16, 16, -5),
            (Reply::Error(0), 16, 16, -1),
            (Reply::Error(i32::MAX), 16, 16, -511),
            (Reply::Done, 16, 16, 0),
            (Reply::Attributes(all), 16 + 104, 16 + 104, 0),
            (Reply::Opened, 16 + 16, 16 + 16, 0),
            (Reply::Written(9), 16 + 8, 16 + 8, 0),
            (Reply::Data(4096), 16, 16 + 4096, 0),
            (Reply::Space(all), 16 + 80, 16 + 80, 0),
            (Reply::Found(9), 16 + 8, 16 + 8, 0),
        ] {
            let (bytes, written) = reply.write(77);
            let head = (u32_at(&bytes, 0), u32_at(&bytes, 4), u64_at(&bytes, 8));
            assert_eq!(head, (Some(total), Some(i32::cast_unsigned(error)), Some(77)), "{reply:?}");
            assert_eq!(written, len, "{reply:?}");
        }
        let (bytes, len) = attributes_have_changed();
        assert_eq!((len, u32_at(&bytes, 0), u32_at(&bytes, 4)), (40, Some(40), Some(2)));
        assert_eq!((u64_at(&bytes, 8), u64_at(&bytes, 16)), (Some(0), Some(1)));
        let (bytes, _) = Reply::Attributes(all).write(1);
        assert_eq!(u64_at(&bytes, 16 + 16 + 8), Some(1 << 20));
        assert_eq!(u32_at(&bytes, 16 + 16 + 60), Some(0o100600));
        assert_eq!(u32_at(&bytes, 16 + 16 + 80), Some(4096));
    }
}
