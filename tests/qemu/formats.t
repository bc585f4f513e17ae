#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every kind of image on every kind of device: what was written before a snapshot is in the sealed
image, what is written after it is not, the guest sees both; and it can be deleted again.

cut.t has the whole story of qcow2 images; plan.t has which disks are taken, and their names.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (CLUSTER, SIZE, Qemu, Tap, blockdev, drive, image_bytes, image_info, lab,
                  loop_device, make_image, run, wait_until)

SLOW = ["-object", "throttle-group,id=slow,x-iops-total=100000"]
THREADS = ["-object", "iothread,id=io0", "-object", "iothread,id=io1"]


def throttled(name, file=None, fmt="qcow2", device="virtio-blk-pci", device_options=""):
    """A disk below a throttle filter."""
    file = file or f"{name}.{fmt}"
    return ["-blockdev", f"driver=file,filename={file},node-name={name}-file",
            "-blockdev", f"driver={fmt},file={name}-file,node-name={name}",
            "-blockdev", f"driver=throttle,throttle-group=slow,file={name},node-name={name}-top",
            "-device", f"{device},drive={name}-top,id={name}-dev{device_options}"]


def content(path, fmt, clusters):
    """The first bytes of clusters of an image or a block device, whoever has it open."""
    if fmt != "raw":
        return image_bytes(path, clusters)
    with open(path, "rb") as image:
        return [image.read(CLUSTER)[0] for _ in range(clusters)]


class Story:
    """Two snapshots of all disks of a VM. `disks` has the format of each by name."""

    def __init__(self, t, vm, what, disks, base=None):
        self.t, self.vm, self.what, self.disks = t, vm, what, disks
        self.base = base  # (path, format) of what a disk that is no file holds
        self.wrong = []
        self.headers = {}  # by disk, which format the first overlay says that its base has

    def look(self, when, found, wanted):
        if found != wanted:
            self.wrong.append(f"{when}: {found} and not {wanted}")

    def write(self, pattern, cluster):
        for disk in self.disks:
            self.vm.write(disk, pattern, cluster)

    def sees(self, when, wanted):
        for disk in self.disks:
            self.look(f"{when}, {disk}, what the guest sees", self.vm.sees(disk, len(wanted)),
                      wanted)

    def take(self, name):
        """{disk: volume of its record}"""
        record = self.vm.take(name)
        volumes = {}
        for volume in record["snapshotVolumes"]["included"]:
            disk = volume["name"].removesuffix("-dev")
            volumes[disk] = volume
        self.look(f"{name}, its disks", sorted(volumes), sorted(self.disks))
        return volumes

    def hold(self, when, volumes, sealed, current):
        """What the images of these disks hold, by our own eyes."""
        for disk, volume in volumes.items():
            path, fmt = self.base if self.base and not Path(volume["image"]).exists() else (
                volume["image"], volume["format"])
            self.look(f"{when}, {disk}, {path}", content(path, fmt, len(sealed)), sealed)
            if volume["current"].endswith(".qcow2") and not self.base:
                self.look(f"{when}, {disk}, {volume['current']}",
                          content(volume["current"], "qcow2", len(current)), current)

    def tell(self):
        t, vm = self.t, self.vm
        self.write(1, 0)
        for disk in self.disks:  # so that merging down is cheaper
            vm.write(disk, 1, 8, 8)
        graph, names = vm.graph(), vm.names()
        chains = {disk: len(vm.chain(disk)) for disk in self.disks}
        one = self.take("one")
        self.headers = {disk: image_info(volume["current"])["backing-filename-format"]
                        for disk, volume in one.items()}
        self.write(2, 1)
        self.sees("one", [1, 2, 0])
        self.hold("one", one, [1, 0, 0], [1, 2, 0])
        two = self.take("two")
        self.write(3, 0)
        self.sees("two", [3, 2, 0])
        self.hold("two", two, [1, 2, 0], [3, 2, 0])
        vm.delete("two")
        self.write(4, 2)
        self.sees("two deleted", [3, 2, 4])
        self.hold("two deleted", one, [1, 0, 0], [3, 2, 4])
        for disk, volume in two.items():
            if Path(volume["image"]).exists():
                self.wrong.append(f"two deleted, {disk}: {volume['image']} is still there")
        vm.delete("one")
        self.sees("one deleted", [3, 2, 4])
        self.look("one deleted, the graph", vm.graph(), graph)
        for disk in self.disks:
            self.look(f"one deleted, {disk}, its chain", len(vm.chain(disk)), chains[disk])
        # Its own QEMU still runs, so that disks which went on in a new file are in the old one again.
        self.look("one deleted, names", vm.names(), names)
        for disk, volume in one.items():
            path, fmt = self.base or (volume["image"].replace("@one", ""), volume["format"])
            self.look(f"one deleted, {disk}, {path}", content(path, fmt, 3), [3, 2, 4])
            if Path(volume["current"]).exists() != (volume["naming"] == "flip"):
                self.wrong.append(f"one deleted, {disk}: {volume['current']}")
        self.look("the end, the journal and jobs", (vm.journal(), vm.jobs()), ([], []))
        t.is_(self.wrong, [], self.what)


