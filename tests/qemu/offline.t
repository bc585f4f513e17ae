#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A VM that is not running: when it counts as one, what is in the way, and what becomes of its images.

Whatever happens: nothing of the disks is lost, nothing is left lying about, and no storage daemon.
What happens when vmfrost is killed: offline-kill.t, and at its end restore.t and delete.t.
"""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (LabError, Qemu, Tap, blockdev, drive, finish, go_on, image_info, image_ok, lab,
                  make_image, process_state, run, small_folder, wait_until)

DISKS = ["web", "data"]
IMAGES = ["web.qcow2", "data.qcow2"]


def one_line(text):
    return " | ".join(text.split("\n"))


def words_for(form):
    return [word for disk in DISKS for word in form(disk)]


class Stopped(Qemu):
    """A VM with two disks that was seen running with the snapshot "one", and is off. Its disks have
    [1, 0] in that, and [1, 2] now. After every command its storage daemon is looked for."""

    def __init__(self, form=drive, named=False, seen=True):
        super().__init__(words_for(form), IMAGES)
        self.left = []
        if named:
            lab.vmfrost("add", "known", "--qmp", self.socket, state_dir=self.state)
        if seen:
            self.start()
            self.fill(1, 0)
            self.take("one")
            self.fill(2, 1)
            self.kill()
            self.vmfrost("recover")  # sweeps the hidden names of that QEMU

    def __enter__(self):
        return self

    def fill(self, pattern, cluster):
        for disk in DISKS:
            self.write(disk, pattern, cluster)

    def daemons(self):
        """The storage daemons of our commands."""
        mark = f"VMFROST_STATE_DIR={self.state}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and b"storage-daemon" in (entry / "cmdline").read_bytes() \
                        and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                pass
        return found

    def vmfrost(self, verb, *words, env=None, timeout=lab.PATIENCE):
        out = super().vmfrost(verb, *words, env=env, timeout=timeout)
        if self.daemons():
            self.left.append(f"{verb} {words} left its storage daemon")
        return out

    def records(self):
        return {record["name"]: record for record in self.vmfrost("list").result}

    def content(self, image):
        try:
            return self.read(image, 3)
        except (OSError, struct.error) as error:
            return str(error)

    def picture(self):
        """All that an operation that is refused must leave as it was."""
        return ({entry.name: entry.stat().st_ino for entry in self.disks.iterdir()},
                [self.content(image) for image in IMAGES], list(self.records()), self.journal())

    def wrong(self, now, *snapshots, also=()):
        """What is wrong, when each disk should have `now`, and the snapshots are there, with their
        content ("one", [1, 0])."""
        found, self.left = self.left, []
        names = {*IMAGES, *(f"{disk}@{name}.qcow2" for disk in DISKS for name, _ in snapshots), *also}
        if set(self.names()) != names:
            found.append(f"names: {self.names()}")
        for disk in DISKS:
            for name, want in (("", now), *((f"@{name}", want) for name, want in snapshots)):
                got = self.read(f"{disk}{name}.qcow2", len(want))
                if got != want:
                    found.append(f"{disk}{name}: {got} and not {want}")
        ready = sorted(name for name, record in self.records().items() if record["readyToUse"])
        if ready != sorted(name for name, _ in snapshots):
            found.append(f"records: {ready}")
        if self.journal():
            found.append("there is a journal")
        return found

    def boots(self, want):
        """The launcher starts it as ever; what its guest then sees is wrong."""
        self.start()
        found = [f"{disk}: its guest sees {self.sees(disk, len(want))} and not {want}"
                 for disk in DISKS if self.sees(disk, len(want)) != want]
        self.kill()
        return found


CHANGES = (("snapshot", "@two"), ("restore", "@one", "--keep-name", "kept"), ("delete", "@one"))


def refused(t, vm, what, error, code=3, hint="", changes=CHANGES, failed=("two",)):
    """Each of the changes is refused with those words, and nothing is changed."""
    before = vm.picture()
    for words in changes:
        out = vm.vmfrost(*words)
        t.ok(out.code == code and re.search(error, out.error) and re.search(hint, out.next),
             f"{what}: {words[0]}: {out.code} {out.error} | {out.next}")
        if words[0] == "snapshot" and out.code == 1:
            for name in failed:  # accepted, and failed: the record says so
                vm.vmfrost("delete", f"@{name}")
        t.is_((vm.picture(), vm.left), (before, []), "... and changes nothing")
        vm.left = []


# --- it runs -----------------------------------------------------------------------------

def out_of_reach(t):
    """It runs, but its socket is not where it should be."""
    with Stopped() as vm:
        vm.start()
        moved = vm.run / "moved.sock"
        vm.socket.rename(moved)
        refused(t, vm, "its socket is elsewhere",
                rf"QEMU \(pid {vm.pid}\) has .*\.qcow2 open, but nobody listens on {vm.socket}",
                hint="vmfrost discover")
        out = vm.vmfrost("check")
        t.ok(out.code == 3 and "has" in out.error, "... check says the same")
        out = vm.vmfrost("status")
        t.ok(out.code == 0 and out.document["running"] is False, "... status is no error")
        moved.unlink()
        vm.socket.write_text("not a socket")
        refused(t, vm, "its socket is gone, and a file is there", ".", changes=CHANGES[:1])
        vm.socket.unlink()
        vm.fill(3, 2)
        vm.kill()
        out = vm.vmfrost("snapshot", "@two")
        t.is_((out.code, vm.wrong([1, 2, 3], ("one", [1, 0, 0]), ("two", [1, 2, 3]))), (0, []),
              "when it has ended, a snapshot is taken")


HOLDERS = (
    ("qemu-nbd", "writer", lambda image, run: ["qemu-nbd", "-t", "-f", "qcow2", "-k", run / "nbd", image]),
    ("qemu-nbd", "reader", lambda image, run: ["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", run / "nbd", image]),
    ("qemu-img", "reader", lambda image, run: ["qemu-img", "bench", "-c", "1000000000", "-f", "qcow2", image]),
    ("qemu-storage-daemon", "writer", lambda image, run: [
        "qemu-storage-daemon", "--blockdev", f"driver=file,filename={image},node-name=f",
        "--blockdev", "driver=qcow2,file=f,node-name=n",
        "--nbd-server", f"addr.type=unix,addr.path={run / 'nbd'}",
        "--export", "type=nbd,id=e,node-name=n,writable=on"]),
)


def has_open(pid, inode):
    try:
        return any(entry.stat().st_ino == inode for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


class Holder:
    """Another program has an image of the VM open, with its locks."""

    def __init__(self, vm, image, make):
        self.process = lab.spawn(make(vm.disks / image, vm.run), stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        locks = f":{vm.inode(image)} "
        wait_until(lambda: has_open(self.process.pid, vm.inode(image)) and
                   locks in Path("/proc/locks").read_text(), what="the other program's locks")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def locked(t):
    """Somebody else uses an image, which may be a QEMU that cannot be seen from here."""
    with Stopped() as vm:
        for image in reversed(IMAGES):
            for program, kind, make in HOLDERS if image == "data.qcow2" else HOLDERS[:1]:
                every = image == "data.qcow2" and program == "qemu-nbd"
                with Holder(vm, image, make):
                    refused(t, vm, f"{program} is a {kind} of {image}",
                            f"disk {image[:-6]}: somebody else uses {vm.disks / image} .*lock",
                            hint="container", changes=CHANGES if every else CHANGES[:1])
                    out = vm.vmfrost("status")
                    t.is_(out.code, 0, "... status is no error")
        t.is_(vm.wrong([1, 2], ("one", [1, 0])), [], "all is as it was")
        # A reader of a snapshot is in nobody's way, but for a deletion that has to write to it.
        with Holder(vm, "web@one.qcow2", HOLDERS[1][2]):
            out = vm.vmfrost("snapshot", "@two")
            t.is_((out.code, out.error), (0, ""), "a reader of an older snapshot: a snapshot")
            out = vm.vmfrost("restore", "@two", "--discard")
            t.is_((out.code, out.error), (0, ""), "... and a restore")
            out = vm.vmfrost("delete", "@one")
            wrong = [] if out.code == 0 or "lock" in out.error or "open" in out.error else [out]
            for disk in DISKS:
                if vm.read(f"{disk}.qcow2", 2) != [1, 2] or \
                        vm.read(f"{disk}@two.qcow2", 2) != [1, 2]:
                    wrong.append(disk)
            t.is_(wrong, [], f"... its deletion: {out.code} {out.error} | {out.next}")
        if out.code:
            out = vm.vmfrost("delete", "@one")
            t.is_((out.code, out.error), (0, ""), "... and when it has ended")
        t.is_(vm.wrong([1, 2], ("two", [1, 2])) + vm.boots([1, 2]), [], "all is well")


# --- the images ----------------------------------------------------------------------------

def likeness(t):
    """What takes an image's place belongs to whom that belonged, who may be another user."""
    with Stopped() as vm:
        root = os.geteuid() == 0
        wrong = []

        def look(when, *names):
            for name in names:
                about = (vm.disks / name).stat()
                found = (about.st_uid, about.st_gid, about.st_mode & 0o7777)
                if found != ((1234, 4321, 0o640) if root else
                             (os.geteuid(), about.st_gid, 0o640)):
                    wrong.append(f"{when}: {name}: {found}")

        def do(*words):
            out = vm.vmfrost(*words)
            if out.code:
                wrong.append(f"{words}: {out.code} {out.error}")

        for name in vm.names():
            if root:
                os.chown(vm.disks / name, 1234, 4321)
            os.chmod(vm.disks / name, 0o640)
        do("snapshot", "@two")
        look("snapshot", *IMAGES, "web@two.qcow2")
        do("restore", "@one", "--keep-name", "kept")
        look("restore", *IMAGES, "web@kept.qcow2", "web@one.qcow2")
        do("delete", "@one")
        do("delete", "@kept")
        look("delete", *vm.names())
        t.is_(wrong + vm.left, [], "owner, group and mode of new images are those of the old ones")


