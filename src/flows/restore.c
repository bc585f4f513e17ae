/* SPDX-License-Identifier: MIT
 *
 * Restoring a snapshot: the table. Read it downwards for what happens, and `undos` for what happens
 * when something goes wrong anywhere.
 *
 * All disks of the snapshot go back to it, or none. Each gets a new overlay on the snapshot's
 * image, which stays as it is; what the disk ran on until now is kept as a snapshot of its own, or
 * thrown away. Until "flip", nothing has happened that cannot be undone. From the first name that
 * is turned on there is only the way forward: the VM stands still, so that nothing parts, and
 * whoever starts it anew starts the restored disks. How a running VM is turned to them is in
 * pivot.c.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "flows/steps.h"
#include "flows/tables.h"
#include "util/cleanup.h"
#include "util/file.h"
#include "util/json.h"
#include "util/mem.h"
#include "vm/graph.h"
#include "vm/qcow2.h"

enum step {
    END = VF_STEP_END,
    CONNECT,
    LOOK,
    CHOOSE,
    ACCEPT,
    OVERLAYS,
    GUARD,
    HALT,
    MIRROR,
    FLIP,
    PIVOT,
    RESET,
    GO_ON,
    TIDY,
    RECORD,
    UNDO_TURN,
    UNDO_RESET,
    UNDO_MIRROR,
    UNDO_HALT,
    UNDO_FILES,
    UNDO_RECORD,
    STEP_COUNT,
};

/* Choosing. */

/* A disk of the VM as it is now, and where its image lies. */
struct present {
    struct vf_place place;
    struct vmfrost_error error; /* why it has no place */
    bool placed;
};

struct choice {
    struct present *presents; /* as many as flow->plan.disks */
    size_t count;
    struct vf_cut *targets; /* of the snapshot's record */
    size_t *disks;          /* for each target, the index of the VM's disk */
    size_t target_count;
};

static void
release_choice(struct choice *choice)
{
    for (size_t i = 0; i < choice->count; i++)
        vf_place_release(&choice->presents[i].place);
    for (size_t i = 0; i < choice->target_count; i++)
        vf_cut_release(&choice->targets[i]);
    free(choice->presents);
    free(choice->targets);
    free(choice->disks);
}

static bool
read_targets(struct vf_flow *flow, struct choice *choice)
{
    struct json_object *cuts = vf_json_array(flow->restore.snapshot, "cuts");
    bool understood = vf_json_length(cuts) > 0;

    choice->targets = vf_alloc((vf_json_length(cuts) + 1) * sizeof *choice->targets);
    choice->disks = vf_alloc((vf_json_length(cuts) + 1) * sizeof *choice->disks);
    for (size_t i = 0; understood && i < vf_json_length(cuts); i++) {
        understood = vf_cut_parse(&choice->targets[i], vf_json_at(cuts, i));
        choice->target_count += understood;
    }
    struct vmfrost_error error = {.code = VMFROST_OK};

    return understood || vf_record_unclear(&flow->vm, flow->snapshot_name, &error) ||
           vf_note_error(flow, &error);
}

static void
find_presents(struct vf_flow *flow, struct choice *choice)
{
    choice->count = flow->plan.count;
    choice->presents = vf_alloc((choice->count + 1) * sizeof *choice->presents);
    for (size_t i = 0; i < choice->count; i++) {
        const struct vf_disk *disk = &flow->plan.disks[i];
        struct present *present = &choice->presents[i];

        if (disk->node && disk->file)
            present->placed = vf_disk_place(flow, disk, &present->place, &present->error);
    }
}

