//! What driving does to a car: power, battery, heat, tyres, vibration.
//!
//! ```text
//! speed, slope ─► traction force ─► power ─┬─► engine ─► fuel ─► air flow, throttle, heat ─► coolant ─► intake air
//!                                          └─► battery ─► current ─► voltage, charge
//! speed ─► flexing of the tyres ─► tyre temperature ─► pressure          speed, road ─► vibration, accelerometers
//! ```
//!
//! Lumped models of first order, each with its source beside it. A fault changes a coefficient here (a resistance, a
//! conductance, an amount of gas), never a reading: what is seen of it is what the model makes of it.

use crate::car::drive::Drive;
use crate::car::faults::Effects;
use crate::car::vehicle::Vehicle;
use crate::random::Random;

/// m/s² (ISO 80000-3).
const GRAVITY_MPS2: f64 = 9.81;
/// kg/m³ at 15 °C and sea level (ISO 2533).
const AIR_DENSITY: f64 = 1.225;
/// psi (101,325 Pa).
const ATMOSPHERE_PSI: f64 = 14.696;
const KELVIN: f64 = 273.15;
/// Tyre pressures are set at this temperature.
const COLD_TYRE_C: f64 = 20.0;

/// Gearbox and axle.
const DRIVELINE_EFFICIENCY: f64 = 0.92;
/// What comes back to the battery when braking, and its limit.
const RECUPERATION: f64 = 0.6;
const RECUPERATION_MAX_W: f64 = 45_000.0;
/// Willans line of a petrol engine: fuel power = idling losses + shaft power / indicated efficiency
/// (Guzzella, Sciarretta: Vehicle Propulsion Systems, chapter 3).
const IDLE_FUEL_W: f64 = 8_600.0;
const INDICATED_EFFICIENCY: f64 = 0.38;
/// Lower heating value of petrol, J/g, and the stoichiometric ratio of air to fuel.
const PETROL_J_PER_G: f64 = 43_000.0;
const AIR_PER_FUEL: f64 = 14.7;
/// About a third of the fuel's heat goes into the coolant (Heywood: Internal Combustion Engine Fundamentals, 12.3).
const COOLANT_HEAT_SHARE: f64 = 0.30;
/// Engine block and coolant, J/K.
const COOLANT_CAPACITY: f64 = 150_000.0;
/// Radiator: still air, per m/s of air stream, and the electric fan, W/K.
const RADIATOR: f64 = 70.0;
const RADIATOR_PER_MPS: f64 = 12.0;
const FAN: f64 = 130.0;
const FAN_ON_C: f64 = 102.0;
/// The thermostat is fully open this much above the temperature at which it begins to.
const THERMOSTAT_SPAN_C: f64 = 13.0;
/// The cap of the cooling circuit lets steam off here.
const BOILING_C: f64 = 126.0;
/// What a shut-down control unit draws.
const STANDBY_W: f64 = 18.0;
/// One phase of a household charging point.
const CHARGER_W: f64 = 3_600.0;
/// Charging stops here; under the other, the engine charges the battery.
const CHARGED: f64 = 0.95;
const CHARGE_SUSTAINED: f64 = 0.35;
const CURRENT_MAX_A: f64 = 320.0;
/// Rolling at 1 m/s heats a tyre by this much in the end: 25 K at 30 m/s.
const TYRE_HEAT_K_PER_MPS: f64 = 0.85;
const TYRE_INERTIA_DRIVING_S: f64 = 900.0;
const TYRE_INERTIA_PARKED_S: f64 = 1_800.0;
/// Front tyres do the steering and most of the braking.
const TYRE_LOAD: [f64; 4] = [1.06, 1.06, 0.96, 0.96];

/// The physical state of a car.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub(crate) ambient_c: f64,
    pub(crate) coolant_c: f64,
    pub(crate) intake_c: f64,
    pub(crate) tyre_c: [f64; 4],
    /// Gas in each tyre, as a share of what the workshop filled in.
    pub(crate) gas: [f64; 4],
    /// State of charge, 0–1.
    pub(crate) charge: f64,
    pub(crate) current_a: f64,
    pub(crate) voltage_v: f64,
    pub(crate) air_flow_gps: f64,
    pub(crate) throttle: f64,
    pub(crate) vibration_mmps: f64,
    /// Root mean square of the vertical acceleration at each wheel.
    pub(crate) acceleration_g: [f64; 4],
}

