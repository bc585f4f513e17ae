/* SPDX-License-Identifier: MIT
 *
 * Turning a running VM to other disks, all or none: the online part of a restore.
 *
 * The VM is stopped. For each disk a mirror job that copies nothing (sync=none) leads from what the
 * disk runs on to the new overlay; since nothing is written, it is ready at once. Up to "pending"
 * it can be cancelled without a trace; when it is finalized, QEMU puts the overlay below the
 * device. Then the guest, which knows the disks as they were, is reset, and only when QEMU has told
 * that it is, the VM goes on.
 *
 * Whether a job is made, completed, finalized or dismissed next is read from QEMU's list of jobs
 * and from its graph, each time anew: so an attempt that was lost in the middle, or that of a
 * process that died, is simply gone on with. A QEMU that has ended needs none of this: the names
 * decide what it starts from next time.
 */
#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/graph.h"

static bool
is_online(const struct vf_flow *flow)
{
    return flow->engine.conditions & VF_IF_ONLINE;
}

/* There is no QEMU that could be turned, stopped or reset, or no more. */
static bool
has_ended(struct vf_flow *flow)
{
    if (is_online(flow) && !vf_process_gone(flow->qemu))
        return false;
    if (is_online(flow) && flow->restore.turned)
        vf_warn(flow, "QEMU has ended meanwhile: when it is started again, it begins with the "
                      "restored disks");
    flow->engine.conditions &= ~(unsigned)VF_IF_ONLINE;
    flow->stopped = false;
    return true;
}

/* The guard, and a last look at what was opened. */

struct json_object *
vf_nodes_below(const struct vf_flow *flow)
{
    struct json_object *names = vf_json_new_array();
    struct json_object *graph = flow->facts.graph;

    for (size_t i = 0; i < flow->cut_count; i++) {
        const char *node = flow->cuts[i].node;
        size_t left = vf_json_length(flow->facts.nodes); /* no honest chain is longer */

        for (; node && left > 0; node = vf_graph_child(graph, node, "backing"))
            for (const char *part = node; part && left > 0; left--) {
                vf_json_append(names, vf_json_new_string(part));
                part = vf_graph_child(graph, part, "file");
            }
    }
    return names;
}

/* All that a recovery has to know of the moments that follow is on disk before them. */
static void
journal_halt(struct vf_flow *flow)
{
    struct json_object *more = vf_json_new_object();

    vf_json_add_int(more, "guard", flow->guard.pid);
    vf_json_add_int(more, "guardStarted", (int64_t)flow->guard.started);
    vf_json_add_bool(more, "online", is_online(flow));
    vf_json_add_bool(more, "running", flow->restore.running);
    vf_json_add(more, "nodes", json_object_get(flow->restore.old_nodes));
    vf_end(flow, vf_journal_state(flow, "halting", more) ? VF_OK : VF_REFUSED);
}

static void
on_run_state(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "query-status"))
        return;
    flow->restore.running = vf_json_bool(reply->value, "running", false);
    journal_halt(flow);
}

static bool
is_opened(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct vf_opened opened;

    if (!vf_graph_child(flow->facts.graph, cut->overlay_node, "backing"))
        return vf_note(flow, VMFROST_FAILED, "disk %s: QEMU has opened %s without %s", cut->name,
                       cut->names.overlay, cut->below);
    if (cut->below_inode.number && (!vf_process_opened(flow->qemu.pid, cut->below_inode, &opened) ||
                                    (!opened.read_only && !opened.read_write)))
        return vf_note(flow, VMFROST_FAILED,
                       "disk %s: QEMU has opened something else than %s below its new overlay",
                       cut->name, cut->below);
    return true;
}

static void
on_looked_at_opened(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!is_opened(flow, &flow->cuts[i])) {
            vf_end(flow, VF_REFUSED);
            return;
        }
    vf_ask(flow, "query-status", NULL, on_run_state);
}

