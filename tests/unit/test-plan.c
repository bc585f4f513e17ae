/* SPDX-License-Identifier: MIT
 *
 * Which disks a plan takes: QEMU's recorded answers (fixtures/plan; each file holds the command
 * line that it was recorded with), and changes to them for what is hard to record.
 */
#include "vm/disk.h"

#include <errno.h>

#include "../tap.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"

#define FIXTURES "tests/unit/fixtures/plan/"

static struct json_object *
load(const char *fixture)
{
    VF_AUTO_FREE char *path = vf_printf(FIXTURES "%s.json", fixture);
    size_t length;
    VF_AUTO_FREE char *text = vf_read_file(path, 1 << 20, &length);

    if (!text) {
        printf("Bail out! cannot read %s from here: %s\n", path, strerror(errno));
        exit(EXIT_FAILURE);
    }
    while (length > 0 && text[length - 1] == '\n')
        length--;
    return vf_json_parse(text, length, 32);
}

static struct vf_plan_input
input_of(struct json_object *fixture)
{
    return (struct vf_plan_input){
        .status = vf_json_object(fixture, "status"),
        .migrate = vf_json_object(fixture, "migrate"),
        .jobs = vf_json_array(fixture, "jobs"),
        .block_jobs = vf_json_array(fixture, "block_jobs"),
        .block = vf_json_array(fixture, "block"),
        .nodes = vf_json_array(fixture, "nodes"),
        .graph = vf_json_object(fixture, "graph"),
    };
}

static struct json_object *
load_text(const char *text)
{
    return vf_json_parse(text, strlen(text), 32);
}

/* "a b=ReadOnly c": every disk by its name, with its reason if it is left out. */
static char *
summary(const struct vf_plan *plan)
{
    char *text = vf_strdup("");

    for (size_t i = 0; i < plan->count; i++) {
        const struct vf_disk *disk = &plan->disks[i];
        bool out = disk->reason != VF_INCLUDED;
        /* Auto-generated names differ with each run. */
        const char *name = disk->name[0] == '#' ? "#" : disk->name;
        char *longer = vf_printf("%s%s%s%s%s", text, i > 0 ? " " : "", name, out ? "=" : "",
                                 out ? vf_reason_name(disk->reason) : "");

        free(text);
        text = longer;
    }
    return text;
}

