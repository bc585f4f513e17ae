/* SPDX-License-Identifier: MIT
 *
 * What a user says of which of the guest's file systems are to be frozen: "all", "cut", or mount
 * points with commas between them. The setting "freeze" and the option of that name.
 */
#ifndef VF_UTIL_MOUNTLIST_H
#define VF_UTIL_MOUNTLIST_H

#include <json-c/json.h>
#include <stdbool.h>

enum vf_mountlist_base {
    VF_MOUNTS_CUT,   /* those on disks that are cut */
    VF_MOUNTS_ALL,   /* all that the agent knows */
    VF_MOUNTS_NAMED, /* no others than those that are named */
};

struct vf_mountlist {
    enum vf_mountlist_base base;
    struct json_object *with, *without; /* arrays of mount points */
};

#define VF_MOUNTLIST_FORM                                                                          \
    "all, cut, or mount points with commas between them, as in /srv,/home; behind all or cut, or " \
    "alone, -/srv leaves one out"

/* "cut", "all", "all,-/srv", "cut,/etc,-/srv", "-/srv" (of those on disks that are cut),
 * "/srv,/home". Slashes at the end of a path do not matter. False if it is nothing of the kind;
 * `list` is to be released all the same. */
bool vf_mountlist_parse(const char *text, struct vf_mountlist *list);
void vf_mountlist_release(struct vf_mountlist *list);

/* Whether an array of strings has this one. */
bool vf_mountlist_has(struct json_object *points, const char *point);

#endif
