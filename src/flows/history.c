/* SPDX-License-Identifier: MIT
 *
 * What the journal of an operation that died says of it.
 *
 * It tells what was intended; what really happened is asked of QEMU, the descriptors and the
 * folders by whoever reads it.
 */
#include "flows/history.h"

#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"

struct json_object *
vf_history_last(const struct vf_flow *flow, const char *state)
{
    struct json_object *found = NULL;

    for (size_t i = 0; i < vf_json_length(flow->journal_lines); i++) {
        struct json_object *line = vf_json_at(flow->journal_lines, i);
        const char *its_state = vf_json_string(line, "state");

        if (its_state && strcmp(its_state, state) == 0)
            found = line;
    }
    return found;
}

size_t
vf_history_index(const struct vf_flow *flow, const char *state)
{
    size_t found = 0;

    for (size_t i = 1; i < vf_json_length(flow->journal_lines); i++) {
        const char *its_state = vf_json_string(vf_json_at(flow->journal_lines, i), "state");

        if (its_state && strcmp(its_state, state) == 0)
            found = i;
    }
    return found;
}

bool
vf_history_was(const struct vf_flow *flow, const char *operation)
{
    const char *its = vf_json_string(vf_json_at(flow->journal_lines, 0), "operation");

    return its && strcmp(its, operation) == 0;
}

bool
vf_history_was_offline(const struct vf_flow *flow)
{
    return vf_json_bool(vf_json_at(flow->journal_lines, 0), "offline", false);
}

bool
vf_history_daemon_lives(const struct vf_flow *flow)
{
    return vf_history_was_offline(flow) && !vf_process_gone(flow->qemu);
}

bool
vf_history_is_rid_of_daemon(struct vf_flow *flow)
{
    if (!vf_history_daemon_lives(flow))
        return true;
    vf_note(flow, VMFROST_FAILED,
            "the %s (process %d) of the operation that was interrupted has not ended yet",
            VF_DAEMON_NAME, (int)flow->qemu.pid);
    vf_advise(flow, "wait for its end, then run vmfrost recover %s again", flow->vm.name);
    return false;
}

bool
vf_history_thaw_owed(const struct vf_flow *flow)
{
    size_t freezing = vf_history_index(flow, "freezing");

    return freezing > vf_history_index(flow, "thawed") &&
           freezing > vf_history_index(flow, "guard-thawed");
}

bool
vf_history_holds(const struct vf_flow *flow)
{
    return vf_history_was(flow, "freeze") && vf_history_last(flow, "held") &&
           vf_history_thaw_owed(flow) && vf_history_guard_lives(flow);
}

struct vf_process
vf_history_guard(const struct vf_flow *flow)
{
    struct json_object *line = vf_history_last(flow, "freezing");
    int64_t pid = 0, started = 0;

    if (!line) /* of a restore, which freezes nothing */
        line = vf_history_last(flow, "halting");
    if (!vf_json_int(line, "guard", &pid) || !vf_json_int(line, "guardStarted", &started))
        return (struct vf_process){0, 0};
    return (struct vf_process){(pid_t)pid, (uint64_t)started};
}

bool
vf_history_guard_lives(const struct vf_flow *flow)
{
    return !vf_process_gone(vf_history_guard(flow));
}

/* The images are called as the operation calls them: else the journal is another snapshot's, or
 * nobody's. `name` NULL: of a restore that keeps nothing. */
static bool
is_of(const struct vf_flow *flow, const struct vf_cut *cut, const char *name)
{
    const char *overlay = vf_name_of(cut->names.overlay);

    if (cut->naming == VF_NAMING_NEW_FILE)
        return strchr(overlay, '+');
    /* What a deletion merges may be known by the name that a snapshot's image once had. */
    bool known = vf_history_was(flow, "delete") && strchr(overlay, '@') &&
                 !vf_is_an_image(flow, cut->names.overlay);
    VF_AUTO_FREE char *sealed =
        name ? vf_sealed_name(cut->names.top, name) : vf_printf("%s.old", cut->names.overlay);

    return (known || vf_is_hidden_link(overlay)) && strcmp(sealed, cut->names.sealed) == 0;
}

