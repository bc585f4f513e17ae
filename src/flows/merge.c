/* SPDX-License-Identifier: MIT
 *
 * Merging overlays back into their bases while the VM runs: the undoing of a cut, and the deletion
 * of the newest snapshot.
 *
 * For each disk: block-commit copies what the overlay holds into the base and keeps both alike;
 * when it is ready it is completed; while it is pending, QEMU holds the guest's I/O, so that
 * neither image can change: there the disk's name is turned to the base; then it is finalized.
 *
 * block-commit reopens the base for writing BY NAME. When the name under which QEMU opened it
 * (web.qcow2, as the launcher said) leads to the overlay by now, QEMU would take the overlay for
 * the base. In that case the VM is stopped for a moment, the name leads to the base while
 * QEMU opens it, and is turned back before the VM goes on.
 *
 * A commit that fails or is cancelled, by whomever and whenever, reopens a base that it had to make
 * writable: QEMU 10 does, by that name, and the guest would go on on an overlay over itself. So
 * such a base is made writable before the commit, and stays so when that comes to nothing.
 *
 * A QEMU before 6.0 crashes if the guest writes in the moment in which an active commit begins:
 * there the VM is stopped for that moment as well.
 *
 * The journal knows each of these turns before it is made, so that recovery can finish or undo it;
 * a job that an earlier process left is adopted by its id. Starting again is always allowed.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "flows/graft.h"
#include "flows/history.h"
#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/graph.h"

static struct vf_cut *
current(struct vf_flow *flow)
{
    return &flow->cuts[flow->merge_at];
}

static char *
job_id(const struct vf_flow *flow)
{
    return vf_printf(VF_JOB_OURS "%.8s-%zu", flow->id, flow->merge_at);
}

static bool
journal_cut(struct vf_flow *flow, const struct vf_cut *cut, const char *state)
{
    struct json_object *more = vf_json_new_object();

    vf_json_add_string(more, "disk", cut->name);
    vf_json_add_bool(more, "running", flow->plan.running);
    return vf_journal_state(flow, state, more);
}

static bool
journal_disk(struct vf_flow *flow, const char *state)
{
    return journal_cut(flow, current(flow), state);
}

/* Makes the disk's visible name lead to `wanted`, which also has the name `source`. */
static bool
turn(struct vf_flow *flow, const struct vf_cut *cut, const char *source, struct vf_inode wanted)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_inode other = vf_inode_equal(wanted, cut->base) ? cut->overlay : cut->base;

    if (cut->naming == VF_NAMING_NEW_FILE)
        return true;
    if (vf_inode_equal(vf_inode_of(cut->names.top), wanted)) {
        /* A turn that was cut short leaves its second link. */
        bool of_base = vf_inode_equal(vf_inode_of(cut->names.next), cut->base);

        return !vf_inode_of(cut->names.next).number ||
               vf_unlink(cut->names.next, of_base ? cut->base : cut->overlay, &flow->log, &error) ||
               vf_note_error(flow, &error);
    }
    if (vf_is_only_name(cut->names.top)) {
        vf_note(flow, VMFROST_FAILED, "disk %s: %s is the only name of its image: it is left alone",
                cut->name, cut->names.top);
        vf_advise(flow, "look at the images by hand, then remove %s/journal", flow->vm.folder);
        return false;
    }
    if (!vf_inode_equal(vf_inode_of(cut->names.next), wanted) &&
        (!vf_unlink(cut->names.next, other, &flow->log, &error) ||
         !vf_link(source, cut->names.next, wanted, &flow->log, &error)))
        return vf_note_error(flow, &error);
    if (!vf_flip(cut->names.next, wanted, cut->names.top, other, &flow->log, &error))
        return vf_note_error(flow, &error);
    return true;
}

/* For a moment. The name beside it leads to the overlay meanwhile, so that one rename leads it
 * back, whoever makes it. */
