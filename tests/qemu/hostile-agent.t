#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A guest agent that means harm, against the whole command: it ends in time, with the right exit
code and a true record, takes little memory, and shows nothing raw of what it was told.

    tests/qemu/hostile-agent.t [CASE]
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from agent import Agent
from bare import Qemu, Tap, drive, lab, wait_until

ONLY = sys.argv[1] if len(sys.argv) > 1 else ""
MOST_KIB = 32 * 1024
MOST_S = 60  # each takes a few seconds at most, but on a busy machine; what hangs does so for good
EVIL = "\x1b]0;evil\x07\x1b[2J\x9b31m\u202eevil\r\n\x00\x7f\ud800"
EVIL_JSON = json.dumps(EVIL).encode()


class Hostile(Agent):
    """Answers `command` by `reply`: bytes, or a function of the connection and the request."""

    def __init__(self, path):
        super().__init__(path)
        self.command, self.reply = None, None

    def serve(self, client, request):
        if request["execute"] != self.command:
            super().serve(client, request)
            return
        self.answer(request["execute"], request.get("arguments", {}))  # it does what it is told
        with contextlib.suppress(OSError):
            if callable(self.reply):
                self.reply(client, request)
            else:
                client.sendall(self.reply + b"\n")


def returning(value):
    return b'{"return": ' + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"}"


def refusing(text):
    return b'{"error": {"class": "GenericError", "desc": ' + json.dumps(text).encode() + b"}}"


def endless(piece):
    """Without an end, and without a newline."""
    def send(client, _):
        end = time.monotonic() + MOST_S
        while time.monotonic() < end:
            client.sendall(piece * 65536)
    return send


def trickle(client, _):
    for byte in returning({"version": "7" * 1000}):
        client.sendall(bytes([byte]))
        time.sleep(0.25)


def flood(client, _):
    client.sendall(b'{"return": {}}\n{"return": 1}\n\xff{"error": {}}\n' * 50000)


def many_syncs(client, request):
    """Answers to others' questions, and then its own."""
    own = request["arguments"]["id"]
    client.sendall(b"".join(b"\xff" + returning(own + i) + b"\n" for i in range(1, 20000)) +
                   b"\xff" + returning(own) + b"\n")


def info(*commands):
    return returning({"version": EVIL, "supported_commands": list(commands)})


def mount(name, disk=None):
    return {"name": "sda1", "mountpoint": name, "type": "ext4", "disk": disk or []}


# (name, command, reply, exit codes that are right)
CASES = [
    ("escapes in a refusal", "guest-fsfreeze-freeze", refusing(EVIL), (1,)),
    ("a refusal of nearly 1 MiB", "guest-fsfreeze-freeze", refusing(EVIL * 10000), (1,)),
    ("a refusal that is larger", "guest-fsfreeze-freeze", refusing("\x1b" * 400000), (1, 3, 4, 5)),
    *((f"a freeze of {count.decode()}", "guest-fsfreeze-freeze", returning(count), (1, 5))
      for count in (b"9223372036854775808", b"-9223372036854775809", b"-1", b"1e400", b'"9"', b"null",
                    b"[]", b"{}", b"true")),
    ("a freeze of 2^63 - 1", "guest-fsfreeze-freeze", returning(2 ** 63 - 1), (1, 5)),
    ("a freeze without an end", "guest-fsfreeze-freeze", endless(b"x"), (6,)),
    ("a freeze without an end, as a text", "guest-fsfreeze-freeze", endless(b'"\\u001b'), (6,)),
    ("a thaw that lies: fewer", "guest-fsfreeze-thaw", returning(3), (5,)),
    ("a thaw that lies: more", "guest-fsfreeze-thaw", returning(2 ** 62), (5,)),
    ("a thaw that is no number", "guest-fsfreeze-thaw", returning(EVIL_JSON), (5,)),
    ("a thaw that is refused, with escapes", "guest-fsfreeze-thaw", refusing(EVIL), (5, 6)),
    ("a thaw of garbage", "guest-fsfreeze-thaw", EVIL.encode(errors="replace") + b"\xfe\xc3(", (6,)),
    ("trickling information", "guest-info", trickle, (1, 3, 4)),
    ("a flood instead of information", "guest-info", flood, (1, 3, 4)),
    ("a flood instead of the freeze", "guest-fsfreeze-freeze", flood, (1, 3, 4, 5)),
    ("information without an end", "guest-info", endless(b'{"a":['), (1, 3, 4)),
    ("markers without an end", "guest-info", endless(b"\xff"), (1, 3, 4)),
    ("answers to others", "guest-sync-delimited", many_syncs, (0,)),
    ("10000 commands", "guest-info", info(*({"name": "a", "enabled": True},) * 10000), (0,)),
    ("commands of odd types", "guest-info", info(None, 5, EVIL, [], {"name": 5}, {"name": EVIL}), (0,)),
    ("nesting of 31", "guest-get-osinfo", returning(b"[" * 30 + b"]" * 30), (0,)),
    ("nesting of 33", "guest-get-osinfo", returning(b"[" * 33 + b"]" * 33), (1, 3)),
    ("nesting of 100000", "guest-get-osinfo", returning(b"[" * 100000 + b"]" * 100000), (1, 3)),
    ("an odd operating system", "guest-get-osinfo", returning({"id": EVIL * 10000}), (0,)),
    ("two answers in one", "guest-get-osinfo", b'{"return": {}, "return": 5, "return": {}}', (0,)),
    ("no UTF-8", "guest-get-osinfo", b'{"return": {"id": "\xc3(\xed\xa0\x80"}}', (1, 3)),
    ("half a surrogate", "guest-get-osinfo", b'{"return": {"id": "\\ud800\\udfff\\udc00"}}', (0,)),
    ("a number of 100000 digits", "guest-get-osinfo", returning(b"9" * 100000), (0, 1, 3)),
    ("an odd status", "guest-fsfreeze-status", returning(EVIL_JSON), (1,)),
    ("odd mount points", "guest-get-fsinfo", returning(
        [mount(name) for name in (EVIL, "", "..", "/../..", "/a\nb", "x" * 100000, "/\x00")]), (0, 1, 5)),
    ("mount points of odd types", "guest-get-fsinfo", returning(
        [None, 5, {}, {"mountpoint": 5}, mount("/", 5), mount("/", [5, {}, {"dev": EVIL}])]), (0, 1, 5)),
    ("3000 mount points", "guest-get-fsinfo", returning([mount(f"/{EVIL}{i}") for i in range(3000)]),
     (0, 1, 5)),
    ("10^6 mount points", "guest-get-fsinfo", returning(b"[" + b",".join([b"{}"] * 10 ** 6) + b"]"),
     (0, 1, 3, 5)),
    ("a refusal to tell, with escapes", "guest-get-fsinfo", refusing(EVIL), (0, 1, 5)),
]


