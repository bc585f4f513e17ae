/* SPDX-License-Identifier: MIT
 *
 * Deleting a snapshot: a record without content is just removed; the newest snapshot of a running
 * VM is merged: the current overlay goes down into the snapshot's image, which becomes the current
 * one again.
 *
 * From the first byte that is merged the image is no snapshot any more, so its record says so
 * before. A deletion that was interrupted is simply repeated.
 */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "flows/steps.h"
#include "flows/tables.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/graph.h"
#include "vm/qcow2.h"

enum step {
    END = VF_STEP_END,
    CONNECT,
    LOOK,
    CHOOSE,
    ACCEPT,
    MERGE,
    FILES,
    REMOVE,
    STOP_MERGE,
    CLOSE,
    STEP_COUNT,
};

static void
set(char **slot, const char *value)
{
    free(*slot);
    *slot = value ? vf_strdup(value) : NULL;
}

/* The snapshot's overlay is the disk's current image: then these are its nodes in this QEMU. Or its
 * base is: then a deletion that was interrupted has merged this disk, and only its files are left.
 */
static bool
adopt(struct vf_flow *flow, struct vf_cut *cut, struct vmfrost_error *error)
{
    for (size_t i = 0; i < flow->plan.count; i++) {
        const struct vf_disk *disk = &flow->plan.disks[i];
        struct vf_place place = {0};
        struct vmfrost_error ignored = {.code = VMFROST_OK};

        if (!disk->node || !disk->file)
            continue;
        bool placed = vf_disk_place(flow, disk, &place, &ignored);
        bool found = placed && vf_inode_equal(place.inode, cut->overlay);
        bool merged = placed && vf_inode_equal(place.inode, cut->base);

        vf_place_release(&place);
        if (merged) {
            set(&cut->overlay_node, "");
            set(&cut->overlay_file_node, NULL);
            set(&cut->node, disk->node);
            set(&cut->base_file, disk->file);
            cut->merged = true;
            return true;
        }
        if (!found)
            continue;
        const char *base = vf_graph_child(flow->facts.graph, disk->node, "backing");
        const char *file_node = base ? vf_graph_child(flow->facts.graph, base, "file") : NULL;
        /* A format node's own name is "json:..." as soon as its chain differs from its header. */
        const char *base_file = base ? vf_node_file(flow, file_node ? file_node : base) : NULL;

        struct vf_opened opened;

        /* Somebody may have put another image below the overlay since. */
        if (!base_file || (flow->qemu.pid && cut->base.number &&
                           (!vf_inode_equal(vf_inode_of(cut->names.sealed), cut->base) ||
                            !vf_process_opened(flow->qemu.pid, cut->base, &opened) ||
                            (!opened.read_only && !opened.read_write))))
            break;
        set(&cut->overlay_node, disk->node);
        set(&cut->filter, disk->root && strcmp(disk->root, disk->node) != 0 ? disk->root : NULL);
        set(&cut->overlay_file_node, disk->file_named ? disk->file_node : NULL);
        set(&cut->node, base);
        set(&cut->base_file, base_file);
        cut->own_file_node = file_node && file_node[0] != '#';
        return true;
    }
    vf_fail(error, VMFROST_FAILED, "disk %s does not run on top of this snapshot now", cut->name);
    return vf_hint(error,
                   "only the newest snapshot of a running VM can be deleted: delete newer "
                   "ones first (vmfrost list %s)",
                   flow->vm.name);
}

/* No other image in the folder has this one as its backing file: a merge would change it under that
 * one. What lies elsewhere cannot be known. */
