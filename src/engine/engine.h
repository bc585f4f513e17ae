/* SPDX-License-Identifier: MIT
 *
 * The step engine: one operation is one table of steps.
 *
 * A row says what a step is called, which debts it takes on before its first byte leaves, which
 * ones its success pays, how long it may take, and what comes next. Whatever goes wrong, the engine
 * serves the debts that are open, the most urgent first. So the way back is data, not code,
 * and every sequence of outcomes can be played through in a test, without a socket.
 *
 * Rules:
 *  - vf_engine_complete() is the only way a step ends; enter() the only writer of the step.
 *  - OK pays the step's `pays`. REFUSED clears the debts that this step took on, unless they are
 *    `sticky` (a thaw is owed after a refused freeze: hooks may have run). UNKNOWN keeps them all.
 *  - Going forward, anything but OK leads to `otherwise` where the table has one and its
 *    conditions hold, else the engine keeps the first cause and unwinds.
 *  - Forward steps end at their budget, at the operation's deadline, and, while a step of the
 *    window runs, at the frozen limit. An OK that comes at or after such a moment pays its debts
 *    but is too late: the engine unwinds all the same. Only the last step is never too late:
 *    nothing is left to be undone then.
 *  - A step that `commits` is not even entered when it is too late. From its beginning on there is
 *    no way back: neither deadline nor cancel counts any more, only the steps' own budgets.
 *    A step may also find out by itself that it has come there: vf_engine_commit().
 *  - Unwinding has budgets of its own, minds neither deadline nor cancel, and never ends in a
 *    loop: a debt that cannot be paid within its patience is given up, stays owed, and blocks the
 *    debts that name it in `unless`.
 *
 * The engine knows no clock, no timer, no QEMU: it is given four functions. It has one timer:
 * vf_engine_due() computes its next due time from state, and `arm` is told of it in one place.
 */
#ifndef VF_ENGINE_ENGINE_H
#define VF_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/outcome.h"

/* Step 0 of every table: nothing is left to do. As an `otherwise`: unwind. */
#define VF_STEP_END 0

/* What the steps work on: nothing that the engine knows. */
struct vf_flow;

struct vf_step {
    const char *name;  /* one word: logs, events, records, the test hook */
    const char *title; /* for people */
    void (*start)(struct vf_flow *flow);
    /* There are many rows, so that each member is as small as it can be. */
    uint16_t owes;           /* debts booked on entry */
    uint16_t pays;           /* debts that OK pays */
    uint16_t sticky;         /* of `owes`: stay owed even when the step is refused */
    uint16_t pause_ms;       /* between attempts */
    int32_t budget_ms;       /* of one attempt: 32 bits are 24 days */
    int32_t patience_ms;     /* > 0: new attempts until so long after the first; VF_PATIENCE_THAW */
    uint16_t otherwise_when; /* only if all of these conditions hold */
    uint16_t when;           /* skipped to `next` unless all of these conditions hold */
    unsigned char next;
    unsigned char otherwise; /* after REFUSED or UNKNOWN, going forward */
    bool in_window;          /* the frozen limit counts */
    bool commits;            /* the point of no return: the operation is finished, whatever comes */
};

/* The engine's `thaw_wait_ms`. */
#define VF_PATIENCE_THAW (-1)

struct vf_undo {
    unsigned debt;
    unsigned char step;
    unsigned unless; /* not while one of these is owed */
};

struct vf_table {
    const char *operation;
    const struct vf_step *steps;
    size_t step_count;
    const struct vf_undo *undos; /* the most urgent first */
    size_t undo_count;
    unsigned char first;
    unsigned window_debt; /* the frozen limit counts only while this is owed */
};

/* Why the engine left the way forward. */
enum vf_cause {
    VF_CAUSE_NONE,
    VF_CAUSE_REFUSED,
    VF_CAUSE_UNKNOWN, /* also: the step's budget */
    VF_CAUSE_DEADLINE,
    VF_CAUSE_FROZEN_LIMIT,
    VF_CAUSE_CANCELLED,
};

enum vf_step_state {
    VF_STEP_STARTED,
    VF_STEP_DONE,
    VF_STEP_WAS_REFUSED,
    VF_STEP_WAS_UNKNOWN,
    VF_STEP_SKIPPED,
};

struct vf_engine_ops {
    int64_t (*now_us)(void *flow); /* monotonic */
    /* Begins a step, usually by the row's `start`. */
    void (*start)(void *flow, const struct vf_step *step);
    /* The step is over for the engine: what is outstanding must not complete it any more. */
    void (*abandon)(void *flow, const struct vf_step *step);
    /* The next due time has changed; INT64_MAX: none. */
    void (*arm)(void *flow, int64_t due_us);
    void (*trace)(void *flow, const struct vf_step *step, enum vf_step_state state);
    /* Nothing is left to do. The last call that the engine makes. */
    void (*finished)(void *flow);
};

struct vf_engine {
    /* The caller fills in: */
    const struct vf_table *table;
    const struct vf_engine_ops *ops;
    void *flow;
    int64_t deadline_us;     /* INT64_MAX: none */
    int64_t frozen_limit_ms; /* 0: none */
    int64_t thaw_wait_ms;
    unsigned conditions; /* may be changed by steps, before they complete */
    bool hopeless;       /* set by a step before it fails: another attempt would be no use */

    /* Results, for the caller to read: */
    unsigned owed;
    enum vf_cause cause;
    unsigned char failed_step;
    bool unwinding;
    bool committed; /* a step that commits has begun */
    bool finished;

    /* The engine's own: */
    unsigned char step;
    bool looping, completed, pausing, cancelled;
    enum vf_outcome outcome;
    unsigned given_up;
    int64_t attempt_due_us, patience_due_us, window_due_us;
};

/* Enters the first step. The struct must be zero but for what the caller fills in. */
void vf_engine_run(struct vf_engine *engine);

/* Ends the running step. May be called from within its start. A completion that comes when no
 * step runs (after a cancel or a timeout) is a programming error: `abandon` is there to
 * prevent it. */
void vf_engine_complete(struct vf_engine *engine, enum vf_outcome outcome);

/* The time that was armed has come (or any other time: it looks at the clock). */
void vf_engine_tick(struct vf_engine *engine);

/* Gives up on the way forward; without effect when unwinding or finished. */
void vf_engine_cancel(struct vf_engine *engine);

/* From within or beside a step: it passes the point of no return, as a step that `commits` does by
 * its beginning, and these debts are owed from now on. Not when it is too late for that. */
bool vf_engine_may_commit(const struct vf_engine *engine);
void vf_engine_commit(struct vf_engine *engine, unsigned debts);

/* A debt turned out not to exist, e.g. when a look at the graph shows that nothing was cut. */
void vf_engine_forgive(struct vf_engine *engine, unsigned debts);

/* When vf_engine_tick() has to be called next; INT64_MAX: never. */
int64_t vf_engine_due(const struct vf_engine *engine);

static inline const struct vf_step *
vf_engine_step(const struct vf_engine *engine)
{
    return &engine->table->steps[engine->step];
}

#endif
