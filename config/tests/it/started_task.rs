//! The samples in `systemd/zos/`: their form, and that they name what the configuration names.
//!
//! No z/OS is here to read them. What can be checked is what a reader of 80-column records trips over, and that the
//! members fit together.

use std::{collections::BTreeSet, fs, path::PathBuf};

use zcri_config::Config;

/// Columns 72 to 80 are for continuation and sequence numbers (z/OS MVS JCL Reference, "Format of statements").
const COLUMNS: usize = 71;
/// Longest value of PARM (JCL Reference, "PARM parameter").
const PARM: usize = 100;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sample(name: &str) -> String {
    fs::read_to_string(root().join("systemd/zos").join(name)).unwrap()
}

fn config() -> Config {
    Config::load(&root().join("config/samples/zcri.zos.toml")).unwrap()
}

/// All but the environment, whose lines are the daemon's own.
const MEMBERS: &[&str] = &[
    "zcrid.jcl",
    "zcrracf.jcl",
    "zcrzfs.jcl",
    "bpxprmzc.txt",
    "smflimzc.txt",
    "tcpipzc.txt",
];

/// A line with what is between apostrophes taken out.
fn bare(line: &str) -> String {
    line.split('\'').step_by(2).collect()
}

#[test]
fn records_are_short_plain_and_in_upper_case() {
    let mut found: Vec<String> = fs::read_dir(root().join("systemd/zos"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".md"))
        .collect();
    found.sort();
    let mut known: Vec<_> = MEMBERS.to_vec();
    known.push("zcri.env");
    known.sort_unstable();
    assert_eq!(found, known);
    for member in MEMBERS {
        let stem = member.split('.').next().unwrap();
        assert!(stem.len() <= 8, "{member} is no member's name");
        for (number, line) in sample(member).lines().enumerate() {
            let at = format!("{member}:{}: {line}", number + 1);
            assert!(line.len() <= COLUMNS, "{at}");
            assert!(line.bytes().all(|b| matches!(b, 0x20..=0x7e)), "{at}");
            assert!(line == line.trim_end(), "{at}");
            let comment = ["//*", "/*", ";"]
                .iter()
                .any(|begin| line.trim_start().starts_with(begin));
            let plain = if comment {
                line.to_owned()
            } else {
                assert_eq!(line.matches('\'').count() % 2, 0, "{at}");
                bare(line)
            };
            assert!(!plain.bytes().any(|b| b.is_ascii_lowercase()), "{at}");
        }
    }
}

/// A JCL statement with its continuation lines joined, or a line of data.
#[derive(Debug, PartialEq)]
enum Statement {
    Jcl {
        name: String,
        operation: String,
        operands: String,
    },
    Data(String),
}

/// As the converter joins them: operands that end with a comma go on in columns 4 to 16 of the next `//` line.
fn statements(member: &str) -> Vec<Statement> {
    let text = sample(member);
    let mut all = Vec::new();
    let mut data = false;
    let mut goes_on = false;
    for line in text.lines() {
        if data {
            data = !line.starts_with("/*") && !line.starts_with("//");
            if data {
                all.push(Statement::Data(line.to_owned()));
            }
            if !line.starts_with("//") {
                continue;
            }
        }
        assert!(line.starts_with("//"), "{member}: {line}");
        if line.starts_with("//*") {
            assert!(!goes_on, "{member}: a comment in a statement: {line}");
            continue;
        }
        if goes_on {
            let Some(Statement::Jcl { operands, .. }) = all.last_mut() else {
                panic!("{member}: {line}")
            };
            let column = 3 + line[2..].len() - line[2..].trim_start().len();
            assert!((4..=16).contains(&column), "{member}: {line}");
            operands.push_str(line[2..].trim());
            goes_on = line.ends_with(',');
            continue;
        }
        let name = line[2..].split(' ').next().unwrap();
        assert!(name.len() <= 8, "{member}: {line}");
        let rest = line[2 + name.len()..].trim_start();
        let (operation, operands) = rest.split_once(' ').unwrap();
        all.push(Statement::Jcl {
            name: name.to_owned(),
            operation: operation.to_owned(),
            operands: operands.trim().to_owned(),
        });
        goes_on = line.ends_with(',');
        data = operands.trim() == "*";
    }
    assert!(
        !goes_on && !data,
        "{member} ends in the middle of a statement"
    );
    all
}

fn operands(member: &str, wanted: &str) -> String {
    let mut all = statements(member).into_iter();
    all.find_map(|statement| match statement {
        Statement::Jcl { name, operands, .. } if name == wanted => Some(operands),
        _ => None,
    })
    .unwrap_or_else(|| panic!("{member} has no statement {wanted}"))
}

