/* SPDX-License-Identifier: MIT
 *
 * Recovery of a restore that was interrupted.
 *
 * The names decide, not the journal: if none leads to the restored disks, all is undone; if one
 * does, all are made to, and the same QEMU, which stands still, is turned to them, reset, and goes
 * on if it ran before. One that has ended needs nothing but its names: it starts what they say.
 *
 * Running it twice, or killing it anywhere and running it again, is allowed.
 */
#include <stdlib.h>
#include <string.h>

#include "flows/history.h"
#include "flows/steps.h"
#include "flows/tables.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/graph.h"

enum step {
    END = VF_STEP_END,
    READ,
    GUARD,
    DISMISS,
    DECIDE,
    TURN,
    CONNECT,
    LOOK,
    HALT,
    UNMIRROR,
    PIVOT,
    RESET,
    GO_ON,
    TIDY,
    FILES,
    CLOSE,
    STEP_COUNT,
};

/* Reading the journal. */

static bool
read_lines(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *lines = vf_journal_read(&flow->vm, &error);

    if (!lines && vf_failed(&error))
        return vf_note_error(flow, &error);
    if (lines) {
        json_object_put(flow->journal_lines);
        flow->journal_lines = lines;
    }
    return true;
}

/* What the dead process knew. */
static void
remember(struct vf_flow *flow)
{
    struct json_object *first = vf_json_at(flow->journal_lines, 0);
    struct json_object *halting = vf_history_last(flow, "halting");
    const char *keep = vf_json_string(first, "keep");

    if (keep)
        flow->restore.keep = vf_strdup(keep);
    flow->restore.running = vf_json_bool(halting, "running", false);
    flow->restore.old_nodes = json_object_get(vf_json_array(halting, "nodes"));
    flow->cut_begun = halting;
    if (vf_history_was_offline(flow) || (halting && !vf_json_bool(halting, "online", true)))
        flow->engine.conditions |= VF_IF_STOPPED;
}

static void
read_journal(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!read_lines(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!vf_history_adopt(flow)) {
        vf_note(flow, VMFROST_FAILED, "the journal %s/journal cannot be understood",
                flow->vm.folder);
        vf_advise(flow, "look at the images by hand, then remove that file");
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!vf_journal_continue(&flow->journal, &flow->vm, &error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->engine.conditions |= VF_IF_INTERRUPTED;
    remember(flow);
    vf_end(flow, VF_OK);
}

/* A guard turns what is left to be turned, at once. */

static void
wait_for_guard(struct vf_flow *flow)
{
    vf_end(flow,
           vf_history_guard_lives(flow) || vf_history_daemon_lives(flow) ? VF_REFUSED : VF_OK);
}

static void
dismiss_guard(struct vf_flow *flow)
{
    struct vf_process guard = vf_history_guard(flow);

    if (guard.pid)
        vf_guard_dismiss(guard.pid, guard.started, 0);
    vf_end(flow, vf_history_is_rid_of_daemon(flow) ? VF_OK : VF_REFUSED);
}

/* Deciding. */

static bool
is_turned(const struct vf_flow *flow)
{
    bool turned = vf_history_last(flow, "turning");

    for (size_t i = 0; i < flow->cut_count; i++)
        turned |= vf_cut_is_flipped(&flow->cuts[i]);
    return turned;
}

/* Between two names that were turned, the host went down, and the VM was started again before
 * anybody came here: what it runs on is neither of the two states. */
static const struct vf_cut *
find_parted(const struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (cut->naming == VF_NAMING_FLIP && !vf_cut_is_flipped(cut) &&
            !vf_process_alive(flow->qemu) && vf_cut_base_is_live(cut))
            return cut;
    }
    return NULL;
}

static void
decide(struct vf_flow *flow)
{
    const struct vf_cut *parted;

    if (!is_turned(flow)) {
        flow->engine.conditions |= VF_IF_FILES;
        flow->action = "rolled-back";
    } else if ((parted = find_parted(flow))) {
        vf_note(flow, VMFROST_FAILED,
                "disk %s: QEMU was started again on %s before its name led to the restored disk, "
                "and other disks are restored already",
                parted->name, parted->names.top);
        vf_advise(flow, "stop that QEMU, run `vmfrost recover %s`, and start it again then",
                  flow->vm.name);
        vf_end(flow, VF_REFUSED);
        return;
    } else {
        flow->engine.conditions |= VF_IF_FORWARD;
        flow->restore.turned = true;
        flow->action = "rolled-forward";
    }
    if (!(flow->engine.conditions & VF_IF_STOPPED) && !vf_process_gone(flow->qemu))
        flow->engine.conditions |= VF_IF_ONLINE;
    vf_end(flow, VF_OK);
}

static void
turn(struct vf_flow *flow)
{
    vf_end(flow, vf_restore_turn(flow) ? VF_OK : VF_REFUSED);
}

/* What the VM does. Somebody may have let it go on by hand; then it is stopped anew before its
 * disks are changed. */

static void
on_run_state(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "query-status"))
        return;
    bool running = vf_json_bool(reply->value, "running", false);
    bool all = true;

    for (size_t i = 0; i < flow->cut_count; i++)
        all = all && vf_restore_runs_on(flow, &flow->cuts[i]);
    flow->restore.anew = running && all;
    flow->stopped = flow->restore.running && !running;
    if (flow->restore.turned && running && !all) {
        flow->engine.conditions |= VF_IF_HALT;
        flow->restore.running = true;
    }
    vf_end(flow, VF_OK);
}