static const struct {
    const char *fixture;
    const char *exclude; /* one name */
    const char *disks;
    enum vmfrost_code code;
    const char *text, *next; /* parts of the error's */
} cases[] = {
    {"drive", NULL,
     "virtio0 data loose=Unattached cd1=Cdrom /machine/peripheral-anon/device[0]=Empty "
     "scsicd=Empty",
     VMFROST_OK, "", ""},
    {"drive", "data",
     "virtio0 data=Requested loose=Unattached cd1=Cdrom "
     "/machine/peripheral-anon/device[0]=Empty scsicd=Empty",
     VMFROST_OK, "", ""},
    {"drive", "vd1",
     "virtio0 data=Requested loose=Unattached cd1=Cdrom "
     "/machine/peripheral-anon/device[0]=Empty scsicd=Empty",
     VMFROST_OK, "", ""},
    {"drive", "/machine/peripheral/vd1/virtio-backend",
     "virtio0 data=Requested loose=Unattached cd1=Cdrom "
     "/machine/peripheral-anon/device[0]=Empty scsicd=Empty",
     VMFROST_OK, "", ""},
    /* What is left out already keeps its reason. */
    {"drive", "cdrom1",
     "virtio0 data loose=Unattached cd1=Cdrom /machine/peripheral-anon/device[0]=Empty "
     "scsicd=Empty",
     VMFROST_OK, "", ""},
    {"drive", "web",
     "virtio0 data loose=Unattached cd1=Cdrom /machine/peripheral-anon/device[0]=Empty "
     "scsicd=Empty",
     VMFROST_USAGE, "no disk is called \"web\"", "virtio0, data, loose, cd1"},
    {"drive", "",
     "virtio0 data loose=Unattached cd1=Cdrom /machine/peripheral-anon/device[0]=Empty "
     "scsicd=Empty",
     VMFROST_USAGE, "no disk is called \"\"", "virtio0"},
    {"blockdev", NULL, "vd0 raw0 proto", VMFROST_OK, "", ""},
    {"blockdev", "web", "vd0=Requested raw0 proto", VMFROST_OK, "", ""},
    {"removable", NULL, "floppy0 rw-cd=Cdrom stick rm /machine/peripheral-anon/device[2]=Empty",
     VMFROST_OK, "", ""},
    {"firmware", NULL, "pflash0=Firmware pflash1=Firmware ide0-hd0 virtio0=ReadOnly", VMFROST_OK,
     "", ""},
    {"firmware", "ide0-hd0",
     "pflash0=Firmware pflash1=Firmware ide0-hd0=Requested virtio0=ReadOnly", VMFROST_FAILED,
     "no disk can be snapshotted: pflash0: it is firmware flash; pflash1: it is firmware flash; "
     "ide0-hd0: it is excluded by request; virtio0: it is read-only",
     ""},
    {"firmware-blockdev", NULL, "d0 code=Firmware vars=Firmware", VMFROST_OK, "", ""},
    {"snapshot-on", NULL, "virtio0=Temporary virtio1", VMFROST_OK, "", ""},
    {"snapshot-all", NULL, "virtio0=Temporary virtio1=Temporary", VMFROST_FAILED,
     "virtio0: it was started with snapshot=on", ""},
    /* copy-on-read=on of a -drive ("cor") is nowhere in QEMU's answers. */
    {"filters", NULL, "cor tdrive slow packed=Filter prealloc corf0=CopyOnRead", VMFROST_OK, "",
     ""},
    {"luks", NULL, "virtio0 l0dev l1dev=ReadOnly", VMFROST_OK, "", ""},
    {"nvme", NULL, "nv virtio0=Vvfat sd0 ns", VMFROST_OK, "", ""},
    {"unsafe", NULL, "virtio0 virtio1 virtio2", VMFROST_OK, "", ""},
    {"probed", NULL, "virtio0", VMFROST_OK, "", ""},
    {"shared", NULL, "vd0 vd1=Duplicate", VMFROST_OK, "", ""},
    /* An excluded image is not taken for its other device. */
    {"shared", "vd0", "vd0=Requested vd1=Requested", VMFROST_FAILED, "no disk can be snapshotted",
     ""},
    {"export", NULL, "vd0", VMFROST_OK, "", ""},
    {"bitmap", NULL, "virtio0", VMFROST_OK, "", ""},
    {"cut", NULL, "virtio0", VMFROST_OK, "", ""},
    {"running", NULL, "virtio0", VMFROST_OK, "", ""},
    {"inmigrate", NULL, "virtio0", VMFROST_FAILED, "\"inmigrate\"", "try again"},
    {"postmigrate", NULL, "virtio0", VMFROST_FAILED, "\"postmigrate\"", "moved to"},
    {"backup", NULL, "vd0=Filter", VMFROST_FAILED, "the backup job \"bak\" works on disk vd0",
     "job-cancel"},
    {"mirror", NULL, "vd0", VMFROST_FAILED, "the mirror job \"mir\" works on disk vd0",
     "job-cancel"},
    {"commit", NULL, "virtio0 virtio1", VMFROST_FAILED,
     "the commit job \"com\" works on disk virtio0", "job-cancel"},
    {"commit", "virtio0", "virtio0=Requested virtio1", VMFROST_OK, "", ""},
    {"stream", NULL, "virtio0=CopyOnRead", VMFROST_FAILED,
     "the stream job \"str\" works on disk virtio0", "job-cancel"},
    {"stream-implicit", NULL, "virtio0", VMFROST_FAILED,
     "the stream job \"str\" works on disk virtio0", "job-cancel"},
    /* QEMU refuses a cut until such a job is dismissed. */
    {"job-over", NULL, "virtio0", VMFROST_FAILED,
     "the commit job \"done\" is over, but still holds disk virtio0", "job-dismiss"},
};

static void
test_fixtures(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        VF_AUTO_JSON struct json_object *fixture = load(cases[i].fixture);
        struct vf_plan_input input = input_of(fixture);
        struct vmfrost_error error = {.code = VMFROST_OK};
        struct vf_plan plan;

        if (cases[i].exclude) {
            input.exclude = &cases[i].exclude;
            input.exclude_count = 1;
        }
        bool good = vf_plan_make(&input, &plan, &error);
        VF_AUTO_FREE char *disks = summary(&plan);
        VF_AUTO_FREE char *what =
            vf_printf("%s%s%s", cases[i].fixture, cases[i].exclude ? " without " : "",
                      cases[i].exclude ? cases[i].exclude : "");

        is_str(disks, cases[i].disks, what);
        is_int(error.code, cases[i].code, what);
        ok(good == (cases[i].code == VMFROST_OK), "%s: the answer is that of the code", what);
        has_str(error.text, cases[i].text, what);
        has_str(error.next, cases[i].next, what);
        for (size_t j = 0; j < plan.count; j++)
            if ((plan.disks[j].reason != VF_INCLUDED) != (plan.disks[j].why != NULL))
                ok(false, "%s: disk %s has a sentence", what, plan.disks[j].name);
        vf_plan_release(&plan);
    }
}

