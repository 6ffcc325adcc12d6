/*
 * libquod: an asynchronous block driver for QED and qcow2 disk images that an event loop embeds.
 *
 *     quod_driver *driver;
 *     quod_driver_new(NULL, &driver);
 *     watch(quod_driver_fd(driver));                       // epoll, poll, GLib, libuv, ...
 *     quod_open(driver, "disk.qcow2", &options, &disk);    // ends as a completion
 *     for (;;) {
 *         quod_turn(driver);                               // never blocks
 *         while (quod_next_completion(driver, &done, sizeof done) == 1)
 *             handle(&done);                               // and submit what is next
 *         sleep_until_readable(quod_next_timeout_ms(driver));
 *     }
 *
 * A function that returns an int returns 0 or more, or a negative number of errno(3), whose words are in
 * quod_last_error(). None blocks, but quod_wait, quod_register_memory, quod_driver_free and quod_create. A
 * driver belongs to one thread. What is said to be NULL may be; everything else that is NULL is an error.
 *
 * Generated from driver/capi/src; do not edit.
 */

#ifndef QUOD_H
#define QUOD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/**
 * The version of this header; that of the library is `quod_version()`.
 */
#define QUOD_VERSION_MAJOR 0

/**
 * See QUOD_VERSION_MAJOR. Until 1.0 another minor version may be another interface.
 */
#define QUOD_VERSION_MINOR 1

/**
 * See QUOD_VERSION_MAJOR.
 */
#define QUOD_VERSION_PATCH 0

/**
 * In options, where 0 means the default: none of it, or at once.
 */
#define QUOD_NONE 4294967295

/**
 * Bytes of a path, with its NUL, that an open gate may answer.
 */
#define QUOD_PATH_MAX 4096

/**
 * Pieces that the scatter list of one request may have. More than 1024 are copied to one.
 */
#define QUOD_IOV_MAX 32768

/**
 * For `quod_config.flags`: measure latencies (`quod_completion.latency_ns`). Costs two readings of the clock
 * a call.
 */
#define QUOD_CONFIG_TIMING 1

/**
 * For `quod_open_options.flags`: open for writing, the data file of the image too. Backing files are only
 * read.
 */
#define QUOD_OPEN_WRITE 1

/**
 * Bypass the page cache (O_DIRECT). Requests may be of any alignment all the same.
 */
#define QUOD_OPEN_DIRECT 2

/**
 * Take no locks. Two writers destroy an image.
 */
#define QUOD_OPEN_NO_LOCK 4

/**
 * A raw image that is only read may be written by others meanwhile.
 */
#define QUOD_OPEN_TOLERATE_WRITERS 8

/**
 * Open no backing file: what the image does not hold reads as zeros.
 */
#define QUOD_OPEN_NO_BACKING 16

/**
 * An allocating write completes when its mapping is written, not before.
 */
#define QUOD_OPEN_WRITETHROUGH 32

/**
 * Growing leaves a hole, and allocates no blocks of the host ahead of the data.
 */
#define QUOD_OPEN_NO_ALLOCATE_AHEAD 64

/**
 * Backing files go through the page cache, whatever QUOD_OPEN_DIRECT says of the image.
 */
#define QUOD_OPEN_BACKING_BUFFERED 128

/**
 * For writes and write-zeroes: durable, the mapping included, before it completes (forced unit access).
 */
#define QUOD_FUA 1

/**
 * For write-zeroes: space of the host may be given back.
 */
#define QUOD_MAY_UNMAP 2

/**
 * For `quod_completion.met`: data found in an allocated cluster, tables in the cache.
 */
#define QUOD_MET_HIT 1

/**
 * A table had to be read.
 */
#define QUOD_MET_MISS 2

/**
 * New clusters were allocated.
 */
#define QUOD_MET_ALLOCATE 4

/**
 * The backing layer was read.
 */
#define QUOD_MET_BACKING 8

/**
 * A range known to be zero.
 */
#define QUOD_MET_ZERO 16

/**
 * Waited for a commit (flush, FUA, writethrough).
 */
#define QUOD_MET_FLUSH 32

/**
 * A sector was read, modified and written back.
 */
#define QUOD_MET_MODIFY 64

/**
 * A new table was allocated.
 */
#define QUOD_MET_NEW_TABLE 128

/**
 * Waited for another request.
 */
#define QUOD_MET_WAITED 256

/**
 * A compressed cluster was read.
 */
#define QUOD_MET_COMPRESSED 512

/**
 * For `quod_info.flags`: it was not closed cleanly by whoever had it before.
 */
#define QUOD_INFO_DIRTY 1

/**
 * It names a backing file.
 */
#define QUOD_INFO_BACKING 2

/**
 * Its guest data are in another file.
 */
#define QUOD_INFO_DATA_FILE 4

/**
 * That file is the guest disk byte for byte.
 */
#define QUOD_INFO_DATA_FILE_RAW 8

/**
 * Its compressed clusters are of the kind zstd.
 */
#define QUOD_INFO_ZSTD 16

/**
 * Its persistent bitmaps are valid: those that are enabled are kept up while it is written, and stored when it
 * is closed. A resize makes them invalid.
 */
#define QUOD_INFO_BITMAPS 32

/**
 * For `quod_create_options.flags`: refcounts may be postponed while the dirty bit is set (qcow2, version 3).
 */
