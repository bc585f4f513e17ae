/* SPDX-License-Identifier: MIT
 *
 * Joining two images that build on each other.
 *
 * Down (block-commit): as long as the upper image has its name, the two together are what they
 * were, however much of the upper one is in the lower one already. When QEMU says that all of it
 * is, the upper one's name is turned to the lower one. Headers of images above name a name, and so
 * stay as they are.
 *
 * Up (block-stream): as long as the upper image's header names the lower one, nothing has changed
 * for whoever opens it. At the end the header names what is below that. QEMU writes the header
 * at once, but may keep its tables in memory: so everything that was copied is made durable
 * before. In a running VM the job waits for that before its end; a storage daemon cannot be told to
 * flush, so there the job is cancelled instead, the image closed and opened again, and a second job
 * finds nothing left to copy. A QEMU before 6.1 can be told, but may abort if a disk on an iothread
 * has something to do meanwhile: so its VM is stopped for that moment.
 *
 * Both open an image for writing BY NAME, and read-only again by name when they end, at whatever
 * moment they fail. So neither is ever done where a name under which QEMU knows such an image leads
 * to another one by now (web.qcow2, if the launcher opened it): choose.c takes the other direction.
 */
#include "flows/graft.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/graph.h"
#include "vm/qcow2.h"

static struct vf_graft *
current(struct vf_flow *flow)
{
    return &flow->grafts[flow->graft_at];
}

static const struct vf_cut *
disk_of(struct vf_flow *flow)
{
    return &flow->cuts[current(flow)->cut];
}

static const char *
disk_name(struct vf_flow *flow)
{
    return disk_of(flow)->name;
}

static bool
is_beside(struct vf_flow *flow)
{
    return !current(flow)->root;
}

/* The VM's own QEMU does it, and not a storage daemon. */
static bool
is_online(struct vf_flow *flow)
{
    return !is_beside(flow) && !(flow->engine.conditions & VF_IF_STOPPED);
}

static bool
journal_graft(struct vf_flow *flow, const char *state)
{
    const struct vf_graft *graft = current(flow);
    struct json_object *more =
        vf_json_strings("disk", disk_name(flow), "way", graft->way == VF_GRAFT_DOWN ? "down" : "up",
                        "upper", graft->upper, "lower", graft->lower, "owner", graft->owner, "over",
                        graft->over, "overOwner", graft->over_owner, "leftover", graft->leftover,
                        "leftoverFile", graft->leftover_file, NULL);

    return vf_journal_state(flow, state, more);
}

/* The nodes, in the graph that was asked last. */

/* `depth` images below `root`; borrowed; NULL: the chain ends before. */
static const char *
node_below(const struct vf_flow *flow, const char *root, size_t depth)
{
    while (root && depth-- > 0)
        root = vf_graph_child(flow->facts.graph, root, "backing");
    return root;
}

static const char *
root_node(struct vf_flow *flow)
{
    return is_beside(flow) ? VF_SIDE_NODE : current(flow)->root;
}

static const char *
upper_node(struct vf_flow *flow)
{
    return node_below(flow, root_node(flow), current(flow)->depth);
}

static const char *
lower_node(struct vf_flow *flow)
{
    return node_below(flow, root_node(flow), current(flow)->depth + 1);
}

static const char *
below_node(struct vf_flow *flow)
{
    return node_below(flow, root_node(flow), current(flow)->depth + 2);
}

/* What the job writes to. */
static const char *
written_node(struct vf_flow *flow)
{
    return current(flow)->way == VF_GRAFT_UP ? upper_node(flow) : lower_node(flow);
}

