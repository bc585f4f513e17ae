/* SPDX-License-Identifier: MIT
 *
 * The state folder and the inventory: which folder, who may write to it, how a VM is found, what a
 * setting may be, adding and removing.
 */
#include <errno.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "scratch.h"
#include "store/journal.h"

static struct vmfrost_error error;

static struct vmfrost_error *
fresh(void)
{
    memset(&error, 0, sizeof error);
    return &error;
}

static void
test_folders(const char *scratch)
{
    VF_AUTO_FREE char *state = vf_printf("%s/a/b/state", scratch);
    VF_AUTO_FREE char *vms = vf_printf("%s/vms", state);
    VF_AUTO_FREE char *link = vf_printf("%s/link", scratch);
    VF_AUTO_FREE char *file = vf_printf("%s/file", scratch);
    VF_AUTO_FREE char *slashes = vf_printf("%s//", state);
    struct vf_store *store = vf_store_open(state, fresh());

    ok(store, "the state folder is made with its parents");
    is_int(mode_of(state), 0700, "mode of the state folder");
    is_int(mode_of(vms), 0700, "mode of its folder for VMs");
    vf_store_close(store);

    ok(symlink(state, link) == 0 && (store = vf_store_open(link, fresh())),
       "the state folder may be a symbolic link");
    vf_store_close(store);
    store = vf_store_open(slashes, fresh());
    ok(store, "slashes at its end are fine");
    vf_store_close(store);

    chmod(state, 0777);
    ok(!vf_store_open(state, fresh()), "a folder that all can write to is refused");
    has_str(error.text, "writable by others", "and that is the reason");
    has_str(error.next, "chmod 0700", "and what to do is said");
    chmod(state, 0770);
    ok(!vf_store_open(state, fresh()), "so is one that a group can write to");
    chmod(state, 0755);
    store = vf_store_open(state, fresh());
    ok(store, "one that others can only read is fine");
    vf_store_close(store);

    if (geteuid() == 0) {
        ok(chown(state, 12345, (gid_t)-1) == 0 && !vf_store_open(state, fresh()),
           "a folder of another user is refused");
        has_str(error.text, "belongs to user 12345", "and the user is named");
        ok(chown(state, 0, (gid_t)-1) == 0, "given back");
    } else {
        ok(true, "a folder of another user is refused # SKIP needs root");
    }

    chmod(state, 0700);
    rmdir(vms);
    ok(put_file(vms, "") && !vf_store_open(state, fresh()), "a file in the place of a folder");
    has_str(error.text, "is no folder", "is told");
    unlink(vms);
    ok(symlink("/tmp", vms) == 0 && !vf_store_open(state, fresh()),
       "below the state folder no symbolic link is followed");
    unlink(vms);
    ok(put_file(file, "") && !vf_store_open(file, fresh()), "a file is no state folder");
    ok(!vf_store_open("", fresh()), "nor is an empty name");
    has_str(error.next, "VMFROST_STATE_DIR", "what to do is said");
}

static void
test_default_folder(const char *scratch)
{
    VF_AUTO_FREE char *state = vf_printf("%s/from-environment", scratch);

    setenv("VMFROST_STATE_DIR", state, 1);
    struct vf_store *store = vf_store_open(NULL, fresh());

    ok(store && is_there(state), "VMFROST_STATE_DIR is the state folder");
    vf_store_close(store);
    unsetenv("VMFROST_STATE_DIR");
}

