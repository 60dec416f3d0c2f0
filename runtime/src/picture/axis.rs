//! One axis of a resize: which inputs make each output, with what weights.

/// Which inputs make one output, as the kernels of a card read it: `Span` of `pixels.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Zeroable, bytemuck::Pod)]
pub(crate) struct Span {
    /// First input.
    first: u32,
    /// Its weights in those of the axis: from `begin` to below `end`.
    begin: u32,
    end: u32,
}

impl Span {
    /// First input.
    pub(super) fn first(self) -> usize {
        self.first as usize
    }

    /// The input behind the last one.
    fn behind(self) -> usize {
        (self.first + self.end - self.begin) as usize
    }
}

/// `spans [outputs]`, each with its weights.
#[derive(Debug)]
pub(crate) struct Axis<W> {
    spans: Vec<Span>,
    weights: Vec<W>,
}

impl<W> Default for Axis<W> {
    fn default() -> Self {
        Self { spans: Vec::new(), weights: Vec::new() }
    }
}

impl<W: bytemuck::Pod> Axis<W> {
    pub(super) fn clear(&mut self) {
        self.spans.clear();
        self.weights.clear();
    }

    /// Adds an output that takes of the inputs from `first` on.
    // A side has at most `MAX_SIDE_PX` pixels, and each is weighed for a few outputs.
    #[allow(clippy::cast_possible_truncation)]
    pub(super) fn push(&mut self, first: usize, weights: impl IntoIterator<Item = W>) {
        let begin = self.weights.len() as u32;
        self.weights.extend(weights);
        self.spans.push(Span { first: first as u32, begin, end: self.weights.len() as u32 });
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.spans
    }

    pub(super) fn weights(&self, span: Span) -> &[W] {
        &self.weights[span.begin as usize..span.end as usize]
    }

    /// The inputs that any output takes something of: the first, and the one behind the last.
    pub(super) fn inputs(&self) -> (usize, usize) {
        let behind = self.spans.last().map_or(0, |span| span.behind());
        (self.spans.first().map_or(0, |span| span.first()), behind)
    }

    /// Spans and weights as a card reads them.
    pub(super) fn tables(&self) -> [&[u8]; 2] {
        [bytemuck::cast_slice(&self.spans), bytemuck::cast_slice(&self.weights)]
    }
}
