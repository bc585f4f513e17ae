/* SPDX-License-Identifier: MIT
 *
 * The images of a disk as a tree: straight, branched, damaged, and such as nobody should have.
 */
#include "vm/tree.h"

#include "images.h"
#include "util/file.h"
#include "util/text.h"
#include "vm/cut.h"

static struct json_object *records;

static bool
make(const char *name, const char *backing, const char *format)
{
    return backing ? RUN("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", format, "-b",
                         backing, name, "64M")
                   : RUN("qemu-img", "create", "-q", "-f", "qcow2", name, "64M");
}

static uint64_t
number_of(const char *name)
{
    VF_AUTO_FREE char *path = path_of(name);

    return vf_inode_of(path).number;
}

/* A record with one cut: the one that a snapshot of this disk writes. `top` NULL: a new file. */
static void
record(const char *snapshot, const char *disk, const char *top, const char *sealed,
       const char *overlay, const char *format)
{
    VF_AUTO_FREE char *top_path = top ? path_of(top) : NULL;
    bool file = !strchr(sealed, ':');
    VF_AUTO_FREE char *sealed_path = file ? path_of(sealed) : vf_strdup(sealed);
    VF_AUTO_FREE char *overlay_path = path_of(overlay);
    VF_AUTO_FREE char *next_path = vf_printf("%s.next", overlay_path);
    struct json_object *document = vf_json_strings("name", snapshot, "phase", "Succeeded", NULL);
    struct json_object *cuts = json_object_new_array();
    struct json_object *cut =
        vf_json_strings("name", disk, "node", "n", "overlayNode", "o", "format", format, "baseFile",
                        "b", "naming", top ? "flip" : "new-file", "sealed", sealed_path, "overlay",
                        overlay_path, "backing", "b", "top", top_path, "next",
                        top ? next_path : NULL, NULL);

    vf_json_add_int(cut, "size", 64 << 20);
    vf_json_add_int(cut, "baseInode", file ? (int64_t)number_of(sealed) : 0);
    vf_json_add_int(cut, "overlayInode", (int64_t)number_of(overlay));
    json_object_array_add(cuts, cut);
    vf_json_add(document, "cuts", cuts);
    json_object_array_add(records, document);
}

static void
forget_records(void)
{
    json_object_put(records);
    records = json_object_new_array();
}

static bool
read_tree(const char *disk, const char *current, struct vf_tree *tree)
{
    VF_AUTO_FREE char *path = current ? path_of(current) : NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};
    bool read = vf_tree_read(records, disk, path, tree, &error);

    if (!read)
        diag("%s", error.text);
    return read;
}

/* By its name; VF_NO_IMAGE if there is none. */
static size_t
at(const struct vf_tree *tree, const char *name)
{
    VF_AUTO_FREE char *path = *name == '/' ? vf_strdup(name) : path_of(name);

    for (size_t i = 0; i < tree->count; i++)
        if (strcmp(tree->images[i].path, path) == 0)
            return i;
    return VF_NO_IMAGE;
}

/* `parent` NULL: none. */
static void
check(const struct vf_tree *tree, const char *name, const char *snapshot, const char *parent,
      const char *problem)
{
    size_t i = at(tree, name);

    if (!ok(i != VF_NO_IMAGE, "%s is in the tree", name))
        return;
    const struct vf_image *image = &tree->images[i];

    is_str(image->snapshot, snapshot, "its snapshot");
    ok(image->parent == (parent ? at(tree, parent) : VF_NO_IMAGE) &&
           (!parent || image->parent != VF_NO_IMAGE),
       "it builds on %s", parent ? parent : "nothing");
    if (problem)
        has_str(image->problem, problem, "its problem");
    else
        is_str(image->problem, NULL, "no problem");
    ok(image->current == (i == tree->current), "it is current if it is the tree's current one");
}

