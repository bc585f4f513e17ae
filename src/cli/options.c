/* SPDX-License-Identifier: MIT */
#include "cli/options.h"

#include <assert.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/report.h"
#include "cli/suggest.h"
#include "cli/target.h"
#include "util/cleanup.h"
#include "util/mem.h"
#include "util/text.h"

const struct option_spec option_specs[OPTION__N] = {
    [OPTION_JSON] = {"json", 0, NULL},
    [OPTION_VERBOSE] = {"verbose", 'v', NULL},
    [OPTION_QUIET] = {"quiet", 'q', NULL},
    [OPTION_STATE_DIR] = {"state-dir", 0, "DIR"},
    [OPTION_LOG] = {"log", 0, "FILE"},
    [OPTION_TRACE] = {"trace", 0, "FILE"},
    [OPTION_NO_COLOR] = {"no-color", 0, NULL},
    [OPTION_HELP] = {"help", 'h', NULL},
    [OPTION_VERSION] = {"version", 'V', NULL},
    [OPTION_QMP] = {"qmp", 0, "PATH"},
    [OPTION_AGENT] = {"agent", 0, "PATH"},
    [OPTION_SET] = {"set", 0, "KEY=VALUE"},
    [OPTION_DEADLINE] = {"deadline", 0, "DURATION"},
    [OPTION_FROZEN_LIMIT] = {"frozen-limit", 0, "DURATION"},
    [OPTION_THAW_WAIT] = {"thaw-wait", 0, "DURATION"},
    [OPTION_QUIESCE] = {"quiesce", 0, "auto|require|prefer|skip"},
    [OPTION_EXCLUDE] = {"exclude", 0, "DISK"},
    [OPTION_INCLUDE] = {"include", 0, "DISK"},
    [OPTION_PERSISTENT] = {"persistent", 0, "yes|no"},
    [OPTION_METHOD] = {"method", 0, "existing|preopened"},
    [OPTION_FLUSH] = {"flush", 0, "auto|off|COMMAND"},
    [OPTION_FREEZE] = {"freeze", 0, "cut|all|MOUNT,..."},
    [OPTION_NO_PRIME] = {"no-prime", 0, NULL},
    [OPTION_FOR] = {"for", 0, "DURATION"},
    [OPTION_WAIT] = {"wait", 0, "DURATION"},
    [OPTION_ALL] = {"all", 0, NULL},
    [OPTION_KEEP_LAST] = {"keep-last", 0, "N"},
    [OPTION_KEEP_HOURLY] = {"keep-hourly", 0, "N"},
    [OPTION_KEEP_DAILY] = {"keep-daily", 0, "N"},
    [OPTION_KEEP_WEEKLY] = {"keep-weekly", 0, "N"},
    [OPTION_MAX_AGE] = {"max-age", 0, "DURATION"},
    [OPTION_FAILED] = {"failed", 0, NULL},
    [OPTION_YES] = {"yes", 0, NULL},
    [OPTION_EVENTS] = {"events", 0, "FILE"},
    [OPTION_RESET] = {"reset", 0, NULL},
    [OPTION_DISCARD] = {"discard", 0, NULL},
    [OPTION_KEEP_NAME] = {"keep-name", 0, "NAME"},
    [OPTION_FORMAT] = {"format", 0, "qcow2|raw"},
    [OPTION_DISK] = {"disk", 0, "DISK"},
    [OPTION_COMPRESS] = {"compress", 0, NULL},
};

const struct option_use global_options[] = {
    {OPTION_JSON, "JSON on stdout, for programs"},
    {OPTION_VERBOSE, "tell each step; twice: each message to QEMU and the agent"},
    {OPTION_QUIET, "no progress, no summary, no warnings"},
    {OPTION_STATE_DIR, "where vmfrost keeps its records (default: $VMFROST_STATE_DIR; else "
                       "/var/lib/vmfrost for root, ~/.local/state/vmfrost for others)"},
    {OPTION_LOG, "append everything that happens, with times, to FILE"},
    {OPTION_TRACE, "write where the time went to FILE, for chrome://tracing and its like"},
    {OPTION_NO_COLOR, "no colors; so does NO_COLOR=1"},
    {OPTION_HELP, "this text"},
    {OPTION_VERSION, "the version"},
    {0, NULL},
};

