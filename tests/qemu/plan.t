#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Which disks a snapshot takes, on a real QEMU with disks of all kinds; and under which names."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import (MIB, ROOT, SIZE, LabError, Qemu, Tap, blockdev, drive, go_on, image_info, lab,
                  loop_device, make_image, run, wait_until)

THROTTLED = ["-object", "throttle-group,id=slow,x-iops-total=100000",
             "-blockdev", "driver=file,filename=web.qcow2,node-name=web-file",
             "-blockdev", "driver=qcow2,file=web-file,node-name=web",
             "-blockdev", "driver=throttle,throttle-group=slow,file=web,node-name=web-throttle",
             "-device", "virtio-blk-pci,drive=web-throttle,id=web-dev"]


def disks_of(out):
    return {disk["name"]: disk for disk in out.document.get("disks", [])}


def all_kinds(t):
    """Everything that can be plugged in, at once."""
    folder = ROOT / "a folder"
    folder.mkdir()
    (folder / "file").write_text("a file of the host\n")
    words = [
        *drive("web"), *blockdev("data"),
        "-drive", "file=virtio.qcow2,if=virtio,format=qcow2",
        "-drive", "file=ide.qcow2,if=ide,index=1,format=qcow2",
        "-device", "virtio-scsi-pci,id=scsi0", *drive("scsi", device="scsi-hd"),
        *blockdev("scsib", device="scsi-hd"),
        *drive("nvme", device="nvme", device_options=",serial=x"),
        "-device", "qemu-xhci", *drive("usb", device="usb-storage"),
        "-device", "ide-cd,id=cd0,bus=ide.2",
        "-drive", "file=cd.raw,format=raw,if=none,id=cd1,media=cdrom",
        "-device", "ide-cd,drive=cd1,id=cd1-dev,bus=ide.3",
        "-device", "isa-fdc,id=fdc", *drive("fd", "fd.raw", "raw", device="floppy"),
        "-device", "floppy,id=fd1",
        *drive("ro", options=",readonly=on"), *drive("tmp", options=",snapshot=on"),
        "-drive", f"file=fat:rw:{folder},format=raw,if=none,id=fat",
        "-device", "virtio-blk-pci,drive=fat,id=fat-dev",
        "-drive", "file=lonely.qcow2,format=qcow2,if=none,id=lonely",
        "-object", "throttle-group,id=slow,x-iops-total=100000",
        "-blockdev", "driver=file,filename=thr.qcow2,node-name=thr-file",
        "-blockdev", "driver=qcow2,file=thr-file,node-name=thr",
        "-blockdev", "driver=throttle,throttle-group=slow,file=thr,node-name=thr-top",
        "-device", "virtio-blk-pci,drive=thr-top,id=thr-dev",
        "-blockdev", "driver=file,filename=cor.qcow2,node-name=cor-file",
        "-blockdev", "driver=qcow2,file=cor-file,node-name=cor",
        "-blockdev", "driver=copy-on-read,file=cor,node-name=cor-top",
        "-device", "virtio-blk-pci,drive=cor-top,id=cor-dev",
        "-blockdev", "driver=file,filename=two.qcow2,node-name=two-file",
        "-blockdev", "driver=qcow2,file=two-file,node-name=two",
        "-device", "virtio-blk-pci,drive=two,id=two1,share-rw=on",
        "-device", "virtio-blk-pci,drive=two,id=two2,share-rw=on",
        "-drive", "file=slow.qcow2,format=qcow2,if=virtio,throttling.iops-total=100000",
        *drive("plain", fmt="raw"),
        "-drive", "driver=file,filename=bare.raw,if=none,id=bare",
        "-device", "virtio-blk-pci,drive=bare,id=bare-dev",
    ]
    flip = {"web": "web", "data-dev": "data", "virtio0": "virtio", "ide1-hd0": "ide",
            "scsi": "scsi", "scsib-dev": "scsib", "nvme": "nvme", "usb": "usb", "thr-dev": "thr",
            "two1": "two", "virtio1": "slow"}
    new_file = {"plain": "plain", "fd": "fd", "bare": "bare"}
    left_out = {"cd0": "Empty", "cd1": "Cdrom", "fd1": "Empty", "ro": "ReadOnly",
                "tmp": "Temporary", "fat": "Vvfat", "lonely": "Unattached",
                "cor-dev": "CopyOnRead", "two2": "Duplicate"}
    images = [f"{name}.qcow2" for name in flip.values()] + [
        "ro.qcow2", "tmp.qcow2", "lonely.qcow2", "cor.qcow2", "plain.raw", "fd.raw", "cd.raw",
        "bare.raw"]
    with Qemu(words, images) as vm:
        out = vm.vmfrost("status")
        disks = disks_of(out)
        t.is_(sorted(disks), sorted({**flip, **new_file, **left_out}), "status shows every disk")
        t.is_({name: disk.get("reason") for name, disk in disks.items() if not disk["eligible"]},
              left_out, "... those that are left out with their reasons")
        t.ok(all(disks[name].get("message") for name in left_out), "... and a sentence each")
        t.is_({name: disk.get("naming") for name, disk in disks.items() if disk["eligible"]},
              {**{name: "flip" for name in flip}, **{name: "new-file" for name in new_file}},
              "... the others with what becomes of their names")
        out = vm.vmfrost("check")
        t.ok(out.code == 0 and disks_of(out) == disks and out.document.get("wouldSucceed"),
             f"check shows the same, and would succeed {out.error}")
        before = vm.names()
        graph = vm.graph()
        t.ok(vm.names() == before and vm.graph() == graph, "... and has changed nothing")
        for method in ("existing", "preopened"):
            out = vm.vmfrost("snapshot", f"@{method}", "--method", method)
            volumes = out.document.get("snapshotVolumes", {})
            t.is_((out.code, out.error), (0, ""), f"a snapshot of all of them, {method}")
            t.is_({volume["name"] for volume in volumes.get("included", [])},
                  {*flip, *new_file}, "... its record lists those that are in it")
            t.is_({volume["name"]: volume["reason"] for volume in volumes.get("excluded", [])},
                  left_out, "... and those that are not, with their reasons")
            t.ok(all(volume["message"] for volume in volumes["excluded"]), "... in words, too")
            t.ok("LauncherMustChange" in [condition["type"] for condition in
                                          out.document["conditions"]],
                 "... and that the launcher has to change: a file is new, or was at the first one")
            t.is_({volume["name"] for volume in volumes.get("included", [])
                   if volume.get("launcherMustChange")}, set(new_file),
                  "... for which disks")
            missing = [name for name in flip.values()
                       if not (vm.disks / f"{name}@{method}.qcow2").exists()]
            t.is_(missing, [], "... every image is there")
            if out.code:
                break
        headers = {}
        for name in new_file.values():
            info = image_info(vm.disks / f"{name}+existing@preopened.qcow2")
            headers[name] = info["backing-filename"], info["backing-filename-format"]
        t.is_(headers, {name: (f"{name}.raw", "raw") for name in new_file.values()},
              "overlays on raw images name them, and that they are raw")


