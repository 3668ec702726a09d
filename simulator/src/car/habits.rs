//! When a car is driven: the trips of a day, from how the car is used.
//!
//! Times of day are local; the fleet lives in one time zone, UTC+1, without daylight saving. A day is drawn from a
//! stream of its own, so that it is the same whether or not the days before were simulated. Days count from the week in
//! which the fleet begins: one that begins whole weeks later makes the same trips, whole weeks later.

use crate::car::identity::Segment;
use crate::random::{Purpose, Random, stream};

/// Local time is UTC plus this.
pub(crate) const LOCAL_OFFSET_S: i64 = 3_600;

const DAY_S: i64 = 86_400;

/// 2026-06-01, a Monday: the first day of the week in which a fleet begins is drawn as this one.
const FIRST_MONDAY: i64 = 20_605;
const HOUR_S: f64 = 3_600.0;
const MINUTE_S: f64 = 60.0;

/// Between two trips a car stands at least this long.
const SHORTEST_STOP_S: i64 = 120;

/// One trip, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trip {
    pub(crate) start_s: i64,
    pub(crate) end_s: i64,
    /// Ends where the car lives.
    pub(crate) homeward: bool,
}

/// What a driver does every day, drawn once per car.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    segment: Segment,
    /// Private: leaves home; fleet: the shift begins.
    start_h: f64,
    /// Private: the way to work.
    commute_s: f64,
}

impl Habits {
    pub(crate) fn draw(segment: Segment, random: &mut Random) -> Self {
        /// Early, day, late and night shift, by share of drivers.
        const SHIFTS_H: [f64; 10] = [5.0, 5.0, 5.5, 7.0, 7.5, 8.0, 13.0, 13.5, 14.0, 21.0];
        let start_h = match segment {
            Segment::Private => 7.5 + 0.7 * random.gauss(),
            Segment::Fleet => SHIFTS_H[random.below(SHIFTS_H.len())] + random.range(-0.3, 0.3),
            Segment::Rental => 0.0,
        };
        Self { segment, start_h, commute_s: random.range(18.0, 55.0) * MINUTE_S }
    }

    /// The trips of the local day number `day` (days since the epoch), drawn as those of day `drawn_as`; in order, none
    /// overlapping. A night shift reaches into the next morning.
    pub(crate) fn day(&self, seed: u64, car: u32, day: i64, drawn_as: i64) -> Vec<Trip> {
        let mut random = stream(seed, car, Purpose::Day, drawn_as.cast_unsigned());
        let mut plan = Plan { midnight_s: day * DAY_S - LOCAL_OFFSET_S, trips: Vec::new() };
        // Day 0 of the epoch was a Thursday.
        let weekend = (day + 3).rem_euclid(7) >= 5;
        match self.segment {
            Segment::Private if weekend => self.leisure(&mut plan, &mut random),
            Segment::Private => self.commute(&mut plan, &mut random),
            Segment::Fleet if weekend && random.chance(0.6) => {}
            Segment::Fleet => self.shift(&mut plan, &mut random),
            Segment::Rental => self.rental(&mut plan, &mut random),
        }
        plan.trips
    }

    fn commute(&self, plan: &mut Plan, random: &mut Random) {
        let leave_s = (self.start_h + 0.25 * random.gauss()) * HOUR_S;
        plan.add(leave_s, self.commute_s * random.range(0.85, 1.25), false);
        if random.chance(0.3) {
            let noon_s = (12.2 + 0.2 * random.gauss()) * HOUR_S;
            plan.add(noon_s, random.range(6.0, 14.0) * MINUTE_S, false);
            plan.add(noon_s + random.range(30.0, 45.0) * MINUTE_S, random.range(6.0, 14.0) * MINUTE_S, false);
        }
        let back_s = leave_s + (9.3 + 0.8 * random.gauss()) * HOUR_S;
        plan.add(back_s, self.commute_s * random.range(0.9, 1.35), true);
        if random.chance(0.5) {
            let errand_s = back_s + random.range(1.2, 2.5) * HOUR_S;
            plan.there_and_back(errand_s, random.range(8.0, 25.0), random.range(20.0, 120.0), random);
        }
    }

    fn leisure(&self, plan: &mut Plan, random: &mut Random) {
        if random.chance(0.2) {
            return;
        }
        plan.there_and_back(
            random.range(9.0, 11.0) * HOUR_S,
            random.range(15.0, 60.0),
            random.range(40.0, 240.0),
            random,
        );
        if random.chance(0.5) {
            plan.there_and_back(
                random.range(17.0, 19.5) * HOUR_S,
                random.range(10.0, 35.0),
                random.range(60.0, 150.0),
                random,
            );
        }
    }

