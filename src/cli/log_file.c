/* SPDX-License-Identifier: MIT */
#include "cli/log_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/live.h"
#include "cli/report.h"
#include "cli/trace.h"
#include "util/cleanup.h"
#include "util/mem.h"

/* A terminal that nobody reads must not make the log grow without end. */
static const size_t most_waiting = 1 << 20;

bool
log_open(struct cli *cli)
{
    const char *path = cli->options.log;

    if (!path)
        return true;
    /* O_NONBLOCK: opening a FIFO must not wait for its reader. */
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);

    if (fd < 0) {
        report_failure(cli, VMFROST_FAILED, "", "cannot open the log %s: %s", path,
                       strerror(errno));
        return false;
    }
    cli->log = vf_alloc(sizeof *cli->log);
    out_init(cli->log, fd);
    return true;
}

void
log_close(struct cli *cli)
{
    if (!cli->log)
        return;
    out_finish(cli->log);
    close(cli->log->fd);
    out_release(cli->log);
    free(VF_STEAL(cli->log));
}

static const char *
level_word(enum vmfrost_log_level level)
{
    switch (level) {
    case VMFROST_LOG_WARNING:
        return "warning";
    case VMFROST_LOG_INFO:
        return "info";
    case VMFROST_LOG_DEBUG:
        return "debug";
    }
    return "?";
}

/* "2026-01-31T23:59:59.123456Z 12345.678901 info LINE" */
static void
to_file(struct cli *cli, enum vmfrost_log_level level, const char *line)
{
    struct out *out = cli->log;
    struct timespec wall, monotonic;
    struct tm parts;
    char date[32];

    clock_gettime(CLOCK_REALTIME, &wall);
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    gmtime_r(&wall.tv_sec, &parts);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &parts);
    out_text(out, STYLE_PLAIN, "%s.%06ldZ %lld.%06ld %s %s\n", date, wall.tv_nsec / 1000,
             (long long)monotonic.tv_sec, monotonic.tv_nsec / 1000, level_word(level), line);
    out_flush(out);
}

static void
to_stderr(struct cli *cli, enum vmfrost_log_level level, const char *line)
{
    if (cli->err.length - cli->err.start > most_waiting)
        return;
    switch (level) {
    case VMFROST_LOG_WARNING:
        report_warning(cli, line);
        return;
    case VMFROST_LOG_INFO:
        live_pause(cli->live);
        out_text(&cli->err, STYLE_PLAIN, "info: %s\n", line);
        break;
    case VMFROST_LOG_DEBUG:
        live_pause(cli->live);
        out_text(&cli->err, STYLE_DIM, "debug: %s\n", line);
        break;
    }
    out_flush(&cli->err);
}

void
log_line(void *data, enum vmfrost_log_level level, const char *line)
{
    struct cli *cli = data;

    if (cli->trace)
        trace_line(cli->trace, line);
    if (cli->log)
        to_file(cli, level, line);
    if (cli->options.quiet)
        return;
    if (level == VMFROST_LOG_WARNING || (int)level <= cli->options.verbose)
        to_stderr(cli, level, line);
}
