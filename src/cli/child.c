/* SPDX-License-Identifier: MIT */
#include "cli/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/signals.h"
#include "util/cleanup.h"
#include "util/mem.h"

static const int numbers[CHILD_SIGNALS] = {SIGINT, SIGQUIT, SIGTERM, SIGHUP};

static void
on_signal(struct ev_loop *loop, ev_signal *watcher, int revents)
{
    struct child *child = watcher->data;

    (void)loop;
    (void)revents;
    if (!child->pid)
        child->stopped_by = watcher->signum;
    else if (watcher->signum == SIGTERM || watcher->signum == SIGHUP)
        kill(child->pid, watcher->signum);
}

static void
on_ending(struct ev_loop *loop, ev_signal *watcher, int revents)
{
    struct child *child = watcher->data;

    (void)loop;
    (void)revents;
    if (child->pid && waitpid(child->pid, &child->status, WNOHANG) == child->pid)
        child->pid = 0;
}

void
child_prepare(struct child *child, struct ev_loop *loop)
{
    *child = (struct child){.loop = loop};
    for (size_t i = 0; i < CHILD_SIGNALS; i++) {
        ev_signal_init(&child->watchers[i], on_signal, numbers[i]);
        child->watchers[i].data = child;
        if (!signals_ignored(numbers[i]))
            ev_signal_start(loop, &child->watchers[i]);
    }
    ev_signal_init(&child->ending, on_ending, SIGCHLD);
    child->ending.data = child;
}

void
child_release(struct child *child)
{
    for (size_t i = 0; i < CHILD_SIGNALS; i++)
        ev_signal_stop(child->loop, &child->watchers[i]);
}

void
child_look(struct child *child)
{
    ev_run(child->loop, EVRUN_NOWAIT);
}

static void
on_timeout(struct ev_loop *loop, ev_timer *watcher, int revents)
{
    (void)loop;
    (void)watcher;
    (void)revents;
}

bool
child_sleep(struct child *child, double seconds)
{
    ev_timer timer;

    ev_timer_init(&timer, on_timeout, seconds, 0);
    child->stopped_by = 0;
    ev_now_update(child->loop);
    ev_timer_start(child->loop, &timer);
    while (ev_is_active(&timer) && !child->stopped_by)
        ev_run(child->loop, EVRUN_ONCE);
    ev_timer_stop(child->loop, &timer);
    return !child->stopped_by;
}

/*
 * Finding it
 */

/* 0, or why this file cannot be run. */
static int
try_file(const char *path)
{
    struct stat about;

    if (stat(path, &about) < 0)
        return errno;
    return !S_ISREG(about.st_mode) || access(path, X_OK) < 0 ? EACCES : 0;
}

static bool
fail(struct vmfrost_error *error, const char *program, int number)
{
    bool missing = number == ENOENT || number == ENOTDIR;

    return vf_fail(error, (enum vmfrost_code)(missing ? CHILD_NOT_FOUND : CHILD_NOT_RUN),
                   "cannot run '%s': %s", program, strerror(number));
}

bool
child_exists(const char *program, struct vmfrost_error *error)
{
    const char *path = getenv("PATH");
    VF_AUTO_FREE char *folders = vf_strdup(path ? path : "/bin:/usr/bin");
    char *rest = folders, *folder;
    int why = ENOENT;

    if (strchr(program, '/')) {
        why = try_file(program);
        return why == 0 || fail(error, program, why);
    }
    while ((folder = strsep(&rest, ":"))) {
        VF_AUTO_FREE char *file = vf_printf("%s/%s", *folder ? folder : ".", program);
        int number = try_file(file);

        if (number == 0)
            return true;
        if (number == EACCES)
            why = EACCES;
    }
    return fail(error, program, why);
}

/*
 * Running it
 */

/* In the new process; all signals are blocked. */
static _Noreturn void
become(const char **words, pid_t parent, const sigset_t *mask, int report)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signals_restore();
    sigprocmask(SIG_SETMASK, mask, NULL);
    if (getppid() != parent)
        _exit(128 + SIGTERM); /* it was killed before that could be told */
    execvp(words[0], (char *const *)(void *)words);

    int number = errno;

    while (write(report, &number, sizeof number) < 0 && errno == EINTR)
        continue;
    _exit(CHILD_NOT_RUN);
}

/* Why it could not be run; 0 if it was. Waits for one or the other, which is a moment. */
static int
answer_of(int report)
{
    int number = 0;
    ssize_t got;

    do
        got = read(report, &number, sizeof number);
    while (got < 0 && errno == EINTR);
    return got == sizeof number ? number : 0;
}

static int
start(struct child *child, const char **words)
{
    int report[2];
    sigset_t all, mask;
    pid_t parent = getpid();

    if (pipe2(report, O_CLOEXEC) < 0)
        return errno;
    sigfillset(&all);
    /* A signal that came to the new process now would be told to our loop. */
    sigprocmask(SIG_BLOCK, &all, &mask);
    pid_t pid = fork();

    if (pid == 0)
        become(words, parent, &mask, report[1]);
    int number = pid < 0 ? errno : 0;

    child->pid = pid > 0 ? pid : 0;
    sigprocmask(SIG_SETMASK, &mask, NULL);
    close(report[1]);
    if (number == 0)
        number = answer_of(report[0]);
    close(report[0]);
    return number;
}

bool
child_run(struct child *child, const char **words, struct vmfrost_error *error)
{
    ev_signal_start(child->loop, &child->ending);
    int number = start(child, words);

    while (child->pid)
        ev_run(child->loop, EVRUN_ONCE);
    ev_signal_stop(child->loop, &child->ending);
    return number == 0 || fail(error, words[0], number);
}

int
child_exit_code(const struct child *child)
{
    return WIFSIGNALED(child->status) ? 128 + WTERMSIG(child->status) : WEXITSTATUS(child->status);
}
