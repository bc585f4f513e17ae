# SPDX-License-Identifier: MIT
"""What happens in a run: one operation, and what goes wrong meanwhile. Made of the seed and the run's
number alone, so that either can be had again."""

import errno
import json
import random
import re
from pathlib import Path

FLOWS = Path(__file__).resolve().parent.parent.parent / "src" / "flows"
EPOCH = 50  # so many runs have guests of one kind


def rows(file):
    """The names of the steps of a table, in their order."""
    return re.findall(r'\{\.name = "([^"]+)"', (FLOWS / file).read_text(encoding="utf-8"))


def extra(*prefixes):
    """The further places where a process may be stopped or killed."""
    found = set()
    for path in sorted(FLOWS.glob("*.c")):
        found |= set(re.findall(r'vf_test_point\(flow, "([^"]+)"\)', path.read_text("utf-8")))
    return sorted(point for point in found if point.startswith(prefixes))


def points_of(files, *prefixes, group=False):
    """Those of the way forward. What is on the way back is met by time and by what passes."""
    steps = [step for file in files for step in rows(file)
             if not step.startswith(("undo-", "melt", "thaw-late", "stop-merge"))
             and (group or not step.startswith("group-"))]
    return sorted({point for step in steps for point in (step, step + "+")}) + extra(*prefixes)


POINTS = {
    "snapshot": points_of(["snapshot.c"], "overlays.", "record."),
    "delete": points_of(["delete.c"], "merge.", "graft."),
    "prune": points_of(["delete.c"], "merge.", "graft."),
    "restore": points_of(["restore.c"], "mirror.", "pivot.", "overlays.", "flip."),
    "freeze": points_of(["freeze.c"]),
}
# Where it matters most, so that it is met more often.
HOT = {
    "snapshot": ["freeze", "freeze+", "cut", "cut+", "flip", "flip+", "thaw", "thaw+",
                 "verify", "record", "record.saved"],
    "delete": ["merge", "merge+", *extra("merge.", "graft.")],
    "prune": ["merge", "merge+", *extra("merge.", "graft.")],
    "restore": ["flip", "flip+", "flip.first", "halt+", "mirror+", "pivot", "pivot+", "reset",
                "reset+", "go-on", "tidy", *extra("mirror.", "pivot.")],
    "freeze": ["freeze", "freeze+"],
}
TYPICAL_MS = {"snapshot": 450, "delete": 220, "prune": 300, "restore": 300, "freeze": 300}

LABELS = {  # of the units that a fault waits for, by operation, and how many of them there are
    "snapshot": {
        "qmp": {"greeting": 1, "qmp_capabilities": 1, "query-block": 3, "query-jobs": 5,
                "query-named-block-nodes": 2, "blockdev-create": 2, "transaction": 2, "}": 1,
                "x-debug-query-block-graph": 3, "query-status": 1, "blockdev-add": 1, "event": 6,
                "*": 40},
        "qga": {"guest-sync-delimited": 1, "guest-get-osinfo": 1, "guest-ping": 1,
                "guest-fsfreeze-status": 1, "guest-fsfreeze-freeze": 1, "guest-fsfreeze-thaw": 2,
                "guest-exec": 1, "guest-exec-status": 1, "*": 8}},
    "delete": {"qmp": {"block-commit": 1, "block-stream": 1, "stop": 1, "cont": 1, "query-jobs": 8,
                       "job-finalize": 1, "job-complete": 1, "event": 8, "job-dismiss": 1,
                       "x-debug-query-block-graph": 3, "query-block-jobs": 3, "*": 40}},
    "restore": {"qmp": {"stop": 1, "blockdev-mirror": 1, "job-finalize": 1, "job-complete": 1,
                        "cont": 1, "event": 12, "blockdev-add": 3, "query-jobs": 10,
                        "query-status": 2, "system_reset": 1, "blockdev-del": 4, "*": 60}},
    "freeze": {"qga": {"guest-fsfreeze-freeze": 1, "guest-sync-delimited": 1, "*": 4},
               "qmp": {"*": 15}},
}
LABELS["prune"] = LABELS["delete"]
# A group's snapshot is that of each of its VMs, and they wait for each other.
for table in (HOT, TYPICAL_MS, LABELS):
    table["group"] = table["snapshot"]
