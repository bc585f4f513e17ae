/* SPDX-License-Identifier: MIT
 *
 * Folders and documents of the store.
 *
 * Guarantees: what is removed here is either empty or known to hold nothing of worth; a document
 * that was written can be read again.
 */
#include <assert.h>
#include <ctype.h>
#include <dirent.h>
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

enum { DOCUMENT_DEPTH = 32 };

void
vf_list_release(struct vf_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->names[i]);
    free(list->names);
    *list = (struct vf_list){NULL, 0};
}

void
vf_list_add(struct vf_list *list, const char *name)
{
    VF_GROW(list->names, list->count);
    list->names[list->count++] = vf_strdup(name);
}

static int
by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* How many letters have to be changed, added, removed or swapped with their neighbour to
 * make one word of the other, upper and lower case being the same. */
static size_t
edit_distance(const char *a, const char *b)
{
    enum { MOST = 64 };
    size_t rows[3][MOST + 1];
    size_t a_length = strlen(a), b_length = strlen(b);

    if (a_length > MOST || b_length > MOST)
        return MOST;
    for (size_t j = 0; j <= b_length; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= a_length; i++) {
        size_t *row = rows[i % 3], *above = rows[(i + 2) % 3], *second = rows[(i + 1) % 3];

        row[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            int x = tolower((unsigned char)a[i - 1]), y = tolower((unsigned char)b[j - 1]);
            size_t least = above[j - 1] + (x != y);

            if (above[j] + 1 < least)
                least = above[j] + 1;
            if (row[j - 1] + 1 < least)
                least = row[j - 1] + 1;
            if (i > 1 && j > 1 && x == tolower((unsigned char)b[j - 2]) &&
                y == tolower((unsigned char)a[i - 2]) && second[j - 2] + 1 < least)
                least = second[j - 2] + 1;
            row[j] = least;
        }
    }
    return rows[a_length % 3][b_length];
}

char *
vf_list_near(const struct vf_list *list, const char *wanted)
{
    size_t length = strlen(wanted), enough = 1 + length / 4, shown = 0;
    char *text = NULL;

    for (size_t distance = 0; distance <= enough && shown < 3; distance++)
        for (size_t i = 0; i < list->count && shown < 3; i++) {
            const char *name = list->names[i];
            size_t is = edit_distance(name, wanted);

            /* The beginning of a name is as good as a name with one mistake. */
            if (is > 1 && length >= 2 && strncasecmp(name, wanted, length) == 0)
                is = 1;
            if (is != distance)
                continue;
            VF_AUTO_FREE char *before = text;
            text = vf_printf("%s%s\"%s\"", before ? before : "", before ? ", " : "", name);
            shown++;
        }
    return text;
}

char *
vf_list_text(const struct vf_list *list, size_t most)
{
    char *text = vf_strdup("");

    for (size_t i = 0; i < list->count && i < most; i++) {
        VF_AUTO_FREE char *before = text;

        text = vf_printf("%s%s%s", before, i ? ", " : "", list->names[i]);
    }
    if (list->count > most) {
        VF_AUTO_FREE char *before = text;

        text = vf_printf("%s and %zu more", before, list->count - most);
    }
    return text;
}

bool
vf_folder_is_safe(const char *path, struct vmfrost_error *error)
{
    struct stat about;

    if (lstat(path, &about) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot look at the folder %s: %s", path,
                       strerror(errno));
    if (!S_ISDIR(about.st_mode)) {
        vf_fail(error, VMFROST_FAILED, "%s is no folder", path);
        return vf_hint(error, "vmfrost keeps its state there: move it away.");
    }
    if (!vf_others_may_change(&about))
        return true;
    if (about.st_mode & (S_IWGRP | S_IWOTH)) {
        vf_fail(error, VMFROST_FAILED, "the state folder %s is writable by others (mode %04o)",
                path, (unsigned)about.st_mode & 07777U);
        return vf_hint(error, "If nobody has changed anything in it: chmod 0700 %s", path);
    }
    vf_fail(error, VMFROST_FAILED,
            "the state folder %s belongs to user %lu, who could change what is in it", path,
            (unsigned long)about.st_uid);
    return vf_hint(error, "Run as that user, or set VMFROST_STATE_DIR to a folder of your own.");
}

bool
vf_folder_make(const char *path, struct vmfrost_error *error)
{
    if (mkdir(path, 0700) == 0) {
        if (vf_sync_folder_of(path) < 0)
            return vf_fail(error, VMFROST_FAILED, "cannot make the folder %s durable: %s", path,
                           strerror(errno));
        return true;
    }
    return errno == EEXIST ? vf_folder_is_safe(path, error)
                           : vf_fail(error, VMFROST_FAILED, "cannot create the folder %s: %s", path,
                                     strerror(errno));
}

static void
close_dir(DIR **at)
{
    if (*at)
        closedir(*at);
}

