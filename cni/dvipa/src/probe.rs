//! Whether anybody else in the network has an address.
//!
//! SIOCSVIPA takes an address over that is active on another stack of the sysplex, and nobody is asked (see
//! docs/networking.md). So the question is asked before: a stack that has the address accepts a connection or refuses
//! it, and from an address that nobody has there is no answer. Where packets are filtered that may be wrong: a filter
//! that drops them hides an address, one that resets connections makes all look active. Ranges must not overlap all
//! the same.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

/// The discard service (RFC 863): nobody minds to be asked, and nobody answers but the stack itself.
const PORT: u16 = 9;

/// Who has the address, if anybody has within this time.
pub(crate) fn elsewhere(ip: IpAddr, patience: Duration) -> Option<String> {
    if patience.is_zero() {
        return None;
    }
    let answer = TcpStream::connect_timeout(&SocketAddr::new(ip, PORT), patience);
    let answered = match answer {
        Ok(_) => true,
        Err(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
        ),
    };
    answered.then(|| "on another stack: it answers to the probe (probeMilliseconds)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_that_has_the_address_answers_and_no_patience_asks_nobody() {
        let local = IpAddr::from([127, 0, 0, 1]);
        assert!(elsewhere(local, Duration::from_secs(5)).is_some());
        assert_eq!(elsewhere(local, Duration::ZERO), None);
    }
}
