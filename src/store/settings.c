/* SPDX-License-Identifier: MIT
 *
 * The settings of a VM (vm.json) and the address of its QMP socket, by which a VM is known.
 *
 * Guarantees: what is not understood is an error that names the place, the key and what would be
 * right; two spellings of a socket's path are one address.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/private.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/mountlist.h"
#include "util/text.h"

enum { SETTINGS_MOST = 64 * 1024 };

/*
 * Addresses
 */

bool
vf_is_address(const char *vm)
{
    return strchr(vm, '/') || vf_starts_with(vm, "tcp:");
}

static bool
is_tcp(const char *address)
{
    const char *host = address + strlen("tcp:"), *colon = strrchr(host, ':');

    if (!colon || colon == host)
        return false;
    size_t digits = strspn(colon + 1, "0123456789");

    return digits >= 1 && digits <= 5 && !colon[1 + digits] &&
           strtoul(colon + 1, NULL, 10) <= 65535;
}

static char *
join(const char *folder, const char *name)
{
    return vf_printf("%s/%s", strcmp(folder, "/") == 0 ? "" : folder, name);
}

/* realpath(3), but what does not exist at the end is kept as it is: a stopped VM's runtime folder
 * may be gone, and its snapshots are still wanted. NULL with errno. */
static char *
real_folder(const char *folder)
{
    char *real = realpath(folder, NULL);
    const char *last = vf_name_of(folder);

    if (real || errno != ENOENT || strcmp(folder, ".") == 0 || strcmp(last, "..") == 0)
        return real;
    VF_AUTO_FREE char *parent = vf_folder_of(folder);
    VF_AUTO_FREE char *real_parent = real_folder(parent);

    if (!real_parent)
        return NULL;
    if (!*last || strcmp(last, ".") == 0)
        return VF_STEAL(real_parent);
    return join(real_parent, last);
}

bool
vf_is_plain(const char *text)
{
    VF_AUTO_FREE char *clean = vf_strdup(text);

    vf_sanitize(clean);
    return strcmp(clean, text) == 0;
}

bool
vf_is_protocol(const char *file)
{
    const char *colon = strchr(file, ':'), *slash = strchr(file, '/');

    return colon && (!slash || colon < slash);
}

char *
vf_address(const char *given, struct vmfrost_error *error)
{
    const char *last = vf_name_of(given);

    if (!vf_is_plain(given)) {
        vf_fail(error, VMFROST_USAGE,
                "\"%s\": control characters and bytes that are no UTF-8 cannot be in a path here",
                given);
        return NULL;
    }
    if (vf_starts_with(given, "tcp:")) {
        if (is_tcp(given))
            return vf_strdup(given);
        vf_fail(error, VMFROST_USAGE, "\"%s\" is no address", given);
        vf_hint(error, "The form is tcp:HOST:PORT, or the path of a UNIX socket.");
        return NULL;
    }
    if (!*last || strcmp(last, ".") == 0 || strcmp(last, "..") == 0) {
        vf_fail(error, VMFROST_USAGE, "\"%s\" is no path of a socket", given);
        return NULL;
    }
    VF_AUTO_FREE char *folder = vf_folder_of(given);
    VF_AUTO_FREE char *real = real_folder(folder);

    if (!real) {
        vf_fail(error, VMFROST_USAGE, "cannot find the folder of %s: %s", given, strerror(errno));
        return NULL;
    }
    return join(real, last);
}

char *
vf_address_folder(const char *vms, const char *address)
{
    return vf_printf("%s/qmp-%016" PRIx64, vms, vf_hash(address));
}

bool
vf_is_address_folder(const char *name)
{
    return vf_starts_with(name, "qmp-") && strlen(name) == 20 &&
           strspn(name + 4, "0123456789abcdef") == 16;
}

/*
 * Settings
 */

