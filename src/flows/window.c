/* SPDX-License-Identifier: MIT
 *
 * The frozen window: freeze, cut, rename, thaw. Between the freeze's reply and the thaw's first
 * byte nothing else is done: no file is opened, no log is synced, nobody is told.
 */
#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "util/json.h"
#include "util/mem.h"

/* How long after a limit of ours the guard uses its own clock, and how long it stays out of a thaw
 * of ours: two readers of one stream only confuse each other. */
#define GUARD_MARGIN_MS 500
#define GUARD_PATIENCE_MS 20000
/* When an agent that is gone stays gone, the emergency thaw follows, if the user allows it. */
#define EMERGENCY_AFTER_US 5000000
/* Attempts to thaw on a connection on which the agent is never heard, until we call it anew.
 * Doubles: an agent that is at work is to have the time for an answer. */
#define UNHEARD_FIRST 2

/* The guard, and a last sign of life from the agent. */

/* A thaw is owed, and who pays it if we die. */
static bool
journal_guard(struct vf_flow *flow)
{
    struct json_object *more = vf_json_new_object();

    vf_json_add_int(more, "guard", flow->guard.pid);
    vf_json_add_int(more, "guardStarted", (int64_t)flow->guard.started);
    return vf_journal_state(flow, "freezing", more);
}

static void
on_alive(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (vf_expect(flow, reply, "guest agent, just before the freeze"))
        vf_end(flow, journal_guard(flow) ? VF_OK : VF_REFUSED);
}

bool
vf_guard_fork(struct vf_flow *flow, int agent_fd, struct vmfrost_error *error)
{
    struct vf_guard_name *names = vf_alloc((flow->cut_count + 1) * sizeof *names);
    struct vf_guard_plan plan = {
        .agent_fd = agent_fd,
        .agent_path = flow->agent.socket,
        .unheard = agent_fd >= 0 && !vf_qga_was_heard(flow->qga),
        .journal_fd = flow->journal.fd,
        .qemu_pid = flow->qemu.pid,
        .names = names,
    };

    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (cut->naming != VF_NAMING_FLIP || cut->elsewhere)
            continue;
        names[plan.name_count++] = (struct vf_guard_name){
            .next = cut->names.next,
            .top = cut->names.top,
            .overlay_device = cut->overlay.device,
            .overlay_number = cut->overlay.number,
            .base_device = cut->base.device,
            .base_number = cut->base.number,
        };
    }
    bool started = vf_guard_start(&flow->guard, &plan, error);

    free(names);
    return started;
}

/* Nothing is frozen, so there is time to look once more; in a freeze, events tell. */
static void
cut_next(struct vf_flow *flow)
{
    vf_end(flow, vf_journal_state(flow, "cutting", NULL) ? VF_OK : VF_REFUSED);
}

/* Forks the guard and writes to the journal that a thaw will be owed. QEMU gets the cut to read,
 * all but the last byte; it has read it when the agent has given its sign of life and frozen. */
void
vf_step_guard(struct vf_flow *flow)
{
    bool freezes = flow->engine.conditions & VF_IF_AGENT;

    if (!vf_guard_fork(flow, freezes ? vf_qga_fd(flow->qga) : -1, &flow->error)) {
        vf_end(flow, VF_REFUSED);
    } else if (freezes) {
        if (!flow->options.no_prime)
            vf_prime(flow, "transaction", vf_cut_transaction(flow));
        vf_ask_agent(flow, "guest-ping", NULL, on_alive);
    } else {
        vf_plug_look(flow, cut_next);
    }
}

static void
on_frozen(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "guest-fsfreeze-freeze"))
        return;
    flow->evidence.frozen = vf_now_us();
    if (!json_object_is_type(reply->value, json_type_int) ||
        (flow->evidence.frozen_count = json_object_get_int64(reply->value)) < 0 ||
        flow->evidence.frozen_count > 1000000) {
        flow->evidence.frozen_count = -1;
        vf_refuse(flow, VMFROST_FAILED, "guest-fsfreeze-freeze: the agent's answer is no count");
    } else if (flow->evidence.frozen_count == 0) {
        /* Success by the letter, but nothing stands still, and the thaw hook has not run. */
        vf_refuse(flow, VMFROST_FAILED,
                  "guest-fsfreeze-freeze: the agent froze no file system at all");
    } else {
        vf_end(flow, VF_OK);
    }
}

/* Arguments of guest-fsfreeze-freeze-list; NULL: everything is frozen. */
static struct json_object *
chosen_mounts(const struct vf_flow *flow)
{
    struct json_object *points = flow->freezing.mounts.points, *arguments = NULL;

    if (points) {
        arguments = vf_json_new_object();
        vf_json_add(arguments, "mountpoints", json_object_get(points));
    }
    return arguments;
}

