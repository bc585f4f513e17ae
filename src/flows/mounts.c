/* SPDX-License-Identifier: MIT
 *
 * The step that decides which of the guest's file systems are frozen: a disk that is left out of
 * the snapshot need not stand still for it.
 *
 * QEMU is asked where it has each disk (its PCI device, and where it is behind that), the agent
 * where the guest has each mount point; vm/mounts.h puts both together. Nothing depends on it:
 * whatever is not known or not answered, everything is frozen.
 */
#include "flows/steps.h"
#include "flows/tables.h"

#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/disk.h"

/* What QEMU tells of a device. */
enum property {
    PARENT_BUS,
    ADDR,
    SCSI_ID,
    LUN,
    UNIT,
    SERIAL,
    PROPERTY_COUNT,
};

static const char *const properties[PROPERTY_COUNT] = {
    [PARENT_BUS] = "parent_bus",
    [ADDR] = "addr",
    [SCSI_ID] = "scsi-id",
    [LUN] = "lun",
    [UNIT] = "unit",
    [SERIAL] = "serial",
};

/* A disk's device, or the controller that it hangs on. */
struct vf_device {
    char *path;
    struct json_object *values[PROPERTY_COUNT]; /* NULL: it does not have it */
    size_t disk;                                /* of the plan */
};

/* The wish. */

static const char *
wish_text(const struct vf_flow *flow)
{
    return flow->freeze ? flow->freeze : flow->vm.freeze;
}

/* Somebody said so: if it cannot be done, they have to be told. */
static bool
is_explicit(const struct vf_flow *flow)
{
    return wish_text(flow) != NULL;
}

/* The guest may have file systems on it that are written to, and it is not cut. */
static bool
may_go_on(const struct vf_disk *disk)
{
    switch (disk->reason) {
    case VF_INCLUDED:
    case VF_OUT_EMPTY:
    case VF_OUT_CDROM:
    case VF_OUT_READ_ONLY:
    case VF_OUT_FIRMWARE:
    case VF_OUT_UNATTACHED:
    case VF_OUT_DUPLICATE: /* of one that is cut */
        return false;
    case VF_OUT_TEMPORARY:
    case VF_OUT_VVFAT:
    case VF_OUT_COPY_ON_READ:
    case VF_OUT_FILTER:
    case VF_OUT_HOTPLUGGED:
    case VF_OUT_STORAGE_CLASS:
    case VF_OUT_REQUESTED:
    case VF_OUT_NAME:
        return true;
    }
    return false;
}

static void
warn_of_all(struct vf_flow *flow)
{
    if (flow->freezing.mounts.why && is_explicit(flow))
        vf_warn(flow, "all file systems are to be frozen: %s", flow->freezing.mounts.why);
}

bool
vf_mounts_wanted(struct vf_flow *flow)
{
    struct vf_mountlist *wish = &flow->freezing.wish;
    bool some = false;

    /* By hand, everything is frozen. */
    if (flow->engine.table != &vf_snapshot_table && flow->engine.table != &vf_check_table)
        return false;
    vf_mountlist_release(wish);
    vf_mountlist_parse(is_explicit(flow) ? wish_text(flow) : "cut", wish);
    for (size_t i = 0; i < flow->plan.count; i++)
        some |= may_go_on(&flow->plan.disks[i]);
    if (wish->base == VF_MOUNTS_NAMED || vf_json_length(wish->without) > 0)
        some = true;
    else if (wish->base == VF_MOUNTS_ALL)
        some = false;
    if (some && flow->agent.windows)
        flow->freezing.mounts.why = vf_strdup("file systems of Windows cannot be chosen");
    else if (some && !flow->agent.can_list)
        flow->freezing.mounts.why = vf_strdup("the guest agent does not allow guest-get-fsinfo and "
                                              "guest-fsfreeze-freeze-list");
    warn_of_all(flow);
    return some && !flow->freezing.mounts.why;
}

/* Where QEMU has its disks. */

static struct vf_device *
add_device(struct vf_flow *flow, char *path, size_t disk)
{
    struct vf_freezing *freezing = &flow->freezing;

    VF_GROW(freezing->devices, freezing->device_count);
    struct vf_device *device = &freezing->devices[freezing->device_count++];

    *device = (struct vf_device){.path = path, .disk = disk};
    return device;
}

static bool
number(const struct vf_device *device, enum property property, int64_t *value_r)
{
    struct json_object *value = device->values[property];

    if (!json_object_is_type(value, json_type_int))
        return false;
    *value_r = json_object_get_int64(value);
    return true;
}

static struct json_object *
find_pci(struct json_object *devices, const char *id)
{
    for (size_t i = 0; i < vf_json_length(devices); i++) {
        struct json_object *device = vf_json_at(devices, i);
        const char *its_id = vf_json_string(device, "qdev_id");

        if (its_id && strcmp(its_id, id) == 0)
            return device;
        struct json_object *bridge = vf_json_object(device, "pci_bridge");
        struct json_object *below = find_pci(vf_json_array(bridge, "devices"), id);

        if (below)
            return below;
    }
    return NULL;
}

