#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Going back to a snapshot, on a real QEMU without a guest: every kind of disk, every refusal, and
kill -9 of vmfrost and of QEMU at every step.

Whatever was killed: the launcher starts all disks of the one state or all of the other, and after
`recover` there is no stray name, node, job or journal, and no VM left paused.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (CLUSTER, SIZE, LabError, Qemu, Tap, blockdev, drive, finish, go_on, image_info,
                  image_ok, lab, make_image, options, run, wait_until)

ONLY = os.environ.get("ONLY", "")
FULL = os.environ.get("VMFROST_TEST_FULL", "")
FLOWS = lab.PROJECT / "src" / "flows"
DISKS = ["web", "data"]
IMAGES = [f"{disk}.qcow2" for disk in DISKS]


def words_for(attach, disks=None, **options):
    form = drive if attach == "drive" else blockdev
    return [word for disk in disks or DISKS for word in form(disk, **options)]


def write_all(vm, pattern, cluster, disks=None):
    for disk in disks or DISKS:
        vm.write(disk, pattern, cluster)


def events(vm):
    """What the VM told since the last call, of what matters here."""
    vm.qmp("query-status")
    told = vm._monitor.events
    names = [event["event"] for event in told]
    told.clear()
    return [name for name in names if name in ("STOP", "RESET", "RESUME", "SHUTDOWN")]


def records(vm):
    return {record["name"]: record for record in vm.vmfrost("list").result}


def chain(vm, disk, nodes):
    """The images that a disk runs on, by their nodes; filters are passed."""
    below = {(parent, name): child.partition(":")[2] for parent, name, child, _ in vm.graph()[1]}
    found, node = [], vm.root(disk)["node-name"]
    while node:
        passes = nodes[node]["drv"] == "throttle"
        found += [] if passes else [node]
        node = below.get((f"block-driver:{node}", "file" if passes else "backing"))
    return found


def stray(vm, snapshots, disks=None):
    """What is there and should not be, or the other way round: a list of sentences."""
    wrong = []
    disks = disks or DISKS
    alive = vm.process.poll() is None
    wanted = {f"{disk}.qcow2" for disk in disks}
    wanted |= {f"{disk}@{name}.qcow2" for disk in disks for name in snapshots}
    names = {entry.name for entry in vm.disks.iterdir()}
    opened = vm.opened() if alive else {}
    for name in sorted(wanted - names):
        wrong.append(f"{name} is missing")
    for name in sorted(names - wanted):
        if not re.fullmatch(r"\..*\.[0-9a-f]{16}", name) or vm.inode(name) not in opened:
            wrong.append(f"{name} is stray")
    if set(records(vm)) != set(snapshots):
        wrong.append(f"records: {sorted(records(vm))} and not {sorted(snapshots)}")
    if vm.journal():
        wrong.append("there is a journal")
    if not alive:
        return wrong
    if vm.jobs():
        wrong.append(f"jobs: {vm.jobs()}")
    nodes = {node["node-name"]: node for node in vm.qmp("query-named-block-nodes", flat=True)}
    edges = vm.graph()[1]
    used = {name for disk in disks for name in chain(vm, disk, nodes)}
    for name, node in sorted(nodes.items()):
        if node["drv"] == "qcow2" and name not in used:
            wrong.append(f"node {name} is stray")
        if node["drv"] == "file" and not any(edge[2] == f"block-driver:{name}" for edge in edges):
            wrong.append(f"node {name} is stray")
    for disk in disks:
        inode = vm.inode(f"{disk}.qcow2")
        if not any(mode[0] == "w" for mode in opened.get(inode, ())):
            wrong.append(f"QEMU does not write to {disk}.qcow2")
        for name in snapshots:
            if any(mode[0] == "w" for mode in opened.get(vm.inode(f"{disk}@{name}.qcow2"), ())) and \
                    "-blockdev" not in vm.words:
                wrong.append(f"{disk}@{name}.qcow2 is open for writing")
    return wrong


def content(vm, top, disks=None, **snapshots):
    """What is wrong with the content of the disks and of snapshots."""
    wrong = []
    for disk in disks or DISKS:
        for name, clusters in (("", top), *((f"@{key}", value) for key, value in snapshots.items())):
            found = vm.read(f"{disk}{name}.qcow2", len(clusters))
            if found != clusters:
                wrong.append(f"{disk}{name}.qcow2: {found} and not {clusters}")
        if vm.process.poll() is None:
            found = vm.sees(disk, len(top))
            if found != top:
                wrong.append(f"{disk} as its guest sees it: {found} and not {top}")
    return wrong


def restore(vm, name, *words, code=0):
    """A restore that has to end with this code: its Out."""
    out = vm.vmfrost("restore", "@" + name, *words)
    if out.code != code:
        raise LabError(f"restore {name}: exit {out.code}: {out.error} {out.next} {out.err}")
    return out


# --- every kind of disk -------------------------------------------------------------

THREAD = ["-object", "iothread,id=thread"]
SCSI = ["-device", "virtio-scsi-pci,id=scsi"]
THROTTLE = ["-object", "throttle-group,id=slow,x-iops-total=100000"]
KINDS = {
    "virtio-blk": ([], {}),
    "virtio-blk, iothread": (THREAD, {"device_options": ",iothread=thread"}),
    "virtio-scsi": (SCSI, {"device": "scsi-hd"}),
    "virtio-scsi, iothread": (THREAD + ["-device", "virtio-scsi-pci,id=scsi,iothread=thread"],
                              {"device": "scsi-hd"}),
    "IDE": ([], {"device": "ide-hd", "device_options": ",bus=ide.%d"}),
    "NVMe": ([], {"device": "nvme", "device_options": ",serial=number%d"}),
}