/* Forks the guard, which turns all names if we die while some are turned. */
void
vf_step_restore_guard(struct vf_flow *flow)
{
    if (!vf_guard_fork(flow, -1, &flow->error))
        vf_end(flow, VF_REFUSED);
    else if (is_online(flow))
        vf_look_at_graph(flow, on_looked_at_opened);
    else
        journal_halt(flow);
}

/* Stopping. */

static void
on_halted(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "stop"))
        return;
    flow->evidence.cut = vf_now_us();
    vf_end(flow, VF_OK);
}

/* Owes VF_OWE_HALT. */
void
vf_step_halt(struct vf_flow *flow)
{
    flow->stopped = flow->restore.running;
    if (flow->stopped)
        vf_ask(flow, "stop", NULL, on_halted);
    else
        vf_end(flow, VF_OK);
}

/* The jobs. */

static char *
job_prefix(const struct vf_flow *flow)
{
    return vf_printf("vfr%.8s-", flow->id);
}

static char *
job_id(const struct vf_flow *flow, size_t index)
{
    return vf_printf("vfr%.8s-%zu", flow->id, index);
}

static void
take_jobs(struct vf_flow *flow, struct json_object *list)
{
    json_object_put(flow->restore.jobs);
    flow->restore.jobs = json_object_is_type(list, json_type_array) ? json_object_get(list) : NULL;
}

static struct json_object *
find_job(const struct vf_flow *flow, size_t index)
{
    VF_AUTO_FREE char *id = job_id(flow, index);

    for (size_t i = 0; i < vf_json_length(flow->restore.jobs); i++) {
        const char *its = vf_json_string(vf_json_at(flow->restore.jobs, i), "id");

        if (its && strcmp(its, id) == 0)
            return vf_json_at(flow->restore.jobs, i);
    }
    return NULL;
}

/* The device's I/O goes to this node, at once or through its filters. */
static bool
runs_on(const struct vf_flow *flow, const struct vf_cut *cut, const char *node)
{
    struct json_object *graph = flow->facts.graph;
    size_t left = vf_json_length(flow->facts.nodes);

    if (!cut->filter)
        return vf_graph_has_device(graph, node);
    for (const char *at = cut->filter; at && left > 0;
         at = vf_graph_child(graph, at, "file"), left--)
        if (strcmp(at, node) == 0)
            return true;
    return false;
}

bool
vf_restore_runs_on(const struct vf_flow *flow, const struct vf_cut *cut)
{
    return runs_on(flow, cut, cut->overlay_node);
}

enum need {
    NEED_NOTHING, /* it is where it should be */
    NEED_WAIT,
    NEED_NODE,
    NEED_JOB,
    NEED_COMPLETION,
    NEED_END,
    NEED_DISMISSAL,
    NEED_CANCELLATION,
};

static enum need
need_of_job(struct vf_flow *flow, const struct vf_cut *cut, struct json_object *job)
{
    const char *error = vf_json_string(job, "error");

    switch (vf_job_state_bit(vf_json_string(job, "status"))) {
    case VF_JOB_READY:
        return NEED_COMPLETION;
    case VF_JOB_PENDING:
        return flow->restore.finishing ? NEED_END : NEED_NOTHING;
    case VF_JOB_CONCLUDED:
        if (error) {
            vf_note(flow, VMFROST_FAILED, "disk %s: QEMU cannot change it: %s", cut->name, error);
            flow->restore.failed = true;
        }
        return NEED_DISMISSAL;
    default: /* on its way, or on its way out */
        return NEED_WAIT;
    }
}

static enum need
need_of(struct vf_flow *flow, size_t index)
{
    const struct vf_cut *cut = &flow->cuts[index];
    struct json_object *job = find_job(flow, index);

    if (job)
        return need_of_job(flow, cut, job);
    if (vf_restore_runs_on(flow, cut))
        return NEED_NOTHING;
    return vf_graph_has(flow->facts.graph, cut->overlay_node) ? NEED_JOB : NEED_NODE;
}

