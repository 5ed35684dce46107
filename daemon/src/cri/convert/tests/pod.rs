//! `PodSandboxConfig`.

use super::*;
use crate::container::config::{AppArmorProfile, SeccompProfile, SupplementalGroupsPolicy};
use crate::pod::config::{
    PodPid, PodScope, Protocol, SysctlNamespace, sysctl_namespace, sysctl_path,
};

fn minimal() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".into(),
            uid: "0a1b".into(),
            namespace: "default".into(),
            attempt: 2,
        }),
        ..Default::default()
    }
}

/// With a security context to change.
fn with(change: impl FnOnce(&mut v1::LinuxSandboxSecurityContext)) -> v1::PodSandboxConfig {
    let mut context = v1::LinuxSandboxSecurityContext::default();
    change(&mut context);
    let linux = v1::LinuxPodSandboxConfig {
        security_context: Some(context),
        ..Default::default()
    };
    v1::PodSandboxConfig {
        linux: Some(linux),
        ..minimal()
    }
}

fn with_namespaces(options: v1::NamespaceOption) -> v1::PodSandboxConfig {
    with(|context| context.namespace_options = Some(options))
}

fn with_users(
    mode: i32,
    uids: Vec<v1::IdMapping>,
    gids: Vec<v1::IdMapping>,
) -> v1::PodSandboxConfig {
    let user = v1::UserNamespace { mode, uids, gids };
    with_namespaces(v1::NamespaceOption {
        userns_options: Some(user),
        ..Default::default()
    })
}

fn with_sysctl(name: &str, namespaces: v1::NamespaceOption) -> v1::PodSandboxConfig {
    let mut config = with_namespaces(namespaces);
    if let Some(linux) = &mut config.linux {
        linux.sysctls.insert(name.into(), "1".into());
    }
    config
}

#[test]
fn only_metadata_is_needed() {
    let config = pod_config(&minimal()).unwrap();
    assert_eq!(
        (config.name.as_str(), config.uid.as_str(), config.attempt),
        ("web", "0a1b", 2)
    );
    assert_eq!(config.namespaces.network, PodScope::Pod);
    assert_eq!(config.namespaces.pid, PodPid::Pod, "CRI's default");
    assert_eq!(config.log_directory, None);
}

#[test]
fn a_kubelets_pod() {
    let mut given = with(|context| {
        context.namespace_options = Some(v1::NamespaceOption {
            pid: 1,
            network: 2,
            ..Default::default()
        });
        context.run_as_user = int64(1000);
        context.run_as_group = int64(3000);
        context.supplemental_groups = vec![4000];
        context.supplemental_groups_policy = 1;
        context.seccomp = profile(0, "");
        context.privileged = true;
    });
    given.hostname = "web-0".into();
    given.log_directory = "/var/log/pods/default_web_0a1b".into();
    given.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.0.0.10".into()],
        searches: vec!["default.svc.cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    given.port_mappings = vec![v1::PortMapping {
        protocol: 1,
        container_port: 53,
        host_port: 5353,
        host_ip: "2001:db8::1".into(),
    }];
    given.labels = [("app".to_owned(), "web".to_owned())].into();
    let config = pod_config(&given).unwrap();
    assert_eq!(config.namespaces.pid, PodPid::Container);
    assert!(config.host_network());
    assert_eq!(config.security.run_as_group, Some(3000));
    assert_eq!(
        config.security.supplemental_groups_policy,
        SupplementalGroupsPolicy::Strict
    );
    assert_eq!(config.security.seccomp, SeccompProfile::RuntimeDefault);
    assert_eq!(config.security.apparmor, AppArmorProfile::Unspecified);
    assert!(config.security.privileged);
    let [mapping] = config.port_mappings[..] else {
        panic!()
    };
    assert_eq!(
        (mapping.protocol, mapping.container_port, mapping.host_port),
        (Protocol::Udp, 53, 5353)
    );
    assert_eq!(mapping.host_ip.unwrap().to_string(), "2001:db8::1");
    assert_eq!(config.dns.unwrap().options, ["ndots:5"]);
    assert_eq!(config.labels["app"], "web");
}

