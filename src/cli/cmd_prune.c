/* SPDX-License-Identifier: MIT
 *
 * prune: one VM, or one after the other.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/prune.h"
#include "cli/report.h"
#include "util/cleanup.h"
#include "util/json.h"

static bool
has_rules(const struct vmfrost_prune_options *options)
{
    return options->keep_last || options->keep_hourly || options->keep_daily ||
           options->keep_weekly || options->max_age_ms || options->failed;
}

static bool
has_own_rules(struct json_object *vm)
{
    static const char *const keys[] = {"keepLast", "keepHourly", "keepDaily", "keepWeekly",
                                       "maxAge"};
    struct json_object *settings = vf_json_object(vm, "settings");

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (vf_json_string(settings, keys[i]))
            return true;
    }
    return false;
}

static enum vmfrost_code
prune_all(struct cli *cli)
{
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_JSON struct json_object *vms = NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};
    enum vmfrost_code worst = VMFROST_OK;
    bool tells = !cli->options.json && !cli->options.quiet;
    size_t left_alone = 0;

    if (vmfrost_vms(cli->context, &text, &error) != VMFROST_OK)
        return report_error(cli, &error);
    vms = vf_json_parse(text, strlen(text), 16);
    size_t count = vf_json_length(vms);

    for (size_t i = 0; i < count && !cli->stopped; i++) {
        struct json_object *vm = vf_json_at(vms, i);
        const char *name = vf_json_string(vm, "name");

        if (!name)
            continue;
        /* Nobody has said that anything of this VM may go. */
        if (!has_rules(&cli->options.prune) && !vf_json_object(vm, "error") && !has_own_rules(vm)) {
            left_alone++;
            if (tells)
                out_text(&cli->out, STYLE_DIM, "%s  has no rules: left alone\n", name);
            continue;
        }
        enum vmfrost_code code = prune_vm(cli, name, &cli->options.prune, cli->options.yes, NULL);

        worst = code > worst ? code : worst;
    }
    if (count == 0 && tells)
        out_raw(&cli->out, "no VMs, nothing to prune\n");
    if (count > 0 && left_alone == count)
        return report_usage(cli, "no VM has a rule that says which snapshots to keep: give one, "
                                 "like --keep-last 3, or --set keep-last=3 to `vmfrost add`");
    return worst;
}

static enum vmfrost_code
run_prune(struct cli *cli)
{
    if (cli->vm && cli->options.all)
        return report_usage(cli, "either a VM or --all");
    if (!cli->vm && !cli->options.all)
        return report_usage(cli, "which VM? Write its name, --qmp PATH, or --all");
    if (!cli->vm)
        return prune_all(cli);
    return prune_vm(cli, cli->vm, &cli->options.prune, cli->options.yes, NULL);
}

const struct command command_prune = {
    .name = "prune",
    .help = "delete the snapshots that no rule keeps",
    .synopsis = "VM [OPTION]...\n"
                "--qmp PATH [OPTION]...\n"
                "--all [OPTION]...",
    .about =
        "Shows which snapshots the rules keep and which they do not, and why. With --yes, deletes\n"
        "the latter, one after another, and stops at the first deletion of a VM that fails.\n"
        "\n"
        "Rules add up: what one of them keeps is kept. Without any, the VM's settings count\n"
        "(keep-last, keep-hourly, keep-daily, keep-weekly, max-age). Hours, days and weeks are\n"
        "those of UTC, and only those that have a snapshot are counted. A snapshot that is in\n"
        "progress, that linked images build on, or whose time makes no sense, is never removed.\n"
        "With --all the exit code is the highest of all VMs.\n",
    .examples = "  vmfrost prune web --keep-last 3\n"
                "  vmfrost prune web --keep-hourly 24 --keep-daily 7 --max-age 30d --yes\n"
                "  vmfrost add web --set keep-daily=7 && vmfrost prune web --yes\n"
                "  vmfrost prune --all --yes\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_VM_OR_ALL,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_ALL, "all VMs of the inventory; those without a rule are left alone"},
            {OPTION_KEEP_LAST, "keep the newest N"},
            {OPTION_KEEP_HOURLY, "keep the newest of each of the last N hours"},
            {OPTION_KEEP_DAILY, "... of each of the last N days"},
            {OPTION_KEEP_WEEKLY, "... of each of the last N weeks"},
            {OPTION_MAX_AGE, "keep nothing older, but for --keep-last; alone or with that, keep "
                             "all that is younger"},
            {OPTION_FAILED, "remove records of failed snapshots, too (default: those older than "
                            "--max-age)"},
            {OPTION_YES, "delete them (default: only show what would be deleted)"},
            {0, NULL},
        },
    .run = run_prune,
};
