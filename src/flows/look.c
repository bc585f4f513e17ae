/* SPDX-License-Identifier: MIT
 *
 * The step that asks QEMU what it is: run state, jobs, disks, block graph, and where the guest
 * agent's channel ends. It changes nothing.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/disk.h"

#define OTHER_QEMU "vmfrost needs QEMU 5.2 or later, with all its block jobs"
#define AGENT_PORT "org.qemu.guest_agent.0"

struct question {
    const char *command;
    size_t fact; /* offset in struct vf_facts */
    bool flat;
};

#define FACT(name) offsetof(struct vf_facts, name)

static const struct question questions[] = {
    {"query-status", FACT(status), false},
    {"query-migrate", FACT(migrate), false},
    {"query-chardev", FACT(chardev), false},
    /* From here on, vf_look_again() asks again. What comes behind the jobs is only asked when they
     * are known: see creating_job() and dangerous_job(). */
    {"query-block-jobs", FACT(block_jobs), false},
    {"query-jobs", FACT(jobs), false},
    {"query-block", FACT(block), false},
    {"query-named-block-nodes", FACT(nodes), true},
    {"x-debug-query-block-graph", FACT(graph), false},
};
#define QUESTION_COUNT (sizeof questions / sizeof *questions)
#define QUESTION_CHARDEV (QUESTION_COUNT - 6)
#define QUESTION_BLOCK_JOBS (QUESTION_COUNT - 5)
#define QUESTION_JOBS (QUESTION_COUNT - 4)
#define QUESTION_BLOCK (QUESTION_COUNT - 3)
#define QUESTION_NODES (QUESTION_COUNT - 2)

static struct json_object **
fact(struct vf_flow *flow, const struct question *question)
{
    return (struct json_object **)((char *)&flow->facts + question->fact);
}

static void
release_from(struct vf_flow *flow, size_t first)
{
    for (size_t i = first; i < QUESTION_COUNT; i++) {
        json_object_put(*fact(flow, &questions[i]));
        *fact(flow, &questions[i]) = NULL;
    }
}

void
vf_facts_release(struct vf_flow *flow)
{
    release_from(flow, 0);
    json_object_put(VF_STEAL(flow->facts.hotplugged));
}

void
vf_facts_forget(struct vf_flow *flow)
{
    release_from(flow, QUESTION_CHARDEV);
}

struct json_object *
vf_node_about(const struct vf_flow *flow, const char *node)
{
    for (size_t i = 0; node && i < vf_json_length(flow->facts.nodes); i++) {
        struct json_object *about = vf_json_at(flow->facts.nodes, i);
        const char *name = vf_json_string(about, "node-name");

        if (name && strcmp(name, node) == 0)
            return about;
    }
    return NULL;
}

const char *
vf_node_file(const struct vf_flow *flow, const char *node)
{
    return vf_json_string(vf_node_about(flow, node), "file");
}

const struct vf_view *
vf_view_of_qemu(struct vf_flow *flow)
{
    unsigned turn = ev_iteration(flow->loop);

    if (flow->view.pid != flow->qemu.pid || flow->view_turn != turn || !flow->view.pid) {
        vf_view_release(&flow->view);
        vf_view_read(&flow->view, flow->qemu.pid);
        flow->view_turn = turn;
    }
    return &flow->view;
}

static void ask_from(struct vf_flow *flow, size_t first);

/* A storage daemon has no devices: what stands for them does not change. */
static bool
has_no_devices(const struct vf_flow *flow)
{
    return flow->side.taken || (flow->engine.conditions & VF_IF_STOPPED);
}

/* The first question about jobs. */
static size_t
question_again(const struct vf_flow *flow)
{
    return has_no_devices(flow) ? QUESTION_JOBS : QUESTION_BLOCK_JOBS;
}

/* While an image is created, by anybody, QEMU crashes at query-named-block-nodes: the image is in
 * that list before it is whole. The job's id, borrowed; NULL: QEMU can be asked. */
static const char *
creating_job(const struct vf_flow *flow)
{
    for (size_t i = 0; i < vf_json_length(flow->facts.jobs); i++) {
        struct json_object *job = vf_json_at(flow->facts.jobs, i);
        const char *type = vf_json_string(job, "type"), *id = vf_json_string(job, "id");
        unsigned state = vf_job_state_bit(vf_json_string(job, "status"));

        if (type && id && strcmp(type, "create") == 0 &&
            !(state & (VF_JOB_CONCLUDED | VF_JOB_GONE)))
            return id;
    }
    return NULL;
}

static void
on_created(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (vf_expect(flow, reply, "waiting for the end of an image's creation"))
        ask_from(flow, question_again(flow));
}

/* From the end of a stream to its dismissal, QEMU crashes at query-named-block-nodes: the stream's
 * filter is in that list, but has no child any more. Without auto-dismiss, that end may be now;
 * ours wait before it to be told to end. Borrowed; NULL: QEMU can be asked. */
