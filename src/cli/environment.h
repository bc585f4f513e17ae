/* SPDX-License-Identifier: MIT
 *
 * What a command learns of the snapshot that was taken for it: VMFROST_VM, VMFROST_SNAPSHOT,
 * VMFROST_CONSISTENCY, VMFROST_RECORD, VMFROST_IMAGES, VMFROST_IMAGE_<DISK>, VMFROST_FORMAT_<DISK>.
 */
#ifndef VF_CLI_ENVIRONMENT_H
#define VF_CLI_ENVIRONMENT_H

#include <json-c/json.h>
#include <stdbool.h>

#include "util/error.h"

/* Puts them into the environment of this process, after whatever was there of an outer snapshot is
 * gone. `*file_r` is the record's file, to be removed afterwards; owned by the caller. */
bool environment_set(struct json_object *record, char **file_r, struct vmfrost_error *error);

#endif
