/* SPDX-License-Identifier: MIT
 *
 * The journal: lines that are only ever added.
 *
 * Guarantees: nothing that was written is changed, so that two writers (the operation, or the one
 * that recovers it, and the guard) can never destroy each other's lines; what a crash, a kill or a
 * full disk tore is recognised as such, also after more was written behind it; what could
 * not be read again is not written.
 *
 * A torn line is one that has no end, or one that is no JSON and has an empty line or nothing
 * behind it.
 */
#include "store/journal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"

enum { JOURNAL_MOST = 8 * 1024 * 1024, ENTRY_DEPTH = 32 };

static char *
journal_path(const struct vf_vm *vm)
{
    return vf_printf("%s/journal", vm->folder);
}

static bool
write_all(int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t put = write(fd, text, length);

        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return false;
        text += put;
        length -= (size_t)put;
    }
    return true;
}

static bool
is_entry(struct json_object *entry, bool first)
{
    return json_object_is_type(entry, json_type_object) &&
           (first || vf_json_string(entry, "state"));
}

static bool
append(struct vf_journal *journal, struct json_object *entry, bool first,
       struct vmfrost_error *error)
{
    const char *plain = vf_json_print(entry, JSON_C_TO_STRING_NOSLASHESCAPE);

    assert(plain);
    size_t length = strlen(plain);
    struct stat about;

    if (!is_entry(entry, first) || !vf_json_readable(plain, ENTRY_DEPTH))
        return vf_fail(error, VMFROST_FAILED,
                       "cannot write to %s what could not be read again: a text is no UTF-8, it is "
                       "nested too deeply, or it has no \"state\"",
                       journal->path);
    if (fstat(journal->fd, &about) < 0)
        return vf_fail(error, VMFROST_FAILED, "cannot write %s: %s", journal->path,
                       strerror(errno));
    if ((size_t)about.st_size + length + 3 > JOURNAL_MOST)
        return vf_fail(error, VMFROST_FAILED, "cannot write %s: it would become larger than %d MiB",
                       journal->path, JOURNAL_MOST / 1024 / 1024);
    VF_AUTO_FREE char *line = vf_printf("%s%s\n", first ? "" : "\n\n", plain);

    if (write_all(journal->fd, line, strlen(line)) && fdatasync(journal->fd) == 0)
        return true;
    int number = errno;

    vf_fail(error, VMFROST_FAILED, "cannot write %s: %s", journal->path, strerror(number));
    return vf_hint_unwritten(error, number);
}

bool
vf_journal_begin(struct vf_journal *journal, const struct vf_vm *vm, struct json_object *first,
                 struct vmfrost_error *error)
{
    assert(journal->fd < 0);
    VF_AUTO_FREE char *path = journal_path(vm);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0 && errno == EEXIST) {
        vf_fail(error, VMFROST_FAILED, "an operation on %s was interrupted", vm->name);
        return vf_hint(error, "Finish it first: vmfrost recover %s", vm->name);
    }
    if (fd < 0) {
        int number = errno;

        vf_fail(error, VMFROST_FAILED, "cannot create %s: %s", path, strerror(number));
        return vf_hint_unwritten(error, number);
    }
    journal->path = VF_STEAL(path);
    journal->fd = fd;
    bool written = append(journal, first, true, error);

    if (written && vf_sync_folder_of(journal->path) == 0)
        return true;
    if (written)
        vf_fail(error, VMFROST_FAILED, "cannot make %s durable: %s", journal->path,
                strerror(errno));
    /* Nothing was begun, and nothing is left of it. */
    unlink(journal->path);
    vf_journal_close(journal);
    return false;
}

bool
vf_journal_continue(struct vf_journal *journal, const struct vf_vm *vm, struct vmfrost_error *error)
{
    assert(journal->fd < 0);
    VF_AUTO_FREE char *path = journal_path(vm);
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0) {
        int number = errno;

        vf_fail(error, VMFROST_FAILED, "cannot open %s: %s", path, strerror(number));
        return vf_hint_unwritten(error, number);
    }
    journal->path = VF_STEAL(path);
    journal->fd = fd;
    return true;
}

bool
vf_journal_write(struct vf_journal *journal, struct json_object *entry, struct vmfrost_error *error)
{
    assert(journal->fd >= 0);
    return append(journal, entry, false, error);
}

bool
vf_journal_end(struct vf_journal *journal, struct vmfrost_error *error)
{
    assert(journal->fd >= 0);
    bool ended =
        (unlink(journal->path) == 0 || errno == ENOENT) && vf_sync_folder_of(journal->path) == 0;

    if (!ended)
        vf_fail(error, VMFROST_FAILED, "cannot remove %s: %s", journal->path, strerror(errno));
    vf_journal_close(journal);
    return ended;
}

void
vf_journal_close(struct vf_journal *journal)
{
    if (journal->fd >= 0)
        close(journal->fd);
    free(journal->path);
    *journal = (struct vf_journal)VF_JOURNAL_INIT;
}

bool
vf_journal_exists(const struct vf_vm *vm)
{
    VF_AUTO_FREE char *path = journal_path(vm);
    struct stat about;

    /* What cannot be looked at may well be one. */
    return lstat(path, &about) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

/* Adds all whole lines to `lines`. Its number if one is damaged, else 0. */
static size_t
read_lines(const char *text, size_t length, struct json_object *lines)
{
    const char *at = text, *end = text + length, *newline;

    for (size_t number = 1; (newline = memchr(at, '\n', (size_t)(end - at))); number++) {
        VF_AUTO_JSON struct json_object *entry =
            vf_json_parse(at, (size_t)(newline - at), ENTRY_DEPTH);
        bool empty = newline == at;
        bool torn = !entry && (newline + 1 == end || newline[1] == '\n');

        at = newline + 1;
        if (empty)
            continue;
        /* What began with a torn line never began. */
        if (torn && json_object_array_length(lines) == 0)
            return 0;
        if (torn)
            continue;
        if (!is_entry(entry, json_object_array_length(lines) == 0))
            return number;
        vf_json_append(lines, VF_STEAL(entry));
    }
    return 0;
}

static void
hint_journal(const struct vf_vm *vm, struct vmfrost_error *error)
{
    vf_hint(error,
            "It tells what was begun on %s: read it, look at the VM (vmfrost thaw %s is always "
            "safe), then move it away.",
            vm->name, vm->name);
}

struct json_object *
vf_journal_read(const struct vf_vm *vm, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = journal_path(vm);
    size_t length = 0;
    VF_AUTO_FREE char *text = vf_read_file(path, JOURNAL_MOST, &length);

    if (!text && errno == ENOENT)
        return NULL;
    if (!text) {
        vf_fail(error, VMFROST_FAILED, "cannot read the journal %s: %s", path,
                vf_read_trouble(errno));
        hint_journal(vm, error);
        return NULL;
    }
    VF_AUTO_JSON struct json_object *lines = vf_json_new_array();
    size_t damaged = read_lines(text, length, lines);

    if (damaged == 0)
        return VF_STEAL(lines);
    vf_fail(error, VMFROST_FAILED, "the journal %s is damaged in line %zu", path, damaged);
    hint_journal(vm, error);
    return NULL;
}
