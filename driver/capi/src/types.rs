//! The types of quod.h: names, options, completions, as C sees them.
//!
//! Knows: layouts. Must never know: how any of it is used.
//! Invariants: a struct begins with what it began with in the first release, and has no padding inside; of a
//! struct with a `size` all zeros but that are the defaults; an enum is a `uint32_t`, so that no value that C
//! gives is undefined.

use std::ffi::{c_char, c_int, c_void};

/// The version of this header; that of the library is `quod_version()`.
pub const QUOD_VERSION_MAJOR: u32 = 0;
/// See QUOD_VERSION_MAJOR. Until 1.0 another minor version may be another interface.
pub const QUOD_VERSION_MINOR: u32 = 1;
/// See QUOD_VERSION_MAJOR.
pub const QUOD_VERSION_PATCH: u32 = 0;

/// In options, where 0 means the default: none of it, or at once.
pub const QUOD_NONE: u32 = 0xffff_ffff;
/// Bytes of a path, with its NUL, that an open gate may answer.
pub const QUOD_PATH_MAX: usize = 4096;
/// Pieces that the scatter list of one request may have. More than 1024 are copied to one.
pub const QUOD_IOV_MAX: u32 = 32768;

/// For `quod_config.flags`: measure latencies (`quod_completion.latency_ns`). Costs two readings of the clock
/// a call.
pub const QUOD_CONFIG_TIMING: u32 = 1;

/// For `quod_open_options.flags`: open for writing, the data file of the image too. Backing files are only
/// read.
pub const QUOD_OPEN_WRITE: u32 = 1;
/// Bypass the page cache (O_DIRECT). Requests may be of any alignment all the same.
pub const QUOD_OPEN_DIRECT: u32 = 2;
/// Take no locks. Two writers destroy an image.
pub const QUOD_OPEN_NO_LOCK: u32 = 4;
/// A raw image that is only read may be written by others meanwhile.
pub const QUOD_OPEN_TOLERATE_WRITERS: u32 = 8;
/// Open no backing file: what the image does not hold reads as zeros.
pub const QUOD_OPEN_NO_BACKING: u32 = 16;
/// An allocating write completes when its mapping is written, not before.
pub const QUOD_OPEN_WRITETHROUGH: u32 = 32;
/// Growing leaves a hole, and allocates no blocks of the host ahead of the data.
pub const QUOD_OPEN_NO_ALLOCATE_AHEAD: u32 = 64;
/// Backing files go through the page cache, whatever QUOD_OPEN_DIRECT says of the image.
pub const QUOD_OPEN_BACKING_BUFFERED: u32 = 128;

/// For writes and write-zeroes: durable, the mapping included, before it completes (forced unit access).
pub const QUOD_FUA: u32 = 1;
/// For write-zeroes: space of the host may be given back.
pub const QUOD_MAY_UNMAP: u32 = 2;

/// For `quod_completion.met`: data found in an allocated cluster, tables in the cache.
pub const QUOD_MET_HIT: u32 = 1;
/// A table had to be read.
pub const QUOD_MET_MISS: u32 = 2;
/// New clusters were allocated.
pub const QUOD_MET_ALLOCATE: u32 = 4;
/// The backing layer was read.
pub const QUOD_MET_BACKING: u32 = 8;
/// A range known to be zero.
pub const QUOD_MET_ZERO: u32 = 16;
/// Waited for a commit (flush, FUA, writethrough).
pub const QUOD_MET_FLUSH: u32 = 32;
/// A sector was read, modified and written back.
pub const QUOD_MET_MODIFY: u32 = 64;
/// A new table was allocated.
pub const QUOD_MET_NEW_TABLE: u32 = 128;
/// Waited for another request.
pub const QUOD_MET_WAITED: u32 = 256;
/// A compressed cluster was read.
pub const QUOD_MET_COMPRESSED: u32 = 512;

/// For `quod_info.flags`: it was not closed cleanly by whoever had it before.
pub const QUOD_INFO_DIRTY: u32 = 1;
/// It names a backing file.
pub const QUOD_INFO_BACKING: u32 = 2;
/// Its guest data are in another file.
pub const QUOD_INFO_DATA_FILE: u32 = 4;
/// That file is the guest disk byte for byte.
pub const QUOD_INFO_DATA_FILE_RAW: u32 = 8;
/// Its compressed clusters are of the kind zstd.
pub const QUOD_INFO_ZSTD: u32 = 16;
/// Its persistent bitmaps are valid: those that are enabled are kept up while it is written, and stored when it
/// is closed. A resize makes them invalid.
pub const QUOD_INFO_BITMAPS: u32 = 32;

