#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Using a snapshot, on a real QEMU without a guest: exports and clones.

Whatever is killed or refused: nothing that was there is touched, nothing half has a name, and the
VM goes on.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (CLUSTER, MIB, SIZE, Qemu, Tap, blockdev, drive, finish, go_on, image_bytes,
                  image_info, image_ok, lab, make_image, run, small_folder, wait_until)

ONLY = os.environ.get("ONLY", "")
THREE = (drive("web") + drive("data", fmt="raw", file="data.raw") +
         blockdev("logs", file="logs.qcow2"))
THREE_IMAGES = ["web.qcow2", "data.raw", "logs.qcow2"]
DISKS = ["web", "data", "logs"]
FILES = ["data", "logs-dev", "web"]  # as their disks are called


@contextmanager
def vm_with(*names, words=None, images=("web.qcow2",)):
    """A VM with snapshots, each taken after one more cluster was written; and it goes on."""
    disks = DISKS if images == THREE_IMAGES else DISKS[:1]
    with Qemu(words or drive("web"), images=images) as vm:
        for index, name in enumerate(names):
            for disk in disks:
                vm.write(disk, 10 + index, index)
            vm.take(name)
        for disk in disks:
            vm.write(disk, 99, 0, 8)
        yield vm


def sealed(vm, disk, name):
    for cut in vm.vmfrost("show", "@" + name).document["cuts"]:
        if cut["name"] == disk:
            return Path(cut["sealed"]), cut["format"]
    raise AssertionError(disk)


def content(path, fmt="qcow2"):
    """As image_bytes(), of compressed ones, too."""
    if fmt == "raw":
        return image_bytes(path, fmt="raw")
    raw = path.with_name(f".{path.name}.raw")
    run("qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", path, raw)
    found = image_bytes(raw, fmt="raw")
    raw.unlink()
    return found


def same(path, fmt, other, other_fmt):
    """Byte by byte, through the chains of both."""
    return run("qemu-img", "compare", "-q", "-f", fmt, "-F", other_fmt, path, other,
               check=False).returncode == 0


def sums_fit(folder):
    names = sorted(path.name for path in folder.glob("*.sha256"))
    done = subprocess.run(["sha256sum", "--strict", "-c", "--", *names], cwd=folder, capture_output=True,
                          check=False)
    return names if done.returncode == 0 else done.stderr


def entries(folder):
    return sorted(re.sub(r"\.[0-9a-f]{16}\.part$", ".ID.part", path.name)
                  for path in folder.iterdir())


def target(vm, name="out"):
    folder = vm.folder / name
    folder.mkdir(exist_ok=True)
    return folder


def readers(path):
    """Processes that have the file open, but for QEMUs with a VM."""
    found = []
    about = path.stat()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for fd in (process / "fd").iterdir():
                there = fd.stat()
                name = os.readlink(process / "exe").rpartition("/")[2]
                if (there.st_ino, there.st_dev) == (about.st_ino, about.st_dev) and \
                        not name.startswith("qemu-system"):
                    found.append(name)
        except OSError:
            continue
    return found


# --- Exports ---------------------------------------------------------------

def one_disk(t):
    with vm_with("one", "two") as vm:
        out = target(vm)
        for name, words in (("web.qcow2", []), ("web.raw", ["--format", "raw"]),
                            ("small.qcow2", ["--compress"])):
            for snapshot, want in (("one", [10, 0]), ("two", [10, 11])):
                path = out / f"{snapshot}-{name}"
                fmt = "raw" if name.endswith("raw") else "qcow2"
                result = vm.vmfrost("export", "@" + snapshot, path, *words)
                t.is_((result.code, result.error), (0, ""), f"{snapshot} to {name}: exported")
                t.is_(content(path, fmt), want + [0] * 6, "... with its content")
                source, source_fmt = sealed(vm, "web", snapshot)
                t.ok(same(source, source_fmt, path, fmt), "... to the last byte")
                if fmt == "qcow2":
                    t.ok(image_info(path)["backing-filename"] is None and image_ok(path),
                         "... and stands alone")
                about = path.stat()
                t.ok(about.st_blocks * 512 < MIB, f"... sparse: {about.st_blocks * 512} bytes")
                file = result.document["files"][0]
                t.ok(file["path"] == str(path) and file["disk"] == "web" and
                     file["format"] == fmt and file["size"] == SIZE and
                     file["allocated"] == about.st_blocks * 512,
                     f"... as its document says: {file}")
                t.ok(Path(f"{path}.sha256").read_text().startswith(file["sha256"] + "  "),
                     "... with the sum that the file beside it has")
        t.is_(len(sums_fit(out)), 6, "sha256sum -c agrees with all")
        t.ok((out / "two-small.qcow2").stat().st_blocks < (out / "two-web.qcow2").stat().st_blocks,
             "compressed it is smaller")
        t.is_(vm.sees("web"), [99] * 8, "the VM goes on")
        vm.write("web", 7)
        os.umask(0o027)
        t.is_(vm.vmfrost("export", "@two", out / "private.qcow2").code, 0, "with another umask")
        os.umask(0o022)
        t.is_((out / "private.qcow2").stat().st_mode & 0o777, 0o640, "... its mode is that")
        vm.kill()
        t.is_(vm.vmfrost("export", "@one", out / "later.qcow2").code, 0, "of a stopped VM")
        t.is_(image_bytes(out / "later.qcow2"), [10] + [0] * 7, "... the same content")
        vm.start()
        t.is_(vm.sees("web")[:2], [7, 99], "... which starts again")


