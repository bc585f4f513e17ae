/* SPDX-License-Identifier: MIT
 *
 * A VM that is not running: QEMU's block layer is had from a qemu-storage-daemon, so that the same
 * steps work, and QEMU's own locks on the images keep everybody else out.
 *
 * Guarantees: a VM counts as stopped only if nobody listens on its socket, no QEMU of this host
 * has one of its images open, and the daemon got the locks of all of them; they are held until the
 * operation's names are turned. Which images are the VM's is known from its settings, or from the
 * last time that it was seen.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "flows/steps.h"
#include "store/disks.h"
#include "util/cleanup.h"
#include "util/json.h"
#include "util/mem.h"
#include "util/text.h"
#include "vm/qcow2.h"
#include "vm/tree.h"
#include "wire/dial.h"

/* Reaching the VM, whether it runs or not. */

/* Not: somebody does, but does not answer, or may not be asked. */
static bool
nobody_listens(const char *address)
{
    int fd, error;

    if (vf_starts_with(address, "tcp:"))
        return false;
    error = vf_dial(address, &fd);
    if (fd >= 0)
        close(fd);
    return error == ENOENT || error == ECONNREFUSED;
}

static bool
is_eligible(struct json_object *known)
{
    return vf_json_bool(known, "eligible", false);
}

/* A QEMU of this host that has the image open, or 0. */
static pid_t
find_user(struct json_object *qemus, struct vf_inode inode)
{
    for (size_t i = 0; i < vf_json_length(qemus); i++) {
        struct vf_opened opened;
        int64_t pid = 0;

        if (vf_json_int(vf_json_at(qemus, i), "pid", &pid) &&
            vf_process_opened((pid_t)pid, inode, &opened) &&
            (opened.read_only || opened.read_write))
            return (pid_t)pid;
    }
    return 0;
}

static bool
runs_elsewhere(struct vf_flow *flow)
{
    VF_AUTO_JSON struct json_object *qemus = vf_process_find_qemus();
    struct json_object *disks = vf_json_array(flow->known_disks, "disks");

    for (size_t i = 0; i < vf_json_length(disks); i++) {
        const char *file = vf_json_string(vf_json_at(disks, i), "file");
        struct stat about;

        if (!is_eligible(vf_json_at(disks, i)) || !file || stat(file, &about) < 0)
            continue;
        pid_t pid = find_user(qemus, (struct vf_inode){about.st_dev, about.st_ino});

        if (!pid)
            continue;
        vf_note(flow, VMFROST_UNREACHABLE,
                "QEMU (pid %d) has %s open, but nobody listens on %s: the VM runs where it cannot "
                "be reached",
                (int)pid, file, flow->vm.qmp);
        vf_advise(flow, "find its socket with `vmfrost discover`, or stop it first");
        return true;
    }
    return false;
}

/* What went wrong with a daemon that stands in for a VM is that the VM does not run. */
static bool
stands_in(const struct vf_flow *flow, const struct vf_daemon *daemon)
{
    return daemon == &flow->daemon && !flow->using;
}

static void
on_attached(void *data, const struct vf_reply *reply)
{
    struct vf_flow *flow = data;

    if (reply->outcome != VF_OK) {
        bool instead = stands_in(flow, flow->attached);
        char words[VF_WORDS_SIZE];

        vf_daemon_words(flow->attached, words);
        vf_refuse(flow, instead ? VMFROST_UNREACHABLE : VMFROST_FAILED, "%s%s",
                  instead ? "the VM is not running, and " : "", *words ? words : reply->words);
        return;
    }
    flow->qemu = vf_process_of(flow->attached->pid);
    flow->on_attached(flow, reply);
}

bool
vf_daemon_launch(struct vf_flow *flow, struct vf_daemon *daemon)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (vf_daemon_start(daemon, &flow->log, &error))
        return true;
    if (stands_in(flow, daemon))
        vf_prefix(&error, "the VM is not running");
    vf_note_error(flow, &error);
    vf_end(flow, VF_REFUSED);
    return false;
}

void
vf_daemon_attach(struct vf_flow *flow, struct vf_daemon *daemon, vf_flow_fn *fn)
{
    flow->attached = daemon;
    flow->on_attached = fn;
    vf_qmp_attach(flow->qmp, vf_daemon_take_monitor(daemon), daemon->pid, VF_DAEMON_NAME,
                  on_attached, flow);
}

static void
on_instead(struct vf_flow *flow, const struct vf_reply *reply)
{
    vf_note_version(flow, reply->value);
    flow->engine.conditions |= VF_IF_STOPPED;
    vf_end(flow, VF_OK);
}

