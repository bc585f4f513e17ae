/* SPDX-License-Identifier: MIT */
#include "cli/prune.h"

#include <stdlib.h>
#include <string.h>

#include "cli/format.h"
#include "cli/job.h"
#include "cli/record.h"
#include "cli/report.h"
#include "cli/table.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

struct pruning {
    struct cli *cli;
    const char *vm; /* as the command line has it */
    bool does_it;
    struct json_object *plan;    /* vmfrost_prune_plan() */
    struct json_object *removed; /* array of names */
    struct outcome outcome;      /* its strings are owned */
};

/*
 * The plan, for people
 */

/* "last 3, daily 2026-11-20". Owned by the caller. */
static char *
joined(struct json_object *reasons)
{
    char *text = vf_strdup("");

    for (size_t i = 0; i < vf_json_length(reasons); i++) {
        const char *reason = vf_json_text(vf_json_at(reasons, i));
        char *longer = vf_printf("%s%s%s", text, i ? ", " : "", reason ? reason : "?");

        free(text);
        text = longer;
    }
    return text;
}

static int
by_time(const void *a, const void *b)
{
    struct json_object *x = *(struct json_object *const *)a;
    struct json_object *y = *(struct json_object *const *)b;
    const char *x_time = vf_json_string(x, "time"), *y_time = vf_json_string(y, "time");

    return strcmp(x_time ? x_time : "", y_time ? y_time : "");
}

static void
add_row(struct table *table, struct json_object *entry)
{
    const char *reason = vf_json_string(entry, "reason"), *time = vf_json_string(entry, "time");
    VF_AUTO_FREE char *reasons = joined(vf_json_array(entry, "reasons"));
    double seconds;
    char age[FORMAT_SIZE];

    table_maybe(table, STYLE_BOLD, vf_json_string(entry, "name"));
    table_maybe(table, STYLE_PLAIN, time);
    if (time && parse_time(time, &seconds))
        table_cell(table, STYLE_PLAIN, "%s", format_age(time_now() - seconds, age));
    else
        table_maybe(table, STYLE_PLAIN, NULL);
    table_cell(table, reason ? STYLE_WARN : STYLE_GOOD, reason ? "remove" : "keep");
    table_cell(table, STYLE_PLAIN, "%s", reason ? reason : reasons);
}

static void
print_table(struct pruning *pruning)
{
    AUTO_TABLE struct table table = {.headings = {"NAME", "TIME", "AGE", "VERDICT", "WHY"},
                                     .right = {[2] = true},
                                     .indent = 2};
    struct json_object *lists[] = {vf_json_array(pruning->plan, "keep"),
                                   vf_json_array(pruning->plan, "remove")};
    VF_AUTO_JSON struct json_object *all = vf_json_new_array();

    for (size_t i = 0; i < 2; i++) {
        for (size_t j = 0; j < vf_json_length(lists[i]); j++)
            vf_json_append(all, json_object_get(vf_json_at(lists[i], j)));
    }
    json_object_array_sort(all, by_time);
    for (size_t i = 0; i < vf_json_length(all); i++)
        add_row(&table, vf_json_at(all, i));
    table_print(&table, &pruning->cli->out);
}

/* "web  2 to be removed, 3 kept" */
static void
print_head(struct pruning *pruning, size_t count, const char *what)
{
    struct out *out = &pruning->cli->out;
    size_t kept = vf_json_length(vf_json_array(pruning->plan, "keep"));

    out_text(out, STYLE_BOLD, "%s", pruning->vm);
    out_text(out, STYLE_PLAIN, "  %zu %s, %zu kept\n", count, what, kept);
}

static void
print_dry(struct pruning *pruning)
{
    struct cli *cli = pruning->cli;
    size_t count = vf_json_length(vf_json_array(pruning->plan, "remove"));

    print_head(pruning, count, "would be removed");
    print_table(pruning);
    if (vf_json_bool(pruning->plan, "interrupted", false))
        report_warning(cli, "an operation was interrupted or is going on: what there is may "
                            "change when it ends");
    if (count > 0 && !cli->options.quiet)
        out_raw(&cli->out, "  nothing is removed yet: to do it, add --yes\n");
}

/*
 * Doing it
 */

static void
tell_deleted(struct pruning *pruning, const struct job *job, struct json_object *entry)
{
    struct cli *cli = pruning->cli;
    const struct outcome *outcome = &job->outcome;
    const char *name = vf_json_string(entry, "name");
    char size[FORMAT_SIZE];
    int64_t merged;

    if (cli->options.json) {
        VF_AUTO_JSON struct json_object *line = job_result_json(pruning->vm, "delete", outcome);

        vf_json_add_string(line, "event", "deletion");
        vf_json_add_string(line, "name", name);
        report_json_line(cli, line);
    } else if (outcome->code == VMFROST_OK && !cli->options.quiet) {
        out_text(&cli->out, STYLE_BOLD, "%s@%s", pruning->vm, name);
        out_text(&cli->out, STYLE_PLAIN, "  deleted: %s", vf_json_string(entry, "reason"));
        if (vf_json_int(outcome->document, "mergedBytes", &merged) && merged > 0)
            out_text(&cli->out, STYLE_PLAIN, "  %s merged", format_size(merged, size));
        out_raw(&cli->out, "\n");
        print_warnings(cli, &cli->out, outcome->document);
        out_flush(&cli->out);
    }
}

