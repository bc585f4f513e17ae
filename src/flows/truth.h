/* SPDX-License-Identifier: MIT
 *
 * Whether a VM's images still are what its records say.
 *
 * A record is written once; what happens to the files afterwards it cannot know. So whoever shows
 * records or a VM's state looks at the files: at names, inodes, times and headers, never at data.
 * Nothing is changed here.
 */
#ifndef VF_FLOWS_TRUTH_H
#define VF_FLOWS_TRUTH_H

#include <json-c/json.h>
#include <stdbool.h>

#include "store/store.h"

struct vf_flow;

/* Completes the records of one VM, as vf_record_list() gives them, for whoever reads them:
 *     "parent": the name of the snapshot whose image this one's builds on; null: none;
 *     "current": whether the VM's present state builds on this one directly;
 *     "readyToUse": false, and the condition "Ready" with a reason, if an image that it needs is
 * not in its place any more;
 *     "clones": only those that still build on it.
 * Never to be saved. */
void vf_truth_complete(const struct vf_vm *vm, struct json_object *records);

/* One record, completed; NULL with the reason, as vf_record_load(). Owned by the caller. */
struct json_object *vf_truth_load(const struct vf_vm *vm, const char *snapshot,
                                  struct vmfrost_error *error);

/* The QEMU of this flow was started before a snapshot of `records` that made `top` the current
 * image under a new name: its launcher has to be changed, as far as anybody knows. */
bool vf_truth_launcher_is_old(const struct vf_flow *flow, struct json_object *records,
                              const char *top);

/* What is wrong: conditions to the array, and a warning for each that says what to do. `settled`:
 * no operation is under way or was interrupted, so that names and images have to be right. */
void vf_truth_tell(struct vf_flow *flow, struct json_object *conditions, bool settled);

#endif
