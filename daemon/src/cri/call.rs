//! What every call has around it: a span with a request id, a log line, and a task of its own if it changes
//! something.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tonic::{Code, Response, Status};
use tracing::{Instrument as _, Span};

use super::Services;
use super::status::to_status;
use crate::error::{Chain, Error, Result};
use crate::messages;
use crate::node::Node;

/// A call that is being served.
pub(super) struct Call {
    rpc: &'static str,
    begun: Instant,
    span: Span,
    node: Arc<Node>,
}

impl Services {
    /// Begins a call, with the ids that it names.
    pub(super) fn call(&self, rpc: &'static str, pod: &str, container: &str) -> Call {
        Call {
            rpc,
            begun: Instant::now(),
            span: span(rpc, pod, container),
            node: self.pods.node().clone(),
        }
    }
}

/// The span of a call: its name, a number that no other call of this process has, and the ids it names.
fn span(rpc: &'static str, pod: &str, container: &str) -> Span {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let request = NEXT.fetch_add(1, Ordering::Relaxed);
    let span = tracing::info_span!(
        "rpc",
        rpc,
        request,
        pod = tracing::field::Empty,
        container = tracing::field::Empty
    );
    if !pod.is_empty() {
        span.record("pod", pod);
    }
    if !container.is_empty() {
        span.record("container", container);
    }
    span
}

/// A call that only looks.
pub(super) async fn look<T>(
    call: Call,
    work: impl Future<Output = Result<T>>,
) -> Result<Response<T>, Status> {
    let result = work.instrument(call.span.clone()).await;
    finish(result, &call)
}

/// A call that changes something: it goes on when its client is gone.
pub(super) async fn change<T: Send + 'static>(
    call: Call,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let task = tokio::spawn(work.instrument(call.span.clone()));
    let result = task
        .await
        .unwrap_or_else(|error| Err(Error::node("serve the request", error)));
    finish(result, &call)
}

fn finish<T>(result: Result<T>, call: &Call) -> Result<Response<T>, Status> {
    let _entered = call.span.enter();
    let operations = &call.node.operations;
    let note = |code| operations.note(call.rpc, call.begun.elapsed(), code);
    match result {
        Ok(answer) => {
            note(None);
            tracing::debug!("done");
            Ok(Response::new(answer))
        }
        Err(error) => {
            let error = call.node.platform.explain(error);
            let status = to_status(&error);
            tell_operator(&error, status.code());
            note(Some(status.code()));
            match status.code() {
                // UNKNOWN is no failure of the node: a container cannot run what a client, a probe for example, names.
                Code::Internal => tracing::warn!(error = %Chain(&error), "failed"),
                code => tracing::info!(error = %Chain(&error), ?code, "refused"),
            }
            Err(status)
        }
    }
}

/// What a failed call means for the node, not only for its caller.
fn tell_operator(error: &Error, code: Code) {
    if error.is_out_of_space() {
        tracing::info!(zcr = messages::STORAGE_FULL, error = %Chain(error), "storage is full");
    }
    let refused = matches!(code, Code::PermissionDenied | Code::Unauthenticated);
    if refused && matches!(error, Error::Image { .. }) {
        tracing::info!(zcr = messages::IMAGE_REFUSED, error = %Chain(error), "an image is refused");
    }
}
