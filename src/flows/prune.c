/* SPDX-License-Identifier: MIT */
#include "flows/prune.h"

#include <time.h>

#include "flows/clones.h"
#include "store/journal.h"
#include "util/cleanup.h"
#include "util/json.h"

static bool
check(const struct vmfrost_prune_options *options, struct vmfrost_error *error)
{
    if (options->keep_last < 0 || options->keep_hourly < 0 || options->keep_daily < 0 ||
        options->keep_weekly < 0)
        return vf_fail(error, VMFROST_USAGE, "a number of snapshots to keep cannot be below 0");
    if (options->max_age_ms < 0)
        return vf_fail(error, VMFROST_USAGE, "an age cannot be below 0");
    return true;
}

/* Those of the call, or else those of the VM: never a mixture, which nobody could foresee. */
static bool
choose_rules(const struct vf_vm *vm, const struct vmfrost_prune_options *options,
             struct vf_retention *rules, struct vmfrost_error *error)
{
    *rules = (struct vf_retention){
        .keep_last = options->keep_last,
        .keep_hourly = options->keep_hourly,
        .keep_daily = options->keep_daily,
        .keep_weekly = options->keep_weekly,
        .max_age_ms = options->max_age_ms,
        .failed = options->failed,
    };
    if (!vf_retention_given(rules))
        *rules = vm->retention;
    if (vf_retention_given(rules))
        return true;
    vf_fail(error, VMFROST_USAGE, "%s: no rule says which snapshots to keep", vm->name);
    return vf_hint(error,
                   "give one, for example --keep-last 3, or give the VM one: vmfrost add %s "
                   "--set keep-last=3",
                   vm->in_inventory ? vm->name : "NAME");
}

static int64_t
now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

struct json_object *
vf_prune_plan(struct vf_store *store, const char *name, const struct vmfrost_prune_options *options,
              struct vmfrost_error *error)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = {.name = NULL};
    VF_AUTO_JSON struct json_object *records = NULL;
    struct vf_retention rules;

    if (!check(options, error) || !vf_store_find(store, name, &vm, error) ||
        !choose_rules(&vm, options, &rules, error))
        return NULL;
    records = vf_record_list(&vm, error);
    if (!records)
        return NULL;
    for (size_t i = 0; i < vf_json_length(records); i++)
        vf_clones_settle(vf_json_at(records, i));
    VF_AUTO_JSON struct json_object *plan = vf_retention_plan(records, &rules, now_ms());
    struct json_object *document = vf_json_strings("vm", vm.name, NULL);

    vf_json_add(document, "rules", vf_retention_json(&rules));
    vf_json_add_bool(document, "interrupted", vf_journal_exists(&vm));
    vf_json_add(document, "keep", json_object_get(vf_json_array(plan, "keep")));
    vf_json_add(document, "remove", json_object_get(vf_json_array(plan, "remove")));
    return document;
}
