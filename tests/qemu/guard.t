#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The guard's flips on a real QEMU without a guest: vmfrost is killed around the cut."""

import os
import re
import signal
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import LabError, Qemu, Tap, blockdev, drive, wait_until

FLIPPED_WITHIN = 1  # seconds


def guards(vm):
    """The guards that can write to a journal of this VM."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if (entry / "comm").read_text() == "vmfrost-guard\n" and any(
                    os.readlink(fd).startswith(f"{vm.state}/") for fd in (entry / "fd").iterdir()):
                found.append(int(entry.name))
        except OSError:  # it has ended in the meantime
            continue
    return found


def states(vm):
    """What the journal of the VM tells, state by state."""
    return [state for journal in vm.journal()
            for state in re.findall(r'"state":\s*"([^"]+)"', journal.read_text())]


def live_name(vm, disk):
    """The file name, as QEMU has it, of the image that the disk's device is on."""
    root = vm.root(disk)["node-name"]
    graph = vm.qmp("x-debug-query-block-graph")
    names = {node["id"]: node["name"] for node in graph["nodes"]}
    file_node = next(names[edge["child"]] for edge in graph["edges"]
                     if names[edge["parent"]] == root and edge["name"] == "file")
    return next(node["file"] for node in vm.qmp("query-named-block-nodes")
                if node["node-name"] == file_node)


def kill_at(vm, point, *words):
    """Kill vmfrost at a point of a snapshot. "cut+" is right behind the transaction's last byte:
    QEMU may still drop it, unread, with the connection. "cut-made" is when it has not."""
    made = point == "cut-made"
    run = vm.start_vmfrost("snapshot", "@one", *words, env={
        "VMFROST_TEST_AT": "stop:cut+" if made else f"kill:{point}"})
    if made:
        wait_until(lambda: run.process.poll() is not None or len(vm.chain("web")) == 2,
                   what="the cut", interval=0.005)
        run.signal(signal.SIGKILL)
    code = run.wait().code
    if code != -signal.SIGKILL:
        raise LabError(f"it was not killed at {point}: exit {code}")


def wrong_names(vm, disks, bases, made):
    """What is wrong once the guard has done its work, with the disks cut or not."""
    wrong = []
    for disk in disks:
        top, sealed = f"{disk}.qcow2", f"{disk}@one.qcow2"
        vm.write(disk, 2, 1)
        if vm.inode(top) != vm.inode(live_name(vm, disk)):
            wrong.append(f"{top} does not lead to what QEMU writes to")
        if vm.read(top, 2) != [1, 2]:
            wrong.append(f"{top} holds {vm.read(top, 2)}")
        if (len(vm.chain(disk)) == 2) != made:
            wrong.append(f"only some disks are cut: {disk}'s chain is {vm.chain(disk)}")
        if vm.inode(sealed) != bases[disk]:
            wrong.append(f"{sealed} is not the base")
        if made and vm.read(sealed, 2) != [1, 0]:
            wrong.append(f"{sealed} holds {vm.read(sealed, 2)}")
    if ("guard-flipped" in states(vm)) != made:
        wrong.append(f"the journal has {states(vm)}")
    return wrong


def flips(t, name, words, disks, point, method):
    """Killed when the cut was asked for: within a second all names lead to the live images."""
    with Qemu(words, [f"{disk}.qcow2" for disk in disks]) as vm:
        for disk in disks:
            vm.write(disk, 1)
        bases = {disk: vm.inode(f"{disk}.qcow2") for disk in disks}
        kill_at(vm, point, "--method", method)
        wrong = []
        try:
            wait_until(lambda: not guards(vm), FLIPPED_WITHIN, "the guard's end", 0.005)
        except LabError as error:
            wrong.append(str(error))
        made = len(vm.chain(disks[0])) == 2
        if not made and point != "cut+":
            wrong.append("the disks are not cut")
        wrong += wrong_names(vm, disks, bases, made)
        t.is_(wrong, [], f"{name}, {method}, killed at {point}: " + (
            "the guard flips the names" if made else "QEMU dropped the cut, no name is flipped"))
        # What it is for: QEMU dies before anybody recovers, and the launcher opens the same names.
        vm.restart()
        t.is_([vm.sees(disk, 2) for disk in disks], [[1, 2]] * len(disks),
              "... so that a QEMU that is started again goes on from what was written last")
        out = vm.vmfrost("recover")
        t.is_((out.code, vm.journal(), [vm.sees(disk, 2) for disk in disks]),
              (0, [], [[1, 2]] * len(disks)), "... and recovery agrees")


def leaves(t, name, words, point):
    """Killed where the guard cannot know of a cut: it ends, and has touched nothing."""
    with Qemu(words) as vm:
        vm.write("web", 1)
        base = vm.inode("web.qcow2")
        kill_at(vm, point)
        wait_until(lambda: not guards(vm), 2, "the guard's end", 0.005)
        t.is_((vm.inode("web.qcow2"), "guard-flipped" in states(vm)), (base, False),
              f"{name}, killed at {point}: no name is flipped")
        vm.write("web", 2, 1)
        out = vm.vmfrost("recover")
        t.is_((out.code, vm.inode("web.qcow2") == vm.inode(live_name(vm, "web")),
               vm.read("web.qcow2", 2)), (0, True, [1, 2]),
              "... and recovery sets it right")


def main():
    disks = ["web", "data", "log"]
    with Tap() as t:
        for name, form in (("-drive", drive), ("-blockdev", blockdev)):
            words = [word for disk in disks for word in form(disk)]
            for method in ("existing", "preopened"):
                for point in ("cut+", "cut-made", "flip"):
                    flips(t, name, words, disks, point, method)
            leaves(t, name, form("web"), "cut")
        flips(t, "one disk of each kind", drive("web") + blockdev("data"), disks[:2],
              "cut-made", "existing")
        flips(t, "-drive with locking=off", drive("web", options=",file.locking=off"), disks[:1],
              "flip", "existing")
        leaves(t, "-blockdev with locking=off", blockdev("web", file_options=",locking=off"), "flip")


main()
