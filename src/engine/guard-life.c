/* SPDX-License-Identifier: MIT
 *
 * The guard's life: what it hears, what it owes, and when it pays.
 *
 * caller  holding  what the guard does
 * there   -        listens; whenever the clock has run out it thaws, and goes on listening
 * gone    no       names, thaw, names that came late; then it ends
 * gone    yes      waits for the clock, then as above
 *
 * Guarantees: it holds nothing of the caller's but three descriptors; no signal ends it but those
 * of its own faults and SIGKILL; once its caller is gone, it ends by itself as soon as nothing is
 * owed any more or QEMU is gone, too.
 */
#include "engine/guard-private.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "util/descriptors.h"

#define YEAR_MS (365LL * 24 * 3600 * 1000)
#define CLOCK_LEAST_MS 10    /* between two thaws for a caller that hangs */
#define CLOCK_MOST_MS 300000 /* the same, after many */

/* --- The caller --- */

static void
set_clock(struct guard *guard, int64_t limit_ms)
{
    guard->limit_ms = limit_ms < 0 ? 0 : limit_ms > YEAR_MS ? YEAR_MS : limit_ms;
    guard->due = vf_guard_now_ms() + guard->limit_ms;
}

static void
on_message(struct guard *guard, const struct message *message)
{
    switch ((enum message_kind)message->kind) {
    case MESSAGE_FREEZING:
        guard->owes_thaw = true;
        set_clock(guard, message->value);
        guard->called_off = true;
        break;
    case MESSAGE_CUTTING:
        guard->owes_names = true;
        guard->at_once = guard->leading = false;
        break;
    case MESSAGE_TURNING:
        guard->owes_names = guard->at_once = true;
        break;
    case MESSAGE_LEADING:
        guard->owes_names = guard->leading = true;
        break;
    case MESSAGE_NAMED:
        guard->owes_names = false;
        break;
    case MESSAGE_THAWING:
        set_clock(guard, message->value);
        guard->called_off = true;
        break;
    case MESSAGE_THAWED:
        guard->owes_thaw = false;
        guard->called_off = true;
        break;
    case MESSAGE_HOLD:
        /* One that is being killed says nothing any more. */
        guard->holding = vf_guard_send(guard->link, MESSAGE_HELLO, getpid());
        break;
    case MESSAGE_HELLO:
    case MESSAGE_FAILED:
        break;
    }
}

void
vf_guard_listen(struct guard *guard)
{
    struct message message;

    for (;;) {
        ssize_t got = recv(guard->link, &message, sizeof message, MSG_DONTWAIT);

        if (got == (ssize_t)sizeof message) {
            on_message(guard, &message);
            continue;
        }
        /* ECONNRESET: the caller left something unread; what it said itself comes after that. */
        if (got < 0 && (errno == EINTR || errno == ECONNRESET))
            continue;
        if (got < 0 && errno == EAGAIN)
            return;
        guard->caller_gone = guard->called_off = true;
        close(guard->link);
        guard->link = -1;
        return;
    }
}

/* --- The debts --- */

/* {"state":STATE,KEY:VALUE,"time":...,"pid":...}; a negative value is left out. */
static void
write_journal(const struct guard *guard, const char *state, const char *key, int64_t value)
{
    char line[256], *at = line;
    const char *end = line + sizeof line;
    struct timespec now;

    if (guard->journal < 0)
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    /* The caller may have died in a line's middle: see the store's journal for what ends it. */
    vf_guard_put_text(&at, end, "\n\n{\"state\":\"");
    vf_guard_put_text(&at, end, state);
    vf_guard_put_text(&at, end, "\"");
    if (value >= 0) {
        vf_guard_put_text(&at, end, ",\"");
        vf_guard_put_text(&at, end, key);
        vf_guard_put_text(&at, end, "\":");
        vf_guard_put_number(&at, end, (uint64_t)value, 1);
    }
    vf_guard_put_text(&at, end, ",\"time\":");
    vf_guard_put_number(&at, end, (uint64_t)now.tv_sec, 1);
    vf_guard_put_text(&at, end, ".");
    vf_guard_put_number(&at, end, (uint64_t)now.tv_nsec / 1000, 6);
    vf_guard_put_text(&at, end, ",\"pid\":");
    vf_guard_put_number(&at, end, (uint64_t)getpid(), 1);
    vf_guard_put_text(&at, end, "}\n");

    /* In one piece: the caller may be alive and write to the same file. */
    ssize_t put;

    do
        put = write(guard->journal, line, (size_t)(at - line));
    while (put < 0 && errno == EINTR);
    fdatasync(guard->journal);
}

static bool
await_names(struct guard *guard)
{
    if (guard->at_once)
        return true;
    return guard->leading ? vf_guard_await_bases(guard) : vf_guard_await_cut(guard);
}

