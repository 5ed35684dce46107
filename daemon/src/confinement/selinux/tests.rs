//! Labels of pods and containers, by the files of a policy as distributions ship it.

use super::*;

const FEDORA: &str = "process = \"system_u:system_r:container_t:s0\"\n\
    content = \"system_u:object_r:virt_var_lib_t:s0\"\n\
    file = \"system_u:object_r:container_file_t:s0\"\n\
    ro_file = \"system_u:object_r:container_ro_file_t:s0\"\n";

fn context(text: &str) -> Context {
    Context::parse(text).unwrap()
}

impl Selinux {
    /// With the policy of Fedora.
    pub(in crate::confinement) fn of_containers() -> Self {
        Self {
            contexts: Some(Contexts {
                process: context("system_u:system_r:container_t:s0"),
                file: context("system_u:object_r:container_file_t:s0"),
                ro_file: context("system_u:object_r:container_ro_file_t:s0"),
            }),
            taken: Taken::default(),
        }
    }
}

fn module() -> Selinux {
    Selinux::of_containers()
}

fn asked(kind: &str, level: &str) -> SelinuxLabel {
    SelinuxLabel {
        kind: kind.into(),
        level: level.into(),
        ..SelinuxLabel::default()
    }
}

fn levels(module: &Selinux) -> Vec<(String, usize)> {
    let taken = module.taken.lock().unwrap();
    let mut levels: Vec<_> = taken.clone().into_iter().collect();
    levels.sort();
    levels
}

#[test]
fn pods_have_categories_that_no_other_has() {
    let module = module();
    let pods: Vec<_> = (0..2000)
        .map(|_| module.pod_label(None, false).unwrap().unwrap())
        .collect();
    let taken = levels(&module);
    assert_eq!(taken.len(), pods.len());
    assert!(taken.iter().all(|(_, count)| *count == 1));
    for (level, _) in &taken {
        let (a, b) = level
            .strip_prefix("s0:c")
            .unwrap()
            .split_once(",c")
            .unwrap();
        let (a, b) = (a.parse::<u32>().unwrap(), b.parse::<u32>().unwrap());
        assert!(a < b && b < CATEGORIES, "{level}");
    }
    drop(pods);
    assert_eq!(levels(&module), []);
}

#[test]
fn no_free_categories_are_an_error() {
    let all = (0..CATEGORIES).flat_map(|a| (a..CATEGORIES).map(move |b| format!("s0:c{a},c{b}")));
    let all = all.map(|level| (level, 1)).collect();
    assert!(matches!(
        free_level("s0", &all),
        Err(Error::Exhausted { .. })
    ));
}

#[test]
fn containers_share_the_level_of_their_pod() {
    let module = module();
    let pod = module.pod_label(None, false).unwrap().unwrap();
    let recorded = pod.recorded();
    let level = recorded
        .strip_prefix("system_u:system_r:container_t:")
        .unwrap();
    let files = format!("system_u:object_r:container_file_t:{level}");
    assert_eq!(module.files_of(&pod).unwrap(), files);
    let shared = "system_u:object_r:container_file_t:s0";
    assert_eq!(module.shared_files().unwrap(), shared);

    let labels = module.labels(Some(&pod), None, false).unwrap();
    assert_eq!(labels.process.as_deref(), Some(recorded.as_str()));
    assert_eq!(labels.mount.as_deref(), Some(files.as_str()));
    // A container of another type is still one of the pod's.
    let labels = module
        .labels(Some(&pod), Some(&asked("container_init_t", "")), false)
        .unwrap();
    let expected = format!("system_u:system_r:container_init_t:{level}");
    assert_eq!(labels.process, Some(expected));
    assert_eq!(labels.mount, Some(files.clone()));
    // One at another level has files at that level.
    let labels = module
        .labels(Some(&pod), Some(&asked("", "s0:c1,c2")), false)
        .unwrap();
    assert_eq!(
        labels,
        Labels {
            process: Some("system_u:system_r:container_t:s0:c1,c2".into()),
            mount: Some("system_u:object_r:container_file_t:s0:c1,c2".into()),
        }
    );
    // A privileged one is not confined, but its files are those of its pod.
    let labels = module.labels(Some(&pod), None, true).unwrap();
    assert_eq!((labels.process, labels.mount), (None, Some(files)));
}

