/* SPDX-License-Identifier: MIT
 *
 * An operation on one VM: what all flows have in common.
 *
 * A flow is a step table (snapshot.c, delete.c, recover.c, ...) and this struct, on which the
 * tables' step functions work. A step function starts something and returns; it ends its step
 * by vf_end() or by a vf_expect() that fails, exactly once.
 *
 * Guarantees: `done` fires exactly once, from the loop; what a step left outstanding when it
 * ended cannot call anybody back; the first cause of a failure is what the caller is told, and
 * trouble on the way back is told beside it, never lost.
 */
#ifndef VF_FLOWS_FLOW_H
#define VF_FLOWS_FLOW_H

#include <ev.h>

#include "engine/engine.h"
#include "engine/guard.h"
#include "flows/gate.h"
#include "store/classes.h"
#include "store/journal.h"
#include "store/store.h"
#include "util/log.h"
#include "vm/cut.h"
#include "vm/mounts.h"
#include "vm/plan.h"
#include "vm/process.h"
#include "wire/daemon.h"
#include "wire/program.h"
#include "wire/qga.h"
#include "wire/qmp.h"

struct vf_flow;

/* Debts. The undo order is in each table. */
enum {
    VF_OWE_RECORD = 1 << 0,  /* the record and the journal have to be closed */
    VF_OWE_FILES = 1 << 1,   /* overlays: nodes, files, links */
    VF_OWE_CUT = 1 << 2,     /* the VM runs on the overlays */
    VF_OWE_RESOLVE = 1 << 3, /* whether it does is not known */
    VF_OWE_THAW = 1 << 4,
    VF_OWE_HALT = 1 << 5,    /* restore: the VM was stopped by us */
    VF_OWE_MIRROR = 1 << 6,  /* restore: jobs that lead to the restored disks */
    VF_OWE_TURN = 1 << 7,    /* restore: names lead to the restored disks, QEMU perhaps not */
    VF_OWE_RESET = 1 << 8,   /* restore: the guest must not go on on other disks */
    VF_OWE_PARTS = 1 << 9,   /* export, clone: files that are not whole */
    VF_OWE_FINISH = 1 << 10, /* all of the group has its snapshot: there is no way back */
};

/* Conditions. */
enum {
    VF_IF_AGENT = 1 << 0,       /* the guest is to be frozen, and can be */
    VF_IF_PREFER = 1 << 1,      /* a failed freeze is no failure of the snapshot */
    VF_IF_INTERRUPTED = 1 << 2, /* a journal was found */
    VF_IF_THAW_OWED = 1 << 3,   /* recovery: a thaw is not confirmed */
    VF_IF_QEMU = 1 << 4,        /* recovery: the process is alive */
    VF_IF_FORWARD = 1 << 5,     /* recovery: finish it */
    VF_IF_MERGE = 1 << 6,       /* recovery, delete: merge the overlays back */
    VF_IF_FILES = 1 << 7,       /* recovery: remove what was prepared */
    VF_IF_OFFLINE = 1 << 8,     /* recovery: QEMU is gone; verify: it need not be there */
    VF_IF_ONLINE = 1 << 9,      /* QEMU is reached */
    VF_IF_STOPPED = 1 << 10,    /* the VM is not running, and a storage daemon has its images */
    VF_IF_HALT = 1 << 11,       /* recovery: the VM runs, and should not */
    VF_IF_FLUSH = 1 << 12,      /* the guest is to write out what is dirty before the freeze */
    VF_IF_MOUNTS = 1 << 13,     /* it is to be asked for its file systems */
    VF_IF_GROUP = 1 << 14,      /* one of several VMs that get a snapshot at one instant */
};

typedef void vf_flow_fn(struct vf_flow *flow, const struct vf_reply *reply);

/* Replies to the questions of the step "look", owned; NULL: not asked. */
struct vf_facts {
    struct json_object *status, *migrate, *jobs, *block_jobs, *block, *nodes, *graph, *chardev;
    struct json_object *hotplugged; /* of each device of a disk, by query-block's "qdev" */
};

