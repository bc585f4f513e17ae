/* SPDX-License-Identifier: MIT
 *
 * The rules of the step engine, each on a table that is small enough to see through. What the real
 * tables make of these rules is in test-faults.c.
 *
 * What the engine does is written down as a story, word by word:
 *
 *     a       an attempt of step a begins      a.  it is OK         (a)  it is skipped
 *     a<      it is abandoned                  a!  it is refused    end  nothing is left to do
 *                                              a?  it is unknown
 */
#include "engine/engine.h"

#include "../tap.h"

enum { END = VF_STEP_END, A, B, C, D, X, Y, Z, STEPS };
enum { OWE_X = 1 << 0, OWE_Y = 1 << 1, OWE_Z = 1 << 2 };
enum { IF_ONE = 1 << 0, IF_TWO = 1 << 1 };

#define MS INT64_C(1000)
#define NEVER INT64_MAX

static char story[8192];
static int64_t now, armed;
static struct vf_engine engine;
static struct vf_step steps[STEPS];
static struct vf_undo undos[3];
static struct vf_table table;

/* What each step does at once: an outcome, or to wait. */
enum { WAIT = -1 };
static int answers[STEPS];
static unsigned owed_at_start[STEPS];
static int nesting;

/* Where somebody cancels from within a call: a word of the story. */
static const char *cancel_at;

static void
tell(const char *name, const char *mark)
{
    size_t length = strlen(story);
    char word[32];

    snprintf(word, sizeof word, mark[0] == '(' ? "(%s)" : "%s%s", name, mark);
    snprintf(story + length, sizeof story - length, "%s%s", length ? " " : "", word);
    if (cancel_at && strcmp(cancel_at, word) == 0) {
        cancel_at = NULL;
        vf_engine_cancel(&engine);
    }
}

static int64_t
now_us(void *flow)
{
    (void)flow;
    return now;
}

static void
start(void *flow, const struct vf_step *step)
{
    long number = step - steps;

    (void)flow;
    if (nesting)
        tell("NESTED", "");
    nesting++;
    owed_at_start[number] = engine.owed;
    tell(step->name, "");
    if (answers[number] != WAIT)
        vf_engine_complete(&engine, (enum vf_outcome)answers[number]);
    nesting--;
}

static void
abandon(void *flow, const struct vf_step *step)
{
    (void)flow;
    tell(step->name, "<");
}

static void
arm(void *flow, int64_t due_us)
{
    (void)flow;
    armed = due_us;
}

static void
trace(void *flow, const struct vf_step *step, enum vf_step_state state)
{
    (void)flow;
    switch (state) {
    case VF_STEP_STARTED: /* told by start() */
        break;
    case VF_STEP_DONE:
        tell(step->name, ".");
        break;
    case VF_STEP_WAS_REFUSED:
        tell(step->name, "!");
        break;
    case VF_STEP_WAS_UNKNOWN:
        tell(step->name, "?");
        break;
    case VF_STEP_SKIPPED:
        tell(step->name, "(");
        break;
    }
}

static void
finished(void *flow)
{
    (void)flow;
    tell("end", "");
}

static const struct vf_engine_ops ops = {now_us, start, abandon, arm, trace, finished};

/* A table of a, b, c, which owe x, y and nothing, and the ways back: x, y. All wait. */
static void
prepare(void)
{
    static const char *const names[STEPS] = {NULL, "a", "b", "c", "d", "x", "y", "z"};

    story[0] = '\0';
    cancel_at = NULL;
    now = 1000 * MS;
    armed = 0;
    memset(steps, 0, sizeof steps);
    for (int i = A; i < STEPS; i++) {
        steps[i] = (struct vf_step){.name = names[i], .title = names[i], .budget_ms = 100};
        answers[i] = WAIT;
    }
    steps[A].owes = OWE_X;
    steps[A].next = B;
    steps[B].owes = OWE_Y;
    steps[B].next = C;
    steps[X].pays = OWE_X;
    steps[Y].pays = OWE_Y;
    steps[Z].pays = OWE_Z;
    undos[0] = (struct vf_undo){OWE_Y, Y, 0};
    undos[1] = (struct vf_undo){OWE_X, X, 0};
    undos[2] = (struct vf_undo){OWE_Z, Z, 0};
    table = (struct vf_table){.operation = "test",
                              .steps = steps,
                              .step_count = STEPS,
                              .undos = undos,
                              .undo_count = 3,
                              .first = A};
    engine = (struct vf_engine){.table = &table, .ops = &ops, .deadline_us = NEVER};
}

