/* SPDX-License-Identifier: MIT
 *
 * Files of our own: read whole, replaced at one instant, made durable.
 */
#ifndef VF_UTIL_FILE_H
#define VF_UTIL_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "util/error.h"

/* Neither we nor root own it, or others may write to it: anybody may have put there what it is. */
bool vf_others_may_change(const struct stat *about);

/* The whole of a regular file of at most `most` bytes, with a NUL behind it. Owned by
 * the caller; NULL with errno set (ENOENT; EFBIG: larger; EINVAL: no regular file; ELOOP: a
 * symbolic link, which is not followed; EPERM: others may change it, or what is in its folder). */
char *vf_read_file(const char *path, size_t most, size_t *length_r);
/* What such an errno means, for people. */
const char *vf_read_trouble(int number);
/* Adds to the error that something could not be written what to do about it, where the errno tells.
 * Always false. */
bool vf_hint_unwritten(struct vmfrost_error *error, int number);
/* Why nothing can be created, renamed or removed in the folder, whoever tries; `by_us`: by this
 * process. NULL: nothing tells that it cannot. */
const char *vf_unwritable(const char *folder, bool by_us);

/* Writes `path` so that it has either its old or its new content after any crash:
 * temporary file beside it, fsync, rename, fsync of the folder. Mode 0600. */
bool vf_replace_file(const char *path, const char *content, size_t length,
                     struct vmfrost_error *error);

/* Folder and missing parents, mode 0700. */
bool vf_make_folders(const char *path, struct vmfrost_error *error);

/* Makes the entries of a folder durable: 0, or -1 with errno. */
int vf_sync_folder(const char *path);
int vf_sync_folder_of(const char *path); /* of the folder that `path` lies in */

/* How many bytes are free in the folder's file system: for root, or for all others as well.
 * INT64_MAX where nobody can tell, or nothing sets a limit (a ramfs). */
int64_t vf_free_bytes(const char *folder, bool for_root);

/* "/a/b" of "/a/b/c", "." of "c". Owned by the caller. */
char *vf_folder_of(const char *path);
/* "c" of "/a/b/c": points into `path`. */
const char *vf_name_of(const char *path);

/* Nothing of the file waits in the kernel's cache to be written; false where that cannot be asked
 * for. Source: cachestat(2), Linux 6.5. */
bool vf_file_is_clean(const char *path);

#endif
