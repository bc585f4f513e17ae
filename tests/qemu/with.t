#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""with: a command that has a snapshot for as long as it runs. Whatever becomes of it, of its
terminal or of vmfrost, the snapshot is merged back, or it is said that it is still there."""

import fcntl
import json
import os
import pty
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import Qemu, Tap, blockdev, drive, go_on, lab, process_state, run, wait_until

DISKS = ["web", "data"]
WORDS = [word for disk in DISKS for word in drive(disk)]
IMAGES = [f"{disk}.qcow2" for disk in DISKS]
GENERATED = r"with-\d{8}T\d{6}Z"


class With:
    """`vmfrost with`, running in a session of its own. `signal` of `command` sends to vmfrost
    alone, group() to all, as a terminal does."""

    def __init__(self, vm, *words, options=(), env=None, own=True):
        argv = ["setsid"] if own else []
        environment = {**os.environ, "VMFROST_STATE_DIR": str(vm.state), "TMPDIR": str(vm.folder),
                       **(env or {})}
        self.command = lab.Command([*argv, lab.vmfrost_program(), "with", "--qmp", vm.socket,
                                    *options, "--", *words], environment, vm.folder)

    def group(self, number):
        os.killpg(self.command.pid, number)

    def wait(self):
        return self.command.wait()


def with_snapshot(vm, *words, **more):
    return With(vm, *words, **more).wait()


def records(vm):
    return [record["name"] for record in vm.vmfrost("list").result]


def tidy(tap, vm, what, *content):
    """Everything is as if there had never been a snapshot."""
    tap.is_([len(vm.chain(disk)) for disk in DISKS], [1, 1], f"{what}: merged back")
    tap.is_((records(vm), vm.journal(), vm.jobs()), ([], [], []), f"{what}: no record, no journal")
    tap.is_([name for name in vm.names() if "@" in name], [], f"{what}: no image")
    tap.is_([path.name for path in vm.folder.glob("vmfrost-*.json")], [], f"{what}: no copy of it")
    if content:
        tap.is_([vm.sees(disk, len(content)) for disk in DISKS], [list(content)] * 2,
                f"{what}: the guest's data")


def write(vm, pattern):
    for disk in DISKS:
        vm.write(disk, pattern, pattern)


def held(vm, name="started"):
    """A command that tells that it runs, and then is there for a while."""
    return f"touch {vm.folder}/{name}; exec sleep 60"


def wait_for(vm, name="started"):
    wait_until((vm.folder / name).exists, what="the command's start")


def a_backup(tap):
    with Qemu(WORDS, IMAGES) as vm:
        write(vm, 1)
        copy = 'for image in $VMFROST_IMAGES; do cp "$image" copies/; done; env'
        (vm.folder / "copies").mkdir()
        done = with_snapshot(vm, "sh", "-c", copy + '; ls -l "$VMFROST_RECORD"; cat "$VMFROST_RECORD"',
                             env={"VMFROST_IMAGE_OLD": "/x", "VMFROST_FORMAT_OLD": "raw"})
        tap.is_(done.code, 0, "a backup: exit 0")
        tidy(tap, vm, "a backup", 0, 1)
        copies = sorted(entry.name for entry in (vm.folder / "copies").iterdir())
        tap.ok(len(copies) == 2 and all(re.fullmatch(rf"(data|web)@{GENERATED}.qcow2", copy)
                                        for copy in copies), f"images of all disks: {copies}")
        tap.is_([lab_bytes(vm.folder / "copies" / copy) for copy in copies], [[0, 1], [0, 1]],
                "with what the guest had written")
        env = dict(line.split("=", 1) for line in done.out.splitlines() if "=" in line)
        name = env.get("VMFROST_SNAPSHOT", "")
        tap.ok(re.fullmatch(GENERATED, name), f"a made-up name: {name}")
        tap.is_(env.get("VMFROST_VM"), str(vm.socket), "the VM's name")
        tap.is_(env.get("VMFROST_CONSISTENCY"), "crash", "how good it is")
        tap.is_([env.get(f"VMFROST_IMAGE_{disk.upper()}") for disk in DISKS],
                [str(vm.disks / f"{disk}@{name}.qcow2") for disk in DISKS], "a variable for each disk")
        tap.is_([env.get(f"VMFROST_FORMAT_{disk.upper()}") for disk in DISKS], ["qcow2", "qcow2"],
                "with its format")
        tap.is_([key for key in env if key.endswith("_OLD")], [], "those of an outer one are gone")
        record = json.loads(done.out[done.out.index("\n{") + 1:])
        tap.is_((record["name"], record["phase"], record["readyToUse"]), (name, "Succeeded", True),
                "the record is in a file")
        tap.ok(f"-rw------- " in done.out, "for its owner alone")
        tap.ok(not Path(env["VMFROST_RECORD"]).exists(), "that is gone afterwards")
        tap.ok("crash-consistent" in done.err and "merged" not in done.err,
               "without a terminal only what has to be known is said")
        done = with_snapshot(vm, "true", options=["-q"])
        tap.is_(done, (0, "", ""), "-q: nothing")
        done = with_snapshot(vm, "sh", "-c", "echo $VMFROST_SNAPSHOT; exit 3",
                             options=["@backup", "-v"])
        tap.is_((done.code, done.out), (3, "backup\n"), "a name of one's own; the command's exit code")
        tap.ok("backup  merged back" in done.err, "-v tells")
        tidy(tap, vm, "exit 3", 0, 1)


def lab_bytes(path):
    """The first byte of each of the first two clusters of an image that nobody has open."""
    raw = path.with_suffix(".raw")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
    with open(raw, "rb") as file:
        data = file.read(2 * 65536)
    return [data[0], data[65536]]


def names_of_disks(tap):
    words = [word for disk in ("web-1", "web.1", "Web_1", "z") for word in
             drive(disk, f"{disk}.qcow2")]
    with Qemu(words, [f"{disk}.qcow2" for disk in ("web-1", "web.1", "Web_1", "z")]) as vm:
        done = with_snapshot(vm, "sh", "-c", "env | grep ^VMFROST_IMAGE_", options=["@b", "-q"])
        found = dict(line.split("=", 1) for line in done.out.splitlines())
        tap.is_(sorted(found), ["VMFROST_IMAGE_WEB_1", "VMFROST_IMAGE_WEB_1_2",
                                "VMFROST_IMAGE_WEB_1_3", "VMFROST_IMAGE_Z"],
                "disks whose names come out the same are numbered")
        tap.is_(len(set(found.values())), 4, "each has its image")


def signals(mask):
    """Those of /proc's mask that a program can have anything to do with: 32 and 33 are the C
    library's own, and ignored where it was started with posix_spawn(), as by make."""
    return int(mask, 16) & ~(3 << 31)


