//! The set of descriptors that the loop waits for, and what each of them is.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub(crate) use rustix::event::epoll::EventFlags;
use rustix::event::epoll::{self, CreateFlags, EventData};
use rustix::time::Timespec;

/// Events taken from the kernel at once.
const BATCH: usize = 32;

/// A descriptor that is watched while its interest is not empty.
///
/// The number in `token` is never used twice, so that an event that was taken from the kernel before its source
/// went away finds nothing.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: OwnedFd,
    token: u64,
    interest: EventFlags,
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What is watched. `S` says what a descriptor is.
#[derive(Debug)]
pub(crate) struct Poll<S> {
    epoll: OwnedFd,
    sources: BTreeMap<u64, S>,
    next_token: u64,
}

impl<S: Copy> Poll<S> {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            sources: BTreeMap::new(),
            next_token: 1,
        })
    }

    /// Takes a descriptor in, watched for `interest`.
    pub(crate) fn watch(
        &mut self,
        fd: OwnedFd,
        source: S,
        interest: EventFlags,
    ) -> io::Result<Watch> {
        let mut watch = Watch {
            fd,
            token: self.next_token,
            interest: EventFlags::empty(),
        };
        self.next_token += 1;
        self.set_interest(&mut watch, interest)?;
        self.sources.insert(watch.token, source);
        Ok(watch)
    }

    /// Changes what a descriptor is watched for. Without interest it is taken out of the kernel's set, which would
    /// report hang-ups otherwise.
    pub(crate) fn set_interest(
        &mut self,
        watch: &mut Watch,
        interest: EventFlags,
    ) -> io::Result<()> {
        if watch.interest == interest {
            return Ok(());
        }
        let data = EventData::new_u64(watch.token);
        if interest.is_empty() {
            epoll::delete(&self.epoll, &watch.fd)?;
        } else if watch.interest.is_empty() {
            epoll::add(&self.epoll, &watch.fd, data, interest)?;
        } else {
            epoll::modify(&self.epoll, &watch.fd, data, interest)?;
        }
        watch.interest = interest;
        Ok(())
    }

    /// Stops watching and gives the descriptor back.
    pub(crate) fn release(&mut self, mut watch: Watch) -> OwnedFd {
        self.sources.remove(&watch.token);
        // Taking out what is in cannot fail; what is not in is no harm.
        drop(self.set_interest(&mut watch, EventFlags::empty()));
        watch.fd
    }

    /// What the token of an event stands for, if it still does.
    pub(crate) fn source(&self, token: u64) -> Option<S> {
        self.sources.get(&token).copied()
    }

    /// Waits, for ever without a limit. Did the limit pass without an event? An interrupted wait gives no events.
    pub(crate) fn wait(
        &self,
        events: &mut Vec<(u64, EventFlags)>,
        limit: Option<Timespec>,
    ) -> io::Result<bool> {
        events.clear();
        let mut buffer: [std::mem::MaybeUninit<epoll::Event>; BATCH] =
            [const { std::mem::MaybeUninit::uninit() }; BATCH];
        match epoll::wait(&self.epoll, &mut buffer, limit.as_ref()) {
            Ok((ready, _)) => {
                events.extend(ready.iter().map(|event| (event.data.u64(), event.flags)));
                Ok(events.is_empty())
            }
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
