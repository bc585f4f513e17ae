"""libvirt as a peer of the benchmarks: installed and run privately, nothing of the system is changed.

Debian's packages are unpacked into the lab's cache, and libvirtd runs in a mount namespace of its own,
whose root is the system's with these packages on top. Its QEMU is given the same kernel, initramfs and
disks as the lab's, and the sockets that the lab needs.
"""
import calendar
import json
import re
import subprocess
import time
from xml.sax.saxutils import escape, quoteattr

import lab

PACKAGES = ("libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients")

# Everything that libvirtd writes goes to the upper layer, which ends with the namespace.
INSIDE = r"""
set -e
mount -t tmpfs layers "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/packages"
cp -a "$2/." "$1/packages"
mount -t overlay root -o "lowerdir=$1/packages:/,upperdir=$1/upper,workdir=$1/work" "$1/root"
echo libvirt-qemu:x:64055:64055::/:/bin/false >>"$1/root/etc/passwd"
echo libvirt-qemu:x:64055: >>"$1/root/etc/group"
for folder in dev proc sys; do mount --rbind /$folder "$1/root/$folder"; done
mount -t tmpfs run "$1/root/run"
mkdir -p "$1/root/$3"
mount --bind "$3" "$1/root/$3"
exec chroot "$1/root" /usr/sbin/libvirtd -f "$3/libvirtd.conf" -p "$3/libvirtd.pid"
"""

LIBVIRTD_CONF = """unix_sock_dir = "{folder}"
auth_unix_rw = "none"
log_filters = "1:qemu.qemu_agent 4:*"
log_outputs = "1:file:{folder}/libvirtd.log"
"""
QEMU_CONF = """user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
"""


