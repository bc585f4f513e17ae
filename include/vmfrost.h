/* SPDX-License-Identifier: MIT
 *
 * vmfrost: guest-consistent snapshots for bare QEMU.
 *
 * A snapshot freezes the guest's file systems through the guest agent, cuts all
 * eligible disks at one instant with one QMP transaction, and thaws. This library
 * talks to QEMU's QMP socket and to the agent's socket by itself, in the caller's
 * libev loop; it makes no threads.
 *
 * LIFE CYCLE
 *   vmfrost_new() makes a context on a loop. Each vmfrost_<verb>() starts one
 *   operation and returns at once; its `done` callback fires exactly once, from the
 *   loop, never from inside the call that started it. Any number of operations on
 *   different VMs may be started at a time (of snapshots some wait for others: struct
 *   vmfrost_settings; each needs up to 6 descriptors, see RLIMIT_NOFILE); a second changing
 * operation on the same VM ends with an error that says who holds it. vmfrost_free() is allowed
 * when no operation runs.
 *
 * BLOCKING USE
 *   vmfrost_wait() runs the loop until the operations of a context are done.
 *
 * MEMORY
 *   Strings given to a function are copied; they may go away when it returns. What a
 *   callback is handed lives until the callback returns. Text returned by char ** is
 *   the caller's, to be released with free(). Out of memory ends the process with
 *   abort(): the guard then thaws, and the next contact tidies up.
 *
 * SIGNALS AND PROCESSES
 *   SIGPIPE is never raised by this library. Before a freeze it forks a guard: a small
 *   process in a session of its own that thaws the guest if the caller dies. It is
 *   forked twice, so that it is never the caller's child to wait for. The library
 *   installs no signal handler: to stop early, call vmfrost_cancel() and keep the loop
 *   running until `done` fires.
 *
 * DURATIONS are in milliseconds and carry that in their name.
 *
 * COMPATIBILITY
 *   Option structs begin with their size and are made by their initialiser macros; later
 *   versions add members at their ends only. Results may grow at their ends, too.
 */
#ifndef VMFROST_H
#define VMFROST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VMFROST_VERSION "0.1.0"

#if defined __GNUC__
#define VMFROST_API __attribute__((visibility("default")))
#else
#define VMFROST_API
#endif

struct ev_loop;
struct vmfrost;
struct vmfrost_op;

/* How an operation ended. These are the exit codes of the command, too. */
enum vmfrost_code {
    VMFROST_OK = 0,
    VMFROST_FAILED = 1,      /* failed or refused; nothing is changed */
    VMFROST_USAGE = 2,       /* the caller's arguments make no sense */
    VMFROST_UNREACHABLE = 3, /* QEMU or the guest agent cannot be reached; nothing is changed */
    VMFROST_DEADLINE = 4,    /* the deadline passed; everything is rolled back */
    /* Also, with VMFROST_SNAPSHOT_UNKNOWN: a rollback could not be finished. Of a restore: it could
     * be neither finished nor undone. */
    VMFROST_UNVERIFIED = 5,    /* snapshot taken, but the thaw came late or is unverified */
    VMFROST_MAY_BE_FROZEN = 6, /* the guest may be frozen: somebody has to look */
};

/* What became of the snapshot: taken, not taken, or not known. */
enum vmfrost_snapshot_state {
    VMFROST_SNAPSHOT_NONE,
    VMFROST_SNAPSHOT_TAKEN,
    VMFROST_SNAPSHOT_UNKNOWN,
};

/* What became of the guest. */
enum vmfrost_guest_state {
    VMFROST_GUEST_NEVER_FROZEN,
    VMFROST_GUEST_THAWED,
    VMFROST_GUEST_MAY_BE_FROZEN,
};

/* The end of an operation. All pointers live until the callback returns. */
struct vmfrost_result {
    enum vmfrost_code code;
    enum vmfrost_snapshot_state snapshot;
    enum vmfrost_guest_state guest;
    const char *text; /* what failed, in one line without control characters; "" if nothing */
    const char *next; /* what to do about it; "" if there is nothing to say */
    const char *json; /* the operation's document, one JSON object: see each function */
};

