/* SPDX-License-Identifier: MIT
 *
 * Storage classes: which one a disk is of, what they may say, and how they are changed.
 */
#include <sys/wait.h>

#include "scratch.h"
#include "store/classes.h"

static struct vmfrost_error error;

static struct vmfrost_error *
fresh(void)
{
    memset(&error, 0, sizeof error);
    return &error;
}

static bool
set(struct vf_store *store, const char *name, const char *changes)
{
    VF_AUTO_JSON struct json_object *object = json(changes);

    return vf_class_set(store, name, object, fresh());
}

/* All classes as one text. Owned by the caller. */
static char *
listed(struct vf_store *store)
{
    VF_AUTO_JSON struct json_object *array = vf_classes_json(store, fresh());

    return vf_strdup(array ? json_object_to_json_string_ext(array, JSON_C_TO_STRING_NOSLASHESCAPE)
                           : "");
}

static void
test_match(struct vf_store *store)
{
    static const struct {
        const char *path, *protocol, *format, *class;
    } disks[] = {
        {"/scratch/a.qcow2", "file", "qcow2", "scratch"},
        {"/scratch/deeper/a.raw", "file", "raw", "scratch"},
        {"/scratch/a.raw", "host_device", "raw", "lvm"},
        {"/scratches/a.qcow2", "file", "qcow2", "rest"},
        {"/dev/vg/web", "host_device", "raw", "lvm"},
        {"/dev/vg/web", "host_device", "qcow2", "rest"},
        {"nbd://host/x", "nbd", "raw", "net"},
        {"rbd:pool/x", "rbd", "raw", "rest"},
        {"/a/b?c", "file", "qcow2", "odd"},
        {"/a/b\\xc", "file", "qcow2", "rest"},
        {"", "", "", "rest"},
    };
    VF_CLEANUP(vf_classes_release) struct vf_classes classes = {NULL, 0};

    ok(vf_classes_load(store, &classes, fresh()) && classes.count == 0, "no file: no classes");
    ok(!vf_class_of(&classes, "/a", "file", "raw"), "so that no disk is of one");
    ok(set(store, "scratch",
           "{\"match\": {\"path\": \"/scratch/*\", \"protocol\": \"file\"}, "
           "\"snapshot\": \"no\"}") &&
           set(store, "lvm",
               "{\"match\": {\"protocol\": \"host_device\", \"format\": \"raw\"}, "
               "\"overlayFolder\": \"/overlays\"}") &&
           set(store, "net", "{\"match\": {\"path\": \"*://*\"}, \"minFree\": \"10GiB\"}") &&
           set(store, "odd", "{\"match\": {\"path\": \"/a/b[?]c\"}}") &&
           set(store, "rest",
               "{\"overlayOptions\": {\"clusterSize\": \"128k\", \"extendedL2\": "
               "true, \"preallocation\": \"metadata\"}}"),
       "classes are made");
    ok(vf_classes_load(store, &classes, fresh()), "and read");
    is_int((long long)classes.count, 5, "all of them");
    for (size_t i = 0; i < sizeof disks / sizeof *disks; i++) {
        const struct vf_class *class =
            vf_class_of(&classes, disks[i].path, disks[i].protocol, disks[i].format);

        is_str(class ? class->name : NULL, disks[i].class, disks[i].path);
    }

    const struct vf_class *scratch = vf_class_named(&classes, "scratch"),
                          *lvm = vf_class_named(&classes, "lvm"),
                          *net = vf_class_named(&classes, "net"),
                          *rest = vf_class_named(&classes, "rest");

    ok(scratch->left_out && !lvm->left_out, "which are left out");
    is_str(lvm->overlay_folder, "/overlays", "where overlays go");
    ok(!net->overlay_folder, "or not");
    is_int(net->min_free, INT64_C(10) << 30, "what has to be free");
    is_int(lvm->min_free, -1, "or not");
    is_int(rest->cluster_size, 128 << 10, "cluster size");
    ok(rest->extended_l2 && !net->extended_l2, "extended L2 entries");
    is_str(rest->preallocation, "metadata", "preallocation");
    ok(!net->preallocation && net->cluster_size == 0, "or none of it");
    ok(!vf_class_named(&classes, "nonesuch"), "no class of a name that is none's");
}

