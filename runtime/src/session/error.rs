//! What a session refuses.

use crate::picture::PixelFormat;

/// Something that does not fit the model, or not into the session's memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A call that models of this family have nothing for.
    #[error("a model of the family {family} has nothing for this call")]
    Family {
        /// Its family.
        family: &'static str,
    },
    /// Another number of features than places for them.
    #[error("the text has {places} places for features of pictures, and {features} were given")]
    Places {
        /// Places in the text.
        places: usize,
        /// Features given.
        features: usize,
    },
    /// An answer to nothing.
    #[error("there is no text to answer; give at least one token")]
    NoText,
    /// A call that needs what [`Session::begin`](super::Session::begin) puts first.
    #[error("the session has no task yet; call `begin` first, and again after a `reset`")]
    NotBegun,
    /// A call that a session with an open answer does not take.
    #[error("an answer is open in this session; finish it with `step` or `close` it first")]
    AnswerOpen,
    /// A step of a session without an open answer.
    #[error("a session of this step has no answer open; call `open` with a question first")]
    NoAnswer,
    /// A step of more sessions than its first one has buffers for.
    #[error(
        "{sessions} sessions in one step, the first one was made for {room}; make it with more `max_sequences`"
    )]
    Together {
        /// Sessions given.
        sessions: usize,
        /// Sessions that fit.
        room: usize,
    },
    /// A step of sessions that cannot share one.
    #[error(
        "the sessions of a step must be of one model and choose from the same tokens, and none made for more tokens than the first"
    )]
    Unlike,
    /// A choice that is not among those there are.
    #[error("logit {index} was chosen, there are {limit}")]
    Choice {
        /// The index chosen.
        index: usize,
        /// Logits there are.
        limit: usize,
    },
    /// A token id outside its range.
    #[error("{what} {id} is outside 0 to {}", limit - 1)]
    Token {
        /// What it was meant to be.
        what: &'static str,
        /// The id.
        id: u32,
        /// Ids end before this one.
        limit: usize,
    },
    /// Another number of values than the model has dimensions.
    #[error("{what}: {found} values, the model takes {expected} (or, for actions, whole steps of that many)")]
    Dimensions {
        /// Which modality.
        what: &'static str,
        /// Values given.
        found: usize,
        /// Values expected.
        expected: usize,
    },
    /// A value that is NaN or infinite.
    #[error("{what} value {at} is not a finite number")]
    NotANumber {
        /// Which modality.
        what: &'static str,
        /// Its index.
        at: usize,
    },
    /// More text than there is room for.
    #[error(
        "the text has {tokens} tokens, there is room for {room}; shorten it or make the session with more `max_text_tokens`"
    )]
    TooLong {
        /// Tokens given.
        tokens: usize,
        /// Tokens that fit.
        room: usize,
    },
    /// A picture of more tokens than the model was made for.
    #[error(
        "description and picture have {tokens} tokens, the model was made for {room}; shorten the one or draw a smaller one"
    )]
    Drawing {
        /// Tokens of both.
        tokens: usize,
        /// Tokens that the model was made for.
        room: usize,
    },
    /// No such task.
    #[error("the model has no task `{name}`; it knows {known}")]
    Task {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// A picture whose sizes and bytes disagree.
    #[error(
        "a picture of {width} × {height} pixels cannot have {bytes} bytes of {format}{}",
        if *stride > 0 { format!(" in rows of {stride}") } else { String::new() }
    )]
    Picture {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes.
        bytes: usize,
        /// How they lie.
        format: PixelFormat,
        /// Bytes from one row to the next, if that was said.
        stride: usize,
    },
    /// A picture of a size that cannot be brought to the model's.
    #[error("a picture of {width} × {height} pixels {reason}")]
    PictureSize {
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// Why not, as the end of a sentence.
        reason: String,
    },
    /// A model that cannot draw.
    #[error(
        "this model has no way from codes back to pixels; convert a checkpoint that has the decoder, as those of Anole do"
    )]
    NoDecoder,
    /// What shall not be seen, for a model that is not told.
    #[error("this model is not told what shall not be seen; leave that out")]
    Avoid,
    /// The text tokenizer refused.
    #[error("the text tokenizer refused: {0}")]
    Text(String),
    /// The logits are not numbers: damaged weights, or a numeric fault.
    #[error("the model's output is not a number; verify the bundle with `saccade-convert verify`")]
    NumericFault,
}
