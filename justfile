# `just` lists what there is to do; each is also a plain command.

_default:
    @just --list

# The whole pipeline, from a car to a verdict.
demo *ARGS:
    cargo run --release -- demo {{ ARGS }}

# Every test, with a real Apache Kafka.
test *ARGS:
    scripts/test {{ ARGS }}

# What CI runs.
verify:
    .ci/run

# A single-node Kafka without Docker on port 9092, data in ./kafka-data.
kafka ACTION="start":
    scripts/kafka {{ ACTION }} --port 9092 --data kafka-data

# A schema registry without Docker on port 8081, data in ./schema-registry-data; prints its URL.
schema-registry ACTION="start":
    scripts/schema-registry {{ ACTION }} --port 8081 --data schema-registry-data

# An S3 server without Docker on port 9000, data in ./s3-data; prints how to reach it.
s3 ACTION="start":
    scripts/s3 {{ ACTION }} --port 9000 --data s3-data
