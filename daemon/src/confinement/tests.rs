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
    let any = HandlerFeatures::default();
    let off = Confinement::default();
    let without_default = Confinement {
        apparmor: Some(AppArmor { loads: false }),
        selinux: None,
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
        apparmor: None,
        selinux: Some(Selinux::of_containers()),
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
