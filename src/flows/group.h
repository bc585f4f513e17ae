/* SPDX-License-Identifier: MIT
 *
 * A group: snapshots of several VMs at one instant, all of them or none.
 *
 * Each member is an operation of its own, with the same table as ever, its own guard and its own
 * journal. In the steps "group-..." of that table it waits for the others:
 *
 *  - prepared: nobody flushes before all have their overlays, so that what was flushed is fresh;
 *  - ready: nobody freezes before all can;
 *  - frozen: nobody is cut before all are frozen that will be;
 *  - cut: nobody thaws before all are cut;
 *  - commit: no snapshot is one before all are cut and verified. Then a mark is made durable, from
 *    which on there is no way back for any of them.
 *
 * So a write that was made after somebody's cut, or that was caused by one, is in no image, even if
 * one of the members that run is not frozen (no agent, by request): it is cut while the others
 * stand still. With more than one of those this does not hold among them: the records say so
 * ("oneInstant").
 *
 * Guarantees: if one fails, is cancelled, or runs out of time before the mark, all unwind, each
 * with its thaw first, and each record names the one that failed and why. If vmfrost dies, recovery
 * of each member decides by the mark alone: with it forward, without it back.
 */
#ifndef VF_FLOWS_GROUP_H
#define VF_FLOWS_GROUP_H

#include "flows/flow.h"

/* Makes members of a group of these flows, which have not begun, and lets them begin. Their locks
 * are taken in an order that is the same for everybody. The group goes with its last member. */
void vf_group_start(struct vf_flow **flows, size_t count);

/* What flow.c and tell.c tell of any flow; nothing if it is no member. */

/* It is on its way back, or will not even begin. */
void vf_group_failed(struct vf_flow *flow);
/* What it waits for is given up. */
void vf_group_abandon(struct vf_flow *flow);
/* It ends. */
void vf_group_leave(struct vf_flow *flow);
/* Some of the group may be frozen now: what there is to tell waits. */
bool vf_group_is_quiet(const struct vf_flow *flow);
/* It was ended because another member failed. */
bool vf_group_gave_up(const struct vf_flow *flow);

/* For the journal and the record. */

/* NULL: no member. */
const char *vf_group_id(const struct vf_flow *flow);
/* The record's "group", with what is known now. Owned by the caller; NULL: none. */
struct json_object *vf_group_json(const struct vf_flow *flow);

/* For recovery: what the journal that was read says. */

enum vf_group_fate {
    VF_FATE_OWN,    /* of no group */
    VF_FATE_FINISH, /* all of its group have their snapshots */
    VF_FATE_UNDO,   /* they do not, and will not */
};
enum vf_group_fate vf_group_fate(const struct vf_flow *flow);
/* Takes over what the mark says of the group for the record. */
void vf_group_recall(struct vf_flow *flow);

#endif
