/* SPDX-License-Identifier: MIT */
#include "cli/help.h"

#include <stdlib.h>
#include <string.h>

#include "cli/options.h"
#include "cli/report.h"
#include "cli/suggest.h"
#include "util/cleanup.h"
#include "util/mem.h"
#include "util/text.h"

enum { WIDTH = 80, OPTION_INDENT = 26 };

/* Words of `text` in lines of WIDTH columns, from `indent` on; the first `used` are taken. Empty
 * lines of the text stay. */
static void
put_wrapped(struct out *out, const char *text, int indent, int used)
{
    int column = indent;
    bool first = true;

    if (used > indent - 2 && used > 0) {
        out_raw(out, "\n");
        used = 0;
    }
    out_text(out, STYLE_PLAIN, "%*s", indent - used, "");
    while (*text) {
        int length = (int)strcspn(text, " \n");

        if (!first && column + 1 + length > WIDTH) {
            out_raw(out, "\n");
            out_text(out, STYLE_PLAIN, "%*s", indent, "");
            column = indent;
            first = true;
        }
        out_text(out, STYLE_PLAIN, "%s%.*s", first ? "" : " ", length, text);
        column += length + !first;
        first = false;
        text += length;
        if (vf_starts_with(text, "\n\n")) {
            out_raw(out, "\n\n");
            column = indent;
            first = true;
        }
        text += strspn(text, " \n");
    }
    out_raw(out, "\n");
}

static void
put_options(struct out *out, const struct option_use *use)
{
    for (; use && use->help; use++) {
        const struct option_spec *spec = &option_specs[use->option];
        char letter[] = {'-', spec->letter, ',', ' ', '\0'};
        VF_AUTO_FREE char *left =
            vf_printf("  %s--%s%s%s", spec->letter ? letter : "", spec->name,
                      spec->argument ? " " : "", spec->argument ? spec->argument : "");

        out_text(out, STYLE_BOLD, "%s", left);
        put_wrapped(out, use->help, OPTION_INDENT, (int)strlen(left));
    }
}

static void
put_heading(struct out *out, const char *heading)
{
    out_raw(out, "\n");
    out_text(out, STYLE_BOLD, "%s\n", heading);
}

static void
put_exit_codes(struct out *out)
{
    put_heading(out, "Exit codes:");
    out_raw(out, "  0  done\n"
                 "  1  failed or refused; nothing is changed\n"
                 "  2  wrong usage\n"
                 "  3  QEMU or the guest agent cannot be reached; nothing is changed\n"
                 "  4  the deadline passed; everything is rolled back\n"
                 "  5  snapshot taken, but the thaw came late or is unverified;\n"
                 "     a restore could be neither finished nor undone\n"
                 "  6  THE GUEST MAY BE FROZEN: somebody has to look\n"
                 "  7  snapshot taken (snapshot --keep-last), but pruning after it failed\n");
}

void
help_overview(struct out *out)
{
    out_raw(out, "vmfrost: guest-consistent snapshots for bare QEMU\n");
    put_heading(out, "Usage:");
    out_raw(out, "  vmfrost [OPTION]... COMMAND [ARGUMENT]...\n");
    put_heading(out, "Commands:");
    for (size_t i = 0; commands[i]; i++) {
        if (!commands[i]->help)
            continue;
        out_text(out, STYLE_BOLD, "  %-10s", commands[i]->name);
        out_text(out, STYLE_PLAIN, " %s\n", commands[i]->help);
    }
    put_heading(out, "Options of all commands:");
    put_options(out, global_options);
    put_heading(out, "To begin with:");
    out_raw(out, "  vmfrost discover                     which VMs are there?\n"
                 "  vmfrost add web --qmp /run/web.qmp   give one a name\n"
                 "  vmfrost snapshot web@before          take a snapshot\n"
                 "  vmfrost list                         what is there now\n"
                 "  vmfrost help snapshot                more about one command\n");
    put_exit_codes(out);
}

/* Each line of the synopsis is one way to write the command. */
static void
put_synopsis(struct out *out, const struct command *command)
{
    VF_AUTO_FREE char *synopsis = vf_strdup(command->synopsis);
    char *rest = synopsis, *line;

    put_heading(out, "Usage:");
    while ((line = strsep(&rest, "\n")))
        out_text(out, STYLE_PLAIN, "  vmfrost %s %s\n", command->name, line);
}

void
help_command(struct out *out, const struct command *command)
{
    out_text(out, STYLE_PLAIN, "vmfrost %s: %s\n", command->name, command->help);
    put_synopsis(out, command);
    out_raw(out, "\n");
    put_wrapped(out, command->about, 0, 0);
    if (command->options && command->options->help) {
        put_heading(out, "Options:");
        put_options(out, command->options);
    }
    put_heading(out, "Options of all commands:");
    put_options(out, global_options);
    put_heading(out, "Examples:");
    out_raw(out, command->examples);
    put_exit_codes(out);
}

/* Words of other tools. */
static const char *
synonym(const char *name)
{
    static const char *const words[][2] = {
        {"create", "snapshot"},  {"take", "snapshot"},  {"ls", "list"},       {"rm", "delete"},
        {"info", "show"},        {"unfreeze", "thaw"},  {"scan", "discover"}, {"forget", "remove"},
        {"inspect", "show"},     {"repair", "recover"}, {"expire", "prune"},  {"revert", "restore"},
        {"rollback", "restore"},
    };

    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(words[i][0], name) == 0)
            return words[i][1];
    }
    return NULL;
}

enum vmfrost_code
help_unknown(struct cli *cli, const char *name)
{
    struct suggestion suggestion = suggest_begin(name);
    const char *meant = synonym(name);

    for (size_t i = 0; commands[i]; i++) {
        if (commands[i]->help)
            suggest_offer(&suggestion, commands[i]->name);
    }
    if (!meant && suggestion.best[0])
        meant = suggestion.best;
    cli->command = NULL; /* not `help`, which is only the messenger */
    if (meant)
        return report_usage(cli, "no command '%s': did you mean '%s'?", name, meant);
    return report_usage(cli, "no command '%s'", name);
}
