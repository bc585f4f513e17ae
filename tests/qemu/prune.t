#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""prune with a real QEMU: what goes and what stays, failures, Ctrl-C and kill -9 in the middle, and
pruning right after a snapshot."""

import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import SIZE, Qemu, Tap, drive, finish, go_on, lab, run

DAY = 86400
DISKS = ["web", "data"]
WORDS = [word for disk in DISKS for word in drive(disk)]
IMAGES = [f"{disk}.qcow2" for disk in DISKS]


def stamp(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06}Z"


def change(vm, name, **members):
    """Put something else into a record."""
    path, = vm.state.glob(f"vms/*/records/{name}.json")
    record = json.loads(path.read_text())
    record.update(members)
    path.write_text(json.dumps(record))


def taken(vm, name, days, pattern):
    """A snapshot that is so many days old, and the guest writes on."""
    vm.take(name)
    change(vm, name, creationTime=stamp(time.time() - days * DAY))
    for disk in DISKS:
        vm.write(disk, pattern, pattern)


def records(vm):
    return {record["name"]: record for record in vm.vmfrost("list").result}


def names(out, key):
    return [entry if isinstance(entry, str) else entry["name"] for entry in out.document[key]]


def everything(vm):
    return vm.names(), vm.graph(), records(vm)


def lines_of(command):
    """All lines of a command with --json, and its Out."""
    out = finish(command)
    return [json.loads(line) for line in command.output()[0].splitlines()], out


def sound(tap, vm, what, snapshots, *content):
    """These snapshots are left, the guest sees what it wrote, nothing is stray."""
    tap.is_(sorted(records(vm)), sorted(snapshots), f"{what}: the snapshots that are left")
    tap.is_([len(vm.chain(disk)) for disk in DISKS], [1 + len(snapshots)] * 2, f"{what}: chains")
    tap.is_([vm.sees(disk, 4) for disk in DISKS], [list(content)] * 2, f"{what}: the guest's data")
    tap.is_((vm.status(), vm.jobs(), vm.journal()), ("running", [], []), f"{what}: tidy")
    tap.is_([name for name in vm.names() if "@" in name],
            sorted(f"{disk}@{name}.qcow2" for disk in DISKS for name in snapshots),
            f"{what}: images")


def by_age(tap):
    with Qemu(WORDS, IMAGES) as vm:
        taken(vm, "old", 40, 1)
        before = everything(vm)
        out = vm.vmfrost("prune", "--max-age", "30d")
        tap.is_((out.code, names(out, "remove")), (0, ["old"]), "a plan")
        tap.is_(everything(vm), before, "changes nothing")
        out = vm.vmfrost("prune", "--max-age", "41d", "--yes")
        tap.is_((out.code, names(out, "removed")), (0, []), "nothing is that old")
        tap.is_(everything(vm), before, "nothing is changed")
        command = vm.start_vmfrost("prune", "--max-age", "30d", "--yes")
        lines, out = lines_of(command)
        tap.is_((out.code, names(out, "removed")), (0, ["old"]), "one is deleted")
        tap.is_([line["event"] for line in lines if line["event"] != "step"],
                ["plan", "deletion", "result"], "and told")
        tap.ok(("merge", "done") in out.steps, "with the steps of a deletion")
        sound(tap, vm, "by age", [], 0, 1, 0, 0)


def more_than_one(tap):
    """From the oldest on."""
    for rule, wanted, left in (["--max-age", "30d"], ["one", "two"], []), \
                              (["--keep-last", "1"], ["one"], ["two"]):
        with Qemu(WORDS, IMAGES) as vm:
            taken(vm, "one", 50, 1)
            taken(vm, "two", 40, 2)
            what = " ".join(rule)
            lines, out = lines_of(vm.start_vmfrost("prune", *rule, "--yes"))
            tried = [line["name"] for line in lines if line["event"] == "deletion"]
            tap.is_(names(out, "remove"), wanted, f"{what}: the oldest first")
            tap.is_((out.code, tried, names(out, "removed")), (0, wanted, wanted),
                    f"{what}: all of them")
            sound(tap, vm, what, left, 0, 1, 2, 0)


def failing(tap):
    """The first deletion that is refused ends it, and changes nothing."""
    with Qemu(WORDS, IMAGES) as vm:
        taken(vm, "one", 50, 1)
        taken(vm, "two", 40, 2)
        other = vm.disks / "other.qcow2"
        run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "web@one.qcow2",
            other, SIZE)
        before = everything(vm)
        lines, out = lines_of(vm.start_vmfrost("prune", "--max-age", "30d", "--yes"))
        tap.ok(out.code == 1 and str(other) in out.error, "a deletion that is refused")
        tap.is_((names(out, "remove"), names(out, "removed")), (["one", "two"], []), "is told")
        tap.is_([line["name"] for line in lines if line["event"] == "deletion"], ["one"],
                "it ends the pruning")
        tap.is_(everything(vm), before, "and nothing is changed")
        other.unlink()
        out = vm.vmfrost("prune", "--max-age", "30d", "--yes")
        tap.is_((out.code, names(out, "removed")), (0, ["one", "two"]),
                "without what was in the way: done")


def all_vms(tap):
    """One that fails does not keep the next one from its turn."""
    with Qemu(WORDS, IMAGES) as first, Qemu(WORDS, IMAGES, state=first.state) as second:
        taken(first, "old", 40, 1)
        taken(second, "old2", 40, 1)
        first.socket.unlink()
        lines, out = lines_of(lab.start_vmfrost(["prune", "--all", "--max-age", "30d", "--yes",
                                                 "--json"], state_dir=first.state))
        results = {line["vm"]: line for line in lines if line["event"] == "result"}
        tap.is_(len(results), 2, "--all: a result for each VM")
        tap.is_(results[str(first.socket)]["code"], 3, "--all: one cannot be reached")
        tap.is_(results[str(second.socket)]["document"]["removed"], ["old2"],
                "--all: the other one is pruned")
        tap.is_(out.code, max(line["code"] for line in results.values()),
                "--all: the exit code is the worst")
        sound(tap, second, "--all", [], 0, 1, 0, 0)


def interrupted(tap):
    """Down into the snapshot's image where that holds more, else up into the current one."""
    for point in "merge", "merge.pending", "files", "graft", "graft.pending", "drop":
        for number in signal.SIGINT, signal.SIGKILL:
            what = f"{number.name} at {point}"
            with Qemu(WORDS, IMAGES) as vm:
                for disk in DISKS if point in ("merge.pending", "files") else ():
                    vm.write(disk, 0, 0, 4)
                taken(vm, "old", 40, 1)
                command = vm.stop_at(point, "prune", "--max-age", "30d", "--yes")
                command.signal(number)
                out = go_on(command)
                tap.ok(out.code in ((-9,) if number == signal.SIGKILL else (0, 1)),
                       f"{what}: exit {out.code}")
                tap.ok(vm.vmfrost("prune", "--max-age", "30d").document["interrupted"] or
                       not vm.journal(), f"{what}: the plan tells that it was interrupted")
                out = vm.vmfrost("prune", "--max-age", "30d", "--yes")
                tap.is_(out.code, 0, f"{what}: again, exit 0")
                sound(tap, vm, what, [], 0, 1, 0, 0)


