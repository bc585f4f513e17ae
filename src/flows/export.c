/* SPDX-License-Identifier: MIT
 *
 * Export: the disks of a snapshot as files that stand alone, with checksums.
 *
 * The VM's lock is not taken, because a copy can take hours, and nobody should have to do without a
 * snapshot for so long. What keeps the images as they are is QEMU's own lock on each of them, and
 * that a deletion looks for programs that have them open.
 *
 * What reads as zeros takes up nothing in the copy: a mirror job first makes all of it zeros at
 * once, and looks for zeros in what it copies.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flows/steps.h"
#include "flows/tables.h"
#include "flows/using.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"

enum step {
    END = VF_STEP_END,
    FIND,
    OPEN,
    CREATE,
    COPY,
    CHECKSUM,
    PUBLISH,
    REMOVE,
    STEP_COUNT,
};

/* Nodes of the copy that is being made. */
#define FILE_NODE "vft-file"
#define IMAGE_NODE "vft"
#define COMPRESS_NODE "vft-compress"

#define SHA256_LENGTH 64
#define LOOK_S 0.25

static const struct vf_cut *
current_cut(const struct vf_flow *flow)
{
    return &flow->cuts[vf_using_current(flow)->cut];
}

/* What part of a step the current disk is, by how much there is to be read. */
static void
find_share(const struct vf_flow *flow, double *from_r, double *to_r)
{
    double before = 0, all = 0, own = (double)vf_using_current(flow)->bytes + 1;

    for (size_t i = 0; i < flow->using->count; i++) {
        double bytes = (double)flow->using->copies[i].bytes + 1;

        if (i < flow->at)
            before += bytes;
        all += bytes;
    }
    *from_r = 100 * before / all;
    *to_r = 100 * (before + own) / all;
}

/* --- Copying --- */

static void copy_next(struct vf_flow *flow);

/* As the daemon has called it: a copy that failed for want of room is told with what to do. */
static bool
went_well(struct vf_flow *flow, const struct vf_reply *reply, const char *what)
{
    const char *path = vf_using_current(flow)->file.path;

    if (reply->outcome == VF_REFUSED && strstr(reply->words, strerror(ENOSPC))) {
        vf_note(flow, VMFROST_FAILED, "disk %s: %s %s: %s", current_cut(flow)->name, what, path,
                reply->words);
        vf_advise(flow, "make room there, or choose another folder");
        vf_end(flow, VF_REFUSED);
        return false;
    }
    return vf_expect(flow, reply, "disk %s: %s %s", current_cut(flow)->name, what, path);
}

static void
on_closed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "cannot close"))
        return;
    flow->at++;
    copy_next(flow);
}

/* Closing flushes. */
static void
on_image_closed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "cannot close"))
        vf_ask(flow, "blockdev-del", vf_json_strings("node-name", FILE_NODE, NULL), on_closed);
}

static void
close_image(struct vf_flow *flow)
{
    vf_ask(flow, "blockdev-del", vf_json_strings("node-name", IMAGE_NODE, NULL), on_image_closed);
}

static void
on_compress_closed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "cannot close"))
        close_image(flow);
}

static void
on_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct vf_reply end = *reply;

    if (end.outcome == VF_OK && flow->job_error) {
        end.outcome = VF_REFUSED;
        end.words = flow->job_error;
    }
    if (!went_well(flow, &end, "cannot copy it to"))
        return;
    vf_test_point(flow, "copy.copied");
    if (flow->using->compress)
        vf_ask(flow, "blockdev-del", vf_json_strings("node-name", COMPRESS_NODE, NULL),
               on_compress_closed);
    else
        close_image(flow);
}

static void
on_concluded(struct vf_flow *flow, const struct vf_reply *reply)
{
    const char *error = vf_json_string(reply->value, "error");

    if (!went_well(flow, reply, "copying it to"))
        return;
    free(flow->job_error);
    flow->job_error = error                                ? vf_strdup(error)
                      : vf_json_string(reply->value, "id") ? NULL
                                                           : vf_strdup("its job is gone");
    vf_ask(flow, "job-dismiss", vf_json_strings("id", flow->job, NULL), on_dismissed);
}