/* Owes VF_OWE_THAW, whatever the agent says: hooks may have run. */
void
vf_step_freeze(struct vf_flow *flow)
{
    struct json_object *chosen = chosen_mounts(flow);

    flow->froze = true;
    vf_window_opens(flow);
    /* The guard is told of the cut as well: each message wakes it, and in the window the processor
     * is QEMU's. */
    vf_guard_cutting(&flow->guard);
    vf_guard_freezing(&flow->guard, flow->engine.frozen_limit_ms + GUARD_MARGIN_MS);
    flow->evidence.freeze_sent = vf_now_us();
    vf_ask_agent(flow, chosen ? "guest-fsfreeze-freeze-list" : "guest-fsfreeze-freeze", chosen,
                 on_frozen);
}

static void
on_cut(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_OK)
        flow->evidence.cut = vf_now_us();
    else if (reply->outcome == VF_REFUSED)
        flow->cut_begun = false;
    if (vf_expect_cut(flow, reply, "cutting the disks"))
        vf_end(flow, VF_OK);
}

/* One transaction for all disks. Owes VF_OWE_CUT and VF_OWE_RESOLVE. */
void
vf_step_cut(struct vf_flow *flow)
{
    if (!vf_plug_unchanged(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!flow->window_open)
        vf_guard_cutting(&flow->guard);
    flow->cut_begun = true;
    flow->evidence.cut_sent = vf_now_us();
    if (flow->engine.conditions & VF_IF_STOPPED) { /* nobody writes: turning the names is the cut */
        if (!vf_daemon_holds(flow))
            return;
        flow->evidence.cut = flow->evidence.cut_sent;
        vf_end(flow, VF_OK);
        return;
    }
    flow->evidence.primed = vf_qmp_is_primed(flow->qmp);
    if (flow->evidence.primed)
        vf_fire(flow, on_cut);
    else
        vf_ask(flow, "transaction", vf_cut_transaction(flow), on_cut);
}

bool
vf_flip_all(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (cut->naming == VF_NAMING_FLIP && vf_inode_of(cut->names.next).number &&
            !vf_flip(cut->names.next, cut->overlay, cut->names.top, cut->base, &flow->log,
                     &error)) {
            vf_prefix(&error, "disk %s", cut->name);
            return vf_note_error(flow, &error);
        }
        if (i == 0)
            vf_test_point(flow, "flip.first");
    }
    return true;
}

/* Every name leads to the current state before the guest can write to it. */
void
vf_step_flip(struct vf_flow *flow)
{
    bool flipped = vf_flip_all(flow);

    if (!flow->window_open)
        vf_guard_named(&flow->guard);
    vf_end(flow, flipped ? VF_OK : VF_REFUSED);
}

/* Thawing: one function for the normal thaw and for every later attempt. */

static void
thawed(struct vf_flow *flow)
{
    flow->evidence.thawed = vf_now_us();
    vf_guard_thawed(&flow->guard);
    if (flow->journal.fd >= 0)
        vf_journal_state(flow, "thawed", vf_evidence_json(flow));
    vf_end(flow, VF_OK);
}

static void
on_thaw_status(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "guest-fsfreeze-status after the thaw"))
        return;
    const char *status = vf_json_text(reply->value);

    if (status && strcmp(status, "thawed") == 0)
        thawed(flow);
    else
        vf_refuse(flow, VMFROST_FAILED, "the guest agent says \"%s\" after the thaw",
                  status ? status : "nothing");
}

static void
on_thawed(struct vf_flow *flow, const struct vf_reply *reply)
{
    int64_t count = -1;

    switch (reply->outcome) {
    case VF_OK:
        if (json_object_is_type(reply->value, json_type_int))
            count = json_object_get_int64(reply->value);
        flow->evidence.thawed_count = count >= 0 && count <= 1000000 ? count : -1;
        thawed(flow);
        return;
    case VF_REFUSED:
        /* A failing thaw hook gives an error although everything is thawed. */
        vf_note(flow, VMFROST_UNVERIFIED, "guest-fsfreeze-thaw: %s", reply->words);
        vf_ask_agent(flow, "guest-fsfreeze-status", NULL, on_thaw_status);
        return;
    case VF_UNKNOWN:
        vf_expect(flow, reply, "guest-fsfreeze-thaw");
        return;
    }
}

