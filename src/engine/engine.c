/* SPDX-License-Identifier: MIT
 *
 * See engine.h for the rules. The file reads in the order of time: enter, wait, complete, unwind.
 */
#include "engine/engine.h"

#include <assert.h>

static int64_t
earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static bool
holds(const struct vf_engine *engine, unsigned conditions)
{
    return (engine->conditions & conditions) == conditions;
}

static bool
in_window(const struct vf_engine *engine)
{
    return vf_engine_step(engine)->in_window && (engine->owed & engine->table->window_debt);
}

int64_t
vf_engine_due(const struct vf_engine *engine)
{
    if (engine->finished || engine->completed)
        return INT64_MAX;
    int64_t due = engine->attempt_due_us;

    if (!engine->unwinding) {
        if (!engine->committed)
            due = earlier(due, engine->deadline_us);
        if (in_window(engine))
            due = earlier(due, engine->window_due_us);
    }
    return due;
}

static void
arm(struct vf_engine *engine)
{
    engine->ops->arm(engine->flow, vf_engine_due(engine));
}

static int64_t
patience_us(const struct vf_engine *engine, const struct vf_step *step)
{
    return 1000 *
           (step->patience_ms == VF_PATIENCE_THAW ? engine->thaw_wait_ms : step->patience_ms);
}

static void
attempt(struct vf_engine *engine)
{
    const struct vf_step *step = vf_engine_step(engine);

    engine->pausing = false;
    engine->attempt_due_us = engine->ops->now_us(engine->flow) + INT64_C(1000) * step->budget_ms;
    arm(engine);
    engine->ops->start(engine->flow, step);
}

/* The only writer of the step. */
static void
enter(struct vf_engine *engine, unsigned char number)
{
    assert(number < engine->table->step_count);
    const struct vf_step *step = &engine->table->steps[number];
    int64_t now = engine->ops->now_us(engine->flow);

    engine->step = number;
    if (number == VF_STEP_END) {
        engine->finished = true;
        arm(engine);
        return;
    }
    if (step->in_window && engine->window_due_us == 0)
        engine->window_due_us =
            engine->frozen_limit_ms ? now + 1000 * engine->frozen_limit_ms : INT64_MAX;
    engine->patience_due_us = now + patience_us(engine, step);
    engine->hopeless = false;
    engine->committed = engine->committed || step->commits;
    engine->owed |= step->owes;
    engine->ops->trace(engine->flow, step, VF_STEP_STARTED);
    attempt(engine);
}

/* Serves the most urgent debt that can be served; ends when there is none. */
static void
unwind(struct vf_engine *engine)
{
    const struct vf_table *table = engine->table;

    engine->unwinding = true;
    for (size_t i = 0; i < table->undo_count; i++) {
        const struct vf_undo *undo = &table->undos[i];

        if ((engine->owed & ~engine->given_up & undo->debt) && !(engine->owed & undo->unless)) {
            enter(engine, undo->step);
            return;
        }
    }
    enter(engine, VF_STEP_END);
}

static void
fail(struct vf_engine *engine, enum vf_cause cause)
{
    if (engine->cause == VF_CAUSE_NONE) {
        engine->cause = cause;
        engine->failed_step = engine->step;
    }
    unwind(engine);
}

static enum vf_cause
overdue(const struct vf_engine *engine, int64_t now)
{
    if (engine->unwinding)
        return VF_CAUSE_NONE;
    if (engine->cancelled && !engine->committed)
        return VF_CAUSE_CANCELLED;
    if (now >= engine->deadline_us && !engine->committed)
        return VF_CAUSE_DEADLINE;
    if (in_window(engine) && now >= engine->window_due_us)
        return VF_CAUSE_FROZEN_LIMIT;
    return VF_CAUSE_NONE;
}

static void
forward(struct vf_engine *engine, unsigned char number)
{
    const struct vf_step *steps = engine->table->steps;

    while (number != VF_STEP_END && !holds(engine, steps[number].when)) {
        engine->ops->trace(engine->flow, &steps[number], VF_STEP_SKIPPED);
        number = steps[number].next;
    }
    /* Whoever was told of the step before may have cancelled since. */
    enum vf_cause late =
        steps[number].commits ? overdue(engine, engine->ops->now_us(engine->flow)) : VF_CAUSE_NONE;

    if (late != VF_CAUSE_NONE)
        fail(engine, late);
    else
        enter(engine, number);
}

