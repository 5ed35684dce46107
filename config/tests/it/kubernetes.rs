//! The samples in `config/kubernetes/`: that they are YAML, whole objects, and fit each other and the configuration.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde::Deserialize as _;
use serde_json::{Value, json};
use zcri_config::Config;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All documents of a file.
fn objects(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(root().join("kubernetes").join(name)).unwrap();
    let parse = |document| {
        // Which refuses a key that is there twice, as the kubelet does.
        let yaml = serde_norway::Value::deserialize(document)?;
        serde_norway::from_value(yaml)
    };
    serde_norway::Deserializer::from_str(&text)
        .map(|document| {
            parse(document).unwrap_or_else(|e: serde_norway::Error| panic!("{name}: {e}"))
        })
        .collect()
}

fn of_kind(name: &str, kind: &str) -> Vec<Value> {
    let mut all = objects(name);
    all.retain(|object| object["kind"] == kind);
    assert!(!all.is_empty(), "{name} has no {kind}");
    all
}

fn one(name: &str, kind: &str) -> Value {
    let mut all = of_kind(name, kind);
    assert_eq!(all.len(), 1, "{name} {kind}");
    all.remove(0)
}

fn configuration() -> Config {
    Config::load(&root().join("samples/zcri.zos.toml")).unwrap()
}

#[test]
fn every_file_has_whole_objects_with_names_of_their_own() {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join("kubernetes")).unwrap() {
        files.push(entry.unwrap().file_name().into_string().unwrap());
    }
    files.sort();
    let known = [
        "admission.yaml",
        "hybrid.yaml",
        "kubelet.zos.yaml",
        "runtimeclass.yaml",
    ];
    assert_eq!(files, known);
    let mut names = BTreeSet::new();
    for file in &files {
        for object in objects(file) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
            assert!(!version.is_empty() && !kind.is_empty(), "{file}: {object}");
            // Only what is for the API server has a name.
            if kind != "KubeletConfiguration" {
                let name = text(&object["metadata"]["name"]);
                assert!(!name.is_empty(), "{file}: {kind} without a name");
                assert!(names.insert((kind, name)), "{file}: twice");
            }
        }
    }
    assert!(serde_norway::from_str::<serde_norway::Value>("a: 1\na: 2\n").is_err());
}

#[test]
fn the_class_names_a_handler_and_what_the_kubelet_taints_with() {
    let class = one("runtimeclass.yaml", "RuntimeClass");
    let handler = class["handler"].as_str().unwrap();
    assert!(configuration().runtime.handlers.contains_key(handler));
    let selector = &class["scheduling"]["nodeSelector"];
    let image = configuration().platform.image.to_string();
    let (os, arch) = image.split_once('/').unwrap();
    assert_eq!(
        *selector,
        json!({"kubernetes.io/os": os, "kubernetes.io/arch": arch})
    );
    let kubelet = one("kubelet.zos.yaml", "KubeletConfiguration");
    let taints = kubelet["registerWithTaints"].as_array().unwrap();
    let tolerations = class["scheduling"]["tolerations"].as_array().unwrap();
    for taint in taints {
        // Kubernetes, "Taints and Tolerations": key and effect are the same, and the value with operator Equal.
        let tolerated = |toleration: &Value| {
            let same = |key: &str| toleration[key] == taint[key];
            toleration["operator"] == "Equal" && same("key") && same("value") && same("effect")
        };
        assert!(tolerations.iter().any(tolerated), "{taint}");
    }
    assert_eq!(taints.len(), tolerations.len());
}

#[test]
fn the_kubelet_finds_zcrid_and_has_as_many_pods_as_addresses() {
    let kubelet = one("kubelet.zos.yaml", "KubeletConfiguration");
    let socket = format!("unix://{}", configuration().api.listen.display());
    for key in ["containerRuntimeEndpoint", "imageServiceEndpoint"] {
        assert_eq!(kubelet[key], socket, "{key}");
    }
    let conflist = fs::read_to_string(root().join("cni/10-dvipa-zos.conflist")).unwrap();
    let conflist: Value = serde_json::from_str(&conflist).unwrap();
    let range = &conflist["plugins"][0]["vipaRanges"][0];
    let bits: u32 = range
        .as_str()
        .unwrap()
        .split('/')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    // The first and the last address are the network's.
    let usable = (1_u64 << (32 - bits)) - 2;
    assert!(kubelet["maxPods"].as_u64().unwrap() <= usable);
    // Without control groups there is nothing to enforce; with the default the kubelet would not start.
    assert_eq!(kubelet["cgroupsPerQOS"], false);
    assert_eq!(kubelet["enforceNodeAllocatable"], json!([]));
    // A signal without a source of figures would never be seen, or always.
    let signals = kubelet["evictionHard"].as_object().unwrap();
    assert!(
        signals
            .keys()
            .all(|signal| signal.ends_with("fs.available"))
    );
}

#[test]
fn pods_for_zos_take_the_class_and_no_pod_names_an_operating_system() {
    let class = one("runtimeclass.yaml", "RuntimeClass")["metadata"]["name"].clone();
    let mut on_zos = 0;
    for deployment in of_kind("hybrid.yaml", "Deployment") {
        let template = &deployment["spec"]["template"];
        assert_eq!(
            deployment["spec"]["selector"]["matchLabels"],
            template["metadata"]["labels"]
        );
        let pod = &template["spec"];
        assert!(pod["os"].is_null(), "{pod}");
        if pod["runtimeClassName"].is_null() {
            assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux");
            continue;
        }
        assert_eq!(pod["runtimeClassName"], class);
        on_zos += 1;
        let page = &template["metadata"]["annotations"]["zcri.io/output-code-page"];
        zcri_codepage::setting(page.as_str().unwrap()).unwrap();
    }
    assert_eq!(on_zos, 1);
}

#[test]
fn admission_routes_to_the_class() {
    let class = one("runtimeclass.yaml", "RuntimeClass")["metadata"]["name"].clone();
    let class = class.as_str().unwrap();
    let policy = one("admission.yaml", "MutatingAdmissionPolicy");
    let mutation = &policy["spec"]["mutations"][0];
    assert_eq!(mutation["patchType"], "ApplyConfiguration");
    let expression = mutation["applyConfiguration"]["expression"]
        .as_str()
        .unwrap();
    assert!(expression.contains(&format!("runtimeClassName: \"{class}\"")));
    for (policy, binding) in [
        ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"),
        (
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ),
    ] {
        let name = &one("admission.yaml", policy)["metadata"]["name"];
        assert_eq!(one("admission.yaml", binding)["spec"]["policyName"], *name);
    }
    let validation = one("admission.yaml", "ValidatingAdmissionPolicy");
    let condition = &validation["spec"]["matchConditions"][0]["expression"];
    assert!(
        condition
            .as_str()
            .unwrap()
            .contains(&format!("== '{class}'"))
    );
}
