/* SPDX-License-Identifier: MIT
 *
 * In the order of reading: the disks beside each other, then the VM as a whole. What one disk is,
 * is found in disk.c.
 */
#include "vm/plan.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/disk.h"
#include "vm/graph.h"

static const char *
orelse(const char *text, const char *otherwise)
{
    return text ? text : otherwise;
}

const char *
vf_reason_name(enum vf_reason reason)
{
    switch (reason) {
    case VF_INCLUDED:
        return "Included";
    case VF_OUT_EMPTY:
        return "Empty";
    case VF_OUT_CDROM:
        return "Cdrom";
    case VF_OUT_READ_ONLY:
        return "ReadOnly";
    case VF_OUT_FIRMWARE:
        return "Firmware";
    case VF_OUT_UNATTACHED:
        return "Unattached";
    case VF_OUT_TEMPORARY:
        return "Temporary";
    case VF_OUT_VVFAT:
        return "Vvfat";
    case VF_OUT_COPY_ON_READ:
        return "CopyOnRead";
    case VF_OUT_FILTER:
        return "Filter";
    case VF_OUT_DUPLICATE:
        return "Duplicate";
    case VF_OUT_HOTPLUGGED:
        return "Hotplugged";
    case VF_OUT_STORAGE_CLASS:
        return "StorageClass";
    case VF_OUT_REQUESTED:
        return "Requested";
    case VF_OUT_NAME:
        return "Name";
    }
    abort();
}

/* The sentence is owned by this call. */
static void
warn(struct vf_plan *plan, char *warning)
{
    VF_GROW(plan->warnings, plan->warning_count);
    plan->warnings[plan->warning_count++] = warning;
}

/* --- The disks beside each other --- */

static bool
is_called(const struct vf_disk *disk, const char *name)
{
    VF_AUTO_FREE char *id = vf_disk_device_id(disk->qdev);

    return *name &&
           (vf_same(disk->name, name) || vf_same(disk->device, name) || vf_same(disk->qdev, name) ||
            vf_same(id, name) || vf_same(disk->root, name) || vf_same(disk->node, name));
}

/* "a, b, c" of the first that fit. Owned by the caller. */
static char *
list_names(const struct vf_plan *plan)
{
    VF_AUTO_FREE char *list = vf_strdup("");

    for (size_t i = 0; i < plan->count; i++) {
        char *longer = vf_printf("%s%s%s", list, i > 0 ? ", " : "", plan->disks[i].name);

        free(list);
        list = longer;
    }
    return VF_STEAL(list);
}

/* What a user says is the better reason than a filter: what hides a disk below one is mostly a job,
 * and jobs on disks that are left out do not matter. */
static void
leave_out_as_said(struct vf_disk *disk, enum vf_reason reason, char *why)
{
    if (disk->reason == VF_OUT_FILTER || disk->reason == VF_OUT_COPY_ON_READ) {
        disk->reason = VF_INCLUDED;
        free(VF_STEAL(disk->why));
    }
    vf_disk_leave_out(disk, reason, why);
}

static void
judge_class(const struct vf_plan_input *input, struct vf_disk *disk)
{
    const char *why = vf_json_string(input->left_out, disk->name);

    if (why)
        leave_out_as_said(disk, VF_OUT_STORAGE_CLASS, vf_strdup(why));
}

/* An exclusion means the image: other devices on it are left out with it. */
static void
exclude(struct vf_plan *plan, struct vf_disk *excluded)
{
    leave_out_as_said(excluded, VF_OUT_REQUESTED, vf_strdup("it is excluded by request"));
    for (size_t i = 0; i < plan->count; i++)
        if (vf_same(plan->disks[i].node, excluded->node))
            leave_out_as_said(&plan->disks[i], VF_OUT_REQUESTED,
                              vf_printf("it is excluded by request, as disk %s", excluded->name));
}

static bool
no_such_disk(const struct vf_plan *plan, const char *name, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *names = list_names(plan);

    vf_fail(error, VMFROST_USAGE, "no disk is called \"%s\"", name);
    return vf_hint(error, "the disks are: %s", plan->count > 0 ? names : "none at all");
}

static bool
exclude_requested(const struct vf_plan_input *input, struct vf_plan *plan,
                  struct vmfrost_error *error)
{
    for (size_t i = 0; i < input->exclude_count; i++) {
        bool found = false;

        for (size_t j = 0; j < plan->count; j++) {
            if (!is_called(&plan->disks[j], input->exclude[i]))
                continue;
            found = true;
            exclude(plan, &plan->disks[j]);
        }
        if (!found)
            return no_such_disk(plan, input->exclude[i], error);
    }
    return true;
}

/* What was plugged in by hand mostly goes again by hand, and no launcher brings it back: a snapshot
 * that has it could not be restored as a whole. So the user has to say that it belongs to the VM.
 */
