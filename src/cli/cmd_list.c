/* SPDX-License-Identifier: MIT
 *
 * list and show: what the records say.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/record.h"
#include "cli/report.h"
#include "util/cleanup.h"
#include "util/json.h"

/* The records have no depth of their own, but their texts come from outside. */
enum { DEPTH = 32 };

static enum vmfrost_code
unreadable(struct cli *cli)
{
    return report_failure(cli, VMFROST_FAILED, "", "the records cannot be read as JSON");
}

static void
print_none(struct cli *cli)
{
    VF_AUTO_FREE char *words = cli->vm ? cli_words_for(cli->vm, NULL) : NULL;

    if (words)
        out_text(&cli->out, STYLE_PLAIN, "no snapshots yet: vmfrost snapshot %s\n", words);
    else
        out_raw(&cli->out, "no snapshots yet: vmfrost snapshot VM\n");
}

static enum vmfrost_code
run_list(struct cli *cli)
{
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_JSON struct json_object *records = NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vmfrost_list(cli->context, cli->vm, &text, &error) != VMFROST_OK)
        return report_error(cli, &error);
    records = vf_json_parse(text, strlen(text), DEPTH);
    if (!json_object_is_type(records, json_type_array))
        return unreadable(cli);
    if (cli->options.json)
        report_json(cli, records);
    else if (vf_json_length(records) == 0)
        print_none(cli);
    else
        record_print_table(cli, records);
    return VMFROST_OK;
}

const struct command command_list = {
    .name = "list",
    .help = "the snapshots of a VM, or of all",
    .synopsis = "[VM | --qmp PATH] [OPTION]...",
    .about =
        "A table of snapshots, oldest first: how good each one is, its age, its disks, and\n"
        "for how long the guest was frozen for it. Where a restore has made them branch, each\n"
        "stands below the one that it builds on; the one that the present state builds on is\n"
        "marked. With --json, an array of records, oldest first, with \"parent\" and "
        "\"current\".\n",
    .examples = "  vmfrost list\n"
                "  vmfrost list web --json | jq -r '.[] | select(.readyToUse) | .name'\n",
    .kind = COMMAND_READS,
    .target = TARGET_VM_OR_ALL,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {0, NULL},
        },
    .run = run_list,
};

static enum vmfrost_code
run_show(struct cli *cli)
{
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_JSON struct json_object *record = NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vmfrost_show(cli->context, cli->vm, cli->snapshot, &text, &error) != VMFROST_OK)
        return report_error(cli, &error);
    record = vf_json_parse(text, strlen(text), DEPTH);
    if (!json_object_is_type(record, json_type_object))
        return unreadable(cli);
    if (cli->options.json)
        report_json(cli, record);
    else
        record_print(cli, record);
    return VMFROST_OK;
}

const struct command command_show = {
    .name = "show",
    .help = "one snapshot in full: files, evidence, conditions",
    .synopsis = "VM@NAME [OPTION]...\n"
                "--qmp PATH [@]NAME [OPTION]...",
    .about = "The record of one snapshot: its images, what was left out and why, and the evidence\n"
             "for its consistency: how many file systems were frozen and thawed, when, and for\n"
             "how long. With --json, the record itself.\n",
    .examples = "  vmfrost show web@before-upgrade\n"
                "  vmfrost show web@before-upgrade --json | jq .evidence\n",
    .kind = COMMAND_READS,
    .target = TARGET_SNAPSHOT,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {0, NULL},
        },
    .run = run_show,
};