static bool
lead_to_base(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (cut->naming == VF_NAMING_NEW_FILE || vf_inode_equal(vf_inode_of(cut->names.top), cut->base))
        return true;
    if (!vf_inode_equal(vf_inode_of(cut->names.next), cut->base) &&
        (!vf_unlink(cut->names.next, cut->overlay, &flow->log, &error) ||
         !vf_link(cut->names.sealed, cut->names.next, cut->base, &flow->log, &error)))
        return vf_note_error(flow, &error);
    return vf_exchange(cut->names.next, cut->base, cut->names.top, cut->overlay, &flow->log,
                       &error) ||
           vf_note_error(flow, &error);
}

bool
vf_turn_to_base(struct vf_flow *flow, const struct vf_cut *cut)
{
    return turn(flow, cut, cut->names.sealed, cut->base);
}

bool
vf_turn_to_overlay(struct vf_flow *flow, const struct vf_cut *cut)
{
    return turn(flow, cut, cut->names.overlay, cut->overlay);
}

void
vf_note_both_used(struct vf_flow *flow, const struct vf_cut *cut)
{
    vf_note(flow, VMFROST_FAILED,
            "disk %s: QEMU was started again on %s before its name led to %s, which holds what the "
            "guest wrote last before that",
            cut->name, vf_cut_path_before(cut), cut->names.overlay);
    vf_advise(flow, "both are kept: keep what you need, remove the other, then remove %s/journal",
              flow->vm.folder);
}

/* QEMU's own name for a file leads to it, or QEMU will not open it by that name: what is open for
 * writing already (a file node of its own, made by -blockdev) is not opened again. */
static bool
is_found_by(const struct vf_flow *flow, const char *name, struct vf_inode inode)
{
    VF_AUTO_FREE char *path = NULL;
    struct vf_opened opened;
    struct stat about;

    if (vf_process_opened(flow->qemu.pid, inode, &opened) && opened.read_write)
        return true;
    path = vf_printf("/proc/%d/%s/%s", (int)flow->qemu.pid, name[0] == '/' ? "root" : "cwd", name);
    return stat(path, &about) == 0 && about.st_ino == inode.number && about.st_dev == inode.device;
}

bool
vf_node_leads_to(const struct vf_flow *flow, const char *node, struct vf_inode inode)
{
    const char *file_node = vf_graph_child(flow->facts.graph, node, "file");
    const char *name = vf_node_file(flow, file_node ? file_node : node);

    return !inode.number || (name && is_found_by(flow, name, inode));
}

static bool
has_stale_name(const struct vf_flow *flow, const struct vf_cut *cut)
{
    return cut->base.number && cut->naming != VF_NAMING_NEW_FILE &&
           !is_found_by(flow, cut->base_file, cut->base);
}

/* All of the overlay is in the base, and the VM runs on that. Only what is there proves it: that
 * the overlay is missing from a graph proves nothing. */
bool
vf_is_merged(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct vf_opened overlay;

    if (vf_graph_in_use(flow->facts.graph, cut->overlay_node) ||
        !vf_graph_in_use(flow->facts.graph, cut->node))
        return false;
    if (vf_process_opened(flow->qemu.pid, cut->overlay, &overlay) && overlay.read_write &&
        !cut->merged)
        return false;
    return cut->naming == VF_NAMING_NEW_FILE
               ? cut->merged
               : vf_inode_equal(vf_inode_of(cut->names.top), cut->base);
}

static bool
refuse_unmerged(struct vf_flow *flow, const struct vf_cut *cut)
{
    vf_note(
        flow, VMFROST_FAILED,
        "disk %s: the VM runs neither on its overlay %s nor on its base %s: nothing was touched",
        cut->name, cut->names.overlay, cut->names.sealed);
    vf_advise(flow,
              "was the disk unplugged, or did something else change the block graph? See "
              "`vmfrost status %s`",
              flow->vm.name);
    flow->engine.hopeless = true;
    return false;
}

