#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Going back to a snapshot with a real guest: it boots again by itself, finds what it had then and
nothing of what came later, and can be brought back to that, too. Its file systems stay whole."""

from guesttest import Disk, Site, guest_test, wait_until


def boot_id(site):
    return site.vm.sh("cat /proc/sys/kernel/random/boot_id").out.strip()


def write_mark(site, name):
    site.vm.sh(f"for m in /mnt/*; do echo {name} >$m/{name}; done; sync", timeout=30)


def marks(site):
    """The marks that each file system has."""
    return site.vm.sh("cd /mnt; for m in *; do echo $m $(cd $m; ls | grep ^mark); done",
                      timeout=30).out.split("\n")[:-1]


def on_all(*names):
    return [" ".join((disk, *names)) for disk in ("data", "logs", "web")]


def has_booted(site, before, what):
    """A test: the guest has booted by itself, and its agent answers again."""
    site.vm.hang_up()
    site.vm.wait_agent()
    after = boot_id(site)
    site.tap.ok(after != before, f"{what}: the guest has booted anew")
    site.thawed(what)
    return after


def online(site):
    tap = site.tap
    first = boot_id(site)
    write_mark(site, "mark-1")
    site.snapshot(0, "one", what="a snapshot")
    write_mark(site, "mark-2")
    site.vm.start_writer("web", "data")
    wait_until(lambda: site.vm.writer_acked() > 20, what="the writer's first records")
    acked = site.vm.writer_acked()
    site.expect(1, "restore", "web@one", what="a VM that runs is refused")
    tap.is_(boot_id(site), first, "... and goes on")
    site.expect(0, "restore", "web@one", "--reset", "--keep-name", "later",
                what="restored in place")
    second = has_booted(site, first, "back to one")
    tap.is_(marks(site), on_all("mark-1"), "back to one: as it was then")
    site.one_instant("web", "data", acked, "what was kept of the running guest", "later")
    site.tidy("back to one")
    write_mark(site, "mark-3")

    # The launcher knows nothing of all that.
    site.vm.kill()
    site.boot()
    tap.is_(marks(site), on_all("mark-1", "mark-3"), "started again: it goes on from there")
    second = boot_id(site)
    site.expect(0, "restore", "web@later", "--reset", "--discard", what="and back again")
    has_booted(site, second, "back to later")
    tap.is_(marks(site), on_all("mark-1", "mark-2"), "back to later: as it was then")
    site.tidy("back to later")
    write_mark(site, "mark-4")
    site.power_off()
    tap.is_(site.damage(), [], "off: the file systems are whole")


def offline(site):
    """The guest is shut down, restored, and booted."""
    tap = site.tap
    site.expect(0, "restore", "web@one", "--keep-name", "off", what="restored while it is off")
    tap.is_((site.record("off")["consistency"], site.record("off")["restoredTo"]),
            ("offline", "one"), "... what was kept is told as such")
    site.tidy("restored while it is off")
    site.boot()
    tap.is_(marks(site), on_all("mark-1"), "booted: as it was then")
    write_mark(site, "mark-5")
    site.power_off()
    site.expect(0, "restore", "web@off", "--discard", what="and back again")
    site.boot()
    tap.is_(marks(site), on_all("mark-1", "mark-2", "mark-4"), "booted: as it was before")
    site.power_off()
    tap.is_(site.damage(), [], "off again: the file systems are whole")
    site.expect(0, "recover", "web", what="off again: nothing to recover")
    site.tidy("off again")


with guest_test() as (tap, folder):
    with Site(tap, folder, [Disk("web"), Disk("data"), Disk("logs", fs="xfs")]) as site:
        site.boot()
        online(site)
        offline(site)
