/* SPDX-License-Identifier: MIT */
#include "vm/cut.h"

#include <stdlib.h>
#include <string.h>

#include "util/json.h"
#include "util/mem.h"

void
vf_cut_make(struct vf_cut *cut, const struct vf_disk *disk, const struct vf_place *place,
            const char *snapshot, const char *id, size_t index)
{
    *cut = (struct vf_cut){
        .name = vf_strdup(disk->name),
        .node = vf_strdup(disk->node),
        /* Short: QEMU reads requests byte by byte, also inside the frozen window. */
        .overlay_node = vf_printf("vf%.8s-%zu", id, index),
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
    free(cut->format);
    free(cut->base_file);
    free(cut->why);
    vf_names_release(&cut->names);
    memset(cut, 0, sizeof *cut);
}

static void
add_inode(struct json_object *document, const char *key, struct vf_inode inode)
{
    struct json_object *pair = json_object_new_array();

    json_object_array_add(pair, json_object_new_uint64(inode.device));
    json_object_array_add(pair, json_object_new_uint64(inode.number));
    vf_json_add(document, key, pair);
}

struct json_object *
vf_cut_json(const struct vf_cut *cut)
{
    struct json_object *document =
        vf_json_strings("name", cut->name, "node", cut->node, "overlayNode", cut->overlay_node,
                        "overlayFileNode", cut->overlay_file_node,
                        "format", cut->format, "baseFile", cut->base_file, "naming",
                        cut->naming == VF_NAMING_FLIP ? "flip" : "new-file", "why", cut->why, "top",
                        cut->names.top, "sealed", cut->names.sealed, "overlay", cut->names.overlay,
                        "next", cut->names.next, "backing", cut->names.backing, NULL);

    vf_json_add_int(document, "size", cut->size);
    add_inode(document, "baseInode", cut->base);
    add_inode(document, "overlayInode", cut->overlay);
    vf_json_add_bool(document, "ownFileNode", cut->own_file_node);
    vf_json_add_bool(document, "writeback", cut->writeback);
    vf_json_add_bool(document, "direct", cut->direct);
    vf_json_add_bool(document, "noFlush", cut->no_flush);
    return document;
}

static char *
take(struct json_object *document, const char *key)
{
    const char *text = vf_json_string(document, key);

    return text ? vf_strdup(text) : NULL;
}

static bool
take_inode(struct json_object *document, const char *key, struct vf_inode *inode)
{
    struct json_object *pair = vf_json_array(document, key);

    if (vf_json_length(pair) != 2 || !json_object_is_type(vf_json_at(pair, 0), json_type_int) ||
        !json_object_is_type(vf_json_at(pair, 1), json_type_int))
        return false;
    inode->device = json_object_get_uint64(vf_json_at(pair, 0));
    inode->number = json_object_get_uint64(vf_json_at(pair, 1));
    return true;
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
        .writeback = vf_json_bool(document, "writeback", true),
        .direct = vf_json_bool(document, "direct", false),
        .no_flush = vf_json_bool(document, "noFlush", false),
    };
    bool whole = cut->name && cut->node && cut->overlay_node && cut->format && cut->base_file &&
                 naming && cut->names.sealed && cut->names.overlay && cut->names.backing &&
                 (cut->naming == VF_NAMING_NEW_FILE || (cut->names.top && cut->names.next)) &&
                 vf_json_int(document, "size", &cut->size) &&
                 take_inode(document, "baseInode", &cut->base) &&
                 take_inode(document, "overlayInode", &cut->overlay);

    if (!whole)
        vf_cut_release(cut);
    return whole;
}
