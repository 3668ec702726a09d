//! What the state of cars costs: bytes per car, and the time to write it and to restore it.
//!
//!     cargo bench -p scorer --bench state_cost -- [cars]

#[path = "../../libs/pipeline/benches/support/state_cost.rs"]
mod state_cost;

use std::ops::Range;

use model::{CarState, Scaling, Settings};
use scorer::cars::{Car, Cars};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

impl state_cost::State for Cars {
    /// Cars that have driven: no number of theirs is as it was at first.
    fn of(cars: Range<usize>) -> Self {
        let (scaling, settings) = (Scaling::fit(std::iter::empty()), Settings::default());
        let mut fleet = Cars::default();
        for car in cars {
            let mut state = CarState::new(&scaling);
            for t in 0..3i16 {
                state.observe(&settings, &scaling, t.into(), &[f32::from(t) + 10.0 + car as f32 * 1e-3; 18]);
                state.smooth(&settings, &[f64::from(t) * 0.1; 18]);
            }
            let pseudonym = format!("{:032x}", (car as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            fleet.states.insert(pseudonym, Car { state, heard: 0 });
        }
        fleet
    }

    fn to_bytes(&self) -> Vec<u8> {
        Cars::to_bytes(self)
    }

    fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        Cars::from_bytes(bytes)
    }
}

fn main() -> anyhow::Result<()> {
    state_cost::run::<Cars>()
}
