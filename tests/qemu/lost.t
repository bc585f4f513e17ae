#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A request, or QEMU's answer to it, is lost or spoilt on the way, and the connection lives on: nobody
waits for it for ever. The operation ends, or says what to do; the guest goes on, and nothing is lost.

    tests/qemu/lost.t [COMMAND]
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "torture"))
from bare import Qemu, Tap, blockdev, drive, finish, lab
from proxy import Proxy

ONLY = sys.argv[1] if len(sys.argv) > 1 else ""
SOON = 60  # seconds; without a limit it would wait for a day

# The kernel remembers who began to listen, and vmfrost looks at what that process has open.
LISTEN = ("import os, socket, sys; socket.socket(fileno=int(sys.argv[1])).listen(); "
          "os.execvp(sys.argv[2], sys.argv[2:])")


class Vm(Qemu):
    """Behind a proxy."""

    def __init__(self, *words, **options):
        super().__init__(*words, **options)
        self.front = self.run / "front.sock"
        self.proxy = Proxy({"qmp": (self.front, self.socket)})

    def start(self):
        sockets = self.proxy.bind()
        self.descriptors = tuple(sock.fileno() for sock in sockets)
        self.before = [sys.executable, "-c", LISTEN, *map(str, self.descriptors)]
        super().start()
        self.proxy.serve(sockets)
        return self

    def kill(self):
        super().kill()
        self.proxy.refuse()

    def start_vmfrost(self, verb, *words, env=None):
        return lab.start_vmfrost([verb, "--qmp", self.front, *words, "--json"], env=env,
                                 state_dir=self.state)


def begin(direction, command, nth):
    """A deletion of which one unit is dropped."""
    vm = Vm(drive("web")).start()
    vm.write("web", 1, 0, 8)  # more than the overlay gets, which goes down into it therefore
    vm.take("one")
    vm.write("web", 2, 1)
    vm.proxy.arm([{"number": 1, "do": "link", "how": "drop",
                   "when": {"link": "qmp", "dir": direction, "label": command, "nth": nth}}])
    return vm, time.monotonic(), vm.start_vmfrost("delete", "@one")


def whole(vm, what):
    found = vm.sees("web", 4), vm.status(), vm.read("web.qcow2", 4)
    return [] if found == ([1, 2, 3, 1], "running", [1, 2, 3, 1]) else [f"{what}: {found}"]


def end(t, name, vm, began, command):
    out = finish(command)
    took = time.monotonic() - began
    wrong = []
    vm.proxy.arm([])
    vm.write("web", 3, 2)
    wrong += whole(vm, "then")
    if out.code == 0:
        wrong.append("it went well?")
    elif "lost" not in out.error:
        wrong.append(f"{out.error}")
    if "vmfrost recover" not in out.next:
        wrong.append(f"what to do: {out.next}")
    if took > SOON:
        wrong.append(f"it took {took:.0f} s")
    again = vm.vmfrost("recover")
    if again.code or vm.names() != ["web.qcow2"] or vm.jobs() or vm.journal():
        wrong.append(f"recover: {again.code} {again.error} {vm.names()} {vm.jobs()}")
    wrong += whole(vm, "recovered")
    t.is_(wrong, [], f"{name}: exit {out.code} after {took:.1f} s: {out.error[-120:]}")
    vm.__exit__()


def idle(vm):
    """The names of the nodes that nobody uses."""
    graph = vm.qmp("x-debug-query-block-graph")
    used = {edge["child"] for edge in graph["edges"]}
    return [node["name"] for node in graph["nodes"]
            if node["type"] == "block-driver" and node["id"] not in used]


def cut_off(t, how):
    """The connection ends with QEMU's answer that two images are joined. The node of the one that
    went has been made by vmfrost, and would stay as long as QEMU does."""
    vm = Vm(drive("web")).start()
    for number, name in enumerate(("one", "two", "three")):
        vm.take(name, "--method", "preopened")
        vm.write("web", number + 1, number)
    vm.proxy.arm([{"number": 1, "do": "link", "how": how,
                   "when": {"link": "qmp", "dir": "rep", "label": "job-finalize", "nth": 1}}])
    out = finish(vm.start_vmfrost("delete", "@two"))
    vm.proxy.arm([])
    wrong = [f"the node {node}" for node in idle(vm)]
    again = vm.vmfrost("delete", "@two") if out.code else out
    names = [name for name in vm.names() if not name.startswith(".")]
    if again.code or names != ["web.qcow2", "web@one.qcow2", "web@three.qcow2"] or vm.jobs() or \
            vm.journal():
        wrong.append(f"again: {again.code} {again.error} {names} {vm.jobs()}")
    wrong += [f"then the node {node}" for node in idle(vm)]
    if vm.sees("web", 3) != [1, 2, 3]:
        wrong.append(f"the guest sees {vm.sees('web', 3)}")
    t.is_(wrong, [], f"{how}, when two images are joined: exit {out.code}, and no node is left")
    vm.__exit__()


def cut_off_restore(t):
    """The connection ends in the tidying behind a restore: QEMU keeps nothing of what was before."""
    vm = Vm(blockdev("web")).start()
    vm.write("web", 1, 0)
    vm.take("one")
    vm.write("web", 2, 1)
    vm.proxy.arm([{"number": 1, "do": "link", "how": "half",
                   "when": {"link": "qmp", "dir": "req", "label": "blockdev-del", "nth": 3}}])
    out = finish(vm.start_vmfrost("restore", "@one", "--reset", "--discard"))
    vm.proxy.arm([])
    names = [name for name in vm.names() if not name.startswith(".")]
    t.is_((out.code, out.error, idle(vm), names, vm.sees("web", 2)),
          (0, "", [], ["web.qcow2", "web@one.qcow2"], [1, 0]),
          "cut off behind a restore: nothing of what was before is left")
    vm.__exit__()


def spoilt(t):
    """QEMU waits for the end of a message that has none, and takes all that is said to it for that: whether
    the disks were cut is asked on another connection."""
    vm = Vm(drive("web")).start()
    vm.write("web", 1, 0)
    vm.proxy.arm([{"number": 1, "do": "link", "how": "inject", "text": "{",
                   "when": {"link": "qmp", "dir": "req", "label": "transaction", "nth": 2}}])
    began = time.monotonic()
    out = finish(vm.start_vmfrost("snapshot", "@one", "--deadline", "1s"))
    took = time.monotonic() - began
    vm.proxy.arm([])
    record = vm.vmfrost("show", "@one").result
    t.is_((out.code, took < 25, vm.names(), vm.journal(), idle(vm), record["phase"], vm.sees("web", 1)),
          (4, True, ["web.qcow2"], [], [], "Failed", [1]),
          f"the cut is spoilt: exit {out.code} after {took:.1f} s: {out.error[-120:]}")
    vm.__exit__()


def main():
    with Tap() as t:
        spoilt(t)
        cut_off_restore(t)
        for how in ("half", "close-before"):
            cut_off(t, how)
        # All at once: most of it is waiting.
        running = [(f"{command}, its {'request' if direction == 'req' else 'answer'}",
                    *begin(direction, command, nth))
                   for command, nth in (("human-monitor-command", 1), ("block-commit", 1), ("stop", 1),
                                        ("cont", 1), ("query-jobs", 3), ("job-complete", 1),
                                        ("job-finalize", 1), ("job-dismiss", 1))
                   for direction in ("req", "rep") if ONLY in command]
        for each in running:
            end(t, *each)


main()
