#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Names of VMs and snapshots that cannot be, or that nothing has: told at once, in words that
help, and nothing is made by it."""
import os

from clitest import FOLDER, Run, done, has, ok, same

BAD = [b"", b".", b"..", b".hidden", b"-dash", b"we b", b"\x1b[31mred", b"a\nb", b"a\x7f",
       b"\xff\xfe", "n\u00e4me".encode(), b"x" * 65, b"x" * 300, b"x" * 5000, b"%s%n", b"@"]
SLASHES = [b"../web", b"a/b", b"/etc/passwd", b"web/..", b"/"]
VM = [["status"], ["check"], ["snapshot"], ["list"], ["verify"], ["freeze"], ["thaw"], ["recover"],
      ["disk"], ["prune", "--max-age", "1d"], ["with"], ["remove"], ["add", "--qmp", "/x"]]
SNAPSHOT = [["show"], ["restore"], ["delete"], ["snapshot"], ["check"], ["with"]]


def command(words, word):
    """Behind "--" nothing is an option; behind that of `with` is its command."""
    return Run(*words, word, "--", "true") if words == ["with"] else Run(*words, "--", word)


def state():
    return sorted(os.path.join(place, name)
                  for place, folders, files in os.walk(os.path.join(FOLDER, "state"))
                  for name in folders + files)


def printable(run):
    return not any(ord(letter) < 32 and letter != "\n" or 127 <= ord(letter) < 160
                   for letter in run.out + run.err)


same(Run("add", "web", "--qmp", "/nowhere/web.qmp").code, 0, "a VM")
before = state()
for bad in BAD:
    wrong = []
    for words in VM:
        run = command(words, bad)
        if run.code != 2 or not run.err.startswith("vmfrost: ") or not printable(run):
            wrong.append(run)
    same(wrong, [], f"no VM can be named {bad[:20]!r}", "\n".join(map(str, wrong)))
for bad in BAD[:-1] + SLASHES:
    wrong = []
    for words in SNAPSHOT:
        run = command(words, b"web@" + bad)
        said = "name is missing" if bad == b"" else "cannot be the name of a snapshot"
        if run.code != 2 or said not in run.err or not printable(run):
            wrong.append(run)
    same(wrong, [], f"nor a snapshot {bad[:20]!r}", "\n".join(map(str, wrong)))
same(state(), before, "nothing is made by any of it")

for words in VM[:-1]:
    run = Run(*words, "wbe", *(["--", "true"] if words == ["with"] else []))
    ok(run.code == 1 and "there is no VM \"wbe\"; there is \"web\"" in run.err,
       f"{words[0]}: a VM that is not there, and one that is", run)
for words in SNAPSHOT[:3]:
    run = Run(*words, "wbe@x")
    ok(run.code == 1 and "there is \"web\"" in run.err, f"{words[0]}: the same", run)
    run = Run(*words, "web@x")
    ok(run.code == 1 and "web has no snapshot \"x\"" in run.err and "vmfrost list web" in run.err,
       f"{words[0]}: a snapshot that is not there", run)
run = Run("add", "web", "--qmp", "/nowhere/other.qmp")
has(Run("status", "web", "--json").out, "/nowhere/other.qmp",
    "adding a name that exists changes its settings")
same(run.code, 0, "and is no error")
run = Run("add", "copy", "--qmp", "/nowhere/other.qmp")
ok(run.code == 1 and "web" in run.err, "a socket has one name", run)
done()
