/* SPDX-License-Identifier: MIT
 *
 * caller  holding  what the guard does
 * there   -        listens; whenever the clock has run out it thaws, and goes on listening
 * gone    no       names, thaw, names that came late; then it ends
 * gone    yes      waits for the clock, then as above
 *
 * All above the section "in the caller" may run after a fork of a program that has threads:
 * async-signal-safe calls only, no allocation, no stdio. What it needs is put into one block of
 * memory before.
 *
 * A guest is not to be trusted: what the agent's connection brings is read into buffers of fixed
 * size, and each so many passes of the loop there is a rest, so that a flood costs it no CPU.
 *
 * The clock is CLOCK_BOOTTIME: a host that slept makes the guard thaw at once when it wakes up. An
 * early thaw costs one snapshot, which notices it; a late one costs the guest's users, whose time
 * went on.
 */
#include "engine/guard.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/mem.h"

#define COMM "vmfrost-guard"
#define NEVER INT64_MAX
#define YEAR_MS (365LL * 24 * 3600 * 1000)

#define HELLO_MS 2000  /* from the fork to the guard's first word */
#define SLICE_MS 1000  /* poll() does not count the time that the host slept: look again */
#define CUT_MS 300     /* a dead caller's transaction is in QEMU's hands: it takes that long */
#define CUT_PAUSE_MS 2 /* between two looks at QEMU's descriptors */
#define ANSWER_FIRST_MS 2000 /* without an answer, the thaw is sent again */
#define ANSWER_MS 5000
#define ANSWER_LATER_MS 30000 /* no agent runs, or one that is at work */
#define ATTEMPTS_EAGER 12
#define PAUSE_FIRST_MS 200 /* after an answer that is not "thawed"; doubles */
#define PAUSE_MOST_MS 30000
#define PASSES_MOST 16 /* of the loop until it rests */
#define REST_MS 10
#define DRAIN_MS 5000        /* for the answers to attempts that were not needed */
#define CLOCK_MOST_MS 300000 /* between two thaws for a caller that hangs */
#define KILLED_MS 5000       /* until a killed guard is gone */
#define DISMISS_PAUSE_MS 5

#define LINE_ROOM 256 /* longer than each reply that is understood */
#define MARKER 0xff   /* before a synchronising reply, and nowhere else in UTF-8 */

enum message_kind {
    MESSAGE_HELLO,  /* to the caller: value = the guard's pid */
    MESSAGE_FAILED, /* to the caller: value = errno */
    MESSAGE_FREEZING,
    MESSAGE_CUTTING,
    MESSAGE_NAMED,
    MESSAGE_THAWING,
    MESSAGE_THAWED,
    MESSAGE_HOLD,
};

struct message {
    int64_t kind; /* as wide as the value: no padding that would be sent uninitialised */
    int64_t value;
};

struct name {
    const char *next, *top;
    const char *next_folder, *top_folder;
    uint64_t overlay_device, overlay_number;
    uint64_t base_device, base_number;
    bool overlay_written, base_written; /* QEMU has it open for writing, as last looked */
};

/* What the next line of the agent will be. */
enum talk_phase { TALK_SYNC, TALK_THAW, TALK_STATUS };

struct talk {
    enum talk_phase phase;
    uint64_t first_id, answering_id; /* attempt n has the id first_id + n */
    uint64_t attempts;
    int64_t send_at, pause_ms;
    int64_t thawed; /* file systems, as the thaw's reply has it; -1: it was an error */
    bool confirmed; /* an attempt has ended in "thawed" */
    bool drained;   /* the last attempt has been answered */
    bool marked;    /* the line began with the marker */
    bool overlong;
    size_t line_length, out_length, out_sent;
    char line[LINE_ROOM];
    char out[256];
};

struct guard {
    int link, agent, journal;
    int process; /* QEMU's folder below /proc: never that of another one with the same pid */
    pid_t qemu_pid;
    bool caller_gone, holding;
    bool owes_thaw, owes_names;
    bool called_off; /* what the caller said since ends a thaw on the clock's behalf */
    int64_t due, limit_ms;
    struct talk talk;
    size_t name_count;
    struct name names[];
};