    fn shift(&self, plan: &mut Plan, random: &mut Random) {
        let mut at_s = (self.start_h + 0.1 * random.gauss()) * HOUR_S;
        let end_s = at_s + random.range(7.0, 9.0) * HOUR_S;
        let break_at_s = at_s + random.range(3.5, 4.5) * HOUR_S;
        let mut had_break = false;
        while at_s < end_s {
            let drive_s = random.range(14.0, 45.0) * MINUTE_S;
            plan.add(at_s, drive_s, at_s + drive_s >= end_s);
            at_s += drive_s + random.range(4.0, 14.0) * MINUTE_S;
            if !had_break && at_s > break_at_s {
                at_s += random.range(25.0, 40.0) * MINUTE_S;
                had_break = true;
            }
        }
    }

    fn rental(&self, plan: &mut Plan, random: &mut Random) {
        if random.chance(0.12) {
            return;
        }
        let mut at_s = random.range(7.0, 11.0) * HOUR_S;
        for leg in 0..2 + random.below(4) {
            let drive_s = random.range(30.0, 110.0) * MINUTE_S;
            plan.add(at_s, drive_s, leg == 3);
            at_s += drive_s + random.range(20.0, 100.0) * MINUTE_S;
            if at_s > 22.0 * HOUR_S {
                break;
            }
        }
    }
}

struct Plan {
    midnight_s: i64,
    trips: Vec<Trip>,
}

impl Plan {
    fn add(&mut self, start_s: f64, length_s: f64, homeward: bool) {
        let earliest_s = self.trips.last().map_or(i64::MIN, |trip| trip.end_s + SHORTEST_STOP_S);
        let start_s = (self.midnight_s + start_s as i64).max(earliest_s);
        self.trips.push(Trip { start_s, end_s: start_s + (length_s as i64).max(4 * 60), homeward });
    }

    fn there_and_back(&mut self, start_s: f64, way_min: f64, stay_min: f64, random: &mut Random) {
        let way_s = way_min * MINUTE_S;
        self.add(start_s, way_s, false);
        self.add(start_s + way_s + stay_min * MINUTE_S, way_s * random.range(0.85, 1.2), true);
    }
}

/// The trips to come, a day at a time.
#[derive(Debug, Clone)]
pub(crate) struct Calendar {
    habits: Habits,
    next_day: i64,
    /// From the Monday on or before the start to [`FIRST_MONDAY`], in days.
    to_first_week: i64,
    /// In order; the next one last.
    upcoming: Vec<Trip>,
    last_end_s: i64,
}

impl Calendar {
    /// Trips that begin at `start_s` or later.
    pub(crate) fn new(habits: Habits, seed: u64, car: u32, start_s: i64) -> Self {
        let today = (start_s + LOCAL_OFFSET_S).div_euclid(DAY_S);
        let mut calendar = Self {
            habits,
            next_day: today - 1,
            to_first_week: -(today - FIRST_MONDAY).div_euclid(7) * 7,
            upcoming: Vec::new(),
            last_end_s: start_s - SHORTEST_STOP_S,
        };
        calendar.refill(seed, car);
        calendar
    }

    /// The next trip.
    pub(crate) fn next(&self) -> Trip {
        *self.upcoming.last().expect("refill leaves at least one trip")
    }

    /// The next trip is over; there is always another.
    pub(crate) fn advance(&mut self, seed: u64, car: u32) {
        if let Some(trip) = self.upcoming.pop() {
            self.last_end_s = trip.end_s;
        }
        self.refill(seed, car);
    }

    fn refill(&mut self, seed: u64, car: u32) {
        while self.upcoming.is_empty() {
            let earliest_s = self.last_end_s + SHORTEST_STOP_S;
            let trips = self.habits.day(seed, car, self.next_day, self.next_day + self.to_first_week);
            self.upcoming.extend(trips.into_iter().rev().filter(|trip| trip.start_s >= earliest_s));
            self.next_day += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trips_are_in_order_and_do_not_overlap() {
        for (segment, car) in [Segment::Private, Segment::Fleet, Segment::Rental].into_iter().zip(0..) {
            let habits = Habits::draw(segment, &mut stream(1, car, Purpose::Vehicle, 0));
            let start_s = 1_780_000_000;
            let mut calendar = Calendar::new(habits, 1, car, start_s);
            let mut last_end_s = start_s;
            for _ in 0..500 {
                let trip = calendar.next();
                assert!(trip.start_s >= last_end_s && trip.end_s > trip.start_s, "{segment:?} {trip:?}");
                last_end_s = trip.end_s;
                calendar.advance(1, car);
            }
        }
    }

    #[test]
    fn a_shift_is_longer_than_a_commute() {
        let driven_s = |segment| {
            let habits = Habits::draw(segment, &mut stream(1, 5, Purpose::Vehicle, 0));
            (20_000..20_100)
                .flat_map(|day| habits.day(1, 5, day, day))
                .map(|trip| trip.end_s - trip.start_s)
                .sum::<i64>()
        };
        assert!(driven_s(Segment::Fleet) > 2 * driven_s(Segment::Private));
    }
}