static void
end(enum vf_outcome outcome)
{
    vf_engine_complete(&engine, outcome);
}

/* The timer fires when it was armed for. */
static void
fire(void)
{
    now = armed;
    vf_engine_tick(&engine);
}

static void
test_forward(void)
{
    prepare();
    steps[C].pays = OWE_X | OWE_Y;
    vf_engine_run(&engine);
    end(VF_OK);
    end(VF_OK);
    end(VF_OK);
    is_str(story, "a a. b b. c c. end", "steps follow one another, and the end is told");
    is_int(owed_at_start[A], OWE_X, "what a step owes is booked before it starts");
    is_int(owed_at_start[C], OWE_X | OWE_Y, "debts stay until they are paid");
    is_int(engine.owed, 0, "OK pays");
    is_int(engine.cause, VF_CAUSE_NONE, "no cause");
    ok(engine.finished && armed == NEVER, "no timer is left");

    vf_engine_tick(&engine);
    vf_engine_cancel(&engine);
    is_str(story, "a a. b b. c c. end", "nothing happens after the end");
}

static void
test_conditions(void)
{
    prepare();
    steps[B].when = IF_ONE | IF_TWO;
    engine.conditions = IF_ONE;
    answers[A] = answers[C] = VF_OK;
    vf_engine_run(&engine);
    is_str(story, "a a. (b) c c. end", "a step is skipped unless all of its conditions hold");
    is_int(engine.owed, OWE_X, "a skipped step owes nothing");

    prepare();
    steps[A].when = steps[B].when = steps[C].when = IF_ONE;
    vf_engine_run(&engine);
    is_str(story, "(a) (b) (c) end", "all may be skipped");
}

static void
test_outcomes(void)
{
    prepare();
    answers[A] = VF_OK;
    answers[B] = VF_REFUSED;
    answers[X] = VF_OK;
    vf_engine_run(&engine);
    is_str(story, "a a. b b! x x. end", "what was refused did not happen: its debts are void");
    is_int(engine.cause, VF_CAUSE_REFUSED, "the cause: refused");
    is_int(engine.failed_step, B, "the step that failed");

    prepare();
    steps[B].sticky = OWE_Y;
    answers[A] = VF_OK;
    answers[B] = VF_REFUSED;
    answers[X] = answers[Y] = VF_OK;
    vf_engine_run(&engine);
    is_str(story, "a a. b b! y y. x x. end", "a sticky debt outlives a refusal");

    prepare();
    answers[A] = VF_OK;
    answers[B] = VF_UNKNOWN;
    answers[X] = answers[Y] = VF_OK;
    vf_engine_run(&engine);
    is_str(story, "a a. b b? y y. x x. end", "an unknown outcome leaves all debts");
    is_int(engine.cause, VF_CAUSE_UNKNOWN, "the cause: unknown");
}

static void
test_way_back(void)
{
    prepare();
    undos[1].unless = OWE_Y;
    answers[A] = VF_OK;
    answers[B] = VF_UNKNOWN;
    answers[Y] = VF_REFUSED;
    vf_engine_run(&engine);
    is_str(story, "a a. b b? y y! end", "a debt that is given up blocks the ones that name it");
    is_int(engine.owed, OWE_X | OWE_Y, "both stay owed");

    prepare();
    answers[A] = VF_OK;
    answers[B] = VF_UNKNOWN;
    answers[Y] = VF_UNKNOWN;
    answers[X] = VF_OK;
    vf_engine_run(&engine);
    is_str(story, "a a. b b? y y? x x. end", "and no others");
    is_int(engine.owed, OWE_Y, "only that one stays owed");
    is_int(engine.cause, VF_CAUSE_UNKNOWN, "the first cause is kept");
    is_int(engine.failed_step, B, "... with its step");

    prepare();
    answers[A] = VF_OK;
    answers[B] = VF_UNKNOWN;
    answers[X] = VF_OK;
    vf_engine_run(&engine);
    vf_engine_forgive(&engine, OWE_X);
    is_int(engine.owed, OWE_Y, "a debt is forgiven, and no other");
    end(VF_OK);
    is_str(story, "a a. b b? y y. end", "a debt that turned out not to exist is not served");
    is_int(engine.owed, 0, "nor owed");
}

