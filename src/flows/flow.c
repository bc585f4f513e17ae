/* SPDX-License-Identifier: MIT
 *
 * The life of an operation: how it begins, waits, and ends. What it does is elsewhere; what it asks
 * and tells is in ask.c and tell.c.
 */
#include "flows/flow.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "flows/graft.h"
#include "flows/group.h"
#include "flows/steps.h"
#include "flows/using.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

/* Time. */

int64_t
vf_now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

void
vf_flow_time(const struct vf_flow *flow, int64_t stamp_us, char out[32])
{
    int64_t wall_us = stamp_us + flow->wall_offset_us;
    time_t seconds = (time_t)(wall_us / 1000000);
    struct tm parts;
    char date[24];

    gmtime_r(&seconds, &parts);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(out, 32, "%s.%06uZ", date, (unsigned)(wall_us % 1000000) % 1000000);
}

static int64_t
wall_offset_us(void)
{
    struct timespec wall;

    clock_gettime(CLOCK_REALTIME, &wall);
    return (int64_t)wall.tv_sec * 1000000 + wall.tv_nsec / 1000 - vf_now_us();
}

#ifndef VMFROST_SMALL
/* "kill:NAME", of this length. */
static bool
is_point(const char *wanted, size_t length, const char *name)
{
    return length == strlen(name) + 5 && strncmp(wanted + 5, name, length - 5) == 0;
}

/* What a test may do to us at a point: nothing else than what the kernel may do at any time. */
void
vf_test_point(const struct vf_flow *flow, const char *name)
{
    const char *wanted = flow->test_at;
    VF_AUTO_FREE char *of_vm =
        wanted ? vf_printf("%s@%s", name, flow->vm.name ? flow->vm.name : "") : NULL;

    for (size_t length; wanted; wanted = wanted[length] ? wanted + length + 1 : NULL) {
        length = strcspn(wanted, ",");
        if (!is_point(wanted, length, name) && !is_point(wanted, length, of_vm))
            continue;
        if (vf_starts_with(wanted, "kill:"))
            raise(SIGKILL);
        if (vf_starts_with(wanted, "stop:"))
            raise(SIGSTOP);
    }
}

static void
end_point(const struct vf_flow *flow, const struct vf_step *step)
{
    char point[64];

    snprintf(point, sizeof point, "%s+", step->name);
    vf_test_point(flow, point);
}
#else
#define end_point(flow, step) vf_test_point(flow, (step)->name)
#endif

/* The engine's side. */

static int64_t
now_us(void *owner)
{
    (void)owner;
    return vf_now_us();
}

static void
start(void *owner, const struct vf_step *step)
{
    struct vf_flow *flow = owner;

    /* What an earlier attempt of this very step complained of is no error of the operation's,
     * unless it comes again. */
    if (flow->attempted == step && flow->attempted_clean && vf_failed(&flow->error) &&
        !flow->engine.unwinding) {
        vf_log(&flow->log, VMFROST_LOG_INFO, "trying again: %s", flow->error.text);
        flow->error = (struct vmfrost_error){.code = VMFROST_OK};
    }
    flow->attempted = step;
    flow->if_silent = NULL;
    flow->percent = -1;
    flow->attempted_clean = !vf_failed(&flow->error);
    vf_test_point(flow, step->name);
    step->start(flow);
    end_point(flow, step);
    /* Behind the first step of the way back, which is the thaw if there is one. */
    if (flow->engine.unwinding) {
        vf_gate_leave(flow);
        vf_group_failed(flow);
    }
}

static void
abandon(void *owner, const struct vf_step *step)
{
    struct vf_flow *flow = owner;

    if (vf_now_us() >= flow->engine.attempt_due_us && !flow->engine.pausing) {
        vf_note(flow, VMFROST_UNREACHABLE, "%s: no answer within %.1f s", step->title,
                (double)step->budget_ms / 1000);
        flow->silent = step;
        if (flow->if_silent)
            vf_advise(flow, "%s", flow->if_silent);
    }
    vf_group_abandon(flow);
    vf_forget_asked(flow);
}

