/* SPDX-License-Identifier: MIT
 *
 * Where an image is: from the name by which QEMU knows it to the file that QEMU has open.
 *
 * A name proves nothing; an inode does. Whatever cannot be proved gets no flipped names, and what
 * is proved to be another file is an error.
 */
#include "vm/names.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/process.h"
#include "vm/qcow2.h"

#define ID_LENGTH 16

static const char json_prefix[] = "json:";

static struct vf_inode
inode_in(const struct stat *about)
{
    return (struct vf_inode){about->st_dev, about->st_ino};
}

/* --- What a process has open --- */

static void
close_folder(DIR **folder)
{
    if (*folder)
        closedir(*folder);
}
#define AUTO_FOLDER VF_CLEANUP(close_folder)

static bool
is_number(const char *text)
{
    return *text && strspn(text, "0123456789") == strlen(text);
}

/* QEMU locks byte 100 + N of an image for each permission that it has on it; 1 is to write. */
#define BYTE_OF_WRITER 101

/* Whether "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:4711 100 101\n", or with "EOF" at its end, is
 * on the byte of a writer. */
static bool
is_writers_lock(const char *line)
{
    unsigned long long first, last;
    char end[24];

    if (sscanf(line, "lock: %*s %*s %*s %*s %*s %*s %llu %23s", &first, end) != 2)
        return false;
    last = strcmp(end, "EOF") == 0 ? ULLONG_MAX : strtoull(end, NULL, 10);
    return first <= BYTE_OF_WRITER && BYTE_OF_WRITER <= last;
}

/* The open(2) flags of a descriptor, from "flags:\t02100002" in its fdinfo; -1 if it is gone. */
static int
flags_of(pid_t pid, const char *descriptor, bool *writers_lock_r)
{
    char path[64], line[128];
    int flags = -1;

    *writers_lock_r = false;
    snprintf(path, sizeof path, "/proc/%d/fdinfo/%.20s", (int)pid, descriptor);
    FILE *file = fopen(path, "re");

    if (!file)
        return -1;
    while (fgets(line, sizeof line, file)) {
        if (vf_starts_with(line, "flags:"))
            flags = (int)strtoul(line + strlen("flags:"), NULL, 8);
        *writers_lock_r |= is_writers_lock(line);
    }
    fclose(file);
    return flags;
}

struct vf_descriptor {
    char name[12]; /* its number */
    struct vf_inode inode;
    dev_t device; /* 0: no block device */
};

/* Files and block devices; all else cannot be an image. 0, or an errno. */
static int
read_descriptors(struct vf_view *view)
{
    char path[64];
    struct dirent *entry;

    snprintf(path, sizeof path, "/proc/%d/fd", (int)view->pid);
    AUTO_FOLDER DIR *folder = opendir(path);

    if (!folder)
        return errno;
    while ((entry = readdir(folder))) {
        struct stat about;

        if (!is_number(entry->d_name) || fstatat(dirfd(folder), entry->d_name, &about, 0) < 0 ||
            !(S_ISREG(about.st_mode) || S_ISBLK(about.st_mode)))
            continue;
        VF_GROW(view->descriptors, view->count);
        struct vf_descriptor *descriptor = &view->descriptors[view->count++];

        snprintf(descriptor->name, sizeof descriptor->name, "%.11s", entry->d_name);
        descriptor->inode = inode_in(&about);
        descriptor->device = S_ISBLK(about.st_mode) ? about.st_rdev : 0;
    }
    return 0;
}

/* The number is still that file's. */
static bool
is_still(pid_t pid, const struct vf_descriptor *descriptor)
{
    char path[64];
    struct stat about;

    snprintf(path, sizeof path, "/proc/%d/fd/%s", (int)pid, descriptor->name);
    return stat(path, &about) == 0 && vf_inode_equal(inode_in(&about), descriptor->inode);
}

