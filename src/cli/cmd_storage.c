/* SPDX-License-Identifier: MIT
 *
 * storage: what is to become of disks by where they lie.
 */
#include <string.h>

#include "cli/cli.h"
#include "cli/report.h"
#include "cli/suggest.h"
#include "cli/table.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

/* Keys of the command line, and the members that they are. */
static const struct key {
    const char *key, *object, *member; /* `object` NULL: the class itself */
    bool flag;                         /* yes or no, which is a boolean in JSON */
} keys[] = {
    {"match.path", "match", "path", false},
    {"match.protocol", "match", "protocol", false},
    {"match.format", "match", "format", false},
    {"snapshot", NULL, "snapshot", false},
    {"overlayFolder", NULL, "overlayFolder", false},
    {"clusterSize", "overlayOptions", "clusterSize", false},
    {"extendedL2", "overlayOptions", "extendedL2", true},
    {"preallocation", "overlayOptions", "preallocation", false},
    {"minFree", NULL, "minFree", false},
};
#define KEY_COUNT (sizeof keys / sizeof *keys)

static const struct key *
find_key(const char *word, size_t length)
{
    for (size_t i = 0; i < KEY_COUNT; i++)
        if (strlen(keys[i].key) == length && strncmp(keys[i].key, word, length) == 0)
            return &keys[i];
    return NULL;
}

static bool
unknown_key(struct cli *cli, const char *word)
{
    VF_AUTO_FREE char *name = strndup(word, strcspn(word, "="));
    struct suggestion suggestion = suggest_begin(name);

    for (size_t i = 0; i < KEY_COUNT; i++)
        suggest_offer(&suggestion, keys[i].key);
    if (suggestion.best[0])
        report_usage(cli, "a storage class has no '%s': did you mean '%s'?", name, suggestion.best);
    else
        report_usage(cli, "a storage class has no '%s'", name);
    return false;
}

/* False after a usage error was reported. */
static bool
take_word(struct cli *cli, struct json_object *class, const char *word)
{
    const char *equals = strchr(word, '=');
    const struct key *key = equals ? find_key(word, (size_t)(equals - word)) : NULL;

    if (!equals)
        return report_usage(cli, "'%s' is not of the form KEY=VALUE", word), false;
    if (!key)
        return unknown_key(cli, word);
    struct json_object *at = key->object ? vf_json_object(class, key->object) : class;

    if (!at) {
        at = vf_json_new_object();
        vf_json_add(class, key->object, at);
    }
    const char *value = equals + 1;
    bool yes = strcmp(value, "yes") == 0;

    if (!key->flag || !*value) {
        vf_json_add_string(at, key->member, value);
    } else if (yes || strcmp(value, "no") == 0) {
        vf_json_add_bool(at, key->member, yes);
    } else {
        report_usage(cli, "%s is yes or no, not '%s'", key->key, value);
        return false;
    }
    return true;
}

static enum vmfrost_code
show(struct cli *cli)
{
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_JSON struct json_object *classes = NULL;
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vmfrost_storage(cli->context, &text, &error) != VMFROST_OK)
        return report_error(cli, &error);
    classes = vf_json_parse(text, strlen(text), 16);
    if (cli->options.json) {
        report_json(cli, classes);
        return VMFROST_OK;
    }
    AUTO_TABLE struct table table = {.headings = {"CLASS", "PATH", "PROTOCOL", "FORMAT", "SNAPSHOT",
                                                  "OVERLAYS", "OPTIONS", "FREE"}};

    for (size_t i = 0; i < vf_json_length(classes); i++) {
        struct json_object *class = vf_json_at(classes, i);
        struct json_object *match = vf_json_object(class, "match");
        struct json_object *options = vf_json_object(class, "overlayOptions");
        const char *snapshot = vf_json_string(class, "snapshot");
        const char *size = vf_json_string(options, "clusterSize");
        const char *preallocation = vf_json_string(options, "preallocation");
        bool extended = vf_json_bool(options, "extendedL2", false);

        table_maybe(&table, STYLE_BOLD, vf_json_string(class, "name"));
        table_maybe(&table, STYLE_PLAIN, vf_json_string(match, "path"));
        table_maybe(&table, STYLE_PLAIN, vf_json_string(match, "protocol"));
        table_maybe(&table, STYLE_PLAIN, vf_json_string(match, "format"));
        table_cell(&table, STYLE_PLAIN, "%s", snapshot ? snapshot : "yes");
        table_maybe(&table, STYLE_PLAIN, vf_json_string(class, "overlayFolder"));
        if (size || extended || preallocation)
            table_cell(&table, STYLE_PLAIN, "%s%s%s%s%s", size ? size : "",
                       size && (extended || preallocation) ? " " : "",
                       extended ? "extended-l2" : "", extended && preallocation ? " " : "",
                       preallocation ? preallocation : "");
        else
            table_maybe(&table, STYLE_PLAIN, NULL);
        table_maybe(&table, STYLE_PLAIN, vf_json_string(class, "minFree"));
    }
    if (table.count == 0)
        out_raw(&cli->out, "no storage classes: all disks are treated alike\n");
    table_print(&table, &cli->out);
    return VMFROST_OK;
}

