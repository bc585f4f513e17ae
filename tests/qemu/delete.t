#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Deleting any snapshot, of a VM that runs or not: on every kind of disk, in any order, while the
guest writes; branches, golden images, refusals; kill -9 of vmfrost and of QEMU everywhere.

Whatever happens: each snapshot that is left and the current state hold what they held, under their
own names, durably (as seen by our own eyes in the files); headers, records, nodes and names are what
they should be. VMFROST_TEST_FULL=1 for everything, SEED=... for the same order again.
"""

import hashlib
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (CLUSTER, MIB, SIZE, LabError, Qemu, Tap, blockdev, drive, finish, image_info,
                  image_ok, lab, make_image, process_state, run, wait_until)

FULL = os.environ.get("VMFROST_TEST_FULL", "")
ONLY = os.environ.get("ONLY", "")
SEED = int(os.environ.get("SEED", "0")) or random.randrange(1, 1 << 32)
FLOWS = lab.PROJECT / "src" / "flows"
CLUSTERS = 8
# Where a guest may write while a snapshot is deleted. In "merge.pending" its I/O is held.
AT_WORK = ("accept", "graft.started", "graft.pending", "graft.durable", "graft.joined", "drop")
UP, DOWN, NEITHER = "up", "down", "neither"


def throttled(name):
    return ["-blockdev", f"driver=file,filename={name}.qcow2,node-name={name}-file",
            "-blockdev", f"driver=qcow2,file={name}-file,node-name={name}",
            "-blockdev", f"driver=throttle,throttle-group=slow,file={name},node-name={name}-top",
            "-device", f"virtio-blk-pci,drive={name}-top,id={name}-dev"]


def on_thread(name):
    return drive(name, device_options=",iothread=io0")


FORMS = {
    "-drive": ([], drive),
    "-blockdev": ([], blockdev),
    "-drive, iothread": (["-object", "iothread,id=io0"], on_thread),
    "throttle": (["-object", "throttle-group,id=slow,x-iops-total=100000"], throttled),
}


def words_for(form, disks):
    before, disk = FORMS[form]
    return [*before, *(word for name in disks for word in disk(name))]


class World:
    """A VM, and what each of its snapshots holds: for each disk the pattern of each cluster."""

    def __init__(self, vm, disks, extra=()):
        self.vm, self.disks = vm, list(disks)
        self.now = {disk: [0] * CLUSTERS for disk in disks}
        self.held, self.parent, self.head = {}, {}, None
        self.extra = set(extra)  # names of what else lies in the folder
        self.golden = None       # the backing string and format below the first image
        self.ways = {UP: 0, DOWN: 0, NEITHER: 0}
        self.wrong = []
        self.random = random.Random(SEED)
        self.pattern = 0

    # --- what is done

    @property
    def runs(self):
        return self.vm.process is not None and self.vm.process.poll() is None

    def write(self, disk, cluster, count=1, pattern=None):
        self.pattern = pattern if pattern is not None else self.pattern % 255 + 1
        self.vm.write(disk, self.pattern, cluster, count)
        for at in range(cluster, min(cluster + count, CLUSTERS)):
            self.now[disk][at] = self.pattern

    def write_all(self, cluster, count=1):
        for disk in self.disks:
            self.write(disk, cluster, count)

    def scribble(self, most=3):
        """The guest writes something to some disks."""
        for disk in self.disks:
            for _ in range(self.random.randrange(most + 1)):
                cluster = self.random.randrange(CLUSTERS)
                self.write(disk, cluster, self.random.randrange(1, CLUSTERS - cluster + 1))

    def took(self, name):
        self.held[name] = {disk: list(clusters) for disk, clusters in self.now.items()}
        self.parent[name], self.head = self.head, name

    def take(self, name, *words):
        self.vm.take(name, *words)
        self.took(name)

    def restore(self, name, keep):
        out = self.vm.vmfrost("restore", "@" + name, "--reset", "--keep-name", keep)
        if out.code:
            raise LabError(f"restore {name}: exit {out.code}: {out.error}")
        self.took(keep)
        self.head = name
        self.now = {disk: list(clusters) for disk, clusters in self.held[name].items()}

    def file(self, disk, name=None):
        return self.vm.disks / (f"{disk}@{name}.qcow2" if name else f"{disk}.qcow2")

    def above(self, name):
        """Names of what builds on a snapshot; None is the current state."""
        children = [child for child, parent in self.parent.items() if parent == name]
        return children + ([None] if self.head == name else [])

    def sizes(self, name):
        """{(disk, child): which way is the cheaper one} of a snapshot's images."""
        def blocks(disk, which):
            return self.file(disk, which).stat().st_blocks
        return {(disk, child): DOWN if blocks(disk, child) <= blocks(disk, name) else UP
                for disk in self.disks for child in self.above(name)}

    def inodes(self):
        return {(disk, name): self.file(disk, name).stat().st_ino for disk in self.disks
                for name in [None, *self.held] if self.file(disk, name).exists()}

    def way(self, before, disk, name, child):
        """How the image of a snapshot and its child were joined, by their inodes."""
        after = self.file(disk, child).stat().st_ino
        return DOWN if after == before[disk, name] else \
            UP if after == before[disk, child] else NEITHER

    def gone(self, name):
        for child in self.above(name):
            if child is None:
                self.head = self.parent[name]
            else:
                self.parent[child] = self.parent[name]
        del self.held[name], self.parent[name]

    def delete(self, name, writes=False):
        """A deletion that has to succeed; the guest writes at each of its points. Returns the ways,
        by disk and child."""
        before, above = self.inodes(), self.above(name)
        if writes and self.runs:
            out = self.delete_at_work(name)
        else:
            out = self.vm.vmfrost("delete", "@" + name)
        if out.code:
            raise LabError(f"delete {name}: exit {out.code}: {out.error} {out.next} {out.err}")
        ways = {(disk, child): self.way(before, disk, name, child) for disk in self.disks
                for child in above}
        for way in ways.values():
            self.ways[way] += 1
        self.gone(name)
        return ways

    def delete_at_work(self, name):
        command = self.vm.start_vmfrost(
            "delete", "@" + name,
            env={"VMFROST_TEST_AT": ",".join(f"stop:{point}" for point in AT_WORK)})
        while True:
            wait_until(lambda: command.process.poll() is not None or
                       process_state(command.pid) == "T", what="the next point", interval=0.002)
            if command.process.poll() is not None:
                return finish(command)
            for disk in self.disks:
                self.write(disk, self.random.randrange(CLUSTERS))
            command.signal(signal.SIGCONT)

    # --- what there is

    def records(self):
        return {record["name"]: record for record in self.vm.vmfrost("list").result}

    def needed(self):
        """Names that are remembered for the QEMU that runs."""
        found = set()
        for path in Path(self.vm.state).glob("vms/*/links.json"):
            for link in json.loads(path.read_text()):
                if self.runs and link["qemu"] == self.vm.pid:
                    found.add(Path(link["path"]).name)
        return found

    def chain(self, disk):
        """The images that a disk runs on, by their nodes; filters are passed."""
        edges = {(parent, name): child.partition(":")[2]
                 for parent, name, child, _ in self.vm.graph()[1]}
        found, node = [], self.vm.root(disk)["node-name"]
        while node:
            below = edges.get((f"block-driver:{node}", "backing"))
            if node == f"{disk}-top":
                below = edges[f"block-driver:{node}", "file"]
            else:
                found.append(node)
            node = below
        return found

    def depth(self, name):
        """How many images of the VM's own it is made of."""
        depth = 1
        while name is not None and self.parent[name] is not None:
            name = self.parent[name]
            depth += 1
        return depth

    def look_at_files(self):
        wanted = {self.file(disk, name).name for disk in self.disks for name in [None, *self.held]}
        names = {entry.name for entry in self.vm.disks.iterdir()}
        inodes = {self.vm.inode(name) for name in wanted & names}
        opened = self.vm.opened() if self.runs else {}
        needed = self.needed()
        yield from (f"{name} is missing" for name in sorted(wanted - names))
        for name in sorted(names - wanted - self.extra):
            inode = self.vm.inode(name)
            if name not in needed or inode not in inodes or inode not in opened:
                yield f"{name} is stray"
        if self.vm.journal():
            yield "there is a journal"

    def look_at_headers(self):
        for disk in self.disks:
            for name in [None, *self.held]:
                below = self.head if name is None else self.parent[name]
                want = (self.file(disk, below).name, "qcow2") if below else \
                    self.golden or (None, None)
                info = image_info(self.file(disk, name))
                got = info["backing-filename"], info["backing-filename-format"]
                if got != want:
                    yield f"{self.file(disk, name).name} builds on {got} and not {want}"

    def look_at_content(self):
        for disk in self.disks:
            for name in [None, *self.held]:
                want = self.held[name][disk] if name else self.now[disk]
                found = self.vm.read(self.file(disk, name).name, CLUSTERS)
                if found != want:
                    yield f"{self.file(disk, name).name}: {found} and not {want}"
            if self.runs:
                found = self.vm.sees(disk, CLUSTERS)
                if found != self.now[disk]:
                    yield f"{disk} as its guest sees it: {found} and not {self.now[disk]}"

    def look_at_records(self):
        records = self.records()
        if sorted(records) != sorted(self.held):
            yield f"records: {sorted(records)} and not {sorted(self.held)}"
        for name in set(records) & set(self.held):
            if not records[name]["readyToUse"]:
                yield f"{name} is not ready"
            for cut in records[name]["cuts"]:
                inode = self.file(cut["name"].removesuffix("-dev"), name).stat().st_ino
                if cut["baseInode"] != inode:
                    yield f"{name}, {cut['name']}: inode {cut['baseInode']} and not {inode}"
        out = self.vm.vmfrost("verify")
        # Leaks, too: qemu-img has checked all but what a running QEMU writes to.
        problems = [problem for image in out.document.get("images", [])
                    for problem in image["problems"]]
        if out.code or problems:
            yield f"verify: exit {out.code}: {out.error} {problems}"

    def look_at_qemu(self):
        if not self.runs:
            return
        vm = self.vm
        if vm.jobs() or vm.status() != "running":
            yield f"jobs: {vm.jobs()}, the VM is {vm.status()}"
        nodes = {node["node-name"]: node for node in vm.qmp("query-named-block-nodes", flat=True)}
        edges = vm.graph()[1]
        used = set()
        for disk in self.disks:
            chain = self.chain(disk)
            used.update(chain)
            want = (self.depth(self.head) + 1 if self.head else 1) + bool(self.golden)
            if len(chain) != want:
                yield f"{disk}: a chain of {len(chain)} and not {want}"
        for name, node in sorted(nodes.items()):
            if node["drv"] == "qcow2" and name not in used:
                yield f"node {name} is stray"
            if node["drv"] == "file" and not any(edge[2] == f"block-driver:{name}"
                                                 for edge in edges):
                yield f"node {name} is stray"

    def check(self, when):
        """Is all as it should be? What is not goes to `wrong`."""
        for look in (self.look_at_files, self.look_at_headers, self.look_at_content,
                     self.look_at_records, self.look_at_qemu):
            try:
                self.wrong += [f"{when}: {line}" for line in look()]
            except (LabError, OSError) as error:
                self.wrong.append(f"{when}: {look.__name__}: {error!r}")

    def want(self, what, got, wanted):
        if got != wanted:
            self.wrong.append(f"{what}: {got} and not {wanted}")


