#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs after runs: an operation, faults in the middle of it, and the oracle. `make torture`; see
docs/hacking.md.

    campaign.py --runs 1000 --seed 7       all of them
    campaign.py --seed 7 --run 123         that one alone, on a fresh guest
"""

import argparse
import collections
import contextlib
import heapq
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from plan import plan
from world import World

import lab  # behind world, which knows where it is
from lab import LabError, Tap, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
HANGS_S = 200  # an operation that is not done by then
KEEP = 4  # snapshots, at most, from run to run
SMALL = "size=1g"  # where all is in a file system of its own


def is_stopped(pid):
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == "T"


class Run:
    """One run."""

    library = Path(lab.vmfrost_program()).parent / "tests" / "torture" / "fail.so"

    def __init__(self, world, about, tell):
        self.world, self.vm, self.about, self.tell = world, world.vm, about, tell
        self.command = None
        self.wrong = []
        self.done = []  # what was done, with its time
        self.timers = []
        self.endings = []  # (timer, what ends a fault that lasts)
        self.resume_at = []  # (time, what) for this thread
        self.stopped_by_us = set()
        self.flags = set()
        self.began = time.monotonic()
        self.code = None

    # --- faults

    def act(self, fault):
        """Does what a fault says, and returns when it is done."""
        who = fault.get("who")
        self.done.append((round((time.monotonic() - self.began) * 1000), fault["number"],
                          fault["do"], who or fault.get("how", "")))
        getattr(self, "do_" + fault["do"])(fault, who)

    def pids(self, who):
        if who == "vmfrost":
            return [self.command.pid] if self.command.process.poll() is None else []
        if who == "guard":
            return self.world.guards()
        if who == "daemon":
            return self.world.daemons()
        vm = self.world.partner.vm if who == "partner" else self.vm
        return [vm.pid] if vm.alive() else []

    def do_link(self, fault, _):
        """The proxy has done it."""
        how, when = fault["how"], fault["when"]
        if how in ("inject", "twice", "bytes"):
            self.flags.add("lied")
        if when["link"] == "qga" and how != "bytes":
            self.flags.add("agent-link")

    def do_kill(self, _, who):
        if who == "agent":
            if self.guest_answers():
                self.look()
                self.flags.add("agent-killed")
                self.tell_guest("lab agent kill")
            return
        if who == "qemu":
            self.look()
            self.vm.kill()
            self.flags.add("qemu-killed")
            return
        if who == "partner":
            self.world.partner.vm.kill()
            self.flags.add("partner-killed")
            return
        for pid in self.pids(who):
            os.kill(pid, signal.SIGKILL)
            self.flags.add(f"{who}-killed")

    def do_stop(self, fault, who):
        if who == "agent":
            if self.guest_answers():
                self.flags.add("agent-stopped")
                self.tell_guest(f"pid=$(lab agent pid) && kill -STOP $pid && "
                                f"(usleep {fault['ms'] * 1000}; kill -CONT $pid) "
                                "</dev/null >/dev/null 2>&1 &")
            return
        for pid in self.pids(who):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            self.flags.add(f"{who}-stopped")
            self.stopped_by_us.add(pid)
            timer = threading.Timer(fault["ms"] / 1000, self.go_on, [pid])
            timer.start()
            self.timers.append((timer, pid))

    def go_on(self, pid):
        self.stopped_by_us.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def do_signal(self, fault, _):
        for pid in self.pids("vmfrost"):
            os.kill(pid, getattr(signal, fault["signal"]))
            self.flags.add("signalled")

    def do_reset(self, _fault, _who):
        if self.reachable():
            self.look()
            self.vm.qmp("system_reset")
            self.flags.add("reset")

    def do_panic(self, _fault, _who):
        if self.reachable():
            self.look()
            self.vm.sysrq("c")
            self.flags.add("panic")

    def do_pause(self, fault, _):
        # Whoever lets the guest go on between a restore's pivot and its reset has it write what it
        # remembers to disks that it does not know: nobody can prevent that from outside.
        if self.reachable() and self.about["op"] != "restore":
            try:
                self.vm.qmp("stop")
            except LabError:
                # It can abort when it is stopped while it creates an image: docs/protocol.md.
                if self.vm.alive():
                    raise
                log = self.vm.path("qemu.log").read_text(errors="replace").strip()
                print(f"# QEMU has aborted: {log[-200:]}", flush=True)
                self.flags.add("qemu-killed")
                return
            self.flags.add("paused")
            heapq.heappush(self.resume_at, time.monotonic() + fault["ms"] / 1000)

    def later(self, fault, what):
        """Does that, in the end of a fault that lasts; at the run's end at the latest."""
        timer = threading.Timer(fault["ms"] / 1000, what)
        timer.start()
        self.endings.append((timer, what))

    def do_fill(self, fault, _):
        self.world.fill()
        self.flags.add("full")
        self.later(fault, self.world.make_room)

    def do_hang(self, fault, _):
        nbd = self.world.nbd
        self.look()
        nbd.stop()
        self.flags.add("hung")
        self.later(fault, nbd.yank if fault["yank"] else nbd.go_on)

    def reachable(self):
        """Is QEMU there and not stopped by us?"""
        return self.vm.alive() and self.vm.pid not in self.stopped_by_us

    def guest_answers(self):
        """Is there a guest's shell behind a main loop that goes round?"""
        return self.guest_lives() and "hung" not in self.flags and not self.reset_happened() \
            and self.running()

    def guest_lives(self):
        return self.reachable() and not self.flags & {"reset", "panic", "qemu-killed"}

    def tell_guest(self, command):
        """Has the guest's shell do that. When a restore stops the VM just then it is done later, or
        never; when it resets the VM nobody is left to answer."""
        try:
            self.vm.sh(command, check=False, slack=10)
        except LabError:
            if self.running() and not self.reset_happened():
                raise

    def look(self):
        """How much the guest has been promised, as late as can be told."""
        if self.guest_answers():
            with contextlib.suppress(LabError, ValueError):
                self.world.acked = max(self.world.acked, int(
                    self.vm.sh("lab-writer acked", slack=10).out))

    def running(self):
        return self.vm.qmp("query-status")["status"] == "running"

    def reset_happened(self):
        if not self.reachable():
            return False
        self.vm.qmp("query-status")
        return any(event["event"] == "RESET" for event in self.vm.monitor.events)

    # --- the operation

    def words(self, records):
        op, options = self.about["op"], self.about["options"]
        name = f"{self.world.name}@"
        ready = [each for each in records]
        chosen = ready[int(self.about["target"] * len(ready))] if ready else None
        self.target = chosen
        if op == "snapshot":
            self.target = f"r{self.about['run']}"
            return ["snapshot", name + self.target, *options]
        if op == "group":
            self.target = f"r{self.about['run']}"
            return ["snapshot", self.world.name, self.world.partner.name, "@" + self.target, *options]
        if op in ("delete", "restore"):
            return [op, name + chosen, *options]
        return [op, self.world.name, *options]

    def operate(self, records):
        """Runs the command with its faults; how it ended."""
        faults = self.about["faults"]
        points = {}
        for fault in faults:
            if "point" in fault["when"]:
                points.setdefault(fault["when"]["point"], []).append(fault)
        env = {}
        if points:
            env["VMFROST_TEST_AT"] = ",".join("stop:" + point for point in points)
        if self.about["fail"] and self.library.exists():
            env.update(LD_PRELOAD=str(self.library), TORTURE_FAIL=self.about["fail"])
        self.vm.proxy.arm([fault for fault in faults if "link" in fault["when"]])
        timed = sorted((fault["when"]["ms"] / 1000, fault["number"], fault) for fault in faults
                       if "ms" in fault["when"])
        words = self.words(records)
        self.tell(" ".join(words))
        if self.vm._qmp:
            self.vm.monitor.events.clear()
        self.began = time.monotonic()
        self.command = self.world.start(*words, env=env)
        waiting = list(faults)
        while self.command.process.poll() is None:
            now = time.monotonic()
            if now - self.began > HANGS_S:
                self.wrong.append(f"vmfrost is not done within {HANGS_S} s")
                os.kill(self.command.pid, signal.SIGKILL)
                self.command.process.wait()
                break
            while timed and now - self.began >= timed[0][0]:
                self.act(timed.pop(0)[2])
            self.serve_proxy()
            if is_stopped(self.command.pid) and self.command.pid not in self.stopped_by_us:
                self.at_point(waiting)
            if self.resume_at and now >= self.resume_at[0]:
                heapq.heappop(self.resume_at)
                if self.reachable():
                    self.vm.qmp("cont")
            time.sleep(0.002)
        done = self.command.wait()
        self.vm.proxy.calm()
        self.serve_proxy()
        self.code = done.code
        for call in re.findall(r"^torture: (\w+)", done.err, re.M):
            self.done.append((0, "", "fails", call))
            self.flags.add("failed")
        return done

    def serve_proxy(self):
        while not self.vm.proxy.events.empty():
            fault, let_go = self.vm.proxy.events.get()
            self.act(fault)
            if let_go:
                let_go()

    def at_point(self, waiting):
        """vmfrost has stopped itself at the plan's point. It may come there again."""
        for fault in list(waiting):
            if "point" in fault["when"]:
                waiting.remove(fault)
                self.act(fault)
                break
        if self.command.pid not in self.stopped_by_us:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.command.pid, signal.SIGCONT)

    # --- afterwards

    def heal(self):
        """All that we have stopped goes on; the guest is up, or off."""
        for timer, pid in self.timers:
            timer.cancel()
            self.go_on(pid)
        for timer, what in self.endings:
            timer.cancel()
            timer.join()
            what()
        if "hung" in self.flags:
            self.world.nbd.go_on()
            self.flags = self.flags - {"hung"} | {"was-hung"}
        if "paused" in self.flags and self.vm.alive():
            self.vm.qmp("cont")
        # A guest whose write met a full file system waits for a person; in the middle of a restore, that
        # person has to wait for vmfrost.
        if "full" in self.flags and self.about["op"] != "restore":
            self.go_on_from_full()
        if not self.vm.alive():
            self.flags.add("qemu-killed")
            self.vm.hang_up()
            self.vm.proxy.refuse()

    def go_on_from_full(self):
        for world in filter(None, (self.world, self.world.partner)):
            if world.vm.alive() and world.vm.qmp("query-status")["status"] == "io-error":
                world.vm.qmp("cont")

    def must_be_thawed(self):
        """Is there anybody left who thaws, before any recovery? While a joining ends, writes wait for
        vmfrost."""
        if self.code == -signal.SIGKILL and (self.about["op"] in ("delete", "prune") or
                                             "--keep-last" in self.about["options"]):
            return False
        gone = self.code in (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, 6)
        # A guard whose calls fail is as good as none.
        if gone and ("guard-killed" in self.flags or self.about["fail"]):
            return str(self.about["fail"]).startswith("malloc") and "guard-killed" not in self.flags
        return True

    def wait_for_boot(self, boots):
        wait_until(lambda: self.vm.boots() > boots, 4 * lab.PATIENCE, "the guest's boot")
        self.vm.hang_up()
        if "agent-killed" in self.flags:  # by what the shell of the former boot was told, perhaps
            self.vm.wait_ready()
            self.vm.sh("lab agent pid >/dev/null || lab agent start")
        self.vm.wait_agent()
        self.flags.add("rebooted")

    def recover(self, what, world=None):
        done = self.world.run("recover", (world or self.world).name, "--wait", "20s")
        if done.code:
            self.wrong.append(f"{what}: exit {done.code}: {done.err.strip()[-600:]}")

    def go_on_with_next(self):
        """Whoever comes next tidies up first, unless that takes a person or a reboot."""
        name = f"{self.world.name}@n{self.about['run']}"
        done = self.world.run("snapshot", name, "--quiesce", "skip")
        if done.code:
            self.wrong.append(f"the next operation: exit {done.code}: {done.err.strip()[-600:]}")

    def codes_are_true(self, done):
        """Does the exit code say what the record says, before any recovery?"""
        op, code = self.about["op"], self.code
        # Libraries trip over some of what they do not get, each in its way.
        if code in (-signal.SIGABRT, -signal.SIGSEGV) and "torture: malloc" in done.err:
            return
        journal = self.world.folder / "journal"
        if "signalled" in self.flags and -code in (signal.SIGINT, signal.SIGTERM,
                                                   signal.SIGHUP) and not journal.exists():
            return  # before the operation or between two, when there is nothing to stop in order
        if code < 0 and code != -signal.SIGKILL:
            self.wrong.append(f"vmfrost has died of signal {-code}: {done.err[-500:]}")
            return
        if code not in (0, 1, 3, 4, 5, 6, 7, -signal.SIGKILL):
            self.wrong.append(f"exit {code}: {done.err[-500:]}")
        if "Sanitizer" in done.err:
            self.wrong.append(done.err[-3000:])
        if code == -signal.SIGKILL:
            return
        if not self.about["faults"] and "failed" not in self.flags and code and "--deadline" not in self.about["options"]:
            self.wrong.append(f"nothing was done to it, and it fails: {code}: {done.err.strip()}")
        try:
            text = (self.world.folder / "records" / f"{self.target}.json").read_text("utf-8")
            record = json.loads(text)
        except FileNotFoundError:
            record = None
        phase = record and record["phase"]
        interrupted = journal.exists()
        if op in ("snapshot", "group"):
            if code in (0, 7) and (phase != "Succeeded" or interrupted):
                if not (code == 0 and "--keep-last" in self.about["options"]):
                    self.wrong.append(f"exit {code}, and the record says {phase}, journal: {interrupted}")
            if code in (1, 3, 4) and record and (phase != "Failed" or record.get("cuts")
                                                 and record["consistency"] != "none"):
                self.wrong.append(f"exit {code}, and the record says {phase}, {record['consistency']}")
            if code == 5 and phase not in ("Failed", "InProgress"):
                self.wrong.append(f"exit 5, and the record says {phase}")
        elif op == "delete":
            if code == 0 and record:
                self.wrong.append("exit 0, and the record is there")

    def check(self, done, boots, least):
        """The oracle."""
        world, wrong = self.world, self.wrong
        self.heal()
        off, boots_later = "qemu-killed" in self.flags, False
        rebooted = not off and (self.flags & {"reset", "panic"} or self.reset_happened())
        if "panic" in self.flags and not off:
            self.vm.qmp("system_reset")
        self.codes_are_true(done)
        if off:
            wait_until(lambda: not world.guards(), what="the guard's end, QEMU being gone")
            wait_until(lambda: not world.daemons(), what="the storage daemon's end")
            if self.about["recover_off"]:
                self.recover("recover, the VM being off")
                wrong += world.stray_problems()
            world.boot()
            self.flags.add("rebooted")
        elif rebooted:
            if "full" in self.flags:
                self.vm.qmp("cont")
            boots_later = self.paused_by_vmfrost()
            if not boots_later:
                self.wait_for_boot(boots)
        else:
            if "agent-killed" in self.flags:
                self.vm.sh("lab agent pid >/dev/null || lab agent start")
                wait_until(self.vm.agent_open, what="the agent's port")
            if self.must_be_thawed() and not self.paused_by_vmfrost():
                problem = world.thaw_problem()
                if problem:
                    wrong.append(f"before any recovery: {problem}")
            self.look()
        # A restore that was finished by recovery resets the guest.
        boots = self.vm.boots()
        self.vm.qmp("query-status")
        self.vm.monitor.events.clear()
        if self.about["recover_by"] == "next":
            self.go_on_with_next()
        self.recover("recover")
        if boots_later or (self.about["op"] == "restore" and self.reset_happened()):
            self.wait_for_boot(boots)
        if "full" in self.flags:
            self.go_on_from_full()
        if self.vm.qmp("query-status")["status"] != "running":
            wrong.append("the VM is not running: " + str(self.vm.qmp("query-status")))
            self.vm.qmp("cont")
        problem = world.thaw_problem()
        if problem:
            wrong.append(f"after the recovery: {problem}")
        if self.about["op"] == "group":
            self.check_partner()
        self.look_at_images(least)
        with contextlib.suppress(LabError):
            wait_until(lambda: not world.guards(), 10, "the guards' end")
        wrong += world.stray_problems()
        wrong += [f"the storage daemon {pid}" for pid in world.daemons()]
        if "rebooted" in self.flags:
            world.begin_writing()

    def check_partner(self):
        """The same, of the other guest: and it has the snapshot, too, or none of them has it."""
        db, wrong = self.world.partner, self.wrong
        if "partner-killed" in self.flags:
            db.vm.hang_up()
            db.vm.proxy.refuse()
            if self.about["recover_off"]:
                self.recover("recover, the partner being off", db)
            db.boot()
        elif self.must_be_thawed():
            wrong += [f"before any recovery: the partner: {problem}"
                      for problem in filter(None, [db.thaw_problem()])]
        self.recover("recover of the partner", db)
        if "partner-killed" not in self.flags:
            db.look()
        wrong += [f"the partner: {problem}" for problem in filter(None, [db.thaw_problem()])]
        records = db.names()
        wrong += [f"the partner's current disk: {problem}" for problem in db.current_problems()[1]]
        wrong += [f"the partner's {problem}" for problem in db.sealed_problems(records, list(records))]
        wrong += [f"the partner's {problem}" for problem in db.table_problems(records)]
        ready = [bool(each.get(self.target, {}).get("readyToUse"))
                 for each in (self.world.names(), records)]
        if ready[0] != ready[1]:
            wrong.append(f"all or nothing: {ready}")
        wrong += [f"the partner: {problem}" for problem in db.stray_problems()]
        if "partner-killed" in self.flags:
            db.begin_writing()

    def paused_by_vmfrost(self):
        """It may leave the VM stopped if it dies in the middle of a merge or a restore."""
        return self.vm.qmp("query-status")["status"] != "running"

    def look_at_images(self, least):
        world, wrong = self.world, self.wrong
        records = world.names()
        for name, record in records.items():
            if record["phase"] == "InProgress":
                wrong.append(f"{name} is InProgress after the recovery")
        restored_to = world.sealed.get(self.target) if self.about["op"] == "restore" else None
        state, problems = world.current_problems(restored_to)
        wrong += [f"current: {problem}" for problem in problems]
        if self.about["op"] == "restore" and self.code == 0 and restored_to and state != "restored":
            wrong.append("exit 0, and the disks are not what the snapshot has")
        if self.code == 0 and self.about["op"] == "prune":
            limit = int(self.about["options"][1])
            left = set(records) - {f"n{self.about['run']}"}
            if len(left) > limit:
                wrong.append(f"exit 0, and {sorted(left)} are left, not {limit}")
        if "rebooted" not in self.flags:
            self.look()
        new = self.target if self.about["op"] in ("snapshot", "group") else None
        # What was acknowledged between the last look and the end of a guest nobody has seen.
        most = world.acked + (200 if "rebooted" in self.flags else 1)
        wrong += world.sealed_problems(records, list(records), new, least, most)
        wrong += world.table_problems(records)