#[test]
fn a_pod_has_what_it_asks_for() {
    let module = module();
    let given = asked("spc_t", "s0:c7,c9");
    let pods = [0, 1].map(|_| module.pod_label(Some(&given), true).unwrap().unwrap());
    assert_eq!(pods[0].recorded(), "system_u:system_r:spc_t:s0:c7,c9");
    assert_eq!(levels(&module), [("s0:c7,c9".to_owned(), 2)]);
    let [one, other] = pods;
    drop(one);
    assert_eq!(levels(&module), [("s0:c7,c9".to_owned(), 1)]);
    drop(other);
    assert_eq!(levels(&module), []);
    let whole = SelinuxLabel {
        user: "u".into(),
        role: "r".into(),
        ..given
    };
    let pod = module.pod_label(Some(&whole), false).unwrap().unwrap();
    assert_eq!(pod.recorded(), "u:r:spc_t:s0:c7,c9");
}

#[test]
fn a_pod_among_the_processes_of_the_node_is_not_kept_apart() {
    let module = module();
    assert!(module.pod_label(None, true).unwrap().is_none());
    assert_eq!(module.labels(None, None, false).unwrap(), Labels::default());
    // Unless one of its containers asks to be.
    let labels = module
        .labels(None, Some(&asked("mine_t", "")), false)
        .unwrap();
    assert_eq!(
        labels,
        Labels {
            process: Some("system_u:system_r:mine_t:s0".into()),
            mount: Some("system_u:object_r:container_file_t:s0".into()),
        }
    );
}

#[test]
fn a_level_is_kept_over_a_restart() {
    let module = module();
    let recorded = "system_u:system_r:container_t:s0:c1,c2";
    let pod = module.recall(recorded).unwrap();
    assert_eq!(pod.recorded(), recorded);
    assert_eq!(levels(&module), [("s0:c1,c2".to_owned(), 1)]);
    assert!(module.recall("torn").is_none());
}

#[test]
fn a_policy_without_levels_gives_none() {
    let mut module = module();
    module.contexts = Some(Contexts {
        process: context("system_u:system_r:container_t"),
        file: context("system_u:object_r:container_file_t"),
        ro_file: context("system_u:object_r:container_file_t"),
    });
    let pod = module.pod_label(None, false).unwrap().unwrap();
    assert_eq!(pod.recorded(), "system_u:system_r:container_t");
    assert_eq!(
        module.files_of(&pod).unwrap(),
        "system_u:object_r:container_file_t"
    );
    assert_eq!(levels(&module), []);
}

#[test]
fn a_policy_that_knows_no_containers_refuses_only_who_asks() {
    let module = Selinux {
        contexts: None,
        taken: Taken::default(),
    };
    assert!(module.pod_label(None, false).unwrap().is_none());
    // A pod that has a label was made when it knew them.
    let pod = module.recall("system_u:system_r:container_t:s0:c1,c2");
    let later = module.labels(pod.as_ref(), None, false);
    assert!(matches!(later, Err(Error::Unsupported { what: FIELD, .. })));
    let refused = module.pod_label(Some(&asked("spc_t", "")), false);
    assert!(matches!(
        refused,
        Err(Error::Unsupported { what: FIELD, .. })
    ));
}

#[test]
fn contexts_are_found_where_distributions_have_them() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let none = find_contexts(root.path()).unwrap_err();
    assert!(
        none.contains("usr/share/containers/selinux/contexts"),
        "{none}"
    );
    write(
        "etc/selinux/config",
        "# SELINUXTYPE=old\nSELINUX=enforcing\nSELINUXTYPE=default\n",
    );
    write(
        "etc/selinux/default/contexts/lxc_contexts",
        "process = \"system_u:system_r:svirt_lxc_net_t:s0\"\nfile = \"system_u:object_r:svirt_lxc_file_t:s0\"\n",
    );
    let found = find_contexts(root.path()).unwrap();
    assert_eq!(found.process.kind, "svirt_lxc_net_t");
    assert_eq!(
        found.file.to_string(),
        "system_u:object_r:svirt_lxc_file_t:s0"
    );
    write("usr/share/containers/selinux/contexts", FEDORA);
    assert_eq!(
        find_contexts(root.path()).unwrap().process.kind,
        "container_t"
    );
    write(
        "usr/share/containers/selinux/contexts",
        "process = \"u:r:t\"\n",
    );
    let half = find_contexts(root.path()).unwrap_err();
    assert!(half.contains("no label \"file\""), "{half}");
}

#[test]
fn labels_in_parts() {
    let whole = "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023";
    assert_eq!(context(whole).to_string(), whole);
    assert_eq!(context(whole).level.as_deref(), Some("s0-s0:c0.c1023"));
    for (level, expected) in [("s0-s15:c0.c1023", "s0"), ("s3", "s3"), ("s1:c4", "s1")] {
        assert_eq!(sensitivity(level), expected);
    }
    for wrong in ["", "kernel", "a:b", "::", "a::c:s0"] {
        assert_eq!(Context::parse(wrong), None, "{wrong}");
    }
}
