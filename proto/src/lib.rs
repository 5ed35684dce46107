//! The Kubernetes Container Runtime Interface, version `v1`, as generated Rust types.
//!
//! No logic lives here. `proto/api.proto` says which version of the interface this is and where it comes from.
#![forbid(unsafe_code)]

/// Package `runtime.v1`: messages, clients and servers of RuntimeService and ImageService.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    rustdoc::all,
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

fn as_text<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}
