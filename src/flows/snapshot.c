/* SPDX-License-Identifier: MIT
 *
 * Taking a snapshot: the table. Read it downwards for what happens, and `undos` for what happens
 * when something goes wrong anywhere.
 *
 * A VM that is not running goes the same way: its overlays are made by a storage daemon that holds
 * the locks of its images, and turning the names is the cut.
 *
 * Up to "guard" the guest notices nothing. "freeze" to "thaw" is the frozen window. "verify" and
 * "record" decide whether it was worth anything.
 */
#include "flows/tables.h"

#include "flows/steps.h"

#define MINUTE_MS (60 * 1000)
#define HOUR_MS (60 * MINUTE_MS)

enum step {
    END = VF_STEP_END,
    CONNECT,
    LOOK,
    PLAN,
    AGENT,
    ACCEPT,
    OVERLAYS,
    REHEARSE,
    FLUSH,
    MOUNTS,
    FLUSH_HOST,
    GUARD,
    FREEZE,
    CUT,
    FLIP,
    THAW,
    VERIFY,
    RECORD,
    MELT,
    THAW_LATE,
    UNDO_FREEZE,
    UNDO_DOUBT,
    UNDO_CUT,
    UNDO_FILES,
    UNDO_RECORD,
    STEP_COUNT,
};

/* The freeze failed, but the user prefers a snapshot without it to none: thaw, then go on. */
static void
melt(struct vf_flow *flow)
{
    flow->engine.conditions &= ~(unsigned)VF_IF_AGENT;
    if (flow->quiesce_failed && vf_failed(&flow->error)) /* of the attempt before this one */
        vf_absolve(flow);
    if (!flow->quiesce_failed) {
        flow->quiesce_failed = true;
        if (!vf_failed(&flow->error)) /* nobody refused: time was up */
            vf_note(flow, VMFROST_FAILED,
                    "the frozen limit of %.4g s passed before the freeze was done",
                    (double)flow->engine.frozen_limit_ms / 1e3);
        vf_absolve(flow);
    }
    vf_step_thaw_again(flow);
}

