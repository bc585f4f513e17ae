/* SPDX-License-Identifier: MIT
 *
 * Every number in the header is checked against the file and against the limits that QEMU itself
 * has before it is used; what QEMU would not open is an error here, too. What is written is laid
 * out as QEMU does it: header, table of refcounts, one block of these, L1 table.
 */
#include "vm/qcow2.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "util/cleanup.h"
#include "util/mem.h"

#define MAGIC UINT32_C(0x514649fb)
#define V2_LENGTH 72
#define V3_LENGTH 104
#define CLUSTER_BITS_LEAST 9
#define CLUSTER_BITS_MOST 21
#define REFCOUNT_ORDER 4                      /* 1 << 4 bits each */
#define COPIED (UINT64_C(1) << 63)            /* flag of an entry: nobody else's */
#define READY_TABLES_MOST (UINT64_C(4) << 20) /* those of 32 GiB in clusters of 64 KiB */
#define READY_ROOM (INT64_C(1) << 20)
#define BACKING_MAX 1023
#define BACKING_FORMAT_MAX 15
#define L1_MAX (UINT32_C(32) << 20) /* bytes of the table */
#define CHUNK ((size_t)64 << 10)
#define CHUNKS_AT_ONCE 32
#define PAGE 4096 /* a multiple of what any disk's blocks are aligned to */

enum extension { EXTENSION_END = 0, EXTENSION_BACKING_FORMAT = 0xE2792ACA };

enum feature {
    FEATURE_DIRTY = 1 << 0,
    FEATURE_CORRUPT = 1 << 1,
    FEATURE_EXTERNAL_DATA = 1 << 2,
    FEATURE_COMPRESSION = 1 << 3,
    FEATURE_EXTENDED_L2 = 1 << 4,
    FEATURES_KNOWN = (1 << 5) - 1,
};

struct header {
    uint32_t version, cluster_bits, crypt, l1_entries, length;
    uint64_t backing_offset, size, l1_offset, refcounts_offset, features;
    uint32_t backing_length, refcount_order;
};

struct reader {
    int fd;
    const char *path;
    struct vmfrost_error *error;
};

