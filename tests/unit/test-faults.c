/* SPDX-License-Identifier: MIT
 *
 * Every sequence of outcomes, played through the real step tables, with no socket and no clock.
 *
 * The engine is the real one, and so are the tables. The world around them is a model: a guest that
 * may be frozen, a QEMU that runs on its overlays or not, files, names, a record, a journal. A step
 * does not call its start function: the model knows by its name what that function would do to
 * the world, as a list of elementary acts. Whenever the engine waits, a step can
 *
 *   - be answered: OK, REFUSED after any number of its acts, or with a connection that is lost
 *     (UNKNOWN) after any number of them; in time, after the deadline, or after the frozen limit;
 *   - not be answered, so that the timer ends it: by its budget, the frozen limit, or a deadline
 *     that falls just there;
 *   - be cancelled, also by somebody who is told that a step has ended or begun;
 *   - lose QEMU itself;
 *
 * and what was sent last before an answer failed to come may happen at once, never, or later: QEMU
 * and the agent each work in order, so that it happens before they answer anything else.
 *
 * All of that is explored without any limit on the number of faults: two runs that come to the same
 * state of engine, world and timers have the same future, so that each state is explored once,
 * and there are finitely many. At every instant, in the middle of a step as well, vmfrost may be
 * killed, with QEMU or without: each world that this can leave behind is a start for the recovery's
 * own table, with all of its own faults and all of its own crashes. Before a recovery the VM may be
 * started as well, with what the names lead to, and its guest writes.
 *
 * All of it is played with what makes a snapshot faster, and without: the guest's caches are
 * flushed before, QEMU has the cut before the freeze, and only what is chosen is frozen.
 *
 * What the model does not have: the guard (a crash is the worse for it), jobs of others, images
 * that are joined by graft.c, and the moment between the failure of a merge's last step in QEMU and
 * the turning back of the name.
 *
 * When something is violated, a sequence with as few faults as possible is printed.
 */
#include <stdint.h>

#include "../tap.h"
#include "engine/engine.h"
#include "flows/flow.h"
#include "flows/tables.h"

/* Two disks, a bit each; and what else the guest has. */
enum { DISKS = 2, ALL = (1 << DISKS) - 1, THE_OTHERS = 1 << DISKS };

/* Of the fake clock. */
#define REPLY_US 1000
#define FROZEN_LIMIT_MS 30000
#define THAW_WAIT_MS 6000

/* The world. Bytes only, so that it can be compared as a whole. */

enum record {
    NO_RECORD,
    IN_PROGRESS,
    SUCCEEDED,
    UNVERIFIED, /* Failed, but there is content, and it is ready to use */
    FAILED,
    DELETABLE, /* Failed, and it says which images a deletion has to care for */
};

enum operation { SNAPSHOT, DELETE, FREEZE, RESTORE };

/* Requests of a restore that QEMU has not come to. */
enum { LATE_STOP = 1 << 0, LATE_RESET = 1 << 1, LATE_CONTINUE = 1 << 2 };

/* Requests that the agent has not come to. It works in order: a thaw is always behind. */
enum { LATE_FREEZE = 1 << 0, LATE_THAW = 1 << 1 };

struct world {
    /* What vmfrost itself has on disk. */
    unsigned char journal, operation;
    unsigned char said_froze;  /* a line says that a freeze may have been sent */
    unsigned char said_thawed; /* a later one that its thaw was confirmed */
    unsigned char said_equal;  /* ... with the count of the freeze */
    unsigned char said_partly; /* ... which was not for all that is cut */
    unsigned char said_merging;
    unsigned char said_halting;   /* the VM may be stopped */
    unsigned char said_final;     /* disks whose last line says that the base may be live by now */
    unsigned char record, claims; /* ... that the guest stood still */
    /* The folder of the images. */
    unsigned char files;                   /* overlays */
    unsigned char turned;                  /* the disk's name leads to the overlay */
    unsigned char next_overlay, next_base; /* where the name beside it leads, if it is there */
    /* QEMU. */
    unsigned char dead;
    unsigned char stopped; /* the VM, by us */
    unsigned char cut;     /* runs on its overlay; of a dead one: the overlay holds data */
    unsigned char synced;  /* base and overlay are alike and the guest's writes wait */
    unsigned char jobs;    /* merges that run */
    unsigned char late_files, late_cut, late_job, late_final;
    unsigned char late_mirror, late_pivot, late_restore;
    /* The guest. */
    unsigned char frozen; /* the file systems on these disks; or its hooks have run */
    unsigned char late_agent;
    unsigned char late_frozen; /* what a late freeze is for */
    unsigned char held;        /* frozen on purpose, with a guard that thaws in time */
    unsigned char stood_still; /* frozen when it was cut */
    unsigned char anew;        /* it was reset since its disks were changed */
    unsigned char no_vm;       /* a storage daemon has its images, and dies with us */
    unsigned char offline;     /* the VM did not run when the operation began */
    /* Another QEMU than the operation's: the VM was started before the recovery, with what the
     * names led to. */
    unsigned char other;
    unsigned char data;         /* overlays with data of the QEMU before it */
    unsigned char base_written; /* bases that it wrote to */
};

/* What the flow remembers, beside the engine. */
struct memory {
    unsigned char agent_known;  /* whether there is one */
    unsigned char froze;        /* a freeze was sent */
    unsigned char frozen_known; /* its count */
    unsigned char cut_known;    /* it was confirmed */
    unsigned char thaw_sent;
    unsigned char thawed_equal; /* ... and confirmed with the freeze's count */
    unsigned char quiesce_failed, unverified;
    unsigned char chosen; /* file systems on these disks are to be frozen; 0: all that there are */
    unsigned char partly; /* ... or were: not all that is cut */
    unsigned char primed; /* QEMU has the cut, all but its last byte */
    unsigned char recorded; /* "snapshot taken" is what the user is told */
    unsigned char action;   /* of a recovery */
    unsigned char anew;     /* ... of a restore: the guest runs on the restored disks */
    unsigned char stalled;  /* our own process slept through a limit */
    unsigned char faults;   /* some; no more than that is counted */
};

enum action { NO_ACTION, THAWED, ROLLED_BACK, ROLLED_FORWARD };

struct model;

enum { NEVER = -1 };

struct state {
    struct vf_engine engine;
    struct world world;
    struct memory memory;
    int64_t now, armed, freeze_sent;
    int64_t entered, began; /* the running step; its present attempt */
    bool waiting;           /* a step was started and has not ended */
    bool done;              /* `finished` was called */
    int cancels_at;         /* when somebody cancels; an enum vf_step_state, or NEVER */
    int abandoned;
    const struct model *model; /* of the running step */
};

/* Elementary acts: vmfrost or QEMU may die before and after each, but not within. */
enum kind {
    WRITE_JOURNAL,
    END_JOURNAL,
    WRITE_RECORD, /* this enum record */
    REMOVE_RECORD,
    /* Lines of the journal. */
    SAY_FROZE,
    SAY_MERGING,
    SAY_FINAL,
    /* Files and names of these disks. */
    MAKE,         /* the overlay */
    REMOVE,       /* it, and what leads to it */
    LINK_OVERLAY, /* as the second name */
    LINK_BASE,
    RENAME, /* the second name over the disk's own */
    UNLINK, /* the second name */
    FREEZE_GUEST,
    THAW_GUEST,
    CUT,
    /* A merge of these disks. */
    STOP,     /* the VM */
    CONTINUE, /* ... and what it writes to has to have its name */
    START_JOB,
    SYNC, /* the job is pending: both images are alike, and the guest waits */
    CANCEL_JOB,
    FINALIZE, /* the VM runs on the base */
    HOLD,     /* the guard keeps the guest frozen */
    /* A restore of these disks. */
    SAY_HALTING,
    HALT,          /* the VM */
    MIRROR,        /* the job is pending */
    CANCEL_MIRROR, /* the disk stays what it is */
    PIVOT,         /* the VM's disk is the overlay */
    RESET,         /* the guest begins anew */
    GO_ON,
};

struct act {
    unsigned char kind, what;
};

enum { ACTS_MOST = 48 };

struct acts {
    struct act list[ACTS_MOST];
    size_t count;
};

/* Violations. */

enum { DEPTH_MOST = 300 };

struct choice {
    unsigned char kind, acts, late, timing, variant;
    unsigned char forced; /* nothing else can happen: no fault */
};

/* What was chosen on the way to the present state. */
static struct {
    const char *step;
    struct choice choice;
} path[DEPTH_MOST];
static size_t depth;
static const char *origin; /* of a recovery: how its world came about */
static const char *violation;
static char violation_path[8192];

static void describe_path(char *text, size_t size);

static void
violated(const char *what)
{
    if (violation)
        return;
    violation = what;
    describe_path(violation_path, sizeof violation_path);
}

static void
must(bool holds, const char *what)
{
    if (!holds)
        violated(what);
}

static bool
is_ready(const struct world *w)
{
    return w->record == SUCCEEDED || w->record == UNVERIFIED;
}

/* Disks of which only the overlay has the current state. */
static unsigned
on_overlays(const struct world *w)
{
    return w->cut & ~w->synced;
}

/* What is not as it should be after a restore, done or undone. */
static const char *
unsettled_restore(const struct world *w)
{
    bool restored = w->turned;

    if (w->jobs || w->late_files || w->late_mirror || w->late_pivot || w->late_restore ||
        w->stopped)
        return "no journal, but something under way in QEMU";
    if (w->turned != (restored ? ALL : 0) || w->files != w->turned)
        return "no journal, but some disks are restored and others not";
    if (w->next_overlay || w->next_base)
        return "no journal, but names of a restore";
    if (!w->dead && !w->no_vm && w->cut != w->turned)
        return "no journal, but a VM that runs on other disks than its names say";
    if (w->record != (restored ? SUCCEEDED : NO_RECORD))
        return "no journal, but the state before has not the record that it should have";
    return NULL;
}

/* Of a restore, whenever somebody looks: a VM that runs, runs on disks of one state only, which are
 * those that its names lead to, with a guest that knows no others. */
static void
check_running(const struct world *w)
{
    if (w->dead || w->stopped || w->no_vm)
        return;
    must(w->cut == 0 || w->cut == ALL, "the VM runs on disks of two states");
    must(w->turned == w->cut, "the VM runs on other disks than its names lead to");
    must(!w->cut || w->anew, "the guest goes on on disks that it does not know");
}

/* What is not as it should be when nobody works on this VM and there is no journal; NULL: nothing.
 */
static const char *
unsettled(const struct world *w)
{
    if (w->operation == RESTORE)
        return unsettled_restore(w);

    unsigned stray = w->files | w->turned | w->next_overlay | w->next_base;

    if (w->frozen || (w->late_agent & LATE_FREEZE))
        return "no journal, but a guest that may be frozen";
    if (w->jobs || w->late_cut || w->late_files || w->late_job || w->late_final || w->stopped)
        return "no journal, but something under way in QEMU";
    if (is_ready(w) && w->base_written)
        return "no journal, but a snapshot that a guest has written to";
    if (w->record == IN_PROGRESS)
        return "no journal, but a record that is InProgress";
    if (on_overlays(w) & ~w->turned || (w->turned & ~w->cut && !w->dead && !w->no_vm))
        return "no journal, but a name that does not lead to the current state";
    if ((on_overlays(w) | w->turned) & ~w->files)
        return "no journal, but an image is gone";
    if (is_ready(w) && (w->files != ALL || w->turned != ALL || w->next_overlay || w->next_base))
        return "no journal, but a snapshot that is not whole";
    if (!is_ready(w) && w->record != DELETABLE && stray)
        return "no journal and no snapshot, but files or names of one";
    return NULL;
}

