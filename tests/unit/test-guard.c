/* SPDX-License-Identifier: MIT
 *
 * The guard, with callers that are killed, stopped or well, an agent that is played by the test,
 * and a process that has images open as QEMU has.
 *
 * The test adopts orphans, so that each guard ends as its child: its exit status is seen, and none
 * is left behind.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../tap.h"
#include "engine/guard.h"
#include "sockets.h"

#define DISKS 2
#define PATIENCE_MS 20000 /* for what comes for certain, on whatever machine */
#define OPEN_MS 10000     /* how long the guard waits for a base to be opened */

static char folder[] = "/tmp/test-guard-XXXXXX";
static pid_t started[128];
static size_t started_count;
static int patience = 1; /* valgrind makes all of it slower */

static double
now(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void
snooze(int ms)
{
    poll(NULL, 0, ms);
}

static const char *
path_of(const char *name)
{
    static char paths[8][256];
    static unsigned next;
    char *path = paths[next++ % 8];

    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* ------------------------------------------------------------- children that do as they are told
 */

struct order {
    int64_t what, value;
};

struct child {
    pid_t pid;
    int control;
};

static struct child
start_child(void (*serve)(int control, void *data), void *data)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_CHILD_SUBREAPER, 0);
        signal(SIGINT, SIG_DFL); /* a shell ignores it for what runs in its background */
        setpgid(0, 0);
        close(pair[0]);
        serve(pair[1], data);
        _exit(0);
    }
    if (pid < 0)
        abort();
    setpgid(pid, pid);
    close(pair[1]);
    started[started_count++] = pid;
    return (struct child){pid, pair[0]};
}

static bool
receive(int control, struct order *order)
{
    return recv(control, order, sizeof *order, 0) == (ssize_t)sizeof *order;
}

static void
answer(int control, int64_t what, int64_t value)
{
    struct order order = {what, value};

    if (send(control, &order, sizeof order, MSG_NOSIGNAL) < 0)
        _exit(1);
}

static struct order
command(struct child child, int64_t what, int64_t value)
{
    struct order order = {what, value};

    if (send(child.control, &order, sizeof order, MSG_NOSIGNAL) < 0 ||
        !receive(child.control, &order))
        return (struct order){-1, -1};
    return order;
}

/* True if the process has ended by itself and well. */
static bool
ended(pid_t pid, int ms)
{
    double until = now() + ms * patience / 1e3;
    int status;

    while (waitpid(pid, &status, WNOHANG) != pid) {
        if (now() > until)
            return false;
        snooze(2);
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void
end_child(struct child child)
{
    kill(child.pid, SIGKILL);
    kill(child.pid, SIGCONT);
    waitpid(child.pid, NULL, 0);
    close(child.control);
}

/* In the place of the guard's pid. */
#define NOT_STARTED (-2)

enum caller_kind {
    CALLER_PLAIN,
    CALLER_LOW_DESCRIPTORS, /* its descriptors are the ones below 3 */
    CALLER_NO_CLOSE_RANGE,  /* on an old kernel */
    CALLER_NO_FORK,
};

struct caller_plan {
    struct vf_guard_plan plan;
    enum caller_kind kind;
    int far_end;    /* the agent's: not the caller's to hold */
    int output;     /* its standard output; -1: the test's own */
    bool with_lock; /* it holds one */
    bool blocked;   /* the agent's connection takes no more */
    int listener;   /* of the agent's, behind TCP; 0: none, its connection is a pair */
};

static void
deny(const int *calls, size_t count, int with)
{
    struct sock_filter code[16] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    struct sock_fprog program = {.filter = code};
    unsigned short at = 1;

    for (size_t i = 0; i < count; i++) {
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1);
        code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | with);
    }
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program.len = at;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}

static void
prepare_caller(struct caller_plan *caller)
{
#ifdef SYS_close_range
    static const int close_calls[] = {SYS_close_range};
#endif
    static const int fork_calls[] = {
#ifdef SYS_fork
        SYS_fork,
        SYS_vfork,
#endif
#ifdef SYS_clone3
        SYS_clone3,
#endif
        SYS_clone,
    };

    close(caller->far_end);
    if (caller->output >= 0)
        dup2(caller->output, STDOUT_FILENO);
    if (caller->with_lock)
        flock(open(path_of("lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0600), LOCK_EX);
    switch (caller->kind) {
    case CALLER_PLAIN:
        break;
    case CALLER_LOW_DESCRIPTORS:
        caller->plan.agent_fd = dup2(caller->plan.agent_fd, 0);
        caller->plan.journal_fd = dup2(caller->plan.journal_fd, 2);
        close(1);
        break;
    case CALLER_NO_CLOSE_RANGE:
#ifdef SYS_close_range
        deny(close_calls, 1, ENOSYS);
#endif
        break;
    case CALLER_NO_FORK:
        deny(fork_calls, sizeof fork_calls / sizeof *fork_calls, EAGAIN);
        break;
    }
}

/* Its first words are the guard's pid and start; then it does as it is told. */
static void
serve_as_caller(int control, void *data)
{
    struct caller_plan *caller = data;
    struct vf_guard guard = VF_GUARD_INIT;
    struct vmfrost_error error = {0};
    struct order order;

    prepare_caller(caller);
    if (!vf_guard_start(&guard, &caller->plan, &error)) {
        answer(control, NOT_STARTED, strstr(error.text, "cannot start the guard: ") == error.text);
        return;
    }
    answer(control, guard.pid, (int64_t)guard.started);
    while (receive(control, &order)) {
        switch (order.what) {
        case 'f':
            vf_guard_freezing(&guard, order.value);
            break;
        case 'c':
            vf_guard_cutting(&guard);
            break;
        case 'a':
            vf_guard_turning(&guard);
            break;
        case 'e':
            vf_guard_leading(&guard);
            break;
        case 'n':
            vf_guard_named(&guard);
            break;
        case 't':
            vf_guard_thawing(&guard, order.value);
            break;
        case 'd':
            vf_guard_thawed(&guard);
            break;
        case 'l':
            vf_guard_leave(&guard);
            break;
        case 'h':
            vf_guard_leave_holding(&guard);
            break;
        default:
            abort();
        }
        answer(control, order.what, guard.fd);
    }
}

/* ---------------------------------------------------------------------------- the played agent */

struct lab {
    struct child caller;
    pid_t guard;
    uint64_t guard_started;
    int agent;     /* the far end of the agent's connection */
    size_t unread; /* what is in it before the guard's first byte */
    char in[4096];
    size_t length;
    char journal[64];
};

static const struct caller_plan plain = {.plan = {.journal_fd = -1}, .output = -1, .far_end = -1};

/* *port 0: any. */
static int
listen_at_port(int *port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)*port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), again = 1;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &again, sizeof again) < 0 ||
        bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, 1) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        abort();
    *port = ntohs(address.sin_port);
    return fd;
}

