/* SPDX-License-Identifier: MIT
 *
 * For targets whose input is one JSON text: changes values and leaves it JSON, most of the time.
 * Only where there is a fuzzer.
 */
#ifndef TESTS_FUZZ_MUTATE_H
#define TESTS_FUZZ_MUTATE_H

#ifdef VMFROST_FUZZER

#include "fuzz.h"

#define SLOTS_MOST 4096
#define DEPTH_MOST 64

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);

/* Where a value is. */
struct slot {
    struct json_object *holder;
    const char *key; /* NULL: an array's element */
    size_t index;
    struct json_object *value;
};

struct slots {
    struct slot all[SLOTS_MOST];
    size_t count;
};

static void
slots_find(struct slots *slots, struct json_object *holder)
{
    if (json_object_is_type(holder, json_type_object)) {
        json_object_object_foreach(holder, key, value)
        {
            if (slots->count < SLOTS_MOST)
                slots->all[slots->count++] = (struct slot){holder, key, 0, value};
            slots_find(slots, value);
        }
    }
    for (size_t i = 0; i < vf_json_length(holder); i++) {
        struct json_object *value = vf_json_at(holder, i);

        if (slots->count < SLOTS_MOST)
            slots->all[slots->count++] = (struct slot){holder, NULL, i, value};
        slots_find(slots, value);
    }
}

static struct json_object *
copy_of(struct json_object *value)
{
    struct json_object *copy = NULL;

    return value && json_object_deep_copy(value, &copy, NULL) == 0 ? copy : NULL;
}

static struct json_object *
some_value(struct json_object *old)
{
    static const int64_t numbers[] = {0, 1, -1, 2, 63, 64, 512, INT32_MAX, INT64_MAX, INT64_MIN};

    switch (rand() % 7) {
    case 0:
        return NULL;
    case 1:
        return json_object_new_boolean(rand() % 2);
    case 2:
        return json_object_new_int64(numbers[(size_t)rand() % (sizeof numbers / sizeof *numbers)]);
    case 3:
        return json_object_new_array();
    case 4:
        return json_object_new_object();
    default: {
        const char *text = vf_json_text(old);
        char changed[256] = "";
        size_t length = text ? strnlen(text, sizeof changed / 2) : 0;

        memcpy(changed, text ? text : "", length);
        length = LLVMFuzzerMutate((uint8_t *)changed, length, sizeof changed - 1);
        changed[length < sizeof changed ? length : sizeof changed - 1] = '\0';
        return json_object_new_string(changed);
    }
    }
}

/* The value's reference is taken. */
static void
slot_put(const struct slot *slot, struct json_object *value)
{
    VF_AUTO_FREE char *key = slot->key ? vf_strdup(slot->key) : NULL;

    if (key)
        json_object_object_add(slot->holder, key, value);
    else
        json_object_array_put_idx(slot->holder, slot->index, value);
}

static void
change(const struct slots *slots)
{
    const struct slot *slot = &slots->all[(size_t)rand() % slots->count];
    const struct slot *other = &slots->all[(size_t)rand() % slots->count];

    switch (rand() % 6) {
    case 0:
        if (slot->key) {
            VF_AUTO_FREE char *key = vf_strdup(slot->key);

            json_object_object_del(slot->holder, key);
        } else {
            json_object_array_del_idx(slot->holder, slot->index, 1);
        }
        break;
    case 1:
        slot_put(slot, some_value(slot->value));
        break;
    case 2:
        if (!slot->key)
            json_object_array_add(slot->holder, copy_of(slot->value));
        else if (other->key)
            json_object_object_add(slot->holder, other->key, copy_of(slot->value));
        break;
    case 3:
        slot_put(slot, copy_of(other->value));
        break;
    default: /* names that mean the same thing are what graphs are made of */
        for (int tries = 0;
             tries < 50 && json_object_get_type(slot->value) != json_object_get_type(other->value);
             tries++)
            other = &slots->all[(size_t)rand() % slots->count];
        slot_put(slot, copy_of(other->value));
        break;
    }
}

size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    static struct slots slots;
    VF_AUTO_JSON struct json_object *document = NULL;

    srand(seed);
    if (rand() % 10 > 0)
        document = vf_json_parse((const char *)data, size, DEPTH_MOST);
    for (int changes = rand() % 3 + 1; document && changes > 0; changes--) {
        slots.count = 0;
        slots_find(&slots, document);
        if (slots.count > 0)
            change(&slots);
    }
    const char *text =
        document ? json_object_to_json_string_ext(document, JSON_C_TO_STRING_PLAIN) : NULL;

    if (!text || strlen(text) > most)
        return LLVMFuzzerMutate(data, size, most);
    memcpy(data, text, strlen(text));
    return strlen(text);
}

#endif
#endif
