//! The CRI socket: who may use it. Whoever may is root on this node.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use zcri_config::Config;

use super::report::Area;
use crate::cri::server::group_id;

pub(super) fn check(config: &Config, area: &mut Area<'_>) {
    let path = &config.api.listen;
    mode(config, area);
    match path.parent() {
        Some(dir) => directory(dir, area),
        None => area.fail("directory", "none", "set [api] listen"),
    }
    match UnixStream::connect(path) {
        Ok(_) => served(config, area),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            area.pass("zcrid", "does not run; it makes the socket when it starts");
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            area.warn(
                "zcrid",
                format!("{} is there and nobody answers", path.display()),
                "start zcrid: it replaces the socket",
            );
        }
        Err(e) => area.fail(
            "zcrid",
            format!("{}: {e}", path.display()),
            "remove what is in the way, or set [api] listen",
        ),
    }
}

fn mode(config: &Config, area: &mut Area<'_>) {
    let mode = config.api.socket_mode;
    let found = format!(
        "{mode:04o} {}",
        config.api.socket_group.as_deref().unwrap_or("(own group)")
    );
    if mode & 0o006 == 0 {
        area.pass("mode", found);
    } else {
        area.warn(
            "mode",
            found,
            "everybody on this node may do what root may: set [api] socket_mode = \"0660\"",
        );
    }
    if let Some(name) = &config.api.socket_group {
        match group_id(name) {
            Ok(Some(number)) => area.pass("group", format!("{name} is {number}")),
            Ok(None) => area.fail(
                "group",
                format!("there is no group {name}"),
                "make it, or set [api] socket_group",
            ),
            Err(error) => area.fail("group", format!("/etc/group: {error}"), ""),
        }
    }
}

/// Who may write to the directory may put another socket in the place of this one.
fn directory(dir: &Path, area: &mut Area<'_>) {
    const STICKY: u32 = 0o1000;
    match std::fs::metadata(dir) {
        Ok(meta) if !meta.is_dir() => {
            area.fail(
                dir.display().to_string(),
                "not a directory",
                "set [api] listen",
            );
        }
        Ok(meta) if meta.mode() & 0o002 != 0 && meta.mode() & STICKY == 0 => area.warn(
            dir.display().to_string(),
            format!("everybody may write to it ({:04o})", meta.mode() & 0o7777),
            format!("chmod o-w {}", dir.display()),
        ),
        Ok(meta) => area.pass(
            dir.display().to_string(),
            format!("{:04o}", meta.mode() & 0o7777),
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            area.pass(dir.display().to_string(), "zcrid makes it when it starts");
        }
        Err(e) => area.fail(dir.display().to_string(), e.to_string(), "set [api] listen"),
    }
}

fn served(config: &Config, area: &mut Area<'_>) {
    let Ok(meta) = std::fs::metadata(&config.api.listen) else {
        return area.pass("zcrid", "answers");
    };
    let mode = meta.mode() & 0o777;
    if !meta.file_type().is_socket() {
        area.fail("zcrid", "what answers is no socket", "");
    } else if mode == config.api.socket_mode {
        area.pass("zcrid", "answers");
    } else {
        area.warn(
            "zcrid",
            format!("answers on a socket with mode {mode:04o}"),
            "restart zcrid: the configuration was changed since its start",
        );
    }
}
