#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Who is at the other end of the QMP socket: another client, nobody, no QEMU, a QEMU that hangs,
one that dies. Told in time, in few words and with little memory; nothing is changed.
"""

import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import ROOT, Qemu, Qmp, Tap, blockdev, drive, finish, go_on, image_ok, lab

HERE = ROOT / "peers"
GREETING = (b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, '
            b'"capabilities": ["oob"]}}\r\n')
EVENT = b'{"event": "STOP", "data": {}, "timestamp": {"seconds": 1, "microseconds": 2}}\r\n' * 500


def command_on(path, verb="snapshot", *words):
    """A command on some socket: (Out, seconds)."""
    begun = time.monotonic()
    name = ["@no"] if verb == "snapshot" else []
    out = finish(lab.start_vmfrost([verb, "--qmp", path, *name, *words, "--json"],
                                   state_dir=HERE / "state"))
    return out, time.monotonic() - begun


def clean(out):
    """No control characters in what people see."""
    return not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", out.err)


def unreachable(t, name, path, words=(), within=6.0):
    """check and snapshot: exit 3 in time, with these words; status: it is not running."""
    for verb in ("check", "snapshot"):
        out, took = command_on(path, verb)
        if not t.ok(out.code == 3 and all(word in out.error for word in words) and took < within
                    and clean(out), f"{name}: {verb}: exit 3 in {took:.1f} s: {out.error[-90:]}"):
            t.diag(f"{out.code} {out.error} | {out.next} | {out.err}")
    out, took = command_on(path, "status")
    t.ok(out.code == 0 and out.document.get("running") is False and out.document.get("warnings")
         and took < within and clean(out), f"{name}: status: not running, with the reason")
    left = [entry for entry in HERE.glob("state/vms/*/*") if entry.name in ("journal", "records")
            and (entry.name == "journal" or any(entry.iterdir()))]
    t.is_(left, [], f"{name}: no record, no journal")


class Peer:
    """A listening socket; each connection is handled by `talk(connection)` in a thread."""

    def __init__(self, name, talk):
        HERE.mkdir(exist_ok=True)
        self.path = HERE / name
        self.talk = talk
        self.peaks = []
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(self.path))
        self.server.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection):
        pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET,
                                                              socket.SO_PEERCRED, 12))
        with connection:
            try:
                self.talk(connection)
            except OSError:
                pass
            self.peaks.append(peak(pid))

    def close(self):
        self.server.close()
        self.path.unlink()


def peak(pid):
    """A process's largest resident size so far, in KiB; 0 if it is gone."""
    try:
        return int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))
    except (OSError, AttributeError):
        return 0


def watch_peak(command, timeout=lab.PATIENCE):
    """finish(), and the largest resident size that was seen on the way."""
    seen = 0
    end = time.monotonic() + timeout
    while command.process.poll() is None and time.monotonic() < end:
        seen = max(seen, peak(command.pid))
        time.sleep(0.005)
    return finish(command), seen


# --- nobody, or not a socket ----------------------------------------------------

def not_there(t):
    HERE.mkdir(exist_ok=True)
    (HERE / "file").write_text("hello\n")
    (HERE / "folder").mkdir()
    os.mkfifo(HERE / "fifo")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(HERE / "stale"))
    stale.close()
    (HERE / "loop").symlink_to("loop")
    unreachable(t, "no such file", HERE / "nothing", ["No such file"], 2)
    unreachable(t, "no such folder", HERE / "no" / "qmp.sock", ["No such file"], 2)
    unreachable(t, "a file", HERE / "file", [str(HERE / "file")], 2)
    unreachable(t, "a folder", HERE / "folder", [str(HERE / "folder")], 2)
    unreachable(t, "a fifo", HERE / "fifo", [str(HERE / "fifo")], 2)
    unreachable(t, "/dev/null", "/dev/null", ["/dev/null"], 2)
    unreachable(t, "nobody listens", HERE / "stale", ["nobody listens"], 2)
    unreachable(t, "a link to itself", HERE / "loop", [], 2)
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(str(HERE / "datagrams"))
    unreachable(t, "a datagram socket", HERE / "datagrams", [], 2)
    datagrams.close()
    out, _ = command_on(HERE / ("x" * 120), "snapshot")
    t.ok(out.code == 3 and "No such file" in out.error,
         f"a path longer than a socket's name can be: {out.error[-70:]}")
    out, _ = command_on("tcp:127.0.0.1:1", "snapshot")
    t.ok(out.code == 3 and "nobody listens" in out.error, f"nobody at a TCP port: {out.error[-70:]}")