static bool
same_path(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

/* The VM's disk is the one that was cut: it has the name that a launcher opens since. */
static bool
was_cut(const struct vf_cut *target, const struct vf_disk *disk, const struct present *present)
{
    if (!present->placed)
        return false;
    if (target->naming == VF_NAMING_FLIP)
        return same_path(present->place.path, target->names.top);
    return same_path(present->place.path, target->names.overlay) ||
           same_path(disk->name, target->name);
}

static bool
not_there(struct vf_flow *flow, const struct choice *choice, const struct vf_cut *cut)
{
    for (size_t i = 0; i < choice->count; i++) {
        struct vmfrost_error error = choice->presents[i].error;

        if (!vf_failed(&error) || !same_path(flow->plan.disks[i].name, cut->name))
            continue;
        vf_prefix(&error, "disk %s", cut->name);
        return vf_note_error(flow, &error);
    }
    vf_note(flow, VMFROST_FAILED, "disk %s of the snapshot (%s) is not in the VM now", cut->name,
            vf_cut_path_after(cut));
    vf_advise(flow, "plug it in, or start the VM with it, and restore then");
    return false;
}

static bool
find_disk(struct vf_flow *flow, struct choice *choice, size_t target)
{
    const struct vf_cut *cut = &choice->targets[target];

    for (size_t i = 0; i < choice->count; i++) {
        bool taken = false;

        for (size_t k = 0; k < target; k++)
            taken |= choice->disks[k] == i;
        if (taken || !was_cut(cut, &flow->plan.disks[i], &choice->presents[i]))
            continue;
        choice->disks[target] = i;
        return true;
    }
    return not_there(flow, choice, cut);
}

static void
append(char ***list, size_t *count, const char *text)
{
    VF_GROW(*list, *count);
    (*list)[(*count)++] = vf_strdup(text);
}

/* The disks of the VM that the snapshot does not have are left alone, and whatever goes on with
 * them. One of the snapshot's may have been plugged in since QEMU's start. */
static bool
plan_without_others(struct vf_flow *flow, const struct choice *choice)
{
    for (size_t i = 0; i < choice->count; i++) {
        const struct vf_disk *disk = &flow->plan.disks[i];
        bool chosen = false, shared = false;

        for (size_t k = 0; k < choice->target_count; k++) {
            chosen |= choice->disks[k] == i;
            shared |= same_path(flow->plan.disks[choice->disks[k]].node, disk->node);
        }
        if (chosen && disk->reason == VF_OUT_HOTPLUGGED)
            append(&flow->include, &flow->include_count, disk->name);
        else if (!chosen && !shared)
            append(&flow->exclude, &flow->exclude_count, disk->name);
    }
    return vf_plan_facts(flow, &flow->error);
}

/* The image of the snapshot is what it was. */
static bool
is_as_sealed(struct vf_flow *flow, const struct vf_cut *target)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    const char *path = target->names.sealed;
    struct vf_qcow2 image;
    struct stat about;

    if (path[0] != '/') /* no file */
        return true;
    if (!vf_can_be_opened(flow, target->name, path, target->format))
        return false;
    if (stat(path, &about) < 0)
        return vf_note(flow, VMFROST_FAILED, "disk %s: cannot look at %s: %s", target->name, path,
                       strerror(errno));
    if (target->base.number && !vf_inode_equal(vf_inode_of(path), target->base))
        return vf_note(flow, VMFROST_FAILED,
                       "disk %s: %s is not the image of the snapshot any more (inode %llu, not "
                       "%llu)",
                       target->name, path, (unsigned long long)about.st_ino,
                       (unsigned long long)target->base.number);
    if (target->sealed_ns && S_ISREG(about.st_mode) &&
        (int64_t)about.st_mtim.tv_sec * 1000000000 + (int64_t)about.st_mtim.tv_nsec !=
            target->sealed_ns)
        vf_warn(flow, "disk %s: %s was written to since the snapshot was taken", target->name,
                path);
    if (strcmp(target->format, "qcow2") != 0)
        return true;
    if (!vf_qcow2_read(path, &image, &error)) {
        vf_prefix(&error, "disk %s", target->name);
        return vf_note_error(flow, &error);
    }
    bool sound = image.size == target->size && !image.corrupt && !image.encrypted;
    int64_t size = image.size;
    bool corrupt = image.corrupt;

    vf_qcow2_release(&image);
    if (sound)
        return true;
    if (corrupt)
        return vf_note(flow, VMFROST_FAILED, "disk %s: QEMU has marked %s as corrupt", target->name,
                       path);
    return vf_note(flow, VMFROST_FAILED,
                   "disk %s: %s is not what the snapshot's record says: %lld bytes large, not %lld",
                   target->name, path, (long long)size, (long long)target->size);
}

