#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Two at a time: whoever comes second is told who is at work on the VM, and disturbs nothing."""

import os
import time

from guesttest import Disk, Site, guest_test, vmfrost, wait_until


def freezing(site):
    """Is the first one's freeze under way?"""
    return any(line.endswith(" freeze") for line in
               site.vm.sh("cat /run/lab/hook.log 2>/dev/null; true").out.splitlines())


def told(site, first, done, what):
    """Two tests: was it refused, and did it say who it is, and at what?"""
    site.judge(done, 1, f"{what}: exit 1")
    site.tap.ok(f"pid {first.pid}" in done.err and "snapshot web@first" in done.err,
                f"{what}: it is told who holds it, and what for")


def second_one(site):
    qmp = site.vm.path("qmp.sock")
    site.vm.set_fault("freeze", "slow:4")
    first = site.start("snapshot", "web@first")
    wait_until(lambda: freezing(site), what="the first one's freeze")
    began = time.monotonic()
    told(site, first, site.run("snapshot", "web@second"), "by name")
    told(site, first, site.run("snapshot", "--qmp", qmp, "@second"), "by the socket's path")
    told(site, first, vmfrost("snapshot", "--qmp", "qmp.sock", "@second", cwd=site.vm.folder,
                              state_dir=site.state_dir), "by a relative path")
    told(site, first, vmfrost("snapshot", "--qmp", f"{site.vm.folder}/../vm/./qmp.sock", "@second",
                              state_dir=site.state_dir), "by another spelling")
    link = site.vm.folder.parent / "link"
    os.symlink(site.vm.folder, link)
    told(site, first, site.run("snapshot", "--qmp", link / "qmp.sock", "@second"),
         "by a symbolic link")
    for words in ("delete", "web@first"), ("freeze", "web"), ("thaw", "web"), ("recover", "web"):
        told(site, first, site.run(*words), f"vmfrost {words[0]}")
    site.tap.ok(time.monotonic() - began < 3, "all of them are told at once")
    status = site.status()
    site.tap.is_((status["holder"]["pid"], status["holder"]["what"]),
                 (first.pid, "snapshot web@first"), "status --json says who is at work")
    text = site.run("status", "web").out
    site.tap.ok(f"process {first.pid}" in text and "snapshot web@first" in text,
                "and status says it to people")
    site.judge(first.wait(), 0, "the first one is not disturbed: exit 0")
    site.vm.clear_faults()
    record = site.record("first")
    site.tap.is_((record["phase"], record["consistency"]), ("Succeeded", "filesystem"),
                 "its snapshot is what it should be")
    site.tap.ok("holder" not in site.status(), "then nobody is at work")
    site.thawed("first")
    site.tidy("first")
    site.snapshot(0, "second", what="then it is the second one's turn: exit 0")
    site.tidy("second")
    for name in "second", "first":
        site.expect(0, "delete", f"web@{name}")


def another_state(site):
    """With a state folder of its own it knows of no lock; but QEMU serves one client at a time."""
    site.vm.set_fault("freeze", "slow:8")
    first = site.start("snapshot", "web@first")
    wait_until(lambda: site.journal_states()[-1:] == ["freezing"], what="the first one's freeze")
    done = vmfrost("snapshot", "--qmp", site.vm.path("qmp.sock"), "@second",
                   state_dir=site.state_dir.parent / "other")
    site.judge(done, 3, "another state folder: exit 3")
    site.tap.ok("another client" in done.err or "other clients" in done.err,
                "another state folder: it says why")
    site.tap.diag(done.err)
    site.judge(first.wait(), 0, "another state folder: the first one is not disturbed: exit 0")
    site.vm.clear_faults()
    site.thawed("another state folder")
    site.tidy("another state folder")
    site.expect(0, "delete", "web@first")


def main():
    with guest_test() as (tap, folder):
        with Site(tap, folder, [Disk("web"), Disk("data")]) as site:
            site.boot()
            second_one(site)
            another_state(site)


if __name__ == "__main__":
    main()