/* QEMU's chain has the images that the headers have: as many, and it has these two open. */
static bool
chain_is_right(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    struct vf_opened upper, lower = {.read_only = true};
    size_t length = 0;

    for (const char *node = root_node(flow); node; node = node_below(flow, node, 1))
        length++;
    if (length == graft->length && upper_node(flow) && lower_node(flow) &&
        vf_process_opened(flow->qemu.pid, graft->upper_inode, &upper) &&
        (upper.read_only || upper.read_write) &&
        (!graft->lower_inode.number ||
         (vf_process_opened(flow->qemu.pid, graft->lower_inode, &lower) &&
          (lower.read_only || lower.read_write))))
        return true;
    vf_note(flow, VMFROST_FAILED,
            "disk %s: QEMU's chain of images is not the one that their headers tell of",
            disk_name(flow));
    vf_advise(flow, "see `vmfrost verify %s`", flow->vm.name);
    return false;
}

static void graft_next(struct vf_flow *flow);
static void start_job(struct vf_flow *flow);

static bool
went_well(struct vf_flow *flow, const struct vf_reply *reply, const char *what)
{
    if (reply->outcome == VF_OK)
        return true;
    vf_note(flow, reply->outcome == VF_REFUSED ? VMFROST_FAILED : VMFROST_UNREACHABLE,
            "disk %s: %s: %s", disk_name(flow), what, reply->words);
    vf_end(flow, reply->outcome);
    return false;
}

/* The end. */

/* Where a name waits to be renamed over `path`. */
static char *
next_name(const struct vf_flow *flow, const char *path)
{
    VF_AUTO_FREE char *folder = vf_folder_of(path);

    return vf_printf("%s/.%s.%s.next", folder, vf_name_of(path), flow->id);
}

/* Records of snapshots whose images were written to know these images again: the one that was
 * joined, or the one whose header QEMU wrote anew, with the same words. */
static bool
refresh(struct vf_flow *flow, const char *snapshot, const char *path)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    VF_AUTO_JSON struct json_object *record =
        snapshot && path ? vf_record_load(&flow->vm, snapshot, &ignored) : NULL;

    return !record || !vf_inode_of(path).number || vf_record_refresh(flow, snapshot, path);
}

static bool
refresh_owners(struct vf_flow *flow, const struct vf_graft *graft)
{
    return refresh(flow, graft->owner, graft->upper) &&
           refresh(flow, graft->over_owner, graft->over);
}

bool
vf_graft_failed(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->graft_count && i <= flow->graft_at; i++)
        if (!refresh_owners(flow, &flow->grafts[i]))
            return false;
    return true;
}

bool
vf_graft_sweep(struct vf_flow *flow)
{
    for (size_t i = 1; i < vf_json_length(flow->journal_lines); i++) {
        struct json_object *line = vf_json_at(flow->journal_lines, i);
        const char *upper = vf_json_string(line, "upper");
        VF_AUTO_FREE char *next = upper ? next_name(flow, upper) : NULL;
        struct vmfrost_error error = {.code = VMFROST_OK};

        if (next && !vf_unlink(next, vf_inode_of(next), &flow->log, &error))
            return vf_note_error(flow, &error);
        if (!refresh(flow, vf_json_string(line, "owner"), upper) ||
            !refresh(flow, vf_json_string(line, "overOwner"), vf_json_string(line, "over")) ||
            (upper && !vf_links_move(flow, vf_inode_of(upper), upper)))
            return false;
    }
    return true;
}

static bool
is_idle(const struct vf_flow *flow, const char *node)
{
    return node && vf_graph_has(flow->facts.graph, node) &&
           !vf_graph_in_use(flow->facts.graph, node);
}

const char *
vf_graft_leftover(const struct vf_flow *flow)
{
    static const char *const keys[] = {"leftover", "leftoverFile"};

    for (size_t i = 0; i < flow->graft_count && i <= flow->graft_at; i++) {
        const char *const nodes[] = {flow->grafts[i].leftover, flow->grafts[i].leftover_file};

        for (size_t k = 0; k < sizeof nodes / sizeof *nodes; k++)
            if (is_idle(flow, nodes[k]))
                return nodes[k];
    }
    for (size_t i = 1; i < vf_json_length(flow->journal_lines); i++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            const char *node = vf_json_string(vf_json_at(flow->journal_lines, i), keys[k]);

            if (is_idle(flow, node))
                return node;
        }
    return NULL;
}

