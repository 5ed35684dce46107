//! Which sessions are refused: before a URL is given out, and when it is used.
#![forbid(unsafe_code)]

use anyhow::{Context as _, ensure};
use tonic::Code;
use zcri_integration::stream_client::{Refused, Remote, SPDY, Status, Streams, WEBSOCKET, get};
use zcri_integration::{Test, TestNode};

/// The code that a URL was refused with.
fn code(answer: Result<String, tonic::Status>) -> Option<Code> {
    answer.err().map(|status| status.code())
}

#[tokio::test]
async fn requests_are_checked() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    let cri = node.cri();
    let cmd = ["/bin/true"];
    let none = Streams::default();
    let both = Streams {
        stderr: true,
        ..Streams::TTY
    };
    assert_eq!(
        code(cri.exec_url("", cmd, Streams::OUTPUT).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.exec_url(&id, cmd, none).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.exec_url(&id, cmd, both).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.exec_url(&id, [""; 0], Streams::OUTPUT).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.exec_url("nobody", cmd, Streams::OUTPUT).await),
        Some(Code::NotFound)
    );
    assert_eq!(
        code(cri.attach_url(&id, none).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.attach_url(&id, both).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.attach_url("nobody", Streams::OUTPUT).await),
        Some(Code::NotFound)
    );
    assert_eq!(
        code(cri.port_forward_url("", &[80]).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.port_forward_url(&pod.id, &[0]).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.port_forward_url(&pod.id, &[65536]).await),
        Some(Code::InvalidArgument)
    );
    assert_eq!(
        code(cri.port_forward_url("nobody", &[80]).await),
        Some(Code::NotFound)
    );
    node.finish().await
}

#[tokio::test]
async fn what_does_not_run_has_no_session() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let id = pod.sleeper("c").await?;
    let cri = node.cri();
    let cmd = ["/bin/true"];
    let created = pod.create(&node.container_config("created").await?).await?;
    assert_eq!(
        code(cri.exec_url(&created, cmd, Streams::OUTPUT).await),
        Some(Code::FailedPrecondition)
    );
    assert_eq!(
        code(cri.attach_url(&created, Streams::OUTPUT).await),
        Some(Code::FailedPrecondition)
    );
    // Between the URL and its use the container ends.
    let exec = cri.exec_url(&id, cmd, Streams::OUTPUT).await?;
    let attach = cri.attach_url(&id, Streams::OUTPUT).await?;
    cri.stop(&id, 0).await?;
    assert_eq!(
        code(cri.exec_url(&id, cmd, Streams::OUTPUT).await),
        Some(Code::FailedPrecondition)
    );
    for (url, transport) in [(exec, SPDY), (attach, WEBSOCKET)] {
        let ended = Remote::open(&url, transport, Streams::OUTPUT)
            .await?
            .finish()
            .await?;
        match ended.status {
            Status::Failure(text) => {
                ensure!(text.contains("exited") && text.contains(&id), "{text}")
            }
            Status::Code(code) => anyhow::bail!("ended with {code}"),
        }
    }
    node.finish().await
}

#[tokio::test]
async fn a_url_is_for_one_use_and_there_is_a_bound() -> Test {
    let node = TestNode::start().await?;
    let id = node.pod("p").await?.sleeper("c").await?;
    let url = node
        .cri()
        .exec_url(&id, ["/bin/true"], Streams::OUTPUT)
        .await?;
    assert_eq!(
        Remote::open(&url, SPDY, Streams::OUTPUT)
            .await?
            .finish()
            .await?
            .code()?,
        0
    );
    let again = Remote::open(&url, SPDY, Streams::OUTPUT)
        .await
        .err()
        .context("a second use")?;
    let refused = again.downcast::<Refused>()?;
    assert_eq!(refused.status, 404, "{refused}");
    let guess = format!("{}x", url);
    assert_eq!(get(&guess).await?, 404);
    let mut full = None;
    for _ in 0..5000 {
        if let Err(status) = node
            .cri()
            .exec_url(&id, ["/bin/true"], Streams::OUTPUT)
            .await
        {
            full = Some(status.code());
            break;
        }
    }
    assert_eq!(full, Some(Code::ResourceExhausted));
    node.finish().await
}
