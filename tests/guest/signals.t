#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Signals: a vmfrost that is stopped and goes on too late, and one that is told to give up. The
guest is thawed in time, and what they say afterwards is true."""

import signal
import time

from guesttest import Disk, Site, ext4_needs_recovery, guest_test, is_stopped, wait_until


def state_of(site):
    return site.listing(), site.graph()


def honest(site, what, name, done, acked, before):
    """Whatever became of the snapshot: the command, the record and the images say the same."""
    record = site.record(name)
    site.thawed(what)
    site.tidy(what)
    site.tap.diag(f"{what}: exit {done.code}, {record['phase']}, {record['consistency']}")
    site.tap.ok(record["consistency"] != "filesystem", f"{what}: nobody calls it consistent")
    if done.code == 5:
        site.tap.ok(record["readyToUse"], f"{what}: exit 5, and the snapshot is there")
        site.one_instant("web", "data", acked, what, name)
    else:
        site.tap.is_((done.code, record["phase"], record["readyToUse"]), (1, "Failed", False),
                     f"{what}: exit 1, and the record says Failed")
        site.tap.is_(state_of(site), before, f"{what}: names and graph are what they were")
    site.expect(0, "delete", f"web@{name}")
    site.tidy(f"{what}, deleted")


def too_late(site, point):
    """Stopped beyond the frozen limit: the guard thaws by its own clock."""
    what = f"stopped at {point}"
    acked, before = site.vm.writer_acked(), state_of(site)
    command = site.start("snapshot", "web@late", "--frozen-limit", "2s",
                         env={"VMFROST_TEST_AT": f"stop:{point}"})
    wait_until(lambda: is_stopped(command), what=f"vmfrost at {point}")
    began = time.monotonic()
    wait_until(lambda: "guard-thawed" in site.journal_states(), what="the guard's thaw")
    took = time.monotonic() - began
    site.tap.ok(took < 5, f"{what}: the guard thaws by its own clock ({took:.1f} s)")
    site.tap.ok(is_stopped(command) and site.vm.guest_writes_ok(), f"{what}: the guest writes")
    site.tap.is_(site.wrong_names(), [], f"{what}: to the images that its command line names")
    command.signal(signal.SIGCONT)
    honest(site, what, "late", command.wait(), acked, before)


def in_time(site):
    """Stopped for a moment only: no harm."""
    command = site.start("snapshot", "web@pause", env={"VMFROST_TEST_AT": "stop:cut+"})
    wait_until(lambda: is_stopped(command), what="vmfrost at cut+")
    time.sleep(0.3)
    command.signal(signal.SIGCONT)
    site.judge(command.wait(), 0, "stopped within the frozen limit: exit 0")
    site.tap.is_(site.record("pause")["consistency"], "filesystem", "and it is consistent")
    site.tap.ok(not ext4_needs_recovery(site.image("web", "pause")), "it really is")
    site.tidy("pause")
    site.expect(0, "delete", "web@pause")


def given_up(site, number):
    """Ctrl-C and the like while the guest freezes."""
    what = signal.Signals(number).name
    acked, before = site.vm.writer_acked(), state_of(site)
    site.vm.set_fault("freeze", "slow:2")
    command = site.start("snapshot", "web@stop")
    wait_until(lambda: site.journal_states()[-1:] == ["freezing"], what="the freeze")
    time.sleep(0.3)
    command.signal(number)
    time.sleep(0.3)
    command.signal(number)  # impatience changes nothing
    done = site.judge(command.wait(), 1, f"{what} in the freeze: exit 1")
    site.vm.clear_faults()
    site.tap.ok("stopped by request" in done.err and "the guest is thawed" in done.err,
                f"{what}: it says what happened")
    honest(site, what, "stop", done, acked, before)


def not_suspended(site):
    """Ctrl-Z: who sleeps cannot thaw."""
    site.vm.set_fault("freeze", "slow:2")
    command = site.start("snapshot", "web@awake")
    wait_until(lambda: site.journal_states()[-1:] == ["freezing"], what="the freeze")
    command.signal(signal.SIGTSTP)
    site.judge(command.wait(), 0, "SIGTSTP does not suspend it: exit 0")
    site.vm.clear_faults()
    site.tap.is_(site.record("awake")["consistency"], "filesystem", "and its snapshot consistent")
    site.expect(0, "delete", "web@awake")
    site.tidy("SIGTSTP")


def in_doubt(site):
    """Ctrl-C when the cut has been sent and its reply has not come."""
    acked, before = site.vm.writer_acked(), state_of(site)
    command = site.start("snapshot", "web@doubt", env={"VMFROST_TEST_AT": "stop:cut+"})
    wait_until(lambda: is_stopped(command), what="vmfrost at cut+")
    command.signal(signal.SIGINT)
    command.signal(signal.SIGCONT)
    done = site.judge(command.wait(), 1, "SIGINT with the cut in doubt: exit 1")
    honest(site, "in doubt", "doubt", done, acked, before)


def main():
    with guest_test() as (tap, folder):
        for attach, iothread in ("drive", False), ("blockdev", True):
            tap.diag(f"-{attach}")
            with Site(tap, folder / attach, [Disk("web"), Disk("data")], attach=attach,
                      iothread=iothread) as site:
                site.boot().vm.start_writer("web", "data")
                for point in "cut+", "flip":
                    too_late(site, point)
                in_doubt(site)
                if attach == "blockdev":
                    continue
                too_late(site, "freeze+")
                too_late(site, "thaw")
                in_time(site)
                for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
                    given_up(site, number)
                not_suspended(site)


if __name__ == "__main__":
    main()
