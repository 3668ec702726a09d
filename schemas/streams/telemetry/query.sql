-- Clean readings: no names, no plates, no exact positions; readings that no car can have are dead letters before this.
CREATE STREAM telemetry AS
SELECT
    pseudonym(r.vin)            AS car,
    r.boot_id,
    r.seq,
    r.event_time_ms,
    coarsen(r.latitude, 0.05)   AS latitude,
    coarsen(r.longitude, 0.05)  AS longitude,
    d.segment                   AS driver_segment,
    d.experience_years          AS driver_experience_years,
    r.coolant_temp, r.intake_air_temp, r.intake_air_flow_speed,
    r.battery_percentage, r.battery_voltage, r.current_draw,
    r.speed, r.engine_vibration_amplitude, r.throttle_pos,
    r.tire_pressure_11, r.tire_pressure_12, r.tire_pressure_21, r.tire_pressure_22,
    r.accelerometer_11_value, r.accelerometer_12_value, r.accelerometer_21_value, r.accelerometer_22_value,
    r.control_unit_firmware,
    r.ambient_temp
FROM telemetry_raw r
LEFT JOIN drivers d ON r.vin = d.vin