static size_t
count_eligible(const struct vf_flow *flow)
{
    struct json_object *disks = vf_json_array(flow->known_disks, "disks");
    size_t count = 0;

    for (size_t i = 0; i < vf_json_length(disks); i++)
        count += is_eligible(vf_json_at(disks, i));
    return count;
}

bool
vf_seems_stopped(struct vf_flow *flow)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};

    if (!nobody_listens(flow->vm.qmp))
        return false;
    json_object_put(flow->known_disks);
    flow->known_disks = vf_disks_known(&flow->vm, &ignored);
    return flow->known_disks && !runs_elsewhere(flow);
}

bool
vf_go_offline(struct vf_flow *flow, const char *words)
{
    struct vmfrost_error error = {.code = VMFROST_OK};

    if (!nobody_listens(flow->vm.qmp))
        return false;
    json_object_put(flow->known_disks);
    flow->known_disks = vf_disks_known(&flow->vm, &error);
    if (vf_failed(&error)) {
        vf_note_error(flow, &error);
    } else if (!flow->known_disks) {
        vf_note(flow, VMFROST_UNREACHABLE, "%s", words);
        vf_advise(flow, "if the VM is stopped: its disks are not known, because it was never seen "
                        "running; declare them with the setting \"disks\" (vmfrost help add)");
    } else if (count_eligible(flow) == 0) {
        vf_note(flow, VMFROST_FAILED, "the VM is not running, and of its disks none is eligible");
        vf_advise(flow, "see `vmfrost status %s`", flow->vm.name);
    } else if (!runs_elsewhere(flow)) {
        if (vf_daemon_launch(flow, &flow->daemon))
            vf_daemon_attach(flow, &flow->daemon, on_instead);
        return true;
    }
    vf_end(flow, VF_REFUSED);
    return true;
}

bool
vf_daemon_holds(struct vf_flow *flow)
{
    if (vf_process_alive(flow->qemu))
        return true;
    vf_refuse(
        flow, VMFROST_UNREACHABLE,
        "%s has ended, and the locks of the images with it: the VM may have been started since",
        VF_DAEMON_NAME);
    return false;
}

/* The images. */

static struct json_object *
eligible_at(const struct vf_flow *flow, size_t index)
{
    struct json_object *disks = vf_json_array(flow->known_disks, "disks");

    for (size_t i = 0; i < vf_json_length(disks); i++)
        if (is_eligible(vf_json_at(disks, i)) && index-- == 0)
            return vf_json_at(disks, i);
    return NULL;
}

/* What QEMU would have answered about these disks, so that they are planned as ever. */
static struct json_object *
as_block_devices(const struct vf_flow *flow)
{
    struct json_object *devices = vf_json_new_array(), *known;

    for (size_t i = 0; (known = eligible_at(flow, i)); i++) {
        const char *name = vf_json_string(known, "name"), *device = vf_json_string(known, "device");
        VF_AUTO_FREE char *node = vf_printf("vfd%zu", i);
        struct json_object *entry =
            vf_json_strings("device", name, "qdev", device ? device : name, NULL);
        struct json_object *inserted = vf_json_strings("node-name", node, NULL);

        vf_json_add_bool(inserted, "ro", false);
        vf_json_add_bool(entry, "removable", false);
        vf_json_add(entry, "inserted", inserted);
        vf_json_append(devices, entry);
    }
    return devices;
}

static void
on_images_looked(struct vf_flow *flow)
{
    struct json_object *status = vf_json_strings("status", "shutdown", NULL);

    vf_json_add_bool(status, "running", false);
    json_object_put(flow->facts.status);
    json_object_put(flow->facts.block);
    flow->facts.status = status;
    flow->facts.block = as_block_devices(flow);
    vf_end(flow, VF_OK);
}

static void open_next(struct vf_flow *flow);

static void
on_image_opened(struct vf_flow *flow, const struct vf_reply *reply)
{
    struct json_object *known = eligible_at(flow, flow->at);

    if (reply->outcome == VF_REFUSED && vf_words_tell_of_lock(reply->words)) {
        vf_note(flow, VMFROST_UNREACHABLE,
                "disk %s: somebody else uses %s (%s), but nobody listens on %s",
                vf_json_string(known, "name"), vf_json_string(known, "file"), reply->words,
                flow->vm.qmp);
        vf_advise(flow, "is the VM running where vmfrost cannot see it, in a container or with "
                        "another socket? Stop it, or give its socket with `vmfrost add`");
        vf_end(flow, VF_REFUSED);
        return;
    }
    if (!vf_expect(flow, reply, "disk %s: cannot open %s", vf_json_string(known, "name"),
                   vf_json_string(known, "file")))
        return;
    flow->at++;
    open_next(flow);
}