static bool
turn_name(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    VF_AUTO_FREE char *next = next_name(flow, graft->upper);
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vf_inode_equal(vf_inode_of(graft->upper), graft->lower_inode))
        return true;
    /* Its locks are what keeps a VM from being started on the upper one. */
    if (!is_online(flow) && !vf_process_alive(flow->qemu))
        return vf_note(flow, VMFROST_UNREACHABLE, "disk %s: %s has ended", disk_name(flow),
                       VF_DAEMON_NAME);
    /* Names by which nobody but a QEMU of before knew the upper one: nobody would find them again
     * afterwards. */
    if (!vf_links_drop(flow, &graft->upper_inode, 1))
        return false;
    if ((!vf_inode_equal(vf_inode_of(next), graft->lower_inode) &&
         !vf_link(graft->lower, next, graft->lower_inode, &flow->log, &error)) ||
        !vf_flip(next, graft->lower_inode, graft->upper, graft->upper_inode, &flow->log, &error)) {
        vf_prefix(&error, "disk %s", disk_name(flow));
        return vf_note_error(flow, &error);
    }
    if (vf_sync_folder_of(graft->upper) < 0)
        return vf_note(flow, VMFROST_FAILED, "disk %s: cannot make the folder of %s durable: %s",
                       disk_name(flow), graft->upper, strerror(errno));
    vf_test_point(flow, "graft.turned");
    return vf_links_move(flow, graft->lower_inode, graft->upper);
}

/* The proof: the header does not name the lower image any more. */
static bool
header_is_right(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_qcow2 image;

    if (!vf_qcow2_read(graft->upper, &image, &error))
        return vf_note_error(flow, &error);
    bool right =
        graft->below ? image.backing && strcmp(image.backing, graft->below) == 0 : !image.backing;

    vf_qcow2_release(&image);
    if (!right)
        vf_note(flow, VMFROST_FAILED, "disk %s: the header of %s is not what QEMU was told",
                disk_name(flow), graft->upper);
    return right;
}

static void
done(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);

    if (graft->way == VF_GRAFT_UP ? !header_is_right(flow) : !turn_name(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!refresh_owners(flow, graft) || !journal_graft(flow, "grafted")) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->graft_at++;
    graft_next(flow);
}

static void
on_closed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "closing the images"))
        done(flow);
}

static void drop_leftovers(struct vf_flow *flow);

static void
on_leftover_dropped(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "closing an image that is not used any more"))
        vf_look_again(flow, drop_leftovers);
}

/* The format's node first: it uses the file's. */
static void
drop_leftovers(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    const char *const nodes[] = {graft->leftover, graft->leftover_file};

    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        if (is_idle(flow, nodes[i])) {
            vf_ask(flow, "blockdev-del", vf_json_strings("node-name", nodes[i], NULL),
                   on_leftover_dropped);
            return;
        }
    done(flow);
}

static void
on_made_read_only(struct vf_flow *flow, const struct vf_reply *reply)
{
    const char *complaint = vf_json_text(reply->value);

    if (!went_well(flow, reply, "opening an image read-only"))
        return;
    if (complaint && *complaint)
        vf_warn(flow, "disk %s: QEMU keeps %s open for writing: %s", disk_name(flow),
                current(flow)->upper, complaint);
    drop_leftovers(flow);
}

/* QEMU 10 leaves a sealed image open for writing after a stream, neither flushed nor to be opened
 * by anybody else; and any QEMU after a commit, if the image was left writable by one that was
 * cancelled before. Joined, the two images are where the upper one was. An old QEMU is not asked:
 * that could end it. */
