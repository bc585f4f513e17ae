/* SPDX-License-Identifier: MIT
 *
 * What is remembered of the disks of a running VM, for when it is not running: disks.json.
 *
 * It is no part of any promise: an operation does not fail because of it.
 */
#include <string.h>
#include <unistd.h>

#include "flows/steps.h"
#include "store/disks.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/text.h"

#define SEEN_AGAIN_MS 60000

static const char *
naming_name(enum vf_naming naming)
{
    switch (naming) {
    case VF_NAMING_FLIP:
        return "flip";
    case VF_NAMING_NEW_FILE:
        return "new-file";
    }
    return NULL;
}

static void
leave_out(struct json_object *document, enum vf_reason reason, const char *why)
{
    vf_json_add_bool(document, "eligible", false);
    vf_json_add_string(document, "reason", vf_reason_name(reason));
    vf_json_add_string(document, "message", why);
}

static struct json_object *
find(struct json_object *document, const char *disk)
{
    struct json_object *disks = vf_json_array(document, "disks");

    for (size_t i = 0; i < vf_json_length(disks); i++) {
        const char *name = vf_json_string(vf_json_at(disks, i), "name");

        if (name && strcmp(name, disk) == 0)
            return vf_json_at(disks, i);
    }
    return NULL;
}

/* What was known of a disk whose image has lost its name, or has another one's: that is put right,
 * and what the launcher opens then is what it was. */
static struct json_object *
as_before(struct json_object *before, const struct vf_disk *disk)
{
    struct json_object *old = find(before, disk->name);
    const char *device = vf_json_string(old, "device");
    bool same = device && disk->qdev && strcmp(device, disk->qdev) == 0;

    return same && vf_json_bool(old, "eligible", false) ? json_object_get(old) : NULL;
}

static struct json_object *
describe(struct vf_flow *flow, const struct vf_disk *disk, struct json_object *before)
{
    struct json_object *document =
        vf_json_strings("name", disk->name, "format", disk->format, "device", disk->qdev, NULL);
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_place place = {0};
    const char *file = disk->file;

    if (disk->format)
        vf_json_add_int(document, "size", disk->size);
    /* Of a disk that cannot be cut at all, nobody needs to know where it lies. */
    bool could_be_cut = disk->reason == VF_INCLUDED || disk->reason == VF_OUT_HOTPLUGGED ||
                        disk->reason == VF_OUT_STORAGE_CLASS;
    bool placed = could_be_cut && vf_disk_place(flow, disk, &place, &error);

    struct json_object *kept =
        could_be_cut && !placed && disk->reason == VF_INCLUDED ? as_before(before, disk) : NULL;

    if (kept) {
        json_object_put(document);
        vf_place_release(&place);
        return kept;
    }
    if (placed) {
        vf_json_add_string(document, "naming", naming_name(place.naming));
        vf_json_add_string(document, "link", place.link);
        file = place.path;
    }
    if (disk->reason != VF_INCLUDED)
        leave_out(document, disk->reason, disk->why);
    else if (placed)
        vf_json_add_bool(document, "eligible", true);
    else
        leave_out(document, VF_OUT_NAME, error.text);
    vf_json_add_string(document, "file", file);
    vf_place_release(&place);
    return document;
}

/* A VM of which nothing is kept gets no folder because of this. Somebody else who is at work on it
 * knows better what its disks are. */
static bool
may_write(const struct vf_flow *flow)
{
    if (access(flow->vm.folder, F_OK) < 0)
        return false;
    if (flow->lock_fd >= 0)
        return true;
    VF_AUTO_JSON struct json_object *holder = vf_vm_holder(&flow->vm);

    return !holder;
}