static struct json_object *
dangerous_job(const struct vf_flow *flow)
{
    for (size_t i = 0; i < vf_json_length(flow->facts.block_jobs); i++) {
        struct json_object *job = vf_json_at(flow->facts.block_jobs, i);
        const char *type = vf_json_string(job, "type"), *id = vf_json_string(job, "device");
        bool over = vf_job_state_bit(vf_json_string(job, "status")) == VF_JOB_CONCLUDED;

        if (type && strcmp(type, "stream") == 0 && !vf_json_bool(job, "auto-dismiss", false) &&
            (over || !id || !vf_starts_with(id, VF_JOB_OURS)))
            return job;
    }
    return NULL;
}

static void
on_job_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (vf_expect(flow, reply, "job-dismiss"))
        ask_from(flow, QUESTION_BLOCK_JOBS);
}

/* A stream of ours is a killed vmfrost's: with the journal it is this one's. */
static void
deal_with_jobs(struct vf_flow *flow)
{
    struct json_object *job = has_no_devices(flow) ? NULL : dangerous_job(flow);
    const char *creating = creating_job(flow);

    if (creating) {
        vf_job_watch(flow, creating);
        vf_job_wait(flow, VF_JOB_CONCLUDED, on_created);
        return;
    }
    if (!job) {
        ask_from(flow, has_no_devices(flow) ? QUESTION_NODES : QUESTION_BLOCK);
        return;
    }
    const char *id = vf_json_string(job, "device"), *status = vf_json_string(job, "status");

    if (id && vf_starts_with(id, VF_JOB_OURS) && flow->journal.fd >= 0) {
        vf_ask(flow, "job-dismiss", vf_json_strings("id", id, NULL), on_job_dismissed);
        return;
    }
    vf_fail(&flow->error, VMFROST_FAILED,
            "QEMU's job %s (stream, %s) is not dismissed yet, and QEMU could crash when it is "
            "asked for its disks",
            id ? id : "without a name", status ? status : "in no state");
    vf_hint(&flow->error, "when it is over, dismiss it with job-dismiss");
    vf_end(flow, VF_REFUSED);
}

/* Tells of repairs that came with it or before it, and that no query tells of: before_6_1. It is
 * not needed otherwise. */
#define COMMAND_OF_6_1 "blockdev-reopen"

/* What operations cannot do without, whichever: nothing is begun that could not be undone. (No
 * argument that is sent is younger than 5.2.) In the order of strcmp(). */
static const char *const commands_needed[] = {
    "block-commit",
    "block-job-cancel",
    "block-stream",
    "blockdev-add",
    "blockdev-create",
    "blockdev-del",
    "blockdev-mirror",
    COMMAND_OF_6_1,
    "blockdev-snapshot",
    "blockdev-snapshot-sync",
    "cont",
    "human-monitor-command",
    "job-cancel",
    "job-complete",
    "job-dismiss",
    "job-finalize",
    "qom-get",
    "qom-list",
    "query-block",
    "query-block-jobs",
    "query-chardev",
    "query-jobs",
    "query-migrate",
    "query-named-block-nodes",
    "query-status",
    "stop",
    "system_reset",
    "transaction",
    "x-debug-query-block-graph",
};
#define COMMANDS_NEEDED (sizeof commands_needed / sizeof *commands_needed)

static int
compare_command(const void *name, const void *entry)
{
    return strcmp(name, *(const char *const *)entry);
}

/* The first answer: the step ends if QEMU cannot do it all. Without a value all of them are there;
 * a list without any names tells nothing. */
static void
on_commands(struct vf_flow *flow, const struct vf_reply *reply)
{
    bool known[COMMANDS_NEEDED] = {false}, tells = false;
    char missing[sizeof flow->error.text / 2] = "";

    if (!vf_expect(flow, reply, "query-commands"))
        return;
    for (size_t i = 0; i < vf_json_length(reply->value); i++) {
        const char *name = vf_json_string(vf_json_at(reply->value, i), "name");
        const char *const *needed = name ? bsearch(name, commands_needed, COMMANDS_NEEDED,
                                                   sizeof *commands_needed, compare_command)
                                         : NULL;

        if (needed)
            known[needed - commands_needed] = true;
        tells = tells || vf_same(name, "query-commands");
    }
    for (size_t i = 0; tells && i < COMMANDS_NEEDED; i++)
        if (!known[i] && strcmp(commands_needed[i], COMMAND_OF_6_1) == 0) {
            flow->before_6_1 = true;
        } else if (!known[i]) {
            size_t length = strlen(missing);

            snprintf(missing + length, sizeof missing - length, "%s%s", length ? ", " : "",
                     commands_needed[i]);
        }
    if (!*missing)
        return;
    vf_note(flow, VMFROST_FAILED, "QEMU %s cannot do what vmfrost needs: it has no %s",
            flow->qemu_version, missing);
    vf_advise(flow, OTHER_QEMU);
    vf_end(flow, VF_REFUSED);
}

