"""One record, one question and the answer as a page, a single HTML file that loads nothing."""

from ehrr1.inference.pages.record import RecordPage, record_page

__all__ = ["RecordPage", "record_page"]
