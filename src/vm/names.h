/* SPDX-License-Identifier: MIT
 *
 * The names of a disk's images in its folder, and how they change.
 *
 *     web.qcow2            what the launcher opens: always the current state
 *     web@before.qcow2     snapshot "before"
 *     .web.qcow2.<id>      hidden link to the overlay, under which the running QEMU knows it
 *     .web.qcow2.<id>.next the overlay's second link, until it is renamed over web.qcow2
 *
 * Where that cannot be had (raw images, block devices, network disks, no hard links, a name that
 * does not lead to what QEMU has open), the base keeps its name and the overlay gets a new one:
 *
 *     disk.raw             the snapshot
 *     disk+before.qcow2    the current state: the launcher has to change
 *
 * Guarantees: no function here replaces or removes a file without having compared its inode
 * with the one that it should be; nothing is ever truncated; each function leaves the folder
 * as it was if it fails. QEMU's own view counts: a file is found through /proc/PID/cwd and
 * /proc/PID/root, and compared with the descriptors that QEMU has open.
 */
#ifndef VF_VM_NAMES_H
#define VF_VM_NAMES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"
#include "util/log.h"

struct vf_inode {
    uint64_t device, number; /* 0, 0: not known */
};

/* How a process has a file open. */
struct vf_opened {
    bool read_only, read_write;
    bool may_write; /* open for writing, and locked as QEMU locks an image that it may write to. A
                       file node of the launcher's own stays read_write when its image is sealed:
                       then only this tells. Always false where QEMU does not lock (locking=off). */
};
/* How a process sees files: read once for all questions of one moment, because each reading looks
 * at every descriptor that it has. */
struct vf_view {
    pid_t pid;      /* 0: not known */
    bool elsewhere; /* another mount namespace, or below another root folder */
    int error;      /* why its descriptors cannot be seen, an errno; 0: they can */
    struct vf_descriptor *descriptors; /* of files and block devices */
    size_t count;
};
/* The process lives in another mount namespace, or below another root folder; true also if that
 * cannot be seen. */
bool vf_sees_otherwise(pid_t pid);
/* Of pid 0 nothing is read. */
void vf_view_read(struct vf_view *view, pid_t pid);
void vf_view_release(struct vf_view *view);
/* From the descriptors that it had, as they are now. False if they cannot be seen. */
bool vf_view_opened(const struct vf_view *view, struct vf_inode inode, struct vf_opened *opened_r);

enum vf_naming { VF_NAMING_FLIP, VF_NAMING_NEW_FILE };

/* Where an image is. */
struct vf_place {
    enum vf_naming naming;
    char *why;             /* NEW_FILE: why names cannot be flipped, for people; else NULL */
    char *path;            /* FLIP and regular files: absolute path of the real file (symbolic links
                              resolved) under its visible name: for a file that QEMU opened by a
                              hidden link, the visible name that leads to the same inode now;
                              NEW_FILE of something else: the name as QEMU knows it */
    char *folder;          /* for the overlay: absolute */
    struct vf_inode inode; /* of the file; 0, 0 for what is no file */
    bool opened_by_name;   /* QEMU's name for it leads to this inode now */
    char *link;  /* the launcher's name, absolute, if it is a symbolic link in another folder and
                    QEMU opened it by that name; else NULL */
    bool linked; /* it is one, by whatever name QEMU opened it: QEMU looks for a relative backing
                    file there, so that headers need absolute ones */
    bool parted; /* only after a failure: the name does not lead to what QEMU has open */
};

/* Finds the image that the QEMU of `view` (pid 0: not known, e.g. TCP; then always NEW_FILE) has
 * open as `file` in `format`. `overlay_folder` (may be NULL) is where overlays of what has no
 * folder of its own go, and of all NEW_FILE disks if it is given. False with the reason if
 * no overlay can be placed: the disk then cannot be snapshotted, and `place` has its path, if that
 * is known, and is to be released all the same. Checks that hard links work in the folder by
 * looking at the file system's type or trying in it with a temporary hidden name. */
bool vf_place_find(const struct vf_view *view, const char *file, const char *format,
                   const char *overlay_folder, struct vf_place *place, struct vmfrost_error *error);
void vf_place_release(struct vf_place *place);

