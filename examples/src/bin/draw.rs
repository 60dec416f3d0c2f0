//! Draws: `draw --model BUNDLE "a small house" out.png`, with a bundle of the family `janus`.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Parser;
use saccade::config::ModelConfig;
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::sample::{Sampler, SamplerOptions};
use saccade::session::{self, Session, SessionOptions};
use saccade::tokenize::{Message, drawn, to_rgb8};

/// Draws a picture of what is said.
#[derive(Debug, Parser)]
struct Args {
    /// What to draw.
    prompt: String,
    /// The picture to write: .png or .jpg.
    out: PathBuf,
    /// A bundle of the family janus.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// How much the prompt counts: 1 is the model alone, 5 what Janus-Pro was shown with.
    #[arg(long, default_value_t = 5.0)]
    guidance: f32,
    /// 0 always takes the likeliest code.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Another number, another picture.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.temperature >= 0.0 && args.temperature.is_finite(), "--temperature must be 0 or above");
    ensure!(args.guidance.is_finite(), "--guidance must be a number");
    let model = Model::open(&args.model, &EngineOptions::default())?;
    let ModelConfig::Janus(c) = model.config() else {
        anyhow::bail!(
            "{} is a {} model; convert a Janus checkpoint",
            args.model.display(),
            model.config().family()
        );
    };
    let mut prompt = model.text()?.encode_chat(&[Message::text("user", &args.prompt)])?;
    prompt.push(c.vision.begin);

    // One sequence sees the prompt, the other none; they go through the network together.
    let [rows, columns] = c.drawing.grid;
    let options = SessionOptions { max_text_tokens: prompt.len() + rows * columns, max_sequences: 2 };
    let (mut guided, mut free) = (Session::new(&model, &options)?, Session::new(&model, &options)?);
    let sampling = SamplerOptions { temperature: args.temperature, seed: args.seed, ..Default::default() };
    let mut codes = Vec::new();
    session::draw(&mut guided, &mut free, &prompt, args.guidance, &mut Sampler::new(sampling), &mut codes)?;

    let mut picture = Vec::new();
    let (height, width) = drawn(&model, &codes, &mut picture)?;
    let (height, width) = (u32::try_from(height)?, u32::try_from(width)?);
    image::save_buffer(&args.out, &to_rgb8(&picture), width, height, image::ExtendedColorType::Rgb8)
        .with_context(|| format!("{} cannot be written", args.out.display()))?;
    Ok(())
}
