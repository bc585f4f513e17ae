#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Storage classes: disks that are left out, folders and options of overlays, and room for them."""

import json
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (MIB, SIZE, LabError, Qemu, Tap, blockdev, drive, image_info, image_ok, lab,
                  make_image, run, small_folder, wait_until)


def storage(vm, *words):
    """The command "storage", which has to succeed."""
    done = lab.vmfrost("storage", *words, state_dir=vm.state)
    if done.code:
        raise LabError(f"storage {words}: {done.err}")
    return done.out


def volumes(out, kind, *keys):
    return {volume["name"]: tuple(volume.get(key) for key in keys) for volume in
            out.document.get("snapshotVolumes", {}).get(kind, [])}


def disks_of(out, *keys):
    return {disk["name"]: tuple(disk.get(key) for key in keys)
            for disk in out.document.get("disks", [])}


def facts(path):
    """What qemu-img says of an overlay."""
    return json.loads(run("qemu-img", "info", "-U", "--output=json", path).stdout)


def left_out(t):
    words = drive("web") + blockdev("tmp", "scratch/tmp.qcow2") + drive("plain", fmt="raw")
    vm = Qemu(words, ["web.qcow2", "plain.raw"])
    (vm.disks / "scratch").mkdir()
    os.chmod(vm.disks / "scratch", 0o777)
    make_image(vm.disks / "scratch/tmp.qcow2")
    with vm:
        storage(vm, "set", "scratch", f"match.path={vm.disks}/scratch/*", "snapshot=no")
        storage(vm, "set", "raw", "match.format=raw", "match.protocol=file", "minFree=1M")
        for verb in ("status", "check"):
            out = vm.vmfrost(verb)
            t.is_(disks_of(out, "eligible", "reason", "storageClass"),
                  {"web": (True, None, None), "tmp-dev": (False, "StorageClass", None),
                   "plain": (True, None, "raw")}, f"{verb} shows what classes make of disks")
        t.ok('"scratch"' in disks_of(out, "message")["tmp-dev"][0], "... by name")
        out = vm.vmfrost("snapshot", "@one")
        t.is_((out.code, volumes(out, "included", "storageClass"),
               volumes(out, "excluded", "reason")),
              (0, {"web": (None,), "plain": ("raw",)}, {"tmp-dev": ("StorageClass",)}),
              "a snapshot leaves the class out, and its record says so")
        t.is_(sorted(entry.name for entry in (vm.disks / "scratch").iterdir()), ["tmp.qcow2"],
              "... nothing is made there")
        out = vm.vmfrost("snapshot", "@two", "--include", "tmp-dev")
        t.ok(out.code == 1 and "tmp-dev cannot be included: its storage class" in out.error,
             "... nor can it be included")
        # The next overlay is made on the raw image's overlay, which is qcow2.
        vm.qmp("drive-backup", device=vm.root("tmp")["node-name"], job_id="copy", sync="full",
               target=str(vm.disks / "copy.qcow2"), speed=1)
        out = vm.vmfrost("snapshot", "@two")
        t.is_(out.code, 0, "a job on a disk that is left out does not matter")
        vm.qmp("job-cancel", id="copy")
        wait_until(lambda: not vm.jobs(), what="the end of the job")

        path = vm.state / "storage.json"
        good = path.read_text()
        path.write_text(good.replace("snapshot", "snapshots"))
        for verb in ("check", "snapshot"):
            out = vm.vmfrost(verb, "@three")
            t.ok(out.code == 1 and str(path) in out.error and "snapshots" in out.error,
                 f"{verb} with classes that are damaged: refused")
        out = vm.vmfrost("status")
        t.ok(out.code == 0 and len(disks_of(out)) == 3, "... status shows the disks all the same")
        vm.delete("two")
        t.ok(True, "... and a snapshot can be deleted")


def restored(t):
    """What is in a snapshot can be restored, whatever its class says by now; into an overlay that is
    made as the class wants it."""
    with Qemu(drive("web")) as vm:
        vm.write("web", 1)
        vm.take("one")
        vm.write("web", 2)
        storage(vm, "set", "any", "snapshot=no", "extendedL2=yes", "preallocation=metadata")
        t.is_(vm.vmfrost("check").code, 1, "a class leaves out all disks")
        out = vm.vmfrost("restore", "@one", "--reset")
        t.is_((out.code, out.error, vm.sees("web", 1)), (0, "", [1]),
              "... and a snapshot of before can be restored")
        made = facts(vm.disks / "web.qcow2")
        t.ok(made["format-specific"]["data"]["extended-l2"], "... as the class wants it")


