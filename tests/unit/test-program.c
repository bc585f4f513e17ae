/* SPDX-License-Identifier: MIT
 *
 * Programs that are run for what they print.
 */
#include "wire/program.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../tap.h"
#include "util/mem.h"
#include "wire/channel.h"

static struct ev_loop *loop;

struct heard {
    int calls, status;
    char *out, *words;
    size_t length;
};

static void
on_end(void *data, const struct vf_program_end *end)
{
    struct heard *heard = data;

    heard->calls++;
    heard->status = end->status;
    heard->out = vf_strdup(end->out);
    heard->length = end->out_length;
    heard->words = vf_strdup(end->words);
    ev_break(loop, EVBREAK_ONE);
}

static void
on_timeout(struct ev_loop *its_loop, ev_timer *timer, int revents)
{
    (void)timer;
    (void)revents;
    ev_break(its_loop, EVBREAK_ONE);
}

static void
run_loop(double seconds)
{
    ev_timer timer;

    ev_timer_init(&timer, on_timeout, seconds, 0);
    ev_timer_start(loop, &timer);
    ev_run(loop, 0);
    ev_timer_stop(loop, &timer);
}

static struct vf_program *
start(const char *script, struct heard *heard)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    bool missing = true;

    *heard = (struct heard){.status = -2};
    struct vf_program *program =
        vf_program_start(loop, (const char *const[]){"sh", "-c", script, NULL}, on_end, heard,
                         &missing, &error);

    if (!ok(program && !missing, "started"))
        diag("%s", error.text);
    return program;
}

static void
forget(struct heard *heard)
{
    free(heard->out);
    free(heard->words);
}

static void
test_output(void)
{
    struct heard heard;
    struct vf_program *program =
        start("echo one; echo \"  two\n\033[1mthree\" >&2; sleep 0.1; echo end; exit 3", &heard);

    ok(heard.calls == 0, "nothing is told at once");
    run_loop(10);
    is_int(heard.calls, 1, "it has ended");
    is_int(heard.status, 3, "its exit status");
    is_str(heard.out, "one\nend\n", "what it printed");
    is_str(heard.words, "  two  [1mthree", "what it complained of, fit to be shown");
    vf_program_stop(program);
    forget(&heard);

    program = start("exec >&- 2>&-; sleep 0.2", &heard);
    run_loop(10);
    is_int(heard.status, 0, "one that says nothing and stays");
    is_str(heard.words, "", "... has no words");
    vf_program_stop(program);
    forget(&heard);

    program = start("head -c 1000000 /dev/zero; echo end >&2", &heard);
    run_loop(10);
    ok(heard.status == 0 && heard.length == VF_PROGRAM_MOST, "too much is read and dropped");
    vf_program_stop(program);
    forget(&heard);

    program = start("kill -9 $$", &heard);
    run_loop(10);
    is_int(heard.status, -1, "a signal is no exit status");
    vf_program_stop(program);
    forget(&heard);
}

static void
test_surroundings(void)
{
    struct heard heard;
    sigset_t blocked, before;

    setenv("LC_ALL", "de_DE.UTF-8", 1);
    setenv("LANGUAGE", "de", 1);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    signal(SIGPIPE, SIG_IGN);
    struct vf_program *program =
        start("echo $LC_ALL-$LANGUAGE; grep -E 'SigBlk|SigIgn' /proc/$$/status | grep -c 0000000$; "
              "cat; test $(cut -d ' ' -f 6 /proc/$$/stat) = $$ && echo session",
              &heard);

    sigprocmask(SIG_SETMASK, &before, NULL);
    run_loop(10);
    has_str(heard.out, "C-\n2\nsession\n",
            "English, no signals of ours, no input, its own session");
    vf_program_stop(program);
    forget(&heard);
}

static void
test_stop(void)
{
    struct heard heard;
    struct vf_program *program = start("echo begun; exec sleep 100", &heard);

    run_loop(0.2);
    ok(vf_program_pid(program) > 0 && kill(vf_program_pid(program), 0) == 0, "it runs");
    vf_program_stop(program);
    run_loop(0.1);
    is_int(heard.calls, 0, "one that was stopped tells nothing");
    ok(waitpid(-1, NULL, WNOHANG) < 0, "and is gone");
    vf_program_stop(NULL);

    program = start("exit 7", &heard);
    usleep(200000);
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
    run_loop(10);
    ok(heard.calls == 1 && heard.status == -1, "one that somebody else has waited for");
    vf_program_stop(program);
    forget(&heard);
}

static void
test_missing(void)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    bool missing = false;

    ok(!vf_program_start(loop, (const char *const[]){"no-such-program-here", NULL}, on_end, NULL,
                         &missing, &error),
       "a program that is not there");
    ok(missing, "is missing");
    has_str(error.text, "no-such-program-here", "it is named");
    ok(!vf_program_start(loop, (const char *const[]){"/etc/passwd", NULL}, on_end, NULL, &missing,
                         &error) &&
           !missing,
       "what is no program is not missing");
}

/* A FIFO holds nothing up; what is not there is left out. Nothing of ours stays open in the child,
 * as long as it may take. */
static void
test_sync(void)
{
    struct heard heard = {0};
    struct vmfrost_error error = {.code = VMFROST_OK};
    char folder[] = "/tmp/vmfrost-program-XXXXXX", file[64], fifo[64];

    if (!mkdtemp(folder))
        return;
    snprintf(file, sizeof file, "%s/file", folder);
    snprintf(fifo, sizeof fifo, "%s/fifo", folder);
    int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int pair[2];

    ok(fd >= 0 && write(fd, "dirty", 5) == 5 && mkfifo(fifo, 0600) == 0 && pipe(pair) == 0,
       "what is to be written out");
    const char *const paths[] = {"/no/such/file", fifo, file};
    struct vf_program *program = vf_program_sync(loop, paths, 3, on_end, &heard, &error);

    ok(program && vf_program_pid(program) > 0 && heard.calls == 0, "nothing is told at once");
    close(pair[1]);
    run_loop(10);
    is_int(heard.calls, 1, "files are written out");
    if (!getenv("VALGRIND")) /* it looks for leaks in that child, where nobody frees anything */
        is_int(heard.status, 0, "... by a child of ours that has ended well");
    ok(read(pair[0], file, 1) == 0, "... and keeps nothing of ours open");
    vf_program_stop(program);
    ok(waitpid(-1, NULL, WNOHANG) < 0, "... and is gone");
    forget(&heard);
    close(pair[0]);
    close(fd);
    unlink(fifo);
    snprintf(file, sizeof file, "%s/file", folder);
    unlink(file);
    rmdir(folder);
}

int
main(void)
{
    /* Not the default loop, which would wait for all children. */
    loop = ev_loop_new(EVFLAG_AUTO);
    test_output();
    test_surroundings();
    test_stop();
    if (getenv("VALGRIND")) /* a vfork() is a fork() there, and the child's error is lost */
        diag("a program that is not there: not tried under valgrind");
    else
        test_missing();
    test_sync();
    ev_loop_destroy(loop);
    return done_testing();
}
