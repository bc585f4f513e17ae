#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What is refused leaves no trace, wherever it is refused, and says why in QEMU's own words."""

import os
import shutil
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (ROOT, SIZE, Qemu, Tap, as_nobody, blockdev, drive, finish, go_on, lab, make_image,
                  process_state, run, small_folder, wait_until)

DISKS = ["web", "data", "log"]
IMAGES = [f"{disk}.qcow2" for disk in DISKS]


def three(form=drive, **options):
    return [word for disk in DISKS for word in form(disk, **options)]


def three_scsi(form=drive):
    return ["-device", "virtio-scsi-pci,id=scsi0"] + three(
        form, device="scsi-hd", device_options=",bus=scsi0.0")


def picture(vm):
    """All that a refused snapshot must not change."""
    return {"graph": vm.graph(), "names": [(entry.name, entry.stat().st_ino, entry.stat().st_size)
                                           for entry in sorted(vm.disks.iterdir())],
            "jobs": vm.jobs(), "state": vm.status(), "journal": vm.journal(),
            "open": sorted((inode, sorted(modes)) for inode, modes in vm.opened().items()
                           if inode in {entry.stat().st_ino for entry in vm.disks.iterdir()})}


def changes(before, after):
    return {key: (before[key], after[key]) for key in before if before[key] != after[key]}


def refused(t, name, vm, out, before, code=1, words=(), record="Failed"):
    """One test: refused as it should be, with these words in the message, and nothing changed.
    `record`: the phase of the record that is left; None: there is none."""
    problems = changes(before, picture(vm))
    if out.code != code:
        problems["code"] = out.code
    for word in words:
        if word not in out.error:
            problems[word] = "not in the message"
    if out.result.get("snapshot") not in (None, "none"):
        problems["snapshot"] = out.result.get("snapshot")
    records = vm.vmfrost("list").result or []
    phases = [entry["phase"] for entry in records if entry["name"] == "no"]
    if phases != ([record] if record else []):
        problems["record"] = phases
    if not t.is_(problems, {}, name):
        t.diag(f"it said: {out.error} | {out.next} | {out.err.strip()}")
    for _ in phases:
        vm.vmfrost("delete", "@no")


# --- before anything is begun ----------------------------------------------

def names_of_snapshots(t):
    with Qemu(drive("web")) as vm:
        before = picture(vm)
        for name in ("a/b", "../x", "..", ".", "", ".hidden", "-dash", "a b", "a\nb", "a\x1bb",
                     "a\x7f", "ü", "x" * 65, "x" * 300, "a@b", "a,b", "a:b", "*"):
            out = vm.vmfrost("snapshot", "@" + name)
            refused(t, f"the name {name[:20]!r} ({len(name)} bytes) is a usage error", vm, out,
                    before, 2, record=None)
            if "\x1b" in out.err or "\n\n" in out.err.replace("\n   hint", ""):
                t.ok(False, "... which is told without control characters")
        out = vm.vmfrost("snapshot", "@" + "x" * 64)
        t.is_(out.code, 0, "a name of 64 letters is none")


def names_that_exist(t):
    for kind in ("file", "folder", "link"):
        with Qemu(three(), IMAGES) as vm:
            path = vm.disks / "data@no.qcow2"
            if kind == "file":
                path.write_bytes(b"somebody's own\n")
            elif kind == "folder":
                path.mkdir()
            else:
                path.symlink_to("/nowhere/at/all")
            before = [(entry.name, entry.lstat().st_ino) for entry in sorted(vm.disks.iterdir())]
            graph = vm.graph()
            for verb in ("check", "snapshot"):
                out = vm.vmfrost(verb, "@no")
                t.ok(out.code == 1 and "disk data" in out.error and
                     "data@no.qcow2 exists already" in out.error and
                     (vm.graph(), [(entry.name, entry.lstat().st_ino)
                                   for entry in sorted(vm.disks.iterdir())]) == (graph, before)
                     and (kind != "file" or path.read_bytes() == b"somebody's own\n"),
                     f"data@no.qcow2 is a {kind}: {verb} is refused, and it is left alone")
    with Qemu(drive("web")) as vm:
        vm.take("no")
        before = picture(vm)
        refused(t, "a snapshot of that name exists", vm, vm.vmfrost("snapshot", "@no"), before,
                words=["exists already"], record="Succeeded")