#define QUOD_CREATE_LAZY_REFCOUNTS 1

/**
 * Clusters have 32 subclusters (qcow2, version 3; clusters of 16 KiB and more).
 */
#define QUOD_CREATE_EXTENDED_L2 2

/**
 * Compressed clusters will be of the kind zstd (qcow2, version 3).
 */
#define QUOD_CREATE_ZSTD 4

/**
 * The data file alone shall be a valid raw image (qcow2, version 3).
 */
#define QUOD_CREATE_DATA_FILE_RAW 8

/**
 * What went wrong, sorted by whose fault it is.
 */
enum quod_error_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Of a newer library than this header.
     */
    QUOD_ERROR_KIND_OTHER = 0,
    /**
     * The caller: asked for something that makes no sense.
     */
    QUOD_ERROR_KIND_MISUSE = 1,
    /**
     * The caller: a driver belongs to the thread that used it first. Nothing was done.
     */
    QUOD_ERROR_KIND_WRONG_THREAD = 2,
    /**
     * The caller: all slots are in use, try again after a completion. Nothing was done.
     */
    QUOD_ERROR_KIND_BUSY = 3,
    /**
     * The caller: the disk is closed, closing, or never was open.
     */
    QUOD_ERROR_KIND_CLOSED = 4,
    /**
     * The caller: `quod_cancel` came before all of it was done.
     */
    QUOD_ERROR_KIND_CANCELLED = 5,
    /**
     * libquod itself: a panic. The driver is of no use any more but for `quod_driver_free`.
     */
    QUOD_ERROR_KIND_PANICKED = 6,
    /**
     * io_uring, or the pool of workers, failed.
     */
    QUOD_ERROR_KIND_BACKEND = 7,
    /**
     * The image needs something that libquod does not do.
     */
    QUOD_ERROR_KIND_UNSUPPORTED = 8,
    /**
     * The image is of a format that libquod does not read.
     */
    QUOD_ERROR_KIND_FOREIGN = 9,
    /**
     * The image contradicts its format.
     */
    QUOD_ERROR_KIND_CORRUPT = 10,
    /**
     * The host's file failed.
     */
    QUOD_ERROR_KIND_DEVICE = 11,
    /**
     * What holds the file is gone: it only reads until it is opened again.
     */
    QUOD_ERROR_KIND_GONE = 12,
    /**
     * The host's file system, or the device, is full.
     */
    QUOD_ERROR_KIND_NO_SPACE = 13,
    /**
     * An earlier metadata write failed, or the image contradicted itself: it only reads until it is opened
     * again.
     */
    QUOD_ERROR_KIND_POISONED = 14,
    /**
     * The open gate refused a file that the image names.
     */
    QUOD_ERROR_KIND_NOT_ALLOWED = 15,
    /**
     * The open gate refused a file that may be one of two, here or beside the image.
     */
    QUOD_ERROR_KIND_AMBIGUOUS = 16,
    /**
     * Somebody else has the image.
     */
    QUOD_ERROR_KIND_LOCKED = 17,
    /**
     * The image names a file that stands in its chain already.
     */
    QUOD_ERROR_KIND_BACKING_LOOP = 18,
    /**
     * The chain of backing files is longer than allowed.
     */
    QUOD_ERROR_KIND_TOO_DEEP = 19,
    /**
     * A file could not be opened, examined or closed.
     */
    QUOD_ERROR_KIND_IO = 20,
    /**
     * A compressed write of a cluster that is allocated already: nothing was changed.
     */
    QUOD_ERROR_KIND_OCCUPIED = 21,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum quod_error_kind quod_error_kind;
#else
typedef uint32_t quod_error_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which file of a disk.
 */
enum quod_role
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * No file.
     */
    QUOD_ROLE_NONE = 0,
    /**
     * The image itself.
     */
    QUOD_ROLE_IMAGE = 1,
    /**
     * A data file of the image.
     */
    QUOD_ROLE_DATA = 2,
    /**
     * A backing file.
     */
    QUOD_ROLE_BACKING = 3,
    /**
     * A data file of a backing file.
     */
    QUOD_ROLE_BACKING_DATA = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum quod_role quod_role;
#else
typedef uint32_t quod_role;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Formats of images.
 */
enum quod_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * As the first bytes of the file say. The default; never of an open image. Name that of raw images: a
     * guest that writes to one chooses its first bytes.
     */
    QUOD_FORMAT_PROBE = 0,
    /**
     * The file is the disk.
     */
    QUOD_FORMAT_RAW = 1,
    /**
     * QED.
     */
    QUOD_FORMAT_QED = 2,
    /**
     * qcow2.
     */
    QUOD_FORMAT_QCOW2 = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum quod_format quod_format;
#else
typedef uint32_t quod_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What ended.
 */
