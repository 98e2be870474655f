"""Write measured tables into the documentation.

    python -m bench.tables            fill every block
    python -m bench.tables --check    exit 1 if a block differs from its result file

No figure in the documentation is typed by hand: each comes from a file in bench/results/.
"""

from __future__ import annotations

import argparse
import sys

from bench.tables.blocks import fill
from bench.tables.common import ROOT

DOCUMENTS = ("README.md", "kernels/README.md", "docs/*.md", "bench/README.md", "slurm/README.md")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern)):
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    print("\n".join(stale) or "all tables are up to date")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