impl Body {
    /// A car that has stood for a night.
    pub(crate) fn rested(ambient_c: f64, vehicle: &Vehicle, random: &mut Random) -> Self {
        let charge = random.range(0.45, 0.92);
        Self {
            ambient_c,
            coolant_c: ambient_c,
            intake_c: ambient_c,
            tyre_c: [ambient_c; 4],
            gas: [1.0; 4],
            charge,
            current_a: 0.0,
            voltage_v: open_circuit_v(charge, vehicle),
            air_flow_gps: 0.0,
            throttle: 0.0,
            vibration_mmps: 0.0,
            acceleration_g: [0.0; 4],
        }
    }

    /// `dt_s` seconds of driving.
    pub(crate) fn drive(
        &mut self,
        dt_s: f64,
        drive: &Drive,
        vehicle: &Vehicle,
        effects: &Effects,
        random: &mut Random,
    ) {
        let traction_w = traction_power_w(drive, vehicle);
        let engine_w = self.engine_power_w(traction_w, drive.speed_mps, vehicle);
        self.breathe(engine_w, vehicle, effects);
        self.heat(dt_s, engine_w, drive.speed_mps, vehicle, effects);
        let battery_w = if traction_w >= 0.0 {
            traction_w - engine_w
        } else {
            (traction_w * RECUPERATION).max(-RECUPERATION_MAX_W) - engine_w
        };
        // Heating and air conditioning: 45 W for each degree away from comfort.
        let comfort_w = 45.0 * (self.ambient_c - 21.0).abs();
        self.discharge(dt_s, battery_w + vehicle.auxiliary_w + comfort_w, vehicle, effects);
        let heat_k = TYRE_HEAT_K_PER_MPS * drive.speed_mps;
        self.tyres(dt_s, heat_k, TYRE_INERTIA_DRIVING_S, effects);
        self.shake(engine_w, drive, vehicle, effects, random);
    }

    /// `dt_s` seconds of standing with the engine off, at a charging point or not.
    pub(crate) fn rest(&mut self, dt_s: f64, charging: bool, vehicle: &Vehicle, effects: &Effects) {
        /// Convection from a closed engine bay: two hours to cool down.
        const BAY_W_PER_K: f64 = 20.0;
        const BAY_INERTIA_S: f64 = 700.0;
        self.coolant_c += relaxed(dt_s * BAY_W_PER_K / COOLANT_CAPACITY) * (self.ambient_c - self.coolant_c);
        // The bay keeps some of the engine's heat, and the intake is in it.
        let bay_c = self.ambient_c + 0.35 * (self.coolant_c - self.ambient_c);
        self.intake_c += relaxed(dt_s / BAY_INERTIA_S) * (bay_c - self.intake_c);
        let power_w = if charging && self.charge < CHARGED { -CHARGER_W } else { STANDBY_W };
        self.discharge(dt_s, power_w, vehicle, effects);
        self.tyres(dt_s, 0.0, TYRE_INERTIA_PARKED_S, effects);
        self.air_flow_gps = 0.0;
        self.throttle = 0.0;
        self.vibration_mmps = 0.0;
        self.acceleration_g = [0.0; 4];
    }

    /// Gauge pressure of a tyre: the absolute pressure of a fixed volume goes with amount and absolute temperature of
    /// the gas (ideal gas law).
    pub(crate) fn tyre_pressure_psi(&self, tyre: usize, vehicle: &Vehicle) -> f64 {
        let absolute =
            (vehicle.cold_pressure_psi[tyre] + ATMOSPHERE_PSI) * self.gas[tyre] * (self.tyre_c[tyre] + KELVIN)
                / (COLD_TYRE_C + KELVIN);
        (absolute - ATMOSPHERE_PSI).max(0.0)
    }

