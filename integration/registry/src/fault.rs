//! What a repository can be told to do wrong, and the bookkeeping of faults that end after some requests.

use std::time::Duration;

/// For the `times` of a [`Fault`]: it never ends.
pub const FOREVER: u32 = u32::MAX;

/// A way to misbehave. A repository can have several at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Requests need a bearer token from `/token`, for this repository. Without `user` anyone gets one; with it,
    /// `/token` wants these basic credentials, or the `identity_token` as an OAuth2 refresh token.
    Token {
        /// Name and password.
        user: Option<(String, String)>,
        /// The refresh token that is taken instead of name and password.
        identity_token: Option<String>,
    },
    /// Requests need basic credentials.
    Basic {
        /// Name.
        user: String,
        /// Password.
        password: String,
    },
    /// 401 with a basic challenge, whatever the credentials.
    Unauthorized,
    /// 403 to everything.
    Forbidden,
    /// 404 to everything.
    NotFound,
    /// 429 with `Retry-After` to the next `times` requests.
    TooManyRequests {
        /// How many requests.
        times: u32,
        /// Whole seconds for the header.
        retry_after: Duration,
    },
    /// 500 to the next `times` requests.
    ServerError {
        /// How many requests.
        times: u32,
    },
    /// The connection breaks after `after` bytes of the body of a blob that is longer.
    TruncateBlob {
        /// Bytes that arrive.
        after: usize,
        /// How many responses.
        times: u32,
    },
    /// One byte of a blob is inverted; blobs that end before it are whole.
    CorruptBlob {
        /// Offset of the byte in the whole blob.
        at: usize,
        /// How many responses.
        times: u32,
    },
    /// Manifests are sent with one byte (a space at the end) too many, under their right digest.
    CorruptManifest,
    /// `Docker-Content-Digest` names something else.
    WrongDigestHeader,
    /// Bodies of blobs arrive at this pace.
    SlowBlobs {
        /// Bytes in a second.
        bytes_per_second: usize,
    },
    /// Requests are read and never answered.
    Silent,
    /// Requests for blobs are read and never answered; manifests are served.
    SilentBlobs,
    /// Blobs answer 307 to another path that refuses an `Authorization` header, as object stores do.
    RedirectBlobs,
    /// Ranges are ignored: a whole blob with 200.
    NoRanges,
}

impl Fault {
    /// Counts one use of a fault of limited life. False: it is used up.
    pub(crate) fn take(&mut self) -> bool {
        let (Self::TooManyRequests { times, .. }
        | Self::ServerError { times }
        | Self::TruncateBlob { times, .. }
        | Self::CorruptBlob { times, .. }) = self
        else {
            return true;
        };
        match *times {
            0 => false,
            FOREVER => true,
            left => {
                *times = left - 1;
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_faults_end() {
        let mut fault = Fault::ServerError { times: 2 };
        assert_eq!(
            [fault.take(), fault.take(), fault.take()],
            [true, true, false]
        );
        let mut always = Fault::ServerError { times: FOREVER };
        assert!((0..5).all(|_| always.take()));
    }
}