/* The plan of a fixture, whatever comes of it. */
static struct vf_plan
plan_of(const char *name)
{
    VF_AUTO_JSON struct json_object *fixture = load(name);
    struct vf_plan_input input = input_of(fixture);
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_plan plan;

    vf_plan_make(&input, &plan, &error);
    return plan;
}

static void
test_facts(void)
{
    struct vf_plan plan = plan_of("drive");

    is_str(plan.run_state, "prelaunch", "run state");
    ok(!plan.running, "prelaunch does not run");
    is_int(plan.included, 2, "two disks are taken");
    is_int(plan.warning_count, 0, "nothing to warn about");
    is_str(plan.disks[0].device, "virtio0", "backend");
    is_str(plan.disks[0].qdev, "/machine/peripheral-anon/device[1]/virtio-backend", "device");
    is_str(plan.disks[0].node, plan.disks[0].root, "cut at its root");
    is_str(plan.disks[0].format, "qcow2", "format");
    is_str(plan.disks[0].file, "web.qcow2", "relative file name as QEMU has it");
    ok(plan.disks[0].file_node && !plan.disks[0].file_named, "-drive makes its own file node");
    is_int(plan.disks[0].size, 64 << 20, "size");
    is_int(plan.disks[0].depth, 1, "one backing file");
    ok(plan.disks[0].writeback && !plan.disks[0].direct && !plan.disks[0].no_flush, "cache modes");
    ok(!plan.disks[0].encrypted, "not encrypted");
    ok(!plan.disks[4].root && !plan.disks[4].node, "an empty drive has no node");
    vf_plan_release(&plan);

    plan = plan_of("running");
    ok(plan.running, "running runs");
    vf_plan_release(&plan);

    plan = plan_of("blockdev");
    is_str(plan.disks[0].device, "", "-blockdev has no backend name");
    is_str(plan.disks[0].file_node, "web-file", "file node of its own");
    ok(plan.disks[0].file_named, "named by the launcher");
    is_str(plan.disks[0].file, "/vm/web.qcow2", "file name");
    ok(plan.disks[1].direct && !plan.disks[1].file_named, "direct, with a nested file");
    is_str(plan.disks[2].format, "file", "protocol node");
    ok(!plan.disks[2].file_node, "has nothing below it");
    is_int(plan.warning_count, 1, "one warning");
    has_str(plan.warnings[0], "disk proto has no format", "about the protocol node");
    vf_plan_release(&plan);

    plan = plan_of("filters");
    is_str(plan.disks[2].root, "thr", "root is the throttle filter");
    is_str(plan.disks[2].node, "b", "cut below it");
    is_str(plan.disks[2].file, "b.qcow2", "its file");
    is_str(plan.disks[2].format, "qcow2", "its format");
    has_str(plan.disks[3].why, "compress", "the filter is named");
    is_str(plan.disks[4].format, "raw", "preallocate below raw is no hindrance");
    has_str(plan.disks[4].file, "json:", "but has no plain name");
    vf_plan_release(&plan);

    plan = plan_of("luks");
    ok(plan.disks[0].encrypted, "encrypted qcow2");
    is_str(plan.disks[0].file, "luks.qcow2", "a qcow2 has its file's plain name");
    ok(plan.disks[1].encrypted, "luks");
    ok(plan.disks[2].encrypted, "raw on luks");
    vf_plan_release(&plan);

    plan = plan_of("cut");
    is_str(plan.disks[0].file, "/vm/.web.qcow2.0123456789abcdef",
           "after a cut QEMU knows the overlay by its hidden name");
    is_int(plan.disks[0].depth, 2, "the chain is one longer");
    vf_plan_release(&plan);

    plan = plan_of("unsafe");
    ok(plan.disks[0].no_flush && plan.disks[1].direct && !plan.disks[2].writeback, "cache modes");
    is_int(plan.warning_count, 1, "one warning");
    has_str(plan.warnings[0], "virtio0 has cache=unsafe", "cache=unsafe");
    vf_plan_release(&plan);

    plan = plan_of("export");
    is_int(plan.warning_count, 1, "one warning");
    has_str(plan.warnings[0], "NBD export", "export");
    vf_plan_release(&plan);

    plan = plan_of("bitmap");
    is_int(plan.warning_count, 1, "one warning");
    has_str(plan.warnings[0], "dirty bitmaps", "bitmap");
    vf_plan_release(&plan);
}

