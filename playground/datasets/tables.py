"""Parquet files read in pieces, with errors that name file and column."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_FAILURES = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, RuntimeError)
_PIECE = 1024  # rows


class Table:
    """A parquet file that is open. name: what errors call it."""

    def __init__(self, path: Path, name: str):
        self.name = name
        try:
            # A row group may be the whole file: columns are read in pieces too.
            self._file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
            self.columns = tuple(self._file.schema_arrow.names)
        except _FAILURES as error:
            raise ValueError(f"{name} is no parquet file, or is damaged: {error}") from error

    def read(
        self, columns: Sequence[str], within: tuple[int, int] | None = None
    ) -> dict[str, pa.Array]:
        """Columns by name; within: only rows whose `index` is in [first, last). Row groups without
        such rows are passed over, and of the others one piece at a time is held.

        Raises ValueError for a column that is missing or that cannot be read.
        """
        wanted = list(dict.fromkeys([*columns, *(["index"] if within else [])]))
        for column in wanted:
            if column not in self.columns:
                raise ValueError(f"{self.name} has no column {column!r}; it has {self._listed()}")
        found: dict[str, list[pa.Array]] = {column: [] for column in columns}
        try:
            groups = self._groups(within)
            pieces = self._file.iter_batches(_PIECE, columns=wanted, row_groups=groups)
            for piece in pieces:
                if within is not None:
                    index = piece.column("index").to_numpy(zero_copy_only=False)
                    piece = piece.filter(pa.array((index >= within[0]) & (index < within[1])))
                for column in columns if piece.num_rows else ():
                    found[column].append(piece.column(column))
            types = {column: self._file.schema_arrow.field(column).type for column in columns}
            return {c: pa.chunked_array(parts, types[c]) for c, parts in found.items()}
        except _FAILURES as error:
            raise ValueError(f"{self.name} cannot be read: {error}") from error

    def _listed(self) -> str:
        return ", ".join(c for c in self.columns if not c.startswith("stats/"))[:300]

    def _groups(self, within: tuple[int, int] | None) -> list[int]:
        metadata = self._file.metadata
        groups = range(metadata.num_row_groups)
        if within is None:
            return list(groups)
        (place,) = (
            i for i in range(metadata.num_columns) if metadata.schema.column(i).path == "index"
        )
        kept = []
        for group in groups:
            statistics = metadata.row_group(group).column(place).statistics
            if statistics is not None and statistics.has_min_max:
                if statistics.max >= within[0] and statistics.min < within[1]:
                    kept.append(group)
            else:
                kept.append(group)
        return kept


def numbers(column: pa.ChunkedArray, where: str, dims: int | None = None) -> np.ndarray:
    """A column as an array [n], or [n, dims] of vectors (dims 1: plain numbers too). Raises
    ValueError for gaps, other types, and vectors of another length; where: file and column."""
    if column.null_count:
        raise ValueError(f"{where}: {column.null_count} values are missing (null)")
    kind = column.type
    if dims is None or (dims == 1 and not _is_list(kind)):
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        ):
            raise ValueError(f"{where}: expected numbers, found {kind}")
        values = column.to_numpy()
        return values if dims is None else values[:, None]
    if not _is_list(kind):
        raise ValueError(f"{where}: expected vectors of {dims}, found {kind}")
    flat = [chunk.flatten() for chunk in column.chunks]
    values = numbers(pa.chunked_array(flat, kind.value_type), where)
    lengths = {int(x) for chunk in column.chunks for x in np.unique(_lengths(chunk))}
    if lengths - {dims}:
        raise ValueError(
            f"{where}: vectors of {sorted(lengths)} values, meta/info.json says {dims}"
        )
    return values.reshape(-1, dims)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    )


def _lengths(chunk: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(chunk.type):
        return np.array([chunk.type.list_size])
    return np.diff(chunk.offsets.to_numpy())


def texts(column: pa.ChunkedArray, where: str) -> list:
    """A column of texts, or of lists of texts, as Python values."""
    kind = column.type.value_type if _is_list(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{where}: expected text, found {column.type}")
    if column.null_count:
        raise ValueError(f"{where}: {column.null_count} texts are missing (null)")
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is damaged, it holds a text that is no UTF-8: {error}"
        ) from error
