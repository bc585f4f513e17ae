/* SPDX-License-Identifier: MIT */
#include "util/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void
vf_out_of_memory(void)
{
    static const char words[] = "vmfrost: out of memory\n";
    ssize_t ignored = write(STDERR_FILENO, words, sizeof words - 1);

    (void)ignored;
    abort();
}

void *
vf_alloc(size_t size)
{
    void *memory = calloc(1, size ? size : 1);

    if (!memory)
        vf_out_of_memory();
    return memory;
}

void *
vf_realloc(void *old, size_t size)
{
    void *memory = realloc(old, size ? size : 1);

    if (!memory)
        vf_out_of_memory();
    return memory;
}

char *
vf_strdup(const char *text)
{
    size_t size = strlen(text) + 1;

    return memcpy(vf_alloc(size), text, size);
}

char *
vf_printf(const char *format, ...)
{
    va_list arguments;
    char *text;

    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0)
        vf_out_of_memory();
    return text;
}

void *
vf_grow(void *array, size_t count, size_t element_size)
{
    /* Full exactly when the count is 0 or a power of two from 4 on. */
    if (count == 0)
        return vf_realloc(array, 4 * element_size);
    if (count >= 4 && (count & (count - 1)) == 0)
        return vf_realloc(array, 2 * count * element_size);
    return array;
}
