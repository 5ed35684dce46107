//! Who watches the output of a running container: clients that are attached to it, each by FIFOs of its own.
//!
//! Nobody waits for a client. What its FIFO does not take is dropped, for this client alone, and a line in its place
//! says so as soon as there is room: on standard error if the client reads that, else on standard output, which may
//! be a terminal's. Once something is dropped nothing more is written to either stream until that line is, so that
//! what a client reads has gaps only where it is told of them.

use rustix::io::Errno;

use crate::cri_log::Stream;
use crate::monitor::Source;
use crate::poll::{EventFlags, Poll, Watch};

/// Clients of one container at once. Each costs a write for every read of output.
pub(crate) const MAX_CLIENTS: usize = 64;

/// A FIFO is watched for nothing but the end of its reader.
pub(crate) const QUIET: EventFlags = EventFlags::ERR;

/// All clients of a container.
#[derive(Debug, Default)]
pub(crate) struct Audience {
    clients: Vec<Client>,
}

/// One of them.
#[derive(Debug)]
struct Client {
    number: u64,
    /// Its FIFOs, by [`index`].
    fifos: [Option<Watch>; 2],
    /// Streams of the container that have ended.
    ended: [bool; 2],
    terminal: bool,
    behind: Option<Behind>,
}

/// A client that was too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Behind {
    /// Bytes that it will not see.
    dropped: u64,
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Out => 0,
        Stream::Err => 1,
    }
}

impl Audience {
    /// Takes a client in, whose FIFOs for standard output and standard error are watched as [`QUIET`].
    pub(crate) fn admit(&mut self, number: u64, fifos: [Option<Watch>; 2], terminal: bool) {
        self.clients.push(Client {
            number,
            fifos,
            ended: [false; 2],
            terminal,
            behind: None,
        });
    }

    /// Clients that are there.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Shows output to everybody.
    pub(crate) fn show(&mut self, poll: &mut Poll<Source>, stream: Stream, bytes: &[u8]) {
        if self.clients.is_empty() || bytes.is_empty() {
            return;
        }
        for client in &mut self.clients {
            client.show(poll, stream, bytes);
        }
        self.forget_gone();
    }

    /// A stream of the container has ended, and with it everybody's.
    pub(crate) fn end(&mut self, poll: &mut Poll<Source>, stream: Stream) {
        for client in &mut self.clients {
            client.ended[index(stream)] = true;
            client.close_ended(poll);
        }
        self.forget_gone();
    }

    /// Lets everybody go at once.
    pub(crate) fn dismiss(&mut self, poll: &mut Poll<Source>) {
        for mut client in self.clients.drain(..) {
            client.close(poll, Stream::Out);
            client.close(poll, Stream::Err);
        }
    }

    /// A FIFO has room again, or its reader is gone.
    pub(crate) fn ready(
        &mut self,
        poll: &mut Poll<Source>,
        number: u64,
        stream: Stream,
        flags: EventFlags,
    ) {
        let client = self.clients.iter_mut().find(|c| c.number == number);
        if let Some(client) = client {
            client.watch(poll, stream, QUIET);
            if flags.contains(EventFlags::ERR) {
                client.close(poll, stream);
            }
            client.catch_up(poll);
        }
        self.forget_gone();
    }

    fn forget_gone(&mut self) {
        self.clients
            .retain(|client| client.fifos.iter().any(Option::is_some));
    }
}

impl Client {
    fn show(&mut self, poll: &mut Poll<Source>, stream: Stream, bytes: &[u8]) {
        let Some(fifo) = &self.fifos[index(stream)] else {
            return;
        };
        let mut rest = bytes;
        while self.behind.is_none() && !rest.is_empty() {
            match rustix::io::write(fifo, rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_gone) => return self.close(poll, stream),
            }
        }
        let missed = rest.len() as u64;
        match &mut self.behind {
            Some(behind) => behind.dropped += missed,
            None if missed == 0 => {}
            None => {
                self.behind = Some(Behind { dropped: missed });
                self.watch(poll, stream, EventFlags::OUT);
            }
        }
    }

    /// Says what was missed, if there is room for that.
    fn catch_up(&mut self, poll: &mut Poll<Source>) {
        while let Some(behind) = self.behind {
            let speakers = [Stream::Err, Stream::Out];
            let speaker = speakers
                .into_iter()
                .find_map(|stream| Some((stream, self.fifos[index(stream)].as_ref()?)));
            let Some((stream, fifo)) = speaker else {
                return;
            };
            // Short enough to be written as a whole or not at all (pipe(7), PIPE_BUF).
            match rustix::io::write(fifo, notice(behind, self.terminal).as_bytes()) {
                Ok(_) => self.behind = None,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return self.watch(poll, stream, EventFlags::OUT),
                Err(_gone) => self.close(poll, stream),
            }
        }
        self.close_ended(poll);
    }

    /// Closes what has ended, unless something is still to be told.
    fn close_ended(&mut self, poll: &mut Poll<Source>) {
        if self.behind.is_some() {
            return;
        }
        for stream in [Stream::Out, Stream::Err] {
            if self.ended[index(stream)] {
                self.close(poll, stream);
            }
        }
    }

    fn close(&mut self, poll: &mut Poll<Source>, stream: Stream) {
        if let Some(fifo) = self.fifos[index(stream)].take() {
            drop(poll.release(fifo));
        }
    }

    fn watch(&mut self, poll: &mut Poll<Source>, stream: Stream, interest: EventFlags) {
        if let Some(fifo) = &mut self.fifos[index(stream)]
            && let Err(e) = poll.set_interest(fifo, interest)
        {
            eprintln!("watch a client: {e}");
        }
    }
}

