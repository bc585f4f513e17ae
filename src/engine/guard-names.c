/* SPDX-License-Identifier: MIT
 *
 * Whether the cut is made, as QEMU's open files tell, and the flips that follow from it.
 *
 * Guarantees: no name is flipped unless QEMU may write to all overlays and to none of their bases,
 * and none that does not lead to the base, or from anything but the overlay. What cannot be told
 * counts as "may write", so that doubt never flips a name of a base.
 *
 * What tells is the access mode of the descriptors: at a cut QEMU opens the base anew for reading
 * only. But not where the launcher gave the file a node of its own (-blockdev): that stays open for
 * writing. There QEMU's image locking tells (block/file-posix.c: each permission on an image is a
 * byte of it that is locked): byte 101 is locked for as long as QEMU has the permission to write.
 *
 * Neither changes before the cut is certain, and a transaction that fails changes neither: a qcow2
 * image is kept writable, for its metadata, until it is made read-only in the second half of the
 * transaction, which cannot fail. This is not so for raw images, but their names are not flipped.
 */
#include "engine/guard-private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "util/descriptors.h"

#define CUT_MS 300     /* a dead caller's transaction is in QEMU's hands: it takes that long */
#define OPEN_MS 10000  /* a QEMU that has been told to open a base, and is busy */
#define CUT_PAUSE_MS 2 /* between two looks at QEMU's descriptors */

#define BYTE_OF_WRITER 101 /* 100 + the bit of the permission to write */

/* --- One descriptor --- */

