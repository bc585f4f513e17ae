/* SPDX-License-Identifier: MIT
 *
 * The documents of `status`, `check` and `discover`, for people.
 */
#ifndef VF_CLI_VM_VIEW_H
#define VF_CLI_VM_VIEW_H

#include <json-c/json.h>

#include "cli/job.h"

void view_status(struct cli *cli, struct json_object *status);
void view_check(struct cli *cli, struct json_object *check, bool passed);
/* One line for each job, each of which asked for a status. */
void view_statuses(struct cli *cli, const struct job *jobs, size_t count);
void view_machines(struct cli *cli, struct json_object *machines);

#endif