/* They come in the order of the questions. */
static void
on_answer(struct vf_flow *flow, const struct vf_reply *reply)
{
    const struct question *question = &questions[flow->at];
    struct json_object **slot = fact(flow, question);

    if (!vf_expect(flow, reply, "%s", question->command))
        return;
    json_object_put(*slot);
    *slot = json_object_get(reply->value);
    flow->at++;

    if (flow->at == flow->look_end)
        flow->on_looked(flow);
    else if (flow->at == QUESTION_BLOCK)
        deal_with_jobs(flow);
}

/* All that may be asked now, at once. */
static void
ask_from(struct vf_flow *flow, size_t first)
{
    size_t end = first < QUESTION_BLOCK ? QUESTION_BLOCK : flow->look_end;

    flow->at = first;
    for (size_t i = first; i < end; i++) {
        struct json_object *arguments = NULL;

        if (questions[i].flat) {
            /* Without it the reply grows with the square of the chain's length. */
            arguments = vf_json_new_object();
            vf_json_add_bool(arguments, "flat", true);
        }
        vf_ask(flow, questions[i].command, arguments, on_answer);
    }
}

void
vf_look_again(struct vf_flow *flow, void (*fn)(struct vf_flow *flow))
{
    flow->on_looked = fn;
    flow->look_end = QUESTION_COUNT;
    ask_from(flow, question_again(flow));
}

void
vf_look_at_devices(struct vf_flow *flow, void (*fn)(struct vf_flow *flow))
{
    assert(!has_no_devices(flow));
    flow->on_looked = fn;
    flow->look_end = QUESTION_NODES;
    ask_from(flow, QUESTION_BLOCK_JOBS);
}

/* Which disks were plugged in after QEMU's start: all devices are asked at once, and answer in this
 * order. */

static void find_agent(struct vf_flow *flow);

static struct json_object *
property(const char *path, const char *name)
{
    return vf_json_strings("path", path, "property", name, NULL);
}

static void
set_at(struct json_object *object, size_t index, bool value)
{
    json_object_object_foreach(object, key, ignored)
    {
        (void)ignored;
        if (index-- == 0) {
            vf_json_add_bool(object, key, value);
            return;
        }
    }
}

/* The step ends with the last answer, whatever the others were: none of them may come later. */
static void
on_hotplugged(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct json_object *devices = flow->facts.hotplugged;

    /* Refused: a device that does not tell, which counts as one that was always there. */
    if (reply->outcome == VF_OK)
        set_at(devices, flow->at_part,
               json_object_is_type(reply->value, json_type_boolean) &&
                   json_object_get_boolean(reply->value));
    if (reply->outcome == VF_UNKNOWN)
        flow->answers = VF_UNKNOWN;
    flow->at_part++;
    if (flow->at_part < (size_t)json_object_object_length(devices))
        return;
    if (flow->answers == VF_OK) {
        find_agent(flow);
        return;
    }
    vf_note(flow, VMFROST_UNREACHABLE, "asking whether disks are hotplugged: %s", reply->words);
    vf_end(flow, flow->answers);
}

static void
ask_hotplugged(struct vf_flow *flow)
{
    struct json_object *devices = vf_json_new_object();

    for (size_t i = 0; i < vf_json_length(flow->facts.block); i++) {
        const char *qdev = vf_json_string(vf_json_at(flow->facts.block, i), "qdev");

        if (qdev && *qdev)
            vf_json_add_bool(devices, qdev, false);
    }
    json_object_put(flow->facts.hotplugged);
    flow->facts.hotplugged = devices;
    if (json_object_object_length(devices) == 0) {
        find_agent(flow);
        return;
    }
    flow->at_part = 0;
    flow->answers = VF_OK;
    json_object_object_foreach(devices, qdev, ignored)
    {
        VF_AUTO_FREE char *path = vf_disk_device_path(qdev);

        (void)ignored;
        vf_ask(flow, "qom-get", property(path, "hotplugged"), on_hotplugged);
    }
}

void
vf_look_at_graph(struct vf_flow *flow, void (*fn)(struct vf_flow *flow))
{
    flow->on_looked = fn;
    flow->look_end = QUESTION_COUNT;
    ask_from(flow, QUESTION_COUNT - 1);
}

/* The agent's channel: every virtserialport is asked for its name, the right one for its chardev.
 */

static void ask_ports(struct vf_flow *flow);

static void
end_without_agent(struct vf_flow *flow, const char *message)
{
    flow->agent.message = vf_strdup(message);
    vf_end(flow, VF_OK);
}