static int64_t
now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
pause_ms(int ms)
{
    poll(NULL, 0, ms);
}

static bool
send_message(int fd, enum message_kind kind, int64_t value)
{
    struct message message = {kind, value};
    ssize_t sent;

    do
        sent = send(fd, &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent == (ssize_t)sizeof message;
}

/* ------------------------------------------------------------------ in the guard: small tools */

static void
put_text(char **at, const char *end, const char *text)
{
    size_t length = strlen(text);

    assert(length <= (size_t)(end - *at));
    memcpy(*at, text, length);
    *at += length;
}

static void
put_number(char **at, const char *end, uint64_t number, int digits)
{
    char text[24];
    char *first = text + sizeof text - 1;

    *first = '\0';
    for (int i = 0; i < digits || number > 0; i++, number /= 10)
        *--first = (char)('0' + number % 10);
    put_text(at, end, first);
}

static void
poll_until(struct pollfd *fds, nfds_t count, int64_t until)
{
    int timeout = -1;

    if (until != NEVER) {
        int64_t left = until - now_ms();

        timeout = left < 0 ? 0 : left > SLICE_MS ? SLICE_MS : (int)left;
    }
    if (poll(fds, count, timeout) <= 0)
        for (nfds_t i = 0; i < count; i++)
            fds[i].revents = 0;
}

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
    /* The caller may have died in the middle of a line: see the store's journal for what ends it. */
    put_text(&at, end, "\n\n{\"state\":\"");
    put_text(&at, end, state);
    put_text(&at, end, "\"");
    if (value >= 0) {
        put_text(&at, end, ",\"");
        put_text(&at, end, key);
        put_text(&at, end, "\":");
        put_number(&at, end, (uint64_t)value, 1);
    }
    put_text(&at, end, ",\"time\":");
    put_number(&at, end, (uint64_t)now.tv_sec, 1);
    put_text(&at, end, ".");
    put_number(&at, end, (uint64_t)now.tv_nsec / 1000, 6);
    put_text(&at, end, ",\"pid\":");
    put_number(&at, end, (uint64_t)getpid(), 1);
    put_text(&at, end, "}\n");

    /* In one piece: the caller may be alive and write to the same file. */
    ssize_t put;

    do
        put = write(guard->journal, line, (size_t)(at - line));
    while (put < 0 && errno == EINTR);
    fdatasync(guard->journal);
}

/* ----------------------------------------------------------------- in the guard: the caller */

static void
set_clock(struct guard *guard, int64_t limit_ms)
{
    guard->limit_ms = limit_ms < 0 ? 0 : limit_ms > YEAR_MS ? YEAR_MS : limit_ms;
    guard->due = now_ms() + guard->limit_ms;
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
        guard->holding = true;
        break;
    case MESSAGE_HELLO:
    case MESSAGE_FAILED:
        break;
    }
}

static void
listen_to_caller(struct guard *guard)
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

/* ------------------------------------------------------------------- in the guard: the thaw */

enum reply_kind { REPLY_OTHER, REPLY_NUMBER, REPLY_TEXT };

struct reply {
    enum reply_kind kind;
    uint64_t number;
    const char *text;
    size_t text_length;
};

static const char *
skip_space(const char *at)
{
    while (*at == ' ' || *at == '\t' || *at == '\r')
        at++;
    return at;
}

/* `{"return": NUMBER}` or `{"return": "TEXT"}`, from a line that ends with a NUL; all else is
 * REPLY_OTHER. */
