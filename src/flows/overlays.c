/* SPDX-License-Identifier: MIT
 *
 * The overlays of a cut: created, given the owner of their base, their names, and made durable
 * before the freeze. Nothing here touches what the guest sees.
 *
 * They are written here, without QEMU: in 7.2 a "stop" or "cont" of somebody else's that comes
 * while it formats an image is its end (docs/protocol.md), and a file made by its folder's
 * descriptor is nobody's link. QEMU has to do it where it alone can tell what the file has to be,
 * or be called: in another mount namespace, for another user, above a device; and where clusters
 * are to be preallocated. The storage daemon of a stopped VM may be root's, in a folder that
 * somebody else can plant links in: so it is handed files that are there already, by descriptor.
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

static int
fd_of(const struct vf_flow *flow, const struct vf_cut *cut)
{
    return flow->overlay_fds[cut - flow->cuts];
}

static void
warn_of_owner(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct stat made, about;

    if (stat(cut->names.overlay, &made) == 0 && stat(vf_cut_path_before(cut), &about) == 0)
        vf_warn(flow,
                "disk %s: its new image %s belongs to user %u and group %u, and not to user %u and "
                "group %u as the one before: whoever starts the VM has to be able to open it",
                cut->name, vf_cut_path_after(cut), (unsigned)made.st_uid, (unsigned)made.st_gid,
                (unsigned)about.st_uid, (unsigned)about.st_gid);
}

/* What we have made is given to the VM's user. */
static bool
own_it(struct vf_flow *flow, const struct vf_cut *cut, struct vmfrost_error *error)
{
    bool same;

    if (!vf_like(fd_of(flow, cut), vf_cut_path_before(cut), &same))
        return vf_fail(error, VMFROST_FAILED, "disk %s: cannot give %s the owner of its base: %s",
                       cut->name, cut->names.overlay, strerror(errno));
    if (!same)
        warn_of_owner(flow, cut);
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

/* What took the place of ours goes with the rest of what was prepared: the name was ours alone. */
static bool
is_still_ours(struct vf_flow *flow, struct vf_cut *cut)
{
    if (vf_inode_equal(vf_cut_overlay_inode(cut), cut->overlay))
        return true;
    cut->overlay = (struct vf_inode){0, 0};
    return vf_note(flow, VMFROST_FAILED, "disk %s: somebody has replaced its new overlay %s",
                   cut->name, cut->names.overlay);
}

static bool
name_all(struct vf_flow *flow, bool by_qemu)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        struct vf_cut *cut = &flow->cuts[i];

        if (!flow->overlay_fds)
            cut->overlay = vf_cut_overlay_inode(cut);
        if (!is_still_ours(flow, cut) || (by_qemu && !header_is_right(flow, cut)) ||
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

/* They are written; now they get their names. */
static void
use_images(struct vf_flow *flow, bool by_qemu)
{
    if (!name_all(flow, by_qemu)) {
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

/* Written by QEMU. */

static void
on_files_closed(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!went_well(flow, reply, "cannot close its new overlay"))
        return;
    for (size_t i = 0; flow->overlay_fds && i < flow->cut_count; i++)
        if (!own_it(flow, &flow->cuts[i], &error)) {
            vf_note_error(flow, &error);
            vf_end(flow, VF_REFUSED);
            return;
        }
    use_images(flow, true);
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
    VF_AUTO_FREE char *made =
        flow->overlay_fds ? vf_printf("/proc/%d/fd/%d", (int)getpid(), fd_of(flow, cut)) : NULL;
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

/* Written here. */

/* A file that is there belongs to somebody else, whoever it is. */
static bool
make_files(struct vf_flow *flow, struct vmfrost_error *error)
{
    vf_overlays_close(flow);
    flow->overlay_fds = vf_alloc((flow->cut_count + 1) * sizeof *flow->overlay_fds);
    for (; flow->overlay_fd_count < flow->cut_count; flow->overlay_fd_count++) {
        struct vf_cut *cut = &flow->cuts[flow->overlay_fd_count];
        VF_AUTO_FD int fd = vf_create(cut->names.overlay);
        struct stat about;

        if (fd < 0 || fstat(fd, &about) < 0)
            return vf_fail(error, VMFROST_FAILED, "disk %s: cannot create the overlay %s: %s",
                           cut->name, cut->names.overlay, strerror(errno));
        vf_log(&flow->log, VMFROST_LOG_DEBUG, "file create %s", cut->names.overlay);
        flow->overlay_fds[flow->overlay_fd_count] = fd;
        fd = -1;
        cut->overlay = (struct vf_inode){about.st_dev, about.st_ino};
    }
    return true;
}

void
vf_overlays_close(struct vf_flow *flow)
{
    while (flow->overlay_fd_count > 0)
        close(flow->overlay_fds[--flow->overlay_fd_count]);
    free(VF_STEAL(flow->overlay_fds));
}

static bool
write_images(struct vf_flow *flow, struct vmfrost_error *error)
{
    vf_test_point(flow, "overlays.created");
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        struct vf_qcow2_empty image = {
            .size = vf_cut_overlay_size(cut),
            .backing = cut->names.backing,
            .backing_format = vf_cut_backing_format(cut),
            .ready = !(flow->engine.conditions & VF_IF_STOPPED),
        };

        vf_class_overlay_layout(flow, cut, &image.cluster_size, &image.extended_l2);
        if (!vf_qcow2_write_empty(fd_of(flow, cut), &image))
            return vf_fail(error, VMFROST_FAILED, "disk %s: cannot write its overlay %s: %s",
                           cut->name, cut->names.overlay, strerror(errno));
        if (!own_it(flow, cut, error))
            return false;
    }
    return true;
}

/* Files that a running QEMU can open if it could open the base, and nothing that it alone can do.
 */
static bool
can_write_images(const struct vf_flow *flow)
{
    bool stopped = flow->engine.conditions & VF_IF_STOPPED;
    struct vf_rights rights = {.known = false};

    if (!stopped && (!flow->qemu.pid || vf_sees_otherwise(flow->qemu.pid)))
        return false;
    if (!stopped)
        rights = vf_process_rights(flow->qemu.pid);
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        struct stat about;

        if (vf_class_preallocates(flow, cut))
            return false;
        if (stopped)
            continue;
        if (!cut->base.number || stat(vf_cut_path_before(cut), &about) < 0 ||
            (geteuid() != 0 && geteuid() != about.st_uid) ||
            !vf_rights_suffice(&rights, about.st_uid, about.st_mode))
            return false;
    }
    return true;
}

/* So that QEMU can try: it may have rights that we have not, or other ways. */
static void
leave_it_to_qemu(struct vf_flow *flow, const struct vmfrost_error *why)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    vf_log(&flow->log, VMFROST_LOG_DEBUG, "QEMU is to write the overlays: %s", why->text);
    for (size_t i = 0; i < flow->cut_count; i++) {
        struct vf_cut *cut = &flow->cuts[i];

        if (!vf_unlink(cut->names.overlay, cut->overlay, &flow->log, &error)) {
            vf_note_error(flow, &error);
            vf_end(flow, VF_REFUSED);
            return;
        }
        cut->overlay = (struct vf_inode){0, 0};
    }
    vf_overlays_close(flow);
    create_files(flow);
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
    struct vmfrost_error error = {.code = VMFROST_OK};

    flow->preopened = flow->options.method == VMFROST_METHOD_PREOPENED;
    for (size_t i = 0; i < flow->cut_count; i++)
        flow->preopened |= flow->cuts[i].below || loses_modes(flow, &flow->cuts[i]);
    bool stopped = flow->engine.conditions & VF_IF_STOPPED, ours = can_write_images(flow);

    if (!stopped && !ours) {
        create_files(flow);
        return;
    }
    bool made = make_files(flow, &error);

    if (made && !ours) {
        create_images(flow);
    } else if (made && write_images(flow, &error)) {
        use_images(flow, false);
    } else if (made && !stopped) {
        leave_it_to_qemu(flow, &error);
    } else {
        vf_note_error(flow, &error);
        vf_end(flow, VF_REFUSED);
    }
}
