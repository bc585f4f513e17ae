/* SPDX-License-Identifier: MIT
 *
 * A program that is run for what it prints, such as qemu-img, without waiting for it.
 *
 * Guarantees: the callback fires at most once, from the loop, when the program has ended and all
 * that it printed is read; none of our descriptors that are close-on-exec, and no blocked signal,
 * reaches it; its messages are in English; what it prints beyond VF_PROGRAM_MOST is read and
 * dropped. No signal handler is installed, and no other child is waited for. A host program that
 * waits for all children may take its exit status away from us: then it is not known.
 */
#ifndef VF_WIRE_PROGRAM_H
#define VF_WIRE_PROGRAM_H

#include <ev.h>
#include <stddef.h>
#include <sys/types.h>

#include "util/error.h"
#include "wire/outcome.h"

#define VF_PROGRAM_MOST ((size_t)64 << 10)

struct vf_program;

struct vf_program_end {
    int status;      /* exit status; -1: ended by a signal, or not known */
    const char *out; /* what it printed on stdout, with a NUL behind it */
    size_t out_length;
    const char *words; /* what it said on stderr: one line, fit to be shown */
};

/* Lives until it is called; may call vf_program_stop(). */
typedef void vf_program_fn(void *data, const struct vf_program_end *end);

/* `arguments` begins with the program's name, looked for in PATH, and ends with a NULL. NULL with
 * the reason if it cannot be started, and with `*missing_r` if there is no such program. */
struct vf_program *vf_program_start(struct ev_loop *loop, const char *const *arguments,
                                    vf_program_fn *fn, void *data, bool *missing_r,
                                    struct vmfrost_error *error);

/* The same for a child of ours that writes out what is dirty of these files (fdatasync), each as
 * far as that is possible: there is no other way not to wait for it. Nothing is printed, and how it
 * went is not told. */
struct vf_program *vf_program_sync(struct ev_loop *loop, const char *const *paths, size_t count,
                                   vf_program_fn *fn, void *data, struct vmfrost_error *error);

/* Its process id while it runs; 0: it was waited for. */
pid_t vf_program_pid(const struct vf_program *program);

/* Kills it if it runs, and releases it. NULL does nothing. */
void vf_program_stop(struct vf_program *program);

/* Our environment, but with messages in English. The array is owned by the caller, the texts are
 * not. */
char **vf_english_environment(void);

#endif
