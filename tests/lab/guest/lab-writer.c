/*
 * lab-writer: numbered records on two disks, to see whether images of both are
 * of one instant.
 *
 *     lab-writer start FOLDER-A FOLDER-B [PAUSE-US]
 *     lab-writer acked      how many records are flushed on both
 *     lab-writer stop       stop, then the same
 *
 * Record n is written and flushed to FOLDER-A/lab-writer.rec, then to FOLDER-B,
 * and only then n + 1 begins. So at every instant A holds what B holds, or one
 * record more. The files are rings of SLOTS records, filled with zeros first:
 * a record then changes no metadata, and the file never grows.
 *
 * The record, little-endian: "VMFWRIT1", run (start time in ns), n (from 1),
 * padding, CRC-32 of all before it. tests/lab/lab.py reads it.
 */
#include "lab.h"

enum { SLOTS = 4096, RECORD = 512 };
#define STATE "/run/lab/writer"

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

static int
open_ring(const char *folder)
{
    static const char zeros[SLOTS * RECORD];
    char path[4096];
    snprintf(path, sizeof path, "%s/lab-writer.rec", folder);
    /* Not truncated: new blocks would leave old records in free space. */
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || pwrite(fd, zeros, sizeof zeros, 0) != sizeof zeros || fsync(fd))
        die("%s: %s", path, strerror(errno));
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
work(struct state *state, int a, int b, uint64_t pause)
{
    struct record record = {.magic = "VMFWRIT1", .run = nanoseconds(CLOCK_REALTIME)};
    while (!stopping) {
        record.n++;
        record.crc = crc32_of(&record, offsetof(struct record, crc));
        int error = put(a, &record);
        if (!error)
            error = put(b, &record);
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
start(const char *folder_a, const char *folder_b, uint64_t pause)
{
    int a = open_ring(folder_a), b = open_ring(folder_b);
    struct state *state = share(STATE, sizeof *state, 1);
    pid_t pid = fork();
    if (pid < 0)
        die("fork: %s", strerror(errno));
    if (pid == 0) {
        detach();
        signal(SIGTERM, on_term);
        work(state, a, b, pause);
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

int
main(int argc, char **argv)
{
    if (argc >= 4 && !strcmp(argv[1], "start"))
        return start(argv[2], argv[3], argc > 4 ? strtoull(argv[4], NULL, 10) : 0);
    if (argc == 2 && !strcmp(argv[1], "acked"))
        return report(share(STATE, sizeof(struct state), 0));
    if (argc == 2 && !strcmp(argv[1], "stop"))
        return stop();
    die("usage: lab-writer start FOLDER-A FOLDER-B [PAUSE-US] | acked | stop");
}
