//! Commands by the system's own console: MODIFY and STOP of a started task.

use std::sync::Arc;

use tokio::runtime::Handle;
use zcri_sys::console::{Console, Request, Requests};

use super::Operator;

/// Obeys what comes from there, on a thread of its own, because waiting for a command blocks; answers go to `console`.
/// The thread ends with the process, or with the console.
///
/// # Errors
/// No thread can be started.
pub fn listen(
    operator: Arc<Operator>,
    mut requests: Box<dyn Requests>,
    console: Box<dyn Console>,
) -> std::io::Result<()> {
    let runtime = Handle::current();
    let work = move || {
        loop {
            let text = match requests.next() {
                Ok(Request::Modify(text)) => text,
                Ok(Request::Stop) => "STOP".to_owned(),
                Err(error) => {
                    tracing::warn!(%error, "no more commands come from the console");
                    return;
                }
            };
            let answer = runtime.block_on(operator.obey(&text));
            for line in answer.lines {
                if let Err(error) = console.write(&line) {
                    tracing::warn!(%error, "the console cannot be written");
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("console".into())
        .spawn(work)
        .map(drop)
}
