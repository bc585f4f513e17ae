#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Whether status tells when a VM's images are not what its records say, on a real QEMU."""

import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (CLUSTER, ROOT, SIZE, Qemu, Tap, blockdev, drive, go_on, lab, make_image,
                  read_out, run)


def found(vm):
    """What status has found: {type: (reason, message)}, the warnings in one text."""
    out = vm.vmfrost("status")
    conditions = {condition["type"]: (condition.get("reason"), condition.get("message"))
                  for condition in out.document.get("conditions", [])
                  if condition["type"] != "AgentConnected" and condition["status"] == "True"}
    return conditions, " / ".join(out.document.get("warnings", []))


def ready(vm):
    """readyToUse of all snapshots: what list, status and show say, which has to be the same."""
    listed = {record["name"]: record["readyToUse"] for record in vm.vmfrost("list").result}
    told = {record["name"]: record["readyToUse"]
            for record in vm.vmfrost("status").document["snapshots"]}
    shown = {name: vm.vmfrost("show", "@" + name).document["readyToUse"] for name in listed}
    return listed if listed == told == shown else (listed, told, shown)


def scribble(path):
    """Somebody writes to an image who does not mind that QEMU has it open."""
    run("qemu-io", "-c", "write -P 99 0 64k", "--image-opts",
        f"driver=qcow2,file.filename={path},file.locking=off")


def modified(t):
    with Qemu(drive("web") + drive("data"), ["web.qcow2", "data.qcow2"]) as vm:
        vm.write("web", 1)
        vm.take("one")
        vm.write("web", 2)
        vm.take("two")
        vm.write("web", 3)
        t.is_(found(vm), ({}, ""), "of a sound VM there is nothing to tell")
        image = vm.disks / "web@one.qcow2"
        before = image.stat()
        scribble(image)
        conditions, warnings = found(vm)
        t.is_({kind: reason for kind, (reason, _) in conditions.items()},
              {"SealedImageModified": "Modified"}, "a sealed image was written to")
        message = conditions["SealedImageModified"][1]
        t.ok(f"{image}" in message and "snapshot one" in message and "disk web" in message,
             f"... which one: {message}")
        t.ok("touch -d" in warnings and str(image) in warnings, "... and what to do")
        t.is_(ready(vm), {"one": True, "two": True}, "... it is in its place all the same")
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
        t.is_(found(vm), ({}, ""), "with its time given back it is good again")
        vm.restart()
        vm.write("web", 4)
        t.is_(found(vm), ({}, ""), "a new start of QEMU does not write to sealed images")
        vm.delete("two")
        t.is_(found(vm), ({}, ""), "nor does a deletion")
        vm.kill()
        conditions, warnings = found(vm)
        t.is_(conditions, {}, f"nothing is wrong with a VM that does not run: {warnings}")
        scribble(image)
        t.ok("SealedImageModified" in found(vm)[0], "... unless somebody wrote to its images")


def missing(t):
    with Qemu(blockdev("web") + drive("data"), ["web.qcow2", "data.qcow2"]) as vm:
        for name in ("one", "two", "three"):
            vm.write("web", 1)
            vm.take(name)
        (vm.disks / "web@two.qcow2").rename(vm.disks / "elsewhere.qcow2")
        conditions, warnings = found(vm)
        message = conditions.get("ImageMissing", ("", ""))[1]
        t.ok("web@two.qcow2 is missing" in message and "snapshot two" in message and
             "disk web" in message, f"an image was moved: {message}")
        t.ok(f"mv '{vm.disks}/elsewhere.qcow2' '{vm.disks}/web@two.qcow2'" in warnings,
             "... where to, and how to undo that")
        t.is_(ready(vm), {"one": True, "two": False, "three": False},
              "its snapshot is not ready, nor is what builds on it")
        record = vm.vmfrost("show", "@three").document
        condition = [condition for condition in record["conditions"]
                     if condition["type"] == "Ready"][0]
        t.ok(condition["status"] == "False" and condition["reason"] == "ImageMissing" and
             "web@two.qcow2" in condition["message"], f"... and says why: {condition['message']}")
        (vm.disks / "elsewhere.qcow2").rename(vm.disks / "web@two.qcow2")
        t.is_((found(vm), ready(vm)), (({}, ""), {"one": True, "two": True, "three": True}),
              "put back, all is well")

        (vm.disks / "web@two.qcow2").unlink()
        conditions, warnings = found(vm)
        t.ok("ImageMissing" in conditions and f"ln '{vm.disks}/.web.qcow2." in warnings and
             f"'{vm.disks}/web@two.qcow2'" in warnings,
             "one that was removed is there under its hidden name")
        run("sh", "-c", "ln " + warnings.partition(": ln ")[2])
        t.is_(found(vm), ({}, ""), "... the command that was told gives it its name back")

        vm.kill()
        shutil.copy(vm.disks / "web@one.qcow2", vm.disks / "copy")
        (vm.disks / "copy").rename(vm.disks / "web@one.qcow2")
        conditions, _ = found(vm)
        t.ok(conditions.get("ImageMissing", [""])[0] == "Replaced" and
             "is not the file that was sealed" in conditions["ImageMissing"][1],
             f"another file has its name: {conditions}")
        (vm.disks / "data@one.qcow2").unlink()
        (vm.disks / "web@one.qcow2").unlink()
        conditions, warnings = found(vm)
        message = conditions["ImageMissing"][1]
        t.ok("disk web" in message and "disk data" in message and "from a backup" in warnings,
             f"two are gone for good: {message}")
        t.is_(ready(vm), {"one": False, "two": False, "three": False}, "nothing is ready")
        (vm.disks / "web.qcow2").unlink()
        t.ok("the current image" in found(vm)[0]["ImageMissing"][1], "the current one is gone, too")


