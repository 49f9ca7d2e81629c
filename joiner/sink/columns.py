"""Batches as a table that can be written as one file: columns that come and go, hours of event time, shared messages. Pure."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from joiner.sink.journal import HOUR_MS, hour_folder

NEEDED = ("ts_ms", "source_partition", "source_offset", "item_id")
"""Columns that a batch must have."""


class RetypedError(ValueError):
    """A column has another type than in the rows that are there already."""


def stored(schema: pa.Schema) -> pa.Schema:
    """A schema as it is in files: dictionaries are a matter of encoding there, and a batch's metadata is its own."""
    return pa.schema([_stored(field) for field in schema])


def _stored(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field.remove_metadata()


def evolved(known: pa.Schema | None, new: pa.Schema) -> pa.Schema:
    """The columns of both. A column that only one of them has is null in the other's rows. Raises RetypedError."""
    new = stored(new)
    if known is None or known.equals(new):
        return new
    fields = []
    for field in known:
        other = new.field(field.name) if field.name in new.names else None
        if other is not None and other.type != field.type:
            raise RetypedError(f"column {field.name} is {other.type}, but {field.type} in the files that are there")
        fields.append(field.with_nullable(field.nullable or other is None or other.nullable))
    return pa.schema([*fields, *(field.with_nullable(True) for field in new if field.name not in known.names)])


def encode_columns(schema: pa.Schema) -> bytes:
    """A schema as bytes, for the journal."""
    encoded: bytes = schema.serialize().to_pybytes()
    return encoded


def decode_columns(encoded: bytes) -> pa.Schema | None:
    """The schema; None of no bytes."""
    return pa.ipc.read_schema(pa.py_buffer(encoded)) if encoded else None


def by_hour(batches: Iterable[pa.RecordBatch]) -> dict[str, list[pa.RecordBatch]]:
    """The rows of each hour of event time, by folder, in their order."""
    folders: dict[str, list[pa.RecordBatch]] = {}
    for batch in batches:
        hours = batch["ts_ms"].to_numpy() // HOUR_MS
        for hour in np.unique(hours).tolist():
            rows = hours == hour
            part = batch if rows.all() else _own_dictionaries(batch.filter(pa.array(rows)))
            folders.setdefault(hour_folder(hour), []).append(part)
    return folders


def _own_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Without the values that only the rows left out have: they would be written, too."""
    columns = [column.dictionary_decode().dictionary_encode() if _is_dictionary(column) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _is_dictionary(column: pa.Array) -> bool:
    return bool(pa.types.is_dictionary(column.type))


def as_table(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """The rows one after the other, with the columns of `schema`: null where a batch does not have one. Binary columns are dictionaries."""
    columns = [_column(batches, field) for field in schema]
    fields = [field.with_type(column.type) for field, column in zip(schema, columns, strict=True)]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _column(batches: Sequence[pa.RecordBatch], field: pa.Field) -> pa.Array:
    arrays = [batch[field.name] if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type) for batch in batches]
    if not pa.types.is_binary(field.type):
        return pa.concat_arrays([array.dictionary_decode() if _is_dictionary(array) else array for array in arrays])
    # Messages, shared by the rows of a page. They are joined as they are: looking for equal ones among batches would cost more.
    arrays = [array if _is_dictionary(array) else array.dictionary_encode() for array in arrays]
    first_values = np.cumsum([0, *(len(array.dictionary) for array in arrays[:-1])]).tolist()
    indices = [pc.add(array.indices, pa.scalar(first, pa.int32())) for array, first in zip(arrays, first_values, strict=True)]
    return pa.DictionaryArray.from_arrays(pa.concat_arrays(indices), pa.concat_arrays([array.dictionary for array in arrays]))


def _has_few_values(column: pa.ChunkedArray) -> bool:
    """Whether a dictionary pays: for shared messages, and names such as a policy's. Ids and numbers were 12 % smaller without."""
    if pa.types.is_string(column.type):
        return len(pc.unique(column.slice(0, 4_096))) <= 64
    return bool(pa.types.is_dictionary(column.type))


def parquet(tables: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    """A Parquet file: a row group a table, zstd, types as in `schema`."""
    sink, writer = pa.BufferOutputStream(), None
    for table in tables:
        if writer is None:
            writer = pq.ParquetWriter(
                sink,
                table.schema,
                compression="zstd",
                store_schema=False,  # or readers would be given the dictionaries
                use_dictionary=[field.name for field in schema if _has_few_values(table[field.name])],
                write_statistics=[field.name for field in schema if not pa.types.is_binary(field.type)],
                dictionary_pagesize_limit=1 << 30,  # the messages of a row group: it is bounded
            )
        writer.write_table(table, row_group_size=max(1, table.num_rows))
    assert writer is not None, "a file has rows"
    writer.close()
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded
