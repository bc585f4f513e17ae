/* SPDX-License-Identifier: MIT
 *
 * Looking at what really is: QEMU's graph, the files that it has open, the names in the folders.
 * Nothing that a reply claimed is believed here.
 */
#include <errno.h>
#include <string.h>

#include "flows/steps.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/graph.h"

/* The overlay stands on its base and somebody uses it. */
static bool
is_made(const struct vf_flow *flow, const struct vf_cut *cut)
{
    const char *backing = vf_graph_child(flow->facts.graph, cut->overlay_node, "backing");

    return backing && strcmp(backing, cut->node) == 0 &&
           vf_graph_in_use(flow->facts.graph, cut->overlay_node);
}

size_t
vf_cuts_made(const struct vf_flow *flow)
{
    size_t made = 0;

    for (size_t i = 0; i < flow->cut_count; i++)
        made += is_made(flow, &flow->cuts[i]);
    return made;
}

static bool
graph_is_right(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct json_object *overlay = vf_node_about(flow, cut->overlay_node);
    struct json_object *base = vf_node_about(flow, cut->node);
    int64_t size = -1;

    if (cut->absent) /* unplugged since: there is nothing of it in the graph */
        return true;
    if (!is_made(flow, cut))
        return vf_note(flow, VMFROST_FAILED, "disk %s: the VM does not run on its overlay",
                       cut->name);
    if (!vf_json_int(vf_json_object(overlay, "image"), "virtual-size", &size) || size != cut->size)
        return vf_note(flow, VMFROST_FAILED, "disk %s: the overlay has not the disk's size",
                       cut->name);
    if (vf_json_bool(overlay, "ro", true))
        return vf_note(flow, VMFROST_FAILED, "disk %s: the overlay is read-only", cut->name);
    if (!vf_json_bool(base, "ro", false)) {
        vf_note(flow, VMFROST_FAILED, "disk %s: its sealed image is still writable", cut->name);
        /* Nothing that QEMU can be asked for tells of it before. */
        vf_advise(flow,
                  "a drive that was started with copy-on-read=on can only be left out: "
                  "--exclude %s",
                  cut->name);
        return false;
    }
    return true;
}

static bool
files_are_right(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct vf_opened overlay, base;

    if (flow->qemu.pid == 0 || !cut->base.number || cut->absent)
        return true; /* a QEMU or a disk that cannot be looked at; the record has new-file mode */
    const struct vf_view *view = vf_view_of_qemu(flow);

    if (!vf_view_opened(view, cut->overlay, &overlay) || !vf_view_opened(view, cut->base, &base))
        return vf_note(flow, VMFROST_FAILED, "disk %s: cannot see what QEMU (pid %d) has open",
                       cut->name, (int)flow->qemu.pid);
    if (!overlay.read_write)
        return vf_note(flow, VMFROST_FAILED, "disk %s: QEMU has not opened %s for writing",
                       cut->name, cut->names.overlay);
    /* A file node of the launcher's own stays open for writing; its locks tell, if it has any. */
    if (cut->own_file_node ? base.may_write : base.read_write)
        return vf_note(flow, VMFROST_FAILED, "disk %s: QEMU still has %s open for writing",
                       cut->name, cut->names.sealed);
    return true;
}

static bool
names_are_right(struct vf_flow *flow, const struct vf_cut *cut)
{
    if (cut->naming == VF_NAMING_FLIP &&
        (!vf_inode_equal(vf_inode_of(cut->names.top), cut->overlay) ||
         !vf_inode_equal(vf_inode_of(cut->names.sealed), cut->base)))
        return vf_note(flow, VMFROST_FAILED,
                       "disk %s: somebody changed the names of its images in the meantime",
                       cut->name);
    return true;
}

static bool
make_durable(struct vf_flow *flow)
{
    const struct vf_cut *failed = vf_sync_folders(flow);

    return !failed ||
           vf_note(flow, VMFROST_FAILED, "disk %s: cannot make the folder of %s durable: %s",
                   failed->name, failed->names.overlay, strerror(errno));
}

