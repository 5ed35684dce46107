//! Removing an interface without waiting for what nobody sees.
//!
//! The kernel answers a request to remove an interface when the last of its readers has ended, tens of milliseconds
//! after the interface, its addresses and its routes are gone for everyone (`netdev_run_todo`, which waits for
//! `rcu_barrier`). No interrupt ends that wait. So a child process makes the request, and its parent goes on at the
//! kernel's notice that the interface is gone. The child holds nothing but sockets, and ends with the answer.

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::route::{Link, del_link, del_link_by_index, get_link};
use super::{Socket, errno};
use crate::fork::{Side, exit_now, fork};
use crate::{Error, Result};

/// Removes the link `name`; returns when neither it nor anything that hung on it is there for anyone.
///
/// The child has `hold`, too, so that closing it here is nothing: closing a socket of nf_tables waits for readers of
/// what it removed (`nft_rcv_nl_event`).
///
/// The calling process must have a single thread; in another one this waits for all of the removal.
///
/// # Errors
/// There is no such link (ENODEV), or the kernel refused.
pub fn remove_link(socket: &mut Socket, name: &str, hold: Option<&Socket>) -> Result<()> {
    let mut link = None;
    socket.ask("look for an interface to remove", get_link(name), |m| {
        link = Link::parse(m);
    })?;
    let gone = |errno: Errno| Error::call("remove an interface", errno);
    let index = link.ok_or_else(|| gone(Errno::NODEV))?.index;
    let events = Socket::route_events()?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(gone)?;
    match fork() {
        Ok(Side::Child) => exit_now(remove_apart(writer, name, hold)),
        Ok(Side::Parent(_)) => drop(writer),
        Err(_) => return socket.send_one("remove an interface", del_link(name)),
    }
    match wait(&events, reader, index) {
        Ok(()) => {}
        // The child could not do it: perhaps it was killed.
        Err(None) => socket.send_one("remove an interface", del_link(name))?,
        Err(Some(source)) => {
            let op = "remove an interface";
            return Err(Error::Call { op, source });
        }
    }
    // The notice comes before the kernel has done with the other end of a pair. Any request for a link that is not
    // there waits for that, and changes nothing.
    drop(socket.send_all(vec![del_link_by_index(index)])?);
    Ok(())
}

/// The child: nobody who waits for the end of the parent's output waits for it.
fn remove_apart(answer: OwnedFd, name: &str, hold: Option<&Socket>) -> i32 {
    let silent = std::fs::File::options().write(true).open("/dev/null");
    let Ok(silent) = silent else { return 1 };
    let held = hold.map_or(silent.as_fd(), |hold| hold.socket.as_fd());
    let moved = rustix::stdio::dup2_stdin(&answer)
        .and_then(|()| rustix::stdio::dup2_stdout(held))
        .and_then(|()| rustix::stdio::dup2_stderr(&silent));
    if moved.is_err() {
        return 1;
    }
    // SAFETY: this process ends without using any descriptor above 2 that it was born with; the ones of its own are
    // made after this.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    std::mem::forget((answer, silent));
    let removed = Socket::route()
        .and_then(|mut socket| socket.send_one("remove an interface", del_link(name)));
    let number = match &removed {
        Ok(()) => 0,
        Err(e) => e.io().and_then(errno).unwrap_or(libc::EIO),
    };
    let told = rustix::io::write(rustix::stdio::stdin(), &number.to_ne_bytes());
    i32::from(told.is_err())
}

/// Waits for the notice, or for the child's answer. No answer and no notice is `None`.
fn wait(events: &Socket, reader: OwnedFd, index: u32) -> Result<(), Option<io::Error>> {
    let mut reader = std::fs::File::from(reader);
    loop {
        let mut both = [
            PollFd::from_borrowed_fd(events.socket.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN),
        ];
        match poll(&mut both, None) {
            Err(Errno::INTR) => continue,
            Err(e) => return Err(Some(e.into())),
            Ok(_) => {}
        }
        let (notice, answer) = (both[0].revents(), both[1].revents());
        if !answer.is_empty() {
            let mut number = [0; 4];
            return match reader
                .read_exact(&mut number)
                .map(|()| i32::from_ne_bytes(number))
            {
                Ok(0) => Ok(()),
                Ok(number) => Err(Some(io::Error::from_raw_os_error(number))),
                Err(_) => Err(None),
            };
        }
        if !notice.is_empty() && noticed(events, index) {
            return Ok(());
        }
    }
}

/// Whether the notices that are there say that the link is gone. When some got lost the child's answer will say it.
fn noticed(events: &Socket, index: u32) -> bool {
    let mut gone = false;
    let read = events.receive(|received| {
        gone |= received.kind == libc::RTM_DELLINK
            && Link::parse(received).is_some_and(|link| link.index == index);
        Ok(())
    });
    read.is_ok() && gone
}
