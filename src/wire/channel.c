/* SPDX-License-Identifier: MIT
 *
 * state       fd            io watcher         retry timer       idle watcher   rx, tx
 * CLOSED      -1            off                off               off            empty
 * CONNECTING  -1, or one    write, if fd       between attempts  first attempt  empty
 *             of TCP's, or
 *             the caller's
 * OPEN        connected     read; write if tx  off               off            may hold bytes
 * DEAF        connected     off                off               on             tx empty
 *
 * DEAF is a peer that takes nothing more: what it said before that is still read, because the
 * answer to the last request may be in it.
 *
 * Moves: CLOSED -> CONNECTING -> OPEN -> DEAF, and from each to CLOSED.
 */
#include "wire/channel.h"

#include <assert.h>
#include <errno.h>
#include <ev.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "wire/dial.h"

#define RETRY_S 0.02
/* QEMU binds its socket before it listens: for that moment it refuses. */
#define REFUSALS_MAX 10
#define ROOM_MIN ((size_t)1 << 10)

enum channel_state { CHANNEL_CLOSED, CHANNEL_CONNECTING, CHANNEL_OPEN, CHANNEL_DEAF };

static const char *const state_names[] = {
    [CHANNEL_CLOSED] = "closed",
    [CHANNEL_CONNECTING] = "connecting",
    [CHANNEL_OPEN] = "open",
    [CHANNEL_DEAF] = "deaf",
};

static const bool moves[4][4] = {
    [CHANNEL_CLOSED] = {[CHANNEL_CONNECTING] = true},
    [CHANNEL_CONNECTING] = {[CHANNEL_OPEN] = true, [CHANNEL_CLOSED] = true},
    [CHANNEL_OPEN] = {[CHANNEL_DEAF] = true, [CHANNEL_CLOSED] = true},
    [CHANNEL_DEAF] = {[CHANNEL_CLOSED] = true},
};

struct buffer {
    unsigned char *bytes;
    size_t length, capacity; /* capacity 0: the bytes are borrowed */
};

struct vf_channel {
    struct ev_loop *loop;
    const char *name;
    struct vf_channel_hooks hooks;
    struct vf_frame_rules rules;
    void *owner;
    struct vf_log log;

    enum channel_state state;
    char *path;
    int fd;
    pid_t peer_pid;
    int refusals;
    struct ev_io io;
    struct ev_timer retry;
    struct ev_idle idle;
    struct buffer rx, tx;
    struct vf_frame frame;
    /* While the scan runs: its own flag, set by whoever closes the channel meanwhile. */
    bool *interrupted;
};

/* Buffers */

static void
buffer_reserve(struct buffer *buffer, size_t room)
{
    size_t capacity = buffer->capacity ? buffer->capacity : ROOM_MIN;

    while (capacity - buffer->length < room)
        capacity *= 2;
    if (capacity != buffer->capacity)
        buffer->bytes = vf_realloc(buffer->capacity ? buffer->bytes : NULL, capacity);
    buffer->capacity = capacity;
}

static void
buffer_release(struct buffer *buffer)
{
    if (buffer->capacity)
        free(buffer->bytes);
    *buffer = (struct buffer){0};
}

/* Borrows them, if there is nothing before them: mostly they are done with at once. buffer_drop()
 * ends that. */
static void
buffer_add(struct buffer *buffer, const void *bytes, size_t length)
{
    if (buffer->length == 0) {
        *buffer = (struct buffer){(unsigned char *)bytes, length, 0};
        return;
    }
    buffer_reserve(buffer, length);
    memcpy(buffer->bytes + buffer->length, bytes, length);
    buffer->length += length;
}

/* What is left of borrowed bytes becomes its own. */
static void
buffer_keep(struct buffer *buffer)
{
    struct buffer own = {0};

    if (buffer->capacity || buffer->length == 0)
        return;
    buffer_reserve(&own, buffer->length);
    memcpy(own.bytes, buffer->bytes, buffer->length);
    own.length = buffer->length;
    *buffer = own;
}

static void
buffer_drop(struct buffer *buffer, size_t length)
{
    if (length > 0 && buffer->capacity)
        memmove(buffer->bytes, buffer->bytes + length, buffer->length - length);
    else if (length > 0)
        buffer->bytes += length;
    buffer->length -= length;
    if (buffer->length == 0) /* there may be thousands of channels that wait */
        buffer_release(buffer);
    else
        buffer_keep(buffer);
}

