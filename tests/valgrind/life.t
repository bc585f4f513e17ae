#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The life of some snapshots of a real QEMU without a guest; with $VMFROST under valgrind
(`make check-valgrind`) a fault of memory or a descriptor that is left open is exit code 99."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "qemu"))
from bare import Qemu, Tap, blockdev, drive, finish  # pylint: disable=wrong-import-position

IMAGES = ["web.qcow2", "data.qcow2"]


def does(t, vm, wanted, verb, *words):
    out = vm.vmfrost(verb, *words)
    t.is_(out.code, wanted, " ".join((verb, *(str(word) for word in words))))
    if out.code != wanted:
        t.diag(f"{out.error} {out.err}")


def running(t):
    with Qemu(drive("web") + blockdev("data"), IMAGES) as vm:
        vm.write("web", 1)
        does(t, vm, 0, "check")
        for name in ("one", "two", "three"):
            does(t, vm, 0, "snapshot", f"@{name}")
            vm.write("web", 2)
        for words in (("list",), ("show", "@one"), ("status",), ("verify",)):
            does(t, vm, 0, *words)
        does(t, vm, 1, "snapshot", "@one")  # it is there already
        does(t, vm, 2, "snapshot", "@t h i s")
        elsewhere = vm.disks / "elsewhere"
        elsewhere.mkdir()
        does(t, vm, 0, "export", "@two", elsewhere, "--disk", "web")
        does(t, vm, 1, "restore", "@one")  # it is running
        does(t, vm, 0, "restore", "@one", "--reset")
        for name in ("one", "two"):
            does(t, vm, 0, "delete", f"@{name}")
        does(t, vm, 0, "prune", "--keep-last", "1")
        does(t, vm, 0, "recover")
        killed = vm.start_vmfrost("snapshot", "@killed", env={"VMFROST_TEST_AT": "kill:flip"})
        finish(killed)
        does(t, vm, 0, "recover")
        vm.kill()
        does(t, vm, 0, "snapshot", "@off")
        does(t, vm, 0, "delete", "@off")
        does(t, vm, 3, "freeze")


def main():
    with Tap() as t:
        running(t)


main()