/* "unix:/run/qga.sock,server=on <-> ...", "disconnected:unix:/run/qga.sock,server=on" */
static char *
socket_of(const struct vf_flow *flow, const char *filename)
{
    static const char disconnected[] = "disconnected:", local[] = "unix:";

    if (vf_starts_with(filename, disconnected))
        filename += sizeof disconnected - 1;
    if (!vf_starts_with(filename, local))
        return NULL;
    filename += sizeof local - 1;
    size_t length = strcspn(filename, ",");

    if (length == 0)
        return NULL;
    if (filename[0] == '/' || flow->qemu.pid == 0)
        return vf_printf("%.*s", (int)length, filename);
    return vf_printf("/proc/%d/cwd/%.*s", (int)flow->qemu.pid, (int)length, filename);
}

static void
on_chardev(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "cannot ask for the channel of the agent's port"))
        return;
    const char *label = vf_json_text(reply->value);

    for (size_t i = 0; i < vf_json_length(flow->facts.chardev); i++) {
        struct json_object *device = vf_json_at(flow->facts.chardev, i);
        const char *its_label = vf_json_string(device, "label");
        const char *filename = vf_json_string(device, "filename");

        if (!label || !its_label || strcmp(label, its_label) != 0 || !filename)
            continue;
        flow->agent.port_known = true;
        flow->agent.port_open = vf_json_bool(device, "frontend-open", false);
        flow->agent.taken = !vf_starts_with(filename, "disconnected:");
        if (!flow->agent.socket)
            flow->agent.socket = socket_of(flow, filename);
        if (!flow->agent.socket)
            flow->agent.message = vf_printf("the agent's channel is no UNIX socket (%s)", filename);
        vf_end(flow, VF_OK);
        return;
    }
    end_without_agent(flow, "the agent's port has no channel");
}

static void
on_port_name(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "cannot ask for the name of a virtio-serial port"))
        return;
    const char *name = vf_json_text(reply->value);
    const char *path = vf_json_text(vf_json_at(flow->ports, flow->at_part - 1));

    if (!name || strcmp(name, AGENT_PORT) != 0) {
        ask_ports(flow);
        return;
    }
    if (!vf_starts_with(path, "/machine/peripheral-anon/"))
        flow->agent.port_id = vf_strdup(strrchr(path, '/') + 1);
    vf_ask(flow, "qom-get", property(path, "chardev"), on_chardev);
}

static void
ask_ports(struct vf_flow *flow)
{
    if (flow->at_part == vf_json_length(flow->ports)) {
        if (flow->agent.socket)
            vf_end(flow, VF_OK);
        else
            end_without_agent(flow, "QEMU has no virtio-serial port named " AGENT_PORT);
        return;
    }
    const char *path = vf_json_text(vf_json_at(flow->ports, flow->at_part++));

    vf_ask(flow, "qom-get", property(path, "name"), on_port_name);
}

static const char *const homes[] = {"/machine/peripheral", "/machine/peripheral-anon"};
#define HOME_COUNT (sizeof homes / sizeof *homes)

static void
on_devices(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!vf_expect(flow, reply, "cannot list the devices below %s", homes[flow->at_part]))
        return;
    struct json_object *list =
        json_object_is_type(reply->value, json_type_array) ? reply->value : NULL;

    for (size_t i = 0; i < vf_json_length(list); i++) {
        const char *type = vf_json_string(vf_json_at(list, i), "type");
        const char *name = vf_json_string(vf_json_at(list, i), "name");
        VF_AUTO_FREE char *path = NULL;

        if (!type || !name || strcmp(type, "child<virtserialport>") != 0)
            continue;
        path = vf_printf("%s/%s", homes[flow->at_part], name);
        vf_json_append(flow->ports, vf_json_new_string(path));
    }
    if (++flow->at_part < HOME_COUNT)
        return;
    flow->at_part = 0;
    ask_ports(flow);
}

static void
find_agent(struct vf_flow *flow)
{
    if (flow->vm.agent && !flow->agent.socket)
        flow->agent.socket = vf_strdup(flow->vm.agent);
    json_object_put(flow->ports);
    flow->ports = vf_json_new_array();
    flow->at_part = 0;
    for (size_t i = 0; i < HOME_COUNT; i++)
        vf_ask(flow, "qom-list", vf_json_strings("path", homes[i], NULL), on_devices);
}

/* Fills flow->facts and the place of flow->agent. */
void
vf_step_look(struct vf_flow *flow)
{
    if (flow->engine.conditions & VF_IF_STOPPED) {
        vf_look_offline(flow);
        return;
    }
    flow->on_looked = ask_hotplugged;
    flow->look_end = QUESTION_COUNT;
    vf_ask_for(flow, "query-commands", commands_needed, COMMANDS_NEEDED, on_commands);
    ask_from(flow, 0);
}