static bool
is_whole(struct vf_flow *flow, const struct vf_cut *target)
{
    if (is_as_sealed(flow, target))
        return true;
    vf_advise(flow, "see `vmfrost verify %s` and `vmfrost status %s`", flow->vm.name,
              flow->vm.name);
    return false;
}

static bool
disk_allows(struct vf_flow *flow, const struct vf_cut *target, const struct vf_disk *disk,
            const struct vf_place *place)
{
    bool online = flow->engine.conditions & VF_IF_ONLINE;

    if (disk->reason != VF_INCLUDED && disk->reason != VF_OUT_DUPLICATE)
        return vf_note(flow, VMFROST_FAILED, "disk %s: %s", disk->name,
                       disk->why ? disk->why : "it cannot be restored");
    if (target->base.number && vf_inode_equal(place->inode, target->base)) {
        vf_note(flow, VMFROST_FAILED, "disk %s: the VM runs on the snapshot's own image, %s",
                disk->name, place->path);
        vf_advise(flow, "its launcher has to start %s, which the snapshot has made",
                  target->names.overlay);
        return false;
    }
    if (online && target->size != disk->size) {
        vf_note(flow, VMFROST_FAILED,
                "disk %s: it has another size now (%lld bytes) than in the snapshot (%lld), and "
                "that cannot change while the VM runs",
                disk->name, (long long)disk->size, (long long)target->size);
        vf_advise(flow, "stop the VM, and restore then");
        return false;
    }
    if (online && place->naming == VF_NAMING_NEW_FILE) {
        vf_note(flow, VMFROST_FAILED, "disk %s: it cannot be restored while the VM runs: %s",
                disk->name, place->why);
        vf_advise(flow, "put that right; or stop the VM, restore it then, and have its launcher "
                        "start the new file that is told then");
        return false;
    }
    if (vf_graph_has_export(flow->facts.graph, disk->root) ||
        vf_graph_has_export(flow->facts.graph, disk->node)) {
        vf_note(flow, VMFROST_FAILED, "disk %s: it is exported to somebody else, too", disk->name);
        vf_advise(flow, "end that first (see query-block-exports)");
        return false;
    }
    return true;
}

static void
set(char **slot, char *value)
{
    free(*slot);
    *slot = value;
}

/* How the overlay's header names the snapshot's image. */
static char *
backing_name(const struct vf_cut *target, const struct vf_place *place)
{
    const char *path = target->names.sealed, *name = vf_name_of(path);
    VF_AUTO_FREE char *folder = vf_folder_of(path);

    if (path[0] != '/')
        return vf_strdup(target->names.backing);
    if (place->linked || strcmp(folder, place->folder) != 0)
        return vf_strdup(path);
    /* A colon in a bare name would make a protocol of it. */
    return vf_printf("%s%s", strchr(name, ':') ? "./" : "", name);
}