def folders(t):
    """A class's folder is for its disks; the VM's for all others."""
    words = drive("a", fmt="raw") + drive("b", "other/b.raw", fmt="raw") + drive("web")
    vm = Qemu(words, ["a.raw", "web.qcow2"])
    for name in ("other", "mine", "all"):
        (vm.disks / name).mkdir()
        os.chmod(vm.disks / name, 0o777)
    make_image(vm.disks / "other/b.raw", "raw")
    with vm:
        storage(vm, "set", "mine", "match.path=*/other/*", f"overlayFolder={vm.disks}/mine")
        vm.take("one")
        overlay, = (vm.disks / "mine").iterdir()
        t.is_((overlay.suffix, os.listdir(vm.disks / "other")), (".qcow2", ["b.raw"]),
              "overlays of a class go to its folder")
        t.is_(image_info(overlay)["backing-filename"], str(vm.disks / "other/b.raw"),
              "... and find their base")
        t.ok((vm.disks / "a+one.qcow2").exists() and (vm.disks / "web@one.qcow2").exists(),
             "... those of others stay where they are")
    with Qemu(drive("a", fmt="raw"), ["a.raw"]) as vm:
        (vm.folder / "class").mkdir()
        (vm.folder / "vm").mkdir()
        for name in ("class", "vm"):
            os.chmod(vm.folder / name, 0o777)
        lab.vmfrost("add", "known", "--qmp", vm.socket, "--set", f"overlayFolder={vm.folder}/vm",
                    state_dir=vm.state)
        storage(vm, "set", "any", f"overlayFolder={vm.folder}/class")
        vm.take("one")
        t.is_((len(os.listdir(vm.folder / "class")), os.listdir(vm.folder / "vm")), (1, []),
              "where both say something, the class counts")
        storage(vm, "set", "any", f"overlayFolder={vm.folder}/nowhere")
        out = vm.vmfrost("snapshot", "@two")
        t.is_(out.code, 0, "a folder is of no use to a disk whose names are turned")


def network(t):
    """A disk that is no file has a folder only by a class or the VM."""
    vm = Qemu([], ["web.qcow2"])
    socket = vm.run / "nbd"
    server = lab.spawn(["qemu-nbd", "-t", "-e", "4", "-k", socket, "-f", "qcow2",
                        vm.disks / "web.qcow2"])
    wait_until(socket.exists, what="qemu-nbd")
    vm.words = ["-drive", f"file=nbd+unix:///?socket={socket},format=raw,if=none,id=web",
                "-device", "virtio-blk-pci,drive=web,id=web-dev"]
    with vm:
        t.is_(vm.vmfrost("check").code, 1, "a disk that is no file has no folder")
        storage(vm, "set", "net", "match.protocol=nbd", f"overlayFolder={vm.folder}")
        record = vm.take("one")
        volume, = record["snapshotVolumes"]["included"]
        t.is_((os.path.dirname(volume["current"]), volume["storageClass"]),
              (str(vm.folder), "net"), "... but by its class, which tells by the protocol")
    lab._end(server)  # pylint: disable=protected-access


def options(t):
    """What a class says of overlays is what they are."""
    cases = [
        (["clusterSize=128k"], {"cluster-size": 131072}, False),
        (["clusterSize=4k"], {"cluster-size": 4096}, False),
        (["extendedL2=yes"], {"cluster-size": 65536}, True),
        (["extendedL2=yes", "preallocation=metadata"], {"cluster-size": 65536}, True),
        (["extendedL2=yes", "preallocation=falloc", "clusterSize=32k"], {"cluster-size": 32768},
         True),
        (["extendedL2=yes", "preallocation=full"], {"cluster-size": 65536}, True),
    ]
    for words, wanted, extended in cases:
        with Qemu(drive("web") + drive("plain", fmt="raw"), ["web.qcow2", "plain.raw"]) as vm:
            storage(vm, "set", "any", *words)
            for disk in ("web", "plain"):
                vm.write(disk, 1)
            vm.take("one")
            for disk, overlay, base in (("web", "web.qcow2", "web@one.qcow2"),
                                        ("plain", "plain+one.qcow2", "plain.raw")):
                made = facts(vm.disks / overlay)
                t.is_(({key: made[key] for key in wanted},
                       made["format-specific"]["data"]["extended-l2"]), (wanted, extended),
                      f"{' '.join(words)}: so is the overlay of {disk}")
                full = (vm.disks / overlay).stat().st_blocks * 512 >= SIZE
                t.is_(full, "preallocation=f" in " ".join(words), "... as much of it as was wanted")
                t.is_(vm.sees(disk, 2), [1, 0], "... the guest sees what it wrote before")
                vm.write(disk, 2, 1)
            t.is_((vm.sees("web", 2), vm.read("web@one.qcow2", 2)), ([1, 2], [1, 0]),
                  "... and writes above it")
            vm.kill()
            t.ok(image_ok(vm.disks / "web.qcow2", leaks=True), "... and it is sound")
        with Qemu(drive("web")) as vm:
            storage(vm, "set", "any", *words)
            vm.write("web", 1)
            vm.take("one")
            vm.write("web", 2, 1)
            vm.delete("one")
            t.is_(([name for name in vm.names() if not name.startswith(".")], vm.sees("web", 2)),
                  (["web.qcow2"], [1, 2]), "... and can be merged again")


