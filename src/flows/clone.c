/* SPDX-License-Identifier: MIT
 *
 * Clone: an overlay of the user's on each of a snapshot's images, for a VM of its own. The record
 * of the snapshot tells of it before it has its name, so that nobody deletes what it builds on.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flows/clones.h"
#include "flows/steps.h"
#include "flows/tables.h"
#include "flows/using.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/qcow2.h"

enum step {
    END = VF_STEP_END,
    FIND,
    OPEN,
    CREATE,
    LINK,
    PUBLISH,
    REMOVE,
    STEP_COUNT,
};

#define IMAGE_NODE "vft"

static const struct vf_cut *
current_cut(const struct vf_flow *flow)
{
    return &flow->cuts[vf_using_current(flow)->cut];
}

/* --- The overlays --- */

static void link_next(struct vf_flow *flow);

static bool
went_well(struct vf_flow *flow, const struct vf_reply *reply, const char *what)
{
    return vf_expect(flow, reply, "disk %s: %s %s", current_cut(flow)->name, what,
                     vf_using_current(flow)->file.path);
}

static void
on_tried(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "cannot close"))
        return;
    flow->at++;
    link_next(flow);
}

/* It could be opened, with all that it builds on. */
static void
on_opened(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "cannot use the new"))
        vf_ask(flow, "blockdev-del", vf_json_strings("node-name", IMAGE_NODE, NULL), on_tried);
}

static void
link_next(struct vf_flow *flow)
{
    if (flow->at == flow->using->count) {
        vf_end(flow, VF_OK);
        return;
    }
    const struct vf_copy *copy = vf_using_current(flow);
    const struct vf_cut *cut = current_cut(flow);
    const struct vf_qcow2_empty image = {.size = cut->size,
                                         .backing = cut->names.sealed,
                                         .backing_format = cut->format,
                                         .cluster_size = VF_QCOW2_CLUSTER_SIZE};

    if (!vf_qcow2_write_empty(copy->file.fd, &image)) {
        vf_refuse(flow, VMFROST_FAILED, "disk %s: cannot write %s: %s", cut->name, copy->file.path,
                  strerror(errno));
        return;
    }
    VF_AUTO_FREE char *name = vf_copy_name(copy);
    struct json_object *options = vf_image_options(name, "qcow2", IMAGE_NODE);

    vf_json_add_bool(options, "read-only", true);
    vf_ask(flow, "blockdev-add", options, on_opened);
}

static void
link_all(struct vf_flow *flow)
{
    flow->at = 0;
    link_next(flow);
}

/* --- The record --- */

/* The record tells of the new clones, too, and of no earlier ones that are gone. */
static bool
note_clones(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *record =
        vf_record_load(&flow->vm, flow->snapshot_name, &error);
    char now[32];

    if (!record)
        return vf_note_error(flow, &error);
    if (!json_object_object_get_ex(record, "clones", NULL))
        vf_json_add(record, "clones", vf_json_new_array());
    vf_clones_settle(record);
    struct json_object *clones = vf_json_array(record, "clones");

    if (!clones)
        return vf_note(flow, VMFROST_FAILED, "what its record says of clones is not understood");
    vf_flow_time(flow, vf_now_us(), now);
    for (size_t i = 0; i < flow->using->count; i++) {
        const struct vf_copy *copy = &flow->using->copies[i];

        vf_json_append(clones, vf_json_strings("path", copy->file.path, "disk",
                                               flow->cuts[copy->cut].name, "created", now, NULL));
    }
    return vf_record_save(&flow->vm, record, &error) || vf_note_error(flow, &error);
}

/* Of those that did not get their names. What fails here does no harm: there is no such file. */
static void
forget_clones(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *record =
        vf_record_load(&flow->vm, flow->snapshot_name, &ignored);

    if (!record)
        return;
    vf_clones_settle(record);
    vf_record_save(&flow->vm, record, &ignored);
}

static void
publish(struct vf_flow *flow)
{
    bool published = true;

    vf_using_let_go(flow);
    if (!note_clones(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_test_point(flow, "publish.noted");
    for (size_t i = 0; i < flow->using->count && published; i++)
        published = vf_using_publish(flow, &flow->using->copies[i]);
    if (!published) {
        forget_clones(flow);
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->document_json = vf_json_strings("vm", flow->vm.name, "name", flow->snapshot_name, NULL);
    vf_json_add(flow->document_json, "files", vf_using_files_json(flow));
    vf_json_add(flow->document_json, "warnings", json_object_get(flow->warnings));
    vf_end(flow, VF_OK);
}

#define MINUTE_MS (60 * 1000)

static const struct vf_step steps[STEP_COUNT] = {
    [FIND] = {.name = "find",
              .title = "Finding the images",
              .start = vf_step_using_find,
              .budget_ms = MINUTE_MS,
              .next = OPEN},
    [OPEN] = {.name = "open",
              .title = "Opening the images",
              .start = vf_step_using_open,
              .budget_ms = MINUTE_MS,
              .next = CREATE},
    [CREATE] = {.name = "create",
                .title = "Creating the files",
                .start = vf_step_using_create,
                .owes = VF_OWE_PARTS,
                .sticky = VF_OWE_PARTS,
                .budget_ms = MINUTE_MS,
                .next = LINK},
    [LINK] = {.name = "link",
              .title = "Linking them to the images",
              .start = link_all,
              .budget_ms = MINUTE_MS,
              .next = PUBLISH},
    [PUBLISH] = {.name = "publish",
                 .title = "Giving the files their names",
                 .start = publish,
                 .pays = VF_OWE_PARTS,
                 .budget_ms = MINUTE_MS,
                 .next = END},

    [REMOVE] = {.name = "remove",
                .title = "Removing what was created",
                .start = vf_step_using_undo,
                .pays = VF_OWE_PARTS,
                .budget_ms = MINUTE_MS},
};

static const struct vf_undo undos[] = {
    {VF_OWE_PARTS, REMOVE, 0},
};

const struct vf_table vf_clone_table = {
    .operation = "clone",
    .steps = steps,
    .step_count = STEP_COUNT,
    .undos = undos,
    .undo_count = sizeof undos / sizeof *undos,
    .first = FIND,
};