static void merge_next(struct vf_flow *flow);

/* The guest goes on with the overlay of this disk: its name leads there. Where names cannot be
 * turned it is the journal that tells of the base, and that must not be the last of it. */
static bool
name_overlay(struct vf_flow *flow, const struct vf_cut *cut)
{
    bool final = vf_history_merge_was_final(flow, cut);

    if (cut == current(flow) && flow->merge_final) {
        flow->merge_final = false;
        final = true;
    }
    if (cut->naming == VF_NAMING_NEW_FILE)
        return !final || journal_cut(flow, cut, "merge-running");
    if (!vf_turn_to_overlay(flow, cut))
        return false;
    vf_guard_named(&flow->guard);
    return true;
}

/* Ends the step with what went wrong, but first lets the VM go on and the name lead to the live
 * image. */

static void
end_merge(struct vf_flow *flow)
{
    if (flow->merge_outcome == VF_REFUSED)
        vf_end_refused(flow);
    else
        vf_end(flow, flow->merge_outcome);
}

static void
on_let_go(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (vf_expect(flow, reply, "cannot let the VM go on (cont)")) {
        flow->stopped = false;
        end_merge(flow);
    }
}

static void
give_up(struct vf_flow *flow, enum vf_outcome outcome)
{
    /* Once the name was turned for good, only a job that says it failed turns it back: a lost reply
     * to job-finalize may mean that the guest writes to the base by now. */
    if (!flow->merge_final)
        name_overlay(flow, current(flow));
    flow->merge_outcome = outcome;
    if (flow->stopped && vf_qmp_ready(flow->qmp))
        vf_ask(flow, "cont", NULL, on_let_go);
    else
        end_merge(flow);
}

static bool __attribute__((format(printf, 3, 4)))
went_well(struct vf_flow *flow, const struct vf_reply *reply, const char *format, ...)
{
    char what[256];
    va_list arguments;

    if (reply->outcome == VF_OK)
        return true;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    vf_note(flow, reply->outcome == VF_REFUSED ? VMFROST_FAILED : VMFROST_UNREACHABLE,
            "disk %s: %s: %s", current(flow)->name, what, reply->words);
    give_up(flow, reply->outcome);
    return false;
}

/* The end of one disk. */

static void
on_checked(struct vf_flow *flow)
{
    struct vf_cut *cut = current(flow);

    cut->merged = true; /* says QEMU; now it has to show */
    if (!vf_is_merged(flow, cut)) {
        cut->merged = false;
        vf_refuse(flow, VMFROST_FAILED, "disk %s: the VM does not run on its base after the merge",
                  cut->name);
        return;
    }
    if (!journal_disk(flow, "merged")) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->merge_at++;
    merge_next(flow);
}

static void
on_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_UNKNOWN)
        went_well(flow, reply, "job-dismiss");
    else
        vf_look_again(flow, on_checked);
}

static void
on_failed_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    (void)reply;
    give_up(flow, VF_REFUSED);
}

static void
on_concluded(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "waiting for the end of the merge"))
        return;
    const char *error = vf_json_string(reply->value, "error");

    if (error) {
        vf_note(flow, VMFROST_FAILED, "disk %s: merging failed: %s", current(flow)->name, error);
        name_overlay(flow, current(flow)); /* the guest goes on with it since */
        vf_ask(flow, "job-dismiss", vf_json_strings("id", flow->job, NULL), on_failed_dismissed);
    } else if (!reply->value) {
        vf_look_again(flow, on_checked); /* dismissed by an earlier process: the graph decides */
    } else {
        vf_ask(flow, "job-dismiss", vf_json_strings("id", flow->job, NULL), on_dismissed);
    }
}

static void
on_finalizing(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "job-finalize"))
        vf_job_wait(flow, VF_JOB_CONCLUDED | VF_JOB_GONE, on_concluded);
}

