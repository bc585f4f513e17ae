# SPDX-License-Identifier: MIT
"""A guest behind the proxy, what is done to it, and what has to be true afterwards: the oracle, which
asks QEMU, the guest, the images and /proc, and believes vmfrost nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "guest"))

from guesttest import Site, ext4_needs_recovery  # noqa: E402  # finds the lab
import lab  # noqa: E402
from lab import RECORD, RECORD_SLOTS, Disk, LabError, Qmp, RawCopy, Vm, run, wait_until  # noqa: E402
from proxy import Proxy  # noqa: E402

WRITER_US = 4000  # between the writer's records
THAW_S = 40  # for a guard, its guest and a busy machine


class ProxiedVm(Vm):
    """A Vm whose monitor and agent are reached through a proxy."""

    def __init__(self, folder, *rest, **options):
        super().__init__(folder, *rest, **options)
        self.fronts = Path(folder).parent / "front"
        self.fronts.mkdir()
        self.proxy = Proxy({"qmp": (self.fronts / "qmp", self.path("qmp.sock")),
                            "qga": (self.fronts / "qga", self.path("qga.sock"))})

    def start(self):
        for disk in self.disks:
            disk.create(self.folder)
        sockets = self.proxy.bind()
        parent = os.getpid()

        def before_qemu():
            lab._die_with_parent(parent)
            for sock in sockets:
                sock.listen(16)

        with open(self.path("qemu.log"), "ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in self.argv], cwd=self.folder, preexec_fn=before_qemu,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        lab._children.add(self.process)
        self.proxy.serve(sockets)
        return self

    def kill(self):
        super().kill()
        self.proxy.refuse()

    def quit(self, timeout=lab.PATIENCE):
        code = super().quit(timeout)
        self.proxy.refuse()
        return code

    def boots(self):
        """How often a guest has come up."""
        text = self.path("console.log")
        return text.read_bytes().count(b"VMFROST-LAB READY") if text.exists() else 0


class Ring:
    """The writer's records in an image, by number, whatever its run."""

    def __init__(self, image):
        self.runs = {}
        self.torn = 0
        with RawCopy(image) as raw:
            for sector in lab._record_sectors(raw):
                _, began, number, crc = RECORD.unpack(sector)
                if crc == zlib.crc32(sector[:-4]):
                    self.runs.setdefault(began, set()).add(number)
                else:
                    self.torn += 1

    @property
    def run(self):
        return next(iter(self.runs)) if len(self.runs) == 1 else None

    @property
    def last(self):
        return max(self.runs[self.run]) if self.run is not None else 0

    def lacks(self, writer_run, acked):
        """Why it is not what the writer has promised so far, while it goes on writing."""
        if self.torn:
            return f"{self.torn} torn records"
        if set(self.runs) != {writer_run}:
            return f"records of the runs {sorted(self.runs)}, not of {writer_run}"
        # What the writer overwrites meanwhile is not looked for.
        missing = set(range(max(1, acked - RECORD_SLOTS + 3000), acked + 1)) - self.runs[writer_run]
        if missing:
            return f"{len(missing)} of {acked} records are missing, from {min(missing)} to {max(missing)}"
        return None

    def broken(self):
        """Why an image that stands still is not whole."""
        if self.torn:
            return f"{self.torn} torn records"
        if len(self.runs) > 1:
            return f"records of {len(self.runs)} runs"
        if self.runs:
            gaps = set(range(max(1, self.last - RECORD_SLOTS + 1), self.last + 1)) ^ self.runs[self.run]
            if gaps:
                return f"{self.last} is there, {min(gaps)} is not (or should not be)"
        return None