static enum vmfrost_code
delete_one(struct pruning *pruning, struct json_object *entry)
{
    const char *name = vf_json_string(entry, "name");
    struct job job;

    job_init(&job, pruning->cli, pruning->vm, false);
    job.is_part = true;
    job.op =
        vmfrost_delete(pruning->cli->context, pruning->vm, name, job_on_event, job_on_done, &job);
    jobs_wait(pruning->cli, &job, 1);
    tell_deleted(pruning, &job, entry);

    enum vmfrost_code code = job_report(pruning->cli, &job);

    if (code == VMFROST_OK)
        vf_json_append(pruning->removed, vf_json_new_string(name));
    else
        outcome_set(&pruning->outcome, code, job.outcome.text, job.outcome.next);
    pruning->outcome.guest = job.outcome.guest;
    job_release(&job);
    return code;
}

static void
delete_all(struct pruning *pruning)
{
    struct cli *cli = pruning->cli;
    struct json_object *remove = vf_json_array(pruning->plan, "remove");
    size_t count = vf_json_length(remove), done = 0;

    if (cli->options.json) {
        VF_AUTO_JSON struct json_object *line = vf_json_strings("event", "plan", NULL);

        json_object_object_foreach(pruning->plan, key, value)
            vf_json_add(line, key, json_object_get(value));
        report_json_line(cli, line);
    }
    while (done < count && !cli->stopped &&
           delete_one(pruning, vf_json_at(remove, done)) == VMFROST_OK)
        done++;
    if (done < count && pruning->outcome.code == VMFROST_OK) {
        outcome_set(&pruning->outcome, VMFROST_FAILED,
                    "stopped by request before all of it was done", "");
        report_text(cli, pruning->outcome.text, "");
    }
    if (cli->options.json || cli->options.quiet)
        return;
    print_head(pruning, done, "removed");
    if (done < count)
        out_text(&cli->out, STYLE_PLAIN, "  %zu more would have been removed\n", count - done);
}

/* What was interrupted may be the deletion of one of these. */
static enum vmfrost_code
recover(struct pruning *pruning)
{
    struct job job;

    job_init(&job, pruning->cli, pruning->vm, false);
    job.is_part = true;
    job.op =
        vmfrost_recover(pruning->cli->context, pruning->vm, 0, job_on_event, job_on_done, &job);
    jobs_wait(pruning->cli, &job, 1);
    if (job.outcome.code != VMFROST_OK)
        outcome_set(&pruning->outcome, job.outcome.code, job.outcome.text, job.outcome.next);
    pruning->outcome.guest = job.outcome.guest;
    job_release(&job);
    return pruning->outcome.code;
}

/*
 * All of it
 */

static bool
has_name(struct json_object *entries, const char *name)
{
    for (size_t i = 0; i < vf_json_length(entries); i++) {
        const char *entry = vf_json_string(vf_json_at(entries, i), "name");

        if (entry && strcmp(entry, name) == 0)
            return true;
    }
    return false;
}

static enum vmfrost_code
make_plan(struct pruning *pruning, const struct vmfrost_prune_options *options, const char *taken)
{
    VF_AUTO_FREE char *text = NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};

    json_object_put(VF_STEAL(pruning->plan));
    if (vmfrost_prune_plan(pruning->cli->context, pruning->vm, options, &text, &error) !=
        VMFROST_OK)
        return outcome_set(&pruning->outcome, error.code, error.text, error.next);
    pruning->plan = vf_json_parse(text, strlen(text), 32);
    if (!vf_json_array(pruning->plan, "remove"))
        return outcome_set(&pruning->outcome, VMFROST_FAILED, "the plan cannot be read as JSON",
                           "");
    if (taken && has_name(vf_json_array(pruning->plan, "remove"), taken))
        return outcome_set(
            &pruning->outcome, VMFROST_FAILED,
            "the snapshot that was just taken would go: others have a later time",
            "has the clock been set back? `vmfrost list` shows the times; nothing is "
            "pruned");
    return VMFROST_OK;
}

static void
print_result(struct pruning *pruning)
{
    struct outcome *outcome = &pruning->outcome;

    if (pruning->plan) {
        outcome->document = json_object_get(pruning->plan);
        vf_json_add_bool(outcome->document, "dryRun", !pruning->does_it);
        vf_json_add(outcome->document, "removed", json_object_get(pruning->removed));
    }
    VF_AUTO_JSON struct json_object *line = job_result_json(pruning->vm, "prune", outcome);

    report_json_line(pruning->cli, line);
}

enum vmfrost_code
prune_vm(struct cli *cli, const char *vm, const struct vmfrost_prune_options *options, bool does_it,
         const char *taken)
{
    struct pruning pruning = {
        .cli = cli,
        .vm = vm,
        .does_it = does_it,
        .removed = vf_json_new_array(),
        .outcome = {.snapshot = VMFROST_SNAPSHOT_NONE, .guest = VMFROST_GUEST_NEVER_FROZEN},
    };

    enum vmfrost_code code = make_plan(&pruning, options, taken);

    if (code == VMFROST_OK && does_it && vf_json_bool(pruning.plan, "interrupted", false)) {
        code = recover(&pruning);
        if (code == VMFROST_OK)
            code = make_plan(&pruning, options, taken);
    }
    if (code == VMFROST_MAY_BE_FROZEN)
        report_alarm(cli, vm, pruning.outcome.text, pruning.outcome.next);
    else if (code != VMFROST_OK)
        report_text(cli, pruning.outcome.text, pruning.outcome.next);
    else if (does_it)
        delete_all(&pruning);
    else if (!cli->options.json)
        print_dry(&pruning);
    if (cli->options.json)
        print_result(&pruning);

    code = pruning.outcome.code;
    json_object_put(pruning.outcome.document);
    json_object_put(pruning.plan);
    json_object_put(pruning.removed);
    free(pruning.outcome.text);
    free(pruning.outcome.next);
    return code;
}
