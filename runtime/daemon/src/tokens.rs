//! Tokens to text while they come: whole characters only, and never a part of a stop string.

/// The text of an answer as far as it may be shown.
#[derive(Debug)]
pub(crate) struct TextStream<'a> {
    ids: Vec<u32>,
    stops: &'a [String],
    shown_len: usize,
    stopped: bool,
}

impl<'a> TextStream<'a> {
    pub(crate) fn new(stops: &'a [String]) -> Self {
        Self { ids: Vec::new(), stops, shown_len: 0, stopped: false }
    }

    /// Takes one more token; returns the text that can be shown because of it (it may be empty).
    pub(crate) fn push(&mut self, id: u32, decode: impl FnOnce(&[u32]) -> String) -> String {
        self.ids.push(id);
        self.advance(decode, false)
    }

    /// The answer is over: what was held back.
    pub(crate) fn finish(&mut self, decode: impl FnOnce(&[u32]) -> String) -> String {
        self.advance(decode, true)
    }

    /// Whether a stop string has ended the answer.
    pub(crate) const fn stopped(&self) -> bool {
        self.stopped
    }

    fn advance(&mut self, decode: impl FnOnce(&[u32]) -> String, last: bool) -> String {
        if self.stopped {
            return String::new();
        }
        // All tokens again, since one character may span several: answers are short.
        let whole = decode(&self.ids);
        let mut end = whole.len();
        if let Some(stop) = self.stops.iter().filter_map(|stop| whole.find(stop.as_str())).min() {
            self.stopped = true;
            end = stop;
        } else if !last {
            // A character cut in half decodes to the replacement character; a stop string may be half there.
            end = whole.trim_end_matches(char::REPLACEMENT_CHARACTER).len();
            let text = &whole[..end];
            end -= self.stops.iter().map(|stop| held_back(text, stop)).max().unwrap_or(0);
        }
        let more = whole.get(self.shown_len..end.max(self.shown_len)).unwrap_or("").to_owned();
        self.shown_len += more.len();
        more
    }
}

/// How many bytes at the end of `text` could begin `stop`.
fn held_back(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).filter(|&at| text.ends_with(&stop[..at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every id is one byte, so that characters come in halves.
    fn decode(ids: &[u32]) -> String {
        String::from_utf8_lossy(&ids.iter().map(|&id| u8::try_from(id).unwrap()).collect::<Vec<_>>())
            .into_owned()
    }

    fn show(text: &str, stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&s| s.into()).collect();
        let mut stream = TextStream::new(&stops);
        let mut shown: Vec<String> = text.bytes().map(|b| stream.push(b.into(), decode)).collect();
        shown.push(stream.finish(decode));
        (shown, stream.stopped())
    }

    #[test]
    fn shows_whole_characters_only() {
        let (shown, _) = show("a→b", &[]);
        assert_eq!(shown, ["a", "", "", "→", "b", ""]);
    }

    #[test]
    fn shows_what_is_broken_only_at_the_end() {
        let mut stream = TextStream::new(&[]);
        assert_eq!(stream.push(0xE2, decode), "");
        assert_eq!(stream.finish(decode), "\u{FFFD}");
    }

    #[test]
    fn stops_before_the_stop_string_and_never_shows_a_part_of_it() {
        let (shown, stopped) = show("one. two", &[". t"]);
        assert_eq!((shown.concat().as_str(), stopped), ("one", true));
        assert!(shown.iter().all(|s| !s.contains('.')));
        let (shown, stopped) = show("one. no", &[". t"]);
        assert_eq!((shown.concat().as_str(), stopped), ("one. no", false));
        let (shown, stopped) = show("aab", &["ab", "b"]);
        assert_eq!((shown.concat().as_str(), stopped), ("a", true));
    }
}
