//! The autoencoder in Burn: used for training only. Scores come from [`Weights::forward`].

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, TensorData, activation};

use model::random::SplitMix64;
use model::weights::Dense;
use model::{FEATURE_COUNT, Weights};

/// 18-14-7-7-18; tanh, relu, tanh, linear.
#[derive(Module, Debug)]
pub(crate) struct Autoencoder {
    encoder_0: Linear,
    encoder_2: Linear,
    decoder_0: Linear,
    decoder_2: Linear,
}

impl Autoencoder {
    /// A network to start training from. Its numbers depend on `seed` only.
    ///
    /// Uniform in ±√(6 / (in + out)), biases 0. Source: Glorot and Bengio, "Understanding the difficulty of training
    /// deep feedforward neural networks", AISTATS 2010.
    pub(crate) fn new(seed: u64, device: &Device) -> Self {
        let mut random = SplitMix64::new(seed);
        let weights = Weights {
            encoder_0: initial(&mut random),
            encoder_2: initial(&mut random),
            decoder_0: initial(&mut random),
            decoder_2: initial(&mut random),
        };
        Self::from_weights(&weights, device)
    }

    /// The network with these parameters.
    pub(crate) fn from_weights(weights: &Weights, device: &Device) -> Self {
        Self {
            encoder_0: linear(&weights.encoder_0, device),
            encoder_2: linear(&weights.encoder_2, device),
            decoder_0: linear(&weights.decoder_0, device),
            decoder_2: linear(&weights.decoder_2, device),
        }
    }

    /// Its parameters.
    pub(crate) fn weights(&self) -> Weights {
        Weights {
            encoder_0: dense(&self.encoder_0),
            encoder_2: dense(&self.encoder_2),
            decoder_0: dense(&self.decoder_0),
            decoder_2: dense(&self.decoder_2),
        }
    }

    /// Rows of 18 in, rows of 18 out.
    pub(crate) fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        let hidden = self.encoder_0.forward(input).tanh();
        let code = activation::relu(self.encoder_2.forward(hidden));
        let hidden = self.decoder_0.forward(code).tanh();
        self.decoder_2.forward(hidden)
    }
}

/// Rows as a tensor of shape [rows, 18].
pub(crate) fn tensor(rows: Vec<f32>, device: &Device) -> Tensor<2> {
    let shape = [rows.len() / FEATURE_COUNT, FEATURE_COUNT];
    Tensor::from_data(TensorData::new(rows, shape), device)
}

fn initial<const IN: usize, const OUT: usize>(random: &mut SplitMix64) -> Dense<IN, OUT> {
    let bound = (6.0 / (IN + OUT) as f64).sqrt();
    let mut draw = || (bound * (2.0 * random.uniform() - 1.0)) as f32;
    Dense { weight: std::array::from_fn(|_| std::array::from_fn(|_| draw())), bias: [0.0; OUT] }
}

fn linear<const IN: usize, const OUT: usize>(dense: &Dense<IN, OUT>, device: &Device) -> Linear {
    let weight = TensorData::new(dense.weight.as_flattened().to_vec(), [IN, OUT]);
    let bias = TensorData::new(dense.bias.to_vec(), [OUT]);
    Linear { weight: Param::from_data(weight, device), bias: Some(Param::from_data(bias, device)) }
}

fn dense<const IN: usize, const OUT: usize>(linear: &Linear) -> Dense<IN, OUT> {
    let numbers = |data: TensorData| data.try_to_vec::<f32>().expect("the network's numbers are f32");
    let weight = numbers(linear.weight.val().into_data());
    let bias = numbers(linear.bias.as_ref().expect("every layer has a bias").val().into_data());
    Dense {
        weight: std::array::from_fn(|i| std::array::from_fn(|o| weight[i * OUT + o])),
        bias: std::array::from_fn(|o| bias[o]),
    }
}

#[cfg(test)]
mod tests {
    use model::Row;
    use model::weights::PARAMETERS;

    use super::*;

    #[test]
    fn the_network_has_571_parameters() {
        assert_eq!(Autoencoder::new(1, &Device::flex()).num_params(), PARAMETERS);
    }

    #[test]
    fn burn_and_the_forward_pass_by_hand_agree() {
        let device = Device::flex();
        let mut random = SplitMix64::new(3);
        let mut weights = Autoencoder::new(2, &device).weights();
        weights.decoder_0.bias = std::array::from_fn(|i| 0.1 * i as f32 - 0.3);
        let network = Autoencoder::from_weights(&weights, &device);
        assert_eq!(network.weights(), weights);
        let rows: Vec<Row> =
            (0..300).map(|_| std::array::from_fn(|_| 8.0 * (2.0 * random.uniform() as f32 - 1.0))).collect();
        let output = network
            .forward(tensor(rows.as_flattened().to_vec(), &device))
            .into_data()
            .try_to_vec::<f32>()
            .expect("32-bit floats");
        for (row, expected) in rows.iter().zip(output.as_chunks::<FEATURE_COUNT>().0) {
            for (by_hand, by_burn) in weights.forward(&row.map(f64::from)).iter().zip(expected) {
                assert!((by_hand - f64::from(*by_burn)).abs() < 1e-6, "{by_hand} {by_burn}");
            }
        }
    }

    #[test]
    fn the_start_depends_on_the_seed_only() {
        let device = Device::flex();
        assert_eq!(Autoencoder::new(5, &device).weights(), Autoencoder::new(5, &device).weights());
        assert_ne!(Autoencoder::new(5, &device).weights(), Autoencoder::new(6, &device).weights());
    }
}
