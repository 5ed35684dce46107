//! A SPDY connection: who reads it, and what its streams share.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc};

use super::frame::{Decoder, Encoder, Frame, SETTINGS_INITIAL_WINDOW_SIZE, goaway, reset};
use super::header::Headers;
use super::stream::Stream;
use super::window::{self, Grant};
use crate::activity::Activity;
use crate::channel::Gone;
use crate::limits::MAX_STREAMS;
use crate::queue::{End, Queue};
use crate::session::Ending;
use crate::transport::Tcp;
use crate::websocket::tunnel::Input;
use crate::writer::Writer;

/// What the streams of a connection share.
pub(crate) struct Shared {
    pub(super) writer: Arc<Writer>,
    encoder: Mutex<Encoder>,
    table: Mutex<Table>,
}

struct Table {
    streams: HashMap<u32, Entry>,
    /// The highest id that the client used.
    last: u32,
    /// What the client may still send on the connection is granted by this.
    grant: Grant,
    /// What may still be sent on the connection.
    window: i64,
    /// The window with which streams begin, towards the client.
    initial: i64,
    /// The client has shown that it has windows: see [`window`].
    windows: bool,
}

/// A stream that is open in at least one direction.
struct Entry {
    queue: Arc<Queue>,
    received_fin: bool,
    sent_fin: bool,
    grant: Grant,
    window: i64,
    /// The window grew, or the stream was reset.
    changed: Arc<Notify>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, frame: &Frame) -> io::Result<()> {
        // The encoder's state follows the order of the frames, which is that of the answers.
        self.writer.answer(|out| {
            self.encoder
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .encode(frame, out)
        })
    }

    /// The user of a stream has taken bytes of it.
    pub(super) fn consumed(&self, id: u32, length: usize) {
        let delta = match self.table().streams.get_mut(&id) {
            Some(entry) if !entry.received_fin => entry.grant.take(length),
            _ => None,
        };
        if let Some(delta) = delta {
            // A client that does not read its answers is found by the next of the reading side.
            self.answer(&Frame::WindowUpdate { stream: id, delta }).ok();
        }
    }

    /// Waits until something may be sent on a stream; how much of `wanted`.
    pub(super) async fn reserve(&self, id: u32, wanted: usize) -> Result<usize, Gone> {
        loop {
            let changed = {
                let mut table = self.table();
                let Table {
                    streams,
                    window,
                    windows,
                    ..
                } = &mut *table;
                let Some(entry) = streams.get_mut(&id).filter(|entry| !entry.sent_fin) else {
                    return Err(Gone::Channel);
                };
                let open = if *windows {
                    entry.window.min(*window)
                } else {
                    i64::MAX
                };
                if open > 0 {
                    let part = usize::try_from(open).map_or(wanted, |open| open.min(wanted));
                    let counted = i64::try_from(part).unwrap_or(i64::MAX);
                    // Without windows on the other side they fall for ever; a floor keeps them from an overflow.
                    entry.window = entry.window.saturating_sub(counted);
                    *window = window.saturating_sub(counted);
                    return Ok(part);
                }
                entry.changed.clone()
            };
            changed.notified().await;
        }
    }

    /// The direction to the client ends. False: it had ended.
    pub(super) fn finish(&self, id: u32) -> bool {
        let mut table = self.table();
        let Some(entry) = table.streams.get_mut(&id) else {
            return false;
        };
        let first = !std::mem::replace(&mut entry.sent_fin, true);
        if entry.received_fin {
            table.streams.remove(&id);
        }
        first
    }

    /// Ends a stream in both directions, if it is open.
    pub(super) fn reset(&self, id: u32, status: u32) {
        if self.remove(id) {
            // The next answer of the reading side finds a client that does not read.
            self.answer(&Frame::RstStream { stream: id, status }).ok();
        }
    }

    fn remove(&self, id: u32) -> bool {
        let Some(entry) = self.table().streams.remove(&id) else {
            return false;
        };
        entry.queue.end(End::Reset);
        entry.changed.notify_one();
        true
    }

    /// Says that no more streams are taken.
    pub(crate) fn go_away(&self, status: u32) -> io::Result<()> {
        let last_stream = self.table().last;
        self.answer(&Frame::GoAway {
            last_stream,
            status,
        })
    }
}

