/* SPDX-License-Identifier: MIT
 *
 * The life of an operation: how it begins, waits, tells, and ends. What it does is elsewhere.
 */
#include "flows/flow.h"

#include <assert.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "flows/graft.h"
#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

/* A question to QEMU whose reply has not come. */
struct vf_pending {
    struct vf_flow *flow;
    vf_flow_fn *fn;
    uint64_t handle;
    struct vf_pending *next;
};

/* An event of the frozen window, told after it. */
struct vf_queued_event {
    const struct vf_step *step;
    enum vf_step_state state;
    int64_t at_us;
};

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

/* What a test may do to us at a point: nothing else than what the kernel may do at any time. */
void
vf_test_point(const struct vf_flow *flow, const char *name)
{
    const char *wanted = getenv("VMFROST_TEST_AT");

    (void)flow;
    for (size_t length; wanted; wanted = wanted[length] ? wanted + length + 1 : NULL) {
        length = strcspn(wanted, ",");
        if (length != strlen(name) + 5 || strncmp(wanted + 5, name, length - 5) != 0)
            continue;
        if (vf_starts_with(wanted, "kill:"))
            raise(SIGKILL);
        if (vf_starts_with(wanted, "stop:"))
            raise(SIGSTOP);
    }
}

/* Telling. */

static const char *
state_name(enum vf_step_state state)
{
    switch (state) {
    case VF_STEP_STARTED:
        return "started";
    case VF_STEP_DONE:
        return "done";
    case VF_STEP_WAS_REFUSED:
        return "refused";
    case VF_STEP_WAS_UNKNOWN:
        return "unknown";
    case VF_STEP_SKIPPED:
        return "skipped";
    }
    assert(!"a step state that is none");
    return NULL;
}

static void
tell(struct vf_flow *flow, const struct vf_step *step, enum vf_step_state state, int64_t at_us)
{
    struct vmfrost_event event = {
        .operation = flow->engine.table->operation,
        .step = step->name,
        .title = step->title,
        .state = state_name(state),
        .elapsed_ms = (double)(at_us - flow->accepted_us) / 1000,
        .percent = -1,
    };

    vf_log(&flow->log, VMFROST_LOG_INFO, "step %s %s at %.3f ms", step->name, event.state,
           event.elapsed_ms);
    if (flow->on_event)
        flow->on_event(flow->data, &event);
}

void
vf_progress(struct vf_flow *flow, double percent)
{
    const struct vf_step *step = vf_engine_step(&flow->engine);
    const struct vmfrost_event event = {
        .operation = flow->engine.table->operation,
        .step = step->name,
        .title = step->title,
        .state = "progress",
        .elapsed_ms = (double)(vf_now_us() - flow->accepted_us) / 1000,
        .percent = percent,
    };

    if (flow->window_open || percent <= flow->percent)
        return;
    flow->percent = percent;
    if (flow->on_event)
        flow->on_event(flow->data, &event);
}

void
vf_window_opens(struct vf_flow *flow)
{
    flow->window_open = true;
}

void
vf_window_closes(struct vf_flow *flow)
{
    flow->window_open = false;
    for (size_t i = 0; i < flow->queued_count; i++)
        tell(flow, flow->queued[i].step, flow->queued[i].state, flow->queued[i].at_us);
    flow->queued_count = 0;
}

static void
trace(void *owner, const struct vf_step *step, enum vf_step_state state)
{
    struct vf_flow *flow = owner;

    if (!flow->window_open) {
        tell(flow, step, state, vf_now_us());
        return;
    }
    VF_GROW(flow->queued, flow->queued_count);
    flow->queued[flow->queued_count++] = (struct vf_queued_event){step, state, vf_now_us()};
}

/* Errors. */

/* What is tried again and again is told once. */
static void
complain(struct vf_flow *flow, const char *text)
{
    for (size_t i = 0; i < vf_json_length(flow->warnings); i++)
        if (strcmp(vf_json_text(vf_json_at(flow->warnings, i)), text) == 0) {
            vf_log(&flow->log, VMFROST_LOG_INFO, "again: %s", text);
            return;
        }
    vf_log(&flow->log, VMFROST_LOG_WARNING, "%s", text);
    json_object_array_add(flow->warnings, json_object_new_string(text));
}

void
vf_warn(struct vf_flow *flow, const char *format, ...)
{
    char text[1024];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    vf_sanitize(text);
    complain(flow, text);
}

