/* SPDX-License-Identifier: MIT
 *
 * A stream socket that carries JSON objects: connecting, framing, and the caps on what a peer
 * may send. It knows neither requests nor replies.
 *
 * Guarantees: no hook is ever called from inside a function of this file that somebody calls,
 * only from the loop; a hook may close or free the channel; one turn of the loop reads at most
 * VF_CHANNEL_TURN bytes, so that a peer which never stops sending starves nobody; and nothing
 * is kept beyond one unfinished message of at most the limit.
 */
#ifndef VF_WIRE_CHANNEL_H
#define VF_WIRE_CHANNEL_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "util/log.h"
#include "wire/frame.h"

struct ev_loop;
struct vf_channel;

#define VF_CHANNEL_TURN ((size_t)32 << 10)
/* What may wait for a peer that does not read. */
#define VF_CHANNEL_BACKLOG ((size_t)1 << 20)

/* All strings are plain text, fit to be shown, and live until the hook returns. */
struct vf_channel_hooks {
    void (*connected)(void *owner);
    /* All that is wanted of this message is that it came: then it is not parsed. May be NULL. */
    bool (*suffices)(void *owner, const char *text, size_t length);
    /* One JSON object, borrowed; NULL: one that suffices as it came. */
    void (*message)(void *owner, struct json_object *message);
    /* NULL where the rules know no markers. */
    void (*marker)(void *owner);
    /* The peer sent what is no message: `what` ("no JSON", "a message larger than 4 MiB"), and
     * how it begins. All input is skipped from here to the next marker. */
    void (*garbled)(void *owner, const char *what, const char *sample);
    /* The channel could not connect, or was open and is now closed. It is closed already. */
    void (*lost)(void *owner, const char *why);
};

/* `name` begins each log line ("qmp"); it is not copied. The rest is. */
struct vf_channel *vf_channel_new(struct ev_loop *loop, const char *name,
                                  const struct vf_channel_hooks *hooks,
                                  const struct vf_frame_rules *rules, void *owner,
                                  const struct vf_log *log);
void vf_channel_free(struct vf_channel *channel);

/* closed -> connecting, to a `path` as for vf_dial(). Ends in connected() or lost(). A listener
 * whose queue is full is asked again and again, for as long as the owner waits: closing is the
 * owner's time limit. */
void vf_channel_open(struct vf_channel *channel, const char *path);
/* The same for a socket that is connected already. It is owned by the channel from now on, which
 * makes it non-blocking. `peer_pid` is who is behind it, where SO_PEERCRED cannot know (it tells
 * who made a pair of sockets, not who has its other end); 0: ask the socket. */
void vf_channel_attach(struct vf_channel *channel, int fd, pid_t peer_pid);
/* Any state -> closed. What is unsent is dropped. */
void vf_channel_close(struct vf_channel *channel);

bool vf_channel_is_open(const struct vf_channel *channel);
int vf_channel_fd(const struct vf_channel *channel);         /* -1 unless open */
pid_t vf_channel_peer_pid(const struct vf_channel *channel); /* 0 if unknown */

/* Writes now what the socket takes, and the rest later. Only while open. False: too much is
 * waiting already, and nothing of this was taken. */
bool vf_channel_send(struct vf_channel *channel, const void *bytes, size_t length);

/* Skips all input, including a message that has begun, until the next marker. */
void vf_channel_skip(struct vf_channel *channel);

/* The start of some bytes as one line of plain text: white space and controls become blanks,
 * the rest is sanitized, and "..." stands for what did not fit. */
void vf_channel_line(char *line, size_t size, const void *bytes, size_t length);

#endif
