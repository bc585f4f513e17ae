/* SPDX-License-Identifier: MIT */
#include "flows/truth.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "flows/clones.h"
#include "flows/steps.h"
#include "store/disks.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/tree.h"

#define OLD_MS (INT64_C(7) * 24 * 60 * 60 * 1000)
#define NEARLY_FULL_PERCENT 90

/* --- Records --- */

static struct json_object *
find_record(struct json_object *records, const char *name)
{
    for (size_t i = 0; i < vf_json_length(records); i++) {
        const char *its_name = vf_json_string(vf_json_at(records, i), "name");

        if (its_name && strcmp(its_name, name) == 0)
            return vf_json_at(records, i);
    }
    return NULL;
}

/* It claims to have content: a deletion that has begun leaves a record that does not. */
static bool
is_ready(struct json_object *record)
{
    return vf_json_bool(record, "readyToUse", false);
}

/* The image is not in its place. */
static bool
is_gone(const struct vf_image *image)
{
    switch (image->trouble) {
    case VF_TROUBLE_MISSING:
        return !vf_image_elsewhere(image);
    case VF_TROUBLE_OTHER:
        return true;
    case VF_TROUBLE_NONE:
    case VF_TROUBLE_UNREADABLE: /* perhaps only for us */
    case VF_TROUBLE_DAMAGED:
    case VF_TROUBLE_LOOP:
        return false;
    }
    return false;
}

static void
set_condition(struct json_object *record, const char *type, const char *reason, const char *message)
{
    struct json_object *conditions = vf_json_array(record, "conditions");

    for (size_t i = 0; i < vf_json_length(conditions); i++) {
        struct json_object *condition = vf_json_at(conditions, i);
        const char *its_type = vf_json_string(condition, "type");

        if (!its_type || strcmp(its_type, type) != 0)
            continue;
        vf_json_add_string(condition, "status", "False");
        vf_json_add_string(condition, "reason", reason);
        vf_json_add_string(condition, "message", message);
    }
}

/* Down from its image: what is not in its place makes all above useless. */
static void
doubt(struct json_object *record, const struct vf_tree *tree)
{
    const char *name = vf_json_string(record, "name");

    if (!is_ready(record) || vf_tree_elsewhere(tree))
        return;
    for (size_t i = vf_tree_find_snapshot(tree, name); i != VF_NO_IMAGE;
         i = tree->images[i].parent) {
        const struct vf_image *image = &tree->images[i];

        if (!is_gone(image))
            continue;
        VF_AUTO_FREE char *message = vf_printf("disk %s: %s", tree->disk, image->problem);

        vf_sanitize(message);
        vf_json_add_bool(record, "readyToUse", false);
        set_condition(record, "Ready",
                      image->trouble == VF_TROUBLE_MISSING ? "ImageMissing" : "ImageReplaced",
                      message);
        return;
    }
}

/* Of its first disk that builds on any snapshot; borrowed. */
static const char *
parent_of(const struct vf_forest *forest, const char *name)
{
    for (size_t i = 0; i < forest->count; i++) {
        const struct vf_tree *tree = &forest->trees[i];
        size_t below = vf_tree_snapshot_below(tree, vf_tree_find_snapshot(tree, name));

        if (below != VF_NO_IMAGE)
            return tree->images[below].snapshot;
    }
    return NULL;
}

/* The image that QEMU was last seen to run from, if it is one of the tree's. */
static size_t
seen_image(const struct vf_tree *tree, struct json_object *disks)
{
    for (size_t i = 0; i < vf_json_length(disks); i++) {
        const char *name = vf_json_string(vf_json_at(disks, i), "name");
        const char *file = vf_json_string(vf_json_at(disks, i), "file");

        if (name && file && strcmp(name, tree->disk) == 0)
            return vf_tree_find_inode(tree, vf_inode_of(file));
    }
    return VF_NO_IMAGE;
}

static const char *
current_of(const struct vf_forest *forest, struct json_object *disks)
{
    for (size_t i = 0; i < forest->count; i++) {
        const struct vf_tree *tree = &forest->trees[i];
        size_t seen = seen_image(tree, disks);
        size_t below = vf_tree_snapshot_below(tree, seen != VF_NO_IMAGE ? seen : tree->current);

        if (below != VF_NO_IMAGE)
            return tree->images[below].snapshot;
    }
    return NULL;
}

