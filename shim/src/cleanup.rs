//! The `delete` action: clearing away what a dead monitor left of one container, or of the pod's init.

use std::io::{self, Write};
use std::path::Path;

use containerd_shim_protos::api::DeleteResponse;
use protobuf::{Message, MessageField};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::args::Arguments;
use crate::bootstrap::StartError;
use crate::exit_record::{Exit, ExitRecord};
use crate::runtime::{self, CallFiles, Invocation, Runtime};

/// Exit code of what is ended here: SIGKILL.
const KILLED: u32 = 137;

/// Deletes, and prints a `DeleteResponse` as containerd's shims do.
pub(crate) fn delete(arguments: &Arguments) -> Result<(), StartError> {
    let path = |op, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| StartError::Path { op, path, source }
    };
    let call = |op| move |source: io::Error| StartError::Call { op, source };
    let bundle = std::fs::canonicalize(&arguments.bundle)
        .map_err(path("find the bundle", &arguments.bundle))?;
    let pid = runtime::read_pid(&bundle.join("init.pid")).unwrap_or(0);
    match Runtime::recorded(&bundle).map_err(path("read the runtime of", &bundle))? {
        Some(runtime) => {
            delete_by_runtime(&runtime, &bundle, &arguments.id).map_err(call("delete"))?
        }
        None => kill_pod_init(pid).map_err(call("kill the pod's init"))?,
    }
    let record = ExitRecord::read(&bundle).map_err(path("read the exit in", &bundle))?;
    let at = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let record = record.unwrap_or_else(|| ExitRecord::new(pid, Exit { code: KILLED, at }, false));
    let mut response = DeleteResponse::new();
    response.pid = record.pid;
    response.exit_status = record.exit_code;
    let mut time = protobuf::well_known_types::timestamp::Timestamp::new();
    time.seconds = i64::try_from(record.exited_at_ns / 1_000_000_000).unwrap_or(i64::MAX);
    time.nanos = i32::try_from(record.exited_at_ns % 1_000_000_000).unwrap_or_default();
    response.exited_at = MessageField::some(time);
    let bytes = response
        .write_to_bytes()
        .map_err(|e| call("encode")(io::Error::other(e)))?;
    io::stdout().lock().write_all(&bytes).map_err(call("print"))
}

fn delete_by_runtime(runtime: &Runtime, bundle: &Path, id: &str) -> io::Result<()> {
    // No monitor is alive that could use the same number.
    let files = CallFiles::new(bundle, 0);
    let mut command = runtime.delete(&Invocation {
        bundle,
        log: &files.log,
        id,
    });
    runtime::errors_to_log(&mut command, &files.log)?;
    let status = command.status()?;
    let code = status.code().map_or(255, i32::unsigned_abs);
    let message = runtime::failure(&files.log, b"", code);
    files.remove();
    if code == 0 || message.contains("does not exist") {
        Ok(())
    } else {
        Err(io::Error::other(message))
    }
}

/// Kills the init of the pod, if the number is still that of one.
fn kill_pod_init(pid: u32) -> io::Result<()> {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let pinned = match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        opened => opened?,
    };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim_end() == zcri_sys::pod_init::TITLE {
        rustix::process::pidfd_send_signal(&pinned, Signal::KILL)?;
    }
    Ok(())
}
