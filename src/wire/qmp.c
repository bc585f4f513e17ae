/* SPDX-License-Identifier: MIT
 *
 * state        channel     timer             open callback  `sent` holds        greeting
 * CLOSED       closed      off               -              nothing             -
 * CONNECTING   connecting  greeting          set            nothing             -
 * GREETING     open        greeting, goes on set            nothing             -
 * NEGOTIATING  open        greeting, anew    set            qmp_capabilities    set
 * READY        open        silence           -              requests            -
 *
 * `probe` is the request by which a silent peer is asked whether it has lost another one; 0: none.
 *
 * Moves: CLOSED -> CONNECTING -> GREETING -> NEGOTIATING -> READY, and from each to CLOSED.
 *
 * `ended` and `lost_why` hold what the idle watcher has still to tell, in any state. Each
 * function that the loop calls ends with the one callback that it makes, because that may free
 * the client.
 */
#include "wire/qmp.h"

#include <assert.h>
#include <ev.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "wire/channel.h"

/* query-block nests one level for each link of a chain. */
#define DEPTH_MAX 300
#define VALUES_MAX ((size_t)256 << 10)
#define OUT_OF_BAND "exec-oob"

enum qmp_state { QMP_CLOSED, QMP_CONNECTING, QMP_GREETING, QMP_NEGOTIATING, QMP_READY };

static const char *const state_names[] = {
    [QMP_CLOSED] = "closed",           [QMP_CONNECTING] = "connecting", [QMP_GREETING] = "greeting",
    [QMP_NEGOTIATING] = "negotiating", [QMP_READY] = "ready",
};

static const bool moves[5][5] = {
    [QMP_CLOSED] = {[QMP_CONNECTING] = true},
    [QMP_CONNECTING] = {[QMP_GREETING] = true, [QMP_CLOSED] = true},
    [QMP_GREETING] = {[QMP_NEGOTIATING] = true, [QMP_CLOSED] = true},
    [QMP_NEGOTIATING] = {[QMP_READY] = true, [QMP_CLOSED] = true},
    [QMP_READY] = {[QMP_CLOSED] = true},
};

struct request {
    struct request *next;
    uint64_t number;
    vf_reply_fn *fn; /* NULL: forgotten, the reply is only waited for to be dropped */
    void *data;
    char *command;
    bool oob;
    char *why;                /* in `ended` only */
    const char *const *words; /* which suffice: vf_qmp_look_for() */
    size_t word_count;
};

/* First in, first out. */
struct requests {
    struct request *first, **end;
};

struct vf_qmp {
    struct ev_loop *loop;
    struct vf_qmp_hooks hooks;
    void *owner;
    struct vf_log log;
    struct vf_channel *channel;

    enum qmp_state state;
    const char *peer; /* what messages call it */
    bool attached;    /* nobody else can be connected to it */
    char *path;       /* of its socket; if attached, its name */
    char *where;      /* for messages: which socket */
    int greeting_ms, limit_ms, silence_ms, silence_limit_ms;
    struct ev_timer timer;
    struct ev_idle idle; /* runs while something is untold */
    struct json_object *greeting;
    bool oob;
    vf_reply_fn *open_fn;
    void *open_data;

    char random[17]; /* what all ids of this client begin with */
    uint64_t last;
    uint64_t probe;
    uint64_t primed; /* the request that lacks its last byte; 0: none */
    char *primed_command;
    /* One was taken back, and QEMU has not complained yet; it does so before it answers what was
     * sent behind that, which begins with this number. 0: nothing of the kind. */
    uint64_t complains_before;
    struct requests sent, ended;
    char *lost_why;
};

/* Requests */

static void
requests_add(struct requests *requests, struct request *request)
{
    request->next = NULL;
    *requests->end = request;
    requests->end = &request->next;
}

static struct request *
requests_take(struct requests *requests, uint64_t number)
{
    for (struct request **at = &requests->first; *at; at = &(*at)->next) {
        struct request *request = *at;

        if (request->number != number)
            continue;
        *at = request->next;
        if (!*at)
            requests->end = at;
        return request;
    }
    return NULL;
}

static void
request_free(struct request *request)
{
    if (!request)
        return;
    free(request->why);
    free(request->command);
    free(request);
}

