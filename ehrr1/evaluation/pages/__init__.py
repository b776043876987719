"""Results as pages: one HTML file each, which loads nothing and can be mailed and printed."""

from ehrr1.evaluation.pages.cases import Case, choose_cases
from ehrr1.evaluation.pages.report import write_report

__all__ = ["Case", "choose_cases", "write_report"]
