#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Only what is cut is frozen: a writer on a disk that is left out does not stand still, where the
guest tells for certain which disk is which; else, and where nothing is left out, everything is
frozen. The snapshot is as good as one for which all was frozen, or says that it is not."""

import os
import signal
import time

from guesttest import Disk, Site, ext4_needs_recovery, guest_test, is_stopped, wait_until

LONG_S = 3  # how long the guest is kept frozen, at least


def took(site, name, *options, what, policy, mounts, count, quality="filesystem"):
    """Takes a snapshot, which has to be so; its record."""
    record = site.snapshot(0, name, *options, what=f"{what}: exit 0")
    evidence = record["evidence"]
    site.tap.is_((evidence["freezePolicy"], evidence.get("frozenMounts"),
                  evidence["frozenFilesystems"], evidence["thawedFilesystems"]),
                 (policy, mounts, count, count), f"{what}: what was frozen, and by which policy")
    site.tap.is_(record["consistency"], quality, f"{what}: {quality}")
    if quality == "filesystem":
        for volume in record["snapshotVolumes"]["included"]:
            site.tap.ok(not ext4_needs_recovery(volume["image"]),
                        f"{what}: the image of {volume['name']} needs no recovery")
    return record


def choices(site):
    tap = site.tap
    record = took(site, "whole", what="no disk left out", policy="all", mounts=None, count=2)
    tap.ok("freezeMessage" not in record["evidence"], "... and there is nothing to explain")
    took(site, "part", "--exclude", "data", what="one left out", policy="cut", mounts=["/mnt/web"],
         count=1)
    took(site, "all", "--exclude", "data", "--freeze", "all", what="one left out, but all frozen",
         policy="all", mounts=None, count=2)
    took(site, "more", "--exclude", "data", "--freeze", "cut,/mnt/data",
         what="one left out, but named", policy="all", mounts=None, count=2)
    took(site, "named", "--exclude", "data", "--freeze", "/mnt/web/", what="named", policy="named",
         mounts=["/mnt/web"], count=1)
    record = took(site, "without", "--freeze", "-/mnt/data", what="a mount point left out",
                  policy="cut", mounts=["/mnt/web"], count=1, quality="crash")
    tap.ok(any("/mnt/data is not to be frozen" in line for line in record["warnings"]),
           "... and the record warns of it")
    record = took(site, "nothing", "--freeze", "/mnt/nothing", what="a mount point that is none",
                  policy="all", mounts=None, count=2)
    tap.ok("no file system at /mnt/nothing" in record["evidence"]["freezeMessage"] and
           any("/mnt/nothing" in line for line in record["warnings"]), "... and it says so")
    site.expect(2, "snapshot", "web@bad", "--freeze", "mnt/web", what="no path: usage")
    site.add("freeze=/mnt/web")
    took(site, "setting", "--exclude", "data", what="the VM's setting", policy="named",
         mounts=["/mnt/web"], count=1)
    site.add("freeze=")
    shown = site.expect(0, "show", "web@part")
    tap.ok("/mnt/web" in shown.out, "show tells what was frozen")


def stall_on(site, disk, name, *options):
    """How long a writer on the disk stood still at the longest, and how long the guest was frozen
    before the cut, in seconds."""
    site.vm.start_probe(disk)
    site.vm.probe()
    command = site.start("snapshot", f"web@{name}", *options,
                         env={"VMFROST_TEST_AT": "stop:cut"})
    wait_until(lambda: is_stopped(command), what="the freeze")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > LONG_S, what="a while")
    frozen_s = time.monotonic() - began
    os.kill(command.pid, signal.SIGCONT)
    done = command.wait()
    site.judge(done, 0, f"{name}: exit 0")
    longest_s = site.vm.probe().longest_us / 1e6
    site.vm.sh("lab-probe stop")
    site.tap.diag(f"{name}: the writer on {disk} stood still for {longest_s:.3f} s, "
                  f"the guest was frozen for {frozen_s:.3f} s")
    return longest_s, frozen_s


def stalls(site):
    """vmfrost is stopped before the cut, so that a stall by the freeze cannot be mistaken."""
    longest, frozen = stall_on(site, "web", "stall-cut", "--exclude", "data")
    site.tap.ok(longest > 0.9 * frozen, "a writer on the disk that is cut stands still")
    longest, frozen = stall_on(site, "data", "stall-out", "--exclude", "data")
    site.tap.ok(longest < 0.9 * frozen, "a writer on the disk that is left out goes on")
    longest, frozen = stall_on(site, "data", "stall-all", "--exclude", "data", "--freeze", "all")
    site.tap.ok(longest > 0.9 * frozen, "... unless all is to be frozen")


def not_certain(site):
    """The agent tells the LUN of a SCSI disk, which is 0 for both."""
    record = took(site, "scsi", "--exclude", "data", what="disks that cannot be told apart",
                  policy="all", mounts=None, count=2)
    site.tap.ok("not certain" in record["evidence"].get("freezeMessage", ""),
                "... and it says why all was frozen")
    site.tap.is_(record["warnings"], [], "... which nobody has to be warned of")
    took(site, "scsi-named", "--exclude", "data", "--freeze", "/mnt/web", what="named all the same",
         policy="named", mounts=["/mnt/web"], count=1, quality="crash")


def main():
    with guest_test() as (tap, folder):
        with Site(tap, folder / "blk", [Disk("web"), Disk("data")]) as site:
            site.boot()
            for part in (choices, stalls):
                tap.diag(part.__name__)
                part(site)
            site.thawed("the end")
            site.tidy("the end")
        with Site(tap, folder / "scsi", [Disk("web"), Disk("data")], bus="virtio-scsi") as site:
            site.boot()
            not_certain(site)
            site.thawed("SCSI")
            site.tidy("SCSI")


if __name__ == "__main__":
    main()