static void
on_looked(struct vf_flow *flow)
{
    vf_ask(flow, "query-status", NULL, on_run_state);
}

static void
look(struct vf_flow *flow)
{
    vf_look_again(flow, on_looked);
}

/* The end. */

static void
take_record(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct json_object *halting = vf_history_last(flow, "halting");
    struct json_object *evidence =
        vf_json_strings("quiesce", "skip", "cut", vf_json_string(halting, "time"), NULL);

    if (flow->restore.keep && vf_record_exists(&flow->vm, flow->restore.keep))
        flow->record = vf_record_load(&flow->vm, flow->restore.keep, &ignored);
    /* It goes with the lines, where recoveries have it. */
    vf_json_add(vf_json_at(flow->journal_lines, 0), "evidence", evidence);
    flow->recovered_evidence = evidence;
}

static void
close_up(struct vf_flow *flow)
{
    if (!vf_links_sweep(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (flow->restore.turned) {
        take_record(flow);
        vf_step_restored(flow);
        return;
    }
    vf_end(flow, vf_journal_close_up(flow) ? VF_OK : VF_REFUSED);
}

#define MINUTE_MS (60 * 1000)
/* The VM stands still all the while: a QEMU that refuses for so long will refuse for longer. */
#define STILL_MS (15 * 1000)

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
               .otherwise = DISMISS},
    [DISMISS] = {.name = "dismiss",
                 .title = "Relieving the guard",
                 .start = dismiss_guard,
                 .budget_ms = 5000,
                 .next = DECIDE},
    [DECIDE] = {.name = "decide",
                .title = "Looking at the names",
                .start = decide,
                .budget_ms = MINUTE_MS,
                .next = TURN},
    [TURN] = {.name = "turn",
              .title = "Turning the names",
              .start = turn,
              .budget_ms = MINUTE_MS,
              .next = CONNECT,
              .when = VF_IF_FORWARD},
    [CONNECT] = {.name = "connect",
                 .title = "Connecting to QEMU",
                 .start = vf_step_connect,
                 .budget_ms = 10000,
                 .next = LOOK,
                 .when = VF_IF_ONLINE},
    [LOOK] = {.name = "look",
              .title = "Looking at the VM",
              .start = look,
              .budget_ms = 30000,
              .next = HALT,
              .when = VF_IF_ONLINE},
    [HALT] = {.name = "halt",
              .title = "Stopping the VM",
              .start = vf_step_halt,
              .budget_ms = MINUTE_MS,
              .next = UNMIRROR,
              .when = VF_IF_FORWARD | VF_IF_ONLINE | VF_IF_HALT},
    [UNMIRROR] = {.name = "unmirror",
                  .title = "Leaving the disks as they are",
                  .start = vf_step_undo_mirror,
                  .budget_ms = 30000,
                  .patience_ms = MINUTE_MS,
                  .pause_ms = 250,
                  .next = PIVOT,
                  .when = VF_IF_FILES | VF_IF_ONLINE},
    [PIVOT] = {.name = "pivot",
               .title = "Changing the disks",
               .start = vf_step_pivot,
               .budget_ms = 30000,
               .patience_ms = STILL_MS,
               .pause_ms = 250,
               .next = RESET,
               .when = VF_IF_FORWARD | VF_IF_ONLINE},
    [RESET] = {.name = "reset",
               .title = "Resetting the VM",
               .start = vf_step_reset,
               .budget_ms = 30000,
               .patience_ms = STILL_MS,
               .pause_ms = 250,
               .next = GO_ON,
               .when = VF_IF_FORWARD | VF_IF_ONLINE},
    [GO_ON] = {.name = "go-on",
               .title = "Letting the VM go on",
               .start = vf_step_go_on,
               .budget_ms = 30000,
               .patience_ms = STILL_MS,
               .pause_ms = 250,
               .next = TIDY,
               .when = VF_IF_ONLINE},
    [TIDY] = {.name = "tidy",
              .title = "Removing nodes that nothing uses",
              .start = vf_step_drop_old_nodes,
              .budget_ms = 10000,
              .next = FILES,
              .otherwise = FILES,
              .when = VF_IF_FORWARD | VF_IF_ONLINE},
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
               .next = END},
};

const struct vf_table vf_restore_recover_table = {
    .operation = "recover",
    .steps = steps,
    .step_count = STEP_COUNT,
    .first = READ,
};
