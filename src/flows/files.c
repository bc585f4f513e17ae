/* SPDX-License-Identifier: MIT
 *
 * Taking away what was prepared for a cut, or what a merge has left over: nodes, files, links.
 *
 * Guarantees: an overlay goes only if no QEMU of this host has it open and if it holds nothing of
 * the guest's that is not in its base; a sealed name only while another visible one, the disk's own
 * or one that somebody else gave it, leads to the same image. Where that cannot be seen, nothing is
 * removed, and the error says why.
 */
#include <errno.h>
#include <string.h>

#include "flows/graft.h"
#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/graph.h"

/* A QEMU that was started after the snapshot opened the base by its sealed name: that one has to
 * stay as long as QEMU does, although the snapshot goes. */
static bool
knows_by(const struct vf_flow *flow, const struct vf_cut *cut, const char *path)
{
    return flow->qemu.pid && !vf_process_gone(flow->qemu) &&
           strcmp(vf_name_of(cut->base_file), vf_name_of(path)) == 0;
}

bool
vf_keep_sealed(struct vf_flow *flow, const struct vf_cut *cut, const char *other)
{
    if (vf_links_has(flow, cut->names.sealed)) /* an attempt before this one */
        return true;
    vf_warn(flow,
            "%s stays, as a second name of %s: the running QEMU opened it by that name. It goes "
            "at the first command after QEMU has ended",
            cut->names.sealed, other);
    return vf_links_add(flow, cut->names.sealed, other);
}

static bool
is_open(const struct vf_flow *flow, struct json_object *qemus, struct vf_inode inode)
{
    struct vf_opened opened;

    if (flow->qemu.pid && vf_process_opened(flow->qemu.pid, inode, &opened) &&
        (opened.read_write || opened.read_only))
        return true;
    for (size_t i = 0; i < vf_json_length(qemus); i++) {
        int64_t pid = 0;

        if (vf_json_int(vf_json_at(qemus, i), "pid", &pid) &&
            vf_process_opened((pid_t)pid, inode, &opened) &&
            (opened.read_write || opened.read_only))
            return true;
    }
    return false;
}

bool
vf_is_open(const struct vf_flow *flow, struct vf_inode inode)
{
    VF_AUTO_JSON struct json_object *qemus = vf_process_find_qemus();

    return is_open(flow, qemus, inode);
}

const struct vf_cut *
vf_sync_folders(const struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        VF_AUTO_FREE char *folder = vf_folder_of(flow->cuts[i].names.overlay);
        bool done = flow->cuts[i].elsewhere;

        for (size_t k = 0; k < i && !done; k++) {
            VF_AUTO_FREE char *other = vf_folder_of(flow->cuts[k].names.overlay);

            done = !flow->cuts[k].elsewhere && strcmp(folder, other) == 0;
        }
        if (!done && vf_sync_folder(folder) < 0)
            return &flow->cuts[i];
    }
    return NULL;
}

/* What of a cut is removed. */
struct removal {
    struct vf_inode overlay; /* 0, 0: it was not even created */
    bool allowed;
};

/* Somebody else's overlay is on the base by now. Nothing can build on ours if it has no name but
 * the hidden ones, and the base keeps the name that he gave it. */
static bool
is_passed_over(const struct vf_cut *cut, struct vf_inode overlay)
{
    VF_AUTO_FREE char *folder = vf_folder_of(cut->names.overlay);
    VF_AUTO_FREE char *ours = vf_find_inode(folder, overlay);
    VF_AUTO_FREE char *other = vf_find_other_name(cut->names.sealed, cut->base);

    return (!ours || vf_is_hidden_link(vf_name_of(ours))) &&
           (other || !vf_inode_equal(vf_inode_of(cut->names.sealed), cut->base));
}

/* Nothing of the guest's is lost without the overlay, and the base has a name of its own: that has
 * to be seen before any name goes. */
