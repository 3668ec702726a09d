#!/usr/bin/env python3
"""Makes an Iceberg table of a topic of the lake with PyIceberg: no file is copied or changed.

    cargo run --release -- demo --keep carstream-demo        # makes a lake, among other things
    python examples/lake_iceberg.py carstream-demo/lake

Engines that speak Iceberg then read the lake through the table's catalog, here a file of SQLite beside the lake. The
files have no field ids, so Iceberg finds columns by name; a column that a later contract adds is null in older files.
Leave out days that are not compacted yet (today's, and yesterday's until six hours after midnight UTC): compaction
removes their files, and the table would miss them. What else to know about the lake is in lake_duckdb.py.
"""

import pathlib
import sys

import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

if len(sys.argv) != 2:
    sys.exit(__doc__)
lake = pathlib.Path(sys.argv[1]).resolve()

warehouse = lake.parent / "iceberg"
warehouse.mkdir(exist_ok=True)
catalog = SqlCatalog("carstream", uri=f"sqlite:///{warehouse}/catalog.db", warehouse=f"file://{warehouse}")
catalog.create_namespace_if_not_exists("lake")


def table(topic):
    files = sorted((lake / topic).glob("date=*/partition=*/*.parquet"))
    made = catalog.create_table_if_not_exists(f"lake.{topic}", schema=pq.read_schema(files[-1]))
    known = {file["file_path"] for file in made.inspect.files().to_pylist()}
    made.add_files([new for file in files if (new := f"file://{file}") not in known])
    return made


telemetry, scores = table("telemetry"), table("scores")
print("Files that a query of one car reads, of all: what Iceberg knows of each file leaves out the others")
car = telemetry.scan(limit=1, selected_fields=("car",)).to_arrow()["car"][0].as_py()
one = telemetry.scan(row_filter=f"car = '{car}'")
print(f"{len(list(one.plan_files()))} of {len(list(telemetry.scan().plan_files()))}, {one.to_arrow().num_rows} readings")

print(f"{telemetry.scan().to_arrow().num_rows} readings, {scores.scan().to_arrow().num_rows} scores")
