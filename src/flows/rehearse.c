/* SPDX-License-Identifier: MIT
 *
 * The transaction of a cut, and its rehearsal just before the freeze: the same one, which QEMU is
 * told to abort at its end. So what it would refuse, it refuses while the guest still runs.
 */
#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

/* The words by which QEMU says that all of a transaction would have worked. */
#define REHEARSED "Transaction aborted using Abort action"

/* Of the cuts [first, end). */
static struct json_object *
transaction(const struct vf_flow *flow, size_t first, size_t end, bool rehearsal)
{
    struct json_object *actions = vf_json_new_array(), *arguments = vf_json_new_object();

    for (size_t i = first; i < end + rehearsal; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        struct json_object *action = vf_json_new_object();
        bool last = i == end;

        vf_json_add_string(action, "type",
                           last              ? "abort"
                           : flow->preopened ? "blockdev-snapshot"
                                             : "blockdev-snapshot-sync");
        if (last)
            vf_json_add(action, "data", vf_json_new_object());
        else if (flow->preopened)
            vf_json_add(action, "data",
                        vf_json_strings("node", cut->node, "overlay", cut->overlay_node, NULL));
        else
            vf_json_add(action, "data",
                        vf_json_strings("node-name", cut->node, "snapshot-node-name",
                                        cut->overlay_node, "snapshot-file", cut->names.overlay,
                                        "mode", "existing", NULL));
        vf_json_append(actions, action);
    }
    vf_json_add(arguments, "actions", actions);
    return arguments;
}

struct json_object *
vf_cut_transaction(const struct vf_flow *flow)
{
    return transaction(flow, 0, flow->cut_count, false);
}

/* The disk that QEMU's words are about, if they tell: they name a node or a file. */
static const struct vf_cut *
find_named(const struct vf_flow *flow, const char *words)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        const char *const names[] = {cut->node, cut->overlay_node, cut->names.overlay};

        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            VF_AUTO_FREE char *quoted = vf_printf("'%s'", names[k]);

            if (strstr(words, quoted))
                return cut;
        }
    }
    return flow->cut_count == 1 ? &flow->cuts[0] : NULL;
}

bool
vf_expect_cut(struct vf_flow *flow, const struct vf_reply *reply, const char *what)
{
    const struct vf_cut *cut = reply->outcome == VF_REFUSED ? find_named(flow, reply->words) : NULL;

    if (cut && cut->absent)
        what = "it was unplugged since the disks were chosen";
    return vf_expect(flow, reply, "%s%s%s%s", cut ? "disk " : "", cut ? cut->name : "",
                     cut ? ": " : "", what);
}

#define REFUSES "QEMU refuses this snapshot"

static bool
was_rehearsed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_REFUSED)
        return strcmp(reply->words, REHEARSED) == 0;
    if (reply->outcome == VF_UNKNOWN)
        vf_expect(flow, reply, "rehearsing the cut");
    else
        /* A transaction that ends in "abort" cannot succeed: whoever answers so is no QEMU. */
        vf_refuse(flow, VMFROST_FAILED, "QEMU accepted a transaction that it had to abort");
    return false;
}

static void ask_next_disk(struct vf_flow *flow);

static void
on_one_rehearsed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (was_rehearsed(flow, reply)) {
        flow->at++;
        ask_next_disk(flow);
    } else if (reply->outcome == VF_REFUSED) {
        vf_expect(flow, reply, "disk %s: " REFUSES, flow->cuts[flow->at].name);
    }
}

/* QEMU's words told of no disk: each one is tried alone, until one is refused. */
static void
ask_next_disk(struct vf_flow *flow)
{
    if (flow->at < flow->cut_count)
        vf_ask(flow, "transaction", transaction(flow, flow->at, flow->at + 1, true),
               on_one_rehearsed);
    else
        vf_refuse(flow, VMFROST_FAILED, REFUSES ", but none of its disks alone");
}

static void
on_rehearsed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (was_rehearsed(flow, reply)) {
        vf_end(flow, VF_OK);
    } else if (reply->outcome == VF_REFUSED && find_named(flow, reply->words)) {
        vf_expect_cut(flow, reply, REFUSES);
    } else if (reply->outcome == VF_REFUSED) {
        flow->at = 0;
        ask_next_disk(flow);
    }
}

static void
rehearse(struct vf_flow *flow)
{
    vf_ask(flow, "transaction", transaction(flow, 0, flow->cut_count, true), on_rehearsed);
}

/* While QEMU aborts a transaction, an iothread may go on in the middle: what the guest writes then
 * goes to an overlay that is about to be taken away, and into the snapshot's successor. */
static void
on_iothreads(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_UNKNOWN)
        vf_expect(flow, reply, "query-iothreads");
    else if (reply->outcome == VF_OK && vf_json_length(reply->value) == 0)
        rehearse(flow);
    else
        vf_end(flow, VF_OK);
}

static void
rehearse_if_harmless(struct vf_flow *flow)
{
    if (!flow->plan.run_state || strcmp(flow->plan.run_state, "running") == 0)
        vf_ask(flow, "query-iothreads", NULL, on_iothreads);
    else
        rehearse(flow);
}

static void
on_migration(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct vf_plan_input input = {.migrate = reply->value};
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!vf_expect(flow, reply, "query-migrate"))
        return;
    if (!vf_plan_check_state(&input, &flow->plan, &error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_plug_look(flow, rehearse_if_harmless);
}

static void
on_run_state(struct vf_flow *flow, const struct vf_reply *reply)
{
    const char *state = vf_json_string(reply->value, "status");

    if (!vf_expect(flow, reply, "query-status"))
        return;
    if (state) {
        free(flow->plan.run_state);
        flow->plan.run_state = vf_strdup(state);
    }
    vf_ask(flow, "query-migrate", NULL, on_migration);
}

/* All of the cut but its effect: drains, flushes, opens, checks permissions and locks; not of a VM
 * that runs with iothreads, where the cut itself is the first to tell. That a disk
 * has left its device is none of QEMU's concern, so that is looked for before; nor is that another
 * QEMU has the VM by now, which takes a cut, but lets nobody undo it. */
void
vf_step_rehearse(struct vf_flow *flow)
{
    if (flow->engine.conditions & VF_IF_STOPPED)
        vf_plug_look(flow, rehearse);
    else
        vf_ask(flow, "query-status", NULL, on_run_state);
}