/* Looks for a file by its inode, or, if `device` is not 0, for a block device. */
static bool
find_opened(const struct vf_view *view, struct vf_inode inode, dev_t device,
            struct vf_opened *opened_r)
{
    *opened_r = (struct vf_opened){false, false, false};
    for (size_t i = 0; i < view->count; i++) {
        const struct vf_descriptor *descriptor = &view->descriptors[i];

        if (device ? descriptor->device != device : !vf_inode_equal(descriptor->inode, inode))
            continue;
        bool writers_lock;
        int flags = flags_of(view->pid, descriptor->name, &writers_lock);

        if (flags < 0 || flags & O_PATH || !is_still(view->pid, descriptor))
            continue;
        bool for_writing = (flags & O_ACCMODE) != O_RDONLY;

        opened_r->read_only |= !for_writing;
        opened_r->read_write |= for_writing;
        opened_r->may_write |= for_writing && writers_lock;
    }
    return !view->error;
}

bool
vf_view_opened(const struct vf_view *view, struct vf_inode inode, struct vf_opened *opened_r)
{
    return find_opened(view, inode, 0, opened_r);
}

bool
vf_process_opened(pid_t pid, struct vf_inode inode, struct vf_opened *opened_r)
{
    VF_CLEANUP(vf_view_release) struct vf_view view = {.pid = pid};

    view.error = read_descriptors(&view);
    return vf_view_opened(&view, inode, opened_r);
}

/* --- Where an image is --- */

/* QEMU's own rule: a colon before the first slash makes a protocol of what stands before it. */
static bool
is_protocol(const char *file)
{
    const char *colon = strchr(file, ':'), *slash = strchr(file, '/');

    return colon && (!slash || colon < slash);
}

bool
vf_sees_otherwise(pid_t pid)
{
    char path[64];
    struct stat ours, theirs;

    snprintf(path, sizeof path, "/proc/%d/root", (int)pid);
    if (stat("/", &ours) < 0 || stat(path, &theirs) < 0 ||
        !vf_inode_equal(inode_in(&ours), inode_in(&theirs)))
        return true;
    return !vf_process_shares(pid, "mnt");
}

void
vf_view_read(struct vf_view *view, pid_t pid)
{
    *view = (struct vf_view){.pid = pid, .error = ESRCH};
    if (!pid)
        return;
    view->elsewhere = vf_sees_otherwise(pid);
    view->error = read_descriptors(view);
}

void
vf_view_release(struct vf_view *view)
{
    free(view->descriptors);
    *view = (struct vf_view){0};
}

/* What the process finds under an absolute path. */
static bool
look_for(const struct vf_view *view, const char *path, struct stat *about)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    char root_path[64];

    if (!view->elsewhere)
        return stat(path, about) == 0;
    snprintf(root_path, sizeof root_path, "/proc/%d/root", (int)view->pid);
    VF_AUTO_FD int root = open(root_path, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (root < 0)
        return false;
    VF_AUTO_FD int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);

    /* Before Linux 5.6, and where a sandbox forbids it: the same but for absolute symbolic links,
     * which lead into our own root folder then. Inodes are compared in any case. */
    if (fd < 0 && (errno == ENOSYS || errno == EPERM))
        fd = openat(root, path + strspn(path, "/"), O_PATH | O_CLOEXEC);
    return fd >= 0 && fstat(fd, about) == 0;
}

/* Both we and the process find the same folder there. */
static bool
same_folder(const struct vf_view *view, const char *path)
{
    struct stat ours, theirs;

    return stat(path, &ours) == 0 && S_ISDIR(ours.st_mode) && look_for(view, path, &theirs) &&
           vf_inode_equal(inode_in(&ours), inode_in(&theirs));
}

/* `file` from the process's folder on. Owned by the caller; NULL with errno. */
static char *
make_absolute(pid_t pid, const char *file)
{
    char link[64], folder[PATH_MAX];

    if (*file == '/')
        return vf_strdup(file);
    snprintf(link, sizeof link, "/proc/%d/cwd", (int)pid);
    ssize_t length = readlink(link, folder, sizeof folder - 1);

    if (length < 0)
        return NULL;
    if (length == (ssize_t)sizeof folder - 1) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    folder[length] = '\0';
    return vf_printf("%s/%s", strcmp(folder, "/") == 0 ? "" : folder, file);
}

