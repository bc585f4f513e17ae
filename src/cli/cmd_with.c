/* SPDX-License-Identifier: MIT
 *
 * with: a snapshot for as long as a command of the user's runs.
 *
 * Whatever becomes of the command, the snapshot is merged back: from the moment in which it is
 * taken, no signal ends vmfrost before it has tried. What vmfrost itself has to say goes to stderr,
 * or to the file of --events: stdout is the command's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli/child.h"
#include "cli/cli.h"
#include "cli/environment.h"
#include "cli/job.h"
#include "cli/record.h"
#include "cli/report.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

/* How long to wait for somebody else who works on the VM. */
enum { WAIT_S = 600 };

struct with {
    struct cli *cli;
    struct child child;
    bool tells;                 /* each thing that is done */
    struct json_object *record; /* of the snapshot; NULL: there is none */
    char *file;                 /* the record's copy for the command */
    bool ran;
    bool merged;
    struct outcome outcome; /* its strings are owned */
};

static enum vmfrost_code
end_and_report(struct with *with, enum vmfrost_code code, const char *text, const char *next)
{
    report_text(with->cli, text, next);
    return outcome_set(&with->outcome, code, text, next);
}

/* What --events has of a part: like a result, but for its name. */
static void
tell_part(struct with *with, const char *event, const char *operation, const struct job *job)
{
    if (!with->cli->options.json)
        return;
    VF_AUTO_JSON struct json_object *line = job_result_json(job->vm, operation, &job->outcome);

    vf_json_add_string(line, "event", event);
    report_json_line(with->cli, line);
}

static void
tell(struct with *with, const char *what)
{
    struct cli *cli = with->cli;

    if (!with->tells)
        return;
    out_text(&cli->err, STYLE_BOLD, "%s@%s", cli->vm, cli->snapshot);
    out_text(&cli->err, STYLE_PLAIN, "  %s\n", what);
    out_flush(&cli->err);
}

/*
 * The snapshot
 */

/* Owned by the caller. */
static char *
made_up_name(void)
{
    char name[40];
    time_t now = time(NULL);
    struct tm parts;

    gmtime_r(&now, &parts);
    strftime(name, sizeof name, "with-%Y%m%dT%H%M%SZ", &parts);
    return vf_strdup(name);
}

/* Only a snapshot that is all that was asked for is worth running the command for. One that is
 * less is there all the same, and has to be merged back. */
static enum vmfrost_code
take(struct with *with)
{
    struct cli *cli = with->cli;
    struct job job;

    job_init(&job, cli, cli->vm, false);
    job.is_part = true;
    job.op = vmfrost_snapshot(cli->context, cli->vm, &cli->options.snapshot, job_on_event,
                              job_on_done, &job);
    jobs_wait(cli, &job, 1);
    tell_part(with, "snapshot", "snapshot", &job);

    enum vmfrost_code code = job_report(cli, &job);

    if (code != VMFROST_OK)
        outcome_set(&with->outcome, code, job.outcome.text, job.outcome.next);
    with->outcome.snapshot = job.outcome.snapshot;
    with->outcome.guest = job.outcome.guest;
    if (job.outcome.snapshot == VMFROST_SNAPSHOT_TAKEN)
        with->record = json_object_get(job.outcome.document);
    job_release(&job);
    return code;
}

static void
tell_taken(struct with *with)
{
    struct cli *cli = with->cli;
    const char *consistency = vf_json_string(with->record, "consistency");
    VF_AUTO_FREE char *quality = record_quality(with->record);

    tell(with, quality);
    if (!with->tells && (!consistency || strcmp(consistency, "filesystem") != 0)) {
        VF_AUTO_FREE char *warning = vf_printf("%s@%s is %s", cli->vm, cli->snapshot, quality);

        report_warning(cli, warning);
    }
    print_warnings(cli, &cli->err, with->record);
    out_flush(&cli->err);
}

/*
 * The command
 */

