#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Freezing and thawing by hand. Whatever becomes of the one who froze, the guard thaws in time; and
nobody is misled about a guest that is frozen."""

import json
import re
import signal
import time
from datetime import datetime

from guesttest import ROOT, Disk, Qmp, Site, guest_test, wait_until

DISKS = 2


def stamp(text):
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()


def is_frozen(site, what):
    site.tap.ok(not site.vm.guest_writes_ok(timeout=0.5), f"{what}: the guest is frozen")


def document_of(done):
    """What an operation with --json says at its end."""
    return json.loads(done.out.splitlines()[-1])


def tidied(site, what):
    """The guest is thawed, and the next contact leaves nothing of the freeze."""
    site.thawed(what)
    site.expect(0, "recover", "web", what=f"{what}: recover: exit 0")
    site.tidy(what)


def at_the_limit(site):
    began = time.monotonic()
    done = site.expect(0, "freeze", "web", "--for", "3s", "--json", what="freeze --for 3s: exit 0")
    took = time.monotonic() - began
    result = document_of(done)
    site.tap.is_((result["code"], result["document"]["frozenFilesystems"],
                  result["document"]["limitMs"]), (0, DISKS, 3000), "it says how many, how long")
    is_frozen(site, "freeze")
    site.tap.is_(len(site.guards()), 1, "one guard stays")
    asked = time.monotonic()
    status = site.status()
    site.tap.ok("frozen" in status and "interrupted" not in status and
                2 - took < stamp(status["frozen"]["until"]) - stamp(status["frozen"]["since"]) < 4,
                f"status says that it is frozen, and until when: {status.get('frozen')}")
    site.tap.ok(time.monotonic() - asked < 1, "without waiting for the agent")
    wait_until(lambda: not site.guards(), what="the guard's thaw")
    frozen_for = time.monotonic() - began
    site.tap.ok(2.9 <= frozen_for <= 15 + took,  # emulated guests on a busy machine are slow
                f"the guard thaws at the limit ({frozen_for:.1f} s)")
    site.tap.ok("guard-thawed" in site.journal_states(), "and writes it down")
    status = site.status()
    site.tap.ok("frozen" not in status and "interrupted" not in status and
                status["agent"]["connected"], "status does not say frozen any more")
    tidied(site, "at the limit")


def sooner(site):
    site.expect(0, "freeze", "web", "--for", "60s")
    is_frozen(site, "freeze")
    done = site.expect(0, "thaw", "web", "--json", what="thaw: exit 0")
    site.tap.is_(document_of(done)["document"]["thawedFilesystems"], DISKS, "it says how many")
    site.thawed("thaw")
    site.tidy("thaw")
    done = site.expect(0, "thaw", "web", what="thaw of a guest that is not frozen: exit 0")
    site.tap.ok("nothing was frozen" in done.out, "and it says so")
    site.tidy("thaw again")


def monitor_taken(site):
    """Somebody else is on QEMU's monitor: that is no reason to leave a guest frozen."""
    site.expect(0, "freeze", "web", "--for", "60s")
    other = Qmp(site.vm.path("qmp.sock"))
    done = site.expect(0, "thaw", "web", what="thaw while the monitor is taken: exit 0")
    site.tap.ok("another client" in done.err, "it warns")
    other.close()
    site.thawed("monitor taken")
    site.tidy("monitor taken")


def qemu_gone(site):
    """QEMU dies frozen: nobody waits for an agent that cannot come back."""
    site.expect(0, "freeze", "web", "--for", "60s")
    site.vm.kill()
    began = time.monotonic()
    site.expect(0, "thaw", "web", what="thaw when QEMU is gone: exit 0")
    site.tap.ok(time.monotonic() - began < 10, "at once")
    site.tidy("QEMU gone")
    site.expect(3, "thaw", "web", what="thaw of a VM that does not run: exit 3")
    site.expect(3, "freeze", "web", what="freeze of a VM that does not run: exit 3")
    site.tidy("not running")