static void
test_find(struct vf_store *store, const char *scratch)
{
    VF_AUTO_FREE char *run = vf_printf("%s/run", scratch);
    VF_AUTO_FREE char *var_run = vf_printf("%s/var-run", scratch);
    VF_AUTO_FREE char *path = vf_printf("%s/web.qmp", run);
    VF_AUTO_FREE char *linked = vf_printf("%s/./web.qmp", var_run);
    VF_AUTO_FREE char *other = vf_printf("%s/other.qmp", run);
    VF_AUTO_FREE char *gone = vf_printf("%s/var-run/gone/deeper/x.qmp", scratch);
    VF_AUTO_FREE char *gone_real = vf_printf("%s/run/gone/deeper/x.qmp", scratch);
    VF_AUTO_FREE char *settings = vf_printf(
        "{\"qmp\": \"%s\", \"agent\": \"%s/web.qga\", \"deadline\": \"2m\", \"frozenLimit\": "
        "\"1500ms\", \"quiesce\": \"require\", \"method\": \"preopened\", \"emergencyThaw\": "
        "\"sysrq\", \"os\": \"windows\", \"overlayFolder\": \"%s\", \"keepLast\": \"3\", "
        "\"keepHourly\": \"24\", \"keepDaily\": \"7\", \"keepWeekly\": \"4\", \"maxAge\": \"30d\", "
        "\"copySpeed\": \"50M\", \"warnDepth\": \"5\", \"warnAge\": \"2d\", "
        "\"peerUid\": \"64055\"}",
        linked, var_run, var_run);
    VF_AUTO_FREE char *agent = vf_printf("%s/web.qga", run);
    struct vf_vm vm;

    mkdir(run, 0700);
    ok(symlink(run, var_run) == 0, "a folder with two names");
    ok(add_vm(store, "web", settings, &error), "web is added");
    ok(vf_store_find(store, "web", &vm, fresh()), "and found by its name");
    is_str(vm.name, "web", "its name");
    ok(vm.in_inventory, "it is in the inventory");
    is_str(vm.qmp, path, "its socket's path is the real one");
    is_str(vm.agent, agent, "so is that of the agent");
    is_str(vm.overlay_folder, run, "and the overlay folder");
    is_int(vm.deadline_ms, 120000, "deadline");
    is_int(vm.frozen_limit_ms, 1500, "frozen limit");
    ok(vm.quiesce_set && vm.quiesce == VMFROST_QUIESCE_REQUIRE, "quiesce");
    ok(vm.method_set && vm.method == VMFROST_METHOD_PREOPENED, "method");
    is_int(vm.emergency_thaw, VF_EMERGENCY_SYSRQ, "emergency thaw");
    ok(vm.windows, "operating system");
    is_int(vm.retention.keep_last, 3, "how many of the last to keep");
    is_int(vm.retention.keep_hourly, 24, "of how many hours");
    is_int(vm.retention.keep_daily, 7, "of how many days");
    is_int(vm.retention.keep_weekly, 4, "of how many weeks");
    is_int(vm.copy_speed, 50 << 20, "how fast to copy");
    is_int(vm.peer_uid, 64055, "whose QEMU is");
    is_int(vm.warn_depth, 5, "how deep a chain may be");
    is_int(vm.warn_age_ms, INT64_C(2) * 86400000, "how old a snapshot may be");
    is_int(vm.retention.max_age_ms, INT64_C(30) * 86400000, "for how long");
    vf_vm_release(&vm);
    ok(!vm.name && !vm.folder, "a released VM is empty");

    ok(vf_store_find(store, linked, &vm, fresh()), "it is found by another name of its socket");
    is_str(vm.name, "web", "as the same VM");
    vf_vm_release(&vm);

    ok(vf_store_find(store, other, &vm, fresh()), "a path that nobody knows is a VM");
    is_str(vm.name, other, "of that name");
    is_str(vm.qmp, other, "and that socket");
    ok(!vm.in_inventory && !vm.quiesce_set && !vm.method_set, "not in the inventory, nothing set");
    has_str(vm.folder, "/vms/qmp-", "with a folder of its own");
    ok(!is_there(vm.folder), "which looking at it does not make");
    vf_vm_release(&vm);

    vm = vm_at(store, gone);
    is_str(vm.qmp, gone_real, "of a folder that is gone, the part that is there is resolved");
    is_str(vm.name, gone, "but people see what they wrote");
    vf_vm_release(&vm);

    char *old = getcwd(NULL, 0);
    ok(chdir(run) == 0 && vf_store_find(store, "./web.qmp", &vm, fresh()), "relative path");
    is_str(vm.name, "web", "of web");
    vf_vm_release(&vm);

    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "here"};
    VF_AUTO_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    ok(bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
           !vf_store_find(store, "here", &vm, fresh()),
       "a name is no path");
    has_str(error.next, "./here", "but the socket of that name is pointed at");
    ok(chdir(old) == 0, "back");
    free(old);

    ok(vf_store_find(store, "tcp:127.0.0.1:4444", &vm, fresh()), "a TCP address");
    is_str(vm.qmp, "tcp:127.0.0.1:4444", "stays as it is");
    vf_vm_release(&vm);
    ok(!vf_store_find(store, "tcp:127.0.0.1", &vm, fresh()), "one without a port is refused");
    is_int(error.code, VMFROST_USAGE, "as a wrong argument");
    ok(!vf_store_find(store, "tcp:127.0.0.1:70000", &vm, fresh()), "so is a port too large");
    ok(!vf_store_find(store, "/tmp/", &vm, fresh()), "a folder is no socket");
    ok(!vf_store_find(store, "/tmp/a\x1b[2Jb", &vm, fresh()), "nor are control characters a path");
    ok(!strchr(error.text, '\x1b'), "and they do not get into the message");
    ok(!vf_store_find(store, "/tmp/\xff\xfe", &vm, fresh()), "nor is what is no UTF-8");

    ok(!vf_store_find(store, "wbe", &vm, fresh()), "an unknown name");
    is_int(error.code, VMFROST_FAILED, "fails");
    has_str(error.text, "\"web\"", "and the one that may be meant is named");
    has_str(error.next, "vmfrost add wbe --qmp PATH", "and how to add it");
    ok(!vf_store_find(store, "database", &vm, fresh()), "a quite different name");
    ok(!strstr(error.text, "web"), "gets no suggestion");
    ok(!vf_store_find(store, "../web", &vm, fresh()) || strstr(vm.folder, "/qmp-"),
       "a name leads nowhere else");
    vf_vm_release(&vm);
    ok(!vf_store_find(store, "..", &vm, fresh()), "not this one either");
    ok(!vf_store_find(store, "", &vm, fresh()), "nothing is no VM");
}

