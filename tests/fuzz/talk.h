/* SPDX-License-Identifier: MIT
 *
 * A peer that says what the fuzzer wants it to, line by line, to a client of ours.
 *
 * A line that begins with '!' is not said: its letters are what our own side does. '@' in the
 * others stands for what the client has made up at random and a fuzzer cannot guess.
 */
#ifndef TESTS_FUZZ_TALK_H
#define TESTS_FUZZ_TALK_H

#include <errno.h>
#include <ev.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz.h"
#include "util/log.h"
#include "wire/outcome.h"

#define REQUESTS_MOST 64

/* A request, or an opening. */
struct asked {
    uint64_t handle;
    bool told, forgotten;
};

struct talk {
    struct ev_loop *loop;
    int fd; /* the peer's end; -1: none */
    char heard[1 << 14];
    size_t length;
    char secret[40]; /* for '@' */
    bool inside;     /* a call into the client */
    struct asked asked[REQUESTS_MOST];
    size_t count;
};

/* Between here and CALL_ENDS no callback may fire. */
#define CALL_BEGINS(talk) ((talk)->inside = true)
#define CALL_ENDS(talk) ((talk)->inside = false)

static struct talk talk;

/* `data` is a struct asked. */
static void
talk_on_reply(void *data, const struct vf_reply *reply)
{
    struct asked *asked = data;

    MUST(!talk.inside && !asked->told && !asked->forgotten);
    asked->told = true;
    MUST(is_plain(reply->words));
    MUST(reply->outcome == VF_OK ? !*reply->words : *reply->words && !reply->value);
}

static inline struct asked *
talk_ask(void)
{
    MUST(talk.count < REQUESTS_MOST);
    talk.asked[talk.count] = (struct asked){0};
    return &talk.asked[talk.count++];
}

static inline void
talk_forget_all(void)
{
    for (size_t i = 0; i < talk.count; i++)
        talk.asked[i].forgotten = true;
}

/* Every request has ended. */
static inline bool
talk_is_settled(void)
{
    for (size_t i = 0; i < talk.count; i++)
        if (!talk.asked[i].told && !talk.asked[i].forgotten)
            return false;
    return true;
}

static void
talk_on_lost(void *owner, const char *why)
{
    (void)owner;
    MUST(!talk.inside && is_plain(why) && talk_is_settled());
}

static void
talk_on_log(void *data, enum vmfrost_log_level level, const char *line)
{
    (void)data, (void)level;
    MUST(is_plain(line));
}

static const struct vf_log talk_log = {.fn = talk_on_log};

static inline void
talk_hang_up(void)
{
    if (talk.fd >= 0)
        close(talk.fd);
    talk.fd = -1;
}

/* The secret is what stands behind the last `before`, as far as it is made of `letters`. */
static inline void
talk_hear(const char *before, const char *letters)
{
    ssize_t got = talk.fd < 0 ? 0
                              : recv(talk.fd, talk.heard + talk.length,
                                     sizeof talk.heard - 1 - talk.length, MSG_DONTWAIT);

    if (got <= 0)
        return;
    talk.length += (size_t)got;
    talk.heard[talk.length] = '\0';
    for (char *at = talk.heard; (at = strstr(at, before)); at += strlen(before)) {
        size_t length = strspn(at + strlen(before), letters);

        if (length < sizeof talk.secret)
            snprintf(talk.secret, sizeof talk.secret, "%.*s", (int)length, at + strlen(before));
    }
    if (talk.length > sizeof talk.heard / 2)
        talk.length = 0;
}

/* Some turns of the loop: enough for what is under way in it. */
static inline void
talk_turn(int turns)
{
    while (turns-- > 0)
        ev_run(talk.loop, EVRUN_NOWAIT);
}

static inline void
talk_put(const void *bytes, size_t length)
{
    const char *from = bytes;

    for (int tries = 0; talk.fd >= 0 && length > 0 && tries < 100; tries++) {
        ssize_t put = send(talk.fd, from, length, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (put < 0 && errno != EAGAIN)
            return;
        from += put > 0 ? put : 0;
        length -= put > 0 ? (size_t)put : 0;
        if (length > 0)
            talk_turn(1);
    }
}

static inline void
talk_say(const uint8_t *line, size_t length)
{
    size_t from = 0;

    for (size_t i = 0; i < length; i++) {
        if (line[i] != '@' || !*talk.secret)
            continue;
        talk_put(line + from, i - from);
        talk_put(talk.secret, strlen(talk.secret));
        from = i + 1;
    }
    talk_put(line + from, length - from);
}

static inline void
talk_through(const uint8_t *data, size_t size, void (*act)(char what), void (*hear)(void))
{
    while (size > 0) {
        const uint8_t *end = memchr(data, '\n', size);
        size_t length = end ? (size_t)(end - data) + 1 : size;

        if (data[0] != '!')
            talk_say(data, length);
        else
            for (size_t i = 1; i < length && talk.count < REQUESTS_MOST; i++)
                act((char)data[i]);
        talk_turn(2);
        hear();
        data += length;
        size -= length;
    }
}

#endif
