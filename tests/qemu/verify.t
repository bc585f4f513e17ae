#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What verify finds in images that were broken on purpose, on a real QEMU and without one."""

import contextlib
import json
import os
import shutil
import struct
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import LabError, Qemu, Tap, blockdev, drive, finish, go_on, make_image, run, wait_until


def verify(vm, **more):
    """Exit code, {name of the image: (result, problems)} of those that are not sound, error."""
    out = vm.vmfrost("verify", **more)
    found = {Path(image["path"]).name: (image["result"], " / ".join(image["problems"]))
             for image in out.document.get("images", []) if image["result"] != "ok"}
    if out.document.get("ok") != (out.code == 0):
        raise LabError(f"verify: exit {out.code}, and ok is {out.document.get('ok')}")
    return out.code, found, out.error


def checks(vm):
    """{name of the image: whether qemu-img has checked it, or why not}."""
    return {Path(image["path"]).name: image.get("checkMessage", image.get("check"))
            for image in vm.vmfrost("verify").document["images"]}


def only(found, name, *words, result="error"):
    """Nothing but this is wrong, hidden links of a QEMU that is gone aside."""
    visible = {key: value for key, value in found.items() if not key.startswith(".")}
    return (list(visible) == [name] and visible[name][0] == result and
            all(word in visible[name][1] for word in words))


@contextlib.contextmanager
def chain(names=("one", "two")):
    """A QEMU with so many snapshots of its one disk."""
    with Qemu(drive("web")) as vm:
        for number, name in enumerate(names):
            vm.write("web", number + 1, number)
            vm.take(name)
        yield vm


def patch(path, at, data):
    """Change bytes, and nobody can tell by the time."""
    before = path.stat()
    with open(path, "r+b") as image:
        image.seek(at)
        image.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def refcount_block(path):
    with open(path, "rb") as image:
        table, = struct.unpack(">Q", image.read(56)[48:56])
        image.seek(table)
        return struct.unpack(">Q", image.read(8))[0]


def sound(t):
    with Qemu(drive("web") + drive("data", fmt="raw") + drive("plain"),
              ["web.qcow2", "data.raw", "plain.qcow2"]) as vm:
        vm.write("web", 1)
        out = vm.vmfrost("verify")
        t.is_((out.code, out.document["images"]), (0, []),
              "a VM that nothing is known of has nothing to verify")
        vm.take("one", "--exclude", "plain")
        vm.take("two", "--exclude", "plain")
        out = vm.vmfrost("verify")
        t.is_((out.code, out.error, [image["problems"] for image in out.document["images"]]),
              (0, "", [[]] * 7), "all images are sound, also of a disk without snapshots")
        t.is_({name: check for name, check in checks(vm).items()},
              {"web.qcow2": "QEMU writes to it", "web@two.qcow2": "done", "web@one.qcow2": "done",
               "data+one.qcow2": "QEMU writes to it", "data+one@two.qcow2": "done",
               "data.raw": "only qcow2 images have tables", "plain.qcow2": "QEMU writes to it"},
              "those that QEMU writes to are not checked inside")
        t.is_({Path(image["path"]).name: image.get("snapshot")
               for image in out.document["images"] if not image["current"]},
              {"web@two.qcow2": "two", "web@one.qcow2": "one", "data+one@two.qcow2": "two",
               "data.raw": "one"}, "each image has its snapshot")
        percents = [event["percent"] for event in
                    (json.loads(line) for line in vm.start_vmfrost("verify").wait(60)
                     .out.splitlines()) if event.get("state") == "progress"]
        t.ok(percents == sorted(percents) and percents[0] == 0 and 50 < percents[-1] < 100,
             f"it tells how far it is: {percents}")
        vm.kill()
        code, found, _ = verify(vm)
        t.ok(code == 0 and found and all(name.startswith(".") and result == "warning" and
                                         "no running QEMU needs" in problem
                                         for name, (result, problem) in found.items()),
             f"without QEMU its hidden links are left over: {found}")
        t.is_(checks(vm)["web.qcow2"], "done", "... and every image is checked")
        vm.vmfrost("recover")
        t.is_(verify(vm), (0, {}, ""), "... recover takes the links away")
        nothing = verify(vm, env={"PATH": str(vm.folder)})
        t.is_(nothing, (0, {}, ""), "without qemu-img the rest is looked at")
        out = vm.vmfrost("verify", env={"PATH": str(vm.folder)})
        t.ok(any("qemu-img is not installed" in warning for warning in out.document["warnings"]),
             "... and that is said")


def own_nodes(t):
    """File nodes of the launcher's own stay open for writing when a snapshot is taken."""
    with Qemu(blockdev("web")) as vm:
        vm.write("web", 1)
        vm.take("one")
        t.ok("w" in vm.opened()[vm.inode("web@one.qcow2")], "-blockdev: the base stays open for writing")
        t.is_(verify(vm), (0, {}, ""), "... but nobody writes to it: that is sound")


