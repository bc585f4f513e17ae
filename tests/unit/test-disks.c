/* SPDX-License-Identifier: MIT
 *
 * What is remembered of a VM's disks, and what a user says of them.
 */
#include <sys/wait.h>

#include "scratch.h"
#include "store/disks.h"

static struct vmfrost_error error;

static struct vmfrost_error *
fresh(void)
{
    memset(&error, 0, sizeof error);
    return &error;
}

#define DISK                                                                                       \
    "\"name\": \"web\", \"file\": \"/d/web.qcow2\", \"format\": \"qcow2\", \"size\": 1048576"
#define SEEN "\"seen\": \"2026-01-31T00:00:00.000000Z\""

static const char good[] =
    "{" SEEN ", \"disks\": [{" DISK ", \"naming\": \"flip\", \"eligible\": true, \"device\": "
    "\"web-dev\"}, {\"name\": \"cd0\", \"eligible\": false, \"reason\": \"Empty\", \"message\": "
    "\"no medium is in it\"}]}";

static void
test_save_and_load(struct vf_store *store)
{
    struct vf_vm vm = vm_at(store, "web");
    VF_AUTO_FREE char *path = vf_printf("%s/disks.json", vm.folder);
    VF_AUTO_JSON struct json_object *disks = json(good);

    ok(!vf_disks_load(&vm, fresh()) && !vf_failed(&error), "nothing was seen: no error");
    ok(!vf_disks_known(&vm, fresh()) && !vf_failed(&error), "and nothing is known");
    ok(vf_disks_save(&vm, disks, fresh()), "disks are saved");
    is_int(mode_of(path), 0600, "mode of the file");

    VF_AUTO_JSON struct json_object *loaded = vf_disks_load(&vm, fresh());
    VF_AUTO_JSON struct json_object *known = vf_disks_known(&vm, fresh());

    ok(json_object_equal(loaded, disks), "and loaded as they were");
    ok(json_object_equal(known, disks), "and known");
    vf_vm_release(&vm);
}

static void
test_damage(struct vf_store *store)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{\"disks\": []}",
        "{\"seen\": 1, \"disks\": []}",
        "{" SEEN "}",
        "{" SEEN ", \"disks\": {}}",
        "{" SEEN ", \"disks\": [1]}",
        "{" SEEN ", \"disks\": [{\"eligible\": false, \"reason\": \"Empty\"}]}",
        "{" SEEN ", \"disks\": [{\"name\": \"\", \"eligible\": false, \"reason\": \"Empty\"}]}",
        "{" SEEN ", \"disks\": [{\"name\": \"a\", \"reason\": \"Empty\"}]}",
        "{" SEEN ", \"disks\": [{\"name\": \"a\", \"eligible\": 0, \"reason\": \"Empty\"}]}",
        "{" SEEN ", \"disks\": [{\"name\": \"a\", \"eligible\": false}]}",
        "{" SEEN ", \"disks\": [{" DISK ", \"eligible\": true}]}",
        "{" SEEN ", \"disks\": [{" DISK ", \"eligible\": true, \"naming\": \"x\"}]}",
        "{" SEEN ", \"disks\": [{" DISK ", \"eligible\": true, \"naming\": \"flip\", "
        "\"device\": 1}]}",
        "{" SEEN ", \"disks\": [{\"name\": \"a\", \"format\": \"raw\", \"size\": 1, \"eligible\": "
        "true, \"naming\": \"flip\"}]}",
        "{" SEEN ", \"disks\": [{\"name\": \"a\", \"eligible\": false, \"reason\": \"Empty\", "
        "\"size\": \"1\"}]}",
        "{" SEEN ", \"disks\": [{\"name\": \"a\", \"eligible\": false, \"reason\": \"Empty\", "
        "\"size\": -1}]}",
    };
    struct vf_vm vm = vm_at(store, "web");
    VF_AUTO_FREE char *path = vf_printf("%s/disks.json", vm.folder);
    VF_AUTO_JSON struct json_object *disks = json(good);

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_file(path, bad[i]);
        ok(!vf_disks_load(&vm, fresh()) && strstr(error.text, path) &&
               strstr(error.text, "damaged"),
           "damaged: %s", bad[i]);
        if (i > 1) {
            VF_AUTO_JSON struct json_object *wrong = json(bad[i]);

            ok(!vf_disks_save(&vm, wrong, fresh()), "... and is not saved");
        }
    }
    ok(!vf_disks_known(&vm, fresh()) && strstr(error.text, path), "what is known is damaged, too");
    ok(vf_disks_save(&vm, disks, fresh()), "it is replaced");
    vf_vm_release(&vm);
}

