#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What makes a snapshot faster changes nothing of what is promised: each fault of the frozen window,
with each of these options switched by itself. Behind each fault stands the same judge, who looks
from outside: the guest writes on all disks, exit code and record tell the truth, the images are what
they should be, and nothing is left. One guest for all: the faults are switched while it runs."""

import contextlib
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass

from guesttest import (Disk, RawCopy, Site, connect_unix, ext4_needs_recovery, guest_test,
                       is_stopped, run, wait_until)

CUT = ["a", "b", "c"]
# How fast a guest has to write again once nobody stands in its way: only a bound, so that a guest
# that stays frozen is told from a slow one.
BOUND_S = 30

# The options, each switched by itself, and what the record of an undisturbed snapshot says then.
AS_USUAL = {"flush": True, "freezePolicy": "cut", "primed": True, "method": "existing"}
COLUMNS = {
    "as usual": ([], {}),
    "no flush": (["--flush", "off"], {"flush": False}),
    "all frozen": (["--freeze", "all"], {"freezePolicy": "all"}),
    "not primed": (["--no-prime"], {"primed": False}),
    "preopened": (["--method", "preopened"], {"method": "preopened"}),
}
# Less is frozen than is cut: that is never called consistent.
PARTLY = ["--freeze", "-/mnt/b"]

TAKEN = ("Succeeded", True, "filesystem")
BEST_EFFORT = ("Succeeded", True, "crash")
DOUBTED = ("Failed", True, "crash")
UNDONE = ("Failed", False, "none")


@dataclass
class Cell:
    """One fault under one set of options."""

    site: Site
    what: str
    options: list
    enough_ms: int  # for a snapshot on this machine; limits that are to pass later are no less
    words: str = ""  # in the guest's files before the snapshot; and other ones behind it

    NAME = "s"

    @property
    def tap(self):
        return self.site.tap

    @property
    def vm(self):
        return self.site.vm

    def command(self, *more):
        return ["snapshot", f"web@{self.NAME}", "--exclude", "out", *self.options, *more]

    def start(self, *more, at=None):
        """vmfrost; if `at` is a point, on its way to be stopped or killed there."""
        return self.site.start(*self.command(*more), env={"VMFROST_TEST_AT": at} if at else None)

    def run(self, code, *more):
        return self.site.judge(self.start(*more).wait(), code, f"{self.what}: exit {code}")

    def stopped_at(self, point, *more):
        command = self.start(*more, at=f"stop:{point}")
        wait_until(lambda: is_stopped(command), what=f"vmfrost at {point}")
        return command

    def go_on(self, command, code):
        command.signal(signal.SIGCONT)
        return self.site.judge(command.wait(), code, f"{self.what}: exit {code}")

    def killed(self, command):
        """A stopped one."""
        command.signal(signal.SIGKILL)
        self.dies(command)

    def dies(self, command):
        """... or one that dies by itself."""
        self.site.judge(command.wait(), -signal.SIGKILL, f"{self.what}: vmfrost is killed")

    def is_frozen(self):
        self.tap.ok(not self.vm.guest_writes_ok(timeout=1), f"{self.what}: the guest is frozen")

    def writes(self):
        """A test: does the guest write, on all disks?"""
        self.tap.ok(self.vm.guest_writes_ok(timeout=BOUND_S), f"{self.what}: the guest writes")

    def recover(self):
        wait_until(lambda: not self.site.guards(), what="the guard's end")
        self.site.expect(0, "recover", "web", what=f"{self.what}: recover: exit 0")

    # --- the judge

    def mark(self, words):
        """What is in the guest's files from now on, durably. False if it does not write."""
        self.words = words
        return self.vm.sh(f"for m in /mnt/*; do echo '{words}' | "
                          "dd of=$m/words conv=fsync 2>&1 || exit 1; done",
                          timeout=BOUND_S, check=False).code == 0

    def read_image(self, disk):
        """The words in a disk's sealed image."""
        with RawCopy(self.site.image(disk, self.NAME)) as raw:
            run("e2fsck", "-y", "-E", "journal_only", raw, check=False)
            return run("debugfs", "-R", "cat /words", raw).stdout.strip()

    def judge(self, *fates):
        """Everything that has to be true when nobody works on the VM any more."""
        site, tap, what = self.site, self.tap, self.what
        before = self.words
        tap.ok(self.mark(f"{what}: later"), f"{what}: the guest writes on all disks")
        tap.is_(list(site.strays()), [], f"{what}: nothing stray, and all names lead to what "
                                         "QEMU writes to")
        record = site.record(self.NAME)
        fate = record["phase"], record["readyToUse"], record["consistency"]
        tap.ok(fate in fates, f"{what}: the record says {fate}")
        if fate not in fates:
            tap.diag(record)
        if fate[1]:
            tap.is_([volume["name"] for volume in record["snapshotVolumes"]["included"]], CUT,
                    f"{what}: of all disks, and no other")
            tap.is_([self.read_image(disk) for disk in CUT], [before] * len(CUT),
                    f"{what}: the images are of before")
        if fate[2] == "filesystem":
            tap.is_([disk for disk in CUT if ext4_needs_recovery(site.image(disk, self.NAME))], [],
                    f"{what}: and consistent")
        else:
            tap.ok(record["error"]["message"] if fate[0] == "Failed" else record["warnings"] or
                   record["indications"], f"{what}: it says why it is no better")
        site.expect(0, "delete", f"web@{self.NAME}", what=f"{what}: delete: exit 0")
        tap.is_(list(site.strays()), [], f"{what}: nothing is left")
        return record