static void
test_otherwise(void)
{
    prepare();
    steps[B].otherwise = D;
    steps[B].otherwise_when = IF_ONE;
    steps[D].next = C;
    answers[A] = answers[C] = answers[D] = VF_OK;
    answers[B] = VF_UNKNOWN;
    engine.conditions = IF_ONE;
    vf_engine_run(&engine);
    is_str(story, "a a. b b? d d. c c. end", "another way on");
    is_int(engine.cause, VF_CAUSE_NONE, "is no failure");

    prepare();
    steps[B].otherwise = D;
    steps[B].otherwise_when = IF_ONE;
    answers[A] = answers[X] = VF_OK;
    answers[B] = VF_REFUSED;
    vf_engine_run(&engine);
    is_str(story, "a a. b b! x x. end", "not if its conditions do not hold");

    prepare();
    steps[B].otherwise = C;
    engine.deadline_us = now + 50 * MS;
    answers[A] = VF_OK;
    vf_engine_run(&engine);
    fire();
    has_str(story, "b< b? y", "not after the deadline");
}

static void
test_budget(void)
{
    prepare();
    answers[X] = VF_OK;
    vf_engine_run(&engine);
    is_int(armed, now + 100 * MS, "due at the end of the budget");
    is_int(vf_engine_due(&engine), armed, "as vf_engine_due() says");
    now += 99 * MS;
    armed = 0;
    vf_engine_tick(&engine);
    is_str(story, "a", "a tick that comes too early does nothing");
    is_int(armed, now + 1 * MS, "but arms the timer anew");
    fire();
    is_str(story, "a a< a? x x. end", "a step ends as unknown when it is abandoned");
    is_int(engine.cause, VF_CAUSE_UNKNOWN, "the cause: unknown");
}

static void
test_deadline(void)
{
    prepare();
    engine.deadline_us = now + 150 * MS;
    vf_engine_run(&engine);
    is_int(armed, now + 100 * MS, "the budget comes first");
    now += 90 * MS;
    end(VF_OK);
    is_int(armed, engine.deadline_us, "the deadline comes first");
    fire();
    is_str(story, "a a. b b< b? y", "the deadline ends a step");
    is_int(engine.cause, VF_CAUSE_DEADLINE, "the cause: the deadline");
    is_int(armed, now + 100 * MS, "the way back has only its own budgets");
    now += 99 * MS;
    end(VF_OK);
    end(VF_OK);
    is_str(story, "a a. b b< b? y y. x x. end", "and is not disturbed by the deadline");

    prepare();
    engine.deadline_us = now + 50 * MS;
    answers[X] = VF_OK;
    steps[A].pays = OWE_X;
    vf_engine_run(&engine);
    now += 50 * MS;
    end(VF_OK);
    is_str(story, "a a. end", "an OK at the deadline pays");
    is_int(engine.cause, VF_CAUSE_DEADLINE, "but is too late");

    prepare();
    engine.deadline_us = now + 50 * MS;
    answers[A] = answers[B] = VF_OK;
    vf_engine_run(&engine);
    now += 60 * MS;
    end(VF_OK);
    is_str(story, "a a. b b. c c. end", "unless nothing is left to do");
    is_int(engine.cause, VF_CAUSE_NONE, "what is done is done");

    prepare();
    engine.deadline_us = now - 1 * MS;
    answers[X] = VF_OK;
    vf_engine_run(&engine);
    fire();
    is_int(engine.cause, VF_CAUSE_DEADLINE, "a deadline that has passed already");
}

