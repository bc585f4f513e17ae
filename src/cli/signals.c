/* SPDX-License-Identifier: MIT */
#include "cli/signals.h"

#include <signal.h>

#include "cli/live.h"
#include "cli/report.h"

/* What signals_prepare() changes, and what it was. */
static struct {
    int number;
    void (*before)(int number);
} prepared[] = {
    {SIGPIPE, SIG_DFL},
    {SIGTTOU, SIG_DFL}, /* with `stty tostop`, a background job would be stopped by its messages */
};

void
signals_prepare(void)
{
    for (size_t i = 0; i < sizeof prepared / sizeof *prepared; i++)
        prepared[i].before = signal(prepared[i].number, SIG_IGN);
}

bool
signals_ignored(int number)
{
    struct sigaction action;

    return sigaction(number, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

void
signals_restore(void)
{
    for (int number = 1; number < NSIG; number++) {
        if (!signals_ignored(number))
            signal(number, SIG_DFL);
    }
    for (size_t i = 0; i < sizeof prepared / sizeof *prepared; i++)
        signal(prepared[i].number, prepared[i].before);
}

static void
say(struct signals *signals, const char *text)
{
    live_pause(signals->cli->live);
    out_text(&signals->cli->err, STYLE_WARN, "vmfrost: %s\n", text);
    out_flush(&signals->cli->err);
}

static void
on_stop(struct ev_loop *loop, ev_signal *watcher, int revents)
{
    struct signals *signals = watcher->data;
    bool changes = signals->cli->command->kind == COMMAND_OPERATES;
    int first = signals->cli->reprieve ? 2 : 1; /* that stops */

    (void)loop;
    (void)revents;
    signals->times++;
    if (signals->times < first) {
        say(signals, signals->cli->reprieve);
        return;
    }
    signals->cli->stopped = true;
    for (size_t i = 0; i < signals->count; i++) {
        if (!signals->jobs[i].done)
            vmfrost_cancel(signals->jobs[i].op);
    }
    if (signals->times == first)
        say(signals, changes ? "stopping: thawing and tidying up" : "stopping");
    else if (changes)
        say(signals, "still unwinding, and it has to finish; if it is killed now, its guard thaws "
                     "the guest");
}

static void
on_suspend(struct ev_loop *loop, ev_signal *watcher, int revents)
{
    struct signals *signals = watcher->data;

    (void)loop;
    (void)revents;
    say(signals, "not suspended: who sleeps cannot thaw; Ctrl-C stops it in good order");
}

static const int numbers[SIGNALS_WATCHED] = {SIGINT, SIGTERM, SIGHUP, SIGTSTP};

static bool
wanted(const struct signals *signals, int number)
{
    if (number == SIGTSTP)
        return signals->cli->command->kind == COMMAND_OPERATES && !signals_ignored(number);
    return number == SIGTERM || !signals_ignored(number);
}

void
signals_watch(struct signals *signals, struct cli *cli, struct job *jobs, size_t count)
{
    *signals = (struct signals){.cli = cli, .jobs = jobs, .count = count};
    for (size_t i = 0; i < SIGNALS_WATCHED; i++) {
        ev_signal *watcher = &signals->watchers[i];

        ev_signal_init(watcher, numbers[i] == SIGTSTP ? on_suspend : on_stop, numbers[i]);
        watcher->data = signals;
        if (!wanted(signals, numbers[i]))
            continue;
        ev_signal_start(cli->loop, watcher);
        ev_unref(cli->loop); /* waiting for a signal is no reason to run */
    }
}

void
signals_leave(struct signals *signals)
{
    for (size_t i = 0; i < SIGNALS_WATCHED; i++) {
        if (!ev_is_active(&signals->watchers[i]))
            continue;
        ev_ref(signals->cli->loop);
        ev_signal_stop(signals->cli->loop, &signals->watchers[i]);
    }
}
