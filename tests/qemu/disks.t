#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What is remembered of the disks of a VM that was running."""

import json
import os
import sys
from datetime import datetime, timezone

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import SIZE, Qemu, Tap, blockdev, drive, go_on, lab


def remembered(vm):
    """The disks in the one disks.json of its state folder by name; None: there is none."""
    found = list(vm.state.glob("vms/*/disks.json"))
    if not found:
        return None
    path, = found
    return {disk.pop("name"): disk for disk in json.loads(path.read_text())["disks"]}


def add(vm, *words):
    return lab.vmfrost("add", "known", "--qmp", vm.socket, *words, state_dir=vm.state)


def looking(t):
    words = [*drive("web"), *blockdev("plain", fmt="raw"), "-device", "ide-cd,id=cd0",
             *drive("ro", options=",readonly=on")]
    with Qemu(words, ["web.qcow2", "plain.raw", "ro.qcow2"]) as vm:
        eligible = {
            "web": {"file": str(vm.disks / "web.qcow2"), "format": "qcow2", "size": SIZE,
                    "naming": "flip", "device": "/machine/peripheral/web-dev/virtio-backend",
                    "eligible": True},
            "plain-dev": {"file": str(vm.disks / "plain.raw"), "format": "raw", "size": SIZE,
                          "naming": "new-file", "eligible": True,
                          "device": "/machine/peripheral/plain-dev/virtio-backend"}}
        for verb in ("status", "check"):
            vm.vmfrost(verb)
            t.is_(remembered(vm), None, f"{verb} of a VM without a name leaves nothing")
        add(vm)
        for verb in ("status", "check"):
            for path in vm.state.glob("vms/*/disks.json"):
                path.unlink()
            out = vm.vmfrost(verb)
            disks = remembered(vm)
            t.is_({name: disks[name] for name in eligible}, eligible,
                  f"{verb} remembers the disks of one that has one")
            t.is_({name: (disk["eligible"], disk["reason"]) for name, disk in disks.items()
                   if name not in eligible},
                  {"cd0": (False, "Empty"), "ro": (False, "ReadOnly")},
                  "... those that are left out with their reasons")
            t.is_(out.document.get("warnings"), [], "... and warns of nothing")

        path, = vm.state.glob("vms/*/disks.json")
        for change, written, what in (
                (lambda document: None, False, "what is known since a moment is not written again"),
                (lambda document: document["disks"].pop(), True, "... what has changed since is"),
                (lambda document: document.update(seen="2026-01-01T00:00:00Z"), True,
                 "... and what was seen longer ago"),
                (lambda document: document.update(seen="9999-01-01T00:00:00Z"), True,
                 "... or in the future")):
            document = json.loads(path.read_text())
            document["seen"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            change(document)
            path.write_text(json.dumps(document))
            vm.vmfrost("status")
            t.is_((path.read_text() != json.dumps(document), set(remembered(vm))),
                  (written, {"cd0", "ro", *eligible}), what)

        vm.vmfrost("status")
        before = path.read_text()
        command = vm.stop_at("guard", "snapshot", "@one", "--exclude", "plain-dev")
        t.is_(remembered(vm)["plain-dev"], eligible["plain-dev"],
              "what a snapshot leaves out by request is remembered as it is")
        path.write_text(before)
        vm.vmfrost("status")
        t.is_(path.read_text(), before, "who only looks lets the one who holds the lock tell")
        t.is_(go_on(command).code, 0, "a snapshot")
        path.write_text("{}")
        out = vm.vmfrost("status")
        t.is_(remembered(vm)["web"], eligible["web"], "a damaged file is written again")

        path.unlink()
        path.mkdir()
        out = vm.vmfrost("snapshot", "@warned", "--exclude", "plain-dev")
        t.ok(out.code == 0 and any("remembered" in warning for warning in
                                   out.document.get("warnings", [])),
             "where it cannot be written, that is a warning")
        path.rmdir()

        job = vm.qmp("drive-backup", device="web", target=str(vm.disks / "copy.qcow2"),
                     sync="full", speed=1, job_id="copy")
        vm.vmfrost("status")
        t.ok(remembered(vm) is None and job == {},
             "while a job hides what a disk is, nothing is written")


def moving(t):
    """The current state of a disk whose names cannot be turned has a new one after a snapshot."""
    with Qemu([*drive("web"), *drive("plain", fmt="raw")], ["web.qcow2", "plain.raw"]) as vm:
        vm.take("one")
        disks = remembered(vm)
        t.is_((disks["plain"]["file"], disks["plain"]["format"], disks["plain"]["naming"]),
              (str(vm.disks / "plain+one.qcow2"), "qcow2", "flip"),
              "after a snapshot, the current image is the overlay")
        t.is_(disks["web"]["file"], str(vm.disks / "web.qcow2"), "... or has its name")
        vm.vmfrost("status")
        again = remembered(vm)
        t.is_(again, disks, "... and QEMU says the same")
    with Qemu(drive("plain", fmt="raw"), ["plain.raw"]) as vm:
        out = vm.start_vmfrost("snapshot", "@one", env={"VMFROST_TEST_AT": "kill:verify"})
        out.wait()
        t.is_(remembered(vm)["plain"]["file"], str(vm.disks / "plain.raw"),
              "after a crash, what was seen before it")
        out = vm.vmfrost("recover")
        t.is_((out.code, remembered(vm)["plain"]["file"]),
              (0, str(vm.disks / "plain+one.qcow2")), "... until it is recovered")


def main():
    with Tap() as t:
        looking(t)
        moving(t)


main()
