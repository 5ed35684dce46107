//! Which method is which: containerd's Task service, under the names of both of its versions, and the monitor's own.

use containerd_shim_protos::api;
use containerd_shim_protos::ttrpc::proto::Request;

use super::Monitor;
use crate::rpc::{self, Answer, Call, Code, RpcError};

/// The Task service. Version 3 is a renamed copy of version 2, message for message.
const TASK: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// What the Task service lacks.
const STDIO: &str = "zcri.shim.v1.Stdio";

impl Monitor {
    pub(super) fn route(&mut self, call: Call, request: &Request) {
        let service = request.service.as_str();
        let answer = if TASK.contains(&service) {
            self.task(call, request.method.as_str(), &request.payload)
        } else if service == STDIO {
            self.stdio(request.method.as_str(), &request.payload)
                .map(Some)
        } else {
            Err(RpcError::new(
                Code::UNIMPLEMENTED,
                format!("/{service}/{}", request.method),
            ))
        };
        // A call without an answer yet is kept by what it waits for.
        match answer {
            Ok(Some(payload)) => self.reply(call, Ok(payload)),
            Ok(None) => {}
            Err(error) => self.reply(call, Err(error)),
        }
    }

    /// What is ours alone. The messages are those of the Task service that have the fields.
    fn stdio(&mut self, method: &str, payload: &[u8]) -> Answer {
        match method {
            "ReopenLog" => self.reopen_log(&rpc::parse(payload)?),
            "Attach" => self.attach(&rpc::parse(payload)?),
            "EndExecs" => self.end_execs(&rpc::parse(payload)?),
            _ => Err(RpcError::new(
                Code::UNIMPLEMENTED,
                format!("/{STDIO}/{method}"),
            )),
        }
    }

    /// Runs a method. `None`: the answer comes later.
    fn task(
        &mut self,
        call: Call,
        method: &str,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, RpcError> {
        let now = |answer: Answer| answer.map(Some);
        match method {
            "State" => now(self.state(&rpc::parse(payload)?)),
            "Create" => now(self.create(rpc::parse(payload)?)),
            "Start" => self.start(call, &rpc::parse(payload)?),
            "Delete" => self.delete(call, &rpc::parse(payload)?),
            "Pids" => now(self.pids(&rpc::parse(payload)?)),
            "Pause" => {
                let request: api::PauseRequest = rpc::parse(payload)?;
                self.pause(call, &request.id, true)
            }
            "Resume" => {
                let request: api::ResumeRequest = rpc::parse(payload)?;
                self.pause(call, &request.id, false)
            }
            "Kill" => now(self.kill(&rpc::parse(payload)?)),
            "Exec" => now(self.exec(rpc::parse(payload)?)),
            "ResizePty" => now(self.resize_pty(&rpc::parse(payload)?)),
            "CloseIO" => now(self.close_io(&rpc::parse(payload)?)),
            "Update" => self.update(call, &rpc::parse(payload)?),
            "Wait" => self.wait(call, &rpc::parse(payload)?),
            "Connect" => now(self.connect(&rpc::parse(payload)?)),
            "Shutdown" => now(self.shut_down(&rpc::parse(payload)?)),
            // Checkpoint and Stats among them.
            _ => Err(RpcError::new(
                Code::UNIMPLEMENTED,
                format!("/{}/{method}", TASK[0]),
            )),
        }
    }
}
