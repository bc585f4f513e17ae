#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Somebody else at the same guest, while it freezes: another client of the agent's socket, a person
who thaws, stops, resets or unplugs through another monitor, and a second vmfrost that knows nothing of
the first one. Every command ends within its limits, what it and the record say is true, and the guest
writes afterwards. One boot, and one more by a reset.

    tests/guest/two.t [PART]
"""

import contextlib
import signal
import sys
import time

import guesttest
from guesttest import (Disk, LabError, Site, connect_unix, ext4_needs_recovery, guest_test, is_stopped,
                       start_vmfrost, wait_until)

ONLY = sys.argv[1] if len(sys.argv) > 1 else ""
SOON = 60  # seconds: each of them has limits of a few, and the host may be busy
OTHER = "other.sock"
guesttest.FURNITURE.add(OTHER)


def stopped_at(site, point, name, *options):
    """A snapshot that stops itself at a point; VMFROST_TEST_AT."""
    command = site.start("snapshot", f"web@{name}", "--thaw-wait", "3s", *options,
                         env={"VMFROST_TEST_AT": f"stop:{point}"})
    wait_until(lambda: is_stopped(command), what=f"vmfrost at {point}")
    return command


def go_on(command):
    command.signal(signal.SIGCONT)
    began = time.monotonic()
    return command.wait(), time.monotonic() - began


def taken(record):
    """What a record claims."""
    return record["phase"], record["consistency"]


def clean(site, what, name):
    """The guest writes, the snapshot can be deleted, and then nothing is left."""
    site.thawed(what)
    site.expect(0, "recover", "web")
    if site.record(name):
        site.expect(0, "delete", f"web@{name}")
    site.tidy(what)


# --- the agent's socket

@contextlib.contextmanager
def at_the_agent(site):
    """A client that holds the agent's socket, and says nothing."""
    client = connect_unix(site.vm.path("qga.sock"), 10)
    try:
        yield
    finally:
        client.close()


def agent_is_taken(site):
    with at_the_agent(site):
        began = time.monotonic()
        done = site.expect(3, "snapshot", "web@taken", what="the agent's socket is taken: exit 3")
        site.tap.ok("another client is connected to the agent's socket" in done.err,
                    f"taken: it says why: {done.err}")
        record = site.snapshot(0, "prefer", "--quiesce", "prefer",
                               what="taken, --quiesce=prefer: exit 0")
        site.tap.is_((*taken(record), "QuiesceFailed" in record["indications"]),
                     ("Succeeded", "crash", True), "taken, prefer: crash-consistent, and it says so")
        site.tap.ok(time.monotonic() - began < SOON, "taken: both are done soon")
    clean(site, "taken", "prefer")


def agent_is_waited_for(site):
    """Whoever comes second waits in QEMU's queue, and hears nothing until vmfrost is done."""
    command = stopped_at(site, "cut", "queue")
    with at_the_agent(site):
        done, _ = go_on(command)
        site.judge(done, 0, "somebody waits for the agent's socket: exit 0")
        site.tap.is_(taken(site.record("queue")), ("Succeeded", "filesystem"),
                     "he waits: it is consistent")
    clean(site, "he waits", "queue")


def agent_is_taken_frozen(site):
    """vmfrost and its guard are killed in the window, and somebody takes the socket."""
    command = stopped_at(site, "cut", "orphan")
    for guard in site.guards():
        site.kill_guard(guard)
    command.signal(signal.SIGKILL)
    command.wait()
    with at_the_agent(site):
        began = time.monotonic()
        done = site.expect(6, "recover", "web", "--wait", "3s",
                           what="frozen, and the agent's socket is taken: recover: exit 6")
        site.tap.ok("THE GUEST MAY BE FROZEN" in done.err, "frozen and taken: it says so")
        site.tap.ok(time.monotonic() - began < SOON, "frozen and taken: soon")
    site.expect(0, "recover", "web", what="when he is gone: exit 0")
    clean(site, "frozen and taken", "orphan")


def answer_to_nobody(site, name):
    """vmfrost and its guard are killed while somebody has stopped the VM, so that the guest is not told
    that they hung up; when it goes on it freezes, and QEMU (7.2) keeps the answer, and all that come after
    it, until a client hangs up that the guest was told of. See docs/protocol.md."""
    site.vm.set_fault("freeze", "slow:2")
    command = site.start("snapshot", f"web@{name}", "--frozen-limit", "20s")
    wait_until(lambda: "freezing" in site.journal_states(), what="the freeze")
    time.sleep(1)
    site.vm.qmp("stop")
    for guard in site.guards():
        site.kill_guard(guard)
    command.signal(signal.SIGKILL)
    command.wait()
    time.sleep(0.5)
    site.vm.qmp("cont")
    wait_until(lambda: not site.vm.guest_writes_ok(timeout=2), what="the freeze's end")
    site.vm.clear_faults()