class Between(threading.Thread):
    """Between vmfrost and the guest's agent while the `with` block lasts: answers the next `refuse`
    thaws by itself, with an error."""

    def __init__(self, cell):
        super().__init__(daemon=True)
        self.cell = cell
        self.refuse = 0
        self.path = cell.vm.path("between.sock")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(self.path))
        self.listener.listen()

    def __enter__(self):
        self.start()
        self.cell.site.add(f"agent={self.path}")
        return self

    def __exit__(self, *_):
        self.cell.site.add("agent=")
        self.path.unlink()

    def run(self):
        while True:
            client, _ = self.listener.accept()
            agent = connect_unix(self.cell.vm.path("qga.sock"))
            threading.Thread(target=self.answers, args=(agent, client), daemon=True).start()
            with client.makefile("rb") as lines:
                for line in lines:
                    if b"guest-fsfreeze-thaw" in line and self.refuse:
                        self.refuse -= 1
                        client.sendall(b'{"error": {"class": "GenericError", "desc": "not yet"}}\n')
                    else:
                        agent.sendall(line)
            agent.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def answers(agent, client):
        with agent, client, contextlib.suppress(OSError):
            while data := agent.recv(65536):
                client.sendall(data)


# --- the faults


def nothing(cell, says=None):
    """No fault: the options do what they say. How long the command took, in seconds."""
    began = time.monotonic()
    cell.run(0)
    took = time.monotonic() - began
    record = cell.judge(TAKEN if says is not None else BEST_EFFORT)
    if says is not None:
        evidence = record["evidence"]
        found = {"flush": "flushMs" in evidence,
                 **{name: evidence[name] for name in AS_USUAL if name != "flush"}}
        cell.tap.is_(found, AS_USUAL | says, f"{cell.what}: the record has the options")
    return took


def freeze_fails(cell):
    cell.vm.set_fault("freeze", "fail")
    cell.run(1)
    cell.vm.clear_faults()
    cell.judge(UNDONE)


def freeze_fails_prefer(cell):
    cell.vm.set_fault("freeze", "fail")
    cell.run(0, "--quiesce", "prefer")
    cell.vm.clear_faults()
    record = cell.judge(BEST_EFFORT)
    cell.tap.ok(not record["evidence"]["primed"], f"{cell.what}: what was primed is taken back")


def freeze_slow(cell):
    """The guest freezes behind the limit, and is thawed at once."""
    cell.vm.set_fault("freeze", "slow:1")
    cell.run(1, "--frozen-limit", "500ms")
    cell.vm.clear_faults()
    cell.judge(UNDONE)


def freeze_hangs(cell):
    """... long after vmfrost gave up: the thaw was behind the freeze, the guard stays."""
    cell.vm.set_fault("freeze", "slow:600")
    cell.run(6, "--frozen-limit", "500ms", "--thaw-wait", "1s")
    cell.vm.clear_faults()
    cell.vm.sh("killall sleep")
    cell.recover()
    cell.judge(UNDONE)


def agent_returns(cell):
    """The agent dies when all is frozen, and comes back."""
    command = cell.stopped_at("cut")
    cell.vm.set_fault("restart", "1")
    cell.vm.kill_agent()
    wait_until(lambda: not cell.vm.agent_open(), what="the agent's end")
    cell.go_on(command, 5)
    cell.vm.clear_faults()
    cell.judge(DOUBTED)


def agent_gone(cell):
    """... and does not: vmfrost gives up, its guard thaws when there is an agent again."""
    cell.vm.set_fault("kill", "0")
    done = cell.run(6, "--thaw-wait", "1s")
    cell.vm.clear_faults()
    cell.tap.ok("THE GUEST MAY BE FROZEN: web" in done.err, f"{cell.what}: and that is told")
    cell.vm.start_agent()
    cell.writes()
    cell.recover()
    cell.judge(DOUBTED, UNDONE)


def cut_fails(cell):
    """QEMU refuses the transaction at the second of three disks: a job of somebody else's."""
    command = cell.stopped_at("cut")
    node = next(each for each in cell.vm.qmp("query-block")
                if each["qdev"].startswith("/machine/peripheral/b-dev"))["inserted"]["node-name"]
    cell.vm.qmp("blockdev-add", {"driver": "null-co", "node-name": "elsewhere",
                                 "size": next(disk.size for disk in cell.vm.disks)})
    cell.vm.qmp("blockdev-mirror", {"job-id": "theirs", "device": node, "target": "elsewhere",
                                    "sync": "none"})
    done = cell.go_on(command, 1)
    cell.tap.ok("busy" in done.err, f"{cell.what}: in QEMU's words")
    cell.vm.qmp("block-job-cancel", {"device": "theirs", "force": True})
    wait_until(lambda: not cell.vm.qmp("query-jobs"), what="the job's end")
    cell.vm.qmp("blockdev-del", {"node-name": "elsewhere"})
    cell.judge(UNDONE)


