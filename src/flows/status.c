/* SPDX-License-Identifier: MIT
 *
 * Status and check: looking without changing anything.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "flows/history.h"
#include "flows/steps.h"
#include "flows/tables.h"
#include "flows/truth.h"
#include "store/disks.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"

/* The document. */

static void
add_place(struct vf_flow *flow, struct json_object *document, const struct vf_disk *disk)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_place place = {0};

    vf_json_add_int(document, "depth", disk->depth);
    if (disk->reason != VF_INCLUDED)
        return;
    bool placed = vf_disk_place(flow, disk, &place, &error);
    const struct vf_class *class = vf_disk_class(flow, disk, &place);

    vf_json_add_string(document, "storageClass", class ? class->name : NULL);
    if (placed) {
        vf_json_add_string(document, "naming",
                           place.naming == VF_NAMING_FLIP ? "flip" : "new-file");
        vf_json_add_string(document, "image", place.path);
        vf_json_add_string(document, "namingMessage", place.why);
    } else {
        vf_json_add_bool(document, "eligible", false);
        vf_json_add_string(document, "reason", vf_reason_name(VF_OUT_NAME));
        vf_json_add_string(document, "message", error.text);
    }
    vf_place_release(&place);
}

static struct json_object *
snapshots(struct vf_flow *flow)
{
    static const char *const keys[] = {"name",         "phase",       "startTime",
                                       "creationTime", "consistency", "readyToUse",
                                       "parent",       "current",     "clones"};
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records = vf_record_list(&flow->vm, &error);
    struct json_object *list = vf_json_new_array();

    if (vf_failed(&error))
        vf_warn(flow, "%s", error.text);
    vf_truth_complete(&flow->vm, records);
    for (size_t i = 0; i < vf_json_length(records); i++) {
        struct json_object *summary = vf_json_new_object();
        const char *why =
            vf_json_string(vf_json_object(vf_json_at(records, i), "error"), "message");

        if (why && strcmp(vf_json_string(vf_json_at(records, i), "phase"), "Unknown") == 0)
            vf_warn(flow, "snapshot %s: %s", vf_json_string(vf_json_at(records, i), "name"), why);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            struct json_object *value;

            if (json_object_object_get_ex(vf_json_at(records, i), keys[k], &value))
                vf_json_add(summary, keys[k], json_object_get(value));
        }
        vf_json_append(list, summary);
    }
    return list;
}

static void
read_journal(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    json_object_put(flow->journal_lines);
    flow->journal_lines = vf_journal_read(&flow->vm, &error);
    if (vf_failed(&error))
        vf_warn(flow, "%s", error.text);
}

static bool
qemu_is_gone(const struct vf_flow *flow)
{
    struct json_object *first = vf_json_at(flow->journal_lines, 0);
    int64_t pid = 0, started = 0;

    return vf_json_int(first, "qemu", &pid) && vf_json_int(first, "qemuStarted", &started) &&
           pid > 0 && vf_process_gone((struct vf_process){(pid_t)pid, (uint64_t)started});
}

/* What the journal tells: "frozen" by hand, or "interrupted". False if there is nothing to tell: a
 * freeze by hand that is over is put away by whatever comes next. */
static bool
add_unfinished(struct vf_flow *flow, struct json_object *document)
{
    struct json_object *first = vf_json_at(flow->journal_lines, 0);
    bool owes = vf_history_thaw_owed(flow) && !qemu_is_gone(flow);

    if (!first || (vf_history_was(flow, "freeze") && !owes))
        return false;
    if (vf_history_holds(flow)) {
        struct json_object *held = vf_history_last(flow, "held");

        vf_json_add(document, "frozen",
                    vf_json_strings("since", vf_json_string(held, "time"), "until",
                                    vf_json_string(held, "until"), NULL));
        return false;
    }
    struct json_object *interrupted =
        vf_json_strings("operation", vf_json_string(first, "operation"), "since",
                        vf_json_string(first, "time"), "snapshot",
                        vf_json_string(first, "snapshot"), NULL);

    vf_json_add_bool(interrupted, "owesThaw", owes);
    vf_json_add(document, "interrupted", interrupted);
    return true;
}

static void
add_agent(struct vf_flow *flow, struct json_object *document)
{
    struct json_object *agent =
        vf_json_strings("socket", flow->agent.socket, "message", flow->agent.message, NULL);
    struct json_object *conditions = vf_json_new_array();
    bool known = flow->facts.status && !(flow->engine.conditions & VF_IF_STOPPED) &&
                 !vf_history_guard_lives(flow);

    vf_json_add_bool(agent, "connected", flow->agent.connected);
    vf_json_add(document, "agent", agent);
    vf_json_append(conditions, vf_json_strings("type", "AgentConnected", "status",
                                               !known                  ? "Unknown"
                                               : flow->agent.connected ? "True"
                                                                       : "False",
                                               "message", flow->agent.message, NULL));
    vf_json_add(document, "conditions", conditions);
}