class DiskServer:
    """A disk of the guest's that comes over NBD, which no snapshot has, and that hangs if we want. A
    monitor whose out-of-band commands are answered even then."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.socket, self.monitor = self.folder / "nbd", self.folder / "qmp3"
        with open(self.folder / "net.raw", "wb") as image:
            image.truncate(8 << 20)
        self.process = lab.spawn(["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", self.socket,
                                  self.folder / "net.raw"], stdin=subprocess.DEVNULL)
        wait_until(self.socket.exists, what="qemu-nbd")
        self.qmp = None

    def words(self):
        """For QEMU's command line."""
        return ["-drive", f"file=nbd+unix:///?socket={self.socket},format=raw,if=none,id=net",
                "-device", "virtio-blk-pci,drive=net,serial=net,id=net-dev",
                "-qmp", f"unix:{self.monitor},server=on,wait=off"]

    def begin(self, vm):
        """The guest goes on writing there. As long as QEMU lives, unless it is yanked."""
        self.hang_up()
        self.qmp = Qmp(self.monitor, enable=["oob"])
        vm.sh("for s in /sys/block/vd*/serial; do [ $(cat $s) = net ] && d=${s%/serial}; done; "
              "(while :; do dd if=/dev/zero of=/dev/${d##*/} bs=4k count=1 conv=fsync || sleep 1; "
              "usleep 20000; done) </dev/null >/dev/null 2>&1 &")

    def hang_up(self):
        if self.qmp:
            self.qmp.close()
        self.qmp = None

    def stop(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def yank(self):
        """QEMU lets go of the connection: what waits for it fails."""
        with contextlib.suppress(LabError, OSError):
            found = self.qmp.command("query-yank", out_of_band=True)
            nodes = [each for each in found if each["type"] == "block-node"]
            self.qmp.command("yank", {"instances": nodes}, out_of_band=True)

    def end(self):
        self.hang_up()
        self.process.kill()
        self.process.wait()


class World(Site):
    """One guest, for many runs; with its partner, if groups are to be made."""

    def __init__(self, tap, folder, config, name="web", state=None):
        disks = [Disk("web")]
        if config["disks"] > 1:
            disks.append(Disk("data", fs="xfs" if config["xfs"] else "ext4"))
        if config["disks"] > 2:
            disks.append(Disk("blank", fs=None, size=16 << 20))
        super().__init__(tap, folder, disks, name=name)
        self.state_dir = state or self.state_dir
        self.nbd = DiskServer(folder) if config.get("nbd") else None
        self.vm = ProxiedVm(Path(folder) / "vm", disks, attach=config["attach"],
                            iothread=config["iothread"], bus=config["bus"],
                            absolute=config["absolute"],
                            extra=self.nbd.words() if self.nbd else ())
        self.partner = None
        if config.get("partner"):
            Path(folder, "db").mkdir()
            about = {**config, "disks": 1, "nbd": False, "partner": False}
            self.partner = World(tap, Path(folder) / "db", about, "db", self.state_dir)
            self.partner.log = self.log
        self.filler = Path(folder) / "filler"
        self.written = [disk.name for disk in disks if disk.fs]
        self.writer_run = None
        self.acked = 0
        self.sealed = {}  # name: {disk: (run, last)}, as first seen

    def add(self, *settings):
        for words in (["add", self.name, "--qmp", self.vm.fronts / "qmp",
                       "--agent", self.vm.fronts / "qga"],
                      ["storage", "set", "remote", "match.protocol=nbd", "snapshot=no"]):
            done = self.run(*words)
            if done.code:
                raise LabError(f"vmfrost {words[0]}: {done.err}")

    def up(self):
        """Boots, and starts the writer."""
        self.boot()
        self.begin_writing()
        if self.partner:
            self.partner.up()
        return self

    def end(self):
        """The guest, its partner and all that belongs to them."""
        if self.partner:
            self.partner.end()
        self.vm.kill()
        for guard in self.guards():
            self.kill_guard(guard)
        if self.nbd:
            self.nbd.end()

    def fill(self):
        """Not a byte is free any more, where the images and vmfrost's state are."""
        about = os.statvfs(self.filler.parent)
        with open(self.filler, "wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, about.f_bavail * about.f_frsize)

    def make_room(self):
        self.filler.unlink(missing_ok=True)

    def off(self):
        """Powers the guest off, and has seen all that it was promised."""
        self.acked = self.vm.stop_writer()
        self.power_off()
        self.vm.proxy.refuse()

    def begin_writing(self):
        if self.nbd:
            self.nbd.begin(self.vm)
        self.vm.sh("lab-writer stop", timeout=60, check=False)
        self.vm.start_writer(*self.written, pause_us=WRITER_US)
        self.acked = self.vm.writer_acked()
        ring = Ring(self.image("web"))
        self.writer_run = ring.run

    def look(self):
        """What the guest has been promised by now."""
        self.acked = self.vm.writer_acked()
        return self.acked

    def names(self):
        """The snapshots' names, oldest first; the records."""
        return {record["name"]: record for record in self.records()}

    # --- the oracle. Each yields sentences, of what is wrong.

    def current_problems(self, also=None):
        """Is on the disks, by the launcher's names, what the guest was promised? `also`: or what is
        in that snapshot (a restore that may have come to its end)."""
        found = {disk: Ring(self.image(disk)) for disk in self.written}
        wrong = []
        for disk, ring in found.items():
            problem = ring.lacks(self.writer_run, self.acked)
            if problem:
                wrong.append(f"{disk}: {problem}")
        if wrong and also and all(
                (ring.run, ring.last) == also.get(disk, (None, None)) and not ring.broken()
                for disk, ring in found.items()):
            return "restored", []
        return "kept", wrong

    def snapshot_ring(self, record):
        """What a snapshot has of the writer's: {disk: (run, last)}, and what is wrong with it."""
        wrong, found = [], {}
        for volume in record["snapshotVolumes"]["included"]:
            disk = volume["name"].removesuffix("-dev")
            disk = next((name for name in self.written
                         if os.path.basename(volume["image"]).startswith(f"{name}@")), None)
            if not disk:
                continue
            ring = Ring(volume["image"])
            problem = ring.broken()
            if problem:
                wrong.append(f"{record['name']}, {disk}: {problem}")
            found[disk] = (ring.run, ring.last)
        lasts = [found[disk][1] for disk in self.written if disk in found]
        if lasts and (sorted(lasts, reverse=True) != lasts or lasts[0] - lasts[-1] > 1 or
                      len({began for began, _ in found.values()}) > 1):
            wrong.append(f"{record['name']}: not of one instant: {found}")
        return found, wrong

    def sealed_problems(self, records, names, new=None, least=0, most=None):
        """Are those snapshots what they were when they were first seen?"""
        for name in names:
            record = records[name]
            if not record["readyToUse"]:
                continue
            found, wrong = self.snapshot_ring(record)
            yield from wrong
            if name in self.sealed:
                if self.sealed[name] != found:
                    yield f"{name} had {self.sealed[name]}, and has {found}"
                continue
            self.sealed[name] = found
            for disk, (began, last) in found.items():
                if name == new and began != self.writer_run:
                    yield f"{name}, {disk}: of the run {began}, not {self.writer_run}"
                if name == new and (last < least or last > most):
                    yield f"{name}, {disk}: ends with {last}, not in {least}..{most}"
            if name == new and record["consistency"] == "filesystem":
                for volume in record["snapshotVolumes"]["included"]:
                    if "web@" in volume["image"] and ext4_needs_recovery(volume["image"]):
                        yield f"{name}: called consistent, and its journal is to be replayed"
        for name in set(self.sealed) - set(records):
            del self.sealed[name]

    def table_problems(self, records):
        """qemu-img check of everything that nobody writes to."""
        images = {volume["image"] for record in records.values() if record["readyToUse"]
                  for volume in record["snapshotVolumes"]["included"]}
        if not self.vm.alive():
            images |= {str(self.vm.path(disk.file)) for disk in self.vm.disks}
        for image in images:
            done = run("qemu-img", "check", "-U", image, check=False)
            if done.returncode not in (0, 3):
                yield f"qemu-img check {image}: {done.stdout[-300:]}"

    def thaw_problem(self, patience=THAW_S):
        """Does the guest write, within that time?"""
        try:
            if self.vm.guest_writes_ok(timeout=patience):
                return None
            return f"the guest does not write within {patience} s"
        except LabError as error:
            return f"the guest's shell: {error}"

    def strays(self):
        """But for names that vmfrost keeps for a QEMU as long as that lives, whether it needs them or
        not, and for what a SIGKILL has left of a file that was being replaced: the next one who
        replaces it begins with that."""
        kept = set()
        with contextlib.suppress(OSError, ValueError):
            kept = {os.path.basename(link["path"]) for link in
                    json.loads((self.folder / "links.json").read_text(encoding="utf-8"))
                    if self.vm.alive() and link["qemu"] == self.vm.pid}
        return [stray for stray in super().strays()
                if stray.removeprefix("the name ") not in kept
                and not stray.endswith(".new in vmfrost's folder")]

    def stray_problems(self):
        with contextlib.suppress(LabError):
            wait_until(lambda: not self.strays(), 10, "tidiness", interval=0.3)
        return self.strays()

    def daemons(self):
        """Storage daemons of vmfrost's that have an image of ours open."""
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and "qemu-storage" in Path(f"/proc/{entry}/comm").read_text() and any(
                        os.readlink(f"/proc/{entry}/fd/{fd}").startswith(str(self.vm.folder))
                        for fd in os.listdir(f"/proc/{entry}/fd")):
                    found.append(int(entry))
        return found


