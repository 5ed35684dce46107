//! Pods with dynamic VIPAs by our own plugin, with network namespaces and without.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use zcri_integration::plugin;
use zcri_integration::pod::{pod_security, words};
use zcri_integration::v1::{NamespaceMode, NamespaceOption, PortMapping, Protocol};
use zcri_integration::{Pod, Test, TestNode, wait};

/// A node whose pods share its TCP/IP stack.
async fn on_stack() -> Result<TestNode> {
    let node = TestNode::builder()
        .config("[network]\nisolation = \"stack\"")
        .start()
        .await?;
    plugin::dvipa(&node, json!({ "backend": "stack" }), &[])?;
    Ok(node)
}

async fn in_namespaces() -> Result<TestNode> {
    let node = TestNode::start().await?;
    let portmap =
        json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } });
    plugin::dvipa(&node, json!({ "backend": "netns" }), &[portmap])?;
    Ok(node)
}

/// The pod's addresses: IPv4 and IPv6.
async fn addresses(node: &TestNode, pod: &Pod<'_>) -> Result<(IpAddr, IpAddr)> {
    let network = node.cri().pod_status(&pod.id).await?.network;
    let network = network.context("no network")?;
    let more = network.additional_ips.first().context("one address only")?;
    Ok((network.ip.parse()?, more.ip.parse()?))
}

/// A web server in the pod, on port 80 of any address, that says its name.
async fn serve(node: &TestNode, pod: &Pod<'_>, says: &str) -> Result<String> {
    let mut config = node.container_config("web").await?;
    let script = format!(
        "mkdir /www && echo {says} > /www/index.html && exec httpd -f -p 0.0.0.0:80 -h /www"
    );
    config.command = words(["/bin/sh", "-c", &script]);
    pod.start(&config).await
}

/// What the web server at `address` says, once it is up.
async fn ask(address: SocketAddr) -> Result<String> {
    wait::until("the web server to answer", wait::PATIENCE, async || {
        let Ok(mut stream) = TcpStream::connect(address).await else {
            return Ok(None);
        };
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let body = text.split("\r\n\r\n").nth(1);
        Ok(body.map(|body| body.trim().to_owned()))
    })
    .await
}

/// The address from which a container connects to the host at `host`.
async fn source(node: &TestNode, container: &str, host: IpAddr) -> Result<IpAddr> {
    let listener = TcpListener::bind((host, 0)).await?;
    let to = listener.local_addr()?;
    let command = format!("nc {} {} </dev/null", to.ip(), to.port());
    // The connection is closed at once, so that the other side ends.
    let peer = async { Ok::<_, std::io::Error>(listener.accept().await?.1.ip()) };
    let (peer, ran) = tokio::join!(
        tokio::time::timeout(wait::PATIENCE, peer),
        node.exec(container, &command)
    );
    ran?;
    Ok(peer.context("nobody came")??)
}

#[tokio::test]
async fn two_pods_of_one_stack_listen_on_the_same_port() -> Test {
    let node = on_stack().await?;
    let (one, two) = (node.pod("one").await?, node.pod("two").await?);
    let web = serve(&node, &one, "one").await?;
    serve(&node, &two, "two").await?;
    let ((ip_one, v6_one), (ip_two, _)) =
        (addresses(&node, &one).await?, addresses(&node, &two).await?);
    assert_eq!(ask((ip_one, 80).into()).await?, "one");
    assert_eq!(ask((ip_two, 80).into()).await?, "two");
    let other = format!("wget -q -O - http://{ip_two}/");
    let other = node.exec(&web, &other).await?;
    assert_eq!(other.success()?, "two", "from pod to pod");

    // What a pod sends comes from its own address.
    for (host, own) in [(ip_two, ip_one), ("::1".parse()?, "::1".parse()?)] {
        assert_eq!(source(&node, &web, host).await?, own, "to {host}");
    }
    ensure!(v6_one.is_ipv6());

    // The address of another pod is not to be had.
    let foreign = format!("httpd -f -p {ip_two}:8080");
    let foreign = node.exec(&web, &foreign).await?;
    assert_ne!(foreign.code, 0, "bound to {ip_two}");
    assert!(foreign.stderr.contains("Cannot assign"), "{foreign:?}");
    node.finish().await
}

#[tokio::test]
async fn a_shared_pid_namespace_and_another_runtime_are_confined_too() -> Test {
    let node = on_stack().await?;
    let mut config = node.pod_config("shared")?;
    pod_security(&mut config).namespace_options = Some(NamespaceOption {
        pid: NamespaceMode::Pod.into(),
        ..Default::default()
    });
    let first = node.run_pod(config).await?;
    let second = node.run_pod_with(node.pod_config("crun")?, "crun").await?;
    for (pod, says) in [(&first, "first"), (&second, "second")] {
        let web = serve(&node, pod, says).await?;
        let (ip, _) = addresses(&node, pod).await?;
        assert_eq!(ask((ip, 80).into()).await?, says);
        // A connection to another address of the node.
        let other = if says == "first" { &second } else { &first };
        let (other, _) = addresses(&node, other).await?;
        assert_eq!(source(&node, &web, other).await?, ip);
    }
    node.finish().await
}

