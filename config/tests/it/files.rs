//! Files: drop-ins, samples, and what `check` finds on a machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use zcri_config::{Config, ConfigError, HandlerType, PlatformKind};

fn directory(files: &[(&str, &str)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let main = dir.path().join("zcri.toml");
    (dir, main)
}

#[test]
fn drop_ins_are_merged_in_the_order_of_their_names() {
    let (dir, main) = directory(&[
        (
            "zcri.toml",
            "[api]\nlisten = \"/main\"\nsocket_mode = \"0600\"\n[image]\npinned = [\"a\", \"b\"]\n",
        ),
        (
            "zcri.toml.d/20-second.toml",
            "[api]\nlisten = \"/second\"\n[image]\npinned = [\"c\"]\n",
        ),
        (
            "zcri.toml.d/10-first.toml",
            "[api]\nlisten = \"/first\"\nsocket_group = \"g\"\n",
        ),
        (
            "zcri.toml.d/30-handler.toml",
            "[runtime.handlers.crun]\npath = \"/bin/crun\"\n[runtime.handlers.runc]\nroot = \"/r\"\n",
        ),
        (
            "zcri.toml.d/40-handler.toml",
            "[runtime.handlers.crun]\ntype = \"shim\"\n",
        ),
        ("zcri.toml.d/50-readme.txt", "not toml"),
        ("zcri.toml.d/.60-hidden.toml", "not toml"),
    ]);
    fs::create_dir(dir.path().join("zcri.toml.d/70-directory.toml")).unwrap();
    let config = Config::load(&main).unwrap();
    assert_eq!(config.api.listen, Path::new("/second"));
    assert_eq!(
        (config.api.socket_mode, config.api.socket_group.as_deref()),
        (0o600, Some("g"))
    );
    assert_eq!(config.image.pinned, ["c"], "arrays are replaced");
    let crun = &config.runtime.handlers["crun"];
    assert_eq!(
        (crun.path.to_str(), crun.kind),
        (Some("/bin/crun"), HandlerType::Shim)
    );
    assert_eq!(
        config.runtime.handlers["runc"].root.as_deref(),
        Some(Path::new("/r"))
    );
    let names = config
        .sources
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap());
    let expected = [
        "zcri.toml",
        "10-first.toml",
        "20-second.toml",
        "30-handler.toml",
        "40-handler.toml",
    ];
    assert_eq!(names.collect::<Vec<_>>(), expected);
}

#[test]
fn an_error_names_the_file_that_has_it() {
    let (dir, main) = directory(&[
        ("zcri.toml", "[api]\nlisten = \"/main\"\n"),
        (
            "zcri.toml.d/10-a.toml",
            "\n\n[api]\nlisten = \"wrong\"\nunknown = 1\n",
        ),
    ]);
    let error = Config::load(&main).unwrap_err().to_string();
    let file = dir.path().join("zcri.toml.d/10-a.toml");
    let lines = error.lines().collect::<Vec<_>>();
    assert!(
        lines[0].starts_with(&format!("{}:4: api.listen = \"wrong\": ", file.display())),
        "{error}"
    );
    assert!(
        lines[1].starts_with(&format!("{}:5: api.unknown: unknown key", file.display())),
        "{error}"
    );

    fs::write(&file, "x = ").unwrap();
    let error = Config::load(&main).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{}:1: ", file.display())),
        "{error}"
    );
}

#[test]
fn a_missing_file_is_an_error_unless_nobody_named_it() {
    let (dir, main) = directory(&[("zcri.toml.d/10-a.toml", "[log]\nlevel = \"debug\"\n")]);
    let error = Config::load(&main).unwrap_err();
    assert!(
        matches!(&error, ConfigError::Read { path, .. } if *path == main),
        "{error}"
    );
    let config = Config::load_or_default(&main).unwrap();
    assert_eq!(config.log.level.as_str(), "debug");
    fs::remove_dir_all(dir.path().join("zcri.toml.d")).unwrap();
    assert_eq!(Config::load_or_default(&main).unwrap(), Config::default());
}