static enum vmfrost_code
set(struct cli *cli, const char *name, const char **words)
{
    VF_AUTO_JSON struct json_object *class = vf_json_new_object();
    struct vmfrost_error error = {.code = VMFROST_OK};

    for (; *words; words++)
        if (!take_word(cli, class, *words))
            return VMFROST_USAGE;
    if (vmfrost_storage_set(cli->context, name, vf_json_print(class, JSON_C_TO_STRING_SPACED),
                            &error) != VMFROST_OK)
        return report_error(cli, &error);
    return cli->options.quiet ? VMFROST_OK : show(cli);
}

static enum vmfrost_code
run_remove(struct cli *cli, const char *name)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vmfrost_storage_remove(cli->context, name, &error) != VMFROST_OK)
        return report_error(cli, &error);
    return cli->options.quiet ? VMFROST_OK : show(cli);
}

static enum vmfrost_code
run_storage(struct cli *cli)
{
    const char **words = cli->words;
    const char *action = words[0], *name = action ? words[1] : NULL;

    if (!action)
        return show(cli);
    if (strcmp(action, "set") != 0 && strcmp(action, "remove") != 0)
        return report_usage(cli, "`vmfrost storage` knows no '%s': write set or remove", action);
    if (!name)
        return report_usage(cli, "which storage class? `vmfrost storage %s NAME`", action);
    if (strcmp(action, "set") == 0 && words[2])
        return set(cli, name, words + 2);
    if (strcmp(action, "set") == 0)
        return report_usage(cli, "what is to be set? `vmfrost storage set %s KEY=VALUE...`", name);
    if (words[2])
        return report_usage(cli, "'%s' is one too many", words[2]);
    return run_remove(cli, name);
}

const struct command command_storage = {
    .name = "storage",
    .help = "storage classes: how disks are treated by where they lie",
    .synopsis = "[OPTION]...\n"
                "set NAME KEY=VALUE... [OPTION]...\n"
                "remove NAME [OPTION]...",
    .about = "Lists the storage classes, makes or changes one, or removes one. A disk is of the\n"
             "first class of which everything fits: match.path (a pattern like '/fast/*'),\n"
             "match.protocol (QEMU's word: file, host_device, nbd, rbd, ...), match.format. A\n"
             "class says whether its disks are in snapshots (snapshot=yes|no), where new overlays\n"
             "go (overlayFolder), how they are made (clusterSize, extendedL2=yes|no,\n"
             "preallocation=off|metadata|falloc|full), and how much has to be free there for each\n"
             "of them (minFree; 64M unless set). KEY= takes a key back.\n",
    .examples = "  vmfrost storage set scratch match.path='/scratch/*' snapshot=no\n"
                "  vmfrost storage set lvm match.protocol=host_device overlayFolder=/overlays\n"
                "  vmfrost storage set fast match.path='/nvme/*' clusterSize=128k minFree=10G\n"
                "  vmfrost storage remove fast\n",
    .kind = COMMAND_READS,
    .target = TARGET_ACTION,
    .options = (const struct option_use[]){{0, NULL}},
    .actions = "set|remove",
    .run = run_storage,
};
