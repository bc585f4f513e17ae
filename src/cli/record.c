/* SPDX-License-Identifier: MIT */
#include "cli/record.h"

#include <stdlib.h>
#include <string.h>

#include "cli/format.h"
#include "cli/table.h"
#include "cli/tree.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

enum record_phase
record_phase(struct json_object *record)
{
    const char *phase = vf_json_string(record, "phase");

    if (!phase)
        return PHASE_UNKNOWN;
    if (strcmp(phase, "Succeeded") == 0)
        return PHASE_SUCCEEDED;
    if (strcmp(phase, "Failed") == 0)
        return PHASE_FAILED;
    return strcmp(phase, "InProgress") == 0 ? PHASE_IN_PROGRESS : PHASE_UNKNOWN;
}

enum style
record_phase_style(struct json_object *record)
{
    switch (record_phase(record)) {
    case PHASE_IN_PROGRESS:
        return STYLE_WARN;
    case PHASE_SUCCEEDED:
        return STYLE_GOOD;
    case PHASE_FAILED:
        return STYLE_BAD;
    case PHASE_UNKNOWN:
        return STYLE_PLAIN;
    }
    return STYLE_PLAIN;
}

bool
record_number(struct json_object *object, const char *key, double *value_r)
{
    struct json_object *value = NULL;

    if (!json_object_is_type(object, json_type_object) ||
        !json_object_object_get_ex(object, key, &value))
        return false;
    if (!json_object_is_type(value, json_type_int) && !json_object_is_type(value, json_type_double))
        return false;
    *value_r = json_object_get_double(value);
    return true;
}

bool
record_has_indication(struct json_object *record, const char *name)
{
    struct json_object *indications = vf_json_array(record, "indications");

    for (size_t i = 0; i < vf_json_length(indications); i++) {
        const char *indication = vf_json_text(vf_json_at(indications, i));

        if (indication && strcmp(indication, name) == 0)
            return true;
    }
    return false;
}

/* Why it is only crash-consistent. */
static const char *
why_crash(struct json_object *record)
{
    const char *quiesce = vf_json_string(vf_json_object(record, "evidence"), "quiesce");

    if (record_has_indication(record, "QuiesceFailed"))
        return "crash-consistent: the freeze failed";
    if (quiesce && strcmp(quiesce, "skip") == 0)
        return "crash-consistent: it was not frozen, as asked for";
    if (record_has_indication(record, "Paused"))
        return "crash-consistent: the guest was paused";
    if (record_has_indication(record, "NoGuestAgent"))
        return "crash-consistent: no guest agent";
    return "crash-consistent";
}

char *
record_quality(struct json_object *record)
{
    const char *consistency = vf_json_string(record, "consistency");
    struct json_object *evidence = vf_json_object(record, "evidence");
    int64_t frozen, thawed;
    char count[FORMAT_SIZE];

    if (!consistency || strcmp(consistency, "none") == 0)
        return vf_strdup("of no known consistency");
    if (strcmp(consistency, "crash") == 0)
        return vf_strdup(why_crash(record));
    if (strcmp(consistency, "offline") == 0)
        return vf_strdup("offline: the VM was not running");
    if (strcmp(consistency, "filesystem") != 0)
        return vf_strdup(consistency);
    if (!vf_json_int(evidence, "frozenFilesystems", &frozen) ||
        !vf_json_int(evidence, "thawedFilesystems", &thawed))
        return vf_strdup("consistent");
    format_count(frozen, "file system", count);
    if (frozen == thawed)
        return vf_printf("consistent (%s frozen and thawed)", count);
    return vf_printf("doubtful: %s frozen, but %lld thawed", count, (long long)thawed);
}

char *
record_age(struct json_object *record)
{
    const char *time = vf_json_string(record, "creationTime");
    double seconds;
    char age[FORMAT_SIZE];

    if (!time)
        time = vf_json_string(record, "startTime");
    if (!time || !parse_time(time, &seconds))
        return vf_strdup("-");
    return vf_strdup(format_age(time_now() - seconds, age));
}

static bool
was_shown(const struct cli *cli, const char *warning)
{
    for (size_t i = 0; i < vf_json_length(cli->shown); i++)
        if (strcmp(vf_json_text(vf_json_at(cli->shown, i)), warning) == 0)
            return true;
    return false;
}

