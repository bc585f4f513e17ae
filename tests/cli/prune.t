#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""prune by what the records say, without any QEMU: the plan, where rules come from, and records
without content, which are the only ones that can be deleted here."""
import json
import os
import time

from clitest import FOLDER, Run, done, has, ok, same

DAY = 86400
STATE = os.path.join(FOLDER, "state")


def stamp(days):
    """The time of so many days ago."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() - days * DAY))


def put(vm, name, days, ready=True, **more):
    folder = os.path.join(STATE, "vms", vm, "records")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    record = {"name": name, "vm": vm, "phase": "Succeeded" if ready else "Failed",
              "readyToUse": ready, "startTime": stamp(days)}
    if ready:
        record["creationTime"] = stamp(days)
        record["cuts"] = [{}]
    record.update(more)
    path = os.path.join(folder, f"{name}.json")
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w",
              encoding="ascii") as file:
        json.dump(record, file)


def names(run, key):
    line = (run.lines() or [{}])[-1]
    return [entry if isinstance(entry, str) else entry["name"]
            for entry in (line.get("document") or {}).get(key, [])]


def records(vm):
    return [record["name"] for record in Run("list", vm, "--json").json() or []]


for vm in ("web", "db"):
    Run("add", vm, "--qmp", f"/nowhere/{vm}.qmp")

run = Run("prune", "web")
ok(run.code == 2 and "web: no rule" in run.err and "--set keep-last=3" in run.err,
   "without any rule: refused, and says how to give one", run)
run = Run("prune", "web", "--keep-last", "1")
same((run.code, run.out), (0, "web  0 would be removed, 0 kept\n"), "no records, nothing to prune")
run = Run("prune", "web", "--keep-last", "1", "--yes")
same((run.code, run.out), (0, "web  0 removed, 0 kept\n"), "with --yes, too")

for name, days in (("a", 40), ("b", 3), ("c", 2), ("d", 0.01)):
    put("web", name, days)
put("web", "broken", 50, ready=False)

run = Run("prune", "web", "--keep-last", "2")
ok(run.code == 0 and run.err == "", "a plan", run)
rows = [line.split(None, 3) for line in run.out.splitlines()[2:-1]]
same([row[0] for row in rows], ["broken", "a", "b", "c", "d"], "all of them, oldest first", run)
has(run.out, "web  2 would be removed, 3 kept\n", "how many")
ok(any(row[0] == "a" and "remove" in row[3] and "no rule keeps it" in row[3] for row in rows),
   "what goes, and why", run)
ok(any(row[0] == "d" and "keep" in row[3] and "last 2" in row[3] for row in rows),
   "what stays, and why", run)
has(run.out, "add --yes", "how to do it")
same(len(records("web")), 5, "and nothing was done")
has(Run("prune", "web", "--keep-last", "2", "-q").out, "no rule keeps it",
    "-q leaves what was asked for")

run = Run("prune", "web", "--keep-last", "2", "--json")
lines = run.lines()
same(len(lines), 1, "--json: a plan alone is one line", run)
line = lines[0] if lines else {}
same((line.get("event"), line.get("operation"), line.get("code"), line.get("vm")),
     ("result", "prune", 0, "web"), "which is the result", run)
document = line.get("document") or {}
same((document.get("dryRun"), document.get("removed"), document.get("rules")),
     (True, [], {"keepLast": 2}), "that says so", run)
same((names(run, "keep"), names(run, "remove")), (["broken", "c", "d"], ["a", "b"]), "the plan")
same(document.get("keep", [{}])[-1].get("reasons"), ["last 2"], "reasons to keep")
same(document.get("remove", [{}])[0].get("reason"), "no rule keeps it", "a reason to remove")

Run("add", "web", "--set", "keep-last=1", "--set", "max-age=30d")
run = Run("prune", "web", "--json")
same(names(run, "remove"), ["broken", "a"], "the rules of the settings", run)
run = Run("prune", "web", "--keep-last", "3", "--json")
same(names(run, "remove"), ["a"], "a rule on the command line: those of the settings do not count",
     run)