enum quod_op
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Of a newer library than this header: look at `error` alone.
     */
    QUOD_OP_OTHER = 0,
    /**
     * `quod_open` or `quod_open_fd`.
     */
    QUOD_OP_OPEN = 1,
    /**
     * `quod_submit_read`.
     */
    QUOD_OP_READ = 2,
    /**
     * `quod_submit_write`.
     */
    QUOD_OP_WRITE = 3,
    /**
     * `quod_submit_write_zeroes`.
     */
    QUOD_OP_WRITE_ZEROES = 4,
    /**
     * `quod_submit_discard`.
     */
    QUOD_OP_DISCARD = 5,
    /**
     * `quod_submit_flush`.
     */
    QUOD_OP_FLUSH = 6,
    /**
     * `quod_submit_map`.
     */
    QUOD_OP_MAP = 7,
    /**
     * `quod_submit_quiesce`.
     */
    QUOD_OP_QUIESCE = 8,
    /**
     * `quod_submit_resize`.
     */
    QUOD_OP_RESIZE = 9,
    /**
     * `quod_submit_close`.
     */
    QUOD_OP_CLOSE = 10,
    /**
     * `quod_submit_write_compressed`.
     */
    QUOD_OP_WRITE_COMPRESSED = 11,
    /**
     * `quod_submit_empty`.
     */
    QUOD_OP_EMPTY = 12,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum quod_op quod_op;
#else
typedef uint32_t quod_op;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a run of the guest disk is made of, in one layer.
 */
enum quod_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Nothing here: the backing layer shows through, or zeros without one.
     */
    QUOD_STATUS_UNALLOCATED = 0,
    /**
     * Reads as zeros, hides the backing layer.
     */
    QUOD_STATUS_ZERO = 1,
    /**
     * Data in the file of this layer.
     */
    QUOD_STATUS_DATA = 2,
    /**
     * Compressed data in the file of this layer.
     */
    QUOD_STATUS_COMPRESSED = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum quod_status quod_status;
#else
typedef uint32_t quod_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How bytes are moved.
 */
enum quod_backend
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * io_uring; worker threads where the host refuses it. The default.
     */
    QUOD_BACKEND_AUTO = 0,
    /**
     * io_uring, or an error.
     */
    QUOD_BACKEND_URING = 1,
    /**
     * At most 8 worker threads, which take no signals.
     */
    QUOD_BACKEND_THREADS = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum quod_backend quod_backend;
#else
typedef uint32_t quod_backend;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which backing and data files may be opened.
 */
enum quod_gate
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * None. The default: an image that names one does not open (QUOD_ERROR_KIND_NOT_ALLOWED).
     */
    QUOD_GATE_DENY = 0,
    /**
     * Those directly in the directory of the image that names them.
     */
    QUOD_GATE_SAME_DIRECTORY = 1,
    /**
     * Those in `quod_open_options.gate_directory` and below it.
     */
    QUOD_GATE_DIRECTORY = 2,
    /**
     * All: for images that somebody vouches for.
     */
    QUOD_GATE_ALL = 3,
    /**
     * Those that `quod_open_options.gate_fn` answers.
     */
    QUOD_GATE_CALLBACK = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum quod_gate quod_gate;
#else
typedef uint32_t quod_gate;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What of a new image exists from the start.
 */
enum quod_preallocation
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Its header and first tables. The default.
     */
    QUOD_PREALLOCATION_OFF = 0,
    /**
     * All tables, and clusters that are a hole.
     */
    QUOD_PREALLOCATION_METADATA = 1,
    /**
     * The same, and space for the clusters.
     */
    QUOD_PREALLOCATION_FALLOC = 2,
    /**
     * The same, written with zeros.
     */
    QUOD_PREALLOCATION_FULL = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum quod_preallocation quod_preallocation;
#else
typedef uint32_t quod_preallocation;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * One driver with its disks. Opaque: made by `quod_driver_new`, freed by `quod_driver_free`.
 *
 * A driver belongs to the thread that first calls a function with it, `quod_driver_fd` apart. Calls of
 * another thread are refused with EPERM (QUOD_ERROR_KIND_WRONG_THREAD), and do nothing. A child made by
 * fork(2) must not use the drivers of its parent.
 */
typedef struct quod_driver quod_driver;

/**
 * An error. The library owns it and its texts; see where you got it for how long. It may grow at its end.
 */
typedef struct quod_error {
    /**
     * Whose fault.
     */
    quod_error_kind kind;
    /**
     * The number of errno(3) that comes closest, positive.
     */
    int number;
    /**
     * A sentence for people, with file and place; never NULL. Bytes as the host's names of files are.
     */
    const char *text;
    /**
     * The file that it is about, or NULL.
     */
    const char *path;
    /**
     * Which file of the disk that is.
     */
    quod_role role;
    /**
     * At which depth of the chain: 0 the image and its data file, 1 its backing file.
     */
    uint32_t depth;
} quod_error;

/**
 * What to make. Set `size`, `virtual_size` and `format`, leave the rest 0 for the defaults, which are
 * qemu-img's. What it points to is copied.
 */
