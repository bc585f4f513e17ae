#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Which file systems are frozen, with a real QEMU's disks of all kinds, and an agent that says what
it likes: nothing that it says may do more than have everything frozen, or less than it asks for."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from agent import REFUSED, SILENT, Agent  # noqa: E402
from bare import ROOT, Qemu, Tap, drive, wait_until  # noqa: E402

def fs(point, *disks, kind="ext4"):
    return {"mountpoint": point, "name": "dev" + point, "type": kind, "disk": list(disks)}


def at(slot, bus=0, function=0, kind="virtio", **more):
    return {"bus-type": kind, "bus": 0, "target": 0, "unit": 0, "pci-controller": {
        "domain": 0, "bus": bus, "slot": slot, "function": function}, **more}


class Site:
    """A QEMU with such an agent."""

    def __init__(self, t, vm, number):
        self.t = t
        self.vm = vm
        self.number = 0
        self.agent = Agent(ROOT / f"agent{number}.sock")
        self.set()

    def set(self, *settings):
        words = [word for setting in settings for word in ("--set", setting)]
        done = self.vm.vmfrost("add", "web", "--agent", str(self.agent.listener.getsockname()),
                               *words)
        assert done.code == 0, done

    def take(self, *options, code=0):
        """A snapshot: its record."""
        self.number += 1
        self.agent.froze = None
        self.agent.asked.clear()
        out = self.vm.vmfrost("snapshot", f"@s{self.number}", *options)
        if out.code != code:
            self.t.is_(out.code, code, f"a snapshot's exit code ({out.error})")
        return out.document

    def froze(self, what, wanted, *options, says=None, code=0):
        """A test: this is frozen; and `says` stands in the record's reason."""
        record = self.take(*options, code=code)
        message = record["evidence"].get("freezeMessage")
        self.t.is_(self.agent.froze, wanted, what)
        if says is None:
            self.t.is_(message, None, f"{what}: nothing to explain")
        else:
            self.t.ok(says in (message or ""), f"{what}: {message}")
        return record


    def recovered(self, *options):
        """What a snapshot is that a recovery finishes: vmfrost is killed when the guest is thawed."""
        self.number += 1
        name = f"s{self.number}"
        self.vm.start_vmfrost("snapshot", f"@{name}", *options,
                              env={"VMFROST_TEST_AT": "kill:verify"}).wait()
        done = self.vm.vmfrost("recover")
        assert done.code == 0, done
        record = self.vm.vmfrost("show", f"@{name}").document
        return record["phase"], record["readyToUse"], record["consistency"]


def places(t):
    """Where QEMU has disks of all kinds is found out, also behind a bridge that the firmware has
    given its number."""
    words = ["-bios", "bios-256k.bin", *drive("web", device_options=",addr=0x10"),
             "-device", "pcie-root-port,id=port0,chassis=1,slot=1,addr=0x11",
             *drive("behind", device_options=",bus=port0"),
             "-device", "virtio-scsi-pci,id=scsi0,addr=0x12",
             *drive("lun1", device="scsi-hd", device_options=",bus=scsi0.0,scsi-id=1,lun=1"),
             *drive("lun2", device="scsi-hd", device_options=",bus=scsi0.0,scsi-id=2,lun=2"),
             *drive("sata", device="ide-hd", device_options=",bus=ide.4"),
             *drive("nvme", device="nvme", device_options=",serial=x,addr=0x13"),
             "-drive", "file=plain.qcow2,if=none,format=qcow2,id=plain",
             "-device", "virtio-blk-pci,drive=plain,addr=0x14",
             "-device", "qemu-xhci,id=usb,addr=0x15", *drive("usb", device="usb-storage", device_options=",bus=usb.0")]
    disks = ["web", "behind", "lun1", "lun2", "sata", "nvme", "plain", "usb"]
    told = {"web": at(0x10), "behind": at(0, bus=1), "lun1": at(0x12, kind="scsi", unit=1),
            "lun2": at(0x12, kind="scsi", unit=2), "sata": at(0x1f, function=2, kind="sata", unit=4),
            "nvme": at(0x13, kind="nvme"), "plain": at(0x14),
            "usb": at(0x15, kind="usb")}
    with Qemu(words, [f"{disk}.qcow2" for disk in disks]) as vm:
        site = Site(t, vm, 1)
        wait_until(lambda: any(device.get("pci_bridge", {}).get("bus", {}).get("secondary")
                               for bus in vm.qmp("query-pci") for device in bus["devices"]),
                   what="the firmware")
        everything = [fs(f"/{disk}", place) for disk, place in told.items()]
        site.agent.fsinfo = everything
        site.froze("nothing is left out", "all")
        t.ok("guest-get-fsinfo" not in site.agent.asked, "... and the guest is not asked")
        for disk in told:
            site.froze(f"all but {disk}", [f"/{other}" for other in told if other != disk],
                       "--exclude", disk)
        site.agent.fsinfo = everything[1:]
        site.froze("one without a file system is left out", "all", "--exclude", "web")
        site.agent.fsinfo = everything + [fs("/else", at(0x16))]
        site.froze("a device that has none of QEMU's disks", "all", "--exclude", "web",
                   says="not certain on which disk the guest has /else")


