/* SPDX-License-Identifier: MIT */
#include "vm/cut.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/qcow2.h"

void
vf_cut_make(struct vf_cut *cut, const struct vf_disk *disk, const struct vf_place *place,
            const char *snapshot, const char *id, size_t index)
{
    *cut = (struct vf_cut){
        .name = vf_strdup(disk->name),
        .node = vf_strdup(disk->node),
        /* Short: QEMU reads requests byte by byte, also inside the frozen window. */
        .overlay_node = vf_printf("vf%.8s-%zu", id, index),
        .filter = disk->root && strcmp(disk->root, disk->node) != 0 ? vf_strdup(disk->root) : NULL,
        /* A bare protocol node holds raw bytes. */
        .format = vf_strdup(disk->file_node ? disk->format : "raw"),
        .base_file = vf_strdup(disk->file),
        .size = disk->size,
        .naming = place->naming,
        .why = place->why ? vf_strdup(place->why) : NULL,
        .base = place->inode,
        .own_file_node = disk->file_named,
        .writeback = disk->writeback,
        .direct = disk->direct,
        .no_flush = disk->no_flush,
    };
    vf_names_make(place, snapshot, id, &cut->names);
}

void
vf_cut_release(struct vf_cut *cut)
{
    free(cut->name);
    free(cut->node);
    free(cut->overlay_node);
    free(cut->overlay_file_node);
    free(cut->filter);
    free(cut->format);
    free(cut->base_file);
    free(cut->storage_class);
    free(cut->why);
    free(cut->below);
    free(cut->below_format);
    vf_names_release(&cut->names);
    memset(cut, 0, sizeof *cut);
}

struct json_object *
vf_cut_json(const struct vf_cut *cut)
{
    struct json_object *document =
        vf_json_strings("name", cut->name, "node", cut->node, "overlayNode", cut->overlay_node,
                        "overlayFileNode", cut->overlay_file_node, "filter", cut->filter, "format",
                        cut->format, "baseFile", cut->base_file, "naming",
                        cut->naming == VF_NAMING_FLIP ? "flip" : "new-file", "why", cut->why, "top",
                        cut->names.top, "sealed", cut->names.sealed, "overlay", cut->names.overlay,
                        "next", cut->names.next, "backing", cut->names.backing, NULL);

    vf_json_add_int(document, "size", cut->size);
    vf_json_add_int(document, "baseInode", (int64_t)cut->base.number);
    vf_json_add_int(document, "overlayInode", (int64_t)cut->overlay.number);
    if (cut->sealed_ns)
        vf_json_add_int(document, "sealedTime", cut->sealed_ns);
    vf_json_add_bool(document, "ownFileNode", cut->own_file_node);
    if (cut->elsewhere)
        vf_json_add_bool(document, "elsewhere", true);
    vf_json_add_bool(document, "writeback", cut->writeback);
    vf_json_add_bool(document, "direct", cut->direct);
    vf_json_add_bool(document, "noFlush", cut->no_flush);
    if (cut->below) {
        vf_json_add_string(document, "below", cut->below);
        vf_json_add_string(document, "belowFormat", cut->below_format);
        vf_json_add_int(document, "belowInode", (int64_t)cut->below_inode.number);
        vf_json_add_int(document, "belowSize", cut->below_size);
    }
    return document;
}

static char *
take(struct json_object *document, const char *key)
{
    const char *text = vf_json_string(document, key);

    return text ? vf_strdup(text) : NULL;
}

/* Device numbers change when the host boots again: the device is that of the folder, as it is now.
 */
static bool
take_inode(struct json_object *document, const char *key, const char *path, struct vf_inode *inode)
{
    VF_AUTO_FREE char *folder = path ? vf_folder_of(path) : NULL;
    int64_t number = -1;
    struct stat about;

    if (!vf_json_int(document, key, &number) || number < 0)
        return false;
    if (number > 0 && folder && stat(folder, &about) == 0)
        *inode = (struct vf_inode){about.st_dev, (uint64_t)number};
    return true;
}

static bool
take_below(struct json_object *document, struct vf_cut *cut)
{
    return !cut->below ||
           (cut->below_format && vf_json_int(document, "belowSize", &cut->below_size) &&
            take_inode(document, "belowInode", cut->below, &cut->below_inode));
}

/* Names are removed and turned because a document says so: they have to be such as vf_names_make()
 * makes. Two names of one file are told apart by their letters, so that these must tell. */
