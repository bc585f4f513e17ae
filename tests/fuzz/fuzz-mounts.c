/* SPDX-License-Identifier: MIT
 *
 * Which file systems are frozen, by a guest that says anything: {"wish", "disks", "fsinfo"}, where
 * "fsinfo" is the answer to guest-get-fsinfo.
 */
#include "vm/mounts.h"

#include "fuzz.h"
#include "mutate.h"

#define DISKS_MOST 8

static int64_t
number(struct json_object *object, const char *key)
{
    int64_t value = 0;

    vf_json_int(object, key, &value);
    return value;
}

static size_t
take_disks(struct json_object *array, struct vf_mounted_disk disks[DISKS_MOST])
{
    static const enum vf_attachment attachments[] = {VF_ATTACHED_DIRECTLY, VF_ATTACHED_SCSI,
                                                     VF_ATTACHED_IDE};
    size_t count = 0;

    for (; count < vf_json_length(array) && count < DISKS_MOST; count++) {
        struct json_object *told = vf_json_at(array, count);

        disks[count] = (struct vf_mounted_disk){
            .name = "disk",
            .cut = vf_json_bool(told, "cut", false),
            .serial = vf_json_string(told, "serial"),
            .placed = vf_json_bool(told, "placed", true),
            .bus = number(told, "bus"),
            .slot = number(told, "slot"),
            .function = number(told, "function"),
            .attachment = attachments[(uint64_t)number(told, "attachment") % 3],
            .target = number(told, "target"),
            .lun = number(told, "lun"),
            .port = number(told, "port"),
            .unit = number(told, "unit"),
        };
    }
    return count;
}

/* The guest has such a mount point. */
static bool
is_told(struct json_object *fsinfo, const char *point)
{
    for (size_t i = 0; i < vf_json_length(fsinfo); i++) {
        const char *told = vf_json_string(vf_json_at(fsinfo, i), "mountpoint");

        if (told && strcmp(told, point) == 0)
            return true;
    }
    return false;
}

static void
check(const struct vf_mountlist *wish, struct json_object *fsinfo, const struct vf_mounts *mounts)
{
    size_t count = vf_json_length(mounts->points);

    MUST(!mounts->points || count > 0);
    MUST(mounts->least >= 0 && (size_t)mounts->least <= count);
    MUST(mounts->points || !mounts->partial);
    for (size_t i = 0; i < count; i++) {
        const char *point = vf_json_text(vf_json_at(mounts->points, i));

        MUST(point && *point == '/' && is_told(fsinfo, point));
        MUST(!vf_mountlist_has(wish->without, point));
        MUST(wish->base != VF_MOUNTS_NAMED || mounts->why || vf_mountlist_has(wish->with, point));
    }
    /* Everything, or what was asked for, or it says why not. */
    if (!json_object_is_type(fsinfo, json_type_array))
        MUST(!mounts->points && mounts->why);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    VF_AUTO_JSON struct json_object *told = vf_json_parse((const char *)data, size, 64);
    const char *words = vf_json_string(told, "wish");
    struct json_object *fsinfo = NULL;
    struct vf_mounted_disk disks[DISKS_MOST];
    struct vf_mountlist wish;
    struct vf_mounts mounts;

    if (!told)
        return 0;
    json_object_object_get_ex(told, "fsinfo", &fsinfo);
    size_t count = take_disks(vf_json_array(told, "disks"), disks);

    if (vf_mountlist_parse(words ? words : "cut", &wish)) {
        vf_mounts_choose(&wish, disks, count, fsinfo, &mounts);
        check(&wish, fsinfo, &mounts);
        vf_mounts_release(&mounts);
    }
    vf_mountlist_release(&wish);
    return 0;
}