static bool
nobody_builds_on(struct vf_flow *flow, const struct vf_cut *cut)
{
    VF_AUTO_FREE char *folder = vf_folder_of(cut->names.sealed);
    DIR *entries = opendir(folder);
    bool alone = true;

    for (struct dirent *entry; alone && entries && (entry = readdir(entries));) {
        VF_AUTO_FREE char *path = vf_printf("%s/%s", folder, entry->d_name);
        struct vmfrost_error ignored = {.code = VMFROST_OK};
        struct vf_inode inode = vf_inode_of(path);
        struct vf_qcow2 image;

        if (entry->d_type == DT_DIR || vf_inode_equal(inode, cut->overlay) ||
            vf_inode_equal(inode, cut->base) || !vf_qcow2_read(path, &image, &ignored))
            continue;
        VF_AUTO_FREE char *backing =
            image.backing ? vf_printf("%s%s%s", image.backing[0] == '/' ? "" : folder,
                                      image.backing[0] == '/' ? "" : "/", image.backing)
                          : NULL;
        struct stat about;

        if (backing && stat(backing, &about) == 0 && about.st_ino == cut->base.number &&
            about.st_dev == cut->base.device) {
            vf_note(flow, VMFROST_FAILED, "disk %s: %s builds on %s", cut->name, path,
                    cut->names.sealed);
            vf_advise(flow, "remove it first, or make it stand alone (qemu-img rebase -b '')");
            alone = false;
        }
        vf_qcow2_release(&image);
    }
    if (entries)
        closedir(entries);
    return alone;
}

