/* SPDX-License-Identifier: MIT
 *
 * A client of QEMU's machine protocol (QMP): greeting, capabilities, requests, events.
 *
 * Guarantees: every request made ends in exactly one outcome, unless it is forgotten; a reply
 * is matched by an id that no other connection of any process uses, so that a reply meant for
 * somebody else is dropped; nothing that QEMU sends can grow memory beyond a cap, or reach a
 * callback unparsed. Out-of-band execution is enabled whenever QEMU offers it.
 *
 * QEMU answers in the order in which it was asked. So an answer that overtakes another one proves
 * that the other was lost; whoever waits for long asks something else to find that out. A
 * connection that loses an answer is given up, and so is one that stays silent for minutes.
 *
 * An error without an id (QEMU could not even read a request) ends the one request that is
 * outstanding UNKNOWN; with none or several outstanding nobody can tell whose it is, and it is
 * dropped. Before the reply to qmp_capabilities it is a former client's, and dropped too.
 *
 * Source: QEMU docs/interop/qmp-spec, monitor/qmp.c.
 */
#ifndef VF_WIRE_QMP_H
#define VF_WIRE_QMP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "util/log.h"
#include "wire/outcome.h"

struct ev_loop;
struct vf_qmp;

/* The largest message that is read: beyond it the connection is closed. The largest honest reply
 * seen, query-qmp-schema, is 207 KB. */
#define VF_QMP_MESSAGE_MAX ((size_t)4 << 20)
/* How long QEMU has for its greeting, and again for the reply to qmp_capabilities. */
#define VF_QMP_GREETING_MS 4500
/* How long it may be silent while something is asked, before it is asked something more; and from
 * there on until it is given up: `stop` writes out all that is dirty on the host. */
#define VF_QMP_SILENCE_MS 5000
#define VF_QMP_SILENCE_LIMIT_MS (5 * 60 * 1000)

struct vf_qmp_hooks {
    /* An event (`name` and `data` are QEMU's; `data` may be NULL). May be NULL. */
    void (*event)(void *owner, const char *name, struct json_object *data);
    /* The connection is gone, after every outstanding request has ended UNKNOWN. Not called for
     * vf_qmp_close(), nor for an open that failed (its callback tells). May be NULL. */
    void (*lost)(void *owner, const char *why);
};

/* Never fails. The hooks and the log are copied. */
struct vf_qmp *vf_qmp_new(struct ev_loop *loop, const struct vf_qmp_hooks *hooks, void *owner,
                          const struct vf_log *log);
/* Closes; no callback fires any more. May be called from a callback. NULL is allowed. */
void vf_qmp_free(struct vf_qmp *qmp);
/* For callers in a hurry, tests among them; holds from the next vf_qmp_open() on. */
void vf_qmp_set_greeting_ms(struct vf_qmp *qmp, int ms);
void vf_qmp_set_silence_ms(struct vf_qmp *qmp, int ms, int limit_ms);

/* closed -> ready. Connects to the UNIX socket at `path` (or "tcp:HOST:PORT" for a numeric HOST)
 * and negotiates. OK: ready, `value` is the greeting's "QMP" object. UNKNOWN: closed again, and
 * `words` tell the user what is the matter: no such file, not a socket, permission, refused
 * (nobody listens), another client holds it (no greeting came), no QMP, QEMU does not answer
 * (greeting but no reply: its main loop hangs). Opening anew before the lost hook of the last
 * connection has been called drops that call. */
void vf_qmp_open(struct vf_qmp *qmp, const char *path, vf_reply_fn *fn, void *data);

/* The same on a socket that is connected already, as that of a vf_daemon: `fd` is owned by this
 * call. `peer_pid` is the peer's process (0: ask the socket), and `name` what messages call it; it
 * is not copied. Of the reasons above, those about connecting do not occur. */
void vf_qmp_attach(struct vf_qmp *qmp, int fd, pid_t peer_pid, const char *name, vf_reply_fn *fn,
                   void *data);

/* Any state -> closed. An open and all requests still outstanding are forgotten. May be called from
 * a callback. */
void vf_qmp_close(struct vf_qmp *qmp);

bool vf_qmp_ready(const struct vf_qmp *qmp);
/* Of the process that listens (SO_PEERCRED), or 0 if that cannot be known (TCP); of an attached
 * socket, what the caller said. */
pid_t vf_qmp_peer_pid(const struct vf_qmp *qmp);
bool vf_qmp_has_oob(const struct vf_qmp *qmp);
/* The descriptor of the connection, or -1. Borrowed. */
int vf_qmp_fd(const struct vf_qmp *qmp);

/* Sends a command; `arguments` (may be NULL) is owned by this call. Requests may be pipelined:
 * replies come in their order. Returns a handle for vf_qmp_forget(), never 0. If the
 * connection is not ready, the request ends UNKNOWN (from the loop, as always). QEMU reads no
 * further while 8 requests wait, not even to an out-of-band one behind them. */
uint64_t vf_qmp_send(struct vf_qmp *qmp, const char *command, struct json_object *arguments,
                     vf_reply_fn *fn, void *data);
/* The same with "exec-oob"; only where vf_qmp_has_oob(). */
uint64_t vf_qmp_send_oob(struct vf_qmp *qmp, const char *command, struct json_object *arguments,
                         vf_reply_fn *fn, void *data);

/* A reply to this request in which each of `words` stands is OK without a value, and is not parsed:
 * for long lists of which nothing but that is of interest. Any other is as it would be without. In
 * the order of strcmp(), no more than 64, not copied. */
void vf_qmp_look_for(struct vf_qmp *qmp, uint64_t handle, const char *const *words, size_t count);

/* QEMU reads its monitor a byte at a time, which takes it longer than what it is asked for. So a
 * request can be sent before its time, all but the last byte: QEMU has read it when it counts.
 *
 * primed -> fired or taken back. While primed, nothing else may be sent (assert); events and
 * replies to what was sent before arrive as ever. A connection that ends takes the request with it:
 * QEMU forgets what it has only read in part. */

/* `arguments` (may be NULL) is owned by this call. False if there is no connection, or QEMU does
 * not read it: nothing is primed. */
bool vf_qmp_prime(struct vf_qmp *qmp, const char *command, struct json_object *arguments);
bool vf_qmp_is_primed(const struct vf_qmp *qmp);
/* Only while primed: the last byte. From there on it is a request as those of vf_qmp_send(). */
uint64_t vf_qmp_fire(struct vf_qmp *qmp, vf_reply_fn *fn, void *data);
/* Takes it back by a byte that no JSON has, upon which QEMU forgets it and complains, once; this
 * complaint is nobody's. Does nothing if nothing is primed. */
void vf_qmp_unprime(struct vf_qmp *qmp);

/* Drops the callback of a request that is still outstanding (0 and unknown handles are ignored).
 * Its reply, when it comes, is dropped. */
void vf_qmp_forget(struct vf_qmp *qmp, uint64_t handle);

#endif
