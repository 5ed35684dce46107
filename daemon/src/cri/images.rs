//! Calls about images.

use std::collections::HashMap;
use std::sync::Arc;

use zcri_image::{Credentials, Image};
use zcri_proto::v1 as api;

use super::pods::required;
use super::stats::layer_message;
use crate::error::Result;
use crate::pod::Pods;
use crate::time::now_ns;

pub(super) async fn pull(
    pods: &Arc<Pods>,
    request: api::PullImageRequest,
) -> Result<api::PullImageResponse> {
    let reference = request.image.unwrap_or_default().image;
    required("image.image", &reference)?;
    super::convert::config_of_pod(request.sandbox_config.as_ref())?;
    tracing::info!(image = reference, "pull image");
    let credentials = request
        .auth
        .map(credentials)
        .filter(|given| *given != Credentials::default());
    let image = pods.node().images.pull(&reference, credentials).await?;
    tracing::info!(id = %image.id, bytes = image.size, "image is here");
    // The kubelet takes this for the image's identity and asks for it again by ImageStatus.
    Ok(api::PullImageResponse {
        image_ref: image.id.to_string(),
    })
}

pub(super) async fn status(
    pods: &Arc<Pods>,
    request: api::ImageStatusRequest,
) -> Result<api::ImageStatusResponse> {
    let reference = request.image.unwrap_or_default().image;
    required("image.image", &reference)?;
    let Some(found) = pods.node().images.find(&reference) else {
        return Ok(api::ImageStatusResponse {
            image: None,
            info: HashMap::new(),
        });
    };
    let info = if request.verbose {
        verbose(&found)
    } else {
        HashMap::new()
    };
    Ok(api::ImageStatusResponse {
        image: Some(message(&found)),
        info,
    })
}

pub(super) async fn list(
    pods: &Arc<Pods>,
    request: api::ListImagesRequest,
) -> Result<api::ListImagesResponse> {
    let images = matching(pods, request.filter);
    Ok(api::ListImagesResponse {
        images: images.iter().map(|image| message(image)).collect(),
    })
}

/// The images that a filter lets through.
pub(super) fn matching(pods: &Pods, filter: Option<api::ImageFilter>) -> Vec<Arc<Image>> {
    let wanted = filter
        .and_then(|filter| filter.image)
        .unwrap_or_default()
        .image;
    let images = &pods.node().images;
    if wanted.is_empty() {
        images.list()
    } else {
        images.find(&wanted).into_iter().collect()
    }
}

pub(super) async fn remove(
    pods: &Arc<Pods>,
    request: api::RemoveImageRequest,
) -> Result<api::RemoveImageResponse> {
    let reference = request.image.unwrap_or_default().image;
    required("image.image", &reference)?;
    pods.node().images.remove(&reference).await?;
    Ok(api::RemoveImageResponse {})
}

pub(super) async fn fs_info(
    pods: &Arc<Pods>,
    _: api::ImageFsInfoRequest,
) -> Result<api::ImageFsInfoResponse> {
    let node = pods.node();
    let usage = node.images.usage();
    // Accounted while layers are unpacked and removed: right at any time, without a look at the disk.
    let images = api::FilesystemUsage {
        timestamp: now_ns(),
        fs_id: Some(api::FilesystemIdentifier {
            mountpoint: node.root.join("images").to_string_lossy().into_owned(),
        }),
        used_bytes: Some(api::UInt64Value { value: usage.bytes }),
        inodes_used: Some(api::UInt64Value {
            value: usage.inodes,
        }),
    };
    let views: Vec<_> = pods
        .views()
        .iter()
        .flat_map(|pod| pod.containers.values().cloned())
        .collect();
    let layers = crate::stats::writable_layers(node, views).await?;
    Ok(api::ImageFsInfoResponse {
        image_filesystems: vec![images],
        container_filesystems: vec![layer_message(&node.root, &layers)],
    })
}

fn credentials(auth: api::AuthConfig) -> Credentials {
    Credentials {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
        server_address: auth.server_address,
    }
}

pub(super) fn message(image: &Image) -> api::Image {
    // `user[:group]`: a number goes into uid, a name into username, the group nowhere (api.proto, Image).
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    api::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| api::Int64Value { value }),
        username: if uid.is_some() {
            String::new()
        } else {
            user.to_owned()
        },
        spec: None,
        pinned: image.pinned,
    }
}

/// What `crictl inspecti` shows beside the status.
fn verbose(image: &Image) -> HashMap<String, String> {
    let spec: serde_json::Value = serde_json::from_str(&image.raw_config).unwrap_or_default();
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| layer.diff_id.to_string())
        .collect();
    let info = serde_json::json!({ "imageSpec": spec, "layers": layers, "manifest": image.manifest_digest.to_string() });
    HashMap::from([("info".to_owned(), info.to_string())])
}