static void
add_ending(const struct with *with, struct json_object *object)
{
    int status = with->child.status;

    if (with->ran && WIFSIGNALED(status))
        vf_json_add_int(object, "signal", WTERMSIG(status));
    else if (with->ran)
        vf_json_add_int(object, "exitCode", WEXITSTATUS(status));
}

static void
tell_command(struct with *with, const char *state)
{
    struct cli *cli = with->cli;

    if (!cli->options.json)
        return;
    VF_AUTO_JSON struct json_object *line =
        vf_json_strings("event", "command", "vm", cli->vm, "command", cli->words[0], "state", state,
                        NULL);

    add_ending(with, line);
    report_json_line(cli, line);
}

/* A signal that has come while nothing of ours was there for it. */
static bool
was_stopped(struct with *with, const char *next)
{
    child_look(&with->child);
    if (!with->child.stopped_by)
        return false;
    end_and_report(with, (enum vmfrost_code)(128 + with->child.stopped_by), "stopped by request",
                   next);
    return true;
}

static void
run_command(struct with *with)
{
    struct cli *cli = with->cli;
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (was_stopped(with, "the command is not run"))
        return;
    if (!environment_set(with->record, &with->file, &error)) {
        end_and_report(with, error.code, error.text, "the command is not run");
        return;
    }
    tell_taken(with);
    tell_command(with, "started");
    if (!child_run(&with->child, cli->words, &error)) {
        end_and_report(with, error.code, error.text, "");
        return;
    }
    with->ran = true;
    tell_command(with, "ended");

    int code = child_exit_code(&with->child);
    VF_AUTO_FREE char *text = vf_printf("the command ended with exit code %d", code);

    if (code != 0)
        outcome_set(&with->outcome, (enum vmfrost_code)code, text, "");
}

/*
 * And back
 */

static void
fail_merge(struct with *with, const struct job *job)
{
    struct cli *cli = with->cli;
    VF_AUTO_FREE char *words = cli_words_for(cli->vm, cli->snapshot);
    VF_AUTO_FREE char *text =
        vf_printf("%s@%s could not be merged back, and is still there", cli->vm, cli->snapshot);
    VF_AUTO_FREE char *next = vf_printf("vmfrost delete %s", words);

    job_report(cli, job);
    end_and_report(with, job->outcome.code, text, next);
}

/* Who works on the VM right now, "snapshot web@x by process 5"; NULL: nobody. Owned by the caller.
 */
static char *
holder_of(struct with *with)
{
    struct cli *cli = with->cli;
    char *text = NULL;
    struct job job;

    job_init(&job, cli, cli->vm, false);
    job.is_part = true;
    job.op = vmfrost_status(cli->context, cli->vm, job_on_done, &job);
    jobs_wait(cli, &job, 1);

    struct json_object *holder = vf_json_object(job.outcome.document, "holder");
    const char *what = vf_json_string(holder, "what");
    int64_t pid = 0;

    vf_json_int(holder, "pid", &pid);
    if (holder)
        text = vf_printf("%s by process %lld", what ? what : "an operation", (long long)pid);
    job_release(&job);
    return text;
}

/* Somebody else's snapshot at this very moment is no reason to leave ours. False if it takes too
 * long, or a signal says so. */
static bool
wait_for_others(struct with *with)
{
    struct cli *cli = with->cli;
    bool told = false;
    char *holder;

    for (int tries = 0; (holder = holder_of(with)); tries++) {
        if (!told && !cli->options.quiet) {
            live_pause(cli->live);
            out_text(&cli->err, STYLE_WARN, "vmfrost: waiting for %s\n", holder);
            out_flush(&cli->err);
        }
        told = true;
        free(holder);
        if (tries >= WAIT_S || !child_sleep(&with->child, 1))
            return false;
    }
    return true;
}

static void
start_merge(struct with *with, struct job *job)
{
    struct cli *cli = with->cli;

    job_init(job, cli, cli->vm, false);
    job->is_part = true;
    job->op = vmfrost_delete(cli->context, cli->vm, cli->snapshot, job_on_event, job_on_done, job);
    jobs_wait(cli, job, 1);
}

