/* SPDX-License-Identifier: MIT */
#include "cli/files.h"

#include <string.h>

#include "cli/format.h"
#include "cli/record.h"
#include "cli/report.h"
#include "util/json.h"

static void
print_files(struct cli *cli, const struct job *job, const char *what)
{
    struct out *out = &cli->out;
    struct json_object *document = job->outcome.document;
    struct json_object *files = vf_json_array(document, "files");
    size_t width = 1;

    for (size_t i = 0; i < vf_json_length(files); i++) {
        const char *disk = vf_json_string(vf_json_at(files, i), "disk");

        width = disk && strlen(disk) > width ? strlen(disk) : width;
    }
    out_text(out, STYLE_BOLD, "%s@%s", cli->vm, cli->snapshot);
    out_text(out, STYLE_PLAIN, "  %s\n", what);
    for (size_t i = 0; i < vf_json_length(files); i++) {
        struct json_object *file = vf_json_at(files, i);
        const char *disk = vf_json_string(file, "disk"), *path = vf_json_string(file, "path");
        int64_t allocated;
        char size[FORMAT_SIZE];

        out_text(out, STYLE_PLAIN, "  %-*s  %s", (int)width, disk ? disk : "?", path ? path : "?");
        if (vf_json_string(file, "sha256") && vf_json_int(file, "allocated", &allocated))
            out_text(out, STYLE_DIM, "  %s, checksum in %s.sha256", format_size(allocated, size),
                     path ? path : "?");
        out_raw(out, "\n");
    }
    print_warnings(cli, out, document);
}

enum vmfrost_code
files_finish(struct cli *cli, struct job *job, const char *what)
{
    jobs_wait(cli, job, 1);

    enum vmfrost_code code = job->outcome.code;

    if (code == VMFROST_OK && !cli->options.json && !cli->options.quiet)
        print_files(cli, job, what);
    job_report(cli, job);
    job_release(job);
    return code;
}
