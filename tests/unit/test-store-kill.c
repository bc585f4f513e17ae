/* SPDX-License-Identifier: MIT
 *
 * Killed between any two system calls: each thing that the store does is done by a process that is
 * traced and killed before its first system call, before its second, and so on until it gets
 * through. After each of these deaths the store must be sound, and doing the same again must work.
 *
 * And overtaken between any two: a process that takes a lock is stopped there, another one changes
 * the VM, and then it goes on.
 */
#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#include "scratch.h"
#include "store/journal.h"

static const char settings[] = "{\"qmp\": \"/tmp/kill.qmp\", \"deadline\": \"9s\"}";

static struct vmfrost_error error;

static struct vmfrost_error *
fresh(void)
{
    memset(&error, 0, sizeof error);
    return &error;
}

/* What is done to a fresh store before, what the victim does, and what must hold when it was
 * killed (`through` false) or got through. All return false if something is wrong. */
struct scenario {
    const char *name;
    bool (*before)(struct vf_store *store);
    bool (*act)(struct vf_store *store);
    bool (*check)(struct vf_store *store, bool through);
};

static bool
nothing(struct vf_store *store)
{
    return store;
}

static bool
add(struct vf_store *store)
{
    return add_vm(store, "kill", settings, &error);
}

static bool
save(const struct vf_vm *vm, const char *phase)
{
    VF_AUTO_JSON struct json_object *record =
        vf_json_strings("name", "s", "phase", phase, "startTime", "2026-01-31T00:00:00Z", NULL);

    return vf_record_save(vm, record, fresh());
}

/* Takes the VM's lock by its path and saves a record. */
static bool
save_by_path(struct vf_store *store)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");
    VF_AUTO_FD int lock = vf_vm_lock(&vm, "save", fresh());

    return lock >= 0 && save(&vm, "InProgress");
}

static bool
save_again(struct vf_store *store)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");
    VF_AUTO_FD int lock = vf_vm_lock(&vm, "save", fresh());

    return lock >= 0 && save(&vm, "Succeeded");
}

static bool
add_again(struct vf_store *store)
{
    return add_vm(store, "kill", "{\"qmp\": \"/tmp/killed.qmp\"}", &error);
}

static bool
remove_vm(struct vf_store *store)
{
    return vf_store_remove(store, "kill", fresh());
}

static bool
remove_record(struct vf_store *store)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");
    VF_AUTO_FD int lock = vf_vm_lock(&vm, "delete", fresh());

    return lock >= 0 && vf_record_remove(&vm, "s", fresh());
}

static bool
keep_journal(struct vf_store *store)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");
    VF_AUTO_FD int lock = vf_vm_lock(&vm, "snapshot", fresh());
    VF_AUTO_JSON struct json_object *first = json("{\"operation\": \"snapshot\"}");
    VF_AUTO_JSON struct json_object *entry = json("{\"state\": \"freezing\"}");
    struct vf_journal journal = VF_JOURNAL_INIT;
    bool done = lock >= 0;

    /* As a recovery would. */
    if (done && vf_journal_exists(&vm))
        done = vf_journal_continue(&journal, &vm, fresh()) && vf_journal_end(&journal, fresh());
    done = done && vf_journal_begin(&journal, &vm, first, fresh()) &&
           vf_journal_write(&journal, entry, fresh()) && vf_journal_end(&journal, fresh());
    vf_journal_close(&journal);
    return done;
}

/* What is listed is sound, and the VM is there once at most. */
static bool
is_sound(struct vf_store *store)
{
    VF_AUTO_JSON struct json_object *vms = vf_store_vms(store, fresh());
    bool sound = vms && vf_json_length(vms) <= 1;

    for (size_t i = 0; i < vf_json_length(vms); i++)
        sound = sound && !vf_json_object(vf_json_at(vms, i), "error");
    if (!sound)
        diag("listed: %s", vms ? json_object_to_json_string(vms) : error.text);
    return sound;
}

/* Unknown under its name, or known with all settings; its record, if it had one, is there. */
static bool
check_added(struct vf_store *store, bool through)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = {.name = NULL};
    bool sound = is_sound(store), known = vf_store_find(store, "kill", &vm, fresh());

    if (known)
        return sound && vm.deadline_ms == 9000;
    return sound && !through && strstr(error.text, "there is no VM");
}

static bool
check_renamed(struct vf_store *store, bool through)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");

    return check_added(store, through) && vf_record_exists(&vm, "s");
}