static bool
is_busy(struct with *with)
{
    VF_AUTO_FREE char *holder = holder_of(with);

    return holder != NULL;
}

static void
merge(struct with *with)
{
    struct cli *cli = with->cli;
    struct job job;

    cli->reprieve = "merging the snapshot back; once more stops that";
    bool again = wait_for_others(with);

    start_merge(with, &job);
    while (job.outcome.code != VMFROST_OK && again && !cli->stopped && is_busy(with)) {
        again = wait_for_others(with);
        job_release(&job);
        start_merge(with, &job);
    }
    cli->reprieve = NULL;
    tell_part(with, "deletion", "delete", &job);
    with->merged = job.outcome.code == VMFROST_OK;
    if (with->merged) {
        tell(with, "merged back");
        print_warnings(cli, &cli->err, job.outcome.document);
    } else {
        fail_merge(with, &job);
    }
    job_release(&job);
}

/* The guest may be frozen: a merge can wait. */
static void
leave(struct with *with)
{
    struct cli *cli = with->cli;
    VF_AUTO_FREE char *words = cli_words_for(cli->vm, cli->snapshot);
    VF_AUTO_FREE char *text =
        vf_printf("%s@%s was taken, and is still there", cli->vm, cli->snapshot);
    VF_AUTO_FREE char *next = vf_printf("when the guest is thawed: vmfrost delete %s", words);

    report_text(cli, text, next);
}

/*
 * All of it
 */

static void
do_it(struct with *with)
{
    if (was_stopped(with, "nothing is changed"))
        return;
    if (take(with) == VMFROST_OK)
        run_command(with);
    if (with->record && with->outcome.guest == VMFROST_GUEST_MAY_BE_FROZEN)
        leave(with);
    else if (with->record)
        merge(with);
}

static void
print_result(struct with *with)
{
    struct cli *cli = with->cli;
    struct outcome *outcome = &with->outcome;

    outcome->document = vf_json_strings("vm", cli->vm, "name", cli->snapshot, "consistency",
                                        vf_json_string(with->record, "consistency"), NULL);
    add_ending(with, outcome->document);
    vf_json_add_bool(outcome->document, "merged", with->merged);
    VF_AUTO_JSON struct json_object *line = job_result_json(cli->vm, "with", outcome);

    report_json_line(cli, line);
}

/* The file takes stdout's place. */
static bool
open_events(struct cli *cli)
{
    const char *path = cli->options.events;

    if (!path)
        return true;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0600);

    if (fd < 0) {
        VF_AUTO_FREE char *text = vf_printf("cannot open %s: %s", path, strerror(errno));

        report_text(cli, text, "");
        return false;
    }
    out_release(&cli->out);
    out_init(&cli->out, fd);
    cli->options.json = true;
    return true;
}

static void
close_events(struct cli *cli)
{
    const char *path = cli->options.events;

    if (!path)
        return;
    if (!out_finish(&cli->out)) {
        VF_AUTO_FREE char *text =
            vf_printf("cannot write to %s: %s", path, strerror(cli->out.error));

        report_text(cli, text, "");
    }
    out_release(&cli->out);
    close(cli->out.fd);
    out_init(&cli->out, STDOUT_FILENO);
}

static enum vmfrost_code
run_with(struct cli *cli)
{
    struct vmfrost_snapshot_options *options = &cli->options.snapshot;
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (cli->options.json)
        return report_usage(cli, "stdout is the command's: write --events FILE instead of --json");
    if (!open_events(cli))
        return VMFROST_FAILED;
    if (!cli->snapshot)
        cli->snapshot = made_up_name();
    options->name = cli->snapshot;
    options->exclude = cli->options.exclude;
    options->exclude_count = cli->options.exclude_count;
    options->include = cli->options.include;
    options->include_count = cli->options.include_count;

    struct with with = {
        .cli = cli,
        .tells = !cli->options.json && !cli->options.quiet &&
                 (cli->err.terminal || cli->options.verbose > 0),
        .outcome = {.snapshot = VMFROST_SNAPSHOT_NONE, .guest = VMFROST_GUEST_NEVER_FROZEN},
    };

    if (child_exists(cli->words[0], &error)) {
        child_prepare(&with.child, cli->loop);
        do_it(&with);
        child_release(&with.child);
    } else {
        end_and_report(&with, error.code, error.text, "");
    }
    if (with.file)
        unlink(with.file);
    if (cli->options.json)
        print_result(&with);
    close_events(cli);

    enum vmfrost_code code = with.outcome.code;

    json_object_put(with.outcome.document);
    json_object_put(with.record);
    free(with.outcome.text);
    free(with.outcome.next);
    free(with.file);
    return code;
}

