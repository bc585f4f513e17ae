#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The deadline passes: exit 4, the guest is thawed, and nothing is left but a Failed record,
however far the snapshot had come."""

import time

from guesttest import Disk, Site, guest_test, wait_until


def state_of(site):
    return site.listing(), site.graph()


def rolled_back(site, name, before, record):
    """The guest, the folder, the graph and the record after a deadline."""
    tap = site.tap
    site.thawed(name)
    tap.is_(state_of(site), before, f"{name}: names and graph are what they were")
    site.tidy(name)
    tap.is_((record["phase"], record["readyToUse"], record["consistency"]),
            ("Failed", False, "none"), f"{name}: the record says Failed")
    tap.ok("deadline of" in record["error"]["message"], f"{name}: and why")
    tap.is_([each["reason"] for each in record["conditions"] if each["type"] == "Failure"],
            ["DeadlineExceeded"], f"{name}: for programs, too")
    grown = site.vm.writer_acked()
    wait_until(lambda: site.vm.writer_acked() > grown, what="the writer going on")


def forgotten(site, name):
    site.expect(0, "delete", f"web@{name}")
    site.tap.ok(site.record(name) is None, f"{name}: the record is gone")
    site.tidy(f"{name} deleted")


def in_the_freeze(site):
    before = state_of(site)
    site.vm.set_fault("freeze", "slow:4")
    began = time.monotonic()
    done = site.expect(4, "snapshot", "web@slow", "--deadline", "2s",
                       what="a deadline of 2 s, a freeze of 4 s: exit 4")
    site.tap.diag(f"ended after {time.monotonic() - began:.1f} s: {done.err}")
    site.tap.ok("deadline of 2 s" in done.err and "the guest is thawed" in done.err,
                "slow: it says what happened")
    record = site.record("slow")
    site.tap.is_(record["failureDeadline"], "2s", "slow: the record has the deadline")
    site.vm.clear_faults()
    rolled_back(site, "slow", before, record)
    site.expect(1, "snapshot", "web@slow", what="slow: its name is taken until then")
    forgotten(site, "slow")
    acked = site.vm.writer_acked()
    record = site.snapshot(0, "slow")
    site.tap.is_(record["consistency"], "filesystem", "slow: then a snapshot succeeds")
    site.one_instant("web", "data", acked, "slow", "slow")
    forgotten(site, "slow")


def by_setting(site):
    before = state_of(site)
    site.add("deadline=1s")
    site.vm.set_fault("freeze", "slow:2")
    record = site.snapshot(4, "setting", what="the same by the VM's settings: exit 4")
    site.vm.clear_faults()
    rolled_back(site, "setting", before, record)
    forgotten(site, "setting")
    site.add("deadline=")


def before_it_began(site):
    before = state_of(site)
    site.expect(4, "snapshot", "web@early", "--deadline", "1ms",
                what="a deadline that passes at once: exit 4")
    site.thawed("early")
    site.tap.is_(state_of(site), before, "early: nothing is changed")
    if site.record("early"):
        forgotten(site, "early")
    site.tidy("early")


def after_the_cut(site, *options):
    before = state_of(site)
    site.vm.set_fault("thaw", "slow:3")
    record = site.snapshot(4, "cut", "--deadline", "2s", *options,
                           what="a deadline that passes after the cut: exit 4")
    site.vm.clear_faults()
    site.tap.ok("cut" in record["evidence"], "cut: the cut had been made")
    rolled_back(site, "cut", before, record)
    forgotten(site, "cut")


def power_cut(site):
    acked = site.vm.writer_acked()
    site.vm.kill()
    site.one_instant("web", "data", acked, "after a power cut: the images")


def main():
    with guest_test() as (tap, folder):
        tap.diag("-drive, existing")
        with Site(tap, folder / "a", [Disk("web"), Disk("data")]) as site:
            site.boot().vm.start_writer("web", "data")
            for part in in_the_freeze, by_setting, before_it_began, after_the_cut, power_cut:
                part(site)
        tap.diag("-blockdev, on an iothread, preopened; the cut is not primed")
        with Site(tap, folder / "b", [Disk("web"), Disk("data")], attach="blockdev",
                  iothread=True, settings=["prime=off"]) as site:
            site.boot().vm.start_writer("web", "data")
            in_the_freeze(site)
            after_the_cut(site, "--method", "preopened")
            power_cut(site)


if __name__ == "__main__":
    main()
