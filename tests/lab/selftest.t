#!/usr/bin/env python3
"""Is the lab what it says? Each fault does what its name says, and the helpers
that judge images tell good ones from bad ones. Three boots, less than a minute."""

import tempfile
import time
from pathlib import Path

from lab import (Disk, QmpError, Tap, Vm, ext4_needs_recovery, instant_problem, one_instant,
                 wait_until, writer_records, xfs_log_clean)

FREEZE, THAW = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"
DISKS = 3  # of the guest most tests use
# Creates and removes files for ever, so that a journal is never empty.
CHURN = """while :; do
    for m in web logs; do
        mkdir /mnt/$m/churn && date > /mnt/$m/churn/x && sync /mnt/$m/churn/x
        rm -r /mnt/$m/churn
    done
done >/dev/null 2>&1 &"""


def timed(call):
    """What the call returns, and the seconds it took."""
    began = time.monotonic()
    value = call()
    return value, time.monotonic() - began


def snapshot(vm, tag):
    """Cut every disk by hand; the sealed images by disk name."""
    actions, sealed = [], {}
    for disk in vm.disks:
        overlay = f"{disk.name}-{tag}.qcow2"
        sealed[disk.name] = next(
            entry["inserted"]["file"] for entry in vm.qmp("query-block")
            if entry["device"] == disk.name)
        actions.append({"type": "blockdev-snapshot-sync",
                        "data": {"device": disk.name, "snapshot-file": str(vm.path(overlay)),
                                 "format": "qcow2", "mode": "absolute-paths"}})
    vm.qmp("transaction", {"actions": actions})
    return {name: vm.path(file) for name, file in sealed.items()}


def frozen_and_thawed(tap, vm):
    tap.ok(not vm.frozen(), "a fresh guest is thawed")
    tap.ok(vm.guest_writes_ok(), "and writes")
    count, took = timed(lambda: vm.agent_command(FREEZE))
    tap.is_(count, DISKS, "a freeze freezes every disk")
    tap.ok(took < 5, f"and is quick ({took * 1000:.0f} ms)")
    tap.ok(vm.frozen(), "the agent says frozen")
    tap.ok(not vm.guest_writes_ok(timeout=1), "a write blocks")
    tap.is_(vm.sh("echo alive").out, "alive\n", "the control shell does not")
    tap.is_(vm.agent_command(THAW), DISKS, "a thaw thaws every disk")
    tap.ok(vm.guest_writes_ok(), "and a write works again")
    log = vm.sh("cut -d' ' -f2- /run/lab/hook.log").out
    tap.is_(log, "freeze\nfreeze done: 0\nthaw\nthaw done: 0\n", "the hook has logged it")


def hook_faults(tap, vm):
    vm.set_fault("freeze", "slow:2")
    count, took = timed(lambda: vm.agent_command(FREEZE))
    tap.ok(count == DISKS and took >= 2, "freeze=slow:2 takes two seconds")
    vm.set_fault("thaw", "slow:2")
    count, took = timed(lambda: vm.agent_command(THAW))
    tap.ok(count == DISKS and took >= 2, "thaw=slow:2 takes two seconds")

    vm.set_fault("freeze", "fail")
    error = tap.raises(lambda: vm.agent_command(FREEZE), "freeze=fail is refused", QmpError)
    tap.ok("3" in error.desc, "and the agent says with what status")
    tap.ok(vm.guest_writes_ok(), "nothing is frozen then")
    vm.clear_faults()
    vm.set_fault("thaw", "fail")
    vm.agent_command(FREEZE)
    tap.raises(lambda: vm.agent_command(THAW), "thaw=fail is an error", QmpError)
    tap.ok(vm.guest_writes_ok() and not vm.frozen(), "although all is thawed")
    vm.clear_faults()


def agent_killed(tap, vm):
    old = vm.sh("lab agent pid").out
    vm.set_fault("restart", "1")
    vm.set_fault("kill", "0")
    tap.is_(vm.agent_command(FREEZE), DISKS, "kill=0 lets the freeze be answered")
    wait_until(lambda: not vm.agent_open(), what="the agent's end")
    tap.ok(not vm.guest_writes_ok(timeout=1), "the agent is gone and all is frozen")
    vm.wait_agent()
    tap.ok(vm.sh("lab agent pid").out != old, "restart=1 brings another agent")
    tap.ok(vm.frozen(), "which knows that all is frozen")
    tap.is_(vm.agent_command(THAW), DISKS, "and thaws it")

    vm.set_fault("kill", "noreply")
    tap.raises(lambda: vm.agent_command(FREEZE, timeout=3), "kill=noreply: no answer to the freeze")
    vm.wait_agent()
    tap.ok(vm.frozen() and not vm.guest_writes_ok(timeout=1), "but all is frozen")
    tap.is_(vm.agent_command(THAW), DISKS, "until it is thawed")

    vm.set_fault("kill", "300")
    vm.set_fault("restart", "")
    began = time.monotonic()
    vm.agent_command(FREEZE)
    tap.ok(vm.agent_open(), "kill=300: the agent outlives its answer")
    wait_until(lambda: not vm.agent_open(), what="the agent's end")
    tap.ok(time.monotonic() - began >= 0.3, "for 300 ms")
    vm.sysrq("j")
    tap.ok(wait_until(lambda: vm.guest_writes_ok(), what="a write"), "alt-sysrq-j thaws it all")
    tap.ok(not vm.agent_open(), "without restart nobody brings the agent back")
    vm.clear_faults()
    vm.start_agent()
    vm.wait_agent()
    tap.ok(vm.frozen(), "an agent started by hand still believes that it is frozen")
    tap.is_(vm.agent_command(THAW), 0, "and has nothing to thaw")


