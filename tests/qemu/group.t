#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Snapshots of several VMs at one instant: all of them have it, or none.

Two VMs that run (without an agent) and one that is stopped. One of them fails, loses its QEMU or is
locked, vmfrost is stopped or killed, at each step and meeting: no record of the group is ready
unless all are, and after `recover` nothing else is left.
"""

import json
import os
import re
import signal
import sys
from datetime import datetime

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (ROOT, LabError, Qemu, Tap, blockdev, drive, lab, process_state, wait_until)

STATE = ROOT / "group-state"
RUNNING = ["web", "db"]
ALL = [*RUNNING, "cache"]

SOURCE = (lab.PROJECT / "src" / "flows" / "snapshot.c").read_text()
STEPS = re.findall(r'\.name = "([^"]+)"', SOURCE)
# Without a guest nobody is asked, flushed, frozen or thawed.
NEVER = {"agent", "mounts", "flush", "freeze", "melt", "thaw", "thaw-late", "undo-freeze"}
BACK = ["undo-doubt", "undo-cut", "undo-files", "undo-record"]
FORWARD = [step for step in STEPS if step not in NEVER and step not in BACK]
COMMIT = FORWARD.index("group-commit")


class Out:
    """What a group's command said: exit code, and of each VM the result."""

    def __init__(self, done):
        lines = [json.loads(line) for line in done.out.splitlines()] if done.out else []
        self.code = done.code
        self.err = done.err
        self.steps = [line for line in lines if line["event"] == "step"]
        self.results = {line["vm"]: line for line in lines if line["event"] == "result"}

    def begun(self, step, vm):
        """When the VM came to a step: seconds."""
        start = datetime.fromisoformat(self.results[vm]["document"]["startTime"])
        return start.timestamp() + next(
            line["elapsedMs"] / 1000 for line in self.steps
            if (line["vm"], line["step"], line["state"]) == (vm, step, "started"))

    def error(self, vm):
        return (self.results[vm].get("error") or {}).get("message", "")


class Hosts:
    """The VMs of the group, by name."""

    def __init__(self, vms):
        self.vms = vms
        for name, vm in vms.items():
            lab.vmfrost("add", name, "--qmp", vm.socket, state_dir=STATE)

    def start(self, *words, at=None):
        return lab.start_vmfrost([*words, "--json"], state_dir=STATE,
                                 env={"VMFROST_TEST_AT": at} if at else None)

    def run(self, *words, at=None):
        return Out(self.start(*words, at=at).wait())

    def group(self, *words, at=None, vms=ALL):
        return self.run("snapshot", *vms, "@s", *words, at=at)

    def stop_at(self, point, *words):
        command = self.start("snapshot", *ALL, "@s", *words, at=f"stop:{point}")
        wait_until(lambda: command.process.poll() is not None or process_state(command.pid) == "T",
                   what=f"the stop at {point}", interval=0.002)
        if command.process.poll() is not None:
            raise LabError(f"it never came to {point}: {command.wait()}")
        return command

    @staticmethod
    def go_on(command):
        command.signal(signal.SIGCONT)
        return Out(command.wait())

    @staticmethod
    def record(vm, name="s"):
        path = STATE / "vms" / vm / "records" / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def have(self, name="s"):
        """The VMs that have the snapshot."""
        return [vm for vm in self.vms
                if (self.record(vm, name) or {}).get("readyToUse")]

    def stray(self, count=0):
        """What is there and should not be, when each VM has so many snapshots."""
        wrong = [f"journal: {path}" for path in STATE.glob("vms/*/journal")]
        wrong += [f"mark: {path}" for path in STATE.glob("groups/*")]
        for name, vm in self.vms.items():
            for disk in ("web", "data"):
                wanted = {f"{disk}.qcow2"} | ({f"{disk}@s.qcow2"} if count else set())
                there = {entry.name for entry in vm.disks.iterdir()
                         if entry.name.startswith(disk)}
                if there != wanted:
                    wrong.append(f"{name}: {sorted(there)}")
            alive = vm.process and vm.process.poll() is None
            opened = vm.opened() if alive else {}
            wrong += [f"{name}: {hidden}" for hidden in vm.hidden()
                      if hidden.endswith(".next") or vm.inode(hidden) not in opened]
            if alive:
                wrong += [f"{name}: job {job}" for job in vm.jobs()]
                wrong += [f"{name}: {disk}: {vm.chain(disk)}" for disk in ("web", "data")
                          if len(vm.chain(disk)) != 1 + count]
                if vm.status() != "running":
                    wrong.append(f"{name}: {vm.status()}")
        return wrong

    def delete(self):
        """The records of this round go, and what else there is."""
        for vm in self.vms:
            if self.record(vm):
                done = lab.vmfrost("delete", f"{vm}@s", state_dir=STATE)
                if done.code != 0:
                    raise LabError(f"delete {vm}@s: {done}")

    def recover(self):
        done = None

        def is_done():
            nonlocal done
            done = lab.vmfrost("recover", "--all", "--json", state_dir=STATE)
            # A child that was being made when its parent was killed lets go of the lock as soon as it runs.
            return "is gone. Try again" not in done.out

        wait_until(is_done, what="the lock of one that was killed")
        if done.code != 0:
            raise LabError(f"recover: {done}")


