"""The history: every outcome of every run, in one SQLite file.

Each outcome is a transaction of its own, written when its scenario ends: a run that is killed leaves what it had
found out, and runs at the same time wait for each other for milliseconds. SQLite's own journal undoes what a kill
cuts in half. An outcome that is there already is not taken twice, so a summary can be added again.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import HostError, UsageError
from harness.places import state_root
from harness.records.outcome import Outcome
from harness.result import Verdict

#: Version of the tables below.
SCHEMA = 1
#: Marks the file as ours: "hist".
_APPLICATION = 0x68697374
#: For other runs to finish what they write.
_BUSY_S = 30.0

_TABLES = """
CREATE TABLE runs (
    run TEXT PRIMARY KEY,
    host TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE outcomes (
    run TEXT NOT NULL REFERENCES runs,
    scenario TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    started TEXT NOT NULL,
    verdict TEXT NOT NULL,
    total REAL NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (run, scenario, attempt)
) WITHOUT ROWID;
CREATE INDEX outcomes_by_scenario ON outcomes (scenario, started);
"""


def default_history() -> Path:
    """Where the history is when nobody says otherwise."""
    return state_root() / "history.sqlite"


@dataclass(frozen=True, slots=True)
class Point:
    """An outcome in brief.

    :param total: seconds that it took.
    """

    scenario: str
    run: str
    started: datetime
    verdict: Verdict
    total: float
    accel: str


class History:
    """The outcomes in one file. Opened for each use, so that none stays open across a fork or a kill.

    :param path: made, with its directory, by the first outcome that is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Find out whether this file can be written to, before anything depends on it.

        :raises UsageError: it is something else, or from a newer version.
        :raises HostError: it cannot be opened.
        """
        with self._open(write=True):
            pass

    def add(self, outcomes: Iterable[Outcome], host: Mapping[str, Any]) -> int:
        """Add what is not there yet.

        :param host: what is worth knowing of the host that the outcomes are from.
        :return: how many were new.
        :raises UsageError, HostError: as :meth:`check`.
        """
        added = 0
        with self._open(write=True) as database:
            for item in outcomes:
                database.execute("INSERT OR IGNORE INTO runs VALUES (?, ?)", (item.run, json.dumps(dict(host))))
                total = float(item.seconds.get("total", 0.0))
                row = (item.run, item.id, item.attempt, _utc(item), str(item.verdict), total)
                added += database.execute(
                    "INSERT OR IGNORE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, json.dumps(item.to_json()))
                ).rowcount
        return added

    def outcomes(self, scenario: str | None = None, *, last: int | None = None) -> list[Outcome]:
        """What is recorded, oldest first; nothing where there is no history yet.

        :param scenario: an id; all of them by default.
        :param last: no more than so many, the latest ones.
        :raises UsageError, HostError: as :meth:`check`, or the file is damaged.
        """
        query = """
            SELECT outcome FROM outcomes WHERE scenario = ?1 OR ?1 IS NULL ORDER BY started DESC, attempt DESC LIMIT ?2
        """
        rows = self._rows(query, scenario, -1 if last is None else last)
        try:
            return [Outcome.from_json(json.loads(text)) for (text,) in reversed(rows)]
        except (ValueError, TypeError, KeyError) as error:
            raise HostError(f"the history {self.path} is damaged: outcomes.outcome: {error}") from error

    def points(self, *, last: int) -> list[Point]:
        """Every scenario's latest outcomes, in brief, oldest first: thousands in a moment.

        :param last: of each scenario, no more than so many.
        :raises UsageError, HostError: as :meth:`outcomes`.
        """
        query = """
            SELECT scenario, run, started, verdict, total, accel FROM (
                SELECT *, json_extract(outcome, '$.accel') AS accel,
                    row_number() OVER (PARTITION BY scenario ORDER BY started DESC, attempt DESC) AS age
                FROM outcomes
            ) WHERE age <= ? ORDER BY started, attempt
        """
        rows = self._rows(query, last)
        try:
            return [
                Point(scenario, run, datetime.fromisoformat(started), Verdict(verdict), total, accel)
                for scenario, run, started, verdict, total, accel in rows
            ]
        except (ValueError, TypeError) as error:
            raise HostError(f"the history {self.path} is damaged: outcomes: {error}") from error

    def durations(self) -> dict[str, float]:
        """For each scenario that has ever passed, the median of how long its last twenty passes took, in seconds."""
        query = """
            SELECT scenario, total FROM (
                SELECT scenario, total, row_number() OVER (PARTITION BY scenario ORDER BY started DESC) AS age
                FROM outcomes WHERE verdict = 'pass'
            ) WHERE age <= 20 ORDER BY scenario, total
        """
        found: dict[str, list[float]] = {}
        for scenario, total in self._rows(query):
            found.setdefault(scenario, []).append(total)
        return {scenario: totals[(len(totals) - 1) // 2] for scenario, totals in found.items()}

    def _rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What a query finds; nothing where no outcome was ever added."""
        if not self.path.exists():
            return []
        with self._open(write=False) as database:
            # The first writer may be at work, or was killed before it was done.
            begun = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0
            return database.execute(query, parameters).fetchall() if begun else []

    @contextmanager
    def _open(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        """A transaction on the file, whose tables are there and of this version."""
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                self._check_tables(database, write=write)
                yield database
                database.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                raise self._foreign() from error
            hint = "choose another file with --history" if write else None
            raise HostError(f"the history {self.path} cannot be used: {error}", hint=hint) from error
        except OSError as error:
            raise HostError(f"the history {self.path} cannot be used: {error.strerror}") from error

    def _check_tables(self, database: sqlite3.Connection, *, write: bool) -> None:
        version, application, tables = (
            database.execute(query).fetchone()[0]
            for query in ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_schema")
        )
        if version == application == tables == 0:
            if not write:
                return
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {_APPLICATION}")
            database.execute(f"PRAGMA user_version = {SCHEMA}")
        elif application != _APPLICATION:
            raise self._foreign()
        elif version != SCHEMA:
            raise UsageError(
                f"the history {self.path} cannot be used: user_version must be {SCHEMA}, got {version}",
                hint="it is from another version of the harness: use that one, or another file with --history",
            )

    def _foreign(self) -> UsageError:
        return UsageError(f"{self.path} is no history of the harness", hint="name another file with --history")


def _utc(outcome: Outcome) -> str:
    """Sorts as text as it does in time, whatever the offset that it was written with."""
    return outcome.started.astimezone(tz=UTC).isoformat(timespec="milliseconds")