/* Crashes: each world that may be found by a recovery. */

/* False if this one is known already. */
static bool add_crash(const struct world *world);

static void
die(struct world *w, bool with_data)
{
    w->dead = true;
    w->no_vm = false;
    w->frozen = w->late_agent = w->late_frozen = w->stopped = 0;
    w->jobs = w->late_files = w->late_cut = w->late_job = w->late_final = 0;
    w->late_mirror = w->late_pivot = w->late_restore = w->anew = 0;
    if (!with_data || w->operation == RESTORE) /* there, the names alone count */
        w->cut = 0;
}

/* What must be true of the world whenever somebody looks at it, and of what a crash makes of it. */
static void
check_world(const struct world *w)
{
    struct world crashed = *w;

    if (!add_crash(w))
        return;
    if (!w->journal)
        must(!unsettled(w), unsettled(w));
    if (w->operation == RESTORE) {
        check_running(w);
        must(!w->stopped || (w->journal && w->said_halting),
             "the VM is stopped and the journal does not say so");
    }
    if (w->frozen || (w->late_agent & LATE_FREEZE))
        must(w->journal && w->said_froze && !w->said_thawed,
             "the guest may be frozen and the journal does not say so");
    if (w->record == SUCCEEDED && w->claims)
        must(w->stood_still, "the record claims that the guest stood still when it did not");

    /* The sockets go with us, and what is in them. */
    crashed.late_agent = crashed.late_frozen = 0;
    crashed.late_files = crashed.late_cut = crashed.late_job = crashed.late_final = 0;
    crashed.late_mirror = crashed.late_pivot = crashed.late_restore = 0;
    if (w->no_vm)
        die(&crashed, false);
    check_world(&crashed);
    /* QEMU goes as well. The guest has written since the cut, or has not. */
    crashed = *w;
    die(&crashed, !w->frozen);
    check_world(&crashed);
    die(&crashed, false);
    check_world(&crashed);
}

static void
instant(const struct state *s)
{
    static struct world last;

    /* Mostly, nothing has changed. */
    if (memcmp(&last, &s->world, sizeof last) == 0)
        return;
    last = s->world;
    check_world(&s->world);
}

/* Acts. */

static void
start_job(struct world *w, unsigned disks)
{
    must(!(w->turned & disks), "QEMU opens the base by its name, and gets the overlay");
    w->jobs |= disks;
}

static void
finalize(struct world *w, unsigned disks)
{
    w->cut &= ~disks;
    w->synced &= ~disks;
    w->jobs &= ~disks;
}

static void
pivot(struct world *w, unsigned disks)
{
    must(w->stopped, "a disk of a running VM is changed");
    must((w->turned & disks) == disks, "a disk is changed before its name is turned");
    w->cut |= disks;
    w->jobs &= ~disks;
    w->anew = false;
}

static void
reset(struct world *w)
{
    w->anew = w->cut == ALL;
}

static void
land_restore(struct world *w)
{
    if (w->late_restore & LATE_STOP)
        w->stopped = true;
    w->jobs |= w->late_mirror;
    if (w->late_pivot)
        pivot(w, w->late_pivot);
    if (w->late_restore & LATE_RESET)
        reset(w);
    if (w->late_restore & LATE_CONTINUE)
        w->stopped = false;
    w->late_mirror = w->late_pivot = w->late_restore = 0;
}

static void
land_qemu(struct world *w)
{
    land_restore(w);
    w->files |= w->late_files;
    if (w->late_cut) {
        w->cut = ALL;
        w->stood_still = (w->frozen & ALL) == ALL;
    }
    start_job(w, w->late_job);
    finalize(w, w->late_final);
    w->late_files = w->late_cut = w->late_job = w->late_final = 0;
}

static void
land_agent(struct world *w)
{
    if (w->late_agent & LATE_FREEZE)
        w->frozen = w->late_frozen;
    if (w->late_agent & LATE_THAW)
        w->frozen = 0;
    w->late_agent = w->late_frozen = 0;
}

static bool
owes(const struct state *s, unsigned debts)
{
    return (s->engine.owed & debts) == debts;
}

static bool
recovers(const struct state *s)
{
    return s->engine.table == &vf_recover_table || s->engine.table == &vf_restore_recover_table;
}

static bool
restores(const struct state *s)
{
    return s->engine.table == &vf_restore_table;
}

/* Nothing else has one, and not for ever. */
static bool
has_deadline(const struct state *s)
{
    return s->engine.table == &vf_snapshot_table || (restores(s) && !s->engine.committed);
}

static bool
deletes(const struct state *s)
{
    return s->engine.table == &vf_delete_table;
}

/* Before another operation. */
static bool
settles(const struct state *s)
{
    return s->engine.table == &vf_settle_table;
}

/* A debt is booked before the first byte leaves. A recovery's debts are in its journal. */
static void
check_booked(const struct state *s, struct act act)
{
    if (recovers(s)) {
        must(s->world.journal, "a recovery changes something without a journal");
        return;
    }
    switch ((enum kind)act.kind) {
    case WRITE_JOURNAL:
        must(owes(s, VF_OWE_RECORD), "a journal that nobody owes to close");
        break;
    case MAKE:
        must(owes(s, VF_OWE_FILES), "files that nobody owes to remove");
        break;
    case FREEZE_GUEST:
        must(owes(s, VF_OWE_THAW), "a freeze without an owed thaw");
        break;
    case CUT:
        must(owes(s, VF_OWE_CUT | VF_OWE_RESOLVE), "a cut that nobody owes to undo");
        break;
    case HALT:
        must(owes(s, VF_OWE_HALT), "a VM is stopped that nobody owes to let go on");
        break;
    case MIRROR:
        must(owes(s, VF_OWE_MIRROR), "a job that nobody owes to cancel");
        break;
    case PIVOT:
        must(owes(s, VF_OWE_RESET), "a disk is changed, and nobody owes a reset");
        break;
    case SAY_HALTING:
    case CANCEL_MIRROR:
    case RESET:
    case GO_ON:
    case END_JOURNAL:
    case WRITE_RECORD:
    case REMOVE_RECORD:
    case SAY_FROZE:
    case SAY_MERGING:
    case SAY_FINAL:
    case REMOVE:
    case LINK_OVERLAY:
    case LINK_BASE:
    case RENAME:
    case UNLINK:
    case THAW_GUEST:
    case STOP:
    case CONTINUE:
    case START_JOB:
    case SYNC:
    case CANCEL_JOB:
    case FINALIZE:
    case HOLD:
        break;
    }
}

static void
perform(struct state *s, struct act act)
{
    struct world *w = &s->world;
    unsigned char disks = act.what;

    check_booked(s, act);
    switch ((enum kind)act.kind) {
    case WRITE_JOURNAL: /* an empty one, which names the QEMU that there is */
        w->journal = true;
        w->said_froze = w->said_thawed = w->said_equal = w->said_halting = false;
        w->said_partly = false;
        w->said_merging = w->said_final = 0;
        w->other = w->data = w->base_written = 0;
        break;
    case END_JOURNAL:
        w->journal = false;
        break;
    case WRITE_RECORD:
        w->record = act.what;
        w->claims = act.what == SUCCEEDED && s->memory.froze && !s->memory.quiesce_failed &&
                    s->memory.thawed_equal && !s->memory.partly;
        break;
    case REMOVE_RECORD:
        w->record = NO_RECORD;
        break;
    case SAY_FROZE:
        w->said_froze = true;
        break;
    case SAY_MERGING:
        w->said_merging = true;
        w->said_final &= ~disks;
        break;
    case SAY_FINAL:
        w->said_final |= disks;
        break;
    case MAKE:
        w->files |= disks;
        break;
    case REMOVE:
        must(!(on_overlays(w) & disks) && !w->late_cut, "the live image is removed");
        must(!(w->turned & disks), "an image is removed to which the disk's name leads");
        must(!owes(s, VF_OWE_CUT) && !owes(s, VF_OWE_RESOLVE), "images in doubt are removed");
        w->files &= ~disks;
        w->next_overlay &= ~disks;
        w->next_base &= ~disks;
        break;
    case LINK_OVERLAY:
        w->next_overlay |= disks;
        w->next_base &= ~disks;
        break;
    case LINK_BASE:
        w->next_base |= disks;
        w->next_overlay &= ~disks;
        break;
    case RENAME:
        must(w->operation != RESTORE || w->dead || w->stopped || w->no_vm,
             "a name of a running VM is turned to other disks");
        w->turned = (w->turned & ~disks) | (w->next_overlay & disks);
        w->next_overlay &= ~disks;
        w->next_base &= ~disks;
        break;
    case UNLINK:
        w->next_overlay &= ~disks;
        w->next_base &= ~disks;
        break;
    case FREEZE_GUEST:
        w->frozen = disks;
        break;
    case THAW_GUEST:
        w->frozen = 0;
        break;
    case CUT:
        w->cut = ALL;
        w->stood_still = (w->frozen & ALL) == ALL;
        break;
    case STOP:
        w->stopped = true;
        break;
    case CONTINUE:
        must(!((w->turned ^ w->cut) & ~w->synced & disks),
             "the VM goes on, but a name does not lead to what it writes to");
        w->stopped = false;
        break;
    case SYNC:
        w->synced |= disks;
        break;
    case START_JOB:
        start_job(w, disks);
        break;
    case CANCEL_JOB:
        w->synced &= ~disks;
        w->jobs &= ~disks;
        break;
    case FINALIZE:
        finalize(w, disks);
        break;
    case HOLD:
        w->held = true;
        break;
    case SAY_HALTING:
        w->said_halting = true;
        break;
    case HALT:
        w->stopped = true;
        break;
    case MIRROR:
        must(w->stopped, "a job is ready at once though the VM runs");
        w->jobs |= disks;
        break;
    case CANCEL_MIRROR:
        must(!w->turned, "the change of a disk is cancelled whose name is turned");
        w->jobs &= ~disks;
        break;
    case PIVOT:
        pivot(w, disks);
        break;
    case RESET:
        reset(w);
        break;
    case GO_ON:
        w->stopped = false;
        break;
    }
    instant(s);
}

/* What a peer does, and may come to later. All else is done by us, or its reply is waited for. */
static bool
may_be_late(struct act act)
{
    return act.kind == FREEZE_GUEST || act.kind == THAW_GUEST || act.kind == MAKE ||
           act.kind == CUT || act.kind == START_JOB || act.kind == FINALIZE || act.kind == HALT ||
           act.kind == MIRROR || act.kind == PIVOT || act.kind == RESET || act.kind == GO_ON;
}

static void
leave_for_later(struct state *s, struct act act)
{
    struct world *w = &s->world;

    check_booked(s, act);
    if (act.kind == FREEZE_GUEST) {
        w->late_agent |= LATE_FREEZE;
        w->late_frozen = act.what;
    } else if (act.kind == THAW_GUEST)
        w->late_agent |= LATE_THAW;
    else if (act.kind == MAKE)
        w->late_files |= act.what;
    else if (act.kind == CUT)
        w->late_cut = true;
    else if (act.kind == START_JOB)
        w->late_job |= act.what;
    else if (act.kind == FINALIZE)
        w->late_final |= act.what;
    else if (act.kind == HALT)
        w->late_restore |= LATE_STOP;
    else if (act.kind == MIRROR)
        w->late_mirror |= act.what;
    else if (act.kind == PIVOT)
        w->late_pivot |= act.what;
    else if (act.kind == RESET)
        w->late_restore |= LATE_RESET;
    else if (act.kind == GO_ON)
        w->late_restore |= LATE_CONTINUE;
    instant(s);
}

/* What each step does to the world, if it gets through. */