#[test]
fn missing_identity() {
    assert_eq!(
        refused_field(pod_config(&Default::default())),
        "config.metadata"
    );
    let without = |change: fn(&mut v1::PodSandboxMetadata)| {
        let mut given = minimal();
        change(given.metadata.as_mut().unwrap());
        refused_field(pod_config(&given))
    };
    assert_eq!(without(|m| m.name.clear()), "config.metadata.name");
    assert_eq!(without(|m| m.uid.clear()), "config.metadata.uid");
    assert_eq!(
        without(|m| m.namespace.clear()),
        "config.metadata.namespace"
    );
    assert_eq!(without(|m| m.name = "a\0b".into()), "config.metadata.name");
}

#[test]
fn bad_names_paths_and_ports() {
    let wrong = |change: &dyn Fn(&mut v1::PodSandboxConfig)| {
        let mut given = minimal();
        change(&mut given);
        refused_field(pod_config(&given))
    };
    for hostname in ["a b", "a/b", "a\n", &"x".repeat(65)] {
        assert_eq!(wrong(&|c| c.hostname = hostname.into()), "config.hostname");
    }
    for directory in ["logs", "/var/../etc", "./x"] {
        assert_eq!(
            wrong(&|c| c.log_directory = directory.into()),
            "config.log_directory"
        );
    }
    let dns = |servers: &str| {
        Some(v1::DnsConfig {
            servers: vec![servers.into()],
            ..Default::default()
        })
    };
    assert_eq!(
        wrong(&|c| c.dns_config = dns("1.1.1.1\nnameserver 6.6.6.6")),
        "config.dns_config.servers[0]"
    );
    let port = |change: &dyn Fn(&mut v1::PortMapping)| {
        wrong(&|c| {
            let mut mapping = v1::PortMapping {
                container_port: 80,
                ..Default::default()
            };
            change(&mut mapping);
            c.port_mappings = vec![Default::default(), mapping];
        })
    };
    assert_eq!(
        port(&|p| p.host_port = 65_536),
        "config.port_mappings[1].host_port"
    );
    assert_eq!(
        port(&|p| p.container_port = -1),
        "config.port_mappings[1].container_port"
    );
    assert_eq!(
        port(&|p| p.host_ip = "localhost".into()),
        "config.port_mappings[1].host_ip"
    );
    assert_eq!(
        port(&|p| p.protocol = 9),
        "config.port_mappings[1].protocol"
    );
    let parent = |path: &str| v1::LinuxPodSandboxConfig {
        cgroup_parent: path.into(),
        ..Default::default()
    };
    assert_eq!(
        wrong(&|c| c.linux = Some(parent("/kubepods/../x"))),
        "config.linux.cgroup_parent"
    );
}

#[test]
fn namespaces() {
    let at = "config.linux.security_context.namespace_options";
    let wrong = |options| refused_field(pod_config(&with_namespaces(options)));
    assert_eq!(
        wrong(v1::NamespaceOption {
            network: 1,
            ..Default::default()
        }),
        format!("{at}.network")
    );
    assert_eq!(
        wrong(v1::NamespaceOption {
            ipc: 3,
            ..Default::default()
        }),
        format!("{at}.ipc")
    );
    assert_eq!(
        wrong(v1::NamespaceOption {
            pid: 3,
            ..Default::default()
        }),
        format!("{at}.pid")
    );
    assert_eq!(
        wrong(v1::NamespaceOption {
            pid: 7,
            ..Default::default()
        }),
        format!("{at}.pid")
    );
    let options = v1::NamespaceOption {
        network: 2,
        pid: 1,
        ipc: 2,
        ..Default::default()
    };
    let parsed = pod_config(&with_namespaces(options.clone()))
        .unwrap()
        .namespaces;
    assert_eq!(namespaces_to_proto(&parsed), options);
}

