/* SPDX-License-Identifier: MIT
 *
 * snapshot and delete.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/format.h"
#include "cli/job.h"
#include "cli/prune.h"
#include "cli/record.h"
#include "cli/report.h"
#include "cli/target.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

/* Only after a snapshot that is all that was asked for. It was taken, whatever becomes of others:
 * the code says so. */
static enum vmfrost_code
prune_after(struct cli *cli, const struct job *job)
{
    enum vmfrost_code code = prune_vm(cli, job->vm, &cli->options.prune, true,
                                      vf_json_string(job->outcome.document, "name"));

    return code == VMFROST_OK || code == VMFROST_MAY_BE_FROZEN ? code : CLI_NOT_PRUNED;
}

static enum vmfrost_code
end_snapshot(struct cli *cli, const struct job *job)
{
    enum vmfrost_code code = job->outcome.code;

    if (!cli->options.json && !cli->options.quiet)
        record_print_summary(cli, job->outcome.document);
    job_report(cli, job);
    if (code == VMFROST_OK && cli->options.prune.keep_last)
        code = prune_after(cli, job);
    return code;
}

static enum vmfrost_code
snapshot_several(struct cli *cli, const char *const *vms, size_t count)
{
    struct job *jobs = vf_alloc(count * sizeof *jobs);
    struct vmfrost_op **ops = vf_alloc(count * sizeof(struct vmfrost_op *));
    void **data = vf_alloc(count * sizeof(void *));
    enum vmfrost_code worst = VMFROST_OK;

    jobs_make_room(count);
    for (size_t i = 0; i < count; i++) {
        job_init(&jobs[i], cli, vms[i], true);
        data[i] = &jobs[i];
    }
    vmfrost_snapshot_group(cli->context, vms, count, &cli->options.snapshot, job_on_event,
                           job_on_done, data, ops);
    for (size_t i = 0; i < count; i++)
        jobs[i].op = ops[i];
    jobs_wait(cli, jobs, count);
    for (size_t i = 0; i < count; i++) {
        enum vmfrost_code code = end_snapshot(cli, &jobs[i]);

        worst = code > worst ? code : worst;
    }
    jobs_free(jobs, count);
    free(data);
    free(ops);
    return worst;
}

static enum vmfrost_code
snapshot_all(struct cli *cli)
{
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_JSON struct json_object *vms = NULL;
    VF_AUTO_FREE const char **names = NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};
    size_t count = 0;

    if (vmfrost_vms(cli->context, &text, &error) != VMFROST_OK)
        return report_error(cli, &error);
    vms = vf_json_parse(text, strlen(text), 16);
    for (size_t i = 0; i < vf_json_length(vms); i++) {
        const char *name = vf_json_string(vf_json_at(vms, i), "name");

        if (!name || target_is_path(name)) /* which is in no inventory */
            continue;
        VF_GROW(names, count);
        names[count++] = name;
    }
    if (count == 0)
        return report_failure(cli, VMFROST_FAILED, "see `vmfrost help add`",
                              "there are no VMs in the inventory");
    return snapshot_several(cli, names, count);
}

static enum vmfrost_code
run_snapshot(struct cli *cli)
{
    struct vmfrost_snapshot_options *options = &cli->options.snapshot;
    struct job job;

    options->name = cli->snapshot;
    options->exclude = cli->options.exclude;
    options->exclude_count = cli->options.exclude_count;
    options->include = cli->options.include;
    options->include_count = cli->options.include_count;
    if (cli->options.all)
        return snapshot_all(cli);
    if (cli->vm_count)
        return snapshot_several(cli, (const char *const *)cli->vms, cli->vm_count);
    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_snapshot(cli->context, cli->vm, options, job_on_event, job_on_done, &job);
    jobs_wait(cli, &job, 1);

    enum vmfrost_code code = end_snapshot(cli, &job);

    job_release(&job);
    return code;
}

