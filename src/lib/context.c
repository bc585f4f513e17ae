/* SPDX-License-Identifier: MIT
 *
 * The public entry points: thin. Each makes a flow, fills in what the caller asked for, and lets
 * it begin from the loop; what is wrong with the arguments is told the same way as everything
 * else, by the one callback.
 */
#include <assert.h>
#include <ev.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "flows/group.h"
#include "flows/prune.h"
#include "flows/steps.h"
#include "flows/tables.h"
#include "flows/truth.h"
#include "flows/using.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

#define DEADLINE_MS (5 * 60 * 1000)
#define THAW_WAIT_MS (60 * 1000)

struct vmfrost {
    struct ev_loop *loop;
    struct vf_store *store;
    struct vf_log log;
    struct vf_gate gate; /* of snapshots */
    size_t running;
};

/* A flow, as callers see it. */
struct vmfrost_op;

static struct vmfrost_op *
handle(struct vf_flow *flow)
{
    return (struct vmfrost_op *)flow;
}

/* The caller may have been built with another version's header, in which a struct has fewer
 * members, or more, at its end; its first one is its size there. What it does not have stays as it
 * is in `taken`, which has `size` bytes. */
static void
take_known(void *taken, size_t size, const void *given)
{
    size_t known = 0;

    if (!given)
        return;
    memcpy(&known, given, sizeof known);
    memcpy(taken, given, known < size ? known : size);
}

/* `given` may be NULL; both are of one type. */
#define TAKE_KNOWN(taken, given)                                                                   \
    ((void)sizeof((taken) == (given)), take_known((taken), sizeof *(taken), (given)))

static _Thread_local struct vmfrost_error new_error;

const struct vmfrost_error *
vmfrost_new_error(void)
{
    return &new_error;
}

const char *
vmfrost_version(void)
{
    return VMFROST_VERSION;
}

struct vmfrost *
vmfrost_new(struct ev_loop *loop, const struct vmfrost_settings *settings)
{
    struct vmfrost_settings given = VMFROST_SETTINGS_INIT;

    TAKE_KNOWN(&given, settings);
    new_error = (struct vmfrost_error){.code = VMFROST_OK};
    struct vf_store *store = vf_store_open(given.state_dir, &new_error);

    if (!store)
        return NULL;
    struct vmfrost *context = vf_alloc(sizeof *context);

    context->loop = loop;
    context->store = store;
    context->log = (struct vf_log){given.log, given.log_data, given.log_warnings_only};
    vf_gate_init(&context->gate, loop, given.snapshots_at_once);
    return context;
}

void
vmfrost_free(struct vmfrost *context)
{
    if (!context)
        return;
    assert(context->running == 0);
    vf_gate_close(&context->gate);
    vf_store_close(context->store);
    free(context);
}

void
vmfrost_wait(struct vmfrost *context)
{
    while (context->running > 0)
        ev_run(context->loop, EVRUN_ONCE);
}

/* Operations. */

static void
on_end(struct vf_flow *flow, void *data)
{
    struct vmfrost *context = data;

    (void)flow;
    context->running--;
}

static struct vf_flow *
make(struct vmfrost *context, const struct vf_table *table, const char *vm, vmfrost_event_fn *event,
     vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = vf_flow_new(context->loop, context->store, &context->log, table);

    flow->vm_name = vf_strdup(vm);
    flow->on_event = event;
    flow->on_done = done;
    flow->data = data;
    flow->on_end = on_end;
    flow->on_end_data = context;
    flow->engine.thaw_wait_ms = THAW_WAIT_MS;
    context->running++;
    vf_store_find(context->store, vm, &flow->vm, &flow->error);
    return flow;
}

static struct vmfrost_op *
go(struct vf_flow *flow)
{
    vf_flow_start(flow);
    return handle(flow);
}

void
vmfrost_cancel(struct vmfrost_op *op)
{
    vf_flow_cancel((struct vf_flow *)op);
}

static bool
check_duration(struct vf_flow *flow, const char *what, int64_t ms)
{
    if (ms >= 0 && ms <= INT64_C(366) * 86400000)
        return true;
    return vf_fail(&flow->error, VMFROST_USAGE, "%s of %lld ms makes no sense", what,
                   (long long)ms);
}