/* What QEMU was seen to run from; NULL: never seen. Owned by the caller. */
static struct json_object *
seen_disks(const struct vf_vm *vm)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *seen = vf_disks_load(vm, &ignored);

    return json_object_get(vf_json_array(seen, "disks"));
}

void
vf_truth_complete(const struct vf_vm *vm, struct json_object *records)
{
    VF_AUTO_JSON struct json_object *disks = seen_disks(vm);
    VF_CLEANUP(vf_forest_release) struct vf_forest forest;

    vf_forest_read(records, disks, &forest);
    const char *current = current_of(&forest, disks);

    for (size_t i = 0; i < vf_json_length(records); i++) {
        struct json_object *record = vf_json_at(records, i);
        const char *name = vf_json_string(record, "name");

        const char *parent = name ? parent_of(&forest, name) : NULL;

        for (size_t k = 0; name && k < forest.count; k++)
            doubt(record, &forest.trees[k]);
        vf_clones_settle(record);
        vf_json_add(record, "parent", parent ? vf_json_new_string(parent) : NULL);
        vf_json_add_bool(record, "current", current && name && strcmp(current, name) == 0);
    }
}

struct json_object *
vf_truth_load(const struct vf_vm *vm, const char *snapshot, struct vmfrost_error *error)
{
    VF_AUTO_JSON struct json_object *record = vf_record_load(vm, snapshot, error);
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records = record ? vf_record_list(vm, &ignored) : NULL;

    vf_truth_complete(vm, records);
    struct json_object *completed = find_record(records, snapshot);

    return json_object_get(completed ? completed : record);
}

/* --- What is found --- */

struct finding {
    const char *type, *reason;
    char *message; /* what is the case, and what that means */
    char *next;    /* what to do */
};

struct truth {
    struct vf_flow *flow;
    struct json_object *records, *disks;
    struct vf_forest forest;
    struct finding *findings;
    size_t count;
};

/* Texts are owned by this call. */
static void
find(struct truth *truth, const char *type, const char *reason, char *message, char *next)
{
    VF_GROW(truth->findings, truth->count);
    truth->findings[truth->count++] = (struct finding){type, reason, message, next};
    vf_sanitize(message);
    vf_sanitize(next);
}

static void
truth_release(struct truth *truth)
{
    for (size_t i = 0; i < truth->count; i++) {
        free(truth->findings[i].message);
        free(truth->findings[i].next);
    }
    free(truth->findings);
    vf_forest_release(&truth->forest);
    json_object_put(truth->records);
    json_object_put(truth->disks);
}

/* One condition for each type, one warning for each finding. */
static void
tell(const struct truth *truth, struct json_object *conditions)
{
    for (size_t i = 0; i < truth->count; i++) {
        const struct finding *finding = &truth->findings[i];
        struct json_object *condition = NULL;

        vf_warn(truth->flow, "%s: %s", finding->message, finding->next);
        for (size_t k = 0; k < vf_json_length(conditions) && !condition; k++)
            if (strcmp(vf_json_string(vf_json_at(conditions, k), "type"), finding->type) == 0)
                condition = vf_json_at(conditions, k);
        const char *before = vf_json_string(condition, "message");
        VF_AUTO_FREE char *message =
            vf_printf("%s%s%s", before ? before : "", before ? "; " : "", finding->message);

        if (!condition) {
            condition = vf_json_strings("type", finding->type, "status", "True", "reason",
                                        finding->reason, NULL);
            vf_json_append(conditions, condition);
        }
        vf_json_add_string(condition, "message", message);
    }
}

/* --- The images that there should be --- */

/* "the sealed image web@before.qcow2 of snapshot before"; owned by the caller. */
static char *
describe(const struct vf_tree *tree, size_t index)
{
    const struct vf_image *image = &tree->images[index];
    size_t child = vf_tree_children(tree, index, VF_NO_IMAGE);

    if (image->snapshot)
        return vf_printf("the image of snapshot %s", image->snapshot);
    if (image->current)
        return vf_strdup("the current image");
    return child != VF_NO_IMAGE ? vf_printf("what %s builds on", tree->images[child].path)
                                : vf_strdup("an image");
}