def settled(t, hosts, what, want=None):
    """After a recovery: all or none (`want`: which), nothing stray; and after a deletion."""
    hosts.recover()
    have = hosts.have()
    t.ok(have in ([], list(hosts.vms)) if want is None else have == want,
         f"{what}: {'all have it' if have else 'none has it'}")
    if want is not None and have != want:
        t.diag(f"{have} have it")
    for vm in hosts.vms:
        record = hosts.record(vm)
        if record and record["phase"] not in (("Succeeded",) if have else ("Failed",)):
            t.ok(False, f"{what}: {vm} is {record['phase']}")
            t.diag(json.dumps(record, indent=1))
    wrong = hosts.stray(1 if have else 0)
    t.is_(wrong, [], f"{what}: nothing stray") if wrong else None
    hosts.delete()
    wrong = hosts.stray()
    t.is_(wrong, [], f"{what}, deleted: nothing stray")
    return have


def test_success(t, hosts):
    out = hosts.group()
    t.is_((out.code, sorted(out.results)), (0, sorted(ALL)), "a group of three: each has its result")
    groups = [hosts.record(vm).get("group") for vm in ALL]
    t.ok(groups[0] == groups[1] == groups[2], "the records say the same of the group")
    t.is_((groups[0]["members"], groups[0]["unfrozen"], groups[0]["oneInstant"]),
          (ALL, RUNNING, False), "... who was in it, and that two ran without being frozen")
    cuts = [hosts.record(vm)["evidence"] for vm in RUNNING]
    t.ok(0 < groups[0]["spreadUs"] < 60e6, f"... and the spread: {groups[0]['spreadUs']} us")
    t.ok(groups[0]["spreadUs"] >= max(1000 * each["cutMs"] for each in cuts) - 1,
         "... which is not shorter than a cut")
    for step, before in (("cut", "group-frozen"), ("verify", "group-cut"),
                         ("record", "group-commit")):
        came = max(out.begun(before, vm) for vm in ALL)
        went = min(out.begun(step, vm) for vm in ALL)
        t.ok(came < went + 0.001, f"nobody comes to {step} before all have come to {before}")
    settled(t, hosts, "a group of three", ALL)

    out = hosts.group(vms=["web", "cache"])
    group = hosts.record("web")["group"]
    t.is_((out.code, group["unfrozen"], group["oneInstant"]), (0, ["web"], True),
          "one that runs and one that is stopped: that is one instant")
    done = lab.vmfrost("show", "web@s", state_dir=STATE)
    t.ok("2 VMs at one instant, cut within" in done.out and "not frozen: web" in done.out,
         "... and show says so")
    hosts.delete()
    out = hosts.run("snapshot", "--all", "@s")
    t.is_((out.code, hosts.record("db")["group"]["members"]), (0, sorted(ALL)), "--all")
    settled(t, hosts, "--all", ALL)
    out = hosts.run("snapshot", "web", "@s")
    t.is_((out.code, "group" in hosts.record("web")), (0, False), "one VM alone is no group")
    t.ok(not any(line["step"].startswith("group-") for line in out.steps),
         "... and is not told of meetings")
    hosts.delete()