static void
take_freeze(struct vf_flow *flow, const char *freeze)
{
    struct vf_mountlist list;

    if (!freeze)
        return;
    if (vf_mountlist_parse(freeze, &list)) {
        flow->freeze = vf_strdup(freeze);
    } else {
        vf_fail(&flow->error, VMFROST_USAGE, "\"%s\" does not say what to freeze", freeze);
        vf_hint(&flow->error, "write " VF_MOUNTLIST_FORM);
    }
    vf_mountlist_release(&list);
}

static void
take_options(struct vf_flow *flow, const struct vmfrost_snapshot_options *options)
{
    struct vmfrost_snapshot_options *taken = &flow->options;

    *taken = (struct vmfrost_snapshot_options)VMFROST_SNAPSHOT_OPTIONS_INIT;
    TAKE_KNOWN(taken, options);
    check_duration(flow, "a deadline", taken->deadline_ms);
    check_duration(flow, "a frozen limit", taken->frozen_limit_ms);
    check_duration(flow, "a wait for the thaw", taken->thaw_wait_ms);
    if (taken->quiesce == VMFROST_QUIESCE_DEFAULT)
        taken->quiesce = flow->vm.quiesce_set ? flow->vm.quiesce : VMFROST_QUIESCE_AUTO;
    if (taken->method == VMFROST_METHOD_DEFAULT)
        taken->method = flow->vm.method_set ? flow->vm.method : VMFROST_METHOD_EXISTING;
    for (size_t i = 0; i < taken->exclude_count; i++) {
        VF_GROW(flow->exclude, flow->exclude_count);
        flow->exclude[flow->exclude_count++] = vf_strdup(taken->exclude[i]);
    }
    taken->exclude = NULL;
    for (size_t i = 0; i < taken->include_count; i++) {
        VF_GROW(flow->include, flow->include_count);
        flow->include[flow->include_count++] = vf_strdup(taken->include[i]);
    }
    taken->include = NULL;
    if (taken->flush && !*taken->flush)
        vf_fail(&flow->error, VMFROST_USAGE, "an empty command cannot flush the guest's caches");
    flow->flush = taken->flush ? vf_strdup(taken->flush) : NULL;
    taken->flush = NULL;
    take_freeze(flow, taken->freeze);
    taken->freeze = NULL;
    taken->no_prime |= flow->vm.no_prime;
    if (taken->thaw_wait_ms)
        flow->engine.thaw_wait_ms = taken->thaw_wait_ms;
    if (taken->quiesce == VMFROST_QUIESCE_PREFER)
        flow->engine.conditions |= VF_IF_PREFER;
}

static bool
check_name(struct vf_flow *flow, const char *name)
{
    if (vf_valid_name(name))
        return true;
    vf_fail(&flow->error, VMFROST_USAGE, "\"%s\" is no name for a snapshot", name);
    return vf_hint(&flow->error,
                   "use up to 64 letters, digits, dots, dashes, underscores and plus signs, "
                   "beginning with a letter or a digit");
}

static void
take_name(struct vf_flow *flow, const char *name)
{
    char stamp[32];
    time_t now = time(NULL);
    struct tm parts;

    if (name && !check_name(flow, name))
        return;
    if (!name) {
        gmtime_r(&now, &parts);
        strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%SZ", &parts);
        name = stamp;
    }
    flow->snapshot_name = vf_strdup(name);
    /* options.name belongs to the caller. */
    flow->options.name = NULL;
}

static struct vf_flow *
make_snapshot(struct vmfrost *context, const char *vm,
              const struct vmfrost_snapshot_options *options, const char *name,
              vmfrost_event_fn *event, vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = make(context, &vf_snapshot_table, vm, event, done, data);
    int64_t deadline_ms;

    flow->changes = true;
    flow->gate = &context->gate;
    take_options(flow, options);
    take_name(flow, name ? name : flow->options.name);
    deadline_ms = flow->options.deadline_ms ? flow->options.deadline_ms
                  : flow->vm.deadline_ms    ? flow->vm.deadline_ms
                                            : DEADLINE_MS;
    flow->engine.deadline_us = flow->accepted_us + 1000 * deadline_ms;
    return flow;
}

