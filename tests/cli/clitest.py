# SPDX-License-Identifier: MIT
"""TAP for tests of the command, which is $VMFROST or else build/release/vmfrost.

Each test runs with a state folder of its own, in the C locale, without a terminal.
"""
import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VMFROST = os.path.abspath(os.environ.get("VMFROST", os.path.join(ROOT, "build/release/vmfrost")))
TIMEOUT = 20 if "valgrind" not in VMFROST else 200
FOLDER = tempfile.mkdtemp(prefix="vmfrost-cli-")
atexit.register(shutil.rmtree, FOLDER, True)

COMMANDS = ["discover", "add", "remove", "status", "check", "snapshot", "list", "show", "verify",
            "restore", "export", "clone", "delete", "prune", "with", "freeze", "thaw", "recover", "disk", "storage",
            "help", "version"]

_count = 0
_failed = 0


class Run:
    def __init__(self, *words, env=None):
        keep = {name: value for name, value in os.environ.items()
                if not name.startswith(("LC_", "LANG", "NO_COLOR", "XDG_"))}
        keep.update(VMFROST_STATE_DIR=os.path.join(FOLDER, "state"), HOME=FOLDER)
        keep.update(env or {})
        self.words = words
        done = subprocess.run([VMFROST, *words], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, env=keep, cwd=FOLDER, timeout=TIMEOUT)
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def json(self):
        try:
            return json.loads(self.out)
        except ValueError:
            return None

    def lines(self):
        try:
            return [json.loads(line) for line in self.out.splitlines()]
        except ValueError:
            return []

    def __str__(self):
        return f"vmfrost {' '.join(self.words)}\ncode {self.code}\n{self.out}{self.err}"


def ok(passed, what, about=None):
    global _count, _failed
    _count += 1
    _failed += not passed
    print(f"{'' if passed else 'not '}ok {_count} - {what}", flush=True)
    if not passed and about is not None:
        for line in str(about).splitlines():
            print(f"# {line}", flush=True)


def same(got, wanted, what, about=""):
    ok(got == wanted, what, f"got {got!r}, wanted {wanted!r}\n{about}")


def has(whole, part, what):
    ok(part in whole, what, f"no {part!r} in:\n{whole}")


def skip(why):
    print(f"1..0 # SKIP {why}")
    sys.exit(0)


def done():
    print(f"1..{_count}")
    sys.exit(1 if _failed else 0)


if not os.access(VMFROST, os.X_OK):
    skip(f"{VMFROST} is not built")