char *
vf_visible_name(const char *name)
{
    size_t length = strlen(name);

    if (*name != '.' || length < 1 + 1 + 1 + ID_LENGTH)
        return NULL;
    const char *dot = name + length - ID_LENGTH - 1;

    if (*dot != '.' || strspn(dot + 1, "0123456789abcdef") != ID_LENGTH)
        return NULL;
    return vf_printf("%.*s", (int)(dot - name - 1), name + 1);
}

/* Every relative file name in the description of a node is made absolute, in place. */
static bool
make_members_absolute(pid_t pid, struct json_object *node)
{
    const char *driver = vf_json_string(node, "driver"), *name = vf_json_string(node, "filename");

    if (driver && name && *name != '/' &&
        (strcmp(driver, "file") == 0 || strcmp(driver, "host_device") == 0)) {
        VF_AUTO_FREE char *absolute = make_absolute(pid, name);

        if (!absolute)
            return false;
        vf_json_add_string(node, "filename", absolute);
    }
    json_object_object_foreach(node, key, member)
    {
        (void)key;
        if (json_object_is_type(member, json_type_object) && !make_members_absolute(pid, member))
            return false;
    }
    return true;
}

/* A header that names a base in QEMU's words must mean the same from any folder. Owned by the
 * caller; NULL with errno. */
static char *
portable_name(pid_t pid, const char *file)
{
    if (!vf_starts_with(file, json_prefix))
        return vf_strdup(file);
    const char *text = file + strlen(json_prefix);
    VF_AUTO_JSON struct json_object *node = vf_json_parse(text, strlen(text), 32);

    errno = EINVAL;
    if (!json_object_is_type(node, json_type_object) || !make_members_absolute(pid, node))
        return NULL;
    return vf_printf("%s%s", json_prefix, vf_json_print(node, JSON_C_TO_STRING_NOSLASHESCAPE));
}

bool
vf_process_removed(pid_t pid, const char *file, struct vf_inode *inode_r, bool *nameless_r)
{
    VF_AUTO_FREE char *absolute = make_absolute(pid, file);
    VF_AUTO_FREE char *wanted = absolute ? vf_printf("%s (deleted)", absolute) : NULL;
    char path[64], link[PATH_MAX];
    struct dirent *entry;

    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    AUTO_FOLDER DIR *folder = wanted ? opendir(path) : NULL;

    while (folder && (entry = readdir(folder))) {
        ssize_t length = readlinkat(dirfd(folder), entry->d_name, link, sizeof link - 1);
        struct stat about;
        bool ignored;
        int flags = flags_of(pid, entry->d_name, &ignored);

        if (length < 0 || flags < 0 || (flags & O_ACCMODE) == O_RDONLY)
            continue;
        link[length] = '\0';
        if (strcmp(link, wanted) != 0 || fstatat(dirfd(folder), entry->d_name, &about, 0) < 0)
            continue;
        *inode_r = inode_in(&about);
        *nameless_r = about.st_nlink == 0;
        return true;
    }
    return false;
}

static char *
real_path(const char *path)
{
    char real[PATH_MAX];

    return realpath(path, real) ? vf_strdup(real) : NULL;
}

/* NULL if the file in `folder` can have further hard links; else why not. Owned by the caller. */
static char *
why_no_links(const char *path, const char *folder)
{
    struct statfs system;
    struct stat about;
    char id[ID_LENGTH + 1];

    if (statfs(folder, &system) == 0 && lstat(path, &about) == 0 &&
        (geteuid() == 0 || about.st_uid == geteuid()) && access(folder, W_OK | X_OK) == 0)
        switch ((unsigned long)system.f_type) {
        case EXT4_SUPER_MAGIC: /* ext2 and ext3, too */
        case XFS_SUPER_MAGIC:
        case BTRFS_SUPER_MAGIC:
        case F2FS_SUPER_MAGIC:
        case TMPFS_MAGIC:
            return NULL;
        }
    /* Of all others a try tells most. Should it be interrupted, the name is that of a hidden link,
     * which is swept like any other. */
    vf_random_hex(id);
    VF_AUTO_FREE char *trial = vf_printf(".%s.%s", vf_name_of(path), id);
    VF_AUTO_FD int fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (linkat(fd, vf_name_of(path), fd, trial, 0) < 0)
        return vf_printf("%s cannot have another hard link: %s", path, strerror(errno));
    unlinkat(fd, trial, 0);
    return NULL;
}

