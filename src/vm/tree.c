/* SPDX-License-Identifier: MIT
 *
 * The images that records know come first, then what their headers name, from one to the next. An
 * image that is reached by two names is one image: of a file the inode tells, of a block device its
 * number, of everything else its name.
 */
#include "vm/tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/cut.h"
#include "vm/qcow2.h"

/* One disk of one record. */
struct known {
    struct vf_cut cut;
    const char *snapshot; /* borrowed */
};

struct knowns {
    struct known *all; /* oldest first */
    size_t count;
};

static void
knowns_release(struct knowns *knowns)
{
    for (size_t i = 0; i < knowns->count; i++)
        vf_cut_release(&knowns->all[i].cut);
    free(knowns->all);
    *knowns = (struct knowns){NULL, 0};
}

static void
knowns_read(struct json_object *records, struct knowns *knowns)
{
    for (size_t i = 0; i < vf_json_length(records); i++) {
        struct json_object *record = vf_json_at(records, i), *cuts = vf_json_array(record, "cuts");
        const char *name = vf_json_string(record, "name");

        for (size_t k = 0; name && k < vf_json_length(cuts); k++) {
            VF_GROW(knowns->all, knowns->count);
            struct known *known = &knowns->all[knowns->count];

            if (!vf_cut_parse(&known->cut, vf_json_at(cuts, k)))
                continue;
            known->snapshot = name;
            knowns->count++;
        }
    }
}

static bool
belongs(const struct vf_cut *cut, const char *disk, const char *current)
{
    switch (cut->naming) {
    case VF_NAMING_FLIP:
        return strcmp(cut->names.top, current) == 0;
    case VF_NAMING_NEW_FILE:
        return strcmp(cut->name, disk) == 0 || strcmp(cut->names.overlay, current) == 0;
    }
    return false;
}

/* What the launcher opens since this cut, if there was none since. */
static const char *
current_after(const struct vf_cut *cut)
{
    return cut->naming == VF_NAMING_FLIP ? cut->names.top : cut->names.overlay;
}

/* --- Files --- */

char *
vf_backing_path(const char *path, const char *backing)
{
    size_t before_slash = strcspn(backing, "/");
    bool protocol = memchr(backing, ':', before_slash);

    /* QEMU takes everything behind "file:" for the name, and it is not relative to the image. */
    if (protocol && vf_starts_with(backing, "file:"))
        return backing[5] == '/' ? vf_strdup(backing + 5) : NULL;
    if (protocol || !*backing || *path != '/')
        return NULL;
    if (*backing == '/')
        return vf_strdup(backing);
    VF_AUTO_FREE char *folder = vf_folder_of(path);

    /* As vf_names_make() writes names with a colon: */
    if (vf_starts_with(backing, "./"))
        backing += 2;
    return vf_printf("%s/%s", strcmp(folder, "/") == 0 ? "" : folder, backing);
}

/* Of the regular file that `path` leads to in the end, as QEMU would open it. */
static struct vf_inode
inode_behind(const char *path)
{
    struct stat about;

    if (*path != '/' || stat(path, &about) < 0 || !S_ISREG(about.st_mode))
        return (struct vf_inode){0, 0};
    return (struct vf_inode){about.st_dev, about.st_ino};
}

static int64_t
modified_ns(const struct stat *about)
{
    return (int64_t)about->st_mtim.tv_sec * 1000000000 + (int64_t)about->st_mtim.tv_nsec;
}

static bool
is_device(const char *path, dev_t *device_r)
{
    struct stat about;

    if (*path != '/' || stat(path, &about) < 0 || !S_ISBLK(about.st_mode))
        return false;
    *device_r = about.st_rdev;
    return true;
}

/* For what has no inode of its own. */
static bool
same_name(const char *a, const char *b)
{
    dev_t x, y;

    return strcmp(a, b) == 0 || (is_device(a, &x) && is_device(b, &y) && x == y);
}

/* --- The tree --- */

