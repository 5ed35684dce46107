//! Attach sessions: the streams of a container's own process.
//!
//! Output comes from the shim, which copies it to FIFOs and converts it; input goes into the container's own FIFO, past the shim if
//! there is no terminal. What the end of a client's input means is what containerd and CRI-O make of it: it is the
//! end of the container's if the container gives its input away once and has no terminal, and detaches otherwise.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tracing::Instrument as _;
use zcri_streaming::{
    AttachRequest, ExitStatus, Input, Output, Session, SessionControl, SessionError, TerminalSize,
};

use super::fifo::{FifoInput, FifoName, FifoOutput, MOST_BYTES};
use super::{Busy, End, next_id, refused, resize, stdin_taken, wait_for_end};
use crate::container::ContainerView;
use crate::error::{Chain, Error, Result};
use crate::pod::PodHandle;
use crate::runtime::{Shim, ShimError};

/// Joins the streams of a container that runs.
pub(crate) async fn attach(
    pod: &PodHandle,
    container: &Arc<ContainerView>,
    request: AttachRequest,
    busy: Busy,
) -> Result<Session, SessionError> {
    container
        .require_running("attach to it")
        .map_err(|e| refused(&e))?;
    let shim = pod.shim("attach").map_err(|e| refused(&e))?.clone();
    let [stdout, stderr] = outputs(&shim, container, &request).await?;
    let (input_ended, input_end) = oneshot::channel();
    let (input, own_input) = match &request {
        AttachRequest { stdin: true, .. } => stdin(container).await.map_err(|e| refused(&e))?,
        _ => (None, false),
    };
    // The end of an input that goes nowhere means nothing.
    let fed = input.is_some();
    let stdin = request
        .stdin
        .then(|| -> Input { Box::new(FifoInput::new(input, fed.then_some(input_ended))) });
    let (publish, end) = watch::channel(None);
    let (detach, detached) = watch::channel(false);
    let (cancel, cancelled) = oneshot::channel();
    let task = Task {
        shim: shim.clone(),
        pod: pod.clone(),
        container: container.clone(),
        own_input,
    };
    let span = tracing::info_span!("attach", container = %container.id);
    tokio::spawn(
        async move {
            let input_end = fed.then_some(input_end);
            if task.run(input_end, cancelled).await {
                detach.send_replace(true);
            }
            // Whatever became of the container, the attachment itself was a success, as everywhere in the field.
            publish.send_replace(Some(End::Code(0)));
            drop(busy);
        }
        .instrument(span),
    );
    let output = |pipe: Option<pipe::Receiver>| {
        let mut detached = detached.clone();
        let over = async move {
            // Without a word the container has ended: the shim closes the FIFO, after its last words.
            if detached.wait_for(|yes| *yes).await.is_err() {
                std::future::pending::<()>().await;
            }
            String::new()
        };
        pipe.map(|pipe| -> Output { Box::new(FifoOutput::new(pipe, over, None)) })
    };
    Ok(Session {
        stdin,
        stdout: output(stdout),
        stderr: output(stderr),
        control: Box::new(AttachControl {
            shim,
            id: container.id.to_string(),
            tty: container.config.tty,
            end,
            _cancel: cancel,
        }),
    })
}

/// This side's ends of the outputs, which the shim writes to from now on.
async fn outputs(
    shim: &Shim,
    container: &ContainerView,
    request: &AttachRequest,
) -> Result<[Option<pipe::Receiver>; 2], SessionError> {
    let name = next_id("attach");
    let make = |wanted: bool, suffix: &str| {
        let path = container.bundle.join(format!("{name}.{suffix}"));
        let made = wanted.then(|| FifoName::make(path)).transpose()?;
        let reader = made.as_ref().map(|fifo| fifo.reader(MOST_BYTES, false));
        Ok((made, reader.transpose()?))
    };
    let (stdout, out) = make(request.stdout, "out").map_err(|e: Error| refused(&e))?;
    let (stderr, err) = make(request.stderr, "err").map_err(|e: Error| refused(&e))?;
    let path = |name: &Option<FifoName>| name.as_ref().map(|name| name.path().to_owned());
    shim.attach(
        container.id.as_str(),
        path(&stdout).as_deref(),
        path(&stderr).as_deref(),
    )
    .await
    .map_err(|error| not_attached(&error))?;
    Ok([out, err])
}

fn not_attached(error: &ShimError) -> SessionError {
    let message = Chain(error).to_string();
    if error.is_not_found() || error.is_precondition() {
        SessionError::NotRunning { message }
    } else {
        SessionError::Internal { message }
    }
}

/// The writing end of a container's standard input, if it has one and it is to be had; and whether its end is the
/// container's.
async fn stdin(container: &ContainerView) -> Result<(Option<pipe::Sender>, bool)> {
    let config = &container.config;
    if !config.stdin {
        return Ok((None, false));
    }
    if config.stdin_once {
        // Noted on disk, as its owner may be a daemon that died.
        match tokio::fs::File::create_new(stdin_taken(&container.bundle)).await {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok((None, false)),
            Err(e) => return Err(Error::node("take the input of a container", e)),
        }
    }
    match pipe::OpenOptions::new().open_sender(container.bundle.join("stdin")) {
        Ok(sender) => Ok((Some(sender), config.stdin_once)),
        // ENXIO: the input was closed, nobody reads it any more.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
            Ok((None, false))
        }
        Err(e) => Err(Error::node("open the input of a container", e)),
    }
}

/// Ends the input of a container whose only client was one of a daemon that died.
pub(crate) async fn close_taken_stdin(shim: &Shim, container: &ContainerView) {
    if container.config.stdin_once
        && tokio::fs::try_exists(stdin_taken(&container.bundle))
            .await
            .unwrap_or(true)
        && let Err(error) = shim.close_stdin(container.id.as_str()).await
    {
        tracing::warn!(container = %container.id, error = %Chain(&error), "its input was not closed");
    }
}

/// One attachment from its start to its end.
struct Task {
    shim: Shim,
    pod: PodHandle,
    container: Arc<ContainerView>,
    own_input: bool,
}

impl Task {
    /// Is the client detached from a container that goes on?
    async fn run(
        &self,
        input_end: Option<oneshot::Receiver<()>>,
        mut cancelled: oneshot::Receiver<()>,
    ) -> bool {
        let ended = self.pod.ended(&self.container.id);
        tokio::pin!(ended);
        if let Some(input_end) = input_end {
            let gone = tokio::select! {
                () = &mut ended => return false,
                // Told or dropped, it is the end.
                _ = input_end => false,
                _ = &mut cancelled => true,
            };
            if self.own_input
                && let Err(error) = self.shim.close_stdin(self.container.id.as_str()).await
            {
                tracing::info!(%error, "the input was not closed");
            }
            if gone || !self.own_input || self.container.config.tty {
                return true;
            }
        }
        tokio::select! {
            () = &mut ended => false,
            _ = &mut cancelled => true,
        }
    }
}

/// The handle of an attachment. When it goes, the client is detached.
struct AttachControl {
    shim: Shim,
    id: String,
    tty: bool,
    end: watch::Receiver<Option<End>>,
    _cancel: oneshot::Sender<()>,
}

impl SessionControl for AttachControl {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.tty {
                resize(&self.shim, &self.id, "", size).await;
            }
        })
    }

    fn wait(&self) -> BoxFuture<'_, Result<ExitStatus, SessionError>> {
        Box::pin(wait_for_end(self.end.clone()))
    }
}
