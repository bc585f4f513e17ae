/* SPDX-License-Identifier: MIT
 *
 * The record of a snapshot, as its users read it, and the journal of the operation that makes it.
 *
 * The record says what is known and no more: "consistent" is the word for a snapshot during which
 * as many file systems were thawed as had been frozen and nothing disturbed the window.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "flows/group.h"
#include "flows/steps.h"
#include "flows/truth.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"

/* A journal, a record and a list of links, some of them while their predecessors are still there.
 */
enum { STATE_LEAST = 256 * 1024 };

/* The journal. */

bool
vf_journal_state(struct vf_flow *flow, const char *state, struct json_object *more)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *line = vf_json_strings("state", state, NULL);
    char now[32];

    vf_flow_time(flow, vf_now_us(), now);
    vf_json_add_string(line, "time", now);
    if (json_object_is_type(more, json_type_array)) {
        vf_json_add(line, "cuts", more);
    } else if (more) {
        json_object_object_foreach(more, key, value) vf_json_add(line, key, json_object_get(value));
        json_object_put(more);
    }
    bool written = vf_journal_write(&flow->journal, line, &error);

    json_object_put(line);
    return written || vf_note_error(flow, &error);
}

struct json_object *
vf_cuts_json(const struct vf_flow *flow)
{
    struct json_object *array = vf_json_new_array();

    for (size_t i = 0; i < flow->cut_count; i++)
        vf_json_append(array, vf_cut_json(&flow->cuts[i]));
    return array;
}

bool
vf_cuts_parse(struct vf_flow *flow, struct json_object *array)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        vf_cut_release(&flow->cuts[i]);
    flow->cut_count = 0;
    for (size_t i = 0; i < vf_json_length(array); i++) {
        VF_GROW(flow->cuts, flow->cut_count);
        if (!vf_cut_parse(&flow->cuts[flow->cut_count], vf_json_at(array, i)))
            return false;
        flow->cut_count++;
    }
    return true;
}

static struct json_object *
first_line(const struct vf_flow *flow)
{
    struct json_object *line =
        vf_json_strings("operation", flow->engine.table->operation, "id", flow->id, "vm",
                        flow->vm.name, "qmp", flow->vm.qmp, "agent", flow->agent.socket,
                        "agentPortId", flow->agent.port_id, "snapshot", flow->snapshot_name,
                        "qemuVersion", flow->qemu_version, NULL);
    char now[32];

    vf_flow_time(flow, vf_now_us(), now);
    vf_json_add_string(line, "time", now);
    vf_json_add_int(line, "pid", getpid());
    vf_json_add_int(line, "qemu", flow->qemu.pid);
    vf_json_add_int(line, "qemuStarted", (int64_t)flow->qemu.started);
    if (flow->engine.conditions & VF_IF_STOPPED) /* then that is the storage daemon */
        vf_json_add_bool(line, "offline", true);
    if (flow->engine.deadline_us != INT64_MAX)
        vf_json_add_int(line, "deadline",
                        (flow->engine.deadline_us + flow->wall_offset_us) / 1000000);
    vf_json_add_string(line, "keep", flow->restore.keep);
    vf_json_add_string(line, "group", vf_group_id(flow));
    vf_json_add(line, "cuts", vf_cuts_json(flow));
    return line;
}

bool
vf_journal_open(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *line = first_line(flow);
    bool begun = vf_journal_begin(&flow->journal, &flow->vm, line, &error);

    json_object_put(line);
    return begun || vf_note_error(flow, &error);
}

/* The record. */

static void
add_time(const struct vf_flow *flow, struct json_object *object, const char *key, int64_t stamp_us)
{
    char text[32];

    if (!stamp_us)
        return;
    vf_flow_time(flow, stamp_us, text);
    vf_json_add_string(object, key, text);
}

