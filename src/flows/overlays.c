/* SPDX-License-Identifier: MIT
 *
 * Everything of a cut that can be done before the freeze: overlays are created, checked, given
 * their names and made durable; then the real transaction is rehearsed.
 *
 * QEMU creates the overlays, so that they belong to its own user and no other program is needed.
 * The storage daemon of a stopped VM is no such user: it may be root's, in a folder that somebody
 * else can plant links in. So it is handed files that are there already, by descriptor. Nothing
 * here touches what the guest sees.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flows/steps.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/graph.h"
#include "vm/qcow2.h"

/* The words by which QEMU says that all of a transaction would have worked. */
#define REHEARSED "Transaction aborted using Abort action"

char *
vf_overlay_file_node(const struct vf_cut *cut)
{
    return vf_printf("%sf", cut->overlay_node);
}

/* The node of a base's file; the base's own if it has none. */
static struct json_object *
find_file_node(const struct vf_flow *flow, const struct vf_cut *cut)
{
    const char *file = vf_graph_child(flow->facts.graph, cut->node, "file");

    return vf_node_about(flow, file ? file : cut->node);
}

static struct json_object *
cache_of(struct json_object *node)
{
    struct json_object *modes = vf_json_object(node, "cache");
    struct json_object *cache = vf_json_new_object();

    vf_json_add_bool(cache, "direct", vf_json_bool(modes, "direct", false));
    vf_json_add_bool(cache, "no-flush", vf_json_bool(modes, "no-flush", false));
    return cache;
}

/* Opened by hand, the overlay inherits nothing: each of its two nodes gets the modes of the base's.
 * Whether the base discards cannot be asked for. */
struct json_object *
vf_overlay_options(const struct vf_flow *flow, const struct vf_cut *cut)
{
    struct json_object *base = vf_node_about(flow, cut->node);
    const char *zeroes = vf_json_string(base, "detect_zeroes");
    struct json_object *node = vf_json_strings("driver", "qcow2", "node-name", cut->overlay_node,
                                               "detect-zeroes", zeroes ? zeroes : "off", NULL);
    struct json_object *file =
        vf_json_strings("driver", "file", "filename", cut->names.overlay, NULL);

    vf_json_add(node, "cache", cache_of(base));
    vf_json_add(file, "cache", cache_of(find_file_node(flow, cut)));
    vf_json_add_string(node, "discard", "unmap");
    vf_json_add_string(file, "discard", "unmap");
    /* What a cut puts the overlay on is open already. What a restore builds on, the header tells.
     */
    if (!cut->below)
        vf_json_add(node, "backing", NULL);
    vf_json_add(node, "file", file);
    return node;
}

static bool
header_is_right(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_qcow2 image;

    if (!vf_qcow2_read(cut->names.overlay, &image, &error))
        return vf_note_error(flow, &error);
    bool right = image.size == vf_cut_overlay_size(cut) && image.backing && image.backing_format &&
                 strcmp(image.backing, cut->names.backing) == 0 &&
                 strcmp(image.backing_format, vf_cut_backing_format(cut)) == 0 && !image.has_data;

    vf_qcow2_release(&image);
    if (!right)
        vf_note(flow, VMFROST_FAILED, "disk %s: QEMU did not make the overlay %s as it was told to",
                cut->name, cut->names.overlay);
    return right;
}

static void
warn_of_owner(struct vf_flow *flow, const struct vf_cut *cut, const char *model)
{
    struct stat made, about;

    if (stat(cut->names.overlay, &made) == 0 && stat(model, &about) == 0)
        vf_warn(flow,
                "disk %s: its new image %s belongs to user %u and group %u, and not to user %u and "
                "group %u as the one before: whoever starts the VM has to be able to open it",
                cut->name, cut->names.top ? cut->names.top : cut->names.overlay,
                (unsigned)made.st_uid, (unsigned)made.st_gid, (unsigned)about.st_uid,
                (unsigned)about.st_gid);
}

/* What we have made is given to the VM's user. */
static bool
own_it(struct vf_flow *flow, const struct vf_cut *cut)
{
    const char *model = cut->names.top ? cut->names.top : cut->names.sealed;
    bool same;

    if (!(flow->engine.conditions & VF_IF_STOPPED))
        return true;
    if (!vf_like(flow->overlay_fds[cut - flow->cuts], model, &same))
        return vf_note(flow, VMFROST_FAILED, "disk %s: cannot give %s the owner of its base: %s",
                       cut->name, cut->names.overlay, strerror(errno));
    if (!same)
        warn_of_owner(flow, cut, model);
    return true;
}

