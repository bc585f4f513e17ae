/* SPDX-License-Identifier: MIT
 *
 * The step that decides which disks are cut and under which names. It changes nothing.
 */
#include "flows/steps.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/file.h"
#include "util/mem.h"

struct vf_plan_input
vf_plan_input_of(const struct vf_flow *flow)
{
    return (struct vf_plan_input){
        .status = flow->facts.status,
        .migrate = flow->facts.migrate,
        .jobs = flow->facts.jobs,
        .block_jobs = flow->facts.block_jobs,
        .block = flow->facts.block,
        .nodes = flow->facts.nodes,
        .graph = flow->facts.graph,
        .depth_warned = flow->vm.warn_depth,
        .hotplugged = flow->facts.hotplugged,
        .persistent = flow->vm.persistent,
    };
}

bool
vf_state_allows(struct vf_flow *flow, struct vmfrost_error *error)
{
    struct vf_plan_input input = vf_plan_input_of(flow);

    return vf_plan_check_state(&input, &flow->plan, error);
}

bool
vf_plan_facts(struct vf_flow *flow, struct vmfrost_error *error)
{
    struct vf_plan_input input = vf_plan_input_of(flow);

    input.exclude = (const char *const *)flow->exclude;
    input.exclude_count = flow->exclude_count;
    input.include = (const char *const *)flow->include;
    input.include_count = flow->include_count;
    VF_AUTO_JSON struct json_object *left_out = vf_classes_left_out(flow, error);

    input.left_out = left_out;
    vf_plan_release(&flow->plan);
    return vf_plan_make(&input, &flow->plan, error) && left_out;
}

bool
vf_disk_place(struct vf_flow *flow, const struct vf_disk *disk, struct vf_place *place,
              struct vmfrost_error *error)
{
    VF_AUTO_FREE char *known = vf_links_top(flow, disk->file);

    if (disk->encrypted) {
        vf_fail(error, VMFROST_FAILED,
                "it is encrypted, and an overlay on it would hold the guest's data in the clear");
        return vf_hint(error, "leave it out with --exclude %s", disk->name);
    }
    const char *file = known ? known : disk->file;
    struct vmfrost_error why = {.code = VMFROST_OK};
    bool placed = vf_place_find(vf_view_of_qemu(flow), file, disk->format, flow->vm.overlay_folder,
                                place, &why);
    const struct vf_class *class = vf_disk_class(flow, disk, place);

    /* A class tells by where a disk lies, which is known only now. It says more of this disk than
     * the VM's setting does, which is for all of them. */
    if (class && class->overlay_folder && place->path &&
        (!placed || place->naming == VF_NAMING_NEW_FILE)) {
        vf_place_release(place);
        why = (struct vmfrost_error){.code = VMFROST_OK};
        placed = vf_place_find(vf_view_of_qemu(flow), file, disk->format, class->overlay_folder,
                               place, &why);
    }
    if (!placed) {
        vf_fail(error, why.code, "%s", why.text);
        vf_hint(error, "%s", why.next);
    }
    return placed;
}

bool
vf_folder_allows(const char *image, bool by_us, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *folder = vf_folder_of(image);
    const char *why = vf_unwritable(folder, by_us);

    if (!why)
        return true;
    vf_fail(error, VMFROST_FAILED, "the folder %s cannot be written to: %s", folder, why);
    return vf_hint(error, "put that right first: names of images in it have to change");
}

/* Two new files can want one name: disk.raw and disk.img lie in one folder. */
static bool
is_alone(const struct vf_flow *flow, const struct vf_cut *cut, struct vmfrost_error *error)
{
    for (const struct vf_cut *other = flow->cuts; other < cut; other++) {
        if (strcmp(other->names.overlay, cut->names.overlay) != 0)
            continue;
        vf_fail(error, VMFROST_FAILED, "its overlay would be %s, like that of disk %s",
                cut->names.overlay, other->name);
        return vf_hint(error, "rename one of the two images, or move it to another folder");
    }
    return true;
}

/* A QEMU that was started since opened the present image by the name of this snapshot, of which
 * there was an earlier one: that name was kept for it, and is the right one again. */
static bool
has_sealed_name(const struct vf_flow *flow, const struct vf_cut *cut)
{
    VF_AUTO_FREE char *top = vf_links_top(flow, cut->names.sealed);

    return top && cut->names.top && strcmp(top, cut->names.top) == 0 &&
           vf_inode_equal(vf_inode_of(cut->names.sealed), cut->base);
}

/* False with the reason if this disk cannot be cut under safe names. */
static bool
add_cut(struct vf_flow *flow, const struct vf_disk *disk, struct vmfrost_error *error)
{
    struct vf_place place = {0};

    if (!vf_disk_place(flow, disk, &place, error)) {
        vf_place_release(&place);
        return false;
    }
    /* Its file's node is opened anew when it becomes read-only. */
    if (place.naming == VF_NAMING_FLIP && !place.opened_by_name && !disk->file_named) {
        assert(place.path);
        vf_fail(error, VMFROST_FAILED, "QEMU knows %s by the name %s, which is gone", place.path,
                disk->file);
        vf_hint(error, "give it that name back: ln '%s' '%s'", place.path, disk->file);
        vf_place_release(&place);
        return false;
    }
    VF_GROW(flow->cuts, flow->cut_count);
    struct vf_cut *cut = &flow->cuts[flow->cut_count];

    const struct vf_class *class = vf_disk_class(flow, disk, &place);

    vf_cut_make(cut, disk, &place, flow->snapshot_name, flow->id, flow->cut_count);
    cut->storage_class = class ? vf_strdup(class->name) : NULL;
    flow->cut_count++;
    vf_place_release(&place);
    struct vf_names made = cut->names;

    if (has_sealed_name(flow, cut))
        made.sealed = NULL;
    return vf_names_free(&made, error) && is_alone(flow, cut, error) &&
           vf_folder_allows(cut->names.overlay, cut->naming == VF_NAMING_FLIP, error);
}

/* A disk that cannot be named safely is no reason to take a snapshot without it: it was eligible,
 * and the user has to say that it may be missing. */
void
vf_step_plan(struct vf_flow *flow)
{
    if (vf_record_exists(&flow->vm, flow->snapshot_name)) {
        vf_note(flow, VMFROST_FAILED, "a snapshot of this name exists already");
        vf_advise(flow, "choose another name, or delete it: vmfrost delete %s@%s", flow->vm.name,
                  flow->snapshot_name);
        vf_end(flow, VF_REFUSED);
        return;
    }
    /* A check changes nothing. */
    if (!(flow->lock_fd >= 0 ? vf_links_sweep(flow) : vf_links_sound(flow, &flow->error)) ||
        !vf_plan_facts(flow, &flow->error)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_disks_note(flow, flow->exclude_count + flow->include_count > 0 ? NULL : &flow->plan);
    for (size_t i = 0; i < flow->plan.warning_count; i++)
        vf_warn(flow, "%s", flow->plan.warnings[i]);
    for (size_t i = 0; i < flow->plan.count; i++) {
        const struct vf_disk *disk = &flow->plan.disks[i];

        if (disk->reason != VF_INCLUDED || add_cut(flow, disk, &flow->error))
            continue;
        vf_prefix(&flow->error, "disk %s", disk->name);
        vf_advise(flow, "put that right, or leave the disk out with --exclude %s", disk->name);
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_end(flow, vf_room_suffices(flow, &flow->error) ? VF_OK : VF_REFUSED);
}
