//! The layers that VQGANs are built of: norms, residual blocks, attention, levels of them.
//!
//! Each works on one picture in slot `X`, `[height, width, channels]`. The norms of MoVQ's decoder also see the code book vectors of that
//! picture in slot `Code`, `[rows, columns, code_dim]`.
//!
//! Source: Esser et al. 2021 (arXiv:2012.09841) and Zheng et al. 2022 (arXiv:2209.09002), section 3.2; the order of operations is that of
//! transformers' `ChameleonVQVAE`, `JanusVQVAE` and `Emu3VQVAE`.

use crate::Result;
use crate::engine::maps::Slot::{A, B, Code, K, V, X};
use crate::engine::maps::{Affine, Conv, Maps, Slot, Then};
use crate::weights::Weights;

/// A norm by groups, and in the decoder what follows it.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    norm: Affine,
    /// 1 × 1 convolutions of the code map, enlarged to the size of the frame: what the norm is multiplied by, and what is added.
    spatial: Option<[Conv; 2]>,
}

impl Norm {
    /// Finds the norm `stem`.
    pub(crate) fn resolve(w: &Weights, stem: &str, spatial: bool) -> Result<Self> {
        if !spatial {
            return Ok(Self { norm: Affine::resolve(w, stem)?, spatial: None });
        }
        let conv = |part: &str| Conv::resolve(w, &format!("{stem}.{part}"), 1, 1, [0, 0]);
        let norm = Affine::resolve(w, &format!("{stem}.norm_layer"))?;
        Ok(Self { norm, spatial: Some([conv("conv_y")?, conv("conv_b")?]) })
    }

    fn forward(&self, m: &mut dyn Maps, from: Slot, to: Slot, then: Then) -> Result<()> {
        let Some([scale, shift]) = &self.spatial else {
            return m.group_norm(&self.norm, None, from, to, then);
        };
        // A 1 × 1 convolution of an enlarged map is the enlarged convolution, and a map of codes is up to 64 times smaller.
        m.convolve(scale, Code, K)?;
        m.convolve(shift, Code, V)?;
        m.group_norm(&self.norm, Some([K, V]), from, to, then)
    }
}

/// `shortcut(x) + conv2(swish(norm2(conv1(swish(norm1(x))))))`.
#[derive(Clone, Debug)]
pub(crate) struct ResBlock {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    /// 1 × 1, where the number of channels changes.
    shortcut: Option<Conv>,
}

impl ResBlock {
    /// Finds the block `stem`.
    pub(crate) fn resolve(w: &Weights, stem: &str, [input, out]: [usize; 2], spatial: bool) -> Result<Self> {
        Ok(Self {
            norm1: Norm::resolve(w, &format!("{stem}.norm1"), spatial)?,
            conv1: Conv::resolve(w, &format!("{stem}.conv1"), 3, 1, [1, 1])?,
            norm2: Norm::resolve(w, &format!("{stem}.norm2"), spatial)?,
            conv2: Conv::resolve(w, &format!("{stem}.conv2"), 3, 1, [1, 1])?,
            shortcut: (input != out)
                .then(|| Conv::resolve(w, &format!("{stem}.nin_shortcut"), 1, 1, [0, 0]))
                .transpose()?,
        })
    }

    fn forward(&self, m: &mut dyn Maps) -> Result<()> {
        self.norm1.forward(m, X, A, Then::Swish)?;
        m.convolve(&self.conv1, A, B)?;
        self.norm2.forward(m, B, B, Then::Swish)?;
        m.convolve(&self.conv2, B, A)?;
        if let Some(shortcut) = &self.shortcut {
            m.convolve(shortcut, X, B)?;
            m.swap(X, B);
        }
        m.add(X, A)
    }
}

/// `x + out(softmax(q · kᵀ / √channels) · v)` over all places of a frame, where q, k and v are of `norm(x)`.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    norm: Norm,
    q: Conv,
    k: Conv,
    v: Conv,
    out: Conv,
}

impl Attention {
    /// Finds the projections of `stem`, which are called `[q, k, v, out]`.
    pub(crate) fn resolve(w: &Weights, norm: Norm, stem: &str, [q, k, v, out]: [&str; 4]) -> Result<Self> {
        let projection = |part: &str| Conv::resolve(w, &format!("{stem}.{part}"), 1, 1, [0, 0]);
        Ok(Self { norm, q: projection(q)?, k: projection(k)?, v: projection(v)?, out: projection(out)? })
    }

    fn forward(&self, m: &mut dyn Maps) -> Result<()> {
        self.norm.forward(m, X, A, Then::Nothing)?;
        m.convolve(&self.q, A, B)?;
        m.convolve(&self.k, A, K)?;
        m.convolve(&self.v, A, V)?;
        m.attend([B, K, V], 1, A)?;
        m.convolve(&self.out, A, B)?;
        m.add(X, B)
    }
}

/// Residual blocks, each with the attention behind it where there is one, and the convolution that changes the size.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    pub(crate) blocks: Vec<(ResBlock, Option<Attention>)>,
    pub(crate) resize: Option<Conv>,
}

impl Level {
    fn blocks(&self, m: &mut dyn Maps) -> Result<()> {
        for (block, attention) in &self.blocks {
            block.forward(m)?;
            if let Some(attention) = attention {
                attention.forward(m)?;
            }
        }
        Ok(())
    }

    /// The blocks, then half as wide and high except behind the last level.
    pub(crate) fn down(&self, m: &mut dyn Maps) -> Result<()> {
        self.blocks(m)?;
        self.resize.as_ref().map_or(Ok(()), |conv| through(conv, m))
    }

    /// The blocks, then twice as wide and high except behind the last level.
    pub(crate) fn up(&self, m: &mut dyn Maps) -> Result<()> {
        self.blocks(m)?;
        let Some(conv) = &self.resize else { return Ok(()) };
        m.enlarge(X, A)?;
        m.swap(X, A);
        through(conv, m)
    }
}

/// The middle: attention between two blocks.
#[derive(Clone, Debug)]
pub(crate) struct Middle(pub(crate) ResBlock, pub(crate) Attention, pub(crate) ResBlock);

impl Middle {
    pub(crate) fn forward(&self, m: &mut dyn Maps) -> Result<()> {
        self.0.forward(m)?;
        self.1.forward(m)?;
        self.2.forward(m)
    }
}

/// The last norm and the last convolution.
#[derive(Clone, Debug)]
pub(crate) struct Out(pub(crate) Norm, pub(crate) Conv);

impl Out {
    pub(crate) fn forward(&self, m: &mut dyn Maps) -> Result<()> {
        self.0.forward(m, X, X, Then::Swish)?;
        through(&self.1, m)
    }
}

/// What lies in `X` through a convolution.
pub(crate) fn through(conv: &Conv, m: &mut dyn Maps) -> Result<()> {
    m.convolve(conv, X, A)?;
    m.swap(X, A);
    Ok(())
}