def nothing_to_take(t):
    words = ["-drive", "file=web.qcow2,format=qcow2,if=none,id=lonely", "-device",
             "ide-cd,id=cd0", *drive("ro", options=",readonly=on")]
    with Qemu(words, ["web.qcow2", "ro.qcow2"]) as vm:
        for verb in ("check", "snapshot"):
            out = vm.vmfrost(verb, "@one")
            t.ok(out.code == 1 and all(word in out.error for word in (
                "lonely: no device uses it", "cd0: no medium is in it", "ro: it is read-only")),
                 f"{verb}: no disk can be taken: refused, with each disk and its reason")
        t.is_((vm.vmfrost("list").result, vm.names()), ([], ["ro.qcow2", "web.qcow2"]),
              "... no record, no file")
    with Qemu([], []) as vm:
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code == 1 and "no disks" in out.error, f"a VM without disks: {out.error}")


def firmware(t):
    """Flash is not taken, even when it can be written to."""
    vm = Qemu(drive("web") + ["-drive", "if=pflash,format=raw,unit=0,file=code.fd,readonly=on",
                              "-drive", "if=pflash,format=raw,unit=1,file=vars.fd"])
    make_image(vm.disks / "code.fd", "raw", MIB)
    make_image(vm.disks / "vars.fd", "raw", MIB)
    with vm:
        record = vm.take("one")
        t.is_({volume["name"]: volume["reason"] for volume in
               record["snapshotVolumes"]["excluded"]},
              {"pflash0": "Firmware", "pflash1": "Firmware"}, "firmware flash is left out")


