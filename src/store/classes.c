/* SPDX-License-Identifier: MIT
 *
 * Guarantees: storage.json has its old or its new content after any crash and with any number of
 * writers at a time; what is not understood in it is an error that names the file, the class and
 * the member.
 */
#include "store/classes.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

#include "store/private.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

enum { CLASSES_MOST = 256 * 1024 };

/* QEMU's own limits. */
#define CLUSTER_LEAST INT64_C(512)
#define CLUSTER_MOST (INT64_C(2) << 20)
#define CLUSTER_LEAST_EXTENDED INT64_C(16384)

/* Where a class stands, and what its fault counts as. */
struct reader {
    const char *where, *name;
    enum vmfrost_code code;
    struct vmfrost_error *error;
};

static bool __attribute__((format(printf, 2, 3)))
bad(const struct reader *reader, const char *format, ...)
{
    char what[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return vf_fail(reader->error, reader->code, "%s: class \"%s\": %s", reader->where, reader->name,
                   what);
}

/*
 * One class
 */

/* A text that is not empty; false with the fault. */
static bool
read_text(const struct reader *reader, const char *key, struct json_object *value, char **text_r)
{
    const char *text = vf_json_text(value);

    if (!text || !*text || !vf_is_plain(text))
        return bad(reader, "\"%s\" has to be a text in quotes", key);
    *text_r = vf_strdup(text);
    return true;
}

static bool
read_size(const struct reader *reader, const char *key, struct json_object *value, int64_t *size_r)
{
    const char *text = vf_json_text(value);

    if (text && vf_parse_size(text, size_r))
        return true;
    bad(reader, "\"%s\" has to be a size", key);
    return vf_hint(reader->error, "A size is like \"64k\", \"512M\" or \"10GiB\".");
}

static bool
read_match(const struct reader *reader, struct json_object *match, struct vf_class *class)
{
    if (!json_object_is_type(match, json_type_object))
        return bad(reader, "\"match\" has to be an object");
    json_object_object_foreach(match, key, value)
    {
        char **member = strcmp(key, "path") == 0       ? &class->path
                        : strcmp(key, "protocol") == 0 ? &class->protocol
                        : strcmp(key, "format") == 0   ? &class->format
                                                       : NULL;

        if (!member) {
            bad(reader, "nothing can match by \"%s\"", key);
            return vf_hint(reader->error, "\"match\" has path, protocol and format.");
        }
        if (!read_text(reader, key, value, member))
            return false;
    }
    return true;
}

/* What QEMU would refuse, at the moment when somebody wants it. */
static bool
options_fit(const struct reader *reader, const struct vf_class *class)
{
    int64_t size = class->cluster_size;

    if (size && (size & (size - 1) || size < CLUSTER_LEAST || size > CLUSTER_MOST))
        return bad(reader, "\"clusterSize\" has to be a power of two from 512 to 2M");
    if (class->extended_l2 && size && size < CLUSTER_LEAST_EXTENDED)
        return bad(reader, "\"extendedL2\" needs a \"clusterSize\" of at least 16k");
    if (class->preallocation && !class->extended_l2)
        return bad(reader, "\"preallocation\" of an overlay needs \"extendedL2\": true, because "
                           "QEMU can tell what is preallocated from what is written only then");
    return true;
}

static bool
read_preallocation(const struct reader *reader, struct json_object *value, struct vf_class *class)
{
    static const char *const words[] = {"off", "metadata", "falloc", "full"};
    const char *text = vf_json_text(value);

    for (size_t i = 0; text && i < sizeof words / sizeof *words; i++)
        if (strcmp(words[i], text) == 0) {
            class->preallocation = i > 0 ? vf_strdup(text) : NULL;
            return true;
        }
    return bad(reader, "\"preallocation\" is one of: off, metadata, falloc, full");
}

static bool
read_options(const struct reader *reader, struct json_object *options, struct vf_class *class)
{
    if (!json_object_is_type(options, json_type_object))
        return bad(reader, "\"overlayOptions\" has to be an object");
    json_object_object_foreach(options, key, value)
    {
        if (strcmp(key, "clusterSize") == 0) {
            if (!read_size(reader, key, value, &class->cluster_size))
                return false;
            if (class->cluster_size == 0) /* which would be none */
                return bad(reader, "\"clusterSize\" cannot be 0");
        } else if (strcmp(key, "extendedL2") == 0) {
            if (!json_object_is_type(value, json_type_boolean))
                return bad(reader, "\"extendedL2\" has to be true or false");
            class->extended_l2 = json_object_get_boolean(value);
        } else if (strcmp(key, "preallocation") == 0) {
            if (!read_preallocation(reader, value, class))
                return false;
        } else {
            bad(reader, "there is no option \"%s\"", key);
            return vf_hint(reader->error,
                           "\"overlayOptions\" has clusterSize, extendedL2 and preallocation.");
        }
    }
    return options_fit(reader, class);
}

static bool
read_snapshot(const struct reader *reader, struct json_object *value, struct vf_class *class)
{
    const char *text = vf_json_text(value);

    if (!text || (strcmp(text, "yes") != 0 && strcmp(text, "no") != 0))
        return bad(reader, "\"snapshot\" is one of: yes, no");
    class->left_out = strcmp(text, "no") == 0;
    return true;
}

static bool
read_class(const struct reader *reader, struct json_object *object, struct vf_class *class)
{
    json_object_object_foreach(object, key, value)
    {
        bool good = true;

        if (strcmp(key, "name") == 0)
            continue;
        if (strcmp(key, "match") == 0)
            good = read_match(reader, value, class);
        else if (strcmp(key, "snapshot") == 0)
            good = read_snapshot(reader, value, class);
        else if (strcmp(key, "overlayOptions") == 0)
            good = read_options(reader, value, class);
        else if (strcmp(key, "minFree") == 0)
            good = read_size(reader, key, value, &class->min_free);
        else if (strcmp(key, "overlayFolder") == 0)
            good = read_text(reader, key, value, &class->overlay_folder) &&
                   (vf_starts_with(class->overlay_folder, "/") ||
                    bad(reader, "\"overlayFolder\" has to be an absolute path"));
        else
            good = bad(reader, "there is no member \"%s\"", key) ||
                   vf_hint(reader->error, "A class has match, snapshot, overlayFolder, "
                                          "overlayOptions and minFree.");
        if (!good)
            return false;
    }
    return true;
}

static void
release_class(struct vf_class *class)
{
    free(class->name);
    free(class->path);
    free(class->protocol);
    free(class->format);
    free(class->overlay_folder);
    free(class->preallocation);
}

void
vf_classes_release(struct vf_classes *classes)
{
    for (size_t i = 0; i < classes->count; i++)
        release_class(&classes->list[i]);
    free(classes->list);
    *classes = (struct vf_classes){NULL, 0};
}

/*
 * All of them
 */

static bool
read_all(struct json_object *array, const char *where, enum vmfrost_code code,
         struct vf_classes *classes, struct vmfrost_error *error)
{
    *classes = (struct vf_classes){NULL, 0};
    for (size_t i = 0; i < vf_json_length(array); i++) {
        struct json_object *object = vf_json_at(array, i);
        const char *name = vf_json_string(object, "name");
        const struct reader reader = {where, name, code, error};

        if (!name || !vf_valid_name(name))
            vf_fail(error, code, "%s: class %zu has no name that can be one", where, i + 1);
        else if (vf_class_named(classes, name))
            bad(&reader, "it is there twice");
        if (!vf_failed(error)) {
            assert(name);
            VF_GROW(classes->list, classes->count);
            struct vf_class *class = &classes->list[classes->count++];

            *class = (struct vf_class){.name = vf_strdup(name), .min_free = -1};
            read_class(&reader, object, class);
        }
        if (vf_failed(error)) {
            vf_classes_release(classes);
            return false;
        }
    }
    return true;
}

static char *
classes_path(const struct vf_store *store)
{
    return vf_printf("%s/storage.json", store->folder);
}

struct json_object *
vf_classes_json(const struct vf_store *store, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = classes_path(store);
    VF_AUTO_JSON struct json_object *array = NULL;
    VF_CLEANUP(vf_classes_release) struct vf_classes classes = {NULL, 0};

    if (!vf_document_load_array(path, CLASSES_MOST, &array, error))
        return NULL;
    if (!array)
        return vf_json_new_array();
    return read_all(array, path, VMFROST_FAILED, &classes, error) ? VF_STEAL(array) : NULL;
}

bool
vf_classes_load(const struct vf_store *store, struct vf_classes *classes,
                struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = classes_path(store);
    VF_AUTO_JSON struct json_object *array = NULL;

    *classes = (struct vf_classes){NULL, 0};
    return vf_document_load_array(path, CLASSES_MOST, &array, error) &&
           read_all(array, path, VMFROST_FAILED, classes, error);
}

const struct vf_class *
vf_class_named(const struct vf_classes *classes, const char *name)
{
    for (size_t i = 0; i < classes->count; i++)
        if (strcmp(classes->list[i].name, name) == 0)
            return &classes->list[i];
    return NULL;
}

const struct vf_class *
vf_class_of(const struct vf_classes *classes, const char *path, const char *protocol,
            const char *format)
{
    for (size_t i = 0; i < classes->count; i++) {
        const struct vf_class *class = &classes->list[i];

        if ((!class->path || fnmatch(class->path, path, FNM_NOESCAPE) == 0) &&
            (!class->protocol || strcmp(class->protocol, protocol) == 0) &&
            (!class->format || strcmp(class->format, format) == 0))
            return class;
    }
    return NULL;
}

/*
 * Changing
 */

/* Two writers would lose what one of them wrote. Gone with the descriptor; -1 with the reason. */
static int
lock_classes(const struct vf_store *store, struct vmfrost_error *error)
{
    int folder = open(store->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (folder >= 0 && flock(folder, LOCK_EX) == 0)
        return folder;
    vf_fail(error, VMFROST_FAILED, "cannot lock %s: %s", store->folder, strerror(errno));
    if (folder >= 0)
        close(folder);
    return -1;
}

static size_t
index_of(struct json_object *array, const char *name)
{
    size_t i = 0;

    while (i < vf_json_length(array)) {
        const char *its_name = vf_json_string(vf_json_at(array, i), "name");

        if (its_name && strcmp(its_name, name) == 0)
            break;
        i++;
    }
    return i;
}

/* Members of `changes` take the place of those in `object`, objects by their own members; null and
 * "" take one away. */
static void
change(struct json_object *object, struct json_object *changes)
{
    json_object_object_foreach(changes, key, value)
    {
        const char *text = vf_json_text(value);
        struct json_object *inner = vf_json_object(object, key);

        if (!value || (text && !*text)) {
            json_object_object_del(object, key);
        } else if (json_object_is_type(value, json_type_object)) {
            if (!inner) {
                inner = vf_json_new_object();
                vf_json_add(object, key, inner);
            }
            change(inner, value);
            if (json_object_object_length(inner) == 0)
                json_object_object_del(object, key);
        } else {
            vf_json_add(object, key, json_object_get(value));
        }
    }
}

static bool
save(const struct vf_store *store, struct json_object *array, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = classes_path(store);

    return vf_document_save(path, array, CLASSES_MOST, error);
}

bool
vf_class_set(struct vf_store *store, const char *name, struct json_object *changes,
             struct vmfrost_error *error)
{
    VF_CLEANUP(vf_classes_release) struct vf_classes classes = {NULL, 0};
    VF_AUTO_FD int lock = -1;

    if (!vf_valid_name(name)) {
        vf_fail(error, VMFROST_USAGE, "\"%s\" cannot be the name of a storage class", name);
        return vf_hint(error, "A name has 1 to 64 letters, digits, and . _ + - and begins with "
                              "neither a dot nor a dash.");
    }
    if (!json_object_is_type(changes, json_type_object) ||
        json_object_object_get_ex(changes, "name", NULL))
        return vf_fail(error, VMFROST_USAGE, "what is to be set is no JSON object without a name");
    lock = lock_classes(store, error);
    VF_AUTO_JSON struct json_object *array = lock >= 0 ? vf_classes_json(store, error) : NULL;

    if (!array)
        return false;
    size_t at = index_of(array, name);

    if (at == vf_json_length(array))
        vf_json_append(array, vf_json_strings("name", name, NULL));
    change(vf_json_at(array, at), changes);
    return read_all(array, "storage classes", VMFROST_USAGE, &classes, error) &&
           save(store, array, error);
}

bool
vf_class_remove(struct vf_store *store, const char *name, struct vmfrost_error *error)
{
    VF_AUTO_FD int lock = lock_classes(store, error);
    VF_AUTO_JSON struct json_object *array = lock >= 0 ? vf_classes_json(store, error) : NULL;

    if (!array)
        return false;
    size_t at = index_of(array, name);

    if (at == vf_json_length(array)) {
        vf_fail(error, VMFROST_FAILED, "there is no storage class \"%s\"", name);
        return vf_hint(error, "To see all: vmfrost storage");
    }
    json_object_array_del_idx(array, at, 1);
    return save(store, array, error);
}