typedef void vmfrost_done_fn(void *data, const struct vmfrost_result *result);

/* A step of a running operation, for live output. Steps inside the frozen window are told
 * right after the thaw has been sent, with their true times. */
struct vmfrost_event {
    const char *operation; /* "snapshot", "delete", ... */
    const char *step;      /* the row of the step table: "overlays", "freeze", ... */
    const char *title;     /* for people: "Creating overlays" */
    const char *state;     /* "started", "done", "refused", "unknown", "skipped", "progress" */
    double elapsed_ms;     /* since the operation was accepted */
    double percent;        /* of the step, 0 to 100; negative where that is not known */
};

typedef void vmfrost_event_fn(void *data, const struct vmfrost_event *event);

enum vmfrost_log_level {
    VMFROST_LOG_WARNING, /* something a person should see */
    VMFROST_LOG_INFO,    /* steps and decisions */
    VMFROST_LOG_DEBUG,   /* every message and file operation */
};

/* One line without its newline, free of control characters. */
typedef void vmfrost_log_fn(void *data, enum vmfrost_log_level level, const char *line);

struct vmfrost_settings {
    size_t size;
    const char *state_dir; /* NULL: $VMFROST_STATE_DIR, else /var/lib/vmfrost for root,
                              $XDG_STATE_HOME/vmfrost or ~/.local/state/vmfrost for others */
    vmfrost_log_fn *log;   /* NULL: no log */
    void *log_data;
    size_t snapshots_at_once; /* snapshots that are worked on at a time; others wait, in their
                                 order, and their deadlines begin when they are let in. They share
                                 the loop: more of them keep each other's guests frozen for longer.
                                 0: 16 */
    bool log_warnings_only; /* `log` is told warnings and nothing else, which saves the time that it
                               takes to write down each message and each file operation */
};
#define VMFROST_SETTINGS_INIT                                                                      \
    {                                                                                              \
        sizeof(struct vmfrost_settings), NULL, NULL, NULL, 0, false                                \
    }

/* A context on a loop that the caller owns and that outlives it. NULL with errno if the state
 * folder cannot be made (vmfrost_new_error() says why). */
VMFROST_API struct vmfrost *vmfrost_new(struct ev_loop *loop,
                                        const struct vmfrost_settings *settings);
VMFROST_API void vmfrost_free(struct vmfrost *context);
/* Runs the context's loop until none of its operations is left. */
VMFROST_API void vmfrost_wait(struct vmfrost *context);
VMFROST_API const char *vmfrost_version(void);

/*
 * A VM is named by its name in the inventory or, with a slash in it, by the path of its QMP
 * socket.
 */

enum vmfrost_quiesce {
    VMFROST_QUIESCE_DEFAULT, /* the VM's setting, else auto */
    VMFROST_QUIESCE_AUTO,    /* an agent that is there must freeze; without one, best effort */
    VMFROST_QUIESCE_REQUIRE, /* no agent is an error */
    VMFROST_QUIESCE_PREFER,  /* a failed freeze falls back to best effort, labelled so */
    VMFROST_QUIESCE_SKIP,    /* never freeze */
};

enum vmfrost_method {
    VMFROST_METHOD_DEFAULT,   /* the VM's setting, else existing */
    VMFROST_METHOD_EXISTING,  /* blockdev-snapshot-sync, mode=existing */
    VMFROST_METHOD_PREOPENED, /* blockdev-add, then blockdev-snapshot */
};

