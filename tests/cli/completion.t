#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Completion: the words of the command, and what bash makes of them."""
import os
import shutil
import subprocess

from clitest import COMMANDS, FOLDER, ROOT, Run, VMFROST, done, ok, same

Run("add", "web", "--qmp", "/run/web.qmp")
Run("add", "web-2", "--qmp", "/run/web2.qmp")


def words(*line):
    return sorted(Run("complete", "--", *line).out.split())


same(words(""), sorted(COMMANDS), "commands")
same(words("s"), ["show", "snapshot", "status", "storage"], "commands that begin so")
same(words("--json", "re"), ["recover", "remove", "restore"], "commands behind an option")
same(words("help", "th"), ["thaw"], "commands of help")
same(words("snapshot", "--fro"), ["--frozen-limit"], "an option")
same(words("snapshot", "web", "--q"), ["--qmp", "--quiesce", "--quiet"], "options of both kinds")
same(words("list", "--de"), [], "no option of another command")
same(words("snapshot", "--quiesce", ""), ["auto", "prefer", "require", "skip"], "values")
same(words("snapshot", "--quiesce=pr"), ["--quiesce=prefer"], "values behind '='")
same(words("snapshot", "--qmp", "x"), [":files"], "files")
same(words("--state-dir", "x"), [":folders"], "folders")
same(words("snapshot", "--exclude", ""), [], "nothing is known of disks")
same(words("snapshot", ""), ["web", "web-2"], "VMs")
same(words("status", "--json", "web-"), ["web-2"], "a VM behind an option")
same(words("snapshot", "--quiesce", "skip", "web"), ["web", "web-2"], "a value is no VM")
same(words("snapshot", "web", ""), ["web", "web-2"], "and further VMs")
same(words("status", "web", ""), [], "one VM is enough")
same(words("status", "--", "we"), ["web", "web-2"], "behind '--'")
same(words("status", "--", "--js"), [], "no options behind '--'")
same(words("with", "web", "--ev"), ["--events"], "an option of ours before the command")
same(words("with", "web", "--", ""), [":files"], "the command behind '--'")
same(words("with", "web", "--", "cp", "--re"), [":files"], "and its arguments")
same(words("storage", ""), ["remove", "set"], "what a command can do")
same(words("show", ""), [], "no snapshots, no candidates")
same(words("export", "web@one", "/ba"), [":files"], "where to export to")
same(words("export", "web@one", "/x", ""), [], "... once")
same(words("clone", "--disk", "vda", "web@one", ""), [":files"], "... and to clone")
same(words("export", "--format", ""), ["qcow2", "raw"], "formats")
same(words("nonsense", "x"), [], "nothing for a command that does not exist")
same(words(), [], "nothing for nothing")
run = Run("complete", "--", "snapshot", "", env={"VMFROST_STATE_DIR": "/proc/no/such"})
same((run.out, run.err), ("", ""), "silent when the state cannot be read", run)

SCRIPT = os.path.join(ROOT, "tools/completion/vmfrost.bash")


def in_bash(line):
    """COMPREPLY for a line that ends at the cursor."""
    program = f"""
        compopt() {{ echo "option:$2"; }}
        . "{SCRIPT}"
        COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:@'
        COMP_LINE=$1 COMP_POINT=${{#1}}
        _vmfrost
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    env = dict(os.environ, VMFROST_STATE_DIR=os.path.join(FOLDER, "state"))
    answer = subprocess.run(["bash", "--norc", "-c", program, "bash", line], env=env, cwd=FOLDER,
                            capture_output=True, text=True, timeout=20)
    return sorted(answer.stdout.split()) if not answer.stderr else [answer.stderr]


if shutil.which("bash"):
    for name in ("sock.qmp", "other.txt"):
        open(os.path.join(FOLDER, name), "w", encoding="ascii").close()
    same(in_bash(f"{VMFROST} sna"), ["snapshot"], "bash: a command")
    same(in_bash(f"{VMFROST} list "), ["web", "web-2"], "bash: the word after a blank")
    same(in_bash(f"{VMFROST} snapshot --quiesce=re"), ["require"], "bash: only what is behind '='")
    same(in_bash(f"{VMFROST} status --qmp so"), ["option:filenames", "sock.qmp"], "bash: files")
    same(in_bash(f"{VMFROST} status --qmp=so"), ["option:filenames", "sock.qmp"],
         "bash: files behind '='")
    same(in_bash(f"{VMFROST} add web --set frozen"), ["frozen-limit=", "option:nospace"],
         "bash: no blank behind '='")
    ok(subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0, "bash reads it")
else:
    ok(True, "bash # SKIP there is none")
done()
