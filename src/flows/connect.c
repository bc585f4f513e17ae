/* SPDX-License-Identifier: MIT
 *
 * The step that connects to QEMU's monitor.
 */
#include <stdio.h>
#include <stdlib.h>

#include "flows/steps.h"
#include "util/json.h"
#include "util/mem.h"

static void
on_open(void *data, const struct vf_reply *reply)
{
    struct vf_flow *flow = data;

    if (reply->outcome != VF_OK) {
        vf_note(flow, VMFROST_UNREACHABLE, "%s", reply->words);
        vf_end(flow, VF_UNKNOWN);
        return;
    }
    struct json_object *version =
        vf_json_object(vf_json_object(reply->value, "version"), "qemu");
    int64_t major = 0, minor = 0, micro = 0;

    vf_json_int(version, "major", &major);
    vf_json_int(version, "minor", &minor);
    vf_json_int(version, "micro", &micro);
    free(flow->qemu_version);
    flow->qemu_version = vf_printf("%d.%d.%d", (int)major, (int)minor, (int)micro);
    flow->qemu = vf_process_of(vf_qmp_peer_pid(flow->qmp));
    vf_end(flow, VF_OK);
}

/* Closed or lost -> ready. Errors: UNREACHABLE, with the words of qmp.h. */
void
vf_step_connect(struct vf_flow *flow)
{
    if (vf_qmp_ready(flow->qmp)) {
        vf_end(flow, VF_OK);
        return;
    }
    vf_qmp_close(flow->qmp);
    vf_qmp_open(flow->qmp, flow->vm.qmp, on_open, flow);
}
