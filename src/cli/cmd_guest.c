/* SPDX-License-Identifier: MIT
 *
 * By hand: freeze, thaw, recover.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/format.h"
#include "cli/job.h"
#include "cli/record.h"
#include "cli/report.h"
#include "util/cleanup.h"
#include "util/json.h"

/* "  3 file systems" of the member `key`, if it is there. */
static void
print_count(struct out *out, struct json_object *document, const char *key)
{
    int64_t count;
    char text[FORMAT_SIZE];

    if (vf_json_int(document, key, &count))
        out_text(out, STYLE_PLAIN, "  %s", format_count(count, "file system", text));
}

static void
print_frozen(struct cli *cli, struct json_object *document)
{
    VF_AUTO_FREE char *words = cli_words_for(cli->vm, NULL);
    struct out *out = &cli->out;
    double limit_ms;
    char text[FORMAT_SIZE];

    out_text(out, STYLE_BOLD, "%s", cli->vm);
    out_text(out, STYLE_WARN, "  frozen");
    print_count(out, document, "frozenFilesystems");
    if (record_number(document, "limitMs", &limit_ms))
        out_text(out, STYLE_PLAIN, "  the guard thaws it in %s", format_ms(limit_ms, text));
    out_text(out, STYLE_PLAIN, "; sooner: vmfrost thaw %s\n", words);
    print_warnings(cli, out, document);
}

static enum vmfrost_code
run_freeze(struct cli *cli)
{
    struct job job;

    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_freeze(cli->context, cli->vm, cli->options.freeze_limit_ms, job_on_event,
                            job_on_done, &job);
    jobs_wait(cli, &job, 1);

    enum vmfrost_code code = job.outcome.code;

    if (code == VMFROST_OK && !cli->options.json && !cli->options.quiet)
        print_frozen(cli, job.outcome.document);
    job_report(cli, &job);
    job_release(&job);
    return code;
}

const struct command command_freeze = {
    .name = "freeze",
    .help = "freeze a guest by hand; a guard thaws it in time",
    .synopsis = "VM [OPTION]...\n"
                "--qmp PATH [OPTION]...",
    .about =
        "Freezes the guest's file systems through its agent and returns. A guard process stays\n"
        "and thaws at the limit, whatever happens. Whatever writes in the guest waits until\n"
        "then.\n",
    .examples = "  vmfrost freeze web --for 10s && take-a-storage-snapshot; vmfrost thaw web\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_VM,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_FOR, "when the guard thaws (default: the VM's frozen limit, else 30s)"},
            {0, NULL},
        },
    .run = run_freeze,
};

static void
print_thawed(struct cli *cli, struct json_object *document)
{
    struct out *out = &cli->out;
    int64_t count;

    out_text(out, STYLE_BOLD, "%s", cli->vm);
    out_text(out, STYLE_GOOD, "  thawed");
    print_count(out, document, "thawedFilesystems");
    if (vf_json_int(document, "thawedFilesystems", &count) && count == 0)
        out_raw(out, ": nothing was frozen");
    out_raw(out, "\n");
    print_warnings(cli, out, document);
}

static enum vmfrost_code
run_thaw(struct cli *cli)
{
    struct job job;

    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_thaw(cli->context, cli->vm, cli->options.thaw_wait_ms, job_on_event,
                          job_on_done, &job);
    jobs_wait(cli, &job, 1);

    enum vmfrost_code code = job.outcome.code;

    if (code == VMFROST_OK && !cli->options.json && !cli->options.quiet)
        print_thawed(cli, job.outcome.document);
    job_report(cli, &job);
    job_release(&job);
    return code;
}

const struct command command_thaw = {
    .name = "thaw",
    .help = "thaw a guest, whoever froze it",
    .synopsis = "VM [OPTION]...\n"
                "--qmp PATH [OPTION]...",
    .about = "Thaws the guest's file systems. Harmless if nothing is frozen. An agent that does\n"
             "not answer is tried again until the wait is over.\n",
    .examples = "  vmfrost thaw web\n"
                "  vmfrost thaw web --wait 10m\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_VM,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_WAIT, "how long to go on trying (default: 60s)"},
            {0, NULL},
        },
    .run = run_thaw,
};

