/* SPDX-License-Identifier: MIT
 *
 * Which VM and which snapshot the command line means.
 *
 * A VM is a word (a name of the inventory, or a path with a slash in it) or --qmp PATH; a snapshot
 * stands behind an '@', which may be left out where --qmp already says which VM is meant.
 */
#ifndef VF_CLI_TARGET_H
#define VF_CLI_TARGET_H

#include <stdbool.h>

#include "cli/cli.h"

/* Sets cli->vm or cli->vms, cli->snapshot, cli->words. False after a usage error was reported. */
bool target_parse(struct cli *cli, int count, char **words);

/* A path that can be told from a name: "./" in front of one without a slash. Owned by the caller.
 */
char *target_path(const char *path);
bool target_is_path(const char *vm);

#endif