def inherited(tap):
    """What the command has: the descriptors, signals and environment that vmfrost was given."""
    with Qemu(WORDS, IMAGES) as vm:
        look = "ls -l /proc/self/fd; grep -E '^Sig(Blk|Ign)' /proc/self/status"
        done = with_snapshot(vm, "sh", "-c", look, options=["-q", "--log", vm.folder / "log",
                                                            "--events", vm.folder / "events"])
        numbers = sorted(int(number) for number in re.findall(r" (\d+) -> ", done.out))
        tap.is_(numbers, [0, 1, 2, 3], "descriptors: three, and that of ls")
        tap.is_([signals(mask) for mask in re.findall(r"Sig\w+:\s*(\w+)", done.out)], [0, 0],
                "no signal is blocked or ignored")
        done = with_snapshot(vm, "sh", "-c", "trap '' HUP PIPE; exec \"$@\"", "sh",
                             lab.vmfrost_program(), "with", "-q", "--qmp", vm.socket, "@inner", "--",
                             "grep", "^SigIgn", "/proc/self/status", options=["-q", "@outer"])
        tap.is_(signals(done.out.split()[1]) if done.out else done, 1 << 0 | 1 << 12,
                "what was ignored stays so; one inside another one")
        tidy(tap, vm, "one inside another one")
        command = With(vm, "sh", "-c", held(vm))
        wait_for(vm)
        lock, = vm.state.glob("vms/*/lock")
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an exception, if somebody has it
        tap.ok(True, "nobody has the VM's lock while the command runs")
        command.group(signal.SIGTERM)
        command.wait()