static void
add_ms(struct json_object *object, const char *key, int64_t from_us, int64_t to_us)
{
    char text[32];

    if (!from_us || to_us < from_us)
        return;
    /* In integers: the caller's locale may write decimals with a comma. */
    snprintf(text, sizeof text, "%lld.%03d", (long long)((to_us - from_us) / 1000),
             (int)((to_us - from_us) % 1000));
    vf_json_add_double(object, key, (double)(to_us - from_us) / 1000, text);
}

static const char *
quiesce_name(enum vmfrost_quiesce quiesce)
{
    switch (quiesce) {
    case VMFROST_QUIESCE_DEFAULT: /* the library's entry has put the VM's setting in its place */
    case VMFROST_QUIESCE_AUTO:
        return "auto";
    case VMFROST_QUIESCE_REQUIRE:
        return "require";
    case VMFROST_QUIESCE_PREFER:
        return "prefer";
    case VMFROST_QUIESCE_SKIP:
        return "skip";
    }
    return NULL;
}

struct json_object *
vf_evidence_json(const struct vf_flow *flow)
{
    const struct vf_evidence *evidence = &flow->evidence;
    if (flow->recovered_evidence)
        return json_object_get(flow->recovered_evidence);
    struct json_object *object = vf_json_new_object();

    vf_json_add_string(object, "quiesce", quiesce_name(flow->options.quiesce));
    vf_json_add_string(object, "method", flow->preopened ? "preopened" : "existing");
    if (evidence->frozen_count >= 0)
        vf_json_add_int(object, "frozenFilesystems", evidence->frozen_count);
    if (evidence->thawed_count >= 0)
        vf_json_add_int(object, "thawedFilesystems", evidence->thawed_count);
    if (evidence->cut_sent)
        vf_json_add_bool(object, "primed", evidence->primed);
    if (flow->froze)
        vf_freezing_json(flow, object);
    add_ms(object, "flushMs", evidence->flush_sent, evidence->flushed);
    add_ms(object, "hostFlushMs", evidence->host_flush, evidence->host_flushed);
    add_ms(object, "freezeMs", evidence->freeze_sent, evidence->frozen);
    add_ms(object, "cutMs", evidence->cut_sent, evidence->cut);
    add_ms(object, "frozenMs", evidence->frozen, evidence->thaw_sent);
    add_ms(object, "thawMs", evidence->thaw_sent, evidence->thawed);
    add_time(flow, object, "freezeSent", evidence->freeze_sent);
    add_time(flow, object, "frozen", evidence->frozen);
    add_time(flow, object, "cutSent", evidence->cut_sent);
    add_time(flow, object, "cut", evidence->cut);
    add_time(flow, object, "thawSent", evidence->thaw_sent);
    add_time(flow, object, "thawed", evidence->thawed);
    vf_json_add_string(object, "disturbedBy", evidence->disturbed);
    return object;
}

static void
add_condition(const struct vf_flow *flow, struct json_object *conditions, const char *type,
              bool status, const char *reason, const char *message)
{
    struct json_object *condition =
        vf_json_strings("type", type, "status", status ? "True" : "False", "reason", reason,
                        "message", message, NULL);

    add_time(flow, condition, "lastTransitionTime", vf_now_us());
    vf_json_append(conditions, condition);
}

/* It opens what is a sealed image from now on; or still does, from an earlier snapshot on. */
static bool
launcher_must_change(const struct vf_flow *flow, const struct vf_cut *cut,
                     struct json_object *records)
{
    switch (cut->naming) {
    case VF_NAMING_FLIP:
        return vf_truth_launcher_is_old(flow, records, cut->names.top);
    case VF_NAMING_NEW_FILE:
        return true;
    }
    return false;
}

