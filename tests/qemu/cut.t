#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cuts and merges on a real QEMU without a guest: names, headers, data, at every stage."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (CLUSTER, SIZE, LabError, Qemu, Tap, blockdev, drive, image_info, image_ok,
                  make_image)

OWN = os.environ.get("ONLY", "")


def layout(vm, disks, snapshots, links=0, kept=(), check=False):
    """What is wrong with names, headers and open files: a list of sentences. `links` is the number
    of hidden names for each disk, `kept` are visible names that a running QEMU still needs."""
    wrong = []
    names = [f".{disk}.qcow2.ID" for disk in disks for _ in range(links)]
    names += [f"{disk}.qcow2" for disk in disks]
    names += [f"{disk}@{snapshot}.qcow2" for disk in disks for snapshot in (*snapshots, *kept)]
    if vm.names() != sorted(names):
        wrong.append(f"names: {vm.names()} and not {sorted(names)}")
    opened = vm.opened() if vm.process.poll() is None else {}
    for disk in disks:
        chain = [f"{disk}@{snapshot}.qcow2" for snapshot in snapshots] + [f"{disk}.qcow2"]
        for base, name in zip([None, *chain], chain):
            path = vm.disks / name
            if not path.exists():
                continue
            info = image_info(path)
            backing = info.get("backing-filename"), info.get("backing-filename-format")
            if backing != (base, base and "qcow2"):
                wrong.append(f"{name} stands on {backing}")
            if info["virtual-size"] != SIZE:
                wrong.append(f"{name} has {info['virtual-size']} bytes")
            if check and not image_ok(path):
                wrong.append(f"{name} has errors")
            if opened:
                modes = {mode[0] for mode in opened.get(vm.inode(name), {"none"})}
                # A file node of the launcher's own stays open as the launcher opened it.
                if modes != ({"w"} if name == f"{disk}.qcow2" or
                             vm.inode(name) == vm.own.get(f"{disk}.qcow2") else {"r"}):
                    wrong.append(f"{name} is open as {modes}")
        if opened and len(vm.chain(disk)) != len(snapshots) + 1:
            wrong.append(f"{disk}'s chain is {vm.chain(disk)}")
    if vm.journal():
        wrong.append("there is a journal")
    if opened and vm.jobs():
        wrong.append(f"there are jobs: {vm.jobs()}")
    return wrong


def data(vm, disks, wanted):
    """What is wrong with the content: `wanted` is a list of first bytes for each image name, where
    "%" is the disk."""
    wrong = []
    for disk in disks:
        for name, clusters in wanted.items():
            found = vm.read(name.replace("%", disk), len(clusters))
            if found != clusters:
                wrong.append(f"{name.replace('%', disk)}: {found} and not {clusters}")
        if vm.process.poll() is None:
            clusters = wanted["%.qcow2"]
            found = vm.sees(disk, len(clusters))
            if found != clusters:
                wrong.append(f"{disk} as its guest sees it: {found} and not {clusters}")
    return wrong


def write_all(vm, disks, pattern, cluster):
    for disk in disks:
        vm.write(disk, pattern, cluster)


def stops(vm):
    """How often the VM was stopped since the last call."""
    vm.qmp("query-status")
    events = vm._monitor.events
    count = sum(event["event"] == "STOP" for event in events)
    events.clear()
    return count


def words_for(disks, attach, **options):
    form = drive if attach == "drive" else blockdev
    return [word for disk in disks for word in form(disk, **options)]


