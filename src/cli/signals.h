/* SPDX-License-Identifier: MIT
 *
 * What signals mean while operations run: stop them in good order.
 *
 * SIGINT, SIGTERM and SIGHUP cancel all that runs, and the command goes on until it has unwound.
 * SIGTSTP (Ctrl-Z) is refused while something is being changed: a stopped vmfrost could not thaw.
 * A SIGINT or SIGHUP that was ignored when the command was started stays so (nohup, `&` in a
 * script).
 */
#ifndef VF_CLI_SIGNALS_H
#define VF_CLI_SIGNALS_H

#include <ev.h>
#include <stddef.h>

#include "cli/job.h"

enum { SIGNALS_WATCHED = 4 };

struct signals {
    struct cli *cli;
    struct job *jobs;
    size_t count;
    int times;
    ev_signal watchers[SIGNALS_WATCHED];
};

/* To be called once, before anything else: pipes that close are errors, not the end. */
void signals_prepare(void);
/* In a new process that is to become another program: all signals as they were at the start. */
void signals_restore(void);
bool signals_ignored(int number);

void signals_watch(struct signals *signals, struct cli *cli, struct job *jobs, size_t count);
void signals_leave(struct signals *signals);

#endif
