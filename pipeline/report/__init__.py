"""The report: one self-contained HTML page about a run, readable offline."""

from pipeline.report.inputs import ReportInputs
from pipeline.report.page import write_report

__all__ = ["ReportInputs", "write_report"]
