/* SPDX-License-Identifier: MIT
 *
 * A file for the user that gets its name only when it is whole.
 *
 * Guarantees: until vf_newfile_publish() nothing has the name; from then on a whole and durable
 * file has it. Nothing that has the name is ever replaced, whoever made it and when. The file is
 * the caller's own, with the mode that the umask allows. Whoever is killed leaves
 * ".NAME.<16 hex digits>.part" beside it, locked by nobody: the next vf_newfile_create() of the
 * same name removes it.
 */
#ifndef VF_UTIL_NEWFILE_H
#define VF_UTIL_NEWFILE_H

#include <stdbool.h>

#include "util/error.h"

struct vf_newfile {
    char *path; /* NULL: there is none */
    char *part; /* where it is written, in the same folder; NULL: it was published */
    int fd;     /* of the part, for reading and writing; -1: none */
};
#define VF_NEWFILE_INIT                                                                            \
    {                                                                                              \
        NULL, NULL, -1                                                                             \
    }

/* `file` is VF_NEWFILE_INIT; also after a failure vf_newfile_release() is to be called. */
bool vf_newfile_create(struct vf_newfile *file, const char *path, struct vmfrost_error *error);
/* The content has to be flushed by whoever else wrote it. */
bool vf_newfile_publish(struct vf_newfile *file, struct vmfrost_error *error);
/* Removes the part, if it was not published. `file` is VF_NEWFILE_INIT afterwards. */
void vf_newfile_release(struct vf_newfile *file);

/* Nothing has this name; else an error that says what. */
bool vf_name_is_free(const char *path, struct vmfrost_error *error);

#endif