static bool
stays_writable(struct vf_flow *flow)
{
    return current(flow)->depth > 0 && !flow->before_6_1 &&
           !vf_json_bool(vf_node_about(flow, upper_node(flow)), "ro", true);
}

static void
on_chain_looked(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    size_t length = 0;

    for (const char *node = root_node(flow); node; node = node_below(flow, node, 1))
        length++;
    if (length + 1 != graft->length) {
        vf_refuse(flow, VMFROST_FAILED,
                  "disk %s: QEMU's chain has %zu images after joining two of %zu", disk_name(flow),
                  length, graft->length);
        return;
    }
    if (stays_writable(flow))
        vf_ask_qemu_io(flow, upper_node(flow), "reopen -r", on_made_read_only);
    else
        drop_leftovers(flow);
}

/* Images that a daemon closes are all on disk; a running QEMU flushes what it opens read-only, and
 * what it was told to. */
static void
settle(struct vf_flow *flow)
{
    /* While the daemon holds the locks, so that nobody can start the VM on what goes away. */
    if (current(flow)->way == VF_GRAFT_DOWN && !turn_name(flow))
        vf_end(flow, VF_REFUSED);
    else if (is_beside(flow))
        vf_side_close(flow, done);
    else if (is_online(flow))
        vf_look_again(flow, on_chain_looked);
    else
        vf_ask(flow, "blockdev-del", vf_json_strings("node-name", current(flow)->root, NULL),
               on_closed);
}

static void
on_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "job-dismiss"))
        return;
    vf_test_point(flow, "graft.joined");
    settle(flow);
}

static void
on_failed_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    (void)reply;
    vf_end(flow, VF_REFUSED);
}

static void
on_concluded(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "waiting for the end of the joining"))
        return;
    const char *error = vf_json_string(reply->value, "error");

    if (!reply->value || error) {
        vf_note(flow, VMFROST_FAILED, "disk %s: joining %s and %s failed: %s", disk_name(flow),
                current(flow)->lower, current(flow)->upper, error ? error : "the job is gone");
        vf_ask(flow, "job-dismiss", vf_json_strings("id", flow->job, NULL), on_failed_dismissed);
        return;
    }
    vf_ask(flow, "job-dismiss", vf_json_strings("id", flow->job, NULL), on_dismissed);
}

static void
on_finishing(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "ending the job"))
        vf_job_wait(flow, VF_JOB_CONCLUDED, on_concluded);
}

/* A second job after the first was cancelled: the image was closed in between. */

static void
on_reopened(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "opening the images again"))
        vf_look_again(flow, start_job);
}

static void
reopen(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    const char *file = is_beside(flow) ? graft->upper : graft->root_file;

    vf_ask(flow, "blockdev-add", vf_image_options(file, "qcow2", root_node(flow)), on_reopened);
}

static void
on_closed_between(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "closing the images"))
        reopen(flow);
}

static void
on_cancelled_dismissed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "job-dismiss"))
        return;
    flow->graft_durable = true;
    vf_ask(flow, "blockdev-del", vf_json_strings("node-name", root_node(flow), NULL),
           on_closed_between);
}

static void
on_cancelled(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "waiting for the end of a cancelled job"))
        vf_ask(flow, "job-dismiss", vf_json_strings("id", flow->job, NULL), on_cancelled_dismissed);
}

static void
on_cancelling(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "job-cancel"))
        vf_job_wait(flow, VF_JOB_CONCLUDED | VF_JOB_GONE, on_cancelled);
}

/* All is copied. */

static void
finalize(struct vf_flow *flow)
{
    vf_test_point(flow, "graft.durable");
    vf_ask(flow, "job-finalize", vf_json_strings("id", flow->job, NULL), on_finishing);
}

static void
on_gone_on(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "cont"))
        return;
    flow->stopped = false;
    if (vf_journal_state(flow, "graft-gone-on", NULL))
        finalize(flow);
    else
        vf_end(flow, VF_REFUSED);
}

