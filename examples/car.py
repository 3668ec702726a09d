#!/usr/bin/env python3
"""A car with any MQTT client: publishes readings, and prints the alerts that come back.

Start a bridge, or a whole edge site with a model (examples/README.md has both), then

    python examples/car.py                          # 300 readings of a healthy car
    python examples/car.py --leak                   # from reading 150 on, a tyre loses pressure: an alert comes back

With TLS, and a certificate whose common name is the VIN (`carstream secrets --dir DIR --car VIN` makes one):

    python examples/car.py --port 8883 --ca ca.crt --cert VIN.crt --key VIN.key

What a car must do, and this one does:
  - Publish with QoS 1 on vehicles/VIN/telemetry. A PUBACK means that the log has committed the reading.
  - Keep a reading until its PUBACK, and send it again after a lost connection, unchanged. paho does both.
  - Number its readings: seq counts from 0 within a boot, boot_id is random and new at each start. The preprocessor
    recognises a repeat by (vin, boot_id, seq), so that sending a reading again is always safe.

The fields, with units and bounds, are in schemas/telemetry_raw.avsc. Exit code 0: every reading was acknowledged.
"""

import argparse
import json
import math
import random
import sys
import time

import paho.mqtt.client as mqtt

# Event time between two readings of a driving car.
INTERVAL_MS = 30_000
# The leak starts here: the model has learnt this car's usual values by then (60 readings).
LEAK_FROM = 150
LEAK_PSI_PER_READING = 0.1


def reading(args, seq, boot_id, start_ms, noise):
    """What a car measures that drives at a changing speed."""
    speed = 20 + 8 * math.sin(seq / 9) + noise.gauss(0, 0.5)
    load = 0.25 + 0.15 * math.sin(seq / 5) + noise.gauss(0, 0.01)
    leak = LEAK_PSI_PER_READING * max(0, seq - LEAK_FROM) if args.leak else 0
    current = 40 * (load - 0.1) + noise.gauss(0, 1)
    battery = 85 - 0.02 * seq
    tyres = {f"tire_pressure_{wheel}": 32 + noise.gauss(0, 0.08) for wheel in (11, 12, 21, 22)}
    tyres["tire_pressure_11"] -= leak
    body = {f"accelerometer_{place}_value": abs(0.12 + noise.gauss(0, 0.02)) for place in (11, 12, 21, 22)}
    return {
        "vin": args.vin,
        "boot_id": boot_id,
        "seq": seq,
        "event_time_ms": start_ms + INTERVAL_MS * seq,
        "trip_id": 1,
        "driver": "Erika Mustermann",
        "plate": "M-CS 1234",
        "latitude": 48.137,
        "longitude": 11.575,
        "coolant_temp": 88 + noise.gauss(0, 0.6),
        "intake_air_temp": 20 + noise.gauss(0, 0.3),
        "intake_air_flow_speed": 70 * load + noise.gauss(0, 0.5),
        "battery_percentage": battery,
        "battery_voltage": 380 + 0.4 * battery - 0.1 * current + noise.gauss(0, 0.3),
        "current_draw": current,
        "speed": speed,
        "engine_vibration_amplitude": 2 + 0.2 * speed + noise.gauss(0, 0.2),
        "throttle_pos": load,
        **tyres,
        **body,
        "control_unit_firmware": 2000,
    }


def connect(args):
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=args.vin, protocol=mqtt.MQTTv5)
    if args.ca:
        client.tls_set(ca_certs=args.ca, certfile=args.cert, keyfile=args.key)

    def on_connect(client, userdata, flags, reason, properties):
        if reason.is_failure:
            print(f"refused: {reason}", file=sys.stderr)
        else:
            client.subscribe(f"vehicles/{args.vin}/alerts", qos=1)

    def on_message(client, userdata, message):
        print(f"alert: {message.payload.decode()}", flush=True)
        userdata["alerts"] += 1

    client.user_data_set({"alerts": 0})
    client.on_connect, client.on_message = on_connect, on_message
    client.connect(args.host, args.port)
    client.loop_start()
    return client


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--vin", default="WVWZZZ1JZXW000001")
    parser.add_argument("--readings", type=int, default=300)
    parser.add_argument("--rate", type=float, default=100, help="readings per second")
    parser.add_argument("--leak", action="store_true", help="a tyre loses pressure")
    parser.add_argument("--wait", type=float, default=10, help="seconds to wait for PUBACKs, and with --leak for an alert")
    parser.add_argument("--ca", help="the authority that signed the bridge's certificate")
    parser.add_argument("--cert", help="this car's certificate")
    parser.add_argument("--key", help="the private key of this car's certificate")
    args = parser.parse_args()

    client = connect(args)
    noise = random.Random(args.vin)
    boot_id = random.SystemRandom().getrandbits(53)
    start_ms = int(time.time() * 1000) - INTERVAL_MS * args.readings
    sent = []
    for seq in range(args.readings):
        payload = json.dumps(reading(args, seq, boot_id, start_ms, noise))
        sent.append(client.publish(f"vehicles/{args.vin}/telemetry", payload, qos=1))
        time.sleep(1 / args.rate)

    deadline = time.monotonic() + args.wait
    while time.monotonic() < deadline:
        if all(message.is_published() for message in sent) and (client.user_data_get()["alerts"] or not args.leak):
            break
        time.sleep(0.05)
    client.disconnect()
    client.loop_stop()
    acknowledged = sum(message.is_published() for message in sent)
    print(f"{acknowledged} of {len(sent)} readings acknowledged, alerts: {client.user_data_get()['alerts']}")
    return 0 if acknowledged == len(sent) else 1


if __name__ == "__main__":
    sys.exit(main())
