//! The state of one partition: its cars, and the model that they are judged with.
//!
//! ```text
//! format u8 │ length u32, manifest.json │ length u32, weights.safetensors │ cars: see `cars`
//! ```
//!
//! Little-endian. With the model in it a snapshot says which one is in force, and can be continued wherever it is
//! restored: whatever is announced by then, and whether the lake answers or not.

use std::sync::Arc;

use anyhow::{Context, ensure};
use model::{Manifest, Model, Weights};

use crate::cars::Cars;

const FORMAT: u8 = 1;

/// The state of one partition.
#[derive(Debug)]
pub(crate) struct PartitionState {
    pub(crate) model: Arc<Model>,
    pub(crate) cars: Cars,
}

impl PartitionState {
    /// Of a partition that nothing is known of.
    pub(crate) fn new(model: Arc<Model>) -> Self {
        Self { model, cars: Cars::default() }
    }

    /// As bytes: the same state always gives the same.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let (manifest, weights) = (self.model.manifest().to_json(), self.model.weights().to_safetensors());
        let cars = self.cars.to_bytes();
        let mut out = Vec::with_capacity(9 + manifest.len() + weights.len() + cars.len());
        out.push(FORMAT);
        for part in [manifest, weights] {
            out.extend_from_slice(&(part.len() as u32).to_le_bytes());
            out.extend_from_slice(&part);
        }
        out.extend_from_slice(&cars);
        out
    }

    /// From bytes of [`PartitionState::to_bytes`].
    pub(crate) fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        let (format, mut rest) = bytes.split_first().context("the state of a partition is empty")?;
        ensure!(*format == FORMAT, "the state of a partition has format {format}, this program reads {FORMAT}");
        let mut part = || {
            let (length, after) = rest.split_first_chunk().context("the state of a partition ends early")?;
            let length = u32::from_le_bytes(*length) as usize;
            let (part, after) = after.split_at_checked(length).context("the state of a partition ends early")?;
            rest = after;
            anyhow::Ok(part)
        };
        let (manifest, weights) = (Manifest::from_json(part()?)?, Weights::from_safetensors(part()?)?);
        Ok(Self { model: Arc::new(Model::new(manifest, weights)), cars: Cars::from_bytes(rest)? })
    }
}

#[cfg(test)]
mod tests {
    use pipeline::ForgetAfter;

    use super::*;

    const MANIFEST: &[u8] = include_bytes!("../../libs/model/tests/independent/manifest.json");
    const WEIGHTS: &[u8] = include_bytes!("../../libs/model/tests/independent/weights.safetensors");

    fn state() -> PartitionState {
        let mut state = PartitionState::new(Arc::new(Model::from_parts(MANIFEST, WEIGHTS).unwrap()));
        for i in 0..300_i64 {
            state.cars.pass_time(1_795_219_200_000 + i * 1000, ForgetAfter::DEFAULT);
            let row = std::array::from_fn(|feature| ((i * 7 + feature as i64 * 13) % 101) as f32 + 0.1);
            state.cars.judge(&state.model, &format!("{:032x}", i % 3), i * 1000, &row);
        }
        state
    }

    #[test]
    fn a_state_is_stored_with_its_model() {
        let state = state();
        let bytes = state.to_bytes();
        let restored = PartitionState::from_bytes(&bytes).unwrap();
        assert_eq!(restored.cars, state.cars);
        assert!(restored.model.is_same(&state.model));
        assert_eq!(PartitionState { model: state.model, ..restored }.to_bytes(), bytes);
    }

    #[test]
    fn what_is_cut_off_or_of_another_format_is_refused() {
        let bytes = state().to_bytes();
        for end in (0..bytes.len()).step_by(97) {
            assert!(PartitionState::from_bytes(&bytes[..end]).is_err(), "cut off at {end}");
        }
        assert!(PartitionState::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        assert!(PartitionState::from_bytes(&[&[9], &bytes[1..]].concat()).is_err());
    }
}
