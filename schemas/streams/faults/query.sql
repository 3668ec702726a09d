-- Workshop findings: the same pseudonym as the readings, so that they can be held against them.
CREATE STREAM faults AS
SELECT
    pseudonym(r.vin) AS car, r.boot_id, r.seq,
    r.kind, r.component, r.began_ms, r.repaired_ms
FROM faults_raw r
