/*
 * Embedding in a GLib main loop, the kind that QEMU and desktop programs have: a GSource that is ready when the
 * driver's descriptor is readable or its timeout has passed, and calls back for each completion.
 *
 *     cc glib_loop.c $(pkg-config --cflags --libs quod glib-2.0) -o glib_loop && ./glib_loop disk.qcow2
 *
 * The first 4 MiB of the image are overwritten.
 */
#include <glib.h>
#include <quod.h>
#include <stdlib.h>
#include <string.h>

typedef void (*Ended)(quod_driver *driver, const quod_completion *done, gpointer data);

/* A driver as a source of events. It owns the driver. */
typedef struct {
    GSource source;
    quod_driver *driver;
    gpointer descriptor;
} DriverSource;

static gboolean prepare(GSource *source, gint *timeout)
{
    *timeout = quod_next_timeout_ms(((DriverSource *)source)->driver);
    return *timeout == 0;
}

static gboolean check(GSource *source)
{
    DriverSource *self = (DriverSource *)source;
    return g_source_query_unix_fd(source, self->descriptor) != 0 || quod_next_timeout_ns(self->driver) == 0;
}

static gboolean dispatch(GSource *source, GSourceFunc function, gpointer data)
{
    DriverSource *self = (DriverSource *)source;
    Ended ended = (Ended)(void (*)(void))function;
    quod_completion done;

    if (quod_turn(self->driver) < 0)
        g_error("turn: %s", quod_last_error()->text);
    while (quod_next_completion(self->driver, &done, sizeof done) == 1)
        ended(self->driver, &done, data);
    return G_SOURCE_CONTINUE;
}

/* On the thread of the loop: a driver is freed where it was used. */
static void finalize(GSource *source)
{
    if (quod_driver_free(((DriverSource *)source)->driver) < 0)
        g_error("free: %s", quod_last_error()->text);
}

static GSourceFuncs functions = {.prepare = prepare, .check = check, .dispatch = dispatch, .finalize = finalize};

static GSource *driver_source(quod_driver *driver, Ended ended, gpointer data)
{
    GSource *source = g_source_new(&functions, sizeof(DriverSource));
    DriverSource *self = (DriverSource *)source;
    self->driver = driver;
    self->descriptor = g_source_add_unix_fd(source, quod_driver_fd(driver), G_IO_IN);
    g_source_set_callback(source, (GSourceFunc)(void (*)(void))ended, data, NULL);
    return source;
}

#define CHUNK (64 * 1024)
#define CHUNKS 64

/* Many requests in flight, each a struct that `user` points to. */
typedef struct {
    guint64 offset;
    char memory[CHUNK];
} Chunk;

typedef struct {
    GMainLoop *loop;
    Chunk *chunks;
    int left, turns;
} Copy;

static void submitted(int result)
{
    if (result < 0)
        g_error("%s", quod_last_error()->text);
}

static void move(quod_driver *driver, quod_disk disk, Copy *copy, gboolean write)
{
    copy->left = CHUNKS;
    for (Chunk *chunk = copy->chunks; chunk < copy->chunks + CHUNKS; chunk++) {
        struct iovec piece = {chunk->memory, CHUNK}; /* the list is copied, the memory is lent */
        guint64 user = (guintptr)chunk;
        if (write)
            submitted(quod_submit_write(driver, disk, chunk->offset, &piece, 1, 0, user));
        else
            submitted(quod_submit_read(driver, disk, chunk->offset, &piece, 1, 0, user));
    }
}

static void ended(quod_driver *driver, const quod_completion *done, gpointer data)
{
    Copy *copy = data;
    Chunk *chunk = (Chunk *)(guintptr)done->user;

    if (done->error)
        g_error("%s", done->error->text);
    switch (done->op) {
    case QUOD_OP_OPEN:
        move(driver, done->disk, copy, TRUE);
        break;
    case QUOD_OP_WRITE:
        memset(chunk->memory, 0, CHUNK); /* ours again */
        if (--copy->left == 0)
            submitted(quod_submit_flush(driver, done->disk, 0));
        break;
    case QUOD_OP_FLUSH:
        move(driver, done->disk, copy, FALSE);
        break;
    case QUOD_OP_READ:
        for (int at = 0; at < CHUNK; at++)
            if (chunk->memory[at] != (char)(chunk->offset / CHUNK + 1))
                g_error("it reads back differently at %d", at);
        if (--copy->left == 0)
            submitted(quod_submit_close(driver, done->disk, 0));
        break;
    case QUOD_OP_CLOSE:
        g_main_loop_quit(copy->loop);
        break;
    }
}

/* The loop is free for all else meanwhile. */
static gboolean turns(gpointer data)
{
    ((Copy *)data)->turns++;
    return G_SOURCE_CONTINUE;
}

int main(int argc, char **argv)
{
    quod_open_options options = {.size = sizeof options, .flags = QUOD_OPEN_WRITE};
    Copy copy = {.loop = g_main_loop_new(NULL, FALSE), .chunks = g_new(Chunk, CHUNKS)};
    quod_driver *driver;
    quod_disk disk;

    if (argc != 2) {
        g_printerr("usage: %s IMAGE\n", argv[0]);
        return 2;
    }
    for (int at = 0; at < CHUNKS; at++) {
        copy.chunks[at].offset = (guint64)at * CHUNK;
        memset(copy.chunks[at].memory, at + 1, CHUNK);
    }
    submitted(quod_driver_new(NULL, &driver));
    GSource *source = driver_source(driver, ended, &copy);
    g_source_attach(source, NULL);
    guint idle = g_idle_add(turns, &copy);

    submitted(quod_open(driver, argv[1], &options, &disk));
    g_main_loop_run(copy.loop);

    g_source_remove(idle);
    g_source_destroy(source);
    g_source_unref(source); /* frees the driver */
    g_main_loop_unref(copy.loop);
    g_free(copy.chunks);
    g_print("%d chunks were written and read back; the loop did other work meanwhile: %s\n", CHUNKS,
            copy.turns > 0 ? "yes" : "no");
    return 0;
}
