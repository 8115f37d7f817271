"""The demo's report: one HTML file without external resources."""

from .page import write_report

__all__ = ["write_report"]
