# SPDX-License-Identifier: MIT
"""A real QEMU without a guest: its processor halts at its first instruction.

Everything about disks is as with a guest (nodes, files, locks, jobs, reopening by name), but it is
there in a moment. What a guest would write is written through the device by `qemu-io`.

    with Qemu(drive("web") + drive("data")) as vm:
        vm.write("web", 1)
        vm.take("one")

Folders of a Qemu: `disks` (images; QEMU's working directory), `run` (sockets, log), `state`.
"""

import functools
import contextlib
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))
import lab  # pylint: disable=wrong-import-position
from lab import LabError, Qmp, QmpError, Tap, run, wait_until  # noqa: F401

MIB = lab.MIB
CLUSTER = 65536
SIZE = 16 * MIB

_root = tempfile.TemporaryDirectory(prefix="vmfrost-qemu-", ignore_cleanup_errors=True)
ROOT = Path(_root.name)
os.chmod(ROOT, 0o755)  # some QEMUs here run as nobody


def _halting_bios():
    """A firmware that stops the processor: hlt, and back to it."""
    path = ROOT / "halt.bin"
    if not path.exists():
        image = bytearray(b"\xf4" * 65536)
        image[0xfff0:0xfff4] = b"\xfa\xf4\xeb\xfd"
        path.write_bytes(image)
    return path


_templates = {}


def make_image(path, fmt="qcow2", size=SIZE, options=""):
    """An empty image (a copy of one made before, where that is all)."""
    path = Path(path)
    if fmt == "raw":
        with open(path, "wb") as image:
            image.truncate(size)
    else:
        key = (fmt, size, options)
        if key not in _templates:
            _templates[key] = ROOT / f"template-{len(_templates)}"
            run("qemu-img", "create", "-q", "-f", fmt, *(["-o", options] if options else []),
                _templates[key], size)
        shutil.copyfile(_templates[key], path)
    os.chmod(path, 0o666)
    return path


def loop_device(tap, vm, image="disk.raw"):
    """A block device with an empty raw image below it, to be detached with losetup; None, and a
    skipped test, where there are no such devices."""
    make_image(vm.disks / image, "raw")
    done = run("losetup", "--find", "--show", vm.disks / image, check=False)
    if done.returncode:
        tap.skip("a block device", f"losetup: {done.stderr.strip()}")
        return None
    return done.stdout.strip()


@contextlib.contextmanager
def small_folder(tap, folder, size):
    """A folder that is a file system of so many MiB; None, and a skipped test, where none can be
    mounted."""
    folder.mkdir(exist_ok=True)
    done = run("mount", "-t", "tmpfs", "-o", f"size={size}m", "vmfrost-test", folder, check=False)
    if done.returncode:
        tap.skip("a small file system", f"mount: {done.stderr.strip()}")
        yield None
        return
    try:
        yield folder
    finally:
        run("umount", "-l", folder)


# --- QEMU's words for a disk; `file` as QEMU shall have it ------------------

def drive(name, file=None, fmt="qcow2", options="", device="virtio-blk-pci", device_options=""):
    """-drive if=none with a device: the file's node is QEMU's own, reopened by name."""
    file = (file or f"{name}.{fmt}").replace(",", ",,")
    return ["-drive", f"file={file},format={fmt},if=none,id={name}{options}",
            "-device", f"{device},drive={name},id={name}-dev{device_options}"]


def blockdev(name, file=None, fmt="qcow2", options="", file_options="", device="virtio-blk-pci",
             device_options=""):
    """-blockdev for format and file: the file's node is the launcher's."""
    file = (file or f"{name}.{fmt}").replace(",", ",,")
    return ["-blockdev", f"driver=file,filename={file},node-name={name}-file{file_options}",
            "-blockdev", f"driver={fmt},file={name}-file,node-name={name}{options}",
            "-device", f"{device},drive={name},id={name}-dev{device_options}"]


Out = namedtuple("Out", "code result steps document error next err")
Out.__doc__ = """What a command said with --json: exit code, the last line, the steps before it as
(name, state), and of the last line its document and its error's message and hint; stderr."""


def read_out(done):
    """An Out of a Result."""
    lines = []
    try:
        lines = [json.loads(line) for line in done.out.splitlines()]
    except ValueError:
        pass
    result = lines[-1] if lines else {}
    if "event" not in result:  # status, list, show: one document over several lines
        try:
            result = json.loads(done.out)
        except ValueError:
            result = {}
        error = result.get("error") if isinstance(result, dict) else None
        error = error if isinstance(error, dict) else {}
        return Out(done.code, result, [], result, error.get("message", ""), error.get("next", ""),
                   done.err)
    error = result.get("error") or {}
    steps = [(line["step"], line["state"]) for line in lines[:-1] if line.get("event") == "step"]
    return Out(done.code, result, steps, result.get("document") or {}, error.get("message", ""),
               error.get("next", ""), done.err)