/* A whole file of a few lines, with a NUL behind it. False if it cannot be read or is larger. */
static bool
read_text(int folder, const char *path, char *text, size_t size)
{
    size_t length = 0;
    ssize_t got = 1;
    int fd = openat(folder, path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    while (length < size - 1 && (got = read(fd, text + length, size - 1 - length)) != 0)
        if (got > 0)
            length += (size_t)got;
        else if (errno != EINTR)
            break;
    close(fd);
    text[length] = '\0';
    return got == 0;
}

/* Past a number of that base, if there is one. */
static const char *
read_number(const char *at, unsigned base, uint64_t *number_r)
{
    *number_r = 0;
    for (; *at >= '0' && *at < (char)('0' + base); at++)
        *number_r = *number_r * base + (uint64_t)(*at - '0');
    return at;
}

/* Where the last word before `at` begins. */
static const char *
word_before(const char *line, const char *at)
{
    while (at > line && at[-1] == ' ')
        at--;
    while (at > line && at[-1] != ' ')
        at--;
    return at;
}

/* Whether a lock, "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10953987 100 101" or with "EOF" at its
 * end, is on the byte of a writer, or cannot be understood. */
static bool
is_writers_lock(const char *line, const char *end)
{
    const char *last_word = word_before(line, end), *first_word = word_before(line, last_word);
    uint64_t first, last;
    bool understood = first_word > line && *read_number(first_word, 10, &first) == ' ' &&
                      read_number(last_word, 10, &last) == end;

    return !understood || (first <= BYTE_OF_WRITER && BYTE_OF_WRITER <= last);
}

/* What fdinfo says of a descriptor: it was opened for writing, and QEMU, where it locks images at
 * all, has the permission to write. */
static bool
tells_of_writer(const char *text)
{
    bool understood = false, for_writing = false, locks = false, writers_lock = false;
    static const char flags_key[] = "flags:", lock_key[] = "lock:";

    for (const char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        if (strncmp(line, flags_key, sizeof flags_key - 1) == 0) {
            const char *digits = vf_guard_skip_space(line + sizeof flags_key - 1);
            uint64_t flags = 0;

            understood = digits < end && read_number(digits, 8, &flags) == end;
            for_writing = (flags & O_ACCMODE) != O_RDONLY;
        } else if (strncmp(line, lock_key, sizeof lock_key - 1) == 0) {
            locks = true;
            writers_lock |= is_writers_lock(line, end);
        }
    }
    return !understood || (for_writing && (!locks || writers_lock));
}

/* What cannot be told counts as such: it then seems that the cut is not made, and the next look
 * knows better. */
static bool
may_write(int process, const char *number)
{
    char path[32], *at = path;
    char text[4096]; /* QEMU's own locks need a few hundred */

    vf_guard_put_text(&at, path + sizeof path, "fdinfo/");
    if (strlen(number) >= (size_t)(path + sizeof path - at))
        return true;
    memcpy(at, number, strlen(number) + 1);
    return !read_text(process, path, text, sizeof text) || tells_of_writer(text);
}

/* --- All of them --- */

void
vf_guard_open_process(struct guard *guard)
{
    char path[32], *at = path;

    guard->process = -1;
    if (guard->qemu_pid <= 0)
        return;
    vf_guard_put_text(&at, path + sizeof path, "/proc/");
    vf_guard_put_number(&at, path + sizeof path - 1, (uint64_t)guard->qemu_pid, 1);
    *at = '\0';
    guard->process = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void
look_at_descriptor(void *data, int folder, const char *number)
{
    struct guard *guard = data;
    struct statx about;

    /* Not asking the server: a file of QEMU on a dead network share must not stop the thaw. */
    if (statx(folder, number, AT_STATX_DONT_SYNC, STATX_INO, &about) < 0)
        return;
    uint64_t device = makedev(about.stx_dev_major, about.stx_dev_minor);

    for (size_t i = 0; i < guard->name_count; i++) {
        struct name *name = &guard->names[i];

        if (name->overlay_number == about.stx_ino && name->overlay_device == device)
            name->overlay_written |= may_write(guard->process, number);
        if (name->base_number == about.stx_ino && name->base_device == device)
            name->base_written |= may_write(guard->process, number);
    }
}

/* False: QEMU cannot be looked at. */
static bool
look(struct guard *guard)
{
    for (size_t i = 0; i < guard->name_count; i++)
        guard->names[i].overlay_written = guard->names[i].base_written = false;
    int folder = openat(guard->process, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (folder < 0)
        return false;
    bool looked = vf_each_descriptor(folder, look_at_descriptor, guard);

    close(folder);
    return looked;
}

static bool
look_once(struct guard *guard)
{
    bool cut = look(guard);

    for (size_t i = 0; i < guard->name_count; i++)
        cut = cut && guard->names[i].overlay_written && !guard->names[i].base_written;
    return cut;
}

/* Twice, since descriptors come and go while one looks. */
bool
vf_guard_is_cut(struct guard *guard)
{
    return guard->process >= 0 && look_once(guard) && look_once(guard);
}

bool
vf_guard_await_cut(struct guard *guard)
{
    int64_t until = vf_guard_now_ms() + CUT_MS;

    while (!vf_guard_is_cut(guard)) {
        if (guard->process < 0 || vf_guard_now_ms() >= until)
            return false;
        vf_guard_pause_ms(CUT_PAUSE_MS);
    }
    return true;
}

static bool
leads_to(int folder, const char *path, uint64_t device, uint64_t number)
{
    struct stat about;

    return fstatat(folder, path, &about, AT_SYMLINK_NOFOLLOW) == 0 && about.st_ino == number &&
           about.st_dev == device;
}

/* It has ended, whoever waits for it. */
static bool
is_gone(const struct guard *guard)
{
    char text[1024];
    const char *state;

    if (!read_text(guard->process, "stat", text, sizeof text))
        return true;
    state = strrchr(text, ')');
    return !state || state[1] != ' ' || state[2] == 'Z' || state[2] == 'X';
}

bool
vf_guard_await_bases(struct guard *guard)
{
    int64_t until = vf_guard_now_ms() + OPEN_MS;

    while (guard->process >= 0 && !is_gone(guard)) {
        bool opened = look(guard);

        for (size_t i = 0; i < guard->name_count; i++) {
            const struct name *name = &guard->names[i];

            opened =
                opened && (name->base_written ||
                           !leads_to(AT_FDCWD, name->top, name->base_device, name->base_number));
        }
        if (opened)
            return true;
        if (vf_guard_now_ms() >= until)
            return false;
        vf_guard_pause_ms(CUT_PAUSE_MS);
    }
    return guard->process >= 0;
}

/* --- The flips --- */

/* The caller may have flipped some itself. Both names lie in one folder, which is opened once: see
 * vm/names.c. */
size_t
vf_guard_flip_names(struct guard *guard)
{
    size_t flipped = 0;

    for (size_t i = 0; i < guard->name_count; i++) {
        struct name *name = &guard->names[i];
        int folder = open(name->folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
        const char *next = strrchr(name->next, '/') + 1, *top = strrchr(name->top, '/') + 1;

        if (leads_to(folder, next, name->overlay_device, name->overlay_number) &&
            leads_to(folder, top, name->base_device, name->base_number))
            (void)renameat(folder, next, folder, top); /* where it leads to then is what counts */
        flipped += leads_to(folder, top, name->overlay_device, name->overlay_number);
        if (folder >= 0)
            close(folder);
    }
    return flipped;
}

static void
sync_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return;
    fsync(fd);
    close(fd);
}

void
vf_guard_sync_names(const struct guard *guard)
{
    for (size_t i = 0; i < guard->name_count; i++)
        sync_folder(guard->names[i].folder);
}
