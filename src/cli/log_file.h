/* SPDX-License-Identifier: MIT
 *
 * Where the library's log goes: to stderr as far as -v asks for it, and to the file of --log, whole
 * and with times.
 */
#ifndef VF_CLI_LOG_FILE_H
#define VF_CLI_LOG_FILE_H

#include <stdbool.h>

#include "cli/cli.h"

/* Opens the file of --log; false after the reason was reported. */
bool log_open(struct cli *cli);
void log_close(struct cli *cli);

/* For struct vmfrost_settings: `data` is the struct cli. */
vmfrost_log_fn log_line;

#endif