/* Whoever looks takes no lock: all of them may write at a time. */
static void
test_many_writers(struct vf_store *store)
{
    enum { WRITERS = 4, TIMES = 25 };
    struct vf_vm vm = vm_at(store, "web");
    pid_t writers[WRITERS];
    bool whole = true, written = true;

    for (int i = 0; i < WRITERS; i++) {
        writers[i] = fork();
        if (writers[i] == 0) {
            bool saved = true;

            for (int k = 0; k < TIMES; k++) {
                VF_AUTO_JSON struct json_object *disks = json(good);
                VF_AUTO_FREE char *seen = vf_printf("%*d", 100 * (i + 1), k);

                vf_json_add_string(disks, "seen", seen);
                saved = vf_disks_save(&vm, disks, fresh()) && saved;
            }
            vf_vm_release(&vm);
            vf_store_close(store); /* for valgrind */
            _exit(!saved);
        }
    }
    for (int k = 0; k < WRITERS * TIMES; k++) {
        VF_AUTO_JSON struct json_object *disks = vf_disks_load(&vm, fresh());

        whole = disks && whole;
    }
    for (int i = 0; i < WRITERS; i++) {
        int status = -1;

        written = waitpid(writers[i], &status, 0) == writers[i] && status == 0 && written;
    }
    ok(whole, "whoever reads while four are writing reads a whole file");
    ok(written, "and all of them could write");
    vf_vm_release(&vm);
}

static void
test_declared(struct vf_store *store, const char *scratch)
{
    static const struct {
        const char *disks, *text;
    } bad[] = {
        {"\"/d/web.qcow2\"", "has to be a list"},
        {"{}", "has to be a list"},
        {"[\"/d/web.qcow2\"]", "disk 1 of \"disks\" is no object"},
        {"[{\"file\": \"/d/a\", \"format\": \"raw\"}]", "name"},
        {"[{\"name\": \"\", \"file\": \"/d/a\", \"format\": \"raw\"}]", "name"},
        {"[{\"name\": \"a\\u001b\", \"file\": \"/d/a\", \"format\": \"raw\"}]", "name"},
        {"[{\"name\": \"a\", \"format\": \"raw\"}]", "file"},
        {"[{\"name\": \"a\", \"file\": \"\", \"format\": \"raw\"}]", "file"},
        {"[{\"name\": \"a\", \"file\": \"/d/a\"}]", "format"},
        {"[{\"name\": \"a\", \"file\": \"/d/a\", \"format\": \"qcow3\"}]", "format"},
        {"[{\"name\": \"a\", \"file\": \"/d/a\", \"format\": \"raw\", \"size\": 1}]", "more than"},
        {"[{\"name\": \"a\", \"file\": \"/d/a\", \"format\": \"raw\"}, {\"name\": \"a\", \"file\": "
         "\"/d/b\", \"format\": \"raw\"}]",
         "disk 2 of \"disks\" has the name"},
    };
    VF_AUTO_FREE char *real = vf_printf("%s/real.qcow2", scratch);
    VF_AUTO_FREE char *link = vf_printf("%s/link.qcow2", scratch);

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        VF_AUTO_FREE char *settings =
            vf_printf("{\"qmp\": \"/x/new\", \"disks\": %s}", bad[i].disks);

        ok(!add_vm(store, "new", settings, &error), "refused: %s", bad[i].disks);
        is_int(error.code, VMFROST_USAGE, "as a fault of the arguments");
        has_str(error.text, bad[i].text, "with the reason");
        has_str(error.next, "[{\"name\":", "and an example");
    }

    put_file(real, "");
    ok(symlink(real, link) == 0, "a symbolic link to an image");
    VF_AUTO_FREE char *settings =
        vf_printf("{\"qmp\": \"/x/new\", \"disks\": [{\"name\": \"a\", \"file\": \"%s\", "
                  "\"format\": \"qcow2\"}, {\"name\": \"b\", \"file\": \"nbd://h/x\", \"format\": "
                  "\"raw\"}, {\"name\": \"c\", \"file\": \"%s/gone.raw\", \"format\": \"raw\"}]}",
                  link, scratch);
    VF_AUTO_FREE char *gone = vf_printf("%s/gone.raw", scratch);

    ok(add_vm(store, "new", settings, &error), "disks are declared");
    struct vf_vm vm = vm_at(store, "new");
    VF_AUTO_JSON struct json_object *seen = json(good);

    ok(vf_disks_save(&vm, seen, fresh()), "others were seen");
    VF_AUTO_JSON struct json_object *known = vf_disks_known(&vm, fresh());
    struct json_object *disks = vf_json_array(known, "disks");

    ok(vf_json_bool(known, "declared", false), "the declared ones are what is known");
    is_int((long long)vf_json_length(disks), 3, "all of them");
    is_str(vf_json_string(vf_json_at(disks, 0), "name"), "a", "with their names");
    is_str(vf_json_string(vf_json_at(disks, 0), "file"), real, "the real path of a file");
    is_str(vf_json_string(vf_json_at(disks, 0), "link"), link, "and how the launcher may call it");
    ok(!vf_json_string(vf_json_at(disks, 2), "link"), "which is told where that is another name");
    is_str(vf_json_string(vf_json_at(disks, 0), "format"), "qcow2", "its format");
    ok(vf_json_bool(vf_json_at(disks, 0), "eligible", false), "eligible");
    is_str(vf_json_string(vf_json_at(disks, 1), "file"), "nbd://h/x", "what is no file");
    is_str(vf_json_string(vf_json_at(disks, 2), "file"), gone, "a file that is not there");
    vf_vm_release(&vm);

    ok(add_vm(store, "new", "{\"qmp\": \"/x/new\", \"disks\": []}", &error), "none are declared");
    vm = vm_at(store, "new");
    VF_AUTO_JSON struct json_object *seen_again = vf_disks_known(&vm, fresh());

    ok(json_object_equal(seen_again, seen), "so that those seen are known");
    vf_vm_release(&vm);
}