/* What a step's end leads to. */
static void
settle(struct vf_engine *engine)
{
    const struct vf_step *step = vf_engine_step(engine);
    enum vf_outcome outcome = engine->outcome;
    int64_t now = engine->ops->now_us(engine->flow);
    enum vf_cause late = overdue(engine, now); /* before debts are paid: it asks for one */
    /* The frozen limit ends the step, not the operation, where the table knows another way on. */
    bool another_way = !engine->unwinding &&
                       (late == VF_CAUSE_NONE || late == VF_CAUSE_FROZEN_LIMIT) &&
                       step->otherwise != VF_STEP_END && holds(engine, step->otherwise_when);

    /* Once the last step is done, there is nothing left to be late for, and nothing to undo. */
    if (outcome == VF_OK && step->next == VF_STEP_END)
        late = VF_CAUSE_NONE;
    engine->completed = false;
    switch (outcome) {
    case VF_OK:
        engine->owed &= ~(unsigned)step->pays;
        engine->ops->trace(engine->flow, step, VF_STEP_DONE);
        if (late == VF_CAUSE_FROZEN_LIMIT && another_way)
            forward(engine, step->otherwise);
        else if (late != VF_CAUSE_NONE)
            fail(engine, late);
        else if (engine->unwinding)
            unwind(engine);
        else
            forward(engine, step->next);
        return;
    case VF_REFUSED:
    case VF_UNKNOWN:
        break;
    }

    if (outcome == VF_REFUSED && !engine->unwinding)
        engine->owed &= ~(step->owes & ~(unsigned)step->sticky);
    engine->ops->trace(engine->flow, step,
                       outcome == VF_REFUSED ? VF_STEP_WAS_REFUSED : VF_STEP_WAS_UNKNOWN);
    if (late == VF_CAUSE_NONE && !engine->hopeless &&
        now + INT64_C(1000) * step->pause_ms < engine->patience_due_us) {
        engine->pausing = true;
        engine->attempt_due_us = now + INT64_C(1000) * step->pause_ms;
        arm(engine);
        return;
    }
    if (engine->unwinding) {
        engine->given_up |= step->pays;
        unwind(engine);
        return;
    }
    if (another_way) {
        forward(engine, step->otherwise);
        return;
    }
    if (late == VF_CAUSE_NONE)
        late = outcome == VF_REFUSED ? VF_CAUSE_REFUSED : VF_CAUSE_UNKNOWN;
    fail(engine, late);
}

/* The running step has to end now, whatever its peer does. */
static void
stop_waiting(struct vf_engine *engine)
{
    engine->ops->abandon(engine->flow, vf_engine_step(engine));
    engine->pausing = false;
    vf_engine_complete(engine, VF_UNKNOWN);
}

/* Steps may complete within their start: then they are settled here, one after the other, without
 * recursion. */
static void
loop(struct vf_engine *engine)
{
    if (engine->looping)
        return;
    engine->looping = true;
    while (engine->completed)
        settle(engine);
    engine->looping = false;
    if (engine->finished)
        engine->ops->finished(engine->flow);
    else if (engine->cancelled && !engine->unwinding && !engine->committed)
        /* from within one of our calls */
        stop_waiting(engine);
}

void
vf_engine_run(struct vf_engine *engine)
{
    assert(engine->step == VF_STEP_END && !engine->finished);
    engine->looping = true;
    forward(engine, engine->table->first);
    engine->looping = false;
    loop(engine);
}

void
vf_engine_complete(struct vf_engine *engine, enum vf_outcome outcome)
{
    assert(!engine->finished && !engine->completed && !engine->pausing);
    engine->completed = true;
    engine->outcome = outcome;
    loop(engine);
}

void
vf_engine_tick(struct vf_engine *engine)
{
    if (engine->ops->now_us(engine->flow) < vf_engine_due(engine)) {
        arm(engine);
        return;
    }
    if (engine->finished || engine->completed)
        return;
    if (engine->pausing && overdue(engine, engine->ops->now_us(engine->flow)) == VF_CAUSE_NONE) {
        engine->looping = true;
        attempt(engine);
        engine->looping = false;
        loop(engine);
        return;
    }
    stop_waiting(engine);
}

void
vf_engine_cancel(struct vf_engine *engine)
{
    if (engine->finished || engine->unwinding || engine->committed || engine->cancelled)
        return;
    engine->cancelled = true;
    if (!engine->looping && !engine->completed)
        stop_waiting(engine);
}

void
vf_engine_forgive(struct vf_engine *engine, unsigned debts)
{
    engine->owed &= ~debts;
}

bool
vf_engine_may_commit(const struct vf_engine *engine)
{
    return !engine->finished && !engine->unwinding &&
           overdue(engine, engine->ops->now_us(engine->flow)) == VF_CAUSE_NONE;
}

void
vf_engine_commit(struct vf_engine *engine, unsigned debts)
{
    assert(!engine->finished && !engine->unwinding);
    engine->committed = true;
    engine->owed |= debts;
    arm(engine); /* the deadline does not count any more */
}