/* The guest's I/O waits here: nothing but the turn of the name. */
static void
on_pending(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "waiting for the merge to be pending"))
        return;
    unsigned state = vf_job_state_bit(vf_json_string(reply->value, "status"));

    if (state != VF_JOB_PENDING) {
        on_concluded(flow, reply);
        return;
    }
    vf_test_point(flow, "merge.pending");
    flow->merge_final = true;
    if (current(flow)->naming == VF_NAMING_NEW_FILE && !journal_disk(flow, "merge-turned")) {
        give_up(flow, VF_REFUSED);
        return;
    }
    if (!vf_turn_to_base(flow, current(flow)) ||
        (current(flow)->names.top && vf_sync_folder_of(current(flow)->names.top) < 0)) {
        vf_note(flow, VMFROST_FAILED, "disk %s: cannot turn its name to the base: %s",
                current(flow)->name, strerror(errno));
        name_overlay(flow, current(flow));
        vf_ask(flow, "job-cancel", vf_json_strings("id", flow->job, NULL), on_finalizing);
        return;
    }
    vf_test_point(flow, "merge.turned");
    vf_ask(flow, "job-finalize", vf_json_strings("id", flow->job, NULL), on_finalizing);
}

static void
on_completing(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "job-complete"))
        vf_job_wait(flow, VF_JOB_PENDING, on_pending);
}

static void
on_ready(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "waiting for the merge to be ready"))
        return;
    unsigned state = vf_job_state_bit(vf_json_string(reply->value, "status"));

    if (state == VF_JOB_PENDING)
        on_pending(flow, reply);
    else if (state != VF_JOB_READY)
        on_concluded(flow, reply);
    else if (!journal_disk(flow, "merge-final"))
        give_up(flow, VF_REFUSED);
    else
        vf_job_complete(flow, on_completing);
}

static void
wait_until_ready(struct vf_flow *flow)
{
    if (journal_disk(flow, "merge-running"))
        vf_job_wait(flow, VF_JOB_READY | VF_JOB_PENDING, on_ready);
    else
        give_up(flow, VF_REFUSED);
}

/* The beginning of one disk. */

static void
on_gone_on(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "cont"))
        return;
    flow->stopped = false;
    wait_until_ready(flow);
}

/* A job that has failed already may have given it back. */
static void
on_not_opened(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "looking at the job"))
        return;
    if (vf_json_string(reply->value, "error")) {
        on_concluded(flow, reply);
        return;
    }
    vf_note(flow, VMFROST_FAILED, "disk %s: QEMU has not opened %s for writing",
            current(flow)->name, current(flow)->names.sealed);
    vf_ask(flow, "job-cancel", vf_json_strings("id", flow->job, NULL), on_failed_dismissed);
}

static void
on_commit_started(struct vf_flow *flow, const struct vf_reply *reply)
{
    const struct vf_cut *cut = current(flow);
    struct vf_opened base = {.read_write = true};

    vf_test_point(flow, "merge.started");
    if (reply->outcome == VF_UNKNOWN) {
        /* QEMU may still be about to open the base by this name: it stays as it is until a reply on
         * a new connection shows that QEMU has answered this one. */
        vf_expect(flow, reply, "disk %s: block-commit", cut->name);
        return;
    }
    if (!went_well(flow, reply, "block-commit"))
        return;
    /* The proof that QEMU opened the base and not what has its name. */
    if (cut->base.number && flow->qemu.pid &&
        (!vf_process_opened(flow->qemu.pid, cut->base, &base) || !base.read_write)) {
        vf_job_look(flow, on_not_opened);
        return;
    }
    if (!name_overlay(flow, cut)) {
        give_up(flow, VF_REFUSED);
        return;
    }
    if (flow->stopped)
        vf_ask(flow, "cont", NULL, on_gone_on);
    else
        wait_until_ready(flow);
}