static void
find_gone(struct truth *truth, const struct vf_tree *tree, size_t index)
{
    const struct vf_image *image = &tree->images[index];
    VF_AUTO_FREE char *what = describe(tree, index);
    VF_AUTO_FREE char *moved = vf_image_moved(image);
    char *message, *next;

    if (moved)
        message = vf_printf("disk %s: %s, %s; the same file is there as %s", tree->disk,
                            image->problem, what, moved);
    else
        message = vf_printf("disk %s: %s, %s", tree->disk, image->problem, what);
    if (!moved)
        next = vf_strdup("put it back from where it was moved to, or from a backup; whatever "
                         "builds on it is of no use without it");
    else if (vf_name_of(moved)[0] == '.')
        next = vf_printf("give it its name back: ln '%s' '%s'", moved, image->path);
    else
        next = vf_printf("give it its name back: mv '%s' '%s'", moved, image->path);
    find(truth, "ImageMissing", image->trouble == VF_TROUBLE_MISSING ? "Missing" : "Replaced",
         message, next);
}

static void
find_damaged(struct truth *truth, const struct vf_tree *tree, size_t index)
{
    const struct vf_image *image = &tree->images[index];
    VF_AUTO_FREE char *what = describe(tree, index);

    find(truth, "ImageDamaged",
         image->trouble == VF_TROUBLE_UNREADABLE ? "Unreadable"
         : image->trouble == VF_TROUBLE_LOOP     ? "Loop"
                                                 : "Corrupt",
         vf_printf("disk %s: %s, %s", tree->disk, image->problem, what),
         vf_printf("look at it with `vmfrost verify %s`", truth->flow->vm.name));
}

static void
find_modified(struct truth *truth, const struct vf_tree *tree, const struct vf_image *image)
{
    time_t seconds = (time_t)(image->modified_ns / 1000000000);
    char when[32];
    struct tm parts;

    gmtime_r(&seconds, &parts);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &parts);
    find(
        truth, "SealedImageModified", "Modified",
        vf_printf("disk %s: %s, the image of snapshot %s, was written to after it was sealed (last "
                  "at %s): what builds on it may be damaged, too",
                  tree->disk, image->path, image->snapshot, when),
        vf_printf("find out who did it (a VM that was started from it, a repair) and put it back "
                  "from a backup; if it is right as it is, give it its time back: touch -d "
                  "@%" PRId64 ".%09d '%s'",
                  image->recorded.modified_ns / 1000000000,
                  (int)(image->recorded.modified_ns % 1000000000), image->path));
}

static void
look_at_image(struct truth *truth, const struct vf_tree *tree, size_t index)
{
    const struct vf_image *image = &tree->images[index];

    if (image->snapshot && !is_ready(find_record(truth->records, image->snapshot)))
        return;
    switch (image->trouble) {
    case VF_TROUBLE_NONE:
        break;
    case VF_TROUBLE_MISSING:
        if (vf_image_elsewhere(image))
            return;
        find_gone(truth, tree, index);
        return;
    case VF_TROUBLE_OTHER:
        find_gone(truth, tree, index);
        return;
    case VF_TROUBLE_UNREADABLE:
    case VF_TROUBLE_DAMAGED:
    case VF_TROUBLE_LOOP:
        find_damaged(truth, tree, index);
        return;
    }
    if (image->snapshot && image->recorded.modified_ns && vf_inode_known(image->inode) &&
        image->modified_ns != image->recorded.modified_ns)
        find_modified(truth, tree, image);
}

/* A running VM's chains are those of QEMU's graph, and its plan has warned of them already. */
static void
look_at_depth(struct truth *truth, const char *disk, int64_t images)
{
    const struct vf_flow *flow = truth->flow;
    int64_t most = flow->vm.warn_depth > 0 ? flow->vm.warn_depth : VF_DEPTH_WARNED;

    if (images > most)
        find(truth, "ChainDeep", "TooManyImages",
             vf_printf("disk %s stands on a chain of %" PRId64 " images, more than %" PRId64, disk,
                       images, most),
             vf_printf("delete snapshots that are no longer needed (vmfrost list %s): each image "
                       "takes time to open and to read through",
                       flow->vm.name));
}

static void
look_at_current(struct truth *truth, const struct vf_tree *tree)
{
    const struct vf_image *image = &tree->images[tree->current];

    if (image->parent != VF_NO_IMAGE && image->size > 0 &&
        image->allocated > image->size / 100 * NEARLY_FULL_PERCENT)
        find(truth, "OverlayNearlyFull", "Full",
             vf_printf("disk %s: %s takes up %" PRId64 " MiB, for a disk of %" PRId64
                       " MiB: nearly all of it was written anew since the last snapshot",
                       tree->disk, image->path, image->allocated >> 20, image->size >> 20),
             vf_strdup("a snapshot costs as much as a copy by now: delete those that are no longer "
                       "needed, and mind the room in the folder"));
}