/* golden.raw <- web@a <- web@b <- web.qcow2, and a hidden second name of web.qcow2. */
static void
make_chain(void)
{
    VF_AUTO_FREE char *top = path_of("web.qcow2"), *hidden = path_of(".web.qcow2.0123456789abcdef");

    RUN("rm", "-rf", "web.qcow2", "web@a.qcow2", "web@b.qcow2", ".web.qcow2.0123456789abcdef");
    RUN("qemu-img", "create", "-q", "-f", "raw", "golden.raw", "64M");
    make("web@a.qcow2", "golden.raw", "raw");
    make("web@b.qcow2", "web@a.qcow2", "qcow2");
    make("web.qcow2", "web@b.qcow2", "qcow2");
    ok(link(top, hidden) == 0, "a hidden link");
    forget_records();
    json_object_array_add(records, json("{\"name\": \"failed\", \"phase\": \"Failed\"}"));
    record("a", "vda", "web.qcow2", "web@a.qcow2", "web@b.qcow2", "qcow2");
    record("b", "vda", "web.qcow2", "web@b.qcow2", ".web.qcow2.0123456789abcdef", "qcow2");
}

static void
test_chain(void)
{
    struct vf_tree tree;

    make_chain();
    record("other", "vdb", "data.qcow2", "golden.raw", "data.qcow2", "raw");
    if (!ok(read_tree("renamed", "web.qcow2", &tree), "a straight chain is read"))
        return;
    is_int((long long)tree.count, 4, "its images");
    check(&tree, "web.qcow2", NULL, "web@b.qcow2", NULL);
    check(&tree, "web@b.qcow2", "b", "web@a.qcow2", NULL);
    check(&tree, "web@a.qcow2", "a", "golden.raw", NULL);
    check(&tree, "golden.raw", NULL, NULL, NULL);
    const struct vf_image *golden = &tree.images[at(&tree, "golden.raw")];
    const struct vf_image *sealed = &tree.images[at(&tree, "web@b.qcow2")];

    ok(!golden->own && sealed->own && tree.images[tree.current].own, "the golden base is not ours");
    is_str(golden->format, "raw", "its format");
    is_int(golden->size, 64 << 20, "its size");
    ok(golden->allocated < 1 << 20, "a sparse file takes up less");
    is_str(sealed->backing, "web@a.qcow2", "the name in the header");
    is_str(sealed->backing_format, "qcow2", "... and the format");
    is_str(sealed->backing_path, tree.images[sealed->parent].path, "... and where that is");
    is_int(sealed->size, 64 << 20, "virtual size");
    ok(sealed->allocated > 0 && sealed->modified_ns > INT64_C(1) << 60, "what it takes up, when");
    ok(vf_tree_find_snapshot(&tree, "a") == at(&tree, "web@a.qcow2"), "a snapshot is found");
    ok(sealed->recorded.inode.number == sealed->inode.number &&
           sealed->recorded.size == sealed->size && !golden->recorded.size,
       "what the record says");
    ok(vf_tree_snapshot_below(&tree, tree.current) == at(&tree, "web@b.qcow2") &&
           vf_tree_snapshot_below(&tree, at(&tree, "web@b.qcow2")) == at(&tree, "web@a.qcow2") &&
           vf_tree_snapshot_below(&tree, at(&tree, "web@a.qcow2")) == VF_NO_IMAGE &&
           vf_tree_snapshot_below(&tree, VF_NO_IMAGE) == VF_NO_IMAGE,
       "the snapshot below");
    ok(vf_tree_find_snapshot(&tree, "other") == VF_NO_IMAGE, "... one of another disk is not");
    vf_tree_release(&tree);

    ok(read_tree("vda", NULL, &tree), "what is current is known from the records");
    is_int((long long)tree.count, 4, "the same images");
    ok(tree.current == at(&tree, "web.qcow2"), "the same current one");
    vf_tree_release(&tree);
    struct vmfrost_error error = {.code = VMFROST_OK};

    ok(!vf_tree_read(records, "vdx", NULL, &tree, &error), "of an unknown disk it is not");
    has_str(error.text, "vdx", "the error names the disk");
}

