/* SPDX-License-Identifier: MIT
 *
 * Verify: every image of a VM, looked at from all sides: its header, its place, what it builds on,
 * what the records say of it, and (by `qemu-img check`) the tables in it. Nothing is changed.
 *
 * The VM's lock is not taken, because a check can take hours: so an operation that begins in
 * the meantime makes the result doubtful, and that is said.
 */
#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flows/steps.h"
#include "flows/tables.h"
#include "store/disks.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/qcow2.h"
#include "vm/tree.h"

enum step {
    END = VF_STEP_END,
    CONNECT,
    IMAGES,
    TABLES,
    JUDGE,
    STEP_COUNT,
};

/* --- The document --- */

enum result { RESULT_OK, RESULT_WARNING, RESULT_ERROR };

static const char *
result_name(enum result result)
{
    switch (result) {
    case RESULT_OK:
        return "ok";
    case RESULT_WARNING:
        return "warning";
    case RESULT_ERROR:
        return "error";
    }
    return NULL;
}

static enum result
result_of(struct json_object *entry)
{
    const char *name = vf_json_string(entry, "result");

    for (enum result result = RESULT_ERROR; result > RESULT_OK; result--)
        if (strcmp(name, result_name(result)) == 0)
            return result;
    return RESULT_OK;
}

/* `text` is owned by this call. */
static void
complain(struct json_object *entry, enum result result, char *text)
{
    VF_AUTO_FREE char *owned = text;

    vf_sanitize(owned);
    vf_json_append(vf_json_array(entry, "problems"), vf_json_new_string(owned));
    if (result > result_of(entry))
        vf_json_add_string(entry, "result", result_name(result));
}

static struct json_object *
images_of(const struct vf_flow *flow)
{
    return vf_json_array(flow->document_json, "images");
}

/* Borrowed. */
static struct json_object *
add_entry(struct vf_flow *flow, const char *path, const char *disk)
{
    struct json_object *entry =
        vf_json_strings("path", path, "disk", disk, "result", result_name(RESULT_OK), NULL);

    vf_json_add(entry, "problems", vf_json_new_array());
    vf_json_append(images_of(flow), entry);
    return entry;
}

static bool
has_entry(const struct vf_flow *flow, const char *path)
{
    for (size_t i = 0; i < vf_json_length(images_of(flow)); i++)
        if (strcmp(vf_json_string(vf_json_at(images_of(flow), i), "path"), path) == 0)
            return true;
    return false;
}

/* --- One image --- */

static bool
is_written(const struct vf_flow *flow, const struct vf_image *image)
{
    struct vf_opened opened;

    if (!vf_json_bool(flow->document_json, "running", false))
        return false;
    if (flow->qemu.pid && vf_inode_known(image->inode) &&
        vf_process_opened(flow->qemu.pid, image->inode, &opened))
        /* A file node of the launcher's own stays open for writing below an overlay; locks tell who
         * writes, and what is not sealed may be without any. */
        return image->current ? opened.read_write : opened.may_write;
    return image->current; /* QEMU cannot be looked at */
}

static void
check_record(struct json_object *entry, const struct vf_image *image, bool written)
{
    if (!image->snapshot)
        return;
    if (image->recorded.modified_ns && vf_inode_known(image->inode) &&
        image->modified_ns != image->recorded.modified_ns)
        complain(entry, RESULT_ERROR,
                 vf_strdup("it was written to after it was sealed: it is not what the snapshot "
                           "was"));
    if (written && !image->current)
        complain(entry, RESULT_ERROR,
                 vf_strdup("QEMU has it open for writing, though it is the image of a snapshot"));
    if (image->recorded.size && image->size && image->size != image->recorded.size)
        complain(entry, RESULT_ERROR,
                 vf_printf("it is a disk of %" PRId64 " bytes, and not of %" PRId64
                           " as its record says",
                           image->size, image->recorded.size));
}

/* A qcow2 image that is opened as a raw one shows the guest its own tables. */
static bool
looks_like_qcow2(const struct vf_image *image)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_qcow2 header;
    bool looks = vf_qcow2_read(image->path, &header, &ignored);

    if (looks)
        vf_qcow2_release(&header);
    return looks;
}

static void
check_format(struct json_object *entry, const struct vf_image *image, const struct vf_image *below)
{
    if (!image->backing_format)
        complain(entry, RESULT_WARNING,
                 vf_printf("its header does not say which format %s has: QEMU guesses, and a guest "
                           "can deceive it",
                           below->path));
    else if (below->format && strcmp(image->backing_format, below->format) != 0)
        complain(entry, RESULT_ERROR,
                 vf_printf("its header says that %s is %s, and it is %s", below->path,
                           image->backing_format, below->format));
    else if (strcmp(image->backing_format, "raw") == 0 && !below->snapshot &&
             looks_like_qcow2(below))
        complain(entry, RESULT_WARNING,
                 vf_printf("its header says that %s is raw, and it looks like qcow2", below->path));
}

