/* SPDX-License-Identifier: MIT
 *
 * The journal of one VM: what an operation is about to do, on disk before it is done.
 *
 * A file of JSON lines. The first describes the operation; each later one is an entry with at least
 * a "state". A line is durable when vf_journal_write() returns. The file is removed when nothing of
 * the operation is left to do, so that its presence means: interrupted (or running, if
 * somebody holds the VM's lock).
 *
 * A crash can tear the last line only; the reader drops it. The guard of a frozen guest holds a
 * descriptor of the file, opened with O_APPEND, and adds a line of its own.
 *
 * Each line but the first is written as "\n\n{...}\n", with one write(2), by the guard, too. So a
 * line that a dead writer tore has an end and an empty line behind it when somebody else has
 * written on, which tells it from other damage: that is an error.
 */
#ifndef VF_STORE_JOURNAL_H
#define VF_STORE_JOURNAL_H

#include <json-c/json.h>
#include <stdbool.h>

#include "store/store.h"

struct vf_journal {
    char *path;
    int fd; /* O_APPEND, close-on-exec; -1: not open */
};
#define VF_JOURNAL_INIT                                                                            \
    {                                                                                              \
        NULL, -1                                                                                   \
    }

/* Begins: fails if there is one already. `first` is borrowed. */
bool vf_journal_begin(struct vf_journal *journal, const struct vf_vm *vm, struct json_object *first,
                      struct vmfrost_error *error);
/* Continues the one that is there (for recovery). */
bool vf_journal_continue(struct vf_journal *journal, const struct vf_vm *vm,
                         struct vmfrost_error *error);
/* Appends a line and makes it durable. `entry` is borrowed. */
bool vf_journal_write(struct vf_journal *journal, struct json_object *entry,
                      struct vmfrost_error *error);
/* Removes the file, durably, and closes. */
bool vf_journal_end(struct vf_journal *journal, struct vmfrost_error *error);
/* Closes and leaves the file for recovery. */
void vf_journal_close(struct vf_journal *journal);

bool vf_journal_exists(const struct vf_vm *vm);
/* An array of all whole lines; NULL with an error, or without one if there is no journal. A file
 * whose very first line is torn describes nothing that was begun: an empty array. */
struct json_object *vf_journal_read(const struct vf_vm *vm, struct vmfrost_error *error);

#endif