run = Run("prune", "web", "--failed", "--json")
same(names(run, "remove"), ["broken"], "--failed is a rule, too", run)
run = Run("add", "web", "--set", "keep-last=all")
ok(run.code == 2 and "from 1 to 1000000" in run.err, "a setting that is no number", run)

put("web", "now", 0.001, ready=False, phase="InProgress")
put("web", "linked", 60, clones=["x"])
put("web", "with-20260101T000000Z", 70)
run = Run("prune", "web", "--max-age", "1ms", "--failed", "--json")
same(names(run, "keep"), ["with-20260101T000000Z", "linked", "now"],
     "what is never chosen", run)
for name in ("now", "linked", "with-20260101T000000Z"):
    os.unlink(os.path.join(STATE, "vms/web/records", f"{name}.json"))

run = Run("prune", "--all", "--json")
same([line.get("vm") for line in run.lines()], ["web"], "--all leaves those without a rule alone",
     run)
has(Run("prune", "--all").out, "db  has no rules: left alone\n", "and says so")
run = Run("prune", "--all", "--keep-last", "9", "--json")
same(sorted(line.get("vm") for line in run.lines()), ["db", "web"], "--all with a rule means all",
     run)
with open(os.path.join(STATE, "vms/db/vm.json"), "w", encoding="ascii") as file:
    file.write('{"qmp": "/nowhere/db.qmp", "keepLast": 7}')
run = Run("prune", "--all", "--json")
same(sorted((line.get("vm"), line.get("code")) for line in run.lines()), [("db", 1), ("web", 0)],
     "settings that cannot be read: an error of that VM, and the others have their turn", run)
same(run.code, 1, "and the exit code is the worst")
Run("remove", "db")

put("web", "broken2", 45, ready=False)
run = Run("prune", "web", "--keep-last", "3", "--failed", "--yes", "--json")
lines = run.lines()
same([line.get("event") for line in lines if line.get("event") != "step"],
     ["plan", "deletion", "deletion", "deletion", "result"], "--yes --json: what happens", run)
same([(line.get("name"), line.get("code") == 0) for line in lines
      if line.get("event") == "deletion"],
     [("broken", True), ("broken2", True), ("a", False)],
     "records without content go, the first failure is the last thing that is tried")
result = lines[-1] if lines else {}
ok(result.get("code") == run.code != 0 and (result.get("error") or {}).get("message"),
   "the result is that failure", run)
same((names(run, "removed"), (result.get("document") or {}).get("dryRun")),
     (["broken", "broken2"], False), "and tells what was removed")
has(run.err, "vmfrost: ", "it is on stderr, too")
same(records("web"), ["a", "b", "c", "d"], "that is true")
put("web", "broken", 50, ready=False)
run = Run("prune", "web", "--keep-last", "1", "--failed", "--yes")
ok(run.code != 0 and "web@broken  deleted: failed\n" in run.out
   and "web  1 removed, 1 kept\n  3 more would have been removed\n" in run.out,
   "the same for people", run)
put("web", "broken", 50, ready=False)
run = Run("prune", "web", "--keep-last", "9", "--failed", "--yes", "-q")
same((run.code, run.out, run.err), (0, "", ""), "-q --yes says nothing")
same(records("web"), ["a", "b", "c", "d"], "and does it")

for name in records("web"):
    os.unlink(os.path.join(STATE, "vms/web/records", f"{name}.json"))
Run("add", "web", "--set", "keep-last=", "--set", "max-age=")
run = Run("prune", "--all", "--yes")
ok(run.code == 2 and "no VM has a rule" in run.err, "no rule anywhere", run)
Run("remove", "web")
run = Run("prune", "--all", "--yes")
same((run.code, run.out), (0, "no VMs, nothing to prune\n"), "no VM anywhere")
done()
