//! RuntimeService: which call is served where. No logic.

use tonic::{Request, Response, Status};
use zcri_proto::v1::runtime_service_server::RuntimeService;
use zcri_proto::v1::{self as api};

use super::call::{change, look};
use super::streams::{self, Streamed};
use super::{Services, containers, events, metrics, node_status, pods, stats, streaming};

type Answer<T> = Result<Response<T>, Status>;

fn unimplemented<T>(rpc: &str, why: &str) -> Answer<T> {
    Err(Status::unimplemented(format!(
        "{rpc} is not implemented: {why}"
    )))
}

/// Calls that change something: name, the ids for the span, and the function.
macro_rules! changing {
    ($self:ident, $request:ident, $rpc:literal, $pod:expr, $container:expr, $function:path) => {{
        let message = $request.into_inner();
        let call = $self.call($rpc, $pod(&message), $container(&message));
        let pods = $self.pods.clone();
        change(call, async move { $function(&pods, message).await }).await
    }};
}

/// Calls that only look.
macro_rules! looking {
    ($self:ident, $request:ident, $rpc:literal, $function:path) => {
        looking!($self, $request, $rpc, none, none, $function)
    };
    ($self:ident, $request:ident, $rpc:literal, $pod:expr, $container:expr, $function:path) => {{
        let message = $request.into_inner();
        let call = $self.call($rpc, $pod(&message), $container(&message));
        look(call, async { $function(&$self.pods, message).await }).await
    }};
}

fn none<T>(_: &T) -> &str {
    ""
}

const CHECKPOINTS: &str = "checkpoints need a runtime with CRIU behind the shim's Checkpoint call, which comes with a later version";

#[tonic::async_trait]
impl RuntimeService for Services {
    type StreamPodSandboxesStream = Streamed<api::StreamPodSandboxesResponse>;
    type StreamContainersStream = Streamed<api::StreamContainersResponse>;
    type StreamContainerStatsStream = Streamed<api::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streamed<api::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Streamed<api::StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Streamed<api::ContainerEventResponse>;

    async fn version(&self, request: Request<api::VersionRequest>) -> Answer<api::VersionResponse> {
        looking!(self, request, "Version", node_status::version)
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<api::RunPodSandboxRequest>,
    ) -> Answer<api::RunPodSandboxResponse> {
        changing!(self, request, "RunPodSandbox", none, none, pods::run)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<api::StopPodSandboxRequest>,
    ) -> Answer<api::StopPodSandboxResponse> {
        fn pod(m: &api::StopPodSandboxRequest) -> &str {
            &m.pod_sandbox_id
        }
        changing!(self, request, "StopPodSandbox", pod, none, pods::stop)
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<api::RemovePodSandboxRequest>,
    ) -> Answer<api::RemovePodSandboxResponse> {
        fn pod(m: &api::RemovePodSandboxRequest) -> &str {
            &m.pod_sandbox_id
        }
        changing!(self, request, "RemovePodSandbox", pod, none, pods::remove)
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<api::PodSandboxStatusRequest>,
    ) -> Answer<api::PodSandboxStatusResponse> {
        fn pod(m: &api::PodSandboxStatusRequest) -> &str {
            &m.pod_sandbox_id
        }
        looking!(self, request, "PodSandboxStatus", pod, none, pods::status)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<api::ListPodSandboxRequest>,
    ) -> Answer<api::ListPodSandboxResponse> {
        looking!(self, request, "ListPodSandbox", pods::list)
    }

    async fn stream_pod_sandboxes(
        &self,
        request: Request<api::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        looking!(self, request, "StreamPodSandboxes", streams::pods)
    }

    async fn create_container(
        &self,
        request: Request<api::CreateContainerRequest>,
    ) -> Answer<api::CreateContainerResponse> {
        fn pod(m: &api::CreateContainerRequest) -> &str {
            &m.pod_sandbox_id
        }
        changing!(
            self,
            request,
            "CreateContainer",
            pod,
            none,
            containers::create
        )
    }

    async fn start_container(
        &self,
        request: Request<api::StartContainerRequest>,
    ) -> Answer<api::StartContainerResponse> {
        fn container(m: &api::StartContainerRequest) -> &str {
            &m.container_id
        }
        changing!(
            self,
            request,
            "StartContainer",
            none,
            container,
            containers::start
        )
    }

    async fn stop_container(
        &self,
        request: Request<api::StopContainerRequest>,
    ) -> Answer<api::StopContainerResponse> {
        fn container(m: &api::StopContainerRequest) -> &str {
            &m.container_id
        }
        changing!(
            self,
            request,
            "StopContainer",
            none,
            container,
            containers::stop
        )
    }

    async fn remove_container(
        &self,
        request: Request<api::RemoveContainerRequest>,
    ) -> Answer<api::RemoveContainerResponse> {
        fn container(m: &api::RemoveContainerRequest) -> &str {
            &m.container_id
        }
        changing!(
            self,
            request,
            "RemoveContainer",
            none,
            container,
            containers::remove
        )
    }

    async fn list_containers(
        &self,
        request: Request<api::ListContainersRequest>,
    ) -> Answer<api::ListContainersResponse> {
        looking!(self, request, "ListContainers", containers::list)
    }

    async fn stream_containers(
        &self,
        request: Request<api::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        looking!(self, request, "StreamContainers", streams::containers)
    }

    async fn container_status(
        &self,
        request: Request<api::ContainerStatusRequest>,
    ) -> Answer<api::ContainerStatusResponse> {
        fn container(m: &api::ContainerStatusRequest) -> &str {
            &m.container_id
        }
        looking!(
            self,
            request,
            "ContainerStatus",
            none,
            container,
            containers::status
        )
    }

