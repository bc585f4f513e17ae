/* SPDX-License-Identifier: MIT */
#include "util/log.h"

#include <stdarg.h>
#include <stdio.h>

#include "util/text.h"

void
vf_log(const struct vf_log *log, enum vmfrost_log_level level, const char *format, ...)
{
    char line[2000];
    va_list arguments;

    if (!vf_log_wants(log, level))
        return;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    vf_sanitize(line);
    log->fn(log->data, level, line);
}
