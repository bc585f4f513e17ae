/* SPDX-License-Identifier: MIT
 *
 * Using a snapshot's images for something new beside the VM: what export and clone have in common.
 *
 * The work is done by a storage daemon of its own, so that neither the VM nor its QEMU is asked for
 * anything. What is made gets its name only when it is whole: util/newfile.h.
 */
#ifndef VF_FLOWS_USING_H
#define VF_FLOWS_USING_H

#include "flows/flow.h"
#include "util/newfile.h"
#include "vm/hold.h"

/* One disk, and the file that is made of it. */
struct vf_copy {
    size_t cut; /* index in flow->cuts */
    char *node; /* of the snapshot's image, in the daemon */
    struct vf_newfile file;
    int64_t bytes;     /* that it may take up, about */
    char checksum[65]; /* "": none */
};

struct vf_using {
    /* The caller fills in (strings are owned): */
    char *dest;
    char *disk; /* NULL: all */
    const char *extension;
    bool raw, compress;
    bool sums; /* files beside it get the names with ".sha256" behind */

    /* The steps' own: */
    struct vf_copy *copies;
    size_t count;
    struct vf_hold *holds; /* on the images, with all that they build on */
    size_t hold_count;
    char *folder; /* in which the files go; NULL: `dest` is the name of the one file */
    bool made_folder;
    ev_timer look; /* until somebody looks again how far a program is */
};

/* Lives as long as the flow. */
struct vf_using *vf_using_new(const char *dest, const char *disk);
void vf_using_release(struct vf_flow *flow);

static inline struct vf_copy *
vf_using_current(const struct vf_flow *flow)
{
    return &flow->using->copies[flow->at];
}

/* Steps. */

/* Finds the snapshot's images and holds them, and says where the files go. Changes nothing. */
void vf_step_using_find(struct vf_flow *flow);
/* Starts the daemon; then opens the images for reading, each as the node of its copy, and sees that
 * they are those that are held. */
void vf_step_using_open(struct vf_flow *flow);
/* Creates the files, empty, under their temporary names. Owes VF_OWE_PARTS. */
void vf_step_using_create(struct vf_flow *flow);
/* Removes them. Pays VF_OWE_PARTS. */
void vf_step_using_undo(struct vf_flow *flow);

/* The file, for other programs, until it is released. Whoever may write to the folder can turn its
 * name while they open it. Owned by the caller. */
char *vf_copy_name(const struct vf_copy *copy);

/* Ends the daemon, and lets the images go. */
void vf_using_let_go(struct vf_flow *flow);

/* The file gets its name; false with the error. The daemon has closed it. */
bool vf_using_publish(struct vf_flow *flow, struct vf_copy *copy);

/* An array for the document: {"disk", "path", "format", "size", "allocated", "sha256"}. Owned by
 * the caller. */
struct json_object *vf_using_files_json(const struct vf_flow *flow);

#endif