def test_refused(t, hosts):
    out = hosts.group(vms=["web", "dbb"])
    t.is_(out.code, 1, "an unknown VM: exit 1")
    t.ok('there is no VM "dbb"; there is "db"' in out.error("dbb"), "... with names like it")
    t.ok("dbb of the same group failed" in out.error("web"), "... of which the others tell")
    socket = hosts.vms["web"].socket
    out = hosts.group(vms=["web", "db", str(socket)])
    t.ok(out.code == 2 and "is named twice" in out.err, "a VM by its name and its path: refused")
    t.is_((hosts.have(), hosts.record("db")), ([], None), "... and nothing is done")

    command = hosts.start("snapshot", "db", "@other", at="stop:overlays")
    wait_until(lambda: process_state(command.pid) == "T", what="the stop")
    out = hosts.group()
    t.ok(out.code == 1 and "in use by \"snapshot db@other\"" in out.error("db"), "a locked VM")
    t.ok("in use by" in out.error("web"), "... is what the others fail of")
    t.is_([hosts.record(vm) for vm in ALL], [None] * 3, "... before anything is done")
    hosts.go_on(command)
    lab.vmfrost("delete", "db@other", state_dir=STATE)

    hosts.run("snapshot", "db", "@s")
    out = hosts.group()
    t.ok(out.code == 1 and "exists already" in out.error("db") and
         "db of the same group failed" in out.error("cache"), "a name that one of them has")
    lab.vmfrost("delete", "db@s", state_dir=STATE)
    settled(t, hosts, "a name that one has", [])


def test_two_groups(t, hosts):
    """Two groups at a time, in different orders: at least one is done, and none in part."""
    commands = [hosts.start("snapshot", *vms, f"@{name}")
                for name, vms in (("s", ALL), ("r", ALL[::-1]))]
    outs = [Out(command.wait()) for command in commands]
    t.ok(0 in (outs[0].code, outs[1].code), "two groups at a time: one of them is done")
    for name, out in zip("sr", outs):
        t.is_(hosts.have(name), ALL if out.code == 0 else [], f"... {name}: all or none")
    for name in "rs":
        for vm in ALL:
            if hosts.record(vm, name):
                lab.vmfrost("delete", f"{vm}@{name}", state_dir=STATE)
    t.is_(hosts.stray(), [], "... and nothing is stray")


def test_kills(t, hosts):
    """kill -9 of vmfrost, for the first that comes to a step and for each of the others."""
    for i, step in enumerate(FORWARD):
        for point in (f"{step}@db", f"{step}+@db", f"{step}@cache",
                      *([f"{step}+", f"{step}+@web"] if step.startswith("group-") else [])):
            if point == "rehearse@cache" or "flush-host@cache" in point or point == "guard@cache":
                continue
            out = hosts.start("snapshot", *ALL, "@s", at=f"kill:{point}").wait()
            if out.code != -signal.SIGKILL:
                t.ok(False, f"{point}: killed there")
                t.diag(out)
            want = [] if i < COMMIT else ALL if i > COMMIT else None
            settled(t, hosts, f"killed at {point}", want)
    for point, want in (("group-commit.all", []), ("group-commit.marked", ALL),
                        ("record.saved", ALL)):
        done = hosts.start("snapshot", *ALL, "@s", at=f"kill:{point}").wait()
        t.is_(done.code, -signal.SIGKILL, f"{point}: killed there")
        settled(t, hosts, f"killed at {point}", want)


def test_kills_on_the_way_back(t, hosts):
    for step in BACK:
        for vm in ("db", "cache"):
            if (step, vm) == ("undo-doubt", "cache"):
                continue  # of a stopped VM there is no doubt
            before = "cut+@db" if step == "undo-doubt" else "group-cut+@web"
            command = hosts.start("snapshot", *ALL, "@s", at=f"stop:{before},kill:{step}@{vm}")
            wait_until(lambda c=command: process_state(c.pid) == "T", what="the stop")
            command.signal(signal.SIGTERM)
            command.signal(signal.SIGCONT)
            t.is_(command.wait().code, -signal.SIGKILL, f"killed at {step} of {vm}")
            settled(t, hosts, f"killed at {step} of {vm}", [])


def test_lost_qemus(t, hosts):
    """One member's QEMU is killed at each step: nobody has the snapshot, and that one's disks are
    as they were, or, with what was written last, lead to what counts."""
    db = hosts.vms["db"]
    for step in FORWARD:
        if step in ("connect", "record"):
            continue
        command = hosts.stop_at(f"{step}@db")
        db.kill()
        out = hosts.go_on(command)
        if step == "group-commit":  # it has been seen to be whole
            t.is_(out.code, 0, "QEMU lost when all is verified: exit 0")
            settled(t, hosts, "QEMU lost when all is verified", ALL)
            db.start()
            continue
        t.ok(out.code not in (0, 6), f"QEMU lost at {step}: exit {out.code}")
        t.is_(hosts.have(), [], f"QEMU lost at {step}: none has it")
        t.ok("db of the same group failed" in out.error("web"),
             f"QEMU lost at {step}: the others say of what they failed")
        settled(t, hosts, f"QEMU lost at {step}", [])
        db.start()


