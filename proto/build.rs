//! Compiles the CRI definition with protox, so that no `protoc` is needed on the build machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/api.proto");
    let descriptors = protox::compile(["proto/api.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Verbose statuses show what was asked for as JSON, with the names of api.proto.
        .type_attribute(".", "#[derive(serde::Serialize)]")
        // Bytes in the interface, text in every sensible container.
        .field_attribute(
            ".runtime.v1.KeyValue.value",
            "#[serde(serialize_with = \"crate::as_text\")]",
        )
        .compile_fds(descriptors)?;
    Ok(())
}
