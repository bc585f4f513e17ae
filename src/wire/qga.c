/* SPDX-License-Identifier: MIT
 *
 * state       channel     request    input is                      open callback
 * CLOSED      closed      -          -                             -
 * CONNECTING  connecting  -          -                             set
 * UNSYNCED    open        -          skipped                       -
 * SYNCING     open        set        skipped up to each marker,    -
 *                                    then one message is looked at
 * AWAITING    open        set        the reply                     -
 * SYNCED      open        -          a breach of the protocol      -
 *
 * Moves: CLOSED -> CONNECTING -> UNSYNCED -> SYNCING -> AWAITING -> SYNCED -> AWAITING ...;
 * from SYNCING, AWAITING and SYNCED back to UNSYNCED whenever something is left unanswered or
 * makes no sense; from each to CLOSED.
 *
 * A request that ends without the wire (there is no connection) and the notice of a loss are
 * delivered by the idle watcher, one callback a turn. Each function that the loop calls ends
 * with the one callback that it makes, because that may free the client.
 */
#include "wire/qga.h"

#include <assert.h>
#include <ev.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "util/cleanup.h"
#include "util/descriptors.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "wire/channel.h"

#define DEPTH_MAX 32
#define VALUES_MAX ((size_t)32 << 10)

enum qga_state {
    QGA_CLOSED,
    QGA_CONNECTING,
    QGA_UNSYNCED,
    QGA_SYNCING,
    QGA_AWAITING,
    QGA_SYNCED,
};

static const char *const state_names[] = {
    [QGA_CLOSED] = "closed",   [QGA_CONNECTING] = "connecting", [QGA_UNSYNCED] = "unsynced",
    [QGA_SYNCING] = "syncing", [QGA_AWAITING] = "awaiting",     [QGA_SYNCED] = "synced",
};

static const bool moves[6][6] = {
    [QGA_CLOSED] = {[QGA_CONNECTING] = true},
    [QGA_CONNECTING] = {[QGA_UNSYNCED] = true, [QGA_CLOSED] = true},
    [QGA_UNSYNCED] = {[QGA_SYNCING] = true, [QGA_CLOSED] = true},
    [QGA_SYNCING] = {[QGA_AWAITING] = true, [QGA_UNSYNCED] = true, [QGA_CLOSED] = true},
    [QGA_AWAITING] = {[QGA_SYNCED] = true, [QGA_UNSYNCED] = true, [QGA_CLOSED] = true},
    [QGA_SYNCED] = {[QGA_AWAITING] = true, [QGA_UNSYNCED] = true, [QGA_CLOSED] = true},
};

struct callback {
    vf_reply_fn *fn; /* NULL: none */
    void *data;
};

struct vf_qga {
    struct ev_loop *loop;
    vf_qga_lost_fn *lost;
    void *owner;
    struct vf_log log;
    struct vf_channel *channel;

    enum qga_state state;
    bool heard; /* a marker, on this connection */
    char *path;
    int connect_ms;
    struct ev_timer timer; /* runs while CONNECTING */
    struct ev_idle idle;   /* runs while `ended` or `lost_why` is set */
    struct callback opening;
    struct callback request;
    int64_t sync_id;
    const char *ended; /* why `request` has ended, untold */
    char *lost_why;    /* why the connection is gone, untold */
};

static void
qga_set_state(struct vf_qga *qga, enum qga_state state)
{
    bool connection =
        qga->state == QGA_CLOSED || qga->state == QGA_CONNECTING || state == QGA_CLOSED;

    vf_log(&qga->log, connection ? VMFROST_LOG_INFO : VMFROST_LOG_DEBUG, "qga: %s -> %s",
           state_names[qga->state], state_names[state]);
    assert(moves[qga->state][state]);
    qga->state = state;
    if (state == QGA_UNSYNCED)
        vf_channel_skip(qga->channel);
    if (state != QGA_CONNECTING)
        ev_timer_stop(qga->loop, &qga->timer);
}

static struct callback
qga_take(struct callback *from)
{
    struct callback taken = *from;

    *from = (struct callback){0};
    return taken;
}

static void
qga_tell(struct callback callback, enum vf_outcome outcome, const char *words)
{
    const struct vf_reply reply = {outcome, NULL, words};

    callback.fn(callback.data, &reply);
}

/* Down to closed without a word to anybody. */
static void
qga_shut(struct vf_qga *qga)
{
    if (qga->state == QGA_CLOSED)
        return;
    vf_channel_close(qga->channel);
    free(qga->path);
    qga->path = NULL;
    qga_set_state(qga, QGA_CLOSED);
}

/* Opening */

static void
qga_fail_open(struct vf_qga *qga, const char *why)
{
    struct callback opening = qga_take(&qga->opening);
    VF_AUTO_FREE char *words =
        vf_printf("cannot connect to the guest agent's socket %s: %s", qga->path, why);

    vf_sanitize(words);
    qga_shut(qga);
    qga_tell(opening, VF_UNKNOWN, words);
}

