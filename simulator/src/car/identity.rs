//! The identity of a car: VIN, plate, driver. All of it invented, by `fake`, from the seed.

use fake::Fake;
use fake::faker::address::en::{BuildingNumber, PostCode};
use fake::faker::address::raw::{CityName, StreetName};
use fake::faker::automotive::raw::LicencePlate;
use fake::faker::internet::en::SafeEmail;
use fake::faker::name::raw::Name;
use fake::faker::phone_number::raw::CellNumber;
use fake::locales::{EN, FR_FR};
use serde::{Deserialize, Serialize};

use crate::random::{Purpose, Random, hash, stream};

/// How many cars a fleet can have: the serial number at the end of a VIN has six digits.
pub const MAX_CARS: u32 = 1_000_000;

/// World manufacturer identifier. No region of the world has codes that begin with 0 (ISO 3780), so no real car has it.
const SYNTHETIC_WMI: [u8; 3] = *b"0CS";

/// The characters of a VIN: no I, O, Q (ISO 3779).
const VIN_ALPHABET: &[u8; 33] = b"0123456789ABCDEFGHJKLMNPRSTUVWXYZ";

/// Weights of the 17 positions in the check digit (49 CFR 565.15).
const VIN_WEIGHTS: [u32; 17] = [8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2];

/// How a car is used; decides its trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Segment {
    /// Commutes, errands, week-ends.
    Private,
    /// Deliveries in shifts.
    Fleet,
    /// A few long trips.
    Rental,
}

/// The row of the reference table `drivers` (`schemas/driver.avsc`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// Of the car.
    pub vin: String,
    /// First and last name.
    pub name: String,
    /// At example.com, .net or .org.
    pub email: String,
    /// A mobile number.
    pub phone: String,
    /// Of the driving licence.
    pub licence_number: String,
    /// Street, number, post code, town.
    pub address: String,
    /// How the car is used.
    pub segment: Segment,
    /// Since the licence.
    pub experience_years: u32,
}

/// The vehicle identification number of car `index`: synthetic manufacturer, five characters from the seed, check
/// digit, the index as serial number. Unique within a fleet.
pub fn vin(seed: u64, index: u32) -> [u8; 17] {
    let mut vin = [b'0'; 17];
    vin[..3].copy_from_slice(&SYNTHETIC_WMI);
    // The same for all cars of a fleet: its model line.
    let mut line = hash(seed, 0, Purpose::Identity, u64::MAX);
    for character in &mut vin[3..8] {
        *character = VIN_ALPHABET[(line % 33) as usize];
        line /= 33;
    }
    vin[9] = b'T'; // model year 2026
    vin[10] = b'0'; // plant
    let mut serial = index % MAX_CARS;
    for digit in vin[11..].iter_mut().rev() {
        *digit = b'0' + (serial % 10) as u8;
        serial /= 10;
    }
    vin[8] = vin_check_digit(&vin);
    vin
}

/// The check digit of a VIN, position 9: a weighted sum of transliterated characters modulo 11, X for 10
/// (49 CFR 565.15). The character that stands at position 9 has no influence.
pub fn vin_check_digit(vin: &[u8; 17]) -> u8 {
    let sum: u32 = vin.iter().zip(VIN_WEIGHTS).map(|(&character, weight)| transliterate(character) * weight).sum();
    match (sum % 11) as u8 {
        10 => b'X',
        digit => b'0' + digit,
    }
}

fn transliterate(character: u8) -> u32 {
    match character {
        b'0'..=b'9' => u32::from(character - b'0'),
        b'A'..=b'H' => u32::from(character - b'A') + 1,
        b'J'..=b'R' => u32::from(character - b'J') + 1,
        b'S'..=b'Z' => u32::from(character - b'S') + 2,
        _ => 0,
    }
}

/// How car `index` is used, its driver's name and its plate: what a car keeps of [`driver`].
pub(crate) fn segment(seed: u64, index: u32) -> Segment {
    // Shares of a mixed fleet: connected-car platforms see private cars and, out of proportion, vehicles at work.
    match hash(seed, index, Purpose::Identity, 1) % 100 {
        0..45 => Segment::Private,
        45..80 => Segment::Fleet,
        _ => Segment::Rental,
    }
}

/// The driver of car `index`.
pub(crate) fn driver(seed: u64, index: u32, vin: &str) -> Driver {
    let mut random = stream(seed, index, Purpose::Identity, 2);
    let name: String = Name(FR_FR).fake_with_rng(random.inner());
    let email: String = SafeEmail().fake_with_rng(random.inner());
    let phone: String = CellNumber(FR_FR).fake_with_rng(random.inner());
    let address = address(&mut random);
    let licence_number = format!("{:012}", random.bits() % 1_000_000_000_000);
    Driver {
        vin: vin.to_owned(),
        name,
        // One mailbox per driver, so that no two share personal data by chance.
        email: email.replacen('@', &format!("+{index}@"), 1),
        phone,
        licence_number,
        address,
        segment: segment(seed, index),
        experience_years: random.below(45) as u32,
    }
}

/// The plate of car `index`.
pub(crate) fn plate(seed: u64, index: u32) -> String {
    LicencePlate(FR_FR).fake_with_rng(stream(seed, index, Purpose::Identity, 3).inner())
}

fn address(random: &mut Random) -> String {
    let number: String = BuildingNumber().fake_with_rng(random.inner());
    let street: String = StreetName(FR_FR).fake_with_rng(random.inner());
    let post_code: String = PostCode().fake_with_rng(random.inner());
    let town: String = CityName(EN).fake_with_rng(random.inner());
    format!("{number} {street}, {post_code} {town}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn check_digit_as_published() {
        // The worked example of the regulation, and the VIN of all ones whose check digit is 1.
        assert_eq!(vin_check_digit(b"1M8GDM9AXKP042788"), b'X');
        assert_eq!(vin_check_digit(b"11111111111111111"), b'1');
    }

    #[test]
    fn vins_are_valid_and_unique() {
        let mut seen = HashSet::new();
        for index in (0..2_000).chain([99_999, 999_999]) {
            let vin = vin(7, index);
            assert!(vin.iter().all(|c| VIN_ALPHABET.contains(c)));
            assert_eq!(vin[8], vin_check_digit(&vin));
            assert!(seen.insert(vin));
        }
        assert!(seen.insert(vin(8, 0)), "another seed is another fleet");
    }

    #[test]
    fn drivers_fit_their_schema() {
        for index in 0..300 {
            let vin = String::from_utf8(vin(1, index).to_vec()).unwrap();
            let driver = driver(1, index, &vin);
            assert!(driver.name.len() <= 200 && driver.email.len() <= 200 && driver.address.len() <= 300);
            assert!(driver.phone.len() <= 50 && plate(1, index).len() <= 20);
            assert!(driver.email.contains(&format!("+{index}@example.")));
        }
    }
}
