#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Deleting any snapshot, of a VM that runs or not: on every kind of disk, in any order, while the
guest writes; branches, golden images, refusals; kill -9 of vmfrost and of QEMU everywhere.

Whatever happens: each snapshot that is left and the current state hold what they held, under their
own names, durably (as seen by our own eyes in the files); headers, records, nodes and names are what
they should be. VMFROST_TEST_FULL=1 for everything, SEED=... for the same order again.
"""

import contextlib
import hashlib
import itertools
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
                  image_ok, lab, make_image, process_state, run, small_folder, wait_until)

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
        def clusters(disk, which):
            done = run("qemu-img", "check", "-U", "--output=json", self.file(disk, which))
            return json.loads(done.stdout).get("allocated-clusters", 0)
        return {(disk, child): DOWN if clusters(disk, child) <= clusters(disk, name) else UP
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

    def restart(self):
        """The launcher starts the VM again, as ever, and the next contact sweeps."""
        self.vm.restart()
        out = self.vm.vmfrost("recover")
        self.want("recover", (out.code, out.document.get("found"), out.error), (0, False, ""))
        self.check("restarted")

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
                    world.restart()
                except LabError as error:
                    world.wrong.append(f"{error}")
                t.is_(world.wrong, [], f"{form}, {what}: {' '.join(order)}")
                for way, count in world.ways.items():
                    ways[way] += count
        t.diag(f"{form}: {ways}")
        t.ok(ways[UP] and ways[DOWN] and not ways[NEITHER], f"{form}: both directions were taken")


# --- one at a time ------------------------------------------------------------------------

DISKS = ["web", "data"]
# How many clusters are written before s1, s2, s3, and after that: which snapshot to delete, and which
# way its images are joined with what builds on them.
STORIES = {
    "the oldest, up": ((1, 4, 1, 1), "s1", UP),
    "the oldest, down": ((4, 1, 1, 1), "s1", DOWN),
    "a middle one, up": ((1, 1, 4, 1), "s2", UP),
    "a middle one, down": ((1, 4, 1, 1), "s2", DOWN),
    "the newest, up": ((1, 1, 1, 4), "s3", UP),
    "the newest, down": ((1, 1, 4, 1), "s3", DOWN),
}


def tell(world, sizes, more=0):
    """Three snapshots with so many clusters in each image, at different places, and so many times 32
    more in the first disk's, for jobs that take a while."""
    for number, count in enumerate(sizes):
        world.write_all(number, count)
        if more:
            at = CLUSTERS * CLUSTER
            world.vm.io(world.disks[0], f"write -P {number} {at} {(more + count) * 32 * CLUSTER}")
            world.vm.io(world.disks[0], "flush")
        if number < 3:
            world.take(f"s{number + 1}")


def qemu(form="-drive"):
    return Qemu(words_for(form, DISKS), [f"{disk}.qcow2" for disk in DISKS])


def directions(t):
    """What is cheaper, unless QEMU knows an image by a name that leads elsewhere by now."""
    for form in ("-drive", "-blockdev"):
        for when in ("by the QEMU that took it", "after a restart", "of a stopped VM"):
            wrong = []
            for story, (sizes, name, way) in STORIES.items():
                with qemu(form) as vm:
                    world = World(vm, DISKS)
                    tell(world, sizes)
                    if when == "after a restart":
                        vm.restart()
                    elif when == "of a stopped VM":
                        vm.kill()
                    # This QEMU knows s1's image by "web.qcow2": for writing it cannot be opened.
                    elif (form, name) == ("-drive", "s1"):
                        way = UP
                    world.want("sizes", set(world.sizes(name).values()),
                               {way} if "-drive" != form else set(world.sizes(name).values()))
                    ways = world.delete(name)
                    world.want("the way", set(ways.values()), {way})
                    world.check("deleted")
                    world.restart()
                wrong += [f"{story}: {line}" for line in world.wrong]
            t.is_(wrong, [], f"directions: {form}, {when}")


