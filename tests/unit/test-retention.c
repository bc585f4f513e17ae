/* SPDX-License-Identifier: MIT
 *
 * Which snapshots are kept: tables of records, rules, and what comes of them.
 */
#include <json-c/json.h>

#include "../tap.h"
#include "store/retention.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

#define DAY_MS (INT64_C(24) * 3600 * 1000)

/* 2026-11-20T12:30:00Z, a Friday. */
#define NOW_MS (INT64_C(1795177800) * 1000)

/* A record: its name and what is particular about it. */
struct given {
    const char *name;
    const char *time; /* creationTime; NULL: none */
    const char *phase;
    bool ready;
    const char *more; /* further members, as JSON */
};

#define SNAPSHOT(name, time)                                                                       \
    {                                                                                              \
        name, time, "Succeeded", true, NULL                                                        \
    }
#define MOST 16

struct row {
    const char *what;
    struct given given[MOST];
    struct vf_retention rules;
    int64_t now_ms;     /* 0: NOW_MS */
    const char *keep;   /* "name: reason, reason; name: ..." */
    const char *remove; /* "name: reason; ..." */
};

static struct json_object *
records_of(const struct given *given)
{
    struct json_object *records = json_object_new_array();

    for (; given->name; given++) {
        struct json_object *record = given->more
                                         ? vf_json_parse(given->more, strlen(given->more), 8)
                                         : json_object_new_object();

        vf_json_add_string(record, "name", given->name);
        vf_json_add_string(record, "phase", given->phase);
        vf_json_add_bool(record, "readyToUse", given->ready);
        vf_json_add_string(record, "creationTime", given->time);
        json_object_array_add(records, record);
    }
    return records;
}

/* "name: reason, reason; name: ..." */
static char *
text_of(struct json_object *entries)
{
    char *text = vf_strdup("");

    for (size_t i = 0; i < vf_json_length(entries); i++) {
        struct json_object *entry = vf_json_at(entries, i);
        struct json_object *reasons = vf_json_array(entry, "reasons");
        const char *reason = vf_json_string(entry, "reason");
        char *longer = vf_printf("%s%s%s:", text, i ? "; " : "", vf_json_string(entry, "name"));

        for (size_t j = 0; j < vf_json_length(reasons) + (reason != NULL); j++) {
            const char *one = reason ? reason : vf_json_text(vf_json_at(reasons, j));
            char *grown = vf_printf("%s%s %s", longer, j ? "," : "", one);

            free(longer);
            longer = grown;
        }
        free(text);
        text = longer;
    }
    return text;
}

static void
play(const struct row *row)
{
    VF_AUTO_JSON struct json_object *records = records_of(row->given);
    VF_AUTO_JSON struct json_object *plan =
        vf_retention_plan(records, &row->rules, row->now_ms ? row->now_ms : NOW_MS);
    struct json_object *kept = vf_json_array(plan, "keep"), *gone = vf_json_array(plan, "remove");
    VF_AUTO_FREE char *keep = text_of(kept);
    VF_AUTO_FREE char *remove = text_of(gone);
    VF_AUTO_FREE char *keep_what = vf_printf("%s: kept", row->what);
    VF_AUTO_FREE char *remove_what = vf_printf("%s: removed", row->what);

    is_str(keep, row->keep, keep_what);
    is_str(remove, row->remove, remove_what);
    is_int((long long)(vf_json_length(kept) + vf_json_length(gone)),
           (long long)vf_json_length(records), "each record is in one of the two");
}