static void
look_at_files(struct truth *truth)
{
    for (size_t i = 0; i < truth->forest.count; i++) {
        const struct vf_tree *tree = &truth->forest.trees[i];

        if (vf_tree_elsewhere(tree))
            continue;
        for (size_t k = 0; k < tree->count; k++)
            look_at_image(truth, tree, k);
        look_at_current(truth, tree);
    }
}

static void
look_at_depths(struct truth *truth)
{
    const struct vf_flow *flow = truth->flow;

    for (size_t i = 0; i < flow->plan.count; i++)
        if (flow->plan.disks[i].reason == VF_INCLUDED)
            look_at_depth(truth, flow->plan.disks[i].name, flow->plan.disks[i].depth + 1);
    for (size_t i = 0; i < truth->forest.count && !flow->facts.status; i++) {
        const struct vf_tree *tree = &truth->forest.trees[i];
        int64_t images = 0;

        for (size_t k = tree->current; k != VF_NO_IMAGE; k = tree->images[k].parent)
            images++;
        look_at_depth(truth, tree->disk, images);
    }
}

/* --- What QEMU runs from --- */

/* Finds the image of a snapshot in any tree; VF_NO_IMAGE if it is none. */
static size_t
find_sealed(const struct truth *truth, const char *path, struct vf_inode inode,
            const struct vf_tree **tree_r)
{
    for (size_t i = 0; i < truth->forest.count; i++) {
        const struct vf_tree *tree = &truth->forest.trees[i];

        for (size_t k = 0; k < tree->count; k++) {
            const struct vf_image *image = &tree->images[k];

            *tree_r = tree;
            if (image->snapshot && image->trouble != VF_TROUBLE_OTHER &&
                is_ready(find_record(truth->records, image->snapshot)) &&
                (vf_inode_known(inode) ? vf_inode_equal(image->inode, inode)
                                       : strcmp(image->path, path) == 0))
                return k;
        }
    }
    return VF_NO_IMAGE;
}

/* What the launcher should open instead: the newest image that was the current one. Owned by the
 * caller; NULL if that is not known. */
static char *
right_image(const struct truth *truth, const struct vf_tree *tree, size_t sealed)
{
    const struct vf_image *image = &tree->images[tree->current];
    struct json_object *cuts;
    struct vf_cut cut;
    char *found = NULL;

    if (tree->current != sealed)
        return vf_strdup(image->path);
    /* The launcher has made it the current one. The snapshot's own cut says what came after it. */
    cuts = vf_json_array(find_record(truth->records, tree->images[sealed].snapshot), "cuts");
    for (size_t i = 0; i < vf_json_length(cuts) && !found; i++) {
        if (!vf_cut_parse(&cut, vf_json_at(cuts, i)))
            continue;
        if (vf_inode_known(cut.base) ? vf_inode_equal(cut.base, tree->images[sealed].inode)
                                     : strcmp(cut.names.sealed, tree->images[sealed].path) == 0)
            found = vf_strdup(cut.naming == VF_NAMING_FLIP ? cut.names.top : cut.names.overlay);
        vf_cut_release(&cut);
    }
    return found;
}

static void
find_on_sealed(struct truth *truth, const char *disk, const struct vf_tree *tree, size_t sealed,
               bool running)
{
    const struct vf_image *image = &tree->images[sealed];
    VF_AUTO_FREE char *right = right_image(truth, tree, sealed);
    const char *where = right ? right : "the newer image";

    find(truth, "Diverged", "SealedImageOpened",
         vf_printf("disk %s: %s %s, the image of snapshot %s, instead of the current image %s: the "
                   "snapshot is overwritten, and so is what the current image builds on",
                   disk, running ? "QEMU writes to" : "the VM ran last on", image->path,
                   image->snapshot, where),
         running ? vf_printf("stop the VM now, and start it with %s (format qcow2): there is what "
                             "was written after the snapshot; what was written since this start is "
                             "in %s",
                             where, image->path)
                 : vf_printf("start it with %s (format qcow2): there is what was written after the "
                             "snapshot; what was written when it ran last is in %s",
                             where, image->path));
}

static bool
is_opened(struct vf_flow *flow, struct vf_inode inode)
{
    struct vf_opened opened;

    return flow->qemu.pid && vf_inode_known(inode) &&
           vf_view_opened(vf_view_of_qemu(flow), inode, &opened) &&
           (opened.read_only || opened.read_write);
}

