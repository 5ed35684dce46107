//! The deadline of a call, as its client tells it (`grpc-timeout`, gRPC over HTTP2).
//!
//! tonic keeps it too, but says CANCELLED, and a client whose own clock is a little behind believes that. This is asked
//! before tonic's, with a deadline that is no later, and so its answer comes first.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::header::HeaderMap;
use hyper::{Request, Response};
use tonic::Status;
use tonic::codegen::Service;

/// Calls with their deadlines.
#[derive(Debug, Clone)]
pub(super) struct Deadline<S>(S);

impl<S> Deadline<S> {
    pub(super) fn new(calls: S) -> Self {
        Self(calls)
    }
}

impl<S, In, Out> Service<Request<In>> for Deadline<S>
where
    S: Service<Request<In>, Response = Response<Out>, Error = Infallible>,
    S::Future: Send + 'static,
    Out: Default + 'static,
{
    type Response = Response<Out>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Out>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let limit = timeout(request.headers());
        let call = self.0.call(request);
        let Some(limit) = limit else {
            return Box::pin(call);
        };
        // Made here and not when it is first polled: see above.
        let limited = tokio::time::timeout(limit, call);
        Box::pin(async move {
            limited.await.unwrap_or_else(|_elapsed| {
                let status = Status::deadline_exceeded("the deadline of the call has passed");
                Ok(status.into_http())
            })
        })
    }
}

/// Up to eight digits and a unit. Other text is no deadline, as for tonic.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_takes_longer_is_answered_as_such_and_others_are_as_they_are() {
        let calls = |never: bool| {
            Deadline::new(tower::service_fn(move |_: Request<()>| async move {
                if never {
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(Response::new(()))
            }))
        };
        let request = |limit| {
            Request::builder()
                .header("grpc-timeout", limit)
                .body(())
                .unwrap()
        };
        let late = calls(true).call(request("1m")).await.unwrap();
        // DEADLINE_EXCEEDED.
        assert_eq!(late.headers()["grpc-status"], "4");
        for answer in [
            calls(false).call(request("1H")).await.unwrap(),
            calls(false).call(Request::new(())).await.unwrap(),
        ] {
            assert!(answer.headers().is_empty(), "{answer:?}");
        }
    }

    #[test]
    fn timeouts_are_those_of_grpc() {
        let parsed = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(parsed("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parsed("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parsed("4S"), Some(Duration::from_secs(4)));
        assert_eq!(parsed("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(parsed("5u"), Some(Duration::from_micros(5)));
        assert_eq!(parsed("6n"), Some(Duration::from_nanos(6)));
        for text in ["", "S", "5", "-1S", "+1S", "1x", "123456789S", "1 S", "1é"] {
            assert_eq!(parsed(text), None, "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }
}
