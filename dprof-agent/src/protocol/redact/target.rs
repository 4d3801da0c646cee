//! Masks the target of an HTTP request: the path stays, and the names in its query.
//!
//! What a reader would get wrong: whether bytes are a name or a password shows only behind them (`=`, `@`). What
//! does not show within the same call is masked.

/// Stands for a byte: [`super::FILLER`] would begin a query.
const FILLER: u8 = b'x';

/// Where in the target the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// In the path, or in a scheme.
    #[default]
    Path,
    /// After `:/`, so far a scheme's.
    Slash,
    /// After `://`: a host, maybe a user before it.
    Authority,
    /// After `;` in a segment of the path.
    Parameter,
    /// In the name of a query's parameter.
    Name,
    /// In its value.
    Value,
    /// After `#`.
    Fragment,
}

/// A target that passes by.
#[derive(Debug, Default)]
pub(super) struct TargetMask {
    place: Place,
    last: u8,
    /// Whether the place stands whose end shows what it is.
    is_judged: bool,
    /// Whether what was judged is kept.
    is_kept: bool,
}

impl TargetMask {
    /// Looks at the bytes of the call from the next one on, when they say what the place is.
    pub(super) fn look_ahead(&mut self, bytes: &[u8]) {
        if self.is_judged {
            return;
        }
        let end = |ends: &[u8]| bytes.iter().position(|byte| ends.contains(byte));
        match self.place {
            Place::Name => {
                self.is_judged = true;
                self.is_kept = end(b"=&# \r\n").is_some_and(|end| bytes[end] == b'=');
            }
            Place::Authority => {
                let found = end(b"@/? \r\n").map(|end| bytes[end]);
                self.is_judged = found != Some(b'@');
                self.is_kept = found.is_some_and(|found| found != b'@');
            }
            _ => {}
        }
    }

    fn enter(&mut self, place: Place) {
        self.place = place;
        self.is_judged = false;
    }

    /// The byte to be written for `byte`.
    pub(super) fn pass(&mut self, byte: u8) -> u8 {
        let before = std::mem::replace(&mut self.last, byte);
        match (self.place, byte) {
            (Place::Fragment, _) => return FILLER,
            (_, b'#') => self.enter(Place::Fragment),
            (Place::Path | Place::Slash | Place::Parameter | Place::Authority, b'?')
            | (Place::Name | Place::Value, b'&') => self.enter(Place::Name),
            (Place::Path, b'/') if before == b':' => self.enter(Place::Slash),
            (Place::Slash, b'/') => self.enter(Place::Authority),
            (Place::Path | Place::Slash, b';') => self.enter(Place::Parameter),
            (Place::Parameter | Place::Authority, b'/') | (Place::Slash, _) => self.enter(Place::Path),
            (Place::Name, b'=') => self.enter(Place::Value),
            (Place::Authority, b'@') => self.is_judged = false,
            (Place::Authority | Place::Name, _) => return if self.is_kept { byte } else { FILLER },
            (Place::Parameter | Place::Value, _) => return FILLER,
            (Place::Path, _) => {}
        }
        byte
    }
}
