"""A shard on its way: one row of a Ray Data block, its tables as Arrow IPC bytes, so that no block cuts it in two."""

import pyarrow as pa


def pack(table: pa.Table) -> bytes:
    """`table` as bytes in Arrow's IPC format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack(data: bytes | pa.Buffer) -> pa.Table:
    """The table that `pack` wrote; its columns are views of `data`."""
    with pa.ipc.open_stream(data) as stream:
        return stream.read_all()


def part(packet: pa.Table, name: str) -> pa.Table:
    """The table that one column of a shard's `packet` holds."""
    return unpack(packet.column(name)[0].as_buffer())
