#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Somebody else at the same VM: a second vmfrost with a state folder of its own, so that no lock tells
of it, and a person at another monitor of QEMU's. Whatever they do in our midst, no data is lost, the
VM goes on, and whoever failed says why."""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (Qemu, Tap, blockdev, drive, finish, go_on, lab, make_image, process_state, run,
                  small_folder, wait_until)

FORMS = (drive, blockdev)
SOON = 30  # seconds; another attempt would be made for twice as long


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
    """The file system of the base is full. (One form is enough: nobody gives up for a minute.)"""
    for form in FORMS[:1]:
        vm = Vm(form("web", file="small/web.qcow2"), [])
        with small_folder(t, vm.disks / "small", 16) as small:
            if not small:
                return
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


# --- somebody works on the disks between our plan and our cut ------------------------------

def their_cut(vm):
    vm.qmp("blockdev-snapshot-sync", node_name=vm.chain("web")[0], format="qcow2",
           snapshot_file=str(vm.disks / "theirs.img"), snapshot_node_name="theirs")


def their_copy(verb):
    def begin(vm):
        vm.qmp(verb, job_id="theirs", device=vm.chain("web")[0], target=str(vm.disks / "theirs.img"),
               sync="full", format="qcow2", speed=1)
    begin.__name__ = verb
    return begin


def merge_theirs(vm):
    vm.qmp("block-commit", job_id="undo", device="theirs", base_node=vm.chain("web")[1],
           auto_dismiss=False)
    wait_until(lambda: vm.qmp("query-jobs")[0]["status"] == "ready", what="the merge of theirs")
    vm.qmp("job-complete", id="undo")
    wait_until(lambda: vm.qmp("query-jobs")[0]["status"] == "concluded", what="its end")
    vm.qmp("job-dismiss", id="undo")


def migrates(vm):
    """To somebody who takes all that comes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(vm.run / "migration"))
    listener.listen()

    def take():
        with listener, listener.accept()[0] as stream:
            while stream.recv(65536):
                pass

    threading.Thread(target=take, daemon=True).start()
    vm.qmp("migrate", uri=f"unix:{vm.run / 'migration'}")
    wait_until(lambda: vm.status() == "postmigrate", what="the end of the migration")


def before_the_cut(t):
    """Refused with the reason, and nothing of ours is left."""
    busy = "in use by block job"
    for act, step, words in ((their_cut, "rehearse", ["web", "somebody else has put an overlay"]),
                             (their_cut, "cut", ["web", "used as backing hd"]),
                             (their_copy("drive-mirror"), "rehearse", ["web", busy]),
                             (their_copy("drive-mirror"), "cut", ["web", busy]),
                             (their_copy("drive-backup"), "rehearse", ["web", "somebody else"]),
                             (migrates, "rehearse", ["postmigrate"])):
        with Vm(drive("web")) as vm:
            vm.write("web", 1)
            command = vm.stop_at(step, "snapshot", "@one")
            act(vm)
            graph = vm.graph()
            if act is not migrates:
                vm.write("web", 3, 1)
            out = go_on(command)
            wrong = [word for word in words if word not in out.error]
            if vm.graph()[1] != graph[1] or vm.sees("web", 2) != ([1, 0] if act is migrates else [1, 3]):
                wrong.append(f"the guest's disk: {vm.sees('web', 2)}")
            if [name for name in vm.names() if name not in ("web.qcow2", "theirs.img")] or vm.journal():
                wrong.append(f"left behind: {vm.names()} {vm.journal()}")
            record = vm.vmfrost("show", "@one").document
            if (record["phase"], record["readyToUse"]) != ("Failed", False):
                wrong.append(f"the record: {record['phase']}")
            t.ok(out.code == 1 and not wrong,
                 f"{act.__name__} before {step}: exit {out.code}: {out.error[-110:]} {wrong}")


# --- somebody works on the disks when ours is to be undone ------------------------------------