# --- somebody else -----------------------------------------------------------------

def answer(*parts, wait=None):
    """Say these, then wait until the other side goes, or `wait` seconds."""
    def talk(connection):
        for part in parts:
            connection.sendall(part)
        connection.settimeout(wait or 30)
        while connection.recv(65536):
            pass
    return talk


def after_capabilities(*parts):
    """Greet, take qmp_capabilities, then say these, with ID for the request's id."""
    def talk(connection):
        connection.sendall(GREETING)
        request = connection.recv(65536)
        match = re.search(rb'"id":\s*("[^"]*")', request)
        for part in parts:
            connection.sendall(part.replace(b"ID", match.group(1) if match else b"null"))
        connection.settimeout(30)
        while connection.recv(65536):
            pass
    return talk


def strangers(t):
    http = b"HTTP/1.1 400 Bad Request\r\nServer: x\r\nContent-Length: 0\r\n\r\n"
    cases = (
        ("an HTTP server", answer(http), 6),
        ("an SSH server", answer(b"SSH-2.0-OpenSSH_9.2p1\r\n"), 6),
        ("a guest agent", answer(b'{"return": {}}\n'), 6),
        ("random bytes", answer(os.urandom(4096)), 6),
        ("zeroes", answer(bytes(4096)), 6),
        ("a silent server", answer(), 6),
        ("one that hangs up", lambda connection: None, 2),
        ("half a greeting", answer(GREETING[:40]), 6),
        ("half a greeting, then the end", lambda connection: connection.sendall(GREETING[:40]), 6),
        ("a terminal's escapes", answer(b"\x1b]0;owned\x07\x1b[2J\n"), 6),
        ("a JSON number", answer(b"7\r\n"), 6),
        ("a deep nesting", answer(b"[" * 100000), 6),
        ("only a greeting", answer(GREETING), 11),
        ("a greeting, then the end", lambda connection: connection.sendall(GREETING), 6),
        ("a greeting, then garbage", after_capabilities(b"\xff\xfe garbage\r\n"), 11),
        ("a refusal of qmp_capabilities", after_capabilities(
            b'{"id": ID, "error": {"class": "GenericError", "desc": "go \x1b[31maway"}}\r\n'), 11),
        ("an answer with another id", after_capabilities(b'{"id": "x", "return": {}}\r\n'), 11),
        ("events without end", after_capabilities(
            b'{"id": ID, "return": {}}\r\n', EVENT * ((64 << 20) // len(EVENT))), 12),
        ("an answer that is no object", after_capabilities(b'{"id": ID, "return": 7}\r\n'), 11),
    )
    # All at once, or their time limits would add up. Each thread outlives its command.
    with ThreadPoolExecutor(len(cases)) as pool:
        begun = []
        for number, (name, talk, within) in enumerate(cases):
            peer = Peer(f"peer-{number}", talk)
            begun.append((name, within, peer, pool.submit(command_on, peer.path)))
        for name, within, peer, future in begun:
            out, took = future.result()
            if not t.ok(out.code == 3 and took < within and clean(out),
                        f"{name}: exit 3 in {took:.1f} s: {out.error[-80:]!r}"):
                t.diag(f"{out.code} {out.error} {out.err}")
            peer.close()


def old_qemu(greeting, commands, asked):
    """A QEMU that knows these commands, and no others; it does nothing."""
    def talk(connection):
        connection.sendall(greeting)
        text = ""
        while (more := connection.recv(65536)):
            text += more.decode()
            while text.strip():
                try:
                    request, end = json.JSONDecoder().raw_decode(text.lstrip())
                except ValueError:
                    break
                text = text.lstrip()[end:]
                command = request["execute"]
                asked.append(command)
                reply = {"id": request["id"]}
                if command == "query-commands":
                    reply["return"] = [{"name": name} for name in commands]
                elif command in ("qmp_capabilities", *commands):
                    reply["return"] = {}
                else:
                    reply["error"] = {"class": "CommandNotFound",
                                      "desc": f"The command {command} has not been found"}
                connection.sendall(json.dumps(reply).encode() + b"\r\n")
    return talk


def too_old(t):
    """A QEMU that could not do what an operation needs is refused before anything is begun."""
    with Qemu(drive("web")) as vm:
        commands = [command["name"] for command in vm.qmp("query-commands")]
    new = b'"micro": 22, "minor": 2, "major": 7'
    cases = (
        ("2.8, without jobs", b'"micro": 1, "minor": 8, "major": 2', "2.8.1",
         [name for name in commands if not name.startswith(("job-", "query-jobs")) and
          name not in ("blockdev-create", "x-debug-query-block-graph")],
         ["query-jobs", "job-finalize", "blockdev-create", "x-debug-query-block-graph"]),
        ("one without transactions", new, "7.2.22",
         [name for name in commands if name != "transaction"], ["transaction"]),
        ("one that cannot cut", new, "7.2.22",
         [name for name in commands if name != "blockdev-snapshot-sync"],
         ["blockdev-snapshot-sync"]),
        ("one that knows nothing", new, "7.2.22", ["query-commands"], ["blockdev-add", "cont"]),
    )
    for number, (name, version, told, known, missing) in enumerate(cases):
        asked = []
        peer = Peer(f"old-{number}", old_qemu(GREETING.replace(new, version), known, asked))
        for verb in ("check", "snapshot", "status"):
            out, _ = command_on(peer.path, verb)
            text = json.dumps(out.document) if verb == "status" else out.error
            t.ok(out.code == (0 if verb == "status" else 1) and f"QEMU {told} " in text and
                 all(word in text for word in missing) and
                 (verb == "status" or "QEMU 5.2 or later" in out.next),
                 f"{name}: {verb}: exit {out.code}: {out.error[-110:]} {out.next}")
        t.is_({command for command in asked if not command.startswith("query-")} -
              {"qmp_capabilities"}, set(), "... it was asked to do nothing")
        peer.close()


def flood(first, part, size):
    """Say `first`, then `part` again and again up to `size` bytes."""
    def talk(connection):
        connection.sendall(first)
        if first.startswith(b'{"QMP"'):
            request = connection.recv(65536)
            match = re.search(rb'"id":\s*("[^"]*")', request)
            connection.sendall(b'{"id": %s, "return": {}}\r\n' % match.group(1))
            request = connection.recv(65536)
            match = re.search(rb'"id":\s*("[^"]*")', request)
            connection.sendall(b'{"id": %s, "return": [' % match.group(1))
        for _ in range(size // len(part)):
            connection.sendall(part)
        connection.settimeout(30)
        while connection.recv(65536):
            pass
    return talk


def floods(t):
    """However much somebody says, vmfrost stays small."""
    program = os.environ.get("VMFROST")
    # Whatever it allocates comes from here, or not at all.
    wrapper = HERE / "with-little-memory"
    wrapper.write_text(f'#!/bin/sh\nulimit -d 16384\nexec {lab.vmfrost_program()} "$@"\n')
    wrapper.chmod(0o755)
    limited = b"__asan_init" not in Path(lab.vmfrost_program()).read_bytes()
    if limited:
        os.environ["VMFROST"] = str(wrapper)
    entry = b'{"device": "%s", "locked": false}, ' % (b"x" * 4000)
    for name, talk in (
            ("64 MiB of a reply", flood(GREETING, entry, 64 << 20)),
            ("64 MiB of one string", flood(GREETING, b'"' + b"y" * 65535, 64 << 20)),
            ("64 MiB of small things", flood(GREETING, b"{}," * 20000, 64 << 20)),
            ("64 MiB before a greeting", flood(b"", b"z" * 65536, 64 << 20)),
            ("64 MiB of lines before a greeting", flood(b"", b"{}\r\n" * 16384, 64 << 20))):
        peer = Peer(f"flood-{len(list(HERE.iterdir()))}", talk)
        begun = time.monotonic()
        out, seen = watch_peak(lab.start_vmfrost(
            ["check", "--qmp", peer.path, "--json"], state_dir=HERE / "state"))
        took = time.monotonic() - begun
        t.ok(out.code == 3 and clean(out) and took < 25,
             f"{name}: exit {out.code} in {took:.1f} s: {out.error[-100:]!r}")
        peaks = max([seen, *peer.peaks])
        t.ok(peaks < 16 * 1024 or not limited, f"... with less than 16 MiB of memory ({peaks} KiB were seen)")
        peer.close()
    os.environ.pop("VMFROST", None)
    if program:
        os.environ["VMFROST"] = program


# --- a QEMU --------------------------------------------------------------------------

def held(t):
    """Another client is on the monitor."""
    with Qemu(drive("web")) as vm:
        other = Qmp(vm.socket)
        before = vm.graph()
        begun = time.monotonic()
        out = vm.vmfrost("snapshot", "@one")
        took = time.monotonic() - begun
        t.ok(out.code == 3 and took < 6 and "client" in out.error + out.next,
             f"another client has the monitor: exit 3 in {took:.1f} s: {out.error[-80:]}")
        out = vm.vmfrost("status")
        t.ok(out.code == 0 and out.document["running"] is False and
             any("client" in line for line in out.document["warnings"]), "... status says so, too")
        t.is_((vm.graph(), vm.names()), (before, ["web.qcow2"]), "... nothing is changed")
        # It may come free while we wait.
        command = vm.start_vmfrost("snapshot", "@one")
        time.sleep(1)
        other.close()
        out = finish(command)
        t.is_((out.code, out.error), (0, ""), "... when it lets go in time, all is well")


def pretty(t):
    """-qmp-pretty: one object over many lines."""
    vm = Qemu(drive("web"))
    vm.words += ["-qmp-pretty", f"unix:{vm.run / 'pretty.sock'},server=on,wait=off"]
    with vm:
        vm.write("web", 1)
        for verb, words in (("status", []), ("check", []), ("snapshot", ["@one"]),
                            ("delete", ["@one"])):
            out = finish(lab.start_vmfrost([verb, "--qmp", vm.run / "pretty.sock", *words,
                                            "--json"], state_dir=vm.state))
            t.is_((out.code, out.error), (0, ""), f"-qmp-pretty: {verb}")
        t.is_((vm.names(), vm.sees("web", 1)), (["web.qcow2"], [1]), "... and all is as it should be")


def hangs(t):
    """QEMU is stopped by SIGSTOP."""
    with Qemu(drive("web")) as vm:
        vm.hang_up()
        os.kill(vm.pid, signal.SIGSTOP)
        begun = time.monotonic()
        out = vm.vmfrost("snapshot", "@one")
        took = time.monotonic() - begun
        t.ok(out.code == 3 and took < 11, f"QEMU hangs: exit 3 in {took:.1f} s: {out.error[-90:]}")
        os.kill(vm.pid, signal.SIGCONT)
        t.is_((vm.names(), vm.vmfrost("list").result), (["web.qcow2"], []), "... nothing is changed")
        vm.take("one")
        t.ok(True, "... and when it goes on, a snapshot can be taken")
        vm.delete("one")
    for step in ("rehearse", "cut+", "verify"):
        with Qemu(drive("web")) as vm:
            vm.write("web", 1)
            command = vm.stop_at(step, "snapshot", "@no", "--deadline", "500ms")
            vm.hang_up()
            os.kill(vm.pid, signal.SIGSTOP)
            command.signal(signal.SIGCONT)
            time.sleep(0.8)
            os.kill(vm.pid, signal.SIGCONT)
            out = finish(command)
            t.ok(out.code == 4 and "deadline" in out.error and vm.names() == ["web.qcow2"] and
                 len(vm.chain("web")) == 1 and not vm.journal() and not vm.jobs(),
                 f"QEMU hangs over the deadline at {step}, and comes back: exit 4, all undone")
            if out.code != 4:
                t.diag(f"{out.code} {out.error} {out.err} {vm.names()}")
            t.is_(vm.sees("web", 1), [1], "... the guest has what it wrote")


def dies(t):
    """QEMU is killed in the middle."""
    snapshot = ("overlays", "overlays.created", "overlays.named", "rehearse", "guard", "cut", "flip",
                "verify", "record")
    delete = ("accept", "merge", "merge.stopped", "merge.writable", "merge.started",
              "merge.pending", "merge.turned", "files", "remove")
    for verb, attach, step in [*(("snapshot", "drive", step) for step in snapshot),
                               *(("delete", "drive", step) for step in delete),
                               ("snapshot", "blockdev", "overlays.named"),
                               ("snapshot", "blockdev", "verify"),
                               ("delete", "blockdev", "merge.started"),
                               ("delete", "blockdev", "merge.pending")]:
        with Qemu((drive if attach == "drive" else blockdev)("web")) as vm:
            vm.write("web", 1)
            if verb == "delete":
                vm.take("one")
            top = [1, 0, 0]
            command = vm.stop_at(step, verb, "@one")
            if step not in ("merge.pending", "merge.turned"):
                vm.write("web", 2, 1)
                top[1] = 2
            vm.kill()
            begun = time.monotonic()
            out = go_on(command)
            took = time.monotonic() - begun
            done = step in ("record", "files", "remove")  # all that QEMU has to do with is over
            if done:
                good = out.code == 0
            elif verb == "snapshot" and step not in ("flip", "verify"):
                good = out.code == 3 and "QEMU" in out.error and vm.names() == ["web.qcow2"]
            else:
                good = out.code in (3, 5) and "QEMU" in out.error and "recover" in out.next
            name = f"{verb}, {attach}: QEMU dies at {step}"
            if not t.ok(good and took < 15, f"{name}: exit {out.code} in {took:.1f} s"):
                t.diag(f"{out.code} {out.error} | {out.next} | {out.err} {vm.names()}")
            t.is_(vm.read("web.qcow2", 3), top, "... the launcher's name opens what the guest wrote")
            out = vm.vmfrost("recover")
            records = {record["name"]: record for record in vm.vmfrost("list").result}
            there = "one" in records
            kept = there and (records["one"]["readyToUse"] or verb == "delete")
            t.is_((out.code, vm.names(), vm.journal()),
                  (0, ["web.qcow2", "web@one.qcow2"] if kept else ["web.qcow2"], []),
                  "... recover leaves nothing else")
            t.ok(vm.read("web.qcow2", 3) == top and image_ok(vm.disks / "web.qcow2", leaks=True),
                 "... and the data is whole")
            vm.start()
            if there:
                again = vm.vmfrost("delete", "@one")
                t.is_((again.code, again.error), (0, ""), "... the rest can be deleted then")
            t.is_(vm.sees("web", 3), top, "... the VM starts with it")


def main():
    HERE.mkdir(exist_ok=True)
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (not_there, strangers, too_old, floods, held, pretty, hangs, dies):
            if only in part.__name__:
                part(t)


main()
