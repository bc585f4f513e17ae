/* SPDX-License-Identifier: MIT
 *
 * A command of the user's, run in the foreground, and signals until it is done.
 *
 * From child_prepare() to child_release() no SIGINT, SIGQUIT, SIGTERM or SIGHUP ends this process:
 * something has to be done when the command has ended, whatever ended it. While it runs, SIGTERM
 * and SIGHUP are passed on. SIGINT and SIGQUIT are not: those come from a terminal, which sends
 * them to the command, too.
 *
 * The command has the descriptors, the signals and the terminal that this process was started with,
 * and no more. It gets a SIGTERM when this process is killed: who reads what nobody will merge
 * should not go on.
 */
#ifndef VF_CLI_CHILD_H
#define VF_CLI_CHILD_H

#include <ev.h>
#include <stdbool.h>
#include <sys/types.h>

#include "util/error.h"

/* Exit codes of a command that could not be run, as shells have them. */
enum { CHILD_NOT_RUN = 126, CHILD_NOT_FOUND = 127 };

enum { CHILD_SIGNALS = 4 };

struct child {
    struct ev_loop *loop;
    ev_signal watchers[CHILD_SIGNALS];
    ev_signal ending;
    int stopped_by; /* a signal that came while the command did not run; 0: none */
    pid_t pid;      /* 0: it does not run */
    int status;     /* as waitpid() has it */
};

void child_prepare(struct child *child, struct ev_loop *loop);
void child_release(struct child *child);

/* Whether it could be run: so that nothing is begun for a mistyped name. The error's code is
 * CHILD_NOT_FOUND or CHILD_NOT_RUN. */
bool child_exists(const char *program, struct vmfrost_error *error);

/* Runs it, and the loop until it has ended. False, with an error as of child_exists(), if it could
 * not be run. `words` end with NULL. */
bool child_run(struct child *child, const char **words, struct vmfrost_error *error);

/* Takes up signals that have come so far. */
void child_look(struct child *child);
/* Waits, but no longer than until a signal comes. False if one has. */
bool child_sleep(struct child *child, double seconds);

/* The exit code that a shell would give: its own, or 128 and the signal. */
int child_exit_code(const struct child *child);

#endif
