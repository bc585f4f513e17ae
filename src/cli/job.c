/* SPDX-License-Identifier: MIT */
#include "cli/job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "cli/report.h"
#include "cli/signals.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

enum vmfrost_code
outcome_set(struct outcome *outcome, enum vmfrost_code code, const char *text, const char *next)
{
    free(outcome->text);
    free(outcome->next);
    outcome->code = code;
    outcome->text = vf_strdup(text);
    outcome->next = vf_strdup(next);
    return code;
}

void
job_init(struct job *job, struct cli *cli, const char *vm, bool several)
{
    const struct cli_options *options = &cli->options;

    *job = (struct job){.cli = cli, .vm = vm ? vf_strdup(vm) : NULL, .several = several};
    live_init(&job->live, &cli->err, options->verbose > 0, options->json || options->quiet,
              several);
    if (!several)
        cli->live = &job->live;
}

void
job_release(struct job *job)
{
    if (job->cli->live == &job->live)
        job->cli->live = NULL;
    live_release(&job->live);
    free(VF_STEAL(job->vm));
    free(VF_STEAL(job->outcome.text));
    free(VF_STEAL(job->outcome.next));
    json_object_put(VF_STEAL(job->outcome.document));
}

static void
add_number(struct json_object *object, const char *key, double value)
{
    char text[64];

    snprintf(text, sizeof text, "%.3f", value);
    vf_json_add_double(object, key, value, text);
}

static void
print_event(struct job *job, const struct vmfrost_event *event)
{
    VF_AUTO_JSON struct json_object *line = vf_json_strings("event", "step", "vm", job->vm, NULL);

    vf_json_add_string(line, "operation", event->operation);
    vf_json_add_string(line, "step", event->step);
    vf_json_add_string(line, "title", event->title);
    vf_json_add_string(line, "state", event->state);
    add_number(line, "elapsedMs", event->elapsed_ms);
    if (event->percent >= 0)
        add_number(line, "percent", event->percent);
    report_json_line(job->cli, line);
}

void
job_on_event(void *data, const struct vmfrost_event *event)
{
    struct job *job = data;

    if (job->cli->options.json)
        print_event(job, event);
    else
        live_event(&job->live, job->several ? job->vm : NULL, event);
}

static const char *
snapshot_word(enum vmfrost_snapshot_state state)
{
    switch (state) {
    case VMFROST_SNAPSHOT_NONE:
        return "none";
    case VMFROST_SNAPSHOT_TAKEN:
        return "taken";
    case VMFROST_SNAPSHOT_UNKNOWN:
        return "unknown";
    }
    return "unknown";
}

static const char *
guest_word(enum vmfrost_guest_state state)
{
    switch (state) {
    case VMFROST_GUEST_NEVER_FROZEN:
        return "never-frozen";
    case VMFROST_GUEST_THAWED:
        return "thawed";
    case VMFROST_GUEST_MAY_BE_FROZEN:
        return "may-be-frozen";
    }
    return "may-be-frozen";
}

struct json_object *
job_result_json(const char *vm, const char *operation, const struct outcome *outcome)
{
    struct json_object *line =
        vf_json_strings("event", "result", "vm", vm, "operation", operation, NULL);
    bool failed = outcome->code != VMFROST_OK;

    vf_json_add_int(line, "code", (int64_t)outcome->code);
    vf_json_add_string(line, "snapshot", snapshot_word(outcome->snapshot));
    vf_json_add_string(line, "guest", guest_word(outcome->guest));
    vf_json_add(line, "error",
                failed ? report_error_json(outcome->code, outcome->text, outcome->next) : NULL);
    vf_json_add(line, "document", json_object_get(outcome->document));
    return line;
}

void
job_on_done(void *data, const struct vmfrost_result *result)
{
    struct job *job = data;
    const char *json = result->json ? result->json : "";

    job->done = true;
    job->op = NULL;
    job->outcome = (struct outcome){
        .code = result->code,
        .snapshot = result->snapshot,
        .guest = result->guest,
        .text = vf_strdup(result->text ? result->text : ""),
        .next = vf_strdup(result->next ? result->next : ""),
        .document = vf_json_parse(json, strlen(json), 64),
    };
    live_pause(&job->live);
    out_flush(&job->cli->err);
    if (job->cli->options.json && job->cli->command->kind == COMMAND_OPERATES && !job->is_part) {
        VF_AUTO_JSON struct json_object *line =
            job_result_json(job->vm, job->cli->command->name, &job->outcome);

        struct json_object *document = job->outcome.document;

        /* As it came: that spares writing it anew. */
        if (document)
            json_object_set_serializer(document, json_object_userdata_to_json_string, (void *)json,
                                       NULL);
        report_json_line(job->cli, line);
        if (document)
            json_object_set_serializer(document, NULL, NULL, NULL);
    }
}

