#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""kill -9 of vmfrost, of QEMU, of both, at every step of a snapshot and of a deletion; then recovery.

Whatever was killed: the launcher's name opens what the guest wrote last, and after `recover` there
is no stray file, link, node, job or journal, and no VM left paused.
"""

import os
import re
import signal
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (LabError, Qemu, Tap, blockdev, drive, finish, go_on, image_ok, lab, process_state,
                  wait_until)

DISKS = ["web", "data"]
IMAGES = ["web.qcow2", "data.qcow2"]
FLOWS = lab.PROJECT / "src" / "flows"


def points(table):
    """All places of an operation where the process can be told to kill itself: before and after the
    start of each step of its table, and those inside of steps."""
    steps = [step for step in re.findall(r'\.name = "([^"]+)"', (FLOWS / f"{table}.c").read_text())
             if not step.startswith("group-")]  # those are in group.t
    inside = [point for source in sorted(FLOWS.glob("*.c"))
              for point in re.findall(r'vf_test_point\(flow, "([^"]+)"\)', source.read_text())]
    found = []
    for step in steps:
        found += [step, *(point for point in inside if point.startswith(step + ".")), step + "+"]
    return found


def words_for(attach):
    form = drive if attach == "drive" else blockdev
    return [word for disk in DISKS for word in form(disk)]


def records(vm):
    return {record["name"]: record for record in vm.vmfrost("list").result}


def stray(vm, snapshots, kept=(), check=False):
    """What is there and should not be, or the other way round: a list of sentences. `kept`: names
    of deleted snapshots that a QEMU that was started on them still needs."""
    wrong = []
    alive = vm.process.poll() is None
    wanted = {f"{disk}.qcow2" for disk in DISKS}
    wanted |= {f"{disk}@{name}.qcow2" for disk in DISKS for name in snapshots}
    names = {entry.name for entry in vm.disks.iterdir()}
    hidden = set(vm.hidden())
    for name in sorted(wanted - names):
        wrong.append(f"{name} is missing")
    for name in sorted(names - wanted - hidden):
        path = vm.disks / name
        top = re.sub("@[^.]*", "", name)
        if not (alive and any(f"@{old}." in name for old in kept) and
                path.stat().st_ino == vm.inode(top)):
            wrong.append(f"{name} is stray")
    opened = vm.opened() if alive else {}
    for name in sorted(hidden):
        if name.endswith(".next") or vm.inode(name) not in opened:
            wrong.append(f"{name} is stray")
    for name in sorted(wanted & names) if check else ():
        if not image_ok(vm.disks / name, leaks=True):
            wrong.append(f"{name} has errors")
    if vm.journal():
        wrong.append("there is a journal")
    if not alive:
        return wrong
    if vm.jobs():
        wrong.append(f"jobs: {vm.jobs()}")
    if vm.status() != "running":
        wrong.append(f"the VM is {vm.status()}")
    for disk in DISKS:
        chain = vm.chain(disk)
        if len(chain) != 1 + len(snapshots):
            wrong.append(f"{disk}: chain {chain}")
    nodes = {node["node-name"] for node in vm.qmp("query-named-block-nodes", flat=True)}
    used = {name for disk in DISKS for name in vm.chain(disk)}
    for name in sorted(nodes - used):
        if re.match(r"vf[0-9a-f]{8}-\d+f?$", name):
            wrong.append(f"node {name} is stray")
    return wrong


def content(vm, top, **snapshots):
    """What is wrong with the content of the disks."""
    wrong = []
    for disk in DISKS:
        for name, clusters in (("", top), *((f"@{key}", value) for key, value in snapshots.items())):
            if (vm.disks / f"{disk}{name}.qcow2").exists():
                found = vm.read(f"{disk}{name}.qcow2", len(clusters))
                if found != clusters:
                    wrong.append(f"{disk}{name}.qcow2: {found} and not {clusters}")
        if vm.process.poll() is None:
            found = vm.sees(disk, len(top))
            if found != top:
                wrong.append(f"{disk} as its guest sees it: {found} and not {top}")
    return wrong


def write_all(vm, pattern, cluster):
    for disk in DISKS:
        vm.write(disk, pattern, cluster)


def is_ready(vm, name):
    record = records(vm).get(name)
    return bool(record and record["readyToUse"])


def set_deadline(vm, seconds):
    """The deadline in the journal is then."""
    for journal in vm.journal():
        text = journal.read_text()
        journal.write_text(re.sub(r'"deadline": ?\d+', f'"deadline": {seconds}', text, count=1))


def recover(vm, wrong, when):
    out = vm.vmfrost("recover")
    if out.code:
        wrong.append(f"{when}: recover: exit {out.code}: {out.error} {out.err}")
    return out


def holds_io(point):
    """QEMU holds the guest's I/O there, so that a write would wait for the recovery."""
    return point in ("merge.pending", "merge.turned")


