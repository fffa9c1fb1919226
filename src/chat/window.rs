//! [`Window`]: the end of a text that may be the beginning of a marker.

/// Characters held back because a marker may begin with them.
#[derive(Debug, Default, Clone)]
pub(super) struct Window {
    text: String,
}

/// What a window is, measured against some markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It is this marker.
    Whole(&'static str),
    /// More is needed to tell.
    Beginning,
    /// None of them begins like this.
    Neither,
}

impl Window {
    pub(super) fn push(&mut self, c: char) {
        self.text.push(c);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Compares with `markers`. One that is the beginning of another is whole only once the other is out of the
    /// question: see [`longest`](Self::longest).
    pub(super) fn look(&self, markers: impl IntoIterator<Item = &'static str>) -> Look {
        let mut look = Look::Neither;
        for marker in markers.into_iter().filter(|marker| marker.starts_with(&self.text)) {
            if marker.len() > self.text.len() {
                return Look::Beginning;
            }
            look = Look::Whole(marker);
        }
        look
    }

    /// The longest marker that the window begins with.
    pub(super) fn longest(&self, markers: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
        let begun = markers.into_iter().filter(|marker| self.text.starts_with(marker));
        begun.max_by_key(|marker| marker.len())
    }

    /// The first character.
    pub(super) fn first(&self) -> Option<char> {
        self.text.chars().next()
    }

    /// Takes the first character off, which belongs to no marker.
    pub(super) fn pop_first(&mut self) -> Option<char> {
        (!self.text.is_empty()).then(|| self.text.remove(0))
    }

    /// All of it; the window is empty then.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.text)
    }
}
