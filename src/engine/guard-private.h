/* SPDX-License-Identifier: MIT
 *
 * What the files of the guard share. Nobody else includes this.
 *
 * guard.c        the caller's side: starting a guard, telling it, ending one
 * guard-life.c   the guard's own: what it owes, and when it pays
 * guard-thaw.c   the exchange with the agent
 * guard-reach.c  a new connection to it
 * guard-names.c  whether the cut is made, and the flips
 * guard-tools.c  small tools
 *
 * All but guard.c runs after a fork, perhaps of a program with threads, any of which may have held
 * any lock right then. So nothing there calls anything but async-signal-safe functions: no
 * allocation, no stdio, of util/ only descriptors. What is needed is put into one block of memory
 * before, `struct guard`; all else has a fixed size and lies on the stack.
 */
#ifndef VF_ENGINE_GUARD_PRIVATE_H
#define VF_ENGINE_GUARD_PRIVATE_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#define VF_GUARD_COMM "vmfrost-guard"

enum message_kind {
    MESSAGE_HELLO,  /* to the caller: value = the guard's pid; ready, or holding */
    MESSAGE_FAILED, /* to the caller: value = errno */
    MESSAGE_FREEZING,
    MESSAGE_CUTTING,
    MESSAGE_TURNING,
    MESSAGE_LEADING,
    MESSAGE_NAMED,
    MESSAGE_THAWING,
    MESSAGE_THAWED,
    MESSAGE_HOLD,
};

struct message {
    int64_t kind; /* as wide as the value: no padding that would be sent uninitialised */
    int64_t value;
};

struct name {
    const char *next, *top;
    const char *folder; /* of both */
    uint64_t overlay_device, overlay_number;
    uint64_t base_device, base_number;
    bool overlay_written, base_written; /* QEMU may write to it, as last looked */
};

/* What the next line of the agent will be. */
enum talk_phase { TALK_SYNC, TALK_THAW, TALK_STATUS };

struct talk {
    enum talk_phase phase;
    uint64_t first_id, answering_id; /* attempt n has the id first_id + n */
    uint64_t attempts;
    int64_t send_at, pause_ms;
    int64_t thawed; /* file systems, as the thaw's reply has it; -1: it was an error */
    bool confirmed; /* an attempt has ended in "thawed" */
    bool drained;   /* the last attempt has been answered */
    bool marked;    /* the line began with the marker */
    bool overlong;
    size_t line_length, out_length, out_sent;
    char line[256]; /* longer than each reply that is understood */
    char out[256];
};

struct guard {
    int link, agent, journal;
    int process; /* QEMU's folder below /proc: never that of another one with the same pid */
    pid_t qemu_pid;
    bool caller_gone, holding;
    bool unheard; /* the agent has never answered on this connection */
    bool owes_thaw, owes_names;
    bool at_once;    /* the names do not wait for a cut */
    bool leading;    /* they wait for QEMU to have the bases open for writing */
    bool called_off; /* what the caller said since ends a thaw on the clock's behalf */
    int64_t due, limit_ms;
    int64_t lost_at; /* the agent's socket, last */
    int reach_pause_ms;
    uint64_t unheard_most; /* attempts on such a connection, until the agent is called anew */
    struct sockaddr_storage address; /* of the agent */
    socklen_t address_length;        /* 0: it cannot be called again */
    struct talk talk;
    size_t name_count;
    struct name names[];
};

/* guard-life.c */

/* What a fork becomes: tells the caller that it is ready, or why it is not, lives, and exits. */
void vf_guard_become(struct guard *guard) __attribute__((noreturn));
/* Takes in all that the caller has said, and whether it is gone. */
void vf_guard_listen(struct guard *guard);

/* guard-thaw.c */

enum thaw_end {
    THAW_CONFIRMED,
    THAW_CALLED_OFF, /* the caller has spoken, or died: decide anew */
    THAW_AGENT_LOST, /* its socket ended */
};
/* Sends the thaw until the agent says that all is thawed. */
enum thaw_end vf_guard_thaw(struct guard *guard);
/* Waits a moment for the answers to attempts that proved needless. */
void vf_guard_drain_agent(struct guard *guard);

/* guard-reach.c */

/* The agent's socket has ended. */
void vf_guard_lose_agent(struct guard *guard);
/* Calls the agent again if its socket has ended, for as long as QEMU lives: waits, and hears
 * nothing of a caller. False: nothing is left to thaw, or there is no way to it. */
bool vf_guard_reach_agent(struct guard *guard);

/* guard-names.c */

/* QEMU's folder below /proc. */
void vf_guard_open_process(struct guard *guard);
/* Whether QEMU writes to all overlays and to none of their bases any more. */
bool vf_guard_is_cut(struct guard *guard);
/* Waits a moment for that. */
bool vf_guard_await_cut(struct guard *guard);
/* QEMU has all bases open for writing, or is gone: waits for a while. */
bool vf_guard_await_bases(struct guard *guard);
/* Flips what is not flipped yet; how many names lead to their overlays now. */
size_t vf_guard_flip_names(struct guard *guard);
/* Makes the flips durable. */
void vf_guard_sync_names(const struct guard *guard);

/* guard-tools.c */

#define NEVER INT64_MAX
#define VF_GUARD_SLICE_MS                                                                          \
    1000 /* poll() does not count the time that the host slept: look again                         \
          */

/* CLOCK_BOOTTIME: a host that slept makes the guard thaw at once when it wakes up. An early thaw
 * costs one snapshot, which notices it; a late one costs the guest's users, whose time went on. */
int64_t vf_guard_now_ms(void);
void vf_guard_pause_ms(int ms);
/* poll() until then at the latest; a failed one counts as one without news. */
void vf_guard_poll(struct pollfd *fds, nfds_t count, int64_t until);
/* Without waiting. False: it was not sent. */
bool vf_guard_send(int fd, enum message_kind kind, int64_t value);
/* Append to what ends at `end`, which has to be room enough; no NUL. */
void vf_guard_put_text(char **at, const char *end, const char *text);
void vf_guard_put_number(char **at, const char *end, uint64_t number, int digits);
/* Past spaces, tabs and carriage returns. */
const char *vf_guard_skip_space(const char *at);

#endif
