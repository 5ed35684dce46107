//! A CRI client: one method per call that tests make, errors as gRPC statuses.

use std::path::Path;

use anyhow::Result;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use zcri_proto::v1::image_service_client::ImageServiceClient;
use zcri_proto::v1::runtime_service_client::RuntimeServiceClient;
use zcri_proto::v1::{
    AttachRequest, AuthConfig, Container, ContainerConfig, ContainerFilter, ContainerStatus,
    ContainerStatusRequest, CreateContainerRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse,
    FilesystemUsage, Image, ImageFsInfoRequest, ImageSpec, ImageStatusRequest,
    LinuxContainerResources, ListContainersRequest, ListImagesRequest, ListPodSandboxRequest,
    PodSandbox, PodSandboxConfig, PodSandboxFilter, PodSandboxStatus, PodSandboxStatusRequest,
    PortForwardRequest, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, ReopenContainerLogRequest, RunPodSandboxRequest,
    StartContainerRequest, StatusRequest, StatusResponse, StopContainerRequest,
    StopPodSandboxRequest, UpdateContainerResourcesRequest, VersionRequest, VersionResponse,
};

use crate::stream_client::Streams;

/// Largest message that the kubelet takes and sends, doubled so that only the server's limits show.
const MAX_MESSAGE: usize = 64 << 20;

