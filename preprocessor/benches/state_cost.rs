//! What the memory of duplicates costs: bytes per car, and the time to write it and to restore it.
//!
//!     cargo bench -p preprocessor --bench state_cost -- [cars]

#[path = "../../libs/pipeline/benches/support/state_cost.rs"]
mod state_cost;

use std::ops::Range;

use preprocessor::duplicates::Duplicates;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Boots that a car had before the one under way: a week of five starts a day.
const BOOTS: i64 = 35;

impl state_cost::State for Duplicates {
    /// Cars with a boot under way that has a gap, seven complete ones before it, and the ids of those before these.
    fn of(cars: Range<usize>) -> Self {
        let mut seen = Duplicates::default();
        for car in cars {
            let vin = format!("WVWZZZ1KZ{car:08}");
            let boot_id = |boot: i64| (car as i64 * 1000 + boot).wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64);
            for boot in 0..=BOOTS {
                for seq in (0..300).chain((boot == BOOTS).then_some(301)) {
                    seen.admit(&vin, boot_id(boot), seq, 0);
                }
            }
        }
        seen
    }

    fn to_bytes(&self) -> Vec<u8> {
        Duplicates::to_bytes(self)
    }

    fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        Ok(Duplicates::from_bytes(bytes)?)
    }
}

fn main() -> anyhow::Result<()> {
    state_cost::run::<Duplicates>()
}
