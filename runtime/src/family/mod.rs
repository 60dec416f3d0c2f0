//! Model families: which tensors each has, and a loaded [`Model`].
//!
//! A family is a small file that names its tensors and its options; the decoder block itself is `block.rs`, once for
//! all of them.

mod chameleon;
mod emu3;
pub(crate) mod janus;
mod llama;
pub mod unimodal;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::config::{
    BundleConfig, ClipCodes, CodedImage, JanusConfig, ModelConfig, TOKENIZER_FILE, UnimodalConfig, VqConfig,
    WeightDtype,
};
use crate::decoder::Decoder;
#[cfg(not(feature = "cuda"))]
use crate::engine::EngineError;
#[cfg(feature = "cuda")]
use crate::engine::card::Card;
use crate::engine::maps::Machine;
use crate::engine::{DeviceChoice, DeviceReport, Engine, EngineOptions};
use crate::format::{Dtype, TensorPlan};
use crate::memory;
use crate::movq::Movq;
use crate::onnx::{Graph, OnnxError};
use crate::pages::Pages;
use crate::quant::{pad_k, pad_n};
use crate::session::SessionError;
use crate::tokenize::TextTokenizer;
use crate::vq::{VqDecoder, VqEncoder};
use crate::weights::{Weights, open_listed, read_at_most};
use crate::{Error, Result};
use janus::Janus;
use unimodal::Unimodal;

/// Largest accepted `tokenizer.json`: about four times that of the largest vocabularies in use.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// How a tensor is stored, by what reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A linear layer or convolution: INT8 tiles in an `int8` bundle, plain rows otherwise.
    Linear,
    /// A linear layer or table that stays float: F16 in `int8` and `f16` bundles.
    Float,
    /// Norms, biases and attention biases: always F32.
    Exact,
}

/// One tensor of a checkpoint, and how a bundle stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the checkpoint, for example `layers.0.attn.q.weight`.
    pub name: String,
    /// Shape in the checkpoint: `[out, in]`, `[out, in, kt, kh, kw]`, `[out, in, kh, kw]`, `[rows, cols]` or `[len]`.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub role: Role,
}

impl TensorSpec {
    pub(crate) fn new(name: impl Into<String>, shape: &[usize], role: Role) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), role }
    }

    /// The name without `.weight`: what scales and sums are called after.
    #[must_use]
    pub fn stem(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }

    /// Number of parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.shape.iter().product()
    }

    /// The matrix `[N, K]` that a linear layer or convolution multiplies by; a convolution's row is `(kh, kw, in)` or
    /// `(kt, kh, kw, in)`.
    #[must_use]
    pub fn matrix(&self) -> [usize; 2] {
        match self.shape[..] {
            [out, input, kt, kh, kw] => [out, kt * kh * kw * input],
            [out, input, kh, kw] => [out, kh * kw * input],
            [rows, cols] => [rows, cols],
            ref shape => [1, shape.iter().product()],
        }
    }

    /// Whether a bundle of `dtype` holds this tensor as INT8 tiles.
    #[must_use]
    pub fn is_tiled(&self, dtype: WeightDtype) -> bool {
        self.role == Role::Linear && dtype == WeightDtype::Int8
    }

    /// What a bundle of `dtype` stores for this tensor.
    #[must_use]
    pub fn stored(&self, dtype: WeightDtype) -> Vec<TensorPlan> {
        let [n, k] = self.matrix();
        let stored = |name: String, dtype, shape: &[usize]| TensorPlan { name, dtype, shape: shape.to_vec() };
        if self.is_tiled(dtype) {
            return vec![
                stored(self.name.clone(), Dtype::I8, &[pad_n(n) / 16, pad_k(k) / 4, 16, 4]),
                stored(format!("{}.scale", self.stem()), Dtype::F32, &[n]),
                stored(format!("{}.sum", self.stem()), Dtype::I32, &[n]),
            ];
        }
        let float =
            if self.role == Role::Exact || dtype == WeightDtype::F32 { Dtype::F32 } else { Dtype::F16 };
        let shape: &[usize] = if self.shape.len() >= 4 { &[n, k] } else { &self.shape };
        vec![stored(self.name.clone(), float, shape)]
    }
}