def whole_story(t, name, words, disks, state="running", method="existing", start=None, stop=None):
    """Two snapshots, both deleted, then another, a restart, and that one deleted as well."""
    images = [f"{disk}.qcow2" for disk in disks]
    wrong = []

    def look(when, found):
        wrong.extend(f"{when}: {line}" for line in found)

    with Qemu(words, images, running=state != "prelaunch") as vm:
        if state == "paused":
            vm.qmp("stop")
        stops(vm)
        write_all(vm, disks, 1, 0)
        for disk in disks:  # so that merging down is cheaper
            vm.write(disk, 1, 8, 8)
        record = vm.take("one", "--method", method)
        look("one", layout(vm, disks, ["one"], 1))
        if record["phase"] != "Succeeded" or record["consistency"] != "crash":
            look("one", [f"record: {record['phase']} {record['consistency']}"])
        if ("Paused" in record["indications"]) != (state != "running"):
            look("one", [f"record: {record['indications']}"])
        write_all(vm, disks, 2, 1)
        vm.take("two", "--method", method)
        write_all(vm, disks, 3, 0)
        write_all(vm, disks, 3, 2)
        look("two", layout(vm, disks, ["one", "two"], 2, check=True))
        look("two", data(vm, disks, {"%@one.qcow2": [1, 0, 0], "%@two.qcow2": [1, 2, 0],
                                     "%.qcow2": [3, 2, 3]}))
        if stops(vm):
            look("two", ["taking a snapshot stopped the VM"])
        vm.delete("two")
        look("two deleted", layout(vm, disks, ["one"], 1))
        look("two deleted", data(vm, disks, {"%@one.qcow2": [1, 0, 0], "%.qcow2": [3, 2, 3]}))
        write_all(vm, disks, 4, 3)
        count = stops(vm)
        if count:
            look("two deleted", [f"{count} stops, but QEMU knows that image by its hidden name"])
        vm.delete("one")
        look("one deleted", layout(vm, disks, [], 0))
        look("one deleted", data(vm, disks, {"%.qcow2": [3, 2, 3, 4]}))
        count = stops(vm)
        if stop is not None and count != (stop if state == "running" else 0):
            look("one deleted", [f"{count} stops"])
        if vm.status() != state:
            look("one deleted", [f"the VM is {vm.status()}"])
        write_all(vm, disks, 5, 0)
        vm.take("three", "--method", method)
        write_all(vm, disks, 6, 1)
        look("three", layout(vm, disks, ["three"], 1))
        vm.qmp("quit")
        vm.process.wait(60)
        look("quit", layout(vm, disks, ["three"], 1, check=True))
        look("quit", data(vm, disks, {"%@three.qcow2": [5, 2, 3, 4], "%.qcow2": [5, 6, 3, 4]}))
        vm.restart()
        if state == "paused":
            vm.qmp("stop")
        look("restart", data(vm, disks, {"%.qcow2": [5, 6, 3, 4]}))
        vm.take("four", "--method", method)
        look("four", layout(vm, disks, ["three", "four"], 1))
        write_all(vm, disks, 7, 2)
        stops(vm)
        vm.delete("four")
        look("four deleted", layout(vm, disks, ["three"], 0))
        look("four deleted", data(vm, disks, {"%.qcow2": [5, 6, 7, 4]}))
        stops(vm)
        vm.delete("three")
        look("three deleted", layout(vm, disks, [], 0, kept=["three"]))
        look("three deleted", data(vm, disks, {"%.qcow2": [5, 6, 7, 4]}))
        if stops(vm):
            look("three deleted", ["stopped the VM, but QEMU knows that base by a right name"])
        if vm.status() != state:
            look("three deleted", [f"the VM is {vm.status()}"])
        write_all(vm, disks, 8, 3)
        vm.restart()
        vm.vmfrost("recover")
        look("the end", layout(vm, disks, [], 0, check=True))
        look("the end", data(vm, disks, {"%.qcow2": [5, 6, 7, 8]}))
    t.is_(wrong, [], name)


