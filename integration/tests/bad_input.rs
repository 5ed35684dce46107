//! Every field of every request of the interface, with values that cannot be: no handler panics, what is refused is
//! refused as such, and nothing is made of it.
//!
//! The table is the interface's own description, so that a field that comes with a newer one is tried too.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    MethodDescriptor, ReflectMessage as _, Value,
};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};
use zcri_integration::v1::{CreateContainerRequest, RunPodSandboxRequest};
use zcri_integration::{Test, TestNode};

/// Messages within messages that are entered. The deepest field of the interface is within.
const DEPTH: usize = 6;
/// A call that only waits (an open stream, a watch) has said all it will by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Messages as the bytes that they are.
#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let len = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, len).to_vec()))
    }
}

fn interface() -> Result<DescriptorPool> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/proto");
    let set = protox::compile(["api.proto"], [dir])?;
    Ok(DescriptorPool::from_file_descriptor_set(set)?)
}

/// Sends a request; gives the code and the words of the answer, also of one that is a stream.
async fn send(node: &TestNode, method: &MethodDescriptor, body: Vec<u8>) -> Result<Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = tonic::codegen::http::uri::PathAndQuery::try_from(path)?;
    let mut client = Grpc::new(node.cri().channel());
    client.ready().await?;
    let call = async {
        if method.is_server_streaming() {
            // An open stream is an answer; what comes through it is not waited for.
            client
                .server_streaming(Request::new(body), path, Raw)
                .await
                .map(drop)
        } else {
            client.unary(Request::new(body), path, Raw).await.map(drop)
        }
    };
    let answer = tokio::time::timeout(PATIENCE, call).await;
    let answer = answer.with_context(|| format!("{} does not answer", method.name()))?;
    Ok(answer.err().unwrap_or_else(|| Status::ok("")))
}

/// Values of a kind that are at its ends, or beyond what makes sense.
fn extremes(kind: &Kind) -> Vec<Value> {
    let texts = [
        "\0",
        "../../../etc/passwd",
        "/",
        "a\nb = c",
        "\u{202e}",
        "%s%n",
    ];
    match kind {
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
            [i32::MIN, -1, i32::MAX].map(Value::I32).into()
        }
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            [i64::MIN, -1, i64::MAX].map(Value::I64).into()
        }
        Kind::Uint32 | Kind::Fixed32 => vec![Value::U32(u32::MAX)],
        Kind::Uint64 | Kind::Fixed64 => vec![Value::U64(u64::MAX)],
        Kind::Double => [f64::NAN, f64::NEG_INFINITY].map(Value::F64).into(),
        Kind::Float => vec![Value::F32(f32::NAN)],
        Kind::Bool => vec![Value::Bool(true)],
        Kind::String => {
            let long = Value::String("x".repeat(100_000));
            let texts = texts.map(|text| Value::String(text.to_owned()));
            texts.into_iter().chain([long]).collect()
        }
        Kind::Bytes => vec![Value::Bytes(vec![0, 255].into())],
        Kind::Enum(_) => [-1, 999_999].map(Value::EnumNumber).into(),
        Kind::Message(_) => Vec::new(),
    }
}

/// Fields on the way to one that is no message.
type Way = Vec<FieldDescriptor>;

fn leaves(message: &MessageDescriptor, way: &Way, found: &mut Vec<Way>) {
    for field in message.fields() {
        let mut way = way.clone();
        way.push(field.clone());
        match field.kind() {
            Kind::Message(inner) if !field.is_map() => {
                // A message that is there and empty is a value too.
                found.push(way.clone());
                if way.len() < DEPTH {
                    leaves(&inner, &way, found);
                }
            }
            _ => found.push(way),
        }
    }
}

/// All values to try in a field.
fn values(field: &FieldDescriptor) -> Vec<Value> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            return Vec::new();
        };
        let inner = entry.map_entry_value_field();
        let pairs = ["", "\0", "../x", "net.ipv4.x"]
            .into_iter()
            .flat_map(|key| {
                let values = extremes(&inner.kind()).into_iter();
                values
                    .map(move |value| Value::Map([(MapKey::String(key.to_owned()), value)].into()))
            });
        return pairs.collect();
    }
    let single = match field.kind() {
        Kind::Message(inner) => vec![Value::Message(DynamicMessage::new(inner))],
        kind => extremes(&kind),
    };
    if field.is_list() {
        return single
            .into_iter()
            .map(|value| Value::List(vec![value]))
            .collect();
    }
    single
}

/// `base` with `value` at the end of `way`. Lists on the way get an element if they have none.
fn with(base: &mut DynamicMessage, way: &[FieldDescriptor], value: Value, image: &str) {
    let Some((field, rest)) = way.split_first() else {
        return;
    };
    if rest.is_empty() {
        base.set_field(field, value);
        return;
    }
    let inner = match base.get_field_mut(field) {
        Value::Message(inner) => Some(inner),
        Value::List(list) => {
            if list.is_empty()
                && let Kind::Message(kind) = field.kind()
            {
                list.push(element(kind, rest, image));
            }
            list.first_mut().and_then(Value::as_message_mut)
        }
        _ => None,
    };
    if let Some(inner) = inner {
        with(inner, rest, value, image);
    }
}

