/* SPDX-License-Identifier: MIT
 *
 * For LD_PRELOAD: makes the nth call of a function of the C library's fail, and jumps of the clock.
 *
 *     TORTURE_FAIL=fsync:3:5        the third fsync() fails with errno 5 (EIO)
 *     TORTURE_FAIL=write:7:28:on    and all that come after it
 *     TORTURE_FAIL=clock:9:-3600    from the ninth question for the time of day on it is an hour
 * less TORTURE_FAIL=count            nothing fails; the end says how many calls there were
 *
 * Several with commas between them. malloc stands for calloc and realloc, too, and json-c's. Forked
 * processes go on counting; programs that are executed are left alone. What happens is told on
 * stderr, in a line that begins with "torture:".
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The functions that can fail. */
enum call {
    CALL_malloc,
    CALL_write,
    CALL_pwrite,
    CALL_read,
    CALL_fsync,
    CALL_fdatasync,
    CALL_rename,
    CALL_link,
    CALL_unlink,
    CALL_open,
    CALL_mkdir,
    CALL_ftruncate,
    CALL_fork,
    CALL_connect,
    CALL_socket,
    CALL_socketpair,
    CALL_send,
    CALL_recv,
    CALL_fcntl,
    CALL_opendir,
    CALL_clock,
    CALL_COUNT
};

static const char *const names[] = {
    [CALL_malloc] = "malloc", [CALL_write] = "write",
    [CALL_pwrite] = "pwrite", [CALL_read] = "read",
    [CALL_fsync] = "fsync",   [CALL_fdatasync] = "fdatasync",
    [CALL_rename] = "rename", [CALL_link] = "link",
    [CALL_unlink] = "unlink", [CALL_open] = "open",
    [CALL_mkdir] = "mkdir",   [CALL_ftruncate] = "ftruncate",
    [CALL_fork] = "fork",     [CALL_connect] = "connect",
    [CALL_socket] = "socket", [CALL_socketpair] = "socketpair",
    [CALL_send] = "send",     [CALL_recv] = "recv",
    [CALL_fcntl] = "fcntl",   [CALL_opendir] = "opendir",
    [CALL_clock] = "clock",
};

static struct {
    long nth, value;
    bool on;
    atomic_long count;
} calls[CALL_COUNT];

static bool started, counting;
static pid_t first;

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);

static void
say(const char *what, long nth)
{
    char line[96];
    int length = snprintf(line, sizeof line, "torture: %s %ld%s\n", what, nth,
                          getpid() == first ? "" : " (another process)");

    syscall(SYS_write, STDERR_FILENO, line, (size_t)length);
}

/* Is this call one that fails? Sets errno then. */
static bool
fails(enum call call)
{
    if (!started)
        return false;
    long number = ++calls[call].count;

    if (!calls[call].nth || number < calls[call].nth ||
        (number > calls[call].nth && !calls[call].on))
        return false;
    if (number == calls[call].nth)
        say(names[call], number);
    errno = (int)calls[call].value;
    return true;
}

__attribute__((constructor)) static void
start(void)
{
    const char *text = getenv("TORTURE_FAIL");

    first = getpid();
    while (text && *text) {
        for (int i = 0; i < CALL_COUNT; i++) {
            size_t length = strlen(names[i]);

            if (strncmp(text, names[i], length) != 0 || text[length] != ':')
                continue;
            char *end;

            calls[i].nth = strtol(text + length + 1, &end, 10);
            calls[i].value = *end == ':' ? strtol(end + 1, &end, 10) : 0;
            calls[i].on = strncmp(end, ":on", 3) == 0;
        }
        counting = counting || strncmp(text, "count", 5) == 0;
        text = strchr(text, ',');
        text = text ? text + 1 : NULL;
    }
    unsetenv("LD_PRELOAD");
    unsetenv("TORTURE_FAIL");
    started = true;
}

__attribute__((destructor)) static void
end(void)
{
    for (int i = 0; counting && getpid() == first && i < CALL_COUNT; i++)
        say(names[i], calls[i].count);
}

/* The next definition of a function behind ours. */
#define NEXT(type, name, ...)                                                                      \
    static type (*next)(__VA_ARGS__);                                                              \
    if (!next)                                                                                     \
    *(void **)&next = dlsym(RTLD_NEXT, name)