/// The linear layers of a decoder block that read the same activations, so that all of them are INT8 in as many parts, or none is.
pub const SHARED_INPUTS: [&[&str]; 2] = [&["attn.q", "attn.k", "attn.v"], &["ffn.up", "ffn.gate"]];

/// Every tensor of a model, in checkpoint order.
#[must_use]
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    match config {
        ModelConfig::Unimodal(c) => unimodal::tensors(c),
        ModelConfig::Llama(c) => llama::tensors(&c.decoder),
        ModelConfig::Chameleon(c) => chameleon::tensors(c),
        ModelConfig::Janus(c) => janus::tensors(c),
        ModelConfig::Emu3(c) => emu3::tensors(c),
    }
}

/// Gives the linear layers in `kept` (names without `.weight`) the role of those that stay float.
///
/// # Errors
/// The first name that is no linear layer of these.
pub fn keep_float<'a>(
    specs: &mut [TensorSpec],
    kept: &'a BTreeSet<String>,
) -> std::result::Result<(), &'a str> {
    for stem in kept {
        let spec = specs.iter_mut().find(|spec| spec.role == Role::Linear && spec.stem() == stem);
        spec.ok_or(stem.as_str())?.role = Role::Float;
    }
    Ok(())
}

/// A bundle, mapped and checked, with the engine that runs it. Sessions share one.
pub struct Model {
    weights: Weights,
    decoder: Decoder,
    /// What Saccade's own family has beside it.
    unimodal: Option<Unimodal>,
    /// What makes codes of pictures in the families of others, and pictures of codes where the checkpoint has that.
    vq: Option<(VqEncoder, Option<VqDecoder>)>,
    /// What Janus has beside it.
    janus: Option<Janus>,
    /// What makes codes of pictures and clips, and pictures and clips of codes.
    movq: Option<Movq>,
    /// From the first to the last token that is the code of a picture.
    code_span: Range<u32>,
    /// What reads pictures in place of one of those.
    graph: Option<Graph>,
    engine: Engine,
    /// Where decoder and image networks run, if not on the CPU.
    #[cfg(feature = "cuda")]
    card: Option<Card>,
    device: DeviceReport,
    text: OnceLock<TextTokenizer>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("dir", &self.weights.dir()).finish_non_exhaustive()
    }
}

impl Model {
    /// Maps the bundle in `dir` and checks every tensor that its configuration implies.
    ///
    /// # Errors
    /// Whatever is wrong with the bundle, as one sentence that names the file or the tensor; nothing is kept then.
    pub fn open(dir: impl AsRef<Path>, options: &EngineOptions) -> Result<Arc<Self>> {
        Self::open_in(dir, options, Pages::default())
    }