static bool
make_cut(struct vf_flow *flow, const struct vf_cut *target, const struct vf_disk *disk,
         const struct vf_place *place)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    const char *keep = flow->restore.keep;

    VF_GROW(flow->cuts, flow->cut_count);
    struct vf_cut *cut = &flow->cuts[flow->cut_count];

    const struct vf_class *class = vf_disk_class(flow, disk, place);

    vf_cut_make(cut, disk, place, keep ? keep : flow->restore.label, flow->id, flow->cut_count);
    cut->storage_class = class ? vf_strdup(class->name) : NULL;
    flow->cut_count++;
    cut->below = vf_strdup(target->names.sealed);
    cut->below_format = vf_strdup(target->format);
    cut->below_inode = target->base;
    cut->below_size = target->size;
    set(&cut->names.backing, backing_name(target, place));
    if (!keep && cut->naming == VF_NAMING_FLIP)
        set(&cut->names.sealed, vf_printf("%s.old", cut->names.overlay));
    if (vf_names_free(&cut->names, &error) &&
        vf_folder_allows(cut->names.overlay, cut->naming == VF_NAMING_FLIP, &error))
        return true;
    vf_prefix(&error, "disk %s", disk->name);
    return vf_note_error(flow, &error);
}

static const struct vf_disk *
disk_named(const struct vf_flow *flow, const char *name)
{
    for (size_t i = 0; i < flow->plan.count; i++)
        if (same_path(flow->plan.disks[i].name, name))
            return &flow->plan.disks[i];
    return NULL;
}

/* `choice` was made on a plan of all disks; the real one leaves out those of no interest. */
static bool
choose_disks(struct vf_flow *flow, struct choice *choice)
{
    VF_AUTO_JSON struct json_object *names = vf_json_new_array();
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    vf_plan_facts(flow, &ignored);
    find_presents(flow, choice);
    if (!read_targets(flow, choice))
        return false;
    for (size_t i = 0; i < choice->target_count; i++) {
        if (!find_disk(flow, choice, i))
            return false;
        vf_json_append(names, vf_json_new_string(flow->plan.disks[choice->disks[i]].name));
    }
    if (!plan_without_others(flow, choice))
        return false;
    for (size_t i = 0; i < choice->target_count; i++) {
        const struct vf_cut *target = &choice->targets[i];
        const struct vf_disk *disk = disk_named(flow, vf_json_text(vf_json_at(names, i)));
        const struct vf_place *place = &choice->presents[choice->disks[i]].place;

        if (!disk || !disk_allows(flow, target, disk, place) || !is_whole(flow, target) ||
            !make_cut(flow, target, disk, place))
            return false;
    }
    return true;
}

/* A VM that stands where its guest left it would find other disks under its feet: so it is reset,
 * or was stopped before. */
static bool
may_reset(struct vf_flow *flow)
{
    if (!(flow->engine.conditions & VF_IF_ONLINE))
        return true;
    if (!flow->restore.reset) {
        vf_note(flow, VMFROST_FAILED, "the VM is running");
        vf_advise(flow, "stop it, and restore then; or restore it in place and reset it with "
                        "--reset");
        return false;
    }
    if (!flow->qemu.pid) {
        vf_note(flow, VMFROST_FAILED,
                "QEMU's process is not known over this connection: what it has open cannot be "
                "seen");
        vf_advise(flow, "run vmfrost on QEMU's host, with its UNIX socket; or stop the VM, and "
                        "restore then");
        return false;
    }
    VF_AUTO_JSON struct json_object *about = vf_process_describe_qemu(flow->qemu.pid);

    if (vf_json_bool(about, "noReboot", false)) {
        vf_note(flow, VMFROST_FAILED, "QEMU was started with -no-reboot: a reset would end it");
        vf_advise(flow, "stop the VM, and restore then");
        return false;
    }
    return true;
}

static bool
name_what_is_kept(struct vf_flow *flow)
{
    char stamp[32];
    time_t now = time(NULL);
    struct tm parts;

    if (flow->restore.keep) {
        if (!vf_record_exists(&flow->vm, flow->restore.keep))
            return true;
        vf_note(flow, VMFROST_FAILED, "a snapshot %s@%s exists already", flow->vm.name,
                flow->restore.keep);
        vf_advise(flow, "give another --keep-name");
        return false;
    }
    gmtime_r(&now, &parts);
    strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%SZ", &parts);
    if (flow->restore.discard) { /* for a new file's name */
        flow->restore.label = vf_printf("restored-%s", stamp);
        return true;
    }
    flow->restore.keep = vf_printf("before-restore-%s", stamp);
    for (unsigned number = 2; vf_record_exists(&flow->vm, flow->restore.keep); number++)
        set(&flow->restore.keep, vf_printf("before-restore-%s-%u", stamp, number));
    return true;
}