static void
test_states(void)
{
    static const struct {
        const char *status, *migrate;
        bool good, running;
    } states[] = {
        {"running", NULL, true, true},
        {"running", "none", true, true},
        {"running", "completed", true, true},
        {"running", "failed", true, true},
        {"running", "cancelled", true, true},
        {"running", "setup", false, true},
        {"running", "wait-unplug", false, true},
        {"running", "active", false, true},
        {"running", "device", false, true},
        {"running", "pre-switchover", false, true},
        {"running", "cancelling", false, true},
        {"running", "postcopy-active", false, true},
        {"running", "postcopy-paused", false, true},
        {"running", "postcopy-recover", false, true},
        {"paused", NULL, true, false},
        {"prelaunch", NULL, true, false},
        {"io-error", NULL, true, false},
        {"guest-panicked", NULL, true, false},
        {"suspended", NULL, true, false},
        {"shutdown", NULL, true, false},
        {"internal-error", NULL, true, false},
        {"watchdog", NULL, true, false},
        {"debug", NULL, true, false},
        {"inmigrate", NULL, false, false},
        {"postmigrate", NULL, false, false},
        {"finish-migrate", NULL, false, false},
        {"save-vm", NULL, false, false},
        {"restore-vm", NULL, false, false},
        {"colo", NULL, false, false},
    };
    VF_AUTO_JSON struct json_object *fixture = load("running");

    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        VF_AUTO_JSON struct json_object *status = vf_json_strings("status", states[i].status, NULL);
        VF_AUTO_JSON struct json_object *migrate =
            vf_json_strings("status", states[i].migrate, NULL);
        struct vf_plan_input input = input_of(fixture);
        struct vmfrost_error error = {.code = VMFROST_OK};
        struct vf_plan plan;

        input.status = status;
        input.migrate = states[i].migrate ? migrate : NULL;
        bool good = vf_plan_make(&input, &plan, &error);

        ok(good == states[i].good && plan.running == states[i].running &&
               error.code == (good ? VMFROST_OK : VMFROST_FAILED),
           "%s, migration %s", states[i].status, states[i].migrate ? states[i].migrate : "not");
        is_int(plan.included, 1, "the disks are there all the same");
        vf_plan_release(&plan);
    }
}

/* Plans from the "running" fixture with one answer replaced. */
static void
check_replaced(const char *member, const char *text, enum vmfrost_code code, const char *words,
               const char *what)
{
    VF_AUTO_JSON struct json_object *fixture = load("running");
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_plan plan;

    vf_json_add(fixture, member, load_text(text));
    struct vf_plan_input input = input_of(fixture);

    vf_plan_make(&input, &plan, &error);
    is_int(error.code, code, what);
    has_str(error.text, words, what);
    vf_plan_release(&plan);
}

static void
test_replies(void)
{
    check_replaced("status", "{}", VMFROST_FAILED, "query-status", "no state");
    check_replaced("status", "{\"status\":7}", VMFROST_FAILED, "query-status", "a state of 7");
    check_replaced("jobs", "{}", VMFROST_FAILED, "query-jobs", "jobs are no list");
    check_replaced("block_jobs", "1", VMFROST_FAILED, "query-block-jobs", "block jobs no list");
    check_replaced("block", "null", VMFROST_FAILED, "query-block", "no query-block");
    check_replaced("block", "[]", VMFROST_FAILED, "this VM has no disks", "no disks");
    check_replaced("block", "[null,1,[],{}]", VMFROST_FAILED, "no disk can be", "no objects");
    check_replaced("block", "[{\"device\":\"a\",\"qdev\":\"q\",\"inserted\":{}}]", VMFROST_FAILED,
                   "disk a contradict each other: its node (none)", "no node name");
    check_replaced("block",
                   "[{\"device\":\"a\",\"qdev\":\"q\",\"inserted\":{\"node-name\":\"gone\"}}]",
                   VMFROST_FAILED, "its node gone is not in all of them", "unplugged meanwhile");
    check_replaced("nodes", "[]", VMFROST_FAILED, "contradict", "no nodes");
    check_replaced("nodes", "[null,{\"node-name\":1}]", VMFROST_FAILED, "contradict", "odd nodes");
    check_replaced("graph", "{}", VMFROST_FAILED, "x-debug-query-block-graph", "no graph");
    check_replaced("graph", "{\"nodes\":[],\"edges\":[]}", VMFROST_FAILED, "contradict",
                   "empty graph");
    check_replaced("jobs", "[{\"id\":\"s\",\"type\":\"snapshot-save\",\"status\":\"running\"}]",
                   VMFROST_FAILED, "the snapshot-save job \"s\" works on the VM's disks",
                   "a job without edges");
    check_replaced("jobs", "[{\"id\":\"s\",\"type\":\"snapshot-save\",\"status\":\"concluded\"}]",
                   VMFROST_OK, "", "the same, over");
    check_replaced("jobs", "[{\"id\":\"c\",\"type\":\"create\",\"status\":\"running\"}]",
                   VMFROST_OK, "", "an image is being created");
    check_replaced("block_jobs",
                   "[{\"device\":\"virtio0\",\"type\":\"backup\",\"status\":\"running\"}]",
                   VMFROST_FAILED, "the backup job \"virtio0\" works on disk virtio0",
                   "a job known by the drive alone");
    check_replaced("block_jobs",
                   "[{\"device\":\"other\",\"type\":\"backup\",\"status\":\"running\"}]",
                   VMFROST_OK, "", "a job on something else");
}

