/* SPDX-License-Identifier: MIT
 *
 * The lock of a VM.
 *
 * Guarantees: of all that change a VM, one at a time gets past vf_vm_lock(), also while its folder
 * is created, renamed or removed; the lock ends with its owner, however that ends. Who has it is
 * written into the file for people, after it was taken: what an earlier owner left there is never
 * taken for a lock, and an owner that is gone is never named as one.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "store/private.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"

/*
 * Who has it
 */

struct owner {
    int64_t pid; /* 0: not known */
    char *what;
    time_t since;
};

static void
owner_release(struct owner *owner)
{
    free(owner->what);
}

static void
write_owner(int fd, const char *what)
{
    VF_AUTO_JSON struct json_object *owner = vf_json_new_object();
    char since[32];
    struct tm broken;
    time_t now = time(NULL);

    gmtime_r(&now, &broken);
    strftime(since, sizeof since, "%Y-%m-%dT%H:%M:%SZ", &broken);
    vf_json_add_int(owner, "pid", getpid());
    vf_json_add_string(owner, "what", what);
    vf_json_add_string(owner, "since", since);
    VF_AUTO_FREE char *line =
        vf_printf("%s\n", vf_json_print(owner, JSON_C_TO_STRING_NOSLASHESCAPE));
    size_t length = strlen(line);

    /* One write, then the rest of a longer predecessor: a reader of the first line always sees one
     * of the two. On a full disk nobody is named; the lock holds all the same. */
    bool written = pwrite(fd, line, length, 0) == (ssize_t)length;

    if (ftruncate(fd, written ? (off_t)length : 0) < 0)
        return;
}

static void
read_owner(int fd, struct owner *owner)
{
    char line[4096];
    ssize_t got = pread(fd, line, sizeof line, 0);
    const char *end = got > 0 ? memchr(line, '\n', (size_t)got) : NULL;
    VF_AUTO_JSON struct json_object *document =
        end ? vf_json_parse(line, (size_t)(end - line), 4) : NULL;
    const char *what = vf_json_string(document, "what");
    const char *since = vf_json_string(document, "since");
    struct tm broken = {.tm_year = 0};
    int64_t pid = 0;

    *owner = (struct owner){0, NULL, 0};
    if (!what || !since || !vf_json_int(document, "pid", &pid) || pid <= 0 || pid > INT32_MAX)
        return;
    const char *rest = strptime(since, "%Y-%m-%dT%H:%M:%SZ", &broken);

    if (!rest || *rest)
        return;
    *owner = (struct owner){pid, vf_strdup(what), timegm(&broken)};
}

/* "12:03:04, 3 s ago", with the day if that is not today. Owned by the caller. */
static char *
since_text(time_t since)
{
    time_t now = time(NULL);
    double age = difftime(now, since) > 0 ? difftime(now, since) : 0;
    struct tm then, today;
    char clock[32];

    localtime_r(&since, &then);
    localtime_r(&now, &today);
    bool same_day = then.tm_year == today.tm_year && then.tm_yday == today.tm_yday;

    if (same_day)
        strftime(clock, sizeof clock, "%H:%M:%S", &then);
    else
        strftime(clock, sizeof clock, "%Y-%m-%d %H:%M:%S", &then);
    if (age < 120)
        return vf_printf("%s, %.0f s ago", clock, age);
    if (age < 120 * 60)
        return vf_printf("%s, %.0f min ago", clock, age / 60);
    if (age < 48 * 3600)
        return vf_printf("%s, %.0f h ago", clock, age / 3600);
    return vf_printf("%s, %.0f days ago", clock, age / 86400);
}

