/* SPDX-License-Identifier: MIT
 *
 * Strict readers for JSON that somebody else wrote, and short writers for ours.
 *
 * A getter answers with the wanted type or with "not there": a member of another
 * type is as absent as a missing one, NULL objects are empty, and nothing is ever
 * converted from one type to another.
 */
#ifndef VF_UTIL_JSON_H
#define VF_UTIL_JSON_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

/* Borrowed; NULL if it is not there. A string with a NUL inside counts as absent. */
const char *vf_json_string(struct json_object *object, const char *key);
struct json_object *vf_json_object(struct json_object *object, const char *key);
struct json_object *vf_json_array(struct json_object *object, const char *key);

bool vf_json_bool(struct json_object *object, const char *key, bool otherwise);
/* False if the member is absent, no integer, or out of the range of the type. */
bool vf_json_int(struct json_object *object, const char *key, int64_t *value_r);

/* Borrowed element of an array; what is no array is an empty one. */
size_t vf_json_length(struct json_object *array);
struct json_object *vf_json_at(struct json_object *array, size_t index);

/* The text of a string object, NULL for anything else. */
const char *vf_json_text(struct json_object *value);

/* json-c's own: out of memory ends the process, where json-c itself would give NULL or leave things
 * out without a word. Owned by the caller; what is added is taken, and may be NULL. The text
 * belongs to the value, and lasts until the next one. */
struct json_object *vf_json_new_object(void) __attribute__((returns_nonnull));
struct json_object *vf_json_new_array(void) __attribute__((returns_nonnull));
struct json_object *vf_json_new_string(const char *text) __attribute__((returns_nonnull));
struct json_object *vf_json_new_text(const char *text, size_t length)
    __attribute__((returns_nonnull));
void vf_json_append(struct json_object *array, struct json_object *value);
const char *vf_json_print(struct json_object *value, int flags) __attribute__((returns_nonnull));

/* Adds a member; the value's reference is taken. A NULL string adds nothing. */
void vf_json_add(struct json_object *object, const char *key, struct json_object *value);
void vf_json_add_string(struct json_object *object, const char *key, const char *value);
void vf_json_add_int(struct json_object *object, const char *key, int64_t value);
void vf_json_add_bool(struct json_object *object, const char *key, bool value);
/* Written as `text`. */
void vf_json_add_double(struct json_object *object, const char *key, double value,
                        const char *text);

/* {"key": "value", ...} from pairs of strings that end with a NULL. Owned by the caller. */
struct json_object *vf_json_strings(const char *key, ...) __attribute__((sentinel));

/* Parses a whole text, strictly; NULL if it is not one JSON value. Owned by the caller. */
struct json_object *vf_json_parse(const char *text, size_t length, int depth);
/* A text that json-c wrote can be read by vf_json_parse() with this depth: it nests no deeper, and
 * no string in it is other than UTF-8, which json-c writes as it got it. */
bool vf_json_readable(const char *text, int depth);

#endif