/// For `quod_create_options.flags`: refcounts may be postponed while the dirty bit is set (qcow2, version 3).
pub const QUOD_CREATE_LAZY_REFCOUNTS: u32 = 1;
/// Clusters have 32 subclusters (qcow2, version 3; clusters of 16 KiB and more).
pub const QUOD_CREATE_EXTENDED_L2: u32 = 2;
/// Compressed clusters will be of the kind zstd (qcow2, version 3).
pub const QUOD_CREATE_ZSTD: u32 = 4;
/// The data file alone shall be a valid raw image (qcow2, version 3).
pub const QUOD_CREATE_DATA_FILE_RAW: u32 = 8;

/// Names a disk of one driver, from the call that opened it to the completion of its close, or of the opening
/// if that fails. Never 0, never used again in a process: a name of a closed disk is EBADF.
pub type quod_disk = u64;

/// Names memory that is registered with one driver. Never 0, never used again in a process.
pub type quod_memory = u64;

/// How bytes are moved.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum quod_backend {
    /// io_uring; worker threads where the host refuses it. The default.
    Auto = 0,
    /// io_uring, or an error.
    Uring = 1,
    /// At most 8 worker threads, which take no signals.
    Threads = 2,
}

/// Formats of images.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum quod_format {
    /// As the first bytes of the file say. The default; never of an open image. Name that of raw images: a
    /// guest that writes to one chooses its first bytes.
    Probe = 0,
    /// The file is the disk.
    Raw = 1,
    /// QED.
    Qed = 2,
    /// qcow2.
    Qcow2 = 3,
}

/// What of a new image exists from the start.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum quod_preallocation {
    /// Its header and first tables. The default.
    Off = 0,
    /// All tables, and clusters that are a hole.
    Metadata = 1,
    /// The same, and space for the clusters.
    Falloc = 2,
    /// The same, written with zeros.
    Full = 3,
}

/// Which backing and data files may be opened.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum quod_gate {
    /// None. The default: an image that names one does not open (QUOD_ERROR_KIND_NOT_ALLOWED).
    Deny = 0,
    /// Those directly in the directory of the image that names them.
    SameDirectory = 1,
    /// Those in `quod_open_options.gate_directory` and below it.
    Directory = 2,
    /// All: for images that somebody vouches for.
    All = 3,
    /// Those that `quod_open_options.gate_fn` answers.
    Callback = 4,
}

/// Which file of a disk.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum quod_role {
    /// No file.
    None = 0,
    /// The image itself.
    Image = 1,
    /// A data file of the image.
    Data = 2,
    /// A backing file.
    Backing = 3,
    /// A data file of a backing file.
    BackingData = 4,
}

/// What ended.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum quod_op {
    /// Of a newer library than this header: look at `error` alone.
    Other = 0,
    /// `quod_open` or `quod_open_fd`.
    Open = 1,
    /// `quod_submit_read`.
    Read = 2,
    /// `quod_submit_write`.
    Write = 3,
    /// `quod_submit_write_zeroes`.
    WriteZeroes = 4,
    /// `quod_submit_discard`.
    Discard = 5,
    /// `quod_submit_flush`.
    Flush = 6,
    /// `quod_submit_map`.
    Map = 7,
    /// `quod_submit_quiesce`.
    Quiesce = 8,
    /// `quod_submit_resize`.
    Resize = 9,
    /// `quod_submit_close`.
    Close = 10,
    /// `quod_submit_write_compressed`.
    WriteCompressed = 11,
    /// `quod_submit_empty`.
    Empty = 12,
}

/// What a run of the guest disk is made of, in one layer.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum quod_status {
    /// Nothing here: the backing layer shows through, or zeros without one.
    Unallocated = 0,
    /// Reads as zeros, hides the backing layer.
    Zero = 1,
    /// Data in the file of this layer.
    Data = 2,
    /// Compressed data in the file of this layer.
    Compressed = 3,
}

