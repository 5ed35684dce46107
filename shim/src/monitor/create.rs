//! `Create` and `Exec`: recording what shall run, and opening its streams.

use std::path::{Path, PathBuf};

use containerd_shim_protos::api;
use containerd_shim_protos::shim::oci::Options;
use protobuf::well_known_types::any::Any;
use rustix::fs::OFlags;
use zcri_sys::pod_init::PodInit;

use super::Monitor;
use crate::audience::Audience;
use crate::container::{Cleanup, Container, Io, Kind, Phase, Process, Program};
use crate::cri_log::LogFile;
use crate::rpc::{self, Answer, Code, RpcError};
use crate::runtime::Runtime;
use crate::spec::Spec;
use crate::stdio::{self, Target};

/// Runtime of a request that names none, as containerd's shim for runc has it.
const DEFAULT_RUNTIME: &str = "runc";

impl Monitor {
    pub(super) fn create(&mut self, request: api::CreateTaskRequest) -> Answer {
        check_id("id", &request.id)?;
        if self.containers.contains_key(&request.id) {
            return Err(RpcError::new(
                Code::ALREADY_EXISTS,
                format!("container {:?} exists already", request.id),
            ));
        }
        if !request.rootfs.is_empty() || !request.checkpoint.is_empty() {
            return Err(RpcError::new(
                Code::UNIMPLEMENTED,
                "Create with rootfs mounts or a checkpoint",
            ));
        }
        let bundle = PathBuf::from(&request.bundle);
        if !bundle.is_absolute() {
            return Err(RpcError::invalid(format!(
                "bundle {:?} is not absolute",
                request.bundle
            )));
        }
        let spec = Spec::read(&bundle).map_err(|e| {
            RpcError::precondition(format!(
                "read {}: {e}",
                bundle.join("config.json").display()
            ))
        })?;
        let kind = kind_of(&spec, &request)?;
        let output_rule = spec
            .output_rule()
            .map_err(|e| RpcError::invalid(format!("zcri.io/output-code-page: {e}")))?;
        if let Kind::Oci(runtime) = &kind {
            runtime.record(&bundle).map_err(|e| {
                RpcError::internal(format!("write to the bundle {}: {e}", bundle.display()))
            })?;
        }
        let (io, log) = open_streams(&request)?;
        let init = self.number();
        let process = Process {
            container: request.id.clone(),
            exec_id: String::new(),
            program: Program::Init,
            phase: Phase::Created,
            terminal: request.terminal,
            stdio: [request.stdin, request.stdout, request.stderr],
            size: None,
            io,
            cgroup: None,
            doomed: false,
            starter: None,
            waiters: Vec::new(),
        };
        let container = Container {
            bundle,
            kind,
            cgroups_path: spec.cgroups_path().map(str::to_owned),
            own_pid_namespace: spec.has_own_pid_namespace(),
            init,
            execs: std::collections::BTreeMap::new(),
            log,
            output_rule,
            audience: Audience::default(),
            cgroup: None,
            oom_kills: 0,
            oom_events: None,
            oom_killed: false,
            stream_owner: spec.stream_owner(),
            paused: false,
            cleanup: Cleanup::Clean,
            deleters: Vec::new(),
        };
        self.processes.insert(init, process);
        self.containers.insert(request.id, container);
        // There is no process before Start, where create and start are one call of the runtime.
        rpc::answer(&api::CreateTaskResponse::new())
    }

    pub(super) fn exec(&mut self, request: api::ExecProcessRequest) -> Answer {
        check_id("exec_id", &request.exec_id)?;
        let container = self
            .containers
            .get(&request.id)
            .ok_or_else(|| RpcError::not_found("container", &request.id))?;
        if container.execs.contains_key(&request.exec_id) {
            return Err(RpcError::new(
                Code::ALREADY_EXISTS,
                format!("exec {:?} exists already", request.exec_id),
            ));
        }
        if let Kind::PodInit { .. } = container.kind {
            return Err(RpcError::precondition(
                "the pod's init has no root to run anything in",
            ));
        }
        self.process(container.init)?
            .phase
            .alive()
            .map_err(|e| RpcError::precondition(e.message))?;
        let process = exec_process(request.spec.as_ref(), request.terminal)?;
        let io = open_exec_streams(&request)?;
        let key = self.number();
        let process = Process {
            container: request.id.clone(),
            exec_id: request.exec_id.clone(),
            program: Program::Exec { process },
            phase: Phase::Created,
            terminal: request.terminal,
            stdio: [request.stdin, request.stdout, request.stderr],
            size: None,
            io,
            cgroup: None,
            doomed: false,
            starter: None,
            waiters: Vec::new(),
        };
        self.processes.insert(key, process);
        if let Some(container) = self.containers.get_mut(&request.id) {
            container.execs.insert(request.exec_id, key);
        }
        rpc::empty()
    }
}

