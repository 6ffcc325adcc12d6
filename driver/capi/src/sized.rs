//! Structs that grow: whoever calls says how many bytes of one it knows.
//!
//! Knows: bytes. Must never know: what a field means.
//! Invariant: what an older caller does not have is zero, which is every field's default; what a newer caller
//! has must be zero, or is refused, because it would be ignored.

use quod::Error;

/// More than any struct of the interface will ever have: a size beyond it is no size.
const SIZE_MAX: usize = 4096;

/// A struct that begins with `size_t size`, and may be anything behind that.
///
/// # Safety
/// `#[repr(C)]`, first field `size: usize`, and valid for any bytes.
pub(crate) unsafe trait Growing {}

/// Reads one of which the caller has as many bytes as it says.
///
/// # Safety
/// `from` is NULL, or points to a `size_t` that says how many bytes can be read there, itself included.
pub(crate) unsafe fn read<T: Growing>(from: *const T) -> Result<T, Error> {
    if from.is_null() || !from.is_aligned() {
        return Err(Error::Misuse("options that are NULL, or not aligned"));
    }
    // SAFETY: not NULL, aligned, and by the caller's word a size.
    let size = unsafe { from.cast::<usize>().read() };
    if !(size_of::<usize>()..=SIZE_MAX).contains(&size) {
        return Err(Error::Misuse("options whose size is not set"));
    }
    let known = size.min(size_of::<T>());
    let bytes = from.cast::<u8>();
    // SAFETY: by the caller's word `size` bytes can be read.
    let newer = unsafe { std::slice::from_raw_parts(bytes.add(known), size - known) };
    if newer.iter().any(|&byte| byte != 0) {
        return Err(Error::Misuse("options that a newer version of the library has, and this one lacks"));
    }
    let mut out = std::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are in both, which do not overlap, and any bytes are a `T`, zeros at the end too.
    unsafe {
        bytes.copy_to_nonoverlapping(out.as_mut_ptr().cast(), known);
        Ok(out.assume_init())
    }
}

/// Writes one into as many bytes as the caller has, zeros behind it. `size` is not more than the caller has.
///
/// # Safety
/// `to` is NULL, or `size` bytes can be written there.
pub(crate) unsafe fn write<T: Copy>(value: &T, to: *mut T, size: usize) -> Result<(), Error> {
    fits(to, size)?;
    let known = size.min(size_of::<T>());
    // SAFETY: `known` bytes are in both and `size` at `to`, by the caller's word; a value of our own is
    // elsewhere.
    unsafe {
        std::ptr::from_ref(value).cast::<u8>().copy_to_nonoverlapping(to.cast(), known);
        to.cast::<u8>().add(known).write_bytes(0, size - known);
    }
    Ok(())
}

/// Could one be written here?
pub(crate) fn fits<T>(to: *mut T, size: usize) -> Result<(), Error> {
    match to.is_null() || !to.is_aligned() {
        true => Err(Error::Misuse("a place for an answer that is NULL, or not aligned")),
        false if !(size_of::<u64>()..=SIZE_MAX).contains(&size) => {
            Err(Error::Misuse("a place for an answer whose size is none"))
        }
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Two {
        size: usize,
        first: u32,
        second: u32,
    }

    // SAFETY: begins with a size, and holds numbers alone.
    unsafe impl Growing for Two {}

    #[repr(C)]
    struct Newer {
        known: Two,
        third: u64,
    }

    #[test]
    fn older_and_newer_callers_are_read() {
        let mut newer = Newer { known: Two { size: 12, first: 1, second: 2 }, third: 0 };
        let mut ask = |size, third| {
            (newer.known.size, newer.third) = (size, third);
            // SAFETY: no size is larger than the struct, but for those that are none.
            unsafe { read(&raw const newer.known) }
        };
        assert_eq!(ask(12, 0), Ok(Two { size: 12, first: 1, second: 0 }));
        assert_eq!(ask(16, 9), Ok(Two { size: 16, first: 1, second: 2 }));
        assert_eq!(ask(24, 0).map(|two| two.second), Ok(2));
        for (size, third) in [(24, 1 << 60), (0, 0), (7, 0), (SIZE_MAX + 1, 0), (usize::MAX, 0)] {
            assert!(matches!(ask(size, third), Err(Error::Misuse(_))), "{size}");
        }
        // SAFETY: NULL is allowed, and what is not aligned is not read.
        let refused = unsafe { [read::<Two>(std::ptr::null()), read((&raw const newer).byte_add(1).cast())] };
        assert!(refused.iter().all(|two| two.is_err()));
    }

    #[test]
    fn answers_fill_what_the_caller_has() {
        let two = Two { size: 1, first: 2, second: 3 };
        let mut bytes = [0xffffu64; 4];
        // SAFETY: 32 bytes are there.
        unsafe {
            write(&two, bytes.as_mut_ptr().cast(), 12).unwrap();
            assert_eq!(bytes[..2], [1, 2]);
            bytes = [u64::MAX; 4];
            write(&two, bytes.as_mut_ptr().cast(), 24).unwrap();
            assert_eq!(bytes, [1, 3 << 32 | 2, 0, u64::MAX]);
            assert!(write(&two, std::ptr::null_mut(), 16).is_err());
            assert!(write(&two, bytes.as_mut_ptr().cast(), 7).is_err());
            assert!(write(&two, bytes.as_mut_ptr().cast(), usize::MAX).is_err());
        }
    }
}