static void
on_looked(struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];

        if (!graph_is_right(flow, cut) || !files_are_right(flow, cut) ||
            !names_are_right(flow, cut)) {
            vf_end(flow, VF_REFUSED);
            return;
        }
    }
    vf_plug_compare(flow);
    vf_facts_forget(flow);
    vf_end(flow, make_durable(flow) ? VF_OK : VF_REFUSED);
}

/* Without a QEMU the names and the headers are all there is, and that the locks were held until
 * they were turned. The daemon is ended first: closing an image may still write to it. */
static void
verify_stopped(struct vf_flow *flow)
{
    if (!vf_daemon_holds(flow))
        return;
    vf_qmp_close(flow->qmp);
    vf_daemon_stop(&flow->daemon);
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!names_are_right(flow, &flow->cuts[i])) {
            vf_end(flow, VF_REFUSED);
            return;
        }
    vf_end(flow, make_durable(flow) ? VF_OK : VF_REFUSED);
}

void
vf_step_verify(struct vf_flow *flow)
{
    if (flow->engine.conditions & VF_IF_STOPPED)
        verify_stopped(flow);
    else
        vf_look_again(flow, on_looked);
}

/* Whether the cut was made, when its reply is not known. */

static void
on_resolved(struct vf_flow *flow)
{
    size_t made = vf_cuts_made(flow);

    if (made == 0) {
        vf_engine_forgive(&flow->engine, VF_OWE_CUT);
        flow->cut_begun = false;
    }
    if (made != 0 && made != flow->cut_count) {
        /* A transaction is all or nothing: somebody else works on these disks. */
        flow->engine.hopeless = true;
        vf_refuse(flow, VMFROST_FAILED, "%zu of %zu disks are cut: somebody else changed the graph",
                  made, flow->cut_count);
        return;
    }
    /* Until it is undone, the overlays are the current state, and the names have to say so. */
    if (made != 0 && !vf_flip_all(flow)) {
        vf_end_refused(flow);
        return;
    }
    vf_guard_named(&flow->guard);
    vf_end(flow, VF_OK);
}

static void
look_and_resolve(struct vf_flow *flow)
{
    vf_look_again(flow, on_resolved);
}

/* QEMU is gone. Overlays without data are what their bases are, cut or not. One with data proves
 * the cut, and is what the guest has written last. */
static void
resolve_without_qemu(struct vf_flow *flow)
{
    bool data = false;

    for (size_t i = 0; i < flow->cut_count; i++)
        data |= vf_overlay_has_data(&flow->cuts[i]);
    for (size_t i = 0; i < flow->cut_count; i++)
        if (!(data ? vf_turn_to_overlay(flow, &flow->cuts[i])
                   : vf_turn_to_base(flow, &flow->cuts[i]))) {
            vf_end(flow, VF_REFUSED);
            return;
        }
    if (!data)
        vf_engine_forgive(&flow->engine, VF_OWE_CUT);
    if (!(flow->engine.conditions & VF_IF_STOPPED))
        vf_note(flow, VMFROST_UNREACHABLE, "QEMU is gone");
    vf_end(flow, VF_OK);
}

/* Asks for the graph. On the connection of the cut its reply comes after the cut's own, and a new
 * connection's first reply after whatever QEMU was at: so the answer is final. Pays
 * VF_OWE_RESOLVE, and forgives VF_OWE_CUT if nothing was cut. */
void
vf_step_resolve(struct vf_flow *flow)
{
    if ((flow->engine.conditions & VF_IF_STOPPED) ||
        (flow->qemu.pid && vf_process_gone(flow->qemu))) {
        resolve_without_qemu(flow);
        return;
    }
    /* It may hang; or it waits for the end of a message that was spoilt on its way, and takes all
     * that we say for that. */
    if (flow->silent == flow->attempted)
        vf_qmp_close(flow->qmp);
    vf_with_qemu(flow, look_and_resolve);
}
