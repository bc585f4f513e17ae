/* SPDX-License-Identifier: MIT
 *
 * What is known of a VM's disks while it is not running: STATE/vms/NAME/disks.json, which says what
 * was seen the last time that its QEMU was asked, and the setting "disks", by which a user tells of
 * a VM that was never seen.
 *
 *     {"seen": RFC 3339, "disks": [{"name", "file", "link", "format", "size", "naming", "device",
 * "eligible", "reason", "message"}]}
 *
 * "file" is the absolute path of the image under its visible name or, for what is no file, QEMU's
 * own words. An eligible disk has all of file, format, size and naming ("flip" or "new-file"); of
 * one that is left out, what is known of them, and a reason. "device" is the id or the QOM path of
 * its device, if it has one. "link" is the launcher's own name for the image, where that is a
 * symbolic link in another folder.
 */
#ifndef VF_STORE_DISKS_H
#define VF_STORE_DISKS_H

#include <json-c/json.h>
#include <stdbool.h>

#include "store/store.h"

/* What was seen last. NULL without an error: nothing was. NULL with one that names the file: it is
 * damaged. Owned by the caller. */
struct json_object *vf_disks_load(const struct vf_vm *vm, struct vmfrost_error *error);

/* Replaces it at one instant. The VM's folder has to be there, its lock need not be held. */
bool vf_disks_save(const struct vf_vm *vm, struct json_object *disks, struct vmfrost_error *error);

/* The declared disks if there are any, else those seen last; errors as of vf_disks_load(). Declared
 * ones are {"declared": true, "disks": [{"name", "file", "link", "format", "eligible": true}]}.
 * Owned by the caller. */
struct json_object *vf_disks_known(const struct vf_vm *vm, struct vmfrost_error *error);

#endif