/* Always -1. */
static int
fail_in_use(const struct vf_vm *vm, int fd, struct vmfrost_error *error)
{
    VF_CLEANUP(owner_release) struct owner owner;

    read_owner(fd, &owner);
    if (owner.pid == 0) {
        vf_fail(error, VMFROST_FAILED, "%s is in use by another process", vm->name);
        vf_hint(error, "Wait until it is done. Who it is: fuser -v %s/lock", vm->folder);
        return -1;
    }
    VF_AUTO_FREE char *since = since_text(owner.since);

    if (kill((pid_t)owner.pid, 0) < 0 && errno == ESRCH) {
        vf_fail(error, VMFROST_FAILED, "%s is in use by another process", vm->name);
        vf_hint(error,
                "The last known, \"%s\" (pid %" PRId64 ", since %s), is gone. Try again, or look "
                "who it is: fuser -v %s/lock",
                owner.what, owner.pid, since, vm->folder);
        return -1;
    }
    vf_fail(error, VMFROST_FAILED, "%s is in use by \"%s\" (pid %" PRId64 ", since %s)", vm->name,
            owner.what, owner.pid, since);
    if (owner.pid == getpid())
        vf_hint(error, "That is this very process: wait until its operation is done.");
    else
        vf_hint(error,
                "Wait until it is done. If it hangs: kill %" PRId64 ", then vmfrost recover %s",
                owner.pid, vm->name);
    return -1;
}

/*
 * Taking it
 */

/* The lock file is still the one that everybody finds. */
static bool
is_at(int fd, const char *path)
{
    struct stat of_fd, of_path;

    return fstat(fd, &of_fd) == 0 && lstat(path, &of_path) == 0 && of_fd.st_dev == of_path.st_dev &&
           of_fd.st_ino == of_path.st_ino;
}

/* Always false. */
static bool
fail_unopened(const char *path, int why, struct vmfrost_error *error)
{
    vf_fail(error, VMFROST_FAILED, "cannot open the lock %s: %s", path, vf_read_trouble(why));
    if (why == EINVAL || why == EISDIR || why == ELOOP)
        vf_hint(error, "It is none of vmfrost's: move it away.");
    return false;
}

bool
vf_vm_lock_is_sound(const struct vf_vm *vm, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = vf_printf("%s/lock", vm->folder);
    struct stat about;

    if (lstat(vm->folder, &about) == 0 && !vf_folder_is_safe(vm->folder, error))
        return false;
    return lstat(path, &about) < 0 || S_ISREG(about.st_mode) ||
           fail_unopened(path, S_ISLNK(about.st_mode) ? ELOOP : EINVAL, error);
}

/* Any number of times somebody else may rename or remove the folder in between; nobody does so a
 * hundred times. */
static int
take(const struct vf_vm *vm, const char *path, struct vmfrost_error *error)
{
    for (int i = 0; i < 100; i++) {
        if (!vm->in_inventory && !vf_folder_make(vm->folder, error))
            return -1;
        VF_AUTO_FD int fd =
            open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
        struct stat about;

        if (fd < 0 && errno == EROFS) { /* it locks all the same, though nobody is named */
            fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
            errno = EROFS;
        }
        if (fd < 0 && errno == ENOENT && !vm->in_inventory)
            continue;
        if (fd < 0 && errno == ENOENT) {
            vf_fail(error, VMFROST_FAILED, "%s has just been removed", vm->name);
            return -1;
        }
        int why = fd < 0 ? errno == ENXIO ? EINVAL : errno
                  : fstat(fd, &about) < 0 || !S_ISREG(about.st_mode) ? EINVAL
                                                                     : 0;

        if (why) {
            fail_unopened(path, why, error);
            return -1;
        }
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
            if (errno == EWOULDBLOCK)
                return fail_in_use(vm, fd, error);
            if (errno == EINTR)
                continue;
            vf_fail(error, VMFROST_FAILED, "cannot take the lock %s: %s", path, strerror(errno));
            return -1;
        }
        if (is_at(fd, path)) {
            if (!vf_folder_is_safe(vm->folder, error))
                return -1;
            int taken = fd;

            fd = -1;
            return taken;
        }
    }
    vf_fail(error, VMFROST_FAILED, "cannot take the lock %s: it is replaced again and again", path);
    return -1;
}

/* The VM was found before its lock was taken: it still has this name and this address. */
static bool
is_still_named(const struct vf_vm *vm, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *address = NULL;

    if (!vm->qmp)
        return true;
    if (!vf_settings_address(vm->folder, &address, error))
        return false;
    if (address && strcmp(address, vm->qmp) == 0)
        return true;
    vf_fail(error, VMFROST_FAILED, "%s has just been %s", vm->name,
            address ? "given another socket" : "removed");
    return vf_hint(error, "Try again.");
}