def excluded(t):
    with Qemu(three(), IMAGES) as vm:
        before = picture(vm)
        out = vm.vmfrost("snapshot", "@no", "--exclude", "nope")
        refused(t, "--exclude of an unknown disk is a usage error", vm, out, before, 2,
                ['"nope"'], None)
        t.ok(all(disk in out.next for disk in DISKS), "... and the hint lists the disks")
        out = vm.vmfrost("snapshot", "@no", *[word for disk in DISKS
                                              for word in ("--exclude", disk)])
        refused(t, "all disks excluded: refused, with each one", vm, out, before, 1, DISKS, None)
        vm.take("one", "--exclude", "data")
        t.is_(vm.names(), [".log.qcow2.ID", ".web.qcow2.ID", "data.qcow2", "log.qcow2",
                           "log@one.qcow2", "web.qcow2", "web@one.qcow2"],
              "an excluded disk is left alone")


def migrate(vm):
    """To somebody who takes all that comes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(vm.run / "migration"))
    listener.listen()
    vm.qmp("migrate", uri=f"unix:{vm.run / 'migration'}")

    def take():
        with listener, listener.accept()[0] as stream:
            while stream.recv(65536):
                pass

    threading.Thread(target=take, daemon=True).start()


def run_states(t):
    with Qemu(drive("web") + ["-incoming", "defer"]) as vm:
        before = picture(vm)
        refused(t, "an incoming migration is waited for", vm, vm.vmfrost("snapshot", "@no"), before,
                words=["inmigrate"], record=None)
    with Qemu(drive("web") + ["-no-reboot", "-no-shutdown"]) as vm:
        vm.qmp("system_reset")
        wait_until(lambda: vm.status() == "shutdown", what="the shutdown")
        vm.take("one")
        vm.delete("one")
        t.is_((vm.names(), vm.status()), (["web.qcow2"], "shutdown"),
              "a VM that has shut down, with QEMU still there, can be snapshotted")
    memory = ROOT / "memory"
    memory.write_bytes(os.urandom(1 << 20))
    with Qemu(drive("web") + ["-device", f"loader,file={memory},addr=0x400000,force-raw=on"]) as vm:
        vm.qmp("migrate-set-parameters", max_bandwidth=1000)
        migrate(vm)
        wait_until(lambda: vm.qmp("query-migrate").get("status") == "active", what="its begin")
        before = picture(vm)
        refused(t, "an outgoing migration is running", vm, vm.vmfrost("snapshot", "@no"), before,
                words=["migrat"], record=None)
        vm.qmp("migrate_cancel")
        wait_until(lambda: vm.qmp("query-migrate")["status"] == "cancelled", what="its end")
        vm.take("one")
        t.ok(True, "... and when it is cancelled, a snapshot can be taken")
    with Qemu(drive("web")) as vm:
        migrate(vm)
        wait_until(lambda: vm.status() == "postmigrate", what="the end of the migration")
        before = picture(vm)
        refused(t, "the VM has moved away", vm, vm.vmfrost("snapshot", "@no"), before,
                words=["postmigrate"], record=None)


def write_by_ide(lba):
    """A firmware that writes one sector to the first IDE disk, and halts."""
    code = bytes.fromhex("fa baf601b0e0ee baf201b001ee") + bytes.fromhex("baf301b0") + \
        bytes([lba & 255]) + b"\xee\x42\xb0" + bytes([lba >> 8 & 255]) + b"\xee\x42\xb0" + \
        bytes([lba >> 16]) + b"\xee" + \
        bytes.fromhex("baf701b030ee ec a808 74fb baf001 b90001 b85a5a ef e2fd f4 ebfd")
    image = bytearray(b"\xf4" * 65536)
    image[0xe000:0xe000 + len(code)] = code
    image[0xfff0:0xfff3] = b"\xe9" + (0xe000 - 0xfff3 & 0xffff).to_bytes(2, "little")
    path = ROOT / "ide.bin"
    path.write_bytes(image)
    return path


def io_error(t):
    """The guest's write fails, QEMU stops the VM: a snapshot can still be taken."""
    options = {"driver": "qcow2", "node-name": "web",
               "file": {"driver": "blkdebug", "image": {"driver": "file",
                                                        "filename": "web.qcow2"},
                        "inject-error": [{"event": "write_aio", "errno": 5, "once": True,
                                          "immediately": True}]}}
    words = ["-machine", "pc", "-bios", str(write_by_ide(64)),
             "-blockdev", lab.json.dumps(options),
             "-device", "ide-hd,bus=ide.0,drive=web,id=web-dev,werror=stop"]
    with Qemu(words, running=False) as vm:
        vm.qmp("cont")
        wait_until(lambda: vm.status() == "io-error", 20, "the I/O error")
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code == 0 and "Paused" in out.document["indications"],
             f"a VM that an I/O error stopped can be snapshotted ({out.error})")
        t.is_(vm.status(), "io-error", "... and stays stopped")


