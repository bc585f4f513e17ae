/* SPDX-License-Identifier: MIT
 *
 * Recovery: finishing or undoing what an interrupted operation left. Thaws first. Then it looks at
 * what QEMU and the folders really hold, because the last thing that the dead process did is in no
 * journal, and rolls forward or back.
 *
 * A cut that was made and whose deadline has not passed is finished; everything else is undone. Of
 * a group, all members have their snapshots or none: its mark alone decides. Where QEMU is gone,
 * names and files alone decide, and an overlay that holds data of the guest's is never removed.
 * Running it twice, or killing it anywhere and running it again, is allowed.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "flows/group.h"
#include "flows/history.h"
#include "flows/steps.h"
#include "flows/tables.h"
#include "store/groups.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/graph.h"

enum step {
    END = VF_STEP_END,
    READ,
    GUARD,
    DISMISS,
    THAW,
    CONNECT,
    THAW_MORE,
    GRAPH,
    OFFLINE,
    TURN,
    VERIFY,
    MERGE,
    LET_GO,
    FILES,
    CLOSE,
    UNDO_FREEZE,
    STOP_MERGE,
    STEP_COUNT,
};

/* Reading the journal. */

/* By a guard that has still time, and not one that thaws. */
static bool
is_held(const struct vf_flow *flow)
{
    const char *until = vf_json_string(vf_history_last(flow, "held"), "until");
    char now[32];

    vf_flow_time(flow, vf_now_us(), now);
    return vf_history_holds(flow) && until && strcmp(now, until) < 0;
}