/* A disk whose nodes are made up: `driver` on a file. */
static struct json_object *
made_up(const char *driver, const char *file, const char *node_more)
{
    VF_AUTO_FREE char *text = vf_printf(
        "{\"status\":{\"status\":\"running\"},\"jobs\":[],\"block_jobs\":[],"
        "\"block\":[{\"device\":\"d\",\"qdev\":\"q\",\"removable\":false,"
        "\"inserted\":{\"node-name\":\"n\",\"ro\":false}}],"
        "\"nodes\":[{\"node-name\":\"n\",\"drv\":\"%s\",\"file\":\"%s\","
        "\"image\":{\"virtual-size\":512}%s},"
        "{\"node-name\":\"f\",\"drv\":\"file\",\"file\":\"%s\",\"image\":{\"virtual-size\":512}}],"
        "\"graph\":{\"nodes\":[{\"id\":1,\"type\":\"block-driver\",\"name\":\"n\"},"
        "{\"id\":2,\"type\":\"block-driver\",\"name\":\"f\"}],"
        "\"edges\":[{\"parent\":1,\"child\":2,\"name\":\"file\",\"perm\":[]}]}}",
        driver, file, node_more, file);

    return load_text(text);
}

static void
check_made_up(const char *driver, const char *file, const char *more, const char *wanted,
              enum vmfrost_code code)
{
    VF_AUTO_JSON struct json_object *fixture = made_up(driver, file, more);
    struct vf_plan_input input = input_of(fixture);
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_plan plan;
    VF_AUTO_FREE char *what = vf_printf("%s on %s%s", driver, file, more);

    vf_plan_make(&input, &plan, &error);
    VF_AUTO_FREE char *disks = summary(&plan);

    is_str(disks, wanted, what);
    is_int(error.code, code, what);
    vf_plan_release(&plan);
}

static void
test_made_up(void)
{
    check_made_up("qcow2", "/a/web.qcow2", "", "d", VMFROST_OK);
    check_made_up("qcow2", "/a/web.qcow2", ",\"active\":false", "d", VMFROST_FAILED);
    check_made_up("qcow2", "/a/web.qcow2", ",\"active\":true", "d", VMFROST_OK);
    check_made_up("qcow2", "/var/tmp/vl.Ab0xYz", "", "d=Temporary", VMFROST_FAILED);
    check_made_up("qcow2", "/elsewhere/vl.Ab0xYz", "", "d=Temporary", VMFROST_FAILED);
    check_made_up("qcow2", "/a/vl.Ab0xY", "", "d", VMFROST_OK);
    check_made_up("qcow2", "/a/vl.qcow2.x", "", "d", VMFROST_OK);
    check_made_up("qcow2", "/a/vl.Ab0xY-", "", "d", VMFROST_OK);
    check_made_up("quorum", "/a/x", "", "d=Filter", VMFROST_FAILED);
    check_made_up("filter-of-the-future", "/a/x", "", "d=Filter", VMFROST_FAILED);
    check_made_up("snapshot-access", "/a/x", "", "d=Filter", VMFROST_FAILED);

    VF_AUTO_JSON struct json_object *no_size = made_up("raw", "/a/x", ",\"image\":{}");
    struct vf_plan_input input = input_of(no_size);
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_plan plan;

    ok(!vf_plan_make(&input, &plan, &error), "a node without a size");
    has_str(error.text, "lacks its driver, file or size", "a node without a size");
    vf_plan_release(&plan);
}

