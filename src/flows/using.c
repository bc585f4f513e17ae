/* SPDX-License-Identifier: MIT */
#include "flows/using.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flows/steps.h"
#include "flows/truth.h"
#include "store/journal.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/tree.h"

struct vf_using *
vf_using_new(const char *dest, const char *disk)
{
    struct vf_using *using = vf_alloc(sizeof *using);

    using->dest = vf_strdup(dest);
    using->disk = disk ? vf_strdup(disk) : NULL;
    using->extension = "qcow2";
    ev_timer_init(&using->look, NULL, 0, 0);
    return using;
}

static void
release_copies(struct vf_using *using)
{
    for (size_t i = 0; i < using->count; i++) {
        vf_newfile_release(&using->copies[i].file);
        free(using->copies[i].node);
    }
    free(VF_STEAL(using->copies));
    using->count = 0;
}

static void
release_holds(struct vf_using *using)
{
    for (size_t i = 0; i < using->hold_count; i++)
        vf_hold_release(&using->holds[i]);
    free(VF_STEAL(using->holds));
    using->hold_count = 0;
}

void
vf_using_release(struct vf_flow *flow)
{
    struct vf_using *using = flow->using;

    if (!using)
        return;
    ev_timer_stop(flow->loop, &using->look);
    release_copies(using);
    release_holds(using);
    free(using->folder);
    free(using->dest);
    free(using->disk);
    free(VF_STEAL(flow->using));
}

/* --- What is there --- */

/* The record, if the snapshot can be used. */
static bool
load_record(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *record = vf_truth_load(&flow->vm, flow->snapshot_name, &error);
    struct json_object *conditions = vf_json_array(record, "conditions");
    const char *why = NULL;

    if (!record)
        return vf_note_error(flow, &error);
    for (size_t i = 0; i < vf_json_length(conditions); i++) {
        const char *type = vf_json_string(vf_json_at(conditions, i), "type");

        if (type && strcmp(type, "Ready") == 0)
            why = vf_json_string(vf_json_at(conditions, i), "message");
    }
    if (!vf_json_bool(record, "readyToUse", false)) {
        vf_note(flow, VMFROST_FAILED, "the snapshot has no content that could be used%s%s",
                why ? ": " : "", why ? why : "");
        vf_advise(flow, "see `vmfrost show %s@%s` and `vmfrost status %s`", flow->vm.name,
                  flow->snapshot_name, flow->vm.name);
        return false;
    }
    return vf_cuts_parse(flow, vf_json_array(record, "cuts")) ||
           vf_record_unclear(&flow->vm, flow->snapshot_name, &error) || vf_note_error(flow, &error);
}

/* "vda, data". Owned by the caller. */
static char *
names_of_disks(const struct vf_flow *flow)
{
    char *names = vf_strdup("");

    for (size_t i = 0; i < flow->cut_count; i++) {
        VF_AUTO_FREE char *before = names;

        names = vf_printf("%s%s%s", before, i > 0 ? ", " : "", flow->cuts[i].name);
    }
    return names;
}

static bool
choose_disks(struct vf_flow *flow)
{
    struct vf_using *using = flow->using;
    struct vmfrost_error error = {.code = VMFROST_OK};

    for (size_t i = 0; i < flow->cut_count; i++) {
        if (using->disk && strcmp(using->disk, flow->cuts[i].name) != 0)
            continue;
        VF_GROW(using->copies, using->count);
        using->copies[using->count] =
            (struct vf_copy){.cut = i, .node = vf_printf("vfs%zu", i), .file = VF_NEWFILE_INIT};
        using->count++;
    }
    if (using->count > 0)
        return true;
    VF_AUTO_FREE char *names = names_of_disks(flow);

    if (using->disk)
        return vf_note(flow, VMFROST_FAILED, "the snapshot has no disk \"%s\"; it has %s",
                       using->disk, names);
    return vf_record_unclear(&flow->vm, flow->snapshot_name, &error) || vf_note_error(flow, &error);
}

/* Holds one image of a chain. */
static bool
hold(struct vf_flow *flow, const struct vf_cut *cut, const struct vf_image *image)
{
    struct vf_using *using = flow->using;
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (image->problem) {
        vf_note(flow, VMFROST_FAILED, "disk %s: %s", cut->name, image->problem);
        vf_advise(flow, "see `vmfrost verify %s` and `vmfrost status %s`", flow->vm.name,
                  flow->vm.name);
        return false;
    }
    if (*image->path != '/') {
        vf_note(flow, VMFROST_FAILED, "disk %s: %s is no file of this host", cut->name,
                image->path);
        vf_advise(flow, "copy it with QEMU's own tools (qemu-img convert)");
        return false;
    }
    VF_GROW(using->holds, using->hold_count);
    if (!vf_hold_take(&using->holds[using->hold_count], image->path, &error)) {
        vf_prefix(&error, "disk %s", cut->name);
        return vf_note_error(flow, &error);
    }
    using->hold_count++;
    return true;
}

