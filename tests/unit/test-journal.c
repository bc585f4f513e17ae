/* SPDX-License-Identifier: MIT
 *
 * The journal: begun, continued, ended; two writers; what a crash tears, at every byte; and damage
 * that is none of that.
 */
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>

#include "scratch.h"
#include "store/journal.h"

static struct vmfrost_error error;
static struct vf_vm vm;
static char *path;

static struct vmfrost_error *
fresh(void)
{
    memset(&error, 0, sizeof error);
    return &error;
}

static bool
begin(struct vf_journal *journal)
{
    VF_AUTO_JSON struct json_object *first = json("{\"operation\": \"snapshot\"}");

    return vf_journal_begin(journal, &vm, first, fresh());
}

static bool
entry(struct vf_journal *journal, const char *state)
{
    VF_AUTO_JSON struct json_object *value = vf_json_strings("state", state, NULL);

    return vf_journal_write(journal, value, fresh());
}

/* "snapshot freezing thawed": the first line's operation and the states. NULL on error. */
static const char *
states(void)
{
    static char text[512];
    VF_AUTO_JSON struct json_object *lines = vf_journal_read(&vm, fresh());

    if (!lines)
        return NULL;
    text[0] = '\0';
    for (size_t i = 0; i < vf_json_length(lines); i++) {
        const char *word = vf_json_string(vf_json_at(lines, i), i ? "state" : "operation");

        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i ? " " : "",
                 word ? word : "?");
    }
    return text;
}

static void
test_life(void)
{
    struct vf_journal journal = VF_JOURNAL_INIT, second = VF_JOURNAL_INIT;

    ok(!vf_journal_exists(&vm), "no journal");
    ok(!vf_journal_read(&vm, fresh()) && error.code == VMFROST_OK, "nothing to read, no error");
    ok(!vf_journal_continue(&journal, &vm, fresh()), "nothing to continue");
    ok(begin(&journal), "begun: %s", error.text);
    ok(vf_journal_exists(&vm), "there it is");
    is_int(mode_of(path), 0600, "its mode");
    ok((fcntl(journal.fd, F_GETFL) & O_APPEND) && (fcntl(journal.fd, F_GETFD) & FD_CLOEXEC),
       "its descriptor appends, and is closed on exec");
    is_str(states(), "snapshot", "its first line");
    ok(!begin(&second), "no second one");
    has_str(error.next, "vmfrost recover", "what to do with the one that is there");
    ok(second.fd == -1 && !second.path, "and nothing is open");
    ok(entry(&journal, "overlays") && entry(&journal, "freezing"), "two entries");
    is_str(states(), "snapshot overlays freezing", "are read");
    vf_journal_close(&journal);
    vf_journal_close(&journal);
    ok(vf_journal_exists(&vm) && journal.fd == -1, "closing leaves it");
    ok(vf_journal_continue(&journal, &vm, fresh()) && entry(&journal, "thawed"), "continued");
    is_str(states(), "snapshot overlays freezing thawed", "where it ended");
    ok(vf_journal_end(&journal, fresh()), "ended");
    ok(!vf_journal_exists(&vm) && journal.fd == -1 && !journal.path, "and gone");
    ok(begin(&journal), "a new one");
    unlink(path);
    ok(vf_journal_end(&journal, fresh()), "to end one that is gone is no error");
}

static void
test_refusals(void)
{
    struct vf_journal journal = VF_JOURNAL_INIT;
    VF_AUTO_JSON struct json_object *no_state = json("{\"stat\": \"x\"}");
    VF_AUTO_JSON struct json_object *no_object = json("[]");
    VF_AUTO_JSON struct json_object *no_utf8 =
        vf_json_strings("state", "x", "path", "/images/\xff.raw", NULL);

    ok(!vf_journal_begin(&journal, &vm, no_object, fresh()), "a first line is an object");
    ok(!vf_journal_exists(&vm) && journal.fd == -1, "what could not be begun leaves nothing");
    ok(begin(&journal), "begun");
    ok(!vf_journal_write(&journal, no_state, fresh()), "an entry has a state");
    ok(!vf_journal_write(&journal, no_utf8, fresh()), "and texts that can be read again");
    has_str(error.text, "UTF-8", "as told");
    is_str(states(), "snapshot", "nothing was written");
    ok(vf_journal_end(&journal, fresh()), "ended");
}

/* Every length that a crash can leave, read as it is and after a recovery has written on. */
static void
test_torn(void)
{
    static const char whole[] = "{\"operation\": \"snapshot\", \"a\": {\"b\": 1}}\n"
                                "\n\n{\"state\": \"freezing\", \"c\": {\"d\": 2}}\n"
                                "\n\n{\"state\": \"cut\"}\n";
    size_t first = (size_t)(strchr(whole, '\n') - whole) + 1;
    size_t second = (size_t)(strstr(whole, "2}}\n") - whole) + 4, third = sizeof whole - 1;
    bool read_right = true, continued_right = true;

    for (size_t length = 0; length <= third; length++) {
        VF_AUTO_FREE char *content = vf_printf("%.*s", (int)length, whole);
        const char *wanted = length < first    ? ""
                             : length < second ? "snapshot"
                             : length < third  ? "snapshot freezing"
                                               : "snapshot freezing cut";
        struct vf_journal journal = VF_JOURNAL_INIT;

        put_file(path, content);
        const char *got = states();

        if (!got || strcmp(got, wanted) != 0) {
            diag("%zu bytes: got %s, wanted %s", length, got ? got : error.text, wanted);
            read_right = false;
        }
        if (length < first)
            continue;
        VF_AUTO_FREE char *with_entry = vf_printf("%s thawed", wanted);
        /* A line without its newline may be whole, and is one when something is behind it. */
        VF_AUTO_FREE char *or_whole =
            vf_printf("%s thawed", length < second ? "snapshot freezing" : "snapshot freezing cut");

        if (!vf_journal_continue(&journal, &vm, fresh()) || !entry(&journal, "thawed"))
            continued_right = false;
        vf_journal_close(&journal);
        got = states();
        if (!got ||
            (strcmp(got, with_entry) != 0 &&
             !((length + 1 == second || length + 1 == third) && strcmp(got, or_whole) == 0))) {
            diag("%zu bytes: continued to %s, wanted %s", length, got ? got : error.text,
                 with_entry);
            continued_right = false;
        }
    }
    ok(read_right, "a line that was torn at any byte is dropped");
    ok(continued_right, "also when the recovery has written on behind it");

    put_file(path, "{\"operation\": \"snapshot\"}\n");
    add_to_file(path, "\n\n{\"sta\0\0\0\0\0\0\0\0", 15);
    is_str(states(), "snapshot", "so are the zeros that a power failure leaves");
    add_to_file(path, "\n", 1);
    is_str(states(), "snapshot", "with an end or without");
    unlink(path);
}