    /// The hybrid control: the engine takes a share of the traction that grows with speed, and charges an empty
    /// battery.
    fn engine_power_w(&self, traction_w: f64, speed_mps: f64, vehicle: &Vehicle) -> f64 {
        let share = (vehicle.engine_share + 0.012 * speed_mps).min(0.88);
        let charging_w = ((CHARGE_SUSTAINED - self.charge) * 60_000.0).clamp(0.0, 9_000.0);
        let shared_w = share * traction_w.max(0.0) + charging_w;
        // An empty battery can't help, whatever the share.
        let wanted_w = if self.charge < 0.06 { traction_w.max(0.0) + charging_w } else { shared_w };
        wanted_w.min(vehicle.engine_max_w)
    }

    /// Fuel, air and throttle for the engine's power. An outdated map lets the engine run rich and its idle high.
    fn breathe(&mut self, engine_w: f64, vehicle: &Vehicle, effects: &Effects) {
        let fuel_gps = fuel_power_w(engine_w) / PETROL_J_PER_G;
        self.air_flow_gps = fuel_gps * AIR_PER_FUEL * (1.0 + 0.22 * effects.outdated_map);
        self.throttle = (0.06 + 0.94 * engine_w / vehicle.engine_max_w + 0.05 * effects.outdated_map).min(1.0);
    }

    /// Newton cooling of block and coolant through the radiator, as far as the thermostat lets it; intake air between
    /// outside and engine bay, by air stream.
    fn heat(&mut self, dt_s: f64, engine_w: f64, speed_mps: f64, vehicle: &Vehicle, effects: &Effects) {
        let heat_w = COOLANT_HEAT_SHARE * fuel_power_w(engine_w);
        let open = ((self.coolant_c - vehicle.thermostat_c) / THERMOSTAT_SPAN_C).clamp(0.0, 1.0);
        let fan = FAN * ((self.coolant_c - FAN_ON_C) / 2.0).clamp(0.0, 1.0);
        // A clogged radiator or a failing pump: less conductance.
        let radiator = (open * (RADIATOR + RADIATOR_PER_MPS * speed_mps) + fan) * (1.0 - effects.cooling_loss);
        let conductance = 14.0 + 1.2 * speed_mps + radiator;
        let balance_c = self.ambient_c + heat_w / conductance;
        self.coolant_c += relaxed(dt_s * conductance / COOLANT_CAPACITY) * (balance_c - self.coolant_c);
        self.coolant_c = self.coolant_c.min(BOILING_C);
        let soak = 0.22 / (1.0 + speed_mps / 8.0);
        let intake_c = self.ambient_c + 2.0 + soak * (self.coolant_c - self.ambient_c);
        self.intake_c += relaxed(dt_s / 90.0) * (intake_c - self.intake_c);
    }

    /// Equivalent circuit of the pack: P = (OCV − R·I)·I solved for I, then the charge counted (Plett: Battery
    /// Management Systems, volume 1, chapter 2). A weak cell adds resistance, sags, and takes capacity with it.
    fn discharge(&mut self, dt_s: f64, power_w: f64, vehicle: &Vehicle, effects: &Effects) {
        let open_v = open_circuit_v(self.charge, vehicle) - 9.0 * effects.weak_cell;
        // Cold electrolyte conducts worse: about 1.2 % a degree.
        let cold = 1.0 + 0.012 * (20.0 - self.ambient_c).max(-10.0);
        let resistance = vehicle.resistance_ohm * cold * (1.0 + 2.2 * effects.weak_cell);
        let power_w = if self.charge <= 0.02 { power_w.min(0.0) } else { power_w };
        let under_root = (open_v * open_v - 4.0 * resistance * power_w).max(0.0);
        self.current_a = ((open_v - under_root.sqrt()) / (2.0 * resistance)).clamp(-CURRENT_MAX_A, CURRENT_MAX_A);
        self.voltage_v = open_v - resistance * self.current_a;
        let capacity_as = vehicle.capacity_ah * 3_600.0 * (1.0 - 0.3 * effects.weak_cell);
        self.charge = (self.charge - self.current_a * dt_s / capacity_as).clamp(0.0, 1.0);
    }