static void
add(struct acts *acts, enum kind kind, unsigned what)
{
    acts->list[acts->count++] = (struct act){(unsigned char)kind, (unsigned char)what};
}

static void
accept_acts(const struct state *s, struct acts *acts)
{
    if (s->world.journal) /* of the deletion that is gone on with */
        add(acts, END_JOURNAL, 0);
    if (deletes(s) && s->world.record == NO_RECORD) /* only the journal was left */
        return;
    add(acts, WRITE_JOURNAL, 0);
    if (s->engine.table == &vf_snapshot_table)
        add(acts, WRITE_RECORD, IN_PROGRESS);
    else if (deletes(s))
        add(acts, WRITE_RECORD, DELETABLE);
}

static void
overlay_acts(const struct state *s, struct acts *acts)
{
    (void)s;
    for (unsigned disk = 1; disk <= ALL; disk <<= 1)
        add(acts, MAKE, disk);
    for (unsigned disk = 1; disk <= ALL; disk <<= 1)
        add(acts, LINK_OVERLAY, disk);
}

static void
guard_acts(const struct state *s, struct acts *acts)
{
    if (s->engine.table == &vf_freeze_table || (s->engine.conditions & VF_IF_AGENT))
        add(acts, SAY_FROZE, 0);
}

static void
freeze_acts(const struct state *s, struct acts *acts)
{
    add(acts, FREEZE_GUEST, s->memory.chosen ? s->memory.chosen : ALL | THE_OTHERS);
}

static void
thaw_acts(const struct state *s, struct acts *acts)
{
    (void)s;
    add(acts, THAW_GUEST, 0);
}

/* Of a stopped VM turning the names is the cut. */
static void
cut_acts(const struct state *s, struct acts *acts)
{
    if (!s->world.offline)
        add(acts, CUT, 0);
}

/* Turns the names whose second link is there. */
static void
flip_acts(const struct state *s, struct acts *acts)
{
    for (unsigned disk = 1; disk <= ALL; disk <<= 1)
        if (s->world.next_overlay & disk)
            add(acts, RENAME, disk);
}

static bool
thaw_is_doubtful(const struct state *s)
{
    return s->memory.unverified || !s->memory.thawed_equal;
}

static void
record_acts(const struct state *s, struct acts *acts)
{
    bool doubtful = s->memory.froze && !s->memory.quiesce_failed && thaw_is_doubtful(s);

    add(acts, WRITE_RECORD, doubtful ? UNVERIFIED : SUCCEEDED);
    if (!(s->engine.owed & ~(unsigned)(VF_OWE_RECORD | VF_OWE_FILES | VF_OWE_CUT)))
        add(acts, END_JOURNAL, 0);
}

static void
undo_record_acts(const struct state *s, struct acts *acts)
{
    add(acts, WRITE_RECORD, FAILED);
    if (!(s->engine.owed & ~(unsigned)VF_OWE_RECORD) && s->world.journal)
        add(acts, END_JOURNAL, 0);
}

/* Makes the disk's name lead to its overlay, or to its base, and leaves no second link. */
static void
turn(const struct world *w, unsigned disk, bool to_overlay, struct acts *acts)
{
    unsigned links = to_overlay ? w->next_overlay : w->next_base;

    if (!(w->turned & disk) == !to_overlay) {
        if ((w->next_overlay | w->next_base) & disk)
            add(acts, UNLINK, disk);
        return;
    }
    if (!(links & disk))
        add(acts, to_overlay ? LINK_OVERLAY : LINK_BASE, disk);
    add(acts, RENAME, disk);
}

/* The hardest case: QEMU knows the base by a name that leads to the overlay now. */
static void
merge_acts(const struct state *s, struct acts *acts)
{
    const struct world *w = &s->world;
    bool stopped = w->stopped;

    for (unsigned disk = 1; disk <= ALL; disk <<= 1) {
        if (!(w->cut & disk)) { /* of a stopped VM: all */
            turn(w, disk, false, acts);
            continue;
        }
        if (!(w->synced & disk))
            turn(w, disk, true, acts);
        if (!(w->jobs & disk)) { /* else it is that of an earlier attempt */
            add(acts, SAY_MERGING, disk);
            if (!stopped)
                add(acts, STOP, 0);
            stopped = true;
            add(acts, LINK_BASE, disk);
            add(acts, RENAME, disk);
            add(acts, START_JOB, disk);
            add(acts, LINK_OVERLAY, disk);
            add(acts, RENAME, disk);
        }
        if (stopped)
            add(acts, CONTINUE, disk);
        stopped = false;
        if (!(w->synced & disk)) {
            add(acts, SAY_MERGING, disk);
            add(acts, SAY_FINAL, disk);
            add(acts, SYNC, disk);
            add(acts, LINK_BASE, disk);
            add(acts, RENAME, disk);
        } else {
            turn(w, disk, false, acts);
        }
        add(acts, FINALIZE, disk);
    }
}

/* Once a merge fails, the name goes back to the overlay and the VM goes on, unless the base may be
 * the live image by now, QEMU may yet open the base by its name, or it cannot be told. */
static void
merge_gives_up(struct state *s, bool refused)
{
    for (unsigned disk = 1; disk <= ALL; disk <<= 1) {
        struct world *w = &s->world;
        struct acts acts = {.count = 0};

        if (!(w->cut & disk))
            continue;
        if (!refused && ((w->synced | w->late_job) & disk))
            return;
        turn(w, disk, true, &acts);
        if (w->synced & disk)
            add(&acts, CANCEL_JOB, disk);
        for (size_t i = 0; i < acts.count; i++)
            perform(s, acts.list[i]);
        break;
    }
    if (refused && s->world.stopped)
        perform(s, (struct act){CONTINUE, 0});
}

static void
stop_merge_acts(const struct state *s, struct acts *acts)
{
    const struct world *w = &s->world;

    for (unsigned disk = 1; disk <= ALL; disk <<= 1)
        turn(w, disk, w->cut & disk, acts);
    if (w->jobs)
        add(acts, CANCEL_JOB, w->jobs);
    if (w->stopped)
        add(acts, CONTINUE, ALL);
}

static void
undo_files_acts(const struct state *s, struct acts *acts)
{
    const struct world *w = &s->world;
    /* Those that were not merged. */
    bool partly = deletes(s) || settles(s) || (recovers(s) && s->memory.action == NO_ACTION);
    unsigned needed = partly ? w->cut | w->turned : 0;

    for (unsigned disk = 1; disk <= ALL; disk <<= 1)
        if ((w->files | w->next_overlay | w->next_base) & ~needed & disk)
            add(acts, REMOVE, disk);
}

static void
remove_record_acts(const struct state *s, struct acts *acts)
{
    (void)s;
    add(acts, REMOVE_RECORD, 0);
    add(acts, END_JOURNAL, 0);
}

static void
close_journal_acts(const struct state *s, struct acts *acts)
{
    if (!(s->engine.owed & ~(unsigned)VF_OWE_RECORD) && s->world.journal)
        add(acts, END_JOURNAL, 0);
}

static void
hold_acts(const struct state *s, struct acts *acts)
{
    (void)s;
    add(acts, HOLD, 0);
}

/* ... of a restore. */

static void
halting_acts(const struct state *s, struct acts *acts)
{
    (void)s;
    add(acts, SAY_HALTING, 0);
}

static void
halt_acts(const struct state *s, struct acts *acts)
{
    (void)s;
    add(acts, HALT, 0);
}

static void
mirror_acts(const struct state *s, struct acts *acts)
{
    (void)s;
    for (unsigned disk = 1; disk <= ALL; disk <<= 1)
        add(acts, MIRROR, disk);
}

static void
cancel_mirror_acts(const struct state *s, struct acts *acts)
{
    for (unsigned disk = 1; disk <= ALL; disk <<= 1)
        if (s->world.jobs & disk)
            add(acts, CANCEL_MIRROR, disk);
}

static void
turn_all_acts(const struct state *s, bool to_overlay, struct acts *acts)
{
    for (unsigned disk = 1; disk <= ALL; disk <<= 1)
        turn(&s->world, disk, to_overlay, acts);
}

/* While a rename fails, the names go back, since the VM stands still; unless that fails, too. */
static void
flip_gives_up(struct state *s)
{
    struct acts acts = {.count = 0};

    turn_all_acts(s, false, &acts);
    for (size_t i = 0; i < acts.count; i++)
        perform(s, acts.list[i]);
}

/* From wherever it stands. A QEMU that has ended needs only its names. */
static void
pivot_acts(const struct state *s, struct acts *acts)
{
    const struct world *w = &s->world;

    turn_all_acts(s, true, acts);
    for (unsigned disk = 1; disk <= ALL && !w->dead && !w->no_vm; disk <<= 1) {
        if (w->cut & disk)
            continue;
        if (!(w->jobs & disk))
            add(acts, MIRROR, disk);
        add(acts, PIVOT, disk);
    }
}

static void
reset_acts(const struct state *s, struct acts *acts)
{
    if (!s->world.dead && !s->world.no_vm && !s->memory.anew)
        add(acts, RESET, 0);
}

static void
go_on_acts(const struct state *s, struct acts *acts)
{
    if (s->world.stopped)
        add(acts, GO_ON, 0);
}

static void
restored_acts(const struct state *s, struct acts *acts)
{
    (void)s;
    add(acts, WRITE_RECORD, SUCCEEDED);
    add(acts, END_JOURNAL, 0);
}

/* Undone, or rolled forward after all; or something is stuck. */
static void
undo_restore_acts(const struct state *s, struct acts *acts)
{
    if (s->engine.committed && !(s->engine.owed & ~(unsigned)VF_OWE_RECORD) && s->world.turned)
        restored_acts(s, acts);
    else
        close_journal_acts(s, acts);
}

static void
close_restore_acts(const struct state *s, struct acts *acts)
{
    if (s->world.turned)
        add(acts, WRITE_RECORD, SUCCEEDED);
    add(acts, END_JOURNAL, 0);
}

/* ... of a recovery. */

static unsigned
finally_merged(const struct world *w)
{
    return w->said_final & ~w->turned;
}

static unsigned
has_data(const struct world *w)
{
    return (w->data | (w->dead ? w->cut : 0)) & w->files;
}

/* Disks whose overlay is the current state, as far as names and files tell. */
static unsigned
live_overlays(const struct world *w)
{
    return ALL & ~finally_merged(w) & (w->turned | has_data(w));
}

/* A QEMU that was started before the recovery runs on these, or, if the VM was off, has done so. */
static unsigned
used_bases(const struct world *w)
{
    unsigned used = w->other && !w->dead ? ALL : w->offline ? w->base_written : 0;

    return used & ~w->turned;
}

/* ... though their overlays have data, too: a person is asked. A merge writes to bases as well, so
 * that it cannot be told afterwards. */
static unsigned
in_conflict(const struct world *w)
{
    unsigned used = w->other && !w->dead ? ALL : w->said_merging ? 0 : w->base_written;

    return used & live_overlays(w) & ~w->turned;
}

/* The VM stopped in the middle of a merge, or was started in the middle of a snapshot: a deletion
 * has to finish that when it runs. */
static bool
is_half(const struct world *w)
{
    return w->operation != FREEZE && live_overlays(w) &&
           (w->said_merging || (used_bases(w) & ~live_overlays(w)));
}

static void
offline_acts(const struct state *s, struct acts *acts)
{
    const struct world *w = &s->world;

    if (is_half(w))
        for (unsigned disk = 1; disk <= ALL; disk <<= 1)
            if (!((finally_merged(w) | used_bases(w)) & disk))
                turn(w, disk, true, acts);
}