/* a and b are in the window, which is open while x is owed. */
static void
prepare_window(void)
{
    prepare();
    table.window_debt = OWE_X;
    engine.frozen_limit_ms = 80;
    steps[A].in_window = steps[B].in_window = true;
}

static void
test_frozen_limit(void)
{
    prepare_window();
    vf_engine_run(&engine);
    is_int(armed, now + 80 * MS, "the frozen limit counts from the first step of the window");
    now += 30 * MS;
    end(VF_OK);
    is_int(armed, now + 50 * MS, "and goes on in the next one");
    fire();
    is_int(engine.cause, VF_CAUSE_FROZEN_LIMIT, "the cause: the frozen limit");
    is_str(story, "a a. b b< b? y", "unwinds");
    is_int(armed, now + 100 * MS, "without a frozen limit");

    prepare_window();
    vf_engine_run(&engine);
    end(VF_OK);
    now += 80 * MS;
    end(VF_OK);
    is_str(story, "a a. b b. y", "an OK at the limit is too late");
    is_int(engine.cause, VF_CAUSE_FROZEN_LIMIT, "the cause: the frozen limit");

    prepare_window();
    vf_engine_run(&engine);
    end(VF_OK);
    end(VF_OK);
    is_int(armed, now + 100 * MS, "a step outside of the window has none");

    prepare_window();
    steps[A].pays = OWE_X;
    vf_engine_run(&engine);
    end(VF_OK);
    is_int(armed, now + 100 * MS, "nor one in it when the debt is paid");

    prepare_window();
    engine.frozen_limit_ms = 0;
    vf_engine_run(&engine);
    is_int(armed, now + 100 * MS, "0 is no limit");

    prepare_window();
    steps[A].otherwise = D;
    vf_engine_run(&engine);
    fire();
    is_str(story, "a a< a? d", "after the limit there may be another way on");
    is_int(engine.cause, VF_CAUSE_NONE, "which is no failure");

    prepare_window();
    steps[A].otherwise = D;
    vf_engine_run(&engine);
    now += 80 * MS;
    end(VF_OK);
    is_str(story, "a a. d", "also after an OK that came too late");
}

static void
test_patience(void)
{
    prepare();
    steps[A].patience_ms = 50;
    steps[A].pause_ms = 20;
    steps[A].sticky = OWE_X;
    vf_engine_run(&engine);
    end(VF_REFUSED);
    is_str(story, "a a!", "a patient step is tried again");
    is_int(armed, now + 20 * MS, "after a pause");
    fire();
    is_str(story, "a a! a", "the next attempt");
    is_int(armed, now + 100 * MS, "has a budget of its own");
    now += 5 * MS;
    end(VF_UNKNOWN);
    fire();
    is_str(story, "a a! a a? a", "and the next one");
    now += 5 * MS;
    end(VF_REFUSED);
    is_str(story, "a a! a a? a a! x", "until a pause would end after the patience");

    prepare();
    steps[A].patience_ms = 50;
    steps[A].pause_ms = 20;
    vf_engine_run(&engine);
    end(VF_REFUSED);
    fire();
    end(VF_OK);
    is_str(story, "a a! a a. b", "an attempt that is OK");

    prepare();
    steps[A].patience_ms = steps[X].patience_ms = 50;
    steps[A].pause_ms = steps[X].pause_ms = 20;
    steps[A].sticky = OWE_X;
    vf_engine_run(&engine);
    engine.hopeless = true;
    end(VF_REFUSED);
    is_str(story, "a a! x", "a step may say that another attempt is no use");
    end(VF_REFUSED);
    ok(engine.pausing, "which is not said of the next step");

    prepare();
    steps[X].patience_ms = VF_PATIENCE_THAW;
    steps[X].pause_ms = 10;
    engine.thaw_wait_ms = 500;
    engine.deadline_us = now + 1 * MS;
    answers[A] = VF_UNKNOWN;
    vf_engine_run(&engine);
    fire();
    is_str(story, "a a? x x< x?", "an attempt on the way back that uses up its budget");
    is_int(armed, now + 10 * MS, "is tried again, whatever the deadline");
    for (int attempts = 0; attempts < 100 && !engine.finished; attempts++)
        fire();
    is_str(story, "a a? x x< x? x x< x? x x< x? x x< x? x x< x? end",
           "as long as the caller said; then it is given up");
    is_int(engine.owed, OWE_X, "and stays owed");

    prepare();
    steps[A].patience_ms = 1000;
    steps[A].pause_ms = 20;
    engine.deadline_us = now + 10 * MS;
    vf_engine_run(&engine);
    end(VF_UNKNOWN);
    is_int(armed, engine.deadline_us, "the deadline ends a pause");
    fire();
    is_str(story, "a a? a< a? x", "... and the step");
    is_int(engine.cause, VF_CAUSE_DEADLINE, "the cause: the deadline");
}

static void
test_cancel(void)
{
    prepare();
    vf_engine_run(&engine);
    vf_engine_cancel(&engine);
    is_str(story, "a a< a? x", "a cancel ends the running step");
    is_int(engine.cause, VF_CAUSE_CANCELLED, "the cause: cancelled");
    vf_engine_cancel(&engine);
    is_str(story, "a a< a? x", "the way back cannot be cancelled");
    end(VF_OK);
    is_str(story, "a a< a? x x. end", "and ends");

    prepare();
    vf_engine_run(&engine);
    end(VF_UNKNOWN);
    vf_engine_cancel(&engine);
    is_str(story, "a a? x", "nor that of a failure");
    is_int(engine.cause, VF_CAUSE_UNKNOWN, "which stays the cause");

    prepare();
    steps[A].patience_ms = 1000;
    steps[A].pause_ms = 20;
    steps[A].otherwise = C;
    vf_engine_run(&engine);
    end(VF_UNKNOWN);
    vf_engine_cancel(&engine);
    is_str(story, "a a? a< a? x", "a cancel ends a pause, and there is no other way on");

    prepare();
    cancel_at = "a";
    vf_engine_run(&engine);
    is_str(story, "a a< a? x", "a cancel from within a start");

    prepare();
    cancel_at = "a";
    answers[A] = VF_OK;
    vf_engine_run(&engine);
    is_str(story, "a a. x", "... of a step that ends at once");

    prepare();
    cancel_at = "a.";
    vf_engine_run(&engine);
    end(VF_OK);
    is_str(story, "a a. b b< b? y", "a cancel by somebody who is told of a step's end");

    prepare();
    steps[A].patience_ms = 1000;
    steps[A].pause_ms = 20;
    cancel_at = "a!";
    vf_engine_run(&engine);
    end(VF_REFUSED);
    is_str(story, "a a! a< a? end", "... of an attempt's end");
    is_int(engine.cause, VF_CAUSE_CANCELLED, "the cause: cancelled");

    prepare();
    cancel_at = "c.";
    answers[A] = answers[B] = answers[C] = VF_OK;
    vf_engine_run(&engine);
    is_str(story, "a a. b b. c c. end", "a cancel after the last step is too late");
    is_int(engine.cause, VF_CAUSE_NONE, "what is done is done");

    prepare();
    cancel_at = "c";
    answers[A] = answers[B] = answers[C] = VF_OK;
    vf_engine_run(&engine);
    is_str(story, "a a. b b. c c. end", "and so is one while it is done");
    is_int(engine.cause, VF_CAUSE_NONE, "what is done is done");
}

