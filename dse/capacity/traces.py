"""Request traces: CSV and JSON-lines files under the headers that public traces use.

Known layouts: ``arrived_at, num_prefill_tokens, num_decode_tokens`` (Vidur, Splitwise), ``TIMESTAMP,
ContextTokens, GeneratedTokens`` (Azure, dates), ``timestamp, input_length, output_length`` (Mooncake,
milliseconds, also as JSON lines), ``Timestamp, Request tokens, Response tokens`` (BurstGPT, seconds).
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dse.capacity.load import Load, RequestClass
from dse.errors import ConfigError

ARRIVAL = (
    "arrived_at",
    "arrival_s",
    "arrival_time",
    "arrival",
    "timestamp",
    "time",
    "time_s",
    "timestamp_ms",
)
PROMPT = (
    *("num_prefill_tokens", "prompt_tokens", "contexttokens", "context_tokens", "input_length"),
    *("request_tokens", "input_tokens", "prompt_len", "prompt_length"),
)
OUTPUT = (
    *("num_decode_tokens", "output_tokens", "generatedtokens", "generated_tokens", "output_length"),
    *("response_tokens", "output_len"),
)
CLASS = ("class", "request_class")
MILLISECOND_COLUMNS = ("timestamp_ms",)
Rows = Iterator[tuple[int, Mapping[str, object]]]


def read_trace(
    path: Path,
    classes: Sequence[RequestClass] = (RequestClass("all"),),
    *,
    name: str | None = None,
    drop_failed: bool = False,
) -> Load:
    """Return the requests of a file. Times are taken relative to the first arrival.

    Args:
        path: a CSV, or JSON lines where the name ends in ``.jsonl``.
        classes: request classes. A column ``class`` names the class of each row; without it there is one.
        name: of the load, else the file's.
        drop_failed: leave out rows without output (BurstGPT marks failures so) instead of refusing them.

    Raises:
        ConfigError: no such file, a missing column, no rows, times that go backwards, or a value that is not
            a number, negative or NaN; the line names file and row.
    """
    if not path.is_file():
        raise ConfigError("no such file", file=str(path))
    columns, rows = _json_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    file = str(path)
    arrival, prompt, output = (
        _column(columns, wanted, file, what)
        for wanted, what in ((ARRIVAL, "arrival times"), (PROMPT, "prompt tokens"), (OUTPUT, "output tokens"))
    )
    label = next((columns[entry] for entry in CLASS if entry in columns), None)
    if label is None and len(classes) != 1:
        raise ConfigError("several classes need a column 'class'", file=file, value="class", allowed=columns)
    scale = _seconds_per_tick(columns, arrival)
    place = {entry.name: index for index, entry in enumerate(classes)}
    times: list[float] = []
    lengths: list[tuple[int, int, int]] = []
    for number, row in rows:
        where = f"row {number}"
        pair = _tokens(row.get(prompt), prompt, file, where), _tokens(row.get(output), output, file, where)
        if pair[1] == 0 and drop_failed:
            continue
        for value, column in zip(pair, (prompt, output), strict=True):
            if value < 1:
                raise ConfigError(f"must be at least 1, but is {value}", file=file, path=f"{where}.{column}")
        times.append(_time_s(row.get(arrival), scale, arrival, file, where))
        if len(times) > 1 and times[-1] < times[-2]:
            text = "arrives before the row above it: sort the trace by arrival"
            raise ConfigError(text, file=file, path=f"{where}.{arrival}")
        lengths.append((*pair, _class_of(row, label, place, file, where)))
    if not times:
        raise ConfigError("holds no requests", file=file)
    arrival_s = np.array(times) - times[0]
    table = np.array(lengths, dtype=np.int64)
    return Load(
        name or path.stem,
        arrival_s,
        table[:, 0],
        table[:, 1],
        table[:, 2].astype(np.intp),
        tuple(classes),
        float(arrival_s[-1]),
    )


def _csv_rows(path: Path) -> tuple[dict[str, str], Rows]:
    with path.open(newline="", encoding="utf-8-sig") as handle:
        try:
            reader = csv.DictReader(handle)
            header = list(reader.fieldnames or ())
            content = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"is not a CSV: {error}", file=str(path)) from error
    if not header:
        raise ConfigError("the file is empty", file=str(path))
    return {_key(column): column for column in header}, iter(enumerate(content, start=2))


def _json_rows(path: Path) -> tuple[dict[str, str], Rows]:
    rows: list[tuple[int, Mapping[str, object]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"is not JSON: {error}", file=str(path), path=f"row {number}") from error
        if not isinstance(row, dict):
            raise ConfigError("must be an object", file=str(path), path=f"row {number}")
        rows.append((number, row))
    if not rows:
        raise ConfigError("holds no requests", file=str(path))
    return {_key(column): column for column in rows[0][1]}, iter(rows)


def _key(column: str) -> str:
    return column.strip().lower().replace(" ", "_")


def _column(columns: Mapping[str, str], wanted: Sequence[str], file: str, what: str) -> str:
    for entry in wanted:
        if entry in columns:
            return columns[entry]
    found = ", ".join(columns.values())
    names = ", ".join(wanted)
    raise ConfigError(f"no column of {what} (one of {names}); the file has {found}", file=file)


def _seconds_per_tick(columns: Mapping[str, str], arrival: str) -> float:
    """Return 1e-3 for layouts in milliseconds: a column that says so, or Mooncake's three columns."""
    mooncake = {"timestamp", "input_length", "output_length"} <= columns.keys()
    return 1e-3 if mooncake or _key(arrival) in MILLISECOND_COLUMNS else 1.0


def _time_s(value: object, scale: float, column: str, file: str, where: str) -> float:
    text = str(value).strip()
    try:
        time_s = float(text) * scale
    except ValueError:
        try:
            # Azure writes seven digits of a second, of which the parser reads six.
            date = dt.datetime.fromisoformat(text[:26])
            return date.replace(tzinfo=date.tzinfo or dt.UTC).timestamp()
        except ValueError:
            raise ConfigError(
                f"must be seconds or a date, but is {value!r}", file=file, path=f"{where}.{column}"
            ) from None
    if not math.isfinite(time_s):
        raise ConfigError(f"must be finite, but is {value!r}", file=file, path=f"{where}.{column}")
    return time_s


def _tokens(value: object, column: str, file: str, where: str) -> int:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number != int(number):
        raise ConfigError(
            f"must be a whole number, but is {value!r}", file=file, path=f"{where}.{column}", value=value
        )
    if number < 0:
        raise ConfigError(f"must not be negative, but is {value}", file=file, path=f"{where}.{column}")
    return int(number)


def _class_of(
    row: Mapping[str, object], label: str | None, place: Mapping[str, int], file: str, where: str
) -> int:
    if label is None or len(place) == 1:
        return 0
    name = str(row.get(label))
    if name not in place:
        raise ConfigError(
            f"unknown class '{name}'", file=file, path=f"{where}.{label}", value=name, allowed=place
        )
    return place[name]
