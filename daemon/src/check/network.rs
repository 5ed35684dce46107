//! The configured network: its plugins, and one address taken and given back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use zcri_cni::{Attachment, Cni, CniDirs, NetworkList, pod_args};
use zcri_config::{Config, NetworkIsolation, PlatformKind};
use zcri_sys::cgroup::Tree;
use zcri_sys::namespace::{self, PodNamespaces};

use super::groups;
use super::report::Area;
use super::scratch::Scratch;
use super::zos;
use super::{Privilege, advice_on};
use crate::error::Chain;
use crate::runtime::STACK_AFFINITY;

/// More than a plugin should need; a check must not hang with it.
const PLUGIN_MAX: Duration = Duration::from_secs(20);
/// What to do about a plugin that refuses.
const MEND: &str = "what the plugin says has to be mended: no pod gets a network until then";
/// The interface in the scratch namespace.
const INTERFACE: &str = "eth0";

pub(super) async fn check(config: &Config, scratch: &Scratch, area: &mut Area<'_>) {
    let Some(cni) = cni(config, scratch) else {
        area.skip("all", "there is no directory for records of attachments");
        return;
    };
    let list = match cni.load() {
        Ok(list) => list,
        Err(error) => {
            area.fail(
                "configuration",
                Chain(&error).to_string(),
                format!(
                    "put a conflist into {}; pods with the host's network run without",
                    config.network.conf_dir.display()
                ),
            );
            return;
        }
    };
    area.pass(
        "configuration",
        format!("{} in {}", list.name(), list.file().display()),
    );
    if config.platform.kind == PlatformKind::Zos {
        zos::stack(config, list.file(), area);
    }
    for skipped in list.skipped() {
        area.warn(
            "configuration",
            format!("{}: {}", skipped.path.display(), skipped.reason),
            "it is passed over: mend or remove it",
        );
    }
    if !plugins(config, &list, area).await {
        return;
    }
    if let Err(error) = list.status().await {
        let words = Chain(&error).to_string();
        let advice = advice_on(config.platform.kind, &words, MEND);
        area.fail("STATUS", words, advice);
        return;
    }
    let speaks = if list.version().as_str() >= "1.1" {
        "the plugins are ready"
    } else {
        "the plugins are there (before CNI 1.1 they are not asked)"
    };
    area.pass("STATUS", speaks);
    address(config, scratch, &list, area).await;
}

/// Whether all plugins are there and can be started.
async fn plugins(config: &Config, list: &NetworkList, area: &mut Area<'_>) -> bool {
    match list.versions().await {
        Ok(all) => {
            for (plugin, versions) in all {
                let newest = versions.last().map_or("no version", String::as_str);
                area.pass(plugin, format!("speaks CNI up to {newest}"));
            }
            true
        }
        Err(error) => {
            let dirs = &config.network.plugin_dirs;
            let dirs: Vec<_> = dirs.iter().map(|d| d.display().to_string()).collect();
            area.fail(
                "plugins",
                Chain(&error).to_string(),
                format!("install it into one of {}", dirs.join(", ")),
            );
            false
        }
    }
}

async fn address(config: &Config, scratch: &Scratch, list: &NetworkList, area: &mut Area<'_>) {
    let what = "address";
    let wanted = if on_the_stack(config) {
        // It is active for a moment, as that of a pod which ends at once.
        stack_attachment(config, scratch)
    } else {
        let Some(netns) = scratch.state().map(|dir| dir.join("netns")) else {
            return area.skip(what, "there is no directory for a network namespace");
        };
        let namespaces = PodNamespaces {
            net: Some(netns.clone()),
            ..PodNamespaces::default()
        };
        if let Err(error) = namespace::create(&namespaces) {
            let advice = Privilege::Network.advice(config.platform.kind);
            return area.fail(what, Chain(&error).to_string(), advice);
        }
        attachment(scratch, netns)
    };
    let before = interfaces();
    let advice = |words: &str| advice_on(config.platform.kind, words, MEND);
    let attached = list.add(&wanted).await;
    match &attached {
        Ok(result) => {
            let ips: Vec<_> = result.pod_ips().map(|ip| ip.to_string()).collect();
            if ips.is_empty() {
                area.warn(
                    what,
                    "the plugins gave none",
                    "a pod without an address is not ready",
                );
            } else {
                area.pass(what, format!("{} was given", ips.join(", ")));
            }
        }
        Err(error) => {
            let words = Chain(error).to_string();
            area.fail(what, &words, advice(&words));
        }
    }
    // Also after a failure: what could not be undone is tried once more.
    match detach(config, scratch).await {
        Ok(()) if attached.is_ok() => area.pass("address back", "given back"),
        Ok(()) => {}
        Err(words) => area.fail("address back", &words, advice(&words)),
    }
    let new: Vec<_> = interfaces()
        .into_iter()
        .filter(|i| !before.contains(i))
        .collect();
    if !new.is_empty() {
        area.pass(
            "interfaces",
            format!("{} stays, as after the first pod", new.join(", ")),
        );
    }
}

