-- Charging sessions: when, how much, at which station; not the card, and where only to 0.05 degrees.
CREATE STREAM charging AS
SELECT
    pseudonym(r.vin)          AS car,
    r.boot_id,
    r.seq,
    r.event_time_ms,
    r.event,
    r.station,
    coarsen(r.latitude, 0.05)  AS latitude,
    coarsen(r.longitude, 0.05) AS longitude,
    r.energy_kwh,
    r.price_eur,
    d.segment                  AS driver_segment
FROM charging_raw r
LEFT JOIN drivers d ON r.vin = d.vin
