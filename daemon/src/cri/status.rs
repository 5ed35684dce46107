//! The one table from domain errors to the gRPC codes that the kubelet switches on.

use tonic::{Code, Status};
use zcri_image::ImageError;

use crate::error::{Chain, Error};

/// The code and the whole chain of causes as the message.
pub(super) fn to_status(error: &Error) -> Status {
    Status::new(code(error), shortened(Chain(error).to_string()))
}

/// A message travels in a header, percent-encoded, and a client that finds its headers too long sees nothing of it.
const MESSAGE_BYTES: usize = 4096;
/// Of one that is too long both ends are shown: the field at its beginning, and at its end what is wrong with it.
const END_BYTES: usize = 1024;

fn shortened(message: String) -> String {
    if message.len() <= MESSAGE_BYTES {
        return message;
    }
    let start = message.floor_char_boundary(MESSAGE_BYTES - END_BYTES);
    let end = message.ceil_char_boundary(message.len() - END_BYTES);
    let (first, last) = (message.get(..start), message.get(end..));
    format!(
        "{} [{} bytes] {}",
        first.unwrap_or_default(),
        end - start,
        last.unwrap_or_default()
    )
}

fn code(error: &Error) -> Code {
    match error {
        Error::NotFound { .. } => Code::NotFound,
        // Not UNIMPLEMENTED: clients take that for the whole RPC.
        Error::Invalid { .. } | Error::Request(_) | Error::Unsupported { .. } => {
            Code::InvalidArgument
        }
        Error::State { .. } => Code::FailedPrecondition,
        Error::ExecTimeout { .. } => Code::DeadlineExceeded,
        // As containerd and CRI-O answer ExecSync. To the kubelet's exec probe any error is an unknown state.
        Error::Program { .. } => Code::Unknown,
        Error::Gone { .. } => Code::Aborted,
        Error::Exhausted { .. } => Code::ResourceExhausted,
        Error::Image { source, .. } => image_code(source),
        Error::Shared(error) => code(error),
        // Not PERMISSION_DENIED: it is the daemon that may not, not the caller.
        Error::Authority { .. } => Code::Internal,
        Error::Network { .. } | Error::Runtime { .. } | Error::Node { .. } => {
            if error.is_out_of_space() {
                Code::ResourceExhausted
            } else {
                Code::Internal
            }
        }
    }
}

fn image_code(error: &ImageError) -> Code {
    match error {
        ImageError::InvalidReference { .. }
        | ImageError::AmbiguousId { .. }
        | ImageError::InvalidCredentials { .. }
        | ImageError::InvalidManifest { .. }
        | ImageError::UnsupportedMediaType { .. }
        | ImageError::WrongPlatform { .. } => Code::InvalidArgument,
        ImageError::NotFound { .. }
        | ImageError::UnknownImage { .. }
        | ImageError::UnknownLayer { .. } => Code::NotFound,
        ImageError::Unauthorized { status: 401, .. } => Code::Unauthenticated,
        ImageError::Unauthorized { .. }
        | ImageError::Blocked { .. }
        | ImageError::Refused { .. } => Code::PermissionDenied,
        ImageError::RateLimited { .. }
        | ImageError::LimitExceeded { .. }
        | ImageError::DiskFull { .. } => Code::ResourceExhausted,
        ImageError::Unreachable { .. } | ImageError::RegistryFailed { .. } => Code::Unavailable,
        ImageError::DigestMismatch { .. }
        | ImageError::WrongSize { .. }
        | ImageError::UnsafePath { .. }
        | ImageError::InvalidLayer { .. }
        | ImageError::BrokenRecord { .. } => Code::DataLoss,
        ImageError::ReadOnly { .. } => Code::FailedPrecondition,
        ImageError::Interrupted { .. } => Code::Aborted,
        ImageError::BadEndpoint { .. } | ImageError::Attribute { .. } | ImageError::Io { .. } => {
            Code::Internal
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_keep_both_ends() {
        let short = "a".repeat(MESSAGE_BYTES);
        assert_eq!(shortened(short.clone()), short);
        for filler in ["x", "\u{20ac}"] {
            let text = shortened(format!(
                "config.field: {}: too long",
                filler.repeat(100_000)
            ));
            assert!(text.len() < MESSAGE_BYTES + 64, "{}", text.len());
            assert!(text.starts_with("config.field: ") && text.ends_with(": too long"));
        }
    }
}
