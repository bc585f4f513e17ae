#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A long life: ten snapshots of three disks, one on top of the other, while the guest writes, and
then all of them deleted in a random order, while it goes on writing.

What the guest was promised (its fsync has returned) is there, in every snapshot up to its cut and on
the disks to the end; no deletion changes a byte of another snapshot; and at last there is one
image for each disk, as if nothing had been, from which the unchanged command line boots.

VMFROST_TEST_SEED repeats a run: what is written where, and the order.
"""

import hashlib
import json
import os
import random
import signal
import time

from guesttest import Disk, RawCopy, Site, guest_test, instant_problem, is_stopped, run, wait_until

DISKS = ["web", "data", "logs"]  # in the writer's order
SNAPSHOTS = 10
PAUSE_US = 5000  # between the writer's records: its rings are to hold all that it writes
BLOCK = 4096


def seed():
    return int(os.environ.get("VMFROST_TEST_SEED") or time.time_ns() % 1000000)


# --- what the guest does

def goes_on(site, records=20):
    """The guest writes."""
    acked = site.vm.writer_acked()
    wait_until(lambda: site.vm.writer_acked() >= acked + records, what="the writer going on")


def change(site, choose):
    """The guest writes files besides, anew or over older ones: now more, now less on each disk."""
    for disk in DISKS:
        blocks = choose.choice([0, 1, 16, 64])
        if blocks:
            file = f"file-{choose.randrange(3)}"
            site.vm.sh(f"cd /mnt/{disk} && dd if=/dev/urandom of={file} bs=64k count={blocks} "
                       f"conv=fsync && md5sum {file} >/run/{disk}.{file}.md5", timeout=60)


def broken_files(site):
    """The files of the guest that are not as they were written."""
    return site.vm.sh("for d in /mnt/*; do cd $d; for f in file-*; do "
                      "md5sum -c /run/${d##*/}.$f.md5 >/dev/null || echo $d/$f; done; done; true",
                      timeout=60).out.split()


def sums(site):
    """The guest's list of what it has written, which does not survive it. As shell commands."""
    return site.vm.sh("cd /run; for f in *.md5; do echo \"echo '$(cat $f)' >/run/$f\"; done").out


# --- snapshots