def agent_is_stuck(site):
    answer_to_nobody(site, "stuck")
    began = time.monotonic()
    site.expect(0, "recover", "web", what="its port is stuck: recover: exit 0")
    site.tap.ok(time.monotonic() - began < SOON, "its port is stuck: soon")
    clean(site, "its port is stuck", "stuck")


def agent_is_stuck_for_guard(site):
    answer_to_nobody(site, "deaf")
    done = site.start("recover", "web", env={"VMFROST_TEST_AT": "kill:thaw-more"}).wait()
    site.judge(done, -signal.SIGKILL, "its port is stuck: recover is killed")
    site.tap.is_(len(site.guards()), 1, "its port is stuck: recover's guard is there")
    wait_until(lambda: not site.guards(), what="the guard's thaw")
    clean(site, "its port is stuck, a guard", "deaf")


# --- freezing and thawing

def frozen_before_us(site):
    """By a person at the agent: that freeze is his."""
    site.vm.agent_command("guest-fsfreeze-freeze")
    done = site.expect(1, "snapshot", "web@his", what="frozen by somebody else: exit 1")
    site.tap.ok("frozen already" in done.err and "vmfrost thaw web" in done.err,
                "frozen by somebody else: it says so")
    site.tap.ok(site.vm.frozen(), "frozen by somebody else: it still is")
    site.vm.agent_command("guest-fsfreeze-thaw")
    clean(site, "frozen by somebody else", "his")


def half_frozen_before_us(site):
    """By a person in the guest: the agent freezes the other disk, and thaws both."""
    site.vm.sh("fsfreeze --freeze /mnt/data")
    done = site.run("snapshot", "web@half")
    record = site.record("half")
    site.tap.ok((done.code, *taken(record)) in
                ((0, "Succeeded", "crash"), (1, "Failed", "none"), (5, "Failed", "crash")),
                f"a disk is frozen in the guest: exit {done.code}, {taken(record)}: "
                f"{record.get('error', {}).get('message', '')}")
    site.vm.sh("fsfreeze --unfreeze /mnt/data", check=False)
    clean(site, "a disk is frozen in the guest", "half")


def thawed_in_between(site):
    """Alt-SysRq-J by a person at the other monitor, whom no agent knows of."""
    command = stopped_at(site, "cut", "thawed")
    site.vm.sysrq("j")
    wait_until(lambda: site.vm.guest_writes_ok(timeout=2), what="the emergency thaw")
    done, took = go_on(command)
    record = site.record("thawed")
    site.tap.ok(done.code == 5 and taken(record) == ("Failed", "crash") and took < SOON,
                f"thawed by a person before the cut: exit {done.code}, {taken(record)}: {done.err[:200]}")
    clean(site, "thawed by a person", "thawed")


# --- a person at another monitor

def stopped_in_between(site):
    """`stop` while the guest is frozen: it cannot thaw then."""
    command = stopped_at(site, "cut", "paused")
    site.vm.qmp("stop")
    done, took = go_on(command)
    record = site.record("paused")
    site.tap.ok(done.code == 6 and record["consistency"] != "filesystem" and took < SOON,
                f"stopped by a person: exit {done.code} after {took:.0f} s, {taken(record)}")
    site.tap.is_(len(site.guards()), 1, "stopped by a person: the guard stays")
    site.vm.qmp("cont")
    wait_until(lambda: "guard-thawed" in site.journal_states(), what="the guard's thaw")
    clean(site, "stopped by a person", "paused")


def stopped_for_a_moment(site):
    """`stop` and `cont` before we go on: the guest stood still, but who knows for how long?"""
    command = stopped_at(site, "cut", "moment")
    site.vm.qmp("stop")
    site.vm.qmp("cont")
    done, _ = go_on(command)
    record = site.record("moment")
    site.tap.ok(done.code == 5 and taken(record) == ("Failed", "crash") and
                record["evidence"].get("disturbedBy"),
                f"stopped for a moment: exit {done.code}, {taken(record)}: {done.err[:200]}")
    clean(site, "stopped for a moment", "moment")


