//! The constants of one car: what makes it differ from the next one of its kind.
//!
//! A fleet is of one build, but no two cars agree: payload, tyre pressures as somebody set them, tolerances of every
//! sensor, the climate at home. Normal values differ from car to car; so a detector that compares each car with itself
//! sees more.

use crate::random::Random;

/// Where a car lives.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) latitude: f64,
    pub(crate) longitude: f64,
    /// Of the season, over a day and a night.
    pub(crate) mean_c: f64,
    /// Half the difference between afternoon and dawn.
    pub(crate) swing_c: f64,
}

/// Towns of the region with the mean temperature of early June there (rounded climate normals).
const TOWNS: [(f64, f64, f64); 8] = [
    (48.857, 2.352, 17.0),  // Paris
    (45.764, 4.836, 19.0),  // Lyon
    (43.605, 1.444, 19.5),  // Toulouse
    (47.218, -1.554, 16.5), // Nantes
    (48.573, 7.752, 18.0),  // Strasbourg
    (50.629, 3.057, 15.5),  // Lille
    (44.838, -0.579, 18.5), // Bordeaux
    (45.188, 5.724, 17.5),  // Grenoble
];

/// The constants of one car.
#[derive(Debug, Clone)]
pub(crate) struct Vehicle {
    pub(crate) home: Home,
    /// With payload.
    pub(crate) mass_kg: f64,
    /// Drag coefficient times frontal area.
    pub(crate) drag_area_m2: f64,
    pub(crate) rolling_resistance: f64,
    /// The greatest acceleration that the driver asks for, m/s².
    pub(crate) temperament: f64,
    pub(crate) engine_max_w: f64,
    /// Share of the traction power that the engine gives at city speed.
    pub(crate) engine_share: f64,
    /// Lights, controls, fans.
    pub(crate) auxiliary_w: f64,
    /// Lithium-ion cells in series.
    pub(crate) cells: f64,
    pub(crate) capacity_ah: f64,
    pub(crate) resistance_ohm: f64,
    /// Where the thermostat begins to open.
    pub(crate) thermostat_c: f64,
    /// As set in the workshop, at 20 °C.
    pub(crate) cold_pressure_psi: [f64; 4],
    /// mm/s at idle speed.
    pub(crate) vibration_base_mmps: f64,
    /// How strongly the sensor at each wheel answers to the road.
    pub(crate) corner_gain: [f64; 4],
    pub(crate) sensors: Sensors,
    /// 2000 or 3000; 1000 is out of support.
    pub(crate) firmware: i32,
    /// Chance that a stop is in an underground garage.
    pub(crate) garage_share: f64,
    /// Chance that a stop has a charging point.
    pub(crate) charger_share: f64,
}

/// Tolerances of the sensors: within the class of automotive parts.
#[derive(Debug, Clone)]
pub(crate) struct Sensors {
    pub(crate) coolant_offset_c: f64,
    pub(crate) intake_offset_c: f64,
    pub(crate) air_flow_gain: f64,
    pub(crate) voltage_offset_v: f64,
    pub(crate) current_offset_a: f64,
    pub(crate) speed_gain: f64,
    pub(crate) throttle_offset: f64,
    pub(crate) accelerometer_offset_g: [f64; 4],
}

impl Vehicle {
    /// Draws the constants of a car.
    pub(crate) fn draw(random: &mut Random) -> Self {
        let (latitude, longitude, mean_c) = TOWNS[random.below(TOWNS.len())];
        // A day may be warmer or cooler than the season; the pressures were set to about 33 psi, not evenly.
        let pressure_psi = random.range(31.0, 37.0);
        let firmware = if random.chance(0.6) { 2_000 } else { 3_000 };
        let mass_kg =
            random.range(1_350.0, 1_900.0) + if random.chance(0.25) { random.range(50.0, 300.0) } else { 0.0 };
        Self {
            home: Home {
                latitude: latitude + 0.12 * random.gauss(),
                longitude: longitude + 0.16 * random.gauss(),
                mean_c: mean_c + 2.5 * random.gauss(),
                swing_c: random.range(3.5, 7.5),
            },
            mass_kg,
            drag_area_m2: random.range(0.58, 0.78),
            rolling_resistance: random.range(0.008, 0.012),
            temperament: random.range(1.1, 2.3),
            engine_max_w: random.range(70_000.0, 110_000.0),
            engine_share: random.range(0.40, 0.60),
            auxiliary_w: random.range(350.0, 900.0),
            cells: (random.range(90.0, 105.0) as i32).into(),
            capacity_ah: random.range(30.0, 48.0),
            resistance_ohm: random.range(0.08, 0.14),
            thermostat_c: random.range(82.0, 88.0),
            cold_pressure_psi: core::array::from_fn(|_| pressure_psi + 0.5 * random.gauss()),
            vibration_base_mmps: random.range(1.6, 3.4),
            corner_gain: core::array::from_fn(|_| random.range(0.8, 1.25)),
            sensors: Sensors {
                coolant_offset_c: 1.2 * random.gauss(),
                intake_offset_c: 1.0 * random.gauss(),
                air_flow_gain: 1.0 + 0.03 * random.gauss(),
                voltage_offset_v: 0.8 * random.gauss(),
                current_offset_a: 0.4 * random.gauss(),
                speed_gain: 1.0 + 0.008 * random.gauss(),
                throttle_offset: 0.006 * random.gauss(),
                accelerometer_offset_g: core::array::from_fn(|_| 0.012 * random.gauss()),
            },
            firmware,
            garage_share: if random.chance(0.4) { random.range(0.1, 0.5) } else { 0.0 },
            charger_share: random.range(0.25, 0.7),
        }
    }

    /// Outside temperature at the local time of day: lowest at five, highest at five in the afternoon.
    pub(crate) fn ambient_c(&self, local_hour: f64) -> f64 {
        let angle = (local_hour - 11.0) * core::f64::consts::TAU / 24.0;
        self.home.mean_c + self.home.swing_c * libm::sin(angle)
    }
}