static const struct vf_view unseen = {0};

/* Says that it is a NEW_FILE. `why` is owned by this call. False if there is no folder for it. */
static bool
place_new_file(const struct vf_view *view, struct vf_place *place, char *why,
               const char *overlay_folder, const char *own_folder, struct vmfrost_error *error)
{
    place->naming = VF_NAMING_NEW_FILE;
    place->why = why;
    if (!overlay_folder && !own_folder) {
        vf_fail(error, VMFROST_FAILED, "there is no folder for an overlay of %s: %s", place->path,
                why);
        return vf_hint(error, "set the VM's overlayFolder to a folder that QEMU can write to");
    }
    place->folder = vf_strdup(overlay_folder ? overlay_folder : own_folder);
    if (view->pid && !same_folder(view, place->folder)) {
        vf_fail(error, VMFROST_FAILED, "QEMU does not see the folder %s as this process does",
                place->folder);
        return vf_hint(error, "set the VM's overlayFolder to one that is the same for both");
    }
    return true;
}

/* The folder of a name that may lie elsewhere for us: NULL if it is not the same one. Owned by the
 * caller. */
static char *
shared_folder_of(const struct vf_view *view, const char *path)
{
    VF_AUTO_FREE char *folder = vf_folder_of(path);

    return *path == '/' && same_folder(view, folder) ? VF_STEAL(folder) : NULL;
}

static bool
is_relative(const char *file, struct vmfrost_error *error)
{
    vf_fail(error, VMFROST_FAILED, "%s is relative to QEMU's folder, which cannot be read: %s",
            file, strerror(errno));
    return vf_hint(error,
                   "start QEMU with absolute paths, or run vmfrost as root or as QEMU's user "
                   "on QEMU's host");
}

/* Without a process there is nothing to compare with: the name is all that is known. */
static bool
place_unseen(const char *file, const char *overlay_folder, struct vf_place *place,
             struct vmfrost_error *error)
{
    VF_AUTO_FREE char *folder = *file == '/' ? vf_folder_of(file) : NULL;

    errno = ESRCH;
    place->path = *file == '/' || is_protocol(file) ? portable_name(0, file) : NULL;
    if (!place->path)
        return is_relative(file, error);
    return place_new_file(&unseen, place,
                          vf_strdup("QEMU's process is not known over this connection"),
                          overlay_folder, folder, error);
}

/* Its folder, or what looks like it, is another one than that of the file it leads to. */
static bool
is_link_elsewhere(const char *name, const char *path)
{
    VF_AUTO_FREE char *folder = vf_folder_of(name);
    VF_AUTO_FREE char *real = vf_folder_of(path);
    struct stat ours, theirs;

    return stat(folder, &ours) == 0 && stat(real, &theirs) == 0 &&
           !vf_inode_equal(inode_in(&ours), inode_in(&theirs));
}

/* A running QEMU knows an overlay of ours by a name that tells nothing of the launcher's: but its
 * header does. */
static bool
stands_on_absolute(const char *path, const char *folder)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_qcow2 image;

    if (!vf_qcow2_read(path, &image, &ignored))
        return false;
    VF_AUTO_FREE char *below = image.backing ? vf_folder_of(image.backing) : NULL;
    bool absolute = below && *image.backing == '/' && strcmp(below, folder) == 0;

    vf_qcow2_release(&image);
    return absolute;
}