static const char *
action_words(const char *action)
{
    static const char *const words[][2] = {
        {"none", "nothing to recover"},
        {"rolled-forward", "recovered: finished what was begun"},
        {"rolled-back", "recovered: undone what was begun"},
        {"thawed", "recovered: thawed"},
    };

    for (size_t i = 0; action && i < sizeof words / sizeof *words; i++) {
        if (strcmp(words[i][0], action) == 0)
            return words[i][1];
    }
    return action ? action : "recovered";
}

static void
print_recovered(struct cli *cli, const struct job *job)
{
    struct json_object *document = job->outcome.document;
    struct json_object *removed = vf_json_array(document, "removed");
    const char *operation = vf_json_string(document, "operation");
    const char *record = vf_json_string(document, "record");
    struct out *out = &cli->out;
    bool found = vf_json_bool(document, "found", true);

    out_text(out, STYLE_BOLD, "%s", job->vm);
    out_text(out, STYLE_PLAIN, "  %s",
             action_words(found ? vf_json_string(document, "action") : "none"));
    if (found && operation)
        out_text(out, STYLE_PLAIN, " (%s%s%s)", operation, record ? " " : "", record ? record : "");
    out_raw(out, "\n");
    for (size_t i = 0; i < vf_json_length(removed); i++) {
        const char *path = vf_json_text(vf_json_at(removed, i));

        if (path)
            out_text(out, STYLE_PLAIN, "  removed %s\n", path);
    }
    print_warnings(cli, out, document);
}

static void
start_recover(struct job *job)
{
    job->op = vmfrost_recover(job->cli->context, job->vm, job->cli->options.thaw_wait_ms,
                              job_on_event, job_on_done, job);
}

static void
tell_recovered(struct cli *cli, const struct job *job)
{
    if (job->outcome.code == VMFROST_OK && !cli->options.json && !cli->options.quiet)
        print_recovered(cli, job);
    job_report(cli, job);
}

static enum vmfrost_code
recover_all(struct cli *cli)
{
    struct job *jobs;
    size_t count;
    enum vmfrost_code worst = jobs_run_all(cli, start_recover, &jobs, &count);

    if (!jobs)
        return worst;
    for (size_t i = 0; i < count; i++)
        tell_recovered(cli, &jobs[i]);
    if (count == 0 && !cli->options.json && !cli->options.quiet)
        out_raw(&cli->out, "no VMs, nothing to recover\n");
    jobs_free(jobs, count);
    return worst;
}

static enum vmfrost_code
run_recover(struct cli *cli)
{
    struct job job;

    if (cli->vm && cli->options.all)
        return report_usage(cli, "either a VM or --all");
    if (!cli->vm && !cli->options.all)
        return report_usage(cli, "which VM? Write its name, --qmp PATH, or --all");
    if (!cli->vm)
        return recover_all(cli);
    job_init(&job, cli, cli->vm, false);
    start_recover(&job);
    jobs_wait(cli, &job, 1);
    tell_recovered(cli, &job);

    enum vmfrost_code code = job.outcome.code;

    job_release(&job);
    return code;
}

const struct command command_recover = {
    .name = "recover",
    .help = "finish or undo what an interrupted operation left",
    .synopsis = "VM [OPTION]...\n"
                "--qmp PATH [OPTION]...\n"
                "--all [OPTION]...",
    .about = "After a crash of vmfrost, of QEMU or of the host: thaws first, then finishes a\n"
             "snapshot whose cut is certain or undoes the one that is not. Every changing command\n"
             "does this by itself before it begins. Does nothing where nothing was interrupted.\n"
             "With --all the exit code is the highest of all VMs.\n",
    .examples = "  vmfrost recover web\n"
                "  vmfrost recover --all\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_VM_OR_ALL,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_ALL, "all VMs of the inventory"},
            {OPTION_WAIT, "how long to go on trying to thaw (default: 60s)"},
            {0, NULL},
        },
    .run = run_recover,
};
