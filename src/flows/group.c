/* SPDX-License-Identifier: MIT
 *
 * See group.h for the rules. A member calls in when it comes to a meeting; when the last one has
 * come, all go on in one turn of the loop, so that all freezes, all cuts and all thaws are sent one
 * right behind the other, with nothing in between.
 */
#include "flows/group.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "store/groups.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

/* In their order. */
enum meeting { MEET_NONE, MEET_PREPARED, MEET_READY, MEET_FROZEN, MEET_CUT, MEET_COMMIT };

struct vf_group;

struct vf_member {
    struct vf_group *group;
    struct vf_flow *flow; /* NULL: it has ended */
    enum meeting reached;
    bool waiting;
    bool frozen;   /* as it was before the cut */
    bool gives_up; /* because of another one */
};

struct vf_group {
    char id[17];
    struct vf_store *store;
    struct json_object *names; /* of the VMs, as they were given */
    struct json_object *known; /* the record's "group", once it is committed */
    bool failed, committed;
    bool quiet;    /* some may be frozen: nobody is told anything */
    ev_timer turn; /* never started: fed when somebody may go on */
    size_t left;   /* members that have not ended */
    size_t count;
    struct vf_member members[];
};

/* Waiting for each other. */

static bool
all_reached(const struct vf_group *group, enum meeting meeting)
{
    for (size_t i = 0; i < group->count; i++)
        if (group->members[i].reached < meeting)
            return false;
    return true;
}

static bool
may_go_on(const struct vf_member *member)
{
    switch (member->reached) {
    case MEET_NONE:
        break;
    case MEET_PREPARED:
    case MEET_READY:
    case MEET_FROZEN:
    case MEET_CUT:
        return all_reached(member->group, member->reached);
    case MEET_COMMIT:
        return member->group->committed;
    }
    return false;
}

/* In which order those that may go on do: a thaw waits for nothing, and turning the names of a VM
 * that is stopped takes its time from the cuts of those that run. */
static int
rank(const struct vf_member *member)
{
    unsigned conditions = member->flow->engine.conditions;

    return conditions & VF_IF_AGENT ? 0 : conditions & VF_IF_STOPPED ? 2 : 1;
}

static void
tell_all(struct vf_group *group)
{
    group->quiet = false;
    for (size_t i = 0; i < group->count; i++)
        if (group->members[i].flow)
            vf_tell_queued(group->members[i].flow);
}

static void
let_in(struct vf_flow *flow)
{
    vf_end(flow, VF_OK);
}

/* From the loop, so that no step runs. */
static void
go_on(struct ev_loop *loop, ev_timer *watcher, int revents)
{
    struct vf_group *group = watcher->data;
    bool thaws = group->quiet && all_reached(group, MEET_CUT);

    (void)loop;
    (void)revents;
    for (int now = 0; now <= 2; now++)
        for (size_t i = 0; i < group->count; i++) {
            struct vf_member *member = &group->members[i];

            if (!member->waiting || rank(member) != now || !may_go_on(member))
                continue;
            member->waiting = false;
            /* What comes next keeps the loop busy: not for all at a time. */
            if (member->reached == MEET_PREPARED && !vf_gate_enter(member->flow, let_in))
                continue;
            vf_end(member->flow, VF_OK);
        }
    if (thaws)
        tell_all(group);
}

static void
meet(struct vf_flow *flow, enum meeting meeting)
{
    struct vf_member *member = flow->member;

    member->reached = meeting;
    member->waiting = true;
    vf_gate_leave(flow); /* its place is for who can go on */
    if (may_go_on(member))
        ev_feed_event(flow->loop, &member->group->turn, EV_CUSTOM);
}

void
vf_step_group_prepared(struct vf_flow *flow)
{
    vf_facts_forget(flow); /* verify looks again */
    meet(flow, MEET_PREPARED);
}

/* They are frozen for as long as the most impatient of them may be. */
static void
share_limit(struct vf_group *group)
{
    int64_t least_ms = INT64_MAX;

    for (size_t i = 0; i < group->count; i++) {
        const struct vf_engine *engine = &group->members[i].flow->engine;

        if ((engine->conditions & VF_IF_AGENT) && engine->frozen_limit_ms < least_ms)
            least_ms = engine->frozen_limit_ms;
    }
    for (size_t i = 0; i < group->count; i++)
        if (group->members[i].flow->engine.conditions & VF_IF_AGENT)
            group->members[i].flow->engine.frozen_limit_ms = least_ms;
}

void
vf_step_group_ready(struct vf_flow *flow)
{
    flow->member->reached = MEET_READY;
    if (all_reached(flow->member->group, MEET_READY)) {
        share_limit(flow->member->group);
        flow->member->group->quiet = true;
    }
    meet(flow, MEET_READY);
}

