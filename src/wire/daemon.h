/* SPDX-License-Identifier: MIT
 *
 * QEMU's block layer without a QEMU: one qemu-storage-daemon, a child of ours, for the images of a
 * VM that does not run.
 *
 * Guarantees: its monitor is one end of a pair of sockets, so that there is no file and nobody
 * else can connect. It ends with the thread that started it, however that ends, so that it never
 * writes to an image that nobody watches. It has none of our descriptors, and so none of our
 * locks; a Ctrl-C at our terminal does not reach it; names that are not absolute mean nothing to
 * it; what it makes is for the owner alone (umask 077). No signal handler is installed, and no
 * other child is waited for.
 *
 *     vf_daemon_start(&daemon, log, &error);
 *     vf_qmp_attach(qmp, vf_daemon_take_monitor(&daemon), daemon.pid, VF_DAEMON_NAME, fn, data);
 *     ...      whatever fails: vf_daemon_words(&daemon, words) is what it has to say itself
 *     vf_daemon_stop(&daemon);
 */
#ifndef VF_WIRE_DAEMON_H
#define VF_WIRE_DAEMON_H

#include <stdbool.h>
#include <sys/types.h>

#include "util/error.h"
#include "util/log.h"
#include "wire/outcome.h"

#define VF_DAEMON_NAME "qemu-storage-daemon"
/* Where the program is, if it is not in PATH. */
#define VF_DAEMON_ENV "VMFROST_STORAGE_DAEMON"
/* How long it has to end by itself in vf_daemon_stop(), before it is killed. */
#define VF_DAEMON_STOP_MS 2000

struct vf_daemon {
    pid_t pid;    /* 0: none was started */
    int pid_fd;   /* the process itself, whoever waited for it; -1: the kernel has no such thing */
    int monitor;  /* our end; -1 once it was taken */
    int words_fd; /* a file in memory: what it writes to stdout and stderr */
};
#define VF_DAEMON_INIT                                                                             \
    {                                                                                              \
        0, -1, -1, -1                                                                              \
    }

/* `daemon` is VF_DAEMON_INIT. True: there is a process, which is about to become the program;
 * whether it works, the monitor tells. It ends when the calling thread does: let that be the one
 * that runs the loop. */
bool vf_daemon_start(struct vf_daemon *daemon, const struct vf_log *log,
                     struct vmfrost_error *error);

/* Our end of the monitor, once; owned by the caller. */
int vf_daemon_take_monitor(struct vf_daemon *daemon);

/* How it ended, if it did, and what it has said so far, as one line fit to be shown; "" if there
 * is nothing of both. Also for one that was never started. */
void vf_daemon_words(const struct vf_daemon *daemon, char words[VF_WORDS_SIZE]);

/* Ends it, by SIGTERM, and after VF_DAEMON_STOP_MS by SIGKILL; returns when it is gone (or, killed,
 * hangs in the kernel for seconds more: it touches nothing any more). A job that still runs is
 * cancelled. To let it end by itself, send `quit` before. Harmless for one that was never started.
 * `daemon` is VF_DAEMON_INIT afterwards. */
void vf_daemon_stop(struct vf_daemon *daemon);

#endif
