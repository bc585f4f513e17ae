#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""--trace: a timeline that a browser can draw, with every step, message and rename in it."""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bare import Qemu, Tap, drive


def main():
    with Tap() as t, Qemu(drive("web") + drive("data"), ["web.qcow2", "data.qcow2"]) as vm:
        file = vm.folder / "trace.json"
        vm.take("one", "--trace", file)
        events = json.loads(file.read_text())
        rows = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
        t.is_(sorted(rows.values()), ["QEMU", "files", "guest agent", "steps"], "its rows have names")
        spans = [event for event in events if event["ph"] == "X"]
        t.ok(spans and all(event["ts"] >= 0 and event["dur"] >= 0 for event in spans),
             "every span has a beginning and a length")

        def span(row, name):
            return next(event for event in spans if rows[event["tid"]] == row
                        and event["name"] == name)

        steps = [event["name"] for event in spans if rows[event["tid"]] == "steps"]
        t.ok(steps[0] == "connect" and steps[-1] == "record" and "cut" in steps, "all steps are there")
        cut = span("steps", "cut")
        cuts = [event for event in spans if event["name"] == "transaction"
                and event["ts"] >= cut["ts"] - 100]
        t.is_(len(cuts), 1, "the cut holds one message")
        t.ok(cuts[0]["dur"] <= cut["dur"] + 200, "... which took what the step took")
        renames = [event for event in events if event["name"].startswith("rename")
                   and event["ph"] == "i"]
        t.is_(len(renames), 2, "each disk's rename is there")
        t.ok(all(event["ts"] >= cuts[0]["ts"] for event in renames), "... after the cut")
        out = vm.vmfrost("snapshot", "@two", "--trace", vm.folder / "nowhere" / "trace.json")
        t.ok(out.code == 1 and "cannot open the trace" in out.err + out.error, "no such folder")
        t.is_([name for name in vm.names() if "two" in name], [], "... and nothing is done")


main()
