/* SPDX-License-Identifier: MIT
 *
 * help and version.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/help.h"
#include "cli/report.h"
#include "cli/suggest.h"
#include "util/cleanup.h"
#include "util/json.h"

static enum vmfrost_code
run_help(struct cli *cli)
{
    const char *name = cli->words[0];

    if (!name) {
        help_overview(&cli->out);
        return VMFROST_OK;
    }
    const struct command *command = command_find(name);

    if (!command || !command->help)
        return help_unknown(cli, name);
    help_command(&cli->out, command);
    return VMFROST_OK;
}

const struct command command_help = {
    .name = "help",
    .help = "what a command does and which options it takes",
    .synopsis = "[COMMAND]",
    .about = "The same text as `vmfrost COMMAND --help`.\n",
    .examples = "  vmfrost help snapshot\n",
    .kind = COMMAND_READS,
    .target = TARGET_COMMAND,
    .stateless = true,
    .run = run_help,
};

static enum vmfrost_code
run_version(struct cli *cli)
{
    if (cli->options.json) {
        VF_AUTO_JSON struct json_object *document =
            vf_json_strings("version", vmfrost_version(), NULL);

        report_json(cli, document);
    } else {
        out_text(&cli->out, STYLE_PLAIN, "vmfrost %s\n", vmfrost_version());
    }
    return VMFROST_OK;
}

const struct command command_version = {
    .name = "version",
    .help = "the version of vmfrost",
    .synopsis = "[OPTION]...",
    .about = "The version of the command and its library.\n",
    .examples = "  vmfrost version\n",
    .kind = COMMAND_READS,
    .target = TARGET_NONE,
    .stateless = true,
    .run = run_version,
};