static void
on_flushed(struct vf_flow *flow, const struct vf_reply *reply)
{
    const char *complaint = vf_json_text(reply->value);

    if (!went_well(flow, reply, "flushing"))
        return;
    if (complaint && *complaint) {
        vf_note(flow, VMFROST_FAILED, "disk %s: flushing %s: %s", disk_name(flow),
                current(flow)->upper, complaint);
        vf_ask(flow, "job-cancel", vf_json_strings("id", flow->job, NULL), on_failed_dismissed);
        return;
    }
    if (flow->stopped)
        vf_ask(flow, "cont", NULL, on_gone_on);
    else
        finalize(flow);
}

static void
flush(struct vf_flow *flow)
{
    const char *node = written_node(flow);

    vf_ask_qemu_io(flow, node ? node : "", "flush", on_flushed);
}

/* A QEMU before 6.1 flushes while nothing else is done. */

static void
on_halted(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "stop"))
        flush(flow);
}

static void
on_run_state(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "query-status"))
        return;
    if (!vf_json_bool(reply->value, "running", false)) {
        flush(flow);
        return;
    }
    if (!vf_journal_state(flow, "graft-halted", NULL)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->stopped = true; /* the way back lets it go on */
    vf_ask(flow, "stop", NULL, on_halted);
}

static void
make_durable(struct vf_flow *flow, bool synced)
{
    (void)synced;
    if (is_online(flow) && flow->before_6_1)
        vf_ask(flow, "query-status", NULL, on_run_state);
    else if (is_online(flow))
        flush(flow);
    else if (current(flow)->way == VF_GRAFT_UP && !flow->graft_durable)
        vf_ask(flow, "job-cancel", vf_json_strings("id", flow->job, NULL), on_cancelling);
    else
        finalize(flow);
}

/* The host's part first, so that QEMU, whose main loop waits for its own flush, has little left. */
static void
sync_host(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    const char *const path = graft->way == VF_GRAFT_UP ? graft->upper : graft->lower;

    vf_sync_files(flow, &path, 1, make_durable);
}

static void on_pending(struct vf_flow *flow, const struct vf_reply *reply);

static void
on_completing(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "job-complete"))
        vf_job_wait(flow, VF_JOB_PENDING, on_pending);
}

static void
on_pending(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "waiting for the images to be joined"))
        return;
    unsigned state = vf_job_state_bit(vf_json_string(reply->value, "status"));

    if (state == VF_JOB_READY) {
        vf_job_complete(flow, on_completing);
        return;
    }
    if (state != VF_JOB_PENDING) {
        on_concluded(flow, reply);
        return;
    }
    vf_test_point(flow, "graft.pending");
    sync_host(flow);
}

/* The beginning. */

static void
wait_for_job(struct vf_flow *flow)
{
    /* With auto-finalize off an active commit is "ready" first, and all others are "pending". */
    if (journal_graft(flow, "merge-running"))
        vf_job_wait(flow, VF_JOB_READY | VF_JOB_PENDING, on_pending);
    else
        vf_end(flow, VF_REFUSED);
}

/* The proof that QEMU opened the right image. */
static bool
opened_for_writing(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    bool up = graft->way == VF_GRAFT_UP;
    struct vf_opened opened;

    return vf_process_opened(flow->qemu.pid, up ? graft->upper_inode : graft->lower_inode,
                             &opened) &&
           opened.read_write;
}

/* A job that has failed already has given it back. */
static void
on_not_opened(struct vf_flow *flow, const struct vf_reply *reply)
{
    const struct vf_graft *graft = current(flow);

    if (!went_well(flow, reply, "looking at the job"))
        return;
    if (vf_json_string(reply->value, "error")) {
        on_concluded(flow, reply);
        return;
    }
    vf_note(flow, VMFROST_FAILED, "disk %s: QEMU has not opened %s for writing", disk_name(flow),
            graft->way == VF_GRAFT_UP ? graft->upper : graft->lower);
    vf_ask(flow, "job-cancel", vf_json_strings("id", flow->job, NULL), on_failed_dismissed);
}

