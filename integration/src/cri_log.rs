//! The CRI log format: `<RFC3339Nano> <stream> <F|P> <text>` (kubelet `pkg/kubelet/kuberuntime/logs`).

use anyhow::{Context as _, Result, bail, ensure};

/// One line of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The time as written.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line goes on in the next entry (tag `P`).
    pub partial: bool,
    /// What the container wrote, without its newline.
    pub text: String,
}

/// Parses a whole file, checking every field.
///
/// # Errors
/// A line that is not of the format; the file's last line has no end.
pub fn parse(content: &str) -> Result<Vec<Line>> {
    ensure!(
        content.is_empty() || content.ends_with('\n'),
        "the last line is not finished: {content:?}"
    );
    content
        .lines()
        .map(|line| parse_line(line).with_context(|| format!("log line {line:?}")))
        .collect()
}

/// What one stream wrote: partial entries joined, a newline after each full one.
pub fn stream(lines: &[Line], name: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == name) {
        text.push_str(&line.text);
        if !line.partial {
            text.push('\n');
        }
    }
    text
}

fn parse_line(line: &str) -> Result<Line> {
    let mut parts = line.splitn(4, ' ');
    let mut field = || parts.next().context("too few fields");
    let (time, stream, tag, text) = (field()?, field()?, field()?, field()?);
    check_time(time)?;
    ensure!(matches!(stream, "stdout" | "stderr"), "stream {stream:?}");
    let partial = match tag {
        "F" => false,
        "P" => true,
        other => bail!("tag {other:?}"),
    };
    Ok(Line {
        time: time.to_owned(),
        stream: stream.to_owned(),
        partial,
        text: text.to_owned(),
    })
}

/// RFC 3339 with a fraction of one to nine digits and a zone.
fn check_time(time: &str) -> Result<()> {
    let bytes = time.as_bytes();
    ensure!(bytes.len() > 20, "time {time:?} has no fraction");
    let pattern = b"dddd-dd-ddTdd:dd:dd.";
    let matches = pattern.iter().zip(bytes).all(|(want, got)| match want {
        b'd' => got.is_ascii_digit(),
        other => got == other,
    });
    let digits = bytes[pattern.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let zone = &time[pattern.len() + digits..];
    let zone_fits = zone == "Z" || (zone.len() == 6 && matches!(zone.as_bytes()[0], b'+' | b'-'));
    ensure!(
        matches && (1..=9).contains(&digits) && zone_fits,
        "time {time:?} is not RFC3339Nano"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_join_where_partial() {
        let lines = parse(
            "2024-01-02T03:04:05.123456789Z stdout P ab\n2024-01-02T03:04:05.1+02:00 stderr F  e\n2024-01-02T03:04:05.2Z stdout F c\n",
        )
        .unwrap();
        assert_eq!(stream(&lines, "stdout"), "abc\n");
        assert_eq!(stream(&lines, "stderr"), " e\n");
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [
            "2024-01-02T03:04:05Z stdout F no fraction\n",
            "2024-01-02T03:04:05.1Z stdin F x\n",
            "2024-01-02T03:04:05.1Z stdout X x\n",
            "2024-01-02T03:04:05.1Z stdout F cut",
            "garbage\n",
        ] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }
}