def reset_in_between(site):
    """`system_reset`: the guest boots anew, and thaws by that."""
    command = stopped_at(site, "cut", "reset")
    site.vm.qmp("system_reset")
    done, took = go_on(command)
    record = site.record("reset")
    site.tap.ok(done.code in (1, 3, 5, 6) and record["consistency"] != "filesystem" and took < SOON,
                f"reset by a person: exit {done.code} after {took:.0f} s, {taken(record)}: {done.err[:200]}")
    site.vm.hang_up()
    site.vm.wait_agent()
    if done.code == 6:
        wait_until(lambda: not site.guards() or "guard-thawed" in site.journal_states(),
                   what="the guard's thaw")
    clean(site, "reset by a person", "reset")


def unplugged_in_between(site):
    """`device_del` of a disk that is frozen: its image is as it was frozen, if it is cut at all."""
    command = stopped_at(site, "cut", "unplugged")
    site.vm.qmp("device_del", {"id": "data-dev"})
    done, took = go_on(command)
    record = site.record("unplugged")
    site.tap.ok(done.code in (0, 1, 5) and "unplugged" in done.err and took < SOON,
                f"unplugged by a person: exit {done.code} after {took:.0f} s, {taken(record)}: {done.err[:200]}")
    torn = record["consistency"] == "filesystem" and [
        disk for disk in ("web", "data") if ext4_needs_recovery(site.image(disk, "unplugged"))]
    site.tap.ok(not torn, f"unplugged by a person: what is called consistent is ({torn})")
    site.vm.sh("umount -l /mnt/data", check=False)
    site.tap.ok(site.vm.sh("date | dd of=/mnt/web/lab-check conv=fsync", check=False).code == 0,
                "unplugged by a person: the other disk is thawed")


# --- a second vmfrost

def other(site, *words):
    """With a state folder of its own, on another monitor."""
    return start_vmfrost([*words, "--qmp", site.vm.path(OTHER)],
                         state_dir=site.state_dir.parent / "other")


def another_vmfrost(site):
    """It cuts without a freeze while the first one has the guest frozen."""
    acked = site.vm.writer_acked()
    command = stopped_at(site, "cut", "first")
    second = other(site, "snapshot", "@second", "--quiesce", "skip").wait()
    done, took = go_on(command)
    record = site.record("first")
    site.tap.ok((done.code, second.code) == (1, 0) and taken(record) == ("Failed", "none") and took < SOON,
                f"another one's snapshot in the window: exits {done.code}, {second.code} after "
                f"{took:.0f} s, {taken(record)}: {done.err[:200]}")
    site.thawed("another one's snapshot")
    site.judge(other(site, "delete", "@second").wait(), 0, "the other one's is deleted")
    clean(site, "another one's snapshot", "first")
    site.tap.ok(site.vm.writer_acked() > acked, "the guest went on writing")


def at_the_same_time(site):
    """Both at once: one of them has the agent's socket."""
    for number in range(3):
        began = time.monotonic()
        commands = [site.start("snapshot", "web@first"), other(site, "snapshot", "@second")]
        first, second = [command.wait() for command in commands]
        what = f"both at once, {number}: exits {first.code}, {second.code}"
        site.tap.ok(0 in (first.code, second.code) and time.monotonic() - began < SOON and
                    all(done.code == 0 or done.err for done in (first, second)), what)
        site.thawed(what)
        if second.code == 0:
            site.judge(other(site, "delete", "@second").wait(), 0, f"{what}: the second one is deleted")
        clean(site, what, "first")


def main():
    with guest_test() as (tap, folder):
        with Site(tap, folder, [Disk("web"), Disk("data")], bus="virtio-scsi",
                  extra=["-qmp", f"unix:{folder}/vm/{OTHER},server=on,wait=off"]) as site:
            site.boot().vm.start_writer("web", "data", pause_us=5000)
            for part in (agent_is_taken, agent_is_waited_for, agent_is_taken_frozen, agent_is_stuck,
                         agent_is_stuck_for_guard, frozen_before_us, half_frozen_before_us,
                         thawed_in_between, stopped_for_a_moment, stopped_in_between,
                         another_vmfrost, at_the_same_time, reset_in_between,
                         unplugged_in_between):
                if ONLY not in part.__name__:
                    continue
                began = time.monotonic()
                try:
                    part(site)
                except LabError:
                    tap.diag(part.__name__)
                    raise
                tap.diag(f"{part.__name__}: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
