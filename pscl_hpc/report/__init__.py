"""The report page: run folders to one self-contained HTML file."""

from pscl_hpc.report.page import REPORT_FILE, SEGMENT_FILE, write_report

__all__ = ["REPORT_FILE", "SEGMENT_FILE", "write_report"]