bool
vf_note_error(struct vf_flow *flow, struct vmfrost_error *error)
{
    if (vf_failed(&flow->error) || flow->engine.unwinding)
        complain(flow, error->text);
    else
        flow->error = *error;
    return false;
}

bool
vf_note(struct vf_flow *flow, enum vmfrost_code code, const char *format, ...)
{
    struct vmfrost_error error = {.code = code};
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(error.text, sizeof error.text, format, arguments);
    va_end(arguments);
    vf_sanitize(error.text);
    return vf_note_error(flow, &error);
}

void
vf_advise(struct vf_flow *flow, const char *format, ...)
{
    char text[sizeof flow->error.next];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (vf_failed(&flow->error) && !flow->engine.unwinding)
        vf_hint(&flow->error, "%s", text);
}

void
vf_refuse(struct vf_flow *flow, enum vmfrost_code code, const char *format, ...)
{
    char text[sizeof flow->error.text];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    vf_note(flow, code, "%s", text);
    vf_end(flow, VF_REFUSED);
}

void
vf_end(struct vf_flow *flow, enum vf_outcome outcome)
{
    vf_job_forget(flow);
    flow->event = NULL;
    vf_engine_complete(&flow->engine, outcome);
}

bool
vf_expect(struct vf_flow *flow, const struct vf_reply *reply, const char *format, ...)
{
    char text[sizeof flow->error.text];
    va_list arguments;

    if (reply->outcome == VF_OK)
        return true;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    vf_note(flow, reply->outcome == VF_REFUSED ? VMFROST_FAILED : VMFROST_UNREACHABLE, "%s: %s",
            text, reply->words);
    vf_end(flow, reply->outcome);
    return false;
}

/* Asking. */

static void
on_qmp_reply(void *data, const struct vf_reply *reply)
{
    struct vf_pending *pending = data, **at;
    struct vf_flow *flow = pending->flow;
    vf_flow_fn *fn = pending->fn;

    for (at = &flow->pending; *at != pending; at = &(*at)->next)
        continue;
    *at = pending->next;
    free(pending);
    fn(flow, reply);
}

void
vf_ask(struct vf_flow *flow, const char *command, struct json_object *arguments, vf_flow_fn *fn)
{
    struct vf_pending *pending = vf_alloc(sizeof *pending);

    pending->flow = flow;
    pending->fn = fn;
    pending->next = flow->pending;
    flow->pending = pending;
    pending->handle = vf_qmp_send(flow->qmp, command, arguments, on_qmp_reply, pending);
}

static void
end_batch(struct vf_flow *flow)
{
    struct vf_batch batch = flow->batch;
    struct vf_reply reply = {batch.outcome, NULL, batch.words ? batch.words : ""};

    flow->batch = (struct vf_batch){.failed = batch.failed};
    free(batch.about);
    batch.fn(flow, &reply);
    free(batch.words);
}

static void
on_batch_reply(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct vf_batch *batch = &flow->batch;

    if (reply->outcome != VF_OK && batch->outcome == VF_OK) {
        batch->failed = batch->about[batch->answered];
        batch->outcome = reply->outcome;
        batch->words = vf_strdup(reply->words);
    }
    batch->answered++;
    if (batch->fn && batch->answered == batch->asked)
        end_batch(flow);
}

void
vf_batch_ask(struct vf_flow *flow, const char *about, const char *command,
             struct json_object *arguments)
{
    VF_GROW(flow->batch.about, flow->batch.asked);
    flow->batch.about[flow->batch.asked++] = about;
    vf_ask(flow, command, arguments, on_batch_reply);
}

void
vf_batch_end(struct vf_flow *flow, vf_flow_fn *fn)
{
    flow->batch.fn = fn;
    if (flow->batch.answered == flow->batch.asked)
        end_batch(flow);
}

void
vf_await_event(struct vf_flow *flow, const char *name, vf_flow_fn *fn)
{
    flow->event = name;
    flow->on_event_came = fn;
}

static void
end_await(struct vf_flow *flow, enum vf_outcome outcome, const char *words)
{
    struct vf_reply reply = {outcome, NULL, words};

    flow->event = NULL;
    flow->on_event_came(flow, &reply);
}

static void
on_agent_reply(void *data, const struct vf_reply *reply)
{
    struct vf_flow *flow = data;

    flow->agent_asked = false;
    flow->on_agent(flow, reply);
}

/* The port was closed under a request: its reply will not come, whatever the socket says. */
static void
on_port_closed(struct vf_flow *flow)
{
    struct vf_reply reply = {VF_UNKNOWN, NULL, "the guest agent has closed its port"};

    if (!flow->agent_asked)
        return;
    vf_qga_forget(flow->qga);
    on_agent_reply(flow, &reply);
}

