/* SPDX-License-Identifier: MIT */
#include "wire/program.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/descriptors.h"
#include "util/mem.h"
#include "util/text.h"
#include "wire/channel.h"

/* Between its last word and its end there is next to nothing. */
#define LOOK_US 2000
#define KILLED_LOOKS 500
#define FIRST_ROOM 64

struct stream {
    struct vf_program *program;
    ev_io watcher;
    int fd; /* -1: at its end */
    char *text;
    size_t length, room;
};

struct vf_program {
    struct ev_loop *loop;
    vf_program_fn *fn;
    void *data;
    pid_t pid;  /* 0: it was waited for */
    int pid_fd; /* -1: the kernel has no such thing */
    struct stream out, err;
    ev_timer look;
};

static void
close_stream(struct stream *stream)
{
    ev_io_stop(stream->program->loop, &stream->watcher);
    if (stream->fd >= 0)
        close(stream->fd);
    stream->fd = -1;
}

static void
tell_end(struct vf_program *program, int status)
{
    char words[VF_WORDS_SIZE];

    program->pid = 0;
    ev_timer_stop(program->loop, &program->look);
    while (program->err.length > 0 &&
           (unsigned char)program->err.text[program->err.length - 1] <= ' ')
        program->err.length--;
    vf_channel_line(words, sizeof words, program->err.text, program->err.length);
    struct vf_program_end end = {
        .status = WIFEXITED(status) ? WEXITSTATUS(status) : -1,
        .out = program->out.text ? program->out.text : "",
        .out_length = program->out.length,
        .words = words,
    };

    program->fn(program->data, &end);
}

static void
on_look(struct ev_loop *loop, ev_timer *watcher, int revents)
{
    struct vf_program *program = watcher->data;
    int status = -1;
    pid_t got = waitpid(program->pid, &status, WNOHANG);

    (void)loop;
    (void)revents;
    if (got == program->pid)
        tell_end(program, status);
    else if (got < 0 && errno != EINTR)
        tell_end(program, -1); /* somebody else has waited for it */
}

static void
on_readable(struct ev_loop *loop, ev_io *watcher, int revents)
{
    struct stream *stream = watcher->data;
    struct vf_program *program = stream->program;
    char chunk[4096];
    ssize_t got = read(stream->fd, chunk, sizeof chunk);

    (void)revents;
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (got > 0) {
        size_t room = VF_PROGRAM_MOST - stream->length;
        size_t taken = (size_t)got < room ? (size_t)got : room;

        while (stream->room <= stream->length + taken)
            stream->text = vf_realloc(stream->text, stream->room *= 2);
        memcpy(stream->text + stream->length, chunk, taken);
        stream->length += taken;
        stream->text[stream->length] = '\0';
        return;
    }
    close_stream(stream);
    if (program->out.fd < 0 && program->err.fd < 0) {
        ev_timer_set(&program->look, 0, LOOK_US / 1e6);
        ev_timer_start(loop, &program->look);
    }
}

/* Its other end is for the program. -1 with errno. */
static int
open_stream(struct vf_program *program, struct stream *stream)
{
    int ends[2];

    stream->program = program;
    stream->fd = -1;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    stream->fd = ends[0];
    stream->room = FIRST_ROOM;
    stream->text = vf_alloc(stream->room);
    ev_io_init(&stream->watcher, on_readable, stream->fd, EV_READ);
    stream->watcher.data = stream;
    return ends[1];
}

char **
vf_english_environment(void)
{
    static char locale[] = "LC_ALL=C";
    char **made = NULL;
    size_t count = 0;

    for (char **at = environ; at && *at; at++) {
        if (vf_starts_with(*at, "LC_ALL=") || vf_starts_with(*at, "LANGUAGE="))
            continue;
        VF_GROW(made, count);
        made[count++] = *at;
    }
    VF_GROW(made, count);
    made[count++] = locale;
    VF_GROW(made, count);
    made[count] = NULL;
    return made;
}

/* 0, or an errno. */
static int
spawn(struct vf_program *program, const char *const *arguments, int out, int err)
{
    VF_AUTO_FREE char **environment = vf_english_environment();
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, defaults;

    sigemptyset(&none);
    sigfillset(&defaults);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    /* Away from our terminal and its Ctrl-C: who started it ends it. */
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
    int failed = posix_spawnp(&program->pid, arguments[0], &actions, &attributes,
                              (char *const *)arguments, environment);

    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    if (failed)
        program->pid = 0;
    return failed;
}