def after_snapshot(tap):
    with Qemu(WORDS, IMAGES) as vm:
        lines, out = lines_of(vm.start_vmfrost("snapshot", "@one", "--keep-last", "1"))
        tap.is_([(line["operation"], line["code"]) for line in lines if line["event"] == "result"],
                [("snapshot", 0), ("prune", 0)], "snapshot --keep-last: two results")
        tap.is_((out.code, names(out, "keep")), (0, ["one"]), "nothing to prune")
        for disk in DISKS:
            vm.write(disk, 1, 1)
        lines, out = lines_of(vm.start_vmfrost("snapshot", "@two", "--keep-last", "1"))
        result = [line for line in lines if line["event"] == "result"][0]
        tap.is_((result["operation"], result["code"], result["snapshot"],
                 result["document"]["name"]), ("snapshot", 0, "taken", "two"),
                "the snapshot's own result says nothing of the pruning")
        tap.ok(records(vm)["two"]["readyToUse"], "it was taken")
        tap.is_((out.code, names(out, "removed")), (0, ["one"]), "and the other one is pruned")
        sound(tap, vm, "snapshot --keep-last", ["two"], 0, 1, 0, 0)


def not_pruned(tap):
    with Qemu(WORDS, IMAGES) as vm:
        vm.take("one")
        change(vm, "one", cuts=[{}])
        out = vm.vmfrost("snapshot", "@two", "--keep-last", "1")
        tap.is_((out.code, out.result["code"]), (7, 1), "a pruning that fails: exit 7")
        tap.ok(out.err.startswith("vmfrost: ") and out.error, "it says why")
        tap.ok(records(vm)["two"]["readyToUse"], "the snapshot is there")
        before = everything(vm)
        out = vm.vmfrost("snapshot", "@two", "--keep-last", "1")
        tap.is_(out.code, 1, "no snapshot: its own exit code")
        tap.is_(out.result["operation"], "snapshot", "and no pruning")
        tap.is_(everything(vm), before, "nothing is changed")


def clock_set_back(tap):
    """The snapshot that was just taken never goes for others."""
    with Qemu(WORDS, IMAGES) as vm:
        vm.take("one")
        command = vm.stop_at("record+", "snapshot", "@two", "--keep-last", "1")
        change(vm, "one", creationTime=stamp(time.time()))
        out = go_on(command)
        tap.is_((out.code, out.result["operation"]), (7, "prune"), "it would go: exit 7")
        tap.ok("just taken" in out.error and "clock" in out.next, "it says so")
        tap.is_(sorted(records(vm)), ["one", "two"], "and nothing is pruned")


with Tap() as main:
    by_age(main)
    more_than_one(main)
    failing(main)
    all_vms(main)
    interrupted(main)
    after_snapshot(main)
    not_pruned(main)
    clock_set_back(main)
