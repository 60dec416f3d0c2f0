//! The rules that a model description keeps; the rest of the crate does arithmetic on what passed.

use super::MAX_HEAD_DIM;
use super::{
    ChameleonConfig, ConfigError, DecoderConfig, Emu3Config, JanusConfig, LlamaConfig, Modality, ModelConfig,
    MovqConfig, UnimodalConfig, VqConfig, invalid,
};
use crate::quant::MAX_K;
use crate::tokenize::ResizeRule;

/// Longest generation that may be a default.
const MAX_NEW_TOKENS: usize = 65_536;

impl ModelConfig {
    /// Checks every rule that the rest of the crate relies on.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the field and the reason.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.decoder().check()?;
        within("model.generation.max_new_tokens", self.generation().max_new_tokens, 1, MAX_NEW_TOKENS)?;
        match self {
            Self::Unimodal(c) => c.check(),
            Self::Llama(c) => c.check(),
            Self::Chameleon(c) => c.check(),
            Self::Janus(c) => c.check(),
            Self::Emu3(c) => c.check(),
        }
    }
}

impl LlamaConfig {
    fn check(&self) -> Result<(), ConfigError> {
        within("model.max_positions", self.max_positions, 1, 1 << 24)?;
        within("model.end_ids", self.end_ids.len(), 1, 64)?;
        match self.end_ids.iter().chain(&self.bos).find(|id| **id as usize >= self.decoder.vocab_size) {
            Some(id) => Err(invalid(
                "model.end_ids",
                format!("id {id} leaves the vocabulary of {}", self.decoder.vocab_size),
            )),
            None => Ok(()),
        }
    }
}

impl ChameleonConfig {
    fn check(&self) -> Result<(), ConfigError> {
        self.language.check()?;
        let (image, vq) = (&self.image, &self.image.vq);
        image.pixels.check()?;
        vq.check()?;
        let special = [image.placeholder, image.begin, image.end];
        check_code_ids(&image.ids, vq.codebook_size, &special, &self.language)
    }
}

impl VqConfig {
    fn check(&self) -> Result<(), ConfigError> {
        check_levels(self.base_channels, &self.channel_multiplier)?;
        within("model.vq.n_res", self.n_res, 1, 64)?;
        within("model.vq.latent_channels", self.latent_channels, 1, 4096)?;
        within("model.vq.code_dim", self.code_dim, 1, 4096)?;
        within("model.vq.codebook_size", self.codebook_size, 1, 65_536)?;
        Ok(())
    }
}

impl JanusConfig {
    fn check(&self) -> Result<(), ConfigError> {
        self.language.check()?;
        let (vision, drawing) = (&self.vision, &self.drawing);
        vision.pixels.check()?;
        drawing.vq.check()?;
        within("model.vision.patch_size", vision.patch_size, 1, 256)?;
        within("model.vision.image_size", vision.image_size, vision.patch_size, 4096)?;
        within("model.vision.patches", vision.patches(), 1, 4096)?;
        within("model.vision.d_model", vision.d_model, 1, MAX_K)?;
        within("model.vision.n_heads", vision.n_heads, 1, vision.d_model)?;
        within("model.vision.n_layers", vision.n_layers, 1, 512)?;
        within("model.vision.d_ff", vision.d_ff, 1, MAX_K)?;
        within("model.vision.aligner_layers", vision.aligner_layers, 1, 16)?;
        if !vision.image_size.is_multiple_of(vision.patch_size)
            || !vision.d_model.is_multiple_of(vision.n_heads)
        {
            return Err(invalid("model.vision", "patches do not fill the picture, or heads not the width"));
        }
        if !(vision.norm_eps > 0.0 && vision.norm_eps < 1.0) {
            return Err(invalid("model.vision.norm_eps", "must lie between 0 and 1"));
        }
        for side in drawing.grid {
            within("model.drawing.grid", side, 1, 256)?;
        }
        within("model.drawing.aligner_layers", drawing.aligner_layers, 1, 16)?;
        within("model.drawing.d_head", drawing.d_head, 1, MAX_K)?;
        if !drawing.vq.decoder {
            return Err(invalid("model.drawing.vq", "it has no decoder, so nothing could be drawn"));
        }
        let vocabulary = self.language.decoder.vocab_size;
        let ids = [vision.placeholder, vision.begin, vision.end, drawing.pad];
        match ids.into_iter().find(|&id| id as usize >= vocabulary) {
            Some(id) => {
                Err(invalid("model.vision", format!("id {id} leaves the vocabulary of {vocabulary}")))
            }
            None => Ok(()),
        }
    }
}