struct vmfrost_op *
vmfrost_snapshot(struct vmfrost *context, const char *vm,
                 const struct vmfrost_snapshot_options *options, vmfrost_event_fn *event,
                 vmfrost_done_fn *done, void *data)
{
    return go(make_snapshot(context, vm, options, NULL, event, done, data));
}

void
vmfrost_snapshot_group(struct vmfrost *context, const char *const *vms, size_t count,
                       const struct vmfrost_snapshot_options *options, vmfrost_event_fn *event,
                       vmfrost_done_fn *done, void *const *data, struct vmfrost_op **ops_r)
{
    struct vf_flow **flows = vf_alloc((count + 1) * sizeof *flows);

    for (size_t i = 0; i < count; i++) {
        /* One name for all, even if a second ends meanwhile. */
        const char *name = i ? flows[0]->snapshot_name : NULL;

        flows[i] =
            make_snapshot(context, vms[i], options, name, event, done, data ? data[i] : NULL);
        if (ops_r)
            ops_r[i] = handle(flows[i]);
    }
    if (count == 1)
        go(flows[0]);
    else if (count > 1)
        vf_group_start(flows, count);
    free(flows);
}

struct vmfrost_op *
vmfrost_check(struct vmfrost *context, const char *vm,
              const struct vmfrost_snapshot_options *options, vmfrost_event_fn *event,
              vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = make(context, &vf_check_table, vm, event, done, data);

    take_options(flow, options);
    take_name(flow, flow->options.name);
    vf_check_prepare(flow);
    return go(flow);
}

struct vmfrost_op *
vmfrost_status(struct vmfrost *context, const char *vm, vmfrost_done_fn *done, void *data)
{
    return go(make(context, &vf_status_table, vm, NULL, done, data));
}

struct vmfrost_op *
vmfrost_delete(struct vmfrost *context, const char *vm, const char *snapshot,
               vmfrost_event_fn *event, vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = make(context, &vf_delete_table, vm, event, done, data);

    flow->changes = true;
    take_name(flow, snapshot);
    flow->prepare = vf_delete_prepare;
    return go(flow);
}

static void
take_restore_options(struct vf_flow *flow, const struct vmfrost_restore_options *options)
{
    struct vmfrost_restore_options taken = VMFROST_RESTORE_OPTIONS_INIT;
    int64_t deadline_ms;

    TAKE_KNOWN(&taken, options);
    check_duration(flow, "a deadline", taken.deadline_ms);
    deadline_ms = taken.deadline_ms      ? taken.deadline_ms
                  : flow->vm.deadline_ms ? flow->vm.deadline_ms
                                         : DEADLINE_MS;
    flow->engine.deadline_us = flow->accepted_us + 1000 * deadline_ms;
    flow->restore.reset = taken.reset;
    flow->restore.discard = taken.discard;
    if (!taken.keep_name)
        return;
    if (taken.discard)
        vf_fail(&flow->error, VMFROST_USAGE,
                "what is thrown away has no name: it makes no sense to give one");
    check_name(flow, taken.keep_name);
    flow->restore.keep = vf_strdup(taken.keep_name);
}

struct vmfrost_op *
vmfrost_restore(struct vmfrost *context, const char *vm, const char *snapshot,
                const struct vmfrost_restore_options *options, vmfrost_event_fn *event,
                vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = make(context, &vf_restore_table, vm, event, done, data);

    flow->changes = true;
    take_name(flow, snapshot);
    take_restore_options(flow, options);
    flow->prepare = vf_restore_prepare;
    flow->document = vf_restore_describe;
    return go(flow);
}

struct vmfrost_op *
vmfrost_freeze(struct vmfrost *context, const char *vm, int64_t limit_ms, vmfrost_event_fn *event,
               vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = make(context, &vf_freeze_table, vm, event, done, data);

    flow->changes = true;
    check_duration(flow, "a limit", limit_ms);
    flow->limit_ms = limit_ms;
    flow->options.quiesce = VMFROST_QUIESCE_REQUIRE;
    return go(flow);
}

