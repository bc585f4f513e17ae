#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Deletions that are interrupted, in the cases that recover.t does not have: nodes of the launcher's,
disks whose name cannot be turned, a second disk that fails.

Whatever happened: the disk's name opens what the guest wrote last, and in the end nothing is left.
"""

import os
import re
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (LabError, Qemu, Tap, blockdev, drive, finish, image_bytes, process_state,
                  wait_until)


def killed_at(vm, point, verb, *words):
    """A command that dies at a point."""
    command = vm.start_vmfrost(verb, *words, env={"VMFROST_TEST_AT": f"kill:{point}"})
    out = finish(command)
    if out.code != -signal.SIGKILL:
        raise LabError(f"{verb} never came to {point}: exit {out.code}: {out.error} {out.err}")


def recover(vm, wrong, when, code=0):
    out = vm.vmfrost("recover")
    if out.code != code:
        wrong.append(f"{when}: recover: exit {out.code}: {out.error} {out.err}")
    return out


def records(vm):
    return [record["name"] for record in vm.vmfrost("list").result]


def left_over(vm, names):
    """What is wrong with the names in the folder; hidden links of a QEMU that runs do not count."""
    opened = vm.opened() if vm.process.poll() is None else {}
    found = [entry.name for entry in vm.disks.iterdir()
             if not (entry.name.startswith(".") and not entry.name.endswith(".next") and
                     entry.stat().st_ino in opened)]
    wrong = [] if sorted(found) == sorted(names) else [f"names: {sorted(found)}"]
    if vm.journal():
        wrong.append("there is a journal")
    if opened and vm.jobs():
        wrong.append(f"jobs: {vm.jobs()}")
    if opened and vm.status() != "running":
        wrong.append(f"the VM is {vm.status()}")
    return wrong


def deep(vm, disk="web"):
    """So much in the image that merging down is cheaper."""
    vm.write(disk, 1, 0, 16)


# --- nodes of the launcher's -------------------------------------------------------

def launchers_nodes(t):
    """QEMU was started after the snapshot, with nodes that have names: what is merged is a node of
    the launcher's, and so is its namesake in the QEMU after that."""
    for form in (blockdev, drive):
        for point in ("merge.turned", "files", "graft", "remove"):
            for again in (False, True):
                wrong = []
                with Qemu(form("web")) as vm:
                    deep(vm)
                    vm.take("one")
                    vm.restart()
                    vm.write("web", 2, 1)
                    killed_at(vm, point, "delete", "@one")
                    if again:
                        vm.restart()
                        wrong += [] if vm.sees("web", 2) == [1, 2] else [vm.sees("web", 2)]
                    recover(vm, wrong, "first")
                    if vm.sees("web", 2) != [1, 2] or vm.read("web.qcow2", 2) != [1, 2]:
                        wrong.append(f"{vm.sees('web', 2)} {vm.read('web.qcow2', 2)}")
                    vm.restart()
                    recover(vm, wrong, "restarted")
                    wrong += left_over(vm, ["web.qcow2"])
                    if vm.sees("web", 2) != [1, 2] or records(vm):
                        wrong.append(f"restarted: {vm.sees('web', 2)} {records(vm)}")
                t.is_(wrong, [], f"{form.__name__}, started since: killed at {point}"
                      + (", QEMU is started again" if again else ""))


def number_used_again(t):
    """The file system gives the number of an overlay that is gone to an image of another VM."""
    wrong = []
    with Qemu(drive("web")) as vm, Qemu(drive("other"), ["other.qcow2"]) as other:
        deep(vm)
        vm.take("one")
        vm.write("web", 2, 1)
        killed_at(vm, "graft", "delete", "@one")
        journal, = vm.journal()
        number = f'"overlayInode": {other.inode("other.qcow2")}'
        journal.write_text(re.sub(r'"overlayInode": ?\d+', number, journal.read_text()))
        record, = vm.state.glob("vms/*/records/one.json")
        record.write_text(re.sub(r'"overlayInode": ?\d+', number, record.read_text()))
        recover(vm, wrong, "first")
        wrong += left_over(vm, ["web.qcow2"])
        if vm.sees("web", 2) != [1, 2] or records(vm):
            wrong.append(f"{vm.sees('web', 2)} {records(vm)}")
    t.is_(wrong, [], "the number of an overlay that is gone is another file's by now")


# --- names that are not turned -----------------------------------------------------

RAW = ["disk.raw"]


def raw_image(vm):
    with open(vm.disks / "disk.raw", "rb") as image:
        data = image.read(2 * 65536)
    return [data[0], data[65536]]


def new_file(t):
    """A disk whose overlay is a new file: its base has its old name, is a snapshot's image by that,
    and is the current one when it is merged."""
    words = drive("disk", fmt="raw")
    for point in ("merge.pending", "merge.turned", "files", "graft", "drop", "remove"):
        for variant in ("alive", "off", "cancelled"):
            wrong = []
            if variant == "cancelled" and point not in ("merge.pending", "merge.turned"):
                continue
            with Qemu(words, RAW) as vm:
                vm.write("disk", 1, 0)
                vm.take("one")
                vm.write("disk", 2, 1)
                overlay = vm.disks / "disk+one.qcow2"
                killed_at(vm, point, "delete", "@one")
                if variant == "cancelled":
                    killed_at(vm, "stop-merge.cancelled", "recover")
                    vm.write("disk", 3, 1)
                want = [1, 3] if variant == "cancelled" else [1, 2]
                if variant != "alive":
                    vm.kill()
                recover(vm, wrong, "first")
                if variant != "alive":  # a person starts it with what is said to be current
                    current = overlay if overlay.exists() else vm.disks / "disk.raw"
                    found = image_bytes(current, 2) if overlay.exists() else raw_image(vm)
                    if found != want:
                        wrong.append(f"{current.name} has {found}")
                    if records(vm) and overlay.exists():
                        wrong.append("off: not finished")
                elif overlay.exists() or raw_image(vm) != want or records(vm):
                    wrong.append(f"{overlay.exists()} {raw_image(vm)} {records(vm)}")
                wrong += left_over(vm, [entry for entry in ("disk.raw", "disk+one.qcow2")
                                        if (vm.disks / entry).exists()])
            t.is_(wrong, [], f"a new file: killed at {point}, {variant}")


