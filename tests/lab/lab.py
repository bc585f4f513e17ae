"""The test lab: real guests with a real agent, and a look at their images.

Guest tests and benchmarks are built from this module alone; it needs nothing
but Python's standard library (3.9) and what `tools/bootstrap test` installs.

    with Vm(folder, [Disk("web"), Disk("data", fs="xfs")]) as vm:
        vm.start()
        vm.wait_agent()
        vm.set_fault("freeze", "slow:5")
        vm.sh("echo hello > /mnt/web/file")

What the guest is and what its faults do: README.md beside this file.
"""

import atexit
import ctypes
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import namedtuple
from pathlib import Path

LAB = Path(__file__).resolve().parent
PROJECT = LAB.parent.parent
MIB = 1024 * 1024

# How long a guest may take for something that takes it a moment on an idle
# machine. Emulated guests on a busy one need all of it now and then.
PATIENCE = 120.0

# Under TCG on a busy host a kernel that checks its timer finds none, and panics.
KERNEL_WORDS = "console=ttyS0 quiet panic=0 no_timer_check"


def _choose_qemu():
    """VMFROST_TEST_QEMU: a folder with the programs of another QEMU, or a suite of Debian's, whose
    QEMU is downloaded (see tools/other-qemu). Without it those of the system are used."""
    chosen = os.environ.get("VMFROST_TEST_QEMU")
    if chosen and "/" not in chosen:
        chosen = subprocess.run([PROJECT / "tools/other-qemu", chosen], stdout=subprocess.PIPE,
                                text=True, check=True).stdout.strip()
    if chosen:
        os.environ["PATH"] = f"{chosen}:{os.environ.get('PATH', os.defpath)}"


_choose_qemu()


def _hear_signals():
    """A test may be started with signals ignored or blocked (in the background of a script, by a
    service manager) that the command under test is to obey."""
    of_python = {signal.SIGPIPE, signal.SIGXFSZ}  # which a child of its gets back anyway
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} - of_python:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT
                          else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


_hear_signals()


class LabError(Exception):
    """The lab itself did not do what was asked of it."""


class QmpError(LabError):
    """QEMU or the agent refused a command; `error_class` and `desc` say how."""

    def __init__(self, command, error):
        self.error_class = error.get("class", "")
        self.desc = error.get("desc", "")
        super().__init__(f"{command}: {self.error_class}: {self.desc}")


def wait_until(condition, timeout=PATIENCE, what="the condition", interval=0.02):
    """Poll condition() until it is true; its value. LabError after timeout."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(interval)


def run(*argv, check=True, cwd=None):
    """Run a host program to its end; the CompletedProcess, output as text."""
    # Debian keeps mkfs and its like where only root looks.
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    done = subprocess.run([str(arg) for arg in argv], cwd=cwd, env={**os.environ, "PATH": path},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if check and done.returncode:
        raise LabError(f"{' '.join(map(str, argv))}: exit {done.returncode}: "
                       f"{(done.stderr or done.stdout).strip()}")
    return done


# --- processes ------------------------------------------------------------

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_children = set()


def _die_with_parent(parent):
    """Between fork and exec: SIGKILL for us when the test's process is gone."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the line above
        os._exit(1)


def spawn(argv, **options):
    """Popen of something that ends with this process at the latest.

    The kernel ties it to the calling *thread*: do not call this from one that
    ends before the child should.
    """
    parent = os.getpid()
    child = subprocess.Popen([str(arg) for arg in argv],
                             preexec_fn=lambda: _die_with_parent(parent), **options)
    _children.add(child)
    return child


def _end(child):
    if child.poll() is None:
        child.kill()
        child.wait()
    _children.discard(child)


@atexit.register
def _end_all():
    for child in list(_children):
        _end(child)


# --- the cache ------------------------------------------------------------

