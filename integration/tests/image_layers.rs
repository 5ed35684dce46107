//! What a container sees of its image's layers: every kind of entry, compression, whiteout and attribute.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result};
use zcri_integration::images;
use zcri_integration::pod::{container_config, words};
use zcri_integration::registry::{Compression, Layer, LayerBuilder};
use zcri_integration::{Test, TestNode};

/// Runs `script` in a container of busybox with `layers` on top, and gives what it wrote.
async fn see(node: &TestNode, layers: Vec<Layer>, script: &str) -> Result<String> {
    let image = layers
        .into_iter()
        .fold(images::busybox()?, |builder, layer| builder.layer(layer))
        .build();
    node.registry.push("layers", "1", image);
    let name = node.registry.reference("layers", "1");
    node.cri().pull(&name).await.context("PullImage")?;
    let pod = node.pod("p").await?;
    let mut config = container_config("c", &name);
    config.command = words(["/bin/sh", "-c", script]);
    let output = pod.run(&config).await?.output();
    Ok(output.success()?.to_owned())
}

#[tokio::test]
async fn every_compression_is_unpacked() -> Test {
    let node = TestNode::start().await?;
    let layers = [
        (Compression::Gzip, "gzip"),
        (Compression::Zstd, "zstd"),
        (Compression::None, "none"),
    ]
    .map(|(compression, name)| images::small_layer(name, format!("from {name}\n"), compression));
    let seen = see(&node, layers.to_vec(), "cat /gzip /zstd /none").await?;
    assert_eq!(seen, "from gzip\nfrom zstd\nfrom none");
    node.finish().await
}

#[tokio::test]
async fn entries_keep_kind_mode_owner_time_and_links() -> Test {
    let node = TestNode::start().await?;
    let layer = LayerBuilder::new()
        .dir("x", 0o755)
        .owner(12, 34)
        .mtime(1_000_000_000)
        .file("x/owned", 0o640, "0123456789")
        .hardlink("x/hard", "x/owned")
        .symlink("x/soft", "owned")
        .file("x/setuid", 0o4755, "")
        .file("x/setgid", 0o2755, "")
        .dir("x/sticky", 0o1777)
        .mtime(946_684_800)
        .dir("x/old", 0o700)
        .file("x/old/inner", 0o600, "")
        .char_device("x/null", 0o666, 1, 3)
        .fifo("x/fifo", 0o644)
        .file("x/empty", 0o000, "")
        .file(&format!("x/{}", "n".repeat(200)), 0o644, "long name")
        .build(Compression::Gzip);
    let script = "cd /x; stat -c '%n %F %a %u %g %s %Y %h' owned hard soft setuid setgid sticky null fifo empty; \
                  stat -c '%n %Y' old; stat -c '%t:%T' null; readlink soft; cat n*; \
                  [ owned -ef hard ] && echo same";
    let seen = see(&node, vec![layer], script).await?;
    let default = 1_704_164_645;
    let wanted = format!(
        "owned regular file 640 12 34 10 1000000000 2\n\
         hard regular file 640 12 34 10 1000000000 2\n\
         soft symbolic link 777 0 0 5 {default} 1\n\
         setuid regular empty file 4755 0 0 0 {default} 1\n\
         setgid regular empty file 2755 0 0 0 {default} 1\n\
         sticky directory 1777 0 0 40 {default} 2\n\
         null character special file 666 0 0 0 {default} 1\n\
         fifo fifo 644 0 0 0 {default} 1\n\
         empty regular empty file 0 0 0 0 {default} 1\n\
         old 946684800\n1:3\nowned\nlong namesame"
    );
    // A directory's size and links are its file system's own.
    let plain = |text: &str| {
        text.lines()
            .map(|line| {
                if line.starts_with("sticky") {
                    "sticky 1777"
                } else {
                    line
                }
                .to_owned()
            })
            .collect::<Vec<_>>()
    };
    assert!(seen.contains("sticky directory 1777"), "{seen}");
    assert_eq!(plain(&seen), plain(&wanted));
    node.finish().await
}