    /// Tyres warm up by flexing and cool to the outside (Newton); one that is low flexes more. A leak lets gas out.
    fn tyres(&mut self, dt_s: f64, heat_k: f64, inertia_s: f64, effects: &Effects) {
        let approach = relaxed(dt_s / inertia_s);
        for (tyre, load) in TYRE_LOAD.iter().enumerate() {
            let low = 1.0 + 1.5 * (1.0 - self.gas[tyre]);
            let target_c = self.ambient_c + heat_k * load * low;
            self.tyre_c[tyre] += approach * (target_c - self.tyre_c[tyre]);
            self.gas[tyre] = (self.gas[tyre] - effects.leak_per_s[tyre] * dt_s).max(0.45);
        }
    }

    /// Vibration of the engine by speed and load, of the wheels by road: the RMS of a road profile grows with its
    /// roughness and the square root of speed (ISO 8608). A worn bearing adds with wheel speed, an imbalance with its
    /// square (centrifugal force).
    fn shake(&mut self, engine_w: f64, drive: &Drive, vehicle: &Vehicle, effects: &Effects, random: &mut Random) {
        let speed_mps = drive.speed_mps;
        let load = engine_w / vehicle.engine_max_w;
        let road = drive.roughness * (speed_mps / 10.0).sqrt();
        let base = vehicle.vibration_base_mmps;
        let engine = base * (0.6 + 0.045 * speed_mps + 1.1 * load) + 0.35 * road;
        let mut faulty = base * effects.imbalance * 2.4 * (speed_mps / 25.0) * (speed_mps / 25.0);
        for (wheel, g) in self.acceleration_g.iter_mut().enumerate() {
            let worn = effects.bearing[wheel] * (speed_mps / 20.0).min(1.4);
            faulty += base * 0.9 * worn * (1.0 + 0.25 * random.gauss()).max(0.0);
            let shaft =
                if wheel >= 2 { 0.15 * effects.imbalance * (speed_mps / 25.0) * (speed_mps / 25.0) } else { 0.0 };
            let smooth = 0.11 * vehicle.corner_gain[wheel] * road * (1.0 + 1.3 * worn) + shaft;
            *g = (smooth + 0.004 * base) * (1.0 + 0.10 * random.gauss());
        }
        self.vibration_mmps = (engine + faulty) * (1.0 + 0.07 * random.gauss());
    }
}

/// Force at the wheels times speed: inertia, rolling resistance, slope, drag (Gillespie: Fundamentals of Vehicle
/// Dynamics, chapter 4). Before the driveline's losses if the car is pushed, after them if it brakes.
fn traction_power_w(drive: &Drive, vehicle: &Vehicle) -> f64 {
    let speed = drive.speed_mps;
    let weight = vehicle.mass_kg * GRAVITY_MPS2;
    let force = vehicle.mass_kg * drive.acceleration_mps2
        + weight * (vehicle.rolling_resistance + drive.grade)
        + 0.5 * AIR_DENSITY * vehicle.drag_area_m2 * speed * speed;
    let power = force * speed;
    if power >= 0.0 { power / DRIVELINE_EFFICIENCY } else { power * DRIVELINE_EFFICIENCY }
}

fn fuel_power_w(engine_w: f64) -> f64 {
    IDLE_FUEL_W + engine_w / INDICATED_EFFICIENCY
}

/// Open-circuit voltage: a lithium-ion cell goes from 3.3 V empty to 4.15 V full, nearly straight in between.
fn open_circuit_v(charge: f64, vehicle: &Vehicle) -> f64 {
    vehicle.cells * (3.3 + 0.70 * charge + 0.15 * charge * charge * charge)
}

