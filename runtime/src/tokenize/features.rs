//! Pictures into features that stand in a text, as Janus has them.

use std::sync::Arc;

use super::Picture;
use super::pixels::{PixelValues, Pixels};
use crate::config::CONFIG_FILE;
#[cfg(feature = "cuda")]
use crate::engine::card::CardFeatures;
use crate::engine::maps::{Canvas, Maps, Shape, Slot};
use crate::family::Model;
use crate::session::{Session, SessionError};
use crate::{Error, Result};

/// The eye of a model that reads pictures as features.
pub struct Features {
    model: Arc<Model>,
    /// Whether the bundle's graph looks, where it has one.
    by_graph: bool,
    pixels: Pixels,
    canvas: Canvas,
    features: Vec<f32>,
    /// Of all pictures that are shown together, on the host or on a card.
    shown: Vec<f32>,
    #[cfg(feature = "cuda")]
    on_card: CardFeatures,
}

/// What becomes of the map that a network ends with.
type Leave = fn(&mut dyn Maps, Slot) -> Result<()>;

impl std::fmt::Debug for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Features").finish_non_exhaustive()
    }
}

impl Features {
    /// For `model`: by its graph if the bundle has one, by our kernels otherwise.
    ///
    /// # Errors
    /// If the model takes no pictures that way.
    pub fn new(model: &Arc<Model>) -> Result<Self> {
        Ok(Self { by_graph: true, ..Self::on_kernels(model)? })
    }

    /// The same by our kernels, whatever the bundle has: to compare.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn on_kernels(model: &Arc<Model>) -> Result<Self> {
        let (c, _) = model.janus()?;
        let path = model.weights().dir().join(CONFIG_FILE);
        let pixels = Pixels::new(&c.vision.pixels).map_err(|source| Error::Config { path, source })?;
        let canvas = Canvas::new("the eye of this model");
        Ok(Self {
            model: Arc::clone(model),
            by_graph: false,
            pixels,
            canvas,
            features: Vec::new(),
            shown: Vec::new(),
            #[cfg(feature = "cuda")]
            on_card: CardFeatures::default(),
        })
    }

    /// The picture as the network takes it.
    ///
    /// # Errors
    /// If it cannot be brought to the network's size.
    pub fn values(&mut self, picture: Picture<'_>) -> Result<PixelValues<'_>> {
        Ok(self.pixels.run(picture)?)
    }

    /// The features of a picture, `[patches, d_model] f32`.
    ///
    /// # Errors
    /// If it cannot be brought to the network's size, or a result is not a number.
    pub fn of(&mut self, picture: Picture<'_>) -> Result<&[f32]> {
        self.find(picture, |m, x| m.give(x))
    }

    /// Finds the features of pictures and gives them to a session, for the next questions that have so many pictures; those of other
    /// pictures are forgotten. What our kernels find on a card does not leave it.
    ///
    /// # Errors
    /// As [`Self::of`] and [`Session::show`]; the session stays as it was.
    pub fn show(&mut self, pictures: &[Picture<'_>], session: &mut Session) -> Result<()> {
        let patches = self.model.janus()?.0.vision.patches();
        session.check_features(pictures.len().saturating_mul(patches))?;
        // Another model may be on another card.
        let own = Arc::ptr_eq(&self.model, session.model());
        let leave: Leave = if own { |m, x| m.keep(x) } else { |m, x| m.give(x) };
        self.shown.clear();
        #[cfg(feature = "cuda")]
        if let Some(card) = self.model.card() {
            let d_model = self.model.decoder().config.d_model;
            self.on_card.clear(card, pictures.len() * patches * d_model)?;
        }
        for &picture in pictures {
            self.find(picture, leave)?;
            self.shown.extend_from_slice(&self.features);
            #[cfg(feature = "cuda")]
            self.canvas.append_kept(&mut self.on_card)?;
        }
        #[cfg(feature = "cuda")]
        if self.on_card.len() > 0 {
            return session.show_found(&self.on_card);
        }
        session.show(&self.shown)
    }

    /// The features of a picture; nothing if `leave` leaves them on a card.
    fn find(&mut self, picture: Picture<'_>, leave: Leave) -> Result<&[f32]> {
        let Self { model, by_graph, pixels, canvas, features, .. } = self;
        if let Some(graph) = model.graph().filter(|_| *by_graph) {
            let PixelValues { values, height, width } = pixels.run(picture)?;
            check(model, (height, width), values.len())?;
            graph.run(values, (height, width), features)?;
        } else {
            let plan = pixels.plan(picture)?;
            let (height, width) = plan.canvas();
            check(model, (height, width), height * width * 3)?;
            look(model, canvas, features, &|m| m.load_picture(Slot::X, plan, picture), leave)?;
        }
        self.found()
    }

    /// The features of values that are ready for the network.
    ///
    /// Shapes: `values [height, width, 3] f32`.
    ///
    /// # Errors
    /// If they are of another size than the network's, or a result is not a number.
    pub fn of_values(&mut self, values: &[f32], size: (usize, usize)) -> Result<&[f32]> {
        let Self { model, by_graph, canvas, features, .. } = self;
        check(model, size, values.len())?;
        if let Some(graph) = model.graph().filter(|_| *by_graph) {
            graph.run(values, size, features)?;
        } else {
            let shape = Shape::picture(size, 3);
            let load = |m: &mut dyn Maps| m.load(Slot::X, shape, &|x| x.copy_from_slice(values));
            look(model, canvas, features, &load, |m, x| m.give(x))?;
        }
        self.found()
    }

    /// What was found last.
    fn found(&self) -> Result<&[f32]> {
        if !self.features.iter().all(|x| x.is_finite()) {
            return Err(SessionError::NumericFault.into());
        }
        Ok(&self.features)
    }
}

/// Refuses so many values of a picture of another size than the network's.
fn check(model: &Model, (height, width): (usize, usize), values: usize) -> Result<()> {
    let side = model.janus()?.0.vision.image_size;
    if (height, width) != (side, side) || values != side * side * 3 {
        let reason = format!("are not the {side} × {side} of the model");
        return Err(SessionError::PictureSize { width, height, reason }.into());
    }
    Ok(())
}

/// What `load` puts into slot `X` into features, of which the host gets what is not left where the network runs.
fn look(
    model: &Model,
    canvas: &mut Canvas,
    features: &mut Vec<f32>,
    load: &dyn Fn(&mut dyn Maps) -> Result<()>,
    leave: Leave,
) -> Result<()> {
    let (c, net) = model.janus()?;
    let found = canvas.run(model.machine(), &|m| {
        load(m)?;
        net.vision.forward(&c.vision, m)?;
        leave(m, Slot::X)
    })?;
    features.clear();
    features.extend_from_slice(found);
    Ok(())
}
