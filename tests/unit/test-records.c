/* SPDX-License-Identifier: MIT
 *
 * Records: saved and loaded, listed by age, and what happens with damaged ones.
 */
#include <errno.h>

#include "scratch.h"

static struct vmfrost_error error;

static struct vmfrost_error *
fresh(void)
{
    memset(&error, 0, sizeof error);
    return &error;
}

static bool
save(const struct vf_vm *vm, const char *name, const char *start, int64_t sequence)
{
    VF_AUTO_JSON struct json_object *record =
        vf_json_strings("name", name, "phase", "InProgress", "startTime", start, NULL);

    if (sequence)
        vf_json_add_int(record, "sequence", sequence);
    return vf_record_save(vm, record, fresh());
}

static void
test_save(const struct vf_vm *vm)
{
    VF_AUTO_FREE char *records = vf_printf("%s/records", vm->folder);
    VF_AUTO_FREE char *file = vf_printf("%s/before.json", records);
    VF_AUTO_JSON struct json_object *list = vf_record_list(vm, fresh());

    is_int((long long)vf_json_length(list), 0, "no snapshots, no records");
    ok(!vf_record_exists(vm, "before"), "there is none");
    ok(!vf_record_load(vm, "before", fresh()), "none to load");
    has_str(error.text, "has no snapshot \"before\"", "which is an error");

    ok(save(vm, "before", "2026-01-31T10:00:00Z", 0), "saved: %s", error.text);
    is_int(mode_of(records), 0700, "mode of the folder");
    is_int(mode_of(file), 0600, "mode of the file");
    ok(vf_record_exists(vm, "before"), "there it is");
    VF_AUTO_JSON struct json_object *record = vf_record_load(vm, "before", fresh());

    is_str(vf_json_string(record, "phase"), "InProgress", "loaded");
    vf_json_add_string(record, "phase", "Succeeded");
    vf_json_add_string(record, "path", "/a/b");
    ok(vf_record_save(vm, record, fresh()), "saved again");
    VF_AUTO_JSON struct json_object *again = vf_record_load(vm, "before", fresh());

    is_str(vf_json_string(again, "phase"), "Succeeded", "and changed");

    char text[256] = "";
    FILE *stream = fopen(file, "re");
    size_t got = stream ? fread(text, 1, sizeof text - 1, stream) : 0;

    has_str(text, "\n  \"path\": \"/a/b\"", "the file is made for people to read");
    ok(got > 0 && text[got - 1] == '\n', "and ends with a newline");
    if (stream)
        fclose(stream);

    ok(!vf_record_load(vm, "befroe", fresh()), "a mistyped name");
    has_str(error.text, "\"before\"", "gets the right one suggested");
    ok(!vf_record_load(vm, "../lock", fresh()), "no name leads out of the folder");
    is_int(error.code, VMFROST_USAGE, "as a wrong argument");
    ok(!vf_record_exists(vm, "../lock"), "nor does it exist");
    ok(!vf_record_remove(vm, "../../vm", fresh()), "nor is it removed");
    ok(!save(vm, "../x", "2026-01-31T10:00:00Z", 0), "nor saved");
    ok(!save(vm, "", "2026-01-31T10:00:00Z", 0), "nor one without a name");
    ok(!save(vm, "x", NULL, 0) && !vf_record_exists(vm, "x"),
       "what could not be loaded is not saved");
    VF_AUTO_JSON struct json_object *no_utf8 =
        vf_json_strings("name", "x", "phase", "Failed", "startTime", "2026", "path",
                        "/images/\xff.raw", NULL);
    ok(!vf_record_save(vm, no_utf8, fresh()), "also if a text in it is no UTF-8");
    has_str(error.text, "UTF-8", "as told");
    char *large = vf_alloc(1200 * 1000 + 1);

    memset(large, 'x', 1200 * 1000);
    VF_AUTO_JSON struct json_object *too_large =
        vf_json_strings("name", "x", "phase", "Failed", "startTime", "2026", "text", large, NULL);
    free(large);
    ok(!vf_record_save(vm, too_large, fresh()), "also if it is too large");

    ok(vf_record_remove(vm, "before", fresh()), "removed");
    ok(!vf_record_exists(vm, "before"), "gone");
    ok(vf_record_remove(vm, "before", fresh()), "what is gone may be removed again");
}

static const char *
name_at(struct json_object *list, size_t index)
{
    return vf_json_string(vf_json_at(list, index), "name");
}

