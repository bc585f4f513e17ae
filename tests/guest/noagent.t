#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Without an agent: a snapshot all the same, of one instant, and nobody calls it consistent."""

import re
import time

from guesttest import Disk, Site, guest_test


def disks():
    return [Disk("web"), Disk("data")]


def state_of(site):
    return site.listing(), site.graph(), site.records()


def claims_nothing(tap, done, what):
    """A test: no word of the output calls the snapshot consistent."""
    text = done.out + done.err
    tap.ok("crash-consistent" in text and not re.search(r"(?<!crash-)consistent", text),
           f"{what}: it is called crash-consistent and nothing more")


def crash(site, record, what, *indications):
    """The record of a best-effort snapshot."""
    site.tap.is_((record["phase"], record["readyToUse"], record["consistency"],
                  record["indications"]),
                 ("Succeeded", True, "crash", ["Online", *indications]),
                 f"{what}: the record says so")
    claims = {"frozenFilesystems", "thawedFilesystems", "frozenMs"} & set(record["evidence"])
    site.tap.is_(claims, set(), f"{what}: it claims no freeze")
    site.tidy(what)


def forget(site, name):
    site.expect(0, "delete", f"web@{name}")
    site.tidy(f"{name} deleted")


def port_closed(site):
    site.vm.start_writer("web", "data")
    acked = site.vm.writer_acked()
    began = time.monotonic()
    done = site.expect(0, "snapshot", "web@closed", what="a closed port: exit 0")
    site.tap.diag(f"from start to finish: {(time.monotonic() - began) * 1000:.0f} ms")
    claims_nothing(site.tap, done, "closed")
    claims_nothing(site.tap, site.run("show", "web@closed"), "closed, show")
    record = site.record("closed")
    crash(site, record, "closed", "NoGuestAgent")
    site.one_instant("web", "data", acked, "closed", "closed")
    site.tap.ok(site.vm.guest_writes_ok(), "closed: the guest writes")
    forget(site, "closed")

    before = state_of(site)
    done = site.expect(3, "snapshot", "web@required", "--quiesce=require")
    site.tap.ok("no guest agent" in done.err and "qemu-ga" in done.err, "require: it says why")
    site.tap.is_(state_of(site), before, "require: nothing is changed")
    site.tidy("require")
    site.vm.stop_writer()


def paused(site):
    """Nobody answers in a VM that is stopped, and it stays stopped."""
    site.vm.qmp("stop")
    record = site.snapshot(0, "paused", what="paused, a closed port: exit 0")
    crash(site, record, "paused", "NoGuestAgent", "Paused")
    site.vm.qmp("cont")
    forget(site, "paused")

    site.vm.start_agent()
    site.vm.wait_agent()
    site.vm.qmp("stop")
    before = state_of(site)
    done = site.expect(1, "snapshot", "web@auto",
                       what="paused, with an agent that cannot answer: exit 1")
    site.tap.ok('"paused"' in done.err and "--quiesce=skip" in done.err, "auto: it says what to do")
    site.tap.is_(state_of(site), before, "auto: nothing is changed")
    for quiesce in "prefer", "skip":
        done = site.expect(0, "snapshot", f"web@{quiesce}", "--quiesce", quiesce,
                           what=f"paused, --quiesce={quiesce}: exit 0")
        claims_nothing(site.tap, done, quiesce)
        record = site.record(quiesce)
        site.tap.is_((record["phase"], record["consistency"]), ("Succeeded", "crash"),
                     f"{quiesce}: the record says crash")
        site.tap.ok("Paused" in record["indications"], f"{quiesce}: and Paused")
        site.tidy(quiesce)
        site.tap.is_(site.vm.qmp("query-status")["status"], "paused", f"{quiesce}: it stays paused")
        forget(site, quiesce)
        site.tap.is_(site.vm.qmp("query-status")["status"], "paused",
                     f"{quiesce} deleted: it stays paused")
    site.vm.qmp("cont")
    site.thawed("gone on")


def skipped(site):
    done = site.expect(0, "snapshot", "web@skipped", "--quiesce=skip")
    claims_nothing(site.tap, done, "skip")
    site.tap.is_(site.record("skipped")["consistency"], "crash", "skip: the record says crash")
    log = site.vm.sh("cat /run/lab/hook.log 2>/dev/null; true").out
    site.tap.is_(log, "", "skip: no hook of the guest's was called")
    site.tidy("skip")
    forget(site, "skipped")


def late(tap, folder):
    with Site(tap, folder, disks(), cmdline="lab.agent=late:6") as site:
        site.boot(agent=False)
        tap.ok(not site.vm.agent_open(), "late: the agent is not there yet")
        crash(site, site.snapshot(0, "early", what="before the agent: exit 0"), "early",
              "NoGuestAgent")
        site.vm.wait_agent()
        record = site.snapshot(0, "later", "--quiesce=require", what="with the agent: exit 0")
        tap.is_((record["consistency"], record["indications"]),
                ("filesystem", ["Online", "GuestAgent"]), "later: the record says consistent")
        site.thawed("later")
        site.tidy("later")


def no_port(tap, folder):
    """A QEMU that has no channel for an agent at all. Its guest need not have booted."""
    with Site(tap, folder, disks(), agent=False) as site:
        site.vm.start()
        site.vm.qmp("query-status")
        site.add()
        crash(site, site.snapshot(0, "none", what="no port: exit 0"), "no port", "NoGuestAgent")
        before = state_of(site)
        site.expect(3, "snapshot", "web@required", "--quiesce=require",
                    what="no port, --quiesce=require: exit 3")
        tap.is_(state_of(site), before, "no port: nothing is changed")


def main():
    with guest_test() as (tap, folder):
        with Site(tap, folder / "none", disks(), cmdline="lab.agent=none") as site:
            site.boot(agent=False)
            for part in port_closed, paused, skipped:
                tap.diag(part.__name__)
                part(site)
        late(tap, folder / "late")
        no_port(tap, folder / "no-port")


if __name__ == "__main__":
    main()
