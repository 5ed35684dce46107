//! The one table from domain errors to the gRPC codes that the kubelet switches on.

use tonic::{Code, Status};
use zcri_image::ImageError;

use crate::error::{Chain, Error};

/// The code and the whole chain of causes as the message.
pub(super) fn to_status(error: &Error) -> Status {
    Status::new(code(error), Chain(error).to_string())
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
        Error::Gone { .. } => Code::Aborted,
        Error::Exhausted { .. } => Code::ResourceExhausted,
        Error::Image { source, .. } => image_code(source),
        Error::Shared(error) => code(error),
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
        ImageError::Unauthorized { .. } | ImageError::Blocked { .. } => Code::PermissionDenied,
        ImageError::RateLimited { .. }
        | ImageError::LimitExceeded { .. }
        | ImageError::DiskFull { .. } => Code::ResourceExhausted,
        ImageError::Unreachable { .. } | ImageError::RegistryFailed { .. } => Code::Unavailable,
        ImageError::DigestMismatch { .. }
        | ImageError::WrongSize { .. }
        | ImageError::UnsafePath { .. }
        | ImageError::InvalidLayer { .. }
        | ImageError::BrokenRecord { .. } => Code::DataLoss,
        ImageError::Interrupted { .. } => Code::Aborted,
        ImageError::BadEndpoint { .. } | ImageError::Attribute { .. } | ImageError::Io { .. } => {
            Code::Internal
        }
    }
}