static bool
adopt_cuts(struct vf_flow *flow, struct json_object *first)
{
    struct json_object *prepared = vf_history_last(flow, "prepared");
    const char *name = vf_json_string(first, vf_history_was(flow, "restore") ? "keep" : "snapshot");

    if (!vf_cuts_parse(flow, vf_json_array(prepared ? prepared : first, "cuts")))
        return false;
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!is_of(flow, &flow->cuts[i], name))
            return false;
    return true;
}

bool
vf_history_adopt(struct vf_flow *flow)
{
    struct json_object *first = vf_json_at(flow->journal_lines, 0);
    const char *id = vf_json_string(first, "id");
    const char *agent = vf_json_string(first, "agent");
    const char *port_id = vf_json_string(first, "agentPortId");
    const char *snapshot = vf_json_string(first, "snapshot");
    int64_t pid = 0, started = 0;

    if (!id || strlen(id) != 16 || strspn(id, "0123456789abcdef") != 16 || !adopt_cuts(flow, first))
        return false;
    memcpy(flow->id, id, sizeof flow->id);
    if (agent)
        flow->agent.socket = vf_strdup(agent);
    if (port_id)
        flow->agent.port_id = vf_strdup(port_id);
    if (snapshot)
        flow->snapshot_name = vf_strdup(snapshot);
    vf_json_int(first, "qemu", &pid);
    vf_json_int(first, "qemuStarted", &started);
    flow->qemu = (struct vf_process){(pid_t)pid, (uint64_t)started};
    return true;
}

bool
vf_history_left_stopped(const struct vf_flow *flow)
{
    size_t flip = vf_history_index(flow, "merge-flip");

    if (vf_history_index(flow, "graft-halted") > vf_history_index(flow, "graft-gone-on"))
        return true;
    return flip && flip > vf_history_index(flow, "merge-running") &&
           flip > vf_history_index(flow, "merged") &&
           vf_json_bool(vf_history_last(flow, "merge-flip"), "running", false);
}

bool
vf_history_merge_had_begun(const struct vf_flow *flow)
{
    return vf_history_index(flow, "merge-flip") || vf_history_index(flow, "merge-running") ||
           vf_history_index(flow, "merge-final");
}

bool
vf_cut_is_flipped(const struct vf_cut *cut)
{
    return cut->naming == VF_NAMING_FLIP && cut->overlay.number &&
           vf_inode_equal(vf_inode_of(cut->names.top), cut->overlay);
}

const char *
vf_history_merge_state(const struct vf_flow *flow, const struct vf_cut *cut)
{
    const char *found = "";

    for (size_t i = 1; i < vf_json_length(flow->journal_lines); i++) {
        struct json_object *line = vf_json_at(flow->journal_lines, i);
        const char *disk = vf_json_string(line, "disk"), *state = vf_json_string(line, "state");

        if (disk && state && strcmp(disk, cut->name) == 0)
            found = state;
    }
    return found;
}

bool
vf_history_merge_was_final(const struct vf_flow *flow, const struct vf_cut *cut)
{
    const char *state = vf_history_merge_state(flow, cut);

    if (strcmp(state, "merged") == 0)
        return !vf_cut_is_flipped(cut);
    if (cut->naming == VF_NAMING_NEW_FILE)
        return strcmp(state, "merge-turned") == 0;
    return strcmp(state, "merge-final") == 0 && !vf_cut_is_flipped(cut);
}

bool
vf_history_overlay_counts(const struct vf_flow *flow, const struct vf_cut *cut)
{
    return !vf_history_merge_was_final(flow, cut) &&
           (vf_cut_is_flipped(cut) || vf_overlay_has_data(cut));
}

bool
vf_cut_base_is_live(const struct vf_cut *cut)
{
    VF_AUTO_JSON struct json_object *qemus = vf_process_find_qemus();

    for (size_t i = 0; i < vf_json_length(qemus); i++) {
        struct vf_opened opened;
        int64_t pid = 0;

        if (vf_json_int(vf_json_at(qemus, i), "pid", &pid) && cut->base.number &&
            vf_process_opened((pid_t)pid, cut->base, &opened) && opened.read_write)
            return true;
    }
    return false;
}
