/* SPDX-License-Identifier: MIT
 *
 * What is not known is left out: a driver that we have never heard of may be a filter, and an
 * overlay above a filter has a header that nothing can open.
 */
#include "vm/disk.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/graph.h"

static char *
copy(const char *text)
{
    return text ? vf_strdup(text) : NULL;
}

void
vf_disk_leave_out(struct vf_disk *disk, enum vf_reason reason, char *why)
{
    if (disk->reason != VF_INCLUDED) {
        free(why);
        return;
    }
    disk->reason = reason;
    disk->why = why;
}

/* --- Nodes --- */

struct json_object *
vf_disk_node(const struct vf_plan_input *input, const char *name)
{
    for (size_t i = 0; name && i < vf_json_length(input->nodes); i++)
        if (vf_same(vf_json_string(vf_json_at(input->nodes, i), "node-name"), name))
            return vf_json_at(input->nodes, i);
    return NULL;
}

static const char *
driver_of(const struct vf_plan_input *input, const char *name)
{
    return vf_json_string(vf_disk_node(input, name), "drv");
}

/* Drivers that only change what passes through them. Those that jobs insert (backup, mirror,
 * commit) are in query-block while their job runs. */
static const struct filter {
    const char *driver, *child;
    enum vf_reason reason; /* INCLUDED: the disk is cut below it */
} filters[] = {
    {"throttle", "file", VF_INCLUDED},
    {"copy-on-read", "file", VF_OUT_COPY_ON_READ},
    {"blkdebug", "image", VF_OUT_FILTER},
    {"blklogwrites", "file", VF_OUT_FILTER},
    {"blkreplay", "image", VF_OUT_FILTER},
    {"blkverify", "test", VF_OUT_FILTER},
    {"commit_top", "backing", VF_OUT_FILTER},
    {"compress", "file", VF_OUT_FILTER},
    {"copy-before-write", "file", VF_OUT_FILTER},
    {"backup-top", "backing", VF_OUT_FILTER},
    {"mirror_top", "backing", VF_OUT_FILTER},
    {"preallocate", "file", VF_OUT_FILTER},
    {"quorum", "children.0", VF_OUT_FILTER},
    {"replication", "file", VF_OUT_FILTER},
    {"snapshot-access", "file", VF_OUT_FILTER},
};

/* Formats and protocols that an overlay can be put on. */
static const char *const known_drivers[] = {
    /* formats */
    "qcow2", "raw", "luks", "qed", "qcow", "vmdk", "vdi", "vhdx", "vpc", "parallels",
    /* protocols */
    "file", "host_device", "nbd", "rbd", "ssh", "iscsi", "nfs", "gluster", "http", "https", "nvme",
    "io_uring", "nvme-io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-user",
    "virtio-blk-vhost-vdpa", "null-aio", "null-co", NULL};

/* QEMU's drivers for what the host shows as a file. */
static const char *const file_drivers[] = {"file", "host_device", NULL};

static const struct filter *
filter_of(const char *driver)
{
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (vf_same(driver, filters[i].driver))
            return &filters[i];
    return NULL;
}

/* The next node downwards on the way to where `name` keeps its own data: past a filter, or a
 * format's file. NULL at the end. */
static const char *
below(const struct vf_plan_input *input, const char *name)
{
    const struct filter *filter = filter_of(driver_of(input, name));

    return vf_graph_child(input->graph, name, filter ? filter->child : "file");
}

/* No honest chain is longer than all nodes together: a ring ends there. */
static size_t
longest(const struct vf_plan_input *input)
{
    return vf_json_length(input->nodes);
}

/* The node, or one on the way down from it to its data, has this driver. */
static bool
stands_on(const struct vf_plan_input *input, const char *name, const char *driver)
{
    for (size_t left = longest(input); name && left > 0; left--) {
        if (vf_same(driver_of(input, name), driver))
            return true;
        name = below(input, name);
    }
    return false;
}

/* "/var/tmp/vl.R285Y3": what QEMU calls the overlay of a drive with snapshot=on. */
static bool
is_temporary_name(const char *file)
{
    const char *name = vf_name_of(file);

    if (!vf_starts_with(name, "vl.") || strlen(name) != 9)
        return false;
    for (const char *at = name + 3; *at; at++)
        if (!isalnum((unsigned char)*at))
            return false;
    return true;
}

/* Its own data is in such a file. */
static bool
is_temporary(const struct vf_plan_input *input, const char *name)
{
    for (size_t left = longest(input); name && left > 0; left--) {
        const char *file = vf_json_string(vf_disk_node(input, name), "file");

        if (vf_same(driver_of(input, name), "file") && file && is_temporary_name(file))
            return true;
        name = below(input, name);
    }
    return false;
}

