//! Pictures out: one code after the other, with classifier-free guidance.

use super::answer::step_guided;
use super::choose::Guide;
use super::grammar::Grammar;
use super::{Session, SessionError};
use crate::Result;
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
    let mut guide = Guide::new(prompt.sampling, prompt.guidance);
    guided.open_as(&prompt.guided, Grammar::Picture { columns })?;
    let opened = free.open_as(&prompt.free, Grammar::Picture { columns });
    codes.clear();
    let drawn = || {
        opened?;
        while codes.len() < rows * columns {
            step_guided(&mut [&mut *free, &mut *guided], &mut guide)?;
            // Nothing is picked at the end of a row.
            let Some(picked) = guide.take() else { continue };
            // It was asked before the other in the first step.
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