def left_behind(vm, command):
    """The processes of a command on this VM besides itself: its guard."""
    mark = f"VMFROST_STATE_DIR={vm.state}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) not in (command.pid, vm.pid, os.getpid()) \
                    and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def guard_is_done(vm, command):
    """What the guard of a killed command had to do is done: milliseconds, but not on a busy machine."""
    wait_until(lambda: not left_behind(vm, command), what="the guard's end", interval=0.002)


# --- a snapshot ------------------------------------------------------------------

def fail_it(vm, point):
    """Words and test points with which a snapshot comes to a step of its way back."""
    at = {"undo-doubt": "cut+", "undo-cut": "verify", "undo-files": "guard",
          "undo-record": "overlays"}.get(point.rstrip("+"))
    return at


def kill_snapshot(vm, point, method):
    """Take a snapshot that dies at a point: the command. None if it never came there."""
    at = fail_it(vm, point)
    tests = f"kill:{point}" if not at else f"stop:{at},kill:{point}"
    command = vm.start_vmfrost("snapshot", "@one", "--method", method, "--deadline", "1h",
                               env={"VMFROST_TEST_AT": tests})
    if at:
        wait_until(lambda: process_state(command.pid) in ("T", "", "Z"), what=f"the stop at {at}",
                   interval=0.002)
        command.signal(signal.SIGINT)
        command.signal(signal.SIGCONT)
    return command if finish(command).code == -signal.SIGKILL else None


def snapshot_case(vm, point, method, variant, wrong):
    """One case; `vm` is as new before and after it. What is wrong is added to `wrong`."""
    write_all(vm, 1, 0)
    write_all(vm, 0, 1)
    command = kill_snapshot(vm, point, method)
    if not command:
        if is_ready(vm, "one"):
            vm.delete("one")
        elif records(vm):
            vm.vmfrost("delete", "@one")
        return False
    top = [1, 0]
    if "early" not in variant:
        if point == "cut+":  # QEMU may not have come to it: what is written first is in the snapshot
            vm.catch_up()
        write_all(vm, 2, 1)
        top = [1, 2]
    if variant == "late":
        set_deadline(vm, 1)
    if "qemu" in variant or "again" in variant:
        if "early" not in variant:
            guard_is_done(vm, command)
        vm.kill()
        wrong += [f"both dead: {line}" for line in content(vm, top)]
    if "again" in variant:
        vm.start()
        write_all(vm, 3, 0)
        top[0] = 3
    out = recover(vm, wrong, "first")
    ready = is_ready(vm, "one")
    phase = records(vm).get("one", {}).get("phase")
    wrong += [f"recovered: {line}" for line in stray(vm, ["one"] if ready else [],
                                                        check=True)]
    wrong += [f"recovered: {line}" for line in content(vm, top, one=[1, 0])]
    if (phase == "Succeeded") != ready or phase == "InProgress":
        wrong.append(f"recovered: the record is {phase}, ready {ready}")
    if variant == "late" and ready and out.document.get("action") == "rolled-forward" and \
            point not in ("record.saved", "record+"):
        wrong.append("recovered: rolled forward after the deadline")
    step = point.rstrip("+").split(".")[0]
    if variant == "alive" and step in ("flip", "verify") and not ready:
        wrong.append("recovered: rolled back before the deadline, though the cut was made")
    out = recover(vm, wrong, "second")
    if out.document.get("found"):
        wrong.append("the second recover found something")
    vm.restart()
    out = recover(vm, wrong, "restart")
    wrong += [f"restart: {line}" for line in stray(vm, ["one"] if ready else [])]
    wrong += [f"restart: {line}" for line in content(vm, top, one=[1, 0])]
    if vm.hidden():
        wrong.append(f"restart: {vm.hidden()} are left")
    if "one" in records(vm):
        vm.delete("one")
        wrong += [f"deleted: {line}" for line in stray(vm, [], ["one"])]
        wrong += [f"deleted: {line}" for line in content(vm, top)]
    if ready:
        vm.restart()
        recover(vm, wrong, "the end")
        wrong += [f"the end: {line}" for line in stray(vm, [])]
    if wrong:
        wrong.append(f"names: {vm.names()}")
    return True


