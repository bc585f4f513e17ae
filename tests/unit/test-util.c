/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tap.h"
#include "util/cleanup.h"
#include "util/error.h"
#include "util/file.h"
#include "util/json.h"
#include "util/log.h"
#include "util/mem.h"
#include "util/text.h"

static char folder[64];

static const char *
in_folder(const char *name)
{
    static char path[4][200];
    static unsigned next;
    char *at = path[next++ % 4];

    snprintf(at, sizeof path[0], "%s/%s", folder, name);
    return at;
}

/* Text */

static void
test_sanitize(void)
{
    static const struct {
        const char *text, *wanted, *what;
    } cases[] = {
        {"", "", "nothing"},
        {"plain ~ text", "plain ~ text", "ASCII"},
        {"a\tb\r\nc\033[2Jd\x01", "a?b??c?[2Jd?", "C0 controls"},
        {"a\x7f", "a?", "DEL"},
        {"\xc2\x80\xc2\x9b\xc2\x9f", "??????", "C1 controls"},
        {"\xc2\xa0\xc3\xa4\xdf\xbf", "\xc2\xa0\xc3\xa4\xdf\xbf", "two bytes"},
        {"\xe2\x82\xac\xef\xbf\xbd", "\xe2\x82\xac\xef\xbf\xbd", "three bytes"},
        {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80", "four bytes"},
        {"\xe2\x80\xae x \xe2\x80\xaa\xe2\x81\xa6\xe2\x81\xa9", "??? x ?????????", "bidi controls"},
        {"\xe2\x80\x8b\xe2\x80\x8f\xe2\x80\xa8", "?????????", "invisible marks, line separator"},
        {"\x80\xbf\xff\xfe", "????", "bytes that begin nothing"},
        {"\xc3", "?", "two bytes cut off"},
        {"\xe2\x82", "??", "three bytes cut off"},
        {"\xf0\x9f\x98", "???", "four bytes cut off"},
        {"\xc3(\xe2\x82(\xf0\x9f(",
         "?(?"
         "?(?"
         "?(",
         "a wrong byte in the middle"},
        {"\xc0\xaf\xc1\xbf", "????", "overlong, two bytes"},
        {"\xe0\x80\xaf\xe0\x9f\xbf", "??????", "overlong, three bytes"},
        {"\xf0\x80\x80\xaf\xf0\x8f\xbf\xbf", "????????", "overlong, four bytes"},
        {"\xed\xa0\x80\xed\xbf\xbf", "??????", "surrogates"},
        {"\xf4\x90\x80\x80\xf5\x80\x80\x80", "????????", "beyond Unicode"},
        {"\xf3\xa0\x81\x81", "????", "tag characters"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        VF_AUTO_FREE char *text = vf_strdup(cases[i].text);

        vf_sanitize(text);
        is_str(text, cases[i].wanted, cases[i].what);
    }
    int bad = 0;

    /* Whatever three bytes: nothing is left that a terminal acts on, and again changes nothing. */
    for (unsigned i = 1; i < 1U << 24; i += 41) {
        char text[4] = {(char)(i >> 16), (char)(i >> 8), (char)i, 0}, again[4];

        vf_sanitize(text);
        memcpy(again, text, sizeof again);
        vf_sanitize(again);
        bad += memcmp(text, again, sizeof again) != 0;
        for (const unsigned char *at = (unsigned char *)text; *at; at++)
            bad += *at < 0x20 || *at == 0x7f;
    }
    is_int(bad, 0, "once is enough");
}

static void
test_durations(void)
{
    static const struct {
        const char *text;
        int64_t ms;
    } good[] = {{"0", 0},       {"300", 300000},       {"2s", 2000},     {"250ms", 250},
                {"5m", 300000}, {"1h30m", 5400000},    {"1d", 86400000}, {"1m0s1ms", 60001},
                {"007s", 7000}, {"366d", 31622400000}, {"1h", 3600000}};
    static const char *const bad[] = {"",         "s",     "-1",
                                      "+1",       " 1",    "1 ",
                                      "1x",       "1h ",   "1h5",
                                      "1.5s",     "1mh",   "ms",
                                      "1S",       "5m-",   "367d",
                                      "31622401", "0x10s", "99999999999999999999999s",
                                      "366d1ms",  "1\n"};

    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int64_t ms = -1;

        ok(vf_parse_duration_ms(good[i].text, &ms) && ms == good[i].ms, "duration \"%s\"",
           good[i].text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int64_t ms = -1;

        ok(!vf_parse_duration_ms(bad[i], &ms) && ms == -1, "no duration: case %zu", i);
    }
}

static void
test_sizes(void)
{
    static const struct {
        const char *text;
        int64_t bytes;
    } good[] = {
        {"0", 0},
        {"65536", 65536},
        {"64k", 65536},
        {"64K", 65536},
        {"64KiB", 65536},
        {"512M", 512 << 20},
        {"10GiB", INT64_C(10) << 30},
        {"2T", INT64_C(2) << 40},
        {"7E", INT64_C(7) << 60},
        {"9223372036854775807", INT64_MAX},
    };
    static const char *const bad[] = {"",     " 1",  "1 k",   "k",  "-1", "+1",
                                      "1.5G", "1kB", "1KiBB", "1x", "8E", "9223372036854775808",
                                      "1Gi",  "0x10"};

    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int64_t bytes = -1;

        ok(vf_parse_size(good[i].text, &bytes) && bytes == good[i].bytes, "size \"%s\"",
           good[i].text);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int64_t bytes = -1;

        ok(!vf_parse_size(bad[i], &bytes) && bytes == -1, "no size: \"%s\"", bad[i]);
    }
}

static void
test_counts(void)
{
    static const char *const bad[] = {"",   "0",  "-1",  "+1",      " 1",
                                      "1 ", "1x", "0x1", "1000001", "99999999999999999999"};
    int64_t count = 0;

    ok(vf_parse_count("1", &count) && count == 1, "a count");
    ok(vf_parse_count("007", &count) && count == 7, "with zeros before it");
    ok(vf_parse_count("1000000", &count) && count == 1000000, "the largest one");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ok(!vf_parse_count(bad[i], &count) && count == 1000000, "no count: \"%s\"", bad[i]);
}

static void
test_names(void)
{
    static const char *const good[] = {
        "a",
        "web",
        "Web-1.2_3+4",
        "0",
        "_",
        "+",
        "0123456789012345678901234567890123456789012345678901234567890123"};
    static const char *const bad[] = {
        "",
        ".",
        "..",
        ".a",
        "-a",
        "a/b",
        "a b",
        "a@b",
        "a\n",
        "\xc3\xa4",
        "01234567890123456789012345678901234567890123456789012345678901234"};

    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        ok(vf_valid_name(good[i]), "name \"%s\"", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        ok(!vf_valid_name(bad[i]), "no name: case %zu", i);
}

static void
test_small_text(void)
{
    char one[17], two[17];

    ok(vf_starts_with("abc", "ab") && vf_starts_with("abc", "") && !vf_starts_with("ab", "abc"),
       "begins with");
    ok(vf_ends_with("abc", "bc") && vf_ends_with("abc", "") && !vf_ends_with("bc", "abc"),
       "ends with");
    vf_random_hex(one);
    vf_random_hex(two);
    ok(strspn(one, "0123456789abcdef") == 16 && one[16] == '\0' && strcmp(one, two) != 0,
       "random digits");
    ok(vf_hash("") == UINT64_C(0xcbf29ce484222325) &&
           vf_hash("a") == UINT64_C(0xaf63dc4c8601ec8c) &&
           vf_hash("foobar") == UINT64_C(0x85944171f73967e8),
       "FNV-1a");
}

/* JSON */

static void
test_json(void)
{
    static const char text[] =
        "{\"s\":\"x\",\"nul\":\"a\\u0000b\",\"n\":null,\"i\":-5,\"big\":9223372036854775808,"
        "\"max\":9223372036854775807,\"min\":-9223372036854775808,\"d\":1.0,\"t\":true,\"f\":false,"
        "\"o\":{},\"a\":[1,\"two\"]}";
    VF_AUTO_JSON struct json_object *object = vf_json_parse(text, sizeof text - 1, 8);
    struct json_object *array = vf_json_array(object, "a");
    int64_t number = 77;

    is_str(vf_json_string(object, "s"), "x", "a string");
    ok(!vf_json_string(object, "nul"), "a string with a NUL in it is not there");
    ok(!vf_json_string(object, "i") && !vf_json_string(object, "n") && !vf_json_string(object, "-"),
       "nor is anything that is no string");
    ok(vf_json_object(object, "o") && !vf_json_object(object, "a") && !vf_json_object(object, "n"),
       "an object");
    ok(array && !vf_json_array(object, "o"), "an array");
    ok(vf_json_bool(object, "t", false) && !vf_json_bool(object, "f", true), "booleans");
    ok(vf_json_bool(object, "i", true) && !vf_json_bool(object, "s", false), "or what is said");
    ok(vf_json_int(object, "i", &number) && number == -5, "an integer");
    number = 77;
    ok(!vf_json_int(object, "d", &number) && !vf_json_int(object, "s", &number) &&
           !vf_json_int(object, "big", &number) && !vf_json_int(object, "t", &number) &&
           !vf_json_int(object, "max", &number) && !vf_json_int(object, "min", &number) &&
           !vf_json_int(object, "-", &number) && number == 77,
       "and what is none, or has no room");
    ok(vf_json_length(array) == 2 && vf_json_length(NULL) == 0, "lengths");
    is_str(vf_json_text(vf_json_at(array, 1)), "two", "an element");
    ok(!vf_json_text(vf_json_at(array, 0)) && !vf_json_at(array, 2), "no text, no element");
    ok(!vf_json_string(NULL, "s") && !vf_json_object(NULL, "o") && !vf_json_text(NULL) &&
           !vf_json_string(array, "s"),
       "nothing is in what is no object");

    VF_AUTO_JSON struct json_object *written = vf_json_strings("a", "1", "b", NULL, "c", "3", NULL);

    vf_json_add_int(written, "i", 4);
    vf_json_add_bool(written, "t", true);
    vf_json_add(written, "n", NULL);
    is_str(json_object_to_json_string_ext(written, JSON_C_TO_STRING_PLAIN),
           "{\"a\":\"1\",\"c\":\"3\",\"i\":4,\"t\":true,\"n\":null}", "written");

    static const char *const bad[] = {"",
                                      " ",
                                      "{",
                                      "{}}",
                                      "{} x",
                                      "{\"a\":1,}",
                                      "nul",
                                      "[1 2]",
                                      "{\"a\":\"\xff\"}",
                                      "[[[[[[[[[1]]]]]]]]]"};

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        VF_AUTO_JSON struct json_object *value = vf_json_parse(bad[i], strlen(bad[i]), 8);

        ok(!value, "not parsed: case %zu", i);
    }
}

/* A value of its own kind of trouble: nested, or with bytes that may be no UTF-8. */
static struct json_object *
random_value(unsigned *seed, int depth)
{
    static const char bytes[] =
        "a\"\\{}[]/\n\x01\x7f\x80\xbf\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\xf8\xff";
    struct json_object *array;
    char text[4];
    int kind = rand_r(seed) % 8;

    if (depth == 0 || kind == 0) {
        for (size_t i = 0; i < sizeof text; i++)
            text[i] = kind < 5 ? 'x' : bytes[rand_r(seed) % (sizeof bytes - 1)];
        if (kind == 6)
            memcpy(text, "\xc3\xa4", 2);
        return kind == 7 ? json_object_new_int(-1) : json_object_new_string_len(text, sizeof text);
    }
    if (kind == 1) {
        struct json_object *object = json_object_new_object();

        for (size_t i = 0; i < sizeof text - 1; i++)
            text[i] = rand_r(seed) % 8 ? 'k' : bytes[rand_r(seed) % (sizeof bytes - 1)];
        text[sizeof text - 1] = '\0';
        vf_json_add(object, text, random_value(seed, depth - 1));
        return object;
    }
    array = json_object_new_array();
    for (int i = rand_r(seed) % 3; i >= 0; i--)
        json_object_array_add(array, random_value(seed, depth - 1));
    return array;
}

static void
test_readable(void)
{
    enum { DEPTH = 5, CASES = 20000 };
    unsigned seed = 1;
    int readable = 0, wrong = 0;

    for (int i = 0; i < CASES; i++) {
        VF_AUTO_JSON struct json_object *value = json_object_new_array();

        json_object_array_add(value, random_value(&seed, rand_r(&seed) % (DEPTH + 1)));
        const char *text = json_object_to_json_string_ext(value, JSON_C_TO_STRING_PLAIN);
        VF_AUTO_JSON struct json_object *again = vf_json_parse(text, strlen(text), DEPTH);

        readable += vf_json_readable(text, DEPTH);
        if (vf_json_readable(text, DEPTH) != (again != NULL) && wrong++ < 5)
            diag("%s: %s", again ? "can be read" : "cannot be read", text);
    }
    is_int(wrong, 0, "what is readable can be read, and nothing else");
    ok(readable > CASES / 10 && readable < CASES - CASES / 10,
       "of both there were enough: %d of %d", readable, CASES);
    ok(!vf_json_readable("\"\xe2\x82", DEPTH), "a character that is cut off");
}

/* Files */

static void
test_files(void)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    VF_AUTO_FREE char *path = vf_strdup(in_folder("file"));
    size_t length = 0;
    struct stat about;

    ok(vf_replace_file(path, "old", 3, &error), "a file is made");
    ok(vf_replace_file(path, "n\0w!", 4, &error), "and replaced");
    VF_AUTO_FREE char *content = vf_read_file(path, 4, &length);

    ok(content && length == 4 && memcmp(content, "n\0w!", 5) == 0,
       "and read, with a NUL behind it");
    ok(stat(path, &about) == 0 && (about.st_mode & 07777) == 0600, "mode 0600");
    ok(access(in_folder("file.new"), F_OK) < 0, "nothing is left beside it");
    errno = 0;
    ok(!vf_read_file(path, 3, &length) && errno == EFBIG, "too large");
    ok(!vf_read_file(in_folder("none"), 3, &length) && errno == ENOENT, "not there");
    ok(!vf_read_file(folder, 100, &length) && errno == EINVAL, "a folder is no file");
    ok(mkfifo(in_folder("fifo"), 0600) == 0 && !vf_read_file(in_folder("fifo"), 3, &length) &&
           errno == EINVAL,
       "nor is a FIFO, and nobody waits for it");
    ok(symlink(path, in_folder("link")) == 0 && !vf_read_file(in_folder("link"), 100, &length) &&
           errno == ELOOP,
       "a symbolic link is not followed");
    VF_AUTO_FREE char *empty =
        vf_replace_file(path, "", 0, &error) ? vf_read_file(path, 0, &length) : NULL;

    ok(empty && length == 0 && !*empty, "an empty file");

    close(open(in_folder("file.new"), O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
    ok(vf_replace_file(path, "x", 1, &error), "what a crash left behind is no hindrance");
    ok(!vf_failed(&error), "no error so far");
    ok(!vf_replace_file(in_folder("none/file"), "x", 1, &error) &&
           strstr(error.text, "No such file or directory"),
       "no folder for it");

    error = (struct vmfrost_error){.code = VMFROST_OK};
    ok(vf_make_folders(in_folder("a/b/c"), &error) && vf_make_folders(in_folder("a/b/c"), &error) &&
           vf_make_folders(in_folder("a/b/"), &error),
       "folders, made once");
    ok(stat(in_folder("a/b/c"), &about) == 0 && (about.st_mode & 07777) == 0700, "mode 0700");
    ok(!vf_make_folders(in_folder("file/below"), &error) && vf_failed(&error), "not below a file");
    ok(vf_sync_folder(folder) == 0 && vf_sync_folder_of(path) == 0, "folders made durable");
    ok(vf_sync_folder(path) < 0 && vf_sync_folder(in_folder("none")) < 0,
       "what is no folder is not");

    static const char *const names[][3] = {{"/a/b/c", "/a/b", "c"},
                                           {"/c", "/", "c"},
                                           {"c", ".", "c"},
                                           {"a/c", "a", "c"},
                                           {"a/", "a", ""}};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        VF_AUTO_FREE char *of = vf_folder_of(names[i][0]);

        ok(strcmp(of, names[i][1]) == 0 && strcmp(vf_name_of(names[i][0]), names[i][2]) == 0,
           "folder and name of %s", names[i][0]);
    }
}

/* Errors and the log */

static void
test_errors(void)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    char *endless = vf_alloc(5000);

    ok(!vf_failed(&error), "no error at first");
    ok(!vf_fail(&error, VMFROST_UNREACHABLE, "disk %d\n\033", 7), "failing is false");
    ok(error.code == VMFROST_UNREACHABLE && vf_failed(&error), "the code");
    is_str(error.text, "disk 7??", "the text, sanitized");
    vf_fail(&error, VMFROST_FAILED, "another");
    ok(error.code == VMFROST_UNREACHABLE, "the first error is kept");
    is_str(error.text, "disk 7??", "and its text");
    ok(!vf_hint(&error, "try %s", "again"), "hinting is false");
    vf_hint(&error, "another");
    is_str(error.next, "try again", "the first hint is kept");
    vf_prefix(&error, "VM %s", "web");
    vf_prefix(&error, "snapshot");
    is_str(error.text, "snapshot: VM web: disk 7??", "prefixes");
    memset(endless, 'x', 4999);
    vf_prefix(&error, "%s", endless);
    ok(strlen(error.text) == sizeof error.text - 1, "an endless prefix is cut");
    error = (struct vmfrost_error){.code = VMFROST_OK};
    vf_fail(&error, VMFROST_FAILED, "%s", endless);
    vf_hint(&error, "%s", endless);
    ok(strlen(error.text) == sizeof error.text - 1 && strlen(error.next) == sizeof error.next - 1,
       "endless words are cut");
    free(endless);
}

