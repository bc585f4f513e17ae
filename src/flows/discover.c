/* SPDX-License-Identifier: MIT
 *
 * The QEMU processes of this host, and whether an agent's port is open in them.
 *
 * Each one's monitor is asked in turn, on a short leash: one that is busy or hangs is shown without
 * that answer.
 */
#include <string.h>

#include "flows/steps.h"
#include "flows/tables.h"
#include "util/json.h"
#include "util/mem.h"

enum step {
    END = VF_STEP_END,
    FIND,
    ASK,
    STEP_COUNT,
};

static struct json_object *
machines(const struct vf_flow *flow)
{
    return vf_json_array(flow->document_json, "machines");
}

static void
find(struct vf_flow *flow)
{
    flow->document_json = vf_json_new_object();
    vf_json_add(flow->document_json, "machines", vf_process_find_qemus());
    flow->at_part = 0;
    vf_end(flow, VF_OK);
}

static void
next(struct vf_flow *flow)
{
    vf_qmp_close(flow->qmp);
    flow->at_part++;
    vf_end(flow, flow->at_part < vf_json_length(machines(flow)) ? VF_REFUSED : VF_OK);
}

static void
on_chardevs(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct json_object *machine = vf_json_at(machines(flow), flow->at_part);
    struct json_object *sockets = vf_json_array(machine, "agent");

    for (size_t i = 0;
         reply->outcome == VF_OK && json_object_is_type(reply->value, json_type_array) &&
         i < vf_json_length(reply->value);
         i++) {
        struct json_object *device = vf_json_at(reply->value, i);
        const char *filename = vf_json_string(device, "filename");

        for (size_t k = 0; filename && k < vf_json_length(sockets); k++) {
            const char *path = vf_json_text(vf_json_at(sockets, k));
            const char *name = path ? strrchr(path, '/') : NULL;

            /* QEMU shows the name as it was given: its last part is what both have. */
            if (name && strstr(filename, name + 1))
                vf_json_add_bool(machine, "agentConnected",
                                 vf_json_bool(device, "frontend-open", false));
        }
    }
    next(flow);
}

static void
on_open(void *data, const struct vf_reply *reply)
{
    struct vf_flow *flow = data;

    if (reply->outcome == VF_OK)
        vf_ask(flow, "query-chardev", NULL, on_chardevs);
    else
        next(flow);
}

/* One machine an attempt. */
static void
ask(struct vf_flow *flow)
{
    struct json_object *machine = vf_json_at(machines(flow), flow->at_part);
    const char *path = vf_json_text(vf_json_at(vf_json_array(machine, "qmp"), 0));
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_vm vm = {0};

    if (!machine) {
        vf_end(flow, VF_OK);
        return;
    }
    if (path && vf_store_find(flow->store, path, &vm, &ignored) && vm.in_inventory)
        vf_json_add_string(machine, "vm", vm.name);
    vf_vm_release(&vm);
    if (path)
        vf_qmp_open(flow->qmp, path, on_open, flow);
    else
        next(flow);
}

static const struct vf_step steps[STEP_COUNT] = {
    [FIND] = {.name = "find",
              .title = "Looking for QEMU processes",
              .start = find,
              .budget_ms = 10000,
              .next = ASK},
    [ASK] = {.name = "ask",
             .title = "Asking their monitors",
             .start = ask,
             .budget_ms = 10000,
             .patience_ms = 10 * 60 * 1000,
             .next = END},
};

const struct vf_table vf_discover_table = {
    .operation = "discover",
    .steps = steps,
    .step_count = STEP_COUNT,
    .first = FIND,
};