static const struct row rows[] = {
    {"nothing", {{0}}, {.keep_last = 1}, 0, "", ""},
    {"no rule", {SNAPSHOT("a", "2026-11-01T00:00:00Z")}, {0}, 0, "a: no rule is about it", ""},

    /* Last. */
    {"fewer than the last",
     {SNAPSHOT("a", "2026-11-01T00:00:00Z"), SNAPSHOT("b", "2026-11-02T00:00:00Z")},
     {.keep_last = 3},
     0,
     "a: last 3; b: last 3",
     ""},
    {"the last, and the rest from the oldest on",
     {SNAPSHOT("a", "2026-11-01T00:00:00Z"), SNAPSHOT("b", "2026-11-02T00:00:00Z"),
      SNAPSHOT("c", "2026-11-03T00:00:00Z")},
     {.keep_last = 1},
     0,
     "c: last 1",
     "a: no rule keeps it; b: no rule keeps it"},
    {"by time, not by the order of the list",
     {SNAPSHOT("b", "2026-11-02T00:00:00Z"), SNAPSHOT("c", "2026-11-03T00:00:00Z"),
      SNAPSHOT("a", "2026-11-01T00:00:00Z")},
     {.keep_last = 2},
     0,
     "b: last 2; c: last 2",
     "a: no rule keeps it"},
    {"equal times: the list knows which one is newer",
     {SNAPSHOT("z", "2026-11-02T00:00:00.5Z"), SNAPSHOT("a", "2026-11-02T00:00:00.500Z"),
      SNAPSHOT("m", "2026-11-02T00:00:00.500000Z")},
     {.keep_last = 1},
     0,
     "m: last 1",
     "z: no rule keeps it; a: no rule keeps it"},
    {"milliseconds count",
     {SNAPSHOT("b", "2026-11-02T00:00:00.002Z"), SNAPSHOT("a", "2026-11-02T00:00:00.001999Z")},
     {.keep_last = 1},
     0,
     "b: last 1",
     "a: no rule keeps it"},

    /* Periods. */
    {"the newest of each hour",
     {SNAPSHOT("a", "2026-11-20T09:59:59.999Z"), SNAPSHOT("b", "2026-11-20T10:00:00Z"),
      SNAPSHOT("c", "2026-11-20T10:59:59Z"), SNAPSHOT("d", "2026-11-20T11:00:00Z")},
     {.keep_hourly = 2},
     0,
     "c: hourly 2026-11-20T10; d: hourly 2026-11-20T11",
     "a: no rule keeps it; b: no rule keeps it"},
    {"hours without one do not count",
     {SNAPSHOT("a", "2026-11-01T03:10:00Z"), SNAPSHOT("b", "2026-11-11T04:10:00Z"),
      SNAPSHOT("c", "2026-11-20T05:10:00Z")},
     {.keep_hourly = 2},
     0,
     "b: hourly 2026-11-11T04; c: hourly 2026-11-20T05",
     "a: no rule keeps it"},
    {"the same hour of another day is another hour",
     {SNAPSHOT("a", "2026-11-19T10:10:00Z"), SNAPSHOT("b", "2026-11-20T10:10:00Z")},
     {.keep_hourly = 2},
     0,
     "a: hourly 2026-11-19T10; b: hourly 2026-11-20T10",
     ""},
    {"days end at midnight, UTC",
     {SNAPSHOT("a", "2026-11-18T23:59:59Z"), SNAPSHOT("b", "2026-11-19T00:00:00Z"),
      SNAPSHOT("c", "2026-11-19T23:59:59.999999Z"), SNAPSHOT("d", "2026-11-20T00:00:00Z")},
     {.keep_daily = 3},
     0,
     "a: daily 2026-11-18; c: daily 2026-11-19; d: daily 2026-11-20",
     "b: no rule keeps it"},
    {"in a night in which clocks elsewhere are put back, each hour is one",
     {SNAPSHOT("a", "2026-10-25T00:30:00Z"), SNAPSHOT("b", "2026-10-25T01:30:00Z"),
      SNAPSHOT("c", "2026-10-25T02:30:00Z")},
     {.keep_hourly = 3, .keep_daily = 2},
     0,
     "a: hourly 2026-10-25T00; b: hourly 2026-10-25T01; c: hourly 2026-10-25T02, daily 2026-10-25",
     ""},
    {"a leap day is a day",
     {SNAPSHOT("a", "2028-02-28T12:00:00Z"), SNAPSHOT("b", "2028-02-29T12:00:00Z"),
      SNAPSHOT("c", "2028-03-01T12:00:00Z")},
     {.keep_daily = 3},
     INT64_C(1835600000) * 1000,
     "a: daily 2028-02-28; b: daily 2028-02-29; c: daily 2028-03-01",
     ""},
    {"weeks begin on Monday",
     {SNAPSHOT("sat", "2026-11-14T12:00:00Z"), SNAPSHOT("sun", "2026-11-15T23:59:59Z"),
      SNAPSHOT("mon", "2026-11-16T00:00:00Z"), SNAPSHOT("fri", "2026-11-20T12:00:00Z")},
     {.keep_weekly = 2},
     0,
     "sun: weekly 2026-W46; fri: weekly 2026-W47",
     "sat: no rule keeps it; mon: no rule keeps it"},
    {"a week across the end of a year is one week",
     {SNAPSHOT("a", "2025-12-28T12:00:00Z"), SNAPSHOT("b", "2025-12-31T12:00:00Z"),
      SNAPSHOT("c", "2026-01-01T12:00:00Z"), SNAPSHOT("d", "2026-01-05T00:00:00Z")},
     {.keep_weekly = 5},
     0,
     "a: weekly 2025-W52; c: weekly 2026-W01; d: weekly 2026-W02",
     "b: no rule keeps it"},
    {"a year can have a week 53",
     {SNAPSHOT("a", "2026-12-31T12:00:00Z"), SNAPSHOT("b", "2027-01-03T12:00:00Z"),
      SNAPSHOT("c", "2027-01-04T12:00:00Z")},
     {.keep_weekly = 2},
     INT64_C(1800000000) * 1000,
     "b: weekly 2026-W53; c: weekly 2027-W01",
     "a: no rule keeps it"},
    {"weeks of the first days that there are",
     {SNAPSHOT("a", "1970-01-01T00:00:00Z"), SNAPSHOT("b", "1970-01-04T23:59:59Z"),
      SNAPSHOT("c", "1970-01-05T00:00:00Z")},
     {.keep_weekly = 9},
     0,
     "b: weekly 1970-W01; c: weekly 1970-W02",
     "a: no rule keeps it"},

    /* Rules add up. */
    {"one rule is enough, and all are told",
     {SNAPSHOT("a", "2026-11-18T01:00:00Z"), SNAPSHOT("b", "2026-11-19T01:00:00Z"),
      SNAPSHOT("c", "2026-11-19T02:00:00Z"), SNAPSHOT("d", "2026-11-20T02:00:00Z"),
      SNAPSHOT("e", "2026-11-20T02:10:00Z")},
     {.keep_last = 2, .keep_hourly = 1, .keep_daily = 2, .keep_weekly = 1},
     0,
     "c: daily 2026-11-19; d: last 2; e: last 2, hourly 2026-11-20T02, daily 2026-11-20, weekly "
     "2026-W47",
     "a: no rule keeps it; b: no rule keeps it"},

    /* Age. */
    {"age alone",
     {SNAPSHOT("a", "2026-10-21T12:29:59.999Z"), SNAPSHOT("b", "2026-10-21T12:30:00Z"),
      SNAPSHOT("c", "2026-11-20T00:00:00Z")},
     {.max_age_ms = 30 * DAY_MS},
     0,
     "b: not older than 30d; c: not older than 30d",
     "a: older than 30d"},
    {"age alone can remove all",
     {SNAPSHOT("a", "2026-11-20T12:00:00Z"), SNAPSHOT("b", "2026-11-20T12:29:00Z")},
     {.max_age_ms = 1500},
     0,
     "",
     "a: older than 1s500ms; b: older than 1s500ms"},
    {"nothing older is kept for an hour, a day or a week",
     {SNAPSHOT("a", "2026-11-01T00:00:00Z"), SNAPSHOT("b", "2026-11-18T00:00:00Z"),
      SNAPSHOT("c", "2026-11-19T00:00:00Z"), SNAPSHOT("d", "2026-11-19T13:00:00Z")},
     {.keep_hourly = 9, .keep_daily = 9, .keep_weekly = 9, .max_age_ms = 37 * DAY_MS / 24},
     0,
     "c: hourly 2026-11-19T00; d: hourly 2026-11-19T13, daily 2026-11-19, weekly 2026-W47",
     "a: older than 1d13h; b: older than 1d13h"},
    {"the last are kept however old they are",
     {SNAPSHOT("a", "2025-01-01T00:00:00Z"), SNAPSHOT("b", "2025-01-02T00:00:00Z"),
      SNAPSHOT("c", "2025-01-03T00:00:00Z")},
     {.keep_last = 2, .keep_daily = 9, .max_age_ms = 30 * DAY_MS},
     0,
     "b: last 2; c: last 2",
     "a: older than 30d"},
    {"last and age: the young ones and the last",
     {SNAPSHOT("a", "2026-10-01T00:00:00Z"), SNAPSHOT("b", "2026-11-17T00:00:00Z"),
      SNAPSHOT("c", "2026-11-18T00:00:00Z"), SNAPSHOT("d", "2026-11-19T00:00:00Z")},
     {.keep_last = 1, .max_age_ms = 30 * DAY_MS},
     0,
     "b: not older than 30d; c: not older than 30d; d: last 1, not older than 30d",
     "a: older than 30d"},
    {"age does not keep what a day's rule thins out",
     {SNAPSHOT("a", "2026-11-19T01:00:00Z"), SNAPSHOT("b", "2026-11-19T02:00:00Z")},
     {.keep_daily = 7, .max_age_ms = 30 * DAY_MS},
     0,
     "b: daily 2026-11-19",
     "a: no rule keeps it"},

    /* Clocks. */
    {"a time yet to come: kept, and takes nobody's place",
     {SNAPSHOT("a", "2026-11-19T00:00:00Z"), SNAPSHOT("b", "2026-11-20T12:30:00Z"),
      SNAPSHOT("c", "2026-11-20T12:30:00.001Z"), SNAPSHOT("d", "2036-01-01T00:00:00Z")},
     {.keep_last = 1, .keep_daily = 1},
     0,
     "b: last 1, daily 2026-11-20; c: its time is yet to come: was the clock set back?; d: its "
     "time is yet to come: was the clock set back?",
     "a: no rule keeps it"},
    {"a broken time is never chosen",
     {SNAPSHOT("none", NULL),
      SNAPSHOT("empty", ""),
      SNAPSHOT("words", "yesterday"),
      SNAPSHOT("zone", "2026-11-01T00:00:00+01:00"),
      SNAPSHOT("month", "2026-13-01T00:00:00Z"),
      SNAPSHOT("february", "2026-02-29T00:00:00Z"),
      SNAPSHOT("hour", "2026-11-01T24:00:00Z"),
      SNAPSHOT("sign", "2026-11-01T-1:00:00Z"),
      SNAPSHOT("short", "2026-11-01T00:00Z"),
      SNAPSHOT("dot", "2026-11-01T00:00:00.Z"),
      SNAPSHOT("more", "2026-11-01T00:00:00Z "),
      SNAPSHOT("early", "1969-12-31T23:59:59Z"),
      {"number", NULL, "Succeeded", true, "{\"creationTime\": 5}"},
      SNAPSHOT("good", "2026-11-01T00:00:00Z")},
     {.keep_last = 1, .max_age_ms = 1},
     0,
     "none: its time cannot be read; empty: its time cannot be read; words: its time cannot be "
     "read; zone: its time cannot be read; month: its time cannot be read; february: its time "
     "cannot be read; hour: its time cannot be read; sign: its time cannot be read; short: its "
     "time cannot be read; dot: its time cannot be read; more: its time cannot be read; early: its "
     "time cannot be read; number: its time cannot be read; good: last 1",
     ""},
    {"nor is the time of its beginning taken instead",
     {{"a", NULL, "Succeeded", true, "{\"startTime\": \"2020-01-01T00:00:00Z\"}"}},
     {.max_age_ms = DAY_MS},
     0,
     "a: its time cannot be read",
     ""},

    /* Records that are no snapshots. */
    {"in progress: never touched, and takes nobody's place",
     {SNAPSHOT("a", "2026-11-19T00:00:00Z"),
      {"b", NULL, "InProgress", false, "{\"startTime\": \"2020-01-01T00:00:00Z\"}"},
      {"c", "2020-01-01T00:00:00Z", "InProgress", true, NULL}},
     {.keep_last = 1, .max_age_ms = 1, .failed = true},
     0,
     "b: in progress; c: in progress; a: last 1",
     ""},
    {"what cannot be understood is never touched",
     {{"a", NULL, "Unknown", false, "{\"error\": {\"message\": \"torn\"}}"},
      {"b", "2020-01-01T00:00:00Z", "Perhaps", true, NULL},
      {"c", "2020-01-01T00:00:00Z", NULL, true, NULL},
      {"d", "2020-01-01T00:00:00Z", "Succeeded", false, NULL},
      {"e", "2020-01-01T00:00:00Z", "Succeeded", false, "{\"cuts\": [{}]}"}},
     {.max_age_ms = 1, .failed = true},
     0,
     "a: its record cannot be understood; b: its record cannot be understood; c: its record cannot "
     "be understood; d: its record cannot be understood; e: its record cannot be understood",
     ""},
    {"failed with content is a snapshot",
     {{"a", "2026-11-18T00:00:00Z", "Failed", true, NULL},
      {"b", "2026-11-19T00:00:00Z", "Failed", true, NULL}},
     {.keep_last = 1},
     0,
     "b: last 1",
     "a: no rule keeps it"},
    {"failed without content: no rule but its age is about it",
     {{"old", NULL, "Failed", false, "{\"startTime\": \"2026-10-01T00:00:00Z\"}"},
      {"new", NULL, "Failed", false, "{\"startTime\": \"2026-11-19T00:00:00.5Z\"}"},
      SNAPSHOT("a", "2026-11-18T00:00:00Z")},
     {.keep_last = 1, .max_age_ms = 30 * DAY_MS},
     0,
     "a: last 1, not older than 30d; new: failed: it stays to be looked at",
     "old: failed, older than 30d"},
    {"failed ones do not count as the last",
     {SNAPSHOT("a", "2026-11-18T00:00:00Z"),
      {"b", NULL, "Failed", false, "{\"startTime\": \"2026-11-19T00:00:00Z\"}"}},
     {.keep_last = 1, .keep_daily = 1},
     0,
     "a: last 1, daily 2026-11-18; b: failed: it stays to be looked at",
     ""},
    {"failed ones when asked for, before all snapshots",
     {SNAPSHOT("a", "2026-11-18T00:00:00Z"),
      SNAPSHOT("b", "2026-11-19T00:00:00Z"),
      {"c", NULL, "Failed", false, "{\"startTime\": \"2026-11-19T00:00:00Z\"}"},
      {"d", NULL, "Failed", false, "{\"startTime\": \"2036-11-19T00:00:00Z\"}"},
      {"e", NULL, "Failed", false, "{\"startTime\": \"?\", \"cuts\": []}"}},
     {.keep_last = 1, .failed = true},
     0,
     "b: last 1",
     "e: failed; c: failed; d: failed; a: no rule keeps it"},
    {"failed ones alone",
     {SNAPSHOT("a", "2026-11-18T00:00:00Z"),
      {"b", NULL, "Failed", false, "{\"startTime\": \"2026-11-19T00:00:00Z\"}"}},
     {.failed = true},
     0,
     "a: no rule is about it",
     "b: failed"},
    {"failed ones of a time that cannot be: not by age",
     {{"a", NULL, "Failed", false, "{\"startTime\": \"?\"}"},
      {"b", NULL, "Failed", false, "{\"startTime\": \"2036-11-19T00:00:00Z\"}"},
      {"c", NULL, "Failed", false, NULL}},
     {.max_age_ms = 1},
     0,
     "a: its time cannot be read; c: its time cannot be read; b: its time is yet to come: was the "
     "clock set back?",
     ""},
    {"a deletion that has begun is gone on with, whatever the rules",
     {{"a", "2026-11-18T00:00:00Z", "Failed", false, "{\"cuts\": [{}]}"},
      {"b", "2036-11-18T00:00:00Z", "Failed", false, "{\"cuts\": [{}]}"},
      SNAPSHOT("c", "2026-11-17T00:00:00Z"),
      SNAPSHOT("d", "2026-11-19T00:00:00Z")},
     {.keep_last = 1},
     0,
     "d: last 1",
     "c: no rule keeps it; a: its deletion has begun; b: its deletion has begun"},

    /* What others need. */
    {"one with linked images is never chosen, and counts",
     {SNAPSHOT("a", "2026-11-17T00:00:00Z"),
      {"b", "2026-11-18T00:00:00Z", "Succeeded", true, "{\"clones\": [\"x\"]}"},
      SNAPSHOT("c", "2026-11-19T00:00:00Z"),
      {"d", "2026-11-20T00:00:00Z", "Succeeded", true, "{\"clones\": [{\"path\": \"/x\"}]}"}},
     {.keep_last = 1},
     0,
     "b: linked images build on it; d: linked images build on it, last 1",
     "a: no rule keeps it; c: no rule keeps it"},
    {"also if that is not understood, or nothing else of it is",
     {{"a", "2020-01-01T00:00:00Z", "Succeeded", true, "{\"clones\": 2}"},
      {"b", "2020-01-01T00:00:00Z", "Failed", false, "{\"clones\": [1], \"cuts\": [{}]}"},
      {"c", "2020-01-01T00:00:00Z", "Failed", false, "{\"clones\": {}}"},
      {"d", NULL, "Succeeded", true, "{\"clones\": [1]}"}},
     {.max_age_ms = 1, .failed = true},
     0,
     "d: its time cannot be read; a: linked images build on it; b: linked images build on it; c: "
     "linked images build on it",
     ""},
    {"no linked images any more",
     {{"a", "2020-01-01T00:00:00Z", "Succeeded", true, "{\"clones\": []}"},
      {"b", "2020-01-01T00:00:00Z", "Succeeded", true, "{\"clones\": null}"}},
     {.max_age_ms = 1},
     0,
     "",
     "a: older than 1ms; b: older than 1ms"},
    {"those of `with` are left to it, but for what is left of them",
     {SNAPSHOT("with-20261101T000000Z", "2026-11-01T00:00:00Z"),
      {"with-a", NULL, "Failed", false, "{\"startTime\": \"2026-11-02T00:00:00Z\"}"},
      {"with-b", NULL, "Failed", false, "{\"cuts\": [{}]}"},
      SNAPSHOT("without", "2026-11-03T00:00:00Z"),
      SNAPSHOT("d", "2026-11-04T00:00:00Z")},
     {.keep_last = 1, .max_age_ms = DAY_MS},
     0,
     "with-20261101T000000Z: made by `vmfrost with`, which deletes it itself; d: last 1",
     "with-a: failed, older than 1d; with-b: its deletion has begun; without: older than 1d"},
    {"those that a restore has kept count like others",
     {SNAPSHOT("before-restore-1", "2026-11-18T00:00:00Z"), SNAPSHOT("a", "2026-11-19T00:00:00Z")},
     {.keep_last = 1},
     0,
     "a: last 1",
     "before-restore-1: no rule keeps it"},
};

