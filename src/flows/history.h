/* SPDX-License-Identifier: MIT
 *
 * What the journal of an operation that died says of it. The lines are flow->journal_lines.
 */
#ifndef VF_FLOWS_HISTORY_H
#define VF_FLOWS_HISTORY_H

#include "flows/flow.h"

/* The last line with this state; borrowed; NULL: none. */
struct json_object *vf_history_last(const struct vf_flow *flow, const char *state);
/* Its index; 0: none (the first line has no state). */
size_t vf_history_index(const struct vf_flow *flow, const char *state);
bool vf_history_was(const struct vf_flow *flow, const char *operation);
/* A freeze was sent, or was about to be, and no thaw is confirmed since. */
bool vf_history_thaw_owed(const struct vf_flow *flow);
/* The guest is frozen on purpose, by hand, and its guard will thaw it. */
bool vf_history_holds(const struct vf_flow *flow);
/* Takes over who, what and which images the first lines name; false: they cannot be understood. */
bool vf_history_adopt(struct vf_flow *flow);
/* The VM was not running: the process in the journal is the storage daemon, which ends with whoever
 * started it. */
bool vf_history_was_offline(const struct vf_flow *flow);
/* It takes a moment to end. */
bool vf_history_daemon_lives(const struct vf_flow *flow);
/* False, and said why: it has not ended in all that moment. */
bool vf_history_is_rid_of_daemon(struct vf_flow *flow);
/* {0, 0}: none. */
struct vf_process vf_history_guard(const struct vf_flow *flow);
bool vf_history_guard_lives(const struct vf_flow *flow);

/* A stop of ours that nobody has undone. */
bool vf_history_left_stopped(const struct vf_flow *flow);
/* A merge of this operation had begun: from its first byte on, an image is no snapshot any more. */
bool vf_history_merge_had_begun(const struct vf_flow *flow);
/* The last that is said of this disk's merge; "" if nothing. */
const char *vf_history_merge_state(const struct vf_flow *flow, const struct vf_cut *cut);
/* The base is the live image: all of the overlay was in it when its name was turned. */
bool vf_history_merge_was_final(const struct vf_flow *flow, const struct vf_cut *cut);
/* The overlay is, or may be, what the guest has written last. */
bool vf_history_overlay_counts(const struct vf_flow *flow, const struct vf_cut *cut);

/* And what is seen, where QEMU cannot be asked. */

/* The disk's name leads to its overlay. */
bool vf_cut_is_flipped(const struct vf_cut *cut);
/* Some QEMU writes to the base by now: one that was started again before the name was flipped. What
 * the overlay holds is not the disk's state any more. */
bool vf_cut_base_is_live(const struct vf_cut *cut);

#endif