static void
read_journal(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    json_object_put(flow->journal_lines);
    flow->journal_lines = vf_journal_read(&flow->vm, &error);
    if (!flow->journal_lines && vf_failed(&error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!flow->journal_lines) {
        vf_end(flow, vf_links_sweep(flow) ? VF_OK : VF_REFUSED);
        return;
    }
    if (vf_json_length(flow->journal_lines) && !vf_history_adopt(flow)) {
        vf_note(flow, VMFROST_FAILED, "the journal %s/journal cannot be understood",
                flow->vm.folder);
        vf_advise(flow,
                  "thaw with `vmfrost thaw %s`, look at the images by hand, then remove "
                  "that file",
                  flow->vm.name);
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!vf_journal_continue(&flow->journal, &flow->vm, &error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (flow->implicit && is_held(flow)) {
        vf_note(flow, VMFROST_FAILED, "the guest is frozen by hand");
        vf_advise(flow, "thaw it first: vmfrost thaw %s", flow->vm.name);
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->engine.conditions |= VF_IF_INTERRUPTED;
    /* Without a process id (TCP) only a connection can tell. */
    if (vf_json_length(flow->journal_lines) &&
        (flow->qemu.pid == 0 || !vf_process_gone(flow->qemu)))
        flow->engine.conditions |= VF_IF_QEMU;
    else
        flow->engine.conditions |= VF_IF_OFFLINE;
    flow->froze = vf_history_index(flow, "freezing") > 0;
    flow->cut_begun = flow->froze || vf_history_index(flow, "cutting") > 0;
    if (vf_history_thaw_owed(flow))
        flow->engine.conditions |= VF_IF_THAW_OWED;
    vf_end(flow, VF_OK);
}

/* The guard. */

static void
wait_for_guard(struct vf_flow *flow)
{
    vf_end(flow,
           vf_history_guard_lives(flow) || vf_history_daemon_lives(flow) ? VF_REFUSED : VF_OK);
}

static bool
is_rid_of_daemon(struct vf_flow *flow)
{
    if (!vf_history_was_offline(flow))
        return true;
    if (!vf_history_is_rid_of_daemon(flow))
        return false;
    flow->engine.conditions &= ~(unsigned)VF_IF_QEMU;
    flow->engine.conditions |= VF_IF_OFFLINE;
    return true;
}

static void
dismiss_guard(struct vf_flow *flow)
{
    struct vf_process guard = vf_history_guard(flow);

    if (!is_rid_of_daemon(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (guard.pid)
        vf_guard_dismiss(guard.pid, guard.started, 0);
    /* It may have written its last line while we waited. */
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *lines = vf_journal_read(&flow->vm, &error);

    if (lines) {
        json_object_put(flow->journal_lines);
        flow->journal_lines = lines;
    }
    if (!vf_history_thaw_owed(flow))
        flow->engine.conditions &= ~(unsigned)VF_IF_THAW_OWED;
    vf_end(flow, VF_OK);
}

/* The thaw. */

static void
thaw(struct vf_flow *flow)
{
    if (!flow->agent.socket) {
        flow->engine.hopeless = true;
        vf_refuse(flow, VMFROST_UNREACHABLE, "the journal names no socket of the agent");
        return;
    }
    flow->thaw_first_us = flow->thaw_first_us ? flow->thaw_first_us : vf_now_us();
    vf_step_thaw_again(flow);
}

static void
connect_after_thaw(struct vf_flow *flow)
{
    if (!(flow->engine.owed & VF_OWE_THAW)) {
        flow->engine.conditions &= ~(unsigned)VF_IF_THAW_OWED;
        if (vf_failed(&flow->error))
            vf_absolve(flow);
    }
    vf_step_connect(flow);
}

static void
thaw_more(struct vf_flow *flow)
{
    if (vf_failed(&flow->error))
        vf_absolve(flow);
    thaw(flow);
}

/* Deciding. */

static bool
deadline_passed(const struct vf_flow *flow)
{
    int64_t deadline = 0;

    return vf_json_int(vf_json_at(flow->journal_lines, 0), "deadline", &deadline) &&
           time(NULL) >= (time_t)deadline;
}

static void
load_record(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    if (!flow->record && flow->snapshot_name && vf_record_exists(&flow->vm, flow->snapshot_name))
        flow->record = vf_record_load(&flow->vm, flow->snapshot_name, &ignored);
}

static void
forward(struct vf_flow *flow)
{
    flow->engine.conditions |= VF_IF_FORWARD;
    flow->action = "rolled-forward";
}

static void
back(struct vf_flow *flow, unsigned conditions)
{
    vf_guard_named(&flow->guard); /* as they are, they lead to where the way back begins */
    flow->engine.conditions |= conditions;
    flow->action = "rolled-back";
}

/* A disk of which this QEMU has neither image in use is unplugged: absence from the graph says
 * nothing of what became of its cut. */
static size_t
find_absent(struct vf_flow *flow)
{
    size_t counting = 0;

    for (size_t i = 0; i < flow->cut_count; i++) {
        struct vf_cut *cut = &flow->cuts[i];

        cut->merged = vf_history_merge_was_final(flow, cut);
        cut->absent = !vf_graph_in_use(flow->facts.graph, cut->overlay_node) &&
                      !vf_graph_in_use(flow->facts.graph, cut->node);
        counting += cut->absent && vf_history_overlay_counts(flow, cut);
    }
    return counting;
}

/* While one disk is merged, the names of those that wait for it must not lead to what their guest
 * has left behind. */
static bool
turn_the_unmerged(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!*vf_history_merge_state(flow, &flow->cuts[i]) &&
            !vf_turn_to_overlay(flow, &flow->cuts[i]))
            return false;
    return true;
}

/* Even though it may be whole. */
static bool
is_to_be_undone(const struct vf_flow *flow)
{
    switch (vf_group_fate(flow)) {
    case VF_FATE_OWN:
        return deadline_passed(flow);
    case VF_FATE_FINISH:
        return false;
    case VF_FATE_UNDO:
        return true;
    }
    return false;
}

static void
decide(struct vf_flow *flow)
{
    size_t made = vf_cuts_made(flow), absent = find_absent(flow);
    bool undo = is_to_be_undone(flow);

    load_record(flow);
    flow->stopped = vf_history_left_stopped(flow);
    if (vf_history_was(flow, "freeze")) {
        flow->action = "thawed";
    } else if (flow->record && vf_json_bool(flow->record, "readyToUse", false) &&
               made + absent == flow->cut_count && !vf_history_merge_had_begun(flow)) {
        forward(flow); /* all was done but the end of the journal */
    } else if (made == 0 && absent == 0) {
        back(flow, VF_IF_FILES);
    } else if (made + absent < flow->cut_count && !vf_history_merge_had_begun(flow)) {
        vf_note(flow, VMFROST_FAILED, "%zu of %zu disks are cut: somebody else changed the graph",
                made + absent, flow->cut_count);
        vf_advise(flow, "look at `vmfrost status %s`; nothing was touched", flow->vm.name);
        vf_end(flow, VF_REFUSED);
        return;
    } else if (absent > 0 && vf_group_fate(flow) == VF_FATE_UNDO) {
        vf_note(flow, VMFROST_FAILED,
                "not all of its group have their snapshots, so that this one has to be undone, but "
                "a disk of it was unplugged");
        vf_advise(flow, "plug it in again, or stop the VM, then: vmfrost recover %s",
                  flow->vm.name);
        vf_end(flow, VF_REFUSED);
        return;
    } else if (absent == 0 && (undo || vf_history_merge_had_begun(flow))) {
        if (!turn_the_unmerged(flow)) {
            vf_end(flow, VF_REFUSED);
            return;
        }
        back(flow, VF_IF_MERGE | VF_IF_FILES);
    } else {
        forward(flow); /* also where a disk was unplugged, whose overlay cannot be merged now */
    }
    vf_end(flow, VF_OK);
}

static void
look_at_graph(struct vf_flow *flow)
{
    vf_look_again(flow, decide);
}

/* QEMU is gone: which of its two images was the live one? */

/* Somebody wrote to the base after he wrote to the overlay. */
static bool
base_is_newer(const struct vf_cut *cut)
{
    struct stat base, overlay;

    return stat(cut->names.sealed, &base) == 0 && stat(cut->names.overlay, &overlay) == 0 &&
           S_ISREG(base.st_mode) &&
           (base.st_mtim.tv_sec > overlay.st_mtim.tv_sec ||
            (base.st_mtim.tv_sec == overlay.st_mtim.tv_sec &&
             base.st_mtim.tv_nsec > overlay.st_mtim.tv_nsec));
}

/* QEMU was started again on the base of this disk, whose name had not been turned yet: what that
 * QEMU writes is in the image that was to be sealed. When the VM did not run at the time of the
 * snapshot, that is also seen afterwards, because nobody wrote to the base after the overlay was
 * made. */
static bool
base_was_used(struct vf_flow *flow, const struct vf_cut *cut)
{
    if (vf_cut_is_flipped(cut) || vf_history_overlay_counts(flow, cut))
        return false;
    return vf_cut_base_is_live(cut) || (vf_record_is_offline(flow) && base_is_newer(cut));
}

/* The same, where the overlay holds something as well. Nobody writes to a base after its cut, but a
 * merge. */
static bool
both_were_used(struct vf_flow *flow, const struct vf_cut *cut)
{
    if (vf_cut_is_flipped(cut) || !vf_history_overlay_counts(flow, cut))
        return false;
    return vf_cut_base_is_live(cut) || (!vf_history_merge_had_begun(flow) && base_is_newer(cut));
}

static bool
any_base_was_used(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (base_was_used(flow, &flow->cuts[i]))
            return true;
    return false;
}

/* Some disks go on with their bases, the others with their overlays, which nobody can merge now.
 * Every name is made to lead to its live image, which is what counts, and of the first ones all
 * that was prepared is removed. The record knows that it is no snapshot, and of which images it is
 * made, so that a deletion can finish it. */
static bool
leave_half(struct vf_flow *flow, const char *why)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        struct vf_cut *cut = &flow->cuts[i];

        if (cut->merged || base_was_used(flow, cut))
            continue;
        if (!vf_turn_to_overlay(flow, cut))
            return false;
        cut->elsewhere = true;
    }
    vf_warn(flow, "%s: delete %s@%s to finish that", why, flow->vm.name,
            flow->snapshot_name ? flow->snapshot_name : "");
    flow->engine.conditions |= VF_IF_FILES;
    flow->action = "none";
    flow->half_merged = true;
    return true;
}

/* The VM was not running, and is not: nobody has written to any overlay, nor is about to. */
static bool
is_untouched(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (vf_overlay_has_data(&flow->cuts[i]) || vf_is_open(flow, flow->cuts[i].overlay))
            return false;
    return true;
}

static bool
turn_to_bases(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!vf_turn_to_base(flow, &flow->cuts[i]))
            return false;
    return true;
}

static void
decide_offline(struct vf_flow *flow)
{
    size_t live = 0;
    bool left = true;

    load_record(flow);
    for (size_t i = 0; i < flow->cut_count; i++) {
        struct vf_cut *cut = &flow->cuts[i];

        if (both_were_used(flow, cut)) {
            vf_note_both_used(flow, cut);
            vf_end(flow, VF_REFUSED);
            return;
        }
        cut->merged = vf_history_merge_was_final(flow, cut);
        live += vf_history_overlay_counts(flow, cut);
    }
    if (!vf_json_length(flow->journal_lines)) {
        flow->action = "none"; /* it was interrupted before its first line was whole */
    } else if (vf_history_was(flow, "freeze")) {
        flow->action = "thawed";
    } else if (live == 0 && vf_group_fate(flow) != VF_FATE_FINISH) {
        back(flow, VF_IF_FILES);
    } else if (vf_history_merge_had_begun(flow)) {
        left = leave_half(flow, "the VM stopped in the middle of a merge");
    } else if (any_base_was_used(flow)) {
        left =
            leave_half(flow, "the VM was started when some disks had a snapshot, and others not");
    } else if (vf_group_fate(flow) == VF_FATE_UNDO && is_untouched(flow)) {
        left = turn_to_bases(flow);
        back(flow, VF_IF_FILES);
    } else if (vf_group_fate(flow) == VF_FATE_UNDO) {
        left = leave_half(flow, "not all of its group have their snapshots, and the VM has stopped "
                                "since this one was cut");
    } else {
        forward(flow);
    }
    vf_end(flow, left ? VF_OK : VF_REFUSED);
}

static void
turn(struct vf_flow *flow)
{
    bool turned = true;

    for (size_t i = 0; i < flow->cut_count; i++)
        turned = turned && vf_turn_to_overlay(flow, &flow->cuts[i]);
    vf_guard_named(&flow->guard);
    vf_end(flow, turned ? VF_OK : VF_REFUSED);
}

static void
on_let_go(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "letting the VM go on (cont)"))
        return;
    flow->stopped = false;
    vf_end(flow, VF_OK);
}