static struct json_object *
volumes(const struct vf_flow *flow, struct json_object *records)
{
    struct json_object *object = vf_json_new_object(), *included = vf_json_new_array(),
                       *excluded = vf_json_new_array();

    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        struct json_object *volume =
            vf_json_strings("name", cut->name, "image", cut->names.sealed, "current",
                            cut->naming == VF_NAMING_FLIP ? cut->names.top : cut->names.overlay,
                            "format", cut->format, "storageClass", cut->storage_class, "naming",
                            cut->naming == VF_NAMING_FLIP ? "flip" : "new-file", "message",
                            cut->why, NULL);

        vf_json_add_int(volume, "size", cut->size);
        if (launcher_must_change(flow, cut, records))
            vf_json_add_bool(volume, "launcherMustChange", true);
        vf_json_append(included, volume);
    }
    for (size_t i = 0; i < flow->plan.count; i++) {
        const struct vf_disk *disk = &flow->plan.disks[i];

        if (disk->reason != VF_INCLUDED)
            vf_json_append(excluded, vf_json_strings("name", disk->name, "reason",
                                                     vf_reason_name(disk->reason), "message",
                                                     disk->why, NULL));
    }
    /* Of a stopped VM, what was left out when it ran. */
    struct json_object *known =
        flow->engine.conditions & VF_IF_STOPPED ? vf_json_array(flow->known_disks, "disks") : NULL;

    for (size_t i = 0; i < vf_json_length(known); i++)
        if (!vf_json_bool(vf_json_at(known, i), "eligible", false))
            vf_json_append(excluded,
                           vf_json_strings("name", vf_json_string(vf_json_at(known, i), "name"),
                                           "reason", vf_json_string(vf_json_at(known, i), "reason"),
                                           "message",
                                           vf_json_string(vf_json_at(known, i), "message"), NULL));
    vf_json_add(object, "included", included);
    vf_json_add(object, "excluded", excluded);
    return object;
}

static bool
any_launcher_must_change(const struct vf_flow *flow, struct json_object *records)
{
    bool any = false;

    for (size_t i = 0; i < flow->cut_count; i++)
        any |= launcher_must_change(flow, &flow->cuts[i], records);
    return any;
}

static void
fill_conditions(struct vf_flow *flow, const char *phase, bool ready, struct json_object *records)
{
    struct json_object *conditions = vf_json_new_array();
    bool failed = strcmp(phase, "Failed") == 0, running = strcmp(phase, "InProgress") == 0;

    add_condition(flow, conditions, "Ready", ready,
                  ready     ? "Complete"
                  : running ? "InProgress"
                            : "Failed",
                  ready ? "every image is in its place" : "there is no content to restore");
    add_condition(flow, conditions, "Progressing", running, running ? "InProgress" : "Ended", NULL);
    if (failed)
        add_condition(flow, conditions, "Failure", true,
                      flow->error.code == VMFROST_DEADLINE ? "DeadlineExceeded" : "Failed",
                      flow->error.text);
    if (ready && any_launcher_must_change(flow, records))
        add_condition(flow, conditions, "LauncherMustChange", true, "NewFile",
                      "some disks have a new current file: start the VM with what `vmfrost "
                      "show` lists as \"current\", in format qcow2");
    vf_json_add(flow->record, "conditions", conditions);
}

static void
fill_indications(struct vf_flow *flow)
{
    struct json_object *indications = vf_json_new_array();
    bool online = !(flow->engine.conditions & VF_IF_STOPPED);
    const char *names[] = {
        online ? "Online" : "Offline",
        !online                 ? NULL
        : flow->agent.connected ? "GuestAgent"
                                : "NoGuestAgent",
        flow->quiesce_failed ? "QuiesceFailed" : NULL,
        online && flow->plan.run_state && !flow->plan.running ? "Paused" : NULL,
        flow->unverified ? "ThawUnverified" : NULL,
    };

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i])
            vf_json_append(indications, vf_json_new_string(names[i]));
    vf_json_add(flow->record, "indications", indications);
}

static bool
is_consistent(const struct vf_flow *flow)
{
    const struct vf_evidence *evidence = &flow->evidence;

    return flow->froze && !flow->quiesce_failed && !flow->unverified && !evidence->disturbed &&
           evidence->frozen_count > 0 && evidence->thawed_count == evidence->frozen_count &&
           !flow->freezing.mounts.partial;
}

