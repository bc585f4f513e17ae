/* SPDX-License-Identifier: MIT
 *
 * export.
 */
#include "cli/cli.h"
#include "cli/files.h"
#include "cli/job.h"

static enum vmfrost_code
run_export(struct cli *cli)
{
    struct job job;

    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_export(cli->context, cli->vm, cli->snapshot, cli->dest, &cli->options.export,
                            job_on_event, job_on_done, &job);
    return files_finish(cli, &job, "exported");
}

const struct command command_export = {
    .name = "export",
    .help = "copy a snapshot's disks to files that stand alone",
    .synopsis = "VM@NAME DEST [OPTION]...\n"
                "--qmp PATH [@]NAME DEST [OPTION]...",
    .about =
        "Copies the disks of a snapshot, while the VM runs or not, to files that need no other\n"
        "image, and writes the checksum of each beside it, for sha256sum -c. DEST is the file for\n"
        "one disk, else a folder, in which each disk becomes NAME.qcow2 or NAME.raw; with a slash\n"
        "at its end it is made. Nothing that is there is ever replaced, and a file has its name\n"
        "only when it is whole.\n"
        "\n"
        "Other snapshots can be taken meanwhile; deleting one whose image is being read is\n"
        "refused.\n",
    .examples = "  vmfrost export web@nightly /backup/web.qcow2\n"
                "  vmfrost export web@nightly /backup/web-nightly/ --compress\n"
                "  vmfrost export web@nightly /dev/shm/data.raw --disk data --format raw\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_SNAPSHOT_TO,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_FORMAT, "of the files (default: qcow2)"},
            {OPTION_DISK, "only this one"},
            {OPTION_COMPRESS, "compress what is in a qcow2 file: smaller, and slower"},
            {0, NULL},
        },
    .run = run_export,
};
