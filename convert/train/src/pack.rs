//! One training sequence: segments, windows, branches and positions, by the very rule that the runtime applies.
//!
//! Trunk segments are pushed in order; a push first evicts what falls out of its modality's window. Branches (a question
//! with its answer, the action slots) see the trunk that is live where they hang and leave nothing behind.
//!
//! Positions are kept *absolute*: the index among all trunk tokens ever pushed. Because evicted tokens always lie directly
//! behind segment 0, the closed-gap distance of two tokens is the difference of their absolute positions, except for keys in
//! segment 0, which have moved closer by the number of tokens evicted so far: the query's *shift*.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::layout::{Dims, Modality, N_CODES, N_SLOTS, PREFIX_LEN, Task, WINDOWS, ids};

/// A loss position: which token predicts what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index of the predicting token in the sequence.
    pub at: usize,
    /// What it must predict, as a global id.
    pub id: u32,
    /// Which range of ids it is predicted from.
    pub head: Head,
}

/// The range of ids that a logit row covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Specials and byte-pair entries.
    Text,
    /// Bins.
    Bins,
    /// Image codes.
    Image,
}

/// How the tokens of one segment see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// Each sees itself and those before it.
    Causal,
    /// Each sees only itself (action slots).
    Alone,
}

/// A run of tokens that see the same trunk.
#[derive(Debug, Clone)]
struct Segment {
    tokens: Range<usize>,
    /// Trunk segments that are live for it, without itself.
    live: Vec<usize>,
    inside: Inside,
    modality: Modality,
    /// Tokens evicted before it was pushed.
    shift: usize,
}

/// Tokens of one sequence with all that the forward pass needs.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Row of the input table of each token: vocabulary, then task prefixes, then slots.
    pub rows: Vec<u32>,
    /// Raster index of an image code, 64 for everything else.
    pub raster: Vec<u8>,
    /// Modality of each token.
    pub modality: Vec<u8>,
    /// Absolute position of each token.
    pub pos: Vec<u32>,
    /// Offset of each token inside its own segment.
    pub offset: Vec<u32>,
    /// Loss positions.
    pub targets: Vec<Target>,
    segments: Vec<Segment>,
    live: Vec<usize>,
    pushed: usize,
    evicted: usize,
    prefix_rows: u32,
    slot_rows: u32,
}

/// The raster index of what is no image code.
pub const NO_RASTER: u8 = 64;

