//! What the plugin answers: a result, or an error, in the version of the specification that was asked in.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::{
    backend::{Attached, Interface},
    error::Error,
    request::VERSIONS,
};

/// The answer to ADD: what came before, and what was made. Source: SPEC.md section 5, "Success".
#[must_use]
pub fn added(
    version: &str,
    before: Option<&Value>,
    attached: &Attached,
    addresses: &[IpAddr],
    dns: Option<&Value>,
) -> Value {
    let mut result = before
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let mut interfaces = take(&mut result, "interfaces");
    let offset = interfaces.len();
    interfaces.extend(attached.interfaces.iter().map(|i| interface(version, i)));
    let mut ips = take(&mut result, "ips");
    ips.extend(addresses.iter().map(|ip| {
        let index = attached.addresses_on.map(|index| index + offset);
        address(version, *ip, gateway(attached, *ip), index)
    }));
    let mut routes = take(&mut result, "routes");
    routes.extend(addresses.iter().filter_map(|ip| {
        let gateway = gateway(attached, *ip)?;
        let to = if ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        Some(json!({"dst": to, "gw": gateway}))
    }));
    for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
        result.insert(key.to_owned(), Value::Array(list));
    }
    if let Some(dns) = dns {
        result.insert("dns".to_owned(), dns.clone());
    }
    result.entry("dns").or_insert_with(|| json!({}));
    result.insert("cniVersion".to_owned(), json!(version));
    Value::Object(result)
}

/// The list of this name, taken out.
fn take(result: &mut Map<String, Value>, key: &str) -> Vec<Value> {
    match result.remove(key) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn gateway(attached: &Attached, ip: IpAddr) -> Option<IpAddr> {
    let same = |gateway: &&IpAddr| gateway.is_ipv4() == ip.is_ipv4();
    attached.gateways.iter().find(same).copied()
}

fn interface(version: &str, interface: &Interface) -> Value {
    let mut object = json!({"name": interface.name, "mac": interface.mac});
    if let Some(sandbox) = &interface.sandbox {
        object["sandbox"] = json!(sandbox);
    }
    // Keys of 1.1.0.
    if let (Some(mtu), "1.1.0") = (interface.mtu, version) {
        object["mtu"] = json!(mtu);
    }
    object
}

fn address(version: &str, ip: IpAddr, gateway: Option<IpAddr>, index: Option<usize>) -> Value {
    let length = if ip.is_ipv4() { 32 } else { 128 };
    let mut object = json!({"address": format!("{ip}/{length}")});
    if let Some(gateway) = gateway {
        object["gateway"] = json!(gateway);
    }
    if let Some(index) = index {
        object["interface"] = json!(index);
    }
    // A key that 1.0.0 did away with.
    if version < "1.0.0" {
        object["version"] = json!(if ip.is_ipv4() { "4" } else { "6" });
    }
    object
}

/// The answer to VERSION.
#[must_use]
pub fn versions(asked_in: &str) -> Value {
    let spoken = VERSIONS.contains(&asked_in);
    let version = if spoken { asked_in } else { VERSIONS[4] };
    json!({"cniVersion": version, "supportedVersions": VERSIONS})
}

/// An error. Source: SPEC.md section 5, "Error".
#[must_use]
pub fn failed(version: &str, error: &Error) -> Value {
    let message = error.to_string();
    let chain = error.chain();
    let details = chain.strip_prefix(&message).unwrap_or_default();
    json!({
        "cniVersion": version,
        "code": error.code(),
        "msg": message,
        "details": details.trim_start_matches(": "),
    })
}
