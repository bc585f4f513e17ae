/* SPDX-License-Identifier: MIT */
#include "vm/hold.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"

/* QEMU locks byte 100 + N of an image for each permission N that it uses, and byte 200 + N for each
 * one that it lets nobody else have. */
#define USED 100
#define REFUSED 200

enum permission { PERMISSION_READ = 0, PERMISSION_WRITE = 1, PERMISSION_RESIZE = 3 };

static void
set_lock(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    fcntl(fd, F_OFD_SETLK, &lock);
}

static bool
is_locked(int fd, off_t byte)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

bool
vf_hold_take(struct vf_hold *hold, const char *path, struct vmfrost_error *error)
{
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat about;

    *hold = (struct vf_hold){.fd = -1};
    if (fd < 0 || fstat(fd, &about) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot read %s: %s", path, strerror(errno));
    if (!S_ISREG(about.st_mode) && !S_ISBLK(about.st_mode))
        return vf_fail(error, VMFROST_FAILED, "%s is neither a file nor a block device", path);
    set_lock(fd, USED + PERMISSION_READ);
    set_lock(fd, REFUSED + PERMISSION_WRITE);
    set_lock(fd, REFUSED + PERMISSION_RESIZE);
    if (is_locked(fd, USED + PERMISSION_WRITE)) {
        vf_fail(error, VMFROST_FAILED, "somebody may write to %s", path);
        return vf_hint(error, "find out which QEMU has opened an image of a snapshot (vmfrost "
                              "status), and stop it");
    }
    hold->fd = fd;
    fd = -1;
    if (S_ISREG(about.st_mode))
        hold->inode = (struct vf_inode){about.st_dev, about.st_ino};
    return true;
}

void
vf_hold_release(struct vf_hold *hold)
{
    if (hold->fd >= 0)
        close(hold->fd);
    hold->fd = -1;
}