def story(t, what, before, forms, bus="", device="virtio-blk-pci", device_options=""):
    """Every form of disk on one kind of device, in one VM and one snapshot."""
    words, disks = list(before), {}
    for number, (name, form, fmt) in enumerate(forms):
        options = device_options.replace("%", str(number)) + (bus and f",bus={bus}")
        words += form(name, fmt=fmt, device=device, device_options=options)
        disks[name] = fmt
    with Qemu(words, [f"{name}.{fmt}" for name, fmt in disks.items()]) as vm:
        Story(t, vm, what, disks).tell()


QCOW2 = [("qd", drive, "qcow2"), ("qb", blockdev, "qcow2"), ("qt", throttled, "qcow2")]
RAW = [("rd", drive, "raw"), ("rb", blockdev, "raw"), ("rt", throttled, "raw")]


def devices(t):
    scsi = ["-device", "virtio-scsi-pci,id=scsi0"]
    kinds = {
        "virtio-blk": ([], {}),
        "virtio-blk on an iothread": (THREADS, {"device_options": ",iothread=io0"}),
        "virtio-scsi": (scsi, {"device": "scsi-hd", "bus": "scsi0.0"}),
        "virtio-scsi on an iothread": (
            [*THREADS, "-device", "virtio-scsi-pci,id=scsi0,iothread=io0"],
            {"device": "scsi-hd", "bus": "scsi0.0"}),
        "IDE": ([], {"device": "ide-hd", "device_options": ",bus=ide.%"}),
        "NVMe": ([], {"device": "nvme", "device_options": ",serial=s%"}),
    }
    for kind, (before, options) in kinds.items():
        for what, forms in (("qcow2", QCOW2), ("raw", RAW)):
            story(t, f"{what} by -drive, by -blockdev and throttled, {kind}", SLOW + before, forms,
                  **options)


def together(t):
    """Disks of all kinds, each on a thread of its own or on none, in one snapshot."""
    words = [*SLOW, *THREADS, "-device", "virtio-scsi-pci,id=scsi0,iothread=io0",
             "-device", "virtio-scsi-pci,id=scsi1,iothread=io1", "-device", "virtio-scsi-pci,id=scsi2",
             *drive("a", device="scsi-hd", device_options=",bus=scsi0.0"),
             *blockdev("b", device="scsi-hd", device_options=",bus=scsi1.0"),
             *throttled("c", device="scsi-hd", device_options=",bus=scsi2.0"),
             *drive("d", device="ide-hd"),
             *blockdev("e", device="nvme", device_options=",serial=x"),
             *drive("f")]
    disks = {name: "qcow2" for name in "abcdef"}
    with Qemu(words, [f"{name}.qcow2" for name in disks]) as vm:
        Story(t, vm, "disks on different threads and buses", disks).tell()
    words += drive("r", fmt="raw", device="scsi-hd", device_options=",bus=scsi0.0")
    words += blockdev("s", fmt="raw", device="scsi-hd", device_options=",bus=scsi1.0")
    disks.update({"r": "raw", "s": "raw"})
    with Qemu(words, [f"{name}.{fmt}" for name, fmt in disks.items()]) as vm:
        Story(t, vm, "... and some of them raw", disks).tell()


def overlays_of(vm, name="overlays"):
    """A folder for the overlays of what is no file."""
    folder = vm.folder / name
    folder.mkdir()
    os.chmod(folder, 0o777)
    lab.vmfrost("storage", "set", "any", f"overlayFolder={folder}", state_dir=vm.state)