static struct vf_program *
new_program(struct ev_loop *loop, vf_program_fn *fn, void *data)
{
    struct vf_program *program = vf_alloc(sizeof *program);

    program->loop = loop;
    program->fn = fn;
    program->data = data;
    program->pid_fd = -1;
    program->out = program->err = (struct stream){.program = program, .fd = -1};
    ev_timer_init(&program->look, on_look, 0, 0);
    program->look.data = program;
    return program;
}

/* It runs, unless `failed` is an errno. */
static struct vf_program *
begun(struct vf_program *program, int failed, const char *what, struct vmfrost_error *error)
{
    if (failed) {
        vf_fail(error, VMFROST_FAILED, "cannot start %s: %s", what, strerror(failed));
        vf_program_stop(program);
        return NULL;
    }
    program->pid_fd = (int)syscall(SYS_pidfd_open, program->pid, 0);
    if (program->out.fd >= 0)
        ev_io_start(program->loop, &program->out.watcher);
    ev_io_start(program->loop, &program->err.watcher);
    return program;
}

struct vf_program *
vf_program_start(struct ev_loop *loop, const char *const *arguments, vf_program_fn *fn, void *data,
                 bool *missing_r, struct vmfrost_error *error)
{
    struct vf_program *program = new_program(loop, fn, data);
    VF_AUTO_FD int out = open_stream(program, &program->out);
    VF_AUTO_FD int err = open_stream(program, &program->err);
    int failed = out < 0 || err < 0 ? errno : spawn(program, arguments, out, err);

    *missing_r = failed == ENOENT;
    return begun(program, failed, arguments[0], error);
}

/* The child of a program that may have threads: nothing here but system calls. `end` is what tells
 * us that it has ended; all else that it has of ours would be kept open by it, for minutes if a
 * server is dead: locks, QEMU's sockets, the terminal. */
static _Noreturn void
sync_and_exit(const char *const *paths, size_t count, int end)
{
    setsid();
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fd != end)
            close(fd);
    bool done = vf_close_others(&end, 1);

    for (size_t i = 0; done && i < count; i++) {
        int fd = open(paths[i], O_RDONLY | O_NONBLOCK | O_CLOEXEC);

        if (fd >= 0) {
            fdatasync(fd);
            close(fd);
        }
    }
    _exit(EXIT_SUCCESS);
}

struct vf_program *
vf_program_sync(struct ev_loop *loop, const char *const *paths, size_t count, vf_program_fn *fn,
                void *data, struct vmfrost_error *error)
{
    struct vf_program *program = new_program(loop, fn, data);
    VF_AUTO_FD int end = open_stream(program, &program->err);
    sigset_t all, before;

    /* None of the host program's handlers may run in the child. */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pid_t pid = end < 0 ? -1 : fork();
    int failed = pid < 0 ? errno : 0;

    if (pid == 0)
        sync_and_exit(paths, count, end);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    program->pid = pid > 0 ? pid : 0;
    return begun(program, failed, "the flush of the host's cache", error);
}

pid_t
vf_program_pid(const struct vf_program *program)
{
    return program->pid;
}

/* If somebody else has waited for it, its number may be another's by now; its descriptor never
 * is. */
static void
end_child(const struct vf_program *program)
{
    if (program->pid_fd >= 0)
        syscall(SYS_pidfd_send_signal, program->pid_fd, SIGKILL, NULL, 0);
    else
        kill(program->pid, SIGKILL);
    /* One that hangs in the kernel, with an image on a dead server, is not waited for. */
    for (int i = 0; i < KILLED_LOOKS && waitpid(program->pid, NULL, WNOHANG) == 0; i++)
        usleep(LOOK_US);
}

void
vf_program_stop(struct vf_program *program)
{
    if (!program)
        return;
    if (program->pid > 0)
        end_child(program);
    ev_timer_stop(program->loop, &program->look);
    close_stream(&program->out);
    close_stream(&program->err);
    if (program->pid_fd >= 0)
        close(program->pid_fd);
    free(program->out.text);
    free(program->err.text);
    free(program);
}
