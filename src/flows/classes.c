/* SPDX-License-Identifier: MIT
 *
 * Storage classes: which disks they leave out, how they want overlays, and how much room.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/qcow2.h"

/* Less than this, and the guest is stopped before anybody has seen the snapshot. */
#define MIN_FREE (INT64_C(64) << 20)

static const char *
format_of(const struct vf_disk *disk)
{
    return disk->file_node ? disk->format : "raw"; /* as cuts have it */
}

const struct vf_class *
vf_disk_class(const struct vf_flow *flow, const struct vf_disk *disk, const struct vf_place *place)
{
    return vf_class_of(&flow->classes, place->path ? place->path : disk->file,
                       disk->protocol ? disk->protocol : "", format_of(disk));
}

/* Every disk that has an image: whether its other reasons hold is the plan's affair. */
static void
judge(struct vf_flow *flow, const struct vf_disk *disk, struct json_object *left_out)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_place place = {0};

    if (!disk->file || !disk->format)
        return;
    vf_disk_place(flow, disk, &place, &ignored);
    const struct vf_class *class = vf_disk_class(flow, disk, &place);

    if (class && class->left_out) {
        VF_AUTO_FREE char *why = vf_printf("its storage class \"%s\" leaves it out", class->name);

        vf_json_add_string(left_out, disk->name, why);
    }
    vf_place_release(&place);
}

struct json_object *
vf_classes_left_out(struct vf_flow *flow, struct vmfrost_error *error)
{
    struct vf_plan_input input = vf_plan_input_of(flow);
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_plan plan;

    /* Once: all of an operation is to see the same. */
    if (!flow->classes_known && !vf_classes_load(flow->store, &flow->classes, error))
        return NULL;
    flow->classes_known = true;
    struct json_object *left_out = vf_json_new_object();

    if (flow->classes.count == 0 || flow->any_class)
        return left_out;
    vf_plan_make(&input, &plan, &ignored);
    for (size_t i = 0; i < plan.count; i++)
        judge(flow, &plan.disks[i], left_out);
    vf_plan_release(&plan);
    return left_out;
}

/* Overlays. */

static const struct vf_class *
class_of(const struct vf_flow *flow, const struct vf_cut *cut)
{
    return cut->storage_class ? vf_class_named(&flow->classes, cut->storage_class) : NULL;
}

void
vf_class_overlay_layout(const struct vf_flow *flow, const struct vf_cut *cut,
                        int64_t *cluster_size_r, bool *extended_l2_r)
{
    const struct vf_class *class = class_of(flow, cut);

    *cluster_size_r = class && class->cluster_size ? class->cluster_size : VF_QCOW2_CLUSTER_SIZE;
    *extended_l2_r = class && class->extended_l2;
}

bool
vf_class_preallocates(const struct vf_flow *flow, const struct vf_cut *cut)
{
    const struct vf_class *class = class_of(flow, cut);

    return class && class->preallocation;
}

void
vf_class_overlay_options(const struct vf_flow *flow, const struct vf_cut *cut,
                         struct json_object *options)
{
    const struct vf_class *class = class_of(flow, cut);
    int64_t cluster_size;
    bool extended_l2;

    vf_class_overlay_layout(flow, cut, &cluster_size, &extended_l2);
    vf_json_add_int(options, "cluster-size", cluster_size);
    if (extended_l2)
        vf_json_add_bool(options, "extended-l2", true);
    if (class)
        vf_json_add_string(options, "preallocation", class->preallocation);
}

/* Room. */

/* Of the overlay's file as it is made: the part that counts. */
static int64_t
preallocated(const struct vf_class *class, const struct vf_cut *cut)
{
    bool data = class && class->preallocation && strcmp(class->preallocation, "metadata") != 0;

    return data ? cut->size : 0;
}

static int64_t
room_for(const struct vf_flow *flow, const struct vf_cut *cut)
{
    const struct vf_class *class = class_of(flow, cut);
    int64_t most = cut->size < MIN_FREE ? cut->size : MIN_FREE;

    return preallocated(class, cut) + (class && class->min_free >= 0 ? class->min_free : most);
}

static void
format_mib(int64_t bytes, char out[static 32])
{
    /* In integers: the caller's locale may write decimals with a comma. Rounded down, so that what
     * is there never looks like enough. */
    snprintf(out, 32, "%" PRId64 ".%d MiB", bytes >> 20,
             (int)((bytes & ((1 << 20) - 1)) * 10 >> 20));
}

/* How much is wanted on the file system of `device`, by which disks. */
static int64_t
wanted_on(const struct vf_flow *flow, dev_t device, char **names_r)
{
    int64_t wanted = 0;
    size_t count = 0;

    *names_r = vf_strdup("");
    for (size_t i = 0; i < flow->cut_count; i++) {
        VF_AUTO_FREE char *folder = vf_folder_of(flow->cuts[i].names.overlay);
        VF_AUTO_FREE char *before = NULL;
        struct stat about;

        if (stat(folder, &about) < 0 || about.st_dev != device)
            continue;
        int64_t room = room_for(flow, &flow->cuts[i]);

        wanted = room > INT64_MAX - wanted ? INT64_MAX : wanted + room;
        before = *names_r;
        *names_r = vf_printf("%s%s%s", before, count++ > 0 ? ", " : "", flow->cuts[i].name);
    }
    return wanted;
}

/* A table that is too large to be looked through cannot be told from one with data. */
static bool
can_be_checked(const struct vf_flow *flow, const struct vf_cut *cut, struct vmfrost_error *error)
{
    const struct vf_class *class = class_of(flow, cut);

    if (!class || !class->preallocation)
        return true;
    int64_t cluster = class->cluster_size ? class->cluster_size : VF_QCOW2_CLUSTER_SIZE;

    if (cut->size / cluster <= VF_QCOW2_TABLES_MOST / 16)
        return true;
    vf_fail(error, VMFROST_FAILED,
            "disk %s: it is too large for a preallocated overlay in clusters of %" PRId64 " bytes",
            cut->name, cluster);
    return vf_hint(error, "give the storage class \"%s\" a larger clusterSize, or no preallocation",
                   class->name);
}

bool
vf_room_suffices(const struct vf_flow *flow, struct vmfrost_error *error)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        VF_AUTO_FREE char *folder = vf_folder_of(cut->names.overlay);
        VF_AUTO_FREE char *names = NULL;
        char free_text[32], wanted_text[32];
        struct stat about;

        if (!can_be_checked(flow, cut, error))
            return false;
        /* A QEMU on another host has other folders. */
        if (!flow->qemu.pid || stat(folder, &about) < 0)
            continue;
        int64_t available = vf_free_bytes(folder, false);
        int64_t wanted = wanted_on(flow, about.st_dev, &names);

        if (wanted <= available)
            continue;
        format_mib(available, free_text);
        format_mib(wanted, wanted_text);
        vf_fail(error, VMFROST_FAILED,
                "disk %s: the file system of %s has %s free, and there have to be %s for the "
                "overlays of: %s",
                cut->name, folder, free_text, wanted_text, names);
        return vf_hint(error,
                       "make room there, or change minFree or overlayFolder of the disks' storage "
                       "class (vmfrost storage)");
    }
    return true;
}