static void
requests_clear(struct requests *requests)
{
    while (requests->first)
        request_free(requests_take(requests, requests->first->number));
}

/* The words of the reply may be the request's own. */
static void
request_finish(struct request *request, const struct vf_reply *reply)
{
    vf_reply_fn *fn = request->fn;
    void *data = request->data;
    char *why = VF_STEAL(request->why);

    request_free(request);
    if (fn)
        fn(data, reply);
    free(why);
}

static void
request_finish_unknown(struct request *request, const char *why)
{
    const struct vf_reply reply = {VF_UNKNOWN, NULL, why};

    request_finish(request, &reply);
}

/* States */

static void
qmp_set_timer(struct vf_qmp *qmp, int ms)
{
    ev_timer_stop(qmp->loop, &qmp->timer);
    ev_timer_set(&qmp->timer, ms / 1000., 0.);
    ev_timer_start(qmp->loop, &qmp->timer);
}

static void
qmp_set_state(struct vf_qmp *qmp, enum qmp_state state)
{
    vf_log(&qmp->log, VMFROST_LOG_INFO, "qmp: %s -> %s", state_names[qmp->state],
           state_names[state]);
    assert(moves[qmp->state][state]);
    qmp->state = state;
    switch (state) {
    case QMP_CONNECTING:
    case QMP_NEGOTIATING:
        qmp_set_timer(qmp, qmp->limit_ms);
        break;
    case QMP_GREETING:
        break;
    case QMP_READY:
    case QMP_CLOSED:
        ev_timer_stop(qmp->loop, &qmp->timer);
        break;
    }
}

/* Down to closed without a word to anybody; what is owed to callers stays in `sent`. */
static void
qmp_shut(struct vf_qmp *qmp)
{
    if (qmp->state == QMP_CLOSED)
        return;
    vf_channel_close(qmp->channel);
    json_object_put(VF_STEAL(qmp->greeting));
    free(VF_STEAL(qmp->path));
    free(VF_STEAL(qmp->where));
    qmp->oob = false;
    qmp->primed = qmp->complains_before = qmp->probe = 0;
    free(VF_STEAL(qmp->primed_command));
    qmp_set_state(qmp, QMP_CLOSED);
}

static void __attribute__((format(printf, 2, 3)))
qmp_fail_open(struct vf_qmp *qmp, const char *format, ...)
{
    vf_reply_fn *fn = qmp->open_fn;
    void *data = qmp->open_data;
    char words[VF_WORDS_SIZE];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(words, sizeof words, format, arguments);
    va_end(arguments);
    vf_sanitize(words);
    requests_clear(&qmp->sent);
    qmp_shut(qmp);

    const struct vf_reply reply = {VF_UNKNOWN, NULL, words};

    fn(data, &reply);
}

/* All that is outstanding ends UNKNOWN, one callback a turn of the loop, and then the owner is
 * told of the loss. */
static void
qmp_lose(struct vf_qmp *qmp, const char *why)
{
    qmp_shut(qmp);
    while (qmp->sent.first) {
        struct request *request = requests_take(&qmp->sent, qmp->sent.first->number);

        request->why = vf_strdup(why);
        requests_add(&qmp->ended, request);
    }
    qmp->lost_why = vf_strdup(why);
    ev_idle_start(qmp->loop, &qmp->idle);
}

/* Opening */

static void qmp_on_silence(struct vf_qmp *qmp);

static void
qmp_dropped(struct vf_qmp *qmp, const char *what)
{
    vf_log(&qmp->log, VMFROST_LOG_INFO, "qmp: dropped %s", what);
}

