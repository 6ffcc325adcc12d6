/*
 * What a careless or hostile caller does: NULLs, double closes, other threads, stale names, lengths that no
 * memory has, calls from inside a gate. Each is an error, and nothing leaks (valgrind).
 *
 *     hostile IMAGE OVERLAY BASE BACKEND
 */
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <quod.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static quod_driver *driver;
static const char *base;

static void fails(int result, int number, quod_error_kind kind)
{
    const quod_error *error = quod_last_error();
    if (result != -number || !error || error->kind != kind || error->number != number || !*error->text) {
        fprintf(stderr, "%d (%s) and not %d, kind %u\n", result, error ? error->text : "", -number, (unsigned)kind);
        abort();
    }
}

#define MISUSE(call) fails(call, EINVAL, QUOD_ERROR_KIND_MISUSE)
#define CLOSED(call) fails(call, EBADF, QUOD_ERROR_KIND_CLOSED)

static quod_completion next(void)
{
    quod_completion done;
    int got;
    while ((got = quod_next_completion(driver, &done, sizeof done)) == 0)
        assert(quod_wait(driver, -1) == 0);
    assert(got == 1);
    return done;
}

static quod_disk opened(const char *path, const quod_open_options *options)
{
    quod_disk disk;
    quod_completion done;
    assert(quod_open(driver, path, options, &disk) == 0 && disk != 0);
    done = next();
    assert(done.op == QUOD_OP_OPEN && done.disk == disk && !done.error);
    return disk;
}

static void closed(quod_disk disk)
{
    quod_completion done;
    assert(quod_submit_close(driver, disk, 9) == 0);
    CLOSED(quod_submit_close(driver, disk, 9)); /* twice, before it has ended */
    done = next();
    assert(done.op == QUOD_OP_CLOSE && done.user == 9 && done.disk == disk && !done.error);
    CLOSED(quod_submit_close(driver, disk, 9)); /* and afterwards */
}

/* A request or question with this name of a disk. */
static void all_closed(quod_driver *of, quod_disk disk)
{
    char byte;
    struct iovec piece = {&byte, 1};
    quod_info info;
    quod_stats stats;
    quod_latency latency;
    CLOSED(quod_submit_read(of, disk, 0, &piece, 1, 0, 0));
    CLOSED(quod_submit_write(of, disk, 0, &piece, 1, 0, 0));
    CLOSED(quod_submit_write_zeroes(of, disk, 0, 1, 0, 0));
    CLOSED(quod_submit_discard(of, disk, 0, 1, 0, 0));
    CLOSED(quod_submit_flush(of, disk, 0));
    CLOSED(quod_submit_map(of, disk, 0, 0, 1, 0));
    CLOSED(quod_submit_quiesce(of, disk, 0));
    CLOSED(quod_submit_resize(of, disk, 512, 0));
    CLOSED(quod_submit_empty(of, disk, 0));
    CLOSED(quod_submit_close(of, disk, 0));
    CLOSED(quod_cancel(of, disk, 0));
    CLOSED(quod_disk_info(of, disk, 0, &info, sizeof info));
    CLOSED(quod_disk_layer_path(of, disk, 0, &byte, 1));
    CLOSED(quod_disk_poisoned(of, disk));
    CLOSED(quod_disk_stats(of, disk, &stats, sizeof stats));
    CLOSED(quod_disk_latency(of, disk, QUOD_OP_READ, &latency, sizeof latency));
}

