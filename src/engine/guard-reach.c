/* SPDX-License-Identifier: MIT
 *
 * The way back to an agent whose socket has ended while its guest is frozen: somebody between us
 * and QEMU has hung up, or QEMU was told to, or we did, because nothing was ever heard on it.
 *
 * Guarantees: nobody is called while the caller lives, who does that itself; a QEMU that is gone is
 * not waited for, and one that lives for as long as it does.
 */
#include "engine/guard-private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAUSE_FIRST_MS 100 /* between two calls; doubles */
#define PAUSE_MOST_MS 30000
#define ANSWER_MS 5000 /* of another host */
#define STRANGER_MS                                                                                \
    600000 /* a QEMU that is no process of this host is called for so long after the loss */

void
vf_guard_lose_agent(struct guard *guard)
{
    close(guard->agent);
    guard->agent = -1;
    guard->lost_at = vf_guard_now_ms();
}

/* A zombie serves nobody any more. */
static bool
qemu_lives(const struct guard *guard)
{
    char text[1024];

    if (guard->process < 0)
        return vf_guard_now_ms() - guard->lost_at < STRANGER_MS;
    int fd = openat(guard->process, "stat", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return errno != ENOENT && errno != ESRCH;
    ssize_t got = read(fd, text, sizeof text - 1);
    int cause = errno;

    close(fd);
    if (got < 0)
        return cause != ESRCH;
    text[got] = '\0';
    const char *end = strrchr(text, ')');

    return !end || end[1] != ' ' || (end[2] != 'Z' && end[2] != 'X');
}

static bool
is_answered(int fd)
{
    struct pollfd fds[] = {{.fd = fd, .events = POLLOUT}};
    socklen_t length = sizeof(int);
    int cause = 0;

    vf_guard_poll(fds, 1, vf_guard_now_ms() + ANSWER_MS);
    return fds[0].revents && getsockopt(fd, SOL_SOCKET, SO_ERROR, &cause, &length) == 0 &&
           cause == 0;
}

/* A descriptor, or -1. */
static int
call(const struct guard *guard)
{
    int fd = socket(guard->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    if (connect(fd, (const struct sockaddr *)&guard->address, guard->address_length) < 0 &&
        (errno != EINPROGRESS || !is_answered(fd))) {
        close(fd);
        return -1;
    }
    return fd;
}

bool
vf_guard_reach_agent(struct guard *guard)
{
    while (guard->agent < 0) {
        if (guard->address_length == 0 || !qemu_lives(guard))
            return false;
        if (guard->reach_pause_ms)
            vf_guard_pause_ms(guard->reach_pause_ms);
        guard->reach_pause_ms = guard->reach_pause_ms * 2 > PAUSE_MOST_MS ? PAUSE_MOST_MS
                                : guard->reach_pause_ms ? guard->reach_pause_ms * 2
                                                        : PAUSE_FIRST_MS;
        guard->agent = call(guard);
        guard->unheard = true;
    }
    return true;
}