def throttled():
    words = list(THROTTLE)
    for disk in DISKS:
        words += ["-blockdev", f"driver=file,filename={disk}.qcow2,node-name={disk}-file",
                  "-blockdev", f"driver=qcow2,file={disk}-file,node-name={disk}-format",
                  "-blockdev", f"driver=throttle,throttle-group=slow,file={disk}-format,"
                  f"node-name={disk}", "-device", f"virtio-blk-pci,drive={disk},id={disk}-dev"]
    return words


def story(t, name, words, below_filter=False):
    """Back to one, to what was before, to one again; a restart between."""
    wrong = []

    def look(when, found):
        wrong.extend(f"{when}: {line}" for line in found)

    with Qemu(words, IMAGES) as vm:
        write_all(vm, 1, 0)
        vm.take("one")
        write_all(vm, 2, 1)
        vm.take("two")
        write_all(vm, 3, 2)
        roots = [vm.root(disk)["node-name"] for disk in DISKS]
        events(vm)
        out = restore(vm, "one", "--reset", "--keep-name", "before")
        told = events(vm)
        if told != ["STOP", "RESET", "RESUME"]:
            look("back to one", [f"events: {told}"])
        if vm.status() != "running":
            look("back to one", [f"the VM is {vm.status()}"])
        if below_filter:
            if [vm.root(disk)["node-name"] for disk in DISKS] != roots:
                look("back to one", ["the filters are gone"])
        look("back to one", stray(vm, ["one", "two", "before"]))
        look("back to one", content(vm, [1, 0, 0], one=[1, 0, 0], two=[1, 2, 0], before=[1, 2, 3]))
        document = out.document
        if (document.get("kept"), document.get("online")) != ("before", True) or \
                [disk["current"] for disk in document["disks"]] != \
                [str(vm.disks / image) for image in IMAGES] or \
                [disk["image"] for disk in document["disks"]] != \
                [str(vm.disks / f"{disk}@one.qcow2") for disk in DISKS]:
            look("back to one", [f"document: {document}"])
        kept = records(vm)["before"]
        if (kept["restoredTo"], kept["phase"], kept["readyToUse"], kept["consistency"]) != \
                ("one", "Succeeded", True, "crash"):
            look("back to one", [f"record: {kept}"])
        write_all(vm, 4, 3)
        restore(vm, "before", "--reset", "--discard")
        look("to what was before", content(vm, [1, 2, 3, 0], one=[1, 0, 0], two=[1, 2, 0],
                                           before=[1, 2, 3, 0]))
        look("to what was before", stray(vm, ["one", "two", "before"]))
        write_all(vm, 5, 3)
        vm.restart()
        look("restart", content(vm, [1, 2, 3, 5], one=[1, 0, 0]))
        events(vm)
        restore(vm, "one", "--reset", "--discard")
        look("to one again", content(vm, [1, 0, 0, 0], two=[1, 2, 0], before=[1, 2, 3]))
        if events(vm) != ["STOP", "RESET", "RESUME"]:
            look("to one again", ["it was not reset"])
        write_all(vm, 6, 1)
        vm.take("three")
        write_all(vm, 7, 1)
        look("a snapshot after that", content(vm, [1, 7, 0, 0], three=[1, 6, 0], one=[1, 0, 0]))
        restore(vm, "two", "--reset", "--discard")
        look("to two", content(vm, [1, 2, 0, 0], three=[1, 6, 0], before=[1, 2, 3]))
        vm.restart()
        vm.vmfrost("recover")
        look("the end", stray(vm, ["one", "two", "three", "before"]))
        for entry in vm.disks.iterdir():
            if not image_ok(entry, leaks=True):
                look("the end", [f"{entry.name} has errors"])
    t.is_(wrong, [], f"{name}: back and forth")


def kinds(t):
    for attach in ("drive", "blockdev"):
        for kind, (before, options) in KINDS.items():
            form = drive if attach == "drive" else blockdev
            words = list(before)
            for number, disk in enumerate(DISKS):
                mine = {key: value.replace("%d", str(number)) for key, value in options.items()}
                words += form(disk, **mine)
            story(t, f"{kind}, -{attach}", words)
    story(t, "below a throttle filter", throttled(), below_filter=True)
    story(t, "direct I/O, -blockdev", words_for("blockdev", file_options=",cache.direct=on"))


def modes(t):
    """What the disk was opened with, it is opened with again."""
    wrong = []
    words = blockdev("web", options=",detect-zeroes=unmap,discard=unmap,cache.no-flush=on",
                     file_options=",cache.direct=on,discard=unmap")
    with Qemu(words) as vm:
        vm.take("one")
        before = vm.root("web")
        restore(vm, "one", "--reset")
        after = vm.root("web")
        for key in ("detect_zeroes", "cache", "ro"):
            if before[key] != after[key]:
                wrong.append(f"{key}: {after[key]} and not {before[key]}")
        if "wd" not in vm.opened()[vm.inode("web.qcow2")]:
            wrong.append("the restored disk is not open for direct I/O")
    t.is_(wrong, [], "cache modes and detect-zeroes")


def states(t):
    """A VM that did not run does not run afterwards; but it is reset."""
    for state, wanted in (("prelaunch", ["RESET"]), ("paused", ["RESET"])):
        wrong = []
        with Qemu(words_for("drive"), IMAGES, running=state != "prelaunch") as vm:
            write_all(vm, 1, 0)
            vm.take("one", "--quiesce", "skip")
            write_all(vm, 2, 0)
            if state == "paused":
                vm.qmp("stop")
            events(vm)
            restore(vm, "one", "--reset")
            told = events(vm)
            if told != wanted or vm.status() == "running":
                wrong.append(f"events {told}, {vm.status()}")
            wrong += content(vm, [1])
        t.is_(wrong, [], f"a VM that is {state} stays stopped, and is reset")