/* What is known of the guest agent. */
struct vf_agent {
    char *socket;    /* NULL: none found */
    char *port_id;   /* id= of its virtserialport, for VSERPORT_CHANGE; NULL: none */
    bool port_known; /* the port's state could be asked */
    bool port_open;  /* something in the guest has it open */
    bool connected;  /* it answered */
    bool taken;      /* when QEMU was looked at, somebody was connected to its socket */
    bool windows;
    bool can_exec; /* it runs commands */
    bool can_list; /* it tells its file systems, and freezes some of them */
    char *message; /* for people: why it is not connected */
};

/* A storage daemon beside a running QEMU: side.c. */
struct vf_side {
    struct vf_qmp *qmp; /* of the one that is not asked now */
    struct vf_process qemu;
    struct vf_daemon daemon;
    bool taken; /* the daemon is asked */
    const struct vf_graft *graft;
    void (*fn)(struct vf_flow *flow);
};

/* When things happened, in microseconds of the monotonic clock; 0: they did not. */
struct vf_evidence {
    int64_t flush_sent, flushed, host_flush, host_flushed;
    int64_t freeze_sent, frozen, cut_sent, cut, thaw_sent, thawed;
    int64_t frozen_count, thawed_count; /* file systems; -1: not told */
    bool primed;                        /* the cut was sent before the freeze, but its last byte */
    char *disturbed; /* what happened in the window that voids consistency; NULL: nothing */
};

/* Of a restore. */
struct vf_restore {
    char *keep;     /* the snapshot that the present state becomes; NULL: not named yet, or none */
    char *label;    /* ... and the new files of disks whose names cannot be turned are called so */
    bool discard;   /* it is thrown away */
    bool reset;     /* a running VM may be reset */
    bool running;   /* it was, before we stopped it */
    bool turned;    /* the point of no return is behind us */
    bool restored;  /* all is done but tidying up */
    bool finishing; /* the jobs are to be ended, not only to be made ready */
    bool looked;    /* the graph was asked for in this step */
    bool failed;    /* a job of this step ended in an error */
    bool asked, came;              /* the reset was confirmed; its event */
    bool anew;                     /* recovery: the guest runs on the restored disks already */
    struct json_object *snapshot;  /* the record of what is restored */
    struct json_object *old_nodes; /* names, from each disk's root downwards */
    bool drops_again;              /* over a new connection: there is no third time */
    struct json_object *jobs;      /* as asked last */
    unsigned char *served;         /* for each disk, what was asked for it last in this step */
};

/* Requests that were sent together. */
struct vf_batch {
    const char **about; /* for each request, what it is about: borrowed */
    size_t asked, answered;
    const char *failed; /* what the first one was about that is not OK; stays when all is over */
    enum vf_outcome outcome;
    char *words;
    vf_flow_fn *fn;
};

/* What is going to be frozen: mounts.c. */
struct vf_freezing {
    struct vf_mountlist wish;
    struct vf_mounts mounts;
    struct json_object *fsinfo;
    struct json_object *pci; /* query-pci */
    struct vf_device *devices;
    size_t device_count;
};

struct vf_pending;
struct vf_graft;
struct vf_using;
struct vf_member;

struct vf_flow {
    /* The caller fills in (strings are owned by the flow): */
    struct vmfrost *context;
    struct ev_loop *loop;
    struct vf_store *store;
    struct vf_log log;
    char *vm_name;                           /* as the user gave it */
    char *snapshot_name;                     /* NULL: none yet */
    struct vmfrost_snapshot_options options; /* its strings are not valid: see below */
    char **exclude, **include;
    size_t exclude_count, include_count;
    int64_t limit_ms, wait_ms; /* freeze and thaw by hand */
    vmfrost_event_fn *on_event;
    vmfrost_done_fn *on_done;
    void *data;
    void (*prepare)(struct vf_flow *flow);  /* when the lock is held and all is recovered; may note
                                               an  error; may be NULL */
    void (*document)(struct vf_flow *flow); /* completes `document_json` at the end; may be NULL */
    bool changes;      /* takes the VM's lock, and recovers what an earlier operation left */
    bool no_recovery;  /* ... only takes the lock */
    bool without_lock; /* ... and goes on if that cannot be had, and nobody has it: a thaw */

