"""The command; see the package's documentation."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from tests.fuzz.campaign import Campaign, replay
from tests.fuzz.seeds import formats, seeds


def main() -> int:
    """Run the fuzzer; return 1 if there were findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--format", action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="another number makes other cases")
    parser.add_argument("--case", type=int, help="make this case only")
    findings = Path(tempfile.gettempdir()) / "bnstat-fuzz-findings"
    parser.add_argument("--findings", type=Path, default=findings, help=f"default: {findings}")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="a saved finding")
    options = parser.parse_args()
    if options.replay:
        verdict = replay(options.replay)
        print(verdict.text, verdict.details, sep="\n")
        return int(verdict.is_finding)
    names = options.format or formats()
    if unknown := set(names).difference(formats()):
        parser.error(f"no seed has the format {', '.join(unknown)}; known: {', '.join(formats())}")
    chosen = [seed for seed in seeds() if seed.format in names]
    with closing(Campaign(chosen, options.findings, options.seed)) as campaign:
        with suppress(KeyboardInterrupt):
            if options.case is None:
                campaign.run(60 * options.minutes)
            else:
                for name in names:
                    print(name, campaign.case(name, options.case).text)
        print(*campaign.lines(), sep="\n")
    return int(bool(campaign.findings))


if __name__ == "__main__":
    sys.exit(main())