    /// The same with the weights mapped by the pages that are asked for.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(dir: impl AsRef<Path>, options: &EngineOptions, pages: Pages) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::load(dir.as_ref(), options, pages)?))
    }

    fn load(dir: &Path, options: &EngineOptions, pages: Pages) -> Result<Self> {
        let weights = Weights::open(dir, pages)?;
        let engine = Engine::new(options)?;
        let decoder = Decoder::resolve(&weights)?;
        let config = weights.config();
        let (mut unimodal, mut vq, mut janus, mut movq) = (None, None, None, None);
        match &config.model {
            ModelConfig::Unimodal(c) => unimodal = Some(Unimodal::resolve(&weights, c)?),
            ModelConfig::Llama(_) => {}
            ModelConfig::Chameleon(c) => {
                let c = &c.image.vq;
                let decoder = c.decoder.then(|| VqDecoder::resolve(&weights, c)).transpose()?;
                vq = Some((VqEncoder::resolve(&weights, c)?, decoder));
            }
            ModelConfig::Janus(c) => janus = Some(Janus::resolve(&weights, c)?),
            ModelConfig::Emu3(c) => movq = Some(Movq::resolve(&weights, &c.image.movq)?),
        }
        let ids = config.model.code_ids();
        let code_span = ids.iter().min().zip(ids.iter().max()).map_or(0..0, |(&from, &to)| from..to + 1);
        let graph = match &config.front_end {
            Some(front_end) => {
                Some(Graph::open(weights.dir(), config, front_end, options, engine.threads())?)
            }
            None if options.onnx.provider.is_some() || options.onnx.library.is_some() => {
                return Err(OnnxError::NoGraph.into());
            }
            None => None,
        };
        let cpu = |reason: &str| DeviceReport::cpu(engine.kernels().name, reason);
        #[cfg(feature = "cuda")]
        let (card, device) = match options.device.choice {
            DeviceChoice::Cpu => (None, cpu("asked for")),
            choice => match Card::choose(&options.device, &weights) {
                Ok(card) => {
                    let report = card.report();
                    (Some(card), report)
                }
                Err(error) if choice == DeviceChoice::Auto && !error.is_card_lost() => {
                    (None, cpu(&error.to_string()))
                }
                Err(error) => return Err(error),
            },
        };
        #[cfg(not(feature = "cuda"))]
        let device = match options.device.choice {
            DeviceChoice::Cpu => cpu("asked for"),
            DeviceChoice::Cuda => return Err(EngineError::NoCuda.into()),
            DeviceChoice::Auto => cpu(&EngineError::NoCuda.to_string()),
        };
        log::info!("device={} what=\"{}\" reason=\"{}\"", device.name, device.what, device.reason);
        log::info!("weights={} reason=\"{}\"", device.weights, device.weights_reason);
        log::info!(
            "model={} family={} dtype={:?} blake3={} dir={} kernels={} threads={}",
            config.model.name(),
            config.model.family(),
            config.dtype,
            &config.self_blake3[..16],
            weights.dir().display(),
            engine.kernels().name,
            engine.threads(),
        );
        Ok(Self {
            weights,
            decoder,
            unimodal,
            vq,
            janus,
            movq,
            code_span,
            graph,
            engine,
            #[cfg(feature = "cuda")]
            card,
            device,
            text: OnceLock::new(),
        })
    }

    /// The card that decoder and image networks run on.
    #[cfg(feature = "cuda")]
    pub(crate) fn card(&self) -> Option<&Card> {
        self.card.as_ref()
    }

    /// Refuses `needed` bytes where there is not enough memory, of the card if there is one; `what` needs them.
    pub(crate) fn check_room(&self, what: &'static str, needed: u128) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(card) = &self.card {
            return card.check(what, needed);
        }
        memory::check(what, needed)
    }

    /// The whole `saccade.json`.
    #[must_use]
    pub fn bundle(&self) -> &BundleConfig {
        self.weights.config()
    }

    /// The network's description.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.weights.config().model
    }

    /// The engine that runs this model.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What decoder and image networks run on, and why.
    #[must_use]
    pub fn device(&self) -> &DeviceReport {
        &self.device
    }

    /// The card that the decoder runs on, to measure what it can do.
    #[cfg(feature = "cuda")]
    #[must_use]
    pub fn card_device(&self) -> Option<&Arc<crate::cuda::Device>> {
        self.card.as_ref().map(|card| &card.device)
    }

    /// The weights file as it is mapped.
    #[must_use]
    pub fn mapped(&self) -> &[u8] {
        self.weights.map()
    }

    /// How many bytes of the weights are mapped by huge pages so far; `None` where the system does not say. A page is mapped
    /// when it is first read.
    #[must_use]
    pub fn huge_bytes(&self) -> Option<u64> {
        self.weights.map().huge_bytes()
    }

    /// The imported graph, if the bundle has one.
    pub(crate) fn graph(&self) -> Option<&Graph> {
        self.graph.as_ref()
    }

    /// What image networks run on.
    pub(crate) fn machine(&self) -> Machine<'_> {
        Machine {
            e: &self.engine,
            w: &self.weights,
            #[cfg(feature = "cuda")]
            card: self.card.as_ref(),
        }
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The description of Saccade's own family.
    ///
    /// # Errors
    /// If this is a model of another family.
    pub fn unimodal(&self) -> Result<&UnimodalConfig> {
        match self.config() {
            ModelConfig::Unimodal(c) => Ok(c),
            _ => Err(SessionError::Family { family: self.config().family() }.into()),
        }
    }

    /// The description and the tensors of Janus.
    ///
    /// # Errors
    /// If this is a model of another family.
    pub(crate) fn janus(&self) -> Result<(&JanusConfig, &Janus)> {
        match (self.config(), &self.janus) {
            (ModelConfig::Janus(c), Some(net)) => Ok((c, net)),
            _ => Err(SessionError::Family { family: self.config().family() }.into()),
        }
    }

    /// How a picture becomes tokens of a language model, and the encoder.
    ///
    /// # Errors
    /// If this model takes no pictures that way.
    pub(crate) fn coded_image(&self) -> Result<(&CodedImage, &VqEncoder)> {
        match (self.config(), &self.vq) {
            (ModelConfig::Chameleon(c), Some((encoder, _))) => Ok((&c.image, encoder)),
            _ => Err(SessionError::Family { family: self.config().family() }.into()),
        }
    }

    /// What makes pictures of the codes of a VQGAN, if the model has that.
    pub(crate) fn vq_decoder(&self) -> Option<(&VqConfig, &VqDecoder)> {
        match (self.config(), &self.janus, &self.vq) {
            (ModelConfig::Janus(c), Some(net), _) => Some((&c.drawing.vq, &net.drawing.vq)),
            (ModelConfig::Chameleon(c), _, Some((_, Some(decoder)))) => Some((&c.image.vq, decoder)),
            _ => None,
        }
    }

    /// Whether it draws: from text to pixels.
    #[must_use]
    pub fn draws(&self) -> bool {
        self.vq_decoder().is_some() || self.movq.is_some()
    }

    /// From the first to the last token that is the code of a picture; empty where codes are no tokens of text.
    pub(crate) fn code_span(&self) -> Range<u32> {
        self.code_span.clone()
    }

    /// How a picture or a clip becomes tokens of a language model, and the net that does it.
    ///
    /// # Errors
    /// If this model takes no clips.
    pub(crate) fn clip_codes(&self) -> Result<(&ClipCodes, &Movq)> {
        match (self.config(), &self.movq) {
            (ModelConfig::Emu3(c), Some(movq)) => Ok((&c.image, movq)),
            _ => Err(SessionError::Family { family: self.config().family() }.into()),
        }
    }

    /// Its description, and its tensors beside the decoder.
    ///
    /// # Errors
    /// As [`Self::unimodal`].
    pub(crate) fn unimodal_net(&self) -> Result<(&UnimodalConfig, &Unimodal)> {
        let c = self.unimodal()?;
        Ok((c, self.unimodal.as_ref().expect("`open_in` resolves it for such a configuration")))
    }

    /// The text tokenizer, read on first use so that it is not on the way to the first token.
    ///
    /// # Errors
    /// If `tokenizer.json` is missing, damaged, or has ids outside the vocabulary.
    pub fn text(&self) -> Result<&TextTokenizer> {
        if let Some(text) = self.text.get() {
            return Ok(text);
        }
        let path = self.weights.dir().join(TOKENIZER_FILE);
        let entry = &self.bundle().files[TOKENIZER_FILE];
        if entry.bytes > MAX_TOKENIZER_BYTES {
            let reason = format!("it has {} bytes, at most {MAX_TOKENIZER_BYTES} are read", entry.bytes);
            return Err(Error::Tokenizer { path, reason });
        }
        let file = open_listed(&path, entry)?;
        let bytes =
            read_at_most(file, entry.bytes).map_err(|source| Error::Io { path: path.clone(), source })?;
        let text = TextTokenizer::from_bytes(&bytes, self.config())
            .map_err(|reason| Error::Tokenizer { path, reason })?;
        Ok(self.text.get_or_init(|| text))
    }
}