bool
vf_folder_names(const char *path, struct vf_list *list, struct vmfrost_error *error)
{
    VF_CLEANUP(close_dir) DIR *folder = opendir(path);
    struct dirent *entry;

    *list = (struct vf_list){NULL, 0};
    if (!folder && errno == ENOENT)
        return true;
    while (folder && (errno = 0, entry = readdir(folder)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            vf_list_add(list, entry->d_name);
    if (errno) {
        vf_list_release(list);
        return vf_fail(error, VMFROST_FAILED, "cannot read the folder %s: %s", path,
                       strerror(errno));
    }
    if (list->count)
        qsort(list->names, list->count, sizeof *list->names, by_name);
    return true;
}

static void
unlink_in(const char *folder, const char *name)
{
    VF_AUTO_FREE char *path = vf_printf("%s/%s", folder, name);

    unlink(path);
}

void
vf_folder_sweep(const char *folder)
{
    VF_AUTO_FREE char *records = vf_printf("%s/records", folder);
    VF_CLEANUP(vf_list_release) struct vf_list names = {NULL, 0};
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    unlink_in(folder, "vm.json.new");
    if (!vf_folder_names(records, &names, &ignored))
        return;
    for (size_t i = 0; i < names.count; i++)
        if (vf_ends_with(names.names[i], ".json.new"))
            unlink_in(records, names.names[i]);
}

bool
vf_folder_is_worthless(const char *folder, struct vmfrost_error *error)
{
    static const char *const worthless[] = {"vm.json",    "vm.json.new",    "lock",
                                            "disks.json", "disks.json.new", "records"};
    VF_AUTO_FREE char *records = vf_printf("%s/records", folder);
    VF_CLEANUP(vf_list_release) struct vf_list names = {NULL, 0};
    VF_CLEANUP(vf_list_release) struct vf_list in_records = {NULL, 0};
    const char *found = NULL;

    if (!vf_folder_names(folder, &names, error) || !vf_folder_names(records, &in_records, error))
        return false;
    for (size_t i = 0; i < names.count; i++) {
        bool known = false;

        for (size_t j = 0; j < sizeof worthless / sizeof *worthless; j++)
            known = known || strcmp(names.names[i], worthless[j]) == 0;
        if (!known)
            found = names.names[i];
    }
    for (size_t i = 0; i < in_records.count; i++)
        if (!vf_ends_with(in_records.names[i], ".json.new"))
            found = in_records.names[i];
    if (!found)
        return true;
    vf_fail(error, VMFROST_FAILED, "there is a file in %s that is not to be removed: %s", folder,
            found);
    return vf_hint(error, "If it is not vmfrost's, move it away and try again.");
}

void
vf_folder_discard(const char *folder)
{
    VF_AUTO_FREE char *records = vf_printf("%s/records", folder);
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    if (!vf_folder_is_worthless(folder, &ignored))
        return;
    vf_folder_sweep(folder);
    rmdir(records);
    unlink_in(folder, "vm.json");
    unlink_in(folder, "disks.json");
    unlink_in(folder, "disks.json.new");
    unlink_in(folder, "lock");
    rmdir(folder);
}

static bool
load(const char *path, size_t most, enum json_type type, struct json_object **document_r,
     struct vmfrost_error *error)
{
    size_t length = 0;
    VF_AUTO_FREE char *text = vf_read_file(path, most, &length);

    *document_r = NULL;
    if (!text && errno == ENOENT)
        return true;
    if (!text) {
        vf_fail(error, VMFROST_FAILED, "cannot read %s: %s", path, vf_read_trouble(errno));
        return vf_hint(error, "Look at it, and repair it or move it away.");
    }
    VF_AUTO_JSON struct json_object *document = vf_json_parse(text, length, DOCUMENT_DEPTH);

    if (!json_object_is_type(document, type)) {
        vf_fail(error, VMFROST_FAILED, "%s is damaged: it is no JSON %s", path,
                json_type_to_name(type));
        return vf_hint(error, "Look at it, and repair it or move it away.");
    }
    *document_r = VF_STEAL(document);
    return true;
}

bool
vf_document_load(const char *path, size_t most, struct json_object **document_r,
                 struct vmfrost_error *error)
{
    return load(path, most, json_type_object, document_r, error);
}

bool
vf_document_load_array(const char *path, size_t most, struct json_object **document_r,
                       struct vmfrost_error *error)
{
    return load(path, most, json_type_array, document_r, error);
}

bool
vf_document_save(const char *path, struct json_object *document, size_t most,
                 struct vmfrost_error *error)
{
    const char *plain = vf_json_print(document, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                    JSON_C_TO_STRING_NOSLASHESCAPE);

    assert(plain);
    VF_AUTO_FREE char *text = vf_printf("%s\n", plain);
    size_t length = strlen(text);

    if (length > most)
        return vf_fail(error, VMFROST_FAILED, "cannot write %s: %zu bytes are too many", path,
                       length);
    /* The name of a file may be no UTF-8, and a text with it no JSON. */
    if (!vf_json_readable(text, DOCUMENT_DEPTH))
        return vf_fail(error, VMFROST_FAILED,
                       "cannot write %s: a text in it is no UTF-8, or it is nested too deeply",
                       path);
    return vf_replace_file(path, text, length, error);
}