static bool
check_moved(struct vf_store *store, bool through)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = {.name = NULL};
    bool known = vf_store_find(store, "kill", &vm, fresh());
    bool old = known && !strcmp(vm.qmp, "/tmp/kill.qmp") && vm.deadline_ms == 9000;
    bool new = known && !strcmp(vm.qmp, "/tmp/killed.qmp") && vm.deadline_ms == 0;

    return is_sound(store) && (new || (old && !through));
}

static bool
check_removed(struct vf_store *store, bool through)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = {.name = NULL};
    bool known = vf_store_find(store, "kill", &vm, fresh());

    if (!is_sound(store) || (through && known))
        return false;
    /* To be removed again, if it is still there. */
    return known || through || add(store);
}

static bool
check_saved(struct vf_store *store, bool through)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");
    VF_AUTO_JSON struct json_object *list = vf_record_list(&vm, fresh());
    const char *phase = vf_json_string(vf_json_at(list, 0), "phase");

    return is_sound(store) && list && vf_json_length(list) <= 1 &&
           (phase ? !strcmp(phase, "InProgress") : !through);
}

static bool
check_saved_again(struct vf_store *store, bool through)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");
    VF_AUTO_JSON struct json_object *record = vf_record_load(&vm, "s", fresh());
    const char *phase = vf_json_string(record, "phase");

    return is_sound(store) && phase &&
           (!strcmp(phase, "Succeeded") || (!through && !strcmp(phase, "InProgress")));
}

static bool
check_record_removed(struct vf_store *store, bool through)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");
    VF_AUTO_JSON struct json_object *list = vf_record_list(&vm, fresh());

    return is_sound(store) && list && vf_json_length(list) <= (through ? 0 : 1);
}

static bool
check_journal(struct vf_store *store, bool through)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");
    VF_AUTO_JSON struct json_object *lines = vf_journal_read(&vm, fresh());

    return is_sound(store) && !vf_failed(&error) && (!through || !vf_journal_exists(&vm)) &&
           vf_json_length(lines) <= 2;
}

static const struct scenario scenarios[] = {
    {"a VM is added", nothing, add, check_added},
    {"a VM with a snapshot gets a name", save_by_path, add, check_renamed},
    {"a VM is given another socket", add, add_again, check_moved},
    {"a VM is removed", add, remove_vm, check_removed},
    {"a record is saved", nothing, save_by_path, check_saved},
    {"a record is replaced", save_by_path, save_again, check_saved_again},
    {"a record is removed", save_by_path, remove_record, check_record_removed},
    {"a journal is kept", nothing, keep_journal, check_journal},
};

/* A process that runs `act` up to its system call `count` + 1, and is stopped before it. -1: it
 * ended before, with `status_r`, or there is no tracing here, with -1 in it. */
static pid_t
start(bool (*act)(struct vf_store *), struct vf_store *store, int count, int *status_r)
{
    pid_t pid = fork();

    if (pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            _exit(77);
        raise(SIGSTOP);
        _exit(act(store) ? 0 : 1);
    }
    *status_r = -1;
    if (pid < 0 || waitpid(pid, status_r, 0) != pid || !WIFSTOPPED(*status_r))
        return -1;
    /* Each call stops twice: before it is made, and after. */
    for (int i = 0; i < 2 * count + 1; i++) {
        if (ptrace(PTRACE_SYSCALL, pid, NULL, NULL) < 0 || waitpid(pid, status_r, 0) != pid)
            *status_r = -1;
        if (!WIFSTOPPED(*status_r))
            return -1;
    }
    return pid;
}