def damaged(t):
    with chain() as vm:
        image = vm.disks / "web@one.qcow2"
        whole = image.read_bytes()
        patch(image, refcount_block(image), b"\0" * 64)
        code, found, error = verify(vm)
        t.ok(code == 1 and only(found, "web@one.qcow2", "errors in its tables"),
             f"refcounts are lost: {found}")
        t.ok("1 of 3 images has problems; the first:" in error and f"{image}: " in error,
             f"... the error counts and names it: {error}")
        patch(image, 0, whole)
        t.is_(verify(vm), (0, {}, ""), "put right again")
        patch(image, refcount_block(image) + 2 * 40, b"\0\1")
        with open(image, "r+b") as file:
            file.truncate(41 * 65536)
        os.utime(image, ns=(0, json.loads(next(Path(vm.state).glob("vms/*/records/one.json"))
                                          .read_text())["cuts"][0]["sealedTime"]))
        code, found, _ = verify(vm)
        t.ok(code == 0 and only(found, "web@one.qcow2", "clusters are lost", result="warning"),
             f"lost clusters do no harm: {found}")
        patch(image, 0, whole)
        with open(image, "r+b") as file:
            file.truncate(len(whole))
        patch(image, 72, struct.pack(">Q", 2))
        code, found, _ = verify(vm)
        t.ok(code == 1 and "marked as corrupt" in found["web@one.qcow2"][1], f"marked: {found}")
        patch(image, 0, b"nothing like it")
        code, found, _ = verify(vm)
        t.ok(code == 1 and "begin like one" in found["web@one.qcow2"][1], f"no header: {found}")
        t.is_(checks(vm)["web@one.qcow2"], "it cannot be read", "... qemu-img is not asked")
        patch(image, 0, whole)
        with open(image, "ab") as file:
            file.write(b"x")
            file.truncate(len(whole))
        code, found, _ = verify(vm)
        t.ok(code == 1 and only(found, "web@one.qcow2", "written to after it was sealed"),
             f"written to: {found}")


def headers(t):
    with chain() as vm:
        vm.kill()
        vm.vmfrost("recover")
        image = vm.disks / "web@two.qcow2"
        times = image.stat()

        def rebase(*words):
            run("qemu-img", "rebase", "-u", *words, image)
            os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
            return verify(vm)

        code, found, _ = rebase("-F", "raw", "-b", "web@one.qcow2")
        t.ok(code == 1 and only(found, "web@two.qcow2", "is raw, and it is qcow2"),
             f"the wrong format: {found}")
        code, found, _ = rebase("-F", "qcow2", "-b", "web.qcow2")
        t.ok(code == 1 and "a loop" in str(found), f"a loop: {found}")
        run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "web@one.qcow2",
            vm.disks / "web.qcow2")
        code, found, _ = verify(vm)
        t.ok(code == 1 and only(found, "web@two.qcow2", "is the current image and changes"),
             f"on the current image: {found}")
        run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "web@two.qcow2",
            vm.disks / "web.qcow2")
        code, found, _ = rebase("-F", "qcow2", "-b", "nowhere.qcow2")
        t.ok(code == 1 and "what it builds on is missing" in found["web@two.qcow2"][1],
             f"on nothing: {found}")
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "web@one.qcow2",
            vm.disks / "between.qcow2")
        code, found, _ = rebase("-F", "qcow2", "-b", "between.qcow2")
        t.ok(code == 1 and "stands between" in found["web@two.qcow2"][1],
             f"on a stranger in between: {found}")
        (vm.disks / "between.qcow2").unlink()
        make_image(vm.disks / "large.qcow2", size=1 << 30)
        code, found, _ = rebase("-F", "qcow2", "-b", "large.qcow2")
        t.ok(code == 0 and only(found, "web@two.qcow2", "smaller than the one", result="warning"),
             f"on a larger disk: {found}")
        code, found, _ = rebase("-F", "raw", "-b", "large.qcow2")
        t.ok(code == 0 and only(found, "web@two.qcow2", "looks like qcow2", result="warning"),
             f"which is called raw: {found}")
        hidden = vm.disks / ".web.qcow2.0123456789abcdef"
        os.link(vm.disks / "web@one.qcow2", hidden)
        code, found, _ = rebase("-F", "qcow2", "-b", hidden.name)
        t.ok(code == 0 and found["web@two.qcow2"][0] == "warning" and
             "does not stay" in found["web@two.qcow2"][1], f"by a hidden name: {found}")
        hidden.unlink()
        t.is_(rebase("-F", "qcow2", "-b", "web@one.qcow2"), (0, {}, ""), "as it was: sound")
        # Whatever a header names, qemu-img is not sent there.
        code, found, _ = rebase("-F", "raw", "-b", "nbd://127.0.0.1:1/x")
        t.ok(code == 0 and not found and checks(vm)["web@two.qcow2"] == "done",
             f"on a network disk, which nobody connects to: {found}")
        rebase("-F", "qcow2", "-b", "web@one.qcow2")
        run("qemu-img", "resize", "-q", image, "32M")
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
        code, found, _ = verify(vm)
        t.ok(code == 1 and "33554432 bytes, and not of 16777216" in found["web@two.qcow2"][1],
             f"resized: {found}")


