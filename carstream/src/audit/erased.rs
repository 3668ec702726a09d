//! Rows that were erased from the lake, since their cars asked to be forgotten: no losses, as far as there is proof.
//!
//! ```text
//!  request in the lake: this car, this partition, before this offset ─┐
//!                                                                      ├─► a reading that the lake lacks was erased
//!  footer of an object: so many rows of its range were erased ────────┘
//! ```
//!
//! Both are needed. Readings of cars that have asked for nothing, or that came behind the request, are lost if they are
//! missing; so are more readings than footers name, and all that a footer names without a request.

use std::collections::HashMap;

use lake::ErasureRequests;

use super::Hop;
use super::extent::LakeExtent;
use super::read::PlaceRef;
use super::readings::Reading;

/// The proof that rows were erased on request.
#[derive(Debug, Default)]
pub(crate) struct Erased {
    requests: ErasureRequests,
    /// Rows that footers name and that a request may have asked for.
    pub(crate) rows: u64,
    /// Rows that are still there although a request asks for them to be erased.
    pub(crate) to_go: u64,
    /// By the number of a car in this audit: whether it asked to be forgotten.
    asked: HashMap<u32, bool>,
}

impl Erased {
    pub(crate) fn of(lake: &LakeExtent) -> Self {
        let covered =
            |object: &&super::extent::LakeObject| lake.requests.reach(object.name.partition, object.name.start);
        let rows = lake.objects.iter().filter(covered).map(|object| object.footer.erased).sum();
        Self { requests: lake.requests.clone(), rows, ..Self::default() }
    }

    /// How many requests there are.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.count()
    }

    /// Notes a record in the cloud, or a row of the lake.
    pub(crate) fn see(&mut self, hop: Hop, place: PlaceRef<'_>, car: (u32, &str), reading: &mut Reading) {
        if self.requests.count() == 0 || !*self.asked.entry(car.0).or_insert_with(|| self.requests.has(car.1)) {
            return;
        }
        let is_asked_for = self.requests.before(place.partition, car.1).is_some_and(|before| place.offset < before);
        match hop {
            Hop::Cloud if !is_asked_for => reading.set(Reading::STAYS),
            Hop::Lake if is_asked_for => self.to_go += 1,
            _ => {}
        }
    }

    /// Whether the car with this pseudonym asked to be forgotten.
    pub(crate) fn has_asked(&self, pseudonym: &str) -> bool {
        self.requests.count() > 0 && self.requests.has(pseudonym)
    }
}