/// What went wrong, sorted by whose fault it is.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum quod_error_kind {
    /// Of a newer library than this header.
    Other = 0,
    /// The caller: asked for something that makes no sense.
    Misuse = 1,
    /// The caller: a driver belongs to the thread that used it first. Nothing was done.
    WrongThread = 2,
    /// The caller: all slots are in use, try again after a completion. Nothing was done.
    Busy = 3,
    /// The caller: the disk is closed, closing, or never was open.
    Closed = 4,
    /// The caller: `quod_cancel` came before all of it was done.
    Cancelled = 5,
    /// libquod itself: a panic. The driver is of no use any more but for `quod_driver_free`.
    Panicked = 6,
    /// io_uring, or the pool of workers, failed.
    Backend = 7,
    /// The image needs something that libquod does not do.
    Unsupported = 8,
    /// The image is of a format that libquod does not read.
    Foreign = 9,
    /// The image contradicts its format.
    Corrupt = 10,
    /// The host's file failed.
    Device = 11,
    /// What holds the file is gone: it only reads until it is opened again.
    Gone = 12,
    /// The host's file system, or the device, is full.
    NoSpace = 13,
    /// An earlier metadata write failed, or the image contradicted itself: it only reads until it is opened
    /// again.
    Poisoned = 14,
    /// The open gate refused a file that the image names.
    NotAllowed = 15,
    /// The open gate refused a file that may be one of two, here or beside the image.
    Ambiguous = 16,
    /// Somebody else has the image.
    Locked = 17,
    /// The image names a file that stands in its chain already.
    BackingLoop = 18,
    /// The chain of backing files is longer than allowed.
    TooDeep = 19,
    /// A file could not be opened, examined or closed.
    Io = 20,
    /// A compressed write of a cluster that is allocated already: nothing was changed.
    Occupied = 21,
}

/// An error. The library owns it and its texts; see where you got it for how long. It may grow at its end.
#[repr(C)]
#[derive(Debug)]
pub struct quod_error {
    /// Whose fault.
    pub kind: quod_error_kind,
    /// The number of errno(3) that comes closest, positive.
    pub number: c_int,
    /// A sentence for people, with file and place; never NULL. Bytes as the host's names of files are.
    pub text: *const c_char,
    /// The file that it is about, or NULL.
    pub path: *const c_char,
    /// Which file of the disk that is.
    pub role: quod_role,
    /// At which depth of the chain: 0 the image and its data file, 1 its backing file.
    pub depth: u32,
}

/// Settings of a driver. Set `size`, leave the rest 0 for the defaults:
/// `quod_config config = { .size = sizeof config };`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct quod_config {
    /// `sizeof(quod_config)`: how this struct grows.
    pub size: usize,
    /// One of enum quod_backend.
    pub backend: u32,
    /// Operations in flight, of all disks together; 0: 256.
    pub queue_depth: u32,
    /// Requests that may be open at once, per disk, completions not yet taken included; 0: 128. One more is
    /// EAGAIN.
    pub requests: u32,
    /// Worker threads that decompress, at most; 0: 4. QUOD_NONE: `quod_turn` does it.
    pub decompressors: u32,
    /// QUOD_CONFIG_TIMING or 0.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

/// How to open a disk. Set `size`, leave the rest 0 for the defaults: read-only, format probed, locked, no
/// backing file allowed. What it points to is copied, but for what `gate_data` points to.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct quod_open_options {
    /// `sizeof(quod_open_options)`: how this struct grows.
    pub size: usize,
    /// Given back with the completion of the opening.
    pub user: u64,
    /// QUOD_OPEN_WRITE and its like.
    pub flags: u32,
    /// One of enum quod_format.
    pub format: u32,
    /// Bytes of table cache, per layer; 0: 32 MiB. With clusters of 64 KiB a MiB has the tables of 8 GiB of
    /// the disk.
    pub cache_bytes: u64,
    /// Bytes that the file grows by at once, at most; 0: 64 MiB.
    pub grow_step: u64,
    /// Milliseconds from a change to its commit, if no flush comes before; 0: 1000. QUOD_NONE: 0.
    pub commit_ms: u32,
    /// Milliseconds without allocation until QED's need-check bit is cleared; 0: 5000. QUOD_NONE: 0.
    pub need_check_ms: u32,
    /// Extents in progress at once, per layer; 0: 256.
    pub acbs: u32,
    /// Layers that a disk may have, the image included; 0: 32.
    pub max_depth: u32,
    /// The data file of the image (qcow2) instead of the one that it names; NULL: the one that it names, if
    /// the gate allows it.
    pub data_file: *const c_char,
    /// One of enum quod_gate.
    pub gate: u32,
    /// 0.
    pub reserved: u32,
    /// Of QUOD_GATE_DIRECTORY: the directory. NULL for other gates.
    pub gate_directory: *const c_char,
    /// Of QUOD_GATE_CALLBACK: who decides. NULL for other gates.
    pub gate_fn: quod_gate_fn,
    /// What `gate_fn` is called with. Of yours, and valid until the opening's completion was taken, or the
    /// driver freed.
    pub gate_data: *mut c_void,
}