static void
choose(struct vf_flow *flow)
{
    struct choice choice = {0};

    bool chosen = vf_links_sweep(flow) && may_reset(flow) && name_what_is_kept(flow) &&
                  choose_disks(flow, &choice);

    release_choice(&choice);
    if (chosen)
        flow->restore.old_nodes = vf_nodes_below(flow);
    vf_end(flow, chosen ? VF_OK : VF_REFUSED);
}

static void
accept(struct vf_flow *flow)
{
    flow->options.quiesce = VMFROST_QUIESCE_SKIP;
    vf_end(flow, vf_state_has_room(flow) && vf_journal_open(flow) ? VF_OK : VF_REFUSED);
}

/* The names. */

static bool
turn_back(struct vf_flow *flow)
{
    bool turned = true;

    /* First: the guard would turn them again. */
    vf_guard_named(&flow->guard);
    for (size_t i = 0; i < flow->cut_count; i++)
        turned &= vf_turn_to_base(flow, &flow->cuts[i]);
    return turned;
}

/* What has happened has happened: that it is not durable is no reason to turn back. */
static void
make_durable(struct vf_flow *flow)
{
    const struct vf_cut *failed = vf_sync_folders(flow);

    if (failed)
        vf_warn(flow, "cannot make the folder of %s durable: %s", failed->names.overlay,
                strerror(errno));
}

bool
vf_restore_turn(struct vf_flow *flow)
{
    bool turned = true;

    for (size_t i = 0; turned && i < flow->cut_count; i++)
        turned = vf_turn_to_overlay(flow, &flow->cuts[i]);
    if (!turned)
        return false;
    vf_guard_named(&flow->guard);
    make_durable(flow);
    return true;
}

/* Where no name is turned, the journal has to tell that the restored disks are the current ones. */
static bool
has_names(const struct vf_flow *flow)
{
    for (size_t i = 0; i < flow->cut_count; i++)
        if (flow->cuts[i].naming == VF_NAMING_FLIP)
            return true;
    return false;
}

/* All names lead to the restored disks, or none: while the VM stands still, both are right. */
static void
flip(struct vf_flow *flow)
{
    if (!has_names(flow) && !vf_journal_state(flow, "turning", NULL)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!flow->evidence.cut) /* nobody had to be stopped */
        flow->evidence.cut = vf_now_us();
    vf_guard_turning(&flow->guard);
    flow->restore.turned = true;
    if (vf_flip_all(flow)) {
        vf_end(flow, vf_restore_turn(flow) ? VF_OK : VF_UNKNOWN);
        return;
    }
    flow->restore.turned = !turn_back(flow);
    vf_end(flow, flow->restore.turned ? VF_UNKNOWN : VF_REFUSED);
}

/* The end. */

static void
warn_of_open(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct vf_opened opened;

    if (vf_process_opened(flow->qemu.pid, cut->base, &opened) &&
        (opened.read_only || opened.read_write))
        vf_warn(flow, "disk %s: QEMU (pid %d) still has open what the disk ran on before",
                cut->name, (int)flow->qemu.pid);
}

/* QEMU knows the restored disks by their hidden names, and the images of before by no name any
 * more; without a QEMU nobody knows any. */
static bool
settle_links(struct vf_flow *flow)
{
    bool lives = !vf_process_gone(flow->qemu);

    for (size_t i = 0; i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        struct vmfrost_error error = {.code = VMFROST_OK};

        if (cut->naming == VF_NAMING_NEW_FILE)
            continue;
        if (lives)
            warn_of_open(flow, cut);
        else if (!vf_unlink(cut->names.overlay, cut->overlay, &flow->log, &error))
            return vf_note_error(flow, &error);
    }
    return !lives || (vf_links_add_overlays(flow) && vf_links_trim(flow));
}

