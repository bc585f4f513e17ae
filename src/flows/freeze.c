/* SPDX-License-Identifier: MIT
 *
 * Freezing and thawing by hand, with the same guard and the same limits as a snapshot.
 *
 * A guest that was frozen by hand stays frozen when the operation is done: its guard, which
 * outlives everybody, thaws it when the time is up. The journal stays as well, so that whoever
 * comes next knows.
 */
#include <stdlib.h>
#include <string.h>

#include "flows/history.h"
#include "flows/steps.h"
#include "flows/tables.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

#define MINUTE_MS (60 * 1000)
#define HOUR_MS (60 * MINUTE_MS)

/* Both want to know whether the VM runs; what a plan refuses is about cutting. */
static void
note_state(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    vf_plan_facts(flow, &ignored);
    vf_end(flow, VF_OK);
}

enum freeze_step {
    F_END = VF_STEP_END,
    F_CONNECT,
    F_LOOK,
    F_STATE,
    F_AGENT,
    F_ACCEPT,
    F_GUARD,
    F_FREEZE,
    F_HOLD,
    F_UNDO_FREEZE,
    F_UNDO_ACCEPT,
    F_COUNT,
};

static void
accept_freeze(struct vf_flow *flow)
{
    if (flow->limit_ms)
        flow->engine.frozen_limit_ms = flow->limit_ms;
    vf_end(flow, vf_journal_open(flow) ? VF_OK : VF_REFUSED);
}

/* The guard owes the thaw from now on. */
static void
hold(struct vf_flow *flow)
{
    struct json_object *document = vf_json_strings("vm", flow->vm.name, "status", "frozen", NULL);
    char until[32];

    vf_flow_time(flow, flow->evidence.freeze_sent + flow->engine.frozen_limit_ms * 1000, until);
    vf_json_add_string(document, "until", until);
    vf_json_add_int(document, "frozenFilesystems", flow->evidence.frozen_count);
    vf_json_add_int(document, "limitMs", flow->engine.frozen_limit_ms);
    if (!vf_guard_leave_holding(&flow->guard)) {
        json_object_put(document);
        vf_refuse(flow, VMFROST_FAILED, "the guard is gone, that was to thaw the guest in time");
        return;
    }
    flow->document_json = document;
    flow->held = true;
    vf_window_closes(flow);
    vf_journal_state(flow, "held", vf_json_strings("until", until, NULL));
    vf_end(flow, VF_OK);
}

static const struct vf_step freeze_steps[F_COUNT] = {
    [F_CONNECT] = {.name = "connect",
                   .title = "Connecting to QEMU",
                   .start = vf_step_connect,
                   .budget_ms = 10000,
                   .next = F_LOOK},
    [F_LOOK] = {.name = "look",
                .title = "Looking at the VM",
                .start = vf_step_look,
                .budget_ms = 10000,
                .next = F_STATE},
    [F_STATE] = {.name = "state",
                 .title = "Asking for the run state",
                 .start = note_state,
                 .budget_ms = 10000,
                 .next = F_AGENT},
    [F_AGENT] = {.name = "agent",
                 .title = "Asking the guest agent",
                 .start = vf_step_agent,
                 .budget_ms = 5000,
                 .next = F_ACCEPT},
    [F_ACCEPT] = {.name = "accept",
                  .title = "Writing the journal",
                  .start = accept_freeze,
                  .owes = VF_OWE_RECORD,
                  .sticky = VF_OWE_RECORD,
                  .budget_ms = MINUTE_MS,
                  .next = F_GUARD},
    [F_GUARD] = {.name = "guard",
                 .title = "Starting the guard",
                 .start = vf_step_guard,
                 .budget_ms = 5000,
                 .next = F_FREEZE},
    [F_FREEZE] = {.name = "freeze",
                  .title = "Freezing the guest",
                  .start = vf_step_freeze,
                  .owes = VF_OWE_THAW,
                  .sticky = VF_OWE_THAW,
                  .budget_ms = HOUR_MS,
                  .next = F_HOLD,
                  .in_window = true},
    [F_HOLD] = {.name = "hold",
                .title = "Leaving the guest to the guard",
                .start = hold,
                .pays = VF_OWE_THAW | VF_OWE_RECORD,
                .budget_ms = MINUTE_MS,
                .next = F_END},
    [F_UNDO_FREEZE] = {.name = "undo-freeze",
                       .title = "Thawing the guest",
                       .start = vf_step_thaw_again,
                       .pays = VF_OWE_THAW,
                       .budget_ms = 5000,
                       .patience_ms = VF_PATIENCE_THAW,
                       .pause_ms = 250},
    [F_UNDO_ACCEPT] = {.name = "undo-accept",
                       .title = "Closing the journal",
                       .start = vf_step_close_up,
                       .pays = VF_OWE_RECORD,
                       .budget_ms = MINUTE_MS},
};

static const struct vf_undo freeze_undos[] = {
    {VF_OWE_THAW, F_UNDO_FREEZE, 0},
    {VF_OWE_RECORD, F_UNDO_ACCEPT, 0},
};

const struct vf_table vf_freeze_table = {
    .operation = "freeze",
    .steps = freeze_steps,
    .step_count = F_COUNT,
    .undos = freeze_undos,
    .undo_count = sizeof freeze_undos / sizeof *freeze_undos,
    .first = F_CONNECT,
    .window_debt = VF_OWE_THAW,
};

