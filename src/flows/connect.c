/* SPDX-License-Identifier: MIT
 *
 * The step that connects to QEMU's monitor.
 */
#include <stdio.h>
#include <stdlib.h>

#include "flows/steps.h"
#include "util/json.h"
#include "util/mem.h"

/* The rest of an operation is about the QEMU that it began with: another process that answers on
 * the same socket by now knows nothing of our nodes, and their absence from its graph proves
 * nothing. */
static bool
is_same_qemu(struct vf_flow *flow, pid_t peer)
{
    struct vf_process now = vf_process_of(peer);

    if (!flow->qemu.pid || (now.pid == flow->qemu.pid && now.started == flow->qemu.started))
        return true;
    vf_qmp_close(flow->qmp);
    flow->engine.hopeless = true;
    vf_refuse(flow, VMFROST_UNREACHABLE,
              "QEMU was started again in the meantime (it was pid %d, and is %d)",
              (int)flow->qemu.pid, (int)peer);
    return false;
}

void
vf_note_version(struct vf_flow *flow, struct json_object *greeting)
{
    struct json_object *version = vf_json_object(vf_json_object(greeting, "version"), "qemu");
    int64_t major = 0, minor = 0, micro = 0;

    vf_json_int(version, "major", &major);
    vf_json_int(version, "minor", &minor);
    vf_json_int(version, "micro", &micro);
    free(flow->qemu_version);
    flow->qemu_version = vf_printf("%d.%d.%d", (int)major, (int)minor, (int)micro);
}

static bool
is_trusted(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vf_peer_is_trusted(flow, vf_qmp_fd(flow->qmp), flow->vm.qmp, &error))
        return true;
    vf_qmp_close(flow->qmp);
    vf_note_error(flow, &error);
    vf_end(flow, VF_REFUSED);
    return false;
}

static void
on_open(void *data, const struct vf_reply *reply)
{
    struct vf_flow *flow = data;

    if (reply->outcome != VF_OK) {
        if (flow->may_be_stopped && vf_go_offline(flow, reply->words))
            return;
        vf_note(flow, VMFROST_UNREACHABLE, "%s", reply->words);
        vf_end(flow, VF_UNKNOWN);
        return;
    }
    vf_note_version(flow, reply->value);
    if (!is_trusted(flow))
        return;
    if (!is_same_qemu(flow, vf_qmp_peer_pid(flow->qmp))) /* recovery knows one from the journal */
        return;
    flow->qemu = vf_process_of(vf_qmp_peer_pid(flow->qmp));
    flow->engine.conditions |= VF_IF_ONLINE;
    vf_end(flow, VF_OK);
}

static void
on_open_again(void *data, const struct vf_reply *reply)
{
    struct vf_flow *flow = data;

    if (vf_expect(flow, reply, "reconnecting to QEMU") && is_trusted(flow) &&
        is_same_qemu(flow, vf_qmp_peer_pid(flow->qmp)))
        flow->on_qemu(flow);
}

void
vf_with_qemu(struct vf_flow *flow, void (*fn)(struct vf_flow *flow))
{
    if (flow->qemu.pid && vf_process_gone(flow->qemu)) {
        flow->engine.hopeless = true;
        vf_refuse(flow, VMFROST_UNREACHABLE, "QEMU (pid %d) is gone", (int)flow->qemu.pid);
        return;
    }
    if (vf_qmp_ready(flow->qmp)) {
        fn(flow);
        return;
    }
    if (flow->engine.conditions & VF_IF_STOPPED) {
        flow->engine.hopeless = true;
        vf_refuse(flow, VMFROST_UNREACHABLE, "the connection to %s is lost", VF_DAEMON_NAME);
        return;
    }
    flow->on_qemu = fn;
    vf_qmp_close(flow->qmp);
    vf_qmp_open(flow->qmp, flow->vm.qmp, on_open_again, flow);
}

/* Closed or lost -> ready. Errors: UNREACHABLE, with the words of qmp.h. */
void
vf_step_connect(struct vf_flow *flow)
{
    if (vf_qmp_ready(flow->qmp)) {
        vf_end(flow, VF_OK);
        return;
    }
    flow->may_be_stopped = false;
    vf_qmp_close(flow->qmp);
    vf_qmp_open(flow->qmp, flow->vm.qmp, on_open, flow);
}

/* The same, or, if the VM is not running, a daemon that has QEMU's block layer: VF_IF_ONLINE or
 * VF_IF_STOPPED. */
void
vf_step_reach(struct vf_flow *flow)
{
    if (vf_qmp_ready(flow->qmp)) {
        vf_end(flow, VF_OK);
        return;
    }
    flow->may_be_stopped = true;
    vf_qmp_close(flow->qmp);
    vf_qmp_open(flow->qmp, flow->vm.qmp, on_open, flow);
}
