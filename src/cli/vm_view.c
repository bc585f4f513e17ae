/* SPDX-License-Identifier: MIT */
#include "cli/vm_view.h"

#include <stdlib.h>
#include <string.h>

#include "cli/format.h"
#include "cli/record.h"
#include "cli/table.h"
#include "cli/tree.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

static const char *
text_or(const char *text, const char *otherwise)
{
    return text ? text : otherwise;
}

static const char *
first_text(struct json_object *array)
{
    return vf_json_length(array) > 0 ? vf_json_text(vf_json_at(array, 0)) : NULL;
}

/* "running", "paused", ...; what was not told is not known. */
static const char *
state_words(struct json_object *status)
{
    const char *state = vf_json_string(status, "runState");

    if (vf_json_bool(status, "running", false))
        return text_or(state, "running");
    if (!vf_json_bool(status, "running", true))
        return "not running";
    return text_or(state, "unknown");
}

/* Of a VM that is not running, those that it is known to have. */
static struct json_object *
disks_of(struct json_object *status)
{
    struct json_object *disks = vf_json_array(status, "disks");

    return disks ? disks : vf_json_array(vf_json_object(status, "lastSeen"), "disks");
}

static void
print_head(struct out *out, struct json_object *status)
{
    struct json_object *qemu = vf_json_object(status, "qemu");
    const char *version = vf_json_string(qemu, "version");
    bool running = vf_json_bool(status, "running", false);
    int64_t pid;

    out_text(out, STYLE_BOLD, "%s", text_or(vf_json_string(status, "vm"), "?"));
    out_text(out, running ? STYLE_GOOD : STYLE_DIM, "  %s", state_words(status));
    if (version)
        out_text(out, STYLE_PLAIN, "  QEMU %s", version);
    if (vf_json_int(qemu, "pid", &pid))
        out_text(out, STYLE_PLAIN, " (pid %lld)", (long long)pid);
    out_raw(out, "\n");
    if (vf_json_string(status, "qmp"))
        out_text(out, STYLE_PLAIN, "  QMP    %s\n", vf_json_string(status, "qmp"));
}

/* How its disks are known, if it is not running. */
static void
print_seen(struct out *out, struct json_object *status)
{
    struct json_object *known = vf_json_object(status, "lastSeen");
    const char *seen = vf_json_string(known, "seen");
    double seconds;
    char age[FORMAT_SIZE];

    if (vf_json_bool(known, "declared", false))
        out_raw(out, "  disks  as the setting \"disks\" declares them\n");
    else if (seen && parse_time(seen, &seconds))
        out_text(out, STYLE_PLAIN, "  disks  as it was last seen with, %s ago\n",
                 format_age(time_now() - seconds, age));
}

static bool
agent_is_unknown(struct json_object *status)
{
    struct json_object *conditions = vf_json_array(status, "conditions");

    for (size_t i = 0; i < vf_json_length(conditions); i++) {
        struct json_object *condition = vf_json_at(conditions, i);
        const char *type = vf_json_string(condition, "type");
        const char *value = vf_json_string(condition, "status");

        if (type && value && strcmp(type, "AgentConnected") == 0)
            return strcmp(value, "Unknown") == 0;
    }
    return false;
}

static void
print_agent(struct out *out, struct json_object *status)
{
    struct json_object *agent = vf_json_object(status, "agent");
    const char *socket = vf_json_string(agent, "socket");
    const char *message = vf_json_string(agent, "message");

    if (!agent || !vf_json_bool(status, "running", true))
        return;
    out_raw(out, "  agent  ");
    if (vf_json_bool(agent, "connected", false))
        out_text(out, STYLE_GOOD, "connected");
    else if (agent_is_unknown(status))
        out_text(out, STYLE_PLAIN, "not asked");
    else
        out_text(out, STYLE_WARN, "not connected");
    if (socket)
        out_text(out, STYLE_PLAIN, "  %s", socket);
    if (message && *message)
        out_text(out, STYLE_PLAIN, "  (%s)", message);
    out_raw(out, "\n");
}

