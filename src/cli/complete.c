/* SPDX-License-Identifier: MIT
 *
 * complete: the hidden command behind the shell's completion.
 *
 * `vmfrost complete WORDS...` is given the command line behind "vmfrost" up to the cursor, the last
 * word being the one to complete, and prints candidates, one per line. The line ":files" or
 * ":folders" asks the shell for names of its own. Nothing is ever reported: a completion that fails
 * has no candidates.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "cli/target.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

static void
offer(struct cli *cli, const char *start, const char *candidate)
{
    if (vf_starts_with(candidate, start))
        out_text(&cli->out, STYLE_PLAIN, "%s\n", candidate);
}

static void
offer_options(struct cli *cli, const char *start, const struct command *command)
{
    const struct option_use *lists[] = {command ? command->options : NULL, global_options};

    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        for (const struct option_use *use = lists[i]; use && use->help; use++) {
            VF_AUTO_FREE char *candidate = vf_printf("--%s", option_specs[use->option].name);

            offer(cli, start, candidate);
        }
    }
}

static void
offer_commands(struct cli *cli, const char *start)
{
    for (size_t i = 0; commands[i]; i++) {
        if (commands[i]->help)
            offer(cli, start, commands[i]->name);
    }
}

/* The words of "one|other"; NULL has none. */
static void
offer_choices(struct cli *cli, const char *words, const char *before, const char *start)
{
    VF_AUTO_FREE char *choices = vf_strdup(words ? words : "");
    char *rest = choices, *choice;

    while (words && (choice = strsep(&rest, "|"))) {
        if (vf_starts_with(choice, start))
            out_text(&cli->out, STYLE_PLAIN, "%s%s\n", before, choice);
    }
}

/* The value of an option, of which `start` is there already; `before` is "--option=" where they are
 * one word. */
static void
offer_values(struct cli *cli, enum cli_option option, const char *before, const char *start)
{
    const char *argument = option_specs[option].argument;
    const char *values = strchr(argument, '|') ? argument : NULL;

    if (strcmp(argument, "PATH") == 0 || strcmp(argument, "FILE") == 0)
        out_raw(&cli->out, ":files\n");
    if (strcmp(argument, "DIR") == 0)
        out_raw(&cli->out, ":folders\n");
    if (option == OPTION_SET)
        values =
            "deadline=|frozen-limit=|quiesce=|method=|flush=|freeze=|prime=|emergency-thaw=|os=|"
            "agent=|peer-uid=|copy-speed=|"
            "overlay-folder=|disks=|persistent-disks=|warn-depth=|warn-age=|keep-last=|"
            "keep-hourly=|keep-daily=|keep-weekly=|max-age=";
    offer_choices(cli, values, before, start);
}

static bool
open_quietly(struct cli *cli)
{
    struct vmfrost_settings settings = VMFROST_SETTINGS_INIT;

    settings.state_dir = cli->options.state_dir;
    cli->loop = ev_loop_new(EVFLAG_AUTO | EVFLAG_NOENV);
    cli->context = cli->loop ? vmfrost_new(cli->loop, &settings) : NULL;
    return cli->context != NULL;
}

static void
offer_vms(struct cli *cli, const char *start)
{
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_JSON struct json_object *vms = NULL;

    if (!open_quietly(cli) || vmfrost_vms(cli->context, &text, NULL) != VMFROST_OK)
        return;
    vms = vf_json_parse(text, strlen(text), 16);
    for (size_t i = 0; i < vf_json_length(vms); i++) {
        const char *name = vf_json_string(vf_json_at(vms, i), "name");

        if (name && !target_is_path(name))
            offer(cli, start, name);
    }
}

/* VM@NAME; only NAME where --qmp has named the VM. */
static void
offer_snapshots(struct cli *cli, const char *start, const char *qmp)
{
    VF_AUTO_FREE char *path = qmp ? target_path(qmp) : NULL;
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_JSON struct json_object *records = NULL;

    if (!open_quietly(cli) || vmfrost_list(cli->context, path, &text, NULL) != VMFROST_OK)
        return;
    records = vf_json_parse(text, strlen(text), 32);
    for (size_t i = 0; i < vf_json_length(records); i++) {
        const char *vm = vf_json_string(vf_json_at(records, i), "vm");
        const char *name = vf_json_string(vf_json_at(records, i), "name");
        VF_AUTO_FREE char *both = vm && name ? vf_printf("%s@%s", vm, name) : NULL;

        if (name && qmp)
            offer(cli, start, name);
        else if (both && !target_is_path(vm))
            offer(cli, start, both);
    }
}

