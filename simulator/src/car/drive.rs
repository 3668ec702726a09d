//! How a trip is driven: a drive cycle of standstill, city, country and motorway, the road under the wheels, the way
//! that the car takes, and whether there is a network.
//!
//! A trip goes out through the city, over country roads or a motorway if it is long enough, and ends in a city again.
//! It is a sequence of legs; in each the driver goes for a target speed, as fast as temperament and traffic allow.

use crate::car::habits::{LOCAL_OFFSET_S, Trip};
use crate::car::vehicle::{Home, Vehicle};
use crate::random::Random;

/// Metres per degree of latitude (a sphere of 6,371 km).
const METRES_PER_DEGREE: f64 = 111_195.0;

/// Cars keep to the region that they live in.
const REGION_RADIUS_M: f64 = 80_000.0;

/// Comfortable braking (ISO 15622 limits adaptive cruise control to 3.5 m/s²).
const BRAKING_MPS2: f64 = 2.5;

/// How quickly a driver closes the gap to the speed aimed at.
const RESPONSE_S: f64 = 5.0;

/// Tunnels per second of country road or motorway: about one in an hour.
const TUNNELS_PER_S: f64 = 1.0 / 4_000.0;

/// The parts of a drive cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Road {
    /// At a light, in a jam.
    Standstill,
    /// To 14 m/s.
    City,
    /// To 27 m/s.
    Country,
    /// To 37 m/s.
    Motorway,
}

/// The moving state of a car; between trips it rests.
#[derive(Debug, Clone)]
pub(crate) struct Drive {
    pub(crate) speed_mps: f64,
    pub(crate) acceleration_mps2: f64,
    /// Rise over run.
    pub(crate) grade: f64,
    /// Of the road surface; 1 is a good city street (ISO 8608 class B).
    pub(crate) roughness: f64,
    pub(crate) latitude: f64,
    pub(crate) longitude: f64,
    heading: f64,
    road: Road,
    target_mps: f64,
    leg_left_s: f64,
    tunnel_left_s: f64,
}

impl Drive {
    /// Parked at home.
    pub(crate) fn at_home(home: &Home, random: &mut Random) -> Self {
        Self {
            speed_mps: 0.0,
            acceleration_mps2: 0.0,
            grade: 0.0,
            roughness: 1.0,
            latitude: home.latitude,
            longitude: home.longitude,
            heading: random.range(0.0, core::f64::consts::TAU),
            road: Road::Standstill,
            target_mps: 0.0,
            leg_left_s: 0.0,
            tunnel_left_s: 0.0,
        }
    }

    /// A trip begins: out into the region, or home.
    pub(crate) fn set_off(&mut self, homeward: bool, home: &Home, random: &mut Random) {
        self.heading = if homeward { self.bearing_home(home) } else { random.range(0.0, core::f64::consts::TAU) };
        self.road = Road::Standstill;
        self.leg_left_s = random.range(4.0, 15.0);
        self.target_mps = 0.0;
    }

    /// A trip is over.
    pub(crate) fn park(&mut self) {
        self.speed_mps = 0.0;
        self.acceleration_mps2 = 0.0;
        self.grade = 0.0;
        self.tunnel_left_s = 0.0;
    }

    /// Inside a tunnel, where no network reaches.
    pub(crate) fn in_tunnel(&self) -> bool {
        self.tunnel_left_s > 0.0
    }

    /// Drives for `dt_s` seconds of `trip`, at `now_s`.
    pub(crate) fn step(&mut self, dt_s: f64, now_s: i64, trip: Trip, vehicle: &Vehicle, random: &mut Random) {
        self.leg_left_s -= dt_s;
        self.tunnel_left_s -= dt_s;
        let left_s = (trip.end_s - now_s) as f64;
        if self.leg_left_s <= 0.0 {
            self.next_leg(now_s, trip, random);
        }
        // Brake in time to stand when the trip ends.
        let target_mps = self.target_mps.min((left_s - dt_s).max(0.0) * 0.6 * BRAKING_MPS2);
        let eagerness = vehicle.temperament * (1.0 - self.speed_mps / 70.0);
        let wanted = (target_mps - self.speed_mps) / RESPONSE_S + 0.12 * random.gauss();
        let acceleration = wanted.clamp(-BRAKING_MPS2, eagerness);
        let speed_mps = if target_mps < 0.1 && self.speed_mps < 1.0 {
            0.0
        } else {
            (self.speed_mps + acceleration * dt_s).clamp(0.0, 60.0)
        };
        self.acceleration_mps2 = (speed_mps - self.speed_mps) / dt_s;
        let travelled_m = 0.5 * (speed_mps + self.speed_mps) * dt_s;
        self.speed_mps = speed_mps;
        self.road_underneath(dt_s, random);
        self.travel(travelled_m, &vehicle.home, random);
        if self.tunnel_left_s <= 0.0
            && matches!(self.road, Road::Country | Road::Motorway)
            && random.chance(TUNNELS_PER_S * dt_s)
        {
            self.tunnel_left_s = random.range(20.0, 150.0);
        }
    }

