//! Which authority is missing when z/OS refuses a privileged call.
//!
//! "Operation not permitted" alone sends an operator through half of the security server. Each privileged call of the
//! daemon, its shim and the OCI runtime needs a known SAF profile; the error names it.

use zcri_image::ImageError;

use crate::error::{Chain, Error};

/// A privileged call by the words that the error's text has for it, and what to grant.
struct Privilege {
    /// Any of these in the text tells the call.
    words: &'static [&'static str],
    /// What to grant, and to whom.
    grant: &'static str,
}

/// The first that fits is told. Sources: z/OS UNIX System Services Planning, "Namespaces in z/OS UNIX" and "Using
/// UNIXPRIV class profiles"; Communications Server, SIOCSVIPA and EZB.MODDVIPA; zOSCP, "User ID requirements".
const PRIVILEGES: &[Privilege] = &[
    Privilege {
        words: &["VIPA", "vipa"],
        grant: "APF authorization of the plugin, and READ to EZB.MODDVIPA.sysname.tcpname in class SERVAUTH",
    },
    Privilege {
        words: &["namespace", "unshare", "clone", "setns", "pivot_root"],
        grant: "READ to CONTAINERS in class UNIXPRIV",
    },
    Privilege {
        words: &["unmount", "mount"],
        grant: "READ to SUPERUSER.FILESYS.MOUNT in class UNIXPRIV",
    },
    Privilege {
        words: &["change the owner", "chown"],
        grant: "READ to SUPERUSER.FILESYS.CHOWN in class UNIXPRIV",
    },
    Privilege {
        words: &["extattr", "attribute"],
        grant: "READ to BPX.FILEATTR.APF, BPX.FILEATTR.PROGCTL and BPX.FILEATTR.SHARELIB in class FACILITY",
    },
    Privilege {
        words: &["setuid", "setgid", "setgroups", "seteuid", "setup user"],
        grant: "READ to BPX.DAEMON in class FACILITY",
    },
    Privilege {
        words: &["kill", "signal"],
        grant: "READ to SUPERUSER.PROCESS.KILL in class UNIXPRIV",
    },
];

/// What is granted when the call is not known.
const SUPERUSER: &str = "READ to BPX.SUPERUSER in class FACILITY, or UID(0)";

/// How EPERM and EACCES are written: by Linux, by Go, and by z/OS's run-time library.
const REFUSALS: &[&str] = &[
    "operation not permitted",
    "permission denied",
    "edc5139i",
    "edc5111i",
    "eperm",
    "eacces",
];

/// Adds to an error of missing authority what to grant; any other is left as it is.
#[must_use]
pub fn explain(error: Error) -> Error {
    let text = Chain(&error).to_string();
    let grant = match caller(&error) {
        Caller::Daemon => grant(&text),
        Caller::Runtime => known(&text),
        Caller::Nobody => None,
    };
    match grant {
        Some(grant) => Error::Authority {
            grant,
            source: Box::new(error),
        },
        None => error,
    }
}

/// Whose call failed.
enum Caller {
    /// The daemon's own, or a plugin's.
    Daemon,
    /// The OCI runtime's, which also tells of what the container itself may not: its program may not be executable.
    Runtime,
    /// No call of this system's: a registry refuses access too.
    Nobody,
}

fn caller(error: &Error) -> Caller {
    match error {
        Error::Network { .. } | Error::Node { .. } => Caller::Daemon,
        Error::Runtime { .. } => Caller::Runtime,
        Error::Image { source, .. } => match **source {
            ImageError::Attribute { .. } | ImageError::Io { .. } => Caller::Daemon,
            _ => Caller::Nobody,
        },
        Error::Shared(error) => caller(error),
        _ => Caller::Nobody,
    }
}

/// What to grant so that an operation that failed with this text succeeds; none when authority is not what was missing.
#[must_use]
pub fn grant(text: &str) -> Option<&'static str> {
    is_refusal(text).then(|| known(text).unwrap_or(SUPERUSER))
}

/// As [`grant`], if the call is known.
fn known(text: &str) -> Option<&'static str> {
    let asks = |privilege: &&Privilege| privilege.words.iter().any(|word| text.contains(word));
    let known = PRIVILEGES.iter().find(asks).filter(|_| is_refusal(text));
    known.map(|privilege| privilege.grant)
}

fn is_refusal(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    REFUSALS.iter().any(|refusal| lower.contains(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_privileged_call_names_its_profile() {
        for (text, profile) in [
            (
                "unshare namespaces: Operation not permitted (os error 1)",
                "CONTAINERS",
            ),
            ("clone: EDC5139I Operation not permitted.", "CONTAINERS"),
            (
                "mount overlay on \"/x\": Operation not permitted",
                "SUPERUSER.FILESYS.MOUNT",
            ),
            ("SIOCSVIPA: EPERM", "EZB.MODDVIPA"),
            (
                "chown /x: EDC5139I Operation not permitted.",
                "SUPERUSER.FILESYS.CHOWN",
            ),
            (
                "set attribute system.filetag: Permission denied",
                "BPX.FILEATTR",
            ),
            ("setgroups: Operation not permitted", "BPX.DAEMON"),
            ("kill 17: Operation not permitted", "SUPERUSER.PROCESS.KILL"),
            ("open /dev/x: permission denied", "BPX.SUPERUSER"),
        ] {
            let grant = grant(text).unwrap();
            assert!(grant.contains(profile), "{text}: {grant}");
        }
    }

    #[test]
    fn a_refusal_by_others_is_none_of_the_systems() {
        let image = |source| Error::Image {
            reference: "a".into(),
            source: Box::new(source),
        };
        let registry = image(ImageError::Unauthorized {
            host: "h".into(),
            repository: "r".into(),
            status: 403,
            message: "permission denied to mount".into(),
        });
        assert!(matches!(explain(registry), Error::Image { .. }));
        let io = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let disk = image(ImageError::Io {
            action: "change the owner of",
            path: "x".into(),
            source: std::sync::Arc::new(io),
        });
        assert!(matches!(explain(disk), Error::Authority { .. }));
        let program = Error::Runtime {
            action: "start",
            id: "c".into(),
            source: "exec: \"/x\": permission denied".into(),
        };
        assert!(matches!(explain(program), Error::Runtime { .. }));
        let named_like_a_call = Error::Program {
            id: "c".into(),
            program: "/bin/mount".into(),
            source: "exec: \"/bin/mount\": permission denied".into(),
        };
        assert!(matches!(explain(named_like_a_call), Error::Program { .. }));
    }

    #[test]
    fn other_failures_are_left_alone() {
        for text in [
            "mount overlay on \"/x\": No such file or directory",
            "unshare namespaces: ENOSPC",
        ] {
            assert_eq!(grant(text), None);
        }
    }
}