def no_sysrq(tap, vm):
    vm.set_fault("sysrq", "0")
    vm.agent_command(FREEZE)
    vm.sysrq("j")
    tap.ok(not vm.guest_writes_ok(timeout=1), "sysrq=0: alt-sysrq-j does nothing")
    vm.agent_command(THAW)
    vm.clear_faults()


def images(tap, vm):
    vm.start_writer("web", "data")
    vm.sh(CHURN)
    vm.start_probe("web")
    wait_until(lambda: vm.writer_acked() > 50, what="50 records")
    vm.probe(reset=True)
    vm.agent_command(FREEZE)
    acked = vm.writer_acked()
    sealed = snapshot(vm, "frozen")
    time.sleep(0.3)
    vm.agent_command(THAW)
    tap.is_(instant_problem(sealed["web"], sealed["data"], acked=acked), None,
            "two disks frozen and cut are of one instant, and hold what was acknowledged")
    tap.ok(not ext4_needs_recovery(sealed["web"]), "a frozen ext4 needs no recovery")
    tap.ok(xfs_log_clean(sealed["logs"]), "a frozen xfs has a clean log")
    report = vm.probe()
    tap.ok(report.writes > 0 and report.longest_us >= 300000, "the probe has seen the stall")
    tap.ok(report.mean_us < report.longest_us, f"it was not always like that: {report}")

    wait_until(lambda: vm.writer_acked() > acked + 50, what="more records")
    acked = vm.writer_acked()
    cut = snapshot(vm, "cut")
    tap.is_(instant_problem(cut["web"], cut["data"], acked=acked), None,
            "cut without a freeze, they are of one instant as well")
    tap.ok(ext4_needs_recovery(cut["web"]), "but this ext4 needs recovery")
    tap.ok(not xfs_log_clean(cut["logs"]), "and this xfs has a dirty log")

    tap.ok(not one_instant(cut["web"], sealed["data"]), "images of two instants are told apart")
    tap.ok(not one_instant(sealed["web"], cut["data"]), "either way round")
    tap.ok(not one_instant(sealed["web"], sealed["data"], acked=acked), "lost records are noticed")
    last = vm.stop_writer()
    tap.ok(last >= acked, "the writer stops when told")


def other_hardware(tap, folder):
    with Vm(folder, [Disk("a", fmt="raw"), Disk("b", fmt="raw", fs="xfs")], attach="blockdev",
            bus="virtio-scsi", iothread=True, cmdline="lab.agent=none lab.freeze=fail") as vm:
        vm.start().wait_ready()
        tap.is_(vm.mounts(), ["/mnt/a", "/mnt/b"], "virtio-scsi, -blockdev and raw disks work")
        tap.ok(not vm.agent_open(), "lab.agent=none: nobody opens the port")
        tap.is_(vm.sh("cat /run/lab/fault/freeze").out, "fail\n", "faults can be given at boot")
        vm.start_writer("a", "b", pause_us=1000)
        vm.kill()
        images = [vm.path(disk.file) for disk in vm.disks]
        tap.is_(instant_problem(*images, acked=1), None,
                "records are also found in an xfs, and survive a SIGKILL of QEMU")
        damaged = bytearray(images[1].read_bytes())
        damaged[damaged.index(b"VMFWRIT1") + 100] ^= 1
        vm.path("damaged").write_bytes(damaged)
        tap.raises(lambda: writer_records(vm.path("damaged")), "one wrong bit is noticed")
        vm.restart().wait_ready()
        tap.ok(vm.guest_writes_ok(), "the same command line boots again")
        vm.start_agent()
        vm.wait_agent()
        tap.ok(not vm.frozen(), "an agent can come later")
        tap.is_(vm.quit(), 0, "QEMU quits when asked")


def main():
    with Tap() as tap, tempfile.TemporaryDirectory(prefix="lab-selftest-") as name:
        disks = [Disk("web"), Disk("data"), Disk("logs", fs="xfs")]
        with Vm(Path(name) / "one", disks, cmdline="lab.agent=late:3 lab.dirty=2") as vm:
            _, took = timed(lambda: vm.start().wait_ready())
            tap.diag(f"boot: {took:.1f} s")
            tap.ok(not vm.agent_open(), "agent=late: not there yet")
            tap.is_(sorted(vm.mounts()), ["/mnt/data", "/mnt/logs", "/mnt/web"],
                    "disks are mounted by serial")
            tap.is_(vm.sh("false", check=False).code, 1, "the shell returns exit statuses")
            tap.is_(vm.sh("sleep 9", timeout=0.2, check=False).code, None, "and gives up in time")
            vm.wait_agent()
            tap.ok(vm.sh("lab agent pid").out, "and there later")
            for part in (frozen_and_thawed, hook_faults, agent_killed, no_sysrq, images):
                tap.diag(part.__name__)
                part(tap, vm)
        other_hardware(tap, Path(name) / "two")


if __name__ == "__main__":
    main()
