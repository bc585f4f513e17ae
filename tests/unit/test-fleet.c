/* SPDX-License-Identifier: MIT
 *
 * Many VMs at once in one loop of one process: how long it takes, what it costs, and whether all
 * are served alike.
 *
 * Each VM is a scripted peer, a small process of its own with real sockets and real files: it has
 * its image open, makes the overlay that it is told to make, moves to it in the transaction, and
 * "freezes" and "thaws" at once. So everything on our side is real (names, journals, records,
 * guards, looks into /proc), and all that is measured is ours.
 *
 * ONLY=threads plays only the one of that name; VMFROST_FLEET=1000 sets how many there are;
 * VMFROST_FLEET_DIR where their files and the state folder are: on a disk, most of the time is that
 * of fsync(2).
 */
#include <endian.h>
#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "scratch.h"
#include "sockets.h"
#include "util/text.h"
#include "vmfrost.h"

#define SIZE 1048576

/*
 * The peer
 */

struct fake {
    char folder[160]; /* of its images and sockets; its working directory */
    int image, overlay;
    char overlay_path[256], overlay_node[64];
    bool cut, frozen;
    int listeners[2], clients[2];
    size_t length[2];
    char heard[2][16384];
};

enum { QMP, AGENT };

static void
put32(unsigned char *at, uint32_t value)
{
    value = htobe32(value);
    memcpy(at, &value, sizeof value);
}

static void
put64(unsigned char *at, uint64_t value)
{
    value = htobe64(value);
    memcpy(at, &value, sizeof value);
}

/* An image without data. */
static void
write_qcow2(const char *path)
{
    static unsigned char first[4096];
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    memset(first, 0, sizeof first);
    put32(first, 0x514649fb);
    put32(first + 4, 3);
    put32(first + 20, 16);
    put64(first + 24, SIZE);
    put32(first + 36, 1);
    put64(first + 40, 3 << 16);
    put64(first + 48, 1 << 16);
    put32(first + 56, 1);
    put32(first + 96, 4);
    put32(first + 100, 104);
    if (fd < 0 || pwrite(fd, first, sizeof first, 0) != sizeof first || ftruncate(fd, 4 << 16) < 0)
        _exit(1);
    close(fd);
}

static void
say(struct fake *fake, int which, const char *text)
{
    size_t length = strlen(text);

    while (length > 0) {
        ssize_t put = send(fake->clients[which], text, length, MSG_NOSIGNAL);

        if (put < 0)
            return;
        text += put;
        length -= (size_t)put;
    }
}

static void
node_json(char *out, size_t size, const char *node, const char *driver, const char *file, bool ro,
          int depth)
{
    snprintf(out, size,
             "{\"node-name\":\"%s\",\"drv\":\"%s\",\"file\":\"%s\",\"ro\":%s,\"encrypted\":false,"
             "\"backing_file_depth\":%d,\"detect_zeroes\":\"off\",\"cache\":{\"no-flush\":false,"
             "\"direct\":false,\"writeback\":true},\"image\":{\"virtual-size\":%d,"
             "\"filename\":\"%s\",\"format\":\"%s\",\"actual-size\":4096,\"dirty-flag\":false}}",
             node, driver, file, ro ? "true" : "false", depth, SIZE, file, driver);
}

static void
query_block(struct fake *fake, char *out, size_t size)
{
    char node[1024];

    node_json(node, sizeof node, fake->cut ? fake->overlay_node : "base", "qcow2",
              fake->cut ? fake->overlay_path : "web.qcow2", false, fake->cut);
    snprintf(out, size,
             "[{\"io-status\":\"ok\",\"device\":\"web\",\"locked\":false,\"removable\":false,"
             "\"qdev\":\"/machine/peripheral/web-dev/virtio-backend\",\"type\":\"unknown\","
             "\"inserted\":%s}]",
             node);
}

static void
query_nodes(struct fake *fake, char *out, size_t size)
{
    char nodes[4][1024];

    node_json(nodes[0], sizeof nodes[0], "base", "qcow2", "web.qcow2", fake->cut, 0);
    node_json(nodes[1], sizeof nodes[1], "base-file", "file", "web.qcow2", fake->cut, 0);
    if (!fake->cut) {
        snprintf(out, size, "[%s,%s]", nodes[0], nodes[1]);
        return;
    }
    node_json(nodes[2], sizeof nodes[2], fake->overlay_node, "qcow2", fake->overlay_path, false, 0);
    node_json(nodes[3], sizeof nodes[3], "over-file", "file", fake->overlay_path, false, 0);
    snprintf(out, size, "[%s,%s,%s,%s]", nodes[0], nodes[1], nodes[2], nodes[3]);
}