/* The frozen limit bounds a freeze and its cut; their own budgets only catch what has no limit. */
static const struct vf_step steps[STEP_COUNT] = {
    [CONNECT] = {.name = "connect",
                 .title = "Connecting to QEMU",
                 .start = vf_step_reach,
                 .budget_ms = 10000,
                 .next = LOOK},
    [LOOK] = {.name = "look",
              .title = "Looking at the VM",
              .start = vf_step_look,
              .budget_ms = 10000,
              .next = PLAN},
    [PLAN] = {.name = "plan",
              .title = "Choosing disks",
              .start = vf_step_plan,
              .budget_ms = 10000,
              .next = AGENT},
    [AGENT] = {.name = "agent",
               .title = "Asking the guest agent",
               .start = vf_step_agent,
               .budget_ms = 5000,
               .next = ACCEPT,
               .otherwise = ACCEPT,
               .otherwise_when = VF_IF_PREFER,
               .when = VF_IF_ONLINE},
    [ACCEPT] = {.name = "accept",
                .title = "Writing the journal",
                .start = vf_step_accept,
                .owes = VF_OWE_RECORD,
                .sticky = VF_OWE_RECORD,
                .budget_ms = MINUTE_MS,
                .next = OVERLAYS},
    [OVERLAYS] = {.name = "overlays",
                  .title = "Creating overlays",
                  .start = vf_step_overlays,
                  .owes = VF_OWE_FILES,
                  .sticky = VF_OWE_FILES,
                  .budget_ms = 2 * MINUTE_MS,
                  .next = REHEARSE},
    [REHEARSE] = {.name = "rehearse",
                  .title = "Rehearsing the cut",
                  .start = vf_step_rehearse,
                  .budget_ms = MINUTE_MS,
                  .next = FLUSH,
                  .when = VF_IF_ONLINE},
    [FLUSH] = {.name = "flush",
               .title = "Flushing the guest's caches",
               .start = vf_step_flush,
               .budget_ms = 5000,
               .patience_ms = 10000,
               .pause_ms = 20,
               .next = MOUNTS,
               .otherwise = MOUNTS,
               .when = VF_IF_AGENT | VF_IF_FLUSH},
    [MOUNTS] = {.name = "mounts",
                .title = "Choosing file systems",
                .start = vf_step_mounts,
                .budget_ms = 5000,
                .next = FLUSH_HOST,
                .otherwise = FLUSH_HOST,
                .when = VF_IF_AGENT | VF_IF_MOUNTS},
    [FLUSH_HOST] = {.name = "flush-host",
                    .title = "Flushing the host's cache",
                    .start = vf_step_flush_host,
                    .budget_ms = 30000,
                    .next = GUARD,
                    .otherwise = GUARD,
                    .when = VF_IF_ONLINE},
    [GUARD] = {.name = "guard",
               .title = "Starting the guard",
               .start = vf_step_guard,
               .budget_ms = 5000,
               .next = FREEZE,
               .when = VF_IF_ONLINE},
    [FREEZE] = {.name = "freeze",
                .title = "Freezing the guest",
                .start = vf_step_freeze,
                .owes = VF_OWE_THAW,
                .sticky = VF_OWE_THAW,
                .budget_ms = HOUR_MS,
                .next = CUT,
                .otherwise = MELT,
                .otherwise_when = VF_IF_PREFER,
                .when = VF_IF_AGENT,
                .in_window = true},
    [CUT] = {.name = "cut",
             .title = "Cutting the disks",
             .start = vf_step_cut,
             .owes = VF_OWE_CUT | VF_OWE_RESOLVE,
             .pays = VF_OWE_RESOLVE,
             .budget_ms = MINUTE_MS,
             .next = FLIP,
             .in_window = true},
    [FLIP] = {.name = "flip",
              .title = "Turning the names",
              .start = vf_step_flip,
              .budget_ms = MINUTE_MS,
              .next = THAW},
    [THAW] = {.name = "thaw",
              .title = "Thawing the guest",
              .start = vf_step_thaw,
              .pays = VF_OWE_THAW,
              .budget_ms = 15000,
              .next = VERIFY,
              .otherwise = THAW_LATE,
              .when = VF_IF_AGENT},
    [VERIFY] = {.name = "verify",
                .title = "Verifying",
                .start = vf_step_verify,
                .budget_ms = MINUTE_MS,
                .next = RECORD},
    [RECORD] = {.name = "record",
                .title = "Writing the record",
                .start = vf_step_record,
                .pays = VF_OWE_FILES | VF_OWE_CUT | VF_OWE_RECORD,
                .budget_ms = MINUTE_MS,
                .next = END},

    /* Other ways on. */
    [MELT] = {.name = "melt",
              .title = "Thawing after a failed freeze",
              .start = melt,
              .pays = VF_OWE_THAW,
              .budget_ms = 5000,
              .patience_ms = VF_PATIENCE_THAW,
              .pause_ms = 250,
              .next = CUT},
    [THAW_LATE] = {.name = "thaw-late",
                   .title = "Thawing the guest, again",
                   .start = vf_step_thaw_again,
                   .pays = VF_OWE_THAW,
                   .budget_ms = 5000,
                   .patience_ms = VF_PATIENCE_THAW,
                   .pause_ms = 250,
                   .next = VERIFY,
                   .otherwise = VERIFY},

    /* The way back. */
    [UNDO_FREEZE] = {.name = "undo-freeze",
                     .title = "Thawing the guest",
                     .start = vf_step_thaw_again,
                     .pays = VF_OWE_THAW,
                     .budget_ms = 5000,
                     .patience_ms = VF_PATIENCE_THAW,
                     .pause_ms = 250},
    [UNDO_DOUBT] = {.name = "undo-doubt",
                    .title = "Finding out whether the disks were cut",
                    .start = vf_step_resolve,
                    .pays = VF_OWE_RESOLVE,
                    .budget_ms = 30000,
                    .patience_ms = 2 * MINUTE_MS,
                    .pause_ms = 1000},
    [UNDO_CUT] = {.name = "undo-cut",
                  .title = "Merging the overlays back",
                  .start = vf_step_merge,
                  .pays = VF_OWE_CUT,
                  .budget_ms = HOUR_MS,
                  .patience_ms = MINUTE_MS,
                  .pause_ms = 1000},
    [UNDO_FILES] = {.name = "undo-files",
                    .title = "Removing what was prepared",
                    .start = vf_step_undo_files,
                    .pays = VF_OWE_FILES,
                    .budget_ms = MINUTE_MS,
                    .patience_ms = 5000,
                    .pause_ms = 250},
    [UNDO_RECORD] = {.name = "undo-record",
                     .title = "Writing the record",
                     .start = vf_step_undo_record,
                     .pays = VF_OWE_RECORD,
                     .budget_ms = MINUTE_MS},
};

/* A frozen guest first. What QEMU really did before anything is undone, and nothing that may be
 * the live disk is removed. */
static const struct vf_undo undos[] = {
    {VF_OWE_THAW, UNDO_FREEZE, 0},          {VF_OWE_RESOLVE, UNDO_DOUBT, 0},
    {VF_OWE_CUT, UNDO_CUT, VF_OWE_RESOLVE}, {VF_OWE_FILES, UNDO_FILES, VF_OWE_RESOLVE | VF_OWE_CUT},
    {VF_OWE_RECORD, UNDO_RECORD, 0},
};

const struct vf_table vf_snapshot_table = {
    .operation = "snapshot",
    .steps = steps,
    .step_count = STEP_COUNT,
    .undos = undos,
    .undo_count = sizeof undos / sizeof *undos,
    .first = CONNECT,
    .window_debt = VF_OWE_THAW,
};