/* Chains that lead back into themselves come from no QEMU, and must not hang us. */
static void
test_ring(void)
{
    static const char text[] =
        "{\"status\":{\"status\":\"running\"},\"jobs\":[],\"block_jobs\":[],"
        "\"block\":[{\"device\":\"d\",\"qdev\":\"q\",\"inserted\":{\"node-name\":\"n\"}}],"
        "\"nodes\":[{\"node-name\":\"n\",\"drv\":\"%s\",\"file\":\"x\","
        "\"image\":{\"virtual-size\":1}}],"
        "\"graph\":{\"nodes\":[{\"id\":1,\"type\":\"block-driver\",\"name\":\"n\"}],"
        "\"edges\":[{\"parent\":1,\"child\":1,\"name\":\"file\"},"
        "{\"parent\":1,\"child\":1,\"name\":\"backing\"}]}}";
    static const char *const drivers[] = {"qcow2", "throttle", "copy-before-write"};

    for (size_t i = 0; i < sizeof drivers / sizeof *drivers; i++) {
        VF_AUTO_FREE char *filled = vf_strdup(text);
        char *mark = strstr(filled, "%s");
        VF_AUTO_FREE char *whole =
            vf_printf("%.*s%s%s", (int)(mark - filled), filled, drivers[i], mark + 2);
        VF_AUTO_JSON struct json_object *fixture = load_text(whole);
        struct vf_plan_input input = input_of(fixture);
        struct vmfrost_error error = {.code = VMFROST_OK};
        struct vf_plan plan;

        vf_plan_make(&input, &plan, &error);
        ok(plan.count == 1, "a ring of %s ends", drivers[i]);
        vf_plan_release(&plan);
    }
}

static void
test_deep(void)
{
    VF_AUTO_JSON struct json_object *nodes = json_object_new_array();
    VF_AUTO_JSON struct json_object *vertices = json_object_new_array();
    VF_AUTO_JSON struct json_object *edges = json_object_new_array();
    VF_AUTO_JSON struct json_object *fixture = made_up("qcow2", "/a/web.qcow2", "");

    for (int i = 0; i < 20; i++) {
        VF_AUTO_FREE char *name = i == 0 ? vf_strdup("n") : vf_printf("b%d", i);
        VF_AUTO_FREE char *node =
            vf_printf("{\"node-name\":\"%s\",\"drv\":\"qcow2\",\"file\":\"/a/%s\","
                      "\"image\":{\"virtual-size\":512}}",
                      name, name);
        VF_AUTO_FREE char *vertex =
            vf_printf("{\"id\":%d,\"type\":\"block-driver\",\"name\":\"%s\"}", i + 1, name);
        VF_AUTO_FREE char *edge =
            vf_printf("{\"parent\":%d,\"child\":%d,\"name\":\"backing\"}", i + 1, i + 2);

        json_object_array_add(nodes, load_text(node));
        json_object_array_add(vertices, load_text(vertex));
        if (i < 19)
            json_object_array_add(edges, load_text(edge));
    }
    struct json_object *graph = json_object_new_object();

    vf_json_add(graph, "nodes", VF_STEAL(vertices));
    vf_json_add(graph, "edges", VF_STEAL(edges));
    vf_json_add(fixture, "nodes", VF_STEAL(nodes));
    vf_json_add(fixture, "graph", graph);

    struct vf_plan_input input = input_of(fixture);
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_plan plan;

    ok(vf_plan_make(&input, &plan, &error), "a deep chain can be cut");
    is_int(plan.disks[0].depth, 19, "its depth");
    is_int(plan.warning_count, 2, "warnings: no file node, deep");
    has_str(plan.warnings[1], "19 backing files", "the warning");
    vf_plan_release(&plan);
}

#define REST " loose=Unattached cd1=Cdrom /machine/peripheral-anon/device[0]=Empty scsicd=Empty"

