#!/usr/bin/env python3
"""Reads the lake with DuckDB: readings and scores are Parquet files, so plain SQL is enough.

    cargo run --release -- demo --keep carstream-demo        # makes a lake, among other things
    python examples/lake_duckdb.py carstream-demo/lake

A lake in S3 is read the same way; give DuckDB the store's credentials first:

    CREATE SECRET (TYPE s3, KEY_ID '…', SECRET '…', ENDPOINT 'localhost:9000', USE_SSL false, URL_STYLE path);
    SELECT count(*) FROM read_parquet('s3://lake/telemetry/**/*.parquet', hive_partitioning = true);

What to know about the lake:
  - Objects are TOPIC/date=YYYY-MM-DD/partition=N/START-OFFSET.parquet. They are created once and never changed, so a
    query needs no lock. `carstream compact` replaces those of closed days by compacted-START-END.parquet; for the seconds
    that takes, their rows are found twice: count each (partition, log_offset) once if that matters. The date is the day (UTC) on which the bridge received a reading, which is log_timestamp_ms; it
    lets DuckDB skip files. Cars may send readings days later: for those of a day by the cars' clocks, filter by
    event_time_ms, and by the dates from that day to as long after it as late readings matter to you.
  - Each row has log_offset and log_timestamp_ms beside the columns of its schema (schemas/*.avsc).
  - (car, boot_id, seq) identifies a reading. It joins readings with their scores.
"""

import sys

import duckdb

if len(sys.argv) != 2:
    sys.exit(__doc__)
lake = sys.argv[1]
db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'")
for topic in ("telemetry", "scores"):
    db.execute(f"CREATE VIEW {topic} AS FROM read_parquet('{lake}/{topic}/**/*.parquet', hive_partitioning = true)")

print("Readings received and cars seen per day")
print(db.sql("SELECT date, count(*) AS readings, count(DISTINCT car) AS cars FROM telemetry GROUP BY date ORDER BY date"))

print("The ten cars with the highest scores, and what they measured then")
print(db.sql("""
    SELECT s.car, round(s.score, 1) AS score, t.event_time_ms AS measured_at, s.feature_1 AS stands_out,
           round(t.speed, 1) AS speed, round(t.coolant_temp, 1) AS coolant_temp
    FROM scores s JOIN telemetry t USING (car, boot_id, seq)
    QUALIFY row_number() OVER (PARTITION BY s.car ORDER BY s.score DESC) = 1
    ORDER BY s.score DESC LIMIT 10"""))

readings, scores = (db.execute(f"SELECT count(*) FROM {topic}").fetchall()[0][0] for topic in ("telemetry", "scores"))
print(f"{readings} readings, {scores} scores")
