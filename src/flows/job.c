/* SPDX-License-Identifier: MIT
 *
 * QEMU's jobs: started, watched by events, read, dismissed.
 *
 * All jobs are made with auto-dismiss off, so that their result outlives a lost connection.
 * Events may come before the reply of the command that caused them, and are not told again to a
 * new connection: so the watch begins before the command, and every wait asks once. Then it asks
 * every quarter of a second, which tells how far the job is, and makes up for an event that was
 * lost.
 */
#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"

unsigned
vf_job_state_bit(const char *name)
{
    static const struct {
        const char *name;
        unsigned bit;
    } states[] = {
        {"ready", VF_JOB_READY},
        {"pending", VF_JOB_PENDING},
        {"concluded", VF_JOB_CONCLUDED},
        {"null", VF_JOB_GONE},
    };

    for (size_t i = 0; name && i < sizeof states / sizeof *states; i++)
        if (strcmp(states[i].name, name) == 0)
            return states[i].bit;
    return 0;
}

void
vf_job_watch(struct vf_flow *flow, const char *id)
{
    free(flow->job);
    flow->job = vf_strdup(id);
    flow->job_all = false;
    flow->on_job = NULL;
}

void
vf_job_ask(struct vf_flow *flow, const char *id, const char *command, struct json_object *arguments,
           vf_flow_fn *fn)
{
    vf_json_add_bool(arguments, "auto-dismiss", false);
    if (flow->vm.copy_speed > 0)
        vf_json_add_int(arguments, "speed", flow->vm.copy_speed);
    vf_job_watch(flow, id);
    vf_ask(flow, command, arguments, fn);
}

static void
on_unlimited(struct vf_flow *flow, const struct vf_reply *reply)
{
    vf_flow_fn *fn = flow->on_unlimited;

    flow->on_unlimited = NULL;
    if (reply->outcome == VF_UNKNOWN)
        fn(flow, reply);
    else /* a job that refuses it says why when it is asked for its end */
        vf_ask(flow, "job-complete", vf_json_strings("id", flow->job, NULL), fn);
}

void
vf_job_complete(struct vf_flow *flow, vf_flow_fn *fn)
{
    if (flow->vm.copy_speed <= 0) {
        vf_ask(flow, "job-complete", vf_json_strings("id", flow->job, NULL), fn);
        return;
    }
    struct json_object *arguments = vf_json_strings("device", flow->job, NULL);

    vf_json_add_int(arguments, "speed", 0);
    flow->on_unlimited = fn;
    vf_ask(flow, "block-job-set-speed", arguments, on_unlimited);
}

void
vf_job_share(struct vf_flow *flow, double from, double to)
{
    flow->share_from = from;
    flow->share_to = to;
}

void
vf_job_forget(struct vf_flow *flow)
{
    flow->job = (free(flow->job), NULL);
    flow->on_job = NULL;
    flow->share_from = flow->share_to = 0;
    ev_timer_stop(flow->loop, &flow->job_timer);
}

static void
arrived(struct vf_flow *flow, const struct vf_reply *reply)
{
    vf_flow_fn *fn = flow->on_job;

    flow->on_job = NULL;
    ev_timer_stop(flow->loop, &flow->job_timer);
    fn(flow, reply);
}

static void
tell_progress(struct vf_flow *flow, struct json_object *job)
{
    double share = flow->share_to - flow->share_from;
    int64_t done, total;

    if (share <= 0 || !vf_json_int(job, "current-progress", &done) ||
        !vf_json_int(job, "total-progress", &total) || done < 0 || total <= 0)
        return;
    /* A job that has copied everything is not over yet. */
    double part = done < total ? (double)done / (double)total : 1;

    vf_progress(flow, flow->share_from + part * 0.999 * share);
}

static struct json_object *
find_job(struct json_object *list, const char *id)
{
    if (!json_object_is_type(list, json_type_array))
        return NULL;
    for (size_t i = 0; i < vf_json_length(list); i++) {
        const char *its_id = vf_json_string(vf_json_at(list, i), "id");

        if (its_id && strcmp(its_id, id) == 0)
            return vf_json_at(list, i);
    }
    return NULL;
}

static void
ask_later(struct vf_flow *flow)
{
    ev_timer_stop(flow->loop, &flow->job_timer);
    ev_timer_set(&flow->job_timer, 0.25, 0);
    ev_timer_start(flow->loop, &flow->job_timer);
}

/* `value` of the reply to the waiter is the job as query-jobs shows it, NULL if it is gone. */
static void
on_jobs(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!flow->on_job)
        return;
    if (reply->outcome != VF_OK) {
        arrived(flow, reply);
        return;
    }
    struct json_object *job = find_job(reply->value, flow->job);
    unsigned state = job ? vf_job_state_bit(vf_json_string(job, "status")) : VF_JOB_GONE;

    if (!(state & (flow->job_states | VF_JOB_CONCLUDED | VF_JOB_GONE))) {
        tell_progress(flow, job);
        ask_later(flow);
        return; /* an event will tell, or the next question */
    }
    struct vf_reply answer = {VF_OK, job, ""};

    arrived(flow, &answer);
}

void
vf_job_on_timer(struct ev_loop *loop, ev_timer *watcher, int revents)
{
    struct vf_flow *flow = watcher->data;
    struct vf_reply news = {VF_OK, NULL, ""};

    (void)loop;
    (void)revents;
    if (!flow->job_all)
        vf_ask(flow, "query-jobs", NULL, on_jobs);
    else if (flow->on_job)
        arrived(flow, &news);
}

