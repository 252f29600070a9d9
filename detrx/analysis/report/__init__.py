"""The report of a run: one HTML page that loads nothing else.

Plotly draws the charts, and its script is part of the page: readers can zoom, hide curves and save pictures. Our own
SVG and script, which it replaced, made smaller and faster pages. For a training on 80 classes they had 2.3 MB instead
of 7.5 (the script is 4.8), and opened in 0.6 s instead of 3.0 (headless Chromium on two busy cores, medians of 7).
Charts are therefore drawn when they come near the screen; drawing them all at once took 5.0 s.
Vega-Lite's scripts are smaller, 0.8 MB, but compile expressions as code, which the page's security policy forbids, and
their Python package is 88 MB. Without scripts the page has no charts; its tables and images remain.
"""

from .page import build_report, write_report
from .run_folder import RunFolder, read_run
from .sources import Options

__all__ = ["Options", "RunFolder", "build_report", "read_run", "write_report"]