static void
query_graph(struct fake *fake, char *out, size_t size)
{
    static const char head[] = "{\"edges\":[{\"name\":\"root\",\"parent\":1,\"child\":2,\"perm\":"
                               "[\"write\"],\"shared-perm\":[]},{\"name\":\"file\",\"parent\":2,"
                               "\"child\":3,\"perm\":[\"write\"],\"shared-perm\":[]}";
    static const char nodes[] =
        "],\"nodes\":[{\"id\":1,\"type\":\"block-backend\",\"name\":\"web\"}";

    if (!fake->cut)
        snprintf(out, size,
                 "%s%s,{\"id\":2,\"type\":\"block-driver\",\"name\":\"base\"},{\"id\":3,"
                 "\"type\":\"block-driver\",\"name\":\"base-file\"}]}",
                 head, nodes);
    else
        snprintf(out, size,
                 "%s,{\"name\":\"backing\",\"parent\":2,\"child\":4,\"perm\":[],\"shared-perm\":[]}"
                 ",{\"name\":\"file\",\"parent\":4,\"child\":5,\"perm\":[],\"shared-perm\":[]}"
                 "%s,{\"id\":2,\"type\":\"block-driver\",\"name\":\"%s\"},{\"id\":3,"
                 "\"type\":\"block-driver\",\"name\":\"over-file\"},{\"id\":4,\"type\":"
                 "\"block-driver\",\"name\":\"base\"},{\"id\":5,\"type\":\"block-driver\","
                 "\"name\":\"base-file\"}]}",
                 head, nodes, fake->overlay_node);
}

/* False: it was a rehearsal. */
static bool
transact(struct fake *fake, struct json_object *arguments)
{
    struct json_object *actions = vf_json_array(arguments, "actions");
    size_t count = vf_json_length(actions);
    struct json_object *cut = vf_json_object(vf_json_at(actions, 0), "data");

    if (strcmp(vf_json_string(vf_json_at(actions, count - 1), "type"), "abort") == 0)
        return false;
    snprintf(fake->overlay_node, sizeof fake->overlay_node, "%s",
             vf_json_string(cut, "snapshot-node-name"));
    snprintf(fake->overlay_path, sizeof fake->overlay_path, "%s",
             vf_json_string(cut, "snapshot-file"));
    fake->overlay = open(fake->overlay_path, O_RDWR | O_CLOEXEC);
    close(fake->image);
    fake->image = open("web.qcow2", O_RDONLY | O_CLOEXEC);
    fake->cut = true;
    return true;
}

static void
answer_qmp(struct fake *fake, struct json_object *request)
{
    const char *command = vf_json_string(request, "execute");
    const char *id = vf_json_string(request, "id");
    struct json_object *arguments = vf_json_object(request, "arguments");
    const char *property = vf_json_string(arguments, "property");
    const char *path = vf_json_string(arguments, "path");
    static char value[8192], line[9000];

    snprintf(value, sizeof value, "{}");
    if (!command)
        command = "";
    if (strcmp(command, "query-status") == 0)
        snprintf(value, sizeof value, "{\"status\":\"running\",\"running\":true}");
    else if (strcmp(command, "query-jobs") == 0 || strcmp(command, "query-block-jobs") == 0)
        snprintf(value, sizeof value, "[]");
    else if (strcmp(command, "query-chardev") == 0)
        snprintf(value, sizeof value,
                 "[{\"frontend-open\":true,\"label\":\"qga\","
                 "\"filename\":\"unix:%s/qga.sock,server=on\"}]",
                 fake->folder);
    else if (strcmp(command, "query-block") == 0)
        query_block(fake, value, sizeof value);
    else if (strcmp(command, "query-named-block-nodes") == 0)
        query_nodes(fake, value, sizeof value);
    else if (strcmp(command, "x-debug-query-block-graph") == 0)
        query_graph(fake, value, sizeof value);
    else if (strcmp(command, "qom-list") == 0)
        snprintf(value, sizeof value, "%s",
                 path && vf_ends_with(path, "peripheral")
                     ? "[{\"name\":\"port\",\"type\":\"child<virtserialport>\"}]"
                     : "[]");
    else if (strcmp(command, "qom-get") == 0)
        snprintf(value, sizeof value, "%s",
                 property && strcmp(property, "name") == 0      ? "\"org.qemu.guest_agent.0\""
                 : property && strcmp(property, "chardev") == 0 ? "\"qga\""
                                                                : "false");
    if (strcmp(command, "transaction") == 0 && !transact(fake, arguments))
        snprintf(line, sizeof line,
                 "{\"error\":{\"class\":\"GenericError\",\"desc\":\"Transaction aborted using "
                 "Abort action\"},\"id\":\"%s\"}\r\n",
                 id);
    else
        snprintf(line, sizeof line, "{\"return\":%s,\"id\":\"%s\"}\r\n", value, id);
    say(fake, QMP, line);
}