static struct json_object *
mirror_options(const struct vf_flow *flow, size_t index)
{
    const struct vf_cut *cut = &flow->cuts[index];
    VF_AUTO_FREE char *id = job_id(flow, index);
    struct json_object *options =
        vf_json_strings("job-id", id, "device", cut->filter ? cut->filter : cut->node, "target",
                        cut->overlay_node, "sync", "none", "replaces",
                        cut->filter ? cut->node : NULL, NULL);

    vf_json_add_bool(options, "auto-finalize", false);
    vf_json_add_bool(options, "auto-dismiss", false);
    return options;
}

/* False if nothing was sent. What was asked for and confirmed is not asked for again: a job on an
 * iothread may take a moment until it shows. */
static bool
serve(struct vf_flow *flow, size_t index, enum need need)
{
    VF_AUTO_FREE char *id = job_id(flow, index);
    const char *disk = flow->cuts[index].name;

    if (need == NEED_NOTHING || need == NEED_WAIT || flow->restore.served[index] == need)
        return false;
    flow->restore.served[index] = (unsigned char)need;
    switch (need) {
    case NEED_NOTHING:
    case NEED_WAIT:
        break;
    case NEED_NODE:
        flow->restore.looked = false;
        vf_batch_ask(flow, disk, "blockdev-add", vf_overlay_options(flow, &flow->cuts[index]));
        break;
    case NEED_JOB:
        vf_batch_ask(flow, disk, "blockdev-mirror", mirror_options(flow, index));
        break;
    case NEED_COMPLETION:
        vf_batch_ask(flow, disk, "job-complete", vf_json_strings("id", id, NULL));
        break;
    case NEED_END:
        vf_batch_ask(flow, disk, "job-finalize", vf_json_strings("id", id, NULL));
        break;
    case NEED_DISMISSAL:
        /* If it was finalized, the graph will show it. */
        flow->restore.looked = false;
        vf_batch_ask(flow, disk, "job-dismiss", vf_json_strings("id", id, NULL));
        break;
    case NEED_CANCELLATION:
        vf_batch_ask(flow, disk, "job-cancel", vf_json_strings("id", id, NULL));
        break;
    }
    return true;
}

/* At the beginning of a step, or of an attempt at one. */
static void
begin(struct vf_flow *flow, bool finishing, bool looked)
{
    free(flow->restore.served);
    flow->restore.served = vf_alloc(flow->cut_count + 1);
    flow->restore.finishing = finishing;
    flow->restore.looked = looked;
    flow->restore.failed = false;
}

static void go_round(struct vf_flow *flow);
static void verify(struct vf_flow *flow);

static void
on_news(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (vf_expect(flow, reply, "waiting for the disks to be changed"))
        go_round(flow);
}

static void
on_served(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "disk %s: cannot change it", flow->batch.failed))
        return;
    if (flow->restore.failed)
        vf_end(flow, VF_REFUSED);
    else
        go_round(flow);
}

static void
act(struct vf_flow *flow)
{
    bool waits = false, serves = false;

    for (size_t i = 0; i < flow->cut_count; i++) {
        enum need need = need_of(flow, i);

        serves |= serve(flow, i, need);
        waits |= need != NEED_NOTHING;
    }
    if (serves) {
        vf_batch_end(flow, on_served);
    } else if (waits) {
        vf_jobs_await(flow, on_news);
    } else if (flow->restore.finishing) {
        verify(flow);
    } else {
        vf_test_point(flow, "mirror.ready");
        vf_end(flow, VF_OK);
    }
}

static void
on_jobs(struct vf_flow *flow, const struct vf_reply *reply)
{
    bool all = true;

    if (!vf_expect(flow, reply, "query-jobs"))
        return;
    take_jobs(flow, reply->value);
    for (size_t i = 0; i < flow->cut_count; i++)
        all = all && find_job(flow, i);
    if (all || flow->restore.looked) {
        act(flow);
        return;
    }
    flow->restore.looked = true;
    vf_look_at_graph(flow, act);
}

