/* SPDX-License-Identifier: MIT
 *
 * The lock: who gets it, what the others are told, and that there is one of it whatever happens to
 * the folder in between.
 */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "scratch.h"

/* Not in main(): a child that exits has not lost them then. */
static struct vmfrost_error error;
static char *scratch, *alone;

static struct vmfrost_error *
fresh(void)
{
    memset(&error, 0, sizeof error);
    return &error;
}

static bool
is_free(const struct vf_vm *vm)
{
    int fd = vf_vm_lock(vm, "look", fresh());

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* A process that takes the lock, and lives until it is killed. */
static pid_t
start_holder(const struct vf_vm *vm, const char *what)
{
    int ready[2];
    char byte;
    pid_t pid = pipe(ready) == 0 ? fork() : -1;

    if (pid == 0) {
        if (vf_vm_lock(vm, what, fresh()) < 0 || write(ready[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(ready[1]);
    if (pid < 0 || read(ready[0], &byte, 1) != 1) {
        printf("Bail out! no holder\n");
        exit(EXIT_FAILURE);
    }
    close(ready[0]);
    return pid;
}

static void
stop_holder(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void
test_holder(const struct vf_vm *vm)
{
    VF_AUTO_FREE char *file = vf_printf("%s/lock", vm->folder);
    int fd = vf_vm_lock(vm, "snapshot web@before", fresh());

    ok(fd >= 0, "taken: %s", error.text);
    ok(fcntl(fd, F_GETFD) & FD_CLOEXEC, "closed on exec");
    is_int(mode_of(file), 0600, "mode of the file");
    ok(!is_free(vm), "this process gets it no second time");
    has_str(error.next, "this very process", "and is told why");
    close(fd);
    ok(is_free(vm), "closing releases it");

    pid_t pid = start_holder(vm, "snapshot web@before");
    VF_AUTO_FREE char *who =
        vf_printf("in use by \"snapshot web@before\" (pid %d, since ", (int)pid);
    VF_AUTO_FREE char *killing = vf_printf("kill %d,", (int)pid);

    ok(!is_free(vm), "another process has it");
    is_int(error.code, VMFROST_FAILED, "which is a failure");
    has_str(error.text, vm->name, "of this VM");
    has_str(error.text, who, "who has it is said");
    has_str(error.text, " s ago)", "and since when");
    has_str(error.next, killing, "and what to do if it hangs");
    stop_holder(pid);
    ok(is_free(vm), "the lock goes with its owner, however that ends");
}

static void
test_stale(const struct vf_vm *vm)
{
    static const char *const contents[] = {
        "",
        "garbage",
        "{\"pid\": 4711}\n",
        "{\"pid\": -1, \"what\": \"x\", \"since\": \"2026-01-31T00:00:00Z\"}\n",
        "{\"pid\": 1, \"what\": \"x\", \"since\": \"yesterday\"}\n",
        "{\"pid\": 1, \"what\": \"x\", \"since\": \"2026-01-31T00:00:00Z\"}",
    };
    VF_AUTO_FREE char *file = vf_printf("%s/lock", vm->folder);

    put_file(file, "{\"pid\": 1, \"what\": \"old\", \"since\": \"2026-01-31T00:00:00Z\"}\n");
    ok(is_free(vm), "what a former owner left there is no lock");

    pid_t pid = start_holder(vm, "a long name, so that a shorter one leaves something of it");
    stop_holder(pid);
    int fd = vf_vm_lock(vm, "short", fresh());

    ok(fd >= 0 && !is_free(vm), "taken");
    has_str(error.text, "\"short\"", "a shorter name replaces a longer one");
    for (size_t i = 0; i < sizeof contents / sizeof *contents; i++) {
        put_file(file, contents[i]);
        ok(!is_free(vm), "what the file says does not matter: %s", contents[i]);
        has_str(error.text, "by another process", "but then nobody is named");
    }
    put_file(file, "{\"pid\": 1, \"what\": \"\x1b[2J\", \"since\": \"2020-01-31T00:00:00Z\"}\n");
    ok(!is_free(vm) && !strchr(error.text, '\x1b'), "nothing bad gets into the message");
    put_file(file, "{\"pid\": 1, \"what\": \"old\", \"since\": \"2020-01-31T00:00:00Z\"}\n");
    ok(!is_free(vm), "a lock that is held for years");
    has_str(error.text, "since 2020-01-3", "is told with its day");
    has_str(error.text, " days ago", "and age");
    close(fd);
}

/* A child of the owner that did not close the descriptor. */
static void
test_inherited(const struct vf_vm *vm)
{
    int ready[2];
    pid_t heir = 0;
    pid_t owner = pipe(ready) == 0 ? fork() : -1;

    if (owner == 0) {
        int fd = vf_vm_lock(vm, "owner", fresh());
        pid_t child = fd < 0 ? -1 : fork();

        if (child == 0)
            for (;;)
                pause();
        _exit(child > 0 && write(ready[1], &child, sizeof child) == sizeof child ? 0 : 1);
    }
    ok(read(ready[0], &heir, sizeof heir) == sizeof heir && waitpid(owner, NULL, 0) == owner,
       "an owner ends, and a child of it lives");
    close(ready[0]);
    close(ready[1]);
    ok(!is_free(vm), "the child has the lock");
    ok(!strstr(error.text, "owner"), "who is gone is not named as its holder");
    has_str(error.next, "fuser -v", "how to find the one who has it is said");
    kill(heir, SIGKILL);
    for (int i = 0; i < 100 && !is_free(vm); i++)
        nanosleep(&(struct timespec){0, 5000000}, NULL);
    ok(is_free(vm), "until it ends");
}

/* Found, and then changed by somebody else before it was locked. */
static void
test_meanwhile(struct vf_store *store)
{
    struct vf_vm nameless = vm_at(store, "/tmp/m.qmp");

    ok(add_vm(store, "m", "{\"qmp\": \"/tmp/m.qmp\"}", &error), "a VM gets a name");
    ok(!is_free(&nameless), "just before it is locked by its path");
    has_str(error.text, "added as VM \"m\"", "so that it is not");
    ok(!is_there(nameless.folder), "and no folder is left");
    struct vf_vm named = vm_at(store, "m");

    ok(vf_store_remove(store, "m", fresh()), "a VM is removed");
    ok(!is_free(&named), "just before it is locked");
    has_str(error.text, "removed", "so that it is not");
    ok(!is_there(named.folder), "nor does it come back");
    ok(add_vm(store, "m", "{\"qmp\": \"/tmp/n.qmp\"}", &error), "another VM gets the name");
    ok(!is_free(&named), "just before it is locked");
    has_str(error.text, "another socket", "so that it is not");
    ok(is_free(&nameless), "the old path is free");
    ok(vf_store_remove(store, "m", fresh()) && vf_store_remove(store, "/tmp/m.qmp", fresh()),
       "removed");
    vf_vm_release(&named);
    vf_vm_release(&nameless);
}

/* Locks by path and by name, adds and removes, and is alone whenever it has the lock. */
static int
crowd(struct vf_store *store, unsigned seed)
{
    int times = 0;
    struct timespec start, now;

    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        const char *vm_name = rand_r(&seed) % 2 ? "crowd" : "/tmp/crowd.qmp";
        struct vf_vm vm;

        if (rand_r(&seed) % 4 == 0)
            add_vm(store, "crowd", "{\"qmp\": \"/tmp/crowd.qmp\"}", &error);
        if (rand_r(&seed) % 4 == 0)
            vf_store_remove(store, "crowd", fresh());
        if (vf_store_find(store, vm_name, &vm, fresh())) {
            int lock = vf_vm_lock(&vm, "crowd", fresh());
            int fd = lock < 0 ? -1 : open(alone, O_CREAT | O_EXCL | O_CLOEXEC, 0600);

            if (lock >= 0 && fd < 0)
                _exit(255);
            if (lock >= 0 && (unlink(alone) < 0 || close(fd) < 0 || close(lock) < 0))
                _exit(254);
            times += lock >= 0;
            vf_vm_release(&vm);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < 500);
    return times;
}

static void
test_crowd(struct vf_store *store)
{
    enum { MEMBERS = 4 };
    int times = 0;
    bool was_alone = true;

    for (unsigned i = 0; i < MEMBERS; i++)
        if (fork() == 0) {
            int got = crowd(store, i + 1);

            _exit(got > 200 ? 200 : got);
        }
    for (int i = 0, status; i < MEMBERS; i++) {
        wait(&status);
        if (!WIFEXITED(status) || WEXITSTATUS(status) > 200)
            was_alone = false;
        times += WEXITSTATUS(status);
    }
    ok(was_alone, "of a crowd that adds, removes and locks, one at a time has the lock");
    ok(times > 0, "and some had it (%d times)", times);

    VF_AUTO_JSON struct json_object *vms = vf_store_vms(store, fresh());
    bool clean = true;

    for (size_t i = 0; i < vf_json_length(vms); i++)
        clean = clean && !vf_json_object(vf_json_at(vms, i), "error");
    ok(clean, "nothing is left damaged");
}

int
main(void)
{
    scratch = scratch_new();
    alone = vf_printf("%s/alone", scratch);
    VF_AUTO_FREE char *state = vf_printf("%s/state", scratch);
    struct vf_store *store = vf_store_open(state, fresh());
    struct vf_vm vm = vm_at(store, "/tmp/web.qmp");

    test_holder(&vm);
    test_stale(&vm);
    test_inherited(&vm);
    test_meanwhile(store);
    test_crowd(store);
    vf_vm_release(&vm);
    vf_store_close(store);
    scratch_remove(scratch);
    free(alone);
    return done_testing();
}
