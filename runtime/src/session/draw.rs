//! Pictures out: one code after the other, with classifier-free guidance.

use super::grammar::Grammar;
use super::{Session, SessionError, step};
use crate::Result;
use crate::sample::Sampler;
use crate::tokenize::DrawPrompt;

/// Draws what `prompt` says: `codes [rows, columns]` of a picture.
///
/// Two sequences go through the network together: `guided` sees the description, `free` does not. The logits that are sampled are
/// `free + guidance · (guided − free)`. Both must have been made for two sequences and [`DrawPrompt::tokens`] tokens. `on_code` sees how
/// many codes there are and ends the drawing by returning `false`; the codes are fewer than those of the grid then.
///
/// # Errors
/// If the model does not draw, the prompt is too long, not text, or leaves no room for the codes, or an output is not a number.
///
/// Source: Ho and Salimans 2022 (arXiv:2207.12598), as transformers' Janus and Emu3 have it.
pub fn draw(
    guided: &mut Session,
    free: &mut Session,
    prompt: &DrawPrompt,
    codes: &mut Vec<u16>,
    on_code: &mut dyn FnMut(usize) -> bool,
) -> Result<()> {
    let [rows, columns] = prompt.grid;
    let (mut sampler, guidance) = (Sampler::new(prompt.sampling), prompt.guidance);
    guided.open_as(&prompt.guided, Grammar::Picture { columns })?;
    let opened = free.open_as(&prompt.free, Grammar::Picture { columns });
    codes.clear();
    let mut logits = Vec::new();
    let drawn = || {
        opened?;
        while codes.len() < rows * columns {
            let mut picked = None;
            step(&mut [&mut *free, &mut *guided], &mut |i, found| {
                if i == 0 {
                    logits.clear();
                    logits.extend_from_slice(found);
                    return 0;
                }
                for (free, &guided) in logits.iter_mut().zip(found) {
                    *free += guidance * (guided - *free);
                }
                // A step gives finite logits; a guidance that makes them infinite gives the first code.
                *picked.insert(sampler.pick(&logits).unwrap_or(0))
            })?;
            // Nothing is picked at the end of a row.
            let Some(picked) = picked else { continue };
            free.choose(picked)?;
            codes.push(u16::try_from(picked).map_err(|_| SessionError::NumericFault)?);
            if !on_code(codes.len()) {
                break;
            }
        }
        Ok(())
    };
    let drawn = drawn();
    guided.close();
    free.close();
    drawn
}
