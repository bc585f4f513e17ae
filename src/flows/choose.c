/* SPDX-License-Identifier: MIT
 *
 * What has to be joined so that a snapshot can go: decided for each of its disks from the images'
 * headers and what QEMU has open, and decided anew each time, so that a deletion that was
 * interrupted goes on from whatever it had reached.
 *
 * A sealed image with one image on top of it is joined with that in the cheaper direction, by what
 * each takes up on disk; one with several on top of it is written up into each of them; one with
 * none just goes. Nothing is written into an image that is no snapshot of this VM's and not its
 * current state, nor into one that anything else builds on.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "flows/clones.h"
#include "flows/graft.h"
#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/graph.h"
#include "vm/tree.h"

/* One disk, while it is decided on. */
struct family {
    struct vf_tree tree;
    size_t sealed;              /* the image that is to go */
    const struct vf_disk *disk; /* as it is plugged in now; NULL: it is not */
    struct vf_place place;      /* ... and its current image */
};

static void
family_release(struct family *family)
{
    vf_tree_release(&family->tree);
    vf_place_release(&family->place);
}

void
vf_graft_release(struct vf_graft *graft)
{
    free(graft->upper);
    free(graft->lower);
    free(graft->lower_format);
    free(graft->owner);
    free(graft->below);
    free(graft->over);
    free(graft->over_owner);
    free(graft->over_backing);
    free(graft->root);
    free(graft->root_device);
    free(graft->root_file);
    free(graft->leftover);
    free(graft->leftover_file);
    memset(graft, 0, sizeof *graft);
}

static char *
copy(const char *text)
{
    return text ? vf_strdup(text) : NULL;
}

static void
set(char **slot, const char *value)
{
    free(*slot);
    *slot = copy(value);
}

static bool
refuse(struct vf_flow *flow, const struct vf_cut *cut, const char *why, const char *next)
{
    vf_note(flow, VMFROST_FAILED, "disk %s: %s", cut->name, why);
    if (vf_starts_with(next, "vmfrost "))
        vf_advise(flow, "see `%s %s`", next, flow->vm.name);
    else
        vf_advise(flow, "%s", next);
    return false;
}

/* The disk as it is plugged in now: the one whose visible name is the cut's, or, where names are
 * not flipped, the one that runs on what the cut made or stands on. */
static bool
is_disk(const struct vf_cut *cut, const struct vf_disk *disk, const struct vf_place *place)
{
    if (cut->naming == VF_NAMING_FLIP)
        return strcmp(place->path, cut->names.top) == 0;
    return strcmp(place->path, cut->names.overlay) == 0 || strcmp(disk->name, cut->name) == 0;
}

/* False if it may be plugged in, but its image is not where it should be. */
static bool
find_disk(struct vf_flow *flow, const struct vf_cut *cut, struct family *family)
{
    for (size_t i = 0; i < flow->plan.count; i++) {
        const struct vf_disk *disk = &flow->plan.disks[i];
        struct vmfrost_error error = {.code = VMFROST_OK};
        struct vf_place place = {0};

        if (!disk->node || !disk->file)
            continue;
        bool placed = vf_disk_place(flow, disk, &place, &error);

        if (placed && is_disk(cut, disk, &place)) {
            family->disk = disk;
            family->place = place;
            return true;
        }
        vf_place_release(&place);
        if (!placed && !disk->encrypted && strcmp(disk->name, cut->name) == 0) {
            vf_prefix(&error, "disk %s", disk->name);
            return vf_note_error(flow, &error);
        }
    }
    return true;
}

static const struct vf_image *
image_at(const struct family *family, size_t index)
{
    return &family->tree.images[index];
}

static size_t
count_children(const struct family *family, size_t parent)
{
    size_t count = 0;

    for (size_t child = vf_tree_children(&family->tree, parent, VF_NO_IMAGE); child != VF_NO_IMAGE;
         child = vf_tree_children(&family->tree, parent, child))
        count++;
    return count;
}

/* How far below the current image it is; VF_NO_IMAGE: it is on another branch. */
static size_t
depth_of(const struct family *family, size_t wanted)
{
    size_t depth = 0;

    for (size_t at = family->tree.current; at != VF_NO_IMAGE; at = image_at(family, at)->parent) {
        if (at == wanted)
            return depth;
        depth++;
    }
    return VF_NO_IMAGE;
}

