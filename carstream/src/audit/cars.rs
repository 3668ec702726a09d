//! Cars by number: VIN and pseudonym of a car are one.

use std::collections::HashMap;
use std::sync::Arc;

use telemetry::pseudonym::PseudonymKey;

/// The cars that were met.
#[derive(Debug)]
pub(crate) struct Cars {
    key: Option<PseudonymKey>,
    by_vin: HashMap<Box<str>, u32>,
    by_pseudonym: HashMap<Arc<str>, u32>,
    pseudonyms: Vec<Arc<str>>,
    /// Whether a car was seen both with its VIN and with its pseudonym.
    any_matched: bool,
}

impl Cars {
    /// No cars yet. Without a key there is no way from a VIN to its pseudonym, and no VIN may be asked for.
    pub(crate) fn new(key: Option<PseudonymKey>) -> Self {
        let (by_vin, by_pseudonym) = (HashMap::new(), HashMap::new());
        Self { key, by_vin, by_pseudonym, pseudonyms: Vec::new(), any_matched: false }
    }

    /// The number of the car with this VIN, which may be new.
    pub(crate) fn of_vin(&mut self, vin: &str) -> u32 {
        if let Some(car) = self.by_vin.get(vin) {
            return *car;
        }
        let car = self.number(&self.pseudonym(vin));
        self.by_vin.insert(vin.into(), car);
        car
    }

    /// The number of the car with this pseudonym, which may be new.
    ///
    /// VINs are asked for first: those of the raw topic and of the ledgers.
    pub(crate) fn of_pseudonym(&mut self, pseudonym: &str) -> u32 {
        let car = self.number(pseudonym);
        // The first numbers are those of the VINs.
        self.any_matched |= (car as usize) < self.by_vin.len();
        car
    }

    /// Whether the pseudonyms were made with another key: there are VINs and pseudonyms, and no pseudonym belongs to a
    /// VIN.
    pub(crate) fn is_other_key(&self) -> bool {
        !self.by_vin.is_empty() && self.pseudonyms.len() > self.by_vin.len() && !self.any_matched
    }

    fn number(&mut self, pseudonym: &str) -> u32 {
        if let Some(car) = self.by_pseudonym.get(pseudonym) {
            return *car;
        }
        let car = u32::try_from(self.pseudonyms.len()).expect("fewer than four billion cars");
        let pseudonym: Arc<str> = pseudonym.into();
        self.pseudonyms.push(pseudonym.clone());
        self.by_pseudonym.insert(pseudonym, car);
        car
    }

    /// The number of the car with this VIN, if it was met.
    pub(crate) fn find_vin(&self, vin: &str) -> Option<u32> {
        self.by_vin.get(vin).copied()
    }

    /// The number of the car with this pseudonym, if it was met.
    pub(crate) fn find_pseudonym(&self, pseudonym: &str) -> Option<u32> {
        self.by_pseudonym.get(pseudonym).copied()
    }

    /// How the car is called.
    pub(crate) fn name(&self, car: u32) -> &Arc<str> {
        &self.pseudonyms[car as usize]
    }

    fn pseudonym(&self, vin: &str) -> String {
        self.key.as_ref().expect("where there are VINs the settings demand a key").pseudonym(vin)
    }
}