void
vf_channel_line(char *line, size_t size, const void *bytes, size_t length)
{
    const unsigned char *from = bytes;
    bool cut = length >= size;
    size_t kept = cut ? size - sizeof "..." : length;

    while (cut && kept > 0 && (from[kept] & 0xc0) == 0x80)
        kept--;
    for (size_t i = 0; i < kept; i++)
        line[i] = (char)(from[i] <= ' ' ? ' ' : from[i]);
    line[kept] = '\0';
    vf_sanitize(line);
    if (cut)
        memcpy(line + kept, "...", sizeof "...");
}

static void
channel_log(struct vf_channel *channel, char direction, const void *bytes, size_t length)
{
    char line[200];

    if (!vf_log_wants(&channel->log, VMFROST_LOG_DEBUG))
        return;
    vf_channel_line(line, sizeof line, bytes, length);
    vf_log(&channel->log, VMFROST_LOG_DEBUG, "%s %c %s", channel->name, direction, line);
}

/* States */

/* The only place that decides what the socket is watched for. */
static void
channel_watch(struct vf_channel *channel)
{
    int wanted = 0;

    switch (channel->state) {
    case CHANNEL_CLOSED:
    case CHANNEL_DEAF:
        break;
    case CHANNEL_CONNECTING:
        wanted = channel->fd >= 0 ? EV_WRITE : 0;
        break;
    case CHANNEL_OPEN:
        wanted = EV_READ | (channel->tx.length > 0 ? EV_WRITE : 0);
        break;
    }
    if (ev_is_active(&channel->io) && channel->io.fd == channel->fd &&
        (channel->io.events & (EV_READ | EV_WRITE)) == wanted)
        return;
    ev_io_stop(channel->loop, &channel->io);
    ev_io_set(&channel->io, channel->fd, wanted);
    if (wanted)
        ev_io_start(channel->loop, &channel->io);
}

static void
channel_set_state(struct vf_channel *channel, enum channel_state state)
{
    vf_log(&channel->log, VMFROST_LOG_DEBUG, "%s: channel %s -> %s", channel->name,
           state_names[channel->state], state_names[state]);
    assert(moves[channel->state][state]);
    channel->state = state;
    channel_watch(channel);
}

static void
channel_drop_socket(struct vf_channel *channel)
{
    ev_io_stop(channel->loop, &channel->io);
    if (channel->fd >= 0)
        close(channel->fd);
    channel->fd = -1;
}

void
vf_channel_close(struct vf_channel *channel)
{
    if (channel->state == CHANNEL_CLOSED)
        return;
    if (channel->interrupted)
        *channel->interrupted = true;
    channel->interrupted = NULL;
    channel_drop_socket(channel);
    ev_timer_stop(channel->loop, &channel->retry);
    ev_idle_stop(channel->loop, &channel->idle);
    buffer_release(&channel->rx);
    buffer_release(&channel->tx);
    free(channel->path);
    channel->path = NULL;
    channel->peer_pid = 0;
    channel_set_state(channel, CHANNEL_CLOSED);
}

static void
channel_lose(struct vf_channel *channel, const char *why)
{
    vf_channel_close(channel);
    channel->hooks.lost(channel->owner, why);
}

/* Connecting */