struct vmfrost_snapshot_options {
    size_t size;
    const char *name;        /* NULL: the time, as 20260131T235959Z */
    int64_t deadline_ms;     /* from acceptance; 0: the VM's setting, else 5 minutes */
    int64_t frozen_limit_ms; /* freeze's first byte to cut's reply; 0: the VM's setting, else
                                30 s, 8 s for Windows guests */
    int64_t thaw_wait_ms;    /* how long to stay for a thaw that is not confirmed before the guard
                                is left to go on alone; 0: 60 s */
    enum vmfrost_quiesce quiesce;
    enum vmfrost_method method;
    const char *const *exclude; /* names of disks to leave out */
    size_t exclude_count;
    const char *const *include; /* names of hotplugged disks to take along */
    size_t include_count;
    const char *flush;  /* before the freeze the guest's caches are flushed, so that the freeze has
                           little to write: "auto" (by `sync`, if the agent may run commands), "off",
                           or a command for the guest's shell; NULL: the VM's setting, else auto */
    const char *freeze; /* which of the guest's file systems are frozen: "cut" (those on disks of
                           the snapshot; all, if the guest does not tell for certain), "all", or
                           mount points with commas between them; see --freeze in vmfrost(1). NULL:
                           the VM's setting, else cut */
    bool no_prime; /* the cut is sent to QEMU in the window as a whole, not all but its last byte
                      before; the VM's setting says so, too */
};
#define VMFROST_SNAPSHOT_OPTIONS_INIT                                                              \
    {                                                                                              \
        sizeof(struct vmfrost_snapshot_options), NULL, 0, 0, 0, VMFROST_QUIESCE_DEFAULT,           \
            VMFROST_METHOD_DEFAULT, NULL, 0, NULL, 0, NULL, NULL, false                            \
    }

/* Takes a snapshot. The document is its record (docs/record.md), also when it failed after it
 * had been accepted. */
VMFROST_API struct vmfrost_op *vmfrost_snapshot(struct vmfrost *context, const char *vm,
                                                const struct vmfrost_snapshot_options *options,
                                                vmfrost_event_fn *event, vmfrost_done_fn *done,
                                                void *data);

/* Takes snapshots of several VMs, all of one name and at one instant: all are prepared, then all
 * frozen, then all cut while all are frozen, and thawed; all of them have the snapshot, or none.
 * `count` strings in `vms`, each a VM as everywhere, none of them twice. The options count for each
 * VM; the shortest frozen limit and the first deadline that passes count for all.
 *
 * There is an operation for each VM: `event` and `done` are called with data[i] for VM i (`data`
 * NULL: with NULL), and `done` fires exactly once for each, from the loop, in any order, with the
 * result and the record of that VM. ops_r[i] (`ops_r` may be NULL) is set before this returns, and
 * belongs to the library as ever. Cancelling one cancels all. If one fails before all have their
 * snapshots, all unwind and fail, and each text names the VM that failed and why; no snapshot
 * becomes ready to use before all are.
 *
 * A VM whose guest cannot be frozen (no agent, and no need of one by `quiesce`) is cut while the
 * others are frozen. The member "group" of each record says what this was worth: docs/record.md. */
VMFROST_API void vmfrost_snapshot_group(struct vmfrost *context, const char *const *vms,
                                        size_t count,
                                        const struct vmfrost_snapshot_options *options,
                                        vmfrost_event_fn *event, vmfrost_done_fn *done,
                                        void *const *data, struct vmfrost_op **ops_r);

/* Everything up to the freeze, changing nothing: would a snapshot work? The document holds
 * "disks" with their eligibility, "agent", "warnings", and what would be frozen, as in the
 * "evidence" of a record. */
VMFROST_API struct vmfrost_op *vmfrost_check(struct vmfrost *context, const char *vm,
                                             const struct vmfrost_snapshot_options *options,
                                             vmfrost_event_fn *event, vmfrost_done_fn *done,
                                             void *data);

/* Run state, agent, disks, chain and warnings of one VM. Works, with less to say, for a VM that
 * is not running: the document's "running" is false then and the result still VMFROST_OK. */
VMFROST_API struct vmfrost_op *vmfrost_status(struct vmfrost *context, const char *vm,
                                              vmfrost_done_fn *done, void *data);

/* Deletes a snapshot, of a VM that runs or not: a Failed record without content at once; any other
 * by joining each of its images with what builds on it. From the moment that this begins the
 * snapshot has no content any more ("deleting" in its record). Deleting again, or
 * vmfrost_recover(), finishes one that was interrupted. */
VMFROST_API struct vmfrost_op *vmfrost_delete(struct vmfrost *context, const char *vm,
                                              const char *snapshot, vmfrost_event_fn *event,
                                              vmfrost_done_fn *done, void *data);