static void
judge_plug(const struct vf_plan_input *input, struct vf_disk *disk)
{
    bool wanted = false;

    disk->persistent = !disk->hotplugged;
    for (size_t i = 0; i < vf_json_length(input->persistent); i++) {
        const char *name = vf_json_text(vf_json_at(input->persistent, i));

        disk->persistent |= name && is_called(disk, name);
    }
    for (size_t i = 0; i < input->include_count; i++)
        wanted |= is_called(disk, input->include[i]);
    if (!disk->persistent && !wanted)
        vf_disk_leave_out(disk, VF_OUT_HOTPLUGGED,
                          vf_printf("it was plugged in while the VM was running: take it along "
                                    "with --include %s, or always, with `vmfrost disk VM %s "
                                    "--persistent yes`",
                                    disk->name, disk->name));
}

/* A disk whose image is in the snapshot by another device is in it. */
static bool
is_in(const struct vf_disk *disk)
{
    return disk->reason == VF_INCLUDED || disk->reason == VF_OUT_DUPLICATE;
}

static bool
check_included(const struct vf_plan_input *input, const struct vf_plan *plan,
               struct vmfrost_error *error)
{
    for (size_t i = 0; i < input->include_count; i++) {
        bool found = false;

        for (size_t j = 0; j < plan->count; j++) {
            const struct vf_disk *disk = &plan->disks[j];

            if (!is_called(disk, input->include[i]))
                continue;
            found = true;
            if (!is_in(disk))
                return vf_fail(error, VMFROST_FAILED, "disk %s cannot be included: %s", disk->name,
                               disk->why);
        }
        if (!found)
            return no_such_disk(plan, input->include[i], error);
    }
    return true;
}

static void
find_duplicates(struct vf_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++)
        for (size_t j = 0; j < i; j++)
            if (plan->disks[j].reason == VF_INCLUDED &&
                vf_same(plan->disks[i].node, plan->disks[j].node))
                vf_disk_leave_out(&plan->disks[i], VF_OUT_DUPLICATE,
                                  vf_printf("it is the same image as disk %s",
                                            plan->disks[j].name));
}

static void
find_warnings(const struct vf_plan_input *input, struct vf_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        const struct vf_disk *disk = &plan->disks[i];

        if (disk->reason != VF_INCLUDED)
            continue;
        struct json_object *bitmaps =
            vf_json_array(vf_disk_node(input, disk->node), "dirty-bitmaps");

        if (disk->no_flush)
            warn(plan, vf_printf("disk %s has cache=unsafe: QEMU never flushes it, so that a crash "
                                 "of the host can lose what a snapshot holds",
                                 disk->name));
        if (!disk->file_node)
            warn(plan,
                 vf_printf("disk %s has no format of its own in QEMU (%s): it is taken as raw",
                           disk->name, disk->format));
        if (disk->depth >= (input->depth_warned > 0 ? input->depth_warned : VF_DEPTH_WARNED))
            warn(plan,
                 vf_printf("disk %s has %d backing files: delete snapshots that are no longer "
                           "needed; a long chain is slow to read and to open",
                           disk->name, disk->depth));
        if (vf_graph_has_export(input->graph, disk->root))
            warn(plan, vf_printf("disk %s has another user in QEMU, such as an NBD export, which "
                                 "goes on with the current state and not with the snapshot",
                                 disk->name));
        if (vf_json_length(bitmaps) > 0)
            warn(plan, vf_printf("disk %s has dirty bitmaps: they stay with the image that becomes "
                                 "the snapshot and see no later writes",
                                 disk->name));
    }
}

/* --- The VM --- */

bool
vf_plan_check_state(const struct vf_plan_input *input, const struct vf_plan *plan,
                    struct vmfrost_error *error)
{
    static const char *const states[] = {"inmigrate", "postmigrate", "finish-migrate",
                                         "save-vm",   "restore-vm",  "colo",
                                         NULL};
    static const char *const migrations[] = {"setup",          "wait-unplug",
                                             "active",         "device",
                                             "pre-switchover", "colo",
                                             "cancelling",     NULL};
    const char *migration = vf_json_string(input->migrate, "status");

    if (vf_among(plan->run_state, states)) {
        vf_fail(error, VMFROST_FAILED,
                "the VM is in the state \"%s\": its disks are not this QEMU's to change",
                plan->run_state);
        return vf_hint(error, "%s",
                       vf_same(plan->run_state, "postmigrate")
                           ? "ask the QEMU that the VM has moved to"
                           : "try again when its migration or saving is over");
    }
    if (migration && (vf_among(migration, migrations) || vf_starts_with(migration, "postcopy-"))) {
        vf_fail(error, VMFROST_FAILED, "the VM is being migrated (%s)", migration);
        return vf_hint(error, "try again when the migration is over");
    }
    return true;
}