def copy_on_read(t):
    """-drive copy-on-read=on cannot be seen in any of QEMU's answers."""
    with Qemu(drive("web") + drive("cor", options=",copy-on-read=on"),
              ["web.qcow2", "cor.qcow2"]) as vm:
        for disk in ("web", "cor"):
            vm.write(disk, 1)
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code == 1 and "disk cor" in out.error and "--exclude cor" in out.next,
             f"-drive copy-on-read=on is found out by the result ({out.error} | {out.next})")
        t.is_((vm.names(), [vm.sees(disk, 1) for disk in ("web", "cor")]),
              (["cor.qcow2", "web.qcow2"], [[1], [1]]), "... and all is undone")
        vm.vmfrost("delete", "@one")
        vm.take("one", "--exclude", "cor")
        t.ok(True, "... without it, the others can be taken")


def throttled(t):
    """The overlay goes below a throttle filter, which stays on top."""
    for method in ("existing", "preopened"):
        with Qemu(THROTTLED) as vm:
            vm.write("web", 1)
            graph = vm.graph()
            vm.take("one", "--method", method)
            vm.write("web", 2, 1)
            t.is_((vm.root("web")["node-name"], vm.root("web")["drv"]), ("web-throttle", "throttle"),
                  f"{method}: the throttle stays on top")
            info = image_info(vm.disks / "web.qcow2")
            t.is_((info["backing-filename"], info["backing-filename-format"]),
                  ("web@one.qcow2", "qcow2"), "... the overlay stands on the image, not on a filter")
            t.is_(([1, 0], [1, 2]), (vm.read("web@one.qcow2", 2), vm.read("web.qcow2", 2)),
                  "... and both hold what they should")
            vm.take("two", "--method", method)
            vm.delete("two")
            vm.delete("one")
            t.is_((vm.graph(), vm.names(), vm.sees("web", 2)), (graph, ["web.qcow2"], [1, 2]),
                  "... both can be deleted, and all is as before")
            command = vm.stop_at("verify", "snapshot", "@no", "--method", method, "--deadline", "3s")
            time.sleep(3.1)
            out = go_on(command)
            t.is_((out.code, vm.graph(), vm.names()), (4, graph, ["web.qcow2"]),
                  "... one that is too late is rolled back below the filter as well")
            vm.take("three", "--method", method)
            vm.restart()
            t.is_(vm.sees("web", 2), [1, 2], "... the launcher's words still work")
            vm.delete("three")
            vm.restart()
            vm.vmfrost("recover")
            t.is_((vm.names(), vm.sees("web", 2)), (["web.qcow2"], [1, 2]),
                  "... and so does a deletion then")


def encrypted(t):
    """An overlay would hold the guest's data in the clear."""
    secret = "secret,id=key,data=abc"
    for attach, words in (
            ("drive", drive("web", options=",encrypt.key-secret=key")),
            ("blockdev", blockdev("web", options=",encrypt.format=luks,encrypt.key-secret=key"))):
        vm = Qemu(["-object", secret, *words, *drive("data")], ["data.qcow2"])
        run("qemu-img", "create", "-q", "--object", secret, "-f", "qcow2", "-o",
            "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
            vm.disks / "web.qcow2", SIZE)
        with vm:
            name = "web" if attach == "drive" else "web-dev"
            disk = disks_of(vm.vmfrost("status"))[name]
            t.ok(not disk["eligible"] and "encrypted" in disk["message"],
                 f"{attach}: status says that an encrypted disk cannot be taken")
            for verb in ("check", "snapshot"):
                out = vm.vmfrost(verb, "@one")
                t.ok(out.code == 1 and f"disk {name}" in out.error and "encrypted" in out.error and
                     f"--exclude {name}" in out.next, f"... {verb} is refused, with what to do")
            t.is_(vm.names(), ["data.qcow2", "web.qcow2"], "... nothing is left")
            vm.take("one", "--exclude", name)
            t.is_(vm.names(), [".data.qcow2.ID", "data.qcow2", "data@one.qcow2", "web.qcow2"],
                  "... the other one can be taken")


