//! Pictures out: one code after the other, with classifier-free guidance.

use super::{Session, SessionError, step};
use crate::Result;
use crate::sample::Sampler;

/// Draws what `prompt` says: the codes of a picture, row by row of the grid.
///
/// Two sequences go through the network together: `guided` sees the prompt, `free` padding in its place. The logits that are sampled are
/// `free + guidance · (guided − free)`. `free` must have been made for two sequences.
///
/// # Errors
/// If the model does not draw, the prompt is too long, not text, or leaves no room for the codes, or an output is not a number.
///
/// Source: Ho and Salimans 2022 (arXiv:2207.12598), as transformers' Janus has it.
pub fn draw(
    guided: &mut Session,
    free: &mut Session,
    prompt: &[u32],
    guidance: f32,
    sampler: &mut Sampler,
    codes: &mut Vec<u16>,
) -> Result<()> {
    let model = std::sync::Arc::clone(guided.model());
    let (c, _) = model.janus()?;
    let (keep, pad) = ([c.language.bos, Some(c.vision.begin)], c.drawing.pad);
    let blank: Vec<u32> = prompt.iter().map(|&id| if keep.contains(&Some(id)) { id } else { pad }).collect();
    guided.open_drawing(prompt)?;
    free.open_drawing(&blank)?;
    codes.clear();
    let [rows, columns] = c.drawing.grid;
    let mut logits = Vec::new();
    for _ in 0..rows * columns {
        let mut picked = 0;
        step(&mut [&mut *free, &mut *guided], &mut |i, found| {
            if i == 0 {
                logits.clear();
                logits.extend_from_slice(found);
            } else {
                for (free, &guided) in logits.iter_mut().zip(found) {
                    *free += guidance * (guided - *free);
                }
                // A step gives finite logits; a guidance that makes them infinite gives the first code.
                picked = sampler.pick(&logits).unwrap_or(0);
            }
            picked
        })?;
        free.choose(picked)?;
        codes.push(u16::try_from(picked).map_err(|_| SessionError::NumericFault)?);
    }
    guided.close();
    free.close();
    Ok(())
}
