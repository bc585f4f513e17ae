#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Where output goes: closed and full outputs, terminals, colors."""
import os
import pty
import signal
import subprocess

from clitest import FOLDER, Run, VMFROST, done, has, ok, same

ENV = dict(os.environ, VMFROST_STATE_DIR=os.path.join(FOLDER, "state"), HOME=FOLDER)
ENV.pop("NO_COLOR", None)


def shell(command, **more):
    return subprocess.run(["sh", "-c", command, "sh", VMFROST], capture_output=True, text=True,
                          env=dict(ENV, **more), cwd=FOLDER, timeout=20)


def on_terminal(*words, **more):
    """Exit code and everything that is printed, with a terminal on stdout and stderr."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(FOLDER)
        os.execve(VMFROST, [VMFROST, *words], dict(ENV, **more))
    text = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        text += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text.decode()


if os.path.exists("/dev/full"):
    run = shell('"$1" help >/dev/full')
    same(run.returncode, 1, "a full disk is an error")
    has(run.stderr, "cannot write to stdout", "and says so")
run = shell('"$1" help >&-')
same(run.returncode, 1, "a closed stdout is an error")
run = shell('"$1" nonsense 2>&-')
same((run.returncode, run.stdout), (2, ""), "a closed stderr is none")
run = shell('{ "$1" help; echo "code $?" >&2; } | true')
ok("code -" not in run.stderr and "cannot write" not in run.stderr, "no reader: no complaint",
   run.stderr)
same(Run("help").code, 0, "no signal ends it")
pipe = subprocess.Popen([VMFROST, "help"], stdout=subprocess.PIPE, env=ENV)
pipe.stdout.close()
ok(pipe.wait() != -signal.SIGPIPE, "SIGPIPE does not kill it")

code, text = on_terminal("nonsense", TERM="xterm")
ok(code == 2 and "\x1b[31mvmfrost:" in text, "colors on a terminal", repr(text))
for words, more in ((["nonsense"], {"TERM": "dumb"}), (["nonsense"], {"NO_COLOR": "1"}),
                    (["--no-color", "list", "nobody"], {})):
    code, text = on_terminal(*words, **{"TERM": "xterm", **more})
    ok("\x1b" not in text and "vmfrost:" in text, f"none with {more or words[0]}", repr(text))
ok("\x1b" not in Run("nonsense", env={"TERM": "xterm"}).err, "none in a file")

code, text = on_terminal("show", "nobody\x1b]0;evil\x07@x\u202e", TERM="xterm", LC_ALL="C.UTF-8")
ok("\x1b]" not in text and "\x07" not in text and "\u202e" not in text,
   "what a name holds does not reach the terminal", repr(text))
code, text = on_terminal("help", "n\u00e4me", TERM="xterm", LC_ALL="C")
ok(text.isascii(), "nothing but ASCII without a UTF-8 locale", repr(text))
code, text = on_terminal("snapshot", "--qmp", "no-such-socket", TERM="xterm", LC_ALL="C")
ok(code != 0 and text.isascii(), "symbols neither", repr(text))
done()