# --- jobs --------------------------------------------------------------------

def start_job(vm, node, job="somebodys"):
    vm.qmp("blockdev-add", driver="null-co", node_name="null", size=SIZE)
    vm.qmp("blockdev-mirror", job_id=job, device=node, target="null", sync="full", speed=1)


def end_job(vm, job="somebodys"):
    vm.qmp("job-cancel", id=job)
    wait_until(lambda: job not in vm.jobs(), what="the end of the job")
    vm.qmp("blockdev-del", node_name="null")


def jobs(t):
    with Qemu(three(), IMAGES) as vm:
        for kind in ("mirror", "backup"):
            node = vm.root("data")["node-name"]
            if kind == "mirror":
                start_job(vm, node)
            else:
                vm.qmp("blockdev-add", driver="null-co", node_name="null", size=SIZE)
                vm.qmp("blockdev-backup", job_id="somebodys", device=node, target="null",
                       sync="full", speed=1)
            before = picture(vm)
            refused(t, f"a {kind} job on the second of three disks", vm,
                    vm.vmfrost("snapshot", "@no"), before, words=["somebodys", "disk data"],
                    record=None)
            out = vm.vmfrost("check")
            t.ok(out.code == 1 and "somebodys" in out.error, "... and check says the same")
            out = vm.vmfrost("snapshot", "@one", "--exclude", "data")
            t.is_((out.code, out.error), (0, ""), "... the others can be taken without it")
            out = vm.vmfrost("delete", "@one")
            t.is_((out.code, out.error), (0, ""), "... and deleted")
            end_job(vm)
        vm.qmp("blockdev-add", driver="null-co", node_name="null", size=SIZE)
        vm.qmp("blockdev-mirror", job_id="over", device=vm.root("data")["node-name"],
               target="null", sync="none", auto_dismiss=False)
        vm.qmp("job-cancel", id="over")
        wait_until(lambda: vm.qmp("query-jobs")[0]["status"] == "concluded", what="its end")
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code == 0 or "job-dismiss" in out.next, "a job that is over but not dismissed: "
             + ("taken" if out.code == 0 else "refused, with the hint to dismiss it"))
        vm.qmp("job-dismiss", id="over")
    stream(t)
    with Qemu(three(), IMAGES) as vm:
        vm.take("one")
        start_job(vm, vm.root("data")["node-name"])
        before = picture(vm)
        out = vm.vmfrost("delete", "@one")
        t.ok(out.code == 1 and "data" in out.error and not changes(before, picture(vm)),
             "deletion with somebody's job on the second disk: refused, nothing changed")
        t.is_(vm.vmfrost("list").result[0]["phase"], "Succeeded", "... the record is as it was")
        end_job(vm)
        out = vm.vmfrost("delete", "@one")
        t.is_((out.code, vm.names()), (0, sorted(IMAGES)), "... and without the job it is deleted")