static void
start_commit(struct vf_flow *flow)
{
    const struct vf_cut *cut = current(flow);
    VF_AUTO_FREE char *id = job_id(flow);
    /* "device" has to be a root node: below a filter that is the filter. */
    struct json_object *arguments =
        vf_json_strings("job-id", id, "device", cut->filter ? cut->filter : cut->overlay_node,
                        "top-node", cut->overlay_node, "base-node", cut->node, "on-error", "report",
                        NULL);

    vf_json_add_bool(arguments, "auto-finalize", false);
    vf_job_ask(flow, id, "block-commit", arguments, on_commit_started);
}

/* What it complains of, block-commit will complain of as well. */
static void
on_made_writable(struct vf_flow *flow, const struct vf_reply *reply)
{
    vf_test_point(flow, "merge.writable");
    if (reply->outcome == VF_UNKNOWN) /* QEMU may still be about to open it, as above */
        vf_expect(flow, reply, "disk %s: opening its base", current(flow)->name);
    else
        start_commit(flow);
}

/* Keeps all other options of the image, which blockdev-reopen would not. */
static void
make_writable(struct vf_flow *flow)
{
    vf_ask_qemu_io(flow, current(flow)->node, "reopen -w", on_made_writable);
}

static void
turn_and_commit(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    /* Whoever starts the VM is to find its current image by that name, also if we die here. */
    if (flow->guard.fd < 0 && !vf_guard_fork(flow, -1, &error)) {
        vf_note_error(flow, &error);
        give_up(flow, VF_REFUSED);
        return;
    }
    vf_guard_leading(&flow->guard);
    if (lead_to_base(flow, current(flow)))
        make_writable(flow);
    else
        give_up(flow, VF_REFUSED);
}

/* The guest writes nothing meanwhile. */
static void
commit_at_rest(struct vf_flow *flow)
{
    vf_test_point(flow, "merge.stopped");
    if (has_stale_name(flow, current(flow)))
        turn_and_commit(flow);
    else
        start_commit(flow);
}

static void
on_stopped(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "stop"))
        commit_at_rest(flow);
}

static void
on_run_state(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "query-status"))
        return;
    flow->plan.running = vf_json_bool(reply->value, "running", false) || flow->stopped;
    if (!journal_disk(flow, "merge-flip")) {
        give_up(flow, VF_REFUSED);
        return;
    }
    if (!flow->plan.running) {
        commit_at_rest(flow);
        return;
    }
    flow->stopped = true;
    vf_ask(flow, "stop", NULL, on_stopped);
}

static void
on_jobs(struct vf_flow *flow, const struct vf_reply *reply)
{
    const struct vf_cut *cut = current(flow);
    VF_AUTO_FREE char *id = job_id(flow);

    if (!went_well(flow, reply, "query-jobs"))
        return;
    for (size_t i = 0;
         json_object_is_type(reply->value, json_type_array) && i < vf_json_length(reply->value);
         i++) {
        const char *its_id = vf_json_string(vf_json_at(reply->value, i), "id");

        if (!its_id || strcmp(its_id, id) != 0)
            continue;
        /* Ours, from before a crash or a lost reply. Until it is pending, the overlay is the
         * current state, wherever the name was left. */
        unsigned state = vf_job_state_bit(vf_json_string(vf_json_at(reply->value, i), "status"));

        vf_job_watch(flow, id);
        if (!(state & (VF_JOB_PENDING | VF_JOB_CONCLUDED)) && !name_overlay(flow, cut))
            give_up(flow, VF_REFUSED);
        else if (flow->stopped)
            vf_ask(flow, "cont", NULL, on_gone_on);
        else
            vf_job_wait(flow, VF_JOB_READY | VF_JOB_PENDING, on_ready);
        return;
    }
    if (!name_overlay(flow, cut)) /* an attempt before this one may have left it */
        give_up(flow, VF_REFUSED);
    else if (has_stale_name(flow, cut) || flow->before_6_1)
        vf_ask(flow, "query-status", NULL, on_run_state);
    else
        start_commit(flow);
}

