/*
 * lab-killer PID PORT noreply|MS: SIGKILL the agent at an exact point.
 *
 * Started by the freeze hook, that is, while the agent waits for its hook. The
 * window of a good snapshot is a few milliseconds, too short to hit by polling
 * from outside, so the agent is traced until it answers the freeze: `noreply`
 * kills it before the answer leaves (all is frozen and nobody was told), a
 * number that many milliseconds after the answer has left. A freeze that
 * freezes nothing kills nobody.
 *
 * Returns as soon as it traces; the rest happens in the background.
 */
#include "lab.h"

#include <linux/fs.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

static int
is_port(pid_t pid, uint64_t fd, const char *port)
{
    char path[64], target[256];
    snprintf(path, sizeof path, "/proc/%d/fd/%llu", pid, (unsigned long long)fd);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length < 0)
        return 0;
    target[length] = '\0';
    return !strcmp(target, port);
}

/* Follow the agent's system calls until its answer is about to leave, or has
 * left. 0 when the agent is gone or has frozen nothing. */
static int
follow(pid_t pid, const char *port, int before)
{
    int freezing = 0, frozen = 0, answering = 0, status;
    while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
        struct __ptrace_syscall_info info;
        int deliver = 0;
        if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
            /* A signal for the agent, or our own interruption. */
            deliver = status >> 16 ? 0 : WSTOPSIG(status);
        } else if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) > 0) {
            if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
                freezing = info.entry.nr == SYS_ioctl && (uint32_t)info.entry.args[1] == FIFREEZE;
                answering = info.entry.nr == SYS_write && is_port(pid, info.entry.args[0], port);
                if (answering && (before || !frozen))
                    return frozen;
            } else if (info.op == PTRACE_SYSCALL_INFO_EXIT) {
                frozen |= freezing && !info.exit.is_error;
                if (answering)
                    return frozen;
            }
        }
        ptrace(PTRACE_SYSCALL, pid, 0, deliver);
    }
    return 0;
}

int
main(int argc, char **argv)
{
    if (argc != 4)
        die("usage: lab-killer PID PORT noreply|MS");
    pid_t pid = atoi(argv[1]);
    int before = !strcmp(argv[3], "noreply");
    int ready[2];
    char byte;
    if (pid <= 0 || pipe(ready))
        die("lab-killer: no agent");
    if (fork() > 0) {
        close(ready[1]);
        return read(ready[0], &byte, 1) != 1;
    }
    detach();
    if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD) || ptrace(PTRACE_INTERRUPT, pid, 0, 0))
        _exit(1);
    if (write(ready[1], "", 1) != 1)
        _exit(1);
    close(ready[0]);
    close(ready[1]);
    int hit = follow(pid, argv[2], before);
    uint64_t ms = before ? 0 : strtoull(argv[3], NULL, 10);
    if (!hit || ms)
        ptrace(PTRACE_DETACH, pid, 0, 0);
    if (hit) {
        pause_us(ms * 1000);
        kill(pid, SIGKILL);
    }
    return 0;
}