/* Writes down whose folder it is, if nobody has, and finds out whether the VM has got a name. */
static bool
is_still_nameless(const struct vf_vm *vm, const char *skip, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *vms = vf_folder_of(vm->folder);
    VF_AUTO_FREE char *address = NULL;
    VF_AUTO_FREE char *holder = NULL;

    if (!vf_inventory_holder(vms, vm->qmp, skip, &holder, error))
        return false;
    if (holder) {
        vf_folder_discard(vm->folder);
        vf_fail(error, VMFROST_FAILED, "%s has just been added as VM \"%s\"", vm->qmp, holder);
        return vf_hint(error, "Try again.");
    }
    if (!vf_settings_address(vm->folder, &address, error))
        return false;
    if (address && strcmp(address, vm->qmp) != 0)
        return vf_fail(error, VMFROST_FAILED, "the folder of %s, %s, is that of %s", vm->qmp,
                       vm->folder, address);
    if (address)
        return true;
    VF_AUTO_JSON struct json_object *settings = vf_json_strings("qmp", vm->qmp, NULL);
    VF_AUTO_FREE char *records = vf_printf("%s/records", vm->folder);

    /* In this order: where vm.json is, all folders above it are durable. */
    if (!vf_folder_make(records, error) || vf_sync_folder(vms) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot make %s durable: %s", vm->folder,
                       strerror(errno));
    return vf_settings_save(vm->folder, settings, error);
}

int
vf_vm_lock_for(const struct vf_vm *vm, const char *what, const char *skip,
               struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = vf_printf("%s/lock", vm->folder);
    VF_AUTO_FD int fd = take(vm, path, error);

    if (fd < 0)
        return -1;
    write_owner(fd, what);
    vf_folder_sweep(vm->folder);
    if (!(vm->in_inventory ? is_still_named(vm, error) : is_still_nameless(vm, skip, error)))
        return -1;
    int taken = fd;

    fd = -1;
    return taken;
}

int
vf_vm_lock(const struct vf_vm *vm, const char *what, struct vmfrost_error *error)
{
    return vf_vm_lock_for(vm, what, NULL, error);
}

static void
close_file(FILE **at)
{
    if (*at)
        fclose(*at);
}

struct json_object *
vf_vm_holder(const struct vf_vm *vm)
{
    VF_AUTO_FREE char *path = vf_printf("%s/lock", vm->folder);
    VF_CLEANUP(owner_release) struct owner owner = {0, NULL, 0};
    char since[32];
    struct tm broken;

    if (!vf_vm_locked(vm))
        return NULL;
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    if (fd >= 0)
        read_owner(fd, &owner);
    struct json_object *holder = vf_json_new_object();

    if (owner.pid == 0)
        return holder;
    gmtime_r(&owner.since, &broken);
    strftime(since, sizeof since, "%Y-%m-%dT%H:%M:%SZ", &broken);
    vf_json_add_int(holder, "pid", owner.pid);
    vf_json_add_string(holder, "what", owner.what);
    vf_json_add_string(holder, "since", since);
    return holder;
}

bool
vf_vm_locked(const struct vf_vm *vm)
{
    VF_AUTO_FREE char *path = vf_printf("%s/lock", vm->folder);
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    VF_CLEANUP(owner_release) struct owner owner = {0, NULL, 0};
    VF_CLEANUP(close_file) FILE *locks = fopen("/proc/locks", "re");
    VF_AUTO_FREE char *line = NULL;
    size_t size = 0;
    struct stat about;

    if (fd < 0 || fstat(fd, &about) < 0 || !S_ISREG(about.st_mode) || !locks)
        return false;
    read_owner(fd, &owner);
    /* "1: FLOCK  ADVISORY  WRITE 4711 fe:01:262146 0 EOF". The device is not what stat(2) says on
     * file systems with subvolumes; the owner and the inode together are unique enough. */
    while (getline(&line, &size, locks) >= 0) {
        long pid = 0;
        unsigned long inode = 0;

        if (sscanf(line, "%*d: FLOCK %*s %*s %ld %*x:%*x:%lu", &pid, &inode) == 2 &&
            pid == owner.pid && inode == about.st_ino)
            return true;
    }
    return false;
}
