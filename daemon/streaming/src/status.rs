//! What the error stream says at the end: `metav1.Status` in JSON since version 4, plain text before.

use serde::Serialize;

use crate::backend::{ExitStatus, SessionError};
use crate::limits::MAX_ERROR_MESSAGE;

/// The reason of a status that carries an exit code (k8s.io/apimachinery, remotecommand `NonZeroExitCodeReason`).
const NON_ZERO_EXIT_CODE: &str = "NonZeroExitCode";
/// The cause whose message is the code (remotecommand `ExitCodeCauseType`).
const EXIT_CODE: &str = "ExitCode";
const INTERNAL_ERROR: &str = "InternalError";

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process ended by itself.
    Exited(ExitStatus),
    /// There was no process, or nothing is known of its end.
    Failed(String),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    metadata: Metadata,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Metadata {}

#[derive(Serialize)]
struct Details<'a> {
    causes: [Cause<'a>; 1],
}

#[derive(Serialize)]
struct Cause<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    message: &'a str,
}

impl Outcome {
    /// What a failed session says; `doing` as the kubelet's servers put it ("executing command in container").
    pub(crate) fn failed(doing: &str, error: &SessionError) -> Self {
        let mut message = format!("error {doing}: {error}");
        truncate(&mut message);
        Self::Failed(message)
    }

    /// The bytes for the error stream. Empty for a success before version 4, which has only errors there.
    pub(crate) fn encode(&self, json: bool) -> Vec<u8> {
        if json {
            self.json()
        } else {
            self.text().into_bytes()
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Exited(ExitStatus { code: 0 }) => String::new(),
            Self::Exited(status) => exit_message(*status),
            Self::Failed(message) => message.clone(),
        }
    }

    fn json(&self) -> Vec<u8> {
        let (message, code);
        let failure = Status {
            metadata: Metadata {},
            status: "Failure",
            message: None,
            reason: None,
            details: None,
            code: None,
        };
        let status = match self {
            Self::Exited(ExitStatus { code: 0 }) => Status {
                status: "Success",
                ..failure
            },
            Self::Exited(exit) => {
                (message, code) = (exit_message(*exit), exit.code.to_string());
                let causes = [Cause {
                    reason: Some(EXIT_CODE),
                    message: &code,
                }];
                Status {
                    message: Some(&message),
                    reason: Some(NON_ZERO_EXIT_CODE),
                    details: Some(Details { causes }),
                    ..failure
                }
            }
            Self::Failed(text) => {
                message = format!("Internal error occurred: {text}");
                Status {
                    message: Some(&message),
                    reason: Some(INTERNAL_ERROR),
                    details: Some(Details {
                        causes: [Cause {
                            reason: None,
                            message: text,
                        }],
                    }),
                    code: Some(500),
                    ..failure
                }
            }
        };
        // Strings and numbers always serialize.
        serde_json::to_vec(&status).unwrap_or_default()
    }
}

fn exit_message(status: ExitStatus) -> String {
    format!(
        "command terminated with non-zero exit code: exit status {}",
        status.code
    )
}

/// Cuts a message at [`MAX_ERROR_MESSAGE`].
pub(crate) fn truncate(message: &mut String) {
    if message.len() > MAX_ERROR_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_ERROR_MESSAGE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(outcome: &Outcome) -> serde_json::Value {
        serde_json::from_slice(&outcome.encode(true)).unwrap()
    }

    #[test]
    fn a_success_is_a_status_since_version_4_and_nothing_before() {
        let success = Outcome::Exited(ExitStatus { code: 0 });
        assert_eq!(
            json(&success),
            serde_json::json!({"metadata": {}, "status": "Success"})
        );
        assert!(success.encode(false).is_empty());
    }

    #[test]
    fn an_exit_code_is_a_cause() {
        let status = json(&Outcome::Exited(ExitStatus { code: 137 }));
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"][0],
            serde_json::json!({"reason": "ExitCode", "message": "137"})
        );
        let text = Outcome::Exited(ExitStatus { code: 137 }).encode(false);
        assert!(
            String::from_utf8(text)
                .unwrap()
                .ends_with("exit status 137")
        );
    }

    #[test]
    fn a_failure_has_its_message_cut_at_the_limit() {
        let error = SessionError::Internal {
            message: "ü".repeat(MAX_ERROR_MESSAGE),
        };
        let outcome = Outcome::failed("executing command in container", &error);
        let Outcome::Failed(message) = &outcome else {
            panic!("{outcome:?}")
        };
        assert!(message.len() <= MAX_ERROR_MESSAGE);
        assert!(message.starts_with("error executing command in container: üü"));
        assert_eq!(json(&outcome)["code"], 500);
    }
}
