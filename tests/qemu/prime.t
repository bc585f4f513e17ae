#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The cut is sent before the freeze, all but its last byte. Whatever happens then, it is cut when
that byte is sent, and never else; and all is as it is where the cut is sent as a whole."""

import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from agent import REFUSED, SILENT, Agent  # noqa: E402
from bare import ROOT, Qemu, Tap, drive, go_on, wait_until  # noqa: E402


class Site:
    """A QEMU with an agent; `mode` is what each snapshot is asked for beside what the test says."""

    def __init__(self, t, vm, agent, mode):
        self.t = t
        self.vm = vm
        self.agent = agent
        self.mode = mode
        self.primed = not mode
        self.before = vm.graph(), vm.names()

    def log(self):
        return self.vm.state / "log"

    def snapshot(self, what, code, *options):
        """A snapshot that has to end with this code: its record."""
        out = self.vm.vmfrost("snapshot", "@s", *self.mode, *options, "-vv", "--log", self.log())
        self.t.is_(out.code, code, f"{what}: exit {code}")
        if out.code != code:
            self.t.diag(f"{out.error} {out.err[-2000:]}")
        return out.document

    def stop_at(self, point, *options):
        return self.vm.stop_at(point, "snapshot", "@s", *self.mode, *options)

    def nothing(self, what, record=True):
        """Tests: nothing was cut, nothing is left, nobody is frozen; and the monitor is in order."""
        self.t.is_((self.vm.graph(), self.vm.names()), self.before,
                   f"{what}: nothing was cut, and nothing is left of it")
        self.t.ok(not self.agent.frozen, f"{what}: the guest is thawed")
        if record:
            self.vm.delete("s")

    def taken(self, what, record, primed):
        self.t.is_(record["evidence"]["primed"], primed,
                   f"{what}: {'primed' if primed else 'not primed'}")
        self.vm.delete("s")
        self.nothing(what, record=False)


def plain(site):
    record = site.snapshot("plain", 0)
    site.taken("plain", record, site.primed)
    record = site.snapshot("preopened", 0, "--method", "preopened")
    site.taken("preopened", record, site.primed)
    record = site.snapshot("no freeze", 0, "--quiesce", "skip")
    site.taken("no freeze", record, False)


def failed_freezes(site):
    agent = site.agent
    for what, answer, options in (("refused", REFUSED, ()), ("nothing frozen", 0, ()),
                                  ("nonsense", "x", ()),
                                  ("silent", SILENT, ("--frozen-limit", "500ms"))):
        agent.freeze = answer
        site.log().unlink(missing_ok=True)
        site.snapshot(what, 1, *options)
        site.t.is_("the complaint about what was taken back" in site.log().read_text(),
                   site.primed, f"{what}: {'' if site.primed else 'nothing is '}taken back")
        site.nothing(what)
        record = site.snapshot(f"{what}, prefer", 0, "--quiesce", "prefer", *options)
        site.t.is_(record["consistency"], "crash", f"{what}, prefer: goes on without")
        site.taken(f"{what}, prefer", record, False)
    agent.freeze = SILENT
    site.snapshot("deadline", 4, "--deadline", "2s")
    site.nothing("deadline")
    agent.freeze = None


def killed(site):
    """By the test's points, and in the frozen window: QEMU forgets what it has read of the cut."""
    for point in "guard+", "freeze", "freeze+", "cut":
        command = site.stop_at(point)
        wait_until(lambda: site.agent.frozen == (point == "cut") or point == "freeze+",
                   what="the freeze")
        graph = site.vm.graph()
        command.signal(signal.SIGKILL)
        command.wait()
        wait_until(lambda: not site.agent.frozen, what="the guard's thaw")
        site.t.is_(site.vm.graph(), graph, f"killed at {point}: nothing was cut")
        out = site.vm.vmfrost("recover")
        site.t.is_(out.code, 0, f"killed at {point}: recovered, on the same monitor")
        site.nothing(f"killed at {point}")


def cancelled(site):
    for point in "freeze", "cut":
        command = site.stop_at(point)
        command.signal(signal.SIGINT)
        out = go_on(command)
        site.t.ok(out.code != 0, f"Ctrl-C at {point}: failed ({out.code})")
        site.nothing(f"Ctrl-C at {point}")


def events(site):
    """QEMU tells of what disturbs the window while the cut is half sent."""
    command = site.stop_at("cut")
    site.vm.qmp("stop")
    site.vm.qmp("cont")
    out = go_on(command)
    site.t.is_((out.code, out.document["evidence"].get("disturbedBy")), (5, "STOP"),
               "the VM was stopped while frozen: told")
    site.taken("events", out.document, site.primed)


def late(site):
    """The frozen limit passes before the cut: it is not made any more."""
    command = site.stop_at("cut", "--frozen-limit", "1s")
    wait_until(lambda: not site.agent.frozen, what="the guard's thaw")
    out = go_on(command)
    site.t.ok(out.code != 0, f"late: failed ({out.code})")
    site.nothing("late")


def qemu_gone(site):
    command = site.stop_at("cut")
    site.vm.kill()
    out = go_on(command)
    site.t.ok(out.code != 0, f"QEMU dies: failed ({out.code})")
    site.vm.start()
    site.t.is_(site.vm.vmfrost("recover").code, 0, "QEMU dies: recovered")
    site.t.is_(site.vm.names(), site.before[1], "QEMU dies: nothing is left")
    site.vm.delete("s")


def main():
    with Tap() as t:
        for number, mode in enumerate([(), ("--no-prime",)]):
            with Qemu(drive("web") + drive("data"), ["web.qcow2", "data.qcow2"]) as vm:
                agent = Agent(ROOT / f"agent{number}.sock")
                done = vm.vmfrost("add", "web", "--agent", str(agent.listener.getsockname()))
                assert done.code == 0, done
                site = Site(t, vm, agent, mode)
                for part in plain, failed_freezes, killed, cancelled, events, late, qemu_gone:
                    t.diag(f"{part.__name__} {' '.join(mode)}")
                    part(site)
                if not mode:
                    vm.vmfrost("add", "web", "--set", "prime=off")
                    site.before = vm.graph(), vm.names()
                    site.taken("the setting", site.snapshot("the setting", 0), False)


if __name__ == "__main__":
    main()
