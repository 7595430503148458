"""The one strict YAML reader: scenarios and image recipes come in through it.

YAML 1.1 as PyYAML reads it takes a 307-byte alias bomb to millions of nodes, keeps the last of two equal keys, reads
``no`` as False, ``1:30`` as 90 and ``010`` as 8. This reader takes a small, boring subset instead: mappings with
string keys, lists and scalars. It builds its values straight from the parser's events, so that nothing is resolved,
expanded or nested behind its back, and it remembers where every key and value stands. What an
unquoted scalar means is told in :mod:`harness.yaml_scalars`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from harness.errors import Problem, ScenarioError
from harness.yaml_scalars import AmbiguousError, plain

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_PROBLEMS = 100
MAX_QUOTED = 60

KeyPath = tuple[str | int, ...]
"""Where a value stands in a document: ``("drive", 1, "balloon.inflate", "pages")``."""

# Parts of PyYAML's messages, and what the writer of the file most likely has to do about them.
_SYNTAX_HINTS = (
    ("'\\t'", "indent with spaces, not with tabs"),
    ("but got '{'", "within { } and [ ], quote a text that holds braces"),
    ("expected ',' or ']'", "a [ stands here without its ], or a comma is missing; quote text that holds brackets"),
    ("expected ',' or '}'", "a { stands here without its }, or a comma is missing; quote text that holds braces"),
    ("mapping values are not allowed", 'quote a text that contains ": ", and check the indentation'),
    ("sequence entries are not allowed", "start the list on a line of its own, or quote a text that starts with -"),
    ("could not find expected ':'", 'a key needs ": " after it; check the indentation'),
    ("while scanning a quoted scalar", "the quote that opens here is never closed"),
    ("unknown escape character", "use single quotes, in which a backslash is just a backslash"),
    ("expected <block end>", "the lines of one mapping or list must start in the same column"),
    ("while scanning an alias", "quote a text that starts with *"),
    ("while scanning an anchor", "quote a text that starts with &"),
    ("while scanning a tag", "quote a text that starts with !"),
    ("while parsing a tag", "quote a text that starts with !"),
    ("that cannot start any token", "quote a text that starts with this character"),
    ("while scanning a directive", "quote a text that starts with %"),
    ("expected the node content", "a value is missing, or a bracket or comma is out of place"),
)

# Where PyYAML's own position is the end of the file, what opened there is the place to look at.
_OPENERS = ("while scanning a quoted scalar", "while parsing a flow sequence", "while parsing a flow mapping")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file, 1-based."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML file says, and where it says it.

    :param value: plain dicts with string keys, lists, strings, integers, floats, booleans and None.
    :param file: the file as the person named it.
    :param keys: where each mapping's keys stand, by the path of the value under the key.
    :param values: where each value starts, by its path.
    """

    value: Any
    file: str
    keys: Mapping[KeyPath, Mark]
    values: Mapping[KeyPath, Mark]

    def at(self, path: KeyPath) -> Any:
        """The value at ``path``; raises ``LookupError`` or ``TypeError`` when there is none."""
        value = self.value
        for step in path:
            value = value[step]
        return value

    def mark(self, path: KeyPath, *, at_key: bool = False) -> Mark:
        """Where the value at ``path`` stands or, when there is none, the nearest thing around it.

        A scalar is marked where it is written. A mapping or list is marked at the key that holds it, because it may
        itself start lines further down.

        :param at_key: mark the key even when the value is a scalar: it is the key that is wrong.
        """
        for length in range(len(path), 0, -1):
            prefix = path[:length]
            if prefix in self.values:
                collection = length < len(path) or isinstance(self.at(prefix), dict | list)
                return self.keys.get(prefix, self.values[prefix]) if at_key or collection else self.values[prefix]
        return self.values[()]

    def problem(self, path: KeyPath, message: str, hint: str | None = None, *, at_key: bool = False) -> Problem:
        """The fault at ``path`` as a :class:`Problem` that points at the nearest mark (see :meth:`mark`)."""
        mark = self.mark(path, at_key=at_key)
        return Problem(self.file, mark.line, mark.column, dotted(path), message, hint)