static bool
throw_away(struct vf_flow *flow, const struct vf_cut *cut)
{
    struct vmfrost_error error = {.code = VMFROST_OK};
    struct vf_opened opened = {.read_only = false};
    VF_AUTO_FREE char *aside = vf_printf("%s.old", cut->names.overlay);

    if (cut->naming == VF_NAMING_NEW_FILE || strcmp(cut->names.sealed, aside) != 0) {
        vf_warn(flow, "disk %s: %s, which it ran on, is left where it is", cut->name,
                cut->names.sealed);
        return true;
    }
    /* The names by which QEMU knew the image go now, or never: they will be the only ones. What
     * cannot be seen just now is looked at once more, on the way back. */
    if (!vf_process_gone(flow->qemu) && !vf_process_opened(flow->qemu.pid, cut->base, &opened)) {
        vf_note(flow, VMFROST_FAILED, "disk %s: what QEMU (pid %d) has open cannot be seen",
                cut->name, (int)flow->qemu.pid);
        return false;
    }
    if (!opened.read_only && !opened.read_write && !vf_links_drop(flow, &cut->base, 1))
        return false;
    if (!vf_unlink(cut->names.sealed, cut->base, &flow->log, &error)) {
        vf_prefix(&error, "disk %s", cut->name);
        return vf_note_error(flow, &error);
    }
    return true;
}

static bool
write_record(struct vf_flow *flow)
{
    if (vf_json_bool(flow->record, "readyToUse", false)) /* recovery: all but the journal */
        return true;
    if (!flow->record)
        vf_record_make(flow, flow->restore.keep);
    vf_json_add_string(flow->record, "restoredTo", flow->snapshot_name);
    if (vf_record_write(flow, "Succeeded", true))
        return true;
    vf_json_add_bool(flow->record, "readyToUse", false); /* the way back tries it again */
    return false;
}

/* What the VM ran on is a snapshot now, or is gone. Pays VF_OWE_RECORD. */
void
vf_step_restored(struct vf_flow *flow)
{
    struct vmfrost_error before = flow->error;
    bool done = true;

    if (vf_failed(&flow->error)) /* what could not be tidied up is no failure of the restore */
        vf_absolve(flow);
    if (flow->restore.keep)
        done = write_record(flow);
    done = done && settle_links(flow);
    for (size_t i = 0; done && !flow->restore.keep && i < flow->cut_count; i++)
        done = throw_away(flow, &flow->cuts[i]);
    if (done && !flow->restore.keep)
        make_durable(flow);
    if (!done) {
        if (!vf_failed(&flow->error)) /* on the way back nothing else is told */
            flow->error = before;
        vf_end(flow, VF_REFUSED);
        return;
    }
    flow->restore.restored = true;
    if (flow->restore.keep)
        flow->snapshot_state = VMFROST_SNAPSHOT_TAKEN;
    vf_disks_cut(flow);
    vf_test_point(flow, "record.saved");
    vf_journal_finish(flow);
    vf_end(flow, VF_OK);
}

/* What was prepared is undone by now; or all was done but the record; or something is stuck. */
static void
close_up(struct vf_flow *flow)
{
    if (flow->restore.turned && !(flow->engine.owed & ~(unsigned)VF_OWE_RECORD)) {
        flow->engine.cause = VF_CAUSE_NONE;
        vf_step_restored(flow);
        return;
    }
    vf_step_close_up(flow);
}

#define MINUTE_MS (60 * 1000)
/* The VM stands still all the while: a QEMU that refuses for so long will refuse for longer. */
#define STILL_MS (15 * 1000)