def meanwhile(site):
    """What others are told, and that they change nothing."""
    site.expect(0, "freeze", "web", "--for", "60s")
    before = site.listing(), site.graph(), site.guards()
    for words in ((), ("web",)):
        said = site.run("status", *words).out
        site.tap.ok(re.search(r"FROZEN by hand.*its guard thaws it in 5\d s", said) and
                    "recover" not in said, f"status {' '.join(words)} says it to people, too")
    site.tap.ok("vmfrost thaw web" in said, "and what ends it")
    for words in (("snapshot", "web@no"), ("snapshot", "web@no", "--quiesce=skip"),
                  ("freeze", "web"), ("check", "web"), ("check", "web", "--quiesce=prefer")):
        done = site.expect(1, *words, what=f"{' '.join(words)} of a frozen guest: exit 1")
        site.tap.ok("frozen by hand" in done.err and "vmfrost thaw web" in done.err,
                    f"{words[0]}: it says why, and what to do")
    site.tap.is_((site.listing(), site.graph(), site.guards()), before, "nothing is changed")
    is_frozen(site, "meanwhile")
    site.tap.ok(site.record("no") is None, "and there is no record")
    site.expect(0, "recover", "web", what="recover thaws it: exit 0")
    site.thawed("recover")
    site.tidy("recover")
    record = site.snapshot(0, "yes", what="then a snapshot: exit 0")
    site.tap.is_(record["consistency"], "filesystem", "a consistent one")
    site.expect(0, "delete", "web@yes")


def limit_passed(site):
    """A snapshot after the guard's thaw needs nobody to tidy up first."""
    site.expect(0, "freeze", "web", "--for", "1s")
    wait_until(lambda: not site.guards(), what="the guard's thaw")
    site.snapshot(0, "after", what="a snapshot after the limit: exit 0")
    site.thawed("after")
    site.tidy("after")
    site.expect(0, "delete", "web@after")


def steps():
    text = (ROOT / "src" / "flows" / "freeze.c").read_text(encoding="utf-8")
    table = text[text.index("freeze_steps[F_COUNT]"):text.index("vf_freeze_table")]
    return re.findall(r'\{\.name = "([^"]+)"', table)


def killed(site):
    for point in [point for step in steps() for point in (step, step + "+")]:
        if point.startswith("undo-"):
            site.vm.set_fault("freeze", "fail")
        done = site.start("freeze", "web", "--for", "2s",
                          env={"VMFROST_TEST_AT": f"kill:{point}"}).wait()
        site.vm.clear_faults()
        site.judge(done, -signal.SIGKILL, f"{point}: killed there")
        wait_until(lambda: not site.guards(), what="the guard's end")
        site.tap.ok(site.vm.guest_writes_ok(), f"{point}: the guest is thawed")
        tidied(site, point)


def agent_lost(site):
    site.expect(0, "freeze", "web", "--for", "2s")
    site.vm.kill_agent()
    time.sleep(2.5)
    is_frozen(site, "agent lost")
    done = site.expect(6, "thaw", "web", "--wait", "3s", what="agent lost: thaw: exit 6")
    site.tap.ok("THE GUEST MAY BE FROZEN: web" in done.err, "agent lost: nobody can overlook that")
    is_frozen(site, "agent lost, thaw tried")
    site.tap.is_(len(site.guards()), 1, "agent lost: there is a guard again")
    began = time.monotonic()
    done = site.expect(6, "recover", "web", "--wait", "2s", what="agent lost: recover: exit 6")
    site.tap.ok(time.monotonic() - began < 15, "agent lost: after the time that was given")
    site.tap.is_(len(site.guards()), 1, "agent lost: and leaves a guard")
    site.vm.start_agent()
    wait_until(lambda: not site.guards(), what="the guard's thaw")
    site.tap.ok(site.vm.guest_writes_ok(), "agent back: the guard thaws")
    tidied(site, "agent back")


def by_others(site):
    """Frozen by somebody else."""
    site.vm.agent_command("guest-fsfreeze-freeze")
    for words in ("freeze", "web"), ("snapshot", "web@no"):
        done = site.expect(1, *words, what=f"{words[0]} of a guest that others froze: exit 1")
        site.tap.ok("frozen already" in done.err, f"{words[0]}: it says so")
    is_frozen(site, "by others")
    done = site.expect(0, "thaw", "web", "--json", what="thaw: exit 0")
    site.tap.is_(document_of(done)["document"]["thawedFilesystems"], DISKS,
                 "it thaws what others froze")
    site.thawed("by others")
    site.tidy("by others")


def no_agent(site):
    site.vm.kill_agent()
    wait_until(lambda: not site.vm.agent_open(), what="the agent's end")
    done = site.expect(3, "freeze", "web", what="freeze without an agent: exit 3")
    site.tap.ok("no guest agent" in done.err, "and it says why")
    site.tidy("no agent")


def main():
    with guest_test() as (tap, folder):
        with Site(tap, folder, [Disk("web"), Disk("data")]) as site:
            site.boot()
            for part in (at_the_limit, sooner, monitor_taken, meanwhile, limit_passed, killed,
                         by_others, agent_lost, no_agent):
                tap.diag(part.__name__)
                part(site)
            site.vm.start_agent()
            site.vm.wait_agent()
            qemu_gone(site)


if __name__ == "__main__":
    main()