/* A deletion whose QEMU has ended, up to where somebody is asked. On a base above which there is
 * nothing another QEMU may go on. */
static void
names_acts(const struct state *s, struct acts *acts)
{
    const struct world *w = &s->world;
    unsigned on_bases = w->other && !w->dead ? ALL & ~live_overlays(w) : 0;

    for (unsigned disk = 1; disk <= ALL && !(in_conflict(w) & disk); disk <<= 1)
        if (!((finally_merged(w) | on_bases) & disk) && (w->files & disk))
            turn(w, disk, true, acts);
}

static void
turn_acts(const struct state *s, struct acts *acts)
{
    for (unsigned disk = 1; disk <= ALL; disk <<= 1)
        turn(&s->world, disk, true, acts);
}

/* If the cut was made, the overlays are the current state, and the names have to say so. */
static void
doubt_acts(const struct state *s, struct acts *acts)
{
    const struct world *w = &s->world;

    if (w->dead || w->offline)
        for (unsigned disk = 1; disk <= ALL; disk <<= 1)
            turn(w, disk, w->cut, acts);
    else if (w->cut)
        flip_acts(s, acts);
}

static void
let_go_acts(const struct state *s, struct acts *acts)
{
    if (s->world.stopped)
        add(acts, CONTINUE, ALL);
}

static void
close_recovery_acts(const struct state *s, struct acts *acts)
{
    const struct world *w = &s->world;
    bool proved = !w->said_froze || s->memory.thawed_equal;

    if (s->engine.conditions & VF_IF_FORWARD) {
        if (!is_ready(w))
            add(acts, WRITE_RECORD, proved ? SUCCEEDED : UNVERIFIED);
    } else if (w->operation == SNAPSHOT && s->memory.action == ROLLED_BACK) {
        if (w->record != NO_RECORD)
            add(acts, WRITE_RECORD, FAILED);
    } else if (w->operation != FREEZE && s->memory.action == NO_ACTION) {
        if (w->record != NO_RECORD)
            add(acts, WRITE_RECORD, DELETABLE);
    } else if (w->operation == DELETE && (s->engine.conditions & VF_IF_FILES)) {
        add(acts, REMOVE_RECORD, 0);
    }
    if (!s->engine.owed)
        add(acts, END_JOURNAL, 0);
}

/* What else the steps do, before or after. */

static void
agent_is_there(struct state *s)
{
    s->engine.conditions |= VF_IF_AGENT;
    s->engine.frozen_limit_ms = FROZEN_LIMIT_MS;
}

static void
no_agent_is_there(struct state *s)
{
    (void)s;
}

static void (*agent_answers)(struct state *s);

static void
agent_ok(struct state *s)
{
    s->memory.agent_known = true;
    agent_answers(s);
}

static void
accept_begins(struct state *s)
{
    if (!s->memory.agent_known && !s->world.offline)
        s->memory.quiesce_failed = true;
}

/* Is the cut sent before the freeze? */
static bool primes;

static void
guard_begins(struct state *s)
{
    s->memory.primed =
        primes && s->engine.table == &vf_snapshot_table && (s->engine.conditions & VF_IF_AGENT);
}

/* Steps that ask QEMU for anything else take back what is primed. */
static void
take_back(struct state *s)
{
    s->memory.primed = false;
}

static void
freeze_begins(struct state *s)
{
    if (s->engine.table == &vf_snapshot_table)
        must(s->memory.primed == primes, "the guest is frozen before QEMU has all but a byte");
    s->memory.froze = true;
    s->memory.partly = s->memory.chosen && (s->memory.chosen & ALL) != ALL;
    s->freeze_sent = s->now;
}

static void
cut_begins(struct state *s)
{
    bool frozen = s->memory.froze && !s->memory.quiesce_failed;

    must(s->memory.primed == (primes && frozen), frozen
                                                     ? "in the window QEMU has to read a whole cut"
                                                     : "a cut is made that was taken back");
    take_back(s);
}

static void
freeze_ok(struct state *s)
{
    s->memory.frozen_known = true;
}

static void
cut_ok(struct state *s)
{
    s->memory.cut_known = true;
}

static void
thaw_begins(struct state *s)
{
    if (!recovers(s) && !s->memory.thaw_sent && s->memory.froze && !s->memory.stalled)
        must(s->now <= s->freeze_sent + 1000 * s->engine.frozen_limit_ms,
             "the first thaw is sent after the frozen limit");
    s->memory.thaw_sent = true;
}

static void
thaw_again_begins(struct state *s)
{
    take_back(s);
    /* Of our own freeze, and not for the first time. */
    if (!recovers(s) && s->memory.froze && s->memory.thaw_sent)
        s->memory.unverified = true;
    thaw_begins(s);
}

static void
melt_begins(struct state *s)
{
    s->memory.quiesce_failed = true;
    s->engine.conditions &= ~(unsigned)VF_IF_AGENT;
    thaw_again_begins(s);
}

static void
doubt_ok(struct state *s)
{
    if (!s->world.cut)
        vf_engine_forgive(&s->engine, VF_OWE_CUT);
}

static void
record_ok(struct state *s)
{
    /* What was thawed before the cut is no doubt about the snapshot. */
    if (s->memory.quiesce_failed)
        s->memory.unverified = false;
    s->memory.recorded = true;
}

static void
read_ok(struct state *s)
{
    const struct world *w = &s->world;

    if (!w->journal)
        return;
    s->engine.conditions |=
        VF_IF_INTERRUPTED | (w->dead || w->offline || w->other ? VF_IF_OFFLINE : VF_IF_QEMU);
    if (w->said_froze && !w->said_thawed)
        s->engine.conditions |= VF_IF_THAW_OWED;
    s->memory.froze = w->said_froze;
    s->memory.thawed_equal = w->said_equal;
    s->memory.partly = w->said_partly;
}

static void
dismiss_ok(struct state *s)
{
    s->world.held = false;
}

static void
connect_begins(struct state *s)
{
    if (recovers(s) && !owes(s, VF_OWE_THAW))
        s->engine.conditions &= ~(unsigned)VF_IF_THAW_OWED;
}

static void
reached_ok(struct state *s)
{
    s->engine.conditions |= s->world.no_vm ? VF_IF_STOPPED : VF_IF_ONLINE;
}

static void
decide(struct state *s, unsigned conditions, enum action action)
{
    s->engine.conditions |= conditions;
    s->memory.action = action;
}

static void
graph_ok(struct state *s, bool deadline_passed)
{
    const struct world *w = &s->world;

    if (w->operation == FREEZE)
        decide(s, 0, THAWED);
    else if (w->operation == DELETE)
        decide(s, VF_IF_MERGE | VF_IF_FILES, ROLLED_FORWARD);
    else if (is_ready(w) && w->cut == ALL && !w->said_merging)
        decide(s, VF_IF_FORWARD, ROLLED_FORWARD);
    else if (!w->cut)
        decide(s, VF_IF_FILES, ROLLED_BACK);
    else if (deadline_passed || w->said_merging)
        decide(s, VF_IF_MERGE | VF_IF_FILES, ROLLED_BACK);
    else
        decide(s, VF_IF_FORWARD, ROLLED_FORWARD);
}

static void
offline_ok(struct state *s)
{
    const struct world *w = &s->world;

    if (w->operation == FREEZE)
        decide(s, 0, THAWED);
    else if (!live_overlays(w))
        decide(s, VF_IF_FILES, ROLLED_BACK);
    else if (is_half(w))
        decide(s, VF_IF_FILES, NO_ACTION);
    else
        decide(s, VF_IF_FORWARD, ROLLED_FORWARD);
}

static void
restored_ok(struct state *s)
{
    s->memory.recorded = true;
}

static void
undo_restore_ok(struct state *s)
{
    if (s->world.record == SUCCEEDED) {
        s->engine.cause = VF_CAUSE_NONE;
        s->memory.recorded = true;
    }
}

static void
decide_restore_ok(struct state *s)
{
    if (s->world.turned)
        decide(s, VF_IF_FORWARD, ROLLED_FORWARD);
    else
        decide(s, VF_IF_FILES, ROLLED_BACK);
    if (!s->world.dead)
        s->engine.conditions |= VF_IF_ONLINE;
}

static void
look_at_restore_ok(struct state *s)
{
    s->memory.anew = !s->world.stopped && s->world.cut == ALL;
}

/* What makes that no for sure. */

static bool
verify_refuses(const struct state *s)
{
    return (s->world.cut != ALL && !s->world.offline) || s->world.turned != ALL;
}

static bool
doubt_refuses(const struct state *s)
{
    return s->world.cut != 0 && s->world.cut != ALL;
}

static bool
graph_refuses(const struct state *s)
{
    const struct world *w = &s->world;

    return w->operation == SNAPSHOT && !is_ready(w) && doubt_refuses(s) && !w->said_merging;
}

static bool
merge_refuses(const struct state *s)
{
    return !s->world.offline && (s->world.turned & ~s->world.cut);
}

static bool
undo_files_refuses(const struct state *s)
{
    return s->world.jobs;
}

static bool
offline_refuses(const struct state *s)
{
    return in_conflict(&s->world);
}

static bool
guard_is_alive(const struct state *s)
{
    return s->world.held;
}

/* Who answers, and what. */

enum peer {
    US,    /* done when its start function returns; nothing to wait for */
    AGENT, /* of the guest */
    QEMU,
};

struct model {
    const char *step;
    enum peer peer;
    void (*acts)(const struct state *s, struct acts *acts);
    void (*begins)(struct state *s);
    void (*ok)(struct state *s);
    bool (*refuses)(const struct state *s);
    /* What is refused may be done in part: it is more than one request, or a half-hearted agent. */
    bool refused_partly;
    bool thaws, merges;
    bool chooses;       /* ... what is to be frozen: its OK says everything, what is cut, or less */
    bool decides;       /* its OK depends on whether the deadline has passed */
    bool last_may_fail; /* OK although its last act failed */
    bool without_qemu;  /* can be done without one */
    bool turns_back;    /* what was done of a refused step is undone by itself */
    bool tears;         /* ... or not: then nobody can say, though nobody else was asked */
};