    async fn update_container_resources(
        &self,
        request: Request<api::UpdateContainerResourcesRequest>,
    ) -> Answer<api::UpdateContainerResourcesResponse> {
        fn container(m: &api::UpdateContainerResourcesRequest) -> &str {
            &m.container_id
        }
        changing!(
            self,
            request,
            "UpdateContainerResources",
            none,
            container,
            containers::update
        )
    }

    async fn reopen_container_log(
        &self,
        request: Request<api::ReopenContainerLogRequest>,
    ) -> Answer<api::ReopenContainerLogResponse> {
        fn container(m: &api::ReopenContainerLogRequest) -> &str {
            &m.container_id
        }
        changing!(
            self,
            request,
            "ReopenContainerLog",
            none,
            container,
            containers::reopen_log
        )
    }

    async fn exec_sync(
        &self,
        request: Request<api::ExecSyncRequest>,
    ) -> Answer<api::ExecSyncResponse> {
        fn container(m: &api::ExecSyncRequest) -> &str {
            &m.container_id
        }
        changing!(
            self,
            request,
            "ExecSync",
            none,
            container,
            containers::exec_sync
        )
    }

    async fn exec(&self, request: Request<api::ExecRequest>) -> Answer<api::ExecResponse> {
        let message = request.into_inner();
        let call = self.call("Exec", "", &message.container_id);
        let work = async { streaming::exec(&self.pods, &self.streaming, message) };
        look(call, work).await
    }

    async fn attach(&self, request: Request<api::AttachRequest>) -> Answer<api::AttachResponse> {
        let message = request.into_inner();
        let call = self.call("Attach", "", &message.container_id);
        let work = async { streaming::attach(&self.pods, &self.streaming, message) };
        look(call, work).await
    }

    async fn port_forward(
        &self,
        request: Request<api::PortForwardRequest>,
    ) -> Answer<api::PortForwardResponse> {
        let message = request.into_inner();
        let call = self.call("PortForward", &message.pod_sandbox_id, "");
        let work = async { streaming::port_forward(&self.pods, &self.streaming, message) };
        look(call, work).await
    }

    async fn container_stats(
        &self,
        request: Request<api::ContainerStatsRequest>,
    ) -> Answer<api::ContainerStatsResponse> {
        fn container(m: &api::ContainerStatsRequest) -> &str {
            &m.container_id
        }
        looking!(
            self,
            request,
            "ContainerStats",
            none,
            container,
            stats::container
        )
    }

    async fn list_container_stats(
        &self,
        request: Request<api::ListContainerStatsRequest>,
    ) -> Answer<api::ListContainerStatsResponse> {
        looking!(self, request, "ListContainerStats", stats::containers)
    }

    async fn stream_container_stats(
        &self,
        request: Request<api::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        looking!(
            self,
            request,
            "StreamContainerStats",
            streams::container_stats
        )
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<api::PodSandboxStatsRequest>,
    ) -> Answer<api::PodSandboxStatsResponse> {
        fn pod(m: &api::PodSandboxStatsRequest) -> &str {
            &m.pod_sandbox_id
        }
        looking!(self, request, "PodSandboxStats", pod, none, stats::pod)
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<api::ListPodSandboxStatsRequest>,
    ) -> Answer<api::ListPodSandboxStatsResponse> {
        looking!(self, request, "ListPodSandboxStats", stats::pods)
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<api::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        looking!(self, request, "StreamPodSandboxStats", streams::pod_stats)
    }

    async fn update_runtime_config(
        &self,
        request: Request<api::UpdateRuntimeConfigRequest>,
    ) -> Answer<api::UpdateRuntimeConfigResponse> {
        looking!(
            self,
            request,
            "UpdateRuntimeConfig",
            node_status::update_config
        )
    }

    async fn status(&self, request: Request<api::StatusRequest>) -> Answer<api::StatusResponse> {
        looking!(self, request, "Status", node_status::status)
    }

    async fn checkpoint_container(
        &self,
        _: Request<api::CheckpointContainerRequest>,
    ) -> Answer<api::CheckpointContainerResponse> {
        unimplemented("CheckpointContainer", CHECKPOINTS)
    }

    async fn checkpoint_pod(
        &self,
        _: Request<api::CheckpointPodRequest>,
    ) -> Answer<api::CheckpointPodResponse> {
        unimplemented("CheckpointPod", CHECKPOINTS)
    }

    async fn restore_pod(
        &self,
        _: Request<api::RestorePodRequest>,
    ) -> Answer<api::RestorePodResponse> {
        unimplemented("RestorePod", CHECKPOINTS)
    }

    async fn get_container_events(
        &self,
        request: Request<api::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        looking!(self, request, "GetContainerEvents", events::subscribe)
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<api::ListMetricDescriptorsRequest>,
    ) -> Answer<api::ListMetricDescriptorsResponse> {
        looking!(self, request, "ListMetricDescriptors", metrics::descriptors)
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<api::ListPodSandboxMetricsRequest>,
    ) -> Answer<api::ListPodSandboxMetricsResponse> {
        looking!(self, request, "ListPodSandboxMetrics", metrics::pods)
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<api::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        looking!(
            self,
            request,
            "StreamPodSandboxMetrics",
            streams::pod_metrics
        )
    }

    async fn runtime_config(
        &self,
        request: Request<api::RuntimeConfigRequest>,
    ) -> Answer<api::RuntimeConfigResponse> {
        looking!(self, request, "RuntimeConfig", node_status::runtime_config)
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<api::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<api::UpdatePodSandboxResourcesResponse> {
        fn pod(m: &api::UpdatePodSandboxResourcesRequest) -> &str {
            &m.pod_sandbox_id
        }
        changing!(
            self,
            request,
            "UpdatePodSandboxResources",
            pod,
            none,
            pods::update_resources
        )
    }
}