POINTS["group"] = points_of(["snapshot.c"], "overlays.", "record.", "group-", group=True)

EVENTS = [
    ("STOP", None), ("RESUME", None), ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}),
    ("RESET", {"guest": False, "reason": "host-qmp-system-reset"}), ("POWERDOWN", None),
    ("GUEST_PANICKED", {"action": "run"}),
    ("BLOCK_JOB_COMPLETED", {"type": "commit", "device": "@JOB@", "len": 4096, "offset": 4096,
                             "speed": 0}),
    ("BLOCK_JOB_COMPLETED", {"type": "backup", "device": "nightly", "len": 0, "offset": 0,
                             "speed": 0}),
    ("BLOCK_JOB_ERROR", {"device": "@JOB@", "operation": "write", "action": "report"}),
    ("BLOCK_JOB_PENDING", {"type": "commit", "id": "@JOB@"}),
    ("JOB_STATUS_CHANGE", {"id": "@JOB@", "status": "concluded"}),
    ("JOB_STATUS_CHANGE", {"id": "@JOB@", "status": "pending"}),
    ("JOB_STATUS_CHANGE", {"id": "@JOB@", "status": "ready"}),
    ("JOB_STATUS_CHANGE", {"id": "@JOB@", "status": "null"}),
    ("VSERPORT_CHANGE", {"id": "qga-port", "open": False}),
    ("VSERPORT_CHANGE", {"id": "qga-port", "open": True}),
    ("DEVICE_DELETED", {"device": "web-dev", "path": "/machine/peripheral/web-dev"}),
    ("BLOCK_IO_ERROR", {"device": "web", "operation": "write", "action": "stop",
                        "reason": "No space left on device"}),
]
QMP_GARBAGE = [
    '{"return": {}, "id": "0123456789abcdef-1"}\r\n', '{"return": [], "id": 7}\r\n',
    '{"error": {"class": "GenericError", "desc": "JSON parse error, stray"}}\r\n',
    '{"return": {}}\r\n', "\xff\xfe\x00", "}{\r\n", '{"event": 5}\r\n', "[" * 3000 + "\r\n",
    '{"return": ' + "1" * 400 + "}\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", '{"event": "STOP"}\r\n',
]
QGA_GARBAGE = [
    '{"return": {}}\n', '{"return": 3}\n', '{"return": 0}\n', '{"return": "thawed"}\n',
    '{"return": "frozen"}\n', '{"error": {"class": "GenericError", "desc": "stale"}}\n', "\xff",
    "\xff\xff\n", "garbage\n", '{"return": 12345678901234}\n', '{"return": \n', "\x00\n",
]
TO_VM_GARBAGE = ["\xff", '{"execute": "no-such-command"}\n', "]\n", "\xff\xff\xff"]


def config(seed, run):
    """What kind of guest the run has."""
    rng = random.Random(f"guest {seed} {run // EPOCH}")
    return {"disks": rng.choice([1, 2, 2, 3]), "attach": rng.choice(["drive", "blockdev"]),
            "iothread": rng.random() < 0.4, "bus": rng.choice(["virtio-blk", "virtio-blk",
                                                                 "virtio-scsi"]),
            "absolute": rng.random() < 0.3, "xfs": rng.random() < 0.2,
            "small": rng.random() < 0.3,  # all is in a file system that can be full
            "nbd": rng.random() < 0.3,  # it has a disk, too, whose server may hang
            "partner": rng.random() < 0.2}  # there is another guest, for groups


def link_action(rng, link, direction):
    how = rng.choice(["delay", "delay", "drop", "twice", "half", "bytes", "inject", "inject",
                      "inject", "close-before", "close-after"])
    action = {"do": "link", "how": how}
    if how == "delay":
        action["ms"] = rng.choice([20, 100, 300, 1000, 2500])
    elif how == "inject":
        if direction == "req":
            action["text"] = rng.choice(TO_VM_GARBAGE)
        elif link == "qga":
            action["text"] = rng.choice(QGA_GARBAGE)
        elif rng.random() < 0.6:
            name, data = rng.choice(EVENTS)
            action["text"] = ('{"timestamp": @NOW@, "event": "%s"%s}\r\n'
                              % (name, ', "data": ' + json.dumps(data) if data else ""))
        else:
            action["text"] = rng.choice(QMP_GARBAGE)
    return action