    /* Shared by the steps: */
    struct vmfrost_error error;
    struct vf_engine engine;
    struct vf_vm vm;
    int lock_fd; /* -1: not locked */
    struct vf_qmp *qmp;
    struct vf_qga *qga;
    struct vf_process qemu; /* with VF_IF_STOPPED the storage daemon */
    bool peer_known;        /* whose QEMU is, by its socket: peer.c */
    uid_t peer_uid;
    struct vf_view view;             /* what it sees: vf_view_of_qemu() */
    unsigned view_turn;              /* the turn of the loop in which that was read */
    struct vf_daemon daemon;         /* of a VM that is not running */
    struct json_object *known_disks; /* ... and its disks, as vf_disks_known() has them */
    bool may_be_stopped;             /* the running step may go offline */
    int *overlay_fds;                /* ... and its new overlays, while they are made; NULL: none */
    size_t overlay_fd_count;
    char *qemu_version;
    bool before_6_1; /* this QEMU may crash where the guest writes meanwhile: merge.c, graft.c */
    struct vf_facts facts;
    struct vf_classes classes; /* of storage */
    bool classes_known;
    bool any_class; /* what they leave out does not matter: its disks are in a snapshot already */
    struct vf_plan plan;
    struct vf_agent agent;
    struct vf_cut *cuts;
    size_t cut_count;
    struct vf_graft *grafts; /* deletion: graft.h */
    size_t graft_count;
    char id[17]; /* of this operation: in hidden names, node names, job names */
    bool preopened;
    struct vf_journal journal;
    struct vf_guard guard;
    struct json_object *record; /* NULL: this flow has none */
    struct json_object *document_json;
    struct json_object *warnings; /* array of strings */
    struct vf_evidence evidence;
    enum vmfrost_snapshot_state snapshot_state;
    bool froze;           /* a freeze was sent */
    bool unverified;      /* taken, but the thaw came late or is not proved */
    bool emergency;       /* the emergency thaw was sent */
    bool cut_begun;       /* the transaction may have been sent, by us or by whom we recover */
    bool held;            /* left frozen on purpose, with a guard */
    bool quiesce_failed;  /* gone on without a freeze that was wished for */
    unsigned engine_pays; /* debts that the running step is about to pay */