static void
let_go(struct vf_flow *flow)
{
    if (flow->stopped && vf_qmp_ready(flow->qmp))
        vf_ask(flow, "cont", NULL, on_let_go);
    else
        vf_end(flow, VF_OK);
}

/* Closing. */

/* What the dead process knew of the window. Is it enough to say that the guest stood still? */
static bool
recall_window(struct vf_flow *flow)
{
    struct json_object *thawed = vf_history_last(flow, "thawed");
    const char *partial = vf_json_string(thawed, "freezePartial");
    int64_t frozen_count = -1, thawed_count = -2, expected = 0;

    vf_json_int(thawed, "frozenFilesystems", &frozen_count);
    vf_json_int(thawed, "thawedFilesystems", &thawed_count);
    vf_json_int(thawed, "freezeExpected", &expected);
    flow->evidence.frozen_count = frozen_count;
    flow->evidence.thawed_count = thawed_count;
    flow->recovered_evidence = thawed;
    if (partial && !flow->freezing.mounts.partial) {
        flow->freezing.mounts.partial = vf_strdup(partial);
        vf_warn(flow, "%s", partial);
    }
    /* The cut's reply came before the thaw: only then is its time in that line. */
    return !flow->froze ||
           (frozen_count > 0 && frozen_count == thawed_count && frozen_count >= expected &&
            vf_json_string(thawed, "cut") && !vf_json_string(thawed, "disturbedBy"));
}

