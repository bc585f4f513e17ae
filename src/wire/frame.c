/* SPDX-License-Identifier: MIT */
#include "wire/frame.h"

#define MARKER 0xff

void
vf_frame_next(struct vf_frame *frame, bool skipping)
{
    *frame =
        (struct vf_frame){.start = frame->scanned, .scanned = frame->scanned, .skipping = skipping};
}

/* One byte of a message; VF_FOUND_NOTHING: it goes on. */
static enum vf_found
frame_take(struct vf_frame *frame, const struct vf_frame_rules *rules, unsigned char byte)
{
    if (frame->in_string) {
        if (byte < ' ')
            return VF_FOUND_GARBAGE;
        if (frame->escaped)
            frame->escaped = false;
        else if (byte == '\\')
            frame->escaped = true;
        else if (byte == '"')
            frame->in_string = false;
    } else if (byte == '"') {
        frame->in_string = true;
    } else if (byte == '{' || byte == '[') {
        frame->values++;
        if (++frame->depth > rules->depth)
            return VF_FOUND_TOO_DEEP;
    } else if (byte == ',') {
        frame->values++;
    } else if (byte == '}' || byte == ']') {
        if (--frame->depth == 0)
            return VF_FOUND_MESSAGE;
    }
    if (frame->values > rules->values)
        return VF_FOUND_TOO_MANY;
    return frame->scanned - frame->start >= rules->bytes ? VF_FOUND_TOO_LARGE : VF_FOUND_NOTHING;
}

enum vf_found
vf_frame_scan(struct vf_frame *frame, const struct vf_frame_rules *rules,
              const unsigned char *bytes, size_t length)
{
    while (frame->scanned < length) {
        unsigned char byte = bytes[frame->scanned++];
        bool between = frame->depth == 0;

        if (byte == MARKER && rules->markers) {
            vf_frame_next(frame, false);
            return VF_FOUND_MARKER;
        }
        if (frame->skipping || (between && (byte == ' ' || (byte >= '\t' && byte <= '\r')))) {
            frame->start = frame->scanned;
            continue;
        }
        if (between && byte != '{')
            return VF_FOUND_GARBAGE;
        enum vf_found found = frame_take(frame, rules, byte);

        if (found != VF_FOUND_NOTHING)
            return found;
    }
    return VF_FOUND_NOTHING;
}