size_t
vf_tree_find_inode(const struct vf_tree *tree, struct vf_inode inode)
{
    for (size_t i = 0; i < tree->count; i++)
        if (vf_inode_equal(tree->images[i].inode, inode))
            return i;
    return VF_NO_IMAGE;
}

size_t
vf_tree_find_snapshot(const struct vf_tree *tree, const char *snapshot)
{
    for (size_t i = 0; i < tree->count; i++)
        if (tree->images[i].snapshot && strcmp(tree->images[i].snapshot, snapshot) == 0)
            return i;
    return VF_NO_IMAGE;
}

size_t
vf_tree_snapshot_below(const struct vf_tree *tree, size_t index)
{
    do
        index = index == VF_NO_IMAGE ? VF_NO_IMAGE : tree->images[index].parent;
    while (index != VF_NO_IMAGE && !tree->images[index].snapshot);
    return index;
}

size_t
vf_tree_children(const struct vf_tree *tree, size_t parent, size_t after)
{
    /* VF_NO_IMAGE + 1 is 0. */
    for (size_t i = after + 1; parent != VF_NO_IMAGE && i < tree->count; i++)
        if (tree->images[i].parent == parent)
            return i;
    return VF_NO_IMAGE;
}

static size_t
find(const struct vf_tree *tree, const char *path, struct vf_inode inode)
{
    if (vf_inode_known(inode))
        return vf_tree_find_inode(tree, inode);
    for (size_t i = 0; i < tree->count; i++)
        if (!vf_inode_known(tree->images[i].inode) && same_name(tree->images[i].path, path))
            return i;
    return VF_NO_IMAGE;
}

/* The first trouble of an image is what the others come from. `why` is owned by this call. */
static void
complain(struct vf_image *image, enum vf_trouble trouble, char *why)
{
    if (image->problem) {
        free(why);
        return;
    }
    image->trouble = trouble;
    image->problem = why;
}

/* The size of what has no header. */
static int64_t
raw_size(const char *path)
{
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    off_t end = fd >= 0 ? lseek(fd, 0, SEEK_END) : -1;

    return end > 0 ? end : 0;
}

static void
look_at(struct vf_image *image)
{
    struct stat about;

    if (*image->path != '/')
        return;
    if (stat(image->path, &about) < 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            complain(image, VF_TROUBLE_MISSING, vf_printf("%s is missing", image->path));
        else
            complain(image, VF_TROUBLE_UNREADABLE,
                     vf_printf("cannot look at %s: %s", image->path, strerror(errno)));
        return;
    }
    if (S_ISREG(about.st_mode)) {
        image->inode = (struct vf_inode){about.st_dev, about.st_ino};
        image->allocated = (int64_t)about.st_blocks * 512;
        image->modified_ns = modified_ns(&about);
    } else if (!S_ISBLK(about.st_mode)) {
        complain(image, VF_TROUBLE_UNREADABLE,
                 vf_printf("%s is neither a file nor a block device", image->path));
    }
}

/* `format` may be NULL. Returns its index. */
static size_t
add(struct vf_tree *tree, const char *path, const char *format)
{
    VF_GROW(tree->images, tree->count);
    struct vf_image *image = &tree->images[tree->count];

    *image = (struct vf_image){.path = vf_strdup(path),
                               .format = format ? vf_strdup(format) : NULL,
                               .parent = VF_NO_IMAGE};
    look_at(image);
    return tree->count++;
}

static void
read_image(struct vf_image *image)
{
    /* A block device is mostly known by a symbolic link. */
    VF_AUTO_FREE char *real = *image->path == '/' ? realpath(image->path, NULL) : NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_qcow2 header;

    if (!real || image->trouble == VF_TROUBLE_UNREADABLE || !image->format)
        return;
    if (strcmp(image->format, "qcow2") != 0) {
        if (strcmp(image->format, "raw") == 0)
            image->size = raw_size(real);
        return;
    }
    if (!vf_qcow2_read(real, &header, &error)) {
        complain(image, VF_TROUBLE_UNREADABLE, vf_strdup(error.text));
        return;
    }
    int64_t unused = vf_qcow2_unused(real);

    image->allocated -= image->allocated < unused ? image->allocated : unused;
    image->size = header.size;
    image->backing = VF_STEAL(header.backing);
    image->backing_format = VF_STEAL(header.backing_format);
    if (image->backing)
        image->backing_path = vf_backing_path(image->path, image->backing);
    if (header.corrupt)
        complain(image, VF_TROUBLE_DAMAGED, vf_printf("%s is marked as corrupt", image->path));
    vf_qcow2_release(&header);
}