def nothing_changes(t, world, what, words, *options, verb="delete"):
    """A command that is refused, with these words, and changes nothing."""
    vm = world.vm
    before = vm.names(), world.inodes(), world.records(), vm.graph() if world.runs else None
    out = vm.vmfrost(verb, *options)
    after = vm.names(), world.inodes(), world.records(), vm.graph() if world.runs else None
    missing = [word for word in words if word not in out.error + " " + out.next]
    t.ok(out.code == 1 and not missing and out.next and before == after,
         f"{what}: refused, and nothing is changed ({out.code}: {out.error} | {out.next})")
    if before != after:
        t.diag(f"before: {before}\nafter: {after}")
    world.check(what)


def branches(t):
    """Images on which several others build are written up into each of them."""
    for form in ("-drive", "-blockdev"):
        with qemu(form) as vm:
            world = World(vm, DISKS)
            tell(world, (4, 1, 1, 1))
            world.restore("s1", "kept")
            world.write_all(6)
            world.check("restored")
            world.want("s1 has two children", sorted(map(str, world.above("s1"))), ["None", "s2"])
            ways = world.delete("s1", writes=True)
            world.want("both get all", set(ways.values()), {UP})
            world.check("s1 deleted")
            world.want("one in a chain of its own", vm.chain("web")[1:], [])
            ways = world.delete("kept")  # nothing builds on it
            world.want("nothing is joined", ways, {})
            world.check("kept deleted")
            ways = world.delete("s2", writes=True)  # of a branch that QEMU has not open
            world.want("beside QEMU", set(ways.values()), {DOWN})
            world.check("s2 deleted")
            world.restart()
            world.delete("s3")
            world.check("s3 deleted")
        t.is_(world.wrong, [], f"branches: {form}, running")
    with qemu() as vm:
        world = World(vm, DISKS)
        tell(world, (4, 1, 1, 1))
        world.restore("s2", "kept")
        world.write_all(6)
        vm.kill()
        for name, ways in ("s2", {UP}), ("s1", {UP}), ("s3", {DOWN}), ("kept", set()):
            world.want(f"{name}, the ways", set(world.delete(name).values()), ways)
            world.check(f"{name} deleted")
        vm.start()
        world.check("started")
    t.is_(world.wrong, [], "branches: stopped")
    with qemu() as vm:
        world = World(vm, DISKS)
        world.write_all(0)
        world.take("s1")
        world.restore("s1", "kept")
        vm.restart()
        world.take("s2")
        world.write_all(1)
        nothing_changes(t, world, "branches: an image that QEMU knows by another's name",
                        ["web@s2.qcow2", "leads to another image", "stopped or started again"],
                        "@s1")
        vm.restart()
        world.delete("s1")
        world.check("s1 deleted")
    t.is_(world.wrong, [], "branches: after a restart it is deleted")


def any_tree(t):
    """Snapshots, restores and deletions in any order, on and off."""
    for form in ("-drive", "-blockdev"):
        with qemu(form) as vm:
            world = World(vm, DISKS)
            world.random = rnd = random.Random(f"{SEED}tree{form}")
            did, refused = [], 0
            try:
                for number in range(40 if FULL else 14):
                    if not world.runs and (rnd.randrange(3) or not world.held):
                        vm.start()
                        did.append("start")
                    elif did and world.runs and rnd.randrange(5) == 0:  # once vmfrost has seen it
                        rnd.choice((vm.kill, vm.restart))()
                        did.append("restart" if world.runs else "kill")
                    choice = rnd.randrange(10)
                    if world.runs:
                        world.scribble(1)
                    if len(world.held) < 2 or choice < 3 and len(world.held) < 6:
                        did.append(f"take s{number}")
                        world.take(f"s{number}")
                    elif choice < 6 and world.runs:
                        name = rnd.choice(sorted(world.held))
                        did.append(f"restore {name}, keep k{number}")
                        world.restore(name, f"k{number}")
                    else:
                        name = rnd.choice(sorted(world.held))
                        did.append(f"delete {name}")
                        try:
                            world.delete(name, writes=True)
                        except LabError as error:
                            if "stopped or started again" not in str(error):
                                raise
                            refused += 1
                            vm.restart()
                            did[-1:] = ["restart", did[-1]]
                            world.delete(name, writes=True)
                    world.check(did[-1])
                    if world.wrong:
                        break
                vm.restart()
                for name in sorted(world.held, key=lambda _: rnd.random()):
                    did.append(f"delete {name}")
                    world.delete(name)
                    world.check(did[-1])
            except LabError as error:
                world.wrong.append(f"{error}")
        if not t.is_(world.wrong, [], f"any tree: {form}, {world.ways}, {refused} refused"):
            t.diag("; ".join(did))


