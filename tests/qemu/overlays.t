#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Who writes the overlays of a running VM, and that they are what QEMU would have made: vmfrost, where
it can be sure that QEMU can open them; else QEMU itself."""

import json
import os
import signal
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import Qemu, Tap, as_nobody, drive, finish, image_ok, lab, make_image, run

GIB = 1 << 30
ONLY = os.environ.get("ONLY", "")  # names of parts that hold this
NOBODY, SOMEBODY = 65534, 4321
METHODS = "existing", "preopened"


def by_whom(vm, name, *words):
    """Takes a snapshot: who has made its overlays."""
    trace = vm.folder / "trace.json"
    vm.take(name, "--trace", trace)
    sent = [event["name"] for event in json.loads(trace.read_text()) if event["ph"] == "X"]
    return "QEMU" if "blockdev-create" in sent else "vmfrost"


def rights(path):
    about = path.stat()
    return about.st_uid, about.st_gid, oct(about.st_mode & 0o7777)


def is_overlay(path, **wanted):
    """What is wrong with an overlay that was just made."""
    found = json.loads(run("qemu-img", "info", "--output=json", path).stdout)
    extra = found["format-specific"]["data"]
    got = {"size": found["virtual-size"], "cluster": found["cluster-size"],
           "format": found["backing-filename-format"], "compat": extra["compat"],
           "extended": extra["extended-l2"], "refcounts": extra["refcount-bits"],
           "lazy": extra["lazy-refcounts"], "corrupt": extra["corrupt"],
           "clean": not found.get("dirty-flag"), "checked": image_ok(path)}
    want = {"size": 8 << 20, "cluster": 65536, "format": "qcow2", "compat": "1.1", "extended": False,
            "refcounts": 16, "lazy": False, "corrupt": False, "clean": True, "checked": True, **wanted}
    return {key: (got[key], value) for key, value in want.items() if got[key] != value}


def written_here(t):
    root = os.geteuid() == 0
    for method in METHODS:
        vm = Qemu(drive("web") + drive("data", fmt="raw"), ["web.qcow2", "data.raw"])
        models = vm.disks / "web.qcow2", vm.disks / "data.raw"
        for path in models:
            if root:
                os.chown(path, SOMEBODY, SOMEBODY)
            path.chmod(0o640)
        with vm:
            size = models[1].stat().st_size
            vm.write("web", 1)
            vm.write("data", 1)
            t.is_(by_whom(vm, "one", "--method", method), "vmfrost", f"{method}: vmfrost writes them")
            overlays = vm.disks / "web.qcow2", vm.disks / "data+one.qcow2"
            t.is_([rights(path) for path in overlays],
                  [(SOMEBODY, SOMEBODY, "0o640") if root else rights(models[1])] * 2,
                  "... with owner, group and mode of what they build on")
            vm.write("web", 2, 1)
            vm.write("data", 2, 1)
            t.is_((vm.sees("web", 3), vm.sees("data", 3)), ([1, 2, 0], [1, 2, 0]),
                  "... and the guest finds all in them")
            vm.kill()
            t.is_([is_overlay(overlays[0], size=size),
                   is_overlay(overlays[1], size=size, format="raw")], [{}, {}],
                  "... they are such as QEMU makes them")


def written_by_qemu(t):
    """Where vmfrost cannot know that QEMU could open its files, or cannot make such images."""
    for way, options in (
            ("preallocation",
             ("clusterSize=64k", "extendedL2=yes", "preallocation=metadata")),
            ("clusters too small for its size", ("clusterSize=512",))):
        vm = Qemu(drive("web"), [])
        make_image(vm.disks / "web.qcow2", size=GIB)
        lab.vmfrost("storage", "set", "any", *options, state_dir=vm.state)
        with vm:
            t.is_(by_whom(vm, "one"), "QEMU", f"{way}: QEMU writes it")
            vm.write("web", 3)
            vm.kill()
            t.ok(image_ok(vm.disks / "web.qcow2"), "... and it is sound")


def other_user(t):
    """A QEMU that is not root (any more)."""
    if os.geteuid() != 0:
        t.skip("a QEMU of another user", "only root can start it")
        return
    for owner, mode, who in ((0, 0o644, "QEMU"), (0, 0o666, "QEMU"), (NOBODY, 0o600, "vmfrost"),
                             (NOBODY, 0o400, "QEMU")):
        for method in METHODS:
            vm = Qemu(drive("web") + as_nobody())
            os.chown(vm.disks / "web.qcow2", owner, owner)
            (vm.disks / "web.qcow2").chmod(mode)
            with vm:
                t.is_(by_whom(vm, "one", "--method", method), who,
                      f"of user {owner}, mode {mode:o}, and QEMU of user {NOBODY}, {method}: {who}")
                vm.write("web", 2)
                t.is_(rights(vm.disks / "web.qcow2")[0], NOBODY, "... it is QEMU's")


def planted(t):
    """Somebody replaces it between two steps."""
    for method in METHODS:
        with Qemu(drive("web")) as vm:
            precious = vm.folder / "precious"
            precious.write_text("precious")
            before = set(os.listdir(vm.disks))
            command = vm.stop_at("overlays.created", "snapshot", "@new", "--method", method)
            made = [name for name in os.listdir(vm.disks) if name not in before]
            t.is_(len(made), 1, "one file is there already")
            (vm.disks / made[0]).unlink()
            (vm.disks / made[0]).symlink_to(precious)
            command.signal(signal.SIGCONT)
            out = finish(command)
            t.ok(out.code == 1 and "somebody has replaced" in out.error and "disk web" in out.error,
                 f"exit {out.code}: {out.error}; {out.next}")
            t.is_((precious.read_bytes(), len(vm.chain("web"))), (b"precious", 1),
                  "... nothing was written through the link, and nothing was cut")
            vm.vmfrost("delete", "@new")
            t.is_((set(os.listdir(vm.disks)), vm.journal()), (before, []), "... nothing is left")


def hammered(t):
    """Somebody stops the VM and lets it go on, over and over: while QEMU formats an image, that is its
    end."""
    disks = "web", "data", "log"
    with Qemu([word for disk in disks for word in drive(disk)],
              [f"{disk}.qcow2" for disk in disks]) as vm:
        done = threading.Event()
        count = 0

        def hammer():
            nonlocal count
            monitor = lab.Qmp(vm.run / "qmp2.sock")
            while not done.is_set():
                monitor.command("stop")
                monitor.command("cont")
                count += 1
            monitor.close()

        vm.hang_up()
        thread = threading.Thread(target=hammer)
        thread.start()
        wrong = []
        for number in range(12):
            out = vm.vmfrost("snapshot", f"@s{number}", "--method", METHODS[number % 2])
            if out.code:
                wrong.append(out.error)
            if vm.process.poll() is not None:
                break
        done.set()
        thread.join()
        t.is_((wrong, vm.process.poll()), ([], None), f"12 snapshots, {count} stops meanwhile")
        t.ok(count > 12, "... and there were some")


def main():
    with Tap() as t:
        for part in written_here, written_by_qemu, other_user, planted, hammered:
            if ONLY in part.__name__:
                part(t)


main()