/* Of a VM that does not run: its disks when it did. */
static void
add_known_disks(struct vf_flow *flow, struct json_object *document)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *known = vf_disks_known(&flow->vm, &error);

    if (known)
        vf_json_add(document, "lastSeen", known);
    if (vf_failed(&error))
        vf_warn(flow, "%s", error.text);
}

static void
describe(struct vf_flow *flow)
{
    bool looked = flow->facts.status != NULL;
    bool running = looked && !(flow->engine.conditions & VF_IF_STOPPED);
    struct json_object *document;

    if (looked) {
        document = vf_plan_json(&flow->plan);
        struct json_object *disks = vf_json_array(document, "disks");

        for (size_t i = 0; i < flow->plan.count && i < vf_json_length(disks); i++)
            add_place(flow, vf_json_at(disks, i), &flow->plan.disks[i]);
    } else {
        document = vf_json_new_object();
        add_known_disks(flow, document);
    }
    if (running) {
        struct json_object *qemu = vf_json_strings("version", flow->qemu_version, NULL);

        vf_json_add_int(qemu, "pid", flow->qemu.pid);
        vf_json_add(document, "qemu", qemu);
    }
    vf_json_add_string(document, "vm", flow->vm.name);
    vf_json_add_string(document, "qmp", flow->vm.qmp);
    vf_json_add_bool(document, "running", running);
    add_agent(flow, document);
    vf_json_add(document, "snapshots", snapshots(flow));
    struct json_object *holder = vf_vm_holder(&flow->vm);
    /* As long as somebody is at it, it is not interrupted. */
    bool finished = !holder && !add_unfinished(flow, document);

    if (holder)
        vf_json_add(document, "holder", holder);
    vf_truth_tell(flow, vf_json_array(document, "conditions"), finished);
    for (size_t i = 0; i < flow->plan.warning_count; i++)
        vf_warn(flow, "%s", flow->plan.warnings[i]);
    vf_json_add(document, "warnings", json_object_get(flow->warnings));
    flow->document_json = document;
}

/* Status. */

/* A VM that is not running, or is just being worked on, has a status, too. */
static void
find_out(struct vf_flow *flow)
{
    struct json_object *holder = vf_vm_holder(&flow->vm);

    read_journal(flow);
    if (!holder) {
        vf_step_connect(flow);
        return;
    }
    /* QEMU serves one client at a time: asking now would only disturb. */
    json_object_put(holder);
    vf_warn(flow, "another vmfrost works on this VM right now: QEMU was not asked");
    vf_end(flow, VF_REFUSED);
}

static void
note_disks(struct vf_flow *flow)
{
    struct vmfrost_error refusal = {.code = VMFROST_OK};

    if (!vf_plan_facts(flow, &refusal))
        vf_warn(flow, "no snapshot now: %s", refusal.text);
    vf_disks_note(flow, NULL);
    vf_end(flow, VF_OK);
}

/* A guard that is to thaw has the agent's only connection. */
static void
ask_agent(struct vf_flow *flow)
{
    if (!vf_history_guard_lives(flow)) {
        vf_step_agent(flow);
        return;
    }
    free(flow->agent.message);
    flow->agent.message = vf_strdup("the guard that will thaw the guest talks to it");
    vf_end(flow, VF_OK);
}

/* That a VM is not running is no trouble, and told without a warning. */
static void
finish_status(struct vf_flow *flow)
{
    struct vmfrost_error why = flow->error;

    if (vf_failed(&why) && !flow->facts.status) {
        flow->error = (struct vmfrost_error){.code = VMFROST_OK};
        if (!vf_seems_stopped(flow) && !vf_failed(&flow->error))
            flow->error = why;
    }
    if (vf_failed(&flow->error))
        vf_absolve(flow);
    describe(flow);
    vf_end(flow, VF_OK);
}

enum status_step {
    S_END = VF_STEP_END,
    S_CONNECT,
    S_LOOK,
    S_DISKS,
    S_AGENT,
    S_DESCRIBE,
    S_COUNT,
};

