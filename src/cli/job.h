/* SPDX-License-Identifier: MIT
 *
 * One operation of the library, from its start to its outcome.
 *
 * Ctrl-C, SIGTERM and SIGHUP ask it to stop and never end the command themselves: an operation has
 * to unwind. A job lives at one place from job_init() to job_release(); any number of them may run
 * side by side.
 */
#ifndef VF_CLI_JOB_H
#define VF_CLI_JOB_H

#include <json-c/json.h>

#include "cli/cli.h"
#include "cli/live.h"

/* A copy of struct vmfrost_result that stays. */
struct outcome {
    enum vmfrost_code code;
    enum vmfrost_snapshot_state snapshot;
    enum vmfrost_guest_state guest;
    char *text, *next;
    struct json_object *document; /* NULL: none, or not readable */
};

struct job {
    struct cli *cli;
    char *vm; /* NULL: of no VM */
    struct vmfrost_op *op;
    bool done;
    bool several;
    bool is_part; /* of a larger job, which tells what became of it */
    struct live live;
    struct outcome outcome;
};

/* What became of it, in words that are copied; frees the former ones. Returns the code. */
enum vmfrost_code outcome_set(struct outcome *outcome, enum vmfrost_code code, const char *text,
                              const char *next);

/* `several`: it is one of a number that run at a time. Needs cli->context. */
void job_init(struct job *job, struct cli *cli, const char *vm, bool several);
void job_release(struct job *job);

/* For the library: `data` is the job. */
vmfrost_event_fn job_on_event;
vmfrost_done_fn job_on_done;

/* So many of them may have their sockets and files open at a time. */
void jobs_make_room(size_t count);

/* Runs until all of them are done. */
void jobs_wait(struct cli *cli, struct job *jobs, size_t count);

/* Runs `start` on a job for each VM of the inventory, all at a time, and waits. Returns the highest
 * of their codes; *jobs_r is NULL after an error was reported, else to be freed with jobs_free().
 */
enum vmfrost_code jobs_run_all(struct cli *cli, void (*start)(struct job *job), struct job **jobs_r,
                               size_t *count_r);
void jobs_free(struct job *jobs, size_t count);

/* The last line of an operation under --json; `operation` may be NULL. Owned by the caller. */
struct json_object *job_result_json(const char *vm, const char *operation,
                                    const struct outcome *outcome);

/* Tells the outcome's error, if it has one, on stderr; with the alarm for VMFROST_MAY_BE_FROZEN.
 * Returns its code. */
enum vmfrost_code job_report(struct cli *cli, const struct job *job);

/* The same for a command that reads: prints the document under --json, or the error. */
enum vmfrost_code job_end_reading(struct cli *cli, const struct job *job);

#endif
