/* SPDX-License-Identifier: MIT */
#include "wire/daemon.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/descriptors.h"
#include "util/mem.h"
#include "util/text.h"
#include "wire/channel.h"
#include "wire/program.h"

/* What it says beyond this is lost: the file in memory does not grow. */
#define WORDS_MAX 16384
#define MONITOR_FD 3
#define MONITOR_FD_TEXT "3"
/* For a killed one to be gone: longer, it hangs in the kernel with an image on a dead server. */
#define KILLED_MS 5000
/* Between two looks at a child, where the kernel cannot wake us at its end. */
#define LOOK_MS 10
/* Begins what a child says that did not become the program; an errno follows. No program begins so.
 */
#define NOT_STARTED '\1'

/* --- The program --- */

static bool
is_program(const char *path)
{
    struct stat about;

    return path[0] == '/' && stat(path, &about) == 0 && S_ISREG(about.st_mode) &&
           access(path, X_OK) == 0;
}

/* Owned by the caller; NULL: not there. Folders that are not absolute do not count. */
static char *
search(const char *name)
{
    const char *folder = getenv("PATH");

    if (!folder)
        folder = "/usr/local/bin:/usr/bin:/bin";
    for (;;) {
        size_t length = strcspn(folder, ":");
        char *path = vf_printf("%.*s/%s", (int)length, folder, name);

        if (is_program(path))
            return path;
        free(path);
        if (!folder[length])
            return NULL;
        folder += length + 1;
    }
}

static char *
find_program(struct vmfrost_error *error)
{
    const char *named = getenv(VF_DAEMON_ENV);
    char *path = NULL;

    if (named && *named) {
        path = strchr(named, '/') ? realpath(named, NULL) : search(named);
        if (path && is_program(path))
            return path;
        free(path);
        vf_fail(error, VMFROST_FAILED, "cannot start %s: %s is %s, which is no program",
                VF_DAEMON_NAME, VF_DAEMON_ENV, named);
        vf_hint(error, "Give %s the path of QEMU's %s, or unset it.", VF_DAEMON_ENV,
                VF_DAEMON_NAME);
        return NULL;
    }
    path = search(VF_DAEMON_NAME);
    if (path)
        return path;
    vf_fail(error, VMFROST_FAILED, "%s is not installed, which works on images for vmfrost",
            VF_DAEMON_NAME);
    vf_hint(error,
            "Install it (Debian: qemu-system-common, Fedora: qemu-img), or give its path in %s.",
            VF_DAEMON_ENV);
    return NULL;
}

/* --- The child: nothing but async-signal-safe functions --- */

struct birth {
    const char *program;
    char **arguments, **environment;
    pid_t parent;
    int monitor, words;
};

static void __attribute__((noreturn)) stillborn(int words)
{
    const char why[2] = {NOT_STARTED, (char)errno};
    ssize_t put = write(words, why, sizeof why);

    (void)put;
    _exit(127);
}

