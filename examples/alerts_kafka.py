#!/usr/bin/env python3
"""Follows the topic `alerts` on Kafka with a stock client, and prints one line for each alert that opens or closes.

    python examples/alerts_kafka.py --kafka localhost:9092                      # follow, until Ctrl-C
    python examples/alerts_kafka.py --kafka localhost:9092 --until-end          # print all that is kept, then exit

What a consumer of carstream's topics must know:
  - Set isolation.level=read_committed: outputs are written in transactions, and aborted ones must not be seen.
  - The key is the car's pseudonym, the value JSON. Topics with clean readings and scores are Avro instead, with the
    Confluent header (schemas/*.avsc).
  - An alert is opened once and closed once. Commit positions after an alert has been handled, not before; then a
    consumer that crashes handles an alert again instead of never.
"""

import argparse
import datetime
import json
import sys

from confluent_kafka import Consumer, KafkaError, KafkaException


def show(message):
    alert = json.loads(message.value())
    when = datetime.datetime.fromtimestamp(alert["event_time_ms"] / 1000, datetime.timezone.utc)
    print(f"{when:%Y-%m-%d %H:%M:%S}  {alert['state']:6}  car {alert['car']}  score {alert['score']:.1f} "
          f"(threshold {alert['threshold']:.1f})  {', '.join(alert['features'])}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", default="localhost:9092", metavar="HOST:PORT")
    parser.add_argument("--group", default="alerts-example", help="the consumer group that keeps the positions")
    parser.add_argument("--until-end", action="store_true", help="exit at the end of the topic")
    args = parser.parse_args()

    consumer = Consumer({
        "bootstrap.servers": args.kafka,
        "group.id": args.group,
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.partition.eof": args.until_end,
    })
    partitions = consumer.list_topics("alerts", timeout=10).topics["alerts"].partitions
    if not partitions:
        sys.exit("topic alerts does not exist: no scorer has run on this Kafka")
    consumer.subscribe(["alerts"])
    count, ended = 0, set()
    try:
        while len(ended) < len(partitions):
            message = consumer.poll(1)
            if message is None:
                continue
            if message.error():
                if message.error().code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(message.error())
                ended.add(message.partition())
                continue
            show(message)
            count += 1
            consumer.commit(message)
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()
    print(f"{count} alerts opened or closed")


if __name__ == "__main__":
    main()
