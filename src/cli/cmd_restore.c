/* SPDX-License-Identifier: MIT
 *
 * restore.
 */
#include "cli/cli.h"
#include "cli/job.h"
#include "cli/record.h"
#include "cli/report.h"
#include "util/cleanup.h"
#include "util/json.h"

static void
print_restored(struct cli *cli, const struct job *job)
{
    struct out *out = &cli->out;
    struct json_object *document = job->outcome.document;
    struct json_object *disks = vf_json_array(document, "disks");
    const char *kept = vf_json_string(document, "kept");

    out_text(out, STYLE_BOLD, "%s@%s", cli->vm, cli->snapshot);
    out_raw(out, vf_json_bool(document, "online", false) ? "  restored, the VM was reset\n"
                                                         : "  restored\n");
    if (kept) {
        VF_AUTO_FREE char *words = cli_words_for(cli->vm, kept);

        out_text(out, STYLE_PLAIN, "  the state before is kept: vmfrost restore %s\n", words);
    }
    for (size_t i = 0;
         vf_json_bool(document, "launcherMustChange", false) && i < vf_json_length(disks); i++) {
        const char *name = vf_json_string(vf_json_at(disks, i), "name");
        const char *current = vf_json_string(vf_json_at(disks, i), "current");

        if (name && current)
            out_text(out, STYLE_WARN, "  start disk %s with %s, in format qcow2\n", name, current);
    }
    print_warnings(cli, out, document);
}

static enum vmfrost_code
run_restore(struct cli *cli)
{
    struct vmfrost_restore_options *options = &cli->options.restore;
    struct job job;

    options->deadline_ms = cli->options.snapshot.deadline_ms;
    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_restore(cli->context, cli->vm, cli->snapshot, options, job_on_event,
                             job_on_done, &job);
    jobs_wait(cli, &job, 1);

    enum vmfrost_code code = job.outcome.code;

    if (code == VMFROST_OK && !cli->options.json && !cli->options.quiet)
        print_restored(cli, &job);
    job_report(cli, &job);
    job_release(&job);
    return code;
}

const struct command command_restore = {
    .name = "restore",
    .help = "put a VM's disks back to a snapshot",
    .synopsis = "VM@NAME [OPTION]...\n"
                "--qmp PATH [@]NAME [OPTION]...",
    .about =
        "Puts all disks of a snapshot back to it, or none. The snapshot stays and can be restored\n"
        "again; the present state is kept as a snapshot of its own, unless --discard throws it\n"
        "away. Stop the VM before, or have it restored in place and reset with --reset: its guest\n"
        "then begins anew, as after pressing the reset button.\n"
        "\n"
        "Whatever is killed in the middle, the VM's own command line starts all disks of the one\n"
        "state or all of the other.\n",
    .examples = "  vmfrost restore web@before-upgrade\n"
                "  vmfrost restore web@before-upgrade --reset --keep-name broken\n"
                "  vmfrost restore --qmp /run/web.qmp @clean --reset --discard\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_SNAPSHOT,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_RESET, "restore a running VM in place, and reset it"},
            {OPTION_DISCARD, "do not keep the present state"},
            {OPTION_KEEP_NAME, "what the snapshot is called that keeps the present state (default: "
                               "before-restore- and the time)"},
            {OPTION_DEADLINE, "leave all as it is if it is not ready after this long (default: the "
                              "VM's setting, else 5m)"},
            {0, NULL},
        },
    .run = run_restore,
};
