/* SPDX-License-Identifier: MIT
 *
 * The trace of what happens, for whoever asked for it: one callback, no globals.
 *
 * A log is no place for errors (those are returned); it tells the story: each
 * change of state, each message to and from a peer, each file operation.
 */
#ifndef VF_UTIL_LOG_H
#define VF_UTIL_LOG_H

#include "vmfrost.h"

struct vf_log {
    vmfrost_log_fn *fn; /* NULL: nobody listens, and nothing is formatted */
    void *data;
    bool warnings_only; /* nobody listens to anything else */
};

static inline bool
vf_log_wants(const struct vf_log *log, enum vmfrost_log_level level)
{
    return log->fn && (level == VMFROST_LOG_WARNING || !log->warnings_only);
}

/* A line without its newline. Sanitized here: peers' words may be in it. Lines
 * longer than 2000 bytes are cut. */
void vf_log(const struct vf_log *log, enum vmfrost_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4), nonnull));

#endif