static const struct vf_step steps[STEP_COUNT] = {
    [CONNECT] = {.name = "connect",
                 .title = "Connecting to QEMU",
                 .start = vf_step_reach,
                 .budget_ms = 10000,
                 .next = LOOK},
    [LOOK] = {.name = "look",
              .title = "Looking at the VM",
              .start = vf_step_look,
              .budget_ms = 10000,
              .next = CHOOSE},
    [CHOOSE] = {.name = "choose",
                .title = "Finding the images",
                .start = choose,
                .budget_ms = 10000,
                .next = ACCEPT},
    [ACCEPT] = {.name = "accept",
                .title = "Writing the journal",
                .start = accept,
                .owes = VF_OWE_RECORD,
                .sticky = VF_OWE_RECORD,
                .budget_ms = MINUTE_MS,
                .next = OVERLAYS},
    [OVERLAYS] = {.name = "overlays",
                  .title = "Creating overlays",
                  .start = vf_step_overlays,
                  .owes = VF_OWE_FILES,
                  .sticky = VF_OWE_FILES,
                  .budget_ms = 2 * MINUTE_MS,
                  .next = GUARD},
    [GUARD] = {.name = "guard",
               .title = "Starting the guard",
               .start = vf_step_restore_guard,
               .budget_ms = 10000,
               .next = HALT},
    [HALT] = {.name = "halt",
              .title = "Stopping the VM",
              .start = vf_step_halt,
              .owes = VF_OWE_HALT,
              .budget_ms = MINUTE_MS,
              .next = MIRROR,
              .when = VF_IF_ONLINE},
    [MIRROR] = {.name = "mirror",
                .title = "Preparing the change of disks",
                .start = vf_step_mirror,
                .owes = VF_OWE_MIRROR,
                .sticky = VF_OWE_MIRROR,
                .budget_ms = MINUTE_MS,
                .next = FLIP,
                .when = VF_IF_ONLINE},
    [FLIP] = {.name = "flip",
              .title = "Turning the names",
              .start = flip,
              .owes = VF_OWE_TURN | VF_OWE_RESET,
              .budget_ms = MINUTE_MS,
              .next = PIVOT,
              .commits = true},
    [PIVOT] = {.name = "pivot",
               .title = "Changing the disks",
               .start = vf_step_pivot,
               .pays = VF_OWE_TURN | VF_OWE_MIRROR | VF_OWE_FILES,
               .budget_ms = 30000,
               .patience_ms = STILL_MS,
               .pause_ms = 250,
               .next = RESET},
    [RESET] = {.name = "reset",
               .title = "Resetting the VM",
               .start = vf_step_reset,
               .pays = VF_OWE_RESET,
               .budget_ms = 30000,
               .patience_ms = STILL_MS,
               .pause_ms = 250,
               .next = GO_ON},
    [GO_ON] = {.name = "go-on",
               .title = "Letting the VM go on",
               .start = vf_step_go_on,
               .pays = VF_OWE_HALT,
               .budget_ms = 30000,
               .patience_ms = STILL_MS,
               .pause_ms = 250,
               .next = TIDY},
    [TIDY] = {.name = "tidy",
              .title = "Removing nodes that nothing uses",
              .start = vf_step_drop_old_nodes,
              .budget_ms = 10000,
              .next = RECORD,
              .otherwise = RECORD},
    [RECORD] = {.name = "record",
                .title = "Writing the record",
                .start = vf_step_restored,
                .pays = VF_OWE_RECORD,
                .budget_ms = MINUTE_MS,
                .next = END},

    /* The way back; behind "flip", it leads forward. */
    [UNDO_TURN] = {.name = "undo-turn",
                   .title = "Changing the disks, again",
                   .start = vf_step_pivot,
                   .pays = VF_OWE_TURN | VF_OWE_MIRROR | VF_OWE_FILES,
                   .budget_ms = 30000},
    [UNDO_RESET] = {.name = "undo-reset",
                    .title = "Resetting the VM, again",
                    .start = vf_step_reset,
                    .pays = VF_OWE_RESET,
                    .budget_ms = 30000},
    [UNDO_MIRROR] = {.name = "undo-mirror",
                     .title = "Leaving the disks as they are",
                     .start = vf_step_undo_mirror,
                     .pays = VF_OWE_MIRROR,
                     .budget_ms = 30000,
                     .patience_ms = MINUTE_MS,
                     .pause_ms = 250},
    [UNDO_HALT] = {.name = "undo-halt",
                   .title = "Letting the VM go on",
                   .start = vf_step_go_on,
                   .pays = VF_OWE_HALT,
                   .budget_ms = 30000,
                   .patience_ms = MINUTE_MS,
                   .pause_ms = 250},
    [UNDO_FILES] = {.name = "undo-files",
                    .title = "Removing what was prepared",
                    .start = vf_step_undo_files,
                    .pays = VF_OWE_FILES,
                    .budget_ms = MINUTE_MS,
                    .patience_ms = 5000,
                    .pause_ms = 250},
    [UNDO_RECORD] = {.name = "undo-record",
                     .title = "Closing the journal",
                     .start = close_up,
                     .pays = VF_OWE_RECORD,
                     .budget_ms = MINUTE_MS},
};