static bool
make_durable(struct vf_flow *flow, const struct vf_cut *cut)
{
    VF_AUTO_FD int fd = open(cut->names.overlay, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    if (fd < 0 || fsync(fd) < 0)
        return vf_note(flow, VMFROST_FAILED, "disk %s: cannot make the overlay %s durable: %s",
                       cut->name, cut->names.overlay, strerror(errno));
    return true;
}

static bool
name_it(struct vf_flow *flow, struct vf_cut *cut)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (cut->naming == VF_NAMING_NEW_FILE)
        return true;
    if (vf_link(cut->names.overlay, cut->names.next, cut->overlay, &flow->log, &error)) {
        if (vf_inode_equal(vf_inode_of(cut->names.sealed), cut->base)) /* see plan.c */
            return vf_links_forget(flow, cut->names.sealed);
        if (vf_link(cut->names.top, cut->names.sealed, cut->base, &flow->log, &error))
            return true;
    }
    vf_prefix(&error, "disk %s", cut->name);
    return vf_note_error(flow, &error);
}

/* Each part is done for all disks at once: QEMU is asked as seldom as possible. */

static bool
went_well(struct vf_flow *flow, const struct vf_reply *reply, const char *what)
{
    const char *name = flow->batch.failed;
    const char *overlay = "";

    for (size_t i = 0; reply->outcome != VF_OK && i < flow->cut_count; i++)
        if (strcmp(flow->cuts[i].name, name) == 0)
            overlay = flow->cuts[i].names.overlay;
    return vf_expect(flow, reply, "disk %s: %s %s", name, what, overlay);
}

static void
finish(struct vf_flow *flow)
{
    if (vf_journal_state(flow, "prepared", vf_cuts_json(flow)))
        vf_end(flow, VF_OK);
    else
        vf_end(flow, VF_REFUSED);
}

static void
on_preopened(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (went_well(flow, reply, "cannot open its overlay"))
        finish(flow);
}

static bool
is_still_ours(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct stat about;

    return !(flow->engine.conditions & VF_IF_STOPPED) ||
           (fstat(flow->overlay_fds[cut - flow->cuts], &about) == 0 &&
            vf_inode_equal((struct vf_inode){about.st_dev, about.st_ino}, cut->overlay)) ||
           vf_note(flow, VMFROST_FAILED, "disk %s: somebody has replaced its new overlay %s",
                   cut->name, cut->names.overlay);
}

static bool
name_all(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        struct vf_cut *cut = &flow->cuts[i];

        cut->overlay = vf_cut_overlay_inode(cut);
        if (!is_still_ours(flow, cut) || !own_it(flow, cut) || !header_is_right(flow, cut) ||
            !name_it(flow, cut))
            return false;
        if (i == 0)
            vf_test_point(flow, "overlays.named");
    }
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!make_durable(flow, &flow->cuts[i]))
            return false;
    const struct vf_cut *failed = vf_sync_folders(flow);

    return !failed ||
           vf_note(flow, VMFROST_FAILED, "disk %s: cannot make the folder of %s durable: %s",
                   failed->name, failed->names.overlay, strerror(errno));
}

static void
on_files_closed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "cannot close its new overlay"))
        return;
    if (!name_all(flow)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_overlays_close(flow);
    if (!flow->preopened) {
        finish(flow);
        return;
    }
    for (size_t i = 0; i < flow->cut_count; i++)
        vf_batch_ask(flow, flow->cuts[i].name, "blockdev-add",
                     vf_overlay_options(flow, &flow->cuts[i]));
    vf_batch_end(flow, on_preopened);
}

static void
on_images_created(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply, "cannot write its overlay"))
        return;
    for (size_t i = 0; i < flow->cut_count; i++) {
        VF_AUTO_FREE char *node = vf_overlay_file_node(&flow->cuts[i]);

        vf_batch_ask(flow, flow->cuts[i].name, "blockdev-del",
                     vf_json_strings("node-name", node, NULL));
    }
    vf_batch_end(flow, on_files_closed);
}

static void
create_image(struct vf_flow *flow, const struct vf_cut *cut)
{
    VF_AUTO_FREE char *node = vf_overlay_file_node(cut);
    VF_AUTO_FREE char *made = flow->overlay_fds ? vf_printf("/proc/%d/fd/%d", (int)getpid(),
                                                            flow->overlay_fds[cut - flow->cuts])
                                                : NULL;
    struct json_object *options =
        vf_json_strings("driver", "qcow2", "file", node, "backing-file", cut->names.backing,
                        "backing-fmt", vf_cut_backing_format(cut), NULL);
    struct json_object *arguments = vf_json_new_object();

    vf_json_add_int(options, "size", vf_cut_overlay_size(cut));
    vf_class_overlay_options(flow, cut, options);
    vf_json_add(arguments, "options", options);
    vf_batch_ask(flow, cut->name, "blockdev-add",
                 vf_json_strings("driver", "file", "node-name", node, "filename",
                                 made ? made : cut->names.overlay, NULL));
    vf_jobs_start(flow, cut->name, "blockdev-create", arguments);
}