static bool
may_remove(struct vf_flow *flow, const struct vf_cut *cut, struct vf_inode overlay,
           struct json_object *qemus)
{
    if (overlay.number && vf_cut_has_name_of(cut, overlay) && is_open(flow, qemus, overlay))
        return vf_note(flow, VMFROST_FAILED, "disk %s: QEMU has %s open, so that it is left alone",
                       cut->name, cut->names.overlay);
    if (overlay.number && flow->cut_begun && !cut->merged && vf_overlay_has_data(cut))
        return vf_note(
            flow, VMFROST_FAILED,
            "disk %s: %s holds data of the guest's that is nowhere else: it is left alone",
            cut->name, cut->names.overlay);
    if (cut->naming == VF_NAMING_FLIP && !vf_inode_equal(vf_inode_of(cut->names.top), cut->base) &&
        !is_passed_over(cut, overlay)) {
        vf_note(flow, VMFROST_FAILED, "disk %s: %s does not lead to its image: nothing is removed",
                cut->name, cut->names.top);
        vf_advise(flow,
                  "has somebody else changed the VM's disks? Look at its images by hand, then "
                  "remove %s/journal",
                  flow->vm.folder);
        return false;
    }
    return true;
}

/* The names of the base that were made for the cut. */
static bool
remove_base_names(struct vf_flow *flow, const struct vf_cut *cut, struct vf_inode overlay)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    /* In the middle of a turn it may be another link of either. */
    bool of_base = vf_inode_equal(vf_inode_of(cut->names.next), cut->base);

    if (cut->naming == VF_NAMING_NEW_FILE)
        return true;
    if (!vf_unlink(cut->names.next, of_base ? cut->base : overlay, &flow->log, &error))
        return vf_note_error(flow, &error);
    if (knows_by(flow, cut, cut->names.sealed))
        return vf_keep_sealed(flow, cut, cut->names.top);
    return vf_unlink(cut->names.sealed, cut->base, &flow->log, &error) ||
           vf_note_error(flow, &error);
}

static bool
remove_overlay(struct vf_flow *flow, const struct vf_cut *cut, struct vf_inode overlay)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!vf_unlink(cut->names.overlay, overlay, &flow->log, &error))
        return vf_note_error(flow, &error);
    return !cut->names.top || !vf_inode_equal(vf_inode_of(cut->names.top), cut->base) ||
           vf_links_move(flow, cut->base, cut->names.top);
}

static bool
make_durable(struct vf_flow *flow)
{
    const struct vf_cut *failed = vf_sync_folders(flow);

    return !failed || vf_note(flow, VMFROST_FAILED, "cannot make the folder of %s durable: %s",
                              failed->names.overlay, strerror(errno));
}

bool
vf_remove_names(struct vf_flow *flow)
{
    VF_AUTO_JSON struct json_object *qemus = vf_process_find_qemus();
    VF_AUTO_FREE struct removal *removals = vf_alloc((flow->cut_count + 1) * sizeof *removals);
    VF_AUTO_FREE struct vf_inode *overlays = vf_alloc((flow->cut_count + 1) * sizeof *overlays);
    size_t overlay_count = 0;
    bool gone = true;

    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        struct vf_inode overlay = cut->overlay;

        if (cut->elsewhere)
            continue;
        /* Killed between creation and the next line of the journal: what has the random name is
         * ours. */
        if (!overlay.number)
            overlay = vf_cut_overlay_inode(cut);
        removals[i].overlay = overlay;
        removals[i].allowed =
            may_remove(flow, cut, overlay, qemus) && remove_base_names(flow, cut, overlay);
        gone &= removals[i].allowed;
        if (removals[i].allowed && overlay.number)
            overlays[overlay_count++] = overlay;
    }
    /* An overlay was the current image of a QEMU that may know it by the name of a snapshot deleted
     * since. Nobody would find that one again without the other. */
    if (!vf_links_drop(flow, overlays, overlay_count))
        return false;
    for (size_t i = 0; i < flow->cut_count; i++)
        if (removals[i].allowed)
            gone &= remove_overlay(flow, &flow->cuts[i], removals[i].overlay);
    return make_durable(flow) && gone;
}

