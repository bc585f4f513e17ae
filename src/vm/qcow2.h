/* SPDX-License-Identifier: MIT
 *
 * What the header of a qcow2 image says, and an empty one for a new image. Reading is strict: an
 * image may come from a guest's or a stranger's hands. Source: QEMU docs/interop/qcow2.txt.
 */
#ifndef VF_VM_QCOW2_H
#define VF_VM_QCOW2_H

#include <stdbool.h>
#include <stdint.h>

#include "util/error.h"

struct vf_qcow2 {
    int64_t size;         /* virtual, in bytes */
    char *backing;        /* NULL: none */
    char *backing_format; /* NULL: not written */
    bool encrypted, dirty, corrupt, external_data;
    bool
        has_data; /* at least one cluster of the guest's is allocated: some L2 entry is set, or with
                     extended ones, which can be preallocated, some subcluster is. Of an image that
                     QEMU has open, as of its last flush: what is not flushed is nowhere else either
                     when QEMU has gone. True also where looking would take too long: see below */
};

/* So much of L2 tables is looked through: those of 4 TiB in clusters of 64 KiB. */
#define VF_QCOW2_TABLES_MOST (INT64_C(1) << 30)

/* Bytes at the file's end that were written ahead (see below), and that no cluster uses yet; 0 if
 * that cannot be seen. Of an image that QEMU writes to, as of its last flush. */
int64_t vf_qcow2_unused(const char *path);

/* Works while QEMU has the image open (takes no lock). */
bool vf_qcow2_read(const char *path, struct vf_qcow2 *image, struct vmfrost_error *error);
void vf_qcow2_release(struct vf_qcow2 *image);

#define VF_QCOW2_CLUSTER_SIZE (INT64_C(64) << 10) /* what QEMU takes if it is not told */

/* An overlay in which nothing is allocated yet. */
struct vf_qcow2_empty {
    int64_t size;                         /* virtual, in bytes */
    const char *backing, *backing_format; /* as they shall stand in the header */
    int64_t cluster_size;                 /* in bytes, a power of 2 */
    bool extended_l2;
    bool ready; /* for a guest that waits: with L2 tables, unless these would be large, and with
                   room for its first clusters, all of it written; up to 5 MiB */
};

/* Writes it to an empty file; not durable yet. False with errno: ENAMETOOLONG or EFBIG for what
 * does not fit into so small clusters, which QEMU may still be able to make, or what writing failed
 * with.
 */
bool vf_qcow2_write_empty(int fd, const struct vf_qcow2_empty *image);

#endif