/* Names with a dot and 16 hex digits go when the QEMU goes that knows them. */
static bool
is_hidden(const char *path)
{
    VF_AUTO_FREE char *visible = vf_visible_name(vf_name_of(path));

    return visible;
}

static void
check_backing(struct json_object *entry, const struct vf_tree *tree, const struct vf_image *image)
{
    if (!image->backing)
        return;
    if (image->parent == VF_NO_IMAGE) {
        if (image->trouble == VF_TROUBLE_NONE)
            complain(entry, RESULT_ERROR,
                     vf_printf("what it builds on cannot be found: %s", image->backing));
        return;
    }
    const struct vf_image *below = &tree->images[image->parent];

    check_format(entry, image, below);
    if (below->trouble == VF_TROUBLE_MISSING)
        complain(entry, RESULT_ERROR, vf_printf("what it builds on is missing: %s", below->path));
    if (below->current)
        complain(entry, RESULT_ERROR,
                 vf_printf("it builds on %s, which is the current image and changes", below->path));
    if (!below->own && vf_tree_snapshot_below(tree, image->parent) != VF_NO_IMAGE)
        complain(entry, RESULT_ERROR,
                 vf_printf("it builds on %s, which stands between it and the next snapshot and is "
                           "none of the VM's",
                           below->path));
    if (image->backing_path && is_hidden(image->backing_path))
        complain(entry, RESULT_WARNING,
                 vf_printf("its header names %s, which does not stay", image->backing_path));
    if (image->size && below->size && image->size < below->size)
        complain(entry, RESULT_WARNING,
                 vf_printf("it is a disk of %" PRId64 " bytes, smaller than the one that it builds "
                           "on (%" PRId64 ")",
                           image->size, below->size));
}

/* Whether its tables are to be looked at; what is not, says why. */
static void
plan_check(struct json_object *entry, const struct vf_image *image, bool written)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_qcow2 header;
    const char *why = NULL;

    if (!image->format || strcmp(image->format, "qcow2") != 0)
        why = "only qcow2 images have tables";
    else if (image->trouble == VF_TROUBLE_MISSING || image->trouble == VF_TROUBLE_UNREADABLE)
        why = "it cannot be read";
    else if (written)
        why = "QEMU writes to it";
    else if (vf_qcow2_read(image->path, &header, &ignored)) {
        /* Names in headers are not followed to wherever they may lead. */
        if (header.external_data)
            why = "it has a data file of its own";
        else if (header.encrypted)
            why = "it is encrypted";
        vf_qcow2_release(&header);
    }
    vf_json_add_string(entry, "check", why ? "skipped" : "pending");
    vf_json_add_string(entry, "checkMessage", why);
}

static void
check_image(struct vf_flow *flow, const struct vf_tree *tree, size_t index)
{
    const struct vf_image *image = &tree->images[index];
    bool written = is_written(flow, image);

    /* One golden image can be below several disks. */
    if (has_entry(flow, image->path) && !image->snapshot)
        return;
    struct json_object *entry = add_entry(flow, image->path, tree->disk);

    vf_json_add_string(entry, "snapshot", image->snapshot);
    vf_json_add_bool(entry, "current", image->current);
    vf_json_add_string(entry, "format", image->format);
    if (vf_tree_elsewhere(tree)) {
        complain(entry, RESULT_WARNING, vf_strdup("it is not on this host, and was not looked at"));
        return;
    }
    if (image->problem)
        complain(entry, RESULT_ERROR, vf_strdup(image->problem));
    check_record(entry, image, written);
    check_backing(entry, tree, image);
    plan_check(entry, image, written);
}

/* --- Records and files that do not belong together --- */

static void
check_links(struct vf_flow *flow)
{
    VF_AUTO_FREE char *path = vf_printf("%s/links.json", flow->vm.folder);
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!vf_links_sound(flow, &error))
        complain(add_entry(flow, path, NULL), RESULT_ERROR, vf_strdup(error.text));
}