/// The reading side of a connection.
pub(crate) struct Connection {
    input: Input,
    buffer: BytesMut,
    decoder: Decoder,
    accept: mpsc::Sender<Stream>,
    shared: Arc<Shared>,
    tcp: Tcp,
    activity: Activity,
}

impl Connection {
    /// The reading side, and where the streams of the client come out. `buffer` was read already.
    pub(crate) fn new(
        input: Input,
        buffer: BytesMut,
        writer: Arc<Writer>,
        tcp: Tcp,
        activity: Activity,
    ) -> (Self, mpsc::Receiver<Stream>) {
        let table = Table {
            streams: HashMap::new(),
            last: 0,
            grant: Grant::connection(),
            window: i64::from(window::INITIAL),
            initial: i64::from(window::INITIAL),
            windows: false,
        };
        let shared = Shared {
            writer,
            encoder: Mutex::new(Encoder::new()),
            table: Mutex::new(table),
        };
        let (accept, streams) = mpsc::channel(MAX_STREAMS);
        let connection = Self {
            input,
            buffer,
            decoder: Decoder::new(),
            accept,
            shared: Arc::new(shared),
            tcp,
            activity,
        };
        (connection, streams)
    }

    /// What the streams share.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Reads until the client ends the connection or breaks the rules.
    pub(crate) async fn run(&mut self) -> Ending {
        match self.read().await {
            Ok(()) => Ending::Gone,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ending::Protocol(error),
            Err(error) => Ending::Broken(error),
        }
    }