static void
on_started(struct vf_flow *flow, const struct vf_reply *reply)
{
    vf_test_point(flow, "graft.started");
    if (!went_well(flow, reply, "QEMU cannot join the images"))
        return;
    if (opened_for_writing(flow))
        wait_for_job(flow);
    else
        vf_job_look(flow, on_not_opened);
}

static void
start_job(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    VF_AUTO_FREE char *id = vf_printf(VF_JOB_OURS "%.8s-g%zu", flow->id, flow->graft_at);
    bool down = graft->way == VF_GRAFT_DOWN;
    /* A commit is asked of the whole disk, a filter above it included. */
    const char *device = !down                         ? upper_node(flow)
                         : graft->root && graft->depth ? graft->root_device
                                                       : root_node(flow);
    struct json_object *arguments =
        vf_json_strings("job-id", id, "device", device, "on-error", "report", NULL);

    if (down) {
        vf_json_add_string(arguments, "top-node", upper_node(flow));
        vf_json_add_string(arguments, "base-node", lower_node(flow));
        if (graft->depth > 0)
            vf_json_add_string(arguments, "backing-file", graft->over_backing);
    } else if (below_node(flow)) {
        vf_json_add_string(arguments, "base-node", below_node(flow));
        vf_json_add_string(arguments, "backing-file", graft->below);
    }
    vf_json_add_bool(arguments, "auto-finalize", false);
    vf_job_ask(flow, id, down ? "block-commit" : "block-stream", arguments, on_started);
}

static char *
named(const char *node)
{
    return node && node[0] != '#' ? vf_strdup(node) : NULL;
}

static void
note_leftovers(struct vf_flow *flow)
{
    struct vf_graft *graft = current(flow);
    const char *node = graft->way == VF_GRAFT_UP ? lower_node(flow) : upper_node(flow);

    free(graft->leftover);
    free(graft->leftover_file);
    graft->leftover = named(node);
    graft->leftover_file = named(vf_graph_child(flow->facts.graph, node, "file"));
}

static void
on_looked(struct vf_flow *flow)
{
    const struct vf_graft *graft = current(flow);
    bool up = graft->way == VF_GRAFT_UP;

    if (!chain_is_right(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    note_leftovers(flow);
    struct vf_inode inode = up ? graft->upper_inode : graft->lower_inode;

    if (vf_node_leads_to(flow, written_node(flow), inode)) {
        start_job(flow);
        return;
    }
    /* choose.c has seen to that; the names were another's to change since. */
    vf_refuse(flow, VMFROST_FAILED,
              "disk %s: the name by which QEMU knows %s leads to another image", disk_name(flow),
              up ? graft->upper : graft->lower);
}

static void
look(struct vf_flow *flow)
{
    vf_look_again(flow, on_looked);
}

static void
share(struct vf_flow *flow)
{
    double before = 0, all = 0;

    for (size_t i = 0; i < flow->graft_count; i++) {
        if (i < flow->graft_at)
            before += (double)flow->grafts[i].bytes;
        all += (double)flow->grafts[i].bytes;
    }
    if (all > 0)
        vf_job_share(flow, 100 * before / all, 100 * (before + (double)current(flow)->bytes) / all);
}

static void
graft_next(struct vf_flow *flow)
{
    flow->graft_durable = false;
    if (flow->graft_at == flow->graft_count) {
        vf_end(flow, VF_OK);
        return;
    }
    share(flow);
    if (!journal_graft(flow, "graft")) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (current(flow)->joined)
        settle(flow);
    else if (is_beside(flow))
        vf_side_open(flow, current(flow), look);
    else
        look(flow);
}

void
vf_step_graft(struct vf_flow *flow)
{
    graft_next(flow);
}