static void
answer_agent(struct fake *fake, struct json_object *request)
{
    const char *command = vf_json_string(request, "execute");
    struct json_object *arguments = vf_json_object(request, "arguments");
    int64_t token = 0;
    char line[512] = "{\"return\":{}}\n";

    if (vf_json_int(arguments, "id", &token))
        snprintf(line, sizeof line, "\xff{\"return\":%lld}\n", (long long)token);
    else if (strcmp(command, "guest-info") == 0)
        snprintf(line, sizeof line,
                 "{\"return\":{\"version\":\"7.2\",\"supported_commands\":["
                 "{\"name\":\"guest-fsfreeze-freeze\",\"enabled\":true},"
                 "{\"name\":\"guest-fsfreeze-thaw\",\"enabled\":true},"
                 "{\"name\":\"guest-fsfreeze-status\",\"enabled\":true},"
                 "{\"name\":\"guest-ping\",\"enabled\":true}]}}\n");
    else if (strcmp(command, "guest-fsfreeze-status") == 0)
        snprintf(line, sizeof line, "{\"return\":\"%s\"}\n", fake->frozen ? "frozen" : "thawed");
    else if (strcmp(command, "guest-fsfreeze-freeze") == 0 ||
             strcmp(command, "guest-fsfreeze-thaw") == 0) {
        fake->frozen = vf_ends_with(command, "freeze");
        snprintf(line, sizeof line, "{\"return\":1}\n");
    }
    say(fake, AGENT, line);
}

static void
hear(struct fake *fake, int which)
{
    char *heard = fake->heard[which];
    ssize_t got = read(fake->clients[which], heard + fake->length[which],
                       sizeof fake->heard[which] - fake->length[which]);

    if (got <= 0) {
        close(fake->clients[which]);
        fake->clients[which] = -1;
        return;
    }
    fake->length[which] += (size_t)got;
    for (;;) {
        struct json_tokener *tokener = json_tokener_new();
        char *begin = memchr(heard, '{', fake->length[which]);
        size_t rest = begin ? fake->length[which] - (size_t)(begin - heard) : 0;
        VF_AUTO_JSON struct json_object *request =
            begin ? json_tokener_parse_ex(tokener, begin, (int)rest) : NULL;
        size_t used = request ? (size_t)(begin - heard) + json_tokener_get_parse_end(tokener) : 0;

        json_tokener_free(tokener);
        if (!request)
            return;
        fake->length[which] -= used;
        memmove(heard, heard + used, fake->length[which]);
        if (which == QMP)
            answer_qmp(fake, request);
        else
            answer_agent(fake, request);
    }
}

/* Never returns. */
static void
be_fake(const char *folder, int ready)
{
    static struct fake fake = {.overlay = -1, .clients = {-1, -1}};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(fake.folder, sizeof fake.folder, "%s", folder);
    if (mkdir(folder, 0700) < 0 || chdir(folder) < 0)
        _exit(1);
    write_qcow2("web.qcow2");
    fake.image = open("web.qcow2", O_RDWR | O_CLOEXEC);
    fake.listeners[QMP] = listen_at("qmp.sock", 4);
    fake.listeners[AGENT] = listen_at("qga.sock", 4);
    if (write(ready, "", 1) != 1)
        _exit(1);
    for (;;) {
        struct pollfd fds[4];

        for (int i = 0; i < 2; i++) {
            fds[i] = (struct pollfd){fake.clients[i] < 0 ? fake.listeners[i] : -1, POLLIN, 0};
            fds[2 + i] = (struct pollfd){fake.clients[i], POLLIN, 0};
        }
        if (poll(fds, 4, -1) < 0)
            _exit(1);
        for (int i = 0; i < 2; i++) {
            if (fds[i].revents) {
                fake.clients[i] = accept4(fake.listeners[i], NULL, NULL, SOCK_CLOEXEC);
                fake.length[i] = 0;
                if (i == QMP)
                    say(&fake, QMP,
                        "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":22,\"minor\":2,\"major\":7},"
                        "\"package\":\"\"},\"capabilities\":[\"oob\"]}}\r\n");
            } else if (fds[2 + i].revents) {
                hear(&fake, i);
            }
        }
    }
}