#[test]
fn files_that_are_none_are_refused() {
    let (dir, main) = directory(&[]);
    fs::write(&main, b"[api]\nlisten = \"/\xff\"\n").unwrap();
    assert!(
        matches!(Config::load(&main), Err(ConfigError::Read { .. })),
        "not UTF-8"
    );
    fs::write(&main, vec![b'#'; 5 * 1024 * 1024]).unwrap();
    assert!(
        matches!(Config::load(&main), Err(ConfigError::Read { .. })),
        "too large"
    );
    assert!(
        matches!(Config::load(dir.path()), Err(ConfigError::Read { .. })),
        "a directory"
    );
    assert!(
        matches!(
            Config::load(Path::new("/dev/zero")),
            Err(ConfigError::Read { .. })
        ),
        "endless"
    );
}

#[test]
fn the_samples_are_valid() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let linux = Config::load(&samples.join("zcri.linux.toml")).unwrap();
    assert_eq!(
        linux.runtime.handlers["runc"].path,
        Path::new("/usr/sbin/runc")
    );
    assert_eq!(
        linux.runtime.handlers["crun"].path,
        Path::new("/usr/bin/crun")
    );
    assert_eq!(linux.runtime.default_handler, "runc");
    let zos = Config::load(&samples.join("zcri.zos.toml")).unwrap();
    assert_eq!(zos.platform.kind, PlatformKind::Zos);
    assert_eq!(zos.platform.image.to_string(), "zos/s390x");
    assert!(
        zos.runtime
            .handlers
            .values()
            .all(|handler| handler.path.starts_with("/usr/lpp/IBM/zoscp/bin"))
    );
}

#[test]
fn check_finds_what_the_machine_lacks() {
    let (dir, main) = directory(&[
        ("plain", ""),
        (
            "registries.conf",
            "[[registry]]\nlocation = \"https://x\"\n",
        ),
        ("auth.json", "{"),
        ("net.d/x", ""),
    ]);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let text = format!(
        "[api]\nsocket_group = \"no-such-group\"\n[runtime]\nshim = \"{}\"\n\
         [runtime.handlers.runc]\npath = \"/bin/sh\"\n[runtime.handlers.crun]\npath = \"{}\"\n\
         [network]\nconf_dir = \"{}\"\nplugin_dirs = [\"{}\"]\n[image]\nregistries_conf = \"{}\"\nauth_file = \"{}\"\n",
        at("missing"),
        at("plain"),
        at("net.d/x"),
        at("missing"),
        at("registries.conf"),
        at("auth.json"),
    );
    fs::write(&main, text).unwrap();
    let problems = Config::load(&main).unwrap().check();
    let found = problems
        .iter()
        .map(|p| (p.key.as_str(), p.fatal))
        .collect::<Vec<_>>();
    let expected = [
        ("runtime.handlers.crun.path", false),
        ("runtime.shim", true),
        ("api.socket_group", true),
        ("network.conf_dir", false),
        ("network.plugin_dirs", false),
        ("image.registries_conf", true),
        ("image.auth_file", false),
    ];
    assert_eq!(found, expected);
    assert!(
        problems[0].reason.contains("executable") && problems[5].reason.contains("https://x"),
        "{problems:?}"
    );
    assert!(!problems[0].to_string().is_empty());
}

#[test]
fn check_is_content_with_what_is_there() {
    let (dir, main) = directory(&[("net.d/x", ""), ("auth.json", "{}")]);
    let text = format!(
        "[api]\nsocket_group = \"root\"\n[runtime.handlers.runc]\npath = \"/bin/sh\"\n\
         [network]\nconf_dir = \"{0}/net.d\"\nplugin_dirs = [\"/nonexistent\", \"{0}\"]\n\
         [image]\nregistries_conf = \"{0}/missing\"\nauth_file = \"{0}/auth.json\"\n",
        dir.path().display()
    );
    fs::write(&main, text).unwrap();
    assert_eq!(Config::load(&main).unwrap().check(), []);
}
