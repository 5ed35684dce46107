//! Configurations as they stand in records: encoded as they travel.

use prost::Message as _;
use zcri_proto::v1 as api;

use super::{ConvertError, container_config, pod_config, resources, resources_to_proto};
use crate::error::{Error, Result};
use crate::node::WireFormat;

/// The functions that the domain borrows.
pub const WIRE_FORMAT: WireFormat = WireFormat {
    decode_pod: |bytes| Ok(pod_config(&decode(bytes)?)?),
    decode_container: |bytes| Ok(container_config(&decode(bytes)?)?),
    decode_resources: |bytes| Ok(resources("resources", &decode(bytes)?)?),
    encode_resources: |given| {
        let message: api::LinuxContainerResources = resources_to_proto(given);
        message.encode_to_vec()
    },
    with_pod_resources: |bytes, (overhead, resources)| {
        let mut config: api::PodSandboxConfig = decode(bytes)?;
        let linux = config.linux.get_or_insert_default();
        linux.overhead = overhead.map(resources_to_proto);
        linux.resources = resources.map(resources_to_proto);
        Ok(config.encode_to_vec())
    },
};

fn decode<T: prost::Message + Default>(bytes: &[u8]) -> Result<T> {
    T::decode(bytes).map_err(|e| Error::node("decode a configuration", e))
}

impl From<ConvertError> for Error {
    fn from(error: ConvertError) -> Self {
        Error::Request(error.to_string())
    }
}
