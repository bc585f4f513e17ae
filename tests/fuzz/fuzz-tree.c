/* SPDX-License-Identifier: MIT
 *
 * The trees of images that records and headers tell of: {"images": {NAME: {"backing", "format",
 * "corrupt"}}, "records": [...], "disks": [...], "current"}. "@/" stands for the folder with the
 * images. An image can also be {"link": to}, a text (its content), or true: a folder.
 */
#include "vm/tree.h"

#include "fuzz.h"
#include "mutate.h"
#include "place.h"

static void
put32(unsigned char *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (unsigned char)(value >> (24 - 8 * i));
}

static void
put_qcow2(const char *path, struct json_object *about)
{
    const char *backing = vf_json_string(about, "backing");
    const char *format = vf_json_string(about, "format");
    size_t backing_length = backing ? strlen(backing) : 0,
           format_length = format ? strlen(format) : 0;
    unsigned char raw[2048] = "QFI\xfb";

    put32(raw + 4, 3);
    put32(raw + 20, 11); /* clusters of 2 KiB */
    put32(raw + 28, 1 << 20);
    put32(raw + 76, vf_json_bool(about, "corrupt", false) ? 2 : 0);
    put32(raw + 100, 104);
    if (format && format_length < 16) {
        put32(raw + 104, 0xE2792ACA);
        put32(raw + 108, (uint32_t)format_length);
        memcpy(raw + 112, format, format_length);
    }
    if (backing && backing_length < 1024) {
        put32(raw + 12, 160);
        put32(raw + 16, (uint32_t)backing_length);
        memcpy(raw + 160, backing, backing_length);
    }
    put(path, raw, sizeof raw);
}

static void
put_image(const char *name, struct json_object *about)
{
    VF_AUTO_FREE char *path = vf_printf("%s/%s", place, name);
    const char *link = vf_json_string(about, "link");
    struct stat there;

    if (!*name || strchr(name, '/') || strlen(name) > 100 || lstat(path, &there) == 0)
        return;
    if (link && *link)
        MUST(symlink(link, path) == 0 || strlen(link) >= 4096);
    else if (json_object_is_type(about, json_type_object))
        put_qcow2(path, about);
    else if (json_object_is_type(about, json_type_boolean))
        MUST(mkdir(path, 0700) == 0);
    else
        put_document(path, about);
}

static void
check_tree(const struct vf_tree *tree)
{
    size_t ours = 0;

    MUST(tree->current < tree->count);
    for (size_t i = 0; i < tree->count; i++) {
        const struct vf_image *image = &tree->images[i];
        size_t steps = 0;

        MUST(image->path && (image->trouble == VF_TROUBLE_NONE) == !image->problem);
        for (size_t at = i; at != VF_NO_IMAGE; at = tree->images[at].parent)
            MUST(at < tree->count && steps++ <= tree->count);
        for (size_t k = VF_NO_IMAGE; (k = vf_tree_children(tree, i, k)) != VF_NO_IMAGE;)
            MUST(tree->images[k].parent == i);
        vf_tree_snapshot_below(tree, i);
        vf_image_elsewhere(image);
        VF_AUTO_FREE char *moved = image->trouble == VF_TROUBLE_NONE ? NULL : vf_image_moved(image);
        VF_AUTO_FREE char *outsider = NULL;
        bool found = vf_tree_outsiders(tree, i, &outsider);

        MUST(found == (outsider != NULL));
        MUST(!moved || *moved == '/');
        ours += image->current;
    }
    MUST(ours == 1);
}

/* Owned by the caller. */
static char *
with_folder(const char *data, size_t size)
{
    VF_AUTO_FREE char *text = vf_alloc(size + 1);
    char *whole = vf_strdup("");

    memcpy(text, data, size);
    for (char *at = text, *mark; at; at = mark ? mark + 1 : NULL) {
        mark = strstr(at, "@/");
        if (mark)
            *mark = '\0';
        char *longer = vf_printf("%s%s%s", whole, at, mark ? place : "");

        free(whole);
        whole = longer;
    }
    return whole;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    place_make();
    VF_AUTO_FREE char *text = with_folder((const char *)data, size);
    VF_AUTO_JSON struct json_object *told = vf_json_parse(text, strlen(text), 64);
    struct json_object *images = vf_json_object(told, "images");
    struct json_object *records = vf_json_array(told, "records");
    const char *current = vf_json_string(told, "current");
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_forest forest;
    struct vf_tree tree;

    if (!told)
        return 0;
    place_empty(place);
    if (images) {
        json_object_object_foreach(images, name, about)
        {
            put_image(name, about);
        }
    }
    bool good = vf_tree_read(records, "vd0", current, &tree, &error);

    check_error(good, &error);
    if (good)
        check_tree(&tree);
    vf_tree_release(&tree);
    vf_forest_read(records, vf_json_array(told, "disks"), &forest);
    for (size_t i = 0; i < forest.count; i++)
        check_tree(&forest.trees[i]);
    vf_forest_release(&forest);
    if (!current)
        return 0;
    VF_AUTO_FREE char *trouble = vf_chain_trouble(current, "qcow2");
    VF_AUTO_FREE char *base = vf_printf("%s/base.qcow2", place);

    MUST(!trouble || *trouble);
    vf_builds_on(current, base);
    return 0;
}
