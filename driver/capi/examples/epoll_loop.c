/*
 * Embedding in a bare epoll loop: open, write, flush, read back, map, close; what an error looks like; and an
 * image that is made, if it has a size.
 *
 *     cc epoll_loop.c $(pkg-config --cflags --libs quod) -o epoll_loop && ./epoll_loop disk.qcow2 64
 *
 * Without a size, in MiB, the image has to be there. A few bytes of it are overwritten.
 */
#include <errno.h>
#include <inttypes.h>
#include <quod.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

/* What an event loop calls `user`: which step of ours a completion ends. */
enum step { MISSING, OPENED, WRITTEN, FLUSHED, READ, MAPPED, CLOSED };

static const char head[] = "written and read back ";
static const char tail[] = "from a bare epoll loop";

static _Noreturn void die(const char *what)
{
    const quod_error *error = quod_last_error();
    fprintf(stderr, "%s: %s\n", what, error ? error->text : strerror(errno));
    exit(1);
}

/* A function of libquod that must not fail here. */
static void must(const char *what, int result)
{
    if (result < 0)
        die(what);
}

/* A new image, before the loop begins: this blocks. */
static void create(const char *path, uint64_t mib)
{
    quod_create_options options = {
        .size = sizeof options, .virtual_size = mib << 20, .format = QUOD_FORMAT_QCOW2};

    must("create", quod_create(path, &options));
    printf("create: %" PRIu64 " MiB\n", mib);
}

/* One step after the other, as each relies on the one before. Returns 0 when the last one has ended. */
static int step(quod_driver *driver, const quod_completion *done)
{
    static char memory[64]; /* lent to the driver from a submission to its completion */
    struct iovec pieces[] = {{(void *)head, sizeof head - 1}, {(void *)tail, sizeof tail}};
    struct iovec whole = {memory, sizeof head - 1 + sizeof tail};
    quod_stats stats;
    quod_info info;

    if (done->user == MISSING) { /* an image that is not there */
        printf("as it should: %s (kind %u, errno %d)\n", done->error->text, (unsigned)done->error->kind,
               done->error->number);
        return 1;
    }
    if (done->error) { /* the text is the driver's, until the next completion is taken */
        fprintf(stderr, "%s\n", done->error->text);
        exit(1);
    }
    switch (done->user) {
    case OPENED:
        must("info", quod_disk_info(driver, done->disk, 0, &info, sizeof info));
        printf("open: %" PRIu64 " bytes, clusters of %" PRIu32 "\n", info.virtual_size, info.cluster_size);
        must("write", quod_submit_write(driver, done->disk, 100, pieces, 2, 0, WRITTEN));
        break;
    case WRITTEN:
        must("flush", quod_submit_flush(driver, done->disk, FLUSHED));
        break;
    case FLUSHED: /* it would survive a power cut now */
        must("read", quod_submit_read(driver, done->disk, 100, &whole, 1, 0, READ));
        break;
    case READ:
        printf("read: %s\n", memory);
        must("map", quod_submit_map(driver, done->disk, 0, 0, 1 << 20, MAPPED));
        break;
    case MAPPED:
        printf("map: %" PRIu64 " bytes are %s\n", done->extent_length,
               done->extent_status == QUOD_STATUS_DATA ? "data" : "something else");
        must("stats", quod_disk_stats(driver, done->disk, &stats, sizeof stats));
        printf("stats: %" PRIu64 " bytes were written, %" PRIu64 " read\n", stats.bytes_written, stats.bytes_read);
        must("close", quod_submit_close(driver, done->disk, CLOSED));
        break;
    case CLOSED:
        return 0;
    }
    return 1;
}

int main(int argc, char **argv)
{
    quod_open_options options = {.size = sizeof options, .flags = QUOD_OPEN_WRITE, .user = OPENED};
    quod_open_options missing = {.size = sizeof missing, .user = MISSING};
    struct epoll_event event = {.events = EPOLLIN};
    quod_completion done;
    quod_driver *driver;
    quod_disk disk;
    int left = 1;

    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: %s IMAGE [MIB]\n", argv[0]);
        return 2;
    }
    if (argc == 3)
        create(argv[1], strtoull(argv[2], NULL, 10));
    must("driver", quod_driver_new(NULL, &driver));
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, quod_driver_fd(driver), &event) < 0)
        die("epoll");

    must("open", quod_open(driver, "no/such/image", &missing, &disk));
    must("open", quod_open(driver, argv[1], &options, &disk));
    while (left) {
        must("turn", quod_turn(driver));
        while (left && quod_next_completion(driver, &done, sizeof done) == 1)
            left = step(driver, &done);
        /* 0 if something was submitted: the next turn hands it over */
        if (left && epoll_wait(epoll, &event, 1, quod_next_timeout_ms(driver)) < 0 && errno != EINTR)
            die("epoll");
    }
    close(epoll);
    must("free", quod_driver_free(driver));
    return 0;
}
