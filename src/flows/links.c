/* SPDX-License-Identifier: MIT
 *
 * Names that a running QEMU still needs.
 *
 * QEMU reopens images by the names it was given, so a name under which it knows an image has
 * to stay as long as that process lives, however the visible names move. Each such name is
 * remembered in STATE/vms/NAME/links.json with the process that needs it, and removed at the first
 * contact after that process is gone; never the last visible name of an image, nor a name that a
 * record has for one.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

#define LINKS_MAX ((size_t)1 << 20)

static char *
links_path(const struct vf_flow *flow)
{
    return vf_printf("%s/links.json", flow->vm.folder);
}

/* An array, empty if there is none; NULL with the error if it is damaged. Owned by the caller. */
static struct json_object *
load(const struct vf_flow *flow, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = links_path(flow);
    VF_AUTO_FREE char *text = NULL;
    size_t length;

    text = vf_read_file(path, LINKS_MAX, &length);
    if (!text && errno == ENOENT)
        return vf_json_new_array();
    VF_AUTO_FREE char *why = text ? NULL : vf_strdup(vf_read_trouble(errno));
    VF_AUTO_JSON struct json_object *links = text ? vf_json_parse(text, length, 8) : NULL;
    bool sound = json_object_is_type(links, json_type_array);

    for (size_t i = 0; sound && i < vf_json_length(links); i++) {
        const char *link = vf_json_string(vf_json_at(links, i), "path");

        sound = link && *link == '/';
    }
    if (sound)
        return VF_STEAL(links);
    vf_fail(error, VMFROST_FAILED, "cannot use %s: %s", path, why ? why : "it is damaged");
    vf_hint(error,
            "It lists second names of images that a running QEMU needs: move it away; `vmfrost "
            "verify %s` finds those that are left over when QEMU has ended",
            flow->vm.name);
    return NULL;
}

/* For whoever only looks: empty also if it is damaged, which the next change tells of. */
static struct json_object *
peek(const struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct json_object *links = load(flow, &ignored);

    return links ? links : vf_json_new_array();
}

/* For whoever changes it: NULL with the error noted. */
static struct json_object *
take(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *links = load(flow, &error);

    if (!links)
        vf_note_error(flow, &error);
    return links;
}

static bool
save(struct vf_flow *flow, struct json_object *links)
{
    VF_AUTO_FREE char *path = links_path(flow);
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vf_json_length(links) == 0) {
        if (unlink(path) < 0 && errno != ENOENT)
            return vf_note(flow, VMFROST_FAILED, "cannot remove %s: %s", path, strerror(errno));
        return true;
    }
    const char *text =
        vf_json_print(links, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);

    return vf_replace_file(path, text, strlen(text), &error) || vf_note_error(flow, &error);
}

static void
append(const struct vf_flow *flow, struct json_object *links, const char *path, const char *top)
{
    struct json_object *link = vf_json_strings("path", path, "top", top, NULL);

    vf_json_add_int(link, "qemu", flow->qemu.pid);
    vf_json_add_int(link, "qemuStarted", (int64_t)flow->qemu.started);
    vf_json_append(links, link);
}

bool
vf_links_add(struct vf_flow *flow, const char *path, const char *top)
{
    VF_AUTO_JSON struct json_object *links = take(flow);

    if (!links)
        return false;
    append(flow, links, path, top);
    return save(flow, links);
}

static bool
is_among(const struct vf_flow *flow, struct json_object *links, const char *path)
{
    for (size_t i = 0; i < vf_json_length(links); i++) {
        const char *its_path = vf_json_string(vf_json_at(links, i), "path");
        int64_t pid = 0;

        if (its_path && strcmp(its_path, path) == 0 &&
            vf_json_int(vf_json_at(links, i), "qemu", &pid) && pid == flow->qemu.pid)
            return true;
    }
    return false;
}

bool
vf_links_has(const struct vf_flow *flow, const char *path)
{
    VF_AUTO_JSON struct json_object *links = peek(flow);

    return is_among(flow, links, path);
}

bool
vf_links_add_overlays(struct vf_flow *flow)
{
    VF_AUTO_JSON struct json_object *links = take(flow);
    size_t before = vf_json_length(links);

    for (size_t i = 0; links && i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (cut->naming == VF_NAMING_FLIP && !is_among(flow, links, cut->names.overlay))
            append(flow, links, cut->names.overlay, cut->names.top);
    }
    return links && (vf_json_length(links) == before || save(flow, links));
}