void
vf_step_group_frozen(struct vf_flow *flow)
{
    flow->member->frozen = flow->engine.conditions & VF_IF_AGENT;
    meet(flow, MEET_FROZEN);
}

/* Its disks are cut, and its names turned. */
void
vf_step_group_cut(struct vf_flow *flow)
{
    meet(flow, MEET_CUT);
}

/* All or nothing. */

/* As far as this one is concerned, no image holds what was written after its cut. */
static bool
stood_still(const struct vf_member *member)
{
    const struct vf_evidence *evidence = &member->flow->evidence;

    return !evidence->disturbed && evidence->frozen_count > 0 &&
           evidence->frozen_count == evidence->thawed_count;
}

/* What the members' records say. All of them wait for this. */
static struct json_object *
sum_up(const struct vf_group *group)
{
    struct json_object *known = vf_json_strings("id", group->id, NULL);
    struct json_object *unfrozen = vf_json_new_array();
    int64_t first_us = INT64_MAX, last_us = 0;
    bool one_instant = true;

    for (size_t i = 0; i < group->count; i++) {
        const struct vf_member *member = &group->members[i];
        const struct vf_evidence *evidence = &member->flow->evidence;

        if (member->frozen)
            one_instant &= stood_still(member);
        else if (!(member->flow->engine.conditions & VF_IF_STOPPED))
            vf_json_append(unfrozen, vf_json_new_string(member->flow->vm.name));
        first_us = evidence->cut_sent < first_us ? evidence->cut_sent : first_us;
        last_us = evidence->cut > last_us ? evidence->cut : last_us;
    }
    one_instant &= vf_json_length(unfrozen) < 2;
    vf_json_add(known, "members", json_object_get(group->names));
    vf_json_add(known, "unfrozen", unfrozen);
    vf_json_add_bool(known, "oneInstant", one_instant);
    vf_json_add_int(known, "spreadUs", last_us - first_us);
    return known;
}

static bool
may_commit(const struct vf_group *group)
{
    for (size_t i = 0; i < group->count; i++)
        if (!vf_engine_may_commit(&group->members[i].flow->engine))
            return false;
    return true;
}

static bool
commit(struct vf_group *group, struct vmfrost_error *error)
{
    group->known = sum_up(group);
    if (!vf_group_mark(group->store, group->id, group->known, error))
        return false;
    group->committed = true;
    for (size_t i = 0; i < group->count; i++)
        vf_engine_commit(&group->members[i].flow->engine, VF_OWE_FINISH);
    return true;
}

/* The last one to come makes the mark. Whose time is up is ended by its engine right after this,
 * and takes the others along. */
void
vf_step_group_commit(struct vf_flow *flow)
{
    struct vf_group *group = flow->member->group;
    struct vmfrost_error error = {.code = VMFROST_OK};

    flow->member->reached = MEET_COMMIT;
    if (all_reached(group, MEET_COMMIT) && may_commit(group)) {
        vf_test_point(flow, "group-commit.all");
        if (!commit(group, &error)) {
            vf_note_error(flow, &error);
            vf_end(flow, VF_REFUSED);
            return;
        }
        vf_test_point(flow, "group-commit.marked");
    }
    meet(flow, MEET_COMMIT);
}

void
vf_group_abandon(struct vf_flow *flow)
{
    if (!flow->member)
        return;
    flow->member->waiting = false;
    if (flow->gate_place.at == VF_GATE_WAITING)
        vf_gate_leave(flow);
}

/* One that could not even begin may have a reason of its own. */
static void
give_up(struct vf_member *member, const char *culprit, const struct vmfrost_error *error)
{
    struct vf_flow *flow = member->flow;
    bool begun = flow->engine.step != VF_STEP_END;

    member->gives_up = true;
    if (vf_failed(&flow->error) && begun)
        vf_absolve(flow); /* of an attempt that would have been repeated */
    if (!vf_failed(&flow->error)) {
        bool told = error->code == VMFROST_UNVERIFIED || error->code == VMFROST_MAY_BE_FROZEN;

        vf_note(flow, told ? VMFROST_FAILED : error->code, "%s of the same group failed: %s",
                culprit, error->text);
        vf_advise(flow, "%s", error->next);
    }
    if (member->waiting) {
        member->waiting = false;
        vf_end(flow, VF_REFUSED);
    } else {
        vf_flow_cancel(flow);
    }
}