static void
qga_on_connected(void *owner)
{
    struct vf_qga *qga = owner;

    qga_set_state(qga, QGA_UNSYNCED);
    qga_tell(qga_take(&qga->opening), VF_OK, "");
}

static void
qga_on_timer(struct ev_loop *loop, struct ev_timer *timer, int revents)
{
    (void)loop, (void)revents;
    qga_fail_open(timer->data, "other clients wait for it already (QEMU serves one at a time)");
}

void
vf_qga_open(struct vf_qga *qga, const char *path, vf_reply_fn *fn, void *data)
{
    /* Whoever opens anew knows that the last connection is gone. */
    free(VF_STEAL(qga->lost_why));
    qga->path = vf_strdup(path);
    qga->heard = false;
    qga->opening = (struct callback){fn, data};
    ev_now_update(qga->loop);
    ev_timer_set(&qga->timer, qga->connect_ms / 1000., 0.);
    ev_timer_start(qga->loop, &qga->timer);
    qga_set_state(qga, QGA_CONNECTING);
    vf_channel_open(qga->channel, path);
}

/* Requests */

/* 63 bits, and neither 0 nor the largest, which a reader may take for clamped. */
static int64_t
qga_random(void)
{
    char hex[17];
    int64_t number;

    do {
        vf_random_hex(hex);
        number = (int64_t)(strtoull(hex, NULL, 16) >> 1);
    } while (number == 0 || number == INT64_MAX);
    return number;
}