static void
on_ended(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "cannot end the copy to"))
        vf_job_wait(flow, VF_JOB_CONCLUDED, on_concluded);
}

/* Ready, or over with an error. From ready on a mirror would follow what is written to its source,
 * which nobody does: ended without `force`, it leaves a whole copy. */
static void
on_ready(struct vf_flow *flow, const struct vf_reply *reply)
{
    const char *status = vf_json_string(reply->value, "status");

    if (!went_well(flow, reply, "copying it to"))
        return;
    if (status && vf_job_state_bit(status) == VF_JOB_READY)
        vf_ask(flow, "block-job-cancel", vf_json_strings("device", flow->job, NULL), on_ended);
    else
        on_concluded(flow, reply);
}

static void
on_started(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "cannot copy it to"))
        return;
    vf_test_point(flow, "copy.started");
    vf_job_wait(flow, VF_JOB_READY, on_ready);
}

static void
start_mirror(struct vf_flow *flow)
{
    VF_AUTO_FREE char *id = vf_printf("vf%.8s-x%zu", flow->id, flow->at);
    struct json_object *arguments =
        vf_json_strings("job-id", id, "device", vf_using_current(flow)->node, "target",
                        flow->using->compress ? COMPRESS_NODE : IMAGE_NODE, "sync", "full", NULL);
    double from, to;

    find_share(flow, &from, &to);
    vf_job_share(flow, from, to);
    vf_job_ask(flow, id, "blockdev-mirror", arguments, on_started);
}

static void
on_compress_opened(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "cannot compress"))
        start_mirror(flow);
}

static void
on_image_opened(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "cannot open"))
        return;
    if (flow->using->compress)
        vf_ask(flow, "blockdev-add",
               vf_json_strings("driver", "compress", "node-name", COMPRESS_NODE, "file", IMAGE_NODE,
                               "discard", "unmap", "detect-zeroes", "unmap", NULL),
               on_compress_opened);
    else
        start_mirror(flow);
}

static void
open_image(struct vf_flow *flow)
{
    vf_ask(flow, "blockdev-add",
           vf_json_strings("driver", flow->using->extension, "node-name", IMAGE_NODE, "file",
                           FILE_NODE, "discard", "unmap", "detect-zeroes", "unmap", NULL),
           on_image_opened);
}

static void
on_formatted(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "cannot write"))
        open_image(flow);
}

static void
format(struct vf_flow *flow)
{
    struct json_object *options = vf_json_strings("driver", "qcow2", "file", FILE_NODE, NULL);
    struct json_object *arguments = vf_json_new_object();

    vf_json_add_int(options, "size", current_cut(flow)->size);
    vf_json_add(arguments, "options", options);
    vf_jobs_start(flow, current_cut(flow)->name, "blockdev-create", arguments);
    vf_jobs_finish(flow, on_formatted);
}

static void
on_file_opened(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "cannot open"))
        return;
    if (flow->using->raw)
        open_image(flow);
    else
        format(flow);
}

static void
copy_next(struct vf_flow *flow)
{
    if (flow->at == flow->using->count) {
        vf_using_let_go(flow);
        vf_end(flow, VF_OK);
        return;
    }
    const struct vf_copy *copy = vf_using_current(flow);

    vf_job_forget(flow);
    if (flow->using->raw && ftruncate(copy->file.fd, current_cut(flow)->size) < 0) {
        vf_refuse(flow, VMFROST_FAILED, "disk %s: cannot make %s as large as the disk: %s",
                  current_cut(flow)->name, copy->file.path, strerror(errno));
        return;
    }
    VF_AUTO_FREE char *name = vf_copy_name(copy);

    vf_ask(flow, "blockdev-add",
           vf_json_strings("driver", "file", "node-name", FILE_NODE, "filename", name, "discard",
                           "unmap", NULL),
           on_file_opened);
}

