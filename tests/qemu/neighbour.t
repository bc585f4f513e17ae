#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Another user of the same host, who may write to the folder of the images, plants files in the state
folder, or listens where QEMU should: nothing of anybody else's is touched, and nobody else is
believed.

    tests/qemu/neighbour.t [PART]
"""

import contextlib
import json
import os
import re
import socket
import stat
import sys
import threading
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from agent import Agent
from bare import Qemu, Tap, drive, finish, go_on, lab, make_image

ONLY = sys.argv[1] if len(sys.argv) > 1 else ""
STRANGER = 65533
FOREIGN = "belongs to somebody else, or others can write to it"


def vm_folder(vm):
    return next(iter((Path(vm.state) / "vms").iterdir()))


def about(path):
    """What of a file must stay as it is."""
    found = os.stat(path)
    return (found.st_uid, found.st_gid, found.st_mode, found.st_size, found.st_ino,
            Path(path).read_bytes())


@contextlib.contextmanager
def as_user(user):
    """What is begun to be listened on in here is this user's, as the kernel tells."""
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


# --- who listens --------------------------------------------------------------------------------

class Monitor(threading.Thread):
    """Says that it is QEMU, and refuses all that it is asked."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.asked = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.start()

    def run(self):
        while True:
            peer, _ = self.listener.accept()
            with contextlib.suppress(OSError), peer:
                peer.sendall(json.dumps({"QMP": {"version": {"qemu": {
                    "major": 7, "minor": 2, "micro": 0}, "package": ""},
                                                 "capabilities": []}}).encode() + b"\n")
                self.serve(peer)

    def serve(self, peer):
        text = ""
        while data := peer.recv(65536):
            text += data.decode(errors="replace")
            while text.strip():
                try:
                    request, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                self.asked.append(request["execute"])
                answer = {"return": {}} if request["execute"] == "qmp_capabilities" else \
                    {"error": {"class": "GenericError", "desc": "not for you"}}
                peer.sendall(json.dumps({"id": request["id"], **answer}).encode() + b"\n")


def monitors(t):
    """A QMP socket that another user listens on."""
    vm = Qemu()
    places = [("a folder of everybody's", 0, 0o777, False), ("a sticky folder", 0, 0o1777, False),
              ("a third user's folder", STRANGER - 1, 0o770, False),
              ("its own folder", STRANGER, 0o755, True), ("a folder of root's", 0, 0o755, True)]
    for what, owner, mode, trusted in places:
        folder = vm.folder / what.replace(" ", "-").replace("'", "")
        folder.mkdir()
        path = folder / "qmp.sock"
        os.chmod(folder, 0o777)
        with as_user(STRANGER):
            monitor = Monitor(path)
        os.chown(folder, owner, owner)
        os.chmod(folder, mode)
        for command in ["snapshot"], ["status"], ["recover"]:
            monitor.asked.clear()
            done = lab.vmfrost(*command, "--qmp", path, state_dir=vm.state)
            told = f"process {os.getpid()} of user {STRANGER}" in done.out + done.err
            asked = set(monitor.asked) - {"qmp_capabilities"}
            if command == ["recover"]:  # there is nothing to recover
                t.is_((done.code, asked), (0, set()), f"{what}: recover")
            elif trusted:
                t.is_((told, bool(asked)), (False, True), f"{what}: {command[0]} asks it")
            else:
                t.is_((told, asked), (True, set()), f"{what}: {command[0]} does not ask it: {done.err}")
                t.ok(f"peerUid to {STRANGER}" in done.out + done.err or command == ["status"],
                     "... and tells what to do")
            if command == ["snapshot"]:
                t.is_(done.code, 1 if trusted else 3, f"{what}: the exit code")
        for user, code in (STRANGER, 1), (STRANGER - 1, 3):
            name = f"vm{len(what)}-{user}"
            lab.vmfrost("add", name, "--qmp", path, "--set", f"peerUid={user}", state_dir=vm.state)
            done = lab.vmfrost("snapshot", name, state_dir=vm.state)
            t.is_(done.code, code, f"{what}: with peerUid={user}: {done.err.splitlines()[:1]}")
            lab.vmfrost("remove", name, state_dir=vm.state)
    for bad in "0", "nobody", "-1", "4294967295", "1k":
        done = lab.vmfrost("add", "bad", "--qmp", "/run/x", "--set", f"peerUid={bad}",
                           state_dir=vm.state)
        t.ok(done.code == 2 and "peerUid" in done.err, f"peerUid={bad!r} is none: {done.err.strip()}")


def agents(t):
    """The guest agent's socket is another user's than QEMU's."""
    with Qemu(drive("web")) as vm:
        os.chmod(vm.run, 0o777)
        with as_user(STRANGER):
            agent = Agent(vm.run / "agent.sock")
        for user in None, STRANGER:
            lab.vmfrost("add", "web", "--qmp", vm.socket, "--agent", vm.run / "agent.sock",
                        *(["--set", f"peerUid={user}"] if user else []), state_dir=vm.state)
            for mode in "auto", "prefer":
                agent.asked.clear()
                out = vm.vmfrost("snapshot", f"@{mode}-{user}", "--quiesce", mode)
                if user:
                    t.is_((out.code, out.document.get("consistency"),
                           "guest-fsfreeze-freeze" in agent.asked), (0, "filesystem", True),
                          f"a stranger's agent that a setting names, {mode}: {out.error}")
                elif mode == "auto":
                    t.is_((out.code, agent.asked), (3, []), f"a stranger's agent: {out.error}")
                    t.ok(f"user {STRANGER}" in out.error and f"peerUid to {STRANGER}" in out.error,
                         "... what to do is told")
                else:
                    t.is_((out.code, out.document.get("consistency"), agent.asked), (0, "crash", []),
                          f"a stranger's agent, prefer: {out.error}")
            out = vm.vmfrost("thaw", "--wait", "1s")
            t.is_((out.code == 0, "guest-fsfreeze-thaw" in agent.asked), (bool(user), bool(user)),
                  f"thaw: {out.error}")
    with Qemu(drive("web")) as vm:  # as root's, but of another process: a proxy, perhaps
        agent = Agent(vm.run / "agent.sock")
        lab.vmfrost("add", "web", "--qmp", vm.socket, "--agent", vm.run / "agent.sock",
                    state_dir=vm.state)
        done = lab.vmfrost("snapshot", "web@one", "-v", state_dir=vm.state)
        t.ok(done.code == 0 and "is there a proxy?" in done.err, "another process of a trusted user's")