/* Finds or adds what the image at `index` builds on. */
static void
follow(struct vf_tree *tree, size_t index)
{
    const struct vf_image *image = &tree->images[index];
    const char *name = image->backing_path ? image->backing_path : image->backing;

    if (!name)
        return;
    size_t below = find(tree, name, inode_behind(name));

    if (below == VF_NO_IMAGE && tree->count >= VF_TREE_MOST) {
        complain(&tree->images[index], VF_TROUBLE_LOOP,
                 vf_printf("%s builds on more images than are looked at", image->path));
        return;
    }
    if (below == VF_NO_IMAGE) {
        VF_AUTO_FREE char *real =
            *name == '/' && vf_inode_known(inode_behind(name)) ? realpath(name, NULL) : NULL;

        below = add(tree, real ? real : name, image->backing_format);
    }
    tree->images[index].parent = below;
}

/* Images that build on themselves would keep everybody busy for ever. */
static void
cut_loops(struct vf_tree *tree)
{
    /* For each image the walk, counted from one, that came through it. */
    VF_AUTO_FREE size_t *walks = vf_alloc((tree->count + 1) * sizeof *walks);

    for (size_t i = 0; i < tree->count; i++) {
        size_t at = i;

        while (at != VF_NO_IMAGE && !walks[at]) {
            struct vf_image *image = &tree->images[at];

            walks[at] = i + 1;
            if (image->parent != VF_NO_IMAGE && walks[image->parent] == i + 1) {
                complain(image, VF_TROUBLE_LOOP,
                         vf_printf("%s builds on itself: a loop of backing files", image->path));
                image->parent = VF_NO_IMAGE;
            }
            at = image->parent;
        }
    }
}

/* --- What records say --- */

/* Puts the sealed image of a cut into the tree. */
static void
add_sealed(struct vf_tree *tree, const struct known *known)
{
    const struct vf_cut *cut = &known->cut;
    struct vf_inode found = inode_behind(cut->names.sealed);
    bool other =
        vf_inode_known(cut->base) && vf_inode_known(found) && !vf_inode_equal(found, cut->base);
    /* Where its name is gone: a deletion may have merged it into the current image already. */
    size_t at = vf_inode_known(found) && !other ? find(tree, cut->names.sealed, found)
                : vf_inode_known(cut->base)     ? vf_tree_find_inode(tree, cut->base)
                                                : find(tree, cut->names.sealed, found);

    if (at == VF_NO_IMAGE || tree->images[at].snapshot) {
        const char *owner = at == VF_NO_IMAGE ? NULL : tree->images[at].snapshot;
        VF_AUTO_FREE char *taken =
            owner ? vf_printf("%s was sealed again by snapshot %s: the state of %s is lost",
                              cut->names.sealed, owner, known->snapshot)
                  : NULL;

        at = add(tree, cut->names.sealed, cut->format);
        if (taken) {
            /* The image is in the tree once already. */
            tree->images[at].inode = (struct vf_inode){0, 0};
            complain(&tree->images[at], VF_TROUBLE_OTHER, VF_STEAL(taken));
        }
    } else if (!tree->images[at].format) {
        tree->images[at].format = vf_strdup(cut->format);
    }
    struct vf_image *image = &tree->images[at];

    image->snapshot = vf_strdup(known->snapshot);
    image->own = true;
    image->recorded.inode = cut->base;
    image->recorded.modified_ns = cut->sealed_ns;
    image->recorded.size = cut->size;
    if (other && !vf_inode_equal(image->inode, cut->base))
        complain(image, VF_TROUBLE_OTHER,
                 vf_printf("%s is not the file that was sealed (inode %" PRIu64
                           " instead of %" PRIu64 ")",
                           image->path, found.number, cut->base.number));
    if (!image->size)
        image->size = cut->size;
}

