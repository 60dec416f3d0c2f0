//! The messages of a request, as what the served model can be shown: one question about pictures, or a conversation.

use saccade::tokenize::{Message, Part};

use crate::admit::{Look, Served};
use crate::error::ApiError;
use crate::picture::Picture;
use crate::wire::{self, Content, List};

/// The longest text of one request (all messages together), in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 16 << 10;
/// The longest conversation, in bytes: about 16,000 tokens, more than the models that fit a board remember.
pub(crate) const MAX_TALK_BYTES: usize = 64 << 10;
const NO_ROLE: &str = "a role is one of system, developer, user, assistant and tool";

/// The conversation so far, for a model that was trained on such. What it cannot be shown is refused.
pub(crate) fn conversation(
    messages: &[wire::Message],
    served: &Served,
) -> Result<(Vec<Message>, Vec<Picture>), ApiError> {
    let mut pictures = Vec::new();
    let mut turns = Vec::with_capacity(messages.len());
    for (i, message) in messages.iter().enumerate() {
        let role = match message.role.as_str() {
            "system" | "developer" => "system",
            role @ ("user" | "assistant") => role,
            "tool" | "function" => {
                let message = "this model calls no tools: send system, user and assistant messages alone";
                return Err(ApiError::invalid(format!("messages[{i}]"), message));
            }
            _ => return Err(ApiError::invalid(format!("messages[{i}].role"), NO_ROLE)),
        };
        let content = read_parts(&mut pictures, message, i, served)?;
        turns.push(Message { role: role.into(), content });
    }
    let said = |turn: &Message| turn.content.iter().map(words).map(str::len).sum::<usize>();
    if turns.iter().map(said).sum::<usize>() > MAX_TALK_BYTES {
        let message = format!("the text is longer than {MAX_TALK_BYTES} bytes: shorten it");
        return Err(ApiError::invalid("messages", message));
    }
    let empty = |turn: &Message| {
        turn.content.iter().all(|part| *part != Part::Image && words(part).trim().is_empty())
    };
    if turns.last().is_none_or(|turn| turn.role != "user" || empty(turn)) {
        let message = "the last message must be the user's, and not empty: send something to answer";
        return Err(ApiError::invalid("messages", message));
    }
    Ok((turns, pictures))
}

/// What a part says.
fn words(part: &Part) -> &str {
    match part {
        Part::Text { text } => text,
        Part::Image => "",
    }
}

/// The parts of a message in order; its pictures are appended to the others.
fn read_parts(
    pictures: &mut Vec<Picture>,
    message: &wire::Message,
    i: usize,
    served: &Served,
) -> Result<Vec<Part>, ApiError> {
    let parts = match &message.content {
        None => return Ok(Vec::new()),
        Some(Content::Text(text)) => return Ok(vec![Part::Text { text: text.to_string() }]),
        Some(Content::Parts(List(parts))) => parts,
    };
    if served.max_pictures == 0
        && let Some(j) = parts.iter().position(|part| part.kind == "image_url")
    {
        let message = "this model takes no pictures: send text alone";
        return Err(ApiError::invalid(format!("messages[{i}].content[{j}]"), message));
    }
    // Checks every part, and that pictures are not too many.
    read_text(&mut String::new(), message, i)?;
    read_pictures(pictures, message, i, served)?;
    let part = |part: &wire::Part| match &part.text {
        Some(text) if part.kind == "text" => Part::Text { text: text.0.to_string() },
        _ => Part::Image,
    };
    Ok(parts.iter().map(part).collect())
}

/// Instruction from the system messages, pictures and question from the user messages. What the model would not be
/// shown is refused, since an answer that leaves it out would look like one that heeds it.
pub(crate) fn look(messages: &[wire::Message], served: &Served) -> Result<Look, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` is empty: send at least one user message"));
    }
    let mut turns = Look::default();
    let mut asked = false;
    for (i, message) in messages.iter().enumerate() {
        match message.role.as_str() {
            "system" | "developer" => read_text(&mut turns.instruction, message, i)?,
            "user" => {
                asked = true;
                read_text(&mut turns.question, message, i)?;
                read_pictures(&mut turns.pictures, message, i, served)?;
            }
            "assistant" | "tool" | "function" => {
                let message = "this model answers one question and is shown no earlier answers: send system and user messages alone";
                return Err(ApiError::invalid(format!("messages[{i}]"), message));
            }
            _ => {
                return Err(ApiError::invalid(format!("messages[{i}].role"), NO_ROLE));
            }
        }
    }
    if !asked {
        return Err(ApiError::invalid("messages", "no message has the role `user`: send a question"));
    }
    if turns.instruction.len() + turns.question.len() > MAX_TEXT_BYTES {
        let message = format!("the text is longer than {MAX_TEXT_BYTES} bytes: shorten it");
        return Err(ApiError::invalid("messages", message));
    }
    if turns.question.trim().is_empty() {
        if turns.pictures.is_empty() {
            return Err(ApiError::invalid("messages", "the user messages are empty: send text or a picture"));
        }
        turns.question.clone_from(&served.caption);
    }
    Ok(turns)
}

/// Appends a message's text, parts joined by a blank.
fn read_text(into: &mut String, message: &wire::Message, i: usize) -> Result<(), ApiError> {
    let parts = match &message.content {
        None => return Ok(()),
        Some(Content::Text(text)) => {
            push_words(into, text);
            return Ok(());
        }
        Some(Content::Parts(List(parts))) => parts,
    };
    for (j, part) in parts.iter().enumerate() {
        let param = || format!("messages[{i}].content[{j}]");
        match (part.kind.as_str(), &part.text) {
            ("text", Some(text)) => push_words(into, &text.0),
            ("text", None) => return Err(ApiError::invalid(param(), "a text part needs the field `text`")),
            ("image_url", _) => {}
            _ => return Err(ApiError::invalid(param(), "a part's type is `text` or `image_url`")),
        }
    }
    Ok(())
}

fn push_words(into: &mut String, text: &str) {
    if !into.is_empty() && !text.is_empty() {
        into.push(' ');
    }
    into.push_str(text);
}

fn read_pictures(
    into: &mut Vec<Picture>,
    message: &wire::Message,
    i: usize,
    served: &Served,
) -> Result<(), ApiError> {
    let Some(Content::Parts(List(parts))) = &message.content else { return Ok(()) };
    for (j, part) in parts.iter().enumerate().filter(|(_, part)| part.kind == "image_url") {
        let wire::Part { image_url: Some(url), .. } = part else {
            let param = format!("messages[{i}].content[{j}]");
            return Err(ApiError::invalid(param, "an image_url part needs the field `image_url`"));
        };
        if into.len() == served.max_pictures {
            let message = format!("the model sees {} pictures at once: send fewer", served.max_pictures);
            return Err(ApiError::invalid("messages", message));
        }
        into.push(Picture::from_data_uri(&url.0, &format!("messages[{i}].content[{j}].image_url.url"))?);
    }
    Ok(())
}
