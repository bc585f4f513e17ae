/* SPDX-License-Identifier: MIT
 *
 * What pruning a VM would do, by what the store knows: no QEMU is asked, nothing is changed.
 */
#ifndef VF_FLOWS_PRUNE_H
#define VF_FLOWS_PRUNE_H

#include "store/store.h"

/* The document of vmfrost_prune_plan(); `options` is whole, see there. Owned by the caller; NULL
 * with an error. */
struct json_object *vf_prune_plan(struct vf_store *store, const char *name,
                                  const struct vmfrost_prune_options *options,
                                  struct vmfrost_error *error);

#endif
