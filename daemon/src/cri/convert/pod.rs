//! `PodSandboxConfig`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use zcri_proto::v1;

use super::{
    ConvertError, absolute_without_parent, id, ids, known, namespaces, profiles, resources, sorted,
    text,
};
use crate::container::config::SupplementalGroupsPolicy;
use crate::pod::config::{
    Dns, PodConfig, PodNamespaces, PodScope, PodSecurity, PortMapping, Protocol, sysctl_namespace,
};

/// The kernel's limit (`__NEW_UTS_LEN`, sethostname(2)).
const HOST_NAME_MAX: usize = 64;
const LINUX: &str = "config.linux";
const SECURITY: &str = "config.linux.security_context";

/// Parses the configuration of a pod sandbox.
///
/// # Errors
/// Names the first field that is missing or has an impossible value.
pub fn pod_config(given: &v1::PodSandboxConfig) -> Result<PodConfig, ConvertError> {
    let metadata = given
        .metadata
        .as_ref()
        .ok_or_else(|| ConvertError::missing("config.metadata"))?;
    let mut config = PodConfig {
        name: super::metadata("config.metadata.name", &metadata.name)?,
        uid: super::metadata("config.metadata.uid", &metadata.uid)?,
        namespace: super::metadata("config.metadata.namespace", &metadata.namespace)?,
        attempt: metadata.attempt,
        hostname: hostname(&given.hostname)?,
        dns: given.dns_config.as_ref().map(dns).transpose()?,
        port_mappings: port_mappings(&given.port_mappings)?,
        labels: sorted(&given.labels),
        annotations: sorted(&given.annotations),
        ..PodConfig::default()
    };
    if !given.log_directory.is_empty() {
        config.log_directory = Some(absolute_without_parent(
            "config.log_directory",
            &given.log_directory,
        )?);
    }
    if let Some(linux) = &given.linux {
        linux_config(linux, &mut config)?;
    }
    Ok(config)
}

/// Looks at a configuration that is given beside what a request is about. What holds is what the pod was made with,
/// but what cannot be is refused all the same. One without metadata is that of no pod.
///
/// # Errors
/// As [`pod_config`].
pub(in crate::cri) fn config_of_pod(
    given: Option<&v1::PodSandboxConfig>,
) -> Result<(), ConvertError> {
    match given.filter(|given| given.metadata.is_some()) {
        Some(given) => pod_config(given)
            .map(drop)
            .map_err(|error| error.within("sandbox_")),
        None => Ok(()),
    }
}

fn linux_config(
    given: &v1::LinuxPodSandboxConfig,
    config: &mut PodConfig,
) -> Result<(), ConvertError> {
    config.cgroup_parent = cgroup_parent(&given.cgroup_parent)?;
    if let Some(security) = &given.security_context {
        config.namespaces = pod_namespaces(security.namespace_options.as_ref())?;
        config.security = pod_security(security)?;
    }
    config.sysctls = sysctls(given, &config.namespaces)?;
    config.overhead = pod_resources("overhead", given.overhead.as_ref())?;
    config.resources = pod_resources("resources", given.resources.as_ref())?;
    Ok(())
}

fn pod_resources(
    name: &str,
    given: Option<&v1::LinuxContainerResources>,
) -> Result<Option<crate::container::config::Resources>, ConvertError> {
    given
        .map(|given| resources(&format!("{LINUX}.{name}"), given))
        .transpose()
}

fn hostname(given: &str) -> Result<String, ConvertError> {
    const FIELD: &str = "config.hostname";
    if given.len() > HOST_NAME_MAX {
        return Err(ConvertError::invalid(
            FIELD,
            given,
            format!("is longer than {HOST_NAME_MAX} bytes"),
        ));
    }
    if given
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || c == '/')
    {
        return Err(ConvertError::invalid(
            FIELD,
            given,
            "contains a character that no host name has",
        ));
    }
    Ok(given.to_owned())
}

/// Every item becomes part of a line of resolv.conf, so none may bring a line of its own.
fn dns(given: &v1::DnsConfig) -> Result<Dns, ConvertError> {
    let words = |name: &str, words: &[String]| -> Result<Vec<String>, ConvertError> {
        for (at, word) in words.iter().enumerate() {
            if word.chars().any(|c| c.is_whitespace() || c.is_control()) {
                let field = format!("config.dns_config.{name}[{at}]");
                return Err(ConvertError::invalid(field, word, "must be a single word"));
            }
        }
        Ok(words.to_vec())
    };
    Ok(Dns {
        servers: words("servers", &given.servers)?,
        searches: words("searches", &given.searches)?,
        options: words("options", &given.options)?,
    })
}

fn port_mappings(given: &[v1::PortMapping]) -> Result<Vec<PortMapping>, ConvertError> {
    given
        .iter()
        .enumerate()
        .map(|(at, mapping)| port_mapping(&format!("config.port_mappings[{at}]"), mapping))
        .collect()
}

