//! What the checks found, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

/// How one check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// As it has to be.
    Pass,
    /// Pods run, but some will fail or an operator should know.
    Warn,
    /// No pod can run, or no image can be had.
    Fail,
    /// Not looked at; the detail says why.
    Skip,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
            Self::Skip => "skip",
        }
    }
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    /// Part of the node: `storage`, `network` and so on.
    pub(super) area: &'static str,
    /// What was looked at.
    pub(super) what: String,
    /// How it came out.
    pub(super) outcome: Outcome,
    /// What was found.
    pub(super) found: String,
    /// What to do about it; empty when there is nothing to do.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(super) advice: String,
}

/// All that was found, in the order of the checks.
#[derive(Debug, Default)]
pub(super) struct Report {
    findings: Vec<Finding>,
}

/// A report as the checks of one area write it.
pub(super) struct Area<'a> {
    report: &'a mut Report,
    name: &'static str,
}

impl Report {
    /// The part for one area.
    pub(super) fn area(&mut self, name: &'static str) -> Area<'_> {
        Area { report: self, name }
    }

    /// All of it.
    #[cfg(test)]
    pub(super) fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether nothing failed.
    pub(super) fn is_fit(&self) -> bool {
        self.count(Outcome::Fail) == 0
    }

    fn count(&self, outcome: Outcome) -> usize {
        let all = self.findings.iter();
        all.filter(|finding| finding.outcome == outcome).count()
    }

    fn summary(&self) -> String {
        format!(
            "{} passed, {} warned, {} failed, {} skipped: this node is {}",
            self.count(Outcome::Pass),
            self.count(Outcome::Warn),
            self.count(Outcome::Fail),
            self.count(Outcome::Skip),
            if self.is_fit() { "fit" } else { "NOT fit" }
        )
    }

    /// The table.
    pub(super) fn to_table(&self) -> String {
        let width = |of: fn(&Finding) -> &str, least: usize| {
            let longest = self.findings.iter().map(|f| of(f).chars().count()).max();
            longest.unwrap_or(0).max(least)
        };
        let area = width(|f| f.area, 4);
        let what = width(|f| &f.what, 4);
        let mut text = String::new();
        let mut line = |row: String| {
            text.push_str(row.trim_end());
            text.push('\n');
        };
        line(format!("{:6}{:area$}  {:what$}  found", "", "area", "what"));
        for finding in &self.findings {
            let word = finding.outcome.word();
            let mut rest = finding.found.lines();
            line(format!(
                "{word:6}{:area$}  {:what$}  {}",
                finding.area,
                finding.what,
                rest.next().unwrap_or_default()
            ));
            let indent = 6 + area + 2 + what + 2;
            for more in rest {
                line(format!("{:indent$}{more}", ""));
            }
            for advice in finding.advice.lines() {
                line(format!("{:indent$}-> {advice}", ""));
            }
        }
        // Writing to a string does not fail.
        writeln!(text, "\n{}", self.summary()).unwrap_or_default();
        text
    }

    /// One JSON object.
    pub(super) fn to_json(&self) -> String {
        let report = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "fit": self.is_fit(),
            "passed": self.count(Outcome::Pass),
            "warned": self.count(Outcome::Warn),
            "failed": self.count(Outcome::Fail),
            "skipped": self.count(Outcome::Skip),
            "findings": self.findings,
        });
        format!("{report:#}\n")
    }
}

impl Area<'_> {
    /// It is as it has to be.
    pub(super) fn pass(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.note(what.into(), Outcome::Pass, found.into(), "");
    }

    /// Some pods will fail.
    pub(super) fn warn(
        &mut self,
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl AsRef<str>,
    ) {
        self.note(what.into(), Outcome::Warn, found.into(), advice.as_ref());
    }

    /// No pod can run.
    pub(super) fn fail(
        &mut self,
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl AsRef<str>,
    ) {
        self.note(what.into(), Outcome::Fail, found.into(), advice.as_ref());
    }

    /// It was not looked at.
    pub(super) fn skip(&mut self, what: impl Into<String>, reason: impl Into<String>) {
        self.note(what.into(), Outcome::Skip, reason.into(), "");
    }

    /// Pass or fail.
    pub(super) fn verdict(
        &mut self,
        what: impl Into<String>,
        result: Result<String, String>,
        advice: impl AsRef<str>,
    ) {
        match result {
            Ok(found) => self.pass(what, found),
            Err(found) => self.fail(what, found, advice),
        }
    }

    fn note(&mut self, what: String, outcome: Outcome, found: String, advice: &str) {
        self.report.findings.push(Finding {
            area: self.name,
            what,
            outcome,
            found,
            advice: advice.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::default();
        let mut area = report.area("storage");
        area.pass("/root", "ext4");
        area.warn("/r", "first\nsecond", "do this\nor that");
        report.area("wlm").skip("class", "not here");
        report
    }

    #[test]
    fn a_table_is_aligned_and_says_what_to_do() {
        let table = "      area     what   found\n\
                     pass  storage  /root  ext4\n\
                     WARN  storage  /r     first\n\
                     \x20                     second\n\
                     \x20                     -> do this\n\
                     \x20                     -> or that\n\
                     skip  wlm      class  not here\n\
                     \n\
                     1 passed, 1 warned, 0 failed, 1 skipped: this node is fit\n";
        assert_eq!(report().to_table(), table);
    }

    #[test]
    fn one_failure_makes_it_unfit() {
        let mut report = report();
        assert!(report.is_fit());
        report.area("x").verdict("y", Err("z".into()), "mend z");
        assert!(!report.is_fit());
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!((&json["fit"], &json["failed"]), (&false.into(), &1.into()));
        let last = &json["findings"][3];
        assert_eq!(
            (&last["outcome"], &last["advice"]),
            (&"fail".into(), &"mend z".into())
        );
        assert_eq!(json["findings"][0].get("advice"), None);
    }
}
