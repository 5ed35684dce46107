//! What is refused, inherited and told.

use std::path::PathBuf;

use zcri_config::WlmRule;

use super::*;
use crate::container::config::{Device, Mount, MountSource, Resources, Security, SelinuxLabel};
use crate::pod::config::{IdMapping, PodNamespaces, PodScope, PodSecurity, UserNamespace};

fn refused(result: Result<impl std::fmt::Debug>) -> &'static str {
    match result.unwrap_err() {
        Error::Unsupported { what, .. } => what,
        other => panic!("{other}"),
    }
}

fn user_namespace() -> UserNamespace {
    let all = IdMapping {
        container_id: 0,
        host_id: 1000,
        length: 1000,
    };
    UserNamespace {
        uids: vec![all],
        gids: vec![all],
    }
}

#[test]
fn what_a_pod_would_not_be_protected_by_is_refused_by_name() {
    const AT: &str = "config.linux.security_context";
    type Change = fn(&mut PodConfig);
    let changes: [(&str, Change); 5] = [
        (".namespace_options.userns_options", |c| {
            c.namespaces.user = Some(user_namespace());
        }),
        (".seccomp", |c| {
            c.security.seccomp = SeccompProfile::Localhost("/p".into());
        }),
        (".apparmor", |c| {
            c.security.apparmor = AppArmorProfile::Localhost("p".into());
        }),
        (".selinux_options", |c| {
            c.security.selinux = Some(SelinuxLabel::default());
        }),
        ("config.linux.sysctls", |c| {
            c.sysctls = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
        }),
    ];
    for (field, change) in changes {
        let mut config = PodConfig::default();
        change(&mut config);
        let expected = if field.starts_with('.') {
            format!("{AT}{field}")
        } else {
            field.to_owned()
        };
        assert_eq!(refused(check_pod(&config)), expected);
    }
    for seccomp in [SeccompProfile::Unconfined, SeccompProfile::RuntimeDefault] {
        let mut config = PodConfig::default();
        config.security.seccomp = seccomp;
        config.security.apparmor = AppArmorProfile::Unconfined;
        check_pod(&config).unwrap();
    }
}

#[test]
fn the_same_of_containers_with_devices_and_mounts() {
    let pod = PodConfig::default();
    let with = |change: fn(&mut ContainerConfig)| {
        let mut config = ContainerConfig::default();
        change(&mut config);
        refused(adopt(&pod, config))
    };
    assert!(
        with(|c| c.security.user_namespace = Some(user_namespace())).ends_with("userns_options")
    );
    assert!(
        with(|c| c.security.seccomp = SeccompProfile::Localhost("/p".into())).ends_with("seccomp")
    );
    assert!(
        with(|c| c.security.apparmor = AppArmorProfile::Localhost("p".into()))
            .ends_with("apparmor")
    );
    assert!(
        with(|c| c.security.selinux = Some(SelinuxLabel::default())).ends_with("selinux_options")
    );
    assert_eq!(
        with(|c| c.cdi_devices = vec!["a/b=c".into()]),
        "config.CDI_devices"
    );
    let device = |c: &mut ContainerConfig| {
        c.devices.push(Device {
            container_path: "/dev/a".into(),
            host_path: "/dev/a".into(),
            permissions: "r".into(),
        });
    };
    assert_eq!(with(device), "config.devices");
    let mount = |change: fn(&mut Mount)| {
        let mut mount = Mount {
            container_path: "/a".into(),
            source: MountSource::Host(PathBuf::from("/a")),
            access: MountAccess::ReadOnly,
            propagation: Propagation::Private,
            selinux_relabel: true,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            options: Vec::new(),
        };
        change(&mut mount);
        let mut config = ContainerConfig::default();
        config.mounts.push(mount);
        adopt(&pod, config)
    };
    mount(|_| ()).unwrap();
    assert_eq!(
        refused(mount(|m| m.propagation = Propagation::Bidirectional)),
        "config.mounts.propagation"
    );
    assert_eq!(
        refused(mount(|m| m.access = MountAccess::RecursiveReadOnly)),
        "config.mounts.recursive_read_only"
    );
}