/* A record that cannot be read, or a cut in it. */
static void
check_records(struct vf_flow *flow, struct json_object *records)
{
    for (size_t i = 0; i < vf_json_length(records); i++) {
        struct json_object *record = vf_json_at(records, i), *cuts = vf_json_array(record, "cuts");
        const char *name = vf_json_string(record, "name");
        const char *phase = vf_json_string(record, "phase");
        VF_AUTO_FREE char *path =
            vf_printf("%s/records/%s.json", flow->vm.folder, name ? name : "?");
        const char *message = vf_json_string(vf_json_object(record, "error"), "message");
        struct vf_cut cut;
        char *why = NULL;

        if (phase && strcmp(phase, "Unknown") == 0)
            why = vf_strdup(message ? message : "it cannot be read");
        else if (vf_json_bool(record, "readyToUse", false) && vf_json_length(cuts) == 0)
            why = vf_strdup("it does not say which images it is made of");
        for (size_t k = 0; k < vf_json_length(cuts) && !why; k++) {
            if (vf_cut_parse(&cut, vf_json_at(cuts, k)))
                vf_cut_release(&cut);
            else
                why = vf_strdup("what it says of one of its disks makes no sense");
        }
        if (!why)
            continue;
        struct json_object *entry = add_entry(flow, path, NULL);

        vf_json_add_string(entry, "snapshot", name);
        complain(entry, RESULT_ERROR, why);
    }
}

/* "before" of "web@before.qcow2" beside "web.qcow2", and of "disk+before.qcow2" beside
 * "disk+other.qcow2"; false if it is none of ours. */
static bool
is_like_ours(const char *name, const char *current, char *snapshot, size_t size)
{
    const char *dot = strrchr(current, '.'), *plus = strrchr(current, '+');
    size_t stem = dot && dot != current ? (size_t)(dot - current) : strlen(current);
    const char *end = current + stem;
    const size_t starts[] = {stem, plus ? (size_t)(plus - current) : 0};
    const char marks[] = {'@', '+'};

    for (size_t i = 0; i < 2; i++) {
        if (starts[i] == 0 || strncmp(name, current, starts[i]) != 0 ||
            name[starts[i]] != marks[i] || !vf_ends_with(name, end))
            continue;
        size_t length = strlen(name) - starts[i] - 1;

        if (length <= strlen(end) || length - strlen(end) >= size)
            continue;
        memcpy(snapshot, name + starts[i] + 1, length - strlen(end));
        snapshot[length - strlen(end)] = '\0';
        if (vf_valid_name(snapshot))
            return true;
    }
    return false;
}

/* ".web.qcow2.<id>" and ".web.qcow2.<id>.next". */
static bool
is_link_of(const char *name, const char *current)
{
    VF_AUTO_FREE char *link = vf_strdup(name);

    if (vf_ends_with(link, ".next"))
        link[strlen(link) - strlen(".next")] = '\0';
    VF_AUTO_FREE char *visible = vf_visible_name(link);

    return visible && strcmp(visible, current) == 0;
}

static const struct vf_image *
find_image(const struct vf_forest *forest, struct vf_inode inode)
{
    for (size_t i = 0; i < forest->count; i++) {
        size_t found = vf_tree_find_inode(&forest->trees[i], inode);

        if (found != VF_NO_IMAGE)
            return &forest->trees[i].images[found];
    }
    return NULL;
}

static void
check_stray(struct vf_flow *flow, const struct vf_forest *forest, const struct vf_tree *tree,
            const char *path)
{
    const char *current = vf_name_of(tree->images[tree->current].path), *name = vf_name_of(path);
    bool hidden = is_link_of(name, current);
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_qcow2 header;
    char snapshot[65];
    struct stat about;

    if ((!hidden && !is_like_ours(name, current, snapshot, sizeof snapshot)) ||
        has_entry(flow, path) || lstat(path, &about) < 0 || !S_ISREG(about.st_mode))
        return;
    const struct vf_image *image =
        find_image(forest, (struct vf_inode){about.st_dev, about.st_ino});
    bool is_image = vf_qcow2_read(path, &header, &ignored);

    if (is_image)
        vf_qcow2_release(&header);
    if (vf_links_needed(flow, path) || (!image && !hidden && !is_image))
        return;
    struct json_object *entry = add_entry(flow, path, tree->disk);

    if (image)
        complain(entry, RESULT_WARNING,
                 vf_printf("it is a second name of %s, which no running QEMU needs; `vmfrost "
                           "recover` removes those that it knows",
                           image->path));
    else if (hidden)
        complain(entry, RESULT_WARNING,
                 vf_strdup("it is named like an overlay, but no record knows it, and no running "
                           "QEMU needs it"));
    else
        complain(entry, RESULT_WARNING,
                 vf_printf("it is named like the image of a snapshot %s, of which there is no "
                           "record",
                           snapshot));
}