/* What socketpair() makes, by way of a listener. */
static void
connect_pair(int listener, int pair[2])
{
    struct sockaddr_in address;
    socklen_t length = sizeof address;

    pair[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (getsockname(listener, (struct sockaddr *)&address, &length) < 0 ||
        connect(pair[1], (struct sockaddr *)&address, length) < 0)
        abort();
    pair[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
}

static void
open_lab(struct lab *lab, struct caller_plan caller)
{
    static int number;
    int pair[2];
    struct order hello = {-1, -1};

    memset(lab, 0, sizeof *lab);
    snprintf(lab->journal, sizeof lab->journal, "%s/journal-%d", folder, number++);
    if (caller.listener)
        connect_pair(caller.listener, pair);
    else if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        abort();
    fcntl(pair[1], F_SETFL, O_NONBLOCK);
    while (caller.blocked && send(pair[1], "x", 1, 0) == 1)
        lab->unread++;
    lab->agent = pair[0];
    caller.far_end = pair[0];
    if (caller.plan.agent_fd >= 0)
        caller.plan.agent_fd = pair[1];
    caller.plan.journal_fd = open(lab->journal, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    lab->caller = start_child(serve_as_caller, &caller);
    close(pair[1]);
    close(caller.plan.journal_fd);
    receive(lab->caller.control, &hello);
    lab->guard = (pid_t)hello.what;
    lab->guard_started = (uint64_t)hello.value;
    if (lab->guard > 0)
        started[started_count++] = lab->guard;
}

static void
close_lab(struct lab *lab)
{
    if (lab->agent >= 0)
        close(lab->agent);
    lab->agent = -1;
}

static void
tell(struct lab *lab, int what, int64_t value)
{
    if (command(lab->caller, what, value).what != what)
        ok(false, "the caller obeyed %c", what);
}

static const char *
journal_of(struct lab *lab)
{
    static char text[2048];
    FILE *file = fopen(lab->journal, "re");
    size_t got = file ? fread(text, 1, sizeof text - 1, file) : 0;

    if (file)
        fclose(file);
    text[got] = '\0';
    return text;
}

/* Takes one whole attempt off the stream. */
static bool
take_attempt(struct lab *lab, int ms, unsigned long long *id)
{
    double until = now() + ms * patience / 1e3;

    for (;;) {
        char wanted[256];
        struct pollfd fds[] = {{.fd = lab->agent, .events = POLLIN}};

        lab->in[lab->length] = '\0';
        if (sscanf(lab->in, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%llu",
                   id) == 1) {
            int length = snprintf(wanted, sizeof wanted,
                                  "\xff{\"execute\":\"guest-sync-delimited\","
                                  "\"arguments\":{\"id\":%llu}}\n"
                                  "{\"execute\":\"guest-fsfreeze-thaw\"}\n"
                                  "{\"execute\":\"guest-fsfreeze-status\"}\n",
                                  *id);

            if (strncmp(lab->in, wanted, (size_t)length) == 0) {
                lab->length -= (size_t)length;
                memmove(lab->in, lab->in + length, lab->length);
                return true;
            }
        }
        if (now() > until)
            return false;
        if (poll(fds, 1, 10) <= 0)
            continue;
        ssize_t got = recv(lab->agent, lab->in + lab->length, sizeof lab->in - 1 - lab->length, 0);

        if (got <= 0)
            return false;
        lab->length += (size_t)got;
    }
}

/* Nothing is said on the stream for so long. */
static bool
is_quiet(struct lab *lab, int ms)
{
    struct pollfd fds[] = {{.fd = lab->agent, .events = POLLIN}};
    char byte;

    if (lab->length > 0)
        return false;
    return poll(fds, 1, ms) == 0 || recv(lab->agent, &byte, 1, MSG_PEEK) == 0;
}

static void __attribute__((format(printf, 2, 3))) say(struct lab *lab, const char *format, ...)
{
    char text[1024];
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (send(lab->agent, text, (size_t)length, MSG_NOSIGNAL) != length)
        diag("the agent could not say: %s", text);
}

static void
say_thawed(struct lab *lab, unsigned long long id, int count)
{
    say(lab, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"stray '\\uFFFD'\"}}\n");
    say(lab, "\xff{\"return\": %llu}\n{\"return\": %d}\n{\"return\": \"thawed\"}\n", id, count);
}

/* The end of most tests: the attempt is there, is answered, and the guard ends. */
static void
thaw_and_end(struct lab *lab, const char *what)
{
    unsigned long long id = 0;

    ok(take_attempt(lab, PATIENCE_MS, &id), "%s: sync, thaw and status are sent", what);
    say_thawed(lab, id, 2);
    ok(ended(lab->guard, PATIENCE_MS), "%s: the guard ends once it is confirmed", what);
    has_str(journal_of(lab), "{\"state\":\"guard-thawed\",\"thawedFilesystems\":2,\"time\":",
            "... and the journal says so");
    close_lab(lab);
}

/* ---------------------------------------------------------------------------------- the tests */

static const char *
proc_text(pid_t pid, const char *name)
{
    static char text[4096];
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, text, sizeof text - 1);

    if (fd >= 0)
        close(fd);
    text[got > 0 ? got : 0] = '\0';
    return text;
}

static const char *
proc_link(pid_t pid, const char *name)
{
    static char text[512];
    char path[96];

    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    ssize_t got = readlink(path, text, sizeof text - 1);

    text[got > 0 ? got : 0] = '\0';
    return text;
}

static void
check_descriptors(struct lab *lab, const char *what)
{
    char path[64];
    int nulls = 0, sockets = 0, journals = 0, others = 0;

    snprintf(path, sizeof path, "/proc/%d/fd", (int)lab->guard);
    DIR *directory = opendir(path);

    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        char name[64];

        if (entry->d_name[0] == '.')
            continue;
        /* Valgrind keeps a few for itself, far up. */
        if (patience > 1 && atoi(entry->d_name) > 1000)
            continue;
        snprintf(name, sizeof name, "fd/%.32s", entry->d_name);
        const char *to = proc_link(lab->guard, name);

        if (strcmp(to, "/dev/null") == 0 && atoi(entry->d_name) <= 2)
            nulls++;
        else if (strncmp(to, "socket:", 7) == 0)
            sockets++;
        else if (strcmp(to, lab->journal) == 0)
            journals++;
        else {
            others++;
            diag("descriptor %s leads to %s", entry->d_name, to);
        }
    }
    if (directory)
        closedir(directory);
    ok(nulls == 3 && sockets == 2 && journals == 1 && others == 0,
       "%s: the guard has two sockets, the journal, and nothing else", what);
}

static void
test_killed_caller(void)
{
    struct lab lab;
    struct caller_plan caller = plain;
    unsigned long long id = 0;
    int output[2];

    if (pipe2(output, O_CLOEXEC) < 0)
        abort();
    caller.output = output[1];
    caller.with_lock = true;
    open_lab(&lab, caller);
    close(output[1]);
    ok(lab.guard > 0 && lab.guard != lab.caller.pid && lab.guard_started > 0,
       "a guard starts and is known");
    tell(&lab, 'f', 10000);

    is_str(proc_text(lab.guard, "comm"), "vmfrost-guard\n", "it has a name of its own");
    is_int(getsid(lab.guard), lab.guard, "it has a session of its own");
    is_str(proc_link(lab.guard, "cwd"), "/", "it holds no folder");
    ok(strstr(proc_text(lab.guard, "status"), "SigBlk:\t0000000000000000"), "it blocks no signal");
    check_descriptors(&lab, "killed caller");
    for (const char *line = proc_text(lab.guard, "smaps_rollup"); line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, "Pss:", 4) == 0 || strncmp(line, "Private_Dirty:", 14) == 0)
            diag("memory of the guard: %.*s", (int)strcspn(line, "\n"), line);
    }

    kill(lab.guard, SIGHUP);
    kill(lab.guard, SIGUSR1);
    kill(lab.guard, SIGQUIT);
    kill(-lab.caller.pid, SIGINT); /* the caller dies of this one */
    ok(take_attempt(&lab, PATIENCE_MS, &id), "killed caller: sync, thaw and status are sent");
    ok(id >= 1ULL << 53 && id < 1ULL << 62, "... with an id that nobody guesses");
    waitpid(lab.caller.pid, NULL, 0);
    close(lab.caller.control);

    char byte;
    struct pollfd fds[] = {{.fd = output[0], .events = POLLIN}};

    ok(poll(fds, 1, PATIENCE_MS) == 1 && read(output[0], &byte, 1) == 0,
       "who reads the caller's output sees its end while the guard is at work");
    close(output[0]);
    int lock = open(path_of("lock"), O_RDWR | O_CLOEXEC);

    is_int(flock(lock, LOCK_EX | LOCK_NB), 0, "... and the caller's lock is free");
    close(lock);
    kill(lab.guard, SIGTERM);
    ok(!ended(lab.guard, 20), "no signal ends the guard");

    say_thawed(&lab, id, 2);
    ok(ended(lab.guard, PATIENCE_MS), "it ends once the thaw is confirmed");
    const char *journal = journal_of(&lab);
    double at = 0;
    int pid = 0;

    ok(sscanf(journal,
              "\n\n{\"state\":\"guard-thawed\",\"thawedFilesystems\":2,\"time\":%lf,\"pid\":%d}\n",
              &at, &pid) == 2 &&
           strchr(journal + 2, '\n') == journal + strlen(journal) - 1,
       "the journal has one line of it, apart from whatever stands before: %.*s",
       (int)strcspn(journal + 2, "\n"), journal + 2);
    ok(pid == lab.guard && at > (double)time(NULL) - 30 && at < (double)time(NULL) + 30,
       "... with its time and its pid");
    close_lab(&lab);
}

