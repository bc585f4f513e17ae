/* SPDX-License-Identifier: MIT
 *
 * A UNIX socket with a name, for tests that play a peer.
 */
#ifndef TESTS_UNIT_SOCKETS_H
#define TESTS_UNIT_SOCKETS_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* `type` may have SOCK_NONBLOCK in it. Whatever has the name goes. */
static inline int
bound_socket(const char *path, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    unlink(path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        abort();
    return fd;
}

static inline int
listen_at(const char *path, int backlog)
{
    int fd = bound_socket(path, SOCK_STREAM);

    if (listen(fd, backlog) < 0)
        abort();
    return fd;
}

#endif
