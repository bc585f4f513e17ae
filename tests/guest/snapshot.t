#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Snapshots with an agent: are they consistent, of one instant, and can the VM's own command
line start the newest state after all that? Three ways to attach disks, both methods."""

import json
import re
import shutil

from guesttest import Disk, Site, ext4_needs_recovery, guest_test, run, wait_until, xfs_log_clean

FILE_SYSTEMS = 3


def disks():
    return [Disk("web"), Disk("data"), Disk("logs", fs="xfs")]


def is_consistent(site, record, name):
    """The record of a snapshot that went well, and its images."""
    tap, evidence = site.tap, record["evidence"]
    tap.is_((record["phase"], record["readyToUse"], record["consistency"], record["indications"]),
            ("Succeeded", True, "filesystem", ["Online", "GuestAgent"]),
            f"{name}: the record says so")
    tap.is_((evidence["frozenFilesystems"], evidence["thawedFilesystems"]),
            (FILE_SYSTEMS, FILE_SYSTEMS), f"{name}: all that was frozen was thawed")
    tap.ok(0 < evidence["frozenMs"] < evidence["freezeMs"] + 10000, f"{name}: it has the times")
    tap.is_([volume["name"] for volume in record["snapshotVolumes"]["included"]],
            ["web", "data", "logs"], f"{name}: of every disk")
    tap.ok(not ext4_needs_recovery(site.image("web", name)) and
           not ext4_needs_recovery(site.image("data", name)), f"{name}: ext4 needs no recovery")
    tap.ok(xfs_log_clean(site.image("logs", name)), f"{name}: the log of xfs is clean")
    site.thawed(name)


def take(site, name, *options):
    """Takes a snapshot under the writer, and looks at it. How many records it holds at least."""
    acked = site.vm.writer_acked()
    record = site.snapshot(0, name, *options)
    is_consistent(site, record, name)
    site.one_instant("web", "data", acked, name, name)
    site.tidy(name)
    grown = site.vm.writer_acked()
    wait_until(lambda: site.vm.writer_acked() > grown, what="the writer going on")
    return record


def write_marker(site, text):
    site.vm.sh(f"for m in /mnt/*; do echo {text} >$m/marker; done; sync", timeout=30)


def restart(site, text):
    """Kills QEMU and starts it again by the same command line: does it boot the newest state?"""
    write_marker(site, text)
    acked = site.vm.writer_acked()
    argv = list(site.vm.argv)
    site.vm.kill()
    site.one_instant("web", "data", acked, "killed: what the command line opens")
    site.boot()
    site.tap.ok(site.vm.argv == argv, "the command line is unchanged")
    site.tap.is_(site.vm.sh("cat /mnt/web/marker /mnt/data/marker /mnt/logs/marker").out,
                 f"{text}\n" * 3, "killed: the guest finds what it wrote last")
    site.vm.start_writer("web", "data")


def power_off(site):
    """Ends the guest in good order; its images are whole and hold all."""
    acked = site.vm.stop_writer()
    site.vm.sh("sync")
    site.tap.is_(site.vm.quit(), 0, "QEMU quits")
    site.one_instant("web", "data", acked, "off: the images")
    for disk in site.vm.disks:
        done = run("qemu-img", "check", site.vm.path(disk.file), check=False)
        site.tap.is_(done.returncode, 0, f"off: qemu-img check {disk.file}")
    site.expect(0, "recover", "web", what="off: vmfrost finds nothing to do")
    site.tidy("off")


# --- the window -------------------------------------------------------------

# What the log may hold between the freeze's reply and the thaw.
WINDOW = [
    (re.compile(r"qga: awaiting -> synced$"), "the agent's client"),
    (re.compile(r'qmp > \{"execute":"transaction",'), "the cut"),
    (re.compile(r'qmp < \{"return": \{\}, "id": "[0-9a-f]+-\d+"\}$'), "its reply"),
    (re.compile(r"file rename \S+/\.(\w+)\.qcow2\.[0-9a-f]{16}\.next -> \S+/\1\.qcow2$"),
     "a rename"),
]


def kind_of(line):
    return next((kind for pattern, kind in WINDOW if pattern.match(line)), line)


def window_of(lines):
    """What the log says between the freeze's reply and the thaw."""
    texts = [line.split(" ", 3)[3] for line in lines]
    freeze = texts.index('qga > {"execute":"guest-fsfreeze-freeze"} ')
    begin = texts.index('qga < {"return": %d}' % FILE_SYSTEMS, freeze)
    end = texts.index('qga > {"execute":"guest-fsfreeze-thaw"} ', begin)
    return [kind_of(text) for text in texts[begin + 1:end]]


def window(site):
    before = len(site.log_lines())
    record = take(site, "window")
    site.tap.is_(window_of(site.log_lines()[before:]),
                 ["the agent's client", "the cut", "its reply"] + ["a rename"] * 3,
                 "in the window: the cut, its reply, a rename for each disk, and nothing else")
    site.tap.diag(f"frozen for {record['evidence']['frozenMs']} ms")
    site.expect(0, "delete", "web@window")


# What the process may do in the window: talk to three sockets, look at names, rename, wait.
CALLS = {"epoll_wait", "epoll_pwait", "epoll_ctl", "clock_gettime", "recvmsg", "recvfrom", "read",
         "sendmsg", "sendto", "lstat", "newfstatat", "rename", "renameat", "renameat2"}
CALL = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)")


def traced(site, folder):
    """The same, as the kernel sees it."""
    trace = folder / "trace"
    program = folder / "traced"
    program.write_text('#!/bin/sh\nexec strace -f -s 200 -o %s "$VMFROST_TRACED" "$@"\n' % trace,
                       encoding="ascii")
    program.chmod(0o755)
    from lab import vmfrost_program
    import os
    os.environ["VMFROST_TRACED"], os.environ["VMFROST"] = vmfrost_program(), str(program)
    try:
        site.snapshot(0, "traced")
    finally:
        os.environ["VMFROST"] = os.environ["VMFROST_TRACED"]
    print(trace.read_text())