def zeros(t):
    """What was written as zeros takes up nothing, either, and a large disk is no large file."""
    vm = Qemu(drive("web"), images=[])
    make_image(vm.disks / "web.qcow2", size=64 << 30)
    with vm:
        vm.write("web", 0, 0, 64)
        vm.write("web", 5, 70)
        vm.io("web", f"write -P 6 {(64 << 30) - CLUSTER} {CLUSTER}")
        vm.take("one")
        out = target(vm)
        for fmt in ("qcow2", "raw"):
            path = out / f"web.{fmt}"
            # The sum of 64 GiB of zeros would take minutes.
            result = vm.vmfrost("export", "@one", path, "--format", fmt,
                                env=without_sums(vm))
            t.is_(result.code, 0, f"64 GiB as {fmt} {result.error}")
            source, _ = sealed(vm, "web", "one")
            allocated = path.stat().st_blocks * 512
            # A qcow2 image has its tables, a byte for each 8192.
            t.ok(allocated < (10 if fmt == "qcow2" else 2) * MIB, f"... take up {allocated} bytes")
            t.ok(same(source, "qcow2", path, fmt), "... and are the same")
            t.ok(any("sha256sum is not installed" in warning
                     for warning in result.document["warnings"]) and
                 "sha256" not in result.document["files"][0] and
                 not Path(f"{path}.sha256").exists(), "... without sha256sum: a warning")


def without_sums(vm):
    folder = vm.folder / "bin"
    folder.mkdir(exist_ok=True)
    daemon = folder / "qemu-storage-daemon"
    if not daemon.exists():
        daemon.symlink_to("/usr/bin/qemu-storage-daemon")
    return {"PATH": str(folder)}


def three_disks(t):
    with vm_with("one", "two", words=THREE, images=THREE_IMAGES) as vm:
        out = target(vm)
        for number, (dest, words) in enumerate((
                (out, []), (f"{vm.folder}/made/", []), (f"{vm.folder}/raws//", ["--format", "raw"]),
                (f"{vm.folder}/small/", ["--compress"]))):
            fmt = "raw" if "raw" in words else "qcow2"
            snapshot = "one" if number % 2 else "two"
            want = [10, 11 if snapshot == "two" else 0] + [0] * 6
            result = vm.vmfrost("export", "@" + snapshot, dest, *words)
            t.is_((result.code, result.error), (0, ""), f"three disks to {dest} {words}")
            folder = Path(dest)
            t.is_(entries(folder), [f"{disk}.{fmt}{end}" for disk in FILES
                                   for end in ("", ".sha256")], "... each with its sum")
            for disk in FILES:
                path = folder / f"{disk}.{fmt}"
                t.is_(content(path, fmt), want, f"... {disk} has its content")
                source, source_fmt = sealed(vm, disk, snapshot)
                t.ok(same(source, source_fmt, path, fmt), "... to the last byte")
            t.is_(len(sums_fit(folder)), 3, "... all sums are right")
        result = vm.vmfrost("export", "@one", vm.folder / "data.raw", "--format", "raw", "--disk",
                            "data")
        t.is_((result.code, [file["disk"] for file in result.document["files"]]), (0, ["data"]),
              "one of three")
        t.ok((vm.folder / "data.raw").stat().st_blocks * 512 < MIB, "... is sparse")
        for words, code, text in (
                ([vm.folder / "x.qcow2"], 2, "the snapshot has 3 disks (web, data, logs-dev)"),
                ([vm.folder / "x.qcow2", "--disk", "wbe"], 1, 'no disk "wbe"; it has web, data, logs-dev')):
            result = vm.vmfrost("export", "@one", *words)
            t.ok(result.code == code and text in result.error, f"refused: {result.error}")
        t.ok(not (vm.folder / "x.qcow2").exists(), "... without a trace")