/* Behind the point of no return. */
static void
test_commit(void)
{
    prepare();
    steps[B].commits = true;
    engine.deadline_us = now + 50 * MS;
    vf_engine_run(&engine);
    now += 60 * MS;
    end(VF_OK);
    is_str(story, "a a. x", "a step that commits is not entered after the deadline");
    is_int(engine.cause, VF_CAUSE_DEADLINE, "the cause: the deadline");

    prepare();
    steps[B].commits = true;
    cancel_at = "a.";
    vf_engine_run(&engine);
    end(VF_OK);
    is_str(story, "a a. x", "... nor when somebody cancels who is told of the step before");

    prepare();
    steps[B].commits = true;
    engine.deadline_us = now + 50 * MS;
    answers[A] = VF_OK;
    vf_engine_run(&engine);
    is_int(armed, now + 100 * MS, "then only its budget counts");
    vf_engine_cancel(&engine);
    is_str(story, "a a. b", "a cancel is not heard");
    now += 60 * MS;
    vf_engine_tick(&engine);
    end(VF_OK);
    end(VF_OK);
    is_str(story, "a a. b b. c c. end", "nor is the deadline, for all steps that follow");
    is_int(engine.cause, VF_CAUSE_NONE, "no cause");

    prepare();
    steps[B].commits = true;
    cancel_at = "b";
    answers[A] = VF_OK;
    vf_engine_run(&engine);
    end(VF_OK);
    is_str(story, "a a. b b. c", "a cancel from within its start");

    prepare();
    steps[B].commits = true;
    answers[A] = VF_OK;
    vf_engine_run(&engine);
    fire();
    is_str(story, "a a. b b< b? y", "a step that fails then unwinds as ever");

    prepare();
    steps[B].commits = true;
    steps[C].patience_ms = 1000;
    steps[C].pause_ms = 20;
    answers[A] = answers[B] = VF_OK;
    vf_engine_run(&engine);
    end(VF_UNKNOWN);
    vf_engine_cancel(&engine);
    fire();
    is_str(story, "a a. b b. c c? c", "and pauses are not cancelled");
}

/* Steps that end at once are settled one after the other: no matter how many they are, the stack is
 * no deeper. */
/* A step that finds out while it runs that there is no way back any more. */
static void
test_commit_inside(void)
{
    prepare();
    engine.deadline_us = now + 50 * MS;
    undos[1].unless = OWE_Z; /* what is committed is not undone */
    answers[A] = VF_OK;
    vf_engine_run(&engine);
    is_int(armed, engine.deadline_us, "the deadline is armed");
    ok(vf_engine_may_commit(&engine), "in time it may commit");
    vf_engine_commit(&engine, OWE_Z);
    is_int(armed, now + 100 * MS, "then only the step's budget counts");
    is_int(engine.owed, OWE_X | OWE_Y | OWE_Z, "and the debt is booked");
    vf_engine_cancel(&engine);
    now += 60 * MS;
    vf_engine_tick(&engine);
    is_str(story, "a a. b", "neither a cancel nor the deadline is heard");
    end(VF_REFUSED);
    is_str(story, "a a. b b! z", "a failure serves what it owes");
    end(VF_REFUSED);
    is_str(story, "a a. b b! z z! end", "... and what is not to be undone stays");
    is_int(engine.owed, OWE_X | OWE_Z, "... owed");

    prepare();
    engine.deadline_us = now + 50 * MS;
    vf_engine_run(&engine);
    now += 50 * MS;
    ok(!vf_engine_may_commit(&engine), "at the deadline it is too late");
    vf_engine_tick(&engine);
    ok(engine.unwinding && !vf_engine_may_commit(&engine), "on the way back as well");

    prepare();
    cancel_at = "a";
    answers[A] = WAIT;
    vf_engine_run(&engine);
    ok(!vf_engine_may_commit(&engine), "nor may one that was cancelled");
}

static void
test_no_recursion(void)
{
    prepare();
    answers[A] = VF_OK;
    answers[B] = VF_UNKNOWN;
    answers[X] = answers[Y] = VF_OK;
    vf_engine_run(&engine);
    ok(!strstr(story, "NESTED"), "no step starts within the start of another one");

    prepare();
    steps[X].patience_ms = 1000;
    steps[X].pause_ms = 10;
    answers[A] = VF_UNKNOWN;
    answers[X] = VF_REFUSED;
    vf_engine_run(&engine);
    for (int attempts = 0; attempts < 1000 && !engine.finished; attempts++)
        fire();
    ok(!strstr(story, "NESTED"), "nor one attempt within another");
    is_int(now, 1990 * MS, "the last attempt begins before the patience ends");
    ok(engine.finished, "and then it is the end");
}

int
main(void)
{
    test_forward();
    test_conditions();
    test_outcomes();
    test_way_back();
    test_otherwise();
    test_budget();
    test_deadline();
    test_frozen_limit();
    test_patience();
    test_cancel();
    test_commit();
    test_commit_inside();
    test_no_recursion();
    return done_testing();
}
