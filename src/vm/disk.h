/* SPDX-License-Identifier: MIT
 *
 * One disk of a plan: what QEMU's answers say about it, and what by itself speaks against a
 * snapshot of it. For plan.c.
 */
#ifndef VF_VM_DISK_H
#define VF_VM_DISK_H

#include <string.h>

#include "vm/plan.h"

/* Both are there, and the same. */
static inline bool
vf_same(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

/* `words` ends with a NULL. */
static inline bool
vf_among(const char *text, const char *const *words)
{
    for (; *words; words++)
        if (vf_same(text, *words))
            return true;
    return false;
}

/* Fills everything but the reason from `block`, an element of query-block, which may leave it out
 * already for what stands between device and image. `before` has the disks before it. False if
 * QEMU's answers contradict each other; `disk` is to be released all the same. */
bool vf_disk_describe(const struct vf_plan_input *input, struct json_object *block,
                      const struct vf_plan *before, struct vf_disk *disk,
                      struct vmfrost_error *error);
/* Leaves it out if its own nature forbids a snapshot. */
void vf_disk_judge(const struct vf_plan_input *input, struct json_object *block,
                   struct vf_disk *disk);
/* Does nothing to a disk that is left out already: the first reason counts. `why` is owned by this
 * call. */
void vf_disk_leave_out(struct vf_disk *disk, enum vf_reason reason, char *why);

/* "vd0" of "/machine/peripheral/vd0/virtio-backend" and of "vd0"; NULL for a device that the
 * launcher did not name. Owned by the caller. */
char *vf_disk_device_id(const char *qdev);
/* "/machine/peripheral/vd0" of "vd0" and of "/machine/peripheral/vd0/virtio-backend": the device as
 * it was plugged in, not the part of it that has the disk. NULL for no device. Owned by the caller.
 */
char *vf_disk_device_path(const char *qdev);
/* The node in query-named-block-nodes; borrowed; NULL if there is none. */
struct json_object *vf_disk_node(const struct vf_plan_input *input, const char *name);

#endif