/* The format of the current image; NULL: nobody says. */
static const char *
current_format(const struct knowns *knowns, const char *disk, const char *current)
{
    struct vf_inode inode = inode_behind(current);
    bool ours = false;

    for (size_t i = knowns->count; i-- > 0;) {
        const struct vf_cut *cut = &knowns->all[i].cut;

        if (!belongs(cut, disk, current))
            continue;
        if (vf_inode_known(inode) ? vf_inode_equal(cut->base, inode)
                                  : same_name(cut->names.sealed, current))
            return cut->format;
        /* Whatever this disk runs on since its first snapshot is an overlay. */
        ours |= strcmp(current_after(cut), current) == 0 || vf_inode_equal(cut->overlay, inode);
    }
    /* Not probed: a guest could write a header into a raw image. Its name is the administrator's
     * word. */
    return ours || vf_ends_with(current, ".qcow2") ? "qcow2" : NULL;
}

static const char *
find_current(const struct knowns *knowns, const char *disk)
{
    for (size_t i = knowns->count; i-- > 0;)
        if (strcmp(knowns->all[i].cut.name, disk) == 0)
            return current_after(&knowns->all[i].cut);
    return NULL;
}

/* `format` of the current image; NULL: find it out. */
static void
read_tree(const struct knowns *knowns, const char *disk, const char *current, const char *format,
          struct vf_tree *tree)
{
    *tree = (struct vf_tree){.disk = vf_strdup(disk)};
    tree->current = add(tree, current, format ? format : current_format(knowns, disk, current));
    tree->images[tree->current].current = true;
    tree->images[tree->current].own = true;
    /* The newest first: an image that was sealed twice has the newer content. */
    for (size_t i = knowns->count; i-- > 0;)
        if (belongs(&knowns->all[i].cut, disk, current) && tree->count < VF_TREE_MOST)
            add_sealed(tree, &knowns->all[i]);
    /* Grows while it is walked. */
    for (size_t i = 0; i < tree->count; i++) {
        read_image(&tree->images[i]);
        follow(tree, i);
    }
    cut_loops(tree);
}

bool
vf_tree_read(struct json_object *records, const char *disk, const char *current,
             struct vf_tree *tree, struct vmfrost_error *error)
{
    VF_CLEANUP(knowns_release) struct knowns knowns = {NULL, 0};

    *tree = (struct vf_tree){.current = VF_NO_IMAGE};
    knowns_read(records, &knowns);
    if (!current)
        current = find_current(&knowns, disk);
    if (!current)
        return vf_fail(error, VMFROST_FAILED,
                       "disk %s: no snapshot says which image is its current one", disk);
    read_tree(&knowns, disk, current, NULL, tree);
    return true;
}

void
vf_tree_release(struct vf_tree *tree)
{
    for (size_t i = 0; i < tree->count; i++) {
        struct vf_image *image = &tree->images[i];

        free(image->path);
        free(image->format);
        free(image->backing);
        free(image->backing_format);
        free(image->backing_path);
        free(image->snapshot);
        free(image->problem);
    }
    free(tree->images);
    free(tree->disk);
    *tree = (struct vf_tree){.current = VF_NO_IMAGE};
}

/* --- All disks --- */

/* The tree of a disk that was found by one of its cuts, the newest. */
struct found {
    const struct vf_cut *cut; /* borrowed */
    const char *current;
};

static bool
is_found(const struct found *founds, size_t count, const struct vf_cut *cut)
{
    for (size_t i = 0; i < count; i++)
        if (belongs(cut, founds[i].cut->name, current_after(founds[i].cut)))
            return true;
    return false;
}