/* The hidden names of the overlays that stay go with the QEMU that knows them. */
static bool
remember_links(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        bool stays = !flow->half_merged || cut->elsewhere;

        if (stays && cut->naming == VF_NAMING_FLIP && flow->qemu.pid &&
            !vf_links_add(flow, cut->names.overlay, cut->names.top))
            return false;
    }
    return true;
}

static bool
close_forward(struct vf_flow *flow)
{
    vf_disks_cut(flow);
    if (vf_json_bool(flow->record, "readyToUse", false))
        return true;
    if (!flow->snapshot_name) {
        vf_note(flow, VMFROST_FAILED, "the journal %s/journal does not say which snapshot it is of",
                flow->vm.folder);
        vf_advise(flow, "look at the images by hand, then remove that file");
        return false;
    }
    if (!remember_links(flow))
        return false;
    if (!flow->record) /* lost, or damaged */
        vf_record_make(flow, flow->snapshot_name);
    vf_group_recall(flow);
    bool proved = recall_window(flow);

    flow->snapshot_state = VMFROST_SNAPSHOT_TAKEN;
    flow->unverified = !proved;
    if (!proved) {
        vf_note(flow, VMFROST_UNVERIFIED,
                "vmfrost was interrupted in the frozen window: the snapshot is whole, but nobody "
                "can say that the guest was frozen all the time");
        vf_advise(flow, "keep it as a crash-consistent one, or delete it");
    }
    bool written = vf_record_write(flow, proved ? "Succeeded" : "Failed", true);

    /* The record's trouble is not the recovery's: that one did what it should. */
    flow->unverified = false;
    if (!proved)
        vf_absolve(flow);
    return written;
}

