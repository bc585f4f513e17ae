#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Three guests get their snapshots at one instant, or none of them does.

A relay writes each number to the first guest, then, when that has it on its disk, to the second,
then to the third: in images of one instant no guest is ahead of the one before it."""

import contextlib
import json
import signal
import threading

from guesttest import Disk, LabError, RawCopy, Site, ext4_needs_recovery, guest_test, run, wait_until

NAMES = ["web", "db", "cache"]


class Relay:
    """Writes 1, 2, 3... to all guests, one after the other. The control shells are its own while
    it runs."""

    def __init__(self, vms):
        self.vms = vms
        self.number = 0
        self.error = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            while not self.ending.is_set():
                number = self.number + 1
                for vm in self.vms:
                    vm.sh(f"printf '%08d' {number} | dd of=/mnt/web/relay conv=fsync,notrunc 2>&1",
                          timeout=120)
                self.number = number
        except LabError as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        wait_until(lambda: self.number >= 1 or self.error, what="the relay's first round")
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join()


class Group:
    """Three sites with one state folder."""

    def __init__(self, tap, folder, stack):
        self.tap = tap
        self.sites = []
        for name in NAMES:
            site = Site(tap, folder / name, [Disk("web")], name=name)
            site.state_dir = folder / "state"
            self.sites.append(stack.enter_context(site))
        for site in self.sites:
            site.boot()

    @property
    def vms(self):
        return [site.vm for site in self.sites]

    def snapshot(self, code, name, *options, what=None, env=None):
        """A test: how a group's snapshot ends. Its Result."""
        return self.sites[0].expect(code, "snapshot", *NAMES, f"@{name}", *options,
                                    what=what or f"{name}: exit {code}", env=env)

    def records(self, name):
        return [site.record(name) for site in self.sites]

    def settled(self, what, ready):
        """Tests: nobody is frozen, nothing is left over, and all have the snapshot or none."""
        for site in self.sites:
            site.thawed(f"{what}: {site.name}")
            site.tidy(f"{what}: {site.name}")
        self.tap.is_([bool(record and record["readyToUse"]) for record in self.records(what)],
                     [ready] * len(NAMES), f"{what}: {'all have' if ready else 'none has'} it")

    def forget(self, name):
        for site in self.sites:
            if site.record(name):
                site.expect(0, "delete", f"{site.name}@{name}")

    def relayed(self, name):
        """The relay's number in each image."""
        found = []
        for site in self.sites:
            with RawCopy(site.image("web", name)) as raw:
                found.append(int(run("debugfs", "-R", "cat /relay", raw).stdout))
        return found

    def of_one_instant(self, name, least):
        """A test: no guest's image is ahead of the one before it."""
        found = self.relayed(name)
        self.tap.ok(sorted(found, reverse=True) == found and found[0] - found[-1] <= 1 and
                    found[-1] >= least, f"{name}: the images are of one instant: {found}")


def rounds(group):
    tap = group.tap
    with Relay(group.vms) as relay:
        for number in range(3):
            name = f"round-{number}"
            least = relay.number
            group.snapshot(0, name)
            records = group.records(name)
            for site, record in zip(group.sites, records):
                evidence = record["evidence"]
                tap.is_((record["phase"], record["consistency"]), ("Succeeded", "filesystem"),
                        f"{name}: {site.name}: consistent")
                tap.ok(evidence["frozenMs"] > 0, f"{name}: {site.name} was frozen for "
                       f"{evidence['frozenMs']} ms, cut in {evidence['cutMs']} ms")
                tap.ok(not ext4_needs_recovery(site.image("web", name)),
                       f"{name}: {site.name}: its file system needs no recovery")
            evidences = [record["evidence"] for record in records]
            tap.ok(max(each["frozen"] for each in evidences) <=
                   min(each["cutSent"] for each in evidences), f"{name}: all are frozen, then cut")
            tap.ok(max(each["cut"] for each in evidences) <=
                   min(each["thawSent"] for each in evidences), f"{name}: all are cut, then thawed")
            about = records[0]["group"]
            tap.is_((about["members"], about["unfrozen"], about["oneInstant"]), (NAMES, [], True),
                    f"{name}: the record says who, and that it is one instant")
            tap.ok(max(each["cutMs"] for each in evidences) * 1000 - 1 <= about["spreadUs"] <=
                   min(each["frozenMs"] for each in evidences) * 1000,
                   f"{name}: cut within {about['spreadUs']} us, while all were frozen")
            group.of_one_instant(name, least)
        tap.is_(relay.error, None, "the relay goes on all the time")
    for number in range(3):
        group.settled(f"round-{number}", True)
    for number in range(3):
        group.forget(f"round-{number}")