/* Job types that work on the VM or on images without an edge in the graph. */
static const char *const far_jobs[] = {"snapshot-save", "snapshot-load", "snapshot-delete", "amend",
                                       NULL};

static bool
is_over(const char *status)
{
    return vf_same(status, "concluded") || vf_same(status, "null");
}

/* What either list of jobs says about a job. */
static const char *
job_member(const struct vf_plan_input *input, const char *id, const char *key)
{
    for (size_t i = 0; i < vf_json_length(input->jobs); i++)
        if (vf_same(vf_json_string(vf_json_at(input->jobs, i), "id"), id))
            return vf_json_string(vf_json_at(input->jobs, i), key);
    for (size_t i = 0; i < vf_json_length(input->block_jobs); i++)
        if (vf_same(vf_json_string(vf_json_at(input->block_jobs, i), "device"), id))
            return vf_json_string(vf_json_at(input->block_jobs, i), key);
    return NULL;
}

/* The id of a job that the lists know by the disk: block jobs without an id of their own have the
 * name of the drive. */
static const char *
listed_job(const struct vf_plan_input *input, const struct vf_disk *disk)
{
    for (size_t i = 0; i < vf_json_length(input->block_jobs); i++) {
        struct json_object *job = vf_json_at(input->block_jobs, i);
        const char *id = vf_json_string(job, "device");

        if (id && *id && !is_over(vf_json_string(job, "status")) &&
            (vf_same(id, disk->device) || vf_same(id, disk->root) || vf_same(id, disk->node)))
            return id;
    }
    return NULL;
}

/* `disk` NULL: nobody can say which one. */
static bool
refuse_job(const struct vf_plan_input *input, const char *id, const char *disk,
           struct vmfrost_error *error)
{
    const char *type = orelse(job_member(input, id, "type"), "block");
    bool over = is_over(job_member(input, id, "status"));

    vf_fail(error, VMFROST_FAILED, "the %s job \"%s\" %s %s%s", type, id,
            over ? "is over, but still holds" : "works on", disk ? "disk " : "the VM's disks",
            orelse(disk, ""));
    /* Seen: QEMU refuses the cut until a job without auto-dismiss has been dismissed. */
    return over ? vf_hint(error, "dismiss it with job-dismiss")
                : vf_hint(error, "try again when it is over, or end it with job-cancel");
}

static bool
check_jobs(const struct vf_plan_input *input, const struct vf_plan *plan,
           struct vmfrost_error *error)
{
    for (size_t i = 0; i < vf_json_length(input->jobs); i++) {
        struct json_object *job = vf_json_at(input->jobs, i);
        const char *type = vf_json_string(job, "type");

        if (vf_among(type, far_jobs) && !is_over(vf_json_string(job, "status")))
            return refuse_job(input, orelse(vf_json_string(job, "id"), ""), NULL, error);
    }
    for (size_t i = 0; i < plan->count; i++) {
        const struct vf_disk *disk = &plan->disks[i];

        /* What hides a disk below a filter is mostly a job: then the job is the better answer. */
        if (disk->reason != VF_INCLUDED && disk->reason != VF_OUT_FILTER &&
            disk->reason != VF_OUT_COPY_ON_READ)
            continue;
        const char *id = vf_graph_job_near(input->graph, disk->node);

        if (!id)
            id = listed_job(input, disk);
        if (id)
            return refuse_job(input, id, disk->name, error);
    }
    return true;
}

/* A node that is not active belongs to the other side of a migration (QEMU 10.0 and later say so).
 */
static bool
check_active(const struct vf_plan_input *input, const struct vf_plan *plan,
             struct vmfrost_error *error)
{
    for (size_t i = 0; i < plan->count; i++)
        if (plan->disks[i].reason == VF_INCLUDED &&
            !vf_json_bool(vf_disk_node(input, plan->disks[i].node), "active", true)) {
            vf_fail(error, VMFROST_FAILED, "disk %s is inactive in this QEMU", plan->disks[i].name);
            return vf_hint(error, "try again when the migration is over");
        }
    return true;
}

static bool
check_some_left(const struct vf_plan *plan, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *list = vf_strdup("");

    if (plan->included > 0)
        return true;
    if (plan->count == 0)
        return vf_fail(error, VMFROST_FAILED, "this VM has no disks");
    for (size_t i = 0; i < plan->count; i++) {
        char *longer = vf_printf("%s%s%s: %s", list, i > 0 ? "; " : "", plan->disks[i].name,
                                 orelse(plan->disks[i].why, ""));

        free(list);
        list = longer;
    }
    return vf_fail(error, VMFROST_FAILED, "no disk can be snapshotted: %s", list);
}