/* The image in the current chain that stands on this one. */
static size_t
above(const struct family *family, size_t index)
{
    for (size_t at = family->tree.current; at != VF_NO_IMAGE; at = image_at(family, at)->parent)
        if (image_at(family, at)->parent == index)
            return at;
    return VF_NO_IMAGE;
}

/* A clone that the record tells of builds on the image: by its header, whatever the record says. */
static bool
is_cloned(struct vf_flow *flow, const struct vf_cut *cut, struct json_object *clone)
{
    const char *path = vf_json_string(clone, "path"), *disk = vf_json_string(clone, "disk");

    if (disk && strcmp(disk, cut->name) != 0)
        return false;
    switch (vf_clone_builds_on(clone, cut->names.sealed)) {
    case VF_BUILDS_NOT:
        return false;
    case VF_BUILDS_ON:
        vf_note(flow, VMFROST_FAILED, "disk %s: %s was cloned from this snapshot, and builds on it",
                cut->name, path);
        break;
    case VF_BUILDS_PERHAPS:
        vf_note(flow, VMFROST_FAILED,
                "disk %s: %s was cloned from this snapshot, and whether it still builds on it "
                "cannot be seen",
                cut->name, path ? path : "something");
        break;
    }
    vf_advise(flow, "remove it first, or make it stand alone (qemu-img rebase -b '' %s)",
              path ? path : "FILE");
    return true;
}

/* The image of a snapshot that records know by this inode, wherever it is. */
static const struct vf_image *
known_as(const struct family *family, struct vf_inode inode)
{
    for (size_t i = 0; i < family->tree.count; i++) {
        const struct vf_image *image = image_at(family, i);

        if (image->snapshot && vf_inode_equal(image->recorded.inode, inode))
            return image;
    }
    return NULL;
}

/* Whether anything that is not the VM's own builds on the image. */
static bool
nobody_else_builds_on(struct vf_flow *flow, const struct vf_cut *cut, const struct family *family)
{
    struct json_object *clones = vf_json_array(flow->record, "clones");
    VF_AUTO_FREE char *path = NULL;

    for (size_t i = 0; i < vf_json_length(clones); i++)
        if (is_cloned(flow, cut, vf_json_at(clones, i)))
            return false;
    if (!vf_tree_outsiders(&family->tree, family->sealed, &path))
        return true;
    const struct vf_image *lost = known_as(family, vf_inode_of(path));

    vf_note(flow, VMFROST_FAILED, "disk %s: %s builds on %s", cut->name, path, cut->names.sealed);
    if (lost)
        vf_advise(flow, "that is the image of snapshot %s: give it its name back: ln '%s' '%s'",
                  lost->snapshot, path, lost->path);
    else
        vf_advise(flow, "remove it first, or make it stand alone (qemu-img rebase -b '' %s)", path);
    return false;
}

/* QEMU, or the daemon, would open this image anew, by a name that leads to another one by now. */
static bool
is_stale(const struct vf_flow *flow, const struct family *family, size_t index)
{
    VF_AUTO_FREE char *node = copy(family->disk->node);
    struct vf_inode inode = image_at(family, index)->inode;

    for (size_t depth = depth_of(family, index); node && depth > 0; depth--) {
        char *below = copy(vf_graph_child(flow->facts.graph, node, "backing"));

        free(node);
        node = below;
    }
    return !node || !vf_node_leads_to(flow, node, inode);
}

/* The snapshot's own QEMU still runs: its launcher has not been asked since. */
static bool
is_same_start(const struct vf_flow *flow)
{
    struct json_object *qemu = vf_json_object(flow->record, "qemu");
    int64_t pid = 0, started = 0;

    return vf_json_int(qemu, "pid", &pid) && vf_json_int(qemu, "started", &started) &&
           pid == flow->qemu.pid && (uint64_t)started == flow->qemu.started;
}

static bool
is_stopped(const struct vf_flow *flow)
{
    return flow->engine.conditions & VF_IF_STOPPED;
}