def ended(tap):
    """What ends the command, and what vmfrost makes of it."""
    trap = "trap 'sleep 0.3; echo done; exit 5' INT; touch {}; sleep 60 & wait $!"
    with Qemu(WORDS, IMAGES) as vm:
        done = with_snapshot(vm, "sh", "-c", "kill -9 $$")
        tap.is_(done.code, 128 + 9, "killed: 128 and the signal")
        tidy(tap, vm, "killed")
        for number in signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP:
            (vm.folder / "started").unlink(missing_ok=True)
            command = With(vm, "sh", "-c", held(vm))
            wait_for(vm)
            command.group(number)
            tap.is_(command.wait().code, 128 + number, f"{number.name} for all: the command's end")
            tidy(tap, vm, f"{number.name} for all")
        (vm.folder / "started").unlink()
        command = With(vm, "sh", "-c", trap.format(vm.folder / "started"))
        wait_for(vm)
        command.group(signal.SIGINT)
        done = command.wait()
        tap.is_((done.code, done.out), (5, "done\n"), "a command that tidies up is waited for")
        tidy(tap, vm, "tidied up")
        for number in signal.SIGTERM, signal.SIGHUP:
            (vm.folder / "started").unlink()
            command = With(vm, "sh", "-c", held(vm))
            wait_for(vm)
            command.command.signal(number)
            tap.is_(command.wait().code, 128 + number, f"{number.name} for vmfrost: passed on")
            tidy(tap, vm, f"{number.name} for vmfrost")
        (vm.folder / "started").unlink()
        command = With(vm, "sh", "-c", f"touch {vm.folder}/started; sleep 0.5; exit 4")
        wait_for(vm)
        command.command.signal(signal.SIGINT)
        command.command.signal(signal.SIGQUIT)
        tap.is_(command.wait().code, 4, "SIGINT for vmfrost alone: the command goes on")
        tidy(tap, vm, "SIGINT for vmfrost")


def on_a_terminal(tap):
    """Ctrl-C, from a terminal, with the command in its foreground."""
    with Qemu(WORDS, IMAGES) as vm:
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ.update(VMFROST_STATE_DIR=str(vm.state), TERM="xterm",
                              TMPDIR=str(vm.folder))
            os.execv(lab.vmfrost_program(),
                     [lab.vmfrost_program(), "with", "--qmp", str(vm.socket), "@tty", "--", "sh",
                      "-c", f"read word; echo got $word; {held(vm)}"])
        os.write(terminal, b"hello\n")
        wait_for(vm)
        os.write(terminal, b"\x03")
        text = b""
        while True:
            try:
                text += os.read(terminal, 65536)
            except OSError:
                break
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(terminal)
        tap.is_(code, 130, "Ctrl-C: the command's end")
        text = text.decode(errors="replace")
        tap.ok("got hello" in text, "it reads from the terminal")
        tap.ok(re.search(r"tty\S*  crash-consistent.*got hello.*tty\S*  merged back", text, re.S),
               "what is done is told, before and after")
        tap.ok("stopping" not in text, "vmfrost itself was not stopped")
        tidy(tap, vm, "Ctrl-C")


