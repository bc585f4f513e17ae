#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Help: on stdout, complete, and in step with the man page."""
import os
import re

from clitest import COMMANDS, ROOT, Run, done, has, ok, same

with open(os.path.join(ROOT, "docs/man/vmfrost.1.scd"), encoding="utf-8") as file:
    MAN = file.read()

overview = Run("--help")
same((overview.code, overview.err), (0, ""), "--help succeeds", overview)
same(Run("help").out, overview.out, "help is --help")
same(Run("-h").out, overview.out, "-h is --help")
listed = re.findall(r"^  (\w+) +\S", overview.out.split("Commands:")[1].split("Options")[0], re.M)
same(listed, COMMANDS, "the overview has each command, and no hidden one")

options = set()
for command in COMMANDS:
    run = Run(command, "--help")
    ok(run.code == 0 and run.err == "", f"{command} --help succeeds", run)
    same(Run("help", command).out, run.out, f"help {command} is {command} --help")
    for part in ("Usage:", "Options of all commands:", "Examples:", "Exit codes:",
                 f"\n  vmfrost {command}"):
        has(run.out, part, f"{command} --help has {part.strip()!r}")
    ok(max(map(len, run.out.splitlines())) <= 80, f"{command} --help fits 80 columns", run.out)
    found = re.findall(r"^  (?:-\w, )?(--[\w-]+)", run.out, re.M)
    ok(len(found) >= 8, f"{command} --help lists options", run.out)
    options.update(found)
    has(MAN, f"\n*{command}*", f"the man page describes {command}")

same(len(options), 40, "all options were found")
for option in sorted(options):
    has(MAN, f"*{option}*", f"the man page has {option}")
for code in range(8):
    has(MAN, f"\n*{code}*\n", f"the man page has exit code {code}")
for name in ("VMFROST_VM", "VMFROST_SNAPSHOT", "VMFROST_CONSISTENCY", "VMFROST_RECORD",
             "VMFROST_IMAGES", "VMFROST_STATE_DIR", "XDG_STATE_HOME", "NO_COLOR", "TERM"):
    has(MAN, f"*{name}*", f"the man page has {name}")

same(Run("snapshot", "web", "--deadline", "5m", "--help").code, 0, "--help wins over the work")
version = Run("--version")
ok(version.code == 0 and re.fullmatch(r"vmfrost \d+\.\d+\.\d+\n", version.out), "--version", version)
same(Run("version").out, version.out, "version is --version")
same(Run("version", "--json").json(), {"version": version.out.split()[1]}, "version --json")
done()
