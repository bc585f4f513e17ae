/* SPDX-License-Identifier: MIT */
#include "cli/target.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/options.h"
#include "cli/report.h"
#include "util/cleanup.h"
#include "util/mem.h"
#include "util/text.h"

bool
target_is_path(const char *vm)
{
    return strchr(vm, '/') || vf_starts_with(vm, "tcp:");
}

char *
target_path(const char *path)
{
    return vf_printf("%s%s", target_is_path(path) ? "" : "./", path);
}

/* What a shell would take as one word. */
static char *
quoted(const char *text)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-/:@%,=";

    if (*text && !text[strspn(text, plain)])
        return vf_strdup(text);
    char *out = vf_alloc(4 * strlen(text) + 3), *at = out;

    *at++ = '\'';
    for (; *text; text++) {
        if (*text == '\'')
            at = stpcpy(at, "'\\''");
        else
            *at++ = *text;
    }
    *at = '\'';
    return out;
}

char *
cli_words_for(const char *vm, const char *snapshot)
{
    VF_AUTO_FREE char *word = quoted(vm);

    if (target_is_path(vm))
        return vf_printf("--qmp %s%s%s", word, snapshot ? " " : "", snapshot ? snapshot : "");
    return vf_printf("%s%s%s", word, snapshot ? "@" : "", snapshot ? snapshot : "");
}

/* Where the snapshot's name begins in "VM@NAME": at the last '@', unless a path goes on behind it.
 */
static const char *
at_sign(const char *word)
{
    const char *at = strrchr(word, '@');

    return at && !strchr(at, '/') ? at : NULL;
}

/* "web@be/fore" is no path, but a bad name of a snapshot: the name; NULL: it is something else. */
static const char *
name_with_slash(const char *word)
{
    const char *at = strchr(word, '@'), *slash = strchr(word, '/');

    if (!at || !slash || at > slash || at == word || access(word, F_OK) == 0)
        return NULL;
    VF_AUTO_FREE char *vm = strndup(word, (size_t)(at - word));

    return vf_valid_name(vm) ? at + 1 : NULL;
}

static bool
is_name(struct cli *cli, const char *name, const char *of)
{
    if (vf_valid_name(name))
        return true;
    report_usage(cli,
                 "'%s' cannot be the name of a %s: 1 to 64 of A-Z a-z 0-9 . _ + -, beginning with "
                 "none of . and -",
                 name, of);
    return false;
}

static bool
set_snapshot(struct cli *cli, const char *name)
{
    if (cli->snapshot)
        return report_usage(cli, "one name is enough: '%s' or '%s'", name, cli->snapshot), false;
    if (!*name)
        return report_usage(cli, "the snapshot's name is missing behind the '@'"), false;
    if (!is_name(cli, name, "snapshot"))
        return false;
    cli->snapshot = vf_strdup(name);
    return true;
}

static bool
wants_snapshot_of(const struct cli *cli)
{
    return cli->command->target == TARGET_SNAPSHOT || cli->command->target == TARGET_SNAPSHOT_TO;
}

/* A snapshot's name may be given. */
static bool
takes_snapshot_of(const struct cli *cli)
{
    return wants_snapshot_of(cli) || cli->command->target == TARGET_VM_SNAPSHOT ||
           cli->command->target == TARGET_VMS_SNAPSHOT;
}

static bool
parse_vm(struct cli *cli, const char *word)
{
    const char *at = at_sign(word);
    bool wants_snapshot = wants_snapshot_of(cli);
    bool takes_snapshot = takes_snapshot_of(cli);

    if (at == word) {
        report_usage(cli, "'%s' names no VM: write VM%s, or --qmp PATH", word, word);
        return false;
    }
    if (takes_snapshot && !at && name_with_slash(word))
        return set_snapshot(cli, name_with_slash(word));
    if (at && !takes_snapshot) {
        report_usage(cli, "`vmfrost %s` takes a VM, not a snapshot: write '%.*s'",
                     cli->command->name, (int)(at - word), word);
        return false;
    }
    if (!at && wants_snapshot) {
        report_usage(cli, "which snapshot? `vmfrost %s %s@NAME`; `vmfrost list %s` shows them",
                     cli->command->name, word, word);
        return false;
    }
    cli->vm = at ? strndup(word, (size_t)(at - word)) : vf_strdup(word);
    return (target_is_path(cli->vm) || is_name(cli, cli->vm, "VM")) &&
           (!at || set_snapshot(cli, at + 1));
}