static void
choose(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    vf_links_sweep(flow);
    /* What a plan refuses is about cutting; a job on one of our disks matters here, too. */
    vf_plan_facts(flow, &ignored);
    if (!vf_state_allows(flow, &flow->error)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    for (size_t i = 0; i < flow->cut_count; i++) {
        struct vf_cut *cut = &flow->cuts[i];

        if (!adopt(flow, cut, &flow->error)) {
            vf_end(flow, VF_REFUSED);
            return;
        }
        if (!nobody_builds_on(flow, cut)) {
            vf_end(flow, VF_REFUSED);
            return;
        }
        if (vf_graph_has_export(flow->facts.graph, cut->overlay_node)) {
            /* A client that connects while the merge is pending is not held back with the guest. */
            vf_refuse(flow, VMFROST_FAILED, "disk %s: it is exported (see query-block-exports)",
                      cut->name);
            return;
        }
        if (vf_graph_has_job(flow->facts.graph, cut->overlay_node) ||
            vf_graph_has_job(flow->facts.graph, cut->node)) {
            vf_refuse(flow, VMFROST_FAILED, "disk %s: another block job works on it", cut->name);
            return;
        }
        if (cut->naming == VF_NAMING_NEW_FILE) {
            vf_note(flow, VMFROST_FAILED,
                    "disk %s: its launcher may have been changed to start %s already", cut->name,
                    cut->names.overlay);
            vf_advise(flow,
                      "stop the VM, let its launcher start %s again, and merge with "
                      "`qemu-img commit %s`",
                      cut->names.sealed, cut->names.overlay);
            vf_end(flow, VF_REFUSED);
            return;
        }
    }
    vf_end(flow, VF_OK);
}

static bool
mark(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *document = json_object_new_object();

    vf_json_add_string(flow->record, "phase", "Failed");
    vf_json_add_bool(flow->record, "readyToUse", false);
    vf_json_add_string(flow->record, "consistency", "none");
    vf_json_add_string(document, "message", "its deletion has begun");
    vf_json_add_string(document, "next", "delete it again to finish that");
    vf_json_add(flow->record, "error", document);
    return vf_record_save(&flow->vm, flow->record, &error) || vf_note_error(flow, &error);
}

static void
accept(struct vf_flow *flow)
{
    flow->cut_begun = true;
    vf_end(flow, vf_journal_open(flow) && mark(flow) ? VF_OK : VF_REFUSED);
}

static void
remove_record(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!vf_record_remove(&flow->vm, flow->snapshot_name, &error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->document_json = vf_json_strings("vm", flow->vm.name, "name", flow->snapshot_name, NULL);
    vf_json_add(flow->document_json, "warnings", json_object_get(flow->warnings));
    if (flow->journal.fd >= 0)
        vf_journal_close_up(flow);
    vf_end(flow, VF_OK);
}

static void
close_up(struct vf_flow *flow)
{
    vf_conclude(flow);
    vf_end(flow, flow->journal.fd < 0 || vf_journal_close_up(flow) ? VF_OK : VF_REFUSED);
}

#define MINUTE_MS (60 * 1000)
#define DAY_MS (24 * 60 * MINUTE_MS)

static const struct vf_step steps[STEP_COUNT] = {
    [CONNECT] = {.name = "connect",
                 .title = "Connecting to QEMU",
                 .start = vf_step_connect,
                 .budget_ms = 10000,
                 .next = LOOK},
    [LOOK] = {.name = "look",
              .title = "Looking at the VM",
              .start = vf_step_look,
              .budget_ms = 10000,
              .next = CHOOSE},
    [CHOOSE] = {.name = "choose",
                .title = "Finding the images",
                .start = choose,
                .budget_ms = 10000,
                .next = ACCEPT},
    [ACCEPT] = {.name = "accept",
                .title = "Writing the journal",
                .start = accept,
                .owes = VF_OWE_RECORD,
                .sticky = VF_OWE_RECORD,
                .budget_ms = MINUTE_MS,
                .next = MERGE},
    [MERGE] = {.name = "merge",
               .title = "Merging",
               .start = vf_step_merge,
               .owes = VF_OWE_CUT,
               .sticky = VF_OWE_CUT,
               .pays = VF_OWE_CUT,
               .budget_ms = DAY_MS,
               .next = FILES},
    [FILES] = {.name = "files",
               .title = "Removing the merged images",
               .start = vf_step_undo_files,
               .budget_ms = MINUTE_MS,
               .patience_ms = 5000,
               .pause_ms = 250,
               .next = REMOVE},
    [REMOVE] = {.name = "remove",
                .title = "Removing the record",
                .start = remove_record,
                .pays = VF_OWE_RECORD,
                .budget_ms = MINUTE_MS,
                .next = END},

    /* The way back: what is merged stays merged, and a second try goes on from there. */
    [STOP_MERGE] = {.name = "stop-merge",
                    .title = "Stopping the merge",
                    .start = vf_step_stop_merge,
                    .pays = VF_OWE_CUT,
                    .budget_ms = MINUTE_MS,
                    .patience_ms = MINUTE_MS,
                    .pause_ms = 500},
    [CLOSE] = {.name = "close",
               .title = "Closing the journal",
               .start = close_up,
               .pays = VF_OWE_RECORD,
               .budget_ms = MINUTE_MS},
};

static const struct vf_undo undos[] = {
    {VF_OWE_CUT, STOP_MERGE, 0},
    {VF_OWE_RECORD, CLOSE, VF_OWE_CUT},
};

const struct vf_table vf_delete_table = {
    .operation = "delete",
    .steps = steps,
    .step_count = STEP_COUNT,
    .undos = undos,
    .undo_count = sizeof undos / sizeof *undos,
    .first = CONNECT,
};

static const struct vf_step forget_steps[] = {
    [1] = {.name = "remove",
           .title = "Removing the record",
           .start = remove_record,
           .budget_ms = MINUTE_MS,
           .next = VF_STEP_END},
};

const struct vf_table vf_forget_table = {
    .operation = "delete",
    .steps = forget_steps,
    .step_count = sizeof forget_steps / sizeof *forget_steps,
    .first = 1,
};

void
vf_delete_prepare(struct vf_flow *flow)
{
    flow->record = vf_record_load(&flow->vm, flow->snapshot_name, &flow->error);
    if (!flow->record)
        return;
    struct json_object *cuts = vf_json_array(flow->record, "cuts");

    if (vf_json_length(cuts) == 0) {
        flow->engine.table = &vf_forget_table;
        return;
    }
    if (!vf_cuts_parse(flow, cuts))
        vf_fail(&flow->error, VMFROST_FAILED,
                "the record of %s@%s does not say which images it is made of", flow->vm.name,
                flow->snapshot_name);
}