static void
take_wait(struct vf_flow *flow, int64_t wait_ms)
{
    check_duration(flow, "a wait", wait_ms);
    if (wait_ms)
        flow->engine.thaw_wait_ms = wait_ms;
}

/* Whatever has become of the inventory, a socket is a socket. */
static void
find_socket(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_vm vm;

    if (!vf_store_find_socket(flow->store, flow->vm_name, &vm, &ignored))
        return;
    vf_vm_release(&flow->vm);
    flow->vm = vm;
    vf_absolve(flow);
}

struct vmfrost_op *
vmfrost_thaw(struct vmfrost *context, const char *vm, int64_t wait_ms, vmfrost_event_fn *event,
             vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = make(context, &vf_thaw_table, vm, event, done, data);

    flow->changes = true;
    flow->no_recovery = true;
    flow->without_lock = true;
    if (vf_failed(&flow->error))
        find_socket(flow);
    take_wait(flow, wait_ms);
    return go(flow);
}

struct vmfrost_op *
vmfrost_recover(struct vmfrost *context, const char *vm, int64_t wait_ms, vmfrost_event_fn *event,
                vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = make(context, &vf_recover_table, vm, event, done, data);

    flow->changes = true;
    flow->no_recovery = true;
    take_wait(flow, wait_ms);
    vf_recover_prepare(flow);
    return go(flow);
}

struct vmfrost_op *
vmfrost_verify(struct vmfrost *context, const char *vm, vmfrost_event_fn *event,
               vmfrost_done_fn *done, void *data)
{
    return go(make(context, &vf_verify_table, vm, event, done, data));
}

struct vmfrost_op *
vmfrost_export(struct vmfrost *context, const char *vm, const char *snapshot, const char *dest,
               const struct vmfrost_export_options *options, vmfrost_event_fn *event,
               vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = make(context, &vf_export_table, vm, event, done, data);
    struct vmfrost_export_options taken = VMFROST_EXPORT_OPTIONS_INIT;

    TAKE_KNOWN(&taken, options);
    take_name(flow, snapshot);
    flow->using = vf_using_new(dest, taken.disk);
    flow->using->sums = true;
    flow->using->compress = taken.compress;
    switch (taken.format) {
    case VMFROST_FORMAT_QCOW2:
        break;
    case VMFROST_FORMAT_RAW:
        flow->using->raw = true;
        flow->using->extension = "raw";
        if (taken.compress)
            vf_fail(&flow->error, VMFROST_USAGE, "a raw image cannot be compressed");
        break;
    }
    return go(flow);
}

struct vmfrost_op *
vmfrost_clone(struct vmfrost *context, const char *vm, const char *snapshot, const char *dest,
              const struct vmfrost_clone_options *options, vmfrost_event_fn *event,
              vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow = make(context, &vf_clone_table, vm, event, done, data);
    struct vmfrost_clone_options taken = VMFROST_CLONE_OPTIONS_INIT;

    TAKE_KNOWN(&taken, options);
    flow->changes = true;
    take_name(flow, snapshot);
    flow->using = vf_using_new(dest, taken.disk);
    return go(flow);
}

struct vmfrost_op *
vmfrost_discover(struct vmfrost *context, vmfrost_done_fn *done, void *data)
{
    struct vf_flow *flow =
        vf_flow_new(context->loop, context->store, &context->log, &vf_discover_table);

    flow->vm_name = vf_strdup("");
    flow->on_done = done;
    flow->data = data;
    flow->on_end = on_end;
    flow->on_end_data = context;
    context->running++;
    return go(flow);
}

/* The state folder. */

static enum vmfrost_code
answer(const struct vmfrost_error *error, struct vmfrost_error *error_r)
{
    if (error_r)
        *error_r = *error;
    return error->code;
}

static char *
text_of(struct json_object *document)
{
    char *text =
        vf_strdup(vf_json_print(document, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));

    json_object_put(document);
    return text;
}