static void
test_other_callers(void)
{
    struct lab lab;
    struct caller_plan caller = plain;

    caller.kind = CALLER_LOW_DESCRIPTORS;
    open_lab(&lab, caller);
    check_descriptors(&lab, "low descriptors");
    tell(&lab, 'f', 10000);
    end_child(lab.caller);
    thaw_and_end(&lab, "low descriptors");

    caller.kind = CALLER_NO_CLOSE_RANGE;
    open_lab(&lab, caller);
    check_descriptors(&lab, "no close_range");
    tell(&lab, 'f', 10000);
    end_child(lab.caller);
    thaw_and_end(&lab, "no close_range");

    caller.kind = CALLER_NO_FORK;
    open_lab(&lab, caller);
    is_int(lab.guard, NOT_STARTED, "without a fork there is no guard");
    is_int((int64_t)lab.guard_started, true, "... and an error that says so");
    end_child(lab.caller);
    close_lab(&lab);
}

static void
test_nothing_owed(void)
{
    struct lab lab;

    open_lab(&lab, plain);
    tell(&lab, 'f', 10000);
    tell(&lab, 'c', 0);
    tell(&lab, 'n', 0);
    tell(&lab, 't', 10000);
    tell(&lab, 'd', 0);
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS), "a guard that owes nothing ends with its caller");
    ok(is_quiet(&lab, 0), "... and has sent nothing");
    is_str(journal_of(&lab), "", "... nor written");
    close_lab(&lab);

    open_lab(&lab, plain);
    tell(&lab, 'l', 0);
    ok(ended(lab.guard, PATIENCE_MS), "one that is left ends, too");
    end_child(lab.caller);
    close_lab(&lab);
}

static void
test_stopped_caller(void)
{
    struct lab lab;
    unsigned long long id = 0;

    open_lab(&lab, plain);
    tell(&lab, 'f', 150);
    kill(lab.caller.pid, SIGSTOP);
    ok(is_quiet(&lab, 100), "a stopped caller: before the limit nothing is sent");
    ok(take_attempt(&lab, PATIENCE_MS, &id), "... after it, the thaw is");
    say_thawed(&lab, id, 2);
    ok(!ended(lab.guard, 100), "... and the guard goes on watching");
    has_str(journal_of(&lab), "\"guard-thawed\",\"thawedFilesystems\":2", "... has written");
    ok(take_attempt(&lab, PATIENCE_MS, &id),
       "... and thaws again later, should the freeze come late");
    kill(lab.caller.pid, SIGCONT);
    tell(&lab, 'd', 0);
    /* Whatever the agent says now is no longer the guard's to read. */
    say_thawed(&lab, id, 0);
    ok(is_quiet(&lab, 100), "a caller that goes on and has thawed calls it off");
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS), "... and the guard ends with it");
    close_lab(&lab);

    open_lab(&lab, plain);
    tell(&lab, 'f', 100);
    ok(take_attempt(&lab, PATIENCE_MS, &id), "a caller that hangs: the thaw is sent");
    tell(&lab, 't', 200);
    ok(is_quiet(&lab, 100), "the caller's own thaw starts the clock anew");
    ok(take_attempt(&lab, PATIENCE_MS, &id), "... which runs out again");
    end_child(lab.caller);
    thaw_and_end(&lab, "a caller that died in the midst of it");
}

