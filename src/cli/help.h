/* SPDX-License-Identifier: MIT
 *
 * Help texts, made from the table of commands and the table of options.
 */
#ifndef VF_CLI_HELP_H
#define VF_CLI_HELP_H

#include "cli/cli.h"

void help_overview(struct out *out);
void help_command(struct out *out, const struct command *command);

/* The usage error for a command that does not exist, with the one that was meant. */
enum vmfrost_code help_unknown(struct cli *cli, const char *name);

#endif