const struct command command_snapshot = {
    .name = "snapshot",
    .help = "take a snapshot of a VM, or of several at one instant",
    .synopsis = "VM[@NAME] [OPTION]...\n"
                "VM VM... [@NAME] [OPTION]...\n"
                "--all [@NAME] [OPTION]...\n"
                "--qmp PATH [[@]NAME] [OPTION]...",
    .about =
        "Freezes the guest's file systems through its agent, cuts all eligible disks at one\n"
        "instant, and thaws. Without an agent it takes a crash-consistent snapshot and says so.\n"
        "Without a NAME it is called by the time, as in 20260131T235959Z. VM is a name of the\n"
        "inventory, or a path with a slash in it.\n"
        "\n"
        "Several VMs get their snapshots as one group: all are frozen, then all are cut, then all\n"
        "are thawed; all of them have the snapshot, or none. Options count for each of them.\n"
        "\n"
        "Whatever happens, the guest is thawed: at the frozen limit, at the deadline, on Ctrl-C,\n"
        "and, by the guard process that stands by, when vmfrost itself is killed.\n",
    .examples = "  vmfrost snapshot web\n"
                "  vmfrost snapshot web@before-upgrade --quiesce require\n"
                "  vmfrost snapshot db@nightly --deadline 2m --exclude scratch\n"
                "  vmfrost snapshot web db cache @before\n"
                "  vmfrost snapshot --qmp /run/web.qmp @before --json\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_VMS_SNAPSHOT,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_ALL, "all VMs of the inventory, as one group"},
            {OPTION_DEADLINE, "give up and roll back after this long (default: the VM's setting, "
                              "else 5m)"},
            {OPTION_FROZEN_LIMIT, "how long the guest may be frozen before the cut (default: the "
                                  "VM's setting, else 30s; 8s for Windows guests)"},
            {OPTION_THAW_WAIT, "how long to stay for a thaw that is not confirmed; the guard goes "
                               "on alone after that (default: 60s)"},
            {OPTION_QUIESCE, "auto: an agent that is there must freeze; require: no agent is an "
                             "error; prefer: a failed freeze falls back to crash-consistent; skip: "
                             "never freeze (default: the VM's setting, else auto)"},
            {OPTION_EXCLUDE, "a disk to leave out; may be given several times"},
            {OPTION_INCLUDE, "a disk to take along that was plugged in while the VM was running; "
                             "may be given several times (default: those that `vmfrost disk` calls "
                             "persistent)"},
            {OPTION_METHOD, "how the disks are cut (default: the VM's setting, else existing)"},
            {OPTION_FLUSH, "how the guest's caches are flushed before the freeze: auto (by sync, "
                           "if its agent may run commands), off, or a command for its shell "
                           "(default: the VM's setting, else auto)"},
            {OPTION_FREEZE, "the guest's file systems to freeze: cut (those on disks that are not "
                            "left out), all, or mount points; -/MOUNT leaves one out (default: the "
                            "VM's setting, else cut)"},
            {OPTION_NO_PRIME, "send the cut to QEMU when the guest is frozen, not all but its last "
                              "byte before (default: the VM's setting prime)"},
            {OPTION_KEEP_LAST, "after a success, keep the newest N snapshots of the VM and delete "
                               "the others, as `vmfrost prune` does"},
            {0, NULL},
        },
    .run = run_snapshot,
};

static void
print_deleted(struct cli *cli, const struct job *job)
{
    struct out *out = &cli->out;
    struct json_object *document = job->outcome.document;
    struct json_object *removed = vf_json_array(document, "removed");
    int64_t merged;
    char size[FORMAT_SIZE];

    out_text(out, STYLE_BOLD, "%s@%s", cli->vm, cli->snapshot);
    out_raw(out, "  deleted");
    if (vf_json_int(document, "mergedBytes", &merged) && merged > 0)
        out_text(out, STYLE_PLAIN, "  %s merged", format_size(merged, size));
    out_raw(out, "\n");
    for (size_t i = 0; i < vf_json_length(removed); i++) {
        const char *path = vf_json_text(vf_json_at(removed, i));

        if (path)
            out_text(out, STYLE_PLAIN, "  removed %s\n", path);
    }
    print_warnings(cli, out, document);
}

static enum vmfrost_code
run_delete(struct cli *cli)
{
    struct job job;

    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_delete(cli->context, cli->vm, cli->snapshot, job_on_event, job_on_done, &job);
    jobs_wait(cli, &job, 1);

    enum vmfrost_code code = job.outcome.code;

    if (code == VMFROST_OK && !cli->options.json && !cli->options.quiet)
        print_deleted(cli, &job);
    job_report(cli, &job);
    job_release(&job);
    return code;
}

const struct command command_delete = {
    .name = "delete",
    .help = "delete a snapshot: merge its disks, remove its files",
    .synopsis = "VM@NAME [OPTION]...\n"
                "--qmp PATH [@]NAME [OPTION]...",
    .about =
        "Deletes any snapshot of a VM, running or not. Each of its images is joined with what\n"
        "builds on it, in the direction that copies less; the other snapshots and the present\n"
        "state stay what they are, under their own names, throughout. A deletion that was\n"
        "interrupted is finished by deleting again, or by `vmfrost recover`. The record of a\n"
        "failed snapshot without content goes at once.\n",
    .examples = "  vmfrost delete web@before-upgrade\n"
                "  vmfrost delete --qmp /run/web.qmp before\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_SNAPSHOT,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {0, NULL},
        },
    .run = run_delete,
};