def golden(t):
    """What lies below the first snapshot is needed, too."""
    vm = Qemu(drive("web"), [])
    make_image(vm.disks / "golden.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "golden.qcow2",
        vm.disks / "web.qcow2")
    with vm:
        vm.take("one")
        t.is_(found(vm), ({}, ""), "a VM on a golden image")
        (vm.disks / "golden.qcow2").rename(vm.disks / "moved")
        conditions, _ = found(vm)
        t.ok("golden.qcow2 is missing, what" in conditions.get("ImageMissing", ("", ""))[1] and
             "web@one.qcow2 builds on" in conditions["ImageMissing"][1],
             f"that is gone: {conditions}")
        t.is_(ready(vm), {"one": False}, "... and the snapshot is of no use")


def damaged(t):
    with Qemu(drive("web")) as vm:
        vm.write("web", 1)
        vm.take("one")
        vm.kill()
        with open(vm.disks / "web@one.qcow2", "r+b") as image:
            image.truncate(50)
        conditions, warnings = found(vm)
        t.ok(conditions.get("ImageDamaged", [""])[0] == "Unreadable" and
             "cut short" in conditions["ImageDamaged"][1] and "vmfrost verify" in warnings,
             f"an image that is none any more: {conditions}")


def started_again(t):
    """Names that could not be flipped, and a launcher that nobody has changed."""
    with Qemu(drive("web", fmt="raw"), ["web.raw"]) as vm:
        vm.write("web", 1)
        vm.take("one")
        vm.write("web", 2)
        conditions, warnings = found(vm)
        t.is_(list(conditions), ["LauncherMustChange"], "the launcher has to change")
        t.ok(f"{vm.disks}/web+one.qcow2" in warnings, "... to what")
        second = vm.take("two")
        t.ok("LauncherMustChange" in [condition["type"] for condition in second["conditions"]],
             "the second snapshot says so, too, though its names could be flipped")
        t.is_(second["snapshotVolumes"]["included"][0].get("launcherMustChange"), True,
              "... for which disk")
        t.is_(list(found(vm)[0]), ["LauncherMustChange"], "... and so does status")

        vm.restart()
        conditions, warnings = found(vm)
        t.is_({kind: reason for kind, (reason, _) in conditions.items()},
              {"Diverged": "SealedImageOpened"}, "it was started with the old words")
        message = conditions["Diverged"][1]
        t.ok(f"{vm.disks}/web.raw, the image of snapshot one" in message and "disk web" in message,
             f"... what it writes to: {message}")
        t.ok("stop the VM now" in warnings and
             f"start it with {vm.disks}/web+one.qcow2 (format qcow2)" in warnings and
             f"since this start is in {vm.disks}/web.raw" in warnings, f"... what to do: {warnings}")
        vm.write("web", 3)
        t.is_(sorted(found(vm)[0]), ["Diverged", "SealedImageModified"], "it has written")
        vm.kill()
        conditions, warnings = found(vm)
        t.ok(sorted(conditions) == ["Diverged", "SealedImageModified"] and
             "the VM ran last on" in warnings, "it is remembered when it is stopped")
        t.is_([record["current"] for record in vm.vmfrost("list").result], [False, False],
              "its state goes on from no snapshot")

        vm.words = drive("web", "web+one.qcow2")
        vm.start()
        t.is_(sorted(found(vm)[0]), ["SealedImageModified"], "started as it should be")
        t.is_([record["name"] for record in vm.vmfrost("list").result if record["current"]], ["two"],
              "... it goes on from the last snapshot")
        third = vm.take("three")
        t.ok("LauncherMustChange" not in [condition["type"] for condition in third["conditions"]],
             "a launcher that was changed has not to be changed again")