    /// Throws away what the client sends, until it ends the connection.
    pub(crate) async fn drain(&mut self) {
        loop {
            self.buffer.clear();
            if !matches!(self.input.fill(&mut self.buffer).await, Ok(1..)) {
                return;
            }
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        loop {
            while let Some(frame) = self.decoder.decode(&mut self.buffer).map_err(invalid)? {
                self.handle(frame).await?;
            }
            if self.input.fill(&mut self.buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn handle(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await?,
            Frame::SynStream {
                stream,
                headers,
                fin,
                unidirectional,
            } => {
                self.open(stream, headers, fin, unidirectional)?;
            }
            Frame::RstStream { stream, .. } => {
                self.shared.remove(stream);
            }
            Frame::Headers {
                stream, fin: true, ..
            } => self.fin(stream),
            Frame::Settings(entries) => self.settings(&entries)?,
            Frame::WindowUpdate { stream, delta } => self.window_update(stream, delta)?,
            // The client's own pings are odd; an even one answers a ping that was never sent.
            Frame::Ping(id) if id % 2 == 1 => self.shared.answer(&Frame::Ping(id))?,
            Frame::SynReply { .. } => {
                return Err(invalid("a reply to a stream that was never opened"));
            }
            // After GOAWAY a Go client closes the connection, and that is what ends the session.
            Frame::Headers { .. }
            | Frame::Ping(_)
            | Frame::GoAway { .. }
            | Frame::Unknown { .. } => {}
        }
        Ok(())
    }

    fn open(
        &mut self,
        id: u32,
        headers: Headers,
        fin: bool,
        unidirectional: bool,
    ) -> io::Result<()> {
        self.activity.touch();
        let queue = Arc::new(Queue::default());
        {
            let mut table = self.shared.table();
            if id.is_multiple_of(2) || id <= table.last {
                return Err(invalid(
                    "the id of a new stream is even or not higher than the last",
                ));
            }
            table.last = id;
            if table.streams.len() >= MAX_STREAMS || self.accept.is_closed() {
                drop(table);
                return self.shared.answer(&Frame::RstStream {
                    stream: id,
                    status: reset::REFUSED_STREAM,
                });
            }
            let entry = Entry {
                queue: queue.clone(),
                received_fin: fin,
                sent_fin: unidirectional,
                grant: Grant::stream(),
                window: table.initial,
                changed: Arc::default(),
            };
            if !(fin && unidirectional) {
                table.streams.insert(id, entry);
            }
        }
        if fin {
            queue.end(End::Closed);
        }
        // Go clients throw away data that comes before the reply.
        self.shared.answer(&Frame::SynReply {
            stream: id,
            headers: Headers::default(),
            fin: false,
        })?;
        let stream = Stream {
            id,
            headers,
            queue,
            shared: self.shared.clone(),
        };
        // The channel has room for as many as may be open. When nobody takes them any more, the drop resets it.
        drop(self.accept.try_send(stream));
        Ok(())
    }

    async fn data(&mut self, id: u32, bytes: Bytes, fin: bool) -> io::Result<()> {
        self.activity.touch();
        let (queue, grant) = {
            let mut table = self.shared.table();
            let grant = table.grant.take(bytes.len());
            let last = table.last;
            let queue = match table.streams.get(&id) {
                Some(entry) if entry.received_fin => Err(Some(reset::STREAM_ALREADY_CLOSED)),
                Some(entry) => Ok(entry.queue.clone()),
                None if id.is_multiple_of(2) || id > last => Err(Some(reset::INVALID_STREAM)),
                // It was on its way when the stream ended here.
                None => Err(None),
            };
            (queue, grant)
        };
        if let Some(delta) = grant {
            self.shared
                .answer(&Frame::WindowUpdate { stream: 0, delta })?;
        }
        match queue {
            Ok(queue) => {
                queue.push(bytes);
                if fin {
                    self.fin(id);
                }
                if queue.is_full() {
                    // Nothing is read meanwhile, so the client is held up too.
                    self.tcp.unless_hung_up(queue.room()).await?;
                }
                Ok(())
            }
            Err(Some(status)) => {
                self.shared.remove(id);
                self.shared.answer(&Frame::RstStream { stream: id, status })
            }
            Err(None) => Ok(()),
        }
    }

    fn fin(&self, id: u32) {
        let mut table = self.shared.table();
        if let Some(entry) = table.streams.get_mut(&id) {
            entry.received_fin = true;
            entry.queue.end(End::Closed);
            if entry.sent_fin {
                table.streams.remove(&id);
            }
        }
    }

    /// A new initial window counts for the streams that are open too (section 2.6.8).
    fn settings(&self, entries: &[(u32, u32)]) -> io::Result<()> {
        for (id, value) in entries {
            if *id != SETTINGS_INITIAL_WINDOW_SIZE {
                continue;
            }
            let value = i64::from(*value);
            if value > window::MAX {
                return Err(invalid("the initial window is larger than a window can be"));
            }
            let mut table = self.shared.table();
            table.windows = true;
            let change = value - std::mem::replace(&mut table.initial, value);
            for entry in table.streams.values_mut() {
                entry.window = entry.window.saturating_add(change);
                entry.changed.notify_one();
            }
        }
        Ok(())
    }

    fn window_update(&self, id: u32, delta: u32) -> io::Result<()> {
        let delta = i64::from(delta);
        let mut table = self.shared.table();
        table.windows = true;
        if id == 0 {
            table.window = table.window.saturating_add(delta);
            if delta == 0 || table.window > window::MAX {
                return Err(invalid("the window of the connection is oversized"));
            }
            table
                .streams
                .values()
                .for_each(|entry| entry.changed.notify_one());
            return Ok(());
        }
        let Some(entry) = table.streams.get_mut(&id) else {
            return Ok(());
        };
        entry.window = entry.window.saturating_add(delta);
        entry.changed.notify_one();
        if delta == 0 || entry.window > window::MAX {
            drop(table);
            self.shared.reset(id, reset::FLOW_CONTROL_ERROR);
        }
        Ok(())
    }
}

/// The status for a GOAWAY.
pub(crate) fn go_away_status(ending: &Ending) -> u32 {
    match ending {
        Ending::Protocol(_) => goaway::PROTOCOL_ERROR,
        _ => goaway::OK,
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
