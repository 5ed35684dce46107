//! What runs: arguments, environment, directory.

use super::*;

#[test]
fn commands_and_arguments() {
    // The table of Kubernetes, "Define a Command and Arguments for a Container".
    for (command, args, expected) in [
        (&[][..], &[][..], &["/entry", "default"][..]),
        (&["run"], &[], &["run"]),
        (&[], &["a", "b"], &["/entry", "a", "b"]),
        (&["run"], &["a"], &["run", "a"]),
    ] {
        let mut case = Case::new();
        case.container.command = strings(command);
        case.container.args = strings(args);
        assert_eq!(case.args(), json!(expected));
    }
    let mut case = Case::new();
    case.image = ImageDefaults {
        cmd: strings(&["/only"]),
        ..ImageDefaults::default()
    };
    assert_eq!(case.args(), json!(["/only"]));
    case.container.args = strings(&["/mine"]);
    assert_eq!(case.args(), json!(["/mine"]));
    let mut case = Case::new();
    case.image = ImageDefaults::default();
    assert!(matches!(case.build(), Err(SpecError::NoCommand)));
}

#[test]
fn environment_of_image_pod_and_request() {
    let mut case = Case::new();
    assert_eq!(
        case.env(),
        ["PATH=/bin", "LANG=C", "HOSTNAME=web-0", "HOME=/root"]
    );
    case.image.env = strings(&["HOSTNAME=image", "=x", "NOVALUE", "A=b=c", "HOME=/image"]);
    case.container.tty = true;
    case.container.env = vec![
        ("A".into(), b"".to_vec()),
        ("B".into(), b"x".to_vec()),
        ("B".into(), b"y".to_vec()),
    ];
    assert_eq!(
        case.env(),
        [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM=xterm",
            "HOSTNAME=web-0",
            "A=",
            "HOME=/image",
            "B=y"
        ]
    );
    case.container.env = vec![
        ("HOSTNAME".into(), b"mine".to_vec()),
        ("PAT".into(), b"no prefix of PATH".to_vec()),
    ];
    assert!(case.env().contains(&"HOSTNAME=mine".to_owned()));
    assert!(case.env().contains(&"PAT=no prefix of PATH".to_owned()));
    case.user.home = None;
    case.image.env.clear();
    assert!(!case.env().iter().any(|pair| pair.starts_with("HOME=")));
    case.container.env = vec![("BYTES".into(), vec![0xff])];
    assert!(matches!(case.build(), Err(SpecError::EnvironmentNotText { name }) if name == "BYTES"));
}

#[test]
fn working_directories() {
    for (request, image, expected) in [
        ("", "/srv", "/srv"),
        ("/w", "/srv", "/w"),
        ("", "", "/"),
        ("", "app", "/app"),
        ("/w", "", "/w"),
    ] {
        let mut case = Case::new();
        case.container.working_dir = request.into();
        case.image.working_dir = image.into();
        assert_eq!(case.json()["process"]["cwd"], expected);
    }
}

#[test]
fn no_rlimits_and_an_oom_score_that_the_node_allows() {
    let mut case = Case::new();
    case.facts.lowest_oom_score_adj = 0;
    case.container.resources.oom_score_adj = -998;
    let process = case.json()["process"].clone();
    assert_eq!(process.get("rlimits"), None);
    assert_eq!(process["oomScoreAdj"], 0);
}

#[test]
fn limits_of_the_node_are_in_the_specification_each_by_its_name() {
    // Those of setrlimit(2), and all that the configuration takes: one that the specification lacked would be dropped.
    const NAMES: [&str; 16] = zcri_config::Rlimit::NAMES;
    let limits: Vec<zcri_config::Rlimit> = NAMES
        .iter()
        .map(|name| format!("{name}=5:unlimited").parse().unwrap())
        .collect();
    let mut spec = Case::new().build().unwrap();
    set_rlimits(&mut spec, &limits);
    let json = serde_json::to_value(&spec).unwrap();
    let found = json["process"]["rlimits"].as_array().unwrap();
    assert_eq!(found.len(), NAMES.len());
    for (name, limit) in NAMES.iter().zip(found) {
        assert_eq!(limit["type"], format!("RLIMIT_{}", name.to_uppercase()));
        assert_eq!(
            (&limit["soft"], &limit["hard"]),
            (&5.into(), &u64::MAX.into())
        );
    }
    set_rlimits(&mut spec, &[]);
    assert_eq!(serde_json::to_value(&spec).unwrap(), json, "nothing said");
}

#[test]
fn exec_keeps_all_but_command_and_terminal() {
    let spec = Case::new().build().unwrap();
    let first = spec.process().as_ref().unwrap();
    let plain = exec_process(first, &strings(&["ls", "-l"]), false);
    let mut expected = first.clone();
    expected.set_args(Some(strings(&["ls", "-l"])));
    assert_eq!(plain, expected);
    let tty = exec_process(first, &strings(&["sh"]), true);
    assert_eq!(tty.terminal(), Some(true));
    assert!(
        tty.env()
            .as_ref()
            .unwrap()
            .contains(&"TERM=xterm".to_owned())
    );
    assert_eq!(tty.capabilities(), first.capabilities());
}
