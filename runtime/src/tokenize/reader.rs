//! Pictures of a conversation in their places: as tokens or as features, as the model has them.

use std::sync::Arc;

use super::{Clips, CodedImages, Features, Picture, Tokenizer as _};
use crate::Result;
use crate::config::ModelConfig;
use crate::family::Model;
use crate::session::{Session, SessionError};

/// Puts pictures into the text of a language model.
#[derive(Debug)]
pub struct PictureReader {
    eye: Eye,
    /// Stands for a picture in a text, before and behind it.
    placeholder: u32,
    around: [u32; 2],
    codes: Vec<u32>,
}

#[derive(Debug)]
enum Eye {
    Codes(CodedImages),
    Clips(Clips),
    Features(Features, usize),
}

impl PictureReader {
    /// For `model`; nothing if it takes no pictures in its text.
    ///
    /// # Errors
    /// If its configuration does not let one be made.
    pub fn new(model: &Arc<Model>) -> Result<Option<Self>> {
        let (eye, placeholder, around) = match model.config() {
            ModelConfig::Chameleon(c) => {
                let image = &c.image;
                (Eye::Codes(CodedImages::new(model)?), image.placeholder, [image.begin, image.end])
            }
            ModelConfig::Emu3(c) => {
                let image = &c.image;
                (Eye::Clips(Clips::new(model)?), image.placeholder, [image.begin, image.end])
            }
            ModelConfig::Janus(c) => {
                let vision = &c.vision;
                let eye = Eye::Features(Features::new(model)?, vision.patches());
                (eye, vision.placeholder, [vision.begin, vision.end])
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { eye, placeholder, around, codes: Vec::new() }))
    }

    /// The text with the pictures in their places, one placeholder each; `session` is shown their features where the model has such.
    ///
    /// # Errors
    /// If there are not as many places as pictures, a picture cannot be brought to the model's size, or a result is not a number.
    pub fn read(&mut self, ids: &[u32], pictures: &[Picture<'_>], session: &mut Session) -> Result<Vec<u32>> {
        let places = ids.iter().filter(|&&id| id == self.placeholder).count();
        if places != pictures.len() {
            return Err(SessionError::Places { places, features: pictures.len() }.into());
        }
        let mut left = pictures.iter();
        let mut text = Vec::new();
        for &id in ids {
            let Some(&picture) = left.as_slice().first().filter(|_| id == self.placeholder) else {
                text.push(id);
                continue;
            };
            left.next();
            text.push(self.around[0]);
            match &mut self.eye {
                Eye::Codes(images) => {
                    images.encode(picture, &mut self.codes)?;
                    text.extend_from_slice(&self.codes);
                }
                Eye::Clips(clips) => clips.append(picture, &mut text)?,
                Eye::Features(_, patches) => text.extend(std::iter::repeat_n(self.placeholder, *patches)),
            }
            text.push(self.around[1]);
        }
        if let Eye::Features(eye, _) = &mut self.eye {
            eye.show(pictures, session)?;
        }
        Ok(text)
    }
}
