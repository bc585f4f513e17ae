/* SPDX-License-Identifier: MIT
 *
 * Images that the running QEMU has not in any of its disks' chains: those of another branch, or of
 * a disk that is not plugged in. They are worked on by a storage daemon beside QEMU. Both may have
 * one image open, as long as nobody writes to it: their locks see to that.
 *
 * While the side is taken, flow->qmp and flow->qemu are the daemon's, so that every step function
 * works as ever; the others wait in flow->side.
 */
#include <string.h>

#include "flows/graft.h"
#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

static void
change_sides(struct vf_flow *flow)
{
    struct vf_qmp *qmp = flow->qmp;
    struct vf_process qemu = flow->qemu;

    flow->qmp = flow->side.qmp;
    flow->qemu = flow->side.qemu;
    flow->side.qmp = qmp;
    flow->side.qemu = qemu;
    flow->side.taken = !flow->side.taken;
}

static void
on_opened(struct vf_flow *flow, const struct vf_reply *reply)
{
    const struct vf_graft *graft = flow->side.graft;

    if (vf_expect(flow, reply, "disk %s: cannot open %s", flow->cuts[graft->cut].name,
                  graft->upper))
        flow->side.fn(flow);
}

static void
open_image(struct vf_flow *flow)
{
    const struct vf_graft *graft = flow->side.graft;

    if (vf_can_be_opened(flow, flow->cuts[graft->cut].name, graft->upper, "qcow2"))
        vf_ask(flow, "blockdev-add", vf_image_options(graft->upper, "qcow2", VF_SIDE_NODE),
               on_opened);
    else
        vf_end(flow, VF_REFUSED);
}

static void
on_attached(struct vf_flow *flow, const struct vf_reply *reply)
{
    (void)reply;
    open_image(flow);
}

void
vf_side_open(struct vf_flow *flow, const struct vf_graft *graft, void (*fn)(struct vf_flow *flow))
{
    flow->side.graft = graft;
    flow->side.fn = fn;
    if (flow->side.taken || (flow->engine.conditions & VF_IF_STOPPED)) {
        open_image(flow);
        return;
    }
    if (!vf_daemon_launch(flow, &flow->side.daemon))
        return;
    change_sides(flow);
    if (!flow->qmp)
        flow->qmp = vf_flow_qmp(flow);
    vf_daemon_attach(flow, &flow->side.daemon, on_attached);
}

static void
on_closed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "closing an image"))
        return;
    vf_side_leave(flow);
    flow->side.fn(flow);
}

void
vf_side_close(struct vf_flow *flow, void (*fn)(struct vf_flow *flow))
{
    flow->side.fn = fn;
    vf_ask(flow, "blockdev-del", vf_json_strings("node-name", VF_SIDE_NODE, NULL), on_closed);
}

void
vf_side_leave(struct vf_flow *flow)
{
    if (!flow->side.taken)
        return;
    vf_qmp_close(flow->qmp);
    change_sides(flow);
    vf_daemon_stop(&flow->side.daemon);
}