static void
test_change(struct vf_store *store, const char *state)
{
    VF_AUTO_FREE char *path = vf_printf("%s/storage.json", state);
    VF_AUTO_FREE char *before = listed(store);

    is_int(mode_of(path), 0600, "mode of the file");
    ok(!set(store, "scratch", "{\"snapshot\": \"maybe\"}"), "a bad value is refused");
    is_int(error.code, VMFROST_USAGE, "as a fault of the arguments");
    has_str(error.text, "\"scratch\": \"snapshot\" is one of: yes, no", "that names it");
    VF_AUTO_FREE char *after = listed(store);

    is_str(after, before, "and changes nothing");
    ok(set(store, "scratch",
           "{\"match\": {\"protocol\": null, \"format\": \"raw\"}, \"snapshot\": "
           "\"\"}"),
       "members are changed and taken back");
    VF_AUTO_JSON struct json_object *array = vf_classes_json(store, fresh());

    is_str(json_object_to_json_string_ext(vf_json_at(array, 0), JSON_C_TO_STRING_NOSLASHESCAPE),
           "{\"name\":\"scratch\",\"match\":{\"path\":\"/scratch/*\",\"format\":\"raw\"}}",
           "the others stay, and so does its place");
    ok(set(store, "scratch", "{\"match\": {\"path\": \"\", \"format\": \"\"}}"), "all of it");
    VF_AUTO_JSON struct json_object *bare = vf_classes_json(store, fresh());

    is_str(json_object_to_json_string_ext(vf_json_at(bare, 0), JSON_C_TO_STRING_PLAIN),
           "{\"name\":\"scratch\"}", "leaves nothing");
    ok(vf_class_remove(store, "scratch", fresh()), "a class is removed");
    ok(!vf_class_remove(store, "scratch", fresh()), "but once");
    has_str(error.text, "no storage class \"scratch\"", "it is not there");
    ok(!set(store, "a/b", "{}") && error.code == VMFROST_USAGE, "a name is a name");
    ok(!set(store, "new", "{\"name\": \"other\"}"), "and cannot be changed");
    ok(!set(store, "new", "[]"), "an object is an object");
    ok(!vf_class_set(store, "new", NULL, fresh()), "and no JSON is none");
}