/* About what there is to copy; at least something. */
static double
weight(const struct vf_cut *cut)
{
    struct stat about;

    if (cut->elsewhere)
        return 0;
    return stat(cut->names.overlay, &about) == 0 ? (double)about.st_blocks + 1 : 1;
}

static void
share(struct vf_flow *flow)
{
    double before = 0, all = 0;

    for (size_t i = 0; i < flow->cut_count; i++) {
        all += weight(&flow->cuts[i]);
        if (i < flow->merge_at)
            before = all;
    }
    vf_job_share(flow, 100 * before / all, 100 * (before + weight(current(flow))) / all);
}

/* The next disk that is to be merged; false: there is none. */
static bool
find_next(struct vf_flow *flow)
{
    while (flow->merge_at < flow->cut_count && current(flow)->elsewhere)
        flow->merge_at++;
    return flow->merge_at < flow->cut_count;
}

/* QEMU has just been looked at: at the beginning, or at the end of the disk before. */
static void
merge_next(struct vf_flow *flow)
{
    for (; find_next(flow); flow->merge_at++) {
        flow->merge_final = false;
        share(flow);
        if (vf_is_obstructed(flow, current(flow)))
            return;
        if (vf_graph_in_use(flow->facts.graph, current(flow)->overlay_node)) {
            vf_ask(flow, "query-jobs", NULL, on_jobs);
            return;
        }
        if (!vf_is_merged(flow, current(flow))) {
            refuse_unmerged(flow, current(flow));
            vf_end(flow, VF_REFUSED);
            return;
        }
        current(flow)->merged = true;
    }
    vf_end(flow, VF_OK);
}

static void
on_status(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (vf_expect(flow, reply, "query-status") && !vf_is_moved(flow, reply))
        vf_look_again(flow, merge_next);
}

static void
look(struct vf_flow *flow)
{
    if (find_next(flow))
        vf_ask(flow, "query-status", NULL, on_status);
    else
        vf_end(flow, VF_OK);
}

/* A QEMU that is gone opens nothing by a name any more: what is not merged is what the guest wrote
 * last, and its name leads there at once, for whoever starts the VM before a recovery. */
static void
turn_back_if_gone(struct vf_flow *flow)
{
    if (!flow->qemu.pid || !vf_process_gone(flow->qemu))
        return;
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!flow->cuts[i].merged && !flow->cuts[i].elsewhere &&
            !(flow->merge_final && i == flow->merge_at))
            vf_turn_to_overlay(flow, &flow->cuts[i]);
}

/* Of a VM that is not running nobody has written to the overlays: the names are all there is. But
 * when the daemon has ended, nobody holds the locks, and the VM may have been started since. */
static void
turn_back_stopped(struct vf_flow *flow)
{
    bool locked = vf_process_alive(flow->qemu);

    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (vf_overlay_has_data(cut) || (!locked && vf_is_open(flow, cut->overlay))) {
            vf_note(flow, VMFROST_FAILED, "disk %s: the VM was started meanwhile, with %s",
                    cut->name, vf_cut_path_after(cut));
            flow->engine.hopeless = true;
            vf_end(flow, VF_REFUSED);
            return;
        }
    }
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!vf_turn_to_base(flow, &flow->cuts[i])) {
            vf_end_refused(flow);
            return;
        }
    vf_end(flow, VF_OK);
}

/* Merges every overlay of the flow that is in use. Pays VF_OWE_CUT; the overlays' files and names
 * are then left to vf_step_undo_files(). */
void
vf_step_merge(struct vf_flow *flow)
{
    if (flow->engine.conditions & VF_IF_STOPPED) {
        turn_back_stopped(flow);
        return;
    }
    turn_back_if_gone(flow);
    flow->merge_at = 0;
    vf_with_qemu(flow, look);
}

