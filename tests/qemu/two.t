#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Somebody else at the same VM: a second vmfrost with a state folder of its own, so that no lock tells
of it, and a person at another monitor of QEMU's. Whatever they do in our midst, no data is lost, the
VM goes on, and whoever failed says why."""

import contextlib
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (ROOT, LabError, Qemu, QmpError, Tap, blockdev, drive, finish, go_on, lab,
                  make_image, process_state, run, wait_until)

FORMS = (drive, blockdev)


def other(vm, verb, *words):
    """A vmfrost that knows nothing of the first one, on another monitor."""
    return finish(lab.start_vmfrost([verb, "--qmp", vm.run / "other.sock", *words, "--json"],
                                    state_dir=vm.folder / "other"))


class Vm(Qemu):
    """With a monitor for others."""

    def __init__(self, words, *more, **options):
        super().__init__(words, *more, **options)
        self.words += ["-qmp", f"unix:{self.run / 'other.sock'},server=on,wait=off"]


def whole(vm, want, state="running"):
    """What is wrong with the VM: sentences. What its guest sees, and what its launcher would open."""
    wrong = []
    if vm.sees("web", len(want)) != want:
        wrong.append(f"the guest sees {vm.sees('web', len(want))}")
    if vm.read("web.qcow2", len(want)) != want:
        wrong.append(f"web.qcow2: {vm.read('web.qcow2', len(want))}")
    if vm.status() != state:
        wrong.append(f"the VM is {vm.status()}")
    return wrong


# --- our merge fails ----------------------------------------------------------------------

def job_of(vm):
    return next(job for job in vm.qmp("query-block-jobs") if job["device"].startswith("vfm"))


def merge_is_cancelled(t):
    """QEMU opens the base of a merge that comes to nothing again, by its name, which leads to the
    overlay by then: the guest would see the overlay over itself."""
    for form in FORMS:
        for disks in ("", ",iothread=io0"):
            for command in ("job-cancel", "block-job-cancel"):
                with Vm(["-object", "iothread,id=io0", *form("web", device_options=disks)]) as vm:
                    vm.write("web", 1)
                    vm.take("one")
                    vm.write("web", 2, 1)
                    vmfrost = vm.start_vmfrost("delete", "@one", env={
                        "VMFROST_TEST_AT": "stop:merge.started,stop:merge.pending"})
                    wait_until(lambda: process_state(vmfrost.pid) == "T", what="its stop",
                               interval=0.002)
                    vmfrost.signal(signal.SIGCONT)
                    wait_until(lambda: process_state(vmfrost.pid) == "T" and
                               job_of(vm)["status"] == "pending", what="its second stop",
                               interval=0.002)
                    if command == "job-cancel":
                        vm.qmp(command, id=job_of(vm)["device"])
                    else:
                        vm.qmp(command, device=job_of(vm)["device"], force=True)
                    wait_until(lambda: job_of(vm)["status"] == "concluded", what="the job's end")
                    out = go_on(vmfrost)
                    wrong = whole(vm, [1, 2, 0])
                    vm.write("web", 3, 2)
                    wrong += whole(vm, [1, 2, 3])
                    again = vm.vmfrost("delete", "@one")
                    wrong += whole(vm, [1, 2, 3])
                    if again.code or vm.names() != ["web.qcow2"]:
                        wrong.append(f"again: {again.code} {again.error} {vm.names()}")
                    t.is_(wrong, [], f"{form.__name__}{disks}: somebody's {command} of a merge: "
                          f"exit {out.code}: {out.error[-90:]}")


def running_merge_is_cancelled(t):
    """The same long before its end."""
    for form in FORMS:
        with Vm(form("web")) as vm:
            vm.write("web", 1, 0, 64)
            vm.take("one")
            vm.write("web", 2, 1, 48)
            vm.vmfrost("add", "slow", "--set", "copySpeed=64k")
            command = vm.start_vmfrost("delete", "@one")
            wait_until(lambda: vm.jobs() and vm.status() == "running" and '"merge-running"' in
                       vm.journal()[0].read_text(), what="the merge")
            vm.qmp("job-cancel", id=job_of(vm)["device"])
            out = finish(command)
            wrong = whole(vm, [1, 2, 2])
            vm.vmfrost("add", "slow", "--set", "copySpeed=")
            vm.delete("one")
            wrong += whole(vm, [1, 2, 2])
            t.ok(out.code != 0 and not wrong, f"{form.__name__}: a merge is cancelled in the middle: exit "
                 f"{out.code}: {out.error[-90:]} {wrong}")


def fill(path):
    """A file that takes all the room that is left."""
    with open(path, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))


def merge_has_no_room(t):
    """The file system of the base is full."""
    for form in FORMS:
        vm = Vm(form("web", file="small/web.qcow2"), [])
        small = vm.disks / "small"
        small.mkdir()
        if run("mount", "-t", "tmpfs", "-o", "size=16m", "vmfrost-test", small,
               check=False).returncode:
            t.skip("a full file system", "a tmpfs cannot be mounted here")
            return
        try:
            make_image(small / "web.qcow2")
            lab.vmfrost("storage", "set", "any", "minFree=0", state_dir=vm.state)
            with vm:
                vm.write("web", 1, 8, 72)
                vm.take("one")
                vm.write("web", 2, 1, 7)
                vm.write("web", 2, 100, 48)
                vm.vmfrost("add", "slow", "--set", "copySpeed=64k")
                command = vm.stop_at("merge.started", "delete", "@one")
                filler = small / "filler"
                fill(filler)
                out = go_on(command)
                vm.vmfrost("add", "slow", "--set", "copySpeed=")
                sees = vm.sees("web", 3)
                filler.unlink()
                vm.delete("one")
                t.ok(out.code == 1 and "No space left" in out.error and sees == [0, 2, 2] and
                     vm.sees("web", 3) == [0, 2, 2] and vm.status() == "running",
                     f"{form.__name__}: no room for a merge: {sees} {out.code} {out.error[-90:]}")
        finally:
            vm.kill()
            run("umount", small)


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (merge_is_cancelled, running_merge_is_cancelled, merge_has_no_room):
            if only in part.__name__:
                part(t)


main()
