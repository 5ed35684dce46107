//! The clock: certificates, tokens and log times depend on it. The time zone does not matter.

use rustix::time::{ClockId, clock_gettime};

use super::report::Area;

/// Seconds of a year, in the mean.
const YEAR: i64 = 31_556_952;
/// Before this year no zcrid existed, and behind the other its certificates will not be valid.
const YEARS: std::ops::Range<i64> = 2026..2100;

pub(super) fn check(area: &mut Area<'_>) {
    let now = clock_gettime(ClockId::Realtime).tv_sec;
    area.verdict(
        "year",
        sane_year(now),
        "set the clock, and let NTP (on z/OS: the sysplex timer) keep it",
    );
    let boot = clock_gettime(ClockId::Boottime).tv_sec;
    let running = clock_gettime(ClockId::Monotonic).tv_sec;
    match suspended(boot, running) {
        Ok(0) => area.pass("monotonic", format!("{} since boot", span(boot))),
        Ok(asleep) => area.warn(
            "monotonic",
            format!("the machine was suspended for {}", span(asleep)),
            "a node should never sleep: leases and probes run out meanwhile",
        ),
        Err(reason) => area.fail(
            "monotonic",
            reason,
            "a fault of the kernel or the virtual machine",
        ),
    }
}

fn sane_year(now: i64) -> Result<String, String> {
    let year = 1970 + now.div_euclid(YEAR);
    if YEARS.contains(&year) {
        Ok(year.to_string())
    } else {
        Err(format!("the clock says {year}"))
    }
}

/// Seconds that the machine slept: the one clock counts them, the other does not (clock_gettime(2)).
fn suspended(boot: i64, running: i64) -> Result<i64, String> {
    match boot - running {
        // They are not read at the same time.
        0 | 1 => Ok(0),
        asleep if asleep > 0 => Ok(asleep),
        behind => Err(format!("{} s ahead of the time since boot", -behind)),
    }
}

fn span(seconds: i64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn years_and_sleep() {
        assert_eq!(sane_year(1_795_000_000).unwrap(), "2026");
        for wrong in [0, 1_700_000_000, -1, 4_200_000_000] {
            sane_year(wrong).unwrap_err();
        }
        assert_eq!(suspended(100, 100), Ok(0));
        assert_eq!(suspended(100, 40), Ok(60));
        suspended(40, 100).unwrap_err();
        assert_eq!(span(200_000), "2 days");
    }
}