# --- what others have to do with it ---------------------------------------------------------

SCSI = ["-device", "virtio-scsi-pci,id=scsi0"]


def unplugged(t):
    """A disk that the snapshot has, and the VM has no more."""
    words = [*SCSI, *drive("web"), *drive("data", device="scsi-hd")]
    for sizes, way in ((1, 4, 1), UP), ((4, 1, 1), DOWN):
        with Qemu(words, ["web.qcow2", "data.qcow2"]) as vm:
            world = World(vm, DISKS)
            for number, count in enumerate(sizes):
                world.write_all(number, count)
                if number < 2:
                    world.take(f"s{number + 1}")
            vm.qmp("device_del", id="data-dev")
            wait_until(lambda: len(vm.qmp("query-block")) == 1, what="data is unplugged")
            before = world.inodes()
            vm.delete("s1")
            world.want("the way", world.way(before, "data", "s1", "s2"), way)
            world.gone("s1")
            world.wrong += world.look_at_headers()
            for name in (None, "s2"):
                want = world.held[name]["data"] if name else world.now["data"]
                world.want(f"data, {name}", vm.read(world.file("data", name).name, CLUSTERS), want)
            vm.delete("s2")
            world.gone("s2")
            world.restart()
        t.is_(world.wrong, [], f"a disk that was unplugged since: {way}")


def outsiders(t):
    """Images of somebody else's that build on the snapshot's."""
    with qemu() as vm:
        world = World(vm, DISKS, ["other.qcow2"])
        tell(world, (1, 4, 1, 1))
        other = vm.disks / "other.qcow2"
        for name, backing in ("s2", "data@s2.qcow2"), ("s1", str(vm.disks / "web@s1.qcow2")), \
                             ("s3", "./web@s3.qcow2"):
            other.unlink(missing_ok=True)
            run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, other,
                SIZE)
            nothing_changes(t, world, f"an image that builds on {backing}",
                            [str(other), "builds on", "rebase"], "@" + name)
        # It stands on what is not to go: what it reads stays what it was.
        before = vm.read("other.qcow2", CLUSTERS)
        world.delete("s1")
        world.delete("s2")
        world.check("the others are deleted")
        world.want("the linked image", vm.read("other.qcow2", CLUSTERS), before)
        other.unlink()
        world.delete("s3")
        world.check("s3 deleted")
    t.is_(world.wrong, [], "outsiders: those that they do not build on are deleted")


def left_writable(t):
    """A merge that is cancelled leaves its base writable in QEMU. A joining that comes later does not."""
    with Qemu(words_for("-drive", ["web"]), ["web.qcow2"]) as vm:
        vm.take("one")
        for cluster in range(4):
            vm.write("web", 1, cluster)
        vm.take("two")
        vm.restart()
        vm.write("web", 2, 4)
        top, base = vm.chain("web")[:2]
        vm.qmp("block-commit", job_id="cancelled", device=top, top_node=top, base_node=base,
               auto_finalize=False, auto_dismiss=False)
        vm.qmp("job-cancel", id="cancelled")
        wait_until(lambda: vm.qmp("query-jobs")[0]["status"] == "concluded", what="the job's end")
        vm.qmp("job-dismiss", id="cancelled")
        vm.take("three")
        out = vm.vmfrost("delete", "@two")
        nodes = {node["node-name"]: node["ro"] for node in
                 vm.qmp("query-named-block-nodes", flat=True)}
        chain = vm.chain("web")
        t.is_((out.code, [nodes[node] for node in chain], vm.sees("web", 5), base in chain),
              (0, [False, True, True], [1, 1, 1, 1, 2], True),
              f"a base that was left writable is sealed again {out.error}")


def checksum(path):
    about = path.stat()
    return hashlib.sha256(path.read_bytes()).hexdigest(), about.st_ino, about.st_mtime_ns