/// An element of a list that is taken as it is, so that only the value that `rest` leads to is wrong with it.
fn element(kind: MessageDescriptor, rest: &[FieldDescriptor], image: &str) -> Value {
    let next = rest.first().map(FieldDescriptor::name).unwrap_or_default();
    let mut message = DynamicMessage::new(kind.clone());
    let mut set = |name: &str, value: Value| message.set_field_by_name(name, value);
    let text = |text: &str| Value::String(text.to_owned());
    // Those of a kind without fields that must be set are empty.
    match kind.name() {
        "Mount" => {
            set("container_path", text("/tried"));
            match kind.get_field_by_name("image").map(|field| field.kind()) {
                Some(Kind::Message(spec)) if next.starts_with("image") => {
                    let mut spec = DynamicMessage::new(spec);
                    spec.set_field_by_name("image", text(image));
                    set("image", Value::Message(spec));
                    set("readonly", Value::Bool(true));
                }
                _ => set("host_path", text("/tmp")),
            }
            for maps in ["uidMappings", "gidMappings"] {
                if let Some(Kind::Message(one)) = kind.get_field_by_name(maps).map(|f| f.kind())
                    && next.ends_with("Mappings")
                {
                    set(maps, Value::List(vec![element(one, &[], image)]));
                }
            }
        }
        "Device" => {
            set("container_path", text("/dev/tried"));
            set("host_path", text("/dev/null"));
        }
        "KeyValue" => set("key", text("TRIED")),
        "PortMapping" => set("container_port", Value::I32(80)),
        "IDMapping" => set("length", Value::U32(1)),
        "HugepageLimit" => set("page_size", text("2MB")),
        _ => {}
    }
    Value::Message(message)
}

/// What the requests start from: they are whole but for the value, so that it is looked at.
struct Seeds {
    pod: String,
    /// A container that runs, and one that was not started.
    running: String,
    created: String,
    image: String,
    /// The pod's configuration.
    config: Vec<u8>,
    run: Vec<u8>,
    create: Vec<u8>,
}

impl Seeds {
    async fn new(node: &TestNode) -> Result<Self> {
        let pod = node.pod("seed").await?;
        let running = pod.sleeper("running").await?;
        let created = pod.create(&node.container_config("created").await?).await?;
        let mut config = node.pod_config("tried")?;
        // A network of its own is made by programs, and costs more than all else here.
        let options = zcri_integration::pod::pod_security(&mut config)
            .namespace_options
            .get_or_insert_default();
        options.network = zcri_integration::v1::NamespaceMode::Node.into();
        let run = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(node.container_config("tried").await?),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(Self {
            pod: pod.id,
            running,
            created,
            image: node.busybox().await?,
            config: pod.config.encode_to_vec(),
            run: run.encode_to_vec(),
            create: create.encode_to_vec(),
        })
    }

    fn of(&self, method: &MethodDescriptor) -> Result<DynamicMessage> {
        let bytes: &[u8] = match method.name() {
            "RunPodSandbox" => &self.run,
            "CreateContainer" => &self.create,
            _ => {
                let mut message = DynamicMessage::new(method.input());
                self.fill(method.name(), &mut message);
                return Ok(message);
            }
        };
        Ok(DynamicMessage::decode(method.input(), bytes)?)
    }

    fn fill(&self, method: &str, message: &mut DynamicMessage) {
        let container = match method {
            // It would not be there for the next value.
            "StopContainer" | "RemoveContainer" => &self.created,
            _ => &self.running,
        };
        let text = |text: &str| Value::String(text.to_owned());
        for (name, value) in [
            ("container_id", text(container)),
            ("pod_sandbox_id", text(&self.pod)),
            ("cmd", Value::List(vec![text("/bin/true")])),
            ("stdout", Value::Bool(true)),
            ("port", Value::List(vec![Value::I32(80)])),
        ] {
            if message.descriptor().get_field_by_name(name).is_some() {
                message.set_field_by_name(name, value);
            }
        }
        if message
            .descriptor()
            .get_field_by_name("sandbox_config")
            .is_some()
            && let Some(config) = message.get_field_by_name_mut("sandbox_config")
            && let Some(config) = config.as_message_mut()
        {
            // It has been encoded here.
            config.merge(self.config.as_slice()).ok();
        }
        let image = if method == "RemoveImage" {
            "no/such/image"
        } else {
            &self.image
        };
        if message.descriptor().get_field_by_name("image").is_some()
            && let Some(spec) = message.get_field_by_name_mut("image")
            && let Some(spec) = spec.as_message_mut()
        {
            spec.set_field_by_name("image", text(image));
        }
    }

