/* SPDX-License-Identifier: MIT
 *
 * Joining two images of a disk, one of which builds on the other, so that a snapshot between them
 * can go: for every case but that of a running VM's current image going down into the one below
 * it, which is merge.c's.
 */
#ifndef VF_FLOWS_GRAFT_H
#define VF_FLOWS_GRAFT_H

#include "flows/flow.h"

enum vf_graft_way {
    VF_GRAFT_DOWN, /* what the upper image holds is written into the lower one, which takes over its
                      name (block-commit) */
    VF_GRAFT_UP,   /* what the lower image holds is written into the upper one, unless that has its
                      own already (block-stream) */
};

struct vf_graft {
    enum vf_graft_way way;
    size_t cut;          /* index of the disk in flow->cuts */
    char *upper, *lower; /* visible names, absolute */
    struct vf_inode upper_inode, lower_inode;
    char *lower_format;
    char *owner; /* the snapshot whose sealed image `upper` is; NULL: it is the current one */
    char *below; /* UP: backing string that the upper's header gets, if anything is below; else NULL
                  */
    char *over;  /* DOWN, with an image above the upper one in QEMU's chain: its visible name */
    char *over_owner;   /* ... and the snapshot whose sealed image it is; NULL: the current one */
    char *over_backing; /* ... and the backing string of its header, which stays as it is */
    char *root;         /* node of the disk's current image; NULL: opened for this graft alone */
    char *root_device;  /* ... or the filter above it */
    char *root_file;    /* ... and its visible name */
    size_t depth;       /* of the upper image below `root` */
    size_t length;      /* of the chain from `root` down, in images */
    int64_t bytes;      /* to be written, about */
    bool joined;        /* DOWN: QEMU has done its part already, and has the upper one no more */
    char *leftover, *leftover_file; /* nodes of the launcher's for the image that goes, and for its
                                       file: QEMU does not remove them by itself; NULL: none */
};

void vf_graft_release(struct vf_graft *graft);

/* choose.c: decides for each of flow->cuts what has to be done so that its sealed image can go:
 * flow->grafts, and which cuts are merge.c's (those are not `elsewhere`). False with the refusal;
 * nothing was changed. */
bool vf_choose_grafts(struct vf_flow *flow);

/* Another visible name of the image that the cut has sealed: all of the snapshot is in that
 * already, and only its own name is left. Owned by the caller; NULL: none. */
char *vf_joined_name(const struct vf_flow *flow, const struct vf_cut *cut,
                     struct json_object *records);

/* graft.c */
/* Does all of flow->grafts, one after the other. Started again it goes on where it was. */
void vf_step_graft(struct vf_flow *flow);
/* After a deletion that was interrupted: removes the second names that its grafts may have left,
 * and tells records of images that were written to. */
bool vf_graft_sweep(struct vf_flow *flow);
/* A node of the launcher's that they have left, for an image that is joined; borrowed; NULL: none.
 */
const char *vf_graft_leftover(const struct vf_flow *flow);
/* The same for those records after a deletion of this process that failed. */
bool vf_graft_failed(struct vf_flow *flow);

/* side.c: images that are in no chain of the running QEMU (or of the daemon of a stopped VM). */
/* Opens the upper image of the graft alone, with all that it builds on, as node "vfg"; from then on
 * vf_ask() asks the daemon that has it. `fn` is called then; the step has ended if that fails. */
void vf_side_open(struct vf_flow *flow, const struct vf_graft *graft,
                  void (*fn)(struct vf_flow *flow));
/* Closes it again. */
void vf_side_close(struct vf_flow *flow, void (*fn)(struct vf_flow *flow));
/* Ends a daemon of its own, if there is one; vf_ask() asks the VM's QEMU again. */
void vf_side_leave(struct vf_flow *flow);
#define VF_SIDE_NODE "vfg"

#endif
