/* What the guest's small programs share. */
#ifndef LAB_H
#define LAB_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

__attribute__((noreturn, format(printf, 1, 2))) static inline void
die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static inline uint64_t
nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void
pause_us(uint64_t us)
{
    struct timespec span = {.tv_sec = (time_t)(us / 1000000u),
                            .tv_nsec = (long)(us % 1000000u) * 1000};
    while (nanosleep(&span, &span) && errno == EINTR)
        ;
}

/* A page that a worker and its later callers share, in a file on tmpfs: a
 * caller can read and change it while the worker hangs on a frozen disk. */
static inline void *
share(const char *path, size_t size, int fresh)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | (fresh ? O_CREAT | O_TRUNC : 0), 0600);
    if (fd < 0)
        die("%s: %s", path, strerror(errno));
    if (fresh && ftruncate(fd, (off_t)size))
        die("%s: %s", path, strerror(errno));
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED)
        die("%s: mmap: %s", path, strerror(errno));
    close(fd);
    return page;
}

/* Leave the caller's session and its output. */
static inline void
detach(void)
{
    setsid();
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
}

#endif
