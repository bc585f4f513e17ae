/* SPDX-License-Identifier: MIT */
#include "util/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "util/text.h"

#undef vf_fail

bool
vf_fail(struct vmfrost_error *error, enum vmfrost_code code, const char *format, ...)
{
    va_list arguments;

    if (vf_failed(error))
        return false;
    error->code = code;
    error->next[0] = '\0';
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    vf_sanitize(error->text);
    return false;
}

bool
vf_hint(struct vmfrost_error *error, const char *format, ...)
{
    va_list arguments;

    if (error->next[0])
        return false;
    va_start(arguments, format);
    vsnprintf(error->next, sizeof error->next, format, arguments);
    va_end(arguments);
    vf_sanitize(error->next);
    return false;
}

void
vf_prefix(struct vmfrost_error *error, const char *format, ...)
{
    char kept[sizeof error->text];
    va_list arguments;

    memcpy(kept, error->text, sizeof kept);
    va_start(arguments, format);
    int length = vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    /* What does not fit is cut at the end: the context comes first. */
    if (length >= 0 && (size_t)length + 2 < sizeof error->text)
        snprintf(error->text + length, sizeof error->text - (size_t)length, ": %.*s",
                 (int)(sizeof error->text - (size_t)length - 3), kept);
    vf_sanitize(error->text);
}