static void
test_stubborn_agent(void)
{
    static char long_line[20000];
    struct lab lab;
    unsigned long long id = 0, second = 0;

    open_lab(&lab, plain);
    tell(&lab, 'f', 10000);
    /* What another client left unread. */
    say(&lab, "{\"return\": 3}\n\xff{\"return\": 17}\n{\"return\": 1}\n{\"return\": \"thawed\"}\n");
    end_child(lab.caller);
    ok(take_attempt(&lab, PATIENCE_MS, &id), "a stubborn agent: the thaw is sent");
    say(&lab, "{\"return\": %llu}\n{\"return\": 9}\n{\"return\": \"thawed\"}\n", id);
    say(&lab, "\xff{\"return\": %llu}\n{\"return\": 9}\n{\"return\": \"thawed\"}\n", id + 1);
    say(&lab, "\xff{\"return\": %llu%llu}\n{\"return\": 9}\n{\"return\": \"thawed\"}\n", id, id);
    say(&lab, "\xff{\"return\": \"%llu\"}\n\x01\xfe%c[]}}{{\"\n\n\n\xff\xff\n", id, 0);
    memset(long_line, 'x', sizeof long_line);
    for (int i = 0; i < 5; i++)
        if (send(lab.agent, long_line, sizeof long_line, 0) < 0)
            abort();
    ok(!ended(lab.guard, 60), "garbage, stale replies and huge lines confirm nothing");

    /* A hook's error that is longer than the guard's buffer is a reply, too. */
    say(&lab, "\xff{\"return\": %llu}\n{\"error\": {\"desc\": \"", id);
    if (send(lab.agent, long_line, 5000, 0) < 0)
        abort();
    say(&lab, "\"}}\n{\"return\": \"frozen\"}\n");
    ok(take_attempt(&lab, PATIENCE_MS, &second), "an agent that says \"frozen\" is told again");
    is_int((long long)(second - id), 1, "... with the next id");

    char reply[256];

    snprintf(reply, sizeof reply,
             "\xff{ \"return\" : %llu }\r\n{\"error\": {}}\r\n {\"return\":"
             "\"thawed\"} \r\n",
             second);
    for (const char *at = reply; *at; at++) {
        say(&lab, "%c", *at);
        snooze(1);
    }
    ok(ended(lab.guard, PATIENCE_MS), "a reply in single bytes is understood");
    has_str(journal_of(&lab), "{\"state\":\"guard-thawed\",\"time\":",
            "a thaw that is told as an error has no count");
    close_lab(&lab);
}

static void
test_blocked_agent(void)
{
    struct lab lab;
    struct caller_plan caller = plain;
    char byte;

    caller.blocked = true;
    open_lab(&lab, caller);
    tell(&lab, 'f', 10000);
    end_child(lab.caller);
    ok(lab.unread > 0 && !ended(lab.guard, 50), "an agent that reads nothing is waited for");
    for (; lab.unread > 0; lab.unread--)
        if (recv(lab.agent, &byte, 1, 0) != 1)
            abort();
    thaw_and_end(&lab, "an agent that reads at last");
}

static void
test_flooding_agent(void)
{
    static char flood[65536];
    struct lab lab;
    unsigned long long id = 0, ticks[2] = {0};
    size_t sent = 0;

    open_lab(&lab, plain);
    tell(&lab, 'f', 10000);
    end_child(lab.caller);
    ok(take_attempt(&lab, PATIENCE_MS, &id), "a flooding agent: the thaw is sent");
    memset(flood, '\n', sizeof flood);
    for (int half = 0; half < 2; half++) {
        for (double until = now() + 0.25; now() < until;) {
            /* First as much as it takes, then single bytes as fast as they can be sent. */
            ssize_t put = send(lab.agent, flood, half ? 1 : sizeof flood, MSG_DONTWAIT);

            sent += put > 0 ? (size_t)put : 0;
            if (put < 0)
                snooze(1);
        }
        const char *stat = strrchr(proc_text(lab.guard, "stat"), ')');
        unsigned long long user = 0, system = 0;

        if (stat)
            sscanf(stat, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system);
        ticks[half] = user + system;
    }
    diag("%zu bytes in half a second, %llu and %llu ticks of the guard's time", sent, ticks[0],
         ticks[1]);
    /* Not the time itself: on a busy host the kernel counts others' into it. */
    ok(sent < 8 << 20, "a flood is read slowly, so that it costs the guard little time");
    fcntl(lab.agent, F_SETFL, 0);
    say_thawed(&lab, id, 2);
    ok(ended(lab.guard, PATIENCE_MS), "... and it hears the reply behind it");
    close_lab(&lab);
}

static void
test_lost_agent(void)
{
    struct lab lab;
    unsigned long long id = 0;

    open_lab(&lab, plain);
    tell(&lab, 'f', 10000);
    end_child(lab.caller);
    ok(take_attempt(&lab, PATIENCE_MS, &id), "a lost agent: the thaw is sent");
    close_lab(&lab);
    ok(ended(lab.guard, PATIENCE_MS), "when QEMU is gone, so is the guard");
    is_str(journal_of(&lab), "", "... with nothing confirmed");

    open_lab(&lab, plain);
    tell(&lab, 'f', 10000);
    tell(&lab, 'h', 0);
    end_child(lab.caller);
    ok(!ended(lab.guard, 30), "a holding guard waits");
    close_lab(&lab);
    ok(ended(lab.guard, PATIENCE_MS), "... but not for a QEMU that is gone");

    open_lab(&lab, plain);
    tell(&lab, 'f', 50);
    close_lab(&lab);
    ok(!ended(lab.guard, 100), "it outlives its agent while its caller lives");
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS), "... and not longer");
}

static void
test_hold(void)
{
    struct lab lab;
    double since = now();

    open_lab(&lab, plain);
    tell(&lab, 'f', 300);
    tell(&lab, 'h', 0);
    end_child(lab.caller);
    ok(is_quiet(&lab, 200) || now() - since > 0.3, "a freeze by hand is held");
    thaw_and_end(&lab, "a freeze by hand");
}