static bool
is_temporary_chain(const struct vf_plan_input *input, const char *name)
{
    for (size_t left = longest(input); name && left > 0; left--) {
        if (is_temporary(input, name))
            return true;
        name = vf_graph_child(input->graph, name, "backing");
    }
    return false;
}

/* --- One disk --- */

char *
vf_disk_device_id(const char *qdev)
{
    static const char named[] = "/machine/peripheral/";

    if (!qdev || !*qdev)
        return NULL;
    if (*qdev != '/')
        return vf_strdup(qdev);
    if (!vf_starts_with(qdev, named))
        return NULL;
    const char *id = qdev + sizeof named - 1;
    size_t length = strcspn(id, "/");

    return length > 0 ? vf_printf("%.*s", (int)length, id) : NULL;
}

char *
vf_disk_device_path(const char *qdev)
{
    static const char *const homes[] = {"/machine/peripheral/", "/machine/peripheral-anon/",
                                        "/machine/unattached/"};

    if (!qdev || !*qdev)
        return NULL;
    if (*qdev != '/')
        return vf_printf("%s%s", homes[0], qdev);
    for (size_t i = 0; i < sizeof homes / sizeof *homes; i++) {
        size_t length = strlen(homes[i]);

        if (vf_starts_with(qdev, homes[i]))
            return vf_printf("%.*s", (int)(length + strcspn(qdev + length, "/")), qdev);
    }
    return vf_strdup(qdev);
}

static bool
name_taken(const struct vf_plan *plan, const char *name)
{
    for (size_t i = 0; i < plan->count; i++)
        if (vf_same(plan->disks[i].name, name))
            return true;
    return false;
}

/* Two disks with one name could not be told apart in a record. */
static char *
make_name(const struct vf_plan *plan, const struct vf_disk *disk)
{
    VF_AUTO_FREE char *id = vf_disk_device_id(disk->qdev);
    const char *candidates[] = {disk->device, id, disk->root, disk->qdev};

    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++)
        if (candidates[i] && *candidates[i] && !name_taken(plan, candidates[i]))
            return vf_strdup(candidates[i]);
    for (size_t number = plan->count;; number++) {
        VF_AUTO_FREE char *name = vf_printf("disk%zu", number);

        if (!name_taken(plan, name))
            return VF_STEAL(name);
    }
}

/* Walks down from the root to the node that is cut, and notes what is in the way. */
static void
find_node(const struct vf_plan_input *input, struct vf_disk *disk)
{
    const char *node = disk->root;
    const struct filter *filter = filter_of(driver_of(input, node));

    for (size_t left = longest(input); filter && left > 0; left--) {
        const char *next = below(input, node);

        if (filter->reason == VF_OUT_COPY_ON_READ)
            vf_disk_leave_out(disk, filter->reason,
                              vf_strdup(
                                  "it copies on read, so that its image would change under the "
                                  "snapshot"));
        else if (filter->reason != VF_INCLUDED || !next)
            vf_disk_leave_out(disk, VF_OUT_FILTER,
                              vf_printf("it is below a %s filter, which vmfrost does not pass",
                                        filter->driver));
        if (!next)
            break;
        node = next;
        filter = filter_of(driver_of(input, node));
    }
    disk->node = copy(node);
}

/* The name under which QEMU opened what holds the disk's content. */
static char *
find_file(const struct vf_plan_input *input, const struct vf_disk *disk)
{
    const char *own = vf_json_string(vf_disk_node(input, disk->node), "file");
    const char *at = disk->file_node;

    /* A qcow2 file says itself what it is, so that its plain name is enough. Others may be a part
     * of their file or need a key: only the whole "json:" text has that. */
    if (!vf_same(disk->format, "qcow2"))
        return copy(own);
    for (size_t left = longest(input); at && left > 0; left--) {
        const char *file = vf_json_string(vf_disk_node(input, at), "file");

        if (vf_among(driver_of(input, at), file_drivers) && file)
            return vf_strdup(file);
        at = below(input, at);
    }
    return copy(own);
}

/* The last driver on the way down. */
static char *
find_protocol(const struct vf_plan_input *input, const struct vf_disk *disk)
{
    const char *node = disk->node, *protocol = NULL;

    for (size_t left = longest(input); node && left > 0; left--) {
        protocol = driver_of(input, node);
        node = below(input, node);
    }
    return copy(protocol);
}

static int
find_depth(const struct vf_plan_input *input, const struct vf_disk *disk)
{
    const char *node = disk->node;
    int depth = 0;

    for (size_t left = longest(input); node && left > 0; left--) {
        const struct filter *filter = filter_of(driver_of(input, node));

        depth += !filter && vf_graph_child(input->graph, node, "backing");
        node = vf_graph_child(input->graph, node, filter ? filter->child : "backing");
    }
    return depth;
}

