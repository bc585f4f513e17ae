/* SPDX-License-Identifier: MIT
 *
 * What somebody else has at the VM's disks, so that ours cannot be changed.
 *
 * A step of the way back is tried again for a while, because what QEMU refuses may be over soon: a
 * job of ours that is ending, an image that is being closed. What another one has put there stays
 * for as long as he likes. So whoever is refused looks once more: an overlay on ours, a job that is
 * not ours and not over, a VM that has moved, a name that leads to neither image ends the step for
 * good, and is what the user is told to see to.
 */
#include <stdlib.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/disk.h"
#include "vm/graph.h"

/* Both are owned by the flow from here on. */
static bool
stands(struct vf_flow *flow, char *obstacle, char *remedy)
{
    free(flow->obstacle);
    free(flow->remedy);
    vf_sanitize(obstacle);
    vf_sanitize(remedy);
    flow->obstacle = obstacle;
    flow->remedy = remedy;
    return true;
}

static bool
is_moved(struct vf_flow *flow, const struct vf_reply *status)
{
    struct vf_plan_input input = vf_plan_input_of(flow);
    struct vf_plan now = {.run_state = NULL};
    struct vmfrost_error error = {.code = VMFROST_OK};
    const char *state = vf_json_string(status->value, "status");
    VF_AUTO_FREE char *run_state = vf_strdup(state ? state : "");

    input.migrate = NULL; /* while it is only on its way, its disks are this QEMU's */
    now.run_state = run_state;
    if (vf_plan_check_state(&input, &now, &error))
        return false;
    return stands(flow, vf_strdup(error.text),
                  vf_strdup(vf_same(run_state, "postmigrate")
                                ? "end QEMU if the VM runs elsewhere now, else let it go on (cont)"
                                : "wait until that is over"));
}

/* A job's own filter is no overlay. */
static bool
is_filter(const struct vf_flow *flow, const char *node)
{
    const char *driver = vf_json_string(vf_node_about(flow, node), "drv");

    return vf_same(driver, "commit_top") || vf_same(driver, "mirror_top");
}

static bool
has_overlay(struct vf_flow *flow, const struct vf_cut *cut)
{
    const char *backing = vf_graph_child(flow->facts.graph, cut->overlay_node, "backing");
    const char *top = vf_same(backing, cut->node) ? cut->overlay_node : cut->node;
    const char *above = vf_graph_overlay(flow->facts.graph, top);
    const char *file = vf_node_file(flow, above);

    if (!above || is_filter(flow, above))
        return false;
    bool named = file && !vf_starts_with(file, "json:");

    return stands(flow,
                  vf_printf("disk %s: somebody else has put an overlay on it (node %s%s%s)",
                            cut->name, above, named ? ", " : "", named ? file : ""),
                  vf_printf("whoever made the overlay %s has to take it away", above));
}

static bool
is_ours(const struct vf_flow *flow, const char *job)
{
    VF_AUTO_FREE char *prefix = vf_printf("vf%.8s-", flow->id);
    VF_AUTO_FREE char *merge_prefix = vf_printf(VF_JOB_OURS "%.8s-", flow->id);

    return vf_starts_with(job, prefix) || vf_starts_with(job, merge_prefix);
}

static bool
has_job(struct vf_flow *flow, const struct vf_cut *cut)
{
    for (size_t i = 0; i < vf_json_length(flow->facts.block_jobs); i++) {
        struct json_object *job = vf_json_at(flow->facts.block_jobs, i);
        const char *id = vf_json_string(job, "device"), *type = vf_json_string(job, "type");
        const char *status = vf_json_string(job, "status");

        if (!id || is_ours(flow, id) || vf_same(status, "aborting") ||
            (vf_job_state_bit(status) & (VF_JOB_CONCLUDED | VF_JOB_GONE)) ||
            !vf_graph_job_is_above(flow->facts.graph, id, cut->node))
            continue;
        return stands(flow,
                      vf_printf("disk %s: somebody else's job \"%s\" works on it (%s, %s)",
                                cut->name, id, type ? type : "of no type",
                                status ? status : "in no state"),
                      vf_printf("wait for the end of the job \"%s\", or cancel it", id));
    }
    return false;
}

static bool
has_lost_name(struct vf_flow *flow, const struct vf_cut *cut)
{
    if (cut->naming == VF_NAMING_NEW_FILE || !cut->base.number)
        return false;
    struct vf_inode now = vf_inode_of(cut->names.top);

    if (vf_inode_equal(now, cut->base) || vf_inode_equal(now, cut->overlay))
        return false;
    return stands(flow,
                  vf_printf("disk %s: %s does not lead to its image any more", cut->name,
                            cut->names.top),
                  vf_printf("find out who has changed %s, and put it right (see `vmfrost status "
                            "%s`)",
                            cut->names.top, flow->vm.name));
}

static bool
has_obstacle(struct vf_flow *flow, bool looked)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (!cut->elsewhere && ((looked && (has_overlay(flow, cut) || has_job(flow, cut))) ||
                                has_lost_name(flow, cut)))
            return true;
    }
    return false;
}

static void
end(struct vf_flow *flow, bool hopeless)
{
    if (hopeless) {
        vf_note(flow, VMFROST_FAILED, "%s", flow->obstacle);
        vf_advise(flow, "%s, then run `vmfrost recover %s`", flow->remedy, flow->vm.name);
        flow->engine.hopeless = true;
    }
    vf_end(flow, VF_REFUSED);
}

static void
on_status(struct vf_flow *flow, const struct vf_reply *reply)
{
    end(flow, (reply->outcome == VF_OK && is_moved(flow, reply)) || has_obstacle(flow, true));
}

static void
on_looked(struct vf_flow *flow)
{
    vf_ask(flow, "query-status", NULL, on_status);
}

bool
vf_is_moved(struct vf_flow *flow, const struct vf_reply *status)
{
    if (!is_moved(flow, status))
        return false;
    end(flow, true);
    return true;
}

bool
vf_is_obstructed(struct vf_flow *flow, const struct vf_cut *cut)
{
    if (!has_overlay(flow, cut) && !has_job(flow, cut))
        return false;
    end(flow, true);
    return true;
}

void
vf_end_refused(struct vf_flow *flow)
{
    if (vf_qmp_ready(flow->qmp) && !(flow->engine.conditions & VF_IF_STOPPED))
        vf_look_again(flow, on_looked);
    else
        end(flow, has_obstacle(flow, false));
}
