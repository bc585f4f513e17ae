#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Wrong usage: exit code 2, a message on stderr that helps, nothing on stdout."""
from clitest import Run, done, has, ok, same

WRONG = [
    ([], "a command is missing"),
    (["--json-lines"], "unknown option"),
    (["snapsht", "web"], "did you mean 'snapshot'?"),
    (["statsu"], "did you mean 'status'?"),
    (["ls"], "did you mean 'list'?"),
    (["unfreeze", "web"], "did you mean 'thaw'?"),
    (["help", "recovr"], "did you mean 'recover'?"),
    (["xyzzy"], "no command 'xyzzy'"),
    (["snapshot", "web", "--deadlien", "5m"], "did you mean '--deadline'?"),
    (["snapshot", "web", "--frozen_limit=3s"], "did you mean '--frozen-limit'?"),
    (["list", "--deadline", "5m"], "unknown option '--deadline' of `vmfrost list`"),
    (["snapshot", "web", "-x"], "unknown option '-x'"),
    (["snapshot", "web", "--deadline"], "--deadline needs a value (DURATION)"),
    (["snapshot", "web", "--json=yes"], "--json takes no value"),
    (["snapshot", "web", "--deadline", "soon"], "is no duration"),
    (["snapshot", "web", "--deadline", "0"], "is no duration"),
    (["snapshot", "web", "--deadline", "-5m"], "is no duration"),
    (["snapshot", "web", "--deadline", ""], "--deadline is empty"),
    (["freeze", "web", "--for", "5x"], "is no duration"),
    (["snapshot", "web", "--quiesce", "requrie"], "did you mean 'require'?"),
    (["snapshot", "web", "--quiesce", "perhaps"], "is none of auto|require|prefer|skip"),
    (["snapshot", "web", "--method", "pre-opened"], "did you mean 'preopened'?"),
    (["snapshot"], "which VM?"),
    (["snapshot", "web", "db"], "'db' is one too many"),
    (["snapshot", "web@"], "name is missing"),
    (["snapshot", "web@.hidden"], "cannot be the name of a snapshot"),
    (["snapshot", "web@" + "x" * 65], "cannot be the name of a snapshot"),
    (["snapshot", "@before"], "names no VM"),
    (["snapshot", "--", "--json"], "cannot be the name of a VM"),
    (["snapshot", "--qmp", "sock", "web@before"], "names the VM already"),
    (["status", "--qmp", "sock", "web"], "names the VM already"),
    (["status", "web@before"], "takes a VM, not a snapshot"),
    (["thaw"], "which VM?"),
    (["show"], "which VM?"),
    (["show", "web"], "which snapshot?"),
    (["delete", "web"], "vmfrost list web"),
    (["delete", "--qmp", "/run/web.qmp"], "which snapshot?"),
    (["prune"], "--all"),
    (["prune", "web", "--all"], "either a VM or --all"),
    (["prune", "web@old", "--keep-last", "1"], "takes a VM, not a snapshot"),
    (["prune", "web", "--keep-last", "0"], "no number from 1"),
    (["prune", "web", "--keep-daily", "-3"], "no number from 1"),
    (["prune", "web", "--keep-weekly", "4w"], "no number from 1"),
    (["prune", "web", "--keep-hourly", "1000001"], "no number from 1"),
    (["prune", "web", "--max-age", "30 days"], "is no duration"),
    (["prune", "web", "--yes=no"], "--yes takes no value"),
    (["snapshot", "web", "--keep-last", "none"], "no number from 1"),
    (["snapshot", "web", "--keep-daily", "7"], "unknown option '--keep-daily'"),
    (["with", "--", "true"], "which VM?"),
    (["with", "web"], "which command?"),
    (["with", "web", "--"], "which command?"),
    (["with", "web", "true"], "'true' is one too many"),
    (["with", "web@.x", "--", "true"], "cannot be the name of a snapshot"),
    (["with", "web", "--keep-last", "3", "--", "true"], "unknown option '--keep-last'"),
    (["with", "web", "--events", "", "--", "true"], "--events is empty"),
    (["with", "web", "--quiesce", "requrie", "--", "true", "--bogus"], "did you mean 'require'?"),
    (["expire", "web"], "did you mean 'prune'?"),
    (["verify"], "which VM?"),
    (["verify", "web@one"], "takes a VM, not a snapshot"),
    (["recover"], "--all"),
    (["recover", "web", "--all"], "either a VM or --all"),
    (["add"], "which VM?"),
    (["add", "web"], "needs --qmp PATH"),
    (["add", "we/b", "--qmp", "x"], "cannot be the name of a VM"),
    (["add", "web", "--qmp", "x", "--set", "deadline"], "KEY=VALUE"),
    (["discover", "web"], "takes no 'web'"),
    (["version", "1"], "takes no '1'"),
]

for words, text in WRONG:
    run = Run(*words)
    name = "vmfrost " + " ".join(words)
    ok(run.code == 2 and run.out == "" and run.err.startswith("vmfrost: "), f"{name}: refused",
       run)
    has(run.err, text, f"{name}: says why")
    has(run.err, "try `vmfrost help", f"{name}: says where to read")

run = Run("snapshot", "evil\x1b[31m\nname")
same(run.code, 2, "a name that is an escape sequence is refused")
ok("\x1b" not in run.err and "evil?[31m?name" in run.err, "and is not printed raw", repr(run.err))
done()