static struct reply
read_reply(const char *at)
{
    static const char key[] = "\"return\"";
    const struct reply other = {REPLY_OTHER, 0, NULL, 0};
    struct reply reply = other;

    at = skip_space(at);
    if (*at++ != '{')
        return other;
    at = skip_space(at);
    if (strncmp(at, key, sizeof key - 1) != 0)
        return other;
    at = skip_space(at + sizeof key - 1);
    if (*at++ != ':')
        return other;
    at = skip_space(at);
    if (*at == '"') {
        reply.kind = REPLY_TEXT;
        for (reply.text = ++at; *at != '"'; at++)
            if (*at == '\0' || *at == '\\')
                return other;
        reply.text_length = (size_t)(at++ - reply.text);
    } else {
        const char *first = at;

        reply.kind = REPLY_NUMBER;
        for (; *at >= '0' && *at <= '9'; at++)
            if (__builtin_mul_overflow(reply.number, 10, &reply.number) ||
                __builtin_add_overflow(reply.number, *at - '0', &reply.number))
                return other;
        if (at == first)
            return other;
    }
    at = skip_space(at);
    if (*at != '}' || *skip_space(at + 1) != '\0')
        return other;
    return reply;
}

static void
on_line(struct talk *talk)
{
    static const char thawed[] = "thawed";
    struct reply reply = {REPLY_OTHER, 0, NULL, 0};

    talk->line[talk->line_length] = '\0';
    if (!talk->overlong) {
        if (*skip_space(talk->line) == '\0')
            return;
        reply = read_reply(talk->line);
    }
    switch (talk->phase) {
    case TALK_SYNC:
        /* Any attempt will do: in a guest whose thaw takes longer than we wait, the last one is
         * never answered in time. */
        if (!talk->marked || reply.kind != REPLY_NUMBER ||
            reply.number - talk->first_id >= talk->attempts)
            break;
        talk->answering_id = reply.number;
        talk->phase = TALK_THAW;
        talk->send_at = now_ms() + ANSWER_LATER_MS;
        break;
    case TALK_THAW:
        /* An error is no failure: a thaw hook that fails is told after all is thawed. Such a line
         * may well be too long to be understood. */
        talk->thawed =
            reply.kind == REPLY_NUMBER && reply.number <= INT32_MAX ? (int64_t)reply.number : -1;
        talk->phase = TALK_STATUS;
        break;
    case TALK_STATUS:
        talk->phase = TALK_SYNC;
        talk->drained = talk->answering_id == talk->first_id + talk->attempts - 1;
        if (reply.kind == REPLY_TEXT && reply.text_length == sizeof thawed - 1 &&
            memcmp(reply.text, thawed, sizeof thawed - 1) == 0) {
            talk->confirmed = true;
            break;
        }
        talk->send_at = now_ms() + talk->pause_ms;
        talk->pause_ms = talk->pause_ms * 2 > PAUSE_MOST_MS ? PAUSE_MOST_MS : talk->pause_ms * 2;
        break;
    }
}

static void
on_byte(struct talk *talk, unsigned char byte)
{
    if (byte != MARKER && byte != '\n') {
        if (talk->line_length < sizeof talk->line - 1)
            talk->line[talk->line_length++] = (char)byte;
        else
            talk->overlong = true;
        return;
    }
    if (byte == '\n')
        on_line(talk);
    else
        talk->phase = TALK_SYNC;
    talk->marked = byte == MARKER;
    talk->line_length = 0;
    talk->overlong = false;
}

static void
compose_attempt(struct talk *talk)
{
    char *at = talk->out;
    const char *end = talk->out + sizeof talk->out;

    put_text(&at, end, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":");
    put_number(&at, end, talk->first_id + talk->attempts, 1);
    put_text(&at, end,
             "}}\n{\"execute\":\"guest-fsfreeze-thaw\"}\n"
             "{\"execute\":\"guest-fsfreeze-status\"}\n");
    talk->out_length = (size_t)(at - talk->out);
    talk->out_sent = 0;
    talk->attempts++;
    talk->drained = false;
}