static void
add_disk(struct table *table, struct json_object *disk)
{
    bool eligible = vf_json_bool(disk, "eligible", false);
    const char *image = vf_json_string(disk, "image");
    const char *file = text_or(image, vf_json_string(disk, "file"));
    const char *naming = vf_json_string(disk, "naming");
    const char *reason = vf_json_string(disk, "reason");
    const char *message = vf_json_string(disk, "message");
    int64_t number;
    char size[FORMAT_SIZE];

    table_maybe(table, STYLE_BOLD, text_or(vf_json_string(disk, "name"), "?"));
    table_maybe(table, STYLE_PLAIN, vf_json_string(disk, "format"));
    table_maybe(table, STYLE_PLAIN,
                vf_json_int(disk, "size", &number) ? format_size(number, size) : NULL);
    if (vf_json_int(disk, "depth", &number))
        table_cell(table, STYLE_PLAIN, "%lld", (long long)number);
    else
        table_maybe(table, STYLE_PLAIN, NULL);
    if (eligible && naming)
        table_cell(table, STYLE_GOOD, "yes (%s)", naming);
    else if (eligible)
        table_cell(table, STYLE_GOOD, "yes");
    else
        table_cell(table, STYLE_WARN, "no: %s", text_or(reason, "?"));
    if (!eligible && message && *message)
        table_cell(table, STYLE_PLAIN, "%s%s(%s)", text_or(file, ""), file ? "  " : "", message);
    else
        table_maybe(table, STYLE_PLAIN, file);
}

static void
print_disks(struct out *out, struct json_object *status)
{
    struct json_object *disks = disks_of(status);
    AUTO_TABLE struct table table = {.headings = {"DISK", "FORMAT", "SIZE", "DEPTH", "SNAPSHOT",
                                                  "FILE"},
                                     .right = {[2] = true, [3] = true},
                                     .indent = 2};

    for (size_t i = 0; i < vf_json_length(disks); i++)
        add_disk(&table, vf_json_at(disks, i));
    if (table.count > 0)
        out_raw(out, "\n");
    table_print(&table, out);
}

static void
print_chain(struct out *out, struct json_object *status)
{
    struct json_object *snapshots = vf_json_array(status, "snapshots");
    AUTO_TABLE struct table table = {.headings = {"SNAPSHOT", "PHASE", "CONSISTENCY", "AGE", ""},
                                     .right = {[3] = true},
                                     .indent = 2};
    AUTO_TREE struct tree tree;

    tree_make(&tree, snapshots, out->utf8);
    for (size_t i = 0; i < tree.count; i++) {
        struct json_object *snapshot = tree.rows[i].record;
        VF_AUTO_FREE char *age = record_age(snapshot);

        table_cell(&table, STYLE_BOLD, "%s%s", tree.rows[i].branch,
                   text_or(vf_json_string(snapshot, "name"), "-"));
        table_maybe(&table, record_phase_style(snapshot), vf_json_string(snapshot, "phase"));
        table_maybe(&table, STYLE_PLAIN, vf_json_string(snapshot, "consistency"));
        table_cell(&table, STYLE_PLAIN, "%s", age);
        record_add_remark(&table, snapshot);
    }
    if (table.count > 0)
        out_raw(out, "\n");
    table_print(&table, out);
}

/* ", for 3 min" behind a time; "" if it is not known. Owned by the caller. */
static char *
since(struct json_object *object)
{
    const char *text = vf_json_string(object, "since");
    double seconds;
    char age[FORMAT_SIZE];

    if (!text || !parse_time(text, &seconds))
        return vf_strdup("");
    return vf_printf(", for %s", format_age(time_now() - seconds, age));
}

/* " in 20 s" from a time that will come. Owned by the caller. */
static char *
until(struct json_object *object)
{
    const char *text = vf_json_string(object, "until");
    double seconds;
    char rest[FORMAT_SIZE];

    if (!text || !parse_time(text, &seconds))
        return vf_strdup(" in time");
    return vf_printf(" in %s", format_age(seconds - time_now(), rest));
}

