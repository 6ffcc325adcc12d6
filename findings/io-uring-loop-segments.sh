#!/usr/bin/env bash
# io_uring on a block device: a request of more scattered pages than the device's max_segments always goes to a worker.
#
# Versions: Linux 6.18, loop driver (root), a C compiler, perf for the tracepoint io_uring_queue_async_work.
# One would guess: the block layer splits a large request and does the parts inline, as it does for a file on ext4 over the same device.
# What happens: 128 pages (max_segments of a loop device) are done inline; 129 are split, which fails without blocking, so each
#   such request is handed to a worker: a scatter list of a guest of 516 KiB is enough.
# Seen: "10 writes of 128 scattered pages: 0 to a worker, of 129: 10"
set -euo pipefail
dir=$(mktemp -d)
trap 'losetup -d "$loop" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
truncate -s 64M image
loop=$(losetup -f --show image)
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
few=$(workers "$loop" w 10 128 0)
many=$(workers "$loop" w 10 129 0)
echo "10 writes of 128 scattered pages: $few to a worker, of 129: $many"
if [ "$few $many $(cat "/sys/block/${loop##*/}/queue/max_segments")" != "0 10 128" ]; then
    echo "changed: this is not what was seen with Linux 6.18"
    exit 1
fi
