/* SPDX-License-Identifier: MIT
 *
 * verify: what is wrong with the images.
 */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/job.h"
#include "cli/record.h"
#include "cli/report.h"
#include "cli/table.h"
#include "util/cleanup.h"
#include "util/json.h"

static enum style
result_style(const char *result)
{
    if (result && strcmp(result, "ok") == 0)
        return STYLE_GOOD;
    return result && strcmp(result, "warning") == 0 ? STYLE_WARN : STYLE_BAD;
}

static void
add_image(struct table *table, struct json_object *image)
{
    const char *result = vf_json_string(image, "result");
    const char *snapshot = vf_json_string(image, "snapshot");
    const char *check = vf_json_string(image, "check");
    const char *message = vf_json_string(image, "checkMessage");
    const char *path = vf_json_string(image, "path");

    table_maybe(table, result_style(result), result);
    table_maybe(table, STYLE_PLAIN, vf_json_string(image, "disk"));
    if (vf_json_bool(image, "current", false) && !snapshot)
        table_cell(table, STYLE_DIM, "(current)");
    else
        table_maybe(table, STYLE_BOLD, snapshot);
    if (check && path && message && strcmp(check, "skipped") == 0)
        table_cell(table, STYLE_PLAIN, "%s  (not checked inside: %s)", path, message);
    else
        table_maybe(table, STYLE_PLAIN, path);
}

static void
print_problems(struct out *out, struct json_object *image)
{
    struct json_object *problems = vf_json_array(image, "problems");
    const char *result = vf_json_string(image, "result");
    const char *path = vf_json_string(image, "path");

    for (size_t i = 0; i < vf_json_length(problems); i++) {
        const char *problem = vf_json_text(vf_json_at(problems, i));

        out_text(out, result_style(result), "  %s:", result ? result : "?");
        out_text(out, STYLE_PLAIN, " %s: %s\n", path ? path : "?", problem ? problem : "?");
    }
}

static void
print_verified(struct cli *cli, const struct job *job)
{
    struct out *out = &cli->out;
    struct json_object *document = job->outcome.document;
    struct json_object *images = vf_json_array(document, "images");
    bool good = vf_json_bool(document, "ok", false);
    AUTO_TABLE struct table table = {.headings = {"RESULT", "DISK", "SNAPSHOT", "IMAGE"},
                                     .indent = 2};

    out_text(out, STYLE_BOLD, "%s", job->vm);
    if (vf_json_length(images) == 0)
        out_raw(out, "  has no snapshots, and its disks are not known\n");
    else
        out_text(out, good ? STYLE_GOOD : STYLE_BAD, "  %s\n",
                 good ? "every image is sound" : "some images have problems");
    for (size_t i = 0; i < vf_json_length(images); i++)
        add_image(&table, vf_json_at(images, i));
    table_print(&table, out);
    for (size_t i = 0; i < vf_json_length(images); i++)
        print_problems(out, vf_json_at(images, i));
    print_warnings(cli, out, document);
}

static enum vmfrost_code
run_verify(struct cli *cli)
{
    struct job job;

    job_init(&job, cli, cli->vm, false);
    job.op = vmfrost_verify(cli->context, cli->vm, job_on_event, job_on_done, &job);
    jobs_wait(cli, &job, 1);
    /* Also after a failure: that is what was asked for. */
    if (vf_json_array(job.outcome.document, "images") && !cli->options.json && !cli->options.quiet)
        print_verified(cli, &job);

    enum vmfrost_code code = job_report(cli, &job);

    job_release(&job);
    return code;
}

const struct command command_verify = {
    .name = "verify",
    .help = "are all images what they should be? changes nothing",
    .synopsis = "VM [OPTION]...\n"
                "--qmp PATH [OPTION]...",
    .about =
        "Looks at every image of a VM, running or not: headers, what builds on what, formats,\n"
        "sizes, whether an image was written to after it was sealed, files without a record and\n"
        "records without files; and with qemu-img, the tables in each image that QEMU does not\n"
        "write to, which takes time. Exit code 1 means that something is wrong with an image.\n"
        "Other commands may work on the VM at the same time.\n",
    .examples = "  vmfrost verify web\n"
                "  vmfrost verify web --json | tail -n 1 | jq .document.images\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_VM,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {0, NULL},
        },
    .run = run_verify,
};