def stream(t):
    """A stream that is not dismissed: after its end, QEMU 7.2 crashes when asked for its nodes."""
    for form in (drive, blockdev):
        with Qemu(three(form), IMAGES) as vm:
            vm.write("data", 1, count=64)
            vm.take("one")
            vm.qmp("block-stream", job_id="somebodys", device=vm.root("data")["node-name"], speed=1,
                   auto_dismiss=False)
            out = vm.vmfrost("snapshot", "@no")
            t.ok(out.code == 1 and "somebodys (stream, running)" in out.error,
                 f"a stream that could end at any time: refused ({out.error})")
            vm.qmp("block-job-set-speed", device="somebodys", speed=0)
            wait_until(lambda: vm.qmp("query-jobs")[0]["status"] == "concluded", what="its end")
            out = vm.vmfrost("status")
            t.ok(out.code == 0 and "somebodys (stream, concluded)" in str(out.document["warnings"])
                 and vm.process.poll() is None, "after its end: status says so, and QEMU lives")
            for words in (["snapshot", "@no"], ["check"], ["delete", "@one"]):
                out = vm.vmfrost(*words)
                t.ok(out.code == 1 and "somebodys (stream, concluded)" in out.error
                     and "job-dismiss" in out.next and vm.process.poll() is None,
                     f"{words[0]} after its end: refused, and QEMU lives ({out.error})")
            vm.qmp("job-dismiss", id="somebodys")
            out = vm.vmfrost("check")
            t.is_((out.code, vm.process.poll()), (0, None), "after its dismissal all is well")
    with Qemu(drive("web")) as vm:
        vm.write("web", 1)
        vm.take("one")
        finish(vm.start_vmfrost("snapshot", "@two", env={"VMFROST_TEST_AT": "kill:rehearse"}))
        vm.qmp("block-stream", job_id="vfm00000000-g0", device=vm.root("web")["node-name"],
               auto_finalize=False, auto_dismiss=False)
        wait_until(lambda: vm.qmp("query-jobs")[0]["status"] == "pending", what="its end")
        vm.qmp("job-cancel", id="vfm00000000-g0")
        wait_until(lambda: vm.qmp("query-jobs")[0]["status"] == "concluded", what="its end")
        out = vm.vmfrost("recover")
        t.is_((out.code, out.error, vm.jobs(), vm.process.poll()), (0, "", [], None),
              "a stream that a killed vmfrost left behind: recovery dismisses it, and QEMU lives")


# --- at the overlays and the rehearsal --------------------------------------

def no_permission(t):
    """The second disk's folder is not QEMU's to write to."""
    if os.geteuid() != 0:
        t.skip("a QEMU of another user", "only root can start it")
        return
    words = drive("web") + drive("data", file="closed/data.qcow2") + drive("log")
    vm = Qemu(words + as_nobody(), ["web.qcow2", "log.qcow2"])
    (vm.disks / "closed").mkdir(mode=0o755)
    make_image(vm.disks / "closed" / "data.qcow2")
    with vm:
        before = picture(vm)
        for method in ("existing", "preopened"):
            refused(t, f"QEMU may not write to the second disk's folder, {method}", vm,
                    vm.vmfrost("snapshot", "@no", "--method", method), before,
                    words=["disk data", "Permission denied"])
            t.is_(sorted(entry.name for entry in (vm.disks / "closed").iterdir()), ["data.qcow2"],
                  "... nothing is left there")
        os.chmod(vm.disks / "closed", 0o777)
        vm.take("one")
        owner = (vm.disks / "web.qcow2").stat().st_uid
        t.ok(owner == (vm.disks / "closed" / "data.qcow2").stat().st_uid != 0,
             "with permission, the overlays belong to QEMU's user")