# --- a deletion ---------------------------------------------------------------------

def started_on_base(t):
    """Everybody dies in the milliseconds in which the name leads to the base: vmfrost, its guard and
    QEMU. QEMU is started on the wrong image: nothing is thrown away, and a person is asked."""
    with Qemu(words_for("drive"), IMAGES) as vm:
        write_all(vm, 1, 0)
        for disk in DISKS:  # so that merging down is cheaper
            vm.write(disk, 1, 8, 8)
        vm.take("one")
        write_all(vm, 2, 1)
        command = vm.stop_at("merge.started", "delete", "@one")
        kill_all(vm, command)
        vm.restart()
        write_all(vm, 3, 0)
        out = vm.vmfrost("recover")
        overlay = next(name for name in vm.hidden()
                       if name.startswith(".web.") and not name.endswith(".next"))
        t.ok(out.code == 1 and overlay in out.error and "journal" in out.next,
             "started on the base: both images are kept, and the error names them")
        t.is_((vm.read(overlay, 2)[1], vm.sees("web", 1)), (2, [3]), "... with what they hold")


def ran_on_base(t):
    """Everybody dies before a name is turned, the VM is started on the bases, and stopped again: what
    its guest wrote then is not put below what it had written before."""
    for point in ("flip", "flip.first"):
        with Qemu(words_for("drive"), IMAGES) as vm:
            write_all(vm, 1, 0)
            command = vm.stop_at(point, "snapshot", "@one")
            write_all(vm, 2, 1)
            kill_all(vm, command)
            vm.restart()
            write_all(vm, 3, 2)
            vm.kill()
            out = vm.vmfrost("recover")
            overlay = next(name for name in vm.hidden()
                           if name.startswith(".data.") and not name.endswith(".next"))
            named = overlay if point == "flip.first" else overlay.replace("data", "web")
            t.ok(out.code == 1 and named in out.error and "journal" in out.next,
                 f"ran on the base, at {point}: both images are kept, and the error names them")
            t.is_((vm.read(overlay, 2), vm.read("data.qcow2", 3)), ([1, 2], [1, 0, 3]),
                  "... with what they hold")
            t.is_(is_ready(vm, "one"), False, "... and there is no snapshot")


