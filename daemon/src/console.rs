//! Console commands: what an operator may ask of the running daemon, and the answers.
//!
//! On z/OS they come by MODIFY and STOP of the started task ([`zcri_sys::console`]), elsewhere by the daemon's admin
//! socket ([`admin`]), for which `zcrid modify` is the client. Both end in [`Operator::obey`].

pub mod admin;
mod display;
mod system;

use std::sync::Arc;

use tokio::sync::Notify;

use crate::error::Chain;
use crate::messages::{self, Message};
use crate::pod::Pods;
use crate::reload::{Reloaded, Reloader};

pub use system::listen as listen_to_system;

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `DISPLAY PODS`
    DisplayPods,
    /// `DISPLAY NETWORK`
    DisplayNetwork,
    /// `DISPLAY STATUS`
    DisplayStatus,
    /// `REFRESH`: reads the configuration anew.
    Refresh,
    /// `STOP`: ends the daemon in order.
    Stop,
}

/// All commands in full, with their abbreviations.
const COMMANDS: &[(&str, &str, Command)] = &[
    ("DISPLAY PODS", "D P", Command::DisplayPods),
    ("DISPLAY NETWORK", "D N", Command::DisplayNetwork),
    ("DISPLAY STATUS", "D S", Command::DisplayStatus),
    ("REFRESH", "REF", Command::Refresh),
    ("STOP", "STOP", Command::Stop),
];

impl Command {
    /// Reads a command, in capitals or not. `D` stands for `DISPLAY`, and what follows it may be cut short.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_matches('\'').to_ascii_uppercase();
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let fits = |full: &str, short: &str| {
            let (full, short) = (full.split(' '), short.split(' '));
            let pairs: Vec<_> = full.zip(short).collect();
            pairs.len() == words.len()
                && pairs
                    .iter()
                    .zip(&words)
                    .all(|((full, short), word)| full.starts_with(word) && word.starts_with(short))
        };
        let found = COMMANDS.iter().find(|(full, short, _)| fits(full, short));
        found.map(|(.., command)| *command)
    }
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it was done.
    pub done: bool,
    /// What to show: a message, and lines that belong to it.
    pub lines: Vec<String>,
}

impl Answer {
    /// A message with one insert.
    fn message(done: bool, id: &str, value: &str) -> Self {
        let line = messages::find(id).map(|m: &Message| m.line(|_| Some(value.to_owned())));
        Self {
            done,
            lines: line.into_iter().collect(),
        }
    }
}

/// Who obeys commands.
pub struct Operator {
    pods: Arc<Pods>,
    reloader: Reloader,
    stop: Notify,
}

impl Operator {
    /// Over all pods of the node.
    pub fn new(pods: Arc<Pods>, reloader: Reloader) -> Arc<Self> {
        Arc::new(Self {
            pods,
            reloader,
            stop: Notify::new(),
        })
    }

    /// Carries out what the text says.
    pub async fn obey(&self, text: &str) -> Answer {
        let Some(command) = Command::parse(text) else {
            let shown: String = text.trim().chars().take(60).collect();
            return Answer::message(false, messages::COMMAND_REFUSED, &shown);
        };
        tracing::info!(?command, "console command");
        match command {
            Command::DisplayPods => display::pods(&self.pods),
            Command::DisplayNetwork => display::network(&self.pods).await,
            Command::DisplayStatus => display::status(&self.pods).await,
            Command::Refresh => self.refresh().await,
            Command::Stop => {
                self.stop.notify_one();
                Answer::message(true, messages::COMMAND_TAKEN, "STOP")
            }
        }
    }

    /// Reads the configuration anew; what SIGHUP does.
    pub async fn refresh(&self) -> Answer {
        match self.reloader.reload().await {
            Ok(Reloaded { applied, restart }) => {
                tracing::info!(zcr = messages::RELOADED, applied = %applied, "configuration reloaded");
                let mut answer = Answer::message(true, messages::RELOADED, &applied);
                if let Some(keys) = restart {
                    tracing::info!(zcr = messages::RESTART_NEEDED, keys = %keys, "some changes need a restart");
                    let more = Answer::message(true, messages::RESTART_NEEDED, &keys);
                    answer.lines.extend(more.lines);
                }
                answer
            }
            Err(error) => {
                let error = Chain(&error).to_string();
                tracing::warn!(zcr = messages::NOT_RELOADED, error = %error, "configuration not reloaded");
                Answer::message(false, messages::NOT_RELOADED, &error)
            }
        }
    }

    /// Done when STOP was obeyed.
    ///
    /// # Cancel safety
    /// Safe: a STOP that nobody waits for yet is kept.
    pub async fn told_to_stop(&self) {
        self.stop.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_in_full_and_cut_short() {
        for (text, command) in [
            ("DISPLAY PODS", Command::DisplayPods),
            ("d pods", Command::DisplayPods),
            ("  Display   Pod ", Command::DisplayPods),
            ("D P", Command::DisplayPods),
            ("'d net'", Command::DisplayNetwork),
            ("DISP STATUS", Command::DisplayStatus),
            ("refresh", Command::Refresh),
            ("STOP", Command::Stop),
        ] {
            let parsed = Command::parse(text);
            let either = parsed == Some(command);
            assert!(either, "{text}: {parsed:?}");
        }
        for text in [
            "",
            "DISPLAY",
            "D",
            "PODS",
            "D PODS NOW",
            "RE",
            "STOPP",
            "S",
            "DISPLAYED PODS",
            "\u{e9}",
        ] {
            assert_eq!(Command::parse(text), None, "{text}");
        }
    }
}