#[tokio::test]
async fn pods_with_the_nodes_network_are_free() -> Test {
    let node = on_stack().await?;
    let mut config = node.pod_config("host")?;
    pod_security(&mut config).namespace_options = Some(NamespaceOption {
        network: NamespaceMode::Node.into(),
        ..Default::default()
    });
    let pod = node.run_pod(config).await?;
    let id = pod.sleeper("c").await?;
    let (vipa, _) = addresses(&node, &node.pod("other").await?).await?;
    // A confined pod would be told that the address is not available; this one waits for somebody to connect.
    let bound = format!("timeout 1 httpd -f -p {vipa}:8081");
    let bound = node.exec(&id, &bound).await?;
    assert!(bound.stderr.is_empty() && bound.code == 143, "{bound:?}");
    node.finish().await
}

#[tokio::test]
async fn addresses_go_with_their_pods() -> Test {
    let node = on_stack().await?;
    let pod = node.pod("p").await?;
    let (ip, v6) = addresses(&node, &pod).await?;
    let on_the_stack = |ip: IpAddr| std::net::UdpSocket::bind((ip, 0)).is_ok();
    assert!(on_the_stack(ip) && on_the_stack(v6));
    node.cri().stop_pod(&pod.id).await?;
    assert!(
        !on_the_stack(ip) && !on_the_stack(v6),
        "{ip} or {v6} is still there"
    );
    // One that was just given back is not given out at once.
    let next = node.pod("q").await?;
    assert_ne!(addresses(&node, &next).await?.0, ip);
    node.finish().await
}

#[tokio::test]
async fn a_pod_gets_the_address_that_it_asks_for() -> Test {
    let node = on_stack().await?;
    node.allow_log("RunPodSandbox");
    let wanted = node.slot().subnet().replace("0/24", "77");
    let mut config = node.pod_config("p")?;
    config
        .annotations
        .insert("zcri.io/ips".into(), wanted.clone());
    let pod = node.run_pod(config.clone()).await?;
    assert_eq!(addresses(&node, &pod).await?.0.to_string(), wanted);
    config.metadata.get_or_insert_default().name = "q".into();
    let taken = node.cri().run_pod(&config).await.err();
    let taken = taken.context("two pods with one address")?;
    assert!(taken.message().contains(&wanted), "{taken:?}");
    node.finish().await
}

#[tokio::test]
async fn pods_in_namespaces_reach_each_other_and_the_host() -> Test {
    let node = in_namespaces().await?;
    let (web, client) = (node.pod("web").await?, node.pod("client").await?);
    serve(&node, &web, "hello").await?;
    let (ip, v6) = addresses(&node, &web).await?;
    assert_eq!(ask((ip, 80).into()).await?, "hello", "from the host");
    let from = client.sh(&format!("wget -q -O - http://{ip}/")).await?;
    assert_eq!(from.success()?, "hello", "from another pod");
    let own = client.sh("ip -o addr show dev eth0").await?;
    let (client_ip, client_v6) = addresses(&node, &client).await?;
    for address in [format!("{client_ip}/32"), format!("{client_v6}/128")] {
        assert!(own.success()?.contains(&address), "{own:?}");
    }
    let ping = client.sh(&format!("ping -c 1 -W 5 {v6}")).await?;
    ping.success()?;
    node.finish().await
}

#[tokio::test]
async fn host_ports_lead_to_a_vipa() -> Test {
    let mut node = in_namespaces().await?;
    node.allow_log("RunPodSandbox");
    let listener = std::net::TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    drop(listener);
    let mut config = node.pod_config("web")?;
    config.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 80,
        host_port: port.into(),
        host_ip: String::new(),
    }];
    let pod = node.run_pod(config).await?;
    serve(&node, &pod, "by-host-port").await?;
    // Not by loopback, which portmap serves with a sysctl of the whole node.
    let host = own_address()?;
    assert_eq!(ask((host, port).into()).await?, "by-host-port");

    // The port has one holder, also for a daemon that comes later, and is free when its pod is gone.
    let mut second = node.pod_config("second")?;
    second.port_mappings.clone_from(&pod.config.port_mappings);
    let holder = pod.id.clone();
    drop(pod);
    node.kill_daemon().await?;
    node.start_daemon().await?;
    let conflict = node.cri().run_pod(&second).await.err();
    let conflict = conflict.context("two pods have one port of the node")?;
    assert_eq!(conflict.code(), tonic::Code::InvalidArgument);
    for part in [port.to_string(), holder.clone()] {
        assert!(conflict.message().contains(&part), "{conflict:?}");
    }
    node.cri().remove_pod(&holder).await?;
    node.run_pod(second).await?;
    node.finish().await
}

/// An address of this machine that others can reach.
fn own_address() -> Result<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // Nothing is sent by this: the kernel only chooses the way.
    socket.connect("192.0.2.1:9")?;
    Ok(socket.local_addr()?.ip())
}

#[tokio::test]
async fn everything_is_given_back_after_a_crash() -> Test {
    let mut node = on_stack().await?;
    for n in 0..4 {
        node.pod(&format!("p{n}")).await?;
    }
    node.kill_daemon().await?;
    node.start_daemon().await?;
    assert_eq!(node.cri().list_pods(Default::default()).await?.len(), 4);
    node.pod("after").await?;
    node.remove_pods().await?;
    let dir = node.files().dir.join("dvipa");
    let left = leases(&dir)?;
    assert!(left.is_empty(), "{left:?}");
    node.finish().await
}

/// Files of leases, which are named as their addresses.
fn leases(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)?.flatten() {
        if entry.path().is_dir() {
            found.extend(leases(&entry.path())?);
        } else {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.extend(name.parse::<IpAddr>().is_ok().then_some(name));
        }
    }
    Ok(found)
}
