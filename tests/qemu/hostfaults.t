#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The host refuses one thing: one fsync() of many fails, one rename, link or unlink, one process or
descriptor that is to be made, one file that is to be opened.

Whichever it was: the command says so in words, the guest keeps its disks, there is a snapshot of all
disks as they were or none that is ready, and with `recover` and `delete` nothing is left over. strace
makes the faults; VMFROST_TEST_FULL=1 for each call, else the first ones and some of the later ones.
"""

import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import LabError, Qemu, Tap, blockdev, drive, lab

DISKS = ["web", "data"]
IMAGES = [f"{disk}.qcow2" for disk in DISKS]
FULL = os.environ.get("VMFROST_TEST_FULL")
CALLS = {"fsync": ("fsync,fdatasync", "EIO"), "rename": ("rename,renameat,renameat2", "EACCES"),
         "link": ("link,linkat", "EMLINK"), "unlink": ("unlink,unlinkat", "EPERM"),
         "fork": ("fork,vfork,clone,clone3", "EAGAIN"),
         "descriptor": ("socketpair,pipe2,memfd_create", "EMFILE"), "open": ("openat", "EMFILE")}
MOST = 100  # calls of one kind in one operation; a count that never ends would be a fault of this test
WRAPPER = """#!/bin/sh
exec strace -qq -o '{log}' {only} -e 'trace={calls}' -e 'signal=none' \\
    -e 'inject={calls}:error={error}:when={number}' '{program}' "$@"
