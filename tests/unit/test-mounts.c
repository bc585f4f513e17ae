/* SPDX-License-Identifier: MIT
 *
 * Which file systems are frozen: what the agent says against where QEMU has its disks, whatever the
 * agent says.
 */
#include "vm/mounts.h"

#include "../tap.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

#define PCI(slot) "\"pci-controller\":{\"domain\":0,\"bus\":0,\"slot\":" #slot ",\"function\":0}"
#define VIRTIO(slot) "{\"bus-type\":\"virtio\",\"bus\":0,\"target\":0,\"unit\":0," PCI(slot) "}"
#define FS(point, type, disks)                                                                     \
    "{\"name\":\"dev-" point "\",\"mountpoint\":\"" point "\",\"type\":\"" type                    \
    "\",\"disk\":[" disks "]}"

/* A disk on the first bus. */
#define DIRECT(its_name, is_cut, its_slot)                                                         \
    {                                                                                              \
        .name = (its_name), .cut = (is_cut), .placed = true, .slot = (its_slot)                    \
    }

static const struct vf_mounted_disk two[] = {DIRECT("web", true, 2), DIRECT("data", false, 3)};

/* "/a,/b": what is frozen; "all"; with "; " and the reason behind it, or what is partial. */
static char *
chosen(const char *wish, const struct vf_mounted_disk *disks, size_t count, const char *fsinfo)
{
    VF_AUTO_JSON struct json_object *told = vf_json_parse(fsinfo, strlen(fsinfo), 32);
    struct vf_mountlist list;
    struct vf_mounts mounts;
    char *text;

    if (!told || !vf_mountlist_parse(wish, &list)) {
        printf("Bail out! %s: %s\n", told ? "no wish" : "no JSON", told ? wish : fsinfo);
        exit(EXIT_FAILURE);
    }
    vf_mounts_choose(&list, disks, count, told, &mounts);
    text = vf_strdup(mounts.points ? "" : "all");
    for (size_t i = 0; i < vf_json_length(mounts.points); i++) {
        char *longer =
            vf_printf("%s%s%s", text, i ? "," : "", vf_json_text(vf_json_at(mounts.points, i)));

        free(text);
        text = longer;
    }
    const char *words[] = {mounts.why, mounts.partial};

    for (size_t i = 0; i < 2; i++) {
        char *longer = vf_printf("%s%s%s", text, words[i] ? "; " : "", words[i] ? words[i] : "");

        free(text);
        text = longer;
    }
    vf_mounts_release(&mounts);
    vf_mountlist_release(&list);
    return text;
}

static void
check(const char *what, const char *wish, const struct vf_mounted_disk *disks, size_t count,
      const char *fsinfo, const char *wanted)
{
    VF_AUTO_FREE char *got = chosen(wish, disks, count, fsinfo);

    is_str(got, wanted, what);
}

static void
test_words(void)
{
    static const char *const bad[] = {"",       "every",    "cut,",    "mnt",
                                      "/a,,/b", "all,cut",  "all,/a",  "/a,-/b",
                                      "/a,cut", "-",        "-/a,",    "/a\n",
                                      ",/a",    "cut,-mnt", "all all", "/a,\x1b[1m"};
    struct vf_mountlist list;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ok(!vf_mountlist_parse(bad[i], &list), "\"%zu\" says nothing", i);
        vf_mountlist_release(&list);
    }
    ok(vf_mountlist_parse("cut,/a//,-/b/,/", &list) && list.base == VF_MOUNTS_CUT &&
           vf_mountlist_has(list.with, "/a") && vf_mountlist_has(list.with, "/") &&
           vf_mountlist_has(list.without, "/b") && vf_json_length(list.with) == 2,
       "a base, with some, without others; slashes at the end do not matter");
    vf_mountlist_release(&list);
    ok(vf_mountlist_parse("-/b", &list) && list.base == VF_MOUNTS_CUT, "only without: of the cut");
    vf_mountlist_release(&list);
    ok(vf_mountlist_parse("/b", &list) && list.base == VF_MOUNTS_NAMED, "only names");
    vf_mountlist_release(&list);
}

