//! One car: a seeded physical model, stepped in time.
//!
//! ```text
//! habits ─► trips ─► drive ─► physics ─► sensors ─► Reading        faults change coefficients of the physics,
//!                      │                               ▲           and stick sensors
//!                      └─ tunnels, garages ── coverage ┘
//! ```
//!
//! Pure: no clock, no network, no global random numbers. Car *i* of seed *s* gives the same readings in any process.
//!
//! **When a car measures.** While driving every interval (`--interval`), while parked every tenth ([`PARKED_EVERY`]): a
//! control unit in standby saves its battery, and nothing happens. Times lie on a grid of the interval, shifted by a
//! phase of the car's own so that a fleet doesn't send in step. A trip starts the control unit anew: new boot id,
//! sequence numbers from 0; the boot lasts through the parking that follows.

mod drive;
mod faults;
mod habits;
mod identity;
mod physics;
mod reading;
mod vehicle;

pub use faults::{Fault, FaultKind};
pub use identity::{Driver, MAX_CARS, Segment, vin, vin_check_digit};
pub use reading::{Coverage, FEATURES, Reading};

use drive::Drive;
use faults::{ActiveFault, Effects, Onset};
use habits::{Calendar, Habits, LOCAL_OFFSET_S, Trip};
use physics::Body;
use reading::{FIRMWARE, fixed, fixed_point};
use vehicle::Vehicle;

use crate::random::{Purpose, Random, hash, hash_unit, stream};

/// A parked car measures at every tenth interval.
pub const PARKED_EVERY: i64 = 10;

/// The drive is integrated in steps of this length: short against a gear change of speed, long against a CPU cycle.
const DRIVE_STEP_MS: i64 = 2_000;

/// The longest step while parked; its formulas are exact for any, but the outside temperature is held during one.
const PARKED_STEP_MS: i64 = 600_000;

/// The radio finds its network again this long after a start in an underground garage.
const OUT_OF_GARAGE_S: i64 = 60;

/// Chance that the network is lost at a reading for no visible reason: about twice in a day of driving.
const RARE_LOSS: f64 = 0.002;

/// Ids fit into a JSON number: 53 bits.
const ID_MASK: u64 = (1 << 53) - 1;

/// What all cars of a fleet share.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetSpec {
    /// Of everything random.
    pub seed: u64,
    /// Between two readings of a driving car.
    pub interval_ms: i64,
    /// Event time at which the fleet begins.
    pub start_ms: i64,
    /// The wanted share of readings that are taken while a fault is active.
    pub fault_share: f64,
    /// Share of the cars that send the newer schema, with the outside temperature.
    pub newer_schema_share: f64,
}

/// One car.
#[derive(Debug, Clone)]
pub struct Car {
    seed: u64,
    index: u32,
    vin: [u8; 17],
    driver_name: Box<str>,
    plate: Box<str>,
    interval_ms: i64,
    fault_share: f64,
    newer_schema: bool,
    vehicle: Vehicle,

    now_ms: i64,
    next_ms: i64,
    calendar: Calendar,
    trip: Option<Trip>,
    trips: u64,
    trip_id: u64,
    boot_id: u64,
    seq: u32,
    readings: u64,
    in_garage: bool,
    charging: bool,
    was_online: bool,

    random: Random,
    drive: Drive,
    body: Body,
    onset: Option<Box<Onset>>,
    fault: Option<Box<ActiveFault>>,
    effects: Effects,
    repaired: Option<Box<ActiveFault>>,
    finding: Option<Box<Fault>>,
}

impl Car {
    /// Car `index` of the fleet.
    ///
    /// # Panics
    /// If the interval is not positive.
    pub fn new(spec: &FleetSpec, index: u32) -> Self {
        assert!(spec.interval_ms > 0, "a car measures at intervals");
        let seed = spec.seed;
        let vin = vin(seed, index);
        let mut constants = stream(seed, index, Purpose::Vehicle, 0);
        let vehicle = Vehicle::draw(&mut constants);
        let habits = Habits::draw(identity::segment(seed, index), &mut constants);
        let mut random = stream(seed, index, Purpose::Motion, 0);
        let ambient_c = vehicle.ambient_c(local_hour(spec.start_ms));
        let drive = Drive::at_home(&vehicle.home, &mut random);
        let body = Body::rested(ambient_c, &vehicle, &mut random);
        let phase_ms = (hash(seed, index, Purpose::Vehicle, 1) % spec.interval_ms.cast_unsigned()).cast_signed();
        let driver = identity::driver(seed, index, &text(&vin));
        Self {
            seed,
            index,
            vin,
            driver_name: driver.name.into_boxed_str(),
            plate: identity::plate(seed, index).into_boxed_str(),
            interval_ms: spec.interval_ms,
            fault_share: spec.fault_share,
            newer_schema: hash_unit(seed, index, Purpose::Vehicle, 2) < spec.newer_schema_share,
            now_ms: spec.start_ms,
            next_ms: spec.start_ms + phase_ms,
            calendar: Calendar::new(habits, seed, index, spec.start_ms.div_euclid(1_000) + 1),
            trip: None,
            trips: 0,
            trip_id: 0,
            boot_id: hash(seed, index, Purpose::Ids, 0) & ID_MASK,
            seq: 0,
            readings: 0,
            in_garage: false,
            charging: false,
            was_online: true,
            vehicle,
            random,
            drive,
            body,
            onset: None,
            fault: None,
            effects: Effects::default(),
            repaired: None,
            finding: None,
        }
    }