/* False: nobody is there any more. */
static bool
push_attempt(int agent, struct talk *talk)
{
    while (talk->out_sent < talk->out_length) {
        ssize_t sent = send(agent, talk->out + talk->out_sent, talk->out_length - talk->out_sent,
                            MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN || errno == ENOBUFS;
        talk->out_sent += (size_t)sent;
        if (talk->out_sent == talk->out_length)
            talk->send_at = now_ms() + (talk->attempts == 1                ? ANSWER_FIRST_MS
                                        : talk->attempts <= ATTEMPTS_EAGER ? ANSWER_MS
                                                                           : ANSWER_LATER_MS);
    }
    return true;
}

static bool
hear_agent(int agent, struct talk *talk)
{
    unsigned char bytes[4096];
    ssize_t got = recv(agent, bytes, sizeof bytes, MSG_DONTWAIT);

    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    for (ssize_t i = 0; i < got; i++)
        on_byte(talk, bytes[i]);
    return got > 0;
}

static void
lose_agent(struct guard *guard)
{
    close(guard->agent);
    guard->agent = -1;
}

enum thaw_end {
    THAW_CONFIRMED,
    THAW_CALLED_OFF, /* the caller has spoken, or died: decide anew */
    THAW_AGENT_LOST, /* its socket ended, so QEMU did, and nothing is left to thaw */
};

static void
begin_talk(struct talk *talk)
{
    uint64_t random;

    if (getrandom(&random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random)
        random = (uint64_t)now_ms() * 0x9e3779b97f4a7c15 ^ (uint64_t)getpid();
    memset(talk, 0, sizeof *talk);
    talk->first_id = (random >> 2) | (uint64_t)1 << 53; /* 54 to 62 bits: some parse a signed one */
    talk->send_at = now_ms();
    talk->pause_ms = PAUSE_FIRST_MS;
    talk->thawed = -1;
}

static enum thaw_end
thaw(struct guard *guard)
{
    struct talk *talk = &guard->talk;

    begin_talk(talk);
    guard->called_off = false;
    for (unsigned passes = 1;; passes++) {
        bool resting = passes % PASSES_MOST == 0;

        /* What could not be written yet is an attempt itself: none is added behind it. */
        if (talk->out_sent == talk->out_length && now_ms() >= talk->send_at)
            compose_attempt(talk);
        if (!push_attempt(guard->agent, talk))
            break;

        bool blocked = talk->out_sent < talk->out_length;
        struct pollfd fds[] = {
            {.fd = guard->link, .events = POLLIN},
            {.fd = resting ? -1 : guard->agent, .events = blocked ? POLLIN | POLLOUT : POLLIN},
        };

        poll_until(fds, 2,
                   resting   ? now_ms() + REST_MS
                   : blocked ? now_ms() + SLICE_MS
                             : talk->send_at);
        if (fds[0].revents)
            listen_to_caller(guard);
        if (guard->called_off)
            return THAW_CALLED_OFF;
        if ((fds[1].revents & ~POLLOUT) && !hear_agent(guard->agent, talk))
            break;
        if (talk->confirmed)
            return THAW_CONFIRMED;
    }
    lose_agent(guard);
    return THAW_AGENT_LOST;
}

/* An agent that cannot deliver its replies because nobody is connected burns the guest's CPU: the
 * ones to attempts that proved needless are waited for. */
static void
drain_agent(struct guard *guard)
{
    int64_t until = now_ms() + DRAIN_MS;

    while (!guard->talk.drained && now_ms() < until) {
        struct pollfd fds[] = {{.fd = guard->agent, .events = POLLIN}};

        poll_until(fds, 1, until);
        if (fds[0].revents && !hear_agent(guard->agent, &guard->talk))
            return;
        pause_ms(1);
    }
}

/* ------------------------------------------------------------------ in the guard: the names */

/* What the kernel fills in: glibc's own wrapper is younger than the systems this is for. */
struct directory_entry {
    uint64_t number;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

/* Calls `each` for all descriptors that the folder (/proc/PID/fd) names. False: cannot be read. */
static bool
each_descriptor(int folder, void (*each)(void *data, int folder, const char *number), void *data)
{
    _Alignas(struct directory_entry) char entries[4096];

    for (;;) {
        long got = syscall(SYS_getdents64, folder, entries, sizeof entries);

        if (got <= 0)
            return got == 0;
        for (long at = 0; at < got;) {
            const struct directory_entry *entry = (const void *)(entries + at);

            at += entry->length;
            if (entry->name[0] >= '0' && entry->name[0] <= '9')
                each(data, folder, entry->name);
        }
    }
}

/* Whether a descriptor of QEMU was opened for writing, from its "flags:" in octal. What cannot be
 * told counts as such: it then seems that the cut is not made, and the next look knows better. */
static bool
is_written(int process, const char *number)
{
    static const char key[] = "\nflags:";
    char path[32], text[256], *at = path;
    unsigned flags = 0;

    put_text(&at, path + sizeof path, "fdinfo/");
    if (strlen(number) >= (size_t)(path + sizeof path - at))
        return true;
    memcpy(at, number, strlen(number) + 1);
    int fd = openat(process, path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return true;
    ssize_t got = read(fd, text, sizeof text - 1);

    close(fd);
    if (got <= 0)
        return true;
    text[got] = '\0';
    at = strstr(text, key);
    if (!at)
        return true;
    for (at = (char *)skip_space(at + sizeof key - 1); *at >= '0' && *at <= '7'; at++)
        flags = flags * 8 + (unsigned)(*at - '0');
    return (flags & O_ACCMODE) != O_RDONLY;
}

static void
look_at_descriptor(void *data, int folder, const char *number)
{
    struct guard *guard = data;
    struct statx about;

    /* Not asking the server: a file of QEMU on a dead network share must not stop the thaw. */
    if (statx(folder, number, AT_STATX_DONT_SYNC, STATX_INO, &about) < 0)
        return;
    uint64_t device = makedev(about.stx_dev_major, about.stx_dev_minor);

    for (size_t i = 0; i < guard->name_count; i++) {
        struct name *name = &guard->names[i];

        if (name->overlay_number == about.stx_ino && name->overlay_device == device)
            name->overlay_written |= is_written(guard->process, number);
        if (name->base_number == about.stx_ino && name->base_device == device)
            name->base_written |= is_written(guard->process, number);
    }
}

/* Whether QEMU writes to all overlays and to none of their bases any more. */
static bool
look_once(struct guard *guard)
{
    bool cut;

    for (size_t i = 0; i < guard->name_count; i++)
        guard->names[i].overlay_written = guard->names[i].base_written = false;
    int folder = openat(guard->process, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (folder < 0)
        return false;
    cut = each_descriptor(folder, look_at_descriptor, guard);
    close(folder);
    for (size_t i = 0; i < guard->name_count; i++)
        cut = cut && guard->names[i].overlay_written && !guard->names[i].base_written;
    return cut;
}

/* Twice, since descriptors come and go while one looks. */
static bool
is_cut(struct guard *guard)
{
    return guard->process >= 0 && look_once(guard) && look_once(guard);
}

static bool
await_cut(struct guard *guard)
{
    int64_t until = now_ms() + CUT_MS;

    while (!is_cut(guard)) {
        if (guard->process < 0 || now_ms() >= until)
            return false;
        pause_ms(CUT_PAUSE_MS);
    }
    return true;
}

static bool
leads_to(const char *path, uint64_t device, uint64_t number)
{
    struct stat about;

    return lstat(path, &about) == 0 && about.st_ino == number && about.st_dev == device;
}

/* How many names lead to their overlays now: the caller may have flipped some itself. */
static size_t
flip_names(struct guard *guard)
{
    size_t flipped = 0;

    for (size_t i = 0; i < guard->name_count; i++) {
        struct name *name = &guard->names[i];

        if (leads_to(name->next, name->overlay_device, name->overlay_number) &&
            leads_to(name->top, name->base_device, name->base_number))
            rename(name->next, name->top);
        flipped += leads_to(name->top, name->overlay_device, name->overlay_number);
    }
    return flipped;
}

static void
sync_folder(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        return;
    fsync(fd);
    close(fd);
}

/* --------------------------------------------------------------- in the guard: its whole life */

static void
pay_debts(struct guard *guard)
{
    bool cut = guard->owes_names && await_cut(guard);
    size_t flipped = cut ? flip_names(guard) : 0;

    if (guard->owes_thaw && guard->agent >= 0 && thaw(guard) == THAW_CONFIRMED)
        write_journal(guard, "guard-thawed", "thawedFilesystems", guard->talk.thawed);
    /* The thaw was answered through the same main loop that makes the cut: whatever QEMU had been
     * told to cut, it has cut by now. */
    if (guard->owes_names && !cut && (cut = is_cut(guard)))
        flipped = flip_names(guard);
    if (cut) {
        for (size_t i = 0; i < guard->name_count; i++) {
            sync_folder(guard->names[i].top_folder);
            sync_folder(guard->names[i].next_folder);
        }
        write_journal(guard, "guard-flipped", "flippedNames", (int64_t)flipped);
    }
    if (guard->owes_thaw && guard->agent >= 0)
        drain_agent(guard);
}

static void
wait_for_news(struct guard *guard)
{
    struct pollfd fds[] = {
        {.fd = guard->link, .events = POLLIN},
        {.fd = guard->agent, .events = POLLRDHUP},
    };

    poll_until(fds, 2, guard->owes_thaw && guard->agent >= 0 ? guard->due : NEVER);
    if (fds[0].revents)
        listen_to_caller(guard);
    if (fds[1].revents)
        lose_agent(guard);
}

static void
live(struct guard *guard)
{
    for (;;) {
        bool can_thaw = guard->owes_thaw && guard->agent >= 0;
        bool late = can_thaw && now_ms() >= guard->due;

        if (guard->caller_gone && !(guard->holding && can_thaw && !late))
            break;
        if (!late) {
            wait_for_news(guard);
            continue;
        }
        /* A caller that was stopped between cut and flip: no write of the guest's may come before. */
        if (guard->owes_names && is_cut(guard))
            flip_names(guard);
        if (thaw(guard) != THAW_CONFIRMED)
            continue;
        write_journal(guard, "guard-thawed", "thawedFilesystems", guard->talk.thawed);
        /* The thaw stays owed: a caller that was stopped just before it wrote the freeze will
         * write it when it goes on. Again and again, but ever more rarely. */
        set_clock(guard, guard->limit_ms * 2 < CLOCK_MOST_MS ? guard->limit_ms * 2 + REST_MS
                                                             : CLOCK_MOST_MS);
    }
    pay_debts(guard);
}

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

static bool
is_kept(const struct guard *guard, int fd)
{
    return fd == guard->link || fd == guard->agent || fd == guard->journal;
}

static void
close_unless_kept(void *data, int folder, const char *number)
{
    int fd = 0;

    for (; *number >= '0' && *number <= '9'; number++)
        fd = fd * 10 + (*number - '0');
    if (fd > STDERR_FILENO && fd != folder && !is_kept(data, fd))
        close(fd);
}

static bool
close_others(struct guard *guard)
{
#ifdef SYS_close_range
    unsigned first = STDERR_FILENO + 1;
    const int kept[] = {guard->link, guard->agent, guard->journal};

    for (;;) {
        unsigned next = ~0U;

        for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
            if (kept[i] >= (int)first && (unsigned)kept[i] < next)
                next = (unsigned)kept[i];
        if (first < next && syscall(SYS_close_range, first, next == ~0U ? next : next - 1, 0) < 0)
            break;
        if (next == ~0U)
            return true;
        first = next + 1;
    }
#endif
    /* Linux before 5.9, or a sandbox. The limit of descriptors can be a milliard, so that trying
     * all numbers is no way. */
    int folder = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (folder < 0)
        return false;
    bool closed = each_descriptor(folder, close_unless_kept, guard);

    close(folder);
    return closed;
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
    return close_others(guard);
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

static void
open_process(struct guard *guard)
{
    char path[32], *at = path;

    guard->process = -1;
    if (guard->qemu_pid <= 0 || guard->name_count == 0)
        return;
    put_text(&at, path + sizeof path, "/proc/");
    put_number(&at, path + sizeof path - 1, (uint64_t)guard->qemu_pid, 1);
    *at = '\0';
    guard->process = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void __attribute__((noreturn)) become_guard(struct guard *guard)
{
    setsid();
    if (chdir("/") < 0 || !reset_descriptors(guard)) {
        send_message(guard->link, MESSAGE_FAILED, errno);
        _exit(EXIT_FAILURE);
    }
    reset_signals();
    prctl(PR_SET_NAME, COMM);
    resist_oom_killer();
    open_process(guard);
    if (send_message(guard->link, MESSAGE_HELLO, getpid()))
        live(guard);
    _exit(EXIT_SUCCESS);
}

/* ------------------------------------------------------------------------------ in the caller */

static char *
copy_bytes(char **room, const char *text, size_t length)
{
    char *copy = *room;

    memcpy(copy, text, length);
    copy[length] = '\0';
    *room += length + 1;
    return copy;
}

static char *
copy_folder(char **room, const char *path)
{
    const char *slash = strrchr(path, '/');

    assert(path[0] == '/');
    return copy_bytes(room, path, slash == path ? 1 : (size_t)(slash - path));
}

/* All that the guard will need, in one block. */
static struct guard *
prepare(const struct vf_guard_plan *plan, int link)
{
    size_t names = sizeof(struct guard) + plan->name_count * sizeof(struct name), size = names;

    for (size_t i = 0; i < plan->name_count; i++)
        size += 2 * (strlen(plan->names[i].next) + strlen(plan->names[i].top) + 2);

    struct guard *guard = vf_alloc(size);
    char *room = (char *)guard + names;

    guard->link = link;
    guard->agent = plan->agent_fd;
    guard->journal = plan->journal_fd;
    guard->qemu_pid = plan->qemu_pid;
    guard->name_count = plan->name_count;
    for (size_t i = 0; i < plan->name_count; i++) {
        const struct vf_guard_name *from = &plan->names[i];

        guard->names[i] = (struct name){
            .next = copy_bytes(&room, from->next, strlen(from->next)),
            .top = copy_bytes(&room, from->top, strlen(from->top)),
            .next_folder = copy_folder(&room, from->next),
            .top_folder = copy_folder(&room, from->top),
            .overlay_device = from->overlay_device,
            .overlay_number = from->overlay_number,
            .base_device = from->base_device,
            .base_number = from->base_number,
        };
    }
    return guard;
}

/* 0, or an errno. */
static int
fork_twice(struct guard *prepared)
{
    sigset_t all, before;

    /* None of the host program's handlers may run in the child. */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pid_t child = fork();
    int cause = child < 0 ? errno : 0;

    if (child == 0) {
        pid_t grandchild = fork();

        if (grandchild == 0)
            become_guard(prepared);
        if (grandchild < 0)
            send_message(prepared->link, MESSAGE_FAILED, errno);
        _exit(EXIT_SUCCESS);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    /* A host program that waits for all children may have reaped it: no matter. */
    if (child > 0)
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
            ;
    return cause;
}

/* The guard's first word: its pid; or 0 with errno. */
static pid_t
await_hello(int fd)
{
    int64_t until = now_ms() + HELLO_MS, left;

    while ((left = until - now_ms()) > 0) {
        struct pollfd fds[] = {{.fd = fd, .events = POLLIN}};
        struct message message;

        if (poll(fds, 1, (int)left) <= 0)
            continue;
        ssize_t got = recv(fd, &message, sizeof message, MSG_DONTWAIT);

        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got != (ssize_t)sizeof message) {
            errno = ECHILD;
            return 0;
        }
        if (message.kind == MESSAGE_HELLO)
            return (pid_t)message.value;
        errno = (int)message.value;
        return 0;
    }
    errno = ETIMEDOUT;
    return 0;
}

/* When the process started, if it is a guard and no zombie; 0: it is none. */
static uint64_t
start_of_guard(pid_t pid)
{
    char path[32], text[1024];
    unsigned long long started = 0;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    if (got <= 0)
        return 0;
    text[got] = '\0';

    /* PID (COMM) STATE ...: a name may hold anything, parentheses too. */
    char *name = strchr(text, '('), *end = strrchr(text, ')');

    if (!name || !end || end < name)
        return 0;
    *end = '\0';
    if (strcmp(name + 1, COMM) != 0 || end[1] != ' ' || end[2] == 'Z' || end[2] == 'X')
        return 0;
    char *field = end + 2; /* the third */

    for (int number = 3; number < 22 && field; number++)
        if ((field = strchr(field, ' ')))
            field++;
    if (field)
        started = strtoull(field, NULL, 10);
    return started;
}

bool
vf_guard_start(struct vf_guard *guard, const struct vf_guard_plan *plan,
               struct vmfrost_error *error)
{
    int pair[2];

    assert(guard->fd < 0);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot start the guard: %s", strerror(errno));

    struct guard *prepared = prepare(plan, pair[1]);
    int cause = fork_twice(prepared);

    free(prepared);
    close(pair[1]);
    if (cause == 0) {
        *guard = (struct vf_guard){pair[0], await_hello(pair[0]), 0};
        cause = errno;
        if (guard->pid > 0) {
            guard->started = start_of_guard(guard->pid);
            return true;
        }
    }
    close(pair[0]);
    *guard = (struct vf_guard)VF_GUARD_INIT;
    return vf_fail(error, VMFROST_FAILED, "cannot start the guard: %s", strerror(cause));
}

/* A guard that was killed hears nothing: its caller then goes on as careful as it is itself. */
static void
tell(struct vf_guard *guard, enum message_kind kind, int64_t value)
{
    if (guard->fd >= 0)
        send_message(guard->fd, kind, value);
}

void
vf_guard_freezing(struct vf_guard *guard, int64_t limit_ms)
{
    tell(guard, MESSAGE_FREEZING, limit_ms);
}

void
vf_guard_cutting(struct vf_guard *guard)
{
    tell(guard, MESSAGE_CUTTING, 0);
}

void
vf_guard_named(struct vf_guard *guard)
{
    tell(guard, MESSAGE_NAMED, 0);
}

void
vf_guard_thawing(struct vf_guard *guard, int64_t limit_ms)
{
    tell(guard, MESSAGE_THAWING, limit_ms);
}

void
vf_guard_thawed(struct vf_guard *guard)
{
    tell(guard, MESSAGE_THAWED, 0);
}

void
vf_guard_leave(struct vf_guard *guard)
{
    if (guard->fd >= 0)
        close(guard->fd);
    *guard = (struct vf_guard)VF_GUARD_INIT;
}

void
vf_guard_leave_holding(struct vf_guard *guard)
{
    tell(guard, MESSAGE_HOLD, 0);
    vf_guard_leave(guard);
}

static bool
is_guard(pid_t pid, uint64_t started)
{
    return pid > 0 && started > 0 && start_of_guard(pid) == started;
}

static bool
await_end(pid_t pid, uint64_t started, int64_t wait_ms)
{
    int64_t until = now_ms() + wait_ms;

    while (is_guard(pid, started)) {
        if (now_ms() >= until)
            return false;
        pause_ms(DISMISS_PAUSE_MS);
    }
    return true;
}

bool
vf_guard_dismiss(pid_t pid, uint64_t started, int64_t wait_ms)
{
    if (await_end(pid, started, wait_ms))
        return true;
    kill(pid, SIGKILL);
    await_end(pid, started, KILLED_MS);
    return false;
}