def killed(tap):
    """kill -9 of vmfrost: the command is told, the snapshot stays."""
    with Qemu(WORDS, IMAGES) as vm:
        write(vm, 1)
        command = With(vm, "sh", "-c", f"echo $$ >{vm.folder}/pid.new; mv {vm.folder}/pid.new "
                                       f"{vm.folder}/pid; exec sleep 60", options=["@b"])
        wait_for(vm, "pid")
        pid = int((vm.folder / "pid").read_text())
        command.command.signal(signal.SIGKILL)
        tap.is_(command.wait().code, -9, "vmfrost is killed")
        wait_until(lambda: process_state(pid) in ("", "Z"), what="the command's end")
        tap.ok(True, "the command ends, too")
        tap.is_(records(vm), ["b"], "the snapshot stays")
        vm.delete("b")
        for copy in vm.folder.glob("vmfrost-*.json"):
            copy.unlink()
        tidy(tap, vm, "deleted", 0, 1)


def not_run(tap):
    """Nothing is run, and nothing is left."""
    with Qemu(WORDS, IMAGES) as vm:
        before = vm.names(), vm.graph()
        marker = vm.folder / "ran"
        script = vm.folder / "script"
        script.write_text("echo no program")
        for words, options, code, why in (
                (["no-such-program"], [], 127, "cannot run 'no-such-program'"),
                ([vm.folder / "nothing/x"], [], 127, "No such file"),
                ([script], [], 126, "Permission denied"),
                ([vm.folder], [], 126, "Permission denied"),
                (["touch", marker], ["--quiesce", "require"], 3, "agent"),
                (["touch", marker], ["--exclude", "nonsense"], 2, "nonsense")):
            done = with_snapshot(vm, *words, options=options)
            what = f"{' '.join(map(str, options))} -- {words[0]}"
            tap.is_((done.code, marker.exists()), (code, False), f"{what}: exit {code}, not run")
            tap.ok(why in done.err, f"{what}: it says why")
            tap.is_((vm.names(), vm.graph()), before, f"{what}: nothing is changed")
        for name in records(vm):
            vm.vmfrost("delete", "@" + name)
        broken = vm.folder / "broken"
        broken.write_text("#!/no/such/interpreter\n")
        broken.chmod(0o755)
        done = with_snapshot(vm, broken)
        tap.ok(done.code == 127 and "cannot run" in done.err, "what turns out only when it is run")
        tidy(tap, vm, "no interpreter")
        vm.vmfrost("snapshot", "@there")
        done = with_snapshot(vm, "touch", marker, options=["@there"])
        tap.ok(done.code == 1 and "exists already" in done.err and not marker.exists(),
               "a name that there is already")
        tap.is_(records(vm), ["there"], "whose snapshot stays")
        vm.delete("there")


def new_files(tap):
    """Disks that go on in a new file go back to the old one, too; unless QEMU was started again
    meanwhile, on the new one, which then gets all that the old one had."""
    words = WORDS + drive("raw", "raw.raw", "raw")
    with Qemu(words, IMAGES + ["raw.raw"]) as vm:
        write(vm, 1)
        vm.write("raw", 1, 1)
        before = vm.names(), vm.graph()
        done = with_snapshot(vm, "sh", "-c", 'echo "$VMFROST_IMAGES"', options=["@b"])
        tap.is_(sorted(done.out.split()),
                sorted([str(vm.disks / f"{disk}@b.qcow2") for disk in DISKS] +
                       [str(vm.disks / "raw.raw")]), "a new file: the image is the old one")
        tap.is_((vm.names(), vm.graph()), before, "a new file: all as before")
        tap.ok("is in" in done.err and "raw.raw again" in done.err, "a new file: it says so")
        tidy(tap, vm, "a new file", 0, 1)

        command = With(vm, "sh", "-c", f"touch {vm.folder}/started; while [ ! -e {vm.folder}/go ]; "
                                       "do sleep 0.05; done", options=["@b"])
        wait_for(vm)
        vm.words = WORDS + drive("raw", "raw+b.qcow2")
        vm.restart()
        vm.write("raw", 2, 2)
        (vm.folder / "go").touch()
        done = command.wait()
        tap.is_((done.code, vm.sees("raw", 4)), (0, [0, 1, 2, 0]), "started on the new file: merged")
        tap.is_((vm.chain("raw")[1:], vm.read("raw+b.qcow2", 3)), ([], [0, 1, 2]),
                "started on the new file: which has all of it")
        tap.ok(not (vm.disks / "raw.raw").exists(), "started on the new file: the old one goes")
        tap.is_((records(vm), vm.journal(), vm.jobs()), ([], [], []), "started on the new file: tidy")


