/* SPDX-License-Identifier: MIT
 *
 * Of what the agent tells of a disk, its PCI device counts, where it is behind that device, and its
 * serial number, in that order. Each of them leaves some of QEMU's disks over, and it is enough
 * that all of these are cut, or none: a LUN that two targets have is no matter if both are cut.
 *
 * The agent does not tell a SCSI disk's target (qemu-ga tells the LUN behind virtio-scsi, but the
 * target behind an LSI controller), so that a disk stays if either is the same.
 */
#include "vm/mounts.h"

#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

/* An honest guest has some dozens. */
#define MOUNTS_MOST 1024
#define POINT_MOST 4096
#define POINTS_MOST                                                                                \
    ((size_t)64 << 10) /* bytes of all that are frozen by name: they go into records */

/* Nothing is ever written to them, so that the agent does not freeze them: FIFREEZE fails. */
static const char *const unwritable[] = {"squashfs", "iso9660", "erofs", "cramfs"};
/* FIFREEZE does not fail, if nobody else has frozen them. */
static const char *const freezable[] = {"ext2", "ext3", "ext4", "xfs"};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static bool
among(const char *text, const char *const *words, size_t count)
{
    for (size_t i = 0; text && i < count; i++)
        if (strcmp(text, words[i]) == 0)
            return true;
    return false;
}

/* What a mount's disks are. */
enum share {
    NONE_CUT,
    SOME_CUT,
    NOT_KNOWN,
};

/* Where the guest says that a disk is. */
struct claim {
    bool pci;
    int64_t bus, slot, function;
    const char *type, *serial;
    int64_t its_bus, its_unit;
};

static struct claim
read_claim(struct json_object *disk)
{
    struct json_object *pci = vf_json_object(disk, "pci-controller");
    struct claim claim = {
        .type = vf_json_string(disk, "bus-type"),
        .serial = vf_json_string(disk, "serial"),
        .its_bus = -1,
        .its_unit = -1,
    };
    int64_t domain = -1;

    vf_json_int(disk, "bus", &claim.its_bus);
    vf_json_int(disk, "unit", &claim.its_unit);
    /* QEMU has no other domain than 0; -1 is "none". */
    claim.pci = vf_json_int(pci, "domain", &domain) && domain == 0 &&
                vf_json_int(pci, "bus", &claim.bus) && vf_json_int(pci, "slot", &claim.slot) &&
                vf_json_int(pci, "function", &claim.function);
    return claim;
}

static bool
may_be_there(const struct vf_mounted_disk *disk, const struct claim *claim)
{
    bool sata = claim->type && strcmp(claim->type, "sata") == 0;

    if (!disk->placed)
        return true;
    if (disk->bus != claim->bus || disk->slot != claim->slot || disk->function != claim->function)
        return false;
    switch (disk->attachment) {
    case VF_ATTACHED_DIRECTLY:
        return true;
    case VF_ATTACHED_SCSI:
        return claim->its_unit == disk->lun || claim->its_unit == disk->target;
    case VF_ATTACHED_IDE: /* a SATA port is a bus of its own */
        return sata ? claim->its_unit == disk->port
                    : claim->its_bus == disk->port && claim->its_unit == disk->unit;
    }
    return false;
}

/* udev puts vendor and model before the serial number of a SCSI disk. */
static bool
has_serial(const struct vf_mounted_disk *disk, const char *serial)
{
    if (!disk->serial || !*disk->serial || !vf_ends_with(serial, disk->serial))
        return false;
    size_t before = strlen(serial) - strlen(disk->serial);

    return before == 0 || serial[before - 1] == '_';
}

/* What the disks that are left over have in common. */
struct tally {
    size_t cut, uncut;
    bool numbered; /* one of them has a serial number */
};

static bool
any(struct tally tally)
{
    return tally.cut || tally.uncut;
}

static void
tally_add(struct tally *tally, const struct vf_mounted_disk *disk)
{
    tally->cut += disk->cut;
    tally->uncut += !disk->cut;
    tally->numbered |= disk->serial && *disk->serial;
}

static enum share
share_of(struct tally tally)
{
    if (!tally.cut == !tally.uncut)
        return NOT_KNOWN; /* nothing is left over, or not enough is known */
    return tally.cut ? SOME_CUT : NONE_CUT;
}

static enum share
share_of_disk(const struct vf_mounted_disk *disks, size_t count, struct json_object *told)
{
    struct claim claim = read_claim(told);
    struct tally there = {0}, numbered = {0}, elsewhere = {0};

    for (size_t i = 0; i < count; i++) {
        bool here = !claim.pci || may_be_there(&disks[i], &claim);

        if (here)
            tally_add(&there, &disks[i]);
        if (claim.serial && has_serial(&disks[i], claim.serial))
            tally_add(here ? &numbered : &elsewhere, &disks[i]);
    }
    if (any(numbered))
        return share_of(numbered);
    /* Whose number is it? Place and number contradict each other. */
    if (!claim.pci || any(elsewhere) || (claim.serial && there.numbered))
        return NOT_KNOWN;
    return share_of(there);
}

/* One of the agent's mounts. */
struct mount {
    const char *point, *name; /* `name` is the guest's for the device */
    enum share share;
    bool freezable;
};

struct choice {
    const struct vf_mountlist *wish;
    struct mount *mounts;
    size_t count;
};