def qemu_silent(cell):
    """QEMU is stopped by its host and does not answer the cut, until the limit has passed."""
    lines = len(cell.site.log_lines())
    command = cell.stopped_at("cut", "--frozen-limit", f"{cell.enough_ms}ms")
    os.kill(cell.vm.pid, signal.SIGSTOP)
    try:
        command.signal(signal.SIGCONT)
        wait_until(lambda: any("guest-fsfreeze-thaw" in line
                               for line in cell.site.log_lines()[lines:]),
                   what="the thaw that is sent all the same")
    finally:
        os.kill(cell.vm.pid, signal.SIGCONT)
    cell.site.judge(command.wait(), 1, f"{cell.what}: exit 1")
    cell.judge(UNDONE)


def killed_frozen(cell):
    """vmfrost alone: its guard thaws."""
    cell.dies(cell.start(at="kill:cut"))
    cell.writes()
    cell.recover()
    cell.judge(UNDONE)


def killed_cut(cell):
    """... when QEMU has made the cut."""
    command = cell.stopped_at("cut+")
    wait_until(lambda: is_cut(cell), what="the cut")
    cell.killed(command)
    cell.writes()
    cell.recover()
    cell.judge(DOUBTED)


def killed_thawed(cell, fate=TAKEN):
    """... when the thaw is confirmed: what is known is enough."""
    cell.dies(cell.start(at="kill:verify"))
    cell.recover()
    cell.judge(fate)


def all_killed(cell):
    """vmfrost and its guard: nobody is left to thaw but a recovery."""
    command = cell.stopped_at("cut")
    for guard in cell.site.guards():
        cell.site.kill_guard(guard)
    cell.killed(command)
    cell.is_frozen()
    cell.recover()
    cell.judge(UNDONE)


def thaw_fails(cell):
    """An error for a thaw, though all is thawed."""
    cell.vm.set_fault("thaw", "fail")
    cell.run(5)
    cell.vm.clear_faults()
    cell.judge(DOUBTED)


def thaw_fails_first(cell):
    """An error for the first thaw, and the guest is still frozen: it is thawed again."""
    with Between(cell) as between:
        between.refuse = 1
        cell.run(5)
        cell.tap.is_(between.refuse, 0, f"{cell.what}: a thaw was refused")
    cell.judge(DOUBTED)


def thawed_behind(cell):
    """Somebody in the guest thaws a disk before the cut: the agent's count tells."""
    command = cell.stopped_at("cut")
    cell.vm.sh("fsfreeze --unfreeze /mnt/b")
    cell.go_on(command, 5)
    cell.judge(DOUBTED)


def deadline(cell):
    """It passes when all is cut, and before all is thawed."""
    command = cell.stopped_at("thaw", "--deadline", f"{cell.enough_ms}ms")
    began = time.monotonic()  # it counts from somewhere before
    wait_until(lambda: time.monotonic() - began > cell.enough_ms / 1000, what="the deadline")
    cell.go_on(command, 4)
    cell.judge(UNDONE)


FAULTS = [freeze_fails, freeze_fails_prefer, freeze_slow, freeze_hangs, agent_returns, agent_gone,
          cut_fails, qemu_silent, killed_frozen, killed_cut, killed_thawed, all_killed, thaw_fails,
          thaw_fails_first, thawed_behind, deadline]


def is_cut(cell):
    """Does the guest run on overlays that have no record yet?"""
    _, edges = cell.site.graph()
    return sum(child.startswith("vf") and name == "root" for _, name, child in edges) == len(CUT)


def cell_of(site, fault, column, options, enough_ms=0):
    cell = Cell(site, f"{fault.__name__}, {column}", options, enough_ms)
    cell.mark(f"{cell.what}: before")
    return cell


def main():
    with guest_test() as (tap, folder):
        disks = [Disk(name) for name in [*CUT, "out"]]
        with Site(tap, folder, disks) as site:
            site.boot()
            took = []
            for column, (options, says) in COLUMNS.items():
                took.append(nothing(cell_of(site, nothing, column, options), says))
            # Less than what QEMU has for an answer: its silence would be told of instead.
            enough_ms = min(45000, int(1000 + 4000 * max(took)))
            nothing(cell_of(site, nothing, "partly frozen", PARTLY))
            killed_thawed(cell_of(site, killed_thawed, "partly frozen", PARTLY), BEST_EFFORT)
            for fault in FAULTS:
                began = time.monotonic()
                for column, (options, _) in COLUMNS.items():
                    fault(cell_of(site, fault, column, options, enough_ms))
                tap.diag(f"{fault.__name__}: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