def one_cannot_be_frozen(group):
    tap, db = group.tap, group.sites[1]
    db.vm.set_fault("freeze", "fail")
    done = group.snapshot(1, "refused", what="one freeze is refused: exit 1")
    tap.ok("db of the same group failed" in done.err, "refused: the others name it")
    group.settled("refused", False)
    errors = [record["error"]["message"] for record in group.records("refused")]
    tap.ok("db of the same group failed: guest-fsfreeze-freeze" in errors[0] and
           "guest-fsfreeze-freeze" in errors[1] and "db of the same" in errors[2],
           "refused: each record says why")
    group.forget("refused")

    with Relay(group.vms) as relay:
        least = relay.number
        group.snapshot(0, "preferred", "--quiesce", "prefer", what="... unless that is allowed")
        record = db.record("preferred")
        tap.is_((record["consistency"], "QuiesceFailed" in record["indications"],
                 record["group"]["unfrozen"], record["group"]["oneInstant"]),
                ("crash", True, ["db"], True), "preferred: it is cut while the others are frozen")
        group.of_one_instant("preferred", least)
    group.settled("preferred", True)
    group.forget("preferred")
    db.vm.clear_faults()


def one_freezes_too_slowly(group):
    group.sites[1].vm.set_fault("freeze", "slow:15")
    done = group.snapshot(1, "slow", "--frozen-limit", "5s", what="one is too slow: exit 1")
    group.tap.ok("frozen limit" in done.err, "slow: it says why")
    group.settled("slow", False)
    group.forget("slow")
    group.sites[1].vm.clear_faults()


def killed(group):
    """kill -9 while all are frozen, when some are cut, and when all are but nobody has said so."""
    tap, first = group.tap, group.sites[0]
    for point, ready in (("freeze+@db", False), ("group-frozen@db", False), ("cut@db", False),
                         ("group-cut@db", False), ("thaw+@db", False), ("group-commit.all", False),
                         ("group-commit.marked", True)):
        name = point.replace("@", "-")
        group.snapshot(-signal.SIGKILL, name, env={"VMFROST_TEST_AT": f"kill:{point}"},
                       what=f"{name}: killed there")
        wait_until(lambda: not first.guards(), what="the guards' end")
        for vm in group.vms:
            tap.ok(not vm.frozen(), f"{name}: a guard has thawed")
        # Each alone, the last one first.
        for site in group.sites[::-1]:
            site.expect(0, "recover", site.name)
        group.settled(name, ready)
        marks = list((first.state_dir / "groups").glob("*"))
        tap.is_(marks, [], f"{name}: no mark is left")
        group.forget(name)


def in_json(group):
    done = group.snapshot(0, "json", "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    for name in NAMES:
        steps = [line["step"] for line in lines if line.get("vm") == name
                 and line["event"] == "step" and line["state"] == "started"]
        group.tap.ok([step for step in steps if step in ("freeze", "cut", "thaw", "record")] ==
                     ["freeze", "cut", "thaw", "record"], f"json: the steps of {name}, in order")
    group.tap.is_(sorted(line["vm"] for line in lines if line["event"] == "result"), sorted(NAMES),
                  "json: a result for each")
    group.forget("json")


def main():
    with guest_test() as (tap, folder), contextlib.ExitStack() as stack:
        group = Group(tap, folder, stack)
        for vm in group.vms:
            vm.sh("printf '%08d' 0 | dd of=/mnt/web/relay conv=fsync 2>&1")
        for test in (rounds, in_json, one_cannot_be_frozen, one_freezes_too_slowly, killed):
            tap.diag(test.__name__)
            test(group)


if __name__ == "__main__":
    main()