/* What may not be in a vm.json, whether written by hand or given to add. */
static void
test_settings(struct vf_store *store, const char *state)
{
    static const struct {
        const char *settings, *text, *next;
    } bad[] = {
        {"{}", "\"qmp\" is missing", "socket"},
        {"{\"qmp\": 5}", "\"qmp\" has to be a text", ""},
        {"{\"qmp\": null}", "\"qmp\" has to be a text", ""},
        {"{\"qmp\": \"/x/q\", \"quiet\": \"yes\"}", "no setting \"quiet\"", "frozenLimit"},
        {"{\"qmp\": \"/x/q\", \"deadline\": 300}", "\"deadline\" has to be a text", ""},
        {"{\"qmp\": \"/x/q\", \"copySpeed\": \"0\"}", "\"copySpeed\" cannot", "\"50M\""},
        {"{\"qmp\": \"/x/q\", \"copySpeed\": \"fast\"}", "\"copySpeed\" cannot", "\"50M\""},
        {"{\"qmp\": \"/x/q\", \"deadline\": \"5 minutes\"}", "\"deadline\" cannot", "\"5m\""},
        {"{\"qmp\": \"/x/q\", \"frozenLimit\": \"0s\"}", "\"frozenLimit\" cannot", "above 0"},
        {"{\"qmp\": \"/x/q\", \"quiesce\": \"Auto\"}", "\"quiesce\" cannot",
         "auto, require, prefer, skip"},
        {"{\"qmp\": \"/x/q\", \"method\": \"fast\"}", "\"method\" cannot", "existing, preopened"},
        {"{\"qmp\": \"/x/q\", \"emergencyThaw\": true}", "\"emergencyThaw\" has to", ""},
        {"{\"qmp\": \"/x/q\", \"emergencyThaw\": \"on\"}", "\"emergencyThaw\" cannot",
         "off, sysrq"},
        {"{\"qmp\": \"/x/q\", \"os\": \"beos\"}", "\"os\" cannot", "linux, windows"},
        {"{\"qmp\": \"/x/q\", \"keepLast\": 3}", "\"keepLast\" has to be a text", ""},
        {"{\"qmp\": \"/x/q\", \"keepLast\": \"0\"}", "\"keepLast\" cannot", "from 1"},
        {"{\"qmp\": \"/x/q\", \"keepDaily\": \"all\"}", "\"keepDaily\" cannot", "from 1"},
        {"{\"qmp\": \"/x/q\", \"maxAge\": \"30 days\"}", "\"maxAge\" cannot", "\"5m\""},
    };
    VF_AUTO_FREE char *folder = vf_printf("%s/vms/bad", state);
    VF_AUTO_FREE char *file = vf_printf("%s/vm.json", folder);
    struct vf_vm vm;

    mkdir(folder, 0700);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ok(!add_vm(store, "new", bad[i].settings, &error), "refused: %s", bad[i].settings);
        is_int(error.code, VMFROST_USAGE, "as a wrong argument");
        has_str(error.text, bad[i].text, "naming the key");
        has_str(error.next, bad[i].next, "and what is allowed");
        put_file(file, bad[i].settings);
        ok(!vf_store_find(store, "bad", &vm, fresh()), "nor may it stand in a file");
        is_int(error.code, VMFROST_FAILED, "which is no fault of the arguments");
        has_str(error.text, file, "naming the file");
        has_str(error.text, bad[i].text, "and the key");
    }
    ok(!vf_store_find(store, "new", &vm, fresh()), "nothing was added");
    ok(!add_vm(store, "new", "[]", &error), "settings are an object");
    put_file(file, "{\"qmp\": \"x/q\"}");
    ok(!vf_store_find(store, "bad", &vm, fresh()), "a relative path in a file is refused");
    has_str(error.text, "absolute", "with the reason");
    put_file(file, "{\"qmp\": \"/x/q\", \"overlayFolder\": \"x\"}");
    ok(!vf_store_find(store, "bad", &vm, fresh()), "also for overlays");
    put_file(file, "{\"qmp\": \"/x/q\"");
    ok(!vf_store_find(store, "bad", &vm, fresh()), "half a file is refused");
    has_str(error.text, "damaged", "as damaged");
    ok(!vf_store_find(store, "/y/unknown", &vm, fresh()),
       "it may be the VM of any path: no other folder is used for one");
    has_str(error.text, file, "and the file to repair is named");

    VF_AUTO_JSON struct json_object *vms = vf_store_vms(store, fresh());
    struct json_object *entry = vf_json_at(vms, 0);

    is_str(vf_json_string(entry, "name"), "bad", "it is listed");
    has_str(vf_json_string(vf_json_object(entry, "error"), "message"), "damaged", "as damaged");
    ok(add_vm(store, "bad", "{\"qmp\": \"/x/q\"}", &error), "adding it again repairs it");
    vm = vm_at(store, "/x/q");
    is_str(vm.name, "bad", "for its path, too");
    vf_vm_release(&vm);
    ok(vf_store_remove(store, "bad", fresh()), "and it can be removed");
    ok(!is_there(folder), "with its folder");
}