typedef struct quod_create_options {
    /**
     * `sizeof(quod_create_options)`: how this struct grows.
     */
    size_t size;
    /**
     * Bytes of the guest disk: a multiple of 512, but for raw.
     */
    uint64_t virtual_size;
    /**
     * One of enum quod_format, and not QUOD_FORMAT_PROBE.
     */
    uint32_t format;
    /**
     * QUOD_CREATE_LAZY_REFCOUNTS and its like.
     */
    uint32_t flags;
    /**
     * Bytes of a cluster, a power of two; 0: 64 KiB. QED: 4 KiB to 64 MiB; qcow2: 512 bytes to 2 MiB; raw
     * has none.
     */
    uint32_t cluster_size;
    /**
     * QED: clusters of a table, 1 to 16; 0: 4.
     */
    uint32_t table_size;
    /**
     * qcow2: 2 or 3; 0: 3.
     */
    uint32_t version;
    /**
     * qcow2: bits of a refcount, 1 to 64; 0: 16.
     */
    uint32_t refcount_bits;
    /**
     * qcow2: one of enum quod_preallocation.
     */
    uint32_t preallocation;
    /**
     * One of enum quod_format: that of the backing file. Name it: a format that is probed at each opening
     * is one that a guest can choose.
     */
    uint32_t backing_format;
    /**
     * The backing file, as it will stand in the image, from whose folder it is looked for; NULL: none.
     */
    const char *backing_file;
    /**
     * qcow2: the file that guest data go to, which is made, too; NULL: the image.
     */
    const char *data_file;
    /**
     * What the host's file system is told to allocate at once, bytes (XFS); 0: 1 MiB. QUOD_NONE: nothing.
     */
    uint32_t extent_size_hint;
    /**
     * 0.
     */
    uint32_t reserved;
} quod_create_options;

/**
 * Settings of a driver. Set `size`, leave the rest 0 for the defaults:
 * `quod_config config = { .size = sizeof config };`.
 */
typedef struct quod_config {
    /**
     * `sizeof(quod_config)`: how this struct grows.
     */
    size_t size;
    /**
     * One of enum quod_backend.
     */
    uint32_t backend;
    /**
     * Operations in flight, of all disks together; 0: 256.
     */
    uint32_t queue_depth;
    /**
     * Requests that may be open at once, per disk, completions not yet taken included; 0: 128. One more is
     * EAGAIN.
     */
    uint32_t requests;
    /**
     * Worker threads that decompress, at most; 0: 4. QUOD_NONE: `quod_turn` does it.
     */
    uint32_t decompressors;
    /**
     * QUOD_CONFIG_TIMING or 0.
     */
    uint32_t flags;
    /**
     * 0.
     */
    uint32_t reserved;
} quod_config;

/**
 * Names memory that is registered with one driver. Never 0, never used again in a process.
 */
typedef uint64_t quod_memory;

/**
 * A file that an image names, for an open gate. Valid inside the call.
 */
typedef struct quod_named {
    /**
     * The path that the image was opened by.
     */
    const char *image;
    /**
     * The name as it stands in the image: any bytes, without a NUL at their end.
     */
    const uint8_t *name;
    /**
     * Bytes of `name`.
     */
    size_t name_length;
    /**
     * QUOD_ROLE_BACKING or QUOD_ROLE_DATA.
     */
    quod_role role;
    /**
     * 0.
     */
    uint32_t reserved;
} quod_named;

/**
 * What an open gate answers.
 */
typedef struct quod_allowed {
    /**
     * An open descriptor of the file, or -1, which it is before the call: open the file by `path`. The
     * driver owns it from then on, as with `quod_open_fd`, if the answer is 1.
     */
    int fd;
    /**
     * The file to open; before the call the one that QEMU would open for this name. For an `fd`: what errors
     * call it, and where the relative names in it start.
     */
    char path[QUOD_PATH_MAX];
} quod_allowed;

/**
 * Decides whether a file that an image names may be opened: 1 yes, 0 no. Is called by `quod_turn` and
 * `quod_wait`, on their thread, once a name; must not block, throw, or call the driver that calls it.
 */
typedef int (*quod_gate_fn)(void *data, const struct quod_named *named, struct quod_allowed *allowed);

/**
 * How to open a disk. Set `size`, leave the rest 0 for the defaults: read-only, format probed, locked, no
 * backing file allowed. What it points to is copied, but for what `gate_data` points to.
 */
typedef struct quod_open_options {
    /**
     * `sizeof(quod_open_options)`: how this struct grows.
     */
    size_t size;
    /**
     * Given back with the completion of the opening.
     */
    uint64_t user;
    /**
     * QUOD_OPEN_WRITE and its like.
     */
    uint32_t flags;
    /**
     * One of enum quod_format.
     */
    uint32_t format;
    /**
     * Bytes of table cache, per layer; 0: 32 MiB. With clusters of 64 KiB a MiB has the tables of 8 GiB of
     * the disk.
     */
    uint64_t cache_bytes;
    /**
     * Bytes that the file grows by at once, at most; 0: 64 MiB.
     */
    uint64_t grow_step;
    /**
     * Milliseconds from a change to its commit, if no flush comes before; 0: 1000. QUOD_NONE: 0.
     */
    uint32_t commit_ms;
    /**
     * Milliseconds without allocation until QED's need-check bit is cleared; 0: 5000. QUOD_NONE: 0.
     */
    uint32_t need_check_ms;
    /**
     * Extents in progress at once, per layer; 0: 256.
     */
    uint32_t acbs;
    /**
     * Layers that a disk may have, the image included; 0: 32.
     */
    uint32_t max_depth;
    /**
     * The data file of the image (qcow2) instead of the one that it names; NULL: the one that it names, if
     * the gate allows it.
     */
    const char *data_file;
    /**
     * One of enum quod_gate.
     */
    uint32_t gate;
    /**
     * 0.
     */
    uint32_t reserved;
    /**
     * Of QUOD_GATE_DIRECTORY: the directory. NULL for other gates.
     */
    const char *gate_directory;
    /**
     * Of QUOD_GATE_CALLBACK: who decides. NULL for other gates.
     */
    quod_gate_fn gate_fn;
    /**
     * What `gate_fn` is called with. Of yours, and valid until the opening's completion was taken, or the
     * driver freed.
     */
    void *gate_data;
} quod_open_options;

