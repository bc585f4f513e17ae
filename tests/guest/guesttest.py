# SPDX-License-Identifier: MIT
"""vmfrost on a real guest of the lab, and what has to be true whenever it is done.

    with guest_test() as (tap, folder):
        with Site(tap, folder, [Disk("web"), Disk("data")]) as site:
            site.boot()
            site.expect(0, "snapshot", "web@one")
            site.tidy("after the snapshot")

The guest, its faults and the looks into images are those of tests/lab.
"""

import contextlib
import json
import os
import re
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "lab"))

from lab import (PATIENCE, Disk, LabError, Qmp, RawCopy, Tap, Vm,  # noqa: E402,F401
                 connect_unix, ext4_needs_recovery, instant_problem, run, start_vmfrost, vmfrost,
                 vmfrost_program, wait_until, xfs_log_clean)

# What the lab and the tests themselves keep in a guest's folder.
FURNITURE = {"qmp.sock", "qmp2.sock", "qga.sock", "ctl.sock", "console.log", "qemu.log"}


@contextlib.contextmanager
def guest_test():
    """A Tap and a folder, for a whole test."""
    with Tap() as tap, tempfile.TemporaryDirectory(prefix="vmfrost-guest-") as name:
        began = time.monotonic()
        yield tap, Path(name)
        tap.diag(f"{time.monotonic() - began:.0f} s in all")


def inode_of(path):
    """(device, number) of a name, links not followed; None if there is nothing."""
    try:
        about = os.lstat(path)
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino


LOCK = re.compile(r"^lock:\t\d+: OFDLCK +ADVISORY +READ +.* (\d+) (\d+)$", re.M)
MAY_WRITE = 101  # the byte of an image that QEMU locks while it has the permission to write


def opened_by(pid):
    """The regular files that a process has open, {inode: written}: may it write to them?

    A file node that the launcher made by itself stays open for writing when its image is
    sealed; what tells then is the lock by which QEMU tells others of its permissions.
    """
    files = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            about = os.stat(f"/proc/{pid}/fd/{fd}")
            info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text(encoding="ascii")
        except OSError:  # closed in the meantime
            continue
        if not stat.S_ISREG(about.st_mode):
            continue
        flags = int(re.search(r"^flags:\s*(\d+)$", info, re.M).group(1), 8)
        locks = [(int(first), int(last)) for first, last in LOCK.findall(info)]
        written = flags & os.O_ACCMODE != os.O_RDONLY and (
            not locks or any(first <= MAY_WRITE <= last for first, last in locks))
        inode = about.st_dev, about.st_ino
        files[inode] = files.get(inode, False) or written
    return files


def is_stopped(command):
    """Has a Command been stopped by SIGSTOP? LabError if it has ended instead."""
    try:
        text = Path(f"/proc/{command.pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        text = ") Z"
    state = text.rpartition(")")[2].split()[0]
    if state in "ZX":
        raise LabError("vmfrost has ended: " + " | ".join(command.output()))
    return state == "T"