def not_root(t):
    """vmfrost is run by a user who may write to the images, but does not own them."""
    if os.geteuid() != 0:
        t.skip("another user's images", "only root can make them")
        return
    with Stopped(seen=False) as vm:
        wrapper = vm.folder / "as-nobody"
        program = shutil.copy2(lab.vmfrost_program(), vm.folder)  # which that one may run
        wrapper.write_text("#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --groups=4321 "
                           f"{program} \"$@\"\n")
        wrapper.chmod(0o755)
        for image in IMAGES:
            os.chown(vm.disks / image, 0, 4321)
            os.chmod(vm.disks / image, 0o660)
        before = os.environ.get("VMFROST")
        os.environ["VMFROST"] = str(wrapper)
        try:
            vm.state = vm.folder / "nobody"
            vm.state.mkdir(mode=0o700)
            os.chown(vm.state, 65534, 65534)
            declare(vm, web="qcow2", data="qcow2")
            out = vm.vmfrost("snapshot", "@one")
        finally:
            os.environ.pop("VMFROST") if before is None else os.environ.update(VMFROST=before)
        about = [(vm.disks / image).stat() for image in IMAGES]
        t.is_((out.code, out.error, [(each.st_uid, each.st_gid, each.st_mode & 0o777)
                                     for each in about]), (0, "", [(65534, 4321, 0o660)] * 2),
              "another user's images: what can be kept is kept")
        t.ok(any(re.search(r"disk web: .*web.qcow2.*user 65534.*0", warning)
                 for warning in out.document["warnings"]),
             f"... and of the rest is told: {out.document['warnings']}")