static enum share
share_of_mount(const struct vf_mounted_disk *disks, size_t count, struct json_object *told)
{
    struct json_object *its_disks = vf_json_array(told, "disk");
    enum share share = NONE_CUT;

    if (vf_json_length(its_disks) == 0)
        return NOT_KNOWN;
    for (size_t i = 0; i < vf_json_length(its_disks); i++) {
        enum share one = share_of_disk(disks, count, vf_json_at(its_disks, i));

        if (one == NOT_KNOWN)
            return NOT_KNOWN;
        if (one == SOME_CUT)
            share = SOME_CUT;
    }
    return share;
}

/* False: the answer makes no sense. */
static bool
read_mounts(struct choice *choice, const struct vf_mounted_disk *disks, size_t count,
            struct json_object *fsinfo)
{
    size_t length = vf_json_length(fsinfo);

    if (!json_object_is_type(fsinfo, json_type_array) || length > MOUNTS_MOST)
        return false;
    choice->mounts = vf_alloc((length + 1) * sizeof *choice->mounts);
    for (size_t i = 0; i < length; i++) {
        struct json_object *told = vf_json_at(fsinfo, i);
        const char *type = vf_json_string(told, "type");
        struct mount mount = {
            .point = vf_json_string(told, "mountpoint"),
            .name = vf_json_string(told, "name"),
            .freezable = among(type, freezable, COUNT(freezable)),
        };

        if (!mount.point || mount.point[0] != '/' || strlen(mount.point) >= POINT_MOST ||
            !mount.name || !type)
            return false;
        if (among(type, unwritable, COUNT(unwritable)))
            continue;
        mount.share = share_of_mount(disks, count, told);
        choice->mounts[choice->count++] = mount;
    }
    return true;
}

static const struct mount *
find(const struct choice *choice, const char *point)
{
    for (size_t i = 0; i < choice->count; i++)
        if (strcmp(choice->mounts[i].point, point) == 0)
            return &choice->mounts[i];
    return NULL;
}

/* Why the wish cannot be granted: the first reason; NULL: it can. */
static char *
obstacle(const struct choice *choice)
{
    const struct vf_mountlist *wish = choice->wish;

    for (size_t i = 0; i < vf_json_length(wish->with); i++) {
        const char *point = vf_json_text(vf_json_at(wish->with, i));

        if (!find(choice, point))
            return vf_printf("the guest has no file system at %s", point);
    }
    for (size_t i = 0; wish->base == VF_MOUNTS_CUT && i < choice->count; i++) {
        const struct mount *mount = &choice->mounts[i];

        if (mount->share == NOT_KNOWN && !vf_mountlist_has(wish->with, mount->point) &&
            !vf_mountlist_has(wish->without, mount->point))
            return vf_printf("it is not certain on which disk the guest has %s", mount->point);
    }
    return NULL;
}

static bool
is_wanted(const struct choice *choice, const struct mount *mount, enum vf_mountlist_base base)
{
    const struct vf_mountlist *wish = choice->wish;

    if (vf_mountlist_has(wish->without, mount->point))
        return false;
    switch (base) {
    case VF_MOUNTS_CUT:
        return mount->share == SOME_CUT || vf_mountlist_has(wish->with, mount->point);
    case VF_MOUNTS_ALL:
        return true;
    case VF_MOUNTS_NAMED:
        return vf_mountlist_has(wish->with, mount->point);
    }
    return true;
}

/* One file system can be mounted at several places, and is frozen once. */
static bool
is_first_of_its_name(const struct choice *choice, const struct mount *mount)
{
    for (const struct mount *other = choice->mounts; other < mount; other++)
        if (strcmp(other->name, mount->name) == 0)
            return false;
    return true;
}

static void
choose(struct choice *choice, enum vf_mountlist_base base, struct vf_mounts *mounts)
{
    size_t left_out = 0, bytes = 0;

    mounts->points = vf_json_new_array();
    for (size_t i = 0; i < choice->count; i++) {
        const struct mount *mount = &choice->mounts[i];

        if (is_wanted(choice, mount, base)) {
            bytes += strlen(mount->point);
            vf_json_append(mounts->points, vf_json_new_string(mount->point));
            mounts->least += mount->freezable && is_first_of_its_name(choice, mount);
            continue;
        }
        left_out++;
        if (!mounts->partial && mount->share != NONE_CUT)
            mounts->partial =
                vf_printf("%s is not to be frozen, as asked for, but %s on a disk of the snapshot",
                          mount->point, mount->share == SOME_CUT ? "is" : "may be");
    }
    bool none = vf_json_length(mounts->points) == 0, many = bytes > POINTS_MOST;

    if (left_out > 0 && !none && !many)
        return;
    if (left_out > 0)
        mounts->why = vf_strdup(none ? "the guest has no file system on the disks that are cut"
                                     : "the mount points are too many to be named");
    json_object_put(VF_STEAL(mounts->points));
    free(VF_STEAL(mounts->partial));
    mounts->least = 0;
}

void
vf_mounts_choose(const struct vf_mountlist *wish, const struct vf_mounted_disk *disks, size_t count,
                 struct json_object *fsinfo, struct vf_mounts *mounts)
{
    struct choice choice = {.wish = wish};
    char *why;

    *mounts = (struct vf_mounts){0};
    if (!read_mounts(&choice, disks, count, fsinfo)) {
        mounts->why = vf_strdup("the agent's answer to guest-get-fsinfo makes no sense");
        free(choice.mounts);
        return;
    }
    why = obstacle(&choice);
    choose(&choice, why ? VF_MOUNTS_ALL : wish->base, mounts);
    if (why) {
        free(mounts->why);
        mounts->why = why;
    }
    free(choice.mounts);
}

void
vf_mounts_release(struct vf_mounts *mounts)
{
    json_object_put(VF_STEAL(mounts->points));
    free(VF_STEAL(mounts->why));
    free(VF_STEAL(mounts->partial));
}
