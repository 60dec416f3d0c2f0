//! The chat-completion request as it stands on the wire: parsed with bounds, not yet judged.
//!
//! Unknown fields are skipped without being stored, and every list stops at its limit while it is being read,
//! so that a body of n bytes never becomes more than a few n bytes of memory.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

/// Messages in one request, at most.
pub(crate) const MAX_MESSAGES: usize = 128;
/// Parts in one message, at most.
pub(crate) const MAX_PARTS: usize = 64;
/// Stop strings in one request, at most (as OpenAI has it).
pub(crate) const MAX_STOPS: usize = 4;

/// The body of `POST /v1/chat/completions`.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct ChatRequest<'a> {
    pub(crate) model: Option<String>,
    #[serde(borrow)]
    pub(crate) messages: List<Message<'a>, MAX_MESSAGES>,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) max_tokens: Option<Number>,
    pub(crate) max_completion_tokens: Option<Number>,
    pub(crate) temperature: Option<Number>,
    pub(crate) top_p: Option<Number>,
    pub(crate) seed: Option<Number>,
    pub(crate) n: Option<Number>,
    pub(crate) stop: Option<Stops>,
    pub(crate) response_format: Option<ResponseFormat>,
}

/// `stream_options`.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: Option<bool>,
}

/// `response_format`.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct ResponseFormat {
    #[serde(rename = "type")]
    pub(crate) kind: String,
}

/// One turn of the conversation.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Message<'a> {
    pub(crate) role: String,
    #[serde(borrow)]
    pub(crate) content: Option<Content<'a>>,
}

/// A message's content: plain text, or parts.
#[derive(Debug)]
pub(crate) enum Content<'a> {
    Text(Cow<'a, str>),
    Parts(List<Part<'a>, MAX_PARTS>),
}

/// One part: text or a picture; which of the two stands in `kind`.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct Part<'a> {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(borrow)]
    pub(crate) text: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) image_url: Option<ImageUrl<'a>>,
}

/// A string that stays in the body's own bytes unless it holds escapes.
#[derive(Debug, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// `{"url": "data:…"}`, or the string alone, as some clients send it.
#[derive(Debug)]
pub(crate) struct ImageUrl<'a>(pub(crate) Cow<'a, str>);

/// `stop`: one string or a few.
#[derive(Debug)]
pub(crate) struct Stops(pub(crate) Vec<String>);

/// A list that refuses its `MAX + 1`st element while it is being read.
#[derive(Debug)]
pub(crate) struct List<T, const MAX: usize>(pub(crate) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
            type Value = List<T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a list of at most {MAX} elements")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                list(seq)
            }
        }
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

/// Reads a sequence into a list, up to its limit.
fn list<'de, A: SeqAccess<'de>, T: Deserialize<'de>, const MAX: usize>(
    mut seq: A,
) -> Result<List<T, MAX>, A::Error> {
    let mut elements = Vec::new();
    while let Some(element) = seq.next_element()? {
        if elements.len() == MAX {
            return Err(A::Error::custom(format_args!("a list has more than {MAX} elements")));
        }
        elements.push(element);
    }
    Ok(List(elements))
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Content<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of parts")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Content::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Content::Text(Cow::Owned(text.into())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                list(seq).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ImageUrl<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ImageUrl<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with the field `url`")
            }
            fn visit_borrowed_str<E: Error>(self, url: &'de str) -> Result<Self::Value, E> {
                Ok(ImageUrl(Cow::Borrowed(url)))
            }
            fn visit_str<E: Error>(self, url: &str) -> Result<Self::Value, E> {
                Ok(ImageUrl(Cow::Owned(url.into())))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut url = None;
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if key.0 == "url" {
                        url = Some(map.next_value::<Text<'de>>()?.0);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                url.map(ImageUrl).ok_or_else(|| A::Error::missing_field("url"))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Stops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Stops;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a string or a list of at most {MAX_STOPS} strings")
            }
            fn visit_str<E: Error>(self, stop: &str) -> Result<Self::Value, E> {
                Ok(Stops(vec![stop.into()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                let List(stops) = list::<A, String, MAX_STOPS>(seq)?;
                Ok(Stops(stops))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