static void
create_images(struct vf_flow *flow)
{
    vf_test_point(flow, "overlays.created");
    for (size_t i = 0; i < flow->cut_count; i++)
        create_image(flow, &flow->cuts[i]);
    vf_jobs_finish(flow, on_images_created);
}

static void
on_files_created(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (!went_well(flow, reply,
                   reply->outcome == VF_REFUSED ? "QEMU cannot create the overlay"
                                                : "creating the overlay"))
        return;
    create_images(flow);
}

/* A file that is there belongs to somebody else, whoever it is. */
static void
make_files(struct vf_flow *flow)
{
    vf_overlays_close(flow);
    flow->overlay_fds = vf_alloc((flow->cut_count + 1) * sizeof *flow->overlay_fds);
    for (; flow->overlay_fd_count < flow->cut_count; flow->overlay_fd_count++) {
        const struct vf_cut *cut = &flow->cuts[flow->overlay_fd_count];
        int fd = vf_create(cut->names.overlay);

        if (fd < 0) {
            vf_refuse(flow, VMFROST_FAILED, "disk %s: cannot create the overlay %s: %s", cut->name,
                      cut->names.overlay, strerror(errno));
            return;
        }
        flow->overlay_fds[flow->overlay_fd_count] = fd;
    }
    create_images(flow);
}

void
vf_overlays_close(struct vf_flow *flow)
{
    while (flow->overlay_fd_count > 0)
        close(flow->overlay_fds[--flow->overlay_fd_count]);
    free(VF_STEAL(flow->overlay_fds));
}

static void
create_files(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        struct json_object *options =
            vf_json_strings("driver", "file", "filename", cut->names.overlay, NULL);
        struct json_object *arguments = vf_json_new_object();

        vf_json_add_int(options, "size", 0);
        vf_json_add(arguments, "options", options);
        vf_jobs_start(flow, cut->name, "blockdev-create", arguments);
    }
    vf_jobs_finish(flow, on_files_created);
}

/* What blockdev-snapshot-sync would open otherwise than the base is: it knows only the cache modes
 * of the base's format, and -blockdev may give others to the file's node; and it forgets
 * detect-zeroes. Then the overlay is opened by hand. */
static bool
loses_modes(const struct vf_flow *flow, const struct vf_cut *cut)
{
    static const char *const modes[] = {"direct", "no-flush"};
    struct json_object *base = vf_node_about(flow, cut->node);
    struct json_object *file = find_file_node(flow, cut);
    const char *zeroes = vf_json_string(base, "detect_zeroes");

    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (vf_json_bool(vf_json_object(base, "cache"), modes[i], false) !=
            vf_json_bool(vf_json_object(file, "cache"), modes[i], false))
            return true;
    return zeroes && strcmp(zeroes, "off") != 0;
}

/* Creates all overlays with all their names. Those of a restore are opened, too, so that an image
 * of a snapshot that cannot be opened is found out while the guest still runs. Owes VF_OWE_FILES.
 */
void
vf_step_overlays(struct vf_flow *flow)
{
    flow->preopened = flow->options.method == VMFROST_METHOD_PREOPENED;
    for (size_t i = 0; i < flow->cut_count; i++)
        flow->preopened |= flow->cuts[i].below || loses_modes(flow, &flow->cuts[i]);
    if (flow->engine.conditions & VF_IF_STOPPED)
        make_files(flow);
    else
        create_files(flow);
}

/* The rehearsal. */

/* Of the cuts [first, end). */
static struct json_object *
transaction(const struct vf_flow *flow, size_t first, size_t end, bool rehearsal)
{
    struct json_object *actions = vf_json_new_array(), *arguments = vf_json_new_object();

    for (size_t i = first; i < end + rehearsal; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        struct json_object *action = vf_json_new_object();
        bool last = i == end;

        vf_json_add_string(action, "type",
                           last              ? "abort"
                           : flow->preopened ? "blockdev-snapshot"
                                             : "blockdev-snapshot-sync");
        if (last)
            vf_json_add(action, "data", vf_json_new_object());
        else if (flow->preopened)
            vf_json_add(action, "data",
                        vf_json_strings("node", cut->node, "overlay", cut->overlay_node, NULL));
        else
            vf_json_add(action, "data",
                        vf_json_strings("node-name", cut->node, "snapshot-node-name",
                                        cut->overlay_node, "snapshot-file", cut->names.overlay,
                                        "mode", "existing", NULL));
        vf_json_append(actions, action);
    }
    vf_json_add(arguments, "actions", actions);
    return arguments;
}

struct json_object *
vf_cut_transaction(const struct vf_flow *flow)
{
    return transaction(flow, 0, flow->cut_count, false);
}