    /// The place in the fleet.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The vehicle identification number.
    pub fn vin(&self) -> &str {
        core::str::from_utf8(&self.vin).expect("made of ASCII characters")
    }

    /// The same as bytes.
    pub(crate) fn vin_bytes(&self) -> [u8; 17] {
        self.vin
    }

    /// The driver's name, as it stands in every reading.
    pub fn driver_name(&self) -> &str {
        &self.driver_name
    }

    /// The licence plate, as it stands in every reading.
    pub fn plate(&self) -> &str {
        &self.plate
    }

    /// The row of the table `drivers` for this car.
    pub fn driver(&self) -> Driver {
        identity::driver(self.seed, self.index, self.vin())
    }

    /// Event time of the next reading.
    pub fn next_time_ms(&self) -> i64 {
        self.next_ms
    }

    /// How many readings were taken.
    pub fn readings(&self) -> u64 {
        self.readings
    }

    /// Lives on to the next reading, and takes it.
    pub fn next_reading(&mut self) -> Reading {
        self.live_until(self.next_ms);
        let reading = self.measure();
        self.close_findings(reading.event_time_ms);
        self.readings += 1;
        self.seq += 1;
        self.next_ms = self.time_after(self.next_ms);
        reading
    }

    /// What the workshop found, once the first reading after the repair was taken.
    pub fn take_finding(&mut self) -> Option<Fault> {
        self.finding.take().map(|fault| *fault)
    }

    /// The run ends at `end_ms`: the workshop looks at a car whose fault is still there.
    pub fn inspect(&mut self, end_ms: i64) -> Option<Fault> {
        let fault = self.repaired.take().or_else(|| self.fault.take())?;
        self.finding_of(&fault, end_ms)
    }

    /// Boot id of the workshop's tester for the finding that began at `began_ms`: one per finding.
    pub fn tester_boot_id(&self, began_ms: i64) -> u64 {
        hash(self.seed, self.index, Purpose::Ids, began_ms.cast_unsigned() | 1 << 63) & ID_MASK
    }

    fn live_until(&mut self, until_ms: i64) {
        self.body.ambient_c = self.vehicle.ambient_c(local_hour(self.now_ms));
        while self.now_ms < until_ms {
            match self.trip {
                Some(trip) => self.drive_on(trip, until_ms),
                None => self.stand(until_ms),
            }
        }
    }

    fn drive_on(&mut self, trip: Trip, until_ms: i64) {
        if self.onset.as_ref().is_some_and(|onset| self.now_ms >= onset.at_s * 1_000) {
            self.fault = self.onset.take().map(|onset| Box::new(onset.begin()));
        }
        let step_ms = DRIVE_STEP_MS.min(until_ms - self.now_ms).min(trip.end_s * 1_000 - self.now_ms);
        let dt_s = step_ms as f64 / 1_000.0;
        if let Some(fault) = &mut self.fault {
            fault.driven(dt_s);
            self.effects = fault.effects();
        }
        self.drive.step(dt_s, self.now_ms.div_euclid(1_000), trip, &self.vehicle, &mut self.random);
        self.body.drive(dt_s, &self.drive, &self.vehicle, &self.effects, &mut self.random);
        self.now_ms += step_ms;
        if self.now_ms >= trip.end_s * 1_000 {
            self.arrive();
        }
    }

    fn stand(&mut self, until_ms: i64) {
        let trip = self.calendar.next();
        let start_ms = trip.start_s * 1_000;
        if self.now_ms >= start_ms {
            self.set_off(trip);
            return;
        }
        let step_ms = PARKED_STEP_MS.min(until_ms - self.now_ms).min(start_ms - self.now_ms);
        self.body.rest(step_ms as f64 / 1_000.0, self.charging, &self.vehicle, &self.effects);
        self.now_ms += step_ms;
        self.body.ambient_c = self.vehicle.ambient_c(local_hour(self.now_ms));
    }

    fn set_off(&mut self, trip: Trip) {
        self.trips += 1;
        self.trip = Some(trip);
        self.trip_id = hash(self.seed, self.index, Purpose::Ids, 2 * self.trips + 1) & ID_MASK;
        self.boot_id = hash(self.seed, self.index, Purpose::Ids, 2 * self.trips) & ID_MASK;
        self.seq = 0;
        self.charging = false;
        self.drive.set_off(trip.homeward, &self.vehicle.home, &mut self.random);
        if self.fault.is_none() && self.repaired.is_none() {
            let mut random = stream(self.seed, self.index, Purpose::Fault, self.trips);
            self.onset = Onset::draw(trip.start_s, trip.end_s, self.fault_share, &mut random).map(Box::new);
        }
    }