# --- the state folder ---------------------------------------------------------------------------

@contextlib.contextmanager
def foreign(path, kind):
    """A file or folder that somebody else may have changed."""
    before = os.stat(path)
    if kind == "owner":
        os.chown(path, STRANGER, -1)
    else:
        os.chmod(path, stat.S_IMODE(before.st_mode) | kind)
    try:
        yield
    finally:
        os.chown(path, before.st_uid, -1)
        os.chmod(path, stat.S_IMODE(before.st_mode))


def planted(t):
    """Documents that somebody else wrote, or could write."""
    with Qemu(drive("web")) as vm:
        lab.vmfrost("add", "web", "--qmp", vm.socket, state_dir=vm.state)
        vm.take("one")
        lab.vmfrost("storage", "set", "all", "match.format=qcow2", state_dir=vm.state)
        folder, record = vm_folder(vm), vm_folder(vm) / "records" / "one.json"
        names = vm.names()
        (folder / "journal").write_text('{"operation":"snapshot"}\n')
        for kind in "owner", 0o020, 0o002:
            for path, command, code in (
                    (folder / "vm.json", ["status"], 1), (folder / "vm.json", ["snapshot", "@no"], 1),
                    (record, ["delete", "@one"], 1), (record, ["restore", "@one", "--reset"], 1),
                    (folder / "journal", ["snapshot", "@no"], 1), (folder / "journal", ["recover"], 1),
                    (folder / "links.json", ["snapshot", "@no"], 1),
                    (Path(vm.state) / "storage.json", ["snapshot", "@no"], 1)):
                if path.name != "journal":
                    (folder / "journal").rename(folder / "aside")
                with foreign(path, kind):
                    out = vm.vmfrost(*command)
                said = out.error + json.dumps(out.result)
                t.ok(out.code == code and FOREIGN in said and path.name in said,
                     f"{path.name}, {kind}: {command[0]}: exit {out.code}: {out.error}")
                if path.name != "journal":
                    (folder / "aside").rename(folder / "journal")
            (folder / "journal").rename(folder / "aside")
            with foreign(record, kind):
                out = vm.vmfrost("status")
                t.ok(out.code == 0 and any("snapshot one" in each and FOREIGN in each
                                           for each in out.document["warnings"]),
                     f"status warns of the record: {out.document.get('warnings')}")
            for path in folder, folder / "records", Path(vm.state) / "vms", Path(vm.state):
                with foreign(path, kind):
                    for command in ["snapshot", "@no"], ["delete", "@one"]:
                        out = vm.vmfrost(*command)
                        t.ok(out.code == 1 and str(path) in out.error + out.err,
                             f"the folder {path.name}, {kind}: {command[0]}: {out.error} {out.err}")
            (folder / "aside").rename(folder / "journal")
        (folder / "journal").unlink()
        for damage in "", "{", "[]", "\0", '{"name": "two", "phase": "Succeeded"}':
            (folder / "records" / "two.json").write_text(damage)
            for command in ["status"], ["check"]:
                out = vm.vmfrost(*command)
                t.ok(out.code == 0 and any("snapshot two" in each and "two.json is damaged" in each
                                           for each in out.document["warnings"]),
                     f"{command[0]} warns of a damaged record: {damage!r}")
        (folder / "records" / "two.json").unlink()
        t.is_(vm.names(), names, "no image was touched")
        out = vm.vmfrost("delete", "@one")
        t.is_(out.code, 0, "put right: it is deleted")


