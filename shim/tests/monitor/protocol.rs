//! The socket: peers that die, peers that talk nonsense, methods that are not there.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::Code;
use protobuf::Message;

use crate::pod::{Pod, code, eventually, within};

#[test]
fn both_names_of_the_service_and_no_other() {
    let pod = Pod::new();
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        let response = pod.call(service, "Connect", Vec::new()).unwrap();
        assert_eq!(
            api::ConnectResponse::parse_from_bytes(&response.payload)
                .unwrap()
                .shim_pid,
            pod.shim_pid
        );
        for method in ["Checkpoint", "Stats", "Nonsense"] {
            let (status, message) = code(pod.call(service, method, Vec::new()));
            assert_eq!(status, Code::UNIMPLEMENTED);
            assert!(message.contains(method), "{message}");
        }
    }
    assert_eq!(
        code(pod.call("x.Y", "Z", Vec::new())),
        (Code::UNIMPLEMENTED, "/x.Y/Z".to_owned())
    );
    let malformed = code(pod.call("containerd.task.v2.Task", "State", vec![0xff; 9]));
    assert_eq!(malformed.0, Code::INVALID_ARGUMENT);
    pod.finish();
}

#[test]
fn nonsense_ends_its_own_connection_only() {
    let pod = Pod::new();
    let before = pod.shim_descriptors();
    let socket = pod.bundle().join("shim.sock");
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100]] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(bytes).unwrap();
        assert!(matches!(
            stream.read_to_end(&mut Vec::new()),
            Ok(0) | Err(_)
        ));
    }
    // Half a frame, then gone.
    UnixStream::connect(&socket)
        .unwrap()
        .write_all(&[0, 0, 1, 0, 0])
        .unwrap();
    // An even stream, and a request that is over the limit.
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(&[0, 0, 0, 0, 0, 0, 0, 2, 1, 0]).unwrap();
    let mut header = [0; 10];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[4..9], [0, 0, 0, 2, 2]);
    drop(stream);
    eventually("the end of the connections", || {
        (pod.shim_descriptors() == before).then_some(())
    });
    pod.task
        .connect(within(), &api::ConnectRequest::new())
        .unwrap();
    pod.finish();
}

#[test]
fn a_daemon_that_dies_loses_nothing() {
    let pod = Pod::new();
    let c = pod.container("c1", "echo one; cat /tmp/go 2>/dev/null; until test -e /tmp/go; do sleep 0.01; done; echo two; exit 5");
    c.run();
    c.wait_for_text("one\n");
    // A daemon waits for the exit and is killed meanwhile: its connection breaks with a request in flight.
    let mut dying = UnixStream::connect(pod.bundle().join("shim.sock")).unwrap();
    let mut wait = api::WaitRequest::new();
    wait.id = "c1".to_owned();
    let mut request = containerd_shim_protos::ttrpc::proto::Request::new();
    request.service = "containerd.task.v2.Task".to_owned();
    request.method = "Wait".to_owned();
    request.payload = wait.write_to_bytes().unwrap();
    let body = request.write_to_bytes().unwrap();
    let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    frame.extend([0, 0, 0, 1, 1, 0]);
    frame.extend(body);
    dying.write_all(&frame).unwrap();
    drop(dying);
    // The next one asks again, from another connection.
    let next = pod.reconnect();
    let waiting = std::thread::spawn(move || next.wait(within(), &wait).unwrap().exit_status);
    std::fs::write(format!("/proc/{}/root/tmp/go", c.state().unwrap().pid), "").unwrap();
    assert_eq!(waiting.join().unwrap(), 5);
    assert_eq!(c.text(), "one\ntwo\n");
    c.delete().unwrap();
    pod.finish();
}

#[test]
fn many_connections_and_pipelined_requests() {
    let pod = Pod::new();
    let c = pod.container("c1", "sleep 1000");
    c.run();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let client = pod.reconnect();
            let c = &c;
            scope.spawn(move || {
                let mut state = api::StateRequest::new();
                state.id.clone_from(&c.id);
                for _ in 0..200 {
                    assert_eq!(
                        client.state(within(), &state).unwrap().status.enum_value(),
                        Ok(api::Status::RUNNING)
                    );
                }
            });
        }
    });
    c.kill(9, false).unwrap();
    c.wait();
    c.delete().unwrap();
    pod.finish();
}