def raw_file(t):
    """A launcher that says format=raw cannot open an overlay: that gets a new name."""
    for attach, form in (("drive", drive), ("blockdev", blockdev)):
        with Qemu(form("web", fmt="raw"), ["web.raw"]) as vm:
            vm.write("web", 1)
            record = vm.take("one")
            vm.write("web", 2, 1)
            volume, = record["snapshotVolumes"]["included"]
            new = vm.disks / "web+one.qcow2"
            t.is_((volume["naming"], volume["image"], volume["current"], volume["format"]),
                  ("new-file", str(vm.disks / "web.raw"), str(new), "raw"),
                  f"raw, {attach}: the record says which file is which")
            t.ok("LauncherMustChange" in [condition["type"] for condition in record["conditions"]
                                          if condition["status"] == "True"],
                 "... and that the launcher has to change")
            info = image_info(new)
            t.is_((vm.names(), info["backing-filename"], info["backing-filename-format"]),
                  (["web+one.qcow2", "web.raw"], "web.raw", "raw"), "... names and header are right")
            t.is_((vm.read("web+one.qcow2", 2), (vm.disks / "web.raw").read_bytes()[65536]),
                  ([1, 2], 0), "... and so is the content")
            vm.take("two")
            t.is_(vm.names(), [".web+one.qcow2.ID", "web+one.qcow2", "web+one@two.qcow2",
                               "web.raw"], "... the next one on the new file turns names")
            vm.delete("two")
            t.is_(vm.sees("web", 2), [1, 2], "... and can be deleted")
            out = vm.vmfrost("delete", "@one")
            t.ok(out.code == 0 and any("web.raw" in line for line in out.document["warnings"]),
                 "... and the first one, after which the launcher is right again, and is told so")
            t.is_((vm.names(), vm.sees("web", 2)), (["web.raw"], [1, 2]), "... nothing is left")
            vm.restart()
            t.is_(vm.sees("web", 2), [1, 2], "... and the unchanged launcher starts what was there")


def settings(vm, overlays):
    """Tell vmfrost of the folder for overlays."""
    overlays.mkdir()
    done = lab.vmfrost("add", "known", "--qmp", vm.socket, "--set", f"overlayFolder={overlays}",
                       state_dir=vm.state)
    if done.code:
        raise LabError(f"add: {done.err}")


def block_device(t):
    for attach in ("drive", "blockdev"):
        vm = Qemu([], [])
        device = loop_device(t, vm)
        if not device:
            return
        vm.words = ["-drive", f"file={device},format=raw,if=none,id=web"]
        if attach == "blockdev":
            vm.words = ["-blockdev", f"driver=host_device,filename={device},node-name=file",
                        "-blockdev", "driver=raw,file=file,node-name=web"]
        vm.words += ["-device", "virtio-blk-pci,drive=web,id=web-dev"]
        try:
            vm.start()
            vm.write("web", 1)
            out = vm.vmfrost("snapshot", "@one")
            t.ok(out.code == 1 and device in out.error and "overlayFolder" in out.next,
                 f"a block device, {attach}: refused without a folder for its overlay")
            overlays = vm.folder / "overlays"
            settings(vm, overlays)
            record = vm.take("one")
            vm.write("web", 2)
            volume, = record["snapshotVolumes"]["included"]
            new = Path(volume["current"])
            info = image_info(new)
            t.is_((new.parent, volume["image"], info["backing-filename"],
                   info["backing-filename-format"]), (overlays, device, device, "raw"),
                  "... with one, the overlay is there, and stands on the device")
            with open(device, "rb") as raw:
                t.is_((vm.sees("web", 1), raw.read(1)), ([2], b"\1"),
                      "... and the device does not change any more")
        finally:
            vm.kill()
            run("losetup", "--detach", device)
            vm.__exit__()