class Campaign:
    def __init__(self, seed, keep, verbose=False):
        self.seed, self.keep, self.verbose = seed, keep, verbose
        self.world = self.folder = self.config = None
        self.counts = collections.Counter()
        self.codes = collections.Counter()
        self.failed = []
        self.runs = 0
        self.boot_s = 0.0

    # --- guests

    def fresh(self, wanted):
        self.close()
        self.folder = tempfile.mkdtemp(prefix="vmfrost-torture-")
        if wanted.get("small"):
            lab.run("mount", "-t", "tmpfs", "-o", SMALL, "vmfrost-torture", self.folder)
        self.config = wanted
        self.world = World(Quiet(), self.folder, wanted)
        self.world.up()

    def close(self):
        if self.world:
            self.world.end()
            if self.config.get("small"):
                lab.run("umount", "-l", self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.world = None

    def last_look(self):
        """After the last run of a guest: it is powered off in good order, and its file systems are
        whole. Sentences."""
        wrong = []
        for world in filter(None, (self.world, self.world.partner)):
            world.off()
            wrong += [f"at the end of {world.name}: {problem}" for problem in world.damage()]
        return wrong

    def prepare(self, about):
        """There are snapshots for what is to be done, and not too many."""
        world = self.world
        records = world.names()
        for name, record in list(records.items()):
            if not record["readyToUse"] and self.delete(name):
                del records[name]
        rng = random.Random(f"prepare {about['seed']} {about['run']}")
        for name in rng.sample(sorted(records), len(records)):
            if len(records) > KEEP and self.delete(name):
                del records[name]
        if world.partner:
            for name in list(world.partner.names())[:-KEEP]:
                self.delete(name, world.partner)
        wanted = {"snapshot": 0, "group": 0, "freeze": 0, "prune": 2}.get(about["op"], rng.choice([1, 2]))
        for number in range(wanted - len(records)):
            self.must("snapshot", f"{world.name}@p{about['run']}-{number}", "--quiesce", "skip")
        if about.get("off"):  # the disks of one that is off are known from when it was on
            self.must("status", world.name)
        records = world.names()
        for problem in world.sealed_problems(records, list(records)):
            raise LabError(f"before the run: {problem}")
        return records

    def delete(self, name, world=None):
        """Has it gone? Some cannot before the VM has been started again, and say so."""
        done = self.world.run("delete", f"{(world or self.world).name}@{name}")
        if done.code and "stopped or started again" not in done.err:
            raise LabError(f"before the run: delete {name}: exit {done.code}: {done.err}")
        return not done.code

    def must(self, *words):
        done = self.world.run(*words)
        if done.code:
            raise LabError(f"before the run: {' '.join(words)}: exit {done.code}: {done.err}")

    # --- runs

    def end_of_guest(self, number):
        """Its last look; what that finds is the mistake of the run before."""
        wrong = self.last_look()
        for problem in wrong:
            print(f"# WRONG: {problem}")
        if wrong:
            self.failed.append(number)
            print(f"# FAILED: seed {self.seed}, the guest of run {number}", flush=True)
        self.close()

    def one(self, number):
        return self.play(plan(self.seed, number))

    def play(self, about):
        """One run, by its plan: is all as it should be?"""
        number, wanted = about["run"], about["guest"]
        began = time.monotonic()
        said = []
        run = None
        try:
            if self.world and self.config != wanted:
                self.end_of_guest(number - 1)
            if not self.world:
                self.fresh(wanted)
            log = self.world.log
            run = Run(self.world, about, said.append)
            mark = log.stat().st_size if log.exists() else 0
            records = self.prepare(about)
            mark = log.stat().st_size if log.exists() else 0
            boots = self.world.vm.boots()
            least = self.world.look()
            if about.get("off"):
                self.world.off()
                run.flags.add("off")
            done = run.operate(records)
            run.check(done, boots, least)
        except Exception as error:  # whatever it is, the campaign goes on
            if run is None:
                raise
            run.wrong.append(f"{type(error).__name__}: {error}\n" + traceback.format_exc())
        self.runs += 1
        self.codes[f"{about['op']} {run.code}"] += 1
        for _, _, what, who in run.done:
            self.counts[f"{what} {who}".strip()] += 1
        took = time.monotonic() - began
        if self.verbose or run.wrong:
            print(f"# run {number}: {' '.join(said)}: exit {run.code}, {took:.1f} s, "
                  f"{run.done} {sorted(run.flags)}", flush=True)
        if run.wrong:
            self.failed.append(number)
            self.report(run, about, mark)
        return not run.wrong

    def report(self, run, about, mark):
        print(f"# FAILED: seed {about['seed']}, run {about['run']}")
        print("# again: make torture SEED=%s RUN=%s" % (about["seed"], about["run"]))
        print("# plan: " + json.dumps(about))
        for problem in run.wrong:
            print("# WRONG: " + str(problem).replace("\n", "\n#   "), flush=True)
        kept = self.keep / f"{about['seed']}-{about['run']}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        (kept / "plan.json").write_text(json.dumps(about, indent=1))
        (kept / "wrong").write_text("\n".join(map(str, run.wrong)))
        if run.command:
            (kept / "stderr").write_text(run.command.output()[1])
        log = self.world.log
        if log.exists():
            with open(log, "rb") as file:
                file.seek(mark)
                text = file.read().decode(errors="replace")
            (kept / "log-of-run").write_text(text)
            print("#   " + "\n#   ".join(text.splitlines()[-30:]))
        subprocess.run(["cp", "-a", "--sparse=always", self.folder, kept / "site"], check=False,
                       stderr=subprocess.DEVNULL)
        print(f"# kept in {kept}", flush=True)
        self.close()

    def summary(self, began):
        took = time.monotonic() - began
        print(f"# {self.runs} runs of seed {self.seed} in {took:.0f} s, "
              f"{took / max(self.runs, 1):.2f} s each; {len(self.failed)} failed: {self.failed}")
        print("# faults: " + ", ".join(f"{what} {n}" for what, n in sorted(self.counts.items())))
        print("# ends: " + ", ".join(f"{what}: {n}" for what, n in sorted(self.codes.items())),
              flush=True)


class Quiet(Tap):
    """A Tap for Site, whose own tests are not those of a campaign."""

    @staticmethod
    def diag(text):
        """Nobody wants to know."""


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--runs", type=int, default=100)
    ask.add_argument("--first", type=int, default=0)
    ask.add_argument("--seed", type=int, default=None)
    ask.add_argument("--run", type=int, default=None)
    ask.add_argument("--plan", type=Path, help="a plan.json, as a run that failed leaves it")
    ask.add_argument("--keep", type=Path, default=ROOT / "build" / "torture")
    ask.add_argument("-v", "--verbose", action="store_true")
    got = ask.parse_args()
    seed = got.seed if got.seed is not None else time.time_ns() // 1000 % 1000000
    began = time.monotonic()
    print(f"# seed {seed}", flush=True)
    campaign = Campaign(seed, got.keep, got.verbose)
    try:
        if got.plan:
            campaign.play(json.loads(got.plan.read_text(encoding="utf-8")))
            return
        for number in [got.run] if got.run is not None else range(got.first, got.first + got.runs):
            campaign.one(number)
    finally:
        campaign.close()
        campaign.summary(began)
        if campaign.failed:
            sys.exit(1)


if __name__ == "__main__":
    main()