/**
 * Names a disk of one driver, from the call that opened it to the completion of its close, or of the opening
 * if that fails. Never 0, never used again in a process: a name of a closed disk is EBADF.
 */
typedef uint64_t quod_disk;

/**
 * Facts about one layer of an open disk.
 */
typedef struct quod_info {
    /**
     * Bytes of the guest disk.
     */
    uint64_t virtual_size;
    /**
     * Its format.
     */
    quod_format format;
    /**
     * Bytes of a cluster; 0 for raw.
     */
    uint32_t cluster_size;
    /**
     * Bytes that have space of their own, or have not: a cluster, or a subcluster; 0 for raw.
     */
    uint32_t unit;
    /**
     * The version of its format (qcow2: 2 or 3); 0 if the format has none.
     */
    uint32_t version;
    /**
     * Layers of the whole disk: the image, and its backing files.
     */
    uint32_t layers;
    /**
     * QUOD_INFO_DIRTY and its like.
     */
    uint32_t flags;
} quod_info;

/**
 * Something ended. Each opening and each request that was taken has one.
 */
typedef struct quod_completion {
    /**
     * Whose. Of a failed opening, or a close however it ended, it names nothing any more.
     */
    quod_disk disk;
    /**
     * The `user` value of the request or the options.
     */
    uint64_t user;
    /**
     * NULL: it succeeded. Otherwise why not, until the next call of `quod_next_completion` or
     * `quod_driver_free` with this driver; also what was read means nothing then.
     */
    const struct quod_error *error;
    /**
     * What.
     */
    quod_op op;
    /**
     * What the request met on its way: QUOD_MET_HIT and its like.
     */
    uint32_t met;
    /**
     * From submission to completion, with QUOD_CONFIG_TIMING; otherwise 0.
     */
    uint64_t latency_ns;
    /**
     * Of a map: where the run begins, which is where the range began.
     */
    uint64_t extent_offset;
    /**
     * Of a map: its bytes. May be shorter than it could be: ask again for the rest.
     */
    uint64_t extent_length;
    /**
     * Of a map: where it lies in the file of the layer; UINT64_MAX: nowhere.
     */
    uint64_t extent_host;
    /**
     * Of a map: what it is.
     */
    quod_status extent_status;
    /**
     * 0.
     */
    uint32_t reserved;
} quod_completion;

/**
 * What a disk has done since it was opened: its layers together, requests of all kinds.
 */
typedef struct quod_stats {
    /**
     * Bytes of the guest's that were read.
     */
    uint64_t bytes_read;
    /**
     * Bytes of the guest's that were written, or zeroed.
     */
    uint64_t bytes_written;
    /**
     * Requests that ended with an error.
     */
    uint64_t errors;
    /**
     * Compressed clusters that were decompressed.
     */
    uint64_t decompressions;
    /**
     * Lookups that found their part of a table in the cache.
     */
    uint64_t table_hits;
    /**
     * Lookups that had to wait for it.
     */
    uint64_t table_misses;
    /**
     * Parts of tables that were read.
     */
    uint64_t table_reads;
    /**
     * Writes of parts of tables.
     */
    uint64_t table_writes;
    /**
     * Bytes in them.
     */
    uint64_t table_bytes_written;
    /**
     * Clusters allocated for data.
     */
    uint64_t allocations;
    /**
     * Tables allocated.
     */
    uint64_t new_tables;
    /**
     * Times the file was grown ahead.
     */
    uint64_t grows;
    /**
     * Rounds of commits.
     */
    uint64_t commits;
    /**
     * Syncs of the file.
     */
    uint64_t syncs;
    /**
     * Writes of the header.
     */
    uint64_t header_writes;
} quod_stats;

/**
 * How long requests took, nanoseconds, to two digits.
 */
typedef struct quod_latency {
    /**
     * Requests.
     */
    uint64_t count;
    /**
     * On average.
     */
    uint64_t mean_ns;
    /**
     * Half of them took no longer.
     */
    uint64_t median_ns;
    /**
     * 99 of 100 took no longer.
     */
    uint64_t p99_ns;
    /**
     * 999 of 1000 took no longer.
     */
    uint64_t p999_ns;
    /**
     * The longest.
     */
    uint64_t longest_ns;
} quod_latency;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Why the last function of libquod failed that did so on this thread: returned a negative number, or NULL
 * where it says so. NULL: none has failed. Errors of requests come with their completions, not here.
 *
 * The library owns the answer, which is valid until a function of libquod fails on this thread the next
 * time, or the thread ends. May be called by any thread.
 */
const struct quod_error *quod_last_error(void);