def dotted(path: KeyPath) -> str:
    """A path as people read it: ``drive[1].balloon.inflate.pages``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step if re.fullmatch(r"[\w.-]{1,64}", step, re.ASCII) else quoted(step)
            text += f".{name}" if text else name
    return text


def quoted(text: str) -> str:
    """A text for a message: in double quotes, at most 60 characters of it, nothing in it that moves a cursor."""
    short = text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 3] + "..."
    escaped = json.dumps(short, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped)


def read(path: Path, name: str | None = None) -> Document:
    """Read and parse a file.

    :param path: a regular file; a FIFO or device is refused, because reading it may never end.
    :param name: what problems call the file; ``path`` by default.
    :raises ScenarioError: when the file cannot be read or :func:`parse` refuses it.
    """
    file = str(path) if name is None else name
    try:
        if not path.is_file():
            raise ScenarioError(
                [Problem(file, 0, 0, "", "is not a regular file" if path.exists() else "does not exist")]
            )
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ScenarioError([Problem(file, 0, 0, "", f"cannot be read: {reason}")]) from error
    return parse(data, file)


def parse(text: bytes | str, file: str) -> Document:
    """Parse one YAML document of at most :data:`MAX_BYTES` bytes of UTF-8, nested at most :data:`MAX_DEPTH` deep.

    :param file: what problems call the file.
    :raises ScenarioError: with every problem up to the first that makes the rest unreadable.
    """
    builder = _Builder(_decode(text, file), file)
    value = builder.build()
    if builder.problems:
        raise ScenarioError(builder.problems)
    return Document(value, file, builder.keys, builder.values)


def dump(value: Any) -> str:
    """Plain values as YAML that :func:`parse` reads back as they are.

    :param value: dicts with string keys, lists, strings, integers of 64 bits, finite floats, booleans and None.
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes no aliases, and quotes what this module's rules would not read as the same text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  (PyYAML's signature)
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        try:
            safe = plain(text) == text and text.isprintable()
        except AmbiguousError:
            safe = False
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if safe else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