def block_device(t):
    for attach in ("drive", "blockdev"):
        vm = Qemu([], [])
        device = loop_device(t, vm)
        if not device:
            return
        vm.words = ["-drive", f"file={device},format=raw,if=none,id=web"]
        if attach == "blockdev":
            vm.words = ["-blockdev", f"driver=host_device,filename={device},node-name=file",
                        "-blockdev", "driver=raw,file=file,node-name=web"]
        vm.words += ["-device", "virtio-blk-pci,drive=web,id=web-dev"]
        try:
            overlays_of(vm)
            vm.start()
            Story(t, vm, f"a block device, {attach}", {"web": "raw"}, (device, "raw")).tell()
        finally:
            vm.kill()
            run("losetup", "--detach", device)
            vm.__exit__()


def network(t):
    for attach in ("drive", "blockdev"):
        vm = Qemu([], ["web.qcow2"])
        image, socket = vm.disks / "web.qcow2", vm.run / "nbd"
        server = lab.spawn(["qemu-nbd", "-t", "-e", "4", "-k", socket, "-f", "qcow2", image])
        wait_until(socket.exists, what="qemu-nbd")
        vm.words = ["-drive", f"file=nbd+unix:///?socket={socket},format=raw,if=none,id=web"]
        if attach == "blockdev":
            vm.words = ["-blockdev", f"driver=nbd,server.type=unix,server.path={socket},node-name=n",
                        "-blockdev", "driver=raw,file=n,node-name=web"]
        vm.words += ["-device", "virtio-blk-pci,drive=web,id=web-dev"]
        overlays_of(vm)
        with vm:
            Story(t, vm, f"NBD, {attach}", {"web": "raw"}, (image, "qcow2")).tell()
        lab._end(server)  # pylint: disable=protected-access


def encrypted(t):
    """No overlay in the clear is put on an encrypted disk, wherever it is encrypted: plan.t has LUKS
    inside of qcow2, here it is below and above other things."""
    secret = ["-object", "secret,id=key,data=abc"]
    luks = ["-blockdev", "driver=file,filename=web.luks,node-name=file",
            "-blockdev", "driver=luks,file=file,key-secret=key,node-name=web"]
    cases = {
        "LUKS": [*luks, "-device", "virtio-blk-pci,drive=web,id=web-dev"],
        "LUKS by -drive": ["-drive", "driver=luks,file.filename=web.luks,key-secret=key,if=none,id=web",
                           "-device", "virtio-blk-pci,drive=web,id=web-dev"],
        "qcow2 in LUKS": [*luks, "-blockdev", "driver=qcow2,file=web,node-name=top",
                          "-device", "virtio-blk-pci,drive=top,id=web-dev"],
        "LUKS below a throttle": [
            *SLOW, *luks,
            "-blockdev", "driver=throttle,throttle-group=slow,file=web,node-name=top",
            "-device", "virtio-blk-pci,drive=top,id=web-dev"],
    }
    for what, words in cases.items():
        vm = Qemu([*secret, *words, *drive("data")], ["data.qcow2"])
        image, key = vm.disks / "web.luks", secret[1]
        run("qemu-img", "create", "-q", "--object", key, "-f", "luks", "-o",
            "key-secret=key,iter-time=10", image, SIZE)
        if what == "qcow2 in LUKS":
            run("qemu-img", "convert", "-n", "--object", key, "--target-image-opts", "-f", "raw",
                make_image(vm.folder / "inner.qcow2"),
                f"driver=luks,key-secret=key,file.filename={image}")
        with vm:
            for method in ("existing", "preopened"):
                out = vm.vmfrost("snapshot", "@one", "--method", method)
                t.ok(out.code == 1 and "disk web" in out.error and "encrypted" in out.error,
                     f"{what}, {method}: refused: {out.error.rpartition('@one: ')[2]}")
            t.is_((vm.names(), vm.journal()), (["data.qcow2", "web.luks"], []),
                  "... nothing is left")


def bare_protocol(t):
    """A disk without a format's node: QEMU's words are driver=file."""
    words = ["-blockdev", "driver=file,filename=web.raw,node-name=web",
             "-device", "virtio-blk-pci,drive=web,id=web-dev"]
    with Qemu(words, ["web.raw"]) as vm:
        story = Story(t, vm, "a file that has no format", {"web": "raw"})
        story.tell()
        t.is_(story.headers, {"web": "raw"}, "... is raw for its overlay")


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (devices, together, block_device, network, encrypted, bare_protocol):
            if only in part.__name__:
                part(t)


main()