def no_room(t):
    """Folders that cannot be written to; full ones. The second disk's, too."""
    with Stopped() as vm:
        vm.start()
        vm.take("zero")
        vm.kill()  # and its hidden names are there
        if run("chattr", "+i", vm.disks, check=False).returncode:
            t.skip("an immutable folder", "chattr +i does not work here")
        else:
            try:
                refused(t, vm, "the folder is immutable", "disk web", code=1, changes=CHANGES[:2])
                out = vm.vmfrost("delete", "@one")
                t.ok(out.code and vm.read("web.qcow2", 2) == [1, 2],
                     f"... delete: {out.code} {out.error}")
                t.is_(len(vm.hidden()), 2, "... hidden names cannot be removed")
            finally:
                run("chattr", "-i", vm.disks)
            out = vm.vmfrost("recover")
            t.is_(out.code, 0, "... recover, when it is not")
            if "one" in vm.records():
                out = vm.vmfrost("delete", "@one")
            t.is_((out.code, vm.wrong([1, 2], ("zero", [1, 2])), vm.boots([1, 2])), (0, [], []),
                  "... and all is well, with the hidden names gone")
    with Stopped() as vm:
        with small_folder(t, vm.folder / "small", 6) as small:
            if not small:
                return
            for name in vm.names():
                if name.startswith("data"):
                    shutil.copyfile(vm.disks / name, small / name)
            vm.words = [*drive("web"), *drive("data", file=str(small / "data.qcow2"))]
            lab.vmfrost("storage", "set", "any", "minFree=0", state_dir=vm.state)
            vm.start()
            vm.vmfrost("snapshot", "@moved")  # so that its place is known
            vm.kill()
            vm.vmfrost("recover")
            filler = small / "filler"
            for left in (0, 2):  # three are needed at least
                filler.write_bytes(b"")
                about = os.statvfs(small)
                filler.write_bytes(b"x" * (about.f_bavail - left) * about.f_frsize)
                names = sorted(entry.name for entry in small.iterdir())
                for words in (("snapshot", "@two"), ("restore", "@moved", "--discard")):
                    before = vm.picture()
                    out = vm.vmfrost(*words)
                    t.ok(out.code == 1 and "disk data" in out.error and
                         "No space left" in out.error, f"{left} blocks are left: {words[0]}: {out.error}")
                    vm.vmfrost("delete", "@two")
                    t.is_((vm.picture(), sorted(entry.name for entry in small.iterdir()), vm.left),
                          (before, names, []), "... and nothing is left behind")
            filler.unlink()
            out = vm.vmfrost("snapshot", "@two")
            t.is_((out.code, out.error, vm.boots([1, 2])), (0, "", []), "with room it is taken")
            run("mount", "-o", "remount,ro", small)
            out = vm.vmfrost("snapshot", "@three")
            t.ok(out.code and "data" in out.error, f"mounted read-only: {out.code} {out.error}")
            t.is_(vm.journal(), [], "... there is no journal")
            run("mount", "-o", "remount,rw", small)
            t.is_((vm.boots([1, 2]), vm.left), ([], []), "... and nothing is lost")
            vm.kill()