enum setting {
    SETTING_QMP,
    SETTING_AGENT,
    SETTING_PEER_UID,
    SETTING_OVERLAY_FOLDER,
    SETTING_DEADLINE,
    SETTING_FROZEN_LIMIT,
    SETTING_QUIESCE,
    SETTING_METHOD,
    SETTING_EMERGENCY_THAW,
    SETTING_OS,
    SETTING_FLUSH,
    SETTING_COPY_SPEED,
    SETTING_FREEZE,
    SETTING_PRIME,
    SETTING_WARN_DEPTH,
    SETTING_WARN_AGE,
    SETTING_KEEP_LAST,
    SETTING_KEEP_HOURLY,
    SETTING_KEEP_DAILY,
    SETTING_KEEP_WEEKLY,
    SETTING_MAX_AGE,
    /* These are no texts. */
    SETTING_DISKS,
    SETTING_PERSISTENT_DISKS,
    SETTING_N,
};

static const char *const keys[] = {
    [SETTING_QMP] = "qmp",
    [SETTING_AGENT] = "agent",
    [SETTING_PEER_UID] = "peerUid",
    [SETTING_OVERLAY_FOLDER] = "overlayFolder",
    [SETTING_DEADLINE] = "deadline",
    [SETTING_FROZEN_LIMIT] = "frozenLimit",
    [SETTING_QUIESCE] = "quiesce",
    [SETTING_METHOD] = "method",
    [SETTING_EMERGENCY_THAW] = "emergencyThaw",
    [SETTING_OS] = "os",
    [SETTING_FLUSH] = "flush",
    [SETTING_COPY_SPEED] = "copySpeed",
    [SETTING_FREEZE] = "freeze",
    [SETTING_PRIME] = "prime",
    [SETTING_WARN_DEPTH] = "warnDepth",
    [SETTING_WARN_AGE] = "warnAge",
    [SETTING_KEEP_LAST] = "keepLast",
    [SETTING_KEEP_HOURLY] = "keepHourly",
    [SETTING_KEEP_DAILY] = "keepDaily",
    [SETTING_KEEP_WEEKLY] = "keepWeekly",
    [SETTING_MAX_AGE] = "maxAge",
    [SETTING_DISKS] = "disks",
    [SETTING_PERSISTENT_DISKS] = "persistentDisks",
};

struct word {
    const char *word;
    int value;
};

static const struct word quiesce_words[] = {
    {"auto", VMFROST_QUIESCE_AUTO},
    {"require", VMFROST_QUIESCE_REQUIRE},
    {"prefer", VMFROST_QUIESCE_PREFER},
    {"skip", VMFROST_QUIESCE_SKIP},
    {NULL, 0},
};
static const struct word prime_words[] = {
    {"on", 0},
    {"off", 1},
    {NULL, 0},
};
static const struct word method_words[] = {
    {"existing", VMFROST_METHOD_EXISTING},
    {"preopened", VMFROST_METHOD_PREOPENED},
    {NULL, 0},
};
static const struct word emergency_words[] = {
    {"off", VF_EMERGENCY_OFF},
    {"sysrq", VF_EMERGENCY_SYSRQ},
    {NULL, 0},
};
static const struct word os_words[] = {{"linux", 0}, {"windows", 1}, {NULL, 0}};

/* Where a setting stands and what its fault counts as. */
struct reader {
    const char *where;
    enum vmfrost_code code;
    struct vmfrost_error *error;
};

static bool
read_word(const struct reader *reader, const char *key, const char *text, const struct word *words,
          int *value_r)
{
    char allowed[128] = "";
    size_t used = 0;

    for (size_t i = 0; words[i].word; i++) {
        if (strcmp(words[i].word, text) == 0) {
            *value_r = words[i].value;
            return true;
        }
        used += (size_t)snprintf(allowed + used, sizeof allowed - used, "%s%s", i ? ", " : "",
                                 words[i].word);
    }
    vf_fail(reader->error, reader->code, "%s: \"%s\" cannot be \"%s\"", reader->where, key, text);
    return vf_hint(reader->error, "\"%s\" is one of: %s.", key, allowed);
}

