#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A short campaign of `make torture`: random faults in the middle of random operations, always the
same ones, and those of tests/torture/regressions, which once found something."""

import sys
import time
from pathlib import Path

from guesttest import ROOT, Tap

sys.path.insert(0, str(ROOT / "tests" / "torture"))

from campaign import Campaign  # noqa: E402

SEED, RUNS = 20, 20


def regressions():
    """(seed, run) of what has to be played again."""
    for line in (ROOT / "tests" / "torture" / "regressions").read_text("utf-8").splitlines():
        words = line.partition("#")[0].split()
        if words:
            yield int(words[0]), int(words[1])


def main():
    with Tap() as tap:
        began = time.monotonic()
        keep = Path(ROOT / "build" / "torture")
        campaign = Campaign(SEED, keep)
        try:
            for number in range(RUNS):
                tap.ok(campaign.one(number), f"seed {SEED}, run {number}")
            for seed, number in regressions():
                campaign.seed = seed
                tap.ok(campaign.one(number), f"seed {seed}, run {number}, which once found something")
        finally:
            campaign.close()
            campaign.summary(began)


if __name__ == "__main__":
    main()
