//! Flow control (SPDY draft 3.1, section 2.6.8), with peers that have it and with those that have not.
//!
//! Go's spdystream, the only client that matters here, knows the frames and ignores them: it neither sends
//! WINDOW_UPDATE nor heeds it. A server that kept to the window would stop after 64 KiB for ever. So windows are
//! counted from the begin, but kept to only once the peer has shown that it has them, by a WINDOW_UPDATE or by a
//! setting of the initial window. Towards the peer the server always keeps the rules: it grants what its buffers
//! hold, and what a peer sends beyond that waits in the kernel.

use crate::limits::{FRAME_SIZE, STREAM_BUFFER};

/// The window with which every stream, and the connection, begins.
pub(crate) const INITIAL: u32 = 64 * 1024;

/// No window may grow beyond it.
pub(crate) const MAX: i64 = i32::MAX as i64;

/// What the connection as a whole may have on its way: streams have bounds of their own, this one only must not slow
/// them down.
const CONNECTION_GRANT: u32 = 1024 * 1024;

const _: () = assert!(STREAM_BUFFER >= INITIAL as usize && FRAME_SIZE <= STREAM_BUFFER);

/// What a peer may send, and how much of that was granted anew.
#[derive(Debug)]
pub(crate) struct Grant {
    /// Taken since the last grant.
    taken: u32,
    /// The window that is aimed at; nothing was granted yet while it is none.
    begun: bool,
    size: u32,
}

impl Grant {
    /// For one stream: as much as its buffer holds.
    pub(crate) fn stream() -> Self {
        Self {
            taken: 0,
            begun: false,
            size: u32::try_from(STREAM_BUFFER).unwrap_or(INITIAL),
        }
    }

    /// For the connection.
    pub(crate) fn connection() -> Self {
        Self {
            taken: 0,
            begun: false,
            size: CONNECTION_GRANT,
        }
    }

    /// `length` bytes were taken from the peer. What to grant now: seldom, half a window at a time; the first time
    /// at once, and as much more as the window is larger than the initial one.
    pub(crate) fn take(&mut self, length: usize) -> Option<u32> {
        self.taken = self
            .taken
            .saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        let mut grant = self.taken;
        if !self.begun {
            self.begun = true;
            grant += self.size - INITIAL;
        } else if grant < self.size / 2 {
            return None;
        }
        self.taken = 0;
        (grant > 0).then_some(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_widened_at_once_and_then_kept() {
        let mut grant = Grant::connection();
        assert_eq!(grant.take(10), Some(10 + CONNECTION_GRANT - INITIAL));
        assert_eq!(grant.take(100), None);
        let half = CONNECTION_GRANT as usize / 2;
        assert_eq!(grant.take(half), Some(100 + CONNECTION_GRANT / 2));
        assert_eq!(grant.take(1), None);
    }
}
