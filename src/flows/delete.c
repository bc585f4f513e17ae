/* SPDX-License-Identifier: MIT
 *
 * Deleting a snapshot, of a VM that runs or not, wherever it is in the tree of its disks' images. A
 * record without content is just removed.
 *
 * What has to be joined is decided by choose.c. merge.c does it where a running VM's current image
 * goes down into the snapshot's, graft.c everywhere else; what is left over goes then, and at last
 * the record.
 *
 * From the moment that it begins the record says that the snapshot is none any more. A deletion
 * that was interrupted is settled by whatever changes the VM next: every name leads to the image
 * that it should, the VM goes on. It is finished by `recover`, or by deleting again: what is to be
 * done is decided anew from what is there.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "flows/graft.h"
#include "flows/history.h"
#include "flows/steps.h"
#include "flows/tables.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/graph.h"

enum step {
    END = VF_STEP_END,
    NAMES,
    CONNECT,
    LOOK,
    SETTLE,
    TIDY,
    CHOOSE,
    ACCEPT,
    MERGE,
    FILES,
    GRAFT,
    DROP,
    REMOVE,
    STOP_MERGE,
    UNDO_FILES,
    CLOSE,
    STEP_COUNT,
};

/* Settling what an earlier process left. */

/* The VM is started with the base again, as before its name could not be turned. */
static void
note_moved(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (cut->merged && cut->naming == VF_NAMING_NEW_FILE)
            vf_disks_moved(flow, cut->name, cut->names.sealed, cut->format);
    }
}

/* QEMU ended in the meantime: names alone decide. */
static bool
settle_names(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        struct vf_cut *cut = &flow->cuts[i];

        if (cut->elsewhere)
            continue;
        /* Only what was merged, or was empty, is removed. */
        cut->merged =
            vf_history_merge_was_final(flow, cut) || !vf_cut_has_name_of(cut, cut->overlay);
        if (cut->merged)
            continue;
        bool on_base = !vf_cut_is_flipped(cut) && vf_cut_base_is_live(cut);

        if (on_base && !vf_history_overlay_counts(flow, cut)) {
            cut->merged = true; /* nothing was in the overlay */
            continue;
        }
        if (on_base) {
            vf_note_both_used(flow, cut);
            return false;
        }
        if (!vf_turn_to_overlay(flow, cut))
            return false;
    }
    note_moved(flow);
    return true;
}

/* Before anything is opened by these names. */
static void
settle_offline(struct vf_flow *flow)
{
    vf_end(flow, settle_names(flow) ? VF_OK : VF_REFUSED);
}

static void
settle(struct vf_flow *flow)
{
    flow->stopped = vf_history_left_stopped(flow);
    for (size_t i = 0; i < flow->cut_count; i++)
        flow->cuts[i].merged = vf_history_merge_was_final(flow, &flow->cuts[i]);
    vf_step_stop_merge(flow);
}

/* What was merged to its end is put away; the others have their names, and are decided on anew.
 * `gone`: the QEMU that had their nodes, which another one may have again by the same names. */
static void
put_away(struct vf_flow *flow, bool gone)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        struct vf_cut *cut = &flow->cuts[i];

        if (!gone && !cut->elsewhere)
            cut->merged = vf_is_merged(flow, cut);
        cut->elsewhere |= !cut->merged;
    }
    flow->cut_begun = true;
    note_moved(flow);
    if (!vf_graft_sweep(flow))
        vf_end(flow, VF_REFUSED);
    else if (gone)
        vf_end(flow, vf_remove_names(flow) ? VF_OK : VF_REFUSED);
    else
        vf_step_undo_files(flow);
}

static void
tidy(struct vf_flow *flow)
{
    put_away(flow, !(flow->engine.conditions & VF_IF_QEMU));
}

/* The same on the way back. The storage daemon of a stopped VM has been ended by then. */
static void
undo_files(struct vf_flow *flow)
{
    put_away(flow, flow->engine.conditions & VF_IF_STOPPED);
}

/* Beginning. */