static const struct model models[] = {
    {"connect", .peer = QEMU, .begins = connect_begins, .ok = reached_ok},
    {"look", .peer = QEMU},
    {"plan", .peer = US},
    {"state", .peer = US},
    {"choose", .peer = US},
    {"agent", .peer = AGENT, .ok = agent_ok},
    {"accept", .peer = US, .acts = accept_acts, .begins = accept_begins, .refused_partly = true},
    {"overlays", .peer = QEMU, .acts = overlay_acts, .refused_partly = true},
    {"rehearse", .peer = QEMU},
    {"flush", .peer = AGENT},
    {"mounts", .peer = AGENT, .chooses = true},
    {"flush-host", .peer = US},
    {"guard", .peer = AGENT, .acts = guard_acts, .begins = guard_begins, .refused_partly = true},
    {"freeze", .peer = AGENT, .acts = freeze_acts, .begins = freeze_begins, .ok = freeze_ok,
     .refused_partly = true},
    {"cut", .peer = QEMU, .acts = cut_acts, .begins = cut_begins, .ok = cut_ok},
    {"flip", .peer = US, .acts = flip_acts, .refused_partly = true},
    {"thaw", .peer = AGENT, .acts = thaw_acts, .begins = thaw_begins, .thaws = true},
    {"verify", .peer = QEMU, .refuses = verify_refuses},
    {"record", .peer = US, .acts = record_acts, .ok = record_ok, .refused_partly = true,
     .last_may_fail = true},
    {"melt", .peer = AGENT, .acts = thaw_acts, .begins = melt_begins, .thaws = true,
     .without_qemu = true},
    {"thaw-late", .peer = AGENT, .acts = thaw_acts, .begins = thaw_again_begins, .thaws = true,
     .without_qemu = true},
    {"undo-freeze", .peer = AGENT, .acts = thaw_acts, .begins = thaw_again_begins, .thaws = true,
     .without_qemu = true},
    {"undo-doubt", .peer = QEMU, .acts = doubt_acts, .ok = doubt_ok, .refuses = doubt_refuses,
     .refused_partly = true, .without_qemu = true},
    {"undo-cut", .peer = QEMU, .acts = merge_acts, .refuses = merge_refuses, .refused_partly = true,
     .merges = true},
    {"undo-files", .peer = QEMU, .acts = undo_files_acts, .refuses = undo_files_refuses,
     .refused_partly = true, .without_qemu = true},
    {"undo-record", .peer = US, .acts = undo_record_acts, .refused_partly = true},
    /* Deletion. */
    {"merge", .peer = QEMU, .acts = merge_acts, .refuses = merge_refuses, .refused_partly = true,
     .merges = true},
    {"files", .peer = QEMU, .acts = undo_files_acts, .refuses = undo_files_refuses,
     .refused_partly = true, .without_qemu = true},
    {"remove", .peer = US, .acts = remove_record_acts, .refused_partly = true,
     .last_may_fail = true},
    {"stop-merge", .peer = QEMU, .acts = stop_merge_acts, .refused_partly = true},
    {"close", .peer = US, .acts = close_journal_acts, .refused_partly = true},
    /* ... that was interrupted. */
    {"names", .peer = US, .acts = names_acts, .refuses = offline_refuses, .refused_partly = true},
    {"settle", .peer = QEMU, .acts = stop_merge_acts, .refused_partly = true},
    {"tidy", .peer = QEMU, .acts = undo_files_acts, .refuses = undo_files_refuses,
     .refused_partly = true, .without_qemu = true},
    /* Both disks are merge.c's: nothing is left for these. */
    {"graft", .peer = QEMU},
    {"drop", .peer = QEMU},
    /* Freezing by hand. */
    {"hold", .peer = US, .acts = hold_acts, .ok = NULL},
    {"undo-accept", .peer = US, .acts = close_journal_acts, .refused_partly = true},
};

/* Steps that have the name of another, and are none. */
static const struct model recovery_models[] = {
    {"read", .peer = US, .ok = read_ok},
    {"guard", .peer = US, .refuses = guard_is_alive},
    {"dismiss", .peer = US, .ok = dismiss_ok},
    {"thaw", .peer = AGENT, .acts = thaw_acts, .begins = thaw_again_begins, .thaws = true,
     .without_qemu = true},
    {"thaw-more", .peer = AGENT, .acts = thaw_acts, .begins = thaw_again_begins, .thaws = true,
     .without_qemu = true},
    {"graph", .peer = QEMU, .refuses = graph_refuses, .decides = true},
    {"offline", .peer = US, .acts = offline_acts, .ok = offline_ok, .refuses = offline_refuses,
     .refused_partly = true},
    {"turn", .peer = US, .acts = turn_acts, .refused_partly = true},
    {"let-go", .peer = QEMU, .acts = let_go_acts},
    {"close", .peer = US, .acts = close_recovery_acts, .refused_partly = true},
};

static const struct model restore_models[] = {
    {"connect", .peer = QEMU, .ok = reached_ok},
    {"guard", .peer = QEMU, .acts = halting_acts, .refused_partly = true},
    {"halt", .peer = QEMU, .acts = halt_acts},
    {"mirror", .peer = QEMU, .acts = mirror_acts, .refused_partly = true},
    {"flip", .peer = US, .acts = flip_acts, .refused_partly = true, .turns_back = true,
     .tears = true},
    {"pivot", .peer = QEMU, .acts = pivot_acts, .refused_partly = true, .without_qemu = true},
    {"reset", .peer = QEMU, .acts = reset_acts, .without_qemu = true},
    {"go-on", .peer = QEMU, .acts = go_on_acts, .without_qemu = true},
    {"tidy", .peer = QEMU, .without_qemu = true},
    {"record", .peer = US, .acts = restored_acts, .ok = restored_ok, .refused_partly = true,
     .last_may_fail = true},
    {"undo-turn", .peer = QEMU, .acts = pivot_acts, .refused_partly = true, .without_qemu = true},
    {"undo-reset", .peer = QEMU, .acts = reset_acts, .without_qemu = true},
    {"undo-mirror", .peer = QEMU, .acts = cancel_mirror_acts, .refused_partly = true,
     .without_qemu = true},
    {"undo-halt", .peer = QEMU, .acts = go_on_acts, .without_qemu = true},
    {"undo-record", .peer = US, .acts = undo_restore_acts, .ok = undo_restore_ok,
     .refused_partly = true},
};

static const struct model restore_recovery_models[] = {
    {"read", .peer = US},
    {"decide", .peer = US, .ok = decide_restore_ok},
    {"look", .peer = QEMU, .ok = look_at_restore_ok},
    {"halt", .peer = QEMU, .acts = halt_acts},
    {"unmirror", .peer = QEMU, .acts = cancel_mirror_acts, .refused_partly = true,
     .without_qemu = true},
    {"pivot", .peer = QEMU, .acts = pivot_acts, .refused_partly = true, .without_qemu = true},
    {"reset", .peer = QEMU, .acts = reset_acts, .without_qemu = true},
    {"go-on", .peer = QEMU, .acts = go_on_acts, .without_qemu = true},
    {"tidy", .peer = QEMU, .without_qemu = true},
    {"close", .peer = US, .acts = close_restore_acts, .refused_partly = true},
};

static const struct model *
find_model(const struct model *list, size_t count, const char *step)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i].step, step) == 0)
            return &list[i];
    return NULL;
}

static const struct model *
model_of(const struct state *s, const struct vf_step *step)
{
    const struct model *found = NULL;

    if (restores(s))
        found =
            find_model(restore_models, sizeof restore_models / sizeof *restore_models, step->name);
    if (s->engine.table == &vf_restore_recover_table)
        found = find_model(restore_recovery_models,
                           sizeof restore_recovery_models / sizeof *restore_recovery_models,
                           step->name);
    if (!found && recovers(s))
        found = find_model(recovery_models, sizeof recovery_models / sizeof *recovery_models,
                           step->name);
    if (!found)
        found = find_model(models, sizeof models / sizeof *models, step->name);
    if (!found) {
        printf("Bail out! no model of the step \"%s\"\n", step->name);
        exit(EXIT_FAILURE);
    }
    return found;
}

/* The engine's side: what it calls, and what must be true whenever it does. */

static int64_t
now_us(void *flow)
{
    struct state *s = flow;

    return s->now;
}

static void
check_order(const struct state *s, const struct vf_step *step)
{
    const struct vf_engine *engine = &s->engine;

    if (!engine->unwinding)
        return;
    if ((engine->owed & ~engine->given_up) & VF_OWE_THAW)
        must(step->pays & VF_OWE_THAW, "something is undone before the guest is thawed");
    if (engine->owed & VF_OWE_RESOLVE)
        must(!(step->pays & (VF_OWE_CUT | VF_OWE_FILES)), "a cut in doubt is undone");
    if (engine->owed & VF_OWE_CUT)
        must(!(step->pays & VF_OWE_FILES), "files of a cut are removed");
    if (engine->owed & VF_OWE_TURN) {
        must((step->pays & VF_OWE_TURN) || !(step->pays & (VF_OWE_FILES | VF_OWE_MIRROR)),
             "what names lead to is removed");
        must(!(step->pays & (VF_OWE_RESET | VF_OWE_HALT)), "a VM goes on while its disks change");
    }
    if (engine->owed & VF_OWE_MIRROR)
        must((step->pays & VF_OWE_MIRROR) || !(step->pays & VF_OWE_FILES),
             "files are removed that a job works on");
}

static void end_at_once(struct state *s);

static void
start(void *flow, const struct vf_step *step)
{
    struct state *s = flow;

    must(!s->done, "a step starts after the end");
    must(!s->waiting, "a step starts while another one runs");
    check_order(s, step);
    s->model = model_of(s, step);
    s->began = s->now;
    s->waiting = true;
    if (s->model->begins)
        s->model->begins(s);
    else if (s->model->peer == QEMU)
        take_back(s);
    if (s->engine.cancelled && !s->engine.committed && s->model->peer == US)
        end_at_once(s);
}

static void
abandon(void *flow, const struct vf_step *step)
{
    struct state *s = flow;

    must(!s->done, "a step is abandoned after the end");
    must(step == vf_engine_step(&s->engine), "a step is abandoned that does not run");
    s->abandoned++;
    s->waiting = false;
}

static void
arm(void *flow, int64_t due_us)
{
    struct state *s = flow;

    must(!s->done, "the timer is armed after the end");
    s->armed = due_us;
}

static void
trace(void *flow, const struct vf_step *step, enum vf_step_state state)
{
    struct state *s = flow;

    (void)step;
    must(!s->done, "a step is traced after the end");
    if (state == VF_STEP_STARTED)
        s->entered = s->now;
    if ((int)state != s->cancels_at)
        return;
    s->cancels_at = NEVER;
    vf_engine_cancel(&s->engine);
}

static void
finished(void *flow)
{
    struct state *s = flow;

    must(!s->done, "the end comes twice");
    must(s->armed == INT64_MAX, "the timer is still armed at the end");
    s->done = true;
}

static const struct vf_engine_ops ops = {now_us, start, abandon, arm, trace, finished};

/* Options: what can happen while the engine waits. */

enum option_kind {
    REPLY_OK,
    CARELESS_OK, /* although the last act failed */
    REPLY_REFUSED,
    REPLY_LOST, /* the connection, and the reply with it */
    SILENCE,
    DEADLINE, /* falls here */
    CANCEL,
    DEATH, /* of QEMU */
    PAUSE, /* between two attempts; it ends */
};

enum timing {
    IN_TIME,
    AFTER_DEADLINE, /* our own process slept through it before it read the reply */
    AFTER_LIMIT,
    CANCELLED_WHEN_DONE,  /* by somebody who is told that this step is done */
    CANCELLED_WHEN_BEGUN, /* ... that the next one has begun */
};

struct options {
    struct choice list[400];
    size_t count;
};

static void
offer(struct options *options, struct choice choice)
{
    if (options->count == sizeof options->list / sizeof *options->list) {
        printf("Bail out! too many options\n");
        exit(EXIT_FAILURE);
    }
    options->list[options->count++] = choice;
}

static void
list_acts(const struct state *s, struct acts *acts)
{
    acts->count = 0;
    if (s->model->acts)
        s->model->acts(s, acts);
    if (s->world.dead && s->model->peer == AGENT)
        acts->count = 0;
}

static bool
is_frozen_window(const struct state *s)
{
    const struct vf_step *step = vf_engine_step(&s->engine);

    return (strcmp(step->name, "freeze") == 0 || strcmp(step->name, "cut") == 0) &&
           owes(s, VF_OWE_THAW);
}

/* A reply, in time and too late. */
static void
offer_reply(const struct state *s, struct options *options, struct choice choice)
{
    offer(options, choice);
    if (s->engine.unwinding)
        return;
    choice.timing = AFTER_DEADLINE;
    if (has_deadline(s))
        offer(options, choice);
    choice.timing = AFTER_LIMIT;
    if (is_frozen_window(s))
        offer(options, choice);
}

/* What an answer to the question for file systems comes to. */
static const unsigned char choices[] = {0, ALL, ALL | THE_OTHERS, 1};
enum { CHOICES = sizeof choices / sizeof *choices };

