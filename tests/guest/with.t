#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""with, and prune after snapshots, on a guest that writes all the time: the command reads a
consistent image, and whatever happens the guest goes on with what it has written."""

import json
import os
import shutil

from guesttest import Disk, Site, ext4_needs_recovery, guest_test, instant_problem


def copies(site, name):
    """A folder for copies of the images, with the names of the disks."""
    folder = site.vm.folder / name
    folder.mkdir()
    return folder


def backup(site, what, folder, *options, code=0, also="true"):
    return site.expect(code, "with", *options, "web@backup", "--", "sh", "-c",
                       f'cp "$VMFROST_IMAGE_WEB" {folder}/web.qcow2 && '
                       f'cp "$VMFROST_IMAGE_DATA" {folder}/data.qcow2 && '
                       f'cp "$VMFROST_RECORD" {folder}/record && {also}',
                       what=f"{what}: exit {code}")


def good(site):
    """A copy that was made beside a guest that writes."""
    folder = copies(site, "../copies")
    acked = site.vm.writer_acked()
    backup(site, "with", folder, "--quiesce", "require")
    record = json.loads((folder / "record").read_text(encoding="utf-8"))
    site.tap.is_(record["consistency"], "filesystem", "the command is told that it is consistent")
    site.tap.ok(not ext4_needs_recovery(folder / "web.qcow2"), "the copy really is")
    site.tap.is_(instant_problem(folder / "web.qcow2", folder / "data.qcow2",
                                 acked=acked), None,
                 "its disks are of one instant, with all that was acknowledged")
    site.tap.is_(site.records(), [], "no record is left")
    site.thawed("with")
    site.tidy("with")
    acked = site.vm.writer_acked()
    site.tap.ok(acked > 0 and site.vm.guest_writes_ok(), "the guest writes on")
    shutil.rmtree(folder)


def failing(site):
    """A command that fails; a snapshot that is less than it should be."""
    folder = copies(site, "../failing")
    backup(site, "a command that fails", folder, code=7, also="exit 7")
    site.tidy("exit 7")
    site.tap.is_(site.records(), [], "exit 7: merged back")

    shutil.rmtree(folder)
    folder = copies(site, "../failing")
    site.vm.set_fault("thaw", "fail")
    done = backup(site, "a thaw that failed", folder, code=5)
    site.vm.clear_faults()
    site.tap.is_(os.listdir(folder), [], "a thaw that failed: the command is not run")
    site.tap.ok("could not be merged" not in done.err, "and the snapshot is merged back")
    site.tap.is_(site.records(), [], "so that no record is left")
    site.thawed("a thaw that failed")
    site.tidy("a thaw that failed")

    site.vm.set_fault("freeze", "fail")
    backup(site, "a freeze that failed", folder, code=1)
    site.vm.clear_faults()
    site.tap.is_(os.listdir(folder), [], "a freeze that failed: the command is not run")
    site.tap.is_([record["phase"] for record in site.records()], ["Failed"],
                 "and the record says why")
    site.expect(0, "prune", "web", "--failed", "--yes")
    site.tap.is_(site.records(), [], "until it is pruned")
    site.thawed("a freeze that failed")
    site.tidy("a freeze that failed")
    shutil.rmtree(folder)


def pruned(site):
    """Rules, with a guest that writes while its snapshots go."""
    acked = site.vm.writer_acked()
    site.expect(0, "snapshot", "web@one", "--keep-last", "2")
    done = site.expect(0, "prune", "web", "--max-age", "1ms")
    site.tap.ok("older than 1ms" in done.out and len(site.records()) == 1,
                "a plan changes nothing")
    site.expect(0, "prune", "web", "--max-age", "1ms", "--yes")
    site.tap.is_(site.records(), [], "pruned")
    site.tidy("pruned")
    site.tap.ok(site.vm.writer_acked() >= acked and site.vm.guest_writes_ok(),
                "the guest writes on")


def main():
    with guest_test() as (tap, folder):
        with Site(tap, folder / "site", [Disk("web"), Disk("data")]) as site:
            site.boot().vm.start_writer("web", "data")
            good(site)
            failing(site)
            pruned(site)
            site.vm.stop_writer()
            acked = site.vm.writer_acked()
            site.vm.kill()
            tap.is_(instant_problem(site.image("web"), site.image("data"), acked=acked), None,
                    "after all of it, the guest's disks hold all that it has written")


if __name__ == "__main__":
    main()
