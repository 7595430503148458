"""What a crash looks like on a console. Pure: bytes in, reports out."""

from harness.oops.patterns import PATTERNS, Blame, Kind, Pattern, Severity
from harness.oops.scan import Report, Scanner
from harness.oops.text import sanitize, tail_lines

__all__ = [
    "PATTERNS",
    "Blame",
    "Kind",
    "Pattern",
    "Report",
    "Scanner",
    "Severity",
    "sanitize",
    "tail_lines",
]
