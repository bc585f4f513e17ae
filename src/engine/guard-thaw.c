/* SPDX-License-Identifier: MIT
 *
 * The thaw, from the first attempt to the agent's own word that all is thawed.
 *
 * Guarantees: it goes on for as long as there is an agent's socket and the caller does not speak;
 * it never blocks, so that the caller is heard in the midst of it; nothing but "thawed", asked for
 * behind a thaw of its own and behind the reply to a random id of its own, confirms anything.
 *
 * A guest is not to be trusted: what the agent's connection brings is read into buffers of fixed
 * size, and each so many passes of the loop there is a rest, so that a flood costs it no CPU.
 */
#include "engine/guard-private.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/descriptors.h"

#define ANSWER_FIRST_MS 2000 /* without an answer, the thaw is sent again */
#define ANSWER_MS 5000
#define ANSWER_LATER_MS 30000 /* no agent runs, or one that is at work */
#define ATTEMPTS_EAGER 12
#define PAUSE_FIRST_MS 200 /* after an answer that is not "thawed"; doubles */
#define PAUSE_MOST_MS 30000
#define PASSES_MOST 16 /* of the loop until it rests */
#define REST_MS 10
#define UNHEARD_FIRST                                                                              \
    3 /* attempts where the agent was never heard, until it is called anew; doubles */
#define DRAIN_MS 5000 /* for the answers to attempts that were not needed */

#define MARKER 0xff /* before a synchronising reply, and nowhere else in UTF-8 */

/* --- What the agent says --- */

enum reply_kind { REPLY_OTHER, REPLY_NUMBER, REPLY_TEXT };

struct reply {
    enum reply_kind kind;
    uint64_t number;
    const char *text;
    size_t text_length;
};

/* `{"return": NUMBER}` or `{"return": "TEXT"}`, from a line that ends with a NUL; all else is
 * REPLY_OTHER. */
static struct reply
read_reply(const char *at)
{
    static const char key[] = "\"return\"";
    const struct reply other = {REPLY_OTHER, 0, NULL, 0};
    struct reply reply = other;

    at = vf_guard_skip_space(at);
    if (*at++ != '{')
        return other;
    at = vf_guard_skip_space(at);
    if (strncmp(at, key, sizeof key - 1) != 0)
        return other;
    at = vf_guard_skip_space(at + sizeof key - 1);
    if (*at++ != ':')
        return other;
    at = vf_guard_skip_space(at);
    if (*at == '"') {
        reply.kind = REPLY_TEXT;
        for (reply.text = ++at; *at != '"'; at++)
            if (*at == '\0' || *at == '\\')
                return other;
        reply.text_length = (size_t)(at++ - reply.text);
    } else {
        const char *first = at;

        reply.kind = REPLY_NUMBER;
        for (; *at >= '0' && *at <= '9'; at++)
            if (__builtin_mul_overflow(reply.number, 10, &reply.number) ||
                __builtin_add_overflow(reply.number, *at - '0', &reply.number))
                return other;
        if (at == first)
            return other;
    }
    at = vf_guard_skip_space(at);
    if (*at != '}' || *vf_guard_skip_space(at + 1) != '\0')
        return other;
    return reply;
}

static void
on_line(struct talk *talk)
{
    static const char thawed[] = "thawed";
    struct reply reply = {REPLY_OTHER, 0, NULL, 0};

    talk->line[talk->line_length] = '\0';
    if (!talk->overlong) {
        if (*vf_guard_skip_space(talk->line) == '\0')
            return;
        reply = read_reply(talk->line);
    }
    switch (talk->phase) {
    case TALK_SYNC:
        /* Any attempt will do: in a guest whose thaw takes longer than we wait, the last one is
         * never answered in time. */
        if (!talk->marked || reply.kind != REPLY_NUMBER ||
            reply.number - talk->first_id >= talk->attempts)
            break;
        talk->answering_id = reply.number;
        talk->phase = TALK_THAW;
        talk->send_at = vf_guard_now_ms() + ANSWER_LATER_MS;
        break;
    case TALK_THAW:
        /* An error is no failure: a thaw hook that fails is told after all is thawed. Such a line
         * may well be too long to be understood. */
        talk->thawed =
            reply.kind == REPLY_NUMBER && reply.number <= INT32_MAX ? (int64_t)reply.number : -1;
        talk->phase = TALK_STATUS;
        break;
    case TALK_STATUS:
        talk->phase = TALK_SYNC;
        talk->drained = talk->answering_id == talk->first_id + talk->attempts - 1;
        if (reply.kind == REPLY_TEXT && reply.text_length == sizeof thawed - 1 &&
            memcmp(reply.text, thawed, sizeof thawed - 1) == 0) {
            talk->confirmed = true;
            break;
        }
        talk->send_at = vf_guard_now_ms() + talk->pause_ms;
        talk->pause_ms = talk->pause_ms * 2 > PAUSE_MOST_MS ? PAUSE_MOST_MS : talk->pause_ms * 2;
        break;
    }
}

static void
on_byte(struct talk *talk, unsigned char byte)
{
    if (byte != MARKER && byte != '\n') {
        if (talk->line_length < sizeof talk->line - 1)
            talk->line[talk->line_length++] = (char)byte;
        else
            talk->overlong = true;
        return;
    }
    if (byte == '\n')
        on_line(talk);
    else
        talk->phase = TALK_SYNC;
    talk->marked = byte == MARKER;
    talk->line_length = 0;
    talk->overlong = false;
}

