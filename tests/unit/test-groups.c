/* SPDX-License-Identifier: MIT
 *
 * The marks of groups: made, read, and kept for as long as a journal names them.
 */
#include "scratch.h"
#include "store/groups.h"
#include "store/journal.h"

#define ID "0123456789abcdef"
#define OTHER "fedcba9876543210"

static struct vmfrost_error error;
static struct vf_store *store;
static char *folder;

static bool
mark(const char *id)
{
    VF_AUTO_JSON struct json_object *known = vf_json_strings("id", id, NULL);

    memset(&error, 0, sizeof error);
    return vf_group_mark(store, id, known, &error);
}

/* The journal of an operation on this VM, which is left there. */
static void
interrupt(const char *name, const char *id)
{
    VF_AUTO_FREE char *settings = vf_printf("{\"qmp\": \"/run/%s.qmp\"}", name);
    struct vf_journal journal = VF_JOURNAL_INIT;
    VF_AUTO_JSON struct json_object *first =
        vf_json_strings("operation", "snapshot", "group", id, NULL);

    add_vm(store, name, settings, &error);
    struct vf_vm vm = vm_at(store, name);

    if (!vf_journal_begin(&journal, &vm, first, &error))
        exit(EXIT_FAILURE);
    vf_journal_close(&journal);
    vf_vm_release(&vm);
}

static void
remove_journal(const char *name)
{
    VF_AUTO_FREE char *path = vf_printf("%s/vms/%s/journal", folder, name);

    unlink(path);
}

static void
test_marks(void)
{
    VF_AUTO_FREE char *path = vf_printf("%s/groups/" ID ".json", folder);

    ok(!vf_group_is_marked(store, ID), "nothing is marked at first");
    ok(!vf_group_mark_load(store, ID), "... and there is nothing to read");
    vf_group_marks_sweep(store);
    ok(mark(ID) && vf_group_is_marked(store, ID) && is_there(path), "a mark");
    VF_AUTO_JSON struct json_object *known = vf_group_mark_load(store, ID);

    is_str(vf_json_string(known, "id"), ID, "... can be read");
    ok(!vf_group_is_marked(store, OTHER), "... and is that of its group alone");
    ok(!vf_group_is_marked(store, "../vms/web/vm") && !vf_group_mark_load(store, "../storage"),
       "what is no id leads nowhere");
    put_file(path, "{");
    ok(vf_group_is_marked(store, ID) && !vf_group_mark_load(store, ID),
       "a damaged one is one all the same: that it is there is what counts");
}

static void
test_sweep(void)
{
    VF_AUTO_FREE char *leftover = vf_printf("%s/groups/" OTHER ".json.new", folder);
    VF_AUTO_FREE char *foreign = vf_printf("%s/groups/README", folder);
    VF_AUTO_FREE char *damaged = vf_printf("%s/vms/cache/journal", folder);

    interrupt("web", ID);
    interrupt("db", ID);
    interrupt("cache", OTHER);
    mark(ID);
    mark(OTHER);
    put_file(foreign, "not ours");
    remove_journal("web");
    vf_group_marks_sweep(store);
    ok(vf_group_is_marked(store, ID), "a mark stays while one of its members is not recovered");
    remove_journal("db");
    vf_group_marks_sweep(store);
    ok(!vf_group_is_marked(store, ID), "... and goes when none is left");
    ok(vf_group_is_marked(store, OTHER), "that of another group stays");
    ok(is_there(foreign), "what is no mark is left alone");

    put_file(damaged, "{\"operation\": \"snapshot\"}\nnonsense\n{}\n");
    vf_group_marks_sweep(store);
    ok(vf_group_is_marked(store, OTHER), "a journal that cannot be read may name any group");
    put_file(leftover, "{");
    remove_journal("cache");
    vf_group_marks_sweep(store);
    ok(!vf_group_is_marked(store, OTHER) && !is_there(leftover), "what a crash left goes, too");
}

static void
test_failures(void)
{
    VF_AUTO_FREE char *groups = vf_printf("%s/groups", folder);
    VF_AUTO_FREE char *foreign = vf_printf("%s/README", groups);
    VF_AUTO_FREE char *blocking = vf_printf("%s/" ID ".json.new", groups);

    mkdir(blocking, 0700);
    ok(!mark(ID) && *error.text, "a mark that cannot be written: %s", error.text);
    ok(!vf_group_is_marked(store, ID), "... is not there");
    rmdir(blocking);
    unlink(foreign);
    rmdir(groups);
    put_file(groups, "");
    ok(!mark(ID) && strstr(error.text, "is no folder"), "a file in the folder's place");
}

int
main(void)
{
    folder = scratch_new();
    store = vf_store_open(folder, &error);
    test_marks();
    test_sweep();
    test_failures();
    vf_store_close(store);
    scratch_remove(folder);
    return done_testing();
}