struct json_object *
vf_image_options(const char *file, const char *format, const char *node)
{
    struct stat about;
    bool device = stat(file, &about) == 0 && S_ISBLK(about.st_mode);
    struct json_object *options = vf_json_strings("driver", format, "node-name", node, NULL);

    vf_json_add(options, "file",
                vf_json_strings("driver", device ? "host_device" : "file", "filename", file, NULL));
    return options;
}

bool
vf_can_be_opened(struct vf_flow *flow, const char *disk, const char *file, const char *format)
{
    VF_AUTO_FREE char *trouble = vf_chain_trouble(file, format);

    if (!trouble)
        return true;
    vf_note(flow, VMFROST_FAILED, "disk %s: %s", disk, trouble);
    vf_advise(flow, "put that right first: see `vmfrost verify %s` and `vmfrost status %s`",
              flow->vm.name, flow->vm.name);
    return false;
}

/* By the name by which the launcher opens it, as long as that is a name of the image: what is
 * relative in its header is looked for beside it. */
static const char *
name_to_open(struct json_object *known, const char *file)
{
    const char *link = vf_json_string(known, "link");
    struct stat linked, about;

    return link && stat(link, &linked) == 0 && stat(file, &about) == 0 &&
                   linked.st_ino == about.st_ino && linked.st_dev == about.st_dev
               ? link
               : file;
}

/* What is declared raw is opened as that, whatever it is: the guest of a raw disk could write the
 * header of another format. But here a person may be mistaken, and the VM would see the image of an
 * image. */
static bool
is_as_declared(struct vf_flow *flow, struct json_object *known, const char *file)
{
    struct vmfrost_error ignored = {.code = VMFROST_OK};
    struct vf_qcow2 image;

    if (!vf_json_bool(flow->known_disks, "declared", false) ||
        strcmp(vf_json_string(known, "format"), "raw") != 0 ||
        !vf_qcow2_read(file, &image, &ignored))
        return true;
    vf_qcow2_release(&image);
    vf_note(flow, VMFROST_FAILED,
            "disk %s: it is declared as raw, but %s has the header of a qcow2 image",
            vf_json_string(known, "name"), file);
    vf_advise(flow,
              "put that right in the setting \"disks\", or remove the setting and let vmfrost "
              "see the VM running (vmfrost status)");
    return false;
}

static void
open_next(struct vf_flow *flow)
{
    struct json_object *known = eligible_at(flow, flow->at);
    const char *file = vf_json_string(known, "file"), *format = vf_json_string(known, "format");

    if (!known) {
        vf_look_again(flow, on_images_looked);
        return;
    }
    if (!file || *file != '/' || !format) {
        vf_refuse(flow, VMFROST_FAILED,
                  "disk %s: %s is no file, and can only be reached while the VM runs",
                  vf_json_string(known, "name"), file ? file : "its image");
        return;
    }
    const char *to_open = name_to_open(known, file);

    if (!vf_can_be_opened(flow, vf_json_string(known, "name"), to_open, format) ||
        !is_as_declared(flow, known, file)) {
        vf_end(flow, VF_REFUSED);
        return;
    }
    VF_AUTO_FREE char *node = vf_printf("vfd%zu", flow->at);
    struct json_object *options = vf_image_options(to_open, format, node);

    /* Whoever only looks does not keep a VM from being started meanwhile: even a reader's locks
     * would. */
    if (!flow->changes) {
        vf_json_add_bool(options, "read-only", true);
        vf_json_add_string(vf_json_object(options, "file"), "locking", "off");
    }
    vf_ask(flow, "blockdev-add", options, on_image_opened);
}

/* Opens all images of a stopped VM for writing, with what they build on. */
void
vf_look_offline(struct vf_flow *flow)
{
    if (!flow->facts.jobs)
        flow->facts.jobs = vf_json_new_array();
    if (!flow->facts.block_jobs)
        flow->facts.block_jobs = vf_json_new_array();
    flow->at = 0;
    open_next(flow);
}

bool
vf_like(int fd, const char *model, bool *same_r)
{
    struct stat about, made;

    *same_r = false;
    if (stat(model, &about) < 0)
        return false;
    /* Only root may give a file away, but everybody to a group of his. */
    if ((geteuid() == 0 && fchown(fd, about.st_uid, about.st_gid) < 0) ||
        (geteuid() != 0 && fchown(fd, (uid_t)-1, about.st_gid) < 0 && errno != EPERM) ||
        fchmod(fd, about.st_mode & 0666) < 0 || fstat(fd, &made) < 0)
        return false;
    *same_r = made.st_uid == about.st_uid && made.st_gid == about.st_gid;
    return true;
}