/* Stopping. */

static void stop_next(struct vf_flow *flow);

static void
on_stopped_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (vf_expect(flow, reply, "job-dismiss"))
        stop_next(flow);
}

static void
on_cancelled(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "waiting for the end of a cancelled merge"))
        return;
    vf_test_point(flow, "stop-merge.cancelled");
    vf_ask(flow, "job-dismiss", vf_json_strings("id", flow->job, NULL), on_stopped_dismissed);
}

static void
on_cancelling(struct vf_flow *flow, const struct vf_reply *reply)
{
    /* Refused: it has concluded by itself. */
    if (reply->outcome == VF_UNKNOWN)
        vf_expect(flow, reply, "job-cancel");
    else
        vf_job_wait(flow, VF_JOB_CONCLUDED | VF_JOB_GONE, on_cancelled);
}

static void
on_names_by_graph(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        bool live = vf_graph_in_use(flow->facts.graph, cut->overlay_node);

        if (cut->elsewhere)
            continue;
        if (live ? !vf_turn_to_overlay(flow, cut)
                 : !vf_is_merged(flow, cut) && !refuse_unmerged(flow, cut)) {
            vf_end_refused(flow);
            return;
        }
    }
    if (flow->stopped)
        vf_ask(flow, "cont", NULL, on_let_go);
    else
        vf_end(flow, VF_OK);
}

static void
on_jobs_to_stop(struct vf_flow *flow, const struct vf_reply *reply)
{
    VF_AUTO_FREE char *prefix = vf_printf(VF_JOB_OURS "%.8s-", flow->id);

    if (!vf_expect(flow, reply, "query-jobs"))
        return;
    for (size_t i = 0;
         json_object_is_type(reply->value, json_type_array) && i < vf_json_length(reply->value);
         i++) {
        const char *id = vf_json_string(vf_json_at(reply->value, i), "id");

        if (!id || !vf_starts_with(id, prefix))
            continue;
        vf_job_watch(flow, id);
        vf_ask(flow, "job-cancel", vf_json_strings("id", id, NULL), on_cancelling);
        return;
    }
    flow->merge_outcome = VF_OK;
    vf_look_again(flow, on_names_by_graph);
}

static void
stop_next(struct vf_flow *flow)
{
    vf_ask(flow, "query-jobs", NULL, on_jobs_to_stop);
}

/* While a job is pending both images are alike, and the guest waits. As soon as it is cancelled the
 * guest goes on with the overlay: so first of all the names of all disks that have theirs in use
 * lead there, durably. */
static void
name_the_live(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (cut->elsewhere || !vf_graph_in_use(flow->facts.graph, cut->overlay_node))
            continue;
        bool turns = cut->naming == VF_NAMING_FLIP && !vf_cut_is_flipped(cut);

        if (!name_overlay(flow, cut)) {
            vf_end_refused(flow);
            return;
        }
        if (turns && vf_sync_folder_of(cut->names.top) < 0) {
            vf_refuse(flow, VMFROST_FAILED, "disk %s: cannot make the folder of %s durable: %s",
                      cut->name, cut->names.top, strerror(errno));
            return;
        }
    }
    stop_next(flow);
}

static void
look_and_stop(struct vf_flow *flow)
{
    vf_look_again(flow, name_the_live);
}

void
vf_step_stop_merge(struct vf_flow *flow)
{
    vf_side_leave(flow);
    if (flow->engine.conditions & VF_IF_STOPPED) { /* all that the daemon is at ends with it */
        vf_qmp_close(flow->qmp);
        vf_daemon_stop(&flow->daemon);
        vf_end(flow, VF_OK);
        return;
    }
    turn_back_if_gone(flow);
    vf_with_qemu(flow, look_and_stop);
}
