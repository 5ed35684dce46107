//! Annotations that shims and runtimes of the field read.

use std::collections::HashMap;

use super::SpecInput;

/// Ids that the daemon gave.
#[derive(Debug, Clone, Copy)]
pub struct Ids<'a> {
    /// The pod sandbox.
    pub pod: &'a str,
    /// The container.
    pub container: &'a str,
}

/// The names under which containerd's shims (kata, gVisor) look for what a container belongs to.
///
/// Annotations of the request do not go in: runtimes take some of them as commands (crun: `run.oci.*`), and whoever
/// may create a pod must not gain those.
pub(super) fn annotations(input: &SpecInput<'_>) -> HashMap<String, String> {
    const PREFIX: &str = "io.kubernetes.cri.";
    let image = &input.container.image;
    let image_name = if image.user_specified.is_empty() {
        &image.image
    } else {
        &image.user_specified
    };
    [
        ("container-type", "container"),
        ("container-name", &input.container.name),
        ("image-name", image_name),
        ("sandbox-id", input.ids.pod),
        ("sandbox-name", &input.pod.name),
        ("sandbox-namespace", &input.pod.namespace),
        ("sandbox-uid", &input.pod.uid),
    ]
    .into_iter()
    .map(|(key, value)| (format!("{PREFIX}{key}"), value.to_owned()))
    .collect()
}