/* A name that is turned binds all the rest. A VM goes on with the disks that it had, or with the
 * others and reset. */
static const struct vf_undo undos[] = {
    {VF_OWE_TURN, UNDO_TURN, 0},
    {VF_OWE_RESET, UNDO_RESET, VF_OWE_TURN},
    {VF_OWE_MIRROR, UNDO_MIRROR, VF_OWE_TURN},
    {VF_OWE_HALT, UNDO_HALT, VF_OWE_TURN | VF_OWE_RESET},
    {VF_OWE_FILES, UNDO_FILES, VF_OWE_TURN | VF_OWE_MIRROR},
    {VF_OWE_RECORD, UNDO_RECORD, 0},
};

const struct vf_table vf_restore_table = {
    .operation = "restore",
    .steps = steps,
    .step_count = STEP_COUNT,
    .undos = undos,
    .undo_count = sizeof undos / sizeof *undos,
    .first = CONNECT,
};

void
vf_restore_describe(struct vf_flow *flow)
{
    struct json_object *disks = vf_json_new_array();
    bool change = false;

    flow->document_json = vf_json_strings("vm", flow->vm.name, "name", flow->snapshot_name, "kept",
                                          flow->restore.restored ? flow->restore.keep : NULL, NULL);
    for (size_t i = 0; flow->restore.turned && i < flow->cut_count; i++) {
        const struct vf_cut *cut = &flow->cuts[i];
        const char *current = cut->naming == VF_NAMING_FLIP ? cut->names.top : cut->names.overlay;

        change |= cut->naming == VF_NAMING_NEW_FILE;
        vf_json_append(disks, vf_json_strings("name", cut->name, "current", current, "image",
                                              cut->below, NULL));
    }
    vf_json_add_bool(flow->document_json, "online", flow->engine.conditions & VF_IF_ONLINE);
    vf_json_add_bool(flow->document_json, "launcherMustChange", change);
    vf_json_add(flow->document_json, "disks", disks);
    vf_json_add(flow->document_json, "warnings", json_object_get(flow->warnings));
}

void
vf_restore_prepare(struct vf_flow *flow)
{
    flow->any_class = true;
    flow->restore.snapshot = vf_record_load(&flow->vm, flow->snapshot_name, &flow->error);
    if (!flow->restore.snapshot || vf_json_bool(flow->restore.snapshot, "readyToUse", false))
        return;
    vf_note(flow, VMFROST_FAILED, "the snapshot has no content that could be restored (%s)",
            vf_json_string(flow->restore.snapshot, "phase"));
    vf_advise(flow, "see `vmfrost show %s@%s`", flow->vm.name, flow->snapshot_name);
}