static void without_a_driver(void)
{
    char byte;
    struct iovec piece = {&byte, 1};
    quod_completion done;
    quod_memory memory;
    quod_info info;
    quod_stats stats;
    quod_latency latency;
    quod_disk disk;
    MISUSE(quod_driver_new(NULL, NULL));
    MISUSE(quod_turn(NULL));
    MISUSE(quod_wait(NULL, 0));
    MISUSE(quod_driver_fd(NULL));
    MISUSE(quod_driver_idle(NULL));
    MISUSE(quod_open(NULL, "x", NULL, &disk));
    MISUSE(quod_open_fd(NULL, 0, "x", NULL, &disk));
    MISUSE(quod_submit_read(NULL, 1, 0, &piece, 1, 0, 0));
    MISUSE(quod_submit_write(NULL, 1, 0, &piece, 1, 0, 0));
    MISUSE(quod_submit_write_zeroes(NULL, 1, 0, 1, 0, 0));
    MISUSE(quod_submit_discard(NULL, 1, 0, 1, 0, 0));
    MISUSE(quod_submit_flush(NULL, 1, 0));
    MISUSE(quod_submit_map(NULL, 1, 0, 0, 1, 0));
    MISUSE(quod_submit_quiesce(NULL, 1, 0));
    MISUSE(quod_submit_resize(NULL, 1, 512, 0));
    MISUSE(quod_submit_empty(NULL, 1, 0));
    MISUSE(quod_submit_close(NULL, 1, 0));
    MISUSE(quod_cancel(NULL, 1, 0));
    MISUSE(quod_disk_info(NULL, 1, 0, &info, sizeof info));
    MISUSE(quod_disk_layer_path(NULL, 1, 0, &byte, 1));
    MISUSE(quod_disk_poisoned(NULL, 1));
    MISUSE(quod_disk_stats(NULL, 1, &stats, sizeof stats));
    MISUSE(quod_disk_latency(NULL, 1, QUOD_OP_READ, &latency, sizeof latency));
    MISUSE(quod_register_memory(NULL, &byte, 1, &memory));
    MISUSE(quod_unregister_memory(NULL, 1));
    MISUSE(quod_next_completion(NULL, &done, sizeof done));
    assert(quod_next_timeout_ns(NULL) == 0 && quod_next_timeout_ms(NULL) == 0 && !quod_driver_backend(NULL));
    assert(quod_driver_free(NULL) == 0);
}

static void options_that_cannot_be(const char *image)
{
    struct {
        quod_config known;
        uint64_t newer;
    } config;
    quod_open_options options;
    quod_driver *none = (quod_driver *)&config;
    quod_disk disk;

    memset(&config, 0, sizeof config);
    MISUSE(quod_driver_new(&config.known, &none)); /* no size */
    assert(!none);
    config.known.size = sizeof config;
    config.newer = 1; /* what this library does not know */
    MISUSE(quod_driver_new(&config.known, &none));
    config.known.size = sizeof config.known;
    config.known.backend = 77;
    MISUSE(quod_driver_new(&config.known, &none));
    config.known.backend = 0;
    config.known.flags = 1u << 31;
    MISUSE(quod_driver_new(&config.known, &none));

    MISUSE(quod_open(driver, NULL, NULL, &disk));
    MISUSE(quod_open(driver, "", NULL, &disk));
    MISUSE(quod_open(driver, image, NULL, NULL));
    memset(&options, 0, sizeof options);
    MISUSE(quod_open(driver, image, &options, &disk));
    options.size = sizeof options;
    options.format = 99;
    MISUSE(quod_open(driver, image, &options, &disk));
    options.format = 0;
    options.flags = 1u << 31;
    MISUSE(quod_open(driver, image, &options, &disk));
    options.flags = 0;
    options.gate = 99;
    MISUSE(quod_open(driver, image, &options, &disk));
    options.gate = QUOD_GATE_CALLBACK; /* without one */
    MISUSE(quod_open(driver, image, &options, &disk));
    options.gate = QUOD_GATE_DIRECTORY;
    MISUSE(quod_open(driver, image, &options, &disk));
    options.gate = QUOD_GATE_ALL;
    options.gate_directory = "/"; /* which it would not look at */
    MISUSE(quod_open(driver, image, &options, &disk));
}