char *
vf_links_top(const struct vf_flow *flow, const char *path)
{
    VF_AUTO_JSON struct json_object *links = peek(flow);

    for (size_t i = 0; i < vf_json_length(links); i++) {
        const char *its_path = vf_json_string(vf_json_at(links, i), "path");
        const char *top = vf_json_string(vf_json_at(links, i), "top");

        /* QEMU may have been given a relative name: the folder is compared by the inode. */
        if (its_path && top && strcmp(vf_name_of(its_path), vf_name_of(path)) == 0 &&
            vf_inode_of(its_path).number && vf_inode_equal(vf_inode_of(its_path), vf_inode_of(top)))
            return vf_strdup(top);
    }
    return NULL;
}

bool
vf_links_sound(const struct vf_flow *flow, struct vmfrost_error *error)
{
    VF_AUTO_JSON struct json_object *links = load(flow, error);

    return links;
}

static bool
is_needed(struct json_object *link)
{
    int64_t pid = 0, started = 0;

    vf_json_int(link, "qemu", &pid);
    vf_json_int(link, "qemuStarted", &started);
    return !vf_process_gone((struct vf_process){(pid_t)pid, (uint64_t)started});
}

bool
vf_links_needed(const struct vf_flow *flow, const char *path)
{
    VF_AUTO_JSON struct json_object *links = peek(flow);

    for (size_t i = 0; i < vf_json_length(links); i++) {
        const char *its_path = vf_json_string(vf_json_at(links, i), "path");

        if (its_path && strcmp(its_path, path) == 0 && is_needed(vf_json_at(links, i)))
            return true;
    }
    return false;
}

bool
vf_links_forget(struct vf_flow *flow, const char *path)
{
    VF_AUTO_JSON struct json_object *links = take(flow);
    VF_AUTO_JSON struct json_object *kept = vf_json_new_array();

    for (size_t i = 0; i < vf_json_length(links); i++) {
        const char *its_path = vf_json_string(vf_json_at(links, i), "path");

        if (!its_path || strcmp(its_path, path) != 0)
            vf_json_append(kept, json_object_get(vf_json_at(links, i)));
    }
    return links && (vf_json_length(kept) == vf_json_length(links) || save(flow, kept));
}

bool
vf_links_move(struct vf_flow *flow, struct vf_inode inode, const char *top)
{
    VF_AUTO_JSON struct json_object *links = take(flow);
    bool moved = false;

    for (size_t i = 0; i < vf_json_length(links); i++) {
        struct json_object *link = vf_json_at(links, i);
        const char *path = vf_json_string(link, "path"), *its_top = vf_json_string(link, "top");

        if (!path || !its_top || strcmp(its_top, top) == 0 ||
            !vf_inode_equal(vf_inode_of(path), inode))
            continue;
        vf_json_add_string(link, "top", top);
        moved = true;
    }
    return links && (!moved || save(flow, links));
}

static bool
leads_to_any(const char *path, const struct vf_inode *inodes, size_t count)
{
    struct vf_inode inode = vf_inode_of(path);

    for (size_t i = 0; i < count; i++)
        if (inode.number && vf_inode_equal(inode, inodes[i]))
            return true;
    return false;
}

bool
vf_links_drop(struct vf_flow *flow, const struct vf_inode *inodes, size_t count)
{
    VF_AUTO_JSON struct json_object *links = take(flow);
    VF_AUTO_JSON struct json_object *kept = vf_json_new_array();

    for (size_t i = 0; i < vf_json_length(links); i++) {
        struct json_object *link = vf_json_at(links, i);
        const char *path = vf_json_string(link, "path");
        struct vmfrost_error error = {.code = VMFROST_OK};

        if (!path || !leads_to_any(path, inodes, count))
            vf_json_append(kept, json_object_get(link));
        else if (!vf_unlink(path, vf_inode_of(path), &flow->log, &error))
            return vf_note_error(flow, &error);
    }
    return links && (vf_json_length(kept) == vf_json_length(links) || save(flow, kept));
}

/* Not even an image that a process which cannot be looked at may have open. */
static bool
is_closed(const struct vf_flow *flow, struct json_object *link, struct vf_inode inode)
{
    struct vf_opened opened;
    int64_t pid = 0;

    return vf_json_int(link, "qemu", &pid) && pid == flow->qemu.pid && is_needed(link) &&
           vf_process_opened(flow->qemu.pid, inode, &opened) && !opened.read_only &&
           !opened.read_write;
}