static void
test_guard(void)
{
    struct vf_journal journal = VF_JOURNAL_INIT;
    static const char guard[] = "\n\n{\"state\": \"thawed\"}\n";

    ok(begin(&journal) && entry(&journal, "freezing"), "an operation freezes");
    int fd = dup(journal.fd);
    ok(write(fd, "{\"state\": \"cu", 13) == 13, "and dies while it writes");
    vf_journal_close(&journal);
    ok(write(fd, guard, sizeof guard - 1) == sizeof guard - 1, "the guard writes on");
    is_str(states(), "snapshot freezing thawed", "and what it says is read");
    ok(vf_journal_continue(&journal, &vm, fresh()) && entry(&journal, "recovering") &&
           write(fd, guard, sizeof guard - 1) == sizeof guard - 1 && entry(&journal, "done"),
       "they may write both");
    is_str(states(), "snapshot freezing thawed recovering thawed done", "nothing is lost");
    close(fd);
    ok(vf_journal_end(&journal, fresh()), "ended");
}

static void
test_damage(void)
{
    static const struct {
        const char *content, *line;
    } damages[] = {
        {"x\n{\"state\": \"a\"}\n", "line 1"},
        {"[]\n", "line 1"},
        {"{}\n{\"state\": \"a}\n{\"state\": \"b\"}\n", "line 2"},
        {"{}\n\n\n{\"state\": \"a\"}\n\n\n{\"stat\": \"b\"}\n\n\n{\"state\": \"c\"}\n", "line 7"},
        {"{}\n{\"state\": 5}\n", "line 2"},
        {"{}\n\"x\"\n", "line 2"},
    };

    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        put_file(path, damages[i].content);
        ok(!vf_journal_read(&vm, fresh()) && error.code == VMFROST_FAILED, "damage %zu", i);
        has_str(error.text, damages[i].line, "is told with its line");
    }
    unlink(path);
    ok(symlink("/etc/passwd", path) == 0 && !vf_journal_read(&vm, fresh()) &&
           error.code == VMFROST_FAILED,
       "a symbolic link is no journal");
    ok(vf_journal_exists(&vm), "but it is in its place");
    struct vf_journal journal = VF_JOURNAL_INIT;

    ok(!begin(&journal), "so that nothing is begun");
    ok(!vf_journal_continue(&journal, &vm, fresh()), "nor continued through it");
    unlink(path);
    put_file(path, "");
    ok(truncate(path, 16 << 20) == 0 && !vf_journal_read(&vm, fresh()), "nor is a huge file one");
    has_str(error.text, "too large", "as told");
    ok(vf_journal_continue(&journal, &vm, fresh()) && !entry(&journal, "x"),
       "and it does not grow on");
    ok(vf_journal_end(&journal, fresh()), "ended");
}

/* A full disk, as a limit to the size of files. */
static void
test_full(void)
{
    struct vf_journal journal = VF_JOURNAL_INIT;
    struct rlimit unlimited, limit;

    ok(begin(&journal) && entry(&journal, "freezing"), "an operation");
    getrlimit(RLIMIT_FSIZE, &unlimited);
    limit = unlimited;
    limit.rlim_cur = 60;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    bool written = entry(&journal, "a state that is a good deal longer than what is left");
    setrlimit(RLIMIT_FSIZE, &unlimited);
    ok(!written && error.code == VMFROST_FAILED, "a disk is full in the middle of a line");
    is_str(states(), "snapshot freezing", "which is not read");
    ok(entry(&journal, "thawed"), "when there is room again");
    is_str(states(), "snapshot freezing thawed", "the next line is");
    ok(vf_journal_end(&journal, fresh()), "ended");

    limit.rlim_cur = 5;
    setrlimit(RLIMIT_FSIZE, &limit);
    written = begin(&journal);
    setrlimit(RLIMIT_FSIZE, &unlimited);
    ok(!written && !vf_journal_exists(&vm), "a full disk lets nothing begin, and leaves nothing");
}

int
main(void)
{
    char *scratch = scratch_new();
    struct vf_store *store = vf_store_open(scratch, fresh());

    vm = vm_at(store, "/tmp/journal.qmp");
    path = vf_printf("%s/journal", vm.folder);
    VF_AUTO_FD int lock = vf_vm_lock(&vm, "test", fresh());

    ok(lock >= 0, "locked");
    test_life();
    test_refusals();
    test_torn();
    test_guard();
    test_damage();
    test_full();
    free(path);
    vf_vm_release(&vm);
    vf_store_close(store);
    scratch_remove(scratch);
    return done_testing();
}