static void
test_wishes(void)
{
    static const char fsinfo[] =
        "[" FS("/", "ext4", VIRTIO(2)) "," FS("/data", "xfs", VIRTIO(3)) "]";

    check("those on the disk that is cut", "cut", two, 2, fsinfo, "/");
    check("all", "all", two, 2, fsinfo, "all");
    check("all but one", "all,-/data", two, 2, fsinfo, "/");
    check("... and one that is not there", "all,-/else", two, 2, fsinfo, "all");
    check("one more is all", "cut,/data", two, 2, fsinfo, "all");
    check("named", "/", two, 2, fsinfo, "/");
    check("named, of another disk", "/data", two, 2, fsinfo,
          "/data; / is not to be frozen, as asked for, but is on a disk of the snapshot");
    check("nothing is left to freeze", "-/", two, 2, fsinfo,
          "all; the guest has no file system on the disks that are cut");
    check("a name of nothing", "/srv", two, 2, fsinfo, "all; the guest has no file system at /srv");
    check("a name of nothing, and one to leave out", "cut,/srv,-/data", two, 2, fsinfo,
          "/; the guest has no file system at /srv");
    check("no file system at all", "cut", two, 2, "[]", "all");
    check("no file system on the disk that is cut", "cut", two, 2,
          "[" FS("/data", "xfs", VIRTIO(3)) "]",
          "all; the guest has no file system on the disks that are cut");
}

static void
test_disks(void)
{
    check("a volume on both disks", "cut", two, 2,
          "[" FS("/", "ext4", VIRTIO(3)) "," FS("/v", "xfs", VIRTIO(3) "," VIRTIO(2)) "]", "/v");
    check("a volume that is in part on a disk that QEMU does not have", "cut", two, 2,
          "[" FS("/", "ext4", VIRTIO(3)) "," FS("/v", "xfs", VIRTIO(3) "," VIRTIO(9)) "]",
          "all; it is not certain on which disk the guest has /v");
    check("no disk at all (a network's, a loop's)", "cut", two, 2,
          "[" FS("/", "ext4", VIRTIO(3)) "," FS("/v", "xfs", "") "]",
          "all; it is not certain on which disk the guest has /v");
    check("... which nobody writes to", "cut", two, 2,
          "[" FS("/", "ext4", VIRTIO(3)) "," FS("/snap", "squashfs", "") "," FS("/b", "ext4",
                                                                                VIRTIO(2)) "]",
          "/b");
    check("... which is to be left out", "cut,-/v", two, 2,
          "[" FS("/", "ext4", VIRTIO(2)) "," FS("/v", "xfs", "") "]",
          "/; /v is not to be frozen, as asked for, but may be on a disk of the snapshot");
    check("another bus", "cut", two, 2,
          "[" FS("/", "ext4", VIRTIO(2)) "," FS("/v", "xfs",
                                                "{\"pci-controller\":{\"domain\":0,\"bus\":1,"
                                                "\"slot\":3,\"function\":0}}") "]",
          "all; it is not certain on which disk the guest has /v");
    check("another domain", "cut", two, 2,
          "[" FS("/v", "xfs",
                 "{\"pci-controller\":{\"domain\":1,\"bus\":0,\"slot\":3,\"function\":0}}") "]",
          "all; it is not certain on which disk the guest has /v");

    static const struct vf_mounted_disk unplaced[] = {DIRECT("web", true, 2),
                                                      {.name = "data", .serial = "d1"}};

    check("one that QEMU has at no known place may be anywhere", "cut", unplaced, 2,
          "[" FS("/", "ext4", VIRTIO(2)) "]",
          "all; it is not certain on which disk the guest has /");
    check("... but where both tell its number", "cut", unplaced, 2,
          "[" FS("/", "ext4", VIRTIO(2)) "," FS("/v", "xfs", "{\"serial\":\"d1\"}") "]",
          "all; it is not certain on which disk the guest has /");
}

#define SCSI(unit, more)                                                                           \
    "{\"bus-type\":\"scsi\",\"bus\":0,\"target\":0,\"unit\":" #unit "," PCI(4) more "}"