static bool
succeeded(int status)
{
    return status != -1 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Runs `act` and kills it before its system call `count` + 1. 1: it got through before, 0: killed,
 * -1: it failed, or there is no tracing here. */
static int
run(const struct scenario *scenario, struct vf_store *store, int count)
{
    int status;
    pid_t pid = start(scenario->act, store, count, &status);

    if (pid < 0)
        return succeeded(status) ? 1 : -1;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return 0;
}

static void
test(const struct scenario *scenario, const char *scratch)
{
    int count = 0, ended = 0, deaths = 0;
    bool sound = true;
    struct timespec start, now;

    clock_gettime(CLOCK_MONOTONIC, &start);
    for (; ended == 0 && sound && count < 2000; deaths += ended == 0) {
        VF_AUTO_FREE char *state = vf_printf("%s/state", scratch);
        struct vf_store *store = vf_store_open(state, fresh());

        sound = store && scenario->before(store);
        ended = sound ? run(scenario, store, count) : -1;
        vf_store_close(store);
        store = vf_store_open(state, fresh());
        if (ended >= 0 && !(store && scenario->check(store, ended == 1))) {
            diag("killed before system call %d: %s", count + 1, error.text);
            sound = false;
        }
        if (ended == 0 && sound && !(scenario->act(store) && scenario->check(store, true))) {
            diag("killed before system call %d, then again: %s", count + 1, error.text);
            sound = false;
        }
        vf_store_close(store);
        nftw(state, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
        /* Where processes are slow (sanitizers), a sample has to do. */
        clock_gettime(CLOCK_MONOTONIC, &now);
        count += (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < 150
                     ? 1
                     : 7;
    }
    ok(sound && ended == 1, "killed while %s (%d deaths)", scenario->name, deaths);
}

/*
 * Overtaken
 */

/* Found before, so that all that another process does comes in between. */
static struct vf_vm overtaken;

/* Stops itself while it has the lock. */
static bool
lock_and_stop(struct vf_store *store)
{
    VF_AUTO_FD int lock = store ? vf_vm_lock(&overtaken, "overtaken", fresh()) : -1;

    return lock >= 0 && raise(SIGSTOP) == 0;
}

static bool
remove_and_add(struct vf_store *store)
{
    return remove_vm(store) && add(store);
}

static bool
add_and_remove(struct vf_store *store)
{
    return add(store) && remove_vm(store);
}

static bool
remove_path(struct vf_store *store)
{
    return vf_store_remove(store, "/tmp/kill.qmp", fresh());
}

static bool
lock_path(struct vf_store *store)
{
    VF_CLEANUP(vf_vm_release) struct vf_vm vm = vm_at(store, "/tmp/kill.qmp");
    VF_AUTO_FD int lock = vf_vm_lock(&vm, "test", fresh());

    return lock >= 0;
}

/* Stops a process between any two system calls of taking a lock, does `other` then, and lets it go
 * on: if it has the lock in the end, nobody else gets one on that VM; else everybody does. */
static void
test_overtaken(const char *name, bool (*before)(struct vf_store *),
               bool (*other)(struct vf_store *), const char *scratch)
{
    bool right = true, through = false;
    int had = 0, refused = 0;

    for (int count = 0; right && !through && count < 2000; count++) {
        VF_AUTO_FREE char *state = vf_printf("%s/state", scratch);
        struct vf_store *store = vf_store_open(state, fresh());
        int status = -1;

        right = store && before(store);
        overtaken = vm_at(store, "/tmp/kill.qmp");
        pid_t pid = right ? start(lock_and_stop, store, count, &status) : -1;

        if (pid > 0 && WSTOPSIG(status) == SIGSTOP) {
            through = true;
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
        } else if (pid > 0) {
            other(store);
            right = ptrace(PTRACE_CONT, pid, NULL, NULL) == 0 && waitpid(pid, &status, 0) == pid;
            bool has = right && WIFSTOPPED(status);

            if (right && lock_path(store) == has) {
                diag("overtaken before system call %d: %s", count + 1,
                     has ? "two have the lock" : error.text);
                right = false;
            }
            had += has;
            refused += !has;
            if (has) {
                kill(pid, SIGKILL);
                waitpid(pid, &status, 0);
            }
            right = is_sound(store) && right;
        } else {
            right = through = right && succeeded(status);
        }
        vf_vm_release(&overtaken);
        vf_store_close(store);
        nftw(state, scratch_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    }
    ok(right && through && had > 0, "overtaken while %s (%d had the lock, %d were refused)", name,
       had, refused);
}

static bool
can_trace(void)
{
    static const struct scenario probe = {"", nothing, nothing, NULL};
    const char *preloaded = getenv("LD_PRELOAD");

    /* Valgrind makes thousands of system calls of its own. */
    if (preloaded && strstr(preloaded, "vgpreload"))
        return false;
    return run(&probe, (struct vf_store *)&error, 1000) == 1;
}

int
main(void)
{
    /* On a disk, each of some thousand fsyncs would take its time; what is tested here is the order
     * of things, which a memory file system has, too. */
    char in_memory[] = "/dev/shm/vmfrost-test-XXXXXX";
    char *scratch = mkdtemp(in_memory) ? vf_strdup(in_memory) : scratch_new();

    if (!can_trace()) {
        printf("1..0 # SKIP processes cannot be traced here\n");
        scratch_remove(scratch);
        return EXIT_SUCCESS;
    }
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++)
        test(&scenarios[i], scratch);
    test_overtaken("a VM is removed and added again", add, remove_and_add, scratch);
    test_overtaken("a VM gets a name", lock_path, add, scratch);
    test_overtaken("a VM gets a name and loses it", lock_path, add_and_remove, scratch);
    test_overtaken("a VM without a name is removed", lock_path, remove_path, scratch);
    scratch_remove(scratch);
    return done_testing();
}