def wrong_image(t):
    """Launchers that open something else."""
    with Qemu(drive("web")) as vm:
        vm.write("web", 1)
        vm.take("one")
        vm.write("web", 2)
        vm.kill()
        words = vm.words
        vm.words = drive("web", "web@one.qcow2")
        vm.start()
        conditions, warnings = found(vm)
        t.ok(conditions.get("Diverged", [""])[0] == "SealedImageOpened" and
             f"start it with {vm.disks}/web.qcow2" in warnings,
             f"QEMU was started from a snapshot: {conditions}")
        vm.kill()
        vm.words = drive("web", "web@one.qcow2", options=",readonly=on", device="scsi-hd")
        vm.words = ["-device", "virtio-scsi-pci"] + vm.words
        vm.start()
        t.ok("Diverged" not in found(vm)[0], "... read-only, which harms nobody")
        vm.kill()

        make_image(vm.disks / "other.qcow2")
        vm.words = drive("web", "other.qcow2")
        vm.start()
        conditions, warnings = found(vm)
        t.ok(conditions.get("Diverged", [""])[0] == "OtherImage" and
             f"{vm.disks}/other.qcow2" in conditions["Diverged"][1] and
             f"{vm.disks}/web.qcow2" in warnings, f"QEMU was started from another image: {warnings}")
        vm.kill()
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "web@one.qcow2",
            vm.disks / "branch.img")
        vm.words = drive("web", "branch.img")
        vm.start()
        t.ok("Diverged" not in found(vm)[0], "from a branch of its own snapshot")
        vm.kill()
        vm.words = words


def parted(t):
    """The visible name leads to another file than the one that QEMU has open."""
    with Qemu(drive("web")) as vm:
        vm.write("web", 1)
        vm.take("one")
        make_image(vm.disks / "new.qcow2")
        (vm.disks / "web.qcow2").rename(vm.disks / "kept.qcow2")
        (vm.disks / "new.qcow2").rename(vm.disks / "web.qcow2")
        conditions, warnings = found(vm)
        t.ok(conditions.get("Diverged", [""])[0] == "NameParted" and
             f"goes to {vm.disks}/.web.qcow2." in conditions["Diverged"][1] and
             "stop the VM now" in warnings, f"a file was put in the place of the disk: {warnings}")
        (vm.disks / "kept.qcow2").rename(vm.disks / "web.qcow2")
        t.is_(found(vm), ({}, ""), "put back, all is well")
        (vm.disks / "web.qcow2").rename(vm.disks / "kept.qcow2")
        t.is_(found(vm)[0].get("Diverged", [""])[0], "NameParted", "the name is gone")
        (vm.disks / "kept.qcow2").rename(vm.disks / "web.qcow2")

        vm.restart()
        t.is_(found(vm), ({}, ""), "a QEMU that knows the disk by its visible name")
        (vm.disks / "web.qcow2").rename(vm.disks / "kept.qcow2")
        conditions, warnings = found(vm)
        t.ok(conditions.get("Diverged", [""])[0] == "NameParted" and "/fd)" in warnings,
             f"its name is gone: {warnings}")
        (vm.disks / "kept.qcow2").unlink()
        make_image(vm.disks / "web.qcow2")
        vm.restart()
        (vm.disks / "web.qcow2").unlink()
        conditions, warnings = found(vm)
        t.ok(conditions.get("Diverged", [""])[0] == "NoName" and "do not stop the VM" in warnings,
             f"a disk without any name is gone when QEMU ends: {warnings}")


