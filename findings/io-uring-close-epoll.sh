#!/usr/bin/env bash
# Closing an io_uring makes a later epoll_wait(2) of the same thread fail with EINTR, though there is no signal; poll(2) is not touched.
#
# Versions: Linux 6.18, a C compiler.
# One would guess: EINTR means that a signal handler ran; a program without handlers and signals need not expect it, least of all for a
#   descriptor that is closed already.
# What happens: some milliseconds after close(2) the kernel takes the ring down in the background and interrupts the thread that used it.
#   epoll_wait, which is never restarted, returns EINTR, in nearly every round; poll, which the kernel restarts, does not.
# Seen: "epoll_wait: 192 of 200 rounds, poll: 0 of 200"
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cat > wait.c <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* one fsync through a new ring, which is then unmapped and closed */
static int round_trip(int file)
{
    struct io_uring_params p = {0};
    int ring = syscall(__NR_io_uring_setup, 4, &p);
    if (ring < 0) return 1;
    size_t sq = p.sq_off.array + 4 * p.sq_entries, entries = p.sq_entries * sizeof(struct io_uring_sqe);
    char *s = mmap(0, sq, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *sqe = mmap(0, entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    memset(sqe, 0, sizeof *sqe);
    sqe->fd = file;
    sqe->opcode = IORING_OP_FSYNC;
    *(unsigned *)(s + p.sq_off.array) = 0;
    __atomic_store_n((unsigned *)(s + p.sq_off.tail), 1, __ATOMIC_RELEASE);
    int done = syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0);
    munmap(s, sq);
    munmap(sqe, entries);
    close(ring);
    return done != 1;
}

int main(void)
{
    int pipes[2], epoll = epoll_create1(0), file = open("file", O_RDWR | O_CREAT, 0600), counts[2] = {0};
    if (pipe(pipes) || file < 0) return 2;
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, pipes[0], &event);
    for (int kind = 0; kind < 2; kind++)
        for (int n = 0; n < 200; n++) {
            struct pollfd one = {pipes[0], POLLIN, 0};
            if (round_trip(file)) return 3;
            int result = kind ? poll(&one, 1, 25) : epoll_wait(epoll, &event, 1, 25);
            counts[kind] += result < 0 && errno == EINTR;
        }
    printf("%d %d\n", counts[0], counts[1]);
    return 0;
}
C
cc -O1 -Wall -o wait wait.c
read -r epoll poll < <(./wait)
echo "EINTR without a signal: epoll_wait: $epoll of 200 rounds, poll: $poll of 200"
if ((epoll < 20 || poll != 0)); then
    echo "changed: this is not what was seen with Linux 6.18"
    exit 1
fi