static bool
close_back(struct vf_flow *flow)
{
    if (!flow->record)
        return true;
    struct vmfrost_error kept = flow->error;

    for (size_t i = 0; i < flow->cut_count; i++)
        flow->cuts[i].elsewhere = false;
    flow->error = (struct vmfrost_error){.code = VMFROST_OK};
    vf_fail(&flow->error, VMFROST_FAILED,
            "vmfrost was interrupted%s; the snapshot was rolled back%s",
            vf_group_fate(flow) == VF_FATE_UNDO ? " before all of the group had their snapshots"
                                                : "",
            flow->half_merged ? ", but not on all disks" : "");
    if (flow->half_merged)
        vf_hint(&flow->error, "`vmfrost delete %s@%s` finishes that", flow->vm.name,
                flow->snapshot_name ? flow->snapshot_name : "");
    bool written = vf_record_write(flow, "Failed", false);

    flow->error = kept;
    return written;
}

static void
close_up(struct vf_flow *flow)
{
    bool closed = true;

    if (vf_failed(&flow->error) && !(flow->engine.owed & VF_OWE_THAW))
        vf_absolve(flow);
    if (flow->engine.conditions & VF_IF_FORWARD)
        closed = close_forward(flow);
    else if (flow->half_merged && flow->record)
        closed = remember_links(flow) && close_back(flow);
    else if (vf_history_was(flow, "snapshot") && flow->action &&
             strcmp(flow->action, "rolled-back") == 0)
        closed = close_back(flow);
    closed = vf_links_sweep(flow) && closed;
    closed = closed && vf_journal_close_up(flow);
    vf_group_marks_sweep(flow->store);
    vf_end(flow, closed ? VF_OK : VF_REFUSED);
}