static void
channel_connected(struct vf_channel *channel)
{
    struct ucred peer;
    socklen_t length = sizeof peer;

    if (channel->peer_pid == 0 &&
        getsockopt(channel->fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid > 0)
        channel->peer_pid = peer.pid;
    channel_set_state(channel, CHANNEL_OPEN);
    channel->hooks.connected(channel->owner);
}

static void
channel_attempted(struct vf_channel *channel, int error)
{
    if (error == 0) {
        channel_connected(channel);
        return;
    }
    if (error == EINPROGRESS) {
        channel_watch(channel);
        return;
    }
    channel_drop_socket(channel);
    /* EAGAIN: the queue of the listener is full, so that somebody else is connected. */
    if (error == EAGAIN || error == EINTR ||
        (error == ECONNREFUSED && channel->refusals++ < REFUSALS_MAX)) {
        ev_timer_set(&channel->retry, RETRY_S, 0.);
        ev_timer_start(channel->loop, &channel->retry);
        return;
    }
    channel_lose(channel, vf_dial_words(error));
}

static void
channel_attempt(struct vf_channel *channel)
{
    channel_attempted(channel, vf_dial(channel->path, &channel->fd));
}

/* Sending */

/* False: the peer takes nothing more. */
static bool
channel_flush(struct vf_channel *channel)
{
    size_t done = 0;
    bool alive = true;

    while (alive && done < channel->tx.length) {
        ssize_t put =
            send(channel->fd, channel->tx.bytes + done, channel->tx.length - done, MSG_NOSIGNAL);

        if (put >= 0)
            done += (size_t)put;
        else if (errno == EAGAIN)
            break;
        else
            alive = errno == EINTR;
    }
    buffer_drop(&channel->tx, alive ? done : channel->tx.length);
    return alive;
}

static void
channel_write(struct vf_channel *channel)
{
    if (channel_flush(channel)) {
        channel_watch(channel);
        return;
    }
    channel_set_state(channel, CHANNEL_DEAF);
    ev_idle_start(channel->loop, &channel->idle);
}

bool
vf_channel_send(struct vf_channel *channel, const void *bytes, size_t length)
{
    assert(vf_channel_is_open(channel));
    channel_log(channel, '>', bytes, length);
    /* The loss is on its way to the owner. */
    if (channel->state == CHANNEL_DEAF)
        return true;
    if (channel->tx.length + length > VF_CHANNEL_BACKLOG)
        return false;
    buffer_add(&channel->tx, bytes, length);
    channel_write(channel);
    return true;
}

/* Receiving */

void
vf_channel_skip(struct vf_channel *channel)
{
    vf_frame_next(&channel->frame, true);
}

static void
channel_garbled(struct vf_channel *channel, const char *what)
{
    char sample[80];

    vf_channel_line(sample, sizeof sample, channel->rx.bytes + channel->frame.start,
                    channel->rx.length - channel->frame.start);
    vf_channel_skip(channel);
    vf_log(&channel->log, VMFROST_LOG_DEBUG, "%s < [%s] %s", channel->name, what, sample);
    channel->hooks.garbled(channel->owner, what, sample);
}

static void
channel_message(struct vf_channel *channel)
{
    const char *text = (const char *)channel->rx.bytes + channel->frame.start;
    size_t length = channel->frame.scanned - channel->frame.start;
    bool suffices =
        channel->hooks.suffices && channel->hooks.suffices(channel->owner, text, length);
    /* json-c counts a scalar as a level of its own, and gets room for each level. */
    VF_AUTO_JSON struct json_object *message =
        suffices ? NULL : vf_json_parse(text, length, channel->frame.deepest + 2);

    if (!message && !suffices) {
        channel_garbled(channel, "no JSON");
        return;
    }
    channel_log(channel, '<', text, length);
    vf_frame_next(&channel->frame, false);
    channel->hooks.message(channel->owner, message);
}

static void
channel_found(struct vf_channel *channel, enum vf_found found)
{
    char what[60];

    switch (found) {
    case VF_FOUND_NOTHING:
        break;
    case VF_FOUND_MESSAGE:
        channel_message(channel);
        break;
    case VF_FOUND_MARKER:
        channel->hooks.marker(channel->owner);
        break;
    case VF_FOUND_GARBAGE:
        channel_garbled(channel, "no JSON");
        break;
    case VF_FOUND_TOO_LARGE:
        snprintf(what, sizeof what, "a message larger than %zu MiB", channel->rules.bytes >> 20);
        channel_garbled(channel, what);
        break;
    case VF_FOUND_TOO_DEEP:
        snprintf(what, sizeof what, "a message nested deeper than %d levels", channel->rules.depth);
        channel_garbled(channel, what);
        break;
    case VF_FOUND_TOO_MANY:
        snprintf(what, sizeof what, "a message of more than %zu values", channel->rules.values);
        channel_garbled(channel, what);
        break;
    }
}

static void
channel_process(struct vf_channel *channel)
{
    bool interrupted = false;
    enum vf_found found;

    // cppcheck-suppress autoVariables ; taken back before this function returns
    channel->interrupted = &interrupted;
    do {
        found =
            vf_frame_scan(&channel->frame, &channel->rules, channel->rx.bytes, channel->rx.length);
        channel_found(channel, found);
        if (interrupted)
            return;
    } while (found != VF_FOUND_NOTHING);
    channel->interrupted = NULL;
    channel->frame.scanned -= channel->frame.start;
    buffer_drop(&channel->rx, channel->frame.start);
    channel->frame.start = 0;
}

static void
channel_read(struct vf_channel *channel)
{
    unsigned char bytes[VF_CHANNEL_TURN];
    ssize_t got = read(channel->fd, bytes, sizeof bytes);

    if (got > 0) {
        buffer_add(&channel->rx, bytes, (size_t)got);
        channel_process(channel);
    } else if (got == 0 || errno == ECONNRESET) {
        channel_lose(channel, channel->frame.depth > 0 ? "it was closed in the middle of a message"
                                                       : "it was closed by the other side");
    } else if (errno == EAGAIN) {
        if (channel->state == CHANNEL_DEAF)
            channel_lose(channel, "it takes nothing any more");
    } else if (errno != EINTR) {
        channel_lose(channel, strerror(errno));
    }
}

/* From the loop */

static void
channel_on_io(struct ev_loop *loop, struct ev_io *io, int revents)
{
    struct vf_channel *channel = io->data;
    socklen_t length = sizeof(int);
    int error = 0;

    (void)loop;
    if (channel->state == CHANNEL_CONNECTING) {
        if (getsockopt(channel->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
            error = errno;
        channel_attempted(channel, error);
        return;
    }
    if (revents & EV_WRITE)
        channel_write(channel);
    if (revents & EV_READ)
        channel_read(channel);
}

static void
channel_on_retry(struct ev_loop *loop, struct ev_timer *retry, int revents)
{
    (void)loop, (void)revents;
    channel_attempt(retry->data);
}

static void
channel_on_idle(struct ev_loop *loop, struct ev_idle *idle, int revents)
{
    struct vf_channel *channel = idle->data;

    (void)revents;
    if (channel->state == CHANNEL_CONNECTING) {
        ev_idle_stop(loop, idle);
        channel_attempt(channel);
    } else {
        channel_read(channel);
    }
}

void
vf_channel_open(struct vf_channel *channel, const char *path)
{
    channel->path = vf_strdup(path);
    channel->refusals = 0;
    channel->frame = (struct vf_frame){0};
    channel_set_state(channel, CHANNEL_CONNECTING);
    ev_idle_start(channel->loop, &channel->idle);
}

void
vf_channel_attach(struct vf_channel *channel, int fd, pid_t peer_pid)
{
    int on = 1;

    assert(channel->state == CHANNEL_CLOSED);
    ioctl(fd, FIONBIO, &on);
    ioctl(fd, FIOCLEX);
    channel->fd = fd;
    channel->peer_pid = peer_pid;
    channel->frame = (struct vf_frame){0};
    /* It can be written to at once, so that the loop finds it connected in its next turn. */
    channel_set_state(channel, CHANNEL_CONNECTING);
}

struct vf_channel *
vf_channel_new(struct ev_loop *loop, const char *name, const struct vf_channel_hooks *hooks,
               const struct vf_frame_rules *rules, void *owner, const struct vf_log *log)
{
    struct vf_channel *channel = vf_alloc(sizeof *channel);

    channel->loop = loop;
    channel->name = name;
    channel->hooks = *hooks;
    channel->rules = *rules;
    channel->owner = owner;
    channel->log = *log;
    channel->fd = -1;
    ev_init(&channel->io, channel_on_io);
    ev_init(&channel->retry, channel_on_retry);
    ev_init(&channel->idle, channel_on_idle);
    /* Above all others, so that it waits for the next turn of the loop and no longer. */
    ev_set_priority(&channel->idle, EV_MAXPRI);
    channel->io.data = channel->retry.data = channel->idle.data = channel;
    return channel;
}

void
vf_channel_free(struct vf_channel *channel)
{
    if (!channel)
        return;
    vf_channel_close(channel);
    free(channel);
}

bool
vf_channel_is_open(const struct vf_channel *channel)
{
    return channel->state == CHANNEL_OPEN || channel->state == CHANNEL_DEAF;
}

int
vf_channel_fd(const struct vf_channel *channel)
{
    return vf_channel_is_open(channel) ? channel->fd : -1;
}

pid_t
vf_channel_peer_pid(const struct vf_channel *channel)
{
    return channel->peer_pid;
}