static void
arm(void *owner, int64_t due_us)
{
    struct vf_flow *flow = owner;

    ev_timer_stop(flow->loop, &flow->timer);
    if (due_us == INT64_MAX)
        return;
    double after = (double)(due_us - vf_now_us()) / 1e6;

    /* The loop counts from its own, older idea of now. */
    ev_now_update(flow->loop);
    ev_timer_set(&flow->timer, after > 0 ? after : 0, 0);
    ev_timer_start(flow->loop, &flow->timer);
}

static void
finished(void *owner)
{
    struct vf_flow *flow = owner;

    vf_forget_asked(flow);
    vf_window_closes(flow);
    if (flow->engine.unwinding)
        vf_group_failed(flow);
    ev_timer_start(flow->loop, &flow->done_timer);
}

static const struct vf_engine_ops engine_ops = {now_us, start,        abandon,
                                                arm,    vf_tell_step, finished};

void
vf_end(struct vf_flow *flow, enum vf_outcome outcome)
{
    vf_job_forget(flow);
    vf_forget_questions(flow);
    flow->event = NULL;
    vf_view_release(&flow->view);
    vf_engine_complete(&flow->engine, outcome);
}

/* Beginning. */

static void
run_or_end(struct vf_flow *flow)
{
    if (flow->stop_asked && !vf_failed(&flow->error))
        vf_note(flow, VMFROST_FAILED, "stopped by request before it began");
    if (!vf_failed(&flow->error) && flow->prepare)
        flow->prepare(flow);
    if (!vf_failed(&flow->error)) {
        vf_engine_run(&flow->engine);
        return;
    }
    vf_group_failed(flow);
    ev_timer_start(flow->loop, &flow->done_timer);
}

static void
on_recovered(void *data, const struct vmfrost_result *result)
{
    struct vf_flow *flow = data;

    flow->child = NULL;
    if (result->code != VMFROST_OK) {
        vf_note(flow, result->code, "an interrupted operation must be finished first: %s",
                result->text);
        if (result->next[0])
            vf_advise(flow, "%s", result->next);
        else
            vf_advise(flow, "run `vmfrost recover %s`", flow->vm.name);
    }
    run_or_end(flow);
}

bool
vf_flow_lock(struct vf_flow *flow)
{
    VF_AUTO_FREE char *what =
        vf_printf("%s %s%s%s", flow->engine.table->operation, flow->vm.name,
                  flow->snapshot_name ? "@" : "", flow->snapshot_name ? flow->snapshot_name : "");

    flow->lock_fd = vf_vm_lock(&flow->vm, what, &flow->error);
    /* Whatever has become of the state folder, a frozen guest cannot wait for it. */
    if (flow->lock_fd < 0 && flow->without_lock && !vf_vm_locked(&flow->vm))
        vf_absolve(flow);
    return flow->lock_fd >= 0;
}

/* Takes the VM's lock; then whatever an earlier operation left behind is put in order. */
static void
begin(struct vf_flow *flow)
{
    if (vf_failed(&flow->error) || !flow->changes || flow->lock_borrowed ||
        (flow->lock_fd < 0 && !vf_flow_lock(flow)) || flow->no_recovery ||
        !vf_journal_exists(&flow->vm)) {
        run_or_end(flow);
        return;
    }
    vf_log(&flow->log, VMFROST_LOG_INFO, "%s: an interrupted operation is recovered first",
           flow->vm.name);
    flow->child = vf_recovery_before(flow, on_recovered);
    vf_flow_start(flow->child);
}

/* It is not kept waiting any longer: its time begins now. */
static void
let_in(struct vf_flow *flow)
{
    int64_t waited_us = vf_now_us() - flow->accepted_us;

    flow->accepted_us += waited_us;
    if (flow->engine.deadline_us != INT64_MAX)
        flow->engine.deadline_us += waited_us;
    flow->started = true;
    begin(flow);
}