void *
malloc(size_t size)
{
    return fails(CALL_malloc) ? NULL : __libc_malloc(size);
}

void *
calloc(size_t count, size_t size)
{
    return fails(CALL_malloc) ? NULL : __libc_calloc(count, size);
}

void *
realloc(void *old, size_t size)
{
    return fails(CALL_malloc) ? NULL : __libc_realloc(old, size);
}

#define WRAP(call, type, name, parameters, arguments, ...)                                         \
    type name parameters                                                                           \
    {                                                                                              \
        NEXT(type, #name, __VA_ARGS__);                                                            \
        return fails(CALL_##call) ? (type)-1 : next arguments;                                     \
    }

WRAP(write, ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), int,
     const void *, size_t)
WRAP(pwrite, ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at),
     (fd, data, size, at), int, const void *, size_t, off_t)
WRAP(pwrite, ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at),
     (fd, parts, count, at), int, const struct iovec *, int, off_t)
WRAP(read, ssize_t, read, (int fd, void *data, size_t size), (fd, data, size), int, void *, size_t)
WRAP(fsync, int, fsync, (int fd), (fd), int)
WRAP(fdatasync, int, fdatasync, (int fd), (fd), int)
WRAP(rename, int, rename, (const char *from, const char *to), (from, to), const char *,
     const char *)
WRAP(rename, int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags),
     (a, from, b, to, flags), int, const char *, int, const char *, unsigned)
WRAP(link, int, link, (const char *from, const char *to), (from, to), const char *, const char *)
WRAP(link, int, linkat, (int a, const char *from, int b, const char *to, int flags),
     (a, from, b, to, flags), int, const char *, int, const char *, int)
WRAP(unlink, int, unlink, (const char *path), (path), const char *)
WRAP(unlink, int, unlinkat, (int at, const char *path, int flags), (at, path, flags), int,
     const char *, int)
WRAP(mkdir, int, mkdir, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
WRAP(ftruncate, int, ftruncate, (int fd, off_t size), (fd, size), int, off_t)
WRAP(fork, pid_t, fork, (void), (), void)
WRAP(connect, int, connect, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size),
     int, const struct sockaddr *, socklen_t)
WRAP(socket, int, socket, (int family, int type, int protocol), (family, type, protocol), int, int,
     int)
WRAP(socketpair, int, socketpair, (int family, int type, int protocol, int pair[2]),
     (family, type, protocol, pair), int, int, int, int *)
WRAP(send, ssize_t, send, (int fd, const void *data, size_t size, int flags),
     (fd, data, size, flags), int, const void *, size_t, int)
WRAP(recv, ssize_t, recv, (int fd, void *data, size_t size, int flags), (fd, data, size, flags),
     int, void *, size_t, int)

int
open(const char *path, int flags, ...)
{
    va_list more;

    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;

    va_end(more);
    NEXT(int, "open", const char *, int, ...);
    return fails(CALL_open) ? -1 : next(path, flags, mode);
}

int
openat(int at, const char *path, int flags, ...)
{
    va_list more;

    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;

    va_end(more);
    NEXT(int, "openat", int, const char *, int, ...);
    return fails(CALL_open) ? -1 : next(at, path, flags, mode);
}

int
fcntl(int fd, int command, ...)
{
    va_list more;

    va_start(more, command);
    void *argument = va_arg(more, void *);

    va_end(more);
    NEXT(int, "fcntl", int, int, ...);
    return fails(CALL_fcntl) ? -1 : next(fd, command, argument);
}

DIR *
opendir(const char *path)
{
    NEXT(DIR *, "opendir", const char *);
    return fails(CALL_opendir) ? NULL : next(path);
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
    NEXT(int, "clock_gettime", clockid_t, struct timespec *);
    int result = next(clock, now);

    if (started && clock == CLOCK_REALTIME) {
        long number = ++calls[CALL_clock].count;

        if (calls[CALL_clock].nth && number == calls[CALL_clock].nth)
            say("clock", number);
        if (calls[CALL_clock].nth && number >= calls[CALL_clock].nth)
            now->tv_sec += calls[CALL_clock].value;
    }
    return result;
}

time_t
time(time_t *to)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}