static void
qmp_on_timer(struct ev_loop *loop, struct ev_timer *timer, int revents)
{
    struct vf_qmp *qmp = timer->data;
    double limit_s = qmp->limit_ms / 1000.;

    (void)loop, (void)revents;
    switch (qmp->state) {
    case QMP_CONNECTING:
        qmp_fail_open(qmp,
                      "cannot connect to %s in %g s: other clients are connected to it and wait "
                      "for it (QEMU serves one at a time); close them or give QEMU a second -qmp "
                      "socket",
                      qmp->where, limit_s);
        break;
    case QMP_GREETING:
        if (qmp->attached)
            qmp_fail_open(qmp, "%s: no greeting in %g s: it hangs", qmp->where, limit_s);
        else
            qmp_fail_open(qmp,
                          "%s: no greeting in %g s: another client is connected to this QMP socket "
                          "(QEMU serves one at a time), or QEMU hangs; close the other client or "
                          "give QEMU a second -qmp socket",
                          qmp->where, limit_s);
        break;
    case QMP_NEGOTIATING:
        qmp_fail_open(qmp, "%s: %s greeted but does not answer (%g s): its main loop hangs",
                      qmp->where, qmp->peer, limit_s);
        break;
    case QMP_READY:
        qmp_on_silence(qmp);
        break;
    case QMP_CLOSED:
        assert(!"a timer without an open");
        break;
    }
}

static void
qmp_begin_open(struct vf_qmp *qmp, const char *peer, vf_reply_fn *fn, void *data)
{
    /* Whoever opens anew knows that the last connection is gone. */
    free(VF_STEAL(qmp->lost_why));
    qmp->peer = peer;
    qmp->open_fn = fn;
    qmp->open_data = data;
    qmp->limit_ms = qmp->greeting_ms;
    ev_now_update(qmp->loop);
    qmp_set_state(qmp, QMP_CONNECTING);
}

void
vf_qmp_open(struct vf_qmp *qmp, const char *path, vf_reply_fn *fn, void *data)
{
    qmp_begin_open(qmp, "QEMU", fn, data);
    qmp->attached = false;
    qmp->path = vf_strdup(path);
    qmp->where = vf_printf("QEMU's QMP socket %s", path);
    vf_log(&qmp->log, VMFROST_LOG_INFO, "qmp: connecting to %s", path);
    vf_channel_open(qmp->channel, path);
}

void
vf_qmp_attach(struct vf_qmp *qmp, int fd, pid_t peer_pid, const char *name, vf_reply_fn *fn,
              void *data)
{
    qmp_begin_open(qmp, name, fn, data);
    qmp->attached = true;
    qmp->path = vf_strdup(name);
    qmp->where = vf_printf("the monitor of %s", name);
    vf_log(&qmp->log, VMFROST_LOG_INFO, "qmp: the monitor of %s (process %d)", name, (int)peer_pid);
    vf_channel_attach(qmp->channel, fd, peer_pid);
}

static void
qmp_on_connected(void *owner)
{
    qmp_set_state(owner, QMP_GREETING);
}