def progress(t):
    """How far it is; a program of that name which takes its time."""
    with vm_with("one") as vm:
        folder = vm.folder / "slow"
        folder.mkdir()
        (folder / "sha256sum").write_text(
            f'#!/bin/sh\nexec 3<"$2"\nhead -c {SIZE // 2} <&3 >/dev/null\necho $$ >{vm.folder}/pid\n'
            f'test "$SLOW" && sleep 100\nuntil test -e {vm.folder}/seen; do sleep 0.02; done\n'
            'exec /usr/bin/sha256sum "$@"\n')
        os.chmod(folder / "sha256sum", 0o755)
        path = {"PATH": f'{folder}:{os.environ["PATH"]}'}
        command = lab.start_vmfrost(["export", "--qmp", vm.socket, "@one", vm.folder / "web.raw",
                                     "--format", "raw", "--json"], env=path, state_dir=vm.state)

        def told():
            events = [json.loads(line) for line in command.output()[0].splitlines(True)
                      if line.endswith("\n")]
            return [event["percent"] for event in events
                    if event.get("step") == "checksum" and event["state"] == "progress"]

        wait_until(lambda: told()[-1:] == [50.0], what="half of the sum")
        (vm.folder / "seen").touch()
        t.is_(command.wait().code, 0, f"half of the file is summed up: {told()}")
        started = vm.folder / "pid"
        started.write_text("")
        command = vm.start_vmfrost("export", "@one", vm.folder / "stopped.raw", "--format", "raw",
                                   env={**path, "SLOW": "1"})
        wait_until(lambda: started.read_text().endswith("\n"), what="the sum's beginning")
        pid = int(started.read_text())
        command.signal(signal.SIGTERM)
        result = finish(command)
        t.ok(result.code == 1 and "stopped by request" in result.error and
             not Path(f"/proc/{pid}").exists(), f"stopped in the middle of it: {result.error}")
        t.is_([name for name in entries(vm.folder) if "stopped" in name], [], "nothing is left")


def places(t):
    """Where it cannot go."""
    with vm_with("one") as vm:
        out = target(vm)
        taken = out / "taken.qcow2"
        taken.write_text("mine\n")
        (out / "dangling.qcow2").symlink_to(out / "nowhere")
        (out / "link.qcow2").symlink_to(taken)
        (out / "summed.qcow2.sha256").write_text("a sum\n")
        (out / "real").mkdir()
        (out / "folder").symlink_to("real")
        before = entries(out)
        for dest, text in (
                (taken, "is there already, and is not replaced"),
                (out / "dangling.qcow2", "is there already, a symbolic link"),
                (out / "link.qcow2", "is there already, a symbolic link"),
                (out / "summed.qcow2", "summed.qcow2.sha256 is there already"),
                (out / "missing/web.qcow2", "there is no folder"),
                (f"{out}/missing/new/", "there is no folder"),
                (taken / "web.qcow2", "taken.qcow2 is no folder"),
                (f"{taken}/", "cannot create the folder"),
                ("/proc/web.qcow2", "cannot create a file in /proc"),
                ("/sys/web/", "cannot create the folder /sys/web"),
                (out / ("x" * 250), "File name too long"),
                (out / "bad\nname.qcow2", "cannot be printed"),
                (os.fsdecode(os.fsencode(out) + b"/\xff.qcow2"), "cannot be printed")):
            for verb in ("export", "clone"):
                if verb == "clone" and "summed" in str(dest):
                    continue
                result = vm.vmfrost(verb, "@one", dest)
                t.ok(result.code in (1, 2) and text in result.error,
                     f"{verb} to {ascii(str(dest))}: {result.error}")
        t.ok(taken.read_text() == "mine\n" and entries(out) == before, "nothing was touched")
        result = vm.vmfrost("export", "@one", out / "folder")
        t.ok(result.code == 0 and (out / "real/web.qcow2").exists(), "by a linked folder: in it")
        for name in ("a b,c=d:e.qcow2", "nbd:x.qcow2", "back\\slash.qcow2", "-x.qcow2", "größe.q"):
            t.is_(vm.vmfrost("export", "@one", out / name).code, 0, f"a file {name}")
            t.is_(vm.vmfrost("clone", "@one", out / ("clone " + name)).code, 0, "... and a clone")
            t.is_((image_bytes(out / name)[0], sees_alone(out / ("clone " + name))), (10, 10),
                  "... are what they should be")
        (out / "summed.qcow2.sha256").unlink()
        t.ok(r"back\slash.qcow2.sha256" in str(sums_fit(out)).replace("\\\\", "\\"),
             f"sums of odd names: {sums_fit(out)}")
        # Where we are.
        here = os.getcwd()
        os.chdir(out)
        t.is_(vm.vmfrost("export", "@one", "here.qcow2").code, 0, "a name alone: in this folder")
        os.chdir(here)
        t.ok((out / "here.qcow2").exists(), "... there it is")