def started_on_quiet_base(t):
    """The same, but nothing was written since the snapshot: then the base has all, and goes on."""
    for verb, words, killed in (("recover", (), False), ("snapshot", ("@two",), False),
                                ("recover", (), True)):
        wrong = []
        with Qemu(words_for("drive"), IMAGES) as vm:
            write_all(vm, 1, 0)
            vm.take("one")
            command = vm.stop_at("merge.started", "delete", "@one")
            kill_all(vm, command)
            vm.restart()
            write_all(vm, 3, 1)
            if killed:  # when what was prepared for the overlays is removed
                finish(vm.start_vmfrost(verb, *words, env={"VMFROST_TEST_AT": "kill:accept"}))
                vm.kill()
            out = vm.vmfrost(verb, *words)
            if out.code:
                wrong.append(f"{verb}: {out.code} {out.error}")
            if killed:
                vm.start()
            wrong += [f"{verb}: {line}" for line in content(vm, [1, 3])]
            if "one" in records(vm):
                vm.delete("one")
            for name in records(vm):
                if vm.read(f"web@{name}.qcow2", 2) != [1, 3]:
                    wrong.append(f"{name}: {vm.read(f'web@{name}.qcow2', 2)}")
                vm.delete(name)
            wrong += stray(vm, [], ["one", "two"]) + content(vm, [1, 3])
            vm.restart()
            recover(vm, wrong, "restarted")
            wrong += [f"restarted: {line}" for line in stray(vm, []) + content(vm, [1, 3])]
        t.is_(wrong, [], f"started on a base that nothing was written above: {verb}"
              + (", killed with QEMU, and again" if killed else ""))


def delete_case(vm, point, method, variant, wrong):
    """The same for a deletion that dies."""
    is_implicit = "-drive" in vm.words
    write_all(vm, 1, 0)
    write_all(vm, 0, 1)
    vm.take("one", "--method", method)
    write_all(vm, 2, 1)
    at = {"stop-merge": "merge.started", "undo-files": "merge.started", "close": "accept"}.get(point.rstrip("+"))
    tests = f"kill:{point}" if not at else f"stop:{at},kill:{point}"
    command = vm.start_vmfrost("delete", "@one", env={"VMFROST_TEST_AT": tests})
    if at:
        wait_until(lambda: process_state(command.pid) in ("T", "", "Z"), what=f"the stop at {at}",
                   interval=0.002)
        command.signal(signal.SIGINT)
        command.signal(signal.SIGCONT)
    if finish(command).code != -signal.SIGKILL:
        if "one" in records(vm):
            vm.delete("one")
        return False
    top = [1, 2]
    kept = []
    if not holds_io(point) and "early" not in variant:
        write_all(vm, 4, 0)
        top[0] = 4
    if "qemu" in variant or "again" in variant:
        vm.kill()
        # For these milliseconds the name leads to the base, for QEMU to reopen it, and the guard
        # leads it back.
        if point in ("merge.writable", "merge.started") and is_implicit:
            hidden = next(name for name in vm.hidden()
                          if name.startswith(".web.") and not name.endswith(".next"))
            wait_until(lambda: vm.inode("web.qcow2") == vm.inode(hidden), timeout=2,
                       what="the guard's rename", interval=0.002)
        wrong += [f"both dead: {line}" for line in content(vm, top)]
    if "again" in variant:
        vm.start()
        kept = ["one"]
        write_all(vm, 3, 0)
        top[0] = 3
    recover(vm, wrong, "first")
    if "one" in records(vm):
        if variant == "alive" and not at and point not in ("connect", "connect+", "look", "look+",
                                                            "choose", "choose+", "accept"):
            wrong.append("recovered: the deletion was not finished")
        vm_was_off = vm.process.poll() is not None
        if vm_was_off:
            wrong += [f"recovered: {line}" for line in content(vm, top)]
            vm.start()
            kept = ["one"]
        out = vm.vmfrost("delete", "@one")
        if out.code:
            wrong.append(f"deleted again: exit {out.code}: {out.error} {out.err}")
    wrong += [f"recovered: {line}" for line in stray(vm, [], kept, check=True)]
    wrong += [f"recovered: {line}" for line in content(vm, top)]
    if recover(vm, wrong, "second").document.get("found"):
        wrong.append("the second recover found something")
    vm.restart()
    recover(vm, wrong, "restart")
    wrong += [f"restart: {line}" for line in stray(vm, [])]
    wrong += [f"restart: {line}" for line in content(vm, top)]
    if vm.hidden() or records(vm):
        wrong.append(f"restart: {vm.hidden()} {list(records(vm))} are left")
    if wrong:
        wrong.append(f"names: {vm.names()}")
    return True