static void
send_thaw(struct vf_flow *flow)
{
    flow->evidence.thaw_sent = vf_now_us();
    vf_ask_agent(flow, "guest-fsfreeze-thaw", NULL, on_thawed);
    vf_guard_thawing(&flow->guard, GUARD_PATIENCE_MS);
    if (flow->window_open && !(flow->engine.owed & VF_OWE_RESOLVE))
        vf_guard_named(&flow->guard);
    vf_window_closes(flow);
}

void
vf_step_thaw(struct vf_flow *flow)
{
    send_thaw(flow);
}

/* Whoever thaws what an interrupted operation froze has sent its guard away. Before the first thaw
 * there is another one: we may be killed, too, or give up, and the guest is not to be left alone
 * then. */
static void
replace_guard(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (flow->guard.fd >= 0 || flow->evidence.freeze_sent || flow->journal.fd < 0)
        return;
    if (!vf_guard_fork(flow, vf_qga_fd(flow->qga), &error)) {
        vf_warn(flow, "%s", error.text);
        return;
    }
    journal_guard(flow);
    vf_guard_freezing(&flow->guard, GUARD_PATIENCE_MS);
    vf_guard_cutting(&flow->guard);
}

static void
on_reopened(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "reconnecting to the guest agent"))
        return;
    replace_guard(flow);
    send_thaw(flow);
}

static void
on_emergency(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_OK)
        vf_warn(flow, "the agent does not thaw: alt-sysrq-j was sent, on which the guest's kernel "
                      "thaws all file systems; this cannot be confirmed");
    else
        vf_warn(flow, "the agent does not thaw, and alt-sysrq-j could not be sent: %s",
                reply->words);
}

static void
emergency_thaw(struct vf_flow *flow)
{
    static const char *const keys[] = {"alt", "sysrq", "j"};
    struct json_object *list = vf_json_new_array(), *arguments = vf_json_new_object();

    flow->emergency = true;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        vf_json_append(list, vf_json_strings("type", "qcode", "data", keys[i], NULL));
    vf_json_add(arguments, "keys", list);
    vf_ask(flow, "send-key", arguments, on_emergency);
}

/* Where a client hung up while the VM stood still, the agent's port may be stuck: nothing that the
 * agent says comes through on a new connection, until that one ends (docs/protocol.md). One on
 * which it was heard is never given up, nor one that waits for QEMU: a thaw that waits in it is
 * the next thing that is done. */
static void
give_up_unheard(struct vf_flow *flow)
{
    if (!flow->unheard_most)
        flow->unheard_most = UNHEARD_FIRST;
    if (!vf_qga_is_open(flow->qga) || ++flow->unheard < flow->unheard_most ||
        !vf_qga_is_ignored(flow->qga))
        return;
    vf_log(&flow->log, VMFROST_LOG_INFO, "nothing comes from the agent: calling it anew");
    flow->unheard = 0;
    flow->unheard_most *= 2;
    vf_qga_hang_up(flow->qga);
}

/* An attempt to thaw a guest that did not confirm its thaw: whatever was lost, the stream is
 * synchronised anew, behind all that the agent still has to do. */
void
vf_step_thaw_again(struct vf_flow *flow)
{
    vf_qmp_unprime(flow->qmp); /* it is not going to be cut, or not now */
    if (!flow->thaw_first_us)
        flow->thaw_first_us = vf_now_us();
    /* Of our own freeze, and not for the first time. */
    if (flow->evidence.freeze_sent && flow->evidence.thaw_sent && !flow->unverified) {
        flow->unverified = true;
        vf_warn(flow, "the thaw is not confirmed yet; trying for up to %.0f s",
                (double)flow->engine.thaw_wait_ms / 1000);
    }
    if (flow->vm.emergency_thaw == VF_EMERGENCY_SYSRQ && !flow->emergency &&
        vf_now_us() - flow->thaw_first_us >= EMERGENCY_AFTER_US && vf_qmp_ready(flow->qmp))
        emergency_thaw(flow);
    /* A cut that is known, but came too late: until it is undone the overlays are the current
     * state, and the guest must not write before the names say so. */
    if ((flow->engine.owed & VF_OWE_CUT) && !(flow->engine.owed & VF_OWE_RESOLVE)) {
        vf_flip_all(flow);
        vf_guard_named(&flow->guard);
    }
    give_up_unheard(flow);
    if (vf_qga_is_open(flow->qga)) {
        send_thaw(flow);
        return;
    }
    if (flow->qemu.pid && vf_process_gone(flow->qemu)) {
        vf_warn(flow, "QEMU is gone, and the frozen guest with it");
        thawed(flow);
        return;
    }
    vf_agent_open(flow, on_reopened);
}
