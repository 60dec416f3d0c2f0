//! A conversation into the text that a model was trained on, by the template that its checkpoint brings.

use std::ops::Range;

use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;

use crate::config::ChatTemplate;

/// Longest text that a template may make of a conversation: a template is somebody else's program.
const MAX_TEXT_BYTES: usize = 4 << 20;
/// Steps that a template may take: a message takes a few dozen.
const FUEL: u64 = 4_000_000;

/// A part of what was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// Words.
    Text {
        /// They themselves.
        text: String,
    },
    /// A picture.
    Image,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said and shown.
    pub content: Vec<Part>,
}

impl Message {
    /// A message of words alone.
    #[must_use]
    pub fn text(role: &str, text: &str) -> Self {
        Self { role: role.into(), content: vec![Part::Text { text: text.into() }] }
    }

    /// The words, with `picture` where a picture is.
    fn inline(&self, picture: &str) -> String {
        let part = |part: &Part| match part {
            Part::Text { text } => text.clone(),
            Part::Image => picture.to_owned(),
        };
        self.content.iter().map(part).collect()
    }
}

/// How a template wants what was said and shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// As one string, pictures as this text.
    Inline(String),
    /// As a list of parts.
    Listed,
}

/// What a template sees of a message.
#[derive(Serialize)]
struct Shown<'a> {
    role: &'a str,
    content: Value,
}

/// The text of a conversation up to where the model answers.
///
/// # Errors
/// A sentence when the template is none, fails, or refuses the conversation.
///
/// Source: `apply_chat_template` of Hugging Face transformers, whose Jinja settings these are.
pub(crate) fn render(chat: &ChatTemplate, style: &Style, messages: &[Message]) -> Result<String, String> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |what: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, what))
    });
    let sentence = |error: Error| match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => {
            format!("the chat template refuses this conversation: {detail}")
        }
        _ => format!("the chat template fails: {error}"),
    };
    let template = env.template_from_str(&chat.template).map_err(sentence)?;
    let shown = |message: &Message| match style {
        Style::Inline(picture) => Value::from(message.inline(picture)),
        Style::Listed => Value::from_serialize(&message.content),
    };
    let messages: Vec<_> =
        messages.iter().map(|message| Shown { role: &message.role, content: shown(message) }).collect();
    let context = minijinja::context! {
        messages => messages,
        add_generation_prompt => true,
        bos_token => chat.bos_token,
        eos_token => chat.eos_token,
    };
    let text = template.render(context).map_err(sentence)?;
    if text.len() > MAX_TEXT_BYTES {
        return Err(format!("the chat template makes {} bytes of this conversation", text.len()));
    }
    Ok(text)
}

/// Where the messages' words stand in the text: what a user types stays text, also where it is spelled like a special token.
///
/// A message is looked for in the order of the conversation, without the white space around it, which templates may trim.
pub(crate) fn words(text: &str, messages: &[Message]) -> Vec<Range<usize>> {
    let mut from = 0;
    let mut found = Vec::new();
    for part in messages.iter().flat_map(|message| &message.content) {
        let Part::Text { text: content } = part else { continue };
        let content = content.trim();
        if let Some(at) = text[from..].find(content).filter(|_| !content.is_empty()) {
            found.push(from + at..from + at + content.len());
            from += at + content.len();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\n' + message['content'].strip() + '<|im_end|>\n' }}\
                            {% endfor %}\n{% if add_generation_prompt %}\n{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn chat(template: &str) -> ChatTemplate {
        ChatTemplate { template: template.into(), bos_token: "<s>".into(), eos_token: "</s>".into() }
    }

    use Message as M;

    fn inline() -> Style {
        Style::Inline("<image>".into())
    }

    #[test]
    fn a_conversation_becomes_text() {
        let messages = [M::text("system", "be brief"), M::text("user", " hi ")];
        let text = render(&chat(TEMPLATE), &inline(), &messages).unwrap();
        let expected =
            "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(text, expected);
        let found: Vec<_> = words(&text, &messages).into_iter().map(|range| &text[range]).collect();
        assert_eq!(found, ["be brief", "hi"]);
    }

    #[test]
    fn pictures_stand_where_they_were_shown() {
        let content =
            vec![Part::Text { text: "see ".into() }, Part::Image, Part::Text { text: " there".into() }];
        let messages = [M { role: "user".into(), content }];
        let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
        assert_eq!(render(&chat(template), &inline(), &messages).unwrap(), "see <image> there");
        let template = "{% for c in messages[0].content %}[{{ c.type }}{{ c.text }}]{% endfor %}";
        assert_eq!(
            render(&chat(template), &Style::Listed, &messages).unwrap(),
            "[textsee ][image][text there]"
        );
    }

    #[test]
    fn a_template_that_refuses_or_does_not_end_is_a_sentence() {
        let refuses = "{{ raise_exception('roles must alternate') }}";
        for (template, part) in [
            (refuses, "roles must alternate"),
            ("{% for", "fails"),
            ("{% for i in range(9999) %}{% for i in range(9999) %}{{ i }}{% endfor %}{% endfor %}", "fails"),
        ] {
            let sentence = render(&chat(template), &inline(), &[M::text("user", "hi")]).unwrap_err();
            assert!(sentence.contains(part), "{sentence}");
        }
    }
}