static bool
save_record(const struct vf_vm *vm, const char *name)
{
    VF_AUTO_JSON struct json_object *record =
        vf_json_strings("name", name, "phase", "Succeeded", "startTime", "2026-01-31T00:00:00Z",
                        NULL);

    return vf_record_save(vm, record, fresh());
}

static void
test_add_and_remove(struct vf_store *store, const char *scratch, const char *state)
{
    VF_AUTO_FREE char *path = vf_printf("%s/run/db.qmp", scratch);
    VF_AUTO_FREE char *path2 = vf_printf("%s/run/db2.qmp", scratch);
    VF_AUTO_FREE char *settings = vf_printf("{\"qmp\": \"%s\"}", path);
    VF_AUTO_FREE char *settings2 = vf_printf("{\"qmp\": \"%s\", \"deadline\": \"9s\"}", path2);
    VF_AUTO_FREE char *folder = vf_printf("%s/vms/db", state);
    VF_AUTO_FREE char *foreign = vf_printf("%s/vms/db/notes.txt", state);
    struct vf_journal journal = VF_JOURNAL_INIT;
    struct vf_vm vm = vm_at(store, path);

    ok(!add_vm(store, "a b", settings, &error), "no name");
    is_int(error.code, VMFROST_USAGE, "is a wrong argument");
    ok(!add_vm(store, "qmp-0123456789abcdef", settings, &error), "nor is what folders are called");
    ok(!add_vm(store, "..", settings, &error), "nor this");

    int lock = vf_vm_lock(&vm, "snapshot db@before", fresh());
    ok(lock >= 0 && save_record(&vm, "before"), "a snapshot of a VM known by its path");
    is_int(mode_of(vm.folder), 0700, "mode of its folder");
    ok(!add_vm(store, "db", settings, &error), "is not added while it is in use");
    has_str(error.text, "snapshot db@before", "and who uses it is said");
    close(lock);
    VF_AUTO_JSON struct json_object *before = vf_store_vms(store, fresh());
    struct json_object *entry = vf_json_at(before, vf_json_length(before) - 1);
    int64_t snapshots = 0;

    is_str(vf_json_string(entry, "name"), path, "it is listed by its path");
    vf_json_int(entry, "snapshots", &snapshots);
    is_int(snapshots, 1, "with its snapshot");
    ok(!vf_json_bool(entry, "interrupted", true), "not interrupted");

    ok(add_vm(store, "db", settings, &error), "then it gets a name");
    ok(!is_there(vm.folder), "its folder");
    vf_vm_release(&vm);
    vm = vm_at(store, path);
    is_str(vm.name, "db", "is renamed");
    ok(vf_record_exists(&vm, "before"), "and its snapshot is there");
    ok(!add_vm(store, "db3", settings, &error), "no second name for a socket");
    has_str(error.text, "\"db\"", "the first is told");
    ok(add_vm(store, "db", settings2, &error), "other settings, and another socket");
    vf_vm_release(&vm);
    vm = vm_at(store, "db");
    is_str(vm.qmp, path2, "replace the former");
    is_int(vm.deadline_ms, 9000, "all of them");
    ok(vf_record_exists(&vm, "before"), "and leave its snapshots alone");

    struct vf_vm old = vm_at(store, path);
    ok(!old.in_inventory, "the old path is free");
    lock = vf_vm_lock(&old, "snapshot", fresh());
    ok(lock >= 0 && save_record(&old, "other"), "and somebody else's by now");
    close(lock);
    ok(!add_vm(store, "db", settings, &error), "so that it cannot be had back");
    has_str(error.text, "other", "because of that snapshot");
    vf_vm_release(&old);
    ok(!vf_store_remove(store, path, fresh()), "nor can it be forgotten");
    old = vm_at(store, path);
    vf_record_remove(&old, "other", fresh());
    ok(vf_store_remove(store, path, fresh()), "before its snapshots are");
    ok(!vf_store_remove(store, path, fresh()), "and only once");
    vf_vm_release(&old);

    ok(!vf_store_remove(store, "db", fresh()), "with a snapshot it is not removed");
    has_str(error.text, "before", "which is named");
    ok(vf_record_remove(&vm, "before", fresh()), "the snapshot is removed");

    VF_AUTO_JSON struct json_object *first = json("{\"operation\": \"snapshot\"}");
    ok(vf_journal_begin(&journal, &vm, first, fresh()), "a journal");
    vf_journal_close(&journal);
    VF_AUTO_JSON struct json_object *with_journal = vf_store_vms(store, fresh());
    ok(vf_json_bool(vf_json_at(with_journal, 0), "interrupted", false), "means interrupted");
    lock = vf_vm_lock(&vm, "recover db", fresh());
    VF_AUTO_JSON struct json_object *while_locked = vf_store_vms(store, fresh());
    ok(!vf_json_bool(vf_json_at(while_locked, 0), "interrupted", true), "unless somebody is at it");
    ok(!vf_store_remove(store, "db", fresh()), "nobody removes a VM in use");
    has_str(error.text, "recover db", "with the reason");
    close(lock);
    ok(!vf_store_remove(store, "db", fresh()), "nor one with a journal");
    has_str(error.next, "vmfrost recover db", "and what to do is said");
    ok(vf_journal_continue(&journal, &vm, fresh()) && vf_journal_end(&journal, fresh()), "ended");

    put_file(foreign, "mine");
    ok(!vf_store_remove(store, "db", fresh()), "a file of somebody else's");
    has_str(error.text, "notes.txt", "is never deleted");
    unlink(foreign);
    ok(vf_store_remove(store, "db", fresh()), "at last it is removed");
    ok(!is_there(folder), "with its folder");
    ok(!vf_store_remove(store, "db", fresh()), "and unknown");
    has_str(error.text, "no VM \"db\"", "as told");
    vf_vm_release(&vm);
}

