/*
 * Every kind of request, once, and what its completion says.
 *
 *     requests IMAGE BACKEND      (a new qcow2 image of 8 MiB)
 */
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <quod.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static quod_driver *driver;
static quod_disk disk;
static uint64_t asked;

/* What ends next; it is the request that was submitted last, and has succeeded. */
static quod_completion ended(quod_op op, int submitted)
{
    quod_completion done;
    int got;
    if (submitted != 0) {
        fprintf(stderr, "op %u: %s\n", (unsigned)op, quod_last_error()->text);
        abort();
    }
    while ((got = quod_next_completion(driver, &done, sizeof done)) == 0)
        assert(quod_wait(driver, -1) == 0);
    if (got != 1 || done.error) {
        fprintf(stderr, "op %u: %s\n", (unsigned)op, got == 1 ? done.error->text : quod_last_error()->text);
        abort();
    }
    assert(done.op == op && done.disk == disk && done.user == asked);
    assert(done.latency_ns > 0 && done.latency_ns < UINT64_C(60000000000));
    asked++;
    return done;
}

static uint64_t size(void)
{
    quod_info info;
    assert(quod_disk_info(driver, disk, 0, &info, sizeof info) == 0);
    assert(info.format == QUOD_FORMAT_QCOW2 && info.version == 3 && info.layers == 1);
    assert(info.cluster_size == 65536 && info.unit == 65536 && info.flags == 0);
    return info.virtual_size;
}

static quod_completion map(uint64_t offset)
{
    return ended(QUOD_OP_MAP, quod_submit_map(driver, disk, 0, offset, (8 << 20) - offset, asked));
}

static void all_are(const char *memory, size_t length, char byte)
{
    for (size_t at = 0; at < length; at++)
        assert(memory[at] == byte);
}

int main(int argc, char **argv)
{
    static char memory[1 << 17];
    /* three pieces, one of no bytes */
    struct iovec pieces[] = {{memory, 1000}, {NULL, 0}, {memory + 1000, 65536 - 1000}};
    struct iovec whole = {memory, sizeof memory};
    quod_config config = {.size = sizeof config, .flags = QUOD_CONFIG_TIMING, .decompressors = QUOD_NONE};
    quod_open_options options = {.size = sizeof options, .flags = QUOD_OPEN_WRITE | QUOD_OPEN_WRITETHROUGH};
    quod_memory region = 0;
    quod_completion done;
    quod_stats stats;
    quod_latency latency;
    int registered;

    assert(argc == 3);
    config.backend = strcmp(argv[2], "threads") ? QUOD_BACKEND_AUTO : QUOD_BACKEND_THREADS;
    options.user = asked;
    options.format = QUOD_FORMAT_QCOW2;
    options.cache_bytes = 1 << 20;
    options.commit_ms = 100;
    assert(quod_driver_new(&config, &driver) == 0);
    assert(quod_next_timeout_ns(driver) == -1 && quod_next_timeout_ms(driver) == -1);
    registered = quod_register_memory(driver, memory, sizeof memory, &region);
    assert(registered == 0 ? region != 0 : quod_last_error()->kind == QUOD_ERROR_KIND_BACKEND);

    assert(quod_open(driver, argv[1], &options, &disk) == 0);
    assert(quod_next_timeout_ns(driver) == 0 && quod_next_timeout_ms(driver) == 0); /* to be handed over */
    ended(QUOD_OP_OPEN, 0);
    assert(size() == 8 << 20);

    memset(memory, 7, sizeof memory);
    done = ended(QUOD_OP_WRITE, quod_submit_write(driver, disk, 65536, pieces, 3, QUOD_FUA, asked));
    assert(done.met & QUOD_MET_ALLOCATE && done.met & QUOD_MET_FLUSH);
    memset(memory, 1, sizeof memory);
    done = ended(QUOD_OP_READ, quod_submit_read(driver, disk, 65536, &whole, 1, 0, asked));
    assert(done.met & QUOD_MET_HIT);
    all_are(memory, 65536, 7);
    all_are(memory + 65536, 65536, 0);

    done = map(0);
    assert(done.extent_offset == 0 && done.extent_length == 65536 && done.extent_host == UINT64_MAX);
    assert(done.extent_status == QUOD_STATUS_UNALLOCATED);
    done = map(65536);
    assert(done.extent_offset == 65536 && done.extent_length == 65536 && done.extent_host < UINT64_MAX);
    assert(done.extent_status == QUOD_STATUS_DATA);

    ended(QUOD_OP_WRITE_ZEROES, quod_submit_write_zeroes(driver, disk, 65536, 65536, QUOD_MAY_UNMAP, asked));
    assert(map(65536).extent_status == QUOD_STATUS_ZERO);
    ended(QUOD_OP_READ, quod_submit_read(driver, disk, 65536, &whole, 1, 0, asked));
    all_are(memory, sizeof memory, 0);
    ended(QUOD_OP_WRITE, quod_submit_write(driver, disk, 1 << 20, &whole, 1, 0, asked));
    ended(QUOD_OP_DISCARD, quod_submit_discard(driver, disk, 1 << 20, 65536, 0, asked));
    assert(map(1 << 20).extent_status != QUOD_STATUS_DATA);
    ended(QUOD_OP_WRITE_COMPRESSED, quod_submit_write_compressed(driver, disk, 2 << 20, pieces, 3, 0, asked));
    assert(map(2 << 20).extent_status == QUOD_STATUS_COMPRESSED);
    ended(QUOD_OP_FLUSH, quod_submit_flush(driver, disk, asked));
    ended(QUOD_OP_QUIESCE, quod_submit_quiesce(driver, disk, asked));
    ended(QUOD_OP_RESIZE, quod_submit_resize(driver, disk, 16 << 20, asked));
    assert(size() == 16 << 20 && quod_disk_poisoned(driver, disk) == 0);
    assert(quod_disk_stats(driver, disk, &stats, sizeof stats) == 0);
    assert(stats.bytes_written == 65536 * 3 + sizeof memory && stats.bytes_read == 2 * sizeof memory);
    assert(stats.errors == 0 && stats.decompressions == 0);
    assert(stats.allocations >= 3 && stats.table_hits > 0 && stats.commits > 0 && stats.syncs > 0);
    assert(quod_disk_latency(driver, disk, QUOD_OP_WRITE, &latency, sizeof latency) == 0);
    assert(latency.count == 2 && latency.median_ns > 0 && latency.longest_ns >= latency.p99_ns);
    assert(quod_disk_latency(driver, disk, QUOD_OP_CLOSE, &latency, sizeof latency) == 0);
    assert(latency.count == 0 && latency.longest_ns == 0);
    ended(QUOD_OP_EMPTY, quod_submit_empty(driver, disk, asked));
    assert(map(65536).extent_status == QUOD_STATUS_UNALLOCATED);

    assert(registered < 0 || quod_unregister_memory(driver, region) == 0);
    ended(QUOD_OP_CLOSE, quod_submit_close(driver, disk, asked));
    assert(quod_driver_idle(driver) == 1 && quod_driver_free(driver) == 0);
    puts("each of them, once");
    return 0;
}
