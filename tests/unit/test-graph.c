/* SPDX-License-Identifier: MIT
 *
 * Questions to block graphs that a real QEMU has shown, and to some that none would.
 */
#include "vm/graph.h"

#include "../tap.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"

static struct json_object *
parse(const char *text)
{
    return vf_json_parse(text, strlen(text), 32);
}

/* The graph of a fixture of test-plan. */
static struct json_object *
load(const char *fixture)
{
    VF_AUTO_FREE char *path = vf_printf("tests/unit/fixtures/plan/%s.json", fixture);
    size_t length;
    VF_AUTO_FREE char *text = vf_read_file(path, 1 << 20, &length);

    if (!text) {
        printf("Bail out! cannot read %s from here\n", path);
        exit(EXIT_FAILURE);
    }
    while (length > 0 && text[length - 1] == '\n')
        length--;
    VF_AUTO_JSON struct json_object *whole = vf_json_parse(text, length, 32);

    return json_object_get(vf_json_object(whole, "graph"));
}

static void
test_nodes(void)
{
    VF_AUTO_JSON struct json_object *graph = load("blockdev");

    ok(vf_graph_has(graph, "web"), "a node");
    ok(!vf_graph_has(graph, "gone"), "no such node");
    ok(!vf_graph_has(graph, ""), "no node without a name");
    ok(!vf_graph_has(graph, "/machine/peripheral/vd0/virtio-backend"), "a device is no node");
    is_str(vf_graph_child(graph, "web", "file"), "web-file", "its file");
    ok(vf_graph_child(graph, "web", "backing")[0] == '#', "its backing file");
    is_str(vf_graph_child(graph, "web", "target"), NULL, "it has no such child");
    is_str(vf_graph_child(graph, "proto", "file"), NULL, "a protocol node has none");
    is_str(vf_graph_child(graph, "gone", "file"), NULL, "nor has what is not there");
    ok(vf_graph_in_use(graph, "web"), "a device uses it");
    ok(vf_graph_in_use(graph, "web-file"), "a node uses it");
    ok(!vf_graph_in_use(graph, "idle"), "only the monitor uses it");
    ok(!vf_graph_in_use(graph, "gone"), "nothing uses what is not there");
    ok(vf_graph_has_device(graph, "web"), "... itself");
    ok(!vf_graph_has_device(graph, "web-file"), "... and not the one below");
    ok(!vf_graph_has_device(graph, "idle") && !vf_graph_has_device(graph, "gone"), "nor these");
    ok(!vf_graph_has_job(graph, "web"), "no job");
    is_str(vf_graph_job_near(graph, "web"), NULL, "no job near");
    ok(vf_graph_backend_writes(graph, "/machine/peripheral/vd0/virtio-backend"), "it writes");
    ok(!vf_graph_backend_writes(graph, "web"), "a node is no backend");
    ok(!vf_graph_has_export(graph, "web"), "no export");
}

static void
test_others(void)
{
    VF_AUTO_JSON struct json_object *removable = load("removable");
    VF_AUTO_JSON struct json_object *exported = load("export");

    ok(!vf_graph_backend_writes(removable, "rw-cd"), "a CD-ROM does not write");
    ok(vf_graph_backend_writes(removable, "rm"), "a removable hard disk does");
    ok(vf_graph_has_export(exported, "web"), "an export");
    ok(vf_graph_has_device(exported, "web"), "... beside a device");
}

static void
test_jobs(void)
{
    VF_AUTO_JSON struct json_object *commit = load("commit");
    VF_AUTO_JSON struct json_object *mirror = load("mirror");
    VF_AUTO_JSON struct json_object *backup = load("backup");

    ok(vf_graph_has_job(commit, "top") && vf_graph_has_job(commit, "mid") &&
           vf_graph_has_job(commit, "bot"),
       "a commit works on all its nodes");
    is_str(vf_graph_job_near(commit, "top"), "com", "the job of a chain");
    is_str(vf_graph_job_near(commit, "bot"), "com", "from below, too");
    is_str(vf_graph_job_near(commit, "gone"), NULL, "not of a node that is not there");

    /* query-block does not show the filter that a mirror inserts. */
    ok(vf_graph_has_job(mirror, "web"), "a mirror reads its source");
    is_str(vf_graph_job_near(mirror, "web"), "mir", "mirror");
    is_str(vf_graph_job_near(mirror, "tgt"), "mir", "mirror's target");

    ok(!vf_graph_has_job(backup, "web"), "a backup works on its filter only");
    is_str(vf_graph_job_near(backup, "web"), "bak", "which is above the disk");
    ok(vf_graph_job_is_above(backup, "bak", "web"), "it is that one");
    ok(!vf_graph_job_is_above(backup, "other", "web") &&
           !vf_graph_job_is_above(backup, "bak", "gone"),
       "no other one, and not above what is not there");
    const char *below = vf_graph_child(commit, "bot", "file");

    ok(below && vf_graph_job_is_above(commit, "com", below), "also from further below");
    const char *overlay = vf_graph_overlay(commit, vf_graph_child(commit, "top", "backing"));

    is_str(overlay, "top", "what stands on a backing file");
    is_str(vf_graph_overlay(commit, below), NULL, "on a file stands no overlay");
    is_str(vf_graph_overlay(commit, "gone"), NULL, "nor on what is not there");
}

static void
test_nonsense(void)
{
    static const char *const texts[] = {
        "{}",
        "[]",
        "{\"nodes\":{},\"edges\":7}",
        "{\"nodes\":[null,1,{},{\"id\":\"1\",\"type\":\"block-driver\",\"name\":\"n\"}],"
        "\"edges\":[null]}",
        "{\"nodes\":[{\"id\":1,\"type\":\"block-driver\",\"name\":7}],"
        "\"edges\":[{\"parent\":2,\"child\":1,\"name\":\"file\"}]}",
    };

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        VF_AUTO_JSON struct json_object *graph = parse(texts[i]);

        ok(graph && !vf_graph_child(graph, "n", "file") && !vf_graph_in_use(graph, "n") &&
               !vf_graph_has_job(graph, "n") && !vf_graph_job_near(graph, "n") &&
               !vf_graph_overlay(graph, "n") && !vf_graph_job_is_above(graph, "n", "n") &&
               !vf_graph_backend_writes(graph, "n") && !vf_graph_has_export(graph, "n"),
           "nonsense: %s", texts[i]);
    }
    ok(!vf_graph_has(NULL, "n"), "no graph");

    VF_AUTO_JSON struct json_object *odd =
        parse("{\"nodes\":[{\"id\":1,\"type\":\"block-driver\",\"name\":\"n\"},"
              "{\"id\":2,\"type\":\"block-job\"}],"
              "\"edges\":[{\"parent\":1,\"child\":1,\"name\":\"file\"},{\"parent\":1},"
              "{\"parent\":1,\"child\":9,\"name\":\"backing\"},{\"parent\":9,\"child\":1},"
              "{\"parent\":2,\"child\":1,\"name\":7}]}");

    is_str(vf_graph_child(odd, "n", "file"), "n", "a node that is its own child");
    is_str(vf_graph_child(odd, "n", "backing"), NULL, "an edge to nothing");
    is_str(vf_graph_job_near(odd, "n"), "", "a job without a name, and a ring that ends");
    ok(vf_graph_has_job(odd, "n"), "a job without a name");
}

int
main(void)
{
    test_nodes();
    test_others();
    test_jobs();
    test_nonsense();
    return done_testing();
}