def raw(t):
    """The first snapshot of a raw image is that image; what the VM runs on since has a name that can
    be turned."""
    wrong = []
    with Qemu(drive("web", fmt="raw"), ["web.raw"]) as vm:
        vm.write("web", 1)
        vm.take("one")
        out = vm.vmfrost("restore", "@one", "--reset")
        vm.write("web", 2, 1)
        if out.code or vm.sees("web", 2) != [1, 2]:
            wrong.append(f"{out.code} {out.error}")
        info = image_info(vm.disks / "web+one.qcow2")
        if (info["backing-filename"], info["backing-filename-format"]) != ("web.raw", "raw"):
            wrong.append(f"it stands on {info}")
        restore(vm, "one", "--reset", "--discard")
        if vm.sees("web", 2) != [1, 0]:
            wrong.append(f"again: {vm.sees('web', 2)}")
        vm.words = drive("web", file="web+one.qcow2")
        vm.restart()
        vm.write("web", 3, 1)
        restore(vm, "one", "--reset")
        if vm.sees("web", 2) != [1, 0] or vm.names().count("web+one.qcow2") != 1:
            wrong.append(f"after a restart: {vm.sees('web', 2)} {vm.names()}")
    t.is_(wrong, [], "a raw image, and its launcher changed since")

    with Qemu(drive("web", fmt="raw"), ["web.raw"]) as vm:
        vm.take("one")
        vm.restart()
        refused(t, vm, "a launcher that was not changed", "runs on the snapshot's own image",
                "@one", "--reset", sees=None)


def colons(t):
    """Names that QEMU would take for something else; a folder with a link to it."""
    wrong = []
    with Qemu(drive("web", file="./we:b.qcow2"), ["we:b.qcow2"]) as vm:
        vm.write("web", 1)
        vm.take("one")
        vm.write("web", 2)
        restore(vm, "one", "--reset")
        wrong += [] if vm.sees("web", 1) == [1] else ["colon: not restored"]
        vm.restart()
        wrong += [] if vm.sees("web", 1) == [1] else ["colon: not after a restart"]
    with Qemu() as vm:
        other = vm.folder / "other"
        other.mkdir()
        os.chmod(other, 0o777)
        (other / "link.qcow2").symlink_to(vm.disks / "web.qcow2")
        vm.words = drive("web", file=str(other / "link.qcow2"))
        vm.restart()
        vm.write("web", 1)
        vm.take("one")
        vm.write("web", 2)
        restore(vm, "one", "--reset")
        vm.restart()
        wrong += [] if vm.sees("web", 1) == [1] else ["link: not restored"]
        backing = image_info(vm.disks / "web.qcow2")["backing-filename"]
        if not backing.startswith("/"):
            wrong.append(f"link: it stands on {backing}")
    t.is_(wrong, [], "a name with a colon; a launcher that opens a symbolic link")


def threes(t):
    """How long it takes: for people."""
    disks = ["web", "data", "logs"]
    for attach in ("drive", "blockdev"):
        taken, stood = [], []
        with Qemu(words_for(attach, disks), [f"{disk}.qcow2" for disk in disks]) as vm:
            write_all(vm, 1, 0, disks)
            vm.take("one")
            for _ in range(5):
                write_all(vm, 2, 0, disks)
                vm._monitor.events.clear()
                began = time.monotonic()
                restore(vm, "one", "--reset", "--discard")
                taken.append((time.monotonic() - began) * 1000)
                vm.qmp("query-status")
                stamps = {event["event"]: event["timestamp"]["seconds"] * 1e3
                          + event["timestamp"]["microseconds"] / 1e3
                          for event in vm._monitor.events}
                stood.append(stamps["RESUME"] - stamps["STOP"])
            wrong = content(vm, [1], disks) + stray(vm, ["one"], disks)
        t.is_(wrong, [], f"three disks, -{attach}")
        t.diag(f"three disks, -{attach}: {sorted(taken)[2]:.0f} ms for the command, the VM stood "
               f"still for {sorted(stood)[2]:.0f} ms (medians of 5)")


# --- refused before anything is touched ----------------------------------------------

def refused(t, vm, what, words, *arguments, code=1, sees=1, running=True):
    """A restore that is refused with these words and has changed nothing."""
    wrong = []
    before = vm.graph(), vm.names(), sorted(records(vm))
    vm.qmp("query-status")
    events(vm)
    out = vm.vmfrost("restore", *arguments)
    if out.code != code or not re.search(words, out.error + " " + out.next):
        wrong.append(f"exit {out.code}: {out.error} / {out.next}")
    if (vm.graph(), vm.names(), sorted(records(vm))) != before:
        wrong.append(f"changed: {vm.names()} {sorted(records(vm))} {vm.graph()} {before}")
    if vm.journal():
        wrong.append("there is a journal")
    if events(vm):
        wrong.append("the VM was touched")
    if sees is not None and vm.sees("web", 1) != [sees]:
        wrong.append(f"content: {vm.sees('web', 1)}")
    t.is_(wrong, [], f"refused: {what}")
    return out


