#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Disks that are plugged in and out while the VM runs. Without a guest, SCSI and USB disks let go at
once; a virtio disk would have to be let go by its guest."""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import ROOT, Qemu, Tap, blockdev, drive, go_on, lab, make_image, wait_until

SCSI = ["-device", "virtio-scsi-pci,id=scsi0", "-device", "qemu-xhci,id=xhci"]


def plug(vm, name, device="scsi-hd", bus="scsi0.0"):
    """A disk with an image of its own, as a management tool does it."""
    image = make_image(vm.disks / f"{name}.qcow2")
    vm.qmp("blockdev-add", driver="qcow2", node_name=name,
           file={"driver": "file", "filename": str(image)})
    vm.qmp("device_add", driver=device, id=f"{name}-dev", drive=name, bus=bus)


def unplug(vm, name):
    vm.qmp("device_del", id=f"{name}-dev")
    wait_until(lambda: not any(f"{name}-dev" in block.get("qdev", "")
                               for block in vm.qmp("query-block")), what=f"{name} is unplugged")


def disks_of(out, *keys):
    return {disk["name"]: tuple(disk.get(key) for key in keys)
            for disk in out.document.get("disks", [])}


def included(out):
    return sorted(volume["name"] for volume in
                  out.document.get("snapshotVolumes", {}).get("included", []))


def disk(vm, *words):
    """The command "disk" on the VM "known"."""
    return lab.vmfrost("disk", "known", *words, state_dir=vm.state)


def left_out(t):
    """Hotplugged disks are left out, unless somebody says otherwise."""
    words = [*SCSI, *drive("web"), *blockdev("data"), *drive("cold", device="scsi-hd"),
             *drive("stick", device="usb-storage")]
    with Qemu(words, ["web.qcow2", "data.qcow2", "cold.qcow2", "stick.qcow2"]) as vm:
        plug(vm, "hs")
        plug(vm, "hu", "usb-storage", "xhci.0")
        at_start = {name: (False, True, True, None) for name in ("web", "data-dev", "cold", "stick")}
        for verb in ("status", "check"):
            out = vm.vmfrost(verb)
            t.is_(disks_of(out, "hotplugged", "persistent", "eligible", "reason"),
                  {**at_start, "hs-dev": (True, False, False, "Hotplugged"),
                   "hu-dev": (True, False, False, "Hotplugged")},
                  f"{verb} tells disks that were plugged in from those of the start")
        t.ok("--include hs-dev" in disks_of(out, "message")["hs-dev"][0],
             "... and how to take them along")
        out = vm.vmfrost("snapshot", "@one")
        t.is_((out.code, included(out)), (0, ["cold", "data-dev", "stick", "web"]),
              "a snapshot leaves them out")
        t.is_({volume["name"]: volume["reason"] for volume in
               out.document["snapshotVolumes"]["excluded"]},
              {"hs-dev": "Hotplugged", "hu-dev": "Hotplugged"}, "... and its record says why")

        out = vm.vmfrost("snapshot", "@two", "--include", "hs-dev", "--include", "hu")
        t.is_((out.code, included(out)), (0, ["cold", "data-dev", "hs-dev", "hu-dev", "stick",
                                              "web"]), "with --include they are in it")
        vm.write("hs", 7)
        t.is_((vm.read("hs@two.qcow2", 1), vm.read("hs.qcow2", 1)), ([0], [7]),
              "... as the others are")
        vm.delete("two")
        t.is_(vm.read("hs.qcow2", 1), [7], "... and can be merged again")

        before = vm.names(), vm.graph()
        for verb in ("check", "snapshot"):
            out = vm.vmfrost(verb, "@three", "--include", "nonesuch")
            t.ok(out.code == 2 and '"nonesuch"' in out.error and "hs-dev" in out.next,
                 f"{verb}: including a disk that does not exist is an error that lists the disks")
            out = vm.vmfrost(verb, "@three", "--include", "hs-dev", "--exclude", "hs-dev")
            t.ok(out.code == 1 and "disk hs-dev cannot be included" in out.error,
                 "... and so is one that is excluded as well")
        t.is_((vm.names(), vm.graph()), before, "... with nothing changed")
        out = vm.vmfrost("snapshot", "@four", "--include", "web")
        t.is_(out.code, 0, "including a disk that is in it anyway is fine")


def refused_for_another_reason(t):
    words = [*SCSI, *drive("web"), *drive("ro", options=",readonly=on"), "-device", "ide-cd,id=cd0"]
    with Qemu(words, ["web.qcow2", "ro.qcow2"]) as vm:
        image = make_image(vm.disks / "hro.qcow2")
        vm.qmp("blockdev-add", driver="qcow2", node_name="hro", read_only=True,
               file={"driver": "file", "filename": str(image)})
        vm.qmp("device_add", driver="scsi-hd", id="hro-dev", drive="hro", bus="scsi0.0")
        for name, why in (("ro", "it is read-only"), ("cd0", "no medium"),
                          ("hro-dev", "it is read-only")):
            out = vm.vmfrost("snapshot", "@one", "--include", name)
            t.ok(out.code == 1 and f"disk {name} cannot be included: {why}" in out.error,
                 f"{name} cannot be included: {out.error}")


def persistent(t):
    """The setting, and the command that changes it."""
    with Qemu([*SCSI, *drive("web")]) as vm:
        plug(vm, "hs")
        out = vm.vmfrost("disk", "hs-dev")
        t.is_(disks_of(out, "persistent", "reason"), {"hs-dev": (False, "Hotplugged")},
              "disk, of a VM without a name")
        out = vm.vmfrost("disk", "hs-dev", "--persistent", "yes")
        t.ok(out.code == 1 and "vmfrost add" in out.next, "... which has no settings to change")

        lab.vmfrost("add", "known", "--qmp", vm.socket, state_dir=vm.state)
        done = disk(vm)
        t.ok(done.code == 0 and "while running" in done.out and "at the start" in done.out,
             "disk lists all, for people")
        for words in (("nonesuch",), ("nonesuch", "--persistent", "yes")):
            done = disk(vm, *words)
            t.ok(done.code == 2 and "hs-dev" in done.err, "... but not what does not exist")
        t.is_(disk(vm, "--persistent", "yes").code, 2, "... nor nothing")
        t.is_(disk(vm, "hs-dev", "--persistent", "yes").code, 0, "a disk is made persistent")
        settings = json.loads((vm.state / "vms/known/vm.json").read_text())
        t.is_((settings["persistentDisks"], settings["qmp"]), (["hs-dev"], str(vm.socket)),
              "... in the settings")
        out = vm.vmfrost("status")
        t.is_(disks_of(out, "hotplugged", "persistent", "eligible")["hs-dev"], (True, True, True),
              "... and status knows")
        out = vm.vmfrost("snapshot", "@one")
        t.is_((out.code, included(out)), (0, ["hs-dev", "web"]), "... and a snapshot has it")
        unplug(vm, "hs")
        t.is_(disk(vm, "hs-dev", "--persistent", "yes").code, 2, "one that is gone is not there")
        t.is_(disk(vm, "hs-dev", "--persistent", "no").code, 0, "... but need not stay a setting")
        settings = json.loads((vm.state / "vms/known/vm.json").read_text())
        t.ok("persistentDisks" not in settings, "... and is none")
        vm.kill()
        done = disk(vm, "--json")
        t.is_((done.code, [found["name"] for found in json.loads(done.out)["disks"]]),
              (0, ["web"]), "of a VM that does not run, those that were seen last")


def lets_go(t):
    """A disk that is unplugged while a snapshot is taken."""
    for kind, words in (("drive", drive("data", device="scsi-hd")),
                        ("blockdev", blockdev("data", device="scsi-hd"))):
        for step in ("accept", "rehearse", "guard"):
            with Qemu([*SCSI, *drive("web"), *words], ["web.qcow2", "data.qcow2"]) as vm:
                command = vm.stop_at(step, "snapshot", "@one")
                unplug(vm, "data")
                out = go_on(command)
                name = "data" if kind == "drive" else "data-dev"
                t.ok(out.code == 1 and f"disk {name}" in out.error and "unplugged" in out.error,
                     f"{kind}, unplugged before {step}: refused: {out.error}")
                t.is_((vm.names(), vm.journal(), vm.jobs()), (["data.qcow2", "web.qcow2"], [], []),
                      "... with nothing left behind")
                out = vm.vmfrost("snapshot", "@two")
                t.is_((out.code, included(out)), (0, ["web"]), "... and the next one does without")
        for step in ("cut", "flip", "verify"):
            with Qemu([*SCSI, *drive("web"), *words], ["web.qcow2", "data.qcow2"]) as vm:
                vm.write("data", 3)
                command = vm.stop_at(step, "snapshot", "@one")
                unplug(vm, "data")
                out = go_on(command)
                if step == "cut" and kind == "drive":
                    t.ok(out.code == 1 and "disk data" in out.error and "unplugged" in out.error,
                         f"{kind}, unplugged just before the cut: refused by QEMU: {out.error}")
                    t.is_(vm.names(), ["data.qcow2", "web.qcow2"], "... with nothing left behind")
                    continue
                t.ok(out.code == 0 and any("unplugged" in warning for warning in
                                           out.document["warnings"]),
                     f"{kind}, unplugged before {step}: taken, with a warning {out.error}")
                t.is_((vm.read("data@one.qcow2", 1), vm.read("data.qcow2", 1)), ([3], [3]),
                      "... and its image is whole")


def comes(t):
    """A disk that is plugged in while a snapshot is taken."""
    for step in ("accept", "cut"):
        with Qemu([*SCSI, *drive("web")]) as vm:
            command = vm.stop_at(step, "snapshot", "@one")
            plug(vm, "late")
            out = go_on(command)
            t.ok(out.code == 0 and included(out) == ["web"] and
                 any("late-dev was plugged in" in warning for warning in out.document["warnings"]),
                 f"plugged in before {step}: not in the snapshot, and a warning says so")


def talks_badly(t):
    """An answer that makes no sense is no reason to leave a disk out."""
    with Qemu([*SCSI, *drive("web")]) as vm:
        vm.qmp("device_add", driver="scsi-cd", id="cd1", bus="scsi0.0")
        out = vm.vmfrost("check")
        t.is_(disks_of(out, "hotplugged", "reason"),
              {"web": (False, None), "cd1": (True, "Empty")},
              "a reason of its own comes before that of being hotplugged")


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (left_out, refused_for_another_reason, persistent, lets_go, comes, talks_badly):
            if only in part.__name__:
                part(t)


main()
