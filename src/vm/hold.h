/* SPDX-License-Identifier: MIT
 *
 * Images that are to stay as they are while somebody reads them: held by the lock that a QEMU takes
 * which lets nobody write. So QEMU itself refuses whoever wants to, for as long as the descriptor
 * is open. QEMU's own programs do not take it for raw images.
 */
#ifndef VF_VM_HOLD_H
#define VF_VM_HOLD_H

#include <stdbool.h>

#include "util/error.h"
#include "vm/names.h"

struct vf_hold {
    int fd;                /* -1: none */
    struct vf_inode inode; /* of a regular file; else 0, 0 */
};

/* A regular file or a block device. False with the reason if it cannot be read, or if a QEMU may
 * write to it now. Where locks cannot be had, nobody has one. */
bool vf_hold_take(struct vf_hold *hold, const char *path, struct vmfrost_error *error);
void vf_hold_release(struct vf_hold *hold);

#endif