def refusals(t):
    with Qemu(words_for("drive"), IMAGES) as vm:
        write_all(vm, 9, 0)
        vm.take("one")
        write_all(vm, 1, 0)
        out = refused(t, vm, "a VM that runs", "the VM is running", "@one")
        t.ok("--reset" in out.next, "... and says what to do")
        refused(t, vm, "no such snapshot", "no snapshot", "@two", "--reset")
        refused(t, vm, "a name that is taken", "exists already", "@one", "--reset", "--keep-name",
                "one")
        refused(t, vm, "a name for what is thrown away", "makes no sense", "@one", "--reset",
                "--discard", "--keep-name", "two", code=2)
        refused(t, vm, "a bad name", "is no name", "@one", "--reset", "--keep-name", "../two",
                code=2)
        taken = vm.disks / "data@two.qcow2"
        taken.touch()
        refused(t, vm, "a file in the way", "data@two.qcow2 exists already", "@one", "--reset",
                "--keep-name", "two")
        taken.unlink()
        refused(t, vm, "no time for it", "deadline", "@one", "--reset", "--deadline", "1ms", code=4)

        sealed, aside = vm.disks / "data@one.qcow2", vm.disks / "aside"
        sealed.rename(aside)
        refused(t, vm, "an image that is gone", "data@one.qcow2 is missing", "@one",
                "--reset")
        make_image(sealed)
        refused(t, vm, "another image in its place", "not the image of the snapshot", "@one",
                "--reset")
        sealed.unlink()
        aside.rename(sealed)

        record = next(Path(vm.state).glob("vms/*/records/one.json"))
        text = record.read_text()
        for change, words in (({"readyToUse": False, "phase": "Failed"}, "no content"),
                              ({"cuts": []}, "does not say which images")):
            document = json.loads(text)
            document.update(change)
            record.write_text(json.dumps(document))
            refused(t, vm, f"a record with {change}", words, "@one", "--reset")
        document = json.loads(text)
        document["cuts"][1]["size"] = SIZE // 2
        record.write_text(json.dumps(document))
        refused(t, vm, "a record of another size", "another size|bytes large", "@one", "--reset")
        record.write_text(text)

        vm.qmp("block_resize", node_name=vm.root("data")["node-name"], size=2 * SIZE)
        refused(t, vm, "a disk that was resized since", "data: it has another size", "@one",
                "--reset")

    with Qemu(words_for("drive"), IMAGES) as vm:
        vm.take("one")
        write_all(vm, 1, 0)
        node = vm.root("data")["node-name"]
        vm.qmp("blockdev-add", driver="null-co", node_name="sink", size=SIZE, read_zeroes=True)
        vm.qmp("blockdev-backup", job_id="backup", device=node, target="sink", sync="none")
        refused(t, vm, "a job on one of the disks", 'job "backup"', "@one", "--reset")
        vm.qmp("job-cancel", id="backup")
        wait_until(lambda: not vm.jobs(), what="the job's end")
        vm.qmp("blockdev-del", node_name="sink")
        vm.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(vm.run / "nbd")}})
        vm.qmp("block-export-add", type="nbd", id="export", node_name=node, name="data")
        refused(t, vm, "an export of one of the disks", "data: it is exported", "@one", "--reset")

    # Whatever goes on with a disk that the snapshot does not have is of no interest.
    wrong = []
    with Qemu(words_for("drive"), IMAGES) as vm:
        vm.write("web", 1)
        vm.take("one", "--exclude", "data")
        write_all(vm, 2, 0)
        node = vm.root("data")["node-name"]
        vm.qmp("blockdev-add", driver="null-co", node_name="sink", size=SIZE, read_zeroes=True)
        vm.qmp("blockdev-backup", job_id="backup", device=node, target="sink", sync="none")
        restore(vm, "one", "--reset")
        if (vm.sees("web", 1), vm.sees("data", 1), vm.jobs()) != ([1], [2], ["backup"]):
            wrong.append(f"{vm.sees('web', 1)} {vm.sees('data', 1)} {vm.jobs()}")
    t.is_(wrong, [], "a disk that the snapshot does not have is left alone")

    with Qemu(words_for("drive"), IMAGES) as vm:
        vm.write("web", 1)
        vm.take("one")
        vm.words = drive("web")
        vm.restart()
        vm.vmfrost("recover")
        refused(t, vm, "a disk that is not there now", "data .*is not in the VM now", "@one",
                "--reset")

    for words in (["-no-reboot"], ["-action", "reboot=shutdown"]):
        if words[0] not in options():
            t.diag(f"this QEMU has no {words[0]}: nothing that could be refused")
            continue
        with Qemu(words_for("drive") + words, IMAGES) as vm:
            vm.write("web", 1)
            vm.take("one")
            refused(t, vm, f"{' '.join(words)}", "a reset would end it", "@one", "--reset")


def not_opened(t):
    """What QEMU does not open is found out while the guest runs."""
    for attach in ("drive", "blockdev"):
        with Qemu(words_for(attach), IMAGES) as vm:
            vm.take("one")
            vm.take("two")
            vm.take("three")
            write_all(vm, 1, 0)
            base = vm.disks / "data@one.qcow2"
            with open(base, "r+b") as image:
                image.seek(36)  # the size of its first table
                kept = image.read(4)
                image.seek(36)
                image.write(bytes(4))
                image.flush()
                refused(t, vm, f"a base below that QEMU does not take, -{attach}",
                        "disk data.*cannot open its overlay", "@two", "--reset")
                image.seek(36)
                image.write(kept)


# --- stopped, in time and too late -----------------------------------------------------

def interrupted(t):
    """Ctrl-C is heard up to the point of no return."""
    for point, restored in (("overlays+", False), ("mirror", False), ("mirror+", False),
                            ("flip+", True), ("pivot+", True), ("reset+", True)):
        wrong = []
        with Qemu(words_for("drive"), IMAGES) as vm:
            write_all(vm, 1, 0)
            vm.take("one")
            write_all(vm, 2, 0)
            events(vm)
            command = vm.stop_at(point, "restore", "@one", "--reset", "--discard")
            command.signal(signal.SIGINT)
            out = go_on(command)
            if out.code != (0 if restored else 1):
                wrong.append(f"exit {out.code}: {out.error}")
            wrong += content(vm, [1 if restored else 2]) + stray(vm, ["one"])
            told = events(vm)
            if vm.status() != "running" or ("RESET" in told) != restored:
                wrong.append(f"{vm.status()}, {told}")
        t.is_(wrong, [], f"Ctrl-C at {point}: {'it is finished' if restored else 'all is undone'}")