"""


class Faulty:
    """$VMFROST for a while; afterwards `hit` says whether the call was made at all."""

    def __init__(self, vm, kind, number, path=None):
        """The call of that number; of those that are about `path`, if there is one."""
        self.program = lab.vmfrost_program()
        self.before = os.environ.get("VMFROST")
        self.log = vm.folder / "strace.log"
        self.wrapper = vm.folder / "faulty"
        calls, error = CALLS[kind]
        self.wrapper.write_text(WRAPPER.format(log=self.log, calls=calls, error=error,
                                               number=number, program=self.program,
                                               only=f"-P '{path}'" if path else ""))
        self.wrapper.chmod(0o755)
        self.hit = False

    def __enter__(self):
        os.environ["VMFROST"] = str(self.wrapper)
        return self

    def __exit__(self, *_):
        if self.before is None:
            del os.environ["VMFROST"]
        else:
            os.environ["VMFROST"] = self.before
        self.hit = "(INJECTED)" in self.log.read_text()


def holds(vm, when, wrong, *wanted):
    """What the guest sees, and what the names open: one of these on all disks."""
    seen = [vm.sees(disk, 2) for disk in DISKS]
    if seen[0] not in wanted or seen[1] != seen[0]:
        wrong.append(f"{when}: the guest sees {seen}")
    opened = [vm.read(f"{disk}.qcow2", 2) for disk in DISKS]
    if opened != seen:
        wrong.append(f"{when}: the names open {opened}, the guest sees {seen}")


def tidy(vm, wrong, *wanted):
    """Recovers, deletes every snapshot, and looks at what is left."""
    out = vm.vmfrost("recover")
    if out.code:
        wrong.append(f"recover: exit {out.code}: {out.error}")
    holds(vm, "recovered", wrong, *wanted)
    for record in vm.vmfrost("list").result:
        if record["phase"] == "InProgress":
            wrong.append(f"{record['name']} is {record['phase']}")
        out = vm.vmfrost("delete", f"@{record['name']}")
        if out.code:
            wrong.append(f"delete @{record['name']}: exit {out.code}: {out.error}")
    holds(vm, "the end", wrong, *wanted)
    shown = [name for name in vm.names() if not name.startswith(".")]
    if shown != sorted(IMAGES) or vm.journal() or vm.jobs():
        wrong.append(f"the end: {vm.names()} {vm.journal()} {vm.jobs()}")


def whole(vm, wrong):
    """A snapshot that is ready has all disks, each as it was."""
    for record in vm.vmfrost("list").result:
        if record["readyToUse"] and record["name"] == "one":
            found = [vm.read(f"{disk}@one.qcow2", 2) for disk in DISKS]
            if found != [[1, 0], [1, 0]]:
                wrong.append(f"@one has {found}")


def prepared(vm, names):
    """Disks with [1, 0]; if there are to be snapshots, [1, 2] since the first of them."""
    for disk in DISKS:
        vm.write(disk, 1, 0)
        vm.write(disk, 0, 1)
    for name in names:
        vm.take(name)
        for disk in DISKS:
            vm.write(disk, 2, 1)


OPERATIONS = (
    ("snapshot", ("@one",), (), ([1, 0],)),
    ("delete", ("@one",), ("one",), ([1, 2],)),
    ("delete", ("@one",), ("one", "two"), ([1, 2],)),
    ("restore", ("@one", "--reset", "--keep-name", "kept"), ("one",), ([1, 0], [1, 2])),
)


def numbers(kind):
    if kind == "open":  # the first ones are the libraries
        return range(12, MOST, 1 if FULL else 6)
    if FULL:
        return range(1, MOST)
    return (1, 2, 4, 7, 11, 16) if kind == "fsync" else (1, 2, 4)


def faults(t, verb, words, names, wanted):
    for kind in CALLS:
        wrong, told = [], 0
        with Qemu(drive("web") + blockdev("data"), IMAGES) as vm:
            for number in numbers(kind):
                try:
                    prepared(vm, names)
                    with Faulty(vm, kind, number) as faulty:
                        out = vm.vmfrost(verb, *words)
                    if not faulty.hit:
                        tidy(vm, wrong, *wanted)
                        break
                    here = []
                    if out.code not in (0, 1, 3, 4, 5) or (out.code and not out.error):
                        here.append(f"exit {out.code}: {out.error} {out.err}")
                    told += out.code != 0
                    holds(vm, "at once", here, *wanted)
                    whole(vm, here)
                    tidy(vm, here, *wanted)
                    wrong += [f"{number}: {what}" for what in here]
                    if here:
                        wrong.append(f"{number}: it had said: {out.code}: {out.error}")
                except LabError as error:
                    wrong.append(f"{number}: {error}")
                    break
            else:
                if FULL and kind != "open":
                    wrong.append("it does not end")
        t.is_(wrong, [], f"{verb}, {len(names)} snapshots before: each {kind} that fails "
              f"({told} were errors)")


def unseen(t):
    """What QEMU has open cannot be looked at for once, in a restore that throws away what the disks ran on:
    when QEMU is gone, so is that."""
    wrong, hits = [], 0
    with Qemu(drive("web") + blockdev("data"), IMAGES) as vm:
        prepared(vm, ["one"])
        for number in range(1, MOST):
            vm.vmfrost("restore", "@one", "--reset", "--discard")  # QEMU knows that by hidden names
            for disk in DISKS:
                vm.write(disk, 2, 1)
            with Faulty(vm, "open", number, f"/proc/{vm.pid}/fd") as faulty:
                out = vm.vmfrost("restore", "@one", "--reset", "--discard")
            hits += faulty.hit
            here = []
            holds(vm, "at once", here, [1, 0], *[[1, 2]] * bool(out.code))
            vm.kill()
            again = vm.vmfrost("recover")
            if again.code or vm.names() != sorted(IMAGES + [f"{disk}@one.qcow2" for disk in DISKS]):
                here.append(f"QEMU is gone: {again.code} {again.error} {vm.names()}")
            wrong += [f"{number}: {what} (exit {out.code}: {out.error})" for what in here]
            vm.start()
            if not faulty.hit:
                break
    t.is_((wrong, hits > 2), ([], True), f"what QEMU has open cannot be looked at, {hits} times")


def main():
    with Tap() as t:
        if not shutil.which("strace"):
            t.skip("faults of the host", "there is no strace")
            return
        for operation in OPERATIONS:
            if os.environ.get("ONLY", operation[0]) == operation[0]:
                faults(t, *operation)
        if os.environ.get("ONLY", "unseen") == "unseen":
            unseen(t)


main()
