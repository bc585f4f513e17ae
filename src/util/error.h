/* SPDX-License-Identifier: MIT
 *
 * How an error travels: returned, never printed, and filled in exactly once at
 * the place that knows most.
 *
 * `text` says what failed, on which VM and disk, with the peer's own words at its
 * end; `next` says what the user can do. Both are plain text without control
 * characters, whatever a peer sent. The struct is fixed in size, so that no
 * failure path allocates.
 */
#ifndef VF_UTIL_ERROR_H
#define VF_UTIL_ERROR_H

#include <stdbool.h>

#include "vmfrost.h"

/* Fills `error`, unless it holds an earlier one: the first cause is the one that
 * the user needs. Always returns false, so that a predicate can end in it. */
bool vf_fail(struct vmfrost_error *error, enum vmfrost_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4), nonnull));

#ifdef __clang_analyzer__ /* sees one file at a time */
#define vf_fail(...) ((void)vf_fail(__VA_ARGS__), false)
#endif

/* Adds what to do next to an error that has none yet. Returns false. */
bool vf_hint(struct vmfrost_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3), nonnull));

/* Puts "PREFIX: " before the text, once per layer that knows more. */
void vf_prefix(struct vmfrost_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3), nonnull));

static inline bool
vf_failed(const struct vmfrost_error *error)
{
    return error->code != VMFROST_OK;
}

#endif