void
vf_ask_agent(struct vf_flow *flow, const char *command, struct json_object *arguments,
             vf_flow_fn *fn)
{
    flow->on_agent = fn;
    flow->agent_asked = true;
    vf_qga_call(flow->qga, command, arguments, on_agent_reply, flow);
}

static void
forget_all(struct vf_flow *flow)
{
    while (flow->pending) {
        struct vf_pending *pending = flow->pending;

        flow->pending = pending->next;
        vf_qmp_forget(flow->qmp, pending->handle);
        free(pending);
    }
    flow->jobs_begun = 0;
    free(flow->batch.about);
    free(flow->batch.words);
    flow->batch = (struct vf_batch){0};
    flow->event = NULL;
    /* Also a connection that is just being made. */
    if (!vf_qmp_ready(flow->qmp))
        vf_qmp_close(flow->qmp);
    if (!vf_qga_is_open(flow->qga))
        vf_qga_close(flow->qga);
    vf_qga_forget(flow->qga);
    vf_program_stop(flow->program);
    flow->program = NULL;
    flow->agent_asked = false;
    vf_job_forget(flow);
}

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
    char point[64];

    /* What an earlier attempt of this very step complained of is no error of the operation's,
     * unless it comes again. */
    if (flow->attempted == step && flow->attempted_clean && vf_failed(&flow->error) &&
        !flow->engine.unwinding) {
        vf_log(&flow->log, VMFROST_LOG_INFO, "trying again: %s", flow->error.text);
        flow->error = (struct vmfrost_error){.code = VMFROST_OK};
    }
    flow->attempted = step;
    flow->percent = -1;
    flow->attempted_clean = !vf_failed(&flow->error);
    vf_test_point(flow, step->name);
    snprintf(point, sizeof point, "%s+", step->name);
    step->start(flow);
    vf_test_point(flow, point);
}

static void
abandon(void *owner, const struct vf_step *step)
{
    struct vf_flow *flow = owner;

    if (vf_now_us() >= flow->engine.attempt_due_us && !flow->engine.pausing)
        vf_note(flow, VMFROST_UNREACHABLE, "%s: no answer within %.1f s", step->title,
                (double)step->budget_ms / 1000);
    forget_all(flow);
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

    forget_all(flow);
    vf_window_closes(flow);
    ev_timer_start(flow->loop, &flow->done_timer);
}

static const struct vf_engine_ops engine_ops = {now_us, start, abandon, arm, trace, finished};

/* Events from QEMU. */

static void
disturb(struct vf_flow *flow, const char *what)
{
    if (flow->window_open && !flow->evidence.disturbed)
        flow->evidence.disturbed = vf_strdup(what);
}

static void
on_event(void *owner, const char *name, struct json_object *data)
{
    static const char *const disturbing[] = {"RESET",          "SHUTDOWN", "STOP",     "SUSPEND",
                                             "GUEST_PANICKED", "WATCHDOG", "MIGRATION"};
    struct vf_flow *flow = owner;
    const char *id = vf_json_string(data, "id");

    vf_log(&flow->log, VMFROST_LOG_DEBUG, "event %s", name);
    for (size_t i = 0; i < sizeof disturbing / sizeof *disturbing; i++)
        if (strcmp(name, disturbing[i]) == 0)
            disturb(flow, disturbing[i]);
    if (strcmp(name, "VSERPORT_CHANGE") == 0 && !vf_json_bool(data, "open", true) && id &&
        flow->agent.port_id && strcmp(id, flow->agent.port_id) == 0) {
        disturb(flow, "the guest agent closed its port");
        on_port_closed(flow);
    }
    if (strcmp(name, "DEVICE_DELETED") == 0)
        vf_plug_deleted(flow, vf_json_string(data, "path"));
    if (strcmp(name, "JOB_STATUS_CHANGE") == 0 && id && flow->job &&
        (flow->job_all ? vf_starts_with(id, flow->job) : strcmp(id, flow->job) == 0))
        vf_job_event(flow, vf_json_string(data, "status"));
    if (flow->event && strcmp(name, flow->event) == 0)
        end_await(flow, VF_OK, "");
}

static void
on_qmp_lost(void *owner, const char *why)
{
    struct vf_flow *flow = owner;

    vf_job_lost(flow, why);
    if (flow->event)
        end_await(flow, VF_UNKNOWN, why);
}

/* Beginning. */

