#!/usr/bin/env bash
# io_uring on ext4: space given ahead by fallocate does not keep writes from the workers, unless the file's size was set too.
#
# Versions: Linux 6.18, ext4 (in a loop-mounted file; root), a C compiler, perf for the tracepoint io_uring_queue_async_work.
# One would guess: what makes an extending direct write slow is the allocation of blocks, so after fallocate(FALLOC_FL_KEEP_SIZE) it is done
#   inline; or extending writes are handed over and everything inside the size is not.
# What happens, of 100 direct writes of 4 KiB each: written space and unwritten space inside the size: none is handed to a worker.
#   A hole inside the size: all. Space that was given ahead but lies behind the size: all. Every fsync as well.
# Seen: "written 0, unwritten inside 0, hole 100, kept size 100, fsync 100"
set -euo pipefail
dir=$(mktemp -d)
trap 'umount "$dir/mount" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
truncate -s 200M image
mkfs.ext4 -q image
mkdir mount
mount -o loop image mount
cat > one.c <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* FILE w|f COUNT SEGMENTS MICROSECONDS: direct writes (or fsyncs), one after the other, each of SEGMENTS scattered pages */
int main(int argc, char **argv)
{
    struct io_uring_params p = {0};
    int ring = syscall(__NR_io_uring_setup, 4, &p), fd = open(argv[1], O_RDWR | O_DIRECT);
    int count = atoi(argv[3]), pages = atoi(argv[4]);
    if (argc < 6 || ring < 0 || fd < 0) return 2;
    size_t sq = p.sq_off.array + 4 * p.sq_entries, cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *s = mmap(0, sq, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    char *c = mmap(0, cq, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqe = mmap(0, p.sq_entries * sizeof *sqe, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    char *memory;
    if (posix_memalign((void **)&memory, 4096, 8192L * pages)) return 2;
    memset(memory, 7, 8192L * pages);
    struct iovec *parts = calloc(pages, sizeof *parts);
    for (int n = 0; n < pages; n++) parts[n] = (struct iovec){memory + 8192L * n, 4096};
    for (int n = 0; n < count; n++) {
        memset(sqe, 0, sizeof *sqe);
        sqe->fd = fd;
        sqe->opcode = argv[2][0] == 'w' ? IORING_OP_WRITEV : IORING_OP_FSYNC;
        if (argv[2][0] == 'w') {
            sqe->off = 4096L * pages * n;
            sqe->addr = (unsigned long)parts;
            sqe->len = pages;
        }
        unsigned *tail = (unsigned *)(s + p.sq_off.tail), *head = (unsigned *)(c + p.cq_off.head);
        ((unsigned *)(s + p.sq_off.array))[*tail & *(unsigned *)(s + p.sq_off.ring_mask)] = 0;
        __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
        if (syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) return 3;
        struct io_uring_cqe *cqe = (struct io_uring_cqe *)(c + p.cq_off.cqes) + (*head & *(unsigned *)(c + p.cq_off.ring_mask));
        if (cqe->res < 0) return 4;
        __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
        usleep(atoi(argv[5]));
    }
}
C
cc -O1 -Wall -o one one.c
workers() { perf stat -x , -o count -e io_uring:io_uring_queue_async_work ./one "$@"; sed -n 's/^\([0-9]*\),.*/\1/p' count; }
fresh() { rm -f mount/file; : > mount/file; }
uncached() { sync mount/file; dd of=mount/file oflag=nocache conv=notrunc count=0 status=none; }
fresh; head -c 1M /dev/urandom > mount/file; uncached; written=$(workers mount/file w 100 1 0)
fresh; fallocate -l 1M mount/file; uncached; unwritten=$(workers mount/file w 100 1 0)
fresh; truncate -s 1M mount/file; uncached; hole=$(workers mount/file w 100 1 0)
fresh; fallocate -n -l 1M mount/file; uncached; kept=$(workers mount/file w 100 1 0)
fsync=$(workers mount/file f 100 1 0)
seen="written $written, unwritten inside $unwritten, hole $hole, kept size $kept, fsync $fsync"
echo "$seen"
if [ "$seen" != "written 0, unwritten inside 0, hole 100, kept size 100, fsync 100" ]; then
    echo "changed: this is not what was seen with Linux 6.18"
    exit 1
fi