/* A regular file at `path` (resolved), which QEMU has open as `absolute` in its own words. */
static bool
place_file(const struct vf_view *view, const char *absolute, const char *format,
           const char *overlay_folder, struct vf_place *place, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *folder = vf_folder_of(place->path);

    if (strcmp(format, "qcow2") != 0)
        return place_new_file(view, place,
                              vf_printf("a launcher that opens %s as %s could not open an overlay "
                                        "under that name",
                                        vf_name_of(absolute), format),
                              overlay_folder, folder, error);
    if (!same_folder(view, folder))
        return place_new_file(view, place, vf_printf("QEMU does not see the folder %s", folder),
                              overlay_folder, NULL, error);
    char *why = why_no_links(place->path, folder);

    if (why)
        return place_new_file(view, place, why, overlay_folder, folder, error);
    if (is_link_elsewhere(absolute, place->path))
        place->link = vf_strdup(absolute);
    place->linked = place->link || stands_on_absolute(place->path, folder);
    place->naming = VF_NAMING_FLIP;
    place->folder = VF_STEAL(folder);
    return true;
}

/* -daemonize, too, changes the folder. */
static bool
lost_its_folder(struct vf_place *place, const char *file, const char *absolute,
                struct vmfrost_error *error)
{
    /* To "/", that is. */
    place->parted = strcmp(absolute + 1, file) != 0;
    vf_fail(error, VMFROST_FAILED, "%s does not exist any more, though QEMU has %s open", absolute,
            file);
    return vf_hint(error,
                   "somebody has moved it, or QEMU was started with -daemonize, which goes to the "
                   "folder /: give it absolute paths then");
}

static bool
parted(struct vf_place *place, const char *path, const char *what, struct vmfrost_error *error)
{
    place->parted = true;
    vf_fail(error, VMFROST_FAILED, "%s %s", path, what);
    return vf_hint(error,
                   "somebody has moved or replaced this file: see /proc/PID/fd for what QEMU "
                   "has open");
}

/* From the name that QEMU uses to the visible one, by inode. False if the two have parted. */
static bool
find_visible(const struct vf_view *view, const char *absolute, struct vf_place *place,
             struct vmfrost_error *error)
{
    VF_AUTO_FREE char *real = real_path(absolute);
    VF_AUTO_FREE char *name = vf_visible_name(vf_name_of(absolute));
    struct vf_inode inode = real ? vf_inode_of(real) : (struct vf_inode){0, 0};
    struct vf_opened opened;

    if (!vf_view_opened(view, inode, &opened))
        return vf_fail(error, VMFROST_FAILED, "cannot see what QEMU has open: %s",
                       strerror(view->error));
    place->opened_by_name = opened.read_only || opened.read_write;
    if (!name) {
        if (!place->opened_by_name)
            return parted(place, absolute,
                          real ? "is not the file that QEMU has open"
                               : "does not exist any more, though QEMU has it open",
                          error);
        place->path = VF_STEAL(real);
        place->inode = inode;
        return true;
    }

    /* The folder's symbolic links are resolved; of the name itself there are none to follow. */
    VF_AUTO_FREE char *folder = vf_folder_of(absolute);
    VF_AUTO_FREE char *real_folder = real_path(folder);
    VF_AUTO_FREE char *visible = vf_printf("%s/%s", real_folder ? real_folder : folder, name);
    struct vf_inode current = vf_inode_of(visible);

    struct stat about;

    if (lstat(visible, &about) == 0 && S_ISLNK(about.st_mode) && place->opened_by_name &&
        stat(visible, &about) == 0 && vf_inode_equal(inode_in(&about), inode)) {
        /* The VM would be found at its next start, but that name is none to be turned. */
        VF_AUTO_FREE char *target = real_path(visible);

        vf_fail(error, VMFROST_FAILED, "%s is a symbolic link to %s now", visible,
                target ? target : "its image");
        return vf_hint(error, "give the file its name back: mv '%s' '%s'", target ? target : "FILE",
                       visible);
    }
    if (!vf_inode_known(current))
        return parted(place, visible, "does not exist any more, though it is the VM's disk", error);
    if (place->opened_by_name && !vf_inode_equal(current, inode))
        return parted(place, visible, "is not the file that QEMU has open", error);
    /* Without its hidden link, only the visible name tells which file it is. */
    if (!place->opened_by_name && (!vf_view_opened(view, current, &opened) || !opened.read_write))
        return parted(place, visible, "is not the file that QEMU has open", error);
    place->path = VF_STEAL(visible);
    place->inode = current;
    return true;
}

