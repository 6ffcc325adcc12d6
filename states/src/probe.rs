//! What a file is, by its first and last bytes, when nobody says it.
//!
//! Knows: the signatures of all formats that QEMU probes for, and of two that stand at a file's end. Must
//! never know: what a header says beyond that.
//!
//! Invariants:
//! * raw is what is left: a file with a signature is never raw, whether quod reads its format or not;
//! * this is the only list of signatures: what may not be written to the first sector of a disk that was
//!   guessed to be raw follows from [`head`] as well.

pub use crate::fault::Foreign;
use crate::info::Format;

/// Bytes that [`head`] looks at.
pub const HEAD: usize = 512;
/// Bytes that [`tail`] looks at.
pub const TAIL: usize = 512;

/// Foreign formats by what stands where. QEMU asks some of them for a version that it knows besides; a
/// version that it does not know makes no disk of them.
const SIGNATURES: [(usize, &[u8], Foreign); 12] = [
    (0, b"KDMV", Foreign::Vmdk),
    (0, b"COWD", Foreign::Vmdk),
    (0, b"# Disk DescriptorFile", Foreign::Vmdk),
    (0, b"conectix", Foreign::Vpc),
    (0, b"vhdxfile", Foreign::Vhdx),
    (0, b"LUKS\xba\xbe\x00\x01", Foreign::Luks),
    (0, b"WithoutFreeSpace", Foreign::Parallels),
    (0, b"WithouFreSpacExt", Foreign::Parallels),
    (0, b"Bochs Virtual HD Image\0", Foreign::Bochs),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=", Foreign::Cloop),
    (0, b"QFI\xfb\x00\x00\x00\x01", Foreign::Qcow),
    (0x40, b"\x7f\x10\xda\xbe", Foreign::Vdi),
];

/// What a file is that begins with these bytes. Bytes past the end of a short file count as zeros.
///
/// # Errors
/// The foreign format whose signature stands there.
pub fn head(bytes: &[u8]) -> Result<Format, Foreign> {
    let stands =
        |at: usize, signature: &[u8]| bytes.get(at..).is_some_and(|tail| tail.starts_with(signature));
    if let Some((.., foreign)) = SIGNATURES.iter().find(|(at, signature, _)| stands(*at, signature)) {
        return Err(*foreign);
    }
    if stands(0, b"QED\0") {
        return Ok(Format::Qed);
    }
    // of whatever version: what quod does not know of it is told when it is opened
    if stands(0, b"QFI\xfb") {
        return Ok(Format::Qcow2);
    }
    if is_descriptor(bytes.get(..HEAD).unwrap_or(bytes)) { Err(Foreign::Vmdk) } else { Ok(Format::Raw) }
}

/// VMware's text: comments and blank lines, then a version that is 1, 2 or 3.
fn is_descriptor(bytes: &[u8]) -> bool {
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(text) = line.strip_suffix(b"\n") else { return false };
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let comment = text.first() == Some(&b'#');
        let blank = !text.is_empty() && text.iter().all(|byte| *byte == b' ');
        if !comment && !blank {
            return matches!(text, b"version=1" | b"version=2" | b"version=3");
        }
    }
    false
}

/// What a file is that ends with these [`TAIL`] bytes, and whose first bytes say nothing. QEMU does not look
/// there: it takes a disk of fixed size of Virtual PC for a raw one with 512 bytes more, and an image of
/// Apple's by the name of its file.
pub fn tail(bytes: &[u8]) -> Option<Foreign> {
    let bytes: &[u8; TAIL] = bytes.try_into().ok()?;
    if is_footer(bytes) {
        return Some(Foreign::Vpc);
    }
    // version 4, and how long this trailer is
    bytes.starts_with(b"koly\0\0\0\x04\0\0\x02\0").then_some(Foreign::Dmg)
}