/* QEMU has joined the two already, and only the name of the upper one was not turned: an earlier
 * process was killed there. The image above stands on the lower one in QEMU's chain, which is one
 * shorter than headers tell. */
static bool
is_joined(const struct vf_flow *flow, const struct family *family, size_t child)
{
    size_t length = 0, depth = family->disk ? depth_of(family, child) : VF_NO_IMAGE, images = depth;

    if (depth == VF_NO_IMAGE || depth == 0 || is_stopped(flow))
        return false;
    for (size_t at = child; at != VF_NO_IMAGE; at = image_at(family, at)->parent)
        images++;
    const char *found = NULL;

    for (const char *node = family->disk->node; node;
         node = vf_graph_child(flow->facts.graph, node, "backing"))
        if (length++ == depth)
            found = node;
    return length + 1 == images && found &&
           vf_node_leads_to(flow, found, image_at(family, family->sealed)->inode) &&
           !vf_node_leads_to(flow, found, image_at(family, child)->inode);
}

/* A job opens the image that it writes to for writing and, at its end, read-only again, by QEMU's
 * own name for it: where that leads to another image by now, it must not begin. A commit also
 * writes the header above, if that image is not open for writing anyway. At most one image of a
 * chain has such a name: the one that the launcher opened. */
static bool
is_possible(const struct vf_flow *flow, const struct family *family, size_t child,
            enum vf_graft_way way)
{
    size_t current = family->tree.current;

    if (!family->disk || is_stopped(flow) || depth_of(family, child) == VF_NO_IMAGE)
        return true; /* a daemon opens everything by the names of today */
    if (way == VF_GRAFT_DOWN && is_joined(flow, family, child))
        return true;
    if (way == VF_GRAFT_UP)
        return child == current || !is_stale(flow, family, child);
    if (child == current)
        return true; /* merge.c's */
    size_t over = above(family, child);

    return !is_stale(flow, family, family->sealed) &&
           (over == current || !is_stale(flow, family, over));
}

/* The way of one child; `alone`: it is the only one. */
static enum vf_graft_way
way_of(const struct vf_flow *flow, const struct vf_cut *cut, const struct family *family,
       size_t child, bool alone)
{
    const struct vf_image *upper = image_at(family, child),
                          *lower = image_at(family, family->sealed);

    if (!alone)
        return VF_GRAFT_UP;
    if (is_joined(flow, family, child))
        return VF_GRAFT_DOWN;
    if (cut->naming == VF_NAMING_NEW_FILE)
        /* The sealed image keeps its own name and format: only a launcher that still starts that
         * one is served by it. */
        return child == family->tree.current && family->disk && !is_stopped(flow) &&
                       is_same_start(flow)
                   ? VF_GRAFT_DOWN
                   : VF_GRAFT_UP;
    enum vf_graft_way cheaper = upper->allocated <= lower->allocated ? VF_GRAFT_DOWN : VF_GRAFT_UP;
    enum vf_graft_way other = cheaper == VF_GRAFT_DOWN ? VF_GRAFT_UP : VF_GRAFT_DOWN;

    return is_possible(flow, family, child, cheaper) ? cheaper : other;
}

/* Both images are what records and headers say, and qcow2 where they are written to. */
static bool
is_sound(struct vf_flow *flow, const struct vf_cut *cut, const struct vf_image *image, bool written)
{
    if (image->problem)
        return vf_note(flow, VMFROST_FAILED, "disk %s: %s: %s", cut->name, image->path,
                       image->problem);
    if (written && (!image->format || strcmp(image->format, "qcow2") != 0 || !image->inode.number))
        return vf_note(flow, VMFROST_FAILED, "disk %s: %s is no qcow2 file: it cannot be joined",
                       cut->name, image->path);
    return true;
}

/* The words for the header of `upper` that `lower` has for what is below it. */
static char *
words_for_below(const struct vf_image *upper, const struct vf_image *lower)
{
    VF_AUTO_FREE char *upper_folder = vf_folder_of(upper->path);
    VF_AUTO_FREE char *lower_folder = vf_folder_of(lower->path);

    if (!lower->backing)
        return NULL;
    return vf_strdup(strcmp(upper_folder, lower_folder) != 0 && lower->backing_path
                         ? lower->backing_path
                         : lower->backing);
}