impl Emu3Config {
    fn check(&self) -> Result<(), ConfigError> {
        self.language.check()?;
        let image = &self.image;
        image.pixels.check()?;
        image.movq.check()?;
        let patch = image.movq.patch();
        match image.pixels.resize {
            ResizeRule::Multiples { factor, .. } if factor.is_multiple_of(patch) => {}
            _ => {
                let reason = format!("must make sides of whole places of {patch} pixels");
                return Err(invalid("model.image.pixels.resize", reason));
            }
        }
        let special =
            [image.placeholder, image.begin, image.end, image.wrapper, image.row_end, image.frame_end];
        check_code_ids(&image.ids, image.movq.codebook_size, &special, &self.language)
    }
}

impl MovqConfig {
    fn check(&self) -> Result<(), ConfigError> {
        check_levels(self.base_channels, &self.channel_multiplier)?;
        within("model.image.movq.n_res", self.n_res, 1, 64)?;
        within("model.image.movq.code_dim", self.code_dim, 1, 4096)?;
        within("model.image.movq.codebook_size", self.codebook_size, 1, 65_536)?;
        within("model.image.movq.time_factor", self.time_factor, 1, 64)?;
        if !self.time_factor.is_power_of_two() {
            return Err(invalid("model.image.movq.time_factor", "must be a power of two"));
        }
        let top = self.channel_multiplier.last();
        for (at, level) in self.attention_levels.iter().enumerate() {
            if self.channel_multiplier.get(*level) != top || self.attention_levels[..at].contains(level) {
                return Err(invalid(
                    "model.image.movq.attention_levels",
                    format!("level {level} is listed twice, or has not the channels of the last level"),
                ));
            }
        }
        Ok(())
    }
}

/// Levels of a net over pictures.
fn check_levels(base_channels: usize, channel_multiplier: &[usize]) -> Result<(), ConfigError> {
    within("model.image base_channels", base_channels, 32, 4096)?;
    if !base_channels.is_multiple_of(32) {
        return Err(invalid("model.image base_channels", "must be a multiple of 32, the groups of a norm"));
    }
    within("model.image channel_multiplier", channel_multiplier.len(), 1, 8)?;
    channel_multiplier.iter().try_for_each(|&m| within("model.image channel_multiplier", m, 1, 64))
}

/// A token for each code, all of them and the special ones in the vocabulary. An answer has no codes, so what ends it is none. Of the
/// special ones the first is the placeholder, which may be spelled as a code: it is replaced before there are any.
fn check_code_ids(
    ids: &[u32],
    codes: usize,
    special: &[u32],
    language: &LlamaConfig,
) -> Result<(), ConfigError> {
    let refused = |reason: String| Err(invalid("model.image.ids", reason));
    if ids.len() != codes {
        return refused(format!("{} ids of {codes} codes", ids.len()));
    }
    let vocabulary = language.decoder.vocab_size;
    if let Some(id) = ids.iter().chain(special).find(|id| **id as usize >= vocabulary) {
        return refused(format!("id {id} leaves the vocabulary of {vocabulary}"));
    }
    let mut known: Vec<u32> = ids.to_vec();
    known.sort_unstable();
    if let Some([id, _]) = known.array_windows().find(|[a, b]| a == b) {
        return refused(format!("id {id} is the token of two codes"));
    }
    match special.iter().skip(1).chain(&language.end_ids).find(|id| known.binary_search(id).is_ok()) {
        Some(id) => refused(format!("id {id} is the token of a code, and a special one")),
        None => Ok(()),
    }
}

impl DecoderConfig {
    fn check(&self) -> Result<(), ConfigError> {
        within("model.d_model", self.d_model, 1, MAX_K)?;
        within("model.n_layers", self.n_layers, 1, 512)?;
        within("model.n_heads", self.n_heads, 1, 1024)?;
        within("model.n_kv_heads", self.n_kv_heads, 1, self.n_heads)?;
        within("model.head_dim", self.head_dim, 2, MAX_HEAD_DIM)?;
        within("model.d_ff", self.d_ff, 1, MAX_K)?;
        within("model.vocab_size", self.vocab_size, 1, 1 << 24)?;
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(invalid(
                "model.n_kv_heads",
                format!("{} does not divide n_heads {}", self.n_kv_heads, self.n_heads),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(invalid("model.head_dim", "must be even, since rotary pairs are its two halves"));
        }
        within("model.n_heads × head_dim", self.n_heads * self.head_dim, 1, MAX_K)?;
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            return Err(invalid("model.rope_theta", "must be a number above 1"));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(invalid("model.norm_eps", "must lie between 0 and 1"));
        }
        self.rope_scaling.check()
    }
}

impl UnimodalConfig {
    fn check(&self) -> Result<(), ConfigError> {
        self.check_vocabulary()?;
        self.check_modalities()?;
        self.check_image()?;
        check_bins("model.state", &self.state.names, &self.state.low, &self.state.high)?;
        check_bins("model.action", &self.action.names, &self.action.low, &self.action.high)?;
        within("model.action.steps", self.action.steps, 1, 64)?;
        within("model.action.executed", self.action.executed, 1, self.action.steps)?;
        if !(self.action.rate_hz > 0.0 && self.action.rate_hz.is_finite()) {
            return Err(invalid("model.action.rate_hz", "must be a positive number"));
        }
        Ok(())
    }

