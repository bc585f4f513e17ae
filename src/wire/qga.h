/* SPDX-License-Identifier: MIT
 *
 * A client of the QEMU guest agent.
 *
 * The agent works strictly in order, one command at a time, and has no ids, no greeting and no
 * end: what a client writes may be executed long after that client is gone. So this client
 * keeps one request outstanding; a reply is only ever taken for the request's own if the
 * stream has been synchronised (0xFF and guest-sync-delimited with a random number) since the
 * last time that anything was left unanswered. Replies before the marker are discarded.
 *
 * After UNKNOWN or vf_qga_forget(), the next request is written AT ONCE, behind a new marker and
 * behind whatever the agent still has to do: a thaw sent after a freeze that did not answer is
 * executed right after that freeze, however late it comes.
 *
 * Everything read here comes from the guest and is hostile: capped in size and depth, parsed
 * strictly. Source: QEMU qga/main.c, qga/qapi-schema.json.
 */
#ifndef VF_WIRE_QGA_H
#define VF_WIRE_QGA_H

#include <stdbool.h>

#include "util/log.h"
#include "wire/outcome.h"

struct ev_loop;
struct vf_qga;

#define VF_QGA_MESSAGE_MAX ((size_t)1 << 20)
/* How long a connection may take where other clients are queued up before us. */
#define VF_QGA_CONNECT_MS 4500

/* The connection is gone (QEMU closed it), after the outstanding request has ended UNKNOWN. Not
 * called for vf_qga_close(), nor for an open that failed. May be NULL. */
typedef void vf_qga_lost_fn(void *owner, const char *why);

/* Never fails. The log is copied. */
struct vf_qga *vf_qga_new(struct ev_loop *loop, vf_qga_lost_fn *lost, void *owner,
                          const struct vf_log *log);
/* Closes; no callback fires any more. May be called from a callback. NULL is allowed. */
void vf_qga_free(struct vf_qga *qga);
/* For callers in a hurry, tests among them; holds from the next vf_qga_open() on. */
void vf_qga_set_connect_ms(struct vf_qga *qga, int ms);

/* closed -> open. Connects to the UNIX socket at `path` (or "tcp:HOST:PORT") without a word to
 * the agent yet: the first request carries the marker. OK: connected. UNKNOWN: closed again,
 * `words` say why. A connection says nothing about an agent behind it. Opening anew before the
 * lost callback of the last connection has fired drops that callback. */
void vf_qga_open(struct vf_qga *qga, const char *path, vf_reply_fn *fn, void *data);
/* Any state -> closed; an open or a request still outstanding is forgotten. May be called from a
 * callback. What QEMU has already been given may still be executed by the guest. */
void vf_qga_close(struct vf_qga *qga);

/* The same, and for everybody who shares the socket: QEMU is told that its client is gone. */
void vf_qga_hang_up(struct vf_qga *qga);

bool vf_qga_is_open(const struct vf_qga *qga);
/* Has the agent answered anything on this connection, in time or late? */
bool vf_qga_was_heard(const struct vf_qga *qga);
/* Not heard, although QEMU has taken all that was said: neither is another client being served, nor
 * does the VM stand still, nor is the agent's port closed. */
bool vf_qga_is_ignored(const struct vf_qga *qga);
int vf_qga_fd(const struct vf_qga *qga); /* borrowed; -1 if closed */

/* Sends one command. `arguments` (may be NULL) is owned by this call. No other request may be
 * outstanding (assert). OK, REFUSED (the agent's "desc"), or UNKNOWN (connection lost or not
 * open, reply too large or not JSON). */
void vf_qga_call(struct vf_qga *qga, const char *command, struct json_object *arguments,
                 vf_reply_fn *fn, void *data);

/* Stops waiting for the outstanding request, if any: its callback does not fire, and the stream
 * is synchronised anew with the next request. */
void vf_qga_forget(struct vf_qga *qga);

#endif
