#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""QEMU dies, too: after vmfrost, before it, or with it. The VM's own command line then boots a
state with every record that the guest was told is safe, and `recover` leaves nothing behind,
before the VM is started again or after."""

import signal
import time

from guesttest import Disk, Site, guest_test, is_stopped, wait_until


def stop_at(site, point, *words):
    """vmfrost, stopped at a point."""
    command = site.start(*words, env={"VMFROST_TEST_AT": f"stop:{point}"})
    wait_until(lambda: is_stopped(command), what=f"vmfrost at {point}")
    return command


def is_cut(site):
    """Does the guest run on an overlay of a snapshot that has no record yet?"""
    _, edges = site.graph()
    return sum(child.startswith("vf") and name == "root" for _, name, child in edges) == 2


def kill_vmfrost(site, name, point, *options):
    """Kills vmfrost in a snapshot. "cut-made" is when the cut was sent, and QEMU has made it."""
    words = ["snapshot", f"web@{name}", *options]
    if point != "cut-made":
        done = site.start(*words, env={"VMFROST_TEST_AT": f"kill:{point}"}).wait()
    else:
        command = stop_at(site, "cut+", *words)
        wait_until(lambda: is_cut(site), what="the cut")
        command.signal(signal.SIGKILL)
        done = command.wait()
    site.judge(done, -signal.SIGKILL, f"{point}: vmfrost is killed there")


def recover(site, what):
    site.expect(0, "recover", "web", what=f"{what}: recover: exit 0")
    site.tidy(what)


def start_again(site, name, what, acked, before, recover_first):
    """After QEMU's end: are the guest's records there? Boots, and removes the snapshot."""
    site.one_instant("web", "data", acked, f"{what}: what the command line opens")
    if recover_first:
        recover(site, f"{what}, off")
        site.one_instant("web", "data", acked, f"{what}, recovered")
    site.boot()
    if not recover_first:
        recover(site, f"{what}, booted")
    site.thawed(what)
    record = site.record(name)
    if record:
        site.tap.diag(f"{what}: {record['phase']}, {record['consistency']}")
        if record["readyToUse"]:
            site.one_instant("web", "data", before, f"{what}: the snapshot", name)
        site.expect(0, "delete", f"web@{name}", what=f"{what}: delete: exit 0")
        site.tidy(f"{what}, deleted")
    site.vm.start_writer("web", "data")


def both(site, name, point, *options, at_once=False, recover_first=False):
    """vmfrost is killed, then QEMU: at once, or when the guest has gone on."""
    before = acked = site.vm.writer_acked()
    kill_vmfrost(site, name, point, *options)
    if not at_once:
        # What was in flight when all froze is acknowledged now; what comes then is new.
        now = wait_until(site.vm.writer_acked, what="the writer")
        wait_until(lambda: site.vm.writer_acked() > now + 5, what="a thawed guest that writes")
        acked = site.vm.writer_acked()
    site.vm.kill()
    wait_until(lambda: not site.guards(), what="the guard's end")
    start_again(site, name, point, acked, before, recover_first)


def qemu_alone(site, name, point, recover_first=False):
    """QEMU is killed under a vmfrost that is at a point, and goes on."""
    what = f"QEMU dies at {point}"
    acked = site.vm.writer_acked()
    command = stop_at(site, point, "snapshot", f"web@{name}")
    site.vm.kill()
    began = time.monotonic()
    command.signal(signal.SIGCONT)
    done = command.wait()
    took = time.monotonic() - began
    site.tap.ok(done.code in (1, 3) or (done.code == 5 and "vmfrost recover web" in done.err),
                f"{what}: vmfrost fails, and says if there is something to recover ({done.code})")
    site.tap.diag(done.err)
    site.tap.ok(took < 15, f"{what}: and is soon done with it ({took:.1f} s)")
    start_again(site, name, what, acked, acked, recover_first)


def everything(site, name):
    """vmfrost and its guard are killed, and nobody is left but the journal."""
    before = site.vm.writer_acked()
    command = stop_at(site, "cut+", "snapshot", f"web@{name}")
    wait_until(lambda: is_cut(site), what="the cut")
    for guard in site.guards():
        site.kill_guard(guard)
    command.signal(signal.SIGKILL)
    site.judge(command.wait(), -signal.SIGKILL, "everything: vmfrost is killed, with its guard")
    site.tap.ok(not site.vm.guest_writes_ok(timeout=1), "everything: the guest is frozen")
    site.tap.ok(site.status()["interrupted"]["owesThaw"], "everything: status says so")
    recover(site, "everything")
    site.thawed("everything")
    site.one_instant("web", "data", before, "everything: the snapshot", name)
    site.expect(0, "delete", f"web@{name}", what="everything: delete: exit 0")
    site.tidy("everything, deleted")


def in_a_deletion(site, name, point, recover_first, alone=False):
    """The same while a snapshot is merged back. While block-commit opens the base by its name, that
    name leads to the base (merge.stopped, merge.started): there the journal has to be read before
    the VM is started again."""
    what = f"delete, {point}" + (", QEMU alone" if alone else "")
    site.snapshot(0, name, what=f"{what}: a snapshot")
    now = site.vm.writer_acked()
    wait_until(lambda: site.vm.writer_acked() > now + 20, what="records to merge")
    acked = site.vm.writer_acked()
    if alone:
        command = stop_at(site, point, "delete", f"web@{name}")
        site.vm.kill()
        command.signal(signal.SIGCONT)
        done = command.wait()
        site.tap.ok(done.code, f"{what}: vmfrost fails ({done.code})")
        site.tap.diag(done.err)
    else:
        done = site.start("delete", f"web@{name}", env={"VMFROST_TEST_AT": f"kill:{point}"}).wait()
        site.judge(done, -signal.SIGKILL, f"{what}: vmfrost is killed there")
        site.vm.kill()
    if recover_first:
        recover(site, f"{what}, off")
    site.one_instant("web", "data", acked, f"{what}: what the command line opens")
    site.boot()
    if not recover_first:
        recover(site, f"{what}, booted")
    site.thawed(what)
    if site.record(name):
        site.expect(0, "delete", f"web@{name}", what=f"{what}: delete again: exit 0")
    site.tidy(f"{what}, deleted")
    site.vm.start_writer("web", "data")


def main():
    with guest_test() as (tap, folder):
        tap.diag("-drive, existing")
        with Site(tap, folder / "a", [Disk("web"), Disk("data")]) as site:
            site.boot().vm.start_writer("web", "data")
            everything(site, "s1")
            both(site, "s2", "cut-made")
            both(site, "s3", "flip", recover_first=True)
            both(site, "s4", "flip+", at_once=True)
            both(site, "s5", "thaw", recover_first=True)
            both(site, "s6", "verify")
            qemu_alone(site, "s8", "freeze+", recover_first=True)
            qemu_alone(site, "s9", "cut+")
            qemu_alone(site, "s10", "thaw", recover_first=True)
            in_a_deletion(site, "d1", "merge.started", recover_first=True)
            in_a_deletion(site, "d2", "merge.turned", recover_first=False)
            in_a_deletion(site, "d3", "merge.turned", recover_first=True, alone=True)
        tap.diag("-blockdev, on an iothread, preopened; the cut is not primed")
        with Site(tap, folder / "b", [Disk("web"), Disk("data")], attach="blockdev",
                  iothread=True, settings=["prime=off"]) as site:
            site.boot().vm.start_writer("web", "data")
            both(site, "s11", "cut-made", "--method", "preopened")
            both(site, "s12", "flip", "--method", "preopened", at_once=True, recover_first=True)


if __name__ == "__main__":
    main()