static void
test_behind_controllers(void)
{
    static const struct vf_mounted_disk targets[] = {
        {.name = "a", .cut = true, .placed = true, .slot = 4, .attachment = VF_ATTACHED_SCSI},
        {.name = "b", .placed = true, .slot = 4, .attachment = VF_ATTACHED_SCSI, .target = 1},
    };
    static const struct vf_mounted_disk luns[] = {
        {.name = "a",
         .cut = true,
         .serial = "one",
         .placed = true,
         .slot = 4,
         .attachment = VF_ATTACHED_SCSI,
         .lun = 2,
         .target = 2},
        {.name = "b",
         .serial = "two",
         .placed = true,
         .slot = 4,
         .attachment = VF_ATTACHED_SCSI,
         .lun = 3,
         .target = 3},
    };
    static const struct vf_mounted_disk numbered[] = {
        {.name = "a",
         .cut = true,
         .serial = "one",
         .placed = true,
         .slot = 4,
         .attachment = VF_ATTACHED_SCSI},
        {.name = "b",
         .serial = "two",
         .placed = true,
         .slot = 4,
         .attachment = VF_ATTACHED_SCSI,
         .target = 1},
    };
    static const struct vf_mounted_disk ide[] = {
        {.name = "a",
         .cut = true,
         .placed = true,
         .slot = 4,
         .attachment = VF_ATTACHED_IDE,
         .port = 1},
        {.name = "b",
         .placed = true,
         .slot = 4,
         .attachment = VF_ATTACHED_IDE,
         .port = 0,
         .unit = 1},
    };

    check("two targets, of which the agent tells only the LUN", "cut", targets, 2,
          "[" FS("/a", "ext4", SCSI(0, "")) "," FS("/b", "ext4", SCSI(0, "")) "]",
          "all; it is not certain on which disk the guest has /a");
    check("two LUNs", "cut", luns, 2,
          "[" FS("/a", "ext4", SCSI(2, "")) "," FS("/b", "ext4", SCSI(3, "")) "]", "/a");
    check("a LUN that nobody has", "cut", luns, 2, "[" FS("/a", "ext4", SCSI(5, "")) "]",
          "all; it is not certain on which disk the guest has /a");
    check("the number tells", "cut", numbered, 2,
          "[" FS("/a", "ext4", SCSI(0, ",\"serial\":\"0QEMU_QEMU_HARDDISK_one\"")) "," FS(
              "/b", "ext4", SCSI(0, ",\"serial\":\"two\"")) "]",
          "/a");
    check("a number that begins with more", "cut", numbered, 2,
          "[" FS("/b", "ext4", SCSI(0, ",\"serial\":\"thirtytwo\"")) "]",
          "all; it is not certain on which disk the guest has /b");
    check("the number of a disk at another place", "cut", luns, 2,
          "[" FS("/a", "ext4", SCSI(2, ",\"serial\":\"two\"")) "]",
          "all; it is not certain on which disk the guest has /a");
    check("no PCI, but a number", "cut", numbered, 2,
          "[" FS("/a", "ext4", "{\"serial\":\"one\"}") "," FS("/b", "ext4",
                                                              "{\"serial\":\"two\"}") "]",
          "/a");
    check("IDE", "cut", ide, 2,
          "[" FS("/a", "ext4", "{\"bus-type\":\"ide\",\"bus\":1,\"unit\":0," PCI(4) "}") "," FS(
              "/b", "ext4", "{\"bus-type\":\"ide\",\"bus\":0,\"unit\":1," PCI(4) "}") "]",
          "/a");
    check("SATA", "cut", ide, 2,
          "[" FS("/a", "ext4", "{\"bus-type\":\"sata\",\"bus\":0,\"unit\":1," PCI(4) "}") "," FS(
              "/b", "ext4", "{\"bus-type\":\"sata\",\"bus\":0,\"unit\":0," PCI(4) "}") "]",
          "/a");
}

static void
test_least(void)
{
    static const char fsinfo[] =
        "[" FS("/", "ext4", VIRTIO(2)) "," FS("/", "ext4", VIRTIO(2)) "," FS(
            "/efi", "vfat", VIRTIO(2)) "," FS("/data", "xfs", VIRTIO(3)) "]";
    VF_AUTO_JSON struct json_object *told = vf_json_parse(fsinfo, strlen(fsinfo), 32);
    struct vf_mountlist list;
    struct vf_mounts mounts;

    vf_mountlist_parse("cut", &list);
    vf_mounts_choose(&list, two, 2, told, &mounts);
    is_int(mounts.least, 1, "one mounted twice counts once, one that may not freeze not at all");
    vf_mounts_release(&mounts);
    vf_mountlist_release(&list);
}

