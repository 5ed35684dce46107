//! Operator messages: what must be seen on the console, with an id that automation can act on.
//!
//! An event becomes a message where it is logged: a log line with the field `zcr` is one, and the table here has the
//! text of the console for it. `{name}` in a text is the field of that name. docs/messages.md is made from this table.
//!
//! An id is `ZCR`, three digits, and the type: `I` information, `W` warning, `E` error, `A` somebody has to act. It
//! comes first in its line and has a form that nothing else in a line has, so that it is found behind `BPXM023I (USER)`
//! too, which z/OS puts before the messages of a process that is not UID 0.

mod layer;

pub use layer::{ConsoleLayer, OnlyMessages};

/// Beginning of every id.
const PREFIX: &str = "ZCR";
/// `ZCR`, three digits, one letter.
const ID_LENGTH: usize = 7;

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Its id.
    pub id: &'static str,
    /// Its text, with inserts.
    pub text: &'static str,
    /// What happened.
    pub explanation: &'static str,
    /// What the operator does.
    pub response: &'static str,
}

macro_rules! messages {
    ($($name:ident = $id:literal, $text:literal, $explanation:literal, $response:literal;)*) => {
        $(
            #[doc = $text]
            pub const $name: &str = $id;
        )*

        /// All messages, in the order of their ids.
        pub const TABLE: &[Message] = &[
            $(Message { id: $id, text: $text, explanation: $explanation, response: $response },)*
        ];
    };
}

messages! {
    STARTING = "ZCR001I", "ZCRID {version} IS STARTING",
        "The daemon was started and read its configuration.",
        "None. ZCR002I follows when pods can be served.";
    SERVING = "ZCR002I", "ZCRID IS SERVING ON {socket}",
        "The state of the node was recovered, and the kubelet can call.",
        "None.";
    STOPPING = "ZCR003I", "ZCRID IS STOPPING",
        "STOP, MODIFY STOP or SIGTERM was received. No new call is taken; those in flight get a few seconds. Pods go on \
         without the daemon.",
        "None.";
    STOPPED = "ZCR004I", "ZCRID HAS STOPPED, PODS GO ON",
        "The daemon ended in order. Containers run, their logs are written and their exit codes kept; the next start \
         finds them.",
        "Start the daemon again: until then the node becomes NotReady.";
    CANNOT_GO_ON = "ZCR005E", "ZCRID CANNOT GO ON: {error}",
        "The daemon ended because something that it cannot do without is missing or refused.",
        "Mend what the text names, and start the daemon again. `zcrid check` looks at everything the node needs.";
    RELOADED = "ZCR006I", "CONFIGURATION RELOADED: {applied}",
        "REFRESH or SIGHUP was received, the files were read, and what changed and can change at run time is in force.",
        "None.";
    RESTART_NEEDED = "ZCR007W", "RESTART ZCRID FOR CHANGES OF {keys}",
        "The configuration was reloaded, but these keys are only read at the start.",
        "Restart the daemon when convenient: pods are not touched by that.";
    NOT_RELOADED = "ZCR008E", "CONFIGURATION NOT RELOADED: {error}",
        "A file cannot be read or is not valid. Everything goes on as before.",
        "Mend the file (`zcrid config --check`), and REFRESH again.";
    CUT_SHORT = "ZCR009W", "CALLS IN FLIGHT WERE CUT SHORT BY THE STOP",
        "Calls, a long pull for example, did not end in the time that a stop gives them. What they had begun is undone \
         or gone on with at the next start; the kubelet asks again.",
        "None.";
    RECOVERED = "ZCR010I", "RECOVERED {pods} PODS",
        "The records of pods were read at the start and compared with what runs.",
        "None.";
    RECORD_BROKEN = "ZCR011E", "RECORD LEFT ALONE: {error}",
        "A record of a pod or container is damaged, after a loss of power for example. Nothing that may belong to it is \
         touched.",
        "Look whether its processes run. Remove them and the file that the text names, then restart the daemon.";
    COMMAND_REFUSED = "ZCR012E", "COMMAND NOT UNDERSTOOD: {command}",
        "A console command that the daemon does not know.",
        "Use DISPLAY PODS, DISPLAY NETWORK, DISPLAY STATUS, REFRESH or STOP.";
    COMMAND_TAKEN = "ZCR013I", "COMMAND ACCEPTED: {command}",
        "A console command is carried out.",
        "None.";
    DISPLAY_PODS = "ZCR050I", "{count} PODS",
        "The answer to DISPLAY PODS: a line per pod follows.",
        "None.";
    DISPLAY_NETWORK = "ZCR051I", "NETWORK {name}",
        "The answer to DISPLAY NETWORK.",
        "None.";
    DISPLAY_STATUS = "ZCR052I", "ZCRID {version} STATUS",
        "The answer to DISPLAY STATUS.",
        "None.";
    NETWORK_UP = "ZCR101I", "POD NETWORK {network} IS READY",
        "Pods can get a network from the configuration in use. It comes at the start, and when the network is back.",
        "None.";
    NETWORK_DOWN = "ZCR102W", "NO POD CAN GET A NETWORK: {problem}",
        "The configuration is missing or not valid, a plugin is missing, or a plugin said that it is not ready. Running \
         pods are not touched; the node reports NetworkReady false.",
        "Mend what the text names. The configuration is watched; nothing has to be restarted.";
    STILL_ATTACHED = "ZCR103W", "POD {pod} IS STILL ATTACHED: {error}",
        "A plugin failed to take back the network of a pod that ended. It is tried again, with pauses of up to five \
         minutes. Its address is not free until then.",
        "Mend what the plugin says. `zcrid status network` lists all such pods.";
    DETACHED = "ZCR104I", "POD {pod} IS DETACHED AT LAST",
        "What ZCR103W told of is done.",
        "None.";
    RANGE_EXHAUSTED = "ZCR105A", "NO FREE ADDRESS: {problem}",
        "A network plugin has no address left to give: the range (on z/OS: VIPARANGE ZCONTAINER, which Podman shares) is \
         exhausted. No pod with a network of its own can start.",
        "End pods, give back addresses that nobody uses, or define a further range.";
    SHIM_GONE = "ZCR201E", "THE SHIM OF POD {pod} IS GONE",
        "The monitor process of a pod ended though nobody asked it to; it was killed, or failed. The pod is not ready \
         and its containers are ended with exit code 255.",
        "The kubelet replaces the pod. If it comes again, look into shim.log of the pod and for memory shortage.";
    RUNTIME_DOWN = "ZCR202E", "NO CONTAINER CAN RUN: {problem}",
        "The OCI runtime or the shim is missing or cannot be run, or storage cannot be written. The node reports \
         RuntimeReady false.",
        "Mend what the text names.";
    RUNTIME_UP = "ZCR203I", "CONTAINERS CAN RUN AGAIN",
        "What ZCR202E told of is mended.",
        "None.";
    HALF_UNDONE = "ZCR204E", "POD {pod} IS ONLY PARTLY UNDONE: {error}",
        "A pod could not be made, and neither could all be removed that had been made of it. It is listed as not ready \
         until its removal succeeds.",
        "Mend what the text names. The kubelet asks for the removal again by itself.";
    STORAGE_FULL = "ZCR301A", "STORAGE IS FULL: {error}",
        "A file could not be written for want of space or inodes.",
        "Make room: the kubelet collects images and pods by itself when it is told of the shortage. Removing images and \
         pods works without free space.";
    IMAGE_DAMAGED = "ZCR302E", "IMAGE DAMAGED AND DROPPED: {reason}",
        "An image in the store is not whole, after a loss of power for example.",
        "None. The next pull repairs it.";
    IMAGE_REFUSED = "ZCR303W", "IMAGE REFUSED: {error}",
        "An image was not let in: the policy wants a signature that it does not have, registries.conf blocks it, or the \
         registry refused our credentials.",
        "If the image is wanted: sign it or admit it in policy.json, mend registries.conf, or renew the credentials.";
}