void
vf_group_failed(struct vf_flow *flow)
{
    if (!flow->member)
        return;
    struct vf_group *group = flow->member->group;

    if (group->failed || group->committed)
        return;
    struct vmfrost_error error = vf_cause(flow);

    group->failed = true;
    for (size_t i = 0; i < group->count; i++)
        if (group->members[i].flow && group->members[i].flow != flow)
            give_up(&group->members[i], flow->vm.name ? flow->vm.name : flow->vm_name, &error);
    tell_all(group);
}

bool
vf_group_is_quiet(const struct vf_flow *flow)
{
    return flow->member && flow->member->group->quiet;
}

bool
vf_group_gave_up(const struct vf_flow *flow)
{
    return flow->member && flow->member->gives_up;
}

/* Life cycle. */

void
vf_group_leave(struct vf_flow *flow)
{
    if (!flow->member)
        return;
    struct vf_group *group = flow->member->group;

    flow->member->flow = NULL;
    flow->member = NULL;
    if (--group->left)
        return;
    ev_clear_pending(flow->loop, &group->turn);
    if (group->committed)
        vf_group_marks_sweep(group->store);
    json_object_put(group->names);
    json_object_put(group->known);
    free(group);
}

static int
by_folder(const void *a, const void *b)
{
    const struct vf_flow *const *x = a, *const *y = b;

    return strcmp((*x)->vm.folder ? (*x)->vm.folder : "", (*y)->vm.folder ? (*y)->vm.folder : "");
}

/* Two names may lead to one VM. */
static void
refuse_twins(struct vf_flow **sorted, size_t count)
{
    for (size_t i = 1; i < count; i++)
        if (sorted[i]->vm.folder && sorted[i - 1]->vm.folder &&
            strcmp(sorted[i]->vm.folder, sorted[i - 1]->vm.folder) == 0)
            vf_fail(&sorted[i]->error, VMFROST_USAGE, "%s is named twice", sorted[i]->vm_name);
}

void
vf_group_start(struct vf_flow **flows, size_t count)
{
    struct vf_group *group = vf_alloc(sizeof *group + count * sizeof *group->members);
    VF_AUTO_FREE struct vf_flow **sorted = vf_alloc(count * sizeof *sorted);
    bool good = true;

    assert(count > 0);
    vf_random_hex(group->id);
    group->store = flows[0]->store;
    group->names = vf_json_new_array();
    group->count = group->left = count;
    ev_timer_init(&group->turn, go_on, 0, 0);
    group->turn.data = group;
    for (size_t i = 0; i < count; i++) {
        const char *name = flows[i]->vm.name ? flows[i]->vm.name : flows[i]->vm_name;

        group->members[i] = (struct vf_member){.group = group, .flow = flows[i]};
        flows[i]->member = &group->members[i];
        flows[i]->engine.conditions |= VF_IF_GROUP;
        flows[i]->wall_offset_us = flows[0]->wall_offset_us; /* their times can be compared */
        vf_json_append(group->names, vf_json_new_string(name));
        sorted[i] = flows[i];
    }
    qsort(sorted, count, sizeof *sorted, by_folder);
    refuse_twins(sorted, count);
    for (size_t i = 0; i < count; i++)
        good &= !vf_failed(&flows[i]->error);
    /* In this order: of two groups with common members one gets all of them. */
    for (size_t i = 0; good && i < count; i++)
        good = vf_flow_lock(sorted[i]);
    for (size_t i = 0; i < count; i++) {
        if (vf_failed(&flows[i]->error))
            vf_group_failed(flows[i]);
        vf_flow_start(flows[i]);
    }
}

/* For the journal and the record. */

const char *
vf_group_id(const struct vf_flow *flow)
{
    return flow->member ? flow->member->group->id : NULL;
}

struct json_object *
vf_group_json(const struct vf_flow *flow)
{
    if (!flow->member)
        return NULL;
    const struct vf_group *group = flow->member->group;

    if (group->committed)
        return json_object_get(group->known);
    struct json_object *known = vf_json_strings("id", group->id, NULL);

    vf_json_add(known, "members", json_object_get(group->names));
    return known;
}

/* Recovery. */

static const char *
id_in_journal(const struct vf_flow *flow)
{
    return vf_json_string(vf_json_at(flow->journal_lines, 0), "group");
}

enum vf_group_fate
vf_group_fate(const struct vf_flow *flow)
{
    const char *id = id_in_journal(flow);

    if (!id)
        return VF_FATE_OWN;
    return vf_group_is_marked(flow->store, id) ? VF_FATE_FINISH : VF_FATE_UNDO;
}

void
vf_group_recall(struct vf_flow *flow)
{
    const char *id = id_in_journal(flow);
    struct json_object *mark = id ? vf_group_mark_load(flow->store, id) : NULL;

    if (mark)
        vf_json_add(flow->record, "group", mark);
}
