/* SPDX-License-Identifier: MIT
 *
 * The caller's side of the guard: starting one, telling it, ending one that another process left.
 *
 * Guarantees: when vf_guard_start() is true, the guard runs and is ready; it is nobody's child to
 * wait for; telling it never waits, and never fails for the caller.
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
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/guard-private.h"
#include "util/cleanup.h"
#include "util/mem.h"

#define HELLO_MS 2000  /* from the fork to the guard's first word */
#define KILLED_MS 5000 /* until a killed guard is gone */
#define DISMISS_PAUSE_MS 5

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

/* As whom the agent is to be called again; nothing if that has no address of fixed size. */
static void
note_address(struct guard *guard, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = path ? strlen(path) : 0;

    guard->address_length = sizeof guard->address;
    if (guard->agent < 0 ||
        getpeername(guard->agent, (struct sockaddr *)&guard->address, &guard->address_length) < 0)
        guard->address_length = 0;
    else if (guard->address.ss_family == AF_UNIX) {
        /* What its peer says is as short as QEMU wrote it. */
        bool fits = length > 0 && path[0] == '/' && length < sizeof address.sun_path;

        if (fits)
            memcpy(address.sun_path, path, length);
        memcpy(&guard->address, &address, sizeof address);
        guard->address_length = fits ? sizeof address : 0;
    }
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
    guard->unheard = plan->unheard;
    note_address(guard, plan->agent_path);
    guard->journal = plan->journal_fd;
    guard->qemu_pid = plan->qemu_pid;
    guard->name_count = plan->name_count;
    for (size_t i = 0; i < plan->name_count; i++) {
        const struct vf_guard_name *from = &plan->names[i];

        guard->names[i] = (struct name){
            .next = copy_bytes(&room, from->next, strlen(from->next)),
            .top = copy_bytes(&room, from->top, strlen(from->top)),
            .folder = copy_folder(&room, from->top),
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
            vf_guard_become(prepared);
        if (grandchild < 0)
            vf_guard_send(prepared->link, MESSAGE_FAILED, errno);
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
    int64_t until = vf_guard_now_ms() + HELLO_MS, left;

    while ((left = until - vf_guard_now_ms()) > 0) {
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

    /* PID (VF_GUARD_COMM) STATE ...: a name may hold anything, parentheses too. */
    char *name = strchr(text, '('), *end = strrchr(text, ')');

    if (!name || !end || end < name)
        return 0;
    *end = '\0';
    if (strcmp(name + 1, VF_GUARD_COMM) != 0 || end[1] != ' ' || end[2] == 'Z' || end[2] == 'X')
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
        vf_guard_send(guard->fd, kind, value);
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
vf_guard_turning(struct vf_guard *guard)
{
    tell(guard, MESSAGE_TURNING, 0);
}

void
vf_guard_leading(struct vf_guard *guard)
{
    tell(guard, MESSAGE_LEADING, 0);
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

bool
vf_guard_leave_holding(struct vf_guard *guard)
{
    tell(guard, MESSAGE_HOLD, 0);
    if (await_hello(guard->fd) == 0)
        return false;
    vf_guard_leave(guard);
    return true;
}

static bool
is_guard(pid_t pid, uint64_t started)
{
    return pid > 0 && started > 0 && start_of_guard(pid) == started;
}

static bool
await_end(pid_t pid, uint64_t started, int64_t wait_ms)
{
    int64_t until = vf_guard_now_ms() + wait_ms;

    while (is_guard(pid, started)) {
        if (vf_guard_now_ms() >= until)
            return false;
        vf_guard_pause_ms(DISMISS_PAUSE_MS);
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
