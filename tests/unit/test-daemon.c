/* SPDX-License-Identifier: MIT
 *
 * The storage daemon: how it is started, what it has of ours, how it ends. Most of it with shell
 * scripts in its place; what only the real one can show, with that.
 */
#include "wire/daemon.h"

#include <dirent.h>

#include "peer.h"
#include "util/cleanup.h"
#include "util/error.h"
#include "util/json.h"
#include "util/mem.h"
#include "wire/qmp.h"

/* Names the file that this program tells all to, where it is started as the daemon. */
#define TELL "VMFROST_TEST_TELL"

static const struct vf_log no_log;
static struct vf_daemon daemon_ = VF_DAEMON_INIT;
static struct vf_qmp *qmp;
static struct vmfrost_error error;
static char words[VF_WORDS_SIZE];
static char *path_before;

struct answer {
    int count;
    enum vf_outcome outcome;
    char words[VF_WORDS_SIZE];
    struct json_object *value;
};

static struct answer opened;
static int lost;

static void
on_reply(void *data, const struct vf_reply *reply)
{
    struct answer *answer = data;

    answer->count++;
    answer->outcome = reply->outcome;
    snprintf(answer->words, sizeof answer->words, "%s", reply->words);
    json_object_put(answer->value);
    answer->value = json_object_get(reply->value);
}

static void
on_lost(void *owner, const char *why)
{
    (void)owner, (void)why;
    lost++;
}

static const struct vf_qmp_hooks hooks = {.lost = on_lost};

static void
drop_answer(struct answer *answer)
{
    json_object_put(answer->value);
    *answer = (struct answer){0};
}

/* A script in the daemon's place, from now on. */
static void
script(const char *text)
{
    VF_AUTO_FREE char *path = vf_printf("%s/daemon", folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);

    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        exit(1);
    close(fd);
    setenv(VF_DAEMON_ENV, path, 1);
}

static bool
start(void)
{
    error = (struct vmfrost_error){.code = VMFROST_OK};
    return vf_daemon_start(&daemon_, &no_log, &error);
}

static void
attach(int greeting_ms)
{
    drop_answer(&opened);
    lost = 0;
    qmp = vf_qmp_new(loop, &hooks, NULL, &no_log);
    vf_qmp_set_greeting_ms(qmp, greeting_ms);
    vf_qmp_attach(qmp, vf_daemon_take_monitor(&daemon_), daemon_.pid, VF_DAEMON_NAME, on_reply,
                  &opened);
}

static void
stop(void)
{
    vf_qmp_free(VF_STEAL(qmp));
    vf_daemon_stop(&daemon_);
}

/* What a file says, "" if nothing. Owned by the caller. */
static char *
content(const char *path)
{
    char text[4096] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd >= 0 && read(fd, text, sizeof text - 1) < 0)
        exit(1);
    if (fd >= 0)
        close(fd);
    return vf_strdup(text);
}

static bool
exists(const char *name)
{
    VF_AUTO_FREE char *path = vf_printf("%s/%s", folder, name);

    return access(path, F_OK) == 0;
}

/* --- It does not start --- */

