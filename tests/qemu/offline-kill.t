#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Snapshots of a VM that is not running, interrupted everywhere: kill -9 of vmfrost, of its storage
daemon, and the VM started meanwhile.

Whatever happens: the disks' names open what the guest wrote last; there is a snapshot of all disks as
they were, or none; in the end nothing is left over. VMFROST_TEST_FULL=1 for every combination.
"""

import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (LabError, Qemu, Tap, blockdev, drive, finish, lab, process_state, wait_until)

DISKS = ["web", "data"]
IMAGES = ["web.qcow2", "data.qcow2"]
FLOWS = lab.PROJECT / "src" / "flows"
FULL = os.environ.get("VMFROST_TEST_FULL")
STEPS = ("connect", "look", "plan", "accept", "overlays", "overlays.created", "overlays.named", "cut",
         "flip", "flip.first", "verify", "record", "record.saved", "record+")


def words_for(form):
    return [word for disk in DISKS for word in form(disk)]


def stopped(form):
    """A VM that was seen running, and is stopped: each disk begins with [1, 0]."""
    vm = Qemu(words_for(form), IMAGES)
    vm.start()
    for disk in DISKS:
        vm.write(disk, 1, 0)
    out = vm.vmfrost("snapshot", "@zero")
    if out.code == 0:
        out = vm.vmfrost("delete", "@zero")
    if out.code:
        raise LabError(f"exit {out.code}: {out.error}")
    vm.kill()
    return vm


def start(vm):
    """The storage daemon of a killed vmfrost dies a moment after it."""
    for again in range(20):
        try:
            return vm.start()
        except LabError as error:
            if again == 19 or "lock" not in str(error):
                raise
            time.sleep(0.05)


def records(vm):
    return {record["name"]: record for record in vm.vmfrost("list").result}


def recover(vm, wrong, when, codes=(0,)):
    out = vm.vmfrost("recover")
    if out.code not in codes:
        wrong.append(f"{when}: recover: exit {out.code}: {out.error} {out.err}")
    return out


def content(vm, when, wrong, want):
    """What the names open, and what the guest sees."""
    for disk in DISKS:
        found = vm.read(f"{disk}.qcow2", 2)
        if found != want[disk]:
            wrong.append(f"{when}: {disk}.qcow2: {found} and not {want[disk]}")
        if vm.process.poll() is None and vm.sees(disk, 2) != want[disk]:
            wrong.append(f"{when}: {disk}: {vm.sees(disk, 2)} and not {want[disk]}")


def left_over(vm, when, wrong):
    """All disks have the snapshot, or none has; and no other name is there."""
    there = records(vm)
    ready = [name for name, record in there.items() if record["readyToUse"]]
    names = [*IMAGES, *(f"{disk}@{name}.qcow2" for disk in DISKS for name in ready)]
    opened = vm.opened() if vm.process.poll() is None else {}
    found = [entry.name for entry in vm.disks.iterdir()
             if not (re.search(r"\.[0-9a-f]{16}$", entry.name) and entry.stat().st_ino in opened)]
    if sorted(found) != sorted(names):
        wrong.append(f"{when}: {sorted(found)}")
    for name, record in there.items():
        if record["phase"] == "InProgress":
            wrong.append(f"{when}: {name} is {record['phase']}")
        for disk in DISKS:
            if name in ready and vm.read(f"{disk}@{name}.qcow2", 2) != [1, 0]:
                wrong.append(f"{when}: {disk}@{name} has {vm.read(f'{disk}@{name}.qcow2', 2)}")
    if vm.journal():
        wrong.append(f"{when}: there is a journal")
    return ready


def write_on(vm):
    """The guest goes on from where it was; what the disks hold by then."""
    for disk in DISKS:
        vm.write(disk, 2, 1)
    return {disk: [1, 2] for disk in DISKS}


def finished(vm, wrong, want):
    """Whatever is left of it is deleted, and then there is nothing."""
    for name in records(vm):
        out = vm.vmfrost("delete", f"@{name}")
        if out.code:
            wrong.append(f"delete: exit {out.code}: {out.error} {out.err}")
    content(vm, "deleted", wrong, want)
    if vm.process.poll() is None:
        vm.restart()
        recover(vm, wrong, "restarted")
    left_over(vm, "the end", wrong)
    if records(vm):
        wrong.append(f"the end: {records(vm)}")
    content(vm, "the end", wrong, want)


@contextmanager
def trial(t, form, what):
    """A stopped VM, what goes wrong with it, and what its disks hold; then the verdict."""
    wrong = []
    vm = stopped(form)
    try:
        yield vm, wrong, {disk: [1, 0] for disk in DISKS}
        if wrong:
            wrong.append(f"names: {vm.names()}")
    except LabError as error:
        wrong.append(f"{error}")
    finally:
        vm.__exit__()
    t.is_(wrong, [], what)


SOME = {(drive, "started"): ("overlays.named", "flip", "flip.first", "verify", "record.saved"),
        (drive, "was started"): ("flip.first", "verify"),
        (blockdev, "started"): ("flip.first", "record.saved")}


def killed(t):
    """kill -9 at each step; the VM is not started, is started before the recovery, or was."""
    for form in (drive, blockdev):
        for variant in ("off", "started", "was started"):
            points = STEPS if (form, variant) == (drive, "off") or FULL else SOME.get(
                (form, variant), ())
            for point in points:
                with trial(t, form, f"{form.__name__}, killed at {point}, the VM {variant}") as (
                        vm, wrong, want):
                    command = vm.start_vmfrost("snapshot", "@one",
                                               env={"VMFROST_TEST_AT": f"kill:{point}"})
                    if finish(command).code != -signal.SIGKILL:
                        wrong.append("it was not killed")
                    if variant != "off":
                        start(vm)
                        content(vm, "started", wrong, want)
                        want = write_on(vm)
                    if variant == "was started":
                        vm.kill()
                    recover(vm, wrong, "first")
                    content(vm, "recovered", wrong, want)
                    torn = point == "flip.first" and variant != "off"
                    ready = left_over(vm, "recovered", wrong) if not torn else [
                        name for name, record in records(vm).items() if record["readyToUse"]]
                    if torn and ready:
                        wrong.append("a snapshot that the guest has written to")
                    if recover(vm, wrong, "second").document.get("found"):
                        wrong.append("the second recover found something")
                    if variant == "was started":
                        vm.start()
                        content(vm, "started again", wrong, want)
                    finished(vm, wrong, want)


def slow_to_die(t):
    """The storage daemon takes its time to end after vmfrost was killed; or does not end."""
    for words, point in ((["snapshot", "@one"], "verify"), (["restore", "@one"], "guard")):
        for seconds in (0.7, 60):
            wrong = []
            vm = stopped(drive)
            try:
                if words[0] == "restore":
                    finish(vm.start_vmfrost("snapshot", "@one"))
                finish(vm.start_vmfrost(*words, env={"VMFROST_TEST_AT": f"kill:{point}"}))
                daemon = lab.spawn(["sleep", str(seconds)])
                started = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()[19]
                journal, = vm.journal()
                text = journal.read_text()
                text = re.sub(r'"qemu": ?\d+', f'"qemu": {daemon.pid}', text, count=1)
                journal.write_text(re.sub(r'"qemuStarted": ?\d+', f'"qemuStarted": {started}', text,
                                          count=1))
                if seconds > 1:
                    out = recover(vm, wrong, "it lives", codes=(1,))
                    if f"process {daemon.pid}" not in out.error or not out.next:
                        wrong.append(f"{out.error} | {out.next}")
                    content(vm, "it lives", wrong, {disk: [1, 0] for disk in DISKS})
                    daemon.kill()
                    daemon.wait()
                recover(vm, wrong, "it ended")
                content(vm, "it ended", wrong, {disk: [1, 0] for disk in DISKS})
                if left_over(vm, "it ended", wrong) != ["one"]:
                    wrong.append(f"records: {records(vm)}")
            finally:
                vm.__exit__()
            t.is_(wrong, [], f"{words[0]}: the daemon " +
                  ("does not end" if seconds > 1 else "takes its time to end"))


def daemon_of(command):
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"PPid:\t{command.pid}\n" in (
                    entry / "status").read_text() and "storage-daemon" in (
                        entry / "cmdline").read_text():
                return int(entry.name)
        except OSError:
            pass
    return 0


def without_daemon(t):
    """The storage daemon dies, and with it the locks: then the VM is started, or not. Names of disks
    that somebody writes to are not touched."""
    for point in ("overlays", "cut", "flip", "flip.first", "verify"):
        for started in (False, True):
            what = f"the daemon dies at {point}" + (", and the VM is started" if started else "")
            with trial(t, drive, what) as (vm, wrong, want):
                command = vm.stop_at(point, "snapshot", "@one")
                daemon = daemon_of(command)
                if not daemon:
                    wrong.append("there is no daemon")
                else:
                    os.kill(daemon, signal.SIGKILL)
                    wait_until(lambda: process_state(daemon) in ("", "Z"), what="its end")
                if started:
                    vm.start()
                    want = write_on(vm)
                command.signal(signal.SIGCONT)
                out = finish(command)
                if out.code == 0:
                    wrong.append("success, but nobody held the locks")
                content(vm, "failed", wrong, want)
                recover(vm, wrong, "first")
                content(vm, "recovered", wrong, want)
                if started:
                    vm.restart()
                    content(vm, "restarted", wrong, want)
                    recover(vm, wrong, "restarted")
                finished(vm, wrong, want)


def too_late(t):
    """The deadline passes when the names are turned and the locks are let go; the VM may be started by
    then, and then nothing is turned back under it."""
    for started in (False, True):
        what = "the deadline passes after its verification" + (
            ", and the VM is started" if started else "")
        with trial(t, drive, what) as (vm, wrong, want):
            command = vm.stop_at("verify+", "snapshot", "@one", "--deadline", "4s")
            begun = time.monotonic()
            if started:
                vm.start()
            time.sleep(max(0, begun + 4.1 - time.monotonic()))
            command.signal(signal.SIGCONT)
            out = finish(command)
            if out.code != (5 if started else 4):
                wrong.append(f"exit {out.code}: {out.error}")
            if started:  # only now
                want = write_on(vm)
            content(vm, "too late", wrong, want)
            recover(vm, wrong, "first")
            content(vm, "recovered", wrong, want)
            left_over(vm, "recovered", wrong)
            finished(vm, wrong, want)


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (killed, slow_to_die, without_daemon, too_late):
            if only in part.__name__:
                part(t)


main()
