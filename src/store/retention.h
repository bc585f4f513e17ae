/* SPDX-License-Identifier: MIT
 *
 * Which snapshots of a VM are kept and which may go: records, rules and a time in, a verdict on
 * each record with its reasons out. Pure: no file, no clock. docs/retention.md says the same for
 * people.
 *
 * Guarantees: every record is either kept or chosen, and says why. What is not certain is kept: a
 * record that cannot be read, a time that makes no sense or is yet to come, a snapshot that
 * something else builds on.
 */
#ifndef VF_STORE_RETENTION_H
#define VF_STORE_RETENTION_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

/* 0: there is no such rule. */
struct vf_retention {
    int64_t keep_last;
    int64_t keep_hourly, keep_daily, keep_weekly; /* the newest of each of so many periods (UTC) */
    int64_t max_age_ms;
    bool failed; /* choose the records of failed snapshots, whatever their age */
};

/* There is any rule. */
bool vf_retention_given(const struct vf_retention *rules);

/* {"keepLast": 3, "maxAge": "30d"}: those that there are. Owned by the caller. */
struct json_object *vf_retention_json(const struct vf_retention *rules);

/* `records` as vf_record_list() gives them, `now_ms` since 1970. Owned by the caller:
 *     {"keep": [{"name", "time", "reasons": [...]}], "remove": [{"name", "time", "reason"}]}
 * Kept ones stand oldest first, chosen ones in the order in which they are best deleted. "time" is
 * missing where the record has none. */
struct json_object *vf_retention_plan(struct json_object *records, const struct vf_retention *rules,
                                      int64_t now_ms);

#endif