static bool
read_duration(const struct reader *reader, const char *key, const char *text, int64_t *ms_r)
{
    if (vf_parse_duration_ms(text, ms_r) && *ms_r > 0)
        return true;
    *ms_r = 0;
    vf_fail(reader->error, reader->code, "%s: \"%s\" cannot be \"%s\"", reader->where, key, text);
    return vf_hint(reader->error,
                   "\"%s\" is a duration above 0 and up to a year, like \"30s\", \"5m\" or "
                   "\"1h30m\".",
                   key);
}

static bool
read_count(const struct reader *reader, const char *key, const char *text, int64_t *count_r)
{
    if (vf_parse_count(text, count_r))
        return true;
    *count_r = 0;
    vf_fail(reader->error, reader->code, "%s: \"%s\" cannot be \"%s\"", reader->where, key, text);
    return vf_hint(reader->error, "\"%s\" is a number from 1 to 1000000.", key);
}

static bool
read_uid(const struct reader *reader, const char *key, const char *text, uid_t *uid_r)
{
    int64_t number = 0;

    if (strspn(text, "0123456789") == strlen(text) && vf_parse_size(text, &number) && number > 0 &&
        number < UINT32_MAX) {
        *uid_r = (uid_t)number;
        return true;
    }
    vf_fail(reader->error, reader->code, "%s: \"%s\" cannot be \"%s\"", reader->where, key, text);
    return vf_hint(reader->error, "\"%s\" is the number of QEMU's user, like \"64055\".", key);
}

static bool
read_speed(const struct reader *reader, const char *key, const char *text, int64_t *speed_r)
{
    if (vf_parse_size(text, speed_r) && *speed_r > 0)
        return true;
    *speed_r = 0;
    vf_fail(reader->error, reader->code, "%s: \"%s\" cannot be \"%s\"", reader->where, key, text);
    return vf_hint(reader->error, "\"%s\" is how much to copy in a second, like \"50M\".", key);
}

static bool
read_address(const struct reader *reader, const char *key, const char *text, char **address_r)
{
    if (text[0] != '/' && !vf_starts_with(text, "tcp:"))
        return vf_fail(reader->error, reader->code,
                       "%s: \"%s\" has to be an absolute path or tcp:HOST:PORT, not \"%s\"",
                       reader->where, key, text);
    struct vmfrost_error why = {.code = VMFROST_OK};

    free(*address_r);
    *address_r = vf_address(text, &why);
    if (*address_r)
        return true;
    vf_fail(reader->error, reader->code, "%s: \"%s\": %s", reader->where, key, why.text);
    return vf_hint(reader->error, "%s", why.next);
}

static bool
read_freeze(const struct reader *reader, const char *key, const char *text, struct vf_vm *vm)
{
    struct vf_mountlist list;
    bool valid = vf_mountlist_parse(text, &list);

    vf_mountlist_release(&list);
    if (!valid) {
        vf_fail(reader->error, reader->code, "%s: \"%s\" does not say what to freeze: \"%s\"",
                reader->where, key, text);
        return vf_hint(reader->error, "write " VF_MOUNTLIST_FORM);
    }
    free(vm->freeze);
    vm->freeze = vf_strdup(text);
    return true;
}

