/*
 * lab-probe: how long do writes of the guest wait?
 *
 *     lab-probe start FOLDER [PERIOD-US]   every 2 ms a write and fdatasync
 *     lab-probe report [reset]             WRITES LONGEST-US MEAN-US
 *     lab-probe stop
 *
 * A write that is still waiting counts with what it has waited so far. The
 * clock is the guest's, which stands still while QEMU has the guest stopped.
 */
#include "lab.h"

#define STATE "/run/lab/probe"

struct state {
    _Atomic pid_t pid;
    _Atomic uint64_t writes, longest, total; /* since the last reset, in ns */
    _Atomic uint64_t began;                  /* of the write under way, or 0 */
    _Atomic int error;
};

static void
work(struct state *state, int fd, uint64_t period)
{
    char block[512] = "lab-probe";
    for (;;) {
        uint64_t began = nanoseconds(CLOCK_MONOTONIC);
        state->began = began;
        if (pwrite(fd, block, sizeof block, 0) != sizeof block || fdatasync(fd)) {
            state->error = errno;
            return;
        }
        uint64_t took = nanoseconds(CLOCK_MONOTONIC) - began;
        state->began = 0;
        state->writes++;
        state->total += took;
        if (took > state->longest)
            state->longest = took;
        pause_us(period);
    }
}

static int
start(const char *folder, uint64_t period)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/lab-probe", folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        die("%s: %s", path, strerror(errno));
    struct state *state = share(STATE, sizeof *state, 1);
    pid_t pid = fork();
    if (pid < 0)
        die("fork: %s", strerror(errno));
    if (pid == 0) {
        detach();
        work(state, fd, period);
        _exit(1);
    }
    state->pid = pid;
    return 0;
}

static int
report(struct state *state, int reset)
{
    uint64_t began = state->began;
    uint64_t writes = reset ? atomic_exchange(&state->writes, 0) : state->writes;
    uint64_t longest = reset ? atomic_exchange(&state->longest, 0) : state->longest;
    uint64_t total = reset ? atomic_exchange(&state->total, 0) : state->total;
    uint64_t waiting = began ? nanoseconds(CLOCK_MONOTONIC) - began : 0;
    if (waiting > longest)
        longest = waiting;
    printf("%llu %llu %llu\n", (unsigned long long)writes, (unsigned long long)longest / 1000,
           (unsigned long long)(writes ? total / writes / 1000 : 0));
    if (state->error)
        die("lab-probe: %s", strerror(state->error));
    return 0;
}

int
main(int argc, char **argv)
{
    if (argc >= 3 && !strcmp(argv[1], "start"))
        return start(argv[2], argc > 3 ? strtoull(argv[3], NULL, 10) : 2000);
    if (argc == 2 && !strcmp(argv[1], "stop"))
        return kill(((struct state *)share(STATE, sizeof(struct state), 0))->pid, SIGKILL) != 0;
    if (argc >= 2 && !strcmp(argv[1], "report"))
        return report(share(STATE, sizeof(struct state), 0),
                      argc == 3 && !strcmp(argv[2], "reset"));
    die("usage: lab-probe start FOLDER [PERIOD-US] | report [reset] | stop");
}