/// Both services of a CRI socket.
#[derive(Debug, Clone)]
pub struct Cri {
    channel: Channel,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

type Answer<T> = Result<T, Status>;

impl Cri {
    /// Connects to `socket`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_owned();
        // The name is not looked up: the connector goes to the socket.
        let channel = Endpoint::from_static("http://cri.local")
            .connect_with_connector(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move {
                    Ok::<_, std::io::Error>(TokioIo::new(
                        tokio::net::UnixStream::connect(path).await?,
                    ))
                }
            }))
            .await?;
        Ok(Self {
            channel: channel.clone(),
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        })
    }

    /// The connection, for calls that no generated client makes.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The generated client, for calls that have no method here.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        self.runtime.clone()
    }

    /// The generated client of images.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        self.images.clone()
    }

    /// Version.
    ///
    /// # Errors
    /// As the server says.
    pub async fn version(&self) -> Answer<VersionResponse> {
        Ok(self
            .runtime()
            .version(VersionRequest {
                version: "v1".to_owned(),
            })
            .await?
            .into_inner())
    }

    /// Status.
    ///
    /// # Errors
    /// As the server says.
    pub async fn node_status(&self) -> Answer<StatusResponse> {
        Ok(self
            .runtime()
            .status(StatusRequest { verbose: true })
            .await?
            .into_inner())
    }

    /// RunPodSandbox with the default handler.
    ///
    /// # Errors
    /// As the server says.
    pub async fn run_pod(&self, config: &PodSandboxConfig) -> Answer<String> {
        self.run_pod_with(config, "").await
    }

    /// RunPodSandbox.
    ///
    /// # Errors
    /// As the server says.
    pub async fn run_pod_with(&self, config: &PodSandboxConfig, handler: &str) -> Answer<String> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        Ok(self
            .runtime()
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// As the server says.
    pub async fn stop_pod(&self, id: &str) -> Answer<()> {
        self.runtime()
            .stop_pod_sandbox(StopPodSandboxRequest {
                pod_sandbox_id: id.to_owned(),
            })
            .await
            .map(drop)
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// As the server says.
    pub async fn remove_pod(&self, id: &str) -> Answer<()> {
        self.runtime()
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: id.to_owned(),
            })
            .await
            .map(drop)
    }

    /// PodSandboxStatus.
    ///
    /// # Errors
    /// As the server says; INTERNAL when the answer holds no status.
    pub async fn pod_status(&self, id: &str) -> Answer<PodSandboxStatus> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let answer = self
            .runtime()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        answer
            .status
            .ok_or_else(|| Status::internal("an answer without status"))
    }

    /// ListPodSandbox; the default filter is none.
    ///
    /// # Errors
    /// As the server says.
    pub async fn list_pods(&self, filter: PodSandboxFilter) -> Answer<Vec<PodSandbox>> {
        let request = ListPodSandboxRequest {
            filter: Some(filter),
        };
        Ok(self
            .runtime()
            .list_pod_sandbox(request)
            .await?
            .into_inner()
            .items)
    }

    /// CreateContainer.
    ///
    /// # Errors
    /// As the server says.
    pub async fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        pod_config: &PodSandboxConfig,
    ) -> Answer<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self
            .runtime()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// StartContainer.
    ///
    /// # Errors
    /// As the server says.
    pub async fn start(&self, id: &str) -> Answer<()> {
        self.runtime()
            .start_container(StartContainerRequest {
                container_id: id.to_owned(),
            })
            .await
            .map(drop)
    }

    /// StopContainer with a grace period in seconds.
    ///
    /// # Errors
    /// As the server says.
    pub async fn stop(&self, id: &str, timeout: i64) -> Answer<()> {
        let request = StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        self.runtime().stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    ///
    /// # Errors
    /// As the server says.
    pub async fn remove(&self, id: &str) -> Answer<()> {
        self.runtime()
            .remove_container(RemoveContainerRequest {
                container_id: id.to_owned(),
            })
            .await
            .map(drop)
    }

    /// ContainerStatus.
    ///
    /// # Errors
    /// As the server says; INTERNAL when the answer holds no status.
    pub async fn status(&self, id: &str) -> Answer<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.runtime().container_status(request).await?.into_inner();
        answer
            .status
            .ok_or_else(|| Status::internal("an answer without status"))
    }

    /// ListContainers; the default filter is none.
    ///
    /// # Errors
    /// As the server says.
    pub async fn list_containers(&self, filter: ContainerFilter) -> Answer<Vec<Container>> {
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        Ok(self
            .runtime()
            .list_containers(request)
            .await?
            .into_inner()
            .containers)
    }

    /// ExecSync with a timeout in seconds; 0 is none.
    ///
    /// # Errors
    /// As the server says.
    pub async fn exec<S: Into<String>>(
        &self,
        id: &str,
        cmd: impl IntoIterator<Item = S>,
        timeout: i64,
    ) -> Answer<ExecSyncResponse> {
        let cmd = cmd.into_iter().map(Into::into).collect();
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd,
            timeout,
        };
        Ok(self.runtime().exec_sync(request).await?.into_inner())
    }

    /// Exec: the URL of a session.
    ///
    /// # Errors
    /// As the server says.
    pub async fn exec_url<S: Into<String>>(
        &self,
        id: &str,
        cmd: impl IntoIterator<Item = S>,
        streams: Streams,
    ) -> Answer<String> {
        let request = ExecRequest {
            container_id: id.to_owned(),
            cmd: cmd.into_iter().map(Into::into).collect(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        };
        Ok(self.runtime().exec(request).await?.into_inner().url)
    }

    /// Attach: the URL of a session.
    ///
    /// # Errors
    /// As the server says.
    pub async fn attach_url(&self, id: &str, streams: Streams) -> Answer<String> {
        let request = AttachRequest {
            container_id: id.to_owned(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        };
        Ok(self.runtime().attach(request).await?.into_inner().url)
    }

    /// PortForward: the URL of a session.
    ///
    /// # Errors
    /// As the server says.
    pub async fn port_forward_url(&self, pod: &str, ports: &[i32]) -> Answer<String> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: ports.to_vec(),
        };
        Ok(self.runtime().port_forward(request).await?.into_inner().url)
    }

    /// UpdateContainerResources.
    ///
    /// # Errors
    /// As the server says.
    pub async fn update(&self, id: &str, linux: LinuxContainerResources) -> Answer<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        self.runtime()
            .update_container_resources(request)
            .await
            .map(drop)
    }

    /// ReopenContainerLog.
    ///
    /// # Errors
    /// As the server says.
    pub async fn reopen_log(&self, id: &str) -> Answer<()> {
        let request = ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        self.runtime().reopen_container_log(request).await.map(drop)
    }

    /// PullImage without credentials.
    ///
    /// # Errors
    /// As the server says.
    pub async fn pull(&self, image: &str) -> Answer<String> {
        self.pull_with(image, None).await
    }

    /// PullImage.
    ///
    /// # Errors
    /// As the server says.
    pub async fn pull_with(&self, image: &str, auth: Option<AuthConfig>) -> Answer<String> {
        let request = PullImageRequest {
            image: Some(spec(image)),
            auth,
            sandbox_config: None,
        };
        Ok(self
            .images()
            .pull_image(Request::new(request))
            .await?
            .into_inner()
            .image_ref)
    }

    /// ImageStatus: none for an image that is not there.
    ///
    /// # Errors
    /// As the server says.
    pub async fn image_status(&self, image: &str) -> Answer<Option<Image>> {
        let request = ImageStatusRequest {
            image: Some(spec(image)),
            verbose: false,
        };
        Ok(self
            .images()
            .image_status(request)
            .await?
            .into_inner()
            .image)
    }

    /// ListImages.
    ///
    /// # Errors
    /// As the server says.
    pub async fn list_images(&self) -> Answer<Vec<Image>> {
        Ok(self
            .images()
            .list_images(ListImagesRequest { filter: None })
            .await?
            .into_inner()
            .images)
    }

    /// RemoveImage.
    ///
    /// # Errors
    /// As the server says.
    pub async fn remove_image(&self, image: &str) -> Answer<()> {
        self.images()
            .remove_image(RemoveImageRequest {
                image: Some(spec(image)),
            })
            .await
            .map(drop)
    }

    /// ImageFsInfo: the image file systems.
    ///
    /// # Errors
    /// As the server says.
    pub async fn image_fs(&self) -> Answer<Vec<FilesystemUsage>> {
        Ok(self
            .images()
            .image_fs_info(ImageFsInfoRequest {})
            .await?
            .into_inner()
            .image_filesystems)
    }
}

/// An image by its name or id.
pub fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}