static void
print_unfinished(struct out *out, struct json_object *status)
{
    struct json_object *interrupted = vf_json_object(status, "interrupted");
    struct json_object *frozen = vf_json_object(status, "frozen");
    struct json_object *holder = vf_json_object(status, "holder");
    const char *vm = vf_json_string(status, "vm");
    VF_AUTO_FREE char *words = vm ? cli_words_for(vm, NULL) : vf_strdup("VM");
    int64_t pid = 0;

    if (holder) {
        VF_AUTO_FREE char *age = since(holder);

        vf_json_int(holder, "pid", &pid);
        out_text(out, STYLE_WARN, "  busy:");
        out_text(out, STYLE_PLAIN, " %s by process %lld%s\n",
                 text_or(vf_json_string(holder, "what"), "an operation"), (long long)pid, age);
    }
    if (frozen) {
        VF_AUTO_FREE char *age = since(frozen);
        VF_AUTO_FREE char *rest = until(frozen);

        out_text(out, STYLE_WARN, "  FROZEN");
        out_text(out, STYLE_PLAIN, " by hand%s; its guard thaws it%s\n", age, rest);
        out_text(out, STYLE_HINT, "     hint:");
        out_text(out, STYLE_PLAIN, " vmfrost thaw %s thaws it sooner\n", words);
    }
    if (interrupted) {
        VF_AUTO_FREE char *age = since(interrupted);

        out_text(out, STYLE_BAD, "  interrupted:");
        out_text(out, STYLE_PLAIN, " %s%s\n",
                 text_or(vf_json_string(interrupted, "operation"), "an operation"), age);
        if (vf_json_bool(interrupted, "owesThaw", false))
            out_text(out, STYLE_ALARM, "  THE GUEST MAY BE FROZEN\n");
        out_text(out, STYLE_HINT, "     hint:");
        out_text(out, STYLE_PLAIN, " vmfrost recover %s\n", words);
    }
}

void
view_status(struct cli *cli, struct json_object *status)
{
    struct out *out = &cli->out;

    print_head(out, status);
    print_agent(out, status);
    print_seen(out, status);
    print_unfinished(out, status);
    print_disks(out, status);
    print_chain(out, status);
    print_warnings(cli, out, status);
}

/* What would be frozen, unless it is everything. */
static void
print_mounts(struct out *out, struct json_object *check)
{
    struct json_object *mounts = vf_json_array(check, "frozenMounts");
    const char *why = vf_json_string(check, "freezeMessage");

    for (size_t i = 0; i < vf_json_length(mounts); i++)
        out_text(out, STYLE_PLAIN, "  freezes %s\n",
                 text_or(vf_json_text(vf_json_at(mounts, i)), "?"));
    if (why)
        out_text(out, STYLE_PLAIN, "  freezes %s: %s\n", mounts ? "no less" : "all file systems",
                 why);
}

void
view_check(struct cli *cli, struct json_object *check, bool passed)
{
    struct out *out = &cli->out;
    struct json_object *disks = vf_json_array(check, "disks");
    bool agent = vf_json_bool(vf_json_object(check, "agent"), "connected", false);
    int64_t count = 0;
    char text[FORMAT_SIZE];

    view_status(cli, check);
    for (size_t i = 0; i < vf_json_length(disks); i++)
        count += vf_json_bool(vf_json_at(disks, i), "eligible", false);
    if (!passed || !vf_json_bool(check, "wouldSucceed", passed)) {
        out_text(out, STYLE_BAD, "a snapshot would fail\n");
        return;
    }
    out_text(out, STYLE_GOOD, "a snapshot would succeed");
    out_text(out, STYLE_PLAIN, ": %s, %s\n", format_count(count, "disk", text),
             cli->options.snapshot.quiesce == VMFROST_QUIESCE_SKIP ? "crash-consistent as asked for"
             : agent                                               ? "frozen by the guest agent"
             : vf_json_bool(check, "running", false) ? "crash-consistent without a guest agent"
                                                     : "the VM is not running");
    print_mounts(out, check);
}

