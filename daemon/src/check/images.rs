//! The files that decide where images come from and which are let in.

use zcri_config::auth::AuthFile;
use zcri_config::registries::Registries;
use zcri_config::{Config, PlatformKind};
use zcri_image::{AdditionalStores, Platform};

use super::policy::{self, PolicyFile};
use super::report::Area;
use crate::error::Chain;

pub(super) fn check(config: &Config, area: &mut Area<'_>) {
    let platform = config.platform.image.resolve();
    area.pass("platform", platform.to_string());
    let path = &config.image.registries_conf;
    let found = match Registries::load(path) {
        Ok(_) if path.exists() => Ok(path.display().to_string()),
        Ok(_) => Ok(format!(
            "{} is not there: every registry by its name",
            path.display()
        )),
        Err(error) => Err(Chain(&error).to_string()),
    };
    area.verdict(
        "registries.conf",
        found,
        "mend it: containers-registries.conf(5)",
    );
    if let Some(path) = &config.image.auth_file {
        let found = AuthFile::load(path)
            .map(|_| path.display().to_string())
            .map_err(|e| Chain(&e).to_string());
        area.verdict(
            "auth.json",
            found,
            "mend it: containers-auth.json(5), or set [image] auth_file",
        );
    }
    signatures(config, area);
    additional_stores(config, area);
}

/// Stores of Podman that images are used from, where this node has none of the name itself.
fn additional_stores(config: &Config, area: &mut Area<'_>) {
    let platform = config.platform.image.resolve();
    let named = platform.to_string();
    let platform = Platform {
        os: platform.os,
        architecture: platform.architecture,
        variant: platform.variant,
    };
    for dir in &config.image.additional_stores {
        let what = format!("{} (additional store)", dir.display());
        match std::fs::read_dir(dir) {
            Ok(_) => {
                let store = AdditionalStores::new([dir.clone()], platform.clone());
                let count = store.list().len();
                area.pass(what, format!("{count} images for {named}"));
            }
            Err(error) => area.warn(
                what,
                error.to_string(),
                "mount it (zOSCP: Podman's store, read-only), or take it out of [image] additional_stores: its images \
                 are pulled instead",
            ),
        }
    }
}

fn signatures(config: &Config, area: &mut Area<'_>) {
    let path = &config.image.policy;
    let what = "policy.json";
    match policy::load(path) {
        PolicyFile::Good { rejects_all: true } => area.warn(
            what,
            format!("{} rejects every image", path.display()),
            "admit your registries, for example with `podman image trust set`",
        ),
        PolicyFile::Good { rejects_all: false } => area.pass(what, path.display().to_string()),
        PolicyFile::Absent if config.platform.kind == PlatformKind::Zos => area.fail(
            what,
            format!("{} is not there: no image is let in", path.display()),
            "make it: containers-policy.json(5), such as {\"default\":[{\"type\":\"reject\"}],\"transports\":{\"docker\":\
             {\"icr.io/zoscp\":[{\"type\":\"insecureAcceptAnything\"}]}}}",
        ),
        PolicyFile::Absent => area.warn(
            what,
            format!("{} is not there", path.display()),
            "make it, at least {\"default\":[{\"type\":\"insecureAcceptAnything\"}]}, to say what is wanted",
        ),
        PolicyFile::Bad(reason) => area.fail(
            what,
            format!("{}: {reason}", path.display()),
            "mend it: containers-policy.json(5). Until then no image is let in",
        ),
    }
}
