//! [`SseParser`]: server-sent events out of bytes that arrive in any pieces (WHATWG HTML, section 9.2).

/// Collects bytes and gives out the data of whole events. Comments, names and ids are skipped.
#[derive(Debug, Default)]
pub(super) struct SseParser {
    bytes: Vec<u8>,
    /// Before this, `bytes` has been read.
    read: usize,
    /// From `read` to here there is no end of line.
    searched: usize,
    data: Vec<u8>,
    has_data: bool,
}

impl SseParser {
    /// Takes what has arrived.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.read);
        self.searched -= self.read;
        self.read = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The data of the next whole event, its lines joined by newlines.
    pub(super) fn next_event(&mut self) -> Option<&[u8]> {
        if !self.has_data {
            self.data.clear();
        }
        while let Some((start, end)) = self.next_line() {
            let line = &self.bytes[start..end];
            if line.is_empty() {
                if std::mem::take(&mut self.has_data) {
                    return Some(&self.data);
                }
            } else if let Some(data) = line.strip_prefix(b"data:") {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            }
        }
        None
    }

    /// Where the next whole line is. A CR at the very end may be half of a CR LF, so it has to wait.
    fn next_line(&mut self) -> Option<(usize, usize)> {
        let start = self.read;
        let rest = &self.bytes[self.searched..];
        let Some(offset) = rest.iter().position(|&byte| byte == b'\n' || byte == b'\r') else {
            self.searched = self.bytes.len();
            return None;
        };
        let end = self.searched + offset;
        let width = match (self.bytes[end], self.bytes.get(end + 1)) {
            (b'\n', _) => 1,
            (_, Some(b'\n')) => 2,
            (_, Some(_)) => 1,
            (_, None) => {
                self.searched = end;
                return None;
            }
        };
        self.read = end + width;
        self.searched = self.read;
        Some((start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::default();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece);
            while let Some(event) = parser.next_event() {
                events.push(String::from_utf8(event.to_vec()).unwrap());
            }
        }
        events
    }

    #[test]
    fn events_do_not_depend_on_where_the_bytes_are_cut() {
        let text = ": hello\n\ndata: {\"a\":1}\n\ndata:two\r\ndata: lines\r\n\r\nevent: x\nid: 7\ndata:  käse\n\n\
                    \n\nretry: 3\n\ndata\n\ndata: cr\r\rdata: [DONE]\n\n";
        let bytes = text.as_bytes();
        let whole = ["{\"a\":1}", "two\nlines", " käse", "cr", "[DONE]"];
        assert_eq!(events(&[bytes]), whole);
        for cut in 0..=bytes.len() {
            assert_eq!(events(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
            for second in cut..=bytes.len() {
                assert_eq!(
                    events(&[&bytes[..cut], &bytes[cut..second], &bytes[second..]]),
                    whole,
                    "{cut} {second}"
                );
            }
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(events(&single), whole);
    }

    #[test]
    fn an_unfinished_event_is_kept_back() {
        assert_eq!(events(&[b"data: a\n", b"data: b"]), [""; 0]);
        assert_eq!(events(&[b"data: a\n", b"data: b", b"\n\n"]), ["a\nb"]);
    }
}