static bool
hold_chain(struct vf_flow *flow, struct vf_copy *copy, struct json_object *records)
{
    const struct vf_cut *cut = &flow->cuts[copy->cut];
    VF_CLEANUP(vf_tree_release) struct vf_tree tree;
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!vf_tree_read(records, cut->name, cut->names.top, &tree, &error))
        return vf_note_error(flow, &error);
    size_t sealed = vf_tree_find_snapshot(&tree, flow->snapshot_name);

    if (sealed == VF_NO_IMAGE)
        return vf_note(flow, VMFROST_FAILED, "disk %s: its image is not found", cut->name);
    for (size_t i = sealed; i != VF_NO_IMAGE; i = tree.images[i].parent) {
        const struct vf_image *image = &tree.images[i];

        if (!hold(flow, cut, image))
            return false;
        if (image->parent != VF_NO_IMAGE && !image->backing_format)
            vf_warn(flow,
                    "disk %s: the header of %s does not say which format %s has: QEMU guesses",
                    cut->name, image->path, tree.images[image->parent].path);
        if (image->recorded.modified_ns && image->inode.number &&
            image->modified_ns != image->recorded.modified_ns)
            vf_warn(flow,
                    "disk %s: %s was written to after it was sealed: it is not what the snapshot "
                    "was (vmfrost status %s)",
                    cut->name, image->path, flow->vm.name);
        copy->bytes += image->inode.number ? image->allocated : cut->size;
    }
    if (copy->bytes > cut->size)
        copy->bytes = cut->size;
    return true;
}

static bool
hold_all(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records = vf_record_list(&flow->vm, &error);
    bool held = records || vf_note_error(flow, &error);

    for (size_t i = 0; i < flow->using->count && held; i++)
        held = hold_chain(flow, &flow->using->copies[i], records);
    return held;
}

/* --- Where it goes --- */

/* QEMU is told names in JSON, which is UTF-8; and what cannot be printed cannot be told of. */
static bool
is_plain(const char *path)
{
    VF_AUTO_FREE char *copy = vf_strdup(path);

    vf_sanitize(copy);
    return strcmp(copy, path) == 0;
}

/* "disk.qcow2": a disk's name can have slashes and more in it. Owned by the caller. */
static char *
file_name(const struct vf_using *using, const char *disk)
{
    char *name = vf_printf("%s.%s", disk, using->extension);

    for (char *at = name; *at; at++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-", *at) ||
            (at == name && (*at == '.' || *at == '-')))
            *at = '_';
    return name;
}

/* The file that is made of this disk. Owned by the caller. */
static char *
path_of(const struct vf_flow *flow, const struct vf_copy *copy)
{
    const struct vf_using *using = flow->using;
    VF_AUTO_FREE char *name = file_name(using, flow->cuts[copy->cut].name);

    if (!using->folder)
        return vf_strdup(using->dest);
    return vf_printf("%s/%s", strcmp(using->folder, "/") == 0 ? "" : using->folder, name);
}

/* The folder of a file, with its symbolic links resolved. Owned by the caller; NULL after a note.
 */
static char *
real_folder(struct vf_flow *flow, const char *folder)
{
    char *real = realpath(folder, NULL);
    struct stat about;

    if (real && stat(real, &about) == 0 && S_ISDIR(about.st_mode) && is_plain(real))
        return real;
    if (!real)
        vf_note(flow, VMFROST_FAILED, "there is no folder %s: %s", folder, strerror(errno));
    else if (!is_plain(real))
        vf_note(flow, VMFROST_USAGE, "the name of the folder %s cannot be printed", folder);
    else
        vf_note(flow, VMFROST_FAILED, "%s is no folder", folder);
    free(real);
    return NULL;
}

/* A name with a slash at its end that nothing has yet: its folder is there, and it is made later.
 */
static bool
find_new_folder(struct vf_flow *flow)
{
    struct vf_using *using = flow->using;
    VF_AUTO_FREE char *given = vf_strdup(using->dest);
    size_t length = strlen(given);

    while (length > 1 && given[length - 1] == '/')
        given[--length] = '\0';
    VF_AUTO_FREE char *parent = vf_folder_of(given);
    VF_AUTO_FREE char *real = real_folder(flow, parent);

    if (!real)
        return false;
    using->folder = vf_printf("%s/%s", strcmp(real, "/") == 0 ? "" : real, vf_name_of(given));
    using->made_folder = true;
    return true;
}

