"""What this machine can do, and what to mend: the checks behind ``pscl-hpc doctor``."""

from pscl_hpc.doctor.findings import Finding, Level
from pscl_hpc.doctor.survey import examine

__all__ = ["Finding", "Level", "examine"]
