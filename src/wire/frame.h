/* SPDX-License-Identifier: MIT
 *
 * Cuts JSON objects out of a stream by their nesting, and stops those that are too big before
 * any memory is spent on them.
 *
 * The parser is given whole messages only, rather than piece by piece: json-c cannot check
 * UTF-8 across two pieces, and it has no limits of its own on what a message takes.
 */
#ifndef VF_WIRE_FRAME_H
#define VF_WIRE_FRAME_H

#include <stdbool.h>
#include <stddef.h>

/* Of one message. The count of values bounds the memory that it takes once it is parsed: an
 * empty object is two bytes on the wire and hundreds in memory. */
struct vf_frame_rules {
    size_t bytes, values;
    int depth;
    bool markers; /* a byte 0xFF drops what came before it, and a message begins */
};

/* All zero: before the first message. */
struct vf_frame {
    size_t start;   /* of the message in the buffer; what lies before it is done with */
    size_t scanned; /* how far the buffer has been looked at */
    size_t values;
    int depth;
    int deepest; /* depth of the message so far */
    bool in_string, escaped;
    bool skipping; /* everything up to the next marker */
};

enum vf_found {
    VF_FOUND_NOTHING, /* all is scanned: more is needed */
    VF_FOUND_MESSAGE, /* from `start` to `scanned`; vf_frame_next() goes on behind it */
    VF_FOUND_MARKER,  /* and scanning goes on behind it by itself */
    /* No message begins like that, at `start`: vf_frame_next(..., true) is all that helps. */
    VF_FOUND_GARBAGE,
    VF_FOUND_TOO_LARGE,
    VF_FOUND_TOO_DEEP,
    VF_FOUND_TOO_MANY,
};

enum vf_found vf_frame_scan(struct vf_frame *frame, const struct vf_frame_rules *rules,
                            const unsigned char *bytes, size_t length);

/* Goes on behind what is scanned: with the next message, or with skipping to a marker. */
void vf_frame_next(struct vf_frame *frame, bool skipping);

/* Each of `wanted` stands in the message as a string, wherever. In the order of strcmp(), no more
 * than 64, none with what JSON escapes. */
bool vf_frame_has(const char *message, size_t length, const char *const *wanted, size_t count);

#endif