static void
go_round(struct vf_flow *flow)
{
    VF_AUTO_FREE char *prefix = job_prefix(flow);

    vf_jobs_ask(flow, prefix, on_jobs);
}

/* Owes VF_OWE_MIRROR. What the graph is, the step before has asked. */
void
vf_step_mirror(struct vf_flow *flow)
{
    begin(flow, false, true);
    vf_with_qemu(flow, go_round);
}

/* Each disk runs on its overlay, that on the snapshot's image, and nothing on what it ran on. */
static bool
is_right(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct vf_opened overlay;

    if (!vf_restore_runs_on(flow, cut))
        return vf_note(flow, VMFROST_FAILED, "disk %s: the VM does not run on %s", cut->name,
                       cut->names.overlay);
    if (!is_opened(flow, cut))
        return false;
    if (!vf_process_opened(flow->qemu.pid, cut->overlay, &overlay))
        return vf_note(flow, VMFROST_FAILED, "disk %s: cannot see what QEMU (pid %d) has open",
                       cut->name, (int)flow->qemu.pid);
    if (!overlay.read_write)
        return vf_note(flow, VMFROST_FAILED, "disk %s: QEMU has not opened %s for writing",
                       cut->name, cut->names.overlay);
    /* Descriptors and locks do not tell: a node that QEMU was told to open stays open for writing
     * until it is told to close it, but nobody is there to write through it. */
    if (vf_graph_in_use(flow->facts.graph, cut->node))
        return vf_note(flow, VMFROST_FAILED, "disk %s: something in QEMU still uses %s", cut->name,
                       cut->node);
    return true;
}

static void
on_looked_at_end(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!is_right(flow, &flow->cuts[i])) {
            vf_end(flow, VF_REFUSED);
            return;
        }
    vf_test_point(flow, "pivot.done");
    vf_end(flow, VF_OK);
}

static void
verify(struct vf_flow *flow)
{
    if (flow->restore.looked)
        on_looked_at_end(flow);
    else
        vf_look_at_graph(flow, on_looked_at_end);
}

/* Whatever is done of it already. Pays VF_OWE_TURN and VF_OWE_MIRROR. */
void
vf_step_pivot(struct vf_flow *flow)
{
    if (!vf_restore_turn(flow)) { /* nothing to do, but after a crash or a failure */
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (flow->engine.conditions & VF_IF_STOPPED) {
        /* It holds the images' locks until their names are turned. Closing them may write to them,
         * so that it ends before anybody looks. */
        vf_qmp_close(flow->qmp);
        vf_daemon_stop(&flow->daemon);
    }
    if (has_ended(flow)) {
        vf_end(flow, VF_OK);
        return;
    }
    begin(flow, true, false);
    vf_with_qemu(flow, go_round);
}

/* The way back. */

static void cancel_next(struct vf_flow *flow);

static void
on_cancelled(struct vf_flow *flow, const struct vf_reply *reply)
{
    /* Refused: it has gone on by itself meanwhile. The next attempt sees where to. */
    if (vf_expect(flow, reply, "disk %s: undoing what was begun", flow->batch.failed))
        cancel_next(flow);
}

static void
on_cancel_news(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (vf_expect(flow, reply, "waiting for the end of what was begun"))
        cancel_next(flow);
}

static void
on_jobs_to_cancel(struct vf_flow *flow, const struct vf_reply *reply)
{
    bool waits = false, serves = false;

    if (!vf_expect(flow, reply, "query-jobs"))
        return;
    take_jobs(flow, reply->value);
    for (size_t i = 0; i < flow->cut_count; i++) {
        struct json_object *job = find_job(flow, i);
        bool over = vf_job_state_bit(vf_json_string(job, "status")) == VF_JOB_CONCLUDED;

        if (!job)
            continue;
        waits = true;
        serves |= serve(flow, i, over ? NEED_DISMISSAL : NEED_CANCELLATION);
    }
    if (serves)
        vf_batch_end(flow, on_cancelled);
    else if (waits)
        vf_jobs_await(flow, on_cancel_news);
    else
        vf_end(flow, VF_OK);
}

static void
cancel_next(struct vf_flow *flow)
{
    VF_AUTO_FREE char *prefix = job_prefix(flow);

    vf_jobs_ask(flow, prefix, on_jobs_to_cancel);
}

/* The disks stay what they are. Pays VF_OWE_MIRROR. */
void
vf_step_undo_mirror(struct vf_flow *flow)
{
    if (has_ended(flow)) {
        vf_end(flow, VF_OK);
        return;
    }
    begin(flow, false, false);
    vf_with_qemu(flow, cancel_next);
}

/* The guest begins anew. */

static void
end_reset(struct vf_flow *flow)
{
    if (flow->restore.asked && flow->restore.came)
        vf_end(flow, VF_OK);
}

static void
on_reset_event(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "waiting for the reset"))
        return;
    flow->restore.came = true;
    end_reset(flow);
}