    /* The steps' own: where a step that does one thing after another stands. */
    size_t at; /* index of the disk, or of the question */
    size_t at_part;
    enum vf_outcome answers; /* the worst of several questions that were asked at once */
    char *job;               /* the job that is waited for; NULL: none */
    unsigned job_states;     /* bit mask of the states that end the wait */
    unsigned job_number;     /* so that each job of this operation has an id of its own */
    char *job_error;         /* what the job that just concluded complained of */
    const char *job_failed;  /* ... and what that one was about */
    const char **job_abouts; /* of the jobs that were started together */
    unsigned jobs_begun;
    ev_timer job_timer;          /* until it is asked again how far the job is */
    double share_from, share_to; /* the part of the step that the job does, in percents */
    vf_flow_fn *on_job, *on_jobs_done, *on_unlimited;
    void (*on_looked)(struct vf_flow *flow);
    void (*on_attached_disks)(struct vf_flow *flow);
    size_t look_end; /* the first question that is not asked this time */
    void (*on_files_synced)(struct vf_flow *flow, bool synced);
    void (*on_qemu)(struct vf_flow *flow);
    struct vf_daemon *attached; /* the daemon that was attached to last */
    vf_flow_fn *on_attached;
    struct json_object *ports;        /* paths of virtio-serial ports */
    struct json_object *records_seen; /* verify: as they were when the images were looked at */
    struct vf_program *program;       /* that runs for this step; NULL: none */
    size_t merge_at;                  /* the disk that is merged */
    bool merge_final;                 /* its name was turned to the base for good */
    enum vf_outcome merge_outcome;
    char *flush;  /* as VM's setting "flush"; NULL: that */
    char *freeze; /* as VM's setting "freeze"; NULL: that */
    struct vf_freezing freezing;
    int64_t flush_pid;      /* of the guest's process that flushes; 0: none */
    int64_t flush_round_us; /* when it was started */
    int flush_rounds;
    size_t graft_at;    /* the graft that is under way */
    bool graft_durable; /* ... has all that it copies on disk */
    struct vf_side side;
    bool marked;                            /* deletion: the record says that it has begun */
    bool resumed;                           /* the operation began in an earlier process */
    struct json_object *journal_lines;      /* recovery: what was read */
    struct json_object *recovered_evidence; /* of it, borrowed: what was known of the window */
    const char *action;                     /* recovery: what was done, for the document */
    bool half_merged; /* recovery: some images are merged, and the VM is gone */
    bool implicit;    /* recovery: before another operation, not asked for by a person */
    int64_t thaw_first_us;
    unsigned unheard, unheard_most; /* attempts to thaw on a connection without any answer */
    char *obstacle, *remedy; /* what is in the way of the way back, and what to do about it; NULL */
    bool stopped;            /* we stopped the VM, and have to let it go on */
    bool job_all;            /* `job` is how the ids of all jobs begin that are waited for */
    bool job_news;           /* one of them has come to another state since they were asked for */
    struct vf_restore restore;
    struct vf_using *using; /* export, clone: using.h; else NULL */
    struct vf_gate *gate;   /* NULL: it need not wait for others */
    struct vf_gate_place gate_place;
    struct vf_member *member; /* of a group: group.h; else NULL */
    struct vf_batch batch;
    const char *event; /* the name of the event that is waited for; NULL: none */
    vf_flow_fn *on_event_came;

    /* Of flow.c, ask.c and tell.c: */
    ev_timer timer;      /* the one timer of the operation */
    ev_timer done_timer; /* fires `done` from the loop */
    struct vf_pending *pending;
    vf_flow_fn *on_agent;
    bool agent_asked; /* a request to the agent is outstanding */
    int64_t accepted_us, wall_offset_us;
    const char *test_at; /* of the environment, borrowed; NULL: nothing is tested */
    struct vf_queued_event *queued;
    size_t queued_count;
    bool window_open;
    double percent;                  /* told last of the running step; negative: nothing */
    const struct vf_step *attempted; /* the step that was started last */
    const struct vf_step *silent;    /* the step that had no answer in time last */
    bool attempted_clean;            /* ... when there was no error yet */
    const char *if_silent;           /* what to do if it gets no answer; NULL: nobody knows */
    bool started, stop_asked, concluded, lock_borrowed;
    struct vf_flow *child;                            /* the recovery that runs first */
    void (*on_end)(struct vf_flow *flow, void *data); /* just before `done`; may be NULL */
    void *on_end_data;
};

/* Life cycle. */

struct vf_flow *vf_flow_new(struct ev_loop *loop, struct vf_store *store, const struct vf_log *log,
                            const struct vf_table *table);
/* Begins from the loop, soon. An error that is in `error` already ends it at once. */
void vf_flow_start(struct vf_flow *flow);
/* Takes the VM's lock before that; false with flow->error. */
bool vf_flow_lock(struct vf_flow *flow);
void vf_flow_cancel(struct vf_flow *flow);

/* For step functions. */