def golden(t):
    """What is below the VM's own first image is nobody's to write to."""
    for fmt in ("qcow2", "raw"):
        for sizes, way in ((1, 4, 1), UP), ((4, 1, 1), DOWN):
            for on in (True, False):
                vm = Qemu(words_for("-drive", DISKS), [])
                folder = vm.folder / "golden"
                folder.mkdir()
                base = make_image(folder / f"base.{fmt}", fmt)
                run("qemu-io", "-f", fmt, "-c", f"write -P 99 0 {CLUSTERS * CLUSTER}", base)
                before = checksum(base)
                for disk in DISKS:
                    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", fmt, "-b",
                        f"../golden/base.{fmt}", vm.disks / f"{disk}.qcow2")
                with vm:
                    world = World(vm, DISKS)
                    world.golden = (f"../golden/base.{fmt}", fmt)
                    world.now = {disk: [99] * CLUSTERS for disk in DISKS}
                    for number, count in enumerate(sizes):
                        world.write_all(number, count)
                        if number < 2:
                            world.take(f"s{number + 1}")
                    vm.restart()
                    if not on:
                        vm.kill()
                    ways = world.delete("s1")
                    world.want("the way", set(ways.values()), {way})
                    world.check("s1 deleted")
                    world.delete("s2")
                    world.check("s2 deleted")
                    world.restart()
                    world.want("the golden image", checksum(base), before)
                t.is_(world.wrong, [], f"a golden {fmt} image, {way}, {'on' if on else 'off'}")


# --- no room, errors, Ctrl-C ------------------------------------------------------------------

@contextlib.contextmanager
def small_file_system(t, size):
    """A QEMU, not started, the folder of whose images is a file system of so many MiB; None, and a
    skipped test, where none can be mounted."""
    vm = Qemu(words_for("-drive", DISKS), [])
    with small_folder(t, vm.disks, size) as mounted:
        if not mounted:
            yield None
            return
        os.chmod(vm.disks, 0o777)
        for disk in DISKS:
            make_image(vm.disks / f"{disk}.qcow2", size=64 * MIB)
        lab.vmfrost("storage", "set", "small", "minFree=1M", state_dir=vm.state)
        try:
            yield vm
        finally:
            vm.__exit__()


def fill(vm, leave):
    """Nothing is left but so many MiB."""
    about = os.statvfs(vm.disks)
    with open(vm.disks / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, about.f_bavail * about.f_frsize - leave * MIB)


def big(world, sizes):
    """Two snapshots with so many MiB in each image of the first disk, and more in the last."""
    for number, size in enumerate(sizes):
        world.write_all(number)
        world.vm.io("web", f"write -P {number + 1} {8 + 16 * number}M {size}M")
        world.vm.io("web", "flush")
        if number < 2:
            world.take(f"s{number + 1}")


def no_room(t):
    """As much room as will be needed is there before anything is changed; or not: then the join
    fails, and nothing is lost."""
    for on in (True, False):
        for sizes, way in ((6, 10, 1), UP), ((10, 6, 1), DOWN):
            what = f"{way}, {'on' if on else 'off'}"
            with small_file_system(t, 40) as vm:
                if not vm:
                    return
                vm.start()
                world = World(vm, DISKS, ["ballast"])
                big(world, sizes)
                world.restart()
                if not on:
                    vm.kill()
                fill(vm, 3)
                nothing_changes(t, world, f"no room, {what}",
                                ["needs up to 6 MiB", "3 MiB are free", "disk web",
                                 str(vm.disks)], "@s1")
                (vm.disks / "ballast").unlink()
                command = vm.stop_at("accept+", "delete", "@s1")
                fill(vm, 1)
                command.signal(signal.SIGCONT)
                out = finish(command)
                world.want("full: exit", out.code, 1)
                world.want("full: why", "No space left" in out.error, True)
                world.wrong += [f"full: {line}" for line in look_at_the_others(world, "s1")]
                if on:
                    world.write_all(2)  # in clusters that are there already
                (vm.disks / "ballast").unlink()
                world.delete("s1")
                world.check("room again, deleted")
                world.restart()
                for number, size in enumerate(sizes):
                    out = vm.io("web", f"read -P {number + 1} {8 + 16 * number}M {size}M")
                    world.want("the rest", out.splitlines()[:1],
                               [f"read {size * MIB}/{size * MIB} bytes at offset "
                                f"{(8 + 16 * number) * MIB}"])
            t.is_(world.wrong, [], f"a full file system in the middle of a join: {what}")
    for point, name, sizes in (("graft.started", "s1", (6, 10, 1)),
                               ("graft.started", "s1", (10, 6, 1)),
                               ("merge.started", "s2", (1, 10, 6))):
        failed_at_once(t, point, name, sizes)