def undone_later(t):
    """A way back that somebody else is in, and will be: nobody waits a minute for that, and it is told
    who it is and what to do. Afterwards it is finished."""
    cancel = functools.partial(Vm.qmp, command="job-cancel", id="theirs")
    for act, words, put_right in (
            (their_copy("drive-mirror"), 'job "theirs"', cancel),
            (their_copy("drive-backup"), 'job "theirs"', cancel), (their_cut, "overlay theirs", merge_theirs),
            (migrates, "cont", functools.partial(Vm.qmp, command="cont"))):
        for way, points in ("undo", "stop:verify"), ("recovery", "stop:verify,kill:merge.stopped"):
            with Vm(drive("web")) as vm:
                vm.write("web", 1, 0, 8)
                command = vm.start_vmfrost("snapshot", "@one", env={"VMFROST_TEST_AT": points})
                wait_until(lambda: process_state(command.pid) == "T", what="its stop", interval=0.002)
                if way == "undo":
                    act(vm)
                command.signal(signal.SIGTERM)
                began = time.monotonic()
                out = go_on(command)
                if way == "recovery":
                    act(vm)
                    began = time.monotonic()
                    out = vm.vmfrost("recover")
                took = time.monotonic() - began
                wrong = []
                if out.code not in (1, 5) or words not in out.next or "vmfrost recover" not in out.next:
                    wrong.append(f"exit {out.code}: {out.error}; {out.next}")
                if took > SOON:
                    wrong.append(f"it took {took:.0f} s")
                moved = act is migrates
                if not moved:
                    vm.write("web", 3, 1)
                put_right(vm)
                wait_until(lambda: "theirs" not in vm.jobs(), what="the end of the job")
                vm.write("web", 4, 2)
                again = vm.vmfrost("recover")
                wrong += whole(vm, [1, 1 if moved else 3, 4])
                if again.document["action"] == "rolled-forward":  # nothing had been undone yet
                    vm.delete("one")
                if again.code or [name for name in vm.names() if name not in ("web.qcow2", "theirs.img")]:
                    wrong.append(f"at last: {again.code} {again.error} {vm.names()}")
                t.is_(wrong, [], f"{act.__name__}, {way}: {out.error[-110:]}; {out.next[-60:]}")


# --- two vmfrosts that do not know of each other --------------------------------------------

def put_in_order(vm):
    """Both recover and delete what they have: what is in the way of that, or left of it: sentences."""
    for _ in range(2):
        ends = [other(vm, "recover"), vm.vmfrost("recover")]
        for name, run_it in ("theirs", functools.partial(other, vm)), ("one", vm.vmfrost):
            if any(record["name"] == name for record in run_it("list").result):
                ends.append(run_it("delete", "@" + name))
    wrong = [f"{end.error}; {end.next}" for end in ends if end.code]
    left = [name for name in vm.names() if name not in ("web.qcow2", ".web.qcow2.ID")]
    return wrong + [f"left: {left}"] if left or vm.journal() else wrong


def at_the_same_time(t):
    """Another state folder, so that no lock tells. Whoever fails says so, and no data is lost."""
    for first, step, second in (("snapshot", "rehearse", "snapshot"), ("snapshot", "cut", "snapshot"),
                                ("snapshot", "flip", "snapshot"), ("snapshot", "verify", "snapshot"),
                                ("snapshot", "cut", "delete"), ("snapshot", "flip", "delete"),
                                ("delete", "merge", "snapshot"), ("delete", "merge.started", "snapshot"),
                                ("restore", "guard", "snapshot")):
        with Vm(drive("web")) as vm:
            vm.write("web", 1)
            if first != "snapshot":
                vm.take("one")
                vm.write("web", 2, 1)
            if second == "delete":
                other(vm, "snapshot", "@theirs")
            seen = vm.sees("web", 2)
            command = vm.stop_at(step, first, "@one", *(["--reset"] if first == "restore" else []))
            second_out = other(vm, second, "@theirs")
            vm.write("web", 3, 2)
            began = time.monotonic()
            out = go_on(command)
            took = time.monotonic() - began
            went_back = first == "restore" and out.code == 0
            wrong = whole(vm, [1, 0, 0] if went_back else [*seen, 3])
            if second_out.code == 0 and out.code == 0:
                wrong.append("both say that it went well")
            if out.code and not out.error or second_out.code and not second_out.error:
                wrong.append("no reason is given")
            if took > SOON:
                wrong.append(f"it took {took:.0f} s")
            if out.code == 5 and first == "snapshot":
                again = vm.vmfrost("recover")
                if again.code and not again.next:
                    wrong.append(f"recover says nothing more: {again.error}")
                wrong += whole(vm, [*seen, 3])
            # Where one joins what the other one's images build on, a person has to look.
            if second == "snapshot" and step not in ("flip", "verify"):
                wrong += put_in_order(vm)
            vm.kill()
            top = vm.read("web.qcow2", 3)
            if top != ([1, 0, 0] if went_back else [*seen, 3]):
                wrong.append(f"its launcher would start {top}")
            t.is_(wrong, [], f"{first}, at {step} somebody else's {second}: exits {out.code} and "
                  f"{second_out.code}: {out.error[-90:]}{second_out.error[-90:]}")


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (merge_is_cancelled, running_merge_is_cancelled, merge_has_no_room,
                     before_the_cut, undone_later, at_the_same_time):
            if only in part.__name__:
                part(t)


main()
