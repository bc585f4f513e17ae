#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How far a long step is: percents in --json, the bar on a terminal, lines without one; and stopping
in the middle of it."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
from contextlib import contextmanager

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (CLUSTER, MIB, LabError, Qemu, Tap, drive, finish, lab, make_image, process_state,
                  wait_until)

FULL = 64 * MIB // CLUSTER
LESS = FULL - 2 * MIB // CLUSTER  # so that there is no doubt which way is the shorter one


@contextmanager
def machine(levels, disks=("web",), parts=(1,), speed="32M"):
    """A VM whose images hold so many clusters each, the snapshots "s0", "s1"... and the current
    one, at different places, and hardly more; of each disk a part of that. Nothing is copied
    faster than `speed` bytes per second."""
    ends = [sum(levels[:level]) for level in range(len(levels) + 1)]
    qemu = Qemu([word for disk in disks for word in drive(disk)], ())
    for disk, part in zip(disks, parts):
        make_image(qemu.disks / f"{disk}.qcow2", size=int(ends[-1] * part) * CLUSTER)
    with qemu as vm:
        for level, count in enumerate(levels):
            if level > 0:
                vm.take(f"s{level - 1}")
            for disk, part in zip(disks, parts):
                vm.write(disk, level + 1, int(ends[level] * part), int(count * part))
        added = finish(lab.start_vmfrost(["add", "web", "--qmp", vm.socket, "--set",
                                          f"copySpeed={speed}"], state_dir=vm.state))
        if added.code != 0:
            raise LabError(f"add: {added.error}")
        yield vm


def percents(command, step):
    whole = command.output()[0].rpartition("\n")[0]
    of = [line for line in map(json.loads, whole.splitlines()) if line.get("step") == step]
    told = [line["percent"] for line in of if line["state"] == "progress"]
    return told, of[-1]["state"] if of else None


def rises(tap, told, what, at_least=4):
    tap.ok(len(told) >= at_least and told == sorted(set(told)) and told[0] >= 0 and told[-1] < 100,
           f"{what}: {told}")


def told_in_json(tap):
    with machine((FULL, LESS)) as vm:
        command = vm.start_vmfrost("delete", "@s0")
        began = time.monotonic()
        out = finish(command)
        took = time.monotonic() - began
        told, end = percents(command, "merge")
        tap.is_((out.code, end), (0, "done"), "a slow deletion succeeds")
        tap.ok(took > 1.5, f"copySpeed: 64 MiB at 32 MiB/s: {took:.2f} s")
        rises(tap, told, "and tells how far it is")
        tap.ok(told[-1] > 50, "nearly to its end")


def several_disks(tap):
    """The percents are of the whole step, each disk with its weight."""
    with machine((FULL, LESS), ("web", "data"), (0.5, 1)) as vm:
        command = vm.start_vmfrost("delete", "@s0")
        out = finish(command)
        told, _ = percents(command, "merge")
        tap.is_(out.code, 0, "two disks, one smaller than the other")
        rises(tap, told, "one row of percents for both")
        tap.ok(any(0 < percent < 33 for percent in told), "the smaller one is a third of it")
        tap.ok(told[-1] > 50, "to the end of it")


