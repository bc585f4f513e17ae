/* SPDX-License-Identifier: MIT */
#include "wire/frame.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MARKER 0xff

void
vf_frame_next(struct vf_frame *frame, bool skipping)
{
    *frame =
        (struct vf_frame){.start = frame->scanned, .scanned = frame->scanned, .skipping = skipping};
}

/* What a byte can change. */
enum { IN_STRING = 1, OUTSIDE = 2 };

static const unsigned char matters[256] = {
    [0 ... ' ' - 1] = IN_STRING,
    ['\\'] = IN_STRING,
    ['"'] = IN_STRING | OUTSIDE,
    ['{'] = OUTSIDE,
    ['}'] = OUTSIDE,
    ['['] = OUTSIDE,
    [']'] = OUTSIDE,
    [','] = OUTSIDE,
    [MARKER] = IN_STRING | OUTSIDE,
};

/* Over the bytes of a message that change nothing, up to what its size allows. */
static void
frame_pass(struct vf_frame *frame, const struct vf_frame_rules *rules, const unsigned char *bytes,
           size_t length)
{
    unsigned char which = frame->in_string ? IN_STRING : OUTSIDE;
    size_t end = frame->start + rules->bytes - 1, at = frame->scanned;

    if (end > length)
        end = length;
    while (at < end && !(matters[bytes[at]] & which))
        at++;
    frame->scanned = at;
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
        if (frame->depth > frame->deepest)
            frame->deepest = frame->depth;
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
        if (frame->depth > 0 && !frame->escaped) {
            frame_pass(frame, rules, bytes, length);
            if (frame->scanned == length)
                break;
        }
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

struct string {
    const char *text;
    size_t length;
};

static int
compare_string(const void *key, const void *entry)
{
    const struct string *string = key;
    const char *wanted = *(const char *const *)entry;
    int order = strncmp(string->text, wanted, string->length);

    return order ? order : -(wanted[string->length] != '\0');
}

bool
vf_frame_has(const char *message, size_t length, const char *const *wanted, size_t count)
{
    const char *at = message, *end = message + length;
    uint64_t found = 0;

    assert(count > 0 && count <= 64);
    while ((at = memchr(at, '"', (size_t)(end - at)))) {
        const char *start = ++at;

        while (at < end && *at != '"')
            at += *at == '\\' && end - at > 1 ? 2 : 1;
        const struct string string = {start, (size_t)(at - start)};
        const char *const *known = bsearch(&string, wanted, count, sizeof *wanted, compare_string);

        if (known)
            found |= UINT64_C(1) << (known - wanted);
        at += at < end;
    }
    return found == UINT64_MAX >> (64 - count);
}
