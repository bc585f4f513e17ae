/* SPDX-License-Identifier: MIT
 *
 * The order of deletion: first records without content, which cost nothing, then snapshots from the
 * oldest on. What is deleted goes down into the image below, or up into the one above: either way,
 * from the oldest on, each piece of data is copied once, where from the newest on it would be
 * copied again with each further deletion.
 */
#include "store/retention.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

enum { HOUR_S = 3600, DAY_S = 24 * HOUR_S, WEEK_S = 7 * DAY_S };

/* 1970-01-05 was the first Monday. */
enum { FIRST_MONDAY_S = 4 * DAY_S };

#define BUILT_ON "linked images build on it"

/* What a record is to the rules. */
enum kind {
    KIND_SNAPSHOT, /* whole, of a known time that has passed: the only kind that rules count */
    KIND_FAILED,   /* without content */
    KIND_DOOMED,   /* a deletion has begun: there is no content any more, but there are files */
    KIND_FIXED,    /* kept, whatever the rules say */
};

struct entry {
    size_t at; /* in the list */
    struct json_object *record;
    enum kind kind;
    bool timed; /* time_ms is known */
    int64_t time_ms;
    struct json_object *reasons; /* to keep it */
    char *against;               /* NULL: no reason to remove it */
};

bool
vf_retention_given(const struct vf_retention *rules)
{
    return rules->keep_last || rules->keep_hourly || rules->keep_daily || rules->keep_weekly ||
           rules->max_age_ms || rules->failed;
}

/*
 * Times
 */

/* "30d", "1h30m": as it would be written. Owned by the caller. */
static char *
duration(int64_t ms)
{
    static const struct {
        const char *unit;
        int64_t ms;
    } units[] = {{"d", INT64_C(1000) * DAY_S},
                 {"h", INT64_C(1000) * HOUR_S},
                 {"m", 60000},
                 {"s", 1000},
                 {"ms", 1}};
    char text[64] = "";
    size_t used = 0;

    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (ms < units[i].ms)
            continue;
        used += (size_t)snprintf(text + used, sizeof text - used, "%lld%s",
                                 (long long)(ms / units[i].ms), units[i].unit);
        ms %= units[i].ms;
    }
    return vf_strdup(text);
}

/*
 * Records
 */

static void
keep(struct entry *entry, const char *reason)
{
    vf_json_append(entry->reasons, vf_json_new_string(reason));
}

static const char *
time_of(struct json_object *record)
{
    const char *time = vf_json_string(record, "creationTime");

    return time ? time : vf_json_string(record, "startTime");
}

/* Something that is no empty array stands there: what it means may be for a later vmfrost to know.
 */
static bool
has_clones(struct json_object *record)
{
    struct json_object *clones = NULL;

    return json_object_object_get_ex(record, "clones", &clones) && clones &&
           !(json_object_is_type(clones, json_type_array) && vf_json_length(clones) == 0);
}

static enum kind
kind_of(struct json_object *record)
{
    const char *phase = vf_json_string(record, "phase");
    bool ready = vf_json_bool(record, "readyToUse", false);
    bool failed = phase && strcmp(phase, "Failed") == 0;

    if (ready && (failed || (phase && strcmp(phase, "Succeeded") == 0)))
        return KIND_SNAPSHOT;
    if (!failed || ready)
        return KIND_FIXED;
    return vf_json_length(vf_json_array(record, "cuts")) > 0 ? KIND_DOOMED : KIND_FAILED;
}

/* Why the rules do not decide about a record; NULL if they do. */
static const char *
exempt(const struct entry *entry, const struct vf_retention *rules, int64_t now_ms)
{
    const char *phase = vf_json_string(entry->record, "phase");
    const char *name = vf_json_string(entry->record, "name");

    if (entry->kind == KIND_FIXED)
        return phase && strcmp(phase, "InProgress") == 0 ? "in progress"
                                                         : "its record cannot be understood";
    if (entry->kind != KIND_SNAPSHOT && has_clones(entry->record))
        return BUILT_ON;
    if (entry->kind == KIND_DOOMED || (entry->kind == KIND_FAILED && rules->failed))
        return NULL;
    if (entry->kind == KIND_SNAPSHOT && name && vf_starts_with(name, "with-"))
        return "made by `vmfrost with`, which deletes it itself";
    if (!entry->timed)
        return "its time cannot be read";
    if (entry->time_ms > now_ms)
        return "its time is yet to come: was the clock set back?";
    return NULL;
}

