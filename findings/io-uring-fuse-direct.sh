#!/usr/bin/env bash
# io_uring on FUSE: direct transfers are waited for inside io_uring_enter, though nobody asked to wait.
#
# Versions: Linux 6.18, glusterfs 10.3 in one process over a folder (root; installed if it is missing), a C compiler.
# One would guess: a transfer that cannot be done at once goes to a worker, and io_uring_enter returns, as for buffered ones.
# What happens: FUSE files count as pollable, so the transfer is tried in the caller, without RWF_NOWAIT, which FUSE does not have, and
#   the thread is held until the server has answered, by reads as by writes. IOSQE_ASYNC sends it to a worker.
# Seen: "the server stands still for 1 s; enter of a read: 1 s, of a write: 1 s, of one that lengthens the file: 1 s, with IOSQE_ASYNC: at once"
set -euo pipefail
dir=$(mktemp -d)
trap 'kill -CONT "$(cat "$dir/pid")" 2> /dev/null || true; umount "$dir/mount" 2> /dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
command -v glusterfs > /dev/null || apt-get -qq -y --no-install-recommends install glusterfs-client=10.3-5 > apt.log 2>&1
mkdir brick mount
printf 'volume posix\n  type storage/posix\n  option directory %s/brick\nend-volume\n' "$dir" > volume
glusterfs -f "$dir/volume" -l "$dir/log" --pid-file "$dir/pid" "$dir/mount"
until mountpoint -q mount; do sleep 0.1; done
cat > enter.c <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* FILE r|w OFFSET FLAGS SERVER: one direct transfer; how long its submission takes while the server stands still for a second */
int main(int argc, char **argv)
{
    struct io_uring_params p = {0};
    int ring = syscall(__NR_io_uring_setup, 4, &p), fd = open(argv[1], O_RDWR | O_DIRECT), server = atoi(argv[5]);
    if (argc < 6 || ring < 0 || fd < 0) return 2;
    size_t sq = p.sq_off.array + 4 * p.sq_entries, cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *s = mmap(0, sq, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    char *c = mmap(0, cq, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqe = mmap(0, p.sq_entries * sizeof *sqe, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    char *memory;
    if (posix_memalign((void **)&memory, 4096, 4096)) return 2;
    memset(sqe, 0, sizeof *sqe);
    sqe->fd = fd;
    sqe->opcode = argv[2][0] == 'w' ? IORING_OP_WRITE : IORING_OP_READ;
    sqe->flags = atoi(argv[4]);
    sqe->off = atol(argv[3]);
    sqe->addr = (unsigned long)memory;
    sqe->len = 4096;
    unsigned *tail = (unsigned *)(s + p.sq_off.tail), *head = (unsigned *)(c + p.cq_off.head);
    ((unsigned *)(s + p.sq_off.array))[*tail & *(unsigned *)(s + p.sq_off.ring_mask)] = 0;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    kill(server, SIGSTOP);
    if (!fork()) {
        sleep(1);
        kill(server, SIGCONT);
        _exit(0);
    }
    double began = now();
    if (syscall(__NR_io_uring_enter, ring, 1, 0, 0, 0, 0) < 0) return 3;
    printf("%s", now() - began > 0.5 ? "1 s" : "at once");
    fflush(stdout);
    if (syscall(__NR_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) return 3;
    struct io_uring_cqe *cqe = (struct io_uring_cqe *)(c + p.cq_off.cqes) + (*head & *(unsigned *)(c + p.cq_off.ring_mask));
    return cqe->res == 4096 ? 0 : 4;
}
C
cc -O1 -Wall -o enter enter.c
head -c 65536 /dev/zero > mount/file
held() { ./enter mount/file "$@" "$(cat pid)"; }
seen="enter of a read: $(held r 0 0), of a write: $(held w 0 0), of one that lengthens the file: $(held w 65536 0)"
seen="$seen, with IOSQE_ASYNC: $(held w 131072 16)"
echo "the server stands still for 1 s; $seen"
if [ "$seen" != "enter of a read: 1 s, of a write: 1 s, of one that lengthens the file: 1 s, with IOSQE_ASYNC: at once" ]; then
    echo "changed: this is not what was seen with Linux 6.18"
    exit 1
fi