/* Ends the running step. */
void vf_end(struct vf_flow *flow, enum vf_outcome outcome);
/* Fails the running step: notes the error, then ends it as REFUSED. */
void vf_refuse(struct vf_flow *flow, enum vmfrost_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Notes an error without ending anything; on the way back it becomes a warning of the record.
 * Returns false. */
bool vf_note(struct vf_flow *flow, enum vmfrost_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void vf_advise(struct vf_flow *flow, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Takes an error that some function filled, like vf_note(). Returns false. */
bool vf_note_error(struct vf_flow *flow, struct vmfrost_error *error);
void vf_warn(struct vf_flow *flow, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* True if the reply is OK. Else ends the step with the reply's outcome and an error made of the
 * format and the peer's words; the caller returns at once. */
bool vf_expect(struct vf_flow *flow, const struct vf_reply *reply, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Asks QEMU; `arguments` is owned by the call. The callback cannot come after the step's end. */
void vf_ask(struct vf_flow *flow, const char *command, struct json_object *arguments,
            vf_flow_fn *fn);
/* The same for a long answer of which only `words` are of interest: see vf_qmp_look_for(). */
void vf_ask_for(struct vf_flow *flow, const char *command, const char *const *words, size_t count,
                vf_flow_fn *fn);
/* vf_ask() in two halves: first all that QEMU has to read but the last byte, then that. Whatever
 * else is asked in between takes the first half back. */
void vf_prime(struct vf_flow *flow, const char *command, struct json_object *arguments);
void vf_fire(struct vf_flow *flow, vf_flow_fn *fn);
/* The human monitor's qemu-io, for what QMP has no command for. What it complains of is no error of
 * the request's: the reply is its text. */
void vf_ask_qemu_io(struct vf_flow *flow, const char *node, const char *command, vf_flow_fn *fn);
/* Asks several things of QEMU at once: first each of them, then who is called when all are
 * answered: with the first reply that is not OK, if there is one; flow->batch.failed is then what
 * it is `about`. */
void vf_batch_ask(struct vf_flow *flow, const char *about, const char *command,
                  struct json_object *arguments);
void vf_batch_end(struct vf_flow *flow, vf_flow_fn *fn);
/* Calls `fn` when QEMU tells of this event (its name is not copied), or the connection is lost.
 * Has to be called before whatever causes it. */
void vf_await_event(struct vf_flow *flow, const char *name, vf_flow_fn *fn);
/* Asks the agent. */
void vf_ask_agent(struct vf_flow *flow, const char *command, struct json_object *arguments,
                  vf_flow_fn *fn);

/* A QMP connection, closed, whose events come to this flow. */
struct vf_qmp *vf_flow_qmp(struct vf_flow *flow);

int64_t vf_now_us(void);
/* RFC 3339, UTC, microseconds, of a monotonic stamp of this flow; into a static-size buffer. */
void vf_flow_time(const struct vf_flow *flow, int64_t stamp_us, char out[32]);

/* Tells the caller how far the running step is, of 100, unless it has heard of as much before. */
void vf_progress(struct vf_flow *flow, double percent);

/* Opens and closes the time in which nothing is told, so that nothing but the window's own work is
 * done in it. */
void vf_window_opens(struct vf_flow *flow);
void vf_window_closes(struct vf_flow *flow);

/* Tells what has waited for it. */
void vf_tell_queued(struct vf_flow *flow);

/* The error as vf_conclude() will put it together, as far as it is known now. */
struct vmfrost_error vf_cause(const struct vf_flow *flow);

/* Where a test may stop or kill the process: VMFROST_TEST_AT=kill:NAME or stop:NAME, of one VM
 * alone as kill:NAME@VM, or several with commas between them. */
#ifndef VMFROST_SMALL
void vf_test_point(const struct vf_flow *flow, const char *name);
#else
#define vf_test_point(flow, name) ((void)(flow))
#endif

/* Of flow.c, ask.c and tell.c: */

/* The engine's `trace`; `owner` is the flow. */
void vf_tell_step(void *owner, const struct vf_step *step, enum vf_step_state state);
/* Nobody is called back for what QEMU was asked so far: the step is over. */
void vf_forget_questions(struct vf_flow *flow);
/* The same for all that was asked, also of the agent and of programs. */
void vf_forget_asked(struct vf_flow *flow);

#endif
