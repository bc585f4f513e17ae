/*
 * lab-shell PORT: the control shell, and the guest's process 1.
 *
 * The host writes one line per command on a virtio-serial port:
 *
 *     TOKEN MILLISECONDS COMMAND-IN-HEX TOKEN \n
 *
 * and gets back `TOKEN STATUS LENGTH\n` and LENGTH bytes of output. STATUS is
 * the exit status, 128 + signal, or `timeout`. The token, random and twice in
 * the line, tells a whole command from the rest of one whose sender died, and
 * an answer from one that an earlier sender did not fetch.
 *
 * A command stuck on a frozen file system sleeps where no signal reaches it.
 * So it is never waited for beyond its limit: it is killed, which takes effect
 * whenever the file system thaws, and reaped later.
 */
#include "lab.h"

#include <ctype.h>
#include <poll.h>
#include <sys/pidfd.h>

enum { LINE_MAX_BYTES = 256 * 1024, OUTPUT_MAX_BYTES = 4 * 1024 * 1024, TOKEN_MAX = 64 };

static int port = -1;

static void
reap(void)
{
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
}

/* Send everything, unless the host goes away first. */
static void
answer(const char *data, size_t size)
{
    while (size > 0) {
        struct pollfd ready = {.fd = port, .events = POLLOUT};
        if (poll(&ready, 1, -1) < 0 && errno != EINTR)
            return;
        if (ready.revents & (POLLHUP | POLLERR))
            return;
        ssize_t done = write(port, data, size);
        if (done < 0 && errno != EAGAIN && errno != EINTR)
            return;
        if (done > 0) {
            data += done;
            size -= (size_t)done;
        }
    }
}

/* Run the command; its status as a word. Its output goes to a memory file, so
 * that something left in the background cannot hold up the answer. */
static void
execute(const char *command, int limit_ms, int output, char *status, size_t room)
{
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        int null = open("/dev/null", O_RDONLY);
        dup2(null, 0);
        dup2(output, 1);
        dup2(output, 2);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    int handle = pid < 0 ? -1 : pidfd_open(pid, 0);
    if (handle < 0) {
        snprintf(status, room, "126");
        return;
    }
    struct pollfd gone = {.fd = handle, .events = POLLIN};
    int code;
    if (poll(&gone, 1, limit_ms) == 1 && waitpid(pid, &code, 0) == pid) {
        snprintf(status, room, "%d", WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code));
    } else {
        kill(-pid, SIGKILL);
        snprintf(status, room, "timeout");
    }
    close(handle);
}

static void
serve(const char *token, int limit_ms, const char *command)
{
    char status[16], head[TOKEN_MAX + 64];
    int output = memfd_create("output", MFD_CLOEXEC);
    if (output < 0)
        return;
    execute(command, limit_ms, output, status, sizeof status);
    off_t size = lseek(output, 0, SEEK_END);
    if (size < 0 || size > OUTPUT_MAX_BYTES)
        size = OUTPUT_MAX_BYTES;
    char *text = malloc((size_t)size + 1);
    ssize_t got = text ? pread(output, text, (size_t)size, 0) : 0;
    if (got < 0)
        got = 0;
    int length = snprintf(head, sizeof head, "\n%s %s %zd\n", token, status, got);
    answer(head, (size_t)length);
    answer(text, (size_t)got);
    free(text);
    close(output);
}

/* Turn hexadecimal digits into the bytes they stand for, in place. */
static int
unhex(char *text)
{
    char *out = text;
    for (const char *in = text; *in; in += 2) {
        unsigned value;
        if (!isxdigit((unsigned char)in[0]) || !isxdigit((unsigned char)in[1]))
            return -1;
        sscanf(in, "%2x", &value);
        *out++ = (char)value;
    }
    *out = '\0';
    return 0;
}

static void
line_done(char *line)
{
    char *save = NULL;
    char *token = strtok_r(line, " ", &save);
    char *limit = strtok_r(NULL, " ", &save);
    char *command = strtok_r(NULL, " ", &save);
    char *again = strtok_r(NULL, " ", &save);
    if (!again || strcmp(token, again) || strlen(token) > TOKEN_MAX || unhex(command))
        return;
    serve(token, atoi(limit), command);
}

static int
read_port(char *line, size_t *used)
{
    ssize_t got = read(port, line + *used, LINE_MAX_BYTES - *used);
    if (got <= 0)
        return got == 0 || (errno != EAGAIN && errno != EINTR) ? -1 : 0;
    *used += (size_t)got;
    char *start = line, *end;
    while ((end = memchr(start, '\n', *used - (size_t)(start - line)))) {
        *end = '\0';
        line_done(start);
        start = end + 1;
    }
    *used -= (size_t)(start - line);
    memmove(line, start, *used);
    if (*used == LINE_MAX_BYTES)
        *used = 0;
    return 0;
}

int
main(int argc, char **argv)
{
    static char line[LINE_MAX_BYTES];
    size_t used = 0;

    signal(SIGPIPE, SIG_IGN);
    if (argc > 1)
        port = open(argv[1], O_RDWR | O_NONBLOCK | O_CLOEXEC);
    for (;;) {
        /* Without a port, poll() only sleeps: process 1 must not end. */
        struct pollfd ready = {.fd = port, .events = POLLIN};
        poll(&ready, 1, 1000);
        if (ready.revents & POLLHUP || (ready.revents & POLLIN && read_port(line, &used))) {
            /* Nobody is there: poll() would return at once for ever. */
            used = 0;
            pause_us(20000);
        }
        reap();
    }
}