static void
look_at(struct entry *entry, size_t at, struct json_object *record,
        const struct vf_retention *rules, int64_t now_ms)
{
    *entry = (struct entry){.at = at,
                            .record = record,
                            .kind = kind_of(record),
                            .reasons = vf_json_new_array()};
    /* A snapshot is as old as its cut, a record without one as its beginning. */
    const char *time =
        entry->kind == KIND_SNAPSHOT ? vf_json_string(record, "creationTime") : time_of(record);

    entry->timed = time && vf_parse_time_ms(time, &entry->time_ms);
    const char *why = exempt(entry, rules, now_ms);

    if (why) {
        entry->kind = KIND_FIXED;
        keep(entry, why);
    } else if (has_clones(record)) {
        /* It stays, and counts: the day that it stands for has its snapshot. */
        keep(entry, BUILT_ON);
    }
}

/* Oldest first; those without a time before all; equal ones in the order of the list. */
static int
by_time(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    if (x->timed != y->timed)
        return x->timed ? 1 : -1;
    if (x->timed && x->time_ms != y->time_ms)
        return x->time_ms < y->time_ms ? -1 : 1;
    return x->at < y->at ? -1 : 1;
}

/*
 * Rules
 */

enum period { HOURLY, DAILY, WEEKLY };

/* "daily 2026-11-20" */
static void
period_name(enum period period, int64_t time_ms, char *name, size_t size)
{
    time_t seconds = time_ms / 1000;
    struct tm parts;

    gmtime_r(&seconds, &parts);
    switch (period) {
    case HOURLY:
        strftime(name, size, "hourly %Y-%m-%dT%H", &parts);
        return;
    case DAILY:
        strftime(name, size, "daily %Y-%m-%d", &parts);
        return;
    case WEEKLY:
        strftime(name, size, "weekly %G-W%V", &parts);
        return;
    }
}

/* Which one it is: a number that grows with time. */
static int64_t
period_number(enum period period, int64_t time_ms)
{
    int64_t seconds = time_ms / 1000;

    switch (period) {
    case HOURLY:
        return seconds / HOUR_S;
    case DAILY:
        return seconds / DAY_S;
    case WEEKLY:
        return (seconds + WEEK_S - FIRST_MONDAY_S) / WEEK_S;
    }
    abort();
}

static bool
too_old(const struct entry *entry, const struct vf_retention *rules, int64_t now_ms)
{
    return rules->max_age_ms && entry->timed && now_ms - entry->time_ms > rules->max_age_ms;
}

/* Keeps the newest snapshot of each of the last `wanted` periods that have one. */
static void
keep_periods(struct entry *entries, size_t count, enum period period, int64_t wanted,
             const struct vf_retention *rules, int64_t now_ms)
{
    int64_t last = INT64_MAX;

    for (size_t i = count; i-- > 0 && wanted > 0;) {
        struct entry *entry = &entries[i];
        char name[64];

        if (entry->kind != KIND_SNAPSHOT || period_number(period, entry->time_ms) == last)
            continue;
        if (too_old(entry, rules, now_ms))
            return;
        last = period_number(period, entry->time_ms);
        wanted--;
        period_name(period, entry->time_ms, name, sizeof name);
        keep(entry, name);
    }
}

static void
keep_last(struct entry *entries, size_t count, int64_t wanted)
{
    VF_AUTO_FREE char *reason = vf_printf("last %lld", (long long)wanted);

    for (size_t i = count; i-- > 0 && wanted > 0;) {
        if (entries[i].kind != KIND_SNAPSHOT)
            continue;
        keep(&entries[i], reason);
        wanted--;
    }
}

/* Where there is no rule that thins out, a snapshot may stay for as long as its age allows; where
 * there is none about snapshots at all, it may stay anyway. */