/* The agent's socket ends, and the guard calls again. */
static bool
call_again(struct lab *lab, int listener)
{
    struct pollfd fds[] = {{.fd = listener, .events = POLLIN}};

    close_lab(lab);
    lab->length = 0;
    if (poll(fds, 1, PATIENCE_MS * patience) <= 0)
        return false;
    lab->agent = accept(listener, NULL, NULL);
    return lab->agent >= 0;
}

/* Somebody between the guard and QEMU hangs up. */
static void
test_hung_up(void)
{
    char path[64];
    struct caller_plan caller = plain;
    struct lab lab;
    unsigned long long id = 0;

    snprintf(path, sizeof path, "%s/qga.sock", folder);
    int listener = listen_at(path, 1);

    caller.plan.agent_path = path;
    caller.plan.qemu_pid = getpid();
    open_lab(&lab, caller);
    tell(&lab, 'f', 10000);
    end_child(lab.caller);
    ok(take_attempt(&lab, PATIENCE_MS, &id), "a guard that is hung up on: the thaw is sent");
    ok(call_again(&lab, listener), "... and it calls again");
    ok(take_attempt(&lab, PATIENCE_MS, &id), "... says the same");
    ok(call_again(&lab, listener), "... as often as it takes");
    thaw_and_end(&lab, "the third connection");

    double since = now();

    open_lab(&lab, caller);
    tell(&lab, 'f', 300);
    tell(&lab, 'h', 0);
    end_child(lab.caller);
    ok(call_again(&lab, listener), "a holding guard calls again");
    ok(is_quiet(&lab, 100) || now() - since > 0.3, "... and goes on holding");
    thaw_and_end(&lab, "... until it is time");

    open_lab(&lab, caller);
    tell(&lab, 'f', 50);
    close_lab(&lab);
    struct pollfd fds[] = {{.fd = listener, .events = POLLIN}};

    is_int(poll(fds, 1, 200), 0, "as long as the caller lives, that is the caller's");
    end_child(lab.caller);
    lab.agent = accept(listener, NULL, NULL);
    lab.length = 0;
    thaw_and_end(&lab, "afterwards it is the guard's");

    pid_t qemu = fork();

    if (qemu == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    caller.plan.qemu_pid = qemu;
    close(listener);
    open_lab(&lab, caller);
    tell(&lab, 'f', 10000);
    end_child(lab.caller);
    close_lab(&lab);
    ok(!ended(lab.guard, 400), "nobody answers: it calls on while QEMU lives");
    kill(qemu, SIGKILL);
    ok(ended(lab.guard, PATIENCE_MS), "... which a zombie does not");
    waitpid(qemu, NULL, 0);
    unlink(path);
}

/* Its QEMU may be on another host, where nobody can see whether it lives. */
static void
test_far_agent(void)
{
    char path[64];
    struct caller_plan caller = plain;
    struct lab lab;
    unsigned long long id = 0;
    int port = 0;

    caller.listener = listen_at_port(&port);
    snprintf(path, sizeof path, "tcp:127.0.0.1:%d", port);
    caller.plan.agent_path = path;
    open_lab(&lab, caller);
    tell(&lab, 'f', 10000);
    end_child(lab.caller);
    ok(take_attempt(&lab, PATIENCE_MS, &id), "an agent behind TCP: the thaw is sent");
    ok(call_again(&lab, caller.listener), "... and it is called again");
    ok(take_attempt(&lab, PATIENCE_MS, &id), "... and told the same");
    close(caller.listener);
    close_lab(&lab);
    ok(!ended(lab.guard, 150), "... also when nobody answers");
    caller.listener = listen_at_port(&port);
    ok(call_again(&lab, caller.listener), "... until somebody does");
    thaw_and_end(&lab, "an agent behind TCP");
    close(caller.listener);
}

static void
test_killed_guard(void)
{
    struct lab lab;

    open_lab(&lab, plain);
    tell(&lab, 'f', 60000);
    kill(lab.guard, SIGKILL);
    ok(command(lab.caller, 'h', 0).value >= 0, "a guard that was killed promises nothing");
    end_child(lab.caller);
    waitpid(lab.guard, NULL, 0);
    close_lab(&lab);
}

static uint64_t
start_of(pid_t pid)
{
    const char *stat = strrchr(proc_text(pid, "stat"), ')');
    unsigned long long at = 0;

    if (stat)
        sscanf(stat,
               ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
               &at);
    return at;
}

static void
test_dismiss(void)
{
    struct lab lab;

    ok(vf_guard_dismiss(0, 0, 1000), "no guard is no guard");
    ok(vf_guard_dismiss(getpid(), start_of(getpid()), 0), "nor is a process of another name");

    open_lab(&lab, plain);
    tell(&lab, 'f', 60000);
    tell(&lab, 'h', 0);
    end_child(lab.caller);
    is_int((long long)lab.guard_started, (long long)start_of(lab.guard),
           "the guard's start is that of the process");
    ok(vf_guard_dismiss(lab.guard, lab.guard_started + 1, 0) && !ended(lab.guard, 0),
       "one that started at another time is another");
    double since = now();

    ok(!vf_guard_dismiss(lab.guard, lab.guard_started, 60), "a holding guard does not end itself");
    ok(now() - since >= 0.06, "... is given its time");
    int status = 0;

    ok(waitpid(lab.guard, &status, WNOHANG) == lab.guard && WIFSIGNALED(status) &&
           WTERMSIG(status) == SIGKILL,
       "... and killed");
    ok(is_quiet(&lab, 0) && vf_guard_dismiss(lab.guard, lab.guard_started, 0),
       "after which it is none");
    close_lab(&lab);

    open_lab(&lab, plain);
    tell(&lab, 'l', 0);
    ok(vf_guard_dismiss(lab.guard, lab.guard_started, PATIENCE_MS),
       "one that owes nothing ends itself");
    ok(ended(lab.guard, 0), "... well");
    end_child(lab.caller);
    close_lab(&lab);
}

/* --------------------------------------------------------------------------------- the names */

struct disk {
    char top[64], next[64], hidden[64];
    struct stat base, overlay;
};

static struct disk disks[DISKS];
static struct vf_guard_name names[DISKS];

static void
make_file(const char *path, struct stat *about)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0 || fstat(fd, about) < 0)
        abort();
    close(fd);
}

