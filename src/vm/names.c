/* SPDX-License-Identifier: MIT
 *
 * What the names of a cut will be, and how they change.
 *
 * Each function that changes a name looks at the inode behind it right before, and follows no
 * symbolic link there. The folder is opened once for both: whoever may write to the folder above it
 * can put another one in its place in between, and gets nothing changed there.
 */
#include "vm/names.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/file.h"
#include "util/mem.h"
#include "util/text.h"

/* What a qcow2 header can hold. */
#define BACKING_MAX 1023

/* --- Inodes --- */

bool
vf_inode_equal(struct vf_inode a, struct vf_inode b)
{
    return vf_inode_known(a) && a.device == b.device && a.number == b.number;
}

static struct vf_inode
inode_in(const struct stat *about)
{
    return (struct vf_inode){about->st_dev, about->st_ino};
}

/* Of what `path` itself is; false with errno. */
static bool
look_at(const char *path, struct vf_inode *inode_r)
{
    struct stat about;

    *inode_r = (struct vf_inode){0, 0};
    if (lstat(path, &about) < 0)
        return false;
    *inode_r = inode_in(&about);
    return true;
}

struct vf_inode
vf_inode_of(const char *path)
{
    struct vf_inode inode;

    look_at(path, &inode);
    return inode;
}

bool
vf_is_only_name(const char *path)
{
    struct stat about;

    return lstat(path, &about) == 0 && S_ISREG(about.st_mode) && about.st_nlink < 2;
}

/* Of a directory entry in `folder`, its path if it is `inode`; NULL if not. Owned by the caller. */
static char *
path_if(const char *folder, const struct dirent *entry, struct vf_inode inode)
{
    if (entry->d_ino != inode.number)
        return NULL;
    VF_AUTO_FREE char *path =
        vf_printf("%s/%s", strcmp(folder, "/") == 0 ? "" : folder, entry->d_name);

    return vf_inode_equal(vf_inode_of(path), inode) ? VF_STEAL(path) : NULL;
}

char *
vf_find_inode(const char *folder, struct vf_inode inode)
{
    VF_AUTO_FREE char *found = NULL;
    DIR *entries = vf_inode_known(inode) ? opendir(folder) : NULL;

    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        bool hidden = entry->d_name[0] == '.';
        VF_AUTO_FREE char *path = hidden && found ? NULL : path_if(folder, entry, inode);

        if (!path)
            continue;
        free(found);
        found = VF_STEAL(path);
        if (!hidden)
            break;
    }
    if (entries)
        closedir(entries);
    return VF_STEAL(found);
}

bool
vf_is_hidden_link(const char *name)
{
    VF_AUTO_FREE char *link = vf_strdup(name);

    if (vf_ends_with(link, ".next"))
        link[strlen(link) - strlen(".next")] = '\0';
    VF_AUTO_FREE char *visible = vf_visible_name(link);

    return visible;
}

char *
vf_find_other_name(const char *path, struct vf_inode inode)
{
    VF_AUTO_FREE char *folder = vf_folder_of(path);
    VF_AUTO_FREE char *found = NULL;
    DIR *entries = vf_inode_known(inode) ? opendir(folder) : NULL;

    for (struct dirent *entry; !found && entries && (entry = readdir(entries));)
        if (strcmp(entry->d_name, vf_name_of(path)) != 0 && !vf_is_hidden_link(entry->d_name))
            found = path_if(folder, entry, inode);
    if (entries)
        closedir(entries);
    return VF_STEAL(found);
}

/* --- The names of one cut --- */

/* Where the extension of a file name begins: its last dot, but not a first one; else its end. */
static size_t
stem_length(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot && dot != name ? (size_t)(dot - name) : strlen(name);
}

char *
vf_sealed_name(const char *top, const char *snapshot)
{
    const char *name = vf_name_of(top);
    size_t stem = (size_t)(name - top) + stem_length(name);

    return vf_printf("%.*s@%s%s", (int)stem, top, snapshot, top + stem);
}

/* A name for an overlay of what may be no file: "disk" of "disk.raw", "web" of "rbd:pool/web",
 * of a "json:" text just "disk". Owned by the caller. */
static char *
overlay_stem(const char *path)
{
    const char *name = vf_name_of(path);
    const char *colon = strrchr(name, ':');

    if (colon && *path != '/')
        name = colon + 1;
    if (vf_starts_with(path, "json:") || !isalnum((unsigned char)*name))
        name = "disk";
    char *stem = vf_printf("%.*s", (int)stem_length(name), name);

    for (char *at = stem; *at; at++)
        if (!isalnum((unsigned char)*at) && !strchr("._+@-", *at))
            *at = '_';
    return stem;
}