static void
keep_young(struct entry *entries, size_t count, const struct vf_retention *rules, int64_t now_ms)
{
    VF_AUTO_FREE char *age = duration(rules->max_age_ms);
    VF_AUTO_FREE char *young = vf_printf("not older than %s", age);
    bool thins = rules->keep_hourly || rules->keep_daily || rules->keep_weekly;

    if (thins || (rules->keep_last && !rules->max_age_ms))
        return;
    for (size_t i = 0; i < count; i++) {
        if (entries[i].kind != KIND_SNAPSHOT || too_old(&entries[i], rules, now_ms))
            continue;
        keep(&entries[i], rules->max_age_ms ? young : "no rule is about it");
    }
}

/* What speaks against each record that nothing keeps. */
static void
judge(struct entry *entry, const struct vf_retention *rules, int64_t now_ms)
{
    VF_AUTO_FREE char *age = duration(rules->max_age_ms);

    if (vf_json_length(entry->reasons) > 0)
        return;
    switch (entry->kind) {
    case KIND_SNAPSHOT:
        entry->against = too_old(entry, rules, now_ms) ? vf_printf("older than %s", age)
                                                       : vf_strdup("no rule keeps it");
        return;
    case KIND_FAILED:
        if (too_old(entry, rules, now_ms))
            entry->against = vf_printf("failed, older than %s", age);
        else if (rules->failed)
            entry->against = vf_strdup("failed");
        else
            keep(entry, "failed: it stays to be looked at");
        return;
    case KIND_DOOMED:
        entry->against = vf_strdup("its deletion has begun");
        return;
    case KIND_FIXED:
        break;
    }
    assert(false); /* it has a reason */
}

/*
 * The plan
 */

struct json_object *
vf_retention_json(const struct vf_retention *rules)
{
    const struct {
        const char *key;
        int64_t count;
    } counts[] = {{"keepLast", rules->keep_last},
                  {"keepHourly", rules->keep_hourly},
                  {"keepDaily", rules->keep_daily},
                  {"keepWeekly", rules->keep_weekly}};
    struct json_object *object = vf_json_new_object();
    VF_AUTO_FREE char *age = duration(rules->max_age_ms);

    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        if (counts[i].count)
            vf_json_add_int(object, counts[i].key, counts[i].count);
    }
    vf_json_add_string(object, "maxAge", rules->max_age_ms ? age : NULL);
    if (rules->failed)
        vf_json_add_bool(object, "failed", true);
    return object;
}

static struct json_object *
entry_json(struct entry *entry)
{
    struct json_object *object = vf_json_strings("name", vf_json_string(entry->record, "name"),
                                                 "time", time_of(entry->record), NULL);

    if (entry->against)
        vf_json_add_string(object, "reason", entry->against);
    else
        vf_json_add(object, "reasons", json_object_get(entry->reasons));
    return object;
}

struct json_object *
vf_retention_plan(struct json_object *records, const struct vf_retention *rules, int64_t now_ms)
{
    size_t count = vf_json_length(records);
    VF_AUTO_FREE struct entry *entries = vf_alloc((count + 1) * sizeof *entries);
    struct json_object *kept = vf_json_new_array(), *chosen = vf_json_new_array();

    for (size_t i = 0; i < count; i++)
        look_at(&entries[i], i, vf_json_at(records, i), rules, now_ms);
    qsort(entries, count, sizeof *entries, by_time);
    keep_last(entries, count, rules->keep_last);
    keep_periods(entries, count, HOURLY, rules->keep_hourly, rules, now_ms);
    keep_periods(entries, count, DAILY, rules->keep_daily, rules, now_ms);
    keep_periods(entries, count, WEEKLY, rules->keep_weekly, rules, now_ms);
    keep_young(entries, count, rules, now_ms);
    for (size_t i = 0; i < count; i++) {
        judge(&entries[i], rules, now_ms);
        if (!entries[i].against)
            vf_json_append(kept, entry_json(&entries[i]));
        else if (entries[i].kind == KIND_FAILED)
            vf_json_append(chosen, entry_json(&entries[i]));
    }
    for (size_t i = 0; i < count; i++) {
        if (entries[i].against && entries[i].kind != KIND_FAILED)
            vf_json_append(chosen, entry_json(&entries[i]));
    }
    for (size_t i = 0; i < count; i++) {
        json_object_put(entries[i].reasons);
        free(entries[i].against);
    }
    struct json_object *plan = vf_json_new_object();

    vf_json_add(plan, "keep", kept);
    vf_json_add(plan, "remove", chosen);
    return plan;
}