VARIANTS = {
    "alive": "QEMU goes on",
    "late": "and the deadline passes",
    "qemu": "QEMU dies, too",
    "qemu, early": "QEMU dies at the same time",
    "again": "QEMU dies and is started again",
}
NEVER = {"undo-freeze", "thaw-late", "melt", "flush", "mounts", "freeze", "thaw",
         "undo-doubt"}  # no agent, no doubt


def matrix(t, operation, case, attach, method, variants, chosen=None):
    for variant in variants:
        came, missed = 0, []
        with Qemu(words_for(attach), IMAGES) as vm:
            for point in points(operation):
                if chosen and not chosen(point):
                    continue
                wrong = []
                try:
                    if not case(vm, point, method, variant, wrong):
                        missed.append(point)
                        continue
                except LabError as error:
                    wrong.append(f"{error}")
                came += 1
                t.is_(wrong, [], f"{operation}, {attach}, {method}: killed at {point}, "
                      f"{VARIANTS[variant]}")
                if wrong:  # the next case shall begin anew
                    vm.__exit__()
                    vm.__init__(words_for(attach), IMAGES)
                    vm.start()
        never = NEVER | ({"merge.stopped", "merge.writable"} if attach == "blockdev" else set())
        # Recovery's own steps, and what deletions of older snapshots do: delete.t.
        never |= {"names", "settle", "tidy", "stop-merge.cancelled", *(point for point in missed if "graft." in point)}
        steps = {point for point in missed if point.rstrip("+") not in never}
        t.is_(sorted(steps), [], f"{operation}, {attach}, {variant}: came to every step ({came})")


def some(*names):
    """A choice of points; with VMFROST_TEST_FULL=1 all of them."""
    def chosen(point):
        if os.environ.get("VMFROST_TEST_FULL"):
            return True
        return point in names if names else not point.endswith("+") and point not in (
            "connect", "look", "plan", "agent", "choose", "undo-record", "close") \
            or point in ("overlays+", "rehearse+", "cut+", "merge+", "undo-cut+", "record+")
    return chosen


AROUND_CUT = ("rehearse", "cut", "cut+", "flip", "verify", "record.saved", "undo-cut")
CUT = AROUND_CUT[2:]
MERGE = ("merge.stopped", "merge.writable", "merge.started", "merge.pending", "merge.turned", "files",
         "remove")


def snapshots(t):
    matrix(t, "snapshot", snapshot_case, "drive", "existing", ["alive", "qemu"], some())
    matrix(t, "snapshot", snapshot_case, "drive", "existing", ["late", "qemu, early"], some(*CUT))
    matrix(t, "snapshot", snapshot_case, "drive", "existing", ["again"], some(*AROUND_CUT))
    matrix(t, "snapshot", snapshot_case, "blockdev", "preopened", ["alive", "qemu", "again"],
           some(*AROUND_CUT))
    matrix(t, "snapshot", snapshot_case, "blockdev", "existing", ["late"], some(*CUT))


def deletions(t):
    matrix(t, "delete", delete_case, "drive", "existing", ["alive", "qemu"], some())
    matrix(t, "delete", delete_case, "drive", "existing", ["qemu, early", "again"], some(*MERGE))
    matrix(t, "delete", delete_case, "blockdev", "preopened", ["alive", "qemu"], some(*MERGE))


