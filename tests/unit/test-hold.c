/* SPDX-License-Identifier: MIT
 *
 * Images that are held, against a real QEMU's program.
 */
#include "vm/hold.h"

#include "images.h"

static struct vmfrost_error error;

static bool
hold(const char *name, struct vf_hold *held)
{
    VF_AUTO_FREE char *path = path_of(name);

    error = (struct vmfrost_error){.code = VMFROST_OK};
    return vf_hold_take(held, path, &error);
}

static bool
can_write(const char *name, const char *format)
{
    return RUN("qemu-io", "-f", format, "-c", "write 0 512", name);
}

static bool
can_read(const char *name, const char *format)
{
    return RUN("qemu-io", "-r", "-f", format, "-c", "read 0 512", name);
}

static void
test_held(const char *name, const char *format)
{
    struct vf_hold first, second;

    ok(hold(name, &first) && hold(name, &second), "%s: held, twice", name);
    ok(vf_inode_known(first.inode) && vf_inode_equal(first.inode, second.inode), "it is known");
    ok(!can_write(name, format), "nobody may write to it");
    ok(can_read(name, format), "... but read it");
    vf_hold_release(&first);
    ok(!can_write(name, format), "nor while one still holds it");
    vf_hold_release(&second);
    ok(can_write(name, format), "let go, it can be written to");
    vf_hold_release(&second);
}

static void
test_written(void)
{
    VF_AUTO_FREE char *path = path_of("image.raw");
    struct vf_hold held;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    /* As a QEMU that writes has it. */
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};

    ok(fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) == 0, "somebody writes");
    ok(!hold("image.raw", &held), "... then it cannot be held");
    has_str(error.text, "may write to", "... as is said");
    close(fd);
    ok(hold("image.raw", &held), "but when that one is gone");
    vf_hold_release(&held);
}

static void
test_refused(void)
{
    struct vf_hold held;

    ok(!hold("missing", &held) && held.fd == -1, "what is not there");
    has_str(error.text, "No such file", "... as is said");
    ok(!hold(".", &held), "a folder");
    RUN("mkfifo", "pipe");
    ok(!hold("pipe", &held), "a pipe, which does not hang us");
    has_str(error.text, "neither a file nor", "... as is said");
}

int
main(void)
{
    folder = scratch_new();
    ok(RUN("qemu-img", "create", "-q", "-f", "qcow2", "image.qcow2", "1M") &&
           RUN("qemu-img", "create", "-q", "-f", "raw", "image.raw", "1M"),
       "images");
    test_held("image.qcow2", "qcow2");
    test_held("image.raw", "raw");
    test_written();
    test_refused();
    scratch_remove(folder);
    return done_testing();
}