def unpacked():
    """The folder with libvirt's packages and what they need of others."""
    simulated = lab.run("apt-get", "install", "-s", "--no-install-recommends", *PACKAGES).stdout
    wanted = re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", simulated, re.M)
    if not wanted:
        raise lab.LabError("libvirt is installed on this system: its packages are not unpacked here")
    version = next(version for name, version in wanted if name == "libvirt-daemon")
    folder = lab.cache_folder() / f"libvirt-{version.replace(':', '_')}"
    if not folder.exists():
        parts = folder.with_suffix(".parts")
        parts.mkdir(parents=True, exist_ok=True)
        lab.run("apt-get", "download", *(f"{name}={version}" for name, version in wanted), cwd=parts)
        for package in parts.glob("*.deb"):
            lab.run("dpkg", "-x", package, parts / "root")
        # Nothing but systemd's units, and it would hide the system's link to /usr/lib.
        lab.run("rm", "-rf", parts / "root/lib")
        (parts / "root/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
        (parts / "root").rename(folder)
        lab.run("rm", "-r", parts)
    return folder


class Libvirt:
    """A libvirtd in a folder, for as long as the `with` block lasts."""

    def __init__(self, folder):
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True)
        self.packages = unpacked()
        self.process = None

    def __enter__(self):
        (self.folder / "libvirtd.conf").write_text(LIBVIRTD_CONF.format(folder=self.folder))
        layers = self.folder / "layers"
        layers.mkdir()
        with open(self.folder / "libvirtd.out", "wb") as out:
            self.process = lab.spawn(["unshare", "--mount", "sh", "-c", INSIDE, "sh", layers,
                                      self.packages, self.folder],
                                     stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        lab.wait_until(self._answers, what="libvirtd")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()

    def start_beside(self, qemu):
        """libvirtd again, after its end, where the QEMU with this pid still runs."""
        with open(self.folder / "libvirtd.out", "ab") as out:
            self.process = lab.spawn(
                ["nsenter", "--mount", "--root", "--wd=/", "--target", str(qemu), "/usr/sbin/libvirtd",
                 "-f", self.folder / "libvirtd.conf", "-p", self.folder / "libvirtd.pid"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        lab.wait_until(self._answers, what="libvirtd")

    def _answers(self):
        if self.process.poll() is not None:
            raise lab.LabError(f"libvirtd ended: {(self.folder / 'libvirtd.out').read_text()}"
                               f"{self.log()}")
        return self.virsh("version", check=False).returncode == 0

    def virsh(self, *words, check=True):
        library = self.packages / "usr/lib/x86_64-linux-gnu"
        return lab.run("env", f"LD_LIBRARY_PATH={library}", self.packages / "usr/bin/virsh", "-q", "-c",
                       f"qemu+unix:///system?socket={self.folder}/libvirt-sock", *words, check=check)

    def version(self):
        return self.virsh("--version").stdout.strip()

    def log(self):
        return (self.folder / "libvirtd.log").read_text(errors="replace")


class Vm(lab.Vm):
    """The lab's guest, started by libvirt. Its folder is below libvirtd's."""

    def __init__(self, libvirt, name, disks):
        super().__init__(libvirt.folder / name, disks=disks, name=name)
        self.libvirt = libvirt
        self.snapshots = 0

    def alive(self):
        return self.process is not None and \
            self.libvirt.virsh("domstate", self.name, check=False).stdout.strip() == "running"

    def start(self):
        for disk in self.disks:
            disk.create(self.folder)
        self.path("domain.xml").write_text(self._domain())
        self.libvirt.virsh("create", self.path("domain.xml"))
        self.process = self.libvirt.process
        return self

    def kill(self):
        if self.process:
            self.libvirt.virsh("destroy", self.name, check=False)
        self.process = None
        self.hang_up()

    def agent_open(self):
        return any(entry["label"] == "charchannel0" and entry["frontend-open"]
                   for entry in self.qmp("query-chardev"))

    def wait_agent(self, timeout=lab.PATIENCE):
        self.wait_ready(timeout)
        lab.wait_until(lambda: self.libvirt.virsh(
            "qemu-agent-command", self.name, '{"execute":"guest-ping"}', check=False).returncode == 0,
            timeout, "the agent")
        return self

    def _domain(self):
        built = lab.guest()
        words = ["-qmp", self._listen("unix:{}", "qmp2.sock"),
                 "-chardev", self._listen("socket,id=ctl,path={}", "ctl.sock"),
                 # As JSON like libvirt's own: QEMU makes those after all others.
                 "-device", json.dumps({"driver": "virtserialport", "chardev": "ctl",
                                        "name": "vmfrost.lab.0", "id": "ctl-port",
                                        "bus": "virtio-serial0.0", "nr": 9})]
        disks = "".join(
            f"<disk type='file' device='disk'><driver name='qemu' type='{disk.fmt}'/>"
            f"<source file={quoteattr(str(self.path(disk.file)))}/>"
            f"<target dev='vd{'abcdefghijklmnop'[index]}' bus='virtio'/>"
            f"<serial>{escape(disk.name)}</serial></disk>" for index, disk in enumerate(self.disks))
        arguments = "".join(f"<qemu:arg value={quoteattr(word)}/>" for word in words)
        return f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{self.name}</name><memory unit='MiB'>{self.memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{built['kernel']}</kernel>
<initrd>{built['initramfs']}</initrd><cmdline>{lab.KERNEL_WORDS}</cmdline></os>
<features><acpi/></features><cpu mode='maximum'/>
<devices><emulator>/usr/bin/{self.binary}</emulator>{disks}
<controller type='virtio-serial' index='0'/>
<serial type='file'><source path='{self.path('console.log')}'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<memballoon model='none'/></devices>
<qemu:commandline>{arguments}</qemu:commandline></domain>
"""

    # --- the same as vmfrost's snapshot and delete

    def snapshot(self):
        """A quiesced snapshot of all disks: how long the guest was frozen, in ms, from the agent's
        log: the reply of the freeze to the request of the thaw."""
        self.snapshots += 1
        before = len(self.libvirt.log())
        self.libvirt.virsh("snapshot-create-as", self.name, f"s{self.snapshots}", "--disk-only",
                           "--quiesce", "--no-metadata", "--atomic")
        return frozen_ms(self.libvirt.log()[before:])

    def merge(self):
        """All disks back to their bases."""
        for index in range(len(self.disks)):
            self.libvirt.virsh("blockcommit", self.name, f"vd{'abcdefghijklmnop'[index]}", "--active",
                               "--pivot", "--wait")
        for overlay in self.folder.glob(f"*.s{self.snapshots}"):
            overlay.unlink()


def _stamp_ms(line):
    when, fraction = re.match(r"(\S+ \S+)\.(\d{3})\+0000", line).groups()
    return 1000 * calendar.timegm(time.strptime(when, "%Y-%m-%d %H:%M:%S")) + int(fraction)


def frozen_ms(log):
    lines = [line for line in log.splitlines() if re.match(r"\S+ \S+\+0000: ", line)]
    freeze = next(index for index, line in enumerate(lines) if "guest-fsfreeze-freeze" in line)
    reply = next(line for line in lines[freeze:] if "Line [" in line and '"return"' in line)
    thaw = next(line for line in lines[freeze:] if "guest-fsfreeze-thaw" in line)
    return _stamp_ms(thaw) - _stamp_ms(reply)