def matrix(t):
    """Attachment, method, run state, number of disks."""
    names = ["web", "data", "log", "d4", "d5", "d6", "d7", "d8"]
    for attach, stop in (("drive", True), ("blockdev", False)):
        for method in ("existing", "preopened"):
            for state in ("running", "prelaunch", "paused"):
                if state == "paused" and (attach, method) != ("drive", "existing"):
                    continue
                disks = names[:3] if state == "running" else names[:1]
                whole_story(t, f"{attach}, {method}, {state}, {len(disks)} disks: two snapshots, "
                            "deleted, restart, two more", words_for(disks, attach), disks, state,
                            method, stop=len(disks) if stop else 0)
    whole_story(t, "drive, existing, running, 8 disks", words_for(names, "drive"), names)
    whole_story(t, "blockdev, preopened, running, 8 disks", words_for(names, "blockdev"), names,
                method="preopened")


def buses(t):
    """Other buses, and the block layer on a thread of its own."""
    thread = ["-object", "iothread,id=io0"]
    scsi = ["-device", "virtio-scsi-pci,id=scsi0"]
    for attach, form in (("drive", drive), ("blockdev", blockdev)):
        for method in ("existing", "preopened"):
            words = thread + ["-device", "virtio-scsi-pci,id=scsi0,iothread=io0"]
            for disk in ("web", "data"):
                words += form(disk, device="scsi-hd", device_options=",bus=scsi0.0")
            whole_story(t, f"virtio-scsi on an iothread, {attach}, {method}", words,
                        ["web", "data"], method=method)
        words = thread + form("web", device_options=",iothread=io0")
        whole_story(t, f"virtio-blk on an iothread, {attach}", words, ["web"])
    whole_story(t, "virtio-scsi", scsi + drive("web", device="scsi-hd"), ["web"])
    whole_story(t, "IDE", drive("web", device="ide-hd"), ["web"])
    whole_story(t, "NVMe", drive("web", device="nvme", device_options=",serial=1"), ["web"])
    whole_story(t, "USB", ["-device", "qemu-xhci"] + drive("web", device="usb-storage"), ["web"])


def rehearsed(t):
    """A transaction that is aborted loses what a guest on an iothread writes in that moment."""
    for words, running, want in (([], True, True), (["-object", "iothread,id=io0"], True, False),
                                 (["-object", "iothread,id=io0"], False, True)):
        with Qemu(words + drive("web"), running=running) as vm:
            out = vm.vmfrost("snapshot", "@one", "-vv")
            t.is_((out.code, out.err.count('"execute":"transaction"')), (0, 1 + want),
                  f"{'with an iothread' if words else 'without iothreads'}, "
                  f"{'running' if running else 'not running'}: the cut is "
                  f"{'' if want else 'not '}rehearsed")


def chain_of_five(t):
    """Five snapshots, the newest deleted again and again, with a restart in the middle."""
    for attach in ("drive", "blockdev"):
        with Qemu(words_for(["web"], attach)) as vm:
            taken, wrong, content = [], [], [0] * 8
            history = {}

            def look(when):
                wanted = {f"%@{name}.qcow2": clusters for name, clusters in history.items()
                          if name in taken}
                wrong.extend(f"{when}: {line}" for line in
                             data(vm, ["web"], {**wanted, "%.qcow2": content}))

            vm.write("web", 9, 8, 32)  # so that merging down is cheaper
            for number in range(1, 6):
                content[number] = number
                content[0] = number
                vm.write("web", number, number)
                vm.write("web", number, 0)
                vm.take(f"s{number}")
                taken.append(f"s{number}")
                history[f"s{number}"] = list(content)
            content[6] = 6
            vm.write("web", 6, 6)
            look("all five")
            wrong += layout(vm, ["web"], taken, 5, check=True)
            for number in (5, 4):
                vm.delete(f"s{number}")
                taken.pop()
                look(f"s{number} deleted")
            wrong += layout(vm, ["web"], taken, 3)
            vm.restart()
            look("restart")
            for number in (3, 2, 1):
                content[7] = 10 + number
                vm.write("web", content[7], 7)
                vm.delete(f"s{number}")
                taken.pop()
                look(f"s{number} deleted")
            t.is_(vm.vmfrost("list").result, [], f"{attach}: no records are left of the five")
            vm.restart()
            vm.vmfrost("recover")
            wrong += layout(vm, ["web"], [], 0)
            look("the end")
            t.is_(wrong, [], f"{attach}: a chain of five, taken down one by one, with a restart")