#[test]
fn a_runtime_that_says_it_is_too_old_is_refused() {
    let newest = |version: &str| HandlerFeatures {
        newest_specification: version.into(),
        ..HandlerFeatures::default()
    };
    for old in ["1.0.2-dev", "1.2.0", "1.1.0+dev", "garbage"] {
        let refused = refused(check_runtime("runc", &newest(old)));
        assert_eq!(refused, "runtime_handler", "{old}");
    }
    for fit in ["", "1.2.1", "1.3.0-rc.1", "2.0.0"] {
        check_runtime("zos", &newest(fit)).unwrap();
    }
}

#[test]
fn a_silent_container_is_as_its_pod_and_one_that_speaks_is_not() {
    let pod = PodConfig {
        namespaces: PodNamespaces {
            network: PodScope::Node,
            ..PodNamespaces::default()
        },
        security: PodSecurity {
            run_as_user: Some(7),
            run_as_group: Some(8),
            supplemental_groups: vec![9],
            ..PodSecurity::default()
        },
        ..PodConfig::default()
    };
    let silent = adopt(&pod, ContainerConfig::default()).unwrap().security;
    assert_eq!(
        (silent.run_as_user, silent.run_as_group),
        (Some(7), Some(8))
    );
    assert_eq!(silent.supplemental_groups, [9]);
    assert_eq!(silent.network, PodScope::Node);
    let speaking = ContainerConfig {
        security: Security {
            masked_paths: Some(Vec::new()),
            pid: PidMode::Container,
            ..Security::default()
        },
        ..ContainerConfig::default()
    };
    let speaking = adopt(&pod, speaking).unwrap().security;
    assert_eq!(
        (speaking.run_as_user, speaking.pid),
        (None, PidMode::Container)
    );
}

#[test]
fn the_quality_of_service_is_told_by_the_path_or_the_oom_score() {
    let told = |parent: &str, score: i32| {
        let pod = PodConfig {
            cgroup_parent: parent.into(),
            ..PodConfig::default()
        };
        let container = ContainerConfig {
            resources: Resources {
                oom_score_adj: score,
                ..Resources::default()
            },
            ..ContainerConfig::default()
        };
        qos(&pod, &container)
    };
    assert_eq!(
        told("/kubepods/besteffort/podX", 0),
        Some(QosClass::BestEffort)
    );
    assert_eq!(
        told("kubepods-burstable-pod1.slice", 0),
        Some(QosClass::Burstable)
    );
    assert_eq!(told("/kubepods/podX", 1000), Some(QosClass::Guaranteed));
    assert_eq!(told("", -997), Some(QosClass::Guaranteed));
    assert_eq!(told("", 1000), Some(QosClass::BestEffort));
    assert_eq!(told("", 500), Some(QosClass::Burstable));
    assert_eq!(told("", 0), None);
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rule = |change: fn(&mut WlmRule), class: &str| {
        let mut rule = WlmRule::default();
        change(&mut rule);
        rule.target.class = Some(class.into());
        rule
    };
    let zos = Zos {
        wlm: Wlm {
            rules: vec![
                rule(|r| r.namespace = Some("prod-*".into()), "PRODHI"),
                rule(
                    |r| drop(r.labels.insert("app".into(), "pay*".into())),
                    "PAY",
                ),
                rule(|r| r.qos = Some(QosClass::BestEffort), "LOW"),
                rule(|r| r.handler = Some("batch".into()), "BATCH"),
            ],
            ..Wlm::default()
        },
    };
    let class = |change: fn(&mut PodConfig), handler: &str| {
        let mut pod = PodConfig {
            namespace: "default".into(),
            ..PodConfig::default()
        };
        change(&mut pod);
        let target = zos.classify(&pod, &ContainerConfig::default(), handler);
        target.class.unwrap_or_default()
    };
    assert_eq!(class(|_| (), "zos"), "SYSCNTNR");
    assert_eq!(class(|p| p.namespace = "prod-1".into(), "batch"), "PRODHI");
    let labelled = |p: &mut PodConfig| drop(p.labels.insert("app".into(), "payroll".into()));
    assert_eq!(class(labelled, "batch"), "PAY");
    assert_eq!(
        class(|p| p.cgroup_parent = "/besteffort".into(), "zos"),
        "LOW"
    );
    assert_eq!(class(|_| (), "batch"), "BATCH");
}