def of_the_guest(rng, guest):
    """What can happen to that guest, and not to every other."""
    kinds = [{"do": "fill", "ms": rng.choice([50, 500, 3000])}] if guest["small"] else []
    if guest["nbd"]:
        kinds.append({"do": "hang", "ms": rng.choice([50, 500, 2000, 6000]),
                      "yank": rng.random() < 0.4})
    return kinds


def of_a_group(rng):
    """What happens to the other guest of a group."""
    return rng.choice([{"do": "kill", "who": "partner"},
                       {"do": "stop", "who": "partner", "ms": rng.choice([50, 300, 1500, 4000])}])


def action(rng, op, guest):
    """Something that happens to somebody."""
    kinds = of_the_guest(rng, guest)
    if kinds and rng.random() < 0.3:
        return rng.choice(kinds)
    if op == "group" and rng.random() < 0.2:
        return of_a_group(rng)
    roll = rng.random()
    if roll < 0.34:
        return {"do": "kill", "who": "vmfrost"}
    if roll < 0.44:
        return {"do": "kill", "who": "guard"}
    if roll < 0.54:
        return {"do": "kill", "who": "agent"}
    if roll < 0.60:
        return {"do": "kill", "who": "qemu"}
    if roll < 0.76:
        return {"do": "stop", "who": rng.choice(["vmfrost", "vmfrost", "guard", "agent", "qemu"]),
                "ms": rng.choice([5, 50, 300, 1500, 4000])}
    if roll < 0.88:
        return {"do": "signal", "signal": rng.choice(["SIGTERM", "SIGINT", "SIGHUP"])}
    if roll < 0.91:
        return {"do": "reset"}
    if roll < 0.925:
        return {"do": "panic"}
    return {"do": "pause", "ms": rng.choice([5, 100, 1000])}


def fault_of_stopped(rng, op, number):
    """A VM that is off has no guest, no agent, and a storage daemon instead of QEMU."""
    when = {"ms": rng.randrange(TYPICAL_MS[op])} if rng.random() < 0.4 else {
        "point": rng.choice(HOT[op] if rng.random() < 0.5 else POINTS[op])}
    who = rng.choice(["vmfrost", "vmfrost", "daemon"])
    return {"number": number, "when": when, **rng.choice([
        {"do": "kill", "who": who}, {"do": "kill", "who": who},
        {"do": "stop", "who": who, "ms": rng.choice([5, 50, 300, 1500])},
        {"do": "signal", "signal": rng.choice(["SIGTERM", "SIGINT", "SIGHUP"])}])}


def fault(rng, op, guest, number, pointed):
    """`pointed`: has the run a point already? vmfrost does not say at which one it is."""
    roll = rng.choice([rng.uniform(0, 0.25), rng.uniform(0.6, 1)]) if pointed else rng.random()
    if roll < 0.25:
        when = {"ms": rng.randrange(int(TYPICAL_MS[op] * 1.2))}
    elif roll < 0.6:
        when = {"point": rng.choice(HOT[op] if rng.random() < 0.5 else POINTS[op])}
    else:
        link = rng.choice(sorted(LABELS[op]))
        direction = rng.choice(["req", "rep"])
        label = rng.choice(sorted(LABELS[op][link]))
        nth = rng.randint(1, LABELS[op][link][label])
        when = {"link": link, "dir": direction, "label": label, "nth": nth}
        if rng.random() < 0.65:
            return {"number": number, "when": when, **link_action(rng, link, direction)}
    return {"number": number, "when": when, **action(rng, op, guest)}


