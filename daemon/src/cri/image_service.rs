//! ImageService: which call is served where. No logic.

use tonic::{Request, Response, Status};
use zcri_proto::v1::image_service_server::ImageService;
use zcri_proto::v1::{self as api};

use super::call::{change, look};
use super::streams::Streamed;
use super::{Services, images, streams};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for Services {
    type StreamImagesStream = Streamed<api::StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<api::ListImagesRequest>,
    ) -> Answer<api::ListImagesResponse> {
        look(
            self.call("ListImages", "", ""),
            images::list(&self.pods, request.into_inner()),
        )
        .await
    }

    async fn stream_images(
        &self,
        request: Request<api::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        look(
            self.call("StreamImages", "", ""),
            streams::images(&self.pods, request.into_inner()),
        )
        .await
    }

    async fn image_status(
        &self,
        request: Request<api::ImageStatusRequest>,
    ) -> Answer<api::ImageStatusResponse> {
        look(
            self.call("ImageStatus", "", ""),
            images::status(&self.pods, request.into_inner()),
        )
        .await
    }

    /// On the task of the request, unlike other changes: a pull whose last client gave up ends, and the store sees
    /// to it that one client's end is not another's.
    async fn pull_image(
        &self,
        request: Request<api::PullImageRequest>,
    ) -> Answer<api::PullImageResponse> {
        look(
            self.call("PullImage", "", ""),
            images::pull(&self.pods, request.into_inner()),
        )
        .await
    }

    async fn remove_image(
        &self,
        request: Request<api::RemoveImageRequest>,
    ) -> Answer<api::RemoveImageResponse> {
        let pods = self.pods.clone();
        let message = request.into_inner();
        change(self.call("RemoveImage", "", ""), async move {
            images::remove(&pods, message).await
        })
        .await
    }

    async fn image_fs_info(
        &self,
        request: Request<api::ImageFsInfoRequest>,
    ) -> Answer<api::ImageFsInfoResponse> {
        look(
            self.call("ImageFsInfo", "", ""),
            images::fs_info(&self.pods, request.into_inner()),
        )
        .await
    }
}