static void
test_leftovers(struct vf_store *store, const char *state)
{
    VF_AUTO_FREE char *vms = vf_printf("%s/vms", state);
    VF_AUTO_FREE char *removed = vf_printf("%s/.removed-0123456789abcdef", vms);
    VF_AUTO_FREE char *records = vf_printf("%s/records", removed);
    VF_AUTO_FREE char *empty = vf_printf("%s/qmp-0123456789abcdef", vms);
    VF_AUTO_FREE char *new_file = vf_printf("%s/vms/l/vm.json.new", state);

    mkdir(removed, 0700);
    mkdir(records, 0700);
    mkdir(empty, 0700);
    VF_AUTO_JSON struct json_object *list = vf_store_vms(store, fresh());

    ok(list, "what crashes left is no error");
    for (size_t i = 0; i < vf_json_length(list); i++)
        ok(!strstr(vf_json_string(vf_json_at(list, i), "name"), "0123456789abcdef"),
           "nor a VM (%zu)", i);
    ok(add_vm(store, "l", "{\"qmp\": \"/x/l\"}", &error), "adding a VM");
    ok(!is_there(removed), "sweeps what was removed");
    struct vf_vm vm = vm_at(store, "l");

    put_file(new_file, "half");
    int lock = vf_vm_lock(&vm, "test", fresh());
    ok(lock >= 0 && !is_there(new_file),
       "a settings file that was never put in its place is swept");
    close(lock);
    vf_vm_release(&vm);
    ok(vf_store_remove(store, "l", fresh()), "removed");
}

int
main(void)
{
    char *scratch = scratch_new();
    VF_AUTO_FREE char *state = vf_printf("%s/state", scratch);
    struct vf_store *store = vf_store_open(state, fresh());

    test_folders(scratch);
    test_default_folder(scratch);
    test_settings(store, state);
    test_find(store, scratch);
    ok(vf_store_remove(store, "web", fresh()), "web is removed");
    test_add_and_remove(store, scratch, state);
    test_leftovers(store, state);
    vf_store_close(store);
    scratch_remove(scratch);
    return done_testing();
}