static bool
find_file(struct vf_flow *flow)
{
    struct vf_using *using = flow->using;
    VF_AUTO_FREE char *folder = vf_folder_of(using->dest);
    VF_AUTO_FREE char *real = real_folder(flow, folder);
    VF_AUTO_FREE char *names = names_of_disks(flow);

    if (!real)
        return false;
    if (using->count > 1) {
        vf_note(flow, VMFROST_USAGE, "the snapshot has %zu disks (%s), and %s is no folder",
                using->count, names, using->dest);
        vf_advise(flow, "name a folder (%s/ if it is to be made), or one disk with --disk",
                  using->dest);
        return false;
    }
    char *path = vf_printf("%s/%s", strcmp(real, "/") == 0 ? "" : real, vf_name_of(using->dest));

    free(using->dest);
    using->dest = path;
    return true;
}

static bool
find_place(struct vf_flow *flow)
{
    struct vf_using *using = flow->using;
    struct stat about;

    if (!*using->dest || !is_plain(using->dest))
        return vf_note(flow, VMFROST_USAGE,
                       *using->dest ? "the name \"%s\" cannot be printed"
                                    : "the name \"%s\" is empty",
                       using->dest);
    if (stat(using->dest, &about) == 0 && S_ISDIR(about.st_mode)) {
        using->folder = real_folder(flow, using->dest);
        return using->folder;
    }
    return vf_ends_with(using->dest, "/") ? find_new_folder(flow) : find_file(flow);
}

/* Every name is free, and no two disks want the same. */
static bool
names_are_free(struct vf_flow *flow)
{
    const struct vf_using *using = flow->using;

    for (size_t i = 0; i < using->count; i++) {
        VF_AUTO_FREE char *path = path_of(flow, &using->copies[i]);
        struct vmfrost_error error = {.code = VMFROST_OK};

        for (size_t k = 0; k < i; k++) {
            VF_AUTO_FREE char *other = path_of(flow, &using->copies[k]);

            if (strcmp(path, other) != 0)
                continue;
            vf_note(flow, VMFROST_FAILED, "disks %s and %s would both become %s",
                    flow->cuts[using->copies[k].cut].name, flow->cuts[using->copies[i].cut].name,
                    path);
            vf_advise(flow, "take one at a time, with --disk and a name of your own");
            return false;
        }
        VF_AUTO_FREE char *sum = vf_printf("%s.sha256", path);

        if (!using->made_folder &&
            (!vf_name_is_free(path, &error) || (using->sums && !vf_name_is_free(sum, &error))))
            return vf_note_error(flow, &error);
    }
    return true;
}

void
vf_step_using_find(struct vf_flow *flow)
{
    bool found = load_record(flow) && choose_disks(flow) && find_place(flow) &&
                 names_are_free(flow) && hold_all(flow);

    vf_end(flow, found ? VF_OK : VF_REFUSED);
}

/* --- Opening --- */

/* By names that are being turned, another image may have been opened. And a deletion that was there
 * before us may have decided already to write to ours; one that comes now sees that they are used.
 */
static bool
nobody_changes_them(struct vf_flow *flow)
{
    static const char *const changing[] = {"delete ", "restore ", "recover "};
    VF_AUTO_JSON struct json_object *holder = flow->changes ? NULL : vf_vm_holder(&flow->vm);
    const char *what = vf_json_string(holder, "what");

    for (size_t i = 0; what && i < sizeof changing / sizeof *changing; i++) {
        if (!vf_starts_with(what, changing[i]))
            continue;
        vf_note(flow, VMFROST_FAILED, "another vmfrost works on this VM's images right now: %s",
                what);
        vf_advise(flow, "try again when it is done");
        return false;
    }
    if (holder || flow->changes || !vf_journal_exists(&flow->vm))
        return true;
    vf_note(flow, VMFROST_FAILED, "an operation on this VM was interrupted");
    vf_advise(flow, "run `vmfrost recover %s` first", flow->vm.name);
    return false;
}

static bool
opened_what_is_held(struct vf_flow *flow)
{
    const struct vf_using *using = flow->using;

    for (size_t i = 0; i < using->hold_count; i++) {
        struct vf_opened opened;

        if (!using->holds[i].inode.number ||
            (vf_process_opened(flow->qemu.pid, using->holds[i].inode, &opened) && opened.read_only))
            continue;
        vf_note(flow, VMFROST_FAILED, "an image was replaced while it was opened");
        vf_advise(flow, "try again; see `vmfrost status %s`", flow->vm.name);
        return false;
    }
    return true;
}

static void open_next(struct vf_flow *flow);