/**
 * Makes an image at `path`, or makes another one of what is there; a block device keeps its size. A backing
 * file is named in it, and not looked at. It is not synced. Needs no driver, and may be called by any
 * thread.
 *
 * Blocks until it is made: milliseconds, but for `QUOD_PREALLOCATION_FULL` and devices, which are written
 * from end to end. From an event loop call it on a thread of your own.
 *
 * 0, or -EINVAL: options that contradict each other, a size that the format cannot have; -EAGAIN: somebody
 * else has locked the file; in both cases what was there is left as it was. Otherwise what the host said
 * (-ENOSPC, -EACCES), and there is no image.
 *
 * Yours to promise: `path` is NULL (an error) or a text; `options` is NULL (an error) or as its `size` says, its texts too.
 */
int quod_create(const char *path, const struct quod_create_options *options);

/**
 * The version of the library, "0.1.0". Is there for as long as the process. May be called by any thread.
 */
const char *quod_version(void);

/**
 * Makes a driver; opens no file. It has a ring, an eventfd, and one worker thread from the first call on
 * that a ring cannot make; or an eventfd and up to 8 worker threads. No signal is delivered to any of them.
 *
 * `config` may be NULL for the defaults, and is not kept. `*driver` is yours: free it with
 * `quod_driver_free`. After an error it is NULL.
 *
 * 0, or -EINVAL: a setting that cannot be; -ENOMEM, -EMFILE, -ENOSYS, -EPERM and the like: the host has not
 * what it needs.
 *
 * Yours to promise: `config` is NULL or as its `size` says, `driver` is NULL (an error) or a pointer can be written there.
 */
int quod_driver_new(const struct quod_config *config, struct quod_driver **driver);

/**
 * Ends a driver and everything it has. For disks that are not closed this is like a power cut: nothing is
 * corrupt, what was not flushed may be lost. Waits for the operations in flight, because they use memory of
 * yours; that memory is yours again when this returns 0. NULL is 0, and nothing.
 *
 * 0: `driver` must not be used again, as after free(3). -EPERM: it belongs to another thread; -EINVAL: it is
 * called by its own open gate; in both cases nothing was done.
 */
int quod_driver_free(struct quod_driver *driver);

/**
 * The descriptor to wait for, with poll, epoll or any loop, until it is readable: then call `quod_turn`. It
 * is an eventfd, the same one for as long as the driver lives, which owns it: never read, write or close it.
 * Edge-triggered and level-triggered are the same. A wake is a hint: it may come early, or without cause.
 * May be called by any thread, and gives the driver to none.
 *
 * The descriptor, or -EINVAL: `driver` is NULL.
 */
int quod_driver_fd(const struct quod_driver *driver);

/**
 * What moves the bytes: "io_uring" or "threads"; is there for as long as the process. NULL: see
 * `quod_last_error`.
 */
const char *quod_driver_backend(const struct quod_driver *driver);

/**
 * Hands over what was submitted, takes what ended, fires the timers that are due: one system call, or none.
 * Never blocks. Call it when the descriptor is readable, when `quod_next_timeout_ns` has passed, and after
 * submitting; then take completions until there is none. Open gates are called inside it.
 *
 * 0, or a negative number of errno(3): the kernel refuses to take or give operations; try again later, or
 * free the driver. What goes wrong with a request comes with its completion.
 */
int quod_turn(struct quod_driver *driver);

/**
 * As `quod_turn`, but sleeps until something ended, a timer is due, or `timeout_ns` nanoseconds have passed
 * (negative: no limit). Returns at once when there is something to take, or nothing to wait for. For tools
 * and tests, never in an event loop.
 *
 * 0, or a negative number of errno(3) as `quod_turn`.
 */
int quod_wait(struct quod_driver *driver, int64_t timeout_ns);

/**
 * Nanoseconds until `quod_turn` must be called, if the descriptor is not readable before; 0: now, because
 * there are operations to hand over, completions to take, or clusters to decompress; -1: no timer runs, only
 * the descriptor says when. Makes no system call. After a failure it is 0: `quod_turn` says what is wrong.
 */
int64_t quod_next_timeout_ns(const struct quod_driver *driver);

/**
 * As `quod_next_timeout_ns`, in milliseconds, rounded up so that the timer is due then: what poll(2) and
 * epoll_wait(2) take, -1 included.
 */
int quod_next_timeout_ms(const struct quod_driver *driver);

/**
 * 1: nothing is in flight, and nothing waits to be taken (timers of open disks may run all the same); 0: not
 * so; negative: an error.
 */
int quod_driver_idle(const struct quod_driver *driver);

/**
 * Registers memory that requests use again and again (a guest's, or a pool of buffers) with the ring: their
 * transfers skip the pinning of its pages. Requests need not change, and may use other memory too.
 *
 * Blocks while the kernel pins the pages (some 100 us a MiB of pages that were never touched). They count as
 * locked memory (RLIMIT_MEMLOCK). The memory stays yours; until `quod_unregister_memory` or
 * `quod_driver_free` it stays mapped to the same pages: not unmapped, mapped over, or given up
 * (MADV_DONTNEED).
 *
 * 0, and `*memory` names it; or nothing is registered, and everything works without: -EOPNOTSUPP (worker
 * threads, Linux before 5.19), -ENOMEM (over RLIMIT_MEMLOCK), -ENOSPC (over 1,024 regions of at most 1 GiB),
 * -EFAULT (not memory), -EINVAL (a length of 0, or beyond the address space).
 *
 * Yours to promise: the memory is as said above; `memory` is
 * NULL (an error), or can be written.
 */