/* Values of getopt_long() for options: out of the way of all letters. */
enum { VALUE_BASE = 0x1000 };

static void
fill(struct option *rows, size_t *count, const struct option_use *uses)
{
    for (; uses && uses->help; uses++) {
        const struct option_spec *spec = &option_specs[uses->option];

        rows[(*count)++] = (struct option){
            .name = spec->name,
            .has_arg = spec->argument ? required_argument : no_argument,
            .val = VALUE_BASE + (int)uses->option,
        };
    }
}

static const struct option_use *
uses_of(const struct command *command)
{
    return command ? command->options : NULL;
}

static int
find(const struct option_use *uses, const char *name, char letter)
{
    for (; uses && uses->help; uses++) {
        const struct option_spec *spec = &option_specs[uses->option];

        if (name ? strcmp(spec->name, name) == 0 : spec->letter && spec->letter == letter)
            return (int)uses->option;
    }
    return -1;
}

int
option_find(const struct command *command, const char *name)
{
    int option = find(uses_of(command), name, 0);

    return option >= 0 ? option : find(global_options, name, 0);
}

static bool
unknown_option(struct cli *cli, const char *word)
{
    VF_AUTO_FREE char *name = strndup(word, strcspn(word, "="));
    struct suggestion suggestion = suggest_begin(name);
    const struct option_use *sets[] = {uses_of(cli->command), global_options};

    for (size_t i = 0; i < 2; i++) {
        for (const struct option_use *use = sets[i]; use && use->help; use++) {
            VF_AUTO_FREE char *candidate = vf_printf("--%s", option_specs[use->option].name);

            suggest_offer(&suggestion, candidate);
        }
    }
    if (suggestion.best[0])
        report_usage(cli, "unknown option '%s': did you mean '%s'?", name, suggestion.best);
    else if (cli->command)
        report_usage(cli, "unknown option '%s' of `vmfrost %s`", name, cli->command->name);
    else
        report_usage(cli, "unknown option '%s'", name);
    return false;
}

static bool
set_duration(struct cli *cli, enum cli_option option, const char *value, int64_t *ms_r)
{
    if (vf_parse_duration_ms(value, ms_r) && *ms_r > 0)
        return true;
    report_usage(cli, "--%s '%s' is no duration: write for example 250ms, 30s, 5m or 1h30m",
                 option_specs[option].name, value);
    return false;
}

static bool
set_count(struct cli *cli, enum cli_option option, const char *value, int64_t *count_r)
{
    if (vf_parse_count(value, count_r))
        return true;
    report_usage(cli, "--%s '%s' is no number from 1 to 1000000", option_specs[option].name, value);
    return false;
}

/* The index of the value among the choices of the option; -1 after a report. */
static int
choose(struct cli *cli, enum cli_option option, const char *value)
{
    struct suggestion suggestion = suggest_begin(value);
    assert(option_specs[option].argument && value);
    VF_AUTO_FREE char *choices = vf_strdup(option_specs[option].argument);
    char *rest = choices, *choice;

    for (int i = 0; (choice = strsep(&rest, "|")); i++) {
        if (strcmp(choice, value) == 0)
            return i;
        suggest_offer(&suggestion, choice);
    }
    if (suggestion.best[0])
        report_usage(cli, "--%s '%s': did you mean '%s'?", option_specs[option].name, value,
                     suggestion.best);
    else
        report_usage(cli, "--%s '%s' is none of %s", option_specs[option].name, value,
                     option_specs[option].argument);
    return -1;
}

static bool
set_quiesce(struct cli *cli, const char *value)
{
    static const enum vmfrost_quiesce choices[] = {
        VMFROST_QUIESCE_AUTO, VMFROST_QUIESCE_REQUIRE, VMFROST_QUIESCE_PREFER,
        VMFROST_QUIESCE_SKIP}; /* in the order of the table */
    int choice = choose(cli, OPTION_QUIESCE, value);

    assert(choice < (int)(sizeof choices / sizeof *choices));
    if (choice >= 0)
        cli->options.snapshot.quiesce = choices[choice];
    return choice >= 0;
}