void
jobs_wait(struct cli *cli, struct job *jobs, size_t count)
{
    struct signals signals;

    struct out *outs[] = {&cli->out, &cli->err, cli->log};

    for (size_t i = 0; i < sizeof outs / sizeof *outs; i++) {
        if (outs[i])
            out_attach(outs[i], cli->loop);
    }
    signals_watch(&signals, cli, jobs, count);
    vmfrost_wait(cli->context);
    signals_leave(&signals);
    for (size_t i = 0; i < sizeof outs / sizeof *outs; i++) {
        if (outs[i])
            out_detach(outs[i]);
    }
}

/* What became of things, where the error alone leaves that open. */
static const char *
aftermath(const struct outcome *outcome)
{
    if (outcome->snapshot == VMFROST_SNAPSHOT_UNKNOWN)
        return "it is not known whether the snapshot was taken";
    switch (outcome->guest) {
    case VMFROST_GUEST_NEVER_FROZEN:
        return NULL;
    case VMFROST_GUEST_THAWED:
        return outcome->snapshot == VMFROST_SNAPSHOT_TAKEN ? "the snapshot was taken"
                                                           : "the guest is thawed";
    case VMFROST_GUEST_MAY_BE_FROZEN:
        return NULL;
    }
    return NULL;
}

enum vmfrost_code
job_report(struct cli *cli, const struct job *job)
{
    const struct outcome *outcome = &job->outcome;

    out_flush(&cli->out);
    if (outcome->code == VMFROST_MAY_BE_FROZEN) {
        report_alarm(cli, job->vm ? job->vm : "?", outcome->text, outcome->next);
    } else if (outcome->code != VMFROST_OK) {
        const char *also = aftermath(outcome);
        VF_AUTO_FREE char *text = vf_printf("%s%s%s%s", *outcome->text ? outcome->text : "failed",
                                            also ? " (" : "", also ? also : "", also ? ")" : "");

        report_text(cli, text, outcome->next);
    }
    return outcome->code;
}

enum vmfrost_code
job_end_reading(struct cli *cli, const struct job *job)
{
    const struct outcome *outcome = &job->outcome;

    if (outcome->code != VMFROST_OK)
        return report_failure(cli, outcome->code, outcome->next, "%s", outcome->text);
    if (cli->options.json)
        report_json(cli, outcome->document);
    return VMFROST_OK;
}

void
jobs_make_room(size_t count)
{
    const rlim_t wanted = 64 + 8 * count;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur >= wanted)
        return;
    /* If it cannot be had, some of them will say so. */
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
}

enum vmfrost_code
jobs_run_all(struct cli *cli, void (*start)(struct job *job), struct job **jobs_r, size_t *count_r)
{
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_JSON struct json_object *vms = NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};
    enum vmfrost_code worst = VMFROST_OK;

    *jobs_r = NULL;
    if (vmfrost_vms(cli->context, &text, &error) != VMFROST_OK)
        return report_error(cli, &error);
    vms = vf_json_parse(text, strlen(text), 16);
    size_t count = vf_json_length(vms);
    struct job *jobs = vf_alloc(count * sizeof *jobs);

    jobs_make_room(count);
    for (size_t i = 0; i < count; i++) {
        const char *name = vf_json_string(vf_json_at(vms, i), "name");

        job_init(&jobs[i], cli, name ? name : "?", true);
        start(&jobs[i]);
    }
    jobs_wait(cli, jobs, count);
    for (size_t i = 0; i < count; i++) {
        if (jobs[i].outcome.code > worst)
            worst = jobs[i].outcome.code;
    }
    *jobs_r = jobs;
    *count_r = count;
    return worst;
}

void
jobs_free(struct job *jobs, size_t count)
{
    for (size_t i = 0; i < count; i++)
        job_release(&jobs[i]);
    free(jobs);
}
