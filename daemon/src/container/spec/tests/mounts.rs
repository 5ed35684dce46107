//! What is mounted where, and in which order.

use super::*;

#[test]
fn mounts_of_the_request_come_after_their_parents_and_replace_defaults() {
    let case = Case::new()
        .with_mount("/a/b/c")
        .with_mount("/a")
        .with_mount("/dev/shm/")
        .with_mount("/etc");
    assert_eq!(
        case.targets(),
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup", // defaults
            "/a",
            "/etc",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/dev/shm",
            "/a/b/c"
        ]
    );
    assert_eq!(case.mount("/dev/shm")["source"], "/data/dev/shm/");

    let targets = Case::new()
        .with_mount("/dev")
        .with_mount("/sys")
        .with_mount("/etc/resolv.conf")
        .targets();
    assert_eq!(
        targets,
        [
            "/proc",
            "/dev",
            "/sys",
            "/etc/hostname",
            "/dev/shm",
            "/etc/resolv.conf"
        ]
    );
    let near = Case::new()
        .with_mount("/system")
        .with_mount("/proc2")
        .targets();
    assert!(near.contains(&"/sys".to_owned()) && near.contains(&"/proc".to_owned()));
    assert!(
        Case::new()
            .with_mount("/a//b/../c/.")
            .targets()
            .contains(&"/a/c".to_owned())
    );
}

#[test]
fn options_of_mounts() {
    let options = |change: fn(&mut PreparedMount)| {
        let mut case = Case::new().with_mount("/m");
        change(&mut case.host.mounts[0]);
        let root = case.json()["linux"]["rootfsPropagation"].clone();
        (case.mount("/m")["options"].clone(), root)
    };
    assert_eq!(options(|_| {}), (json!(["rbind", "rprivate"]), Value::Null));
    assert_eq!(
        options(|m| m.mount.access = MountAccess::ReadOnly).0,
        json!(["rbind", "rprivate", "ro"])
    );
    assert_eq!(
        options(|m| m.mount.access = MountAccess::RecursiveReadOnly).0,
        json!(["rbind", "rprivate", "rro"])
    );
    assert_eq!(
        options(|m| m.mount.options = strings(&["noexec"])).0,
        json!(["rbind", "rprivate", "noexec"])
    );
    let kept = options(|m| {
        m.mount.access = MountAccess::ReadOnly;
        m.mount.options = strings(&["noexec"]);
        m.kept = vec!["nosuid", "noexec"];
    });
    assert_eq!(
        kept.0,
        json!(["rbind", "rprivate", "ro", "noexec", "nosuid"])
    );
    let slave = options(|m| *m = prepared("/m", Propagation::HostToContainer, Peers::Slave));
    assert_eq!(slave, (json!(["rbind", "rslave"]), json!("slave")));
    let shared = options(|m| *m = prepared("/m", Propagation::Bidirectional, Peers::Shared));
    assert_eq!(shared, (json!(["rbind", "rshared"]), json!("shared")));
}

#[test]
fn propagation_needs_a_source_that_has_it() {
    for (propagation, peers, works) in [
        (Propagation::Private, Peers::Private, true),
        (Propagation::HostToContainer, Peers::Private, false),
        (Propagation::HostToContainer, Peers::Shared, true),
        (Propagation::Bidirectional, Peers::Private, false),
        (Propagation::Bidirectional, Peers::Slave, false),
        (Propagation::Bidirectional, Peers::Shared, true),
    ] {
        let mut case = Case::new();
        case.host.mounts = vec![prepared("/m", propagation, peers)];
        assert_eq!(case.build().is_ok(), works, "{propagation:?} on {peers:?}");
    }
    let mut case = Case::new();
    case.host.mounts = [
        Propagation::Bidirectional,
        Propagation::HostToContainer,
        Propagation::Private,
    ]
    .map(|propagation| prepared("/m", propagation, Peers::Shared))
    .into();
    assert_eq!(
        case.json()["linux"]["rootfsPropagation"],
        "shared",
        "the widest"
    );
}

#[test]
fn peers_by_mountinfo() {
    let text = "\
21 1 8:1 / / rw shared:1 - ext4 /dev/sda rw
22 21 0:5 / /mnt/a rw,noatime master:1 - tmpfs x rw
23 21 0:6 / /mnt/a/b\\040c rw shared:7 master:1 - tmpfs x rw
24 21 0:7 / /priv rw - tmpfs x rw
25 24 0:8 / /priv/x rw shared:9 - tmpfs x rw
26 25 0:9 / /priv/x rw - tmpfs x rw
";
    for (path, peers) in [
        ("/home", Peers::Shared),
        ("/mnt/ab", Peers::Shared),
        ("/mnt/a/z", Peers::Slave),
        ("/mnt/a/b c/d", Peers::Shared),
        ("/priv", Peers::Private),
        ("/priv/x/y", Peers::Private),
    ] {
        assert_eq!(peers_of(text, Path::new(path)), peers, "{path}");
    }
    assert_eq!(peers_of("", Path::new("/")), Peers::Private);
}

#[test]
fn pod_files_are_read_only_with_the_root() {
    let mut case = Case::new();
    let last = |case: &Case, target| {
        case.mount(target)["options"]
            .as_array()
            .unwrap()
            .last()
            .cloned()
            .unwrap()
    };
    assert_eq!(
        (
            last(&case, "/etc/hostname"),
            last(&case, "/etc/resolv.conf")
        ),
        (json!("rw"), json!("rw"))
    );
    case.container.security.readonly_rootfs = true;
    assert_eq!(
        (
            last(&case, "/etc/hostname"),
            last(&case, "/etc/resolv.conf")
        ),
        (json!("ro"), json!("ro"))
    );
    assert_eq!(last(&case, "/dev/shm"), "rw");
    assert_eq!(
        case.json()["root"],
        json!({"path": "/run/zcri/containers/c1/rootfs", "readonly": true})
    );
}
