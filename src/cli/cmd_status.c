/* SPDX-License-Identifier: MIT
 *
 * status and check.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/job.h"
#include "cli/report.h"
#include "cli/vm_view.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

static enum vmfrost_code
status_of_one(struct cli *cli)
{
    struct job job;

    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_status(cli->context, cli->vm, job_on_done, &job);
    jobs_wait(cli, &job, 1);

    enum vmfrost_code code = job_end_reading(cli, &job);

    if (code == VMFROST_OK && !cli->options.json)
        view_status(cli, job.outcome.document);
    job_release(&job);
    return code;
}

/* What one VM answered, or why it did not. */
static struct json_object *
status_json(const struct job *job)
{
    const struct outcome *outcome = &job->outcome;

    if (outcome->code == VMFROST_OK)
        return json_object_get(outcome->document);
    struct json_object *document = vf_json_strings("vm", job->vm, NULL);

    vf_json_add(document, "error", report_error_json(outcome->code, outcome->text, outcome->next));
    return document;
}

static void
start_status(struct job *job)
{
    job->op = vmfrost_status(job->cli->context, job->vm, job_on_done, job);
}

static enum vmfrost_code
status_of_all(struct cli *cli)
{
    struct job *jobs;
    size_t count;
    enum vmfrost_code worst = jobs_run_all(cli, start_status, &jobs, &count);

    if (!jobs)
        return worst;
    if (cli->options.json) {
        VF_AUTO_JSON struct json_object *array = vf_json_new_array();

        for (size_t i = 0; i < count; i++)
            vf_json_append(array, status_json(&jobs[i]));
        report_json(cli, array);
    } else if (count == 0) {
        out_raw(&cli->out, "no VMs yet: vmfrost discover shows the running ones, "
                           "vmfrost add NAME --qmp PATH remembers one\n");
    } else {
        view_statuses(cli, jobs, count);
    }
    jobs_free(jobs, count);
    return worst;
}

static enum vmfrost_code
run_status(struct cli *cli)
{
    return cli->vm ? status_of_one(cli) : status_of_all(cli);
}

const struct command command_status = {
    .name = "status",
    .help = "run state, agent, disks and snapshots of a VM, or of all",
    .synopsis = "[VM | --qmp PATH] [OPTION]...",
    .about =
        "For one VM: whether it runs, whether its guest agent is connected, each disk with "
        "whether\n"
        "a snapshot would include it and why not, its snapshots, warnings, and what was\n"
        "interrupted or is going on. A VM that is not running is no error. Without a VM: one line\n"
        "for each VM of the inventory.\n",
    .examples = "  vmfrost status\n"
                "  vmfrost status web\n"
                "  vmfrost status --qmp /run/web.qmp --json\n",
    .kind = COMMAND_READS,
    .target = TARGET_VM_OR_ALL,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {0, NULL},
        },
    .run = run_status,
};

static enum vmfrost_code
run_check(struct cli *cli)
{
    struct job job;

    cli->options.snapshot.name = cli->snapshot;
    cli->options.snapshot.exclude = cli->options.exclude;
    cli->options.snapshot.exclude_count = cli->options.exclude_count;
    cli->options.snapshot.include = cli->options.include;
    cli->options.snapshot.include_count = cli->options.include_count;
    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_check(cli->context, cli->vm, &cli->options.snapshot, job_on_event, job_on_done,
                           &job);
    jobs_wait(cli, &job, 1);

    enum vmfrost_code code = job.outcome.code;

    if (!cli->options.json && !cli->options.quiet && vf_json_string(job.outcome.document, "vm"))
        view_check(cli, job.outcome.document, code == VMFROST_OK);
    job_report(cli, &job);
    job_release(&job);
    return code;
}

const struct command command_check = {
    .name = "check",
    .help = "would a snapshot work? changes nothing",
    .synopsis = "VM[@NAME] [OPTION]...\n"
                "--qmp PATH [[@]NAME] [OPTION]...",
    .about = "Does everything that a snapshot does up to the freeze, and changes nothing: which\n"
             "disks would be in it, whether the guest agent answers, what would be in the way.\n"
             "Exit code 0 means that a snapshot would be attempted with good prospects.\n",
    .examples = "  vmfrost check web\n"
                "  vmfrost check web --quiesce require && vmfrost snapshot web --quiesce require\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_VM_SNAPSHOT,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_QUIESCE, "as for snapshot (default: the VM's setting, else auto)"},
            {OPTION_EXCLUDE, "a disk to leave out; may be given several times"},
            {OPTION_INCLUDE, "a hotplugged disk to take along; may be given several times"},
            {OPTION_METHOD, "as for snapshot (default: the VM's setting, else existing)"},
            {OPTION_FREEZE, "as for snapshot (default: the VM's setting, else cut)"},
            {0, NULL},
        },
    .run = run_check,
};