bool
vf_record_is_offline(const struct vf_flow *flow)
{
    struct json_object *indications = vf_json_array(flow->record, "indications");

    for (size_t i = 0; i < vf_json_length(indications); i++) {
        const char *word = vf_json_text(vf_json_at(indications, i));

        if (word && strcmp(word, "Offline") == 0)
            return true;
    }
    return false;
}

/* Puts into the record what is known now. */
static void
fill(struct vf_flow *flow, const char *phase, bool ready)
{
    struct json_object *record = flow->record;
    struct json_object *qemu = vf_json_strings("version", flow->qemu_version, NULL);
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *records = vf_record_list(&flow->vm, &ignored);

    /* A recovery has no plan: what was written at the beginning stays, if anything was. */
    if (flow->plan.run_state || !vf_json_object(record, "snapshotVolumes")) {
        fill_indications(flow);
        vf_json_add(record, "snapshotVolumes", volumes(flow, records));
    }
    vf_json_add_string(record, "phase", phase);
    vf_json_add_bool(record, "readyToUse", ready);
    vf_json_add_string(record, "consistency",
                       !ready                       ? "none"
                       : is_consistent(flow)        ? "filesystem"
                       : vf_record_is_offline(flow) ? "offline"
                                                    : "crash");
    add_time(flow, record, "creationTime", ready ? flow->evidence.cut : 0);
    if (flow->recovered_evidence)
        vf_json_add_string(record, "creationTime", vf_json_string(flow->recovered_evidence, "cut"));
    if (ready && !vf_json_string(record, "creationTime"))
        add_time(flow, record, "creationTime", vf_now_us());
    if (strcmp(phase, "InProgress") != 0)
        add_time(flow, record, "completionTime", vf_now_us());
    fill_conditions(flow, phase, ready, records);
    if (flow->member)
        vf_json_add(record, "group", vf_group_json(flow));
    vf_json_add(record, "evidence", vf_evidence_json(flow));
    vf_json_add(record, "warnings", json_object_get(flow->warnings));
    if (!(flow->engine.conditions & VF_IF_STOPPED)) {
        vf_json_add_int(qemu, "pid", flow->qemu.pid);
        vf_json_add_int(qemu, "started", (int64_t)flow->qemu.started);
    }
    if (flow->engine.conditions & VF_IF_STOPPED) /* null: they are declared */
        vf_json_add_string(record, "disksSeen", vf_json_string(flow->known_disks, "seen"));
    if (flow->qemu_version)
        vf_json_add(record, "qemu", qemu);
    else
        json_object_put(qemu);
    if (ready || flow->half_merged)
        vf_json_add(record, "cuts", vf_cuts_json(flow));
    else
        json_object_object_del(record, "cuts");
    if (vf_failed(&flow->error)) {
        struct json_object *error =
            vf_json_strings("message", flow->error.text, "next", flow->error.next, NULL);

        add_time(flow, error, "time", vf_now_us());
        vf_json_add(record, "error", error);
    }
}

/* As QEMU has left them: whoever looks later can tell whether somebody wrote to them. */
static void
note_sealed(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (vf_inode_equal(vf_inode_of(flow->cuts[i].names.sealed), flow->cuts[i].base))
            vf_cut_refresh(&flow->cuts[i]);
}

bool
vf_record_write(struct vf_flow *flow, const char *phase, bool ready)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (ready)
        note_sealed(flow);
    fill(flow, phase, ready);
    return vf_record_save(&flow->vm, flow->record, &error) || vf_note_error(flow, &error);
}