def finish(command, timeout=lab.PATIENCE):
    """The Out of a Command when it has ended. (Popen.wait() would sleep too long each time.)"""
    if command.process.poll() is None:
        ended = os.pidfd_open(command.pid)
        select.select([ended], [], [], timeout)
        os.close(ended)
    return read_out(command.wait(max(timeout, 1)))


def process_state(pid):
    """"R", "S", "T" (stopped)...; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def go_on(command, timeout=lab.PATIENCE):
    """Let a stopped Command go on to its end: its Out."""
    command.signal(signal.SIGCONT)
    return finish(command, timeout)


@functools.cache
def options():
    """The options that this QEMU has: {"-action", ...}."""
    return set(re.findall(r"^(-[\w-]+)", run("qemu-system-x86_64", "-help").stdout, re.M))


def as_nobody():
    """Words for a QEMU that gives up being root."""
    return ["-runas", "nobody"] if "-runas" in options() else ["-run-with", "user=nobody"]


class Qemu:
    """One QEMU. `words` is what describes its disks; images named like "web.qcow2" in `images` are
    made when they are not there. `running` lets its (halted) processor run, else it is -S."""

    _count = 0

    def __init__(self, words=(), images=("web.qcow2",), running=True, cwd=None, before=(),
                 state=None):
        Qemu._count += 1
        self.folder = ROOT / f"{Qemu._count}"
        self.disks = self.folder / "disks"
        self.run = self.folder / "run"
        self.state = state or self.folder / "state"
        for folder in (self.folder, self.disks, self.run):
            folder.mkdir()
            os.chmod(folder, 0o777)
        self.words = list(words)
        self.before = list(before)
        self.descriptors = ()  # that it inherits
        self.running = running
        self.cwd = cwd or self.disks
        self.process = None
        self._monitor = None
        self.own = {}
        self._devices = {}
        for image in images:
            make_image(self.disks / image, image.rpartition(".")[2])

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def socket(self):
        return self.run / "qmp.sock"

    @property
    def pid(self):
        return self.process.pid

    @property
    def argv(self):
        # Unbuffered: what qemu-io says goes to QEMU's own output.
        return [*self.before, "stdbuf", "-o0", "qemu-system-x86_64", *([] if self.running else ["-S"]), "-machine", "q35",
                "-accel", "tcg", "-m", "16", "-display", "none", "-nodefaults", "-no-user-config",
                "-bios", str(_halting_bios()),
                "-qmp", f"unix:{self.socket},server=on,wait=off",
                "-qmp", f"unix:{self.run / 'qmp2.sock'},server=on,wait=off", *self.words]

    def start(self):
        """Start it, always with the very same words; returns when its monitor answers."""
        # File nodes of the launcher's own stay open for writing after a cut.
        self.own = {entry.name: entry.stat().st_ino for entry in self.disks.iterdir()
                    if "-blockdev" in self.words}
        with open(self.run / "log", "ab") as log:
            self.process = lab.spawn(self.argv, cwd=self.cwd, stdin=subprocess.DEVNULL,
                                     stdout=log, stderr=log, pass_fds=self.descriptors)
        wait_until(lambda: self.process.poll() is not None or self._answers(), what="QEMU's start",
                   interval=0.005)
        if self.process.poll() is not None:
            raise LabError("QEMU ended: " + self.log()[-2000:])
        return self

    def _answers(self):
        try:
            self._monitor = Qmp(self.run / "qmp2.sock", timeout=0.2)
            return True
        except LabError:
            return False

    def log(self):
        return (self.run / "log").read_text(errors="replace")

    def hang_up(self):
        if self._monitor:
            self._monitor.close()
        self._monitor = None

    def kill(self):
        """SIGKILL for QEMU."""
        self.hang_up()
        if self.process:
            lab._end(self.process)  # pylint: disable=protected-access

    def restart(self):
        """The launcher starts the VM again, as ever."""
        self.kill()
        return self.start()

    def qmp(self, command, timeout=lab.PATIENCE, **arguments):
        """A command on the test's own monitor."""
        if self._monitor is None:
            self._monitor = Qmp(self.run / "qmp2.sock", timeout)
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        return self._monitor.command(command, arguments, timeout)

    # --- what the guest would do

    def io(self, disk, command):
        """Run a qemu-io command on the disk's device; what it printed."""
        before = (self.run / "log").stat().st_size
        said = self.qmp("human-monitor-command",
                        command_line=f'qemu-io -d {self.device(disk)} "{command}"')
        if said:
            raise LabError(f"qemu-io {command}: {said.strip()}")
        with open(self.run / "log", errors="replace") as log:
            log.seek(before)
            return log.read()

    def write(self, disk, pattern, cluster=0, count=1):
        """The guest fills clusters with `pattern`, and flushes."""
        length = count * CLUSTER
        out = self.io(disk, f"write -P {pattern} {cluster * CLUSTER} {length}")
        out += self.io(disk, "flush")
        if f"wrote {length}/{length}" not in out:
            raise LabError(f"{disk}: {out.strip()}")

    def sees(self, disk, clusters=8):
        """What the guest reads: the first byte of each of the first clusters."""
        found = []
        for cluster in range(clusters):
            out = self.io(disk, f"read -v {cluster * CLUSTER} 512")
            match = re.search(r"^[0-9a-f]+:  ([0-9a-f]{2}) ", out, re.M)
            if not match:
                raise LabError(f"{disk}: {out.strip()}")
            found.append(int(match.group(1), 16))
        return found

    # --- the command under test

    def vmfrost(self, verb, *words, env=None, timeout=lab.PATIENCE):
        """Run a command on this VM with --json: its Out."""
        return finish(self.start_vmfrost(verb, *words, env=env), timeout)

    def start_vmfrost(self, verb, *words, env=None):
        return lab.start_vmfrost([verb, "--qmp", self.socket, *words, "--json"], env=env,
                                 state_dir=self.state)

    def stop_at(self, point, verb, *words):
        """Start a command that stops itself (SIGSTOP) at a point, and wait until it has; SIGCONT
        and finish() end it."""
        command = self.start_vmfrost(verb, *words, env={"VMFROST_TEST_AT": f"stop:{point}"})
        wait_until(lambda: command.process.poll() is not None or process_state(command.pid) == "T",
                   what=f"the stop at {point}", interval=0.002)
        if command.process.poll() is not None:
            raise LabError(f"{verb}: it never came to {point}: {finish(command)}")
        return command

    def take(self, name, *words):
        """A snapshot that has to succeed: its record."""
        out = self.vmfrost("snapshot", "@" + name, *words)
        if out.code != 0:
            raise LabError(f"snapshot {name}: exit {out.code}: {out.error} {out.err}")
        return out.document

    def delete(self, name):
        """A deletion that has to succeed."""
        out = self.vmfrost("delete", "@" + name)
        if out.code != 0:
            raise LabError(f"delete {name}: exit {out.code}: {out.error} {out.err}")

    def catch_up(self):
        """Returns when QEMU has done, or dropped, all that a client asked for that has hung up."""
        Qmp(self.socket).close()

    # --- what there is

    def names(self):
        """All names in the folder of the images, "ID" for the random part of hidden ones."""
        return sorted(re.sub(r"\.[0-9a-f]{16}(?=$|\.next$)", ".ID", entry.name)
                      for entry in self.disks.iterdir())

    def hidden(self):
        """The hidden names among them, as they are."""
        return sorted(entry.name for entry in self.disks.iterdir()
                      if re.search(r"^\..*\.[0-9a-f]{16}(\.next)?$", entry.name))

    def graph(self):
        """All nodes by name, with what they stand on: what a refused cut must not change."""
        graph = self.qmp("x-debug-query-block-graph")
        names = {node["id"]: f'{node["type"]}:{node["name"]}' for node in graph["nodes"]}
        edges = {(names[edge["parent"]], edge["name"], names[edge["child"]],
                  tuple(sorted(edge["perm"]))) for edge in graph["edges"]}
        return sorted(names.values()), sorted(edges)

    def block(self, disk):
        """query-block's entry of a disk's device."""
        for block in self.qmp("query-block"):
            if f"{disk}-dev" in block.get("qdev", "").split("/"):
                return block
        raise LabError(f"no disk {disk}")

    def device(self, disk):
        if disk not in self._devices:
            self._devices[disk] = self.block(disk)["qdev"]
        return self._devices[disk]

    def root(self, disk):
        """What is in a disk's device: "inserted"."""
        return self.block(disk)["inserted"]

    def chain(self, disk):
        """The node names from the disk's root down."""
        edges = {}
        graph = self.qmp("x-debug-query-block-graph")
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        for edge in graph["edges"]:
            if edge["name"] == "backing":
                edges[names[edge["parent"]]] = names[edge["child"]]
        chain = [self.root(disk)["node-name"]]
        while chain[-1] in edges:
            chain.append(edges[chain[-1]])
        return chain

    def opened(self):
        """What QEMU has open below `disks`: {inode: set of access modes ("r", "w", "wd"...)}."""
        found = {}
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                about = entry.stat()
                flags = int(re.search(r"^flags:\s*(\d+)", Path(
                    f"/proc/{self.pid}/fdinfo/{entry.name}").read_text(), re.M).group(1), 8)
            except OSError:
                continue
            mode = "r" if flags & os.O_ACCMODE == os.O_RDONLY else "w"
            mode += "d" if flags & os.O_DIRECT else ""
            found.setdefault(about.st_ino, set()).add(mode)
        return found

    def inode(self, name):
        return (self.disks / name).stat().st_ino

    def status(self):
        """QEMU's run state."""
        return self.qmp("query-status")["status"]

    def jobs(self):
        return [job["id"] for job in self.qmp("query-jobs")]

    def journal(self):
        """The journals of all VMs of this state folder."""
        return list(Path(self.state).glob("vms/*/journal"))

    def read(self, name, clusters=8):
        """The first byte of each of the first clusters, through the chain of an image, whoever has
        it open."""
        return image_bytes(self.disks / name, clusters)


