//! What is refused, and what a privileged container has.

use super::*;

fn security(apparmor: AppArmorProfile) -> Security {
    Security {
        apparmor,
        ..Security::default()
    }
}

fn named() -> AppArmorProfile {
    AppArmorProfile::Localhost("mine".into())
}

#[test]
fn a_profile_that_is_asked_for_is_not_left_out() {
    // There the default profile can be loaded: integration/tests/confinement.rs.
    if zcri_sys::node::has_apparmor() {
        return;
    }
    let any = HandlerFeatures::default();
    let off = Confinement::default();
    let without_default = Confinement {
        apparmor: Some(AppArmor::default()),
        ..Confinement::default()
    };
    let profile = |node: &Confinement, asked, privileged| {
        let security = Security {
            privileged,
            ..security(asked)
        };
        let confined = node.confine(None, &security, &any);
        confined.map(|confined| confined.apparmor)
    };
    for asked in [AppArmorProfile::RuntimeDefault, named()] {
        assert!(matches!(
            profile(&off, asked.clone(), false),
            Err(Error::Unsupported {
                what: APPARMOR_FIELD,
                ..
            })
        ));
        assert_eq!(profile(&off, asked, true).unwrap(), None);
    }
    for asked in [AppArmorProfile::Unspecified, AppArmorProfile::Unconfined] {
        assert_eq!(profile(&off, asked, false).unwrap(), None);
    }
    assert_eq!(
        profile(&without_default, AppArmorProfile::Unspecified, false).unwrap(),
        None
    );
    assert!(matches!(
        profile(&without_default, AppArmorProfile::RuntimeDefault, false),
        Err(Error::Unsupported { .. })
    ));
    // By name, or else the kernel would keep the profile of the daemon.
    for (asked, privileged) in [
        (AppArmorProfile::Unconfined, false),
        (AppArmorProfile::Unspecified, true),
        (named(), true),
    ] {
        assert_eq!(
            profile(&without_default, asked, privileged)
                .unwrap()
                .as_deref(),
            Some("unconfined")
        );
    }
}

#[test]
fn a_runtime_without_a_module_gets_nothing_it_would_ignore() {
    let node = Confinement {
        selinux: Some(Selinux::of_containers()),
        ..Confinement::default()
    };
    let pod = node.pod_label(None, false).unwrap();
    let without = HandlerFeatures {
        selinux: Some(false),
        ..HandlerFeatures::default()
    };
    let mut asked = Security::default();
    let confined = node.confine(pod.as_ref(), &asked, &without).unwrap();
    assert_eq!(confined, Confined::default());
    let confined = node.confine(pod.as_ref(), &asked, &HandlerFeatures::default());
    assert!(confined.unwrap().selinux.process.is_some());
    asked.selinux = Some(SelinuxLabel {
        kind: "spc_t".into(),
        ..SelinuxLabel::default()
    });
    assert!(matches!(
        node.confine(pod.as_ref(), &asked, &without),
        Err(Error::Unsupported {
            what: selinux::FIELD,
            ..
        })
    ));
    // Where SELinux is off, a label is for other nodes.
    let off = Confinement::default().confine(None, &asked, &without);
    assert_eq!(off.unwrap(), Confined::default());
}

#[tokio::test]
async fn a_volume_is_given_up_when_its_pod_is_stopped() {
    let node = Confinement::default();
    let (stop, stopping) = watch::channel(false);
    // All walks are taken, as by volumes of a server that is dead.
    let mut taken = Vec::new();
    for _ in 0..WALKS {
        taken.push(node.walks.acquire().await.unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let walk = node.relabel(Relabelling {
        volumes: vec![dir.path().into()],
        others: Vec::new(),
        label: "u:r:t:s0".into(),
        pod: PodId::random(),
        stopping,
    });
    let stopped = async {
        stop.send_replace(true);
    };
    let (ended, ()) = tokio::join!(walk, stopped);
    assert!(matches!(ended, Err(Error::State { .. })), "{ended:?}");
}

#[tokio::test]
async fn volumes_are_relabelled_and_the_daemons_own_are_not() {
    let node = Confinement::default();
    let (_keep, stopping) = watch::channel(false);
    let dir = tempfile::tempdir().unwrap();
    let [volume, own] = ["volume", "own"].map(|name| dir.path().join(name));
    for path in [&volume, &own] {
        std::fs::create_dir(path).unwrap();
    }
    let relabel = |path: &Path| {
        node.relabel(Relabelling {
            volumes: vec![path.into()],
            others: vec![own.clone()],
            label: "system_u:object_r:container_file_t:s0".into(),
            pod: PodId::random(),
            stopping: stopping.clone(),
        })
    };
    relabel(&volume).await.unwrap();
    let refused = relabel(&own).await.unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Invalid {
                field: "config.mounts.selinux_relabel",
                ..
            }
        ),
        "{refused}"
    );
    let missing = relabel(&dir.path().join("missing")).await.unwrap_err();
    assert!(matches!(missing, Error::Node { .. }), "{missing}");
}

#[test]
fn what_is_left_out_of_one_module_is_not_of_the_other() {
    let node = Confinement {
        selinux: Some(Selinux::of_containers()),
        ..Confinement::default()
    };
    let pod = node.pod_label(None, false).unwrap();
    let without = HandlerFeatures {
        apparmor: Some(false),
        ..HandlerFeatures::default()
    };
    let confined = node
        .confine(pod.as_ref(), &Security::default(), &without)
        .unwrap();
    assert_eq!(confined.apparmor, None);
    assert!(confined.selinux.process.is_some() && confined.selinux.mount.is_some());
}
