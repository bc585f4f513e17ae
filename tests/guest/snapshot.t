#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Snapshots with an agent: are they consistent, of one instant, and can the VM's own command
line start the newest state after all that? Three ways to attach disks, both methods."""

import os
import re
import shutil
import subprocess

from guesttest import (Disk, Site, ext4_needs_recovery, guest_test, vmfrost_program,
                       wait_until, xfs_log_clean)

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
    tap.is_([volume["image"] for volume in record["snapshotVolumes"]["included"]],
            [str(site.image(disk.name, name)) for disk in site.vm.disks], f"{name}: of every disk")
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
    """Writes to every disk. (An XFS whose log was recovered shows that until it is written to.)"""
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
    write_marker(site, f"{text}, booted")
    site.vm.start_writer("web", "data")


def power_off(site):
    """Ends the guest in good order; its images are whole and hold all."""
    acked = site.vm.stop_writer()
    site.vm.sh("sync")
    site.tap.is_(site.vm.quit(), 0, "QEMU quits")
    site.one_instant("web", "data", acked, "off: the images")
    for disk in site.vm.disks:
        site.tap.is_(site.damaged_tables(disk.name), [], f"off: the tables of {disk.file}")
    site.expect(0, "recover", "web", what="off: vmfrost finds nothing to do")
    site.tidy("off")


# --- the window -------------------------------------------------------------

# What the log may hold between the freeze's reply and the thaw.
WINDOW = [
    (re.compile(r"qga: awaiting -> synced$"), "the agent's client"),
    (re.compile(r"qmp > \}$"), "the cut's last byte"),  # QEMU has read the others before
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


def logged_window(site):
    before = len(site.log_lines()) if site.log.exists() else 0
    record = take(site, "window")
    site.tap.is_(window_of(site.log_lines()[before:]),
                 ["the agent's client", "the cut's last byte", "its reply"] + ["a rename"] * 3,
                 "in the window: the cut's last byte, its reply, a rename for each disk, and nothing "
                 "else")
    site.tap.diag(f"frozen for {record['evidence']['frozenMs']} ms")
    site.expect(0, "delete", "web@window")


# What the process may do in the window: talk to three sockets, look at names, rename, wait. A name is
# turned in the folder that was looked into: by a handle, which reads nothing.
CALLS = {"epoll_wait", "epoll_pwait", "epoll_ctl", "clock_gettime", "clock_gettime64", "read",
         "recv", "recvfrom", "recvmsg", "send", "sendto", "sendmsg", "lstat", "lstat64",
         "newfstatat", "fstatat64", "rename", "renameat", "renameat2", "openat O_PATH", "fcntl",
         "close"}


def calls_between(trace, begin, end):
    """The system calls of the process that sent `begin`, from its answer until it sent `end`."""
    lines = trace.read_text(encoding="utf-8", errors="replace").splitlines()
    at = next(i for i, line in enumerate(lines) if begin in line and "send" in line)
    pid = lines[at].split()[0]
    own = [line for line in lines[at + 1:] if line.split()[0] == pid]
    answer = next(i for i, line in enumerate(own) if r'{\"return\": %d}' % FILE_SYSTEMS in line)
    last = next(i for i, line in enumerate(own) if end in line)
    return {line.split(None, 1)[1].replace("<... ", "").replace(" ", "(").split("(")[0]
            + (" O_PATH" if "O_PATH|O_DIRECTORY" in line else "") for line in own[answer + 1:last]}


def traced_window(site, trace):
    """The same as the kernel sees it, without a log of vmfrost's own."""
    argv = ["strace", "-f", "-s", "200", "-o", trace, vmfrost_program(), "snapshot", "web@traced"]
    # A sanitizer cannot look for leaks in what is traced already.
    env = {**os.environ, "VMFROST_STATE_DIR": str(site.state_dir), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False)
    site.tap.is_(done.returncode, 0, "traced: exit 0")
    site.tap.is_(calls_between(trace, "guest-fsfreeze-freeze", "guest-fsfreeze-thaw") - CALLS,
                 set(), "in the window: messages, looks at names and renames, nothing else")
    site.expect(0, "delete", "web@traced")


