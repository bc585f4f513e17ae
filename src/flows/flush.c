/* SPDX-License-Identifier: MIT
 *
 * Writing out what is dirty, before the freeze: FIFREEZE first keeps every writer out and then
 * flushes, so that what is dirty by then is paid for while everything stands still.
 *
 * First the guest's page cache, by a `sync` that the agent runs; again if that took long, because
 * much may be dirty again. Then the host's, by an fdatasync of every base image: QEMU flushes them
 * in the cut.
 *
 * Nothing depends on it. Whatever goes wrong, or takes too long, the snapshot goes on, and the
 * record tells how long it took.
 */
#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"

#define ROUNDS_MOST 3
#define LONG_US 500000 /* what became dirty meanwhile is worth another round */

/* The guest. */

static bool
wants(const struct vf_flow *flow, const char *word)
{
    const char *flush = flow->flush ? flow->flush : flow->vm.flush;

    return strcmp(flush ? flush : "auto", word) == 0;
}

bool
vf_flush_wanted(const struct vf_flow *flow)
{
    if (wants(flow, "off"))
        return false;
    /* Windows has no such command, and VSS flushes by itself. */
    return flow->agent.can_exec && (!wants(flow, "auto") || !flow->agent.windows);
}

/* The command has ended, or nothing can be said of it any more. */
static void
flushed(struct vf_flow *flow)
{
    flow->evidence.flushed = vf_now_us();
    flow->flush_pid = 0;
    vf_end(flow, VF_OK);
}

static void start_flush(struct vf_flow *flow);

static void
on_status(struct vf_flow *flow, const struct vf_reply *reply)
{
    int64_t code = 0;

    if (reply->outcome == VF_UNKNOWN) {
        vf_expect(flow, reply, "guest-exec-status");
        return;
    }
    if (reply->outcome == VF_REFUSED) {
        vf_warn(flow, "flushing the guest: guest-exec-status: %s", reply->words);
        flushed(flow);
        return;
    }
    if (!vf_json_bool(reply->value, "exited", false)) {
        vf_end(flow, VF_REFUSED); /* the next attempt asks again */
        return;
    }
    if (vf_json_int(reply->value, "exitcode", &code) && code != 0)
        vf_warn(flow, "flushing the guest: the command ended with %lld", (long long)code);
    if (code == 0 && vf_now_us() - flow->flush_round_us > LONG_US &&
        flow->flush_rounds < ROUNDS_MOST)
        start_flush(flow);
    else
        flushed(flow);
}

static void
ask_status(struct vf_flow *flow)
{
    struct json_object *arguments = vf_json_new_object();

    vf_json_add_int(arguments, "pid", flow->flush_pid);
    vf_ask_agent(flow, "guest-exec-status", arguments, on_status);
}

static void
on_started(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_UNKNOWN) {
        vf_expect(flow, reply, "guest-exec");
        return;
    }
    if (reply->outcome == VF_REFUSED || !vf_json_int(reply->value, "pid", &flow->flush_pid)) {
        vf_warn(flow, "flushing the guest: guest-exec: %s",
                reply->outcome == VF_REFUSED ? reply->words : "no pid");
        flushed(flow);
        return;
    }
    ask_status(flow);
}

static void
start_flush(struct vf_flow *flow)
{
    bool automatic = wants(flow, "auto");
    struct json_object *arguments = vf_json_strings("path", automatic ? "sync" : "/bin/sh", NULL);

    if (!automatic) {
        struct json_object *words = vf_json_new_array();

        vf_json_append(words, vf_json_new_string("-c"));
        vf_json_append(words, vf_json_new_string(flow->flush ? flow->flush : flow->vm.flush));
        vf_json_add(arguments, "arg", words);
    }
    flow->flush_rounds++;
    flow->flush_round_us = vf_now_us();
    vf_ask_agent(flow, "guest-exec", arguments, on_started);
}

/* Each attempt asks whether the command has ended: the table's patience is its limit. */
void
vf_step_flush(struct vf_flow *flow)
{
    if (!flow->evidence.flush_sent)
        flow->evidence.flush_sent = vf_now_us();
    if (flow->flush_pid)
        ask_status(flow);
    else
        start_flush(flow);
}

/* The host. */

static void
on_synced(void *data, const struct vf_program_end *end)
{
    struct vf_flow *flow = data;

    (void)end; /* what it could not write, QEMU will, or say why not */
    vf_program_stop(flow->program);
    flow->program = NULL;
    flow->on_files_synced(flow, true);
}

void
vf_sync_files(struct vf_flow *flow, const char *const *paths, size_t count,
              void (*fn)(struct vf_flow *flow, bool synced))
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    flow->on_files_synced = fn;
    if (count > 0)
        flow->program = vf_program_sync(flow->loop, paths, count, on_synced, flow, &error);
    if (flow->program)
        return;
    if (count > 0)
        vf_log(&flow->log, VMFROST_LOG_INFO, "the host's cache is not flushed: %s", error.text);
    fn(flow, false);
}

static void
on_host_flushed(struct vf_flow *flow, bool synced)
{
    if (synced)
        flow->evidence.host_flushed = vf_now_us();
    vf_end(flow, VF_OK);
}

void
vf_step_flush_host(struct vf_flow *flow)
{
    VF_AUTO_FREE const char **paths = vf_alloc((flow->cut_count + 1) * sizeof *paths);
    size_t count = 0;
    bool clean = false;

    if (vf_failed(&flow->error)) /* of the guest's part: the freeze will tell whether it matters */
        vf_absolve(flow);
    if (flow->evidence.flush_sent && !flow->evidence.flushed)
        vf_warn(flow, "the guest has not flushed its caches in time: its freeze may take longer");

    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (!cut->names.top && !cut->base.number)
            continue;
        const char *path = vf_cut_path_before(cut);

        /* The guest's own flush has written most images already. */
        if (flow->evidence.flushed && vf_file_is_clean(path))
            clean = true;
        else
            paths[count++] = path;
    }
    flow->evidence.host_flush = vf_now_us();
    if (clean && count == 0)
        on_host_flushed(flow, true);
    else
        vf_sync_files(flow, paths, count, on_host_flushed);
}
