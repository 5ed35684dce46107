//! Requests as kubelets send them, and requests with one thing wrong.

mod container;
mod pod;

use zcri_proto::v1;

use super::*;

/// Field and value of a refusal.
fn refused<T: std::fmt::Debug>(result: Result<T, ConvertError>) -> (String, String) {
    match result {
        Err(ConvertError::Missing { field }) => (field, String::new()),
        Err(ConvertError::Invalid { field, value, .. }) => (field, value),
        Ok(converted) => panic!("accepted: {converted:?}"),
    }
}

fn refused_field<T: std::fmt::Debug>(result: Result<T, ConvertError>) -> String {
    refused(result).0
}

fn range(container_id: u32, host_id: u32, length: u32) -> v1::IdMapping {
    v1::IdMapping {
        host_id,
        container_id,
        length,
    }
}

fn profile(kind: i32, localhost_ref: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile {
        profile_type: kind,
        localhost_ref: localhost_ref.into(),
    })
}

fn int64(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

#[test]
fn resources_go_there_and_back() {
    let given = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: -1,
        cpu_shares: 1024,
        memory_limit_in_bytes: 1 << 30,
        oom_score_adj: -997,
        cpuset_cpus: "0-2,7".into(),
        cpuset_mems: "0".into(),
        hugepage_limits: vec![v1::HugepageLimit {
            page_size: "1GB".into(),
            limit: u64::MAX,
        }],
        unified: [("memory.high".to_owned(), "max".to_owned())].into(),
        memory_swap_limit_in_bytes: -1,
    };
    assert_eq!(resources_to_proto(&resources("r", &given).unwrap()), given);
    let nothing = v1::LinuxContainerResources::default();
    let parsed = resources("r", &nothing).unwrap();
    assert_eq!(parsed, crate::container::config::Resources::default());
    assert_eq!(resources_to_proto(&parsed), nothing);
}

#[test]
fn resources_that_cannot_be() {
    let wrong = |change: &dyn Fn(&mut v1::LinuxContainerResources)| {
        let mut given = v1::LinuxContainerResources::default();
        change(&mut given);
        refused(resources("r", &given))
    };
    let pair = |field: &str, value: &str| (field.to_owned(), value.to_owned());
    assert_eq!(wrong(&|r| r.cpu_period = -1), pair("r.cpu_period", "-1"));
    assert_eq!(wrong(&|r| r.cpu_shares = -2), pair("r.cpu_shares", "-2"));
    assert_eq!(
        wrong(&|r| r.memory_limit_in_bytes = -2),
        pair("r.memory_limit_in_bytes", "-2")
    );
    assert_eq!(
        wrong(&|r| r.oom_score_adj = 1001),
        pair("r.oom_score_adj", "1001")
    );
    assert_eq!(
        wrong(&|r| r.oom_score_adj = i64::MAX),
        pair("r.oom_score_adj", &i64::MAX.to_string())
    );
    for list in ["a", "1-", "-1", "3-1", "1,,2", "+1", "0x1", ","] {
        assert_eq!(
            wrong(&|r| r.cpuset_cpus = list.into()),
            pair("r.cpuset_cpus", list)
        );
    }
    for size in ["", "2M", "MB", "0MB", "2.5MB", "../x", "-2MB"] {
        let limits = || {
            vec![v1::HugepageLimit {
                page_size: size.into(),
                limit: 1,
            }]
        };
        assert_eq!(
            wrong(&|r| r.hugepage_limits = limits()),
            pair("r.hugepage_limits[0].page_size", size)
        );
    }
    for key in ["", "memory", "../memory.max", ".hidden", "a/b.c"] {
        assert_eq!(
            wrong(&|r| r.unified = [(key.to_owned(), "1".to_owned())].into()),
            pair("r.unified", key)
        );
    }
}

#[test]
fn signals_of_the_protocol_and_of_images() {
    for (number, name) in [
        (1, "SIGABRT"),
        (23, "SIGTERM"),
        (35, "SIGRTMIN"),
        (36, "SIGRTMIN+1"),
        (64, "SIGRTMAX-1"),
        (65, "SIGRTMAX"),
    ] {
        assert_eq!(
            status::stop_signal("s", number).unwrap().as_deref(),
            Some(name)
        );
        assert_eq!(
            stop_signal_to_proto(name),
            v1::Signal::try_from(number).unwrap()
        );
    }
    assert_eq!(status::stop_signal("s", 0).unwrap(), None);
    assert_eq!(
        refused(status::stop_signal("s", 66)),
        ("s".into(), "66".into())
    );
    for (text, expected) in [
        ("15", v1::Signal::Sigterm),
        ("term", v1::Signal::Sigterm),
        ("SIGCLD", v1::Signal::Sigchld),
        ("37", v1::Signal::Sigrtminplus3),
        ("SIGRTMAX-14", v1::Signal::Sigrtmaxminus14),
        ("SIGNOTHING", v1::Signal::RuntimeDefault),
        ("0", v1::Signal::RuntimeDefault),
        ("65", v1::Signal::RuntimeDefault),
        ("", v1::Signal::RuntimeDefault),
    ] {
        assert_eq!(stop_signal_to_proto(text), expected, "{text}");
    }
    // Every signal of the protocol has a number, and the number leads back to a signal of that number.
    for value in 1..=65 {
        let name = status::stop_signal("s", value).unwrap().unwrap();
        let number = crate::container::config::signal::number(&name).unwrap();
        let again = stop_signal_to_proto(&number.to_string());
        let again = status::stop_signal("s", again.into()).unwrap().unwrap();
        assert_eq!(
            crate::container::config::signal::number(&again),
            Some(number),
            "{name}"
        );
    }
}

#[test]
fn errors_name_field_and_value() {
    let error = resources(
        "config.linux.resources",
        &v1::LinuxContainerResources {
            cpu_period: -1,
            ..Default::default()
        },
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        r#"config.linux.resources.cpu_period: invalid value "-1": must not be negative"#
    );
}