static bool
has_room(struct vf_flow *flow, const struct vf_cut *cut, const char *path, int64_t bytes)
{
    VF_AUTO_FREE char *folder = vf_folder_of(path);
    int64_t room = vf_free_bytes(folder, false);

    if (room >= bytes)
        return true;
    vf_note(flow, VMFROST_FAILED,
            "disk %s: joining its images needs up to %lld MiB in %s, and %lld MiB are free",
            cut->name, (long long)(bytes >> 20), folder, (long long)(room >> 20));
    vf_advise(flow, "make room there first");
    return false;
}

static bool
add_graft(struct vf_flow *flow, size_t at, const struct family *family, size_t child,
          enum vf_graft_way way)
{
    const struct vf_cut *cut = &flow->cuts[at];
    const struct vf_image *upper = image_at(family, child),
                          *lower = image_at(family, family->sealed);
    size_t depth = family->disk ? depth_of(family, child) : VF_NO_IMAGE;
    bool chained = depth != VF_NO_IMAGE;
    size_t over = chained && way == VF_GRAFT_DOWN ? above(family, child) : VF_NO_IMAGE;
    const struct vf_image *above_it = over != VF_NO_IMAGE ? image_at(family, over) : NULL;

    if (!is_sound(flow, cut, upper, true) || !is_sound(flow, cut, lower, way == VF_GRAFT_DOWN))
        return false;
    int64_t bytes = way == VF_GRAFT_DOWN ? upper->allocated : lower->allocated;
    bool joined = way == VF_GRAFT_DOWN && is_joined(flow, family, child);

    if (!joined && !has_room(flow, cut, way == VF_GRAFT_DOWN ? lower->path : upper->path, bytes))
        return false;
    VF_GROW(flow->grafts, flow->graft_count);
    struct vf_graft *graft = &flow->grafts[flow->graft_count++];

    *graft = (struct vf_graft){
        .way = way,
        .cut = at,
        .upper = vf_strdup(upper->path),
        .lower = vf_strdup(lower->path),
        .upper_inode = upper->inode,
        .lower_inode = lower->inode,
        .lower_format = vf_strdup(lower->format ? lower->format : "raw"),
        .owner = copy(child == family->tree.current ? NULL : upper->snapshot),
        .below = way == VF_GRAFT_UP ? words_for_below(upper, lower) : NULL,
        .over = above_it ? vf_strdup(above_it->path) : NULL,
        .over_owner = above_it && over != family->tree.current ? copy(above_it->snapshot) : NULL,
        .over_backing = above_it ? copy(above_it->backing) : NULL,
        .root = chained ? vf_strdup(family->disk->node) : NULL,
        .root_device = chained ? vf_strdup(family->disk->root) : NULL,
        .root_file = chained ? vf_strdup(family->place.path) : NULL,
        .depth = chained ? depth : 0,
        .bytes = bytes,
        .joined = joined,
    };
    for (size_t image = chained ? family->tree.current : child; image != VF_NO_IMAGE;
         image = image_at(family, image)->parent)
        graft->length++;
    return true;
}

/* The current image goes down into the sealed one while the VM runs on it: merge.c does that, and
 * gets the nodes and names that these two have now. */