/// How much of the way to its balance a first-order system has gone after `x` time constants: 1 − e^(−x).
fn relaxed(x: f64) -> f64 {
    // Two terms are good to 2e-6 here, and most steps are this small.
    if x < 0.02 { x * (1.0 - 0.5 * x) } else { 1.0 - libm::exp(-x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::car::vehicle::Vehicle;
    use crate::random::{Purpose, stream};

    fn parts() -> (Vehicle, Body, Drive, Random) {
        let mut random = stream(3, 1, Purpose::Vehicle, 0);
        let vehicle = Vehicle::draw(&mut random);
        let body = Body::rested(15.0, &vehicle, &mut random);
        let drive = Drive::at_home(&vehicle.home, &mut random);
        (vehicle, body, drive, random)
    }

    #[test]
    fn pressure_follows_temperature_as_an_ideal_gas() {
        let (vehicle, mut body, ..) = parts();
        let ratio = |body: &Body| (body.tyre_pressure_psi(0, &vehicle) + ATMOSPHERE_PSI) / (body.tyre_c[0] + KELVIN);
        let cold = ratio(&body);
        let cold_psi = body.tyre_pressure_psi(0, &vehicle);
        body.tyres(3_600.0, 25.0, TYRE_INERTIA_DRIVING_S, &Effects::default());
        assert!(body.tyre_pressure_psi(0, &vehicle) > cold_psi + 2.0, "25 K are about 4 psi");
        assert!((ratio(&body) - cold).abs() < 1e-9, "p/T is constant while no gas is lost");
    }

    #[test]
    fn charge_is_the_integral_of_the_current() {
        let (vehicle, mut body, mut drive, mut random) = parts();
        drive.speed_mps = 22.0;
        let (before, mut used_as) = (body.charge, 0.0);
        for _ in 0..600 {
            body.drive(2.0, &drive, &vehicle, &Effects::default(), &mut random);
            used_as += body.current_a * 2.0;
            let power = body.voltage_v * body.current_a;
            assert!(power < 60_000.0 && body.voltage_v > 250.0);
        }
        let expected = used_as / (vehicle.capacity_ah * 3_600.0);
        assert!(used_as > 0.0 && (before - body.charge - expected).abs() < 1e-9);
    }

    #[test]
    fn coolant_warms_slowly_settles_and_cools_slowly() {
        let (vehicle, mut body, mut drive, mut random) = parts();
        drive.speed_mps = 25.0;
        let mut minutes = Vec::new();
        for _ in 0..40 {
            for _ in 0..30 {
                body.drive(2.0, &drive, &vehicle, &Effects::default(), &mut random);
            }
            minutes.push(body.coolant_c);
        }
        assert!(minutes[0] < 40.0, "a cold engine is not warm after a minute: {}", minutes[0]);
        let last = minutes[39];
        assert!((vehicle.thermostat_c..vehicle.thermostat_c + THERMOSTAT_SPAN_C).contains(&last), "{last}");
        assert!((last - minutes[34]).abs() < 0.5, "the thermostat holds it");
        body.rest(600.0, false, &vehicle, &Effects::default());
        assert!(body.coolant_c > 75.0, "still warm after ten minutes");
    }

    #[test]
    fn faults_act_through_the_model() {
        let (vehicle, body, mut drive, random) = parts();
        drive.speed_mps = 28.0;
        drive.roughness = 0.8;
        let run = |effects: Effects| {
            let (mut body, mut random) = (body.clone(), random.clone());
            for _ in 0..1_800 {
                body.drive(2.0, &drive, &vehicle, &effects, &mut random);
            }
            body
        };
        let healthy = run(Effects::default());
        assert!(run(Effects { cooling_loss: 0.7, ..Effects::default() }).coolant_c > healthy.coolant_c + 4.0);
        assert!(run(Effects { weak_cell: 0.8, ..Effects::default() }).voltage_v < healthy.voltage_v - 4.0);
        assert!(run(Effects { imbalance: 0.8, ..Effects::default() }).vibration_mmps > healthy.vibration_mmps * 1.3);
        let worn = run(Effects { bearing: [0.0, 0.8, 0.0, 0.0], ..Effects::default() });
        assert!(worn.acceleration_g[1] > healthy.acceleration_g[1] * 1.3);
        assert!((worn.acceleration_g[0] - healthy.acceleration_g[0]).abs() < 1e-9, "only the wheel that it is at");
        let leaking = run(Effects { leak_per_s: [0.0, 0.0, 5e-5, 0.0], ..Effects::default() });
        assert!(leaking.tyre_pressure_psi(2, &vehicle) < healthy.tyre_pressure_psi(2, &vehicle) - 3.0);
        assert!(run(Effects { outdated_map: 0.8, ..Effects::default() }).air_flow_gps > healthy.air_flow_gps * 1.1);
    }

    #[test]
    fn relaxation_is_continuous_where_its_formula_changes() {
        assert!((relaxed(0.02 - 1e-12) - relaxed(0.02)).abs() < 2e-6);
        assert!((relaxed(50.0) - 1.0).abs() < 1e-12);
    }
}