static void
offer_ok(const struct state *s, struct options *options, size_t acts)
{
    struct choice choice = {.kind = REPLY_OK};

    offer_reply(s, options, choice);
    for (int timing = CANCELLED_WHEN_DONE; timing <= CANCELLED_WHEN_BEGUN; timing++)
        if (!s->engine.unwinding && !s->engine.committed)
            offer(options, (struct choice){.kind = REPLY_OK, .timing = (unsigned char)timing});
    if (s->model->decides) {
        choice.variant = 1;
        offer_reply(s, options, choice);
    }
    for (choice.variant = 1; s->model->chooses && choice.variant < CHOICES; choice.variant++)
        offer_reply(s, options, choice);
    choice = (struct choice){.kind = CARELESS_OK};
    if (s->model->last_may_fail && acts > 1)
        offer_reply(s, options, choice);
}

/* With all numbers of acts done, and the next one under way or not. */
static void
offer_unanswered(const struct state *s, struct options *options, const struct acts *acts,
                 enum option_kind kind)
{
    for (size_t i = 0; i <= acts->count; i++) {
        struct choice choice = {.kind = (unsigned char)kind, .acts = (unsigned char)i};

        if (kind == REPLY_LOST)
            offer_reply(s, options, choice);
        else
            offer(options, choice);
        if (kind == DEATH) {
            choice.variant = 1;
            offer(options, choice);
            continue;
        }
        if (i == acts->count)
            continue;
        choice.late = true;
        if (may_be_late(acts->list[i]))
            offer(options, choice);
    }
}

/* After how many of its acts a step may still be refused. */
static size_t
refusals_most(const struct model *model, size_t acts)
{
    if (!model->refused_partly)
        return 0;
    return model->last_may_fail && acts > 1 ? acts - 1 : acts;
}

/* A refusal after which another attempt would be no use, e.g. by another QEMU. */
static void
offer_hopeless(const struct state *s, struct options *options)
{
    if (vf_engine_step(&s->engine)->patience_ms)
        offer(options, (struct choice){.kind = REPLY_REFUSED, .variant = true});
}

/* Some acts were done, and could not be undone. */
static void
offer_torn(struct options *options, const struct acts *acts)
{
    for (size_t i = 1; i < acts->count; i++)
        offer(options, (struct choice){.kind = REPLY_LOST, .acts = (unsigned char)i});
}

static bool
hopeless(const struct choice *choice)
{
    return choice->kind == REPLY_REFUSED && choice->variant;
}

static bool
is_fault(const struct choice *choice)
{
    return !choice->forced &&
           ((choice->kind != REPLY_OK && choice->kind != PAUSE) || choice->timing != IN_TIME);
}

/* Whoever answers, or does something that comes after an answer, has done all that was asked
 * before. */
static void
land(struct state *s)
{
    if (s->model->peer == QEMU)
        land_qemu(&s->world);
    if (s->model->peer == AGENT)
        land_agent(&s->world);
}

static void
list_options(const struct state *s, struct options *options)
{
    const struct model *model = s->model;
    /* Of a stopped VM all but names goes with its storage daemon. */
    bool names_alone = s->world.offline && s->engine.unwinding;
    bool gone = s->world.dead && model->peer != US && !model->without_qemu && !names_alone;
    struct acts acts;

    options->count = 0;
    if (s->engine.pausing) {
        offer(options, (struct choice){.kind = PAUSE});
        if (!s->engine.unwinding && !s->engine.committed) {
            offer(options, (struct choice){.kind = CANCEL});
            if (has_deadline(s))
                offer(options, (struct choice){.kind = DEADLINE});
        }
        return;
    }
    if (gone) {
        offer(options, (struct choice){.kind = REPLY_REFUSED});
        offer(options, (struct choice){.kind = REPLY_LOST});
        offer_hopeless(s, options);
        return;
    }

    struct state landed = *s;

    land(&landed);
    list_acts(&landed, &acts);
    if (model->refuses && model->refuses(&landed))
        offer(options, (struct choice){.kind = REPLY_REFUSED, .forced = true});
    else
        offer_ok(&landed, options, acts.count);
    for (size_t i = 0; i == 0 || i <= refusals_most(model, acts.count); i++)
        offer_reply(s, options, (struct choice){.kind = REPLY_REFUSED, .acts = (unsigned char)i});
    offer_hopeless(s, options);
    if (model->tears)
        offer_torn(options, &acts);
    if (model->peer == US || s->world.dead)
        return;
    offer_unanswered(s, options, &acts, REPLY_LOST);
    offer_unanswered(s, options, &acts, SILENCE);
    offer_unanswered(s, options, &acts, DEATH);
    if (s->engine.unwinding || s->engine.committed)
        return;
    offer_unanswered(s, options, &acts, CANCEL);
    if (has_deadline(s))
        offer_unanswered(s, options, &acts, DEADLINE);
}

/* How many of its acts a step gets to. */
static size_t
acts_done(const struct choice *choice, size_t count)
{
    if (choice->kind == REPLY_OK)
        return count;
    if (choice->kind == CARELESS_OK)
        return count - 1;
    return choice->acts;
}

static void
happen(struct state *s, const struct choice *choice)
{
    bool ok = choice->kind == REPLY_OK || choice->kind == CARELESS_OK;
    struct acts acts;

    if (ok || choice->kind == REPLY_REFUSED || choice->acts > 0) {
        land(s);
        instant(s);
    }
    bool was_frozen = s->world.frozen;

    list_acts(s, &acts);
    size_t done = acts_done(choice, acts.count);

    for (size_t i = 0; i < done; i++)
        perform(s, acts.list[i]);
    if (choice->late && done < acts.count)
        leave_for_later(s, acts.list[done]);
    if (s->model->turns_back && choice->kind == REPLY_REFUSED)
        flip_gives_up(s);
    if (s->model->merges && choice->kind == REPLY_REFUSED)
        merge_gives_up(s, true);
    if (s->model->merges && choice->kind == REPLY_LOST)
        merge_gives_up(s, false);
    if (ok && s->model->thaws) {
        s->memory.thawed_equal = s->memory.frozen_known && was_frozen;
        s->world.said_thawed = s->world.journal;
        s->world.said_equal = s->memory.thawed_equal && s->memory.cut_known;
        s->world.said_partly = s->memory.partly;
        must(!s->memory.primed, "the guest is thawed, and QEMU still lacks only a byte of the cut");
        instant(s);
    }
}

static int64_t
patience_of(const struct state *s, const struct vf_step *step)
{
    return step->patience_ms == VF_PATIENCE_THAW ? s->engine.thaw_wait_ms : step->patience_ms;
}

/* A step that is tried again fails slowly, so that few attempts exhaust its patience: how many they
 * are makes no difference to what is checked here. */
static int64_t
reply_time_us(const struct state *s, const struct choice *choice)
{
    const struct vf_step *step = vf_engine_step(&s->engine);
    int64_t patience_ms = patience_of(s, step);
    int64_t slow_ms = patience_ms / 2 < step->budget_ms ? patience_ms / 2 : step->budget_ms - 1;

    return choice->kind != REPLY_OK && patience_ms > 0 ? 1000 * slow_ms : REPLY_US;
}

static void
pass_time(struct state *s, const struct choice *choice)
{
    s->now += reply_time_us(s, choice);
    switch ((enum timing)choice->timing) {
    case IN_TIME:
        break;
    case AFTER_DEADLINE:
        s->engine.deadline_us = s->now;
        s->memory.stalled = true;
        break;
    case AFTER_LIMIT:
        s->now = s->freeze_sent + 1000 * s->engine.frozen_limit_ms;
        s->memory.stalled = true;
        break;
    case CANCELLED_WHEN_DONE:
        s->cancels_at = VF_STEP_DONE;
        break;
    case CANCELLED_WHEN_BEGUN:
        s->cancels_at = VF_STEP_STARTED;
        break;
    }
}

static void
tick(struct state *s)
{
    must(s->armed < INT64_MAX, "the engine waits for ever");
    s->now = s->armed;
    vf_engine_tick(&s->engine);
}

static void
reply(struct state *s, const struct choice *choice, enum vf_outcome outcome)
{
    pass_time(s, choice);
    if (hopeless(choice))
        s->engine.hopeless = true;
    if (outcome == VF_OK && s->model->ok)
        s->model->ok(s);
    if (outcome == VF_OK && s->model->chooses)
        s->memory.chosen = choices[choice->variant];
    if (outcome == VF_OK && s->model->decides)
        graph_ok(s, choice->variant);
    s->waiting = false;
    vf_engine_complete(&s->engine, outcome);
    s->cancels_at = NEVER;
    if (choice->timing >= CANCELLED_WHEN_DONE)
        must(s->engine.unwinding || s->done || s->engine.committed,
             "a cancel from a callback is not heard");
}

/* Elsewhere the steps of our own wait for a choice like all others; but when somebody cancels
 * within a callback, there is no time at which that could be heard before they are done. */
static void
end_at_once(struct state *s)
{
    const struct choice ok_at_once = {.kind = REPLY_OK};

    happen(s, &ok_at_once);
    if (s->model->ok)
        s->model->ok(s);
    s->waiting = false;
    vf_engine_complete(&s->engine, VF_OK);
}

static void
apply(struct state *s, const struct choice *choice)
{
    const struct vf_step *step = vf_engine_step(&s->engine);
    int64_t patient_until = s->entered + 1000 * (patience_of(s, step) - step->pause_ms);
    bool was_pausing = s->engine.pausing, was_unwinding = s->engine.unwinding;

    s->abandoned = 0;
    s->memory.faults |= is_fault(choice);
    if (!was_pausing)
        happen(s, choice);
    switch ((enum option_kind)choice->kind) {
    case REPLY_OK:
    case CARELESS_OK:
        reply(s, choice, VF_OK);
        break;
    case REPLY_REFUSED:
        reply(s, choice, VF_REFUSED);
        break;
    case REPLY_LOST:
        reply(s, choice, VF_UNKNOWN);
        break;
    case DEATH:
        /* Nothing was written since the cut, or something was. */
        die(&s->world, choice->variant && !s->world.frozen);
        instant(s);
        reply(s, choice, VF_UNKNOWN);
        break;
    case SILENCE:
        tick(s);
        must(s->abandoned == 1, "the timer ends a step that is not abandoned");
        break;
    case DEADLINE:
        /* A run whose deadline was this from the beginning would have come here just so. */
        s->engine.deadline_us = s->now + REPLY_US;
        must(vf_engine_due(&s->engine) == s->engine.deadline_us, "the deadline is not due");
        s->now = s->engine.deadline_us;
        vf_engine_tick(&s->engine);
        must(s->abandoned == 1, "the deadline ends a step that is not abandoned");
        must(s->engine.unwinding, "the deadline does not unwind");
        break;
    case CANCEL:
        vf_engine_cancel(&s->engine);
        must(s->abandoned == 1, "a cancel ends a step that is not abandoned");
        must(s->engine.unwinding, "a cancel does not unwind");
        break;
    case PAUSE:
        tick(s);
        must(s->waiting && s->abandoned == 0, "a pause does not end in an attempt");
        break;
    }
    if (was_unwinding && choice->kind > CARELESS_OK && choice->kind != PAUSE)
        must(s->engine.pausing == (s->now < patient_until && !hopeless(choice)),
             "the way back gives up too early, or too late");
    instant(s);
}

/* What must be true while the engine waits. */