bool
vf_disk_describe(const struct vf_plan_input *input, struct json_object *block,
                 const struct vf_plan *plan, struct vf_disk *disk, struct vmfrost_error *error)
{
    struct json_object *inserted = vf_json_object(block, "inserted");
    const char *device = vf_json_string(block, "device");

    disk->device = vf_strdup(device ? device : "");
    disk->qdev = copy(vf_json_string(block, "qdev"));
    disk->root = copy(vf_json_string(inserted, "node-name"));
    disk->name = make_name(plan, disk);
    disk->hotplugged = disk->qdev && vf_json_bool(input->hotplugged, disk->qdev, false);
    if (!inserted)
        return true;
    if (!disk->root || !vf_disk_node(input, disk->root) || !vf_graph_has(input->graph, disk->root))
        return vf_fail(error, VMFROST_FAILED,
                       "QEMU's answers about disk %s contradict each other: its node %s is not in "
                       "all of them",
                       disk->name, disk->root ? disk->root : "(none)") ||
               vf_hint(error, "a disk may have been plugged or unplugged right now: try again");
    find_node(input, disk);

    struct json_object *node = vf_disk_node(input, disk->node);
    struct json_object *cache = vf_json_object(node, "cache");

    disk->format = copy(vf_json_string(node, "drv"));
    disk->file_node = copy(vf_graph_child(input->graph, disk->node, "file"));
    disk->file_named = disk->file_node && disk->file_node[0] != '#';
    disk->file = find_file(input, disk);
    disk->protocol = find_protocol(input, disk);
    disk->depth = find_depth(input, disk);
    /* Whether writes are cached for the guest is the device's affair: only query-block knows. */
    disk->writeback = vf_json_bool(vf_json_object(inserted, "cache"), "writeback", true);
    disk->direct = vf_json_bool(cache, "direct", false);
    disk->no_flush = vf_json_bool(cache, "no-flush", false);
    disk->encrypted =
        vf_json_bool(node, "encrypted", false) || stands_on(input, disk->node, "luks");
    if (!disk->format || !disk->file ||
        !vf_json_int(vf_json_object(node, "image"), "virtual-size", &disk->size) || disk->size < 0)
        return vf_fail(error, VMFROST_FAILED,
                       "QEMU's answer about node %s of disk %s lacks its driver, file or size",
                       disk->node, disk->name);
    return true;
}

/* "/machine/system.flash0" for pflash0= and -drive if=pflash; on other boards "virt.flash0". */
static bool
is_firmware(const struct vf_disk *disk)
{
    const char *flash = disk->qdev ? strstr(vf_name_of(disk->qdev), ".flash") : NULL;

    if (flash && isdigit((unsigned char)flash[strlen(".flash")]))
        return true;
    return vf_starts_with(disk->device, "pflash") &&
           isdigit((unsigned char)disk->device[strlen("pflash")]);
}

/* The plainest reason for a person comes first. */
void
vf_disk_judge(const struct vf_plan_input *input, struct json_object *block, struct vf_disk *disk)
{
    struct json_object *inserted = vf_json_object(block, "inserted");
    const char *backend = *disk->device ? disk->device : disk->qdev;
    bool removable = vf_json_bool(block, "removable", false);
    /* Floppies and SD cards have no tray. A removable hard disk has one, but it writes. */
    bool tray = json_object_object_get_ex(block, "tray_open", NULL);

    if (!disk->qdev)
        vf_disk_leave_out(disk, VF_OUT_UNATTACHED, vf_strdup("no device uses it"));
    else if (!inserted)
        vf_disk_leave_out(disk, VF_OUT_EMPTY, vf_strdup("no medium is in it"));
    else if (is_firmware(disk))
        vf_disk_leave_out(disk, VF_OUT_FIRMWARE, vf_strdup("it is firmware flash"));
    else if (removable && tray && !vf_graph_backend_writes(input->graph, backend))
        vf_disk_leave_out(disk, VF_OUT_CDROM, vf_strdup("it is a CD-ROM"));
    else if (vf_json_bool(inserted, "ro", false))
        vf_disk_leave_out(disk, VF_OUT_READ_ONLY, vf_strdup("it is read-only"));
    else if (stands_on(input, disk->node, "vvfat"))
        vf_disk_leave_out(disk, VF_OUT_VVFAT, vf_strdup("it is a folder of the host (vvfat)"));
    else if (is_temporary_chain(input, disk->node))
        vf_disk_leave_out(disk, VF_OUT_TEMPORARY,
                          vf_strdup(
                              "it was started with snapshot=on: what the guest writes is gone when "
                              "QEMU ends"));
    else if (!vf_among(disk->format, known_drivers))
        vf_disk_leave_out(disk, VF_OUT_FILTER,
                          vf_printf("vmfrost does not know its driver %s", disk->format));
}