def dies(t):
    """QEMU dies while vmfrost goes on."""
    keep, discard = ["--keep-name", "kept"], ["--discard"]
    for point, restored, what in (
            ("overlays+", False, keep), ("guard+", False, keep), ("halt+", False, keep),
            ("mirror+", False, keep), ("mirror+", False, discard), ("flip+", True, keep),
            ("pivot", True, keep), ("pivot", True, discard), ("pivot+", True, keep),
            ("reset", True, keep), ("reset+", True, keep), ("go-on+", True, keep),
            ("tidy", True, keep), ("tidy+", True, keep), ("tidy+", True, discard),
            ("record", True, keep)):
        wrong = []
        with Qemu(words_for("blockdev"), IMAGES) as vm:
            write_all(vm, 1, 0)
            vm.take("one")
            write_all(vm, 2, 0)
            command = vm.stop_at(point, "restore", "@one", "--reset", *what)
            vm.kill()
            command.signal(signal.SIGCONT)
            while command.process.poll() is None:  # another attempt stops there, too
                if lab_state(command.pid) == "T":
                    command.signal(signal.SIGCONT)
                time.sleep(0.005)
            out = finish(command)
            there = ["one", "kept"] if restored and what == keep else ["one"]
            if (out.code == 0) != restored or vm.journal():
                wrong.append(f"exit {out.code}: {out.error} {out.next}, {vm.journal()}")
            if restored and point not in ("tidy+", "record") and not any(
                    "QEMU has ended" in line for line in out.document["warnings"]):
                wrong.append(f"warnings: {out.document['warnings']}")
            wrong += content(vm, [1 if restored else 2])
            vm.start()
            vm.vmfrost("recover")
            wrong += content(vm, [1 if restored else 2]) + stray(vm, there)
        t.is_(wrong, [], f"QEMU dies at {point}, {what[0]}: "
                         f"{'it is restored' if restored else 'nothing is'}")


def busy(vm, disk="data"):
    """Somebody cancels the change of a disk, and keeps it busy with a job of his own."""
    job = next(job for job in vm.jobs() if job.endswith("-1"))
    node = [node["node-name"] for node in vm.qmp("query-named-block-nodes", flat=True)
            if node["drv"] == "qcow2" and node["node-name"] in vm.chain(disk)][0]
    vm.qmp("job-cancel", id=job)
    wait_until(lambda: any(each["id"] == job and each["status"] == "concluded"
                           for each in vm.qmp("query-jobs")), what="the job's end")
    vm.qmp("job-dismiss", id=job)
    vm.qmp("blockdev-add", driver="null-co", node_name="sink", size=SIZE, read_zeroes=True)
    vm.qmp("blockdev-backup", job_id="backup", device=node, target="sink", sync="none")


def resisted(t):
    """Once the names are turned, somebody is in the way."""
    wrong = []
    with Qemu(words_for("drive"), IMAGES) as vm:
        write_all(vm, 1, 0)
        vm.take("one")
        write_all(vm, 2, 0)
        command = vm.stop_at("flip+", "restore", "@one", "--reset", "--keep-name", "kept")
        node = vm.chain("data")[0]
        busy(vm)
        command.signal(signal.SIGCONT)
        time.sleep(1)
        vm.qmp("job-cancel", id="backup")
        out = finish(command)
        vm.qmp("blockdev-del", node_name="sink")
        if out.code != 0:
            wrong.append(f"exit {out.code}: {out.error}")
        wrong += content(vm, [1], kept=[2]) + stray(vm, ["one", "kept"])
    t.is_(wrong, [], "a job in the way for a moment: it is tried again")

    for then in ("recover", "restart") if FULL else ("recover",):
        wrong = []
        with Qemu(words_for("drive"), IMAGES) as vm:
            write_all(vm, 1, 0)
            vm.take("one")
            write_all(vm, 2, 0)
            command = vm.stop_at("flip+", "restore", "@one", "--reset", "--keep-name", "kept")
            busy(vm)
            out = go_on(command)
            if out.code != 5 or "the VM is stopped" not in out.error or \
                    "start the VM anew" not in out.next:
                wrong.append(f"exit {out.code}: {out.error} / {out.next}")
            if vm.status() != "paused" or not vm.journal():
                wrong.append(f"{vm.status()}, journal {vm.journal()}")
            wrong += [f"names: {line}" for disk in DISKS for line in
                      ([] if vm.read(f"{disk}.qcow2", 1) == [1] else [disk])]
            if then == "recover":
                vm.qmp("job-cancel", id="backup")
                wait_until(lambda: "backup" not in vm.jobs(), what="the job's end")
                vm.qmp("blockdev-del", node_name="sink")
            else:
                vm.restart()
            out = vm.vmfrost("recover")
            if out.code or out.document.get("action") != "rolled-forward":
                wrong.append(f"recover: {out.code} {out.error} {out.document}")
            if vm.status() != "running":
                wrong.append(f"recover: the VM is {vm.status()}")
            wrong += content(vm, [1], kept=[2]) + stray(vm, ["one", "kept"])
        t.is_(wrong, [], f"a job that stays in the way: the VM stands still, and {then} finishes it")


# --- kill -9 -----------------------------------------------------------------------------

def points():
    """All places of a restore where the process can be told to kill itself."""
    steps = re.findall(r'\.name = "([^"]+)"', (FLOWS / "restore.c").read_text())
    inside = [point for source in sorted(FLOWS.glob("*.c"))
              for point in re.findall(r'vf_test_point\(flow, "([^"]+)"\)', source.read_text())]
    found = []
    for step in steps:
        found += [step, *(point for point in inside if point.startswith(step + ".")), step + "+"]
    return list(dict.fromkeys(found))


VARIANTS = {
    "alive": "QEMU goes on",
    "qemu": "QEMU dies, too",
    "again": "QEMU dies and is started again",
    "before": "QEMU dies before it, and is started again",
    "twice": "so is its recovery, at every step",
}
UNDO = {"undo-mirror": "mirror.ready", "undo-halt": "halt+", "undo-files": "overlays+",
        "undo-record": "overlays+"}
