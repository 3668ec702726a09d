"""What pyarrow and DuckDB each find in the Parquet of a lake's topic `telemetry`, as JSON: for read_with_python.rs."""

import json
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

folder = Path(sys.argv[1]) / "telemetry"
files = sorted(folder.rglob("*.parquet"))

# pyarrow, file by file: partition and date are in the names.
tables = [pq.ParquetFile(file).read() for file in files]
table = pa.concat_tables(tables)
ms = lambda column: pc.cast(pc.cast(table[column], pa.timestamp("ms", "UTC")), pa.int64())
footers = [pq.ParquetFile(file).metadata.metadata for file in files]
by_pyarrow = {
    "rows": table.num_rows,
    "columns": table.column_names,
    "types": {name: str(table.schema.field(name).type) for name in ("event_time_ms", "log_timestamp_ms", "log_offset")},
    "seq": pc.sum(table["seq"]).as_py(),
    "offsets": pc.sum(table["log_offset"]).as_py(),
    "event_time_ms": pc.sum(ms("event_time_ms")).as_py(),
    "log_timestamp_ms": pc.sum(ms("log_timestamp_ms")).as_py(),
    "speed": pc.sum(pc.cast(table["speed"], pa.float64())).as_py(),
    "cars": len(pc.unique(table["car"])),
    "no_ambient_temp": table["ambient_temp"].null_count,
    "no_segment": table["driver_segment"].null_count,
}

# DuckDB, all files as one table with the names' partitions as columns.
db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'")
source = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true)"
names = [row[0] for row in db.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
types = {row[0]: row[1] for row in db.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
row = db.execute(
    f"""SELECT count(*), sum(seq), sum(log_offset), sum(epoch_ms(event_time_ms)), sum(epoch_ms(log_timestamp_ms)),
    sum(speed::DOUBLE), count(DISTINCT car), count(*) FILTER (ambient_temp IS NULL),
    count(*) FILTER (driver_segment IS NULL) FROM {source}"""
).fetchall()[0]
by_duckdb = {
    "rows": row[0],
    "columns": [name for name in names if name not in ("date", "partition")],
    "types": {name: types[name] for name in ("event_time_ms", "log_timestamp_ms", "log_offset")},
    "seq": int(row[1]),
    "offsets": int(row[2]),
    "event_time_ms": int(row[3]),
    "log_timestamp_ms": int(row[4]),
    "speed": row[5],
    "cars": row[6],
    "no_ambient_temp": row[7],
    "no_segment": row[8],
}
# Statistics let a reader skip: a time range that no file has must not read a row group.
metadata = pq.ParquetFile(files[0]).metadata
column = next(
    metadata.row_group(0).column(i)
    for i in range(metadata.num_columns)
    if metadata.row_group(0).column(i).path_in_schema == "event_time_ms"
)
print(
    json.dumps(
        {
            "pyarrow": by_pyarrow,
            "duckdb": by_duckdb,
            "dates": sorted({str(row[0]) for row in db.execute(f"SELECT DISTINCT date FROM {source}").fetchall()}),
            "footer_keys": sorted(key.decode() for key in footers[0] if not key.startswith(b"ARROW")),
            "statistics": column.statistics is not None and column.statistics.has_min_max,
            "compression": column.compression,
        }
    )
)
