//! The header of a LUKS container, version 1: a file of its own, or in a qcow2 image.
//!
//! Knows: its fields. Must never know: keys; nothing is decrypted.
//! Invariant: a few hundred bytes are read, whatever the header says.

use crate::host::Host;
use quod::{Error, ErrorKind, Fault};

/// Bytes of the header.
const BYTES: usize = 208 + SLOTS * SLOT_BYTES;
const SLOTS: usize = 8;
const SLOT_BYTES: usize = 48;
const SIGNATURE: &[u8] = b"LUKS\xba\xbe\0\x01";
const ACTIVE: u32 = 0x00ac_71f3;

/// What a LUKS header says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Luks {
    /// `aes`, ...
    pub cipher: String,
    /// `xts-plain64`, `cbc-essiv:sha256`, ...
    pub mode: String,
    /// `sha256`, ...
    pub hash: String,
    /// Unique identifier.
    pub uuid: String,
    /// Bytes of the master key.
    pub key_bytes: u32,
    /// Rounds that derive the master key's digest.
    pub key_rounds: u32,
    /// Where the encrypted bytes begin, counted from the header.
    pub payload_offset: u64,
    /// The key slots.
    pub slots: [KeySlot; SLOTS],
}

/// A key slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeySlot {
    /// It holds a key.
    pub active: bool,
    /// Rounds that derive a key from the password.
    pub rounds: u32,
    /// Where its material lies, counted from the header.
    pub key_offset: u64,
    /// Stripes of the material.
    pub stripes: u32,
}

impl Luks {
    /// Reads the header that begins at `offset`.
    pub(crate) fn read(host: &mut Host, offset: u64) -> Result<Luks, Error> {
        let bytes = host.read(offset, BYTES)?;
        Luks::parse(&bytes).ok_or_else(|| host.fault(ErrorKind::Corrupt(Fault::Luks { offset })))
    }

    fn parse(bytes: &[u8]) -> Option<Luks> {
        let bytes = bytes.get(..BYTES).filter(|bytes| bytes.starts_with(SIGNATURE))?;
        let text = |from: usize, to: usize| {
            let text = bytes.get(from..to).unwrap_or_default();
            let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
            String::from_utf8_lossy(&text[..end]).into_owned()
        };
        let word = |at: usize| be32(bytes, at).unwrap_or(0);
        let sectors = |at: usize| u64::from(word(at)) * 512;
        let slot = |index: usize| {
            let at = 208 + index * SLOT_BYTES;
            let active = word(at) == ACTIVE;
            KeySlot { active, rounds: word(at + 4), key_offset: sectors(at + 40), stripes: word(at + 44) }
        };
        Some(Luks {
            cipher: text(8, 40),
            mode: text(40, 72),
            hash: text(72, 104),
            uuid: text(168, 208),
            key_bytes: word(108),
            key_rounds: word(164),
            payload_offset: sectors(104),
            slots: std::array::from_fn(slot),
        })
    }

    /// The cipher with the bits of its key: `aes-256`. XTS takes two keys.
    pub fn algorithm(&self) -> String {
        let bits = u64::from(self.key_bytes) * 8;
        format!("{}-{}", self.cipher, if self.block_mode() == "xts" { bits / 2 } else { bits })
    }

    /// `xts` of `xts-plain64`.
    pub fn block_mode(&self) -> &str {
        self.mode.split('-').next().unwrap_or_default()
    }

    /// How initialization vectors are made: `plain64`, `essiv`; if the mode has any.
    pub fn vectors(&self) -> Option<&str> {
        self.mode.split_once('-').map(|(_, rest)| rest.split(':').next().unwrap_or(rest))
    }

    /// With which hash they are made.
    pub fn vectors_hash(&self) -> Option<&str> {
        self.mode.split_once(':').map(|(_, hash)| hash)
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_taken_apart() {
        let mut bytes = vec![0; BYTES];
        bytes[..8].copy_from_slice(SIGNATURE);
        bytes[8..11].copy_from_slice(b"aes");
        bytes[40..56].copy_from_slice(b"cbc-essiv:sha256");
        bytes[111] = 32;
        bytes[107] = 8;
        bytes[208..212].copy_from_slice(&ACTIVE.to_be_bytes());
        let luks = Luks::parse(&bytes).unwrap();
        assert_eq!((luks.algorithm().as_str(), luks.block_mode()), ("aes-256", "cbc"));
        assert_eq!((luks.vectors(), luks.vectors_hash()), (Some("essiv"), Some("sha256")));
        assert_eq!((luks.payload_offset, luks.slots.map(|slot| slot.active)[0]), (4096, true));
        bytes[40..56].copy_from_slice(b"xts-plain64\0\0\0\0\0");
        let luks = Luks::parse(&bytes).unwrap();
        assert_eq!(
            (luks.algorithm().as_str(), luks.vectors(), luks.vectors_hash()),
            ("aes-128", Some("plain64"), None)
        );
        assert_eq!(Luks::parse(&bytes[..BYTES - 1]), None);
        bytes[7] = 2;
        assert_eq!(Luks::parse(&bytes), None);
    }
}
