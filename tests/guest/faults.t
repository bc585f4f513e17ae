#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""An agent that misbehaves around a freeze: whatever it does, the guest ends thawed, and what the
command and the record say is true. One boot: the faults are switched while the guest runs."""

import signal
import time

from guesttest import Disk, Site, ext4_needs_recovery, guest_test, wait_until

DISKS = 2


def forget(site, name):
    """Deletes the snapshot; nothing is left of it."""
    site.expect(0, "delete", f"web@{name}")
    site.tidy(f"{name} deleted")


def failed(site, name, record, words):
    """The record of a snapshot that was not taken; nothing else is left of it."""
    site.tap.is_((record["phase"], record["readyToUse"], record["consistency"]),
                 ("Failed", False, "none"), f"{name}: the record says Failed")
    site.tap.ok(words in record["error"]["message"], f"{name}: and why")
    site.tap.diag(record["error"]["message"])
    site.thawed(name)
    site.tidy(name)
    forget(site, name)


def best_effort(site, name, record):
    """The record of a snapshot without the freeze that was wished for."""
    site.tap.is_((record["phase"], record["readyToUse"], record["consistency"],
                  record["indications"]),
                 ("Succeeded", True, "crash", ["Online", "GuestAgent", "QuiesceFailed"]),
                 f"{name}: the record says Succeeded, crash-consistent, QuiesceFailed")
    site.thawed(name)
    site.tidy(name)
    forget(site, name)


def unverified(site, name, record):
    """The record of a snapshot whose thaw was not what it should be."""
    site.tap.ok(record["readyToUse"] and site.image("web", name).exists(),
                f"{name}: the snapshot is there")
    site.tap.is_(record["consistency"], "crash", f"{name}: and not called consistent")
    site.tap.ok("ThawUnverified" in record["indications"], f"{name}: the record says why")
    site.thawed(name)
    site.tidy(name)
    forget(site, name)


def slow_freeze(site):
    site.vm.set_fault("freeze", "slow:2")
    began = time.monotonic()
    record = site.snapshot(1, "limit", "--frozen-limit", "1s",
                           what="a freeze beyond the frozen limit: exit 1")
    site.tap.ok(time.monotonic() - began < 20, "and not much later than the agent allows")
    failed(site, "limit", record, "frozen limit of 1 s")
    record = site.snapshot(0, "limit-prefer", "--frozen-limit", "1s", "--quiesce", "prefer",
                           what="the same with --quiesce=prefer: exit 0")
    best_effort(site, "limit-prefer", record)
    site.vm.clear_faults()


def failing_freeze(site):
    site.vm.set_fault("freeze", "fail")
    record = site.snapshot(1, "refused", what="a freeze hook that fails: exit 1")
    failed(site, "refused", record, "guest-fsfreeze-freeze")
    record = site.snapshot(0, "refused-prefer", "--quiesce", "prefer",
                           what="the same with --quiesce=prefer: exit 0")
    best_effort(site, "refused-prefer", record)
    site.vm.clear_faults()


def failing_thaw(site):
    site.vm.set_fault("thaw", "fail")
    record = site.snapshot(5, "thaw-error", what="a thaw hook that fails: exit 5")
    site.vm.clear_faults()
    unverified(site, "thaw-error", record)


def slow_thaw(site):
    site.vm.set_fault("thaw", "slow:3")
    record = site.snapshot(0, "thaw-slow", what="a thaw hook that takes its time: exit 0")
    site.vm.clear_faults()
    site.tap.is_((record["phase"], record["consistency"]), ("Succeeded", "filesystem"),
                 "thaw-slow: what counts is that all was thawed")
    site.tap.ok(record["evidence"]["thawMs"] >= 3000, "thaw-slow: the record has the time it took")
    site.tap.ok(not ext4_needs_recovery(site.image("web", "thaw-slow")),
                "thaw-slow: and it is consistent")
    site.thawed("thaw-slow")
    site.tidy("thaw-slow")
    forget(site, "thaw-slow")


def agent_comes_back(site):
    site.vm.set_fault("restart", "1")
    site.vm.set_fault("kill", "0")
    record = site.snapshot(5, "agent-lost",
                           what="the agent dies frozen and comes back: exit 5")
    unverified(site, "agent-lost", record)
    site.vm.set_fault("kill", "noreply")
    record = site.snapshot(3, "no-answer",
                           what="the agent dies in the freeze, and comes back: exit 3")
    failed(site, "no-answer", record, "guest agent")
    site.vm.clear_faults()


def not_consistent(site, name):
    """The agent dies right behind its answer to the freeze: if vmfrost hears of the death first,
    there is no snapshot."""
    record = site.record(name)
    site.tap.ok((record["readyToUse"], record["consistency"]) in ((True, "crash"), (False, "none")),
                f"{name}: the snapshot is not called consistent ({record['consistency']})")


def is_frozen(site, what):
    site.tap.ok(not site.vm.guest_writes_ok(timeout=1), f"{what}: the guest is frozen")


def agent_stays_away(site):
    site.vm.set_fault("kill", "0")
    done = site.expect(6, "snapshot", "web@gone", "--thaw-wait", "6s",
                       what="the agent dies frozen for good: exit 6")
    site.tap.ok("THE GUEST MAY BE FROZEN: web" in done.err and "Do this now:" in done.err,
                "gone: nobody can overlook that")
    site.tap.ok(site.journal() is not None, "gone: the journal is there")
    status = site.status()
    site.tap.ok(status["interrupted"]["owesThaw"], "gone: status knows that a thaw is owed")
    site.tap.is_(len(site.guards()), 1, "gone: the guard stays")
    is_frozen(site, "gone")
    before = site.guards()
    recover = site.start("recover", "web")
    wait_until(lambda: site.guards() != before, what="a recovery that takes over from the guard")
    time.sleep(1)
    recover.signal(signal.SIGKILL)
    site.tap.is_(recover.wait().code, -signal.SIGKILL, "gone: a recovery tries, and is killed")
    is_frozen(site, "gone, recovery killed")
    site.vm.clear_faults()
    site.vm.start_agent()
    wait_until(lambda: site.vm.guest_writes_ok(timeout=1), what="the guard's thaw")
    site.tap.ok(True, "gone: when an agent comes, the guard thaws")
    wait_until(lambda: "guard-thawed" in site.journal_states(), what="the guard's line")
    site.expect(0, "recover", "web")
    not_consistent(site, "gone")
    site.thawed("gone")
    site.tidy("gone")
    forget(site, "gone")


def emergency(site):
    site.add("emergencyThaw=sysrq")
    site.vm.set_fault("kill", "0")
    done = site.expect(6, "snapshot", "web@sysrq", "--thaw-wait", "10s",
                       what="the same with emergencyThaw=sysrq: exit 6")
    site.tap.ok("alt-sysrq-j" in done.err, "sysrq: it is told that it was sent")
    site.tap.ok(site.vm.guest_writes_ok(timeout=5), "sysrq: the guest is thawed, and writes")
    site.vm.clear_faults()
    site.vm.start_agent()
    wait_until(lambda: "guard-thawed" in site.journal_states(), what="the guard's line")
    site.expect(0, "recover", "web")
    not_consistent(site, "sysrq")
    site.thawed("sysrq")
    site.tidy("sysrq")
    forget(site, "sysrq")
    site.add("emergencyThaw=off")


def not_primed(site):
    """The same where the cut is sent as a whole."""
    site.add("prime=off")
    failing_freeze(site)
    slow_freeze(site)
    site.add("prime=")


def main():
    with guest_test() as (tap, folder):
        with Site(tap, folder, [Disk("web"), Disk("data")]) as site:
            site.boot()
            for part in (failing_freeze, slow_freeze, failing_thaw, slow_thaw, agent_comes_back,
                         agent_stays_away, emergency, not_primed):
                tap.diag(part.__name__)
                part(site)


if __name__ == "__main__":
    main()