def cache_folder():
    """Where the guest and the disk templates are kept (see tests/lab/build)."""
    chosen = os.environ.get("VMFROST_LAB_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmfrost-lab"


_guest = {}


def guest():
    """The paths of the guest's `kernel` and `initramfs`, built if need be."""
    if not _guest:
        lines = run(LAB / "build", "--quiet").stdout.splitlines()
        _guest.update(line.split("=", 1) for line in lines)
    return _guest


# --- disks ----------------------------------------------------------------

class Disk:
    """A disk of a guest: an image NAME.FORMAT in the Vm's folder.

    The guest finds NAME as the disk's serial and mounts it on /mnt/NAME. `fs`
    is "ext4", "xfs" or None (a blank disk). `options` is appended to -drive or
    to the format node's -blockdev (",discard=unmap"), `file_options` to the
    file node's -blockdev (",cache.direct=on"), `device_options` to -device.
    A file that exists is taken as it is.
    """

    def __init__(self, name, fmt="qcow2", fs="ext4", size=None,
                 options="", file_options="", device_options=""):
        if len(name) > 20:
            raise ValueError(f"{name}: a virtio-blk serial has 20 characters")
        self.name = name
        self.fmt = fmt
        self.fs = fs
        # mkfs.xfs of xfsprogs 6 refuses less than 300 MiB. All are sparse.
        self.size = size or (320 * MIB if fs == "xfs" else 64 * MIB)
        self.options = options
        self.file_options = file_options
        self.device_options = device_options

    @property
    def file(self):
        """The image's name in the Vm's folder."""
        return f"{self.name}.{self.fmt}"

    def create(self, folder):
        """Make the image in folder, unless there is one already."""
        path = Path(folder) / self.file
        if not path.exists():
            run("cp", "--sparse=always", self._template(), path)
        return path

    def _template(self):
        """A formatted image of this kind from the cache, made if need be."""
        folder = cache_folder() / "disks-1"  # counts up when the options below change
        final = folder / f"{self.fs or 'blank'}-{self.size}.{self.fmt}"
        if final.exists():
            return final
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="tmp-") as name:
            raw = Path(name) / "raw"
            with open(raw, "wb") as image:
                image.truncate(self.size)
            if self.fs == "ext4":
                # All of the metadata now, or the guest writes it in the background.
                run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", raw)
            elif self.fs == "xfs":
                run("mkfs.xfs", "-q", raw)
            made = raw
            if self.fmt != "raw":
                made = Path(name) / "image"
                run("qemu-img", "convert", "-O", self.fmt, raw, made)
            os.replace(made, final)  # two tests at once make the same thing
        return final


# --- JSON over a socket ---------------------------------------------------

def connect_unix(path, timeout=PATIENCE):
    """Connect to a socket that may only be about to listen."""
    end = time.monotonic() + timeout
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
            return sock
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
            sock.close()
            if time.monotonic() >= end:
                raise LabError(f"{path}: {error.strerror}") from error
            time.sleep(0.02)


class _Lines:
    """Whole lines from a socket, each with a time limit."""

    def __init__(self, sock):
        self.sock = sock
        self.buffer = b""

    def _fill(self, end, what):
        self.sock.settimeout(max(end - time.monotonic(), 0.001))
        try:
            data = self.sock.recv(65536)
        except socket.timeout:
            raise LabError(f"{what}: no answer in time") from None
        except ConnectionError:
            data = b""
        if not data:
            raise LabError(f"{what}: connection closed")
        self.buffer += data

    def line(self, end, what):
        """The next line, without its end."""
        while b"\n" not in self.buffer:
            self._fill(end, what)
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line

    def exactly(self, size, end, what):
        """The next `size` bytes."""
        while len(self.buffer) < size:
            self._fill(end, what)
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data