static void
make_disks(void)
{
    for (int i = 0; i < DISKS; i++) {
        struct disk *disk = &disks[i];

        snprintf(disk->top, sizeof disk->top, "%s/web%d.qcow2", folder, i);
        snprintf(disk->next, sizeof disk->next, "%s/.web%d.qcow2.next", folder, i);
        snprintf(disk->hidden, sizeof disk->hidden, "%s/.web%d.qcow2.id", folder, i);
        unlink(disk->top);
        unlink(disk->next);
        unlink(disk->hidden);
        make_file(disk->top, &disk->base);
        make_file(disk->hidden, &disk->overlay);
        if (link(disk->hidden, disk->next) < 0)
            abort();
        names[i] = (struct vf_guard_name){
            .next = disk->next,
            .top = disk->top,
            .overlay_device = disk->overlay.st_dev,
            .overlay_number = disk->overlay.st_ino,
            .base_device = disk->base.st_dev,
            .base_number = disk->base.st_ino,
        };
    }
}

/* A lock as QEMU's: F_RDLCK or F_UNLCK on one byte, of the open file and not of the process. */
static bool
lock_byte(int fd, short type, off_t byte)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

/* What QEMU locks of an image that it has the permission to write. */
static bool
lock_image(int fd)
{
    static const off_t bytes[] = {100, 101, 103, 201, 203};

    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++)
        if (!lock_byte(fd, F_RDLCK, bytes[i]))
            return false;
    return true;
}

/* The same file, under the same number. */
static bool
reopen(int fd, int flags)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int opened = open(path, flags | O_CLOEXEC);
    bool done = opened >= 0 && dup3(opened, fd, O_CLOEXEC) == fd;

    close(opened);
    return done;
}

/* More locks than the guard reads. */
static bool
lock_many(int fd)
{
    for (int i = 0; i < 100; i++)
        if (!lock_byte(fd, F_RDLCK, 1000 + 2 * i))
            return false;
    return true;
}

/* Has the bases and the overlays open for writing, as QEMU in the midst of a transaction, with its
 * locks if it is told so. What it does when told, with a disk's
 *   'c' base: opens it for reading only   's' overlay: the same   'o' base: opens it for writing
 *   'u' base: keeps it open, but gives up the lock of a writer   'U' overlay: the same
 *   'w' base: locks all of it   'm' base: locks many bytes of it */
static void
serve_as_qemu(int control, void *with_locks)
{
    int bases[DISKS], overlays[DISKS];
    struct order order;

    for (int i = 0; i < DISKS; i++) {
        bases[i] = open(disks[i].top, O_RDWR | O_CLOEXEC);
        overlays[i] = open(disks[i].hidden, O_RDWR | O_CLOEXEC);
        if (with_locks && (!lock_image(bases[i]) || !lock_image(overlays[i])))
            _exit(1);
    }
    answer(control, 0, 0);
    while (receive(control, &order)) {
        int base = bases[order.value], overlay = overlays[order.value];
        struct flock all = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
        bool done = false;

        switch (order.what) {
        case 'c':
            done = reopen(base, O_RDONLY);
            break;
        case 's':
            done = reopen(overlay, O_RDONLY);
            break;
        case 'o':
            done = reopen(base, O_RDWR);
            break;
        case 'u':
            done = lock_byte(base, F_UNLCK, 101);
            break;
        case 'U':
            done = lock_byte(overlay, F_UNLCK, 101);
            break;
        case 'w':
            done = fcntl(base, F_OFD_SETLK, &all) == 0;
            break;
        case 'm':
            done = lock_many(base);
            break;
        }
        if (!done)
            _exit(1);
        answer(control, order.what, order.value);
    }
}

static struct child
open_locked_lab(struct lab *lab, bool with_agent, bool with_locks)
{
    struct caller_plan caller = plain;
    struct order hello;

    make_disks();
    struct child qemu = start_child(serve_as_qemu, with_locks ? &with_locks : NULL);

    receive(qemu.control, &hello);
    caller.plan.qemu_pid = qemu.pid;
    caller.plan.names = names;
    caller.plan.name_count = DISKS;
    caller.plan.agent_fd = with_agent ? 0 : -1;
    open_lab(lab, caller);
    if (with_agent)
        tell(lab, 'f', 10000);
    tell(lab, 'c', 0);
    return qemu;
}

static struct child
open_names_lab(struct lab *lab, bool with_agent)
{
    return open_locked_lab(lab, with_agent, false);
}

static bool
is_flipped(int number)
{
    struct stat about;

    return lstat(disks[number].top, &about) == 0 && about.st_ino == disks[number].overlay.st_ino &&
           access(disks[number].next, F_OK) < 0;
}

static bool
is_untouched(int number)
{
    struct stat about;

    return lstat(disks[number].top, &about) == 0 && about.st_ino == disks[number].base.st_ino &&
           access(disks[number].next, F_OK) == 0;
}

static void
test_cut_after_death(void)
{
    struct lab lab;
    struct child qemu = open_names_lab(&lab, true);
    unsigned long long id = 0;

    end_child(lab.caller);
    command(qemu, 'c', 0);
    ok(is_quiet(&lab, 50) && is_untouched(0) && is_untouched(1),
       "as long as only some disks are cut, no name is flipped");
    command(qemu, 'c', 1);
    ok(take_attempt(&lab, PATIENCE_MS, &id) && is_flipped(0) && is_flipped(1),
       "when all are, all are flipped, before the thaw is sent");
    say_thawed(&lab, id, 2);
    ok(ended(lab.guard, PATIENCE_MS), "... and the guard ends");
    has_str(journal_of(&lab), "\"state\":\"guard-thawed\"", "the journal has the thaw");
    has_str(journal_of(&lab),
            "{\"state\":\"guard-flipped\",\"flippedNames\":2,\"time\":", "... and the names");
    end_child(qemu);
    close_lab(&lab);
}

static void
test_late_cut(void)
{
    struct lab lab;
    struct child qemu = open_names_lab(&lab, true);
    unsigned long long id = 0;
    double since = now();

    end_child(lab.caller);
    ok(take_attempt(&lab, PATIENCE_MS, &id), "a cut that does not come: the guest is thawed");
    ok(now() - since > 0.25 && now() - since < 0.6 * patience, "... after a moment");
    ok(is_untouched(0) && is_untouched(1), "... and no name is flipped");
    command(qemu, 'c', 0);
    command(qemu, 'c', 1);
    say_thawed(&lab, id, 2);
    ok(ended(lab.guard, PATIENCE_MS) && is_flipped(0) && is_flipped(1),
       "a cut that came with the thaw: the names are flipped behind it");
    end_child(qemu);
    close_lab(&lab);

    qemu = open_names_lab(&lab, true);
    command(qemu, 'c', 1);
    end_child(lab.caller);
    thaw_and_end(&lab, "one disk cut of two");
    ok(is_untouched(0) && is_untouched(1), "... no name is flipped, then or later");
    ok(!strstr(journal_of(&lab), "guard-flipped"), "... and none is claimed to be");
    end_child(qemu);

    qemu = open_names_lab(&lab, true);
    command(qemu, 'c', 0);
    command(qemu, 'c', 1);
    command(qemu, 's', 1);
    end_child(lab.caller);
    thaw_and_end(&lab, "an overlay that is only read");
    ok(is_untouched(0) && is_untouched(1), "... is no cut");
    end_child(qemu);
}