/* A QEMU that knows its image by a hidden name of ours does not tell by which one it is started. */
static void
keep_link(struct json_object *entry, struct json_object *before)
{
    struct json_object *old = find(before, vf_json_string(entry, "name"));
    const char *file = vf_json_string(entry, "file"), *old_file = vf_json_string(old, "file");
    const char *link = vf_json_string(old, "link");

    if (link && file && old_file && strcmp(file, old_file) == 0 && !vf_json_string(entry, "link"))
        vf_json_add_string(entry, "link", link);
}

static void
save(struct vf_flow *flow, struct json_object *document)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!vf_disks_save(&flow->vm, document, &error))
        vf_warn(flow, "the VM's disks cannot be remembered: %s", error.text);
}

/* It says the same, and as of a moment ago: that is not worth two flushes of the host's disk. */
static bool
is_remembered(struct json_object *document, struct json_object *before)
{
    const char *now = vf_json_string(document, "seen"), *then = vf_json_string(before, "seen");
    int64_t now_ms, then_ms;

    return then && vf_parse_time_ms(then, &then_ms) && vf_parse_time_ms(now, &now_ms) &&
           then_ms <= now_ms && now_ms - then_ms < SEEN_AGAIN_MS &&
           json_object_equal(vf_json_array(document, "disks"), vf_json_array(before, "disks"));
}

/* Nothing is remembered while no snapshot would be possible: a job or a migration hides what a disk
 * is, but not for long. */
static void
note(struct vf_flow *flow, const struct vf_plan *plan)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *document = vf_json_new_object();
    VF_AUTO_JSON struct json_object *before = vf_disks_load(&flow->vm, &ignored);
    struct json_object *disks = vf_json_new_array();
    char now[32];

    vf_flow_time(flow, vf_now_us(), now);
    for (size_t i = 0; i < plan->count; i++) {
        vf_json_append(disks, describe(flow, &plan->disks[i], before));
        keep_link(vf_json_at(disks, i), before);
    }
    vf_json_add_string(document, "seen", now);
    vf_json_add(document, "disks", disks);
    if (!is_remembered(document, before))
        save(flow, document);
}

void
vf_disks_note(struct vf_flow *flow, const struct vf_plan *made)
{
    struct vf_plan_input input = vf_plan_input_of(flow);
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_plan plan;

    /* Of a VM that is not running nothing new is seen, and less than before. */
    if ((flow->engine.conditions & VF_IF_STOPPED) || !may_write(flow))
        return;
    if (made) {
        note(flow, made);
        return;
    }
    VF_AUTO_JSON struct json_object *left_out = vf_classes_left_out(flow, &ignored);

    if (!left_out)
        return;
    input.left_out = left_out;
    if (vf_plan_make(&input, &plan, &ignored))
        note(flow, &plan);
    vf_plan_release(&plan);
}

/* How the image could be named at the next cut, as far as that can be seen. */
static enum vf_naming
naming_of(struct vf_flow *flow, const char *file, const char *format)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_place place;
    enum vf_naming naming = VF_NAMING_NEW_FILE;

    if (vf_place_find(vf_view_of_qemu(flow), file, format, flow->vm.overlay_folder, &place,
                      &ignored))
        naming = place.naming;
    vf_place_release(&place);
    return naming;
}

void
vf_disks_moved(struct vf_flow *flow, const char *disk, const char *file, const char *format)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *document = vf_disks_load(&flow->vm, &error);
    struct json_object *entry = find(document, disk);
    char now[32];

    if (vf_failed(&error))
        vf_warn(flow, "%s", error.text);
    if (!entry)
        return;
    vf_flow_time(flow, vf_now_us(), now);
    vf_json_add_string(document, "seen", now);
    vf_json_add_string(entry, "file", file);
    json_object_object_del(entry, "link");
    vf_json_add_string(entry, "format", format);
    vf_json_add_string(entry, "naming", naming_name(naming_of(flow, file, format)));
    save(flow, document);
}

void
vf_disks_cut(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (cut->naming == VF_NAMING_NEW_FILE)
            vf_disks_moved(flow, cut->name, cut->names.overlay, "qcow2");
    }
}
