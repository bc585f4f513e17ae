/* SPDX-License-Identifier: MIT */
#include "util/json.h"

#include <assert.h>
#include <limits.h>
#include <stdarg.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/mem.h"

static struct json_object *
get(struct json_object *object, const char *key, enum json_type type)
{
    struct json_object *value = NULL;

    if (!json_object_is_type(object, json_type_object))
        return NULL;
    if (!json_object_object_get_ex(object, key, &value) || !json_object_is_type(value, type))
        return NULL;
    return value;
}

const char *
vf_json_text(struct json_object *value)
{
    if (!value || !json_object_is_type(value, json_type_string))
        return NULL;
    const char *text = json_object_get_string(value);

    return strlen(text) == (size_t)json_object_get_string_len(value) ? text : NULL;
}

const char *
vf_json_string(struct json_object *object, const char *key)
{
    return vf_json_text(get(object, key, json_type_string));
}

struct json_object *
vf_json_object(struct json_object *object, const char *key)
{
    return get(object, key, json_type_object);
}

struct json_object *
vf_json_array(struct json_object *object, const char *key)
{
    return get(object, key, json_type_array);
}

bool
vf_json_bool(struct json_object *object, const char *key, bool otherwise)
{
    struct json_object *value = get(object, key, json_type_boolean);

    return value ? json_object_get_boolean(value) : otherwise;
}

bool
vf_json_int(struct json_object *object, const char *key, int64_t *value_r)
{
    struct json_object *value = get(object, key, json_type_int);

    if (!value)
        return false;
    int64_t number = json_object_get_int64(value);

    /* json-c clamps what does not fit; nothing real sits at the ends. */
    if (number == INT64_MAX || number == INT64_MIN)
        return false;
    *value_r = number;
    return true;
}

size_t
vf_json_length(struct json_object *array)
{
    return json_object_is_type(array, json_type_array) ? json_object_array_length(array) : 0;
}

struct json_object *
vf_json_at(struct json_object *array, size_t index)
{
    return index < vf_json_length(array) ? json_object_array_get_idx(array, index) : NULL;
}

void
vf_json_add(struct json_object *object, const char *key, struct json_object *value)
{
    int failed = json_object_object_add(object, key, value);

    assert(!failed);
    (void)failed;
}

void
vf_json_add_string(struct json_object *object, const char *key, const char *value)
{
    if (value)
        vf_json_add(object, key, json_object_new_string(value));
}

void
vf_json_add_int(struct json_object *object, const char *key, int64_t value)
{
    vf_json_add(object, key, json_object_new_int64(value));
}

void
vf_json_add_bool(struct json_object *object, const char *key, bool value)
{
    vf_json_add(object, key, json_object_new_boolean(value));
}

struct json_object *
vf_json_strings(const char *key, ...)
{
    struct json_object *object = json_object_new_object();
    va_list arguments;

    va_start(arguments, key);
    for (; key; key = va_arg(arguments, const char *))
        vf_json_add_string(object, key, va_arg(arguments, const char *));
    va_end(arguments);
    return object;
}

struct json_object *
vf_json_parse(const char *text, size_t length, int depth)
{
    struct json_tokener *tokener = length > INT_MAX ? NULL : json_tokener_new_ex(depth);
    VF_AUTO_JSON struct json_object *value = NULL;

    if (!tokener)
        return NULL;
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    value = json_tokener_parse_ex(tokener, text, (int)length);
    bool whole = json_tokener_get_error(tokener) == json_tokener_success &&
                 json_tokener_get_parse_end(tokener) == length;
    json_tokener_free(tokener);
    return whole ? VF_STEAL(value) : NULL;
}

/* How many bytes follow the first one of a character; -1: none begins so. */
static int
bytes_behind(unsigned char first)
{
    return first < 0x80             ? 0
           : (first & 0xe0) == 0xc0 ? 1
           : (first & 0xf0) == 0xe0 ? 2
           : (first & 0xf8) == 0xf0 ? 3
                                    : -1;
}

bool
vf_json_readable(const char *text, int depth)
{
    bool in_string = false;
    int level = 0;

    for (const char *at = text; *at; at++) {
        int more = bytes_behind((unsigned char)*at);

        /* A scalar is a level of its own. */
        if (more < 0 || level >= depth)
            return false;
        for (; more > 0; more--)
            if (((unsigned char)*++at & 0xc0) != 0x80)
                return false;
        if (*at == '"')
            in_string = !in_string;
        else if (in_string)
            at += *at == '\\';
        else
            level += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
    }
    return true;
}
