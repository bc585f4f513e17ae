/* SPDX-License-Identifier: MIT */
#include "flows/clones.h"

#include <string.h>

#include "util/json.h"

enum vf_builds
vf_clone_builds_on(struct json_object *clone, const char *sealed)
{
    const char *path = vf_json_string(clone, "path");

    return path && *path == '/' ? vf_builds_on(path, sealed) : VF_BUILDS_PERHAPS;
}

static bool
is_linked(struct json_object *record, struct json_object *clone)
{
    struct json_object *cuts = vf_json_array(record, "cuts");

    for (size_t i = 0; i < vf_json_length(cuts); i++) {
        const char *sealed = vf_json_string(vf_json_at(cuts, i), "sealed");

        if (!sealed)
            return true;
        switch (vf_clone_builds_on(clone, sealed)) {
        case VF_BUILDS_ON:
        case VF_BUILDS_PERHAPS:
            return true;
        case VF_BUILDS_NOT:
            break;
        }
    }
    return vf_json_length(cuts) == 0;
}

void
vf_clones_settle(struct json_object *record)
{
    struct json_object *clones = vf_json_array(record, "clones"), *linked;

    if (!clones)
        return;
    linked = vf_json_new_array();
    for (size_t i = 0; i < vf_json_length(clones); i++)
        if (is_linked(record, vf_json_at(clones, i)))
            vf_json_append(linked, json_object_get(vf_json_at(clones, i)));
    vf_json_add(record, "clones", linked);
}