static bool
read_text(const struct reader *reader, enum setting setting, const char *text, struct vf_vm *vm)
{
    const char *key = keys[setting];
    int value = 0;
    bool known = true;

    switch (setting) {
    case SETTING_QMP:
        return read_address(reader, key, text, &vm->qmp);
    case SETTING_AGENT:
        return read_address(reader, key, text, &vm->agent);
    case SETTING_PEER_UID:
        return read_uid(reader, key, text, &vm->peer_uid);
    case SETTING_OVERLAY_FOLDER:
        if (text[0] != '/' || !vf_is_plain(text))
            return vf_fail(reader->error, reader->code,
                           "%s: \"%s\" has to be an absolute path, not \"%s\"", reader->where, key,
                           text);
        vm->overlay_folder = vf_strdup(text);
        return true;
    case SETTING_DEADLINE:
        return read_duration(reader, key, text, &vm->deadline_ms);
    case SETTING_FROZEN_LIMIT:
        return read_duration(reader, key, text, &vm->frozen_limit_ms);
    case SETTING_QUIESCE:
        known = read_word(reader, key, text, quiesce_words, &value);
        vm->quiesce = (enum vmfrost_quiesce)value;
        vm->quiesce_set = known;
        return known;
    case SETTING_METHOD:
        known = read_word(reader, key, text, method_words, &value);
        vm->method = (enum vmfrost_method)value;
        vm->method_set = known;
        return known;
    case SETTING_EMERGENCY_THAW:
        known = read_word(reader, key, text, emergency_words, &value);
        vm->emergency_thaw = (enum vf_emergency_thaw)value;
        return known;
    case SETTING_OS:
        known = read_word(reader, key, text, os_words, &value);
        vm->windows = value == 1;
        return known;
    case SETTING_FLUSH:
        if (!*text || !vf_is_plain(text))
            return vf_fail(reader->error, reader->code,
                           "%s: \"%s\" has to be auto, off, or a command for the guest's shell",
                           reader->where, key);
        free(vm->flush);
        vm->flush = vf_strdup(text);
        return true;
    case SETTING_COPY_SPEED:
        return read_speed(reader, key, text, &vm->copy_speed);
    case SETTING_FREEZE:
        return read_freeze(reader, key, text, vm);
    case SETTING_PRIME:
        known = read_word(reader, key, text, prime_words, &value);
        vm->no_prime = value == 1;
        return known;
    case SETTING_WARN_DEPTH:
        return read_count(reader, key, text, &vm->warn_depth);
    case SETTING_WARN_AGE:
        return read_duration(reader, key, text, &vm->warn_age_ms);
    case SETTING_KEEP_LAST:
        return read_count(reader, key, text, &vm->retention.keep_last);
    case SETTING_KEEP_HOURLY:
        return read_count(reader, key, text, &vm->retention.keep_hourly);
    case SETTING_KEEP_DAILY:
        return read_count(reader, key, text, &vm->retention.keep_daily);
    case SETTING_KEEP_WEEKLY:
        return read_count(reader, key, text, &vm->retention.keep_weekly);
    case SETTING_MAX_AGE:
        return read_duration(reader, key, text, &vm->retention.max_age_ms);
    case SETTING_DISKS:
    case SETTING_PERSISTENT_DISKS:
    case SETTING_N:
        break;
    }
    assert(false);
    return false;
}

static bool
read_setting(const struct reader *reader, enum setting setting, struct json_object *value,
             struct vf_vm *vm)
{
    const char *text = vf_json_text(value);

    if (setting == SETTING_DISKS) {
        if (!vf_disks_declared(value, reader->where, reader->code, reader->error))
            return false;
        json_object_put(vm->disks);
        vm->disks = json_object_get(value);
        return true;
    }
    if (setting == SETTING_PERSISTENT_DISKS) {
        if (!vf_disks_are_names(value, reader->where, reader->code, reader->error))
            return false;
        json_object_put(vm->persistent);
        vm->persistent = json_object_get(value);
        return true;
    }
    if (!text)
        return vf_fail(reader->error, reader->code, "%s: \"%s\" has to be a text in quotes",
                       reader->where, keys[setting]);
    return read_text(reader, setting, text, vm);
}

bool
vf_settings_read(struct json_object *settings, const char *where, enum vmfrost_code code,
                 struct vf_vm *vm, struct vmfrost_error *error)
{
    const struct reader reader = {where, code, error};

    json_object_object_foreach(settings, key, value)
    {
        enum setting setting = SETTING_QMP;

        while (setting < SETTING_N && strcmp(keys[setting], key) != 0)
            setting++;
        if (setting == SETTING_N) {
            vf_fail(error, code, "%s: there is no setting \"%s\"", where, key);
            VF_AUTO_FREE char *names = vf_strdup(keys[0]);

            for (size_t i = 1; i < SETTING_N; i++) {
                char *longer =
                    vf_printf("%s%s%s", names, i < SETTING_N - 1 ? ", " : " and ", keys[i]);

                free(names);
                names = longer;
            }
            return vf_hint(error, "The settings are %s.", names);
        }
        if (!read_setting(&reader, setting, value, vm))
            return false;
    }
    if (!vm->qmp) {
        vf_fail(error, code, "%s: \"qmp\" is missing", where);
        return vf_hint(error, "\"qmp\" is the path of the VM's QMP socket.");
    }
    return true;
}

