/* SPDX-License-Identifier: MIT
 *
 * Snapshot records, for people. Every member of a record may be absent: what is not there is not
 * claimed.
 */
#ifndef VF_CLI_RECORD_H
#define VF_CLI_RECORD_H

#include <json-c/json.h>

#include "cli/cli.h"

enum record_phase { PHASE_IN_PROGRESS, PHASE_SUCCEEDED, PHASE_FAILED, PHASE_UNKNOWN };
enum record_phase record_phase(struct json_object *record);
enum style record_phase_style(struct json_object *record);

/* "consistent (2 file systems frozen and thawed)", "crash-consistent: no guest agent"; the word
 * "consistent" stands alone only for a snapshot that was frozen and thawed. Owned by the caller. */
char *record_quality(struct json_object *record);
bool record_has_indication(struct json_object *record, const char *name);
/* Since the cut, else since the start: "3 min"; "-" if that is not known. Owned by the caller. */
char *record_age(struct json_object *record);

/* A number that may be integer or not; false if it is absent. */
bool record_number(struct json_object *object, const char *key, double *value_r);

/* The end of `vmfrost snapshot`. */
void record_print_summary(struct cli *cli, struct json_object *record);
/* All of it. */
void record_print(struct cli *cli, struct json_object *record);
/* A table of an array of records. */
void record_print_table(struct cli *cli, struct json_object *records);

/* The last cell of a row about it: whether the VM's present state builds on it, or what is wrong.
 */
struct table;
void record_add_remark(struct table *table, struct json_object *record);

/* The "warnings" of any document, on the given output. */
void print_warnings(struct cli *cli, struct out *out, struct json_object *document);

#endif