class Qcow2:
    """An image read by our own eyes, whoever has it open: what is on disk, without QEMU's help."""

    def __init__(self, path):
        self.path = Path(path)
        self.file = open(path, "rb")
        head = self.file.read(104)
        (magic, version, backing_at, backing_length, self.bits, self.size, encryption, _,
         self.l1_at) = struct.unpack_from(">4sIQIIQIIQ", head)
        if magic != b"QFI\xfb":
            raise LabError(f"{path} is no qcow2 image")
        features = struct.unpack_from(">Q", head, 72)[0] if version >= 3 else 0
        self.plain = not encryption and not features & ~3
        at = struct.unpack_from(">I", head, 100)[0] if version >= 3 else 72
        self.backing = self._at(backing_at, backing_length).decode() if backing_at else None
        self.backing_format = None
        while True:
            kind, length = struct.unpack(">II", self._at(at, 8))
            if kind == 0:
                break
            if kind == 0xE2792ACA:
                self.backing_format = self._at(at + 8, length).decode()
            at += 8 + (length + 7) // 8 * 8

    def _at(self, at, length):
        self.file.seek(at)
        return self.file.read(length)

    def close(self):
        self.file.close()

    def read(self, at):
        """The host cluster that holds this place: bytes; None: the backing file's."""
        index = at >> self.bits
        per_table = self.bits - 3
        l2_at, = struct.unpack(">Q", self._at(self.l1_at + 8 * (index >> per_table), 8))
        l2_at &= 0x00fffffffffffe00
        if not l2_at:
            return None
        entry, = struct.unpack(">Q", self._at(l2_at + 8 * (index & ((1 << per_table) - 1)), 8))
        if entry & 1 << 62:
            raise LabError(f"{self.path}: compressed")
        if entry & 1:
            return b"\0" * (1 << self.bits)
        entry &= 0x00fffffffffffe00
        return self._at(entry, 1 << self.bits) if entry else None


