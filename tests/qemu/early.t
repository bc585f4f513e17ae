#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A QEMU before 6.1, which dies if a guest on an iothread writes at the wrong moment: the VM is stopped
for that moment, and for no other. What tells of such a QEMU is that it has no `blockdev-reopen`: a proxy
hides that of whichever QEMU there is. (That the real one lives: guest/snapshot.t, by `make check-other`.)"""

import os
import re
import signal
import socket
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import Qemu, Tap, blockdev, drive, finish, lab, wait_until

# vmfrost asks the kernel who listens: that has to be QEMU's process, before it becomes QEMU.
LISTEN = """
import os, socket, sys
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
front, back = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
front.bind(sys.argv[1])
front.listen(16)
back.connect(sys.argv[2])
socket.send_fds(back, [b"x"], [front.fileno()])
os.execvp(sys.argv[3], sys.argv[3:])
"""
HIDDEN = b'{"name": "blockdev-reopen"}, '
COMMAND = re.compile(rb'"execute":"([\w-]+)"(?:,"arguments":\{"command-line":"(qemu-io)[^}]* \\"([^\\]*)\\")?')


class Early(Qemu):
    """With a proxy on its monitor, which tells what was asked. `early`: it hides the command."""

    def __init__(self, words, early=True, **options):
        super().__init__(words, **options)
        self.early, self.asked, self.hold, self.held = early, [], None, threading.Event()
        handover = self.run / "handover"
        self.handover = socket.socket(socket.AF_UNIX)
        self.handover.bind(str(handover))
        self.handover.listen()
        self.before = [sys.executable, "-c", LISTEN, self.run / "front.sock", handover]

    def start(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return super().start()

    def __exit__(self, *_):
        self.handover.close()
        super().__exit__()

    def start_vmfrost(self, verb, *words, env=None):
        return lab.start_vmfrost([verb, "--qmp", self.run / "front.sock", *words, "--json"], env=env,
                                 state_dir=self.state)

    def _serve(self):
        with self.handover.accept()[0] as connection:
            _, (fd,), _, _ = socket.recv_fds(connection, 1, 1)
        with socket.socket(fileno=fd) as front:
            while True:
                client = front.accept()[0]
                server = lab.connect_unix(self.run / "qmp.sock")
                for pump in self._to_qemu, self._to_vmfrost:
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _to_qemu(self, client, server):
        text = b""
        while (data := client.recv(65536)):
            text += data
            while (match := COMMAND.search(text)):
                text = text[match.end():]
                name = b" ".join(part for part in match.groups()[::2] if part).decode()
                self.asked.append(name)
                if name == self.hold:
                    self.held.set()
            if not self.held.is_set():
                server.sendall(data)
        server.shutdown(socket.SHUT_RDWR)

    def _to_vmfrost(self, client, server):
        with server.makefile("rb") as lines:
            for line in lines:
                try:
                    client.sendall(line.replace(HIDDEN, b"") if self.early else line)
                except OSError:
                    return
        client.close()

    def watched(self, *words):
        """What a command asks QEMU for, of that which changes anything."""
        self.asked.clear()
        out = self.vmfrost(*words)
        if out.code:
            self.asked.append(f"exit {out.code}: {out.error}")
        return [name for name in self.asked
                if not name.startswith("query-") and not name.startswith("qom-")
                and name not in ("qmp_capabilities", "x-debug-query-block-graph", "blockdev-del")]


def around(asked, begin, end):
    """What lies between two of the requests, these included."""
    at = asked.index(begin)
    return asked[at:asked.index(end, at) + 1] if end in asked[at:] else asked


FLUSH = "human-monitor-command flush"
# As merge.c begins a commit, and graft.c ends one, or a stream.
AT_REST = ["stop", "block-commit", "cont"]
WITH_A_NAME = ["stop", "human-monitor-command reopen -w", "block-commit", "cont"]
FLUSHED_AT_REST = ["stop", FLUSH, "cont", "job-finalize"]


def merged(vm):
    vm.write("web", 1)
    vm.take("one")
    vm.write("web", 2, 1)
    return vm.watched("delete", "@one")


def merges(t, later):
    for form, early, want in ((blockdev, True, AT_REST), (drive, True, WITH_A_NAME),
                              *([(drive, False, WITH_A_NAME)] * later)):
        with Early(form("web"), early) as vm:
            asked = merged(vm)
            t.is_(around(asked, "stop", "cont"), want, f"{form.__name__}, early: {early}: the VM is "
                  f"stopped while a commit begins")
            t.is_((vm.sees("web", 3), vm.status(), asked[-1]), ([1, 2, 0], "running", "job-dismiss"),
                  "... goes on, and has what it wrote")
    if later:
        with Early(blockdev("web"), early=False) as vm:
            asked = merged(vm)
            t.is_((asked[0], {"stop", "cont"} & set(asked), vm.sees("web", 3)),
                  ("block-commit", set(), [1, 2, 0]), "a later QEMU is not stopped for that")
    with Early(blockdev("web"), running=False) as vm:
        asked = merged(vm)
        t.is_((asked[0], {"stop", "cont"} & set(asked), vm.status()),
              ("block-commit", set(), "prelaunch"), "nor one whose VM does not run")


def three(vm):
    """Snapshots of which the first one's image is the smaller one, and the second one's is not."""
    for name, clusters in (("one", 1), ("two", 40), ("three", 2)):
        vm.write("web", len(name), 0, clusters)
        vm.take(name)
    vm.write("web", 9, 50)


def grafts(t, later):
    for early in (True, False) if later else (True,):
        with Early(drive("web"), early) as vm:
            three(vm)
            vm.restart()
            for name, job in (("one", "block-stream"), ("two", "block-commit")):
                asked = vm.watched("delete", "@" + name)
                want = [job, "job-complete", *FLUSHED_AT_REST] if early else [job, FLUSH, "job-finalize"]
                t.is_([word for word in around(asked, job, "job-finalize") if word != "job-complete"],
                      [word for word in want if word != "job-complete"],
                      f"{job}: flushed" + " while the VM is stopped" * early)
                t.is_((vm.status(), vm.sees("web", 3), vm.read("web@three.qcow2", 3)),
                      ("running", [5, 5, 3], [5, 5, 3]), "... and all goes on")


def killed(t, _):
    """In that moment: the VM stands still until somebody recovers it."""
    for story, hold, delete in ((merged, "block-commit", "one"), (three, FLUSH, "one")):
        with Early(blockdev("web")) as vm:
            if story is three:
                three(vm)
                vm.restart()
            else:
                vm.write("web", 1)
                vm.take("one")
                vm.write("web", 2, 1)
            sees = vm.sees("web", 3)
            vm.hold = hold
            command = vm.start_vmfrost("delete", "@" + delete)
            t.ok(vm.held.wait(lab.PATIENCE) and vm.status() == "paused", f"stopped for {hold}")
            command.signal(signal.SIGKILL)
            finish(command)
            vm.hold = None
            vm.held.clear()
            out = vm.vmfrost("recover")
            wait_until(lambda: vm.status() == "running", what="the VM going on")
            t.is_((out.code, vm.sees("web", 3), vm.jobs(), vm.journal()), (0, sees, [], []),
                  "killed there: recover lets it go on")
            out = vm.vmfrost("list")
            t.is_([entry["name"] for entry in out.result or []],
                  ["two", "three"] if story is three else [], "... and finishes the deletion")


def main():
    with Tap() as t:
        with Qemu(drive("web")) as vm:
            later = "blockdev-reopen" in [each["name"] for each in vm.qmp("query-commands")]
        if not later:
            t.diag("this QEMU is such a one: there is no other to be seen")
        only = os.environ.get("ONLY", "")
        for part in (merges, grafts, killed):
            if only in part.__name__:
                part(t, later)


main()