def not_merged(tap):
    """The way back is blocked: the snapshot is still there, and vmfrost says so."""
    with Qemu(WORDS, IMAGES) as vm:
        write(vm, 1)
        events = vm.folder / "events"
        command = With(vm, "sh", "-c", f"touch {vm.folder}/started; while [ ! -e {vm.folder}/go ]; "
                                       "do sleep 0.05; done; exit 9",
                       options=["@b", "--events", events])
        wait_for(vm)
        vm.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(vm.run / "nbd")}})
        vm.qmp("block-export-add", type="nbd", id="look", node_name=vm.root("web")["node-name"])
        (vm.folder / "go").touch()
        done = command.wait()
        tap.is_(done.code, 1, "a merge that is refused: its code")
        tap.ok("exported" in done.err and "still there" in done.err and
               f"vmfrost delete --qmp {vm.socket} b" in done.err, "it says why, and what to do")
        last = json.loads(events.read_text().splitlines()[-1])
        tap.is_((last["code"], last["document"]["exitCode"], last["document"]["merged"]),
                (1, 9, False), "the result has both")
        tap.is_(records(vm), ["b"], "the snapshot is there")
        vm.qmp("block-export-del", id="look")
        vm.delete("b")
        tidy(tap, vm, "deleted", 0, 1)


def busy(tap):
    """Somebody else works on the VM when the command ends."""
    with Qemu(WORDS, IMAGES) as vm:
        write(vm, 1)
        command = With(vm, "sh", "-c", f"touch {vm.folder}/started; while [ ! -e {vm.folder}/go ]; "
                                       "do sleep 0.05; done", options=["@b"])
        wait_for(vm)
        other = vm.stop_at("overlays", "snapshot", "@other")
        (vm.folder / "go").touch()
        wait_until(lambda: "waiting for" in command.command.output()[1], what="the wait")
        time.sleep(0.3)
        tap.ok(command.command.process.poll() is None, "busy: it waits")
        other.signal(signal.SIGINT)
        go_on(other)
        done = command.wait()
        tap.is_(done.code, 0, "and merges the snapshot back when the other one is done")
        tap.ok("snapshot" in done.err and f"process {other.pid}" in done.err, "it says for whom")
        tap.is_(records(vm), ["other"], "whose record is there")
        vm.delete("other")
        tidy(tap, vm, "busy", 0, 1)

        (vm.folder / "go").unlink()
        (vm.folder / "started").unlink()
        command = With(vm, "sh", "-c", held(vm), options=["@b"])
        wait_for(vm)
        other = vm.stop_at("overlays", "snapshot", "@other")
        command.group(signal.SIGTERM)
        wait_until(lambda: "waiting for" in command.command.output()[1], what="the wait")
        command.command.signal(signal.SIGTERM)
        done = command.wait()
        tap.ok(done.code == 1 and "still there" in done.err, "a signal ends the wait")
        other.signal(signal.SIGINT)
        go_on(other)
        vm.delete("other")
        vm.delete("b")
        tidy(tap, vm, "a signal ends the wait", 0, 1)