/// What a client reads in the place of what it missed.
fn notice(behind: Behind, terminal: bool) -> String {
    let end = if terminal { "\r\n" } else { "\n" };
    format!(
        "{end}[zcri: {} bytes of output are missing here: they were read too slowly]{end}",
        behind.dropped
    )
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    /// A client's end of a FIFO and the monitor's.
    fn fifo(poll: &mut Poll<Source>, stream: Stream) -> (OwnedFd, Watch) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let source = Source::Client(1, 1, stream);
        (reader, poll.watch(writer, source, QUIET).unwrap())
    }

    fn read_all(reader: &OwnedFd) -> (Vec<u8>, bool) {
        let (mut all, mut chunk) = (Vec::new(), [0; 65536]);
        loop {
            match rustix::io::read(reader, &mut chunk) {
                Ok(0) => return (all, true),
                Ok(n) => all.extend_from_slice(&chunk[..n]),
                Err(_) => return (all, false),
            }
        }
    }

    /// Handles the events that are there.
    fn turn(poll: &mut Poll<Source>, audience: &mut Audience) {
        let mut events = Vec::new();
        let none = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll.wait(&mut events, Some(none)).unwrap();
        for (token, flags) in events {
            if let Some(Source::Client(_, number, stream)) = poll.source(token) {
                audience.ready(poll, number, stream, flags);
            }
        }
    }

    #[test]
    fn a_slow_client_is_told_what_it_missed_and_goes_on() {
        let mut poll = Poll::new().unwrap();
        let mut audience = Audience::default();
        let (out, out_end) = fifo(&mut poll, Stream::Out);
        let (err, err_end) = fifo(&mut poll, Stream::Err);
        let (other, other_end) = fifo(&mut poll, Stream::Out);
        audience.admit(1, [Some(out_end), Some(err_end)], false);
        audience.admit(2, [Some(other_end), None], true);
        let chunk = [b'x'; 32768];
        for _ in 0..4 {
            audience.show(&mut poll, Stream::Out, &chunk);
            // The other client reads, and misses nothing.
            assert_eq!(read_all(&other).0.len(), chunk.len());
        }
        // Also what would fit is not shown before the gap is told.
        audience.show(&mut poll, Stream::Err, b"oops");
        turn(&mut poll, &mut audience);
        assert_eq!(read_all(&err).0, b"");
        assert_eq!(read_all(&out).0.len(), 65536);
        turn(&mut poll, &mut audience);
        let told = String::from_utf8(read_all(&err).0).unwrap();
        assert_eq!(
            told,
            "\n[zcri: 65540 bytes of output are missing here: they were read too slowly]\n"
        );
        audience.show(&mut poll, Stream::Out, b"again");
        assert_eq!(read_all(&out).0, b"again");
    }

    #[test]
    fn an_end_comes_after_what_is_left_to_tell() {
        let mut poll = Poll::new().unwrap();
        let mut audience = Audience::default();
        let (reader, end) = fifo(&mut poll, Stream::Out);
        audience.admit(1, [Some(end), None], true);
        audience.show(&mut poll, Stream::Out, &[b'x'; 65536 + 7]);
        audience.end(&mut poll, Stream::Out);
        audience.end(&mut poll, Stream::Err);
        assert_eq!(audience.len(), 1);
        let (first, ended) = read_all(&reader);
        assert_eq!((first.len(), ended), (65536, false));
        turn(&mut poll, &mut audience);
        let (rest, ended) = read_all(&reader);
        let rest = String::from_utf8(rest).unwrap();
        assert!(
            rest.starts_with("\r\n[zcri: 7 bytes ") && ended,
            "{rest:?}, {ended}"
        );
        assert_eq!(audience.len(), 0);
    }

    #[test]
    fn a_client_that_goes_away_is_forgotten() {
        let mut poll = Poll::new().unwrap();
        let mut audience = Audience::default();
        let (out, out_end) = fifo(&mut poll, Stream::Out);
        let (err, err_end) = fifo(&mut poll, Stream::Err);
        audience.admit(1, [Some(out_end), Some(err_end)], false);
        drop(out);
        turn(&mut poll, &mut audience);
        assert_eq!(audience.len(), 1);
        // One that is behind and gone too.
        audience.show(&mut poll, Stream::Err, &[b'x'; 1 << 17]);
        drop(err);
        turn(&mut poll, &mut audience);
        assert_eq!(audience.len(), 0);
    }
}