struct vmfrost_restore_options {
    size_t size;
    bool reset;            /* a running VM is restored in place and reset; else it is refused */
    bool discard;          /* the present state of the disks is thrown away, else it is kept */
    const char *keep_name; /* ... as the snapshot of this name; NULL: before-restore- and the
                              time, as in before-restore-20260131T235959Z */
    int64_t deadline_ms;   /* from acceptance to the point of no return; 0: the VM's setting, else
                              5 minutes */
};
#define VMFROST_RESTORE_OPTIONS_INIT                                                               \
    {                                                                                              \
        sizeof(struct vmfrost_restore_options), false, false, NULL, 0                              \
    }

/* Puts all disks of a snapshot back to it, or none: each gets a new overlay on the snapshot's
 * image, which stays, so that it can be restored again. Disks that the snapshot does not have are
 * left alone. A deadline and vmfrost_cancel() count until the first of the disks' names is turned;
 * from there on it is finished, and if QEMU does not let it, the VM is left stopped and the result
 * is VMFROST_UNVERIFIED: whoever starts the VM anew starts the restored disks. A VM that is not
 * running is restored as well; one that is, only with `reset`. `snapshot` of the result is
 * VMFROST_SNAPSHOT_TAKEN if the present state was kept.
 *
 * The document: {"vm", "name", "kept" (absent if nothing was), "online" (a running VM was restored
 * in place), "launcherMustChange", "disks": [{"name", "current", "image"}] (what the VM runs on
 * now, and the snapshot's image; empty if nothing was changed), "warnings"}. */
VMFROST_API struct vmfrost_op *vmfrost_restore(struct vmfrost *context, const char *vm,
                                               const char *snapshot,
                                               const struct vmfrost_restore_options *options,
                                               vmfrost_event_fn *event, vmfrost_done_fn *done,
                                               void *data);

/* Freezes by hand. The guest stays frozen when the operation is done, and the guard that was
 * left behind thaws it after `limit_ms` (0: the frozen limit), whatever happens to the caller. */
VMFROST_API struct vmfrost_op *vmfrost_freeze(struct vmfrost *context, const char *vm,
                                              int64_t limit_ms, vmfrost_event_fn *event,
                                              vmfrost_done_fn *done, void *data);
/* Thaws, whoever froze; an agent that does not answer is tried for `wait_ms` (0: 60 s). The
 * document says how many file systems were thawed. */
VMFROST_API struct vmfrost_op *vmfrost_thaw(struct vmfrost *context, const char *vm,
                                            int64_t wait_ms, vmfrost_event_fn *event,
                                            vmfrost_done_fn *done, void *data);

/* Finishes or undoes what an interrupted operation left: thaws first, then rolls forward or
 * back. Every changing operation does it by itself before it begins. An agent that does not answer
 * is tried for `wait_ms` (0: 60 s). */
VMFROST_API struct vmfrost_op *vmfrost_recover(struct vmfrost *context, const char *vm,
                                               int64_t wait_ms, vmfrost_event_fn *event,
                                               vmfrost_done_fn *done, void *data);

/* The QEMU processes of this host that the caller may look at. The document holds "machines":
 * pid, name, QMP and agent sockets, whether the agent's port is open. */
VMFROST_API struct vmfrost_op *vmfrost_discover(struct vmfrost *context, vmfrost_done_fn *done,
                                                void *data);

/* Looks at every image of a VM, running or not, and changes nothing: headers, what builds on what,
 * formats, sizes, what the records say and what lies around; and, where qemu-img is installed, the
 * tables in each qcow2 image that nobody writes to. The document holds "images", each with "path",
 * "disk", "snapshot", "result" ("ok", "warning", "error") and "problems", and "ok":
 * docs/conditions.md. VMFROST_FAILED with a text that counts them if there is an error. Takes as
 * long as `qemu-img check` does; `event` tells the progress. Other operations may run at the same
 * time. */
VMFROST_API struct vmfrost_op *vmfrost_verify(struct vmfrost *context, const char *vm,
                                              vmfrost_event_fn *event, vmfrost_done_fn *done,
                                              void *data);

enum vmfrost_format {
    VMFROST_FORMAT_QCOW2,
    VMFROST_FORMAT_RAW,
};

