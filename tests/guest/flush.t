#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Dirty pages in the guest, on a slow disk: they are written out before the freeze, not in it; what
cannot be flushed, or not in time, does no harm to the snapshot."""

from guesttest import Disk, Site, guest_test

MIB = 1 << 20
DIRTY = 24       # MiB in the guest's page cache
SPEED = 12 * MIB  # of the disk, in bytes a second: two seconds for that


def make_dirty(site):
    """Only in the guest's cache: without a sync nothing is written for half a minute."""
    site.vm.sh("echo 6000 > /proc/sys/vm/dirty_expire_centisecs; "
               "echo 6000 > /proc/sys/vm/dirty_writeback_centisecs; "
               f"dd if=/dev/zero of=/mnt/web/dirty bs=1M count={DIRTY} conv=notrunc 2>/dev/null")


def frozen_for(site, name, *options):
    """How long the freeze took, in ms, and the record's evidence."""
    make_dirty(site)
    record = site.snapshot(0, name, *options)
    site.tap.is_(record["consistency"], "filesystem", f"{name}: consistent")
    site.expect(0, "delete", f"web@{name}")
    return record["evidence"]["freezeMs"], record["evidence"]


def main():
    with guest_test() as (tap, folder):
        with Site(tap, folder, [Disk("web")]) as site:
            site.boot()
            device = site.vm.qmp("query-block")[0]["qdev"]
            for number in range(2):
                site.vm.qmp("block_set_io_throttle", {
                    "id": device, "bps": 0, "bps_rd": 0, "bps_wr": SPEED, "iops": 0, "iops_rd": 0,
                    "iops_wr": 0})
                off, evidence = frozen_for(site, f"off{number}", "--flush", "off")
                tap.ok("flushMs" not in evidence, "off: no flush")
                auto, evidence = frozen_for(site, f"auto{number}")
                tap.diag(f"freeze {off} ms, after a flush of {evidence.get('flushMs')} ms {auto} ms")
                tap.ok(evidence.get("flushMs", 0) > 500, "auto: the flush took its time")
                tap.ok(auto < off / 2, "... and the freeze much less than without it")
                tap.ok("hostFlushMs" in evidence, "... and the host's cache was flushed, too")
            own, evidence = frozen_for(site, "own", "--flush", "sync; echo flushed > /run/flushed")
            tap.is_(site.vm.sh("cat /run/flushed").out.strip(), "flushed", "a command of one's own")
            record = site.snapshot(0, "failing", "--flush", "exit 3")
            tap.ok(any("ended with 3" in line for line in record["warnings"]) and
                   record["consistency"] == "filesystem", "one that fails is only a warning")
            site.expect(0, "delete", "web@failing")
            record = site.snapshot(0, "slow", "--flush", "sleep 60")
            tap.ok(any("in time" in line for line in record["warnings"]) and
                   record["consistency"] == "filesystem", "one that takes for ever is not waited for")
            site.expect(0, "delete", "web@slow")
            site.expect(2, "snapshot", "web@empty", "--flush", "", what="an empty command: usage")
            site.add("flush=off")
            _, evidence = frozen_for(site, "setting")
            tap.ok("flushMs" not in evidence, "the setting says off")
            site.thawed("the end")
            site.tidy("the end")


if __name__ == "__main__":
    main()