def image_bytes(path, clusters=8, fmt="qcow2"):
    """See Qemu.read()."""
    data = None
    if fmt == "qcow2":
        data = _read_chain(path, clusters)
    if data is None:
        with tempfile.NamedTemporaryFile(prefix="raw-", dir=ROOT) as raw:
            run("qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", path, raw.name)
            data = Path(raw.name).read_bytes()
    out = []
    for cluster in range(clusters):
        part = data[cluster * CLUSTER:(cluster + 1) * CLUSTER]
        if part and part.strip(part[:1]):
            raise LabError(f"{path}: cluster {cluster} holds more than one pattern")
        out.append(part[0] if part else 0)
    return out


def _read_chain(path, clusters):
    """The first clusters of a chain of plain qcow2 images; None if it is anything else."""
    image = Qcow2(path)
    try:
        step = 1 << image.bits
        below = None
        data = b""
        if not image.plain or step > CLUSTER:
            return None
        for at in range(0, clusters * CLUSTER, step):
            part = image.read(at) if at < image.size else b""
            if part is None and image.backing is None:
                part = b"\0" * step
            elif part is None:
                if image.backing_format != "qcow2":
                    return None
                if below is None:
                    below = _read_chain(image.path.parent / image.backing, clusters)
                if below is None:
                    return None
                part = below[at:at + step]
            data += part
        return data
    finally:
        image.close()


def image_info(path):
    """What the header of one image says: backing string, its format, size."""
    image = Qcow2(path)
    image.close()
    return {"backing-filename": image.backing, "backing-filename-format": image.backing_format,
            "virtual-size": image.size}


def image_ok(path, leaks=False):
    """qemu-img check: no errors, and no leaks, unless those are allowed: a QEMU that is killed may
    leave them."""
    done = run("qemu-img", "check", "-U", "-q", "-f", "qcow2", path, check=False)
    return done.returncode in ((0, 3) if leaks else (0,))