fn port_mapping(at: &str, given: &v1::PortMapping) -> Result<PortMapping, ConvertError> {
    let port = |name: &str, value: i32| {
        u16::try_from(value).map_err(|_| {
            ConvertError::invalid(format!("{at}.{name}"), value, "must be between 0 and 65535")
        })
    };
    let address = |text: &str| {
        text.parse::<IpAddr>().map_err(|_| {
            ConvertError::invalid(format!("{at}.host_ip"), text, "must be an IP address")
        })
    };
    Ok(PortMapping {
        protocol: match known(&format!("{at}.protocol"), given.protocol)? {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: port("container_port", given.container_port)?,
        host_port: port("host_port", given.host_port)?,
        host_ip: (!given.host_ip.is_empty())
            .then(|| address(&given.host_ip))
            .transpose()?,
    })
}

/// A cgroupfs path or the name of a systemd slice.
fn cgroup_parent(given: &str) -> Result<String, ConvertError> {
    const FIELD: &str = "config.linux.cgroup_parent";
    super::short_path(FIELD, given)?;
    let value = text(FIELD, given)?;
    super::refuse_parent(FIELD, given, std::path::Path::new(given))?;
    Ok(value)
}

fn pod_namespaces(given: Option<&v1::NamespaceOption>) -> Result<PodNamespaces, ConvertError> {
    let Some(given) = given else {
        return Ok(PodNamespaces::default());
    };
    let at = format!("{SECURITY}.namespace_options");
    let namespaces = PodNamespaces {
        network: namespaces::scope(&format!("{at}.network"), given.network)?,
        pid: namespaces::pod_pid(&format!("{at}.pid"), given.pid)?,
        ipc: namespaces::scope(&format!("{at}.ipc"), given.ipc)?,
        user: namespaces::user(
            &format!("{at}.userns_options"),
            given.userns_options.as_ref(),
        )?,
    };
    Ok(namespaces)
}

#[expect(deprecated, reason = "older kubelets send the profile as a string")]
fn pod_security(given: &v1::LinuxSandboxSecurityContext) -> Result<PodSecurity, ConvertError> {
    let run_as_user = optional_id("run_as_user", given.run_as_user.as_ref())?;
    let run_as_group = optional_id("run_as_group", given.run_as_group.as_ref())?;
    if let (None, Some(group)) = (run_as_user, run_as_group) {
        let field = format!("{SECURITY}.run_as_group");
        return Err(ConvertError::invalid(field, group, "needs run_as_user"));
    }
    Ok(PodSecurity {
        run_as_user,
        run_as_group,
        supplemental_groups: ids(
            &format!("{SECURITY}.supplemental_groups"),
            &given.supplemental_groups,
        )?,
        supplemental_groups_policy: groups_policy(
            &format!("{SECURITY}.supplemental_groups_policy"),
            given.supplemental_groups_policy,
        )?,
        privileged: given.privileged,
        readonly_rootfs: given.readonly_rootfs,
        seccomp: profiles::seccomp(
            SECURITY,
            given.seccomp.as_ref(),
            &given.seccomp_profile_path,
        )?,
        apparmor: profiles::apparmor(SECURITY, given.apparmor.as_ref(), "")?,
        selinux: profiles::selinux(SECURITY, given.selinux_options.as_ref())?,
    })
}

pub(super) fn groups_policy(
    field: &str,
    value: i32,
) -> Result<SupplementalGroupsPolicy, ConvertError> {
    Ok(match known(field, value)? {
        v1::SupplementalGroupsPolicy::Merge => SupplementalGroupsPolicy::Merge,
        v1::SupplementalGroupsPolicy::Strict => SupplementalGroupsPolicy::Strict,
    })
}

/// `run_as_user` and its like. The path is the same for pods and containers.
pub(super) fn optional_id(
    name: &str,
    given: Option<&v1::Int64Value>,
) -> Result<Option<u32>, ConvertError> {
    given
        .map(|given| id(&format!("{SECURITY}.{name}"), given.value))
        .transpose()
}

/// A sysctl that is not the pod's own would change the node.
fn sysctls(
    given: &v1::LinuxPodSandboxConfig,
    namespaces: &PodNamespaces,
) -> Result<BTreeMap<String, String>, ConvertError> {
    for (name, value) in &given.sysctls {
        let field = format!("{LINUX}.sysctls[{name}]");
        let Some(namespace) = sysctl_namespace(name) else {
            return Err(ConvertError::invalid(
                field,
                value,
                "is no sysctl that belongs to a namespace",
            ));
        };
        text(&field, value)?;
        if namespace.of(namespaces) == PodScope::Node {
            return Err(ConvertError::invalid(
                field,
                value,
                format!("cannot be set: the pod uses the {namespace} namespace of the node"),
            ));
        }
    }
    Ok(sorted(&given.sysctls))
}