static void
test_missing(void)
{
    VF_AUTO_FREE char *plain = vf_printf("%s/plain", folder);

    unsetenv(VF_DAEMON_ENV);
    setenv("PATH", folder, 1);
    ok(!start(), "not installed");
    is_str(error.text, "qemu-storage-daemon is not installed, which works on images for vmfrost",
           "is said");
    has_str(error.next, "Debian: qemu-system-common", "and what to install");
    ok(daemon_.pid == 0 && daemon_.monitor == -1 && daemon_.words_fd == -1, "nothing is left");

    close(open(plain, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    setenv(VF_DAEMON_ENV, plain, 1);
    ok(!start(), "a file that is no program");
    has_str(error.text, "VMFROST_STORAGE_DAEMON is /tmp/vmfrost-test-", "is named");
    setenv(VF_DAEMON_ENV, "nonsense", 1);
    ok(!start(), "a name that is not in PATH");
    is_str(error.text,
           "cannot start qemu-storage-daemon: VMFROST_STORAGE_DAEMON is nonsense, which is no "
           "program",
           "is named, too");
    vf_daemon_words(&daemon_, words);
    is_str(words, "", "one that was not started has no words");
    vf_daemon_stop(&daemon_);

    /* A folder of PATH that is relative would be one of whoever made the current one. */
    VF_AUTO_FREE char *here = getcwd(NULL, 0);
    VF_AUTO_FREE char *fake = vf_printf("%s/" VF_DAEMON_NAME, folder);

    unsetenv(VF_DAEMON_ENV);
    close(open(fake, O_CREAT | O_WRONLY | O_CLOEXEC, 0700));
    if (chdir(folder) < 0)
        exit(1);
    setenv("PATH", ":.", 1);
    ok(!start(), "not in a relative folder");
    if (chdir(here) < 0)
        exit(1);
    unlink(fake);
    setenv("PATH", path_before, 1);
}

static void
test_no_interpreter(void)
{
    script("#!/nowhere/at/all\n");

    ok(start(), "a program that the kernel refuses");
    attach(3000);
    UNTIL(opened.count);
    ok(opened.outcome == VF_UNKNOWN, "there is no connection");
    is_str(opened.words,
           "the monitor of qemu-storage-daemon: it was closed by the other side before "
           "qemu-storage-daemon was ready",
           "for that reason");
    vf_daemon_words(&daemon_, words);
    is_str(words, "qemu-storage-daemon cannot be started: No such file or directory",
           "the kernel's words");
    stop();
}

static void
test_refuses(void)
{
    script("#!/bin/sh\nprintf 'sorry:\\n\\tno \\033[31mfun\\n' >&2\nexit 3\n");

    ok(start(), "a daemon that has something to say");
    attach(3000);
    UNTIL(opened.count);
    ok(opened.outcome == VF_UNKNOWN, "and ends");
    UNTIL((vf_daemon_words(&daemon_, words), strstr(words, "ended")));
    is_str(words, "qemu-storage-daemon has ended with status 3 and said: sorry:  no  [31mfun",
           "its own words, fit to be shown");
    stop();
    is_int(daemon_.pid, 0, "it is reaped");
    ok(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD, "no child is left");
}

static void
test_talks_much(void)
{
    script("#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' x >&2\n: > ${0%/*}/done\nexec sleep "
           "100\n");

    ok(start(), "a daemon that talks without end");
    ok(UNTIL(exists("done")), "waits for no reader");
    vf_daemon_words(&daemon_, words);
    has_str(words, "qemu-storage-daemon said: xxxxx", "its words");
    ok(strlen(words) < VF_WORDS_SIZE && strcmp(words + strlen(words) - 3, "...") == 0,
       "as far as they fit");
    struct stat kept;

    ok(fstat(daemon_.words_fd, &kept) == 0 && kept.st_size < 100000, "and no more is kept");
    stop();
}

static void
test_never_greets(void)
{
    script("#!/bin/sh\nexec sleep 100\n");
    int other = open("/dev/null", O_RDONLY | O_CLOEXEC);

    ok(start(), "a daemon that is silent");
    attach(80);
    is_int(opened.count, 0, "nothing is said inside the call");
    UNTIL(opened.count);
    is_str(opened.words, "the monitor of qemu-storage-daemon: no greeting in 0.08 s: it hangs",
           "time is up");
    vf_daemon_words(&daemon_, words);
    is_str(words, "", "it had nothing to say");
    kill(daemon_.pid, SIGKILL);
    UNTIL((vf_daemon_words(&daemon_, words), words[0]));
    is_str(words, "qemu-storage-daemon was ended by signal 9 (Killed)", "how it ended");
    stop();
    ok(fcntl(other, F_GETFD) >= 0, "descriptors of ours are not touched");
    close(other);
}

/* --- What it has of ours --- */

/* This very program in the daemon's place: a file of what it has. */
static int
tell_all(char **arguments, const char *path)
{
    VF_AUTO_FREE char *made = vf_printf("%s.made", path);
    VF_AUTO_FREE char *here = getcwd(NULL, 0);
    DIR *fds = opendir("/proc/self/fd");
    mode_t mask = umask(0);
    sigset_t blocked;
    FILE *out = fopen(made, "we");

    if (!out || !fds)
        return 1;
    for (struct dirent *entry; (entry = readdir(fds));) {
        VF_AUTO_FREE char *link = vf_printf("/proc/self/fd/%s", entry->d_name);
        char target[200] = "";
        int fd = atoi(entry->d_name);

        if (entry->d_name[0] != '.' && fd != dirfd(fds) && fd != fileno(out) &&
            readlink(link, target, sizeof target - 1) > 0)
            fprintf(out, "fd %d: %s\n", fd, target);
    }
    closedir(fds);
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    for (int number = 1; number < NSIG; number++) {
        struct sigaction action = {.sa_handler = SIG_DFL};

        sigaction(number, NULL, &action);
        if (sigismember(&blocked, number) > 0 || action.sa_handler == SIG_IGN)
            fprintf(out, "signal %d\n", number);
    }
    fprintf(out, "umask %o\n", (unsigned)mask);
    fprintf(out, "locale %s %s\n", getenv("LC_ALL"), getenv("LANGUAGE") ? "de" : "");
    fprintf(out, "folder %s\n", here);
    fprintf(out, "session %d\n", getsid(0) == getpid());
    for (char **at = arguments; *at; at++)
        fprintf(out, "%s ", *at);
    if (fclose(out) != 0 || rename(made, path) < 0)
        return 1;
    for (;;)
        pause();
}

static void
test_inherits_nothing(void)
{
    VF_AUTO_FREE char *lock_path = vf_printf("%s/lock", folder);
    VF_AUTO_FREE char *out_path = vf_printf("%s/out", folder);
    /* No close-on-exec: a host program may be careless. */
    int lock = open(lock_path, O_CREAT | O_RDWR, 0600), high = fcntl(lock, F_DUPFD, 200);
    struct sigaction ignored = {.sa_handler = SIG_IGN}, normal;
    sigset_t some, before, after;
    mode_t mask = umask(0);

    sigaction(SIGINT, &ignored, &normal);
    sigemptyset(&some);
    sigaddset(&some, SIGTERM);
    sigprocmask(SIG_BLOCK, &some, &before);
    setenv("LC_ALL", "de_DE.UTF-8", 1);
    setenv("LANGUAGE", "de", 1);
    setenv(TELL, out_path, 1);
    setenv(VF_DAEMON_ENV, "/proc/self/exe", 1);
    ok(start(), "a daemon that tells what it has");
    sigprocmask(SIG_SETMASK, &before, &after);
    ok(sigismember(&after, SIGTERM) && !sigismember(&after, SIGHUP), "our mask is as before");
    sigaction(SIGINT, &normal, &ignored);
    ok(ignored.sa_handler == SIG_IGN, "and our handlers are");
    umask(mask);
    unsetenv("LC_ALL");
    unsetenv("LANGUAGE");
    unsetenv(TELL);
    ok(UNTIL(exists("out")), "it tells");
    VF_AUTO_FREE char *out = content(out_path);

    has_str(out,
            "fd 0: /dev/null\n"
            "fd 1: /memfd:vmfrost-daemon (deleted)\n"
            "fd 2: /memfd:vmfrost-daemon (deleted)\n"
            "fd 3: socket:[",
            "input, output, the monitor");
    const char *monitor = strstr(out, "fd 3: ");

    is_str(monitor ? strchr(monitor, '\n') : NULL,
           "\n"
           "umask 77\n"
           "locale C \n"
           "folder /\n"
           "session 1\n"
           "qemu-storage-daemon --chardev socket,id=m,fd=3 --monitor chardev=m ",
           "and nothing else, no signal of ours, and a session of its own");
    stop();
    close(high);
    close(lock);
}

/* The first three descriptors of a program may be closed. */
static void
test_no_standard_descriptors(void)
{
    script("#!/bin/sh\n"
           "cd ${0%/*}\n"
           "readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2 "
           "/proc/$$/fd/3 > out2\n"
           ": > done2\n"
           "exec sleep 100\n");
    int kept[3];

    fflush(stdout);
    for (int fd = 0; fd < 3; fd++) {
        kept[fd] = fcntl(fd, F_DUPFD_CLOEXEC, 50);
        close(fd);
    }
    bool started = start();

    UNTIL(exists("done2"));
    stop();
    for (int fd = 0; fd < 3; fd++) {
        dup2(kept[fd], fd);
        close(kept[fd]);
    }
    VF_AUTO_FREE char *out_path = vf_printf("%s/out2", folder);
    VF_AUTO_FREE char *out = content(out_path);

    ok(started, "started by a program without input and output");
    has_str(out, "/dev/null\n", "its input");
    has_str(out, "\n/memfd:vmfrost-daemon (deleted)\nsocket:[", "its errors and its monitor");
}

/* --- The end --- */

static void
test_does_not_end(void)
{
    script("#!/bin/sh\ntrap '' TERM\n: > ${0%/*}/deaf\nexec sleep 100\n");

    ok(start(), "a daemon that is deaf to SIGTERM");
    UNTIL(exists("deaf"));
    pid_t pid = daemon_.pid;
    long long began = now_ms();

    stop();
    ok(now_ms() - began >= VF_DAEMON_STOP_MS && now_ms() - began < VF_DAEMON_STOP_MS + 2000,
       "is waited for");
    ok(kill(pid, 0) < 0 && errno == ESRCH, "and killed");
}

static void
test_reaped_by_host(void)
{
    script("#!/bin/sh\nexit 0\n");

    ok(start(), "a daemon that ends");
    ok(waitpid(daemon_.pid, NULL, 0) == daemon_.pid, "and is reaped by the host program");
    long long began = now_ms();

    stop();
    ok(now_ms() - began < 1000, "that does not disturb");
}

static bool
is_running(pid_t pid)
{
    VF_AUTO_FREE char *path = vf_printf("/proc/%d/stat", (int)pid);
    VF_AUTO_FREE char *text = content(path);
    const char *end = strrchr(text, ')');

    return end && end[2] != 'Z' && end[2] != 'X';
}

/* A process that starts the daemon and dies by SIGKILL. */
static void
test_parent_dies(const char *what)
{
    int line[2];
    pid_t daemon_pid = 0;

    if (pipe2(line, O_CLOEXEC) < 0)
        exit(1);
    pid_t child = fork();

    if (child == 0) {
        if (start() && write(line[1], &daemon_.pid, sizeof daemon_.pid) > 0)
            pause();
        _exit(1);
    }
    close(line[1]);
    ok(read(line[0], &daemon_pid, sizeof daemon_pid) == sizeof daemon_pid, "a child starts %s",
       what);
    close(line[0]);
    turn_for(200);
    ok(is_running(daemon_pid), "it runs");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    ok(UNTIL(!is_running(daemon_pid)), "and ends when its parent is killed");
}

/* --- The real one --- */

static void
test_real(void)
{
    static struct answer created, nodes, quit;

    ok(start(), "the real one: %s", error.text);
    attach(4500);
    UNTIL(opened.count);
    ok(opened.outcome == VF_OK && vf_json_object(opened.value, "version"), "greets: %s",
       opened.words);
    is_int(vf_qmp_peer_pid(qmp), daemon_.pid, "its process");
    vf_qmp_send(qmp, "query-named-block-nodes", vf_json_strings("flat", "x", NULL), on_reply,
                &created);
    vf_qmp_send(qmp, "query-named-block-nodes", NULL, on_reply, &nodes);
    UNTIL(nodes.count);
    ok(created.outcome == VF_REFUSED, "it refuses: %s", created.words);
    ok(nodes.outcome == VF_OK && json_object_is_type(nodes.value, json_type_array), "and obeys");
    vf_qmp_send(qmp, "quit", NULL, on_reply, &quit);
    UNTIL(lost);
    ok(quit.outcome == VF_OK && lost == 1, "it quits, and the loss is told");
    UNTIL((vf_daemon_words(&daemon_, words), words[0]));
    is_str(words, "qemu-storage-daemon has ended with status 0", "in peace");
    stop();
    drop_answer(&created);
    drop_answer(&nodes);
    drop_answer(&quit);

    ok(start(), "a second one: %s", error.text);
    attach(4500);
    UNTIL(opened.count);
    ok(opened.outcome == VF_OK, "greets, too: %s", opened.words);
    long long began = now_ms();

    vf_daemon_stop(&daemon_);
    ok(now_ms() - began < VF_DAEMON_STOP_MS, "SIGTERM ends it");
    ok(UNTIL(lost), "the loss is told");
    stop();
}

int
main(int count, char **arguments)
{
    if (count > 0 && strcmp(arguments[0], VF_DAEMON_NAME) == 0 && getenv(TELL))
        return tell_all(arguments, getenv(TELL));
    test_begin();
    path_before = vf_strdup(getenv("PATH"));
    test_missing();
    if (!getenv("VALGRIND")) /* which does not survive it */
        test_no_interpreter();
    test_refuses();
    test_talks_much();
    test_never_greets();
    test_inherits_nothing();
    test_no_standard_descriptors();
    test_does_not_end();
    test_reaped_by_host();
    script("#!/bin/sh\nexec sleep 100\n");
    test_parent_dies("a daemon");
    unsetenv(VF_DAEMON_ENV);
    if (system("command -v " VF_DAEMON_NAME " >/dev/null") == 0) {
        test_real();
        test_parent_dies("the real one");
    } else if (getenv("CI")) {
        ok(false, "there is no " VF_DAEMON_NAME);
    } else {
        ok(true, "the real one # SKIP there is no " VF_DAEMON_NAME);
    }
    drop_answer(&opened);
    free(path_before);
    return test_end();
}
