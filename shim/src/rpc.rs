//! Calls, their answers and errors, as ttrpc carries them.

use containerd_shim_protos::ttrpc::proto as wire;
use protobuf::Message;
pub(crate) use wire::Code;

use crate::ttrpc::{self, RESPONSE};

/// A request that waits for its answer: which connection, which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) connection: u64,
    pub(crate) stream: u32,
}

/// A refusal: a code of gRPC's table and words for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct RpcError {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl RpcError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(Code::NOT_FOUND, format!("{what} {id:?} not found"))
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, message)
    }
}

/// The payload of an answer.
pub(crate) type Answer = Result<Vec<u8>, RpcError>;

/// Serialises a message; a message of this service always can be.
pub(crate) fn answer(message: &impl Message) -> Answer {
    message
        .write_to_bytes()
        .map_err(|e| RpcError::internal(format!("encode the answer: {e}")))
}

/// The answer `google.protobuf.Empty`.
pub(crate) fn empty() -> Answer {
    Ok(Vec::new())
}

/// Parses the payload of a request.
pub(crate) fn parse<M: Message>(payload: &[u8]) -> Result<M, RpcError> {
    M::parse_from_bytes(payload).map_err(|e| RpcError::invalid(format!("malformed request: {e}")))
}

/// Appends the frame of an answer.
pub(crate) fn encode_answer(out: &mut Vec<u8>, stream: u32, answer: Answer) {
    let mut response = wire::Response::new();
    let mut status = wire::Status::new();
    match answer {
        // Peers read an absent status as OK; ttrpc-go always sends one.
        Ok(payload) => response.payload = payload,
        Err(error) => {
            status.code = error.code.into();
            status.message = error.message;
        }
    }
    response.status = Some(status).into();
    let encoded = response.write_to_bytes().unwrap_or_default();
    if ttrpc::encode(out, stream, RESPONSE, 0, &encoded).is_err() {
        let error = RpcError::new(
            Code::RESOURCE_EXHAUSTED,
            "the answer is larger than a ttrpc message may be",
        );
        encode_answer(out, stream, Err(error));
    }
}