/* The disk that QEMU's words are about, if they tell: they name a node or a file. */
static const struct vf_cut *
find_named(const struct vf_flow *flow, const char *words)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        const char *const names[] = {cut->node, cut->overlay_node, cut->names.overlay};

        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            VF_AUTO_FREE char *quoted = vf_printf("'%s'", names[k]);

            if (strstr(words, quoted))
                return cut;
        }
    }
    return flow->cut_count == 1 ? &flow->cuts[0] : NULL;
}

bool
vf_expect_cut(struct vf_flow *flow, const struct vf_reply *reply, const char *what)
{
    const struct vf_cut *cut = reply->outcome == VF_REFUSED ? find_named(flow, reply->words) : NULL;

    if (cut && cut->absent)
        what = "it was unplugged since the disks were chosen";
    return vf_expect(flow, reply, "%s%s%s%s", cut ? "disk " : "", cut ? cut->name : "",
                     cut ? ": " : "", what);
}

#define REFUSES "QEMU refuses this snapshot"

static bool
was_rehearsed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_REFUSED)
        return strcmp(reply->words, REHEARSED) == 0;
    if (reply->outcome == VF_UNKNOWN)
        vf_expect(flow, reply, "rehearsing the cut");
    else
        /* A transaction that ends in "abort" cannot succeed: whoever answers so is no QEMU. */
        vf_refuse(flow, VMFROST_FAILED, "QEMU accepted a transaction that it had to abort");
    return false;
}

static void ask_next_disk(struct vf_flow *flow);

static void
on_one_rehearsed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (was_rehearsed(flow, reply)) {
        flow->at++;
        ask_next_disk(flow);
    } else if (reply->outcome == VF_REFUSED) {
        vf_expect(flow, reply, "disk %s: " REFUSES, flow->cuts[flow->at].name);
    }
}

/* QEMU's words told of no disk: each one is tried alone, until one is refused. */
static void
ask_next_disk(struct vf_flow *flow)
{
    if (flow->at < flow->cut_count)
        vf_ask(flow, "transaction", transaction(flow, flow->at, flow->at + 1, true),
               on_one_rehearsed);
    else
        vf_refuse(flow, VMFROST_FAILED, REFUSES ", but none of its disks alone");
}

static void
on_rehearsed(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (was_rehearsed(flow, reply)) {
        vf_end(flow, VF_OK);
    } else if (reply->outcome == VF_REFUSED && find_named(flow, reply->words)) {
        vf_expect_cut(flow, reply, REFUSES);
    } else if (reply->outcome == VF_REFUSED) {
        flow->at = 0;
        ask_next_disk(flow);
    }
}

static void
rehearse(struct vf_flow *flow)
{
    vf_ask(flow, "transaction", transaction(flow, 0, flow->cut_count, true), on_rehearsed);
}

/* While QEMU aborts a transaction, an iothread may go on in the middle: what the guest writes then
 * goes to an overlay that is about to be taken away, and into the snapshot's successor. */
static void
on_iothreads(struct vf_flow *flow, const struct vf_reply *reply)
{
    if (reply->outcome == VF_UNKNOWN)
        vf_expect(flow, reply, "query-iothreads");
    else if (reply->outcome == VF_OK && vf_json_length(reply->value) == 0)
        rehearse(flow);
    else
        vf_end(flow, VF_OK);
}

static void
rehearse_if_harmless(struct vf_flow *flow)
{
    if (!flow->plan.run_state || strcmp(flow->plan.run_state, "running") == 0)
        vf_ask(flow, "query-iothreads", NULL, on_iothreads);
    else
        rehearse(flow);
}

static void
on_migration(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct vf_plan_input input = {.migrate = reply->value};
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!vf_expect(flow, reply, "query-migrate"))
        return;
    if (!vf_plan_check_state(&input, &flow->plan, &error)) {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
        return;
    }
    vf_plug_look(flow, rehearse_if_harmless);
}

static void
on_run_state(struct vf_flow *flow, const struct vf_reply *reply)
{
    const char *state = vf_json_string(reply->value, "status");

    if (!vf_expect(flow, reply, "query-status"))
        return;
    if (state) {
        free(flow->plan.run_state);
        flow->plan.run_state = vf_strdup(state);
    }
    vf_ask(flow, "query-migrate", NULL, on_migration);
}

/* All of the cut but its effect: drains, flushes, opens, checks permissions and locks; not of a VM
 * that runs with iothreads, where the cut itself is the first to tell. That a disk
 * has left its device is none of QEMU's concern, so that is looked for before; nor is that another
 * QEMU has the VM by now, which takes a cut, but lets nobody undo it. */
void
vf_step_rehearse(struct vf_flow *flow)
{
    if (flow->engine.conditions & VF_IF_STOPPED)
        vf_plug_look(flow, rehearse);
    else
        vf_ask(flow, "query-status", NULL, on_run_state);
}