static bool
thaw_for_certain(struct guard *guard)
{
    while (vf_guard_reach_agent(guard))
        if (vf_guard_thaw(guard) == THAW_CONFIRMED)
            return true;
    return false;
}

static void
pay_debts(struct guard *guard)
{
    bool cut = guard->owes_names && await_names(guard);
    size_t flipped = cut ? vf_guard_flip_names(guard) : 0;

    if (guard->owes_thaw && thaw_for_certain(guard))
        write_journal(guard, "guard-thawed", "thawedFilesystems", guard->talk.thawed);
    /* The thaw was answered through the same main loop that makes the cut: whatever QEMU had been
     * told to cut, it has cut by now. */
    if (guard->owes_names && !guard->leading && !cut && (cut = vf_guard_is_cut(guard)))
        flipped = vf_guard_flip_names(guard);
    if (cut) {
        vf_guard_sync_names(guard);
        write_journal(guard, "guard-flipped", "flippedNames", (int64_t)flipped);
    }
    if (guard->owes_thaw && guard->agent >= 0)
        vf_guard_drain_agent(guard);
}

static void
wait_for_news(struct guard *guard)
{
    struct pollfd fds[] = {
        {.fd = guard->link, .events = POLLIN},
        {.fd = guard->agent, .events = POLLRDHUP},
    };

    vf_guard_poll(fds, 2, guard->owes_thaw && guard->agent >= 0 ? guard->due : NEVER);
    if (fds[0].revents)
        vf_guard_listen(guard);
    if (fds[1].revents)
        vf_guard_lose_agent(guard);
}

static void
live(struct guard *guard)
{
    for (;;) {
        /* As long as the caller lives, the agent's next connection is its own. */
        bool holds =
            guard->caller_gone && guard->holding && guard->owes_thaw && vf_guard_reach_agent(guard);
        bool late = guard->owes_thaw && guard->agent >= 0 && vf_guard_now_ms() >= guard->due;

        if (guard->caller_gone && (!holds || late))
            break;
        if (!late) {
            wait_for_news(guard);
            continue;
        }
        /* A caller that was stopped between cut and flip: before any write of the guest's. */
        if (guard->owes_names && vf_guard_is_cut(guard))
            vf_guard_flip_names(guard);
        if (vf_guard_thaw(guard) != THAW_CONFIRMED)
            continue;
        write_journal(guard, "guard-thawed", "thawedFilesystems", guard->talk.thawed);
        /* The thaw stays owed: a caller that was stopped just before it wrote the freeze will
         * write it when it goes on. Again and again, but ever more rarely. */
        set_clock(guard, guard->limit_ms * 2 < CLOCK_MOST_MS ? guard->limit_ms * 2 + CLOCK_LEAST_MS
                                                             : CLOCK_MOST_MS);
    }
    pay_debts(guard);
}

/* --- How a fork becomes a guard --- */

static void
reset_signals(void)
{
    sigset_t none;

    for (int number = 1; number < NSIG; number++) {
        /* Only a fault may end the guard (and SIGKILL, of course). */
        bool fault = number == SIGSEGV || number == SIGBUS || number == SIGILL ||
                     number == SIGFPE || number == SIGABRT || number == SIGTRAP || number == SIGSYS;
        struct sigaction action = {.sa_handler = fault ? SIG_DFL : SIG_IGN};

        sigaction(number, &action, NULL);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* One of the first three would be overwritten by /dev/null. */
static bool
move_up(int *fd)
{
    if (*fd < 0 || *fd > STDERR_FILENO)
        return true;
    *fd = fcntl(*fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    return *fd >= 0;
}

static bool
reset_descriptors(struct guard *guard)
{
    if (!move_up(&guard->link) || !move_up(&guard->agent) || !move_up(&guard->journal))
        return false;
    /* Whoever reads the caller's output is not to wait for the guard. */
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (null < 0)
            close(fd);
        else if (null != fd)
            dup2(null, fd);
    const int kept[] = {guard->link, guard->agent, guard->journal};

    return vf_close_others(kept, sizeof kept / sizeof *kept);
}

static void
resist_oom_killer(void)
{
    static const char never[] = "-1000";
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return;
    /* Lowering it takes a privilege; without one, the guard is small and killed late anyway. */
    ssize_t put = write(fd, never, sizeof never - 1);

    (void)put;
    close(fd);
}

void
vf_guard_become(struct guard *guard)
{
    setsid();
    if (chdir("/") < 0 || !reset_descriptors(guard)) {
        vf_guard_send(guard->link, MESSAGE_FAILED, errno);
        _exit(EXIT_FAILURE);
    }
    reset_signals();
    prctl(PR_SET_NAME, VF_GUARD_COMM);
    resist_oom_killer();
    vf_guard_open_process(guard);
    if (vf_guard_send(guard->link, MESSAGE_HELLO, getpid()))
        live(guard);
    _exit(EXIT_SUCCESS);
}