def second_disk(t):
    """The deletion dies at its second disk, the first one is merged."""
    for attach in ("drive", "blockdev"):
        for point in MERGE[2 * (attach == "blockdev"):5]:
            for dead in (False, True):
                wrong = []
                with Qemu(words_for(attach), IMAGES) as vm:
                    write_all(vm, 1, 0)
                    vm.take("one")
                    write_all(vm, 2, 1)
                    command = vm.stop_at(point, "delete", "@one")
                    command.signal(signal.SIGCONT)
                    wait_until(lambda: process_state(command.pid) == "T" and vm.journal() and
                               '"merged"' in vm.journal()[0].read_text(),
                               what=f"the second {point}", interval=0.002)
                    command.signal(signal.SIGKILL)
                    finish(command)
                    if dead:
                        vm.kill()
                    recover(vm, wrong, "first")
                    wrong += [f"recovered: {line}" for line in content(vm, [1, 2])]
                    if dead:
                        vm.start()
                        if "one" in records(vm):
                            out = vm.vmfrost("delete", "@one")
                            if out.code:
                                wrong.append(f"deleted again: exit {out.code}: {out.error}")
                    wrong += stray(vm, [], ["one"], check=True) + content(vm, [1, 2])
                    vm.restart()
                    recover(vm, wrong, "restart")
                    wrong += [f"restart: {line}" for line in stray(vm, []) + content(vm, [1, 2])]
                t.is_(wrong, [], f"delete, {attach}: killed at {point} of the second disk"
                      + (", QEMU dies, too" if dead else ""))


def kill_all(vm, command):
    """SIGKILL for a stopped command, and for its guard before that."""
    pids = left_behind(vm, command)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    command.signal(signal.SIGKILL)
    finish(command)
    return len(pids)


def without_guard(t):
    """The guard is killed as well: nobody turns the names but recovery."""
    for attach in ("drive", "blockdev"):
        for point in ("cut+", "flip", "verify"):
            for dead in (False, True):
                wrong = []
                with Qemu(words_for(attach), IMAGES) as vm:
                    write_all(vm, 1, 0)
                    command = vm.stop_at(point, "snapshot", "@one")
                    if not kill_all(vm, command):
                        wrong.append("there was no guard")
                    if point == "cut+":
                        vm.catch_up()
                    write_all(vm, 2, 1)
                    if dead:
                        vm.kill()
                    recover(vm, wrong, "first")
                    ready = is_ready(vm, "one")
                    if not ready and point != "cut+":  # there, QEMU may not have come to it
                        wrong.append("rolled back, though the cut was made")
                    there = {"one": [1, 0]} if ready else {}
                    wrong += stray(vm, there, check=True) + content(vm, [1, 2], **there)
                    if dead:
                        vm.start()
                        wrong += stray(vm, there) + content(vm, [1, 2], **there)
                t.is_(wrong, [], f"snapshot, {attach}: killed at {point} with its guard"
                      + (", QEMU dies, too" if dead else ""))


# --- recovery itself dies -----------------------------------------------------------

def interrupt(vm, verb, point, top, late, off):
    """An operation that dies at a point, and then perhaps QEMU."""
    write_all(vm, 1, 0)
    if verb == "delete":
        vm.take("one")
    finish(vm.start_vmfrost(verb, "@one", env={"VMFROST_TEST_AT": f"kill:{point}"}))
    if top[1]:
        write_all(vm, 2, 1)
    if late:
        set_deadline(vm, 1)
    if off:
        vm.kill()