static bool
set_method(struct cli *cli, const char *value)
{
    static const enum vmfrost_method choices[] = {VMFROST_METHOD_EXISTING,
                                                  VMFROST_METHOD_PREOPENED};
    int choice = choose(cli, OPTION_METHOD, value);

    assert(choice < (int)(sizeof choices / sizeof *choices));
    if (choice >= 0)
        cli->options.snapshot.method = choices[choice];
    return choice >= 0;
}

static bool
set_format(struct cli *cli, const char *value)
{
    static const enum vmfrost_format choices[] = {VMFROST_FORMAT_QCOW2, VMFROST_FORMAT_RAW};
    int choice = choose(cli, OPTION_FORMAT, value);

    assert(choice < (int)(sizeof choices / sizeof *choices));
    if (choice >= 0)
        cli->options.export.format = choices[choice];
    return choice >= 0;
}

static bool
set_persistent(struct cli *cli, const char *value)
{
    int choice = choose(cli, OPTION_PERSISTENT, value);

    if (choice >= 0)
        cli->options.persistent = choice == 0 ? PERSISTENT_YES : PERSISTENT_NO;
    return choice >= 0;
}

static bool
set(struct cli *cli, enum cli_option option, const char *value)
{
    struct cli_options *options = &cli->options;

    if (value && !*value) {
        report_usage(cli, "--%s is empty", option_specs[option].name);
        return false;
    }
    switch (option) {
    case OPTION_JSON:
        options->json = true;
        return true;
    case OPTION_VERBOSE:
        options->verbose++;
        return true;
    case OPTION_QUIET:
        options->quiet = true;
        return true;
    case OPTION_STATE_DIR:
        options->state_dir = value;
        return true;
    case OPTION_TRACE:
        options->trace = value;
        return true;
    case OPTION_LOG:
        options->log = value;
        return true;
    case OPTION_NO_COLOR:
        options->no_color = true;
        return true;
    case OPTION_HELP:
        options->help = true;
        return true;
    case OPTION_VERSION:
        options->version = true;
        return true;
    case OPTION_QMP:
        free(options->qmp);
        options->qmp = target_path(value);
        return true;
    case OPTION_AGENT:
        options->agent = value;
        return true;
    case OPTION_SET:
        VF_GROW(options->settings, options->setting_count);
        options->settings[options->setting_count++] = value;
        return true;
    case OPTION_DEADLINE:
        return set_duration(cli, option, value, &options->snapshot.deadline_ms);
    case OPTION_FROZEN_LIMIT:
        return set_duration(cli, option, value, &options->snapshot.frozen_limit_ms);
    case OPTION_THAW_WAIT:
        return set_duration(cli, option, value, &options->snapshot.thaw_wait_ms);
    case OPTION_QUIESCE:
        return set_quiesce(cli, value);
    case OPTION_METHOD:
        return set_method(cli, value);
    case OPTION_FLUSH:
        options->snapshot.flush = value;
        return true;
    case OPTION_FREEZE:
        options->snapshot.freeze = value;
        return true;
    case OPTION_NO_PRIME:
        options->snapshot.no_prime = true;
        return true;
    case OPTION_EXCLUDE:
        VF_GROW(options->exclude, options->exclude_count);
        options->exclude[options->exclude_count++] = value;
        return true;
    case OPTION_INCLUDE:
        VF_GROW(options->include, options->include_count);
        options->include[options->include_count++] = value;
        return true;
    case OPTION_PERSISTENT:
        return set_persistent(cli, value);
    case OPTION_FOR:
        return set_duration(cli, option, value, &options->freeze_limit_ms);
    case OPTION_WAIT:
        return set_duration(cli, option, value, &options->thaw_wait_ms);
    case OPTION_ALL:
        options->all = true;
        return true;
    case OPTION_KEEP_LAST:
        return set_count(cli, option, value, &options->prune.keep_last);
    case OPTION_KEEP_HOURLY:
        return set_count(cli, option, value, &options->prune.keep_hourly);
    case OPTION_KEEP_DAILY:
        return set_count(cli, option, value, &options->prune.keep_daily);
    case OPTION_KEEP_WEEKLY:
        return set_count(cli, option, value, &options->prune.keep_weekly);
    case OPTION_MAX_AGE:
        return set_duration(cli, option, value, &options->prune.max_age_ms);
    case OPTION_FAILED:
        options->prune.failed = true;
        return true;
    case OPTION_YES:
        options->yes = true;
        return true;
    case OPTION_EVENTS:
        options->events = value;
        return true;
    case OPTION_RESET:
        options->restore.reset = true;
        return true;
    case OPTION_DISCARD:
        options->restore.discard = true;
        return true;
    case OPTION_KEEP_NAME:
        options->restore.keep_name = value;
        return true;
    case OPTION_FORMAT:
        return set_format(cli, value);
    case OPTION_DISK:
        options->export.disk = options->clone.disk = value;
        return true;
    case OPTION_COMPRESS:
        options->export.compress = true;
        return true;
    case OPTION__N:
        break;
    }
    abort();
}