def full_disk(t):
    """The file system of the second disk is full."""
    vm = Qemu(drive("web") + drive("data", file="small/data.qcow2") + drive("log"),
              ["web.qcow2", "log.qcow2"])
    with small_folder(t, vm.disks / "small", 4) as small:
        if not small:
            return
        make_image(small / "data.qcow2")
        # Else it is refused before QEMU is asked: storage.t.
        lab.vmfrost("storage", "set", "any", "minFree=0", state_dir=vm.state)
        with vm:
            for left, what in ((0, "not a byte"), (8, "8 KiB, and 12 are needed,")):
                filler = small / "filler"
                filler.write_bytes(b"")
                room = shutil.disk_usage(small).free - left * 1024
                filler.write_bytes(b"x" * room)
                before = picture(vm)
                for method in ("existing", "preopened"):
                    refused(t, f"{what} left for the second overlay, {method}", vm,
                            vm.vmfrost("snapshot", "@no", "--method", method), before,
                            words=["disk data", "No space left on device"])
                    t.is_(sorted(entry.name for entry in small.iterdir()),
                          ["data.qcow2", "filler"], "... nothing is left there")
                filler.unlink()
            vm.take("one")
            t.ok(True, "with room, it can be taken")


def immutable(t):
    """The folder may not be changed (chattr +i)."""
    with Qemu(three(), IMAGES) as vm:
        if run("chattr", "+i", vm.disks, check=False).returncode:
            t.skip("an immutable folder", "chattr +i does not work here")
            return
        try:
            before = picture(vm)
            refused(t, "the folder is immutable", vm, vm.vmfrost("snapshot", "@no"), before,
                    words=["disk web"], record=None if vm.vmfrost("check").code else "Failed")
        finally:
            run("chattr", "-i", vm.disks)


def hold(vm, name):
    """Another program takes the file, with its locks; the process."""
    socket = vm.run / "nbd.sock"
    if socket.exists():
        socket.unlink()
    holder = lab.spawn(["qemu-nbd", "-r", "-t", "-k", socket, "-f", "raw", vm.disks / name],
                       stderr=lab.subprocess.DEVNULL)
    wait_until(socket.exists, what="qemu-nbd")
    return holder


def overlay_of(vm, disk):
    return next(name for name in vm.hidden()
                if name.startswith(f".{disk}.qcow2.") and not name.endswith(".next"))


def at_rehearsal(t):
    """Something happens to the second overlay between its creation and the rehearsal."""
    for attach, form in (("drive", drive), ("blockdev", blockdev)):
        with Qemu(three(form), IMAGES) as vm:
            before = picture(vm)
            command = vm.stop_at("rehearse", "snapshot", "@no")
            holder = hold(vm, overlay_of(vm, "data"))
            out = go_on(command)
            lab._end(holder)
            refused(t, f"{attach}: another process locks the second overlay", vm, out, before,
                    words=["disk data", "lock"])

            command = vm.stop_at("rehearse", "snapshot", "@no")
            name = vm.disks / overlay_of(vm, "data")
            with open(name, "r+b") as overlay:
                overlay.write(b"\0" * 512)
            refused(t, f"{attach}: the second overlay is damaged", vm, go_on(command), before,
                    words=["disk data", "qcow2"])

            command = vm.stop_at("rehearse", "snapshot", "@no")
            start_job(vm, vm.root("data")["node-name"])
            out = go_on(command)
            end_job(vm)
            refused(t, f"{attach}: a job began on the second disk", vm, out, before,
                    words=["disk data", "busy: block device is in use by block job: mirror"])

            vm.take("yes")
            vm.delete("yes")
            t.ok(not changes(before, picture(vm)), f"{attach}: and then it can be taken")


# --- at the cut -----------------------------------------------------------------