static void
add_status(struct table *table, const struct job *job)
{
    struct json_object *status = job->outcome.document;
    struct json_object *agent = vf_json_object(status, "agent");
    struct json_object *disks = disks_of(status);
    struct json_object *interrupted = vf_json_object(status, "interrupted");
    struct json_object *frozen = vf_json_object(status, "frozen");
    bool running = vf_json_bool(status, "running", false);
    size_t eligible = 0;

    for (size_t i = 0; i < vf_json_length(disks); i++)
        eligible += vf_json_bool(vf_json_at(disks, i), "eligible", false);
    table_cell(table, STYLE_BOLD, "%s", job->vm);
    if (job->outcome.code != VMFROST_OK) {
        table_cell(table, STYLE_BAD, "error");
        for (int i = 0; i < 3; i++)
            table_maybe(table, STYLE_PLAIN, NULL);
        table_cell(table, STYLE_PLAIN, "%s", job->outcome.text);
        return;
    }
    table_cell(table, running ? STYLE_GOOD : STYLE_DIM, "%s", state_words(status));
    if (running && agent)
        table_cell(table, STYLE_PLAIN, "%s",
                   vf_json_bool(agent, "connected", false) ? "connected" : "no");
    else
        table_maybe(table, STYLE_PLAIN, NULL);
    if (disks)
        table_cell(table, STYLE_PLAIN, "%zu of %zu", eligible, vf_json_length(disks));
    else
        table_maybe(table, STYLE_PLAIN, NULL);
    table_cell(table, STYLE_PLAIN, "%zu", vf_json_length(vf_json_array(status, "snapshots")));
    if (vf_json_bool(interrupted, "owesThaw", false)) {
        table_cell(table, STYLE_ALARM, "MAY BE FROZEN: vmfrost recover");
    } else if (frozen) {
        VF_AUTO_FREE char *rest = until(frozen);

        table_cell(table, STYLE_WARN, "FROZEN by hand: its guard thaws it%s", rest);
    } else if (interrupted) {
        table_cell(table, STYLE_WARN, "interrupted %s: vmfrost recover",
                   text_or(vf_json_string(interrupted, "operation"), "operation"));
    } else if (vf_json_object(status, "holder")) {
        table_cell(table, STYLE_WARN, "busy: %s",
                   text_or(vf_json_string(vf_json_object(status, "holder"), "what"), "?"));
    } else {
        table_cell(table, STYLE_PLAIN, "%s",
                   text_or(first_text(vf_json_array(status, "warnings")), ""));
    }
}

void
view_statuses(struct cli *cli, const struct job *jobs, size_t count)
{
    AUTO_TABLE struct table table = {.headings = {"VM", "STATE", "AGENT", "DISKS", "SNAPSHOTS",
                                                  "REMARK"},
                                     .right = {[4] = true}};

    for (size_t i = 0; i < count; i++)
        add_status(&table, &jobs[i]);
    table_print(&table, &cli->out);
}

static void
add_first(struct table *table, struct json_object *paths)
{
    const char *first = first_text(paths);
    size_t count = vf_json_length(paths);

    if (first && count > 1)
        table_cell(table, STYLE_PLAIN, "%s (and %zu more)", first, count - 1);
    else
        table_maybe(table, STYLE_PLAIN, first);
}

void
view_machines(struct cli *cli, struct json_object *machines)
{
    AUTO_TABLE struct table table = {.headings = {"PID", "UID", "NAME", "VM", "AGENT", "QMP",
                                                  "AGENT SOCKET"},
                                     .right = {true, true}};
    bool unknown = false;

    for (size_t i = 0; i < vf_json_length(machines); i++) {
        struct json_object *machine = vf_json_at(machines, i);
        struct json_object *connected = NULL;
        int64_t pid = 0, user = 0;

        vf_json_int(machine, "pid", &pid);
        table_cell(&table, STYLE_PLAIN, "%lld", (long long)pid);
        if (vf_json_int(machine, "user", &user))
            table_cell(&table, STYLE_PLAIN, "%lld", (long long)user);
        else
            table_maybe(&table, STYLE_PLAIN, NULL);
        table_maybe(&table, STYLE_PLAIN, vf_json_string(machine, "name"));
        table_maybe(&table, STYLE_BOLD, vf_json_string(machine, "vm"));
        json_object_object_get_ex(machine, "agentConnected", &connected);
        table_maybe(&table, STYLE_PLAIN,
                    connected ? json_object_get_boolean(connected) ? "connected" : "no" : NULL);
        add_first(&table, vf_json_array(machine, "qmp"));
        add_first(&table, vf_json_array(machine, "agent"));
        unknown = unknown || !vf_json_string(machine, "vm");
    }
    if (table.count == 0) {
        out_raw(&cli->out, "no running QEMU that you may look at\n");
        return;
    }
    table_print(&table, &cli->out);
    if (unknown)
        out_text(&cli->out, STYLE_HINT, "remember one: vmfrost add NAME --qmp PATH\n");
}