def stopped(tap):
    """Signals while vmfrost itself works."""
    with Qemu(WORDS, IMAGES) as vm:
        def at(point):
            command = With(vm, "touch", vm.folder / "ran", options=["@b"], own=False,
                           env={"VMFROST_TEST_AT": f"stop:{point}"}).command
            wait_until(lambda: process_state(command.pid) == "T", what=f"the stop at {point}")
            return command

        command = at("overlays")
        command.signal(signal.SIGTERM)
        out = go_on(command)
        tap.ok(out.code == 1 and not (vm.folder / "ran").exists(), "in the snapshot: not run")
        vm.vmfrost("delete", "@b")
        tidy(tap, vm, "stopped in the snapshot")
        command = at("record+")
        command.signal(signal.SIGINT)
        out = go_on(command)
        tap.ok(out.code in (1, 130) and not (vm.folder / "ran").exists(),
               "too late in the snapshot: not run, either")
        if out.code == 1:
            vm.vmfrost("delete", "@b")
        tidy(tap, vm, "too late")
        command = at("merge")
        command.signal(signal.SIGINT)
        out = go_on(command)
        tap.ok(out.code == 0 and "once more stops that" in out.err,
               "on the way back: once does not stop it")
        tidy(tap, vm, "once")
        command = at("merge")
        command.signal(signal.SIGINT)
        command.signal(signal.SIGTERM)
        out = go_on(command)
        tap.ok(out.code == 1 and "still there" in out.err, "twice does")
        vm.delete("b")
        tidy(tap, vm, "twice")


def told(tap):
    """--events: what --json is for others."""
    with Qemu([word for disk in DISKS for word in blockdev(disk)], IMAGES) as vm:
        events = vm.folder / "events"
        done = with_snapshot(vm, "sh", "-c", "echo mine; exit 3", options=["@b", "--events", events])
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        tap.is_((done.code, done.out), (3, "mine\n"), "stdout is the command's")
        tap.is_([(line["event"], line.get("state")) for line in lines if line["event"] != "step"],
                [("snapshot", None), ("command", "started"), ("command", "ended"),
                 ("deletion", None), ("result", None)], "what happened, in order")
        by_name = {line["event"]: line for line in lines}
        tap.is_(by_name["snapshot"]["document"]["phase"], "Succeeded", "the record")
        tap.is_({line["operation"] for line in lines if line["event"] == "step"},
                {"snapshot", "delete"}, "the steps of both operations")
        result = lines[-1]
        tap.is_((result["operation"], result["code"], result["snapshot"]), ("with", 3, "taken"),
                "the result")
        tap.is_(result["document"], {"vm": str(vm.socket), "name": "b", "consistency": "crash",
                                     "exitCode": 3, "merged": True}, "and its document")
        tap.is_(events.stat().st_mode & 0o777, 0o600, "a file for its owner alone")
        done = with_snapshot(vm, "sh", "-c", "kill -TERM $$", options=["--events", events])
        result = json.loads(events.read_text().splitlines()[-1])
        tap.is_((done.code, result["code"], result["document"].get("signal")), (143, 143, 15),
                "a signal; the file is written anew")
        done = run("sh", "-c", 'exec "$0" with --qmp "$1" --state-dir "$2" --events /dev/fd/3 -- '
                               'sh -c "echo out; echo err >&2" 3>&1 >"$3" 2>&1',
                   lab.vmfrost_program(), vm.socket, vm.state, vm.folder / "rest")
        tap.is_(json.loads(done.stdout.splitlines()[-1])["code"], 0, "--events /dev/fd/3")
        tap.ok({"out", "err"} <= set((vm.folder / "rest").read_text().splitlines()),
               "and the command's own output where it belongs")
        done = with_snapshot(vm, "true", options=["--events", "/no/such/file"])
        tap.ok(done.code == 1 and "/no/such/file" in done.err, "a file that cannot be opened")
        tidy(tap, vm, "told")


with Tap() as main:
    began = time.monotonic()
    for part in (a_backup, names_of_disks, inherited, ended, on_a_terminal, killed, not_run,
                 new_files, not_merged, busy, stopped, told):
        part(main)
        main.diag(f"{part.__name__}: {time.monotonic() - began:.1f} s")
