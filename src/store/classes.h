/* SPDX-License-Identifier: MIT
 *
 * Storage classes: what is to become of disks by where they lie. STATE/storage.json, an array:
 *
 *     [{"name", "match": {"path", "protocol", "format"}, "snapshot": "yes" or "no",
 * "overlayFolder", "overlayOptions": {"clusterSize", "extendedL2", "preallocation"}, "minFree"}]
 *
 * A disk is of the first class of which everything in "match" fits; an empty "match" fits all.
 * docs/settings.md tells users what each member means.
 */
#ifndef VF_STORE_CLASSES_H
#define VF_STORE_CLASSES_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store/store.h"

struct vf_class {
    char *name;
    char *path;           /* a glob, in which '*' also stands for slashes; NULL: any */
    char *protocol;       /* QEMU's driver: "file", "host_device", "nbd", ...; NULL: any */
    char *format;         /* "qcow2", "raw", ...; NULL: any */
    bool left_out;        /* "snapshot": "no" */
    char *overlay_folder; /* absolute; NULL: the VM's */
    int64_t cluster_size; /* 0: QEMU's own */
    bool extended_l2;
    char *preallocation; /* "metadata", "falloc", "full"; NULL: off */
    int64_t min_free;    /* in bytes; -1: not set */
};

struct vf_classes {
    struct vf_class *list;
    size_t count;
};

/* None if there is no file. False with what is wrong with it: `classes` is empty then. */
bool vf_classes_load(const struct vf_store *store, struct vf_classes *classes,
                     struct vmfrost_error *error);
void vf_classes_release(struct vf_classes *classes);

/* The class of a disk; borrowed; NULL: none. `path` is the image's visible name or, for what is no
 * file, QEMU's words. */
const struct vf_class *vf_class_of(const struct vf_classes *classes, const char *path,
                                   const char *protocol, const char *format);
const struct vf_class *vf_class_named(const struct vf_classes *classes, const char *name);

/* See vmfrost_storage() and the functions below it. The array is owned by the caller; NULL with
 * an error. */
struct json_object *vf_classes_json(const struct vf_store *store, struct vmfrost_error *error);
bool vf_class_set(struct vf_store *store, const char *name, struct json_object *changes,
                  struct vmfrost_error *error);
bool vf_class_remove(struct vf_store *store, const char *name, struct vmfrost_error *error);

#endif