static bool
names_are_ours(const struct vf_cut *cut)
{
    const struct vf_names *names = &cut->names;

    if (cut->naming == VF_NAMING_NEW_FILE)
        return !names->top && !names->next && strcmp(names->sealed, names->overlay) != 0;
    if (!names->top || !names->next || names->top[0] != '/' || names->sealed[0] != '/' ||
        names->overlay[0] != '/')
        return false;
    VF_AUTO_FREE char *folder = vf_folder_of(names->top);
    VF_AUTO_FREE char *sealed_folder = vf_folder_of(names->sealed);
    VF_AUTO_FREE char *next = vf_printf("%s.next", names->overlay);
    const char *top = vf_name_of(names->top), *sealed = vf_name_of(names->sealed),
               *overlay = vf_name_of(names->overlay);

    return strcmp(folder, sealed_folder) == 0 && strcmp(next, names->next) == 0 &&
           strcmp(top, sealed) != 0 && strcmp(top, overlay) != 0 && strcmp(sealed, overlay) != 0;
}

bool
vf_cut_parse(struct vf_cut *cut, struct json_object *document)
{
    const char *naming = vf_json_string(document, "naming");

    *cut = (struct vf_cut){
        .name = take(document, "name"),
        .node = take(document, "node"),
        .overlay_node = take(document, "overlayNode"),
        .overlay_file_node = take(document, "overlayFileNode"),
        .filter = take(document, "filter"),
        .format = take(document, "format"),
        .base_file = take(document, "baseFile"),
        .naming = naming && strcmp(naming, "flip") == 0 ? VF_NAMING_FLIP : VF_NAMING_NEW_FILE,
        .why = take(document, "why"),
        .names = {.top = take(document, "top"),
                  .sealed = take(document, "sealed"),
                  .overlay = take(document, "overlay"),
                  .next = take(document, "next"),
                  .backing = take(document, "backing")},
        .own_file_node = vf_json_bool(document, "ownFileNode", false),
        .elsewhere = vf_json_bool(document, "elsewhere", false),
        .writeback = vf_json_bool(document, "writeback", true),
        .direct = vf_json_bool(document, "direct", false),
        .no_flush = vf_json_bool(document, "noFlush", false),
        .below = take(document, "below"),
        .below_format = take(document, "belowFormat"),
    };
    bool whole = cut->name && cut->node && cut->overlay_node && cut->format && cut->base_file &&
                 naming && cut->names.sealed && cut->names.overlay && cut->names.backing &&
                 names_are_ours(cut) && vf_json_int(document, "size", &cut->size) &&
                 take_inode(document, "baseInode", cut->names.sealed, &cut->base) &&
                 take_inode(document, "overlayInode", cut->names.overlay, &cut->overlay) &&
                 take_below(document, cut);

    if (whole)
        vf_json_int(document, "sealedTime", &cut->sealed_ns);
    else
        vf_cut_release(cut);
    return whole;
}

void
vf_cut_refresh(struct vf_cut *cut)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_qcow2 image;
    struct stat about;

    if (lstat(cut->names.sealed, &about) < 0 || !S_ISREG(about.st_mode))
        return;
    if (strcmp(cut->format, "qcow2") != 0) {
        if (strcmp(cut->format, "raw") == 0)
            cut->size = (about.st_size + 511) / 512 * 512; /* QEMU counts in sectors */
    } else if (vf_qcow2_read(cut->names.sealed, &image, &ignored)) {
        cut->size = image.size;
        vf_qcow2_release(&image);
    } else {
        return;
    }
    cut->base = (struct vf_inode){about.st_dev, about.st_ino};
    cut->sealed_ns = (int64_t)about.st_mtim.tv_sec * 1000000000 + (int64_t)about.st_mtim.tv_nsec;
}

bool
vf_overlay_has_data(const struct vf_cut *cut)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_qcow2 image;
    bool data = true;

    if (!vf_inode_of(cut->names.overlay).number)
        return false;
    if (vf_qcow2_read(cut->names.overlay, &image, &ignored)) {
        data = image.has_data;
        vf_qcow2_release(&image);
    } else if (!cut->overlay.number) {
        data = false; /* killed before it was a whole image */
    }
    return data;
}

bool
vf_cut_has_name_of(const struct vf_cut *cut, struct vf_inode overlay)
{
    return vf_inode_equal(vf_cut_overlay_inode(cut), overlay) ||
           (cut->names.next && vf_inode_equal(vf_inode_of(cut->names.next), overlay)) ||
           (cut->names.top && vf_inode_equal(vf_inode_of(cut->names.top), overlay));
}
