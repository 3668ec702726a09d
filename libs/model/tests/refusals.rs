//! A model that this program would not score rightly with is refused, and the message says what to do.

#![allow(clippy::unwrap_used)]

use model::{Error, Model};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &[u8] = include_bytes!("independent/manifest.json");
const WEIGHTS: &[u8] = include_bytes!("independent/weights.safetensors");

fn refusal(manifest: &[u8], weights: &[u8]) -> (Error, String) {
    let error = Model::from_parts(manifest, weights).expect_err("it must be refused");
    let message = error.to_string();
    (error, message)
}

/// The manifest with one value changed.
fn changed(pointer: &str, value: Value) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(MANIFEST).unwrap();
    *manifest.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    serde_json::to_vec(&manifest).unwrap()
}

/// A manifest that names `weights`.
fn naming(weights: &[u8]) -> Vec<u8> {
    changed("/weights_sha256", json!(hex::encode(Sha256::digest(weights))))
}

#[test]
fn a_model_is_written_as_it_was_read() {
    let model = Model::from_parts(MANIFEST, WEIGHTS).unwrap();
    let again = Model::from_parts(&model.manifest().to_json(), WEIGHTS).unwrap();
    let (one, other) = (model.manifest(), again.manifest());
    assert!(one.scaling == other.scaling && one.settings == other.settings && one.threshold == other.threshold);
    assert!(one.residual_sigma == other.residual_sigma && one.smoothed_sigma == other.smoothed_sigma);
    assert!(model::Weights::from_safetensors(WEIGHTS).unwrap().to_safetensors() == WEIGHTS);
}

#[test]
fn other_features_are_refused() {
    let (error, message) = refusal(&changed("/features/3/name", json!("charge")), WEIGHTS);
    assert!(matches!(error, Error::Features { index: 3, .. }));
    assert!(message.contains("charge") && message.contains("battery_percentage"), "{message}");
    let mut swapped: Value = serde_json::from_slice(MANIFEST).unwrap();
    swapped["features"].as_array_mut().unwrap().swap(0, 1);
    assert!(matches!(refusal(swapped.to_string().as_bytes(), WEIGHTS).0, Error::Features { index: 0, .. }));
    let mut fewer: Value = serde_json::from_slice(MANIFEST).unwrap();
    fewer["features"].as_array_mut().unwrap().pop();
    assert!(matches!(refusal(fewer.to_string().as_bytes(), WEIGHTS).0, Error::Features { index: 17, .. }));
}

#[test]
fn other_formats_and_networks_are_refused() {
    let (error, message) = refusal(&changed("/format", json!(2)), WEIGHTS);
    assert!(matches!(error, Error::Format { found: 2, .. }) && message.contains("newer version"), "{message}");
    assert!(matches!(refusal(&changed("/architecture/layers/1", json!(15)), WEIGHTS).0, Error::Architecture { .. }));
    assert!(matches!(refusal(b"{}", WEIGHTS).0, Error::Manifest(_)));
    assert!(matches!(refusal(b"no json", WEIGHTS).0, Error::Manifest(_)));
    let mut more: Value = serde_json::from_slice(MANIFEST).unwrap();
    more["surprise"] = json!(1);
    assert!(matches!(refusal(more.to_string().as_bytes(), WEIGHTS).0, Error::Manifest(_)));
}

#[test]
fn damaged_weights_are_refused() {
    for place in [0, 100, WEIGHTS.len() - 1] {
        let mut damaged = WEIGHTS.to_vec();
        damaged[place] ^= 1;
        let (error, message) = refusal(MANIFEST, &damaged);
        assert!(matches!(error, Error::WeightsHash { .. }) && message.contains("fetch the model again"), "{message}");
    }
    // Even if somebody corrected the hash.
    for damaged in [&b""[..], &WEIGHTS[..WEIGHTS.len() - 4], &WEIGHTS[8..], &[0xff; 64]] {
        assert!(matches!(refusal(&naming(damaged), damaged).0, Error::Weights(_)));
    }
    let renamed = String::from_utf8_lossy(&WEIGHTS[8..]).find("encoder.0.bias").unwrap() + 8;
    let mut other = WEIGHTS.to_vec();
    other[renamed] = b'E';
    let (error, message) = refusal(&naming(&other), &other);
    assert!(
        matches!(error, Error::Tensor { .. }) && message.contains("encoder.0.bias of the weights is missing"),
        "{message}"
    );
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let mut infinite = WEIGHTS.to_vec();
    let end = infinite.len();
    infinite[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(matches!(refusal(&naming(&infinite), &infinite).0, Error::Number { .. }));
    for (pointer, value) in [
        ("/threshold", json!(0.0)),
        ("/threshold", json!(-1.0)),
        ("/threshold", json!(1e300)),
        ("/residual_sigma/4", json!(0.0)),
        ("/smoothed_sigma/17", json!(-0.5)),
        ("/scaling/deviation/2/3", json!(0.0)),
        ("/scaling/mean/2/3", json!(1e39)),
        ("/scaling/spread/0", json!(0.0)),
        ("/scaling/speed_knots_mps/1", json!(3.0)),
        ("/settings/clip", json!(0.0)),
        ("/settings/smoothing_readings", json!(0.5)),
    ] {
        let (error, message) = refusal(&changed(pointer, value), WEIGHTS);
        assert!(matches!(error, Error::Number { .. }), "{pointer}: {error:?}");
        assert!(message.contains("train a new model"), "{message}");
    }
    // JSON has no word for it.
    assert!(matches!(refusal(&changed("/threshold", Value::Null), WEIGHTS).0, Error::Manifest(_)));
}