/* Images that cannot be made; `image` is open, and stays what it is. */
static void images_that_cannot_be(const char *image)
{
    quod_create_options options, good = {.size = sizeof good, .virtual_size = 1 << 20, .format = QUOD_FORMAT_QCOW2};

    MISUSE(quod_create(NULL, &good));
    MISUSE(quod_create("", &good));
    MISUSE(quod_create("new", NULL));
#define REFUSED(field, value) \
    do { \
        options = good; \
        options.field = value; \
        MISUSE(quod_create("no/such/folder", &options)); \
    } while (0)
    REFUSED(size, 0);
    REFUSED(size, SIZE_MAX);
    REFUSED(format, QUOD_FORMAT_PROBE);
    REFUSED(format, 99);
    REFUSED(flags, 1u << 31);
    REFUSED(reserved, 1);
    REFUSED(preallocation, 99);
    REFUSED(table_size, 4);                          /* QED's */
    REFUSED(backing_format, QUOD_FORMAT_RAW);        /* of nothing */
    REFUSED(backing_file, "");
    REFUSED(backing_file, "\xff");
    REFUSED(data_file, "");
    good.format = QUOD_FORMAT_RAW;
    REFUSED(cluster_size, 65536);
    REFUSED(backing_file, "x");
    REFUSED(version, 3);
    REFUSED(data_file, "x");
    good.format = QUOD_FORMAT_QED;
    REFUSED(refcount_bits, 16);
    good.format = QUOD_FORMAT_QCOW2;
    fails(quod_create("no/such/folder", &good), ENOENT, QUOD_ERROR_KIND_IO);
    fails(quod_create(image, &good), EAGAIN, QUOD_ERROR_KIND_LOCKED);
}

static void lists_and_ranges(quod_disk disk)
{
    static char memory[4096];
    struct iovec piece = {memory, sizeof memory};
    struct iovec null = {NULL, 1}, huge = {memory, SIZE_MAX}, edge = {(void *)(UINTPTR_MAX - 10), 100};
    struct iovec two[2] = {{memory, SIZE_MAX / 2}, {memory, SIZE_MAX / 2}};
    quod_memory name;
    quod_completion done;
    quod_info info;
    quod_stats stats;
    quod_latency latency;

    MISUSE(quod_submit_read(driver, disk, 0, NULL, 1, 0, 0));
    MISUSE(quod_submit_read(driver, disk, 0, &piece, 0, 0, 0));
    MISUSE(quod_submit_read(driver, disk, 0, &piece, -1, 0, 0));
    MISUSE(quod_submit_read(driver, disk, 0, &piece, QUOD_IOV_MAX + 1, 0, 0));
    MISUSE(quod_submit_read(driver, disk, 0, &null, 1, 0, 0));
    MISUSE(quod_submit_read(driver, disk, 0, &huge, 1, 0, 0));
    MISUSE(quod_submit_read(driver, disk, 0, &edge, 1, 0, 0));
    MISUSE(quod_submit_read(driver, disk, 0, two, 2, 0, 0));
    MISUSE(quod_submit_read(driver, disk, UINT64_MAX, &piece, 1, 0, 0));
    MISUSE(quod_submit_read(driver, disk, 1 << 20, &piece, 1, 0, 0));
    MISUSE(quod_submit_read(driver, disk, 0, &piece, 1, QUOD_FUA, 0));
    MISUSE(quod_submit_write(driver, disk, 0, &piece, 1, QUOD_MAY_UNMAP, 0));
    MISUSE(quod_submit_write_zeroes(driver, disk, 0, UINT64_MAX, 0, 0));
    MISUSE(quod_submit_write_zeroes(driver, disk, UINT64_MAX, UINT64_MAX, 0, 0));
    MISUSE(quod_submit_discard(driver, disk, 0, 1 << 20, 1, 0));
    MISUSE(quod_submit_discard(driver, disk, 1, 1 << 20, 0, 0));
    MISUSE(quod_submit_map(driver, disk, 7, 0, 1, 0));
    MISUSE(quod_submit_map(driver, disk, UINT32_MAX, 0, 1, 0));
    MISUSE(quod_submit_map(driver, disk, 0, 0, UINT64_MAX, 0));
    MISUSE(quod_submit_resize(driver, disk, 1, 0));
    MISUSE(quod_submit_resize(driver, disk, UINT64_MAX, 0));
    MISUSE(quod_next_completion(driver, NULL, sizeof done));
    MISUSE(quod_next_completion(driver, &done, 0));
    MISUSE(quod_next_completion(driver, &done, SIZE_MAX));
    MISUSE(quod_next_completion(driver, (quod_completion *)(memory + 1), sizeof done));
    MISUSE(quod_disk_info(driver, disk, 0, NULL, sizeof info));
    MISUSE(quod_disk_info(driver, disk, 0, &info, 1));
    MISUSE(quod_disk_info(driver, disk, 7, &info, sizeof info));
    MISUSE(quod_disk_layer_path(driver, disk, 0, NULL, 5));
    MISUSE(quod_disk_stats(driver, disk, NULL, sizeof stats));
    MISUSE(quod_disk_stats(driver, disk, &stats, SIZE_MAX));
    MISUSE(quod_disk_latency(driver, disk, QUOD_OP_READ, NULL, sizeof latency));
    MISUSE(quod_disk_latency(driver, disk, QUOD_OP_OPEN, &latency, sizeof latency));
    MISUSE(quod_disk_latency(driver, disk, 99, &latency, sizeof latency));
    MISUSE(quod_register_memory(driver, NULL, 5, &name));
    MISUSE(quod_register_memory(driver, memory, 0, &name));
    MISUSE(quod_register_memory(driver, memory, SIZE_MAX, &name));
    MISUSE(quod_register_memory(driver, memory, sizeof memory, NULL));
    MISUSE(quod_unregister_memory(driver, 0));
    MISUSE(quod_unregister_memory(driver, UINT64_MAX));
    if (quod_register_memory(driver, memory, sizeof memory, &name) == 0) {
        assert(quod_unregister_memory(driver, name) == 0);
        MISUSE(quod_unregister_memory(driver, name)); /* twice */
    } else {
        assert(!strcmp(quod_driver_backend(driver), "threads"));
    }
}

