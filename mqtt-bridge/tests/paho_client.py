"""A stock client: paho-mqtt publishes a reading, waits for its acknowledgement, and may wait for an alert.

usage: paho_client.py HOST PORT 3.1.1|5 VIN CLIENT_ID PAYLOAD [alert]

Prints "acknowledged" after the PUBACK, "subscribed" after the SUBACK, and an alert's payload when one comes.
"""

import sys
import threading

import paho.mqtt.client as mqtt

PATIENCE_S = 60

host, port, version, vin, client_id, payload = sys.argv[1:7]
wants_alert = sys.argv[7:] == ["alert"]
protocol = {"3.1.1": mqtt.MQTTv311, "5": mqtt.MQTTv5}[version]
connected, subscribed, alerted = threading.Event(), threading.Event(), threading.Event()


def on_connect(client, userdata, flags, reason, properties):
    if reason.is_failure:
        sys.exit(f"refused: {reason}")
    connected.set()


def on_subscribe(client, userdata, message_id, reasons, properties):
    if any(reason.is_failure for reason in reasons):
        sys.exit(f"not subscribed: {reasons}")
    print("subscribed", flush=True)
    subscribed.set()


def on_message(client, userdata, message):
    print(f"{message.topic} {message.qos} {message.payload.decode()}", flush=True)
    alerted.set()


def wait(event, what):
    if not event.wait(PATIENCE_S):
        sys.exit(f"no {what}")


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol)
client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
client.connect(host, int(port))
client.loop_start()
wait(connected, "CONNACK")
message = client.publish(f"vehicles/{vin}/telemetry", payload, qos=1)
message.wait_for_publish(PATIENCE_S)
if not message.is_published():
    sys.exit("no PUBACK")
print("acknowledged", flush=True)
if wants_alert:
    client.subscribe(f"vehicles/{vin}/alerts", qos=1)
    wait(subscribed, "SUBACK")
    wait(alerted, "alert")
client.disconnect()
client.loop_stop()