/*
 * The fleet
 */

struct vm {
    char name[32];
    pid_t pid;
    long long begun_us, ended_us;
    long long frozen_us; /* by its record */
    int code;
};

static struct vm *fleet;
static size_t fleet_count;
static char *scratch;
static struct ev_loop *loop;
static struct vmfrost *context;
static atomic_bool told; /* the first failure */

static long long
now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

/* A line of /proc/self/status, in KiB. */
static long
status_kib(const char *key)
{
    FILE *file = fopen("/proc/self/status", "re");
    char line[256];
    long kib = -1;

    while (file && fgets(line, sizeof line, file))
        if (vf_starts_with(line, key))
            kib = strtol(line + strlen(key), NULL, 10);
    if (file)
        fclose(file);
    return kib;
}

static void
start_fleet(void)
{
    int ready[2];
    char byte;

    if (pipe2(ready, O_CLOEXEC) < 0)
        exit(1);
    for (size_t i = 0; i < fleet_count; i++) {
        VF_AUTO_FREE char *folder = vf_printf("%s/%s", scratch, fleet[i].name);

        fleet[i].pid = fork();
        if (fleet[i].pid == 0)
            be_fake(folder, ready[1]);
    }
    close(ready[1]);
    for (size_t i = 0; i < fleet_count; i++)
        if (read(ready[0], &byte, 1) != 1) {
            printf("Bail out! only %zu peers started\n", i);
            exit(1);
        }
    close(ready[0]);
}

static void
end_fleet(void)
{
    for (size_t i = 0; i < fleet_count; i++)
        kill(fleet[i].pid, SIGKILL);
    for (size_t i = 0; i < fleet_count; i++)
        waitpid(fleet[i].pid, NULL, 0);
}

/* As vmfrost_add() would, which looks at all others each time. */
static void
add_fleet(const char *state)
{
    for (size_t i = 0; i < fleet_count; i++) {
        VF_AUTO_FREE char *folder = vf_printf("%s/vms/%s", state, fleet[i].name);
        VF_AUTO_FREE char *records = vf_printf("%s/records", folder);
        VF_AUTO_FREE char *path = vf_printf("%s/vm.json", folder);
        VF_AUTO_FREE char *text =
            vf_printf("{\"qmp\":\"%s/%s/qmp.sock\"}\n", scratch, fleet[i].name);

        if (mkdir(folder, 0700) < 0 || mkdir(records, 0700) < 0 || !put_file(path, text))
            exit(1);
    }
}

static void
on_done(void *data, const struct vmfrost_result *result)
{
    struct vm *vm = data;
    VF_AUTO_JSON struct json_object *record = vf_json_parse(result->json, strlen(result->json), 32);
    struct json_object *value = NULL;

    vm->ended_us = now_us();
    vm->code = (int)result->code;
    if (json_object_object_get_ex(vf_json_object(record, "evidence"), "frozenMs", &value))
        vm->frozen_us = (long long)(json_object_get_double(value) * 1000);
    if (result->code != VMFROST_OK && !atomic_exchange(&told, true))
        diag("%s: %s", vm->name, result->text);
}

static int
by_number(const void *a, const void *b)
{
    long long x = *(const long long *)a, y = *(const long long *)b;

    return (x > y) - (x < y);
}

/* How many of those that came later were done before one, at most. */
static size_t
most_overtaken(void)
{
    size_t most = 0;

    for (size_t i = 0; i < fleet_count; i++) {
        size_t before = 0;

        for (size_t j = i + 1; j < fleet_count; j++)
            before += fleet[j].ended_us < fleet[i].ended_us;
        most = before > most ? before : most;
    }
    return most;
}

