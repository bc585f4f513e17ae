/* SPDX-License-Identifier: MIT
 *
 * The records of a VM's snapshots: STATE/vms/NAME/records/SNAPSHOT.json.
 *
 * Guarantees: a record has its old or its new content after any crash; what was saved can be
 * loaded; a damaged record hides no other and is never taken for a good one.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/private.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

enum { RECORD_MOST = 1024 * 1024 };

/* Owned by the caller; NULL if it is no name. */
static char *
record_path(const struct vf_vm *vm, const char *snapshot)
{
    return vf_valid_name(snapshot) ? vf_printf("%s/records/%s.json", vm->folder, snapshot) : NULL;
}

static bool
fail_name(const char *snapshot, struct vmfrost_error *error)
{
    vf_fail(error, VMFROST_USAGE, "\"%s\" cannot be the name of a snapshot", snapshot);
    return vf_hint(error, "A name has 1 to 64 letters, digits, and . _ + - and begins with "
                          "neither a dot nor a dash.");
}

/* What is wrong with a record; NULL if nothing. */
static const char *
fault(struct json_object *record, const char *snapshot)
{
    const char *name = vf_json_string(record, "name");

    if (!name || strcmp(name, snapshot) != 0)
        return "its \"name\" is not that of the file";
    if (!vf_json_string(record, "phase"))
        return "\"phase\" is missing";
    if (!vf_json_string(record, "startTime") && !vf_json_string(record, "creationTime"))
        return "\"startTime\" is missing";
    return NULL;
}

bool
vf_record_save(const struct vf_vm *vm, struct json_object *record, struct vmfrost_error *error)
{
    const char *name = vf_json_string(record, "name");
    VF_AUTO_FREE char *path = name ? record_path(vm, name) : NULL;
    VF_AUTO_FREE char *records = vf_printf("%s/records", vm->folder);

    if (!path)
        return fail_name(name ? name : "", error);
    const char *why = fault(record, name);

    if (why)
        return vf_fail(error, VMFROST_FAILED, "cannot write %s: %s", path, why);
    return vf_folder_make(records, error) && vf_document_save(path, record, RECORD_MOST, error);
}

/* True with NULL: there is none. Whatever the VM was called when it was written, by the path of its
 * socket perhaps, it is told by the name that it has now. */
static bool
load(const struct vf_vm *vm, const char *path, const char *snapshot, struct json_object **record_r,
     struct vmfrost_error *error)
{
    VF_AUTO_JSON struct json_object *record = NULL;

    *record_r = NULL;
    if (!vf_document_load(path, RECORD_MOST, &record, error))
        return false;
    const char *why = record ? fault(record, snapshot) : NULL;

    if (why) {
        vf_fail(error, VMFROST_FAILED, "%s is damaged: %s", path, why);
        return vf_hint(error, "Look at it, and repair it or move it away.");
    }
    if (record)
        vf_json_add_string(record, "vm", vm->name);
    *record_r = VF_STEAL(record);
    return true;
}

struct json_object *
vf_record_load(const struct vf_vm *vm, const char *snapshot, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = record_path(vm, snapshot);
    VF_CLEANUP(vf_list_release) struct vf_list names = {NULL, 0};

    if (!path) {
        fail_name(snapshot, error);
        return NULL;
    }
    struct json_object *record = NULL;

    if (!load(vm, path, snapshot, &record, error) || record || !vf_record_names(vm, &names, error))
        return record;
    VF_AUTO_FREE char *near = vf_list_near(&names, snapshot);

    if (near)
        vf_fail(error, VMFROST_FAILED, "%s has no snapshot \"%s\"; it has %s", vm->name, snapshot,
                near);
    else
        vf_fail(error, VMFROST_FAILED, "%s has no snapshot \"%s\"", vm->name, snapshot);
    vf_hint(error, "To see all: vmfrost list %s", vm->name);
    return NULL;
}

bool
vf_record_exists(const struct vf_vm *vm, const char *snapshot)
{
    VF_AUTO_FREE char *path = record_path(vm, snapshot);
    struct stat about;

    return path && lstat(path, &about) == 0;
}

bool
vf_record_remove(const struct vf_vm *vm, const char *snapshot, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = record_path(vm, snapshot);

    if (!path)
        return fail_name(snapshot, error);
    /* One that is gone may be so since an instant, by somebody who was killed before the sync. */
    if ((unlink(path) < 0 && errno != ENOENT) || (vf_sync_folder_of(path) < 0 && errno != ENOENT))
        return vf_fail(error, VMFROST_FAILED, "cannot remove %s: %s", path, strerror(errno));
    return true;
}

bool
vf_record_names(const struct vf_vm *vm, struct vf_list *list, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *records = vf_printf("%s/records", vm->folder);
    VF_CLEANUP(vf_list_release) struct vf_list files = {NULL, 0};

    *list = (struct vf_list){NULL, 0};
    if (!vf_folder_names(records, &files, error))
        return false;
    for (size_t i = 0; i < files.count; i++) {
        char *name = files.names[i];

        if (!vf_ends_with(name, ".json"))
            continue;
        name[strlen(name) - strlen(".json")] = '\0';
        if (vf_valid_name(name))
            vf_list_add(list, name);
    }
    return true;
}

/* "": not known, which comes first: what takes the last for the newest must not get that one. */
static const char *
start_of(struct json_object *record)
{
    const char *start = vf_json_string(record, "startTime");

    if (!start)
        start = vf_json_string(record, "creationTime");
    return start ? start : "";
}

static int
by_age(const void *a, const void *b)
{
    struct json_object *x = *(struct json_object *const *)a;
    struct json_object *y = *(struct json_object *const *)b;
    int64_t x_sequence = 0, y_sequence = 0;
    int order = strcmp(start_of(x), start_of(y));

    if (order != 0)
        return order;
    vf_json_int(x, "sequence", &x_sequence);
    vf_json_int(y, "sequence", &y_sequence);
    if (x_sequence != y_sequence)
        return x_sequence < y_sequence ? -1 : 1;
    return strcmp(vf_json_string(x, "name"), vf_json_string(y, "name"));
}

struct json_object *
vf_record_list(const struct vf_vm *vm, struct vmfrost_error *error)
{
    VF_CLEANUP(vf_list_release) struct vf_list names = {NULL, 0};

    if (!vf_record_names(vm, &names, error))
        return NULL;
    struct json_object *list = vf_json_new_array();

    for (size_t i = 0; i < names.count; i++) {
        VF_AUTO_FREE char *path = record_path(vm, names.names[i]);
        struct vmfrost_error why = {.code = VMFROST_OK};
        struct json_object *record = NULL;

        if (load(vm, path, names.names[i], &record, &why) && !record)
            continue; /* removed since */
        if (!record) {
            record =
                vf_json_strings("name", names.names[i], "vm", vm->name, "phase", "Unknown", NULL);
            vf_json_add(record, "error", vf_json_strings("message", why.text, NULL));
        }
        vf_json_append(list, record);
    }
    json_object_array_sort(list, by_age);
    return list;
}
