/* SPDX-License-Identifier: MIT
 *
 * Operations that make files of a snapshot.
 */
#ifndef VF_CLI_FILES_H
#define VF_CLI_FILES_H

#include "cli/job.h"

/* Waits for the job, prints which files it has made ("exported"), or its error, and releases it. */
enum vmfrost_code files_finish(struct cli *cli, struct job *job, const char *what);

#endif