def failed_at_once(t, point, name, sizes):
    """The job has failed, and QEMU has given its image back, before vmfrost looks at it."""
    with small_file_system(t, 40) as vm:
        if not vm:
            return
        vm.start()
        world = World(vm, DISKS, ["ballast"])
        big(world, sizes)
        if point.startswith("graft"):
            world.restart()
        command = vm.stop_at(f"accept+,stop:{point}", "delete", f"@{name}")
        fill(vm, 1)
        command.signal(signal.SIGCONT)
        wait_until(lambda: process_state(command.pid) == "T", what=f"the stop at {point}")
        wait_until(lambda: [job["status"] for job in vm.qmp("query-jobs")] == ["concluded"],
                   what="the end of the job")
        command.signal(signal.SIGCONT)
        out = finish(command)
        world.want("exit", out.code, 1)
        world.want("why", ("No space left" in out.error, out.error), (True, out.error))
        world.want("jobs", vm.qmp("query-jobs"), [])
        (vm.disks / "ballast").unlink()
        world.delete(name)
        world.check("room again, deleted")
    t.is_(world.wrong, [], f"a job that fails at once: {point}, {sizes}: it is told why")


def look_at_the_others(world, name):
    """What is wrong while the deletion of a snapshot has begun, and is not done."""
    vm = world.vm
    for disk in world.disks:
        for other in [None, *world.held]:
            if other == name:
                continue
            want = world.held[other][disk] if other else world.now[disk]
            found = vm.read(world.file(disk, other).name, CLUSTERS)
            if found != want:
                yield f"{world.file(disk, other).name}: {found} and not {want}"
        if world.runs:
            found = vm.sees(disk, CLUSTERS)
            if found != world.now[disk]:
                yield f"{disk} as its guest sees it: {found} and not {world.now[disk]}"
    record = world.records().get(name)
    if record and (record["readyToUse"], record["phase"], record.get("deleting")) != \
            (False, "Failed", True):
        yield f"the record of {name}: {record['phase']}, ready: {record['readyToUse']}"
    if vm.journal():
        yield "there is a journal"
    if world.runs and (vm.jobs() or vm.status() != "running"):
        yield f"jobs: {vm.jobs()}, the VM is {vm.status()}"
    out = vm.vmfrost("verify")
    if "images" not in out.document:
        yield f"verify: exit {out.code}: {out.error}"
    problems = [f"{Path(image['path']).name}: {problem}"
                for image in out.document.get("images", [])
                for problem in image["problems"] if image.get("snapshot") != name]
    if problems:
        yield f"verify: {problems}"


def points():
    """All places of a joining where the process can be told to kill itself."""
    inside = re.findall(r'vf_test_point\(flow, "(graft\.[^"]+)"\)', (FLOWS / "graft.c").read_text())
    return ["accept+", "graft", *inside, "graft+", "drop", "drop+", "remove", "remove+"]


def kill_at(vm, point, disk, *words):
    """A command that is killed at a point, the first time or the second one (of the second disk).
    False if it never came there."""
    if not disk:
        return finish(vm.start_vmfrost(*words, env={"VMFROST_TEST_AT": f"kill:{point}"})).code == \
            -signal.SIGKILL
    command = vm.start_vmfrost(*words, env={"VMFROST_TEST_AT": f"stop:{point}"})
    for number in (SIGCONT, SIGKILL):
        wait_until(lambda: command.process.poll() is not None or process_state(command.pid) == "T",
                   what=f"the stop at {point}", interval=0.002)
        if command.process.poll() is not None:
            return False
        command.signal(number)
        if number == SIGCONT:
            wait_until(lambda: process_state(command.pid) != "T", what="going on", interval=0.0005)
    return finish(command).code == -signal.SIGKILL


SIGCONT, SIGKILL = signal.SIGCONT, signal.SIGKILL
ALIVE, DEAD, AGAIN, OFF = "QEMU goes on", "QEMU dies, too", \
    "QEMU dies and is started again", "of a stopped VM"