static void
offer_target(struct cli *cli, const struct command *command, const char *start, const char *qmp)
{
    switch (command->target) {
    case TARGET_NONE:
    case TARGET_WORDS:
        return;
    case TARGET_COMMAND:
        offer_commands(cli, start);
        return;
    case TARGET_ACTION:
        offer_choices(cli, command->actions, "", start);
        return;
    case TARGET_NEW_NAME: /* one that is known may be changed */
    case TARGET_NAME:
        offer_vms(cli, start);
        return;
    case TARGET_VM:
    case TARGET_VM_OR_ALL:
    case TARGET_VM_DISK:
    case TARGET_VM_SNAPSHOT: /* the snapshot's name is to be a new one */
    case TARGET_VMS_SNAPSHOT:
        if (!qmp)
            offer_vms(cli, start);
        return;
    case TARGET_SNAPSHOT:
    case TARGET_SNAPSHOT_TO:
        offer_snapshots(cli, start, qmp);
        return;
    }
}

/* What the words before the one to complete say. */
struct scan {
    const struct command *command;
    const char *qmp;
    int pending;       /* the option whose value is to be completed; -1: none */
    bool only_targets; /* behind "--" */
    int targets;       /* words that are no options */
};

static void
take_value(struct cli *cli, struct scan *scan, enum cli_option option, const char *value)
{
    if (option == OPTION_QMP)
        scan->qmp = value;
    if (option == OPTION_STATE_DIR)
        cli->options.state_dir = value;
}

static void
scan_word(struct cli *cli, struct scan *scan, const char *word)
{
    if (scan->pending >= 0) {
        take_value(cli, scan, (enum cli_option)scan->pending, word);
        scan->pending = -1;
    } else if (!scan->only_targets && strcmp(word, "--") == 0) {
        scan->only_targets = true;
    } else if (!scan->only_targets && vf_starts_with(word, "--")) {
        const char *equals = strchr(word, '=');
        VF_AUTO_FREE char *name = strndup(word + 2, strcspn(word + 2, "="));
        int option = option_find(scan->command, name);

        if (option >= 0 && equals)
            take_value(cli, scan, (enum cli_option)option, equals + 1);
        else if (option >= 0 && option_specs[option].argument)
            scan->pending = option;
    } else if (!scan->only_targets && *word == '-') {
        return; /* letters take no values */
    } else if (!scan->command) {
        scan->command = command_find(word);
    } else {
        scan->targets++;
    }
}

/* "--option=START" */
static void
complete_joined(struct cli *cli, const struct scan *scan, const char *word)
{
    const char *start = strchr(word, '=') + 1;
    VF_AUTO_FREE char *name = strndup(word + 2, strcspn(word + 2, "="));
    VF_AUTO_FREE char *before = strndup(word, (size_t)(start - word));
    int option = option_find(scan->command, name);

    if (option >= 0 && option_specs[option].argument)
        offer_values(cli, (enum cli_option)option, before, start);
}

static enum vmfrost_code
run_complete(struct cli *cli)
{
    struct scan scan = {.pending = -1};
    const char **word = cli->words;

    /* The "--" that ends our own options. */
    if (*word && strcmp(*word, "--") == 0)
        word++;
    if (!*word)
        return VMFROST_OK;
    for (; word[1]; word++)
        scan_word(cli, &scan, *word);
    if (scan.pending >= 0)
        offer_values(cli, (enum cli_option)scan.pending, "", *word);
    else if (!scan.only_targets && vf_starts_with(*word, "--") && strchr(*word, '='))
        complete_joined(cli, &scan, *word);
    else if (!scan.only_targets && **word == '-')
        offer_options(cli, *word, scan.command);
    else if (!scan.command)
        offer_commands(cli, *word);
    else if (scan.command->takes_command && scan.only_targets)
        out_raw(&cli->out, ":files\n");
    else if (scan.targets == 0 || scan.command->target == TARGET_VMS_SNAPSHOT)
        offer_target(cli, scan.command, *word, scan.qmp);
    else if (scan.targets == 1 && scan.command->target == TARGET_SNAPSHOT_TO)
        out_raw(&cli->out, ":files\n");
    return VMFROST_OK;
}

const struct command command_complete = {
    .name = "complete",
    .synopsis = "[WORD]...",
    .kind = COMMAND_READS,
    .target = TARGET_WORDS,
    .stateless = true,
    .run = run_complete,
};
