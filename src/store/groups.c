/* SPDX-License-Identifier: MIT */
#include "store/groups.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/journal.h"
#include "store/private.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

enum { MARK_MOST = 1024 * 1024, ID_LENGTH = 16 };

/* It came from a journal: it must not lead out of the folder. */
static bool
is_id(const char *id)
{
    return strlen(id) == ID_LENGTH && strspn(id, "0123456789abcdef") == ID_LENGTH;
}

static char *
marks_folder(const struct vf_store *store)
{
    return vf_printf("%s/groups", store->folder);
}

static char *
mark_path(const struct vf_store *store, const char *id)
{
    return vf_printf("%s/groups/%s.json", store->folder, id);
}

bool
vf_group_mark(struct vf_store *store, const char *id, struct json_object *mark,
              struct vmfrost_error *error)
{
    assert(is_id(id));
    VF_AUTO_FREE char *folder = marks_folder(store);
    VF_AUTO_FREE char *path = mark_path(store, id);

    if (!vf_folder_make(folder, error))
        return false;
    if (vf_document_save(path, mark, MARK_MOST, error))
        return true;
    if (unlink(path) == 0)
        vf_sync_folder(folder);
    return false;
}

bool
vf_group_is_marked(const struct vf_store *store, const char *id)
{
    struct stat about;

    if (!is_id(id))
        return false;
    VF_AUTO_FREE char *path = mark_path(store, id);

    return lstat(path, &about) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

struct json_object *
vf_group_mark_load(const struct vf_store *store, const char *id)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct json_object *mark = NULL;

    if (!is_id(id))
        return NULL;
    VF_AUTO_FREE char *path = mark_path(store, id);

    vf_document_load(path, MARK_MOST, &mark, &ignored);
    return mark;
}

/* Sweeping. */

/* Who cannot be read may name any group. */
enum named { NAMED_NO, NAMED_YES, NAMED_UNKNOWN };

static enum named
is_named_by(const struct vf_store *store, const char *folder_name, const char *id)
{
    VF_AUTO_FREE char *folder = vf_printf("%s/%s", store->vms, folder_name);
    const struct vf_vm vm = {.name = (char *)folder_name, .folder = folder};
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *lines = vf_journal_read(&vm, &error);
    const char *named = vf_json_string(vf_json_at(lines, 0), "group");

    if (vf_failed(&error))
        return NAMED_UNKNOWN;
    return named && strcmp(named, id) == 0 ? NAMED_YES : NAMED_NO;
}

static bool
lists_are_equal(const struct vf_list *a, const struct vf_list *b)
{
    bool equal = a->count == b->count;

    for (size_t i = 0; equal && i < a->count; i++)
        equal = strcmp(a->names[i], b->names[i]) == 0;
    return equal;
}

static bool
is_needed(const struct vf_store *store, const char *id)
{
    VF_CLEANUP(vf_list_release) struct vf_list before = {NULL, 0};
    VF_CLEANUP(vf_list_release) struct vf_list after = {NULL, 0};
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    bool needed = !vf_folder_names(store->vms, &before, &ignored);

    for (size_t i = 0; !needed && i < before.count; i++)
        needed = is_named_by(store, before.names[i], id) != NAMED_NO;
    /* A VM that was given a name meanwhile has another folder. */
    return needed || !vf_folder_names(store->vms, &after, &ignored) ||
           !lists_are_equal(&before, &after);
}

void
vf_group_marks_sweep(struct vf_store *store)
{
    VF_AUTO_FREE char *folder = marks_folder(store);
    VF_CLEANUP(vf_list_release) struct vf_list marks = {NULL, 0};
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    if (!vf_folder_names(folder, &marks, &ignored))
        return;
    for (size_t i = 0; i < marks.count; i++) {
        VF_AUTO_FREE char *id = strndup(marks.names[i], strcspn(marks.names[i], "."));
        VF_AUTO_FREE char *path = vf_printf("%s/%s", folder, marks.names[i]);

        /* With what a crash kept from its place: ID.json.new. */
        if (is_id(id) && !is_needed(store, id))
            unlink(path);
    }
}