    /// Removes what a request made; a refused one has made nothing.
    async fn clear(&self, node: &TestNode, status: &Status, what: &str) -> Result<()> {
        let containers = node.cri().list_containers(Default::default()).await?;
        let pods = node.cri().list_pods(Default::default()).await?;
        let made = containers.len() + pods.len() - 3;
        ensure!(
            made == 0 || status.code() == Code::Ok,
            "{what} was refused, and {made} things are left: {status:?}"
        );
        let seeds = [&self.running, &self.created];
        for container in containers.iter().filter(|c| !seeds.contains(&&c.id)) {
            node.cri().remove(&container.id).await?;
        }
        for pod in pods.iter().filter(|pod| pod.id != self.pod) {
            node.cri().remove_pod(&pod.id).await?;
        }
        Ok(())
    }
}

/// Codes that a request may be refused with. INTERNAL is the daemon's own failure, UNKNOWN a handler that ended
/// without a word, unless it has those of the OCI runtime.
const REFUSALS: [Code; 6] = [
    Code::Ok,
    Code::InvalidArgument,
    Code::NotFound,
    Code::FailedPrecondition,
    Code::Unimplemented,
    // A reference that can be pulled names a registry that is not there.
    Code::Unavailable,
];

/// What is wrong with an answer, if something is.
fn judge(way: &[FieldDescriptor], status: &Status) -> Option<&'static str> {
    let code = status.code();
    // What a command is to the container is for the OCI runtime to say.
    let not_run = code == Code::Unknown && status.message().contains("OCI runtime exec failed");
    if !REFUSALS.contains(&code) && !not_run {
        return Some("no refusal");
    }
    let last = way.last()?;
    let parents = way.iter().rev().skip(1).take(1);
    let named = parents.chain([last]).any(|field| {
        // A message within a list may be wrong as a whole.
        let whole = field != last;
        let name = field.name();
        status.message().contains(&if whole {
            format!("{name}[0]:")
        } else {
            name.to_owned()
        })
    });
    if code == Code::InvalidArgument && !named {
        return Some("the field is not named");
    }
    // Both values that are tried are none of the enumeration. A section for another system is not read.
    let read = code != Code::Unimplemented && way.iter().all(|field| field.name() != "windows");
    let enumeration = matches!(last.kind(), Kind::Enum(_)) && read;
    (enumeration && code != Code::InvalidArgument).then_some("taken")
}

async fn try_all(of_service: &str, only: Option<&str>, but: &[&str]) -> Test {
    let node = TestNode::builder()
        .config("[runtime]\ncdi_spec_dirs = []")
        .start()
        .await?;
    let seeds = Seeds::new(&node).await?;
    let pool = interface()?;
    let service = pool
        .get_service_by_name(of_service)
        .context("no such service")?;
    let methods: Vec<_> = service
        .methods()
        .filter(|method| only.is_none_or(|only| method.name() == only))
        .filter(|method| !but.contains(&method.name()))
        .collect();
    ensure!(!methods.is_empty());
    let mut wrong = BTreeSet::new();
    for method in &methods {
        let mut found = Vec::new();
        leaves(&method.input(), &Vec::new(), &mut found);
        for way in &found {
            let names: Vec<_> = way.iter().map(|field| field.name().to_owned()).collect();
            for value in way.last().map(values).unwrap_or_default() {
                let mut message = seeds.of(method)?;
                with(&mut message, way, value.clone(), &seeds.image);
                let status = send(&node, method, message.encode_to_vec()).await?;
                let shown: String = format!("{value:?}").chars().take(60).collect();
                let what = format!("{}.{} = {shown}", method.name(), names.join("."));
                if let Some(complaint) = judge(way, &status) {
                    let words: String = status.message().chars().take(300).collect();
                    wrong.insert(format!("{what}: {complaint}: {:?} {words}", status.code()));
                }
                if matches!(method.name(), "RunPodSandbox" | "CreateContainer") {
                    seeds.clear(&node, &status, &what).await?;
                }
            }
        }
        // Bytes that are no message, and a message that ends early.
        for body in [vec![0xff; 40], vec![0x0a, 0x7f, 0x00]] {
            let status = send(&node, method, body).await?;
            ensure!(
                status.code() != Code::Ok && status.code() != Code::Unknown,
                "{status:?}"
            );
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    let log = node.log();
    ensure!(!log.contains("panicked"), "a handler panicked: {log}");
    node.finish().await
}

const RUNTIME: &str = "runtime.v1.RuntimeService";
const IMAGES: &str = "runtime.v1.ImageService";

#[tokio::test]
async fn no_value_in_a_pod_is_taken_amiss() -> Test {
    try_all(RUNTIME, Some("RunPodSandbox"), &[]).await
}

#[tokio::test]
async fn no_value_in_a_container_is_taken_amiss() -> Test {
    try_all(RUNTIME, Some("CreateContainer"), &[]).await
}

#[tokio::test]
async fn no_value_in_another_call_is_taken_amiss() -> Test {
    try_all(RUNTIME, None, &["RunPodSandbox", "CreateContainer"]).await
}

#[tokio::test]
async fn no_value_in_a_call_about_images_is_taken_amiss() -> Test {
    try_all(IMAGES, None, &[]).await
}