class Qmp:
    """A plain QMP client: one command at a time, events kept in `events`."""

    def __init__(self, path, timeout=PATIENCE, enable=()):
        self.sock = connect_unix(path, timeout)
        self.lines = _Lines(self.sock)
        self.events = []
        end = time.monotonic() + timeout
        self.greeting = {}
        while "QMP" not in self.greeting:  # an event for a former client can come before it
            self.greeting = json.loads(self.lines.line(end, "the greeting"))
        self.command("qmp_capabilities", {"enable": list(enable)}, timeout)

    def command(self, command, arguments=None, timeout=PATIENCE, out_of_band=False):
        """Run a command; what it returns, or QmpError. Out-of-band commands have to be enabled."""
        token = secrets.token_hex(8)
        request = {"exec-oob" if out_of_band else "execute": command, "id": token}
        if arguments is not None:
            request["arguments"] = arguments
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        end = time.monotonic() + timeout
        while True:
            reply = json.loads(self.lines.line(end, command))
            if "event" in reply:
                self.events.append(reply)
            elif reply.get("id") == token:
                break
        if "error" in reply:
            raise QmpError(command, reply["error"])
        return reply["return"]

    def wait_event(self, name, timeout=PATIENCE, **data):
        """Take the first event of that name whose data has these members."""
        end = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    self.events.remove(event)
                    return event
            message = json.loads(self.lines.line(end, f"event {name}"))
            if "event" in message:
                self.events.append(message)

    def close(self):
        """Hang up."""
        self.sock.close()


# --- the guest ------------------------------------------------------------

Sh = namedtuple("Sh", "code out")
Sh.__doc__ = """A guest command's end: exit status (None: timed out) and output."""

def _mounts(disks):
    return " ".join(f"/mnt/{disk}" for disk in disks)


Probe = namedtuple("Probe", "writes longest_us mean_us")
Probe.__doc__ = """Writes of the stall probe since its last reset."""


