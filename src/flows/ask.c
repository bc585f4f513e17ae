/* SPDX-License-Identifier: MIT
 *
 * What an operation asks, of QEMU and of the guest agent, and what they say without being asked.
 *
 * When a step has ended, nobody is called back any more for what it left outstanding.
 */
#include <stdlib.h>
#include <string.h>

#include "flows/flow.h"
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

static struct vf_pending *
add_pending(struct vf_flow *flow, vf_flow_fn *fn)
{
    struct vf_pending *pending = vf_alloc(sizeof *pending);

    pending->flow = flow;
    pending->fn = fn;
    pending->next = flow->pending;
    flow->pending = pending;
    return pending;
}

void
vf_ask(struct vf_flow *flow, const char *command, struct json_object *arguments, vf_flow_fn *fn)
{
    struct vf_pending *pending = add_pending(flow, fn);

    vf_qmp_unprime(flow->qmp);
    pending->handle = vf_qmp_send(flow->qmp, command, arguments, on_qmp_reply, pending);
}

void
vf_ask_for(struct vf_flow *flow, const char *command, const char *const *words, size_t count,
           vf_flow_fn *fn)
{
    vf_ask(flow, command, NULL, fn);
    vf_qmp_look_for(flow->qmp, flow->pending->handle, words, count);
}

void
vf_ask_qemu_io(struct vf_flow *flow, const char *node, const char *command, vf_flow_fn *fn)
{
    VF_AUTO_FREE char *line = vf_printf("qemu-io %s \"%s\"", node, command);

    vf_ask(flow, "human-monitor-command", vf_json_strings("command-line", line, NULL), fn);
}

void
vf_prime(struct vf_flow *flow, const char *command, struct json_object *arguments)
{
    vf_qmp_unprime(flow->qmp);
    vf_qmp_prime(flow->qmp, command, arguments);
}

void
vf_fire(struct vf_flow *flow, vf_flow_fn *fn)
{
    struct vf_pending *pending = add_pending(flow, fn);

    pending->handle = vf_qmp_fire(flow->qmp, on_qmp_reply, pending);
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

void
vf_forget_questions(struct vf_flow *flow)
{
    const char *failed = flow->batch.failed;

    while (flow->pending) {
        struct vf_pending *pending = flow->pending;

        flow->pending = pending->next;
        vf_qmp_forget(flow->qmp, pending->handle);
        free(pending);
    }
    free(flow->batch.about);
    free(flow->batch.words);
    flow->batch = (struct vf_batch){.failed = failed};
}

void
vf_forget_asked(struct vf_flow *flow)
{
    vf_forget_questions(flow);
    flow->batch.failed = NULL;
    flow->jobs_begun = 0;
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

struct vf_qmp *
vf_flow_qmp(struct vf_flow *flow)
{
    static const struct vf_qmp_hooks hooks = {on_event, on_qmp_lost};

    return vf_qmp_new(flow->loop, &hooks, flow, &flow->log);
}