static char logged[3000];
static int log_count;

static void
on_log(void *data, enum vmfrost_log_level level, const char *line)
{
    *(enum vmfrost_log_level *)data = level;
    snprintf(logged, sizeof logged, "%s", line);
    log_count++;
}

static void
test_log(void)
{
    enum vmfrost_log_level level = VMFROST_LOG_WARNING;
    const struct vf_log log = {.fn = on_log, .data = &level}, nobody = {.fn = NULL};
    const struct vf_log warnings = {.fn = on_log, .data = &level, .warnings_only = true};

    vf_log(&log, VMFROST_LOG_INFO, "a %d\n", 1);
    ok(level == VMFROST_LOG_INFO && strcmp(logged, "a 1?") == 0, "one line, sanitized");
    vf_log(&log, VMFROST_LOG_DEBUG, "%2500d", 1);
    is_int((long long)strlen(logged), 1999, "cut");
    vf_log(&nobody, VMFROST_LOG_DEBUG, "x");
    is_int(log_count, 2, "nobody listens");
    vf_log(&warnings, VMFROST_LOG_INFO, "x");
    is_int(log_count, 2, "who wants warnings hears of nothing else");
    vf_log(&warnings, VMFROST_LOG_WARNING, "w");
    ok(log_count == 3 && level == VMFROST_LOG_WARNING && strcmp(logged, "w") == 0,
       "... but of those");
}

