/* SPDX-License-Identifier: MIT */
#include "util/newfile.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/text.h"

#define ENDING ".part"
#define ID_LENGTH ((size_t)16)
/* Beyond the bytes that QEMU locks in an image. A lock of a part of a file works on NFS, too. */
#define OUR_BYTE 4096

static bool
lock(int fd, short type, off_t start, off_t length)
{
    struct flock wanted = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};

    return fcntl(fd, F_OFD_SETLK, &wanted) == 0;
}

/* Neither its maker lives nor a QEMU that writes to it. */
static bool
is_abandoned(int fd)
{
    return lock(fd, F_WRLCK, 0, 0);
}

/* ".NAME.<16 hex digits>.part" */
static bool
is_part_of(const char *entry, const char *name)
{
    size_t length = strlen(name);
    const char *id = entry + length + 2;

    return entry[0] == '.' && strncmp(entry + 1, name, length) == 0 && entry[length + 1] == '.' &&
           strspn(id, "0123456789abcdef") == ID_LENGTH && strcmp(id + ID_LENGTH, ENDING) == 0;
}

/* What cannot be removed stays: that is no reason not to make the new one. */
static void
sweep(const char *folder, const char *name)
{
    DIR *entries = opendir(folder);

    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        if (!is_part_of(entry->d_name, name))
            continue;
        VF_AUTO_FD int fd =
            openat(dirfd(entries), entry->d_name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        struct stat about;

        if (fd >= 0 && fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && is_abandoned(fd))
            unlinkat(dirfd(entries), entry->d_name, 0);
    }
    if (entries)
        closedir(entries);
}

static bool
fail_taken(const char *path, const char *what, struct vmfrost_error *error)
{
    vf_fail(error, VMFROST_FAILED, "%s is there already%s, and is not replaced", path, what);
    return vf_hint(error, "remove it, or choose another name");
}

bool
vf_name_is_free(const char *path, struct vmfrost_error *error)
{
    struct stat about;

    if (lstat(path, &about) == 0)
        return fail_taken(path,
                          S_ISLNK(about.st_mode)   ? ", a symbolic link"
                          : S_ISDIR(about.st_mode) ? ", a folder"
                                                   : "",
                          error);
    return errno == ENOENT ||
           vf_fail(error, VMFROST_FAILED, "cannot look at %s: %s", path, strerror(errno));
}

bool
vf_newfile_create(struct vf_newfile *file, const char *path, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *folder = vf_folder_of(path);
    const char *name = vf_name_of(path);
    char id[ID_LENGTH + 1];

    if (!vf_name_is_free(path, error))
        return false;
    sweep(folder, name);
    vf_random_hex(id);
    file->path = vf_strdup(path);
    file->part = vf_printf("%s/.%s.%s" ENDING, strcmp(folder, "/") == 0 ? "" : folder, name, id);
    file->fd = open(file->part, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (file->fd >= 0) {
        /* Where locks cannot be had, nobody else gets one, and nothing is ever swept. */
        lock(file->fd, F_WRLCK, OUR_BYTE, 1);
        return true;
    }
    vf_fail(error, VMFROST_FAILED, "cannot create a file in %s: %s", folder, strerror(errno));
    free(VF_STEAL(file->part));
    return false;
}

/* The name leads to what we have made. */
static bool
is_ours(const struct vf_newfile *file)
{
    struct stat ours, named;

    return file->part && file->fd >= 0 && fstat(file->fd, &ours) == 0 &&
           lstat(file->part, &named) == 0 && ours.st_dev == named.st_dev &&
           ours.st_ino == named.st_ino;
}

/* Never replaces anything: 0, or -1 with errno. */
static int
move(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -1;
    /* File systems that cannot do that (NFS) know hard links. */
    return link(from, to) < 0 ? -1 : unlink(from);
}

bool
vf_newfile_publish(struct vf_newfile *file, struct vmfrost_error *error)
{
    if (!is_ours(file))
        return vf_fail(error, VMFROST_FAILED, "%s is gone: somebody has removed or replaced it",
                       file->part);
    if (fsync(file->fd) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot write %s: %s", file->path, strerror(errno));
    if (move(file->part, file->path) < 0) {
        if (errno == EEXIST)
            return fail_taken(file->path, "", error);
        return vf_fail(error, VMFROST_FAILED, "cannot put %s in its place: %s", file->path,
                       strerror(errno));
    }
    free(VF_STEAL(file->part));
    if (vf_sync_folder_of(file->path) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot make the folder of %s durable: %s",
                       file->path, strerror(errno));
    return true;
}

void
vf_newfile_release(struct vf_newfile *file)
{
    if (is_ours(file))
        unlink(file->part);
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
    free(file->part);
    *file = (struct vf_newfile)VF_NEWFILE_INIT;
}