/* Have all ended well? What it cost, and whether any waited too long. */
static void
measure(const char *what, bool as_group)
{
    long long *times = vf_alloc(fleet_count * sizeof *times);
    long long *frozen = vf_alloc(fleet_count * sizeof *frozen);
    const char **names = vf_alloc(fleet_count * sizeof *names);
    void **data = vf_alloc(fleet_count * sizeof *data);
    struct vmfrost_snapshot_options options = VMFROST_SNAPSHOT_OPTIONS_INIT;
    struct rusage before, after;
    size_t good = 0;

    options.name = what;
    options.deadline_ms = 20 * 60 * 1000;
    options.frozen_limit_ms = 5 * 60 * 1000;
    if (!put_file("/proc/self/clear_refs", "5"))
        diag("the peak of memory cannot be reset");
    long rss = status_kib("VmRSS:");
    long long begun = now_us();

    getrusage(RUSAGE_SELF, &before);
    for (size_t i = 0; i < fleet_count; i++) {
        fleet[i].begun_us = begun;
        names[i] = fleet[i].name;
        data[i] = &fleet[i];
        if (!as_group)
            vmfrost_snapshot(context, fleet[i].name, &options, NULL, on_done, &fleet[i]);
    }
    if (as_group)
        vmfrost_snapshot_group(context, names, fleet_count, &options, NULL, on_done, data, NULL);
    vmfrost_wait(context);
    getrusage(RUSAGE_SELF, &after);
    long long took = now_us() - begun;
    long grown = status_kib("VmHWM:") - rss;

    for (size_t i = 0; i < fleet_count; i++) {
        good += fleet[i].code == VMFROST_OK;
        times[i] = fleet[i].ended_us - fleet[i].begun_us;
        frozen[i] = fleet[i].frozen_us;
    }
    qsort(times, fleet_count, sizeof *times, by_number);
    qsort(frozen, fleet_count, sizeof *frozen, by_number);

    long long median = times[fleet_count / 2], last = times[fleet_count - 1];
    double cpu = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec -
                          before.ru_stime.tv_sec) +
                 (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec +
                          after.ru_stime.tv_usec - before.ru_stime.tv_usec) /
                     1e6;

    ok(good == fleet_count, "%s: all of them have their snapshots", what);
    ok(as_group || most_overtaken() <= 64, "%s: nobody is overtaken by many (%zu)", what,
       most_overtaken());
    /* Where the load of the machine changes in between, this says nothing of us. */
    if (getenv("VMFROST_FLEET"))
        ok(last <= 3 * median, "%s: nobody waits more than three times the median", what);
        /* What all have in common is no little, and a sanitizer has memory of its own. */
#ifndef __SANITIZE_ADDRESS__
    if (fleet_count >= 200)
        ok((double)grown / (double)fleet_count < (as_group ? 64 : 40),
           "%s: not much memory for each", what);
#endif
    diag("%s: %zu VMs in %.2f s (%.2f s of our CPU); each: median %.2f s, last %.2f s; frozen: "
         "median %.1f ms, longest %.1f ms; peak %.1f KiB for each",
         what, fleet_count, (double)took / 1e6, cpu, (double)median / 1e6, (double)last / 1e6,
         (double)frozen[fleet_count / 2] / 1e3, (double)frozen[fleet_count - 1] / 1e3,
         (double)grown / (double)fleet_count);
    free(times);
    free(frozen);
    free(names);
    free(data);
}

/* Every third one is stopped: at once, or when the first of all is done, so that some have not been
 * let in, some wait for their turn, and some are at work. */
static void
stop_some(struct vmfrost_op **ops, size_t from)
{
    for (size_t i = from; i < fleet_count; i += 3)
        if (!fleet[i].ended_us)
            vmfrost_cancel(ops[i]);
}

static void
stopped(const char *what)
{
    struct vmfrost_op **ops = vf_alloc(fleet_count * sizeof *ops);
    struct vmfrost_snapshot_options options = VMFROST_SNAPSHOT_OPTIONS_INIT;
    size_t ended = 0, wrong = 0;

    options.name = what;
    for (size_t i = 0; i < fleet_count; i++)
        ops[i] = vmfrost_snapshot(context, fleet[i].name, &options, NULL, on_done, &fleet[i]);
    told = true; /* they fail on purpose */
    stop_some(ops, 1);
    while (!fleet[0].ended_us)
        ev_run(loop, EVRUN_ONCE);
    stop_some(ops, 2);
    vmfrost_wait(context);
    for (size_t i = 0; i < fleet_count; i++) {
        ended += fleet[i].ended_us != 0;
        wrong +=
            i % 3 == 1 ? fleet[i].code == VMFROST_OK : i % 3 == 0 && fleet[i].code != VMFROST_OK;
    }
    ok(ended == fleet_count, "%s: all of them end", what);
    ok(wrong == 0, "%s: who was stopped has none, and the others have theirs (%zu wrong)", what,
       wrong);
    told = false;
    free(ops);
}