class Vm:
    """One QEMU with one guest, in a folder of its own.

    Sockets in the folder: qmp.sock for the tool under test, qmp2.sock for the
    test, qga.sock (the agent), ctl.sock (the control shell). `attach` is
    "drive" (-drive if=none) or "blockdev" (file and format nodes, the latter
    named like the disk); `bus` "virtio-blk" or "virtio-scsi". Images are named
    relative to the folder, which is QEMU's working directory, or absolutely
    with `absolute=True`. `agent=False` leaves the agent's port out of QEMU;
    `lab.agent=none` in `cmdline` only leaves nobody behind it. `extra` is
    appended to QEMU's command line.
    """

    def __init__(self, folder, disks=(), cmdline="", attach="drive", bus="virtio-blk",
                 iothread=False, agent=True, absolute=False, memory=256, name="lab", extra=()):
        if attach not in ("drive", "blockdev") or bus not in ("virtio-blk", "virtio-scsi"):
            raise ValueError(f"no attachment {attach} to {bus}")
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        if len(str(self.path("qmp2.sock"))) > 107:
            raise ValueError(f"{self.folder}: too long for a socket; choose a shorter TMPDIR")
        self.disks = list(disks)
        self.cmdline = cmdline
        self.attach = attach
        self.bus = bus
        self.iothread = iothread
        self.agent = agent
        self.absolute = absolute
        self.memory = memory
        self.name = name
        self.extra = [str(word) for word in extra]
        self.binary = "qemu-system-x86_64"
        self.process = None
        self.killed = False  # at least once: its images may have leaks since
        self._argv = None
        self._qmp = None
        self._ctl = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def path(self, name):
        """A file of the folder: a socket, console.log, qemu.log, an image."""
        return self.folder / name

    @property
    def pid(self):
        """QEMU's process."""
        return self.process.pid

    @property
    def argv(self):
        """QEMU's command line: made once, the same at every start."""
        if self._argv is None:
            self._argv = self._command_line()
        return self._argv

    def _command_line(self):
        built = guest()
        words = [
            self.binary, "-name", self.name, "-machine", "q35", "-accel", "tcg", "-cpu", "max",
            "-smp", "1", "-m", str(self.memory), "-nodefaults", "-no-user-config",
            "-display", "none", "-vga", "none",
            "-kernel", built["kernel"], "-initrd", built["initramfs"],
            "-append", f"{KERNEL_WORDS} {self.cmdline}".strip(),
            "-chardev", f"file,id=console,path={self.path('console.log')},append=on",
            "-serial", "chardev:console",
            "-qmp", self._listen("unix:{}", "qmp.sock"),
            "-qmp", self._listen("unix:{}", "qmp2.sock"),
            "-device", "virtio-serial-pci,id=lab-serial",
            "-chardev", self._listen("socket,id=ctl,path={}", "ctl.sock"),
            "-device", "virtserialport,chardev=ctl,name=vmfrost.lab.0,id=ctl-port",
        ]
        if self.agent:
            words += [
                "-chardev", self._listen("socket,id=qga,path={}", "qga.sock"),
                "-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0,id=qga-port",
            ]
        if self.iothread:
            words += ["-object", "iothread,id=io0"]
        on_iothread = ",iothread=io0" if self.iothread else ""
        if self.bus == "virtio-scsi" and self.disks:
            words += ["-device", f"virtio-scsi-pci,id=scsi0{on_iothread}"]
            on_iothread = ""
        device = "virtio-blk-pci" if self.bus == "virtio-blk" else "scsi-hd,bus=scsi0.0"
        for disk in self.disks:
            words += self._drive(disk)
            words += ["-device", f"{device},drive={disk.name},serial={disk.name},"
                                 f"id={disk.name}-dev{on_iothread}{disk.device_options}"]
        return words + self.extra

    def _listen(self, form, name):
        return form.format(self.path(name)) + ",server=on,wait=off"

    def _drive(self, disk):
        file = self.path(disk.file) if self.absolute else disk.file
        if self.attach == "drive":
            return ["-drive", f"file={file},format={disk.fmt},if=none,"
                              f"id={disk.name}{disk.options}"]
        return ["-blockdev", f"driver=file,filename={file},node-name={disk.name}-file"
                             f"{disk.file_options}",
                "-blockdev", f"driver={disk.fmt},file={disk.name}-file,node-name={disk.name}"
                             f"{disk.options}"]

    # --- life and death

    def start(self):
        """Start QEMU; missing disk images are made. Does not wait for the guest."""
        for disk in self.disks:
            disk.create(self.folder)
        with open(self.path("qemu.log"), "ab") as log:
            self.process = spawn(self.argv, cwd=self.folder, stdin=subprocess.DEVNULL,
                                 stdout=log, stderr=log)
        return self

    def alive(self):
        """Is QEMU's process there?"""
        return self.process is not None and self.process.poll() is None

    def hang_up(self):
        """Leave the control shell and the test's monitor to others for now."""
        for client in (self._qmp, self._ctl):
            if client:
                client.close()
        self._qmp = self._ctl = None

    def kill(self):
        """SIGKILL for QEMU, if it runs: the guest's power is cut."""
        self.killed = self.killed or self.alive()
        if self.process is not None:
            _end(self.process)
        self.hang_up()

    def quit(self, timeout=PATIENCE):
        """Ask QEMU to quit (the guest's power is cut as well); its exit status."""
        try:
            self.qmp("quit")
        except LabError:
            pass  # it may be gone before it answers
        code = self.process.wait(timeout)
        _end(self.process)
        self.hang_up()
        return code

    def restart(self):
        """End QEMU if it runs, and start it with the very same command line."""
        self.kill()
        return self.start()

    # --- the control shell

    def wait_ready(self, timeout=PATIENCE):
        """Wait until the guest has booted, its disks are mounted and sh() works."""
        wait_until(lambda: self._check_alive() and self._try_ready(), timeout, "the guest's boot")
        return self

    def _check_alive(self):
        if not self.alive():
            raise LabError(f"QEMU ended: {self.path('qemu.log').read_text(errors='replace')}")
        return True

    def _try_ready(self):
        try:
            return self.sh("true", timeout=10, check=False, slack=2).code == 0
        except LabError:
            return False

    def sh(self, command, timeout=10, check=True, slack=60):
        """Run a shell command in the guest: Sh(code, out).

        The shell lives in the initramfs and never freezes. A command that is
        not done after `timeout` seconds is killed (as far as it can be) and
        its code is None. Anything but 0 is a LabError if `check`. `slack` is
        what a busy host may add before the guest counts as dead.
        """
        if self._ctl is None:
            self._ctl = connect_unix(self.path("ctl.sock"), slack)
        token = secrets.token_hex(8)
        request = f"\n{token} {int(timeout * 1000)} {command.encode().hex()} {token}\n"
        end = time.monotonic() + timeout + slack
        lines = _Lines(self._ctl)
        try:
            self._ctl.settimeout(timeout + slack)
            self._ctl.sendall(request.encode())
            while True:
                words = lines.line(end, "the guest's shell").split()
                if len(words) == 3 and words[0] == token.encode():
                    break
            out = lines.exactly(int(words[2]), end, "the guest's shell").decode(errors="replace")
        except (LabError, OSError):
            self._ctl.close()
            self._ctl = None
            raise
        code = None if words[1] == b"timeout" else int(words[1])
        if check and code != 0:
            outcome = "timed out" if code is None else f"exit {code}"
            raise LabError(f"guest: {command}: {outcome}: {out.strip()}")
        return Sh(code, out)

    def set_fault(self, name, value):
        """Set a fault (freeze, thaw, kill, restart, sysrq) in the running guest; "" ends it."""
        self.sh(f"lab set {name} '{value}'")

    def start_agent(self):
        """Start the guest's agent, when none runs there."""
        self.sh("lab agent start")

    def kill_agent(self):
        """SIGKILL for the guest's agent; it comes back if fault `restart` says so."""
        self.sh("lab agent kill")

    def clear_faults(self):
        """No fault any more."""
        self.sh("lab clear")

    def mounts(self):
        """Mount points of the guest's disks."""
        return self.sh("for m in /mnt/*; do [ -e $m ] && echo $m; done; true").out.split()

    def guest_writes_ok(self, timeout=10):
        """Can the guest write (and flush) on every mounted disk: is all thawed?"""
        command = "for m in /mnt/*; do date | dd of=$m/lab-check conv=fsync 2>&1 || exit 1; done"
        return self.sh(command, timeout=timeout, check=False).code == 0

    # --- the agent

    def agent_command(self, command, arguments=None, timeout=30):
        """Connect to the agent, synchronize, run one command, hang up; its return value.

        QmpError if it refuses, LabError if it does not answer in time. The
        socket takes one client: this hangs while the tool under test is on it.
        """
        end = time.monotonic() + timeout
        sock = connect_unix(self.path("qga.sock"), timeout)
        try:
            lines = _Lines(sock)
            token = secrets.randbelow(1 << 53)
            sync = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
            sock.sendall(b"\xff" + json.dumps(sync).encode() + b"\n")
            while True:
                tail = lines.line(end, "the agent").rpartition(b"\xff")[2]
                try:
                    if json.loads(tail).get("return") == token:
                        break
                except ValueError:
                    pass  # the rest of an earlier conversation
            request = {"execute": command}
            if arguments is not None:
                request["arguments"] = arguments
            sock.sendall(json.dumps(request).encode() + b"\n")
            reply = json.loads(lines.line(end, f"the agent, {command}"))
        finally:
            sock.close()
        if "error" in reply:
            raise QmpError(command, reply["error"])
        return reply["return"]

    def wait_agent(self, timeout=PATIENCE):
        """Wait until the agent answers."""
        self.wait_ready(timeout)
        wait_until(self.agent_open, timeout, "the agent's port")
        wait_until(self._agent_answers, timeout, "the agent's answer")
        return self

    def _agent_answers(self):
        """What was sent to a guest that is being reset is never answered: so in several attempts."""
        try:
            self.agent_command("guest-ping", timeout=20)
        except LabError:
            return False
        return True

    def agent_open(self):
        """Has something in the guest opened the agent's port?"""
        return any(entry["label"] == "qga" and entry["frontend-open"]
                   for entry in self.qmp("query-chardev"))

    def frozen(self, timeout=30):
        """What the agent believes: guest-fsfreeze-status is "frozen"."""
        return self.agent_command("guest-fsfreeze-status", timeout=timeout) == "frozen"

    # --- QEMU

    @property
    def monitor(self):
        """The test's own monitor, qmp2.sock."""
        if self._qmp is None:
            self._qmp = Qmp(self.path("qmp2.sock"))
        return self._qmp

    def qmp(self, command, arguments=None, timeout=PATIENCE):
        """Run a QMP command on the test's own monitor; what it returns."""
        return self.monitor.command(command, arguments, timeout)

    def sysrq(self, key):
        """Press alt-sysrq-KEY on the guest's keyboard; "j" thaws everything."""
        keys = [{"type": "qcode", "data": code} for code in ("alt", "sysrq", key)]
        self.qmp("send-key", {"keys": keys})

    # --- the writer and the probe

    def start_writer(self, *disks, pause_us=0):
        """Start numbered records on disks; returns once the first is flushed on all."""
        self.sh(f"lab-writer start {pause_us} " + _mounts(disks), timeout=60)

    def writer_acked(self):
        """How many records are flushed on all disks. Works while frozen."""
        return int(self.sh("lab-writer acked").out)

    def stop_writer(self):
        """Stop the writer; how many records are flushed on all disks."""
        return int(self.sh("lab-writer stop", timeout=60).out)

    def read_writer(self, *disks):
        """The number of the last record on each disk, as the guest finds them: LabError if one
        is torn or missing."""
        return [int(line) for line in
                self.sh("lab-writer read " + _mounts(disks), timeout=60).out.split()]

    def start_probe(self, disk, period_us=2000):
        """Start a small write and flush every period_us on a disk."""
        self.sh(f"lab-probe start /mnt/{disk} {period_us}")

    def stop_probe(self):
        """End the probe."""
        self.sh("lab-probe stop")

    def probe(self, reset=True):
        """The probe's Probe(writes, longest_us, mean_us) since the last reset."""
        out = self.sh("lab-probe report" + (" reset" if reset else "")).out
        return Probe(*map(int, out.split()))