#define MINUTE_MS (60 * 1000)
#define DAY_MS (24 * 60 * MINUTE_MS)

static const struct vf_step steps[STEP_COUNT] = {
    [READ] = {.name = "read",
              .title = "Reading the journal",
              .start = read_journal,
              .budget_ms = MINUTE_MS,
              .next = GUARD},
    [GUARD] = {.name = "guard",
               .title = "Waiting for the guard",
               .start = wait_for_guard,
               .budget_ms = 5000,
               .patience_ms = 1500,
               .pause_ms = 20,
               .next = DISMISS,
               .otherwise = DISMISS,
               .when = VF_IF_INTERRUPTED},
    [DISMISS] = {.name = "dismiss",
                 .title = "Relieving the guard",
                 .start = dismiss_guard,
                 .budget_ms = 5000,
                 .next = THAW,
                 .when = VF_IF_INTERRUPTED},
    [THAW] = {.name = "thaw",
              .title = "Thawing the guest",
              .start = thaw,
              .owes = VF_OWE_THAW,
              .sticky = VF_OWE_THAW,
              .pays = VF_OWE_THAW,
              .budget_ms = 5000,
              .next = CONNECT,
              .otherwise = CONNECT,
              .when = VF_IF_THAW_OWED | VF_IF_QEMU},
    [CONNECT] = {.name = "connect",
                 .title = "Connecting to QEMU",
                 .start = connect_after_thaw,
                 .budget_ms = 10000,
                 .next = THAW_MORE,
                 .when = VF_IF_QEMU},
    [THAW_MORE] = {.name = "thaw-more",
                   .title = "Thawing the guest, again",
                   .start = thaw_more,
                   .pays = VF_OWE_THAW,
                   .budget_ms = 5000,
                   .patience_ms = VF_PATIENCE_THAW,
                   .pause_ms = 250,
                   .next = GRAPH,
                   .otherwise = GRAPH,
                   .when = VF_IF_THAW_OWED | VF_IF_QEMU},
    [GRAPH] = {.name = "graph",
               .title = "Looking at the VM",
               .start = look_at_graph,
               .budget_ms = 30000,
               .next = OFFLINE,
               .when = VF_IF_QEMU},
    [OFFLINE] = {.name = "offline",
                 .title = "Looking at the images",
                 .start = decide_offline,
                 .budget_ms = MINUTE_MS,
                 .next = TURN,
                 .when = VF_IF_INTERRUPTED | VF_IF_OFFLINE},
    [TURN] = {.name = "turn",
              .title = "Turning the names",
              .start = turn,
              .budget_ms = MINUTE_MS,
              .next = VERIFY,
              .when = VF_IF_FORWARD},
    [VERIFY] = {.name = "verify",
                .title = "Verifying",
                .start = vf_step_verify,
                .budget_ms = MINUTE_MS,
                .next = MERGE,
                .when = VF_IF_FORWARD | VF_IF_QEMU},
    [MERGE] = {.name = "merge",
               .title = "Merging the overlays back",
               .start = vf_step_merge,
               .owes = VF_OWE_CUT,
               .sticky = VF_OWE_CUT,
               .pays = VF_OWE_CUT,
               .budget_ms = DAY_MS,
               .patience_ms = MINUTE_MS,
               .pause_ms = 1000,
               .next = LET_GO,
               .when = VF_IF_MERGE},
    [LET_GO] = {.name = "let-go",
                .title = "Letting the VM go on",
                .start = let_go,
                .budget_ms = 10000,
                .next = FILES,
                .when = VF_IF_QEMU},
    [FILES] = {.name = "files",
               .title = "Removing what was prepared",
               .start = vf_step_undo_files,
               .budget_ms = MINUTE_MS,
               .patience_ms = 5000,
               .pause_ms = 250,
               .next = CLOSE,
               .when = VF_IF_FILES},
    [CLOSE] = {.name = "close",
               .title = "Closing the journal",
               .start = close_up,
               .budget_ms = MINUTE_MS,
               .next = END,
               .when = VF_IF_INTERRUPTED},
    [UNDO_FREEZE] = {.name = "undo-freeze",
                     .title = "Thawing the guest",
                     .start = thaw_more,
                     .pays = VF_OWE_THAW,
                     .budget_ms = 5000,
                     .patience_ms = VF_PATIENCE_THAW,
                     .pause_ms = 250},
    [STOP_MERGE] = {.name = "stop-merge",
                    .title = "Stopping the merge",
                    .start = vf_step_stop_merge,
                    .pays = VF_OWE_CUT,
                    .budget_ms = MINUTE_MS,
                    .patience_ms = MINUTE_MS,
                    .pause_ms = 500},
};

