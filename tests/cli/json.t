#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""--json: stdout holds nothing but JSON, whatever goes wrong."""
from clitest import COMMANDS, Run, done, ok, same

READING = [
    (["list", "nobody", "--json"], None),
    (["--json", "show", "nobody@never"], None),
    (["show", "nobody", "--json"], 2),
    (["status", "nobody", "--json"], None),
    (["remove", "nobody", "--json"], None),
    (["add", "web", "--json"], 2),
    (["disk", "nobody", "--json"], None),
    (["disk", "nobody", "vd0", "--persistent", "no", "--json"], None),
    (["disk", "nobody", "vd0", "--persistent", "maybe", "--json"], 2),
    (["disk", "nobody", "--persistent", "yes", "--json"], 2),
    (["storage", "remove", "nobody", "--json"], None),
    (["storage", "set", "nobody", "snapshot=maybe", "--json"], 2),
    (["storage", "set", "nobody", "snapshots=no", "--json"], 2),
    (["storage", "set", "nobody", "snapshot", "--json"], 2),
    (["storage", "set", "nobody", "--json"], 2),
    (["storage", "set", "--json"], 2),
    (["storage", "get", "--json"], 2),
    (["lsit", "--json"], 2),
    (["list", "--jsn", "--json"], 2),
]
OPERATING = [
    (["snapshot", "nobody", "--json"], None),
    (["snapshot", "nobody", "--bogus", "--json"], 2),
    (["check", "nobody", "--json"], None),
    (["delete", "nobody@never", "--json"], None),
    (["restore", "nobody@never", "--json"], None),
    (["export", "nobody@never", "/no/where", "--json"], None),
    (["export", "nobody@never", "--json"], 2),
    (["clone", "nobody@never", "/no/where", "--json"], None),
    (["verify", "nobody", "--json"], None),
    (["verify", "--json"], 2),
    (["freeze", "nobody", "--json"], None),
    (["thaw", "nobody", "--json"], None),
    (["recover", "nobody", "--json"], None),
    (["prune", "nobody", "--keep-last", "1", "--json"], None),
    (["prune", "nobody", "--keep-last", "1", "--yes", "--json"], None),
    (["prune", "--json"], 2),
    (["with", "nobody", "--json", "--", "true"], 2),
    (["with", "nobody", "--json"], 2),
    (["recover", "--json"], 2),
    (["snapshot", "--qmp", "no-such-socket", "--json"], None),
]


def is_error(error, code):
    return (isinstance(error, dict) and error.get("code") == code
            and error.get("message") and isinstance(error.get("next"), str))


for words, code in READING:
    run = Run(*words)
    name = " ".join(words)
    document = run.json() or {}
    ok(run.code != 0 if code is None else run.code == code, f"{name}: exit code", run)
    ok(is_error(document.get("error"), run.code), f"{name}: the error is a document", run)
    ok(run.err.startswith("vmfrost: "), f"{name}: and a message", run)

for words, code in OPERATING:
    run = Run(*words)
    name = " ".join(words)
    lines = run.lines()
    ok(run.code != 0 if code is None else run.code == code, f"{name}: exit code", run)
    last = lines[-1] if lines else {}
    ok(last.get("event") == "result" and last.get("code") == run.code
       and is_error(last.get("error"), run.code), f"{name}: the last line is the result", run)
    ok(last.get("snapshot") == "none" and last.get("guest") == "never-frozen",
       f"{name}: nothing happened", run)
    ok(all(line.get("event") == "step" for line in lines[:-1]), f"{name}: the others are steps",
       run)
    ok(run.err.startswith("vmfrost: "), f"{name}: a message too", run)

for words in (["list"], ["status"], ["storage"]):
    same(Run(*words, "--json").json(), [], f"{words[0]} of nothing is an empty array")
for command in ("recover", "prune"):
    same(Run(command, "--all", "--json").out, "", f"{command} --all of nothing has no lines")
ok(isinstance((Run("discover", "--json").json() or {}).get("machines"), list),
   "discover --json has machines")
same(len(COMMANDS), 22, "a new command needs a line here")
done()