def at_cut(t):
    """Something happens to the second disk between the rehearsal and the cut."""
    for attach, form in (("drive", drive), ("blockdev", blockdev)):
        for method in ("existing", "preopened"):
            with Qemu(three_scsi(form), IMAGES) as vm:
                before = picture(vm)
                command = vm.stop_at("cut", "snapshot", "@no", "--method", method)
                start_job(vm, vm.root("data")["node-name"])
                out = go_on(command)
                end_job(vm)
                refused(t, f"{attach}, {method}: a job began on the second disk before the cut", vm,
                        out, before,
                        words=["disk data", "busy: block device is in use by block job: mirror"])
                if method == "existing":
                    command = vm.stop_at("cut", "snapshot", "@no", "--method", method)
                    holder = hold(vm, overlay_of(vm, "data"))
                    out = go_on(command)
                    lab._end(holder)
                    refused(t, f"{attach}, {method}: another process locked the second overlay "
                            "before the cut", vm, out, before, words=["lock"])
                vm.take("yes", "--method", method)
                vm.delete("yes")
                before = picture(vm)
                command = vm.stop_at("cut", "snapshot", "@no", "--method", method)
                node = vm.root("data")["node-name"]
                vm.qmp("device_del", id="data-dev")
                wait_until(lambda: all("data-dev" not in block.get("qdev", "")
                                       for block in vm.qmp("query-block")), what="the unplugging")
                if attach == "blockdev":
                    vm.qmp("blockdev-del", node_name=node)
                out = go_on(command)
                t.ok(out.code == 1 and f"node-name='{node}'" in out.error and
                     "disk data" in out.error and vm.names() == sorted(IMAGES)
                     and not vm.journal() and len(vm.chain("web")) == 1,
                     f"{attach}, {method}: the second disk was unplugged before the cut ("
                     f"{out.code} {out.error})")
                out = vm.vmfrost("snapshot", "@yes")
                t.is_((out.code, out.error), (0, ""), "... and the others can be taken then")


def after_cut(t):
    """The cut is made, but it is not what was asked for: it is merged back."""
    for attach, form in (("drive", drive), ("blockdev", blockdev)):
        for method in ("existing", "preopened"):
            with Qemu(three(form), IMAGES) as vm:
                for disk in DISKS:
                    vm.write(disk, 1)
                before = picture(vm)
                command = vm.stop_at("verify", "snapshot", "@no", "--method", method)
                for disk in DISKS:
                    vm.write(disk, 2, 1)
                vm.qmp("block_resize", node_name=vm.root("data")["node-name"], size=2 * SIZE)
                out = go_on(command)
                after = picture(vm)
                for each in (before, after):
                    each["names"] = [entry[:2] for entry in each["names"]]
                t.ok(out.code == 1 and "disk data" in out.error and "size" in out.error,
                     f"{attach}, {method}: somebody grows a disk in the middle: it has failed "
                     f"({out.error})")
                t.is_(changes(before, after), {}, "... nodes, files and names are as before")
                t.is_(([vm.sees(disk, 2) for disk in DISKS], [vm.read(name, 2) for name in IMAGES],
                       vm.root("data")["image"]["virtual-size"]),
                      ([[1, 2]] * 3, [[1, 2]] * 3, 2 * SIZE),
                      "... the guest has all it wrote, and the new size")


# --- time and signals -----------------------------------------------------------

STEPS = ("overlays", "overlays.created", "overlays.named", "rehearse", "guard", "cut", "flip",
         "verify")


def deadline(t):
    """The deadline passes, at every step: nothing is left but the record."""
    for attach, form in (("drive", drive), ("blockdev", blockdev)):
        with Qemu([*form("web"), *form("data")], IMAGES[:2]) as vm:
            vm.write("web", 1)
            before = picture(vm)
            for step in ("overlays.created", "rehearse", "cut", "flip", "verify"):
                command = vm.stop_at(step, "snapshot", "@no", "--deadline", "600ms")
                if step in ("flip", "verify"):
                    vm.write("web", 2, 1)
                time.sleep(0.65)
                out = go_on(command)
                after = picture(vm)
                after["names"] = [entry[:2] for entry in after["names"]]
                wanted = dict(before, names=[entry[:2] for entry in before["names"]])
                # After a merge, the base is read-write for its file node and its format alike.
                problem = {key: value for key, value in changes(wanted, after).items()
                           if key != "graph"}
                problem.update({"roots": 1} if len(vm.chain("web")) != 1 else {})
                t.ok(out.code == 4 and not problem and "deadline" in out.error,
                     f"{attach}: the deadline passes at {step}: exit 4, all rolled back")
                if problem or out.code != 4:
                    t.diag(f"{out.code} {out.error} {out.err} {problem}")
                record = vm.vmfrost("list").result[0]
                t.is_((record["phase"], record["readyToUse"], record["conditions"][-1]["reason"]),
                      ("Failed", False, "DeadlineExceeded"), "... its record stays")
                vm.vmfrost("delete", "@no")
            t.is_(vm.read("web.qcow2", 2), [1, 2], f"{attach}: the data is what the guest wrote")