/* --- What it is told --- */

static void
compose_attempt(struct talk *talk)
{
    char *at = talk->out;
    const char *end = talk->out + sizeof talk->out;

    vf_guard_put_text(&at, end, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":");
    vf_guard_put_number(&at, end, talk->first_id + talk->attempts, 1);
    vf_guard_put_text(&at, end,
                      "}}\n{\"execute\":\"guest-fsfreeze-thaw\"}\n"
                      "{\"execute\":\"guest-fsfreeze-status\"}\n");
    talk->out_length = (size_t)(at - talk->out);
    talk->out_sent = 0;
    talk->attempts++;
    talk->drained = false;
}

/* False: nobody is there any more. */
static bool
push_attempt(int agent, struct talk *talk)
{
    while (talk->out_sent < talk->out_length) {
        ssize_t sent = send(agent, talk->out + talk->out_sent, talk->out_length - talk->out_sent,
                            MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN || errno == ENOBUFS;
        talk->out_sent += (size_t)sent;
        if (talk->out_sent == talk->out_length)
            talk->send_at =
                vf_guard_now_ms() + (talk->attempts == 1                ? ANSWER_FIRST_MS
                                     : talk->attempts <= ATTEMPTS_EAGER ? ANSWER_MS
                                                                        : ANSWER_LATER_MS);
    }
    return true;
}

static bool
hear_agent(int agent, struct talk *talk)
{
    unsigned char bytes[4096];
    ssize_t got = recv(agent, bytes, sizeof bytes, MSG_DONTWAIT);

    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    for (ssize_t i = 0; i < got; i++)
        on_byte(talk, bytes[i]);
    return got > 0;
}

static void
begin_talk(struct talk *talk)
{
    uint64_t random;

    if (getrandom(&random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random)
        random = (uint64_t)vf_guard_now_ms() * 0x9e3779b97f4a7c15 ^ (uint64_t)getpid();
    memset(talk, 0, sizeof *talk);
    talk->first_id = (random >> 2) | (uint64_t)1 << 53; /* 54 to 62 bits: some parse a signed one */
    talk->send_at = vf_guard_now_ms();
    talk->pause_ms = PAUSE_FIRST_MS;
    talk->thawed = -1;
}

/* See docs/protocol.md: the agent's port may be stuck until a client hangs up. While the caller
 * lives that is its own affair. One that was heard is never hung up on, nor one that waits for
 * QEMU: another client is served, the VM stands still, or the port is closed. */
static bool
is_in_vain(struct guard *guard)
{
    if (!guard->unheard_most)
        guard->unheard_most = UNHEARD_FIRST;
    if (!guard->unheard || !guard->caller_gone || guard->address_length == 0 ||
        guard->talk.attempts < guard->unheard_most || !vf_all_is_read(guard->agent))
        return false;
    guard->unheard_most *= 2;
    guard->reach_pause_ms = 0;
    return true;
}

enum thaw_end
vf_guard_thaw(struct guard *guard)
{
    struct talk *talk = &guard->talk;

    begin_talk(talk);
    guard->called_off = false;
    for (unsigned passes = 1;; passes++) {
        bool resting = passes % PASSES_MOST == 0;

        /* What could not be written yet is an attempt itself: none is added behind it. */
        if (talk->out_sent == talk->out_length && vf_guard_now_ms() >= talk->send_at) {
            if (is_in_vain(guard))
                break;
            compose_attempt(talk);
        }
        if (!push_attempt(guard->agent, talk))
            break;

        bool blocked = talk->out_sent < talk->out_length;
        struct pollfd fds[] = {
            {.fd = guard->link, .events = POLLIN},
            {.fd = resting ? -1 : guard->agent, .events = blocked ? POLLIN | POLLOUT : POLLIN},
        };

        vf_guard_poll(fds, 2,
                      resting   ? vf_guard_now_ms() + REST_MS
                      : blocked ? vf_guard_now_ms() + VF_GUARD_SLICE_MS
                                : talk->send_at);
        if (fds[0].revents)
            vf_guard_listen(guard);
        if (guard->called_off)
            return THAW_CALLED_OFF;
        if ((fds[1].revents & ~POLLOUT) && !hear_agent(guard->agent, talk))
            break;
        if (talk->phase != TALK_SYNC)
            guard->unheard = false;
        if (talk->confirmed)
            return THAW_CONFIRMED;
    }
    vf_guard_lose_agent(guard);
    return THAW_AGENT_LOST;
}

/* An agent that cannot deliver its replies because nobody is connected burns the guest's CPU: the
 * ones to attempts that proved needless are waited for. */
void
vf_guard_drain_agent(struct guard *guard)
{
    int64_t until = vf_guard_now_ms() + DRAIN_MS;

    while (!guard->talk.drained && vf_guard_now_ms() < until) {
        struct pollfd fds[] = {{.fd = guard->agent, .events = POLLIN}};

        vf_guard_poll(fds, 1, until);
        if (fds[0].revents && !hear_agent(guard->agent, &guard->talk))
            return;
        vf_guard_pause_ms(1);
    }
}