/* More requests than there are slots, one of them cancelled; answers shorter than this header's. */
static void slots(quod_disk disk)
{
    static char memory[3][512];
    struct {
        quod_disk disk;
        uint64_t user;
    } older;
    int cancelled = 0, got;
    for (uint64_t user = 0; user < 2; user++) {
        struct iovec piece = {memory[user], 512};
        assert(quod_submit_read(driver, disk, user * 512, &piece, 1, 0, user) == 0);
    }
    struct iovec piece = {memory[2], 512};
    fails(quod_submit_read(driver, disk, 0, &piece, 1, 0, 2), EAGAIN, QUOD_ERROR_KIND_BUSY);
    cancelled = quod_cancel(driver, disk, 1);
    assert(cancelled == 1 && quod_cancel(driver, disk, 77) == 0);
    for (int left = 2; left > 0; left--) {
        while ((got = quod_next_completion(driver, (quod_completion *)&older, sizeof older)) == 0)
            assert(quod_wait(driver, -1) == 0);
        assert(got == 1 && older.disk == disk && older.user < 2);
    }
    assert(quod_driver_idle(driver) == 1);
}

static void *elsewhere(void *data)
{
    quod_disk disk;
    (void)data;
    assert(!quod_last_error()); /* of this thread */
    fails(quod_turn(driver), EPERM, QUOD_ERROR_KIND_WRONG_THREAD);
    fails(quod_open(driver, "x", NULL, &disk), EPERM, QUOD_ERROR_KIND_WRONG_THREAD);
    fails(quod_driver_free(driver), EPERM, QUOD_ERROR_KIND_WRONG_THREAD);
    assert(quod_next_timeout_ns(driver) == 0 && quod_driver_fd(driver) >= 0);
    return NULL;
}

static int asked;

static int reenters(void *data, const quod_named *named, quod_allowed *allowed)
{
    quod_disk disk;
    asked++;
    assert(named->role == QUOD_ROLE_BACKING && named->name_length > 0 && strlen(named->image) > 0);
    assert(allowed->fd == -1 && strlen(allowed->path) > 0);
    MISUSE(quod_turn(driver));
    MISUSE(quod_open(driver, "x", NULL, &disk));
    MISUSE(quod_driver_free(driver));
    switch (*(int *)data) {
    case 0:
        return 0; /* refused */
    case 1:
        memset(allowed->path, 'x', sizeof allowed->path); /* without an end */
        return 1;
    case 2:
        allowed->path[0] = 0;
        return 1;
    case 3:
        allowed->fd = 1 << 20; /* no descriptor */
        return 1;
    case 4:
        return 2; /* neither yes nor no */
    case 5:
        allowed->fd = open(base, O_RDONLY | O_CLOEXEC);
        return 1;
    default:
        return 1;
    }
}

