//! The 571 parameters of the autoencoder, their file, and the forward pass that every score comes from.
//!
//! ```text
//!  tensor               shape [out, in], as PyTorch's nn.Linear keeps it (float32)
//!  encoder.0.weight     [14, 18]    encoder.0.bias  [14]   tanh
//!  encoder.2.weight     [ 7, 14]    encoder.2.bias  [ 7]   relu
//!  decoder.0.weight     [ 7,  7]    decoder.0.bias  [ 7]   tanh
//!  decoder.2.weight     [18,  7]    decoder.2.bias  [18]   linear
//! ```
//!
//! The names are those of two `nn.Sequential(Linear, activation, Linear[, activation])`, so that
//! `load_state_dict(safetensors.torch.load_file(...))` works. The forward pass is written out by hand: one row at a
//! time, with sums in a fixed order, so that a reading's score does not depend on the batch it came in. A test of
//! the trainer compares it with Burn's.

use std::borrow::Cow;

use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::error::Error;
use crate::features::{FEATURE_COUNT, Values};
use crate::scaling::check_finite;

/// Widths of the layers.
pub const LAYERS: [usize; 5] = [FEATURE_COUNT, 14, 7, 7, FEATURE_COUNT];
/// What follows each of the four affine maps.
pub const ACTIVATIONS: [&str; 4] = ["tanh", "relu", "tanh", "linear"];
/// How many numbers are learnt.
pub const PARAMETERS: usize = 571;

/// The parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// Inputs to 14.
    pub encoder_0: Dense<FEATURE_COUNT, 14>,
    /// To the code of 7.
    pub encoder_2: Dense<14, 7>,
    /// From the code.
    pub decoder_0: Dense<7, 7>,
    /// To the outputs.
    pub decoder_2: Dense<7, FEATURE_COUNT>,
}

/// One affine map. Its weights are kept as `[in][out]`: a loop over inputs then adds to all outputs at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense<const IN: usize, const OUT: usize> {
    /// `[in][out]`.
    pub weight: [[f32; OUT]; IN],
    /// One per output.
    pub bias: [f32; OUT],
}

impl<const IN: usize, const OUT: usize> Dense<IN, OUT> {
    fn forward(&self, input: &[f64; IN]) -> [f64; OUT] {
        let mut output = self.bias.map(f64::from);
        for (x, weights) in input.iter().zip(&self.weight) {
            for (sum, weight) in output.iter_mut().zip(weights) {
                *sum += x * f64::from(*weight);
            }
        }
        output
    }

    fn tensors(&self, name: &str) -> [(String, Tensor); 2] {
        let transposed = (0..OUT).flat_map(|o| (0..IN).map(move |i| (i, o))).map(|(i, o)| self.weight[i][o]);
        let weight = Tensor { shape: vec![OUT, IN], bytes: transposed.flat_map(f32::to_le_bytes).collect() };
        let bias = Tensor { shape: vec![OUT], bytes: self.bias.iter().flat_map(|v| v.to_le_bytes()).collect() };
        [(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]
    }

    fn from_tensors(file: &SafeTensors<'_>, name: &str) -> Result<Self, Error> {
        let weight = read(file, &format!("{name}.weight"), &[OUT, IN])?;
        let bias = read(file, &format!("{name}.bias"), &[OUT])?;
        Ok(Self {
            weight: std::array::from_fn(|i| std::array::from_fn(|o| weight[o * IN + i])),
            bias: std::array::from_fn(|o| bias[o]),
        })
    }
}

impl Weights {
    /// What the network makes of `input`.
    pub fn forward(&self, input: &Values) -> Values {
        let hidden = self.encoder_0.forward(input).map(f64::tanh);
        let code = self.encoder_2.forward(&hidden).map(|v| v.max(0.0));
        let hidden = self.decoder_0.forward(&code).map(f64::tanh);
        self.decoder_2.forward(&hidden)
    }

    /// The safetensors file. The same weights give the same bytes.
    pub fn to_safetensors(&self) -> Vec<u8> {
        let mut tensors = Vec::with_capacity(8);
        tensors.extend(self.encoder_0.tensors("encoder.0"));
        tensors.extend(self.encoder_2.tensors("encoder.2"));
        tensors.extend(self.decoder_0.tensors("decoder.0"));
        tensors.extend(self.decoder_2.tensors("decoder.2"));
        safetensors::serialize(tensors, None).expect("shapes and byte counts agree by construction")
    }

    /// Reads a safetensors file, and refuses one that is damaged, has other tensors, or numbers that are not finite.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, Error> {
        let file = SafeTensors::deserialize(bytes).map_err(Error::Weights)?;
        Ok(Self {
            encoder_0: Dense::from_tensors(&file, "encoder.0")?,
            encoder_2: Dense::from_tensors(&file, "encoder.2")?,
            decoder_0: Dense::from_tensors(&file, "decoder.0")?,
            decoder_2: Dense::from_tensors(&file, "decoder.2")?,
        })
    }
}

fn read(file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
    let problem = |problem: String| Error::Tensor { tensor: name.to_owned(), problem };
    let tensor = file.tensor(name).map_err(|_| problem("is missing".to_owned()))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
        return Err(problem(format!("is {:?} {:?}, not F32 {shape:?}", tensor.dtype(), tensor.shape())));
    }
    let values: Vec<f32> = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    check_finite(&format!("a number in {name}"), &values)?;
    Ok(values)
}

struct Tensor {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
