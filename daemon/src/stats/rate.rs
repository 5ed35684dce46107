//! A CPU rate from the readings that requests make anyway.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time between two readings that a rate is taken from. Within less, the kernel's accounting by ticks
/// and the time that the reading itself takes are seen rather than the container: two requests of different clients
/// right after one another get the same rate.
const SHORTEST_WINDOW: Duration = Duration::from_millis(100);

/// The last reading that a rate was taken from, and that rate.
#[derive(Debug, Default)]
pub struct Rate(Mutex<Option<Reading>>);

#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    cpu_ns: u64,
    nano_cores: Option<u64>,
}

impl Rate {
    /// Takes note of a reading made now; gives ns per second since the reading before.
    pub(crate) fn next(&self, cpu_ns: u64) -> Option<u64> {
        self.at(Instant::now(), cpu_ns)
    }

    fn at(&self, at: Instant, cpu_ns: u64) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = match *last {
            Some(before) => at.saturating_duration_since(before.at),
            None => Duration::MAX,
        };
        if elapsed < SHORTEST_WINDOW {
            return last.and_then(|before| before.nano_cores);
        }
        let nano_cores = last.and_then(|before| {
            // Less than before is another group of the same name.
            let used = u128::from(cpu_ns.checked_sub(before.cpu_ns)?);
            u64::try_from(used * 1_000_000_000 / elapsed.as_nanos()).ok()
        });
        *last = Some(Reading {
            at,
            cpu_ns,
            nano_cores,
        });
        nano_cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_between_two_readings() {
        let (rate, start) = (Rate::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(rate.at(at(0), 500), None, "nothing to compare with");
        assert_eq!(rate.at(at(2000), 1_000_000_500), Some(500_000_000));
        assert_eq!(rate.at(at(3000), 1_000_000_500), Some(0));
        assert_eq!(rate.at(at(4000), 5), None, "another group of the same name");
        assert_eq!(rate.at(at(5000), 2_000_000_005), Some(2_000_000_000));
    }

    #[test]
    fn readings_close_together_do_not_make_noise() {
        let (rate, start) = (Rate::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        rate.at(at(0), 0);
        assert_eq!(rate.at(at(1), 1_000_000), None, "no window yet");
        assert_eq!(rate.at(at(1000), 100_000_000), Some(100_000_000));
        assert_eq!(rate.at(at(1001), 101_000_000), Some(100_000_000), "kept");
        assert_eq!(rate.at(at(1099), 199_000_000), Some(100_000_000), "kept");
        assert_eq!(
            rate.at(at(2000), 300_000_000),
            Some(200_000_000),
            "the window began at the last reading that counted"
        );
    }
}