impl Sequence {
    /// Opens a sequence: the task's prefix and the instruction are segment 0.
    pub fn open(dims: &Dims, task: Task, instruction: &[u32]) -> Sequence {
        let vocab = u32::try_from(dims.vocab_size()).unwrap_or(u32::MAX);
        let n_prefix = u32::try_from(PREFIX_LEN * crate::layout::N_TASKS).unwrap_or(0);
        let mut s = Sequence {
            rows: Vec::new(),
            raster: Vec::new(),
            modality: Vec::new(),
            pos: Vec::new(),
            offset: Vec::new(),
            targets: Vec::new(),
            segments: Vec::new(),
            live: Vec::new(),
            pushed: 0,
            evicted: 0,
            prefix_rows: vocab,
            slot_rows: vocab + n_prefix,
        };
        let prefix =
            (0..PREFIX_LEN).map(|i| s.prefix_rows + (task as u32) * 4 + u32::try_from(i).unwrap_or(0));
        let rows: Vec<u32> = prefix.chain(instruction.iter().copied()).collect();
        s.trunk(Modality::Text, &rows);
        s
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no token; never so after [`Sequence::open`].
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Tokens of segment 0.
    pub fn s0_len(&self) -> usize {
        self.segments[0].tokens.len()
    }

    /// Appends a segment to the trunk after evicting what its window no longer holds; returns its first token.
    fn trunk(&mut self, modality: Modality, rows: &[u32]) -> usize {
        if let Some(window) = WINDOWS[modality as usize] {
            let same: Vec<usize> =
                self.live.iter().copied().filter(|&i| self.segments[i].modality == modality).collect();
            for old in same.iter().take((same.len() + 1).saturating_sub(window)) {
                self.live.retain(|i| i != old);
                self.evicted += self.segments[*old].tokens.len();
            }
        }
        let at = self.append(modality, rows, Inside::Causal);
        self.live.push(self.segments.len() - 1);
        self.pushed += rows.len();
        at
    }

    /// Appends tokens that see the live trunk; returns the first.
    fn append(&mut self, modality: Modality, rows: &[u32], inside: Inside) -> usize {
        let at = self.rows.len();
        for (i, &row) in rows.iter().enumerate() {
            self.rows.push(row);
            self.raster.push(NO_RASTER);
            self.modality.push(modality as u8);
            self.pos.push(u32::try_from(self.pushed + i).unwrap_or(u32::MAX));
            self.offset.push(u32::try_from(i).unwrap_or(u32::MAX));
        }
        self.segments.push(Segment {
            tokens: at..self.rows.len(),
            live: self.live.clone(),
            inside,
            modality,
            shift: self.evicted,
        });
        at
    }

    /// A frame: `<img>`, its codes (as global ids), `</img>`; `<img>` and each code predict the next code.
    pub fn image(&mut self, dims: &Dims, codes: &[u16]) {
        let base = u32::try_from(dims.image_codes().start).unwrap_or(0);
        let mut rows = vec![ids::IMG];
        rows.extend(codes.iter().map(|&c| base + u32::from(c)));
        rows.push(ids::IMG_END);
        let at = self.trunk(Modality::Image, &rows);
        for (i, &id) in rows[1..=codes.len()].iter().enumerate() {
            self.raster[at + 1 + i] = u8::try_from(i).unwrap_or(NO_RASTER);
            self.targets.push(Target { at: at + i, id, head: Head::Image });
        }
    }

    /// A state or executed actions: the opening special and global ids of bins.
    pub fn bins(&mut self, modality: Modality, bins: &[u32]) {
        let open = if modality == Modality::State { ids::STATE } else { ids::ACT };
        let rows: Vec<u32> = std::iter::once(open).chain(bins.iter().copied()).collect();
        self.trunk(modality, &rows);
    }

    /// A question that hangs at the live trunk, with loss on its answer and `<eos>`.
    pub fn ask(&mut self, question: &[u32], answer: &[u32]) {
        let mut rows = vec![ids::ASK];
        rows.extend(question);
        rows.push(ids::ANS);
        let ans = rows.len() - 1;
        rows.extend(answer);
        let at = self.append(Modality::Text, &rows, Inside::Causal);
        let expected = answer.iter().copied().chain([ids::EOS]);
        self.targets.extend(expected.enumerate().map(|(i, id)| Target {
            at: at + ans + i,
            id,
            head: Head::Text,
        }));
    }

    /// The action slots, each predicting one bin (global ids, step-major).
    ///
    /// # Errors
    /// If there are not 32 bins.
    pub fn slots(&mut self, bins: &[u32]) -> Result<()> {
        if bins.len() != N_SLOTS {
            return Err(Error::Setting(format!("a chunk has {N_SLOTS} bins, not {}", bins.len())));
        }
        let rows: Vec<u32> = (self.slot_rows..).take(N_SLOTS).collect();
        let at = self.append(Modality::Action, &rows, Inside::Alone);
        self.targets.extend(bins.iter().enumerate().map(|(i, &id)| Target {
            at: at + i,
            id,
            head: Head::Bins,
        }));
        Ok(())
    }

    /// Position of each token with the gaps closed: what the runtime calls its position.
    pub fn closed_positions(&self) -> Vec<u32> {
        let mut out = self.pos.clone();
        for s in &self.segments {
            let shift = u32::try_from(s.shift).unwrap_or(0);
            out[s.tokens.clone()].iter_mut().for_each(|p| *p -= shift);
        }
        out
    }

    /// The distinct shifts of its tokens other than zero, rising.
    pub fn shifts(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.segments.iter().map(|s| s.shift).filter(|&s| s > 0).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Which keys each token sees, row by row: `[len, keys_len]`, in `mask` (pre-filled with the masked value) set to 0.
    ///
    /// Keys are the tokens at their absolute positions, then from `ghosts` on one copy of segment 0 (padded to `s0_stride`)
    /// for each entry of `shifts`, for the queries that have seen so many tokens go.
    pub fn unmask(
        &self,
        mask: &mut [f32],
        keys_len: usize,
        ghosts: usize,
        s0_stride: usize,
        shifts: &[usize],
    ) {
        let s0 = &self.segments[0].tokens;
        for (index, segment) in self.segments.iter().enumerate() {
            let s0_at = match shifts.iter().position(|&s| s == segment.shift) {
                Some(g) if segment.shift > 0 => ghosts + g * s0_stride,
                _ => 0,
            };
            for q in segment.tokens.clone() {
                let row = &mut mask[q * keys_len..][..keys_len];
                for &k in &segment.live {
                    let tokens = &self.segments[k].tokens;
                    let at = if k == 0 { s0_at..s0_at + s0.len() } else { tokens.clone() };
                    row[at].fill(0.0);
                }
                match segment.inside {
                    Inside::Causal => row[segment.tokens.start..=q].fill(0.0),
                    Inside::Alone => row[q] = 0.0,
                }
            }
            debug_assert!(index == 0 || segment.live.first() == Some(&0), "segment 0 is pinned");
        }
    }
}

/// Bins of values: clamp(floor((v − low)/(high − low)·n), 0, n−1).
///
/// Units: those of the values.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Binning {
    /// Lowest value of each dimension.
    pub low: Vec<f32>,
    /// Highest value of each dimension.
    pub high: Vec<f32>,
}

impl Binning {
    /// From the first to the ninety-ninth percentile of each of `dims` dimensions.
    pub fn fitted(values: &[Vec<f32>], dims: usize) -> Binning {
        let mut out = Binning { low: vec![-1.0; dims], high: vec![1.0; dims] };
        for d in 0..dims {
            let mut column: Vec<f32> =
                values.iter().filter_map(|v| v.get(d).copied()).filter(|v| v.is_finite()).collect();
            column.sort_by(f32::total_cmp);
            let (Some(&first), Some(&last)) =
                (column.get(column.len() / 100), column.get(column.len() - 1 - column.len() / 100))
            else {
                continue;
            };
            (out.low[d], out.high[d]) =
                if last - first > 1e-6 { (first, last) } else { (first - 0.5, first + 0.5) };
        }
        out
    }

    /// Bin of `v` in dimension `d`, of `n`.
    pub fn bin(&self, d: usize, v: f32, n: usize) -> usize {
        let t = (v - self.low[d]) / (self.high[d] - self.low[d]) * n as f32;
        let floor = t.floor().clamp(0.0, (n - 1) as f32);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0 ..= n-1 on the line above; NaN gives 0"
        )]
        let bin = floor as usize;
        bin
    }

    /// Centre of a bin.
    pub fn centre(&self, d: usize, bin: usize, n: usize) -> f32 {
        (bin as f32 + 0.5) / n as f32 * (self.high[d] - self.low[d]) + self.low[d]
    }
}

/// The number of codes of a frame, checked.
///
/// # Errors
/// If `codes` is not one frame.
pub fn check_codes(codes: &[u16]) -> Result<()> {
    if codes.len() == N_CODES {
        return Ok(());
    }
    Err(Error::Setting(format!("a frame has {N_CODES} codes, not {}", codes.len())))
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