static void
test_odd(void)
{
    const struct vf_retention none = {0}, failed = {.failed = true}, age = {.max_age_ms = 1};
    VF_AUTO_JSON struct json_object *records = vf_json_parse("[1, {}, null]", 13, 8);
    VF_AUTO_JSON struct json_object *plan = vf_retention_plan(records, &age, NOW_MS);
    VF_AUTO_JSON struct json_object *of_nothing = vf_retention_plan(NULL, &age, NOW_MS);

    is_int((long long)vf_json_length(vf_json_array(plan, "keep")), 3,
           "what is no record at all is not chosen");
    is_int((long long)vf_json_length(vf_json_array(of_nothing, "remove")), 0, "no list, no plan");
    const struct vf_retention all = {1, 2, 3, 4, 90061001, true};
    VF_AUTO_JSON struct json_object *told = vf_retention_json(&all);
    VF_AUTO_JSON struct json_object *nothing = vf_retention_json(&none);

    is_str(json_object_to_json_string_ext(told, JSON_C_TO_STRING_PLAIN),
           "{\"keepLast\":1,\"keepHourly\":2,\"keepDaily\":3,\"keepWeekly\":4,\"maxAge\":"
           "\"1d1h1m1s1ms\",\"failed\":true}",
           "the rules, told");
    is_str(json_object_to_json_string_ext(nothing, JSON_C_TO_STRING_PLAIN), "{}", "or none");
    ok(!vf_retention_given(&none), "no rule is none");
    ok(vf_retention_given(&failed) && vf_retention_given(&age), "each one is one");
}

static void
test_times(void)
{
    static const struct given given[] = {SNAPSHOT("a", "2026-11-18T00:00:00.25Z"),
                                         SNAPSHOT("b", "soon"),
                                         {"c", NULL, "Failed", false, "{\"startTime\": \"2026\"}"},
                                         {NULL, NULL, NULL, false, NULL}};
    const struct vf_retention rules = {.max_age_ms = DAY_MS};
    VF_AUTO_JSON struct json_object *records = records_of(given);
    VF_AUTO_JSON struct json_object *plan = vf_retention_plan(records, &rules, NOW_MS);
    struct json_object *keep = vf_json_array(plan, "keep");

    is_str(vf_json_string(vf_json_at(vf_json_array(plan, "remove"), 0), "time"),
           "2026-11-18T00:00:00.25Z", "the time as the record has it");
    is_str(vf_json_string(vf_json_at(keep, 0), "time"), "soon", "also one that is none");
    is_str(vf_json_string(vf_json_at(keep, 1), "time"), "2026", "or that of its beginning");
}

int
main(void)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        play(&rows[i]);
    test_odd();
    test_times();
    return done_testing();
}