def sees_alone(path):
    """What is in the first cluster, as a QEMU sees it."""
    with subprocess.Popen(["qemu-io", "-U", "-r", "-f", "qcow2", "-c", "read -v 0 512", path],
                          stdout=subprocess.PIPE, text=True) as process:
        return int(re.search(r"^0+:  (..)", process.communicate()[0], re.M).group(1), 16)


def turned(t):
    """Whoever may write to the folder turns the name of the file while it is made."""
    with vm_with("one") as vm:
        out = target(vm)
        victim = vm.folder / "victim"
        for verb, step in (("export", "copy"), ("export", "checksum"), ("clone", "link")):
            victim.write_text("precious\n")
            command = vm.stop_at(step, verb, "@one", out / "web.qcow2")
            part, = out.iterdir()
            part.rename(out / "away")
            part.symlink_to(victim)
            result = go_on(command)
            t.ok(result.code == 1 and "somebody has removed or replaced it" in result.error and
                 not (out / "web.qcow2").exists(), f"{verb}, turned at {step}: {result.error}")
            t.is_(victim.read_text(), "precious\n", "... nothing is written to where it leads")
            part.unlink()
            (out / "away").unlink()
        t.is_(vm.vmfrost("export", "@one", out / "web.qcow2").code, 0, "otherwise it works")


def full(t):
    with vm_with("one") as vm:
        with small_folder(t, vm.folder / "small", 4) as small:
            if not small:
                return
            for cluster in range(8, 88, 8):
                vm.write("web", 5, cluster, 8)
            vm.take("two")
            result = vm.vmfrost("export", "@two", small / "web.qcow2")
            t.ok(result.code == 1 and "MiB are free" in result.error and "room" in result.next,
                 f"no room, as is seen before: {result.error}")
            t.is_(entries(small), [], "... nothing is left")
    # Compressed images look smaller than they are.
    vm = Qemu(drive("web"), images=[])
    run("qemu-img", "create", "-q", "-f", "raw", vm.disks / "plain", "16M")
    run("qemu-io", "-f", "raw", "-c", "write -P 5 0 8M", vm.disks / "plain")
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", vm.disks / "plain",
        vm.disks / "web.qcow2")
    with vm:
        vm.take("one")
        with small_folder(t, vm.folder / "small", 4) as small:
            for words in ([], ["--format", "raw"]):
                result = vm.vmfrost("export", "@one", f"{small}/new/", *words)
                t.ok(result.code == 1 and "No space left on device" in result.error and
                     "make room" in result.next, f"no room while copying: {result.error}")
                t.is_(entries(small), [], "... nothing is left, not even the folder")
            result = vm.vmfrost("export", "@one", small / "web.qcow2", "--compress")
            t.is_(result.code, 0, f"compressed, it fits {result.error}")
            run("mount", "-o", "remount,ro", small)
            result = vm.vmfrost("export", "@one", small / "ro.qcow2")
            t.ok(result.code == 1 and "Read-only file system" in result.error,
                 f"a read-only file system: {result.error}")