static uint32_t
get32(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static uint64_t
get64(const unsigned char *at)
{
    return (uint64_t)get32(at) << 32 | get32(at + 4);
}

static bool
bad(const struct reader *reader, const char *what)
{
    return vf_fail(reader->error, VMFROST_FAILED, "%s is not a sound qcow2 image: %s", reader->path,
                   what);
}

/* Exactly `length` bytes at `offset`. */
static bool
read_at(const struct reader *reader, uint64_t offset, void *into, size_t length)
{
    size_t done = 0;

    if (offset > INT64_MAX - length)
        return bad(reader, "it points beyond any file's end");
    while (done < length) {
        ssize_t got = pread(reader->fd, (char *)into + done, length - done, (off_t)(offset + done));

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return vf_fail(reader->error, VMFROST_FAILED, "cannot read %s: %s", reader->path,
                           strerror(errno));
        if (got == 0)
            return bad(reader, "it is cut short");
        done += (size_t)got;
    }
    return true;
}

static bool
read_header(const struct reader *reader, struct header *header)
{
    unsigned char raw[V3_LENGTH] = {0};

    if (!read_at(reader, 0, raw, V2_LENGTH))
        return false;
    if (get32(raw) != MAGIC)
        return bad(reader, "it does not begin like one");
    header->version = get32(raw + 4);
    if (header->version != 2 && header->version != 3)
        return bad(reader, "its version is neither 2 nor 3");
    header->backing_offset = get64(raw + 8);
    header->backing_length = get32(raw + 16);
    header->cluster_bits = get32(raw + 20);
    header->size = get64(raw + 24);
    header->crypt = get32(raw + 32);
    header->l1_entries = get32(raw + 36);
    header->l1_offset = get64(raw + 40);
    header->refcounts_offset = get64(raw + 48);
    header->refcount_order = REFCOUNT_ORDER;
    header->length = V2_LENGTH;
    header->features = 0;
    if (header->version == 3) {
        if (!read_at(reader, 0, raw, V3_LENGTH))
            return false;
        header->features = get64(raw + 72);
        header->refcount_order = get32(raw + 96);
        header->length = get32(raw + 100);
        if (header->length < V3_LENGTH)
            return bad(reader, "its header is too short");
    }
    if (header->cluster_bits < CLUSTER_BITS_LEAST || header->cluster_bits > CLUSTER_BITS_MOST)
        return bad(reader, "its cluster size is out of range");
    if (header->length > UINT32_C(1) << header->cluster_bits)
        return bad(reader, "its header is larger than a cluster");
    if (header->size > INT64_MAX)
        return bad(reader, "its size is out of range");
    if (header->crypt > 2)
        return bad(reader, "its encryption is unknown");
    if (header->features & ~(uint64_t)FEATURES_KNOWN)
        return bad(reader, "it needs features that are not known here");
    if (header->l1_entries > L1_MAX / 8)
        return bad(reader, "its L1 table is too large");
    return true;
}

/* A string of the header, without its end; NUL bytes inside would hide the rest of it. */
static char *
read_string(const struct reader *reader, uint64_t offset, size_t length)
{
    VF_AUTO_FREE char *text = vf_alloc(length + 1);

    if (!read_at(reader, offset, text, length))
        return NULL;
    if (strlen(text) != length) {
        bad(reader, "a name in its header has a NUL inside");
        return NULL;
    }
    return VF_STEAL(text);
}

static bool
read_backing(const struct reader *reader, const struct header *header, struct vf_qcow2 *image)
{
    uint64_t cluster = UINT64_C(1) << header->cluster_bits;

    if (header->backing_offset == 0)
        return true;
    if (header->backing_offset > cluster || header->backing_offset < header->length ||
        header->backing_length > cluster - header->backing_offset ||
        header->backing_length > BACKING_MAX)
        return bad(reader, "the name of its backing file is out of range");
    /* An empty name is none: qcow2 images whose backing file was removed have it. */
    if (header->backing_length == 0)
        return true;
    image->backing = read_string(reader, header->backing_offset, header->backing_length);
    return image->backing;
}

static bool
read_extensions(const struct reader *reader, const struct header *header, struct vf_qcow2 *image)
{
    uint64_t at = header->length;
    uint64_t end =
        header->backing_offset ? header->backing_offset : UINT64_C(1) << header->cluster_bits;

    while (at < end) {
        unsigned char raw[8];

        if (end - at < sizeof raw)
            return bad(reader, "its header extensions are out of range");
        if (!read_at(reader, at, raw, sizeof raw))
            return false;
        uint32_t type = get32(raw), length = get32(raw + 4);

        at += sizeof raw;
        if (type == EXTENSION_END)
            return true;
        if (length > end - at)
            return bad(reader, "its header extensions are out of range");
        if (type == EXTENSION_BACKING_FORMAT && !image->backing_format) {
            if (length > BACKING_FORMAT_MAX)
                return bad(reader, "the format of its backing file is out of range");
            image->backing_format = read_string(reader, at, length);
            if (!image->backing_format)
                return false;
        }
        at += ((uint64_t)length + 7) & ~UINT64_C(7);
    }
    return true;
}

/* An extended entry: where the cluster is, and which of its subclusters are there or read as zeros.
 * A preallocated cluster has a place and nothing else. */
static bool
holds_data(const unsigned char *entry, bool extended)
{
    return extended ? get64(entry) & (UINT64_C(1) << 62 | 1) || get64(entry + 8) : get64(entry);
}

/* Tables that are shared, or more than a file can hold, are no harm: `left` ends it. */
static bool
read_l2(const struct reader *reader, const struct header *header, uint64_t l1_entry,
        struct vf_qcow2 *image, int64_t *left)
{
    VF_AUTO_FREE unsigned char *chunk = NULL;
    uint64_t size = UINT64_C(1) << header->cluster_bits, at = l1_entry & UINT64_C(0xfffffffffffe00);
    size_t length = size < CHUNK ? (size_t)size : CHUNK;
    bool extended = header->features & FEATURE_EXTENDED_L2;

    if (at & (size - 1))
        return bad(reader, "an L2 table is not where one can be");
    if (at == 0)
        return true;
    *left -= (int64_t)size;
    image->has_data |= *left < 0;
    chunk = vf_alloc(length);
    for (uint64_t end = at + size; !image->has_data && at < end; at += length) {
        if (!read_at(reader, at, chunk, length))
            return false;
        for (size_t i = 0; i < length && !image->has_data; i += extended ? 16 : 8)
            image->has_data = holds_data(chunk + i, extended);
    }
    return true;
}

static bool
read_l1(const struct reader *reader, const struct header *header, struct vf_qcow2 *image)
{
    size_t left = (size_t)header->l1_entries * 8;
    /* Of most images this is a few bytes: 16 KiB for each TiB. */
    VF_AUTO_FREE unsigned char *chunk = vf_alloc(left < CHUNK ? left + 1 : CHUNK);
    uint64_t at = header->l1_offset;
    int64_t tables = VF_QCOW2_TABLES_MOST;

    if (left > 0 && (at == 0 || at & ((UINT64_C(1) << header->cluster_bits) - 1)))
        return bad(reader, "its L1 table is not where one can be");
    while (left > 0) {
        size_t length = left < CHUNK ? left : CHUNK;

        if (!read_at(reader, at, chunk, length))
            return false;
        for (size_t i = 0; i < length && !image->has_data; i += 8) {
            uint64_t entry = get64(chunk + i);

            if (entry && !read_l2(reader, header, entry, image, &tables))
                return false;
        }
        if (image->has_data)
            return true;
        at += length;
        left -= length;
    }
    return true;
}

bool
vf_qcow2_read(const char *path, struct vf_qcow2 *image, struct vmfrost_error *error)
{
    /* O_NONBLOCK: a FIFO planted at this name must not hang us. */
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    const struct reader reader = {fd, path, error};
    struct header header = {0};
    struct stat about;

    memset(image, 0, sizeof *image);
    if (fd < 0 || fstat(fd, &about) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot open %s: %s", path, strerror(errno));
    if (!S_ISREG(about.st_mode) && !S_ISBLK(about.st_mode))
        return vf_fail(error, VMFROST_FAILED, "%s is neither a file nor a block device", path);
    if (!read_header(&reader, &header) || !read_backing(&reader, &header, image) ||
        !read_extensions(&reader, &header, image) || !read_l1(&reader, &header, image)) {
        vf_qcow2_release(image);
        return false;
    }
    image->size = (int64_t)header.size;
    image->encrypted = header.crypt != 0;
    image->dirty = header.features & FEATURE_DIRTY;
    image->corrupt = header.features & FEATURE_CORRUPT;
    image->external_data = header.features & FEATURE_EXTERNAL_DATA;
    return true;
}

void
vf_qcow2_release(struct vf_qcow2 *image)
{
    free(image->backing);
    free(image->backing_format);
    memset(image, 0, sizeof *image);
}

/* The first block of refcounts tells: behind what it counts nothing was written ahead. */
int64_t
vf_qcow2_unused(const char *path)
{
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    const struct reader reader = {fd, path, &ignored};
    struct header header = {0};
    unsigned char raw[8];
    struct stat about;

    if (fd < 0 || fstat(fd, &about) < 0 || !S_ISREG(about.st_mode) ||
        !read_header(&reader, &header) || header.refcount_order != REFCOUNT_ORDER ||
        !read_at(&reader, header.refcounts_offset, raw, sizeof raw))
        return 0;
    uint64_t cluster = UINT64_C(1) << header.cluster_bits, length = cluster;
    VF_AUTO_FREE unsigned char *counts = vf_alloc(cluster);

    if (!read_at(&reader, get64(raw), counts, cluster) || counts[cluster - 1])
        return 0;
    while (length > 0 && !counts[length - 1])
        length--;
    int64_t unused = about.st_size - (int64_t)((length + 1) / 2 * cluster);

    return unused < 0 ? 0 : unused < READY_ROOM ? unused : READY_ROOM;
}

/* Writing. */

static void
put32(unsigned char *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (unsigned char)(value >> (24 - 8 * i));
}

static void
put64(unsigned char *at, uint64_t value)
{
    put32(at, (uint32_t)(value >> 32));
    put32(at + 4, (uint32_t)value);
}

static bool
write_at(int fd, uint64_t offset, const void *from, size_t length)
{
    size_t done = 0;

    while (done < length) {
        ssize_t put = pwrite(fd, (const char *)from + done, length - done, (off_t)(offset + done));

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return false;
        done += (size_t)put;
    }
    return true;
}

/* How much memory one entry of an L1 table stands for. */
static uint64_t
reach_of(const struct vf_qcow2_empty *image)
{
    uint64_t cluster = (uint64_t)image->cluster_size;

    return cluster / (image->extended_l2 ? 16 : 8) * cluster;
}

enum place { HEADER_AT, REFCOUNT_TABLE_AT, REFCOUNT_BLOCK_AT, L1_TABLE_AT }; /* in clusters */

static bool
write_header(int fd, const struct vf_qcow2_empty *image, uint32_t l1_entries)
{
    unsigned char raw[V3_LENGTH + 8 + 16 + 8 + BACKING_MAX] = {0};
    size_t backing_length = strlen(image->backing), format_length = strlen(image->backing_format);
    size_t backing_at = sizeof raw - BACKING_MAX;

    if (backing_length > BACKING_MAX || format_length > BACKING_FORMAT_MAX ||
        backing_at + backing_length > (uint64_t)image->cluster_size) {
        errno = ENAMETOOLONG;
        return false;
    }
    put32(raw, MAGIC);
    put32(raw + 4, 3);
    put64(raw + 8, backing_at);
    put32(raw + 16, (uint32_t)backing_length);
    put32(raw + 20, (uint32_t)__builtin_ctzll((uint64_t)image->cluster_size));
    put64(raw + 24, (uint64_t)image->size);
    put32(raw + 36, l1_entries);
    put64(raw + 40, (uint64_t)image->cluster_size * L1_TABLE_AT);
    put64(raw + 48, (uint64_t)image->cluster_size * REFCOUNT_TABLE_AT);
    put32(raw + 56, 1);
    put64(raw + 72, image->extended_l2 ? FEATURE_EXTENDED_L2 : 0);
    put32(raw + 96, REFCOUNT_ORDER);
    put32(raw + 100, V3_LENGTH);
    put32(raw + V3_LENGTH, EXTENSION_BACKING_FORMAT);
    put32(raw + V3_LENGTH + 4, (uint32_t)format_length);
    memcpy(raw + V3_LENGTH + 8, image->backing_format, format_length);
    memcpy(raw + backing_at, image->backing, backing_length);
    return write_at(fd, 0, raw, backing_at + backing_length);
}

/* Where there is no table, a write waits until its place, the table, and the entry that leads there
 * are durable one after the other. */
static bool
write_l1(int fd, const struct vf_qcow2_empty *image, size_t entries, uint64_t first_l2)
{
    VF_AUTO_FREE unsigned char *table = vf_alloc(entries * 8);

    for (size_t i = 0; i < entries; i++)
        put64(table + 8 * i, (first_l2 + i) * (uint64_t)image->cluster_size | COPIED);
    return write_at(fd, (uint64_t)image->cluster_size * L1_TABLE_AT, table, entries * 8);
}

/* Where a file has to grow, each flush waits for the file system's own journal. Past the host's
 * cache where that can be done: nobody reads them, and copying them costs more than all else. */
static bool
write_zeros(int fd, uint64_t from, uint64_t end)
{
    static unsigned char zeros[CHUNK] __attribute__((aligned(PAGE))) = {0};
    struct iovec parts[CHUNKS_AT_ONCE];
    int flags = fcntl(fd, F_GETFL);
    bool direct = flags >= 0 && fcntl(fd, F_SETFL, flags | O_DIRECT) == 0;
    bool done = true;

    while (done && from < end) {
        uint64_t left = end - from;
        int count = 0;

        for (; left && count < CHUNKS_AT_ONCE; count++) {
            parts[count] = (struct iovec){zeros, left < CHUNK ? (size_t)left : CHUNK};
            left -= parts[count].iov_len;
        }
        ssize_t put = pwritev(fd, parts, count, (off_t)from);

        if (put > 0)
            from += (uint64_t)put;
        else if (put < 0 && errno == EINTR)
            continue;
        else if (direct && fcntl(fd, F_SETFL, flags) == 0)
            direct = false; /* these lengths, or this file system, do not suit it */
        else
            done = false;
    }
    if (direct)
        fcntl(fd, F_SETFL, flags);
    return done;
}

bool
vf_qcow2_write_empty(int fd, const struct vf_qcow2_empty *image)
{
    uint64_t cluster = (uint64_t)image->cluster_size, reach = reach_of(image);
    /* One at least: a table has to be somewhere. */
    uint64_t l1_entries = image->size ? ((uint64_t)image->size - 1) / reach + 1 : 1;
    uint64_t first_l2 = L1_TABLE_AT + (l1_entries * 8 + cluster - 1) / cluster;
    uint64_t counted = cluster * 8 >> REFCOUNT_ORDER; /* by one block */
    bool with_l2 = image->ready && l1_entries * cluster <= READY_TABLES_MOST &&
                   first_l2 + l1_entries <= counted;
    uint64_t clusters = first_l2 + (with_l2 ? l1_entries : 0);
    unsigned char block_at[8];

    assert((cluster & (cluster - 1)) == 0 && cluster >> CLUSTER_BITS_LEAST &&
           cluster >> CLUSTER_BITS_MOST <= 1 && image->size >= 0);
    if (l1_entries > L1_MAX / 8 || clusters > counted) {
        errno = EFBIG;
        return false;
    }
    size_t counts_length = (size_t)clusters << REFCOUNT_ORDER >> 3;
    VF_AUTO_FREE unsigned char *counts = vf_alloc(counts_length);

    for (size_t i = 1; i < counts_length; i += 2)
        counts[i] = 1;
    put64(block_at, cluster * REFCOUNT_BLOCK_AT);
    return ftruncate(fd, (off_t)(clusters * cluster)) == 0 &&
           write_header(fd, image, (uint32_t)l1_entries) &&
           write_at(fd, cluster * REFCOUNT_TABLE_AT, block_at, sizeof block_at) &&
           write_at(fd, cluster * REFCOUNT_BLOCK_AT, counts, counts_length) &&
           (!with_l2 || write_l1(fd, image, (size_t)l1_entries, first_l2)) &&
           (!image->ready ||
            write_zeros(fd, first_l2 * cluster, clusters * cluster + (uint64_t)READY_ROOM));
}
