/* SPDX-License-Identifier: MIT
 *
 * The marks of groups: STATE/groups/ID.json is there from the moment that all members of group ID
 * have their snapshot, and until none of them has anything left to do for it.
 *
 * Guarantees: a mark is there, whole and durable, or it is not; it is not removed while a journal
 * names its group.
 */
#ifndef VF_STORE_GROUPS_H
#define VF_STORE_GROUPS_H

#include <json-c/json.h>
#include <stdbool.h>

#include "store/store.h"

/* False: it is not there, as far as that can be brought about. */
bool vf_group_mark(struct vf_store *store, const char *id, struct json_object *mark,
                   struct vmfrost_error *error);
/* What cannot be looked at counts as there. */
bool vf_group_is_marked(const struct vf_store *store, const char *id);
/* NULL: it is not there, or cannot be read. Owned by the caller. */
struct json_object *vf_group_mark_load(const struct vf_store *store, const char *id);
/* Removes the marks that no journal names in its first line ("group"). */
void vf_group_marks_sweep(struct vf_store *store);

#endif