TURNED = ("flip.first", "flip+", "pivot", "reset", "go-on", "tidy", "record")


def die(vm, point, variant, words):
    """A restore that is killed at a point. False if it never came there."""
    at = UNDO.get(point.rstrip("+"))
    tests = f"kill:{point}" if not at else f"stop:{at},kill:{point}"
    if variant == "before":
        try:
            command = vm.stop_at(point, "restore", "@one", "--reset", *words)
        except LabError:
            return False
        vm.kill()
        command.signal(signal.SIGKILL)
        command.signal(signal.SIGCONT)
        return finish(command).code == -signal.SIGKILL
    command = vm.start_vmfrost("restore", "@one", "--reset", *words,
                               env={"VMFROST_TEST_AT": tests})
    if at:
        wait_until(lambda: lab_state(command.pid) in ("T", "", "Z"), what=f"the stop at {at}",
                   interval=0.002)
        command.signal(signal.SIGINT)
        command.signal(signal.SIGCONT)
    return finish(command).code == -signal.SIGKILL


def lab_state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def guards_end(vm):
    """The guard turns what is left to be turned, and ends."""
    mark = f"VMFROST_STATE_DIR={vm.state}".encode()

    def none():
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "comm").read_text() == "vmfrost-guard\n" and \
                        mark in (entry / "environ").read_bytes().split(b"\0"):
                    return False
            except OSError:
                pass
        return True

    wait_until(none, what="the guard's end", interval=0.002)


def recover_killed(vm, wrong):
    """Recoveries that are killed, one after the other, at each of their steps."""
    steps = re.findall(r'\.name = "([^"]+)"', (FLOWS / "restore-recover.c").read_text())
    for step in steps:
        for point in (step, step + "+"):
            out = vm.vmfrost("recover", env={"VMFROST_TEST_AT": f"kill:{point}"})
            if out.code not in (0, -signal.SIGKILL):
                wrong.append(f"recover, killed at {point}: exit {out.code}: {out.error}")


def kill_case(vm, number, point, variant, discard, kept, wrong):
    """One case; the VM has a snapshot "one" before and after it, and runs."""
    pattern = 10 + number % 200
    write_all(vm, pattern, 1)
    name = f"kept{number}"
    words = ["--discard"] if discard else ["--keep-name", name]
    if not die(vm, point, variant, words):
        kept.update({each: records(vm)[each] for each in records(vm) if each.startswith("kept")})
        return False
    turned = point.startswith(TURNED)
    top = [1, 0] if turned else [1, pattern]
    if variant != "alive":
        guards_end(vm)
    if variant in ("qemu", "again"):
        vm.kill()
    if variant in ("qemu", "again", "before"):
        wrong += [f"before recovery: {line}" for line in content(vm, top, one=[1, 0])]
    if variant in ("again", "before"):
        vm.start()
        write_all(vm, 5, 2)
        top.append(5)
    if variant == "twice":
        recover_killed(vm, wrong)
    out = vm.vmfrost("recover")
    if out.code:
        wrong.append(f"recover: exit {out.code}: {out.error} {out.next}")
    action = "rolled-forward" if turned else "rolled-back"
    if variant != "twice" and out.document.get("found") and out.document.get("action") != action:
        wrong.append(f"it is {out.document.get('action')}")
    if turned and not discard:
        kept[name] = None
        wrong += content(vm, top, one=[1, 0], **{name: [1, pattern]})
        record = records(vm).get(name, {})
        if not record.get("readyToUse") or record.get("restoredTo") != "one" or \
                len(record["snapshotVolumes"]["included"]) != 2:
            wrong.append(f"the record of what was kept: {record}")
    else:
        wrong += content(vm, top, one=[1, 0])
    wrong += stray(vm, ["one", *kept])
    if variant == "qemu":
        vm.start()
    if vm.status() != "running":
        wrong.append(f"the VM is {vm.status()}")
    out = vm.vmfrost("recover")
    if out.code or out.document.get("found"):
        wrong.append(f"the second recover: {out.code} {out.document}")
    if variant in ("alive", "qemu"):
        vm.restart()
        out = vm.vmfrost("recover")
        wrong += [f"restart: {line}" for line in content(vm, top) + stray(vm, ["one", *kept])]
    write_all(vm, 0, 2)
    return True


def killed(t):
    plan = [("drive", "alive", False), ("drive", "qemu", False), ("drive", "again", True),
            ("drive", "before", False), ("drive", "twice", False), ("blockdev", "alive", True),
            ("blockdev", "again", False)]
    for attach, variant, discard in plan:
        missed, number, kept = [], 0, {}
        vm = None
        for point in points():
            step = point.rstrip("+")
            if step in ("connect", "look", "choose", "undo-turn", "undo-reset"):
                continue
            if not FULL and (attach == "blockdev" or variant in ("qemu", "before", "twice")) and \
                    point not in ("overlays+", "halt+", "mirror.ready", "flip.first", "flip+",
                                  "pivot+", "pivot.done", "reset+", "go-on+", "record.saved"):
                continue
            if variant == "before" and step in UNDO:
                continue
            wrong = []
            number += 1
            if vm is None:
                kept = {}
                vm = Qemu(words_for(attach), IMAGES).start()
                write_all(vm, 1, 0)
                vm.take("one")
            try:
                if not kill_case(vm, number, point, variant, discard, kept, wrong):
                    missed.append(point)
                    continue
            except LabError as error:
                wrong.append(f"{error}")
            t.is_(wrong, [], f"killed at {point}, -{attach}{', --discard' if discard else ''}: "
                  f"{VARIANTS[variant]}")
            if wrong:
                vm.__exit__()
                vm = None
        if vm:
            vm.__exit__()
        t.is_([point for point in missed if point.rstrip("+") not in UNDO], [],
              f"-{attach}, {variant}: came to every step")