static void
test_list(const struct vf_vm *vm)
{
    ok(save(vm, "c", "2026-01-31T10:00:00Z", 2) && save(vm, "d", "2026-01-31T10:00:00Z", 1) &&
           save(vm, "a", "2026-02-01T10:00:00Z", 0) && save(vm, "b", "2025-12-31T23:59:59Z", 9),
       "four records");
    VF_AUTO_JSON struct json_object *list = vf_record_list(vm, fresh());

    is_int((long long)vf_json_length(list), 4, "are listed");
    is_str(name_at(list, 0), "b", "the oldest first");
    is_str(name_at(list, 1), "d", "then by sequence");
    is_str(name_at(list, 2), "c", "where the time is equal");
    is_str(name_at(list, 3), "a", "the newest last");
}

/* After test_list(). */
static void
test_damage(const struct vf_vm *vm)
{
    static const struct {
        const char *content, *why;
    } damages[] = {
        {"", "no JSON object"},
        {"{\"name\": \"e\", \"pha", "no JSON object"},
        {"[1]", "no JSON object"},
        {"{\"name\": \"e\", \"phase\": \"Succeeded\", \"startTime\": \"2026\"} {}", "no JSON"},
        {"{\"name\": \"f\", \"phase\": \"Succeeded\", \"startTime\": \"2026\"}", "\"name\""},
        {"{\"name\": \"e\", \"phase\": 5, \"startTime\": \"2026\"}", "\"phase\""},
        {"{\"name\": \"e\", \"phase\": \"Succeeded\"}", "\"startTime\""},
    };
    VF_AUTO_FREE char *file = vf_printf("%s/records/e.json", vm->folder);
    VF_AUTO_FREE char *target = vf_printf("%s/records/a.json", vm->folder);
    VF_AUTO_FREE char *new_file = vf_printf("%s/records/a.json.new", vm->folder);
    VF_AUTO_FREE char *foreign = vf_printf("%s/records/README", vm->folder);

    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        put_file(file, damages[i].content);
        ok(!vf_record_load(vm, "e", fresh()), "damaged: %s", damages[i].content);
        has_str(error.text, damages[i].why, "what is wrong with it");
        has_str(error.text, file, "and where");
        ok(vf_record_exists(vm, "e"), "it is there all the same");
        VF_AUTO_JSON struct json_object *list = vf_record_list(vm, fresh());

        is_int((long long)vf_json_length(list), 5, "it hides no other");
        is_str(name_at(list, 0), "e", "and is listed first");
        is_str(vf_json_string(vf_json_at(list, 0), "phase"), "Unknown", "as what it is");
        has_str(vf_json_string(vf_json_object(vf_json_at(list, 0), "error"), "message"),
                damages[i].why, "with the reason");
    }
    unlink(file);
    ok(symlink(target, file) == 0 && !vf_record_load(vm, "e", fresh()),
       "a symbolic link is no record");
    unlink(file);
    ok(mkfifo(file, 0600) == 0 && !vf_record_load(vm, "e", fresh()), "nor is a FIFO");
    unlink(file);
    ok(truncate(target, 2 << 20) == 0 && !vf_record_load(vm, "a", fresh()), "nor a huge file");
    has_str(error.text, "too large", "as told");
    ok(vf_record_remove(vm, "a", fresh()), "a damaged record can be removed");

    /* Killed between creating the new file and renaming it. */
    ok(save(vm, "a", "2026-02-01T10:00:00Z", 0) && put_file(new_file, "{\"name\": \"a\", "),
       "a crash while a record was saved");
    VF_AUTO_JSON struct json_object *old = vf_record_load(vm, "a", fresh());
    ok(old, "left the old one");
    VF_AUTO_JSON struct json_object *list = vf_record_list(vm, fresh());
    is_int((long long)vf_json_length(list), 4, "and no other");
    ok(save(vm, "a", "2026-02-02T10:00:00Z", 0), "it can be saved again");
    put_file(new_file, "x");
    int lock = vf_vm_lock(vm, "test", fresh());
    ok(lock >= 0 && !is_there(new_file), "who has the lock sweeps");
    close(lock);
    put_file(foreign, "hello");
    VF_AUTO_JSON struct json_object *with_foreign = vf_record_list(vm, fresh());
    is_int((long long)vf_json_length(with_foreign), 4, "other files are no records");
}

int
main(void)
{
    char *scratch = scratch_new();
    struct vf_store *store = vf_store_open(scratch, fresh());
    struct vf_vm vm = vm_at(store, "/tmp/records.qmp");
    int lock = vf_vm_lock(&vm, "test", fresh());

    ok(lock >= 0, "locked");
    test_save(&vm);
    test_list(&vm);
    close(lock);
    test_damage(&vm);
    vf_vm_release(&vm);
    vf_store_close(store);
    scratch_remove(scratch);
    return done_testing();
}