static const struct vf_step status_steps[S_COUNT] = {
    [S_CONNECT] = {.name = "connect",
                   .title = "Connecting to QEMU",
                   .start = find_out,
                   .budget_ms = 10000,
                   .next = S_LOOK,
                   .otherwise = S_DESCRIBE},
    [S_LOOK] = {.name = "look",
                .title = "Looking at the VM",
                .start = vf_step_look,
                .budget_ms = 10000,
                .next = S_DISKS,
                .otherwise = S_DESCRIBE},
    [S_DISKS] = {.name = "disks",
                 .title = "Looking at the disks",
                 .start = note_disks,
                 .budget_ms = 10000,
                 .next = S_AGENT},
    [S_AGENT] = {.name = "agent",
                 .title = "Asking the guest agent",
                 .start = ask_agent,
                 .budget_ms = 2000,
                 .next = S_DESCRIBE,
                 .otherwise = S_DESCRIBE},
    [S_DESCRIBE] = {.name = "describe",
                    .title = "Writing it down",
                    .start = finish_status,
                    .budget_ms = 10000,
                    .next = S_END},
};

const struct vf_table vf_status_table = {
    .operation = "status",
    .steps = status_steps,
    .step_count = S_COUNT,
    .first = S_CONNECT,
};

/* Check: the beginning of a snapshot, and what can be known of the rest. */

/* What a snapshot would find is recovered before it begins, but for this. */
static void
check_agent(struct vf_flow *flow)
{
    if (!vf_history_holds(flow)) {
        vf_step_agent(flow);
        return;
    }
    vf_note(flow, VMFROST_FAILED, "the guest is frozen by hand");
    vf_advise(flow, "thaw it first: vmfrost thaw %s", flow->vm.name);
    flow->engine.conditions &= ~(unsigned)VF_IF_PREFER;
    vf_end(flow, VF_REFUSED);
}

static void
check_folders(struct vf_flow *flow)
{
    if (vf_failed(&flow->error)) /* only where a snapshot would go on in spite of it */
        vf_absolve(flow);
    const char *why = vf_unwritable(flow->vm.folder, true);
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!vf_vm_lock_is_sound(&flow->vm, &error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (why && access(flow->vm.folder, F_OK) == 0) {
        vf_note(flow, VMFROST_FAILED, "the state folder %s cannot be written to: %s",
                flow->vm.folder, why);
        vf_advise(flow, "a snapshot has to write its record there: put that right first");
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_end(flow, vf_state_has_room(flow) ? VF_OK : VF_REFUSED);
}

static void
finish_check(struct vf_flow *flow)
{
    if (!flow->facts.status)
        return;
    describe(flow);
    vf_json_add_bool(flow->document_json, "wouldSucceed", !vf_failed(&flow->error));
    if (flow->engine.conditions & VF_IF_AGENT)
        vf_freezing_json(flow, flow->document_json);
}

void
vf_check_prepare(struct vf_flow *flow)
{
    flow->document = finish_check;
    read_journal(flow);
}

enum check_step {
    C_END = VF_STEP_END,
    C_CONNECT,
    C_LOOK,
    C_PLAN,
    C_AGENT,
    C_MOUNTS,
    C_FOLDERS,
    C_COUNT,
};

static const struct vf_step check_steps[C_COUNT] = {
    [C_CONNECT] = {.name = "connect",
                   .title = "Connecting to QEMU",
                   .start = vf_step_reach,
                   .budget_ms = 10000,
                   .next = C_LOOK},
    [C_LOOK] = {.name = "look",
                .title = "Looking at the VM",
                .start = vf_step_look,
                .budget_ms = 10000,
                .next = C_PLAN},
    [C_PLAN] = {.name = "plan",
                .title = "Choosing disks",
                .start = vf_step_plan,
                .budget_ms = 10000,
                .next = C_AGENT},
    [C_AGENT] = {.name = "agent",
                 .title = "Asking the guest agent",
                 .start = check_agent,
                 .budget_ms = 5000,
                 .next = C_MOUNTS,
                 .otherwise = C_FOLDERS,
                 .otherwise_when = VF_IF_PREFER,
                 .when = VF_IF_ONLINE},
    [C_MOUNTS] = {.name = "mounts",
                  .title = "Choosing file systems",
                  .start = vf_step_mounts,
                  .budget_ms = 5000,
                  .next = C_FOLDERS,
                  .otherwise = C_FOLDERS,
                  .when = VF_IF_AGENT | VF_IF_MOUNTS},
    [C_FOLDERS] = {.name = "folders",
                   .title = "Looking at the folders",
                   .start = check_folders,
                   .budget_ms = 10000,
                   .next = C_END},
};

const struct vf_table vf_check_table = {
    .operation = "check",
    .steps = check_steps,
    .step_count = C_COUNT,
    .first = C_CONNECT,
};