static void
remove_all_names(struct vf_flow *flow)
{
    if (vf_remove_names(flow))
        vf_end(flow, VF_OK);
    else
        vf_end_refused(flow);
}

static void dismiss_jobs(struct vf_flow *flow);

static void
on_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (vf_expect(flow, reply, "job-dismiss"))
        dismiss_jobs(flow);
}

static void
on_old_jobs(struct vf_flow *flow, const struct vf_reply *reply)
{
    VF_AUTO_FREE char *prefix = vf_printf("vf%.8s-", flow->id);
    VF_AUTO_FREE char *merge_prefix = vf_printf(VF_JOB_OURS "%.8s-", flow->id);

    if (!vf_expect(flow, reply, "query-jobs"))
        return;
    for (size_t i = 0;
         json_object_is_type(reply->value, json_type_array) && i < vf_json_length(reply->value);
         i++) {
        struct json_object *job = vf_json_at(reply->value, i);
        const char *id = vf_json_string(job, "id");

        if (!id || !(vf_starts_with(id, prefix) || vf_starts_with(id, merge_prefix)))
            continue;
        bool concluded = vf_job_state_bit(vf_json_string(job, "status")) == VF_JOB_CONCLUDED;

        if (!concluded) {
            /* Creating an empty image takes milliseconds; the next attempt finds it ended. */
            vf_refuse(flow, VMFROST_FAILED, "QEMU's job %s still runs", id);
            return;
        }
        vf_ask(flow, "job-dismiss", vf_json_strings("id", id, NULL), on_dismissed);
        return;
    }
    remove_all_names(flow);
}

static void
dismiss_jobs(struct vf_flow *flow)
{
    vf_ask(flow, "query-jobs", NULL, on_old_jobs);
}

/* A node that is still there although its overlay is not wanted: an overlay's own (preopened, or
 * the launcher's), its file's (interrupted), or the launcher's for its file; or one that an
 * interrupted deletion has left. */
static char *
leftover_node(const struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        VF_AUTO_FREE char *file = vf_overlay_file_node(&flow->cuts[i]);

        if (flow->cuts[i].elsewhere)
            continue;
        if (vf_graph_has(flow->facts.graph, flow->cuts[i].overlay_node))
            return vf_strdup(flow->cuts[i].overlay_node);
        if (vf_graph_has(flow->facts.graph, file))
            return VF_STEAL(file);
        if (flow->cuts[i].overlay_file_node &&
            vf_graph_has(flow->facts.graph, flow->cuts[i].overlay_file_node))
            return vf_strdup(flow->cuts[i].overlay_file_node);
    }
    const char *joined = vf_graft_leftover(flow);

    return joined ? vf_strdup(joined) : NULL;
}

static void drop_nodes(struct vf_flow *flow);

static void
on_node_dropped(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_REFUSED) {
        vf_note(flow, VMFROST_FAILED, "cannot drop a node that was made for the snapshot: %s",
                reply->words);
        vf_end_refused(flow);
    } else if (vf_expect(flow, reply, "cannot drop a node that was made for the snapshot")) {
        vf_look_again(flow, drop_nodes);
    }
}

static void
drop_nodes(struct vf_flow *flow)
{
    VF_AUTO_FREE char *node = leftover_node(flow);

    if (node)
        vf_ask(flow, "blockdev-del", vf_json_strings("node-name", node, NULL), on_node_dropped);
    else
        dismiss_jobs(flow);
}

static void
look_for_nodes(struct vf_flow *flow)
{
    vf_look_again(flow, drop_nodes);
}

/* Removes nodes, files and links. Pays VF_OWE_FILES. */
void
vf_step_undo_files(struct vf_flow *flow)
{
    if ((flow->engine.conditions & VF_IF_STOPPED) && !vf_qmp_ready(flow->qmp))
        vf_daemon_stop(&flow->daemon); /* it cannot be asked to close anything */
    if (flow->qemu.pid && vf_process_gone(flow->qemu))
        remove_all_names(flow); /* nodes and jobs went with the process */
    else
        vf_with_qemu(flow, look_for_nodes);
}