/* A part of the fleet, in a thread with a loop and a context of its own. */
struct worker {
    pthread_t thread;
    size_t first;
    const char *state, *what;
};

#define THREADS 3

static void *
work(void *data)
{
    const struct worker *worker = data;
    struct vmfrost_settings settings = VMFROST_SETTINGS_INIT;
    struct vmfrost_snapshot_options options = VMFROST_SNAPSHOT_OPTIONS_INIT;
    struct ev_loop *own = ev_loop_new(EVFLAG_AUTO);

    options.name = worker->what;
    options.deadline_ms = 20 * 60 * 1000;
    options.frozen_limit_ms = 5 * 60 * 1000;
    settings.state_dir = worker->state;
    struct vmfrost *mine = vmfrost_new(own, &settings);

    for (size_t i = worker->first; mine && i < fleet_count; i += THREADS)
        vmfrost_snapshot(mine, fleet[i].name, &options, NULL, on_done, &fleet[i]);
    if (mine)
        vmfrost_wait(mine);
    vmfrost_free(mine);
    ev_loop_destroy(own);
    return NULL;
}

/* The library makes no threads, but a program may use a context in each of its own. */
static void
in_threads(const char *what, const char *state)
{
    struct worker workers[THREADS];
    size_t good = 0;

    for (size_t i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.first = i, .state = state, .what = what};
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            exit(1);
    }
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    for (size_t i = 0; i < fleet_count; i++)
        good += fleet[i].code == VMFROST_OK;
    ok(good == fleet_count, "%s: all of them have their snapshots", what);
}

enum way { EACH, TOGETHER, STOPPED, IN_THREADS };

static void
play(const char *what, enum way way)
{
    VF_AUTO_FREE char *state = vf_printf("%s/state-%s", scratch, what);
    struct vmfrost_settings settings = VMFROST_SETTINGS_INIT;
    const char *only = getenv("ONLY");

    if (only && strcmp(only, what) != 0)
        return;
    for (size_t i = 0; i < fleet_count; i++) {
        fleet[i] = (struct vm){.code = -1};
        snprintf(fleet[i].name, sizeof fleet[i].name, "%s-%04zu", what, i);
    }
    start_fleet();
    settings.state_dir = state;
    context = vmfrost_new(loop, &settings);
    if (context) {
        add_fleet(state);
        switch (way) {
        case EACH:
        case TOGETHER:
            measure(what, way == TOGETHER);
            break;
        case STOPPED:
            stopped(what);
            break;
        case IN_THREADS:
            in_threads(what, state);
            break;
        }
    } else {
        ok(false, "a context: %s", vmfrost_new_error()->text);
    }
    vmfrost_free(context);
    end_fleet();
}

/* Each has two connections, and for a while a journal, a lock and a guard. */
static bool
raise_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return false;
    limit.rlim_cur = limit.rlim_max;
    return setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max >= 8 * fleet_count + 64;
}

int
main(void)
{
    const char *wanted = getenv("VMFROST_FLEET"), *where = getenv("VMFROST_FLEET_DIR");

    fleet_count = wanted ? (size_t)strtoul(wanted, NULL, 10) : 200;
    if (fleet_count < 1 || fleet_count > 9999) {
        printf("Bail out! VMFROST_FLEET\n");
        return 1;
    }
    char *made = vf_printf("%s/vmfrost-fleet-XXXXXX", where                           ? where
                                                      : access("/dev/shm", W_OK) == 0 ? "/dev/shm"
                                                                                      : "/tmp");

    scratch = mkdtemp(made) ? realpath(made, NULL) : NULL;
    free(made);
    if (!scratch || !raise_limit()) {
        printf("Bail out! no folder, or not enough descriptors\n");
        return 1;
    }
    fleet = vf_alloc(fleet_count * sizeof *fleet);
    signal(SIGPIPE, SIG_IGN);
    loop = ev_loop_new(EVFLAG_AUTO);
    play("each", EACH);
    play("together", TOGETHER);
    play("stopped", STOPPED);
    play("threads", IN_THREADS);
    ev_loop_destroy(loop);
    free(fleet);
    scratch_remove(scratch);
    return done_testing();
}