def unplugged(t):
    """The same, and the VM is started without that disk before the deletion is finished: the base is
    all that there is of it."""
    for point in ("graft", "drop"):
        wrong = []
        with Qemu(drive("web") + drive("disk", fmt="raw"), ["web.qcow2", "disk.raw"]) as vm:
            deep(vm)
            vm.write("disk", 1, 0)
            vm.take("one")
            vm.write("disk", 2, 1)
            killed_at(vm, point, "delete", "@one")
            vm.kill()
            vm.words = drive("web")
            vm.start()
            out = vm.vmfrost("recover")
            if not (vm.disks / "disk.raw").exists():
                wrong.append(f"disk.raw is gone (exit {out.code}: {out.error})")
            elif raw_image(vm) != [1, 2]:
                wrong.append(f"disk.raw: {raw_image(vm)}")
        t.is_(wrong, [], f"a new file, merged: killed at {point}, and the disk is not there any more")


# --- a second disk -------------------------------------------------------------------

def second_fails(t):
    """The first disk is merged, the second one is not: nothing of the first one is left over."""
    for form in (drive, blockdev):
        wrong = []
        with Qemu(form("web") + form("data"), ["web.qcow2", "data.qcow2"]) as vm:
            for disk in ("web", "data"):
                deep(vm, disk)
            vm.take("one")
            for disk in ("web", "data"):
                vm.write(disk, 2, 1)
            command = vm.stop_at("merge.started", "delete", "@one")
            command.signal(signal.SIGCONT)
            wait_until(lambda: process_state(command.pid) == "T" and
                       '"merged"' in vm.journal()[0].read_text(), what="the second disk",
                       interval=0.002)
            command.signal(signal.SIGINT)
            command.signal(signal.SIGCONT)
            out = finish(command)
            if out.code == 0:
                wrong.append(f"exit {out.code}")
            for disk in ("web", "data"):
                if vm.sees(disk, 2) != [1, 2] or vm.read(f"{disk}.qcow2", 2) != [1, 2]:
                    wrong.append(f"{disk}: {vm.sees(disk, 2)} {vm.read(f'{disk}.qcow2', 2)}")
            wrong += left_over(vm, ["web.qcow2", "data.qcow2", "data@one.qcow2"])
            vm.delete("one")
            wrong += left_over(vm, ["web.qcow2", "data.qcow2"])
            vm.restart()
            recover(vm, wrong, "restarted")
            wrong += left_over(vm, ["web.qcow2", "data.qcow2"])
        t.is_(wrong, [], f"{form.__name__}: stopped at its second disk")


def half_undone(t):
    """A snapshot that is called off dies at its second disk, and QEMU with it. Of the first disk nothing
    is left; of the second one what a deletion has to finish."""
    wrong = []
    with Qemu(drive("web") + drive("data"), ["web.qcow2", "data.qcow2"]) as vm:
        command = vm.start_vmfrost(
            "snapshot", "@one", env={"VMFROST_TEST_AT": "stop:verify,stop:merge.started"})

        def stops(what, mark=""):
            wait_until(lambda: process_state(command.pid) == "T" and
                       mark in vm.journal()[0].read_text(), what=what, interval=0.002)

        stops("the stop before its verification")
        for disk in ("web", "data"):
            vm.write(disk, 2, 1)
        command.signal(signal.SIGINT)
        command.signal(signal.SIGCONT)
        stops("the first disk", '"merge-flip"')
        command.signal(signal.SIGCONT)
        stops("the second disk", '"merged"')
        command.signal(signal.SIGKILL)
        finish(command)
        vm.kill()
        recover(vm, wrong, "first")
        wrong += left_over(vm, ["web.qcow2", "data.qcow2", "data@one.qcow2"])
        said = vm.vmfrost("show", "@one").result["error"]
        if "not on all disks" not in said["message"] or "delete" not in said["next"]:
            wrong.append(f"the record says {said}")
        for disk in ("web", "data"):
            if vm.read(f"{disk}.qcow2", 2) != [0, 2]:
                wrong.append(f"{disk}: {vm.read(f'{disk}.qcow2', 2)}")
        vm.start()
        vm.delete("one")
        vm.restart()
        recover(vm, wrong, "restarted")
        wrong += left_over(vm, ["web.qcow2", "data.qcow2"])
        for disk in ("web", "data"):
            if vm.sees(disk, 2) != [0, 2]:
                wrong.append(f"{disk}: {vm.sees(disk, 2)}")
    t.is_(wrong, [], "a snapshot is undone by half")


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (launchers_nodes, number_used_again, new_file, unplugged, second_fails, half_undone):
            if only in part.__name__:
                part(t)


main()