def deep(t):
    with Qemu(drive("web")) as vm:
        for count in range(1, 16):
            vm.take(f"s{count}")
        t.is_(found(vm), ({}, ""), "a chain of 16 images")
        record = vm.take("s16")
        conditions, warnings = found(vm)
        t.ok("17 images" in conditions.get("ChainDeep", ("", ""))[1] and
             "delete snapshots" in warnings, f"one of 17: {warnings}")
        t.ok(any("16 backing files" in warning for warning in
                 vm.take("s17")["warnings"]), "a snapshot of it warns, too")
        t.is_(record["warnings"], [], "... not the one before")
        out = vm.vmfrost("add", "deep", "--set", "warn-depth=18")
        t.is_((out.code, found(vm)), (0, ({}, "")), "a VM can have another limit")
        vm.vmfrost("add", "deep", "--set", "warn-depth=17")
        vm.kill()
        t.ok("18 images" in found(vm)[0].get("ChainDeep", ("", ""))[1],
             "of a VM that does not run, too")


def old(t):
    with Qemu(drive("web")) as vm:
        for name in ("one", "two"):
            vm.take(name)
            file, = Path(vm.state).glob(f"vms/*/records/{name}.json")
            record = json.loads(file.read_text())
            day = 8 if name == "one" else 6
            record["creationTime"] = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z",
                                                   time.gmtime(time.time() - day * 24 * 3600))
            file.write_text(json.dumps(record))
        conditions, warnings = found(vm)
        t.ok("snapshot one is old" in conditions.get("SnapshotOld", ("", ""))[1] and
             "two" not in conditions["SnapshotOld"][1] and "vmfrost delete" in warnings,
             f"a snapshot of eight days: {warnings}")
        vm.vmfrost("add", "old", "--set", "warn-age=5d")
        t.ok("2 snapshots are old; the oldest, one," in found(vm)[0]["SnapshotOld"][1],
             "five days are allowed")
        vm.vmfrost("add", "old", "--set", "warn-age=9d")
        t.is_(found(vm), ({}, ""), "nine days are allowed")