/* What its launcher opens; borrowed. */
static const char *
current_of(const struct vf_cut *cut, struct json_object *disks)
{
    for (size_t i = 0; cut->naming == VF_NAMING_NEW_FILE && i < vf_json_length(disks); i++) {
        const char *name = vf_json_string(vf_json_at(disks, i), "name");
        const char *file = vf_json_string(vf_json_at(disks, i), "file");

        if (name && file && strcmp(name, cut->name) == 0)
            return file;
    }
    return current_after(cut);
}

/* The newest record's disks come first, in their own order. Returns how many. */
static size_t
find_disks(const struct knowns *knowns, struct json_object *disks, struct found *founds)
{
    size_t count = 0;

    for (size_t end = knowns->count, start; end > 0; end = start) {
        for (start = end;
             start > 0 && knowns->all[start - 1].snapshot == knowns->all[end - 1].snapshot;)
            start--;
        for (size_t i = start; i < end; i++) {
            const struct vf_cut *cut = &knowns->all[i].cut;

            if (!is_found(founds, count, cut))
                founds[count++] = (struct found){cut, current_of(cut, disks)};
        }
    }
    return count;
}

/* One of which there is no snapshot, unless it is in the forest already. */
static void
add_disk(struct vf_forest *forest, struct json_object *disk)
{
    const char *name = vf_json_string(disk, "name"), *file = vf_json_string(disk, "file");
    const struct knowns none = {NULL, 0};

    if (!name || !file || *file != '/' || !vf_json_bool(disk, "eligible", false))
        return;
    for (size_t i = 0; i < forest->count; i++)
        if (find(&forest->trees[i], file, inode_behind(file)) != VF_NO_IMAGE ||
            strcmp(forest->trees[i].images[forest->trees[i].current].path, file) == 0)
            return;
    read_tree(&none, name, file, vf_json_string(disk, "format"), &forest->trees[forest->count++]);
}

void
vf_forest_read(struct json_object *records, struct json_object *disks, struct vf_forest *forest)
{
    VF_CLEANUP(knowns_release) struct knowns knowns = {NULL, 0};

    knowns_read(records, &knowns);
    VF_AUTO_FREE struct found *founds = vf_alloc((knowns.count + 1) * sizeof *founds);
    size_t count = find_disks(&knowns, disks, founds);

    *forest =
        (struct vf_forest){vf_alloc((count + vf_json_length(disks) + 1) * sizeof *forest->trees),
                           count};
    for (size_t i = 0; i < count; i++)
        read_tree(&knowns, founds[i].cut->name, founds[i].current, NULL, &forest->trees[i]);
    for (size_t i = 0; i < vf_json_length(disks); i++)
        add_disk(forest, vf_json_at(disks, i));
}

void
vf_forest_release(struct vf_forest *forest)
{
    for (size_t i = 0; i < forest->count; i++)
        vf_tree_release(&forest->trees[i]);
    free(forest->trees);
    *forest = (struct vf_forest){NULL, 0};
}

/* --- Others --- */

bool
vf_image_elsewhere(const struct vf_image *image)
{
    return image->trouble == VF_TROUBLE_MISSING && image->snapshot &&
           !vf_inode_known(image->recorded.inode) && !vf_starts_with(image->path, "/dev/");
}

bool
vf_tree_elsewhere(const struct vf_tree *tree)
{
    bool elsewhere = false;

    for (size_t i = 0; i < tree->count; i++) {
        if (vf_inode_known(tree->images[i].inode))
            return false;
        elsewhere |= vf_image_elsewhere(&tree->images[i]);
    }
    return elsewhere;
}

char *
vf_image_moved(const struct vf_image *image)
{
    VF_AUTO_FREE char *folder = vf_folder_of(image->path);
    VF_AUTO_FREE char *found = vf_find_inode(folder, image->recorded.inode);
    struct stat about;

    /* The number of an inode is used again when its file is gone. */
    if (!found || lstat(found, &about) < 0 ||
        (image->recorded.modified_ns && modified_ns(&about) != image->recorded.modified_ns))
        return NULL;
    return VF_STEAL(found);
}

