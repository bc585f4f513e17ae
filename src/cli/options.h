/* SPDX-License-Identifier: MIT
 *
 * The command line: one table of all options, from which parsing, help, completion and suggestions
 * are made.
 */
#ifndef VF_CLI_OPTIONS_H
#define VF_CLI_OPTIONS_H

#include <stdbool.h>

#include "cli/cli.h"

struct option_spec {
    const char *name;
    char letter;          /* 0: none */
    const char *argument; /* "DURATION", "auto|skip"; NULL: takes none */
};

extern const struct option_spec option_specs[OPTION__N];
extern const struct option_use global_options[];

/* The options before the command's name, up to the first word that is none. Returns the index of
 * that word, or -1 after a usage error was reported. */
int options_parse_global(struct cli *cli, int count, char **words);

/* Options and target of cli->command, in any order; words[0] is the command's name. False after a
 * usage error was reported. */
bool options_parse(struct cli *cli, int count, char **words);

/* "--name" among the options of the command (NULL: global ones alone); -1 if there is none. */
int option_find(const struct command *command, const char *name);

void options_release(struct cli *cli);

#endif
