//! The result: rows with a median and a 95th percentile per endpoint, as a table, as JSON and as a page.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::endpoint::Endpoint;
use super::work::Plan;

/// The figures in the order of the report: name, unit, what it is.
const FIGURES: [(&str, &str, &str); 39] = [
    ("RunPodSandbox", "ms", "one call"),
    ("CreateContainer", "ms", "one call"),
    ("StartContainer", "ms", "one call"),
    ("pod ready", "ms", "the three calls above"),
    ("ExecSync(true)", "ms", "one call"),
    ("ContainerStatus", "ms", "one call"),
    ("PodSandboxStatus", "ms", "one call"),
    ("StopContainer(0)", "ms", "one call"),
    ("RemoveContainer", "ms", "one call"),
    ("StopPodSandbox", "ms", "one call"),
    ("RemovePodSandbox", "ms", "one call"),
    ("stop and remove all", "ms", "the four calls above"),
    (
        "pods per second",
        "1/s",
        "all pods at the given parallelism",
    ),
    (
        "list pods and containers",
        "ms",
        "ListPodSandbox and ListContainers, all pods up",
    ),
    ("ListContainerStats", "ms", "all pods up"),
    ("daemon, empty", "MiB", "PSS before the first of these pods"),
    ("daemon, full", "MiB", "PSS with all pods up"),
    (
        "monitors per pod",
        "MiB",
        "PSS of shims or conmons, divided by the pods",
    ),
    (
        "CPU, full and idle",
        "%",
        "of one CPU, daemon and monitors, nothing asked",
    ),
    ("pull: small files", "s", "one layer of many small files"),
    ("pull: large layers", "s", "eight layers of 25 MiB"),
    ("pull: given images", "s", "--pull-image"),
    (
        "exec session",
        "ms",
        "Exec, connection, a command that ends at once, its status (SPDY)",
    ),
    ("exec session, terminal", "ms", "the same with a terminal"),
    (
        "exec cat",
        "MiB/s",
        "output of one session (SPDY), 1 GiB unless --transfer-mib says otherwise",
    ),
    (
        "exec cat, CPU",
        "s",
        "of daemon and monitor for it, per GiB",
    ),
    ("exec cat, WebSocket", "MiB/s", "the same by WebSocket"),
    (
        "exec cat, WebSocket, CPU",
        "s",
        "of daemon and monitor for it, per GiB",
    ),
    ("exec, terminal output", "MiB/s", "output of one terminal"),
    (
        "exec, terminal output, CPU",
        "s",
        "of daemon and monitor for it, per GiB",
    ),
    (
        "200 exec sessions at once",
        "s",
        "from the first request to the last status",
    ),
    (
        "short exec sessions per second",
        "1/s",
        "10,000 (--sessions), 8 at a time, one in ten with a terminal",
    ),
    (
        "left: file descriptors",
        "",
        "of daemon and monitor, after them",
    ),
    ("left: threads", "", "of daemon and monitor, after them"),
    ("left: processes in the container", "", "after them"),
    (
        "container log",
        "MiB/s",
        "lines of 100 bytes until all are in the log, 200 MiB unless --log-mib says otherwise",
    ),
    (
        "container log, CPU",
        "s",
        "of daemon and monitor for it, per GiB",
    ),
    (
        "container log, IBM-1047",
        "MiB/s",
        "the same, converted; every tenth character takes two bytes in UTF-8",
    ),
    (
        "container log, IBM-1047, CPU",
        "s",
        "of daemon and monitor for it, per GiB",
    ),
];

/// A run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Name and version of each endpoint.
    pub endpoints: Vec<(String, String)>,
    /// The machine.
    pub machine: Machine,
    /// What was done.
    pub plan: String,
    /// The figures that were measured.
    pub rows: Vec<Row>,
}

/// Where it ran.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Model of the CPU.
    pub model: String,
    /// Load average of the last minute before the run.
    pub load: String,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it is.
    pub note: &'static str,
    /// One entry per endpoint; none where it was not measured.
    pub values: Vec<Option<Value>>,
    /// The first endpoint's median divided by the second's.
    pub ratio: Option<f64>,
}

/// A figure of one endpoint.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Value {
    /// The median.
    pub median: f64,
    /// The 95th percentile; the median of one sample is that too.
    pub p95: f64,
    /// How many samples.
    pub samples: usize,
}

impl Machine {
    /// Looks at this machine.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            model: model.map_or_else(
                || std::env::consts::ARCH.to_owned(),
                |(_, model)| model.to_owned(),
            ),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

impl Report {
    /// Collects what the endpoints hold.
    pub fn new(endpoints: &[Endpoint], machine: Machine, plan: &Plan) -> Self {
        let rows = FIGURES.iter().filter_map(|&(name, unit, note)| {
            let values: Vec<Option<Value>> = endpoints
                .iter()
                .map(|endpoint| value(endpoint, name))
                .collect();
            let ratio = match values.as_slice() {
                [Some(a), Some(b), ..] if b.median > 0.0 => Some(a.median / b.median),
                _ => None,
            };
            values.iter().any(Option::is_some).then_some(Row {
                name,
                unit,
                note,
                values,
                ratio,
            })
        });
        Self {
            endpoints: endpoints
                .iter()
                .map(|e| (e.name.clone(), e.version.clone()))
                .collect(),
            machine,
            plan: format!(
                "{} pods one after the other, then {} pods {} at a time, {} s idle",
                plan.iterations,
                plan.pods,
                plan.parallel,
                plan.idle.as_secs()
            ),
            rows: rows.collect(),
        }
    }