def content(image):
    """A sum of all that a guest finds in an image, however much of it is holes."""
    total = hashlib.sha256()
    with RawCopy(image) as raw, open(raw, "rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            except OSError:  # no data beyond
                return total.hexdigest()
            file.seek(at)
            while at < end:
                block = file.read(BLOCK)
                if any(block):
                    total.update(b"%d:" % at + block)
                at += BLOCK


class Taken:
    """A snapshot: what has to be in it."""

    def __init__(self, site, name, least, most):
        self.site, self.name = site, name
        self.least, self.most = least, most  # records that had been promised at its cut
        self.was = self.now()

    def images(self):
        return [self.site.image(disk, self.name) for disk in DISKS]

    def now(self):
        return [content(image) for image in self.images()]

    def problem(self, images=None):
        """Why it is not what the guest had been promised; None if it is."""
        return instant_problem(*(images or self.images()), acked=self.least, most=self.most)


def take(site, name):
    """In the middle of the guest's work. The record behind those that are promised may have
    reached the disks, too."""
    least = site.vm.writer_acked()
    site.snapshot(0, name)
    return Taken(site, name, least, site.vm.writer_acked() + 1)


def take_marked(site, name):
    """The same, and looks how much the guest has been promised while it is frozen: no more and no
    less than that."""
    command = site.start("snapshot", f"web@{name}", env={"VMFROST_TEST_AT": "stop:flip"})
    wait_until(lambda: is_stopped(command), what="vmfrost behind the cut")
    acked = site.vm.writer_acked()
    command.signal(signal.SIGCONT)
    site.judge(command.wait(), 0, f"{name}: taken, looked at while it is frozen")
    return Taken(site, name, acked, acked + 1)


def last_line(done):
    return json.loads(done.out.splitlines()[-1])


def told_right(site, names, what):
    """What list, status and verify say."""
    tap = site.tap
    want = [(name, "Succeeded", True, "filesystem", names[at - 1] if at else None,
             at == len(names) - 1) for at, name in enumerate(names)]
    keys = ("name", "phase", "readyToUse", "consistency", "parent", "current")
    for command, snapshots in ("list", site.records()), ("status", site.status()["snapshots"]):
        tap.is_([tuple(about[key] for key in keys) for about in snapshots], want,
                f"{what}: {command} has the chain of the {len(names)} that are left")
    status = site.status()
    tap.is_((status["running"], status["warnings"], status.get("interrupted")), (True, [], None),
            f"{what}: status has nothing to complain of")
    verified = last_line(site.expect(0, "verify", "web", "--json", what=f"{what}: verify: exit 0"))
    images = verified["document"]["images"]
    tap.is_(sorted((image["disk"], image.get("snapshot", ""), image["current"], image["problems"])
                   for image in images),
            sorted((disk, name, not name, []) for disk in DISKS for name in ["", *names]),
            f"{what}: verify has looked at all images, and at no others")


def used(site, taken):
    """A snapshot in the middle, as whoever needs it gets it: whole copies, and clones."""
    tap, folder = site.tap, site.vm.folder.parent
    site.expect(0, "export", f"web@{taken.name}", f"{folder}/export/")
    images = [folder / "export" / f"{disk}.qcow2" for disk in DISKS]
    tap.is_(taken.problem(images), None, "exported: exactly what was promised before the cut")
    tap.is_([content(image) for image in images], taken.was, "... to the last byte")
    run("sh", "-c", "sha256sum --strict -c -- *.sha256", cwd=folder / "export")
    site.expect(0, "clone", f"web@{taken.name}", f"{folder}/clone/")
    images = [folder / "clone" / f"{disk}.qcow2" for disk in DISKS]
    tap.is_([content(image) for image in images], taken.was, "cloned: the same")
    site.expect(1, "delete", f"web@{taken.name}", what="it is not deleted below its clones")
    tap.is_((taken.problem(images), taken.now() == taken.was), (None, True), "... and is whole")
    for image in images:
        image.unlink()


# --- the life

def chain(site, choose):
    chain = []
    for number in range(1, SNAPSHOTS + 1):
        change(site, choose)
        goes_on(site)
        chain.append((take, take_marked)[number % 2](site, f"s{number}"))
        site.tap.is_(chain[-1].problem(), None,
                     f"s{number}: of one instant, with exactly what was promised before the cut")
    goes_on(site)
    told_right(site, [taken.name for taken in chain], "the chain")
    site.tidy("the chain")
    return chain


def delete_all(site, chain, choose):
    order = choose.sample(chain, len(chain))
    site.tap.diag("deleted in this order: " + " ".join(taken.name for taken in order))
    left = list(chain)
    for number, taken in enumerate(order, 1):
        what = f"{number}. deletion, of {taken.name}"
        at = left.index(taken)
        left.remove(taken)
        # The one below and those that read through what was joined: the next, and the last one.
        beside = left[max(at - 1, 0):at + 1] + left[at + 1:][-1:]
        site.expect(0, "delete", f"web@{taken.name}", what=f"{what}: exit 0")
        goes_on(site)
        told_right(site, [other.name for other in left], what)
        site.tap.is_([other.name for other in beside if other.now() != other.was], [],
                     f"{what}: what is left is what it was")
        site.tidy(what)
        if number == len(order) // 2:
            used(site, choose.choice(left))
        if number % 3 == 0:
            change(site, choose)


def all_is_there(site, acked, what):
    """As the guest sees it."""
    site.tap.is_(site.vm.read_writer(*DISKS), [acked] * len(DISKS),
                 f"{what}: the guest finds all {acked} records that it was promised on each disk")
    site.tap.is_(broken_files(site), [], f"{what}: ... and its files")


def as_if_nothing_had_been(site, acked):
    """The guest is off: what is there?"""
    tap = site.tap
    site.expect(0, "recover", "web", what="off: nothing to recover")
    tap.is_(sorted(site.listing()), sorted(f"{disk}.qcow2" for disk in DISKS),
            "off: one image for each disk, and nothing else")
    for disk in DISKS:
        about = json.loads(run("qemu-img", "info", "--output=json", site.image(disk)).stdout)
        tap.ok("backing-filename" not in about, f"off: {disk}.qcow2 stands alone")
        tap.is_(os.stat(site.image(disk)).st_nlink, 1, f"off: {disk}.qcow2 has no other name")
    tap.is_((site.records(), os.listdir(site.folder / "records")), ([], []), "off: no records")
    site.tidy("off")
    tap.is_(site.damage(), [], "off: images and file systems are whole")
    tap.is_(instant_problem(*map(site.image, DISKS), acked=acked, most=acked), None,
            "off: all records are in the images, whole and in order")


def main():
    number = seed()
    choose = random.Random(number)
    with guest_test() as (tap, folder):
        tap.diag(f"VMFROST_TEST_SEED={number}")
        with Site(tap, folder, [Disk("web"), Disk("data"), Disk("logs", fs="xfs")]) as site:
            site.boot().vm.start_writer(*DISKS, pause_us=PAUSE_US)
            delete_all(site, chain(site, choose), choose)
            change(site, choose)
            acked = site.vm.stop_writer()
            all_is_there(site, acked, "all deleted")
            restore_sums = sums(site)
            argv = list(site.vm.argv)
            site.power_off()
            as_if_nothing_had_been(site, acked)
            site.boot()
            tap.ok(site.vm.argv == argv, "the command line is unchanged")
            site.vm.sh(restore_sums)
            all_is_there(site, acked, "booted again")
            site.thawed("booted again")
            site.tidy("booted again")


if __name__ == "__main__":
    main()
