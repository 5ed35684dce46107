//! Calls for sessions: a request that can be served gets a URL, and the session begins when a client comes for it.
//!
//! What is refused is what containerd and CRI-O refuse, with their codes (`validateExecRequest` and its siblings in
//! `k8s.io/kubelet/pkg/cri/streaming/server.go`).

use std::sync::Arc;

use zcri_proto::v1 as api;
use zcri_streaming::{AttachRequest, ExecRequest, Server, UrlError};

use super::convert;
use super::pods::required;
use crate::error::{Error, Result};
use crate::pod::{PodState, Pods};

pub(super) fn exec(
    pods: &Arc<Pods>,
    server: &Server,
    request: api::ExecRequest,
) -> Result<api::ExecResponse> {
    required("container_id", &request.container_id)?;
    check_streams(request.tty, [request.stdin, request.stdout, request.stderr])?;
    let command = convert::command("cmd", &request.cmd)?;
    let (_, container) = pods.container(&request.container_id)?;
    container.require_running("run a command")?;
    let url = server.exec_url(ExecRequest {
        container_id: container.id.to_string(),
        command,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    });
    Ok(api::ExecResponse {
        url: url.map_err(no_url)?,
    })
}

pub(super) fn attach(
    pods: &Arc<Pods>,
    server: &Server,
    request: api::AttachRequest,
) -> Result<api::AttachResponse> {
    required("container_id", &request.container_id)?;
    check_streams(request.tty, [request.stdin, request.stdout, request.stderr])?;
    let (_, container) = pods.container(&request.container_id)?;
    container.require_running("attach to it")?;
    let url = server.attach_url(AttachRequest {
        container_id: container.id.to_string(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    });
    Ok(api::AttachResponse {
        url: url.map_err(no_url)?,
    })
}

pub(super) fn port_forward(
    pods: &Arc<Pods>,
    server: &Server,
    request: api::PortForwardRequest,
) -> Result<api::PortForwardResponse> {
    required("pod_sandbox_id", &request.pod_sandbox_id)?;
    let ports = request.port.iter().map(|port| {
        let port = u16::try_from(*port).ok().filter(|number| *number > 0);
        port.ok_or_else(|| Error::Invalid {
            field: "port",
            value: format!("{:?}", request.port),
            reason: "a port is from 1 to 65535".into(),
        })
    });
    let ports = ports.collect::<Result<Vec<u16>>>()?;
    let pod = pods
        .lookup(&request.pod_sandbox_id)?
        .ok_or_else(|| Error::no_pod(&request.pod_sandbox_id))?
        .view();
    if pod.state != PodState::Ready {
        return Err(Error::State {
            what: "pod sandbox",
            id: pod.id.to_string(),
            state: "not ready",
            action: "forward a port",
        });
    }
    let url = server.port_forward_url(pod.id.as_str(), &ports);
    Ok(api::PortForwardResponse {
        url: url.map_err(no_url)?,
    })
}

fn check_streams(tty: bool, streams: [bool; 3]) -> Result<()> {
    let [stdin, stdout, stderr] = streams;
    if tty && stderr {
        return Err(Error::Invalid {
            field: "stderr",
            value: "true".into(),
            reason: "a terminal has one output: tty and stderr cannot both be true".into(),
        });
    }
    if !(stdin || stdout || stderr) {
        return Err(Error::Request(
            "one of stdin, stdout or stderr must be true".into(),
        ));
    }
    Ok(())
}

fn no_url(error: UrlError) -> Error {
    match error {
        UrlError::Full { .. } => Error::Exhausted {
            action: "open a session",
            source: Box::new(error),
        },
        other => Error::node("open a session", other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_checked_as_the_interface_says() {
        assert!(check_streams(false, [true, true, true]).is_ok());
        assert!(check_streams(true, [true, true, false]).is_ok());
        assert!(check_streams(false, [false, false, true]).is_ok());
        assert!(check_streams(true, [true, true, true]).is_err());
        assert!(check_streams(false, [false, false, false]).is_err());
    }

    #[test]
    fn too_many_is_resource_exhausted() {
        let status = crate::cri::status::to_status(&no_url(UrlError::Full { pending: 7 }));
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().contains("7 "), "{status:?}");
    }
}