def missing(t):
    with Stopped() as vm:
        data = vm.disks / "data.qcow2"
        data.rename(vm.folder / "away")
        refused(t, vm, "an image is missing", f"data.*{data}.*is missing", code=1)
        # What the words of QEMU are about, and not the names in them.
        blocks = vm.disks / "locks"
        blocks.mkdir()
        out = lab.vmfrost("add", "other", "--qmp", vm.run / "never.sock", "--set", "disks=" + json.dumps(
            [{"name": "data", "file": str(blocks / "data.qcow2"), "format": "qcow2"}]),
            state_dir=vm.state)
        out = lab.vmfrost("snapshot", "other", state_dir=vm.state)
        t.ok(out.code == 1 and "is missing" in out.err and "somebody else" not in out.err,
             f"... in a folder with a name like that: {one_line(out.err)}")
        blocks.rmdir()
        data.write_bytes(b"")
        refused(t, vm, "an image is empty", f"data.*{data}", code=1)
        data.unlink()
        (vm.folder / "away").rename(data)
        sealed = vm.disks / "web@one.qcow2"
        sealed.rename(vm.folder / "away")
        refused(t, vm, "what it builds on is missing", "web@one.qcow2", code=1)
        (vm.folder / "away").rename(sealed)
        t.is_(vm.wrong([1, 2], ("one", [1, 0])) + vm.boots([1, 2]), [], "all is back")