# --- images, seen from outside --------------------------------------------

RECORD = struct.Struct("<8sQQ484xI")  # guest/lab-writer.c
RECORD_MAGIC = b"VMFWRIT1"
RECORD_SLOTS = 16384

Records = namedtuple("Records", "run last")
Records.__doc__ = """The writer's records in an image: which run, and the last number."""


class RawCopy:
    """A raw copy of an image (with its chain) while the `with` block lasts.

    QEMU may have the image open; its content must stand still, as that of a
    sealed base image does.
    """

    def __init__(self, image, fmt=None):
        self.image = image
        self.form = ["-f", fmt] if fmt else []

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="lab-image-")
        path = Path(self.folder.name) / "raw"
        run("qemu-img", "convert", "-U", *self.form, "-O", "raw", self.image, path)
        return path

    def __exit__(self, *_):
        self.folder.cleanup()


def ext4_needs_recovery(image, fmt=None):
    """Would mounting this ext4 image replay its journal? Not after a freeze."""
    with RawCopy(image, fmt) as raw:
        features = re.search(r"^Filesystem features:(.*)$", run("dumpe2fs", "-h", raw).stdout, re.M)
        if not features:
            raise LabError(f"{image}: no ext4")
        return "needs_recovery" in features.group(1).split()


def xfs_log_clean(image, fmt=None):
    """Has this XFS image nothing in its log that mounting it would have to replay?

    XFS never leaves an empty log behind a freeze: it adds a record of the
    superblock on purpose, so that recovery runs and sees to unlinked inodes.
    `xfs_repair -n` and the state xfs_logprint prints therefore call a frozen
    image dirty. What tells is whether anything else is in the log.
    """
    with RawCopy(image, fmt) as raw:
        done = run("xfs_logprint", "-t", raw, check=False)
    if "state: <" not in done.stdout:
        raise LabError(f"{image}: xfs_logprint: {done.stderr.strip()}")
    items = re.findall(r"^[A-Z]{3}: cnt:", done.stdout, re.M)
    return len(items) == len(re.findall(r"^\s+SUPER Block Buffer", done.stdout, re.M))