def parted(t):
    """The host goes down between two names: vmfrost, its guard and QEMU at once."""
    for early in (False, True):
        wrong = []
        with Qemu(words_for("drive"), IMAGES) as vm:
            write_all(vm, 1, 0)
            vm.take("one")
            write_all(vm, 2, 0)
            command = vm.stop_at("flip.first", "restore", "@one", "--reset", "--keep-name", "kept")
            mark = f"VMFROST_STATE_DIR={vm.state}".encode()
            for entry in Path("/proc").iterdir():
                try:
                    if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(
                            b"\0") and (entry / "comm").read_text() == "vmfrost-guard\n":
                        os.kill(int(entry.name), signal.SIGKILL)
                except OSError:
                    pass
            command.signal(signal.SIGKILL)
            command.signal(signal.SIGCONT)
            finish(command)
            vm.kill()
            if early:
                vm.start()
                out = vm.vmfrost("recover")
                if out.code == 0 or "stop that QEMU" not in out.next:
                    wrong.append(f"recover of parted disks: {out.code} {out.error} {out.next}")
                vm.kill()
            out = vm.vmfrost("recover")
            if out.code:
                wrong.append(f"recover: {out.code} {out.error}")
            vm.start()
            wrong += content(vm, [1], kept=[2]) + stray(vm, ["one", "kept"])
        t.is_(wrong, [], "the host goes down between two names" +
              (", and the VM is started before recover" if early else ""))


# --- a VM that is not running --------------------------------------------------------------

def offline(t):
    for attach in ("drive", "blockdev"):
        wrong = []

        def look(when, found):
            wrong.extend(f"{when}: {line}" for line in found)

        with Qemu(words_for(attach), IMAGES) as vm:
            write_all(vm, 1, 0)
            vm.take("one")
            write_all(vm, 2, 1)
            vm.take("two")
            write_all(vm, 3, 2)
            vm.kill()
            out = restore(vm, "one", "--keep-name", "before")
            look("back to one", stray(vm, ["one", "two", "before"]))
            look("back to one", content(vm, [1, 0, 0], one=[1, 0, 0], two=[1, 2, 0],
                                        before=[1, 2, 3]))
            if out.document["online"] or out.document["launcherMustChange"] or \
                    out.document["kept"] != "before":
                look("back to one", [f"document: {out.document}"])
            kept = records(vm)["before"]
            if (kept["restoredTo"], kept["phase"], kept["consistency"], kept["indications"]) != \
                    ("one", "Succeeded", "offline", ["Offline"]):
                look("back to one", [f"record: {kept}"])
            vm.start()
            look("started", content(vm, [1, 0, 0]))
            write_all(vm, 4, 2)
            vm.kill()
            restore(vm, "before", "--discard")
            look("to what was before", stray(vm, ["one", "two", "before"]))
            look("to what was before", content(vm, [1, 2, 3], one=[1, 0, 0], before=[1, 2, 3]))
            vm.start()
            look("started again", content(vm, [1, 2, 3]))
            # What the record of a restore that was made offline says, an online one understands.
            restore(vm, "before", "--reset", "--discard")
            look("online", content(vm, [1, 2, 3]) + stray(vm, ["one", "two", "before"]))
            vm.restart()
            look("the end", content(vm, [1, 2, 3]))
            for entry in vm.disks.iterdir():
                if not image_ok(entry, leaks=True):
                    look("the end", [f"{entry.name} has errors"])
        t.is_(wrong, [], f"a VM that is not running, -{attach}: back and forth")

    wrong = []
    with Qemu(words_for("drive"), IMAGES) as vm:
        write_all(vm, 1, 0)
        vm.take("one")
        vm.qmp("block_resize", node_name=vm.root("data")["node-name"], size=2 * SIZE)
        write_all(vm, 2, 0)
        vm.kill()
        restore(vm, "one", "--keep-name", "large")
        for name, size in (("data.qcow2", SIZE), ("data@large.qcow2", 2 * SIZE),
                           ("data@one.qcow2", SIZE)):
            if image_info(vm.disks / name)["virtual-size"] != size:
                wrong.append(f"{name}: {image_info(vm.disks / name)}")
        vm.start()
        wrong += content(vm, [1])
        vm.kill()
        restore(vm, "large", "--discard")
        vm.start()
        wrong += content(vm, [2])
        if vm.root("data")["image"]["virtual-size"] != 2 * SIZE:
            wrong.append("the size did not come back")
    t.is_(wrong, [], "a disk that was resized since goes back to its size")

    with Qemu(words_for("drive"), IMAGES) as vm:
        write_all(vm, 1, 0)
        vm.take("one")
        other = vm.folder / "moved"
        vm.socket.rename(other)
        refused(t, vm, "a VM that runs where nobody can reach it", "QEMU .*has .*open", "@one",
                code=3)
        other.rename(vm.socket)


def killed_offline(t):
    wrong_points = []
    for discard in (False, True):
        vm = Qemu(words_for("drive"), IMAGES).start()
        write_all(vm, 1, 0)
        vm.take("one")
        kept = []
        for number, point in enumerate(points()):
            step = point.rstrip("+")
            if step in UNDO or step in ("connect", "undo-turn", "undo-reset", "halt", "mirror",
                                        "mirror.ready", "pivot.done"):
                continue
            if discard and not FULL and point not in ("overlays+", "flip.first", "flip+", "record",
                                                      "record.saved"):
                continue
            pattern, wrong = 20 + number, []
            write_all(vm, pattern, 1)
            vm.kill()
            name = f"kept{number}"
            out = vm.vmfrost("restore", "@one", *(["--discard"] if discard else
                                                  ["--keep-name", name]),
                             env={"VMFROST_TEST_AT": f"kill:{point}"})
            if out.code != -signal.SIGKILL:
                wrong_points.append(point)
            guards_end(vm)
            turned = point.startswith(TURNED)
            top = [1, 0] if turned else [1, pattern]
            early = number % 2
            if early:
                vm.start()
                wrong += [f"started before recovery: {line}" for line in content(vm, top)]
            out = vm.vmfrost("recover")
            if out.code or (out.document.get("found") and out.document.get("action") != (
                    "rolled-forward" if turned else "rolled-back")):
                wrong.append(f"recover: {out.code} {out.error} {out.document}")
            if turned and not discard:
                kept.append(name)
                record = records(vm).get(name, {})
                if record.get("consistency") != "offline" or not record.get("readyToUse"):
                    wrong.append(f"record: {record}")
                wrong += content(vm, top, **{name: [1, pattern]})
            wrong += content(vm, top, one=[1, 0]) + stray(vm, ["one", *kept])
            if not early:
                vm.start()
                wrong += content(vm, top)
            t.is_(wrong, [], f"not running, killed at {point}{', --discard' if discard else ''}"
                  f"{', and started before recovery' if early else ''}")
        vm.__exit__()
    t.is_(wrong_points, [], "not running: came to every step")