def links(t):
    """The launcher opens a symbolic link. Declared, or seen through QEMU."""
    for declared in (False, True):
        with Stopped(seen=False) as vm:
            for image in IMAGES:
                (vm.disks / image).rename(vm.folder / image)
                (vm.disks / image).symlink_to(vm.folder / image)
            if declared:
                declare(vm, web="qcow2", data="qcow2")
            else:
                lab.vmfrost("add", "known", "--qmp", vm.socket, state_dir=vm.state)
            vm.start()
            vm.fill(1, 0)
            if not declared:
                vm.vmfrost("status")
            vm.kill()
            wrong = []
            for step in (("snapshot", "@one"), ("snapshot", "@two"), ("restore", "@one", "--discard"),
                         ("delete", "@one"), ("delete", "@two")):
                out = vm.vmfrost(*step)
                if out.code:
                    wrong.append(f"{step}: {out.code} {out.error}")
                wrong += vm.boots([1, 0])
                if any(not (vm.disks / image).is_symlink() for image in IMAGES):
                    wrong.append(f"{step}: it is no symbolic link any more")
            t.is_((wrong + vm.left, vm.names()), ([], IMAGES[::-1]),
                  f"a symbolic link as image, {'declared' if declared else 'seen'}: "
                  "stays, and leads to the present state")


# --- what is known ---------------------------------------------------------------------------

def declare(vm, name="known", **formats):
    """The VM with its disks and their formats, by the setting."""
    disks = [{"name": disk, "file": str(vm.disks / f"{disk}.qcow2"), "format": fmt}
             for disk, fmt in formats.items()]
    return lab.vmfrost("add", name, "--qmp", vm.socket, "--set", f"disks={json.dumps(disks)}",
                       state_dir=vm.state)


def unknown(t):
    with Stopped(seen=False) as vm:
        before = vm.names()
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code == 3 and "never seen" in out.next and "disks" in out.next,
             f"a VM that nobody knows: {out.error} | {out.next}")
        t.is_((vm.names(), vm.left), (before, []), "... and nothing is made")

        t.is_(declare(vm, web="qcow2", data="qcow2").code, 0, "its disks are declared")
        out = vm.vmfrost("status")
        t.is_([disk["name"] for disk in out.document["lastSeen"]["disks"]], DISKS,
              "... status knows them")
        out = vm.vmfrost("snapshot", "@one")
        record = vm.records().get("one", {})
        t.is_((out.code, out.error, record.get("consistency"), record.get("indications"),
               [disk["name"] for disk in record["snapshotVolumes"]["included"]]),
              (0, "", "offline", ["Offline"], DISKS), "... and a snapshot can be taken")
        t.is_(vm.wrong([0, 0], ("one", [0, 0])) + vm.boots([0, 0]), [], "... which is right")
        vm.start()
        vm.fill(1, 0)
        vm.take("two")
        vm.fill(2, 1)
        vm.kill()
        out = vm.vmfrost("restore", "@one", "--keep-name", "kept")
        t.is_((out.code, vm.wrong([0, 0], ("one", [0, 0]), ("two", [1, 0]), ("kept", [1, 2]))),
              (0, []), "... and taken back, with what a running VM had since")

    # A format that is not the image's: a raw one could be anything, but this is not.
    with Stopped(seen=False) as vm:
        declare(vm, web="raw", data="qcow2")
        refused(t, vm, "declared raw, but it is qcow2", "web.*raw.*qcow2", code=1,
                changes=CHANGES[:1])
        make_image(vm.disks / "web.raw", "raw")
        lab.vmfrost("add", "other", "--qmp", vm.run / "other.sock", "--set", "disks=" + json.dumps(
            [{"name": "web", "file": str(vm.disks / "web.raw"), "format": "qcow2"}]),
            state_dir=vm.state)
        out = lab.vmfrost("snapshot", "other", state_dir=vm.state)
        t.ok(out.code == 1 and "web" in out.err, f"declared qcow2, but it is raw: {one_line(out.err)}")
        t.is_(vm.names(), ["data.qcow2", "web.qcow2", "web.raw"], "... nothing is made")