/* After a restore two images build on web@a: the children are those by header. */
static void
test_branches(void)
{
    struct vf_tree tree;
    char *outsider = NULL;

    make_chain();
    RUN("mv", "web.qcow2", "web@c.qcow2");
    RUN("rm", ".web.qcow2.0123456789abcdef");
    make("web.qcow2", "web@a.qcow2", "qcow2");
    record("c", "vda", "web.qcow2", "web@c.qcow2", ".web.qcow2.0123456789abcdef", "qcow2");
    if (!ok(read_tree("vda", "web.qcow2", &tree), "a branched tree is read"))
        return;
    size_t a = at(&tree, "web@a.qcow2"), first = vf_tree_children(&tree, a, VF_NO_IMAGE);
    size_t second = vf_tree_children(&tree, a, first);

    is_int((long long)tree.count, 5, "its images");
    check(&tree, "web@c.qcow2", "c", "web@b.qcow2", NULL);
    check(&tree, "web@b.qcow2", "b", "web@a.qcow2", NULL);
    check(&tree, "web.qcow2", NULL, "web@a.qcow2", NULL);
    ok((first == tree.current && second == at(&tree, "web@b.qcow2")) ||
           (second == tree.current && first == at(&tree, "web@b.qcow2")),
       "two images build on one");
    ok(vf_tree_children(&tree, a, second) == VF_NO_IMAGE, "no third one does");
    ok(vf_tree_children(&tree, tree.current, VF_NO_IMAGE) == VF_NO_IMAGE, "none on the current");
    ok(vf_tree_children(&tree, VF_NO_IMAGE, VF_NO_IMAGE) == VF_NO_IMAGE, "none on nothing");

    ok(!vf_tree_outsiders(&tree, a, &outsider) && !outsider, "no others build on it");
    VF_AUTO_FREE char *from = path_of("web@b.qcow2");
    VF_AUTO_FREE char *to = path_of(".web.qcow2.fedcba9876543210");

    ok(link(from, to) == 0 && !vf_tree_outsiders(&tree, a, &outsider), "a second name is no other");
    make("clone.qcow2", "./web@a.qcow2", "qcow2");
    ok(vf_tree_outsiders(&tree, a, &outsider), "a clone does");
    ok(outsider && vf_ends_with(outsider, "/clone.qcow2"), "it is named");
    free(outsider);
    ok(!vf_tree_outsiders(&tree, at(&tree, "web@b.qcow2"), &outsider), "not on another one");
    RUN("ln", "-s", "web@b.qcow2", "alias");
    make("clone.qcow2", "alias", "qcow2");
    ok(vf_tree_outsiders(&tree, at(&tree, "web@b.qcow2"), &outsider), "by a symbolic link, too");
    free(outsider);
    make("clone.qcow2", "golden.raw", "raw");
    ok(vf_tree_outsiders(&tree, at(&tree, "golden.raw"), &outsider), "on the golden base, too");
    free(outsider);
    RUN("rm", "clone.qcow2", "alias", ".web.qcow2.fedcba9876543210");
    vf_tree_release(&tree);
}

static enum vf_builds
builds(const char *upper, const char *lower)
{
    VF_AUTO_FREE char *from = path_of(upper);
    VF_AUTO_FREE char *to = path_of(lower);

    return vf_builds_on(from, to);
}

/* Of a file of which no record knows anything. */
static void
test_builds_on(void)
{
    VF_AUTO_FREE char *clone = path_of("clone");

    make_chain();
    make("clone", "./web@a.qcow2", "qcow2");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_ON, "a clone builds on its image");
    ok(builds("clone", "golden.raw") == VF_BUILDS_ON, "... and on what is below");
    ok(builds("clone", "web@b.qcow2") == VF_BUILDS_NOT, "... not on what is above");
    ok(builds("clone", "clone") == VF_BUILDS_NOT, "... nor on itself");
    ok(builds("clone", "nowhere") == VF_BUILDS_NOT, "... nor on what is not there");
    RUN("ln", "-s", "web@a.qcow2", "alias");
    ok(builds("clone", "alias") == VF_BUILDS_ON, "by another name");
    RUN("mv", "clone", "clone@x");
    make("clone", "clone@x", "qcow2");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_ON, "with a snapshot of its own in between");
    RUN("rm", "clone@x");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_NOT, "with nothing in between");
    RUN("mkdir", "clone@x");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_PERHAPS, "with something odd in between");
    RUN("rmdir", "clone@x");
    put_file(clone, "no image");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_NOT, "no qcow2 image");
    put_file(clone, "");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_NOT, "empty");
    put_file(clone, "QFI\xfb and no more");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_PERHAPS, "a damaged one");
    RUN("rm", "clone");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_NOT, "gone");
    ok(builds("alias/clone", "web@a.qcow2") == VF_BUILDS_NOT, "gone with its folder");
    RUN("ln", "-s", "clone", "clone");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_PERHAPS, "one that cannot be looked at");
    RUN("rm", "clone", "alias");
    RUN("mkdir", "clone");
    ok(builds("clone", "web@a.qcow2") == VF_BUILDS_NOT, "a folder");
    RUN("rmdir", "clone");
}