WITHOUT_LINKS = """#!/usr/bin/env python3
import ctypes, errno, os, struct, sys
# A file system without hard links, as far as a program can tell: seccomp refuses to make them.
LINK, LINKAT = 86, 265
rules = [(0x20, 0, 0, 0), (0x15, 2, 0, LINK), (0x15, 1, 0, LINKAT), (0x06, 0, 0, 0x7fff0000),
         (0x06, 0, 0, 0x00050000 | errno.EPERM)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = Program(len(rules), ctypes.cast(code, ctypes.c_void_p))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program)):
    sys.exit("seccomp")
os.execv(%r, [%r, *sys.argv[1:]])
"""


def new_files(t):
    """Where an image cannot have a second name, the restored disk is a new file."""
    name = "a file system without hard links"
    if os.geteuid() != 0 or os.uname().machine != "x86_64":
        t.skip(name, "needs root, and x86_64")
        return
    program = os.environ.get("VMFROST")
    built = lab.vmfrost_program()
    wrong = []
    with Qemu(drive("web")) as vm:
        vm.kill()
        below = vm.folder / "below"
        below.mkdir()
        run("mount", "-t", "tmpfs", "none", below)
        for part in ("upper", "work", "lower"):
            (below / part).mkdir()
        run("mount", "-t", "overlay", "none", "-o", f"lowerdir={below}/lower,"
            f"upperdir={below}/upper,workdir={below}/work", vm.disks)
        try:
            os.chmod(vm.disks, 0o777)
            make_image(vm.disks / "web.qcow2")
            wrapper = vm.folder / "wrapper"
            wrapper.write_text(WITHOUT_LINKS % (built, built))
            wrapper.chmod(0o755)
            os.environ["VMFROST"] = str(wrapper)
            vm.start()
            vm.write("web", 1)
            vm.take("one")
            vm.write("web", 2)
            refused(t, vm, f"{name}, while it runs", "hard link.*stop the VM", "@one", "--reset",
                    sees=2)
            vm.kill()
            for label, words, image in (("kept", ["--keep-name", "kept"], None),
                                        ("kept again", ["--discard"], None)):
                out = restore(vm, "one", *words)
                image = Path(out.document["disks"][0]["current"])
                if not out.document["launcherMustChange"] or not image.exists():
                    wrong.append(f"{label}: {out.document}")
                vm.words = drive("web", file=str(image))
                vm.start()
                if vm.sees("web", 1) != [1]:
                    wrong.append(f"{label}: {vm.sees('web', 1)}")
                vm.write("web", 5)
                vm.kill()
            out = restore(vm, "kept", "--discard")
            vm.words = drive("web", file=out.document["disks"][0]["current"])
            vm.start()
            if vm.sees("web", 1) != [2]:
                wrong.append(f"what was kept: {vm.sees('web', 1)}")
            vm.kill()
            for point, turned in (("overlays+", False), ("flip", False), ("flip+", True),
                                  ("record", True)):
                before = set(vm.names())
                vm.vmfrost("restore", "@one", "--keep-name", f"kept-{point.rstrip('+')}",
                           env={"VMFROST_TEST_AT": f"kill:{point}"})
                out = vm.vmfrost("recover")
                made = set(vm.names()) - before
                action = "rolled-forward" if turned else "rolled-back"
                if out.code or out.document["action"] != action or len(made) != turned:
                    wrong.append(f"killed at {point}: {out.error} {out.document} {made}")
                if turned != (f"kept-{point.rstrip('+')}" in records(vm)):
                    wrong.append(f"killed at {point}: {sorted(records(vm))}")
        finally:
            vm.kill()
            if program is None:
                del os.environ["VMFROST"]
            else:
                os.environ["VMFROST"] = program
            run("umount", "-l", vm.disks)
            run("umount", "-l", below)
    t.is_(wrong, [], name)


def implicit(t):
    """Every changing command finishes it first."""
    wrong = []
    with Qemu(words_for("drive"), IMAGES) as vm:
        write_all(vm, 1, 0)
        vm.take("one")
        write_all(vm, 2, 0)
        finish(vm.start_vmfrost("restore", "@one", "--reset", "--keep-name", "kept",
                                env={"VMFROST_TEST_AT": "kill:pivot"}))
        vm.take("two")
        wrong += content(vm, [1], two=[1], kept=[2]) + stray(vm, ["one", "kept", "two"])
    t.is_(wrong, [], "a snapshot finishes an interrupted restore first")


def main():
    tests = (kinds, modes, states, raw, colons, threes, refusals, not_opened, interrupted, dies, resisted,
             killed, parted, implicit, offline, killed_offline, new_files)
    with Tap() as t:
        for test in tests:
            if ONLY in ("", test.__name__):
                test(t)
        return 1 if t.failures else 0


if __name__ == "__main__":
    sys.exit(main())