/* Symbolic links in the folder are resolved; the image's own name is kept, as the launcher has it.
 * What is no file, and what makes no sense, is left as it is. */
static void
make_disks_absolute(struct json_object *disks)
{
    for (size_t i = 0; i < vf_json_length(disks); i++) {
        const char *file = vf_json_string(vf_json_at(disks, i), "file");

        if (!file || !*file || vf_is_protocol(file))
            continue;
        VF_AUTO_FREE char *folder = vf_folder_of(file);
        VF_AUTO_FREE char *real = real_folder(folder);
        VF_AUTO_FREE char *path = real ? join(real, vf_name_of(file)) : NULL;

        vf_json_add_string(vf_json_at(disks, i), "file", path);
    }
}

struct json_object *
vf_settings_absolute(struct json_object *settings, struct vmfrost_error *error)
{
    static const enum setting sockets[] = {SETTING_QMP, SETTING_AGENT};
    VF_AUTO_JSON struct json_object *absolute = NULL;

    if (!json_object_is_type(settings, json_type_object)) {
        vf_fail(error, VMFROST_USAGE, "the settings are no JSON object");
        return NULL;
    }
    int failed = json_object_deep_copy(settings, &absolute, NULL);

    assert(!failed);
    (void)failed;
    /* What is no text is left for vf_settings_read() to complain about. */
    for (size_t i = 0; i < sizeof sockets / sizeof *sockets; i++) {
        const char *key = keys[sockets[i]], *given = vf_json_string(settings, key);
        VF_AUTO_FREE char *address = given ? vf_address(given, error) : NULL;

        if (given && !address) {
            vf_prefix(error, "\"%s\"", key);
            return NULL;
        }
        vf_json_add_string(absolute, key, address);
    }
    const char *given = vf_json_string(settings, keys[SETTING_OVERLAY_FOLDER]);
    VF_AUTO_FREE char *folder = given && *given ? real_folder(given) : NULL;

    if (given && !folder) {
        vf_fail(error, VMFROST_USAGE, "\"overlayFolder\": cannot find \"%s\": %s", given,
                *given ? strerror(errno) : "it is empty");
        return NULL;
    }
    vf_json_add_string(absolute, keys[SETTING_OVERLAY_FOLDER], folder);
    make_disks_absolute(vf_json_array(absolute, keys[SETTING_DISKS]));
    return VF_STEAL(absolute);
}

/*
 * vm.json
 */

bool
vf_settings_load(const char *folder, struct json_object **settings_r, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = vf_printf("%s/vm.json", folder);

    return vf_document_load(path, SETTINGS_MOST, settings_r, error);
}

bool
vf_settings_save(const char *folder, struct json_object *settings, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = vf_printf("%s/vm.json", folder);

    return vf_document_save(path, settings, SETTINGS_MOST, error);
}

bool
vf_settings_address(const char *folder, char **address_r, struct vmfrost_error *error)
{
    VF_AUTO_JSON struct json_object *settings = NULL;

    *address_r = NULL;
    if (!vf_settings_load(folder, &settings, error))
        return false;
    if (!settings)
        return true;
    VF_AUTO_FREE char *path = vf_printf("%s/vm.json", folder);
    const char *text = vf_json_string(settings, keys[SETTING_QMP]);
    const struct reader reader = {path, VMFROST_FAILED, error};

    if (!text) {
        vf_fail(error, VMFROST_FAILED, "%s: \"qmp\" is missing or no text", path);
        return vf_hint(error, "\"qmp\" is the path of the VM's QMP socket: repair it.");
    }
    return read_address(&reader, keys[SETTING_QMP], text, address_r);
}