fn check_id(field: &str, id: &str) -> Result<(), RpcError> {
    // Ids end up on command lines and in file names of the runtime.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
    let ok = id.chars().all(plain)
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.len() <= 1024;
    if ok {
        Ok(())
    } else {
        Err(RpcError::invalid(format!("{field} {id:?} is not an id")))
    }
}

fn kind_of(spec: &Spec, request: &api::CreateTaskRequest) -> Result<Kind, RpcError> {
    if spec.is_sandbox() {
        let namespaces = spec.namespaces_to_join().map_err(|other| {
            RpcError::new(
                Code::UNIMPLEMENTED,
                format!("a pod's init in a {other} namespace"),
            )
        })?;
        return Ok(Kind::PodInit {
            init: PodInit {
                namespaces,
                root: request.bundle.clone().into(),
                labels: spec.labels(),
            },
            report: None,
        });
    }
    let options: Options = match request.options.as_ref() {
        None => Options::new(),
        Some(any)
            if any
                .type_url
                .trim_start_matches('/')
                .ends_with("containerd.runc.v1.Options") =>
        {
            rpc::parse(&any.value)?
        }
        Some(any) => {
            return Err(RpcError::invalid(format!(
                "options of unknown type {:?}",
                any.type_url
            )));
        }
    };
    let binary = if options.binary_name.is_empty() {
        DEFAULT_RUNTIME.to_owned()
    } else {
        options.binary_name
    };
    Ok(Kind::Oci(Runtime {
        binary,
        root: options.root,
        systemd_cgroup: options.systemd_cgroup,
        no_pivot_root: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
        execs_without_cgroup: false,
    }))
}

/// The process of an exec as JSON, with its terminal as the request has it.
fn exec_process(spec: Option<&Any>, terminal: bool) -> Result<Vec<u8>, RpcError> {
    let value = spec.map(|any| any.value.as_slice()).unwrap_or_default();
    let mut process: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(value)
        .map_err(|e| RpcError::invalid(format!("spec is no process in JSON: {e}")))?;
    process.insert("terminal".to_owned(), terminal.into());
    serde_json::to_vec(&process).map_err(|e| RpcError::internal(format!("encode the process: {e}")))
}

fn target(field: &str, text: &str) -> Result<Target, RpcError> {
    Target::parse(text).map_err(|e| RpcError::invalid(format!("{field}: {e}")))
}

fn open_fifo(field: &str, path: &Path, access: OFlags) -> Result<std::os::fd::OwnedFd, RpcError> {
    stdio::open_fifo(path, access).map_err(|e| {
        RpcError::precondition(format!("{field}: open the FIFO {}: {e}", path.display()))
    })
}

/// Where both outputs of a process go. A terminal has one.
fn outputs(terminal: bool, stdout: &str, stderr: &str) -> Result<[Target; 2], RpcError> {
    let stderr = if terminal { "" } else { stderr };
    Ok([target("stdout", stdout)?, target("stderr", stderr)?])
}

/// The streams of a container: FIFOs opened for both directions, so that they never end by themselves, and the log.
fn open_streams(request: &api::CreateTaskRequest) -> Result<(Io, Option<LogFile>), RpcError> {
    let (mut io, mut log_path) = (Io::default(), None);
    if !request.stdin.is_empty() {
        io.stdin = Some(open_fifo("stdin", Path::new(&request.stdin), OFlags::RDWR)?);
    }
    let [stdout, stderr] = outputs(request.terminal, &request.stdout, &request.stderr)?;
    for (field, target, kept) in [
        ("stdout", stdout, &mut io.stdout),
        ("stderr", stderr, &mut io.stderr),
    ] {
        match target {
            Target::Null => {}
            Target::Fifo(path) => *kept = Some(open_fifo(field, &path, OFlags::RDWR)?),
            Target::Log(path) => match &log_path {
                Some(other) if *other != path => {
                    return Err(RpcError::invalid("stdout and stderr name different logs"));
                }
                _ => log_path = Some(path),
            },
        }
    }
    let log = log_path.map(|path| {
        LogFile::open(&path)
            .map_err(|e| RpcError::precondition(format!("open the log {}: {e}", path.display())))
    });
    Ok((io, log.transpose()?))
}

/// The streams of an exec: FIFOs that the caller holds open at their other ends.
fn open_exec_streams(request: &api::ExecProcessRequest) -> Result<Io, RpcError> {
    let mut io = Io::default();
    if !request.stdin.is_empty() {
        io.stdin = Some(open_fifo(
            "stdin",
            Path::new(&request.stdin),
            OFlags::RDONLY,
        )?);
    }
    let [stdout, stderr] = outputs(request.terminal, &request.stdout, &request.stderr)?;
    for (field, target, kept) in [
        ("stdout", stdout, &mut io.stdout),
        ("stderr", stderr, &mut io.stderr),
    ] {
        match target {
            Target::Null => {}
            Target::Fifo(path) => *kept = Some(open_fifo(field, &path, OFlags::WRONLY)?),
            Target::Log(_) => {
                return Err(RpcError::invalid(format!("{field}: an exec has no log")));
            }
        }
    }
    Ok(io)
}
