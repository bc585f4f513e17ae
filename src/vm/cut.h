/* SPDX-License-Identifier: MIT
 *
 * One disk of one snapshot: the nodes and names of its cut, in memory, in the journal and in the
 * record. Whoever has this can finish the cut, undo it, or merge it back, after any crash.
 */
#ifndef VF_VM_CUT_H
#define VF_VM_CUT_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "vm/names.h"
#include "vm/plan.h"

struct vf_cut {
    char *name;              /* of the disk, for people */
    char *node;              /* the base: the node that is cut */
    char *overlay_node;      /* the overlay's node */
    char *overlay_file_node; /* of an overlay that the launcher opened with -blockdev: the node that
                                it made for its file, and that goes with it; else NULL */
    char *filter;            /* the device's own node where that is a filter above; NULL: none */
    char *format;            /* of the base, as it stands in the overlay's header */
    char *base_file;         /* the base's file name as QEMU knows it */
    int64_t size;            /* virtual, in bytes */
    char *storage_class;     /* NULL: none; only while the snapshot is taken */
    enum vf_naming naming;
    char *why; /* NEW_FILE: why; else NULL */
    struct vf_names names;
    struct vf_inode base;    /* 0, 0: no file */
    struct vf_inode overlay; /* 0, 0: not created yet */
    int64_t sealed_ns;  /* mtime of the sealed image since QEMU has it read-only; 0: not known */
    bool own_file_node; /* the launcher may have made a node of its own for the base's file: then it
                           stays open for writing when the base does not */
    bool writeback, direct, no_flush;
    bool elsewhere; /* in a deletion's journal: not to be merged by merge.c (see choose.c) */

    /* Of a restore the overlay does not build on the base, which is only put aside, but on an image
     * of a snapshot: else NULL and 0. */
    char *below, *below_format;
    struct vf_inode below_inode; /* 0, 0: no file */
    int64_t below_size;          /* virtual, in bytes; the overlay's, too */

    /* Found out again each time, and not kept: */
    bool absent;    /* the disk is not plugged in now */
    bool merged;    /* all of the overlay is in the base, and the disk runs on that: proved */
    bool unrelated; /* deletion: nothing of the VM's has ever been seen to build on the base */
};

/* A cut of `disk`, which lies at `place`, for a snapshot. `index` makes node names unique. */
void vf_cut_make(struct vf_cut *cut, const struct vf_disk *disk, const struct vf_place *place,
                 const char *snapshot, const char *id, size_t index);
void vf_cut_release(struct vf_cut *cut);

struct json_object *vf_cut_json(const struct vf_cut *cut);
/* False if the document is not what vf_cut_json() makes; `cut` is released then. */
bool vf_cut_parse(struct vf_cut *cut, struct json_object *document);

/* Takes the facts about the sealed image (inode, virtual size, mtime) from the file that has its
 * name now: for whoever has just sealed it, or put another state into it on purpose. Leaves them as
 * they were if there is no regular file, or it cannot be read. */
void vf_cut_refresh(struct vf_cut *cut);

/* The path of the disk's newest image before the cut, and after it. */
static inline const char *
vf_cut_path_before(const struct vf_cut *cut)
{
    return cut->names.top ? cut->names.top : cut->names.sealed;
}

static inline const char *
vf_cut_path_after(const struct vf_cut *cut)
{
    return cut->names.top ? cut->names.top : cut->names.overlay;
}

/* What stands in the overlay's header. */
static inline const char *
vf_cut_backing_format(const struct vf_cut *cut)
{
    return cut->below ? cut->below_format : cut->format;
}

static inline int64_t
vf_cut_overlay_size(const struct vf_cut *cut)
{
    return cut->below ? cut->below_size : cut->size;
}

/* The overlay holds something of the guest's, or cannot be read: then it must not be thrown away.
 */
bool vf_overlay_has_data(const struct vf_cut *cut);

/* Some name of the disk's leads to this inode, the overlay's. When the last of them is gone, the
 * number may be that of any new file. */
bool vf_cut_has_name_of(const struct vf_cut *cut, struct vf_inode overlay);

/* Looks at the overlay's own name. */
static inline struct vf_inode
vf_cut_overlay_inode(const struct vf_cut *cut)
{
    return vf_inode_of(cut->names.overlay);
}

#endif