def kills(t):
    """kill -9 at every step: no half file has a name; the next export sweeps."""
    steps = ["find", "open", "create", "create+", "copy", "copy.started", "copy.copied",
             "checksum", "checksum+", "publish"]
    with vm_with("one", words=THREE, images=THREE_IMAGES) as vm:
        out = target(vm)
        for step in steps:
            result = vm.vmfrost("export", "@one", out, env={"VMFROST_TEST_AT": f"kill:{step}"})
            found = entries(out)
            t.ok(result.code == -signal.SIGKILL and
                 all(name.endswith(".ID.part") for name in found),
                 f"killed at {step}: {found}")
            if step == "copy.started":
                t.ok(len(found) == 3, "... parts are there")
        (out / ".web.qcow2.0123456789abcde.part").write_text("not ours\n")
        (out / ".other.qcow2.0123456789abcdef.part").write_text("not ours\n")
        result = vm.vmfrost("export", "@one", out)
        t.is_(result.code, 0, f"the next one works {result.error}")
        t.is_(entries(out), [".other.qcow2.ID.part", ".web.qcow2.0123456789abcde.part"] +
              [f"{disk}.qcow2{end}" for disk in FILES for end in ("", ".sha256")],
              "... and has swept what was its own")
        t.is_(len(sums_fit(out)), 3, "... all sums are right")
        t.is_(vm.sees("web"), [99] * 8, "the VM goes on")
        t.is_(vm.vmfrost("delete", "@one").code, 0, "... and the snapshot can be deleted")


def signals(t):
    with vm_with("one", words=THREE, images=THREE_IMAGES) as vm:
        for step in ("find", "copy.started", "copy.copied", "checksum+"):
            command = vm.stop_at(step, "export", "@one", f"{vm.folder}/new/")
            command.signal(signal.SIGINT)
            result = go_on(command)
            t.ok(result.code == 1 and "stopped by request" in result.error and
                 not (vm.folder / "new").exists(), f"Ctrl-C at {step}: {result.error}")
        t.is_(readers(vm.disks / "web@one.qcow2"), [], "nobody reads the image any more")
        # One that is at work is not swept, and what it has made is not replaced.
        out = target(vm)
        command = vm.stop_at("copy.copied", "export", "@one", out / "web.qcow2", "--disk", "web")
        result = vm.vmfrost("export", "@one", out / "web.qcow2", "--disk", "web")
        t.is_((result.code, entries(out)), (0, [".web.qcow2.ID.part", "web.qcow2",
                                                "web.qcow2.sha256"]), "a second one at a time")
        inode = (out / "web.qcow2").stat().st_ino
        result = go_on(command)
        t.ok(result.code == 1 and "is there already" in result.error,
             f"... which the first one finds: {result.error}")
        t.is_((entries(out), (out / "web.qcow2").stat().st_ino),
              (["web.qcow2", "web.qcow2.sha256"], inode), "... and leaves alone")