static void
run_or_end(struct vf_flow *flow)
{
    if (flow->stop_asked)
        vf_note(flow, VMFROST_FAILED, "stopped by request before it began");
    if (!vf_failed(&flow->error) && flow->prepare)
        flow->prepare(flow);
    if (vf_failed(&flow->error))
        ev_timer_start(flow->loop, &flow->done_timer);
    else
        vf_engine_run(&flow->engine);
}

static void
on_recovered(void *data, const struct vmfrost_result *result)
{
    struct vf_flow *flow = data;

    flow->child = NULL;
    if (result->code != VMFROST_OK) {
        vf_note(flow, result->code, "an interrupted operation must be finished first: %s",
                result->text);
        vf_advise(flow, "%s", result->next[0] ? result->next : "run `vmfrost recover`");
    }
    run_or_end(flow);
}

/* Takes the VM's lock; then whatever an earlier operation left behind is put in order. */
static void
begin(struct vf_flow *flow)
{
    VF_AUTO_FREE char *what = NULL;

    if (vf_failed(&flow->error) || !flow->changes || flow->lock_fd >= 0) {
        run_or_end(flow);
        return;
    }
    what =
        vf_printf("%s %s%s%s", flow->engine.table->operation, flow->vm.name,
                  flow->snapshot_name ? "@" : "", flow->snapshot_name ? flow->snapshot_name : "");
    flow->lock_fd = vf_vm_lock(&flow->vm, what, &flow->error);
    if (flow->lock_fd < 0 || flow->no_recovery || !vf_journal_exists(&flow->vm)) {
        run_or_end(flow);
        return;
    }
    vf_log(&flow->log, VMFROST_LOG_INFO, "%s: an interrupted operation is recovered first",
           flow->vm.name);
    flow->child = vf_recovery_before(flow, on_recovered);
    vf_flow_start(flow->child);
}

static void
on_timer(struct ev_loop *loop, ev_timer *watcher, int revents)
{
    struct vf_flow *flow = watcher->data;

    (void)loop;
    (void)revents;
    if (flow->started) {
        vf_engine_tick(&flow->engine);
        return;
    }
    flow->started = true;
    begin(flow);
}