static void
on_timer(struct ev_loop *loop, ev_timer *watcher, int revents)
{
    struct vf_flow *flow = watcher->data;

    (void)loop;
    (void)revents;
    if (flow->started)
        vf_engine_tick(&flow->engine);
    else
        let_in(flow);
}

static void
dispose(struct vf_flow *flow)
{
    ev_timer_stop(flow->loop, &flow->timer);
    ev_timer_stop(flow->loop, &flow->done_timer);
    vf_job_forget(flow);
    vf_side_leave(flow);
    vf_using_release(flow);
    vf_qmp_free(flow->side.qmp);
    vf_qmp_free(flow->qmp);
    vf_daemon_stop(&flow->daemon);
    for (size_t i = 0; i < flow->graft_count; i++)
        vf_graft_release(&flow->grafts[i]);
    free(flow->grafts);
    json_object_put(flow->known_disks);
    vf_qga_free(flow->qga);
    vf_journal_close(&flow->journal);
    vf_facts_release(flow);
    vf_view_release(&flow->view);
    vf_plan_release(&flow->plan);
    vf_classes_release(&flow->classes);
    for (size_t i = 0; i < flow->cut_count; i++)
        vf_cut_release(&flow->cuts[i]);
    free(flow->cuts);
    free(flow->agent.socket);
    free(flow->agent.port_id);
    free(flow->agent.message);
    free(flow->evidence.disturbed);
    vf_overlays_close(flow);
    free(flow->qemu_version);
    free(flow->job_error);
    free(flow->job_abouts);
    json_object_put(flow->ports);
    json_object_put(flow->records_seen);
    json_object_put(flow->journal_lines);
    json_object_put(flow->record);
    json_object_put(flow->document_json);
    json_object_put(flow->warnings);
    for (size_t i = 0; i < flow->exclude_count; i++)
        free(flow->exclude[i]);
    free(flow->exclude);
    free(flow->flush);
    free(flow->obstacle);
    free(flow->remedy);
    free(flow->freeze);
    vf_freezing_release(flow);
    for (size_t i = 0; i < flow->include_count; i++)
        free(flow->include[i]);
    free(flow->include);
    free(flow->restore.keep);
    free(flow->restore.label);
    json_object_put(flow->restore.snapshot);
    json_object_put(flow->restore.old_nodes);
    json_object_put(flow->restore.jobs);
    free(flow->restore.served);
    free(flow->vm_name);
    free(flow->snapshot_name);
    free(flow->queued);
    vf_vm_release(&flow->vm);
    free(flow);
}

static enum vmfrost_guest_state
guest_state(const struct vf_flow *flow)
{
    if ((flow->engine.owed & VF_OWE_THAW) || flow->held)
        return VMFROST_GUEST_MAY_BE_FROZEN;
    return flow->froze ? VMFROST_GUEST_THAWED : VMFROST_GUEST_NEVER_FROZEN;
}

static enum vmfrost_code
result_code(const struct vf_flow *flow)
{
    if (flow->engine.owed & VF_OWE_THAW)
        return VMFROST_MAY_BE_FROZEN;
    if (vf_failed(&flow->error))
        return flow->error.code;
    return flow->unverified ? VMFROST_UNVERIFIED : VMFROST_OK;
}