const struct command command_with = {
    .name = "with",
    .help = "take a snapshot, run a command on its images, merge it back",
    .synopsis = "VM[@NAME] [OPTION]... -- COMMAND [ARGUMENT]...\n"
                "--qmp PATH [[@]NAME] [OPTION]... -- COMMAND [ARGUMENT]...",
    .about =
        "For backups: takes a snapshot, runs the command with the paths of the images in its\n"
        "environment, and merges the snapshot back, whatever the command did. The exit code is\n"
        "the command's, 128 and the signal's number if one killed it, 126 or 127 if it cannot be\n"
        "run. If the snapshot fails, the code is that of the snapshot, and the command is not\n"
        "run; if the merge fails, that of the merge, and the snapshot is still there.\n"
        "\n"
        "VMFROST_IMAGES has the paths, one a line, VMFROST_IMAGE_<DISK> that of one disk, like\n"
        "VMFROST_IMAGE_WEB, VMFROST_FORMAT_<DISK> its format, VMFROST_RECORD a file with the\n"
        "record; VMFROST_VM, VMFROST_SNAPSHOT and VMFROST_CONSISTENCY are there, too. The command\n"
        "may only read the images, and has to be done with them when it ends.\n",
    .examples = "  vmfrost with web@backup --quiesce require -- sh -c 'echo \"$VMFROST_IMAGES\" |\n"
                "      restic backup --files-from-verbatim /dev/stdin'\n"
                "  vmfrost with web -- sh -c 'cd /backup &&\n"
                "      qemu-img convert -c -O qcow2 \"$VMFROST_IMAGE_WEB\" web.qcow2'\n",
    .kind = COMMAND_OPERATES,
    .target = TARGET_VM_SNAPSHOT,
    .options =
        (const struct option_use[]){
            {OPTION_QMP, "the VM, by the path of its QMP socket"},
            {OPTION_EVENTS, "write to FILE what --json would print if stdout were not the "
                            "command's; /dev/fd/3 is a file, too"},
            {OPTION_DEADLINE, "give up and roll back after this long (default: the VM's setting, "
                              "else 5m)"},
            {OPTION_FROZEN_LIMIT, "how long the guest may be frozen before the cut (default: the "
                                  "VM's setting, else 30s; 8s for Windows guests)"},
            {OPTION_THAW_WAIT, "how long to stay for a thaw that is not confirmed (default: 60s)"},
            {OPTION_QUIESCE, "as for snapshot (default: the VM's setting, else auto)"},
            {OPTION_EXCLUDE, "a disk to leave out; may be given several times"},
            {OPTION_INCLUDE,
             "a disk to take along that was plugged in while the VM was running; may "
             "be given several times"},
            {OPTION_METHOD, "how the disks are cut (default: the VM's setting, else existing)"},
            {OPTION_FLUSH, "how the guest's caches are flushed before the freeze: auto (by sync, "
                           "if its agent may run commands), off, or a command for its shell "
                           "(default: the VM's setting, else auto)"},
            {OPTION_FREEZE, "the guest's file systems to freeze: cut (those on disks that are not "
                            "left out), all, or mount points; -/MOUNT leaves one out (default: the "
                            "VM's setting, else cut)"},
            {OPTION_NO_PRIME, "send the cut to QEMU when the guest is frozen, not all but its last "
                              "byte before (default: the VM's setting prime)"},
            {0, NULL},
        },
    .takes_command = true,
    .run = run_with,
};