def without_a_disk(site):
    nodes = [entry["inserted"]["file"] for entry in site.vm.qmp("query-block")
             if entry["device"] == "logs" or entry["qdev"].endswith("logs-dev")]
    record = site.snapshot(0, "two-disks", "--exclude", "logs")
    volumes = record["snapshotVolumes"]
    site.tap.is_([volume["name"] for volume in volumes["included"]], ["web", "data"],
                 "--exclude: the other disks are in the snapshot")
    site.tap.is_([(volume["name"], bool(volume["reason"] and volume["message"]))
                  for volume in volumes["excluded"]], [("logs", True)],
                 "--exclude: this one is listed as left out, with a reason")
    site.tap.ok(not site.image("logs", "two-disks").exists() and nodes == [
        entry["inserted"]["file"] for entry in site.vm.qmp("query-block")
        if entry["device"] == "logs" or entry["qdev"].endswith("logs-dev")],
                "--exclude: and not touched")
    site.tidy("--exclude")
    before = site.listing(), site.graph()
    site.expect(2, "snapshot", "web@nothing", "--exclude", "lgos",
                what="--exclude of a disk that is not there: exit 2")
    site.tap.is_((site.listing(), site.graph()), before, "and nothing is changed")
    site.expect(0, "delete", "web@two-disks")


# --- one guest ----------------------------------------------------------------

def hidden(site):
    return {name for name in site.listing() if name.startswith(".")}


def life(site, *options):
    """Two snapshots, a power cut, a third one, two deletions."""
    acked = site.vm.writer_acked()
    take(site, "one", *options)
    take(site, "two", *options)
    before = hidden(site)
    site.tap.ok(before, "QEMU knows its overlays by hidden links")
    restart(site, "after-two")
    take(site, "three", *options)
    site.tap.is_(before & hidden(site), set(), "those of the dead QEMU are swept")

    write_marker(site, "after-three")
    for name in "two", "three":
        site.expect(0, "delete", f"web@{name}")
        site.thawed(f"{name} deleted")
        site.tidy(f"{name} deleted")
        grown = site.vm.writer_acked()
        wait_until(lambda last=grown: site.vm.writer_acked() > last, what="the writer going on")
    site.tap.is_([record["name"] for record in site.records()], ["one"], "the first one stays")
    site.one_instant("web", "data", acked, "and is what it was", "one")
    site.tap.ok(not ext4_needs_recovery(site.image("web", "one")), "and consistent")
    site.tap.is_(site.vm.sh("cat /mnt/*/marker").out, "after-three\n" * 3,
                 "the guest's files are what they were")

    # This QEMU has opened web@two.qcow2 and knows it by that name, whatever it is now.
    again = site.vm.writer_acked()
    take(site, "two", *options)
    restart(site, "after-two-again")
    site.expect(0, "recover", "web", what="the next contact: exit 0")
    site.tidy("two again, restarted")
    site.one_instant("web", "data", again, "two again, restarted", "two")
    for name in "two", "one":
        site.expect(0, "delete", f"web@{name}")
    site.tidy("all deleted")
    power_off(site)


def short_life(site, *options):
    """Two snapshots and their deletion by the QEMU that made them."""
    for name in "one", "two":
        take(site, name, *options)
    for name in "two", "one":
        site.expect(0, "delete", f"web@{name}")
        site.thawed(f"{name} deleted")
        site.tidy(f"{name} deleted")
    power_off(site)


def main():
    with guest_test() as (tap, folder):
        tap.diag("-drive, virtio-blk, existing")
        with Site(tap, folder / "a", disks()) as site:
            site.boot().vm.start_writer("web", "data")
            logged_window(site)
            if shutil.which("strace"):
                traced_window(site, folder / "trace")
            without_a_disk(site)
            life(site)
        tap.diag("-blockdev, virtio-blk on an iothread, preopened")
        with Site(tap, folder / "b", disks(), attach="blockdev", iothread=True) as site:
            site.boot().vm.start_writer("web", "data")
            life(site, "--method", "preopened")
        tap.diag("-drive, virtio-scsi on an iothread, existing")
        with Site(tap, folder / "c", disks(), bus="virtio-scsi", iothread=True) as site:
            site.boot().vm.start_writer("web", "data")
            short_life(site)


if __name__ == "__main__":
    main()
