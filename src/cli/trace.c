/* SPDX-License-Identifier: MIT
 *
 * Source: "Trace Event Format", the JSON array of complete ("X") and instant ("i") events.
 */
#include "cli/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/report.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

/* Rows of the picture. */
enum row { ROW_STEPS = 1, ROW_QEMU, ROW_AGENT, ROW_FILES, ROW_N };

static const char *const row_names[ROW_N] = {
    [ROW_STEPS] = "steps",
    [ROW_QEMU] = "QEMU",
    [ROW_AGENT] = "guest agent",
    [ROW_FILES] = "files",
};

struct request {
    char *name;
    int64_t at_us;
};

/* Replies come in the order of the requests. */
struct requests {
    struct request *all;
    size_t count, answered;
};

struct trace {
    int fd;
    int64_t begun_us;           /* all times count from here */
    int64_t accepted_us;        /* the steps' own times from there; 0: no step yet */
    struct json_object *events; /* array */
    struct requests asked[ROW_N];
    int64_t step_us; /* when the running step began */
};

static int64_t
now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

bool
trace_open(struct cli *cli)
{
    const char *path = cli->options.trace;

    if (!path)
        return true;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);

    if (fd < 0) {
        report_failure(cli, VMFROST_FAILED, "", "cannot open the trace %s: %s", path,
                       strerror(errno));
        return false;
    }
    cli->trace = vf_alloc(sizeof *cli->trace);
    cli->trace->fd = fd;
    cli->trace->begun_us = now_us();
    cli->trace->events = vf_json_new_array();
    return true;
}

/* `dur_us` < 0: an instant. */
static void
add(struct trace *trace, enum row row, const char *name, const char *detail, int64_t at_us,
    int64_t dur_us)
{
    struct json_object *event = vf_json_strings("name", name, "ph", dur_us < 0 ? "i" : "X", NULL);

    vf_json_add_int(event, "ts", at_us - trace->begun_us);
    if (dur_us >= 0)
        vf_json_add_int(event, "dur", dur_us);
    else
        vf_json_add_string(event, "s", "t");
    vf_json_add_int(event, "pid", 1);
    vf_json_add_int(event, "tid", row);
    if (detail)
        vf_json_add(event, "args", vf_json_strings("detail", detail, NULL));
    vf_json_append(trace->events, event);
}

/* The text behind `key` up to the next quote. Owned by the caller; NULL: it is not there. */
static char *
quoted_behind(const char *line, const char *key)
{
    const char *found = strstr(line, key), *end;

    if (!found)
        return NULL;
    found += strlen(key);
    end = strchr(found, '"');
    return end ? vf_printf("%.*s", (int)(end - found), found) : NULL;
}

static void
on_message(struct trace *trace, enum row row, const char *line)
{
    struct requests *asked = &trace->asked[row];
    const char *body = line + 2;

    if (line[0] == '>') {
        char *name = quoted_behind(body, "\"execute\":\"");

        if (!name)
            name = quoted_behind(body, "\"exec-oob\":\"");
        if (!name)
            return;
        VF_GROW(asked->all, asked->count);
        asked->all[asked->count++] = (struct request){name, now_us()};
        return;
    }
    VF_AUTO_FREE char *event = quoted_behind(body, "\"event\": \"");

    if (event) {
        add(trace, row, event, body, now_us(), -1);
    } else if (asked->answered < asked->count &&
               (strstr(body, "\"return\"") || strstr(body, "\"error\""))) {
        const struct request *request = &asked->all[asked->answered++];

        add(trace, row, request->name, body, request->at_us, now_us() - request->at_us);
    }
}

/* "freeze started at 12.345 ms": what is told after the frozen window has its true time. */
static void
on_step(struct trace *trace, const char *line)
{
    char name[32], state[16];
    double at_ms;

    if (sscanf(line, "%31s %15s at %lf ms", name, state, &at_ms) != 3 ||
        strcmp(state, "skipped") == 0)
        return;
    if (!trace->accepted_us)
        trace->accepted_us = now_us() - (int64_t)(at_ms * 1000);
    int64_t at_us = trace->accepted_us + (int64_t)(at_ms * 1000);

    if (strcmp(state, "started") == 0)
        trace->step_us = at_us;
    else
        add(trace, ROW_STEPS, name, state, trace->step_us, at_us - trace->step_us);
}

void
trace_line(struct trace *trace, const char *line)
{
    static const struct {
        const char *prefix;
        enum row row;
    } kinds[] = {
        {"step ", ROW_STEPS},
        {"qmp ", ROW_QEMU},
        {"qga ", ROW_AGENT},
        {"file ", ROW_FILES},
    };

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (!vf_starts_with(line, kinds[i].prefix))
            continue;
        const char *rest = line + strlen(kinds[i].prefix);

        if (kinds[i].row == ROW_STEPS)
            on_step(trace, rest);
        else if (kinds[i].row == ROW_FILES)
            add(trace, ROW_FILES, rest, NULL, now_us(), -1);
        else
            on_message(trace, kinds[i].row, rest);
        return;
    }
}

static void
name_rows(struct trace *trace)
{
    for (int row = ROW_STEPS; row < ROW_N; row++) {
        struct json_object *event = vf_json_strings("name", "thread_name", "ph", "M", NULL);

        vf_json_add_int(event, "pid", 1);
        vf_json_add_int(event, "tid", row);
        vf_json_add(event, "args", vf_json_strings("name", row_names[row], NULL));
        vf_json_append(trace->events, event);
    }
}

bool
trace_close(struct cli *cli)
{
    struct trace *trace = cli->trace;
    bool written = true;

    if (!trace)
        return true;
    name_rows(trace);
    const char *text =
        vf_json_print(trace->events, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);

    struct out out;

    out_init(&out, trace->fd);
    out_raw(&out, text);
    out_raw(&out, "\n");
    written = out_finish(&out);
    if (!written)
        report_failure(cli, VMFROST_FAILED, "", "cannot write the trace %s: %s", cli->options.trace,
                       strerror(out.error));
    out_release(&out);
    close(trace->fd);
    json_object_put(trace->events);
    for (size_t row = 0; row < ROW_N; row++) {
        for (size_t i = 0; i < trace->asked[row].count; i++)
            free(trace->asked[row].all[i].name);
        free(trace->asked[row].all);
    }
    free(VF_STEAL(cli->trace));
    return written;
}