def in_the_way(t):
    """Deletions while an export reads; and everything else meanwhile."""
    with vm_with("one", "two", "three", words=THREE, images=THREE_IMAGES) as vm:
        out = target(vm)
        command = vm.stop_at("copy", "export", "@two", out)
        for name in ("one", "two"):
            result = vm.vmfrost("delete", "@" + name)
            t.ok(result.code == 1 and "qemu-storage-daemon (process" in result.error and
                 "an export" in result.next, f"{name} cannot be deleted: {result.error}")
            record = vm.vmfrost("show", "@" + name).document
            t.ok(record["readyToUse"] and record["phase"] == "Succeeded", "... and stays usable")
        t.is_(vm.vmfrost("snapshot", "@four").code, 0, "a snapshot can be taken")
        vm.write("web", 50)
        t.is_(vm.vmfrost("delete", "@four").code, 0, "... and be deleted")
        result = go_on(command)
        t.is_((result.code, result.error), (0, ""), "the export goes on")
        for disk in FILES:
            t.is_(image_bytes(out / f"{disk}.qcow2"), [10, 11] + [0] * 6, f"... {disk}")
        t.is_(vm.vmfrost("delete", "@three").code, 0, "then deletions work again")

    # Stopped, and what is in the way is only what would be written to.
    for way, more in (("down", 1), ("up", 40)):
        with vm_with() as vm:
            out = target(vm)
            vm.write("web", 10, 0, 16)
            vm.take("one")
            vm.write("web", 20, 0, more)
            command = vm.stop_at("copy.started", "export", "@one", out / "web.qcow2")
            vm.kill()
            result = vm.vmfrost("delete", "@one")
            if way == "down":
                t.ok(result.code == 1 and "qemu-storage-daemon (process" in result.error,
                     f"of a stopped VM, written down: {result.error}")
            else:
                t.is_((result.code, result.error), (0, ""), "... written up: nobody minds")
            t.is_(go_on(command).code, 0, "... the export goes on")
            t.is_(image_bytes(out / "web.qcow2"), [10] * 8, "... and is what the snapshot was")
            if way == "down":
                t.is_(vm.vmfrost("delete", "@one").code, 0, "... then it is deleted")
            t.is_(image_bytes(vm.disks / "web.qcow2"), ([20] * more + [10] * 7)[:8],
                  "... and the VM's disk is what it was")

    with vm_with("one", "two") as vm:
        out = target(vm)
        command = vm.stop_at("copy.started", "export", "@two", out / "stopped.qcow2")
        vm.restart()
        t.is_(vm.vmfrost("snapshot", "@five").code, 0, "the VM can be started again meanwhile")
        t.is_(go_on(command).code, 0, "... and the export goes on")
        vm.delete("five")
        for path in out.iterdir():
            path.unlink()
        stopped = vm.stop_at("accept", "delete", "@one")
        result = vm.vmfrost("export", "@two", out / "web.qcow2")
        t.ok(result.code == 1 and "right now: delete" in result.error,
             f"not during a deletion: {result.error}")
        t.is_((go_on(stopped).code, entries(out)), (0, []), "... which goes on")
        vm.vmfrost("snapshot", "@three", env={"VMFROST_TEST_AT": "kill:record"})
        result = vm.vmfrost("export", "@two", out / "web.qcow2")
        t.ok(result.code == 1 and "recover" in result.next, f"not after one: {result.error}")
        vm.vmfrost("recover")
        t.is_(vm.vmfrost("export", "@two", out / "web.qcow2").code, 0, "recovered: it works")

        for name, text in (("none", "has no snapshot"), ("bad", "no content")):
            if name == "bad":
                vm.vmfrost("snapshot", "@bad", env={"VMFROST_TEST_AT": "kill:rehearse"})
                vm.vmfrost("recover")
            for verb in ("export", "clone"):
                result = vm.vmfrost(verb, "@" + name, out / "x.qcow2")
                t.ok(result.code == 1 and text in result.error, f"{verb} {name}: {result.error}")
        image = vm.disks / "web@two.qcow2"
        image.rename(vm.disks / "moved")
        result = vm.vmfrost("export", "@three", out / "x.qcow2")
        t.ok(result.code == 1 and "web@two.qcow2 is missing" in result.error,
             f"an image that is missing: {result.error}")
        (vm.disks / "moved").rename(image)
        os.utime(image)
        result = vm.vmfrost("export", "@two", out / "x.qcow2")
        t.ok(result.code == 0 and "was written to after it was sealed" in
             str(result.document["warnings"]), "written to since: a warning")
        vm.kill()
        with Qemu(["-drive", f"file={vm.disks}/web@three.qcow2,format=qcow2,if=none,id=web",
                   "-device", "virtio-blk-pci,drive=web,id=web-dev"], []):
            result = vm.vmfrost("export", "@three", out / "y.qcow2")
            t.ok(result.code == 1 and "somebody may write to" in result.error,
                 f"a VM that writes to it: {result.error}")

    # QEMU's own lock, for whoever does not look: of raw images, too.
    with vm_with("one", words=THREE, images=THREE_IMAGES) as vm:
        command = vm.stop_at("copy", "export", "@one", f"{vm.folder}/new/")
        for name in ("web@one.qcow2", "data.raw", "logs@one.qcow2"):
            done = run("qemu-io", "-f", name.rpartition(".")[2], "-c", "write 0 64k",
                       vm.disks / name, check=False)
            t.ok("lock" in done.stderr, f"nobody may write to {name}")
        t.is_(go_on(command).code, 0, "... until it is copied")


