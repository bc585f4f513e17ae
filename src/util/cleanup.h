/* SPDX-License-Identifier: MIT
 *
 * Owners that release themselves when they leave their scope.
 *
 * A local that owns something is declared with VF_CLEANUP(function); giving the
 * thing away is always spelled VF_STEAL(local), so that a reader sees each
 * transfer of ownership.
 */
#ifndef VF_UTIL_CLEANUP_H
#define VF_UTIL_CLEANUP_H

#include <json-c/json.h>
#include <stdlib.h>
#include <unistd.h>

#define VF_CLEANUP(function) __attribute__((cleanup(function)))

/* The value of `pointer`, which is NULL afterwards. */
#define VF_STEAL(pointer)                                                                          \
    __extension__({                                                                                \
        __typeof__(pointer) stolen_ = (pointer);                                                   \
        (pointer) = NULL;                                                                          \
        stolen_;                                                                                   \
    })

static inline void
vf_cleanup_free(void *at)
{
    free(*(void **)at);
}

static inline void
vf_cleanup_json(struct json_object **at)
{
    json_object_put(*at);
}

static inline void
vf_cleanup_fd(int *at)
{
    if (*at >= 0)
        close(*at);
}

#define VF_AUTO_FREE VF_CLEANUP(vf_cleanup_free)
#define VF_AUTO_JSON VF_CLEANUP(vf_cleanup_json)
#define VF_AUTO_FD VF_CLEANUP(vf_cleanup_fd)

#endif