static void
test_foreign_names(void)
{
    struct lab lab;
    struct child qemu = open_names_lab(&lab, true);
    struct stat foreign, about;

    unlink(disks[1].top);
    make_file(disks[1].top, &foreign);
    command(qemu, 'c', 0);
    command(qemu, 'c', 1);
    end_child(lab.caller);
    thaw_and_end(&lab, "a name that leads elsewhere");
    ok(is_flipped(0), "the other one is flipped");
    ok(lstat(disks[1].top, &about) == 0 && about.st_ino == foreign.st_ino &&
           access(disks[1].next, F_OK) == 0,
       "... that one is not touched");
    has_str(journal_of(&lab), "\"flippedNames\":1,", "... and the journal counts one");
    end_child(qemu);
}

static void
test_names_by_caller(void)
{
    struct lab lab;
    struct child qemu = open_names_lab(&lab, true);

    command(qemu, 'c', 0);
    command(qemu, 'c', 1);
    tell(&lab, 'n', 0);
    end_child(lab.caller);
    thaw_and_end(&lab, "names that are not owed");
    ok(is_untouched(0) && is_untouched(1), "... are not flipped");
    end_child(qemu);

    qemu = open_names_lab(&lab, false);
    command(qemu, 'c', 0);
    command(qemu, 'c', 1);
    if (rename(disks[0].next, disks[0].top) < 0)
        abort();
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS) && is_flipped(0) && is_flipped(1),
       "without a freeze, what the caller had not flipped is flipped");
    has_str(journal_of(&lab), "{\"state\":\"guard-flipped\",\"flippedNames\":2,", "... and told");
    ok(!strstr(journal_of(&lab), "guard-thawed"), "... and no thaw is");
    end_child(qemu);
    close_lab(&lab);

    qemu = open_names_lab(&lab, true);
    end_child(qemu);
    end_child(lab.caller);
    thaw_and_end(&lab, "a QEMU that cannot be looked at");
    ok(is_untouched(0) && is_untouched(1), "... leaves the names to recovery");
}

/* The VM stands still: whatever QEMU has open, some names may be turned already. */
static void
test_names_at_once(void)
{
    struct lab lab;
    struct child qemu = open_names_lab(&lab, false);
    double since = now();

    tell(&lab, 'a', 0);
    if (rename(disks[1].next, disks[1].top) < 0)
        abort();
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS) && is_flipped(0) && is_flipped(1),
       "names that are owed at once are turned though nothing is cut");
    ok(now() - since < 0.25 * patience, "... without waiting for that");
    has_str(journal_of(&lab), "{\"state\":\"guard-flipped\",\"flippedNames\":2,", "... and told");
    end_child(qemu);
    close_lab(&lab);

    qemu = open_names_lab(&lab, false);
    tell(&lab, 'a', 0);
    end_child(qemu);
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS) && is_flipped(0) && is_flipped(1), "... though QEMU is gone");
    close_lab(&lab);

    qemu = open_names_lab(&lab, false);
    tell(&lab, 'a', 0);
    tell(&lab, 'n', 0);
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS) && is_untouched(0) && is_untouched(1),
       "... and not when the caller has turned them back");
    end_child(qemu);
    close_lab(&lab);
}

/* A QEMU that only reads the bases is told to open them by their names, for writing: these lead to
 * them for so long, and to the overlays as soon as it has. */
static struct child
open_leading_lab(struct lab *lab)
{
    struct child qemu = open_names_lab(lab, false);

    tell(lab, 'e', 0);
    for (int i = 0; i < DISKS; i++)
        command(qemu, 'c', i);
    return qemu;
}

static void
test_leading_names(void)
{
    struct lab lab;
    struct child qemu = open_leading_lab(&lab);

    end_child(lab.caller);
    command(qemu, 'o', 0);
    ok(!ended(lab.guard, 50) && is_untouched(0) && is_untouched(1),
       "names that lead to the bases do so until QEMU has opened all of these");
    command(qemu, 'o', 1);
    ok(ended(lab.guard, PATIENCE_MS) && is_flipped(0) && is_flipped(1),
       "... and are turned when it has");
    has_str(journal_of(&lab), "{\"state\":\"guard-flipped\",\"flippedNames\":2,", "... and told");
    end_child(qemu);
    close_lab(&lab);

    qemu = open_leading_lab(&lab);
    if (rename(disks[0].next, disks[0].top) < 0)
        abort();
    end_child(lab.caller);
    ok(!ended(lab.guard, 50) && is_untouched(1), "a name that is turned already: the other waits");
    command(qemu, 'o', 1);
    ok(ended(lab.guard, PATIENCE_MS) && is_flipped(0) && is_flipped(1), "... for its own base");
    end_child(qemu);
    close_lab(&lab);

    qemu = open_leading_lab(&lab);
    end_child(qemu);
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS) && is_flipped(0) && is_flipped(1),
       "a QEMU that is gone opens nothing: they are turned at once");
    close_lab(&lab);

    qemu = open_leading_lab(&lab);
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS + OPEN_MS) && is_untouched(0) && is_untouched(1),
       "a QEMU that does not open them: they are left to recovery");
    is_str(journal_of(&lab), "", "... and nothing is told");
    end_child(qemu);
    close_lab(&lab);
}

/* Stopped behind its cut: it may stand so for long, and the guest is thawed before it goes on. */
static void
test_names_of_stopped_caller(void)
{
    struct lab lab;
    struct child qemu = open_names_lab(&lab, true);
    unsigned long long id = 0;

    command(qemu, 'c', 0);
    command(qemu, 'c', 1);
    tell(&lab, 'f', 150);
    kill(lab.caller.pid, SIGSTOP);
    ok(take_attempt(&lab, PATIENCE_MS, &id) && is_flipped(0) && is_flipped(1),
       "a caller that is stopped behind the cut: the names are flipped before the thaw is sent");
    say_thawed(&lab, id, 2);
    end_child(lab.caller);
    thaw_and_end(&lab, "... and killed then");
    end_child(qemu);
}