/* Disks that were plugged in while the VM was running. */
static void
test_hotplugged(void)
{
    static const struct {
        const char *fixture, *hotplugged, *persistent, *include, *exclude, *disks;
        enum vmfrost_code code;
        const char *text;
    } plugs[] = {
        {"drive", "{}", NULL, NULL, NULL, "virtio0 data" REST, VMFROST_OK, NULL},
        {"drive", "[true]", NULL, NULL, NULL, "virtio0 data" REST, VMFROST_OK, NULL},
        {"drive", "{\"/machine/peripheral/vd1/virtio-backend\": false}", NULL, NULL, NULL,
         "virtio0 data" REST, VMFROST_OK, NULL},
        {"drive", "{\"/machine/peripheral/vd1/virtio-backend\": 1}", NULL, NULL, NULL,
         "virtio0 data" REST, VMFROST_OK, NULL},
        {"drive", "{\"/machine/peripheral/vd1/virtio-backend\": true}", NULL, NULL, NULL,
         "virtio0 data=Hotplugged" REST, VMFROST_OK, NULL},
        {"drive", "{\"/machine/peripheral/vd1/virtio-backend\": true}", "[\"data\"]", NULL, NULL,
         "virtio0 data" REST, VMFROST_OK, NULL},
        {"drive", "{\"/machine/peripheral/vd1/virtio-backend\": true}", "[\"gone\", \"vd1\"]", NULL,
         NULL, "virtio0 data" REST, VMFROST_OK, NULL},
        {"drive", "{\"/machine/peripheral/vd1/virtio-backend\": true}", "[\"virtio0\", 1]", NULL,
         NULL, "virtio0 data=Hotplugged" REST, VMFROST_OK, NULL},
        {"drive", "{\"/machine/peripheral/vd1/virtio-backend\": true}", NULL, "vd1", NULL,
         "virtio0 data" REST, VMFROST_OK, NULL},
        {"drive", "{}", NULL, "virtio0", NULL, "virtio0 data" REST, VMFROST_OK, NULL},
        {"drive", "{}", NULL, "vd7", NULL, "virtio0 data" REST, VMFROST_USAGE, "\"vd7\""},
        {"drive", "{\"/machine/peripheral/vd1/virtio-backend\": true}", NULL, "data", "vd1",
         "virtio0 data=Requested" REST, VMFROST_FAILED,
         "disk data cannot be included: it is excluded"},
        {"drive", "{\"/machine/peripheral/vd1/virtio-backend\": true}", "[\"data\"]", NULL, "vd1",
         "virtio0 data=Requested" REST, VMFROST_OK, NULL},
        {"firmware", "{}", NULL, "pflash0", NULL,
         "pflash0=Firmware pflash1=Firmware ide0-hd0 virtio0=ReadOnly", VMFROST_FAILED,
         "disk pflash0 cannot be included: it is firmware flash"},
    };

    for (size_t i = 0; i < sizeof plugs / sizeof *plugs; i++) {
        VF_AUTO_JSON struct json_object *fixture = load(plugs[i].fixture);
        VF_AUTO_JSON struct json_object *hotplugged = load_text(plugs[i].hotplugged);
        VF_AUTO_JSON struct json_object *persistent =
            plugs[i].persistent ? load_text(plugs[i].persistent) : NULL;
        struct vf_plan_input input = input_of(fixture);
        struct vmfrost_error error = {.code = VMFROST_OK};
        struct vf_plan plan;

        input.hotplugged = hotplugged;
        input.persistent = persistent;
        input.include = &plugs[i].include;
        input.include_count = plugs[i].include != NULL;
        input.exclude = &plugs[i].exclude;
        input.exclude_count = plugs[i].exclude != NULL;
        bool made = vf_plan_make(&input, &plan, &error);
        VF_AUTO_FREE char *disks = summary(&plan);

        is_str(disks, plugs[i].disks, plugs[i].hotplugged);
        is_int(error.code, plugs[i].code, "the code");
        ok(made == !plugs[i].code, "made or not");
        if (plugs[i].text)
            has_str(error.text, plugs[i].text, "the reason");
        vf_plan_release(&plan);
    }

    VF_AUTO_JSON struct json_object *fixture = load("drive");
    VF_AUTO_JSON struct json_object *all = json_object_new_object();
    struct json_object *block = vf_json_array(fixture, "block");
    struct vf_plan_input input = input_of(fixture);
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_plan plan;

    for (size_t i = 0; i < vf_json_length(block); i++)
        if (vf_json_string(vf_json_at(block, i), "qdev"))
            vf_json_add_bool(all, vf_json_string(vf_json_at(block, i), "qdev"), true);
    input.hotplugged = all;
    ok(!vf_plan_make(&input, &plan, &error), "a VM with nothing but hotplugged disks: refused");
    has_str(error.text, "--include data", "which tells how to include them");
    VF_AUTO_JSON struct json_object *json = vf_plan_json(&plan);
    struct json_object *disk = vf_json_at(vf_json_array(json, "disks"), 0);

    ok(vf_json_bool(disk, "hotplugged", false), "the document says that a disk is hotplugged");
    ok(!vf_json_bool(disk, "persistent", true), "and not persistent");
    vf_plan_release(&plan);
}