/* disk.raw is sealed under its own name; then names can be flipped, because the rest is qcow2. */
static void
test_new_file(void)
{
    struct vf_tree tree;

    forget_records();
    RUN("qemu-img", "create", "-q", "-f", "raw", "disk.raw", "64M");
    make("disk+a.qcow2", "disk.raw", "raw");
    record("a", "vda", NULL, "disk.raw", "disk+a.qcow2", "raw");
    ok(read_tree("vda", NULL, &tree), "a raw disk's tree");
    check(&tree, "disk+a.qcow2", NULL, "disk.raw", NULL);
    check(&tree, "disk.raw", "a", NULL, NULL);
    vf_tree_release(&tree);

    ok(read_tree("vda", "disk.raw", &tree), "its launcher has opened the base again");
    is_int((long long)tree.count, 1, "nothing builds on what is current");
    check(&tree, "disk.raw", "a", NULL, NULL);
    is_str(tree.images[tree.current].format, "raw", "its format is the record's");
    vf_tree_release(&tree);

    record("b", "vda", NULL, "disk.raw", "disk+b.qcow2", "raw");
    make("disk+b.qcow2", "disk.raw", "raw");
    ok(read_tree("vda", NULL, &tree), "... and was cut there again");
    ok(vf_tree_find_inode(&tree, (struct vf_inode){0, 0}) == VF_NO_IMAGE, "no inode is no image");
    is_int((long long)vf_tree_find_snapshot(&tree, "b"), 1, "the newer snapshot has the image");
    const struct vf_image *lost = &tree.images[vf_tree_find_snapshot(&tree, "a")];

    has_str(lost->problem, "sealed again by snapshot b", "the older one is lost");
    vf_tree_release(&tree);

    json_object_array_del_idx(records, 1, 1);
    RUN("mv", "disk+a.qcow2", "disk+a@b.qcow2");
    make("disk+a.qcow2", "disk+a@b.qcow2", "qcow2");
    record("b", "vda", "disk+a.qcow2", "disk+a@b.qcow2", ".disk+a.qcow2.0123456789abcdef", "qcow2");
    ok(read_tree("vda", NULL, &tree), "flipped after a new file");
    check(&tree, "disk+a.qcow2", NULL, "disk+a@b.qcow2", NULL);
    check(&tree, "disk+a@b.qcow2", "b", "disk.raw", NULL);
    check(&tree, "disk.raw", "a", NULL, NULL);
    vf_tree_release(&tree);
}

static void
test_no_file(void)
{
    struct vf_tree tree;

    forget_records();
    make("remote.qcow2", "nbd://127.0.0.1:1/web", "raw");
    record("a", "vda", NULL, "nbd://127.0.0.1:1/web", "remote.qcow2", "raw");
    ok(read_tree("vda", NULL, &tree), "a network disk's tree");
    is_int((long long)tree.count, 2, "its images");
    const struct vf_image *base = &tree.images[vf_tree_find_snapshot(&tree, "a")];

    ok(tree.images[tree.current].parent == 1, "found by its name");
    is_str(base->path, "nbd://127.0.0.1:1/web", "as QEMU knows it");
    is_str(base->problem, NULL, "which is no problem");
    is_int(base->size, 64 << 20, "its size is the record's");
    is_str(tree.images[tree.current].backing_path, NULL, "no path");
    char *outsider = NULL;

    make("clone.qcow2", "nbd://127.0.0.1:1/web", "raw");
    ok(!vf_tree_outsiders(&tree, 1, &outsider), "it lies in no folder");
    RUN("rm", "clone.qcow2");
    vf_tree_release(&tree);
}

