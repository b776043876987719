"""The report: one HTML file that loads nothing."""

from ehrr1.evaluation.page.cases import Case, choose_cases
from ehrr1.evaluation.page.page import write, write_report

__all__ = ["Case", "choose_cases", "write", "write_report"]