    fn check_vocabulary(&self) -> Result<(), ConfigError> {
        let vocab = u32::try_from(self.vocab_size).unwrap_or(u32::MAX);
        let ranges = [
            ("model.tokens.text", self.tokens.text),
            ("model.tokens.bins", self.tokens.bins),
            ("model.tokens.image", self.tokens.image),
        ];
        for (field, [from, to]) in ranges {
            if from >= to || to > vocab {
                return Err(invalid(
                    field,
                    format!("[{from}, {to}) is empty or leaves the vocabulary of {vocab}"),
                ));
            }
        }
        let [from, to] = self.tokens.bins;
        within("model.tokens.bins", (to - from) as usize, 2, u16::MAX.into())?;
        for (i, (field, a)) in ranges.iter().enumerate() {
            if let Some((_, b)) = ranges[i + 1..].iter().find(|(_, b)| a[0] < b[1] && b[0] < a[1]) {
                return Err(invalid(field, format!("{a:?} overlaps {b:?}")));
            }
        }
        let s = &self.special;
        let special = [s.pad, s.eos, s.img, s.img_end, s.pts, s.pts_end, s.state, s.act, s.ask, s.ans];
        let [from, to] = self.tokens.text;
        for (i, id) in special.iter().enumerate() {
            if !(from..to).contains(id) || special[..i].contains(id) {
                return Err(invalid("model.special", format!("id {id} is used twice or is no text token")));
            }
        }
        within("model.tasks", self.tasks.len(), 1, 4096)?;
        within("model.task_prefix_len", self.task_prefix_len, 1, 64)
    }

    fn check_modalities(&self) -> Result<(), ConfigError> {
        if self.modalities.iter().map(|m| m.name).ne(Modality::ALL) {
            return Err(invalid("model.modalities", "must be text, image, state and action, in this order"));
        }
        for m in &self.modalities {
            match (m.name, m.window) {
                (Modality::Text, None) => {}
                (Modality::Text, Some(_)) => {
                    return Err(invalid("model.modalities", "text has no window: all of it stays visible"));
                }
                (_, Some(window)) => within("model.modalities.window", window, 1, 4096)?,
                (_, None) => {
                    return Err(invalid(
                        "model.modalities",
                        "every modality but text needs a window, so that memory is bounded",
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_image(&self) -> Result<(), ConfigError> {
        let image = &self.image;
        for (field, grid, pixels) in [
            ("model.image.height", image.grid[0], image.height),
            ("model.image.width", image.grid[1], image.width),
        ] {
            within(field, pixels, 8, 4096)?;
            if pixels % 8 != 0 || grid != pixels / 8 {
                return Err(invalid(field, format!("{pixels} is not 8 times the {grid} of the code grid")));
            }
        }
        within("model.image.code_dim", image.code_dim, 1, 4096)?;
        within("model.image.codebook_size", image.codebook_size, 1, 65_536)?;
        let [from, to] = self.tokens.image;
        if image.codebook_size != (to - from) as usize {
            return Err(invalid(
                "model.image.codebook_size",
                format!("{} codes, but {} image tokens", image.codebook_size, to - from),
            ));
        }
        for channels in image.encoder_channels.iter().chain(&image.decoder_channels) {
            within("model.image channels", *channels, 1, 4096)?;
        }
        within("model.image.res_hidden", image.res_hidden, 1, 4096)?;
        within("model.image.n_res", image.n_res, 0, 64)?;
        if !(image.mean.is_finite() && image.std.is_finite() && image.std > 0.0) {
            return Err(invalid("model.image.std", "mean and std must be numbers, std above 0"));
        }
        Ok(())
    }
}

pub(super) fn within(field: &'static str, value: usize, low: usize, high: usize) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, format!("{value} is outside {low} to {high}")))
}

fn check_bins(field: &'static str, names: &[String], low: &[f32], high: &[f32]) -> Result<(), ConfigError> {
    within(field, names.len(), 1, 256)?;
    if low.len() != names.len() || high.len() != names.len() {
        return Err(invalid(
            field,
            format!("{} names, {} low and {} high values", names.len(), low.len(), high.len()),
        ));
    }
    for ((name, low), high) in names.iter().zip(low).zip(high) {
        // Their difference, too: it is what values are divided by.
        if !(low < high && (high - low).is_finite()) {
            return Err(invalid(
                field,
                format!("`{name}`: low {low} and high {high} must be numbers, low below high"),
            ));
        }
    }
    Ok(())
}