static void
test_device_paths(void)
{
    static const char *const paths[][2] = {
        {"vd0", "/machine/peripheral/vd0"},
        {"/machine/peripheral/vd0", "/machine/peripheral/vd0"},
        {"/machine/peripheral/vd0/virtio-backend", "/machine/peripheral/vd0"},
        {"/machine/peripheral/u/u.0/legacy[0]", "/machine/peripheral/u"},
        {"/machine/peripheral-anon/device[3]/virtio-backend", "/machine/peripheral-anon/device[3]"},
        {"/machine/unattached/device[16]", "/machine/unattached/device[16]"},
        {"/machine/system.flash0", "/machine/system.flash0"},
    };

    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        VF_AUTO_FREE char *path = vf_disk_device_path(paths[i][0]);

        is_str(path, paths[i][1], paths[i][0]);
    }
    ok(!vf_disk_device_path(NULL) && !vf_disk_device_path(""), "no device has no path");
}

/* Two devices of one display name get different ones. */
static void
test_names(void)
{
    VF_AUTO_JSON struct json_object *fixture = load("drive");
    struct json_object *block = vf_json_array(fixture, "block");
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_plan plan;

    vf_json_add_string(vf_json_at(block, 0), "qdev", "data");
    vf_json_add_string(vf_json_at(block, 0), "device", "");
    struct vf_plan_input input = input_of(fixture);

    ok(vf_plan_make(&input, &plan, &error), "device and drive of one name");
    is_str(plan.disks[0].name, "data", "the first one has it");
    is_str(plan.disks[1].name, "vd1", "the second its device's");
    vf_plan_release(&plan);
}

/* A drive can be called as the last resort is. */
static void
test_last_resort(void)
{
    VF_AUTO_JSON struct json_object *fixture = load("drive");
    struct json_object *blocks =
        load_text("[{\"device\":\"disk2\"},{\"device\":\"data\"},{\"qdev\":\"data\"}]");
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_plan plan;

    vf_json_add(fixture, "block", blocks);
    struct vf_plan_input input = input_of(fixture);

    ok(!vf_plan_make(&input, &plan, &error), "nothing but empty drives");
    is_str(plan.disks[2].name, "disk3", "one without a name of its own gets one that is free");
    vf_plan_release(&plan);
}

static void
test_drop(void)
{
    struct vf_plan plan = plan_of("drive");
    struct vmfrost_error error = {.code = VMFROST_OK};

    ok(vf_plan_drop(&plan, 0, VF_OUT_NAME, vf_strdup("it has no name"), &error), "one is left");
    is_int(plan.included, 1, "one is left");
    ok(!vf_plan_drop(&plan, 1, VF_OUT_NAME, vf_strdup("nor has it"), &error), "none is left");
    has_str(error.text, "virtio0: it has no name; data: nor has it", "both are told");
    is_int(error.code, VMFROST_FAILED, "as a refusal");
    vf_plan_release(&plan);
}

static void
test_json(void)
{
    struct vf_plan plan = plan_of("firmware");
    VF_AUTO_JSON struct json_object *json = vf_plan_json(&plan);
    struct json_object *disks = vf_json_array(json, "disks");
    int64_t size = 0;

    is_str(vf_json_string(json, "runState"), "prelaunch", "run state");
    is_int((long long)vf_json_length(disks), 4, "all disks");
    is_str(vf_json_string(vf_json_at(disks, 0), "reason"), "Firmware", "reason");
    is_str(vf_json_string(vf_json_at(disks, 0), "message"), "it is firmware flash", "message");
    ok(!vf_json_bool(vf_json_at(disks, 0), "eligible", true), "not eligible");
    ok(vf_json_bool(vf_json_at(disks, 2), "eligible", false), "eligible");
    ok(!vf_json_string(vf_json_at(disks, 2), "reason"), "without a reason");
    is_str(vf_json_string(vf_json_at(disks, 2), "name"), "ide0-hd0", "name");
    is_str(vf_json_string(vf_json_at(disks, 2), "format"), "qcow2", "format");
    is_str(vf_json_string(vf_json_at(disks, 2), "file"), "web.qcow2", "file");
    ok(vf_json_int(vf_json_at(disks, 2), "size", &size) && size == 64 << 20, "size");
    is_int((long long)vf_json_length(vf_json_array(json, "warnings")), 0, "no warnings");
    vf_plan_release(&plan);

    for (int reason = VF_INCLUDED; reason <= VF_OUT_NAME; reason++)
        ok(vf_reason_name((enum vf_reason)reason)[0] != '\0', "reason %d has a name", reason);
}

int
main(void)
{
    test_fixtures();
    test_facts();
    test_states();
    test_replies();
    test_made_up();
    test_ring();
    test_deep();
    test_names();
    test_last_resort();
    test_hotplugged();
    test_device_paths();
    test_drop();
    test_json();
    return done_testing();
}