static void
reset_signals(void)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigset_t none;

    for (int number = 1; number < NSIG; number++)
        sigaction(number, &action, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Away from the numbers that they are going to have. */
static bool
move_up(int *fd)
{
    *fd = fcntl(*fd, F_DUPFD_CLOEXEC, MONITOR_FD + 1);
    return *fd >= 0;
}

static void __attribute__((noreturn)) become(struct birth *birth)
{
    const int kept[] = {MONITOR_FD};

    if (!move_up(&birth->words))
        _exit(127);
    /* Between the fork and this the parent may have died. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != birth->parent)
        stillborn(birth->words);
    if (!move_up(&birth->monitor))
        stillborn(birth->words);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (null < 0 || !move_up(&null) || dup2(null, STDIN_FILENO) < 0 ||
        dup2(birth->words, STDOUT_FILENO) < 0 || dup2(birth->words, STDERR_FILENO) < 0 ||
        dup2(birth->monitor, MONITOR_FD) < 0)
        stillborn(birth->words);
    if (!vf_close_others(kept, sizeof kept / sizeof *kept) || chdir("/") < 0)
        stillborn(STDERR_FILENO);
    /* Away from our terminal and its Ctrl-C. */
    setsid();
    umask(077);
    reset_signals();
    execve(birth->program, birth->arguments, birth->environment);
    stillborn(STDERR_FILENO);
}

/* --- The parent --- */

/* Writing beyond the end fails, so that a child that talks much neither waits for a reader nor
 * fills our memory. */
static int
make_words(void)
{
    VF_AUTO_FD int fd = memfd_create("vmfrost-daemon", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int made = fd;

    if (fd < 0 || ftruncate(fd, WORDS_MAX) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0)
        return -1;
    fd = -1;
    return made;
}

static pid_t
fork_child(struct birth *birth)
{
    sigset_t all, before;

    /* None of the host program's handlers may run in the child. */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pid_t child = fork();

    if (child == 0)
        become(birth);
    int cause = errno;

    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = cause;
    return child;
}

bool
vf_daemon_start(struct vf_daemon *daemon, const struct vf_log *log, struct vmfrost_error *error)
{
    char name[] = VF_DAEMON_NAME, chardev[] = "--chardev", monitor[] = "--monitor";
    char socket[] = "socket,id=m,fd=" MONITOR_FD_TEXT, on_socket[] = "chardev=m";
    char *arguments[] = {name, chardev, socket, monitor, on_socket, NULL};
    VF_AUTO_FREE char *program = find_program(error);
    VF_AUTO_FREE char **environment = vf_english_environment();
    VF_AUTO_FD int theirs = -1;
    int pair[2];

    assert(daemon->pid == 0);
    if (!program)
        return false;
    daemon->words_fd = make_words();
    if (daemon->words_fd < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        vf_fail(error, VMFROST_FAILED, "cannot start %s: %s", program, strerror(errno));
        vf_daemon_stop(daemon);
        return false;
    }
    daemon->monitor = pair[0];
    theirs = pair[1];

    struct birth birth = {program, arguments, environment, getpid(), theirs, daemon->words_fd};
    pid_t child = fork_child(&birth);

    if (child < 0) {
        vf_fail(error, VMFROST_FAILED, "cannot start %s: %s", program, strerror(errno));
        vf_daemon_stop(daemon);
        return false;
    }
    daemon->pid = child;
    daemon->pid_fd = (int)syscall(SYS_pidfd_open, child, 0);
    vf_log(log, VMFROST_LOG_INFO, "daemon: %s is process %d", program, (int)child);
    return true;
}

int
vf_daemon_take_monitor(struct vf_daemon *daemon)
{
    int taken = daemon->monitor;

    assert(taken >= 0);
    daemon->monitor = -1;
    return taken;
}

/* "" if it runs, or nobody can say. */
static void
describe_end(const struct vf_daemon *daemon, char *text, size_t size)
{
    siginfo_t about = {.si_pid = 0};

    text[0] = '\0';
    if (daemon->pid == 0 ||
        waitid(P_PID, (id_t)daemon->pid, &about, WEXITED | WNOHANG | WNOWAIT) < 0 ||
        about.si_pid == 0)
        return;
    if (about.si_code == CLD_EXITED)
        snprintf(text, size, VF_DAEMON_NAME " has ended with status %d", about.si_status);
    else
        snprintf(text, size, VF_DAEMON_NAME " was ended by signal %d (%s)", about.si_status,
                 strsignal(about.si_status));
}

void
vf_daemon_words(const struct vf_daemon *daemon, char words[VF_WORDS_SIZE])
{
    char said[WORDS_MAX + 1] = "", line[VF_WORDS_SIZE - 100], end[80];
    ssize_t got = daemon->words_fd < 0 ? 0 : pread(daemon->words_fd, said, WORDS_MAX, 0);
    size_t length = strnlen(said, got > 0 ? (size_t)got : 0);

    if (length > 1 && said[0] == NOT_STARTED) {
        snprintf(words, VF_WORDS_SIZE, VF_DAEMON_NAME " cannot be started: %s",
                 strerror((unsigned char)said[1]));
        return;
    }
    while (length > 0 && (unsigned char)said[length - 1] <= ' ')
        length--;
    vf_channel_line(line, sizeof line, said, length);
    describe_end(daemon, end, sizeof end);
    if (line[0] && end[0])
        snprintf(words, VF_WORDS_SIZE, "%s and said: %s", end, line);
    else if (line[0])
        snprintf(words, VF_WORDS_SIZE, VF_DAEMON_NAME " said: %s", line);
    else
        snprintf(words, VF_WORDS_SIZE, "%s", end);
}

/* --- The end --- */

static int64_t
now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* A host program that waits for all children may have reaped it, so that its number is somebody
 * else's by now; its descriptor never is. */
static void
send_signal(const struct vf_daemon *daemon, int number)
{
    if (daemon->pid_fd >= 0)
        syscall(SYS_pidfd_send_signal, daemon->pid_fd, number, NULL, 0);
    else
        kill(daemon->pid, number);
}

/* False: it runs after that time. */
static bool
await_end(const struct vf_daemon *daemon, int64_t wait_ms)
{
    int64_t until = now_ms() + wait_ms;

    for (;;) {
        pid_t got = waitpid(daemon->pid, NULL, WNOHANG);
        int64_t left = until - now_ms();
        struct pollfd end = {.fd = daemon->pid_fd, .events = POLLIN};

        if (got > 0 || (got < 0 && errno != EINTR))
            return true;
        if (left <= 0)
            return false;
        poll(&end, 1, (int)(daemon->pid_fd < 0 && left > LOOK_MS ? LOOK_MS : left));
    }
}

static void
end_child(const struct vf_daemon *daemon)
{
    send_signal(daemon, SIGTERM);
    if (await_end(daemon, VF_DAEMON_STOP_MS))
        return;
    send_signal(daemon, SIGKILL);
    await_end(daemon, KILLED_MS);
}

static void
drop_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void
vf_daemon_stop(struct vf_daemon *daemon)
{
    if (daemon->pid > 0)
        end_child(daemon);
    daemon->pid = 0;
    drop_fd(&daemon->pid_fd);
    drop_fd(&daemon->monitor);
    drop_fd(&daemon->words_fd);
}