struct vmfrost_export_options {
    size_t size;
    enum vmfrost_format format;
    const char *disk; /* only this one; NULL: all of the snapshot's */
    bool compress;    /* qcow2 alone: smaller, and slower */
};
#define VMFROST_EXPORT_OPTIONS_INIT                                                                \
    {                                                                                              \
        sizeof(struct vmfrost_export_options), VMFROST_FORMAT_QCOW2, NULL, false                   \
    }

/* Copies the disks of a snapshot to files that stand alone, and writes the checksum of each beside
 * it, in the format of sha256sum(1), with ".sha256" behind its name; without sha256sum there is a
 * warning instead. `dest` is the file for one disk, else a folder, in which each disk becomes
 * NAME.qcow2 or NAME.raw: one that is there, or, with a slash at the end of its name, is made. A
 * file that is there already is an error. The copies are the caller's, with the mode that the umask
 * allows; each gets its name only when it is whole. Until then it is ".NAME.<16 hex digits>.part";
 * one that a killed process has left is removed by the next export of the same name.
 *
 * Works on a VM that runs or not, and holds no lock of the VM's: other operations go on meanwhile,
 * but for a deletion that would change the images that are read. Takes as long as copying does;
 * `event` tells the progress.
 *
 * The document: {"vm", "name", "files": [{"disk", "path", "format", "size" (of the disk, in bytes),
 * "allocated" (what the file takes up), "sha256" (absent if there is none)}], "warnings"}; none if
 * it failed. */
VMFROST_API struct vmfrost_op *vmfrost_export(struct vmfrost *context, const char *vm,
                                              const char *snapshot, const char *dest,
                                              const struct vmfrost_export_options *options,
                                              vmfrost_event_fn *event, vmfrost_done_fn *done,
                                              void *data);

struct vmfrost_clone_options {
    size_t size;
    const char *disk; /* only this one; NULL: all of the snapshot's */
};
#define VMFROST_CLONE_OPTIONS_INIT                                                                 \
    {                                                                                              \
        sizeof(struct vmfrost_clone_options), NULL                                                 \
    }

/* Makes an overlay on each image of a snapshot, for another VM: it begins with the snapshot's
 * state, at once, and takes up only what is written to it. `dest` and the files are as for
 * vmfrost_export(), in qcow2. The record tells of them ("clones"), and the snapshot cannot be
 * deleted while one of them builds on it. The document is as for vmfrost_export(), without
 * checksums. */
VMFROST_API struct vmfrost_op *vmfrost_clone(struct vmfrost *context, const char *vm,
                                             const char *snapshot, const char *dest,
                                             const struct vmfrost_clone_options *options,
                                             vmfrost_event_fn *event, vmfrost_done_fn *done,
                                             void *data);

/* Asks a running operation to stop: it unwinds (thaws, tidies up) and then ends as failed. May
 * be called at any time before `done` fires, more than once. */
VMFROST_API void vmfrost_cancel(struct vmfrost_op *op);

/*
 * Calls that only read or write vmfrost's own state. They return VMFROST_OK, or a code with the
 * reason in `error_r` (may be NULL).
 */

struct vmfrost_error {
    enum vmfrost_code code;
    char text[1024]; /* as in struct vmfrost_result */
    char next[512];
};

/* Why the last vmfrost_new() of this thread returned NULL. */
VMFROST_API const struct vmfrost_error *vmfrost_new_error(void);

/* Remembers a VM, or changes its settings. `settings_json` is an object with "qmp" (the socket's
 * path) and, all optional, "agent", "deadline", "frozenLimit", "quiesce", "method", "emergencyThaw"
 * ("off" or "sysrq"), "os" ("linux" or "windows"), "overlayFolder", "disks" (an array of {"name",
 * "file", "format"}, for a VM that was never seen running), "persistentDisks" (an array of names),
 * "keepLast", "keepHourly", "keepDaily", "keepWeekly", "maxAge", "warnDepth", "warnAge",
 * "peerUid": docs/settings.md. */
VMFROST_API enum vmfrost_code vmfrost_add(struct vmfrost *context, const char *name,
                                          const char *settings_json, struct vmfrost_error *error_r);
