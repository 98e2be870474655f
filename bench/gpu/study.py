"""The one-shot study on this machine, `pscl-hpc study configs/studies/one_shot.yaml`; called again, it goes on.

The archive is the one that ARCHIVE names. A dry run only lists what would run.
"""

import os
import subprocess
import sys

from bench.gpu.results import folder
from bench.gpu.setting import UNFINISHED, parse

STUDY = "configs/studies/one_shot.yaml"


def main() -> None:
    setting = parse(__doc__)
    command = [sys.executable, "-m", "pscl_hpc.cli", "study", STUDY, f"archive={os.environ['ARCHIVE']}"]
    command += [f"run={folder() / 'study'}", *(["--dry-run"] if setting.tiny else [])]
    try:
        code = subprocess.run(command, timeout=setting.left(), check=False).returncode
    except subprocess.TimeoutExpired:
        sys.exit(UNFINISHED)
    sys.exit(code)


if __name__ == "__main__":
    main()