#[test]
fn jcl_is_joined_as_it_is_meant() {
    for member in ["zcrid.jcl", "zcrracf.jcl", "zcrzfs.jcl"] {
        let mut first = None;
        for statement in statements(member) {
            let Statement::Jcl {
                name,
                operation,
                operands,
            } = statement
            else {
                continue;
            };
            assert!(
                ["PROC", "JOB", "EXEC", "DD"].contains(&operation.as_str()),
                "{operation}"
            );
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
            assert!(!operands.is_empty() && !operands.ends_with(','), "{name}");
            let (open, close) = (operands.matches('('), operands.matches(')'));
            assert_eq!(open.count(), close.count(), "{operands}");
            first.get_or_insert((name, operation));
        }
        let (name, operation) = first.unwrap();
        assert_eq!(
            name.to_lowercase(),
            member.trim_end_matches(".jcl"),
            "the first statement names the member"
        );
        assert!(["PROC", "JOB"].contains(&operation.as_str()));
    }
}

/// Symbols of the procedure with their defaults.
fn symbols() -> Vec<(String, String)> {
    let statement = statements("zcrid.jcl").remove(0);
    let Statement::Jcl { operands, .. } = statement else {
        panic!("no PROC")
    };
    let pairs = operands.split(',').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.trim_matches('\'').to_owned())
    });
    pairs.collect()
}

fn resolved(text: &str) -> String {
    let mut text = text.to_owned();
    for (name, value) in symbols() {
        text = text.replace(&format!("&{name}."), &value);
        text = text.replace(&format!("&{name}"), &value);
    }
    assert!(!text.contains('&'), "a symbol without a value: {text}");
    text
}

#[test]
fn the_procedure_starts_zcrid_with_its_configuration() {
    let step = resolved(&operands_of_step());
    let parm = step.split("PARM='").nth(1).unwrap().trim_end_matches('\'');
    assert_eq!(
        parm,
        "PGM /usr/lpp/zcri/bin/zcrid --config /etc/zcri/zcri.toml"
    );
    assert!(parm.len() <= PARM);
    assert!(step.starts_with("PGM=BPXBATSL,REGION=0M,TIME=NOLIMIT,"));
    // A data set instead would put the program into another address space, where STOP does not reach it.
    for dd in ["STDOUT", "STDERR"] {
        let operands = resolved(&operands("zcrid.jcl", dd));
        assert!(operands.starts_with("PATH='/var/log/zcrid.log',"), "{dd}");
        assert!(
            operands.contains("OAPPEND"),
            "{dd}: two streams, one file: {operands}"
        );
    }
    let environment = resolved(&operands("zcrid.jcl", "STDENV"));
    assert_eq!(environment, "PATH='/etc/zcri/zcri.env',PATHOPTS=(ORDONLY)");
    for (name, _) in symbols() {
        let used = sample("zcrid.jcl").matches(&format!("&{name}")).count();
        assert!(used > 0, "&{name} is not used");
    }
}

/// Of the EXEC statement, which has the name of the procedure.
fn operands_of_step() -> String {
    let mut all = statements("zcrid.jcl").into_iter();
    all.find_map(|statement| match statement {
        Statement::Jcl {
            operation,
            operands,
            ..
        } if operation == "EXEC" => Some(operands),
        _ => None,
    })
    .unwrap()
}

/// Variables of the task.
fn environment() -> Vec<(String, String)> {
    let text = sample("zcri.env");
    let pairs = text.lines().map(|line| {
        let (name, value) = line.split_once('=').unwrap();
        let plain = |c: char| c.is_ascii_uppercase() || c == '_';
        assert!(name.chars().all(plain), "{line}");
        assert!(!value.is_empty() && !value.contains(['\'', '"']), "{line}");
        (name.to_owned(), value.to_owned())
    });
    pairs.collect()
}

fn variable(name: &str) -> String {
    let found = environment().into_iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no {name}")).1
}

#[test]
fn the_environment_has_the_paths_of_the_configuration() {
    let config = config();
    let path = variable("PATH");
    let dirs: Vec<_> = path.split(':').collect();
    let runc = config.runtime.handlers["runc"].path.parent().unwrap();
    assert!(dirs.iter().any(|dir| runc == std::path::Path::new(dir)));
    assert!(dirs.contains(&"/usr/lpp/zcri/bin"));
    assert_eq!(variable("HOME"), config.storage.root.display().to_string());
    // Pods outlive the task: nothing of theirs may be in its address space.
    assert_eq!(variable("_BPX_SHAREAS"), "NO");
}

#[test]
fn file_systems_are_mounted_where_the_configuration_has_its_directories() {
    let text = sample("bpxprmzc.txt");
    assert_eq!(
        text.matches("/*").count(),
        text.lines().filter(|line| line.ends_with("*/")).count()
    );
    let config = config();
    let mounts: Vec<_> = text.split("\nMOUNT ").skip(1).collect();
    for (dir, kind) in [
        (&config.storage.root, "TYPE(ZFS)"),
        (&config.storage.state, "TYPE(TFS)"),
    ] {
        let point = format!("MOUNTPOINT('{}')", dir.display());
        let mount = mounts.iter().find(|mount| mount.contains(&point));
        assert!(mount.unwrap().contains(kind), "{point}");
    }
    assert!(config.api.listen.starts_with(&config.storage.state));
    for kind in ["UFS", "TFS", "PROC"] {
        assert!(text.contains(&format!("FILESYSTYPE TYPE({kind})")));
    }
    // The job that makes it has the name that the mount has on a system called SYS1.
    let made = sample("zcrzfs.jcl");
    let name = "OMVS.SYS1.ZCRI.ROOT";
    assert_eq!(made.matches(name).count(), 2);
    assert!(text.contains(&format!("'{}'", name.replace("SYS1", "&SYSNAME."))));
}