def finish_it(world, name, how):
    """Somebody comes and finishes what was interrupted."""
    vm = world.vm
    if how == "another operation, then recover":
        world.take("s9")
        world.wrong += [f"settled: {line}" for line in look_at_the_others(world, name)]
        if world.runs:
            world.write_all(6)
    if how == "delete":
        there = name in world.records()
        out = vm.vmfrost("delete", "@" + name)
        if there:
            world.want(how, (out.code, out.error), (0, ""))
        else:  # all was done when it was killed
            world.want("it is gone", (out.code, "no snapshot" in out.error, vm.journal()),
                       (1, True, []))
            # What is refused at once does not look for the names that a QEMU of before needed.
            vm.vmfrost("recover")
    else:
        out = vm.vmfrost("recover")
        world.want(how, (out.code, out.error), (0, ""))
    world.gone(name)
    world.check(f"finished by {how}")
    out = vm.vmfrost("recover")
    world.want("a second recover", (out.code, out.document.get("found")), (0, False))


def kill_case(form, story, point, disk, variant, how):
    """What is wrong after one kill; None: it never came to that point."""
    sizes, name, _ = STORIES[story]
    with qemu(form) as vm:
        world = World(vm, DISKS)
        tell(world, sizes)
        if variant == OFF:
            vm.kill()
        if not kill_at(vm, point, disk, "delete", "@" + name):
            return None
        world.wrong += [f"killed: {line}" for line in look_at_the_rest(world, name)]
        if variant == ALIVE:
            world.write_all(5)
        elif variant in (DEAD, AGAIN):
            vm.kill()
            world.wrong += [f"both dead: {line}" for line in look_at_the_rest(world, name)]
        if variant == AGAIN:
            vm.start()
            world.wrong += [f"started: {line}" for line in look_at_the_rest(world, name)]
            world.write_all(5)
        finish_it(world, name, how)
        world.restart()
        return world.wrong


def look_at_the_rest(world, name):
    """The content alone: whatever was interrupted, this holds at any time."""
    for disk in world.disks:
        for other in [None, *world.held]:
            want = world.held[other][disk] if other else world.now[disk]
            if other != name and world.vm.read(world.file(disk, other).name, CLUSTERS) != want:
                yield f"{world.file(disk, other).name} is not {want}"
        if world.runs and world.vm.sees(disk, CLUSTERS) != world.now[disk]:
            yield f"{disk} as its guest sees it: {world.vm.sees(disk, CLUSTERS)}"


def kill_cases(point):
    """All that may come to that point, in any order."""
    cases = [(form, story, point, disk, variant)
             for form in ("-drive", "-blockdev")
             for story in STORIES
             for variant in (ALIVE, DEAD, AGAIN, OFF)
             for disk in ((0, 1) if point.startswith("graft.") else (0,))
             if (variant == OFF or story != "the newest, down")  # that is merge.c's: recover.t
             and (point != "graft.turned" or "down" in story)]
    random.Random(f"{SEED}{point}").shuffle(cases)
    return cases


def kills(t):
    """vmfrost is killed at each point of joining images; alone, with QEMU, and with QEMU started
    again before anybody recovers. Some cases for each point, others each time."""
    hows = itertools.cycle(("recover", "delete", "another operation, then recover"))
    for point in points():
        came = 0
        for form, story, _, disk, variant in kill_cases(point):
            if came == 3 and not FULL:
                break
            how = next(hows)
            try:
                wrong = kill_case(form, story, point, disk, variant, how)
            except LabError as error:
                wrong = [f"{error}"]
            if wrong is None:  # the second disk takes the other way, for one
                continue
            came += 1
            t.is_(wrong, [], f"{form}, {story}: killed at {point}" +
                  (" of the second disk" if disk else "") + f", {variant}; {how}")
        t.ok(came >= 3, f"killed at {point}")


def main():
    with Tap() as t:
        t.diag(f"SEED={SEED}")
        for part in (directions, branches, any_tree, unplugged, outsiders, left_writable, golden, no_room,
                     kills, any_order):
            if ONLY in part.__name__:
                began = time.monotonic()
                part(t)
                t.diag(f"{part.__name__}: {time.monotonic() - began:.1f} s")


main()
