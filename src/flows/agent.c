/* SPDX-License-Identifier: MIT
 *
 * The step that finds out whether a guest agent is there and may freeze. It changes nothing.
 *
 * A port that is closed means that no agent runs, which is known without waiting. A port that is
 * open and an agent that does not answer is an agent in trouble, never "no agent".
 */
#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

/* VSS releases its hold after 10 seconds, and tells so only at the thaw. */
#define FROZEN_LIMIT_WINDOWS_MS 8000
#define FROZEN_LIMIT_MS 30000

static void
on_opened(void *data, const struct vf_reply *reply)
{
    struct vf_flow *flow = data;
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (reply->outcome != VF_OK ||
        vf_peer_is_trusted(flow, vf_qga_fd(flow->qga), flow->agent.socket, &error)) {
        flow->on_agent(flow, reply);
        return;
    }
    VF_AUTO_FREE char *words = vf_printf("%s (%s)", error.text, error.next);
    const struct vf_reply refused = {VF_UNKNOWN, NULL, words};

    vf_qga_close(flow->qga);
    flow->on_agent(flow, &refused);
}

void
vf_agent_open(struct vf_flow *flow, vf_flow_fn *fn)
{
    flow->on_agent = fn;
    vf_qga_open(flow->qga, flow->agent.socket, on_opened, flow);
}

static void
say(struct vf_flow *flow, const char *message)
{
    if (!flow->agent.message)
        flow->agent.message = vf_strdup(message);
}

/* Without an agent: an error where one is required, else best effort. */
static void
absent(struct vf_flow *flow, const char *message)
{
    say(flow, message);
    if (flow->options.quiesce == VMFROST_QUIESCE_REQUIRE) {
        vf_note(flow, VMFROST_UNREACHABLE, "no guest agent: %s", flow->agent.message);
        vf_advise(flow, "start qemu-ga in the guest, or allow a crash-consistent snapshot with "
                        "--quiesce=auto");
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_end(flow, VF_OK);
}

static void
ready(struct vf_flow *flow)
{
    int64_t limit_ms = flow->options.frozen_limit_ms;

    if (!limit_ms)
        limit_ms = flow->vm.frozen_limit_ms;
    if (!limit_ms)
        limit_ms =
            flow->agent.windows || flow->vm.windows ? FROZEN_LIMIT_WINDOWS_MS : FROZEN_LIMIT_MS;
    flow->engine.frozen_limit_ms = limit_ms;
    flow->engine.conditions |= VF_IF_AGENT;
    if (vf_flush_wanted(flow))
        flow->engine.conditions |= VF_IF_FLUSH;
    if (vf_mounts_wanted(flow))
        flow->engine.conditions |= VF_IF_MOUNTS;
    vf_end(flow, VF_OK);
}

static void
on_os(struct vf_flow *flow, const struct vf_reply *reply)
{
    const char *id = reply->outcome == VF_OK ? vf_json_string(reply->value, "id") : NULL;

    if (reply->outcome == VF_UNKNOWN) {
        vf_expect(flow, reply, "guest-get-osinfo");
        return;
    }
    flow->agent.windows = id && strcmp(id, "mswindows") == 0;
    ready(flow);
}

static void
on_status(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "guest-fsfreeze-status"))
        return;
    const char *status = vf_json_text(reply->value);

    if (!status || strcmp(status, "thawed") != 0) {
        vf_note(flow, VMFROST_FAILED, "the guest's file systems are %s already",
                status && strcmp(status, "frozen") == 0 ? "frozen" : "in an unknown state");
        vf_advise(flow,
                  "somebody else froze them, or a freeze was never undone: "
                  "`vmfrost thaw %s` thaws",
                  flow->vm.name);
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_ask_agent(flow, "guest-get-osinfo", NULL, on_os);
}

static bool
enabled(struct json_object *info, const char *command)
{
    struct json_object *list = vf_json_array(info, "supported_commands");

    for (size_t i = 0; i < vf_json_length(list); i++) {
        const char *name = vf_json_string(vf_json_at(list, i), "name");

        if (name && strcmp(name, command) == 0)
            return vf_json_bool(vf_json_at(list, i), "enabled", false);
    }
    return false;
}

static void
on_info(struct vf_flow *flow, const struct vf_reply *reply)
{
    static const char *const needed[] = {"guest-fsfreeze-freeze", "guest-fsfreeze-thaw",
                                         "guest-fsfreeze-status"};

    if (!vf_expect(flow, reply, "guest-info"))
        return;
    flow->agent.connected = true;
    flow->agent.can_exec =
        enabled(reply->value, "guest-exec") && enabled(reply->value, "guest-exec-status");
    flow->agent.can_list = enabled(reply->value, "guest-get-fsinfo") &&
                           enabled(reply->value, "guest-fsfreeze-freeze-list");
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        if (enabled(reply->value, needed[i]))
            continue;
        /* While frozen, the agent shows the thaw and the status, but not the freeze. */
        if (i == 0) {
            vf_ask_agent(flow, "guest-fsfreeze-status", NULL, on_status);
            return;
        }
        vf_note(flow, VMFROST_FAILED, "the guest agent does not allow %s", needed[i]);
        vf_advise(flow, "allow it in the agent's configuration, or use --quiesce=skip");
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_ask_agent(flow, "guest-fsfreeze-status", NULL, on_status);
}

static void
on_connected(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "guest agent"))
        return;
    vf_ask_agent(flow, "guest-info", NULL, on_info);
}

/* Sets VF_IF_AGENT if the guest is to be frozen. */
void
vf_step_agent(struct vf_flow *flow)
{
    bool closed = flow->agent.port_known && !flow->agent.port_open;

    if (flow->options.quiesce == VMFROST_QUIESCE_SKIP) {
        say(flow, "not asked (quiesce is skip)");
        vf_end(flow, VF_OK);
    } else if (!flow->agent.socket) {
        absent(flow, "QEMU has no channel for one");
    } else if (closed) {
        absent(flow, "nothing in the guest has the agent's port open");
    } else if (!flow->plan.running && flow->options.quiesce == VMFROST_QUIESCE_PREFER) {
        absent(flow, "the VM is paused, so that its agent cannot answer");
    } else if (!flow->plan.running) {
        vf_note(flow, VMFROST_FAILED, "the VM is in the state \"%s\": its agent cannot answer",
                flow->plan.run_state);
        vf_advise(flow, "let it run, or take a crash-consistent snapshot with --quiesce=skip");
        vf_end(flow, VF_REFUSED);
    } else {
        flow->if_silent =
            flow->agent.taken
                ? "another client is connected to the agent's socket, which QEMU serves one at a "
                  "time: end that one"
                : "is the agent stuck? Try again, or take a crash-consistent snapshot with "
                  "--quiesce=skip";
        vf_agent_open(flow, on_connected);
    }
}