def over_tcp(t):
    """A QEMU whose process is not known."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"tcp:127.0.0.1:{listening.getsockname()[1]}"
    vm = Qemu()
    vm.words = drive("web", f"{vm.disks}/web.qcow2") + ["-qmp", f"{address},server=on,wait=off"]
    with vm:
        def there(verb, *more):
            return finish(lab.start_vmfrost([verb, "--qmp", address, *more, "--json"],
                                            state_dir=vm.state))

        vm.write("web", 10)
        t.is_(there("snapshot", "@one").code, 0, "over TCP: a snapshot")
        vm.write("web", 20, 1)
        result = there("export", "@one", vm.folder / "web.qcow2")
        t.is_((result.code, result.error), (0, ""), "... its export")
        t.is_(image_bytes(vm.folder / "web.qcow2")[:2], [10, 0], "... has its content")


# --- Clones ----------------------------------------------------------------

def clone_words(path):
    return ["-drive", f"file={path},format=qcow2,if=none,id=web", "-device",
            "virtio-blk-pci,drive=web,id=web-dev"]


def plain(vm, verb, *words):
    """What a command says to people."""
    return run(lab.vmfrost_program(), "--state-dir", vm.state, verb, "--qmp", vm.socket, *words).stdout


def clones_of(vm, name):
    return [clone["path"] for clone in vm.vmfrost("show", "@" + name).document.get("clones", [])]


def raw_clones(vm, name):
    record = next(Path(vm.state).glob(f"vms/*/records/{name}.json"))
    return [clone["path"] for clone in json.loads(record.read_text()).get("clones", [])]


def clones(t):
    with vm_with("one", "two") as vm:
        out = target(vm)
        path = out / "try.qcow2"
        os.umask(0o077)
        result = vm.vmfrost("clone", "@one", path)
        os.umask(0o022)
        t.is_((result.code, result.error), (0, ""), "cloned")
        info = image_info(path)
        t.is_(info, {"backing-filename": str(vm.disks / "web@one.qcow2"),
                     "backing-filename-format": "qcow2", "virtual-size": SIZE},
              "it builds on the image, by its whole name and format")
        t.is_(path.stat().st_mode & 0o777, 0o600, "its mode is the umask's")
        clone = vm.vmfrost("show", "@one").document["clones"][0]
        t.ok(clone["path"] == str(path) and clone["disk"] == "web" and
             re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", clone["created"]),
             f"its record tells of it: {clone}")
        said = plain(vm, "show", "@one")
        t.ok(re.search(rf"^  cloned to +{path}$", said, re.M), "show tells of it")
        for verb in ("list", "status"):
            said = plain(vm, verb)
            t.ok(re.search(r" one .* 1 clone$", said, re.M) and said.count("clone") == 1,
                 f"so does {verb}")
        with Qemu(clone_words(path), []) as other:
            t.is_(other.sees("web"), [10] + [0] * 7, "a VM starts with it, and sees the snapshot")
            other.write("web", 77, 0, 2)
            vm.write("web", 88, 0, 2)
            t.is_((other.sees("web")[:3], vm.sees("web")[:3]), ([77, 77, 0], [88, 88, 99]),
                  "both write, each for itself")
            t.is_(vm.vmfrost("snapshot", "@three").code, 0, "snapshots go on")
            # Of the clone's own VM: its file is now one further up.
            other.take("mine")
            t.is_(image_info(path)["backing-filename"], "try@mine.qcow2", "also of the clone")
            result = vm.vmfrost("delete", "@one")
            t.ok(result.code == 1 and f"{path} was cloned from this snapshot" in result.error and
                 "rebase" in result.next, f"the snapshot cannot be deleted: {result.error}")
            t.ok(vm.vmfrost("show", "@one").document["readyToUse"], "... and stays as it is")
            other.delete("mine")
        plan = vm.vmfrost("prune", "--keep-last", "1").document
        t.is_([entry["name"] for entry in plan["keep"]], ["three", "one"][::-1],
              f"prune leaves it alone: {plan}")
        t.is_(vm.vmfrost("prune", "--keep-last", "1", "--yes").code, 0, "... also with --yes")
        t.is_([record["name"] for record in vm.vmfrost("list").result], ["one", "three"],
              "... and what is under it goes on")
        t.is_(image_bytes(path)[:3], [77, 77, 0], "the clone is what it was")
        run("qemu-img", "rebase", "-f", "qcow2", "-b", "", path)
        t.is_((clones_of(vm, "one"), raw_clones(vm, "one")), ([], [str(path)]),
              "standing alone, it is no clone any more, whatever the record says")
        plan = vm.vmfrost("prune", "--keep-last", "1").document
        t.is_([entry["name"] for entry in plan["remove"]], ["one"], "prune would remove it now")
        t.is_(vm.vmfrost("delete", "@one").code, 0, "and it can be deleted")
        t.is_(image_bytes(path)[:3], [77, 77, 0], "... without the clone")

        # A clone of what is above: deletions below it.
        second = out / "second.qcow2"
        t.is_(vm.vmfrost("clone", "@three", second).code, 0, "a clone of a later one")
        content = image_bytes(vm.disks / "web@three.qcow2")
        vm.write("web", 66, 4)
        vm.take("four")
        with Qemu(clone_words(second), []) as other:
            t.is_(other.sees("web"), content, "... has its content")
            result = vm.vmfrost("delete", "@four")
            t.is_((result.code, result.error), (0, ""), "a deletion above it")
            t.is_(other.sees("web"), content, "... does not touch it")
        second.unlink()
        t.is_(vm.vmfrost("delete", "@three").code, 0, "removed: it can be deleted")


def clones_above(t):
    """Deleting a snapshot below the one that was cloned, whose image is written to then."""
    with vm_with("one", "two") as vm:
        out = target(vm)
        path = out / "try.qcow2"
        vm.vmfrost("clone", "@two", path)
        content = image_bytes(vm.disks / "web@two.qcow2")
        with Qemu(clone_words(path), []) as other:
            other.write("web", 44, 5)
            result = vm.vmfrost("delete", "@one")
            t.ok(result.code == 1 and "qemu-system" in result.error and "clone" in result.next,
                 f"not while the clone runs: {result.error}")
            t.ok(vm.vmfrost("show", "@one").document["readyToUse"], "... it stays as it is")
        result = vm.vmfrost("delete", "@one")
        t.is_((result.code, result.error), (0, ""), "when it does not, it can be deleted")
        with Qemu(clone_words(path), []) as other:
            t.is_(other.sees("web"), content[:5] + [44] + content[6:], "the clone is as it was")
        result = vm.vmfrost("delete", "@two")
        t.ok(result.code == 1 and "was cloned from" in result.error, "its own stays refused")


def clones_of_many(t):
    with vm_with("one", words=THREE, images=THREE_IMAGES) as vm:
        out = target(vm)
        result = vm.vmfrost("clone", "@one", out)
        t.is_((result.code, entries(out)), (0, [f"{disk}.qcow2" for disk in FILES]),
              "three disks")
        for disk, fmt in zip(FILES, ("raw", "qcow2", "qcow2")):
            t.is_(image_info(out / f"{disk}.qcow2")["backing-filename-format"], fmt,
                  f"{disk} builds on a {fmt} image")
            t.is_(image_bytes(out / f"{disk}.qcow2"), [10] + [0] * 7, "... with its content")
        for kill in ("create+", "link", "link+", "publish", "publish.noted"):
            result = vm.vmfrost("clone", "@one", out / "x.qcow2", "--disk", "data",
                                env={"VMFROST_TEST_AT": f"kill:{kill}"})
            t.ok(result.code == -signal.SIGKILL and not (out / "x.qcow2").exists() and
                 len(clones_of(vm, "one")) == 3, f"killed at {kill}: nothing half is there")
        result = vm.vmfrost("clone", "@one", out / "x.qcow2", "--disk", "data")
        t.is_((result.code, entries(out)),
              (0, ["data.qcow2", "logs-dev.qcow2", "web.qcow2", "x.qcow2"]), "then it works")
        t.is_((len(clones_of(vm, "one")), len(raw_clones(vm, "one"))), (4, 4),
              "... and the record knows what is there")
        for name in ("web.qcow2", "logs-dev.qcow2", "x.qcow2"):
            (out / name).unlink()
        t.is_(clones_of(vm, "one"), [str(out / "data.qcow2")], "three are gone")
        result = vm.vmfrost("delete", "@one")
        t.ok(result.code == 1 and "disk data: " in result.error, f"one is left: {result.error}")
        # Something else by its name.
        (out / "data.qcow2").write_text("no image any more, but a letter\n")
        t.is_(clones_of(vm, "one"), [], "something else by its name is no clone")
        (out / "data.qcow2").unlink()
        (out / "data.qcow2").symlink_to("data.qcow2")
        result = vm.vmfrost("delete", "@one")
        t.ok(result.code == 1 and "cannot be seen" in result.error,
             f"what cannot be looked at may be one: {result.error}")
        (out / "data.qcow2").unlink()
        result = vm.vmfrost("delete", "@one")
        t.is_((result.code, result.error), (0, ""), "all are gone: deleted")


def main():
    with Tap() as t:
        for part in (one_disk, zeros, three_disks, progress, places, turned, full, kills, signals,
                     in_the_way, over_tcp, clones, clones_above, clones_of_many):
            if not ONLY or part.__name__ in ONLY.split(","):
                part(t)


main()