void
vf_job_wait(struct vf_flow *flow, unsigned states, vf_flow_fn *fn)
{
    flow->job_states = states;
    flow->on_job = fn;
    vf_ask(flow, "query-jobs", NULL, on_jobs);
}

static void
on_seen(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct vf_reply answer = *reply;

    if (!flow->on_job)
        return;
    if (reply->outcome == VF_OK)
        answer.value = find_job(reply->value, flow->job);
    arrived(flow, &answer);
}

void
vf_job_look(struct vf_flow *flow, vf_flow_fn *fn)
{
    flow->job_states = 0;
    flow->on_job = fn;
    vf_ask(flow, "query-jobs", NULL, on_seen);
}

void
vf_jobs_ask(struct vf_flow *flow, const char *prefix, vf_flow_fn *fn)
{
    vf_job_watch(flow, prefix);
    flow->job_all = true;
    flow->job_news = false;
    vf_ask(flow, "query-jobs", NULL, fn);
}

void
vf_jobs_await(struct vf_flow *flow, vf_flow_fn *fn)
{
    struct vf_reply news = {VF_OK, NULL, ""};

    if (flow->job_news) {
        fn(flow, &news);
        return;
    }
    flow->on_job = fn;
    ask_later(flow); /* an event may be lost */
}

void
vf_job_event(struct vf_flow *flow, const char *state)
{
    unsigned bit = vf_job_state_bit(state);
    struct vf_reply news = {VF_OK, NULL, ""};

    if (flow->job_all) {
        flow->job_news = flow->job_news || bit;
        if (flow->on_job && bit)
            arrived(flow, &news);
        return;
    }
    /* The event has no error text: ask for all there is to know. */
    if (flow->on_job && (bit & (flow->job_states | VF_JOB_CONCLUDED | VF_JOB_GONE)))
        vf_ask(flow, "query-jobs", NULL, on_jobs);
}

void
vf_job_lost(struct vf_flow *flow, const char *why)
{
    struct vf_reply answer = {VF_UNKNOWN, NULL, why};

    if (flow->job && flow->on_job)
        arrived(flow, &answer);
}

/* Whole jobs, several at once. */

static char *
own_id(const struct vf_flow *flow, unsigned number)
{
    return vf_printf("vf%.8s-%u", flow->id, number);
}

static void
end_jobs(struct vf_flow *flow, const struct vf_reply *reply)
{
    vf_flow_fn *fn = flow->on_jobs_done;

    flow->jobs_begun = 0;
    fn(flow, reply);
}

static void
on_all_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct vf_reply answer = *reply;

    if (answer.outcome == VF_OK && flow->job_error) {
        answer.outcome = VF_REFUSED;
        answer.words = flow->job_error;
        flow->batch.failed = flow->job_failed;
    }
    end_jobs(flow, &answer);
}

static void
dismiss_all(struct vf_flow *flow)
{
    for (unsigned i = 0; i < flow->jobs_begun; i++) {
        VF_AUTO_FREE char *id = own_id(flow, flow->job_number - flow->jobs_begun + i);

        vf_batch_ask(flow, flow->job_abouts[i], "job-dismiss", vf_json_strings("id", id, NULL));
    }
    vf_batch_end(flow, on_all_dismissed);
}

static void on_news(struct vf_flow *flow, const struct vf_reply *reply);

static void
on_all_jobs(struct vf_flow *flow, const struct vf_reply *reply)
{
    bool wait = false;

    if (reply->outcome != VF_OK) {
        flow->batch.failed = flow->job_abouts[0];
        end_jobs(flow, reply);
        return;
    }
    flow->job_error = (free(flow->job_error), NULL);
    for (unsigned i = 0; i < flow->jobs_begun; i++) {
        VF_AUTO_FREE char *id = own_id(flow, flow->job_number - flow->jobs_begun + i);
        struct json_object *job = find_job(reply->value, id);
        const char *error = vf_json_string(job, "error");

        if (!job) {
            struct vf_reply gone = {VF_UNKNOWN, NULL, "the job is gone without a result"};

            flow->batch.failed = flow->job_abouts[i];
            end_jobs(flow, &gone);
            return;
        }
        wait |= vf_job_state_bit(vf_json_string(job, "status")) != VF_JOB_CONCLUDED;
        if (!error || flow->job_error)
            continue;
        flow->job_error = vf_strdup(error);
        flow->job_failed = flow->job_abouts[i];
    }
    if (wait)
        vf_jobs_await(flow, on_news);
    else
        dismiss_all(flow);
}

static void
ask_for_all(struct vf_flow *flow)
{
    VF_AUTO_FREE char *prefix = vf_printf("vf%.8s-", flow->id);

    vf_jobs_ask(flow, prefix, on_all_jobs);
}

static void
on_news(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_OK)
        ask_for_all(flow);
    else
        on_all_jobs(flow, reply);
}

static void
on_all_started(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_OK)
        ask_for_all(flow);
    else
        end_jobs(flow, reply);
}

void
vf_jobs_start(struct vf_flow *flow, const char *about, const char *command,
              struct json_object *arguments)
{
    VF_AUTO_FREE char *id = own_id(flow, flow->job_number++);

    VF_GROW(flow->job_abouts, flow->jobs_begun);
    flow->job_abouts[flow->jobs_begun++] = about;
    vf_json_add_string(arguments, "job-id", id);
    vf_batch_ask(flow, about, command, arguments);
}

void
vf_jobs_finish(struct vf_flow *flow, vf_flow_fn *fn)
{
    flow->on_jobs_done = fn;
    vf_batch_end(flow, on_all_started);
}