static bool
adopt(struct vf_flow *flow, struct vf_cut *cut, const struct family *family)
{
    const struct vf_disk *disk = family->disk;
    const char *base = vf_graph_child(flow->facts.graph, disk->node, "backing");
    const char *file_node = base ? vf_graph_child(flow->facts.graph, base, "file") : NULL;
    /* A format node's own name is "json:..." as soon as its chain differs from its header. */
    const char *base_file = base ? vf_node_file(flow, file_node ? file_node : base) : NULL;
    struct vf_opened opened;

    /* Somebody may have put another image below the overlay since. */
    if (!base_file || (flow->qemu.pid && cut->base.number &&
                       (!vf_process_opened(flow->qemu.pid, cut->base, &opened) ||
                        (!opened.read_only && !opened.read_write))))
        return refuse(flow, cut, "what QEMU has below its current image is not this snapshot's",
                      "vmfrost status");
    set(&cut->overlay_node, disk->node);
    set(&cut->filter, disk->root && strcmp(disk->root, disk->node) != 0 ? disk->root : NULL);
    set(&cut->overlay_file_node, disk->file_named ? disk->file_node : NULL);
    set(&cut->node, base);
    set(&cut->base_file, base_file);
    cut->own_file_node = file_node && file_node[0] != '#';
    cut->elsewhere = false;
    if (cut->naming == VF_NAMING_NEW_FILE) {
        cut->overlay = family->place.inode;
        return true;
    }
    /* The name by which QEMU knows its current image, if that is one of ours; else a new one, so
     * that the image has a name whatever the visible one leads to. */
    const char *known = disk->file;
    struct vf_names names;

    vf_names_make(&family->place, flow->snapshot_name, flow->id, &names);
    cut->overlay = family->place.inode;
    if (*known == '/' && strcmp(vf_name_of(known), vf_name_of(cut->names.top)) != 0 &&
        vf_inode_equal(vf_inode_of(known), cut->overlay)) {
        set(&cut->names.overlay, known);
        free(cut->names.next);
        cut->names.next = vf_printf("%s.next", known);
    } else {
        set(&cut->names.overlay, names.overlay);
        set(&cut->names.next, names.next);
    }
    vf_names_release(&names);
    return true;
}

/* Of a disk in use, what else works on its images. */
static bool
is_idle(struct vf_flow *flow, const struct vf_cut *cut, const struct family *family)
{
    const char *job =
        family->disk ? vf_graph_job_near(flow->facts.graph, family->disk->node) : NULL;

    if (job)
        return refuse(flow, cut, "another block job works on it", "wait for its end, or cancel it");
    return true;
}

/* Two spellings of one name in one folder: removing the one removes the other. */
static bool
is_same_name(const char *a, const char *b)
{
    VF_AUTO_FREE char *a_folder = vf_folder_of(a);
    VF_AUTO_FREE char *b_folder = vf_folder_of(b);
    struct stat a_about, b_about;

    return strcmp(vf_name_of(a), vf_name_of(b)) == 0 &&
           (stat(a_folder, &a_about) < 0 || stat(b_folder, &b_about) < 0 ||
            (a_about.st_dev == b_about.st_dev && a_about.st_ino == b_about.st_ino));
}

char *
vf_joined_name(const struct vf_flow *flow, const struct vf_cut *cut, struct json_object *records)
{
    struct vf_inode inode = vf_inode_of(cut->names.sealed);

    if (cut->names.top && !is_same_name(cut->names.top, cut->names.sealed) &&
        vf_inode_equal(vf_inode_of(cut->names.top), inode))
        return vf_strdup(cut->names.top);
    for (size_t i = 0; i < vf_json_length(records); i++) {
        struct json_object *record = vf_json_at(records, i), *cuts = vf_json_array(record, "cuts");
        const char *name = vf_json_string(record, "name");

        if (!name || strcmp(name, flow->snapshot_name) == 0)
            continue;
        for (size_t k = 0; k < vf_json_length(cuts); k++) {
            const char *sealed = vf_json_string(vf_json_at(cuts, k), "sealed");

            if (sealed && !is_same_name(sealed, cut->names.sealed) &&
                vf_inode_equal(vf_inode_of(sealed), inode))
                return vf_strdup(sealed);
        }
    }
    return NULL;
}

/* The image is written to, which is refused while anybody else has it open: an export, a backup,
 * the VM of a clone. QEMU's lock would keep us from it, too, but only when the snapshot is none any
 * more.
 */
static bool
nobody_else_uses(struct vf_flow *flow, const struct vf_cut *cut, const struct vf_image *image)
{
    const pid_t known[] = {flow->qemu.pid, flow->daemon.pid, flow->side.qemu.pid,
                           flow->side.daemon.pid};
    VF_AUTO_JSON struct json_object *users =
        vf_process_find_users(image->inode, known, sizeof known / sizeof *known);
    const char *name = vf_json_string(vf_json_at(users, 0), "name");
    int64_t pid = 0;

    /* Over TCP nobody knows which of them is the VM's own. */
    if (!flow->qemu.pid || !name || !vf_json_int(vf_json_at(users, 0), "pid", &pid))
        return true;
    vf_note(flow, VMFROST_FAILED,
            "disk %s: %s (process %lld) has %s open, which would be written to", cut->name, name,
            (long long)pid, image->path);
    vf_advise(flow, "delete the snapshot when that has ended: an export, a backup, or the VM of a "
                    "clone");
    return false;
}