def words(t):
    """What the agent cannot, or will not, or lies about."""
    disks = drive("web", device_options=",addr=0x10") + drive("data", device_options=",addr=0x11")
    with Qemu(disks, ["web.qcow2", "data.qcow2"]) as vm:
        site = Site(t, vm, 2)
        agent = site.agent
        both = [fs("/", at(0x10)), fs("/data", at(0x11))]
        out = "--exclude", "data"
        agent.fsinfo = both
        record = site.froze("an honest one", ["/"], *out)
        t.is_((record["evidence"]["frozenMounts"], record["evidence"]["freezePolicy"],
               record["consistency"]), (["/"], "cut", "filesystem"), "... and it is in the record")
        checked = vm.vmfrost("check", *out).document
        t.is_((checked["frozenMounts"], checked["freezePolicy"], agent.frozen), (["/"], "cut", False),
              "check tells it before")
        status = vm.vmfrost("status").document
        t.ok("frozenMounts" not in status and "freezePolicy" not in status,
             "status has nothing to do with it")
        site.froze("by request", "all", *out, "--freeze", "all")
        t.ok("guest-get-fsinfo" not in agent.asked, "... without asking")
        for command in "guest-get-fsinfo", "guest-fsfreeze-freeze-list":
            agent.disabled = command,
            site.froze(f"no {command}", "all", *out, says="does not allow")
        record = site.take(*out, "--freeze", "cut")
        t.ok(any("all file systems are to be frozen" in line for line in record["warnings"]),
             "... which whoever asked for it is warned of")
        agent.disabled = ()
        site.set("freeze=/")
        t.is_(vm.vmfrost("status").document["warnings"], [], "... but not when only looking")
        site.set("freeze=")
        agent.windows = True
        site.froze("Windows", "all", *out, says="Windows")
        agent.windows = False
        agent.fsinfo = REFUSED
        site.froze("an error", "all", *out, says="no such luck")
        for number, lie in enumerate([{}, None, "/", [{}], [fs("mnt", at(0x10))], [[[]]],
                                      [fs("/\x00", at(0x10))]]):
            agent.fsinfo = lie
            site.froze(f"nonsense {number}", "all", *out, says="makes no sense")
        agent.fsinfo = both + [fs("/" + "x" * 3000, at(0x11)), fs("/\x1b[31m", at(0x11))]
        site.froze("names that make no difference", ["/"], *out)
        agent.fsinfo = both + [fs("/\x1b[31m")]
        record = site.froze("a name for terminals", "all", *out, says="not certain")
        t.ok("\x1b" not in record["evidence"]["freezeMessage"], "... does not reach them")
        agent.fsinfo = both + [fs("/", at(0x11))]
        site.froze("one name for two file systems", ["/"], *out)
        agent.fsinfo = SILENT
        record = site.froze("no answer", "all", *out, says="in time")
        t.is_(record["consistency"], "filesystem", "... does no harm to the snapshot")
        agent.fsinfo = [fs("/", at(0x10)), fs("/srv", at(0x10)), fs("/data", at(0x11))]
        agent.short = 1
        record = site.froze("fewer are frozen than there were", ["/", "/srv"], *out, code=5)
        t.is_(record["consistency"], "crash", "... and it does not count as consistent")
        t.is_(site.recovered(*out), ("Failed", True, "crash"), "... nor for a recovery")
        agent.short = 0
        site.set("freeze=-/srv")
        record = site.froze("one left out by the VM's setting", ["/"], *out)
        t.is_(record["consistency"], "crash", "... of a disk that is cut, so that it is not consistent")
        t.is_(site.recovered(*out), ("Succeeded", True, "crash"), "... nor for a recovery")
        site.froze("... and by the command line", ["/", "/srv"], *out, "--freeze", "cut")


def main():
    with Tap() as t:
        for part in places, words:
            t.diag(part.__name__)
            part(t)


if __name__ == "__main__":
    main()
