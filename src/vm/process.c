/* SPDX-License-Identifier: MIT
 *
 * /proc is read as it is: a process can go away, or refuse to be looked at, between any two reads;
 * then it is left out. Its command line is its own to write and proves nothing: it only tells where
 * to knock.
 */
#include "vm/process.h"

#include <assert.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

/* What the kernel lets a command line have. */
#define CMDLINE_MAX ((size_t)2 << 20)

/* A file of /proc, whose size nobody knows before. Owned by the caller; NULL with errno if it
 * cannot be read, or is larger. */
static char *
read_proc(pid_t pid, const char *name, size_t most, size_t *length_r)
{
    char path[64];
    size_t length = 0, size = 4096;
    VF_AUTO_FREE char *content = vf_alloc(size);

    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    VF_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return NULL;
    for (;;) {
        ssize_t got = read(fd, content + length, size - length - 1);

        if (got < 0 && errno == EINTR)
            continue;
        if (got >= 0 && length + (size_t)got > most) {
            errno = EFBIG;
            return NULL;
        }
        if (got < 0)
            return NULL;
        if (got == 0)
            break;
        length += (size_t)got;
        if (length == size - 1)
            content = vf_realloc(content, size *= 2);
    }
    content[length] = '\0';
    *length_r = length;
    return VF_STEAL(content);
}

/* --- Who it is --- */

/* "PID (COMM) STATE PPID ...": COMM can hold spaces and parentheses, so that the fields are counted
 * from its last one on. */
static bool
parse_stat(const char *stat, char *state_r, uint64_t *started_r)
{
    const char *at = strrchr(stat, ')');

    if (!at || at[1] != ' ' || !at[2])
        return false;
    *state_r = at[2];
    at += 2;
    for (int field = 3; field < 22; field++) {
        at = strchr(at, ' ');
        if (!at)
            return false;
        at++;
    }
    char *end;

    errno = 0;
    *started_r = strtoull(at, &end, 10);
    return isdigit((unsigned char)*at) && errno == 0 && (*end == ' ' || *end == '\n' || !*end);
}

enum presence { PRESENT, ABSENT, UNSEEN };

static enum presence
look_at(pid_t pid, uint64_t *started_r)
{
    size_t length;
    char state;

    if (pid <= 0)
        return ABSENT;
    VF_AUTO_FREE char *stat = read_proc(pid, "stat", 4096, &length);

    if (!stat)
        return errno == ENOENT || errno == ESRCH ? ABSENT : UNSEEN;
    if (!parse_stat(stat, &state, started_r))
        return UNSEEN;
    /* A zombie has let go of its files and sockets. */
    return state == 'Z' || state == 'X' ? ABSENT : PRESENT;
}

struct vf_process
vf_process_of(pid_t pid)
{
    struct vf_process process = {pid, 0};

    return look_at(pid, &process.started) == PRESENT ? process : (struct vf_process){0, 0};
}

bool
vf_process_alive(struct vf_process process)
{
    uint64_t started;

    return look_at(process.pid, &started) == PRESENT && started == process.started;
}

bool
vf_process_gone(struct vf_process process)
{
    uint64_t started;

    switch (look_at(process.pid, &started)) {
    case PRESENT:
        return started != process.started;
    case ABSENT:
        return true;
    case UNSEEN:
        return false;
    }
    assert(!"a presence that is none");
    return false;
}

/* What stands behind a word; NULL if it is not there. */
static const char *
behind(const char *text, const char *word)
{
    const char *at = strstr(text, word);

    return at ? at + strlen(word) : NULL;
}

