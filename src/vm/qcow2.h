/* SPDX-License-Identifier: MIT
 *
 * What the header of a qcow2 image says. Read-only, and strict: an image may come from a guest's
 * or a stranger's hands. Source: QEMU docs/interop/qcow2.txt.
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
    bool has_data; /* at least one cluster of the guest's is allocated: some L1 entry is set; with
                      extended L2 entries, which alone can be preallocated above a backing file,
                      some subcluster is. True also where looking would take too long: see below */
};

/* So much of L2 tables is looked through: those of 4 TiB in clusters of 64 KiB. */
#define VF_QCOW2_TABLES_MOST (INT64_C(1) << 30)

/* Works while QEMU has the image open (takes no lock). */
bool vf_qcow2_read(const char *path, struct vf_qcow2 *image, struct vmfrost_error *error);
void vf_qcow2_release(struct vf_qcow2 *image);

#endif
