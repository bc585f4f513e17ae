/* SPDX-License-Identifier: MIT */
#include "util/descriptors.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What the kernel fills in: glibc's own wrapper is younger than the systems this is for. */
struct directory_entry {
    uint64_t number;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

bool
vf_each_descriptor(int folder, void (*each)(void *data, int folder, const char *number), void *data)
{
    _Alignas(struct directory_entry) char entries[4096];

    for (;;) {
        long got = syscall(SYS_getdents64, folder, entries, sizeof entries);

        if (got <= 0)
            return got == 0;
        for (long at = 0; at < got;) {
            const struct directory_entry *entry = (const void *)(entries + at);

            at += entry->length;
            if (entry->name[0] >= '0' && entry->name[0] <= '9')
                each(data, folder, entry->name);
        }
    }
}

struct kept {
    const int *fds;
    size_t count;
};

static void
close_unless_kept(void *data, int folder, const char *number)
{
    const struct kept *kept = data;
    int fd = 0;

    for (; *number >= '0' && *number <= '9'; number++)
        fd = fd * 10 + (*number - '0');
    for (size_t i = 0; i < kept->count; i++)
        if (fd == kept->fds[i])
            return;
    if (fd > STDERR_FILENO && fd != folder)
        close(fd);
}

bool
vf_close_others(const int *kept, size_t count)
{
#ifdef SYS_close_range
    unsigned first = STDERR_FILENO + 1;

    for (;;) {
        unsigned next = ~0U;

        for (size_t i = 0; i < count; i++)
            if (kept[i] >= (int)first && (unsigned)kept[i] < next)
                next = (unsigned)kept[i];
        if (first < next && syscall(SYS_close_range, first, next == ~0U ? next : next - 1, 0) < 0)
            break;
        if (next == ~0U)
            return true;
        first = next + 1;
    }
#endif
    /* Linux before 5.9, or a sandbox. */
    int folder = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (folder < 0)
        return false;
    struct kept these = {kept, count};
    bool closed = vf_each_descriptor(folder, close_unless_kept, &these);

    close(folder);
    return closed;
}

bool
vf_all_is_read(int socket)
{
    int left = 0;

    return ioctl(socket, SIOCOUTQ, &left) == 0 && left == 0;
}
