/* SPDX-License-Identifier: MIT */
#include "util/json.h"

#include <assert.h>
#include <errno.h>
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

static struct json_object *
certain(struct json_object *made)
{
    if (!made)
        vf_out_of_memory();
    return made;
}

struct json_object *
vf_json_new_object(void)
{
    return certain(json_object_new_object());
}

struct json_object *
vf_json_new_array(void)
{
    return certain(json_object_new_array());
}

struct json_object *
vf_json_new_string(const char *text)
{
    return certain(json_object_new_string(text));
}

struct json_object *
vf_json_new_text(const char *text, size_t length)
{
    assert(length <= INT_MAX);
    return certain(json_object_new_string_len(text, (int)length));
}

void
vf_json_append(struct json_object *array, struct json_object *value)
{
    if (json_object_array_add(array, value) < 0)
        vf_out_of_memory();
}

/* json-c does not look whether it got the memory for a copy of the key. */
void
vf_json_add(struct json_object *object, const char *key, struct json_object *value)
{
    errno = 0;
    if (json_object_object_add(object, key, value) < 0 || errno == ENOMEM)
        vf_out_of_memory();
}

void
vf_json_add_string(struct json_object *object, const char *key, const char *value)
{
    if (value)
        vf_json_add(object, key, vf_json_new_string(value));
}

void
vf_json_add_int(struct json_object *object, const char *key, int64_t value)
{
    vf_json_add(object, key, certain(json_object_new_int64(value)));
}

void
vf_json_add_bool(struct json_object *object, const char *key, bool value)
{
    vf_json_add(object, key, certain(json_object_new_boolean(value)));
}

void
vf_json_add_double(struct json_object *object, const char *key, double value, const char *text)
{
    vf_json_add(object, key, certain(json_object_new_double_s(value, text)));
}

/* What did not fit is missing in the text, and nobody says so but errno. */
const char *
vf_json_print(struct json_object *value, int flags)
{
    errno = 0;
    const char *text = json_object_to_json_string_ext(value, flags);

    if (!text || errno == ENOMEM)
        vf_out_of_memory();
    return text;
}

struct json_object *
vf_json_strings(const char *key, ...)
{
    struct json_object *object = vf_json_new_object();
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
    VF_AUTO_JSON struct json_object *value = NULL;

    if (length > INT_MAX)
        return NULL;
    errno = 0;
    struct json_tokener *tokener = json_tokener_new_ex(depth);

    if (!tokener)
        vf_out_of_memory();
    json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    value = json_tokener_parse_ex(tokener, text, (int)length);
    /* A member that found no room is not there, and json-c says nothing. */
    if (errno == ENOMEM)
        vf_out_of_memory();
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
