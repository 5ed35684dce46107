//! Where a container's control group is.

/// The control group of a container, named as its driver does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupsPath {
    /// Directories made by the OCI runtime.
    Cgroupfs {
        /// Absolute path of the pod's group.
        parent: String,
        /// Container id.
        id: String,
    },
    /// A scope made by systemd.
    Systemd {
        /// The pod's slice; as a path, in which the last component counts (the kubelet sends it so).
        slice: String,
        /// Container id.
        id: String,
    },
}

/// First part of the names of scopes.
const SCOPE_PREFIX: &str = "zcri";

impl CgroupsPath {
    /// `linux.cgroupsPath` of the specification. For systemd that is runc's and crun's form `slice:prefix:name`.
    #[must_use]
    pub fn for_runtime(&self) -> String {
        match self {
            Self::Cgroupfs { parent, id } => joined(parent, id),
            Self::Systemd { slice, id } => format!("{}:{SCOPE_PREFIX}:{id}", slice_name(slice)),
        }
    }

    /// Absolute path below the root of each hierarchy.
    #[must_use]
    pub fn in_tree(&self) -> String {
        match self {
            Self::Cgroupfs { parent, id } => joined(parent, id),
            Self::Systemd { slice, id } => joined(
                &expanded(slice_name(slice)),
                &format!("{SCOPE_PREFIX}-{id}.scope"),
            ),
        }
    }
}

fn joined(parent: &str, name: &str) -> String {
    let parts = parent
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    parts
        .chain([name])
        .fold(String::new(), |path, part| path + "/" + part)
}

fn slice_name(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default()
}

/// systemd.slice(5): `a-b.slice` lies in `a.slice`; `-.slice` is the root.
fn expanded(slice: &str) -> String {
    const SUFFIX: &str = ".slice";
    let stem = slice.strip_suffix(SUFFIX).unwrap_or(slice);
    let mut path = String::new();
    if stem == "-" {
        return path;
    }
    for (end, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        let Some(prefix) = stem.get(..end).filter(|prefix| !prefix.is_empty()) else {
            continue;
        };
        path = path + "/" + prefix + SUFFIX;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn systemd(slice: &str) -> CgroupsPath {
        CgroupsPath::Systemd {
            slice: slice.into(),
            id: "c1".into(),
        }
    }

    #[test]
    fn cgroupfs_paths_are_absolute_and_clean() {
        let path = |parent: &str| CgroupsPath::Cgroupfs {
            parent: parent.into(),
            id: "c1".into(),
        };
        for (parent, expected) in [
            ("/kubepods/podX", "/kubepods/podX/c1"),
            ("a//b/", "/a/b/c1"),
            ("", "/c1"),
            ("/", "/c1"),
        ] {
            assert_eq!(path(parent).for_runtime(), expected);
            assert_eq!(path(parent).in_tree(), expected);
        }
    }

    #[test]
    fn systemd_slices_nest_by_their_names() {
        let pod =
            systemd("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice");
        assert_eq!(pod.for_runtime(), "kubepods-burstable-pod1_2.slice:zcri:c1");
        assert_eq!(
            pod.in_tree(),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/zcri-c1.scope"
        );
        assert_eq!(
            systemd("system.slice").in_tree(),
            "/system.slice/zcri-c1.scope"
        );
        assert_eq!(systemd("-.slice").in_tree(), "/zcri-c1.scope");
    }
}
