/* SPDX-License-Identifier: MIT
 *
 * The clones that records tell of: files of the user's that build on a snapshot's images. Records
 * claim, headers decide: one that was removed, or that stands alone by now, is no clone any more.
 */
#ifndef VF_FLOWS_CLONES_H
#define VF_FLOWS_CLONES_H

#include <json-c/json.h>

#include "vm/tree.h"

/* Whether an element of a record's "clones" builds on the image `sealed`; one that cannot be
 * understood is a later vmfrost's. */
enum vf_builds vf_clone_builds_on(struct json_object *clone, const char *sealed);

/* Takes out of the record's "clones" what builds on none of its images any more. */
void vf_clones_settle(struct json_object *record);

#endif