/* With --qmp, the word can only be the snapshot: "@NAME" or "NAME". */
static bool
parse_behind_qmp(struct cli *cli, const char *word)
{
    bool wants_snapshot = wants_snapshot_of(cli);

    cli->vm = vf_strdup(cli->options.qmp);
    if (!word && wants_snapshot) {
        VF_AUTO_FREE char *words = cli_words_for(cli->vm, NULL);

        report_usage(cli, "which snapshot? `vmfrost %s %s NAME`; `vmfrost list %s` shows them",
                     cli->command->name, words, words);
        return false;
    }
    if (!word)
        return true;
    if (!takes_snapshot_of(cli)) {
        report_usage(cli, "--qmp names the VM already: '%s' is one too many", word);
        return false;
    }
    if (at_sign(word) && at_sign(word) != word) {
        report_usage(cli, "--qmp names the VM already: write only '%s'", at_sign(word));
        return false;
    }
    return set_snapshot(cli, *word == '@' ? word + 1 : word);
}

/* One of several VMs. */
static bool
add_vm(struct cli *cli, const char *word)
{
    const char *at = at_sign(word);

    if (at) {
        report_usage(cli, "'%s': the name stands behind all VMs, as in `vmfrost %s web db %s`",
                     word, cli->command->name, at);
        return false;
    }
    for (size_t i = 0; i < cli->vm_count; i++)
        if (strcmp(cli->vms[i], word) == 0)
            return report_usage(cli, "'%s' is named twice", word), false;
    VF_GROW(cli->vms, cli->vm_count);
    cli->vms[cli->vm_count++] = vf_strdup(word);
    return target_is_path(word) || is_name(cli, word, "VM");
}

/* VM... [@NAME]. True as well if it is anything else, which is left as it is. */
static bool
parse_vms(struct cli *cli, int *count, char **words)
{
    bool all = cli->options.all;

    if (all && cli->options.qmp) {
        report_usage(cli, "either --qmp or --all");
        return false;
    }
    if (cli->options.qmp)
        return true;
    if (*count > 0 && words[*count - 1][0] == '@' && (all || *count > 1) &&
        !set_snapshot(cli, words[--*count] + 1))
        return false;
    if (all && *count > 0) {
        report_usage(cli, "either a VM or --all; a snapshot's name is written @NAME");
        return false;
    }
    if (*count < 2)
        return true;
    for (int i = 0; i < *count; i++)
        if (!add_vm(cli, words[i]))
            return false;
    return true;
}

static bool
parse_new_name(struct cli *cli, const char *word)
{
    cli->vm = vf_strdup(word);
    return is_name(cli, word, "VM");
}

static bool
has_dest(struct cli *cli)
{
    if (cli->command->target != TARGET_SNAPSHOT_TO || (cli->dest && *cli->dest))
        return true;
    VF_AUTO_FREE char *words = cli_words_for(cli->vm, cli->snapshot);

    report_usage(cli, "where to? `vmfrost %s %s DEST`", cli->command->name, words);
    return false;
}

bool
target_parse(struct cli *cli, int count, char **words)
{
    enum target target = cli->command->target;
    const char *word = count > 0 ? words[0] : NULL;

    if (count > 0 && target == TARGET_NONE) {
        report_usage(cli, "`vmfrost %s` takes no '%s'", cli->command->name, word);
        return false;
    }
    if (target == TARGET_ACTION) {
        cli->words = (const char **)words;
        return true;
    }
    if (target == TARGET_VM_DISK && count > 0 && (cli->options.qmp || count > 1)) {
        cli->disk = words[count - 1];
        word = --count > 0 ? words[0] : NULL;
    }
    if (target == TARGET_SNAPSHOT_TO && count > 1)
        cli->dest = words[--count];
    if (target == TARGET_VMS_SNAPSHOT && !parse_vms(cli, &count, words))
        return false;
    if (target == TARGET_VMS_SNAPSHOT && (cli->vm_count || cli->options.all))
        return true;
    if (count > 1) {
        report_usage(cli, "'%s' is one too many: `vmfrost %s` takes one at a time", words[1],
                     cli->command->name);
        return false;
    }
    switch (target) {
    case TARGET_NONE:
        return true;
    case TARGET_COMMAND:
    case TARGET_ACTION:
    case TARGET_WORDS:
        cli->words = (const char **)words;
        return true;
    case TARGET_NEW_NAME:
    case TARGET_NAME:
        if (word)
            return parse_new_name(cli, word);
        report_usage(cli, "which VM? `vmfrost %s %s`", cli->command->name, cli->command->synopsis);
        return false;
    case TARGET_VM:
    case TARGET_VM_OR_ALL:
    case TARGET_VM_SNAPSHOT:
    case TARGET_VMS_SNAPSHOT:
    case TARGET_SNAPSHOT:
    case TARGET_SNAPSHOT_TO:
    case TARGET_VM_DISK:
        if (cli->options.qmp || word)
            return (cli->options.qmp ? parse_behind_qmp : parse_vm)(cli, word) && has_dest(cli);
        if (target == TARGET_VM_OR_ALL)
            return true;
        report_usage(cli, "which VM? Write its name, or --qmp PATH");
        return false;
    }
    abort();
}
