#!/usr/bin/env python3
"""The library inside somebody else's libev loop: tests/example/embed.c on a real guest."""
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "lab"))
from lab import Disk, Tap, Vm, ext4_needs_recovery  # noqa: E402

EMBED = os.environ.get("EXAMPLE", str(ROOT / "build" / "release" / "tests" / "example" / "embed"))


def main(tap, folder):
    with Vm(folder / "vm", disks=[Disk("web")]) as vm:
        vm.start().wait_ready().wait_agent()
        environment = dict(os.environ, VMFROST_STATE_DIR=str(folder / "state"))
        done = subprocess.run([EMBED, str(vm.path("qmp.sock")), "embedded"], env=environment,
                              capture_output=True, text=True, timeout=60, check=False)
        tap.is_(done.returncode, 0, "the program's snapshot succeeds")
        record = json.loads(done.stdout)
        tap.is_(record["phase"], "Succeeded", "... says its record")
        tap.is_(record["consistency"], "filesystem", "... consistent")
        tap.ok(not ext4_needs_recovery(vm.path("web@embedded.qcow2")), "... and so is the image")
        ticks = int(re.search(r"(\d+) ticks", done.stderr)[1])
        elapsed_ms = 1000 * (stamp(record, "completionTime") - stamp(record, "startTime"))
        tap.diag(f"{ticks} ticks of 1 ms in {elapsed_ms:.0f} ms")
        tap.ok(ticks > elapsed_ms / 4, "the program's own timer went on ticking")
        tap.ok(vm.guest_writes_ok(), "the guest writes")


def stamp(record, key):
    minutes, seconds = re.search(r":(\d\d):([\d.]+)Z", record[key]).groups()
    return 60 * int(minutes) + float(seconds)


with Tap() as tap, tempfile.TemporaryDirectory(prefix="vmfrost-embed-") as name:
    main(tap, pathlib.Path(name))