/* Text of a command, with its id. */
static char *
qmp_text(struct vf_qmp *qmp, const char *key, const char *command, struct json_object *arguments,
         uint64_t number)
{
    VF_AUTO_JSON struct json_object *object = vf_json_new_object();
    VF_AUTO_FREE char *id = vf_printf("%s-%" PRIu64, qmp->random, number);

    vf_json_add_string(object, key, command);
    if (arguments)
        vf_json_add(object, "arguments", arguments);
    vf_json_add_string(object, "id", id);
    return vf_strdup(
        vf_json_print(object, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
}

/* Somebody waits for the reply. */
static bool
request_is_wanted(const struct request *request)
{
    return request->fn && !request->oob;
}

static struct request *
qmp_first_wanted(const struct vf_qmp *qmp)
{
    struct request *request = qmp->sent.first;

    while (request && !request_is_wanted(request))
        request = request->next;
    return request;
}

/* QEMU was heard, or is asked for the first time. */
static void
qmp_note_life(struct vf_qmp *qmp)
{
    qmp->probe = 0;
    if (qmp_first_wanted(qmp))
        qmp_set_timer(qmp, qmp->silence_ms);
    else
        ev_timer_stop(qmp->loop, &qmp->timer);
}

/* Waits for the reply to what was sent, or ends it from the loop if it was not. `why` is owned. */
static uint64_t
qmp_await(struct vf_qmp *qmp, uint64_t number, const char *key, const char *command, char *why,
          vf_reply_fn *fn, void *data)
{
    struct request *request = vf_alloc(sizeof *request);

    request->number = number;
    request->command = vf_strdup(command);
    request->oob = strcmp(key, OUT_OF_BAND) == 0;
    request->fn = fn;
    request->data = data;
    if (why) {
        request->why = why;
        requests_add(&qmp->ended, request);
        ev_idle_start(qmp->loop, &qmp->idle);
    } else {
        requests_add(&qmp->sent, request);
        if (qmp->state == QMP_READY && qmp_first_wanted(qmp) == request)
            qmp_note_life(qmp);
    }
    return number;
}

static char *
qmp_deaf(const struct vf_qmp *qmp)
{
    return vf_printf("%s does not read its QMP socket", qmp->peer);
}

/* Sends a command where the state is the one that it belongs to. */
static uint64_t
qmp_request(struct vf_qmp *qmp, enum qmp_state state, const char *key, const char *command,
            struct json_object *arguments, vf_reply_fn *fn, void *data)
{
    uint64_t number = ++qmp->last;
    VF_AUTO_FREE char *text = qmp_text(qmp, key, command, arguments, number);
    char *why = NULL;

    assert(!qmp->primed);
    if (qmp->state != state)
        why = vf_printf("there is no connection to %s", qmp->peer);
    else if (!vf_channel_send(qmp->channel, text, strlen(text)))
        why = qmp_deaf(qmp);
    return qmp_await(qmp, number, key, command, why, fn, data);
}

/* While half a request is sent, nothing else can be: then there is nothing but to wait. */
static void
qmp_on_silence(struct vf_qmp *qmp)
{
    const struct request *waits = qmp_first_wanted(qmp);

    if (!waits)
        return;
    if (!qmp->probe) {
        qmp_set_timer(qmp, qmp->primed ? qmp->silence_ms : qmp->silence_limit_ms);
        if (!qmp->primed)
            qmp->probe = qmp_request(qmp, QMP_READY, "execute", "query-version", NULL, NULL, NULL);
        return;
    }
    VF_AUTO_FREE char *why =
        vf_printf("%s has not answered to %s, nor to anything else, for %g s", qmp->peer,
                  waits->command, (qmp->silence_ms + qmp->silence_limit_ms) / 1000.);

    qmp_lose(qmp, why);
}

static void
qmp_on_capabilities(void *data, const struct vf_reply *reply)
{
    struct vf_qmp *qmp = data;
    VF_AUTO_JSON struct json_object *greeting = NULL;

    if (reply->outcome != VF_OK) {
        qmp_fail_open(qmp, "%s: %s refused qmp_capabilities: %s", qmp->where, qmp->peer,
                      reply->words);
        return;
    }
    greeting = VF_STEAL(qmp->greeting);
    qmp_set_state(qmp, QMP_READY);
    const struct vf_reply ready = {VF_OK, greeting, ""};

    qmp->open_fn(qmp->open_data, &ready);
}

static void
qmp_no_qmp(struct vf_qmp *qmp, const char *sample)
{
    if (vf_starts_with(sample, "QEMU "))
        qmp_fail_open(qmp,
                      "%s is QEMU's monitor for people, it does not speak QMP (it sent \"%s\"): "
                      "give QEMU a -qmp socket",
                      qmp->path, sample);
    else
        qmp_fail_open(qmp, "%s does not speak QMP (it sent \"%s\")", qmp->path, sample);
}

static void
qmp_on_greeting(struct vf_qmp *qmp, struct json_object *message)
{
    struct json_object *about = vf_json_object(message, "QMP");
    struct json_object *offers = vf_json_array(about, "capabilities"), *arguments = NULL;

    /* The monitor stays in its former client's mode until its thread has noticed the new one: that
     * one's last command may end in this very moment, or something happen. */
    if (!about &&
        (json_object_object_get_ex(message, "return", NULL) ||
         json_object_object_get_ex(message, "error", NULL) || vf_json_string(message, "event"))) {
        qmp_dropped(qmp, "what was meant for a former client, before the greeting");
        return;
    }
    if (!about) {
        const char *text = vf_json_print(message, JSON_C_TO_STRING_PLAIN);
        char sample[80];

        vf_channel_line(sample, sizeof sample, text, strlen(text));
        qmp_no_qmp(qmp, sample);
        return;
    }
    qmp->greeting = json_object_get(about);
    for (size_t i = 0; i < vf_json_length(offers); i++) {
        const char *offer = vf_json_text(vf_json_at(offers, i));

        qmp->oob = qmp->oob || (offer && strcmp(offer, "oob") == 0);
    }
    if (qmp->oob) {
        struct json_object *enable = vf_json_new_array();

        vf_json_append(enable, vf_json_new_string("oob"));
        arguments = vf_json_new_object();
        vf_json_add(arguments, "enable", enable);
    }
    qmp_set_state(qmp, QMP_NEGOTIATING);
    qmp_request(qmp, QMP_NEGOTIATING, "execute", "qmp_capabilities", arguments, qmp_on_capabilities,
                qmp);
}

/* Messages */

/* The number of our request that this id belongs to; 0: not one of ours. */
static uint64_t
qmp_number(const struct vf_qmp *qmp, struct json_object *message)
{
    const char *id = vf_json_string(message, "id");
    size_t length = strlen(qmp->random);
    char *end;

    if (!id || strncmp(id, qmp->random, length) != 0 || id[length] != '-' || id[length + 1] < '1' ||
        id[length + 1] > '9')
        return 0;
    uint64_t number = strtoull(id + length + 1, &end, 10);

    return *end ? 0 : number;
}

static void
qmp_on_idless(struct vf_qmp *qmp, struct json_object *message)
{
    struct request *only = qmp->sent.first;
    char words[VF_WORDS_SIZE];
    struct vf_reply reply;

    if (qmp->complains_before && vf_json_object(message, "error")) {
        qmp->complains_before = 0;
        qmp_dropped(qmp, "the complaint about what was taken back");
        return;
    }
    if (qmp->state != QMP_READY || !only || only->next || !vf_reply_read(message, &reply, words) ||
        reply.outcome != VF_REFUSED) {
        qmp_dropped(qmp, "a message that is no answer to us");
        return;
    }
    VF_AUTO_FREE char *why = vf_printf("%s could not read the request: %s", qmp->peer, words);

    request_finish_unknown(requests_take(&qmp->sent, only->number), why);
}

/* Replies come in the order of the requests. */
static bool
qmp_suffices(void *owner, const char *text, size_t length)
{
    const struct vf_qmp *qmp = owner;
    const struct request *request = qmp->sent.first;

    if (!request || !request->words)
        return false;
    VF_AUTO_FREE char *id = vf_printf("\"%s-%" PRIu64 "\"", qmp->random, request->number);

    return memmem(text, length, id, strlen(id)) &&
           vf_frame_has(text, length, request->words, request->word_count);
}

/* The reply to a request that was sent before this one has not come, and will not. */
static bool
qmp_misses_one(struct vf_qmp *qmp, uint64_t number)
{
    const struct request *missing = qmp_first_wanted(qmp), *its = qmp->sent.first;

    while (its && its->number != number)
        its = its->next;
    if (!missing || missing->number >= number || !its || its->oob)
        return false;
    VF_AUTO_FREE char *why =
        vf_printf("%s's answer to %s was lost: it has answered what it was asked later", qmp->peer,
                  missing->command);

    qmp_lose(qmp, why);
    return true;
}

/* NULL: the first one's, which suffices. */
static void
qmp_on_reply(struct vf_qmp *qmp, struct json_object *message)
{
    uint64_t number = message ? qmp_number(qmp, message) : qmp->sent.first->number;
    char words[VF_WORDS_SIZE];
    struct vf_reply reply = {VF_OK, NULL, ""};

    if (number == 0) {
        if (json_object_object_get_ex(message, "id", NULL))
            qmp_dropped(qmp, "an answer to somebody else");
        else
            qmp_on_idless(qmp, message);
        return;
    }
    struct request *request;

    if (qmp_misses_one(qmp, number))
        return;
    request = requests_take(&qmp->sent, number);
    if (number >= qmp->complains_before)
        qmp->complains_before = 0;
    if (qmp->state == QMP_READY)
        qmp_note_life(qmp);
    if (!request) {
        qmp_dropped(qmp, "a second answer to one request");
    } else if (!message || vf_reply_read(message, &reply, words)) {
        request_finish(request, &reply);
    } else {
        VF_AUTO_FREE char *why =
            vf_printf("%s's answer is neither a result nor an error", qmp->peer);

        request_finish_unknown(request, why);
    }
}

static void
qmp_on_message(void *owner, struct json_object *message)
{
    struct vf_qmp *qmp = owner;
    const char *event = vf_json_string(message, "event");

    switch (qmp->state) {
    case QMP_CLOSED:
    case QMP_CONNECTING:
        assert(!"a message without a connection");
        break;
    case QMP_GREETING:
        qmp_on_greeting(qmp, message);
        break;
    case QMP_NEGOTIATING:
        qmp_on_reply(qmp, message);
        break;
    case QMP_READY:
        if (!event)
            qmp_on_reply(qmp, message);
        else if (qmp->hooks.event)
            qmp->hooks.event(qmp->owner, event, vf_json_object(message, "data"));
        break;
    }
}

static void
qmp_on_garbled(void *owner, const char *what, const char *sample)
{
    struct vf_qmp *qmp = owner;

    switch (qmp->state) {
    case QMP_CLOSED:
    case QMP_CONNECTING:
        assert(!"garbage without a connection");
        break;
    case QMP_GREETING:
        qmp_no_qmp(qmp, sample);
        break;
    case QMP_NEGOTIATING:
        qmp_fail_open(qmp, "%s: %s sent %s (\"%s\")", qmp->where, qmp->peer, what, sample);
        break;
    case QMP_READY: {
        VF_AUTO_FREE char *why = vf_printf("%s sent %s (\"%s\")", qmp->peer, what, sample);

        qmp_lose(qmp, why);
        break;
    }
    }
}

static void
qmp_on_lost(void *owner, const char *why)
{
    struct vf_qmp *qmp = owner;

    switch (qmp->state) {
    case QMP_CLOSED:
        assert(!"a loss without a connection");
        break;
    case QMP_CONNECTING:
        qmp_fail_open(qmp, "cannot connect to %s: %s", qmp->where, why);
        break;
    case QMP_GREETING:
    case QMP_NEGOTIATING:
        qmp_fail_open(qmp, "%s: %s before %s was ready", qmp->where, why, qmp->peer);
        break;
    case QMP_READY: {
        VF_AUTO_FREE char *words = vf_printf("the connection to %s is gone: %s", qmp->peer, why);

        qmp_lose(qmp, words);
        break;
    }
    }
}

static void
qmp_on_idle(struct ev_loop *loop, struct ev_idle *idle, int revents)
{
    struct vf_qmp *qmp = idle->data;
    struct request *request = qmp->ended.first;
    VF_AUTO_FREE char *lost_why = NULL;

    (void)revents;
    if (request) {
        requests_take(&qmp->ended, request->number);
        request_finish_unknown(request, request->why);
        return;
    }
    ev_idle_stop(loop, idle);
    lost_why = VF_STEAL(qmp->lost_why);
    if (lost_why && qmp->hooks.lost)
        qmp->hooks.lost(qmp->owner, lost_why);
}

void
vf_qmp_close(struct vf_qmp *qmp)
{
    requests_clear(&qmp->sent);
    requests_clear(&qmp->ended);
    free(VF_STEAL(qmp->lost_why));
    ev_idle_stop(qmp->loop, &qmp->idle);
    qmp_shut(qmp);
}

/* For callers */

uint64_t
vf_qmp_send(struct vf_qmp *qmp, const char *command, struct json_object *arguments, vf_reply_fn *fn,
            void *data)
{
    return qmp_request(qmp, QMP_READY, "execute", command, arguments, fn, data);
}

uint64_t
vf_qmp_send_oob(struct vf_qmp *qmp, const char *command, struct json_object *arguments,
                vf_reply_fn *fn, void *data)
{
    assert(qmp->state != QMP_READY || qmp->oob);
    return qmp_request(qmp, QMP_READY, OUT_OF_BAND, command, arguments, fn, data);
}

bool
vf_qmp_prime(struct vf_qmp *qmp, const char *command, struct json_object *arguments)
{
    uint64_t number = ++qmp->last;
    VF_AUTO_FREE char *text = qmp_text(qmp, "execute", command, arguments, number);

    assert(!qmp->primed);
    if (qmp->state == QMP_READY && vf_channel_send(qmp->channel, text, strlen(text) - 1)) {
        qmp->primed = number;
        qmp->primed_command = vf_strdup(command);
    }
    return qmp->primed != 0;
}

bool
vf_qmp_is_primed(const struct vf_qmp *qmp)
{
    return qmp->primed != 0;
}

uint64_t
vf_qmp_fire(struct vf_qmp *qmp, vf_reply_fn *fn, void *data)
{
    uint64_t number = qmp->primed;
    VF_AUTO_FREE char *command = VF_STEAL(qmp->primed_command);

    assert(number);
    qmp->primed = 0;
    return qmp_await(qmp, number, "execute", command,
                     vf_channel_send(qmp->channel, "}", 1) ? NULL : qmp_deaf(qmp), fn, data);
}

void
vf_qmp_unprime(struct vf_qmp *qmp)
{
    if (!qmp->primed)
        return;
    qmp->primed = 0;
    free(VF_STEAL(qmp->primed_command));
    qmp->complains_before = qmp->last + 1;
    if (vf_channel_send(qmp->channel, "\xff", 1))
        return;
    VF_AUTO_FREE char *why = qmp_deaf(qmp);

    qmp_lose(qmp, why);
}

void
vf_qmp_forget(struct vf_qmp *qmp, uint64_t handle)
{
    for (struct request *request = qmp->sent.first; request; request = request->next)
        if (request->number == handle)
            request->fn = NULL;
    request_free(requests_take(&qmp->ended, handle));
}

void
vf_qmp_look_for(struct vf_qmp *qmp, uint64_t handle, const char *const *words, size_t count)
{
    for (struct request *request = qmp->sent.first; request; request = request->next)
        if (request->number == handle) {
            request->words = words;
            request->word_count = count;
        }
}

struct vf_qmp *
vf_qmp_new(struct ev_loop *loop, const struct vf_qmp_hooks *hooks, void *owner,
           const struct vf_log *log)
{
    static const struct vf_channel_hooks channel_hooks = {
        .connected = qmp_on_connected,
        .suffices = qmp_suffices,
        .message = qmp_on_message,
        .garbled = qmp_on_garbled,
        .lost = qmp_on_lost,
    };
    static const struct vf_frame_rules rules = {VF_QMP_MESSAGE_MAX, VALUES_MAX, DEPTH_MAX, false};
    struct vf_qmp *qmp = vf_alloc(sizeof *qmp);

    qmp->loop = loop;
    qmp->hooks = *hooks;
    qmp->owner = owner;
    qmp->log = *log;
    qmp->peer = "QEMU";
    qmp->greeting_ms = VF_QMP_GREETING_MS;
    qmp->silence_ms = VF_QMP_SILENCE_MS;
    qmp->silence_limit_ms = VF_QMP_SILENCE_LIMIT_MS;
    qmp->sent.end = &qmp->sent.first;
    qmp->ended.end = &qmp->ended.first;
    vf_random_hex(qmp->random);
    qmp->channel = vf_channel_new(loop, "qmp", &channel_hooks, &rules, qmp, log);
    ev_init(&qmp->timer, qmp_on_timer);
    ev_init(&qmp->idle, qmp_on_idle);
    ev_set_priority(&qmp->idle, EV_MAXPRI);
    ev_set_priority(&qmp->timer, EV_MINPRI); /* what has come already counts */
    qmp->timer.data = qmp->idle.data = qmp;
    return qmp;
}

void
vf_qmp_free(struct vf_qmp *qmp)
{
    if (!qmp)
        return;
    vf_qmp_close(qmp);
    vf_channel_free(qmp->channel);
    free(qmp);
}

void
vf_qmp_set_greeting_ms(struct vf_qmp *qmp, int ms)
{
    qmp->greeting_ms = ms;
}

void
vf_qmp_set_silence_ms(struct vf_qmp *qmp, int ms, int limit_ms)
{
    qmp->silence_ms = ms;
    qmp->silence_limit_ms = limit_ms;
}

bool
vf_qmp_ready(const struct vf_qmp *qmp)
{
    return qmp->state == QMP_READY;
}

pid_t
vf_qmp_peer_pid(const struct vf_qmp *qmp)
{
    return vf_channel_peer_pid(qmp->channel);
}

bool
vf_qmp_has_oob(const struct vf_qmp *qmp)
{
    return qmp->state == QMP_READY && qmp->oob;
}

int
vf_qmp_fd(const struct vf_qmp *qmp)
{
    return vf_channel_fd(qmp->channel);
}