def _record_sectors(raw):
    """All sectors of an image that begin like a record, without its holes."""
    with open(raw, "rb") as image:
        at = 0
        while True:
            try:
                at = os.lseek(image.fileno(), at, os.SEEK_DATA)
                end = os.lseek(image.fileno(), at, os.SEEK_HOLE)
            except OSError:  # no data beyond
                return
            image.seek(at)
            while at < end:
                sector = image.read(RECORD.size)
                if sector.startswith(RECORD_MAGIC):
                    yield sector
                at += RECORD.size


def _ring_of_ext4(raw):
    """The sectors of the writer's file, as a guest that mounts the image finds it."""
    # A young file may be in the journal only, which a mount would replay.
    if run("e2fsck", "-y", "-E", "journal_only", raw, check=False).returncode > 1:
        raise LabError("the journal cannot be replayed")
    ring = Path(f"{raw}.ring")
    run("debugfs", "-R", f"dump /lab-writer.rec {ring}", raw)
    data = ring.read_bytes() if ring.exists() else b""
    if len(data) != RECORD_SLOTS * RECORD.size:
        raise LabError("no lab-writer.rec of the right size")
    sectors = [data[at:at + RECORD.size] for at in range(0, len(data), RECORD.size)]
    for slot, sector in enumerate(sectors):
        if any(sector) and RECORD.unpack(sector)[2] % RECORD_SLOTS != slot:
            raise LabError(f"slot {slot} of lab-writer.rec holds something else")
    return [sector for sector in sectors if any(sector)]