int quod_register_memory(struct quod_driver *driver, void *address, size_t length, quod_memory *memory);

/**
 * Takes memory back, which no request in flight may use. Its pages are free when this returns.
 *
 * 0, or -EINVAL: nothing is registered with this driver under this name.
 */
int quod_unregister_memory(struct quod_driver *driver, quod_memory memory);

/**
 * Starts to open an image and its backing files; ends as a completion of QUOD_OP_OPEN, with `options->user`.
 * Until then the disk takes no requests. If the opening fails, the completion says why, every file of it is
 * closed, and `*disk` names nothing any more.
 *
 * An image that was not closed cleanly, and is opened for writing, is checked and repaired before the
 * opening ends. A lock that somebody else has is asked for again for 200 ms.
 *
 * `path` and `options` are copied, but for what `options->gate_data` points to. `options` may be NULL for
 * the defaults.
 *
 * 0, or -EINVAL: options that cannot be, a path that is NULL or empty. What is the matter with files is said
 * by the completion.
 *
 * Yours to promise: `path` is NULL or a text; `options` is
 * NULL or as its `size` says, its texts too; `disk` is NULL (an error) or can be written.
 */
int quod_open(struct quod_driver *driver,
              const char *path,
              const struct quod_open_options *options,
              quod_disk *disk);

/**
 * As `quod_open`, of a file that is open already. `name` need not lead anywhere: errors call the file by it,
 * and relative names of backing files start in its folder.
 *
 * 0: the descriptor belongs to the driver from now on, which closes it with the disk, or when the opening
 * has failed. It must be open for reading, for writing if the options say so, and without O_APPEND. The
 * driver changes flags and takes locks of the open file description, which duplicates share. After an error
 * the descriptor is still yours: -EBADF if it is none, -EINVAL as of `quod_open`.
 *
 * Yours to promise: As of `quod_open`; `fd` is not closed or used by anybody else from now on.
 */
int quod_open_fd(struct quod_driver *driver,
                 int fd,
                 const char *name,
                 const struct quod_open_options *options,
                 quod_disk *disk);

/**
 * Facts about a layer of an open disk; 0: the image, 1: its backing file. `size` is `sizeof *info`.
 *
 * 0, or -EBADF: no such disk; -EINVAL: it is not open yet, or has fewer layers.
 *
 * Yours to promise: `size` bytes can be written to `info`,
 * or it is NULL (an error).
 */
int quod_disk_info(const struct quod_driver *driver,
                   quod_disk disk,
                   uint32_t layer,
                   struct quod_info *info,
                   size_t size);

/**
 * Where a layer of an open disk was opened: copies the path with its NUL to `path`, as much of it as fits
 * into `size` bytes, the NUL always. Nothing is copied if `size` is 0.
 *
 * The bytes of the whole path, without the NUL; or -EBADF: no such disk; -EINVAL: it is not open yet, or has
 * fewer layers, or `path` is NULL and `size` is not 0.
 *
 * Yours to promise: `size` bytes can be written to `path`.
 */
int quod_disk_layer_path(const struct quod_driver *driver,
                         quod_disk disk,
                         uint32_t layer,
                         char *path,
                         size_t size);

/**
 * Does the disk only read, because of an earlier error? 1: yes, `quod_last_error` has the cause until it has
 * another; 0: no; or -EBADF: no such disk.
 */
int quod_disk_poisoned(const struct quod_driver *driver, quod_disk disk);

/**
 * Begins nothing more for the disk's requests with this `user` value. Each of those that are left undone, or
 * done in part, ends with ECANCELED, when what is in flight for it has ended; its memory is in use until its
 * completion was taken. Of the range of a write any part may have been done. A flush, quiesce, close or
 * resize runs to its end, and so does an opening.
 *
 * How many are left undone, or in part, 0 also if the disk is not open yet; or -EBADF: no such disk.
 */
int quod_cancel(struct quod_driver *driver, quod_disk disk, uint64_t user);

/**
 * Fills memory with bytes of the guest disk, from `offset` on; how many the scatter list says. `flags` is 0.
 *
 * The list is copied. The memory that it names is lent to the driver until the completion was taken, or the
 * driver freed: it stays mapped, and nobody else reads or writes it. (A guest that does so with its own
 * memory is allowed.) Requests in flight have no order among each other, also where they overlap.
 *
 * Makes no system call: call `quod_turn` after the last one of a batch. 0: ends as a completion; or it was
 * not taken, and nothing is kept: -EAGAIN: all slots of the disk are in use, submit again after a
 * completion; -EBADF: no such disk, or it is closing; -EINVAL: a range, list or flags that cannot be, or the
 * disk is not open yet.
 *
 * Yours to promise: `iov` is NULL (an error) or has `iovcnt`
 * entries, of memory as said above.
 */
int quod_submit_read(struct quod_driver *driver,
                     quod_disk disk,
                     uint64_t offset,
                     const struct iovec *iov,
                     int iovcnt,
                     uint32_t flags,
                     uint64_t user);

/**
 * Writes memory to the guest disk, from `offset` on. `flags` is 0 or QUOD_FUA. When it completes reads see
 * the data; the next flush makes it durable. After an error any part of it may be there.
 *
 * All else as of `quod_submit_read`, but that others may read the memory meanwhile.
 *
 * Yours to promise: As of `quod_submit_read`.
 */
