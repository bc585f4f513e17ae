/* SPDX-License-Identifier: MIT
 *
 * Disks that come and go while a snapshot is taken.
 *
 * A node of the launcher's own (-blockdev) stays when its device is unplugged, and can be cut as
 * well as ever: only the device tells. Before the cut an unplugged disk is a refusal. After it, the
 * disk's sealed image is what it should be, and the rest of its checks has nothing to look at.
 */
#include <string.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/disk.h"
#include "vm/graph.h"

static const struct vf_disk *
disk_of(const struct vf_flow *flow, const struct vf_cut *cut)
{
    for (size_t i = 0; i < flow->plan.count; i++)
        if (vf_same(flow->plan.disks[i].name, cut->name))
            return &flow->plan.disks[i];
    return NULL;
}

void
vf_plug_deleted(struct vf_flow *flow, const char *path)
{
    VF_AUTO_FREE char *deleted = vf_disk_device_path(path);

    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_disk *disk = disk_of(flow, &flow->cuts[i]);
        VF_AUTO_FREE char *device = disk ? vf_disk_device_path(disk->qdev) : NULL;

        if (vf_same(device, deleted))
            flow->cuts[i].absent = true;
    }
}

static bool
was_unplugged(struct vf_flow *flow, const struct vf_cut *cut)
{
    if (!cut->absent && vf_graph_in_use(flow->facts.graph, cut->filter ? cut->filter : cut->node)) {
        vf_note(flow, VMFROST_FAILED,
                "disk %s: somebody else has put an overlay or a job on it since the disks were "
                "chosen",
                cut->name);
        vf_advise(flow, "try again when nobody else works on the VM's disks");
        return false;
    }
    vf_note(flow, VMFROST_FAILED, "disk %s was unplugged since the disks were chosen", cut->name);
    vf_advise(flow, "try again: the snapshot will be of the disks that are there");
    return false;
}

bool
vf_plug_unchanged(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (flow->cuts[i].absent)
            return was_unplugged(flow, &flow->cuts[i]);
    return true;
}

/* A device has the disk's root in it. */
static bool
is_attached(const struct vf_flow *flow, const struct vf_cut *cut)
{
    const char *root = cut->filter ? cut->filter : cut->node;

    for (size_t i = 0; i < vf_json_length(flow->facts.block); i++) {
        struct json_object *block = vf_json_at(flow->facts.block, i);
        const char *its_root = vf_json_string(vf_json_object(block, "inserted"), "node-name");

        if (vf_json_string(block, "qdev") && vf_same(its_root, root))
            return true;
    }
    return false;
}

static const struct vf_cut *
first_detached(const struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!is_attached(flow, &flow->cuts[i]))
            return &flow->cuts[i];
    return NULL;
}

static void
go_on_attached(struct vf_flow *flow)
{
    const struct vf_cut *cut = first_detached(flow);

    if (!cut || was_unplugged(flow, cut))
        flow->on_attached_disks(flow);
    else
        vf_end(flow, VF_REFUSED);
}

/* Only the whole graph tells what became of a disk that has left its device. */
static void
on_devices(struct vf_flow *flow)
{
    if (first_detached(flow))
        vf_look_again(flow, go_on_attached);
    else
        flow->on_attached_disks(flow);
}

void
vf_plug_look(struct vf_flow *flow, void (*fn)(struct vf_flow *flow))
{
    flow->on_attached_disks = fn;
    if (flow->engine.conditions & VF_IF_STOPPED)
        vf_look_again(flow, go_on_attached);
    else
        vf_look_at_devices(flow, on_devices);
}

static bool
was_known(const struct vf_flow *flow, const char *qdev, const char *device)
{
    for (size_t i = 0; i < flow->plan.count; i++) {
        const struct vf_disk *known = &flow->plan.disks[i];

        if (qdev ? vf_same(known->qdev, qdev) : vf_same(known->device, device))
            return true;
    }
    return false;
}

/* A plan is a lot of work, and mostly nothing has come. */
static bool
all_were_known(const struct vf_flow *flow)
{
    for (size_t i = 0; i < vf_json_length(flow->facts.block); i++) {
        struct json_object *block = vf_json_at(flow->facts.block, i);

        if (!was_known(flow, vf_json_string(block, "qdev"), vf_json_string(block, "device")))
            return false;
    }
    return true;
}

void
vf_plug_compare(struct vf_flow *flow)
{
    struct vf_plan_input input = vf_plan_input_of(flow);
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_plan now;

    for (size_t i = 0; i < flow->cut_count; i++)
        if (flow->cuts[i].absent)
            vf_warn(flow, "disk %s was unplugged when it had just been cut: its image is whole",
                    flow->cuts[i].name);
    if (all_were_known(flow))
        return;
    vf_plan_make(&input, &now, &ignored);
    for (size_t i = 0; i < now.count; i++)
        if (now.disks[i].reason == VF_INCLUDED &&
            !was_known(flow, now.disks[i].qdev, now.disks[i].device))
            vf_warn(flow, "disk %s was plugged in while the snapshot was taken, and is not in it",
                    now.disks[i].name);
    vf_plan_release(&now);
}