#[test]
fn user_namespaces() {
    let at = "config.linux.security_context.namespace_options.userns_options";
    let good = vec![range(0, 100_000, 1000), range(1000, 200_000, 1000)];
    let parsed = pod_config(&with_users(0, good.clone(), good.clone()))
        .unwrap()
        .namespaces;
    assert_eq!(parsed.user.as_ref().unwrap().uids.len(), 2);
    assert_eq!(
        namespaces_to_proto(&parsed).userns_options.unwrap().gids,
        good
    );
    assert_eq!(
        pod_config(&with_users(2, vec![], vec![]))
            .unwrap()
            .namespaces
            .user,
        None
    );

    let wrong = |mode, uids, gids| refused_field(pod_config(&with_users(mode, uids, gids)));
    assert_eq!(wrong(0, vec![], good.clone()), format!("{at}.uids"));
    assert_eq!(wrong(0, good.clone(), vec![]), format!("{at}.gids"));
    for mode in [1, 3] {
        assert_eq!(wrong(mode, vec![], vec![]), format!("{at}.mode"));
    }
    assert_eq!(wrong(2, good.clone(), vec![]), format!("{at}.mode"));
    assert_eq!(
        wrong(0, vec![range(0, 1, 0)], good.clone()),
        format!("{at}.uids[0]")
    );
    assert_eq!(
        wrong(0, vec![range(0, u32::MAX - 5, 10)], good.clone()),
        format!("{at}.uids[0]")
    );
    // critest: "should fail if container ID 0 is not mapped", "should fail if more than one mapping provided".
    assert_eq!(
        wrong(0, vec![range(1, 1000, 100_000)], good.clone()),
        format!("{at}.uids")
    );
    assert_eq!(
        wrong(0, vec![range(0, 1000, 9), range(0, 2000, 9)], good.clone()),
        format!("{at}.uids")
    );
    assert_eq!(
        wrong(0, good.clone(), vec![range(0, 1000, 9), range(9, 1008, 9)]),
        format!("{at}.gids")
    );
}

#[test]
fn run_as_group_needs_a_user() {
    let at = "config.linux.security_context";
    assert_eq!(
        refused_field(pod_config(&with(|c| c.run_as_group = int64(1)))),
        format!("{at}.run_as_group")
    );
    for id in [-1, i64::from(u32::MAX), i64::MAX] {
        assert_eq!(
            refused_field(pod_config(&with(|c| c.run_as_user = int64(id)))),
            format!("{at}.run_as_user")
        );
    }
    let groups = refused_field(pod_config(&with(|c| c.supplemental_groups = vec![0, -7])));
    assert_eq!(groups, format!("{at}.supplemental_groups[1]"));
    assert_eq!(
        refused_field(pod_config(&with(|c| c.supplemental_groups_policy = 5))),
        format!("{at}.supplemental_groups_policy")
    );
}

#[test]
fn sysctls_are_the_pods_own() {
    let pod = v1::NamespaceOption::default;
    let node = || v1::NamespaceOption {
        network: 2,
        ipc: 2,
        ..Default::default()
    };
    for name in [
        "net.ipv4.ip_forward",
        "kernel.shm_rmid_forced",
        "fs.mqueue.msg_max",
        "kernel.sem",
        "net/core/somaxconn",
    ] {
        assert_eq!(
            pod_config(&with_sysctl(name, pod())).unwrap().sysctls[name],
            "1"
        );
        assert_eq!(
            refused_field(pod_config(&with_sysctl(name, node()))),
            format!("config.linux.sysctls[{name}]")
        );
    }
    for name in [
        "kernel.panic",
        "vm.swappiness",
        "net",
        "net..x",
        "net.../../kernel.panic",
        "net/../kernel/panic",
        "",
    ] {
        assert_eq!(
            refused_field(pod_config(&with_sysctl(name, pod()))),
            format!("config.linux.sysctls[{name}]")
        );
    }
}

#[test]
fn names_of_sysctls() {
    let path = |name| sysctl_path(name).map(|path| path.to_string_lossy().into_owned());
    assert_eq!(
        path("net.ipv4.conf.eth0/1.forwarding").as_deref(),
        Some("net/ipv4/conf/eth0.1/forwarding")
    );
    assert_eq!(
        path("net/ipv4/conf/eth0.1/forwarding").as_deref(),
        Some("net/ipv4/conf/eth0.1/forwarding")
    );
    for bad in [
        "kernel",
        "/kernel/x",
        "kernel.",
        "kernel. x",
        "a/../b",
        "a.b\\c",
    ] {
        assert_eq!(path(bad), None, "{bad}");
    }
    assert_eq!(
        sysctl_namespace("kernel.msgmax"),
        Some(SysctlNamespace::Ipc)
    );
    assert_eq!(
        sysctl_namespace("kernel.domainname"),
        Some(SysctlNamespace::Uts)
    );
    assert_eq!(
        sysctl_namespace("kernel.hostname"),
        None,
        "the host name has a field of its own"
    );
}