/* Names for one cut. All absolute, all owned by the caller of release. */
struct vf_names {
    char *top;     /* FLIP: web.qcow2. NEW_FILE: NULL */
    char *sealed;  /* FLIP: web@NAME.qcow2. NEW_FILE: the base's own path or name */
    char *overlay; /* FLIP: .web.qcow2.<id>. NEW_FILE: the new file */
    char *next;    /* FLIP: .web.qcow2.<id>.next. NEW_FILE: NULL */
    char *backing; /* the string for the overlay's header: relative to its folder where the base
                      lies in the same folder, else absolute or QEMU's own name */
};
void vf_names_make(const struct vf_place *place, const char *snapshot, const char *id,
                   struct vf_names *names);
void vf_names_release(struct vf_names *names);
/* The name of the sealed image as FLIP makes it: "web.qcow2", "before" -> "web@before.qcow2".
 * Owned by the caller. */
char *vf_sealed_name(const char *top, const char *snapshot);

static inline bool
vf_inode_known(struct vf_inode inode)
{
    return inode.number != 0;
}
/* Both are known, and the same file. */
bool vf_inode_equal(struct vf_inode a, struct vf_inode b);
/* Of what `path` itself is (symbolic links not followed); 0, 0 if there is nothing. */
struct vf_inode vf_inode_of(const char *path);

/* "web.qcow2" of ".web.qcow2.0123456789abcdef", the name of a hidden link. Owned by the caller;
 * NULL for all other names. */
char *vf_visible_name(const char *name);
/* The name is such a one, or that of its second link. */
bool vf_is_hidden_link(const char *name);

/* The name is the only one of a regular file: whoever removes or replaces it loses the file. */
bool vf_is_only_name(const char *path);

/* A file in `folder` that is `inode`: its path, if possible a visible one; NULL if there is none.
 * Owned by the caller. */
char *vf_find_inode(const char *folder, struct vf_inode inode);
/* Another visible name that `inode`, which `path` leads to, has in the same folder; NULL if it has
 * none. Owned by the caller. */
char *vf_find_other_name(const char *path, struct vf_inode inode);

/* None of the names that a cut creates exists yet, and all can be had (length of names, of the
 * header's string); false with the one that is in the way. */
bool vf_names_free(const struct vf_names *names, struct vmfrost_error *error);

/* One more name `to` for the file `from`, which must be `inode`; `to` must not exist. */
bool vf_link(const char *from, const char *to, struct vf_inode inode, const struct vf_log *log,
             struct vmfrost_error *error);
/* Renames `from`, which must be `inode`, over `to`, which must be `replaced` (0, 0: nothing) or
 * `inode`. Two system calls to look and one to rename; no fsync: this one is made inside the frozen
 * window. If `to` is another link of `inode` already, only `from` is removed (rename(2) would leave
 * both), if it still is there. */
bool vf_flip(const char *from, struct vf_inode inode, const char *to, struct vf_inode replaced,
             const struct vf_log *log, struct vmfrost_error *error);
/* Exchanges the two names, at one instant: afterwards `to` leads to `inode` and `from` to
 * `replaced`. Where the file system cannot do that, `from` is renamed over `to` as by vf_flip(). */
bool vf_exchange(const char *from, struct vf_inode inode, const char *to, struct vf_inode replaced,
                 const struct vf_log *log, struct vmfrost_error *error);
/* An empty file of ours (mode 0600) of that name, opened for reading and writing; nothing must have
 * the name, be it a link that leads nowhere. -1 with errno. */
int vf_create(const char *path);
/* Removes `path` if it is `inode`. True if it is gone (also if it never was there); false with the
 * reason if something else has that name. */
bool vf_unlink(const char *path, struct vf_inode inode, const struct vf_log *log,
               struct vmfrost_error *error);

/* Looks at /proc/PID/fd and fdinfo. False if the process cannot be looked at. */
bool vf_process_opened(pid_t pid, struct vf_inode inode, struct vf_opened *opened_r);
/* The process has a file open for writing that it found under the name `file`, which was removed
 * since. `nameless_r`: it has no other name either, so that it goes with the process. */
bool vf_process_removed(pid_t pid, const char *file, struct vf_inode *inode_r, bool *nameless_r);

#endif
