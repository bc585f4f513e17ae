/* SPDX-License-Identifier: MIT */
#include "util/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/mem.h"

bool
vf_others_may_change(const struct stat *about)
{
    return (about->st_uid != geteuid() && about->st_uid != 0) ||
           about->st_mode & (S_IWGRP | S_IWOTH);
}

char *
vf_read_file(const char *path, size_t most, size_t *length_r)
{
    /* O_NONBLOCK: a FIFO planted at this name must not hang us. */
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    VF_AUTO_FREE char *folder = vf_folder_of(path);
    VF_AUTO_FREE char *content = NULL;
    struct stat about, around;

    if (fd < 0 || stat(folder, &around) < 0 || fstat(fd, &about) < 0)
        return NULL;
    if (!S_ISREG(about.st_mode)) {
        errno = EINVAL;
        return NULL;
    }
    if ((unsigned long long)about.st_size > most) {
        errno = EFBIG;
        return NULL;
    }
    if (vf_others_may_change(&about) || vf_others_may_change(&around)) {
        errno = EPERM;
        return NULL;
    }
    size_t size = (size_t)about.st_size, length = 0;

    content = vf_alloc(size + 1);
    while (length < size) {
        ssize_t got = read(fd, content + length, size - length);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return NULL;
        if (got == 0)
            break;
        length += (size_t)got;
    }
    content[length] = '\0';
    *length_r = length;
    return VF_STEAL(content);
}

const char *
vf_read_trouble(int number)
{
    switch (number) {
    case EFBIG:
        return "it is too large to be one of ours";
    case EINVAL:
    case EISDIR:
        return "it is no regular file";
    case ELOOP:
        return "it is a symbolic link";
    case EPERM:
        return "it or its folder belongs to somebody else, or others can write to it";
    default:
        return strerror(number);
    }
}

bool
vf_hint_unwritten(struct vmfrost_error *error, int number)
{
    switch (number) {
    case ENOSPC:
    case EDQUOT:
        return vf_hint(error, "make room there, then try again");
    case EROFS:
        return vf_hint(error, "it is mounted read-only: mount it for writing, then try again");
    case EPERM:
        return vf_hint(error, "is it somebody else's, or marked as immutable (lsattr)?");
    default:
        return false;
    }
}

const char *
vf_unwritable(const char *folder, bool by_us)
{
    VF_AUTO_FD int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int flags = 0;

    /* Not every file system has them. */
    if (fd >= 0 && ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && flags & FS_IMMUTABLE_FL)
        return "it is marked as immutable (chattr -i takes that away)";
    if (flags & FS_APPEND_FL)
        return "it is marked as append-only (chattr -a takes that away)";
    return access(folder, W_OK | X_OK) < 0 && (by_us || errno == EROFS) ? strerror(errno) : NULL;
}

static bool
write_all(int fd, const char *content, size_t length)
{
    while (length > 0) {
        ssize_t put = write(fd, content, length);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return false;
        content += put;
        length -= (size_t)put;
    }
    return true;
}

bool
vf_replace_file(const char *path, const char *content, size_t length, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *temporary = vf_printf("%s.new", path);

    /* Left behind by a crash, under a name that only the holder of the VM's lock writes. */
    unlink(temporary);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0) {
        int number = errno;

        vf_fail(error, VMFROST_FAILED, "cannot create %s: %s", temporary, strerror(number));
        return vf_hint_unwritten(error, number);
    }
    bool written = write_all(fd, content, length) && fsync(fd) == 0;
    int written_errno = errno;

    close(fd);
    if (!written) {
        unlink(temporary);
        vf_fail(error, VMFROST_FAILED, "cannot write %s: %s", temporary, strerror(written_errno));
        return vf_hint_unwritten(error, written_errno);
    }
    if (rename(temporary, path) < 0) {
        vf_fail(error, VMFROST_FAILED, "cannot put %s in its place: %s", path, strerror(errno));
        unlink(temporary);
        return false;
    }
    if (vf_sync_folder_of(path) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot make the folder of %s durable: %s", path,
                       strerror(errno));
    return true;
}

bool
vf_make_folders(const char *path, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *each = vf_strdup(path);

    for (char *slash = each + 1;; slash++) {
        if (*slash && *slash != '/')
            continue;
        char kept = *slash;

        *slash = '\0';
        struct stat about;

        if (mkdir(each, 0700) < 0 && errno != EEXIST)
            return vf_fail(error, VMFROST_FAILED, "cannot create the folder %s: %s", each,
                           strerror(errno));
        if (stat(each, &about) < 0 || !S_ISDIR(about.st_mode))
            return vf_fail(error, VMFROST_FAILED, "%s is no folder", each);
        *slash = kept;
        if (!kept)
            return true;
    }
}

int
vf_sync_folder(const char *path)
{
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    return fd < 0 ? -1 : fsync(fd);
}

int
vf_sync_folder_of(const char *path)
{
    VF_AUTO_FREE char *folder = vf_folder_of(path);

    return vf_sync_folder(folder);
}

int64_t
vf_free_bytes(const char *folder, bool for_root)
{
    struct statvfs about;

    if (statvfs(folder, &about) < 0 || about.f_blocks == 0)
        return INT64_MAX;
    double bytes = (double)(for_root ? about.f_bfree : about.f_bavail) * (double)about.f_frsize;

    return bytes < (double)INT64_MAX ? (int64_t)bytes : INT64_MAX;
}

char *
vf_folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return vf_strdup(".");
    return vf_printf("%.*s", slash == path ? 1 : (int)(slash - path), path);
}

const char *
vf_name_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/* From linux/mman.h of Linux 6.5, which C libraries of before do not know. */
#define CACHESTAT 451 /* on all machines */

bool
vf_file_is_clean(const char *path)
{
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const uint64_t all[2] = {0, 0}; /* from here to the end */
    enum { DIRTY = 1, IN_WRITEBACK = 2, COUNT = 5 };
    uint64_t pages[COUNT];

    return fd >= 0 && syscall(CACHESTAT, fd, all, pages, 0) == 0 && pages[DIRTY] == 0 &&
           pages[IN_WRITEBACK] == 0;
}