def places(t):
    """Records without files, files without records."""
    with chain(("one", "two", "three")) as vm:
        stray = vm.disks / "web@four.qcow2"
        shutil.copy(vm.disks / "web@one.qcow2", stray)
        (vm.disks / "web@notes.txt").write_text("no image\n")
        make_image(vm.disks / "website@x.qcow2")
        code, found, _ = verify(vm)
        t.ok(code == 0 and only(found, "web@four.qcow2", "snapshot four, of which there is no "
                                "record", result="warning"), f"a file without a record: {found}")
        stray.unlink()
        hidden = vm.disks / ".web.qcow2.0123456789abcdef"
        make_image(hidden)
        code, found, _ = verify(vm)
        t.ok(code == 0 and list(found) == [hidden.name] and "no record knows it" in
             found[hidden.name][1], f"an overlay of nobody's: {found}")
        hidden.unlink()
        os.link(vm.disks / "web@one.qcow2", hidden)
        code, found, _ = verify(vm)
        t.ok(code == 0 and "a second name of" in found[hidden.name][1], f"a link: {found}")
        hidden.unlink()
        (vm.disks / "web@two.qcow2").unlink()
        code, found, _ = verify(vm)
        t.ok(code == 1 and "web@two.qcow2 is missing" in found["web@two.qcow2"][1] and
             "what it builds on is missing" in found["web@three.qcow2"][1] and
             "web@one.qcow2" not in found, f"a record without a file: {found}")
        records = Path(next(Path(vm.state).glob("vms/*/records")))
        (records / "one.json").write_text("{")
        record = json.loads((records / "three.json").read_text())
        record["cuts"][0]["sealed"] = 5
        (records / "three.json").write_text(json.dumps(record))
        record.update(name="empty", cuts=[])
        (records / "empty.json").write_text(json.dumps(record))
        code, found, _ = verify(vm)
        t.ok(code == 1 and found["one.json"][0] == "error" and
             "makes no sense" in found["three.json"][1] and
             "does not say which images" in found["empty.json"][1],
             f"records that nobody can read: {found}")


def in_use(t):
    with chain() as vm:
        vm.kill()
        vm.vmfrost("recover")
        with Qemu(["-drive", f"file={vm.disks}/web@one.qcow2,format=qcow2,if=none,id=web",
                   "-device", "virtio-blk-pci,drive=web,id=web-dev"], []):
            t.is_(checks(vm)["web@one.qcow2"], "another process uses it",
                  "an image that somebody else writes to is not checked")

    with chain(("one",)) as vm:
        stopped = vm.stop_at("flip", "snapshot", "@two")
        out = vm.vmfrost("verify")
        t.ok(out.code == 1 and "another vmfrost works on this VM" in out.error,
             f"not during an operation: {out.error}")
        t.is_(go_on(stopped).code, 0, "... which goes on")
        vm.vmfrost("snapshot", "@three", env={"VMFROST_TEST_AT": "kill:verify"})
        out = vm.vmfrost("verify")
        t.ok(out.code == 1 and "recover" in out.next, f"not after an interruption: {out.error}")
        vm.vmfrost("recover")
        t.is_(verify(vm), (0, {}, ""), "recovered, all is sound")

        # A program of that name which takes its time.
        folder = vm.folder / "bin"
        folder.mkdir()
        real = shutil.which("qemu-img")
        (folder / "qemu-img").write_text(f'#!/bin/sh\nmkdir -p {vm.folder}/began\nwhile ! test -e '
                                         f'{vm.folder}/go; do sleep 0.05; done\nexec {real} "$@"\n')
        os.chmod(folder / "qemu-img", 0o755)
        path = {"PATH": f'{folder}:{os.environ["PATH"]}'}
        command = vm.start_vmfrost("verify", env=path)
        wait_for(vm.folder / "began")
        t.is_(vm.vmfrost("snapshot", "@four").code, 0, "a snapshot can be taken meanwhile")
        (vm.folder / "go").touch()
        out = finish(command)
        t.ok(out.code == 0 and any("changed in the meantime" in warning
                                   for warning in out.document["warnings"]),
             f"... the end says so: {out.document.get('warnings')}")
        (vm.folder / "go").unlink()
        (vm.folder / "began").rmdir()
        command = vm.start_vmfrost("verify", env=path)
        wait_for(vm.folder / "began")
        command.signal(2)
        out = finish(command)
        t.ok(out.code == 1 and "stopped by request" in out.error, f"Ctrl-C ends it: {out.error}")
        (vm.folder / "go").touch()


def wait_for(path):
    wait_until(path.exists, what=f"{path}", interval=0.01)


def main():
    with Tap() as t:
        only_part = os.environ.get("ONLY", "")
        for part in (sound, own_nodes, damaged, headers, places, in_use):
            if only_part in part.__name__:
                part(t)


main()