/* Why getopt_long() refused words[optind - 1]. */
static bool
refused(struct cli *cli, int answer, char **words)
{
    const char *word = words[optind - 1];

    if (optopt >= VALUE_BASE && answer == ':')
        report_usage(cli, "--%s needs a value (%s)", option_specs[optopt - VALUE_BASE].name,
                     option_specs[optopt - VALUE_BASE].argument);
    else if (optopt >= VALUE_BASE)
        report_usage(cli, "--%s takes no value", option_specs[optopt - VALUE_BASE].name);
    else if (optopt)
        report_usage(cli, "unknown option '-%c'", optopt);
    else
        return unknown_option(cli, word);
    return false;
}

/* All options of `words`; `order` is "+:" to stop at the first other word, ":" to go on behind it.
 */
static bool
parse(struct cli *cli, const char *order, int count, char **words)
{
    struct option rows[2 * OPTION__N + 1] = {{0}};
    size_t row_count = 0;
    VF_AUTO_FREE char *letters = vf_printf("%svqhV", order);
    int answer;

    fill(rows, &row_count, uses_of(cli->command));
    fill(rows, &row_count, global_options);
    opterr = 0;
    optind = 0; /* start anew: words[0] is skipped */
    while ((answer = getopt_long(count, words, letters, rows, NULL)) != -1) {
        int option =
            answer >= VALUE_BASE ? answer - VALUE_BASE : find(global_options, NULL, (char)answer);

        if (answer == '?' || answer == ':')
            return refused(cli, answer, words);
        if (!set(cli, (enum cli_option)option, optarg))
            return false;
    }
    return true;
}

int
options_parse_global(struct cli *cli, int count, char **words)
{
    return parse(cli, "+:", count, words) ? optind : -1;
}

/* Where the "--" stands behind which a command of the user's begins. */
static int
end_of_ours(int count, char **words)
{
    int end = 1;

    while (end < count && strcmp(words[end], "--") != 0)
        end++;
    return end;
}

bool
options_parse(struct cli *cli, int count, char **words)
{
    if (cli->command->target == TARGET_WORDS) {
        /* The words to complete are somebody else's command line. */
        cli->words = (const char **)(words + 1);
        return true;
    }
    int end = cli->command->takes_command ? end_of_ours(count, words) : count;

    if (!parse(cli, ":", end, words))
        return false;
    if (cli->options.help || cli->options.version)
        return true;
    if (!target_parse(cli, end - optind, words + optind))
        return false;
    if (!cli->command->takes_command)
        return true;
    /* Neither getopt_long() nor anybody else has touched what stands behind the "--". */
    if (end + 1 < count)
        cli->words = (const char **)(words + end + 1);
    else
        report_usage(cli, "which command? `vmfrost %s VM [OPTION]... -- COMMAND [ARGUMENT]...`",
                     cli->command->name);
    return end + 1 < count;
}

void
options_release(struct cli *cli)
{
    free(VF_STEAL(cli->options.qmp));
    free(VF_STEAL(cli->options.settings));
    free(VF_STEAL(cli->options.exclude));
    free(VF_STEAL(cli->options.include));
    free(VF_STEAL(cli->vm));
    for (size_t i = 0; i < cli->vm_count; i++)
        free(cli->vms[i]);
    free(VF_STEAL(cli->vms));
    free(VF_STEAL(cli->snapshot));
}