def locks(t):
    """What is no lock file is in the way, and `check` knows."""
    with Qemu(drive("web")) as vm:
        lab.vmfrost("add", "web", "--qmp", vm.socket, state_dir=vm.state)
        t.is_(vm.vmfrost("check").code, 0, "nothing is in the way")
        lock = vm_folder(vm) / "lock"
        lock.unlink()
        target = vm.folder / "target"
        target.write_text("precious")
        kinds = {"fifo": lambda: os.mkfifo(lock), "link": lambda: lock.symlink_to(target),
                 "dangling link": lambda: lock.symlink_to(vm.folder / "none"), "folder": lock.mkdir,
                 "device": lambda: os.mknod(lock, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
                 "socket": lambda: os.mknod(lock, stat.S_IFSOCK | 0o600)}
        for kind, make in kinds.items():
            try:
                make()
            except PermissionError as error:
                t.skip(f"a lock that is a {kind}", error)
                continue
            for command in ["check"], ["snapshot", "@no"]:
                out = vm.vmfrost(*command)
                t.ok(out.code == 1 and str(lock) in out.error and "move it away" in out.next,
                     f"a lock that is a {kind}: {command[0]}: {out.error}")
            lock.rmdir() if kind == "folder" else lock.unlink()
        t.is_((target.read_text(), (vm.folder / "none").exists()), ("precious", False),
              "nothing was written through a link")
        vm.take("one")


def modes(t):
    """Nobody else can read what is kept, whatever the umask."""
    for umask in 0, 0o022, 0o077:
        with Qemu(drive("web")) as vm:
            before = os.umask(umask)
            try:
                vm.state = vm.folder / "deep" / "state"
                lab.vmfrost("add", "web", "--qmp", vm.socket, state_dir=vm.state)
                command = vm.stop_at("rehearse", "snapshot", "@one")
                found = {}
                for when in range(2):
                    for path in (vm.state.parent, vm.state, *vm.state.rglob("*")):
                        found[path.name] = stat.S_IMODE(path.lstat().st_mode) \
                            if not path.is_dir() else 0o600 | stat.S_IMODE(path.lstat().st_mode) & 0o077
                    if when == 0:
                        t.ok("journal" in found, "there is a journal")
                        t.is_(go_on(command).code, 0, "a snapshot")
                lab.vmfrost("storage", "set", "all", "match.format=qcow2", state_dir=vm.state)
                out = lab.vmfrost("snapshot", "web@two", "--log", vm.folder / "log",
                                  state_dir=vm.state)
                found["storage.json"] = stat.S_IMODE((vm.state / "storage.json").stat().st_mode)
            finally:
                os.umask(before)
            t.is_((out.code, {name for name, mode in found.items() if mode != 0o600}), (0, set()),
                  f"umask {umask:03o}: {sorted(found)}")


# --- the images' folder -------------------------------------------------------------------------

def overlays(t):
    """A stopped VM's overlay is created by root: not through a link, and nobody else's file is taken
    for it."""
    for fmt, overlay in ("raw", "web+new.qcow2"), ("qcow2", None):
        for point in "overlays", "overlays.created":
            for kind in "link", "dangling link", "hard link", "fifo":
                vm = Qemu(drive("web", fmt=fmt), [f"web.{fmt}"])
                os.chown(vm.disks / f"web.{fmt}", STRANGER, STRANGER)
                lab.vmfrost("add", "web", "--qmp", vm.socket, "--set", "disks=" + json.dumps(
                    [{"name": "web", "file": str(vm.disks / f"web.{fmt}"), "format": fmt}]),
                            state_dir=vm.state)
                precious = vm.folder / "precious"
                precious.write_text("precious")
                precious.chmod(0o600)
                before = about(precious)
                command = vm.stop_at(point, "snapshot", "@new")
                made = [entry for entry in vm.disks.iterdir() if entry.name != f"web.{fmt}"]
                place = made[0] if made else vm.disks / overlay if overlay else None
                if not place:  # a name that nobody can know
                    t.is_(go_on(command).code, 0, "a name by chance")
                    continue
                place.unlink(missing_ok=True)
                if kind == "link":
                    place.symlink_to(precious)
                elif kind == "dangling link":
                    place.symlink_to(vm.folder / "none")
                elif kind == "hard link":
                    os.link(precious, place)
                else:
                    os.mkfifo(place)
                out = go_on(command)
                after = about(precious)
                t.is_((out.code, after, (vm.folder / "none").exists()), (1, before, False),
                      f"{fmt}, {point}: a {kind} in the overlay's place: {out.error}")


def main():
    with Tap() as t:
        if os.geteuid() != 0:
            t.skip("another user", "only root can be one")
            return
        for part in monitors, agents, planted, locks, modes, overlays:
            if ONLY in part.__name__:
                part(t)


main()