def writer_records(image, fmt=None):
    """The Records in an image, after checking every checksum and the sequence.

    ext4 is read through its file system; in anything else the records are
    looked for. LabError if the image cannot have come from an intact disk.
    """
    with RawCopy(image, fmt) as raw:
        with open(raw, "rb") as file:
            is_ext4 = file.read(2048)[1080:1082] == b"\x53\xef"
        try:
            sectors = _ring_of_ext4(raw) if is_ext4 else list(_record_sectors(raw))
        except LabError as error:
            raise LabError(f"{image}: {error}") from None
    runs = {}
    for sector in sectors:
        magic, began, number, crc = RECORD.unpack(sector)
        if magic != RECORD_MAGIC or crc != zlib.crc32(sector[:-4]):
            raise LabError(f"{image}: a torn record {number}")
        runs.setdefault(began, set()).add(number)
    if not runs:
        return Records(0, 0)
    if len(runs) > 1:
        raise LabError(f"{image}: records of {len(runs)} runs")
    (began, numbers), = runs.items()
    last = max(numbers)
    missing = set(range(max(1, last - RECORD_SLOTS + 1), last + 1)) ^ numbers
    if missing:
        raise LabError(f"{image}: {last} is there, {min(missing)} is not (or should not be)")
    return Records(began, last)


def instant_problem(*images, acked=0, most=None):
    """Why images are not of one instant (None if they are): those of the writer's disks, in its
    order. All must hold at least `acked` records, and each as many as the one behind it; what is
    more than that is one record, the writer's next. `most`: and not more than so many."""
    found = [writer_records(image) for image in images]
    lasts = [records.last for records in found]
    if len({records.run for records in found if records.last}) > 1:
        return "records of different runs"
    if sorted(lasts, reverse=True) != lasts or lasts[0] - lasts[-1] > 1:
        return f"the images end with the records {lasts}"
    if lasts[-1] < acked:
        return f"{acked} records were acknowledged, the images end with {lasts}"
    if most is not None and lasts[0] > most:
        return f"there cannot be more than {most} records, the images end with {lasts}"
    return None


def one_instant(*images, acked=0):
    """Are these images of the writer's disks, in its order, of one instant?"""
    return instant_problem(*images, acked=acked) is None


# --- the command under test -----------------------------------------------

Result = namedtuple("Result", "code out err")
Result.__doc__ = """How a command ended: exit status (-N: signal N), stdout, stderr."""


