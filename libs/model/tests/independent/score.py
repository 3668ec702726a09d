#!/usr/bin/env python3
"""Scores readings from the artefact alone: an independent computation to hold the Rust one against.

    score.py MANIFEST WEIGHTS READINGS_CSV > expected.csv

READINGS_CSV: car,event_time_ms, then the 18 features in the model's order. Needs numpy and safetensors, nothing of
this repository. Written from the documentation of libs/model, in double precision throughout (the Rust computes in
single precision), so agreement says that both do what the documentation says.

expected.csv: judged (0 or 1), score, then the three features that contribute most, with their contributions.
"""

import csv
import json
import sys

import numpy as np
from safetensors.numpy import load_file

FEATURES = [
    "coolant_temp", "intake_air_temp", "intake_air_flow_speed", "battery_percentage", "battery_voltage",
    "current_draw", "speed", "engine_vibration_amplitude", "throttle_pos", "tire_pressure_11", "tire_pressure_12",
    "tire_pressure_21", "tire_pressure_22", "accelerometer_11_value", "accelerometer_12_value",
    "accelerometer_21_value", "accelerometer_22_value", "control_unit_firmware",
]
I = {name: i for i, name in enumerate(FEATURES)}
FIRMWARE = I["control_unit_firmware"]


def relative(scaling, raw):
    """A reading against what the fleet does at its speed."""
    values = raw.copy()
    values[I["coolant_temp"]] = max(values[I["coolant_temp"]], 84.0)
    values[I["battery_voltage"]] -= (
        scaling["volts_per_percent"] * raw[I["battery_percentage"]]
        + scaling["volts_per_ampere"] * raw[I["current_draw"]]
    )
    values[I["engine_vibration_amplitude"]] = np.log(raw[I["engine_vibration_amplitude"]] + 0.05)
    knots = scaling["speed_knots_mps"]
    at = lambda table: np.array([np.interp(raw[I["speed"]], knots, row) for row in table])
    return (values - at(scaling["mean"])) / at(scaling["deviation"])


def forward(w, x):
    h = np.tanh(w["encoder.0.weight"] @ x + w["encoder.0.bias"])
    code = np.maximum(w["encoder.2.weight"] @ h + w["encoder.2.bias"], 0.0)
    h = np.tanh(w["decoder.0.weight"] @ code + w["decoder.0.bias"])
    return w["decoder.2.weight"] @ h + w["decoder.2.bias"]


class Car:
    def __init__(self, scaling):
        self.newest = -(2**63)
        self.readings = 0
        self.mean = np.array(scaling["level"])
        self.variance = np.array(scaling["spread"]) ** 2
        self.smoothed = np.zeros(18)


def judge(model, weights, car, time_ms, raw):
    """None if the reading is not judged, else the size of each feature's smoothed residual."""
    settings, scaling = model["settings"], model["scaling"]
    clip, memory = settings["clip"], settings["memory_readings"]
    assert time_ms > car.newest, "the readings of a car come in order here"
    car.newest = time_ms
    if raw[I["speed"]] < 0.5 and raw[I["intake_air_flow_speed"]] < 0.5 and raw[I["engine_vibration_amplitude"]] < 0.3:
        return None
    car.readings += 1
    warm = car.readings > settings["warm_up_readings"]
    level, spread = np.array(scaling["level"]), np.array(scaling["spread"])
    value = relative(scaling, raw)
    deviation = np.maximum(np.sqrt(car.variance), 0.2 * spread)
    distance = (value - car.mean) / deviation
    x = np.clip(distance, -clip, clip)
    x[FIRMWARE] = np.clip((value - level) / spread, -clip, clip)[FIRMWARE]
    step = np.clip(distance, -3, 3) if warm else distance
    car.mean = car.mean + deviation * step / np.minimum(np.array(scaling["level_readings"]) + car.readings, memory)
    learnt = deviation * np.clip(distance, -3, 3)
    car.variance = car.variance + (learnt**2 - car.variance) / min(settings["prior_readings"] + car.readings, memory)
    residual = (x - forward(weights, x)) / np.array(model["residual_sigma"])
    car.smoothed = car.smoothed + (np.clip(residual, -clip, clip) - car.smoothed) / settings["smoothing_readings"]
    return np.abs(car.smoothed) / np.array(model["smoothed_sigma"]) if warm else None


def main():
    with open(sys.argv[1]) as file:
        model = json.load(file)
    assert [feature["name"] for feature in model["features"]] == FEATURES
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(sys.argv[2]).items()}
    assert sum(tensor.size for tensor in weights.values()) == 571
    cars = {}
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["judged", "score"] + [f"{what}_{n}" for n in (1, 2, 3) for what in ("feature", "contribution")])
    with open(sys.argv[3]) as file:
        for row in csv.DictReader(file):
            # As the wire has them: single precision.
            raw = np.array([np.float32(row[name]) for name in FEATURES], dtype=np.float64)
            car = cars.setdefault(row["car"], Car(model["scaling"]))
            sizes = judge(model, weights, car, int(row["event_time_ms"]), raw)
            if sizes is None:
                out.writerow([0, 0] + [""] * 6)
                continue
            top = np.argsort(-sizes, kind="stable")[:3]
            out.writerow([1, f"{sizes[top[0]]:.7g}"] + [x for i in top for x in (FEATURES[i], f"{sizes[i]:.7g}")])


main()