#[test]
fn the_range_the_stack_and_the_profile_are_those_of_the_conflist() {
    let file = root().join("config/cni/10-dvipa-zos.conflist");
    let conflist: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(conflist["disableGC"], true, "Podman shares the range");
    let plugin = &conflist["plugins"][0];
    assert_eq!(plugin["backend"], "zos");
    let stack = plugin["stack"].as_str().unwrap();
    assert_eq!(variable("_BPXK_SETIBMOPT_TRANSPORT"), stack);
    assert_eq!(config().network.stack_name.as_deref(), Some(stack));
    let racf = sample("zcrracf.jcl");
    assert!(racf.contains(&format!("PERMIT EZB.MODDVIPA.*.{stack} CLASS(SERVAUTH)")));
    let state = config().storage.state;
    let leases = plugin["dataDir"].as_str().unwrap();
    assert!(
        std::path::Path::new(leases).starts_with(state),
        "gone with an IPL, as the addresses are"
    );

    let profile = sample("tcpipzc.txt");
    let ranges: Vec<_> = profile
        .lines()
        .filter_map(|line| line.trim().strip_prefix("VIPARANGE DEFINE "))
        .collect();
    let [range] = ranges[..] else {
        panic!("{ranges:?}")
    };
    let words: Vec<_> = range.split(' ').collect();
    assert_eq!(words[2], "ZCONTAINER");
    let mask: std::net::Ipv4Addr = words[0].parse().unwrap();
    let bits = u32::from(mask).leading_ones();
    assert_eq!(bits, u32::from(mask).count_ones(), "{mask}");
    assert_eq!(
        plugin["vipaRanges"],
        serde_json::json!([format!("{}/{bits}", words[1])])
    );
}

#[test]
fn racf_commands_are_whole_and_every_class_is_refreshed() {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for statement in statements("zcrracf.jcl") {
        let Statement::Data(line) = statement else {
            continue;
        };
        // In column 1 it would end the data.
        assert!(line.starts_with(' '), "{line}");
        if line.trim_start().starts_with("/*") {
            assert!(!goes_on && line.ends_with("*/"), "{line}");
            continue;
        }
        let text = line.trim().trim_end_matches(" -");
        if goes_on {
            let last = commands.last_mut().unwrap();
            last.push(' ');
            last.push_str(text);
        } else {
            commands.push(text.to_owned());
        }
        goes_on = line.ends_with(" -");
    }
    assert!(!goes_on);
    let mut classes = BTreeSet::new();
    let mut refreshed = BTreeSet::new();
    let mut profiles = BTreeSet::new();
    for command in &commands {
        let words: Vec<_> = command.split(' ').collect();
        assert_eq!(
            command.matches('(').count(),
            command.matches(')').count(),
            "{command}"
        );
        match words[0] {
            "ADDGROUP" | "ADDUSER" => {}
            "RDEFINE" => {
                classes.insert(words[1].to_owned());
                profiles.insert((words[1].to_owned(), words[2].to_owned()));
            }
            "PERMIT" => {
                let class = words[2].strip_prefix("CLASS(").unwrap();
                let class = class.trim_end_matches(')').to_owned();
                assert!(
                    profiles.contains(&(class, words[1].to_owned())),
                    "{command}"
                );
                assert!(command.ends_with("ID(ZCRIGRP) ACCESS(READ)"), "{command}");
            }
            "SETROPTS" => {
                let class = words[1].strip_prefix("RACLIST(").unwrap();
                refreshed.insert(class.trim_end_matches(')').to_owned());
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(classes, refreshed);
    // The task of the procedure, with a user and a group that the job makes.
    let text = commands.join("\n");
    for part in [
        "ADDGROUP ZCRIGRP ",
        "ADDUSER ZCRID DFLTGRP(ZCRIGRP) ",
        "RDEFINE STARTED ZCRID.* STDATA(USER(ZCRID) GROUP(ZCRIGRP) ",
        "RDEFINE UNIXPRIV CONTAINERS UACC(NONE)",
    ] {
        assert!(text.contains(part), "{part}");
    }
    let home = format!("HOME('{}')", config().storage.root.display());
    assert!(text.contains(&home), "{home}");
}

/// What nobody here can look up says so, and the explanation has a line for every file.
#[test]
fn what_is_not_verified_is_marked_and_every_file_is_explained() {
    let readme = sample("README.md");
    for member in MEMBERS.iter().chain(&["zcri.env"]) {
        assert!(readme.contains(&format!("`{member}`")), "{member}");
    }
    for member in [
        "zcrracf.jcl",
        "zcrzfs.jcl",
        "bpxprmzc.txt",
        "smflimzc.txt",
        "tcpipzc.txt",
    ] {
        assert!(sample(member).contains("UNVERIFIED"), "{member}");
    }
    for (name, _) in environment() {
        assert!(readme.contains(&format!("`{name}`")), "{name}");
    }
}