static void
copy(struct vf_flow *flow)
{
    flow->at = 0;
    copy_next(flow);
}

/* --- Checksums --- */

static void sum_next(struct vf_flow *flow);

/* How far a program has read in the file; -1: it has not opened it. */
static int64_t
position_in(pid_t pid, int file_fd)
{
    VF_AUTO_FREE char *folder = vf_printf("/proc/%d/fd", (int)pid);
    DIR *entries = opendir(folder);
    int64_t position = -1;
    struct stat wanted, about;

    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        VF_AUTO_FREE char *path = vf_printf("/proc/%d/fdinfo/%.20s", (int)pid, entry->d_name);
        long long found;
        FILE *info;

        if (fstat(file_fd, &wanted) < 0 || fstatat(dirfd(entries), entry->d_name, &about, 0) < 0 ||
            wanted.st_ino != about.st_ino || wanted.st_dev != about.st_dev ||
            !(info = fopen(path, "re")))
            continue;
        if (fscanf(info, "pos: %lld", &found) == 1)
            position = found;
        fclose(info);
    }
    if (entries)
        closedir(entries);
    return position;
}

static void
on_look(struct ev_loop *loop, ev_timer *watcher, int revents)
{
    struct vf_flow *flow = watcher->data;
    const struct vf_copy *copy = vf_using_current(flow);
    pid_t pid = flow->program ? vf_program_pid(flow->program) : 0;
    double from, to;
    struct stat about;

    (void)loop;
    (void)revents;
    int64_t position = pid ? position_in(pid, copy->file.fd) : -1;

    if (position < 0 || fstat(copy->file.fd, &about) < 0 || about.st_size <= 0)
        return;
    find_share(flow, &from, &to);
    vf_progress(flow, from + (to - from) * (double)position / (double)about.st_size);
}

static bool
take_sum(struct vf_copy *copy, const struct vf_program_end *end)
{
    if (end->status > 0 || strspn(end->out, "0123456789abcdef") != SHA256_LENGTH ||
        end->out[SHA256_LENGTH] != ' ')
        return false;
    memcpy(copy->checksum, end->out, SHA256_LENGTH);
    return true;
}

static void
on_summed(void *data, const struct vf_program_end *end)
{
    struct vf_flow *flow = data;
    bool taken = take_sum(vf_using_current(flow), end);

    ev_timer_stop(flow->loop, &flow->using->look);
    if (!taken)
        vf_note(flow, VMFROST_FAILED, "disk %s: sha256sum cannot read the copy: %s",
                current_cut(flow)->name, end->words[0] ? end->words : "it does not say why");
    vf_program_stop(flow->program);
    flow->program = NULL;
    if (!taken) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->at++;
    sum_next(flow);
}

static void
sum_next(struct vf_flow *flow)
{
    struct vf_using *using = flow->using;
    struct vmfrost_error error = {.code = VMFROST_OK};
    bool missing = false;

    if (flow->at == using->count) {
        vf_end(flow, VF_OK);
        return;
    }
    VF_AUTO_FREE char *name = vf_copy_name(vf_using_current(flow));
    const char *const arguments[] = {"sha256sum", "--", name, NULL};

    flow->program = vf_program_start(flow->loop, arguments, on_summed, flow, &missing, &error);
    if (!flow->program) {
        vf_warn(flow, "%s: there are no checksums",
                missing ? "sha256sum is not installed" : error.text);
        vf_end(flow, VF_OK);
        return;
    }
    ev_timer_stop(flow->loop, &using->look);
    ev_init(&using->look, on_look);
    ev_timer_set(&using->look, LOOK_S, LOOK_S);
    using->look.data = flow;
    ev_timer_start(flow->loop, &using->look);
}

static void
sum(struct vf_flow *flow)
{
    flow->at = 0;
    sum_next(flow);
}

/* --- The end --- */

