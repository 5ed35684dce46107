//! `__console2()` of z/OS UNIX (BPX1CCS/BPX4CCS), behind a trait with its one call, so that all but that call is
//! compiled and tested everywhere.
//!
//! Sources: z/OS UNIX Assembler Callable Services, "__console() (BPX1CCS, BPX4CCS)"; the layout and the numbers are
//! those that golang.org/x/sys/unix has for zos/s390x (`ConsMsg2`, `CC_modify`, `CC_stop`, `CONSOLE_FORMAT_2`).
//! UNVERIFIED on a z/OS system: the encoding of the text (this assumes a process in ASCII mode, whose C library
//! converts), and the length of the MODIFY buffer.

use std::io;
use std::sync::Arc;

use super::{Console, Request, Requests};

/// `CONSOLE_FORMAT_2`.
const FORMAT: u16 = 2;
/// `CC_modify` and `CC_stop`.
const MODIFY: u32 = 1;
const STOP: u32 = 2;
/// Room for the text of a MODIFY command; MVS commands are shorter.
const MODIFY_ROOM: usize = 128;
/// Longest text of one message (BPXYCCA); longer ones are refused by the system.
const LONGEST: usize = 17_850;

/// `struct __cons_msg2`, on a system with pointers of 64 bits.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Message {
    format: u16,
    reserved1: u16,
    length: u32,
    text: *const u8,
    reserved2: [u8; 8],
    routing_codes: *const u32,
    descriptor_codes: *const u32,
    flags: u32,
    token: u32,
    id: *mut u32,
    reserved4: [u8; 4],
    dom_token: u32,
    dom_ids: *const u32,
    modify_cart: *mut u8,
    modify_console: *mut u8,
    cart: [u8; 8],
    console: [u8; 4],
    reserved5: [u8; 12],
}

#[cfg(feature = "zos-stub")]
impl Message {
    /// The text.
    ///
    /// # Safety
    /// The text that the message points to lives as long as the result.
    pub(crate) unsafe fn text(&self) -> &[u8] {
        // SAFETY: the caller's promise, and the length is the text's.
        unsafe { std::slice::from_raw_parts(self.text, self.length as usize) }
    }
}

/// The system's call.
pub trait ConsoleCall: Send + Sync {
    /// `__console2(message, modify, command)`: sends `message` if it is not null, and waits for a command if `command`
    /// is not null.
    ///
    /// # Safety
    /// Each pointer is null or valid for the call; `modify` has room for `MODIFY_ROOM` bytes.
    ///
    /// # Errors
    /// The system's errno.
    unsafe fn console2(
        &self,
        message: *const Message,
        modify: *mut u8,
        command: *mut u32,
    ) -> io::Result<()>;
}

/// Console and commands by a system's call.
#[derive(Debug)]
pub struct SystemConsole<C>(Arc<C>);

impl<C: ConsoleCall> SystemConsole<C> {
    /// By that call.
    pub fn new(call: Arc<C>) -> Self {
        Self(call)
    }
}

impl<C: ConsoleCall> Console for SystemConsole<C> {
    fn write(&self, line: &str) -> io::Result<()> {
        let end = line.floor_char_boundary(LONGEST);
        let text = line.get(..end).unwrap_or(line);
        let message = Message {
            format: FORMAT,
            reserved1: 0,
            length: u32::try_from(text.len()).map_err(io::Error::other)?,
            text: text.as_ptr(),
            reserved2: [0; 8],
            routing_codes: std::ptr::null(),
            descriptor_codes: std::ptr::null(),
            flags: 0,
            token: 0,
            id: std::ptr::null_mut(),
            reserved4: [0; 4],
            dom_token: 0,
            dom_ids: std::ptr::null(),
            modify_cart: std::ptr::null_mut(),
            modify_console: std::ptr::null_mut(),
            cart: [0; 8],
            console: [0; 4],
            reserved5: [0; 12],
        };
        // SAFETY: the message and the text that it points to live across the call; null says that no command is waited
        // for.
        unsafe {
            self.0.console2(
                &raw const message,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        }
    }
}

impl<C: ConsoleCall> Requests for SystemConsole<C> {
    fn next(&mut self) -> io::Result<Request> {
        loop {
            let mut text = [0; MODIFY_ROOM];
            let mut command = 0;
            // SAFETY: null says that no message is sent; the two others are valid and large enough.
            unsafe {
                self.0
                    .console2(std::ptr::null(), text.as_mut_ptr(), &raw mut command)
            }?;
            match command {
                MODIFY => return Ok(Request::Modify(modify_text(&text))),
                STOP => return Ok(Request::Stop),
                // A number of a later release.
                _ => {}
            }
        }
    }
}

/// Up to the NUL, or the blanks that pad it.
fn modify_text(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|b| *b == 0).unwrap_or(buffer.len());
    let text = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default());
    text.trim().to_owned()
}