def remembered(t):
    """What was seen last counts, also when the VM was seen with other disks than now."""
    with Stopped(named=True) as vm:
        out = vm.vmfrost("status")
        t.ok(out.document["lastSeen"]["seen"] and
             [disk["name"] for disk in out.document["lastSeen"]["disks"]] == DISKS,
             "the disks are remembered")
        out = vm.vmfrost("check")
        t.is_((out.code, out.document["wouldSucceed"], out.document["running"]), (0, True, False),
              "check: a snapshot would succeed")
        for path in vm.state.glob("vms/*/disks.json"):
            text = path.read_text()
            path.write_text("{")
            out = vm.vmfrost("snapshot", "@two")
            t.ok(out.code == 1 and str(path) in out.error, f"a damaged disks.json: {out.error}")
            path.write_text(text)
        # Whoever only looks does not keep anybody from starting it.
        command = vm.stop_at("look+", "check")
        vm.start()
        out = go_on(command)
        t.is_((out.code, [vm.sees(disk, 2) for disk in DISKS]), (0, [[1, 2], [1, 2]]),
              "check keeps nobody from starting the VM")
        vm.kill()
        t.is_(vm.wrong([1, 2], ("one", [1, 0])), [], "... and changes nothing")


def telling(t):
    """What people are shown of it."""
    with Stopped() as vm:
        def shown(*words):
            done = lab.vmfrost(*words, state_dir=vm.state)
            return done.out + done.err

        lab.vmfrost("add", "known", "--qmp", vm.socket, state_dir=vm.state)
        t.is_([record["vm"] for record in json.loads(shown("list", "known", "--json"))], ["known"],
              "what was taken by the socket's path has the VM's name when that has one")
        t.ok("known@one" in shown("show", "known@one"), "... also when it is shown")
        text = shown("status", "known")
        t.ok(text.startswith("known  not running\n") and "warning" not in text,
             "that a VM is not running is no warning")
        t.ok(re.search(r"last seen with, \d+ s ago", text) and
             re.search(rf"^  web +qcow2 +16.0 MiB +- +yes \(flip\) +{vm.disks / 'web.qcow2'}$", text,
                       re.M), "... and its disks are shown, as far as they are known")
        text = shown("status")
        t.ok(re.search(r"^known +not running +- +2 of 2 +1 *$", text, re.M) and
             "warning" not in text, "... in one line, too")
        out = vm.vmfrost("status")
        t.is_((out.document["running"], out.document["warnings"]), (False, []), "... and in JSON")
        vm.start()
        hidden = vm.take("two") and vm.hidden()
        text = shown("status", "known")
        t.ok(len(hidden) == 2 and all(f" {vm.disks / image}\n" in text for image in IMAGES) and
             not any(name in text for name in hidden),
             "of a running one the visible names are shown, whatever QEMU calls the images")
        moved = vm.run / "moved.sock"
        vm.socket.rename(moved)
        out = vm.vmfrost("status")
        t.ok(len(out.document["warnings"]) == 1 and f"QEMU (pid {vm.pid}) has" in
             out.document["warnings"][0], f"it runs out of reach: {out.document['warnings']}")
        moved.rename(vm.socket)
        vm.kill()
    with Stopped(seen=False) as vm:
        done = lab.vmfrost("status", "--qmp", vm.socket, state_dir=vm.state)
        t.ok("cannot connect" in done.err, f"a VM that was never seen: {done.err.strip()}")
        declare(vm, web="qcow2")
        done = lab.vmfrost("status", "known", state_dir=vm.state)
        t.ok("setting" in done.out and re.search(r"^  web +qcow2 +- +- +yes +/", done.out, re.M)
             and not done.err, "its disks are declared")


# --- it is started in the middle ------------------------------------------------------------

POINTS = (
    (("snapshot", "@two"), ("look+", "overlays", "overlays.created", "overlays.named", "flip",
                            "flip.first", "verify", "record", "record.saved")),
    (("restore", "@one", "--discard"), ("overlays+", "flip", "flip.first", "pivot", "record")),
    (("delete", "@two"), ("accept", "graft", "graft.started", "graft.joined", "drop", "remove")),
)


def to_its_end(command):
    """Some points are come to once for each disk."""
    def goes_on():
        if process_state(command.pid) == "T":
            command.signal(signal.SIGCONT)
        return command.process.poll() is not None

    wait_until(goes_on, what="the command's end", interval=0.005)
    return finish(command)