/* The sealed image has the name that a cut of this snapshot gives it: else the record is none of
 * ours, or another snapshot's. */
static bool
has_own_name(const struct vf_flow *flow, const struct vf_cut *cut)
{
    VF_AUTO_FREE char *sealed =
        cut->naming == VF_NAMING_FLIP ? vf_sealed_name(cut->names.top, flow->snapshot_name) : NULL;

    return !sealed || strcmp(sealed, cut->names.sealed) == 0;
}

/* Takes up the record's cuts; false with the error if they are not what a snapshot has. */
static bool
take_cuts(struct vf_flow *flow, struct vmfrost_error *error)
{
    struct json_object *cuts = vf_json_array(flow->record, "cuts");
    bool clear = vf_json_length(cuts) > 0 && vf_cuts_parse(flow, cuts);

    for (size_t i = 0; i < flow->cut_count; i++)
        clear = clear && has_own_name(flow, &flow->cuts[i]);
    return clear || vf_record_unclear(&flow->vm, flow->snapshot_name, error);
}

static void
choose(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK}, error = {.code = VMFROST_OK};

    if (!vf_links_sweep(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!flow->record) { /* it was removed already: only the journal was left */
        vf_cuts_parse(flow, NULL);
        vf_end(flow, VF_OK);
        return;
    }
    if (flow->resumed && !take_cuts(flow, &error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    /* What a plan refuses is about cutting. */
    vf_plan_facts(flow, &ignored);
    if (!vf_state_allows(flow, &flow->error)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_end(flow, vf_choose_grafts(flow) ? VF_OK : VF_REFUSED);
}

static bool
mark(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *document = vf_json_new_object();

    vf_json_add_string(flow->record, "phase", "Failed");
    vf_json_add_bool(flow->record, "readyToUse", false);
    vf_json_add_bool(flow->record, "deleting", true);
    vf_json_add_string(flow->record, "consistency", "none");
    vf_json_add_string(document, "message", "its deletion has begun");
    vf_json_add_string(document, "next", "delete it again to finish that");
    vf_json_add(flow->record, "error", document);
    flow->marked = vf_record_save(&flow->vm, flow->record, &error);
    return flow->marked || vf_note_error(flow, &error);
}

/* While a name is turned, the current image must have another one. */
static bool
name_current(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (cut->elsewhere || cut->naming == VF_NAMING_NEW_FILE ||
        vf_inode_equal(vf_inode_of(cut->names.overlay), cut->overlay))
        return true;
    return (vf_links_add(flow, cut->names.overlay, cut->names.top) &&
            vf_link(cut->names.top, cut->names.overlay, cut->overlay, &flow->log, &error)) ||
           (vf_failed(&error) && vf_note_error(flow, &error));
}

static void
accept(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    bool named = true;

    flow->cut_begun = true;
    if (flow->journal.fd >= 0 && !vf_journal_end(&flow->journal, &error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!flow->record) {
        vf_end(flow, VF_OK);
        return;
    }
    if (!vf_journal_open(flow) || !mark(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    for (size_t i = 0; i < flow->cut_count; i++)
        named = named && name_current(flow, &flow->cuts[i]);
    vf_end(flow, named ? VF_OK : VF_REFUSED);
}

static void
files(struct vf_flow *flow)
{
    note_moved(flow);
    vf_step_undo_files(flow);
}

static void
graft(struct vf_flow *flow)
{
    flow->graft_at = 0;
    vf_step_graft(flow);
}

/* What is left over. */

/* QEMU has an image open by this name. */
static bool
is_known(const struct vf_flow *flow, const char *path)
{
    if (!(flow->engine.conditions & VF_IF_ONLINE))
        return false;
    for (size_t i = 0; i < vf_json_length(flow->facts.nodes); i++) {
        const char *file = vf_json_string(vf_json_at(flow->facts.nodes, i), "file");

        if (file && strcmp(vf_name_of(file), vf_name_of(path)) == 0)
            return true;
    }
    return false;
}

static bool
is_free(struct vf_flow *flow, const struct vf_cut *cut, struct vf_inode inode)
{
    if (!vf_is_open(flow, inode))
        return true;
    vf_note(flow, VMFROST_FAILED, "disk %s: QEMU still has %s open: it is left alone", cut->name,
            cut->names.sealed);
    vf_advise(flow, "delete the snapshot again when the VM has been stopped or restarted");
    return false;
}

static bool
drop_sealed(struct vf_flow *flow, const struct vf_cut *cut, struct json_object *records)
{
    VF_AUTO_FREE char *other = vf_joined_name(flow, cut, records);
    struct vf_inode inode = vf_inode_of(cut->names.sealed);
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct stat about;

    if (!inode.number || lstat(cut->names.sealed, &about) < 0)
        return true;
    if (!S_ISREG(about.st_mode)) {
        vf_warn(flow, "%s is not used any more, and is left as it is: it is no regular file",
                cut->names.sealed);
        return true;
    }
    if (other ? about.st_nlink < 2 : cut->unrelated || !vf_inode_equal(inode, cut->base)) {
        vf_warn(flow, "%s is left as it is: nothing proves that it is the image that was sealed",
                cut->names.sealed);
        return true;
    }
    if (other && is_known(flow, cut->names.sealed))
        return vf_links_has(flow, cut->names.sealed) || vf_keep_sealed(flow, cut, other);
    if (!other && !is_free(flow, cut, inode))
        return false;
    if (!other && !vf_links_drop(flow, &inode, 1)) /* nobody would find those again afterwards */
        return false;
    if (!vf_unlink(cut->names.sealed, inode, &flow->log, &error))
        return vf_note_error(flow, &error);
    return vf_sync_folder_of(cut->names.sealed) == 0 ||
           vf_note(flow, VMFROST_FAILED, "cannot make the folder of %s durable: %s",
                   cut->names.sealed, strerror(errno));
}

/* Killed between the turn of a name and the record of the snapshot that has it: that one knows its
 * image again. */
static bool
refresh_joined(struct vf_flow *flow, struct json_object *records, const char *path)
{
    for (size_t i = 0; i < vf_json_length(records); i++) {
        struct json_object *record = vf_json_at(records, i), *cuts = vf_json_array(record, "cuts");
        const char *name = vf_json_string(record, "name");

        for (size_t k = 0; name && k < vf_json_length(cuts); k++) {
            const char *sealed = vf_json_string(vf_json_at(cuts, k), "sealed");

            if (sealed && strcmp(sealed, path) == 0 && !vf_record_refresh(flow, name, path))
                return false;
        }
    }
    return true;
}

static void
drop_all(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records = vf_record_list(&flow->vm, &error);
    bool dropped = records || vf_note_error(flow, &error);

    for (size_t i = 0; i < flow->cut_count && dropped; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        VF_AUTO_FREE char *other = vf_joined_name(flow, cut, records);

        if (cut->merged)
            continue;
        if (other && !refresh_joined(flow, records, other))
            dropped = false;
        dropped = dropped && drop_sealed(flow, cut, records);
    }
    vf_end(flow, dropped ? VF_OK : VF_REFUSED);
}

static void
drop(struct vf_flow *flow)
{
    /* A QEMU that is gone knows no names any more. */
    if (flow->qemu.pid && vf_process_gone(flow->qemu))
        flow->engine.conditions &= ~(unsigned)VF_IF_ONLINE;
    if (flow->engine.conditions & VF_IF_ONLINE)
        vf_look_again(flow, drop_all);
    else
        drop_all(flow);
}

/* What went on in a new file is back in the old one. */
static void
tell_launchers(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (cut->merged && cut->naming == VF_NAMING_NEW_FILE)
            vf_warn(flow,
                    "disk %s is in %s again: start the VM with that, in format %s, from now on",
                    cut->name, cut->names.sealed, cut->format);
    }
}

static void
remove_record(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (flow->record && !vf_record_remove(&flow->vm, flow->snapshot_name, &error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    tell_launchers(flow);
    flow->action = "rolled-forward";
    json_object_put(flow->document_json);
    flow->document_json = vf_json_strings("vm", flow->vm.name, "name", flow->snapshot_name, NULL);
    vf_json_add(flow->document_json, "warnings", json_object_get(flow->warnings));
    vf_journal_finish(flow);
    vf_end(flow, VF_OK);
}

static void
close_up(struct vf_flow *flow)
{
    bool known = vf_graft_failed(flow);

    vf_conclude(flow);
    if (flow->marked && vf_failed(&flow->error) && !(flow->engine.owed & ~(unsigned)VF_OWE_RECORD))
        vf_hint(&flow->error,
                "its deletion has begun, and is finished by `vmfrost delete %s@%s` again, or by "
                "`vmfrost recover %s`",
                flow->vm.name, flow->snapshot_name, flow->vm.name);
    vf_end(flow, vf_journal_close_up(flow) && known ? VF_OK : VF_REFUSED);
}

#define MINUTE_MS (60 * 1000)
#define DAY_MS (24 * 60 * MINUTE_MS)

/* The rows that both tables have. */
#define BEGINNING                                                                                  \
    [NAMES] = {.name = "names",                                                                    \
               .title = "Turning the names of an interrupted deletion",                            \
               .start = settle_offline,                                                            \
               .budget_ms = MINUTE_MS,                                                             \
               .next = CONNECT,                                                                    \
               .when = VF_IF_INTERRUPTED | VF_IF_OFFLINE},                                         \
    [CONNECT] = {.name = "connect",                                                                \
                 .title = "Connecting to QEMU",                                                    \
                 .start = vf_step_reach,                                                           \
                 .budget_ms = 10000,                                                               \
                 .next = LOOK},                                                                    \
    [LOOK] = {.name = "look",                                                                      \
              .title = "Looking at the VM",                                                        \
              .start = vf_step_look,                                                               \
              .budget_ms = 10000,                                                                  \
              .next = SETTLE},                                                                     \
    [SETTLE] = {.name = "settle",                                                                  \
                .title = "Settling an interrupted deletion",                                       \
                .start = settle,                                                                   \
                .budget_ms = MINUTE_MS,                                                            \
                .patience_ms = MINUTE_MS,                                                          \
                .pause_ms = 500,                                                                   \
                .next = TIDY,                                                                      \
                .when = VF_IF_INTERRUPTED | VF_IF_QEMU}

static const struct vf_step steps[STEP_COUNT] = {
    BEGINNING,
    [TIDY] = {.name = "tidy",
              .title = "Removing what is merged already",
              .start = tidy,
              .budget_ms = MINUTE_MS,
              .patience_ms = 5000,
              .pause_ms = 250,
              .next = CHOOSE,
              .when = VF_IF_INTERRUPTED},
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
               .owes = VF_OWE_CUT | VF_OWE_FILES,
               .sticky = VF_OWE_CUT | VF_OWE_FILES,
               .pays = VF_OWE_CUT,
               .budget_ms = DAY_MS,
               .next = FILES,
               .when = VF_IF_ONLINE},
    [FILES] = {.name = "files",
               .title = "Removing the merged images",
               .start = files,
               .pays = VF_OWE_FILES,
               .budget_ms = MINUTE_MS,
               .patience_ms = 5000,
               .pause_ms = 250,
               .next = GRAFT,
               .when = VF_IF_ONLINE},
    [GRAFT] = {.name = "graft",
               .title = "Joining images",
               .start = graft,
               .owes = VF_OWE_CUT | VF_OWE_FILES,
               .sticky = VF_OWE_CUT | VF_OWE_FILES,
               .pays = VF_OWE_CUT | VF_OWE_FILES,
               .budget_ms = DAY_MS,
               .next = DROP},
    [DROP] = {.name = "drop",
              .title = "Removing the snapshot's images",
              .start = drop,
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
    [UNDO_FILES] = {.name = "undo-files",
                    .title = "Removing what is merged already",
                    .start = undo_files,
                    .pays = VF_OWE_FILES,
                    .budget_ms = MINUTE_MS,
                    .patience_ms = 5000,
                    .pause_ms = 250},
    [CLOSE] = {.name = "close",
               .title = "Closing the journal",
               .start = close_up,
               .pays = VF_OWE_RECORD,
               .budget_ms = MINUTE_MS},
};

static const struct vf_undo undos[] = {
    {VF_OWE_CUT, STOP_MERGE, 0},
    {VF_OWE_FILES, UNDO_FILES, VF_OWE_CUT},
    {VF_OWE_RECORD, CLOSE, VF_OWE_CUT},
};

const struct vf_table vf_delete_table = {
    .operation = "delete",
    .steps = steps,
    .step_count = STEP_COUNT,
    .undos = undos,
    .undo_count = sizeof undos / sizeof *undos,
    .first = NAMES,
};

/* Before another operation: everything is put in order, but nothing is joined, which may take
 * hours.
 */
static const struct vf_step settle_steps[STEP_COUNT] = {
    BEGINNING,
    [TIDY] = {.name = "tidy",
              .title = "Removing what is merged already",
              .start = tidy,
              .budget_ms = MINUTE_MS,
              .patience_ms = 5000,
              .pause_ms = 250,
              .next = CLOSE},
    [CLOSE] = {.name = "close",
               .title = "Closing the journal",
               .start = close_up,
               .budget_ms = MINUTE_MS,
               .next = END},
};

const struct vf_table vf_settle_table = {
    .operation = "delete",
    .steps = settle_steps,
    .step_count = STEP_COUNT,
    .first = NAMES,
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

/* Nothing of it is left but the record: the snapshot was not taken, or rolled back. */
static bool
is_empty(struct json_object *record)
{
    return !json_object_object_get_ex(record, "cuts", NULL) &&
           !vf_json_bool(record, "readyToUse", false) && !vf_json_bool(record, "deleting", false);
}

void
vf_delete_prepare(struct vf_flow *flow)
{
    flow->record = vf_record_load(&flow->vm, flow->snapshot_name, &flow->error);
    if (flow->record && is_empty(flow->record))
        flow->engine.table = &vf_forget_table;
    else if (flow->record)
        take_cuts(flow, &flow->error);
}

void
vf_delete_resume(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    if (!vf_history_adopt(flow)) {
        vf_fail(&flow->error, VMFROST_FAILED, "the journal %s/journal cannot be understood",
                flow->vm.folder);
        vf_hint(&flow->error, "look at the images by hand, then remove that file");
        return;
    }
    if (!vf_journal_continue(&flow->journal, &flow->vm, &flow->error))
        return;
    flow->resumed = true;
    flow->engine.conditions |= VF_IF_INTERRUPTED;
    flow->engine.table = flow->implicit ? &vf_settle_table : &vf_delete_table;
    flow->action = "settled";
    /* A QEMU without a process (TCP) is the one that is reached. */
    bool lives =
        flow->qemu.pid == 0 || (!vf_history_was_offline(flow) && !vf_process_gone(flow->qemu));

    flow->engine.conditions |= lives ? VF_IF_QEMU : VF_IF_OFFLINE;
    if (!lives) /* then any other one will do */
        flow->qemu = (struct vf_process){0, 0};
    if (flow->snapshot_name && vf_record_exists(&flow->vm, flow->snapshot_name))
        flow->record = vf_record_load(&flow->vm, flow->snapshot_name, &ignored);
}

bool
vf_delete_unfinished(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records = vf_record_list(&flow->vm, &ignored);

    for (size_t i = 0; i < vf_json_length(records); i++) {
        struct json_object *record = vf_json_at(records, i);
        const char *name = vf_json_string(record, "name");

        if (!name || !vf_json_bool(record, "deleting", false))
            continue;
        flow->snapshot_name = vf_strdup(name);
        flow->engine.table = &vf_delete_table;
        vf_delete_prepare(flow);
        return true;
    }
    return false;
}
