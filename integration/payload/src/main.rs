//! What the demo's containers run: a program without dependencies, linked statically, so that an image of one file
//! is enough for it.
//!
//! Without arguments it counts on its standard output and answers on port 8080; with `say WORDS` it says them and
//! ends, for the demo's exec.
#![forbid(unsafe_code)]

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const PORT: u16 = 8080;
const PERIOD: Duration = Duration::from_millis(100);

fn main() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("say") => {
            println!("{}", words.collect::<Vec<_>>().join(" "));
            Ok(())
        }
        Some(other) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("unknown command {other:?}"),
        )),
        None => serve(),
    }
}

fn serve() -> io::Result<()> {
    println!(
        "hello from {}, process {} of {}",
        host_name(),
        std::process::id(),
        platform()
    );
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that goes away early is no reason to end.
            answer(client).ok();
        }
    });
    for count in 1_u64.. {
        println!("tick {count}");
        std::thread::sleep(PERIOD);
    }
    Ok(())
}

fn answer(mut client: TcpStream) -> io::Result<()> {
    let mut request = [0; 512];
    let length = client.read(&mut request)?;
    let body = format!("{} on {} read {length} bytes\n", host_name(), platform());
    write!(
        client,
        "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "nowhere".to_owned(), |name| name.trim().to_owned())
}

fn platform() -> String {
    format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH)
}
