"""Serves calls to the other probes: one JSON object a line in, one a line out.

``{"id": 1, "call": "memory.vmstat", "arguments": {}}`` calls ``vmstat()`` of ``memory.py`` beside this file and
answers ``{"id": 1, "result": ...}`` or ``{"id": 1, "error": "...", "kind": "OSError", "errno": 12}``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself is slow to import
    from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def answer(request: dict[str, Any]) -> dict[str, object]:
    """Make one call; never raises."""
    try:
        module, _, function = request["call"].rpartition(".")
        result = getattr(importlib.import_module(module), function)(**request["arguments"])
        return {"id": request["id"], "result": result}
    except Exception as error:
        traceback.print_exc()
        return {
            "id": request["id"],
            "error": f"{type(error).__name__}: {error}",
            "kind": type(error).__name__,
            "errno": getattr(error, "errno", None),
        }


def survive() -> None:
    """Keep the OOM killer away from this process and those above it: a probe must outlive what it provokes."""
    pid = os.getpid()
    while pid > 1:
        with open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write("-1000")
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])


def main() -> None:
    """Serve until standard input ends."""
    survive()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a probe prints by mistake must not be taken for an answer
    for line in sys.stdin:
        replies.write(json.dumps(answer(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
