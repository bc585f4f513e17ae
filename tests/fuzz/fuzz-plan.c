/* SPDX-License-Identifier: MIT
 *
 * Which disks a snapshot takes, from a QEMU that answers anything. The input is as
 * tests/unit/fixtures/plan has it: {"status", "migrate", "jobs", "block_jobs", "block", "nodes",
 * "graph"}, and "hotplugged", "persistent", "left_out", "exclude" and "include" as in
 * struct vf_plan_input.
 */
#include "vm/disk.h"

#include "fuzz.h"
#include "mutate.h"
#include "vm/graph.h"

#define NAMES_MOST 8

static size_t
take_names(struct json_object *array, const char *names[NAMES_MOST])
{
    size_t count = 0;

    for (size_t i = 0; i < vf_json_length(array) && count < NAMES_MOST; i++) {
        const char *name = vf_json_text(vf_json_at(array, i));

        if (name)
            names[count++] = name;
    }
    return count;
}

static bool
is_named(const char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (vf_same(names[i], name))
            return true;
    return false;
}

/* What is never cut, by QEMU's own words. */
static void
check_included(const struct vf_plan_input *input, const struct vf_plan *plan, size_t index)
{
    const struct vf_disk *disk = &plan->disks[index];
    struct json_object *block = vf_json_at(input->block, index);
    struct json_object *inserted = vf_json_object(block, "inserted");

    MUST(!disk->why);
    MUST(inserted && !vf_json_bool(inserted, "ro", false));
    MUST(disk->root && disk->node && disk->format && disk->file);
    MUST(vf_disk_node(input, disk->node) && vf_disk_node(input, disk->root));
    MUST(!vf_same(disk->protocol, "vvfat"));
    MUST(disk->size >= 0);
    MUST(!is_named(input->exclude, input->exclude_count, disk->name));
    MUST(!disk->hotplugged || disk->persistent || input->include_count > 0);
    for (size_t i = 0; i < index; i++)
        MUST(plan->disks[i].reason != VF_INCLUDED || !vf_same(plan->disks[i].node, disk->node));
}

static void
check_plan(const struct vf_plan_input *input, const struct vf_plan *plan, bool good)
{
    size_t included = 0;

    MUST(plan->run_state);
    for (size_t i = 0; i < plan->count; i++) {
        const struct vf_disk *disk = &plan->disks[i];

        MUST(disk->name && *vf_reason_name(disk->reason));
        for (size_t k = 0; k < i; k++)
            MUST(!vf_same(plan->disks[k].name, disk->name));
        included += disk->reason == VF_INCLUDED;
        if (disk->reason != VF_INCLUDED)
            MUST(disk->why && *disk->why);
        else if (good)
            check_included(input, plan, i);
        if (!disk->node)
            continue;
        vf_graph_in_use(input->graph, disk->node);
        vf_graph_has_device(input->graph, disk->node);
        MUST(!good || disk->reason != VF_INCLUDED || !vf_graph_job_near(input->graph, disk->node));
    }
    MUST(plan->included == included);
    if (good)
        MUST(included > 0 && plan->count == vf_json_length(input->block));
}

/* One after the other is left out after all; with the last one it is no snapshot any more. */
static void
drop_all(struct vf_plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        struct vmfrost_error error = {.code = VMFROST_OK};

        if (plan->disks[i].reason != VF_INCLUDED)
            continue;
        bool left = vf_plan_drop(plan, i, VF_OUT_NAME, vf_strdup("for a test"), &error);

        MUST(left == (plan->included > 0));
        check_error(left, &error);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    VF_AUTO_JSON struct json_object *told = vf_json_parse((const char *)data, size, 64);
    const char *exclude[NAMES_MOST], *include[NAMES_MOST];
    struct vf_plan_input input = {
        .status = vf_json_object(told, "status"),
        .migrate = vf_json_object(told, "migrate"),
        .jobs = vf_json_array(told, "jobs"),
        .block_jobs = vf_json_array(told, "block_jobs"),
        .block = vf_json_array(told, "block"),
        .nodes = vf_json_array(told, "nodes"),
        .graph = vf_json_object(told, "graph"),
        .hotplugged = vf_json_object(told, "hotplugged"),
        .persistent = vf_json_array(told, "persistent"),
        .left_out = vf_json_object(told, "left_out"),
        .exclude = exclude,
        .include = include,
    };
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_plan plan;

    if (!told)
        return 0;
    input.exclude_count = take_names(vf_json_array(told, "exclude"), exclude);
    input.include_count = take_names(vf_json_array(told, "include"), include);
    bool good = vf_plan_make(&input, &plan, &error);

    check_error(good, &error);
    check_plan(&input, &plan, good);

    VF_AUTO_JSON struct json_object *shown = vf_plan_json(&plan);
    const char *text = json_object_to_json_string(shown);
    VF_AUTO_JSON struct json_object *again = vf_json_parse(text, strlen(text), 16);

    MUST(again);
    if (good)
        drop_all(&plan);
    vf_plan_release(&plan);
    return 0;
}