def test_killed_with_a_qemu(t, hosts):
    """vmfrost and one QEMU are killed when all is cut: that disk cannot be merged, but is no
    snapshot."""
    command = hosts.stop_at("group-commit@db")
    hosts.vms["db"].write("web", 7)
    hosts.vms["db"].kill()
    command.signal(signal.SIGKILL)
    command.wait()
    hosts.recover()
    t.is_(hosts.have(), [], "killed with a QEMU: none has it")
    hosts.delete()
    t.is_(hosts.stray(), [], "... and after the deletion nothing is stray")
    hosts.vms["db"].start()
    t.is_(hosts.vms["db"].sees("web", 1), [7], "... and what its guest wrote last is there")


def test_cancelled(t, hosts):
    for step in FORWARD[FORWARD.index("accept"):]:
        command = hosts.stop_at(f"{step}@db")
        command.signal(signal.SIGTERM)
        out = hosts.go_on(command)
        want = ALL if step == "record" else []
        if step == "group-commit" and out.code == 0:
            want = ALL  # it came last, and all were committed before anybody heard of the signal
        t.is_((out.code, hosts.have()), (0 if want else 1, want), f"Ctrl-C at {step}")
        settled(t, hosts, f"Ctrl-C at {step}", want)


def test_deadline(t, hosts):
    """One hangs: at the deadline all are undone."""
    command = hosts.stop_at("overlays@db", "--deadline", "2s")
    db = hosts.vms["db"]
    os.kill(db.pid, signal.SIGSTOP)
    command.signal(signal.SIGCONT)
    wait_until(lambda: (hosts.record("web") or {}).get("phase") == "Failed", what="web's end")
    os.kill(db.pid, signal.SIGCONT)
    out = Out(command.wait())
    t.is_([out.results[vm]["code"] for vm in ALL], [4, 4, 4], "the deadline: exit 4 for each")
    settled(t, hosts, "the deadline", [])


def test_broken_store(t, hosts):
    groups = STATE / "groups"
    if groups.exists():
        groups.rmdir()
    groups.write_text("")
    out = hosts.group()
    t.ok(out.code == 1 and "is no folder" in out.err, "the mark cannot be written: all fail")
    groups.unlink()
    settled(t, hosts, "the mark cannot be written", [])

    command = hosts.stop_at("group-commit.marked")
    blocking = STATE / "vms" / "db" / "records" / "s.json.new"
    blocking.mkdir()
    out = hosts.go_on(command)
    t.is_([out.results[vm]["code"] for vm in ALL], [0, 5, 0],
          "a record cannot be written after the mark: only that one is not complete")
    t.ok("its record is not complete" in out.error("db") and
         "vmfrost recover db" in out.results["db"]["error"]["next"], "... and it says what to do")
    t.is_((hosts.have(), len(list(groups.iterdir()))), (["web", "cache"], 1), "... the mark stays")
    blocking.rmdir()
    settled(t, hosts, "a record after the mark", ALL)


def main():
    STATE.mkdir()
    os.chmod(STATE, 0o700)
    images = ("web.qcow2", "data.qcow2")
    with (Tap() as t, Qemu(drive("web") + drive("data"), images, state=STATE) as web,
          Qemu(blockdev("web") + blockdev("data"), images, state=STATE) as db,
          Qemu(drive("web") + drive("data"), images, state=STATE) as cache):
        hosts = Hosts({"web": web, "db": db, "cache": cache})
        lab.vmfrost("status", "cache", state_dir=STATE)
        hosts.run("snapshot", "cache", "@s")  # its disks are known from now on
        lab.vmfrost("delete", "cache@s", state_dir=STATE)
        cache.kill()
        for test in (test_success, test_refused, test_two_groups, test_kills,
                     test_kills_on_the_way_back, test_lost_qemus, test_killed_with_a_qemu,
                     test_cancelled, test_deadline, test_broken_store):
            if len(sys.argv) > 1 and test.__name__ not in sys.argv[1:]:
                continue
            t.diag(test.__name__[5:])
            test(t, hosts)


if __name__ == "__main__":
    main()