/* QEMU has an image of a snapshot open, so that it goes on from there. */
static bool
goes_on(const struct truth *truth, const struct vf_tree *tree)
{
    for (size_t i = 0; i < tree->count; i++)
        if (tree->images[i].snapshot && is_opened(truth->flow, tree->images[i].inode))
            return true;
    return false;
}

/* The disk has snapshots, but QEMU runs from something that has nothing to do with them. */
static void
look_for_other(struct truth *truth, const struct vf_disk *disk, const struct vf_place *place)
{
    for (size_t i = 0; i < truth->forest.count; i++) {
        const struct vf_tree *tree = &truth->forest.trees[i];
        const struct vf_image *current = &tree->images[tree->current];

        if (strcmp(tree->disk, disk->name) != 0 || !vf_inode_known(place->inode) ||
            !vf_inode_known(current->inode) || vf_inode_equal(current->inode, place->inode) ||
            is_opened(truth->flow, current->inode) || goes_on(truth, tree))
            continue;
        find(
            truth, "Diverged", "OtherImage",
            vf_printf("disk %s: QEMU runs from %s, which does not build on any of its snapshots; "
                      "the state that goes on from them is in %s",
                      disk->name, place->path, current->path),
            vf_printf("if that is not wanted, stop the VM now, and let its launcher start %s; what "
                      "was written since this start is in %s",
                      current->path, place->path));
    }
}

/* Where what QEMU writes to this disk ends up. Owned by the caller; NULL: it is not known, or, if
 * `nameless_r` says so, in a file that has no name. */
static char *
written_to(struct vf_flow *flow, const char *file, bool *nameless_r)
{
    VF_AUTO_FREE char *folder = vf_folder_of(file);
    struct vf_inode inode;

    *nameless_r = false;
    if (*file == '/' && is_opened(flow, vf_inode_of(file)))
        return vf_strdup(file);
    if (!vf_process_removed(flow->qemu.pid, file, &inode, nameless_r) || *file != '/')
        return NULL;
    return vf_find_inode(folder, inode);
}

static void
find_parted(struct truth *truth, const struct vf_disk *disk, const char *problem)
{
    bool nameless;
    VF_AUTO_FREE char *file = written_to(truth->flow, disk->file, &nameless);
    int pid = (int)truth->flow->qemu.pid;

    find(truth, "Diverged", nameless ? "NoName" : "NameParted",
         nameless ? vf_printf("disk %s: %s: what the guest writes goes to a file without a name, "
                              "which is gone when QEMU ends",
                              disk->name, problem)
                  : vf_printf("disk %s: %s: what the guest writes goes to %s, and the VM would not "
                              "find it at its next start",
                              disk->name, problem, file ? file : "another file"),
         nameless
             ? vf_printf("do not stop the VM: pause it and copy the image from /proc/%d/fd, or "
                         "let QEMU mirror the disk",
                         pid)
         : file ? vf_printf("stop the VM now, and give %s the name that its launcher opens", file)
                : vf_printf("find out which file it is (ls -l /proc/%d/fd), stop the VM now, and "
                            "give that file the name that its launcher opens",
                            pid));
}

static void
look_at_running(struct truth *truth)
{
    struct vf_flow *flow = truth->flow;

    for (size_t i = 0; i < flow->plan.count; i++) {
        const struct vf_disk *disk = &flow->plan.disks[i];
        struct vmfrost_error error = {.code = VMFROST_OK};
        const struct vf_tree *tree;
        struct vf_place place = {0};

        if (disk->reason != VF_INCLUDED)
            continue;
        if (vf_disk_place(flow, disk, &place, &error)) {
            size_t sealed = find_sealed(truth, place.path, place.inode, &tree);

            if (sealed != VF_NO_IMAGE)
                find_on_sealed(truth, disk->name, tree, sealed, true);
            else
                look_for_other(truth, disk, &place);
        } else if (place.parted) {
            find_parted(truth, disk, error.text);
        }
        vf_place_release(&place);
    }
}

static void
look_at_seen(struct truth *truth)
{
    for (size_t i = 0; i < vf_json_length(truth->disks); i++) {
        struct json_object *disk = vf_json_at(truth->disks, i);
        const char *name = vf_json_string(disk, "name"), *file = vf_json_string(disk, "file");
        const struct vf_tree *tree;

        if (!name || !file || !vf_json_bool(disk, "eligible", false))
            continue;
        size_t sealed = find_sealed(truth, file, vf_inode_of(file), &tree);

        if (sealed != VF_NO_IMAGE)
            find_on_sealed(truth, name, tree, sealed, false);
    }
}