static void
make_flipped(const struct vf_place *place, const char *snapshot, const char *id,
             struct vf_names *names)
{
    VF_AUTO_FREE char *folder = vf_folder_of(place->path);

    names->top = vf_strdup(place->path);
    names->sealed = vf_sealed_name(place->path, snapshot);
    names->overlay =
        vf_printf("%s/.%s.%s", strcmp(folder, "/") == 0 ? "" : folder, vf_name_of(place->path), id);
    names->next = vf_printf("%s.next", names->overlay);
}

/* Disks of one name from many folders can meet in one folder for overlays: `mark` tells them apart.
 */
static void
make_new(const struct vf_place *place, const char *snapshot, const char *mark,
         struct vf_names *names)
{
    VF_AUTO_FREE char *stem = overlay_stem(place->path);

    names->sealed = vf_strdup(place->path);
    names->overlay =
        vf_printf("%s/%s%s+%s.qcow2", strcmp(place->folder, "/") == 0 ? "" : place->folder, stem,
                  mark, snapshot);
}

void
vf_names_make(const struct vf_place *place, const char *snapshot, const char *id,
              struct vf_names *names)
{
    VF_AUTO_FREE char *folder = vf_folder_of(place->path);
    VF_AUTO_FREE char *mark = vf_printf("-%08" PRIx32, (uint32_t)vf_hash(place->path));
    bool beside_base = *place->path == '/' && strcmp(folder, place->folder) == 0;

    memset(names, 0, sizeof *names);
    switch (place->naming) {
    case VF_NAMING_FLIP:
        make_flipped(place, snapshot, id, names);
        break;
    case VF_NAMING_NEW_FILE:
        make_new(place, snapshot, beside_base ? "" : mark, names);
        break;
    }
    bool relative = beside_base && !place->linked;
    const char *backing = relative ? vf_name_of(names->sealed) : names->sealed;

    /* A colon in a bare name would make a protocol of it. */
    names->backing = vf_printf("%s%s", relative && strchr(backing, ':') ? "./" : "", backing);
}

void
vf_names_release(struct vf_names *names)
{
    free(names->top);
    free(names->sealed);
    free(names->overlay);
    free(names->next);
    free(names->backing);
    memset(names, 0, sizeof *names);
}

bool
vf_names_free(const struct vf_names *names, struct vmfrost_error *error)
{
    /* A NEW_FILE's base keeps its name, so that name is there. */
    const char *const created[] = {names->top ? names->sealed : NULL, names->overlay, names->next};

    for (size_t i = 0; i < sizeof created / sizeof *created; i++) {
        struct vf_inode inode;

        if (!created[i])
            continue;
        if (look_at(created[i], &inode)) {
            vf_fail(error, VMFROST_FAILED, "%s exists already", created[i]);
            return vf_hint(error, "choose another name for the snapshot, or move that file away");
        }
        if (errno == ENAMETOOLONG) {
            vf_fail(error, VMFROST_FAILED, "%s is too long for a file name", created[i]);
            return vf_hint(error, "choose a shorter name for the snapshot or for the disk");
        }
        if (errno != ENOENT)
            return vf_fail(error, VMFROST_FAILED, "cannot use the name %s: %s", created[i],
                           strerror(errno));
    }
    if (strlen(names->backing) > BACKING_MAX)
        return vf_fail(error, VMFROST_FAILED,
                       "the name %.64s... is too long for the header of an overlay",
                       names->backing);
    return true;
}

/* --- How names change --- */

/* `path` is not what it should be. Unknown inodes are those of nothing at all. */
static bool
is_other(const char *path, struct vf_inode found, struct vf_inode wanted,
         struct vmfrost_error *error)
{
    if (!vf_inode_known(found))
        vf_fail(error, VMFROST_FAILED, "%s is not there", path);
    else if (!vf_inode_known(wanted))
        vf_fail(error, VMFROST_FAILED, "%s is there, and nothing should be", path);
    else
        vf_fail(error, VMFROST_FAILED,
                "%s is not the file that it should be (inode %" PRIu64 " instead of %" PRIu64 ")",
                path, found.number, wanted.number);
    return vf_hint(error,
                   "somebody has moved or replaced this file: see /proc/PID/fd for what QEMU "
                   "has open");
}