static void
on_opened(struct vf_flow *flow, const struct vf_reply *reply)
{
    const struct vf_cut *cut = &flow->cuts[vf_using_current(flow)->cut];

    if (!vf_expect(flow, reply, "disk %s: cannot open %s", cut->name, cut->names.sealed))
        return;
    flow->at++;
    open_next(flow);
}

static void
open_next(struct vf_flow *flow)
{
    if (flow->at == flow->using->count) {
        vf_end(flow, opened_what_is_held(flow) && nobody_changes_them(flow) ? VF_OK : VF_REFUSED);
        return;
    }
    const struct vf_copy *copy = vf_using_current(flow);
    const struct vf_cut *cut = &flow->cuts[copy->cut];
    struct json_object *options = vf_image_options(cut->names.sealed, cut->format, copy->node);

    vf_json_add_bool(options, "read-only", true);
    vf_ask(flow, "blockdev-add", options, on_opened);
}

static void
on_attached(struct vf_flow *flow, const struct vf_reply *reply)
{
    (void)reply;
    flow->at = 0;
    open_next(flow);
}

void
vf_step_using_open(struct vf_flow *flow)
{
    if (vf_daemon_launch(flow, &flow->daemon))
        vf_daemon_attach(flow, &flow->daemon, on_attached);
}

/* --- The files --- */

static bool
has_room(struct vf_flow *flow)
{
    const struct vf_using *using = flow->using;
    VF_AUTO_FREE char *folder =
        using->folder ? vf_strdup(using->folder) : vf_folder_of(using->dest);
    int64_t room = vf_free_bytes(folder, false);
    double wanted = 0;

    for (size_t i = 0; i < using->count; i++)
        wanted += (double)using->copies[i].bytes;
    if ((double)room >= wanted)
        return true;
    vf_note(flow, VMFROST_FAILED, "it needs about %lld MiB in %s, and %lld MiB are free",
            (long long)(wanted / (1 << 20)) + 1, folder, (long long)(room >> 20));
    vf_advise(flow, "make room there, or choose another folder");
    return false;
}

static bool
make_folder(struct vf_flow *flow)
{
    struct vf_using *using = flow->using;

    if (!using->made_folder || mkdir(using->folder, 0777) == 0)
        return true;
    using->made_folder = false;
    return vf_note(flow, VMFROST_FAILED, "cannot create the folder %s: %s", using->folder,
                   strerror(errno));
}

void
vf_step_using_create(struct vf_flow *flow)
{
    struct vf_using *using = flow->using;
    bool created = make_folder(flow) && has_room(flow);

    for (size_t i = 0; i < using->count && created; i++) {
        VF_AUTO_FREE char *path = path_of(flow, &using->copies[i]);
        struct vmfrost_error error = {.code = VMFROST_OK};

        created =
            vf_newfile_create(&using->copies[i].file, path, &error) || vf_note_error(flow, &error);
    }
    vf_end(flow, created ? VF_OK : VF_REFUSED);
}

char *
vf_copy_name(const struct vf_copy *copy)
{
    return vf_printf("/proc/%d/fd/%d", (int)getpid(), copy->file.fd);
}

void
vf_using_let_go(struct vf_flow *flow)
{
    vf_qmp_close(flow->qmp);
    vf_daemon_stop(&flow->daemon);
    release_holds(flow->using);
}

void
vf_step_using_undo(struct vf_flow *flow)
{
    struct vf_using *using = flow->using;

    ev_timer_stop(flow->loop, &using->look);
    /* Before the files go: nobody is to write to what has no name. */
    vf_using_let_go(flow);
    release_copies(using);
    if (using->made_folder)
        rmdir(using->folder); /* not if one of the files is whole */
    vf_end(flow, VF_OK);
}

bool
vf_using_publish(struct vf_flow *flow, struct vf_copy *copy)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vf_newfile_publish(&copy->file, &error))
        return true;
    vf_prefix(&error, "disk %s", flow->cuts[copy->cut].name);
    return vf_note_error(flow, &error);
}

struct json_object *
vf_using_files_json(const struct vf_flow *flow)
{
    struct json_object *files = vf_json_new_array();

    for (size_t i = 0; i < flow->using->count; i++) {
        const struct vf_copy *copy = &flow->using->copies[i];
        const struct vf_cut *cut = &flow->cuts[copy->cut];
        struct json_object *file = vf_json_strings("disk", cut->name, "path", copy->file.path,
                                                   "format", flow->using->extension, NULL);
        struct stat about;

        vf_json_add_int(file, "size", cut->size);
        if (fstat(copy->file.fd, &about) == 0)
            vf_json_add_int(file, "allocated", (int64_t)about.st_blocks * 512);
        vf_json_add_string(file, "sha256", copy->checksum[0] ? copy->checksum : NULL);
        vf_json_append(files, file);
    }
    return files;
}
