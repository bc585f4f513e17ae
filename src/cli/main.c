/* SPDX-License-Identifier: MIT
 *
 * vmfrost: which command is meant, and what all of them need.
 */
#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/help.h"
#include "cli/log_file.h"
#include "cli/options.h"
#include "cli/report.h"
#include "cli/signals.h"
#include "cli/trace.h"
#include "util/cleanup.h"
#include "util/mem.h"

const struct command *const commands[] = {
    &command_discover,
    &command_add,
    &command_remove,
    &command_status,
    &command_check,
    &command_snapshot,
    &command_list,
    &command_show,
    &command_verify,
    &command_restore,
    &command_export,
    &command_clone,
    &command_delete,
    &command_prune,
    &command_with,
    &command_freeze,
    &command_thaw,
    &command_recover,
    &command_disk,
    &command_storage,
    &command_help,
    &command_version,
#ifndef VMFROST_SMALL /* which no shell asks */
    &command_complete,
#endif
    NULL,
};

const struct command *
command_find(const char *name)
{
    for (size_t i = 0; commands[i]; i++) {
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    }
    return NULL;
}

/* Makes cli->loop and cli->context, or reports why not. */
static enum vmfrost_code
open_context(struct cli *cli)
{
    struct vmfrost_settings settings = VMFROST_SETTINGS_INIT;

    if (!log_open(cli) || !trace_open(cli))
        return VMFROST_FAILED;
    settings.state_dir = cli->options.state_dir;
    settings.log = cli->log || cli->trace || !cli->options.quiet ? log_line : NULL;
    settings.log_data = cli;
    settings.log_warnings_only = !cli->log && !cli->trace && cli->options.verbose == 0;
    cli->loop = ev_loop_new(EVFLAG_AUTO | EVFLAG_NOENV);
    if (!cli->loop)
        return report_failure(cli, VMFROST_FAILED, "", "cannot make an event loop: %s",
                              strerror(errno));
    cli->context = vmfrost_new(cli->loop, &settings);
    if (!cli->context)
        return report_error(cli, vmfrost_new_error());
    return VMFROST_OK;
}

static enum vmfrost_code
run_command(struct cli *cli)
{
    enum vmfrost_code code = cli->command->stateless ? VMFROST_OK : open_context(cli);

    return code == VMFROST_OK ? cli->command->run(cli) : code;
}

/* A socket or a log must never get the number of an output that was closed: what is printed there
 * would go to QEMU. */
static void
occupy_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        /* In the direction that makes every use fail. */
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd)
            _exit(VMFROST_FAILED);
    }
}

static bool
asks_for_json(int count, char **words)
{
    for (int i = 1; i < count && strcmp(words[i], "--") != 0; i++) {
        if (strcmp(words[i], "--json") == 0)
            return true;
    }
    return false;
}

static enum vmfrost_code
run(struct cli *cli, int count, char **words)
{
    int at = options_parse_global(cli, count, words);

    if (at < 0)
        return VMFROST_USAGE;
    if (at < count) {
        cli->command = command_find(words[at]);
        if (!cli->command)
            return help_unknown(cli, words[at]);
        if (!options_parse(cli, count - at, words + at))
            return VMFROST_USAGE;
    }
    if (cli->options.no_color) {
        out_no_color(&cli->out);
        out_no_color(&cli->err);
    }
    if (cli->options.help && cli->command && cli->command->help)
        help_command(&cli->out, cli->command);
    else if (cli->options.help)
        help_overview(&cli->out);
    else if (cli->options.version)
        return command_version.run(cli);
    else if (cli->command)
        return run_command(cli);
    else
        return report_usage(cli, "a command is missing");
    return VMFROST_OK;
}

static void
report_unwritten(struct cli *cli)
{
    VF_AUTO_FREE char *text = vf_printf("cannot write to stdout: %s", strerror(cli->out.error));

    report_text(cli, text, "");
}

/* A reader that went away is no error of ours, but neither did it get everything. */
static enum vmfrost_code
finish_output(struct cli *cli, enum vmfrost_code code)
{
    if (!out_finish(&cli->out)) {
        if (cli->out.error != EPIPE)
            report_unwritten(cli);
        /* What happened to the VM is the greater news. */
        if (code == VMFROST_OK && !(cli->command && cli->command->kind == COMMAND_OPERATES))
            code = VMFROST_FAILED;
    }
    out_finish(&cli->err);
    return code;
}

int
main(int count, char **words)
{
    struct cli cli = {
        .options.snapshot = VMFROST_SNAPSHOT_OPTIONS_INIT,
        .options.prune = VMFROST_PRUNE_OPTIONS_INIT,
        .options.restore = VMFROST_RESTORE_OPTIONS_INIT,
        .options.export = VMFROST_EXPORT_OPTIONS_INIT,
        .options.clone = VMFROST_CLONE_OPTIONS_INIT,
    };

    occupy_standard_files();
    signals_prepare();
    /* A usage error further left than --json is to be JSON, too. */
    cli.options.json = asks_for_json(count, words);
    /* What a character is matters to terminals and tables; it is read from half a dozen files. */
    if (!cli.options.json || isatty(STDOUT_FILENO) || isatty(STDERR_FILENO))
        setlocale(LC_CTYPE, "");
    out_init(&cli.out, STDOUT_FILENO);
    out_init(&cli.err, STDERR_FILENO);

    enum vmfrost_code code = run(&cli, count, words);

    if (cli.context)
        vmfrost_free(cli.context);
    if (!trace_close(&cli) && code == VMFROST_OK)
        code = VMFROST_FAILED;
    code = finish_output(&cli, code);
    log_close(&cli);
    if (cli.loop)
        ev_loop_destroy(cli.loop);
    out_release(&cli.out);
    out_release(&cli.err);
    json_object_put(cli.shown);
    options_release(&cli);
    return (int)code;
}