static int64_t
least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void
check_waiting(const struct state *s)
{
    const struct vf_engine *engine = &s->engine;
    const struct vf_step *step = vf_engine_step(engine);
    int64_t due = engine->pausing ? s->armed : s->began + INT64_C(1000) * step->budget_ms;

    must(s->waiting != engine->pausing, "the engine waits for nothing");
    must(s->armed > s->now && s->armed < INT64_MAX, "the engine waits for ever");
    if (engine->pausing)
        must(s->armed <= s->now + INT64_C(1000) * step->pause_ms, "a pause is too long");
    if (!engine->unwinding && !engine->committed)
        due = least(due, engine->deadline_us);
    if (!engine->unwinding && is_frozen_window(s))
        due = least(due, s->freeze_sent + 1000 * engine->frozen_limit_ms);
    must(s->armed == due, "the timer is not armed for the first of all limits");
    must(s->armed == vf_engine_due(engine), "the timer is not armed for what is due");
    if (!engine->unwinding)
        return;

    struct state copy = *s;

    copy.engine.flow = &copy;
    copy.engine.deadline_us = s->now;
    vf_engine_cancel(&copy.engine);
    vf_engine_tick(&copy.engine);
    must(copy.engine.step == engine->step && copy.waiting == s->waiting && !copy.done &&
             copy.abandoned == s->abandoned && copy.armed == s->armed,
         "the way back can be cancelled, or has a deadline");
}

/* What must be true at the end. */

static bool
may_be_frozen(const struct state *s)
{
    return s->engine.owed & VF_OWE_THAW;
}

static void
check_snapshot_end(const struct state *s)
{
    const struct world *w = &s->world;
    const struct memory *m = &s->memory;

    if (m->recorded) {
        must(w->turned == ALL && w->files == ALL && (w->cut == ALL || w->dead || w->offline),
             "a snapshot is told to be taken, and is not whole");
        must(is_ready(w), "a snapshot is told to be taken, and its record says something else");
        if (w->record == SUCCEEDED)
            must(!may_be_frozen(s) && !m->unverified, "the record succeeded, the result did not");
        must(!m->quiesce_failed || (s->engine.conditions & VF_IF_PREFER),
             "a snapshot without the freeze that it was asked for");
        if (w->record == SUCCEEDED && m->froze && !m->quiesce_failed)
            must(m->thawed_equal, "success, but the thaw is not confirmed");
    } else if (!s->engine.owed) {
        must(w->record == FAILED || w->record == NO_RECORD, "a failure without a Failed record");
        must(s->engine.cause != VF_CAUSE_NONE, "a failure without a cause");
        must(!w->journal, "nothing is owed, but there is a journal");
    }
    if (!m->faults)
        must(m->recorded && w->record == SUCCEEDED && !s->engine.owed, "no fault and no success");
}

static void
check_restore_end(const struct state *s)
{
    const struct world *w = &s->world;
    unsigned owed = s->engine.owed;

    if (s->memory.recorded)
        must(w->turned == ALL && w->record == SUCCEEDED, "told to be restored, and is not");
    else
        must(s->engine.cause != VF_CAUSE_NONE, "a failure without a cause");
    if (s->engine.committed && w->turned)
        must(s->engine.cause != VF_CAUSE_DEADLINE && s->engine.cause != VF_CAUSE_CANCELLED,
             "no way back, but a deadline or a cancel");
    if (w->turned != 0 && w->turned != ALL)
        must(owed & VF_OWE_TURN, "names of two states, and nobody owes to turn them");
    if (!w->dead && w->stopped)
        must(owed & (VF_OWE_HALT | VF_OWE_RESET | VF_OWE_TURN), "the VM is left stopped");
    if (!owed && !s->memory.recorded)
        must(!w->journal, "nothing is owed, but there is a journal");
    if (!s->memory.faults)
        must(s->memory.recorded && !owed && !w->journal, "no fault and no success");
}

/* Nothing is left undone but what was tried for long enough, and what has to wait for that. */
static void
check_served(const struct state *s)
{
    const struct vf_table *table = s->engine.table;
    unsigned left = s->engine.owed & ~s->engine.given_up;

    for (size_t i = 0; s->engine.unwinding && i < table->undo_count; i++)
        if (left & table->undos[i].debt)
            must(table->undos[i].unless & s->engine.owed, "a debt is not served");
}

/* Two images of one disk have data that the other has not. */
static bool
asks_somebody(const struct state *s)
{
    return (recovers(s) || deletes(s) || settles(s)) && in_conflict(&s->world);
}

static void
check_end(const struct state *s)
{
    struct state landed = *s;

    check_served(s);
    if (!s->memory.faults && !asks_somebody(s))
        must(!s->engine.owed && s->engine.cause == VF_CAUSE_NONE,
             "no fault, but something is owed");
    must(!s->memory.primed, "the end, and QEMU still lacks only a byte of the cut");
    /* Whatever is still under way happens. */
    land_qemu(&landed.world);
    land_agent(&landed.world);
    instant(&landed);
    if (landed.world.frozen && !landed.world.held)
        must(may_be_frozen(s) || (recovers(s) && landed.world.journal),
             "the guest is frozen and no thaw is owed");
    if (s->engine.table == &vf_snapshot_table)
        check_snapshot_end(s);
    if (restores(&landed))
        check_restore_end(&landed);
    if (s->engine.table == &vf_freeze_table && !s->engine.owed && !s->world.held)
        must(!s->world.journal, "nothing is owed, but there is a journal");
    if (s->engine.table == &vf_freeze_table && s->engine.cause != VF_CAUSE_NONE)
        must(!s->world.held, "a freeze is told to have failed, and the guest stays frozen");
    if (s->engine.table == &vf_freeze_table && !s->memory.faults)
        must(s->world.held && s->world.frozen && s->world.journal, "no fault and no freeze");
    if (settles(s) && !s->memory.faults && !asks_somebody(s))
        must(!s->world.journal, "a deletion that is settled leaves a journal");
    if (deletes(s) && !s->memory.faults && !asks_somebody(s))
        must(s->world.record == NO_RECORD && !s->world.journal, "no fault and no deletion");
    if (recovers(s) && !s->memory.faults && !asks_somebody(s))
        must(!s->world.journal, "a recovery that nothing disturbed leaves a journal");
}

/* Exploration. */

enum { KEY_SIZE = 128, WORLD_KEY_SIZE = 48 };

/* A set of byte strings, each with a number. */
struct set {
    size_t key_size; /* a multiple of 8, KEY_SIZE at most */
    struct slot {
        unsigned char key[KEY_SIZE];
        bool used, open; /* open: on the path to the present state */
        double sequences;
    } * slots;
    size_t room, count;
};

static struct slot *
probe(const struct set *set, const unsigned char *key)
{
    uint64_t hash = 0, word;

    for (size_t i = 0; i < set->key_size; i += sizeof word) {
        memcpy(&word, key + i, sizeof word);
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 32;
    }
    for (size_t at = hash & (set->room - 1);; at = (at + 1) & (set->room - 1))
        if (!set->slots[at].used || memcmp(set->slots[at].key, key, set->key_size) == 0)
            return &set->slots[at];
}

/* Valid until the next call. */
static struct slot *
set_slot(struct set *set, const unsigned char *key)
{
    if (2 * set->count >= set->room) {
        struct set larger = *set;

        larger.room = set->room ? 2 * set->room : 1 << 12;

        larger.slots = calloc(larger.room, sizeof *larger.slots);
        if (!larger.slots)
            abort();
        for (size_t i = 0; i < set->room; i++)
            if (set->slots[i].used)
                *probe(&larger, set->slots[i].key) = set->slots[i];
        free(set->slots);
        *set = larger;
    }
    return probe(set, key);
}

static struct slot *
set_add(struct set *set, const unsigned char *key)
{
    struct slot *slot = set_slot(set, key);

    memcpy(slot->key, key, set->key_size);
    slot->used = true;
    set->count++;
    return slot;
}

static void
set_release(struct set *set)
{
    free(set->slots);
    *set = (struct set){.key_size = set->key_size};
}

static struct set states = {.key_size = KEY_SIZE};
static size_t transitions;
static size_t faults_most; /* 0: no limit */

static void
put(unsigned char **at, int64_t number)
{
    memcpy(*at, &number, sizeof number);
    *at += sizeof number;
}

static int64_t
time_left(const struct state *s, int64_t due)
{
    if (due == INT64_MAX)
        return -2;
    return due > s->now ? due - s->now : -1;
}

/* All that the future depends on. Times are relative to now, and left out where nothing asks for
 * them any more. */
static void
make_key(const struct state *s, size_t faults, unsigned char key[KEY_SIZE])
{
    const struct vf_engine *engine = &s->engine;
    const struct vf_step *step = vf_engine_step(engine);
    bool forward = !engine->unwinding;
    bool window = forward && s->memory.froze && !s->memory.thaw_sent;
    unsigned char *at = key;

    memset(key, 0, KEY_SIZE);
    put(&at, time_left(s, engine->attempt_due_us));
    put(&at, step->patience_ms ? time_left(s, engine->patience_due_us) : 0);
    put(&at, window ? time_left(s, engine->window_due_us) : 0);
    put(&at, window ? s->now - s->freeze_sent : 0);
    put(&at, forward ? time_left(s, engine->deadline_us) : 0);
    put(&at, (int64_t)engine->owed << 32 | engine->given_up);
    put(&at, (int64_t)engine->conditions << 32 | (int64_t)engine->cause << 16 |
                 engine->committed << 4 | engine->unwinding << 3 | engine->pausing << 2 |
                 engine->cancelled << 1 | engine->finished);
    put(&at, (int64_t)faults << 8 | engine->step);
    memcpy(at, &s->world, sizeof s->world);
    at += sizeof s->world;
    memcpy(at, &s->memory, sizeof s->memory);
    at += sizeof s->memory;
    _Static_assert(8 * sizeof(int64_t) + sizeof s->world + sizeof s->memory <= KEY_SIZE,
                   "a key has room for everything");
}

/* The number of sequences that begin here. */
static double
explore(const struct state *s, size_t faults)
{
    unsigned char key[KEY_SIZE];
    struct options options;
    double sequences = 0;

    if (violation)
        return 0;
    if (s->done) {
        check_end(s);
        return 1;
    }
    check_waiting(s);
    make_key(s, faults_most ? faults : 0, key);
    struct slot *slot = set_slot(&states, key);

    if (slot->used) {
        must(!slot->open, "the engine goes round in a circle");
        return slot->sequences;
    }
    set_add(&states, key)->open = true;
    list_options(s, &options);
    for (size_t i = 0; i < options.count; i++) {
        const struct choice *choice = &options.list[i];
        bool fault = is_fault(choice);
        struct state next = *s;

        if (faults_most && faults + fault > faults_most)
            continue;
        next.engine.flow = &next;
        path[depth].choice = *choice;
        path[depth].step = vf_engine_step(&s->engine)->name;
        must(depth + 2 < DEPTH_MOST, "a run has no end");
        depth++;
        transitions++;
        apply(&next, choice);
        sequences += explore(&next, faults + fault);
        depth--;
        if (violation)
            return 0;
    }
    slot = set_slot(&states, key);
    slot->open = false;
    slot->sequences = sequences;
    return sequences;
}

static void
describe_choice(const char *step, const struct choice *choice, char *text, size_t size)
{
    static const char *const kinds[] = {
        [REPLY_OK] = "ok",           [CARELESS_OK] = "ok, but careless",
        [REPLY_REFUSED] = "REFUSED", [REPLY_LOST] = "LOST",
        [SILENCE] = "SILENCE",       [DEADLINE] = "DEADLINE",
        [CANCEL] = "CANCEL",         [DEATH] = "QEMU DIES",
        [PAUSE] = "(pause)",
    };
    static const char *const timings[] = {
        [IN_TIME] = "",
        [AFTER_DEADLINE] = ", after the deadline",
        [AFTER_LIMIT] = ", after the frozen limit",
        [CANCELLED_WHEN_DONE] = ", CANCEL when told of it",
        [CANCELLED_WHEN_BEGUN] = ", CANCEL when told of the next step",
    };
    char done[48] = "";

    if (choice->kind != REPLY_OK && choice->kind != PAUSE && (choice->acts || choice->late))
        snprintf(done, sizeof done, " (%d acts done%s)", choice->acts,
                 choice->late ? ", the next one late" : "");
    snprintf(text, size, "%s %s%s%s%s; ", step, kinds[choice->kind], done, timings[choice->timing],
             choice->variant ? ", variant" : "");
}

