//! Draws: `draw --model BUNDLE "a small house" out.png`, with a bundle of a family that draws: janus, emu3, or chameleon of Anole's kind.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Parser;
use saccade::engine::EngineOptions;
use saccade::family::Model;
use saccade::session::{self, Session, SessionOptions};
use saccade::tokenize::{DrawPrompt, painted};

/// Draws a picture of what is said. What is not given is as the model's makers have it.
#[derive(Debug, Parser)]
struct Args {
    /// What to draw.
    prompt: String,
    /// The picture to write: .png or .jpg.
    out: PathBuf,
    /// A bundle of a model that draws.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// How large, for models that draw more than one size.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
    size: Option<(usize, usize)>,
    /// What shall not be seen, for models that are told.
    #[arg(long, value_name = "WORDS")]
    avoid: Option<String>,
    /// How much the prompt counts: 1 is the model alone.
    #[arg(long)]
    guidance: Option<f32>,
    /// 0 always takes the likeliest code.
    #[arg(long)]
    temperature: Option<f32>,
    /// Another number, another picture.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn size(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    sides.ok_or_else(|| "two numbers with an x between them, as in 720x720".into())
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.temperature.is_none_or(|t| t >= 0.0 && t.is_finite()), "--temperature must be 0 or above");
    ensure!(args.guidance.is_none_or(f32::is_finite), "--guidance must be a number");
    let model = Model::open(&args.model, &EngineOptions::default())?;
    let size_px = args.size.map(|(width, height)| [height, width]);
    let mut prompt = DrawPrompt::new(&model, &args.prompt, args.avoid.as_deref(), size_px)?;
    prompt.guidance = args.guidance.unwrap_or(prompt.guidance);
    prompt.sampling.temperature = args.temperature.unwrap_or(prompt.sampling.temperature);
    prompt.sampling.seed = args.seed;

    // One sequence sees the prompt, the other does not; they go through the network together.
    let options = SessionOptions { max_text_tokens: prompt.tokens(), max_sequences: 2 };
    let (mut guided, mut free) = (Session::new(&model, &options)?, Session::new(&model, &options)?);
    let mut codes = Vec::new();
    session::draw(&mut guided, &mut free, &prompt, &mut codes, &mut |_| true)?;

    let picture = painted(&model, &codes, prompt.grid)?;
    let (height, width) = (u32::try_from(picture.height)?, u32::try_from(picture.width)?);
    image::save_buffer(&args.out, &picture.rgb, width, height, image::ExtendedColorType::Rgb8)
        .with_context(|| format!("{} cannot be written", args.out.display()))?;
    Ok(())
}