bool
vf_process_shares(pid_t pid, const char *kind)
{
    char our_path[64], their_path[64];
    struct stat ours, theirs;

    snprintf(our_path, sizeof our_path, "/proc/self/ns/%s", kind);
    snprintf(their_path, sizeof their_path, "/proc/%d/ns/%s", (int)pid, kind);
    return stat(our_path, &ours) == 0 && stat(their_path, &theirs) == 0 &&
           ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

struct vf_rights
vf_process_rights(pid_t pid)
{
    struct vf_rights rights = {.known = false};
    size_t length;
    VF_AUTO_FREE char *status = read_proc(pid, "status", 16384, &length);
    unsigned user;

    if (!status)
        return rights;
    const char *users = behind(status, "\nUid:"), *capabilities = behind(status, "\nCapEff:");

    if (!users || !capabilities || sscanf(users, "%*u %*u %*u %u", &user) != 1)
        return rights;
    rights.known = true;
    rights.user = user;
    rights.all = strtoull(capabilities, NULL, 16) & UINT64_C(1) << CAP_DAC_OVERRIDE &&
                 vf_process_shares(pid, "user");
    return rights;
}

bool
vf_rights_suffice(const struct vf_rights *rights, uid_t owner, mode_t mode)
{
    return rights->known && (rights->all || (rights->user == owner && (mode & 0600) == 0600));
}

/* --- What its command line says --- */

/* The value of `key` in "a,b=c,d=e,,f", where ",," is a comma: QEMU's own syntax. The first
 * part may lack its key, which is then `implied`. A key alone is "on", with "no" before it "off".
 * Last one wins. Owned by the caller; NULL if it is not there. */
static char *
option(const char *text, const char *implied, const char *key)
{
    VF_AUTO_FREE char *part = vf_alloc(strlen(text) + 1);
    VF_AUTO_FREE char *value = NULL;
    bool first = true;

    while (*text) {
        size_t length = 0;

        for (; *text && (*text != ',' || text[1] == ','); text++) {
            text += *text == ',';
            part[length++] = *text;
        }
        part[length] = '\0';
        text += *text == ',';

        char *equals = strchr(part, '=');
        const char *found = NULL;

        if (equals) {
            *equals = '\0';
            found = strcmp(part, key) == 0 ? equals + 1 : NULL;
        } else if (first && implied)
            found = strcmp(implied, key) == 0 ? part : NULL;
        else if (strcmp(part, key) == 0)
            found = "on";
        else if (vf_starts_with(part, "no") && strcmp(part + 2, key) == 0)
            found = "off";
        first = false;
        if (found) {
            free(value);
            value = vf_strdup(found);
        }
    }
    return VF_STEAL(value);
}

/* The same for an option that may be written in JSON, too. */
static char *
option_of(const char *text, const char *implied, const char *key)
{
    if (*text != '{')
        return option(text, implied, key);
    VF_AUTO_JSON struct json_object *object = vf_json_parse(text, strlen(text), 32);
    const char *value = vf_json_string(object, key);

    return value ? vf_strdup(value) : NULL;
}

static bool
option_is(const char *text, const char *implied, const char *key, const char *wanted)
{
    VF_AUTO_FREE char *value = option_of(text, implied, key);

    return value && strcmp(value, wanted) == 0;
}

static bool
option_is_on(const char *text, const char *implied, const char *key)
{
    return option_is(text, implied, key, "on") || option_is(text, implied, key, "yes") ||
           option_is(text, implied, key, "true") || option_is(text, implied, key, "y");
}

/* The arguments, one after the other; what has no NUL at its end is none. */
struct arguments {
    const char *at, *end;
};

static const char *
next_argument(struct arguments *arguments)
{
    const char *argument = arguments->at;
    const char *nul = memchr(argument, '\0', (size_t)(arguments->end - argument));

    if (!nul)
        return NULL;
    arguments->at = nul + 1;
    return argument;
}

/* "-qmp" and "--qmp" are the same to QEMU. */
static bool
is_option(const char *argument, const char *name)
{
    if (argument[0] != '-')
        return false;
    return strcmp(argument + 1 + (argument[1] == '-'), name) == 0;
}

static void
add_path(struct json_object *list, const char *path, const char *folder)
{
    VF_AUTO_FREE char *absolute = NULL;

    if (!*path || (*path != '/' && !folder))
        return;
    absolute = *path == '/' ? vf_strdup(path)
                            : vf_printf("%s/%s", strcmp(folder, "/") == 0 ? "" : folder, path);
    for (size_t i = 0; i < vf_json_length(list); i++)
        if (strcmp(vf_json_text(vf_json_at(list, i)), absolute) == 0)
            return;
    vf_json_append(list, vf_json_new_string(absolute));
}

/* The path of a socket that QEMU listens on, from the text of a chardev. */
static void
add_socket(struct json_object *list, const char *text, const char *implied, const char *folder)
{
    VF_AUTO_FREE char *path = option(text, implied, "path");

    if (path && option_is_on(text, implied, "server") && !option_is_on(text, implied, "abstract"))
        add_path(list, path, folder);
}

/* "-chardev socket,id=ID,...", wherever it stands. */
static void
add_chardev(struct json_object *list, struct arguments all, const char *id, const char *folder)
{
    const char *argument, *value;

    while ((argument = next_argument(&all)))
        if (is_option(argument, "chardev") && (value = next_argument(&all)) &&
            option_is(value, "backend", "backend", "socket") &&
            option_is(value, "backend", "id", id))
            add_socket(list, value, "backend", folder);
}

/* The chardev that `text` names. */
static void
add_named_chardev(struct json_object *list, struct arguments all, const char *text,
                  const char *implied, const char *folder)
{
    VF_AUTO_FREE char *id = option_of(text, implied, "chardev");

    if (id)
        add_chardev(list, all, id, folder);
}

struct json_object *
vf_process_parse_qemu(const char *cmdline, size_t length, const char *folder)
{
    const struct arguments all = {cmdline, cmdline + length};
    struct json_object *qmp = vf_json_new_array(), *agent = vf_json_new_array();
    struct json_object *about = vf_json_new_object();
    struct arguments rest = all;
    const char *argument, *value;
    bool no_reboot = false;
    VF_AUTO_FREE char *name = NULL;

    next_argument(&rest); /* the program */
    while ((argument = next_argument(&rest))) {
        if (is_option(argument, "no-reboot")) {
            no_reboot = true;
            continue;
        }
        bool known = is_option(argument, "qmp") || is_option(argument, "qmp-pretty") ||
                     is_option(argument, "mon") || is_option(argument, "device") ||
                     is_option(argument, "name") || is_option(argument, "action");

        if (!known || !(value = next_argument(&rest)))
            continue;
        if (is_option(argument, "mon")) {
            if (option_is(value, "chardev", "mode", "control"))
                add_named_chardev(qmp, all, value, "chardev", folder);
        } else if (is_option(argument, "device")) {
            if (option_is(value, "driver", "driver", "virtserialport") &&
                option_is(value, "driver", "name", "org.qemu.guest_agent.0"))
                add_named_chardev(agent, all, value, "driver", folder);
        } else if (is_option(argument, "name")) {
            free(name);
            name = option(value, "guest", "guest");
        } else if (is_option(argument, "action")) {
            no_reboot = no_reboot || option_is(value, NULL, "reboot", "shutdown");
        } else if (vf_starts_with(value, "unix:"))
            add_socket(qmp, value + strlen("unix:"), "path", folder);
        else if (vf_starts_with(value, "chardev:"))
            add_chardev(qmp, all, value + strlen("chardev:"), folder);
    }
    if (name)
        vf_sanitize(name);
    vf_json_add_string(about, "name", name && *name ? name : NULL);
    vf_json_add(about, "qmp", qmp);
    vf_json_add(about, "agent", agent);
    vf_json_add_bool(about, "noReboot", no_reboot);
    return about;
}

/* --- All of them --- */

/* The text of a link in /proc. Owned by the caller; NULL if it cannot be read. */
static char *
read_link(pid_t pid, const char *name)
{
    char path[64], target[PATH_MAX];

    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    ssize_t length = readlink(path, target, sizeof target);

    return length > 0 && length < (ssize_t)sizeof target ? vf_printf("%.*s", (int)length, target)
                                                         : NULL;
}

static bool
is_qemu(const char *program)
{
    const char *name = vf_name_of(program);

    /* A link in /proc says " (deleted)" behind the name after an upgrade. */
    return vf_starts_with(name, "qemu-system-") || strcmp(name, "qemu-kvm") == 0 ||
           vf_starts_with(name, "qemu-kvm ");
}

struct json_object *
vf_process_describe_qemu(pid_t pid)
{
    VF_AUTO_FREE char *program = read_link(pid, "exe");
    size_t length;
    VF_AUTO_FREE char *cmdline = read_proc(pid, "cmdline", CMDLINE_MAX, &length);
    char path[64];
    struct stat about;

    /* What others run can only be known by what it calls itself; and a wrapped program has another
     * file name. */
    if (!cmdline || (!is_qemu(cmdline) && !(program && is_qemu(program))))
        return NULL;
    snprintf(path, sizeof path, "/proc/%d", (int)pid);
    if (vf_process_of(pid).pid == 0 || stat(path, &about) < 0)
        return NULL;
    VF_AUTO_FREE char *folder = read_link(pid, "cwd");
    /* Nothing can be reached through a folder that was removed. */
    bool gone = folder && vf_ends_with(folder, " (deleted)");
    struct json_object *qemu = vf_process_parse_qemu(cmdline, length, gone ? NULL : folder);

    vf_json_add_int(qemu, "pid", pid);
    vf_json_add_int(qemu, "user", about.st_uid);
    return qemu;
}

/* The next process; 0 at the end. */
static pid_t
next_process(DIR *folder)
{
    struct dirent *entry;

    while (folder && (entry = readdir(folder))) {
        char *end;
        long pid = strtol(entry->d_name, &end, 10);

        if (isdigit((unsigned char)entry->d_name[0]) && !*end && pid > 0 && pid <= INT_MAX)
            return (pid_t)pid;
    }
    return 0;
}

struct json_object *
vf_process_find_qemus(void)
{
    struct json_object *qemus = vf_json_new_array();
    DIR *folder = opendir("/proc");
    pid_t pid;

    while ((pid = next_process(folder))) {
        struct json_object *qemu = vf_process_describe_qemu(pid);

        if (qemu)
            vf_json_append(qemus, qemu);
    }
    if (folder)
        closedir(folder);
    return qemus;
}

static bool
is_among(pid_t pid, const pid_t *known, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (known[i] == pid)
            return true;
    return false;
}

/* Its name, if it is a program of QEMU's that has the file open. Owned by the caller. */
static char *
name_of_user(pid_t pid, struct vf_inode inode)
{
    VF_AUTO_FREE char *program = read_link(pid, "exe");
    struct vf_opened opened;
    char *name = program ? vf_strdup(vf_name_of(program)) : NULL;

    if (name && vf_starts_with(name, "qemu-") && vf_process_opened(pid, inode, &opened) &&
        (opened.read_only || opened.read_write)) {
        vf_sanitize(name);
        return name;
    }
    free(name);
    return NULL;
}

struct json_object *
vf_process_find_users(struct vf_inode inode, const pid_t *known, size_t count)
{
    struct json_object *users = vf_json_new_array();
    DIR *folder = opendir("/proc");
    pid_t pid;

    while ((pid = next_process(folder))) {
        VF_AUTO_FREE char *name = is_among(pid, known, count) ? NULL : name_of_user(pid, inode);

        if (!name)
            continue;
        struct json_object *user = vf_json_strings("name", name, NULL);

        vf_json_add_int(user, "pid", pid);
        vf_json_append(users, user);
    }
    if (folder)
        closedir(folder);
    return users;
}