/* A merge is stopped, so that no VM stays paused; before that, the thaw is tried once more.
 * Otherwise recovery has no way back: what is still owed stays in the journal, for the next one. */
static const struct vf_undo undos[] = {
    {VF_OWE_THAW, UNDO_FREEZE, 0},
    {VF_OWE_CUT, STOP_MERGE, 0},
};

const struct vf_table vf_recover_table = {
    .operation = "recover",
    .steps = steps,
    .step_count = STEP_COUNT,
    .undos = undos,
    .undo_count = sizeof undos / sizeof *undos,
    .first = READ,
};

/* Which table recovers it depends on what was interrupted. A journal that cannot be read is the
 * table's own to tell of. */
static void
choose_table(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    if (vf_failed(&flow->error))
        return;
    flow->journal_lines = vf_journal_read(&flow->vm, &ignored);
    if (vf_history_was(flow, "delete"))
        vf_delete_resume(flow);
    else if (vf_history_was(flow, "restore"))
        flow->engine.table = &vf_restore_recover_table;
    else if (!flow->journal_lines && !flow->implicit)
        vf_delete_unfinished(flow);
}

struct vf_flow *
vf_recovery_before(struct vf_flow *parent, vmfrost_done_fn *done)
{
    struct vf_flow *flow =
        vf_flow_new(parent->loop, parent->store, &parent->log, &vf_recover_table);

    flow->vm_name = vf_strdup(parent->vm_name);
    flow->error = parent->error;
    if (!vf_failed(&flow->error))
        vf_store_find(flow->store, flow->vm_name, &flow->vm, &flow->error);
    flow->lock_fd = parent->lock_fd;
    flow->lock_borrowed = true;
    flow->implicit = true;
    flow->prepare = choose_table;
    flow->engine.thaw_wait_ms = parent->engine.thaw_wait_ms;
    flow->on_done = done;
    flow->data = parent;
    return flow;
}

static void
describe(struct vf_flow *flow)
{
    const char *operation = vf_json_string(vf_json_at(flow->journal_lines, 0), "operation");
    bool found =
        flow->engine.table != &vf_recover_table || (flow->engine.conditions & VF_IF_INTERRUPTED);

    if (!operation && flow->engine.table == &vf_delete_table)
        operation = "delete";
    json_object_put(flow->document_json);
    flow->document_json = vf_json_strings("vm", flow->vm.name, "operation", operation, "action",
                                          flow->action ? flow->action : "none", "record",
                                          found ? flow->snapshot_name : NULL, NULL);
    vf_json_add_bool(flow->document_json, "found", found);
    vf_json_add(flow->document_json, "warnings", json_object_get(flow->warnings));
}

void
vf_recover_prepare(struct vf_flow *flow)
{
    flow->prepare = choose_table;
    flow->document = describe;
}
