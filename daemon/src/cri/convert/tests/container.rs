//! `ContainerConfig`.

use super::*;
use crate::container::config::{
    AppArmorProfile, MountAccess, MountSource, PidMode, Propagation, SeccompProfile, Security,
};

const SECURITY: &str = "config.linux.security_context";

fn minimal() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: "nginx".into(),
            attempt: 3,
        }),
        image: Some(v1::ImageSpec {
            image: "sha256:abc".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn wrong(change: impl FnOnce(&mut v1::ContainerConfig)) -> String {
    let mut given = minimal();
    change(&mut given);
    refused_field(container_config(&given))
}

fn security(
    change: impl FnOnce(&mut v1::LinuxContainerSecurityContext),
) -> Result<Security, ConvertError> {
    let mut context = v1::LinuxContainerSecurityContext::default();
    change(&mut context);
    let linux = v1::LinuxContainerConfig {
        security_context: Some(context),
        ..Default::default()
    };
    Ok(container_config(&v1::ContainerConfig {
        linux: Some(linux),
        ..minimal()
    })?
    .security)
}

fn mount(
    change: impl FnOnce(&mut v1::Mount),
) -> Result<crate::container::config::Mount, ConvertError> {
    let mut mount = v1::Mount {
        container_path: "/data".into(),
        host_path: "/srv".into(),
        ..Default::default()
    };
    change(&mut mount);
    let mut config = container_config(&v1::ContainerConfig {
        mounts: vec![mount],
        ..minimal()
    })?;
    Ok(config.mounts.remove(0))
}

#[test]
fn a_container_without_a_linux_section() {
    let config = container_config(&minimal()).unwrap();
    assert_eq!((config.name.as_str(), config.attempt), ("nginx", 3));
    assert_eq!(config.security, Security::default());
    assert_eq!(config.security.masked_paths, None);
    assert_eq!(config.log_path, None);
    assert_eq!(config.stop_signal, None);
}

#[test]
fn plain_fields() {
    let mut given = minimal();
    given.command = vec!["/bin/sh".into()];
    given.args = vec!["-c".into(), String::new()];
    given.working_dir = "/w".into();
    given.envs = vec![v1::KeyValue {
        key: "A".into(),
        value: vec![0xff, b'='],
    }];
    given.devices = vec![v1::Device {
        container_path: "/dev/a".into(),
        host_path: "/dev/b".into(),
        permissions: String::new(),
    }];
    given.cdi_devices = vec![v1::CdiDevice {
        name: "vendor.com/gpu=0".into(),
    }];
    given.log_path = "nginx/0.log".into();
    given.stop_signal = v1::Signal::Sigquit.into();
    (given.stdin, given.stdin_once, given.tty) = (true, true, true);
    let config = container_config(&given).unwrap();
    assert_eq!(config.args, ["-c", ""]);
    assert_eq!(config.env, [("A".to_owned(), vec![0xff, b'='])]);
    assert_eq!(config.devices[0].permissions, "rwm");
    assert_eq!(config.log_path.unwrap().to_str(), Some("nginx/0.log"));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
    assert!(config.stdin && config.stdin_once && config.tty);
}

#[test]
fn what_is_missing_or_malformed() {
    assert_eq!(wrong(|c| c.metadata = None), "config.metadata");
    assert_eq!(
        wrong(|c| c.metadata.as_mut().unwrap().name.clear()),
        "config.metadata.name"
    );
    assert_eq!(wrong(|c| c.image = None), "config.image");
    assert_eq!(
        wrong(|c| c.image = Some(Default::default())),
        "config.image.image"
    );
    assert_eq!(
        wrong(|c| c.command = vec!["a".into(), "b\0".into()]),
        "config.command[1]"
    );
    assert_eq!(wrong(|c| c.args = vec!["\0".into()]), "config.args[0]");
    assert_eq!(
        wrong(|c| c.working_dir = "rel".into()),
        "config.working_dir"
    );
    assert_eq!(wrong(|c| c.stop_signal = 99), "config.stop_signal");
    for log in ["/abs.log", "../x.log", "a/../../x.log"] {
        assert_eq!(wrong(|c| c.log_path = log.into()), "config.log_path");
    }
    let env = |key: &str, value: &[u8]| {
        vec![v1::KeyValue {
            key: key.into(),
            value: value.to_vec(),
        }]
    };
    assert_eq!(wrong(|c| c.envs = env("", b"x")), "config.envs[0].key");
    assert_eq!(wrong(|c| c.envs = env("A=B", b"x")), "config.envs[0].key");
    assert_eq!(
        wrong(|c| c.envs = env("A", b"x\0y")),
        "config.envs[0].value"
    );
    let device = |host: &str, container: &str, permissions: &str| {
        let (container_path, host_path) = (container.to_owned(), host.to_owned());
        vec![v1::Device {
            container_path,
            host_path,
            permissions: permissions.into(),
        }]
    };
    assert_eq!(
        wrong(|c| c.devices = device("dev/a", "/dev/a", "r")),
        "config.devices[0].host_path"
    );
    assert_eq!(
        wrong(|c| c.devices = device("/dev/a", "", "r")),
        "config.devices[0].container_path"
    );
    assert_eq!(
        wrong(|c| c.devices = device("/dev/a", "/dev/a", "rx")),
        "config.devices[0].permissions"
    );
    for name in ["gpu", "vendor/gpu", "vendor=1", "/gpu=1", "vendor/gpu="] {
        assert_eq!(
            wrong(|c| c.cdi_devices = vec![v1::CdiDevice { name: name.into() }]),
            "config.CDI_devices[0].name"
        );
    }
}

#[test]
fn what_is_too_long_for_the_kernel() {
    let long = "x".repeat(200_000);
    let path = format!("/{}", "p/".repeat(2100));
    let part = format!("/{}", "p".repeat(256));
    assert_eq!(
        wrong(|c| c.metadata.get_or_insert_default().name = long.clone()),
        "config.metadata.name"
    );
    assert_eq!(
        wrong(|c| c.args = vec![String::new(), long.clone()]),
        "config.args[1]"
    );
    assert_eq!(
        wrong(|c| c.command = vec![long.clone()]),
        "config.command[0]"
    );
    let pair = v1::KeyValue {
        key: "K".into(),
        value: long.clone().into(),
    };
    assert_eq!(wrong(|c| c.envs = vec![pair]), "config.envs[0].key");
    for given in [&path, &part] {
        assert_eq!(
            wrong(|c| c.working_dir = given.clone()),
            "config.working_dir"
        );
        let relative = given.trim_start_matches('/').to_owned();
        assert_eq!(wrong(|c| c.log_path = relative), "config.log_path");
        assert_eq!(
            refused_field(mount(|m| m.container_path = given.clone())),
            "config.mounts[0].container_path"
        );
        assert_eq!(
            refused_field(mount(|m| m.host_path = given.clone())),
            "config.mounts[0].host_path"
        );
    }
    let fits = format!("/{}", vec!["p".repeat(255); 15].join("/"));
    assert!(mount(|m| m.host_path = fits).is_ok());
}

#[test]
fn mounts_go_there_and_back() {
    let given = v1::Mount {
        container_path: "/data".into(),
        host_path: "/srv".into(),
        readonly: true,
        recursive_read_only: true,
        selinux_relabel: true,
        uid_mappings: vec![range(0, 1000, 10)],
        gid_mappings: vec![range(0, 1000, 10)],
        mount_options: vec!["noexec".into()],
        ..Default::default()
    };
    let parsed = mount(|m| *m = given.clone()).unwrap();
    assert_eq!(parsed.access, MountAccess::RecursiveReadOnly);
    assert_eq!(mounts_to_proto(&[parsed]), [given]);
    for (value, propagation) in [
        (0, Propagation::Private),
        (1, Propagation::HostToContainer),
        (2, Propagation::Bidirectional),
    ] {
        let parsed = mount(|m| m.propagation = value).unwrap();
        assert_eq!(
            (parsed.propagation, parsed.access),
            (propagation, MountAccess::ReadWrite)
        );
        assert_eq!(mounts_to_proto(&[parsed])[0].propagation, value);
    }
}

#[test]
fn mounts_of_images() {
    let image = |name: &str| {
        Some(v1::ImageSpec {
            image: name.into(),
            ..Default::default()
        })
    };
    let parsed = mount(|m| {
        (m.host_path, m.image, m.image_sub_path) =
            (String::new(), image("sha256:1"), "models/a".into());
        m.readonly = true;
    })
    .unwrap();
    let MountSource::Image {
        image: source,
        sub_path,
    } = &parsed.source
    else {
        panic!("{parsed:?}")
    };
    assert_eq!(
        (source.image.as_str(), sub_path.to_str()),
        ("sha256:1", Some("models/a"))
    );
    assert_eq!(parsed.access, MountAccess::ReadOnly);
    assert_eq!(
        mounts_to_proto(std::slice::from_ref(&parsed))[0].image_sub_path,
        "models/a"
    );

    let field = |change: &dyn Fn(&mut v1::Mount)| refused_field(mount(change));
    assert_eq!(
        field(&|m| m.image = image("x")),
        "config.mounts[0].host_path"
    );
    assert_eq!(
        field(&|m| m.image_sub_path = "a".into()),
        "config.mounts[0].image.image"
    );
    assert_eq!(
        field(&|m| (m.host_path, m.image, m.image_sub_path) =
            (String::new(), image("x"), "../a".into())),
        "config.mounts[0].image_sub_path"
    );
    assert_eq!(
        field(&|m| (m.host_path, m.image) = (String::new(), image("x"))),
        "config.mounts[0].readonly"
    );
    assert!(
        mount(|m| m.image = image("")).is_ok(),
        "crictl sends an empty message"
    );
}

#[test]
fn mounts_that_cannot_be() {
    let field = |change: &dyn Fn(&mut v1::Mount)| refused_field(mount(change));
    assert_eq!(
        field(&|m| m.container_path = "data".into()),
        "config.mounts[0].container_path"
    );
    assert_eq!(
        field(&|m| m.container_path.clear()),
        "config.mounts[0].container_path"
    );
    assert_eq!(
        field(&|m| m.host_path.clear()),
        "config.mounts[0].host_path"
    );
    assert_eq!(
        field(&|m| m.host_path = "rel".into()),
        "config.mounts[0].host_path"
    );
    assert_eq!(
        field(&|m| m.propagation = 4),
        "config.mounts[0].propagation"
    );
    assert_eq!(
        field(&|m| m.recursive_read_only = true),
        "config.mounts[0].recursive_read_only"
    );
    for propagation in [1, 2] {
        let change = |m: &mut v1::Mount| {
            (m.readonly, m.recursive_read_only, m.propagation) = (true, true, propagation)
        };
        assert_eq!(field(&change), "config.mounts[0].recursive_read_only");
    }
    assert_eq!(
        field(&|m| m.uid_mappings = vec![range(0, 1, 1)]),
        "config.mounts[0].gidMappings"
    );
    assert_eq!(
        field(&|m| m.gid_mappings = vec![range(0, 1, 1)]),
        "config.mounts[0].uidMappings"
    );
    for option in [
        "",
        "ro",
        "noexec,rw",
        "rshared",
        "exec",
        "suid",
        "size=1g",
        "a\0b",
    ] {
        assert_eq!(
            field(&|m| m.mount_options = vec![option.into()]),
            "config.mounts[0].mount_options[0]"
        );
    }
}

#[test]
fn identities() {
    let parsed = security(|c| (c.run_as_user, c.run_as_group) = (int64(0), int64(5))).unwrap();
    assert_eq!(
        (parsed.run_as_user, parsed.run_as_group),
        (Some(0), Some(5))
    );
    let named =
        security(|c| (c.run_as_username, c.run_as_group) = ("web".into(), int64(5))).unwrap();
    assert_eq!(named.run_as_username.as_deref(), Some("web"));
    let both = security(|c| (c.run_as_username, c.run_as_user) = ("web".into(), int64(5)));
    assert_eq!(refused_field(both), format!("{SECURITY}.run_as_username"));
    assert_eq!(
        refused_field(security(|c| c.run_as_group = int64(5))),
        format!("{SECURITY}.run_as_group")
    );
    let large = security(|c| (c.run_as_user, c.run_as_group) = (int64(0), int64(1 << 33)));
    assert_eq!(refused_field(large), format!("{SECURITY}.run_as_group"));
}

#[test]
fn lists_of_paths_are_kept_as_sent() {
    let parsed = security(|c| c.masked_paths = vec!["/proc/kcore".into()]).unwrap();
    assert_eq!(parsed.masked_paths, Some(vec!["/proc/kcore".to_owned()]));
    assert_eq!(
        parsed.readonly_paths,
        Some(Vec::new()),
        "a context without paths means none"
    );
    let relative = security(|c| c.readonly_paths = vec!["/a".into(), "proc".into()]);
    assert_eq!(
        refused_field(relative),
        format!("{SECURITY}.readonly_paths[1]")
    );
}

#[test]
fn pid_namespaces() {
    let pid = |pid, target: &str| {
        let options = v1::NamespaceOption {
            pid,
            target_id: target.into(),
            ..Default::default()
        };
        security(|c| c.namespace_options = Some(options)).map(|security| security.pid)
    };
    assert_eq!(pid(0, ""), Ok(PidMode::Pod));
    assert_eq!(pid(1, ""), Ok(PidMode::Container));
    assert_eq!(pid(2, ""), Ok(PidMode::Node));
    assert_eq!(pid(3, "c1"), Ok(PidMode::Target("c1".into())));
    assert_eq!(
        refused_field(pid(3, "")),
        format!("{SECURITY}.namespace_options.target_id")
    );
    assert_eq!(
        refused_field(pid(4, "")),
        format!("{SECURITY}.namespace_options.pid")
    );
}

#[test]
#[expect(deprecated, reason = "older kubelets send the profiles as strings")]
fn profiles_in_both_forms() {
    let seccomp = |new, old: &str| {
        security(|c| (c.seccomp, c.seccomp_profile_path) = (new, old.into())).map(|s| s.seccomp)
    };
    let file = SeccompProfile::Localhost("/p.json".into());
    assert_eq!(seccomp(None, ""), Ok(SeccompProfile::Unconfined));
    assert_eq!(
        seccomp(None, "runtime/default"),
        Ok(SeccompProfile::RuntimeDefault)
    );
    assert_eq!(seccomp(None, "localhost//p.json"), Ok(file.clone()));
    assert_eq!(
        seccomp(profile(0, ""), "unconfined"),
        Ok(SeccompProfile::RuntimeDefault),
        "the new one wins"
    );
    assert_eq!(
        seccomp(profile(1, ""), "runtime/default"),
        Ok(SeccompProfile::Unconfined)
    );
    assert_eq!(seccomp(profile(2, "/p.json"), ""), Ok(file.clone()));
    assert_eq!(seccomp(profile(2, "localhost//p.json"), ""), Ok(file));
    let reference = format!("{SECURITY}.seccomp.localhost_ref");
    assert_eq!(refused_field(seccomp(profile(2, ""), "")), reference);
    assert_eq!(refused_field(seccomp(profile(2, "p.json"), "")), reference);
    assert_eq!(refused_field(seccomp(profile(0, "/p.json"), "")), reference);
    assert_eq!(
        refused_field(seccomp(profile(3, ""), "")),
        format!("{SECURITY}.seccomp.profile_type")
    );
    assert_eq!(
        refused_field(seccomp(None, "mine")),
        format!("{SECURITY}.seccomp_profile_path")
    );

    let apparmor = |new, old: &str| {
        security(|c| (c.apparmor, c.apparmor_profile) = (new, old.into())).map(|s| s.apparmor)
    };
    assert_eq!(apparmor(None, ""), Ok(AppArmorProfile::Unspecified));
    assert_eq!(
        apparmor(None, "runtime/default"),
        Ok(AppArmorProfile::RuntimeDefault)
    );
    assert_eq!(
        apparmor(None, "unconfined"),
        Ok(AppArmorProfile::Unconfined)
    );
    assert_eq!(
        apparmor(None, "localhost/mine"),
        Ok(AppArmorProfile::Localhost("mine".into()))
    );
    assert_eq!(
        apparmor(profile(2, "localhost/mine"), ""),
        Ok(AppArmorProfile::Localhost("mine".into()))
    );
    assert_eq!(
        refused_field(apparmor(profile(2, "localhost/"), "")),
        format!("{SECURITY}.apparmor.localhost_ref")
    );
    assert_eq!(
        refused_field(apparmor(None, "mine")),
        format!("{SECURITY}.apparmor_profile")
    );
}

#[test]
fn selinux_labels() {
    let label = |level: &str| {
        let given = v1::SeLinuxOption {
            level: level.into(),
            ..Default::default()
        };
        security(|c| c.selinux_options = Some(given))
            .unwrap()
            .selinux
    };
    assert_eq!(label("s0:c1").unwrap().level, "s0:c1");
    assert_eq!(label("s0-s15:c0.c1023").unwrap().level, "s0-s15:c0.c1023");
    assert_eq!(label(""), None);
    // They become options of mounts.
    let long = "c".repeat(300);
    for (part, wrong) in [
        ("level", "s0\",upperdir=/etc"),
        ("level", "s0 c1"),
        ("level", long.as_str()),
        ("type", "a:b"),
        ("role", "r,x"),
        ("user", "u\n"),
    ] {
        let mut given = v1::SeLinuxOption::default();
        *match part {
            "level" => &mut given.level,
            "type" => &mut given.r#type,
            "role" => &mut given.role,
            _ => &mut given.user,
        } = wrong.to_owned();
        assert_eq!(
            refused_field(security(|c| c.selinux_options = Some(given)).map(|s| s.selinux)),
            format!("{SECURITY}.selinux_options.{part}"),
            "{wrong:?}"
        );
    }
}
