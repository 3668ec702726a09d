//! Training the network: Adam on the mean squared error, in Burn.

use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, ElementConversion};
use model::random::SplitMix64;
use model::{FEATURE_COUNT, Values, Weights};
use tokio_util::sync::CancellationToken;

use crate::network::{Autoencoder, tensor};

/// How the network is trained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fit {
    /// Of the first weights and the order.
    pub(crate) seed: u64,
    /// Passes over the rows.
    pub(crate) epochs: u32,
    /// Rows per step.
    pub(crate) batch_size: usize,
    /// Of the first step; falls to 0 along half a cosine.
    pub(crate) learning_rate: f64,
}

/// A trained network, with its mean squared error after each epoch (training: while learning).
#[derive(Debug, Clone)]
pub(crate) struct Fitted {
    /// The parameters.
    pub(crate) weights: Weights,
    /// On the training rows.
    pub(crate) training_loss: Vec<f64>,
    /// On the validation rows.
    pub(crate) validation_loss: Vec<f64>,
}

/// Trains on `rows`. `None`: shut down meanwhile.
///
/// The same rows and settings give the same weights, to the bit, on the same kind of processor: one thread, sums in
/// a fixed order, random numbers of our own.
pub(crate) fn fit(
    settings: &Fit,
    rows: &[Values],
    validation: &[Values],
    shutdown: &CancellationToken,
) -> Option<Fitted> {
    let device = Device::flex().autodiff();
    let mut network = Autoencoder::new(settings.seed, &device);
    let mut adam = AdamConfig::new().with_epsilon(1e-8).init();
    // Another stream than that of the first weights.
    let mut random = SplitMix64::new(settings.seed ^ 0x6f72_6465_7221);
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    let steps_per_epoch = rows.len().div_ceil(settings.batch_size);
    let steps = (steps_per_epoch * settings.epochs as usize) as f64;
    let (mut training_loss, mut validation_loss) = (Vec::new(), Vec::new());
    let mut step = 0.0;
    for _ in 0..settings.epochs {
        random.shuffle(&mut order);
        let mut squares = 0.0;
        for batch in order.chunks(settings.batch_size) {
            if shutdown.is_cancelled() {
                return None;
            }
            let gathered: Vec<f32> = batch.iter().flat_map(|i| rows[*i as usize].map(|x| x as f32)).collect();
            let input = tensor(gathered, &device);
            let difference = network.forward(input.clone()) - input;
            let loss = (difference.clone() * difference).mean();
            let gradients = GradientsParams::from_grads(loss.backward(), &network);
            squares += f64::from(loss.into_scalar::<f32>().elem::<f32>()) * batch.len() as f64;
            let rate = settings.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * step / steps).cos());
            network = adam.step(rate, network, gradients);
            step += 1.0;
        }
        training_loss.push(squares / rows.len() as f64);
        validation_loss.push(mean_squared_error(&network.weights(), validation));
    }
    Some(Fitted { weights: network.weights(), training_loss, validation_loss })
}

/// The mean squared error of a network over all features of all rows; 0 without rows.
pub(crate) fn mean_squared_error(weights: &Weights, rows: &[Values]) -> f64 {
    let squares = |row: &Values| {
        let output = weights.forward(row);
        row.iter().zip(output).map(|(x, y)| (x - y) * (x - y)).sum::<f64>()
    };
    rows.iter().map(squares).sum::<f64>() / (rows.len().max(1) * FEATURE_COUNT) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eighteen features that depend on three numbers.
    fn rows(seed: u64, count: usize) -> Vec<Values> {
        let mut random = SplitMix64::new(seed);
        let row = |_| {
            let hidden: [f64; 3] = std::array::from_fn(|_| 2.0 * random.uniform() - 1.0);
            std::array::from_fn(|i| hidden[i % 3] * (1.0 + i as f64 / 18.0) - hidden[(i + 1) % 3])
        };
        (0..count).map(row).collect()
    }

    const SETTINGS: Fit = Fit { seed: 1, epochs: 10, batch_size: 64, learning_rate: 5e-3 };

    #[test]
    fn the_network_learns_what_the_features_have_in_common() {
        let (training, validation) = (rows(1, 4000), rows(2, 500));
        let fitted = fit(&SETTINGS, &training, &validation, &CancellationToken::new()).expect("not shut down");
        let (first, last) = (fitted.validation_loss[0], fitted.validation_loss[9]);
        assert!(last < 0.2 * first && last < 0.05, "{first} to {last}");
        assert!(fitted.training_loss.windows(2).filter(|pair| pair[1] < pair[0]).count() >= 7);
    }

    #[test]
    fn the_same_rows_and_seed_give_the_same_weights() {
        let training = rows(1, 1000);
        let weights = |seed| {
            let settings = Fit { seed, epochs: 2, ..SETTINGS };
            fit(&settings, &training, &[], &CancellationToken::new()).expect("not shut down").weights.to_safetensors()
        };
        assert_eq!(weights(1), weights(1));
        assert_ne!(weights(1), weights(2));
    }

    #[test]
    fn training_stops_when_the_process_does() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        assert!(fit(&SETTINGS, &rows(1, 1000), &[], &shutdown).is_none());
    }
}