def signals(t):
    """Ctrl-C, at every step."""
    with Qemu(drive("web") + drive("data"), IMAGES[:2]) as vm:
        for number in (signal.SIGINT, signal.SIGTERM):
            for step in STEPS:
                command = vm.stop_at(step, "snapshot", "@no")
                command.signal(number)
                out = go_on(command)
                t.ok(out.code == 1 and vm.names() == ["data.qcow2", "web.qcow2"] and
                     len(vm.chain("web")) == 1 and not vm.jobs() and not vm.journal(),
                     f"{number.name} at {step}: undone ({out.code} {out.error})")
                if out.code != 1:
                    t.diag(out)
                    vm.vmfrost("delete", "@no")
                    vm.vmfrost("delete", "@no")
                vm.vmfrost("delete", "@no")


def lost_on_the_way_back(t):
    """QEMU ends under several questions at once."""
    with Qemu(drive("web") + drive("data"), IMAGES[:2]) as vm:
        command = vm.stop_at("overlays.created,stop:undo-files", "snapshot", "@no")
        command.signal(signal.SIGINT)
        command.signal(signal.SIGCONT)
        wait_until(lambda: "undo-files" in command.output()[0] and
                   process_state(command.pid) == "T", what="the way back", interval=0.002)
        os.kill(vm.process.pid, signal.SIGSTOP)  # all that it is asked stays unanswered
        command.signal(signal.SIGCONT)
        wait_until(lambda: process_state(command.pid) == "S", what="questions", interval=0.002)
        time.sleep(0.2)
        vm.kill()
        while command.process.poll() is None:  # it stops before each try
            command.signal(signal.SIGCONT)
            time.sleep(0.02)
        out = finish(command)
        t.is_(out.code, 1, f"QEMU ends on the way back: {out.error}")
        vm.start()
        out = vm.vmfrost("recover")
        t.is_((out.code, vm.names(), vm.journal()), (0, ["data.qcow2", "web.qcow2"], []),
              f"... and recover tidies up: {out.error}")


def while_creating(t):
    """QEMU crashes when it is asked for its nodes while an image is being created."""
    with Qemu(drive("web")) as vm:
        other = vm.disks / "other.qcow2"
        other.touch()
        vm.qmp("blockdev-add", driver="file", **{"node-name": "other", "filename": str(other)})
        for verb in "status", "check":
            vm.qmp("blockdev-create", **{"job-id": "other", "options": {
                "driver": "qcow2", "file": "other", "size": 1 << 37, "preallocation": "metadata"}})
            out = vm.vmfrost(verb)
            states = [job["status"] for job in vm.qmp("query-jobs")]
            t.ok(states == ["concluded"] and vm.process.poll() is None,
                 f"{verb} waits until an image is created: {states} {out.code} {out.error}")
            vm.qmp("job-dismiss", id="other")


def two_at_once(t):
    """One changes the VM, the other is told who does."""
    with Qemu(drive("web")) as vm:
        command = vm.stop_at("rehearse", "snapshot", "@one")
        for verb, words in (("snapshot", ["@two"]), ("delete", ["@one"]), ("recover", []),
                            ("thaw", [])):
            out = vm.vmfrost(verb, *words)
            t.ok(out.code == 1 and str(command.pid) in out.error,
                 f"{verb} while another works: refused, with its process ({out.error})")
        out = vm.vmfrost("status")
        t.ok(out.code == 0 and out.document.get("holder", {}).get("pid") == command.pid,
             "status says who works on it, and does not disturb")
        out = go_on(command)
        t.is_(out.code, 0, "the first one is not disturbed")


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (names_of_snapshots, names_that_exist, excluded, run_states, io_error, jobs,
                     no_permission, full_disk, immutable, at_rehearsal, at_cut, after_cut, deadline,
                     signals, lost_on_the_way_back,
                     while_creating, two_at_once):
            if only in part.__name__:
                part(t)


main()