def network(t):
    """A disk that is no file: NBD."""
    vm = Qemu([], ["web.qcow2"])
    socket = vm.run / "nbd"
    server = lab.spawn(["qemu-nbd", "-t", "-e", "4", "-k", socket, "-f", "qcow2",
                        vm.disks / "web.qcow2"])
    wait_until(socket.exists, what="qemu-nbd")
    vm.words = ["-drive", f"file=nbd+unix:///?socket={socket},format=raw,if=none,id=web",
                "-device", "virtio-blk-pci,drive=web,id=web-dev"]
    with vm:
        vm.write("web", 1)
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code == 1 and "disk web" in out.error and "overlayFolder" in out.next,
             "NBD without a folder for overlays: refused, with what to do")
        overlays = vm.folder / "overlays"
        settings(vm, overlays)
        record = vm.take("one")
        vm.write("web", 2, 1)
        overlay, = overlays.iterdir()
        info = image_info(overlay)
        t.is_((info["backing-filename-format"], record["snapshotVolumes"]["included"][0]["current"]),
              ("raw", str(overlay)), "... with one, it can be taken")
        t.is_(vm.sees("web", 2), [1, 2], "... the guest has all it wrote")
        run("qemu-img", "convert", "-U", "-O", "raw", overlay, vm.run / "raw")
        data = (vm.run / "raw").read_bytes()
        t.is_((data[0], data[65536]), (1, 2), "... and the overlay opens from its header")
    lab._end(server)


def where_files_are(t):
    """QEMU's own folder, symbolic links, other hard links."""
    def story(name, vm, folder=None, linked=False):
        folder = folder or vm.disks
        with vm:
            vm.write("web", 1)
            out = vm.vmfrost("snapshot", "@one")
            if not t.is_((out.code, out.error), (0, ""), f"{name}: a snapshot"):
                return
            vm.write("web", 2, 1)
            names = sorted(entry.name for entry in folder.iterdir()
                           if not entry.name.startswith(".") and not entry.is_symlink()
                           and entry.name.endswith("qcow2"))
            t.is_(names, ["web.qcow2", "web@one.qcow2"], "... its files lie beside the real one")
            header = image_info(folder / "web.qcow2")["backing-filename"]
            t.is_(header, str(folder / "web@one.qcow2") if linked else "web@one.qcow2",
                  "... the header names " + ("its whole path" if linked else "only the file"))
            vm.take("two")
            vm.write("web", 3, 2)
            vm.restart()
            t.is_(vm.sees("web", 3), [1, 2, 3], "... the launcher's words still work, after two")
            vm.delete("two")
            vm.take("three")
            vm.restart()
            t.is_(vm.sees("web", 3), [1, 2, 3], "... one deleted, another taken: again")
            vm.delete("three")
            vm.delete("one")
            vm.restart()
            vm.vmfrost("recover")
            t.is_((vm.sees("web", 3), sorted(entry.name for entry in folder.iterdir()
                                             if "web" in entry.name and not entry.is_symlink())),
                  ([1, 2, 3], ["web.qcow2"]), "... deleted, nothing is left")

    for attach, form in (("drive", drive), ("blockdev", blockdev)):
        vm = Qemu(form("web", "disks/web.qcow2"))
        vm.cwd = vm.folder
        story(f"{attach}, relative to QEMU's folder", vm)
        vm = Qemu([])
        vm.words = form("web", str(vm.disks / "web.qcow2"))
        vm.cwd = "/"
        story(f"{attach}, an absolute name", vm)
        vm = Qemu(form("web", "../disks/./web.qcow2"))
        story(f"{attach}, a winding name", vm)
        vm = Qemu(form("web", "link.qcow2"), [])
        (vm.folder / "real").mkdir(mode=0o777)
        make_image(vm.folder / "real" / "web.qcow2")
        (vm.disks / "link.qcow2").symlink_to("../real/web.qcow2")
        real = vm.folder / "real"
        story(f"{attach}, a symbolic link to the image", vm, real, True)
        vm = Qemu(form("web", "link.qcow2"))
        (vm.disks / "link.qcow2").symlink_to("web.qcow2")
        story(f"{attach}, a symbolic link beside the image", vm)
        vm = Qemu(form("web", "here/web.qcow2"), [])
        (vm.folder / "real").mkdir(mode=0o777)
        make_image(vm.folder / "real" / "web.qcow2")
        (vm.disks / "here").symlink_to(vm.folder / "real")
        story(f"{attach}, a symbolic link to the folder", vm, vm.folder / "real")
    with Qemu(drive("web")) as vm:
        (vm.disks / "web.qcow2").rename(vm.disks / "moved.qcow2")
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code == 1 and "web.qcow2 does not exist any more" in out.error and
             vm.names() == ["moved.qcow2"], "the image was moved: refused, and it says so")
        make_image(vm.disks / "web.qcow2")
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code == 1 and "web.qcow2 is not the file that QEMU has open" in out.error and
             vm.names() == ["moved.qcow2", "web.qcow2"], "... also when another one has its name")


