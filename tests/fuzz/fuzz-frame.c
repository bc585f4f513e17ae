/* SPDX-License-Identifier: MIT
 *
 * Messages cut out of a stream, and the replies in them. The first byte chooses the limits, the
 * second in what pieces the stream arrives, which must make no difference.
 */
#include "wire/frame.h"

#include "fuzz.h"
#include "wire/outcome.h"

struct finding {
    enum vf_found what;
    size_t start, end;
};

struct findings {
    struct finding *list;
    size_t count;
};

static void
scan(const struct vf_frame_rules *rules, const uint8_t *bytes, size_t size, size_t step,
     struct findings *findings)
{
    struct vf_frame frame = {0};

    for (size_t length = step < size ? step : size;;) {
        enum vf_found what = vf_frame_scan(&frame, rules, bytes, length);

        MUST(frame.start <= frame.scanned && frame.scanned <= length);
        MUST(what != VF_FOUND_NOTHING || frame.scanned == length);
        if (what == VF_FOUND_NOTHING) {
            if (length == size)
                return;
            length = size - length < step ? size : length + step;
            continue;
        }
        VF_GROW(findings->list, findings->count);
        findings->list[findings->count++] = (struct finding){what, frame.start, frame.scanned};
        MUST(findings->count <= size);
        if (what != VF_FOUND_MARKER)
            vf_frame_next(&frame, what != VF_FOUND_MESSAGE);
    }
}

static size_t
count_values(struct json_object *value)
{
    size_t count = 1;

    if (json_object_is_type(value, json_type_array))
        for (size_t i = 0; i < vf_json_length(value); i++)
            count += count_values(vf_json_at(value, i));
    if (json_object_is_type(value, json_type_object)) {
        json_object_object_foreach(value, key, member)
        {
            (void)key;
            count += count_values(member);
        }
    }
    return count;
}

static void
check_message(const struct vf_frame_rules *rules, const char *text, size_t length)
{
    VF_AUTO_JSON struct json_object *message = vf_json_parse(text, length, rules->depth + 2);
    char words[VF_WORDS_SIZE];
    struct vf_reply reply;

    MUST(length <= rules->bytes && text[0] == '{');
    if (!message)
        return;
    MUST(text[length - 1] == '}');
    /* The limit on values is one on memory. */
    MUST(json_object_is_type(message, json_type_object));
    MUST(count_values(message) <= rules->values + 1);
    if (!vf_reply_read(message, &reply, words))
        return;
    MUST(reply.outcome != VF_UNKNOWN && reply.words == words && is_plain(words));
    MUST(reply.outcome == VF_OK ? !*words : !reply.value);
    vf_words_tell_of_lock(words);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct vf_frame_rules limits[] = {{24, 8, 3, false},
                                                   {400, 20, 8, false},
                                                   {64, 1000, 4, false},
                                                   {1 << 20, 1 << 18, 300, false}};
    struct findings whole = {NULL, 0}, pieces = {NULL, 0};

    if (size < 2)
        return 0;
    struct vf_frame_rules rules = limits[data[0] >> 1 & 3];
    size_t step = (size_t)(data[1] & 63) + 1;
    const uint8_t *bytes = data + 2;

    size -= 2;
    rules.markers = data[0] & 1;
    scan(&rules, bytes, size, size, &whole);
    scan(&rules, bytes, size, step, &pieces);
    MUST(whole.count == pieces.count);
    for (size_t i = 0; i < whole.count; i++) {
        const struct finding *a = &whole.list[i], *b = &pieces.list[i];

        MUST(a->what == b->what && a->start == b->start && a->end == b->end);
        if (a->what == VF_FOUND_MESSAGE)
            check_message(&rules, (const char *)bytes + a->start, a->end - a->start);
    }
    free(whole.list);
    free(pieces.list);
    return 0;
}