def crashes(t):
    """A preallocated overlay without data is empty, and one with data is not: what recovery goes by
    when QEMU is gone as well."""
    for point, written in (("rehearse", False), ("flip", False), ("flip", True)):
        with Qemu(drive("web")) as vm:
            storage(vm, "set", "any", "extendedL2=yes", "preallocation=metadata")
            vm.write("web", 1)
            command = vm.stop_at(point, "snapshot", "@one")
            if written:
                vm.write("web", 2, 1)
            command.process.kill()
            command.wait()
            vm.kill()
            out = vm.vmfrost("recover")
            what = f"killed with QEMU at {point}{', data written' if written else ''}"
            t.is_((out.code, vm.journal()), (0, []), f"{what}: recovered")
            t.is_(vm.read("web.qcow2", 2), [1, 2] if written else [1, 0],
                  "... and the disk is what it was")
            vm.start()
            t.is_(vm.sees("web", 2), [1, 2] if written else [1, 0], "... for a new QEMU, too")


def room(t):
    """The folders of overlays have to have room, for all of them together."""
    words = drive("web") + drive("a", "small/a.qcow2") + drive("b", "small/b.qcow2")
    vm = Qemu(words, ["web.qcow2"])
    with small_folder(t, vm.disks / "small", 40) as small:
        if not small:
            return
        for name in ("a", "b"):
            make_image(small / f"{name}.qcow2")
        with vm:
            filler = small / "filler"

            def leave(free):
                filler.write_bytes(b"")
                filler.write_bytes(b"x" * (shutil.disk_usage(small).free - free))

            def refused(what, free, needed, *disks):
                before = vm.names(), sorted(os.listdir(small)), vm.graph()
                for verb in ("check", "snapshot"):
                    out = vm.vmfrost(verb, "@no")
                    t.ok(out.code == 1 and str(small) in out.error and
                         f"has {free} MiB free" in out.error and
                         f"to be {needed} MiB" in out.error and
                         all(disk in out.error.rpartition(":")[2] for disk in disks),
                         f"{what}, {verb}: refused: {out.error}")
                t.is_((vm.names(), sorted(os.listdir(small)), vm.graph()), before,
                      "... before anything was made")

            leave(31 * MIB)  # a disk of 16 MiB needs no more than that
            refused("too little for two", "31.0", "32.0", "a", "b")
            leave(33 * MIB)
            vm.take("one")
            t.ok(True, "with enough, it can be taken")
            leave(20 * MIB)
            out = vm.vmfrost("check", "--exclude", "a")
            t.is_(out.code, 0, "there is enough for one of them")
            storage(vm, "set", "small", f"match.path={small}/a*", "minFree=30M")
            refused("less than a class wants", "20.0", "46.0", "a", "b")
            storage(vm, "set", "small", f"match.path={small}/*", "minFree=9M")
            vm.take("two")
            t.ok(True, "a class may want less")
            storage(vm, "set", "small", "minFree=0", "extendedL2=yes", "preallocation=full")
            leave(20 * MIB)
            refused("less than is preallocated", "20.0", "32.0", "a", "b")


def endless(t):
    """A file system that does not tell how large it is."""
    vm = Qemu(drive("web"), ())
    vm.state.mkdir(exist_ok=True)
    mounted = []
    try:
        for folder in vm.disks, vm.state:
            if run("mount", "-t", "ramfs", "vmfrost-test", folder, check=False).returncode:
                t.skip("a ramfs", "it cannot be mounted here")
                return
            mounted.append(folder)
            folder.chmod(0o700)
        make_image(vm.disks / "web.qcow2")
        with vm:
            vm.write("web", 1)
            vm.take("one")
            vm.write("web", 2)
            vm.take("two")
            vm.write("web", 3)
            out = vm.vmfrost("export", "@one", str(vm.disks / "copy.qcow2"))
            t.is_((out.code, out.error), (0, ""), "a ramfs, as the root of an appliance may be: export")
            for name in "one", "two":
                out = vm.vmfrost("delete", f"@{name}")
                t.is_((out.code, out.error), (0, ""), f"... delete {name}")
            t.is_((vm.sees("web", 1), len(vm.chain("web"))), ([3], 1), "... the guest's data")
    finally:
        vm.kill()
        for folder in mounted:
            run("umount", "-l", folder)


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (left_out, restored, folders, network, options, crashes, room, endless):
            if only in part.__name__:
                part(t)


main()