def daemonized(t):
    """-daemonize changes QEMU's folder: relative names then lead nowhere."""
    vm = Qemu(drive("web"))
    pidfile = vm.run / "pid"
    try:
        for file, code in (("web.qcow2", 1), (str(vm.disks / "web.qcow2"), 0)):
            vm.words = drive("web", file)
            run(*[word for word in vm.argv if word not in ("stdbuf", "-o0")], "-daemonize",
                "-pidfile", pidfile, cwd=vm.disks)
            out = vm.vmfrost("snapshot", "@one")
            if code:
                t.ok(out.code == 1 and "-daemonize" in out.next and "absolute" in out.next,
                     f"-daemonize with a relative name: refused, with what to do ({out.error})")
            else:
                t.is_((out.code, out.error), (0, ""), "-daemonize with an absolute name")
                t.is_(vm.vmfrost("delete", "@one").code, 0, "... deleted, too")
            vm.qmp("quit")
            vm.hang_up()
            wait_until(lambda: not pidfile.exists(), what="the end of QEMU")
            for path in vm.run.glob("*.sock"):
                path.unlink()
    finally:
        if pidfile.exists():
            os.kill(int(pidfile.read_text()), 9)
        vm.__exit__()


def odd_names(t):
    """File names that QEMU, its headers, shells and JSON have their own ideas of."""
    for number, name in enumerate((
            "my disk.qcow2", "a,b,,c.qcow2", "a:b.qcow2", "ünï 日本.qcow2", "-dash.qcow2", "noext",
            "a@b.qcow2", "a%20b.qcow2", "'q\"uote.qcow2", "back\\slash.qcow2", ".hidden.qcow2",
            "tab\there.qcow2", "json:{}.qcow2", "x" * 150 + ".qcow2")):
        vm = Qemu([], [])
        make_image(vm.disks / name)
        form = blockdev if number % 2 else drive
        vm.words = form("web", str(vm.disks / name))
        stem, dot, extension = name.rpartition(".")
        sealed = f"{stem}@one.{extension}" if stem else f"{name}@one"
        with vm:
            vm.write("web", 1)
            out = vm.vmfrost("snapshot", "@one")
            t.is_((out.code, out.error), (0, ""), f"{form.__name__} {name[:20]!r}: a snapshot")
            vm.write("web", 2, 1)
            t.is_(vm.names(), sorted([f".{name}.ID", name, sealed]), "... its names")
            try:
                vm.restart()
                t.is_(vm.sees("web", 2), [1, 2], "... the launcher's words still work")
                vm.delete("one")
                vm.restart()
                vm.vmfrost("recover")
                t.is_((vm.names(), vm.sees("web", 2)), ([name], [1, 2]), "... and it is deleted")
            except LabError as error:
                t.ok(False, f"... {error}")
    vm = Qemu([], [])
    name = "x" * 245 + ".qcow2"
    make_image(vm.disks / name)
    vm.words = drive("web", str(vm.disks / name))
    with vm:
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code == 1 and "too long" in out.error and vm.names() == [name],
             "a name that leaves no room for others: refused")
    vm = Qemu([], [])
    vm.words = drive("web", fmt="qcow2", file=str(vm.disks / "\udcff.qcow2"))
    make_image(vm.disks / "\udcff.qcow2")
    with vm:
        out = vm.vmfrost("snapshot", "@one")
        t.ok(out.code in (0, 1) and len(vm.names()) == (3 if out.code == 0 else 1),
             f"a name that is no UTF-8: {'taken' if out.code == 0 else 'refused'} ({out.error})")


def main():
    with Tap() as t:
        only = os.environ.get("ONLY", "")
        for part in (all_kinds, nothing_to_take, firmware, copy_on_read, throttled, encrypted,
                     raw_file, block_device, network, where_files_are, daemonized, odd_names):
            if only in part.__name__:
                part(t)


main()