static void
check_folder(struct vf_flow *flow, const struct vf_forest *forest, const struct vf_tree *tree)
{
    const char *current = tree->images[tree->current].path;
    VF_AUTO_FREE char *folder = vf_folder_of(current);
    DIR *entries = *current == '/' ? opendir(folder) : NULL;

    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        VF_AUTO_FREE char *path =
            vf_printf("%s/%s", strcmp(folder, "/") == 0 ? "" : folder, entry->d_name);

        check_stray(flow, forest, tree, path);
    }
    if (entries)
        closedir(entries);
}

/* --- The steps --- */

/* Names are turned while somebody is at work. A VM that does not run can be verified, too. */
static void
find_out(struct vf_flow *flow)
{
    VF_AUTO_JSON struct json_object *holder = vf_vm_holder(&flow->vm);

    if (holder) {
        const char *what = vf_json_string(holder, "what");

        vf_note(flow, VMFROST_FAILED, "another vmfrost works on this VM right now: %s",
                what ? what : "an operation");
        vf_advise(flow, "try again when it is done");
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (vf_journal_exists(&flow->vm)) {
        vf_note(flow, VMFROST_FAILED, "an operation on this VM was interrupted");
        vf_advise(flow, "run `vmfrost recover %s` first", flow->vm.name);
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->engine.conditions |= VF_IF_OFFLINE;
    vf_step_connect(flow);
}

static void
look_at_images(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    /* That nobody answers is no problem of the images. */
    flow->error = (struct vmfrost_error){.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records = vf_record_list(&flow->vm, &error);
    VF_AUTO_JSON struct json_object *known = vf_disks_known(&flow->vm, &error);
    VF_CLEANUP(vf_forest_release) struct vf_forest forest;

    if (vf_failed(&error))
        vf_warn(flow, "%s", error.text);
    flow->document_json = vf_json_strings("vm", flow->vm.name, NULL);
    vf_json_add_bool(flow->document_json, "running", vf_qmp_ready(flow->qmp));
    vf_json_add(flow->document_json, "images", vf_json_new_array());
    vf_forest_read(records, vf_json_array(known, "disks"), &forest);
    for (size_t i = 0; i < forest.count; i++)
        for (size_t k = 0; k < forest.trees[i].count; k++)
            check_image(flow, &forest.trees[i], k);
    check_records(flow, records);
    check_links(flow);
    for (size_t i = 0; i < forest.count; i++)
        check_folder(flow, &forest, &forest.trees[i]);
    flow->records_seen = json_object_get(records);
    /* QEMU serves one client at a time, and what comes can take hours. */
    vf_qmp_close(flow->qmp);
    vf_end(flow, VF_OK);
}

static void check_next(struct vf_flow *flow);

static void
skip_check(struct json_object *entry, const char *why)
{
    vf_json_add_string(entry, "check", "skipped");
    vf_json_add_string(entry, "checkMessage", why);
}

/* What qemu-img found: its exit status may have gone to somebody else, so its words count. */
static void
judge_check(struct json_object *entry, const struct vf_program_end *end)
{
    VF_AUTO_JSON struct json_object *report = vf_json_parse(end->out, end->out_length, 8);
    int64_t corruptions = 0, leaks = 0, errors = 0;

    if (!json_object_is_type(report, json_type_object)) {
        if (vf_words_tell_of_lock(end->words)) {
            skip_check(entry, "another process uses it");
            return;
        }
        complain(entry, RESULT_ERROR,
                 vf_printf("qemu-img cannot check it: %s",
                           end->words[0] ? end->words : "it does not say why"));
    }
    vf_json_int(report, "corruptions", &corruptions);
    vf_json_int(report, "leaks", &leaks);
    vf_json_int(report, "check-errors", &errors);
    vf_json_add_string(entry, "check", "done");
    if (corruptions > 0)
        complain(entry, RESULT_ERROR,
                 vf_printf("%" PRId64 " errors in its tables: what it holds may be lost in part",
                           corruptions));
    if (errors > 0)
        complain(entry, RESULT_ERROR,
                 vf_printf("qemu-img could not check all of it: %s", end->words));
    if (leaks > 0)
        complain(entry, RESULT_WARNING,
                 vf_printf("%" PRId64 " clusters are lost, which wastes room and does no harm",
                           leaks));
}

static void
on_checked(void *data, const struct vf_program_end *end)
{
    struct vf_flow *flow = data;

    judge_check(vf_json_at(images_of(flow), flow->at), end);
    vf_program_stop(flow->program);
    flow->program = NULL;
    flow->at++;
    check_next(flow);
}

/* The image alone, whatever its header says that it builds on. Owned by the caller. */
static char *
image_words(const char *path)
{
    VF_AUTO_JSON struct json_object *file = vf_json_new_object();
    VF_AUTO_JSON struct json_object *image = vf_json_strings("driver", "qcow2", NULL);
    struct stat about;
    bool device = stat(path, &about) == 0 && S_ISBLK(about.st_mode);

    vf_json_add_string(file, "driver", device ? "host_device" : "file");
    vf_json_add_string(file, "filename", path);
    vf_json_add(image, "file", json_object_get(file));
    vf_json_add(image, "backing", NULL);
    return vf_printf("json:%s",
                     vf_json_print(image, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
}

static void
check_next(struct vf_flow *flow)
{
    struct json_object *images = images_of(flow);
    size_t count = vf_json_length(images);

    for (; flow->at < count; flow->at++) {
        struct json_object *entry = vf_json_at(images, flow->at);
        const char *check = vf_json_string(entry, "check");
        struct vmfrost_error error = {.code = VMFROST_OK};
        bool missing = false;

        vf_progress(flow, 100 * (double)flow->at / (double)count);
        if (!check || strcmp(check, "pending") != 0)
            continue;
        VF_AUTO_FREE char *words = image_words(vf_json_string(entry, "path"));
        const char *const arguments[] = {"qemu-img", "check", "--output=json", words, NULL};

        flow->program = vf_program_start(flow->loop, arguments, on_checked, flow, &missing, &error);
        if (flow->program)
            return;
        skip_check(entry, missing ? "qemu-img is not installed" : error.text);
        vf_warn(flow, "%s: the tables of the images were not checked",
                missing ? "qemu-img is not installed" : error.text);
    }
    vf_end(flow, VF_OK);
}

static void
check_tables(struct vf_flow *flow)
{
    flow->at = 0;
    check_next(flow);
}

/* Some operation has changed the VM's snapshots since we looked. */
static bool
has_changed(const struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *holder = vf_vm_holder(&flow->vm);
    VF_AUTO_JSON struct json_object *records = vf_record_list(&flow->vm, &ignored);

    return holder || !json_object_equal(records, flow->records_seen);
}

static void
judge(struct vf_flow *flow)
{
    struct json_object *images = images_of(flow), *first = NULL;
    size_t bad = 0;

    for (size_t i = 0; i < vf_json_length(images); i++) {
        struct json_object *entry = vf_json_at(images, i);

        if (result_of(entry) != RESULT_ERROR)
            continue;
        if (bad++ == 0)
            first = entry;
    }
    if (has_changed(flow))
        vf_warn(flow, "the VM's snapshots were changed in the meantime: verify again");
    vf_json_add_bool(flow->document_json, "ok", bad == 0);
    vf_json_add(flow->document_json, "warnings", json_object_get(flow->warnings));
    if (bad == 0) {
        vf_end(flow, VF_OK);
        return;
    }
    vf_note(flow, VMFROST_FAILED, "%zu of %zu images %s problems; the first: %s: %s", bad,
            vf_json_length(images), bad == 1 ? "has" : "have", vf_json_string(first, "path"),
            vf_json_text(vf_json_at(vf_json_array(first, "problems"), 0)));
    vf_advise(flow,
              "put what is damaged or missing back from a backup; `vmfrost status %s` says "
              "more about images that were moved or written to",
              flow->vm.name);
    vf_end(flow, VF_REFUSED);
}

#define MINUTE_MS (60 * 1000)
#define DAY_MS (24 * 60 * MINUTE_MS)

static const struct vf_step steps[STEP_COUNT] = {
    [CONNECT] = {.name = "connect",
                 .title = "Connecting to QEMU",
                 .start = find_out,
                 .budget_ms = 10000,
                 .next = IMAGES,
                 .otherwise = IMAGES,
                 .otherwise_when = VF_IF_OFFLINE},
    [IMAGES] = {.name = "images",
                .title = "Looking at the images",
                .start = look_at_images,
                .budget_ms = MINUTE_MS,
                .next = TABLES},
    [TABLES] = {.name = "tables",
                .title = "Checking their tables",
                .start = check_tables,
                .budget_ms = DAY_MS,
                .next = JUDGE},
    [JUDGE] = {.name = "judge",
               .title = "Writing it down",
               .start = judge,
               .budget_ms = MINUTE_MS,
               .next = END},
};

const struct vf_table vf_verify_table = {
    .operation = "verify",
    .steps = steps,
    .step_count = STEP_COUNT,
    .first = CONNECT,
};
