/* SPDX-License-Identifier: MIT
 *
 * What an operation tells: its steps, its warnings, and why it failed.
 *
 * Inside of the frozen window nobody is told anything; what happened there is told after it, with
 * its true times. The first cause of a failure is kept; what fails on the way back is a warning.
 */
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "flows/flow.h"
#include "flows/group.h"
#include "flows/steps.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

/* An event of the frozen window, told after it. */
struct vf_queued_event {
    const struct vf_step *step;
    enum vf_step_state state;
    int64_t at_us;
};

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
    vf_tell_queued(flow);
}

void
vf_tell_queued(struct vf_flow *flow)
{
    if (flow->window_open || vf_group_is_quiet(flow))
        return;
    for (size_t i = 0; i < flow->queued_count; i++)
        tell(flow, flow->queued[i].step, flow->queued[i].state, flow->queued[i].at_us);
    flow->queued_count = 0;
}

void
vf_tell_step(void *owner, const struct vf_step *step, enum vf_step_state state)
{
    struct vf_flow *flow = owner;

    if (state == VF_STEP_SKIPPED && (step->when & VF_IF_GROUP))
        return; /* who is alone knows nothing of groups */
    if (!flow->window_open && !vf_group_is_quiet(flow)) {
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
    vf_json_append(flow->warnings, vf_json_new_string(text));
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

/* The end. */

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
        if (vf_group_gave_up(flow)) /* and said why */
            return NULL;
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
    bool gone = flow->qemu.pid && vf_process_gone(flow->qemu);

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

struct vmfrost_error
vf_cause(const struct vf_flow *flow)
{
    const struct vmfrost_error *first = &flow->error;
    struct vmfrost_error error = {.code = VMFROST_OK};
    bool deadline = flow->engine.cause == VF_CAUSE_DEADLINE;
    char text[160];

    if (!cause_text(flow, text)) {
        error = *first;
    } else {
        vf_fail(&error, deadline ? VMFROST_DEADLINE : VMFROST_FAILED, "%s%s%.700s", text,
                vf_failed(first) ? ": " : "", first->text);
        if (deadline)
            vf_hint(&error, "give it more time with --deadline, or find out what makes it slow");
        else if (flow->engine.cause == VF_CAUSE_FROZEN_LIMIT)
            vf_hint(&error, "look at the guest's freeze hooks and at its load, or raise "
                            "--frozen-limit");
    }
    if (flow->engine.cause != VF_CAUSE_NONE && !vf_failed(&error))
        vf_fail(&error, VMFROST_FAILED, "%s failed",
                flow->engine.table->steps[flow->engine.failed_step].title);
    return error;
}

void
vf_conclude(struct vf_flow *flow)
{
    struct vmfrost_error *error = &flow->error;

    if (flow->concluded)
        return;
    flow->concluded = true;
    *error = vf_cause(flow);
    /* A thaw that could not be verified matters only where there is a snapshot that it belongs to.
     */
    if (error->code == VMFROST_UNVERIFIED && flow->snapshot_state == VMFROST_SNAPSHOT_NONE)
        error->code = VMFROST_FAILED;
    if (vf_failed(error) && (flow->engine.owed & VF_OWE_FINISH & ~flow->engine_pays)) {
        vf_prefix(error, "it is taken, but its record is not complete");
        error->code = VMFROST_UNVERIFIED;
        error->next[0] = '\0';
        vf_hint(error, "put that right, then run `vmfrost recover %s`", flow->vm.name);
    } else if (vf_failed(error) && flow->record &&
               (flow->engine.owed & UNFINISHED & ~flow->engine_pays)) {
        /* Neither "nothing is changed" nor "everything is rolled back" would be true. */
        vf_prefix(error, "not everything could be rolled back");
        error->code = VMFROST_UNVERIFIED;
        error->next[0] = '\0';
        if (flow->obstacle)
            vf_hint(error, "%s: %s, then run `vmfrost recover %s`", flow->obstacle, flow->remedy,
                    flow->vm.name);
        else
            vf_hint(error, "`vmfrost recover %s` finishes that%s", flow->vm.name,
                    when_reachable(flow));
    }
    conclude_restore(flow, error);
    if (vf_failed(error))
        vf_prefix(error, "%s %s%s%s", flow->engine.table->operation,
                  flow->vm.name ? flow->vm.name : flow->vm_name, flow->snapshot_name ? "@" : "",
                  flow->snapshot_name ? flow->snapshot_name : "");
}