bool
vf_record_refresh(struct vf_flow *flow, const char *snapshot, const char *path)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *record = vf_record_load(&flow->vm, snapshot, &error);
    struct json_object *cuts = vf_json_array(record, "cuts");

    if (!record)
        return vf_note_error(flow, &error);
    for (size_t i = 0; i < vf_json_length(cuts); i++) {
        const char *sealed = vf_json_string(vf_json_at(cuts, i), "sealed");
        struct vf_cut cut;

        if (!sealed || strcmp(sealed, path) != 0 || !vf_cut_parse(&cut, vf_json_at(cuts, i)))
            continue;
        cut.base = vf_inode_of(path);
        vf_cut_refresh(&cut);
        json_object_array_put_idx(cuts, i, vf_cut_json(&cut));
        vf_cut_release(&cut);
    }
    return vf_record_save(&flow->vm, record, &error) || vf_note_error(flow, &error);
}

bool
vf_record_unclear(const struct vf_vm *vm, const char *snapshot, struct vmfrost_error *error)
{
    vf_fail(error, VMFROST_FAILED, "the record of %s@%s does not say which images it is made of",
            vm->name, snapshot);
    return vf_hint(error, "look at %s/records/%s.json, and repair it or move it away", vm->folder,
                   snapshot);
}

void
vf_record_make(struct vf_flow *flow, const char *name)
{
    char deadline[32];

    flow->record = vf_json_strings("name", name, "vm", flow->vm.name, "id", flow->id, NULL);
    add_time(flow, flow->record, "startTime", flow->accepted_us);
    if (flow->engine.deadline_us == INT64_MAX)
        return;
    snprintf(deadline, sizeof deadline, "%.6gs",
             (double)(flow->engine.deadline_us - flow->accepted_us) / 1e6);
    vf_json_add_string(flow->record, "failureDeadline", deadline);
}

bool
vf_state_has_room(struct vf_flow *flow)
{
    int64_t room = vf_free_bytes(flow->vm.folder, geteuid() == 0);

    if (room >= STATE_LEAST)
        return true;
    vf_note(flow, VMFROST_FAILED,
            "cannot keep a record in %s: %s (%lld KiB are free, and %d KiB may be needed)",
            flow->vm.folder, strerror(ENOSPC), (long long)room / 1024, STATE_LEAST / 1024);
    vf_advise(flow, "make room there first");
    return false;
}

/* The operation is accepted: from here on there is a record, and a journal before it. Owes
 * VF_OWE_RECORD. */
