/*
 * lab-writer: numbered records on several disks, to see whether images of them
 * are of one instant.
 *
 *     lab-writer start PAUSE-US FOLDER...
 *     lab-writer acked      how many records are flushed on all
 *     lab-writer stop       stop, then the same
 *     lab-writer read FOLDER...
 *                           for each: are all records whole and in order? The
 *                           number of the last one
 *
 * Record n is written and flushed to lab-writer.rec in the first folder, then in
 * the next, and only then n + 1 begins. So at every instant each disk holds what
 * the one behind it holds, or one record more. The files are rings of SLOTS
 * records, filled with zeros first: a record then changes no metadata, and the
 * file never grows.
 *
 * The record, little-endian: "VMFWRIT1", run (start time in ns), n (from 1),
 * padding, CRC-32 of all before it. tests/lab/lab.py reads it.
 */
#include "lab.h"

enum { SLOTS = 16384, RECORD = 512, FOLDERS = 8 };
#define STATE "/run/lab/writer"
#define MAGIC "VMFWRIT1"

struct record {
    char magic[8];
    uint64_t run;
    uint64_t n;
    uint8_t padding[RECORD - 28];
    uint32_t crc;
};
_Static_assert(sizeof(struct record) == RECORD, "the record is one sector");

struct state {
    _Atomic pid_t pid;
    _Atomic uint64_t acked;
    _Atomic int error; /* errno that ended the worker */
    _Atomic int ended;
};

static volatile sig_atomic_t stopping;

static void
on_term(int number)
{
    (void)number;
    stopping = 1;
}

static uint32_t
crc32_of(const void *data, size_t size)
{
    static uint32_t table[256];
    if (!table[1]) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; bit++)
                value = value & 1 ? (value >> 1) ^ 0xEDB88320u : value >> 1;
            table[i] = value;
        }
    }
    uint32_t crc = ~0u;
    for (const uint8_t *byte = data; size--; byte++)
        crc = table[(crc ^ *byte) & 0xff] ^ (crc >> 8);
    return ~crc;
}

/* Not truncated: new blocks would leave old records in free space. */
static int
open_ring(const char *folder, int how)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/lab-writer.rec", folder);
    int fd = open(path, how | O_CLOEXEC, 0644);
    if (fd < 0)
        die("%s: %s", path, strerror(errno));
    return fd;
}

static int
empty_ring(const char *folder)
{
    static const char zeros[SLOTS * RECORD];
    int fd = open_ring(folder, O_WRONLY | O_CREAT);
    if (pwrite(fd, zeros, sizeof zeros, 0) != sizeof zeros || fsync(fd))
        die("%s: %s", folder, strerror(errno));
    return fd;
}

static int
put(int fd, const struct record *record)
{
    off_t at = (off_t)(record->n % SLOTS) * RECORD;
    ssize_t done = pwrite(fd, record, sizeof *record, at);
    if (done == sizeof *record && !fdatasync(fd))
        return 0;
    return done >= 0 && done < (ssize_t)sizeof *record ? EIO : errno;
}

static void
work(struct state *state, const int *rings, int count, uint64_t pause)
{
    struct record record = {.magic = MAGIC, .run = nanoseconds(CLOCK_REALTIME)};
    while (!stopping) {
        int error = 0;
        record.n++;
        record.crc = crc32_of(&record, offsetof(struct record, crc));
        for (int i = 0; i < count && !error; i++)
            error = put(rings[i], &record);
        if (error) {
            state->error = error;
            break;
        }
        state->acked = record.n;
        if (pause)
            pause_us(pause);
    }
}

static int
report(const struct state *state)
{
    printf("%llu\n", (unsigned long long)state->acked);
    if (state->error)
        fprintf(stderr, "lab-writer: %s\n", strerror(state->error));
    return state->error != 0;
}

static int
start(uint64_t pause, char **folders, int count)
{
    int rings[FOLDERS];
    for (int i = 0; i < count; i++)
        rings[i] = empty_ring(folders[i]);
    struct state *state = share(STATE, sizeof *state, 1);
    pid_t pid = fork();
    if (pid < 0)
        die("fork: %s", strerror(errno));
    if (pid == 0) {
        detach();
        signal(SIGTERM, on_term);
        work(state, rings, count, pause);
        state->ended = 1;
        _exit(0);
    }
    state->pid = pid;
    /* Who has seen `start` succeed can rely on a record in every image. */
    while (!state->acked && !state->error)
        pause_us(1000);
    return report(state);
}

static int
stop(void)
{
    struct state *state = share(STATE, sizeof *state, 0);
    if (!state->ended)
        kill(state->pid, SIGTERM);
    while (!state->ended)
        pause_us(5000);
    return report(state);
}

static int
is_empty(const struct record *record)
{
    static const struct record empty;
    return !memcmp(record, &empty, sizeof empty);
}

static void
read_ring(const char *folder)
{
    static struct record ring[SLOTS];
    uint64_t last = 0, run = 0;
    int fd = open_ring(folder, O_RDONLY);
    if (read(fd, ring, sizeof ring) != sizeof ring)
        die("%s: the file is too short", folder);
    close(fd);
    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        const struct record *record = &ring[slot];
        if (is_empty(record))
            continue;
        if (memcmp(record->magic, MAGIC, sizeof record->magic) ||
            record->crc != crc32_of(record, offsetof(struct record, crc)))
            die("%s: slot %llu: a torn record", folder, (unsigned long long)slot);
        if (record->n % SLOTS != slot || (run && record->run != run))
            die("%s: slot %llu: another record", folder, (unsigned long long)slot);
        run = record->run;
        last = record->n > last ? record->n : last;
    }
    for (uint64_t n = last < SLOTS ? 1 : last - SLOTS + 1; n <= last; n++) {
        if (ring[n % SLOTS].n != n)
            die("%s: %llu is there, %llu is not", folder, (unsigned long long)last,
                (unsigned long long)n);
    }
    printf("%llu\n", (unsigned long long)last);
}

int
main(int argc, char **argv)
{
    if (argc >= 4 && argc <= 3 + FOLDERS && !strcmp(argv[1], "start"))
        return start(strtoull(argv[2], NULL, 10), argv + 3, argc - 3);
    if (argc >= 3 && !strcmp(argv[1], "read")) {
        for (int i = 2; i < argc; i++)
            read_ring(argv[i]);
        return 0;
    }
    if (argc == 2 && !strcmp(argv[1], "acked"))
        return report(share(STATE, sizeof(struct state), 0));
    if (argc == 2 && !strcmp(argv[1], "stop"))
        return stop();
    die("usage: lab-writer start PAUSE-US FOLDER... | acked | stop | read FOLDER...");
}