def options(rng, op, off):
    words = []
    if off:
        # Nobody to freeze, nothing to wait for.
        words += {"prune": ["--keep-last", "1", "--yes"]}.get(op, [])
        if op == "snapshot" and rng.random() < 0.2:
            words += ["--keep-last", "2"]
    elif op in ("snapshot", "group"):
        words += ["--thaw-wait", f"{rng.choice([2, 4])}s"]
        if rng.random() < 0.5:
            words += ["--deadline", f"{rng.choice([1, 2, 3, 20])}s"]
        if rng.random() < 0.3:
            words += ["--frozen-limit", f"{rng.choice([1, 2, 4])}s"]
        if rng.random() < 0.5:
            words += ["--quiesce", rng.choice(["require", "prefer", "skip"])]
        if rng.random() < 0.35:
            words += ["--method", "preopened"]
        if rng.random() < 0.3:
            words += ["--no-prime"]
        if rng.random() < 0.2:
            words += ["--flush", "off"]
        if rng.random() < 0.1:
            words += ["--freeze", "all"]
        if op == "snapshot" and rng.random() < 0.1:
            words += ["--keep-last", "2"]
    elif op == "restore":
        words += ["--reset"]
        if rng.random() < 0.5:
            words += ["--deadline", f"{rng.choice([1, 3, 20])}s"]
        if rng.random() < 0.4:
            words += ["--discard"]
    elif op == "prune":
        words += ["--keep-last", str(rng.choice([1, 1, 2])), "--yes"]
    elif op == "freeze":
        words += ["--for", "1s"]
    return words


CALLS = {  # of the C library's: how often they come in an operation, about, and how they fail
    "malloc": (12000, ["ENOMEM"]), "write": (240, ["ENOSPC", "EIO", "EDQUOT"]),
    "pwrite": (7, ["ENOSPC"]), "read": (75, ["EIO"]), "fsync": (14, ["EIO", "ENOSPC"]),
    "fdatasync": (4, ["EIO"]), "rename": (6, ["EIO", "EACCES", "ENOSPC"]),
    "link": (4, ["EIO", "EPERM", "EMLINK"]), "unlink": (6, ["EIO", "EACCES"]),
    "open": (60, ["EMFILE", "EIO", "EACCES", "ENFILE"]), "mkdir": (3, ["ENOSPC", "EACCES"]),
    "ftruncate": (2, ["EIO"]), "fork": (1, ["EAGAIN"]), "connect": (2, ["ECONNREFUSED", "EAGAIN"]),
    "socket": (2, ["EMFILE"]), "socketpair": (1, ["EMFILE"]), "send": (58, ["EPIPE", "ENOBUFS"]),
    "recv": (1, ["EIO"]), "fcntl": (9, ["EINVAL"]), "opendir": (16, ["EMFILE", "EIO"]),
}


def failing(seed, run):
    """What the C library refuses vmfrost: (TORTURE_FAIL, its words); None for most runs."""
    rng = random.Random(f"fail {seed} {run}")
    if rng.random() > 0.3:
        return None
    if rng.random() < 0.1:
        return f"clock:{rng.randint(1, 240)}:{rng.choice([-3600, -2, 2, 3600, 100000])}"
    call = rng.choice([*CALLS, "malloc", "write", "fsync", "rename", "link", "send", "open"])
    count, errors = CALLS[call]
    number = getattr(errno, rng.choice(errors))
    on = ":on" if call != "malloc" and rng.random() < 0.25 else ""
    return f"{call}:{rng.randint(1, count)}:{number}{on}"


def plan(seed, run):
    """The run's plan, as JSON would have it."""
    rng = random.Random(f"run {seed} {run}")
    guest = config(seed, run)
    op = rng.choices(["snapshot", "delete", "restore", "prune", "freeze"], [54, 26, 6, 8, 6])[0]
    if guest["partner"] and op == "snapshot" and rng.random() < 0.5:
        op = "group"
    off = op not in ("freeze", "group") and rng.random() < 0.05
    faults = []
    for number in range(rng.choices([0, 1, 2, 3], [10, 50, 28, 12])[0]):
        pointed = any("point" in each["when"] for each in faults)
        if off and pointed:
            break
        faults.append(fault_of_stopped(rng, op, number) if off else
                      fault(rng, op, guest, number, pointed))
    fail = failing(seed, run)
    if fail:
        faults = faults[:1]
    return {
        "seed": seed, "run": run, "guest": guest, "op": op, "off": off,
        "options": options(rng, op, off),
        "target": rng.random(),  # which one, of the snapshots that are there
        "faults": faults, "fail": fail,
        "recover_off": rng.random() < 0.5,  # if QEMU is gone: before it is started again?
        "recover_by": rng.choice(["recover", "recover", "recover", "next"]),
    }
