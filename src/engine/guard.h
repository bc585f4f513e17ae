/* SPDX-License-Identifier: MIT
 *
 * The guard: a small process that keeps the promises of one that died.
 *
 * It is forked before a freeze, twice, so that it is nobody's child to wait for, in a session of
 * its own, so that no Ctrl-C reaches it. It holds no lock, nothing of the caller's but three
 * descriptors, and waits on a socket. The caller tells it, one small message a time, what is owed.
 * When the caller is gone (the socket ends) while something is owed, the guard pays:
 *
 *  1. names: if a cut was under way, it waits a moment for QEMU to have made it (by its open files
 *     and its locks on them QEMU then may write to the overlays and to the bases no more: of all
 *     disks, or nothing is touched), and renames each overlay's second link over the name that the
 *     launcher opens. Else that name would lead to a state that the running guest has left behind.
 *  2. the thaw: it synchronises the agent's stream, sends the thaw, asks for the status, and does
 *     so again until the agent says "thawed" or QEMU is gone; over a new connection if the socket
 *     has ended, or if the agent was never heard on it. Then it adds a line to the journal.
 *  3. names again, if the cut was not to be seen before the thaw.
 *
 * Where the VM stands still while its names are turned (a restore), they are owed whatever QEMU
 * does: some may be turned already, and then all have to be.
 *
 * Where a name leads to the base for a moment, so that QEMU opens that one by it (a merge), it is
 * owed as soon as QEMU has done so, or has ended.
 *
 * It is also a second clock for the frozen limit: a caller that is stopped or hangs does not keep
 * the guest frozen. The thaw stays owed then, until the caller says that it is done; if the caller
 * goes on, it may find replies in the agent's stream that are not its own, and synchronises anew.
 *
 * Lines that it adds to the journal (the count is absent if the thaw's reply was an error, such as
 * a hook's; flippedNames counts the names that lead to their overlays now):
 *
 *     {"state":"guard-thawed","thawedFilesystems":2,"time":1700000000.123456,"pid":4711}
 *     {"state":"guard-flipped","flippedNames":2,"time":1700000000.123456,"pid":4711}
 *
 * As long as it lives, the agent's connection is open, even if the caller closes its own
 * descriptor, and QEMU serves no other client: dismiss it before connecting anew.
 *
 * After the fork it calls nothing but async-signal-safe functions, so that it may be forked from a
 * program with threads.
 */
#ifndef VF_ENGINE_GUARD_H
#define VF_ENGINE_GUARD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/error.h"

/* A name to be flipped once the cut is made. The base is a qcow2 image: of a raw one QEMU gives up
 * the permission to write before its cut is certain. */
struct vf_guard_name {
    const char *next, *top;                  /* absolute, in one folder; rename(next, top) */
    uint64_t overlay_device, overlay_number; /* inode of `next` */
    uint64_t base_device, base_number;       /* inode of `top` before */
};

struct vf_guard_plan {
    int agent_fd; /* the agent's socket, shared with the caller; -1: no freeze, names only */
    bool unheard; /* the agent has not answered anything on it yet */
    const char *agent_path; /* how it is called again if the socket ends; NULL: not */
    int journal_fd;         /* opened with O_APPEND; -1: none */
    pid_t qemu_pid;         /* 0: not known; names are then left to recovery */
    const struct vf_guard_name *names;
    size_t name_count;
};

struct vf_guard {
    int fd;           /* the caller's end; -1: no guard */
    pid_t pid;        /* of the guard */
    uint64_t started; /* its start time, field 22 of /proc/PID/stat */
};
#define VF_GUARD_INIT                                                                              \
    {                                                                                              \
        -1, 0, 0                                                                                   \
    }

/* Forks a guard that owes nothing yet. Everything in the plan is copied or inherited. Returns when
 * the guard has said that it is ready, or with an error after 2 s at most. */
bool vf_guard_start(struct vf_guard *guard, const struct vf_guard_plan *plan,
                    struct vmfrost_error *error);

/* One message each, written without waiting; nothing if there is no guard. */

/* A freeze is about to be written: a thaw is owed. The guard's own clock starts: `limit_ms` from
 * now it thaws, whatever the caller does. */
void vf_guard_freezing(struct vf_guard *guard, int64_t limit_ms);
/* The transaction is about to be written: names are owed. */
void vf_guard_cutting(struct vf_guard *guard);
/* The first rename is about to be made: names are owed at once, whatever QEMU has open. */
void vf_guard_turning(struct vf_guard *guard);
/* A name is about to lead to its base for a moment, so that QEMU opens that one by it: it is owed
 * once QEMU has the base open for writing, or is gone. */
void vf_guard_leading(struct vf_guard *guard);
/* Names are flipped, or will not be: no longer owed. */
void vf_guard_named(struct vf_guard *guard);
/* The caller is about to thaw: its clock starts anew with `limit_ms`, so that the two do not read
 * each other's replies. */
void vf_guard_thawing(struct vf_guard *guard, int64_t limit_ms);
/* The thaw is confirmed: nothing is owed. */
void vf_guard_thawed(struct vf_guard *guard);

/* Lets the guard go, without waiting: one that owes nothing ends; one that owes acts as if the
 * caller had died. Afterwards the struct is VF_GUARD_INIT. */
void vf_guard_leave(struct vf_guard *guard);
/* Leaves a guard that thaws only when its clock says so (a freeze by hand), once it has said that
 * it will; waits for that, 2 s at most. False: it has not, and is left to the caller still. */
bool vf_guard_leave_holding(struct vf_guard *guard);

/* Ends a guard that another process left behind, so that the agent's socket is free: gives it
 * `wait_ms` to finish what it owes, then kills it. 0 `pid`, or one that was used again by the
 * kernel for another process (see `started`), is no guard. Blocks: for `wait_ms`, and after a kill
 * until the guard is gone, 5 s at most. True if it had ended by itself. */
bool vf_guard_dismiss(pid_t pid, uint64_t started, int64_t wait_ms);

#endif