# --- any order --------------------------------------------------------------------------

def any_order(t):
    """Five snapshots of three disks, deleted in any order while the guest writes."""
    def stay(_):
        pass

    def restart(world):
        world.vm.restart()

    def stop(world):
        world.vm.kill()

    def mix(world):
        world.random.choice((stay, restart, stop, lambda _: world.vm.restart()))(world)

    disks = ["web", "data", "logs"]
    for form in FORMS:
        ways = {UP: 0, DOWN: 0, NEITHER: 0}
        for what, between in (("by the QEMU that took them", None), ("after a restart", restart),
                              ("of a stopped VM", stop), ("on and off", mix)):
            with Qemu(words_for(form, disks), [f"{disk}.qcow2" for disk in disks]) as vm:
                world = World(vm, disks)
                try:
                    world.random = random.Random(f"{SEED}{form}{what}")
                    for number in range(5):
                        world.scribble()
                        world.take(f"s{number}")
                        if between == mix and world.random.randrange(3) == 0:
                            vm.restart()
                    world.scribble()
                    if between not in (None, mix):
                        between(world)
                    order = list(world.held)
                    world.random.shuffle(order)
                    for name in order:
                        if between == mix:
                            mix(world)
                        world.delete(name, writes=True)
                        world.check(f"{name} deleted")
                        if world.runs:
                            world.scribble(1)
                    vm.restart()
                    out = vm.vmfrost("recover")
                    world.want("recover at the end", (out.code, out.document.get("found")),
                               (0, False))
                    world.check("the end")
                except LabError as error:
                    world.wrong.append(f"{error}")
                t.is_(world.wrong, [], f"{form}, {what}: {' '.join(order)}")
                for way, count in world.ways.items():
                    ways[way] += count
        t.diag(f"{form}: {ways}")
        t.ok(ways[UP] and ways[DOWN] and not ways[NEITHER], f"{form}: both directions were taken")


def main():
    with Tap() as t:
        t.diag(f"SEED={SEED}")
        began = time.monotonic()
        for part in (any_order,):
            if ONLY in part.__name__:
                part(t)
                t.diag(f"{part.__name__}: {time.monotonic() - began:.1f} s")


main()