/// What to make. Set `size`, `virtual_size` and `format`, leave the rest 0 for the defaults, which are
/// qemu-img's. What it points to is copied.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct quod_create_options {
    /// `sizeof(quod_create_options)`: how this struct grows.
    pub size: usize,
    /// Bytes of the guest disk: a multiple of 512, but for raw.
    pub virtual_size: u64,
    /// One of enum quod_format, and not QUOD_FORMAT_PROBE.
    pub format: u32,
    /// QUOD_CREATE_LAZY_REFCOUNTS and its like.
    pub flags: u32,
    /// Bytes of a cluster, a power of two; 0: 64 KiB. QED: 4 KiB to 64 MiB; qcow2: 512 bytes to 2 MiB; raw
    /// has none.
    pub cluster_size: u32,
    /// QED: clusters of a table, 1 to 16; 0: 4.
    pub table_size: u32,
    /// qcow2: 2 or 3; 0: 3.
    pub version: u32,
    /// qcow2: bits of a refcount, 1 to 64; 0: 16.
    pub refcount_bits: u32,
    /// qcow2: one of enum quod_preallocation.
    pub preallocation: u32,
    /// One of enum quod_format: that of the backing file. Name it: a format that is probed at each opening
    /// is one that a guest can choose.
    pub backing_format: u32,
    /// The backing file, as it will stand in the image, from whose folder it is looked for; NULL: none.
    pub backing_file: *const c_char,
    /// qcow2: the file that guest data go to, which is made, too; NULL: the image.
    pub data_file: *const c_char,
    /// What the host's file system is told to allocate at once, bytes (XFS); 0: 1 MiB. QUOD_NONE: nothing.
    pub extent_size_hint: u32,
    /// 0.
    pub reserved: u32,
}

/// A file that an image names, for an open gate. Valid inside the call.
#[repr(C)]
#[derive(Debug)]
pub struct quod_named {
    /// The path that the image was opened by.
    pub image: *const c_char,
    /// The name as it stands in the image: any bytes, without a NUL at their end.
    pub name: *const u8,
    /// Bytes of `name`.
    pub name_length: usize,
    /// QUOD_ROLE_BACKING or QUOD_ROLE_DATA.
    pub role: quod_role,
    /// 0.
    pub reserved: u32,
}

/// What an open gate answers.
#[repr(C)]
#[derive(Debug)]
pub struct quod_allowed {
    /// An open descriptor of the file, or -1, which it is before the call: open the file by `path`. The
    /// driver owns it from then on, as with `quod_open_fd`, if the answer is 1.
    pub fd: c_int,
    /// The file to open; before the call the one that QEMU would open for this name. For an `fd`: what errors
    /// call it, and where the relative names in it start.
    pub path: [c_char; QUOD_PATH_MAX],
}

/// Decides whether a file that an image names may be opened: 1 yes, 0 no. Is called by `quod_turn` and
/// `quod_wait`, on their thread, once a name; must not block, throw, or call the driver that calls it.
pub type quod_gate_fn = Option<
    unsafe extern "C" fn(data: *mut c_void, named: *const quod_named, allowed: *mut quod_allowed) -> c_int,
>;

