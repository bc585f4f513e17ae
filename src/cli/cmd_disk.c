/* SPDX-License-Identifier: MIT
 *
 * disk: which disks a VM has, and which of the hotplugged ones belong to it for good.
 */
#include <string.h>

#include "cli/cli.h"
#include "cli/format.h"
#include "cli/job.h"
#include "cli/report.h"
#include "cli/table.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

/* The disks of a VM that runs, else those that it had when it did; borrowed; NULL: nothing is
 * known. */
static struct json_object *
disks_of(struct json_object *status)
{
    struct json_object *disks = vf_json_array(status, "disks");

    return disks ? disks : vf_json_array(vf_json_object(status, "lastSeen"), "disks");
}

static struct json_object *
find(struct json_object *disks, const char *name)
{
    for (size_t i = 0; i < vf_json_length(disks); i++) {
        const char *its_name = vf_json_string(vf_json_at(disks, i), "name");

        if (its_name && strcmp(its_name, name) == 0)
            return vf_json_at(disks, i);
    }
    return NULL;
}

/* Owned by the caller. */
static char *
list_names(struct json_object *disks)
{
    char *list = vf_strdup("");

    for (size_t i = 0; i < vf_json_length(disks); i++) {
        const char *name = vf_json_string(vf_json_at(disks, i), "name");
        VF_AUTO_FREE char *before = list;

        list = vf_printf("%s%s%s", before, *before ? ", " : "", name ? name : "?");
    }
    return list;
}

static void
add_row(struct table *table, struct json_object *disk)
{
    bool eligible = vf_json_bool(disk, "eligible", false);
    const char *reason = vf_json_string(disk, "reason");
    int64_t number;
    char size[FORMAT_SIZE];

    table_maybe(table, STYLE_BOLD, vf_json_string(disk, "name"));
    table_maybe(table, STYLE_PLAIN, vf_json_string(disk, "format"));
    table_maybe(table, STYLE_PLAIN,
                vf_json_int(disk, "size", &number) ? format_size(number, size) : NULL);
    table_maybe(table, STYLE_PLAIN,
                !json_object_object_get_ex(disk, "hotplugged", NULL) ? NULL
                : vf_json_bool(disk, "hotplugged", false)            ? "while running"
                                                                     : "at the start");
    table_maybe(table, STYLE_PLAIN,
                !json_object_object_get_ex(disk, "persistent", NULL) ? NULL
                : vf_json_bool(disk, "persistent", false)            ? "yes"
                                                                     : "no");
    table_cell(table, eligible ? STYLE_GOOD : STYLE_WARN, "%s%s", eligible ? "yes" : "no: ",
               eligible ? ""
               : reason ? reason
                        : "?");
    table_maybe(table, STYLE_PLAIN, vf_json_string(disk, "message"));
}

static void
show(struct cli *cli, struct json_object *status)
{
    struct json_object *disks = disks_of(status);
    struct json_object *only = cli->disk ? find(disks, cli->disk) : NULL;

    if (cli->options.json) {
        VF_AUTO_JSON struct json_object *document =
            vf_json_strings("vm", vf_json_string(status, "vm"), NULL);
        struct json_object *array = vf_json_new_array();

        for (size_t i = 0; i < vf_json_length(disks); i++)
            if (!only || vf_json_at(disks, i) == only)
                vf_json_append(array, json_object_get(vf_json_at(disks, i)));
        vf_json_add_bool(document, "running", vf_json_bool(status, "running", false));
        vf_json_add(document, "disks", array);
        report_json(cli, document);
        return;
    }
    AUTO_TABLE struct table table = {.headings = {"DISK", "FORMAT", "SIZE", "PLUGGED IN",
                                                  "PERSISTENT", "SNAPSHOT", "REMARK"},
                                     .right = {[2] = true}};

    for (size_t i = 0; i < vf_json_length(disks); i++)
        if (!only || vf_json_at(disks, i) == only)
            add_row(&table, vf_json_at(disks, i));
    if (table.count == 0)
        out_raw(&cli->out, "nothing is known of its disks: it has not been seen running\n");
    table_print(&table, &cli->out);
}

/* What was typed is a disk's name, as far as that is known. */
static bool
is_known(struct cli *cli, struct json_object *disks)
{
    if (!cli->disk || !disks || find(disks, cli->disk))
        return true;
    VF_AUTO_FREE char *names = list_names(disks);

    report_failure(cli, VMFROST_USAGE, "", "%s has no disk \"%s\"; its disks are: %s", cli->vm,
                   cli->disk, *names ? names : "none at all");
    return false;
}

/* A disk that is said not to stay need not be there any more. */
static enum vmfrost_code
change(struct cli *cli)
{
    bool persistent = cli->options.persistent == PERSISTENT_YES;
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vmfrost_set_persistent(cli->context, cli->vm, cli->disk, persistent, &error) != VMFROST_OK)
        return report_error(cli, &error);
    if (cli->options.json) {
        VF_AUTO_JSON struct json_object *document =
            vf_json_strings("vm", cli->vm, "disk", cli->disk, NULL);

        vf_json_add_bool(document, "persistent", persistent);
        report_json(cli, document);
    } else if (!cli->options.quiet) {
        out_text(&cli->out, STYLE_BOLD, "%s %s", cli->vm, cli->disk);
        out_text(&cli->out, STYLE_PLAIN, "  %s\n",
                 persistent ? "persistent: it is in snapshots also when it was hotplugged"
                            : "not persistent: left out of snapshots when it was hotplugged");
    }
    return VMFROST_OK;
}

static enum vmfrost_code
run_disk(struct cli *cli)
{
    struct job job;
    enum vmfrost_code code;

    if (cli->options.persistent != PERSISTENT_ASK && !cli->disk)
        return report_usage(cli, "which disk? `vmfrost disk %s DISK --persistent yes|no`", cli->vm);
    if (cli->options.persistent == PERSISTENT_NO)
        return change(cli);
    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_status(cli->context, cli->vm, job_on_done, &job);
    jobs_wait(cli, &job, 1);
    code = job.outcome.code;
    if (code != VMFROST_OK)
        report_failure(cli, code, job.outcome.next, "%s", job.outcome.text);
    else if (!is_known(cli, disks_of(job.outcome.document)))
        code = VMFROST_USAGE;
    else if (cli->options.persistent == PERSISTENT_YES)
        code = change(cli);
    else
        show(cli, job.outcome.document);
    job_release(&job);
    return code;
}

const struct command command_disk = {
    .name = "disk",
    .help = "the disks of a VM, and which hotplugged ones belong to it",
    .synopsis = "VM [DISK] [OPTION]...\n"
                "--qmp PATH [DISK] [OPTION]...",
    .about = "Lists the disks of a VM, or one of them: whether it was there when QEMU was started\n"
             "or plugged in later, and whether a snapshot includes it. A disk that was plugged in\n"
             "later is left out, because no launcher brings it back, unless it is persistent.\n",
    .examples = "  vmfrost disk web\n"
                "  vmfrost disk web vd1 --persistent yes\n",
    .kind = COMMAND_READS,
    .target = TARGET_VM_DISK,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_PERSISTENT, "whether the disk belongs to the VM although it was hotplugged"},
            {0, NULL},
        },
    .run = run_disk,
};