/// The message with that id.
pub fn find(id: &str) -> Option<&'static Message> {
    TABLE.iter().find(|message| message.id == id)
}

/// The id that a line of a console holds, wherever it stands.
pub fn id_in(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| is_id(word))
}

fn is_id(word: &str) -> bool {
    let Some(rest) = word.strip_prefix(PREFIX) else {
        return false;
    };
    let (digits, kind) = rest.split_at_checked(3).unwrap_or(("", rest));
    word.len() == ID_LENGTH
        && digits.bytes().all(|b| b.is_ascii_digit())
        && matches!(kind, "I" | "W" | "E" | "A")
}

impl Message {
    /// The line: id and text, with the values that `insert` has for the names; `?` stands for one that is missing. A
    /// console takes no control characters.
    pub fn line(&self, insert: impl Fn(&str) -> Option<String>) -> String {
        let mut line = format!("{} ", self.id);
        let mut rest = self.text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, behind) = after.split_once('}').unwrap_or((after, ""));
            line.push_str(before);
            let value = insert(name).unwrap_or_else(|| "?".to_owned());
            line.extend(value.chars().map(|c| if c.is_control() { ' ' } else { c }));
            rest = behind;
        }
        line.push_str(rest);
        line
    }

    /// Names of the inserts of the text.
    pub fn inserts(&self) -> impl Iterator<Item = &'static str> {
        let pieces = self.text.split('{').skip(1);
        pieces.filter_map(|piece| piece.split_once('}').map(|(name, _)| name))
    }
}

#[cfg(test)]
mod tests;