static void gates(const char *overlay)
{
    int way;
    quod_open_options options = {.size = sizeof options, .gate = QUOD_GATE_CALLBACK};
    quod_disk disk;
    quod_completion done;
    char path[8];
    options.gate_fn = reenters;
    options.gate_data = &way;
    for (way = 0; way < 5; way++) {
        assert(quod_open(driver, overlay, &options, &disk) == 0);
        done = next();
        assert(done.op == QUOD_OP_OPEN && done.disk == disk && done.error);
        assert(done.error->kind == QUOD_ERROR_KIND_NOT_ALLOWED && done.error->number == EPERM);
        assert(!strcmp(done.error->path, overlay) && done.error->role == QUOD_ROLE_IMAGE);
        all_closed(driver, disk);
    }
    for (; way < 7; way++) {
        disk = opened(overlay, &options);
        assert(quod_disk_layer_path(driver, disk, 1, path, sizeof path) > 7 && strlen(path) == 7);
        assert(quod_disk_layer_path(driver, disk, 1, NULL, 0) > 7);
        closed(disk);
    }
    assert(asked == 7);
    options = (quod_open_options){.size = sizeof options};
    assert(quod_open(driver, overlay, &options, &disk) == 0);
    done = next();
    assert(done.error && done.error->kind == QUOD_ERROR_KIND_NOT_ALLOWED); /* by default */
}

static void descriptors(const char *image)
{
    quod_disk disk;
    quod_completion done;
    int fd = open(image, O_RDWR | O_CLOEXEC);
    CLOSED(quod_open_fd(driver, -1, "x", NULL, &disk));
    CLOSED(quod_open_fd(driver, 1 << 20, "x", NULL, &disk));
    MISUSE(quod_open_fd(driver, fd, NULL, NULL, &disk));
    MISUSE(quod_open_fd(driver, quod_driver_fd(driver), "x", NULL, &disk));
    assert(fcntl(fd, F_GETFD) >= 0); /* still ours */
    assert(quod_open_fd(driver, fd, "given", NULL, &disk) == 0);
    done = next();
    assert(done.op == QUOD_OP_OPEN && !done.error);
    closed(disk);
    assert(fcntl(fd, F_GETFD) < 0);
}

int main(int argc, char **argv)
{
    quod_config config = {.size = sizeof config, .requests = 2};
    quod_open_options options = {.size = sizeof options, .flags = QUOD_OPEN_WRITE};
    quod_driver *other;
    quod_disk disk, early;
    quod_stats stats;
    pthread_t thread;

    assert(argc == 5);
    base = argv[3];
    config.backend = strcmp(argv[4], "threads") ? QUOD_BACKEND_AUTO : QUOD_BACKEND_THREADS;
    assert(!quod_last_error() && !strcmp(quod_version(), "0.1.0"));
    without_a_driver();
    assert(quod_driver_new(&config, &driver) == 0 && quod_driver_new(NULL, &other) == 0);
    assert(quod_turn(driver) == 0); /* it is ours now */
    options_that_cannot_be(argv[1]);

    assert(quod_open(driver, argv[1], NULL, &early) == 0);
    MISUSE(quod_submit_flush(driver, early, 0)); /* not open yet */
    MISUSE(quod_disk_stats(driver, early, &stats, sizeof stats));
    assert(next().disk == early);
    closed(early);
    disk = opened(argv[1], &options);
    assert(disk != early);
    all_closed(driver, early);
    all_closed(driver, 0);
    all_closed(driver, UINT64_MAX);
    all_closed(other, disk); /* another driver's */
    lists_and_ranges(disk);
    images_that_cannot_be(argv[1]);
    slots(disk);
    assert(pthread_create(&thread, NULL, elsewhere, NULL) == 0 && pthread_join(thread, NULL) == 0);
    assert(quod_disk_poisoned(driver, disk) == 0);
    closed(disk);
    gates(argv[2]);
    descriptors(argv[1]);

    /* freed with a disk open, a request in flight, and an error that nobody took */
    disk = opened(argv[1], &options);
    assert(quod_submit_flush(driver, disk, 0) == 0 && quod_turn(driver) == 0);
    assert(quod_open(driver, "no/such/image", NULL, &early) == 0 && quod_turn(driver) == 0);
    assert(quod_driver_free(driver) == 0 && quod_driver_free(other) == 0);
    puts("refused, all of it");
    return 0;
}