def grafts(tap):
    """A snapshot in the middle."""
    with machine((FULL // 2, FULL // 2 + 16, 1), ("web", "data"), (1, 1)) as vm:
        command = vm.start_vmfrost("delete", "@s0")
        out = finish(command)
        told, end = percents(command, "graft")
        tap.is_((out.code, end), (0, "done"), "joining sealed images of two disks")
        rises(tap, told, "one row of percents for both")
        tap.ok(min(told) < 50 < max(told), "over both halves")


def both(vm):
    """What the guest reads of each level."""
    return [int(re.search(r"^[0-9a-f]+:  ([0-9a-f]{2}) ",
                          vm.io("web", f"read -v {level * FULL * CLUSTER} 512"), re.M).group(1), 16)
            for level in range(2)]


def stopped_in_the_middle(tap):
    with machine((FULL, LESS)) as vm:
        command = vm.start_vmfrost("delete", "@s0")
        wait_until(lambda: '"progress"' in command.output()[0], what="progress", interval=0.05)
        command.signal(signal.SIGINT)
        out = finish(command)
        tap.ok(out.code == 1 and "stopped by request" in out.error, "Ctrl-C in the middle of it")
        tap.is_((vm.status(), vm.jobs(), vm.journal()), ("running", [], []), "leaves nothing")
        tap.is_((both(vm), len(vm.chain("web"))), ([1, 2], 2), "the guest's data are there")
        out = vm.vmfrost("delete", "@s0")
        tap.is_((out.code, both(vm), len(vm.chain("web"))), (0, [1, 2], 1),
                "a second deletion finishes it")


def forward(client, qemu):
    """What a client says."""
    while said := client.recv(65536):
        qemu.sendall(said)
    qemu.shutdown(socket.SHUT_WR)


def backward(client, qemu):
    """What QEMU says, but for what it tells of jobs."""
    with qemu.makefile("rb") as lines:
        for line in lines:
            if b"JOB_STATUS_CHANGE" not in line:
                client.sendall(line)
    client.close()


@contextmanager
def relayed(*ways):
    """A VM, and the address under which it is reached over a relay."""
    qemu = Qemu()
    qemu.words = drive("web", str(qemu.disks / "web.qcow2"))
    with qemu as vm, socket.create_server(("127.0.0.1", 0)) as server:
        def serve():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                monitor = socket.socket(socket.AF_UNIX)
                monitor.connect(str(vm.socket))
                for way in ways:
                    threading.Thread(target=way, args=(client, monitor), daemon=True).start()
        threading.Thread(target=serve, daemon=True).start()
        yield vm, f"tcp:127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def lost_between_answers(tap):
    """A connection that ends while several questions are open, on the way back."""
    armed = threading.Event()

    def cut_off(client, monitor):
        while said := client.recv(65536):
            if armed.is_set() and b"query-named-block-nodes" in said:
                armed.clear()
                client.shutdown(socket.SHUT_RDWR)
                monitor.shutdown(socket.SHUT_RDWR)
                return
            monitor.sendall(said)
        monitor.shutdown(socket.SHUT_WR)

    def untouched(client, monitor):
        try:
            while said := monitor.recv(65536):
                client.sendall(said)
        except OSError:
            pass
        client.close()

    with relayed(cut_off, untouched) as (vm, address):
        command = lab.start_vmfrost(["snapshot", "--qmp", address, "@one", "--json"],
                                    env={"VMFROST_TEST_AT": "stop:overlays.created"},
                                    state_dir=vm.state)
        wait_until(lambda: process_state(command.pid) == "T", what="the stop")
        armed.set()
        command.signal(signal.SIGINT)
        command.signal(signal.SIGCONT)
        out = finish(command)
        tap.ok(out.code == 1 and "stopped by request" in out.error and not armed.is_set(),
               f"the connection ends between answers: {out.code} {out.error} {out.err[-200:]}")
        tap.is_((len(vm.chain("web")), vm.jobs(), vm.names(), vm.status()),
                (1, [], ["web.qcow2"], "running"), "... and what was prepared is removed")


def events_lost(tap):
    """A job whose events never come."""
    with relayed(forward, backward) as (vm, address):
        out = finish(lab.start_vmfrost(["snapshot", "--qmp", address, "@one", "--json"],
                                       state_dir=vm.state))
        tap.is_((out.code, out.error), (0, ""), "the overlay's creation without a job's events")
        tap.is_((len(vm.chain("web")), vm.jobs()), (2, []), "all is done")
        out = finish(lab.start_vmfrost(["delete", "--qmp", address, "@one", "--json"],
                                       state_dir=vm.state))
        tap.ok(out.code == 1 and "over TCP" in out.error and "unix:" in out.next,
               f"deleting needs to know which process QEMU is: {out.error}")
        tap.is_((len(vm.chain("web")), vm.jobs(), vm.status()), (2, [], "running"),
                "... and nothing is done")


class Terminal:
    """vmfrost with a terminal of so many columns on stderr."""

    def __init__(self, vm, *words, columns=80, **env):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            keep = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
            os.execve(lab.vmfrost_program(), [lab.vmfrost_program(), *words, "--qmp", str(vm.socket)],
                      {**keep, "TERM": "xterm", "LC_ALL": "C.UTF-8",
                       "VMFROST_STATE_DIR": str(vm.state), **env})

    def end(self):
        """Exit code and all that was printed."""
        text = b""
        until = time.monotonic() + lab.PATIENCE
        while time.monotonic() < until:
            if not select.select([self.fd], [], [], 1)[0]:
                continue
            try:
                part = os.read(self.fd, 65536)
            except OSError:
                break
            if not part:
                break
            text += part
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), text.decode()


def drawn(text):
    """What was drawn in place, without colors: one entry for each time."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return [part for part in re.split(r"\r\x1b\[K|\r?\n", plain) if part]


def screen(text):
    """What stands on the terminal at the end."""
    lines = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n").split("\n"):
        lines.append(line.rpartition("\r\x1b[K")[2])
    return lines


def on_terminal(tap):
    with machine((FULL, FULL, LESS), speed="16M") as vm:
        terminal = Terminal(vm, "delete", "s1")
        code, text = terminal.end()
        bars = [part for part in drawn(text) if "━" in part or "─" in part]
        tap.is_(code, 0, "a deletion on a terminal")
        tap.ok(len(bars) >= 2 and all(re.match(r"  … Merging +━*─* +\d+ %", bar) for bar in bars),
               f"a bar is drawn, more than once: {bars}")
        tap.ok(all(len(part) < 80 for part in drawn(text)), "no line wraps")
        tap.ok(any(re.search(r"%, \d+ s left$", bar) for bar in bars), "with the time that is left")
        tap.ok(not any("━" in line or "…" in line for line in screen(text)),
               "it is wiped")
        tap.ok(any(re.match(r"  ✓ Merging  ", line) for line in screen(text)),
               "and becomes the line of the finished step")

        terminal = Terminal(vm, "delete", "s0", columns=40, NO_COLOR="1", LC_ALL="C")
        code, text = terminal.end()
        told = [part for part in drawn(text) if "%" in part]
        tap.ok(code == 0 and text.isascii() and not re.search(r"\x1b\[[0-9;]*m", text),
               "neither colors nor UTF-8")
        tap.ok(told and all(re.match(r"  ~ Joining images +\d+ %$", part) and len(part) < 40
                            for part in told), f"a narrow terminal has percents alone: {told}")


def skipped(tap):
    """What there is no need to do is not shown, unless one asks for all."""
    with Qemu(drive("web")) as vm:
        _, text = Terminal(vm, "snapshot", "@one").end()
        tap.ok(any("✓ Cutting the disks" in line for line in screen(text)) and
               "Freezing" not in text and "skipped" not in text, "steps that are skipped are not shown")
        _, text = Terminal(vm, "snapshot", "@two", "-v").end()
        tap.ok(any(re.search("- Freezing the guest +skipped", line) for line in screen(text)),
               "but with -v")


def without_terminal(tap):
    with machine((FULL, FULL, FULL // 2)) as vm:
        for words, name, lines in (([], "s1", 0), (["-v"], "s0", 3)):
            command = lab.start_vmfrost(["delete", "--qmp", vm.socket, name, *words],
                                        state_dir=vm.state)
            command.wait(lab.PATIENCE)
            err = command.output()[1]
            told = re.findall(r"^  . (?:Merging|Joining images) +(\d+) %$", err, re.M)
            tap.ok("\x1b" not in err and "\r" not in err, f"{words}: nothing is drawn")
            tap.ok(len(told) >= lines if lines else not told, f"{words}: lines: {told}")
            tap.is_([int(percent) % 10 for percent in told], [0] * len(told), f"{words}: tenths")


with Tap() as main:
    told_in_json(main)
    several_disks(main)
    grafts(main)
    stopped_in_the_middle(main)
    events_lost(main)
    lost_between_answers(main)
    on_terminal(main)
    skipped(main)
    without_terminal(main)