class Site:
    """A guest that vmfrost knows as `name`, with a state folder of its own.

    `settings` are those of `vmfrost add --set`; what else is given goes to
    the lab's Vm.
    """

    def __init__(self, tap, folder, disks, name="web", settings=(), **options):
        self.tap = tap
        self.name = name
        self.state_dir = Path(folder) / "state"
        self.vm = Vm(Path(folder) / "vm", disks, **options)
        self.settings = settings
        self.log = Path(folder) / "log"

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and self.log.exists():
            self.tap.diag("the end of the log:")
            self.tap.diag("\n".join(self.log_lines()[-40:]))
        self.vm.kill()

    # --- the guest

    def boot(self, agent=True):
        """Start the guest (again), and give it its name."""
        began = time.monotonic()
        self.vm.start()
        if agent:
            self.vm.wait_agent()
        else:
            self.vm.wait_ready()
        self.tap.diag(f"boot: {time.monotonic() - began:.1f} s")
        if not (self.folder / "vm.json").exists():
            self.add(*self.settings)
        return self

    def power_off(self):
        """End the guest in good order: its file systems are unmounted."""
        self.vm.sh("sync; for m in /mnt/*; do umount $m || exit 1; done", timeout=60)
        self.vm.quit()

    def add(self, *settings):
        """vmfrost add, with these settings."""
        words = [word for setting in settings for word in ("--set", setting)]
        done = self.run("add", self.name, "--qmp", self.vm.path("qmp.sock"), *words)
        if done.code:
            raise LabError(f"vmfrost add: {done.err}")

    def thawed(self, what):
        """A test: the guest is thawed: its agent says so, and a write proves it."""
        try:
            problem = "the agent says frozen" if self.vm.frozen() else None
            problem = problem or (None if self.vm.guest_writes_ok() else "a write hangs")
        except LabError as error:
            problem = str(error)
        return self.tap.is_(problem, None, f"{what}: the guest is thawed, and writes")

    # --- the command

    def run(self, *words, env=None, timeout=PATIENCE):
        """Run a command to its end: its Result."""
        return vmfrost(*words, "--log", self.log, env=env, state_dir=self.state_dir,
                       timeout=timeout)

    def start(self, *words, env=None):
        """Start a command: a Command."""
        return start_vmfrost([*words, "--log", self.log], env=env, state_dir=self.state_dir)

    def judge(self, done, code, what):
        """A test: has the command ended with this code?"""
        if not self.tap.is_(done.code, code, what):
            self.tap.diag(f"stdout: {done.out}\nstderr: {done.err}")
        return done

    def expect(self, code, *words, what=None, env=None):
        """A test: does the command end with this code? Its Result."""
        what = what or f"vmfrost {' '.join(map(str, words))}: exit {code}"
        return self.judge(self.run(*words, env=env), code, what)

    def snapshot(self, code, name, *options, what=None, env=None):
        """A test: does a snapshot end with this code? Its record, None if there is none."""
        self.expect(code, "snapshot", f"{self.name}@{name}", *options, what=what, env=env)
        return self.record(name)

    def log_lines(self):
        """What the log has so far, line by line."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    # --- vmfrost's own state

    @property
    def folder(self):
        """STATE/vms/NAME."""
        return self.state_dir / "vms" / self.name

    def records(self):
        """All records, oldest first."""
        done = self.run("list", self.name, "--json")
        if done.code:
            raise LabError(f"vmfrost list: {done.err}")
        return json.loads(done.out)

    def record(self, name):
        """The record of a snapshot; None if there is none."""
        return next((record for record in self.records() if record["name"] == name), None)

    def status(self):
        """What `status --json` says."""
        return json.loads(self.run("status", self.name, "--json").out)

    def journal(self):
        """The lines of the journal; None if there is none."""
        try:
            text = (self.folder / "journal").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def journal_states(self):
        """The states that the journal tells of, in their order."""
        return [line["state"] for line in self.journal() or [] if "state" in line]

    def guards(self):
        """The pids of this site's guards."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                if Path(f"/proc/{entry}/comm").read_text(encoding="utf-8") != "vmfrost-guard\n":
                    continue
                words = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"VMFROST_STATE_DIR={self.state_dir}".encode() in words:
                found.append(int(entry))
        return found

    @staticmethod
    def kill_guard(pid):
        """SIGKILL for one of guards()."""
        os.kill(pid, signal.SIGKILL)

    # --- what has to be true

    def image(self, disk, snapshot=None):
        """The path of a disk's image: the current one, or that of a snapshot."""
        return self.vm.path(f"{disk}@{snapshot}.qcow2" if snapshot else f"{disk}.qcow2")

    def listing(self):
        """The names in the guest's folder with their inodes."""
        return {name: inode_of(self.vm.path(name)) for name in os.listdir(self.vm.folder)
                if name not in FURNITURE}

    def graph(self):
        """QEMU's nodes, with what they stand on and who uses them, without node ids."""
        graph = self.vm.qmp("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        return sorted(names.values()), sorted(
            (names[edge["parent"]], edge["name"], names[edge["child"]]) for edge in graph["edges"])

    def _idle_nodes(self):
        """Nodes of vmfrost's that no disk of the guest uses."""
        graph = self.vm.qmp("x-debug-query-block-graph")
        used = {node["id"] for node in graph["nodes"] if node["type"] == "block-backend"}
        while True:
            below = {edge["child"] for edge in graph["edges"] if edge["parent"] in used}
            if below <= used:
                break
            used |= below
        return [node["name"] for node in graph["nodes"]
                if node["name"].startswith("vf") and node["id"] not in used]

    def _names_of_qemu(self):
        """The names under which QEMU knows the images that it has open."""
        names = set()
        for node in self.vm.qmp("query-named-block-nodes", {"flat": True}):
            if node["drv"] == "file":
                names.add(os.path.basename(node["file"]))
        return names

    def wrong_names(self):
        """Disks whose own name does not lead to the one image that QEMU writes to."""
        opened = opened_by(self.vm.pid)
        tops = [inode_of(self.vm.path(disk.file)) for disk in self.vm.disks]
        wrong = []
        for disk in self.vm.disks:
            if not opened.get(inode_of(self.vm.path(disk.file))):
                wrong.append(f"{disk.file} does not lead to what QEMU writes to")
        for name, inode in self.listing().items():
            if opened.get(inode) and inode not in tops:
                wrong.append(f"QEMU writes to {name}")
        return wrong

    def strays(self):
        """Whatever is left that should not be: names, nodes, jobs, the journal, guards."""
        images = {disk.file for disk in self.vm.disks}
        unfinished = set()
        for record in self.records():
            if record["phase"] == "InProgress":
                yield f"the record {record['name']} is in progress"
            cuts = record.get("cuts", [])
            if record.get("readyToUse"):
                images |= {os.path.basename(volume["image"])
                           for volume in record["snapshotVolumes"]["included"]}
            else:
                # A deletion, or an undo, that was interrupted in the middle and is to be repeated:
                # some of its disks may be merged already.
                unfinished |= {os.path.basename(cut[name]) for cut in cuts
                               for name in ("overlay", "sealed")}
        listing = self.listing()
        yield from (f"{name} is missing" for name in images - set(listing))
        opened = opened_by(self.vm.pid) if self.vm.alive() else {}
        known = self._names_of_qemu() if self.vm.alive() else set()
        for name in sorted(set(listing) - images - unfinished):
            # A running QEMU may open an image anew by the name that it was given.
            if name not in known or listing[name] not in opened:
                yield f"the name {name}"
        if self.vm.alive():
            yield from self.wrong_names()
            yield from (f"the node {name}" for name in self._idle_nodes())
            yield from (f"the job {job['id']}" for job in self.vm.qmp("query-jobs"))
        for entry in sorted(os.listdir(self.folder)):
            if entry not in ("vm.json", "lock", "records", "links.json", "disks.json"):
                yield f"{entry} in vmfrost's folder"
        yield from (f"the guard {pid}" for pid in self.guards())

    def tidy(self, what):
        """A test: nothing is left that should not be."""
        with contextlib.suppress(LabError):  # told below
            wait_until(lambda: not self.guards(), 5, "the guard's end")
        return self.tap.is_(list(self.strays()), [], f"{what}: nothing stray is left")

    def damage(self):
        """What the checks of images and file systems say of a guest that is off: sentences."""
        wrong = []
        for disk in self.vm.disks:
            if disk.fs:
                with RawCopy(self.image(disk.name)) as raw:
                    words = ["xfs_repair", "-n"] if disk.fs == "xfs" else ["e2fsck", "-fn"]
                    done = run(*words, raw, check=False)
                    if done.returncode:
                        wrong.append(f"{disk.name}: {done.stdout[-400:]}")
            wrong += self.damaged_tables(disk.name)
        return wrong

    def damaged_tables(self, disk):
        """What qemu-img says of an image: sentences. Clusters that nobody uses are what a SIGKILL of
        QEMU may leave, and nothing else."""
        done = run("qemu-img", "check", self.image(disk), check=False)
        good = (0, 3) if self.vm.killed else (0,)
        return [] if done.returncode in good else [f"{disk}: qemu-img check: {done.stdout}"]

    def one_instant(self, disk_a, disk_b, acked, what, snapshot=None):
        """A test: two images of the writer's disks are of one instant, with all `acked` records."""
        return self.tap.is_(
            instant_problem(self.image(disk_a, snapshot), self.image(disk_b, snapshot), acked=acked),
            None, f"{what}: of one instant, with all that was acknowledged")
