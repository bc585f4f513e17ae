/* SPDX-License-Identifier: MIT
 *
 * The images of one disk: a tree, because several images can build on the same one.
 *
 * Who builds on whom is read from the images' headers; a record only says which images are a
 * snapshot's. Files are compared by inode, never by name. Headers come from anybody: what they
 * say is followed only to regular files and block devices, each of which is read once, up to
 * VF_TREE_MOST of them, and nothing is ever probed: the format of an image is what a record or the
 * header above it says.
 *
 * Guarantees: following `parent` ends, because a loop is cut where it closes (and told as a
 * problem); an image that cannot be read is in the tree, with its problem.
 */
#ifndef VF_VM_TREE_H
#define VF_VM_TREE_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/error.h"
#include "vm/names.h"

#define VF_NO_IMAGE ((size_t)-1)
#define VF_TREE_MOST 1024 /* images; further ones below are left out, and told as a problem */

enum vf_trouble {
    VF_TROUBLE_NONE,
    VF_TROUBLE_MISSING,    /* nothing has its name */
    VF_TROUBLE_OTHER,      /* what has its name is not the image that was sealed */
    VF_TROUBLE_UNREADABLE, /* it is nothing that QEMU would open; or we may not look at it */
    VF_TROUBLE_DAMAGED,    /* QEMU has marked it as corrupt */
    VF_TROUBLE_LOOP,       /* it builds on itself; or on more images than are looked at */
};

struct vf_image {
    char *path; /* absolute, visible name; of what is no file: its name as QEMU knows it */
    struct vf_inode inode; /* 0,0: missing, or no file */
    char *format;         /* as a record says it is, else as the one above it: "qcow2", "raw"; NULL:
                             nobody says */
    char *backing;        /* string of its header; NULL: none */
    char *backing_format; /* NULL: not written */
    char *backing_path;  /* resolved to an absolute path, where it is a file name; NULL otherwise */
    int64_t size;        /* virtual; 0: not known */
    int64_t allocated;   /* bytes, without unused room at its end; 0 for what is no file */
    int64_t modified_ns; /* mtime; 0 for what is no file */
    char *snapshot;      /* of which snapshot it is the sealed image; NULL: none of ours */
    bool current;        /* what the launcher opens. With a snapshot's name, too: a deletion has
                            merged it already and is not finished, or a launcher has opened the
                            sealed image again */
    bool own;      /* current, or sealed by a snapshot: not a golden base below the first one */
    size_t parent; /* index of its backing file's image; VF_NO_IMAGE: none, or in no tree
                      (then `backing` tells) */
    enum vf_trouble trouble;
    char *problem; /* a sentence for people about that trouble; NULL: none */
    struct {
        struct vf_inode inode; /* 0,0: not known */
        int64_t modified_ns;   /* 0: not known */
        int64_t size;          /* 0: not known */
    } recorded;                /* what its snapshot's record says of it */
};

struct vf_tree {
    char *disk;
    struct vf_image *images;
    size_t count;
    size_t current; /* VF_NO_IMAGE: not known */
};

/* The tree of a disk: its current image, the sealed ones of its snapshots, and what is below
 * them. `records` is the array of the VM's records, oldest first; those without cuts do not count.
 * A cut belongs to the disk if `current` is its visible name (naming "flip") or the file that it
 * made, or if it is one with naming "new-file" of a disk named `disk`.
 *
 * `current` is the image that the launcher opens; NULL: what the newest snapshot of `disk` has made
 * it. False if that cannot be known; images that are missing or damaged are no error. */
bool vf_tree_read(struct json_object *records, const char *disk, const char *current,
                  struct vf_tree *tree, struct vmfrost_error *error);
void vf_tree_release(struct vf_tree *tree);

/* The trees of all disks: first of those of which there is a snapshot, in the order of the newest
 * snapshot's disks. `disks` (may be NULL) is an array of {"name", "file", "format", "eligible"}, as
 * store/disks.h has it: what the launchers of disks with naming "new-file" open, where the records
 * alone would say something else; and eligible disks of which there is no snapshot. */
struct vf_forest {
    struct vf_tree *trees;
    size_t count;
};
void vf_forest_read(struct json_object *records, struct json_object *disks,
                    struct vf_forest *forest);
void vf_forest_release(struct vf_forest *forest);

/* The sealed image of a snapshot; VF_NO_IMAGE if it has none in this tree. */
size_t vf_tree_find_snapshot(const struct vf_tree *tree, const char *snapshot);
/* The image with this inode; VF_NO_IMAGE if there is none. */
size_t vf_tree_find_inode(const struct vf_tree *tree, struct vf_inode inode);
/* The next image below that is a snapshot's; VF_NO_IMAGE if there is none. */
size_t vf_tree_snapshot_below(const struct vf_tree *tree, size_t index);
/* The images that build on `parent`, one after the other: `after` is the one before, VF_NO_IMAGE
 * at first. VF_NO_IMAGE at the end. */
size_t vf_tree_children(const struct vf_tree *tree, size_t parent, size_t after);

/* Of an image that is not in its place: where else in its folder the file lies that the record
 * means, as far as that can be told. NULL: nowhere. Owned by the caller. */
char *vf_image_moved(const struct vf_image *image);

/* A missing image that cannot be said to be so: its record has never seen its file, because QEMU
 * runs on another host. And a tree of which nothing is here. */
bool vf_image_elsewhere(const struct vf_image *image);
bool vf_tree_elsewhere(const struct vf_tree *tree);

/* Some qcow2 file in the image's folder that is none of the tree's images builds on it. Its path,
 * owned by the caller, goes to `path_r`, else NULL. What lies in other folders cannot be known. */
bool vf_tree_outsiders(const struct vf_tree *tree, size_t index, char **path_r);

/* Whether the qcow2 file `upper`, which can be anybody's, builds on the image `lower`, directly or
 * by others in between. */
enum vf_builds {
    VF_BUILDS_NOT, /* also: it is not there any more, or no qcow2 file */
    VF_BUILDS_ON,
    VF_BUILDS_PERHAPS, /* some image of its chain cannot be read */
};
enum vf_builds vf_builds_on(const char *upper, const char *lower);

/* What keeps QEMU from opening an image with all that it builds on, or would hold it up for good (a
 * FIFO), as a sentence for people; NULL: nothing that could be seen. Owned by the caller. */
char *vf_chain_trouble(const char *path, const char *format);

/* The absolute path of a backing file's name in the header of the image `path`, as QEMU finds it;
 * NULL if it is no file's name ("json:", "nbd:"), or relative to QEMU's own folder. Owned by the
 * caller. */
char *vf_backing_path(const char *path, const char *backing);

#endif