def name_again(t):
    """A name that was deleted can be used again."""
    for restart in (False, True):
        with Qemu(drive("web")) as vm:
            vm.take("one")
            if restart:
                vm.restart()
            vm.delete("one")
            vm.write("web", 1)
            out = vm.vmfrost("snapshot", "@one")
            t.is_((out.code, out.error), (0, ""), "a deleted snapshot's name can be used again"
                  + (" by a QEMU that was started on it" if restart else ""))
            vm.write("web", 2)
            t.is_((vm.read("web@one.qcow2", 1), vm.read("web.qcow2", 1)), ([1], [2]),
                  "... and it holds what it should")


def nodes_cache(vm, node):
    for found in vm.qmp("query-named-block-nodes", flat=True):
        if found["node-name"] == node:
            return found
    raise LabError(f"no node {node}")


def modes_of(vm, disk="web"):
    """How the disk's current image is open: its node's cache, the device's, and the descriptor's."""
    root = vm.root(disk)
    node = nodes_cache(vm, root["node-name"])["cache"]
    return {"direct": node["direct"], "no-flush": node["no-flush"],
            "writeback": root["cache"]["writeback"],
            "O_DIRECT": {"d" in mode for mode in vm.opened().get(vm.inode(f"{disk}.qcow2"), {""})}}


def cache_modes(t):
    """An overlay is cached as its base was, whatever the method."""
    for mode in ("writeback", "none", "directsync", "unsafe", "writethrough"):
        for method in ("existing", "preopened"):
            with Qemu(drive("web", options=f",cache={mode}")) as vm:
                vm.write("web", 1)
                before = modes_of(vm)
                record = vm.take("one", "--method", method)
                vm.write("web", 2, 1)
                t.is_(modes_of(vm), before, f"-drive cache={mode}, {method}: the same after a "
                      f"snapshot {before}")
                unsafe = any("unsafe" in line for line in record["warnings"])
                t.is_(unsafe, mode == "unsafe", "... and a warning exactly for cache=unsafe")
                vm.delete("one")
                t.is_((modes_of(vm), data(vm, ["web"], {"%.qcow2": [1, 2]})), (before, []),
                      "... and after its deletion")
    both = ",cache.direct=on"
    for name, options, file_options in (("the file's node alone", "", both),
                                        ("both nodes", both, both), ("the format's alone", both, ""),
                                        ("no node", "", "")):
        for method in ("existing", "preopened"):
            with Qemu(blockdev("web", options=options, file_options=file_options)) as vm:
                vm.write("web", 1)
                before = modes_of(vm)
                record = vm.take("one", "--method", method)
                after = modes_of(vm)
                t.is_(after["O_DIRECT"], before["O_DIRECT"],
                      f"-blockdev cache.direct on {name}, {method}: the overlay is opened the same "
                      f"way {before['O_DIRECT']}")
                if name == "the file's node alone":
                    t.is_(record["evidence"]["method"], "preopened",
                          "... the method is preopened, whatever was asked for")
                vm.write("web", 2, 1)
                vm.take("two", "--method", method)
                t.is_(modes_of(vm)["O_DIRECT"], before["O_DIRECT"], "... also on the second one")
                vm.delete("two")
                vm.delete("one")
                t.is_((modes_of(vm), data(vm, ["web"], {"%.qcow2": [1, 2]})), (before, []),
                      "... and after their deletion")