def full(t):
    with Qemu(drive("web")) as vm:
        vm.take("one")
        vm.write("web", 1, 0, SIZE // CLUSTER * 8 // 10)
        t.is_(found(vm), ({}, ""), "an overlay that holds most of its disk")
        vm.write("web", 1, 0, SIZE // CLUSTER)
        conditions, warnings = found(vm)
        t.ok(f"{vm.disks}/web.qcow2 takes up" in conditions.get("OverlayNearlyFull", ("", ""))[1]
             and "costs as much as a copy" in warnings, f"one that holds all of it: {warnings}")


def elsewhere(t):
    """A QEMU that is reached over TCP may run on another host: what is not here proves nothing."""
    folder = ROOT / "remote"
    folder.mkdir()
    os.chmod(folder, 0o777)
    make_image(folder / "web.qcow2")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"tcp:127.0.0.1:{listening.getsockname()[1]}"
    words = [*drive("web", f"{folder}/web.qcow2"), "-qmp", f"{address},server=on,wait=off"]
    with Qemu(words, []) as vm:
        def there(verb, *more):
            return read_out(lab.start_vmfrost([verb, "--qmp", address, *more, "--json"],
                                              state_dir=vm.state).wait(60))

        def conditions():
            return [condition["type"] for condition in there("status").document["conditions"]]

        t.is_(there("snapshot", "@one").code, 0, "a snapshot over TCP")
        folder.rename(ROOT / "gone")
        t.is_(conditions(), ["AgentConnected"], "no image is here, and nobody says that one is gone")
        t.is_([record["readyToUse"] for record in there("list").result], [True], "... nor list")
        out = there("verify")
        t.ok(out.code == 0 and all("not on this host" in image["problems"][0]
                                   for image in out.document["images"]),
             f"... and verify says so: {out.error}")
        (ROOT / "gone").rename(folder)
        vm.restart()
        t.is_(conditions(), ["AgentConnected", "Diverged"], "started with the old words")


def in_flux(t):
    """While an operation is at work, names lead anywhere."""
    with Qemu(drive("web")) as vm:
        vm.take("one")
        stopped = vm.stop_at("flip", "snapshot", "@two")
        conditions, warnings = found(vm)
        t.ok(not conditions and "another vmfrost" in warnings, "during a snapshot nothing is judged")
        t.is_(go_on(stopped).code, 0, "... which goes on")
        t.is_(found(vm), ({}, ""), "... and is in order")
        vm.vmfrost("snapshot", "@three", env={"VMFROST_TEST_AT": "kill:verify"})
        t.is_(found(vm)[0], {}, "nor after one that was interrupted")
        vm.vmfrost("recover")
        t.is_((found(vm), ready(vm)), (({}, ""), {"one": True, "two": True, "three": True}),
              "recovered, it is in order, and its image is known to be as it was sealed")
        times = [json.loads(file.read_text())["cuts"][0].get("sealedTime") for file in
                 Path(vm.state).glob("vms/*/records/three.json")]
        t.is_(times, [(vm.disks / "web@three.qcow2").stat().st_mtime_ns], "... by its time")


def drawn(t):
    """Snapshots as a tree."""
    def listed(command="list", locale="C.UTF-8", columns=slice(1, None)):
        done = lab.start_vmfrost([command, "web"], env={"LC_ALL": locale},
                                 state_dir=vm.state).wait(60)
        lines = done.out.splitlines()
        if command == "status":
            lines = lines[[line.split()[:1] for line in lines].index(["SNAPSHOT"]):]
        # What stands in between does not matter here.
        return [(line.partition("Succeeded")[0].split(" ", 2)[-1].rstrip(),
                 line.rpartition("  ")[2] if "<-" in line or "missing" in line else "")
                for line in lines[columns]]

    def parents():
        return {record["name"]: (record["parent"], record["current"])
                for record in vm.vmfrost("list").result}

    with Qemu(drive("web") + drive("data"), ["web.qcow2", "data.qcow2"]) as vm:
        vm.vmfrost("add", "web")
        t.is_(vm.vmfrost("list").result, [], "no snapshots, no tree")
        vm.take("one", "--exclude", "data")
        vm.write("web", 1)
        vm.take("two")
        vm.vmfrost("snapshot", "@failed", "--exclude", "web", "--exclude", "data")
        here = "<- you are here"
        t.is_(parents(), {"one": (None, False), "two": ("one", True)}, "a straight chain")
        t.is_(listed(), [("one", ""), ("two", here)], "... is a plain list")

        vm.vmfrost("restore", "@one", "--reset", "--keep-name", "kept")
        t.is_(parents(), {"one": (None, True), "two": ("one", False), "kept": ("two", False)},
              "restored to its beginning")
        vm.take("three")
        vm.vmfrost("restore", "@two", "--reset", "--discard")
        vm.take("four")
        t.is_(parents(), {"one": (None, False), "two": ("one", False), "kept": ("two", False),
                          "three": ("one", False), "four": ("two", True)}, "two branches")
        wanted = [("one", ""), ("├─ two", ""), ("│  ├─ kept", ""), ("│  └─ four", here),
                  ("└─ three", "")]
        t.is_(listed(), wanted, "... are drawn")
        t.is_(listed("status"), wanted, "... by status, too")
        t.is_(listed(locale="C"), [("one", ""), ("|- two", ""), ("|  |- kept", ""),
                                   ("|  `- four", here), ("`- three", "")], "... in ASCII")
        (vm.disks / "web@two.qcow2").rename(vm.disks / "moved")
        lost = "an image of it is missing"
        t.is_(listed(), [("one", ""), ("three", ""), ("two", lost), ("├─ kept", lost),
                         ("└─ four", lost)], "... and what cannot be used any more")
        (vm.disks / "moved").rename(vm.disks / "web@two.qcow2")

    # Headers that nobody writes: on one disk two is below one, on the other one below two.
    with Qemu(drive("web") + drive("data"), ["web.qcow2", "data.qcow2"]) as vm:
        vm.vmfrost("add", "web")
        vm.take("one")
        vm.take("two")
        vm.kill()
        run("qemu-img", "rebase", "-u", "-b", "", vm.disks / "data@two.qcow2")
        run("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", "data@two.qcow2",
            vm.disks / "data@one.qcow2")
        t.is_({name: parent for name, (parent, _) in parents().items()},
              {"one": "two", "two": "one"}, "parents that are each other's")
        t.is_([name for name, _ in listed()], ["one", "two"], "... end in a list all the same")


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (modified, missing, golden, damaged, started_again, wrong_image, parted, deep,
                     old, full, elsewhere, in_flux, drawn):
            if only in part.__name__:
                part(t)


main()