static void
test_broken(void)
{
    VF_AUTO_FREE char *a = path_of("web@a.qcow2");
    struct vf_tree tree;

    make_chain();
    RUN("mv", "web@a.qcow2", "moved.qcow2");
    ok(read_tree("vda", "web.qcow2", &tree), "an image is missing");
    is_int((long long)tree.count, 3, "what is below is not known");
    check(&tree, "web@b.qcow2", "b", "web@a.qcow2", NULL);
    check(&tree, "web@a.qcow2", "a", NULL, "is missing");
    vf_tree_release(&tree);

    make("web@a.qcow2", "golden.raw", "raw");
    ok(read_tree("vda", "web.qcow2", &tree), "another file has its name");
    check(&tree, "web@a.qcow2", "a", "golden.raw", "is not the file that was sealed");
    vf_tree_release(&tree);
    RUN("mv", "moved.qcow2", "web@a.qcow2");

    ok(truncate(a, 50) == 0 && read_tree("vda", "web.qcow2", &tree), "an image is cut short");
    check(&tree, "web@a.qcow2", "a", NULL, "cut short");
    vf_tree_release(&tree);

    make_chain();
    RUN("rm", "web.qcow2");
    ok(read_tree("vda", "web.qcow2", &tree), "the current image is missing");
    check(&tree, "web.qcow2", NULL, NULL, "is missing");
    check(&tree, "web@b.qcow2", "b", "web@a.qcow2", NULL);
    vf_tree_release(&tree);

    /* A deletion merges web.qcow2 into web@b, and turns the name; then it dies. */
    make_chain();
    RUN("mv", "web@b.qcow2", "web.qcow2");
    ok(read_tree("vda", "web.qcow2", &tree), "half of a deletion");
    is_int((long long)tree.count, 3, "one image less");
    check(&tree, "web.qcow2", "b", "web@a.qcow2", NULL);
    vf_tree_release(&tree);
}

