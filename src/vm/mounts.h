/* SPDX-License-Identifier: MIT
 *
 * Which of the guest's file systems are frozen: those on disks that are cut, or what the user says.
 *
 * A pure function from what the agent says (guest-get-fsinfo) and where QEMU has each disk. The
 * guest is not trusted: with a lie it can only keep its own file systems from being frozen. Where a
 * file system cannot be assigned to QEMU's disks beyond doubt, all are frozen.
 */
#ifndef VF_VM_MOUNTS_H
#define VF_VM_MOUNTS_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/mountlist.h"

/* How a disk is found behind its PCI device. */
enum vf_attachment {
    VF_ATTACHED_DIRECTLY, /* it is that device: virtio-blk, NVMe */
    VF_ATTACHED_SCSI,
    VF_ATTACHED_IDE, /* SATA as well */
};

/* Where QEMU has a disk. */
struct vf_mounted_disk {
    const char *name;
    bool cut;
    const char *serial;          /* as the launcher gave it; NULL: none */
    bool placed;                 /* the rest is known; else it may be anywhere */
    int64_t bus, slot, function; /* of the PCI device */
    enum vf_attachment attachment;
    int64_t target, lun; /* SCSI */
    int64_t port, unit;  /* IDE: number of the bus, and 0 or 1 on it */
};

struct vf_mounts {
    struct json_object *points; /* array: what to freeze; NULL: everything */
    char *why;     /* everything is frozen, though not all of it was asked for; NULL otherwise */
    char *partial; /* a sentence: of the disks that are cut not everything is frozen; or NULL */
    int64_t least; /* so many file systems are going to be frozen, if nothing is wrong */
};

/* `fsinfo` is the agent's answer, and hostile. */
void vf_mounts_choose(const struct vf_mountlist *wish, const struct vf_mounted_disk *disks,
                      size_t count, struct json_object *fsinfo, struct vf_mounts *mounts);
void vf_mounts_release(struct vf_mounts *mounts);

#endif