/* A name that is turned or removed has to be that of the file itself. */
static bool
is_no_link(struct vf_flow *flow, const struct vf_cut *cut, const char *path)
{
    VF_AUTO_FREE char *real = realpath(path, NULL);
    struct stat about;

    if (lstat(path, &about) < 0 || !S_ISLNK(about.st_mode) || stat(path, &about) < 0 ||
        !S_ISREG(about.st_mode))
        return true;
    vf_note(flow, VMFROST_FAILED, "disk %s: %s is a symbolic link to %s now", cut->name, path,
            real ? real : "?");
    vf_advise(flow, "give the file its name back: mv '%s' '%s'", real ? real : "FILE", path);
    return false;
}

static bool
choose_ways(struct vf_flow *flow, size_t at, const struct family *family)
{
    struct vf_cut *cut = &flow->cuts[at];
    const struct vf_tree *tree = &family->tree;
    size_t children = count_children(family, family->sealed);

    for (size_t child = vf_tree_children(tree, family->sealed, VF_NO_IMAGE); child != VF_NO_IMAGE;
         child = vf_tree_children(tree, family->sealed, child)) {
        enum vf_graft_way way = way_of(flow, cut, family, child, children == 1);

        if (!is_possible(flow, family, child, way)) {
            vf_note(flow, VMFROST_FAILED,
                    "disk %s: QEMU has to open %s for writing, but knows it by a name that leads "
                    "to another image by now",
                    cut->name, image_at(family, child)->path);
            vf_advise(flow, "delete it when the VM has been stopped or started again");
            return false;
        }
        if (!is_no_link(flow, cut, image_at(family, child)->path))
            return false;
        if (!image_at(family, child)->own)
            return refuse(flow, cut, "an image that is none of this VM's builds on it",
                          "vmfrost verify");
        if (!nobody_else_uses(flow, cut,
                              image_at(family, way == VF_GRAFT_DOWN ? family->sealed : child)))
            return false;
        if (way == VF_GRAFT_DOWN && child == tree->current && family->disk && !is_stopped(flow)) {
            /* A client that connects while the merge is pending is not held back with the guest. */
            if (vf_graph_has_export(flow->facts.graph, family->disk->node))
                return refuse(flow, cut, "it is exported (see query-block-exports)",
                              "end the export first");
            return adopt(flow, cut, family);
        }
        if (!add_graft(flow, at, family, child, way))
            return false;
    }
    return true;
}

/* Whether everything is known that may build on the sealed image: what cannot be read could. */
static bool
is_readable(struct vf_flow *flow, const struct vf_cut *cut, const struct family *family)
{
    for (size_t i = 0; i < family->tree.count; i++) {
        const struct vf_image *image = image_at(family, i);
        bool may_be_above = image->trouble == VF_TROUBLE_UNREADABLE ||
                            (i == family->tree.current && image->trouble == VF_TROUBLE_MISSING);

        if (!image->own || !may_be_above)
            continue;
        vf_note(flow, VMFROST_FAILED,
                "disk %s: %s, so that it is not known whether it builds on this snapshot",
                cut->name, image->problem);
        vf_advise(flow, "put that right first: see `vmfrost verify %s`", flow->vm.name);
        return false;
    }
    return true;
}

/* Its image is not there: a deletion before this one came so far. Or it was moved away or lost, and
 * then something still builds on it. */
static bool
is_gone(struct vf_flow *flow, const struct vf_cut *cut, const struct family *family)
{
    size_t child = vf_tree_children(&family->tree, family->sealed, VF_NO_IMAGE);

    if (child == VF_NO_IMAGE)
        return true;
    vf_note(flow, VMFROST_FAILED, "disk %s: %s is missing, and %s builds on it", cut->name,
            cut->names.sealed, image_at(family, child)->path);
    vf_advise(flow,
              "put it back from where it was moved to (see `vmfrost status %s`), or from a "
              "backup",
              flow->vm.name);
    return false;
}