def _decode(text: bytes | str, file: str) -> str:
    """The text of a file, once its size and encoding are known to be good."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_BYTES:
        raise ScenarioError([Problem(file, 0, 0, "", f"is larger than {MAX_BYTES // 1024} KiB")])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _line_and_column(data[: error.start].decode("utf-8"))
        message = f"is not UTF-8: byte 0x{data[error.start]:02x} ({error.reason})"
        raise ScenarioError([Problem(file, line, column, "", message, "save the file as UTF-8")]) from error


class _Builder:
    """Builds plain values from the events of one document and collects what is not allowed in it."""

    def __init__(self, text: str, file: str) -> None:
        self.problems: list[Problem] = []
        self.keys: dict[KeyPath, Mark] = {}
        self.values: dict[KeyPath, Mark] = {}
        self._file = file
        self._text = text
        self._events = self._scan()

    def build(self) -> Any:
        """The document's value. Raises :class:`ScenarioError` on what makes the rest unreadable."""
        self.values[()] = Mark(1, 1)
        next(self._events)  # the stream starts
        event = next(self._events)
        if not isinstance(event, yaml.DocumentStartEvent):
            return None
        if event.version is not None or event.tags:
            self._add(event, (), "% directives are not allowed", "remove the line")
        first = next(self._events)
        self.values[()] = _mark(first)
        value = self._node(first, ())
        next(self._events)  # the document ends
        event = next(self._events)
        if isinstance(event, yaml.DocumentStartEvent):
            self._stop(event, (), "only one document is allowed in a file", "split the file at the ---")
        return value

    def _scan(self) -> Iterator[yaml.Event]:
        """The parser's events, with its errors turned into problems."""
        try:
            yield from yaml.parse(self._text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            line, column = _line_and_column(self._text[: error.position])
            message = f"is not valid YAML: the character U+{ord(self._text[error.position]):04X} is not allowed"
            raise self._error(line, column, message, "write it as an escape in double quotes") from error
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from error
        except (ValueError, OverflowError) as error:
            # PyYAML passes an escape such as "\UFFFFFFFF" to chr() and a %YAML version to int() unchecked.
            raise self._error(0, 0, f"is not valid YAML: {error}", "check the escapes in double quotes") from error

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> ScenarioError:
        told = ", ".join(part for part in (error.context, error.problem) if part)[:200]
        opened = error.context in _OPENERS and "but got '{'" not in told
        mark = error.context_mark if opened else error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        hint = next((hint for part, hint in _SYNTAX_HINTS if part in told), None)
        return self._error(line, column, f"is not valid YAML: {told}", hint)

    def _error(self, line: int, column: int, message: str, hint: str | None) -> ScenarioError:
        return ScenarioError([*self.problems, Problem(self._file, line, column, "", message, hint)])

    def _node(self, event: yaml.Event, path: KeyPath) -> Any:
        """The value that starts with ``event``."""
        self.values.setdefault(path, _mark(event))
        if isinstance(event, yaml.ScalarEvent):
            return event.value if self._decorated(event, path) else self._scalar(event, path)
        if not isinstance(event, yaml.CollectionStartEvent):
            self._add(event, path, "aliases are not allowed", "quote a text that starts with *")
            return None
        self._decorated(event, path)
        if len(path) >= MAX_DEPTH:
            self._stop(event, path[:4], f"is nested more than {MAX_DEPTH} deep")
        return self._sequence(path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(path)

    def _decorated(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, path: KeyPath) -> bool:
        """Whether an anchor or a tag, both refused, stands before the value."""
        if event.anchor is not None:
            self._add(event, path, "anchors are not allowed", "quote a text that starts with &")
        if event.tag is not None:
            self._add(event, path, "tags are not allowed", "quote a text that starts with !")
        return event.anchor is not None or event.tag is not None

    def _sequence(self, path: KeyPath) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return items

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path)
            inner = (*path, key)
            if key in items:
                message = f"duplicate key, first on line {self.keys[inner].line}"
                self._add(event, inner, message, "remove one of the two")
            self.keys.setdefault(inner, _mark(event))
            items.setdefault(key, self._node(next(self._events), inner))
        return items

    def _key(self, event: yaml.Event, path: KeyPath) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            self._stop(event, path, "keys must be strings, got a list, mapping or alias", "quote it if it is text")
        if self._decorated(event, path):
            return event.value
        if event.style is None and event.value == "<<":
            self._add(event, path, "merge keys (<<) are not allowed", "write the keys out")
            return event.value
        before = len(self.problems)
        value = self._scalar(event, path)
        if not isinstance(value, str) and len(self.problems) == before:
            self._add(event, path, f"keys must be strings, got {event.value or 'nothing'}", "quote it if it is text")
        return event.value

    def _scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> Any:
        """What a scalar means; None after adding a problem when that cannot be told."""
        if any("\ud800" <= character <= "\udfff" for character in event.value):
            self._add(event, path, "half of a surrogate pair is not a character", "write the character itself")
            return None
        if event.style is not None:
            return event.value
        try:
            return plain(event.value)
        except AmbiguousError as error:
            self._add(event, path, f"{quoted(event.value)} without quotes {error}", error.hint)
            return None

    def _add(self, event: yaml.Event, path: KeyPath, message: str, hint: str | None = None) -> None:
        mark = _mark(event)
        self.problems.append(Problem(self._file, mark.line, mark.column, dotted(path), message, hint))
        if len(self.problems) == MAX_PROBLEMS:
            raise ScenarioError(self.problems)

    def _stop(self, event: yaml.Event, path: KeyPath, message: str, hint: str | None = None) -> NoReturn:
        self._add(event, path, message, hint)
        raise ScenarioError(self.problems)


def _mark(event: yaml.Event) -> Mark:
    assert event.start_mark is not None, "events from a stream have marks"
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)


def _line_and_column(before: str) -> tuple[int, int]:
    """The place, 1-based, that comes after the text ``before``."""
    return before.count("\n") + 1, len(before) - before.rfind("\n")