bool
vf_links_trim(struct vf_flow *flow)
{
    VF_AUTO_JSON struct json_object *links = take(flow);
    VF_AUTO_JSON struct json_object *kept = vf_json_new_array();

    for (size_t i = 0; i < vf_json_length(links); i++) {
        struct json_object *link = vf_json_at(links, i);
        const char *path = vf_json_string(link, "path");
        struct vmfrost_error error = {.code = VMFROST_OK};
        struct stat about;

        if (!path || lstat(path, &about) < 0 || !S_ISREG(about.st_mode) || about.st_nlink < 2 ||
            !is_closed(flow, link, (struct vf_inode){about.st_dev, about.st_ino}))
            vf_json_append(kept, json_object_get(link));
        else if (!vf_unlink(path, (struct vf_inode){about.st_dev, about.st_ino}, &flow->log,
                            &error))
            return vf_note_error(flow, &error);
    }
    return links && (vf_json_length(kept) == vf_json_length(links) || save(flow, kept));
}

/* A record that is not being deleted has it as an image. */
static bool
is_image(struct json_object *records, const char *path)
{
    static const char *const keys[] = {"top", "sealed", "overlay"};

    for (size_t i = 0; i < vf_json_length(records); i++) {
        struct json_object *cuts = vf_json_array(vf_json_at(records, i), "cuts");

        if (vf_json_bool(vf_json_at(records, i), "deleting", false))
            continue;
        for (size_t k = 0; k < vf_json_length(cuts); k++)
            for (size_t key = 0; key < sizeof keys / sizeof *keys; key++) {
                const char *image = vf_json_string(vf_json_at(cuts, k), keys[key]);

                /* The overlay's hidden name is one that goes. */
                if (image && strcmp(image, path) == 0 && !vf_is_hidden_link(vf_name_of(image)))
                    return true;
            }
    }
    return false;
}

bool
vf_is_an_image(const struct vf_flow *flow, const char *path)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records = vf_record_list(&flow->vm, &error);

    return !records || is_image(records, path);
}

/* What this file says of a name is not enough to remove it. NULL if it may go, else why not. */
static const char *
reason_to_stay(struct json_object *records, const char *path, struct stat *about)
{
    struct vf_inode inode = {about->st_dev, about->st_ino};
    bool hidden = vf_is_hidden_link(vf_name_of(path));
    VF_AUTO_FREE char *folder = vf_folder_of(path);
    VF_AUTO_FREE char *real = realpath(folder, NULL);

    if (!S_ISREG(about->st_mode) || about->st_nlink < 2)
        return "it is the only name of its image";
    if ((!hidden && !strchr(vf_name_of(path), '@')) || !real || strcmp(real, folder) != 0)
        return "it is no name that is made for a QEMU";
    if (is_image(records, path))
        return "it is the image of a snapshot";
    VF_AUTO_FREE char *other = vf_find_other_name(path, inode);

    return other ? NULL : "its image has no other visible name";
}

bool
vf_links_sweep(struct vf_flow *flow)
{
    VF_AUTO_JSON struct json_object *links = take(flow);
    VF_AUTO_JSON struct json_object *kept = vf_json_new_array();
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records =
        vf_json_length(links) ? vf_record_list(&flow->vm, &error) : NULL;

    if (vf_failed(&error))
        return vf_note_error(flow, &error);
    for (size_t i = 0; i < vf_json_length(links); i++) {
        struct json_object *link = vf_json_at(links, i);
        const char *path = vf_json_string(link, "path");
        struct stat about;

        error = (struct vmfrost_error){.code = VMFROST_OK};
        if (lstat(path, &about) < 0)
            continue;
        if (is_needed(link)) {
            vf_json_append(kept, json_object_get(link));
            continue;
        }
        const char *why = reason_to_stay(records, path, &about);

        if (why) {
            vf_warn(flow, "%s is left alone: %s", path, why);
        } else if (!vf_unlink(path, (struct vf_inode){about.st_dev, about.st_ino}, &flow->log,
                              &error)) {
            vf_warn(flow, "%s", error.text);
            vf_json_append(kept, json_object_get(link)); /* the next one tries again */
        }
    }
    return links && (vf_json_length(kept) == vf_json_length(links) || save(flow, kept));
}