def killed_again(t):
    """Recovery is killed at each of its steps, and run again."""
    for name, verb, point, late, off, top in (
            ("rolled back before the cut", "snapshot", "rehearse", False, False, [1, 2]),
            ("rolled forward", "snapshot", "flip", False, False, [1, 2]),
            ("rolled forward, QEMU off", "snapshot", "flip", False, True, [1, 2]),
            ("merged back", "snapshot", "verify", True, False, [1, 2]),
            ("a merge that was ready", "delete", "merge.pending", False, False, [1, 0]),
            ("a merge whose disk was stopped", "delete", "merge.started", False, False, [1, 2]),
            ("a merge whose disk was stopped, QEMU off", "delete", "merge.started", False, True,
             [1, 2])):
        with Qemu(words_for("drive"), IMAGES) as vm:
            interrupt(vm, verb, point, top, late, off)
            out = vm.vmfrost("recover")
            steps = {step for step, state in out.steps if state == "started"}
        for step in points("recover"):
            if re.split(r"[.+]", step)[0] not in steps - {"read", "guard", "dismiss", "connect"} \
                    or step.endswith("+") and step not in ("merge+", "files+"):
                continue
            wrong = []
            with Qemu(words_for("drive"), IMAGES) as vm:
                interrupt(vm, verb, point, top, late, off)
                out = finish(vm.start_vmfrost("recover", env={"VMFROST_TEST_AT": f"kill:{step}"}))
                if out.code != -signal.SIGKILL:
                    continue
                recover(vm, wrong, "again")
                if off:
                    vm.start()
                recover(vm, wrong, "third")
                ready = is_ready(vm, "one")
                if verb == "delete" and off and records(vm):
                    vm.delete("one")
                    ready = False
                wrong += stray(vm, ["one"] if ready else [], ["one"], check=True)
                wrong += content(vm, top, **{"one": [1, 0]} if ready else {})
            t.is_(wrong, [], f"{name}: recover is killed at {step} and run again")


def settling_killed(t):
    """A deletion dies while its job is pending, and the guest waits. Whoever settles that cancels the
    job, so that the guest goes on, and dies right then."""
    for attach, point in (("drive", "merge.turned"), ("blockdev", "merge.turned"),
                          ("drive", "merge.pending")):
        for verb, words in (("recover", []), ("snapshot", ["@two"])):
            for dead in (False, True):
                wrong = []
                with Qemu(words_for(attach), IMAGES) as vm:
                    interrupt(vm, "delete", point, [1, 0], False, False)
                    out = finish(vm.start_vmfrost(
                        verb, *words, env={"VMFROST_TEST_AT": "kill:stop-merge.cancelled"}))
                    if out.code != -signal.SIGKILL:
                        wrong.append(f"{verb} was not killed")
                    write_all(vm, 2, 1)
                    if dead:
                        vm.kill()
                        wrong += [f"both dead: {line}" for line in content(vm, [1, 2])]
                    recover(vm, wrong, "again")
                    wrong += [f"recovered: {line}" for line in content(vm, [1, 2])]
                    if dead:
                        vm.start()
                        wrong += [f"started: {line}" for line in content(vm, [1, 2])]
                        recover(vm, wrong, "started")
                    wrong += stray(vm, [], ["one"], check=True) + content(vm, [1, 2])
                t.is_(wrong, [], f"delete, {attach}: killed at {point}; {verb} is killed when it has "
                      "cancelled the job" + (", QEMU dies, too" if dead else ""))


# --- other ways -----------------------------------------------------------------------

def implicit(t):
    """Any changing command recovers first."""
    for verb, words, phase in (("snapshot", ["@two"], "Succeeded"), ("delete", ["@one"], None)):
        with Qemu(words_for("drive"), IMAGES) as vm:
            write_all(vm, 1, 0)
            finish(vm.start_vmfrost("snapshot", "@one",
                                    env={"VMFROST_TEST_AT": "kill:flip"}))
            out = vm.vmfrost("status")
            t.is_((out.code, out.document["interrupted"]["operation"]), (0, "snapshot"),
                  "status tells of an interrupted operation")
            out = vm.vmfrost(verb, *words)
            t.is_((out.code, out.error), (0, ""), f"{verb} after a crash recovers by itself")
            left = records(vm)
            t.is_({name: record["phase"] for name, record in left.items()},
                  {"one": "Succeeded", "two": phase} if phase else {},
                  "... the interrupted snapshot was finished first")
            t.is_(stray(vm, sorted(left)), [], "... and nothing is stray")
    with Qemu(words_for("drive"), IMAGES) as vm:
        out = vm.vmfrost("recover")
        t.is_((out.code, out.document.get("found")), (0, False), "nothing to recover: exit 0")