class Command:
    """A running vmfrost command."""

    def __init__(self, argv, env, cwd):
        self.files = [tempfile.TemporaryFile() for _ in range(2)]
        self.process = spawn(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL,
                             stdout=self.files[0], stderr=self.files[1])
        self.pid = self.process.pid

    def signal(self, number):
        """Send it a signal, if it still runs."""
        self.process.send_signal(number)

    def output(self):
        """What it has written so far: (stdout, stderr)."""
        texts = []
        for file in self.files:
            size = os.fstat(file.fileno()).st_size
            texts.append(os.pread(file.fileno(), size, 0).decode(errors="replace"))
        return tuple(texts)

    def wait(self, timeout=PATIENCE):
        """Its Result. LabError, and SIGKILL for it, if it is not done in time."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            _end(self.process)
            raise LabError(f"vmfrost: not done within {timeout:g} s: "
                           + " | ".join(self.output())) from None
        _children.discard(self.process)
        return Result(code, *self.output())


_state_dirs = []


def vmfrost_program():
    """The built command: $VMFROST, or that of a release build."""
    return os.environ.get("VMFROST") or str(PROJECT / "build" / "release" / "vmfrost")


def start_vmfrost(args, env=None, state_dir=None, cwd=None):
    """Start the command with these arguments: a Command.

    It gets a VMFROST_STATE_DIR of its own: `state_dir`, or one folder for all
    commands of this test. `env` is added to the environment.
    """
    if state_dir is None:
        if not _state_dirs:
            _state_dirs.append(tempfile.TemporaryDirectory(prefix="lab-state-"))
        state_dir = _state_dirs[0].name
    environment = {**os.environ, "VMFROST_STATE_DIR": str(state_dir), **(env or {})}
    return Command([vmfrost_program(), *map(str, args)], environment, cwd)


def vmfrost(*args, env=None, state_dir=None, cwd=None, timeout=PATIENCE):
    """Run the command to its end: its Result."""
    return start_vmfrost(args, env, state_dir, cwd).wait(timeout)


# --- TAP ------------------------------------------------------------------

class Tap:
    """Test results in TAP, to be used with `with`: the end prints the plan.

    An exception inside is one more failure. The process exits with 1 if there
    was any. In continuous integration (CI=true) a skipped test is a failure.
    What failed, and the remarks that follow it, go to stderr as well below prove,
    which keeps the rest to itself.
    """

    def __init__(self):
        self.count = 0
        self.failures = 0
        self.aloud = False  # about a failure, and prove listens

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None and issubclass(kind, Exception):
            self.ok(False, "the test came to its end")
            self.diag("".join(traceback.format_exception(kind, error, trace)))
        elif kind is not None:
            return False
        self.done()
        return True

    def ok(self, condition, name):
        """One test: is the condition true? Returns that."""
        self.count += 1
        if not condition:
            self.failures += 1
        line = f"{'ok' if condition else 'not ok'} {self.count} - {name}"
        print(line, flush=True)
        self.aloud = not condition and "HARNESS_ACTIVE" in os.environ
        if self.aloud:
            print(f"# {os.path.relpath(sys.argv[0])}: {line}", file=sys.stderr, flush=True)
        return bool(condition)

    def is_(self, got, want, name):
        """One test: is this what it should be? Says both if not."""
        if not self.ok(got == want, name):
            self.diag(f"got:  {got!r}\nwant: {want!r}")
        return got == want

    def raises(self, call, name, error=LabError):
        """One test: does call() raise? The exception, or None."""
        try:
            value = call()
        except error as caught:
            self.ok(True, name)
            return caught
        self.ok(False, name)
        self.diag(f"it returned {value!r}")
        return None

    def skip(self, name, why):
        """One test that cannot be run here."""
        if os.environ.get("CI"):
            self.ok(False, f"{name} # must not be skipped in CI: {why}")
            return
        self.count += 1
        print(f"ok {self.count} - {name} # SKIP {why}", flush=True)

    def diag(self, text):
        """A remark, for people."""
        for line in str(text).splitlines():
            print(f"# {line}", flush=True)
            if self.aloud:
                print(f"#   {line}", file=sys.stderr, flush=True)

    def done(self):
        """Print the plan and exit."""
        print(f"1..{self.count}", flush=True)
        sys.exit(1 if self.failures else 0)