static void
describe_path(char *text, size_t size)
{
    size_t length = 0;

    text[0] = '\0';
    if (origin)
        length = (size_t)snprintf(text, size, "%s", origin);
    for (size_t i = 0; i < depth && length + 120 < size; i++) {
        describe_choice(path[i].step, &path[i].choice, text + length, size - length);
        length += strlen(text + length);
    }
}

/* A crash's world, after the path to it. */
static void
describe_world(const struct world *w, char *text, size_t size)
{
    static const char *const records[] = {"none",      "InProgress",
                                          "Succeeded", "Failed but ready",
                                          "Failed",    "Failed with images"};

    snprintf(text, size,
             "CRASH with record %s%s%s%s%s%s, files %d, names turned %d, second names %d/%d, cut "
             "%d%s, merged for good %d; ",
             records[w->record], w->dead ? ", QEMU dead" : "", w->frozen ? ", frozen" : "",
             w->said_froze ? ", freeze in the journal" : "",
             w->said_thawed ? ", thaw in the journal" : "", w->stopped ? ", stopped" : "", w->files,
             w->turned, w->next_overlay, w->next_base, w->cut, w->late_cut ? " (late)" : "",
             w->said_final);
}

/* Crashes. */

struct crash {
    struct world world;
    char *how;
};

static struct set crash_set = {.key_size = WORLD_KEY_SIZE};
static struct crash *crashes;
static size_t crash_count, crash_room;

static bool
add_crash(const struct world *world)
{
    unsigned char key[WORLD_KEY_SIZE] = {0};
    char how[sizeof violation_path];

    _Static_assert(sizeof *world <= sizeof key, "a key has room for a world");
    memcpy(key, world, sizeof *world);
    if (set_slot(&crash_set, key)->used)
        return false;
    set_add(&crash_set, key);
    if (crash_count == crash_room) {
        crash_room = crash_room ? 2 * crash_room : 256;
        crashes = realloc(crashes, crash_room * sizeof *crashes);
        if (!crashes)
            abort();
    }
    describe_path(how, sizeof how);
    describe_world(world, how + strlen(how), sizeof how - strlen(how));
    crashes[crash_count++] = (struct crash){*world, strdup(how)};
    return true;
}

/* The tables themselves. */

static bool
is_row(const struct vf_table *table, unsigned step)
{
    return step == VF_STEP_END || (step < table->step_count && table->steps[step].name);
}

static void
check_table(const struct vf_table *table)
{
    unsigned undone = 0, owed = 0;
    bool sound = true;

    for (size_t i = 0; i < table->undo_count; i++) {
        const struct vf_step *step = &table->steps[table->undos[i].step];

        undone |= table->undos[i].debt;
        sound &= (step->pays & table->undos[i].debt) && !step->owes && !step->when;
    }
    for (size_t i = 1; i < table->step_count; i++) {
        const struct vf_step *step = &table->steps[i];

        if (!step->name) /* a step of the operation's other table */
            continue;
        owed |= step->owes;
        sound &= step->title && step->start && step->budget_ms > 0;
        sound &= !(step->sticky & ~step->owes);
        sound &= is_row(table, step->next) && is_row(table, step->otherwise);
        /* Without a pause it would be tried again and again at once. Between two attempts nothing
         * is booked anew: a refusal must not cancel what an attempt before it may have done. */
        if (step->patience_ms)
            sound &= step->pause_ms > 0 && step->owes == step->sticky;
    }
    ok(sound, "%s: each row makes sense", table->operation);
    ok(!(owed & ~undone), "%s: each debt has its way back", table->operation);
}

/* Running. */

static struct state
initial(const struct vf_table *table, const struct world *world, unsigned conditions)
{
    struct state s;

    memset(&s, 0, sizeof s);
    s.engine = (struct vf_engine){
        .table = table,
        .ops = &ops,
        .deadline_us = INT64_MAX,
        .frozen_limit_ms = table == &vf_freeze_table ? FROZEN_LIMIT_MS : 0,
        .thaw_wait_ms = THAW_WAIT_MS,
        .conditions = conditions,
    };
    s.world = *world;
    s.cancels_at = NEVER;
    s.now = 1000000;
    s.armed = INT64_MAX;
    return s;
}

static double
explore_from(const struct vf_table *table, const struct world *world, unsigned conditions)
{
    struct state s = initial(table, world, conditions);

    s.engine.flow = &s;
    depth = 0;
    instant(&s);
    vf_engine_run(&s.engine);
    return explore(&s, 0);
}

/* Once more with few faults, so that the sequence that is told is a short one. */
static void
find_shortest(const struct vf_table *table, const struct world *world, unsigned conditions)
{
    for (faults_most = 1; faults_most <= 3; faults_most++) {
        violation = NULL;
        set_release(&states);
        set_release(&crash_set);
        explore_from(table, world, conditions);
        if (violation)
            break;
    }
    faults_most = 0;
}

static void
play(const char *what, const struct vf_table *table, struct world world, unsigned conditions)
{
    violation = NULL;
    origin = NULL;
    transitions = 0;
    set_release(&states);
    double sequences = explore_from(table, &world, conditions);

    if (violation) {
        const char *first = violation;
        static char first_path[sizeof violation_path];

        memcpy(first_path, violation_path, sizeof first_path);
        find_shortest(table, &world, conditions);
        if (!violation) {
            violation = first;
            memcpy(violation_path, first_path, sizeof first_path);
        }
    }
    if (!ok(!violation, "%s: every sequence of outcomes", what))
        diag("%s: %s", violation, violation_path);
    diag("%.3g sequences, %zu states, %zu transitions; %zu worlds after a crash so far", sequences,
         states.count, transitions, crash_count);
}

static const struct vf_table *
recovery_of(const struct world *w)
{
    return w->journal && w->operation == RESTORE ? &vf_restore_recover_table : &vf_recover_table;
}

/* The VM is started before the recovery, with what the names lead to, and its guest writes. */
static struct world
started(struct world world)
{
    world.data = has_data(&world);
    world.dead = false;
    world.other = true;
    world.cut = world.turned;
    world.base_written |= ALL & ~world.turned;
    return world;
}

static struct world
stopped_again(struct world world)
{
    die(&world, true);
    return world;
}

/* A VM that was started and stopped again, after an operation on a running one: whether its guest
 * had written to a base before the cut or after it, no file tells if it wrote nothing else; nor
 * whether it was the guest, where a merge had begun. */
static bool
is_beyond_knowledge(const struct world *w)
{
    unsigned told = w->said_merging ? 0 : w->offline ? ALL : has_data(w);

    return w->other && w->dead && (w->base_written & ~told);
}

/* A deletion has no recovery of its own: it is gone on with, or, before another operation, only
 * settled. */
static double
explore_resumed(const struct world *w)
{
    double sequences = 0;

    if (!w->journal || is_beyond_knowledge(w))
        return explore_from(&vf_delete_table, w, 0);
    for (int variant = 0; variant < (w->dead && !w->other ? 2 : 1); variant++) {
        struct world world = variant ? started(*w) : *w;
        unsigned conditions =
            VF_IF_INTERRUPTED | (world.dead || world.other ? VF_IF_OFFLINE : VF_IF_QEMU);

        sequences += explore_from(&vf_delete_table, &world, conditions);
        sequences += explore_from(&vf_settle_table, &world, conditions);
    }
    return sequences;
}

static void
play_recoveries(void)
{
    double sequences = 0;
    size_t begun = crash_count, i;

    violation = NULL;
    transitions = 0;
    set_release(&states);
    for (i = 0; i < crash_count && !violation; i++) {
        origin = crashes[i].how;
        struct world world = crashes[i].world;

        if (world.operation == DELETE) {
            sequences += explore_resumed(&world);
            continue;
        }
        if (world.offline && world.no_vm) /* the storage daemon dies with us */
            continue;
        if (is_beyond_knowledge(&world))
            continue;
        sequences += explore_from(recovery_of(&world), &world, 0);
        if (world.operation != SNAPSHOT || !world.journal || !world.dead || world.other)
            continue;
        struct world again = started(world);

        sequences += explore_from(recovery_of(&again), &again, 0);
        if (!world.offline) /* who had written to a base by then cannot be known */
            continue;
        again = stopped_again(again);
        sequences += explore_from(recovery_of(&again), &again, 0);
    }
    if (!ok(!violation, "recovery after every crash: every sequence of outcomes"))
        diag("%s: %s", violation, violation_path);
    diag("%zu worlds after a crash, %zu of them only after a crash of a recovery; %.3g sequences, "
         "%zu states, %zu transitions",
         i, crash_count - begun, sequences, states.count, transitions);
}

static void
release_all(void)
{
    set_release(&states);
    set_release(&crash_set);
    for (size_t i = 0; i < crash_count; i++)
        free(crashes[i].how);
    free(crashes);
}

int
main(void)
{
    const struct world nothing = {.operation = SNAPSHOT};
    const struct world a_snapshot = {
        .operation = DELETE, .record = SUCCEEDED, .files = ALL, .turned = ALL, .cut = ALL};
    const struct world offline = {.operation = SNAPSHOT, .no_vm = true, .offline = true};
    const struct world by_hand = {.operation = FREEZE};
    const struct world to_restore = {.operation = RESTORE};
    const struct world to_restore_offline = {.operation = RESTORE, .no_vm = true};

    check_table(&vf_snapshot_table);
    check_table(&vf_delete_table);
    check_table(&vf_settle_table);
    check_table(&vf_freeze_table);
    check_table(&vf_recover_table);
    check_table(&vf_restore_table);
    check_table(&vf_restore_recover_table);
    check_table(&vf_export_table);
    check_table(&vf_clone_table);
    agent_answers = no_agent_is_there;
    play("snapshot without an agent", &vf_snapshot_table, nothing, 0);
    play("snapshot without an agent, prefer", &vf_snapshot_table, nothing, VF_IF_PREFER);
    agent_answers = agent_is_there;
    play("snapshot with an agent", &vf_snapshot_table, nothing, 0);
    play("snapshot with an agent, prefer", &vf_snapshot_table, nothing, VF_IF_PREFER);
    play("..., flushed", &vf_snapshot_table, nothing, VF_IF_FLUSH);
    play("..., what is frozen is chosen", &vf_snapshot_table, nothing, VF_IF_MOUNTS);
    primes = true;
    play("..., primed", &vf_snapshot_table, nothing, 0);
    play("..., all of it", &vf_snapshot_table, nothing, VF_IF_FLUSH | VF_IF_MOUNTS);
    play("..., all of it, prefer", &vf_snapshot_table, nothing,
         VF_IF_FLUSH | VF_IF_MOUNTS | VF_IF_PREFER);
    primes = false;
    play("snapshot of a VM that is not running", &vf_snapshot_table, offline, 0);
    play("freeze", &vf_freeze_table, by_hand, 0);
    play("delete", &vf_delete_table, a_snapshot, 0);
    play("restore", &vf_restore_table, to_restore, 0);
    play("restore of a VM that is not running", &vf_restore_table, to_restore_offline, 0);
    play_recoveries();
    release_all();
    return done_testing();
}
