#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""add, list, show, status, remove, without any QEMU."""
import json
import os

from clitest import FOLDER, Run, done, has, ok, same


def settings_of(run):
    return (run.json() or {}).get("settings", {})


run = Run("list")
ok(run.code == 0 and run.out == "no snapshots yet: vmfrost snapshot VM\n", "nothing to list", run)
run = Run("status")
same(run.code, 0, "status of no VMs", run)
has(run.out, "vmfrost add", "says how to add one")

run = Run("add", "web", "--qmp", "web.qmp")
ok(run.code == 0 and run.out.startswith("web  added"), "add", run)
run = Run("add", "--json", "web", "--set", "frozen-limit=8s", "--set", "quiesce=require")
same(settings_of(run).get("frozenLimit"), "8s", "a key with dashes is the same key", run)
same(os.path.realpath(settings_of(run).get("qmp", "")), os.path.realpath(f"{FOLDER}/web.qmp"),
     "the path was kept, and is absolute", run)
run = Run("add", "web", "--set", "frozenLimit=", "--json")
ok("frozenLimit" not in settings_of(run) and settings_of(run).get("quiesce") == "require",
   "an empty value takes a setting back", run)
DISKS = '[{"name": "vd0", "file": "/vms/web.qcow2", "format": "qcow2"}]'
run = Run("add", "web", "--set", f"disks={DISKS}", "--set", 'persistent-disks=["vd1"]', "--json")
same((settings_of(run).get("disks"), settings_of(run).get("persistentDisks")),
     (json.loads(DISKS), ["vd1"]), "lists are JSON", run)
run = Run("disk", "web")
ok(run.code == 0 and "vd0" in run.out, "disk shows the declared ones", run)
run = Run("disk", "web", "vd2", "--persistent", "yes")
ok(run.code == 2 and "vd2" in run.err and "vd0" in run.err, "... and knows no others", run)
run = Run("disk", "web", "vd1", "--persistent", "no", "--json")
same((run.code, (run.json() or {}).get("persistent")), (0, False), "a name is taken back", run)
run = Run("add", "web", "--set", "disks=[1", "--json")
ok(run.code == 2 and "no JSON" in run.err, "a list that is none", run)
run = Run("add", "web", "--set", "disks=", "--json")
ok(not {"disks", "persistentDisks"} & set(settings_of(run)), "all is taken back", run)
run = Run("disk", "web")
ok(run.code == 0 and "has not been seen" in run.out, "then nothing is known", run)
run = Run("add", "web", "--set", "colour=blue")
ok(run.code != 0 and "colour" in run.err, "an unknown setting is refused by name", run)

run = Run("list", "web")
ok(run.code == 0 and run.out == "no snapshots yet: vmfrost snapshot web\n", "list of one VM", run)
same(Run("list", "web", "--json").json(), [], "list --json of one VM")
run = Run("show", "web@before")
ok(run.code == 1 and "before" in run.err, "show of what is not there", run)
run = Run("add", "-q", "db", "--qmp", "/nowhere/db.qmp")
same((run.code, run.out), (0, ""), "add -q says nothing", run)

run = Run("status", "--json")
ok(isinstance(run.json(), list) and sorted(vm.get("vm", "") for vm in run.json()) == ["db", "web"],
   "status of all has both", run)
run = Run("remove", "db")
ok(run.code == 0 and run.out.startswith("db  forgotten"), "remove", run)
same(Run("remove", "web", "--json").json(), {"name": "web", "removed": True}, "remove --json")
same(Run("list", "web").code != 0, True, "what was removed is not known")

run = Run("storage")
ok(run.code == 0 and "no storage classes" in run.out, "no storage classes", run)
run = Run("storage", "set", "fast", "match.path=/nvme/*", "extendedL2=yes", "minFree=10G", "--json")
same(run.json(), [{"name": "fast", "match": {"path": "/nvme/*"}, "minFree": "10G",
                   "overlayOptions": {"extendedL2": True}}], "a class is made", run)
run = Run("storage", "set", "fast", "extendedL2=", "clusterSize=128k", "preallocation=off")
ok(run.code == 0 and "fast" in run.out and "/nvme/*" in run.out and "128k off" in run.out
   and "extended" not in run.out, "... and changed", run)
run = Run("storage", "set", "fast", "preallocation=full")
ok(run.code == 2 and "extendedL2" in run.err, "... but not to what QEMU would refuse", run)
run = Run("storage", "set", "fast", "extendedL2=maybe")
ok(run.code == 2 and "yes or no" in run.err, "... nor to nonsense", run)
run = Run("storage", "set", "fast", "minfree=1G")
ok(run.code == 2 and "'minFree'" in run.err, "... nor to what is not there", run)
run = Run("storage", "remove", "-q", "fast")
same((run.code, run.out), (0, ""), "... and removed", run)

elsewhere = os.path.join(FOLDER, "elsewhere")
Run("--state-dir", elsewhere, "add", "other", "--qmp", "/x")
same(Run("complete", "--state-dir", elsewhere, "list", "").out, "other\n", "--state-dir")
run = Run("list", "--state-dir", "/proc/no/such")
ok(run.code == 1 and "/proc/no" in run.err, "a state folder that cannot be made", run)

log = os.path.join(FOLDER, "log")
Run("--log", log, "recover", "--all")
same(os.stat(log).st_mode & 0o777, 0o600, "--log makes a file for its owner")
run = Run("--log", "/no/such/log", "list")
ok(run.code == 1 and "/no/such/log" in run.err, "a log that cannot be opened", run)
done()