static bool
check_replies(const struct vf_plan_input *input, struct vmfrost_error *error)
{
    const struct {
        const char *command;
        bool good;
    } replies[] = {
        {"query-status", vf_json_string(input->status, "status")},
        {"query-migrate", !input->migrate || json_object_is_type(input->migrate, json_type_object)},
        {"query-jobs", json_object_is_type(input->jobs, json_type_array)},
        {"query-block-jobs", json_object_is_type(input->block_jobs, json_type_array)},
        {"query-block", json_object_is_type(input->block, json_type_array)},
        {"query-named-block-nodes", json_object_is_type(input->nodes, json_type_array)},
        {"x-debug-query-block-graph",
         vf_json_array(input->graph, "nodes") && vf_json_array(input->graph, "edges")},
    };

    for (size_t i = 0; i < sizeof replies / sizeof *replies; i++)
        if (!replies[i].good)
            return vf_fail(error, VMFROST_FAILED, "QEMU's answer to %s makes no sense",
                           replies[i].command);
    return true;
}

bool
vf_plan_make(const struct vf_plan_input *input, struct vf_plan *plan, struct vmfrost_error *error)
{
    memset(plan, 0, sizeof *plan);
    plan->run_state = vf_strdup(orelse(vf_json_string(input->status, "status"), "unknown"));
    plan->running = vf_same(plan->run_state, "running");
    if (!check_replies(input, error))
        return false;

    bool good = true;

    for (size_t i = 0; i < vf_json_length(input->block); i++) {
        struct json_object *block = vf_json_at(input->block, i);
        struct vf_disk disk = {.reason = VF_INCLUDED};

        if (vf_disk_describe(input, block, plan, &disk, error)) {
            vf_disk_judge(input, block, &disk);
            judge_plug(input, &disk);
            judge_class(input, &disk);
        } else {
            good = false;
            vf_disk_leave_out(&disk, VF_OUT_NAME,
                              vf_strdup("QEMU's answers about it make no sense"));
        }
        VF_GROW(plan->disks, plan->count);
        plan->disks[plan->count++] = disk;
    }
    good = exclude_requested(input, plan, error) && good;
    find_duplicates(plan);
    good = check_included(input, plan, error) && good;
    for (size_t i = 0; i < plan->count; i++)
        plan->included += plan->disks[i].reason == VF_INCLUDED;
    find_warnings(input, plan);
    return good && vf_plan_check_state(input, plan, error) && check_jobs(input, plan, error) &&
           check_active(input, plan, error) && check_some_left(plan, error);
}

void
vf_plan_release(struct vf_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        struct vf_disk *disk = &plan->disks[i];

        free(disk->name);
        free(disk->device);
        free(disk->qdev);
        free(disk->root);
        free(disk->node);
        free(disk->format);
        free(disk->file);
        free(disk->protocol);
        free(disk->file_node);
        free(disk->why);
    }
    for (size_t i = 0; i < plan->warning_count; i++)
        free(plan->warnings[i]);
    free(plan->disks);
    free(plan->warnings);
    free(plan->run_state);
    memset(plan, 0, sizeof *plan);
}

bool
vf_plan_drop(struct vf_plan *plan, size_t index, enum vf_reason reason, char *why,
             struct vmfrost_error *error)
{
    struct vf_disk *disk = &plan->disks[index];

    assert(index < plan->count && reason != VF_INCLUDED);
    assert(disk->reason == VF_INCLUDED);
    disk->reason = reason;
    disk->why = why;
    plan->included--;
    return check_some_left(plan, error);
}

struct json_object *
vf_plan_json(const struct vf_plan *plan)
{
    struct json_object *json = vf_json_new_object();
    struct json_object *disks = vf_json_new_array();
    struct json_object *warnings = vf_json_new_array();

    for (size_t i = 0; i < plan->count; i++) {
        const struct vf_disk *disk = &plan->disks[i];
        struct json_object *each = vf_json_strings("name", disk->name, "node", disk->node, "format",
                                                   disk->format, "file", disk->file, NULL);

        if (disk->format)
            vf_json_add_int(each, "size", disk->size);
        vf_json_add_bool(each, "hotplugged", disk->hotplugged);
        vf_json_add_bool(each, "persistent", disk->persistent);
        vf_json_add_bool(each, "eligible", disk->reason == VF_INCLUDED);
        if (disk->reason != VF_INCLUDED)
            vf_json_add_string(each, "reason", vf_reason_name(disk->reason));
        vf_json_add_string(each, "message", disk->why);
        vf_json_append(disks, each);
    }
    for (size_t i = 0; i < plan->warning_count; i++)
        vf_json_append(warnings, vf_json_new_string(plan->warnings[i]));
    vf_json_add(json, "disks", disks);
    vf_json_add_string(json, "runState", plan->run_state);
    vf_json_add(json, "warnings", warnings);
    return json;
}
