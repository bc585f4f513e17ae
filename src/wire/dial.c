/* SPDX-License-Identifier: MIT */
#include "wire/dial.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "util/cleanup.h"
#include "util/mem.h"
#include "util/text.h"

static int
dial_address(int family, const void *address, socklen_t length, int *fd_r)
{
    VF_AUTO_FD int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;

    if (fd < 0)
        return errno;
    if (family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int result = connect(fd, address, length) < 0 ? errno : 0;

    if (result != 0 && result != EINPROGRESS)
        return result;
    *fd_r = fd;
    fd = -1;
    return result;
}

static int
dial_unix(const char *path, int *fd_r)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    VF_AUTO_FD int handle = -1;
    size_t length = strlen(path);
    struct stat about;

    /* connect() says "refused" for whatever is no socket. */
    if (stat(path, &about) < 0)
        return errno;
    if (!S_ISSOCK(about.st_mode))
        return ENOTSOCK;
    if (length < sizeof address.sun_path) {
        memcpy(address.sun_path, path, length + 1);
    } else {
        handle = open(path, O_PATH | O_CLOEXEC);
        if (handle < 0)
            return errno;
        snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d", handle);
    }
    return dial_address(AF_UNIX, &address, sizeof address, fd_r);
}

static int
dial_tcp(const char *where, int *fd_r)
{
    /* Numbers only: a resolver would block. */
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    VF_AUTO_FREE char *host = vf_strdup(where);
    char *colon = strrchr(host, ':'), *from = host;
    struct addrinfo *found;

    if (!colon || colon == host)
        return EDESTADDRREQ;
    *colon = '\0';
    if (*host == '[' && colon[-1] == ']') {
        colon[-1] = '\0';
        from++;
    }
    if (!*from || getaddrinfo(from, colon + 1, &hints, &found) != 0)
        return EDESTADDRREQ;
    int result = dial_address(found->ai_family, found->ai_addr, found->ai_addrlen, fd_r);

    freeaddrinfo(found);
    return result;
}

int
vf_dial(const char *path, int *fd_r)
{
    *fd_r = -1;
    return vf_starts_with(path, "tcp:") ? dial_tcp(path + strlen("tcp:"), fd_r)
                                        : dial_unix(path, fd_r);
}

const char *
vf_dial_words(int error)
{
    switch (error) {
    case ENOTSOCK:
        return "it is not a socket";
    case ECONNREFUSED:
        return "nobody listens on it (is QEMU running?)";
    case EACCES:
        return "Permission denied (only root and QEMU's own user may connect)";
    case EPROTOTYPE:
        return "it is not a stream socket";
    case EDESTADDRREQ:
        return "it is not of the form tcp:HOST:PORT with a numeric HOST";
    default:
        return strerror(error);
    }
}