static void
test_persistent(struct vf_store *store)
{
    static const char *const bad[] = {"\"vd1\"", "[1]", "[\"\"]", "[\"a\\u001b\"]", "{}"};
    struct vf_vm vm;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        VF_AUTO_FREE char *settings =
            vf_printf("{\"qmp\": \"/x/p\", \"persistentDisks\": %s}", bad[i]);

        ok(!add_vm(store, "p", settings, &error) && error.code == VMFROST_USAGE, "refused: %s",
           bad[i]);
        has_str(error.text, "\"persistentDisks\" has to be a list of names", "with the reason");
    }
    ok(add_vm(store, "p", "{\"qmp\": \"/x/p\", \"deadline\": \"1m\"}", &error), "a VM");
    ok(vf_store_set_persistent(store, "p", "vd1", true, fresh()) &&
           vf_store_set_persistent(store, "p", "vd2", true, fresh()) &&
           vf_store_set_persistent(store, "p", "vd1", true, fresh()),
       "disks are persistent, one of them twice");
    vm = vm_at(store, "p");
    is_str(json_object_to_json_string_ext(vm.persistent, JSON_C_TO_STRING_PLAIN),
           "[\"vd2\",\"vd1\"]", "each stands there once");
    is_int(vm.deadline_ms, 60000, "beside the other settings");
    vf_vm_release(&vm);
    ok(vf_store_set_persistent(store, "p", "vd2", false, fresh()) &&
           vf_store_set_persistent(store, "p", "vd1", false, fresh()) &&
           vf_store_set_persistent(store, "p", "vd1", false, fresh()),
       "and no more");
    vm = vm_at(store, "p");
    ok(!vm.persistent, "none is left");
    ok(!vf_store_set_persistent(store, "p", "", true, fresh()), "no name is none");
    ok(!vf_store_set_persistent(store, "nonesuch", "vd1", true, fresh()), "no VM");
    ok(!vf_store_set_persistent(store, "/x/unnamed", "vd1", true, fresh()) &&
           strstr(error.next, "vmfrost add"),
       "nor one without settings");
    int lock = vf_vm_lock(&vm, "test", fresh());

    ok(!vf_store_set_persistent(store, "p", "vd1", true, fresh()) && strstr(error.text, "test"),
       "nor one that somebody works on");
    close(lock);
    vf_vm_release(&vm);
}

static void
test_removal(struct vf_store *store)
{
    struct vf_vm vm = vm_at(store, "web");

    ok(vf_store_remove(store, "web", fresh()), "a VM whose disks are known can be forgotten");
    ok(!is_there(vm.folder), "with what was known");
    vf_vm_release(&vm);

    /* A folder without a name that only holds what was seen gives way to one with a name. */
    vm = vm_at(store, "/x/by-path");
    int lock = vf_vm_lock(&vm, "test", fresh());
    VF_AUTO_JSON struct json_object *disks = json(good);

    ok(vf_disks_save(&vm, disks, fresh()), "disks of a VM that has no name");
    close(lock);
    ok(add_vm(store, "named", "{\"qmp\": \"/x/by-path\"}", &error), "it gets one");
    struct vf_vm named = vm_at(store, "named");
    VF_AUTO_JSON struct json_object *known = vf_disks_known(&named, fresh());

    ok(known && !is_there(vm.folder), "and they are known under it");
    vf_vm_release(&named);
    vf_vm_release(&vm);
}

int
main(void)
{
    char *scratch = scratch_new();
    VF_AUTO_FREE char *state = vf_printf("%s/state", scratch);
    struct vf_store *store = vf_store_open(state, fresh());

    ok(add_vm(store, "web", "{\"qmp\": \"/x/web\"}", &error), "a VM");
    test_save_and_load(store);
    test_damage(store);
    test_many_writers(store);
    test_declared(store, scratch);
    test_persistent(store);
    test_removal(store);
    vf_store_close(store);
    scratch_remove(scratch);
    return done_testing();
}
