//! [`Cursor`]: a place in bytes that nobody vouches for.

/// Bytes of the name of a key or a tensor at most; ggml's own are shorter than 64.
const MAX_NAME_BYTES: usize = 512;

/// Reads from the front. Errors say what was being read.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    /// Nothing is read beyond `limit`.
    pub(super) fn new(bytes: &'a [u8], limit: usize) -> Self {
        Self { bytes: &bytes[..bytes.len().min(limit)], position: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn bytes(&mut self, len: u64, what: &str) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.position..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(bytes) => {
                self.position += bytes.len();
                Ok(bytes)
            }
            None => Err(format!("{what} needs {len} bytes, and the header has {} left", rest.len())),
        }
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let bytes = self.bytes(N as u64, what)?;
        Ok(*bytes.first_chunk().expect("as many as were asked for"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A length and as many bytes of UTF-8. Other bytes become U+FFFD: nothing hangs on a description's spelling, and
    /// tokens that thereby become equal are found by the tokenizer.
    pub(super) fn text(&mut self, what: &str) -> Result<String, String> {
        let len = self.u64(what)?;
        Ok(String::from_utf8_lossy(self.bytes(len, what)?).into_owned())
    }

    /// The same of a name: what errors repeat is not as long as a file likes.
    pub(super) fn name(&mut self, what: &str) -> Result<String, String> {
        let name = self.text(what)?;
        match name.len() {
            0..=MAX_NAME_BYTES => Ok(name),
            len => Err(format!("{what}: a name of {len} bytes; at most {MAX_NAME_BYTES}")),
        }
    }

    /// Fails unless there is room for `count` things of at least `least_bytes` each.
    pub(super) fn expect(&self, count: u64, least_bytes: u64, what: &str) -> Result<(), String> {
        let left = self.bytes.len() - self.position;
        match count.checked_mul(least_bytes) {
            Some(needed) if needed <= left as u64 => Ok(()),
            _ => Err(format!(
                "{what}: {count} of them need more than the {left} bytes that the header has left"
            )),
        }
    }
}