/* The number of a PCI bus, as the guest knows it: of a bridge's with a name, or of the first. */
static bool
bus_number(const struct vf_flow *flow, const char *bus, int64_t *number_r)
{
    struct json_object *buses = flow->freezing.pci;
    VF_AUTO_FREE char *bridge = vf_disk_device_id(bus);

    if (vf_starts_with(bus, "/machine/peripheral-anon/"))
        return false;
    *number_r = 0;
    if (!bridge)
        return true;
    for (size_t i = 0; i < vf_json_length(buses); i++) {
        struct json_object *device =
            find_pci(vf_json_array(vf_json_at(buses, i), "devices"), bridge);

        /* 0: the guest has not set it up. */
        if (device)
            return vf_json_int(vf_json_object(vf_json_object(device, "pci_bridge"), "bus"),
                               "secondary", number_r) &&
                   *number_r > 0;
    }
    return false;
}

/* Of "/machine/.../ide.1" the 1. */
static bool
port_number(const char *bus, int64_t *number_r)
{
    const char *dot = strrchr(bus, '.');
    char *end;

    if (!dot || dot[1] < '0' || dot[1] > '9')
        return false;
    *number_r = strtoll(dot + 1, &end, 10);
    return !*end;
}

/* The disk that `device` is, on the PCI device `on`, which may be itself. */
static void
place(const struct vf_flow *flow, const struct vf_device *device, const struct vf_device *on,
      struct vf_mounted_disk *disk)
{
    const char *bus = vf_json_text(device->values[PARENT_BUS]);
    const char *pci_bus = vf_json_text(on->values[PARENT_BUS]);
    int64_t address = 0;

    if (!bus || !pci_bus || !number(on, ADDR, &address) || address < 0 ||
        !bus_number(flow, pci_bus, &disk->bus))
        return;
    disk->slot = address >> 3;
    disk->function = address & 7;
    disk->attachment = VF_ATTACHED_DIRECTLY;
    if (device == on) {
        disk->placed = true;
    } else if (number(device, SCSI_ID, &disk->target)) {
        disk->attachment = VF_ATTACHED_SCSI;
        disk->placed = number(device, LUN, &disk->lun);
    } else if (number(device, UNIT, &disk->unit)) {
        disk->attachment = VF_ATTACHED_IDE;
        disk->placed = port_number(bus, &disk->port);
    } else {
        disk->placed = true; /* a part of its controller, as a namespace of NVMe */
    }
}

static const struct vf_device *
controller_of(const struct vf_flow *flow, size_t first, size_t disk)
{
    for (size_t i = first; i < flow->freezing.device_count; i++)
        if (flow->freezing.devices[i].disk == disk)
            return &flow->freezing.devices[i];
    return NULL;
}

static void
choose(struct vf_flow *flow)
{
    struct vf_freezing *freezing = &flow->freezing;
    struct vf_mounted_disk *disks = vf_alloc((flow->plan.count + 1) * sizeof *disks);
    size_t count = 0;

    for (size_t i = 0; i < freezing->device_count && count < flow->plan.count; i++) {
        const struct vf_device *device = &freezing->devices[i];
        const struct vf_disk *planned = &flow->plan.disks[device->disk];
        const struct vf_device *later = controller_of(flow, i + 1, device->disk);
        struct vf_mounted_disk disk = {
            .name = planned->name,
            .cut = planned->reason == VF_INCLUDED || planned->reason == VF_OUT_DUPLICATE,
            .serial = vf_json_text(device->values[SERIAL]),
        };

        if (controller_of(flow, 0, device->disk) != device)
            continue; /* is a controller */
        place(flow, device, later ? later : device, &disk);
        if (disk.placed || disk.cut || may_go_on(planned))
            disks[count++] = disk;
    }
    vf_mounts_release(&freezing->mounts);
    vf_mounts_choose(&freezing->wish, disks, count, freezing->fsinfo, &freezing->mounts);
    free(disks);
}

/* Asking. */

static void
decided(struct vf_flow *flow)
{
    struct vf_mounts *mounts = &flow->freezing.mounts;

    if (mounts->why)
        vf_sanitize(mounts->why);
    warn_of_all(flow);
    if (mounts->partial)
        vf_warn(flow, "%s", mounts->partial);
    vf_end(flow, VF_OK);
}

static void
on_fsinfo(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_UNKNOWN) {
        vf_expect(flow, reply, "guest-get-fsinfo");
        return;
    }
    if (reply->outcome == VF_REFUSED) {
        free(flow->freezing.mounts.why);
        flow->freezing.mounts.why = vf_printf("guest-get-fsinfo: %s", reply->words);
        decided(flow);
        return;
    }
    flow->freezing.fsinfo = json_object_get(reply->value);
    choose(flow);
    decided(flow);
}

static void
ask_guest(struct vf_flow *flow)
{
    vf_ask_agent(flow, "guest-get-fsinfo", NULL, on_fsinfo);
}