static void
test_hostile(void)
{
    VF_AUTO_FREE char *fifo = path_of("fifo");
    struct vf_tree tree;

    make_chain();
    RUN("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "web.qcow2", "web@a.qcow2");
    ok(read_tree("vda", "web.qcow2", &tree), "a loop of three");
    int parents = 0;

    for (size_t i = 0; i < tree.count; i++)
        parents += tree.images[i].parent != VF_NO_IMAGE;
    is_int(parents, 2, "is cut where it closes");
    check(&tree, "web@a.qcow2", "a", NULL, "loop");
    vf_tree_release(&tree);

    RUN("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "web@a.qcow2", "web@a.qcow2");
    ok(read_tree("vda", "web.qcow2", &tree), "an image on itself");
    check(&tree, "web@a.qcow2", "a", NULL, "loop");
    check(&tree, "web@b.qcow2", "b", "web@a.qcow2", NULL);
    vf_tree_release(&tree);

    ok(mkfifo(fifo, 0600) == 0, "a FIFO");
    RUN("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "fifo", "web@a.qcow2");
    ok(read_tree("vda", "web.qcow2", &tree), "does not hang");
    check(&tree, "fifo", NULL, NULL, "neither a file nor a block device");
    vf_tree_release(&tree);

    /* A raw disk is the guest's: what looks like a header there is not followed. */
    make("raw-inside", "golden.raw", "raw");
    RUN("qemu-img", "rebase", "-u", "-F", "raw", "-b", "raw-inside", "web@a.qcow2");
    ok(read_tree("vda", "web.qcow2", &tree), "a header in a raw image");
    check(&tree, "raw-inside", NULL, NULL, NULL);
    ok(at(&tree, "golden.raw") == VF_NO_IMAGE, "is not followed");
    vf_tree_release(&tree);
    forget_records();
    ok(read_tree("vda", "raw-inside", &tree), "nobody says which format it has");
    is_str(tree.images[0].format, NULL, "nor is it probed");
    is_int((long long)tree.count, 1, "nor followed");
    vf_tree_release(&tree);
    ok(read_tree("vda", "web@b.qcow2", &tree), "its name says which format it has");
    is_int((long long)tree.count, 3, "so that it is followed");
    vf_tree_release(&tree);
}

static void
test_deep(void)
{
    struct vf_tree tree;

    forget_records();
    /* qemu-img takes its time: the header of one is that of all. */
    make("deep.qcow2", "deep-1000000.qcow2", "qcow2");
    VF_AUTO_FREE char *path = path_of("deep.qcow2");
    size_t length;
    VF_AUTO_FREE char *image = vf_read_file(path, 1 << 20, &length);
    char *name = memmem(image, length, "deep-1000000", 12);

    if (!ok(name, "the header of one"))
        return;
    for (int i = 0; i < VF_TREE_MOST; i++) {
        VF_AUTO_FREE char *made = vf_printf("%s/deep-%d.qcow2", folder, 1000000 + i);
        VF_AUTO_FREE char *next = vf_printf("deep-%d", 1000000 + i + 1);

        memcpy(name, next, strlen(next));
        VF_AUTO_FD int fd = open(made, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

        if (fd < 0 || write(fd, image, length) != (ssize_t)length)
            ok(false, "cannot write %s", made);
    }
    ok(read_tree("vda", "deep-1000000.qcow2", &tree), "an endless chain");
    is_int((long long)tree.count, VF_TREE_MOST, "is read so far");
    has_str(tree.images[VF_TREE_MOST - 1].problem, "more images than are looked at", "its end");
    vf_tree_release(&tree);
}

static void
test_forest(void)
{
    struct vf_forest forest;
    VF_AUTO_FREE char *raw = path_of("disk.raw");

    make_chain();
    RUN("mv", "disk+a.qcow2", "disk+a@b.qcow2");
    RUN("qemu-img", "create", "-q", "-f", "raw", "disk.raw", "64M");
    make("disk+a.qcow2", "disk.raw", "raw");
    record("a", "vdb", NULL, "disk.raw", "disk+a.qcow2", "raw");
    record("b", "vdb", "disk+a.qcow2", "disk+a@b.qcow2", ".disk+a.qcow2.0123456789abcdef", "qcow2");
    json_object_array_add(records, json("{\"name\": \"x\", \"cuts\": [7, {\"name\": 1}]}"));
    vf_forest_read(records, NULL, &forest);
    is_int((long long)forest.count, 2, "two disks");
    if (forest.count == 2) {
        is_str(forest.trees[0].disk, "vdb", "the first");
        is_int((long long)forest.trees[0].count, 3, "its images");
        is_str(forest.trees[1].disk, "vda", "the second");
        is_int((long long)forest.trees[1].count, 4, "its images");
    }
    vf_forest_release(&forest);

    json_object_array_del_idx(records, json_object_array_length(records) - 2, 2);
    VF_AUTO_JSON struct json_object *disks = json("[{\"name\": \"vda\", \"file\": \"/x\"}]");
    struct json_object *opened = vf_json_strings("name", "vdb", "file", raw, NULL);

    json_object_array_add(disks, opened);
    vf_forest_read(records, disks, &forest);
    is_str(forest.trees[0].images[forest.trees[0].current].path, raw, "a launcher's other image");
    ok(vf_ends_with(forest.trees[1].images[forest.trees[1].current].path, "/web.qcow2"),
       "a flipped name is what it is");
    vf_forest_release(&forest);

    /* The first lies in a tree already, the third is left out of snapshots. */
    make("other", "golden.raw", "raw");
    VF_AUTO_FREE char *other = path_of("other"), *sealed = path_of("web@a.qcow2");
    VF_AUTO_FREE char *three = vf_printf(
        "[{\"name\": \"x\", \"file\": \"%s\", \"format\": \"qcow2\", \"eligible\": true}, "
        "{\"name\": \"y\", \"file\": \"%s\", \"format\": \"qcow2\", \"eligible\": true}, "
        "{\"name\": \"z\", \"file\": \"%s\", \"format\": \"qcow2\", \"eligible\": false}]",
        sealed, other, other);
    VF_AUTO_JSON struct json_object *more = json(three);

    vf_forest_read(records, more, &forest);
    is_int((long long)forest.count, 3, "a disk without snapshots");
    is_str(forest.trees[2].disk, "y", "its name");
    is_int((long long)forest.trees[2].count, 2, "its format is believed, whatever its file's name");
    vf_forest_release(&forest);
    forget_records();
    vf_forest_read(records, NULL, &forest);
    is_int((long long)forest.count, 0, "no records, no trees");
    vf_forest_release(&forest);
}

/* Of a restore, the overlay does not build on the image that was sealed. */
static void
test_below(void)
{
    VF_AUTO_FREE char *below = path_of("web@a.qcow2");
    struct vf_cut cut;

    make_chain();
    struct json_object *document = vf_json_at(vf_json_array(vf_json_at(records, 2), "cuts"), 0);

    ok(vf_cut_parse(&cut, document) && !cut.below, "mostly, it does");
    is_str(vf_cut_backing_format(&cut), cut.format, "its header has the format of that");
    is_int(vf_cut_overlay_size(&cut), cut.size, "... and its size is the same");
    cut.below = vf_strdup(below);
    cut.below_format = vf_strdup("raw");
    cut.below_inode = vf_inode_of(below);
    cut.below_size = 4711 * 512;
    VF_AUTO_JSON struct json_object *kept = vf_cut_json(&cut);

    vf_cut_release(&cut);
    ok(vf_cut_parse(&cut, kept), "what it builds on is kept");
    is_str(cut.below, below, "... its name");
    ok(vf_inode_equal(cut.below_inode, vf_inode_of(below)), "... its inode");
    is_str(vf_cut_backing_format(&cut), "raw", "... its format");
    is_int(vf_cut_overlay_size(&cut), 4711 * 512, "... its size");
    vf_cut_release(&cut);
    json_object_object_del(kept, "belowSize");
    ok(!vf_cut_parse(&cut, kept), "half of that is nothing");
}

/* What a record keeps of a sealed image, so that a later look can tell whether it was written to.
 */
static void
test_refresh(void)
{
    VF_AUTO_FREE char *sealed = path_of("web@b.qcow2");
    VF_AUTO_FREE char *raw = path_of("odd.raw");
    struct timespec times[2] = {{1000000000, 0}, {1700000000, 123456789}};
    struct vf_cut cut;

    make_chain();
    struct json_object *document = vf_json_at(vf_json_array(vf_json_at(records, 2), "cuts"), 0);

    ok(vf_cut_parse(&cut, document) && cut.sealed_ns == 0, "an old record does not say");
    cut.base.number++;
    cut.size = 0;
    ok(utimensat(AT_FDCWD, sealed, times, 0) == 0, "a time");
    vf_cut_refresh(&cut);
    is_int(cut.sealed_ns, INT64_C(1700000000123456789), "the time of the file, in nanoseconds");
    ok(cut.base.number == number_of("web@b.qcow2") && cut.size == 64 << 20, "its inode, its size");
    VF_AUTO_JSON struct json_object *kept = vf_cut_json(&cut);

    vf_cut_release(&cut);
    ok(vf_cut_parse(&cut, kept) && cut.sealed_ns == INT64_C(1700000000123456789), "it is kept");
    RUN("rm", "web@b.qcow2");
    vf_cut_refresh(&cut);
    is_int(cut.sealed_ns, INT64_C(1700000000123456789), "a file that is gone changes nothing");
    free(cut.names.sealed);
    cut.names.sealed = vf_strdup(raw);
    strcpy(cut.format, "raw");
    ok(put_file(raw, "odd"), "a raw image");
    vf_cut_refresh(&cut);
    is_int(cut.size, 512, "has whole sectors");
    vf_cut_release(&cut);
}

static void
test_names(void)
{
    static const struct {
        const char *path, *backing, *result;
    } cases[] = {
        {"/a/b.qcow2", "c.qcow2", "/a/c.qcow2"},
        {"/a/b.qcow2", "../c.qcow2", "/a/../c.qcow2"},
        {"/b.qcow2", "c.qcow2", "/c.qcow2"},
        {"/a/b.qcow2", "/c.qcow2", "/c.qcow2"},
        {"/a/b.qcow2", "./c:d.qcow2", "/a/c:d.qcow2"},
        {"/a/b.qcow2", "d/c:d.qcow2", "/a/d/c:d.qcow2"},
        {"/a/b.qcow2", "c:d.qcow2", NULL},
        {"/a/b.qcow2", "nbd://h/x", NULL},
        {"/a/b.qcow2", "json:{\"driver\":\"file\"}", NULL},
        {"/a/b.qcow2", "file:/c.qcow2", "/c.qcow2"},
        {"/a/b.qcow2", "file:c.qcow2", NULL},
        {"/a/b.qcow2", "", NULL},
        {"nbd://h/x", "c.qcow2", NULL},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        VF_AUTO_FREE char *path = vf_backing_path(cases[i].path, cases[i].backing);

        is_str(path, cases[i].result, cases[i].backing);
    }
}

int
main(void)
{
    folder = scratch_new();
    records = json_object_new_array();
    if (!RUN("qemu-img", "--version")) {
        printf("1..0 # SKIP qemu-img is not installed\n");
        scratch_remove(folder);
        return EXIT_SUCCESS;
    }
    test_names();
    test_chain();
    test_branches();
    test_builds_on();
    test_new_file();
    test_no_file();
    test_broken();
    test_hostile();
    test_deep();
    test_forest();
    test_below();
    test_refresh();
    json_object_put(records);
    scratch_remove(folder);
    return done_testing();
}
