/* SPDX-License-Identifier: MIT
 *
 * Headers of images that qemu-img made, and of such that nobody should have.
 */
#include "vm/qcow2.h"

#include "images.h"

#define BASE 65536 /* its cluster size */

static bool
read_image(const char *name, struct vf_qcow2 *image, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = path_of(name);

    memset(error, 0, sizeof *error);
    return vf_qcow2_read(path, image, error);
}

static void
check_image(const char *name, int64_t size, const char *backing, const char *format, bool has_data)
{
    struct vmfrost_error error;
    struct vf_qcow2 image;

    if (!ok(read_image(name, &image, &error), "%s is read", name))
        diag("%s", error.text);
    is_int(image.size, size, "size");
    is_str(image.backing, backing, "backing file");
    is_str(image.backing_format, format, "its format");
    ok(image.has_data == has_data, "data: %d", has_data);
    ok(!image.dirty && !image.corrupt, "sound");
    vf_qcow2_release(&image);
}

static void
test_good(void)
{
    struct vmfrost_error error;
    struct vf_qcow2 image;

    RUN("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "64M");
    check_image("base.qcow2", 64 << 20, NULL, NULL, false);
    RUN("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", "web@before.qcow2",
        "web.qcow2", "67109376");
    check_image("web.qcow2", 67109376, "web@before.qcow2", "qcow2", false);
    RUN("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/dev/vg/web",
        "raw.qcow2", "1G");
    check_image("raw.qcow2", 1 << 30, "/dev/vg/web", "raw", false);
    RUN("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-u", "-F", "qcow2", "-b",
        "base.qcow2", "v2.qcow2", "1M");
    check_image("v2.qcow2", 1 << 20, "base.qcow2", "qcow2", false);
    RUN("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "small.qcow2", "1G");
    check_image("small.qcow2", 1 << 30, NULL, NULL, false);
    RUN("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,compression_type=zstd",
        "new.qcow2", "1M");
    check_image("new.qcow2", 1 << 20, NULL, NULL, false);
    RUN("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,preallocation=metadata",
        "-u", "-F", "qcow2", "-b", "base.qcow2", "prealloc.qcow2", "2G");
    check_image("prealloc.qcow2", INT64_C(2) << 30, "base.qcow2", "qcow2", false);
    RUN("cp", "prealloc.qcow2", "zeroed.qcow2");
    RUN("qemu-io", "-c", "write 1900M 4k", "prealloc.qcow2");
    check_image("prealloc.qcow2", INT64_C(2) << 30, "base.qcow2", "qcow2", true);
    RUN("qemu-io", "-c", "write -z 1900M 4k", "zeroed.qcow2");
    check_image("zeroed.qcow2", INT64_C(2) << 30, "base.qcow2", "qcow2", true);
    RUN("qemu-img", "create", "-q", "-f", "qcow2", "huge.qcow2", "64T");
    check_image("huge.qcow2", INT64_C(64) << 40, NULL, NULL, false);
    RUN("qemu-io", "-c", "write 40T 4k", "huge.qcow2");
    check_image("huge.qcow2", INT64_C(64) << 40, NULL, NULL, true);
    RUN("qemu-img", "create", "-q", "-f", "qcow2", "zero.qcow2", "0");
    check_image("zero.qcow2", 0, NULL, NULL, false);
    RUN("qemu-io", "-c", "write 1M 4k", "base.qcow2");
    check_image("base.qcow2", 64 << 20, NULL, NULL, true);

    RUN("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "outside.qcow2",
        "1M");
    ok(read_image("outside.qcow2", &image, &error) && image.external_data, "external data");
    vf_qcow2_release(&image);
}

/* What a test writes into a copy of a sound image. */
struct damage {
    const char *what, *image;
    int64_t offset;
    uint64_t value;
    int bytes; /* of `value`, big-endian; 0: the file is cut to `offset` */
    const char *words;
};

static const struct damage damages[] = {
    {"empty", "web.qcow2", 0, 0, 0, "cut short"},
    {"half a header", "web.qcow2", 50, 0, 0, "cut short"},
    {"a v2 header", "web.qcow2", 72, 0, 0, "cut short"},
    {"no extensions", "web.qcow2", 104, 0, 0, "cut short"},
    {"no L1 table", "web.qcow2", 3 * BASE, 0, 0, "cut short"},
    {"half an L1 table", "huge.qcow2", 3 * BASE + 5 * BASE, 0, 0, "cut short"},
    {"magic", "web.qcow2", 0, 0x51464900, 4, "begin"},
    {"version 1", "web.qcow2", 4, 1, 4, "version"},
    {"version 4", "web.qcow2", 4, 4, 4, "version"},
    {"version 2 with a v3 header", "web.qcow2", 4, 2, 4, NULL},
    {"backing name far away", "web.qcow2", 8, UINT64_C(1) << 62, 8, "out of range"},
    {"backing name behind everything", "web.qcow2", 8, UINT64_MAX, 8, "out of range"},
    {"backing name in the next cluster", "web.qcow2", 8, BASE + 1, 8, "out of range"},
    {"backing name inside the header", "web.qcow2", 8, 8, 8, "out of range"},
    {"backing name too long", "web.qcow2", 16, 1024, 4, "out of range"},
    {"backing name endless", "web.qcow2", 16, UINT32_MAX, 4, "out of range"},
    {"backing name with a NUL", "web.qcow2", 16, 17, 4, "NUL"},
    {"backing name empty", "web.qcow2", 16, 0, 4, NULL},
    {"cluster bits 8", "web.qcow2", 20, 8, 4, "cluster size"},
    {"cluster bits 22", "web.qcow2", 20, 22, 4, "cluster size"},
    {"cluster bits 64", "web.qcow2", 20, 64, 4, "cluster size"},
    {"size over INT64_MAX", "web.qcow2", 24, UINT64_C(1) << 63, 8, "size is out of range"},
    {"encryption 3", "web.qcow2", 32, 3, 4, "encryption"},
    {"L1 table too large", "web.qcow2", 36, (32 << 20) / 8 + 1, 4, "L1 table is too large"},
    {"L1 table endless", "web.qcow2", 36, UINT32_MAX, 4, "L1 table is too large"},
    {"L1 table beyond the end", "web.qcow2", 36, (32 << 20) / 8, 4, "cut short"},
    {"L1 table unaligned", "web.qcow2", 40, 3 * BASE + 8, 8, "L1 table is not where"},
    {"L1 table nowhere", "web.qcow2", 40, 0, 8, "L1 table is not where"},
    {"L1 table behind everything", "web.qcow2", 40, UINT64_C(1) << 63, 8, "beyond any file"},
    {"unknown feature", "web.qcow2", 72, UINT64_C(1) << 5, 8, "features"},
    {"unknown features", "web.qcow2", 72, UINT64_MAX, 8, "features"},
    {"short header", "web.qcow2", 100, 96, 4, "header is too short"},
    {"header larger than a cluster", "web.qcow2", 100, BASE + 8, 4, "larger than a cluster"},
    {"header endless", "web.qcow2", 100, UINT32_MAX, 4, "larger than a cluster"},
    {"extension endless", "web.qcow2", 116, UINT32_MAX, 4, "extensions"},
    {"backing format too long", "web.qcow2", 116, 16, 4, "format of its backing"},
    {"L2 table unaligned", "prealloc.qcow2", 3 * BASE, 5 * BASE + 512, 8, "L2 table is not where"},
    {"L2 table beyond the end", "prealloc.qcow2", 3 * BASE, INT64_C(1) << 50, 8, "cut short"},
    {"half an L2 table", "prealloc.qcow2", 3 * BASE + BASE, 0, 0, "cut short"},
    {"L2 table nowhere", "prealloc.qcow2", 3 * BASE, UINT64_C(1) << 63, 8, NULL},
};

static bool
damage_copy(const struct damage *damage)
{
    VF_AUTO_FREE char *path = path_of("bad.qcow2");
    unsigned char raw[8];

    if (!RUN("cp", "--sparse=always", damage->image, "bad.qcow2"))
        return false;
    if (damage->bytes == 0)
        return truncate(path, damage->offset) == 0;
    for (int i = 0; i < damage->bytes; i++)
        raw[i] = (unsigned char)(damage->value >> 8 * (damage->bytes - 1 - i));
    VF_AUTO_FD int fd = open(path, O_WRONLY | O_CLOEXEC);

    return fd >= 0 && pwrite(fd, raw, (size_t)damage->bytes, damage->offset) == damage->bytes;
}

static void
test_bad(void)
{
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        const struct damage *damage = &damages[i];
        struct vmfrost_error error;
        struct vf_qcow2 image;

        if (!damage_copy(damage)) {
            ok(false, "%s: cannot make it", damage->what);
            continue;
        }
        bool good = read_image("bad.qcow2", &image, &error);

        if (!ok(good == !damage->words, "%s is %s", damage->what,
                damage->words ? "refused" : "read"))
            diag("%s", error.text);
        if (damage->words) {
            has_str(error.text, damage->words, damage->what);
            ok(!image.backing && !image.backing_format, "nothing is left of it");
        }
        vf_qcow2_release(&image);
    }
}

/* No single wrong byte in the header's first 512 may do more than fail. */
static void
test_bytes(void)
{
    VF_AUTO_FREE char *path = path_of("bad.qcow2");
    static const unsigned char values[] = {0x00, 0x7f, 0xff};
    unsigned char header[512];
    int refused = 0;

    RUN("cp", "web.qcow2", "bad.qcow2");
    VF_AUTO_FD int fd = open(path, O_RDWR | O_CLOEXEC);

    ok(fd >= 0 && pread(fd, header, sizeof header, 0) == sizeof header, "the header is read");
    for (off_t i = 0; i < (off_t)sizeof header; i++) {
        for (size_t j = 0; j < sizeof values; j++) {
            struct vmfrost_error error;
            struct vf_qcow2 image;

            if (pwrite(fd, &values[j], 1, i) != 1)
                ok(false, "cannot write byte %lld", (long long)i);
            refused += !read_image("bad.qcow2", &image, &error);
            vf_qcow2_release(&image);
        }
        if (pwrite(fd, &header[i], 1, i) != 1)
            ok(false, "cannot write byte %lld", (long long)i);
    }
    ok(refused > 50, "%d wrong bytes were noticed", refused);
}

/* A few bytes of L1 table must not make us read for hours. */
static void
test_endless(void)
{
    enum { ENTRIES = 600, CLUSTER = 2 << 20 };
    static const unsigned char entry[8] = {0x80, 0, 0, 0, 0, 4 * CLUSTER >> 16 & 0xff};
    VF_AUTO_FREE char *path = path_of("endless.qcow2");
    struct vmfrost_error error;
    struct vf_qcow2 image;
    bool written = true;

    RUN("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=2M",
        "endless.qcow2", "150T");
    VF_AUTO_FD int fd = open(path, O_WRONLY | O_CLOEXEC);

    for (int i = 0; i < ENTRIES; i++)
        written &= pwrite(fd, entry, sizeof entry, 3 * CLUSTER + 8 * i) == sizeof entry;
    ok(written && ftruncate(fd, 5 * CLUSTER) == 0, "one L2 table, used by all");
    ok(read_image("endless.qcow2", &image, &error) && image.has_data,
       "more tables than one looks through count as data");
    vf_qcow2_release(&image);
}

static void
test_flags(void)
{
    const struct damage dirty = {"dirty", "web.qcow2", 72, 1, 8, NULL};
    const struct damage corrupt = {"corrupt", "web.qcow2", 72, 2, 8, NULL};
    /* Making a real one takes qemu-img a second. */
    const struct damage encrypted = {"LUKS", "web.qcow2", 32, 2, 4, NULL};
    struct vmfrost_error error;
    struct vf_qcow2 image;

    ok(damage_copy(&encrypted) && read_image("bad.qcow2", &image, &error) && image.encrypted,
       "encrypted");
    vf_qcow2_release(&image);
    ok(damage_copy(&dirty) && read_image("bad.qcow2", &image, &error) && image.dirty, "dirty");
    vf_qcow2_release(&image);
    ok(damage_copy(&corrupt) && read_image("bad.qcow2", &image, &error) && image.corrupt,
       "corrupt");
    vf_qcow2_release(&image);
}

static void
test_files(void)
{
    VF_AUTO_FREE char *fifo = path_of("fifo"), *link = path_of("link");
    struct vmfrost_error error;
    struct vf_qcow2 image;

    ok(!read_image("gone.qcow2", &image, &error), "no file");
    has_str(error.text, "No such file", "no file");
    ok(!read_image("", &image, &error), "a folder");
    ok(mkfifo(fifo, 0600) == 0 && !read_image("fifo", &image, &error), "a FIFO does not hang");
    ok(symlink("web.qcow2", link) == 0 && !read_image("link", &image, &error), "a symbolic link");
    RUN("qemu-img", "create", "-q", "-f", "raw", "raw", "1M");
    ok(!read_image("raw", &image, &error), "a raw image");
    has_str(error.text, "does not begin like one", "a raw image");
}

/* Closing a file that could be written changes no errno. */
static bool
write_empty(const char *name, const struct vf_qcow2_empty *image)
{
    VF_AUTO_FREE char *path = path_of(name);
    VF_AUTO_FD int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    return vf_qcow2_write_empty(fd, image);
}

/* QEMU finds nothing wrong with it, and can write everywhere to it. */
static void
check_empty(const struct vf_qcow2_empty *image)
{
    VF_AUTO_FREE char *last = vf_printf("write -P 2 %lld 512", (long long)image->size - 512);
    VF_AUTO_FREE char *seen = vf_printf("read -P 2 %lld 512", (long long)image->size - 512);
    VF_AUTO_FREE char *what =
        vf_printf("%lld bytes in clusters of %lld%s%s", (long long)image->size,
                  (long long)image->cluster_size, image->extended_l2 ? ", extended L2 entries" : "",
                  image->ready ? ", ready" : "");

    ok(write_empty("empty.qcow2", image), "%s", what);
    check_image("empty.qcow2", image->size, image->backing, image->backing_format, false);
    ok(RUN("qemu-img", "check", "-q", "empty.qcow2"), "%s: sound", what);
    if (image->size == 0)
        return;
    ok(RUN("qemu-io", "-c", "read -P 1 0 512", "-c", last, "-c", seen, "-c", "read -P 1 0 512",
           "empty.qcow2"),
       "%s: the backing file below what is written", what);
    check_image("empty.qcow2", image->size, image->backing, image->backing_format, true);
    ok(RUN("qemu-img", "check", "-q", "empty.qcow2"), "%s: still sound", what);
}

static void
test_empty(void)
{
    enum { KIB = 1 << 10 };
    static const int64_t sizes[] = {0, 1024, 1 << 20, (INT64_C(1) << 29) + 512, INT64_C(1) << 35};
    static const int64_t clusters[] = {512, 4 * KIB, 16 * KIB, 64 * KIB, 2048 * KIB};
    char name[1025];
    struct vf_qcow2_empty image = {.backing = "below.qcow2", .backing_format = "qcow2"};

    RUN("qemu-img", "create", "-q", "-f", "qcow2", "below.qcow2", "64T");
    RUN("qemu-io", "-c", "write -P 1 0 512", "below.qcow2");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t k = 0; k < 4 * sizeof clusters / sizeof *clusters; k++) {
            image.size = sizes[i];
            image.cluster_size = clusters[k / 4];
            image.extended_l2 = k % 2;
            image.ready = k / 2 % 2;
            if (image.extended_l2 ? image.cluster_size >= 16 * KIB
                                  : image.cluster_size > 512 || image.size <= 1 << 20)
                check_empty(&image);
        }
    image = (struct vf_qcow2_empty){.backing = "below.qcow2",
                                    .backing_format = "qcow2",
                                    .size = INT64_C(64) << 40,
                                    .cluster_size = 64 * KIB};
    check_empty(&image);

    VF_AUTO_FREE char *path = path_of("empty.qcow2");

    image.size = 1 << 30;
    write_empty("empty.qcow2", &image);
    is_int(vf_qcow2_unused(path), 0, "not ready: no room");
    image.ready = true;
    write_empty("empty.qcow2", &image);
    is_int(vf_qcow2_unused(path), 1 << 20, "ready: all of its room is unused");
    RUN("qemu-io", "-c", "write 700M 192k", "empty.qcow2");
    is_int(vf_qcow2_unused(path), (1 << 20) - 192 * KIB, "three clusters less");
    RUN("qemu-io", "-c", "write 100M 2M", "empty.qcow2");
    is_int(vf_qcow2_unused(path), 0, "it has grown");
    is_int(vf_qcow2_unused(folder), 0, "a folder has none");

    image.ready = false;
    image.size = INT64_C(64) << 40;
    image.cluster_size = 4 * KIB;
    ok(!write_empty("wide.qcow2", &image) && errno == EFBIG, "an L1 table larger than QEMU's");
    image.size = INT64_C(4) << 40;
    ok(!write_empty("wide.qcow2", &image) && errno == EFBIG, "more than one block of refcounts");
    image.cluster_size = 64 * KIB;
    memset(name, 'a', sizeof name);
    name[1023] = '\0';
    image.backing = name;
    ok(write_empty("long.qcow2", &image) && RUN("qemu-img", "info", "-U", "long.qcow2"),
       "the longest name of a backing file");
    check_image("long.qcow2", image.size, name, "qcow2", false);
    image.cluster_size = 512;
    image.size = 1 << 20;
    ok(!write_empty("long.qcow2", &image) && errno == ENAMETOOLONG, "no room for it in a cluster");
    name[1023] = 'a';
    name[1024] = '\0';
    image.cluster_size = 64 * KIB;
    ok(!write_empty("long.qcow2", &image) && errno == ENAMETOOLONG, "one more letter");
}

int
main(void)
{
    folder = scratch_new();
    if (!RUN("qemu-img", "--version")) {
        printf("1..0 # SKIP qemu-img is not installed\n");
        scratch_remove(folder);
        return EXIT_SUCCESS;
    }
    test_good();
    test_bad();
    test_bytes();
    test_endless();
    test_flags();
    test_files();
    test_empty();
    scratch_remove(folder);
    return done_testing();
}
