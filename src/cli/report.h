/* SPDX-License-Identifier: MIT
 *
 * Everything that is said about an error, and every JSON document that is printed.
 */
#ifndef VF_CLI_REPORT_H
#define VF_CLI_REPORT_H

#include <json-c/json.h>

#include "cli/cli.h"

/* "vmfrost: TEXT", the hint which help to read, and under --json a document. Returns
 * VMFROST_USAGE. */
enum vmfrost_code report_usage(struct cli *cli, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The same for an error of the library or the system. Returns its code. */
enum vmfrost_code report_error(struct cli *cli, const struct vmfrost_error *error);
enum vmfrost_code report_failure(struct cli *cli, enum vmfrost_code code, const char *next,
                                 const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Only the words for people, on stderr; `next` may be empty. */
void report_text(struct cli *cli, const char *text, const char *next);
void report_warning(struct cli *cli, const char *text);

/* The guest of `vm` may be frozen: not to be missed. */
void report_alarm(struct cli *cli, const char *vm, const char *text, const char *next);

/* One document, pretty-printed, or one line. */
void report_json(struct cli *cli, struct json_object *document);
void report_json_line(struct cli *cli, struct json_object *document);

/* {"code", "message", "next"} */
struct json_object *report_error_json(enum vmfrost_code code, const char *text, const char *next);

#endif
