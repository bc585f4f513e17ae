/* SPDX-License-Identifier: MIT
 *
 * Allocation that cannot fail: out of memory ends the process (for json-c's, see util/json.h).
 *
 * That is the safe answer here. A process that dies while a thaw is owed is what
 * the guard exists for, and what the journal describes; a half-unwound operation
 * that limps on without memory is neither. libev answers in the same way.
 */
#ifndef VF_UTIL_MEM_H
#define VF_UTIL_MEM_H

#include <stddef.h>

void vf_out_of_memory(void) __attribute__((noreturn));
void *vf_alloc(size_t size) __attribute__((returns_nonnull, malloc)); /* zeroed */
void *vf_realloc(void *old, size_t size) __attribute__((returns_nonnull));
char *vf_strdup(const char *text) __attribute__((returns_nonnull, nonnull));
char *vf_printf(const char *format, ...)
    __attribute__((format(printf, 1, 2), returns_nonnull, nonnull(1)));

/* Makes room for one more element in an array that grows by doubling. */
#define VF_GROW(array, count) ((array) = vf_grow((array), (count), sizeof *(array)))
void *vf_grow(void *array, size_t count, size_t element_size) __attribute__((returns_nonnull));

#endif