/* Bases that stay open for writing: only QEMU's locks tell of their cut. */
static void
test_locks(void)
{
    struct lab lab;
    struct child qemu = open_locked_lab(&lab, true, true);
    unsigned long long id = 0;

    end_child(lab.caller);
    is_int(command(qemu, 'u', 0).what, 'u', "locks: one disk of two is cut");
    ok(is_quiet(&lab, 50) && is_untouched(0) && is_untouched(1),
       "as long as a base has the lock of a writer, no name is flipped");
    command(qemu, 'u', 1);
    ok(take_attempt(&lab, PATIENCE_MS, &id) && is_flipped(0) && is_flipped(1),
       "when none has, all are flipped, before the thaw is sent");
    say_thawed(&lab, id, 2);
    ok(ended(lab.guard, PATIENCE_MS), "... and the guard ends");
    has_str(journal_of(&lab), "\"flippedNames\":2,", "... having told of two names");
    end_child(qemu);
    close_lab(&lab);

    qemu = open_locked_lab(&lab, false, true);
    command(qemu, 'u', 0);
    command(qemu, 'c', 1);
    end_child(lab.caller);
    ok(ended(lab.guard, PATIENCE_MS) && is_flipped(0) && is_flipped(1),
       "one disk of each kind, without a freeze: both are flipped");
    end_child(qemu);
    close_lab(&lab);

    static const struct {
        const char *orders; /* to all disks */
        bool with_locks;
        const char *what;
    } uncut[] = {
        {"", true, "writers' locks on bases and overlays"},
        {"", false, "bases that are open for writing, and no locks at all"},
        {"uU", true, "no writer's lock on an overlay either"},
        {"uw", true, "a lock on all of a base"},
        {"um", true, "more locks than are read"},
    };

    for (size_t i = 0; i < sizeof uncut / sizeof *uncut; i++) {
        bool obeyed = true;

        qemu = open_locked_lab(&lab, false, uncut[i].with_locks);
        for (const char *order = uncut[i].orders; *order; order++)
            for (int disk = 0; disk < DISKS; disk++)
                obeyed &= command(qemu, *order, disk).what == *order;
        end_child(lab.caller);
        ok(obeyed && ended(lab.guard, PATIENCE_MS) && is_untouched(0) && is_untouched(1),
           "%s: no cut is seen", uncut[i].what);
        is_str(journal_of(&lab), "", "... and nothing told");
        end_child(qemu);
        close_lab(&lab);
    }
}

/* ---------------------------------------------------------------------------- a silent agent */

static void
test_silent_agent(struct lab *lab, double since)
{
    unsigned long long first = 0, second = 0;

    ok(take_attempt(lab, PATIENCE_MS, &first), "a silent agent: the thaw is sent");
    ok(take_attempt(lab, PATIENCE_MS, &second), "... and again");
    ok(now() - since >= 2, "... after two seconds");
    is_int((long long)(second - first), 1, "... with the next id");
    say_thawed(lab, first, 2);
    ok(!ended(lab->guard, 50), "the late reply to the first is enough, but all are drained");
    has_str(journal_of(lab), "\"guard-thawed\",\"thawedFilesystems\":2",
            "... which the journal does not wait for");
    say_thawed(lab, second, 0);
    ok(ended(lab->guard, PATIENCE_MS), "... then the guard ends");
    close_lab(lab);
}

/* Nothing was ever heard from its agent: after three attempts, and when all is read that was said,
 * it is called anew. */
static void
test_stuck_agent(struct lab *lab, int listener)
{
    unsigned long long id = 0;
    struct pollfd fds[] = {{.fd = listener, .events = POLLIN}};
    char bytes[4096];
    ssize_t got;

    for (int i = 0; i < 3; i++)
        ok(take_attempt(lab, PATIENCE_MS, &id), "an agent that was never heard: the thaw is sent");
    is_int(poll(fds, 1, 0), 0, "... and nobody is called yet");
    do
        got = recv(lab->agent, bytes, sizeof bytes, 0);
    while (got > 0);
    is_int(got, 0, "... then the guard hangs up");
    ok(poll(fds, 1, PATIENCE_MS * patience) == 1, "... and calls anew");
    close_lab(lab);
    lab->length = 0;
    lab->agent = accept(listener, NULL, NULL);
    thaw_and_end(lab, "a second call");
    close(listener);
}

int
main(void)
{
    const char *preload = getenv("LD_PRELOAD");
    struct lab silent, stuck;
    struct caller_plan unheard = plain;
    char path[64];

    patience = preload && strstr(preload, "vgpreload") ? 5 : 1;
    alarm(120); /* callers and QEMUs die with the test, and guards with the agent's sockets */
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (!mkdtemp(folder))
        abort();

    open_lab(&silent, plain);
    tell(&silent, 'f', 10000);
    end_child(silent.caller);
    double since = now();

    snprintf(path, sizeof path, "%s/stuck.sock", folder);
    int listener = listen_at(path, 1);

    unheard.plan.agent_path = path;
    unheard.plan.qemu_pid = getpid();
    unheard.plan.unheard = true;
    open_lab(&stuck, unheard);
    tell(&stuck, 'f', 10000);
    end_child(stuck.caller);

    test_killed_caller();
    test_other_callers();
    test_nothing_owed();
    test_stopped_caller();
    test_stubborn_agent();
    test_blocked_agent();
    test_flooding_agent();
    test_lost_agent();
    test_hung_up();
    test_far_agent();
    test_hold();
    test_killed_guard();
    test_dismiss();
    test_cut_after_death();
    test_late_cut();
    test_foreign_names();
    test_names_by_caller();
    test_names_at_once();
    test_leading_names();
    test_names_of_stopped_caller();
    test_locks();
    test_silent_agent(&silent, since);
    test_stuck_agent(&stuck, listener);

    /* Whoever is still there is a child of ours, so that its pid is its own. */
    size_t left = 0;

    for (size_t i = 0; i < started_count; i++)
        if (waitpid(started[i], NULL, WNOHANG) == 0) {
            left++;
            kill(started[i], SIGKILL);
            waitpid(started[i], NULL, 0);
        }
    is_int((long long)left, 0, "no process is left behind");

    DIR *directory = opendir(folder);

    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlinkat(dirfd(directory), entry->d_name, 0);
    if (directory)
        closedir(directory);
    rmdir(folder);
    return done_testing();
}
