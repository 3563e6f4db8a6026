"""The report: one self-contained HTML page about a run, readable offline.

`inputs` and `reading` take in what other stages wrote; `trained`, `results`, `comparisons`, `chain_of_thought`, `where`
and `certainty` say what it means, in `estimates` and in the words of the run's `method`; `drawing`, `figures` and
`curves` draw; `examples` and `heat_map` quote; `page` fills `page.html.j2`, which is a piece a section.
"""

import os

os.environ.pop("MPLBACKEND", None)  # figures are drawn without one, but matplotlib cannot be imported with a wrong one

from pipeline.report.inputs import ReportInputs  # noqa: E402
from pipeline.report.page import write_report  # noqa: E402

__all__ = ["ReportInputs", "write_report"]