static int
open_folder_of(const char *path)
{
    VF_AUTO_FREE char *folder = vf_folder_of(path);

    return open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* `folder` is that of `from`: of names that lie beside each other it is opened once. */
static int
open_folder_beside(int folder, const char *from, const char *to)
{
    size_t length = (size_t)(vf_name_of(from) - from);

    return strncmp(from, to, length) == 0 && !strchr(to + length, '/')
               ? fcntl(folder, F_DUPFD_CLOEXEC, 0)
               : open_folder_of(to);
}

/* Of what has the last part of `path` for its name in `folder`. */
static struct vf_inode
inode_at(int folder, const char *path)
{
    struct stat about;

    return fstatat(folder, vf_name_of(path), &about, AT_SYMLINK_NOFOLLOW) < 0
               ? (struct vf_inode){0, 0}
               : inode_in(&about);
}

bool
vf_link(const char *from, const char *to, struct vf_inode inode, const struct vf_log *log,
        struct vmfrost_error *error)
{
    VF_AUTO_FD int from_folder = open_folder_of(from);
    VF_AUTO_FD int to_folder = open_folder_beside(from_folder, from, to);

    /* Links the very file that was looked at, whatever the name leads to by then. */
    VF_AUTO_FD int fd = openat(from_folder, vf_name_of(from), O_PATH | O_NOFOLLOW | O_CLOEXEC);
    char path[64];
    struct stat about;

    if (fd < 0 || fstat(fd, &about) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot look at %s: %s", from, strerror(errno));
    if (!S_ISREG(about.st_mode) || !vf_inode_equal(inode_in(&about), inode))
        return is_other(from, inode_in(&about), inode, error);
    vf_log(log, VMFROST_LOG_DEBUG, "file link %s -> %s", from, to);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, path, to_folder, vf_name_of(to), AT_SYMLINK_FOLLOW) < 0) {
        int number = errno;

        vf_fail(error, VMFROST_FAILED, "cannot link %s to %s: %s", from, to, strerror(number));
        return vf_hint_unwritten(error, number);
    }
    return true;
}

bool
vf_flip(const char *from, struct vf_inode inode, const char *to, struct vf_inode replaced,
        const struct vf_log *log, struct vmfrost_error *error)
{
    VF_AUTO_FD int from_folder = open_folder_of(from);
    VF_AUTO_FD int to_folder = open_folder_beside(from_folder, from, to);

    struct vf_inode source = inode_at(from_folder, from), target = inode_at(to_folder, to);

    if (vf_inode_equal(target, inode)) {
        /* Flipped already. rename(2) would do nothing, and leave both names. */
        if (!vf_inode_known(source))
            return true;
        return vf_unlink(from, inode, log, error);
    }
    if (!vf_inode_equal(source, inode))
        return is_other(from, source, inode, error);
    bool nothing = !vf_inode_known(target) && !vf_inode_known(replaced);

    if (!nothing && !vf_inode_equal(target, replaced))
        return is_other(to, target, replaced, error);
    if (renameat(from_folder, vf_name_of(from), to_folder, vf_name_of(to)) < 0) {
        int number = errno;

        vf_fail(error, VMFROST_FAILED, "cannot rename %s to %s: %s", from, to, strerror(number));
        return vf_hint_unwritten(error, number);
    }
    /* Not before: the guest may be frozen. */
    vf_log(log, VMFROST_LOG_DEBUG, "file rename %s -> %s", from, to);
    return true;
}

bool
vf_exchange(const char *from, struct vf_inode inode, const char *to, struct vf_inode replaced,
            const struct vf_log *log, struct vmfrost_error *error)
{
    VF_AUTO_FD int from_folder = open_folder_of(from);
    VF_AUTO_FD int to_folder = open_folder_beside(from_folder, from, to);

    if (vf_inode_equal(inode_at(from_folder, from), inode) &&
        vf_inode_equal(inode_at(to_folder, to), replaced) &&
        syscall(SYS_renameat2, from_folder, vf_name_of(from), to_folder, vf_name_of(to),
                RENAME_EXCHANGE) == 0) {
        vf_log(log, VMFROST_LOG_DEBUG, "file exchange %s <-> %s", from, to);
        return true;
    }
    return vf_flip(from, inode, to, replaced, log, error);
}

int
vf_create(const char *path)
{
    VF_AUTO_FD int folder = open_folder_of(path);

    return openat(folder, vf_name_of(path), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                  0600);
}

bool
vf_unlink(const char *path, struct vf_inode inode, const struct vf_log *log,
          struct vmfrost_error *error)
{
    VF_AUTO_FD int folder = open_folder_of(path);
    struct stat about;

    if (folder < 0 || fstatat(folder, vf_name_of(path), &about, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ||
               vf_fail(error, VMFROST_FAILED, "cannot look at %s: %s", path, strerror(errno));
    if (!vf_inode_equal(inode_in(&about), inode))
        return is_other(path, inode_in(&about), inode, error);
    vf_log(log, VMFROST_LOG_DEBUG, "file unlink %s", path);
    if (unlinkat(folder, vf_name_of(path), 0) < 0 && errno != ENOENT) {
        int number = errno;

        vf_fail(error, VMFROST_FAILED, "cannot remove %s: %s", path, strerror(number));
        return vf_hint_unwritten(error, number);
    }
    return true;
}