static void
on_pci(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_UNKNOWN) {
        vf_expect(flow, reply, "query-pci");
        return;
    }
    /* Refused by machines without PCI. */
    json_object_put(flow->freezing.pci);
    flow->freezing.pci = json_object_get(reply->value);
    ask_guest(flow);
}

/* All properties of all devices from `flow->at` on are asked for at once, and answered in order.
 * The step goes on with the last answer, whatever the others were: none of them may come later. */

static void ask_devices(struct vf_flow *flow);

/* A disk that is no PCI device itself hangs on a controller. */
static void
ask_controllers(struct vf_flow *flow)
{
    size_t disks = flow->freezing.device_count;

    for (size_t i = 0; i < disks; i++) {
        const struct vf_device *device = &flow->freezing.devices[i];
        const char *bus = vf_json_text(device->values[PARENT_BUS]);
        int64_t ignored;

        if (bus && !number(device, ADDR, &ignored))
            add_device(flow, vf_disk_device_path(bus), device->disk);
    }
    flow->at = disks;
    if (flow->freezing.device_count > disks)
        ask_devices(flow);
    else
        vf_ask(flow, "query-pci", NULL, on_pci);
}

static void
on_property(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct vf_freezing *freezing = &flow->freezing;
    size_t index = flow->at + flow->at_part / PROPERTY_COUNT;

    if (reply->outcome == VF_UNKNOWN)
        flow->answers = VF_UNKNOWN;
    /* Refused: it has no such property. */
    freezing->devices[index].values[flow->at_part % PROPERTY_COUNT] = json_object_get(reply->value);
    flow->at_part++;
    if (index + 1 < freezing->device_count || flow->at_part % PROPERTY_COUNT)
        return;
    if (flow->answers != VF_OK) {
        vf_note(flow, VMFROST_UNREACHABLE, "asking where QEMU has its disks: %s", reply->words);
        vf_end(flow, flow->answers);
    } else if (flow->at == 0)
        ask_controllers(flow);
    else {
        vf_ask(flow, "query-pci", NULL, on_pci);
    }
}

static void
ask_devices(struct vf_flow *flow)
{
    flow->at_part = 0;
    flow->answers = VF_OK;
    for (size_t i = flow->at; i < flow->freezing.device_count; i++)
        for (size_t j = 0; j < PROPERTY_COUNT; j++)
            vf_ask(flow, "qom-get",
                   vf_json_strings("path", flow->freezing.devices[i].path, "property",
                                   properties[j], NULL),
                   on_property);
}

static void
forget_devices(struct vf_freezing *freezing)
{
    for (size_t i = 0; i < freezing->device_count; i++) {
        free(freezing->devices[i].path);
        for (size_t j = 0; j < PROPERTY_COUNT; j++)
            json_object_put(freezing->devices[i].values[j]);
    }
    free(VF_STEAL(freezing->devices));
    freezing->device_count = 0;
}

void
vf_freezing_release(struct vf_flow *flow)
{
    struct vf_freezing *freezing = &flow->freezing;

    forget_devices(freezing);
    json_object_put(VF_STEAL(freezing->pci));
    json_object_put(VF_STEAL(freezing->fsinfo));
    vf_mounts_release(&freezing->mounts);
    vf_mountlist_release(&freezing->wish);
}

/* Fills flow->freezing.mounts. */
void
vf_step_mounts(struct vf_flow *flow)
{
    forget_devices(&flow->freezing);
    flow->freezing.mounts.why = vf_strdup("the guest agent did not tell its file systems in time");
    for (size_t i = 0; i < flow->plan.count; i++) {
        char *path = vf_disk_device_path(flow->plan.disks[i].qdev);

        if (path && flow->plan.disks[i].root)
            add_device(flow, path, i);
        else
            free(path);
    }
    flow->at = 0;
    if (flow->freezing.device_count > 0)
        ask_devices(flow);
    else
        ask_guest(flow);
}

void
vf_freezing_json(const struct vf_flow *flow, struct json_object *object)
{
    static const char *const policies[] = {
        [VF_MOUNTS_CUT] = "cut", [VF_MOUNTS_ALL] = "all", [VF_MOUNTS_NAMED] = "named"};
    const struct vf_freezing *freezing = &flow->freezing;

    if (!freezing->wish.with)
        return;
    vf_json_add_string(object, "freezePolicy",
                       freezing->mounts.points && !freezing->mounts.why
                           ? policies[freezing->wish.base]
                           : "all");
    vf_json_add_string(object, "freezeMessage", freezing->mounts.why);
    /* A recovery that finds no more than this has to judge by the same. */
    vf_json_add_string(object, "freezePartial", freezing->mounts.partial);
    if (freezing->mounts.points)
        vf_json_add_int(object, "freezeExpected", freezing->mounts.least);
    if (freezing->mounts.points)
        vf_json_add(object, "frozenMounts", json_object_get(freezing->mounts.points));
}