/* --- Launchers --- */

static bool
is_of_this_qemu(const struct vf_flow *flow, struct json_object *record)
{
    struct json_object *qemu = vf_json_object(record, "qemu");
    int64_t pid = 0, started = 0;

    return flow->qemu.pid && vf_json_int(qemu, "pid", &pid) &&
           vf_json_int(qemu, "started", &started) && pid == flow->qemu.pid &&
           (uint64_t)started == flow->qemu.started;
}

bool
vf_truth_launcher_is_old(const struct vf_flow *flow, struct json_object *records, const char *top)
{
    bool old = false;

    for (size_t i = 0; i < vf_json_length(records); i++) {
        struct json_object *record = vf_json_at(records, i), *cuts = vf_json_array(record, "cuts");

        for (size_t k = 0;
             is_ready(record) && is_of_this_qemu(flow, record) && k < vf_json_length(cuts); k++) {
            const char *naming = vf_json_string(vf_json_at(cuts, k), "naming");
            const char *overlay = vf_json_string(vf_json_at(cuts, k), "overlay");

            old |=
                naming && overlay && strcmp(naming, "new-file") == 0 && strcmp(overlay, top) == 0;
        }
    }
    return old;
}

/* As long as the QEMU runs that was there when the file was made, nobody has proved to have changed
 * its launcher. */
static void
look_at_launchers(struct truth *truth)
{
    for (size_t i = 0; i < truth->forest.count; i++) {
        const struct vf_tree *tree = &truth->forest.trees[i];
        const char *current = tree->images[tree->current].path;

        if (vf_truth_launcher_is_old(truth->flow, truth->records, current))
            find(truth, "LauncherMustChange", "NewFile",
                 vf_printf("disk %s has the current image %s since this QEMU was started",
                           tree->disk, current),
                 vf_printf("from now on start the VM with %s, in format qcow2: what its launcher "
                           "opened before is the image of a snapshot now",
                           current));
    }
}

/* --- Ages --- */

static int64_t
now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
look_at_ages(struct truth *truth)
{
    const struct vf_flow *flow = truth->flow;
    int64_t most_ms = flow->vm.warn_age_ms > 0 ? flow->vm.warn_age_ms : OLD_MS;
    const char *oldest = NULL, *since = NULL;
    size_t count = 0;

    for (size_t i = 0; i < vf_json_length(truth->records); i++) {
        struct json_object *record = vf_json_at(truth->records, i);
        const char *time = vf_json_string(record, "creationTime");
        int64_t ms;

        if (!is_ready(record) || !time || !vf_parse_time_ms(time, &ms) || now_ms() - ms <= most_ms)
            continue;
        if (!since || strcmp(time, since) < 0) {
            oldest = vf_json_string(record, "name");
            since = time;
        }
        count++;
    }
    if (count == 0)
        return;
    find(truth, "SnapshotOld", "Old",
         count == 1 ? vf_printf("snapshot %s is old: it was taken at %s", oldest, since)
                    : vf_printf("%zu snapshots are old; the oldest, %s, was taken at %s", count,
                                oldest, since),
         vf_printf("a snapshot is no backup, and grows with all that is written since; delete what "
                   "is no longer needed: vmfrost delete %s@%s",
                   flow->vm.name, oldest));
}

void
vf_truth_tell(struct vf_flow *flow, struct json_object *conditions, bool settled)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    VF_CLEANUP(truth_release)
    struct truth truth = {.flow = flow,
                          .records = vf_record_list(&flow->vm, &ignored),
                          .disks = seen_disks(&flow->vm)};

    vf_forest_read(truth.records, truth.disks, &truth.forest);
    if (settled) {
        if (flow->facts.status)
            look_at_running(&truth);
        else
            look_at_seen(&truth);
        look_at_files(&truth);
        look_at_launchers(&truth);
    }
    look_at_depths(&truth);
    look_at_ages(&truth);
    /* An operation that has begun since may be turning names: what looked wrong is none of it. */
    VF_AUTO_JSON struct json_object *holder = settled ? vf_vm_holder(&flow->vm) : NULL;

    if (!holder)
        tell(&truth, conditions);
}