static void
on_done(struct ev_loop *loop, ev_timer *watcher, int revents)
{
    struct vf_flow *flow = watcher->data;

    (void)loop;
    (void)revents;
    vf_conclude(flow);
    if (vf_failed(&flow->error) && (flow->engine.owed & ~(unsigned)VF_OWE_THAW))
        vf_hint(&flow->error,
                "not all of it could be undone: see `vmfrost status %s`, put right what "
                "is in the way, then run `vmfrost recover %s`",
                flow->vm.name, flow->vm.name);
    if (flow->engine.owed & VF_OWE_FINISH)
        flow->snapshot_state = VMFROST_SNAPSHOT_TAKEN;
    else if (flow->engine.owed & (VF_OWE_RESOLVE | VF_OWE_CUT))
        flow->snapshot_state = VMFROST_SNAPSHOT_UNKNOWN;
    if (flow->document)
        flow->document(flow);
    if (flow->guard.fd >= 0)
        vf_guard_leave(&flow->guard);

    struct json_object *document = flow->document_json ? flow->document_json : flow->record;
    struct vmfrost_result result = {
        .code = result_code(flow),
        .snapshot = flow->snapshot_state,
        .guest = guest_state(flow),
        .text = flow->error.text,
        .next = flow->error.next,
        .json = document ? vf_json_print(document,
                                         JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE)
                         : "{}",
    };
    vmfrost_done_fn *done = flow->on_done;
    void *data = flow->data;

    vf_log(&flow->log, VMFROST_LOG_INFO, "%s ended with code %d", flow->engine.table->operation,
           (int)result.code);
    /* Whoever is told that it is done may start the VM: nothing of ours has its images open then.
     */
    vf_side_leave(flow);
    vf_daemon_stop(&flow->daemon);
    /* The lock goes before the caller is told, so that it may start the next operation. */
    if (flow->lock_fd >= 0 && !flow->lock_borrowed)
        close(flow->lock_fd);
    flow->lock_fd = -1;
    vf_group_leave(flow);
    vf_gate_leave(flow);
    if (flow->on_end)
        flow->on_end(flow, flow->on_end_data);
    if (done)
        done(data, &result);
    dispose(flow);
}

struct vf_flow *
vf_flow_new(struct ev_loop *loop, struct vf_store *store, const struct vf_log *log,
            const struct vf_table *table)
{
    struct vf_flow *flow = vf_alloc(sizeof *flow);

    flow->loop = loop;
    flow->store = store;
    flow->log = *log;
    flow->lock_fd = -1;
    flow->journal = (struct vf_journal)VF_JOURNAL_INIT;
    flow->guard = (struct vf_guard)VF_GUARD_INIT;
    flow->daemon = flow->side.daemon = (struct vf_daemon)VF_DAEMON_INIT;
    flow->warnings = vf_json_new_array();
    flow->evidence.frozen_count = flow->evidence.thawed_count = -1;
    flow->qmp = vf_flow_qmp(flow);
    flow->qga = vf_qga_new(loop, NULL, flow, &flow->log);
    flow->engine.table = table;
    flow->engine.ops = &engine_ops;
    flow->engine.flow = flow;
    flow->engine.deadline_us = INT64_MAX;
    flow->accepted_us = vf_now_us();
    flow->wall_offset_us = wall_offset_us();
    flow->test_at = getenv("VMFROST_TEST_AT");
    vf_random_hex(flow->id);
    ev_timer_init(&flow->timer, on_timer, 0, 0);
    flow->timer.data = flow;
    ev_timer_init(&flow->done_timer, on_done, 0, 0);
    flow->done_timer.data = flow;
    ev_timer_init(&flow->job_timer, vf_job_on_timer, 0, 0);
    flow->job_timer.data = flow;
    return flow;
}

void
vf_flow_start(struct vf_flow *flow)
{
    if (vf_gate_enter(flow, let_in))
        ev_timer_start(flow->loop, &flow->timer);
}

void
vf_flow_cancel(struct vf_flow *flow)
{
    flow->stop_asked = true;
    if (flow->gate_place.at == VF_GATE_WAITING && !flow->started) { /* it ends from the loop */
        vf_gate_leave(flow);
        ev_timer_start(flow->loop, &flow->timer);
    } else if (flow->child) {
        vf_flow_cancel(flow->child);
    } else if (flow->engine.step != VF_STEP_END) {
        vf_engine_cancel(&flow->engine);
    }
}