static char *
qga_command_text(const char *command, struct json_object *arguments)
{
    VF_AUTO_JSON struct json_object *object = vf_json_new_object();

    vf_json_add_string(object, "execute", command);
    if (arguments)
        vf_json_add(object, "arguments", arguments);
    return vf_strdup(
        vf_json_print(object, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
}

/* Ends the request from the loop, with the wire left as it is. */
static void
qga_end_later(struct vf_qga *qga, const char *why)
{
    qga->ended = why;
    ev_idle_start(qga->loop, &qga->idle);
}

void
vf_qga_call(struct vf_qga *qga, const char *command, struct json_object *arguments, vf_reply_fn *fn,
            void *data)
{
    VF_AUTO_FREE char *text = qga_command_text(command, arguments);
    VF_AUTO_FREE char *bytes = NULL;
    bool synced = qga->state == QGA_SYNCED;

    assert(!qga->request.fn);
    qga->request = (struct callback){fn, data};
    if (!vf_qga_is_open(qga)) {
        qga_end_later(qga, "there is no connection to the guest agent");
        return;
    }
    if (synced) {
        bytes = vf_printf("%s\n", text);
    } else {
        qga->sync_id = qga_random();
        bytes = vf_printf("\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%lld}}\n"
                          "%s\n",
                          (long long)qga->sync_id, text);
    }
    if (!vf_channel_send(qga->channel, bytes, strlen(bytes))) {
        qga_end_later(qga, "QEMU no longer reads what is meant for the guest agent");
        return;
    }
    qga_set_state(qga, synced ? QGA_AWAITING : QGA_SYNCING);
}

void
vf_qga_forget(struct vf_qga *qga)
{
    qga->request = (struct callback){0};
    qga->ended = NULL;
    if (!qga->lost_why)
        ev_idle_stop(qga->loop, &qga->idle);
    if (qga->state == QGA_SYNCING || qga->state == QGA_AWAITING)
        qga_set_state(qga, QGA_UNSYNCED);
}

/* What came is no answer: the request's fate is unknown, and so is the rest of the stream. */
static void
qga_spoiled(struct vf_qga *qga, const char *why)
{
    qga_set_state(qga, QGA_UNSYNCED);
    qga_tell(qga_take(&qga->request), VF_UNKNOWN, why);
}

static void
qga_on_sync(struct vf_qga *qga, struct json_object *message)
{
    int64_t id;

    if (vf_json_int(message, "return", &id) && id == qga->sync_id) {
        qga_set_state(qga, QGA_AWAITING);
        return;
    }
    vf_log(&qga->log, VMFROST_LOG_DEBUG, "qga: answer to another sync dropped");
    vf_channel_skip(qga->channel);
}

static void
qga_on_reply(struct vf_qga *qga, struct json_object *message)
{
    char words[VF_WORDS_SIZE];
    struct vf_reply reply;

    if (!vf_reply_read(message, &reply, words)) {
        qga_spoiled(qga, "the guest agent's answer is neither a result nor an error");
        return;
    }
    struct callback request = qga_take(&qga->request);

    qga_set_state(qga, QGA_SYNCED);
    request.fn(request.data, &reply);
}

static void
qga_on_message(void *owner, struct json_object *message)
{
    struct vf_qga *qga = owner;

    switch (qga->state) {
    case QGA_CLOSED:
    case QGA_CONNECTING:
        assert(!"a message without a connection");
        break;
    case QGA_UNSYNCED:
        vf_channel_skip(qga->channel);
        break;
    case QGA_SYNCING:
        qga_on_sync(qga, message);
        break;
    case QGA_AWAITING:
        qga_on_reply(qga, message);
        break;
    case QGA_SYNCED:
        qga_set_state(qga, QGA_UNSYNCED);
        break;
    }
}

static void
qga_on_marker(void *owner)
{
    struct vf_qga *qga = owner;

    qga->heard = true;
    switch (qga->state) {
    case QGA_CLOSED:
    case QGA_CONNECTING:
        assert(!"a marker without a connection");
        break;
    case QGA_UNSYNCED:
    case QGA_SYNCING:
        break;
    case QGA_AWAITING:
        qga_spoiled(qga, "the guest agent sent a marker instead of an answer");
        break;
    case QGA_SYNCED:
        qga_set_state(qga, QGA_UNSYNCED);
        break;
    }
}

static void
qga_on_garbled(void *owner, const char *what, const char *sample)
{
    struct vf_qga *qga = owner;

    switch (qga->state) {
    case QGA_CLOSED:
    case QGA_CONNECTING:
        assert(!"garbage without a connection");
        break;
    case QGA_UNSYNCED:
    case QGA_SYNCING:
        break;
    case QGA_AWAITING: {
        VF_AUTO_FREE char *why = vf_printf("the guest agent sent %s (\"%s\")", what, sample);

        qga_spoiled(qga, why);
        break;
    }
    case QGA_SYNCED:
        qga_set_state(qga, QGA_UNSYNCED);
        break;
    }
}

/* The end of a connection */

static void
qga_on_lost(void *owner, const char *why)
{
    struct vf_qga *qga = owner;

    if (qga->state == QGA_CONNECTING) {
        qga_fail_open(qga, why);
        return;
    }
    VF_AUTO_FREE char *words = vf_printf("the connection to the guest agent is gone: %s", why);

    qga_shut(qga);
    qga->lost_why = vf_strdup(words);
    ev_idle_start(qga->loop, &qga->idle);
    if (qga->request.fn && !qga->ended)
        qga_tell(qga_take(&qga->request), VF_UNKNOWN, words);
}

static void
qga_on_idle(struct ev_loop *loop, struct ev_idle *idle, int revents)
{
    struct vf_qga *qga = idle->data;
    VF_AUTO_FREE char *lost_why = NULL;

    (void)revents;
    if (qga->ended) {
        const char *why = VF_STEAL(qga->ended);

        if (!qga->lost_why)
            ev_idle_stop(loop, idle);
        qga_tell(qga_take(&qga->request), VF_UNKNOWN, why);
        return;
    }
    ev_idle_stop(loop, idle);
    lost_why = VF_STEAL(qga->lost_why);
    if (lost_why && qga->lost)
        qga->lost(qga->owner, lost_why);
}

void
vf_qga_close(struct vf_qga *qga)
{
    qga->opening = qga->request = (struct callback){0};
    qga->ended = NULL;
    free(VF_STEAL(qga->lost_why));
    ev_idle_stop(qga->loop, &qga->idle);
    qga_shut(qga);
}

void
vf_qga_hang_up(struct vf_qga *qga)
{
    int fd = vf_qga_fd(qga);

    if (fd >= 0)
        shutdown(fd, SHUT_RDWR);
    vf_qga_close(qga);
}

/* Life */

struct vf_qga *
vf_qga_new(struct ev_loop *loop, vf_qga_lost_fn *lost, void *owner, const struct vf_log *log)
{
    static const struct vf_channel_hooks hooks = {
        .connected = qga_on_connected,
        .message = qga_on_message,
        .marker = qga_on_marker,
        .garbled = qga_on_garbled,
        .lost = qga_on_lost,
    };
    static const struct vf_frame_rules rules = {VF_QGA_MESSAGE_MAX, VALUES_MAX, DEPTH_MAX, true};
    struct vf_qga *qga = vf_alloc(sizeof *qga);

    qga->loop = loop;
    qga->lost = lost;
    qga->owner = owner;
    qga->log = *log;
    qga->connect_ms = VF_QGA_CONNECT_MS;
    qga->channel = vf_channel_new(loop, "qga", &hooks, &rules, qga, log);
    ev_init(&qga->timer, qga_on_timer);
    ev_init(&qga->idle, qga_on_idle);
    ev_set_priority(&qga->idle, EV_MAXPRI);
    qga->timer.data = qga->idle.data = qga;
    return qga;
}

void
vf_qga_free(struct vf_qga *qga)
{
    if (!qga)
        return;
    vf_qga_close(qga);
    vf_channel_free(qga->channel);
    free(qga);
}

void
vf_qga_set_connect_ms(struct vf_qga *qga, int ms)
{
    qga->connect_ms = ms;
}

bool
vf_qga_is_open(const struct vf_qga *qga)
{
    return vf_channel_is_open(qga->channel);
}

bool
vf_qga_was_heard(const struct vf_qga *qga)
{
    return qga->heard;
}

bool
vf_qga_is_ignored(const struct vf_qga *qga)
{
    return vf_qga_is_open(qga) && !qga->heard && vf_all_is_read(vf_qga_fd(qga));
}

int
vf_qga_fd(const struct vf_qga *qga)
{
    return vf_channel_fd(qga->channel);
}
