"""Rows of files and hub sets, with their line numbers: what `data` checks and makes tables of."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa


class DataError(ValueError):
    """Input that cannot be used: one sentence with the file, the line and the field."""


def rows_of(source: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) pairs; the line is the one an editor shows (for Parquet and hub sets: the row, from 1)."""
    if str(source).startswith("hub:"):
        return _hub_rows(str(source).removeprefix("hub:"))
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows, ".txt": _txt_rows}
    if path.suffix not in readers:
        raise DataError(f"{path}: unknown kind {path.suffix!r}; files are {', '.join(readers)}")
    return _named_errors(path, readers[path.suffix](path))


def _named_errors(path: Path, rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same rows; what goes wrong inside a reader becomes an error that names the file."""
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except (csv.Error, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix}: {error}") from None


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip("\r\n"))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: broken JSON at column {error.colno} ({error.msg})") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected one JSON object a line, found {type(row).__name__}")
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} fields")
            yield reader.line_num, row


def _txt_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        yield from enumerate(({"text": line.rstrip("\n")} for line in lines), 1)


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(pd.read_parquet(path).to_dict("records"), 1)


def _hub_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a hub set, or of a local folder that `datasets` can read, each with the split it stands in."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"hub:{name}: hub sets need the extra `hub`: pip install 'gate-lessons[hub]'") from None
    number = 0
    for split, rows in load_dataset(name).items():
        for row in rows:
            number += 1
            yield number, {"split": split} | row