int quod_submit_write(struct quod_driver *driver,
                      quod_disk disk,
                      uint64_t offset,
                      const struct iovec *iov,
                      int iovcnt,
                      uint32_t flags,
                      uint64_t user);

/**
 * As `quod_submit_write`, compressed, of qcow2: one whole cluster a request (the disk's last may end with
 * the disk), where nothing is allocated. What does not become shorter is written as it is. -EINVAL: no such
 * cluster; -ENOTSUP: the image has no compressed clusters. A cluster that is allocated already stays as it
 * is: the completion's error says EIO.
 *
 * Yours to promise: As of `quod_submit_read`.
 */
int quod_submit_write_compressed(struct quod_driver *driver,
                                 quod_disk disk,
                                 uint64_t offset,
                                 const struct iovec *iov,
                                 int iovcnt,
                                 uint32_t flags,
                                 uint64_t user);

/**
 * The range reads as zeros afterwards, as durably as a write. `flags`: QUOD_FUA, QUOD_MAY_UNMAP. Costs
 * little where a format can say it (whole clusters). Returns as `quod_submit_read`.
 */
int quod_submit_write_zeroes(struct quod_driver *driver,
                             quod_disk disk,
                             uint64_t offset,
                             uint64_t length,
                             uint32_t flags,
                             uint64_t user);

/**
 * The guest does not need the range any more: a hint. What is read there afterwards is the old data or
 * zeros. `flags` is 0. Returns as `quod_submit_read`.
 */
int quod_submit_discard(struct quod_driver *driver,
                        quod_disk disk,
                        uint64_t offset,
                        uint64_t length,
                        uint32_t flags,
                        uint64_t user);

/**
 * All that completed before it was submitted becomes durable, mappings included, before it completes: what a
 * guest means by a flush. One that fails ends the writing of the image. Returns as `quod_submit_read`.
 */
int quod_submit_flush(struct quod_driver *driver, quod_disk disk, uint64_t user);

/**
 * What is the first run of the range made of, in this layer (0: the image, 1: its backing file)? The answer
 * is in the `extent_` fields of the completion. Returns as `quod_submit_read`.
 */
int quod_submit_map(struct quod_driver *driver,
                    quod_disk disk,
                    uint32_t layer,
                    uint64_t offset,
                    uint64_t length,
                    uint64_t user);

/**
 * Makes the file self-consistent without stopping service: all metadata durable, no dirty bit, as far as
 * what completed before it was submitted is concerned. Returns as `quod_submit_read`.
 */
int quod_submit_quiesce(struct quod_driver *driver, quod_disk disk, uint64_t user);

/**
 * Sets the size of the guest disk, durably; what is new reads as zeros. `size` is bytes; of qcow2 and QED a
 * multiple of 512, and QED only grows. Another resize meanwhile is -EAGAIN. Returns as `quod_submit_read`.
 */
int quod_submit_resize(struct quod_driver *driver, quod_disk disk, uint64_t size, uint64_t user);

/**
 * The image holds nothing of the disk any more, durably: what its backing file has shows, or zeros. For an
 * image that was merged into its backing file, durably; anything else is lost. qcow2 and QED alone. What is
 * submitted meanwhile is -EAGAIN. Returns as `quod_submit_read`.
 */
int quod_submit_empty(struct quod_driver *driver, quod_disk disk, uint64_t user);

/**
 * Finishes everything that was taken, writes and syncs the metadata, closes the files and gives the locks
 * back. From now on the disk takes no requests; its completion is the last, and with it, error or not,
 * `disk` names nothing any more. Returns as `quod_submit_read`: -EBADF if it is closed, or closing, already.
 */
int quod_submit_close(struct quod_driver *driver, quod_disk disk, uint64_t user);

/**
 * Takes the next thing that ended, in the order in which things ended, and frees the request's slot; the
 * memory of a read or a write is yours again. `size` is `sizeof *completion`.
 *
 * 1: `*completion` says what ended; 0: nothing, until the next `quod_turn` (or a call that ends something at
 * once); negative: an error, and nothing was taken.
 *
 * Yours to promise: `size` bytes can be written to
 * `completion`, or it is NULL (an error).
 */
int quod_next_completion(struct quod_driver *driver, struct quod_completion *completion, size_t size);

/**
 * What a disk has done since it was opened, all layers together. `size` is `sizeof *stats`.
 *
 * 0, or -EBADF: no such disk; -EINVAL: it is not open yet.
 *
 * Yours to promise: `size` bytes can be written to `stats`,
 * or it is NULL (an error).
 */
int quod_disk_stats(const struct quod_driver *driver, quod_disk disk, struct quod_stats *stats, size_t size);

/**
 * How long requests of one kind took, from submission to completion, those that failed included: `op` is one
 * of enum quod_op. All zeros without QUOD_CONFIG_TIMING. `size` is `sizeof *latency`.
 *
 * 0, or -EBADF: no such disk; -EINVAL: it is not open yet, or no request has this `op`.
 *
 * Yours to promise: `size` bytes can be written to
 * `latency`, or it is NULL (an error).
 */
int quod_disk_latency(const struct quod_driver *driver,
                      quod_disk disk,
                      uint32_t op,
                      struct quod_latency *latency,
                      size_t size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* QUOD_H */
