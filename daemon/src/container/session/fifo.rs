//! FIFOs between the daemon and a process's standard streams.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use rustix::fs::{FileType, Mode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use zcri_codepage::Rule;
use zcri_sys::file_tag::ccsid;

use crate::container::output::Chunk;
use crate::error::{Error, Result};

/// The most that a pipe holds (pipe(7), F_SETPIPE_SZ for everybody).
pub(in crate::container) const MOST_BYTES: usize = 1 << 20;

/// The name of a FIFO, which goes when this does: it is needed only until both ends are open.
#[derive(Debug)]
pub(in crate::container) struct FifoName(PathBuf);

impl FifoName {
    /// Makes the FIFO.
    pub(in crate::container) fn make(path: PathBuf) -> Result<Self> {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .map_err(|e| failed(&path, e.into()))?;
        Ok(Self(path))
    }

    pub(in crate::container) fn path(&self) -> &Path {
        &self.0
    }

    /// Opens it for reading, so that somebody can open it for writing. With `no_end` it never ends by itself.
    pub(in crate::container) fn reader(
        &self,
        bytes: usize,
        no_end: bool,
    ) -> Result<pipe::Receiver> {
        let reader = pipe::OpenOptions::new()
            .read_write(no_end)
            .open_receiver(&self.0)
            .map_err(|e| failed(&self.0, e))?;
        // A user over its allowance keeps the default, which works too.
        rustix::pipe::fcntl_setpipe_size(&reader, bytes).ok();
        Ok(reader)
    }
}

impl Drop for FifoName {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "a FIFO is left");
        }
    }
}

/// Names in a bundle that only a daemon which died can have left, see [`super::next_id`].
pub(crate) fn remove_left_fifos(bundle: &Path) {
    let Ok(entries) = std::fs::read_dir(bundle) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if ["sync-", "exec-", "attach-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::debug!(path = %entry.path().display(), %error, "a FIFO is left");
        }
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::node(format!("make the FIFO {}", path.display()), source)
}

/// Room for a piece of output that is converted.
const CONVERTED: usize = 64 << 10;

/// An output of a process: ends with the FIFO, or, once `over` resolves, with what is in the FIFO then, and with what
/// `over` gave behind that. A process elsewhere that holds it open does not delay that.
pub(super) struct FifoOutput {
    source: Source,
    /// Output that is converted, on its way.
    converted: Option<Converted>,
}

/// The FIFO's end of it.
struct Source {
    pipe: pipe::Receiver,
    over: Option<BoxFuture<'static, String>>,
    last_words: std::collections::VecDeque<u8>,
    /// What may still be read after that: what a pipe holds, and not what somebody goes on to put in.
    left: usize,
}

/// A piece that was converted, and what of it the reader has not taken yet.
struct Converted {
    chunk: Chunk,
    left: std::ops::Range<usize>,
}

impl FifoOutput {
    /// With a rule the output is converted, though not what `over` gives.
    pub(super) fn new(
        pipe: pipe::Receiver,
        over: impl Future<Output = String> + Send + 'static,
        rule: Option<Rule>,
    ) -> Self {
        Self {
            source: Source {
                pipe,
                over: Some(Box::pin(over)),
                last_words: Default::default(),
                left: MOST_BYTES,
            },
            converted: rule.map(|rule| Converted {
                chunk: Chunk::new(Some(rule), CONVERTED),
                left: 0..0,
            }),
        }
    }
}

impl AsyncRead for FifoOutput {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let this = &mut *self;
        ready!(match &mut this.converted {
            None => this.source.poll_read(context, buffer),
            Some(converted) => converted.poll_read(&mut this.source, context, buffer),
        })?;
        if buffer.filled().len() == before {
            this.source.speak(buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl Source {
    /// Nothing is the end.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(over) = &mut self.over {
            match over.as_mut().poll(context) {
                Poll::Ready(words) => {
                    self.over = None;
                    self.last_words = words.into_bytes().into();
                }
                Poll::Pending => return Pin::new(&mut self.pipe).poll_read(context, buffer),
            }
        }
        // Past the runtime, which may not have been told yet what is in the pipe already.
        let room = buffer.remaining().min(self.left);
        let count = read_now(&self.pipe, buffer.initialize_unfilled_to(room))?;
        self.left -= count;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }

    /// The last words. No more of them is a read of nothing, which is the end.
    fn speak(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = self.last_words.len().min(buffer.remaining());
        let (words, _) = self.last_words.as_slices();
        let count = count.min(words.len());
        buffer.put_slice(words.get(..count).unwrap_or_default());
        self.last_words.drain(..count);
    }
}

impl Converted {
    fn poll_read(
        &mut self,
        source: &mut Source,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            let mut raw = ReadBuf::new(self.chunk.room());
            ready!(source.poll_read(context, &mut raw))?;
            let count = raw.filled().len();
            self.left = 0..self.chunk.take(count, || ccsid(&source.pipe)).len();
        }
        let text = self.chunk.bytes().get(self.left.clone());
        let text = text.unwrap_or_default();
        let count = text.len().min(buffer.remaining());
        buffer.put_slice(text.get(..count).unwrap_or_default());
        self.left.start += count;
        Poll::Ready(Ok(()))
    }
}

/// Reads what is there; nothing is 0.
pub(in crate::container) fn read_now(
    pipe: &pipe::Receiver,
    buffer: &mut [u8],
) -> io::Result<usize> {
    loop {
        return match rustix::io::read(pipe.as_fd(), &mut *buffer) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::AGAIN) => Ok(0),
            other => Ok(other?),
        };
    }
}

/// The input of a process. Its end, by shutdown or drop, is told.
pub(super) struct FifoInput {
    target: Target,
    ended: Option<oneshot::Sender<()>>,
    kept: Option<oneshot::Sender<pipe::Sender>>,
}

enum Target {
    Fifo(pipe::Sender),
    /// What is written goes nowhere.
    Nowhere,
    Closed,
}

impl FifoInput {
    /// Into a FIFO, or nowhere.
    pub(super) fn new(fifo: Option<pipe::Sender>, ended: Option<oneshot::Sender<()>>) -> Self {
        Self {
            target: fifo.map_or(Target::Nowhere, Target::Fifo),
            ended,
            kept: None,
        }
    }

    /// That of a command, whose owner keeps the FIFO open when the client did not close it: a session that is cut off
    /// must end the command with all that descends from it, and one that read the end of its input might be gone before,
    /// without what it has in the background.
    pub(super) fn of_command(fifo: pipe::Sender, kept: oneshot::Sender<pipe::Sender>) -> Self {
        Self {
            target: Target::Fifo(fifo),
            ended: None,
            kept: Some(kept),
        }
    }

    fn end(&mut self) {
        // First closed, then told.
        self.target = Target::Closed;
        if let Some(ended) = self.ended.take() {
            // Nobody waits for it when the session is over already.
            ended.send(()).ok();
        }
    }
}

impl AsyncWrite for FifoInput {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.target {
            Target::Fifo(pipe) => Pin::new(pipe).poll_write(context, bytes),
            Target::Nowhere => Poll::Ready(Ok(bytes.len())),
            Target::Closed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for FifoInput {
    fn drop(&mut self) {
        if let Some(kept) = self.kept.take()
            && let Target::Fifo(fifo) = std::mem::replace(&mut self.target, Target::Closed)
        {
            // Who is gone has ended the command.
            kept.send(fifo).ok();
        }
        self.end();
    }
}