static bool
choose_disk(struct vf_flow *flow, size_t at, struct json_object *records)
{
    struct vf_cut *cut = &flow->cuts[at];
    VF_CLEANUP(family_release) struct family family = {.tree = {0}};
    struct vmfrost_error error = {.code = VMFROST_OK};

    cut->elsewhere = true;
    if (!find_disk(flow, cut, &family))
        return false;
    VF_AUTO_FREE char *joined = vf_joined_name(flow, cut, records);

    if (joined)
        return true;
    /* Of a disk that is not plugged in and whose name is not turned, the newest snapshot tells. */
    const char *current = cut->naming == VF_NAMING_FLIP ? cut->names.top
                          : family.disk                 ? family.place.path
                                                        : NULL;

    if (!vf_tree_read(records, cut->name, current, &family.tree, &error))
        return vf_note_error(flow, &error);
    family.sealed = vf_tree_find_snapshot(&family.tree, flow->snapshot_name);
    if (cut->naming == VF_NAMING_FLIP && !vf_inode_of(cut->names.sealed).number)
        return is_gone(flow, cut, &family);
    if (family.sealed == VF_NO_IMAGE || image_at(&family, family.sealed)->problem)
        return refuse(flow, cut,
                      family.sealed == VF_NO_IMAGE ? "its image is not found"
                                                   : image_at(&family, family.sealed)->problem,
                      "vmfrost verify");
    if (!is_no_link(flow, cut, cut->names.sealed))
        return false;
    if (cut->base.number && !vf_inode_equal(image_at(&family, family.sealed)->inode, cut->base)) {
        vf_note(flow, VMFROST_FAILED, "disk %s: %s is not the image that was sealed", cut->name,
                cut->names.sealed);
        vf_advise(flow, "somebody has moved or replaced it: see `vmfrost verify %s`",
                  flow->vm.name);
        return false;
    }
    if (family.sealed == family.tree.current) {
        /* Of a disk with a new file: merged before, or its launcher has opened the old file again.
         */
        cut->merged =
            !vf_inode_of(cut->names.overlay).number && count_children(&family, family.sealed) == 0;
        return cut->merged || refuse(flow, cut,
                                     "QEMU runs on the image of this snapshot, and another image "
                                     "builds on that",
                                     "vmfrost status");
    }
    if (!is_readable(flow, cut, &family))
        return false;
    /* The name of such an image is anybody's, and all that is the disk's builds on it. */
    cut->unrelated = cut->naming == VF_NAMING_NEW_FILE &&
                     !vf_json_bool(flow->record, "deleting", false) &&
                     count_children(&family, family.sealed) == 0;
    if (family.disk && !is_stopped(flow) && !flow->qemu.pid)
        return refuse(flow, cut, "over TCP it cannot be told which images QEMU has open",
                      "deleting needs a UNIX socket of the running QEMU "
                      "(-qmp unix:PATH,server=on,wait=off)");
    if (family.disk && !is_stopped(flow) &&
        !vf_inode_equal(image_at(&family, family.tree.current)->inode, family.place.inode))
        return refuse(flow, cut, "QEMU does not run on the current image of this chain",
                      "vmfrost status");
    if (!vf_folder_allows(cut->names.sealed, cut->naming == VF_NAMING_FLIP, &error)) {
        vf_prefix(&error, "disk %s", cut->name);
        return vf_note_error(flow, &error);
    }
    return is_idle(flow, cut, &family) && nobody_else_builds_on(flow, cut, &family) &&
           choose_ways(flow, at, &family);
}

bool
vf_choose_grafts(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records = vf_record_list(&flow->vm, &error);

    if (!records)
        return vf_note_error(flow, &error);
    for (size_t i = 0; i < flow->graft_count; i++)
        vf_graft_release(&flow->grafts[i]);
    flow->graft_count = 0;
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!choose_disk(flow, i, records))
            return false;
    return true;
}