/// Something ended. Each opening and each request that was taken has one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct quod_completion {
    /// Whose. Of a failed opening, or a close however it ended, it names nothing any more.
    pub disk: quod_disk,
    /// The `user` value of the request or the options.
    pub user: u64,
    /// NULL: it succeeded. Otherwise why not, until the next call of `quod_next_completion` or
    /// `quod_driver_free` with this driver; also what was read means nothing then.
    pub error: *const quod_error,
    /// What.
    pub op: quod_op,
    /// What the request met on its way: QUOD_MET_HIT and its like.
    pub met: u32,
    /// From submission to completion, with QUOD_CONFIG_TIMING; otherwise 0.
    pub latency_ns: u64,
    /// Of a map: where the run begins, which is where the range began.
    pub extent_offset: u64,
    /// Of a map: its bytes. May be shorter than it could be: ask again for the rest.
    pub extent_length: u64,
    /// Of a map: where it lies in the file of the layer; UINT64_MAX: nowhere.
    pub extent_host: u64,
    /// Of a map: what it is.
    pub extent_status: quod_status,
    /// 0.
    pub reserved: u32,
}

/// Facts about one layer of an open disk.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct quod_info {
    /// Bytes of the guest disk.
    pub virtual_size: u64,
    /// Its format.
    pub format: quod_format,
    /// Bytes of a cluster; 0 for raw.
    pub cluster_size: u32,
    /// Bytes that have space of their own, or have not: a cluster, or a subcluster; 0 for raw.
    pub unit: u32,
    /// The version of its format (qcow2: 2 or 3); 0 if the format has none.
    pub version: u32,
    /// Layers of the whole disk: the image, and its backing files.
    pub layers: u32,
    /// QUOD_INFO_DIRTY and its like.
    pub flags: u32,
}

/// What a disk has done since it was opened: its layers together, requests of all kinds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct quod_stats {
    /// Bytes of the guest's that were read.
    pub bytes_read: u64,
    /// Bytes of the guest's that were written, or zeroed.
    pub bytes_written: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Compressed clusters that were decompressed.
    pub decompressions: u64,
    /// Lookups that found their part of a table in the cache.
    pub table_hits: u64,
    /// Lookups that had to wait for it.
    pub table_misses: u64,
    /// Parts of tables that were read.
    pub table_reads: u64,
    /// Writes of parts of tables.
    pub table_writes: u64,
    /// Bytes in them.
    pub table_bytes_written: u64,
    /// Clusters allocated for data.
    pub allocations: u64,
    /// Tables allocated.
    pub new_tables: u64,
    /// Times the file was grown ahead.
    pub grows: u64,
    /// Rounds of commits.
    pub commits: u64,
    /// Syncs of the file.
    pub syncs: u64,
    /// Writes of the header.
    pub header_writes: u64,
}

/// How long requests took, nanoseconds, to two digits.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct quod_latency {
    /// Requests.
    pub count: u64,
    /// On average.
    pub mean_ns: u64,
    /// Half of them took no longer.
    pub median_ns: u64,
    /// 99 of 100 took no longer.
    pub p99_ns: u64,
    /// 999 of 1000 took no longer.
    pub p999_ns: u64,
    /// The longest.
    pub longest_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    /// What a program that was compiled long ago relies on: a struct only grows at its end.
    #[test]
    fn structs_are_laid_out_as_they_were() {
        assert_eq!(size_of::<quod_config>(), 32);
        assert_eq!(size_of::<quod_open_options>(), 96);
        assert_eq!(size_of::<quod_completion>(), 72);
        assert_eq!(size_of::<quod_info>(), 32);
        assert_eq!(size_of::<quod_error>(), 32);
        assert_eq!(size_of::<quod_named>(), 32);
        assert_eq!(size_of::<quod_allowed>(), 4100);
        assert_eq!(offset_of!(quod_config, flags), 24);
        assert_eq!(offset_of!(quod_open_options, commit_ms), 40);
        assert_eq!(offset_of!(quod_open_options, data_file), 56);
        assert_eq!(offset_of!(quod_open_options, gate_fn), 80);
        assert_eq!(offset_of!(quod_completion, error), 16);
        assert_eq!(offset_of!(quod_completion, extent_status), 64);
        assert_eq!(offset_of!(quod_error, role), 24);
        assert_eq!(offset_of!(quod_info, flags), 28);
        assert_eq!(size_of::<quod_create_options>(), 72);
        assert_eq!(offset_of!(quod_create_options, backing_file), 48);
        assert_eq!(size_of::<quod_stats>(), 120);
        assert_eq!(size_of::<quod_latency>(), 48);
    }
}