/* Nothing of this may do more than have everything frozen. */
static void
test_hostile(void)
{
    static const char sense[] = "all; the agent's answer to guest-get-fsinfo makes no sense";
    static const char *const bad[] = {
        "{}",
        "\"/\"",
        "[1]",
        "[null]",
        "[{}]",
        "[[]]",
        "[{\"mountpoint\":\"/\",\"name\":\"a\",\"type\":1,\"disk\":[]}]",
        "[{\"mountpoint\":\"\",\"name\":\"a\",\"type\":\"ext4\",\"disk\":[]}]",
        "[{\"mountpoint\":\"mnt\",\"name\":\"a\",\"type\":\"ext4\",\"disk\":[]}]",
        "[{\"mountpoint\":\"/a\\u0000b\",\"name\":\"a\",\"type\":\"ext4\",\"disk\":[]}]",
        "[{\"mountpoint\":[\"/\"],\"name\":\"a\",\"type\":\"ext4\",\"disk\":[]}]",
    };
    static const char *const uncertain[] = {
        "1",
        "{}",
        "[]",
        "{\"pci-controller\":[]}",
        "{\"pci-controller\":{\"domain\":0,\"bus\":0,\"slot\":\"2\",\"function\":0}}",
        "{\"pci-controller\":{\"domain\":0,\"bus\":0,\"slot\":2.0,\"function\":0}}",
        "{\"pci-controller\":{\"domain\":0,\"bus\":0,\"slot\":2}}",
        "{\"pci-controller\":{\"domain\":-1,\"bus\":-1,\"slot\":-1,\"function\":-1}}",
        "{\"pci-controller\":{\"domain\":0,\"bus\":9e99,\"slot\":2,\"function\":0}}",
        "{\"pci-controller\":{\"domain\":0,\"bus\":99999999999999999999,\"slot\":2}}",
        "{\"serial\":\"\"}",
        "{\"serial\":17}",
    };

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check(bad[i], "cut", two, 2, bad[i], sense);
    for (size_t i = 0; i < sizeof uncertain / sizeof *uncertain; i++) {
        VF_AUTO_FREE char *fsinfo =
            vf_printf("[" FS("/data", "ext4", VIRTIO(3)) ",{\"name\":\"a\",\"mountpoint\":\"/\","
                                                         "\"type\":\"ext4\",\"disk\":[%s]}]",
                      uncertain[i]);

        check(uncertain[i], "cut", two, 2, fsinfo,
              "all; it is not certain on which disk the guest has /");
    }
    check("no disks of QEMU's", "cut", NULL, 0, "[" FS("/", "ext4", VIRTIO(2)) "]",
          "all; it is not certain on which disk the guest has /");
}

/* A thousand mount points; `long_ones` of 4000 bytes each. */
static char *
many(size_t count, int length)
{
    char *text = vf_strdup("[" FS("/data", "ext4", VIRTIO(3)));

    for (size_t i = 0; i < count; i++) {
        char *longer =
            vf_printf("%s,{\"name\":\"n%zu\",\"mountpoint\":\"/%0*zu\",\"type\":\"ext4\","
                      "\"disk\":[" VIRTIO(2) "]}",
                      text, i, length, i);

        free(text);
        text = longer;
    }
    char *whole = vf_printf("%s]", text);

    free(text);
    return whole;
}

static void
test_limits(void)
{
    VF_AUTO_FREE char *most = many(1023, 8), *more = many(1024, 8), *far = many(100, 4000);
    VF_AUTO_FREE char *too_long = many(1, 5000);
    VF_AUTO_FREE char *got = chosen("cut", two, 2, most);

    ok(strncmp(got, "/00000000,/00000001,", 20) == 0, "very many mount points");
    check("too many", "cut", two, 2, more,
          "all; the agent's answer to guest-get-fsinfo makes no sense");
    check("too much", "cut", two, 2, far, "all; the mount points are too many to be named");
    check("one that is too long", "cut", two, 2, too_long,
          "all; the agent's answer to guest-get-fsinfo makes no sense");
}

int
main(void)
{
    test_words();
    test_wishes();
    test_disks();
    test_behind_controllers();
    test_least();
    test_hostile();
    test_limits();
    return done_testing();
}