/* Nobody lets us see it, or not from here. What passes, such as a lack of descriptors, is no reason
 * for launchers to be changed. */
static bool
is_for_good(int cause)
{
    return cause == EACCES || cause == EPERM || cause == ENOENT || cause == ESRCH;
}

static bool
place_find(const struct vf_view *view, const char *file, const char *format,
           const char *overlay_folder, struct vf_place *place, struct vmfrost_error *error)
{
    struct vf_opened opened;
    struct stat about;

    if (!view->pid)
        return place_unseen(file, overlay_folder, place, error);

    VF_AUTO_FREE char *absolute = make_absolute(view->pid, file);
    bool found = absolute && look_for(view, absolute, &about);

    if (!found && is_protocol(file)) {
        place->path = portable_name(view->pid, file);
        if (!place->path)
            return is_relative(file, error);
        return place_new_file(view, place, vf_strdup("QEMU does not open it by the name of a file"),
                              overlay_folder, NULL, error);
    }
    if (!absolute)
        return is_relative(file, error);
    if (vf_starts_with(absolute, "/dev/fdset/")) {
        place->path = vf_strdup(file);
        return place_new_file(view, place,
                              vf_strdup("QEMU was handed it as a descriptor, without a name"),
                              overlay_folder, NULL, error);
    }
    if (found && !S_ISREG(about.st_mode)) {
        /* Its name is kept as it is: /dev/vg/web says what /dev/dm-3 does not. */
        place->path = vf_strdup(absolute);
        place->opened_by_name = S_ISBLK(about.st_mode) &&
                                find_opened(view, place->inode, about.st_rdev, &opened) &&
                                (opened.read_only || opened.read_write);
        return place_new_file(view, place, vf_strdup("it is a device, which cannot be renamed"),
                              overlay_folder, NULL, error);
    }
    if (view->error && !is_for_good(view->error)) {
        vf_fail(error, VMFROST_FAILED, "what QEMU (pid %d) has open cannot be seen: %s",
                (int)view->pid, strerror(view->error));
        return vf_hint(error, "see to that, and try again");
    }
    if (view->error) {
        char *why = vf_printf("what QEMU has open cannot be seen: %s", strerror(view->error));
        VF_AUTO_FREE char *folder = vf_folder_of(absolute);

        place->path = vf_strdup(absolute);
        return place_new_file(&unseen, place, why, overlay_folder, folder, error);
    }
    if (view->elsewhere) {
        VF_AUTO_FREE char *folder = shared_folder_of(view, absolute);

        place->path = vf_strdup(absolute);
        if (!found || !vf_view_opened(view, inode_in(&about), &opened) ||
            !(opened.read_only || opened.read_write))
            return parted(place, absolute, "is not the file that QEMU has open, as QEMU sees it",
                          error);
        place->inode = inode_in(&about);
        place->opened_by_name = true;
        return place_new_file(view, place,
                              vf_strdup("QEMU runs below another root or in another mount "
                                        "namespace"),
                              overlay_folder, folder, error);
    }
    if (!found && *file != '/')
        return lost_its_folder(place, file, absolute, error);
    return find_visible(view, absolute, place, error) &&
           place_file(view, absolute, format, overlay_folder, place, error);
}

bool
vf_place_find(const struct vf_view *view, const char *file, const char *format,
              const char *overlay_folder, struct vf_place *place, struct vmfrost_error *error)
{
    memset(place, 0, sizeof *place);
    if (place_find(view, file, format, overlay_folder, place, error))
        return true;
    bool has_parted = place->parted;
    char *path = VF_STEAL(place->path);

    vf_place_release(place);
    place->parted = has_parted;
    place->path = path;
    return false;
}

void
vf_place_release(struct vf_place *place)
{
    free(place->why);
    free(place->path);
    free(place->folder);
    free(place->link);
    memset(place, 0, sizeof *place);
}
