"""The ways to take a snapshot that are compared: by a bare script, by vmfrost, by libvirt.

Each has a name, takes a snapshot of all disks of a lab.Vm (run(): how long the guest was frozen, in ms),
and merges it back (undo()), so that the next one finds what this one found.
"""
import json
import os
import pathlib
import subprocess
import time

import lab

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
VMFROST = ROOT / "build" / "release" / "vmfrost"


class Agent:
    """The barest client of the guest agent: what a script would do."""

    def __init__(self, path):
        self.socket = lab.connect_unix(path, 10)
        self.file = self.socket.makefile("rb")
        self.socket.sendall(b"\xff" + json.dumps(
            {"execute": "guest-sync-delimited", "arguments": {"id": 4711}}).encode() + b"\n")
        while b"4711" not in self.file.readline():
            pass

    def send(self, command):
        self.socket.sendall(b'{"execute":"%s"}\n' % command.encode())

    def reply(self):
        return json.loads(self.file.readline())["return"]

    def close(self):
        self.file.close()
        self.socket.close()


class Nothing:
    """A freeze and a thaw: what no snapshot can be faster than."""

    name = "freeze and thaw, no snapshot"

    def prepare(self, vm):
        pass

    def cut(self, vm):
        pass

    def run(self, vm):
        self.prepare(vm)
        agent = Agent(vm.path("qga.sock"))
        agent.send("guest-fsfreeze-freeze")
        agent.reply()
        frozen = time.monotonic()
        self.cut(vm)
        thaw_sent = time.monotonic()
        agent.send("guest-fsfreeze-thaw")
        agent.reply()
        agent.close()
        return 1000 * (thaw_sent - frozen)

    def undo(self, vm):
        pass


class Script(Nothing):
    """blockdev-snapshot-sync of all disks in a transaction, by a script that does nothing else."""

    def __init__(self, mode):
        self.mode = mode
        self.name = f"bare script, {mode}"
        self.count = 0
        self.actions, self.overlays = [], []

    def prepare(self, vm):
        self.count += 1
        self.actions, self.overlays = [], []
        nodes = [about["inserted"]["node-name"] for about in vm.qmp("query-block")
                 if "inserted" in about]
        for index, (disk, node) in enumerate(zip(vm.disks, nodes)):
            name = f"{self.mode[0]}{self.count}-{index}"
            overlay = vm.path(f"{name}.qcow2")
            if self.mode == "existing":
                lab.run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", disk.fmt,
                        "-b", vm.path(disk.file), overlay, str(disk.size))
            self.overlays.append((name, node, overlay))
            self.actions.append({"type": "blockdev-snapshot-sync", "data": {
                "node-name": node, "snapshot-node-name": name, "snapshot-file": str(overlay),
                "mode": self.mode, "format": "qcow2"}})

    def cut(self, vm):
        vm.qmp("transaction", {"actions": self.actions})

    def undo(self, vm):
        for name, node, overlay in self.overlays:
            vm.qmp("block-commit", {"job-id": name, "device": name, "top-node": name,
                                    "base-node": node, "auto-dismiss": False})
            self._await(vm, name, "ready")
            vm.qmp("job-complete", {"id": name})
            self._await(vm, name, "concluded")
            vm.qmp("job-dismiss", {"id": name})
            overlay.unlink()

    @staticmethod
    def _await(vm, job, status):
        while (job, status) not in [(about["id"], about["status"]) for about in vm.qmp("query-jobs")]:
            pass


class Vmfrost:
    """The command, with these options; it keeps what its last run cost (`wall` and `cpu` in ms)."""

    def __init__(self, state, *options):
        self.state = state
        self.options = options
        self.name = " ".join(("vmfrost", *options))
        self.count = 0
        self.wall = self.cpu = 0.0

    def command(self, vm, verb, *words):
        """Runs it: its document."""
        began = time.monotonic()
        process = subprocess.Popen([VMFROST, "--state-dir", self.state, "--json", verb, "--qmp",
                                    vm.path("qmp.sock"), *words],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        self.wall = 1000 * (time.monotonic() - began)
        self.cpu = 1000 * (usage.ru_utime + usage.ru_stime)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise lab.LabError(f"vmfrost {verb}: {process.returncode}\n{out.decode()}{err.decode()}")
        return json.loads(out.splitlines()[-1])["document"]

    def run(self, vm):
        self.count += 1
        record = self.command(vm, "snapshot", f"s{self.count}", *self.options)
        return record["evidence"].get("frozenMs")

    def undo(self, vm):
        self.command(vm, "delete", f"s{self.count}")


class Expedited:
    """Another way, while the guest's kernel hurries its grace periods (RCU): each freeze of a file system
    waits for some."""

    def __init__(self, way):
        self.way = way
        self.name = f"{way.name}, rcu_expedited"

    def run(self, vm):
        vm.sh("echo 1 > /sys/kernel/rcu_expedited")
        self.way.run(vm)
        vm.sh("echo 0 > /sys/kernel/rcu_expedited")

    def undo(self, vm):
        self.way.undo(vm)


class Libvirt:
    """virsh, of a VM that libvirt has started."""

    name = "libvirt, --quiesce"

    def run(self, vm):
        return vm.snapshot()

    def undo(self, vm):
        vm.merge()
