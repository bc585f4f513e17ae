#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""kill -9 of vmfrost wherever a step begins and wherever it has just been started, on the way
forward, on the way back and in a deletion: the guest is thawed by the guard, `recover` leaves
nothing behind, and every record the guest was told is safe is there. The steps are read from the
source: a new one is tested as soon as there is one."""

import re
import signal
import time

from guesttest import (ROOT, Disk, Site, ext4_needs_recovery, guest_test, is_stopped,
                       wait_until)

FLOWS = ROOT / "src" / "flows"


def rows(file):
    """The names of the steps of a table, in their order."""
    return re.findall(r'\{\.name = "([^"]+)"', (FLOWS / file).read_text(encoding="utf-8"))


def points(*prefixes):
    """The further places where a process may be killed."""
    found = set()
    for path in FLOWS.glob("*.c"):
        found |= set(re.findall(r'vf_test_point\(flow, "([^"]+)"\)', path.read_text("utf-8")))
    return sorted(point for point in found if point.startswith(prefixes))


def at_and_in(steps):
    """Before a step begins, and right after it was started."""
    return [point for step in steps for point in (step, step + "+")]


# Those of groups are in tests/qemu/group.t.
SNAPSHOT = [step for step in rows("snapshot.c") if not step.startswith("group-")]
# What it takes to come to a step that is not in every snapshot.
NEEDS = {"mounts": ["--freeze", "all,-/mnt/nothing"]}
BACK = [step for step in SNAPSHOT if step.startswith("undo-")]
OTHER = ["melt", "thaw-late"]
FORWARD = [step for step in SNAPSHOT if step not in BACK + OTHER]
# Without the steps of a recovery; some rows are in two tables.
DELETE = [step for step in dict.fromkeys(rows("delete.c"))
          if step not in ("names", "settle", "tidy", "undo-files")]
BACK_OF_DELETE = ["stop-merge", "close"]


class Killed:
    """vmfrost, killed at a point."""

    def __init__(self, site, point, words, before="", act=None):
        self.site, self.point, self.words = site, point, words
        self.before, self.act = before, act

    def run(self):
        """Was it killed there? When it died, and what the log had before."""
        site = self.site
        lines = len(site.log_lines()) if site.log.exists() else 0
        command = site.start(*self.words,
                             env={"VMFROST_TEST_AT": f"{self.before}kill:{self.point}"})
        if self.act:
            self.act(command)
        done = command.wait()
        died = time.time()
        site.judge(done, -signal.SIGKILL, f"{self.point}: killed there")
        return died, site.log_lines()[lines:]


def cancel_when_stopped(command):
    """Stopped at a point, it is told to give up: its way back begins with a request in doubt."""
    wait_until(lambda: is_stopped(command), what="vmfrost at the point")
    command.signal(signal.SIGTERM)
    command.signal(signal.SIGCONT)


def guard_thaws(site, point, died, lines, patience):
    """Has the guard thawed within `patience` seconds, if anything was frozen? After what time."""
    texts = [line.split(" ", 3)[3] for line in lines]
    froze = any("guest-fsfreeze-freeze" in text and text.startswith("qga >") for text in texts)
    states = site.journal_states()
    wait_until(lambda: not site.guards(), what="the guard's end")
    if not froze or "thawed" in states or site.journal() is None:
        return None
    lines = [line for line in site.journal() if line.get("state") == "guard-thawed"]
    if not site.tap.ok(lines, f"{point}: the guard has thawed"):
        return None
    took = lines[0]["time"] - died
    site.tap.ok(took <= patience, f"{point}: within {patience:.1f} s ({took * 1000:.0f} ms)")
    return took


def recovered(site, point, name, acked):
    """After the recovery: what is left, and is what it says true?"""
    site.expect(0, "recover", "web", what=f"{point}: recover: exit 0")
    site.thawed(point)
    site.tidy(point)
    record = site.record(name)
    if record is None:
        return
    if record["readyToUse"]:
        site.one_instant("web", "data", acked, f"{point}: rolled forward", name)
        if record["consistency"] == "filesystem":
            site.tap.ok(not ext4_needs_recovery(site.image("web", name)),
                        f"{point}: called consistent, and it is")
            evidence = record["evidence"]
            site.tap.ok(evidence["frozen"] <= evidence.get("cut", "?") <= evidence["thawSent"],
                        f"{point}: and it is known that the cut was made while all was frozen")
    else:
        site.tap.is_((record["phase"], record["consistency"]), ("Failed", "none"),
                     f"{point}: rolled back, the record says Failed")
    site.tap.diag(f"{point}: {record['phase']}, {record['consistency']}")
    site.expect(0, "delete", f"web@{name}", what=f"{point}: delete: exit 0")
    site.tidy(f"{point}, deleted")


def in_a_snapshot(site, patience, point, *options, before="", act=None):
    acked = site.vm.writer_acked()
    died, lines = Killed(site, point, ["snapshot", "web@s", *options], before, act).run()
    took = guard_thaws(site, point, died, lines, patience)
    recovered(site, point, "s", acked)
    return took


def in_a_deletion(site, point):
    site.snapshot(0, "d", what=f"delete {point}: a snapshot")
    if point.rstrip("+") in BACK_OF_DELETE:
        Killed(site, point, ["delete", "web@d"], "stop:merge+,", cancel_when_stopped).run()
    else:
        Killed(site, point, ["delete", "web@d"]).run()
    acked = site.vm.writer_acked() if site.vm.qmp("query-status")["running"] else 0
    site.expect(0, "recover", "web", what=f"delete {point}: recover: exit 0")
    site.thawed(f"delete {point}")
    site.tidy(f"delete {point}")
    if site.record("d"):
        site.expect(0, "delete", "web@d", what=f"delete {point}: delete again: exit 0")
        site.tidy(f"delete {point}, deleted")
    wait_until(lambda: site.vm.writer_acked() > acked, what="the writer going on")


def normal_times(site):
    """How long this guest takes for a freeze and a thaw: it is a slow one."""
    evidence = site.snapshot(0, "usual")["evidence"]
    site.expect(0, "delete", "web@usual")
    return (evidence["freezeMs"] + evidence["thawMs"]) / 1000


def power_cut(site):
    """All that the writer was told is there after a SIGKILL of QEMU, by the same command line."""
    acked = site.vm.writer_acked()
    site.vm.kill()
    site.one_instant("web", "data", acked, "QEMU killed, too: the images")
    site.boot()
    site.thawed("QEMU killed, too")
    site.expect(0, "recover", "web")
    site.tidy("QEMU killed, too")


def main():
    with guest_test() as (tap, folder):
        with Site(tap, folder, [Disk("web"), Disk("data")]) as site:
            site.boot().vm.start_writer("web", "data")
            patience = 1 + normal_times(site)
            took = []
            tap.diag("on the way forward")
            for point in at_and_in(FORWARD) + points("overlays.", "record."):
                took.append(in_a_snapshot(site, patience, point,
                                          *NEEDS.get(point.rstrip("+"), ())))
            tap.diag("on other ways on")
            site.vm.set_fault("freeze", "fail")
            for point in at_and_in(["melt"]):
                took.append(in_a_snapshot(site, patience, point, "--quiesce", "prefer"))
            site.vm.clear_faults()
            for point in at_and_in(["thaw-late"]):
                # The agent dies in its thaw hook, and takes its time to come back.
                site.vm.set_fault("thaw", "slow:2")
                site.vm.set_fault("kill", "500")
                site.vm.set_fault("restart", "1")
                took.append(in_a_snapshot(site, patience + 10, point))
                site.vm.clear_faults()
                site.vm.wait_agent()
            tap.diag("on the way back")
            for point in at_and_in(BACK) + points("merge."):
                took.append(in_a_snapshot(site, patience, point, before="stop:cut+,",
                                          act=cancel_when_stopped))
            tap.diag("in a deletion")
            for point in at_and_in(DELETE) + points("merge."):
                in_a_deletion(site, point)
            took = [each for each in took if each is not None]
            tap.diag(f"thawed by the guard {len(took)} times, after {max(took):.2f} s at most "
                     f"(an undisturbed freeze and thaw take {patience - 1:.2f} s)")
            power_cut(site)


if __name__ == "__main__":
    main()