/* The file at `path`, which is none of the tree's images, builds on the image. */
static bool
builds_on(const struct vf_tree *tree, const struct vf_image *image, const char *path)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct stat about;
    struct vf_qcow2 header;

    if (lstat(path, &about) < 0 || !S_ISREG(about.st_mode) ||
        vf_tree_find_inode(tree, (struct vf_inode){about.st_dev, about.st_ino}) != VF_NO_IMAGE ||
        !vf_qcow2_read(path, &header, &ignored))
        return false;
    VF_AUTO_FREE char *resolved = header.backing ? vf_backing_path(path, header.backing) : NULL;
    const char *backing = resolved ? resolved : header.backing;
    bool builds = backing && (vf_inode_known(image->inode)
                                  ? vf_inode_equal(inode_behind(backing), image->inode)
                                  : same_name(backing, image->path));

    vf_qcow2_release(&header);
    return builds;
}

bool
vf_tree_outsiders(const struct vf_tree *tree, size_t index, char **path_r)
{
    const struct vf_image *image = &tree->images[index];
    VF_AUTO_FREE char *folder = vf_folder_of(image->path);
    DIR *entries = *image->path == '/' ? opendir(folder) : NULL;

    *path_r = NULL;
    for (struct dirent *entry; !*path_r && entries && (entry = readdir(entries));) {
        VF_AUTO_FREE char *path =
            vf_printf("%s/%s", strcmp(folder, "/") == 0 ? "" : folder, entry->d_name);

        if (builds_on(tree, image, path))
            *path_r = VF_STEAL(path);
    }
    if (entries)
        closedir(entries);
    return *path_r;
}

/* It does not begin like a qcow2 image, and can be read. */
static bool
is_other_format(const char *path)
{
    static const char magic[] = {'Q', 'F', 'I', '\xfb'};
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char start[sizeof magic] = {0};

    return fd >= 0 && pread(fd, start, sizeof start, 0) >= 0 &&
           memcmp(start, magic, sizeof magic) != 0;
}

enum vf_builds
vf_builds_on(const char *upper, const char *lower)
{
    const struct knowns none = {NULL, 0};
    VF_CLEANUP(vf_tree_release) struct vf_tree tree = {0};
    enum vf_builds builds = VF_BUILDS_NOT;
    struct stat about;

    if (stat(upper, &about) < 0)
        return errno == ENOENT || errno == ENOTDIR ? VF_BUILDS_NOT : VF_BUILDS_PERHAPS;
    if (!S_ISREG(about.st_mode) || is_other_format(upper))
        return VF_BUILDS_NOT;
    read_tree(&none, "", upper, "qcow2", &tree);
    size_t at = find(&tree, lower, inode_behind(lower));

    if (at != VF_NO_IMAGE && at != tree.current)
        return VF_BUILDS_ON;
    for (size_t i = 0; i < tree.count; i++) {
        switch (tree.images[i].trouble) {
        case VF_TROUBLE_UNREADABLE:
        case VF_TROUBLE_LOOP:
            builds = VF_BUILDS_PERHAPS;
            break;
        case VF_TROUBLE_NONE:
        case VF_TROUBLE_MISSING:
        case VF_TROUBLE_OTHER:
        case VF_TROUBLE_DAMAGED:
            break;
        }
    }
    return builds;
}

char *
vf_chain_trouble(const char *path, const char *format)
{
    const struct knowns none = {NULL, 0};
    VF_CLEANUP(vf_tree_release) struct vf_tree tree = {0};

    read_tree(&none, "", path, format, &tree);
    for (size_t at = tree.current; at != VF_NO_IMAGE; at = tree.images[at].parent) {
        switch (tree.images[at].trouble) {
        case VF_TROUBLE_MISSING:
        case VF_TROUBLE_UNREADABLE:
        case VF_TROUBLE_LOOP:
            return vf_strdup(tree.images[at].problem);
        case VF_TROUBLE_NONE:
        case VF_TROUBLE_OTHER:
        case VF_TROUBLE_DAMAGED:
            break;
        }
    }
    return NULL;
}