def discard(t):
    """What the guest discards is discarded in the overlay, if it was in the base."""
    def holes(vm):
        """Does the current image lose blocks when the guest discards what it wrote?"""
        vm.write("web", 9, 32, 32)
        full = (vm.disks / "web.qcow2").stat().st_blocks
        vm.io("web", f"discard {32 * CLUSTER} {32 * CLUSTER}")
        vm.io("web", "flush")
        return full - (vm.disks / "web.qcow2").stat().st_blocks > 16 * CLUSTER // 512

    def zeroes_found(vm):
        """Does writing zeroes leave the image as small as it was?"""
        before = (vm.disks / "web.qcow2").stat().st_blocks
        vm.write("web", 0, 64, 32)
        return (vm.disks / "web.qcow2").stat().st_blocks - before < 16 * CLUSTER // 512

    for attach in ("drive", "blockdev"):
        for method in ("existing", "preopened"):
            for mode in ("unmap", "ignore"):
                options = {"options": f",discard={mode}"}
                if attach == "blockdev":
                    options["file_options"] = f",discard={mode}"
                with Qemu(words_for(["web"], attach, **options)) as vm:
                    before = holes(vm)
                    vm.take("one", "--method", method)
                    # QEMU tells nobody whether the base discards: opened by hand, the overlay does.
                    after = before or method == "preopened"
                    t.is_(holes(vm), after, f"{attach}, {method}, discard={mode}: the overlay "
                          f"{'discards' if after else 'does not discard'}")
            with Qemu(words_for(["web"], attach, options=",detect-zeroes=unmap,discard=unmap")) \
                    as vm:
                before = zeroes_found(vm)
                vm.take("one", "--method", method)
                t.is_((vm.root("web")["detect_zeroes"], zeroes_found(vm)), ("unmap", before),
                      f"{attach}, {method}, detect-zeroes=unmap: as before")


def stopped_or_not(t):
    """Deleting under -drive stops a running VM for a moment, and no other."""
    with Qemu(drive("web")) as vm:
        vm.take("one")
        stops(vm)
        vm.delete("one")
        t.is_((stops(vm), vm.status()), (1, "running"), "-drive: one stop, and the VM goes on")
        vm.take("two")
        vm.qmp("stop")
        stops(vm)
        vm.delete("two")
        t.is_((stops(vm), vm.status()), (0, "paused"), "-drive: a paused VM stays paused")
    with Qemu(blockdev("web")) as vm:
        vm.take("one")
        stops(vm)
        vm.delete("one")
        t.is_((stops(vm), vm.status()), (0, "running"), "-blockdev: no stop at all")


def odd_sizes(t):
    """Sizes that are no multiple of anything; tiny and huge disks; other cluster sizes."""
    for size in (512, SIZE + 512, 3 * 1024 ** 4):
        vm = Qemu(drive("web"), images=[])
        make_image(vm.disks / "web.qcow2", size=size)
        with vm:
            vm.take("one")
            t.is_(image_info(vm.disks / "web.qcow2")["virtual-size"], size,
                  f"a disk of {size} bytes: the overlay has exactly that size")
            vm.delete("one")
            t.is_(image_info(vm.disks / "web.qcow2")["virtual-size"], size, "... and the base keeps it")
    for options in ("cluster_size=4k", "cluster_size=2M,lazy_refcounts=on", "extended_l2=on",
                    "compat=0.10", "preallocation=metadata"):
        vm = Qemu(drive("web"), images=[])
        make_image(vm.disks / "web.qcow2", options=options)
        with vm:
            vm.write("web", 1)
            vm.take("one")
            vm.write("web", 2, 1)
            wrong = data(vm, ["web"], {"%@one.qcow2": [1, 0], "%.qcow2": [1, 2]})
            vm.delete("one")
            wrong += data(vm, ["web"], {"%.qcow2": [1, 2]})
            t.is_(wrong, [], f"a base made with {options}")


def main():
    with Tap() as t:
        for part in (matrix, buses, rehearsed, chain_of_five, name_again, cache_modes, discard,
                     stopped_or_not, odd_sizes):
            if OWN in part.__name__:
                part(t)


main()