/* Thawing. Nothing is recovered first: nothing may come before a thaw. */

enum thaw_step {
    T_END = VF_STEP_END,
    T_CONNECT,
    T_LOOK,
    T_STATE,
    T_RELIEVE,
    T_OWE,
    T_THAW,
    T_CLOSE,
    T_COUNT,
};

/* QEMU cannot be asked: its monitor has another client, or it hangs, or is gone. Who froze knew
 * where the agent is. */
static bool
take_from_journal(struct vf_flow *flow)
{
    struct json_object *first = vf_json_at(flow->journal_lines, 0);
    const char *agent = flow->vm.agent ? flow->vm.agent : vf_json_string(first, "agent");
    int64_t pid = 0, started = 0;

    if (!agent)
        return false;
    if (!flow->agent.socket)
        flow->agent.socket = vf_strdup(agent);
    vf_json_int(first, "qemu", &pid);
    vf_json_int(first, "qemuStarted", &started);
    if (!flow->qemu.pid)
        flow->qemu = (struct vf_process){(pid_t)pid, (uint64_t)started};
    vf_absolve(flow);
    return true;
}

/* A guard holds the agent's only connection. It is sent away as late as possible, and the first
 * thaw brings another one. */
static void
relieve_guard(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    flow->journal_lines = vf_journal_read(&flow->vm, &error);
    if (vf_failed(&error))
        vf_warn(flow, "%s", error.text);
    bool owed = vf_history_thaw_owed(flow);
    struct vf_process guard = vf_history_guard(flow);

    if (vf_failed(&flow->error) && (!owed || !take_from_journal(flow))) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (guard.pid && !vf_history_was(flow, "restore"))
        vf_guard_dismiss(guard.pid, guard.started, 0);
    if (owed)
        flow->engine.conditions |= VF_IF_THAW_OWED;
    if (flow->journal_lines && !vf_journal_continue(&flow->journal, &flow->vm, &error))
        vf_warn(flow, "%s", error.text);
    vf_end(flow, VF_OK);
}

/* We know that somebody froze: if that cannot be undone, it has to be said loudly. */
static void
owe(struct vf_flow *flow)
{
    vf_end(flow, VF_OK);
}

static void
thaw(struct vf_flow *flow)
{
    if (!flow->agent.socket) {
        flow->engine.hopeless = true;
        vf_note(flow, VMFROST_UNREACHABLE, "%s",
                flow->agent.message ? flow->agent.message : "no guest agent");
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->thaw_first_us = flow->thaw_first_us ? flow->thaw_first_us : vf_now_us();
    vf_step_thaw_again(flow);
}

static void
close_thaw(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vf_failed(&flow->error))
        vf_absolve(flow); /* a hook that failed, an attempt that came to nothing: it is thawed */
    flow->document_json = vf_json_strings("vm", flow->vm.name, "status", "thawed", NULL);
    if (flow->evidence.thawed_count >= 0)
        vf_json_add_int(flow->document_json, "thawedFilesystems", flow->evidence.thawed_count);
    if (vf_history_was(flow, "freeze") && flow->journal.fd >= 0)
        vf_journal_end(&flow->journal, &error);
    if (vf_failed(&error))
        vf_warn(flow, "%s", error.text);
    vf_end(flow, VF_OK);
}

static const struct vf_step thaw_steps[T_COUNT] = {
    [T_CONNECT] = {.name = "connect",
                   .title = "Connecting to QEMU",
                   .start = vf_step_connect,
                   .budget_ms = 10000,
                   .next = T_LOOK,
                   .otherwise = T_RELIEVE},
    [T_LOOK] = {.name = "look",
                .title = "Looking at the VM",
                .start = vf_step_look,
                .budget_ms = 10000,
                .next = T_STATE,
                .otherwise = T_RELIEVE},
    [T_STATE] = {.name = "state",
                 .title = "Asking for the run state",
                 .start = note_state,
                 .budget_ms = 10000,
                 .next = T_RELIEVE},
    [T_RELIEVE] = {.name = "relieve",
                   .title = "Relieving the guard",
                   .start = relieve_guard,
                   .budget_ms = MINUTE_MS,
                   .next = T_OWE},
    [T_OWE] = {.name = "owe",
               .title = "Taking over from the guard",
               .start = owe,
               .owes = VF_OWE_THAW,
               .sticky = VF_OWE_THAW,
               .budget_ms = MINUTE_MS,
               .next = T_THAW,
               .when = VF_IF_THAW_OWED},
    [T_THAW] = {.name = "thaw",
                .title = "Thawing the guest",
                .start = thaw,
                .pays = VF_OWE_THAW,
                .budget_ms = 5000,
                .patience_ms = VF_PATIENCE_THAW,
                .pause_ms = 250,
                .next = T_CLOSE},
    [T_CLOSE] = {.name = "close",
                 .title = "Closing the journal",
                 .start = close_thaw,
                 .budget_ms = MINUTE_MS,
                 .next = T_END},
};

const struct vf_table vf_thaw_table = {
    .operation = "thaw",
    .steps = thaw_steps,
    .step_count = T_COUNT,
    .first = T_CONNECT,
};