def raw(data):
    """What of these bytes must not get to a terminal."""
    text = data.decode("utf-8", errors="surrogateescape")
    return sorted({hex(ord(char)) for char in text
                   if (ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160
                   or 0x200b <= ord(char) <= 0x200f or 0x2028 <= ord(char) <= 0x202e
                   or 0x2066 <= ord(char) <= 0x2069 or 0xd800 <= ord(char) <= 0xdfff})


def peak(pid):
    """Of the memory of a process, in KiB. (What wait4(2) tells is our own, from before the exec.)"""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    own = os.readlink(f"/proc/{pid}/exe") == os.path.realpath(lab.vmfrost_program())
    return next(int(line.split()[1]) for line in lines if own and line.startswith("VmHWM:"))


def take(vm, *words):
    """(exit code, what it said, peak of its memory in KiB, seconds; None if it hangs)"""
    with open(vm.folder / "said", "w+b") as said:
        began, memory = time.monotonic(), 0
        child = lab.spawn([lab.vmfrost_program(), *map(str, words), "--qmp", str(vm.socket),
                           "--state-dir", str(vm.state)],
                          stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        while time.monotonic() - began < MOST_S:
            with contextlib.suppress(OSError, StopIteration):
                memory = max(memory, peak(child.pid))
            if child.poll() is not None:
                said.seek(0)
                return child.returncode, said.read(), memory, time.monotonic() - began
            time.sleep(0.005)
        return None, b"", 0, MOST_S


def kept(vm):
    """All that is kept: records, journals, what is known of disks."""
    return b"".join(path.read_bytes() for path in Path(vm.state).rglob("*") if path.is_file())


def one(t, vm, agent, number, case):
    """A snapshot in front of this agent, and what is left of it."""
    name, agent.command, agent.reply, codes = case
    snapshot, log = f"s{number}", vm.folder / f"log{number}"
    form = ["--json"] if number % 2 else ["-vv"]
    words = ["--deadline", "20s", "--frozen-limit", "2s", "--thaw-wait", "1s", "--log", log, *form]
    if agent.command == "guest-get-fsinfo":
        words += ["--exclude", "data"]
    code, said, memory, took = take(vm, "snapshot", "@" + snapshot, *words)
    written = log.read_bytes() if log.exists() else b""
    wrong = [] if code in codes else [f"exit {code}, and not one of {codes}"]
    if "asan" not in lab.vmfrost_program() and memory > MOST_KIB:
        wrong.append(f"{memory} KiB")
    if b"Sanitizer" in said or b"runtime error" in said:
        wrong.append("the sanitizer complains")
    wrong += [f"raw: {what}" for what in (raw(said), raw(written), raw(kept(vm))) if what]
    agent.command = None
    wait_until(lambda: not agent.frozen, what="the guest's thaw")  # by the guard, if need be
    records = Path(vm.state).glob(f"vms/*/records/{snapshot}.json")
    record = next((json.loads(path.read_text()) for path in records), {})
    if (code == 0) != (record.get("phase") == "Succeeded"):
        wrong.append(f"exit {code}, and the record says {record.get('phase')}")
    if record.get("consistency") == "filesystem" and \
            record["evidence"].get("frozenFilesystems") != record["evidence"].get("thawedFilesystems"):
        wrong.append(f"it calls that consistent: {record['evidence']}")
    for command in ["list"], ["show", "@" + snapshot], ["show", "@" + snapshot, "--json"], ["status"]:
        _, shown, _, _ = take(vm, *command)
        wrong += [f"{command[0]}: raw: {what}" for what in (raw(shown),) if what]
    if not t.is_(wrong, [], f"{name}: exit {code}, {memory} KiB, {took:.1f} s"):
        t.diag(said[-2000:].decode(errors="replace").replace("\x1b", "ESC"))
    if record:
        take(vm, "delete", "@" + snapshot)


def main():
    with Tap() as t, Qemu(drive("web") + drive("data"), ["web.qcow2", "data.qcow2"]) as vm:
        agent = Hostile(vm.run / "agent.sock")
        lab.vmfrost("add", "web", "--qmp", vm.socket, "--agent", vm.run / "agent.sock",
                    state_dir=vm.state)
        for number, case in enumerate(CASES):
            if ONLY in case[0]:
                one(t, vm, agent, number, case)
        agent.command = None
        t.is_(take(vm, "snapshot", "@last")[0], 0, "an honest agent, after all that")


main()