#[tokio::test]
async fn extended_attributes_and_file_capabilities_are_kept() -> Test {
    let node = TestNode::start().await?;
    // VFS_CAP_REVISION_2 with cap_net_raw permitted and effective (linux/capability.h).
    let capability: &[u8] = &[
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let layer = LayerBuilder::new()
        .xattr("user.note", "kept")
        .file("noted", 0o644, "")
        .xattr("security.capability", capability)
        .file("capable", 0o755, "")
        .build(Compression::Gzip);
    let image = images::busybox()?.layer(layer).build();
    node.registry.push("xattr", "1", image);
    let name = node.registry.reference("xattr", "1");
    node.cri().pull(&name).await?;
    let pod = node.pod("p").await?;
    let id = pod.start(&container_config("c", &name)).await?;
    // busybox has no getfattr: the container's root is looked at from here.
    let pid = node
        .exec(
            &id,
            "cd /proc/1; read pid rest < stat; cut -d: -f2 < /proc/1/status | head -0; echo ok",
        )
        .await?;
    assert_eq!(pid.success()?, "ok");
    let rootfs = node
        .files()
        .state
        .join("containers")
        .join(&id)
        .join("rootfs");
    let attribute = |file: &str, name: &str| -> Result<Vec<u8>> {
        let mut buffer = vec![0; 256];
        let length = rustix::fs::getxattr(rootfs.join(file), name, &mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    };
    assert_eq!(attribute("noted", "user.note")?, b"kept");
    assert_eq!(attribute("capable", "security.capability")?, capability);
    node.finish().await
}

#[tokio::test]
async fn whiteouts_and_opaque_directories_hide_lower_layers() -> Test {
    let node = TestNode::start().await?;
    let lower = LayerBuilder::new()
        .dir("keep", 0o755)
        .file("keep/gone", 0o644, "")
        .file("keep/stays", 0o644, "")
        .dir("opaque", 0o755)
        .file("opaque/hidden", 0o644, "")
        .dir("opaque/sub", 0o755)
        .file("opaque/sub/hidden", 0o644, "")
        .dir("whole", 0o755)
        .file("whole/inner", 0o644, "")
        .file("becomes-dir", 0o644, "")
        .dir("becomes-file", 0o755)
        .file("becomes-file/inner", 0o644, "")
        .file("back", 0o644, "old\n")
        .build(Compression::Gzip);
    let upper = LayerBuilder::new()
        .whiteout("keep/gone")
        .dir("opaque", 0o711)
        .opaque("opaque")
        .file("opaque/new", 0o644, "")
        .whiteout("whole")
        .dir("becomes-dir", 0o755)
        .file("becomes-dir/inner", 0o644, "")
        .file("becomes-file", 0o644, "")
        .whiteout("back")
        .build(Compression::Zstd);
    let top = LayerBuilder::new()
        .file("back", 0o644, "new\n")
        .build(Compression::Gzip);
    let script = "cd /; find keep opaque whole becomes-dir becomes-file 2>/dev/null | sort; cat back; stat -c %a opaque; \
                  find / -xdev -name '.wh.*' | wc -l";
    let seen = see(&node, vec![lower, upper, top], script).await?;
    assert_eq!(
        seen,
        "becomes-dir\nbecomes-dir/inner\nbecomes-file\nkeep\nkeep/stays\nopaque\nopaque/new\nnew\n711\n0"
    );
    node.finish().await
}

/// What a container writes is its own: neither another container nor the image sees it.
#[tokio::test]
async fn containers_of_one_image_do_not_see_each_other() -> Test {
    let node = TestNode::start().await?;
    let pod = node.pod("p").await?;
    let (first, second) = (pod.sleeper("a").await?, pod.sleeper("b").await?);
    node.exec(&first, "echo mine > /file; rm /etc/passwd")
        .await?
        .success()?;
    assert_eq!(
        node.exec(&second, "test -e /file || cat /etc/passwd")
            .await?
            .success()?,
        images::PASSWD.trim()
    );
    assert_eq!(
        pod.sh("test -e /file || wc -l < /etc/passwd")
            .await?
            .success()?,
        "2"
    );
    node.finish().await
}

#[tokio::test]
async fn an_image_of_many_layers_mounts() -> Test {
    let node = TestNode::start().await?;
    let layers = (0..90)
        .map(|n| images::small_layer(&format!("f{n}"), n.to_string(), Compression::None))
        .collect();
    assert_eq!(
        see(&node, layers, "ls / | grep -c '^f[0-9]'; cat /f0 /f89").await?,
        "90\n089"
    );
    node.finish().await
}
