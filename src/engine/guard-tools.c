/* SPDX-License-Identifier: MIT
 *
 * Small tools of the guard, all of them async-signal-safe: see the private header.
 */
#include "engine/guard-private.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int64_t
vf_guard_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void
vf_guard_pause_ms(int ms)
{
    poll(NULL, 0, ms);
}

bool
vf_guard_send(int fd, enum message_kind kind, int64_t value)
{
    struct message message = {kind, value};
    ssize_t sent;

    do
        sent = send(fd, &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)sizeof message;
}

void
vf_guard_put_text(char **at, const char *end, const char *text)
{
    size_t length = strlen(text);

    assert(length <= (size_t)(end - *at));
    memcpy(*at, text, length);
    *at += length;
}

void
vf_guard_put_number(char **at, const char *end, uint64_t number, int digits)
{
    char text[24];
    char *first = text + sizeof text - 1;

    *first = '\0';
    for (int i = 0; i < digits || number > 0; i++, number /= 10)
        *--first = (char)('0' + number % 10);
    vf_guard_put_text(at, end, first);
}

const char *
vf_guard_skip_space(const char *at)
{
    while (*at == ' ' || *at == '\t' || *at == '\r')
        at++;
    return at;
}

void
vf_guard_poll(struct pollfd *fds, nfds_t count, int64_t until)
{
    int timeout = -1;

    if (until != NEVER) {
        int64_t left = until - vf_guard_now_ms();

        timeout = left < 0 ? 0 : left > VF_GUARD_SLICE_MS ? VF_GUARD_SLICE_MS : (int)left;
    }
    if (poll(fds, count, timeout) <= 0)
        for (nfds_t i = 0; i < count; i++)
            fds[i].revents = 0;
}
