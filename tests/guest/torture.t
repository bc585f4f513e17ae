#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A short campaign of `make torture`: random faults in the middle of random operations, always the
same ones, and those of tests/torture/regressions, which once found something."""

import json
import sys
import time
from pathlib import Path

from guesttest import ROOT, Tap

sys.path.insert(0, str(ROOT / "tests" / "torture"))

from campaign import Campaign  # noqa: E402

SEED, RUNS = 20, 20


def regressions():
    """The plans of what has to be played again, each with what it had found."""
    for line in (ROOT / "tests" / "torture" / "regressions").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            yield json.loads(line)


def main():
    with Tap() as tap:
        began = time.monotonic()
        keep = Path(ROOT / "build" / "torture")
        campaign = Campaign(SEED, keep)
        try:
            for number in range(RUNS):
                tap.ok(campaign.one(number), f"seed {SEED}, run {number}")
            for plan in regressions():
                tap.ok(campaign.play(plan), plan["found"])
        finally:
            campaign.close()
            campaign.summary(began)


if __name__ == "__main__":
    main()
