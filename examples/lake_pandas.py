#!/usr/bin/env python3
"""Reads the lake with pyarrow and pandas: a day of one fleet as a data frame.

    cargo run --release -- demo --keep carstream-demo        # makes a lake, among other things
    python examples/lake_pandas.py carstream-demo/lake

pyarrow reads only the columns and the dates that are asked for; s3://… works as well, with credentials from the
environment. What to know about the lake is in lake_duckdb.py.
"""

import sys

import pyarrow.dataset as ds

if len(sys.argv) != 2:
    sys.exit(__doc__)
lake = sys.argv[1].rstrip("/")


def topic(name):
    return ds.dataset(f"{lake}/{name}", format="parquet", partitioning="hive")


identity = ["car", "boot_id", "seq"]
telemetry = topic("telemetry").to_table(columns=identity + ["event_time_ms", "speed", "engine_vibration_amplitude"])
scores = topic("scores").to_table(columns=identity + ["score", "anomalous"])
readings = telemetry.to_pandas().merge(scores.to_pandas(), on=identity, how="left", validate="one_to_one")

print("Vibration by speed, of cars that drive")
driving = readings[readings["speed"] > 0.5]
by_speed = driving.groupby((driving["speed"] // 5 * 5).rename("speed_from"))["engine_vibration_amplitude"]
print(by_speed.agg(["count", "mean", "std"]).round(2))

print("Judged readings per hour, and the share above the threshold")
judged = readings[readings["score"] > 0].set_index("event_time_ms")  # parked cars and cars in their warm-up have score 0
hourly = judged["anomalous"].astype(float).resample("1h").agg(["count", "mean"])
print(hourly.rename(columns={"mean": "anomalous"}).round(4))

print(f"{len(readings)} readings, {int(readings['score'].notna().sum())} scores")
