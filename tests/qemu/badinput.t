#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Damaged, planted and odd files, in the state folder and among the images, on a real QEMU: nothing
is lost, nothing hangs, and whoever is told of it is told which file it is, and what to do.

    tests/qemu/badinput.t [PART]
"""

import contextlib
import copy
import hashlib
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import LabError, Qemu, Tap, drive, go_on, lab, make_image, run

ONLY = sys.argv[1] if len(sys.argv) > 1 else ""

# Nothing here takes a second, but a busy machine. What hangs does so for good.
PATIENCE = 60


# --- looking ----------------------------------------------------------------------------------

def look(folder):
    """{name: (kind and mode, inode, content)} of all that is below a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        about = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(about.st_mode) else \
            os.readlink(path) if path.is_symlink() else None
        found[str(path.relative_to(folder))] = (about.st_mode, about.st_ino, content)
    return found


def said(out):
    """All that a command told."""
    return "\n".join([out.error, out.next, out.err, json.dumps(out.document), str(out.result)])


def case(t, vm, what, command, code, words, next_words=()):
    """A command ends with this code, says all of these words, some of them as its hint, and leaves
    every image as it was. Its Out; None if it hangs."""
    before = look(vm.disks)
    try:
        out = vm.vmfrost(*command, timeout=PATIENCE)
    except LabError as error:
        t.ok(False, f"{what}: {error}")
        return None
    text = said(out)
    wrong = []
    if out.code != code:
        wrong.append(f"exit {out.code}, not {code}")
    wrong += [f"it does not say {word!r}" for word in map(str, words) if word not in text]
    wrong += [f"it does not advise {word!r}" for word in map(str, next_words) if word not in out.next]
    if code == 1 and not out.next:
        wrong.append("no next step")
    after = look(vm.disks)
    wrong += [f"{name}: {before.get(name)} -> {after.get(name)}"
              for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    if not t.is_(wrong, [], f"{what}: {' '.join(command)}"):
        t.diag(f"exit {out.code}: {out.error}\nnext: {out.next}\n{out.document}\n{out.err}")
    return out


def vm_folder(vm):
    return next(iter((Path(vm.state) / "vms").iterdir()))


def record_path(vm, name):
    return vm_folder(vm) / "records" / f"{name}.json"


def take_away(path):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def kept(path):
    """What is put in the place of a file goes again, and the file is back."""
    path = Path(path)
    aside = path.with_name(path.name + ".aside")
    there = path.exists()
    if there:
        path.rename(aside)
    try:
        yield path
    finally:
        take_away(path)
        if there:
            aside.rename(path)


@contextlib.contextmanager
def edited(path):
    """A JSON document, as it is; what the block makes of it is in the file until its end."""
    with kept(path):
        document = json.loads(path.with_name(path.name + ".aside").read_text())

        def save():
            path.write_text(json.dumps(document))
        yield document, save


@contextlib.contextmanager
def chain(names=("one", "two")):
    """A QEMU with so many snapshots of its one disk, and a file beside that is none of its own."""
    with Qemu(drive("web"), ["web.qcow2", "precious.qcow2"]) as vm:
        for number, name in enumerate(names):
            vm.write("web", number + 1, number)
            vm.take(name)
        yield vm


# --- planted records --------------------------------------------------------------------------

def forgeries(vm):
    """(what, changes of the record's one cut) that lead a deletion to files that it must not
    touch."""
    disks = vm.disks
    top, two, precious = disks / "web.qcow2", disks / "web@two.qcow2", disks / "precious.qcow2"
    (vm.folder / "alias").symlink_to(disks)

    def inode(path):
        return path.stat().st_ino

    new_file = {"naming": "new-file", "overlay": f"{disks}/none.qcow2", "overlayInode": 0}
    return [
        ("sealed is the current image", {"sealed": str(top), "baseInode": inode(top)}),
        ("sealed is the current image, of no inode", {"sealed": str(top), "baseInode": 0}),
        ("sealed is the current image, in other words",
         {"sealed": f"{disks}/./web.qcow2", "baseInode": inode(top)}),
        ("sealed is the current image, by another folder",
         {"sealed": f"{vm.folder}/alias/web.qcow2", "baseInode": inode(top)}),
        ("sealed and top are an image of nobody's",
         {"sealed": str(precious), "top": str(precious), "baseInode": inode(precious)}),
        ("sealed is an image of nobody's", {"sealed": str(precious), "baseInode": inode(precious)}),
        ("sealed is another snapshot's image", {"sealed": str(two), "baseInode": inode(two)}),
        ("the overlay is the current image", {"overlay": str(top), "overlayInode": inode(top),
                                              "next": f"{top}.next"}),
        ("next is the current image", {"next": str(top)}),
        ("a new file that has a top", {**new_file, "sealed": str(top), "baseInode": inode(top)}),
        ("what a merge has left of a new file",
         {**new_file, "sealed": str(top), "baseInode": inode(top), "top": None, "next": None}),
        ("what is left of a new file, and an image of nobody's",
         {**new_file, "sealed": str(precious), "baseInode": inode(precious), "top": None,
          "next": None}),
        ("a new file of a disk that there is none of, and an image of nobody's",
         {**new_file, "sealed": str(precious), "baseInode": inode(precious), "top": None,
          "next": None, "name": "none"}),
        ("a relative name", {"sealed": "web@one.qcow2"}),
    ]


def planted_records(t):
    """Nothing is removed because a record says so."""
    with chain() as vm:
        cases = forgeries(vm)
        path, top = record_path(vm, "one"), vm.disks / "web.qcow2"
        for running in (True, False):
            if not running:
                vm.kill()
                vm.vmfrost("recover")  # the hidden names go
            state = "running" if running else "stopped"
            for what, changes in cases:
                with edited(path) as (record, save):
                    record["cuts"][0].update(changes)
                    save()
                    if "left of" in what:  # then only the record goes
                        case(t, vm, f"{state}, {what}", ("delete", "@one"), 0,
                             [changes["sealed"]])
                        continue
                    if "name" in changes:
                        case(t, vm, f"{state}, {what}", ("delete", "@one"), 1, ["disk none:"],
                             ["verify"])
                        continue
                    case(t, vm, f"{state}, {what}", ("delete", "@one"), 1,
                         ["which images it is made of", path])
                    t.ok(json.loads(path.read_text()) == record, "... and it has not begun")
            for what, cuts in (("no cuts", []), ("damaged cuts", [{"name": "web"}]),
                               ("cuts that are no list", 5), ("cuts of nothing", [None])):
                with edited(path) as (record, save):
                    record["cuts"] = cuts
                    save()
                    case(t, vm, f"{state}, {what}", ("delete", "@one"), 1,
                         ["does not say which images it is made of"], [path])
            with edited(path) as (record, save):
                del record["cuts"]
                save()
                case(t, vm, f"{state}, a ready record without cuts", ("delete", "@one"), 1,
                     ["does not say which images it is made of"], [path])
                record.update(readyToUse=False, phase="Failed", deleting=True)
                save()
                case(t, vm, f"{state}, one that is being deleted", ("delete", "@one"), 1,
                     ["does not say which images it is made of"], [path])
            with edited(path) as (record, save):
                record["cuts"] = [copy.deepcopy(record["cuts"][0]) for _ in range(2)]
                save()
            with kept(record_path(vm, "copy")) as other:
                record = json.loads(path.read_text())
                record["name"] = "copy"
                other.write_text(json.dumps(record))
                case(t, vm, f"{state}, a copy of another record", ("delete", "@copy"), 1,
                     ["does not say which images it is made of"], [other])
        vm.delete("one")
        t.is_((vm.read("web.qcow2"), "web@one.qcow2" in vm.names()), ([1, 2, 0, 0, 0, 0, 0, 0], False),
              "the true record: it is deleted, and nothing is lost")


def planted_links(t):
    """Nothing is removed because links.json says so, and a damaged one is no empty one."""
    with chain() as vm:
        links = vm_folder(vm) / "links.json"
        legal = json.loads(links.read_text())
        os.link(vm.disks / "precious.qcow2", vm.disks / "second.qcow2")
        os.link(vm.disks / "precious.qcow2", vm.disks / ".precious.qcow2.0123456789abcdef")
        os.link(vm.disks / "web@one.qcow2", vm.disks / ".web.qcow2.0123456789abcdef")
        os.link(vm.disks / "web@one.qcow2", vm.folder / "elsewhere.qcow2")
        (vm.folder / "alias").symlink_to(vm.disks)
        names = [vm.disks / "second.qcow2", vm.disks / "web.qcow2", vm.disks / "web@one.qcow2",
                 vm.disks / "web@two.qcow2", f"{vm.folder}/alias/web@one.qcow2",
                 f"{vm.disks}/./web@two.qcow2", vm.folder / "elsewhere.qcow2"]
        for name in names:
            with kept(links):
                links.write_text(json.dumps([{"path": str(name), "top": str(vm.disks / "web.qcow2"),
                                              "qemu": 1, "qemuStarted": 1}]))
                case(t, vm, f"a link that is none of ours: {Path(name).name}", ("recover",), 0,
                     [f"{name} is left alone"])
        for what, text in (("a link that is none", '[{"path": 5}]'), ("a relative one",
                           '[{"path": "web.qcow2"}]'), ("nothing", ""), ("no list", "{}"),
                           ("garbage", "[{")):
            with kept(links):
                links.write_text(text)
                for command in ("check",), ("snapshot", "@new"), ("delete", "@one"), ("recover",), \
                               ("restore", "@one", "--reset"):
                    case(t, vm, f"links.json: {what}", command, 1, [links, "is damaged"],
                         ["move it away", "verify"])
                t.is_(links.read_text(), text, "... it is left as it is")
                case(t, vm, f"links.json: {what}", ("verify",), 1, [links, "is damaged"])
        # What it is for still works.
        (vm.disks / ".web.qcow2.0123456789abcdef").unlink()
        t.ok(legal and all((vm.disks / Path(link["path"]).name).exists() for link in legal),
             "links of a running QEMU stay")
        vm.kill()
        out = vm.vmfrost("recover")
        t.is_((out.code, vm.hidden(), links.exists()), (0, [".precious.qcow2.0123456789abcdef"], False),
              "those of one that is gone go, and no others")


# --- planted journals -------------------------------------------------------------------------

STATES = {"nothing more": [], "the cut": [{"state": "cutting"}],
          "the end of a merge": [{"state": "cutting"}, {"state": "merge-flip", "disk": "web"},
                                 {"state": "merge-final", "disk": "web"}],
          "a merge": [{"state": "cutting"}, {"state": "merged", "disk": "web"}],
          "a turn": [{"state": "halting", "online": False}, {"state": "turning"}],
          "a graft": [{"state": "graft", "disk": "web", "upper": "TWO", "lower": "PRECIOUS",
                       "over": "TOP"}]}


def planted_journals(t):
    """Nothing is removed, and no name is turned, because a journal says so."""
    with chain() as vm:
        disks = vm.disks
        top, one, two, precious = (disks / name for name in ("web.qcow2", "web@one.qcow2",
                                                             "web@two.qcow2", "precious.qcow2"))
        name = "three"  # whose image somebody has made
        record = json.loads(record_path(vm, "two").read_text())
        journal = vm_folder(vm) / "journal"
        hidden = str(disks / ".web.qcow2.0123456789abcdef")
        place = {"TWO": str(two), "PRECIOUS": str(precious), "TOP": str(top)}
        new_file = {"naming": "new-file", "top": None, "next": None}

        def inode(path):
            return path.stat().st_ino

        def overlay(path):
            return {"overlay": str(path), "overlayInode": inode(path), "next": f"{path}.next"}

        forged = {
            "as it was": {},
            "the overlay is nobody's": overlay(precious),
            "the overlay is another's": overlay(one),
            "the overlay is the current image": {"overlay": hidden, "overlayInode": inode(top),
                                                 "next": hidden + ".next"},
            "the overlay is the current image, and sealed is nobody's":
                {"overlay": hidden, "overlayInode": inode(top), "next": hidden + ".next",
                 "sealed": str(precious), "baseInode": inode(precious)},
            "the base is the current image": {**overlay(precious), "baseInode": inode(top)},
            "the base is the current image, and the overlay another's":
                {**overlay(one), "baseInode": inode(top)},
            "sealed is another's": {"sealed": str(one), "baseInode": inode(one)},
            "a new file that is nobody's": {**new_file, **overlay(precious), "next": None},
            "a new file that is another's": {**new_file, **overlay(two), "next": None},
            "a new file that is the current image":
                {**new_file, **overlay(top), "next": None, "sealed": str(two)},
        }
        for running in (True, False):
            if not running:
                vm.kill()
                vm.vmfrost("recover")
            # Hidden names may come and go: they are second ones.
            before = {name: about for name, about in look(disks).items() if name[0] != "."}
            # What cannot be done to a running VM is tried for a minute.
            for operation in ("snapshot",) if running else ("snapshot", "delete", "restore"):
                for what, changes in forged.items():
                    wrong = []
                    for states, lines in STATES.items():
                        if running and "merge" in states:
                            continue
                        first = {"operation": operation, "id": "0123456789abcdef", "vm": "web",
                                 "qmp": str(vm.socket), "snapshot": name, "keep": name, "pid": 1,
                                 "qemu": record["qemu"]["pid"],
                                 "qemuStarted": record["qemu"]["started"],
                                 "cuts": [{**record["cuts"][0],
                                           "sealed": str(disks / "web@three.qcow2"), **changes}]}
                        lines = [{key: place.get(value, value) for key, value in line.items()}
                                 for line in lines]
                        journal.write_text("\n\n".join(json.dumps(line)
                                                        for line in [first, *lines]) + "\n")
                        try:
                            out = vm.vmfrost("recover", timeout=PATIENCE)
                        except LabError as error:
                            wrong.append(f"{states}: {error}")
                            break
                        journal.unlink(missing_ok=True)
                        record_path(vm, name).unlink(missing_ok=True)
                        after = look(disks)
                        lost = [image for image in before if before[image] != after.get(image)]
                        if lost or out.code not in (0, 1) or (out.code and not out.error):
                            wrong.append((states, out.code, out.error, out.next, lost))
                    t.is_(wrong, [], f"{'running' if running else 'stopped'}, a planted journal "
                          f"of {operation}: {what}")


# --- files of the state folder ----------------------------------------------------------------

def put(path, kind):
    """Something in the place of a file of ours."""
    if kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/nonexistent/file")
    elif kind == "100 MB":
        with open(path, "wb") as file:
            file.truncate(100 << 20)
    else:
        path.write_bytes({"empty": b"", "garbage": b'\0\xff{"a"\n [ \nx\n', "deep": b"[" * 200000 + b"\n\n{}\n",
                          "other": b"{}\n", "list": b'[{"a": 1}]\n'}[kind])


ODD = ("fifo", "folder", "link")
LARGE = (*ODD, "100 MB")
BAD = (*LARGE, "empty", "garbage", "deep")
AWAY = ("move it away",)
READERS = ("status",), ("verify",), ("check",), ("list",), ("show", "@two"), ("disk",)
CHANGERS = ("snapshot", "@new"), ("delete", "@one"), ("restore", "@one", "--reset"), ("recover",)

# file: [(kinds, commands, exit code, it is named, next words)]
STATE_FILES = {
    "lock": [
        (ODD, (("status",), ("verify",), ("disk",)), 0, False, ()),
        (ODD, (("check",), ("recover",)), 1, True, AWAY),
        (("fifo",), CHANGERS, 1, True, AWAY),
    ],
    "journal": [
        ((*LARGE, "garbage", "list"), (("recover",), ("delete", "@one")), 1, True, AWAY),
        (("garbage",), CHANGERS, 1, True, AWAY),
        (("other",), CHANGERS, 1, True, ("remove that file",)),
        ((*LARGE, "garbage", "list"), (("status",),), 0, True, ()),
        (("garbage",), (("check",), ("disk",)), 0, True, ()),
        (("fifo",), (("list",), ("show", "@two")), 0, False, ()),
    ],
    "links.json": [
        ((*BAD, "other", "list"), (("delete", "@one"),), 1, True, AWAY),
        (("fifo",), (("check",), *CHANGERS), 1, True, AWAY),
        (("fifo",), (("verify",),), 1, True, ()),
        (("fifo",), (("status",), ("list",), ("show", "@two"), ("disk",)), 0, False, ()),
    ],
    "records/one.json": [
        ((*BAD, "other", "list"), (("delete", "@one"),), 1, True, AWAY),
        (("fifo",), (("show", "@one"), ("restore", "@one", "--reset")), 1, True, AWAY),
        (("fifo", "garbage", "list"), (("verify",),), 1, True, ()),
        (("fifo", "garbage", "list"), (("list",), ("status",), ("check",)), 0, True, ()),
        (("fifo",), (("recover",),), 0, False, ()),
    ],
    "disks.json": [
        (BAD, (("check",),), 0, False, ()),
        (("fifo",), (("list",), ("recover",)), 0, False, ()),
    ],
    "vm.json": [
        ((*BAD, "other", "list"), (("status",),), 1, True, ("repair it",)),
        (("fifo", "other"), (*READERS, *CHANGERS), 1, True, ("repair it",)),
    ],
    "../../storage.json": [
        ((*BAD, "other"), (("snapshot", "@new"),), 1, True, AWAY),
        (("fifo",), (("check",), ("restore", "@one", "--reset")), 1, True, AWAY),
        (("fifo", "garbage"), (("status",), ("disk",)), 0, True, ()),
        (("fifo",), (("verify",), ("list",), ("recover",)), 0, False, ()),
    ],
}


def state_files(t):
    """Each file of the state folder is something else."""
    with chain() as vm:
        for name, rows in STATE_FILES.items():
            for kinds, commands, code, named, following in rows:
                for kind in kinds:
                    with kept((vm_folder(vm) / name).resolve()) as path:
                        put(path, kind)
                        for command in commands:
                            if path.name == "disks.json" and kind != "folder":
                                path.unlink()  # what sees the VM running writes it
                                put(path, kind)
                            case(t, vm, f"{name}: {kind}", command, code, [path] if named else [],
                                 following)
        vm.kill()
        for kind in BAD:
            with kept(vm_folder(vm) / "disks.json") as path:
                put(path, kind)
                for command in ((("check",), ("snapshot", "@new"), ("delete", "@one"))
                                if kind in ("fifo", "empty") else (("check",),)):
                    case(t, vm, f"of a stopped VM, disks.json: {kind}", command, 1, [path], ("it",))


# --- images -----------------------------------------------------------------------------------

@contextlib.contextmanager
def instead(path, kind):
    """Something in the place of an image, which is aside meanwhile."""
    aside = path.with_name("aside.qcow2")
    path.rename(aside)
    try:
        if kind == "a link":
            path.symlink_to(aside)
        elif kind == "another image":
            make_image(path)
        elif kind == "a socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        elif kind != "nothing":
            put(path, kind)
        yield aside
    finally:
        take_away(path)
        aside.rename(path)


NO_FILE = "is neither a file nor a block device"
# What is there instead: what is said of it.
CURRENT = {"fifo": NO_FILE, "folder": NO_FILE, "a socket": NO_FILE, "nothing": "is missing",
           "garbage": "is not a sound qcow2 image"}
SEALED = {**CURRENT, "garbage": " is not ", "another image": " is not ",
          "a link": "is a symbolic link to"}


def ready(vm, name):
    record = json.loads(record_path(vm, name).read_text())
    return record["readyToUse"], record.get("deleting", False)


def odd_current(t):
    """The current image of a stopped VM is something else, or cannot be opened."""
    with chain() as vm:
        vm.kill()
        vm.vmfrost("recover")
        for command in ("snapshot", "@new"), ("check",), ("delete", "@one"), ("delete", "@two"), \
                       ("restore", "@one"):
            for kind, words in CURRENT.items():
                if command[0] != "check" and kind not in ("fifo", "nothing"):
                    continue  # the same words
                with instead(vm.disks / "web.qcow2", kind):
                    case(t, vm, f"stopped, {kind} for the current image", command, 1,
                         [words, vm.disks / "web.qcow2", "disk web"], ["verify"])
        t.is_([ready(vm, name) for name in ("one", "two")], [(True, False)] * 2,
              "no deletion has begun")


def odd_sealed(t):
    """A snapshot's image is something else."""
    with chain(("one", "two", "three")) as vm:
        image = vm.disks / "web@two.qcow2"
        for running in (True, False):
            if not running:
                vm.kill()
                vm.vmfrost("recover")
            state = "running" if running else "stopped"
            for kind, words in SEALED.items():
                if not running and kind not in ("fifo", "nothing", "a link"):
                    continue  # the same words
                with instead(image, kind):
                    readers = [] if kind == "a link" else [
                        ("export", "@two", str(vm.folder / "out")),
                        ("clone", "@two", str(vm.folder / "out")), ("restore", "@two", "--reset")]
                    for command in ("delete", "@two"), *readers:
                        case(t, vm, f"{state}, {kind} for a sealed image", command, 1,
                             [words, image], ["mv " if kind == "a link" else "vmfrost "])
                    if kind not in ("garbage", "another image"):  # which builds on nothing
                        case(t, vm, f"{state}, {kind} for the image above", ("delete", "@one"), 1,
                             ["disk web"], ["ln " if kind == "nothing" and running else
                                            "mv " if kind == "a link" else "vmfrost "])
                    case(t, vm, f"{state}, {kind} for a sealed image", ("status",), 0,
                         [] if kind in ("a link", "garbage") else [image])
            t.is_([ready(vm, name) for name in ("one", "two", "three")], [(True, False)] * 3,
                  f"{state}: no deletion has begun")
        for name in ("two", "one", "three"):
            vm.delete(name)
        t.is_(vm.read("web.qcow2"), [1, 2, 3, 0, 0, 0, 0, 0], "put right: all are deleted")


def lost_name(t):
    """A running VM's image has lost its name, and somebody looks: it has it again, and the VM is
    stopped."""
    with chain() as vm:
        with instead(vm.disks / "web.qcow2", "nothing"):
            case(t, vm, "running, without the current image's name", ("status",), 0,
                 ["does not exist any more"])
            case(t, vm, "running, without the current image's name", ("snapshot", "@new"), 1,
                 ["does not exist any more", vm.disks / "web.qcow2"], ["somebody"])
        vm.kill()
        case(t, vm, "the name is back, and the VM is stopped", ("check",), 0, [])
        vm.take("three")
        t.ok("web@three.qcow2" in vm.names(), "... and a snapshot is taken")


def odd_names(t):
    """The running VM's image has its content, but not its names."""
    with chain() as vm:
        web = vm.disks / "web.qcow2"
        with instead(web, "a link"):
            out = case(t, vm, "a link to the current image", ("status",), 0, [])
            t.ok("would not find" not in said(out) and "stop the VM" not in said(out),
                 "... nobody is told to stop the VM")
            for command in ("check",), ("snapshot", "@new"), ("delete", "@one"), ("delete", "@two"), \
                           ("restore", "@one", "--reset"):
                case(t, vm, "a link to the current image", command, 1,
                     [web, "is a symbolic link to"], ["mv "])
        hidden = next(vm.disks / name for name in vm.hidden()
                      if vm.inode(name) == vm.inode("web.qcow2"))
        with instead(hidden, "nothing"):
            for command in ("check",), ("snapshot", "@new"):
                case(t, vm, "the name is gone that QEMU knows", command, 1, [hidden, "is gone"],
                     [f"ln '{web}' '{hidden}'"])
        with instead(web, "another image"):
            case(t, vm, "another image in its place", ("status",), 0, [web, "is not the file"])
            for command in ("snapshot", "@new"), ("delete", "@two"), ("restore", "@one", "--reset"):
                case(t, vm, "another image in its place", command, 1, [web, "is not"], ["somebody"])
        way = vm.disks / "web@new.qcow2"
        for kind in "fifo", "folder", "link", "empty":
            put(way, kind)
            case(t, vm, f"a name that is taken: {kind}", ("snapshot", "@new"), 1,
                 [way, "exists already"], ["choose another name"])
            take_away(way)
        vm.take("new")


def odd_golden(t):
    """What is below the first snapshot is something else by now: nothing waits for that."""
    vm = Qemu(drive("web"), [])
    golden = make_image(vm.folder / "golden.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", golden,
        vm.disks / "web.qcow2")
    with vm:
        vm.take("one")
        for running in (True, False):
            if not running:
                vm.kill()
                vm.vmfrost("recover")
            for kind in "fifo", "folder", "nothing":
                with instead(golden, kind):
                    for command in ("export", "@one", str(vm.folder / "out")), \
                                   ("clone", "@one", str(vm.folder / "out")), \
                                   ("restore", "@one", "--reset"):
                        case(t, vm, f"{'running' if running else 'stopped'}, {kind} for the golden "
                             "image", command, 1, [golden, "disk web"], ["vmfrost "])


# --- nowhere to write -------------------------------------------------------------------------

@contextlib.contextmanager
def small_state():
    """A QEMU with two snapshots, whose state folder is a file system of its own; None: no."""
    vm = Qemu(drive("web"))
    vm.state.mkdir(mode=0o700)
    done = run("mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", vm.state, check=False)
    try:
        if done.returncode:
            yield None
            return
        with vm:
            vm.write("web", 1)
            vm.take("one")
            vm.write("web", 2, 1)
            vm.take("two")
            yield vm
    finally:
        run("umount", "-l", vm.state, check=False)
        vm.__exit__()


@contextlib.contextmanager
def full(vm):
    """Nothing more can be written to the state folder."""
    ballast = vm.state / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
    try:
        yield
    finally:
        ballast.unlink()


NO_SPACE, READ_ONLY = "No space left on device", "Read-only file system"


def no_state(t):
    """The state folder is full, or read-only, from the beginning on or later."""
    with small_state() as vm:
        if not vm:
            t.skip("a state folder that is full", "mount: not permitted")
            return
        with full(vm):
            for command in ("snapshot", "@new"), ("check",), ("delete", "@two"), \
                           ("restore", "@one", "--reset"):
                case(t, vm, "a full state folder", command, 1, [NO_SPACE, vm_folder(vm)],
                     ["make room there"])
                t.is_(vm.journal(), [], "... nothing is left to be undone")
            for command in ("status",), ("verify",), ("list",), ("recover",):
                case(t, vm, "a full state folder", command, 0, [])
        run("mount", "-o", "remount,ro", vm.state)
        for command in ("snapshot", "@new"), ("delete", "@two"), ("restore", "@one", "--reset"):
            case(t, vm, "a read-only state folder", command, 1, [READ_ONLY, vm_folder(vm)],
                 ["mount it for writing"])
        case(t, vm, "a read-only state folder", ("check",), 1, [READ_ONLY, vm_folder(vm)],
             ["put that right"])
        for command in ("status",), ("verify",), ("list",), ("recover",):
            case(t, vm, "a read-only state folder", command, 0, [])
        run("mount", "-o", "remount,rw", vm.state)
        for point in "cut", "record":
            before = vm.read("web.qcow2"), vm.names()
            command = vm.stop_at(point, "snapshot", "@new")
            with full(vm):
                out = go_on(command)
            t.is_((out.code, NO_SPACE in out.error, "snapshot " in out.error, "make room" in out.next,
                   vm.journal(), (vm.read("web.qcow2"), vm.names())), (1, True, True, True, [], before),
                  f"no room for the record, since {point}: rolled back, and told: {out.error}")
        command = vm.stop_at("record", "restore", "@one", "--reset")
        with full(vm):
            out = go_on(command)
        t.is_((out.code, "has no record yet" in out.error, "recover" in out.next), (5, True, True),
              f"no room for the record of what a restore keeps: {out.error}")
        out = vm.vmfrost("recover")
        kept = [name for name in vm.names() if "before-restore" in name]
        t.is_((out.code, len(kept), vm.journal(), vm.read("web.qcow2"), vm.read(kept[0])),
              (0, 1, [], [1] + [0] * 7, [1, 2] + [0] * 6), "with room, recover finishes that")
        names = [record["name"] for record in vm.vmfrost("list").result]
        t.ok(any(name.startswith("before-restore") for name in names), f"... it is a snapshot: {names}")


def in_the_way(t):
    """The record cannot be written at the end of a snapshot, nor removed."""
    with chain() as vm:
        command = vm.stop_at("record", "snapshot", "@new")
        way = vm_folder(vm) / "records" / "new.json.new"
        way.mkdir()
        before = vm.read("web.qcow2")
        out = go_on(command)
        t.is_((out.code, str(way) in out.error, "snapshot " in out.error, vm.read("web.qcow2"),
               "web@new.qcow2" in vm.names(), vm.journal()), (1, True, True, before, False, []),
              f"rolled back: {out.error}; {out.next}")
        way.rmdir()
        vm.take("new")


def immutable(t):
    """Nobody can change a name in the images' folder."""
    with chain() as vm:
        done = run("chattr", "+i", vm.disks, check=False)
        if done.returncode:
            t.skip("an immutable folder", f"chattr: {done.stderr.strip()}")
            return
        try:
            for running in (True, False):
                if not running:
                    vm.kill()
                state = "running" if running else "stopped"
                for command in ("check",), ("snapshot", "@new"), ("delete", "@two"), ("delete", "@one"):
                    case(t, vm, f"{state}, an immutable folder", command, 1,
                         [vm.disks, "immutable"], ["put that right"])
                case(t, vm, f"{state}, an immutable folder", ("restore", "@one", "--reset"), 1,
                     [vm.disks], ["put that right"])
                t.is_([ready(vm, name) for name in ("one", "two")], [(True, False)] * 2,
                      f"{state}: no deletion has begun")
        finally:
            run("chattr", "-i", vm.disks)
        vm.delete("one")
        t.is_(vm.read("web.qcow2"), [1, 2] + [0] * 6, "put right: it is deleted")


# --- what is told -----------------------------------------------------------------------------

def told(t):
    """What to do next."""
    with chain() as vm:
        for point in "accept+", "graft":
            command = vm.stop_at(point, "delete", "@one")
            command.signal(signal.SIGINT)
            out = go_on(command)
            t.ok(out.code == 1 and "stopped by request" in out.error and "delete " in out.next and
                 "@one` again" in out.next, f"a deletion that was stopped at {point}: {out.next}")
        vm.delete("one")
        journal = vm_folder(vm) / "journal"
        journal.touch()
        out = vm.vmfrost("recover")
        t.is_((out.code, out.document.get("action"), out.document.get("operation"), journal.exists()),
              (0, "none", None, False), "an empty journal: nothing was begun, nothing was thawed")
        text = lab.vmfrost("recover", "--qmp", vm.socket, state_dir=vm.state).out
        t.ok("nothing to recover" in text, f"... {text.strip()}")


class Agent(threading.Thread):
    """A guest agent that only thaws; what it was asked is in `asked`."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.asked = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.start()

    def run(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            with peer, peer.makefile("rwb") as stream:
                for line in stream:
                    self.answer(stream, line.lstrip(b"\xff"))

    def answer(self, stream, line):
        try:
            request = json.loads(line)
        except ValueError:
            return
        command = request.get("execute")
        self.asked.append(command)
        value = {"guest-sync-delimited": request.get("arguments", {}).get("id"),
                 "guest-fsfreeze-thaw": 1, "guest-fsfreeze-status": "thawed"}.get(command, {})
        with contextlib.suppress(OSError):
            stream.write((b"\xff" if command == "guest-sync-delimited" else b"") +
                         json.dumps({"return": value}).encode() + b"\n")
            stream.flush()


def thaw_anyway(t):
    """A thaw does not depend on the state folder."""
    with small_state() as vm:
        if not vm:
            t.skip("a thaw without a state folder", "mount: not permitted")
            return
        agent = Agent(vm.run / "agent.sock")
        out = lab.vmfrost("add", "web", "--qmp", vm.socket, "--agent", vm.run / "agent.sock",
                          state_dir=vm.state)
        if out.code:
            raise LabError(out.err)

        folder = Path(vm.state) / "vms" / "web"

        def thaws(what, *named):
            agent.asked.clear()
            case(t, vm, what, ("thaw",), 0, named)
            t.ok("guest-fsfreeze-thaw" in agent.asked, f"... the agent was asked: {agent.asked}")

        thaws("a sound state folder")
        with full(vm):
            thaws("a full state folder")
        for kind in ODD:
            with kept(folder / "lock") as path:
                put(path, kind)
                thaws(f"the lock: {kind}", path)
        for kind in BAD:
            with kept(folder / "journal") as path:
                put(path, kind)
                thaws(f"the journal: {kind}", *([path] if kind not in ("empty", "deep") else []))
        # The agent's socket is not known then.
        for kind in BAD:
            with kept(folder / "vm.json") as path:
                put(path, kind)
                case(t, vm, f"the VM's settings: {kind}", ("thaw",), 3,
                     [path, "no virtio-serial port named"])
        run("mount", "-o", "remount,ro", vm.state)
        thaws("a read-only state folder")
        run("mount", "-o", "remount,rw", vm.state)
        with kept(folder / "lock"):
            run("mount", "-o", "remount,ro", vm.state)
            thaws("a read-only state folder without a lock", folder / "lock")
            run("mount", "-o", "remount,rw", vm.state)
        command = vm.stop_at("accept", "snapshot", "@new", "--quiesce=skip")
        case(t, vm, "somebody has the lock", ("thaw",), 1, ["in use"], ["Wait"])
        go_on(command)
        agent.listener.close()


def main():
    with Tap() as t:
        for part in (planted_records, planted_links, planted_journals, state_files, odd_current, odd_sealed,
                     odd_names, odd_golden, lost_name, no_state, in_the_way, immutable, told, thaw_anyway):
            if ONLY in part.__name__:
                began = time.monotonic()
                part(t)
                t.diag(f"{part.__name__}: {time.monotonic() - began:.1f} s")


main()
