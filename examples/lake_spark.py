#!/usr/bin/env python3
"""Reads the lake with Spark 3.5 in SQL, as a cluster would: days of one topic are partitions of a table.

    cargo run --release -- demo --keep carstream-demo        # makes a lake, among other things
    pip install 'pyspark>=3.5,<3.6'                          # 300 MB, and Java 17
    python examples/lake_spark.py carstream-demo/lake

s3a://… works as well, with Spark's hadoop-aws. What to know about the lake is in lake_duckdb.py.
"""

import sys

from pyspark.sql import SparkSession

if len(sys.argv) != 2:
    sys.exit(__doc__)
lake = sys.argv[1].rstrip("/")

settings = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "2",  # a few cars' days, not a cluster's
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
spark = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
for topic in ["telemetry", "scores"]:
    # An object from before a column was added to the contract lacks it.
    spark.read.option("mergeSchema", "true").parquet(f"{lake}/{topic}").createOrReplaceTempView(topic)

print("Alerts to look at: the highest score of each car, and what it is about")
spark.sql("""
    SELECT car, round(max(score), 2) AS highest, max_by(event_time_ms, score) AS at, count_if(anomalous) AS anomalous
    FROM scores GROUP BY car ORDER BY highest DESC, car LIMIT 5
""").show(truncate=False)

print("Readings per day of receipt, the folder")
spark.sql("SELECT date, count(*) AS readings, count(DISTINCT car) AS cars FROM telemetry GROUP BY date").show()

readings, scores = spark.sql("""
    SELECT count(*), count(score) FROM telemetry LEFT JOIN scores USING (car, boot_id, seq)
""").first()
spark.stop()
print(f"{readings} readings, {scores} scores")