static void
on_reset_asked(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "system_reset"))
        return;
    flow->restore.asked = true;
    end_reset(flow);
}

static void
reset(struct vf_flow *flow)
{
    flow->restore.asked = flow->restore.came = false;
    vf_await_event(flow, "RESET", on_reset_event);
    vf_ask(flow, "system_reset", NULL, on_reset_asked);
}

/* Until QEMU tells that it is done: what comes right behind the command would let the guest that
 * knows the other disks run for a moment. Pays VF_OWE_RESET. */
void
vf_step_reset(struct vf_flow *flow)
{
    if (flow->restore.anew || has_ended(flow))
        vf_end(flow, VF_OK);
    else
        vf_with_qemu(flow, reset);
}

static void
on_gone_on(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "letting the VM go on (cont)"))
        return;
    flow->stopped = false;
    vf_end(flow, VF_OK);
}

static void
go_on(struct vf_flow *flow)
{
    vf_ask(flow, "cont", NULL, on_gone_on);
}

/* Only a VM that we have stopped. Pays VF_OWE_HALT. */
void
vf_step_go_on(struct vf_flow *flow)
{
    if (!flow->stopped || has_ended(flow))
        vf_end(flow, VF_OK);
    else
        vf_with_qemu(flow, go_on);
}

/* What the launcher has made by itself (-blockdev) does not go with the disk that used it. */

static void look_and_drop(struct vf_flow *flow);

static void
on_dropped(struct vf_flow *flow, const struct vf_reply *reply)
{
    /* Refused: QEMU's own, or somebody uses it. */
    if (reply->outcome != VF_UNKNOWN) {
        vf_end(flow, VF_OK);
    } else if (!flow->restore.drops_again) {
        flow->restore.drops_again = true;
        vf_with_qemu(flow, look_and_drop);
    } else {
        vf_expect(flow, reply, "blockdev-del");
    }
}

static void
drop(struct vf_flow *flow)
{
    for (size_t i = 0; i < vf_json_length(flow->restore.old_nodes); i++) {
        const char *node = vf_json_text(vf_json_at(flow->restore.old_nodes, i));

        if (node && vf_graph_has(flow->facts.graph, node))
            vf_batch_ask(flow, node, "blockdev-del", vf_json_strings("node-name", node, NULL));
    }
    vf_batch_end(flow, on_dropped);
}

static void
look_and_drop(struct vf_flow *flow)
{
    vf_look_again(flow, drop);
}

/* Each of them would keep its image open. A failure is none of the restore's. */
void
vf_step_drop_old_nodes(struct vf_flow *flow)
{
    if (has_ended(flow))
        vf_end(flow, VF_OK);
    else
        vf_with_qemu(flow, drop);
}
