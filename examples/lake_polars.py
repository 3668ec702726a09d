#!/usr/bin/env python3
"""Reads the lake with Polars: a lazy query, of which only the needed columns and days are read.

    cargo run --release -- demo --keep carstream-demo        # makes a lake, among other things
    python examples/lake_polars.py carstream-demo/lake

s3://… works as well, with credentials from the environment. What to know about the lake is in lake_duckdb.py.
"""

import sys

import polars as pl

if len(sys.argv) != 2:
    sys.exit(__doc__)
lake = sys.argv[1].rstrip("/")


def topic(name):
    # An object from before a column was added to the contract lacks it.
    return pl.scan_parquet(f"{lake}/{name}/**/*.parquet", hive_partitioning=True, missing_columns="insert")


identity = ["car", "boot_id", "seq"]
readings = topic("telemetry").join(topic("scores"), on=identity, how="left", validate="1:1", suffix="_of_score")

print("The cars with the most readings above the threshold")
worst = (
    readings.group_by("car")
    .agg(pl.len().alias("readings"), pl.col("anomalous").sum(), pl.col("event_time_ms").max().alias("last"))
    .sort("anomalous", "car", descending=[True, False])
)
print(worst.head(5).collect())

print("Readings per day of receipt, the folder, and how late they were measured at most")
days = readings.group_by("date").agg(pl.len(), pl.col("event_time_ms").min().alias("measured_first")).sort("date")
print(days.collect())

total = readings.select(pl.len().alias("readings"), pl.col("score").count().alias("scores")).collect()
print(f"{total['readings'][0]} readings, {total['scores'][0]} scores")
