/* SPDX-License-Identifier: MIT
 *
 * How a request to a peer ends: one of three, and never two.
 *
 * REFUSED means that the peer said no, so that what was asked did not happen. UNKNOWN means
 * that nobody can say: a time limit, a lost socket, garbage, a cancel. Whoever undoes things
 * lives by that difference.
 */
#ifndef VF_WIRE_OUTCOME_H
#define VF_WIRE_OUTCOME_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>

enum vf_outcome { VF_OK, VF_REFUSED, VF_UNKNOWN };

/* All pointers live until the callback returns. */
struct vf_reply {
    enum vf_outcome outcome;
    struct json_object *value; /* OK: what stood in "return"; else NULL */
    const char *words; /* REFUSED: the peer's "desc", fit to be shown; UNKNOWN: why; OK: "" */
};

/* Fires exactly once for each request, from the loop, never inside the call that made it;
 * not at all for a request that was forgotten. */
typedef void vf_reply_fn(void *data, const struct vf_reply *reply);

/* Room for `words`. */
#define VF_WORDS_SIZE ((size_t)1000)

/* What a reply on the wire says: OK or REFUSED; false if it says neither, or both. The value is
 * borrowed from the message; the words, fit to be shown, are put into `words`. */
bool vf_reply_read(struct json_object *message, struct vf_reply *reply_r,
                   char words[VF_WORDS_SIZE]);

/* The words of QEMU or one of its tools say that somebody else has locked an image. The name of the
 * file, which stands in them, does not count. */
bool vf_words_tell_of_lock(const char *words);

#endif