static void
test_bad(struct vf_store *store, const char *state)
{
    static const struct {
        const char *class, *text; /* its members; part of the error */
    } bad[] = {
        {"\"match\": []", "\"match\" has to be an object"},
        {"\"match\": {\"size\": \"1\"}", "match by \"size\""},
        {"\"match\": {\"path\": 1}", "\"path\" has to be a text"},
        {"\"match\": {\"path\": \"\"}", "\"path\" has to be a text"},
        {"\"snapshot\": true", "\"snapshot\" is one of"},
        {"\"overlayFolder\": \"x\"", "absolute"},
        {"\"overlayFolder\": null", "text"},
        {"\"overlayOptions\": 1", "\"overlayOptions\" has to be an object"},
        {"\"overlayOptions\": {\"lazyRefcounts\": true}", "no option \"lazyRefcounts\""},
        {"\"overlayOptions\": {\"clusterSize\": 65536}", "\"clusterSize\" has to be a size"},
        {"\"overlayOptions\": {\"clusterSize\": \"0\"}", "cannot be 0"},
        {"\"overlayOptions\": {\"clusterSize\": \"100k\"}", "power of two"},
        {"\"overlayOptions\": {\"clusterSize\": \"256\"}", "power of two"},
        {"\"overlayOptions\": {\"clusterSize\": \"4M\"}", "power of two"},
        {"\"overlayOptions\": {\"extendedL2\": \"yes\"}", "true or false"},
        {"\"overlayOptions\": {\"extendedL2\": true, \"clusterSize\": \"8k\"}", "at least 16k"},
        {"\"overlayOptions\": {\"preallocation\": \"some\", \"extendedL2\": true}", "one of: off"},
        {"\"overlayOptions\": {\"preallocation\": \"full\"}", "needs \"extendedL2\""},
        {"\"minFree\": 1", "\"minFree\" has to be a size"},
        {"\"minFree\": \"lots\"", "\"minFree\" has to be a size"},
        {"\"colour\": \"blue\"", "no member \"colour\""},
    };
    static const struct {
        const char *file, *text;
    } damaged[] = {
        {"", "no JSON array"},
        {"{}", "no JSON array"},
        {"[1]", "class 1 has no name"},
        {"[{\"name\": \"a\"}, {\"match\": {}}]", "class 2 has no name"},
        {"[{\"name\": \"a/b\"}]", "class 1 has no name"},
        {"[{\"name\": \"a\"}, {\"name\": \"a\"}]", "twice"},
    };
    VF_AUTO_FREE char *path = vf_printf("%s/storage.json", state);

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        VF_CLEANUP(vf_classes_release) struct vf_classes classes = {NULL, 0};
        VF_AUTO_FREE char *file =
            vf_printf("[{\"name\": \"good\"}, {\"name\": \"bad\", %s}]", bad[i].class);

        put_file(path, file);
        ok(!vf_classes_load(store, &classes, fresh()) && classes.count == 0, "refused: %s",
           bad[i].class);
        is_int(error.code, VMFROST_FAILED, "in a file");
        has_str(error.text, path, "which is named");
        has_str(error.text, "class \"bad\"", "with the class");
        has_str(error.text, bad[i].text, "and what is wrong");
    }
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        VF_CLEANUP(vf_classes_release) struct vf_classes classes = {NULL, 0};

        put_file(path, damaged[i].file);
        ok(!vf_classes_load(store, &classes, fresh()), "damaged: %s", damaged[i].file);
        has_str(error.text, path, "the file is named");
        has_str(error.text, damaged[i].text, "and what is wrong");
        ok(!vf_classes_json(store, fresh()) && !set(store, "x", "{}"), "nor is it written again");
    }
    unlink(path);
}

/* Whoever changes a class reads the others first. */
static void
test_many_writers(struct vf_store *store)
{
    enum { WRITERS = 4, TIMES = 10 };
    pid_t writers[WRITERS];
    bool written = true;

    for (int i = 0; i < WRITERS; i++) {
        writers[i] = fork();
        if (writers[i] == 0) {
            bool made = true;

            for (int k = 0; k < TIMES; k++) {
                VF_AUTO_FREE char *name = vf_printf("c%d-%d", i, k);

                made = set(store, name, "{}") && made;
            }
            vf_store_close(store); /* for valgrind */
            _exit(!made);
        }
    }
    for (int i = 0; i < WRITERS; i++) {
        int status = -1;

        written = waitpid(writers[i], &status, 0) == writers[i] && status == 0 && written;
    }
    VF_AUTO_JSON struct json_object *array = vf_classes_json(store, fresh());

    ok(written, "four write at a time");
    is_int((long long)vf_json_length(array), WRITERS * TIMES, "and nothing is lost");
}

int
main(void)
{
    char *scratch = scratch_new();
    VF_AUTO_FREE char *state = vf_printf("%s/state", scratch);
    struct vf_store *store = vf_store_open(state, fresh());

    test_match(store);
    test_change(store, state);
    test_bad(store, state);
    test_many_writers(store);
    vf_store_close(store);
    scratch_remove(scratch);
    return done_testing();
}
