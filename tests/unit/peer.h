/* SPDX-License-Identifier: MIT
 *
 * A scripted peer in the test's own process: a listening UNIX socket that the test drives
 * step by step, turning the loop in between. Nothing here blocks for longer than PATIENCE_MS.
 */
#ifndef TESTS_PEER_H
#define TESTS_PEER_H

#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../tap.h"
#include "sockets.h"

#define PATIENCE_MS 20000

static struct ev_loop *loop;
static char folder[64];

struct peer {
    char path[100];
    int listener, fd;
    size_t length; /* of what was heard and not yet expected */
    char heard[1 << 17];
};

static inline long long
now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void
peer_tick(struct ev_loop *of, struct ev_timer *timer, int revents)
{
    (void)of, (void)timer, (void)revents;
}

/* One turn of the loop, of at most a millisecond. */
static inline void
turn(void)
{
    static struct ev_timer tick;

    if (!ev_is_active(&tick)) {
        ev_timer_init(&tick, peer_tick, 0.001, 0.001);
        ev_timer_start(loop, &tick);
    }
    ev_run(loop, EVRUN_ONCE);
}

static inline void
turn_for(int ms)
{
    for (long long end = now_ms() + ms; now_ms() < end;)
        turn();
}

/* Turns the loop until the condition holds, and is whether it does. */
#define UNTIL(condition)                                                                           \
    __extension__({                                                                                \
        long long until_ = now_ms() + PATIENCE_MS;                                                 \
        bool holds_;                                                                               \
                                                                                                   \
        while (!(holds_ = (condition)) && now_ms() < until_)                                       \
            turn();                                                                                \
        holds_;                                                                                    \
    })

static inline void
remove_folder(void)
{
    char command[100];

    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command) != 0)
        diag("%s is left behind", folder);
}

static inline void
test_begin(void)
{
    loop = ev_loop_new(EVFLAG_AUTO);
    strcpy(folder, "/tmp/vmfrost-test-XXXXXX");
    if (!mkdtemp(folder))
        exit(1);
}

static inline int
test_end(void)
{
    ev_loop_destroy(loop);
    remove_folder();
    return done_testing();
}

static inline void
peer_listen(struct peer *peer, const char *name)
{
    peer->fd = -1;
    peer->length = 0;
    snprintf(peer->path, sizeof peer->path, "%s/%s", folder, name);
    peer->listener = bound_socket(peer->path, SOCK_STREAM | SOCK_NONBLOCK);
    listen(peer->listener, 1);
}

static inline bool
peer_accept(struct peer *peer)
{
    peer->length = 0;
    return UNTIL((peer->fd = accept4(peer->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >=
                 0);
}

static inline void
peer_hang_up(struct peer *peer)
{
    if (peer->fd >= 0)
        close(peer->fd);
    peer->fd = -1;
}

static inline void
peer_end(struct peer *peer)
{
    peer_hang_up(peer);
    close(peer->listener);
    unlink(peer->path);
}

/* Sends it all, turning the loop while the socket is full. */
static inline void
peer_put(struct peer *peer, const void *bytes, size_t length)
{
    const char *from = bytes;

    while (length > 0) {
        ssize_t put = send(peer->fd, from, length, MSG_NOSIGNAL);

        if (put < 0 && errno != EAGAIN)
            return;
        if (put > 0) {
            from += put;
            length -= (size_t)put;
        }
        if (length > 0)
            ev_run(loop, EVRUN_NOWAIT);
    }
}

static inline void
peer_say(struct peer *peer, const char *text)
{
    peer_put(peer, text, strlen(text));
}

/* One byte a turn of the loop. */
static inline void
peer_say_slowly(struct peer *peer, const char *text)
{
    for (; *text; text++) {
        peer_put(peer, text, 1);
        ev_run(loop, EVRUN_NOWAIT);
    }
}

/* A process that says the pattern over and over until it is ended. */
static inline pid_t
peer_flood(struct peer *peer, const char *pattern, size_t length)
{
    static char block[1 << 16];
    struct pollfd writable = {peer->fd, POLLOUT, 0};
    size_t size = sizeof block / length * length, at = 0;
    pid_t child = fork();

    if (child != 0)
        return child;
    for (size_t i = 0; i < size; i++)
        block[i] = pattern[i % length];
    for (;;) {
        ssize_t put = send(peer->fd, block + at, size - at, MSG_NOSIGNAL);

        if (put > 0)
            at = (at + (size_t)put) % size;
        else if (errno != EAGAIN || poll(&writable, 1, -1) < 0)
            _exit(0);
    }
}

static inline void
peer_flood_ends(pid_t child)
{
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static inline void
peer_hear(struct peer *peer)
{
    ssize_t got = read(peer->fd, peer->heard + peer->length, sizeof peer->heard - 1 - peer->length);

    if (got > 0)
        peer->length += (size_t)got;
    peer->heard[peer->length] = '\0';
}

/* Hears until `text` was said, and drops everything up to its end. */
static inline bool
peer_expect(struct peer *peer, const char *text)
{
    char *at;
    bool found = UNTIL((peer_hear(peer), (at = strstr(peer->heard, text)) != NULL));

    if (!found) {
        diag("heard \"%s\", not \"%s\"", peer->heard, text);
        return false;
    }
    at += strlen(text);
    peer->length -= (size_t)(at - peer->heard);
    /* By hand: valgrind takes a fortified memmove() for memcpy(). */
    for (size_t i = 0; i <= peer->length; i++)
        peer->heard[i] = at[i];
    return true;
}

#endif