static void
dispose(struct vf_flow *flow)
{
    ev_timer_stop(flow->loop, &flow->timer);
    ev_timer_stop(flow->loop, &flow->done_timer);
    vf_job_forget(flow);
    vf_side_leave(flow);
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
    vf_plan_release(&flow->plan);
    vf_classes_release(&flow->classes);
    for (size_t i = 0; i < flow->cut_count; i++)
        vf_cut_release(&flow->cuts[i]);
    free(flow->cuts);
    free(flow->agent.socket);
    free(flow->agent.port_id);
    free(flow->agent.message);
    free(flow->evidence.disturbed);
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

static const char *
cause_text(const struct vf_flow *flow, char text[static 160])
{
    const struct vf_engine *engine = &flow->engine;
    const char *title = engine->table->steps[engine->failed_step].title;

    switch (engine->cause) {
    case VF_CAUSE_NONE:
    case VF_CAUSE_REFUSED:
    case VF_CAUSE_UNKNOWN:
        return NULL;
    case VF_CAUSE_DEADLINE:
        snprintf(text, 160, "the deadline of %.4g s passed (%s)",
                 (double)(engine->deadline_us - flow->accepted_us) / 1e6, title);
        return text;
    case VF_CAUSE_FROZEN_LIMIT:
        snprintf(text, 160, "the frozen limit of %.4g s passed (%s)",
                 (double)engine->frozen_limit_ms / 1e3, title);
        return text;
    case VF_CAUSE_CANCELLED:
        snprintf(text, 160, "stopped by request (%s)", title);
        return text;
    }
    assert(!"a cause that is none");
    return NULL;
}

#define UNFINISHED (VF_OWE_RESOLVE | VF_OWE_CUT | VF_OWE_FILES)

/* Where its process is gone, recovery does not wait for it. */
static const char *
when_reachable(const struct vf_flow *flow)
{
    bool gone = flow->qemu.pid && !vf_process_alive(flow->qemu);

    return gone ? "" : ", when QEMU can be reached";
}

/* What is worse than that nothing was done. */
static void
conclude_restore(struct vf_flow *flow, struct vmfrost_error *error)
{
    if (!vf_failed(error) || (!flow->restore.turned && !(flow->engine.owed & VF_OWE_HALT)))
        return;
    error->code = VMFROST_UNVERIFIED;
    error->next[0] = '\0';
    if (!flow->restore.turned) {
        vf_prefix(error, "the VM is stopped");
        vf_hint(error, "`vmfrost recover %s` lets it go on%s", flow->vm.name, when_reachable(flow));
    } else if (flow->engine.owed & (VF_OWE_TURN | VF_OWE_RESET | VF_OWE_HALT)) {
        vf_prefix(error, "the names lead to the restored disks, but the VM is stopped and does not "
                         "run on them yet");
        vf_hint(error,
                "end QEMU and start the VM anew: it begins with the restored disks; or let "
                "`vmfrost recover %s` finish it%s",
                flow->vm.name, when_reachable(flow));
    } else {
        vf_prefix(error, "restored, but what is kept of the state before has no record yet");
        vf_hint(error, "`vmfrost recover %s` finishes that", flow->vm.name);
    }
}

void
vf_conclude(struct vf_flow *flow)
{
    struct vmfrost_error *error = &flow->error;
    char text[160];

    if (flow->concluded)
        return;
    flow->concluded = true;
    if (cause_text(flow, text)) {
        struct vmfrost_error first = *error;
        bool deadline = flow->engine.cause == VF_CAUSE_DEADLINE;

        *error = (struct vmfrost_error){.code = VMFROST_OK};
        vf_fail(error, deadline ? VMFROST_DEADLINE : VMFROST_FAILED, "%s%s%.700s", text,
                vf_failed(&first) ? ": " : "", first.text);
        if (deadline)
            vf_hint(error, "give it more time with --deadline, or find out what makes it slow");
        else if (flow->engine.cause == VF_CAUSE_FROZEN_LIMIT)
            vf_hint(error, "look at the guest's freeze hooks and at its load, or raise "
                           "--frozen-limit");
    }
    if (flow->engine.cause != VF_CAUSE_NONE && !vf_failed(error))
        vf_fail(error, VMFROST_FAILED, "%s failed",
                flow->engine.table->steps[flow->engine.failed_step].title);
    /* A thaw that could not be verified matters only where there is a snapshot that it belongs to.
     */
    if (error->code == VMFROST_UNVERIFIED && flow->snapshot_state == VMFROST_SNAPSHOT_NONE)
        error->code = VMFROST_FAILED;
    if (vf_failed(error) && flow->record && (flow->engine.owed & UNFINISHED & ~flow->engine_pays)) {
        /* Neither "nothing is changed" nor "everything is rolled back" would be true. */
        vf_prefix(error, "not everything could be rolled back");
        error->code = VMFROST_UNVERIFIED;
        error->next[0] = '\0';
        vf_hint(error, "`vmfrost recover %s` finishes that%s", flow->vm.name, when_reachable(flow));
    }
    conclude_restore(flow, error);
    if (vf_failed(error))
        vf_prefix(error, "%s %s%s%s", flow->engine.table->operation,
                  flow->vm.name ? flow->vm.name : flow->vm_name, flow->snapshot_name ? "@" : "",
                  flow->snapshot_name ? flow->snapshot_name : "");
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
    if (flow->engine.owed & (VF_OWE_RESOLVE | VF_OWE_CUT))
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
        .json = document
                    ? json_object_to_json_string_ext(document, JSON_C_TO_STRING_PLAIN |
                                                                   JSON_C_TO_STRING_NOSLASHESCAPE)
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
    if (flow->on_end)
        flow->on_end(flow, flow->on_end_data);
    if (done)
        done(data, &result);
    dispose(flow);
}

struct vf_qmp *
vf_flow_qmp(struct vf_flow *flow)
{
    static const struct vf_qmp_hooks hooks = {on_event, on_qmp_lost};

    return vf_qmp_new(flow->loop, &hooks, flow, &flow->log);
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
    flow->warnings = json_object_new_array();
    flow->evidence.frozen_count = flow->evidence.thawed_count = -1;
    flow->qmp = vf_flow_qmp(flow);
    flow->qga = vf_qga_new(loop, NULL, flow, &flow->log);
    flow->engine.table = table;
    flow->engine.ops = &engine_ops;
    flow->engine.flow = flow;
    flow->engine.deadline_us = INT64_MAX;
    flow->accepted_us = vf_now_us();
    flow->wall_offset_us = wall_offset_us();
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
    ev_timer_start(flow->loop, &flow->timer);
}

void
vf_flow_cancel(struct vf_flow *flow)
{
    flow->stop_asked = true;
    if (flow->child)
        vf_flow_cancel(flow->child);
    else if (flow->engine.step != VF_STEP_END)
        vf_engine_cancel(&flow->engine);
}
