//! What the Task API has, and what it lacks, about the streams of containers and commands. The latter is the service
//! `zcri.shim.v1.Stdio`, which other shims do not have.

use std::path::Path;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc;

use super::{CALL_TIMEOUT_NS, Shim, ShimError, call, fifo};

/// ttrpc service of what the Task API lacks.
const STDIO_SERVICE: &str = "zcri.shim.v1.Stdio";

impl Shim {
    /// Makes the shim open the container's log anew, after somebody renamed it.
    ///
    /// # Errors
    /// The container is not running, or the file cannot be made.
    pub async fn reopen_log(&self, id: &str) -> Result<(), ShimError> {
        self.stdio("ReopenLog", &state(id)).await
    }

    /// Makes the shim copy a container's output, from now on, to FIFOs that are open for reading, until they are
    /// closed there or the container ends.
    ///
    /// # Errors
    /// The container is not running, or too many clients are attached to it.
    pub async fn attach(
        &self,
        id: &str,
        stdout: Option<&Path>,
        stderr: Option<&Path>,
    ) -> Result<(), ShimError> {
        let message = api::ExecProcessRequest {
            id: id.into(),
            stdout: fifo(stdout),
            stderr: fifo(stderr),
            ..Default::default()
        };
        self.stdio("Attach", &message).await
    }

    /// Kills all commands in a container with what descends from them, and forgets them: those of a daemon that died.
    ///
    /// # Errors
    /// The shim does not know the container.
    pub async fn end_execs(&self, id: &str) -> Result<(), ShimError> {
        self.stdio("EndExecs", &state(id)).await
    }

    /// Ends the standard input of a container for good, once nobody else has its FIFO open for writing.
    ///
    /// # Errors
    /// The shim does not know the container.
    pub async fn close_stdin(&self, id: &str) -> Result<(), ShimError> {
        let request = api::CloseIORequest {
            id: id.into(),
            stdin: true,
            ..Default::default()
        };
        self.tasks.close_io(call(), &request).await?;
        Ok(())
    }

    /// Sets the size of a terminal, also of one that is not there yet.
    ///
    /// # Errors
    /// The process has no terminal, or is unknown.
    pub async fn resize(
        &self,
        id: &str,
        exec_id: &str,
        width: u16,
        height: u16,
    ) -> Result<(), ShimError> {
        let request = api::ResizePtyRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            width: width.into(),
            height: height.into(),
            ..Default::default()
        };
        self.tasks.resize_pty(call(), &request).await?;
        Ok(())
    }

    async fn stdio(&self, method: &str, message: &impl Message) -> Result<(), ShimError> {
        let request = ttrpc::Request {
            service: STDIO_SERVICE.into(),
            method: method.into(),
            timeout_nano: CALL_TIMEOUT_NS,
            payload: message.write_to_bytes().unwrap_or_default(),
            ..Default::default()
        };
        self.client.request(request).await?;
        Ok(())
    }
}

fn state(id: &str) -> api::StateRequest {
    api::StateRequest {
        id: id.into(),
        ..Default::default()
    }
}