void
vf_step_accept(struct vf_flow *flow)
{
    if (vf_failed(&flow->error)) { /* only where the table went on in spite of it */
        flow->quiesce_failed = true;
        vf_absolve(flow);
    }
    if (!vf_state_has_room(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_record_make(flow, flow->snapshot_name);
    vf_end(flow, vf_journal_open(flow) && vf_record_write(flow, "InProgress", false) ? VF_OK
                                                                                     : VF_REFUSED);
}

void
vf_absolve(struct vf_flow *flow)
{
    struct vmfrost_error error = flow->error;

    flow->error = (struct vmfrost_error){.code = VMFROST_OK};
    vf_warn(flow, "%s", error.text);
}

/* What the window was worth. */
static void
judge(struct vf_flow *flow)
{
    const struct vf_evidence *evidence = &flow->evidence;

    if (flow->quiesce_failed) { /* promised nothing: what went wrong on the way here is a warning */
        flow->unverified = false;
        if (vf_failed(&flow->error))
            vf_absolve(flow);
    }
    if (!flow->froze || flow->quiesce_failed)
        return;
    if (evidence->disturbed)
        vf_note(flow, VMFROST_UNVERIFIED, "while the guest was frozen: %s", evidence->disturbed);
    else if (evidence->thawed_count != evidence->frozen_count && !vf_failed(&flow->error))
        vf_note(flow, VMFROST_UNVERIFIED,
                "%lld file systems were frozen, but %lld thawed: the guest was not frozen all the "
                "time",
                (long long)evidence->frozen_count, (long long)evidence->thawed_count);
    else if (evidence->frozen_count < flow->freezing.mounts.least && !vf_failed(&flow->error))
        vf_note(flow, VMFROST_UNVERIFIED,
                "%lld file systems were to be frozen, but only %lld were: mount points may have "
                "changed",
                (long long)flow->freezing.mounts.least, (long long)evidence->frozen_count);
    if (flow->unverified && !vf_failed(&flow->error))
        vf_note(flow, VMFROST_UNVERIFIED, "the thaw came late");
    if (!vf_failed(&flow->error))
        return;
    flow->unverified = true;
    flow->error.code = VMFROST_UNVERIFIED;
    vf_advise(flow,
              "the snapshot is taken, and as good as one without an agent "
              "(crash-consistent): keep it, or `vmfrost delete %s@%s`",
              flow->vm.name, flow->snapshot_name);
}

bool
vf_journal_close_up(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (flow->journal.fd < 0)
        return true;
    if (flow->engine.owed & ~(unsigned)VF_OWE_RECORD & ~flow->engine_pays)
        return vf_journal_state(flow, "left", NULL);
    return vf_journal_end(&flow->journal, &error) || vf_note_error(flow, &error);
}

void
vf_journal_finish(struct vf_flow *flow)
{
    struct vmfrost_error before = flow->error;

    if (vf_journal_close_up(flow) || vf_failed(&before))
        return;
    vf_warn(flow, "%s", flow->error.text);
    flow->error = before;
}

/* QEMU knows each overlay by its hidden name; without a QEMU nobody does. */
bool
vf_keep_links(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!(flow->engine.conditions & VF_IF_STOPPED))
        return vf_links_add_overlays(flow);
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (cut->naming == VF_NAMING_FLIP &&
            !vf_unlink(cut->names.overlay, cut->overlay, &flow->log, &error))
            return vf_note_error(flow, &error);
    }
    return true;
}

/* Everything is in its place. Pays the debts of files, cut and record: they are the snapshot now. A
 * thaw that is still owed stays owed, and the journal with it. */
void
vf_step_record(struct vf_flow *flow)
{
    judge(flow);
    struct vmfrost_error judged = flow->error;

    flow->snapshot_state = VMFROST_SNAPSHOT_TAKEN;
    flow->engine_pays = VF_OWE_FILES | VF_OWE_CUT | VF_OWE_FINISH;
    vf_conclude(flow);
    if (!vf_keep_links(flow) ||
        !vf_record_write(flow, vf_failed(&flow->error) ? "Failed" : "Succeeded", true)) {
        flow->snapshot_state = VMFROST_SNAPSHOT_NONE;
        flow->engine_pays = 0;
        /* It goes on: what is told at its end is another thing. */
        if (vf_failed(&judged))
            flow->error = judged;
        flow->concluded = false;
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_disks_cut(flow);
    vf_test_point(flow, "record.saved");
    vf_journal_finish(flow);
    vf_end(flow, VF_OK);
}

/* The end of what failed. The journal stays if anything else is still owed. */
void
vf_step_close_up(struct vf_flow *flow)
{
    vf_conclude(flow);
    vf_end(flow, vf_journal_close_up(flow) ? VF_OK : VF_REFUSED);
}

/* The record of a snapshot that was not taken; where it cannot be written, there is none. */
static bool
write_failed(struct vf_flow *flow)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    return vf_record_write(flow, "Failed", false) ||
           !vf_record_exists(&flow->vm, flow->snapshot_name) ||
           vf_record_remove(&flow->vm, flow->snapshot_name, &error) || vf_note_error(flow, &error);
}

/* The same, with that record. */
void
vf_step_undo_record(struct vf_flow *flow)
{
    bool left = flow->engine.owed & ~(unsigned)VF_OWE_RECORD & ~flow->engine_pays;

    vf_conclude(flow);
    if (flow->record && (left ? !vf_record_write(flow, "Failed", false) : !write_failed(flow)))
        vf_end(flow, VF_REFUSED);
    else
        vf_step_close_up(flow);
}
