"""The report of a run: one HTML page that needs nothing else."""

from .page import Options, build_report, write_report
from .run_folder import RunFolder, read_run

__all__ = ["Options", "RunFolder", "build_report", "read_run", "write_report"]