    fn arrive(&mut self) {
        self.calendar.advance(self.seed, self.index);
        self.trip = None;
        self.onset = None;
        self.drive.park();
        self.in_garage = self.random.chance(self.vehicle.garage_share);
        self.charging = self.random.chance(self.vehicle.charger_share);
        let next_trip_in_s = self.calendar.next().start_s - self.now_ms.div_euclid(1_000);
        if self.fault.as_ref().is_some_and(|fault| fault.ready_for_repair(next_trip_in_s)) {
            self.repaired = self.fault.take();
            self.effects = Effects::default();
            self.body.gas = [1.0; 4];
        }
    }

    fn measure(&mut self) -> Reading {
        let mut features = self.sense();
        if let Some(fault) = &mut self.fault {
            fault.began_ms.get_or_insert(self.now_ms);
            fault.distort(&mut features);
        }
        let ambient_noise = 0.3 * self.random.gauss();
        Reading {
            boot_id: self.boot_id,
            seq: self.seq,
            event_time_ms: self.now_ms,
            trip_id: self.trip.map(|_| self.trip_id),
            latitude: fixed(self.drive.latitude, 1e6),
            longitude: fixed(self.drive.longitude, 1e6),
            features: fixed_point(&features),
            ambient: self.newer_schema.then(|| fixed(self.body.ambient_c + ambient_noise, 1_000.0)),
            faulty: self.fault.is_some(),
            coverage: self.coverage(),
        }
    }

    /// What the sensors show: the state of the car with each sensor's offset, gain and noise.
    fn sense(&mut self) -> [f64; 18] {
        let (body, sensors, vehicle) = (&self.body, &self.vehicle.sensors, &self.vehicle);
        let mut noise = |deviation: f64| deviation * self.random.gauss();
        let running = if self.trip.is_some() { 1.0 } else { 0.0 };
        let mut features = [0.0; 18];
        features[0] = body.coolant_c + sensors.coolant_offset_c + noise(0.3);
        features[1] = body.intake_c + sensors.intake_offset_c + noise(0.3);
        features[2] = body.air_flow_gps * sensors.air_flow_gain * (1.0 + noise(0.02));
        features[3] = 100.0 * body.charge + noise(0.15);
        features[4] = body.voltage_v + sensors.voltage_offset_v + noise(0.3);
        features[5] = body.current_a + sensors.current_offset_a + noise(0.3);
        features[6] = self.drive.speed_mps * (sensors.speed_gain + noise(0.002));
        features[7] = body.vibration_mmps + noise(0.03).abs();
        features[8] = running * (body.throttle + sensors.throttle_offset + noise(0.004));
        for tyre in 0..4 {
            features[9 + tyre] = body.tyre_pressure_psi(tyre, vehicle) + noise(0.06);
        }
        for wheel in 0..4 {
            features[13 + wheel] = body.acceleration_g[wheel] + sensors.accelerometer_offset_g[wheel] + noise(0.003);
        }
        features[FIRMWARE] = f64::from(vehicle.firmware);
        features
    }

    fn coverage(&mut self) -> Coverage {
        let covered = match self.trip {
            Some(trip) => {
                let leaving = self.in_garage && self.now_ms < (trip.start_s + OUT_OF_GARAGE_S) * 1_000;
                !leaving && !self.drive.in_tunnel()
            }
            None => !self.in_garage,
        };
        let was_online = core::mem::replace(&mut self.was_online, covered);
        if covered {
            let lost = hash_unit(self.seed, self.index, Purpose::Network, self.readings) < RARE_LOSS;
            if lost { Coverage::Fading } else { Coverage::Online }
        } else if was_online {
            Coverage::Fading
        } else {
            Coverage::Offline
        }
    }

    fn close_findings(&mut self, first_healthy_ms: i64) {
        if let Some(fault) = self.repaired.take() {
            self.finding = self.finding_of(&fault, first_healthy_ms).map(Box::new);
        }
    }

    /// A fault that no reading saw is nobody's finding.
    fn finding_of(&self, fault: &ActiveFault, repaired_ms: i64) -> Option<Fault> {
        fault.began_ms.map(|began_ms| Fault {
            vin: text(&self.vin),
            kind: fault.kind(),
            component: fault.component().to_owned(),
            began_ms,
            repaired_ms,
        })
    }

    fn time_after(&self, last_ms: i64) -> i64 {
        if self.trip.is_some() {
            return last_ms + self.interval_ms;
        }
        let to_trip_ms = (self.calendar.next().start_s * 1_000 - last_ms).max(1);
        let intervals = to_trip_ms.div_euclid(self.interval_ms) + i64::from(to_trip_ms % self.interval_ms != 0);
        last_ms + self.interval_ms * intervals.clamp(1, PARKED_EVERY)
    }
}

fn local_hour(time_ms: i64) -> f64 {
    (time_ms + LOCAL_OFFSET_S * 1_000).rem_euclid(86_400_000) as f64 / 3_600_000.0
}

fn text(vin: &[u8; 17]) -> String {
    vin.iter().map(|&character| char::from(character)).collect()
}

#[cfg(test)]
mod tests;
