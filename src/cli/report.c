/* SPDX-License-Identifier: MIT */
#include "cli/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/job.h"
#include "cli/live.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

void
report_text(struct cli *cli, const char *text, const char *next)
{
    live_pause(cli->live);
    out_text(&cli->err, STYLE_BAD, "vmfrost:");
    out_text(&cli->err, STYLE_PLAIN, " %s\n", text);
    if (next && *next) {
        out_text(&cli->err, STYLE_HINT, "   hint:");
        out_text(&cli->err, STYLE_PLAIN, " %s\n", next);
    }
    out_flush(&cli->err);
}

void
report_warning(struct cli *cli, const char *text)
{
    if (cli->options.quiet)
        return;
    if (!cli->shown)
        cli->shown = vf_json_new_array();
    vf_json_append(cli->shown, vf_json_new_string(text));
    live_pause(cli->live);
    out_text(&cli->err, STYLE_WARN, "warning:");
    out_text(&cli->err, STYLE_PLAIN, " %s\n", text);
    out_flush(&cli->err);
}

void
report_alarm(struct cli *cli, const char *vm, const char *text, const char *next)
{
    struct out *err = &cli->err;
    VF_AUTO_FREE char *words = cli_words_for(vm, NULL);

    live_pause(cli->live);
    out_raw(err, "\n");
    out_text(err, STYLE_ALARM,
             "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!\n");
    out_text(err, STYLE_ALARM, "!!  THE GUEST MAY BE FROZEN: %s\n", vm);
    out_text(err, STYLE_ALARM, "!!  Whatever writes to its disks may hang until it is thawed.\n");
    out_text(err, STYLE_ALARM,
             "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!\n");
    if (*text)
        out_text(err, STYLE_PLAIN, "vmfrost: %s\n", text);
    out_text(err, STYLE_BOLD, "Do this now:\n");
    if (next && *next)
        out_text(err, STYLE_PLAIN, "  - %s\n", next);
    out_text(err, STYLE_PLAIN, "  - vmfrost thaw %s      (harmless if it is not frozen)\n", words);
    out_text(err, STYLE_PLAIN,
             "  - If the agent does not answer: Alt-SysRq-J on the console of a Linux guest thaws "
             "it.\n");
    out_text(err, STYLE_PLAIN,
             "  - The last resort is a reset: it thaws, and loses what the guest had not "
             "written.\n");
    out_text(err, STYLE_PLAIN, "  - Afterwards: vmfrost recover %s\n", words);
    out_flush(err);
}

static void
print_json(struct cli *cli, struct json_object *document, int flags)
{
    const char *text = vf_json_print(document, flags | JSON_C_TO_STRING_NOSLASHESCAPE);

    out_lines(&cli->out, text);
    out_raw(&cli->out, "\n");
    out_flush(&cli->out);
}

void
report_json(struct cli *cli, struct json_object *document)
{
    print_json(cli, document, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED);
}

void
report_json_line(struct cli *cli, struct json_object *document)
{
    print_json(cli, document, JSON_C_TO_STRING_PLAIN);
}

struct json_object *
report_error_json(enum vmfrost_code code, const char *text, const char *next)
{
    struct json_object *error = vf_json_new_object();

    vf_json_add_int(error, "code", (int64_t)code);
    vf_json_add_string(error, "message", text);
    vf_json_add_string(error, "next", next ? next : "");
    return error;
}

static enum vmfrost_code
report(struct cli *cli, enum vmfrost_code code, const char *text, const char *next)
{
    report_text(cli, text, next);
    if (!cli->options.json)
        return code;
    if (cli->command && cli->command->kind == COMMAND_OPERATES) {
        /* Whoever reads the lines of an operation finds its result in the last one, always. */
        VF_AUTO_JSON struct json_object *line =
            job_result_json(cli->vm, cli->command->name,
                            &(struct outcome){.code = code,
                                              .snapshot = VMFROST_SNAPSHOT_NONE,
                                              .guest = VMFROST_GUEST_NEVER_FROZEN,
                                              .text = (char *)text,
                                              .next = (char *)next});

        report_json_line(cli, line);
        return code;
    }
    VF_AUTO_JSON struct json_object *document = vf_json_new_object();

    vf_json_add(document, "error", report_error_json(code, text, next));
    report_json(cli, document);
    return code;
}

enum vmfrost_code
report_usage(struct cli *cli, const char *format, ...)
{
    VF_AUTO_FREE char *text = NULL;
    VF_AUTO_FREE char *next = NULL;
    va_list arguments;

    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0)
        abort();
    if (cli->command && cli->command->help)
        next = vf_printf("try `vmfrost help %s`", cli->command->name);
    else
        next = vf_strdup("try `vmfrost help`");
    return report(cli, VMFROST_USAGE, text, next);
}

enum vmfrost_code
report_error(struct cli *cli, const struct vmfrost_error *error)
{
    return report(cli, error->code, error->text, error->next);
}

enum vmfrost_code
report_failure(struct cli *cli, enum vmfrost_code code, const char *next, const char *format, ...)
{
    VF_AUTO_FREE char *text = NULL;
    va_list arguments;

    va_start(arguments, format);
    int length = vasprintf(&text, format, arguments);
    va_end(arguments);
    if (length < 0)
        abort();
    return report(cli, code, text, next);
}