/* Memory and owners */

static void
test_memory(void)
{
    int *numbers = NULL, wrong = 0;

    for (int i = 0; i < 1000; i++) {
        VF_GROW(numbers, (size_t)i);
        numbers[i] = i;
    }
    for (int i = 0; i < 1000; i++)
        wrong += numbers[i] != i;
    is_int(wrong, 0, "an array grows");
    /* Emptied and used again: an array may shrink to its first size. */
    VF_GROW(numbers, 0);
    numbers[3] = 3;
    free(numbers);

    VF_AUTO_FREE char *zero = vf_alloc(100), *nothing = vf_alloc(0),
                      *text = vf_printf("%d-%s", 1, "a");
    VF_AUTO_FREE char *owner = vf_strdup("mine");
    VF_AUTO_FREE char *thief = VF_STEAL(owner);

    for (size_t i = 0; i < 100; i++)
        wrong += zero[i] != 0;
    ok(wrong == 0 && nothing, "memory is zeroed");
    is_str(text, "1-a", "printed");
    ok(!owner && strcmp(thief, "mine") == 0, "stolen");
}

static void
test_free_bytes(void)
{
    ok(vf_free_bytes("/", false) <= vf_free_bytes("/", true), "root has what others have, or more");
    is_int(vf_free_bytes("/no/such/folder", true), INT64_MAX, "nobody can tell");
    is_int(vf_free_bytes("/proc", true), INT64_MAX, "what sets no limit");
}

static void
test_clean(void)
{
    VF_AUTO_FREE char *path = vf_printf("%s/dirty", folder);
    VF_AUTO_FD int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    ok(!vf_file_is_clean("/nowhere"), "what is not there is not known to be clean");
    ok(write(fd, "x", 1) == 1 && !vf_file_is_clean(path), "written, and not yet on the disk");
    /* Not in every kernel, nor on every file system. */
    diag("after fsync: %s",
         fsync(fd) == 0 && vf_file_is_clean(path) ? "clean" : "that cannot be told here");
}

int
main(void)
{
    char command[100];

    strcpy(folder, "/tmp/vmfrost-test-XXXXXX");
    if (!mkdtemp(folder))
        return 1;
    test_sanitize();
    test_durations();
    test_sizes();
    test_counts();
    test_names();
    test_small_text();
    test_json();
    test_readable();
    test_files();
    test_clean();
    test_errors();
    test_log();
    test_free_bytes();
    test_memory();
    snprintf(command, sizeof command, "rm -rf %s", folder);
    if (system(command) != 0)
        diag("%s is left behind", folder);
    return done_testing();
}