/* Forgets a VM that has no snapshot records. */
VMFROST_API enum vmfrost_code vmfrost_remove(struct vmfrost *context, const char *name,
                                             struct vmfrost_error *error_r);
/* A disk that was plugged in while the VM was running is left out of snapshots, unless it is said
 * to be persistent, here or by name in the options. `disk` need not be there now. The VM has to be
 * in the inventory: what is persistent is one of its settings. */
VMFROST_API enum vmfrost_code vmfrost_set_persistent(struct vmfrost *context, const char *vm,
                                                     const char *disk, bool persistent,
                                                     struct vmfrost_error *error_r);

/*
 * Storage classes say what is to become of disks by where they lie: docs/settings.md. A disk is of
 * the first class that fits.
 */

/* A JSON array of all classes, in their order: {"name", "match": {"path", "protocol", "format"},
 * "snapshot", "overlayFolder", "overlayOptions": {"clusterSize", "extendedL2", "preallocation"},
 * "minFree"}, each member but the name only where it is set. */
VMFROST_API enum vmfrost_code vmfrost_storage(struct vmfrost *context, char **json_r,
                                              struct vmfrost_error *error_r);
/* Makes a class, as the last one, or changes it. `class_json` is an object with the members that
 * change; null or "" takes one back. */
VMFROST_API enum vmfrost_code vmfrost_storage_set(struct vmfrost *context, const char *name,
                                                  const char *class_json,
                                                  struct vmfrost_error *error_r);
VMFROST_API enum vmfrost_code vmfrost_storage_remove(struct vmfrost *context, const char *name,
                                                     struct vmfrost_error *error_r);

/* A JSON array of all VMs: {"name":, "settings": {...}, "snapshots": N, "interrupted": bool}. */
VMFROST_API enum vmfrost_code vmfrost_vms(struct vmfrost *context, char **json_r,
                                          struct vmfrost_error *error_r);
/* A JSON array of the records of one VM, or of all if `vm` is NULL, oldest first. Each has "parent"
 * (the snapshot that it builds on, or null) and "current" (the VM's present state builds on it)
 * besides, and "readyToUse" is as its images are now: docs/record.md. */
VMFROST_API enum vmfrost_code vmfrost_list(struct vmfrost *context, const char *vm, char **json_r,
                                           struct vmfrost_error *error_r);
/* One record. */
VMFROST_API enum vmfrost_code vmfrost_show(struct vmfrost *context, const char *vm,
                                           const char *snapshot, char **json_r,
                                           struct vmfrost_error *error_r);

/* Which snapshots to keep: docs/retention.md. 0: there is no such rule. */
struct vmfrost_prune_options {
    size_t size;
    int64_t keep_last;   /* the newest ones */
    int64_t keep_hourly; /* the newest one of each of the last hours that have one, in UTC */
    int64_t keep_daily;  /* ... days */
    int64_t keep_weekly; /* ... weeks, which begin on Monday */
    int64_t max_age_ms;  /* nothing older, but for keep_last; a year at most */
    bool failed;         /* choose records of failed snapshots, whatever their age */
};
#define VMFROST_PRUNE_OPTIONS_INIT                                                                 \
    {                                                                                              \
        sizeof(struct vmfrost_prune_options), 0, 0, 0, 0, 0, false                                 \
    }

/* What would be kept of a VM's snapshots and what would go, with reasons. Changes nothing: to do
 * it, hand each name of "remove" to vmfrost_delete(), in that order. `options` NULL or without any
 * rule: the rules of the VM's settings; VMFROST_USAGE if it has none, either. One JSON object:
 * {"vm":, "rules": {...}, "interrupted":, "keep": [{"name":, "time":, "reasons": [...]}],
 *  "remove": [{"name":, "time":, "reason":}]}; "rules" as {"keepLast": 3, "maxAge": "30d"};
 * "interrupted": vmfrost_recover() first, which may change what there is, and ask again. */
VMFROST_API enum vmfrost_code vmfrost_prune_plan(struct vmfrost *context, const char *vm,
                                                 const struct vmfrost_prune_options *options,
                                                 char **json_r, struct vmfrost_error *error_r);

#ifdef __cplusplus
}
#endif

#endif