def in_the_middle(t):
    """The launcher starts the VM while vmfrost works on its images: it fails on QEMU's locks, or it
    opens a right state, and keeps that."""
    with Stopped() as vm:
        now, pattern = [1, 2, 0], 10
        for words, points in POINTS:
            kept_out = 0
            for point in points:
                wrong = []
                pattern += 1
                if words[0] == "delete":
                    vm.vmfrost("snapshot", "@two")
                command = vm.stop_at(point, *words)
                then = [1, 0, 0] if words[0] == "restore" else now
                try:
                    vm.start()
                    seen = vm.sees("web", 3)
                    wrong += [] if seen == then else [f"it began with {seen}, and not {then}"]
                    vm.fill(pattern, 2)
                    then = [*then[:2], pattern]
                    what = "it runs"
                except LabError as error:
                    wrong += [] if '" lock' in str(error) else [f"{error}"]
                    kept_out += 1
                    what = "it is kept out"
                out = to_its_end(command)
                if out.code:
                    wrong.append(f"{out.code} {out.error}")
                vm.kill()
                two = [("two", [*now[:2], 0 if words[0] == "delete" else now[2]])]
                now = then
                vm.vmfrost("recover")
                wrong += vm.wrong(now, ("one", [1, 0, 0]), *(two if words[0] == "snapshot" else []))
                t.is_(wrong, [], f"{words[0]}, the VM is started at {point}: {what}")
                if words[0] == "snapshot":
                    vm.vmfrost("delete", "@two")
            t.ok(0 < kept_out, f"{words[0]}: it was kept out at {kept_out} of {len(points)} points")
        t.is_(vm.boots(now), [], "in the end it starts as ever")


# --- the whole way -----------------------------------------------------------------------------

def the_way(t):
    """Snapshots, restores and deletions while it is off, and after each one the launcher's unchanged
    command line boots the right content."""
    for form in (drive, blockdev):
        wrong = []
        with Stopped(form) as vm:
            def do(now, *words, boots=True):
                out = vm.vmfrost(*words)
                if out.code:
                    wrong.append(f"{words}: {out.code} {out.error}")
                if boots:
                    wrong.extend(f"{words}: {line}" for line in vm.boots(now))

            def guest(pattern, cluster):
                vm.start()
                vm.fill(pattern, cluster)
                vm.kill()

            do([1, 2, 0], "snapshot", "@two", boots=False)
            guest(3, 2)
            do([1, 2, 3], "snapshot", "@three", boots=False)
            guest(4, 0)
            do([1, 0, 0], "restore", "@one", "--keep-name", "four")
            guest(5, 1)
            do([1, 5, 0], "snapshot", "@branch", boots=False)
            do([4, 2, 3], "restore", "@four", "--discard")
            wrong += vm.wrong([4, 2, 3], ("one", [1, 0, 0]), ("two", [1, 2, 0]),
                              ("three", [1, 2, 3]), ("four", [4, 2, 3]), ("branch", [1, 5, 0]))
            do([4, 2, 3], "delete", "@two", boots=False)
            do([4, 2, 3], "delete", "@one")
            wrong += vm.wrong([4, 2, 3], ("three", [1, 2, 3]), ("four", [4, 2, 3]),
                              ("branch", [1, 5, 0]))
            do([1, 5, 0], "restore", "@branch", "--discard")
            for name in ("four", "branch", "three"):
                do([1, 5, 0], "delete", f"@{name}", boots=name == "three")
            wrong += vm.wrong([1, 5, 0])
            for image in IMAGES:
                if not image_ok(vm.disks / image, leaks=True) or \
                        image_info(vm.disks / image)["backing-filename"]:
                    wrong.append(f"{image}: {image_info(vm.disks / image)}")
        t.is_(wrong, [], f"a stopped VM, -{form.__name__}: there and back")


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (out_of_reach, locked, likeness, not_root, no_room, missing, links, unknown, remembered,
                     telling, in_the_middle, the_way):
            if only in part.__name__:
                part(t)


main()