void
print_warnings(struct cli *cli, struct out *out, struct json_object *document)
{
    struct json_object *warnings = vf_json_array(document, "warnings");

    if (cli->options.quiet)
        return;
    for (size_t i = 0; i < vf_json_length(warnings); i++) {
        const char *warning = vf_json_text(vf_json_at(warnings, i));

        if (!warning || was_shown(cli, warning))
            continue;
        out_text(out, STYLE_WARN, "  warning:");
        out_text(out, STYLE_PLAIN, " %s\n", warning);
    }
}

static struct json_object *
included_of(struct json_object *record)
{
    return vf_json_array(vf_json_object(record, "snapshotVolumes"), "included");
}

static const char *
text_or(const char *text, const char *otherwise)
{
    return text ? text : otherwise;
}

static void
print_volumes(struct out *out, struct json_object *record)
{
    struct json_object *included = included_of(record);
    struct json_object *excluded =
        vf_json_array(vf_json_object(record, "snapshotVolumes"), "excluded");
    size_t width = 0;

    for (size_t i = 0; i < vf_json_length(included); i++) {
        const char *name = text_or(vf_json_string(vf_json_at(included, i), "name"), "?");

        width = strlen(name) > width ? strlen(name) : width;
    }
    for (size_t i = 0; i < vf_json_length(included); i++) {
        struct json_object *volume = vf_json_at(included, i);

        out_text(out, STYLE_PLAIN, "  %-*s  %s\n", (int)width,
                 text_or(vf_json_string(volume, "name"), "?"),
                 text_or(vf_json_string(volume, "image"), "-"));
    }
    for (size_t i = 0; i < vf_json_length(excluded); i++) {
        struct json_object *volume = vf_json_at(excluded, i);
        const char *reason = vf_json_string(volume, "reason");
        const char *message = vf_json_string(volume, "message");

        out_text(out, STYLE_DIM, "  left out: %s (%s%s%s)\n",
                 text_or(vf_json_string(volume, "name"), "?"), text_or(reason, ""),
                 reason && message ? ": " : "", text_or(message, reason ? "" : "no reason given"));
    }
}

/* In new-file mode the VM's own command line opens the wrong file from now on. */
static void
print_launcher(struct out *out, struct json_object *record)
{
    struct json_object *conditions = vf_json_array(record, "conditions");
    struct json_object *included = included_of(record);
    bool must_change = false;

    for (size_t i = 0; i < vf_json_length(conditions); i++) {
        struct json_object *condition = vf_json_at(conditions, i);

        if (strcmp(text_or(vf_json_string(condition, "type"), ""), "LauncherMustChange") != 0 ||
            strcmp(text_or(vf_json_string(condition, "status"), ""), "True") != 0)
            continue;
        must_change = true;
        out_text(out, STYLE_WARN, "  the launcher must change:");
        out_text(out, STYLE_PLAIN, " %s\n",
                 text_or(vf_json_string(condition, "message"),
                         "what it opens is not the current state any more"));
    }
    for (size_t i = 0; must_change && i < vf_json_length(included); i++) {
        struct json_object *volume = vf_json_at(included, i);

        if (!vf_json_bool(volume, "launcherMustChange", false) &&
            strcmp(text_or(vf_json_string(volume, "naming"), ""), "new-file") != 0)
            continue;
        out_text(out, STYLE_PLAIN, "    next start: %s is %s (format qcow2)\n",
                 text_or(vf_json_string(volume, "name"), "?"),
                 text_or(vf_json_string(volume, "current"), "?"));
    }
}

static void
print_head(struct out *out, struct json_object *record)
{
    out_text(out, STYLE_BOLD, "%s@%s", text_or(vf_json_string(record, "vm"), "?"),
             text_or(vf_json_string(record, "name"), "?"));
    out_text(out, record_phase_style(record), "  %s",
             text_or(vf_json_string(record, "phase"), "?"));
}

/* How the command line names it. Owned by the caller. */
static char *
words_of(struct json_object *record)
{
    const char *vm = vf_json_string(record, "vm");
    const char *name = vf_json_string(record, "name");

    return vm && name ? cli_words_for(vm, name) : NULL;
}

/* "3 VMs at one instant, cut within 0.8 ms; not frozen: db"; NULL if there is no group that has its
 * snapshots. Owned by the caller. */
static char *
group_text(struct json_object *record)
{
    struct json_object *group = vf_json_object(record, "group");
    struct json_object *unfrozen = vf_json_array(group, "unfrozen");
    VF_AUTO_FREE char *names = vf_strdup("");
    int64_t spread_us = 0;
    char spread[FORMAT_SIZE];

    if (!vf_json_int(group, "spreadUs", &spread_us))
        return NULL;
    for (size_t i = 0; i < vf_json_length(unfrozen); i++) {
        const char *name = vf_json_text(vf_json_at(unfrozen, i));
        VF_AUTO_FREE char *before = names;

        names = vf_printf("%s%s%s", before, i ? ", " : "; not frozen: ", name ? name : "?");
    }
    return vf_printf("%zu VMs %s, cut within %s%s", vf_json_length(vf_json_array(group, "members")),
                     vf_json_bool(group, "oneInstant", false) ? "at one instant"
                                                              : "at almost one instant",
                     format_ms((double)spread_us / 1000, spread), names);
}