#[cfg(any(target_os = "zos", feature = "zos-stub"))]
mod call {
    use super::*;

    /// The system's.
    #[derive(Debug)]
    pub(super) struct System;

    impl ConsoleCall for System {
        unsafe fn console2(
            &self,
            message: *const Message,
            modify: *mut u8,
            command: *mut u32,
        ) -> io::Result<()> {
            // SAFETY: the caller's promise is that of the call.
            unsafe { crate::zos::console2(message, modify, command) }
        }
    }
}

/// The console of this system, if it is z/OS.
#[cfg(any(target_os = "zos", feature = "zos-stub"))]
pub(super) fn system() -> Option<(Box<dyn Console>, Box<dyn Requests>)> {
    let call = Arc::new(call::System);
    Some((
        Box::new(SystemConsole::new(Arc::clone(&call))),
        Box::new(SystemConsole::new(call)),
    ))
}

/// The console of this system, if it is z/OS.
#[cfg(not(any(target_os = "zos", feature = "zos-stub")))]
pub(super) fn system() -> Option<(Box<dyn Console>, Box<dyn Requests>)> {
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A console that keeps what it is told, and has commands to give.
    #[derive(Default)]
    struct Fake {
        told: Mutex<Vec<String>>,
        commands: Mutex<Vec<(u32, &'static str)>>,
    }

    impl ConsoleCall for Fake {
        unsafe fn console2(
            &self,
            message: *const Message,
            modify: *mut u8,
            command: *mut u32,
        ) -> io::Result<()> {
            if !message.is_null() {
                // SAFETY: a message that is not null is valid, and so is its text (the contract of the trait).
                let (format, text) = unsafe {
                    let message = *message;
                    let text = std::slice::from_raw_parts(message.text, message.length as usize);
                    (message.format, text.to_vec())
                };
                assert_eq!(format, FORMAT);
                self.told
                    .lock()
                    .unwrap()
                    .push(String::from_utf8(text).unwrap());
            }
            if !command.is_null() {
                let next = self.commands.lock().unwrap().pop();
                let (number, text) = next.ok_or(io::ErrorKind::Interrupted)?;
                // SAFETY: room for MODIFY_ROOM bytes, and a number (the contract of the trait).
                unsafe {
                    std::ptr::copy_nonoverlapping(text.as_ptr(), modify, text.len());
                    *command = number;
                }
            }
            Ok(())
        }
    }

    #[test]
    fn the_layout_is_that_of_the_manual() {
        assert_eq!(size_of::<Message>(), 112);
        assert_eq!(std::mem::offset_of!(Message, text), 8);
        assert_eq!(std::mem::offset_of!(Message, routing_codes), 24);
        assert_eq!(std::mem::offset_of!(Message, id), 48);
        assert_eq!(std::mem::offset_of!(Message, modify_cart), 72);
        assert_eq!(std::mem::offset_of!(Message, cart), 88);
    }

    #[test]
    fn messages_go_out_and_commands_come_in() {
        let fake = Arc::new(Fake::default());
        let mut console = SystemConsole::new(Arc::clone(&fake));
        console.write("ZCR002I ZCRID IS SERVING").unwrap();
        console.write(&"\u{e9}".repeat(LONGEST)).unwrap();
        let told = fake.told.lock().unwrap();
        assert_eq!(told[0], "ZCR002I ZCRID IS SERVING");
        assert_eq!(told[1].len(), LONGEST);
        *fake.commands.lock().unwrap() = vec![(STOP, ""), (9, ""), (MODIFY, "DISPLAY PODS  ")];
        let modify = Request::Modify("DISPLAY PODS".into());
        assert_eq!(console.next().unwrap(), modify);
        assert_eq!(console.next().unwrap(), Request::Stop);
        console.next().unwrap_err();
    }
}
