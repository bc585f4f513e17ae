/* SPDX-License-Identifier: MIT
 *
 * Pruning one VM: what would go, and deleting it.
 */
#ifndef VF_CLI_PRUNE_H
#define VF_CLI_PRUNE_H

#include "cli/cli.h"

/* Plans and, if `does_it`, deletes one snapshot after another, up to the first failure; tells all
 * of it, on its last line under --json the result. `taken` (may be NULL) is a snapshot that must
 * not go: a plan with it is refused. Returns the code. */
enum vmfrost_code prune_vm(struct cli *cli, const char *vm,
                           const struct vmfrost_prune_options *options, bool does_it,
                           const char *taken);

#endif