void
record_print_summary(struct cli *cli, struct json_object *record)
{
    struct out *out = &cli->out;
    VF_AUTO_FREE char *quality = record_quality(record);
    double frozen_ms;
    char number[FORMAT_SIZE];

    if (!vf_json_string(record, "phase"))
        return; /* refused before there was a record */
    print_head(out, record);
    if (record_phase(record) != PHASE_SUCCEEDED) {
        VF_AUTO_FREE char *words = record_phase(record) == PHASE_FAILED ? words_of(record) : NULL;

        if (words)
            out_text(out, STYLE_PLAIN, "  its record stays until: vmfrost delete %s", words);
        out_raw(out, "\n");
        print_warnings(cli, out, record);
        return;
    }
    out_text(out, STYLE_PLAIN, "  %s", quality);
    if (record_number(vf_json_object(record, "evidence"), "frozenMs", &frozen_ms))
        out_text(out, STYLE_PLAIN, "  frozen for %s", format_ms(frozen_ms, number));
    out_text(out, STYLE_PLAIN, "  %s\n",
             format_count((int64_t)vf_json_length(included_of(record)), "disk", number));
    VF_AUTO_FREE char *group = group_text(record);

    if (group)
        out_text(out, STYLE_PLAIN, "  one of %s\n", group);
    print_volumes(out, record);
    print_launcher(out, record);
    print_warnings(cli, out, record);
}

static void
print_field(struct out *out, const char *heading, const char *text)
{
    if (!text)
        return;
    out_text(out, STYLE_DIM, "  %-14s", heading);
    out_text(out, STYLE_PLAIN, " %s\n", text);
}

static void
print_ms(struct out *out, struct json_object *object, const char *key, const char *heading)
{
    double ms;
    char text[FORMAT_SIZE];

    if (record_number(object, key, &ms))
        print_field(out, heading, format_ms(ms, text));
}

static void
print_times(struct out *out, struct json_object *record)
{
    VF_AUTO_FREE char *age = record_age(record);
    const char *cut = vf_json_string(record, "creationTime");
    VF_AUTO_FREE char *text = cut ? vf_printf("%s (%s ago)", cut, age) : NULL;

    print_field(out, "started", vf_json_string(record, "startTime"));
    print_field(out, "taken", text);
    print_field(out, "completed", vf_json_string(record, "completionTime"));
    print_field(out, "deadline", vf_json_string(record, "failureDeadline"));
}

/* Which file systems, unless it was all of them. */
static void
print_frozen(struct out *out, struct json_object *evidence)
{
    struct json_object *mounts = vf_json_array(evidence, "frozenMounts");

    for (size_t i = 0; i < vf_json_length(mounts); i++)
        print_field(out, i == 0 ? "frozen" : "", vf_json_text(vf_json_at(mounts, i)));
    print_field(out, "frozen: why", vf_json_string(evidence, "freezeMessage"));
}

static void
print_evidence(struct out *out, struct json_object *record)
{
    static const char *const instants[][2] = {{"freezeSent", "freeze sent"},
                                              {"frozen", "frozen at"},
                                              {"cut", "cut at"},
                                              {"thawSent", "thaw sent"},
                                              {"thawed", "thawed at"}};
    struct json_object *evidence = vf_json_object(record, "evidence");
    struct json_object *events = vf_json_array(evidence, "windowEvents");

    print_field(out, "method", vf_json_string(evidence, "method"));
    print_field(out, "quiesce", vf_json_string(evidence, "quiesce"));
    print_frozen(out, evidence);
    print_ms(out, evidence, "frozenMs", "frozen for");
    print_ms(out, evidence, "freezeMs", "  freeze took");
    print_ms(out, evidence, "cutMs", "  cut took");
    print_ms(out, evidence, "thawMs", "  thaw took");
    for (size_t i = 0; i < sizeof instants / sizeof *instants; i++)
        print_field(out, instants[i][1], vf_json_string(evidence, instants[i][0]));
    for (size_t i = 0; i < vf_json_length(events); i++) {
        struct json_object *event = vf_json_at(events, i);

        print_field(out, "in the window",
                    text_or(vf_json_text(event), vf_json_print(event, JSON_C_TO_STRING_SPACED)));
    }
}

