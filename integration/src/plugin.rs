//! CNI plugins of a test's own: shell scripts on a real node.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{TestNode, binaries};

/// Puts a plugin into the node's plugin directory. It answers VERSION; `script` does the rest, with the command in
/// `$CNI_COMMAND`, and `$result` to write as the result of an ADD.
///
/// # Errors
/// It cannot be written.
pub fn install(node: &TestNode, name: &str, script: &str) -> Result<()> {
    let path = node.files().plugins.join(name);
    let text = format!(
        "#!/bin/sh\n\
         result='{{\"cniVersion\":\"1.0.0\",\"ips\":[]}}'\n\
         if [ $CNI_COMMAND = VERSION ]; then\n\
           echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\",\"1.1.0\"]}}'; exit 0\n\
         fi\n\
         fail() {{ echo \"{{\\\"cniVersion\\\":\\\"1.0.0\\\",\\\"code\\\":$1,\\\"msg\\\":\\\"$2\\\",\\\"details\\\":\\\"$3\\\"}}\"; exit 1; }}\n\
         {script}\n"
    );
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Adds a plugin to the end of the node's chain.
///
/// # Errors
/// The node has no configuration.
pub fn chain(node: &TestNode, plugin: Value) -> Result<()> {
    edit(node, |list| {
        list["plugins"]
            .as_array_mut()
            .context("a conflist")?
            .push(plugin);
        Ok(())
    })
}

/// The node's chain is this plugin alone, with these capabilities, in version 1.1.0 of the specification.
///
/// # Errors
/// The node has no configuration.
pub fn only(node: &TestNode, plugin: &str, capabilities: &[&str]) -> Result<()> {
    let granted: serde_json::Map<_, _> = capabilities
        .iter()
        .map(|name| ((*name).to_owned(), json!(true)))
        .collect();
    edit(node, |list| {
        list["cniVersion"] = json!("1.1.0");
        list["plugins"] = json!([{ "type": plugin, "capabilities": granted }]);
        Ok(())
    })
}

fn edit(node: &TestNode, change: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
    let path = node.files().cni.join("10-test.conflist");
    let mut list: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    change(&mut list)?;
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, list.to_string())?;
    std::fs::rename(fresh, path)?;
    Ok(())
}

/// Addresses that host-local holds of the node's range.
pub fn leases(node: &TestNode) -> usize {
    let dir = node.files().dir.join("ipam").join(node.slot().name());
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("10."))
        .count()
}

/// The node's network is dvipa, with this configuration beside its ranges: the slot's subnet, and one of IPv6 for it.
///
/// # Errors
/// dvipa is not built, or a file cannot be written.
pub fn dvipa(node: &TestNode, config: Value, chained: &[Value]) -> Result<()> {
    let link = node.files().plugins.join("dvipa");
    if !link.exists() {
        std::os::unix::fs::symlink(binaries::ours("dvipa")?, link)?;
    }
    let mut plugin = json!({
        "type": "dvipa",
        "vipaRanges": [node.slot().subnet(), node.slot().subnet_v6()],
        "dataDir": node.files().dir.join("dvipa"),
        "stack": node.slot().name(),
        "capabilities": { "ips": true, "cgroupPath": true },
    });
    let own = plugin.as_object_mut().context("an object")?;
    own.extend(config.as_object().cloned().unwrap_or_default());
    let mut plugins = vec![plugin];
    plugins.extend_from_slice(chained);
    // Debian's plugins know no later version.
    let version = if chained.is_empty() { "1.1.0" } else { "1.0.0" };
    let list = json!({ "cniVersion": version, "name": node.slot().name(), "plugins": plugins });
    let path = node.files().cni.join("10-test.conflist");
    std::fs::write(path, list.to_string())?;
    Ok(())
}

/// The node's network is as in a sample of `config/cni`, but with the node's own ranges and directories.
///
/// # Errors
/// dvipa is not built, or the sample cannot be read.
pub fn sample(node: &TestNode, name: &str) -> Result<()> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../config/cni")
        .join(name);
    let text = std::fs::read_to_string(&path);
    let text = text.with_context(|| format!("reading {}", path.display()))?;
    let mut list: Value = serde_json::from_str(&text)?;
    let plugins = list["plugins"].as_array_mut().context("a conflist")?;
    let config = plugins.remove(0);
    let chained = std::mem::take(plugins);
    dvipa(node, without_ranges(config)?, &chained)
}

fn without_ranges(mut config: Value) -> Result<Value> {
    let keys = config.as_object_mut().context("a plugin")?;
    keys.remove("vipaRanges");
    Ok(config)
}