fn on_the_stack(config: &Config) -> bool {
    match config.network.isolation {
        NetworkIsolation::Namespace => false,
        NetworkIsolation::Stack => true,
        NetworkIsolation::Auto => config.platform.kind == PlatformKind::Zos,
    }
}

/// An attachment to the node's own stack. The plugin makes the control group where there are such, and removes it.
fn stack_attachment(config: &Config, scratch: &Scratch) -> Attachment {
    let token = config.network.netns_token.replace("{id}", &id(scratch));
    let mut attachment = attachment(scratch, token.into());
    if Tree::detect().is_ok_and(|tree| tree.unified().is_some()) {
        let group = groups::hello_path(config, &format!("{}-net", scratch.name()));
        attachment.runtime_config.cgroup_path = Some(group.in_tree());
    }
    attachment
}

fn attachment(scratch: &Scratch, netns: PathBuf) -> Attachment {
    let name = scratch.name();
    Attachment {
        container_id: id(scratch),
        netns,
        ifname: INTERFACE.to_owned(),
        args: pod_args("zcri", name, name, &id(scratch)),
        runtime_config: Default::default(),
    }
}

fn id(scratch: &Scratch) -> String {
    format!("zcrid-{}", scratch.name())
}

async fn detach(config: &Config, scratch: &Scratch) -> Result<(), String> {
    let Some(cni) = cni(config, scratch) else {
        return Ok(());
    };
    let deleted = cni.delete(&id(scratch)).await;
    deleted.map_err(|e| Chain(&e).to_string())
}

/// Gives back what an interrupted check holds.
pub(super) async fn undo(config: &Config, scratch: &Scratch) {
    if let Err(error) = detach(config, scratch).await {
        eprintln!("zcrid: the address of the check could not be given back: {error}");
    }
}

/// Ends the plugins and gives back the address that a killed check left in its directory.
pub(super) async fn recover(config: &Config, dir: &Path) {
    let cni = cni_at(config, dir);
    let ended = cni.end_leftovers().await;
    let keys = cni.attachments().await.unwrap_or_default();
    for key in keys {
        if let Err(error) = cni.delete(&key.container_id).await {
            eprintln!(
                "zcrid: the address of a killed check could not be given back: {}",
                Chain(&error)
            );
        }
    }
    if let Err(error) = ended {
        eprintln!("zcrid: plugins of a killed check: {}", Chain(&error));
    }
}

fn cni(config: &Config, scratch: &Scratch) -> Option<Cni> {
    Some(cni_at(config, scratch.root()?))
}

/// With records of its own: those of a zcrid that runs are none of its business.
fn cni_at(config: &Config, dir: &Path) -> Cni {
    let dirs = CniDirs {
        conf_dir: config.network.conf_dir.clone(),
        plugin_dirs: config.network.plugin_dirs.clone(),
        cache_dir: dir.join("cni"),
    };
    let affinity = config.network.stack_name.iter();
    let affinity = affinity.map(|name| (STACK_AFFINITY, name.into()));
    Cni::with_environment(
        dirs,
        config.network.plugin_timeout.min(PLUGIN_MAX),
        affinity,
    )
}

fn interfaces() -> Vec<String> {
    let entries = std::fs::read_dir(Path::new("/sys/class/net"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with("veth"))
        .collect()
}