static void
print_conditions(struct out *out, struct json_object *record)
{
    struct json_object *conditions = vf_json_array(record, "conditions");
    AUTO_TABLE struct table table = {.headings = {"CONDITION", "STATUS", "REASON", "MESSAGE"},
                                     .indent = 2};

    for (size_t i = 0; i < vf_json_length(conditions); i++) {
        struct json_object *condition = vf_json_at(conditions, i);

        table_maybe(&table, STYLE_PLAIN, vf_json_string(condition, "type"));
        table_maybe(&table, STYLE_PLAIN, vf_json_string(condition, "status"));
        table_maybe(&table, STYLE_PLAIN, vf_json_string(condition, "reason"));
        table_maybe(&table, STYLE_PLAIN, vf_json_string(condition, "message"));
    }
    table_print(&table, out);
}

static void
print_clones(struct out *out, struct json_object *record)
{
    struct json_object *clones = vf_json_array(record, "clones");

    for (size_t i = 0; i < vf_json_length(clones); i++)
        print_field(out, "cloned to", text_or(vf_json_string(vf_json_at(clones, i), "path"), "?"));
}

void
record_print(struct cli *cli, struct json_object *record)
{
    struct out *out = &cli->out;
    struct json_object *qemu = vf_json_object(record, "qemu");
    struct json_object *error = vf_json_object(record, "error");
    VF_AUTO_FREE char *quality = record_quality(record);
    VF_AUTO_FREE char *group = group_text(record);

    print_head(out, record);
    out_raw(out, "\n");
    if (record_phase(record) == PHASE_SUCCEEDED)
        print_field(out, "quality", quality);
    print_field(out, "error", vf_json_string(error, "message"));
    print_field(out, "what to do", vf_json_string(error, "next"));
    print_times(out, record);
    print_evidence(out, record);
    print_field(out, "one of", group);
    print_field(out, "QEMU", vf_json_string(qemu, "version"));
    print_volumes(out, record);
    print_clones(out, record);
    print_launcher(out, record);
    print_conditions(out, record);
    print_warnings(cli, out, record);
}

void
record_add_remark(struct table *table, struct json_object *record)
{
    size_t clones = vf_json_length(vf_json_array(record, "clones"));
    const char *here = vf_json_bool(record, "current", false) ? "<- you are here" : "";
    char count[FORMAT_SIZE];

    /* A Succeeded one was ready when it was written. */
    if (record_phase(record) == PHASE_SUCCEEDED && !vf_json_bool(record, "readyToUse", true))
        table_cell(table, STYLE_BAD, "an image of it is missing");
    else if (clones > 0)
        table_cell(table, STYLE_HINT, "%s%s%s", here, *here ? ", " : "",
                   format_count((int64_t)clones, "clone", count));
    else
        table_cell(table, STYLE_HINT, "%s", here);
}

void
record_print_table(struct cli *cli, struct json_object *records)
{
    AUTO_TABLE struct table table = {.headings = {"VM", "NAME", "PHASE", "CONSISTENCY", "AGE",
                                                  "DISKS", "FROZEN", ""},
                                     .right = {[4] = true, [5] = true, [6] = true}};
    AUTO_TREE struct tree tree;

    tree_make(&tree, records, cli->out.utf8);
    for (size_t i = 0; i < tree.count; i++) {
        struct json_object *record = tree.rows[i].record;
        VF_AUTO_FREE char *age = record_age(record);
        double frozen_ms;
        char text[FORMAT_SIZE];

        table_maybe(&table, STYLE_PLAIN, vf_json_string(record, "vm"));
        table_cell(&table, STYLE_BOLD, "%s%s", tree.rows[i].branch,
                   text_or(vf_json_string(record, "name"), "-"));
        table_maybe(&table, record_phase_style(record), vf_json_string(record, "phase"));
        table_maybe(&table, STYLE_PLAIN, vf_json_string(record, "consistency"));
        table_cell(&table, STYLE_PLAIN, "%s", age);
        table_cell(&table, STYLE_PLAIN, "%zu", vf_json_length(included_of(record)));
        if (record_number(vf_json_object(record, "evidence"), "frozenMs", &frozen_ms))
            table_cell(&table, STYLE_PLAIN, "%s", format_ms(frozen_ms, text));
        else
            table_maybe(&table, STYLE_PLAIN, NULL);
        record_add_remark(&table, record);
    }
    table_print(&table, &cli->out);
}