/* sha256sum's own format: a backslash in the name is written twice, and one stands before all. */
static char *
sum_line(const struct vf_copy *copy)
{
    const char *name = strrchr(copy->file.path, '/') + 1;
    char *line = vf_alloc(SHA256_LENGTH + 2 * strlen(name) + 5), *at = line;

    if (strchr(name, '\\'))
        *at++ = '\\';
    at = stpcpy(stpcpy(at, copy->checksum), "  ");
    for (; *name; name++) {
        if (*name == '\\')
            *at++ = '\\';
        *at++ = *name;
    }
    *at = '\n';
    return line;
}

/* After the copy itself: a checksum without it would only be in the way of the next one. */
static bool
write_sum(const struct vf_copy *copy, struct vmfrost_error *error)
{
    VF_AUTO_FREE char *path = vf_printf("%s.sha256", copy->file.path);
    VF_AUTO_FREE char *line = sum_line(copy);
    struct vf_newfile file = VF_NEWFILE_INIT;
    bool written = vf_newfile_create(&file, path, error);

    if (written && write(file.fd, line, strlen(line)) != (ssize_t)strlen(line))
        written = vf_fail(error, VMFROST_FAILED, "cannot write %s: %s", path, strerror(errno));
    written = written && vf_newfile_publish(&file, error);
    vf_newfile_release(&file);
    return written;
}

static void
publish(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->using->count; i++) {
        struct vf_copy *each = &flow->using->copies[i];
        struct vmfrost_error error = {.code = VMFROST_OK};

        if (!vf_using_publish(flow, each)) {
            vf_end(flow, VF_REFUSED);
            return;
        }
        if (each->checksum[0] && !write_sum(each, &error))
            vf_warn(flow, "disk %s: its copy is whole, but its checksum could not be written: %s",
                    flow->cuts[each->cut].name, error.text);
    }
    flow->document_json = vf_json_strings("vm", flow->vm.name, "name", flow->snapshot_name, NULL);
    vf_json_add(flow->document_json, "files", vf_using_files_json(flow));
    vf_json_add(flow->document_json, "warnings", json_object_get(flow->warnings));
    vf_end(flow, VF_OK);
}

#define MINUTE_MS (60 * 1000)
#define WEEK_MS (INT64_C(7) * 24 * 60 * MINUTE_MS)

static const struct vf_step steps[STEP_COUNT] = {
    [FIND] = {.name = "find",
              .title = "Finding the images",
              .start = vf_step_using_find,
              .budget_ms = MINUTE_MS,
              .next = OPEN},
    [OPEN] = {.name = "open",
              .title = "Opening the images",
              .start = vf_step_using_open,
              .budget_ms = MINUTE_MS,
              .next = CREATE},
    [CREATE] = {.name = "create",
                .title = "Creating the files",
                .start = vf_step_using_create,
                .owes = VF_OWE_PARTS,
                .sticky = VF_OWE_PARTS,
                .budget_ms = MINUTE_MS,
                .next = COPY},
    [COPY] =
        {.name = "copy", .title = "Copying", .start = copy, .budget_ms = WEEK_MS, .next = CHECKSUM},
    [CHECKSUM] = {.name = "checksum",
                  .title = "Computing checksums",
                  .start = sum,
                  .budget_ms = WEEK_MS,
                  .next = PUBLISH},
    [PUBLISH] = {.name = "publish",
                 .title = "Giving the files their names",
                 .start = publish,
                 .pays = VF_OWE_PARTS,
                 .budget_ms = MINUTE_MS,
                 .next = END},

    [REMOVE] = {.name = "remove",
                .title = "Removing what was copied",
                .start = vf_step_using_undo,
                .pays = VF_OWE_PARTS,
                .budget_ms = MINUTE_MS},
};

static const struct vf_undo undos[] = {
    {VF_OWE_PARTS, REMOVE, 0},
};

const struct vf_table vf_export_table = {
    .operation = "export",
    .steps = steps,
    .step_count = STEP_COUNT,
    .undos = undos,
    .undo_count = sizeof undos / sizeof *undos,
    .first = FIND,
};
