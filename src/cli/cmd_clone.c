/* SPDX-License-Identifier: MIT
 *
 * clone.
 */
#include "cli/cli.h"
#include "cli/files.h"
#include "cli/job.h"

static enum vmfrost_code
run_clone(struct cli *cli)
{
    struct job job;

    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_clone(cli->context, cli->vm, cli->snapshot, cli->dest, &cli->options.clone,
                           job_on_event, job_on_done, &job);
    return files_finish(cli, &job, "cloned");
}

const struct command command_clone = {
    .name = "clone",
    .help = "make a disk for another VM that begins as a snapshot",
    .synopsis = "VM@NAME DEST [OPTION]...\n"
                "--qmp PATH [@]NAME DEST [OPTION]...",
    .about =
        "Makes a new qcow2 file on each disk's image of a snapshot, at once, whatever their size:\n"
        "a VM that starts with it begins with the snapshot's state, and what it writes goes into\n"
        "its own file. DEST is the file for one disk, else a folder, in which each disk becomes\n"
        "NAME.qcow2; with a slash at its end it is made. Nothing that is there is ever replaced.\n"
        "\n"
        "The clone needs the snapshot, which cannot be deleted before the clone is removed or\n"
        "stands alone (qemu-img rebase -b '' DEST).\n",
    .examples = "  vmfrost clone web@before-upgrade /vms/try.qcow2\n"
                "  vmfrost clone web@before-upgrade /vms/try/\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_SNAPSHOT_TO,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_DISK, "only this one"},
            {0, NULL},
        },
    .run = run_clone,
};