/// The footer of a VHD: its cookie, a disk of fixed size, and a sum that is right. A disk that holds such a
/// footer in its last sector by chance does not exist.
fn is_footer(bytes: &[u8; TAIL]) -> bool {
    const TYPE: usize = 60;
    const SUM: usize = 64;
    let word =
        |at: usize| bytes.get(at..).and_then(|tail| tail.first_chunk()).map(|four| u32::from_be_bytes(*four));
    let all: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    let own: u32 = bytes.iter().skip(SUM).take(4).map(|byte| u32::from(*byte)).sum();
    bytes.starts_with(b"conectix") && word(TYPE) == Some(2) && word(SUM) == Some(!(all - own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn signatures_are_told_from_disks() {
        for (at, signature, foreign) in SIGNATURES {
            let mut bytes = vec![0; at];
            bytes.extend(signature);
            assert_eq!(head(&bytes), Err(foreign), "{foreign:?}");
            bytes.resize(4096, 7);
            assert_eq!(head(&bytes), Err(foreign), "{foreign:?}");
            let last = at + signature.len() - 1;
            assert_ne!(head(&bytes[..last]), Err(foreign), "{foreign:?} cut off");
            bytes[last] ^= 1;
            assert_ne!(head(&bytes), Err(foreign), "{foreign:?} changed");
        }
        assert_eq!(head(b"QED\0"), Ok(Format::Qed));
        assert_eq!(head(b"QFI\xfb\0\0\0\x02"), Ok(Format::Qcow2));
        assert_eq!(head(b"QFI\xfb"), Ok(Format::Qcow2), "version 0 is none, and no disk either");
        for raw in [&b""[..], b"QED", b"QFI", b"LUKS\xba\xbe\0\x02", b"KDM", &[0; 512], &[0xff; 512]] {
            assert_eq!(head(raw), Ok(Format::Raw), "{raw:?}");
        }
    }

    #[test]
    fn texts_of_vmware() {
        let vmdk = ["version=1\n", "version=3\r\n", "# one\n#\n   \n \r\nversion=2\nCID=1\n"];
        vmdk.iter().for_each(|text| assert_eq!(head(text.as_bytes()), Err(Foreign::Vmdk), "{text:?}"));
        let raw = [
            "version=1",
            "version=4\n",
            "version=12\n",
            "\nversion=1\n",
            "#version=1\n",
            "# x",
            " x\nversion=1\n",
        ];
        raw.iter().for_each(|text| assert_eq!(head(text.as_bytes()), Ok(Format::Raw), "{text:?}"));
        let long = [&b"#"[..], &[b'x'; 505], b"\nversion=1\n"].concat();
        assert_eq!(head(&long), Ok(Format::Raw), "the version lies behind the first 512 bytes");
    }

    fn footer() -> Vec<u8> {
        let mut bytes = vec![0; TAIL];
        bytes[..8].copy_from_slice(b"conectix");
        bytes[8..16].fill(0xff);
        bytes[63] = 2;
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        bytes[64..68].copy_from_slice(&(!sum).to_be_bytes());
        bytes
    }

    #[test]
    fn ends_of_files() {
        assert_eq!(tail(&footer()), Some(Foreign::Vpc));
        for at in 0..TAIL {
            let mut bytes = footer();
            bytes[at] ^= 0x10;
            assert_eq!(tail(&bytes), None, "byte {at} changed");
        }
        assert_eq!(tail(&footer()[1..]), None);
        let mut koly = b"koly\0\0\0\x04\0\0\x02\0".to_vec();
        koly.resize(TAIL, 0);
        assert_eq!(tail(&koly), Some(Foreign::Dmg));
        koly[7] = 5;
        assert_eq!(tail(&koly), None);
    }

    #[test]
    fn every_format_has_a_name_of_its_own() {
        let mut names: Vec<&str> = Foreign::ALL.iter().map(|foreign| foreign.name()).collect();
        names.extend(["raw", "qed", "qcow2"]);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 13);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = (head(&bytes), tail(&bytes));
        }
    }
}