enum vmfrost_code
vmfrost_add(struct vmfrost *context, const char *name, const char *settings_json,
            struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *settings = vf_json_parse(settings_json, strlen(settings_json), 8);

    if (!settings)
        vf_fail(&error, VMFROST_USAGE, "the settings of %s are no JSON", name);
    else
        vf_store_add(context->store, name, settings, &error);
    json_object_put(settings);
    return answer(&error, error_r);
}

enum vmfrost_code
vmfrost_remove(struct vmfrost *context, const char *name, struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    vf_store_remove(context->store, name, &error);
    return answer(&error, error_r);
}

enum vmfrost_code
vmfrost_set_persistent(struct vmfrost *context, const char *vm, const char *disk, bool persistent,
                       struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    vf_store_set_persistent(context->store, vm, disk, persistent, &error);
    return answer(&error, error_r);
}

enum vmfrost_code
vmfrost_storage(struct vmfrost *context, char **json_r, struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *classes = vf_classes_json(context->store, &error);

    if (classes)
        *json_r = text_of(classes);
    return answer(&error, error_r);
}

enum vmfrost_code
vmfrost_storage_set(struct vmfrost *context, const char *name, const char *class_json,
                    struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *changes = vf_json_parse(class_json, strlen(class_json), 8);

    vf_class_set(context->store, name, changes, &error);
    json_object_put(changes);
    return answer(&error, error_r);
}

enum vmfrost_code
vmfrost_storage_remove(struct vmfrost *context, const char *name, struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    vf_class_remove(context->store, name, &error);
    return answer(&error, error_r);
}

enum vmfrost_code
vmfrost_vms(struct vmfrost *context, char **json_r, struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *vms = vf_store_vms(context->store, &error);

    if (vms)
        *json_r = text_of(vms);
    return answer(&error, error_r);
}

static struct json_object *
records_of(struct vmfrost *context, const char *name, struct vmfrost_error *error)
{
    struct vf_vm vm = {0};
    struct json_object *records = NULL;

    if (vf_store_find(context->store, name, &vm, error))
        records = vf_record_list(&vm, error);
    if (records)
        vf_truth_complete(&vm, records);
    vf_vm_release(&vm);
    return records;
}

static void
append_all(struct json_object *all, struct json_object *records)
{
    for (size_t i = 0; i < vf_json_length(records); i++)
        vf_json_append(all, json_object_get(vf_json_at(records, i)));
    json_object_put(records);
}

enum vmfrost_code
vmfrost_list(struct vmfrost *context, const char *vm, char **json_r, struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct json_object *all = vf_json_new_array();

    if (vm) {
        append_all(all, records_of(context, vm, &error));
    } else {
        struct json_object *vms = vf_store_vms(context->store, &error);

        for (size_t i = 0; i < vf_json_length(vms) && !vf_failed(&error); i++)
            append_all(all,
                       records_of(context, vf_json_string(vf_json_at(vms, i), "name"), &error));
        json_object_put(vms);
    }
    if (vf_failed(&error))
        json_object_put(all);
    else
        *json_r = text_of(all);
    return answer(&error, error_r);
}

enum vmfrost_code
vmfrost_show(struct vmfrost *context, const char *vm, const char *snapshot, char **json_r,
             struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_vm found = {0};
    struct json_object *record = NULL;

    if (vf_store_find(context->store, vm, &found, &error))
        record = vf_truth_load(&found, snapshot, &error);
    if (record)
        *json_r = text_of(record);
    vf_vm_release(&found);
    return answer(&error, error_r);
}

enum vmfrost_code
vmfrost_prune_plan(struct vmfrost *context, const char *vm,
                   const struct vmfrost_prune_options *options, char **json_r,
                   struct vmfrost_error *error_r)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vmfrost_prune_options given = VMFROST_PRUNE_OPTIONS_INIT;

    TAKE_KNOWN(&given, options);
    struct json_object *plan = vf_prune_plan(context->store, vm, &given, &error);

    if (plan)
        *json_r = text_of(plan);
    return answer(&error, error_r);
}