    fn next_leg(&mut self, now_s: i64, trip: Trip, random: &mut Random) {
        let kind = match self.road {
            // Lights and crossings are between the legs of city and country roads.
            Road::City if random.chance(0.55) => Road::Standstill,
            Road::Country if random.chance(0.12) => Road::Standstill,
            _ => road_at(now_s, trip, random),
        };
        self.road = kind;
        let rush = rush_hour(now_s);
        (self.target_mps, self.leg_left_s) = match kind {
            Road::Standstill => (0.0, random.range(5.0, 40.0)),
            Road::City => (random.range(7.0, 14.5) * (1.0 - 0.25 * rush), random.range(20.0, 80.0)),
            Road::Country => (random.range(17.0, 27.0) * (1.0 - 0.1 * rush), random.range(50.0, 240.0)),
            Road::Motorway if random.chance(0.10 + 0.2 * rush) => (random.range(3.0, 12.0), random.range(40.0, 150.0)),
            Road::Motorway => (random.range(26.0, 37.0), random.range(60.0, 300.0)),
        };
    }

    /// Slopes and surfaces change with the way, as first-order random walks that return to their mean.
    fn road_underneath(&mut self, dt_s: f64, random: &mut Random) {
        let (slope, surface) = match self.road {
            Road::Standstill | Road::City => (0.015, 1.15),
            Road::Country => (0.025, 1.0),
            Road::Motorway => (0.012, 0.7),
        };
        let mixing = (dt_s / 30.0).min(1.0);
        let kick = (2.0 * mixing).sqrt();
        self.grade += mixing * -self.grade + kick * slope * random.gauss();
        self.roughness += mixing * (surface - self.roughness) + kick * 0.12 * random.gauss();
        self.roughness = self.roughness.clamp(0.3, 2.5);
        self.grade = self.grade.clamp(-0.08, 0.08);
    }

    fn travel(&mut self, metres: f64, home: &Home, random: &mut Random) {
        if metres <= 0.0 {
            return;
        }
        self.heading += 0.03 * random.gauss();
        let (north_m, east_m) = self.offset_from(home);
        if north_m * north_m + east_m * east_m > REGION_RADIUS_M * REGION_RADIUS_M {
            self.heading = self.bearing_home(home);
        }
        let metres_per_longitude = METRES_PER_DEGREE * libm::cos(home.latitude.to_radians());
        self.latitude += metres * libm::cos(self.heading) / METRES_PER_DEGREE;
        self.longitude += metres * libm::sin(self.heading) / metres_per_longitude;
    }

    fn offset_from(&self, home: &Home) -> (f64, f64) {
        let metres_per_longitude = METRES_PER_DEGREE * libm::cos(home.latitude.to_radians());
        ((self.latitude - home.latitude) * METRES_PER_DEGREE, (self.longitude - home.longitude) * metres_per_longitude)
    }

    fn bearing_home(&self, home: &Home) -> f64 {
        let (north_m, east_m) = self.offset_from(home);
        libm::atan2(-east_m, -north_m)
    }
}

/// Which road a trip is on after part of its time: city at both ends, in between what its length suggests.
fn road_at(now_s: i64, trip: Trip, random: &mut Random) -> Road {
    const CITY_ENDS_S: i64 = 300;
    let length_s = trip.end_s - trip.start_s;
    let ends_s = CITY_ENDS_S.min(length_s / 4);
    if now_s < trip.start_s + ends_s || now_s > trip.end_s - ends_s {
        return Road::City;
    }
    let motorway = ((length_s as f64 - 900.0) / 3_600.0).clamp(0.0, 0.75);
    let country = if length_s > 600 { 0.5 } else { 0.15 };
    if random.chance(motorway) {
        Road::Motorway
    } else if random.chance(country) {
        Road::Country
    } else {
        Road::City
    }
}

/// 1 at the height of the morning and evening traffic, 0 away from it.
fn rush_hour(now_s: i64) -> f64 {
    let hour = (now_s + LOCAL_OFFSET_S).rem_euclid(86_400) as f64 / 3_600.0;
    let peak = |at: f64| (1.0 - ((hour - at) / 1.5).abs()).max(0.0);
    peak(8.0).max(peak(17.5))
}