    /// The table for people.
    ///
    /// # Errors
    /// Never: a string takes every text.
    pub fn table(&self) -> Result<String> {
        let mut text = String::new();
        write!(text, "{:26}{:>6}", "", "")?;
        for (name, _) in &self.endpoints {
            write!(text, "{name:>14}{:>10}", "p95")?;
        }
        writeln!(
            text,
            "{}",
            if self.endpoints.len() > 1 {
                "     ratio"
            } else {
                ""
            }
        )?;
        for row in &self.rows {
            write!(text, "{:26}{:>6}", row.name, row.unit)?;
            for value in &row.values {
                match value {
                    Some(value) if value.samples > 1 => write!(
                        text,
                        "{:>14}{:>10}",
                        number(value.median),
                        number(value.p95)
                    )?,
                    Some(value) => write!(text, "{:>14}{:>10}", number(value.median), "")?,
                    None => write!(text, "{:>14}{:>10}", "-", "")?,
                }
            }
            writeln!(
                text,
                "{}",
                row.ratio
                    .map(|ratio| format!("{ratio:>10.2}"))
                    .unwrap_or_default()
            )?;
        }
        Ok(text)
    }

    /// The page for docs/, with the plot beside it.
    ///
    /// # Errors
    /// Never: a string takes every text.
    pub fn markdown(&self, plot: &str) -> Result<String> {
        let mut text = String::from(
            "# Benchmarks\n\nWritten by `make bench`, which measures on the machine it runs on. Both daemons are driven in turn within one\nrun, with the same OCI runtime, the same CNI plugins and stores on the same file system.\n\n",
        );
        let machine = &self.machine;
        writeln!(
            text,
            "- machine: {} CPUs ({}), kernel {}, load {} before the run",
            machine.cpus, machine.model, machine.kernel, machine.load
        )?;
        for (name, version) in &self.endpoints {
            writeln!(text, "- {name}: {version}")?;
        }
        writeln!(text, "- {}\n\n![plot]({plot})\n", self.plan)?;
        write!(text, "| figure | unit |")?;
        for (name, _) in &self.endpoints {
            write!(text, " {name} | p95 |")?;
        }
        writeln!(text, " ratio | what it is |")?;
        writeln!(
            text,
            "|---|---|{}---:|---|",
            "---:|---:|".repeat(self.endpoints.len())
        )?;
        for row in &self.rows {
            write!(text, "| {} | {} |", row.name, row.unit)?;
            for value in &row.values {
                match value {
                    Some(value) if value.samples > 1 => {
                        write!(text, " {} | {} |", number(value.median), number(value.p95))?
                    }
                    Some(value) => write!(text, " {} | |", number(value.median))?,
                    None => write!(text, " - | |")?,
                }
            }
            writeln!(
                text,
                " {} | {} |",
                row.ratio
                    .map(|ratio| format!("{ratio:.2}"))
                    .unwrap_or_default(),
                row.note
            )?;
        }
        Ok(text)
    }
}

fn value(endpoint: &Endpoint, name: &str) -> Option<Value> {
    let samples = endpoint.samples(name)?;
    Some(Value {
        median: samples.median()?,
        p95: samples.p95()?,
        samples: samples.len(),
    })
}

/// Three significant digits or so.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let value = |median| {
            Some(Value {
                median,
                p95: median * 2.0,
                samples: 5,
            })
        };
        let row = |name, a, b, ratio| Row {
            name,
            unit: "ms",
            note: "n",
            values: vec![a, b],
            ratio,
        };
        Report {
            endpoints: vec![
                ("one".into(), "zcri 0.1".into()),
                ("two".into(), "peer 2".into()),
            ],
            machine: Machine {
                kernel: "k".into(),
                cpus: 2,
                model: "m".into(),
                load: "0.1".into(),
            },
            plan: "p".into(),
            rows: vec![
                row("fast", value(1.5), value(3.0), Some(0.5)),
                row("alone", value(123.4), None, None),
            ],
        }
    }

    #[test]
    fn table_and_page_show_every_row() {
        let table = report().table().unwrap();
        assert!(
            table.contains("fast") && table.contains("0.50") && table.contains("123"),
            "{table}"
        );
        let page = report().markdown("plot.svg").unwrap();
        assert!(
            page.contains("| fast | ms | 1.50 | 3.00 | 3.00 | 6.00 | 0.50 | n |"),
            "{page}"
        );
        assert!(
            page.contains("| alone | ms | 123 | 247 | - | |  | n |"),
            "{page}"
        );
        let columns = page
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count());
        assert!(
            columns
                .clone()
                .all(|n| n == columns.clone().next().unwrap()),
            "{page}"
        );
    }

    #[test]
    fn the_plot_is_xml_with_a_bar_for_every_value() {
        let plot = super::super::svg::plot(&report()).unwrap();
        assert_eq!(
            plot.matches("<rect").count(),
            1 + 2 + 3,
            "background, legend, three values"
        );
        assert!(plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>"));
    }
}