def gone_in_rollback(t):
    """QEMU dies while vmfrost undoes a cut. Recovery does not need it, and that is what is said."""
    with Qemu(words_for("drive"), IMAGES) as vm:
        write_all(vm, 1, 0)
        command = vm.start_vmfrost("snapshot", "@one",
                                   env={"VMFROST_TEST_AT": "stop:verify,stop:undo-cut"})
        wait_until(lambda: process_state(command.pid) == "T", what="the stop", interval=0.002)
        command.signal(signal.SIGINT)
        command.signal(signal.SIGCONT)
        wait_until(lambda: "undo-cut" in command.output()[0] and process_state(command.pid) == "T",
                   what="the stop in the rollback", interval=0.002)
        vm.kill()
        out = go_on(command)
        t.ok(out.code == 5 and "rolled back" in out.error and "vmfrost recover" in out.next and
             "can be reached" not in out.next, f"QEMU dies in a rollback: {out.code} {out.next}")
        out = vm.vmfrost("recover")
        t.is_((out.code, out.document.get("found"), stray(vm, sorted(records(vm)))), (0, True, []),
              "... and recover does it without")


def damaged(t):
    """A journal that cannot be understood is a person's affair; one that is torn is not."""
    for name, damage, readable in (
            ("its last line is torn", lambda text: text + '\n\n{"state": "cu', True),
            ("it ends with zeroes, as after a power cut", lambda text: text + "\0" * 512, True),
            ("it is empty", lambda text: "", True),
            ("its only line is torn", lambda text: text[:40], True),
            ("a line in the middle is garbage",
             lambda text: text.replace("\n\n{", "\n\ngarbage\n{", 1), False),
            ("it is something else", lambda text: '{"hello": "world"}\n', False),
            ("its cuts are nonsense",
             lambda text: re.sub(r'"cuts": ?\[.*', '"cuts": [7]}', text.splitlines()[0]) + "\n",
             False),
            ("it is binary", lambda text: "\x7fELF\1\2\3\n" * 10, False)):
        with Qemu(words_for("drive"), IMAGES) as vm:
            write_all(vm, 1, 0)
            finish(vm.start_vmfrost("snapshot", "@one", env={"VMFROST_TEST_AT": "kill:rehearse"}))
            journal, = vm.journal()
            journal.write_text(damage(journal.read_text()))
            before = vm.names()
            out = vm.vmfrost("recover")
            if readable:
                # Nothing before the first whole line was begun: hidden files of a test like this
                # one cannot be known.
                torn_whole = name in ("it is empty", "its only line is torn")
                t.is_((out.code, [] if torn_whole else stray(vm, []), vm.journal()), (0, [], []),
                      f"the journal: {name}: recovered ({out.error})")
            else:
                t.ok(out.code == 1 and str(journal) in out.error + out.next and out.next and
                     vm.names() == before and vm.journal() == [journal],
                     f"the journal: {name}: refused, with its path and what to do; nothing touched "
                     f"({out.error} | {out.next})")
                for verb in ("snapshot", "delete"):
                    out = vm.vmfrost(verb, "@two" if verb == "snapshot" else "@one")
                    t.ok(out.code == 1 and vm.names() == before, f"... {verb} is refused as well")
                t.is_(vm.vmfrost("status").code, 0, "... status works")
                journal.unlink()
                t.is_(vm.vmfrost("recover").code, 0, "... and when it is gone, recover is content")


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (snapshots, deletions, second_disk, without_guard, killed_again, settling_killed,
                     implicit, gone_in_rollback, damaged, started_on_base, ran_on_base,
                     started_on_quiet_base):
            if only in part.__name__:
                part(t)


main()
